/* llama.c - loader and forward pass; see llama.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifdef _OPENMP
#define LONGATTN_OPENMP 1
#endif
#define LONGATTN_IMPLEMENTATION
#include "llama.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One rounding where the machine has a fused multiply-add: a strict -std=c11 lets gcc use it only
   by name. Elsewhere fmaf would be a slow function. */
#ifdef FP_FAST_FMAF
#define MULTIPLY_ADD(a, b, c) fmaf(a, b, c)
#else
#define MULTIPLY_ADD(a, b, c) ((a) * (b) + (c))
#endif

/* ---- threads ---- */

typedef void (*range_function)(void *job, int64_t begin, int64_t end);

typedef struct ranges {
  range_function function;
  void *job;
  int64_t n_items;
  int32_t n_tasks;
} ranges;

static void run_range(void *context, int32_t task) {
  const ranges *r = (const ranges *)context;
  r->function(r->job, r->n_items * task / r->n_tasks, r->n_items * (task + 1) / r->n_tasks);
}

/* Splits n_items among the threads. */
static void run(int32_t n_tasks, int64_t n_items, range_function function, void *job) {
  ranges r = {function, job, n_items, n_tasks};
  if (n_tasks <= 1) function(job, 0, n_items);
  else lattn_parallel_openmp(NULL, n_tasks, run_range, &r);
}

/* ---- matrix times a block of tokens ---- */

enum {
  TILE_ROWS = 4,
  WORTH_THREADS = 1000000 /* multiply-adds: about 20 microseconds */
};

/* y[r][o] = sum over i of x[r][i] * w[i][o], for one panel of outputs. The loop over outputs is the
   inner one and vectorises; four inputs a pass, so that the sums are loaded and stored once for
   four multiply-adds. Each sum is one chain over i: the rows and their number change no bit. */
static inline void tile(float *y, int64_t y_stride, const float *x, int64_t x_stride,
                        const float *w, int64_t n_in, int32_t n_rows, int32_t n_out) {
  float sums[TILE_ROWS][LLAMA_PANEL] = {{0}};
  int64_t i = 0;
  for (; i + 4 <= n_in; i += 4, w += 4 * LLAMA_PANEL)
    for (int32_t r = 0; r < n_rows; r++) {
      const float *xi = x + r * x_stride + i;
      const float x0 = xi[0], x1 = xi[1], x2 = xi[2], x3 = xi[3];
      float *sum = sums[r];
      for (int32_t o = 0; o < LLAMA_PANEL; o++) {
        float s = MULTIPLY_ADD(x0, w[o], sum[o]);
        s = MULTIPLY_ADD(x1, w[LLAMA_PANEL + o], s);
        s = MULTIPLY_ADD(x2, w[2 * LLAMA_PANEL + o], s);
        sum[o] = MULTIPLY_ADD(x3, w[3 * LLAMA_PANEL + o], s);
      }
    }
  for (; i < n_in; i++, w += LLAMA_PANEL)
    for (int32_t r = 0; r < n_rows; r++)
      for (int32_t o = 0; o < LLAMA_PANEL; o++)
        sums[r][o] = MULTIPLY_ADD(x[r * x_stride + i], w[o], sums[r][o]);
  for (int32_t r = 0; r < n_rows; r++)
    memcpy(y + r * y_stride, sums[r], (size_t)n_out * sizeof(float));
}

/* Up to TILE_ROWS rows, each number a loop of its own: few rows (drafts) are worth it too. */
static void some_rows(float *y, int64_t y_stride, const float *x, int64_t x_stride, const float *w,
                      int64_t n_in, int64_t n_rows, int32_t n_out) {
  if (n_rows >= TILE_ROWS) tile(y, y_stride, x, x_stride, w, n_in, TILE_ROWS, n_out);
  else if (n_rows == 3) tile(y, y_stride, x, x_stride, w, n_in, 3, n_out);
  else if (n_rows == 2) tile(y, y_stride, x, x_stride, w, n_in, 2, n_out);
  else tile(y, y_stride, x, x_stride, w, n_in, 1, n_out);
}

typedef struct matmul_job {
  const llama_matrix *matrix;
  const float *x;
  float *y;
  int64_t n_rows;
} matmul_job;

static void matmul_panels(void *context, int64_t begin, int64_t end) {
  const matmul_job *job = (const matmul_job *)context;
  const llama_matrix *m = job->matrix;
  for (int64_t panel = begin; panel < end; panel++) {
    int64_t rest = m->n_out - panel * LLAMA_PANEL, row = 0;
    int32_t n_out = rest < LLAMA_PANEL ? (int32_t)rest : LLAMA_PANEL;
    const float *w = m->panels + panel * LLAMA_PANEL * m->n_in, *x = job->x;
    float *y = job->y + panel * LLAMA_PANEL;
    for (; row < job->n_rows; row += TILE_ROWS)
      some_rows(y + row * m->n_out, m->n_out, x + row * m->n_in, m->n_in, w, m->n_in,
                job->n_rows - row, n_out);
  }
}

/* y [n_rows][n_out] = x [n_rows][n_in] times the matrix. Threads share the panels, if there is
   more to do than it costs to wake them. */
static void matmul(const llama_matrix *m, const float *x, float *y, int64_t n_rows,
                   int32_t n_threads) {
  matmul_job job = {m, x, y, n_rows};
  int64_t n_panels = (m->n_out + LLAMA_PANEL - 1) / LLAMA_PANEL;
  if (n_rows * m->n_in * m->n_out < WORTH_THREADS) n_threads = 1;
  run(n_threads, n_panels, matmul_panels, &job);
}

void llama_unpack(const llama_matrix *matrix, float *rows) {
  int64_t n_in = matrix->n_in;
  for (int64_t o = 0; o < matrix->n_out; o++)
    for (int64_t i = 0; i < n_in; i++)
      rows[o * n_in + i] =
          matrix->panels[(o / LLAMA_PANEL * n_in + i) * LLAMA_PANEL + o % LLAMA_PANEL];
}

/* ---- the other functions of a layer ---- */

/* y = x / sqrt(mean of x^2 + epsilon) * weight (Zhang and Sennrich, RMSNorm), row by row. */
static void rms_norm(float *y, const float *x, const float *weight, int64_t n_rows, int32_t dim) {
  for (int64_t row = 0; row < n_rows; row++, x += dim, y += dim) {
    float sums[16] = {0}, sum = 0;
    int32_t i = 0;
    for (; i + 16 <= dim; i += 16)
      for (int32_t lane = 0; lane < 16; lane++) sums[lane] += x[i + lane] * x[i + lane];
    for (; i < dim; i++) sum += x[i] * x[i];
    for (int32_t lane = 0; lane < 16; lane++) sum += sums[lane];
    float factor = 1.0f / sqrtf(sum / (float)dim + 1e-5f);
    for (i = 0; i < dim; i++) y[i] = x[i] * factor * weight[i];
  }
}

/* exp to a few ulp, in a form that vectorises (a call of expf does not): 2^n * exp(r). */
static inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float rounded = x * 1.44269504f + 12582912.0f; /* n in the low bits of the mantissa */
  float n = rounded - 12582912.0f;
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 0.00833633821f + r * 0.00139304355f;
  p = 0.166666657f + r * (0.0416664824f + r * p);
  p = 1.0f + r * (1.0f + r * (0.5f + r * p));
  uint32_t bits;
  memcpy(&bits, &rounded, 4);
  bits = (bits << 23) + 0x3f800000u; /* 2^n: shifts everything but n out */
  float power;
  memcpy(&power, &bits, 4);
  return p * power;
}

static inline float silu(float x) { return x / (1.0f + fast_exp(-x)); }

