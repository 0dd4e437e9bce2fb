/* plot_heads.c - see plot_heads.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "plot_heads.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "svg.h"

static const char ink[] = "#222222", pale[] = "#666666", rule[] = "#dddddd";

/* ---- heat maps ---- */

enum { MAP_LEFT = 64, MAP_TOP = 58, SCALE = 50, SMALLEST_SHOWN = 30 };

static double largest(const plot_scores *s) {
  double most = s->most;
  for (int32_t i = 0; i < s->n_layers * s->n_heads && s->most <= 0; i++)
    if (s->scores[i] > most) most = s->scores[i];
  return most > 0 ? most : 1;
}

static double share_of(double score, double most) { return score > 0 ? fmin(score / most, 1) : 0; }

/* A cell; what is in it is written where there is room. */
static void draw_cell(FILE *svg, const plot_scores *s, int32_t i, double x, double y, double size,
                      double most) {
  char color[8];
  double share = share_of(s->scores[i], most), gap = size > 8 ? 1 : 0, middle = x + size / 2;
  const char *text = share > 0.6 ? "#ffffff" : ink;
  svg_rectangle(svg, x + gap, y + gap, size - 2 * gap, size - 2 * gap, svg_shade(share, color));
  if (size < SMALLEST_SHOWN) return;
  svg_text(svg, middle, y + size / 2 + (s->places ? -2 : 4), "middle", 12, text, "%.2f",
           s->scores[i]);
  if (s->places)
    svg_text(svg, middle, y + size / 2 + 13, "middle", 10, text, "at %lld",
             (long long)s->places[i]);
}

/* Numbers of layers or heads, as many as there is room for. */
static int is_numbered(int32_t i, double size) { return i % (size < 14 ? 8 : 1) == 0; }

int plot_heat(const char *path, const plot_scores *s) {
  double size = fmin(48, fmax(6, 1000.0 / fmax(s->n_layers, s->n_heads))), most = largest(s);
  double right = MAP_LEFT + size * s->n_heads, bottom = MAP_TOP + size * s->n_layers;
  double length = fmax(bottom - MAP_TOP, 96);
  char color[8];
  FILE *svg = svg_open(path, (int)fmax(right + 90, 620), (int)(MAP_TOP + length) + 56);
  if (!svg) return -1;
  svg_text(svg, 24, 28, "start", 15, ink, "%s", s->title);
  for (int32_t i = 0; i < s->n_layers * s->n_heads; i++)
    draw_cell(svg, s, i, MAP_LEFT + size * (i % s->n_heads), MAP_TOP + size * (i / s->n_heads),
              size, most);
  for (int32_t l = 0; l < s->n_layers; l++)
    if (is_numbered(l, size))
      svg_text(svg, MAP_LEFT - 8, MAP_TOP + size * (l + 0.5) + 4, "end", 12, ink, "%d", (int)l);
  for (int32_t h = 0; h < s->n_heads; h++)
    if (is_numbered(h, size))
      svg_text(svg, MAP_LEFT + size * (h + 0.5), bottom + 16, "middle", 12, ink, "%d", (int)h);
  svg_text_turned(svg, 28, (MAP_TOP + bottom) / 2, 13, ink, "layer");
  svg_text(svg, (MAP_LEFT + right) / 2, bottom + 38, "middle", 13, ink, "%s", s->heads);
  for (int i = 0; i < SCALE; i++)
    svg_rectangle(svg, right + 20, MAP_TOP + length * (SCALE - 1 - i) / SCALE, 14,
                  length / SCALE + 0.5, svg_shade(i / (SCALE - 1.0), color));
  for (int i = 0; i <= 2; i++)
    svg_text(svg, right + 40, MAP_TOP + length * (2 - i) / 2 + 4, "start", 12, ink, "%.3g",
             most * i / 2);
  return svg_close(svg);
}

/* ---- choices of heads ---- */

enum {
  WIDTH = 940,
  PANEL = 210, /* height of a panel, and what of it is the frame */
  FRAME = 150,
  PANELS_LEFT = 90,
  PANELS_RIGHT = 860,
  PANELS_TOP = 96,
  STEP = 20, /* from one choice to the next */
  BOX = 22
};

/* What a panel's height means. */
typedef struct axis {
  double top, bottom, low, high;
  int logarithmic;
} axis;

static double height_at(const axis *a, double y) {
  double share =
      a->logarithmic ? log(y / a->low) / log(a->high / a->low) : (y - a->low) / (a->high - a->low);
  return a->bottom - (a->bottom - a->top) * share;
}

static void widen(axis *a, const double *values, int32_t n) {
  for (int32_t i = 0; i < n; i++) {
    a->low = fmin(a->low, values[i]);
    a->high = fmax(a->high, values[i]);
  }
}

static axis make_axis(const plot_comparison *c, int32_t measure) {
  const plot_measure *m = &c->measures[measure];
  double top = PANELS_TOP + PANEL * measure;
  axis a = {top, top + FRAME, m->all_full, m->all_full, m->logarithmic};
  widen(&a, &m->none_full, 1);
  widen(&a, m->values, c->n_groups * c->n_choices);
  widen(&a, m->quartiles, c->n_groups * 5);
  if (m->high > m->low) {
    widen(&a, &m->low, 1);
    widen(&a, &m->high, 1);
  }
  double room = a.logarithmic ? pow(a.high / a.low, 0.06) : (a.high - a.low) * 0.06;
  if (a.high <= a.low) room = a.logarithmic ? 1.1 : 0.1;
  a.low = a.logarithmic ? a.low / room : a.low - room;
  a.high = a.logarithmic ? a.high * room : a.high + room;
  return a;
}

