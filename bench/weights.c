/* weights.c - what do attention weights on demand cost? Top keys and per-key mass of some rows,
 * against the attention of those rows.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <string.h>

enum { TOP = 64, THREADS = 64 };

typedef struct probe {
  bench_caches c;
  lattn_cache *cache;
  bench_buffer queries, output, lse, keys, weights, mass;
  lattn_tensor q, out;
} probe;

static int probe_make(probe *p, const bench_shape *s) {
  size_t rows = (size_t)(s->queries * s->heads), row = (size_t)s->key_dim * sizeof(float);
  p->c = bench_caches_make(s, s->queries);
  p->queries = bench_buffer_make(rows * row);
  p->output = bench_buffer_make(rows * row);
  p->lse = bench_buffer_make(rows * sizeof(float));
  p->keys = bench_buffer_make(rows * TOP * sizeof(int64_t));
  p->weights = bench_buffer_make(rows * TOP * sizeof(float));
  p->mass = bench_buffer_make((size_t)(s->heads * s->keys) * sizeof(double));
  bench_fill(p->queries.data, LATTN_F32, rows * (size_t)s->key_dim, 1);
  p->q = bench_view(p->queries.data, LATTN_F32, s->queries, s->heads, s->key_dim);
  p->out = bench_view(p->output.data, LATTN_F32, s->queries, s->heads, s->value_dim);
  size_t scratch = lattn_cache_scratch(&p->c.config, s->queries, THREADS);
  if (!bench_caches_pool(&p->c, lattn_pool_bytes(NULL, &p->c.config, 1), scratch)) return 0;
  p->cache = bench_caches_new(&p->c);
  return p->cache && bench_caches_append(&p->c, p->cache, s->keys);
}

static void probe_free(probe *p) {
  bench_buffer_free(&p->mass);
  bench_buffer_free(&p->weights);
  bench_buffer_free(&p->keys);
  bench_buffer_free(&p->lse);
  bench_buffer_free(&p->output);
  bench_buffer_free(&p->queries);
  bench_caches_free(&p->c);
}

static double attend(void *state, int32_t n_threads) {
  probe *p = state;
  lattn_exec exec = bench_caches_exec(&p->c, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_cache_attend(p->cache, NULL, p->q, p->out, p->lse.data, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_attend", status) ? -1 : seconds;
}

/* With the lse of the last attend. */
static double ask(probe *p, lattn_weights *w, int32_t n_threads) {
  lattn_exec exec = bench_caches_exec(&p->c, n_threads);
  w->size = sizeof *w;
  w->lse = p->lse.data;
  double start = bench_seconds();
  lattn_status status = lattn_cache_weights(p->cache, NULL, p->q, w, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_weights", status) ? -1 : seconds;
}

static double top(void *state, int32_t n_threads) {
  probe *p = state;
  lattn_weights w = {0};
  w.top_k = TOP;
  w.top_keys = p->keys.data;
  w.top_weights = p->weights.data;
  return ask(p, &w, n_threads);
}

static double mass(void *state, int32_t n_threads) {
  probe *p = state;
  lattn_weights w = {0};
  memset(p->mass.data, 0, p->mass.bytes); /* it is added to */
  w.mass = p->mass.data;
  return ask(p, &w, n_threads);
}

/* The masses of each head's keys sum to the number of rows. */
static int mass_is_whole(void *state) {
  const probe *p = state;
  const bench_shape *s = &p->c.shape;
  const double *sums = p->mass.data;
  for (int32_t h = 0; h < s->heads; h++, sums += s->keys) {
    double total = 0;
    for (int64_t j = 0; j < s->keys; j++) total += sums[j];
    /* half an ulp of lse, which is between 8 and 16, is 5e-7; score and exp add a few of 1e-7 */
    double off = total / (double)s->queries - 1;
    if (!(off < 5e-6 && off > -5e-6)) return 0;
  }
  return 1;
}

void bench_weights(const bench_options *options) {
  bench_pair pairs[] = {{"attend", top, attend, NULL, 0, 0, 0, NULL},
                        {"attend", mass, attend, mass_is_whole, 0, 0, 0, NULL}};
  static const char *const names[] = {"weights_top", "weights_mass"};
  static const int64_t rows[] = {1, 64}; /* a step's; a window of observation, as SnapKV's */
  for (int i = 0; i < 2; i++) {
    bench_shape s = bench_shape_of("weights", 32, 8, 128, rows[i], 32768, LATTN_F16);
    s.quick = i == 0;
    if (!bench_wanted(options, names[0], s.quick) && !bench_wanted(options, names[1], s.quick))
      continue;
    probe p = {0};
    int made = probe_make(&p, &s) && attend(&p, 1) >= 0;
    pairs[0].bytes = pairs[1].bytes = bench_shape_bytes(&s) / 2; /* no values */
    for (int j = 0; j < 2; j++) {
      s.bench = names[j];
      if (!bench_wanted(options, s.bench, s.quick)) continue;
      if (made) bench_report_pair(options, &s, &pairs[j], &p);
      else bench_report_failed(&s);
    }
    probe_free(&p);
  }
}