/* y [dim] = silu(x [0 ... dim - 1]) * x [dim ... 2 * dim - 1] (Shazeer, SwiGLU), row by row. */
static void swiglu(float *y, const float *x, int64_t n_rows, int32_t dim) {
  for (int64_t row = 0; row < n_rows; row++, x += 2 * dim, y += dim)
    for (int32_t i = 0; i < dim; i++) y[i] = silu(x[i]) * x[dim + i];
}

static void add(float *x, const float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

/* ---- loading a checkpoint ---- */

/* The header of a llama2.c checkpoint: seven little-endian int32. That of a hybrid: a name, then
   int32: a version, those seven, five more, and the kind of each layer. */
enum {
  HEADER_INTS = 7,
  HEADER_BYTES = 28,
  MAGIC_V1 = 0x616b3432,
  NAME_BYTES = 12,
  HYBRID_INTS = 12,
  HYBRID_BYTES = NAME_BYTES + 4 + 4 * HYBRID_INTS, /* and 4 a layer */
  MOST_TAPS = 16
};
static const char hybrid_name[] = "lattn-hybrid";

static int model_error(char *error, const char *format, const char *path, long long a,
                       long long b) {
  snprintf(error, LLAMA_ERROR, format, path, a, b);
  return -1;
}

/* Takes over the numbers of a header; without a Llama's negative vocabulary size. */
static int set_sizes(llama_model *m, const int32_t *h, int n, const char *path, char *error) {
  static const int32_t most[HYBRID_INTS] = {1 << 16, 1 << 20, 1 << 12, 1 << 12, 1 << 12, 1 << 24,
                                            1 << 30, 1 << 30, 1 << 12, 1 << 10, 1 << 10, MOST_TAPS};
  static const char *const names[HYBRID_INTS] = {"%s: dim is %lld",
                                                 "%s: hidden dim is %lld",
                                                 "%s: number of layers is %lld",
                                                 "%s: number of heads is %lld",
                                                 "%s: number of KV heads is %lld",
                                                 "%s: vocabulary size is %lld",
                                                 "%s: context length is %lld",
                                                 "%s: window is %lld",
                                                 "%s: number of delta heads is %lld",
                                                 "%s: key dim of delta heads is %lld",
                                                 "%s: value dim of delta heads is %lld",
                                                 "%s: width of the convolution is %lld"};
  for (int i = 0; i < n; i++)
    if (h[i] < 1 || h[i] > most[i]) return model_error(error, names[i], path, h[i], 0);
  m->dim = h[0], m->hidden_dim = h[1], m->n_layers = h[2], m->n_heads = h[3];
  m->n_kv_heads = h[4], m->vocab_size = h[5], m->max_length = h[6];
  m->classifier.panels = NULL;
  if (m->dim % m->n_heads || m->dim / m->n_heads % 2 || m->dim / m->n_heads > 1024)
    return model_error(error, "%s: dim %lld cannot be split into %lld heads", path, m->dim,
                       m->n_heads);
  if (m->n_heads % m->n_kv_heads)
    return model_error(error, "%s: %lld heads cannot share %lld KV heads", path, m->n_heads,
                       m->n_kv_heads);
  m->head_dim = m->dim / m->n_heads;
  if (n == HEADER_INTS) return 0;
  m->window = h[7], m->delta_heads = h[8], m->delta_key_dim = h[9], m->delta_value_dim = h[10];
  m->n_taps = h[11];
  if (m->delta_heads * m->delta_value_dim != m->dim)
    return model_error(error, "%s: dim is not %lld delta heads of %lld", path, m->delta_heads,
                       m->delta_value_dim);
  return 0;
}

/* The kinds of the layers: NULL = all full. */
static int make_layers(llama_model *m, const int32_t *kinds, const char *path, char *error) {
  static const lattn_head window = {
      .policy = LATTN_HEAD_STREAMING, .positions = LATTN_POSITIONS_ABSOLUTE, .window = 1};
  m->layers = (llama_layer *)calloc((size_t)m->n_layers, sizeof(llama_layer));
  m->window_heads = (lattn_head *)calloc((size_t)m->n_kv_heads, sizeof(lattn_head));
  if (!m->layers || !m->window_heads)
    return model_error(error, "%s: not enough memory for %lld layers", path, m->n_layers, 0);
  for (int32_t g = 0; g < m->n_kv_heads; g++) {
    m->window_heads[g] = window;
    m->window_heads[g].window = m->window;
  }
  for (int32_t l = 0; l < m->n_layers && kinds; l++) {
    if (kinds[l] < LLAMA_FULL || kinds[l] > LLAMA_DELTA)
      return model_error(error, "%s: layer %lld is of unknown kind %lld", path, l, kinds[l]);
    m->layers[l].kind = kinds[l];
    m->n_deltas += kinds[l] == LLAMA_DELTA;
  }
  return 0;
}

/* What follows the name. */
static int read_hybrid(FILE *file, const char *path, llama_model *m, char *error) {
  int32_t h[1 + HYBRID_INTS], *kinds;
  if (fread(h, 4, 1 + HYBRID_INTS, file) != 1 + HYBRID_INTS)
    return model_error(error, "%s: too short for a model", path, 0, 0);
  if (h[0] != 1)
    return model_error(error, "%s: version %lld; the engine reads version 1", path, h[0], 0);
  if (set_sizes(m, h + 1, HYBRID_INTS, path, error)) return -1;
  kinds = (int32_t *)malloc(4 * (size_t)m->n_layers);
  int bad = !kinds || fread(kinds, 4, (size_t)m->n_layers, file) != (size_t)m->n_layers
                ? model_error(error, "%s: too short for a model", path, 0, 0)
                : make_layers(m, kinds, path, error);
  free(kinds);
  return bad;
}

/* -1, or 1 if the output matrix is a Llama's own, and 0 if not. */
static int read_header(FILE *file, const char *path, llama_model *m, char *error) {
  char name[NAME_BYTES];
  int32_t h[HEADER_INTS];
  if (fread(name, 1, NAME_BYTES, file) == NAME_BYTES && !memcmp(name, hybrid_name, NAME_BYTES))
    return read_hybrid(file, path, m, error);
  rewind(file);
  if (fread(h, 4, HEADER_INTS, file) != HEADER_INTS)
    return model_error(error, "%s: too short for a checkpoint", path, 0, 0);
  if (h[0] == MAGIC_V1)
    return model_error(error, "%s: a version %lld export; the engine reads version 0 (legacy)",
                       path, h[1], 0);
  int own_output = h[5] < 0 && h[5] > -INT32_MAX;
  if (own_output) h[5] = -h[5];
  if (set_sizes(m, h, HEADER_INTS, path, error)) return -1;
  m->window = 1;
  return make_layers(m, NULL, path, error) ? -1 : own_output;
}

static int64_t panel_floats(const llama_matrix *m) {
  int64_t n_panels = (m->n_out + LLAMA_PANEL - 1) / LLAMA_PANEL;
  return n_panels * LLAMA_PANEL * m->n_in;
}

static int64_t delta_channels(const llama_model *m) { /* that the convolution has */
  return (int64_t)m->delta_heads * (2 * m->delta_key_dim + m->delta_value_dim);
}

/* Weights of one layer beside its four matrices and two norms. */
static int64_t delta_floats(const llama_model *m) {
  return m->n_taps * delta_channels(m) + 2 * m->delta_heads + m->delta_value_dim;
}

static void set_shape(llama_matrix *matrix, int64_t n_in, int64_t n_out, int64_t *n_parameters) {
  matrix->n_in = (int32_t)n_in;
  matrix->n_out = (int32_t)n_out;
  *n_parameters += n_in * n_out;
}

/* Sets the matrices' shapes; counts the floats of the file and those in memory. */
static void measure(llama_model *m, int own_output, int hybrid, int64_t *in_memory,
                    int64_t *in_file) {
  int64_t dim = m->dim, kv_dim = (int64_t)m->n_kv_heads * m->head_dim, n = 0;
  int64_t embedding = m->vocab_size * dim;
  m->classifier.n_in = m->dim;
  m->classifier.n_out = m->vocab_size;
  *in_memory = embedding + dim + panel_floats(&m->classifier);
  for (int32_t l = 0; l < m->n_layers; l++) {
    llama_layer *layer = &m->layers[l];
    int delta = layer->kind == LLAMA_DELTA;
    int64_t others = 2 * dim + (delta ? delta_floats(m) : 0);
    set_shape(&layer->qkv, dim,
              delta ? delta_channels(m) + dim + 2 * m->delta_heads : dim + 2 * kv_dim, &n);
    set_shape(&layer->out, dim, dim, &n);
    set_shape(&layer->gate_up, dim, 2 * m->hidden_dim, &n);
    set_shape(&layer->down, m->hidden_dim, dim, &n);
    n += others;
    *in_memory += others + panel_floats(&layer->qkv) + panel_floats(&layer->out) +
                  panel_floats(&layer->gate_up) + panel_floats(&layer->down);
  }
  m->n_parameters = embedding + n + dim + (own_output ? embedding : 0);
  /* after a Llama's weights come two tables of rotary angles, which nobody needs */
  *in_file = m->n_parameters + (hybrid ? 0 : (int64_t)m->max_length * m->head_dim);
}

static float *take(float **memory, int64_t n) {
  float *p = *memory;
  *memory += n;
  return p;
}

static void take_matrix(float **memory, llama_matrix *m) {
  m->panels = take(memory, panel_floats(m));
}

static int allocate(llama_model *m, int64_t n_floats) {
  if ((uint64_t)n_floats > SIZE_MAX / sizeof(float)) return -1;
  m->memory = (float *)calloc((size_t)n_floats, sizeof(float));
  if (!m->memory) return -1;
  float *memory = m->memory;
  m->embedding = take(&memory, (int64_t)m->vocab_size * m->dim);
  m->final_norm = take(&memory, m->dim);
  take_matrix(&memory, &m->classifier);
  for (int32_t l = 0; l < m->n_layers; l++) {
    llama_layer *layer = &m->layers[l];
    layer->attention_norm = take(&memory, m->dim);
    layer->feed_forward_norm = take(&memory, m->dim);
    take_matrix(&memory, &layer->qkv);
    take_matrix(&memory, &layer->out);
    take_matrix(&memory, &layer->gate_up);
    take_matrix(&memory, &layer->down);
    if (layer->kind != LLAMA_DELTA) continue;
    layer->taps = take(&memory, m->n_taps * delta_channels(m));
    layer->decay = take(&memory, 2 * m->delta_heads);
    layer->output_norm = take(&memory, m->delta_value_dim);
  }
  return 0;
}

/* Reads n finite floats. */
static int read_floats(FILE *file, float *to, int64_t n) {
  if (fread(to, sizeof(float), (size_t)n, file) != (size_t)n) return -1;
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(to[i])) return -1;
  return 0;
}

