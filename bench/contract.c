/* contract.c - what does one answer cost? The header's kernels with an order of summation that is
 * free: chains as long as a block of up to 1024 keys, sums in any order, an accumulator that goes
 * on from block to block and is rescaled only where the maximum moves, no tree of segments. Keys
 * and values lie as in a cache.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#define LONGATTN_IMPLEMENTATION
#define LONGATTN_STATIC 1
#include "peer.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 16")
#else
#define UNROLL
#endif

/* The header's own: registers for 6 rows by so many vectors. */
#if defined(__AVX512F__)
enum { WIDE = 4 };
#else
enum { WIDE = 1 };
#endif
enum { TILE = 6, BLOCK = 1024, ROWS = 768, PANEL = 16, THREADS = 64, AHEAD = 16384 };

/* Few rows are bound by memory: what lies AHEAD bytes on is asked for. Prefill finds its keys in a
   cache. */
INLINE void ahead(int m, const void *p, int type, int64_t index) {
#if defined(__GNUC__)
  size_t at = (size_t)index * (type == LATTN_F32 ? 4 : 2);
  if (m < TILE && at % 64 == 0) __builtin_prefetch((const char *)p + at + AHEAD);
#else
  (void)m, (void)p, (void)type, (void)index;
#endif
}

/* s[a][16 p ...] = q[a] . key */
INLINE void scores(int m, int panels, int type, const float *q, int64_t dim, const void *k,
                   int64_t at, float *s) {
  lattn_v16_ acc[TILE][WIDE], b[WIDE];
  UNROLL
  for (int a = 0; a < m; a++) UNROLL
  for (int p = 0; p < panels; p++) acc[a][p] = lattn_v_set_(0);
  for (int64_t d = 0; d < dim; d++) {
    UNROLL
    for (int p = 0; p < panels; p++) {
      b[p] = lattn_v_get_(k, type, at + (p * dim + d) * PANEL);
      ahead(m, k, type, at + (p * dim + d) * PANEL);
    }
    UNROLL
    for (int a = 0; a < m; a++) {
      lattn_v16_ x = lattn_v_set_(q[a * dim + d]);
      UNROLL
      for (int p = 0; p < panels; p++) acc[a][p] = lattn_v_fma_(x, b[p], acc[a][p]);
    }
  }
  UNROLL
  for (int a = 0; a < m; a++) UNROLL
  for (int p = 0; p < panels; p++) lattn_v_store_(s + a * BLOCK + p * PANEL, acc[a][p]);
}

/* acc[a] += sum_j w[a][j] v[j], the accumulators in registers for all the keys */
INLINE void values(int m, int vectors, int type, const float *w, const void *v, int64_t at,
                   int64_t dim, int n, float *acc) {
  lattn_v16_ sum[TILE][2 * WIDE], b[2 * WIDE];
  UNROLL
  for (int a = 0; a < m; a++) UNROLL
  for (int c = 0; c < vectors; c++) sum[a][c] = lattn_v_load_(acc + a * dim + c * 16);
  for (int j = 0; j < n; j++, at += dim) {
    UNROLL
    for (int c = 0; c < vectors; c++) {
      b[c] = lattn_v_get_(v, type, at + c * 16);
      ahead(m, v, type, at + c * 16);
    }
    UNROLL
    for (int a = 0; a < m; a++) {
      lattn_v16_ x = lattn_v_set_(w[a * BLOCK + j]);
      UNROLL
      for (int c = 0; c < vectors; c++) sum[a][c] = lattn_v_fma_(x, b[c], sum[a][c]);
    }
  }
  UNROLL
  for (int a = 0; a < m; a++) UNROLL
  for (int c = 0; c < vectors; c++) lattn_v_store_(acc + a * dim + c * 16, sum[a][c]);
}

/* Rows of a tile that are known when it is compiled. */
typedef struct tile {
  const float *q;    /* [m][dim] */
  const void *k, *v; /* of the KV head */
  int64_t dim, key;  /* the first key */
  int n;             /* keys that one of the rows sees */
  float *s, *acc;    /* [m][BLOCK], [m][dim] */
} tile;

INLINE void all_scores(int m, int type, const tile *t) {
  int p = 0, panels = (t->n + PANEL - 1) / PANEL;
  for (; p + WIDE <= panels; p += WIDE)
    scores(m, WIDE, type, t->q, t->dim, t->k, (t->key + p * PANEL) * t->dim, t->s + p * PANEL);
#define REST(N) \
  scores(m, N, type, t->q, t->dim, t->k, (t->key + p * PANEL) * t->dim, t->s + p * PANEL)
  if (WIDE > 3 && panels - p == 3) REST(WIDE > 3 ? 3 : 1);
  else if (WIDE > 2 && panels - p == 2) REST(WIDE > 2 ? 2 : 1);
  else if (panels - p == 1) REST(1);
#undef REST
}

