/* cc -O2 -march=native -I.. 04-threads.c -o 04-threads -pthread && ./04-threads
 * The library makes no threads: it hands tasks to your parallel_for, here a few lines of pthreads
 * (an engine would hand in its own pool). Prints: ok: 3 threads give the bits of 1: yes */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 1500, HEADS = 4, KV_HEADS = 2, DIM = 64, THREADS = 3 };

typedef struct job {
  pthread_t thread;
  void (*task)(void *context, int32_t index);
  void *context;
  int32_t index;
} job;

static void *run_job(void *argument) {
  job *j = (job *)argument;
  j->task(j->context, j->index);
  return NULL;
}

/* Runs all tasks, the last one here. A thread that cannot be made is no error: its task runs here
   too. */
static void my_parallel_for(void *pool, int32_t n_tasks, void (*task)(void *context, int32_t index),
                            void *context) {
  job *jobs = (job *)pool;
  int32_t n_threads = 0;
  for (; n_threads < n_tasks - 1 && n_threads < THREADS; n_threads++) {
    job *j = &jobs[n_threads];
    j->task = task, j->context = context, j->index = n_threads;
    if (pthread_create(&j->thread, NULL, run_job, j)) break;
  }
  for (int32_t i = n_threads; i < n_tasks; i++) task(context, i);
  for (int32_t i = 0; i < n_threads; i++) pthread_join(jobs[i].thread, NULL);
}

static void fill(float *x, size_t n, uint32_t seed) {
  for (size_t i = 0; i < n; i++) {
    seed = seed * 1664525u + 1013904223u;
    x[i] = (float)(seed >> 8) / 16777216 - 0.5f;
  }
}

/* Attention with n_threads threads. */
static lattn_status attend(float *out, const float *q, const float *k, const float *v,
                           int32_t n_threads) {
  lattn_tensor Q = {q, LATTN_F32, 0, TOKENS, HEADS, DIM, 0, 0}, O = Q;
  lattn_tensor K = {k, LATTN_F32, 0, TOKENS, KV_HEADS, DIM, 0, 0}, V = K;
  O.data = out, V.data = v;
  job jobs[THREADS];
  lattn_attn options = {.size = sizeof options, .mask = LATTN_CAUSAL};
  lattn_exec exec = {.size = sizeof exec, .n_threads = n_threads};
  exec.parallel_for = my_parallel_for;
  exec.pool = jobs;
  exec.scratch_bytes = lattn_attention_scratch(&options, Q, K, V, n_threads);
  exec.scratch = malloc(exec.scratch_bytes);
  lattn_status status = lattn_attention(&options, Q, K, V, O, NULL, &exec);
  free(exec.scratch);
  return status;
}

int main(void) {
  static float q[TOKENS * HEADS * DIM], k[TOKENS * KV_HEADS * DIM], v[TOKENS * KV_HEADS * DIM];
  static float one[TOKENS * HEADS * DIM], three[TOKENS * HEADS * DIM];
  fill(q, TOKENS * HEADS * DIM, 1);
  fill(k, TOKENS * KV_HEADS * DIM, 2);
  fill(v, TOKENS * KV_HEADS * DIM, 3);
  lattn_status status = attend(one, q, k, v, 1);
  if (!status) status = attend(three, q, k, v, THREADS);
  printf("%s: %d threads give the bits of 1: %s\n", lattn_status_text(status), THREADS,
         memcmp(one, three, sizeof one) ? "no" : "yes");
  return status != LATTN_OK;
}
