/* hostile.c - bad input: every public function, every argument and field of it, with NULL, 0,
 * -1, huge, unknown and NaN values, wrong shapes, overlapping arrays and all kinds of size
 * fields.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   One mutation is one case. A function's arguments lie in one struct; a mutation patches one
   field of a valid call. Checked after each: the status; that a fault names an argument; that
   not one byte of any array, object or argument changed; and that the valid call then succeeds
   on the same objects. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

/* ---- the world: every array that a call could write, and the objects; all of it is hashed ---- */

enum {
  ROWS = 5,
  KEYS = 7,
  HEADS = 4,
  KV_HEADS = 2,
  KEY_DIM = 4,
  VALUE_DIM = 2,
  N_ROWS = ROWS * HEADS,
  ARENA = 1 << 18,
  SCRATCH = 1 << 20
};

typedef struct world_arrays {
  float q[ROWS * HEADS * KEY_DIM + 8], k[KEYS * KV_HEADS * KEY_DIM + 8];
  float v[KEYS * KV_HEADS * VALUE_DIM + 8], out[N_ROWS * VALUE_DIM + 8], lse[N_ROWS];
  float key_bias[HEADS * KEYS], pair_bias[N_ROWS * KEYS], gate[N_ROWS], slopes[HEADS], sinks[HEADS];
  int64_t from[ROWS], to[ROWS], row_positions[ROWS], key_positions[KEYS];
  int64_t row_starts[3], key_starts[3], first_rows[2], first_keys[2];
  float maximum[3][N_ROWS], sum[3][N_ROWS], output[3][N_ROWS * VALUE_DIM], weights[N_ROWS];
  uint64_t turns[KEY_DIM / 2];
  float radians_f32[2], magnitude;
  double radians_f64[2];
  unsigned char arena[ARENA + 64];
} world_arrays;

static world_arrays world;
static unsigned char scratch[SCRATCH];
static lattn_fault fault;

static void fill(float *x, int64_t n, test_rng *rng) {
  for (int64_t i = 0; i < n; i++) x[i] = rng_normal(rng);
}

#define FILL(array) fill(array, (int64_t)(sizeof(array) / sizeof *(array)), &rng)

static void world_reset(void) {
  test_rng rng = rng_seed(1);
  memset(&world, 0, sizeof world);
  FILL(world.q), FILL(world.k), FILL(world.v), FILL(world.out), FILL(world.lse);
  FILL(world.key_bias), FILL(world.pair_bias), FILL(world.gate), FILL(world.slopes);
  FILL(world.sinks);
  for (int p = 0; p < 3; p++) {
    FILL(world.maximum[p]), FILL(world.output[p]);
    for (int i = 0; i < N_ROWS; i++) world.sum[p][i] = 1 + (float)(i + p);
  }
  for (int i = 0; i < ROWS; i++) world.to[i] = KEYS, world.row_positions[i] = i;
  for (int i = 0; i < KEYS; i++) world.key_positions[i] = i;
  world.row_starts[1] = 2, world.row_starts[2] = ROWS;
  world.key_starts[1] = 3, world.key_starts[2] = KEYS;
  world.turns[0] = UINT64_C(1) << 60, world.turns[1] = UINT64_C(1) << 50;
  world.radians_f32[0] = 1, world.radians_f64[0] = 1;
}

#include "hostile.h"

/* ---- lattn_attention ---- */

typedef struct attention_args {
  SIZED(lattn_attn) options;
  SIZED(lattn_exec) exec;
  SIZED(lattn_partial) partial;
  lattn_tensor q, k, v, out, key_bias, pair_bias, gate;
  float *lse;
  const lattn_attn *options_at;
  const lattn_exec *exec_at;
} attention_args;

static attention_args attention;

static void exec_reset(lattn_exec *exec) {
  memset(exec, 0, sizeof *exec);
  exec->size = sizeof *exec;
  exec->scratch = scratch;
  exec->scratch_bytes = sizeof scratch;
  exec->fault = &fault;
}

static void partial_reset(lattn_partial *p, int index) {
  memset(p, 0, sizeof *p);
  p->size = sizeof *p;
  p->n_rows = N_ROWS;
  p->value_dim = VALUE_DIM;
  p->maximum = world.maximum[index];
  p->sum = world.sum[index];
  p->output = world.output[index];
}

/* One sequence and a partial. */
static void attention_reset_plain(void) {
  attention_args *a = &attention;
  memset(a, 0, sizeof *a);
  exec_reset(&a->exec.s);
  a->options.s.size = sizeof a->options.s;
  a->options.s.mask = LATTN_CAUSAL;
  a->q = tensor_of(world.q, LATTN_F32, ROWS, HEADS, KEY_DIM);
  a->k = tensor_of(world.k, LATTN_F32, KEYS, KV_HEADS, KEY_DIM);
  a->v = tensor_of(world.v, LATTN_F32, KEYS, KV_HEADS, VALUE_DIM);
  a->out = tensor_of(world.out, LATTN_F32, ROWS, HEADS, VALUE_DIM);
  partial_reset(&a->partial.s, 0);
  a->options.s.partial = &a->partial.s;
  a->lse = world.lse;
  a->options_at = &a->options.s;
  a->exec_at = &a->exec.s;
}

/* Two packed sequences and every option that goes with them. */
static void attention_reset_packed(void) {
  lattn_attn *o = &attention.options.s;
  attention_reset_plain();
  o->partial = NULL;
  o->window = 4, o->sinks = 1, o->scale = 0.5f, o->softcap = 2;
  attention.key_bias = tensor_of(world.key_bias, LATTN_F32, 1, HEADS, KEYS);
  attention.pair_bias = tensor_of(world.pair_bias, LATTN_F32, ROWS, HEADS, KEYS);
  attention.gate = tensor_of(world.gate, LATTN_F32, ROWS, HEADS, 1);
  o->key_bias = &attention.key_bias;
  o->pair_bias = &attention.pair_bias;
  o->gate = &attention.gate;
  o->visible_from = world.from, o->visible_to = world.to;
  o->query_positions = world.row_positions, o->key_positions = world.key_positions;
  o->n_sequences = 2;
  o->query_starts = world.row_starts, o->key_starts = world.key_starts;
  o->sequence_query_positions = world.first_rows, o->sequence_key_positions = world.first_keys;
  o->alibi_slopes = world.slopes, o->sink_logits = world.sinks;
}

static lattn_status attention_invoke(void) {
  const attention_args *a = &attention;
  return lattn_attention(a->options_at, a->q, a->k, a->v, a->out, a->lse, a->exec_at);
}

static const int64_t bad_starts[][3] = {{1, 2, ROWS},     {0, 4, 3},     {0, 2, ROWS - 1},
                                        {0, 2, ROWS + 1}, {0, -1, ROWS}, {0, INT64_MAX, ROWS},
                                        {0, 2, INT64_MAX}};
static const int64_t negative_two[2] = {0, -1}, huge_two[2] = {INT64_MAX, 0};
static const int64_t far_two[2] = {0, INT64_C(1) << 31};

