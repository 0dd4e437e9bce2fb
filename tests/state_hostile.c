/* state_hostile.c - bad input to states: every function, every argument and field of it; random
 * configs; memory a byte short; sizes that overflow; NaN in tokens. Nothing changes after an error,
 * the state's own memory included.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

enum {
  N = 6,
  HEADS = 4,
  FEW = 2, /* key heads */
  KEY_DIM = 4,
  VALUE_DIM = 2,
  SLACK = 8,
  MEMORY = 1 << 15,
  SCRATCH = 1 << 20,
  DRAFTS = 3
};

typedef struct world_arrays {
  float q[N * HEADS * KEY_DIM + SLACK], k[N * FEW * KEY_DIM + SLACK];
  float v[N * HEADS * VALUE_DIM + SLACK], out[N * HEADS * VALUE_DIM + SLACK];
  float decay[N * HEADS * KEY_DIM], predict[N * HEADS * KEY_DIM], write[N * HEADS * KEY_DIM];
  float beta[N * HEADS], rate[N * HEADS], momentum[N * HEADS], forget[N * HEADS];
  float log_decay[HEADS], bonus[HEADS * KEY_DIM], query[HEADS * KEY_DIM];
  float maximum[N * HEADS], sum[N * HEADS], output[N * HEADS * VALUE_DIM];
  float m[HEADS * KEY_DIM * KEY_DIM * VALUE_DIM + SLACK];
  int64_t tokens_done;
  unsigned char memory[3][MEMORY];
} world_arrays;

static world_arrays world;
static unsigned char scratch[SCRATCH];
static lattn_fault fault;

static void world_reset(void) {
  test_rng rng = rng_seed(3);
  float *x = world.q;
  memset(&world, 0, sizeof world);
  for (size_t i = 0; i < offsetof(world_arrays, tokens_done) / sizeof *x; i++) {
    float f = rng_normal(&rng) * 0.5f;
    memcpy((unsigned char *)&world + i * sizeof f, &f, sizeof f);
  }
  for (int i = 0; i < N * HEADS * KEY_DIM; i++) world.decay[i] = -fabsf(world.decay[i]);
  for (int i = 0; i < HEADS; i++) world.log_decay[i] = -fabsf(world.log_decay[i]);
}

#include "hostile.h"

typedef struct state_args {
  SIZED(lattn_state_config) config;
  SIZED(lattn_state_call) call;
  SIZED(lattn_exec) exec;
  SIZED(lattn_partial) partial;
  SIZED(lattn_state_stats) stats;
  SIZED(lattn_flow) flow;
  lattn_tensor q, k, v, out, decay, beta, predict, write, rate, momentum, forget, m;
  lattn_state_sequence sequences[2];
  int64_t n;
  void *memory;
  size_t bytes;
  int32_t matrix, transposed, preset, n_heads, layer, n_layers, drafts;
  float *slopes;
  lattn_state *state, *other, *made, **made_at;
  const lattn_state_config *config_at;
  lattn_state_config *config_to;
  const lattn_state_call *call_at;
  const lattn_exec *exec_at;
  const lattn_state_sequence *sequences_at;
  lattn_state_stats *stats_at;
  const lattn_flow *flow_at;
} state_args;

static state_args state;

static lattn_state *make(int i) {
  lattn_state *s = NULL;
  CHECK_STATUS(lattn_state_init(&s, world.memory[i], MEMORY, &state.config.s), LATTN_OK);
  return s;
}

/* A valid call of every function, on states of 2 tokens; the second is empty, the third has 1. */
static void reset_with(void (*options)(lattn_state_config *config, lattn_state_call *call)) {
  state_args *a = &state;
  lattn_tensor none;
  memset(a, 0, sizeof *a);
  a->config.s.size = sizeof a->config.s;
  a->config.s.n_heads = HEADS, a->config.s.n_key_heads = FEW;
  a->config.s.key_dim = KEY_DIM, a->config.s.value_dim = VALUE_DIM;
  a->config.s.max_drafts = DRAFTS, a->config.s.fault = &fault;
  a->call.s.size = sizeof a->call.s;
  a->exec.s.size = sizeof a->exec.s;
  a->exec.s.scratch = scratch, a->exec.s.scratch_bytes = sizeof scratch;
  a->exec.s.fault = &fault;
  a->exec.s.tokens_done = NULL;
  a->partial.s.size = sizeof a->partial.s;
  a->partial.s.n_rows = 2 * HEADS, a->partial.s.value_dim = VALUE_DIM;
  a->partial.s.maximum = world.maximum, a->partial.s.sum = world.sum;
  a->partial.s.output = world.output;
  a->stats.s.size = sizeof a->stats.s;
  a->flow.s.size = sizeof a->flow.s;
  a->q = tensor_of(world.q, LATTN_F32, 2, HEADS, KEY_DIM);
  a->k = tensor_of(world.k, LATTN_F32, 2, FEW, KEY_DIM);
  a->v = tensor_of(world.v, LATTN_F32, 2, HEADS, VALUE_DIM);
  a->out = tensor_of(world.out, LATTN_F32, 2, HEADS, VALUE_DIM);
  a->decay = tensor_of(world.decay, LATTN_F32, 2, HEADS, 1);
  a->beta = tensor_of(world.beta, LATTN_F32, 2, HEADS, 1);
  a->predict = tensor_of(world.predict, LATTN_F32, 2, HEADS, KEY_DIM);
  a->write = tensor_of(world.write, LATTN_F32, 2, HEADS, KEY_DIM);
  a->rate = tensor_of(world.rate, LATTN_F32, 2, HEADS, 1);
  a->momentum = tensor_of(world.momentum, LATTN_F32, 2, HEADS, 1);
  a->forget = tensor_of(world.forget, LATTN_F32, 2, HEADS, 1);
  a->m = tensor_of(world.m, LATTN_F32, KEY_DIM, HEADS, VALUE_DIM);
  options(&a->config.s, &a->call.s);
  a->memory = world.memory[2], a->bytes = MEMORY;
  a->made_at = &a->made;
  a->config_at = &a->config.s, a->config_to = &a->config.s;
  a->call_at = &a->call.s;
  a->exec_at = &a->exec.s;
  a->stats_at = &a->stats.s;
  a->flow_at = &a->flow.s;
  a->slopes = world.m;
  a->preset = LATTN_PRESET_RETNET, a->n_heads = HEADS, a->n_layers = 3;
  a->state = make(0), a->other = make(1);
  none = a->out;
  none.data = NULL;
  CHECK_STATUS(lattn_state_advance(a->state, &a->call.s, a->q, a->k, a->v, none, NULL), LATTN_OK);
  a->sequences[0].state = a->state, a->sequences[1].state = a->other;
  a->sequences[0].n_tokens = a->sequences[1].n_tokens = 1;
  a->sequences_at = a->sequences;
  a->n = 2;
}

