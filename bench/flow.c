/* flow.c - does the time of a token stay what it is? Flow attention and linear attention from 1k to
 * 1M tokens, against exact attention as far as that goes; and what other kinds of state take.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <stdlib.h>

enum { HEADS = 8, DIM = 64, THREADS = 64 };
enum { MOST_ROWS = 16384 }; /* tokens in a call; longer streams have them again and again */
/* While a stream grows to OLD tokens, the first YOUNG of another are timed after each EVERY
   calls. */
enum { YOUNG = 4096, OLD = 1 << 20, EVERY = 4 };

/* One state, and the tokens that it is fed with. */
typedef struct stream {
  lattn_state_config config;
  int64_t n, rows; /* tokens in all, and a call */
  lattn_state *state, *young;
  double young_seconds; /* of as many tokens as n */
  bench_buffer data, memory, scratch, attention_scratch;
  lattn_tensor q, k, v, out, rate, momentum, forget;
  lattn_state_call call;
} stream;

static float *put(lattn_tensor *t, float *at, int64_t n, int64_t heads, int64_t dim) {
  *t = bench_view(at, LATTN_F32, n, heads, dim);
  return at + n * heads * dim;
}

static void gate(lattn_tensor *t, float *at, float high) {
  for (int64_t i = 0; i < t->n_tokens * t->n_heads; i++) at[i] = high * (at[i] + 2) / 4;
}

static void tokens_make(stream *s) {
  const lattn_state_config *c = &s->config;
  int64_t dims = 2 * (c->key_dim + c->value_dim) + 3, rows = s->rows;
  size_t floats = (size_t)(rows * c->n_heads * dims);
  s->data = bench_buffer_make(floats * sizeof(float));
  bench_fill(s->data.data, LATTN_F32, floats, 1);
  float *at = put(&s->q, s->data.data, rows, c->n_heads, c->key_dim);
  at = put(&s->k, at, rows, c->n_heads, c->key_dim);
  at = put(&s->v, at, rows, c->n_heads, c->value_dim);
  at = put(&s->out, at, rows, c->n_heads, c->value_dim);
  s->call.size = sizeof s->call;
  if (c->kind != LATTN_STATE_TITANS) return;
  float *rate = at, *momentum = put(&s->rate, rate, rows, c->n_heads, 1);
  float *forget = put(&s->momentum, momentum, rows, c->n_heads, 1);
  put(&s->forget, forget, rows, c->n_heads, 1);
  gate(&s->rate, rate, 0.01f); /* keys are not of unit length */
  gate(&s->momentum, momentum, 0.9f);
  gate(&s->forget, forget, 0.1f);
  s->call.rate = &s->rate;
  s->call.momentum = &s->momentum;
  s->call.forget = &s->forget;
}

/* n_states of one config: the first is `state`. */
static int stream_make(stream *s, int32_t preset, int32_t n_states, int64_t n) {
  lattn_state_config *c = &s->config;
  lattn_state **const states[] = {&s->state, &s->young};
  c->size = sizeof *c;
  s->n = n;
  s->rows = n < MOST_ROWS ? n : MOST_ROWS;
  if (bench_failed("lattn_state_preset", lattn_state_preset(c, preset))) return 0;
  tokens_make(s);
  if (c->kind == LATTN_STATE_AAREN) c->query = s->q.data;
  size_t bytes = lattn_state_bytes(c), scratch = lattn_state_scratch(c, s->rows, THREADS);
  s->memory = bench_buffer_make((size_t)n_states * bytes + 1);
  s->scratch = bench_buffer_make(scratch + 1);
  for (int32_t i = 0; i < n_states; i++) {
    void *memory = (char *)s->memory.data + (size_t)i * bytes;
    if (bench_failed("lattn_state_init", lattn_state_init(states[i], memory, bytes, c))) return 0;
  }
  return 1;
}

static void stream_free(stream *s) {
  bench_buffer_free(&s->data);
  bench_buffer_free(&s->memory);
  bench_buffer_free(&s->scratch);
  bench_buffer_free(&s->attention_scratch);
}

