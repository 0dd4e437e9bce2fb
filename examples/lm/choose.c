/* choose.c - see choose.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "choose.h"

#include <stdlib.h>
#include <string.h>

#include "needle.h"

static void make_full(lattn_head *head) { memset(head, 0, sizeof *head); }

void choose_best(const head_table *scores, int32_t n_full, lattn_head streaming,
                 lattn_head *heads) {
  head_table_split(scores, 1 - (double)n_full / (scores->n_layers * scores->n_kv_heads), streaming,
                   heads);
}

void choose_worst(const head_table *scores, int32_t n_full, lattn_head streaming,
                  lattn_head *heads) {
  int32_t n = scores->n_layers * scores->n_kv_heads;
  choose_best(scores, n - n_full, streaming, heads);
  for (int32_t i = 0; i < n; i++)
    if (heads[i].policy == LATTN_HEAD_FULL) heads[i] = streaming;
    else make_full(&heads[i]);
}

int choose_greedy(const double *q, int32_t n_layers, int32_t n_kv_heads, int32_t n_full,
                  lattn_head streaming, lattn_head *heads) {
  int32_t n = n_layers * n_kv_heads;
  double *gates = (double *)malloc((size_t)n * sizeof *gates);
  lattn_gates options;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.method = LATTN_GATES_GREEDY;
  options.budget = n - n_full;
  int bad = !gates || lattn_gates_solve(&options, n_layers, n_kv_heads, q, gates);
  for (int32_t i = 0; i < n && !bad; i++) {
    heads[i] = streaming;
    if (gates[i] > 0.5) make_full(&heads[i]);
  }
  free(gates);
  return bad ? -1 : 0;
}

void choose_razor(const head_table *echo, const head_table *induction, int32_t n_full,
                  lattn_head streaming, lattn_head *heads) {
  int32_t n = echo->n_layers * echo->n_kv_heads, by_echo = n_full / 15 > 0 ? n_full / 15 : 1;
  for (int32_t i = 0; i < n; i++) heads[i] = streaming;
  for (int32_t k = 0; k < n_full; k++) {
    const double *scores = k < by_echo ? echo->gates : induction->gates;
    int32_t best = -1;
    for (int32_t i = 0; i < n; i++)
      if (heads[i].policy != LATTN_HEAD_FULL && (best < 0 || scores[i] > scores[best])) best = i;
    if (best >= 0) make_full(&heads[best]);
  }
}

void choose_random(int32_t n, int32_t n_full, lattn_head streaming, uint64_t *state,
                   lattn_head *heads) {
  for (int32_t i = 0; i < n; i++) heads[i] = streaming;
  while (n_full) {
    int64_t i = random_below(state, n);
    if (heads[i].policy == LATTN_HEAD_FULL) continue;
    make_full(&heads[i]);
    n_full--;
  }
}
