/* cc -O2 -march=native -I.. 08-based.c -o 08-based -lm && ./08-based
 * BASED in one head: the newest 64 tokens exactly, by a cache; all older ones through second-order
 * Taylor features, in a state of fixed size. The two are partial results that lattn_merge joins.
 * Prints: 2000 tokens in 75 KiB, worst error below 1e-6 */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { DIM = 16, VALUE_DIM = 32, WINDOW = 64, TOKENS = 2000 };

static void need(lattn_status status, const char *what, const lattn_fault *fault) {
  if (!status) return;
  fprintf(stderr, "%s: %s (%s)\n", what, lattn_status_text(status), fault->argument);
  exit(1);
}

static float random_float(void) {
  static uint32_t x = 1;
  x = x * 1664525u + 1013904223u;
  return (float)(x >> 8) / 8388608.0f - 1.0f;
}

static lattn_tensor row(const float *data, int64_t dim) {
  return (lattn_tensor){.data = data, .n_tokens = 1, .n_heads = 1, .dim = dim};
}

/* What the two parts come to, in double: exp(s) in the window, 1 + s + s^2 / 2 before it. */
static double direct(const float *q, const float *k, const float *v, int t, int c) {
  double sum = 0, mass = 0;
  for (int j = 0; j <= t; j++) {
    double s = 0, w;
    for (int d = 0; d < DIM; d++) s += (double)q[t * DIM + d] * (double)k[j * DIM + d];
    s /= 4; /* sqrt(DIM) */
    w = t - j < WINDOW ? exp(s) : 1 + s + s * s / 2;
    sum += w * (double)v[j * VALUE_DIM + c];
    mass += w;
  }
  return sum / mass;
}

/* A cache that keeps the window, in *arena. */
static lattn_cache *window_cache(void **arena, size_t *bytes) {
  lattn_fault fault = {0};
  lattn_head window = {.policy = LATTN_HEAD_STREAMING, .window = WINDOW};
  lattn_cache_config config = {.size = sizeof config,
                               .head_size = sizeof window,
                               .n_kv_heads = 1,
                               .key_dim = DIM,
                               .value_dim = VALUE_DIM,
                               .heads = &window,
                               .max_append = 1,
                               .fault = &fault};
  lattn_pool *pool;
  lattn_cache *cache;
  *bytes = lattn_pool_bytes(NULL, &config, 1);
  *arena = malloc(*bytes);
  need(lattn_pool_init(&pool, *arena, *bytes, NULL), "pool", &fault);
  need(lattn_cache_init(&cache, pool, &config), "cache", &fault);
  return cache;
}

/* The state of all tokens before it, in *memory. */
static lattn_state *based_state(void **memory, size_t *bytes) {
  lattn_fault fault = {0};
  lattn_state_config based = {.size = sizeof based, .fault = &fault};
  need(lattn_state_preset(&based, LATTN_PRESET_BASED), "preset", &fault);
  based.n_heads = 1;
  based.key_dim = DIM;
  based.value_dim = VALUE_DIM;
  *bytes = lattn_state_bytes(&based);
  *memory = malloc(*bytes);
  lattn_state *state;
  need(lattn_state_init(&state, *memory, *bytes, &based), "state", &fault);
  return state;
}

int main(void) {
  static float q[TOKENS * DIM], k[TOKENS * DIM], v[TOKENS * VALUE_DIM];
  for (int i = 0; i < TOKENS * DIM; i++) q[i] = random_float(), k[i] = random_float();
  for (int i = 0; i < TOKENS * VALUE_DIM; i++) v[i] = random_float();

  void *arena, *memory;
  size_t pool_bytes, state_bytes;
  lattn_cache *cache = window_cache(&arena, &pool_bytes);
  lattn_state *state = based_state(&memory, &state_bytes);
  lattn_fault fault = {0};
  lattn_exec exec = {.size = sizeof exec, .fault = &fault};
  float maximum[2], sum[2], output[2][VALUE_DIM], out[VALUE_DIM];
  lattn_partial parts[2];
  for (int i = 0; i < 2; i++)
    parts[i] = (lattn_partial){.size = sizeof *parts,
                               .n_rows = 1,
                               .value_dim = VALUE_DIM,
                               .maximum = maximum + i,
                               .sum = sum + i,
                               .output = output[i]};
  lattn_call near_call = {.size = sizeof near_call, .partial = parts};
  lattn_state_call far_call = {.size = sizeof far_call, .partial = parts + 1};
  lattn_tensor none = row(NULL, VALUE_DIM);
  double worst = 0;
  for (int t = 0; t < TOKENS; t++) {
    int old = t - WINDOW; /* leaves the window, and enters the state */
    need(lattn_cache_append(cache, row(k + t * DIM, DIM), row(v + t * VALUE_DIM, VALUE_DIM), &exec),
         "append", &fault);
    need(lattn_cache_attend(cache, &near_call, row(q + t * DIM, DIM), none, NULL, &exec), "attend",
         &fault);
    if (old >= 0)
      need(lattn_state_advance(state, NULL, none, row(k + old * DIM, DIM),
                               row(v + old * VALUE_DIM, VALUE_DIM), none, &exec),
           "advance", &fault);
    need(lattn_state_read(state, &far_call, row(q + t * DIM, DIM), none, &exec), "read", &fault);
    need(lattn_merge(NULL, old >= 0 ? 2 : 1, parts, row(out, VALUE_DIM), NULL, &exec), "merge",
         &fault);
    for (int c = 0; t % 37 == 0 && c < VALUE_DIM; c++)
      worst = fmax(worst, fabs((double)out[c] - direct(q, k, v, t, c)));
  }
  printf("%d tokens in %zu KiB, worst error %s 1e-6\n", TOKENS, (pool_bytes + state_bytes) >> 10,
         worst < 1e-6 ? "below" : "above");
  free(arena);
  free(memory);
  return 0;
}
