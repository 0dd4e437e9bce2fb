/* cc -O2 -march=native -I.. 02-streaming.c -o 02-streaming && ./02-streaming
 * A cache that sees text for ever in constant memory: 4 attention sinks and a window of 252 tokens.
 * Prints: mean of the visible values 98313, growth after token 1000: 0 bytes */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <stdio.h>
#include <stdlib.h>

enum { HEADS = 4, KV_HEADS = 2, DIM = 32, SINKS = 4, WINDOW = 252 };

static void fail(const char *what, lattn_status status, const char *argument) {
  fprintf(stderr, "%s: %s (%s)\n", what, lattn_status_text(status), argument ? argument : "");
  exit(1);
}

int main(void) {
  /* The cache rotates queries and keys itself. A streaming head then sees its sinks as if they
     stood just before the window, so no position grows beyond 256, however long the text. */
  uint64_t turns[DIM / 2];
  lattn_rotary_scaling scaling = {.size = sizeof scaling, .n_dims = DIM};
  lattn_rotary rotary = {.size = sizeof rotary, .n_dims = DIM, .turns = turns};
  lattn_status status = lattn_rotary_turns(turns, &scaling);
  if (status) fail("turns", status, NULL);

  lattn_fault fault = {0};
  lattn_head heads[KV_HEADS];
  for (int h = 0; h < KV_HEADS; h++)
    heads[h] = (lattn_head){.policy = LATTN_HEAD_STREAMING, .sinks = SINKS, .window = WINDOW};
  lattn_cache_config config = {
      .size = sizeof config,
      .head_size = sizeof(lattn_head),
      .n_kv_heads = KV_HEADS,
      .n_heads = HEADS,
      .key_dim = DIM,
      .heads = heads,
      .rotary = &rotary,
      .fault = &fault,
  };

  /* All memory is handed over here; no later call allocates. */
  size_t arena_bytes = lattn_pool_bytes(NULL, &config, 1);
  void *arena = malloc(arena_bytes);
  lattn_exec exec = {.size = sizeof exec, .fault = &fault};
  exec.scratch_bytes = lattn_cache_scratch(&config, 1, 1);
  exec.scratch = malloc(exec.scratch_bytes);
  lattn_pool *pool;
  lattn_cache *cache;
  status = lattn_pool_init(&pool, arena, arena_bytes, NULL);
  if (status) fail("pool", status, NULL);
  status = lattn_cache_init(&cache, pool, &config);
  if (status) fail("cache", status, fault.argument);

  /* One token at a time, as in generation. Equal keys: a row is the mean of the values it sees. */
  float q[HEADS * DIM] = {0}, k[KV_HEADS * DIM] = {0}, v[KV_HEADS * DIM], out[HEADS * DIM];
  lattn_tensor Q = {q, LATTN_F32, 0, 1, HEADS, DIM, 0, 0}, O = Q;
  lattn_tensor K = {k, LATTN_F32, 0, 1, KV_HEADS, DIM, 0, 0}, V = K;
  O.data = out, V.data = v;
  int64_t early_peak = 0, peak = 0;
  for (int t = 0; t < 100000; t++) {
    for (int i = 0; i < KV_HEADS * DIM; i++) v[i] = (float)t;
    status = lattn_cache_extend(cache, NULL, Q, K, V, O, NULL, &exec);
    if (status) fail("extend", status, fault.argument);
    lattn_cache_stats stats = {.size = sizeof stats};
    status = lattn_cache_stats_get(cache, &stats);
    if (status) fail("stats", status, NULL);
    if (stats.streaming_bytes > peak) peak = stats.streaming_bytes;
    if (t == 999) early_peak = peak;
  }
  printf("mean of the visible values %.0f, growth after token 1000: %lld bytes\n", (double)out[0],
         (long long)(peak - early_peak));
  free(exec.scratch);
  free(arena);
  return 0;
}
