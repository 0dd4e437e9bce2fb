/* recorder.c - see recorder.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "recorder.h"

#include <stdlib.h>
#include <string.h>

/* Floats of one token in one layer. */
static int64_t row_floats(const llama_model *m) {
  return (int64_t)(m->n_heads + 2 * m->n_kv_heads) * m->head_dim;
}

int recorder_open(recorder *r, const llama_model *model, int64_t capacity) {
  memset(r, 0, sizeof *r);
  r->model = model;
  r->capacity = capacity;
  r->status = llama_rotary(model, &r->rotary, r->turns);
  size_t n = (size_t)model->n_layers * (size_t)capacity * (size_t)row_floats(model);
  r->memory = (float *)malloc(n * sizeof(float));
  return r->memory ? 0 : -1;
}

void recorder_close(recorder *r) {
  free(r->memory);
  r->memory = NULL;
}

/* n tokens of a layer from that position on; side by side. */
static void view(const recorder *r, int32_t layer, int64_t position, int64_t n, lattn_tensor *q,
                 lattn_tensor *k, lattn_tensor *v) {
  const llama_model *m = r->model;
  int64_t row = row_floats(m);
  const float *at = r->memory + (layer * r->capacity + position) * row;
  lattn_tensor t = {at, LATTN_F32, 0, n, m->n_heads, m->head_dim, row, m->head_dim};
  *q = *k = t;
  k->data = at + (int64_t)m->n_heads * m->head_dim;
  k->n_heads = m->n_kv_heads;
  *v = *k;
  v->data = at + (int64_t)(m->n_heads + m->n_kv_heads) * m->head_dim;
}

static void copy(lattn_tensor to, lattn_tensor from) {
  for (int64_t t = 0; t < from.n_tokens; t++)
    for (int64_t h = 0; h < from.n_heads; h++)
      memcpy((float *)(uintptr_t)to.data + t * to.stride_token + h * to.stride_head,
             (const float *)from.data + t * from.stride_token + h * from.stride_head,
             (size_t)from.dim * sizeof(float));
}

void recorder_observe(void *user, int32_t layer, int64_t position, lattn_tensor q, lattn_tensor k,
                      lattn_tensor v) {
  recorder *r = (recorder *)user;
  lattn_tensor own_q, own_k, own_v;
  if (position + q.n_tokens > r->capacity && !r->status) r->status = LATTN_E_FULL;
  if (r->status) return;
  view(r, layer, position, q.n_tokens, &own_q, &own_k, &own_v);
  copy(own_q, q);
  copy(own_k, k);
  copy(own_v, v);
  r->status = lattn_rotate(&r->rotary, own_q, position, NULL);
  if (!r->status) r->status = lattn_rotate(&r->rotary, own_k, position, NULL);
  if (position + q.n_tokens > r->n_tokens) r->n_tokens = position + q.n_tokens;
}

void recorder_read(const recorder *r, int32_t layer, int64_t n, lattn_tensor *q, lattn_tensor *k,
                   lattn_tensor *v) {
  view(r, layer, 0, n, q, k, v);
}