/* Transposes row-major weights into the panels, as outputs first_out ... first_out + n_out - 1. */
static void put_rows(llama_matrix *m, int64_t first_out, int64_t n_out, const float *weights) {
  for (int64_t r = 0; r < n_out; r++) {
    int64_t out = first_out + r, panel = out / LLAMA_PANEL, lane = out % LLAMA_PANEL;
    float *to = m->panels + panel * LLAMA_PANEL * m->n_in + lane;
    for (int64_t i = 0; i < m->n_in; i++) to[i * LLAMA_PANEL] = weights[r * m->n_in + i];
  }
}

/* Where a kind of layer weights goes: a matrix of llama_layer, at some of its outputs. */
typedef struct weight_place {
  size_t matrix;
  int64_t first_out, n_out;
} weight_place;

static int read_rows(FILE *file, llama_layer *layer, weight_place place, float *row_major) {
  llama_matrix *matrix = (llama_matrix *)(void *)((char *)layer + place.matrix);
  if (read_floats(file, row_major, place.n_out * matrix->n_in)) return -1;
  put_rows(matrix, place.first_out, place.n_out, row_major);
  return 0;
}

/* Reads one kind of weights of all layers: a llama2.c checkpoint goes kind by kind. */
static int read_kind(FILE *file, llama_model *m, weight_place place, float *row_major) {
  for (int32_t l = 0; l < m->n_layers; l++)
    if (read_rows(file, &m->layers[l], place, row_major)) return -1;
  return 0;
}

/* Hybrids go layer by layer. This is the delta net's own part, between its norm and `out`. */
static int read_delta(FILE *file, const llama_model *m, llama_layer *layer, float *row_major) {
  int64_t keys = (int64_t)m->delta_heads * m->delta_key_dim, heads = m->delta_heads, first = 0;
  int64_t channels = delta_channels(m);
  const int64_t n_out[] = {keys, keys, m->dim, m->dim, heads, heads}; /* q, k, v, z, decay, beta */
  for (int i = 0; i < 6; first += n_out[i++]) {
    weight_place place = {offsetof(llama_layer, qkv), first, n_out[i]};
    if (read_rows(file, layer, place, row_major)) return -1;
  }
  if (read_floats(file, row_major, channels * m->n_taps)) return -1;
  for (int64_t c = 0; c < channels; c++)
    for (int32_t i = 0; i < m->n_taps; i++)
      layer->taps[i * channels + c] = row_major[c * m->n_taps + i];
  return read_floats(file, layer->decay, 2 * heads) ||
         read_floats(file, layer->output_norm, m->delta_value_dim);
}

static int read_hybrid_weights(FILE *file, llama_model *m, float *row_major) {
  int64_t dim = m->dim, kv_dim = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  const weight_place qkv[] = {{offsetof(llama_layer, qkv), 0, dim},
                              {offsetof(llama_layer, qkv), dim, kv_dim},
                              {offsetof(llama_layer, qkv), dim + kv_dim, kv_dim}};
  const weight_place out = {offsetof(llama_layer, out), 0, dim};
  const weight_place feed_forward[] = {{offsetof(llama_layer, gate_up), 0, hidden},
                                       {offsetof(llama_layer, down), 0, dim},
                                       {offsetof(llama_layer, gate_up), hidden, hidden}};
  int bad = read_floats(file, m->embedding, m->vocab_size * dim);
  for (int32_t l = 0; l < m->n_layers && !bad; l++) {
    llama_layer *layer = &m->layers[l];
    bad = read_floats(file, layer->attention_norm, dim);
    if (layer->kind == LLAMA_DELTA) bad = bad || read_delta(file, m, layer, row_major);
    else
      for (int i = 0; i < 3; i++) bad = bad || read_rows(file, layer, qkv[i], row_major);
    bad = bad || read_rows(file, layer, out, row_major) ||
          read_floats(file, layer->feed_forward_norm, dim);
    for (int i = 0; i < 3; i++) bad = bad || read_rows(file, layer, feed_forward[i], row_major);
  }
  if (bad || read_floats(file, m->final_norm, dim)) return -1;
  put_rows(&m->classifier, 0, m->vocab_size, m->embedding);
  return 0;
}

