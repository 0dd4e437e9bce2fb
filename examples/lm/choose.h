/* choose.h - which KV heads are full, by their scores. All others stream.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef CHOOSE_H
#define CHOOSE_H

#include "policy.h"

/* The n_full heads of the largest scores (ties as in head_table_split), and those that would come
   last. */
void choose_best(const head_table *scores, int32_t n_full, lattn_head streaming, lattn_head *heads);
void choose_worst(const head_table *scores, int32_t n_full, lattn_head streaming,
                  lattn_head *heads);

/* DuoAttention's objective, layer by layer: of all ways to add streaming heads one by one, each
   time the one that loses least, from Q ([n_layers][n_kv_heads][n_kv_heads], see
   lattn_gates_solve). 0, or -1. */
int choose_greedy(const double *q, int32_t n_layers, int32_t n_kv_heads, int32_t n_full,
                  lattn_head streaming, lattn_head *heads);

/* RazorAttention's rule (Tang et al. 2024), adapted in share: it takes 14 % of the heads by
   induction and 1 % by echo. Here of the n_full heads one in fifteen, but at least one, is the
   strongest by echo, and the others by induction; of equal scores the first head. */
void choose_razor(const head_table *echo, const head_table *induction, int32_t n_full,
                  lattn_head streaming, lattn_head *heads);

/* n_full of n heads at random; state as in llama_random. */
void choose_random(int32_t n, int32_t n_full, lattn_head streaming, uint64_t *state,
                   lattn_head *heads);

#endif /* CHOOSE_H */