#define ARGS attention_args
static const mutation attention_tensors[] = {
    INPUT(q),
    INPUT(k),
    INPUT(v),
    OUTPUT(out),
    EXEC(exec),
    SIZES(options, lattn_attn),
    I32(options.s.size, offsetof(lattn_attn, sigmoid_bias), FINE), /* of version 0.2 */
    I32(options.s.size, offsetof(lattn_attn, sigmoid_bias) - 4, AS(SIZE)),
    I64(k.n_tokens, 6, AS(SHAPE)),
    I64(v.n_tokens, 6, AS(SHAPE)),
    I64(out.n_tokens, 4, AS(SHAPE)),
    I64(q.n_tokens, 6, AS(SHAPE)),
    PTR(exec.s.scratch, NULL, FINE),
    FIELD(M_I64, exec.s.scratch_bytes, "1", 1, 0, NULL, AS(SCRATCH)),
    PTR(lse, NULL, FINE),
    PTR(exec_at, NULL, FINE),
    PTR(options_at, NULL, FINE),
    PTR(out.data, world.k, AS(ALIAS)),
    PTR(out.data, world.v, AS(ALIAS)),
    PTR(out.data, world.q, AS(ALIAS)),
    PTR(out.data, world.q + 1, AS(ALIAS)),
    PTR(out.data, world.lse, AS(ALIAS)),
    PTR(lse, world.q, AS(ALIAS)),
    PTR(lse, world.k, AS(ALIAS)),
    PTR(lse, world.v, AS(ALIAS)),
    PTR(lse, world.out + 1, AS(ALIAS)),
};
static const mutation attention_options[] = {
    I32(options.s.mask, -1, AS(FIELD)),
    I32(options.s.mask, 3, AS(FIELD)),
    I32(options.s.inexact, 2, AS(FIELD)),
    I32(options.s.zero, 1, AS(FIELD)),
    F32(options.s.scale, NAN, AS(VALUE)),
    F32(options.s.scale, INFINITY, AS(VALUE)),
    F32(options.s.scale, -INFINITY, AS(VALUE)),
    F32(options.s.scale, -1, FINE),
    F32(options.s.softcap, NAN, AS(VALUE)),
    F32(options.s.softcap, -1, AS(VALUE)),
    F32(options.s.softcap, -INFINITY, AS(VALUE)),
    F32(options.s.softcap, INFINITY, FINE),
    I32(options.s.weighting, -1, AS(FIELD)),
    I32(options.s.weighting, 2, AS(FIELD)),
    I32(options.s.weighting, LATTN_SIGMOID, FINE),
    F32(options.s.sigmoid_bias, -2, AS(CONFIG)),
    F32(options.s.sigmoid_bias, NAN, AS(VALUE)),
    F32(options.s.sigmoid_bias, -INFINITY, AS(VALUE)),
    F32(options.s.sigmoid_bias, -0.0, FINE),
    I64(options.s.window, -1, AS(VALUE)),
    I64(options.s.window, INT64_MIN, AS(VALUE)),
    I64(options.s.window, INT64_MAX, FINE),
    I64(options.s.ahead, -1, AS(VALUE)),
    I64(options.s.ahead, 1, FINE),
    I64(options.s.sinks, -1, AS(VALUE)),
    I64(options.s.sinks, INT64_MAX, FINE),
};
static const mutation attention_packed[] = {
    I64(options.s.n_sequences, -1, AS(SHAPE)),
    I64(options.s.n_sequences, 1, AS(SHAPE)),
    I64(options.s.n_sequences, INT64_MAX, AS(OVERFLOW)),
    PTR(options.s.query_starts, NULL, AS(NULL)),
    PTR(options.s.key_starts, NULL, AS(NULL)),
    PTR(options.s.query_starts, bad_starts[0], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[1], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[2], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[3], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[4], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[5], AS(SHAPE)),
    PTR(options.s.query_starts, bad_starts[6], AS(SHAPE)),
    PTR(options.s.key_starts, bad_starts[0], AS(SHAPE)),
    PTR(options.s.key_starts, bad_starts[1], AS(SHAPE)),
    PTR(options.s.key_starts, bad_starts[4], AS(SHAPE)),
    PTR(options.s.key_starts, bad_starts[5], AS(SHAPE)),
    PTR(options.s.key_starts, bad_starts[6], AS(SHAPE)),
    PTR(options.s.sequence_query_positions, negative_two, FINE),
    PTR(options.s.sequence_key_positions, negative_two, AS(VALUE)),
    PTR(options.s.sequence_key_positions, huge_two, AS(OVERFLOW)),
    PTR(options.s.sequence_key_positions, far_two, AS(OVERFLOW)),
    PTR(options.s.partial, &attention.partial.s, AS(CONFIG)),
    INPUT_ROW(key_bias),
    INPUT(pair_bias),
    INPUT(gate),
    I64(key_bias.n_tokens, 2, AS(SHAPE)),
    I64(pair_bias.n_tokens, ROWS - 1, AS(SHAPE)),
    I64(gate.n_tokens, ROWS - 1, AS(SHAPE)),
    PTR(options.s.visible_from, NULL, FINE),
    PTR(options.s.visible_to, NULL, FINE),
    PTR(options.s.visible_from, world.key_starts, FINE),
    PTR(options.s.query_positions, NULL, FINE),
    PTR(options.s.key_positions, NULL, FINE),
    PTR(options.s.alibi_slopes, NULL, FINE),
    PTR(options.s.sink_logits, NULL, FINE),
    I32(options.s.weighting, LATTN_SIGMOID, AS(CONFIG)), /* with sink_logits */
    PTR(out.data, world.key_bias, AS(ALIAS)),
    PTR(out.data, world.pair_bias, AS(ALIAS)),
    PTR(out.data, world.gate, AS(ALIAS)),
    PTR(lse, world.pair_bias, AS(ALIAS)),
    PTR(lse, world.sinks, AS(ALIAS)),
    PTR(out.data, world.slopes, AS(ALIAS)),
    PTR(lse, world.from, AS(ALIAS)),
    PTR(lse, world.to, AS(ALIAS)),
    PTR(lse, world.row_positions, AS(ALIAS)),
    PTR(lse, world.key_positions, AS(ALIAS)),
    PTR(lse, world.row_starts, AS(ALIAS)),
};
static const mutation attention_plain[] = {
    I64(options.s.key_position, -1, AS(VALUE)),
    I64(options.s.key_position, INT64_C(1) << 31, AS(OVERFLOW)),
    I64(options.s.key_position, INT64_MAX, AS(OVERFLOW)),
    SIZES(partial, lattn_partial),
    I64(partial.s.n_rows, N_ROWS - 1, AS(SHAPE)),
    I64(partial.s.n_rows, -1, AS(SHAPE)),
    I64(partial.s.n_rows, INT64_MAX, AS(SHAPE)),
    I64(partial.s.value_dim, VALUE_DIM + 1, AS(SHAPE)),
    I64(partial.s.value_dim, 0, AS(SHAPE)),
    PTR(partial.s.maximum, NULL, AS(NULL)),
    PTR(partial.s.sum, NULL, AS(NULL)),
    PTR(partial.s.output, NULL, AS(NULL)),
    F32(partial.s.zero, 1, AS(FIELD)),
    PTR(partial.s.maximum, world.q, AS(ALIAS)),
    PTR(partial.s.output, world.out, AS(ALIAS)),
    PTR(partial.s.sum, world.maximum[0], AS(ALIAS)),
    PTR(partial.s.output, world.lse, AS(ALIAS)),
    PTR(out.data, NULL, FINE),
    PTR(options.s.partial, NULL, FINE),
};
/* Selective values. `o`: the options of a call, which are valid with top_values and dropped. */
#define TOP(o)                                                                                    \
  I32(o.top_values, -1, AS(SHAPE)), I32(o.top_values, INT32_MIN, AS(SHAPE)),                      \
      I32(o.top_values, INT32_MAX, FINE), I32(o.top_values, 0, FINE), I32(o.top_values, 1, FINE), \
      I32(o.top_mode, -1, AS(FIELD)), I32(o.top_mode, 2, AS(FIELD)),                              \
      I32(o.top_mode, INT32_MAX, AS(FIELD)), I32(o.top_mode, LATTN_TOP_NORMALISE, FINE),          \
      PTR(o.dropped, NULL, FINE), PTR(o.dropped, world.out, AS(ALIAS)),                           \
      PTR(o.dropped, world.lse, AS(ALIAS)), PTR(o.dropped, world.q, AS(ALIAS)),                   \
      PTR(o.lse_low, world.weights, AS(ALIAS)), PTR(lse, world.weights, AS(ALIAS)),               \
      PTR(out.data, world.weights, AS(ALIAS))
static const mutation attention_top[] = {
    TOP(options.s),
    I32(options.s.size, offsetof(lattn_attn, top_values), FINE), /* of version 0.3 */
    I32(options.s.weighting, LATTN_SIGMOID, FINE),
    PTR(options.s.dropped, world.k, AS(ALIAS)),
    PTR(options.s.dropped, world.v + 1, AS(ALIAS)),
};
static const mutation attention_top_packed[] = {
    TOP(options.s),
    PTR(options.s.dropped, world.key_bias, AS(ALIAS)),
    PTR(options.s.dropped, world.pair_bias, AS(ALIAS)),
    PTR(options.s.dropped, world.gate, AS(ALIAS)),
    PTR(options.s.dropped, world.slopes, AS(ALIAS)),
    PTR(options.s.dropped, world.sinks, AS(ALIAS)),
    PTR(options.s.dropped, world.from, AS(ALIAS)),
    PTR(options.s.dropped, world.key_positions, AS(ALIAS)),
    PTR(options.s.dropped, world.row_starts, AS(ALIAS)),
};
static const mutation attention_top_partial[] = {
    TOP(options.s),
    PTR(options.s.dropped, world.maximum[0], AS(ALIAS)),
    PTR(options.s.dropped, world.sum[0] + 1, AS(ALIAS)),
    PTR(options.s.dropped, world.output[0], AS(ALIAS)),
};
static const mutation attention_top_sigmoid[] = {
    I32(options.s.top_mode, LATTN_TOP_NORMALISE, AS(CONFIG)),
};
static const mutation attention_at[] = {
    I64(options.s.query_position, -1, AS(VALUE)),
    I64(options.s.query_position, INT64_C(1) << 31, AS(OVERFLOW)),
    I64(options.s.query_position, INT64_MAX, AS(OVERFLOW)),
    I64(options.s.query_position, INT64_MIN, AS(VALUE)),
};
#undef ARGS

static void attention_reset_at(void) {
  attention_reset_plain();
  attention.options.s.mask = LATTN_CAUSAL_AT;
}

/* Without a partial: then a NULL out is an error. */
static void attention_reset_bare(void) {
  attention_reset_plain();
  attention.options.s.partial = NULL;
}

static void attention_add_top(void) {
  attention.options.s.top_values = 3;
  attention.options.s.dropped = world.weights;
}
static void attention_reset_top(void) {
  attention_reset_bare();
  attention_add_top();
}
static void attention_reset_top_packed(void) {
  attention_reset_packed();
  attention_add_top();
}
static void attention_reset_top_partial(void) {
  attention_reset_plain();
  attention_add_top();
}
static void attention_reset_top_sigmoid(void) {
  attention_reset_top();
  attention.options.s.weighting = LATTN_SIGMOID;
}

VARIANT(attention_top_target, "attention (top)", attention, attention_reset_top, attention_invoke,
        1);
VARIANT(attention_top_packed_target, "attention (top, packed)", attention,
        attention_reset_top_packed, attention_invoke, 1);
VARIANT(attention_top_partial_target, "attention (top, partial)", attention,
        attention_reset_top_partial, attention_invoke, 1);
VARIANT(attention_top_sigmoid_target, "attention (top, sigmoid)", attention,
        attention_reset_top_sigmoid, attention_invoke, 1);
VARIANT(attention_bare_target, "attention", attention, attention_reset_bare, attention_invoke, 1);
VARIANT(attention_packed_target, "attention (packed)", attention, attention_reset_packed,
        attention_invoke, 1);
VARIANT(attention_plain_target, "attention (partial)", attention, attention_reset_plain,
        attention_invoke, 1);
VARIANT(attention_at_target, "attention (at)", attention, attention_reset_at, attention_invoke, 1);

/* What lattn_attention refuses for its shapes has no scratch size; nothing crashes it. */
static void attention_scratch_of(const mutation *list, size_t n) {
  for (size_t i = 0; i < n; i++) {
    const attention_args *a = &attention;
    check_case("attention_scratch: %s", list[i].name);
    world_reset();
    attention_reset_packed();
    patch(&attention_packed_target, &list[i]);
    size_t bytes = lattn_attention_scratch(a->options_at, a->q, a->k, a->v, 1);
    if (list[i].want == FINE) CHECK(bytes > 0);
  }
  check_case("attention_scratch: threads");
  attention_reset_packed();
  const attention_args *a = &attention;
  CHECK(lattn_attention_scratch(a->options_at, a->q, a->k, a->v, -1) == 0);
  CHECK(lattn_attention_scratch(a->options_at, a->q, a->k, a->v, 1025) == 0);
  attention.q.dim = -1;
  CHECK(lattn_attention_scratch(a->options_at, a->q, a->k, a->v, 1) == 0);
  attention.q.dim = INT64_MAX;
  CHECK(lattn_attention_scratch(a->options_at, a->q, a->k, a->v, 1) == 0);
}

static void test_attention(void) {
  RUN(attention_bare_target, attention_tensors);
  RUN(attention_bare_target, attention_options);
  RUN(attention_packed_target, attention_packed);
  RUN(attention_plain_target, attention_plain);
  RUN(attention_at_target, attention_at);
  RUN(attention_top_target, attention_top);
  RUN(attention_top_packed_target, attention_top_packed);
  RUN(attention_top_partial_target, attention_top_partial);
  RUN(attention_top_sigmoid_target, attention_top_sigmoid);
  attention_scratch_of(attention_tensors, sizeof attention_tensors / sizeof *attention_tensors);
  attention_scratch_of(attention_packed, sizeof attention_packed / sizeof *attention_packed);
}

/* ---- lattn_merge, lattn_partial_import ---- */

typedef struct merge_args {
  SIZED(lattn_merge_options) options;
  SIZED(lattn_exec) exec;
  SIZED(lattn_partial) partial;
  lattn_partial parts[2];
  lattn_tensor out, gate;
  int64_t n;
  float *lse;
  const lattn_partial *parts_at;
  const lattn_merge_options *options_at;
  const lattn_exec *exec_at;
} merge_args;

