/* threads.c - caches of one pool from several threads: attends run beside each other, and beside a
 * change of another cache of the pool, also of one that shares pages; the bits are those of being
 * alone. Built with -fsanitize=thread, it also shows that no two threads touch the same memory, but
 * to read it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"
#include "profile_cases.h"

enum { N_CACHES = 5, PREFIX = 300, OWN = 40, TEXT = PREFIX + N_CACHES * OWN + 200, ROWS = 3 };

/* A pool with caches that share a prefix: the first is the parent, the others are its forks (and
   forks of forks), each then with tokens of its own. */
typedef struct family {
  setup s;
  token_list tokens;
  void *arena;
  lattn_pool *pool;
  lattn_cache *caches[N_CACHES];
  int64_t n_tokens[N_CACHES];
  int64_t used; /* tokens of the list that are in some cache */
} family;

static void family_setup(setup *s, uint64_t kind) {
  setup_init(s, 4, 2, 8, 6, TEXT);
  if (kind & 1) setup_stream(s, 1, 4, 60, 10, LATTN_POSITIONS_DEFAULT);
  if (kind & 16) setup_compensate(s, 1, LATTN_HEAD_LOST);
  if (kind & 16) s->heads[1].mark = LATTN_PROMPT_END;
  if (kind & 2) setup_rotate(s, LATTN_ROTARY_HALF_SPLIT, 0, 8);
  s->config.key_type = kind & 4 ? LATTN_F16 : LATTN_F32;
  s->config.value_type = kind & 4 ? LATTN_BF16 : LATTN_F32;
  s->config.max_append = 64;
  s->config.max_drafts = 4;
}

static void *page_alloc(void *user, size_t bytes, size_t alignment) {
  (void)user;
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

static void page_free(void *user, void *page, size_t bytes) {
  (void)user, (void)bytes;
  free(page);
}

/* Extends with the next tokens of the list; out and lse may be NULL. */
static lattn_status grow(family *f, lattn_cache *cache, int64_t first, int64_t n, float *out,
                         float *lse) {
  int64_t heads = setup_heads(&f->s), dim = setup_value_dim(&f->s);
  float *rows = out ? out : (float *)ref_memory(n * heads * dim, sizeof *rows);
  lattn_status status = lattn_cache_extend(
      cache, NULL, tokens_q(&f->tokens, &f->s, first, n), tokens_k(&f->tokens, &f->s, first, n),
      tokens_v(&f->tokens, &f->s, first, n), tensor_of(rows, LATTN_F32, n, heads, dim), lse, NULL);
  if (!out) free(rows);
  return status;
}

static void family_open(family *f, uint64_t kind) {
  lattn_pool_config config;
  test_rng r = rng_seed(kind + 1);
  size_t bytes;
  memset(f, 0, sizeof *f);
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  if (kind & 8) config.alloc = page_alloc;
  if (kind & 8) config.free = page_free;
  family_setup(&f->s, kind);
  f->tokens = tokens_new(&f->s, TEXT);
  tokens_make(&f->tokens, TEXT, &r);
  bytes = 2 * lattn_pool_bytes(&config, &f->s.config, N_CACHES + 1);
  f->arena = ref_memory((int64_t)bytes, 1);
  CHECK_STATUS(lattn_pool_init(&f->pool, f->arena, bytes, &config), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&f->caches[0], f->pool, &f->s.config), LATTN_OK);
  CHECK_STATUS(grow(f, f->caches[0], 0, PREFIX, NULL, NULL), LATTN_OK);
  f->used = f->n_tokens[0] = PREFIX;
  for (int i = 1; i < N_CACHES; i++) {
    CHECK_STATUS(lattn_cache_fork(&f->caches[i], f->caches[i / 2]), LATTN_OK);
    f->n_tokens[i] = f->n_tokens[i / 2];
    if (i == 2) continue; /* one shares all of its pages */
    CHECK_STATUS(grow(f, f->caches[i], f->used, OWN, NULL, NULL), LATTN_OK);
    f->n_tokens[i] += OWN;
    f->used += OWN;
  }
}

