/* onnxruntime.c - GroupQueryAttention of ONNX Runtime's CPU provider, through its C API.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   The model is one node, written here as the bytes of its protobuf. The past and the present are
   one buffer, long enough for all keys, so that it need not copy the past for each token. */
#include "peer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- protobuf: as much as a model of one node needs ---- */

typedef struct message {
  size_t n;
  unsigned char bytes[2048];
} message;

static void put_varint(message *m, uint64_t x) {
  for (; x > 127; x >>= 7) m->bytes[m->n++] = (unsigned char)(x | 128);
  m->bytes[m->n++] = (unsigned char)x;
}

static void put_number(message *m, uint32_t field, uint64_t x) {
  put_varint(m, field << 3);
  put_varint(m, x);
}

static void put_bytes(message *m, uint32_t field, const void *bytes, size_t n) {
  put_varint(m, field << 3 | 2);
  put_varint(m, n);
  memcpy(m->bytes + m->n, bytes, n);
  m->n += n;
}

static void put_text(message *m, uint32_t field, const char *text) {
  put_bytes(m, field, text, strlen(text));
}

static void put_message(message *m, uint32_t field, const message *inner) {
  put_bytes(m, field, inner->bytes, inner->n);
}

/* ---- the model, fields and numbers of onnx.proto ---- */

enum { FLOAT = 1, INT32 = 6, FLOAT16 = 10 }; /* TensorProto.DataType */
enum { N_INPUTS = 7, N_OUTPUTS = 3 };

static const char *const input_names[N_INPUTS] = {
    "query", "key", "value", "past_key", "past_value", "seqlens_k", "total_length"};
static const char *const output_names[N_OUTPUTS] = {"output", "present_key", "present_value"};

static void put_attribute(message *node, const char *name, uint64_t x) {
  message a = {0};
  put_text(&a, 1, name);
  put_number(&a, 3, x);
  put_number(&a, 20, 2); /* type: INT */
  put_message(node, 5, &a);
}

/* A graph's input or output, of any shape. */
static void put_value(message *graph, uint32_t field, const char *name, uint64_t type) {
  message tensor = {0}, of_type = {0}, value = {0};
  put_number(&tensor, 1, type);
  put_message(&of_type, 1, &tensor);
  put_text(&value, 1, name);
  put_message(&value, 2, &of_type);
  put_message(graph, field, &value);
}

static void put_opset(message *model, const char *domain, uint64_t version) {
  message opset = {0};
  put_text(&opset, 1, domain);
  put_number(&opset, 2, version);
  put_message(model, 8, &opset);
}

static message model_of(const bench_shape *s, uint64_t type) {
  message node = {0}, graph = {0}, model = {0};
  for (int i = 0; i < N_INPUTS; i++) put_text(&node, 1, input_names[i]);
  for (int i = 0; i < N_OUTPUTS; i++) put_text(&node, 2, output_names[i]);
  put_text(&node, 4, "GroupQueryAttention");
  put_attribute(&node, "num_heads", (uint64_t)s->heads);
  put_attribute(&node, "kv_num_heads", (uint64_t)s->kv_heads);
  put_text(&node, 7, "com.microsoft");
  put_message(&graph, 1, &node);
  put_text(&graph, 2, "attention");
  for (int i = 0; i < N_INPUTS; i++) put_value(&graph, 11, input_names[i], i < 5 ? type : INT32);
  for (int i = 0; i < N_OUTPUTS; i++) put_value(&graph, 12, output_names[i], type);
  put_number(&model, 1, 8); /* IR version */
  put_message(&model, 7, &graph);
  put_opset(&model, "", 17);
  put_opset(&model, "com.microsoft", 1);
  return model;
}

/* ---- the library ---- */

/* OrtApi is a table of functions whose order never changes; these are the places of some. */
enum {
  ERROR_MESSAGE = 2,
  CREATE_ENV = 3,
  CREATE_SESSION_FROM_ARRAY = 8,
  RUN = 9,
  CREATE_SESSION_OPTIONS = 10,
  SET_INTRA_OP_NUM_THREADS = 24,
  CREATE_TENSOR_WITH_DATA = 49,
  CREATE_CPU_MEMORY_INFO = 69,
  RELEASE_STATUS = 93,
  RELEASE_SESSION = 95,
  RELEASE_VALUE = 96,
  RELEASE_SESSION_OPTIONS = 100,
  ADD_SESSION_CONFIG_ENTRY = 130
};
enum { API_VERSION = 14, LOG_ERRORS = 3, DEVICE_ALLOCATOR = 0, DEFAULT_MEMORY = 0 };

typedef void function(void);
typedef struct api_base {
  function *const *(*get_api)(uint32_t version);
  const char *(*version)(void);
} api_base;
typedef void value, session, options; /* OrtValue, OrtSession, OrtSessionOptions */

static function *const *api;
static void *env, *memory_info;
static const char *version_text = "";