INLINE void all_values(int m, int type, const tile *t) {
  const int vectors = m <= 2 ? 2 * WIDE : WIDE;
  for (int64_t c = 0; c < t->dim; c += 16 * vectors)
    values(m, vectors, type, t->s, t->v, t->key * t->dim + c, t->dim, t->n, t->acc + c);
}

#define EACH_ROWS(m, body) \
  switch (m) {             \
    case 1:                \
      body(1);             \
      break;               \
    case 2:                \
      body(2);             \
      break;               \
    case 3:                \
      body(3);             \
      break;               \
    case 4:                \
      body(4);             \
      break;               \
    case 5:                \
      body(5);             \
      break;               \
    default:               \
      body(6);             \
      break;               \
  }

static void tile_scores(int m, int type, const tile *t) {
#define F32(M) all_scores(M, LATTN_F32, t)
#define F16(M) all_scores(M, LATTN_F16, t)
  if (type == LATTN_F32) EACH_ROWS(m, F32)
  else EACH_ROWS(m, F16)
#undef F32
#undef F16
}

static void tile_values(int m, int type, const tile *t) {
#define F32(M) all_values(M, LATTN_F32, t)
#define F16(M) all_values(M, LATTN_F16, t)
  if (type == LATTN_F32) EACH_ROWS(m, F32)
  else EACH_ROWS(m, F16)
#undef F32
#undef F16
}

/* A row's scores become weights, those from `seen` up to `n` zero; *m, *l and acc go on. */
static void softmax(float *s, int seen, int n, float *m, float *l, float *acc, int64_t dim) {
  lattn_v16_ top[4], sum[4], by;
  int whole = seen / PANEL, i = 0;
  float most;
  if (seen % PANEL) {
    float *last = s + whole * PANEL;
    uint32_t bits = (1u << seen % PANEL) - 1;
    lattn_v_store_(last, lattn_v_if_bits_(bits, lattn_v_load_(last), lattn_v_set_(-INFINITY)));
    whole++;
  }
  UNROLL
  for (int c = 0; c < 4; c++) top[c] = lattn_v_set_(*m), sum[c] = lattn_v_set_(0);
  for (; i + 4 <= whole; i += 4) UNROLL
  for (int c = 0; c < 4; c++) top[c] = lattn_v_max_(lattn_v_load_(s + (i + c) * PANEL), top[c]);
  for (; i < whole; i++) top[0] = lattn_v_max_(lattn_v_load_(s + i * PANEL), top[0]);
  most =
      lattn_v_reduce_max_(lattn_v_max_(lattn_v_max_(top[0], top[1]), lattn_v_max_(top[2], top[3])));
  if (most > *m) {
    float e = lattn_exp_(*m - most);
    by = lattn_v_set_(e);
    for (int64_t c = 0; c < dim; c += 16)
      lattn_v_store_(acc + c, lattn_v_mul_(lattn_v_load_(acc + c), by));
    *l *= e;
    *m = most;
  }
  by = lattn_v_set_(*m);
  for (i = 0; i + 4 <= whole; i += 4) UNROLL
  for (int c = 0; c < 4; c++) {
    lattn_v16_ w = lattn_v_exp_(lattn_v_sub_(lattn_v_load_(s + (i + c) * PANEL), by));
    lattn_v_store_(s + (i + c) * PANEL, w);
    sum[c] = lattn_v_add_(sum[c], w);
  }
  for (; i < whole; i++) {
    lattn_v16_ w = lattn_v_exp_(lattn_v_sub_(lattn_v_load_(s + i * PANEL), by));
    lattn_v_store_(s + i * PANEL, w);
    sum[0] = lattn_v_add_(sum[0], w);
  }
  for (; i * PANEL < n; i++) lattn_v_store_(s + i * PANEL, lattn_v_set_(0));
  *l +=
      lattn_v_reduce_add_(lattn_v_add_(lattn_v_add_(sum[0], sum[1]), lattn_v_add_(sum[2], sum[3])));
}

/* ---- a shape ---- */

typedef struct contract_state {
  bench_shape shape;
  const bench_input *input;
  bench_buffer keys, values; /* [kv_heads][keys / 16][dim][16], [kv_heads][keys][dim] */
  bench_buffer out, scratch;
  int64_t rows, n_tasks; /* of a task; blocks of rows, times KV heads */
  int64_t block;         /* keys: of prompts as many as fit into a core's cache (measured: 2 %) */
  size_t thread_floats;
  atomic_llong next;
} contract_state;

