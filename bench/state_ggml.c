/* state_ggml.c - ggml's recurrent operations: gated_delta_net, gated_linear_attn, rwkv_wkv6,
 * rwkv_wkv7 and ssm_scan.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   It gets what its models compute beside: linear decays where it wants those, q and k of unit
   length, one state a value head. llama.cpp copies the new states back into its cache after each
   step, which is left out here. Constant decay, and none, are gated_linear_attn with that decay. */
#include "ggml.h"
#include "state.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* K, the number of states that come back, is an argument since 2026; one who does not know it does
   not look for it, as it is the last. */
enum { ONE_STATE = 1 };

typedef ggml_tensor tensor;
static struct {
  tensor *(*gated_delta_net)(ggml_context *ctx, tensor *q, tensor *k, tensor *v, tensor *g,
                             tensor *beta, tensor *state, int64_t n_states);
  tensor *(*gated_linear_attn)(ggml_context *ctx, tensor *k, tensor *v, tensor *q, tensor *g,
                               tensor *state, float scale);
  tensor *(*wkv6)(ggml_context *ctx, tensor *k, tensor *v, tensor *r, tensor *tf, tensor *td,
                  tensor *state);
  tensor *(*wkv7)(ggml_context *ctx, tensor *r, tensor *w, tensor *k, tensor *v, tensor *a,
                  tensor *b, tensor *state);
  tensor *(*ssm_scan)(ggml_context *ctx, tensor *s, tensor *x, tensor *dt, tensor *rate, tensor *b,
                      tensor *c, tensor *ids, int64_t n_states);
} op;

struct bench_ggml_stream {
  bench_stream s;
  int64_t n;
  bench_buffer memory;
  ggml_context *context;
  ggml_cgraph *graph;
  float *states, *out, *new_states;
};

const char *bench_ggml_stream_missing(int32_t method) {
  static const char *const names[] = {
      [BENCH_DELTA] = "ggml_gated_delta_net",    [BENCH_KDA] = "ggml_gated_delta_net",
      [BENCH_GLA] = "ggml_gated_linear_attn",    [BENCH_RETNET] = "ggml_gated_linear_attn",
      [BENCH_LINEAR] = "ggml_gated_linear_attn", [BENCH_SSD] = "ggml_ssm_scan",
      [BENCH_RWKV6] = "ggml_rwkv_wkv6",          [BENCH_RWKV7] = "ggml_rwkv_wkv7"};
  void *const to[] = {[BENCH_DELTA] = &op.gated_delta_net,
                      [BENCH_KDA] = &op.gated_delta_net,
                      [BENCH_GLA] = &op.gated_linear_attn,
                      [BENCH_RETNET] = &op.gated_linear_attn,
                      [BENCH_LINEAR] = &op.gated_linear_attn,
                      [BENCH_SSD] = &op.ssm_scan,
                      [BENCH_RWKV6] = &op.wkv6,
                      [BENCH_RWKV7] = &op.wkv7};
  const char *why = bench_ggml_missing();
  return why ? why : bench_ggml_function(names[method], to[method]) ? NULL : "lacks it";
}

/* ---- its arrays ---- */

static float *of(tensor *t) { return ggml.get_data(t); }

/* [token][head][dim] as it is; `length` of each row brought to 1, as ours does itself. */
static tensor *rows(bench_ggml_stream *g, const float *from, int32_t heads, int32_t dim, int unit) {
  const bench_stream *s = &g->s;
  tensor *t = ggml.new_tensor_4d(g->context, GGML_F32, dim, heads, g->n, s->sequences);
  size_t part = (size_t)g->n * (size_t)heads * (size_t)dim;
  for (int32_t i = 0; i < s->sequences; i++)
    memcpy(of(t) + (size_t)i * part, from + (size_t)i * (size_t)s->n * (size_t)heads * (size_t)dim,
           part * sizeof(float));
  for (size_t r = 0; unit && r < part / (size_t)dim * (size_t)s->sequences; r++) {
    float *row = of(t) + r * (size_t)dim;
    double sum = 1e-6;
    for (int32_t d = 0; d < dim; d++) sum += (double)row[d] * (double)row[d];
    for (int32_t d = 0; d < dim; d++) row[d] = (float)((double)row[d] / sqrt(sum));
  }
  return t;
}

