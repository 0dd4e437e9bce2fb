/* peers.c - the rivals, and how their libraries are found. Nothing is linked: what is not there is
 * reported as missing.
 * SPDX-License-Identifier: MIT */
#include "naive.h"

#include <dlfcn.h>
#include <stdio.h>

static void *load_from(const char *folder, const char *name) {
  char path[1024];
  int length = snprintf(path, sizeof path, "%s/%s", folder, name);
  /* Global, as some of them are found by others of their folder that need them. */
  return length < (int)sizeof path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
}

void *bench_library(const char *const *names) {
  const char *folder = getenv("LONGATTN_PEERS"), *build = getenv("BUILD");
  char made[512];
  snprintf(made, sizeof made, "%s/peers", build ? build : "build");
  for (; *names; names++) {
    void *library = folder ? load_from(folder, *names) : NULL;
    if (!library) library = load_from(made, *names);
    if (!library) library = dlopen(*names, RTLD_NOW | RTLD_GLOBAL);
    if (library) return library;
  }
  return NULL;
}

int bench_function(void *library, const char *name, void *function) {
  void *found = dlsym(library, name);
  memcpy(function, &found, sizeof found); /* ISO C converts no void * to a function's address */
  return found != NULL;
}

void bench_to_float(const void *data, int32_t type, int64_t first, int64_t n, float *to) {
  const float *from = naive_load(data, type, first, n, to);
  if (from != to) memcpy(to, from, (size_t)n * sizeof *to);
}

const bench_peer *const bench_peers[] = {&naive_peer, &bench_ggml, &bench_onnxruntime,
                                         &bench_openblas};
const int32_t bench_n_peers = (int32_t)(sizeof bench_peers / sizeof *bench_peers);
