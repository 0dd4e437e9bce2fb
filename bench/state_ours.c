/* state_ours.c - streams of tokens, and longattn.h on them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"
#include "state.h"

#include <math.h>
#include <stdlib.h>

#define ENOUGH_SECONDS 0.25
enum { THREADS = 64 };

/* ---- streams ---- */

static size_t rounded(size_t n) { return (n + 15) / 16 * 16; } /* a multiple of 64 bytes */

typedef struct part {
  float **to;
  size_t n;
  float low, high;
} part;

/* Uniform in [low, high), 256 values. */
static void fill(const part *p, uint64_t seed) {
  bench_fill(*p->to, LATTN_F32, p->n, seed);
  for (size_t i = 0; i < p->n; i++)
    (*p->to)[i] = p->low + ((*p->to)[i] + 2) / 4 * (p->high - p->low);
}

static void ssd_values(bench_stream *s, size_t tokens) {
  for (size_t t = 0; t < tokens; t++)
    for (size_t h = 0; h < (size_t)s->heads; h++) {
      size_t at = t * (size_t)s->heads + h, dv = (size_t)s->value_dim;
      float dt = log1pf(expf(s->dt[at]));
      s->decay[at] = dt * s->rate[h];
      for (size_t j = 0; j < dv; j++) s->v[at * dv + j] = dt * s->x[at * dv + j];
    }
}

/* a = -kappa, b = kappa * alpha, kappa of unit length. */
static void rwkv7_values(bench_stream *s, size_t rows) {
  size_t dim = (size_t)s->key_dim;
  for (size_t r = 0; r < rows; r++) {
    float *a = s->a + r * dim, *b = s->b + r * dim;
    double sum = 1e-12;
    for (size_t d = 0; d < dim; d++) sum += (double)a[d] * (double)a[d];
    for (size_t d = 0; d < dim; d++) {
      a[d] = (float)((double)a[d] / sqrt(sum));
      b[d] *= -a[d];
    }
  }
}

bench_stream bench_stream_make(int32_t method, int32_t heads, int32_t qk_heads, int32_t key_dim,
                               int32_t value_dim, int64_t n, int32_t sequences) {
  bench_stream s = {.method = method,
                    .heads = heads,
                    .qk_heads = qk_heads,
                    .key_dim = key_dim,
                    .value_dim = value_dim,
                    .n = n,
                    .sequences = sequences};
  int channel =
      method == BENCH_KDA || method == BENCH_GLA || method == BENCH_RWKV6 || method == BENCH_RWKV7;
  int step = method == BENCH_DELTA || method == BENCH_SSD;
  size_t tokens = (size_t)n * (size_t)sequences, states = (size_t)heads, dim = (size_t)key_dim;
  size_t qk = tokens * (size_t)qk_heads * dim, v = tokens * states * (size_t)value_dim;
  size_t decays = channel ? tokens * states * dim : step ? tokens * states : 0;
  size_t betas = method == BENCH_DELTA || method == BENCH_KDA ? tokens * states : 0;
  size_t general = method == BENCH_RWKV7 ? qk : 0, ssd = method == BENCH_SSD;
  const part parts[] = {{&s.q, qk, -2, 2},
                        {&s.k, qk, -2, 2},
                        {&s.v, v, -2, 2},
                        {&s.decay, decays, -0.1f, -0.001f},
                        {&s.log_decay, method == BENCH_RETNET ? states : 0, 0, 0},
                        {&s.beta, betas, 0.1f, 0.9f},
                        {&s.a, general, -2, 2},
                        {&s.b, general, 0, 1},
                        {&s.bonus, method == BENCH_RWKV6 ? states * dim : 0, -1, 1},
                        {&s.x, ssd ? v : 0, -2, 2},
                        {&s.dt, ssd ? tokens * states : 0, -4, 0},
                        {&s.rate, ssd ? states : 0, -2, -0.5f}};
  enum { PARTS = (int)(sizeof parts / sizeof *parts) };
  size_t all = 0;
  for (int i = 0; i < PARTS; i++) all += rounded(parts[i].n);
  s.data = bench_buffer_make(all * sizeof(float));
  float *at = s.data.data;
  for (int i = 0; i < PARTS; i++) {
    if (!parts[i].n) continue;
    *parts[i].to = at;
    at += rounded(parts[i].n);
    fill(&parts[i], (uint64_t)i + 1);
  }
  if (s.log_decay)
    bench_failed("lattn_state_slopes",
                 lattn_state_slopes(s.log_decay, LATTN_PRESET_RETNET, heads, 0, 1));
  if (ssd) ssd_values(&s, tokens);
  if (general) rwkv7_values(&s, tokens * states);
  return s;
}

