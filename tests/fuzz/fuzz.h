/* fuzz.h - what both fuzz targets share: the input as a source of numbers, a file in memory, small
 * configs, what can be seen of a cache.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A target is a function fuzz_NAME(bytes, n). With FUZZ_TARGET defined, it is libFuzzer's:

       clang -fsanitize=fuzzer,address,undefined -DFUZZ_TARGET -I. -Itests tests/fuzz/ops.c

   Without, tests/fuzz_replay.c calls it with every file of tests/fuzz/corpus. */
#ifndef FUZZ_H
#define FUZZ_H

#include "longattn.h"

#ifdef FUZZ_TARGET
static void fuzz_broken(const char *file, int line, const char *text) {
  printf("%s:%d: expected %s\n", file, line, text);
  fflush(stdout);
  abort();
}
#else
static void fuzz_broken(const char *file, int line, const char *text) {
  test_fail(file, line, "expected %s", text);
}
#endif
#define MUST(condition) ((condition) ? (void)0 : fuzz_broken(__FILE__, __LINE__, #condition))
#define MUST_OK(call) MUST((call) == LATTN_OK)

/* ---- the input; beyond its end it is all zeros ---- */

typedef struct fuzz_input {
  const uint8_t *bytes;
  size_t n, at;
} fuzz_input;

static inline int64_t take(fuzz_input *in) { return in->at < in->n ? in->bytes[in->at++] : 0; }

/* Uniform in 0 ... n - 1, n <= 256. */
static inline int64_t take_below(fuzz_input *in, int64_t n) { return take(in) % n; }

/* A number that no caller should give: often at the edge of something. */
static inline int64_t take_wild(fuzz_input *in) {
  static const int64_t edges[] = {-1,   INT64_MAX, INT64_MIN, INT32_MAX, INT32_MIN,        127,
                                  128,  0,         1,         2,         (int64_t)1 << 31, 129,
                                  2048, 16,        65536,     -128,      (int64_t)1 << 62};
  const int64_t n_edges = (int64_t)(sizeof edges / sizeof *edges);
  int64_t kind = take(in), value = 0;
  if (kind < 200) return edges[kind % n_edges] + (kind / n_edges % 3 == 1 && kind % n_edges > 2);
  for (int i = 0; i < 4; i++) value = value * 256 + take(in);
  return kind & 1 ? -value : value;
}

/* ---- a file in memory ---- */

enum { FUZZ_FILE = 1 << 18 };

typedef struct fuzz_file {
  uint8_t *bytes;
  size_t n, at;
} fuzz_file;

static int32_t fuzz_write(void *user, const void *data, size_t bytes) {
  fuzz_file *f = (fuzz_file *)user;
  MUST(bytes > 0 && bytes <= 16384);
  if (bytes > FUZZ_FILE - f->n) return 1;
  memcpy(f->bytes + f->n, data, bytes);
  f->n += bytes;
  return 0;
}

static int32_t fuzz_read(void *user, void *data, size_t bytes) {
  fuzz_file *f = (fuzz_file *)user;
  MUST(bytes > 0 && bytes <= 16384);
  if (bytes > f->n - f->at) return 1;
  memcpy(data, f->bytes + f->at, bytes);
  f->at += bytes;
  return 0;
}

/* ---- configs ---- */

enum { FUZZ_CONFIGS = 8, FUZZ_HEADS = 4, FUZZ_DIM = 4, FUZZ_TOKENS = 512, FUZZ_ROWS = 256 };

typedef struct fuzz_config {
  lattn_cache_config config;
  lattn_head heads[2];
  lattn_rotary rotary;
  uint64_t turns[FUZZ_DIM / 2];
  float slopes[FUZZ_HEADS], sinks[FUZZ_HEADS];
} fuzz_config;

#define FUZZ_STREAMING(p, s, w, more) \
  { .policy = LATTN_HEAD_STREAMING, .positions = (p), .sinks = (s), .window = (w), .slack = (more) }

/* More than one value head a bundle. */
enum { FUZZ_CHOSEN = 4, FUZZ_SHARED = 5, FUZZ_SUMS = 6, FUZZ_BUNDLES = 7 };

