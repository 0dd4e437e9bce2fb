/* ggml.c - flash attention of ggml, the library of llama.cpp: libggml-base.so and the
 * libggml-cpu-*.so that it itself scores highest on this machine, as packaged.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   It gets what it is fastest with. Keys and values lie [head][token][dim]: decoding over
   llama.cpp's own cache, [token][head][dim], takes it 1.7 (f32) to 5 times (bf16) as long. One
   query gets no mask, a prompt the one of float16 that llama.cpp makes. The keys are in its cache
   before the clock starts, though ours appends in its time. Int8 and int4 of ours are held against
   its q8_0 and q4_0. */
#include "ggml.h"
#include "peer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENOUGH_SECONDS 0.25
enum { MASK_ROWS = 64 };               /* a mask's rows come in multiples of these */
#define MOST_MASK ((int64_t)512 << 20) /* bytes: 16384 tokens */
#define QUANTISED_FLOPS 2e10           /* see unsupported */
enum { BLOCK = 32 };                   /* its quantised types are of as many dims */

bench_ggml_functions ggml;
static int looked;
static void *base_library;
static ggml_backend *backend;
static char version_text[128];
static ggml_threadpool *pools[65]; /* by number of threads, made once */

typedef struct ggml_state {
  bench_shape shape;
  bench_buffer memory;
  ggml_context *context;
  ggml_cgraph *graph;
  const float *out;
} ggml_state;

/* ---- the library ---- */

/* The build for this processor: each names its own fitness, 0 = it cannot run here. Its name goes
   into version_text. */
static void *cpu_library(void) {
  static const char *const variants[] = {
      "zen4",       "sapphirerapids", "cooperlake", "icelake", "cascadelake",
      "cannonlake", "skylakex",       "alderlake",  "haswell", "piledriver",
      "ivybridge",  "sandybridge",    "sse42",      "x64"};
  void *best = NULL;
  int best_score = 0;
  for (size_t i = 0; i < sizeof variants / sizeof *variants; i++) {
    char name[64];
    int (*score)(void);
    snprintf(name, sizeof name, "libggml-cpu-%s.so", variants[i]);
    void *library = bench_library((const char *const[]){name, NULL});
    if (!library || !bench_function(library, "ggml_backend_score", &score)) continue;
    if (score() > best_score) {
      best_score = score();
      best = library;
      snprintf(version_text, sizeof version_text, "%s", name);
    }
  }
  return best ? best : bench_library((const char *const[]){"libggml-cpu.so", NULL});
}

static int base_functions(void *base) {
  return bench_function(base, "ggml_init", &ggml.init) &&
         bench_function(base, "ggml_free", &ggml.free) &&
         bench_function(base, "ggml_new_tensor_3d", &ggml.new_tensor_3d) &&
         bench_function(base, "ggml_new_tensor_4d", &ggml.new_tensor_4d) &&
         bench_function(base, "ggml_permute", &ggml.permute) &&
         bench_function(base, "ggml_flash_attn_ext", &ggml.flash_attn_ext) &&
         bench_function(base, "ggml_flash_attn_ext_set_prec", &ggml.flash_attn_ext_set_prec) &&
         bench_function(base, "ggml_new_graph", &ggml.new_graph) &&
         bench_function(base, "ggml_build_forward_expand", &ggml.build_forward_expand) &&
         bench_function(base, "ggml_get_data", &ggml.get_data) &&
         bench_function(base, "ggml_tensor_overhead", &ggml.tensor_overhead) &&
         bench_function(base, "ggml_graph_overhead", &ggml.graph_overhead) &&
         bench_function(base, "ggml_row_size", &ggml.row_size) &&
         bench_function(base, "ggml_quantize_chunk", &ggml.quantize_chunk) &&
         bench_function(base, "ggml_threadpool_params_init", &ggml.threadpool_params_init) &&
         bench_function(base, "ggml_version", &ggml.version) &&
         bench_function(base, "ggml_backend_graph_compute", &ggml.backend_graph_compute);
}

static int cpu_functions(void *cpu) {
  return bench_function(cpu, "ggml_backend_cpu_init", &ggml.backend_cpu_init) &&
         bench_function(cpu, "ggml_backend_cpu_set_n_threads", &ggml.backend_cpu_set_n_threads) &&
         bench_function(cpu, "ggml_backend_cpu_set_threadpool", &ggml.backend_cpu_set_threadpool) &&
         bench_function(cpu, "ggml_threadpool_new", &ggml.threadpool_new) &&
         bench_function(cpu, "ggml_threadpool_pause", &ggml.threadpool_pause) &&
         bench_function(cpu, "ggml_threadpool_resume", &ggml.threadpool_resume);
}