static merge_args merge;

static void merge_reset(void) {
  merge_args *a = &merge;
  memset(a, 0, sizeof *a);
  exec_reset(&a->exec.s);
  a->options.s.size = sizeof a->options.s;
  a->options.s.sink_logits = world.sinks;
  a->gate = tensor_of(world.gate, LATTN_F32, ROWS, HEADS, 1);
  a->options.s.gate = &a->gate;
  partial_reset(&a->partial.s, 2);
  a->options.s.partial = &a->partial.s;
  partial_reset(&a->parts[0], 0);
  partial_reset(&a->parts[1], 1);
  a->parts[1].first_segment = 1, a->parts[1].n_segments = 1;
  a->out = tensor_of(world.out, LATTN_F32, ROWS, HEADS, VALUE_DIM);
  a->n = 2;
  a->lse = world.lse;
  a->parts_at = a->parts;
  a->options_at = &a->options.s;
  a->exec_at = &a->exec.s;
}

static void merge_reset_bare(void) {
  merge_reset();
  merge.options.s.partial = NULL;
}

static void merge_reset_linear(void) {
  merge_reset_bare();
  merge.options.s.mode = LATTN_MERGE_LINEAR;
  merge.options.s.sink_logits = NULL;
}

static lattn_status merge_invoke(void) {
  const merge_args *a = &merge;
  return lattn_merge(a->options_at, a->n, a->parts_at, a->out, a->lse, a->exec_at);
}

static float nan_weights[N_ROWS];

#define ARGS merge_args
static const mutation merge_list[] = {
    SIZES(options, lattn_merge_options),
    SIZES(partial, lattn_partial),
    EXEC(exec),
    I32(options.s.mode, 3, AS(FIELD)),
    I32(options.s.mode, -1, AS(FIELD)),
    INPUT(gate),
    I32(options.s.mode, LATTN_MERGE_LINEAR, AS(CONFIG)),
    I64(gate.n_tokens, ROWS - 1, AS(SHAPE)),
    I64(n, -1, AS(SHAPE)),
    I64(n, 1025, AS(SHAPE)),
    I64(n, INT64_MAX, AS(SHAPE)),
    I64(n, 0, FINE),
    PTR(parts_at, NULL, AS(NULL)),
    PTR(lse, NULL, FINE),
    PTR(exec_at, NULL, FINE),
    I32(parts[0].size, 0, AS(SIZE)),
    I32(parts[1].size, sizeof(lattn_partial) - 1, AS(SIZE)),
    I32(parts[1].basis, 1, AS(FIELD)),
    I64(parts[1].first_segment, -1, AS(SHAPE) | AS(VALUE) | AS(OVERFLOW)),
    I64(parts[1].first_segment, INT64_MAX, AS(OVERFLOW) | AS(SHAPE)),
    I64(parts[1].n_segments, -1, AS(SHAPE) | AS(VALUE)),
    I64(parts[1].n_segments, INT64_MAX, AS(OVERFLOW) | AS(SHAPE) | AS(VALUE)),
    I64(parts[1].n_rows, N_ROWS - 1, AS(SHAPE)),
    I64(parts[0].n_rows, N_ROWS + 1, AS(SHAPE)),
    I64(parts[0].n_rows, -1, AS(SHAPE)),
    I64(parts[0].n_rows, INT64_MAX, AS(SHAPE)),
    I64(parts[1].value_dim, VALUE_DIM + 1, AS(SHAPE)),
    I64(parts[1].value_dim, -1, AS(SHAPE)),
    PTR(parts[0].maximum, NULL, AS(NULL)),
    PTR(parts[1].sum, NULL, AS(NULL)),
    PTR(parts[1].output, NULL, AS(NULL)),
    F32(parts[1].weight, NAN, AS(VALUE)),
    F32(parts[0].weight, INFINITY, AS(VALUE)),
    F32(parts[0].weight, -INFINITY, FINE),
    F32(parts[0].zero, 1, AS(FIELD)),
    PTR(parts[1].row_weights, nan_weights, AS(VALUE)),
    PTR(partial.s.maximum, NULL, AS(NULL)),
    PTR(partial.s.sum, NULL, AS(NULL)),
    PTR(partial.s.output, NULL, AS(NULL)),
    I64(partial.s.n_rows, 3, AS(SHAPE)),
    I64(partial.s.value_dim, 3, AS(SHAPE)),
    PTR(partial.s.output, world.out, AS(ALIAS)),
    PTR(partial.s.maximum, world.lse, AS(ALIAS)),
    PTR(partial.s.maximum, world.maximum[0] + 1, AS(ALIAS)),
    PTR(out.data, world.output[0], AS(ALIAS)),
    PTR(out.data, world.output[1] + 1, AS(ALIAS)),
    PTR(lse, world.out, AS(ALIAS)),
    PTR(lse, world.sum[0], AS(ALIAS)),
    PTR(lse, world.sinks, AS(ALIAS)),
    PTR(out.data, world.gate, AS(ALIAS)),
};
static const mutation merge_bare_list[] = {OUTPUT(out), PTR(options_at, NULL, FINE)};
static const mutation merge_linear_list[] = {
    F32(parts[0].weight, NAN, AS(VALUE)),
    F32(parts[0].weight, INFINITY, AS(VALUE)),
    F32(parts[0].weight, -INFINITY, AS(VALUE)),
    F32(parts[0].weight, -1, FINE),
    PTR(options.s.sink_logits, world.sinks, AS(CONFIG)),
};
#undef ARGS

TARGET(merge_target, "merge", merge, 1);
VARIANT(merge_bare_target, "merge (no partial)", merge, merge_reset_bare, merge_invoke, 1);
VARIANT(merge_linear_target, "merge (linear)", merge, merge_reset_linear, merge_invoke, 1);

typedef struct import_args {
  SIZED(lattn_partial) partial;
  lattn_tensor out;
  lattn_partial *partial_at;
  const float *lse;
  int32_t flags, zero;
} import_args;

static import_args import;

static void import_reset(void) {
  memset(&import, 0, sizeof import);
  partial_reset(&import.partial.s, 0);
  import.out = tensor_of(world.out, LATTN_F32, ROWS, HEADS, VALUE_DIM);
  import.partial_at = &import.partial.s;
  import.lse = world.lse;
}

static lattn_status import_invoke(void) {
  return lattn_partial_import(import.partial_at, import.out, import.lse, import.flags);
}

#define ARGS import_args
static const mutation import_list[] = {
    SIZES(partial, lattn_partial),
    INPUT(out),
    PTR(partial_at, NULL, AS(NULL)),
    PTR(lse, NULL, AS(NULL)),
    I32(flags, 4, AS(FIELD)),
    I32(flags, -1, AS(FIELD)),
    I32(flags, 3, FINE),
    PTR(partial.s.maximum, NULL, AS(NULL)),
    PTR(partial.s.sum, NULL, AS(NULL)),
    PTR(partial.s.output, NULL, AS(NULL)),
};
#undef ARGS
TARGET(import_target, "partial_import", import, 0);

static void test_merge(void) {
  for (int i = 0; i < N_ROWS; i++) nan_weights[i] = i == N_ROWS - 1 ? NAN : 0;
  RUN(merge_target, merge_list);
  RUN(merge_bare_target, merge_bare_list);
  RUN(merge_linear_target, merge_linear_list);
  RUN(import_target, import_list);
}

/* ---- rotary positions ---- */

typedef struct rotary_args {
  SIZED(lattn_rotary) rotary;
  SIZED(lattn_rotary_scaling) scaling;
  lattn_tensor x;
  int64_t first_position, n;
  const int64_t *positions;
  const lattn_rotary *rotary_at;
  const lattn_rotary_scaling *scaling_at;
  uint64_t *turns;
  const float *f32;
  const double *f64;
  float *magnitude;
  double factor, mscale;
} rotary_args;

static rotary_args rotary;

static void rotary_set(lattn_rotary *r) {
  memset(r, 0, sizeof *r);
  r->size = sizeof *r;
  r->n_dims = KEY_DIM;
  r->turns = world.turns;
}

static void rotary_reset(void) {
  rotary_args *a = &rotary;
  memset(a, 0, sizeof *a);
  rotary_set(&a->rotary.s);
  a->scaling.s.size = sizeof a->scaling.s;
  a->scaling.s.n_dims = KEY_DIM;
  a->x = tensor_of(world.q, LATTN_F32, ROWS, HEADS, KEY_DIM);
  a->rotary_at = &a->rotary.s;
  a->scaling_at = &a->scaling.s;
  a->n = 2;
  a->turns = world.turns;
  a->f32 = world.radians_f32;
  a->f64 = world.radians_f64;
  a->magnitude = &world.magnitude;
  a->factor = 4, a->mscale = 1;
}

static void rotary_reset_positions(void) {
  rotary_reset();
  rotary.positions = world.row_positions;
}

static void rotary_reset_yarn(void) {
  rotary_reset();
  rotary.scaling.s.kind = LATTN_ROTARY_YARN;
  rotary.scaling.s.factor = 4;
  rotary.scaling.s.original_length = 4096;
}

static void rotary_reset_llama3(void) {
  rotary_reset_yarn();
  rotary.scaling.s.kind = LATTN_ROTARY_LLAMA3;
}

static lattn_status rotary_rotate(void) {
  return lattn_rotate(rotary.rotary_at, rotary.x, rotary.first_position, rotary.positions);
}
static lattn_status rotary_fill(void) {
  return lattn_rotary_turns(rotary.turns, rotary.scaling_at);
}
static lattn_status rotary_f32(void) {
  return lattn_rotary_turns_from_f32(rotary.turns, rotary.f32, rotary.n);
}
static lattn_status rotary_f64(void) {
  return lattn_rotary_turns_from_f64(rotary.turns, rotary.f64, rotary.n);
}
static lattn_status rotary_yarn(void) {
  return lattn_rotary_yarn_magnitude(rotary.magnitude, rotary.factor, rotary.mscale);
}

static const int64_t positions_negative[ROWS] = {0, 1, 2, 3, -1};
static const int64_t positions_huge[ROWS] = {0, 1, 2, 3, INT64_MAX};
static const float nan_f32[2] = {1, NAN}, infinite_f32[2] = {INFINITY, 1};
static const double nan_f64[2] = {1, (double)NAN}, infinite_f64[2] = {(double)INFINITY, 1};