static void family_close(family *f) {
  lattn_pool_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  for (int i = 0; i < N_CACHES; i++) CHECK_STATUS(lattn_cache_release(f->caches[i]), LATTN_OK);
  CHECK_STATUS(lattn_pool_stats_get(f->pool, &stats), LATTN_OK);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.n_caches, 0);
  tokens_free(&f->tokens);
  free(f->arena);
}

/* ---- what one thread does. No check can be noted in a thread: it counts what went wrong ---- */

typedef struct worker {
  family *f;
  int first_cache, n_caches; /* attends over caches first ... in turn; 0: it changes caches[0] */
  int n_rounds;
  const uint64_t *alone; /* [N_CACHES]: hash of each cache's attend */
  uint64_t changed;      /* hash of all rows of the extends */
  pthread_barrier_t *start;
  int wrong;
} worker;

static int32_t save_hash(void *user, const void *data, size_t bytes) {
  uint64_t *hash = (uint64_t *)user;
  *hash = hash_bytes(*hash, data, bytes);
  return 0;
}

/* The newest rows of the cache, read in all ways that take a const cache, but for
   lattn_cache_stats_get: it counts what is shared. */
static uint64_t look(const family *f, int c, int *wrong) {
  float out[ROWS * 4 * 6], lse[ROWS * 4], k[8], v[6];
  const lattn_cache *cache = f->caches[c];
  lattn_cache_head_stats head;
  lattn_tensor q = tokens_q(&f->tokens, &f->s, 17, ROWS);
  lattn_tensor view = tensor_of(out, LATTN_F32, ROWS, 4, 6);
  uint64_t hash = HASH_SEED;
  memset(&head, 0, sizeof head);
  head.size = sizeof head;
  *wrong += lattn_cache_attend(cache, NULL, q, view, lse, NULL) != LATTN_OK;
  hash = hash_tensor(hash, &view);
  hash = hash_f32(hash, lse, ROWS * 4);
  *wrong += lattn_cache_head_stats_get(cache, 1, &head) != LATTN_OK;
  hash = hash_bytes(hash, &head.first_token, sizeof head.first_token);
  *wrong += lattn_cache_save(cache, save_hash, &hash, NULL) != LATTN_OK;
  *wrong += lattn_cache_read(cache, 1, f->n_tokens[c] - 1, tensor_of(k, LATTN_F32, 1, 1, 8),
                             tensor_of(v, LATTN_F32, 1, 1, 6), LATTN_READ_UNROTATED) != LATTN_OK;
  hash = hash_f32(hash, k, 8);
  return hash_f32(hash, v, 6);
}

/* Everything that changes a cache: grows past pages that forks hold, goes back, drafts, forks. */
static uint64_t change(family *f, int n_rounds, int *wrong) {
  float out[16 * 4 * 6], lse[16 * 4];
  lattn_cache *cache = f->caches[0], *fork = NULL;
  lattn_checkpoint *checkpoint = NULL;
  lattn_tensor view = tensor_of(out, LATTN_F32, 1, 4, 6);
  uint64_t hash = HASH_SEED;
  const int64_t at = f->used;
  int32_t path = 0;
  *wrong += lattn_cache_checkpoint(&checkpoint, cache) != LATTN_OK;
  for (int round = 0; round < n_rounds; round++) {
    for (int64_t i = 0; i < 6; i++) {
      *wrong += grow(f, cache, at + 16 * i, 16, out, lse) != LATTN_OK;
      hash = hash_f32(hash, out, 16 * 4 * 6);
      hash = hash_f32(hash, lse, 16 * 4);
    }
    *wrong += lattn_cache_draft(cache, NULL, NULL, tokens_q(&f->tokens, &f->s, at, 1),
                                tokens_k(&f->tokens, &f->s, at, 1),
                                tokens_v(&f->tokens, &f->s, at, 1), view, lse, NULL) != LATTN_OK;
    hash = hash_f32(hash, out, 4 * 6);
    *wrong += lattn_cache_accept(cache, 1, &path) != LATTN_OK;
    *wrong += lattn_cache_truncate(cache, PREFIX + 6 * 16 - 3) != LATTN_OK;
    if (setup_waits(&f->s)) *wrong += lattn_cache_mark(cache, LATTN_PROMPT_END, NULL) != LATTN_OK;
    else *wrong += lattn_cache_remove(cache, PREFIX + 40, PREFIX + 42) != LATTN_OK;
    *wrong += lattn_cache_fork(&fork, cache) != LATTN_OK;
    *wrong += grow(f, fork, at, 16, out, lse) != LATTN_OK;
    hash = hash_f32(hash, out, 16 * 4 * 6);
    *wrong += lattn_cache_release(fork) != LATTN_OK;
    *wrong += lattn_cache_rollback(cache, checkpoint) != LATTN_OK;
  }
  *wrong += lattn_checkpoint_release(checkpoint) != LATTN_OK;
  return hash;
}

