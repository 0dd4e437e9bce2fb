/* scores.h - scores of query heads: the files of retrieval scores that Wu et al. ("Retrieval Head
 * Mechanistically Explains Long-Context Factuality") publish, and tables of KV heads from them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef SCORES_H
#define SCORES_H

#include "policy.h"

typedef struct head_scores {
  int32_t n_layers, n_heads, n_samples;
  double *scores; /* [n_layers][n_heads][n_samples] */
} head_scores;

/* Reads {"layer-head": [score of each sample, ...], ...}: JSON, heads in any order, each exactly
   once, all with as many samples, at least one. 0, or -1 with a text in error. */
int head_scores_load(head_scores *scores, const char *path, char error[POLICY_ERROR]);
int head_scores_save(const head_scores *scores, const char *path, char error[POLICY_ERROR]);
void head_scores_free(head_scores *scores);

/* The mean of each head's samples, [n_layers][n_heads]. Here and below: 0, or -1: no memory, or
   heads that cannot be grouped so; the caller frees the table. */
int head_scores_mean(const head_scores *scores, head_table *means);

/* Of each group of query heads, which share a KV head, the largest. */
int head_table_group(const head_table *heads, int32_t group, head_table *kv_heads);

#endif /* SCORES_H */
