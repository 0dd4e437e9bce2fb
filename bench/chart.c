/* chart.c - pictures of curves (SVG).
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "chart.h"

#include <math.h>
#include <stdio.h>

enum {
  COLUMNS = 2,
  WIDTH = 560,
  HEIGHT = 330,
  LEFT = 52,
  RIGHT = 118,
  TOP = 34,
  BOTTOM = 34,
  NOTE = 28
};

/* The least round number that reaches `most` in five steps. */
static double step_of(double most) {
  static const double round[] = {1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8};
  double power = pow(10, floor(log10(most / 5)));
  for (int i = 0; i < 10; i++)
    if (round[i] * power * 5 >= most) return round[i] * power;
  return 10 * power;
}

static double along(const bench_chart *c, double x) {
  return LEFT + (WIDTH - RIGHT - LEFT) * (x - c->least) / (double)(c->most - c->least);
}

static void draw_axes(FILE *f, const bench_chart *c, double step) {
  const int right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  fprintf(f, "<text x='%d' y='18' font-weight='bold'>%s</text>\n", LEFT - 40, c->title);
  for (int i = 0; i <= 5; i++) {
    double y = bottom - (bottom - TOP) * i / 5.0;
    fprintf(f, "<path d='M%d %.1fH%d' stroke='#ddd'/>\n", LEFT, y, right);
    fprintf(f, "<text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", LEFT - 6, y + 4, step * i);
  }
  for (int i = c->least; i <= c->most; i++) {
    double x = along(c, i);
    long n = 1L << i;
    fprintf(f, "<path d='M%.1f %dV%d' stroke='#eee'/>\n", x, TOP, bottom);
    fprintf(f, "<text x='%.1f' y='%d' text-anchor='middle'>%ld%s</text>\n", x, bottom + 16,
            n < 1024 ? n : n / 1024, n < 1024 ? "" : "k");
  }
}

static void draw_curve(FILE *f, const bench_chart *c, int at, double top) {
  static const char *const colours[BENCH_CURVES] = {"#1b6ca8", "#d1495b", "#3a7d44", "#e09f3e",
                                                    "#7d4e9e", "#666666", "#17becf", "#8c564b",
                                                    "#e377c2", "#9a8f1a"};
  const bench_curve *curve = &c->curves[at];
  const int right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  int open = 0;
  fprintf(f, "<g stroke='%s' fill='none' stroke-width='2'><path d='", colours[at]);
  for (int i = 0; i < curve->n; i++) {
    double y = bottom - (bottom - TOP) * curve->y[i] / top;
    if (isnan(curve->y[i])) open = 0;
    else fprintf(f, "%c%.1f %.1f", open ? 'L' : 'M', along(c, curve->x[i]), y);
    if (!isnan(curve->y[i])) open = 1;
  }
  fprintf(f, "'/>");
  for (int i = 0; i < curve->n; i++)
    if (!isnan(curve->y[i]))
      fprintf(f, "<circle cx='%.1f' cy='%.1f' r='2' fill='%s'/>", along(c, curve->x[i]),
              bottom - (bottom - TOP) * curve->y[i] / top, colours[at]);
  fprintf(f, "<path d='M%d %dh14'/></g>\n", right + 8, TOP + 8 + 18 * at);
  fprintf(f, "<text x='%d' y='%d'>%s</text>\n", right + 26, TOP + 12 + 18 * at, curve->label);
}

static double most_of(const bench_chart *c) {
  double most = 0;
  for (int j = 0; j < BENCH_CURVES; j++)
    for (int i = 0; i < c->curves[j].n; i++) most = fmax(most, c->curves[j].y[i]);
  return most;
}

void bench_charts_draw(const char *path, int n, const bench_chart *charts, const char *note) {
  FILE *f = fopen(path, "w");
  if (!f) return;
  const int rows = (n + COLUMNS - 1) / COLUMNS;
  fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' ", COLUMNS * WIDTH,
          rows * HEIGHT + NOTE);
  fprintf(f,
          "font-family='sans-serif' font-size='12'>\n<rect width='100%%' height='100%%' "
          "fill='white'/>\n");
  for (int i = 0; i < n; i++) {
    const bench_chart *c = &charts[i];
    double most = most_of(c), step = c->top > 0 ? c->top / 5 : step_of(most > 0 ? most : 1);
    fprintf(f, "<g transform='translate(%d %d)'>\n", i % COLUMNS * WIDTH, i / COLUMNS * HEIGHT);
    draw_axes(f, c, step);
    for (int j = 0; j < BENCH_CURVES; j++)
      if (c->curves[j].label) draw_curve(f, c, j, 5 * step);
    fprintf(f, "</g>\n");
  }
  fprintf(f, "<text x='%d' y='%d'>%s</text>\n</svg>\n", LEFT - 40, rows * HEIGHT + NOTE / 2, note);
  fclose(f);
}