static void options_key(lattn_state_config *c, lattn_state_call *call) {
  c->delta = LATTN_DELTA_KEY, c->decay = LATTN_DECAY_STEP, c->unit = LATTN_UNIT_L2;
  call->decay = &state.decay, call->beta = &state.beta;
}
static void options_general(lattn_state_config *c, lattn_state_call *call) {
  c->delta = LATTN_DELTA_GENERAL, c->decay = LATTN_DECAY_CHANNEL;
  state.decay.dim = KEY_DIM;
  call->decay = &state.decay, call->predict = &state.predict, call->write = &state.write;
}
static void options_sums(lattn_state_config *c, lattn_state_call *call) {
  c->feature = LATTN_FEATURE_ELU1, c->normaliser = LATTN_NORMALISER_SUM, c->scale = 1;
  call->partial = &state.partial.s;
}
static void options_head(lattn_state_config *c, lattn_state_call *call) {
  (void)call;
  c->decay = LATTN_DECAY_HEAD, c->log_decay = world.log_decay;
  c->reads = LATTN_READS_BEFORE, c->bonus = world.bonus;
}
static void options_caller_map(void *user, int32_t head, int32_t is_query, const float *x,
                               int64_t dim, float *features, int64_t n) {
  (void)user, (void)head, (void)is_query;
  for (int64_t i = 0; i < n; i++) features[i] = x[i % dim];
}
static void options_caller(lattn_state_config *c, lattn_state_call *call) {
  c->feature = LATTN_FEATURE_CALLER, c->feature_dim = 6;
  call->feature = options_caller_map;
}
static void options_flow(lattn_state_config *c, lattn_state_call *call) {
  (void)call;
  c->kind = LATTN_STATE_FLOW;
}
static void options_aaren(lattn_state_config *c, lattn_state_call *call) {
  c->kind = LATTN_STATE_AAREN, c->query = world.query;
  call->partial = &state.partial.s;
}
static void options_titans(lattn_state_config *c, lattn_state_call *call) {
  c->kind = LATTN_STATE_TITANS, c->chunk = 2;
  call->rate = &state.rate, call->momentum = &state.momentum, call->forget = &state.forget;
}

static void reset_key(void) { reset_with(options_key); }
static void reset_general(void) { reset_with(options_general); }
static void reset_sums(void) { reset_with(options_sums); }
static void reset_head(void) { reset_with(options_head); }
static void reset_caller(void) { reset_with(options_caller); }
static void reset_flow(void) { reset_with(options_flow); }
static void reset_aaren(void) { reset_with(options_aaren); }
static void reset_titans(void) { reset_with(options_titans); }

static void reset_deep_only(void) { /* its config only */
  reset_with(options_titans);
  state.config.s.hidden_dim = 5, state.config.s.residual = 1, state.config.s.value_dim = 0;
}

static lattn_status call_init(void) {
  state_args *a = &state;
  return lattn_state_init(a->made_at, a->memory, a->bytes, a->config_at);
}
static lattn_status call_advance(void) {
  state_args *a = &state;
  return lattn_state_advance(a->state, a->call_at, a->q, a->k, a->v, a->out, a->exec_at);
}
static lattn_status call_draft(void) {
  state_args *a = &state;
  return lattn_state_draft(a->state, a->call_at, a->q, a->k, a->v, a->out, a->exec_at);
}
static lattn_status call_read(void) {
  state_args *a = &state;
  return lattn_state_read(a->state, a->call_at, a->q, a->out, a->exec_at);
}
static lattn_status call_batch(void) {
  state_args *a = &state;
  return lattn_batch_advance(a->n, a->sequences_at, a->call_at, a->q, a->k, a->v, a->out,
                             a->exec_at);
}
static lattn_status call_commit(void) { return lattn_state_commit(state.state, state.drafts); }
static lattn_status call_clear(void) { return lattn_state_clear(state.state); }
static lattn_status call_copy(void) { return lattn_state_copy(state.other, state.state); }
static lattn_status call_merge(void) { return lattn_state_merge(state.state, state.other); }
static lattn_status call_get(void) {
  return lattn_state_get(state.state, state.matrix, state.transposed, state.m);
}
static lattn_status call_set(void) {
  return lattn_state_set(state.state, state.matrix, state.transposed, state.m);
}
static lattn_status call_stats(void) { return lattn_state_stats_get(state.state, state.stats_at); }
static lattn_status call_preset(void) { return lattn_state_preset(state.config_to, state.preset); }
static lattn_status call_slopes(void) {
  state_args *a = &state;
  return lattn_state_slopes(a->slopes, a->preset, a->n_heads, a->layer, a->n_layers);
}
static lattn_status call_flow(void) {
  state_args *a = &state;
  return lattn_flow_attention(a->flow_at, a->q, a->k, a->v, a->out, a->exec_at);
}

