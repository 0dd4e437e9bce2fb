/* draft.c - how fast are drafts verified? A chain of drafts in one call, then taken, against as
 * many steps of decode.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

enum { MOST = 32, THREADS = 64 };

typedef struct drafts {
  bench_caches c;
  lattn_cache *cache;
  bench_tokens tokens; /* one row a draft; out of drafts, and of decode */
} drafts;

static int drafts_make(drafts *d, const bench_shape *s) {
  d->c = bench_caches_make(s, s->queries);
  d->c.config.max_drafts = MOST;
  d->tokens = bench_tokens_make(s, s->queries);
  size_t scratch = lattn_cache_scratch(&d->c.config, s->queries, THREADS);
  if (!bench_caches_pool(&d->c, lattn_pool_bytes(NULL, &d->c.config, 1), scratch)) return 0;
  d->cache = bench_caches_new(&d->c);
  return d->cache && bench_caches_append(&d->c, d->cache, s->keys - s->queries);
}

static void drafts_free(drafts *d) {
  bench_tokens_free(&d->tokens);
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
  lattn_status status = lattn_cache_draft(d->cache, NULL, NULL, d->tokens.q, d->tokens.kv,
                                          d->tokens.kv, d->tokens.out[0], NULL, &exec);
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
    lattn_tensor q = bench_rows(d->tokens.q, i, 1), kv = bench_rows(d->tokens.kv, i, 1);
    lattn_tensor out = bench_rows(d->tokens.out[1], i, 1);
    status = lattn_cache_extend(d->cache, NULL, q, kv, kv, out, NULL, &exec);
  }
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_extend", status) || !back(d) ? -1 : seconds;
}

static int same(void *state) {
  const drafts *d = state;
  return bench_tokens_same(&d->tokens);
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