static const char *missing(void) { return NULL; }

static const char *unsupported(const bench_shape *s) {
  if (s->streaming_heads || s->type > LATTN_F16 || s->key_dim != s->value_dim) return "f32, f16";
  return s->keys % PANEL || s->key_dim % (16 * 2 * WIDE) ? "whole panels" : NULL;
}

/* The user's arrays as they lie in a cache. */
static void pack(contract_state *s) {
  const bench_shape *p = &s->shape;
  size_t size = bench_type_bytes(p->type);
  int64_t dim = p->key_dim;
  for (int64_t g = 0; g < p->kv_heads; g++)
    for (int64_t j = 0; j < p->keys; j++) {
      const char *k = (const char *)s->input->k.data + (size_t)((j * p->kv_heads + g) * dim) * size;
      const char *v = (const char *)s->input->v.data + (size_t)((j * p->kv_heads + g) * dim) * size;
      char *panel = (char *)s->keys.data + (size_t)((g * p->keys + j / PANEL * PANEL) * dim) * size;
      memcpy((char *)s->values.data + (size_t)((g * p->keys + j) * dim) * size, v,
             (size_t)dim * size);
      for (int64_t d = 0; d < dim; d++)
        memcpy(panel + (size_t)(d * PANEL + j % PANEL) * size, k + (size_t)d * size, size);
    }
}

static void *prepare(const bench_shape *shape, const bench_input *input) {
  contract_state *s = unsupported(shape) ? NULL : calloc(1, sizeof *s);
  if (!s) return NULL;
  int64_t rows = shape->queries * (shape->heads / shape->kv_heads), dim = shape->key_dim;
  s->shape = *shape;
  s->input = input;
  s->keys = bench_buffer_make(input->k.bytes);
  s->values = bench_buffer_make(input->v.bytes);
  s->out = bench_buffer_make((size_t)(rows * shape->kv_heads * dim) * sizeof(float));
  s->rows = rows < ROWS ? rows : ROWS;
  s->block = shape->queries > 1 ? BLOCK / 2 : BLOCK;
  s->n_tasks = (rows + s->rows - 1) / s->rows * shape->kv_heads;
  s->thread_floats = (size_t)(s->rows * (2 * dim + 2) + TILE * BLOCK);
  s->thread_floats = (s->thread_floats + 15) / 16 * 16;
  s->scratch = bench_buffer_make(s->thread_floats * sizeof(float) * THREADS);
  pack(s);
  return s;
}

static void release(void *state) {
  contract_state *s = state;
  bench_buffer_free(&s->keys);
  bench_buffer_free(&s->values);
  bench_buffer_free(&s->out);
  bench_buffer_free(&s->scratch);
  free(s);
}

/* ---- running ---- */

/* Rows first ... first + rows - 1 of a KV head: row r is query r / group of the group's head r %
   group. */
typedef struct item {
  int64_t kv_head, first, rows, group, before; /* before: keys that the first query sees */
  float *s, *q, *acc, *m, *l;
} item;

/* Of the user's queries, and of the outputs. */
static int64_t row_at(const contract_state *s, const item *it, int64_t r) {
  const bench_shape *p = &s->shape;
  r += it->first;
  return (r / it->group * p->heads + it->kv_head * it->group + r % it->group) * p->key_dim;
}

/* Tells that the rows of a tile will be needed. */
INLINE void fetch(const contract_state *s, const item *it, const bench_buffer *of, int64_t r) {
  for (int64_t end = r + TILE; r < end && r < it->rows; r++)
    for (int64_t d = 0; d < s->shape.key_dim; d += 16) {
      const float *at = (const float *)of->data + row_at(s, it, r) + d;
#if defined(__GNUC__)
      __builtin_prefetch(at);
#else
      (void)at;
#endif
    }
}

static void load_row(const contract_state *s, const item *it, int64_t r) {
  int64_t dim = s->shape.key_dim;
  const float *from = (const float *)s->input->q.data + row_at(s, it, r);
  lattn_v16_ scale = lattn_v_set_(1 / sqrtf((float)dim));
  for (int64_t d = 0; d < dim; d += 16) {
    lattn_v_store_(it->q + r * dim + d, lattn_v_mul_(lattn_v_load_(from + d), scale));
    lattn_v_store_(it->acc + r * dim + d, lattn_v_set_(0));
  }
  it->m[r] = -INFINITY;
  it->l[r] = 0;
}