static int read_weights(FILE *file, llama_model *m, int own_output, float *row_major) {
  int64_t dim = m->dim, kv_dim = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  const weight_place attention[] = {{offsetof(llama_layer, qkv), 0, dim},
                                    {offsetof(llama_layer, qkv), dim, kv_dim},
                                    {offsetof(llama_layer, qkv), dim + kv_dim, kv_dim},
                                    {offsetof(llama_layer, out), 0, dim}};
  const weight_place feed_forward[] = {{offsetof(llama_layer, gate_up), 0, hidden},
                                       {offsetof(llama_layer, down), 0, dim},
                                       {offsetof(llama_layer, gate_up), hidden, hidden}};
  if (read_floats(file, m->embedding, m->vocab_size * dim)) return -1;
  for (int32_t l = 0; l < m->n_layers; l++)
    if (read_floats(file, m->layers[l].attention_norm, dim)) return -1;
  for (int i = 0; i < 4; i++)
    if (read_kind(file, m, attention[i], row_major)) return -1;
  for (int32_t l = 0; l < m->n_layers; l++)
    if (read_floats(file, m->layers[l].feed_forward_norm, dim)) return -1;
  for (int i = 0; i < 3; i++)
    if (read_kind(file, m, feed_forward[i], row_major)) return -1;
  if (read_floats(file, m->final_norm, dim)) return -1;
  if (!own_output) {
    put_rows(&m->classifier, 0, m->vocab_size, m->embedding);
    return 0;
  }
  if (fseek(file, 4L * m->max_length * m->head_dim, SEEK_CUR)) return -1;
  if (read_floats(file, row_major, m->vocab_size * dim)) return -1;
  put_rows(&m->classifier, 0, m->vocab_size, row_major);
  return 0;
}

static int read_model(FILE *file, llama_model *m, const char *path, char *error) {
  int64_t in_memory, in_file, largest;
  if (fseek(file, 0, SEEK_END)) return model_error(error, "%s: not a regular file", path, 0, 0);
  int64_t bytes = ftell(file);
  rewind(file);
  int own_output = read_header(file, path, m, error), hybrid = m->n_taps > 0;
  if (own_output < 0) return -1;
  measure(m, own_output, hybrid, &in_memory, &in_file);
  int64_t promised = 4 * in_file + (hybrid ? HYBRID_BYTES + 4 * m->n_layers : HEADER_BYTES);
  if (bytes != promised)
    return model_error(error, "%s: %lld bytes, but its header promises %lld", path, bytes,
                       promised);
  largest = m->dim > m->hidden_dim ? m->dim : m->hidden_dim;
  if (own_output && m->vocab_size > largest) largest = m->vocab_size;
  largest *= m->dim;
  if (hybrid && delta_channels(m) * m->n_taps > largest) largest = delta_channels(m) * m->n_taps;
  if (hybrid && delta_channels(m) * m->dim > largest) largest = delta_channels(m) * m->dim;
  float *row_major = (float *)malloc((size_t)largest * sizeof(float));
  int bad = !row_major || allocate(m, in_memory)
                ? model_error(error, "%s: not enough memory for %lld parameters", path,
                              m->n_parameters, 0)
                : 0;
  if (!bad && (hybrid ? read_hybrid_weights(file, m, row_major)
                      : read_weights(file, m, own_output, row_major)))
    bad = model_error(error, "%s: a weight is not a finite number, or the file cannot be read",
                      path, 0, 0);
  free(row_major);
  return bad;
}

int llama_model_load(llama_model *model, const char *path, char error[LLAMA_ERROR]) {
  memset(model, 0, sizeof *model);
  FILE *file = fopen(path, "rb");
  if (!file) return model_error(error, "%s: cannot be opened", path, 0, 0);
  int bad = read_model(file, model, path, error);
  fclose(file);
  if (bad) llama_model_free(model);
  return bad;
}

void llama_model_free(llama_model *model) {
  free(model->layers);
  free(model->window_heads);
  free(model->memory);
  memset(model, 0, sizeof *model);
}

/* ---- sessions ---- */

/* What a gated delta net keeps. */
typedef struct recurrence {
  lattn_state *state;
  /* [n_taps - 1 + LLAMA_DRAFTS][channels] what the convolution saw last, oldest first; drafts */
  float *history;
} recurrence;

/* What a layer keeps: a cache or a recurrence. */
typedef struct layer_memory {
  lattn_cache *cache;
  lattn_checkpoint *marked_cache;
  recurrence now, marked;
} layer_memory;

struct llama_session {
  const llama_model *model;
  int64_t length, capacity;
  int64_t marked; /* position of the mark, or -1 */
  int32_t n_threads, n_drafts;
  int (*progress)(void *user, int64_t done, int64_t total);
  void *user;
  llama_observer observer;
  void *observer_user;
  layer_memory *layers; /* [n_layers] */
  void *arena, *scratch;
  size_t scratch_bytes;
  unsigned char *states; /* of all recurrences, state_bytes each */
  size_t state_bytes;
  float *histories;
  float *buffers; /* of a block, all [LLAMA_BLOCK][...]: */
  float *x;       /* [dim] the residual stream */
  float *h;       /* [dim] what is normalised, or comes from attention */
  float *lse;     /* [n_heads] of attention */
  float *hidden;  /* [hidden_dim] */
  float *wide;    /* [wide_dim] queries, keys and values; gate and up */
  int64_t wide_dim;
};

/* One layer's cache. `turns` must hold head_dim / 2. */
static lattn_cache_config cache_config(const llama_model *m, const llama_options *options,
                                       const lattn_rotary *rotary, int32_t layer) {
  lattn_cache_config c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.head_size = sizeof(lattn_head);
  c.n_kv_heads = m->n_kv_heads;
  c.n_heads = m->n_heads;
  c.key_dim = m->head_dim;
  c.key_type = c.value_type = options->kv_type;
  c.max_append = LLAMA_BLOCK;
  c.max_drafts = LLAMA_DRAFTS;
  c.rotary = rotary;
  if (m->layers[layer].kind == LLAMA_WINDOW) c.heads = m->window_heads;
  else if (options->heads) c.heads = options->heads + (int64_t)layer * m->n_kv_heads;
  int any_full = !c.heads;
  for (int32_t g = 0; g < m->n_kv_heads && c.heads; g++) {
    if (c.heads[g].policy == LATTN_HEAD_FULL || c.heads[g].mark) any_full = 1;
    if (c.heads[g].policy == LATTN_HEAD_COMPENSATED && c.heads[g].window <= c.max_drafts)
      c.max_drafts = c.heads[g].window > 0 ? (int32_t)c.heads[g].window - 1 : 0;
  }
  if (any_full) c.capacity = options->capacity;
  return c;
}

static lattn_status state_config(const llama_model *m, lattn_state_config *c) {
  memset(c, 0, sizeof *c);
  c->size = sizeof *c;
  c->n_heads = m->delta_heads;
  c->key_dim = m->delta_key_dim;
  c->value_dim = m->delta_value_dim;
  c->max_drafts = LLAMA_STATE_DRAFTS;
  return lattn_state_preset(c, LATTN_PRESET_GATED_DELTA_NET);
}

/* Room for the recurrences of all layers and as many marked ones. */
static int recurrent_memory(llama_session *s) {
  const llama_model *m = s->model;
  lattn_state_config c;
  size_t n = 2 * (size_t)m->n_deltas;
  if (!n) return 0;
  if (state_config(m, &c)) return -1;
  s->state_bytes = lattn_state_bytes(&c);
  size_t scratch = lattn_state_scratch(&c, LLAMA_BLOCK, s->n_threads);
  if (scratch > s->scratch_bytes) s->scratch_bytes = scratch;
  if (!s->state_bytes) return -1;
  s->state_bytes = (s->state_bytes + 127) / 64 * 64; /* each begins on a cache line */
  s->states = (unsigned char *)malloc(n * s->state_bytes);
  s->histories = (float *)calloc(n * (size_t)(m->n_taps - 1 + LLAMA_DRAFTS),
                                 (size_t)delta_channels(m) * sizeof(float));
  return s->states && s->histories ? 0 : -1;
}

