/* memory.c - what does a cache cost? Bytes held, tables included, against the bytes of its tokens.
 * SPDX-License-Identifier: MIT */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>

#define CHUNK 512 /* divides every mark */

static void check(lattn_status status) {
  if (!status) return;
  fprintf(stderr, "bench: memory: %s\n", lattn_status_text(status));
  exit(1);
}

/* Bytes held by pages and tables: as reported by the cache, or by its pool if that is more. */
static double held(const lattn_cache *cache, const lattn_pool *pool) {
  lattn_cache_stats c = {0};
  lattn_pool_stats p = {0};
  c.size = sizeof c;
  p.size = sizeof p;
  check(lattn_cache_stats_get(cache, &c));
  check(lattn_pool_stats_get(pool, &p));
  double of_cache = (double)(c.full_bytes + c.streaming_bytes + c.table_bytes);
  double of_pool = (double)(p.page_bytes + p.table_bytes);
  return of_cache > of_pool ? of_cache : of_pool;
}

static lattn_cache_config config_of(const bench_shape *s, lattn_head *heads) {
  lattn_cache_config c = {0};
  c.size = sizeof c;
  c.head_size = sizeof *heads;
  c.n_heads = s->heads;
  c.n_kv_heads = s->kv_heads;
  c.key_dim = s->key_dim;
  c.value_dim = s->value_dim;
  c.key_type = c.value_type = s->type;
  c.capacity = s->streaming_heads < s->kv_heads ? s->keys : 0;
  c.heads = heads;
  for (int32_t g = 0; g < s->streaming_heads; g++) {
    heads[g].policy = LATTN_HEAD_STREAMING;
    heads[g].sinks = s->sinks;
    heads[g].window = s->window;
  }
  return c;
}

typedef struct growing {
  lattn_pool *pool;
  lattn_cache *cache;
  bench_buffer arena, data, scratch; /* data: CHUNK tokens, then the query and output of one */
  lattn_exec exec;
} growing;

static growing growing_make(const bench_shape *s, const lattn_cache_config *config) {
  growing c = {0};
  lattn_pool_config pool_config = {0};
  pool_config.size = sizeof pool_config;
  c.arena = bench_buffer_make(lattn_pool_bytes(NULL, config, 1));
  check(lattn_pool_init(&c.pool, c.arena.data, c.arena.bytes, &pool_config));
  check(lattn_cache_init(&c.cache, c.pool, config));
  size_t row = (size_t)s->heads * (size_t)s->key_dim;
  c.data = bench_buffer_make((CHUNK + 2) * row * sizeof(float));
  bench_fill(c.data.data, s->type, CHUNK * row, 1);
  c.scratch = bench_buffer_make(lattn_cache_scratch(config, 1, 1));
  c.exec.size = sizeof c.exec;
  c.exec.scratch = c.scratch.data;
  c.exec.scratch_bytes = c.scratch.bytes;
  return c;
}

/* Appends n tokens and attends with the last one; the most bytes held meanwhile. */
static double step(growing *c, const bench_shape *s, int64_t n) {
  float *q_data = (float *)c->data.data + (size_t)CHUNK * (size_t)s->heads * (size_t)s->key_dim;
  lattn_tensor k = bench_view(c->data.data, s->type, n - 1, s->kv_heads, s->key_dim);
  lattn_tensor last = bench_view(c->data.data, s->type, 1, s->kv_heads, s->key_dim);
  lattn_tensor q = bench_view(q_data, LATTN_F32, 1, s->heads, s->key_dim);
  lattn_tensor out = bench_view(q_data + s->heads * s->key_dim, LATTN_F32, 1, s->heads, s->key_dim);
  check(lattn_cache_append(c->cache, k, k, NULL));
  double most = held(c->cache, c->pool);
  check(lattn_cache_extend(c->cache, NULL, q, last, last, out, NULL, &c->exec));
  return most;
}

/* Grows a cache, a chunk at a time, and reports what it holds at each of n marks. */
static void grow(const bench_options *options, bench_shape shape, const int64_t *marks, int n) {
  if (!bench_wanted(options, shape.bench, shape.quick)) return;
  lattn_head *heads = calloc((size_t)shape.kv_heads, sizeof *heads);
  if (!heads) exit(1);
  shape.keys = marks[n - 1];
  lattn_cache_config config = config_of(&shape, heads);
  growing c = growing_make(&shape, &config);
  double peak = 0;
  for (int64_t tokens = 0, mark = 0; mark < n; tokens += CHUNK) {
    if (tokens == marks[mark]) {
      shape.keys = marks[mark++];
      bench_report_memory(options, &shape, held(c.cache, c.pool), peak, bench_shape_bytes(&shape));
      peak = 0;
    }
    if (mark == n) break;
    double most = step(&c, &shape, CHUNK);
    if (most > peak) peak = most;
  }
  bench_buffer_free(&c.scratch);
  bench_buffer_free(&c.data);
  bench_buffer_free(&c.arena);
  free(heads);
}

void bench_memory(const bench_options *options) {
  static const int64_t full[] = {32768}, endless[] = {4096, 32768, 409600};
  bench_shape s = bench_shape_of("memory_full", 32, 8, 128, 1, 0, LATTN_F16);
  s.quick = 1;
  grow(options, s, full, 1);
  s.type = LATTN_F32;
  grow(options, s, full, 1);
  s.bench = "memory_streaming";
  s.type = LATTN_F16;
  s.streaming_heads = s.kv_heads;
  s.sinks = 4;
  s.window = 1024;
  grow(options, s, endless, 3);
}
