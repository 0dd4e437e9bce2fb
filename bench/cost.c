/* cost.c - what do checkpoints, rollbacks, forks, truncation and removal cost, in time and bytes?
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   In one row, of one cache:
   append      one token, alone: what go_on and write are to be held against;
   checkpoint  and the bytes of its tables;
   go_on       one token after a checkpoint, and the bytes that the checkpoint then holds alone: the
               newest page of each head was copied;
   rollback    over STEP tokens;
   drop        the checkpoint released;
   fork        and the bytes of its tables;
   write       one token to a fork, and the bytes of its own pages;
   release     the fork released;
   truncate    by STEP tokens;
   remove      STEP tokens in the middle, and the bytes of the pages given back. */
#include "caches.h"

#include <string.h>

enum { STEP = 256, PART = 64 }; /* PART: tokens in the newest page when all begins */
enum { APPEND, CHECKPOINT, GO_ON, ROLLBACK, DROP, FORK, WRITE, RELEASE, TRUNCATE, REMOVE, COSTS };

typedef struct subject {
  bench_caches c;
  lattn_cache *cache;
  int64_t n_tokens;
  bench_buffer token;
  lattn_tensor kv;
  bench_cost costs[COSTS];
  double start, clock; /* when it began; what reading the clock takes */
} subject;

static void begin(subject *s) { s->start = bench_seconds(); }

/* Ends what begin began; 1 = it went well. */
static int took(subject *s, int cost, lattn_status status) {
  double seconds = bench_seconds() - s->start - s->clock;
  bench_cost *c = &s->costs[cost];
  if (c->n < BENCH_COST_TIMES) c->seconds[c->n++] = seconds > 0 ? seconds : 0;
  return !bench_failed(c->name, status);
}

static double clock_seconds(void) {
  double least = 1;
  for (int i = 0; i < 100; i++) {
    double start = bench_seconds(), seconds = bench_seconds() - start;
    if (seconds < least) least = seconds;
  }
  return least;
}

static lattn_pool_stats pool_stats(const subject *s) {
  lattn_pool_stats stats = {0};
  stats.size = sizeof stats;
  bench_failed("lattn_pool_stats_get", lattn_pool_stats_get(s->c.pool, &stats));
  return stats;
}

static int append_one(subject *s, lattn_cache *cache, int cost) {
  begin(s);
  lattn_status status = lattn_cache_append(cache, s->kv, s->kv, NULL);
  return took(s, cost, status);
}

static int checkpoint_round(subject *s) {
  lattn_checkpoint *checkpoint;
  lattn_checkpoint_stats stats = {0};
  stats.size = sizeof stats;
  begin(s);
  lattn_status status = lattn_cache_checkpoint(&checkpoint, s->cache);
  if (!took(s, CHECKPOINT, status) || !append_one(s, s->cache, GO_ON)) return 0;
  if (bench_failed("stats", lattn_checkpoint_stats_get(checkpoint, &stats))) return 0;
  s->costs[CHECKPOINT].bytes = (double)stats.table_bytes;
  s->costs[GO_ON].bytes = (double)stats.own_bytes;
  if (!bench_caches_append(&s->c, s->cache, STEP - 1)) return 0;
  begin(s);
  status = lattn_cache_rollback(s->cache, checkpoint);
  if (!took(s, ROLLBACK, status)) return 0;
  begin(s);
  status = lattn_checkpoint_release(checkpoint);
  return took(s, DROP, status);
}

static int fork_round(subject *s) {
  lattn_cache *fork;
  lattn_pool_stats before = pool_stats(s);
  begin(s);
  lattn_status status = lattn_cache_fork(&fork, s->cache);
  if (!took(s, FORK, status) || !append_one(s, fork, WRITE)) return 0;
  lattn_pool_stats after = pool_stats(s);
  s->costs[FORK].bytes = (double)(after.table_bytes - before.table_bytes);
  s->costs[WRITE].bytes = (double)(after.page_bytes - before.page_bytes);
  begin(s);
  status = lattn_cache_release(fork);
  return took(s, RELEASE, status);
}

