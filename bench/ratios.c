/* ratios.c - three promises that are ratios: a split of heads saves the time of what it does not
 * read; a streaming head is as fast after four million tokens as after four thousand; two threads
 * do twice the work.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"
#include "peer.h"

#include <math.h>

enum { SINKS = 4, WINDOW = 1024, DIM = 128 };

/* ---- a head split ---- */

static void *full_prepare(const bench_shape *shape, const bench_input *input) {
  bench_shape full = *shape;
  full.streaming_heads = 0;
  return bench_ours_cache.prepare(&full, input);
}

/* Against all heads full, whose outputs are others: at best, the time falls as the bytes do. */
static void split(const bench_options *options, int32_t full_heads) {
  bench_shape full = bench_shape_of("decode_split", 32, 8, DIM, 1, 131072, LATTN_F16), s = full;
  bench_peer other = bench_ours_cache;
  s.streaming_heads = s.kv_heads - full_heads;
  s.sinks = SINKS;
  s.window = WINDOW;
  s.goal = 0.92;
  other.name = "full";
  other.prepare = full_prepare;
  bench_report_two(options, &s, &bench_ours_cache, &other, (double)INFINITY,
                   bench_shape_bytes(&full) / bench_shape_bytes(&s));
}

/* ---- threads ---- */

static double attention_alone(void *state, int32_t n_threads) {
  return (void)n_threads, bench_ours_attention.run(state, 1);
}
static double cache_alone(void *state, int32_t n_threads) {
  return (void)n_threads, bench_ours_cache.run(state, 1);
}

/* The reading of all threads over that of one. */
static double read_ratio(int32_t n_threads) {
  double most[2] = {0, 0};
  for (int i = 0; i < 6; i++) {
    double rate = bench_limit_read(i & 1 ? n_threads : 1);
    if (rate > most[i & 1]) most[i & 1] = rate;
  }
  return most[1] / most[0];
}

/* Prompts, a decode whose keys lie in a processor's cache, and one whose keys do not: at best, its
   threads gain what they gain in reading. */
static void threads(const bench_options *options) {
  bench_options all = *options;
  if (all.n_thread_counts < 2) return;
  all.thread_counts[0] = all.thread_counts[1];
  all.n_thread_counts = 1;
  bench_shape shapes[] = {bench_shape_of("threads_prefill", 8, 8, DIM, 2048, 2048, LATTN_F32),
                          bench_shape_of("threads_prefill", 8, 8, DIM, 4096, 4096, LATTN_F32),
                          bench_shape_of("threads_decode", 32, 8, DIM, 1, 4096, LATTN_F16),
                          bench_shape_of("threads_decode", 32, 32, DIM, 1, 32768, LATTN_F16)};
  for (int i = 0; i < 4; i++) {
    const bench_peer *ours = i < 2 ? &bench_ours_attention : &bench_ours_cache;
    bench_peer alone = *ours;
    double ideal = 0;
    alone.name = "one_thread";
    alone.run = i < 2 ? attention_alone : cache_alone;
    shapes[i].goal = 1.9 / 2 * all.thread_counts[0];
    shapes[i].quick = i == 0;
    if (!bench_wanted(options, shapes[i].bench, shapes[i].quick)) continue;
    if (i == 3) {
      ideal = read_ratio(all.thread_counts[0]);
      shapes[i].goal = 0.95;
    }
    bench_report_two(&all, &shapes[i], ours, &alone, 0, ideal); /* one answer: the same bits */
  }
}

/* ---- streaming decode, young and old ---- */

enum { YOUNG = 4000, OLD = 4000000 };
enum { ROTARY = 32 };  /* dims that rotate: a quarter, as GPT-NeoX's, to grow old sooner */
enum { STEPS = 2500 }; /* a turn's; four turns and more are ten thousand */

typedef struct ages {
  bench_caches c;
  lattn_cache *young, *old;
  bench_buffer data; /* a step's queries, keys and values alike, and output */
  lattn_tensor q, kv, out;
} ages;

/* The median of some steps: append and attend. */
static double steps(ages *a, lattn_cache *cache, int32_t n_threads) {
  static double seconds[STEPS];
  lattn_exec exec = bench_caches_exec(&a->c, n_threads);
  for (int i = 0; i < STEPS; i++) {
    double start = bench_seconds();
    lattn_status status = lattn_cache_extend(cache, NULL, a->q, a->kv, a->kv, a->out, NULL, &exec);
    seconds[i] = bench_seconds() - start;
    if (bench_failed("lattn_cache_extend", status)) return -1;
  }
  return bench_median(seconds, STEPS);
}

static double old_steps(void *state, int32_t n_threads) {
  ages *a = state;
  return steps(a, a->old, n_threads);
}

static double young_steps(void *state, int32_t n_threads) {
  ages *a = state;
  return steps(a, a->young, n_threads);
}

static lattn_cache *grown(ages *a, int64_t n_tokens) {
  lattn_cache *cache = bench_caches_new(&a->c);
  return cache && bench_caches_grow(&a->c, cache, n_tokens) ? cache : NULL;
}

static int ages_make(ages *a, const bench_shape *s, const lattn_rotary *rotary) {
  size_t q = (size_t)s->heads * DIM, kv = (size_t)s->kv_heads * DIM;
  a->c = bench_caches_make(s, 0);
  a->c.config.capacity = 0; /* no limit */
  a->c.config.rotary = rotary;
  a->data = bench_buffer_make((2 * q + kv) * sizeof(float));
  float *data = a->data.data;
  bench_fill(data, LATTN_F32, q + kv, 1);
  a->q = bench_view(data, LATTN_F32, 1, s->heads, DIM);
  a->kv = bench_view(data + q, LATTN_F32, 1, s->kv_heads, DIM);
  a->out = bench_view(data + q + kv, LATTN_F32, 1, s->heads, DIM);
  if (!bench_caches_pool(&a->c, bench_caches_filled_bytes(&a->c, 2),
                         lattn_cache_scratch(&a->c.config, 1, 64)))
    return 0;
  a->young = grown(a, YOUNG);
  a->old = grown(a, OLD);
  return a->young && a->old;
}

/* One KV head, as to grow old takes a second and more for each. Positions are rotated inside the
   cache. */
static void streaming(const bench_options *options) {
  bench_shape s = bench_shape_of("streaming_age", 4, 1, DIM, 1, OLD, LATTN_F16);
  s.streaming_heads = s.kv_heads;
  s.sinks = SINKS;
  s.window = WINDOW;
  s.goal = 0.98;
  if (!bench_wanted(options, s.bench, 0)) return;
  uint64_t turns[ROTARY / 2];
  lattn_rotary_scaling scaling = {0};
  lattn_rotary rotary = {0};
  scaling.size = sizeof scaling;
  rotary.size = sizeof rotary;
  scaling.n_dims = rotary.n_dims = ROTARY;
  rotary.turns = turns;
  bench_failed("lattn_rotary_turns", lattn_rotary_turns(turns, &scaling));
  bench_pair pair = {"at_4000", old_steps, young_steps, NULL, bench_shape_bytes(&s), 1, 0, NULL};
  ages a = {0};
  if (ages_make(&a, &s, &rotary)) bench_report_pair(options, &s, &pair, &a);
  else bench_report_failed(&s);
  bench_buffer_free(&a.data);
  bench_caches_free(&a.c);
}

void bench_ratios(const bench_options *options) {
  split(options, 4);
  split(options, 2);
  streaming(options);
  threads(options);
}
