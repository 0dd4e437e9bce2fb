/* state.c - how fast are states of fixed size? Prompts through one, against the machine's
 * multiply-adds; decode, one token a call; and decode of so many sequences that their states lie in
 * memory, against a plain pass over as many bytes. Beside each, ggml's operation for it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "peer.h"
#include "state.h"

#include <math.h>
#include <stdlib.h>

enum { PROMPT = 2048, STEPS = 128 };
/* Both sum 2048 tokens in float32, in other orders: rounding grows as the square root of their
   number, to 3e-6; a mistake is larger than 1e-3. */
#define TOLERANCE 1e-4

typedef struct subject {
  bench_stream stream;
  bench_ours_stream *ours;
  bench_ggml_stream *ggml;
} subject;

static double prompt_ours(void *state, int32_t n_threads) {
  subject *s = state;
  return bench_ours_stream_all(s->ours, n_threads);
}
static double prompt_ggml(void *state, int32_t n_threads) {
  subject *s = state;
  return bench_ggml_stream_run(s->ggml, 1, n_threads);
}
static double steps_ours(void *state, int32_t n_threads) {
  subject *s = state;
  return bench_ours_stream_steps(s->ours, n_threads);
}
static double steps_ggml(void *state, int32_t n_threads) {
  subject *s = state;
  int32_t n = s->stream.sequences == 1 ? STEPS : 1;
  return bench_ggml_stream_run(s->ggml, n, n_threads);
}

/* Relative to the largest: of a token's outputs, of a state. One head's outputs alone may all but
   cancel. */
static double difference(subject *s, int64_t n_tokens) {
  const bench_stream *t = &s->stream;
  const float *a = bench_ours_stream_out(s->ours), *b = bench_ggml_stream_out(s->ggml);
  size_t n = (size_t)t->key_dim * (size_t)t->value_dim;
  float *x = malloc(2 * n * (size_t)t->heads * sizeof *x), *y = x + n * (size_t)t->heads;
  if (!x) return -1;
  double worst = 0;
  int32_t row = t->heads * t->value_dim;
  for (int64_t i = 0; i < n_tokens; i++) {
    double error = bench_row_error(a + i * row, b + i * row, row);
    if (!(error <= worst)) worst = error;
  }
  for (int32_t i = 0; i < t->sequences; i++) {
    if (!bench_ours_stream_state(s->ours, i, x)) worst = -1;
    bench_ggml_stream_state(s->ggml, i, y);
    for (int32_t h = 0; h < t->heads && worst >= 0; h++) {
      double error = bench_row_error(x + (size_t)h * n, y + (size_t)h * n, (int32_t)n);
      if (!(error <= worst)) worst = error;
    }
  }
  free(x);
  return worst;
}

static double prompt_error(void *state) {
  subject *s = state;
  return difference(s, s->stream.n);
}

/* One step more of each, from the same states. */
static double step_error(void *state) {
  subject *s = state;
  const bench_stream *t = &s->stream;
  float *x = malloc((size_t)t->heads * (size_t)t->key_dim * (size_t)t->value_dim * sizeof *x);
  int good = x != NULL;
  for (int32_t i = 0; i < t->sequences && good; i++) {
    good = bench_ours_stream_state(s->ours, i, x);
    bench_ggml_stream_set(s->ggml, i, x);
  }
  free(x);
  good = good && bench_ours_stream_step(s->ours, 1) >= 0;
  good = good && bench_ggml_stream_run(s->ggml, 1, 1) >= 0;
  return good ? difference(s, t->sequences) : -1;
}

typedef struct method {
  int32_t method;
  const char *name, *step_name;
  int32_t heads, qk_heads, key_dim, value_dim;
  double flop, goal; /* a token and element of a state; fraction of the peak */
  double vs_ggml;    /* goal of prompts */
  int32_t quick;
} method;