void bench_stream_free(bench_stream *s) { bench_buffer_free(&s->data); }

/* ---- ours ---- */

typedef struct views {
  lattn_tensor q, k, v, out, decay, beta, a, b;
  lattn_state_call call;
} views;

struct bench_ours_stream {
  bench_stream s;
  lattn_state_config config;
  bench_buffer memory, scratch, output;
  lattn_state_sequence *sequences;
};

static int config_make(lattn_state_config *c, const bench_stream *s) {
  static const int32_t presets[] = {[BENCH_DELTA] = LATTN_PRESET_GATED_DELTA_NET,
                                    [BENCH_KDA] = LATTN_PRESET_KDA,
                                    [BENCH_GLA] = LATTN_PRESET_GLA,
                                    [BENCH_RETNET] = LATTN_PRESET_RETNET,
                                    [BENCH_SSD] = LATTN_PRESET_SSD,
                                    [BENCH_RWKV6] = LATTN_PRESET_RWKV6,
                                    [BENCH_RWKV7] = LATTN_PRESET_RWKV7};
  c->size = sizeof *c;
  c->n_heads = c->n_value_heads = s->heads;
  c->n_query_heads = c->n_key_heads = s->qk_heads;
  c->key_dim = s->key_dim;
  c->value_dim = s->value_dim;
  c->log_decay = s->log_decay;
  c->bonus = s->bonus;
  if (s->method == BENCH_LINEAR) return c->scale = 1, 1;
  return !bench_failed("lattn_state_preset", lattn_state_preset(c, presets[s->method]));
}

void bench_ours_stream_free(bench_ours_stream *o) {
  if (!o) return;
  bench_buffer_free(&o->memory);
  bench_buffer_free(&o->scratch);
  bench_buffer_free(&o->output);
  free(o->sequences);
  free(o);
}

bench_ours_stream *bench_ours_stream_make(const bench_stream *s) {
  bench_ours_stream *o = calloc(1, sizeof *o);
  if (!o) return NULL;
  o->s = *s;
  o->sequences = calloc((size_t)s->sequences, sizeof *o->sequences);
  size_t bytes = config_make(&o->config, s) ? lattn_state_bytes(&o->config) : 0;
  int64_t tokens = s->n * s->sequences;
  size_t out = (size_t)tokens * (size_t)s->heads * (size_t)s->value_dim;
  if (!o->sequences) return bench_ours_stream_free(o), NULL;
  o->memory = bench_buffer_make((size_t)s->sequences * bytes + 1);
  size_t scratch = lattn_state_scratch(&o->config, tokens, THREADS);
  o->scratch = bench_buffer_make(scratch ? scratch : 1);
  o->output = bench_buffer_make(out * sizeof(float));
  for (int32_t i = 0; i < s->sequences; i++) {
    void *memory = (char *)o->memory.data + (size_t)i * bytes;
    o->sequences[i].n_tokens = 1;
    lattn_status status = lattn_state_init(&o->sequences[i].state, memory, bytes, &o->config);
    if (bench_failed("lattn_state_init", status)) return bench_ours_stream_free(o), NULL;
  }
  return o;
}

static lattn_tensor view(float *data, int64_t first, int64_t n, int64_t heads, int64_t dim) {
  return bench_view(data ? data + first * heads * dim : NULL, LATTN_F32, n, heads, dim);
}