static void finish_row(const contract_state *s, const item *it, int64_t r) {
  int64_t dim = s->shape.key_dim;
  float *to = (float *)s->out.data + row_at(s, it, r);
  lattn_v16_ by = lattn_v_set_(1 / it->l[r]);
  for (int64_t d = 0; d < dim; d += 16)
    lattn_v_store_(to + d, lattn_v_mul_(lattn_v_load_(it->acc + r * dim + d), by));
}

/* Rows r ... r + n - 1 against the block of keys that begins with `key`. Rows come and go between
   tiles, asked for one tile before: their memory and the multiply-adds work side by side. */
static void tile_run(const contract_state *s, const item *it, int64_t key, int64_t r, int n) {
  const bench_shape *p = &s->shape;
  int64_t dim = p->key_dim, seen = it->before + (it->first + r + n - 1) / it->group - key;
  size_t head = (size_t)(it->kv_head * p->keys * dim) * bench_type_bytes(p->type);
  if (seen <= 0) return;
  if (key == 0) fetch(s, it, &s->input->q, r + TILE);
  if (seen <= s->block) fetch(s, it, &s->out, r);
  for (int a = 0; key == 0 && a < n; a++) load_row(s, it, r + a);
  tile t = {it->q + r * dim,
            (const char *)s->keys.data + head,
            (const char *)s->values.data + head,
            dim,
            key,
            (int)(seen < s->block ? seen : s->block),
            it->s,
            it->acc + r * dim};
  tile_scores(n, p->type, &t);
  for (int a = 0; a < n; a++) {
    seen = it->before + (it->first + r + a) / it->group - key;
    softmax(it->s + a * BLOCK,
            seen < 0     ? 0
            : seen < t.n ? (int)seen
                         : t.n,
            t.n, it->m + r + a, it->l + r + a, it->acc + (r + a) * dim, dim);
  }
  tile_values(n, p->type, &t);
  for (int a = 0; seen <= s->block && a < n; a++) finish_row(s, it, r + a);
}

static void task_run(const contract_state *s, int64_t task, float *memory) {
  const bench_shape *p = &s->shape;
  int64_t dim = p->key_dim, group = p->heads / p->kv_heads, all = p->queries * group;
  int64_t blocks = s->n_tasks / p->kv_heads;
  item it = {.kv_head = task / blocks, .group = group, .s = memory};
  it.first = (blocks - 1 - task % blocks) * s->rows; /* those of most keys first */
  it.rows = all - it.first < s->rows ? all - it.first : s->rows;
  it.before = p->keys - p->queries + 1;
  it.q = memory + TILE * BLOCK;
  it.acc = it.q + s->rows * dim;
  it.m = it.acc + s->rows * dim;
  it.l = it.m + s->rows;
  for (int64_t key = 0; key < it.before + (it.first + it.rows - 1) / group; key += s->block)
    for (int64_t r = 0; r < it.rows; r += TILE)
      tile_run(s, &it, key, r, it.rows - r < TILE ? (int)(it.rows - r) : TILE);
}

static void thread_run(void *context, int32_t thread) {
  contract_state *s = context;
  float *memory = (float *)s->scratch.data + (size_t)thread * s->thread_floats;
  for (long long t; (t = atomic_fetch_add(&s->next, 1)) < s->n_tasks;) task_run(s, t, memory);
}

static double run(void *state, int32_t n_threads) {
  contract_state *s = state;
  bench_threads_set(n_threads);
  atomic_store(&s->next, 0);
  double start = bench_seconds();
  bench_parallel_for(NULL, n_threads, thread_run, s);
  return bench_seconds() - start;
}

static const float *row(void *state, int64_t query, int32_t head) {
  const contract_state *s = state;
  return (const float *)s->out.data + (query * s->shape.heads + head) * s->shape.value_dim;
}

static const bench_peer free_order = {
    .name = "free_order",
    .missing = missing,
    .unsupported = unsupported,
    .prepare = prepare,
    .run = run,
    .row = row,
    .release = release,
};

void bench_contract(const bench_options *options) {
  bench_shape shapes[] = {bench_shape_of("contract", 8, 8, 128, 2048, 2048, LATTN_F32),
                          bench_shape_of("contract", 2, 2, 128, 8192, 8192, LATTN_F32),
                          bench_shape_of("contract", 32, 8, 128, 1, 32768, LATTN_F16),
                          bench_shape_of("contract", 32, 32, 128, 1, 32768, LATTN_F16)};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    shapes[i].goal = 0.97;
    bench_report_two(options, &shapes[i], &bench_ours_attend, &free_order, 1e-4, 0);
  }
}
