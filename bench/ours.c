/* ours.c - longattn.h behind the interface of peer.h, three ways.
 * SPDX-License-Identifier: MIT */
#define LONGATTN_IMPLEMENTATION
#include "caches.h"
#include "peer.h"

#include <stdlib.h>

enum { MAX_LAYERS = 64, THREADS = 64 };

typedef struct ours_state {
  bench_shape shape;
  lattn_tensor q, k, v, out;
  bench_buffer output;
  bench_caches c;
  lattn_cache *caches[MAX_LAYERS];
  int32_t n_caches, inexact;
} ours_state;

static const char *ours_missing(void) { return NULL; }

static void ours_release(void *state) {
  ours_state *s = state;
  bench_buffer_free(&s->output);
  bench_caches_free(&s->c);
  free(s);
}

static ours_state *ours_make(const bench_shape *shape, const bench_input *input) {
  ours_state *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  int64_t rows = shape->queries, keys = shape->keys;
  int32_t type = bench_input_type(shape);
  s->shape = *shape;
  s->q = bench_view(input->q.data, LATTN_F32, rows, shape->heads, shape->key_dim);
  s->k = bench_view(input->k.data, type, keys, shape->kv_heads, shape->key_dim);
  s->v = bench_view(input->v.data, type, keys, shape->kv_heads, shape->value_dim);
  size_t n_out = (size_t)(rows * shape->heads) * (size_t)shape->value_dim;
  s->output = bench_buffer_make(n_out * sizeof(float));
  s->out = bench_view(s->output.data, LATTN_F32, rows, shape->heads, shape->value_dim);
  return s;
}

void bench_ours_set_inexact(void *state, int32_t inexact) {
  ours_state *s = state;
  s->inexact = inexact;
}

static const float *ours_row(void *state, int64_t query, int32_t head) {
  const ours_state *s = state;
  const float *out = s->output.data;
  return out + (query * s->shape.heads + head) * s->shape.value_dim;
}

/* ---- lattn_attention on the user's arrays ---- */

static lattn_attn causal(void) {
  lattn_attn options = {0};
  options.size = sizeof options;
  options.mask = LATTN_CAUSAL;
  return options;
}

static void *attention_prepare(const bench_shape *shape, const bench_input *input) {
  lattn_attn options = causal();
  ours_state *s = ours_make(shape, input);
  if (s)
    s->c.scratch = bench_buffer_make(lattn_attention_scratch(&options, s->q, s->k, s->v, THREADS));
  return s;
}

static double attention_run(void *state, int32_t n_threads) {
  ours_state *s = state;
  lattn_attn options = causal();
  options.inexact = s->inexact;
  lattn_exec exec = bench_caches_exec(&s->c, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_attention(&options, s->q, s->k, s->v, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_attention", status) ? -1 : seconds;
}

/* ---- lattn_cache_extend ---- */

/* Caches of `layers` layers in one pool, each holding the first n_tokens tokens. */
static int caches_make(ours_state *s, int32_t layers, int64_t n_tokens) {
  s->c = bench_caches_make(&s->shape, 1); /* each repetition takes its token back */
  size_t scratch = lattn_cache_scratch(&s->c.config, s->shape.queries, THREADS);
  if (!bench_caches_pool(&s->c, bench_caches_filled_bytes(&s->c, layers), scratch)) return 0;
  for (s->n_caches = 0; s->n_caches < layers; s->n_caches++) {
    lattn_cache *cache = s->caches[s->n_caches] = bench_caches_new(&s->c);
    if (!cache) return 0;
    for (int64_t t = 0, n; t < n_tokens; t += n) {
      n = n_tokens - t < BENCH_CHUNK ? n_tokens - t : BENCH_CHUNK;
      lattn_tensor k = bench_rows(s->k, t, n), v = bench_rows(s->v, t, n);
      if (bench_failed("lattn_cache_append", lattn_cache_append(cache, k, v, NULL))) return 0;
    }
  }
  return 1;
}

static void *cache_prepare(const bench_shape *shape, const bench_input *input) {
  ours_state *s = ours_make(shape, input);
  int64_t before = shape->keys - shape->queries;
  if (!s || caches_make(s, shape->layers ? shape->layers : 1, before)) return s;
  return ours_release(s), NULL;
}

/* The newest `queries` tokens through every layer's cache; seconds a layer. */
static double cache_run(void *state, int32_t n_threads) {
  ours_state *s = state;
  int64_t rows = s->shape.queries, before = s->shape.keys - rows;
  lattn_tensor k = bench_rows(s->k, before, rows), v = bench_rows(s->v, before, rows);
  lattn_exec exec = bench_caches_exec(&s->c, n_threads);
  lattn_call call = {0};
  call.size = sizeof call;
  call.inexact = s->inexact;
  lattn_status status = 0;
  double start = bench_seconds();
  for (int32_t i = 0; i < s->n_caches && !status; i++)
    status = lattn_cache_extend(s->caches[i], &call, s->q, k, v, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  if (bench_failed("lattn_cache_extend", status)) return -1;
  for (int32_t i = 0; i < s->n_caches; i++)
    if (bench_failed("lattn_cache_truncate", lattn_cache_truncate(s->caches[i], before))) return -1;
  return seconds / s->n_caches;
}

/* ---- lattn_cache_attend ---- */

static void *attend_prepare(const bench_shape *shape, const bench_input *input) {
  ours_state *s = ours_make(shape, input);
  if (!s || caches_make(s, 1, shape->keys)) return s;
  return ours_release(s), NULL;
}

static double attend_run(void *state, int32_t n_threads) {
  ours_state *s = state;
  lattn_exec exec = bench_caches_exec(&s->c, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_cache_attend(s->caches[0], NULL, s->q, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_attend", status) ? -1 : seconds;
}

static const char *attention_unsupported(const bench_shape *shape) {
  if (bench_shape_is_int(shape)) return "storage of caches only";
  return shape->streaming_heads ? "no streaming heads" : NULL;
}
static const char *cache_unsupported(const bench_shape *shape) {
  return shape->layers > MAX_LAYERS ? "too many layers" : NULL;
}

const bench_peer bench_ours_attention = {
    .name = "attention",
    .missing = ours_missing,
    .unsupported = attention_unsupported,
    .prepare = attention_prepare,
    .run = attention_run,
    .row = ours_row,
    .release = ours_release,
};
const bench_peer bench_ours_cache = {
    .name = "cache",
    .missing = ours_missing,
    .unsupported = cache_unsupported,
    .prepare = cache_prepare,
    .run = cache_run,
    .row = ours_row,
    .release = ours_release,
};
const bench_peer bench_ours_attend = {
    .name = "cache",
    .missing = ours_missing,
    .unsupported = cache_unsupported,
    .prepare = attend_prepare,
    .run = attend_run,
    .row = ours_row,
    .release = ours_release,
};
