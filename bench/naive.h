/* naive.h - attention in plain C, as an engineer writes it first: a row's scores, softmax,
 * weighted sum.
 * SPDX-License-Identifier: MIT

   Built with the flags that ours is built with, one head a task. It is also the check: ours must
   agree with it. Of a long prefill it computes a sample of the rows, evenly spaced. */
#ifndef BENCH_NAIVE_H_INCLUDED
#define BENCH_NAIVE_H_INCLUDED

#include "peer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct naive_state {
  bench_shape shape;
  const bench_input *input;
  int64_t step;  /* rows step/2, step/2 + step, ... are computed */
  double scale;  /* work of all rows over work of those */
  float *scores; /* [heads][keys] */
  float *out;    /* [queries][heads][value_dim] */
} naive_state;

/* n elements from element `first` on as float32: the array itself, or converted into `to`. */
static const float *naive_load(const void *data, int32_t type, int64_t first, int64_t n,
                               float *to) {
  if (type == LATTN_F32) return (const float *)data + first;
  const uint16_t *from = (const uint16_t *)data + first;
  for (int64_t i = 0; i < n; i++) {
    uint32_t bits = (uint32_t)from[i] << 16;
    if (type == LATTN_F16) bits = (bits & 0x80000000u) | (bits & 0x7fff0000u) >> 3;
    memcpy(to + i, &bits, sizeof bits);
    if (type == LATTN_F16) to[i] *= 0x1p112f; /* moves the exponent; the inputs are finite */
  }
  return to;
}

static void naive_row(const naive_state *s, int64_t row, int32_t head, float *scores) {
  const bench_shape *p = &s->shape;
  int64_t g = head / (p->heads / p->kv_heads), dk = p->key_dim, dv = p->value_dim, sinks_end;
  int64_t first = bench_visible(p, (int32_t)g, row, &sinks_end);
  int64_t last = p->keys - p->queries + row;
  const float *q = (const float *)s->input->q.data + (row * p->heads + head) * dk;
  float *out = s->out + (row * p->heads + head) * dv;
  int32_t type = bench_input_type(p);
  float buffer[1024], largest = -INFINITY, sum = 0, scale = 1 / sqrtf((float)dk);
  for (int64_t j = 0; j <= last; j++) {
    if (j >= sinks_end && j < first) continue;
    const float *k = naive_load(s->input->k.data, type, (j * p->kv_heads + g) * dk, dk, buffer);
    float dot = 0;
    for (int64_t d = 0; d < dk; d++) dot += q[d] * k[d];
    scores[j] = dot * scale;
    if (scores[j] > largest) largest = scores[j];
  }
  memset(out, 0, (size_t)dv * sizeof *out);
  for (int64_t j = 0; j <= last; j++) {
    if (j >= sinks_end && j < first) continue;
    const float *v = naive_load(s->input->v.data, type, (j * p->kv_heads + g) * dv, dv, buffer);
    float weight = expf(scores[j] - largest);
    sum += weight;
    for (int64_t d = 0; d < dv; d++) out[d] += weight * v[d];
  }
  for (int64_t d = 0; d < dv; d++) out[d] /= sum;
}

static void naive_task(void *context, int32_t head) {
  const naive_state *s = context;
  float *scores = s->scores + head * s->shape.keys;
  for (int64_t row = s->step / 2; row < s->shape.queries; row += s->step)
    naive_row(s, row, head, scores);
}

static const char *naive_missing(void) { return NULL; }

static void *naive_prepare(const bench_shape *shape, const bench_input *input) {
  naive_state *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->shape = *shape;
  s->input = input;
  for (s->step = 1; s->step < shape->queries; s->step *= 2) /* about a fifth of a second of work */
    if (bench_shape_flops(shape) / (double)s->step < 0.4e9) break;
  double all = 0, some = 0;
  for (int64_t row = 0; row < shape->queries; row++) {
    double pairs = (double)(shape->keys - shape->queries + row + 1);
    all += pairs;
    if (row % s->step == s->step / 2) some += pairs;
  }
  s->scale = all / some;
  s->scores = malloc((size_t)(shape->heads * shape->keys) * sizeof(float));
  s->out = malloc((size_t)(shape->queries * shape->heads * shape->value_dim) * sizeof(float));
  if (s->scores && s->out) return s;
  free(s->scores);
  free(s->out);
  free(s);
  return NULL;
}

static double naive_run(void *state, int32_t n_threads) {
  naive_state *s = state;
  bench_threads_set(n_threads);
  double start = bench_seconds();
  bench_parallel_for(NULL, s->shape.heads, naive_task, s);
  return (bench_seconds() - start) * s->scale;
}

static const float *naive_output(void *state, int64_t query, int32_t head) {
  const naive_state *s = state;
  if (query % s->step != s->step / 2) return NULL;
  return s->out + (query * s->shape.heads + head) * s->shape.value_dim;
}

static void naive_release(void *state) {
  naive_state *s = state;
  free(s->scores);
  free(s->out);
  free(s);
}

static const char *naive_unsupported(const bench_shape *shape) {
  return shape->key_dim > 1024 || shape->value_dim > 1024 ? "dims up to 1024" : NULL;
}

static const bench_peer naive_peer = {
    .name = "naive",
    .missing = naive_missing,
    .unsupported = naive_unsupported,
    .prepare = naive_prepare,
    .run = naive_run,
    .row = naive_output,
    .release = naive_release,
};

#endif /* BENCH_NAIVE_H_INCLUDED */