static void *worker_run(void *argument) {
  worker *w = (worker *)argument;
  pthread_barrier_wait(w->start);
  if (!w->n_caches) w->changed = change(w->f, w->n_rounds, &w->wrong);
  for (int i = 0; i < w->n_rounds * w->n_caches; i++) {
    int c = w->first_cache + i % w->n_caches;
    w->wrong += look(w->f, c, &w->wrong) != w->alone[c];
  }
  return NULL;
}

/* Runs n workers at once; returns what went wrong. */
static int workers_run(worker *workers, int n) {
  pthread_barrier_t start;
  pthread_t threads[8];
  int wrong = 0;
  if (pthread_barrier_init(&start, NULL, (unsigned)n)) exit(1);
  for (int i = 0; i < n; i++) {
    workers[i].start = &start;
    if (pthread_create(&threads[i], NULL, worker_run, &workers[i])) exit(1);
  }
  for (int i = 0; i < n; i++) {
    pthread_join(threads[i], NULL);
    wrong += workers[i].wrong;
  }
  pthread_barrier_destroy(&start);
  return wrong;
}

static void looks_alone(const family *f, uint64_t *alone) {
  int wrong = 0;
  for (int c = 0; c < N_CACHES; c++) alone[c] = look(f, c, &wrong);
  CHECK(wrong == 0);
}

/* Nothing changes the pool: all look at all of its caches. */
static void test_looks(uint64_t kind, int n_threads) {
  uint64_t alone[N_CACHES];
  worker workers[8];
  family f;
  check_case("%d threads look at forks, kind %d", n_threads, (int)kind);
  family_open(&f, kind);
  looks_alone(&f, alone);
  CHECK(alone[1] != alone[3]);
  memset(workers, 0, sizeof workers);
  for (int i = 0; i < n_threads; i++) {
    workers[i].f = &f;
    workers[i].n_caches = N_CACHES;
    workers[i].n_rounds = (int)test_count(20) + 3;
    workers[i].alone = alone;
  }
  CHECK_I64(workers_run(workers, n_threads), 0);
  family_close(&f);
}

/* One thread changes the parent; the others look at its forks. */
static void test_changes(uint64_t kind, int n_threads) {
  uint64_t alone[N_CACHES], again[N_CACHES], changed;
  int n_rounds = (int)test_count(20) + 3, wrong = 0;
  worker workers[8];
  family f;
  check_case("%d threads, one changes what the others share, kind %d", n_threads, (int)kind);
  family_open(&f, kind);
  changed = change(&f, n_rounds, &wrong);
  CHECK_I64(wrong, 0);
  looks_alone(&f, alone);
  memset(workers, 0, sizeof workers);
  for (int i = 0; i < n_threads; i++) {
    workers[i].f = &f;
    workers[i].first_cache = 1;
    workers[i].n_caches = i ? N_CACHES - 1 : 0;
    workers[i].n_rounds = n_rounds;
    workers[i].alone = alone;
  }
  CHECK_I64(workers_run(workers, n_threads), 0);
  CHECK(workers[0].changed == changed);
  looks_alone(&f, again);
  CHECK(memcmp(alone, again, sizeof alone) == 0);
  family_close(&f);
}