/* Sizes the arena and the scratch of all layers. */
static int session_memory(llama_session *s, const llama_options *options,
                          const lattn_rotary *rotary, size_t *arena_bytes) {
  const llama_model *m = s->model;
  s->wide_dim = 2 * m->hidden_dim;
  *arena_bytes = 0;
  s->layers = (layer_memory *)calloc((size_t)m->n_layers, sizeof(layer_memory));
  for (int32_t l = 0; l < m->n_layers; l++) {
    if (m->layers[l].qkv.n_out > s->wide_dim) s->wide_dim = m->layers[l].qkv.n_out;
    if (m->layers[l].kind == LLAMA_DELTA) continue;
    lattn_cache_config c = cache_config(m, options, rotary, l);
    /* twice, if the session can be marked: a mark holds pages that the cache has left */
    size_t bytes = lattn_pool_bytes(NULL, &c, m->n_deltas ? 2 : 1);
    size_t scratch = lattn_cache_scratch(&c, LLAMA_BLOCK, s->n_threads);
    if (!bytes || *arena_bytes > SIZE_MAX - bytes) return -1;
    *arena_bytes += bytes;
    if (scratch > s->scratch_bytes) s->scratch_bytes = scratch;
  }
  if (recurrent_memory(s)) return -1;
  size_t a = LLAMA_BLOCK * (size_t)m->dim, b = LLAMA_BLOCK * (size_t)m->hidden_dim;
  size_t c = LLAMA_BLOCK * (size_t)m->n_heads;
  s->arena = malloc(*arena_bytes + 1);
  s->scratch = malloc(s->scratch_bytes + 1);
  s->buffers = (float *)malloc((2 * a + b + c + LLAMA_BLOCK * (size_t)s->wide_dim) * sizeof(float));
  if (!s->arena || !s->scratch || !s->layers || !s->buffers) return -1;
  s->x = s->buffers;
  s->h = s->x + a;
  s->hidden = s->h + a;
  s->lse = s->hidden + b;
  s->wide = s->lse + c;
  return 0;
}

/* The i-th recurrence of all. */
static lattn_status make_recurrence(llama_session *s, recurrence *r, int64_t i) {
  const llama_model *m = s->model;
  lattn_state_config c;
  lattn_status status = state_config(m, &c);
  r->history = s->histories + i * (m->n_taps - 1 + LLAMA_DRAFTS) * delta_channels(m);
  if (status) return status;
  return lattn_state_init(&r->state, s->states + (size_t)i * s->state_bytes, s->state_bytes, &c);
}

static lattn_status session_layers(llama_session *s, const llama_options *options,
                                   const lattn_rotary *rotary, size_t arena_bytes,
                                   lattn_fault *fault) {
  const llama_model *m = s->model;
  lattn_pool *pool = NULL;
  lattn_status status = LATTN_OK;
  int64_t n = 0;
  s->capacity = INT64_MAX;
  s->marked = -1;
  if (m->n_deltas < m->n_layers) status = lattn_pool_init(&pool, s->arena, arena_bytes, NULL);
  for (int32_t l = 0; l < m->n_layers && !status; l++) {
    layer_memory *layer = &s->layers[l];
    if (m->layers[l].kind == LLAMA_DELTA) {
      status = make_recurrence(s, &layer->now, n++);
      if (!status) status = make_recurrence(s, &layer->marked, n++);
      continue;
    }
    lattn_cache_config c = cache_config(m, options, rotary, l);
    c.fault = fault;
    if (c.capacity) s->capacity = c.capacity;
    status = lattn_cache_init(&layer->cache, pool, &c);
  }
  return status;
}

lattn_status llama_rotary(const llama_model *model, lattn_rotary *rotary,
                          uint64_t turns[LLAMA_MOST_TURNS]) {
  lattn_rotary_scaling scaling;
  memset(&scaling, 0, sizeof scaling);
  scaling.size = sizeof scaling;
  scaling.n_dims = model->head_dim;
  scaling.flags = LATTN_ROTARY_ROUND_F32; /* as in the programs that trained such models */
  memset(rotary, 0, sizeof *rotary);
  rotary->size = sizeof *rotary;
  rotary->layout = LATTN_ROTARY_INTERLEAVED;
  rotary->n_dims = model->head_dim;
  rotary->turns = turns;
  return lattn_rotary_turns(turns, &scaling);
}

llama_session *llama_session_open(const llama_model *model, const llama_options *options,
                                  char error[LLAMA_ERROR]) {
  uint64_t turns[LLAMA_MOST_TURNS];
  lattn_rotary rotary;
  lattn_fault fault = {0, 0, ""};
  size_t arena_bytes;
  llama_session *s = (llama_session *)calloc(1, sizeof *s);
  lattn_status status = llama_rotary(model, &rotary, turns);
  if (s) {
    s->model = model;
    s->n_threads = options->n_threads > 0 ? options->n_threads : 1;
    s->progress = options->progress;
    s->user = options->user;
    if (!status && session_memory(s, options, &rotary, &arena_bytes)) status = LATTN_E_MEMORY;
    if (!status) status = session_layers(s, options, &rotary, arena_bytes, &fault);
    if (!status) return s;
  }
  snprintf(error, LLAMA_ERROR, "the session cannot be made: %s %s",
           lattn_status_text(s ? status : LATTN_E_MEMORY), fault.argument ? fault.argument : "");
  llama_session_close(s);
  return NULL;
}

void llama_session_close(llama_session *s) {
  if (!s) return;
  free(s->arena); /* pool, caches and pages all live in it */
  free(s->scratch);
  free(s->layers);
  free(s->states);
  free(s->histories);
  free(s->buffers);
  free(s);
}

int64_t llama_length(const llama_session *s) { return s->length; }

void llama_observe(llama_session *s, llama_observer observer, void *user) {
  s->observer = observer;
  s->observer_user = user;
}

/* ---- back to an earlier position ---- */

static size_t history_bytes(const llama_model *m) {
  return (size_t)((m->n_taps - 1) * delta_channels(m)) * sizeof(float);
}

static lattn_status copy_recurrence(const llama_model *m, recurrence *to, const recurrence *from) {
  memcpy(to->history, from->history, history_bytes(m));
  return lattn_state_copy(to->state, from->state);
}

static void drop_mark(llama_session *s) {
  for (int32_t l = 0; l < s->model->n_layers; l++) {
    if (s->layers[l].marked_cache) lattn_checkpoint_release(s->layers[l].marked_cache);
    s->layers[l].marked_cache = NULL;
  }
  s->marked = -1;
}

static void clear(llama_session *s) {
  for (int32_t l = 0; l < s->model->n_layers; l++) {
    layer_memory *layer = &s->layers[l];
    if (layer->cache) lattn_cache_clear(layer->cache);
    if (!layer->now.state) continue;
    lattn_state_clear(layer->now.state);
    memset(layer->now.history, 0, history_bytes(s->model));
  }
  s->length = 0;
  s->n_drafts = 0;
}

lattn_status llama_mark(llama_session *s) {
  lattn_status status = LATTN_OK;
  if (s->n_drafts) return LATTN_E_STATE;
  if (!s->model->n_deltas) return LATTN_OK;
  drop_mark(s);
  for (int32_t l = 0; l < s->model->n_layers && !status; l++) {
    layer_memory *layer = &s->layers[l];
    if (layer->cache) status = lattn_cache_checkpoint(&layer->marked_cache, layer->cache);
    else status = copy_recurrence(s->model, &layer->marked, &layer->now);
  }
  if (status) drop_mark(s);
  else s->marked = s->length;
  return status;
}

