/* golden.h - one hash of what the library computes, without any other library: the scripts of this
 * folder build it in every way that users build the header, and it is the same each time.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef GOLDEN_H
#define GOLDEN_H

#include "longattn.h"

enum {
  GOLDEN_TOKENS = 2200, /* beyond one segment of 2048 tokens */
  GOLDEN_CUT = 137,     /* tokens of one extend */
  GOLDEN_HEADS = 4,
  GOLDEN_KV_HEADS = 2,
  GOLDEN_KEY_DIM = 12,
  GOLDEN_VALUE_DIM = 10,
  GOLDEN_ROWS = 12,    /* rows of the stateless call */
  GOLDEN_PROMPT = 200, /* tokens of the small caches, before a mark and behind it */
  GOLDEN_REST = 30
};

/* Static: a freestanding program has a small stack and no heap. */
static float golden_q[GOLDEN_TOKENS * GOLDEN_HEADS * GOLDEN_KEY_DIM];
static float golden_k[GOLDEN_TOKENS * GOLDEN_KV_HEADS * GOLDEN_KEY_DIM];
static float golden_v[GOLDEN_TOKENS * GOLDEN_KV_HEADS * GOLDEN_VALUE_DIM];
static float golden_out[GOLDEN_TOKENS * GOLDEN_HEADS * GOLDEN_VALUE_DIM];
static float golden_lse[GOLDEN_TOKENS * GOLDEN_HEADS];
static unsigned char golden_arena[1 << 20], golden_scratch[1 << 20];

/* Multiples of 2^-7 in [-1, 1): nothing is rounded before the library sees it. */
static void golden_fill(float *x, int n, uint32_t seed) {
  for (int i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)((int32_t)(seed >> 24) - 128) / 128;
  }
}

