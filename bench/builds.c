/* builds.c - is the header as fast with the other compiler, and with narrower vectors? ours.c built
 * by gcc and by clang for every SIMD level of the machine, all in this program (see the Makefile),
 * two at a time in turn.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "peer.h"

#include <stdio.h>
#include <string.h>

/* BUILD(compiler, level): what the Makefile made. */
#ifndef BENCH_BUILDS
#define BENCH_BUILDS
#endif

typedef struct build {
  const char *compiler, *level;
  const bench_peer *attention, *cache;
  double (*peak)(int32_t n_threads);
} build;

#define BUILD(c, l)                                                                   \
  extern const bench_peer bench_ours_attention_##c##_##l, bench_ours_cache_##c##_##l; \
  double bench_limit_flops_##c##_##l(int32_t n_threads);
BENCH_BUILDS
#undef BUILD
#define BUILD(c, l)                                                      \
  {#c, #l, &bench_ours_attention_##c##_##l, &bench_ours_cache_##c##_##l, \
   bench_limit_flops_##c##_##l},
static const build builds[] = {BENCH_BUILDS{NULL, NULL, NULL, NULL, NULL}};
#undef BUILD
enum { N_BUILDS = (int)(sizeof builds / sizeof *builds) - 1 };

static const bench_peer *peer_of(const build *b, const bench_shape *shape) {
  return b->attention->unsupported(shape) || shape->queries == 1 ? b->cache : b->attention;
}

static double peak(const build *b) {
  double best = 0;
  for (int i = 0; i < 5; i++) {
    double now = b->peak(1);
    if (now > best) best = now;
  }
  return best;
}

static void compare(const bench_options *options, bench_shape shape, const build *one,
                    const build *two) {
  char name[64], other_name[64];
  int compilers = strcmp(one->compiler, two->compiler) != 0;
  bench_peer other = *peer_of(two, &shape);
  bench_options one_thread = *options;
  double ideal = compilers || !(shape.goal > 0) ? 0 : peak(one) / peak(two);
  one_thread.n_thread_counts = 1;
  one_thread.quick = shape.quick = 1; /* a third of a second for each of so many */
  snprintf(name, sizeof name, "build_%s", compilers ? one->compiler : one->level);
  snprintf(other_name, sizeof other_name, "%s_%s", two->compiler, two->level);
  shape.bench = name;
  other.name = other_name;
  if (compilers) shape.goal = 0.9;
  bench_report_two(&one_thread, &shape, peer_of(one, &shape), &other, 0, ideal);
}

static int made(const char *compiler) {
  int n = 0;
  for (int i = 0; i < N_BUILDS; i++) n += !strcmp(builds[i].compiler, compiler);
  return n;
}

void bench_builds(const bench_options *options) {
  bench_shape shapes[] = {bench_shape_of("build", 8, 8, 128, 2048, 2048, LATTN_F32),
                          bench_shape_of("build", 8, 8, 128, 2048, 2048, LATTN_F16),
                          bench_shape_of("build", 8, 8, 64, 2048, 2048, LATTN_F32),
                          bench_shape_of("build", 8, 8, 128, 2048, 2048, LATTN_I8),
                          bench_shape_of("build", 32, 8, 128, 1, 32768, LATTN_F16),
                          bench_shape_of("build", 32, 32, 128, 1, 8192, LATTN_F16),
                          bench_shape_of("build", 32, 8, 128, 1, 32768, LATTN_I8)};
  shapes[0].goal = 0.85; /* of narrower vectors, if their peak were as high */
  if (!bench_wanted(options, "build", 0)) return;
  for (int i = 0; i < 2; i++)
    if (!made(i ? "clang" : "gcc"))
      fprintf(options->json ? stderr : stdout, "build: no %s for this machine\n",
              i ? "clang" : "gcc");
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (int i = 0; i < N_BUILDS; i++)
      for (int j = 0; j < i; j++) {
        int one_compiler = !strcmp(builds[i].compiler, builds[j].compiler);
        int one_level = !strcmp(builds[i].level, builds[j].level);
        if (one_compiler != one_level) compare(options, shapes[s], &builds[i], &builds[j]);
      }
}
