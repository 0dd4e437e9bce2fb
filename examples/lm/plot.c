/* plot.c - see plot.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "plot.h"

#include <math.h>
#include <stdio.h>

#include "svg.h"

static const char ink[] = "#222222", pale[] = "#666666", rule[] = "#dddddd";

/* ---- perplexity ---- */

enum { WIDTH = 900, HEIGHT = 480, MOST_BINS = 128, MOST_CURVES = 8, BINS_PER_OCTAVE = 4 };

/* The frame, and what its edges mean. */
typedef struct frame {
  double left, right, top, bottom;
  double low_x, high_x, low_y, high_y; /* both logarithmic */
} frame;

static double at_x(const frame *f, double x) {
  return f->left + (f->right - f->left) * log(x / f->low_x) / log(f->high_x / f->low_x);
}

static double at_y(const frame *f, double y) {
  return f->bottom - (f->bottom - f->top) * log(y / f->low_y) / log(f->high_y / f->low_y);
}

/* Perplexity over bins of equal ratio from first on; their number. */
static int32_t bin(const double *losses, int64_t n, int64_t first, double *x, double *y) {
  int32_t n_bins = 0;
  int64_t begin = first;
  while (begin < n && n_bins < MOST_BINS) {
    double edge = (double)first * pow(2, (double)(n_bins + 1) / BINS_PER_OCTAVE), sum = 0;
    int64_t end = (int64_t)(edge + 0.5);
    if (end > n) end = n;
    for (int64_t i = begin; i < end; i++) sum += losses[i];
    x[n_bins] = sqrt((double)begin * (double)end);
    y[n_bins++] = exp(sum / (double)(end - begin));
    begin = end;
  }
  return n_bins;
}

static void draw_axes(FILE *svg, const frame *f) {
  static const double ticks[] = {1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000};
  for (size_t i = 0; i < sizeof ticks / sizeof *ticks; i++) {
    if (ticks[i] < f->low_y || ticks[i] > f->high_y) continue;
    double y = at_y(f, ticks[i]);
    svg_line(svg, f->left, y, f->right, y, rule, 1, NULL);
    svg_text(svg, f->left - 8, y + 4, "end", 12, ink, "%g", ticks[i]);
  }
  for (double x = 1; x <= f->high_x; x *= 2) {
    if (x < f->low_x) continue;
    svg_line(svg, at_x(f, x), f->bottom, at_x(f, x), f->bottom + 5, ink, 1, NULL);
    svg_text(svg, at_x(f, x), f->bottom + 20, "middle", 12, ink, "%g", x);
  }
  svg_line(svg, f->left, f->bottom, f->right, f->bottom, ink, 1, NULL);
  svg_text(svg, (f->left + f->right) / 2, f->bottom + 42, "middle", 13, ink,
           "position in the text (bytes = tokens)");
  svg_text_turned(svg, f->left - 48, (f->top + f->bottom) / 2, 13, ink,
                  "perplexity a byte (lower is better)");
}

static void draw_mark(FILE *svg, const frame *f, double x, const char *name) {
  svg_line(svg, at_x(f, x), f->top, at_x(f, x), f->bottom, pale, 1, "4 4");
  svg_text(svg, at_x(f, x), f->top - 6, "middle", 12, pale, "%s: %g", name, x);
}

/* Names at the ends of the lines, pushed apart where they would overlap. */
static void draw_names(FILE *svg, const frame *f, const plot_curve *curves, int32_t n,
                       const double *ends) {
  int32_t order[MOST_CURVES];
  double at[MOST_CURVES], y = -1e9;
  for (int32_t i = 0; i < n; i++) {
    int32_t j = i;
    for (; j && ends[order[j - 1]] > ends[i]; j--) order[j] = order[j - 1];
    order[j] = i;
  }
  for (int32_t i = 0; i < n; i++) at[i] = y = fmax(ends[order[i]], y + 17);
  double over = y - f->bottom;
  for (int32_t i = 0; i < n; i++)
    svg_text(svg, f->right + 10, at[i] + 4 - (over > 0 ? over : 0), "start", 13,
             curves[order[i]].color, "%s", curves[order[i]].name);
}

int plot_perplexity(const char *path, const plot_curve *curves, int32_t n_curves, int64_t n_tokens,
                    int64_t window, int64_t trained) {
  frame f = {76, 720, 62, HEIGHT - 62, 32, (double)n_tokens, 2, 4};
  double x[MOST_BINS], y[MOST_CURVES][MOST_BINS], ends[MOST_CURVES];
  int32_t n_bins = 0;
  FILE *svg = n_curves <= MOST_CURVES ? svg_open(path, WIDTH, HEIGHT) : NULL;
  if (!svg) return -1;
  for (int32_t c = 0; c < n_curves; c++) {
    n_bins = bin(curves[c].losses, n_tokens, (int64_t)f.low_x, x, y[c]);
    for (int32_t i = 0; i < n_bins; i++) f.high_y = fmax(f.high_y, y[c][i] * 1.1);
  }
  svg_text(svg, f.left - 48, 26, "start", 17, ink,
           "Perplexity as the text outgrows the window and the trained length");
  draw_axes(svg, &f);
  draw_mark(svg, &f, (double)window, "window");
  draw_mark(svg, &f, (double)trained, "trained length");
  for (int32_t c = 0; c < n_curves; c++) {
    double px[MOST_BINS], py[MOST_BINS];
    for (int32_t i = 0; i < n_bins; i++) {
      px[i] = at_x(&f, x[i]);
      py[i] = at_y(&f, y[c][i]);
    }
    /* ever thinner, so that all stay visible where they are equal */
    svg_path(svg, px, py, n_bins, curves[c].color, 5.2 - 0.8 * c);
    ends[c] = py[n_bins - 1];
  }
  draw_names(svg, &f, curves, n_curves, ends);
  return svg_close(svg);
}

