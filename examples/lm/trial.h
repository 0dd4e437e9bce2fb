/* trial.h - what a choice of full heads is worth: needles found, and perplexity.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef TRIAL_H
#define TRIAL_H

#include "demo.h"
#include "needle.h"

/* What each choice goes through, the same for all. */
typedef struct trial_plan {
  needle_grid needles;
  int64_t piece;    /* the text is read in pieces of so many tokens, BOS included, */
  int64_t first;    /* of which those from this one on are judged: streaming heads have lost some by
                    then. For heads that wait for it, the prompt ends there */
  int64_t n_pieces; /* at most so many, and what the text has */
} trial_plan;

typedef struct trial_result {
  double found;   /* the share of needles */
  double letters; /* perplexity of the letters that are asked for */
  double text;    /* perplexity of the text */
  int64_t bytes;  /* of keys and values, at the end of a piece */
} trial_result;

/* Tries `heads` ([n_layers][n_kv_heads], or NULL = all full). 0, or -1: not enough memory, or the
   text is too short. */
int trial_run(const demo_input *in, const trial_plan *plan, const lattn_head *heads,
              trial_result *result);

/* Quartiles of n values, linear between two of them: least, first, median, third, largest. Sorts
   the values. */
void trial_quartiles(double *values, int32_t n, double quartiles[5]);

#endif /* TRIAL_H */
