/* diffqkv.c - fewer key heads than value heads (DiffQKV), and selective values: decode against as
 * many key heads as value heads, and against all values.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

enum { THREADS = 64, KEY_HEADS = 4 };

typedef struct diffqkv {
  bench_caches c[2];
  lattn_cache *cache[2];
  bench_tokens tokens;
  int32_t top; /* of the first */
} diffqkv;

static lattn_tensor keys_of(const bench_caches *c, lattn_tensor kv) {
  kv.n_heads = c->config.n_kv_heads;
  return kv;
}

static int fill(bench_caches *c, lattn_cache *cache, int64_t n) {
  const bench_shape *s = &c->shape;
  size_t elements = BENCH_CHUNK * (size_t)s->kv_heads * (size_t)s->key_dim;
  for (int64_t left = n, some; left; left -= some) {
    some = left < BENCH_CHUNK ? left : BENCH_CHUNK;
    bench_fill(c->chunk.data, bench_input_type(s), elements, c->seed++);
    lattn_tensor v = bench_view(c->chunk.data, bench_input_type(s), some, s->kv_heads, s->key_dim);
    if (bench_failed("lattn_cache_append", lattn_cache_append(cache, keys_of(c, v), v, NULL)))
      return 0;
  }
  return 1;
}

/* The first has KEY_HEADS key heads, the other as many as value heads; with `top` both have few. */
static int diffqkv_make(diffqkv *d, const bench_shape *s) {
  d->tokens = bench_tokens_make(s, 1);
  for (int i = 0; i < 2; i++) {
    bench_caches *c = &d->c[i];
    *c = bench_caches_make(s, 1);
    c->config.n_value_heads = s->kv_heads;
    if (i == 0 || d->top) c->config.n_kv_heads = KEY_HEADS;
    size_t scratch = lattn_cache_scratch(&c->config, 1, THREADS);
    if (!bench_caches_pool(c, lattn_pool_bytes(NULL, &c->config, 1), scratch)) return 0;
    d->cache[i] = bench_caches_new(c);
    if (!d->cache[i] || !fill(c, d->cache[i], s->keys - 1)) return 0;
  }
  return 1;
}

static double step(diffqkv *d, int i, int32_t top, int32_t n_threads) {
  lattn_exec exec = bench_caches_exec(&d->c[i], n_threads);
  lattn_tensor kv = d->tokens.kv;
  lattn_call call = {0};
  call.size = sizeof call;
  call.top_values = top;
  double start = bench_seconds();
  lattn_status s = lattn_cache_extend(d->cache[i], &call, d->tokens.q, keys_of(&d->c[i], kv), kv,
                                      d->tokens.out[i], NULL, &exec);
  double seconds = bench_seconds() - start;
  if (bench_failed("lattn_cache_extend", s)) return -1;
  s = lattn_cache_truncate(d->cache[i], d->c[i].shape.keys - 1);
  return bench_failed("lattn_cache_truncate", s) ? -1 : seconds;
}

static double first(void *state, int32_t n_threads) {
  diffqkv *d = state;
  return step(d, 0, d->top, n_threads);
}
static double second(void *state, int32_t n_threads) { return step(state, 1, 0, n_threads); }

void bench_diffqkv(const bench_options *options) {
  bench_shape s = bench_shape_of("decode_diffqkv", 32, 16, 128, 1, 32768, LATTN_F16);
  for (int i = 0; i < 2; i++) {
    bench_pair pair = {i == 1 ? "all_values" : "16_key_heads", first, second, NULL, 0, 0, 0, NULL};
    s.bench = i == 1 ? "decode_top100" : "decode_diffqkv";
    s.quick = i == 0;
    if (!bench_wanted(options, s.bench, s.quick)) continue;
    diffqkv d = {0};
    d.top = i == 1 ? 100 : 0;
    if (diffqkv_make(&d, &s)) bench_report_pair(options, &s, &pair, &d);
    else bench_report_failed(&s);
    bench_tokens_free(&d.tokens);
    for (int j = 0; j < 2; j++) bench_caches_free(&d.c[j]);
  }
}