/* FNV-1a over the bits of n floats. */
static uint64_t golden_add(uint64_t hash, const float *x, int n) {
  const unsigned char *bytes = (const unsigned char *)x;
  for (int i = 0; i < n * 4; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
  return hash;
}

static lattn_tensor golden_view(const float *data, int tokens, int heads, int dim) {
  lattn_tensor view = {data, LATTN_F32, 0, tokens, heads, dim, 0, 0};
  return view;
}

#if defined(LONGATTN_OPENMP) && LONGATTN_OPENMP
#define golden_parallel_for lattn_parallel_openmp
#else
/* All tasks one after the other, the last first. */
static void golden_parallel_for(void *pool, int32_t n_tasks,
                                void (*task)(void *context, int32_t index), void *context) {
  (void)pool;
  while (n_tasks-- > 0) task(context, n_tasks);
}
#endif

/* A stateless call: causal, softcap, window and sinks; on the stack, as NULL exec is. */
static int golden_attention(uint64_t *hash) {
  lattn_attn options = {0};
  options.size = sizeof options;
  options.mask = LATTN_CAUSAL;
  options.softcap = 3;
  options.sinks = 5;
  options.window = 2100;
  lattn_status status = lattn_attention(
      &options, golden_view(golden_q, GOLDEN_ROWS, GOLDEN_HEADS, GOLDEN_KEY_DIM),
      golden_view(golden_k, GOLDEN_TOKENS, GOLDEN_KV_HEADS, GOLDEN_KEY_DIM),
      golden_view(golden_v, GOLDEN_TOKENS, GOLDEN_KV_HEADS, GOLDEN_VALUE_DIM),
      golden_view(golden_out, GOLDEN_ROWS, GOLDEN_HEADS, GOLDEN_VALUE_DIM), golden_lse, NULL);
  *hash = golden_add(*hash, golden_out, GOLDEN_ROWS * GOLDEN_HEADS * GOLDEN_VALUE_DIM);
  *hash = golden_add(*hash, golden_lse, GOLDEN_ROWS * GOLDEN_HEADS);
  return status == LATTN_OK;
}

/* Extends the cache by all tokens, GOLDEN_CUT at a time. */
static int golden_extend(lattn_cache *cache, const lattn_exec *exec, uint64_t *hash) {
  for (int t = 0; t < GOLDEN_TOKENS; t += GOLDEN_CUT) {
    int n = GOLDEN_TOKENS - t < GOLDEN_CUT ? GOLDEN_TOKENS - t : GOLDEN_CUT;
    lattn_status status = lattn_cache_extend(
        cache, NULL,
        golden_view(golden_q + t * GOLDEN_HEADS * GOLDEN_KEY_DIM, n, GOLDEN_HEADS, GOLDEN_KEY_DIM),
        golden_view(golden_k + t * GOLDEN_KV_HEADS * GOLDEN_KEY_DIM, n, GOLDEN_KV_HEADS,
                    GOLDEN_KEY_DIM),
        golden_view(golden_v + t * GOLDEN_KV_HEADS * GOLDEN_VALUE_DIM, n, GOLDEN_KV_HEADS,
                    GOLDEN_VALUE_DIM),
        golden_view(golden_out, n, GOLDEN_HEADS, GOLDEN_VALUE_DIM), golden_lse, exec);
    if (status) return 0;
    *hash = golden_add(*hash, golden_out, n * GOLDEN_HEADS * GOLDEN_VALUE_DIM);
    *hash = golden_add(*hash, golden_lse, n * GOLDEN_HEADS);
  }
  return 1;
}

/* A cache with a full head and a streaming head, rotary positions, f16 keys and bf16 values. */
static int golden_cache(uint64_t *hash) {
  uint64_t turns[GOLDEN_KEY_DIM / 2];
  lattn_rotary_scaling scaling = {0};
  scaling.size = sizeof scaling;
  scaling.n_dims = GOLDEN_KEY_DIM;
  if (lattn_rotary_turns(turns, &scaling)) return 0;
  lattn_rotary rotary = {0};
  rotary.size = sizeof rotary;
  rotary.n_dims = GOLDEN_KEY_DIM;
  rotary.turns = turns;
  lattn_head streaming = {0}, heads[GOLDEN_KV_HEADS];
  heads[0] = streaming;
  streaming.policy = LATTN_HEAD_STREAMING;
  streaming.sinks = 4;
  streaming.window = 200;
  heads[1] = streaming;
  lattn_cache_config config = {0};
  config.size = sizeof config;
  config.head_size = sizeof heads[0];
  config.n_kv_heads = GOLDEN_KV_HEADS;
  config.n_heads = GOLDEN_HEADS;
  config.key_dim = GOLDEN_KEY_DIM;
  config.value_dim = GOLDEN_VALUE_DIM;
  config.key_type = LATTN_F16;
  config.value_type = LATTN_BF16;
  config.capacity = GOLDEN_TOKENS;
  config.max_append = 64;
  config.heads = heads;
  config.rotary = &rotary;
  lattn_exec exec = {0};
  exec.size = sizeof exec;
  exec.n_threads = 2;
  exec.parallel_for = golden_parallel_for;
  exec.scratch = golden_scratch;
  exec.scratch_bytes = sizeof golden_scratch;
  lattn_pool *pool;
  lattn_cache *cache;
  return lattn_pool_init(&pool, golden_arena, sizeof golden_arena, NULL) == LATTN_OK &&
         lattn_cache_init(&cache, pool, &config) == LATTN_OK && golden_extend(cache, &exec, hash);
}

/* Tokens t ... t + n - 1 into a small cache, with selective values. */
static int golden_step(lattn_cache *cache, const lattn_cache_config *config, int t, int n,
                       int32_t top, uint64_t *hash) {
  int keys = config->n_kv_heads;
  lattn_call call = {0};
  call.size = sizeof call;
  call.top_values = top;
  lattn_status status = lattn_cache_extend(
      cache, &call,
      golden_view(golden_q + t * GOLDEN_HEADS * GOLDEN_KEY_DIM, n, GOLDEN_HEADS, GOLDEN_KEY_DIM),
      golden_view(golden_k + t * keys * GOLDEN_KEY_DIM, n, keys, GOLDEN_KEY_DIM),
      golden_view(golden_v + t * GOLDEN_KV_HEADS * GOLDEN_VALUE_DIM, n, GOLDEN_KV_HEADS,
                  GOLDEN_VALUE_DIM),
      golden_view(golden_out, n, GOLDEN_HEADS, GOLDEN_VALUE_DIM), golden_lse, NULL);
  *hash = golden_add(*hash, golden_out, n * GOLDEN_HEADS * GOLDEN_VALUE_DIM);
  *hash = golden_add(*hash, golden_lse, n * GOLDEN_HEADS);
  return status == LATTN_OK;
}

/* A prompt, a mark, and some tokens more. heads NULL: one bundle of a key head and two value heads,
   in place of two KV heads. */
static int golden_marked(const lattn_head *heads, int32_t top, uint64_t *hash) {
  lattn_cache_config config = {0};
  config.size = sizeof config;
  config.head_size = sizeof *heads;
  config.n_kv_heads = heads ? GOLDEN_KV_HEADS : 1;
  config.n_value_heads = GOLDEN_KV_HEADS;
  config.n_heads = GOLDEN_HEADS;
  config.key_dim = GOLDEN_KEY_DIM;
  config.value_dim = GOLDEN_VALUE_DIM;
  config.capacity = GOLDEN_PROMPT + GOLDEN_REST;
  config.heads = heads;
  lattn_pool *pool;
  lattn_cache *cache;
  return lattn_pool_init(&pool, golden_arena, sizeof golden_arena, NULL) == LATTN_OK &&
         lattn_cache_init(&cache, pool, &config) == LATTN_OK &&
         golden_step(cache, &config, 0, GOLDEN_PROMPT, 0, hash) &&
         lattn_cache_mark(cache, LATTN_PROMPT_END, NULL) == LATTN_OK &&
         golden_step(cache, &config, GOLDEN_PROMPT, GOLDEN_REST, top, hash);
}

/* Heads chosen at marks, alone and sharing their budgets; bundles; selective values. */
static int golden_policies(uint64_t *hash) {
  lattn_head none = {0}, heads[GOLDEN_KV_HEADS];
  heads[0] = heads[1] = none;
  heads[0].policy = LATTN_HEAD_SNAP;
  heads[0].window = 8;
  heads[1].policy = LATTN_HEAD_HEAVY;
  heads[0].budget = heads[1].budget = 50;
  if (!golden_marked(heads, 0, hash)) return 0;
  heads[0].flags = LATTN_SNAP_SHARED;
  heads[1] = heads[0];
  return golden_marked(heads, 20, hash) && golden_marked(NULL, 20, hash);
}

/* The hash, or 0 where a call failed. */
static uint64_t golden_hash(void) {
  uint64_t hash = 0xcbf29ce484222325u;
  golden_fill(golden_q, GOLDEN_TOKENS * GOLDEN_HEADS * GOLDEN_KEY_DIM, 1);
  golden_fill(golden_k, GOLDEN_TOKENS * GOLDEN_KV_HEADS * GOLDEN_KEY_DIM, 2);
  golden_fill(golden_v, GOLDEN_TOKENS * GOLDEN_KV_HEADS * GOLDEN_VALUE_DIM, 3);
  if (!golden_attention(&hash) || !golden_cache(&hash) || !golden_policies(&hash)) return 0;
  return hash;
}

#endif /* GOLDEN_H */
