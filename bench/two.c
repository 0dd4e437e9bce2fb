/* two.c - two of the interface of peer.h against each other, in turn.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "peer.h"

#include <math.h>

typedef struct two {
  const bench_shape *shape;
  const bench_peer *peers[2];
  void *states[2];
  double tolerance;
} two;

static double first(void *state, int32_t n_threads) {
  two *t = state;
  return t->peers[0]->run(t->states[0], n_threads);
}
static double second(void *state, int32_t n_threads) {
  two *t = state;
  return t->peers[1]->run(t->states[1], n_threads);
}

static int same(void *state) {
  const two *t = state;
  for (int64_t r = 0; r < t->shape->queries; r++)
    for (int32_t h = 0; h < t->shape->heads; h++) {
      const float *a = t->peers[0]->row(t->states[0], r, h);
      const float *b = t->peers[1]->row(t->states[1], r, h);
      if (!(bench_row_error(a, b, t->shape->value_dim) <= t->tolerance)) return 0;
    }
  return 1;
}

void bench_report_two(const bench_options *options, const bench_shape *shape,
                      const bench_peer *ours, const bench_peer *other, double tolerance,
                      double ideal) {
  bench_pair pair = {other->name, first, second, isinf(tolerance) ? NULL : same, 0, 0, ideal, NULL};
  if (shape->queries == 1) pair.bytes = bench_shape_bytes(shape);
  two t = {shape, {ours, other}, {NULL, NULL}, tolerance};
  if (!bench_wanted(options, shape->bench, shape->quick)) return;
  bench_input input = bench_input_make(shape, 1);
  for (int i = 0; i < 2; i++) t.states[i] = t.peers[i]->prepare(shape, &input);
  if (t.states[0] && t.states[1]) bench_report_pair(options, shape, &pair, &t);
  else bench_report_failed(shape);
  for (int i = 0; i < 2; i++)
    if (t.states[i]) t.peers[i]->release(t.states[i]);
  bench_input_free(&input);
}