static void reset_read(void) {
  reset_key();
  memset(&state.call.s, 0, sizeof state.call.s);
  state.call.s.size = sizeof state.call.s;
}
static void reset_drafts(void) { /* two are pending */
  reset_key();
  CHECK_STATUS(lattn_state_draft(state.state, &state.call.s, state.q, state.k, state.v, state.out,
                                 &state.exec.s),
               LATTN_OK);
  state.drafts = 1;
}
static void reset_merge(void) {
  reset_sums();
  state.call.s.partial = NULL;
}

static void reset_flow_attention(void) { /* k and v have as many heads */
  reset_key();
  state.v.n_heads = FEW;
}

static const float bad_last[HEADS * KEY_DIM] = {[HEADS * KEY_DIM - 1] = NAN};
static const float bad_numbers[HEADS * KEY_DIM] = {NAN, 1, 2, 3}, positive[HEADS] = {0, 0.5f, 0, 0};

#define ARGS state_args
#define ANY (AS(SHAPE) | AS(CONFIG) | AS(FIELD) | AS(VALUE))
#define HUGE_SIZE (AS(OVERFLOW) | AS(MEMORY) | AS(SHAPE))
static const mutation init_list[] = {
    SIZES_AS(config, lattn_state_config, AS(SIZE) | MUTE),
    I32(config.s.kind, -1, AS(FIELD)),
    I32(config.s.kind, 4, AS(FIELD)),
    I32(config.s.n_heads, 0, AS(SHAPE)),
    I32(config.s.n_heads, -1, AS(SHAPE)),
    I32(config.s.n_heads, INT32_MIN, AS(SHAPE)),
    I32(config.s.n_heads, INT32_MAX - 1, HUGE_SIZE),
    I32(config.s.n_query_heads, 3, AS(SHAPE)),
    I32(config.s.n_query_heads, -1, AS(SHAPE)),
    I32(config.s.n_query_heads, 8, AS(SHAPE)),
    I32(config.s.n_key_heads, 3, AS(SHAPE)),
    I32(config.s.n_key_heads, -2, AS(SHAPE)),
    I32(config.s.n_value_heads, 3, AS(SHAPE)),
    I32(config.s.n_value_heads, -1, AS(SHAPE)),
    I32(config.s.key_dim, 0, AS(SHAPE)),
    I32(config.s.key_dim, -1, AS(SHAPE)),
    I32(config.s.key_dim, INT32_MAX, HUGE_SIZE),
    I32(config.s.value_dim, -1, AS(SHAPE)),
    I32(config.s.value_dim, INT32_MAX, HUGE_SIZE),
    I32(config.s.feature, -1, AS(FIELD)),
    I32(config.s.feature, 9, AS(FIELD)),
    I32(config.s.feature_dim, 5, ANY),
    I32(config.s.feature_dim, -1, ANY),
    I32(config.s.unit, -1, AS(FIELD)),
    I32(config.s.unit, 3, AS(FIELD)),
    F32(config.s.unit_epsilon, NAN, AS(VALUE)),
    F32(config.s.unit_epsilon, -1, AS(VALUE)),
    F32(config.s.unit_epsilon, INFINITY, AS(VALUE)),
    F32(config.s.scale, NAN, AS(VALUE)),
    F32(config.s.scale, INFINITY, AS(VALUE)),
    F32(config.s.scale, -1, FINE),
    I32(config.s.decay, -1, AS(FIELD)),
    I32(config.s.decay, 4, AS(FIELD)),
    I32(config.s.delta, -1, AS(FIELD)),
    I32(config.s.delta, 3, AS(FIELD)),
    I32(config.s.reads, -1, AS(FIELD)),
    I32(config.s.reads, 2, AS(FIELD)),
    I32(config.s.reads, LATTN_READS_BEFORE, AS(CONFIG)), /* with a delta */
    I32(config.s.normaliser, -1, AS(FIELD)),
    I32(config.s.normaliser, 3, AS(FIELD)),
    I32(config.s.normaliser, LATTN_NORMALISER_SUM, AS(CONFIG)), /* with a delta */
    F32(config.s.epsilon, NAN, AS(VALUE)),
    F32(config.s.epsilon, -1, AS(VALUE)),
    I32(config.s.flags, 2, AS(FIELD)),
    I32(config.s.flags, -1, AS(FIELD)),
    I32(config.s.flags, LATTN_STATE_COMPENSATED, AS(CONFIG)), /* with a delta */
    I32(config.s.max_drafts, -1, AS(SHAPE)),
    I32(config.s.max_drafts, 17, AS(SHAPE)),
    I32(config.s.max_drafts, INT32_MAX, AS(SHAPE)),
    F32(config.s.clamp_low, NAN, AS(VALUE) | AS(CONFIG)),
    I32(config.s.chunk, -1, ANY),
    I32(config.s.chunk, 2, ANY),
    I32(config.s.hidden_dim, 3, ANY),
    I32(config.s.hidden_dim, -1, ANY),
    I32(config.s.activation, 2, ANY),
    I32(config.s.residual, 2, ANY),
    F32(config.s.loss_factor, NAN, ANY),
    I32(config.s.zero, 1, AS(FIELD)),
    PTR(config_at, NULL, AS(NULL) | MUTE),
    PTR(made_at, NULL, AS(NULL)),
    PTR(memory, NULL, AS(NULL)),
    FIELD(M_I64, bytes, "0", 0, 0, NULL, AS(MEMORY)),
    FIELD(M_I64, bytes, "1", 1, 0, NULL, AS(MEMORY)),
};
static const mutation init_head_list[] = {
    PTR(config.s.log_decay, NULL, AS(NULL)),         PTR(config.s.log_decay, positive, AS(VALUE)),
    PTR(config.s.log_decay, bad_numbers, AS(VALUE)), PTR(config.s.bonus, NULL, FINE),
    PTR(config.s.bonus, bad_last, AS(VALUE)),
};
static const mutation init_caller_list[] = {
    I32(config.s.feature_dim, 0, AS(SHAPE) | AS(CONFIG)),
    I32(config.s.feature_dim, -1, AS(SHAPE)),
    I32(config.s.feature_dim, INT32_MAX, HUGE_SIZE),
};
static const mutation init_flow_list[] = {
    I32(config.s.feature, LATTN_FEATURE_ELU1, AS(FIELD) | AS(CONFIG)),
    I32(config.s.feature, LATTN_FEATURE_RELU, FINE),
    F32(config.s.clamp_low, NAN, AS(VALUE)),
    F32(config.s.clamp_high, NAN, AS(VALUE)),
    F32(config.s.clamp_high, -1, AS(VALUE)), /* below low, which is 0 */
    F32(config.s.clamp_high, INFINITY, FINE),
    F32(config.s.scale, 1, AS(CONFIG) | AS(VALUE) | AS(FIELD)),
    I32(config.s.decay, LATTN_DECAY_STEP, AS(CONFIG)),
    I32(config.s.delta, LATTN_DELTA_KEY, AS(CONFIG)),
    I32(config.s.reads, LATTN_READS_BEFORE, AS(CONFIG)),
    I32(config.s.normaliser, LATTN_NORMALISER_SUM, AS(CONFIG)),
    I32(config.s.unit, LATTN_UNIT_L2, AS(CONFIG)),
    I32(config.s.flags, LATTN_STATE_COMPENSATED, FINE),
};
static const mutation init_aaren_list[] = {
    PTR(config.s.query, NULL, AS(NULL)),
    PTR(config.s.query, bad_last, AS(VALUE)),
    F32(config.s.scale, NAN, AS(VALUE)),
    I32(config.s.feature, LATTN_FEATURE_ELU1, AS(FIELD) | AS(CONFIG)),
    I32(config.s.flags, LATTN_STATE_COMPENSATED, AS(CONFIG)),
};
static const mutation init_titans_list[] = {
    I32(config.s.chunk, -1, AS(SHAPE)),
    I32(config.s.hidden_dim, -1, AS(SHAPE)),
    I32(config.s.hidden_dim, INT32_MAX, HUGE_SIZE),
    I32(config.s.activation, -1, AS(FIELD)),
    I32(config.s.activation, 2, AS(FIELD)),
    I32(config.s.residual, -1, AS(FIELD)),
    I32(config.s.residual, 2, AS(FIELD)),
    I32(config.s.value_dim, VALUE_DIM, AS(SHAPE) | AS(CONFIG)), /* with residual */
    F32(config.s.loss_factor, NAN, AS(VALUE)),
    F32(config.s.loss_factor, INFINITY, AS(VALUE)),
    F32(config.s.scale, 1, AS(CONFIG) | AS(VALUE) | AS(FIELD)),
    I32(config.s.flags, LATTN_STATE_COMPENSATED, AS(CONFIG)),
};
/* An output that may be absent: then the tokens are absorbed. */
#define ABSORBED(f)                                                                            \
  PTR(f.data, NULL, FINE), I32(f.type, -1, AS(TYPE)), I32(f.type, 4, AS(TYPE)),                \
      I32(f.zero, 1, AS(FIELD)), I64(f.n_tokens, -1, AS(SHAPE)),                               \
      I64(f.n_tokens, INT64_MAX, AS(OVERFLOW)), I64(f.n_heads, 0, AS(SHAPE)),                  \
      I64(f.n_heads, 3, AS(SHAPE)), I64(f.n_heads, INT64_MAX, AS(OVERFLOW)),                   \
      I64(f.dim, 0, AS(SHAPE)), I64(f.dim, 3, AS(SHAPE)), I64(f.dim, INT64_MAX, AS(OVERFLOW)), \
      I64(f.stride_token, -1, AS(STRIDE)), I64(f.stride_head, -1, AS(STRIDE)), OUTPUT_STRIDES(f)
