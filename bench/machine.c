/* machine.c - clock, memory and threads.
 * SPDX-License-Identifier: MIT */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#if defined(_OPENMP)
#include <omp.h>
#else
#include <pthread.h>
#include <stdatomic.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_THREADS 64

static clockid_t clock_now = CLOCK_MONOTONIC;

void bench_clock_set_cpu(void) { clock_now = CLOCK_PROCESS_CPUTIME_ID; }

double bench_seconds(void) {
  struct timespec t;
  clock_gettime(clock_now, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void bench_rest(void) {
  struct timespec t = {0, 10000000}; /* OpenMP's threads spin for about 3 ms */
  nanosleep(&t, NULL);
}

bench_buffer bench_buffer_make(size_t bytes) {
  bench_buffer buffer;
  buffer.bytes = bytes;
  buffer.mapping_bytes = (bytes + 2 * HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  buffer.mapping =
      mmap(NULL, buffer.mapping_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (buffer.mapping == MAP_FAILED) {
    fprintf(stderr, "bench: no memory for %zu bytes\n", bytes);
    exit(1);
  }
  size_t past = (uintptr_t)buffer.mapping % HUGE_PAGE;
  buffer.data = (char *)buffer.mapping + (past ? HUGE_PAGE - past : 0);
#ifdef MADV_HUGEPAGE
  madvise(buffer.data, bytes, MADV_HUGEPAGE); /* advice only: a refusal costs speed, nothing else */
#endif
  return buffer;
}

void bench_buffer_free(bench_buffer *buffer) {
  if (buffer->mapping) munmap(buffer->mapping, buffer->mapping_bytes);
  buffer->mapping = buffer->data = NULL;
}

#if defined(_OPENMP)

void bench_threads_set(int32_t n_threads) { omp_set_num_threads(n_threads); }

void bench_parallel_for(void *pool, int32_t n_tasks, void (*task)(void *context, int32_t index),
                        void *context) {
  lattn_parallel_openmp(pool, n_tasks, task, context);
}

const char *bench_threads_name(void) { return "OpenMP"; }

#else

typedef struct loop {
  void (*task)(void *context, int32_t index);
  void *context;
  int32_t n_tasks;
  atomic_int next;
} loop;

static int32_t threads_now = 1;

void bench_threads_set(int32_t n_threads) {
  threads_now = n_threads < MAX_THREADS ? n_threads : MAX_THREADS;
}

static void *loop_run(void *argument) {
  loop *l = argument;
  for (int i; (i = atomic_fetch_add(&l->next, 1)) < l->n_tasks;) l->task(l->context, i);
  return NULL;
}

/* Starts its threads anew in each call: some tens of microseconds, against milliseconds
   measured. */
void bench_parallel_for(void *pool, int32_t n_tasks, void (*task)(void *context, int32_t index),
                        void *context) {
  (void)pool;
  loop l;
  l.task = task;
  l.context = context;
  l.n_tasks = n_tasks;
  atomic_init(&l.next, 0);
  pthread_t threads[MAX_THREADS];
  int32_t started = 0;
  while (started + 1 < threads_now && started + 1 < n_tasks &&
         !pthread_create(&threads[started], NULL, loop_run, &l))
    started++;
  loop_run(&l);
  while (started) pthread_join(threads[--started], NULL);
}

const char *bench_threads_name(void) { return "pthreads"; }

#endif
