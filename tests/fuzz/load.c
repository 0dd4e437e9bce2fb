/* load.c - a fuzz target: the input is a saved cache, more or less. A load that is refused has
 * changed nothing; one that is taken gives a cache that attends, grows, goes back, and saves what a
 * second load takes.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Byte 0 of the input: bits 0-1 and 5 choose the config; 2: the cache holds something before;
   3: the checksums are made right first, so that the fuzzer meets what lies behind them; 4:
   sizes too. */
#ifdef FUZZ_TARGET
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define LONGATTN_IMPLEMENTATION
#endif
#include "fuzz.h"

enum { LOAD_ARENA = 256 * 1024 };

static fuzz_config load_configs[FUZZ_CONFIGS];
static lattn_status load_status; /* of the last input */
static float load_out[FUZZ_ROWS * FUZZ_HEADS * FUZZ_DIM];

static uint64_t load_number(const uint8_t *at, int n) {
  uint64_t x = 0;
  for (int i = 0; i < n; i++) x |= (uint64_t)at[i] << 8 * i;
  return x;
}

static void load_put(uint8_t *at, uint64_t x, int n) {
  for (int i = 0; i < n; i++) at[i] = (uint8_t)(x >> 8 * i);
}

/* Writes the checksum of the first n bytes behind them. */
static void load_checksum(uint8_t *bytes, size_t n) {
  uint64_t s1 = 1, s2 = 0;
  for (size_t i = 0; i < n; i += 4) {
    s1 += load_number(bytes + i, n - i < 4 ? (int)(n - i) : 4);
    s2 += s1;
  }
  load_put(bytes + n, s1, 8);
  load_put(bytes + n + 8, s2, 8);
}

/* Makes the checksums of a file right, where it is long enough to have them; and its two sizes,
   from its counts and from how long it is. chosen: heads that are chosen at marks. */
static void load_repair(uint8_t *bytes, size_t n, int sizes, uint64_t chosen) {
  uint64_t header, total, heads = load_number(bytes + 48, 4) + load_number(bytes + 52, 4);
  if (n < 128) return;
  if (sizes) load_put(bytes + 40, n, 8);
  if (sizes)
    load_put(bytes + 12, 112 + 16 * heads + 8 * load_number(bytes + 72, 4) + 24 * chosen, 4);
  header = load_number(bytes + 12, 4);
  total = load_number(bytes + 40, 8);
  if (header < 112 || header > n) return;
  load_checksum(bytes, (size_t)header - 16);
  if (total >= header + 16 && total <= n) load_checksum(bytes, (size_t)total - 16);
}

static lattn_status load_extend(lattn_cache *cache, int kind, int64_t n) {
  int64_t heads = load_configs[kind].config.n_heads;
  lattn_tensor out = {load_out, LATTN_F32, 0, n, heads, FUZZ_DIM, 0, 0};
  return lattn_cache_extend(cache, NULL, fuzz_rows(3, n, heads), fuzz_rows(1, n, 2),
                            fuzz_rows(2, n, fuzz_values(kind)), out, NULL, NULL);
}

/* The cache that was loaded can be used; whatever a checked file says, no call goes wild. */
static void load_use(lattn_cache *cache, int kind) {
  static uint8_t memory[2][FUZZ_FILE];
  int64_t heads = load_configs[kind].config.n_heads, n = fuzz_cache_stats(cache).n_tokens;
  lattn_tensor out = {load_out, LATTN_F32, 0, n < 3 ? n : 3, heads, FUZZ_DIM, 0, 0};
  fuzz_file first = fuzz_save(cache, memory[0]), again;
  lattn_status status;
  MUST_OK(lattn_cache_load(cache, fuzz_read, &first));
  MUST(first.at == first.n);
  again = fuzz_save(cache, memory[1]);
  MUST(first.n == again.n && !memcmp(memory[0], memory[1], again.n));
  status = lattn_cache_attend(cache, NULL, fuzz_rows(0, out.n_tokens, heads), out, NULL, NULL);
  MUST(status >= 0 || status == LATTN_E_EVICTED);
  status = load_extend(cache, kind, 3);
  MUST(status >= 0 || status == LATTN_E_FULL || status == LATTN_E_OVERFLOW);
  if (status >= 0) MUST(fuzz_cache_stats(cache).n_tokens == n + 3);
  if (status >= 0) {
    status = lattn_cache_truncate(cache, n + 2);
    MUST(status == LATTN_OK || (kind == FUZZ_CHOSEN && status == LATTN_E_EVICTED));
  }
  status = lattn_cache_remove(cache, n / 2, n / 2 + (n > 0));
  MUST(status == LATTN_OK || status == LATTN_E_EVICTED || status == LATTN_E_CONFIG ||
       status == LATTN_E_FULL);
  status = lattn_cache_mark(cache, LATTN_PROMPT_END, NULL);
  MUST(status == LATTN_OK || status == LATTN_E_FULL || status == LATTN_E_STATE);
  status = load_extend(cache, kind, 2);
  MUST(status >= 0 || status == LATTN_E_FULL || status == LATTN_E_OVERFLOW);
}

static void fuzz_load(const uint8_t *bytes, size_t n) {
  static uint8_t arena[LOAD_ARENA], copy[4096];
  lattn_pool *pool = NULL;
  lattn_cache *cache = NULL;
  lattn_pool_stats before, after;
  uint64_t seen;
  lattn_status status;
  int kind = n ? (bytes[0] & 3) + (bytes[0] >> 3 & 4) : 0;
  int chosen = kind == FUZZ_CHOSEN || kind == FUZZ_SHARED ? 2 : 0;
  fuzz_file f = {copy, n ? n - 1 : 0, 0};
  if (f.n > sizeof copy) return;
  if (f.n) memcpy(copy, bytes + 1, f.n);
  fuzz_config_make(&load_configs[kind], kind);
  memset(arena, 0xff, sizeof arena);
  MUST_OK(lattn_pool_init(&pool, arena, sizeof arena, NULL));
  MUST_OK(lattn_cache_init(&cache, pool, &load_configs[kind].config));
  if (n && bytes[0] & 4) MUST(load_extend(cache, kind, 50) >= 0);
  if (n && bytes[0] & 8) load_repair(copy, f.n, bytes[0] & 16, (uint64_t)chosen);
  before = fuzz_pool_stats(pool);
  seen = fuzz_fingerprint(cache);
  status = load_status = lattn_cache_load(cache, fuzz_read, &f);
  MUST(status == LATTN_OK || status == LATTN_E_FORMAT || status == LATTN_E_IO ||
       status == LATTN_E_CONFIG || status == LATTN_E_FULL);
  after = fuzz_pool_stats(pool);
  if (status) {
    MUST(fuzz_fingerprint(cache) == seen && !memcmp(&before, &after, sizeof before));
  } else {
    load_use(cache, kind);
  }
  MUST_OK(lattn_cache_release(cache));
  after = fuzz_pool_stats(pool);
  MUST(!after.n_caches && !after.n_pages);
}

#ifdef FUZZ_TARGET
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  fuzz_load(bytes, n);
  return 0;
}
#endif
