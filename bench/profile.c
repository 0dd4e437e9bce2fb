/* profile.c - what does it cost to watch the heads? A prefill with the profiler's scores
 * against the same attention without.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <string.h>

enum { THREADS = 64, PERIOD = 2048, ANSWER = 32, NEEDLE = 32 };

typedef struct watch {
  bench_shape shape;
  bench_input input;
  bench_buffer out, lse, scratch, memory, projection, tokens;
  lattn_tensor q, k, v, o;
  lattn_attn options;
  lattn_profile *profile;
  int32_t scores;
} watch;

static int watch_make(watch *w, const bench_shape *s) {
  size_t rows = (size_t)(s->queries * s->heads);
  w->shape = *s;
  w->input = bench_input_make(s, 1);
  w->out = bench_buffer_make(rows * (size_t)s->value_dim * sizeof(float));
  w->lse = bench_buffer_make(rows * sizeof(float));
  w->q = bench_view(w->input.q.data, LATTN_F32, s->queries, s->heads, s->key_dim);
  w->k = bench_view(w->input.k.data, s->type, s->keys, s->kv_heads, s->key_dim);
  w->v = bench_view(w->input.v.data, s->type, s->keys, s->kv_heads, s->value_dim);
  w->o = bench_view(w->out.data, LATTN_F32, s->queries, s->heads, s->value_dim);
  w->options.size = sizeof w->options;
  w->options.mask = LATTN_CAUSAL;
  w->scratch = bench_buffer_make(lattn_attention_scratch(&w->options, w->q, w->k, w->v, THREADS));
  int32_t model = s->heads * s->value_dim;
  lattn_profile_config c = {.size = sizeof c,
                            .scores = LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_ECHO |
                                      LATTN_PROFILE_SINKS | LATTN_PROFILE_GATES |
                                      LATTN_PROFILE_LOST,
                            .n_layers = 1,
                            .n_heads = s->heads,
                            .n_kv_heads = s->kv_heads,
                            .value_dim = s->value_dim,
                            .model_dim = model,
                            .columns = s->keys};
  w->memory = bench_buffer_make(lattn_profile_bytes(&c));
  w->projection = bench_buffer_make((size_t)model * (size_t)model * sizeof(float));
  bench_fill(w->projection.data, LATTN_F32, (size_t)model * (size_t)model, 2);
  w->tokens = bench_buffer_make((size_t)(s->keys + 1) * sizeof(int32_t));
  return !bench_failed("lattn_profile_init",
                       lattn_profile_init(&w->profile, w->memory.data, w->memory.bytes, &c));
}

static void watch_free(watch *w) {
  bench_buffer_free(&w->tokens);
  bench_buffer_free(&w->projection);
  bench_buffer_free(&w->memory);
  bench_buffer_free(&w->scratch);
  bench_buffer_free(&w->lse);
  bench_buffer_free(&w->out);
  bench_input_free(&w->input);
}

static lattn_exec watch_exec(watch *w, int32_t n_threads) {
  lattn_exec exec = {.size = sizeof exec,
                     .n_threads = n_threads,
                     .scratch = w->scratch.data,
                     .scratch_bytes = w->scratch.bytes,
                     .parallel_for = bench_parallel_for};
  return exec;
}

static double plain(void *state, int32_t n_threads) {
  watch *w = state;
  lattn_exec exec = watch_exec(w, n_threads);
  bench_threads_set(n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_attention(&w->options, w->q, w->k, w->v, w->o, w->lse.data, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_attention", status) ? -1 : seconds;
}

static double watched(void *state, int32_t n_threads) {
  watch *w = state;
  lattn_exec exec = watch_exec(w, n_threads);
  lattn_observed o = {.size = sizeof o,
                      .scores = w->scores,
                      .lse = w->lse.data,
                      .tokens = w->tokens.data,
                      .n_tokens = w->shape.keys,
                      .first_answer = w->shape.keys - ANSWER,
                      .needle_from = w->shape.keys / 2,
                      .needle_to = w->shape.keys / 2 + NEEDLE,
                      .period = PERIOD,
                      .first = 1,
                      .projection = w->projection.data};
  double seconds = plain(w, n_threads), start = bench_seconds();
  lattn_status status = lattn_profile_observe(w->profile, &o, &w->options, w->q, w->k, w->v, &exec);
  seconds += bench_seconds() - start;
  return bench_failed("lattn_profile_observe", status) ? -1 : seconds;
}

/* The means of a head's columns, times the rows that see them, sum to the number of rows. */
static int columns_are_whole(void *state) {
  const watch *w = state;
  int64_t n = w->shape.keys;
  bench_buffer means = bench_buffer_make((size_t)(w->shape.heads * n) * sizeof(double));
  const double *mean = means.data;
  int whole = !bench_failed(
      "lattn_profile_report",
      lattn_profile_report(w->profile, LATTN_TABLE_COLUMNS, w->shape.heads * n, means.data));
  for (int32_t h = 0; h < w->shape.heads; h++, mean += n) {
    double total = 0;
    for (int64_t j = 0; j < n; j++) total += mean[j] * (double)(n - j);
    /* half an ulp of lse, which is between 8 and 16, is 5e-7; score and exp add a few of 1e-7 */
    double off = total / (double)n - 1;
    whole &= off < 5e-6 && off > -5e-6;
  }
  bench_buffer_free(&means);
  return whole;
}

void bench_profile(const bench_options *options) {
  static const struct {
    const char *name;
    int32_t scores, whole;
    double goal;
  } parts[] = {{"profile_all", 0, 1, 0.5},
               {"profile_sinks", LATTN_PROFILE_SINKS, 1, 0},
               {"profile_gates", LATTN_PROFILE_GATES | LATTN_PROFILE_LOST, 0, 0},
               {"profile_echo", LATTN_PROFILE_ECHO, 0, 0},
               {"profile_copy", LATTN_PROFILE_RETRIEVAL, 0, 0}};
  static const int32_t kv_heads[] = {8, 8}, heads[] = {8, 32};
  for (int i = 0; i < 2; i++) {
    bench_shape s = bench_shape_of("profile_all", heads[i], kv_heads[i], 128, 8192, 8192,
                                   i ? LATTN_F16 : LATTN_F32);
    s.quick = i == 0;
    int wanted = 0;
    for (int j = 0; j < 5; j++) wanted |= bench_wanted(options, parts[j].name, s.quick && j == 0);
    if (!wanted) continue;
    watch w = {0};
    int made = watch_make(&w, &s) && plain(&w, 1) >= 0;
    for (int j = 0; j < 5; j++) {
      bench_pair pair = {.other_name = "attention", .ours = watched, .other = plain};
      if (parts[j].whole) pair.same = columns_are_whole;
      s.bench = parts[j].name;
      s.goal = parts[j].goal;
      w.scores = parts[j].scores;
      if (!bench_wanted(options, s.bench, s.quick && j == 0)) continue;
      if (made) bench_report_pair(options, &s, &pair, &w);
      else bench_report_failed(&s);
    }
    watch_free(&w);
  }
}