/* Two KV heads each. */
static const lattn_head fuzz_heads[FUZZ_CONFIGS][2] = {
    {{0}, {0}},
    {{0}, FUZZ_STREAMING(0, 3, 20, 6)},
    {FUZZ_STREAMING(0, 0, 1, 2), FUZZ_STREAMING(2, 130, 40, 0)},
    {FUZZ_STREAMING(0, 4, 130, 0), FUZZ_STREAMING(0, 1, 7, 1)},
    {{.policy = LATTN_HEAD_SNAP,
      .window = 3,
      .budget = 10,
      .kernel = 3,
      .slack = 2,
      .flags = LATTN_HEAD_LOST},
     {.policy = LATTN_HEAD_HEAVY, .window = 4, .budget = 12, .flags = LATTN_HEAD_LOST}},
    {{.policy = LATTN_HEAD_SNAP, .window = 2, .budget = 6, .slack = 4, .flags = LATTN_SNAP_SHARED},
     {.policy = LATTN_HEAD_SNAP,
      .window = 3,
      .budget = 9,
      .kernel = 5,
      .flags = LATTN_SNAP_SHARED | LATTN_SNAP_AVERAGE | LATTN_SNAP_GROUP_MAX,
      .floor_alpha = -1}},
    {{.policy = LATTN_HEAD_COMPENSATED,
      .sinks = 2,
      .window = 6,
      .mark = LATTN_PROMPT_END,
      .flags = LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE,
      .window_divisor = 3},
     {.policy = LATTN_HEAD_STREAMING, .sinks = 1, .window = 9, .flags = LATTN_HEAD_LOST}},
    {{0}, {.policy = LATTN_HEAD_STREAMING, .sinks = 4, .window = 8, .mark = LATTN_PROMPT_END}}};

static inline int64_t fuzz_values(int kind) { return kind == FUZZ_BUNDLES ? 4 : 2; }

/* Full; full and streaming, rotated, 16 bits; two windows, ALiBi; two windows without limit; heads
   chosen at marks; such that share their budgets; sums of what was dropped; two bundles of a key
   head and two value heads. All have 2 KV heads, dims of 4, and 2 or 4 query heads. It points into
   itself: do not copy. */
static void fuzz_config_make(fuzz_config *c, int kind) {
  memset(c, 0, sizeof *c);
  memcpy(c->heads, fuzz_heads[kind], sizeof c->heads);
  c->turns[0] = (uint64_t)1 << 61;
  c->turns[1] = 0x0123456789abcdef;
  for (int h = 0; h < FUZZ_HEADS; h++) {
    c->slopes[h] = 0.25f / (float)(1 + h);
    c->sinks[h] = (float)h - 1;
  }
  c->rotary.size = sizeof c->rotary;
  c->rotary.layout = kind & 1;
  c->rotary.n_dims = FUZZ_DIM;
  c->rotary.turns = c->turns;
  c->config.size = sizeof c->config;
  c->config.head_size = sizeof *c->heads;
  c->config.n_kv_heads = 2;
  c->config.n_heads = kind < 2 || kind == FUZZ_SHARED || kind == FUZZ_BUNDLES ? 4 : 2;
  c->config.key_dim = FUZZ_DIM;
  c->config.key_type = kind == 1 || kind == FUZZ_CHOSEN ? LATTN_F16 : LATTN_F32;
  c->config.value_type = kind == 1 || kind == FUZZ_CHOSEN ? LATTN_BF16 : LATTN_F32;
  c->config.capacity = kind == 3 ? 0 : kind == FUZZ_CHOSEN ? 150 : 220;
  c->config.max_append = kind == 2 ? 5 : 40;
  c->config.heads = c->heads;
  if (kind == FUZZ_BUNDLES) c->config.n_value_heads = 4;
  if (kind == 1 || kind == 3 || kind == FUZZ_SHARED) c->config.rotary = &c->rotary;
  if (kind == 2 || kind == FUZZ_SUMS) c->config.alibi_slopes = c->slopes;
  if (kind == 0) c->config.sink_logits = c->sinks;
  c->config.softcap = kind == 3 ? 5.0f : 0.0f;
  c->config.max_drafts = kind == 0 ? 64 : kind == 3 || kind == FUZZ_CHOSEN ? 0 : 5;
  c->config.max_holes = 2;
}

