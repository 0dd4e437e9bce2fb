/* plot_heads.h - pictures of heads: heat maps of scores, and what choices of full heads are worth.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef PLOT_HEADS_H
#define PLOT_HEADS_H

#include <stdint.h>

/* Scores of heads, layers down, heads across. */
typedef struct plot_scores {
  const char *title, *heads; /* heads: what the columns are, "query head" */
  const double *scores;      /* [n_layers][n_heads] */
  const int64_t *places;     /* NULL, or [n_layers][n_heads]: a position said below the score */
  int32_t n_layers, n_heads;
  double most; /* the score that is darkest; 0 = the largest of all */
} plot_scores;

/* 0, or -1: the file cannot be written. */
int plot_heat(const char *path, const plot_scores *s);

typedef struct plot_choice {
  const char *name, *color;
} plot_choice;

/* One number of every choice, and of random ones; a group is a number of full heads. */
typedef struct plot_measure {
  const char *name;
  int logarithmic;
  const double *values;    /* [n_groups][n_choices] */
  const double *random;    /* [n_groups][random_stride] */
  const double *quartiles; /* [n_groups][5]: of random: least, quartiles, largest */
  double all_full, none_full;
  double low, high; /* of the axis, at least; both 0 = what is drawn */
} plot_measure;

typedef struct plot_comparison {
  const char *title;
  const plot_measure *measures;
  const char *const *groups; /* their names */
  const plot_choice *choices;
  int32_t n_measures, n_groups, n_choices, n_random;
  int32_t random_stride; /* from one group's random ones to the next */
} plot_comparison;

/* A panel for each measure: choices as dots, random ones as small dots and a box with quartiles. */
int plot_choices(const char *path, const plot_comparison *c);

#endif /* PLOT_HEADS_H */