#define ARGS rotary_args
#define ROTARY(f)                                                                        \
  SIZES(f, lattn_rotary), I32(f.s.layout, 2, AS(FIELD)), I32(f.s.layout, -1, AS(FIELD)), \
      I32(f.s.first_dim, -1, AS(SHAPE)), I32(f.s.first_dim, 1, AS(SHAPE)),               \
      I32(f.s.first_dim, INT32_MAX, AS(SHAPE)), I32(f.s.n_dims, 0, AS(SHAPE)),           \
      I32(f.s.n_dims, 3, AS(SHAPE)), I32(f.s.n_dims, -2, AS(SHAPE)),                     \
      I32(f.s.n_dims, 6, AS(SHAPE)), I32(f.s.n_dims, 1026, AS(SHAPE)),                   \
      I32(f.s.n_dims, INT32_MAX, AS(SHAPE)), F32(f.s.magnitude, NAN, AS(VALUE)),         \
      F32(f.s.magnitude, INFINITY, AS(VALUE)), I32(f.s.zero, 1, AS(FIELD)),              \
      PTR(f.s.turns, NULL, AS(NULL))
static const mutation rotate_list[] = {
    ROTARY(rotary),
    ANY_TENSOR(x),
    OUTPUT_STRIDES(x),
    PTR(rotary_at, NULL, AS(NULL)),
};
static const mutation rotate_positions_list[] = {
    PTR(positions, positions_negative, FINE),
    PTR(positions, positions_huge, FINE),
    PTR(positions, NULL, FINE),
};
#define SCALING_NUMBER(f)                                                  \
  F64(scaling.s.f, NAN, AS(VALUE)), F64(scaling.s.f, INFINITY, AS(VALUE)), \
      F64(scaling.s.f, -1, AS(VALUE))
static const mutation turns_list[] = {
    SIZES(scaling, lattn_rotary_scaling),   PTR(turns, NULL, AS(NULL)),
    PTR(scaling_at, NULL, AS(NULL)),        I32(scaling.s.kind, 5, AS(FIELD)),
    I32(scaling.s.kind, -1, AS(FIELD)),     I32(scaling.s.flags, 4, AS(FIELD)),
    I32(scaling.s.flags, -1, AS(FIELD)),    I32(scaling.s.n_dims, 0, AS(SHAPE)),
    I32(scaling.s.n_dims, 3, AS(SHAPE)),    I32(scaling.s.n_dims, -2, AS(SHAPE)),
    I32(scaling.s.n_dims, 1026, AS(SHAPE)), SCALING_NUMBER(base),
};
static const mutation turns_yarn_list[] = {
    SCALING_NUMBER(factor),
    SCALING_NUMBER(original_length),
    SCALING_NUMBER(beta_fast),
    SCALING_NUMBER(beta_slow),
    F64(scaling.s.original_length, 0, AS(VALUE)),
};
static const mutation turns_llama3_list[] = {
    SCALING_NUMBER(low_frequency_factor),
    SCALING_NUMBER(high_frequency_factor),
    F64(scaling.s.original_length, 0, AS(VALUE)),
};
static const mutation from_f32_list[] = {
    PTR(turns, NULL, AS(NULL)),        PTR(f32, NULL, AS(NULL)), I64(n, -1, AS(SHAPE)),
    I64(n, INT64_MIN, AS(SHAPE)),      I64(n, 0, FINE),          PTR(f32, nan_f32, AS(VALUE)),
    PTR(f32, infinite_f32, AS(VALUE)),
};
static const mutation from_f64_list[] = {
    PTR(turns, NULL, AS(NULL)),        PTR(f64, NULL, AS(NULL)), I64(n, -1, AS(SHAPE)),
    I64(n, INT64_MIN, AS(SHAPE)),      I64(n, 0, FINE),          PTR(f64, nan_f64, AS(VALUE)),
    PTR(f64, infinite_f64, AS(VALUE)),
};
static const mutation magnitude_list[] = {
    PTR(magnitude, NULL, AS(NULL)),   F64(factor, NAN, AS(VALUE)),
    F64(factor, INFINITY, AS(VALUE)), F64(mscale, NAN, AS(VALUE)),
    F64(mscale, INFINITY, AS(VALUE)),
};
#undef ARGS

VARIANT(rotate_target, "rotate", rotary, rotary_reset, rotary_rotate, 0);
VARIANT(rotate_positions_target, "rotate", rotary, rotary_reset_positions, rotary_rotate, 0);
VARIANT(turns_target, "rotary_turns", rotary, rotary_reset, rotary_fill, 0);
VARIANT(turns_yarn_target, "rotary_turns (YaRN)", rotary, rotary_reset_yarn, rotary_fill, 0);
VARIANT(turns_llama3_target, "rotary_turns (Llama 3)", rotary, rotary_reset_llama3, rotary_fill, 0);
VARIANT(from_f32_target, "rotary_turns_from_f32", rotary, rotary_reset, rotary_f32, 0);
VARIANT(from_f64_target, "rotary_turns_from_f64", rotary, rotary_reset, rotary_f64, 0);
VARIANT(magnitude_target, "rotary_yarn_magnitude", rotary, rotary_reset, rotary_yarn, 0);

static void test_rotary(void) {
  RUN(rotate_target, rotate_list);
  RUN(rotate_positions_target, rotate_positions_list);
  RUN(turns_target, turns_list);
  RUN(turns_yarn_target, turns_yarn_list);
  RUN(turns_llama3_target, turns_llama3_list);
  RUN(from_f32_target, from_f32_list);
  RUN(from_f64_target, from_f64_list);
  RUN(magnitude_target, magnitude_list);
}

/* ---- pools and caches: making them ---- */

typedef struct object_args {
  SIZED(lattn_pool_config) pool_config;
  SIZED(lattn_cache_config) config;
  SIZED(lattn_rotary) rotary;
  SIZED(lattn_pool_stats) pool_stats;
  SIZED(lattn_cache_stats) stats;
  SIZED(lattn_cache_head_stats) head_stats;
  lattn_head heads[KV_HEADS];
  lattn_pool *pool, *pool_in, **pool_at;
  lattn_cache *cache, *cache_in, **cache_at;
  const lattn_pool_config *pool_config_at;
  const lattn_cache_config *config_at;
  lattn_pool_stats *pool_stats_at;
  lattn_cache_stats *stats_at;
  lattn_cache_head_stats *head_stats_at;
  void *arena;
  size_t arena_bytes;
  int32_t kv_head;
  int64_t n_tokens;
  int32_t mark;
  SIZED(lattn_exec) exec;
  const lattn_exec *exec_at;
  int32_t file_fails, file_flip; /* the caller's functions fail; a bit of the file is wrong */
} object_args;

static object_args object;

static void *alloc_never(void *user, size_t bytes, size_t alignment) {
  (void)user, (void)bytes, (void)alignment;
  return NULL;
}
static void free_never(void *user, void *page, size_t bytes) {
  (void)user, (void)page, (void)bytes;
}

/* Head 0 is full, head 1 streams 2 sinks and a window of 3. */
static void config_reset(lattn_cache_config *c, lattn_head heads[KV_HEADS], lattn_rotary *r) {
  memset(c, 0, sizeof *c);
  memset(heads, 0, KV_HEADS * sizeof *heads);
  rotary_set(r);
  heads[1].policy = LATTN_HEAD_STREAMING;
  heads[1].sinks = 2, heads[1].window = 3;
  c->size = sizeof *c, c->head_size = sizeof *heads;
  c->n_kv_heads = KV_HEADS, c->n_heads = HEADS;
  c->key_dim = KEY_DIM, c->value_dim = VALUE_DIM;
  c->capacity = 300, c->max_append = 8;
  c->heads = heads, c->rotary = r;
  c->fault = &fault;
}

static void object_set(void) {
  object_args *a = &object;
  memset(a, 0, sizeof *a);
  a->pool_config.s.size = sizeof a->pool_config.s;
  a->pool_stats.s.size = sizeof a->pool_stats.s;
  a->stats.s.size = sizeof a->stats.s;
  a->head_stats.s.size = sizeof a->head_stats.s;
  config_reset(&a->config.s, a->heads, &a->rotary.s);
  a->pool_at = &a->pool, a->cache_at = &a->cache;
  a->pool_config_at = &a->pool_config.s, a->config_at = &a->config.s;
  a->pool_stats_at = &a->pool_stats.s, a->stats_at = &a->stats.s;
  a->head_stats_at = &a->head_stats.s;
  a->arena = world.arena, a->arena_bytes = sizeof world.arena;
}

/* A pool; pool_in is what calls use. */
static void object_reset_pool(void) {
  object_set();
  CHECK_STATUS(
      lattn_pool_init(&object.pool_in, world.arena, sizeof world.arena, &object.pool_config.s),
      LATTN_OK);
}

/* And a cache in it that holds 7 tokens (the streaming head has evicted, as far as pages allow). */
static void object_reset_cache(void) {
  object_reset_pool();
  CHECK_STATUS(lattn_cache_init(&object.cache_in, object.pool_in, &object.config.s), LATTN_OK);
  CHECK_STATUS(
      lattn_cache_append(object.cache_in, tensor_of(world.k, LATTN_F32, KEYS, KV_HEADS, KEY_DIM),
                         tensor_of(world.v, LATTN_F32, KEYS, KV_HEADS, VALUE_DIM), NULL),
      LATTN_OK);
  object.n_tokens = KEYS - 1;
  object.mark = LATTN_PROMPT_END;
  exec_reset(&object.exec.s);
  object.exec_at = &object.exec.s;
}

/* Its streaming head is compensated, tells what it lost, and waits for the mark. */
static void object_reset_waiting(void) {
  object_reset_pool();
  object.config.s.key_dim = KEY_DIM;
  object.heads[1].policy = LATTN_HEAD_COMPENSATED;
  object.heads[1].flags = LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE;
  object.heads[1].mark = LATTN_PROMPT_END;
  object.heads[1].window_divisor = 2;
  CHECK_STATUS(lattn_cache_init(&object.cache_in, object.pool_in, &object.config.s), LATTN_OK);
  CHECK_STATUS(
      lattn_cache_append(object.cache_in, tensor_of(world.k, LATTN_F32, KEYS, KV_HEADS, KEY_DIM),
                         tensor_of(world.v, LATTN_F32, KEYS, KV_HEADS, VALUE_DIM), NULL),
      LATTN_OK);
  object.mark = LATTN_PROMPT_END;
  exec_reset(&object.exec.s);
  object.exec_at = &object.exec.s;
}

static const float chosen_q[KEYS * HEADS * KEY_DIM] = {1};
static float chosen_out[KEYS * HEADS * VALUE_DIM];

static lattn_status object_pool_init(void) {
  const object_args *a = &object;
  return lattn_pool_init(a->pool_at, a->arena, a->arena_bytes, a->pool_config_at);
}
static lattn_status object_cache_init(void) {
  return lattn_cache_init(object.cache_at, object.pool_in, object.config_at);
}
static lattn_status object_pool_stats(void) {
  return lattn_pool_stats_get(object.pool_in, object.pool_stats_at);
}
static lattn_status object_stats(void) {
  return lattn_cache_stats_get(object.cache_in, object.stats_at);
}
static lattn_status object_head_stats(void) {
  return lattn_cache_head_stats_get(object.cache_in, object.kv_head, object.head_stats_at);
}
static lattn_status object_truncate(void) {
  return lattn_cache_truncate(object.cache_in, object.n_tokens);
}

