/* peer.h - the interface behind which ours and every rival is measured.
 * SPDX-License-Identifier: MIT */
#ifndef BENCH_PEER_H_INCLUDED
#define BENCH_PEER_H_INCLUDED

#include "bench.h"

typedef struct bench_peer {
  const char *name;
  /* NULL when it can run on this machine, else why not, in a few words. */
  const char *(*missing)(void);
  /* Gets ready for a shape, untimed: packs, fills its cache. NULL = it cannot do this shape.
     The input stays as it is until release. */
  void *(*prepare)(const bench_shape *shape, const bench_input *input);
  /* One repetition: seconds that the whole problem took, or negative: failed. One that
     computes only a sample of the rows scales its time by the pairs of query and key that it left
     out. */
  double (*run)(void *state, int32_t n_threads);
  /* Output row of the last run, [value_dim]; NULL if that row was not in the sample. */
  const float *(*row)(void *state, int64_t query, int32_t head);
  void (*release)(void *state);
} bench_peer;

/* The rivals (peers.c); missing ones too. */
extern const bench_peer *const bench_peers[];
extern const int32_t bench_n_peers;

/* Ours (ours.c): lattn_attention on the user's arrays; lattn_cache_extend of the newest
   `queries` tokens into caches that hold the ones before (none: prefill; all but one: decode). */
extern const bench_peer bench_ours_attention, bench_ours_cache;

#endif /* BENCH_PEER_H_INCLUDED */
