/* ours.c - longattn.h behind the interface of peer.h, three ways.
 * SPDX-License-Identifier: MIT */
#define LONGATTN_IMPLEMENTATION
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_LAYERS 64
#define CHUNK 512 /* tokens appended at a time: the default of max_append */

typedef struct ours_state {
  bench_shape shape;
  lattn_tensor q, k, v, out;
  bench_buffer output, scratch, arena;
  size_t scratch_bytes;
  lattn_cache_config config;
  lattn_head *heads;
  lattn_cache *caches[MAX_LAYERS];
  int32_t n_caches;
} ours_state;

static const char *ours_missing(void) { return NULL; }

/* Tokens first ... first + n - 1 of a contiguous view. */
static lattn_tensor tokens(lattn_tensor t, int64_t first, int64_t n) {
  size_t offset = (size_t)(first * t.n_heads * t.dim) * bench_type_bytes(t.type);
  t.data = (const char *)t.data + offset;
  t.n_tokens = n;
  return t;
}

/* Prints what failed; 1 if anything did. A cancelled or clipped call is not what is to be
   timed either. */
static int failed(const char *what, lattn_status status) {
  if (status) fprintf(stderr, "bench: %s: %s\n", what, lattn_status_text(status));
  return status != 0;
}

static lattn_exec exec_make(const ours_state *s, int32_t n_threads) {
  lattn_exec exec = {0};
  exec.size = sizeof exec;
  exec.n_threads = n_threads;
  exec.scratch = s->scratch.data;
  exec.scratch_bytes = s->scratch_bytes;
  exec.parallel_for = bench_parallel_for;
  bench_threads_set(n_threads);
  return exec;
}

static void ours_release(void *state) {
  ours_state *s = state;
  bench_buffer_free(&s->output);
  bench_buffer_free(&s->scratch);
  bench_buffer_free(&s->arena);
  free(s->heads);
  free(s);
}

static ours_state *ours_make(const bench_shape *shape, const bench_input *input) {
  ours_state *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  int64_t rows = shape->queries, keys = shape->keys;
  s->shape = *shape;
  s->q = bench_view(input->q.data, LATTN_F32, rows, shape->heads, shape->key_dim);
  s->k = bench_view(input->k.data, shape->type, keys, shape->kv_heads, shape->key_dim);
  s->v = bench_view(input->v.data, shape->type, keys, shape->kv_heads, shape->value_dim);
  size_t n_out = (size_t)(rows * shape->heads) * (size_t)shape->value_dim;
  s->output = bench_buffer_make(n_out * sizeof(float));
  s->out = bench_view(s->output.data, LATTN_F32, rows, shape->heads, shape->value_dim);
  return s;
}

static const float *ours_row(void *state, int64_t query, int32_t head) {
  const ours_state *s = state;
  const float *out = s->output.data;
  return out + (query * s->shape.heads + head) * s->shape.value_dim;
}

static void scratch_make(ours_state *s, size_t bytes) {
  s->scratch_bytes = bytes;
  s->scratch = bench_buffer_make(bytes ? bytes : 1);
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
  if (s) scratch_make(s, lattn_attention_scratch(&options, s->q, s->k, s->v, 64));
  return s;
}

static double attention_run(void *state, int32_t n_threads) {
  ours_state *s = state;
  lattn_attn options = causal();
  lattn_exec exec = exec_make(s, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_attention(&options, s->q, s->k, s->v, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  return failed("lattn_attention", status) ? -1 : seconds;
}

/* ---- lattn_cache_extend ---- */

static int config_make(ours_state *s) {
  const bench_shape *shape = &s->shape;
  lattn_cache_config *c = &s->config;
  c->size = sizeof *c;
  c->head_size = sizeof(lattn_head);
  c->n_heads = shape->heads;
  c->n_kv_heads = shape->kv_heads;
  c->key_dim = shape->key_dim;
  c->value_dim = shape->value_dim;
  c->key_type = c->value_type = shape->type;
  c->capacity = shape->keys;
  s->heads = calloc((size_t)shape->kv_heads, sizeof *s->heads);
  if (!s->heads) return 0;
  for (int32_t g = 0; g < shape->streaming_heads; g++) {
    s->heads[g].policy = LATTN_HEAD_STREAMING;
    s->heads[g].sinks = shape->sinks;
    s->heads[g].window = shape->window;
    s->heads[g].slack = 1; /* each repetition takes its token back */
  }
  c->heads = s->heads;
  return 1;
}

/* Arena for caches that are all filled before one attends: each streaming head may hold a
   chunk more. */
static size_t arena_bytes(ours_state *s, int32_t n_caches) {
  for (int32_t g = 0; g < s->shape.streaming_heads; g++) s->heads[g].slack += CHUNK;
  size_t bytes = lattn_pool_bytes(NULL, &s->config, n_caches);
  for (int32_t g = 0; g < s->shape.streaming_heads; g++) s->heads[g].slack -= CHUNK;
  return bytes;
}

/* Caches of `layers` layers in one pool, each holding the first n_tokens tokens. */
static int caches_make(ours_state *s, int32_t layers, int64_t n_tokens) {
  if (!config_make(s)) return 0;
  size_t bytes = arena_bytes(s, layers);
  lattn_pool *pool;
  lattn_pool_config pool_config = {0};
  pool_config.size = sizeof pool_config;
  s->arena = bench_buffer_make(bytes);
  if (failed("lattn_pool_init", lattn_pool_init(&pool, s->arena.data, bytes, &pool_config)))
    return 0;
  for (s->n_caches = 0; s->n_caches < layers; s->n_caches++) {
    lattn_cache **cache = &s->caches[s->n_caches];
    if (failed("lattn_cache_init", lattn_cache_init(cache, pool, &s->config))) return 0;
    for (int64_t t = 0, n; t < n_tokens; t += n) {
      n = n_tokens - t < CHUNK ? n_tokens - t : CHUNK;
      lattn_tensor k = tokens(s->k, t, n), v = tokens(s->v, t, n);
      if (failed("lattn_cache_append", lattn_cache_append(*cache, k, v, NULL))) return 0;
    }
  }
  scratch_make(s, lattn_cache_scratch(&s->config, s->shape.queries, 64));
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
  lattn_tensor k = tokens(s->k, before, rows), v = tokens(s->v, before, rows);
  lattn_exec exec = exec_make(s, n_threads);
  lattn_status status = 0;
  double start = bench_seconds();
  for (int32_t i = 0; i < s->n_caches && !status; i++)
    status = lattn_cache_extend(s->caches[i], NULL, s->q, k, v, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  if (failed("lattn_cache_extend", status)) return -1;
  for (int32_t i = 0; i < s->n_caches; i++)
    if (failed("lattn_cache_truncate", lattn_cache_truncate(s->caches[i], before))) return -1;
  return seconds / s->n_caches;
}

static const char *attention_unsupported(const bench_shape *shape) {
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
