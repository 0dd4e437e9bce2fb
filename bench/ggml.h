/* ggml.h - ggml, found at run time, for the files that compare with it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef BENCH_GGML_H_INCLUDED
#define BENCH_GGML_H_INCLUDED

#include "bench.h"

#include <stdbool.h>

/* Of ggml's header. */
enum {
  GGML_F32 = 0,
  GGML_F16 = 1,
  GGML_Q4_0 = 2,
  GGML_Q8_0 = 8,
  GGML_I32 = 26,
  GGML_BF16 = 30,
  GGML_PREC_F32 = 10
};
typedef struct ggml_context ggml_context;
typedef struct ggml_tensor ggml_tensor;
typedef struct ggml_cgraph ggml_cgraph;
typedef struct ggml_backend ggml_backend;
typedef struct ggml_threadpool ggml_threadpool;
struct ggml_init_params {
  size_t mem_size;
  void *mem_buffer;
  bool no_alloc;
};
/* Larger than ggml's own, which only ggml reads and writes. */
typedef union ggml_pool_params {
  max_align_t align;
  unsigned char bytes[4096];
} ggml_pool_params;

/* What is called, by its name in ggml. */
typedef struct bench_ggml_functions {
  ggml_context *(*init)(struct ggml_init_params params);
  void (*free)(ggml_context *ctx);
  ggml_tensor *(*new_tensor_3d)(ggml_context *ctx, int type, int64_t n0, int64_t n1, int64_t n2);
  ggml_tensor *(*new_tensor_4d)(ggml_context *ctx, int type, int64_t n0, int64_t n1, int64_t n2,
                                int64_t n3);
  ggml_tensor *(*permute)(ggml_context *ctx, ggml_tensor *a, int i0, int i1, int i2, int i3);
  ggml_tensor *(*flash_attn_ext)(ggml_context *ctx, ggml_tensor *q, ggml_tensor *k, ggml_tensor *v,
                                 ggml_tensor *mask, float scale, float max_bias, float softcap);
  void (*flash_attn_ext_set_prec)(ggml_tensor *a, int precision);
  ggml_cgraph *(*new_graph)(ggml_context *ctx);
  void (*build_forward_expand)(ggml_cgraph *graph, ggml_tensor *tensor);
  void *(*get_data)(const ggml_tensor *tensor);
  size_t (*tensor_overhead)(void);
  size_t (*graph_overhead)(void);
  size_t (*row_size)(int type, int64_t n);
  size_t (*quantize_chunk)(int type, const float *src, void *dst, int64_t start, int64_t n_rows,
                           int64_t n_per_row, const float *imatrix);
  void (*threadpool_params_init)(ggml_pool_params *params, int n_threads);
  const char *(*version)(void);
  int (*backend_graph_compute)(ggml_backend *backend, ggml_cgraph *graph);
  ggml_backend *(*backend_cpu_init)(void);
  void (*backend_cpu_set_n_threads)(ggml_backend *backend, int n_threads);
  void (*backend_cpu_set_threadpool)(ggml_backend *backend, ggml_threadpool *pool);
  ggml_threadpool *(*threadpool_new)(ggml_pool_params *params);
  void (*threadpool_pause)(ggml_threadpool *pool);
  void (*threadpool_resume)(ggml_threadpool *pool);
} bench_ggml_functions;
extern bench_ggml_functions ggml; /* set once bench_ggml_missing has said NULL */

const char *bench_ggml_missing(void); /* as of bench_peer */
/* Sets *function to what its base library calls `name`; 0 = this version lacks it. */
int bench_ggml_function(const char *name, void *function);
/* Seconds a run, of up to n_times runs of a graph: as many as a quarter of a second takes, one at
   least. Negative: failed. */
double bench_ggml_compute(ggml_cgraph *graph, int32_t n_times, int32_t n_threads);

#endif /* BENCH_GGML_H_INCLUDED */