static lattn_status return_to_mark(llama_session *s) {
  lattn_status status = LATTN_OK;
  for (int32_t l = 0; l < s->model->n_layers && !status; l++) {
    layer_memory *layer = &s->layers[l];
    if (layer->cache) status = lattn_cache_rollback(layer->cache, layer->marked_cache);
    else status = copy_recurrence(s->model, &layer->now, &layer->marked);
  }
  return status;
}

lattn_status llama_truncate(llama_session *s, int64_t n) {
  lattn_status status = LATTN_OK;
  if (s->model->n_deltas) {
    if (s->n_drafts) return LATTN_E_STATE;
    if (n < 0 || n > s->length) return LATTN_E_SHAPE;
    if (n == s->length) return LATTN_OK;
    if (n && n != s->marked) return LATTN_E_EVICTED;
    if (n == s->marked) status = return_to_mark(s);
    else drop_mark(s), clear(s);
  } else if (!n && !s->n_drafts) {
    clear(s); /* and the end of the prompt is forgotten */
  } else {
    for (int32_t l = 0; l < s->model->n_layers && !status; l++)
      status = lattn_cache_truncate(s->layers[l].cache, n);
  }
  if (!status) s->length = n;
  return status;
}

lattn_status llama_end_prompt(llama_session *s) {
  lattn_status status = LATTN_OK;
  for (int32_t l = 0; l < s->model->n_layers && !status; l++)
    if (s->layers[l].cache) status = lattn_cache_mark(s->layers[l].cache, LATTN_PROMPT_END, NULL);
  return status;
}

lattn_cache_stats llama_stats(const llama_session *s) {
  lattn_cache_stats sum, one;
  memset(&sum, 0, sizeof sum);
  sum.n_tokens = s->length;
  for (int32_t l = 0; l < s->model->n_layers; l++) {
    memset(&one, 0, sizeof one);
    one.size = sizeof one;
    if (!s->layers[l].cache) continue;
    if (lattn_cache_stats_get(s->layers[l].cache, &one)) break;
    sum.n_full_heads += one.n_full_heads;
    sum.n_streaming_heads += one.n_streaming_heads;
    sum.full_bytes += one.full_bytes;
    sum.streaming_bytes += one.streaming_bytes;
    sum.table_bytes += one.table_bytes;
    sum.token_bytes += one.token_bytes;
  }
  return sum;
}

int64_t llama_state_bytes(const llama_session *s) {
  lattn_state_stats one;
  int64_t sum = 0;
  for (int32_t l = 0; l < s->model->n_layers; l++) {
    if (!s->layers[l].now.state) continue;
    memset(&one, 0, sizeof one);
    one.size = sizeof one;
    if (lattn_state_stats_get(s->layers[l].now.state, &one)) break;
    sum += one.matrix_bytes + (int64_t)history_bytes(s->model);
  }
  return sum;
}

/* ---- the forward pass ---- */

static lattn_exec exec_of(llama_session *s, int64_t work) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = work < WORTH_THREADS ? 1 : s->n_threads;
  exec.scratch = s->scratch;
  exec.scratch_bytes = s->scratch_bytes;
  exec.parallel_for = lattn_parallel_openmp;
  return exec;
}

/* Attention of one layer over a block: queries, keys and values lie side by side in `wide`. With
   parents, the block is of drafts. */
static lattn_status attend(llama_session *s, int32_t layer, int64_t n, const int32_t *parents) {
  const llama_model *m = s->model;
  int64_t stride = m->layers[layer].qkv.n_out, kv_dim = (int64_t)m->n_kv_heads * m->head_dim;
  lattn_tensor q = {s->wide, LATTN_F32, 0, n, m->n_heads, m->head_dim, stride, m->head_dim};
  lattn_tensor k = q, v, out = {s->h, LATTN_F32, 0, n, m->n_heads, m->head_dim, 0, 0};
  int64_t keys = s->length + n;
  if (m->layers[layer].kind == LLAMA_WINDOW && keys > m->window) keys = m->window;
  lattn_exec exec = exec_of(s, n * keys * m->dim);
  k.data = s->wide + m->dim;
  k.n_heads = m->n_kv_heads;
  v = k;
  v.data = s->wide + m->dim + kv_dim;
  lattn_cache *cache = s->layers[layer].cache;
  if (parents) return lattn_cache_draft(cache, NULL, parents, q, k, v, out, NULL, &exec);
  lattn_status status = lattn_cache_extend(cache, NULL, q, k, v, out, s->lse, &exec);
  if (s->observer && status >= 0) {
    lattn_tensor stream = {s->x, LATTN_F32, 0, n, 1, m->dim, 0, 0};
    llama_block block = {layer, s->length, q, k, v, stream, s->lse};
    s->observer(s->observer_user, &block);
  }
  return status;
}

/* What the threads do with a block; each takes some groups of TILE_ROWS rows through several
   steps. */
typedef struct block_job {
  llama_session *s;
  const llama_layer *layer;
  layer_memory *memory;
  int drafts;
  int64_t first_row, n_rows;
  int32_t n_threads; /* for each matmul, when the rows are too few to be shared */
  float *logits;
} block_job;

static void run_rows(block_job *job, range_function function) {
  int64_t n_groups = (job->n_rows + TILE_ROWS - 1) / TILE_ROWS;
  int few = n_groups < 2 * job->s->n_threads;
  job->n_threads = few ? job->s->n_threads : 1;
  run(few ? 1 : job->s->n_threads, n_groups, function, job);
}

/* The rows of a range of groups: sets *row and returns their number. */
static int64_t rows_of(const block_job *job, int64_t begin, int64_t end, int64_t *row) {
  int64_t last = end * TILE_ROWS < job->n_rows ? end * TILE_ROWS : job->n_rows;
  *row = job->first_row + begin * TILE_ROWS;
  return last - begin * TILE_ROWS;
}

/* Of n rows of a gated delta net: log decay = -exp(rate) * softplus(x + bias), write strength =
   sigmoid(x), in place, the last numbers of a row. */
static void gates(const llama_model *m, const llama_layer *layer, float *row, int64_t n) {
  int32_t heads = m->delta_heads;
  for (int64_t t = 0; t < n; t++, row += layer->qkv.n_out) {
    float *x = row + layer->qkv.n_out - 2 * heads;
    for (int32_t h = 0; h < heads; h++) {
      float a = x[h] + layer->decay[heads + h];
      float softplus = a > 20 ? a : log1pf(fast_exp(a));
      x[h] = -fast_exp(layer->decay[h]) * softplus;
      x[heads + h] = 1.0f / (1.0f + fast_exp(-x[heads + h]));
    }
  }
}

static void before_attention(void *context, int64_t begin, int64_t end) {
  const block_job *job = (const block_job *)context;
  const llama_session *s = job->s;
  int64_t dim = s->model->dim, row, n = rows_of(job, begin, end, &row);
  const llama_matrix *qkv = &job->layer->qkv;
  rms_norm(s->h + row * dim, s->x + row * dim, job->layer->attention_norm, n, s->model->dim);
  matmul(qkv, s->h + row * dim, s->wide + row * qkv->n_out, n, job->n_threads);
  if (job->layer->kind == LLAMA_DELTA) gates(s->model, job->layer, s->wide + row * qkv->n_out, n);
}

/* The causal convolution of queries, keys and values, and silu, in place, for some groups of
   CHANNELS channels. As many rows a time as the history has room for. */
enum { CHANNELS = 64 };