/* The heads and dims of models that use them: Qwen3-Next and Kimi Linear, RetNet, Mamba-2, RWKV. */
static const method methods[] = {
    {BENCH_DELTA, "state_delta", "state_delta_step", 16, 16, 128, 128, 6, 0.65, 3.5, 1},
    {BENCH_KDA, "state_kda", "state_kda_step", 16, 16, 128, 128, 6, 0, 0, 0},
    {BENCH_GLA, "state_gla", "state_gla_step", 16, 16, 128, 128, 4, 0.55, 3, 1},
    {BENCH_RETNET, "state_retnet", "state_retnet_step", 16, 16, 128, 128, 4, 0.8, 0, 0},
    {BENCH_LINEAR, "state_linear", "state_linear_step", 16, 16, 128, 128, 4, 0.8, 0, 0},
    {BENCH_SSD, "state_mamba2", "state_mamba2_step", 32, 1, 128, 64, 4, 0.8, 0, 0},
    {BENCH_RWKV6, "state_rwkv6", "state_rwkv6_step", 32, 32, 64, 64, 4, 0, 0, 0},
    {BENCH_RWKV7, "state_rwkv7", "state_rwkv7_step", 32, 32, 64, 64, 8, 0, 0, 0}};

static bench_shape shape_of(const char *name, const method *m, int64_t n, double goal) {
  bench_shape s = bench_shape_of(name, m->heads, m->qk_heads, m->key_dim, n, 0, LATTN_F32);
  s.value_dim = m->value_dim;
  s.goal = goal;
  s.quick = m->quick;
  return s;
}

static void report(const bench_options *options, const method *m, const bench_shape *shape,
                   bench_work *work, int64_t tokens, int64_t ggml_tokens) {
  subject s = {0};
  int32_t sequences = shape->sequences ? shape->sequences : 1;
  if (!bench_wanted(options, shape->bench, shape->quick)) return;
  s.stream = bench_stream_make(m->method, m->heads, m->qk_heads, m->key_dim, m->value_dim, tokens,
                               sequences);
  s.ours = bench_ours_stream_make(&s.stream);
  work->other_name = "ggml";
  work->other_missing = bench_ggml_stream_missing(m->method);
  work->tolerance = TOLERANCE;
  if (!work->other_missing) s.ggml = bench_ggml_stream_make(&s.stream, ggml_tokens);
  if (work->limit == BENCH_LIMIT_UPDATE && s.ours)
    work->amount = 2 * bench_ours_stream_matrix_bytes(s.ours);
  if (s.ours && (s.ggml || work->other_missing)) bench_report_work(options, shape, work, &s);
  else bench_report_failed(shape);
  bench_ggml_stream_free(s.ggml);
  bench_ours_stream_free(s.ours);
  bench_stream_free(&s.stream);
}

static void prompt(const bench_options *options, const method *m) {
  bench_shape shape = shape_of(m->name, m, PROMPT, m->goal);
  bench_work work = {.limit = BENCH_LIMIT_FMA,
                     .amount = m->flop * PROMPT * m->heads * m->key_dim * m->value_dim,
                     .ours = prompt_ours,
                     .other = prompt_ggml,
                     .other_goal = m->vs_ggml,
                     .error = prompt_error};
  report(options, m, &shape, &work, PROMPT, PROMPT);
}

static void decode(const bench_options *options, const method *m) {
  bench_shape shape = shape_of(m->step_name, m, 1, 0);
  bench_work work = {.ours = steps_ours, .other = steps_ggml, .other_goal = 2, .error = step_error};
  report(options, m, &shape, &work, STEPS, 1);
}

/* States of 512 MiB. */
static void batch(const bench_options *options) {
  const method *m = &methods[0];
  bench_shape shape = shape_of("state_batch", m, 1, 0.8);
  shape.sequences = 512;
  shape.quick = 0;
  bench_work work = {
      .limit = BENCH_LIMIT_UPDATE, .ours = steps_ours, .other = steps_ggml, .error = step_error};
  report(options, m, &shape, &work, 1, 1);
}

void bench_state(const bench_options *options) {
  enum { METHODS = (int)(sizeof methods / sizeof *methods) };
  for (int i = 0; i < METHODS; i++) prompt(options, &methods[i]);
  for (int i = 0; i < METHODS; i++) decode(options, &methods[i]);
  batch(options);
}
