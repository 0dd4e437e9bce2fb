/* blas.c - attention in two passes over a matrix of scores: product, softmax, product, with
 * OpenBLAS.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   What one writes who has a fast matrix product and nothing else, done with care: blocks of rows,
   so that the scores of a block stay small and of the keys after its last row none is computed;
   heads and blocks spread over the threads, each product on one thread, which OpenBLAS does best;
   an exponential that compilers vectorise. One query takes all query heads of its KV head in one
   product. Of a long prompt it computes a sample of the blocks, evenly spaced. */
#include "peer.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 }; /* of cblas.h */
enum { ROWS = 256, LANES = 16 };
/* A product of few rows takes so many keys at a time: packed, they fit into a core's cache. */
enum { FEW_ROWS = 32, PART = 256 };
#define SAMPLE_FLOPS 30e9 /* about the work of a third of a second */

static void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                     const float *a, int lda, const float *b, int ldb, float beta, float *c,
                     int ldc);
static void (*set_num_threads)(int n);
static const char *(*get_config)(void);

typedef struct blas_state {
  bench_shape shape;
  const bench_input *input;
  int64_t heads_a_task; /* one, or all of a KV head */
  int64_t n_tasks;      /* heads or KV heads, times blocks in the sample */
  int64_t blocks, step; /* blocks step / 2, step / 2 + step, ... are computed */
  double scale;         /* work of all blocks over work of those */
  int64_t row_floats;   /* of a row of scores, in multiples of LANES */
  bench_buffer scores;  /* [threads][ROWS][row_floats] */
  int32_t n_threads;    /* that have scores */
  bench_buffer out;     /* [queries][heads][value_dim] */
  atomic_llong next;    /* task */
} blas_state;

/* ---- the library ---- */

static const char *missing(void) {
  static const char *const names[] = {"libopenblas.so.0", "libopenblas.so", NULL};
  static const char *const needed[] = {"libquadmath.so.0", "libgfortran.so.5"};
  static const char *why = "missing";
  static int looked;
  if (looked++) return why;
  for (int i = 0; i < 2; i++) bench_library((const char *const[]){needed[i], NULL});
  unsetenv(
      "OPENBLAS_CORETYPE"); /* it knows best: some machines force the kernels of an older one */
  unsetenv("OPENBLAS_L2_SIZE");
  void *library = bench_library(names);
  if (!library) return why;
  if (!bench_function(library, "cblas_sgemm", &sgemm) ||
      !bench_function(library, "openblas_set_num_threads", &set_num_threads) ||
      !bench_function(library, "openblas_get_config", &get_config))
    return why = "found, but another version";
  set_num_threads(1); /* a thread of ours makes one product at a time */
  return why = NULL;
}

static const char *version(void) { return get_config(); }

static const char *unsupported(const bench_shape *s) {
  if (s->type != LATTN_F32) return "f32 only";
  if (s->streaming_heads) return "no streaming heads";
  return NULL;
}

/* ---- softmax ---- */

/* e^x for x <= 0, within a few roundings: 2^n times a polynomial of the rest. */
static inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  float n = x * 1.44269504f + 0x1.8p23f; /* rounds: the sum's last bit has the value 1 */
  uint32_t bits;
  memcpy(&bits, &n, sizeof bits);
  n -= 0x1.8p23f;
  float r = x - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f; /* |r| <= ln 2 / 2 */
  float p = 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1;
  p = p * r + 1;
  bits = (bits + 127) << 23; /* 2^n: the magic number's own bits leave at the top */
  memcpy(&n, &bits, sizeof n);
  return p * n;
}

/* The first `seen` scores become probabilities, those up to `columns`, of keys after the row,
   zero. Loops of LANES, which compilers make into vectors. */
static void softmax(float *x, int64_t seen, int64_t columns) {
  int64_t padded = (seen + LANES - 1) / LANES * LANES, all = (columns + LANES - 1) / LANES * LANES;
  float most[LANES], sum[LANES] = {0}, largest = -INFINITY, total = 0;
  for (int64_t j = seen; j < padded; j++) x[j] = -INFINITY;
  for (int i = 0; i < LANES; i++) most[i] = -INFINITY;
  for (int64_t j = 0; j < padded; j += LANES)
    for (int i = 0; i < LANES; i++) most[i] = x[j + i] > most[i] ? x[j + i] : most[i];
  for (int i = 0; i < LANES; i++) largest = most[i] > largest ? most[i] : largest;
  for (int64_t j = 0; j < padded; j += LANES)
    for (int i = 0; i < LANES; i++) {
      x[j + i] = exponential(x[j + i] - largest);
      sum[i] += x[j + i];
    }
  for (int i = 0; i < LANES; i++) total += sum[i];
  total = 1 / total;
  for (int64_t j = 0; j < padded; j += LANES)
    for (int i = 0; i < LANES; i++) x[j + i] *= total;
  memset(x + seen, 0, (size_t)(all - seen) * sizeof *x);
}

/* ---- a shape ---- */