/* A saved cache, and the caller's functions on it. */
static struct {
  unsigned char bytes[1 << 12];
  size_t n, at;
} object_file;

static int32_t file_write(void *user, const void *data, size_t bytes) {
  (void)user;
  if (object.file_fails || bytes > sizeof object_file.bytes - object_file.n) return 1;
  memcpy(object_file.bytes + object_file.n, data, bytes);
  object_file.n += bytes;
  return 0;
}
static int32_t file_read(void *user, void *data, size_t bytes) {
  (void)user;
  if (object.file_fails || bytes > object_file.n - object_file.at) return -1;
  memcpy(data, object_file.bytes + object_file.at, bytes);
  object_file.at += bytes;
  return 0;
}
static lattn_status object_save(void) {
  object_file.n = 0;
  return lattn_cache_save(object.cache_in, file_write, NULL, NULL);
}
static lattn_status object_load(void) {
  lattn_status status;
  object_file.at = 0;
  object_file.bytes[20] ^= (unsigned char)object.file_flip;
  status = lattn_cache_load(object.cache_in, file_read, NULL);
  object_file.bytes[20] ^= (unsigned char)object.file_flip;
  return status;
}

static lattn_status object_mark(void) {
  return lattn_cache_mark(object.cache_in, object.mark, object.exec_at);
}

static lattn_status object_clear(void) { return lattn_cache_clear(object.cache_in); }
static lattn_status object_release(void) { return lattn_cache_release(object.cache_in); }

/* As large as init says: the size queries answer 0 exactly where init refuses the config itself. */
static lattn_status object_sizes(void) {
  lattn_cache_config config;
  size_t bytes = lattn_cache_bytes(object.config_at);
  size_t pool = lattn_pool_bytes(NULL, object.config_at, 1);
  size_t rows = lattn_cache_scratch(object.config_at, 4, 1);
  CHECK(!bytes == !pool);
  CHECK(!bytes == !rows);
  memcpy(&config, &object.config.s, sizeof config);
  (void)config;
  return bytes ? LATTN_OK : LATTN_E_CONFIG;
}

static const lattn_head head_unknown[KV_HEADS] = {{.policy = 99, .window = 4}, {0}};

#define ARGS object_args
static const mutation pool_init_list[] = {
    SIZES(pool_config, lattn_pool_config),
    I32(pool_config.s.zero, 1, AS(FIELD)),
    PTR(pool_at, NULL, AS(NULL)),
    PTR(arena, NULL, AS(NULL)),
    FIELD(M_I64, arena_bytes, "0", 0, 0, NULL, AS(MEMORY)),
    FIELD(M_I64, arena_bytes, "1", 1, 0, NULL, AS(MEMORY)),
    FIELD(M_I64, arena_bytes, "63", 63, 0, NULL, AS(MEMORY)),
    PTR(pool_config_at, NULL, FINE),
};
#define HEAD(i)                                                             \
  I32(heads[i].policy, 99, AS(FIELD)), I32(heads[i].policy, -1, AS(FIELD)), \
      I32(heads[i].positions, 3, AS(FIELD)), I32(heads[i].positions, -1, AS(FIELD))
static const mutation config_list[] = {
    SIZES_AS(config, lattn_cache_config, AS(SIZE) | MUTE),
    I32(config.s.size, offsetof(lattn_cache_config, weighting), FINE), /* of version 0.2 */
    I32(config.s.size, offsetof(lattn_cache_config, weighting) - 4, AS(SIZE) | MUTE),
    ROTARY(rotary),
    HEAD(0),
    HEAD(1),
    PTR(config_at, NULL, AS(NULL) | MUTE),
    I32(config.s.head_size, 0, AS(SIZE)),
    I32(config.s.head_size, 8, AS(SIZE)),
    I32(config.s.head_size, sizeof(lattn_head) - 4, AS(SIZE)),
    I32(config.s.n_kv_heads, 0, AS(SHAPE)),
    I32(config.s.n_kv_heads, -1, AS(SHAPE)),
    I32(config.s.n_kv_heads, 3, AS(SHAPE)),
    I32(config.s.n_heads, -1, AS(SHAPE)),
    I32(config.s.n_heads, 3, AS(SHAPE)),
    I32(config.s.n_heads, INT32_MAX, AS(SHAPE)),
    I32(config.s.n_heads, 1, AS(SHAPE)),
    I32(config.s.key_dim, 0, AS(SHAPE)),
    I32(config.s.key_dim, -1, AS(SHAPE)),
    I32(config.s.key_dim, 2, AS(SHAPE)),
    I32(config.s.value_dim, -1, AS(SHAPE)),
    I32(config.s.key_type, 6, AS(TYPE)),
    I32(config.s.key_type, -1, AS(TYPE)),
    I32(config.s.value_type, 6, AS(TYPE)),
    I32(config.s.value_type, INT32_MIN, AS(TYPE)),
    I64(config.s.capacity, -1, AS(SHAPE)),
    I64(config.s.capacity, 0, AS(CONFIG)),
    I64(config.s.capacity, INT64_MAX, AS(OVERFLOW)),
    I64(config.s.capacity, INT64_C(1) << 31, AS(OVERFLOW) | AS(FULL)),
    I64(config.s.max_append, -1, AS(SHAPE)),
    I64(config.s.max_append, INT64_MAX, AS(OVERFLOW)),
    F32(config.s.scale, NAN, AS(VALUE)),
    F32(config.s.scale, INFINITY, AS(VALUE)),
    F32(config.s.softcap, NAN, AS(VALUE)),
    F32(config.s.softcap, -1, AS(VALUE)),
    I32(config.s.weighting, -1, AS(FIELD)),
    I32(config.s.weighting, 2, AS(FIELD)),
    I32(config.s.weighting, LATTN_SIGMOID, FINE),
    F32(config.s.sigmoid_bias, 1, AS(CONFIG)),
    F32(config.s.sigmoid_bias, NAN, AS(VALUE)),
    F32(config.s.sigmoid_bias, INFINITY, AS(VALUE)),
    I64(heads[1].sinks, -1, AS(VALUE)),
    I64(heads[1].sinks, INT64_MAX, FINE),
    I64(heads[1].window, 0, AS(VALUE)),
    I64(heads[1].window, -1, AS(VALUE)),
    I64(heads[1].window, INT64_MAX, FINE),
    I64(heads[1].slack, -1, AS(VALUE)),
    I64(heads[1].slack, INT64_MAX, FINE),
    I32(heads[0].positions, LATTN_POSITIONS_IN_CACHE, AS(CONFIG)),
    I32(heads[0].mark, LATTN_PROMPT_END, AS(CONFIG)),
    I32(heads[0].flags, LATTN_HEAD_LOST, AS(CONFIG)),
    I64(heads[0].window_divisor, 1, AS(CONFIG)),
    I32(heads[1].mark, 2, AS(FIELD)),
    I32(heads[1].mark, -1, AS(FIELD)),
    I32(heads[1].mark, LATTN_PROMPT_END, FINE),
    I32(heads[1].flags, 4, AS(FIELD)),
    I32(heads[1].flags, LATTN_HEAD_LOST, FINE),
    I32(heads[1].flags, LATTN_HEAD_VARIANCE, AS(CONFIG)),
    I64(heads[1].window_divisor, -1, AS(VALUE)),
    I64(heads[1].window_divisor, 5, AS(CONFIG)),
    I32(heads[1].policy, LATTN_HEAD_COMPENSATED, FINE),
    PTR(config.s.rotary, NULL, FINE),
    PTR(config.s.heads, NULL, FINE),
    PTR(config.s.heads, head_unknown, AS(FIELD)),
};
static const mutation config_plain_list[] = {
    I32(heads[1].positions, LATTN_POSITIONS_IN_CACHE, AS(CONFIG))};
static const mutation cache_init_list[] = {
    PTR(cache_at, NULL, AS(NULL)),
    PTR(pool_in, NULL, AS(NULL)),
    I64(config.s.capacity, INT64_C(1) << 28, AS(FULL)),
    I32(config.s.key_dim, 1 << 30, AS(FULL) | AS(OVERFLOW)),
    I32(config.s.n_kv_heads, INT32_MAX, AS(SHAPE)),
};
/* Head 0 is SNAP and shares its budget, head 1 HEAVY. */
#define CHOSEN(i)                                                                              \
  I32(heads[i].mark, 2, AS(FIELD)), I32(heads[i].mark, -1, AS(FIELD)),                         \
      I32(heads[i].mark, LATTN_PROMPT_END, FINE), I32(heads[i].zero, 1, AS(FIELD)),            \
      I64(heads[i].sinks, 1, AS(CONFIG)), I64(heads[i].sinks, INT64_MIN, AS(CONFIG)),          \
      I64(heads[i].window_divisor, 1, AS(CONFIG)), I64(heads[i].window, -1, AS(VALUE)),        \
      I64(heads[i].window, INT64_MIN, AS(VALUE)), I64(heads[i].window, INT64_MAX, AS(VALUE)),  \
      I64(heads[i].window, 7, AS(VALUE)), I64(heads[i].slack, -1, AS(VALUE)),                  \
      I64(heads[i].budget, 0, AS(VALUE)), I64(heads[i].budget, -1, AS(VALUE)),                 \
      I64(heads[i].budget, INT64_MIN, AS(VALUE)), I64(heads[i].budget, INT64_MAX, FINE),       \
      I32(heads[i].kernel, -1, AS(VALUE)), I32(heads[i].kernel, 2, AS(VALUE)),                 \
      I32(heads[i].kernel, 65, AS(VALUE)), I32(heads[i].kernel, INT32_MAX, AS(VALUE)),         \
      F64(heads[i].floor_alpha, 1.5, AS(VALUE)), F64(heads[i].floor_alpha, NAN, AS(VALUE)),    \
      F64(heads[i].floor_alpha, INFINITY, AS(VALUE)),                                          \
      I32(heads[i].positions, LATTN_POSITIONS_IN_CACHE, AS(CONFIG)),                           \
      I32(heads[i].positions, LATTN_POSITIONS_ABSOLUTE, FINE),                                 \
      I32(heads[i].flags, LATTN_HEAD_LOST, FINE),                                              \
      I32(heads[i].flags, LATTN_HEAD_VARIANCE, AS(FIELD)), I32(heads[i].flags, -1, AS(FIELD)), \
      I32(heads[i].flags, 2048, AS(FIELD)), I32(heads[i].policy, 5, AS(FIELD)),                \
      I32(heads[i].policy, LATTN_HEAD_FULL, AS(CONFIG)),                                       \
      I32(heads[i].policy, LATTN_HEAD_STREAMING, AS(CONFIG)),                                  \
      I32(heads[i].policy, LATTN_HEAD_COMPENSATED, AS(CONFIG)),                                \
      I32(heads[i].key_type, 9, AS(TYPE)), I32(heads[i].value_type, -1, AS(TYPE)),             \
      I32(heads[i].key_type, LATTN_I8, AS(CONFIG))
