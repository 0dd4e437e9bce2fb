/* cc -O2 -march=native -I.. 03-heads.c -o 03-heads && ./03-heads
 * One cache, two kinds of heads: KV head 0 keeps every token, heads 1-3 stream (sinks + window).
 * A needle at token 500 of 20000 is asked for at the end: only the full head still holds it.
 * Prints: found by head: 42 0 0 0; tokens held by head 0: 20000, by head 1: fewer than 512 */
#define _DEFAULT_SOURCE 1 /* madvise */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <stdio.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

enum { HEADS = 8, KV_HEADS = 4, DIM = 16, TOKENS = 20000, NEEDLE = 500 };

static void check(lattn_status status, const char *what, const char *argument) {
  if (status == LATTN_OK) return;
  fprintf(stderr, "%s: %s (%s)\n", what, lattn_status_text(status), argument ? argument : "");
  exit(1);
}

/* Long caches are read faster on huge pages, where the system has them. */
static void *arena_make(size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const size_t huge = (size_t)2 << 20;
  void *arena = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
  if (arena) madvise(arena, bytes, MADV_HUGEPAGE); /* advice only: a refusal does no harm */
  return arena;
#else
  return malloc(bytes);
#endif
}

/* In a real model this table comes from measuring its heads (see lm/), or from a file of gates. */
static void choose_policies(lattn_head heads[KV_HEADS]) {
  for (int h = 0; h < KV_HEADS; h++) {
    heads[h] = (lattn_head){.policy = LATTN_HEAD_FULL};
    if (h > 0) heads[h] = (lattn_head){.policy = LATTN_HEAD_STREAMING, .sinks = 4, .window = 252};
  }
}

/* All tokens have the key 0 and the value 0, but the needle has the key 1 and the value 42. */
static void fill(float *q, float *k, float *v) {
  for (int i = 0; i < HEADS * DIM; i++) q[(TOKENS - 1) * HEADS * DIM + i] = 10;
  for (int i = 0; i < KV_HEADS * DIM; i++) {
    k[NEEDLE * KV_HEADS * DIM + i] = 1;
    v[NEEDLE * KV_HEADS * DIM + i] = 42;
  }
}

int main(void) {
  lattn_fault fault = {0};
  lattn_head heads[KV_HEADS];
  choose_policies(heads);
  lattn_cache_config config = {
      .size = sizeof config,
      .head_size = sizeof(lattn_head),
      .n_kv_heads = KV_HEADS,
      .n_heads = HEADS,
      .key_dim = DIM,
      .key_type = LATTN_F16,
      .value_type = LATTN_F16,
      .capacity = TOKENS,
      .heads = heads,
      .fault = &fault,
  };
  size_t arena_bytes = lattn_pool_bytes(NULL, &config, 1);
  lattn_exec exec = {.size = sizeof exec, .fault = &fault};
  exec.scratch_bytes = lattn_cache_scratch(&config, TOKENS, 1);
  float *q = (float *)calloc(TOKENS, sizeof(float) * HEADS * DIM);
  float *k = (float *)calloc(TOKENS, sizeof(float) * KV_HEADS * DIM);
  float *v = (float *)calloc(TOKENS, sizeof(float) * KV_HEADS * DIM);
  void *arena = arena_make(arena_bytes);
  exec.scratch = malloc(exec.scratch_bytes);
  if (!q || !k || !v || !arena || !exec.scratch) return 1;
  fill(q, k, v);

  lattn_pool *pool;
  lattn_cache *cache;
  check(lattn_pool_init(&pool, arena, arena_bytes, NULL), "pool", NULL);
  check(lattn_cache_init(&cache, pool, &config), "cache", fault.argument);
  lattn_tensor Q = {q, LATTN_F32, 0, TOKENS, HEADS, DIM, 0, 0};
  lattn_tensor K = {k, LATTN_F32, 0, TOKENS, KV_HEADS, DIM, 0, 0}, V = K;
  V.data = v;
  /* The whole text in one call; the output may take the place of q. */
  check(lattn_cache_extend(cache, NULL, Q, K, V, Q, NULL, &exec), "extend", fault.argument);

  lattn_cache_head_stats full = {.size = sizeof full}, streaming = {.size = sizeof streaming};
  check(lattn_cache_head_stats_get(cache, 0, &full), "stats", NULL);
  check(lattn_cache_head_stats_get(cache, 1, &streaming), "stats", NULL);
  const float *last = q + (size_t)(TOKENS - 1) * HEADS * DIM;
  printf("found by head: %.0f %.0f %.0f %.0f; ", (double)last[0], (double)last[2 * DIM],
         (double)last[4 * DIM], (double)last[6 * DIM]);
  printf("tokens held by head 0: %lld, by head 1: %s\n", (long long)full.n_tokens_held,
         streaming.n_tokens_held < 512 ? "fewer than 512" : "too many");
  free(q), free(k), free(v), free(arena), free(exec.scratch);
  return 0;
}