static void convolve(void *context, int64_t begin, int64_t end) {
  const block_job *job = (const block_job *)context;
  const llama_session *s = job->s;
  const llama_layer *layer = job->layer;
  int64_t all = delta_channels(s->model), taps = s->model->n_taps, first = begin * CHANNELS;
  int64_t n = (end * CHANNELS < all ? end * CHANNELS : all) - first;
  int64_t stride = layer->qkv.n_out, most = job->drafts ? job->n_rows : LLAMA_DRAFTS;
  float *history = job->memory->now.history + s->n_drafts * all + first;
  for (int64_t done = 0; done < job->n_rows;) {
    int64_t rows = job->n_rows - done < most ? job->n_rows - done : most;
    for (int64_t t = 0; t < rows; t++) {
      const float *past = history + t * all; /* the oldest token that this one sees */
      float *x = s->wide + (done + t) * stride + first, *w = layer->taps + first;
      memcpy(history + (t + taps - 1) * all, x, (size_t)n * sizeof(float));
      for (int64_t c = 0; c < n; c++) x[c] = w[c] * past[c];
      for (int64_t i = 1; i < taps; i++)
        for (int64_t c = 0; c < n; c++)
          x[c] = MULTIPLY_ADD(w[i * all + c], past[i * all + c], x[c]);
      for (int64_t c = 0; c < n; c++) x[c] = silu(x[c]);
    }
    for (int64_t i = 0; i < taps - 1 && !job->drafts; i++)
      memcpy(history + i * all, history + (rows + i) * all, (size_t)n * sizeof(float));
    done += rows;
  }
}

/* What a gated delta net reads, from `wide` into `h`. */
static lattn_status recur(block_job *job) {
  llama_session *s = job->s;
  const llama_model *m = s->model;
  int64_t stride = job->layer->qkv.n_out, n = job->n_rows, heads = m->delta_heads;
  int64_t keys = heads * m->delta_key_dim, channels = delta_channels(m);
  lattn_tensor q = {s->wide,        LATTN_F32,        0,      n,
                    m->delta_heads, m->delta_key_dim, stride, m->delta_key_dim};
  lattn_tensor k = q, v = q, decay = q, beta, out = q;
  lattn_state_call call;
  int64_t n_groups = (channels + CHANNELS - 1) / CHANNELS;
  int32_t n_threads = n * channels * m->n_taps < WORTH_THREADS / 4 ? 1 : s->n_threads;
  run(n_threads, n_groups, convolve, job);
  k.data = s->wide + keys;
  v.data = s->wide + 2 * keys;
  v.dim = v.stride_head = out.dim = out.stride_head = m->delta_value_dim;
  out.data = s->h;
  out.stride_token = m->dim;
  decay.data = s->wide + stride - 2 * heads;
  decay.dim = decay.stride_head = 1;
  beta = decay;
  beta.data = s->wide + stride - heads;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  call.decay = &decay;
  call.beta = &beta;
  lattn_exec exec = exec_of(s, n * heads * m->delta_key_dim * m->delta_value_dim);
  lattn_state *state = job->memory->now.state;
  if (job->drafts) return lattn_state_draft(state, &call, q, k, v, out, &exec);
  return lattn_state_advance(state, &call, q, k, v, out, &exec);
}

/* h = norm of each head of h * silu(gate of the output). */
static void gate_output(void *context, int64_t begin, int64_t end) {
  const block_job *job = (const block_job *)context;
  const llama_model *m = job->s->model;
  int32_t dim = m->dim;
  int64_t row, n = rows_of(job, begin, end, &row), stride = job->layer->qkv.n_out;
  for (int64_t t = row; t < row + n; t++) {
    float *h = job->s->h + t * dim;
    const float *z = job->s->wide + t * stride + delta_channels(m);
    rms_norm(h, h, job->layer->output_norm, m->delta_heads, m->delta_value_dim);
    for (int32_t i = 0; i < dim; i++) h[i] *= silu(z[i]);
  }
}

static void after_attention(void *context, int64_t begin, int64_t end) {
  const block_job *job = (const block_job *)context;
  const llama_session *s = job->s;
  const llama_layer *layer = job->layer;
  int32_t dim = s->model->dim, hidden_dim = s->model->hidden_dim;
  int64_t row, n = rows_of(job, begin, end, &row);
  float *x = s->x + row * dim, *h = s->h + row * dim, *wide = s->wide + row * s->wide_dim;
  float *hidden = s->hidden + row * hidden_dim;
  matmul(&layer->out, h, wide, n, job->n_threads);
  add(x, wide, n * dim);
  rms_norm(h, x, layer->feed_forward_norm, n, dim);
  matmul(&layer->gate_up, h, wide, n, job->n_threads);
  swiglu(hidden, wide, n, hidden_dim);
  matmul(&layer->down, hidden, h, n, job->n_threads);
  add(x, h, n * dim);
}

static void classify(void *context, int64_t begin, int64_t end) {
  const block_job *job = (const block_job *)context;
  const llama_model *m = job->s->model;
  int64_t row, n = rows_of(job, begin, end, &row);
  float *h = job->s->h + row * m->dim;
  rms_norm(h, job->s->x + row * m->dim, m->final_norm, n, m->dim);
  matmul(&m->classifier, h, job->logits + (row - job->first_row) * m->vocab_size, n,
         job->n_threads);
}

/* Takes a block of at most LLAMA_BLOCK tokens, or of drafts if there are parents, through the
   layers; logits gets the last n_logits rows. */
static lattn_status forward(llama_session *s, const int32_t *tokens, const int32_t *parents,
                            int64_t n, int64_t n_logits, float *logits) {
  const llama_model *m = s->model;
  block_job job = {s, NULL, NULL, parents != NULL, 0, n, 1, logits};
  for (int64_t t = 0; t < n; t++)
    memcpy(s->x + t * m->dim, m->embedding + (int64_t)tokens[t] * m->dim,
           (size_t)m->dim * sizeof(float));
  for (int32_t l = 0; l < m->n_layers; l++) {
    job.layer = &m->layers[l];
    job.memory = &s->layers[l];
    int delta = job.layer->kind == LLAMA_DELTA;
    run_rows(&job, before_attention);
    lattn_status status = delta ? recur(&job) : attend(s, l, n, parents);
    if (status < 0) return status;
    if (delta) run_rows(&job, gate_output);
    run_rows(&job, after_attention);
  }
  job.first_row = n - n_logits;
  job.n_rows = n_logits;
  if (n_logits) run_rows(&job, classify);
  return LATTN_OK;
}

static int are_tokens(const llama_model *m, const int32_t *tokens, int64_t n) {
  for (int64_t t = 0; t < n; t++)
    if (tokens[t] < 0 || tokens[t] >= m->vocab_size) return 0;
  return 1;
}

lattn_status llama_extend(llama_session *s, const int32_t *tokens, int64_t n, int64_t n_logits,
                          float *logits) {
  const llama_model *m = s->model;
  if (n < 0 || n_logits < 0 || n_logits > n) return LATTN_E_SHAPE;
  if (s->n_drafts) return LATTN_E_STATE;
  if (n > s->capacity - s->length) return LATTN_E_FULL;
  if (!are_tokens(m, tokens, n)) return LATTN_E_VALUE;
  for (int64_t done = 0; done < n;) {
    int64_t block = n - done < LLAMA_BLOCK ? n - done : LLAMA_BLOCK;
    int64_t first = n - n_logits > done ? n - n_logits : done; /* of this block, with logits */
    int64_t wanted = first < done + block ? done + block - first : 0;
    float *rows = wanted ? logits + (first - (n - n_logits)) * m->vocab_size : NULL;
    lattn_status status = forward(s, tokens + done, NULL, block, wanted, rows);
    if (status) return status;
    s->length += block;
    done += block;
    if (s->progress && n > LLAMA_BLOCK && s->progress(s->user, done, n) && done < n)
      return LATTN_CANCELLED;
  }
  return LATTN_OK;
}

/* ---- drafts ---- */