static void *prepare(const bench_shape *shape, const bench_input *input) {
  blas_state *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->shape = *shape;
  s->input = input;
  s->heads_a_task = shape->queries == 1 ? shape->heads / shape->kv_heads : 1;
  s->blocks = (shape->queries + ROWS - 1) / ROWS;
  for (s->step = 1; s->step < s->blocks; s->step *= 2)
    if (bench_shape_flops(shape) / (double)s->step < SAMPLE_FLOPS) break;
  double all = 0, some = 0;
  int64_t n = 0;
  for (int64_t b = 0; b < s->blocks; b++) {
    int64_t last = (b + 1) * ROWS < shape->queries ? (b + 1) * ROWS : shape->queries;
    double keys = (double)(shape->keys - shape->queries + last);
    all += (double)(last - b * ROWS) * keys;
    if (b % s->step != s->step / 2) continue;
    some += (double)(last - b * ROWS) * keys;
    n++;
  }
  s->scale = all / some;
  s->n_tasks = n * (shape->heads / s->heads_a_task);
  s->row_floats = (shape->keys + LANES - 1) / LANES * LANES;
  s->out = bench_buffer_make((size_t)(shape->queries * shape->heads) * (size_t)shape->value_dim *
                             sizeof(float));
  return s;
}

static void release(void *state) {
  blas_state *s = state;
  bench_buffer_free(&s->scores);
  bench_buffer_free(&s->out);
  free(s);
}

/* ---- running ---- */

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows of a block: those of some queries and one head, or of some heads and one query. */
static void task_run(const blas_state *s, int64_t task, float *scores) {
  const bench_shape *p = &s->shape;
  int64_t n_heads = p->heads / s->heads_a_task;
  int64_t head = task % n_heads * s->heads_a_task;
  int64_t first = (task / n_heads * s->step + s->step / 2) * ROWS;
  int64_t n = p->queries - first < ROWS ? p->queries - first : ROWS;
  int64_t before = p->keys - p->queries + first, columns = before + n;
  int64_t group = p->heads / p->kv_heads, dk = p->key_dim, dv = p->value_dim;
  int64_t rows = s->heads_a_task > 1 ? s->heads_a_task : n;
  int64_t step = s->heads_a_task > 1 ? 1 : p->heads; /* from row to row, in heads */
  const float *q = (const float *)s->input->q.data + (first * p->heads + head) * dk;
  const float *k = (const float *)s->input->k.data + head / group * dk;
  const float *v = (const float *)s->input->v.data + head / group * dv;
  float *out = (float *)s->out.data + (first * p->heads + head) * dv;
  int ld = (int)s->row_floats, m = (int)rows;
  int64_t part = rows < FEW_ROWS ? PART : columns, ldk = p->kv_heads * dk, ldv = p->kv_heads * dv;
  for (int64_t j = 0; j < columns; j += part)
    sgemm(ROW_MAJOR, AS_IS, TRANSPOSED, m, (int)least(part, columns - j), (int)dk,
          1 / sqrtf((float)dk), q, (int)(step * dk), k + j * ldk, (int)ldk, 0, scores + j, ld);
  for (int64_t r = 0; r < rows; r++)
    softmax(scores + r * s->row_floats, p->queries == 1 ? columns : before + r + 1, columns);
  for (int64_t j = 0; j < columns; j += part)
    sgemm(ROW_MAJOR, AS_IS, AS_IS, m, (int)dv, (int)least(part, columns - j), 1, scores + j, ld,
          v + j * ldv, (int)ldv, j > 0, out, (int)(step * dv));
}

/* A thread's share: task after task, with scores of its own. */
static void thread_run(void *context, int32_t thread) {
  blas_state *s = context;
  float *scores = (float *)s->scores.data + (int64_t)thread * ROWS * s->row_floats;
  for (long long t; (t = atomic_fetch_add(&s->next, 1)) < s->n_tasks;) task_run(s, t, scores);
}

static double run(void *state, int32_t n_threads) {
  blas_state *s = state;
  if (s->n_threads < n_threads) {
    bench_buffer_free(&s->scores);
    s->scores =
        bench_buffer_make((size_t)(n_threads * ROWS) * (size_t)s->row_floats * sizeof(float));
    s->n_threads = n_threads;
  }
  bench_threads_set(n_threads);
  atomic_store(&s->next, 0);
  double start = bench_seconds();
  bench_parallel_for(NULL, n_threads, thread_run, s);
  return (bench_seconds() - start) * s->scale;
}

static const float *row(void *state, int64_t query, int32_t head) {
  const blas_state *s = state;
  if (query / ROWS % s->step != s->step / 2) return NULL;
  return (const float *)s->out.data + (query * s->shape.heads + head) * s->shape.value_dim;
}

const bench_peer bench_openblas = {
    .name = "blas",
    .missing = missing,
    .unsupported = unsupported,
    .prepare = prepare,
    .run = run,
    .row = row,
    .release = release,
    .version = version,
};
