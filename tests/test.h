/* test.h - what every test program shares: cases and checks, random numbers, element types, buffers
 * between guard pages, parallel_for hooks, hashes.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A test program begins

       #include "test.h"               (first: it chooses the POSIX names of the system headers)
       #define LONGATTN_IMPLEMENTATION
       #include "longattn.h"

   and its main is: case after case, then `return test_summary();`. Link with -lm and -pthread.

       check_case("name %d", i);      opens a case; everything until the next one belongs to it
       CHECK(condition);              a failed check prints file, line, the condition and the case
       CHECK_STATUS(call, LATTN_OK);  the same for a status

   TIER=quick in the environment makes test_count(n) a twentieth of n. The levels share all code
   above the vector layer: AVX2 takes half as many as AVX-512, plain C, which is slow, a fifth. */
#ifndef TEST_H
#define TEST_H

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1
#endif
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifndef MAP_ANONYMOUS
#error "include test.h before any other header"
#endif

#include "longattn.h"

#if defined(__GNUC__)
#define TEST_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define TEST_PRINTF(text, first)
#endif

/* ---- cases and checks ---- */

enum { TEST_PRINTED_MAX = 40, TEST_PRINTED_PER_CASE = 3 };

typedef struct test_state {
  long passed, failed; /* cases */
  int open;            /* a case is open */
  int case_failed;     /* checks that failed in it */
  int printed;         /* failures printed so far */
  char name[512];      /* the open case */
} test_state;

static test_state test_global;

static inline void test_close_case(void) {
  if (test_global.open && test_global.case_failed) test_global.failed++;
  else if (test_global.open) test_global.passed++;
  test_global.open = 0;
  test_global.case_failed = 0;
}

/* Opens a case; the name is what reproduces it (a seed, a line of options). */
static inline void TEST_PRINTF(1, 2) check_case(const char *format, ...) {
  va_list arguments;
  test_close_case();
  va_start(arguments, format);
  vsnprintf(test_global.name, sizeof test_global.name, format, arguments);
  va_end(arguments);
  test_global.open = 1;
}

/* Notes a failure of the open case. */
static inline void TEST_PRINTF(3, 4)
    test_fail(const char *file, int line, const char *format, ...) {
  va_list arguments;
  if (!test_global.open) check_case("(no case)");
  test_global.case_failed++;
  if (test_global.case_failed > TEST_PRINTED_PER_CASE) return;
  if (test_global.printed++ >= TEST_PRINTED_MAX) return;
  printf("%s:%d: ", file, line);
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  printf("\n    case: %s\n", test_global.name);
  fflush(stdout);
}

static inline int test_check(int ok, const char *file, int line, const char *text) {
  if (!ok) test_fail(file, line, "expected %s", text);
  return ok;
}

static inline int test_check_status(lattn_status got, lattn_status want, const char *file, int line,
                                    const char *text) {
  if (got != want)
    test_fail(file, line, "%s is %d (%s), expected %d (%s)", text, (int)got, lattn_status_text(got),
              (int)want, lattn_status_text(want));
  return got == want;
}

static inline int test_check_i64(int64_t got, int64_t want, const char *file, int line,
                                 const char *text) {
  if (got != want) test_fail(file, line, "%s is %" PRId64 ", expected %" PRId64, text, got, want);
  return got == want;
}

#define CHECK(condition) test_check(!!(condition), __FILE__, __LINE__, #condition)
#define CHECK_STATUS(got, want) test_check_status((got), (want), __FILE__, __LINE__, #got)
#define CHECK_I64(got, want) test_check_i64((got), (want), __FILE__, __LINE__, #got)
#define FAIL(...) test_fail(__FILE__, __LINE__, __VA_ARGS__)

/* Prints the line that ends every test program; its value is main's. */
static inline int test_summary(void) {
  test_close_case();
  if (test_global.printed > TEST_PRINTED_MAX)
    printf("... and %d more failed checks\n", test_global.printed - TEST_PRINTED_MAX);
  printf("%ld passed, %ld failed\n", test_global.passed, test_global.failed);
  return test_global.failed != 0;
}

static inline int test_is_quick(void) {
  const char *tier = getenv("TIER");
  return tier && strcmp(tier, "quick") == 0;
}