/* Inputs of a call of all tokens: as INPUT, but counts that do not fit are shapes. */
#define CALL_INPUTS                                                                           \
  INPUT(q), INPUT(k), INPUT(v), I64(q.n_tokens, 3, AS(SHAPE)), I64(k.n_tokens, 1, AS(SHAPE)), \
      I64(v.n_tokens, 3, AS(SHAPE)), I64(out.n_tokens, 1, AS(SHAPE))
static const mutation advance_list[] = {
    CALL_INPUTS,
    ABSORBED(out),
    EXEC(exec),
    SIZES_AS(call, lattn_state_call, AS(SIZE)),
    I32(call.s.zero, 1, AS(FIELD)),
    INPUT(decay),
    INPUT(beta),
    I64(decay.n_tokens, 1, AS(SHAPE)),
    I64(decay.dim, KEY_DIM, AS(SHAPE)),
    I64(decay.n_heads, 1, FINE),
    I64(beta.n_heads, 2, FINE),
    I64(beta.n_tokens, 3, AS(SHAPE)),
    PTR(call.s.decay, NULL, AS(CONFIG) | AS(NULL)),
    PTR(call.s.beta, NULL, FINE),
    PTR(call.s.predict, &state.predict, AS(CONFIG)),
    PTR(call.s.write, &state.write, AS(CONFIG)),
    PTR(call.s.rate, &state.rate, AS(CONFIG)),
    PTR(call.s.momentum, &state.momentum, AS(CONFIG)),
    PTR(call.s.forget, &state.forget, AS(CONFIG)),
    PTR(call.s.feature, (const void *)world.q, FINE), /* not looked at */
    PTR(call.s.partial, &state.partial.s, AS(CONFIG)),
    PTR(call_at, NULL, AS(CONFIG) | AS(NULL)),
    PTR(state, NULL, AS(NULL)),
    PTR(exec_at, NULL, FINE),
    PTR(exec.s.scratch, NULL, FINE),
    PTR(out.data, world.q, AS(ALIAS)),
    PTR(out.data, world.k, AS(ALIAS)),
    PTR(out.data, world.v, AS(ALIAS)),
    PTR(out.data, world.v + 1, AS(ALIAS)),
    PTR(out.data, world.decay, AS(ALIAS)),
    PTR(out.data, world.beta, AS(ALIAS)),
};
static const mutation general_list[] = {
    INPUT(predict),
    INPUT(write),
    INPUT(decay),
    I64(decay.dim, 1, AS(SHAPE)),
    I64(write.n_tokens, 1, AS(SHAPE)),
    PTR(call.s.predict, NULL, AS(CONFIG) | AS(NULL)),
    PTR(call.s.write, NULL, AS(CONFIG) | AS(NULL)),
    PTR(call.s.beta, &state.beta, AS(CONFIG)),
    PTR(out.data, world.predict, AS(ALIAS)),
    PTR(out.data, world.write, AS(ALIAS)),
};
static const mutation partial_list[] = {
    SIZES(partial, lattn_partial),
    I64(partial.s.n_rows, 2 * HEADS - 1, AS(SHAPE)),
    I64(partial.s.n_rows, -1, AS(SHAPE)),
    I64(partial.s.value_dim, VALUE_DIM + 1, AS(SHAPE)),
    PTR(partial.s.maximum, NULL, AS(NULL)),
    PTR(partial.s.sum, NULL, AS(NULL)),
    PTR(partial.s.output, NULL, AS(NULL)),
    PTR(partial.s.maximum, world.k, AS(ALIAS)),
    PTR(partial.s.output, world.out, AS(ALIAS)),
    PTR(partial.s.sum, world.maximum, AS(ALIAS)),
    PTR(out.data, NULL, FINE),
    PTR(call.s.decay, &state.decay, AS(CONFIG)),
};
static const mutation draft_list[] = {
    CALL_INPUTS,
    ABSORBED(out),
    EXEC(exec),
    PTR(state, NULL, AS(NULL)),
    PTR(call.s.partial, &state.partial.s, AS(CONFIG)),
    PTR(call.s.decay, NULL, AS(CONFIG) | AS(NULL)),
    PTR(out.data, world.v, AS(ALIAS)),
};
static const mutation read_list[] = {
    INPUT(q),
    OUTPUT(out),
    EXEC(exec),
    SIZES_AS(call, lattn_state_call, AS(SIZE)),
    PTR(state, NULL, AS(NULL)),
    PTR(call_at, NULL, FINE),
    PTR(call.s.decay, &state.decay, AS(CONFIG)),
    I64(q.n_tokens, 1, AS(SHAPE)),
    PTR(out.data, world.q, AS(ALIAS)),
};
static const mutation batch_list[] = {
    CALL_INPUTS,
    ABSORBED(out),
    EXEC(exec),
    INPUT(decay),
    I64(n, -1, AS(SHAPE)),
    I64(n, INT64_MAX, AS(OVERFLOW) | AS(SHAPE)),
    I64(n, 1, AS(SHAPE)),
    PTR(sequences_at, NULL, AS(NULL)),
    PTR(sequences[0].state, NULL, AS(NULL)),
    PTR(sequences[1].state, NULL, AS(NULL)),
    I64(sequences[0].n_tokens, -1, AS(SHAPE)),
    I64(sequences[0].n_tokens, INT64_MAX, AS(SHAPE) | AS(OVERFLOW)),
    I64(sequences[1].n_tokens, 2, AS(SHAPE)),
    PTR(call.s.partial, &state.partial.s, AS(CONFIG)),
    PTR(call.s.decay, NULL, AS(CONFIG) | AS(NULL)),
    PTR(out.data, world.v, AS(ALIAS)),
};
static const mutation state_only_list[] = {PTR(state, NULL, AS(NULL))};
static const mutation copy_list[] = {PTR(state, NULL, AS(NULL)), PTR(other, NULL, AS(NULL))};
static const mutation commit_list[] = {
    PTR(state, NULL, AS(NULL)),
    I32(drafts, -1, AS(SHAPE)),
    I32(drafts, 3, AS(SHAPE)),
    I32(drafts, INT32_MAX, AS(SHAPE)),
};
#define MATRIX_LIST                                                                  \
  PTR(state, NULL, AS(NULL)), I32(matrix, -1, AS(FIELD)), I32(matrix, 7, AS(FIELD)), \
      I32(matrix, LATTN_MATRIX_MOMENTUM, AS(CONFIG)),                                \
      I32(matrix, LATTN_MATRIX_NORMALISER, AS(CONFIG)),                              \
      I32(matrix, LATTN_MATRIX_GAIN, AS(CONFIG)), I32(transposed, 2, AS(FIELD)),     \
      I32(transposed, -1, AS(FIELD)), I32(transposed, 1, AS(SHAPE)),                 \
      I64(m.n_tokens, KEY_DIM - 1, AS(SHAPE))