const char *bench_ggml_missing(void) {
  static const char *why = "missing";
  if (looked++) return why;
  void *base = bench_library((const char *const[]){"libggml-base.so", "libggml-base.so.0", NULL});
  void *cpu = base ? cpu_library() : NULL;
  if (!cpu) return why;
  base_library = base;
  if (!base_functions(base) || !cpu_functions(cpu)) return why = "found, but another version";
  size_t n = strlen(version_text);
  snprintf(version_text + n, sizeof version_text - n, " %s", ggml.version());
  backend = ggml.backend_cpu_init();
  return why = backend ? NULL : "found, but does not start";
}

static const char *version(void) { return version_text; }

int bench_ggml_function(const char *name, void *function) {
  return base_library && bench_function(base_library, name, function);
}

/* ---- a shape ---- */

static int type_of(int32_t type) {
  static const int of[] = {[LATTN_F32] = GGML_F32,
                           [LATTN_F16] = GGML_F16,
                           [LATTN_BF16] = GGML_BF16,
                           [LATTN_I8] = GGML_Q8_0,
                           [LATTN_I4] = GGML_Q4_0};
  return of[type];
}
static int key_type(const bench_shape *s) { return type_of(s->type); }
static int value_type(const bench_shape *s) { return type_of(bench_value_type(s)); }
static int is_quantised(int type) { return type == GGML_Q8_0 || type == GGML_Q4_0; }

/* Its quantised types are for keys that are read once: a long prompt would take minutes. */
static const char *unsupported(const bench_shape *s) {
  if (s->streaming_heads) return "no streaming heads";
  if (is_quantised(key_type(s)) || is_quantised(value_type(s))) {
    if (s->key_dim % BLOCK || s->value_dim % BLOCK) return "dims in multiples of 32";
    if (s->queries > 1 && bench_shape_flops(s) > QUANTISED_FLOPS) return "too slow";
  }
  if (s->queries > 1 && s->queries * s->keys * 2 > MOST_MASK) return "its mask is too large";
  return NULL;
}

static size_t data_bytes(const bench_shape *s) {
  size_t rows = (size_t)(s->queries * s->heads), kv_rows = (size_t)(s->keys * s->kv_heads);
  size_t mask_rows = ((size_t)s->queries + MASK_ROWS - 1) / MASK_ROWS * MASK_ROWS;
  return rows * (ggml.row_size(GGML_F32, s->key_dim) + ggml.row_size(GGML_F32, s->value_dim)) +
         kv_rows *
             (ggml.row_size(key_type(s), s->key_dim) + ggml.row_size(value_type(s), s->value_dim)) +
         mask_rows * (size_t)s->keys * sizeof(uint16_t);
}

/* Keys or values, [head][token][dim]. */
static ggml_tensor *kv_make(ggml_context *context, const bench_shape *s, int type, int64_t dim,
                            const void *from) {
  ggml_tensor *t = ggml.new_tensor_3d(context, type, dim, s->keys, s->kv_heads);
  int32_t from_type = bench_input_type(s);
  size_t row_bytes = ggml.row_size(type, dim),
         from_bytes = (size_t)dim * bench_type_bytes(from_type);
  float *row = malloc((size_t)dim * sizeof *row);
  if (!row) return t;
  for (int64_t g = 0; g < s->kv_heads; g++)
    for (int64_t j = 0; j < s->keys; j++) {
      int64_t source = j * s->kv_heads + g;
      char *to = (char *)ggml.get_data(t) + (size_t)(g * s->keys + j) * row_bytes;
      if (!is_quantised(type)) {
        memcpy(to, (const char *)from + (size_t)source * from_bytes, row_bytes);
      } else {
        bench_to_float(from, from_type, source * dim, dim, row);
        ggml.quantize_chunk(type, row, to, 0, 1, dim, NULL);
      }
    }
  free(row);
  return t;
}

/* 0 for the keys that a row sees, minus infinity for later ones. */
static ggml_tensor *mask_make(ggml_context *context, const bench_shape *s) {
  if (s->queries == 1) return NULL;
  int64_t rows = (s->queries + MASK_ROWS - 1) / MASK_ROWS * MASK_ROWS,
          before = s->keys - s->queries;
  ggml_tensor *t = ggml.new_tensor_3d(context, GGML_F16, s->keys, rows, 1);
  uint16_t *mask = ggml.get_data(t);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < s->keys; j++) mask[r * s->keys + j] = j <= before + r ? 0 : 0xfc00;
  return t;
}

