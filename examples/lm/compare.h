/* compare.h - choices of full heads against each other, at equal bytes.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef COMPARE_H
#define COMPARE_H

#include "policy.h"
#include "trial.h"

/* Scores of KV heads by which full heads may be chosen. */
typedef struct compare_scores {
  head_table measured; /* heads.tsv: what each head's streaming costs (make heads) */
  head_table loss, retrieval, echo, induction;
  const double *q, *q_projected, *q_stream; /* for choose_greedy */
} compare_scores;

/* Tries every choice at 2, 4 and 8 of 16 KV heads full (an eighth, a quarter, a half), and as many
   random ones, prints a table, and draws a picture. quick: fewer of all. 0, or -1. */
int compare_choices(const demo_input *in, const compare_scores *scores, int quick,
                    const char *picture);

/* The ways in which the other heads may stream, at equal sinks and window, with the heads of the
   largest gates full: a table by window. */
int compare_ways(const demo_input *in, const compare_scores *scores, int quick);

#endif /* COMPARE_H */
