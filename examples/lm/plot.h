/* plot.h - the demo's two pictures.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef PLOT_H
#define PLOT_H

#include <stdint.h>

typedef struct plot_curve {
  const char *name, *color;
  const double *losses; /* [n_tokens] nats of each token */
} plot_curve;

/* Perplexity against position, both axes logarithmic, with marks where the window and the trained
   length end. 0, or -1: the file cannot be written. */
int plot_perplexity(const char *path, const plot_curve *curves, int32_t n_curves, int64_t n_tokens,
                    int64_t window, int64_t trained);

typedef struct plot_grid {
  const char *name;
  const double *cells; /* [n_lengths][n_depths] shares in [0, 1] */
} plot_grid;

/* What random splits reach at one length, beside the measured split. */
typedef struct plot_splits {
  double measured;
  const double *random;
  int32_t n_random;
  int64_t length;
} plot_splits;

/* A heat map for each grid, and the splits. */
int plot_needle(const char *path, const plot_grid *grids, int32_t n_grids, const int64_t *lengths,
                int32_t n_lengths, const double *depths, int32_t n_depths, plot_splits splits);

#endif /* PLOT_H */