/* The same for operations that count the tokens of all sequences in one. */
static tensor *flat(bench_ggml_stream *g, const float *from) {
  const bench_stream *s = &g->s;
  size_t row = (size_t)s->heads * (size_t)s->key_dim, part = (size_t)g->n * row;
  tensor *t = ggml.new_tensor_3d(g->context, GGML_F32, s->key_dim, s->heads, g->n * s->sequences);
  for (int32_t i = 0; i < s->sequences; i++)
    memcpy(of(t) + (size_t)i * part, from + (size_t)i * (size_t)s->n * row, part * sizeof(float));
  return t;
}

/* Decays themselves, one a channel. */
static tensor *linear_decays(bench_ggml_stream *g) {
  const bench_stream *s = &g->s;
  tensor *t = flat(g, s->decay ? s->decay : s->k);
  for (int64_t r = 0; r < g->n * s->sequences * s->heads; r++)
    for (int64_t d = 0; d < s->key_dim; d++) {
      float *x = of(t) + r * s->key_dim + d;
      *x = s->decay ? expf(*x) : s->log_decay ? expf(s->log_decay[r % s->heads]) : 1;
    }
  return t;
}

static tensor *states_make(bench_ggml_stream *g, int64_t n0, int64_t n1, int64_t n2, int64_t n3) {
  tensor *t = ggml.new_tensor_4d(g->context, GGML_F32, n0, n1, n2, n3);
  g->states = of(t);
  return t;
}

/* ---- its operations ---- */

static tensor *delta(bench_ggml_stream *g) {
  const bench_stream *s = &g->s;
  int32_t dim = s->key_dim, decays = s->method == BENCH_KDA ? dim : 1;
  return op.gated_delta_net(g->context, rows(g, s->q, s->heads, dim, 1),
                            rows(g, s->k, s->heads, dim, 1), rows(g, s->v, s->heads, dim, 0),
                            rows(g, s->decay, s->heads, decays, 0),
                            rows(g, s->beta, s->heads, 1, 0),
                            states_make(g, dim, dim, s->heads, s->sequences), ONE_STATE);
}

static tensor *scan(bench_ggml_stream *g) {
  const bench_stream *s = &g->s;
  tensor *rate = ggml.new_tensor_4d(g->context, GGML_F32, 1, s->heads, 1, 1);
  tensor *ids = ggml.new_tensor_4d(g->context, GGML_I32, s->sequences, 1, 1, 1);
  memcpy(of(rate), s->rate, (size_t)s->heads * sizeof(float));
  for (int32_t i = 0; i < s->sequences; i++) ((int32_t *)ggml.get_data(ids))[i] = i;
  tensor *dt = ggml.new_tensor_3d(g->context, GGML_F32, s->heads, g->n, s->sequences);
  for (int32_t i = 0; i < s->sequences; i++)
    memcpy(of(dt) + (int64_t)i * g->n * s->heads, s->dt + (int64_t)i * s->n * s->heads,
           (size_t)(g->n * s->heads) * sizeof(float));
  return op.ssm_scan(g->context, states_make(g, s->key_dim, s->value_dim, s->heads, s->sequences),
                     rows(g, s->x, s->heads, s->value_dim, 0), dt, rate,
                     rows(g, s->k, s->qk_heads, s->key_dim, 0),
                     rows(g, s->q, s->qk_heads, s->key_dim, 0), ids, ONE_STATE);
}