/* How many random cases to run, of so many in the full tier. */
static inline int64_t test_count(int64_t full) {
  const char *name = lattn_simd_name();
  int64_t part = strcmp(name, "scalar") ? strcmp(name, "avx2") ? 1 : 2 : 5;
  if (test_is_quick()) part = 20;
  return (full + part - 1) / part;
}

/* Where the seeds of a test begin whose subject lies above the vectors: every level has its own,
   and all levels together are the test. */
static inline uint64_t test_first_seed(void) {
  const char *name = lattn_simd_name();
  return strcmp(name, "scalar") ? strcmp(name, "avx2") ? 1 : 1001 : 2001;
}

/* ---- random numbers: xoshiro256** (Blackman and Vigna), seeded by splitmix64. Floats are made
   from integers by exact operations: no compiler's contraction changes a test's input ---- */

typedef struct test_rng {
  uint64_t s[4];
} test_rng;

static inline test_rng rng_seed(uint64_t seed) {
  test_rng r;
  for (int i = 0; i < 4; i++) {
    uint64_t z = seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    r.s[i] = z ^ (z >> 31);
  }
  return r;
}

static inline uint64_t rng_u64(test_rng *r) {
  uint64_t *s = r->s, t = s[1] << 17, m = s[1] * 5;
  uint64_t result = ((m << 7) | (m >> 57)) * 9;
  s[2] ^= s[0];
  s[3] ^= s[1];
  s[1] ^= s[2];
  s[0] ^= s[3];
  s[2] ^= t;
  s[3] = (s[3] << 45) | (s[3] >> 19);
  return result;
}

/* Uniform in 0 ... n - 1; n >= 1. */
static inline int64_t rng_below(test_rng *r, int64_t n) {
  return (int64_t)((rng_u64(r) >> 1) % (uint64_t)n);
}

/* Uniform in low ... high, both included. */
static inline int64_t rng_range(test_rng *r, int64_t low, int64_t high) {
  return low + rng_below(r, high - low + 1);
}

/* True in `percent` of the cases. */
static inline int rng_chance(test_rng *r, int percent) { return rng_below(r, 100) < percent; }

/* Uniform in [-1, 1), a multiple of 2^-23. */
static inline float rng_uniform(test_rng *r) {
  return (float)((int64_t)(rng_u64(r) >> 40) - 8388608) * 0x1p-23f;
}

/* Near a standard normal: the sum of four 16-bit numbers, scaled to variance 1 (24 bits: exact). */
static inline float rng_normal(test_rng *r) {
  uint64_t x = rng_u64(r);
  int64_t sum = (int64_t)(x & 65535) + (int64_t)((x >> 16) & 65535) + (int64_t)((x >> 32) & 65535) +
                (int64_t)(x >> 48) - 131070;
  return (float)(sum * 111) * 0x1p-22f; /* 131070 * 111 < 2^24: exact */
}

/* ---- element types, on bits ---- */

static inline uint32_t bits_of_f32(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}

static inline float f32_of_bits(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}

static inline float f32_of_bf16(uint16_t h) { return f32_of_bits((uint32_t)h << 16); }

