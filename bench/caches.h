/* caches.h - a pool of filled caches, for the questions about them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef BENCH_CACHES_H_INCLUDED
#define BENCH_CACHES_H_INCLUDED

#include "bench.h"

enum { BENCH_CHUNK = 512 }; /* tokens appended at a time: the default of max_append */

/* A pool, the config of its caches, and what their calls need. Set `config` where it should differ,
   then make the pool. */
typedef struct bench_caches {
  bench_shape shape;
  lattn_cache_config config;
  lattn_pool *pool;
  lattn_head *heads;
  bench_buffer arena, scratch;
  bench_buffer chunk; /* keys, and values alike, of BENCH_CHUNK tokens */
  uint64_t seed;      /* of the next chunk */
} bench_caches;

/* The shape's config: capacity `keys`, streaming heads with that much slack. */
bench_caches bench_caches_make(const bench_shape *shape, int64_t slack);
/* A pool in `bytes` of arena, and scratch; 0 = failed. */
int bench_caches_pool(bench_caches *c, size_t bytes, size_t scratch_bytes);
/* Of arena for n caches that are all filled before one attends. */
size_t bench_caches_filled_bytes(bench_caches *c, int32_t n);
void bench_caches_free(bench_caches *c);

/* An empty cache; NULL = failed. */
lattn_cache *bench_caches_new(bench_caches *c);
/* Appends n new tokens, no two alike. */
int bench_caches_append(bench_caches *c, lattn_cache *cache, int64_t n);
/* Appends the same tokens over and over: many soon. */
int bench_caches_grow(bench_caches *c, lattn_cache *cache, int64_t n);
lattn_exec bench_caches_exec(const bench_caches *c, int32_t n_threads);
/* So many of this program's threads, with that scratch. */
lattn_exec bench_exec(const bench_buffer *scratch, int32_t n_threads);

/* Prints what failed; 1 if anything did. Notes too are not what is to be timed. */
int bench_failed(const char *what, lattn_status status);
/* Rows first ... first + n - 1 of a contiguous view. */
lattn_tensor bench_rows(lattn_tensor t, int64_t first, int64_t n);

/* New tokens, a row each, that two ways attend with: keys and values alike. */
typedef struct bench_tokens {
  bench_buffer data, outputs[2];
  lattn_tensor q, kv, out[2];
} bench_tokens;
bench_tokens bench_tokens_make(const bench_shape *shape, int64_t n);
void bench_tokens_free(bench_tokens *t);
int bench_tokens_same(const bench_tokens *t); /* both ways' outputs, bit for bit */

#endif /* BENCH_CACHES_H_INCLUDED */
