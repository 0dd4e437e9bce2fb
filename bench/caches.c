/* caches.c - a pool of filled caches, for the questions about them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int bench_failed(const char *what, lattn_status status) {
  if (status) fprintf(stderr, "bench: %s: %s\n", what, lattn_status_text(status));
  return status != 0;
}

lattn_tensor bench_rows(lattn_tensor t, int64_t first, int64_t n) {
  size_t offset = (size_t)(first * t.n_heads * t.dim) * bench_type_bytes(t.type);
  t.data = (const char *)t.data + offset;
  t.n_tokens = n;
  return t;
}

bench_caches bench_caches_make(const bench_shape *shape, int64_t slack) {
  bench_caches c = {0};
  c.shape = *shape;
  c.heads = calloc((size_t)shape->kv_heads, sizeof *c.heads);
  if (!c.heads) exit(1);
  for (int32_t g = 0; g < shape->streaming_heads; g++) {
    c.heads[g].policy = LATTN_HEAD_STREAMING;
    c.heads[g].sinks = shape->sinks;
    c.heads[g].window = shape->window;
    c.heads[g].slack = slack;
  }
  c.config.size = sizeof c.config;
  c.config.head_size = sizeof *c.heads;
  c.config.n_heads = shape->heads;
  c.config.n_kv_heads = shape->kv_heads;
  c.config.key_dim = shape->key_dim;
  c.config.value_dim = shape->value_dim;
  c.config.key_type = shape->type;
  c.config.value_type = bench_value_type(shape);
  c.config.capacity = shape->keys;
  c.config.heads = c.heads;
  size_t elements = BENCH_CHUNK * (size_t)shape->kv_heads * (size_t)shape->key_dim;
  c.chunk = bench_buffer_make(elements * bench_type_bytes(bench_input_type(shape)));
  return c;
}

int bench_caches_pool(bench_caches *c, size_t bytes, size_t scratch_bytes) {
  lattn_pool_config config = {0};
  config.size = sizeof config;
  c->arena = bench_buffer_make(bytes ? bytes : 1);
  c->scratch = bench_buffer_make(scratch_bytes ? scratch_bytes : 1);
  return !bench_failed("lattn_pool_init", lattn_pool_init(&c->pool, c->arena.data, bytes, &config));
}

/* Each streaming head may hold a chunk more. */
size_t bench_caches_filled_bytes(bench_caches *c, int32_t n) {
  for (int32_t g = 0; g < c->shape.streaming_heads; g++) c->heads[g].slack += BENCH_CHUNK;
  size_t bytes = lattn_pool_bytes(NULL, &c->config, n);
  for (int32_t g = 0; g < c->shape.streaming_heads; g++) c->heads[g].slack -= BENCH_CHUNK;
  return bytes;
}

void bench_caches_free(bench_caches *c) {
  bench_buffer_free(&c->chunk);
  bench_buffer_free(&c->scratch);
  bench_buffer_free(&c->arena);
  free(c->heads);
}

lattn_cache *bench_caches_new(bench_caches *c) {
  lattn_cache *cache = NULL;
  return bench_failed("lattn_cache_init", lattn_cache_init(&cache, c->pool, &c->config)) ? NULL
                                                                                         : cache;
}

int bench_caches_append(bench_caches *c, lattn_cache *cache, int64_t n) {
  const bench_shape *s = &c->shape;
  int32_t type = bench_input_type(s);
  for (int64_t left = n, some; left; left -= some) {
    some = left < BENCH_CHUNK ? left : BENCH_CHUNK;
    size_t elements = (size_t)some * (size_t)s->kv_heads * (size_t)s->key_dim;
    bench_fill(c->chunk.data, type, elements, c->seed++);
    lattn_tensor k = bench_view(c->chunk.data, type, some, s->kv_heads, s->key_dim);
    if (bench_failed("lattn_cache_append", lattn_cache_append(cache, k, k, NULL))) return 0;
  }
  return 1;
}

int bench_caches_grow(bench_caches *c, lattn_cache *cache, int64_t n) {
  const bench_shape *s = &c->shape;
  if (!bench_caches_append(c, cache, n < BENCH_CHUNK ? n : BENCH_CHUNK)) return 0;
  for (int64_t left = n - BENCH_CHUNK, some; left > 0; left -= some) {
    some = left < BENCH_CHUNK ? left : BENCH_CHUNK;
    lattn_tensor k = bench_view(c->chunk.data, bench_input_type(s), some, s->kv_heads, s->key_dim);
    if (bench_failed("lattn_cache_append", lattn_cache_append(cache, k, k, NULL))) return 0;
  }
  return 1;
}

lattn_exec bench_exec(const bench_buffer *scratch, int32_t n_threads) {
  lattn_exec exec = {0};
  exec.size = sizeof exec;
  exec.n_threads = n_threads;
  exec.scratch = scratch->data;
  exec.scratch_bytes = scratch->bytes;
  exec.parallel_for = bench_parallel_for;
  bench_threads_set(n_threads);
  return exec;
}

lattn_exec bench_caches_exec(const bench_caches *c, int32_t n_threads) {
  return bench_exec(&c->scratch, n_threads);
}

bench_tokens bench_tokens_make(const bench_shape *shape, int64_t n) {
  bench_tokens t;
  size_t row = (size_t)shape->heads * (size_t)shape->key_dim;
  t.data = bench_buffer_make(2 * (size_t)n * row * sizeof(float));
  void *kv = (float *)t.data.data + (size_t)n * row;
  bench_fill(t.data.data, LATTN_F32, (size_t)n * row, 1);
  bench_fill(kv, shape->type, (size_t)n * (size_t)shape->kv_heads * (size_t)shape->key_dim, 2);
  t.q = bench_view(t.data.data, LATTN_F32, n, shape->heads, shape->key_dim);
  t.kv = bench_view(kv, shape->type, n, shape->kv_heads, shape->key_dim);
  for (int i = 0; i < 2; i++) {
    t.outputs[i] = bench_buffer_make((size_t)n * row * sizeof(float));
    t.out[i] = bench_view(t.outputs[i].data, LATTN_F32, n, shape->heads, shape->value_dim);
  }
  return t;
}

void bench_tokens_free(bench_tokens *t) {
  for (int i = 0; i < 2; i++) bench_buffer_free(&t->outputs[i]);
  bench_buffer_free(&t->data);
}

int bench_tokens_same(const bench_tokens *t) {
  return !memcmp(t->outputs[0].data, t->outputs[1].data, t->outputs[0].bytes);
}
