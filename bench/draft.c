/* draft.c - how fast are drafts verified? A chain of drafts in one call, then taken, against as
 * many steps of decode.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <string.h>

enum { MOST = 32, THREADS = 64 };

typedef struct drafts {
  bench_caches c;
  lattn_cache *cache;
  bench_buffer data, outputs[2];
  lattn_tensor q, kv, out[2]; /* one row a draft; out of drafts, and of decode */
} drafts;

static int drafts_make(drafts *d, const bench_shape *s) {
  size_t n = (size_t)s->queries, row = (size_t)s->heads * (size_t)s->key_dim;
  d->c = bench_caches_make(s, s->queries);
  d->c.config.max_drafts = MOST;
  d->data = bench_buffer_make(2 * n * row * sizeof(float)); /* queries; keys and values alike */
  void *kv = (float *)d->data.data + n * row;
  bench_fill(d->data.data, LATTN_F32, n * row, 1);
  bench_fill(kv, s->type, n * (size_t)s->kv_heads * (size_t)s->key_dim, 2);
  d->q = bench_view(d->data.data, LATTN_F32, s->queries, s->heads, s->key_dim);
  d->kv = bench_view(kv, s->type, s->queries, s->kv_heads, s->key_dim);
  for (int i = 0; i < 2; i++) {
    d->outputs[i] = bench_buffer_make(n * row * sizeof(float));
    d->out[i] = bench_view(d->outputs[i].data, LATTN_F32, s->queries, s->heads, s->value_dim);
  }
  size_t scratch = lattn_cache_scratch(&d->c.config, s->queries, THREADS);
  if (!bench_caches_pool(&d->c, lattn_pool_bytes(NULL, &d->c.config, 1), scratch)) return 0;
  d->cache = bench_caches_new(&d->c);
  return d->cache && bench_caches_append(&d->c, d->cache, s->keys - s->queries);
}

static void drafts_free(drafts *d) {
  for (int i = 0; i < 2; i++) bench_buffer_free(&d->outputs[i]);
  bench_buffer_free(&d->data);
  bench_caches_free(&d->c);
}

static int back(drafts *d) {
  const bench_shape *s = &d->c.shape;
  return !bench_failed("lattn_cache_truncate",
                       lattn_cache_truncate(d->cache, s->keys - s->queries));
}

static double verify(void *state, int32_t n_threads) {
  drafts *d = state;
  lattn_exec exec = bench_caches_exec(&d->c, n_threads);
  int32_t path[MOST];
  for (int32_t i = 0; i < MOST; i++) path[i] = i;
  double start = bench_seconds();
  lattn_status status =
      lattn_cache_draft(d->cache, NULL, NULL, d->q, d->kv, d->kv, d->out[0], NULL, &exec);
  if (!status) status = lattn_cache_accept(d->cache, (int32_t)d->c.shape.queries, path);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_draft", status) || !back(d) ? -1 : seconds;
}

static double decode(void *state, int32_t n_threads) {
  drafts *d = state;
  lattn_exec exec = bench_caches_exec(&d->c, n_threads);
  lattn_status status = 0;
  double start = bench_seconds();
  for (int64_t i = 0; i < d->c.shape.queries && !status; i++) {
    lattn_tensor q = bench_rows(d->q, i, 1), kv = bench_rows(d->kv, i, 1);
    lattn_tensor out = bench_rows(d->out[1], i, 1);
    status = lattn_cache_extend(d->cache, NULL, q, kv, kv, out, NULL, &exec);
  }
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_extend", status) || !back(d) ? -1 : seconds;
}

static int same(void *state) {
  const drafts *d = state;
  return !memcmp(d->outputs[0].data, d->outputs[1].data, d->outputs[0].bytes);
}

void bench_draft(const bench_options *options) {
  bench_pair pair = {"decode", verify, decode, same, 0, 0, 0, NULL};
  bench_shape shapes[] = {bench_shape_of("draft", 32, 8, 128, 8, 32768, LATTN_F16),
                          bench_shape_of("draft", 32, 8, 128, 32, 32768, LATTN_F16),
                          bench_shape_of("draft", 32, 32, 128, 8, 16384, LATTN_F16),
                          bench_shape_of("draft", 32, 32, 128, 32, 16384, LATTN_F16),
                          bench_shape_of("draft_split", 32, 8, 128, 8, 32768, LATTN_F16)};
  shapes[4].streaming_heads = 4;
  shapes[4].sinks = 4;
  shapes[4].window = 1024;
  shapes[0].quick = 1;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    if (!bench_wanted(options, shapes[i].bench, shapes[i].quick)) continue;
    drafts d = {0};
    if (drafts_make(&d, &shapes[i])) bench_report_pair(options, &shapes[i], &pair, &d);
    else bench_report_failed(&shapes[i]);
    drafts_free(&d);
  }
}
