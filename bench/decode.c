/* decode.c - how fast does one token follow another? One query against a long cache, its append
 * included.
 * SPDX-License-Identifier: MIT */
#include "peer.h"

/* The first n KV heads keep 4 sinks and 1024 tokens, as StreamingLLM's and DuoAttention's
   examples do. */
static bench_shape streaming(bench_shape s, int32_t n, int32_t layers) {
  s.streaming_heads = n;
  s.sinks = 4;
  s.window = 1024;
  s.layers = layers;
  return s;
}

void bench_decode(const bench_options *options) {
  bench_shape shapes[] = {
      bench_shape_of("decode", 32, 32, 128, 1, 32768, LATTN_F16),
      bench_shape_of("decode", 32, 8, 128, 1, 32768, LATTN_F16),
      bench_shape_of("decode", 32, 8, 128, 1, 32768, LATTN_BF16),
      bench_shape_of("decode", 32, 8, 128, 1, 32768, LATTN_F32),
      bench_shape_of("decode", 32, 8, 128, 1, 32768, LATTN_I8),
      bench_shape_of("decode", 32, 8, 128, 1, 32768, LATTN_I4),
      bench_shape_of("decode", 32, 32, 128, 1, 32768, LATTN_I8),
      bench_shape_of("decode", 32, 32, 128, 1, 32768, LATTN_I4),
      streaming(bench_shape_of("decode_streaming", 32, 32, 128, 1, 4096, LATTN_F16), 32, 16)};
  shapes[0].goal = 0.88;
  shapes[1].goal = 0.65;
  shapes[0].quick = shapes[1].quick = shapes[4].quick = 1;
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
    bench_report_rows(options, &shapes[i], &bench_ours_cache);

  /* Straight over the user's arrays: no cache, nothing packed. */
  bench_shape arrays[] = {bench_shape_of("decode_arrays", 32, 32, 128, 1, 16384, LATTN_F32),
                          bench_shape_of("decode_arrays", 32, 32, 128, 1, 32768, LATTN_F16),
                          bench_shape_of("decode_arrays", 32, 8, 128, 1, 32768, LATTN_F32),
                          bench_shape_of("decode_arrays", 32, 8, 128, 1, 32768, LATTN_F16)};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
    arrays[i].goal = 0.7;
    bench_report_rows(options, &arrays[i], &bench_ours_attention);
  }
}