static const mutation get_list[] = {MATRIX_LIST, OUTPUT(m)};
static const mutation set_list[] = {MATRIX_LIST, INPUT(m)};
static const mutation stats_list[] = {
    I32(stats.s.size, 0, AS(SIZE)),
    I32(stats.s.size, 4, AS(SIZE)),
    I32(stats.s.size, sizeof(lattn_state_stats) - 1, AS(SIZE)),
    I32(stats.s.size, sizeof(lattn_state_stats) + 16, FINE),
    PTR(state, NULL, AS(NULL)),
    PTR(stats_at, NULL, AS(NULL)),
};
static const mutation preset_list[] = {
    I32(preset, -1, AS(FIELD)),      I32(preset, 15, AS(FIELD)),
    PTR(config_to, NULL, AS(NULL)),  I32(config.s.size, 0, AS(SIZE)),
    I32(config.s.size, 4, AS(SIZE)),
};
static const mutation slopes_list[] = {
    PTR(slopes, NULL, AS(NULL)),
    I32(preset, -1, AS(FIELD)),
    I32(preset, LATTN_PRESET_SSD, AS(FIELD)),
    I32(n_heads, 0, AS(SHAPE)),
    I32(n_heads, -1, AS(SHAPE)),
};
static const mutation slopes_layer_list[] = {
    I32(layer, -1, AS(SHAPE)),
    I32(layer, 3, AS(SHAPE)),
    I32(n_layers, -1, AS(SHAPE) | FINE),
};
static const mutation flow_list[] = {
    ANY_TENSOR(q),
    ANY_TENSOR(k),
    ANY_TENSOR(v),
    OUTPUT(out),
    EXEC(exec),
    SIZES(flow, lattn_flow),
    I32(flow.s.feature, LATTN_FEATURE_ELU1, AS(FIELD)),
    I32(flow.s.feature, -1, AS(FIELD)),
    F32(flow.s.clamp_low, NAN, AS(VALUE)),
    F32(flow.s.clamp_high, NAN, AS(VALUE)),
    F32(flow.s.clamp_high, -2, AS(VALUE)),
    F32(flow.s.epsilon, NAN, AS(VALUE)),
    F32(flow.s.epsilon, -1, AS(VALUE)),
    I32(flow.s.flags, 2, AS(FIELD)),
    PTR(flow_at, NULL, FINE),
    I64(v.n_tokens, 1, AS(SHAPE)),
    I64(k.n_heads, 3, AS(SHAPE)),
    PTR(exec.s.scratch, NULL, AS(SCRATCH)),
    FIELD(M_I64, exec.s.scratch_bytes, "1", 1, 0, NULL, AS(SCRATCH)),
    PTR(exec_at, NULL, AS(SCRATCH) | AS(NULL) | MUTE),
    PTR(out.data, world.q, AS(ALIAS)),
    PTR(out.data, world.k, AS(ALIAS)),
    PTR(out.data, world.v, AS(ALIAS)),
};
#undef ARGS

