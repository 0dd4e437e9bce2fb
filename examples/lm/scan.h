/* scan.h - the model's heads profiled: needles, repeated tokens, ordinary text.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef SCAN_H
#define SCAN_H

#include "demo.h"
#include "scores.h"

/* A number a head; of query heads, but gates. [n_layers][heads] */
typedef struct scan {
  head_table gates;     /* of KV heads: what the layer's output loses, squared, when one streams */
  head_table retrieval; /* share of a needle's letters that the head's strongest weight finds */
  head_table lost;      /* mean attention beyond sinks and window, where letters are asked for */
  head_table echo;      /* on tokens that come again: weight on the same token, earlier */
  head_table induction; /* and on what came after it */
  head_table sinks;     /* mean attention that the strongest sink gets */
  int64_t *sink_at;     /* the position of that */
  head_scores samples;  /* retrieval, a sample each */
  int32_t n_needles, n_found; /* prompts tried; those answered, which alone count for retrieval */
  double seconds;
} scan;

/* quick: fewer prompts. 0, or -1 with a text in error; the caller frees. */
int scan_run(scan *s, const demo_input *in, int quick, char error[DEMO_ERROR]);
void scan_free(scan *s);

#endif /* SCAN_H */