static const mutation config_chosen_list[] = {
    HEAD(0),
    HEAD(1),
    CHOSEN(0),
    CHOSEN(1),
    I64(heads[0].window, 6, AS(VALUE)), /* = budget; HEAVY keeps the newest alone: */
    I64(heads[1].window, 6, FINE),
    I64(heads[1].window, 0, FINE),
    I64(heads[0].window, 0, AS(VALUE)), /* 32 */
    I64(heads[0].budget, 2, AS(VALUE)),
    I64(heads[0].slack, INT64_MAX, FINE),
    I64(heads[1].slack, 1, AS(CONFIG)),
    I32(heads[0].kernel, 63, FINE),
    I32(heads[1].kernel, 3, AS(CONFIG)),
    I32(heads[0].flags, 0, FINE),
    I32(heads[0].flags, 1024 + 512 + 256, FINE),
    I32(heads[1].flags, LATTN_SNAP_SHARED, AS(CONFIG)),
    F64(heads[0].floor_alpha, -INFINITY, FINE),
    F64(heads[0].floor_alpha, 1, FINE),
    F64(heads[1].floor_alpha, 0.5, AS(CONFIG)),
    F64(heads[1].floor_alpha, -0.0, FINE),
    I32(config.s.max_drafts, 1, AS(CONFIG)),
    I32(config.s.n_value_heads, 1, AS(CONFIG)),
    I32(config.s.n_value_heads, 4, AS(CONFIG)),
    I32(config.s.n_value_heads, 2, FINE),
    I64(config.s.capacity, 0, AS(CONFIG)),
    I32(config.s.weighting, LATTN_SIGMOID, FINE),
    I32(config.s.head_size, offsetof(lattn_head, budget), AS(VALUE)), /* without a budget */
    PTR(config.s.heads, NULL, FINE),
};
static const mutation config_bundle_list[] = {
    I32(config.s.n_value_heads, -1, AS(SHAPE)),
    I32(config.s.n_value_heads, INT32_MIN, AS(SHAPE)),
    I32(config.s.n_value_heads, INT32_MAX, AS(SHAPE)),
    I32(config.s.n_value_heads, 3, AS(SHAPE)),
    I32(config.s.n_value_heads, 8, AS(SHAPE)),
    I32(config.s.n_value_heads, 0, FINE),
    I32(config.s.n_value_heads, 2, FINE),
    I32(config.s.n_kv_heads, 3, AS(SHAPE)),
    I32(config.s.n_heads, 0, AS(SHAPE)),
    I32(config.s.n_heads, 2, AS(SHAPE)),
    I32(config.s.zero, 1, AS(FIELD)),
    I32(config.s.zero, -1, AS(FIELD)),
    I32(heads[0].flags, LATTN_HEAD_LOST, AS(CONFIG)),
    I32(heads[1].flags, LATTN_HEAD_LOST, AS(CONFIG)),
    I32(heads[1].policy, LATTN_HEAD_COMPENSATED, AS(CONFIG)),
    I32(heads[1].mark, LATTN_PROMPT_END, FINE),
    I32(config.s.size, offsetof(lattn_cache_config, n_value_heads), FINE), /* of version 0.3 */
};
/* A stats struct of a newer caller: what this version does not know is the caller's own
   business. */
#define OUT_SIZES(f, type)                                \
  I32(f.s.size, 0, AS(SIZE)), I32(f.s.size, 4, AS(SIZE)), \
      I32(f.s.size, sizeof(type) - 1, AS(SIZE)), I32(f.s.size, sizeof(type) + 16, FINE)
static const mutation pool_stats_list[] = {
    OUT_SIZES(pool_stats, lattn_pool_stats),
    PTR(pool_in, NULL, AS(NULL)),
    PTR(pool_stats_at, NULL, AS(NULL)),
};
static const mutation stats_list[] = {
    OUT_SIZES(stats, lattn_cache_stats),
    PTR(cache_in, NULL, AS(NULL)),
    PTR(stats_at, NULL, AS(NULL)),
};
static const mutation head_stats_list[] = {
    OUT_SIZES(head_stats, lattn_cache_head_stats),
    PTR(cache_in, NULL, AS(NULL)),
    PTR(head_stats_at, NULL, AS(NULL)),
    I32(kv_head, -1, AS(SHAPE)),
    I32(kv_head, KV_HEADS, AS(SHAPE)),
    I32(kv_head, INT32_MAX, AS(SHAPE)),
    I32(kv_head, INT32_MIN, AS(SHAPE)),
};
static const mutation truncate_list[] = {
    PTR(cache_in, NULL, AS(NULL)),       I64(n_tokens, -1, AS(SHAPE)),
    I64(n_tokens, KEYS + 1, AS(SHAPE)),  I64(n_tokens, INT64_MAX, AS(SHAPE)),
    I64(n_tokens, INT64_MIN, AS(SHAPE)), I64(n_tokens, KEYS, FINE),
};
static const mutation mark_list[] = {
    PTR(cache_in, NULL, AS(NULL)),
    PTR(exec_at, NULL, FINE),
    I32(mark, 0, AS(FIELD)),
    I32(mark, 2, AS(FIELD)),
    I32(mark, -1, AS(FIELD)),
    I32(mark, INT32_MIN, AS(FIELD)),
    SIZES_AS(exec, lattn_exec, AS(SIZE) | MUTE),
    I32(exec.s.n_threads, 3, FINE),
};
static const mutation mark_chosen_list[] = {
    PTR(cache_in, NULL, AS(NULL)),
    PTR(exec_at, NULL, FINE),
    I32(mark, 0, AS(FIELD)),
    I32(mark, 2, AS(FIELD)),
    I32(mark, INT32_MAX, AS(FIELD)),
    EXEC(exec),
    I32(exec.s.n_threads, 3, FINE),
    FIELD(M_I64, exec.s.scratch_bytes, "1", 1, 0, NULL, AS(SCRATCH)),
    PTR(exec.s.scratch, NULL, FINE),
};
static const mutation no_cache_list[] = {PTR(cache_in, NULL, AS(NULL))};
static const mutation save_list[] = {
    PTR(cache_in, NULL, AS(NULL)),
    I32(file_fails, 1, AS(IO)),
};
#undef ARGS

/* Heads that marks choose the tokens of. */
static void object_set_chosen(void) {
  lattn_head *h = object.heads;
  object_reset_pool();
  memset(h, 0, sizeof object.heads);
  h[0].policy = LATTN_HEAD_SNAP, h[1].policy = LATTN_HEAD_HEAVY;
  h[0].window = 2, h[1].window = 2;
  h[0].budget = 6, h[1].budget = 6;
  h[0].flags = LATTN_SNAP_SHARED;
}
static void object_set_bundle(void) {
  object_reset_pool();
  object.config.s.n_value_heads = HEADS; /* two bundles of a key head and two value heads */
}

/* 7 tokens, of which a mark drops one a head. */
static void object_reset_chosen(void) {
  object_set_chosen();
  CHECK_STATUS(lattn_cache_init(&object.cache_in, object.pool_in, &object.config.s), LATTN_OK);
  CHECK_STATUS(lattn_cache_extend(
                   object.cache_in, NULL, tensor_of(chosen_q, LATTN_F32, KEYS, HEADS, KEY_DIM),
                   tensor_of(world.k, LATTN_F32, KEYS, KV_HEADS, KEY_DIM),
                   tensor_of(world.v, LATTN_F32, KEYS, KV_HEADS, VALUE_DIM),
                   tensor_of(chosen_out, LATTN_F32, KEYS, HEADS, VALUE_DIM), NULL, NULL),
               LATTN_OK);
  object.mark = LATTN_PROMPT_END;
  exec_reset(&object.exec.s);
  object.exec_at = &object.exec.s;
}

/* Only extend and drafts bring queries: a mark of appended tokens finds none. */
static void object_reset_appended(void) {
  object_reset_chosen();
  CHECK_STATUS(
      lattn_cache_append(object.cache_in, tensor_of(world.k, LATTN_F32, 1, KV_HEADS, KEY_DIM),
                         tensor_of(world.v, LATTN_F32, 1, KV_HEADS, VALUE_DIM), NULL),
      LATTN_OK);
}

static void object_reset_plain(void) {
  object_reset_pool();
  object.config.s.rotary = NULL;
}

VARIANT(pool_init_target, "pool_init", object, object_set, object_pool_init, 0);
VARIANT(config_target, "cache_init", object, object_reset_pool, object_cache_init, 1);
VARIANT(config_chosen_target, "cache_init (chosen)", object, object_set_chosen, object_cache_init,
        1);
VARIANT(config_bundle_target, "cache_init (bundles)", object, object_set_bundle, object_cache_init,
        1);
VARIANT(config_plain_target, "cache_init (no rotary)", object, object_reset_plain,
        object_cache_init, 1);
VARIANT(cache_init_target, "cache_init (pool)", object, object_reset_pool, object_cache_init, 0);
VARIANT(pool_stats_target, "pool_stats_get", object, object_reset_pool, object_pool_stats, 0);
VARIANT(stats_target, "cache_stats_get", object, object_reset_cache, object_stats, 0);
VARIANT(head_stats_target, "cache_head_stats_get", object, object_reset_cache, object_head_stats,
        0);
VARIANT(truncate_target, "cache_truncate", object, object_reset_cache, object_truncate, 0);
VARIANT(save_target, "cache_save", object, object_reset_cache, object_save, 0);
VARIANT(mark_target, "cache_mark", object, object_reset_cache, object_mark, 1);
VARIANT(mark_waiting_target, "cache_mark (waiting)", object, object_reset_waiting, object_mark, 1);
VARIANT(mark_chosen_target, "cache_mark (chosen)", object, object_reset_chosen, object_mark, 1);
VARIANT(mark_appended_target, "cache_mark (appended)", object, object_reset_appended, object_mark,
        1);
VARIANT(clear_target, "cache_clear", object, object_reset_cache, object_clear, 0);
VARIANT(release_target, "cache_release", object, object_reset_cache, object_release, 0);

/* lattn_cache_bytes, lattn_pool_bytes, lattn_cache_scratch: 0 exactly where init refuses the
   config. */
static void config_sizes_of(const target *t, const mutation *list, size_t n) {
  for (size_t i = 0; i < n; i++) {
    check_case("cache_bytes: %s", list[i].name);
    world_reset();
    t->reset();
    patch(t, &list[i]);
    lattn_status status = object_cache_init();
    lattn_status sizes = object_sizes();
    if (status != LATTN_E_FULL) CHECK(!status == !sizes);
  }
}