#define STATE_TARGET(variable, text, reset, call, has_fault) \
  VARIANT(variable, text, state, reset, call, has_fault)
STATE_TARGET(init_key, "init (delta)", reset_key, call_init, 1);
STATE_TARGET(init_head, "init (decay of heads)", reset_head, call_init, 1);
STATE_TARGET(init_caller, "init (caller's features)", reset_caller, call_init, 1);
STATE_TARGET(init_flow, "init (flow)", reset_flow, call_init, 1);
STATE_TARGET(init_aaren, "init (Aaren)", reset_aaren, call_init, 1);
STATE_TARGET(init_titans, "init (Titans)", reset_deep_only, call_init, 1);
STATE_TARGET(advance_key, "advance (delta)", reset_key, call_advance, 1);
STATE_TARGET(advance_general, "advance (general)", reset_general, call_advance, 1);
STATE_TARGET(advance_sums, "advance (partial)", reset_sums, call_advance, 1);
STATE_TARGET(draft_key, "draft", reset_key, call_draft, 1);
STATE_TARGET(read_key, "read", reset_read, call_read, 1);
STATE_TARGET(batch_key, "batch", reset_key, call_batch, 1);
STATE_TARGET(clear_key, "clear", reset_key, call_clear, 0);
STATE_TARGET(copy_key, "copy", reset_key, call_copy, 0);
STATE_TARGET(merge_sums, "merge", reset_merge, call_merge, 0);
STATE_TARGET(commit_key, "commit", reset_drafts, call_commit, 0);
STATE_TARGET(get_key, "get", reset_key, call_get, 0);
STATE_TARGET(set_key, "set", reset_key, call_set, 0);
STATE_TARGET(stats_key, "stats", reset_key, call_stats, 0);
STATE_TARGET(preset_key, "preset", reset_key, call_preset, 0);
STATE_TARGET(slopes_key, "slopes", reset_key, call_slopes, 0);
STATE_TARGET(flow_target, "flow_attention", reset_flow_attention, call_flow, 1);

