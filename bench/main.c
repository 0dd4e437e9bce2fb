/* main.c - `make bench`: every question, one table. See bench.h for the environment.
 * SPDX-License-Identifier: MIT */
#include "bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int32_t number(const char *name) {
  const char *text = getenv(name);
  return text ? (int32_t)strtol(text, NULL, 10) : 0;
}

static int questions(const bench_options *options) {
  bench_report_begin(options);
  bench_prefill(options);
  bench_inexact(options);
  bench_decode(options);
  bench_diffqkv(options);
  bench_ratios(options);
  bench_heads(options);
  bench_marks(options);
  bench_state(options);
  bench_flow(options);
  bench_batch(options);
  bench_draft(options);
  bench_weights(options);
  bench_profile(options);
  bench_memory(options);
  bench_capacity_of(options);
  bench_cost_of_caches(options);
  bench_save(options);
  bench_recall(options);
  bench_contract(options);
  bench_builds(options);
  return bench_report_end(options);
}

int main(void) {
  bench_options options = {0};
  options.json = number("JSON");
  options.quick = number("QUICK");
  options.layers = number("LAYERS");
  options.only = getenv("ONLY");
  options.thread_counts[0] = 1;
  options.thread_counts[1] = number("THREADS") > 0 ? number("THREADS") : 2;
  options.n_thread_counts =
      options.thread_counts[1] > 1 && sysconf(_SC_NPROCESSORS_ONLN) > 1 ? 2 : 1;
  const char *clock = getenv("CLOCK");
  if (clock && !strcmp(clock, "cpu")) {
    bench_clock_set_cpu();
    options.n_thread_counts = 1;
  }
  int bad = 0;
  if (number("SWEEP")) bench_sweep(&options);
  else bad = questions(&options);
  bench_limits_free();
  return bad != 0;
}