#define SIZES_OF(target, list) config_sizes_of(&(target), list, sizeof(list) / sizeof *(list))

static void config_sizes(void) {
  SIZES_OF(config_target, config_list);
  SIZES_OF(config_chosen_target, config_chosen_list);
  SIZES_OF(config_bundle_target, config_bundle_list);
  check_case("pool_bytes: counts");
  world_reset();
  object_set();
  CHECK(lattn_pool_bytes(NULL, &object.config.s, -1) == 0);
  CHECK(lattn_pool_bytes(NULL, &object.config.s, INT64_MAX) == 0);
  object.pool_config.s.size = 0;
  CHECK(lattn_pool_bytes(&object.pool_config.s, &object.config.s, 1) == 0);
  CHECK(lattn_cache_scratch(&object.config.s, -1, 1) == 0);
  CHECK(lattn_cache_scratch(&object.config.s, 4, -1) == 0);
  CHECK(lattn_cache_scratch(&object.config.s, 4, 1025) == 0);
  CHECK(lattn_cache_scratch(&object.config.s, INT64_MAX, 1) == 0); /* rows that no number counts */
}

/* alloc and free come together. */
static void pool_callbacks(void) {
  check_case("pool_init: alloc without free");
  world_reset();
  object_set();
  object.pool_config.s.alloc = alloc_never;
  expect(&pool_init_target, AS(CONFIG));
  check_case("pool_init: free without alloc");
  object_set();
  object.pool_config.s.free = free_never;
  expect(&pool_init_target, AS(CONFIG));
}

