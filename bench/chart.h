/* chart.h - pictures of curves (SVG).
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef BENCH_CHART_H_INCLUDED
#define BENCH_CHART_H_INCLUDED

enum { BENCH_CURVES = 10, BENCH_POINTS = 16 };

typedef struct bench_curve {
  const char *label; /* NULL: there is none */
  int n;
  double x[BENCH_POINTS], y[BENCH_POINTS]; /* x: log2; y: NaN where there is none */
} bench_curve;

typedef struct bench_chart {
  const char *title;
  int least, most; /* log2 of the first and last x */
  double top;      /* of y; 0 = a round number above the largest */
  bench_curve curves[BENCH_CURVES];
} bench_chart;

/* Two beside each other, with a note below. */
void bench_charts_draw(const char *path, int n, const bench_chart *charts, const char *note);

#endif /* BENCH_CHART_H_INCLUDED */
