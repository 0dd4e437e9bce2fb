/* peers.c - the rivals. Libraries are looked for where the system's loader looks; nothing is
 * linked.
 * SPDX-License-Identifier: MIT */
#include "naive.h"

#include <dlfcn.h>

static const char *look_for(const char *const *libraries) {
  for (; *libraries; libraries++) {
    void *library = dlopen(*libraries, RTLD_LAZY | RTLD_LOCAL);
    if (!library) continue;
    dlclose(library);
    return "found, no adaptor yet";
  }
  return "missing";
}

static const char *ggml_missing(void) {
  static const char *const names[] = {"libggml-base.so", "libggml-base.so.0", "libggml.so", NULL};
  return look_for(names);
}

static const char *onnxruntime_missing(void) {
  static const char *const names[] = {"libonnxruntime.so", "libonnxruntime.so.1", NULL};
  return look_for(names);
}

static const char *openblas_missing(void) {
  static const char *const names[] = {"libopenblas.so.0", "libopenblas.so", NULL};
  return look_for(names);
}

static const bench_peer ggml = {"ggml", ggml_missing, NULL, NULL, NULL, NULL};
static const bench_peer onnxruntime = {"onnxruntime", onnxruntime_missing, NULL, NULL, NULL, NULL};
static const bench_peer openblas = {"openblas", openblas_missing, NULL, NULL, NULL, NULL};

const bench_peer *const bench_peers[] = {&naive_peer, &ggml, &onnxruntime, &openblas};
const int32_t bench_n_peers = (int32_t)(sizeof bench_peers / sizeof *bench_peers);
