/* recorder.c - see recorder.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "recorder.h"

#include <stdlib.h>
#include <string.h>

/* Floats of one token in one layer. */
static int64_t row_floats(const llama_model *m) {
  return (int64_t)(m->n_heads + 2 * m->n_kv_heads) * m->head_dim + m->dim;
}

int recorder_open(recorder *r, const llama_model *model, int64_t capacity) {
  memset(r, 0, sizeof *r);
  r->model = model;
  r->capacity = capacity;
  r->status = llama_rotary(model, &r->rotary, r->turns);
  size_t n = (size_t)model->n_layers * (size_t)capacity;
  r->memory = (float *)malloc(n * (size_t)row_floats(model) * sizeof(float));
  r->lse = (float *)malloc(n * (size_t)model->n_heads * sizeof(float));
  if (r->memory && r->lse) return 0;
  recorder_close(r);
  return -1;
}

void recorder_close(recorder *r) {
  free(r->memory);
  free(r->lse);
  r->memory = r->lse = NULL;
}

llama_block recorder_read(const recorder *r, int32_t layer, int64_t position, int64_t n) {
  const llama_model *m = r->model;
  int64_t row = row_floats(m), token = layer * r->capacity + position;
  int64_t kv = (int64_t)m->n_kv_heads * m->head_dim;
  const float *at = r->memory + token * row;
  lattn_tensor t = {at, LATTN_F32, 0, n, m->n_heads, m->head_dim, row, m->head_dim};
  llama_block b = {layer, position, t, t, t, t, r->lse + token * m->n_heads};
  b.k.data = at + (int64_t)m->n_heads * m->head_dim;
  b.v.data = (const float *)b.k.data + kv;
  b.k.n_heads = b.v.n_heads = m->n_kv_heads;
  b.stream.data = (const float *)b.v.data + kv;
  b.stream.n_heads = 1;
  b.stream.dim = b.stream.stride_head = m->dim;
  return b;
}

static void copy(lattn_tensor to, lattn_tensor from) {
  for (int64_t t = 0; t < from.n_tokens; t++)
    memcpy((float *)(uintptr_t)to.data + t * to.stride_token,
           (const float *)from.data + t * from.stride_token,
           (size_t)(from.n_heads * from.dim) * sizeof(float));
}

void recorder_observe(void *user, const llama_block *block) {
  recorder *r = (recorder *)user;
  int64_t n = block->q.n_tokens, end = block->position + n;
  if (end > r->capacity && !r->status) r->status = LATTN_E_FULL;
  if (r->status) return;
  llama_block own = recorder_read(r, block->layer, block->position, n);
  lattn_tensor stream = block->stream;
  if (!stream.stride_token) stream.stride_token = stream.dim;
  copy(own.q, block->q);
  copy(own.k, block->k);
  copy(own.v, block->v);
  copy(own.stream, stream);
  memcpy((float *)(uintptr_t)own.lse, block->lse, (size_t)(n * r->model->n_heads) * sizeof(float));
  r->status = lattn_rotate(&r->rotary, own.q, block->position, NULL);
  if (!r->status) r->status = lattn_rotate(&r->rotary, own.k, block->position, NULL);
  if (end > r->n_tokens) r->n_tokens = end;
}
