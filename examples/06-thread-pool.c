/* cc -O2 -march=native -I.. 06-thread-pool.c -o 06-thread-pool -pthread && ./06-thread-pool
 * Your engine's own threads: workers that live as long as the engine and sleep between calls,
 * handed to the library as exec.parallel_for. The first 80 lines are the pool: copy them, or use
 * yours.
 * Prints: 1000 tokens of prefill, 100 of decode: 3 workers and the caller give the bits of one
 * thread: yes */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKERS = 3 };

/* One job at a time; all fields are under the lock. */
typedef struct workers {
  pthread_mutex_t lock;
  pthread_cond_t work, done; /* a job has come, or the end; the last task of a job is done */
  void (*task)(void *context, int32_t index);
  void *context;
  int32_t next, n_tasks, n_done; /* tasks taken, in all, and finished */
  int32_t stop, n_threads;
  pthread_t threads[WORKERS];
} workers;

/* Takes tasks until none is left. The lock is held, but not while a task runs. */
static void take_tasks(workers *w) {
  while (w->next < w->n_tasks) {
    int32_t index = w->next++;
    pthread_mutex_unlock(&w->lock);
    w->task(w->context, index);
    pthread_mutex_lock(&w->lock);
    if (++w->n_done == w->n_tasks) pthread_cond_signal(&w->done);
  }
}

static void *worker(void *pool) {
  workers *w = (workers *)pool;
  pthread_mutex_lock(&w->lock);
  while (!w->stop) {
    take_tasks(w);
    if (!w->stop) pthread_cond_wait(&w->work, &w->lock);
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

/* The lattn_parallel_for. The caller works too, so it ends even if no thread could be made. */
static void workers_run(void *pool, int32_t n_tasks, void (*task)(void *context, int32_t index),
                        void *context) {
  workers *w = (workers *)pool;
  pthread_mutex_lock(&w->lock);
  w->task = task, w->context = context;
  w->next = w->n_done = 0, w->n_tasks = n_tasks;
  pthread_cond_broadcast(&w->work);
  take_tasks(w);
  while (w->n_done < n_tasks) pthread_cond_wait(&w->done, &w->lock);
  pthread_mutex_unlock(&w->lock);
}

static void workers_start(workers *w) {
  memset(w, 0, sizeof *w);
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->work, NULL);
  pthread_cond_init(&w->done, NULL);
  while (w->n_threads < WORKERS && !pthread_create(&w->threads[w->n_threads], NULL, worker, w))
    w->n_threads++;
}

static void workers_end(workers *w) {
  pthread_mutex_lock(&w->lock);
  w->stop = 1;
  pthread_cond_broadcast(&w->work);
  pthread_mutex_unlock(&w->lock);
  for (int32_t i = 0; i < w->n_threads; i++) pthread_join(w->threads[i], NULL);
  pthread_cond_destroy(&w->done);
  pthread_cond_destroy(&w->work);
  pthread_mutex_destroy(&w->lock);
}

/* ---- a sequence: a prompt in one call, then a token at a time ---- */

enum { PROMPT = 1000, ANSWER = 100, TOKENS = PROMPT + ANSWER, HEADS = 8, KV_HEADS = 4, DIM = 32 };
static float q[TOKENS * HEADS * DIM], k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM];
static float alone[TOKENS * HEADS * DIM], together[TOKENS * HEADS * DIM];

static void check(lattn_status status, const char *what) {
  if (status == LATTN_OK) return;
  fprintf(stderr, "%s: %s\n", what, lattn_status_text(status));
  exit(1);
}

static void extend(lattn_cache *cache, int64_t first, int64_t n, float *out,
                   const lattn_exec *exec) {
  lattn_tensor Q = {q + first * HEADS * DIM, LATTN_F32, 0, n, HEADS, DIM, 0, 0}, O = Q;
  lattn_tensor K = {k + first * KV_HEADS * DIM, LATTN_F32, 0, n, KV_HEADS, DIM, 0, 0}, V = K;
  O.data = out + first * HEADS * DIM, V.data = v + first * KV_HEADS * DIM;
  check(lattn_cache_extend(cache, NULL, Q, K, V, O, NULL, exec), "extend");
}

/* The whole sequence with n_threads: w NULL = the library's plain loop. */
static void serve(float *out, int32_t n_threads, workers *w) {
  lattn_cache_config config = {.size = sizeof config,
                               .n_kv_heads = KV_HEADS,
                               .n_heads = HEADS,
                               .key_dim = DIM,
                               .capacity = TOKENS};
  lattn_exec exec = {.size = sizeof exec, .n_threads = n_threads};
  if (w) {
    exec.parallel_for = workers_run;
    exec.pool = w;
  }
  exec.scratch_bytes = lattn_cache_scratch(&config, PROMPT, n_threads);
  exec.scratch = malloc(exec.scratch_bytes);
  size_t arena_bytes = lattn_pool_bytes(NULL, &config, 1);
  void *arena = malloc(arena_bytes);
  lattn_pool *pool;
  lattn_cache *cache;
  check(lattn_pool_init(&pool, arena, arena_bytes, NULL), "pool");
  check(lattn_cache_init(&cache, pool, &config), "cache");
  extend(cache, 0, PROMPT, out, &exec);
  for (int64_t t = PROMPT; t < TOKENS; t++) extend(cache, t, 1, out, &exec);
  free(arena);
  free(exec.scratch);
}

static void fill(float *x, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(seed >> 8) / 16777216 - 0.5f;
  }
}

int main(void) {
  static workers pool;
  fill(q, TOKENS * HEADS * DIM, 1);
  fill(k, TOKENS * KV_HEADS * DIM, 2);
  fill(v, TOKENS * KV_HEADS * DIM, 3);
  serve(alone, 1, NULL);
  workers_start(&pool);
  serve(together, WORKERS + 1, &pool);
  workers_end(&pool);
  int same = !memcmp(alone, together, sizeof alone);
  printf("%d tokens of prefill, %d of decode: %d workers and the caller give the bits of one ",
         PROMPT, ANSWER, WORKERS);
  printf("thread: %s\n", same ? "yes" : "no");
  return !same;
}