static tensor *rwkv(bench_ggml_stream *g) {
  const bench_stream *s = &g->s;
  ggml_context *c = g->context;
  tensor *states = states_make(g, (int64_t)s->key_dim * s->key_dim * s->heads, s->sequences, 1, 1);
  tensor *q = flat(g, s->q), *k = flat(g, s->k), *v = flat(g, s->v), *decays = linear_decays(g);
  if (s->method == BENCH_RWKV7)
    return op.wkv7(c, q, decays, k, v, flat(g, s->a), flat(g, s->b), states);
  if (s->method != BENCH_RWKV6)
    return op.gated_linear_attn(c, k, v, q, decays, states,
                                s->method == BENCH_LINEAR ? 1 : 1 / sqrtf((float)s->key_dim));
  tensor *bonus = ggml.new_tensor_4d(c, GGML_F32, s->key_dim, s->heads, 1, 1);
  memcpy(of(bonus), s->bonus, (size_t)s->key_dim * (size_t)s->heads * sizeof(float));
  return op.wkv6(c, k, v, q, bonus, decays, states);
}

/* ---- the interface ---- */

static size_t state_floats(const bench_stream *s) {
  return (size_t)s->heads * (size_t)s->key_dim * (size_t)s->value_dim;
}

bench_ggml_stream *bench_ggml_stream_make(const bench_stream *s, int64_t n) {
  bench_ggml_stream *g = calloc(1, sizeof *g);
  if (!g) return NULL;
  g->s = *s;
  g->n = n;
  int32_t dim = s->key_dim > s->value_dim ? s->key_dim : s->value_dim;
  size_t tokens = (size_t)n * (size_t)s->sequences;
  size_t floats = 2 * (size_t)s->sequences * state_floats(s) +
                  8 * tokens * (size_t)s->heads * (size_t)dim + (size_t)s->heads * (size_t)dim;
  size_t bytes = floats * sizeof(float) + 32 * (ggml.tensor_overhead() + 64) +
                 ggml.graph_overhead() + (size_t)s->sequences * sizeof(int32_t);
  g->memory = bench_buffer_make(bytes);
  memset(g->memory.data, 0, bytes); /* its pages are there before the clock starts */
  g->context = ggml.init((struct ggml_init_params){bytes, g->memory.data, false});
  tensor *result = s->method == BENCH_SSD                               ? scan(g)
                   : s->method == BENCH_DELTA || s->method == BENCH_KDA ? delta(g)
                                                                        : rwkv(g);
  g->graph = ggml.new_graph(g->context);
  ggml.build_forward_expand(g->graph, result);
  g->out = of(result);
  g->new_states = g->out + tokens * (size_t)s->heads * (size_t)s->value_dim;
  return g;
}

void bench_ggml_stream_free(bench_ggml_stream *g) {
  if (!g) return;
  ggml.free(g->context);
  bench_buffer_free(&g->memory);
  free(g);
}

double bench_ggml_stream_run(bench_ggml_stream *g, int32_t n_times, int32_t n_threads) {
  return bench_ggml_compute(g->graph, n_times, n_threads);
}

const float *bench_ggml_stream_out(const bench_ggml_stream *g) { return g->out; }

/* Where [head][key][value] lies in a state of ggml's. */
static size_t place(const bench_stream *s, int64_t h, int64_t i, int64_t j) {
  int keys_first = s->method == BENCH_GLA || s->method == BENCH_RETNET ||
                   s->method == BENCH_LINEAR || s->method == BENCH_RWKV6;
  return (size_t)(keys_first ? (h * s->key_dim + i) * s->value_dim + j
                             : (h * s->value_dim + j) * s->key_dim + i);
}

static void exchange(const bench_stream *s, float *theirs, const float *from, float *to) {
  for (int64_t h = 0; h < s->heads; h++)
    for (int64_t i = 0; i < s->key_dim; i++)
      for (int64_t j = 0; j < s->value_dim; j++) {
        size_t here = (size_t)((h * s->key_dim + i) * s->value_dim + j);
        if (to) to[here] = theirs[place(s, h, i, j)];
        else theirs[place(s, h, i, j)] = from[here];
      }
}

void bench_ggml_stream_set(bench_ggml_stream *g, int32_t sequence, const float *state) {
  exchange(&g->s, g->states + (size_t)sequence * state_floats(&g->s), state, NULL);
}

void bench_ggml_stream_state(const bench_ggml_stream *g, int32_t sequence, float *to) {
  exchange(&g->s, g->new_states + (size_t)sequence * state_floats(&g->s), NULL, to);
}