static inline uint16_t bf16_of_f32(float x) {
  uint32_t u = bits_of_f32(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 64); /* NaN stays NaN */
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

static inline float f32_of_f16(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, m = h & 1023u;
  if (exponent == 31) return f32_of_bits(sign | 0x7f800000u | (m << 13));
  if (exponent) return f32_of_bits(sign | ((exponent + 112) << 23) | (m << 13));
  return (sign ? -1.0f : 1.0f) * (float)m * 0x1p-24f;
}

static inline uint16_t f16_of_f32(float x) {
  uint32_t u = bits_of_f32(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* >= 65520 rounds to infinity */
  if (a >= 0x38800000u) {                                  /* normal: >= 2^-14 */
    a -= 112u << 23;
    return (uint16_t)(sign | ((a + 0xfffu + ((a >> 13) & 1)) >> 13));
  }
  if (a < 0x33000000u) return (uint16_t)sign;                        /* < 2^-25 */
  uint32_t shift = 126 - (a >> 23), m = (a & 0x7fffffu) | 0x800000u; /* in units of 2^-24 */
  uint32_t whole = m >> shift, rest = m & ((1u << shift) - 1), half = 1u << (shift - 1);
  return (uint16_t)(sign | (whole + (rest > half || (rest == half && (whole & 1)))));
}

static inline size_t type_bytes(int32_t type) { return type == LATTN_F32 || !type ? 4 : 2; }

static inline const char *type_name(int32_t type) {
  return type == LATTN_F16 ? "f16" : type == LATTN_BF16 ? "bf16" : "f32";
}

/* Element `index` of an array of any alignment. */
static inline float element_get(const void *data, int32_t type, int64_t index) {
  const char *at = (const char *)data + index * (int64_t)type_bytes(type);
  uint32_t u = 0;
  uint16_t h = 0;
  if (type_bytes(type) == 4) memcpy(&u, at, sizeof u);
  else memcpy(&h, at, sizeof h);
  return type == LATTN_F16 ? f32_of_f16(h) : type == LATTN_BF16 ? f32_of_bf16(h) : f32_of_bits(u);
}

/* Writes x rounded to `type`. */
static inline void element_set(void *data, int32_t type, int64_t index, float x) {
  char *at = (char *)data + index * (int64_t)type_bytes(type);
  uint32_t u = bits_of_f32(x);
  uint16_t h = type == LATTN_F16 ? f16_of_f32(x) : bf16_of_f32(x);
  if (type_bytes(type) == 4) memcpy(at, &u, sizeof u);
  else memcpy(at, &h, sizeof h);
}

/* ---- views ---- */

/* Views hold pointers to const; tests also write through them. */
static inline void *test_writable(const void *p) { return (void *)(uintptr_t)p; }

/* A contiguous view. */
static inline lattn_tensor tensor_of(const void *data, int32_t type, int64_t n_tokens,
                                     int64_t n_heads, int64_t dim) {
  lattn_tensor t = {data, type, 0, n_tokens, n_heads, dim, 0, 0};
  return t;
}

/* Index of element (token, head, 0), defaults and LATTN_BROADCAST resolved. */
static inline int64_t tensor_index(const lattn_tensor *t, int64_t token, int64_t head) {
  int64_t by_head = t->stride_head == LATTN_BROADCAST ? 0 : t->stride_head;
  int64_t by_token = t->stride_token == LATTN_BROADCAST ? 0 : t->stride_token;
  if (!t->stride_head) by_head = t->dim;
  if (!t->stride_token) by_token = t->n_heads * (t->stride_head ? by_head : t->dim);
  return token * by_token + head * by_head;
}

static inline float tensor_get(const lattn_tensor *t, int64_t token, int64_t head, int64_t dim) {
  return element_get(t->data, t->type, tensor_index(t, token, head) + dim);
}

/* ---- buffers between guard pages ----
   The data ends at the upper guard page, or begins at the lower one; the slack on the other side is
   filled with a canary, checked when the buffer is given back. */

typedef struct test_guard {
  char *map; /* the mapping: guard page, pages, guard page */
  size_t map_bytes;
  char *data;
  size_t bytes;
} test_guard;

enum { TEST_CANARY = 0xa5 };

static inline size_t test_page(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* `offset` bytes from the guard page on the flush side (0 = flush): misaligned pointers. */
static inline test_guard guard_alloc_at(size_t bytes, int at_end, size_t offset) {
  size_t page = test_page(), body = (bytes + offset + page - 1) / page * page;
  test_guard g;
  if (!body) body = page;
  g.map_bytes = body + 2 * page;
  g.map =
      (char *)mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (g.map == (char *)MAP_FAILED) {
    printf("out of memory (%zu bytes)\n", g.map_bytes);
    exit(1);
  }
  g.bytes = bytes;
  g.data = at_end ? g.map + page + body - bytes - offset : g.map + page + offset;
  memset(g.map + page, TEST_CANARY, (size_t)(g.data - g.map) - page);
  memset(g.data + bytes, TEST_CANARY, (size_t)(g.map + page + body - (g.data + bytes)));
  mprotect(g.map, page, PROT_NONE);
  mprotect(g.map + page + body, page, PROT_NONE);
  return g;
}

static inline test_guard guard_alloc(size_t bytes, int at_end) {
  return guard_alloc_at(bytes, at_end, 0);
}

/* Makes the buffer read-only, or writable again: an input must not be written. */
static inline void guard_read_only(const test_guard *g, int read_only) {
  size_t page = test_page();
  mprotect(g->map + page, g->map_bytes - 2 * page, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
}

/* Gives the buffer back; false when something was written beside the data. */
static inline int guard_free(test_guard *g) {
  size_t page = test_page();
  const char *end;
  int intact = 1;
  if (!g->map) return 1;
  end = g->map + g->map_bytes - page;
  for (const char *p = g->map + page; p < g->data; p++) intact &= (unsigned char)*p == TEST_CANARY;
  for (const char *p = g->data + g->bytes; p < end; p++) intact &= (unsigned char)*p == TEST_CANARY;
  munmap(g->map, g->map_bytes);
  g->map = NULL;
  return intact;
}

/* ---- parallel_for hooks ---- */

typedef void (*test_task)(void *context, int32_t index);

/* One after another, in an order that is neither forward nor backward. */
static inline void test_parallel_scrambled(void *pool, int32_t n_tasks, test_task task,
                                           void *context) {
  int64_t step = 7919; /* prime, so coprime to n_tasks unless a multiple of it */
  (void)pool;
  if (n_tasks % step == 0) step = 1;
  for (int64_t i = 0; i < n_tasks; i++)
    task(context, (int32_t)((i * step + n_tasks / 2) % n_tasks));
}

typedef struct test_crew {
  pthread_mutex_t lock;
  int32_t next, n_tasks;
  test_task task;
  void *context;
} test_crew;

static inline void *test_crew_run(void *argument) {
  test_crew *crew = (test_crew *)argument;
  for (;;) {
    pthread_mutex_lock(&crew->lock);
    int32_t i = crew->next < crew->n_tasks ? crew->next++ : -1;
    pthread_mutex_unlock(&crew->lock);
    if (i < 0) return NULL;
    crew->task(crew->context, i);
  }
}

/* Real threads: up to 7 a call, beside the caller's. */
static inline void test_parallel_threads(void *pool, int32_t n_tasks, test_task task,
                                         void *context) {
  test_crew crew = {PTHREAD_MUTEX_INITIALIZER, 0, n_tasks, task, context};
  pthread_t threads[7];
  int n = 0;
  (void)pool;
  while (n < 7 && n + 1 < n_tasks && !pthread_create(&threads[n], NULL, test_crew_run, &crew)) n++;
  test_crew_run(&crew);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
}

/* ---- hashes: FNV-1a, 64 bits; start from HASH_SEED ---- */

#define HASH_SEED 0xcbf29ce484222325u

static inline uint64_t hash_bytes(uint64_t hash, const void *data, size_t bytes) {
  const unsigned char *p = (const unsigned char *)data;
  for (size_t i = 0; i < bytes; i++) hash = (hash ^ p[i]) * 0x100000001b3u;
  return hash;
}

/* The four bytes of u, lowest first: the same hash on every machine. */
static inline uint64_t hash_u32(uint64_t hash, uint32_t u) {
  for (int i = 0; i < 4; i++) hash = (hash ^ ((u >> 8 * i) & 255)) * 0x100000001b3u;
  return hash;
}

/* The rows of a view, element by element; all NaNs count as one (their bits are not promised). */
static inline uint64_t hash_tensor(uint64_t hash, const lattn_tensor *t) {
  for (int64_t i = 0; i < t->n_tokens; i++)
    for (int64_t h = 0; h < t->n_heads; h++)
      for (int64_t d = 0; d < t->dim; d++) {
        float x = tensor_get(t, i, h, d);
        uint32_t u = bits_of_f32(x);
        if ((u & 0x7fffffffu) > 0x7f800000u) u = 0x7fc00000u;
        hash = hash_u32(hash, u);
      }
  return hash;
}

static inline uint64_t hash_f32(uint64_t hash, const float *x, int64_t n) {
  lattn_tensor t = tensor_of(x, LATTN_F32, n, 1, 1);
  return hash_tensor(hash, &t);
}

/* Bits that differ, NaNs counted as one. */
static inline int same_f32(float a, float b) {
  uint32_t u = bits_of_f32(a), w = bits_of_f32(b);
  return u == w || ((u & 0x7fffffffu) > 0x7f800000u && (w & 0x7fffffffu) > 0x7f800000u);
}

#endif /* TEST_H */
