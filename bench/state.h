/* state.h - streams of tokens for states of fixed size, and who advances over them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef BENCH_STATE_H_INCLUDED
#define BENCH_STATE_H_INCLUDED

#include "bench.h"

enum bench_method {
  BENCH_DELTA, /* gated delta net: one decay a token and head */
  BENCH_KDA,   /* the same, one a channel */
  BENCH_GLA,   /* gated linear attention: one decay a channel */
  BENCH_RETNET,
  BENCH_SSD, /* Mamba-2 */
  BENCH_LINEAR,
  BENCH_RWKV6,
  BENCH_RWKV7
};

/* Tokens of `sequences` sequences, float32, one sequence after another: [token][head][dim]. NULL:
   the method has no such thing. */
typedef struct bench_stream {
  int32_t method;
  int32_t heads, qk_heads; /* states; heads of q and k */
  int32_t key_dim, value_dim;
  int64_t n; /* of a sequence */
  int32_t sequences;
  float *q, *k, *v;
  float *decay;     /* natural logarithms, [token][head][1 or key_dim] */
  float *log_decay; /* RETNET: [head] */
  float *beta;
  float *a, *b;         /* RWKV7: predict and write */
  float *bonus;         /* RWKV6: [head][key_dim] */
  float *x, *dt, *rate; /* SSD: v = softplus(dt) x, decay = softplus(dt) rate; rate [head] */
  bench_buffer data;
} bench_stream;
bench_stream bench_stream_make(int32_t method, int32_t heads, int32_t qk_heads, int32_t key_dim,
                               int32_t value_dim, int64_t n, int32_t sequences);
void bench_stream_free(bench_stream *s);

/* Ours (state_ours.c). A state is [head][key][value] to the outside. */
typedef struct bench_ours_stream bench_ours_stream;
bench_ours_stream *bench_ours_stream_make(const bench_stream *s); /* NULL = failed */
void bench_ours_stream_free(bench_ours_stream *o);
/* Seconds of all tokens in one call, from empty states on. */
double bench_ours_stream_all(bench_ours_stream *o, int32_t n_threads);
/* Seconds a token, one in a call: of one sequence all its tokens, one after another, or as many as
   a quarter of a second takes; of many the first of each, in one call. */
double bench_ours_stream_steps(bench_ours_stream *o, int32_t n_threads);
/* The first step again, or the first of each sequence. */
double bench_ours_stream_step(bench_ours_stream *o, int32_t n_threads);
const float *bench_ours_stream_out(const bench_ours_stream *o); /* [token][head][value_dim] */
int bench_ours_stream_state(const bench_ours_stream *o, int32_t sequence, float *to);
double bench_ours_stream_matrix_bytes(const bench_ours_stream *o); /* of all sequences */

/* ggml's operation for the method, on the first n tokens of each sequence (state_ggml.c). */
typedef struct bench_ggml_stream bench_ggml_stream;
const char *bench_ggml_stream_missing(int32_t method); /* NULL, or why it cannot run */
bench_ggml_stream *bench_ggml_stream_make(const bench_stream *s, int64_t n);
void bench_ggml_stream_free(bench_ggml_stream *g);
/* Seconds a run, of up to n_times runs. */
double bench_ggml_stream_run(bench_ggml_stream *g, int32_t n_times, int32_t n_threads);
const float *bench_ggml_stream_out(const bench_ggml_stream *g);
void bench_ggml_stream_set(bench_ggml_stream *g, int32_t sequence, const float *state);
void bench_ggml_stream_state(const bench_ggml_stream *g, int32_t sequence, float *to);

#endif /* BENCH_STATE_H_INCLUDED */
