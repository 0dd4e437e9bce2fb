/* capacity.c - do a million tokens fit? The caches of Llama-3-8B (32 layers of 32/8 heads of 128),
 * half of the KV heads streaming, int4: built, decoded over, and their bytes against those of
 * float16 with all heads full.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   `make capacity` builds all layers, 18 GiB; `make bench` one. Each layer has a pool of its own, so
   that threads fill layers side by side; its pages are then first touched by the thread that fills
   it. */
#include "caches.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LAYERS = 32, THREADS = 64, STEPS = 9 };

typedef struct layer {
  bench_caches c;
  lattn_cache *cache;
} layer;

typedef struct model {
  bench_shape shape;
  layer layers[LAYERS];
  bench_buffer data; /* a step's queries, keys and values alike, and output */
  lattn_tensor q, kv, out;
} model;

static void fill(void *context, int32_t index) {
  model *m = context;
  layer *l = &m->layers[index];
  l->cache = bench_caches_new(&l->c);
  if (l->cache && !bench_caches_grow(&l->c, l->cache, m->shape.keys - 1)) l->cache = NULL;
}

/* What this machine can hold at most, with room for the rest of it. */
static int fits(double bytes) {
  double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
  if (bytes < 0.9 * memory) return 1;
  fprintf(stderr, "bench: capacity: %.1f GiB do not fit into %.1f GiB\n", bytes / 0x1p30,
          memory / 0x1p30);
  return 0;
}

static int pools_make(model *m) {
  size_t bytes = 0, scratch = 0;
  for (int32_t i = 0; i < m->shape.layers; i++) {
    bench_caches *c = &m->layers[i].c;
    *c = bench_caches_make(&m->shape, 1); /* each repetition takes its token back */
    bytes = bench_caches_filled_bytes(c, 1);
    scratch = lattn_cache_scratch(&c->config, 1, THREADS);
    if (!i && !fits((double)bytes * m->shape.layers)) return 0;
    if (!bench_caches_pool(c, bytes, scratch)) return 0;
  }
  return 1;
}

static int model_make(model *m, const bench_options *options) {
  const bench_shape *s = &m->shape;
  size_t q = (size_t)s->heads * (size_t)s->key_dim, kv = (size_t)s->kv_heads * (size_t)s->key_dim;
  m->data = bench_buffer_make((2 * q + kv) * sizeof(float));
  float *data = m->data.data;
  bench_fill(data, LATTN_F32, q + kv, 1);
  m->q = bench_view(data, LATTN_F32, 1, s->heads, s->key_dim);
  m->kv = bench_view(data + q, LATTN_F32, 1, s->kv_heads, s->key_dim);
  m->out = bench_view(data + q + kv, LATTN_F32, 1, s->heads, s->value_dim);
  if (!pools_make(m)) return 0;
  bench_threads_set(options->thread_counts[options->n_thread_counts - 1]);
  bench_parallel_for(NULL, s->layers, fill, m);
  for (int32_t i = 0; i < s->layers; i++)
    if (!m->layers[i].cache) return 0;
  return 1;
}

/* Bytes of all pages and tables. */
static double held(const model *m) {
  double bytes = 0;
  for (int32_t i = 0; i < m->shape.layers; i++) {
    lattn_pool_stats stats = {0};
    stats.size = sizeof stats;
    bench_failed("lattn_pool_stats_get", lattn_pool_stats_get(m->layers[i].c.pool, &stats));
    bytes += (double)stats.page_bytes + (double)stats.table_bytes;
  }
  return bytes;
}

/* Seconds of one token through all layers; negative: failed. */
static double step(model *m, int32_t n_threads) {
  lattn_status status = 0;
  double start = bench_seconds();
  for (int32_t i = 0; i < m->shape.layers && !status; i++) {
    lattn_exec exec = bench_caches_exec(&m->layers[i].c, n_threads);
    status = lattn_cache_extend(m->layers[i].cache, NULL, m->q, m->kv, m->kv, m->out, NULL, &exec);
  }
  double seconds = bench_seconds() - start;
  if (bench_failed("lattn_cache_extend", status)) return -1;
  for (int32_t i = 0; i < m->shape.layers; i++)
    if (bench_failed("lattn_cache_truncate",
                     lattn_cache_truncate(m->layers[i].cache, m->shape.keys - 1)))
      return -1;
  return seconds;
}

static int decode(const bench_options *options, model *m, bench_capacity *c) {
  for (int32_t i = 0; i < options->n_thread_counts; i++) {
    int32_t n = options->thread_counts[i];
    if (step(m, n) < 0) return 0; /* warms up */
    double seconds[STEPS], read[STEPS];
    for (int j = 0; j < STEPS; j++) {
      read[j] = bench_limit_read(n);
      seconds[j] = step(m, n);
      if (seconds[j] < 0) return 0;
    }
    c->seconds = bench_median(seconds, STEPS);
    c->read = bench_median(read, STEPS);
    bench_report_capacity(options, &m->shape, n, c);
  }
  return 1;
}

void bench_capacity_of(const bench_options *options) {
  model *m = calloc(1, sizeof *m);
  if (!m) exit(1);
  m->shape = bench_shape_of("capacity", 32, 8, 128, 1, 1000000, LATTN_I4);
  m->shape.streaming_heads = 4;
  m->shape.sinks = 4;
  m->shape.window = 1024;
  m->shape.layers = options->layers > LAYERS ? LAYERS : options->layers > 0 ? options->layers : 1;
  if (bench_wanted(options, m->shape.bench, 0)) {
    bench_capacity c = {0};
    double start = bench_seconds();
    int good = model_make(m, options);
    c.fill_seconds = bench_seconds() - start;
    if (good) c.bytes = held(m);
    if (!good || !decode(options, m, &c)) bench_report_failed(&m->shape);
    for (int32_t i = 0; i < m->shape.layers; i++) bench_caches_free(&m->layers[i].c);
    bench_buffer_free(&m->data);
  }
  free(m);
}
