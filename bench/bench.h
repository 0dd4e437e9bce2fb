/* bench.h - what the benchmarks share: shapes, inputs, limits of the machine, rows of the report.
 * SPDX-License-Identifier: MIT

   A row is one shape on one number of threads. Its repetitions are interleaved: in each, the
   machine's limits, ours, and every peer run one after another, so that a slow moment meets all
   of them; each figure is a median, and every claim is a ratio of two of them. Absolute figures
   drift.

   Environment: JSON=1 one JSON object a line; QUICK=1 half a minute; ONLY=word only rows whose
   bench name contains word; THREADS=n instead of 2; CLOCK=cpu one thread, timed by the processor
   time it gets: for a machine that is busy with other work; LAYERS=n of capacity; RECALL=1 all of
   recall, and its picture; SWEEP=1 every shape, for hours: see sweep.c; LONGATTN_PEERS=folder where
   the rivals' libraries are. */
#ifndef BENCH_H_INCLUDED
#define BENCH_H_INCLUDED

#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE 1 /* clock_gettime, mmap and madvise under -std=c11 */
#endif

#include "longattn.h"

#include <stddef.h>
#include <stdint.h>

/* ---- machine (machine.c) ---- */

double bench_seconds(void);
/* Counts the process's own time from now on: for one thread on a busy machine. */
void bench_clock_set_cpu(void);
/* Some milliseconds of nothing, after which threads that wait for work sleep. */
void bench_rest(void);

/* Zeroed memory on huge pages where the system has them: without, a core loses up to a fifth
   of its read bandwidth to address translation, and the ratio of ours to the limit would depend
   on luck. */
typedef struct bench_buffer {
  void *data;
  size_t bytes;
  void *mapping;
  size_t mapping_bytes;
} bench_buffer;
bench_buffer bench_buffer_make(size_t bytes); /* ends the program when there is no memory */
void bench_buffer_free(bench_buffer *buffer);

/* Sets the number of threads of bench_parallel_for. */
void bench_threads_set(int32_t n_threads);
/* OpenMP where the compiler has it (lattn_parallel_openmp), else POSIX threads. */
void bench_parallel_for(void *pool, int32_t n_tasks, void (*task)(void *context, int32_t index),
                        void *context);
const char *bench_threads_name(void);

/* ---- limits of the machine (limits.c) ---- */

double bench_limit_flops(int32_t n_threads); /* float32 multiply-adds, 2 FLOP each, a second */
double bench_limit_read(int32_t n_threads);  /* bytes a second, from 1 GiB on huge pages */
/* Bytes read and written a second, of 512 MiB that are passed over in place. */
double bench_limit_update(int32_t n_threads);
void bench_limits_free(void);

/* ---- shapes and inputs (shape.c) ---- */

/* A causal problem: `queries` rows, the newest of `keys` tokens. */
typedef struct bench_shape {
  const char *bench;
  int32_t heads, kv_heads, key_dim, value_dim;
  int64_t queries, keys;
  int32_t type;            /* enum lattn_type of keys and values; queries and outputs are float32.
                              LATTN_I8 and LATTN_I4: of the cache's storage */
  int32_t value_type;      /* 0 = the same */
  int32_t streaming_heads; /* KV heads 0 ... streaming_heads - 1 see `sinks` and `window` only */
  int64_t sinks, window;
  int32_t layers;    /* decode: caches worked on in turn, as the layers of a model are: a step
                              then finds its keys in memory, not in the processor's cache */
  int32_t sequences; /* caches in one call, each with `queries` and `keys`; 0 = one */
  int64_t shared;    /* of the keys, those at the start that all sequences share */
  int32_t quick;     /* part of a QUICK run */
  int32_t alone;     /* against no rival but naive */
  double goal;       /* fraction of the limit to reach; of a pair: ratio; 0 = none set */
} bench_shape;

/* Key and value dims alike, every head full, one layer, no goal. */
bench_shape bench_shape_of(const char *bench, int32_t heads, int32_t kv_heads, int32_t dim,
                           int64_t queries, int64_t keys, int32_t type);
int64_t bench_visible(const bench_shape *shape, int32_t kv_head, int64_t row, int64_t *sinks_end);
double bench_shape_flops(const bench_shape *shape);
/* Of the keys and values that are visible, as stored, with their scales. */
double bench_shape_bytes(const bench_shape *shape);
int32_t bench_value_type(const bench_shape *shape);
int bench_shape_is_int(const bench_shape *shape); /* keys or values */
const char *bench_shape_type_name(const bench_shape *shape);
/* Of the arrays that a cache is filled from: float16 for integer storage. */
int32_t bench_input_type(const bench_shape *shape);
/* What the rounding of integer storage may add to the error of a row, relative to its largest. */
double bench_shape_rounding(const bench_shape *shape);
size_t bench_type_bytes(int32_t type); /* of an element of an array */

/* q [queries][heads][key_dim] float32; k [keys][kv_heads][key_dim] and v likewise in the input
   type. */
typedef struct bench_input {
  bench_buffer q, k, v;
} bench_input;
bench_input bench_input_make(const bench_shape *shape, uint64_t seed);
void bench_input_free(bench_input *input);
/* A contiguous view. */
lattn_tensor bench_view(void *data, int32_t type, int64_t n_tokens, int64_t n_heads, int64_t dim);
/* n elements, multiples of 1/64 in [-2, 2): exact in f32, f16 and bf16, so that types differ
   in speed only. */