/* Whether the call went well; else says why not. */
static int fine(void *status) {
  if (!status) return 1;
  const char *(*message_of)(const void *) = (const char *(*)(const void *))api[ERROR_MESSAGE];
  fprintf(stderr, "bench: onnxruntime: %s\n", message_of(status));
  ((void (*)(void *))api[RELEASE_STATUS])(status);
  return 0;
}

static const char *missing(void) {
  static const char *const names[] = {"libonnxruntime.so.1", "libonnxruntime.so", NULL};
  static const char *why = "missing";
  static int looked;
  const api_base *(*get_base)(void);
  if (looked++) return why;
  void *library = bench_library(names);
  if (!library || !bench_function(library, "OrtGetApiBase", &get_base)) return why;
  why = "found, but does not start";
  version_text = get_base()->version();
  api = get_base()->get_api(API_VERSION);
  if (!api) return why;
  void *(*create_env)(int, const char *, void **) =
      (void *(*)(int, const char *, void **))api[CREATE_ENV];
  void *(*create_info)(int, int, void **) =
      (void *(*)(int, int, void **))api[CREATE_CPU_MEMORY_INFO];
  if (fine(create_env(LOG_ERRORS, "bench", &env)) &&
      fine(create_info(DEVICE_ALLOCATOR, DEFAULT_MEMORY, &memory_info)))
    why = NULL;
  return why;
}

static const char *version(void) { return version_text; }

/* ---- a shape ---- */

typedef struct onnx_state {
  bench_shape shape;
  size_t size; /* of an element */
  bench_buffer query, past[2], output;
  int32_t lengths[2];          /* seqlens_k, total length */
  value *values[N_INPUTS + 1]; /* the inputs, and the output; the presents are the pasts */
  session *sessions[65];       /* by number of threads */
  float *row;
} onnx_state;

static const char *unsupported(const bench_shape *s) {
  if (s->type == LATTN_BF16) return "no bf16 on CPUs";
  if (s->type != LATTN_F32 && s->type != LATTN_F16) return "f32 and f16 only";
  if (s->streaming_heads) return "no streaming heads";
  if (s->key_dim != s->value_dim) return "key and value dims alike";
  if (s->key_dim % 8) return "dims in multiples of 8";
  return NULL;
}

/* The queries in the type of the keys: f16, or as they are. Exact: they have 8 bits. */
static void convert_queries(void *to, int32_t type, const float *from, size_t n) {
  if (type == LATTN_F32) {
    memcpy(to, from, n * sizeof *from);
    return;
  }
  for (size_t i = 0; i < n; i++) {
    float moved = from[i] * 0x1p-112f; /* from float's exponents to float16's */
    uint32_t bits;
    memcpy(&bits, &moved, sizeof bits);
    ((uint16_t *)to)[i] = (uint16_t)((bits >> 16 & 0x8000u) | (bits >> 13 & 0x7fffu));
  }
}

/* The tokens before the new ones, [head][token][dim], with room for the new ones. */
static void past_fill(const onnx_state *s, char *to, const char *from) {
  const bench_shape *p = &s->shape;
  size_t row = (size_t)p->key_dim * s->size;
  for (int64_t g = 0; g < p->kv_heads; g++)
    for (int64_t t = 0; t < p->keys - p->queries; t++)
      memcpy(to + (size_t)(g * p->keys + t) * row, from + (size_t)(t * p->kv_heads + g) * row, row);
}

static int tensor(value **to, void *data, size_t size, int type, const int64_t *dims, size_t n) {
  void *(*create)(void *, void *, size_t, const int64_t *, size_t, int, value **) =
      (void *(*)(void *, void *, size_t, const int64_t *, size_t, int,
                 value **))api[CREATE_TENSOR_WITH_DATA];
  for (size_t i = 0; i < n; i++) size *= (size_t)dims[i];
  return fine(create(memory_info, data, size, dims, n, type, to));
}

static int tensors(onnx_state *s, const bench_input *input) {
  const bench_shape *p = &s->shape;
  int type = p->type == LATTN_F32 ? FLOAT : FLOAT16;
  int64_t q[] = {1, p->queries, (int64_t)p->heads * p->key_dim};
  int64_t k[] = {1, p->queries, (int64_t)p->kv_heads * p->key_dim};
  int64_t past[] = {1, p->kv_heads, p->keys, p->key_dim}, one[] = {1};
  size_t before = (size_t)((p->keys - p->queries) * k[2]) * s->size;
  return tensor(&s->values[0], s->query.data, s->size, type, q, 3) &&
         tensor(&s->values[1], (char *)input->k.data + before, s->size, type, k, 3) &&
         tensor(&s->values[2], (char *)input->v.data + before, s->size, type, k, 3) &&
         tensor(&s->values[3], s->past[0].data, s->size, type, past, 4) &&
         tensor(&s->values[4], s->past[1].data, s->size, type, past, 4) &&
         tensor(&s->values[5], &s->lengths[0], sizeof(int32_t), INT32, one, 1) &&
         tensor(&s->values[6], &s->lengths[1], sizeof(int32_t), INT32, one, 1) &&
         tensor(&s->values[7], s->output.data, s->size, type, q, 3);
}