/* Numbers that all tokens are made of: some rows hold infinities, NaN and huge values. */
static const float *fuzz_numbers(void) {
  static float numbers[FUZZ_TOKENS * FUZZ_HEADS * FUZZ_DIM];
  uint32_t x = 1;
  if (numbers[0] == 0)
    for (int i = 0; i < FUZZ_TOKENS * FUZZ_HEADS * FUZZ_DIM; i++) {
      x = x * 1664525u + 1013904223u;
      numbers[i] = (float)(int32_t)(x >> 8) * 0x1p-22f - 1.5f;
      if (x >> 20 == 77) numbers[i] = x & 1 ? INFINITY : x & 2 ? NAN : -3e38f;
    }
  return numbers;
}

static lattn_tensor fuzz_rows(int64_t at, int64_t n, int64_t n_heads) {
  const float *data = fuzz_numbers() + at * FUZZ_HEADS * FUZZ_DIM;
  lattn_tensor t = {data, LATTN_F32, 0, n, n_heads, FUZZ_DIM, 0, 0};
  return t;
}

/* ---- what can be seen ---- */

/* Eight bytes at a time: hashing is most of the work. Only compared within one run. */
static inline uint64_t fuzz_hash(uint64_t hash, const void *data, size_t bytes) {
  const uint8_t *p = (const uint8_t *)data;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t word = 0;
    memcpy(&word, p + i, bytes - i < 8 ? bytes - i : 8);
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    hash ^= hash >> 29;
  }
  return hash;
}

static lattn_pool_stats fuzz_pool_stats(const lattn_pool *pool) {
  lattn_pool_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  MUST_OK(lattn_pool_stats_get(pool, &stats));
  MUST(stats.n_pages >= 0 && stats.free_bytes >= 0 && stats.n_shared <= stats.n_pages);
  return stats;
}

static lattn_cache_stats fuzz_cache_stats(const lattn_cache *cache) {
  lattn_cache_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  MUST_OK(lattn_cache_stats_get(cache, &stats));
  MUST(stats.n_tokens >= 0 && stats.n_drafts >= 0);
  for (int32_t g = 0; g < 2; g++) { /* marks make room */
    lattn_cache_head_stats head;
    memset(&head, 0, sizeof head);
    head.size = sizeof head;
    MUST_OK(lattn_cache_head_stats_get(cache, g, &head));
    MUST(head.n_tokens_held >= 0 && head.n_tokens_held <= stats.n_tokens);
    MUST(head.n_tokens_held <= stats.capacity);
    if (head.policy < LATTN_HEAD_SNAP) MUST(stats.n_tokens <= stats.capacity);
  }
  return stats;
}

/* The bytes that the cache saves, or nothing while drafts are pending. */
static fuzz_file fuzz_save(const lattn_cache *cache, uint8_t *memory) {
  fuzz_file f = {memory, 0, 0};
  uint64_t bytes = 0;
  if (fuzz_cache_stats(cache).n_drafts) {
    MUST(lattn_cache_save(cache, fuzz_write, &f, &bytes) == LATTN_E_STATE && !f.n);
    return f;
  }
  MUST_OK(lattn_cache_save(cache, fuzz_write, &f, &bytes));
  MUST(bytes == f.n);
  return f;
}

/* Of all that a cache holds; not of what is shared, which others change. */
static uint64_t fuzz_fingerprint(const lattn_cache *cache) {
  static uint8_t memory[FUZZ_FILE];
  lattn_cache_stats stats = fuzz_cache_stats(cache);
  fuzz_file f = fuzz_save(cache, memory);
  stats.shared_bytes = 0;
  return fuzz_hash(fuzz_hash(0xcbf29ce484222325u, f.bytes, f.n), &stats, sizeof stats);
}

#endif /* FUZZ_H */