/* A load builds its tables in free parts of the arena: what the cache saves is compared. */
static void test_load(void) {
  static const lattn_status want[] = {LATTN_E_IO, LATTN_E_FORMAT, LATTN_OK};
  static unsigned char before[sizeof object_file.bytes];
  for (int i = 0; i < 3; i++) {
    lattn_status status;
    check_case("cache_load: %s", lattn_status_text(want[i]));
    world_reset(), object_reset_cache();
    CHECK_STATUS(object_save(), LATTN_OK);
    memcpy(before, object_file.bytes, object_file.n);
    object.file_fails = want[i] == LATTN_E_IO;
    object.file_flip = want[i] == LATTN_E_FORMAT ? 4 : 0;
    status = object_load();
    note_status(status);
    CHECK_STATUS(status, want[i]);
    object.file_fails = 0;
    CHECK_STATUS(object_save(), LATTN_OK);
    CHECK(!memcmp(before, object_file.bytes, object_file.n));
  }
  check_case("cache_load: null pointers");
  CHECK_STATUS(lattn_cache_load(NULL, file_read, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_load(object.cache_in, NULL, NULL), LATTN_E_NULL);
}

static void test_objects(void) {
  RUN(pool_init_target, pool_init_list);
  pool_callbacks();
  RUN(config_target, config_list);
  RUN(config_plain_target, config_plain_list);
  RUN(config_chosen_target, config_chosen_list);
  RUN(config_bundle_target, config_bundle_list);
  RUN(cache_init_target, cache_init_list);
  config_sizes();
  RUN(pool_stats_target, pool_stats_list);
  RUN(stats_target, stats_list);
  RUN(head_stats_target, head_stats_list);
  RUN(truncate_target, truncate_list);
  RUN(mark_target, mark_list);
  RUN(mark_waiting_target, mark_list);
  RUN(mark_chosen_target, mark_chosen_list);
  check_case("cache_mark: appended tokens");
  world_reset(), object_reset_appended();
  expect(&mark_appended_target, AS(STATE));
  RUN(save_target, save_list);
  test_load();
  RUN(clear_target, no_cache_list);
  RUN(release_target, no_cache_list);
}

/* ---- pools and caches: using them ---- */

typedef struct use_args {
  SIZED(lattn_call) call;
  SIZED(lattn_exec) exec;
  SIZED(lattn_partial) partial;
  lattn_tensor q, k, v, out, key_bias, pair_bias, gate;
  float *lse;
  lattn_cache *cache;
  const lattn_call *call_at;
  const lattn_exec *exec_at;
} use_args;

static use_args use;

enum { NEW = ROWS, BEFORE = KEYS, TOTAL = BEFORE + NEW };
static float use_lost[NEW * HEADS];
static float use_bias[HEADS * TOTAL], use_pair[NEW * HEADS * TOTAL];

static void use_reset(void) {
  use_args *a = &use;
  object_reset_cache();
  memset(a, 0, sizeof *a);
  exec_reset(&a->exec.s);
  a->call.s.size = sizeof a->call.s;
  a->key_bias = tensor_of(use_bias, LATTN_F32, 1, HEADS, TOTAL);
  a->pair_bias = tensor_of(use_pair, LATTN_F32, NEW, HEADS, TOTAL);
  a->gate = tensor_of(world.gate, LATTN_F32, NEW, HEADS, 1);
  a->call.s.key_bias = &a->key_bias;
  a->call.s.pair_bias = &a->pair_bias;
  a->call.s.gate = &a->gate;
  a->q = tensor_of(world.q, LATTN_F32, NEW, HEADS, KEY_DIM);
  a->k = tensor_of(world.k, LATTN_F32, NEW, KV_HEADS, KEY_DIM);
  a->v = tensor_of(world.v, LATTN_F32, NEW, KV_HEADS, VALUE_DIM);
  a->out = tensor_of(world.out, LATTN_F32, NEW, HEADS, VALUE_DIM);
  a->lse = world.lse;
  a->cache = object.cache_in;
  a->call_at = &a->call.s;
  a->exec_at = &a->exec.s;
}

/* For attend: with a partial. */
static void use_reset_partial(void) {
  use_reset();
  partial_reset(&use.partial.s, 0);
  use.call.s.partial = &use.partial.s;
}

static lattn_status use_extend(void) {
  const use_args *a = &use;
  return lattn_cache_extend(a->cache, a->call_at, a->q, a->k, a->v, a->out, a->lse, a->exec_at);
}
static lattn_status use_append(void) {
  return lattn_cache_append(use.cache, use.k, use.v, use.exec_at);
}
static lattn_status use_attend(void) {
  const use_args *a = &use;
  return lattn_cache_attend(a->cache, a->call_at, a->q, a->out, a->lse, a->exec_at);
}

#define ARGS use_args
#define USE_COMMON                                                                                 \
  PTR(cache, NULL, AS(NULL)), PTR(call_at, NULL, FINE), PTR(exec_at, NULL, FINE),                  \
      PTR(lse, NULL, FINE), SIZES(call, lattn_call), EXEC(exec),                                   \
      I32(call.s.inexact, 2, AS(FIELD)), INPUT(q), OUTPUT(out), PTR(out.data, NULL, AS(NULL)),     \
      INPUT_ROW(key_bias), INPUT(pair_bias), INPUT(gate), I64(key_bias.n_tokens, 2, AS(SHAPE)),    \
      I64(key_bias.dim, BEFORE - 1, AS(SHAPE)), I64(pair_bias.n_tokens, NEW - 1, AS(SHAPE)),       \
      I64(gate.n_tokens, NEW - 1, AS(SHAPE)),                                                      \
      FIELD(M_I64, exec.s.scratch_bytes, "1", 1, 0, NULL, AS(SCRATCH)),                            \
      PTR(lse, world.out, AS(ALIAS)), PTR(lse, world.q, AS(ALIAS)),                                \
      PTR(out.data, world.q + 1, AS(ALIAS)), PTR(out.data, world.gate, AS(ALIAS)),                 \
      PTR(out.data, use_bias, AS(ALIAS)), PTR(lse, use_pair, AS(ALIAS)),                           \
      PTR(call.s.lost_bound, use_lost, FINE), PTR(call.s.lost_estimate, use_lost, FINE),           \
      PTR(call.s.lost_bound, world.out, AS(ALIAS)), PTR(call.s.lost_bound, world.lse, AS(ALIAS)),  \
      PTR(call.s.lost_estimate, world.out, AS(ALIAS)), PTR(call.s.lost_bound, world.q, AS(ALIAS)), \
      PTR(call.s.lost_estimate, world.q, AS(ALIAS)), PTR(call.s.lost_bound, use_pair, AS(ALIAS)),  \
      PTR(call.s.lost_estimate, world.gate, AS(ALIAS)),                                            \
      I32(call.s.size, offsetof(lattn_call, lost_bound), FINE) /* of version 0.2 */
static const mutation extend_list[] = {
    USE_COMMON,
    INPUT(k),
    INPUT(v),
    I64(k.n_tokens, NEW - 1, AS(SHAPE)),
    I64(v.n_tokens, NEW - 1, AS(SHAPE)),
    I64(q.n_tokens, NEW - 1, AS(SHAPE)),
    I64(out.n_tokens, NEW - 1, AS(SHAPE)),
    I64(key_bias.dim, TOTAL - 1, AS(SHAPE)),
    PTR(call.s.partial, &use.partial.s, AS(CONFIG)),
    PTR(out.data, world.k, AS(ALIAS)),
    PTR(out.data, world.v, AS(ALIAS)),
    PTR(lse, world.k, AS(ALIAS)),
    PTR(call.s.lost_bound, world.k, AS(ALIAS)),
    PTR(call.s.lost_estimate, world.v, AS(ALIAS)),
};
static const mutation append_list[] = {
    PTR(cache, NULL, AS(NULL)),
    PTR(exec_at, NULL, FINE),
    INPUT(k),
    INPUT(v),
    SIZES_AS(exec, lattn_exec, AS(SIZE) | MUTE),
    I64(k.n_tokens, NEW - 1, AS(SHAPE)),
    I64(v.n_tokens, NEW - 1, AS(SHAPE)),
};
static const mutation attend_list[] = {
    USE_COMMON,
    I64(out.n_tokens, NEW - 1, AS(SHAPE)),
    I64(q.n_tokens, NEW - 1, AS(SHAPE)),
};
static const mutation use_top_list[] = {
    TOP(call.s),
    I32(call.s.size, offsetof(lattn_call, top_values), FINE), /* of version 0.3 */
    PTR(call.s.dropped, use_bias, AS(ALIAS)),
    PTR(call.s.dropped, use_pair, AS(ALIAS)),
    PTR(call.s.dropped, world.gate, AS(ALIAS)),
    PTR(call.s.lost_bound, world.weights, AS(ALIAS)),
    PTR(call.s.lost_estimate, world.weights, AS(ALIAS)),
};
static const mutation extend_top_list[] = {
    PTR(call.s.dropped, world.k, AS(ALIAS)),
    PTR(call.s.dropped, world.v, AS(ALIAS)),
};
static const mutation attend_partial_list[] = {
    SIZES(partial, lattn_partial),
    I64(partial.s.n_rows, N_ROWS - 1, AS(SHAPE)),
    I64(partial.s.value_dim, VALUE_DIM + 1, AS(SHAPE)),
    PTR(partial.s.maximum, NULL, AS(NULL)),
    PTR(partial.s.output, world.out, AS(ALIAS)),
    PTR(partial.s.sum, world.q, AS(ALIAS)),
};
#undef ARGS

VARIANT(extend_target, "cache_extend", use, use_reset, use_extend, 1);
static void use_reset_top(void) {
  use_reset();
  use.call.s.top_values = 3;
  use.call.s.dropped = world.weights;
}

VARIANT(extend_top_target, "cache_extend (top)", use, use_reset_top, use_extend, 1);
VARIANT(attend_top_target, "cache_attend (top)", use, use_reset_top, use_attend, 1);
VARIANT(append_target, "cache_append", use, use_reset, use_append, 1);
VARIANT(attend_target, "cache_attend", use, use_reset, use_attend, 1);
VARIANT(attend_partial_target, "cache_attend (partial)", use, use_reset_partial, use_attend, 1);

/* Limits of the object rather than of an argument. */
static void test_limits(void) {
  enum { MANY = 320 };
  static float x[MANY * HEADS * KEY_DIM], out[MANY * HEADS * VALUE_DIM];
  check_case("cache_append: more than max_append");
  world_reset(), use_reset();
  use.k = tensor_of(x, LATTN_F32, 9, KV_HEADS, KEY_DIM);
  use.v = tensor_of(x, LATTN_F32, 9, KV_HEADS, VALUE_DIM);
  expect(&append_target, AS(SHAPE));
  check_case("cache_attend: more rows than tokens");
  use.q = tensor_of(x, LATTN_F32, BEFORE + 1, HEADS, KEY_DIM);
  use.out = tensor_of(out, LATTN_F32, BEFORE + 1, HEADS, VALUE_DIM);
  use.lse = NULL, use.call_at = NULL;
  expect(&attend_target, AS(SHAPE));
  check_case("cache_extend: beyond capacity");
  use.q = tensor_of(x, LATTN_F32, MANY, HEADS, KEY_DIM);
  use.k = tensor_of(x, LATTN_F32, MANY, KV_HEADS, KEY_DIM);
  use.v = tensor_of(x, LATTN_F32, MANY, KV_HEADS, VALUE_DIM);
  use.out = tensor_of(out, LATTN_F32, MANY, HEADS, VALUE_DIM);
  expect(&extend_target, AS(FULL));
  check_case("cache_extend: the last token of the capacity");
  use.q.n_tokens = use.k.n_tokens = use.v.n_tokens = use.out.n_tokens = 300 - BEFORE;
  CHECK_STATUS(use_extend(), LATTN_OK);
  check_case("cache_truncate: evicted");
  object.n_tokens = 140; /* not in the page of the sinks, and long out of the window */
  expect(&truncate_target, AS(EVICTED));
  check_case("cache_attend: evicted");
  use.q.n_tokens = use.out.n_tokens = 295;
  expect(&attend_target, AS(EVICTED));
}

static int32_t stop_at_once(void *user, int64_t done, int64_t total) {
  (void)user;
  return done > 0 || total > 0;
}

/* A state that refuses a call: drafts are pending. */
static void test_drafts_pending(void) {
  lattn_status status;
  check_case("status: drafts are pending");
  world_reset(), object_reset_pool();
  object.config.s.max_drafts = 1;
  CHECK_STATUS(object_cache_init(), LATTN_OK);
  status =
      lattn_cache_draft(object.cache, NULL, NULL, tensor_of(world.q, LATTN_F32, 1, HEADS, KEY_DIM),
                        tensor_of(world.k, LATTN_F32, 1, KV_HEADS, KEY_DIM),
                        tensor_of(world.v, LATTN_F32, 1, KV_HEADS, VALUE_DIM),
                        tensor_of(world.out, LATTN_F32, 1, HEADS, VALUE_DIM), NULL, NULL);
  CHECK_STATUS(status, LATTN_OK);
  status = lattn_cache_truncate(object.cache, 0);
  note_status(status);
  CHECK_STATUS(status, LATTN_E_STATE);
}

/* Notes: cancelled, overflowed. */
static void test_notes(void) {
  enum { MANY = 20 }; /* more than one inner step */
  static float x[MANY * HEADS * KEY_DIM], out[MANY * HEADS * VALUE_DIM];
  uint16_t half[1];
  lattn_status status;
  check_case("note: cancelled");
  world_reset(), use_reset();
  use.q = tensor_of(x, LATTN_F32, MANY, HEADS, KEY_DIM);
  use.k = tensor_of(x, LATTN_F32, MANY, KV_HEADS, KEY_DIM);
  use.v = tensor_of(x, LATTN_F32, MANY, KV_HEADS, VALUE_DIM);
  use.out = tensor_of(out, LATTN_F32, MANY, HEADS, VALUE_DIM);
  use.lse = NULL, use.call_at = NULL;
  use.exec.s.progress = stop_at_once;
  status = use_extend();
  note_status(status);
  CHECK_STATUS(status, LATTN_CANCELLED);
  check_case("note: overflowed");
  world_reset(), object_reset_pool();
  object.config.s.key_type = LATTN_F16;
  object.config.s.rotary = NULL;
  CHECK_STATUS(object_cache_init(), LATTN_OK);
  x[0] = 1e6f;
  status = lattn_cache_append(object.cache, tensor_of(x, LATTN_F32, 1, KV_HEADS, KEY_DIM),
                              tensor_of(x + KEY_DIM, LATTN_F32, 1, KV_HEADS, VALUE_DIM), NULL);
  note_status(status);
  CHECK_STATUS(status, LATTN_OVERFLOWED);
  check_case("note: overflowed (attention, f16 output)");
  status = lattn_attention(NULL, tensor_of(x + 1, LATTN_F32, 1, 1, 1),
                           tensor_of(x + 1, LATTN_F32, 1, 1, 1), tensor_of(x, LATTN_F32, 1, 1, 1),
                           tensor_of(half, LATTN_F16, 1, 1, 1), NULL, NULL);
  CHECK_STATUS(status, LATTN_OVERFLOWED);
}

static void test_use(void) {
  RUN(extend_target, extend_list);
  RUN(append_target, append_list);
  RUN(attend_target, attend_list);
  RUN(attend_partial_target, attend_partial_list);
  RUN(extend_top_target, use_top_list);
  RUN(extend_top_target, extend_top_list);
  RUN(attend_top_target, use_top_list);
  test_limits();
  test_drafts_pending();
  test_notes();
}

/* One pool serves any number of capacities, one after another. */
static void test_capacities(void) {
  check_case("cache_init: many capacities in turn");
  world_reset(), object_reset_pool();
  object.config.s.rotary = NULL;
  for (int i = 1; i <= 40; i++) {
    object.config.s.capacity = 1024 * i; /* each with tables of another size */
    if (!CHECK_STATUS(object_cache_init(), LATTN_OK)) return;
    CHECK_STATUS(lattn_cache_release(object.cache), LATTN_OK);
  }
}

/* A pool serves at most 8 page sizes; the ninth is refused, and the eight stay usable. */
static void test_page_sizes(void) {
  lattn_cache *caches[9] = {NULL};
  check_case("cache_init: nine page sizes");
  world_reset(), object_reset_pool();
  object.config.s.rotary = NULL;
  object.config.s.capacity = 1;
  for (int i = 0; i < 8; i++) {
    object.config.s.key_dim = 16 * (i + 1);
    CHECK_STATUS(lattn_cache_init(&caches[i], object.pool_in, &object.config.s), LATTN_OK);
  }
  object.config.s.key_dim = 16 * 9;
  expect(&config_target, AS(CONFIG));
  for (int i = 0; i < 8; i++) CHECK_STATUS(lattn_cache_clear(caches[i]), LATTN_OK);
}

/* ---- functions that cannot fail ---- */

static void count_task(void *context, int32_t index) {
  int32_t *count = (int32_t *)context;
  CHECK(index == *count);
  (*count)++;
}

/* Any six numbers: 0, or a budget. */
static void test_pyramid(void) {
  static const int64_t edges[] = {INT64_MIN, -1, 0, 1, 8, 64, INT32_MAX, INT64_MAX};
  check_case("pyramid_budget: extremes");
  for (int i = 0; i < 8 * 8 * 8 * 8 * 8 * 8; i++) {
    int64_t x[6], got;
    for (int j = 0; j < 6; j++) x[j] = edges[i >> 3 * j & 7];
    got = lattn_pyramid_budget(x[0], x[1], x[2], x[3], x[4], x[5]);
    if (got) CHECK(got > 0 && got <= 2 * x[0] && x[0] > x[1] && x[1] >= 0 && x[4] < x[5]);
  }
}

static void test_plain_functions(void) {
  int32_t count = 0;
  check_case("version and level");
  CHECK(lattn_version_number() == LATTN_VERSION_NUMBER);
  CHECK(lattn_simd_name() && lattn_simd_name()[0]);
  check_case("parallel_openmp: no tasks");
  lattn_parallel_openmp(NULL, 0, count_task, &count);
  lattn_parallel_openmp(NULL, -1, count_task, &count);
  CHECK(count == 0);
  lattn_parallel_openmp(NULL, 1, count_task, &count);
  CHECK(count == 1);
}

/* ---- every status: a text, and a test that reaches it ---- */

typedef struct status_row {
  lattn_status status;
  const char *name, *text;
} status_row;

static const status_row status_list[] = {
#define STATUS_ROW(name, number, text) {name, #name, text},
    LATTN_STATUS_LIST(STATUS_ROW)
#undef STATUS_ROW
};

static void test_statuses(void) {
  size_t n = sizeof status_list / sizeof *status_list;
  for (size_t i = 0; i < n; i++) {
    const status_row *row = &status_list[i];
    check_case("status %s", row->name);
    CHECK(!strcmp(lattn_status_text(row->status), row->text));
    for (size_t j = 0; j < i; j++) CHECK(status_list[j].status != row->status);
    if (row->status <= 0) CHECK(seen >> (unsigned)-row->status & 1);
    else CHECK(seen_notes >> (unsigned)row->status & 1);
  }
  check_case("status: unknown");
  CHECK(!strcmp(lattn_status_text(3), "unknown status"));
  CHECK(!strcmp(lattn_status_text(-18), "unknown status"));
  CHECK(!strcmp(lattn_status_text(INT32_MAX), "unknown status"));
  CHECK(!strcmp(lattn_status_text(INT32_MIN), "unknown status"));
}

int main(void) {
  printf("hostile: simd %s\n", lattn_simd_name());
  test_attention();
  test_merge();
  test_rotary();
  test_objects();
  test_use();
  test_page_sizes();
  test_capacities();
  test_pyramid();
  test_plain_functions();
  test_statuses();
  return test_summary();
}
