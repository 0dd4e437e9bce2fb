/* limits.c - what this machine can do at most: multiply-adds a second, bytes read a second, and
 * bytes read and written back a second.
 * SPDX-License-Identifier: MIT

   Measured on the widest vectors that the compiler targets, as ours are: a build for AVX2 is held
   against what AVX2 can do. */
#include "bench.h"

#include <math.h>

#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#define CHAINS \
  24 /* latency 4 on 2 units asks for 8; 24 leave room for slower machines, in 32 registers */
typedef __m512 lane;
static inline lane lane_set(float x) { return _mm512_set1_ps(x); }
static inline lane lane_load(const float *p) { return _mm512_loadu_ps(p); }
static inline lane lane_add(lane a, lane b) { return _mm512_add_ps(a, b); }
static inline lane lane_fma(lane a, lane b, lane c) { return _mm512_fmadd_ps(a, b, c); }
static inline void lane_store(float *p, lane a) { _mm512_storeu_ps(p, a); }
#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LANES 8
#define CHAINS 12
typedef __m256 lane;
static inline lane lane_set(float x) { return _mm256_set1_ps(x); }
static inline lane lane_load(const float *p) { return _mm256_loadu_ps(p); }
static inline lane lane_add(lane a, lane b) { return _mm256_add_ps(a, b); }
static inline lane lane_fma(lane a, lane b, lane c) { return _mm256_fmadd_ps(a, b, c); }
static inline void lane_store(float *p, lane a) { _mm256_storeu_ps(p, a); }
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#define LANES 4
#define CHAINS 24
typedef float32x4_t lane;
static inline lane lane_set(float x) { return vdupq_n_f32(x); }
static inline lane lane_load(const float *p) { return vld1q_f32(p); }
static inline lane lane_add(lane a, lane b) { return vaddq_f32(a, b); }
static inline lane lane_fma(lane a, lane b, lane c) { return vfmaq_f32(c, a, b); }
static inline void lane_store(float *p, lane a) { vst1q_f32(p, a); }
#else
#define LANES 1
#define CHAINS 12
typedef float lane;
static inline lane lane_set(float x) { return x; }
static inline lane lane_load(const float *p) { return *p; }
static inline lane lane_add(lane a, lane b) { return a + b; }
#ifdef FP_FAST_FMAF
static inline lane lane_fma(lane a, lane b, lane c) { return fmaf(a, b, c); }
#else
static inline lane lane_fma(lane a, lane b, lane c) { return a * b + c; }
#endif
static inline void lane_store(float *p, lane a) { *p = a; }
#endif

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define UNROLL _Pragma("GCC unroll 32") /* without it the chains live in memory, not in registers */
#else
#define UNROLL
#endif

#define READ_BYTES ((size_t)1 << 30)
#define MAX_TASKS 64

static volatile float sink; /* what is not used is not computed */

typedef struct work {
  int64_t iterations;
  float *data; /* floats of each task, one after another */
  size_t floats;
  float sums[MAX_TASKS];
} work;

static float lane_total(const lane *a) {
  float parts[LANES], total = 0;
  lane sum = a[0];
  for (int i = 1; i < CHAINS; i++) sum = lane_add(sum, a[i]);
  lane_store(parts, sum);
  for (int i = 0; i < LANES; i++) total += parts[i];
  return total;
}

static void flops_task(void *context, int32_t index) {
  work *w = context;
  lane a[CHAINS], b = lane_set(0.999f + sink), c = lane_set(0.001f);
  UNROLL for (int i = 0; i < CHAINS; i++) a[i] = lane_set((float)(i + index));
  for (int64_t k = 0; k < w->iterations; k++) {
    UNROLL for (int i = 0; i < CHAINS; i++) a[i] = lane_fma(a[i], b, c);
  }
  w->sums[index] = lane_total(a);
}

static void read_task(void *context, int32_t index) {
  work *w = context;
  const float *p = w->data + (size_t)index * w->floats, *end = p + w->floats;
  lane a[CHAINS];
  UNROLL for (int i = 0; i < CHAINS; i++) a[i] = lane_set(0);
  for (; p + CHAINS * LANES <= end; p += CHAINS * LANES) {
    UNROLL for (int i = 0; i < CHAINS; i++) a[i] = lane_add(a[i], lane_load(p + i * LANES));
  }
  w->sums[index] = lane_total(a);
}

/* Each value times 1, plus 0, back to where it was. */
static void update_task(void *context, int32_t index) {
  work *w = context;
  float *p = w->data + (size_t)index * w->floats, *end = p + w->floats;
  lane b = lane_set(1 + sink), c = lane_set(sink);
  for (; p + CHAINS * LANES <= end; p += CHAINS * LANES) {
    UNROLL for (int i = 0; i < CHAINS; i++)
        lane_store(p + i * LANES, lane_fma(lane_load(p + i * LANES), b, c));
  }
  w->sums[index] = 1;
}

/* Seconds of n_threads tasks, side by side. */
static double timed(void (*task)(void *, int32_t), work *w, int32_t n_threads) {
  bench_threads_set(n_threads);
  double start = bench_seconds();
  bench_parallel_for(NULL, n_threads, task, w);
  double seconds = bench_seconds() - start;
  float total = 0;
  for (int32_t i = 0; i < n_threads; i++) total += w->sums[i];
  sink = total * 0;
  return seconds;
}

double bench_limit_flops(int32_t n_threads) {
  static int64_t iterations; /* for about 20 ms, found in the first call */
  work w = {0};
  if (n_threads > MAX_TASKS) n_threads = MAX_TASKS;
  for (w.iterations = 1 << 16; !iterations; w.iterations *= 2)
    if (timed(flops_task, &w, 1) > 0.01) iterations = 2 * w.iterations;
  w.iterations = iterations;
  double flops = 2.0 * LANES * CHAINS * (double)iterations * n_threads;
  return flops / timed(flops_task, &w, n_threads);
}

static bench_buffer read_buffer;

/* Bytes of the buffer that a task on each thread passes over, a second. */
static double passed(void (*task)(void *, int32_t), size_t bytes, int32_t n_threads) {
  if (!read_buffer.data) {
    read_buffer = bench_buffer_make(READ_BYTES);
    float *x = read_buffer.data;
    for (size_t i = 0; i < READ_BYTES / sizeof *x; i++)
      x[i] = 1; /* untouched pages are all one page */
  }
  if (n_threads > MAX_TASKS) n_threads = MAX_TASKS;
  work w = {0};
  w.data = read_buffer.data;
  w.floats = bytes / sizeof(float) / (size_t)n_threads;
  return (double)(w.floats * sizeof(float)) * n_threads / timed(task, &w, n_threads);
}

double bench_limit_read(int32_t n_threads) { return passed(read_task, READ_BYTES, n_threads); }

double bench_limit_update(int32_t n_threads) {
  return 2 * passed(update_task, READ_BYTES / 2, n_threads);
}

void bench_limits_free(void) { bench_buffer_free(&read_buffer); }
