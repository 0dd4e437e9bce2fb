/* prefill.c - how fast is a prompt read? Causal attention of n tokens over themselves, and of a
 * long prompt's newest tokens over all.
 * SPDX-License-Identifier: MIT */
#include "peer.h"

void bench_prefill(const bench_options *options) {
  /* lattn_attention on the user's arrays, and the same prompt through an empty cache */
  const char *const names[2] = {"prefill", "prefill_cache"};
  const bench_peer *const ours[2] = {&bench_ours_attention, &bench_ours_cache};
  for (int32_t i = 0; i < 2; i++) {
    const char *name = names[i];
    bench_shape shapes[] = {bench_shape_of(name, 8, 8, 128, 1024, 1024, LATTN_F32),
                            bench_shape_of(name, 8, 8, 128, 2048, 2048, LATTN_F32),
                            bench_shape_of(name, 8, 8, 128, 4096, 4096, LATTN_F32),
                            bench_shape_of(name, 8, 8, 128, 2048, 2048, LATTN_F16),
                            bench_shape_of(name, 8, 8, 128, 2048, 2048, LATTN_BF16),
                            bench_shape_of(name, 8, 8, 64, 2048, 2048, LATTN_F32),
                            bench_shape_of(name, 8, 8, 64, 2048, 2048, LATTN_F16),
                            bench_shape_of(name, 32, 8, 128, 2048, 2048, LATTN_F16),
                            bench_shape_of(name, 8, 8, 128, 8192, 8192, LATTN_F32)};
    shapes[2].goal = 0.80;
    shapes[2].quick = 1;
    for (size_t j = 0; j < sizeof shapes / sizeof *shapes; j++)
      bench_report_rows(options, &shapes[j], ours[i]);
  }
  /* the newest part of a long prompt */
  bench_shape chunks[] = {bench_shape_of("prefill_chunk", 8, 8, 128, 512, 32768, LATTN_F32),
                          bench_shape_of("prefill_chunk", 32, 8, 128, 512, 32768, LATTN_F16)};
  for (size_t j = 0; j < sizeof chunks / sizeof *chunks; j++)
    bench_report_rows(options, &chunks[j], &bench_ours_cache);
}