static void *prepare(const bench_shape *s, const bench_input *input) {
  ggml_state *state = calloc(1, sizeof *state);
  if (!state) return NULL;
  state->shape = *s;
  size_t bytes = data_bytes(s) + 16 * (ggml.tensor_overhead() + 64) + ggml.graph_overhead();
  state->memory = bench_buffer_make(bytes);
  ggml_context *c = state->context =
      ggml.init((struct ggml_init_params){bytes, state->memory.data, false});
  ggml_tensor *q = ggml.new_tensor_3d(c, GGML_F32, s->key_dim, s->heads, s->queries);
  size_t n_q = (size_t)(s->queries * s->heads) * (size_t)s->key_dim;
  memcpy(ggml.get_data(q), input->q.data, n_q * sizeof(float));
  ggml_tensor *k = kv_make(c, s, key_type(s), s->key_dim, input->k.data);
  ggml_tensor *v = kv_make(c, s, value_type(s), s->value_dim, input->v.data);
  ggml_tensor *out = ggml.flash_attn_ext(c, ggml.permute(c, q, 0, 2, 1, 3), k, v, mask_make(c, s),
                                         1 / sqrtf((float)s->key_dim), 0, 0);
  ggml.flash_attn_ext_set_prec(out, GGML_PREC_F32); /* as llama.cpp asks */
  state->graph = ggml.new_graph(c);
  ggml.build_forward_expand(state->graph, out);
  state->out = ggml.get_data(out);
  return state;
}

/* ---- running ---- */

static ggml_threadpool *pool_of(int32_t n_threads) {
  if (n_threads < 1 || n_threads >= (int32_t)(sizeof pools / sizeof *pools)) return NULL;
  if (!pools[n_threads]) {
    ggml_pool_params params;
    ggml.threadpool_params_init(&params, n_threads);
    pools[n_threads] = ggml.threadpool_new(&params);
  }
  return pools[n_threads];
}

double bench_ggml_compute(ggml_cgraph *graph, int32_t n_times, int32_t n_threads) {
  ggml_threadpool *pool = pool_of(n_threads);
  if (!pool) return -1;
  ggml.backend_cpu_set_n_threads(backend, n_threads);
  ggml.backend_cpu_set_threadpool(backend, pool);
  ggml.threadpool_resume(pool);
  int status = 0;
  int32_t n = 0;
  double start = bench_seconds(), seconds = 0;
  while (n < n_times && !status && seconds < ENOUGH_SECONDS) {
    status = ggml.backend_graph_compute(backend, graph);
    seconds = bench_seconds() - start;
    n++;
  }
  ggml.threadpool_pause(pool); /* else its threads spin into the time of whoever is next */
  return status ? -1 : seconds / n;
}

static double run(void *state, int32_t n_threads) {
  const ggml_state *s = state;
  return bench_ggml_compute(s->graph, 1, n_threads);
}

static const float *row(void *state, int64_t query, int32_t head) {
  const ggml_state *s = state;
  return s->out + (query * s->shape.heads + head) * s->shape.value_dim;
}

static void release(void *state) {
  ggml_state *s = state;
  ggml.free(s->context);
  bench_buffer_free(&s->memory);
  free(s);
}

/* One query over float16 keys: it sums the values in float16 too, and each of n roundings of
   2^-11 moves a sum that walks as far as twice its end; a walk of n such steps, sqrt(n). Else it
   sums in float32, and the inputs are exact in every type. */
static double tolerance(const bench_shape *s) {
  if (s->type == LATTN_F16) return 2 * 0x1p-11 * sqrt((double)s->keys);
  return 1e-4 + bench_shape_rounding(s); /* its own, beside that of ours */
}

static double goal(const bench_shape *s) {
  if (s->queries > 1) return is_quantised(key_type(s)) ? 0 : 2.8;
  if (s->heads == s->kv_heads) return 0;
  return s->type == LATTN_F16 ? 4 : s->type == LATTN_I8 ? 15 : s->type == LATTN_I4 ? 25 : 0;
}

const bench_peer bench_ggml = {
    .name = "ggml",
    .missing = bench_ggml_missing,
    .unsupported = unsupported,
    .prepare = prepare,
    .run = run,
    .row = row,
    .release = release,
    .tolerance = tolerance,
    .goal = goal,
    .version = version,
};
