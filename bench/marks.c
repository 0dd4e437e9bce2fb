/* marks.c - what do heads cost whose tokens are chosen at a mark? A prompt and its mark against the
 * prompt of full heads, decode behind the mark against decode of full heads, and bytes.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <stdio.h>

enum { DIM = 128, KV_HEADS = 2, GROUP = 4, PROMPT = 4096, BUDGET = 512, STEPS = 8, THREADS = 64 };

/* The first has the policy, the other full heads. */
typedef struct marks {
  bench_caches c[2];
  lattn_cache *cache[2];
  lattn_checkpoint *at[2]; /* behind the prompt, and the mark */
  bench_tokens tokens;
} marks;

static int marks_make(marks *m, const bench_shape *s, int32_t policy) {
  m->tokens = bench_tokens_make(s, PROMPT);
  for (int i = 0; i < 2; i++) {
    bench_caches *c = &m->c[i];
    *c = bench_caches_make(s, 0);
    c->config.capacity = PROMPT + STEPS;
    for (int g = 0; g < KV_HEADS && i == 0; g++) {
      c->heads[g].policy = policy;
      c->heads[g].window = policy == LATTN_HEAD_SNAP ? 32 : BUDGET / 2;
      c->heads[g].budget = BUDGET;
    }
    if (!bench_caches_pool(c, lattn_pool_bytes(NULL, &c->config, 2),
                           lattn_cache_scratch(&c->config, PROMPT, THREADS)))
      return 0;
    m->cache[i] = bench_caches_new(c);
    if (!m->cache[i]) return 0;
  }
  return 1;
}

static void marks_free(marks *m) {
  for (int i = 0; i < 2; i++) bench_caches_free(&m->c[i]);
  bench_tokens_free(&m->tokens);
}

static int extend(marks *m, int i, int64_t first, int64_t n, const lattn_exec *exec) {
  lattn_tensor kv = bench_rows(m->tokens.kv, first, n);
  return !bench_failed("lattn_cache_extend",
                       lattn_cache_extend(m->cache[i], NULL, bench_rows(m->tokens.q, first, n), kv,
                                          kv, bench_rows(m->tokens.out[i], first, n), NULL, exec));
}

/* The prompt, and its mark. */
static double prompt(marks *m, int i, int32_t n_threads) {
  lattn_exec exec = bench_caches_exec(&m->c[i], n_threads);
  if (bench_failed("lattn_cache_clear", lattn_cache_clear(m->cache[i]))) return -1;
  double start = bench_seconds();
  int right =
      extend(m, i, 0, PROMPT, &exec) &&
      !bench_failed("lattn_cache_mark", lattn_cache_mark(m->cache[i], LATTN_PROMPT_END, &exec));
  return right ? bench_seconds() - start : -1;
}
static double prompt_chosen(void *state, int32_t n_threads) { return prompt(state, 0, n_threads); }
static double prompt_full(void *state, int32_t n_threads) { return prompt(state, 1, n_threads); }

/* Some tokens behind it, one at a time. */
static double decode(marks *m, int i, int32_t n_threads) {
  lattn_exec exec = bench_caches_exec(&m->c[i], n_threads);
  double start;
  if (bench_failed("lattn_cache_rollback", lattn_cache_rollback(m->cache[i], m->at[i]))) return -1;
  start = bench_seconds();
  for (int64_t t = 0; t < STEPS; t++)
    if (!extend(m, i, t, 1, &exec)) return -1;
  return (bench_seconds() - start) / STEPS;
}
static double decode_chosen(void *state, int32_t n_threads) { return decode(state, 0, n_threads); }
static double decode_full(void *state, int32_t n_threads) { return decode(state, 1, n_threads); }

/* Bytes of pages and tables. */
static double held(const marks *m, int i) {
  lattn_cache_stats stats = {0};
  stats.size = sizeof stats;
  bench_failed("lattn_cache_stats_get", lattn_cache_stats_get(m->cache[i], &stats));
  return (double)(stats.full_bytes + stats.streaming_bytes + stats.table_bytes);
}

/* Both behind the prompt, and a checkpoint there. */
static int stop_at_mark(marks *m) {
  for (int i = 0; i < 2; i++)
    if (prompt(m, i, 1) < 0 ||
        bench_failed("lattn_cache_checkpoint", lattn_cache_checkpoint(&m->at[i], m->cache[i])))
      return 0;
  return 1;
}

static void rows_of(const bench_options *options, const char *name, int32_t policy) {
  char names[3][32];
  marks m = {0};
  bench_shape s = bench_shape_of("", KV_HEADS * GROUP, KV_HEADS, DIM, PROMPT, PROMPT, LATTN_F16);
  bench_shape kept = s;
  bench_pair prefill = {"full", prompt_chosen, prompt_full, NULL, 0, 0, 0, NULL};
  kept.queries = 1, kept.keys = BUDGET;
  bench_pair step = {"full", decode_chosen, decode_full, NULL, bench_shape_bytes(&kept), 0,
                     0,      NULL};
  snprintf(names[0], sizeof names[0], "%s_prefill", name);
  snprintf(names[1], sizeof names[1], "%s_decode", name);
  snprintf(names[2], sizeof names[2], "%s_bytes", name);
  if (!bench_wanted(options, names[0], 0) && !bench_wanted(options, names[1], 0) &&
      !bench_wanted(options, names[2], 0))
    return;
  s.bench = names[0];
  int right = marks_make(&m, &s, policy);
  if (right && bench_wanted(options, names[0], 0)) bench_report_pair(options, &s, &prefill, &m);
  s.bench = names[1], s.queries = 1;
  right = right && stop_at_mark(&m);
  if (right && bench_wanted(options, names[1], 0)) bench_report_pair(options, &s, &step, &m);
  s.bench = names[2];
  if (right && bench_wanted(options, names[2], 0))
    bench_report_memory(options, &s, held(&m, 0), held(&m, 1), bench_shape_bytes(&kept));
  if (!right) bench_report_failed(&s);
  marks_free(&m);
}

void bench_marks(const bench_options *options) {
  rows_of(options, "snap", LATTN_HEAD_SNAP);
  rows_of(options, "heavy", LATTN_HEAD_HEAVY);
}