static void reset_lightning(void) {
  reset_key();
  state.preset = LATTN_PRESET_LIGHTNING;
}
STATE_TARGET(slopes_layers, "slopes (layers)", reset_lightning, call_slopes, 0);

static void mutations(void) {
  RUN(init_key, init_list);
  RUN(init_head, init_head_list);
  RUN(init_caller, init_caller_list);
  RUN(init_flow, init_flow_list);
  RUN(init_aaren, init_aaren_list);
  RUN(init_titans, init_titans_list);
  RUN(advance_key, advance_list);
  RUN(advance_general, general_list);
  RUN(advance_sums, partial_list);
  RUN(draft_key, draft_list);
  RUN(read_key, read_list);
  RUN(batch_key, batch_list);
  RUN(clear_key, state_only_list);
  RUN(copy_key, copy_list);
  RUN(merge_sums, copy_list);
  RUN(commit_key, commit_list);
  RUN(get_key, get_list);
  RUN(set_key, set_list);
  RUN(stats_key, stats_list);
  RUN(preset_key, preset_list);
  RUN(slopes_key, slopes_list);
  RUN(slopes_layers, slopes_layer_list);
  RUN(flow_target, flow_list);
}

/* ---- what one mutation cannot say ---- */

/* With drafts pending; a state twice in a batch; states of other configs; what a kind has not. */
static void states_apart(void) {
  static void (*const resets[])(void) = {reset_general, reset_sums,  reset_head,  reset_caller,
                                         reset_flow,    reset_aaren, reset_titans};
  check_case("calls with drafts pending");
  world_reset(), reset_drafts();
  expect(&advance_key, AS(STATE));
  expect(&batch_key, AS(STATE));
  expect(&get_key, AS(STATE));
  expect(&set_key, AS(STATE));
  check_case("drafts pending, and more than there may be");
  expect(&draft_key, AS(SHAPE));
  check_case("one state twice in a batch");
  world_reset(), reset_key();
  state.sequences[1].state = state.state;
  expect(&batch_key, AS(ALIAS));
  check_case("a state of another config in a batch, copied, merged");
  world_reset(), reset_merge();
  state.config.s.epsilon = 0.5f;
  state.sequences[1].state = state.other = make(2);
  expect(&batch_key, AS(CONFIG));
  expect(&copy_key, AS(CONFIG));
  expect(&merge_sums, AS(CONFIG));
  check_case("a later part with drafts, and a first one");
  world_reset(), reset_merge();
  CHECK_STATUS(lattn_state_draft(state.state, NULL, state.q, state.k, state.v, state.out, NULL),
               LATTN_OK);
  expect(&merge_sums, AS(STATE));
  check_case("delta rules, flow and Titans do not merge");
  world_reset(), reset_key();
  expect(&merge_sums, AS(CONFIG));
  world_reset(), reset_flow();
  expect(&merge_sums, AS(CONFIG));
  check_case("flow is not read");
  expect(&read_key, AS(CONFIG));
  for (size_t i = 0; i < sizeof resets / sizeof *resets; i++) {
    check_case("every kind of state advances, drafts and takes part in a batch, %d", (int)i);
    world_reset(), resets[i]();
    CHECK_STATUS(call_advance(), LATTN_OK);
    state.call.s.partial = NULL;
    CHECK_STATUS(call_draft(), LATTN_OK);
    CHECK_STATUS(lattn_state_commit(state.state, 2), LATTN_OK);
    CHECK_STATUS(call_batch(), LATTN_OK);
  }
}

/* Memory of exactly the bytes asked for, at every alignment; and of one less. */
static void exact_memory(void) {
  for (int kind = 0; kind < 4; kind++)
    for (size_t offset = 0; offset < 67; offset += 11) {
      lattn_state *s = NULL;
      test_guard g;
      size_t bytes;
      check_case("memory at %d bytes from a guard page, kind %d", (int)offset, kind);
      world_reset();
      if (kind == 0) reset_key();
      if (kind == 1) reset_flow();
      if (kind == 2) reset_aaren();
      if (kind == 3) reset_titans();
      bytes = lattn_state_bytes(&state.config.s);
      g = guard_alloc_at(bytes, offset % 2 == 0, offset);
      bytes -= 63 - (64 - ((uintptr_t)g.data & 63)) % 64; /* 63 are for the alignment */
      CHECK_STATUS(lattn_state_init(&s, g.data, bytes - 1, &state.config.s), LATTN_E_MEMORY);
      CHECK(!s);
      CHECK_STATUS(lattn_state_init(&s, g.data, bytes, &state.config.s), LATTN_OK);
      CHECK(((uintptr_t)s & 63) == 0);
      state.state = s;
      CHECK_STATUS(call_advance(), LATTN_OK);
      CHECK_STATUS(lattn_state_draft(s, &state.call.s, state.q, state.k, state.v, state.out, NULL),
                   kind == 2 ? LATTN_E_CONFIG : LATTN_OK); /* Aaren's call has a partial */
      CHECK(guard_free(&g));
    }
}