void bench_fill(void *data, int32_t type, size_t n, uint64_t seed);

/* ---- rows (report.c) ---- */

typedef struct bench_options {
  int32_t json, quick;
  int32_t layers; /* of the question of capacity; 0 = one */
  const char *only;
  int32_t n_thread_counts;
  int32_t thread_counts[2];
} bench_options;

struct bench_peer;

void bench_report_begin(const bench_options *options);
/* Runs and prints a row for every number of threads. */
void bench_report_rows(const bench_options *options, const bench_shape *shape,
                       const struct bench_peer *ours);
/* A row about memory: bytes held at rest, at most while appending, and what the tokens need. */
void bench_report_memory(const bench_options *options, const bench_shape *shape, double bytes,
                         double peak, double least);

/* Two ways to the same end, run in turn; each gives the seconds it took, negative: failed. */
typedef struct bench_pair {
  const char *other_name; /* printed is the other's time over ours */
  double (*ours)(void *state, int32_t n_threads);
  double (*other)(void *state, int32_t n_threads);
  int (*same)(void *state);     /* NULL, or whether both gave the same */
  double bytes;                 /* what ours reads or writes, to print GB/s; 0: print its FLOP */
  int32_t one_thread;           /* the number of threads changes nothing */
  double ideal;                 /* 0, or what the ratio is at best: the goal is a fraction of it */
  double (*error)(void *state); /* NULL, or what ours gives up; negative: failed */
} bench_pair;
void bench_report_pair(const bench_options *options, const bench_shape *shape,
                       const bench_pair *pair, void *state);

/* Work of ours over the shape's `queries` tokens of each sequence, held against a limit of the
   machine and against another who does the same. */
enum { BENCH_LIMIT_NONE, BENCH_LIMIT_FMA, BENCH_LIMIT_UPDATE };
typedef struct bench_work {
  int32_t limit;
  double amount; /* of that limit: FLOP, or bytes read and written; the goal is the shape's */
  double (*ours)(void *state, int32_t n_threads); /* seconds, negative: failed */
  const char *other_name;                         /* NULL: nobody else */
  const char *other_missing;                      /* NULL, or why it is not run */
  double other_goal;                              /* times as long as ours; 0 = none set */
  double (*other)(void *state, int32_t n_threads);
  double (*error)(void *state); /* NULL, or how far the two are apart; negative: failed */
  double tolerance;             /* of that */
  int32_t least;                /* repetitions; 0 = 3 */
} bench_work;
void bench_report_work(const bench_options *options, const bench_shape *shape,
                       const bench_work *work, void *state);

/* What one operation takes: time, and bytes where they are the question. */
enum { BENCH_COST_TIMES = 25 };
typedef struct bench_cost {
  const char *name;
  int32_t n; /* times taken so far */
  double seconds[BENCH_COST_TIMES];
  double bytes; /* negative: not asked */
} bench_cost;
/* A row of operations: the median time of each, and its bytes. */
void bench_report_costs(const bench_options *options, const bench_shape *shape, int32_t n,
                        const bench_cost *costs);
/* A model's caches, decoded over. */
typedef struct bench_capacity {
  double bytes;        /* of all layers */
  double fill_seconds; /* to build them */
  double seconds;      /* of a token through all layers */
  double read;         /* the machine's reading, bytes a second */
} bench_capacity;
void bench_report_capacity(const bench_options *options, const bench_shape *shape,
                           int32_t n_threads, const bench_capacity *capacity);
double bench_median(double *values, int32_t n); /* sorts them; NaN of none */
/* A row that could not be measured. */
void bench_report_failed(const bench_shape *shape);
/* A row, printed elsewhere, that is not what it must be. */
void bench_report_wrong(void);

/* The shape and the number of threads as a row of JSON begins, by which it is known again. */
void bench_shape_json(char *to, size_t bytes, const bench_shape *shape, int32_t n_threads);
/* Whether a row is asked for. */
int bench_wanted(const bench_options *options, const char *bench, int32_t quick);
/* Prints the limits and what is missing; returns the number of rows whose output was wrong. */
int bench_report_end(const bench_options *options);

/* ---- questions, one file each ---- */

void bench_prefill(const bench_options *options);
void bench_inexact(const bench_options *options);
void bench_diffqkv(const bench_options *options);
void bench_decode(const bench_options *options);
void bench_batch(const bench_options *options);
void bench_draft(const bench_options *options);
void bench_weights(const bench_options *options);
void bench_profile(const bench_options *options);
void bench_memory(const bench_options *options);
void bench_cost_of_caches(const bench_options *options);
void bench_save(const bench_options *options);
void bench_capacity_of(const bench_options *options);
void bench_ratios(const bench_options *options);
void bench_heads(const bench_options *options);
void bench_marks(const bench_options *options);
void bench_state(const bench_options *options);
void bench_flow(const bench_options *options);
void bench_recall(const bench_options *options);
void bench_contract(const bench_options *options);
void bench_builds(const bench_options *options);

/* SWEEP=1: all of n, head dim, group size and type, in place of the others. */
void bench_sweep(const bench_options *options);
/* Draws such rows, lines of JSON, as a picture (SVG). */
void bench_plot(char *rows, const char *path);

#endif /* BENCH_H_INCLUDED */
