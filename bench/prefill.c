/* prefill.c - how fast is a prompt read? Causal attention of n tokens over themselves, and of a
 * long prompt's newest tokens over all.
 * SPDX-License-Identifier: MIT */
#include "peer.h"

/* Causal, 8/8 heads unless said; goal: fraction of the multiply-adds. */
static bench_shape prompt(int32_t heads, int32_t dim, int64_t n, int32_t type, double goal) {
  bench_shape s = bench_shape_of("prefill", heads, 8, dim, n, n, type);
  s.goal = goal;
  return s;
}

/* Of float32 multiply-adds: integer dot products are faster than those. */
static bench_shape integers(int64_t n, int64_t keys, int32_t key_type, int32_t value_type) {
  const char *name = n == keys ? "prefill_cache" : "prefill_chunk";
  bench_shape s = bench_shape_of(name, 8, 8, 128, n, keys, key_type);
  s.value_type = value_type;
  s.goal = 1.3;
  return s;
}

/* What does it cost that lattn_attention packs and converts the user's arrays in every call?
   Against the same rows over the same keys in a cache, which lie as the kernels want them. */
static void layout(const bench_options *options) {
  bench_shape shapes[] = {bench_shape_of("layout", 8, 8, 128, 2048, 2048, LATTN_F32),
                          bench_shape_of("layout", 8, 8, 128, 2048, 2048, LATTN_F16),
                          bench_shape_of("layout", 2, 2, 128, 8192, 8192, LATTN_F32),
                          bench_shape_of("layout", 2, 2, 128, 8192, 8192, LATTN_F16)};
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
    shapes[i].goal = 0.94; /* at most 6 % */
    bench_report_two(options, &shapes[i], &bench_ours_attention, &bench_ours_attend, 0, 0);
  }
}

void bench_prefill(const bench_options *options) {
  /* lattn_attention on the user's arrays, and the same prompt through an empty cache */
  bench_shape shapes[] = {
      prompt(8, 128, 2048, LATTN_F32, 0.86),  prompt(8, 128, 4096, LATTN_F32, 0.86),
      prompt(8, 128, 8192, LATTN_F32, 0.86),  prompt(8, 128, 2048, LATTN_F16, 0.83),
      prompt(8, 128, 2048, LATTN_BF16, 0.83), prompt(8, 64, 2048, LATTN_F32, 0.76),
      prompt(8, 64, 2048, LATTN_F16, 0),      prompt(32, 128, 2048, LATTN_F16, 0.83)};
  enum { N_SHAPES = sizeof shapes / sizeof *shapes };
  shapes[1].quick = 1;
  for (int i = 0; i < N_SHAPES; i++) bench_report_rows(options, &shapes[i], &bench_ours_attention);
  for (int i = 0; i < N_SHAPES; i++) {
    shapes[i].bench = "prefill_cache";
    shapes[i].alone = 1; /* the rivals' rows are those above */
    bench_report_rows(options, &shapes[i], &bench_ours_cache);
  }
  bench_shape others[] = {
      integers(2048, 2048, LATTN_I8, LATTN_I8), integers(2048, 2048, LATTN_I4, LATTN_I4),
      integers(2048, 2048, LATTN_I8, LATTN_I4),
      /* the newest part of a long prompt */
      bench_shape_of("prefill_chunk", 8, 8, 128, 512, 32768, LATTN_F32),
      bench_shape_of("prefill_chunk", 32, 8, 128, 512, 32768, LATTN_F16),
      integers(512, 32768, LATTN_I8, LATTN_I8), integers(512, 32768, LATTN_I4, LATTN_I4)};
  others[0].quick = 1;
  others[3].goal = 0.86;
  others[4].goal = 0.83;
  for (size_t i = 0; i < sizeof others / sizeof *others; i++)
    bench_report_rows(options, &others[i], &bench_ours_cache);
  layout(options);
}
