/* cc -O2 -march=native -I.. 07-memory.c -o 07-memory -lm && ./07-memory
 * Titans (Behrouz et al. 2025): a memory that learns while it reads; what it recalls is context for
 * attention, a gate, or a layer before. The text: 32 words, ten times over; weights are random.
 * Prints: 320 tokens at once or one by one, as context, gate, layer: same bits: yes yes yes; error
 * of what the memory recalls: 1.05, after the text 0.06 */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 32, HIDDEN = 64, WORDS = 32, TOKENS = 10 * WORDS, SEGMENT = 16, WINDOW = 16 };
enum { PERSISTENT = 4, ALL = PERSISTENT + TOKENS, BLOCK = PERSISTENT + 2 * SEGMENT };
enum { CONTEXT, GATE, LAYER };

typedef struct projections {
  float q[DIM * DIM], k[DIM * DIM], v[DIM * DIM]; /* [in][out] */
} projections;
static struct model {
  projections memory, attention;
  float first[DIM * HIDDEN], second[HIDDEN * DIM]; /* what the memory begins with */
} model;
static const projections *const att = &model.attention, *const mem = &model.memory;
static float text[ALL * DIM]; /* behind the persistent tokens */
static float q[ALL * DIM], k[ALL * DIM], v[ALL * DIM], recalled[ALL * DIM], out[2][ALL * DIM];
static lattn_state *memory; /* the long past */
static lattn_cache *cache;  /* the persistent tokens, as its sinks, and the short past */

static void check(lattn_status status) {
  if (status) exit(printf("%s\n", lattn_status_text(status)));
}
static lattn_tensor rows(const float *x, int64_t n) {
  lattn_tensor t = {x, LATTN_F32, 0, n, 1, DIM, 0, 0};
  return t;
}

/* y = x times a matrix; the memory's queries and keys get length 1, as in the paper. */
static lattn_tensor project(float *y, const float *x, int64_t n, const float *w, int unit) {
  for (int64_t t = 0; t < n; t++) {
    float sum = 0, *to = y + t * DIM;
    for (int c = 0; c < DIM; c++) {
      to[c] = 0;
      for (int i = 0; i < DIM; i++) to[c] += x[t * DIM + i] * w[i * DIM + c];
      sum += to[c] * to[c];
    }
    for (int c = 0; c < DIM && unit; c++) to[c] /= sqrtf(sum);
  }
  return rows(y, n);
}

/* The memory learns n tokens; to gets what each recalls (NULL: nothing). A model computes rate,
   momentum and forgetting from each token; here they are constant. */
static void learn(const float *x, int64_t n, float *to) {
  static const float theta = 0.1f, eta = 0.5f, alpha = 0.001f;
  lattn_tensor rate = {&theta, LATTN_F32, 0, n, 1, 1, LATTN_BROADCAST, 0};
  lattn_tensor momentum = rate, forget = rate;
  momentum.data = &eta, forget.data = &alpha;
  lattn_state_call call = {
      .size = sizeof call, .rate = &rate, .momentum = &momentum, .forget = &forget};
  lattn_tensor Q = project(q, x, n, mem->q, 1), K = project(k, x, n, mem->k, 1);
  check(lattn_state_advance(memory, &call, Q, K, project(v, x, n, mem->v, 0), rows(to, n), NULL));
}

/* What it recalls for x through w, without learning. */
static void recall(const float *x, int64_t n, const float *w, float *to) {
  check(lattn_state_read(memory, NULL, project(q, x, n, w, 1), rows(to, n), NULL));
}
static void gate(float *y, const float *by, int64_t n) {
  for (int64_t i = 0; i < n * DIM; i++) y[i] /= 1 + expf(-by[i]);
}

/* A segment attends to the persistent tokens, to what the memory recalls for it, and, causally, to
   itself; the memory learns what came out, and gates it. `step` tokens at a time. */