/* ---- needle ---- */

enum { CELL_WIDTH = 40, CELL_HEIGHT = 34, GAP = 24, GRID_TOP = 92, GRID_LEFT = 78 };

static void draw_grid(FILE *svg, const plot_grid *grid, double left, int32_t n_lengths,
                      const double *depths, int32_t n_depths) {
  double sum = 0, middle = left + n_depths * CELL_WIDTH / 2.0;
  double bottom = GRID_TOP + n_lengths * CELL_HEIGHT;
  char color[8];
  for (int32_t l = 0; l < n_lengths; l++)
    for (int32_t d = 0; d < n_depths; d++) {
      double share = grid->cells[l * n_depths + d];
      double x = left + d * CELL_WIDTH, y = GRID_TOP + l * CELL_HEIGHT;
      sum += share;
      svg_rectangle(svg, x + 1, y + 1, CELL_WIDTH - 2, CELL_HEIGHT - 2, svg_shade(share, color));
      svg_text(svg, x + CELL_WIDTH / 2.0, y + CELL_HEIGHT / 2.0 + 4, "middle", 12,
               share > 0.6 ? "#ffffff" : ink, "%.2f", share);
    }
  svg_text(svg, middle, GRID_TOP - 28, "middle", 14, ink, "%s", grid->name);
  svg_text(svg, middle, GRID_TOP - 10, "middle", 12, pale, "mean %.2f",
           sum / (n_lengths * n_depths));
  for (int32_t d = 0; d < n_depths; d++)
    svg_text(svg, left + (d + 0.5) * CELL_WIDTH, bottom + 16, "middle", 11, ink, "%.0f %%",
             100 * depths[d]);
}

/* The shares of the random splits as dots, equal ones in a pile, and the measured one as a large
   dot. */
static void draw_splits(FILE *svg, plot_splits s, double left, double right, double y) {
  double mean = 0, best = 0, width = right - left;
  svg_text(svg, left, y - 100, "start", 14, ink,
           "Which heads stay full matters: measured split against %d random splits of equal bytes, "
           "length %lld",
           (int)s.n_random, (long long)s.length);
  for (int i = 0; i <= 10; i += 2) {
    double x = left + width * i / 10;
    svg_line(svg, x, y - 84, x, y, rule, 1, NULL);
    svg_text(svg, x, y + 17, "middle", 12, ink, "%.1f", i / 10.0);
  }
  svg_line(svg, left, y, right, y, ink, 1, NULL);
  svg_text(svg, (left + right) / 2, y + 38, "middle", 13, ink, "share of needles found");
  for (int32_t i = 0; i < s.n_random; i++) {
    int32_t below = 0;
    for (int32_t j = 0; j < i; j++) below += fabs(s.random[j] - s.random[i]) < 0.011;
    svg_circle(svg, left + width * s.random[i], y - 5 - 5 * (below % 16), 2.8, "#9aa5b1");
    mean += s.random[i] / s.n_random;
    best = fmax(best, s.random[i]);
  }
  svg_circle(svg, left + width * s.measured, y - 60, 7, "#7570b3");
  svg_text(svg, right + 24, y - 56, "start", 13, "#7570b3", "measured: %.2f", s.measured);
  svg_text(svg, right + 24, y - 6, "start", 13, pale, "random: mean %.2f, best %.2f", mean, best);
}

static void draw_scale(FILE *svg, double left, double top, double height) {
  char color[8];
  for (int i = 0; i < 50; i++)
    svg_rectangle(svg, left, top + height * (49 - i) / 50, 14, height / 50 + 0.5,
                  svg_shade(i / 49.0, color));
  for (int i = 0; i <= 2; i++)
    svg_text(svg, left + 20, top + height * (2 - i) / 2 + 4, "start", 12, ink, "%.1f", i / 2.0);
}

int plot_needle(const char *path, const plot_grid *grids, int32_t n_grids, const int64_t *lengths,
                int32_t n_lengths, const double *depths, int32_t n_depths, plot_splits splits) {
  double grid_width = n_depths * CELL_WIDTH, bottom = GRID_TOP + n_lengths * CELL_HEIGHT;
  double right = GRID_LEFT + n_grids * (grid_width + GAP);
  FILE *svg = svg_open(path, (int)right + 70, (int)bottom + 232);
  if (!svg) return -1;
  svg_text(svg, 24, 28, "start", 17, ink,
           "Needle in a haystack: share of pass phrases said again, by length and depth");
  for (int32_t g = 0; g < n_grids; g++)
    draw_grid(svg, &grids[g], GRID_LEFT + g * (grid_width + GAP), n_lengths, depths, n_depths);
  for (int32_t l = 0; l < n_lengths; l++)
    svg_text(svg, GRID_LEFT - 8, GRID_TOP + (l + 0.5) * CELL_HEIGHT + 4, "end", 12, ink, "%lld",
             (long long)lengths[l]);
  svg_text_turned(svg, 30, GRID_TOP + n_lengths * CELL_HEIGHT / 2.0, 13, ink, "length (tokens)");
  svg_text(svg, (GRID_LEFT + right - GAP) / 2, bottom + 38, "middle", 13, ink,
           "depth of the needle (0 %% = at the beginning, 100 %% = just before the question)");
  draw_scale(svg, right - GAP + 16, GRID_TOP, n_lengths * CELL_HEIGHT);
  draw_splits(svg, splits, GRID_LEFT, right - GAP - grid_width - 40, bottom + 176);
  return svg_close(svg);
}
