/* inexact.c - what does a prefill in bfloat16 (LATTN_INEXACT_BF16) win over the exact one, and what
 * does it lose?
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "peer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct subject {
  const bench_peer *ours;
  bench_shape shape;
  void *state;
} subject;

static double inexact(void *state, int32_t n_threads) {
  subject *s = state;
  bench_ours_set_inexact(s->state, LATTN_INEXACT_BF16);
  return s->ours->run(s->state, n_threads);
}
static double exact(void *state, int32_t n_threads) {
  subject *s = state;
  bench_ours_set_inexact(s->state, 0);
  return s->ours->run(s->state, n_threads);
}

static const float *row_of(const subject *s, size_t row) {
  size_t heads = (size_t)s->shape.heads;
  return s->ours->row(s->state, (int64_t)(row / heads), (int32_t)(row % heads));
}

/* Relative, L2, over all rows. */
static double error(void *state) {
  subject *s = state;
  size_t dim = (size_t)s->shape.value_dim, rows = (size_t)(s->shape.queries * s->shape.heads);
  float *kept = malloc(rows * dim * sizeof *kept);
  double off = 0, all = 0;
  int failed = !kept || inexact(s, 1) < 0;
  for (size_t i = 0; !failed && i < rows; i++)
    memcpy(kept + i * dim, row_of(s, i), dim * sizeof *kept);
  failed = failed || exact(s, 1) < 0;
  for (size_t i = 0; !failed && i < rows; i++) {
    const float *want = row_of(s, i);
    for (size_t d = 0; d < dim; d++) {
      double x = (double)want[d], e = (double)kept[i * dim + d] - x;
      off += e * e;
      all += x * x;
    }
  }
  free(kept);
  return failed ? -1 : sqrt(off / all);
}

/* The inputs of other rows have 8 bits, which bfloat16 keeps: here floats have all of their 24. */
static void fill_low_bits(bench_buffer *floats) {
  uint32_t *bits = floats->data;
  uint64_t x = 1;
  for (size_t i = 0; i < floats->bytes / sizeof *bits; i++) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    bits[i] |= (uint32_t)(x >> 48);
  }
}

static void run(const bench_options *options, const bench_peer *ours, const bench_shape *shape) {
  const bench_pair pair = {"exact", inexact, exact, NULL, 0, 0, 0, error};
  subject s = {ours, *shape, NULL};
  if (!bench_wanted(options, shape->bench, shape->quick)) return;
  bench_input input = bench_input_make(shape, 1);
  fill_low_bits(&input.q);
  if (shape->type == LATTN_F32) fill_low_bits(&input.k);
  if (shape->type == LATTN_F32) fill_low_bits(&input.v);
  s.state = ours->prepare(shape, &input);
  if (s.state) bench_report_pair(options, shape, &pair, &s);
  else bench_report_failed(shape);
  if (s.state) ours->release(s.state);
  bench_input_free(&input);
}

void bench_inexact(const bench_options *options) {
  const char *name = "prefill_bf16dot";
  if (!lattn_inexact_supported(LATTN_INEXACT_BF16)) return;
  for (int32_t type = LATTN_F32; type <= LATTN_BF16; type += LATTN_BF16 - LATTN_F32) {
    bench_shape shapes[] = {bench_shape_of(name, 8, 8, 128, 2048, 2048, type),
                            bench_shape_of(name, 2, 2, 128, 8192, 8192, type),
                            bench_shape_of(name, 2, 2, 128, 512, 32768, type)};
    for (int i = 0; i < 3; i++) shapes[i].goal = 1.5;
    shapes[0].quick = type == LATTN_F32;
    run(options, &bench_ours_attention, &shapes[0]);
    run(options, &bench_ours_attention, &shapes[1]);
    run(options, &bench_ours_cache, &shapes[2]); /* the newest part of a long prompt */
  }
}