static void release(void *state) {
  onnx_state *s = state;
  for (size_t i = 0; i < sizeof s->sessions / sizeof *s->sessions; i++)
    if (s->sessions[i]) ((void (*)(session *))api[RELEASE_SESSION])(s->sessions[i]);
  for (int i = 0; i <= N_INPUTS; i++)
    if (s->values[i]) ((void (*)(value *))api[RELEASE_VALUE])(s->values[i]);
  bench_buffer_free(&s->query);
  bench_buffer_free(&s->past[0]);
  bench_buffer_free(&s->past[1]);
  bench_buffer_free(&s->output);
  free(s->row);
  free(s);
}

static void *prepare(const bench_shape *shape, const bench_input *input) {
  onnx_state *s = calloc(1, sizeof *s);
  if (!s) return NULL;
  s->shape = *shape;
  s->size = bench_type_bytes(shape->type);
  size_t n_q = (size_t)(shape->queries * shape->heads) * (size_t)shape->key_dim;
  size_t n_kv = (size_t)(shape->keys * shape->kv_heads) * (size_t)shape->key_dim;
  s->query = bench_buffer_make(n_q * s->size);
  s->output = bench_buffer_make(n_q * s->size);
  for (int i = 0; i < 2; i++) s->past[i] = bench_buffer_make(n_kv * s->size);
  convert_queries(s->query.data, shape->type, input->q.data, n_q);
  past_fill(s, s->past[0].data, input->k.data);
  past_fill(s, s->past[1].data, input->v.data);
  s->lengths[0] = (int32_t)shape->keys - 1;
  s->lengths[1] = (int32_t)shape->keys;
  s->row = malloc((size_t)shape->value_dim * sizeof *s->row);
  if (s->row && tensors(s, input)) return s;
  release(s);
  return NULL;
}

/* ---- running ---- */

static int run_once(const onnx_state *s, session *with) {
  void *(*run_session)(session *, const void *, const char *const *, const value *const *, size_t,
                       const char *const *, size_t, value **) =
      (void *(*)(session *, const void *, const char *const *, const value *const *, size_t,
                 const char *const *, size_t, value **))api[RUN];
  value *outputs[N_OUTPUTS] = {s->values[7], s->values[3], s->values[4]};
  return fine(run_session(with, NULL, input_names, (const value *const *)s->values, N_INPUTS,
                          output_names, N_OUTPUTS, outputs));
}

/* Its threads stop spinning when a call ends, else they would run in the time of the next peer. */
static session *session_make(const onnx_state *s, int32_t n_threads) {
  void *(*create_options)(options **) = (void *(*)(options **))api[CREATE_SESSION_OPTIONS];
  void *(*set_threads)(options *, int) = (void *(*)(options *, int))api[SET_INTRA_OP_NUM_THREADS];
  void *(*add_entry)(options *, const char *, const char *) =
      (void *(*)(options *, const char *, const char *))api[ADD_SESSION_CONFIG_ENTRY];
  void *(*create)(void *, const void *, size_t, const options *, session **) =
      (void *(*)(void *, const void *, size_t, const options *,
                 session **))api[CREATE_SESSION_FROM_ARRAY];
  message model = model_of(&s->shape, s->shape.type == LATTN_F32 ? FLOAT : FLOAT16);
  options *opts = NULL;
  session *made = NULL;
  if (!fine(create_options(&opts))) return NULL;
  if (!fine(set_threads(opts, n_threads)) ||
      !fine(add_entry(opts, "session.force_spinning_stop", "1")) ||
      !fine(create(env, model.bytes, model.n, opts, &made)))
    made = NULL;
  ((void (*)(options *))api[RELEASE_SESSION_OPTIONS])(opts);
  return made;
}

static double run(void *state, int32_t n_threads) {
  onnx_state *s = state;
  if (n_threads < 1 || n_threads >= (int32_t)(sizeof s->sessions / sizeof *s->sessions)) return -1;
  if (!s->sessions[n_threads]) {
    s->sessions[n_threads] = session_make(s, n_threads);
    if (!s->sessions[n_threads] || !run_once(s, s->sessions[n_threads])) return -1; /* warms up */
  }
  double start = bench_seconds();
  int done = run_once(s, s->sessions[n_threads]);
  return done ? bench_seconds() - start : -1;
}

static const float *row(void *state, int64_t query, int32_t head) {
  const onnx_state *s = state;
  int64_t dim = s->shape.value_dim;
  bench_to_float(s->output.data, s->shape.type, (query * s->shape.heads + head) * dim, dim, s->row);
  return s->row;
}

/* Of float16, its outputs are rounded to it, by 2^-11 of the largest and less. */
static double tolerance(const bench_shape *s) { return s->type == LATTN_F16 ? 2 * 0x1p-11 : 1e-4; }

static double goal(const bench_shape *s) { return s->queries == s->keys ? 1.5 : 0; }

const bench_peer bench_onnxruntime = {
    .name = "onnx",
    .missing = missing,
    .unsupported = unsupported,
    .prepare = prepare,
    .run = run,
    .row = row,
    .release = release,
    .tolerance = tolerance,
    .goal = goal,
    .version = version,
};
