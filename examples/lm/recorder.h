/* recorder.h - keeps what attention got in a run, by layer, as a profile wants to see it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef RECORDER_H
#define RECORDER_H

#include "llama.h"

typedef struct recorder {
  const llama_model *model;
  int64_t capacity, n_tokens; /* n_tokens: seen by the layer that saw the most */
  float *memory; /* [n_layers][capacity][q, k, v, what came into the layer, side by side] */
  float *lse;    /* [n_layers][capacity][n_heads] */
  lattn_rotary rotary;
  uint64_t turns[LLAMA_MOST_TURNS];
  lattn_status status; /* of what it did while it observed */
} recorder;

/* 0, or -1: not enough memory; nothing is to be freed then. */
int recorder_open(recorder *r, const llama_model *model, int64_t capacity);
void recorder_close(recorder *r);

/* A llama_observer; user is the recorder. Positions that come again replace what was there. */
void recorder_observe(void *user, const llama_block *block);

/* n tokens of a layer, from that position on: as in a block, but queries and keys are rotated. */
llama_block recorder_read(const recorder *r, int32_t layer, int64_t position, int64_t n);

#endif /* RECORDER_H */
