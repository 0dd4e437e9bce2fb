/* peer.h - the interface behind which ours and every rival is measured.
 * SPDX-License-Identifier: MIT */
#ifndef BENCH_PEER_H_INCLUDED
#define BENCH_PEER_H_INCLUDED

#include "bench.h"

typedef struct bench_peer {
  const char *name;
  /* NULL when it can run on this machine, else why not, in a few words. */
  const char *(*missing)(void);
  /* NULL when it can do the shape, else why not, in a few words. */
  const char *(*unsupported)(const bench_shape *shape);
  /* Gets ready for a shape, untimed: packs, fills its cache. NULL = failed. The input stays as it
     is until release. */
  void *(*prepare)(const bench_shape *shape, const bench_input *input);
  /* One repetition: seconds that the whole problem took, or negative: failed. One that
     computes only a sample of the rows scales its time by the pairs of query and key that it left
     out. */
  double (*run)(void *state, int32_t n_threads);
  /* Output row of the last run, [value_dim]; NULL if that row was not in the sample. Valid until
     the next call. */
  const float *(*row)(void *state, int64_t query, int32_t head);
  void (*release)(void *state);
  /* Largest difference to ours, relative to the largest value of the row, that its arithmetic
     explains; more means that it was called wrongly. NULL: float32 rounding. */
  double (*tolerance)(const bench_shape *shape);
  /* How many times as fast as it ours should be; 0, or NULL: not said. */
  double (*goal)(const bench_shape *shape);
  /* Of the library, when it is not missing; NULL: it has none. */
  const char *(*version)(void);
} bench_peer;

/* The rivals (peers.c); missing ones too. */
extern const bench_peer *const bench_peers[];
extern const int32_t bench_n_peers;

/* ggml.c, onnxruntime.c, blas.c */
extern const bench_peer bench_ggml;
extern const bench_peer bench_onnxruntime, bench_openblas;

/* Ours (ours.c): lattn_attention on the user's arrays; lattn_cache_extend of the newest
   `queries` tokens into caches that hold the ones before (none: prefill; all but one: decode);
   lattn_cache_attend over a cache that holds all. */
extern const bench_peer bench_ours_attention, bench_ours_cache, bench_ours_attend;
/* Of the next runs of one of ours: 0, or enum lattn_inexact. */
void bench_ours_set_inexact(void *state, int32_t inexact);

/* Largest difference of n values to a peer's, relative to the largest of those. */
double bench_row_error(const float *ours, const float *peer, int32_t n);

/* A row of two in turn (two.c): how much longer the other takes. Their outputs may differ by
   `tolerance` of a row's largest; INFINITY: they are not compared. ideal: of bench_pair. */
void bench_report_two(const bench_options *options, const bench_shape *shape,
                      const bench_peer *ours, const bench_peer *other, double tolerance,
                      double ideal);

/* ---- what rivals share (peers.c) ---- */

/* The first of these libraries that loads, or NULL. Each is looked for in the folder
   LONGATTN_PEERS of the environment, in build/peers (`make peers`), and where the system's loader
   looks. It stays loaded. */
void *bench_library(const char *const *names);
/* Sets *function, a pointer to a function, to what the library calls `name`; 0 = not there. */
int bench_function(void *library, const char *name, void *function);
/* n elements of the type, from element `first` on, as float32 into `to`. */
void bench_to_float(const void *data, int32_t type, int64_t first, int64_t n, float *to);

#endif /* BENCH_PEER_H_INCLUDED */