/* n tokens from `first` on, of all that the method takes. */
static void views_make(views *w, const bench_ours_stream *o, int64_t first, int64_t n) {
  const bench_stream *s = &o->s;
  int channel = s->method != BENCH_DELTA && s->method != BENCH_SSD;
  w->q = view(s->q, first, n, s->qk_heads, s->key_dim);
  w->k = view(s->k, first, n, s->qk_heads, s->key_dim);
  w->v = view(s->v, first, n, s->heads, s->value_dim);
  w->out = view(o->output.data, first, n, s->heads, s->value_dim);
  w->decay = view(s->decay, first, n, s->heads, channel ? s->key_dim : 1);
  w->beta = view(s->beta, first, n, s->heads, 1);
  w->a = view(s->a, first, n, s->heads, s->key_dim);
  w->b = view(s->b, first, n, s->heads, s->key_dim);
  w->call = (lattn_state_call){0};
  w->call.size = sizeof w->call;
  w->call.decay = s->decay ? &w->decay : NULL;
  w->call.beta = s->beta ? &w->beta : NULL;
  w->call.predict = s->a ? &w->a : NULL;
  w->call.write = s->b ? &w->b : NULL;
}

double bench_ours_stream_all(bench_ours_stream *o, int32_t n_threads) {
  views w;
  lattn_state *state = o->sequences[0].state;
  views_make(&w, o, 0, o->s.n);
  lattn_exec exec = bench_exec(&o->scratch, n_threads);
  if (bench_failed("lattn_state_clear", lattn_state_clear(state))) return -1;
  double start = bench_seconds();
  lattn_status status = lattn_state_advance(state, &w.call, w.q, w.k, w.v, w.out, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_state_advance", status) ? -1 : seconds;
}

static lattn_status step(bench_ours_stream *o, int64_t token, const lattn_exec *exec) {
  views w;
  views_make(&w, o, token, o->s.sequences);
  if (o->s.sequences == 1)
    return lattn_state_advance(o->sequences[0].state, &w.call, w.q, w.k, w.v, w.out, exec);
  return lattn_batch_advance(o->s.sequences, o->sequences, &w.call, w.q, w.k, w.v, w.out, exec);
}

static double steps(bench_ours_stream *o, int64_t n, int32_t n_threads) {
  lattn_exec exec = bench_exec(&o->scratch, n_threads);
  lattn_status status = 0;
  int64_t t = 0;
  double start = bench_seconds(), seconds = 0;
  while (t < n && !status && seconds < ENOUGH_SECONDS) {
    status = step(o, t++, &exec);
    seconds = bench_seconds() - start;
  }
  return bench_failed("lattn_state_advance", status) ? -1 : seconds / (double)t;
}

double bench_ours_stream_steps(bench_ours_stream *o, int32_t n_threads) {
  return steps(o, o->s.sequences == 1 ? o->s.n : 1, n_threads);
}

double bench_ours_stream_step(bench_ours_stream *o, int32_t n_threads) {
  return steps(o, 1, n_threads);
}

const float *bench_ours_stream_out(const bench_ours_stream *o) { return o->output.data; }

int bench_ours_stream_state(const bench_ours_stream *o, int32_t sequence, float *to) {
  const bench_stream *s = &o->s;
  lattn_tensor t = bench_view(to, LATTN_F32, s->key_dim, s->heads, s->value_dim);
  t.stride_token = s->value_dim;
  t.stride_head = (int64_t)s->key_dim * s->value_dim;
  return !bench_failed("lattn_state_get",
                       lattn_state_get(o->sequences[sequence].state, LATTN_MATRIX_STATE, 0, t));
}

double bench_ours_stream_matrix_bytes(const bench_ours_stream *o) {
  lattn_state_stats stats = {0};
  stats.size = sizeof stats;
  bench_failed("lattn_state_stats_get", lattn_state_stats_get(o->sequences[0].state, &stats));
  return (double)stats.matrix_bytes * o->s.sequences;
}