static void draw_tick(FILE *svg, const axis *a, double y) {
  if (y < a->low || y > a->high) return;
  svg_line(svg, PANELS_LEFT, height_at(a, y), PANELS_RIGHT, height_at(a, y), rule, 1, NULL);
  svg_text(svg, PANELS_LEFT - 8, height_at(a, y) + 4, "end", 12, ink, "%.4g", y);
}

/* Round numbers: of 1, 2 and 5 times powers of ten on a logarithmic axis, else three to six. */
static void draw_ticks(FILE *svg, const axis *a) {
  double range = a->high - a->low, step = pow(10, floor(log10(range)));
  if (a->logarithmic) {
    for (double y = pow(10, floor(log10(a->low))); y <= a->high; y *= 10)
      for (int i = 0; i < 3; i++) draw_tick(svg, a, y * (i == 2 ? 5 : i + 1));
    return;
  }
  step *= range < 2 * step ? 0.5 : range > 5 * step ? 2 : 1;
  for (double i = ceil(a->low / step); i * step <= a->high; i++)
    draw_tick(svg, a, i * step + 0.0); /* not -0 */
}

/* Dashed lines where every head or no head is full; their names keep apart. */
static void draw_references(FILE *svg, const axis *a, const plot_measure *m) {
  double all = height_at(a, m->all_full), none = height_at(a, m->none_full);
  double lower = fmax(all, none), middle = (all + none) / 2, upper = fmin(all, none);
  if (lower - upper < 13) {
    lower = middle + 6.5;
    upper = middle - 6.5;
  }
  svg_line(svg, PANELS_LEFT, all, PANELS_RIGHT, all, pale, 1, "5 4");
  svg_line(svg, PANELS_LEFT, none, PANELS_RIGHT, none, pale, 1, "5 4");
  svg_text(svg, PANELS_RIGHT + 4, (all > none ? lower : upper) + 4, "start", 11, pale, "all full");
  svg_text(svg, PANELS_RIGHT + 4, (all > none ? upper : lower) + 4, "start", 11, pale, "none full");
}

/* From the least to the largest a line, between the quartiles a box, the median across it. */
static void draw_box(FILE *svg, const axis *a, double x, const double *quartiles) {
  double y[5], left = x - BOX / 2.0, right = x + BOX / 2.0;
  for (int i = 0; i < 5; i++) y[i] = height_at(a, quartiles[i]);
  svg_line(svg, x, y[0], x, y[4], pale, 1, NULL);
  svg_line(svg, left + 6, y[0], right - 6, y[0], pale, 1, NULL);
  svg_line(svg, left + 6, y[4], right - 6, y[4], pale, 1, NULL);
  svg_rectangle(svg, left, y[3] - 0.5, BOX, y[1] - y[3] + 1, "#c3cad2");
  svg_line(svg, left, y[2], right, y[2], ink, 2, NULL);
}

/* All of a group, from its left edge on. */
static void draw_group(FILE *svg, const plot_comparison *c, const plot_measure *m, const axis *a,
                       int32_t group, double x) {
  for (int32_t i = 0; i < c->n_random; i++)
    svg_circle(svg, x + 7 * (i % 5), height_at(a, m->random[group * c->random_stride + i]), 2,
               "#9aa5b1");
  draw_box(svg, a, x + 48, m->quartiles + group * 5);
  for (int32_t i = 0; i < c->n_choices; i++)
    svg_circle(svg, x + 78 + STEP * i, height_at(a, m->values[group * c->n_choices + i]), 6,
               c->choices[i].color);
  svg_text(svg, x + (78 + STEP * c->n_choices) / 2.0, a->bottom + 20, "middle", 12, ink, "%s",
           c->groups[group]);
}

static void draw_measure(FILE *svg, const plot_comparison *c, const plot_measure *m,
                         const axis *a) {
  double width = (double)(PANELS_RIGHT - PANELS_LEFT) / c->n_groups;
  double used = 78 + STEP * c->n_choices;
  svg_text(svg, PANELS_LEFT - 50, a->top - 10, "start", 13, ink, "%s", m->name);
  draw_ticks(svg, a);
  draw_references(svg, a, m);
  svg_line(svg, PANELS_LEFT, a->bottom, PANELS_RIGHT, a->bottom, ink, 1, NULL);
  for (int32_t g = 0; g < c->n_groups; g++)
    draw_group(svg, c, m, a, g, PANELS_LEFT + width * g + (width - used) / 2);
}

static void draw_legend(FILE *svg, const plot_comparison *c) {
  double x = PANELS_LEFT - 50;
  for (int32_t i = 0; i <= c->n_choices; i++) {
    const char *name = i ? c->choices[i - 1].name : "random, quartiles";
    svg_circle(svg, x + 6, 50, i ? 6 : 3, i ? c->choices[i - 1].color : "#9aa5b1");
    svg_text(svg, x + 16, 54, "start", 12, ink, "%s", name);
    x += 36 + 6.6 * (double)strlen(name); /* a letter is about so wide */
  }
}

int plot_choices(const char *path, const plot_comparison *c) {
  FILE *svg = svg_open(path, WIDTH, PANELS_TOP + PANEL * c->n_measures);
  if (!svg) return -1;
  svg_text(svg, PANELS_LEFT - 50, 28, "start", 16, ink, "%s", c->title);
  draw_legend(svg, c);
  for (int32_t i = 0; i < c->n_measures; i++) {
    axis a = make_axis(c, i);
    draw_measure(svg, c, &c->measures[i], &a);
  }
  return svg_close(svg);
}