static int truncate_round(subject *s) {
  if (!append_one(s, s->cache, APPEND)) return 0;
  if (!bench_caches_append(&s->c, s->cache, STEP - 1)) return 0;
  begin(s);
  lattn_status status = lattn_cache_truncate(s->cache, s->n_tokens);
  return took(s, TRUNCATE, status);
}

/* Of a fork, so that the cache stays as it was; what the fork gives back, the cache still holds. */
static int remove_round(subject *s) {
  lattn_cache *fork;
  lattn_cache_stats before = {0}, after = {0};
  before.size = after.size = sizeof before;
  int64_t from = s->n_tokens / 2;
  if (bench_failed("lattn_cache_fork", lattn_cache_fork(&fork, s->cache))) return 0;
  if (bench_failed("stats", lattn_cache_stats_get(fork, &before))) return 0;
  begin(s);
  lattn_status status = lattn_cache_remove(fork, from, from + STEP);
  if (!took(s, REMOVE, status)) return 0;
  if (bench_failed("stats", lattn_cache_stats_get(fork, &after))) return 0;
  s->costs[REMOVE].bytes = (double)(before.full_bytes + before.streaming_bytes - after.full_bytes -
                                    after.streaming_bytes);
  return !bench_failed("lattn_cache_release", lattn_cache_release(fork));
}

static int subject_make(subject *s, const bench_shape *shape) {
  static const char *const names[] = {"append", "checkpoint", "go_on",   "rollback", "drop",
                                      "fork",   "write",      "release", "truncate", "remove"};
  for (int i = 0; i < COSTS; i++) {
    s->costs[i].name = names[i];
    s->costs[i].bytes = -1;
  }
  s->clock = clock_seconds();
  s->n_tokens = shape->keys - PART;
  s->c = bench_caches_make(shape, STEP);
  s->c.config.capacity = shape->keys + STEP;
  size_t elements = (size_t)shape->kv_heads * (size_t)shape->key_dim;
  s->token = bench_buffer_make(elements * bench_type_bytes(shape->type));
  bench_fill(s->token.data, shape->type, elements, 1);
  s->kv = bench_view(s->token.data, shape->type, 1, shape->kv_heads, shape->key_dim);
  /* room for the fork and a checkpoint, though most of it is never touched */
  if (!bench_caches_pool(&s->c, lattn_pool_bytes(NULL, &s->c.config, 3), 1)) return 0;
  s->cache = bench_caches_new(&s->c);
  return s->cache && bench_caches_append(&s->c, s->cache, s->n_tokens);
}

static void report(const bench_options *options, const bench_shape *shape) {
  if (!bench_wanted(options, shape->bench, shape->quick)) return;
  subject s = {0};
  int good = subject_make(&s, shape);
  for (int i = 0; i < BENCH_COST_TIMES && good; i++)
    good = truncate_round(&s) && checkpoint_round(&s) && fork_round(&s) && remove_round(&s);
  if (good) bench_report_costs(options, shape, COSTS, s.costs);
  else bench_report_failed(shape);
  bench_buffer_free(&s.token);
  bench_caches_free(&s.c);
}

void bench_cost_of_caches(const bench_options *options) {
  static const int64_t tokens[] = {1024, 32768, 131072};
  static const char *const names[] = {"cost_full", "cost_streaming", "cost_split"};
  static const int32_t streaming[] = {0, 8, 4};
  for (int i = 0; i < 3; i++)
    for (int j = 0; j < 3; j++) {
      bench_shape s = bench_shape_of(names[i], 32, 8, 128, 0, tokens[j], LATTN_F16);
      s.streaming_heads = streaming[i];
      if (s.streaming_heads) {
        s.sinks = 4;
        s.window = 1024;
      }
      s.quick = tokens[j] == 32768;
      report(options, &s);
    }
}