/* ---- threads within a call ---- */

/* Hash of all rows, and of what they lost, of compensated heads, two of which wait for a mark. */
static uint64_t compensated_hash(int32_t n_threads) {
  enum { N = 420, MARK = 260, ROW = 8 * 6 };
  static float out[N * ROW], lse[N * 8], bound[N * 8], estimate[N * 8];
  lattn_call call = {.size = sizeof call, .lost_bound = bound, .lost_estimate = estimate};
  lattn_exec exec = {.size = sizeof exec, .n_threads = n_threads};
  lattn_pool *pool = NULL;
  lattn_cache *cache = NULL;
  test_rng rng = rng_seed(5);
  uint64_t hash = HASH_SEED;
  setup s;
  setup_init(&s, 8, 4, 8, 6, N);
  setup_rotate(&s, LATTN_ROTARY_HALF_SPLIT, 0, 8);
  for (int g = 0; g < 4; g++) {
    setup_stream(&s, g, 4, 20 + 30 * g, 0, 0);
    setup_compensate(&s, g, LATTN_HEAD_LOST | (g & 1 ? LATTN_HEAD_VARIANCE : 0));
    if (g > 1) s.heads[g].mark = LATTN_PROMPT_END;
  }
  token_list t = tokens_new(&s, N);
  tokens_make(&t, N, &rng);
  size_t bytes = lattn_pool_bytes(NULL, &s.config, 1);
  void *arena = ref_memory((int64_t)bytes, 1);
  CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&cache, pool, &s.config), LATTN_OK);
  exec.scratch_bytes = lattn_cache_scratch(&s.config, N, n_threads);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  if (n_threads > 1) exec.parallel_for = test_parallel_threads;
  for (int64_t first = 0; first < N; first += first < MARK ? MARK : N - MARK) {
    int64_t n = first < MARK ? MARK : N - MARK;
    lattn_tensor to = tensor_of(out, LATTN_F32, n, 8, 6);
    if (first) CHECK_STATUS(lattn_cache_mark(cache, LATTN_PROMPT_END, &exec), LATTN_OK);
    CHECK_STATUS(
        lattn_cache_extend(cache, &call, tokens_q(&t, &s, first, n), tokens_k(&t, &s, first, n),
                           tokens_v(&t, &s, first, n), to, lse, &exec),
        LATTN_OK);
    hash = hash_f32(hash, out, n * ROW);
    hash = hash_f32(hash, lse, n * 8);
    hash = hash_f32(hash, bound, n * 8);
    hash = hash_f32(hash, estimate, n * 8);
  }
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  free(exec.scratch);
  free(arena);
  tokens_free(&t);
  return hash;
}

static void test_compensated(void) {
  uint64_t one = compensated_hash(1);
  for (int32_t n = 2; n <= 5; n++) {
    check_case("compensated heads and a mark, %d threads", (int)n);
    CHECK(compensated_hash(n) == one);
  }
}

int main(void) {
  for (uint64_t kind = 0; kind < 20; kind++) {
    uint64_t which = kind < 16 ? kind : 17 + 4 * (kind - 16); /* one head compensated */
    test_looks(which, kind & 1 ? 4 : 2);
    test_changes(which, kind & 1 ? 2 : 4);
  }
  for (uint64_t i = 1; i < 3; i++) {
    check_case("profile and calibration %d on threads", (int)i);
    CHECK(profile_case_hash(i, 0, 5) == profile_case_hash(i, 0, 1));
  }
  test_compensated();
  return test_summary();
}
