/* batch.c - how fast does one token of each of many sequences follow, in one call? With prefixes of
 * their own, and with one that they share.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

enum { SEQUENCES = 32, THREADS = 64, OWN = 100 }; /* OWN: tokens after a shared prefix */

typedef struct batch {
  bench_caches c;
  lattn_sequence sequences[SEQUENCES];
  bench_tokens tokens; /* one row a sequence; out of one call, and of one by one */
} batch;

static void *no_page(void *user, size_t bytes, size_t alignment) {
  return (void)user, (void)bytes, (void)alignment, NULL;
}
static void no_free(void *user, void *page, size_t bytes) { (void)user, (void)page, (void)bytes; }

/* One cache of all the tokens, tables for the others, and pages for what is everybody's own. */
static size_t arena_bytes(batch *b) {
  const bench_shape *s = &b->c.shape;
  lattn_pool_config tables_only = {0};
  lattn_cache_config own = b->c.config;
  if (!s->shared) return bench_caches_filled_bytes(&b->c, s->sequences);
  tables_only.size = sizeof tables_only;
  tables_only.alloc = no_page;
  tables_only.free = no_free;
  own.capacity = s->keys - s->shared;
  return lattn_pool_bytes(NULL, &b->c.config, 1) + lattn_pool_bytes(NULL, &own, s->sequences) +
         lattn_pool_bytes(&tables_only, &b->c.config, s->sequences);
}

static int fill(batch *b) {
  const bench_shape *s = &b->c.shape;
  lattn_cache *parent = s->shared ? bench_caches_new(&b->c) : NULL;
  if (s->shared && (!parent || !bench_caches_append(&b->c, parent, s->shared))) return 0;
  for (int32_t i = 0; i < s->sequences; i++) {
    lattn_cache **cache = &b->sequences[i].cache;
    b->sequences[i].n_tokens = 1;
    if (!s->shared) *cache = bench_caches_new(&b->c);
    else if (bench_failed("lattn_cache_fork", lattn_cache_fork(cache, parent))) return 0;
    if (!*cache || !bench_caches_append(&b->c, *cache, s->keys - s->shared - 1)) return 0;
  }
  return !parent || !bench_failed("lattn_cache_release", lattn_cache_release(parent));
}

static int batch_make(batch *b, const bench_shape *s) {
  b->c = bench_caches_make(s, 1);
  b->tokens = bench_tokens_make(s, s->sequences);
  size_t together = lattn_batch_scratch(&b->c.config, s->sequences, s->sequences, THREADS);
  size_t alone = lattn_cache_scratch(&b->c.config, 1, THREADS);
  return bench_caches_pool(&b->c, arena_bytes(b), together > alone ? together : alone) && fill(b);
}

static void batch_free(batch *b) {
  bench_tokens_free(&b->tokens);
  bench_caches_free(&b->c);
}

/* Takes the new token of each back. */
static int back(batch *b) {
  for (int32_t i = 0; i < b->c.shape.sequences; i++) {
    lattn_status status = lattn_cache_truncate(b->sequences[i].cache, b->c.shape.keys - 1);
    if (bench_failed("lattn_cache_truncate", status)) return 0;
  }
  return 1;
}

static double together(void *state, int32_t n_threads) {
  batch *b = state;
  lattn_exec exec = bench_caches_exec(&b->c, n_threads);
  double start = bench_seconds();
  lattn_status status =
      lattn_batch_extend(b->c.shape.sequences, b->sequences, NULL, b->tokens.q, b->tokens.kv,
                         b->tokens.kv, b->tokens.out[0], NULL, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_batch_extend", status) || !back(b) ? -1 : seconds;
}

static double one_by_one(void *state, int32_t n_threads) {
  batch *b = state;
  lattn_exec exec = bench_caches_exec(&b->c, n_threads);
  lattn_status status = 0;
  double start = bench_seconds();
  for (int32_t i = 0; i < b->c.shape.sequences && !status; i++) {
    lattn_tensor q = bench_rows(b->tokens.q, i, 1), kv = bench_rows(b->tokens.kv, i, 1);
    lattn_tensor out = bench_rows(b->tokens.out[1], i, 1);
    status = lattn_cache_extend(b->sequences[i].cache, NULL, q, kv, kv, out, NULL, &exec);
  }
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_extend", status) || !back(b) ? -1 : seconds;
}

static int same(void *state) {
  const batch *b = state;
  return bench_tokens_same(&b->tokens);
}

static bench_shape shape_of(int32_t kv_heads, int64_t keys, int64_t shared, double goal) {
  const char *bench = shared ? "batch_shared" : "batch";
  bench_shape s = bench_shape_of(bench, 32, kv_heads, 128, 1, keys, LATTN_F16);
  s.sequences = SEQUENCES;
  s.shared = shared;
  s.goal = goal;
  return s;
}

void bench_batch(const bench_options *options) {
  bench_pair pair = {"one_by_one", together, one_by_one, same, 0, 0, 0, NULL};
  bench_shape shapes[] = {shape_of(32, 2048, 0, 1),
                          shape_of(8, 4096, 0, 1),
                          shape_of(8, 256, 0, 1),
                          shape_of(8, 4096, 0, 1),
                          shape_of(32, 16384 + OWN, 16384, 3),
                          shape_of(8, 16384 + OWN, 16384, 1.1)};
  shapes[3].bench = "batch_split"; /* as DuoAttention's models: half of the heads stream */
  shapes[3].streaming_heads = 4;
  shapes[3].sinks = 4;
  shapes[3].window = 1024;
  shapes[2].quick = shapes[5].quick = 1;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    if (!bench_wanted(options, shapes[i].bench, shapes[i].quick)) continue;
    batch b = {0};
    if (batch_make(&b, &shapes[i])) bench_report_pair(options, &shapes[i], &pair, &b);
    else bench_report_failed(&shapes[i]);
    batch_free(&b);
  }
}
