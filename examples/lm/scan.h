/* scan.h - a model's heads profiled while it runs: on needles, repeated tokens, ordinary text.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef SCAN_H
#define SCAN_H

#include "demo.h"
#include "scores.h"

enum { SCAN_COLUMNS = 512, SCAN_PAPER = 64 };

/* Numbers of KV heads (the first four) or query heads, [n_layers][heads]. */
typedef struct scan {
  /* On rows of needle prompts after which a letter that is asked for comes: */
  head_table gates;     /* DuoAttention's gates, from attention's outputs alone ... */
  head_table projected; /* ... behind the output projection ... */
  head_table stream;    /* ... and there over what came into the layer, not what attention gave */
  head_table loss;      /* mean square of what streaming takes from the output, relative */
  head_table lost;      /* mean attention beyond sinks and window */
  head_table retrieval; /* the share of the needle's letters that the head copies */
  /* On random tokens that come again and again: */
  head_table echo, induction;
  /* On text: mean attention that the strongest of the first SCAN_COLUMNS positions gets; that
     position; the share of heads in which token 0 gets more than 0.3 in SCAN_PAPER tokens. */
  head_table sinks;
  int64_t *sink_at;
  double sink_share;
  double *q, *q_projected, *q_stream; /* [n_layers][KV heads][KV heads] for lattn_gates_solve */
  head_scores samples;                /* retrieval, each prompt that was answered */
  int32_t n_prompts;                  /* prompts tried */
  int32_t period, n_repeated;         /* of the random tokens */
  double seconds;
} scan;

/* quick: fewer prompts. 0, or -1 with a text in error and nothing to free. */
int scan_run(scan *s, const demo_input *in, int quick, char error[DEMO_ERROR]);
void scan_free(scan *s);

#endif /* SCAN_H */
