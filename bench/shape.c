/* shape.c - problems to time: which keys a row sees, the work that makes, and the data.
 * SPDX-License-Identifier: MIT */
#include "bench.h"

#include <string.h>

bench_shape bench_shape_of(const char *bench, int32_t heads, int32_t kv_heads, int32_t dim,
                           int64_t queries, int64_t keys, int32_t type) {
  bench_shape s = {0};
  s.bench = bench;
  s.heads = heads;
  s.kv_heads = kv_heads;
  s.key_dim = s.value_dim = dim;
  s.queries = queries;
  s.keys = keys;
  s.type = type;
  return s;
}

/* Keys that a row sees: *sinks_end keys from 0 on, and from the returned one to the row's own. */
int64_t bench_visible(const bench_shape *shape, int32_t kv_head, int64_t row, int64_t *sinks_end) {
  int64_t position = shape->keys - shape->queries + row;
  int64_t first = position - shape->window + 1;
  *sinks_end = 0;
  if (kv_head >= shape->streaming_heads || first <= shape->sinks) return 0;
  *sinks_end = shape->sinks;
  return first;
}

/* The convention of the field: causal prefill counts half of the square, 4 n^2 d H / 2 FLOP. */
double bench_shape_flops(const bench_shape *shape) {
  double queries = (double)shape->queries, pairs = 0;
  for (int32_t g = 0; g < shape->kv_heads; g++) {
    double seen = (double)shape->keys;
    if (shape->queries > 1) seen -= queries / 2;
    double most = (double)(shape->sinks + shape->window);
    if (g < shape->streaming_heads && seen > most) seen = most;
    pairs += queries * seen;
  }
  double rows_per_key = (double)shape->heads / shape->kv_heads;
  if (shape->sequences) pairs *= shape->sequences;
  return 2.0 * (shape->key_dim + shape->value_dim) * rows_per_key * pairs;
}

int32_t bench_value_type(const bench_shape *shape) {
  return shape->value_type ? shape->value_type : shape->type;
}

/* One head's key or value of a token, with its scales of two bytes. */
static double row_bytes(int32_t type, int32_t dim) {
  if (type == LATTN_I8) return dim + 2;
  if (type == LATTN_I4) return (dim + 1) / 2 + (dim + 31) / 32 * 2;
  return (double)dim * (double)bench_type_bytes(type);
}

double bench_shape_bytes(const bench_shape *shape) {
  double keys = 0, sequences = shape->sequences ? shape->sequences : 1;
  for (int32_t g = 0; g < shape->kv_heads; g++) {
    double held = (double)shape->keys, most = (double)(shape->sinks + shape->window);
    if (g < shape->streaming_heads && held > most) keys += sequences * most;
    else keys += sequences * (held - (double)shape->shared) + (double)shape->shared;
  }
  return keys * (row_bytes(shape->type, shape->key_dim) +
                 row_bytes(bench_value_type(shape), shape->value_dim));
}

size_t bench_type_bytes(int32_t type) { return type == LATTN_F32 ? 4 : 2; }

const char *bench_shape_type_name(const bench_shape *shape) {
  static const char *const names[] = {[LATTN_F32] = "f32",
                                      [LATTN_F16] = "f16",
                                      [LATTN_BF16] = "bf16",
                                      [LATTN_I8] = "int8",
                                      [LATTN_I4] = "int4"};
  if (shape->type == LATTN_I8 && shape->value_type == LATTN_I4) return "k8v4";
  return names[shape->type];
}

int bench_shape_is_int(const bench_shape *shape) {
  return shape->type >= LATTN_I8 || shape->value_type >= LATTN_I8;
}

int32_t bench_input_type(const bench_shape *shape) {
  return bench_shape_is_int(shape) ? LATTN_F16 : shape->type;
}

/* A value in [-2, 2) is off by up to half a step, 2 / 127 / 2 or 2 / 8 / 2, by 0.0045 or 0.07 in
   the mean, 0.4 % or 6 % of what a value is in the mean, and so is a sum of many. The worst
   element of all rows is 3 to 5 times worse than the mean, and the keys do no better. */
double bench_shape_rounding(const bench_shape *shape) {
  if (shape->type == LATTN_I4 || shape->value_type == LATTN_I4) return 0.5;
  return shape->type == LATTN_I8 ? 0.03 : 0;
}

static uint64_t splitmix(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

/* Bits of (byte - 128) / 64 in the type: no rounding is needed, the number has 8 bits. */
static uint32_t pattern(int32_t type, int byte) {
  float x = (float)(byte - 128) / 64;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if (type == LATTN_F32) return bits;
  if (type == LATTN_BF16) return bits >> 16;
  if (byte == 128) return 0;
  return (bits >> 16 & 0x8000u) | ((bits >> 13 & 0x3ffffu) - (112u << 10));
}

void bench_fill(void *data, int32_t type, size_t n, uint64_t seed) {
  uint32_t table[256], *wide = data;
  uint16_t *narrow = data;
  for (int i = 0; i < 256; i++) table[i] = pattern(type, i);
  for (size_t i = 0; i < n;) {
    uint64_t bytes = splitmix(&seed);
    for (int b = 0; b < 8 && i < n; b++, i++, bytes >>= 8)
      if (type == LATTN_F32) wide[i] = table[bytes & 255];
      else narrow[i] = (uint16_t)table[bytes & 255];
  }
}

bench_input bench_input_make(const bench_shape *shape, uint64_t seed) {
  size_t n_q = (size_t)(shape->queries * shape->heads) * (size_t)shape->key_dim;
  size_t n_k = (size_t)(shape->keys * shape->kv_heads) * (size_t)shape->key_dim;
  size_t n_v = (size_t)(shape->keys * shape->kv_heads) * (size_t)shape->value_dim;
  int32_t type = bench_input_type(shape);
  bench_input input;
  input.q = bench_buffer_make(n_q * sizeof(float));
  input.k = bench_buffer_make(n_k * bench_type_bytes(type));
  input.v = bench_buffer_make(n_v * bench_type_bytes(type));
  bench_fill(input.q.data, LATTN_F32, n_q, seed);
  bench_fill(input.k.data, type, n_k, seed + 1);
  bench_fill(input.v.data, type, n_v, seed + 2);
  return input;
}

lattn_tensor bench_view(void *data, int32_t type, int64_t n_tokens, int64_t n_heads, int64_t dim) {
  lattn_tensor t = {0};
  t.data = data;
  t.type = type;
  t.n_tokens = n_tokens;
  t.n_heads = n_heads;
  t.dim = dim;
  return t;
}

void bench_input_free(bench_input *input) {
  bench_buffer_free(&input->q);
  bench_buffer_free(&input->k);
  bench_buffer_free(&input->v);
}