lattn_status llama_draft(llama_session *s, const int32_t *tokens, const int32_t *parents, int32_t n,
                         float *logits) {
  int32_t chain[LLAMA_DRAFTS], most = s->model->n_deltas ? LLAMA_STATE_DRAFTS : LLAMA_DRAFTS;
  if (n < 0 || n > most - s->n_drafts) return LATTN_E_SHAPE;
  if (!n) return LATTN_OK;
  if (!are_tokens(s->model, tokens, n)) return LATTN_E_VALUE;
  for (int32_t i = 0; i < n; i++) {
    chain[i] = s->n_drafts + i - 1;
    if (s->model->n_deltas && parents && parents[i] != chain[i]) return LATTN_E_CONFIG;
  }
  lattn_status status = forward(s, tokens, parents ? parents : chain, n, n, logits);
  s->n_drafts += n;
  if (status) llama_accept(s, 0, NULL); /* some layers have them, some do not: none shall */
  return status;
}

lattn_status llama_accept(llama_session *s, int32_t n, const int32_t *path) {
  lattn_status status = LATTN_OK;
  if (n < 0 || n > s->n_drafts) return LATTN_E_SHAPE;
  if (n > s->capacity - s->length) return LATTN_E_FULL; /* before any layer has them */
  for (int32_t i = 0; i < n && s->model->n_deltas; i++)
    if (path[i] != i) return LATTN_E_VALUE;
  for (int32_t l = 0; l < s->model->n_layers && !status; l++) {
    layer_memory *layer = &s->layers[l];
    if (layer->cache) {
      status = lattn_cache_accept(layer->cache, n, path);
      continue;
    }
    /* a call that failed half-way left fewer drafts here, and drops all: n is 0 then */
    status = lattn_state_commit(layer->now.state, n);
    memmove(layer->now.history, layer->now.history + n * delta_channels(s->model),
            history_bytes(s->model));
  }
  if (status) return status;
  s->length += n;
  s->n_drafts = 0;
  return LATTN_OK;
}

/* ---- to a file and back ---- */

/* Before the layers' caches, each of which checks itself: a name and the number of layers. */
enum { SAVED_BYTES = 12 };

static void saved_header(unsigned char header[SAVED_BYTES], int32_t n_layers) {
  memcpy(header, "llama kv", 8);
  for (int i = 0; i < 4; i++) header[8 + i] = (unsigned char)((uint32_t)n_layers >> 8 * i);
}

/* A gated delta net's history, with a sum to check it. */
static lattn_status save_history(const llama_session *s, const recurrence *r,
                                 lattn_write_function write, void *user) {
  int32_t n = (int32_t)(history_bytes(s->model) / sizeof(float));
  uint64_t hash = llama_hash(1, r->history, n);
  unsigned char sum[8];
  for (int i = 0; i < 8; i++) sum[i] = (unsigned char)(hash >> 8 * i);
  for (int32_t j = 0; j < n; j++) {
    uint32_t bits;
    unsigned char bytes[4];
    memcpy(&bits, &r->history[j], 4);
    for (int i = 0; i < 4; i++) bytes[i] = (unsigned char)(bits >> 8 * i);
    if (write(user, bytes, 4)) return LATTN_E_IO;
  }
  return write(user, sum, 8) ? LATTN_E_IO : LATTN_OK;
}

static lattn_status load_history(const llama_session *s, recurrence *r, lattn_read_function read,
                                 void *user) {
  int32_t n = (int32_t)(history_bytes(s->model) / sizeof(float));
  unsigned char bytes[8];
  uint64_t sum = 0;
  for (int32_t j = 0; j < n; j++) {
    uint32_t bits = 0;
    if (read(user, bytes, 4)) return LATTN_E_IO;
    for (int i = 0; i < 4; i++) bits |= (uint32_t)bytes[i] << 8 * i;
    memcpy(&r->history[j], &bits, 4);
  }
  if (read(user, bytes, 8)) return LATTN_E_IO;
  for (int i = 0; i < 8; i++) sum |= (uint64_t)bytes[i] << 8 * i;
  return sum == llama_hash(1, r->history, n) ? LATTN_OK : LATTN_E_FORMAT;
}

lattn_status llama_save(const llama_session *s, lattn_write_function write, void *user) {
  unsigned char header[SAVED_BYTES];
  if (s->n_drafts) return LATTN_E_STATE;
  saved_header(header, s->model->n_layers);
  lattn_status status = write(user, header, SAVED_BYTES) ? LATTN_E_IO : LATTN_OK;
  for (int32_t l = 0; l < s->model->n_layers && !status; l++) {
    const layer_memory *layer = &s->layers[l];
    if (layer->cache) {
      status = lattn_cache_save(layer->cache, write, user, NULL);
    } else {
      status = lattn_state_save(layer->now.state, write, user, NULL);
      if (!status) status = save_history(s, &layer->now, write, user);
    }
  }
  return status;
}

/* Loads one layer; sets the number of its tokens. */
static lattn_status load_layer(const llama_session *s, layer_memory *layer, int64_t *n_tokens,
                               lattn_read_function read, void *user) {
  lattn_cache_stats of_cache;
  lattn_state_stats of_state;
  memset(&of_cache, 0, sizeof of_cache);
  memset(&of_state, 0, sizeof of_state);
  of_cache.size = sizeof of_cache;
  of_state.size = sizeof of_state;
  lattn_status status;
  if (layer->cache) {
    status = lattn_cache_load(layer->cache, read, user);
    if (!status) status = lattn_cache_stats_get(layer->cache, &of_cache);
    *n_tokens = of_cache.n_tokens;
    return status;
  }
  status = lattn_state_load(layer->now.state, read, user);
  if (!status) status = load_history(s, &layer->now, read, user);
  if (!status) status = lattn_state_stats_get(layer->now.state, &of_state);
  *n_tokens = of_state.n_tokens;
  return status;
}

static lattn_status load_layers(llama_session *s, lattn_read_function read, void *user) {
  unsigned char header[SAVED_BYTES], wanted[SAVED_BYTES];
  if (read(user, header, SAVED_BYTES)) return LATTN_E_IO;
  saved_header(wanted, s->model->n_layers);
  if (memcmp(header, wanted, SAVED_BYTES)) return LATTN_E_FORMAT;
  for (int32_t l = 0; l < s->model->n_layers; l++) {
    int64_t n_tokens = 0;
    lattn_status status = load_layer(s, &s->layers[l], &n_tokens, read, user);
    if (status) return status;
    if (l && n_tokens != s->length) return LATTN_E_FORMAT; /* layers of two sessions */
    s->length = n_tokens;
  }
  return LATTN_OK;
}

lattn_status llama_load(llama_session *s, lattn_read_function read, void *user) {
  /* Empty first: the pool has pages for one sequence, not for the old and the new one. */
  drop_mark(s);
  clear(s);
  lattn_status status = load_layers(s, read, user);
  if (status) clear(s);
  return status;
}

/* ---- for the programs ---- */

int32_t llama_argmax(const float *values, int32_t n) {
  int32_t best = 0;
  for (int32_t i = 1; i < n; i++)
    if (values[i] > values[best]) best = i;
  return best;
}

double llama_loss(const float *logits, int32_t n, int32_t token) {
  double largest = (double)logits[llama_argmax(logits, n)], sum = 0;
  for (int32_t i = 0; i < n; i++) sum += exp((double)logits[i] - largest);
  return largest + log(sum) - (double)logits[token];
}

uint64_t llama_random(uint64_t *state) {
  uint64_t z = *state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

uint64_t llama_hash(uint64_t hash, const float *values, int32_t n) {
  for (int32_t i = 0; i < n; i++) {
    uint32_t word;
    memcpy(&word, &values[i], sizeof word);
    hash = (hash ^ word) * 0x100000001b3u;
  }
  return hash;
}

double llama_seconds(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