static void as_context(const float *x, int64_t step, float *y) {
  static float block[BLOCK * DIM], *own = block + (PERSISTENT + SEGMENT) * DIM;
  const lattn_attn causal = {.size = sizeof causal, .mask = LATTN_CAUSAL};
  memcpy(block, text, PERSISTENT * DIM * sizeof *x);
  recall(x, SEGMENT, mem->q, block + PERSISTENT * DIM);
  memcpy(own, x, SEGMENT * DIM * sizeof *x);
  for (int64_t t = 0; t < SEGMENT; t += step) {
    int64_t n = PERSISTENT + SEGMENT + t + step;
    lattn_tensor Q = project(q, own + t * DIM, step, att->q, 0),
                 K = project(k, block, n, att->k, 0);
    lattn_tensor V = project(v, block, n, att->v, 0);
    check(lattn_attention(&causal, Q, K, V, rows(y + t * DIM, step), NULL, NULL));
    learn(y + t * DIM, step, NULL);
  }
  recall(y, SEGMENT, mem->q, recalled);
  gate(y, recalled, SEGMENT);
}

/* Attention sees the tokens, and is gated by the memory, or it sees what the memory gives. */
static void beside(int way, const float *x, int64_t n, float *y) {
  learn(x, n, recalled);
  if (way == LAYER) x = recalled;
  lattn_tensor Q = project(q, x, n, att->q, 0), K = project(k, x, n, att->k, 0);
  check(lattn_cache_extend(cache, NULL, Q, K, project(v, x, n, att->v, 0), rows(y, n), NULL, NULL));
  if (way == GATE) gate(y, recalled, n);
}

/* |f(k) - v|^2 / |v|^2 over the words. */
static double error(void) {
  double off = 0, all = 0;
  recall(text + PERSISTENT * DIM, WORDS, mem->k, recalled);
  project(v, text + PERSISTENT * DIM, WORDS, mem->v, 0);
  for (int i = 0; i < WORDS * DIM; i++)
    off += pow((double)(v[i] - recalled[i]), 2), all += pow((double)v[i], 2);
  return off / all;
}
static void fill(float *x, size_t n, uint32_t seed, float by) {
  while (n-- > 0) *x++ = ((float)((seed = seed * 1664525u + 1013904223u) >> 8) / 8388608 - 1) * by;
}

int main(void) {
  double before = 0;
  lattn_head head = {.policy = LATTN_HEAD_STREAMING, .sinks = PERSISTENT, .window = WINDOW};
  lattn_cache_config c = {
      .size = sizeof c, .head_size = sizeof head, .n_kv_heads = 1, .key_dim = DIM, .heads = &head};
  lattn_state_config s = {.size = sizeof s,
                          .kind = LATTN_STATE_TITANS,
                          .n_heads = 1,
                          .key_dim = DIM,
                          .hidden_dim = HIDDEN};
  lattn_tensor first = {model.first, LATTN_F32, 0, DIM, 1, HIDDEN, 0, 0};
  lattn_pool *pool;
  size_t bytes = lattn_state_bytes(&s), pool_bytes = lattn_pool_bytes(NULL, &c, 1);
  void *space = malloc(bytes), *arena = malloc(pool_bytes);
  fill((float *)&model, sizeof model / sizeof(float), 1, 0.3f);
  fill(text, PERSISTENT * DIM, 2, 1);
  for (int t = PERSISTENT; t < ALL; t += WORDS) fill(text + t * DIM, WORDS * DIM, 3, 1);
  printf("%d tokens at once or one by one, as context, gate, layer: same bits:", TOKENS);
  for (int way = CONTEXT; way <= LAYER; way++) {
    for (int one = 0; one < 2; one++) {
      check(lattn_pool_init(&pool, arena, pool_bytes, NULL));
      check(lattn_cache_init(&cache, pool, &c));
      check(lattn_state_init(&memory, space, bytes, &s));
      check(lattn_state_set(memory, LATTN_MATRIX_STATE, 0, first));
      check(lattn_state_set(memory, LATTN_MATRIX_SECOND, 0, rows(model.second, HIDDEN)));
      before = error();
      for (int t = PERSISTENT; way == CONTEXT && t < ALL; t += SEGMENT)
        as_context(text + t * DIM, one ? 1 : SEGMENT, out[one] + t * DIM);
      for (int t = 0, step = one ? 1 : ALL; way != CONTEXT && t < ALL; t += step)
        beside(way, text + t * DIM, step, out[one] + t * DIM);
    }
    printf(" %s", memcmp(out[0], out[1], sizeof out[0]) ? "no" : "yes");
  }
  printf("; error of what the memory recalls: %.2f, after the text %.2f\n", before, error());
}