static double advance(stream *s, lattn_state *state, int64_t n, int32_t n_threads) {
  lattn_exec exec = bench_exec(&s->scratch, n_threads);
  lattn_status status = 0;
  int64_t rows = n < s->rows ? n : s->rows;
  lattn_tensor q = bench_rows(s->q, 0, rows), k = bench_rows(s->k, 0, rows);
  lattn_tensor v = bench_rows(s->v, 0, rows), out = bench_rows(s->out, 0, rows);
  double start = bench_seconds();
  for (int64_t t = 0; t < n && !status; t += rows)
    status = lattn_state_advance(state, &s->call, q, k, v, out, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_state_advance", status) ? -1 : seconds;
}

/* ---- lengths ---- */

static double whole(void *state, int32_t n_threads) {
  stream *s = state;
  if (bench_failed("lattn_state_clear", lattn_state_clear(s->state))) return -1;
  return advance(s, s->state, s->n, n_threads);
}

static double old_and_young(void *state, int32_t n_threads) {
  stream *s = state;
  double seconds = 0, young = 0;
  if (bench_failed("lattn_state_clear", lattn_state_clear(s->state))) return -1;
  for (int64_t t = 0, calls = 0; t < s->n; t += s->rows, calls++) {
    double some = advance(s, s->state, s->rows, n_threads);
    if (some < 0) return -1;
    seconds += some;
    if (calls % EVERY) continue;
    if (bench_failed("lattn_state_clear", lattn_state_clear(s->young))) return -1;
    some = advance(s, s->young, YOUNG, n_threads);
    if (some < 0) return -1;
    young += some * EVERY * (double)s->rows / YOUNG;
  }
  s->young_seconds = young;
  return seconds;
}

static double as_young(void *state, int32_t n_threads) {
  const stream *s = state;
  return (void)n_threads, s->young_seconds;
}

static double bidirectional(void *state, int32_t n_threads) {
  stream *s = state;
  lattn_exec exec = bench_exec(&s->scratch, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_flow_attention(NULL, s->q, s->k, s->v, s->out, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_flow_attention", status) ? -1 : seconds;
}

static double exact(stream *s, int32_t mask, int32_t n_threads) {
  lattn_attn options = {0};
  options.size = sizeof options;
  options.mask = mask;
  if (!s->attention_scratch.data)
    s->attention_scratch =
        bench_buffer_make(lattn_attention_scratch(&options, s->q, s->k, s->v, THREADS));
  lattn_exec exec = bench_exec(&s->attention_scratch, n_threads);
  double start = bench_seconds();
  lattn_status status = lattn_attention(&options, s->q, s->k, s->v, s->out, NULL, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_attention", status) ? -1 : seconds;
}

static double exact_causal(void *state, int32_t n_threads) {
  return exact(state, LATTN_CAUSAL, n_threads);
}
static double exact_full(void *state, int32_t n_threads) {
  return exact(state, LATTN_FULL, n_threads);
}

static bench_shape shape_of(const char *name, const lattn_state_config *c, int64_t n) {
  bench_shape s = bench_shape_of(name, c->n_heads, c->n_heads, c->key_dim, n, 0, LATTN_F32);
  s.value_dim = c->value_dim;
  s.quick = n <= 2048;
  return s;
}

/* Exact attention is measured up to `longest`. It is to be overtaken by 2048 tokens. The longest
   stream is held against its own youth. */
static void length(const bench_options *options, const char *name, int32_t preset, int64_t n,
                   int64_t longest) {
  stream s = {.config = {.n_heads = HEADS, .key_dim = DIM, .value_dim = DIM}};
  bench_shape shape = shape_of(name, &s.config, n);
  bench_work work = {.ours = whole, .other = exact_causal, .least = n > MOST_ROWS ? 1 : 3};
  if (n <= longest) work.other_name = "attention";
  work.other_goal = n == 2048 ? 1 : 0;
  if (n == OLD)
    work = (bench_work){.ours = old_and_young,
                        .other_name = "at_4096",
                        .other = as_young,
                        .other_goal = 0.9,
                        .least = 1};
  if (!bench_wanted(options, name, shape.quick)) return;
  if (stream_make(&s, preset, 2, n)) bench_report_work(options, &shape, &work, &s);
  else bench_report_failed(&shape);
  stream_free(&s);
}

static void both_ways(const bench_options *options, int64_t n, const char *other) {
  stream s = {.config = {.n_heads = HEADS, .key_dim = DIM, .value_dim = DIM}};
  bench_shape shape = shape_of("state_flow_both", &s.config, n);
  bench_work work = {.ours = bidirectional, .other_name = other, .other = exact_full};
  if (!bench_wanted(options, shape.bench, shape.quick)) return;
  s.rows = n;
  tokens_make(&s);
  s.scratch = bench_buffer_make(lattn_flow_scratch(DIM, DIM, 0, THREADS) + 1);
  bench_report_work(options, &shape, &work, &s);
  stream_free(&s);
}

/* ---- other kinds ---- */

static void kind(const bench_options *options, const char *name, int32_t preset,
                 lattn_state_config config) {
  enum { TOKENS = 2048 };
  stream s = {.config = config};
  bench_shape shape = shape_of(name, &config, TOKENS);
  bench_work work = {.ours = whole};
  if (!bench_wanted(options, name, shape.quick)) return;
  if (stream_make(&s, preset, 1, TOKENS)) bench_report_work(options, &shape, &work, &s);
  else bench_report_failed(&shape);
  stream_free(&s);
}

void bench_flow(const bench_options *options) {
  const lattn_state_config plain = {.n_heads = HEADS, .key_dim = DIM, .value_dim = DIM};
  lattn_state_config based = plain, titans = plain, deep;
  static const int64_t lengths[] = {1024, 2048, 4096, 16384, 65536, 262144, OLD};
  for (int i = 0; i < 7; i++)
    length(options, "state_flow", LATTN_PRESET_FLOW, lengths[i], MOST_ROWS);
  for (int i = 0; i < 7; i++) length(options, "state_elu1", LATTN_PRESET_LINEAR, lengths[i], YOUNG);
  both_ways(options, 4096, "attention");
  both_ways(options, 65536, NULL);
  based.n_heads = 16;
  based.key_dim = 16;
  kind(options, "state_based", LATTN_PRESET_BASED, based);
  kind(options, "state_aaren", LATTN_PRESET_AAREN, plain);
  titans.chunk = 16;
  kind(options, "state_titans", LATTN_PRESET_TITANS, titans);
  deep = titans;
  deep.hidden_dim = 4 * DIM;
  kind(options, "state_titans_deep", LATTN_PRESET_TITANS, deep);
}