/* Random configs, mostly impossible: lattn_state_bytes and init agree, and what is made works. */
static void random_configs(void) {
  static const int32_t numbers[] = {0, 0, 0, 0,  0,  1,  1,  1,     2,         2,         3,      4,
                                    5, 7, 8, 16, 17, 33, -1, 65536, INT32_MAX, INT32_MIN, 1 << 20};
  static const float floats[] = {0, 0, 0, 0, 1, 1, 0.5f, -1, NAN, INFINITY, 1e-30f, 3e38f};
  static unsigned char memory[1 << 17];
  test_rng rng = rng_seed(11);
  int made = 0, tries = (int)test_count(60000);
  check_case("random configs");
  for (int i = 0; i < tries; i++) {
    lattn_state_config c;
    lattn_state *s = NULL;
    lattn_status status;
    size_t bytes;
    unsigned char *at = (unsigned char *)&c;
    memset(&c, 0, sizeof c);
    for (size_t x = 4; x < offsetof(lattn_state_config, log_decay); x += 4) {
      int64_t n = rng_below(&rng, 23), f = rng_below(&rng, 12);
      int is_float = x == offsetof(lattn_state_config, unit_epsilon) ||
                     x == offsetof(lattn_state_config, scale) ||
                     x == offsetof(lattn_state_config, epsilon) ||
                     x == offsetof(lattn_state_config, clamp_low) ||
                     x == offsetof(lattn_state_config, clamp_high) ||
                     x == offsetof(lattn_state_config, loss_factor);
      if (rng_chance(&rng, 85)) continue;
      if (is_float) memcpy(at + x, &floats[f], 4);
      else memcpy(at + x, &numbers[n], 4);
    }
    c.size = sizeof c;
    if (rng_chance(&rng, 80)) c.n_heads = (int32_t)rng_range(&rng, 1, 4);
    if (rng_chance(&rng, 80)) c.key_dim = (int32_t)rng_range(&rng, 1, 20);
    if (rng_chance(&rng, 30)) c.kind = (int32_t)rng_below(&rng, 4);
    if (c.n_heads <= HEADS && rng_chance(&rng, 50)) c.log_decay = world.log_decay;
    if (c.kind == LATTN_STATE_AAREN && (int64_t)c.n_heads * c.key_dim < HEADS * KEY_DIM)
      c.query = world.query;
    bytes = lattn_state_bytes(&c);
    status = lattn_state_init(&s, memory, sizeof memory, &c);
    if (status == LATTN_OK) {
      CHECK(bytes > 0 && bytes <= sizeof memory && s);
      CHECK(lattn_state_scratch(&c, 10, 2) > 0);
      CHECK_STATUS(lattn_state_clear(s), LATTN_OK);
      made++;
    } else {
      CHECK(status < 0 && !s);
      if (status == LATTN_E_MEMORY) CHECK(bytes > sizeof memory);
    }
  }
  CHECK(made > tries / 50);
}

static void impossible_sizes(void) {
  check_case("scratch of what is impossible is 0");
  world_reset(), reset_key();
  CHECK(lattn_state_scratch(&state.config.s, 10, 1) > 0);
  CHECK(lattn_state_scratch(&state.config.s, -1, 1) == 0);
  CHECK(lattn_state_scratch(&state.config.s, 10, -1) == 0);
  CHECK(lattn_state_scratch(&state.config.s, 10, 1025) == 0);
  CHECK(lattn_state_scratch(NULL, 10, 1) == 0);
  CHECK(lattn_state_bytes(NULL) == 0);
  CHECK(lattn_flow_scratch(8, 8, 0, 1) > 0);
  CHECK(lattn_flow_scratch(0, 8, 0, 1) == 0);
  CHECK(lattn_flow_scratch(8, -1, 0, 1) == 0);
  CHECK(lattn_flow_scratch(8, 8, 0, 1025) == 0);
  CHECK(lattn_flow_scratch(8, 8, 2, 1) == 0);
  CHECK(lattn_flow_scratch(INT64_MAX, INT64_MAX, 0, 1) == 0);
}

/* A NaN in a token: it crashes nothing, reaches its own head, and no other. */
static void nan_tokens(void) {
  static void (*const resets[])(void) = {reset_key,  reset_general, reset_sums,  reset_head,
                                         reset_flow, reset_aaren,   reset_titans};
  for (size_t i = 0; i < sizeof resets / sizeof *resets; i++)
    for (int which = 0; which < 3; which++) {
      float clean[2 * HEADS * VALUE_DIM];
      int nans = 0;
      check_case("NaN in %s, way %d", which == 0 ? "q" : which == 1 ? "k" : "v", (int)i);
      world_reset(), resets[i]();
      state.call.s.partial = NULL;
      CHECK_STATUS(call_advance(), LATTN_OK);
      memcpy(clean, world.out, sizeof clean);
      world_reset(), resets[i]();
      state.call.s.partial = NULL;
      /* Token 0, last head. */
      if (which == 0) world.q[HEADS * KEY_DIM - 1] = NAN;
      if (which == 1) world.k[FEW * KEY_DIM - 1] = NAN;
      if (which == 2) world.v[HEADS * VALUE_DIM - 1] = NAN;
      CHECK_STATUS(call_advance(), LATTN_OK);
      for (int t = 0; t < 2; t++)
        for (int h = 0; h < HEADS; h++)
          for (int j = 0; j < VALUE_DIM; j++) {
            int at = (t * HEADS + h) * VALUE_DIM + j;
            int mine = which == 1 ? h >= 2 : h == 3; /* a key head serves two */
            if (!mine) CHECK(same_f32(world.out[at], clean[at]));
            else nans += isnan(world.out[at]);
          }
      /* Aaren looks at no q. RWKV's kind reads before it writes: it shows in token 1. */
      if (state.config.s.kind == LATTN_STATE_AAREN && which == 0) CHECK(nans == 0);
      else CHECK(nans > 0);
    }
}

int main(void) {
  printf("state_hostile: simd %s\n", lattn_simd_name());
  mutations();
  states_apart();
  exact_memory();
  random_configs();
  impossible_sizes();
  nan_tokens();
  return test_summary();
}
