/* profile_hostile.c - bad input to the profiler, to gates and to calibrated attention: every
 * argument and field; memory a byte short; scratch too small. Nothing changes after an error.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

enum { N = 12, HEADS = 4, FEW = 2, DIM = 4, MODEL = 5, SLACK = 8, LAYERS = 2, MEMORY = 1 << 19 };

typedef struct world_arrays {
  float q[N * HEADS * DIM + SLACK], k[N * FEW * DIM + SLACK], v[N * FEW * DIM + SLACK];
  float out[N * HEADS * DIM + SLACK], lse[N * HEADS + SLACK], projection[MODEL * HEADS * DIM];
  float residual[N * MODEL + SLACK], betas[HEADS], sinks[HEADS];
  double means[HEADS * N], table[LAYERS * FEW * FEW], gates[LAYERS * FEW], left[2];
  int64_t rows[2], positions[4], length;
  int32_t tokens[N], full[LAYERS * FEW];
  uint8_t marks[HEADS * N];
  unsigned char memory[MEMORY];
} world_arrays;

static world_arrays world;
static unsigned char scratch[1 << 20];
static lattn_fault fault;

static void world_reset(void) {
  test_rng rng = rng_seed(5);
  memset(&world, 0, sizeof world);
  for (size_t i = 0; i < offsetof(world_arrays, betas) / sizeof(float); i++) {
    float x = rng_uniform(&rng);
    memcpy((unsigned char *)&world + i * sizeof x, &x, sizeof x);
  }
  for (int i = 0; i < HEADS; i++) world.betas[i] = 0.25f, world.sinks[i] = 0.5f;
  for (int i = 0; i < N; i++) world.tokens[i] = i % 3;
  for (int i = 0; i < LAYERS * FEW * FEW; i++) world.table[i] = i % 4 % 3 ? 0.25 : 1;
  world.rows[0] = 3, world.rows[1] = 7;
}

#include "hostile.h"

typedef struct profile_args {
  SIZED(lattn_profile_config) config;
  SIZED(lattn_observed) observed;
  SIZED(lattn_attn) options;
  SIZED(lattn_exec) exec;
  SIZED(lattn_calibration) calibration;
  SIZED(lattn_profile_stats) stats;
  SIZED(lattn_gates) gates;
  SIZED(lattn_heads) heads;
  lattn_tensor q, k, v, out, residual;
  float *lse;
  void *memory;
  size_t bytes;
  lattn_profile *profile, *made, **made_at;
  const lattn_profile_config *config_at;
  const lattn_observed *observed_at;
  const lattn_attn *options_at;
  const lattn_exec *exec_at;
  const lattn_calibration *calibration_at;
  lattn_profile_stats *stats_at;
  const lattn_gates *gates_at;
  const lattn_heads *heads_at;
  const double *q_at;
  double *values, *kv_scores;
  int32_t *full;
  int64_t *positions, *length, n;
  double slope, bound, epsilon;
  int32_t table, keep, layer, head, n_layers, n_heads, n_kv_heads, group, form;
} profile_args;

static profile_args args;

static void reset(void) {
  profile_args *a = &args;
  memset(a, 0, sizeof *a);
  a->config.s.size = sizeof a->config.s;
  a->config.s.scores = LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_ECHO | LATTN_PROFILE_SINKS |
                       LATTN_PROFILE_GATES | LATTN_PROFILE_LOST;
  a->config.s.n_layers = LAYERS, a->config.s.n_heads = HEADS, a->config.s.n_kv_heads = FEW;
  a->config.s.value_dim = DIM, a->config.s.model_dim = MODEL, a->config.s.columns = 10;
  a->config.s.sinks = 1, a->config.s.window = 3, a->config.s.row_step = 2;
  a->config.s.fault = &fault;
  a->observed.s.size = sizeof a->observed.s;
  a->observed.s.lse = world.lse;
  a->observed.s.tokens = world.tokens, a->observed.s.n_tokens = N;
  a->observed.s.first_answer = 8, a->observed.s.needle_from = 2, a->observed.s.needle_to = 5;
  a->observed.s.period = 3, a->observed.s.first = 1;
  a->observed.s.projection = world.projection, a->observed.s.residual = &a->residual;
  a->options.s.size = sizeof a->options.s;
  a->options.s.mask = LATTN_CAUSAL;
  a->exec.s.size = sizeof a->exec.s;
  a->exec.s.scratch = scratch, a->exec.s.scratch_bytes = sizeof scratch;
  a->exec.s.fault = &fault;
  a->calibration.s.size = sizeof a->calibration.s;
  a->calibration.s.beta = 0.5f;
  a->calibration.s.marks = world.marks, a->calibration.s.means = world.means;
  a->stats.s.size = sizeof a->stats.s;
  a->gates.s.size = sizeof a->gates.s;
  a->gates.s.lambda = 0.5, a->gates.s.budget = 1;
  a->gates.s.residual = world.left, a->gates.s.penalty = world.left + 1;
  a->heads.s.size = sizeof a->heads.s;
  a->heads.s.echo = world.table;
  a->q = tensor_of(world.q, LATTN_F32, N, HEADS, DIM);
  a->k = tensor_of(world.k, LATTN_F32, N, FEW, DIM);
  a->v = tensor_of(world.v, LATTN_F32, N, FEW, DIM);
  a->out = tensor_of(world.out, LATTN_F32, N, HEADS, DIM);
  a->residual = tensor_of(world.residual, LATTN_F32, N, 1, MODEL);
  a->lse = world.lse;
  a->memory = world.memory, a->bytes = MEMORY;
  a->made_at = &a->made;
  a->config_at = &a->config.s, a->observed_at = &a->observed.s, a->options_at = &a->options.s;
  a->exec_at = &a->exec.s, a->calibration_at = &a->calibration.s, a->stats_at = &a->stats.s;
  a->gates_at = &a->gates.s, a->heads_at = &a->heads.s;
  a->q_at = world.table, a->values = world.gates, a->kv_scores = world.gates;
  a->full = world.full, a->positions = world.positions, a->length = &world.length;
  a->table = LATTN_TABLE_GATE_LOSS, a->n = LAYERS * FEW;
  a->n_layers = LAYERS, a->n_heads = HEADS / 2, a->n_kv_heads = FEW;
  a->slope = 0.5, a->bound = 2, a->epsilon = 1e-3;
  CHECK_STATUS(lattn_profile_init(&a->profile, world.memory, MEMORY, &a->config.s), LATTN_OK);
}

static void reset_open(void) { /* a sample with a needle is open */
  reset();
  CHECK_STATUS(lattn_profile_observe(args.profile, &args.observed.s, &args.options.s, args.q,
                                     args.k, args.v, NULL),
               LATTN_OK);
}
static void reset_some(void) { /* without GATES and LOST: no values are looked at */
  reset_open();
  args.observed.s.scores = LATTN_PROFILE_SINKS | LATTN_PROFILE_ECHO;
  args.v.data = NULL;
}
static void reset_budget(void) {
  reset();
  args.gates.s.method = LATTN_GATES_BUDGET;
}
static void reset_greedy(void) {
  reset();
  args.gates.s.method = LATTN_GATES_GREEDY;
}
static void reset_razor(void) {
  reset();
  args.heads.s.rule = LATTN_HEADS_RAZOR;
}
static void reset_rows(void) {
  reset();
  args.observed.s.n_rows = 2, args.observed.s.rows = world.rows;
}
static void reset_positions(void) {
  reset_open();
  args.n = 4;
}

static lattn_status call_init(void) {
  return lattn_profile_init(args.made_at, args.memory, args.bytes, args.config_at);
}
static lattn_status call_observe(void) {
  return lattn_profile_observe(args.profile, args.observed_at, args.options_at, args.q, args.k,
                               args.v, args.exec_at);
}
static lattn_status call_sample(void) { return lattn_profile_sample(args.profile, args.keep); }
static lattn_status call_clear(void) { return lattn_profile_clear(args.profile); }
static lattn_status call_emit(void) { return lattn_profile_emit(args.profile, 1); }
static lattn_status call_report(void) {
  return lattn_profile_report(args.profile, args.table, args.n, args.values);
}
static lattn_status call_strongest(void) {
  return lattn_profile_strongest(args.profile, args.layer, args.head, args.n, args.positions, NULL);
}
static lattn_status call_stats(void) {
  return lattn_profile_stats_get(args.profile, args.stats_at);
}
static lattn_status call_gates(void) {
  return lattn_gates_solve(args.gates_at, args.n_layers, args.n_kv_heads, args.q_at, args.values);
}
static lattn_status call_heads(void) {
  return lattn_heads_choose(args.heads_at, args.n_layers, args.n_kv_heads, args.q_at, args.full);
}
static lattn_status call_group(void) {
  return lattn_heads_group(args.n_layers, args.n_heads, args.n_kv_heads, args.group, args.q_at,
                           args.kv_scores);
}
static lattn_status call_alibi(void) {
  return lattn_alibi_length(args.length, args.slope, args.bound, args.epsilon, args.form);
}
static lattn_status call_calibrated(void) {
  return lattn_attention_calibrated(args.calibration_at, args.options_at, args.q, args.k, args.v,
                                    args.out, args.lse, args.exec_at);
}

static const int64_t backward[2] = {7, 3}, beyond[2] = {3, N}, below[2] = {-1, 3};
static const float no_betas[HEADS] = {0, 1, 2, 0}, nan_betas[HEADS] = {0, NAN, 1, 0};
static const double not_finite[8] = {1, 0, 0, 1, 1, 0, (double)INFINITY, 1};
static const double negative[8] = {1, 0, 0, 1, -1e-9, 0, 0, 1}, nans[8] = {0, 0, 0, (double)NAN};

#define ARGS profile_args
static const mutation init_list[] = {
    SIZES_AS(config, lattn_profile_config, AS(SIZE) | MUTE),
    I32(config.s.scores, 0, AS(FIELD)),
    I32(config.s.scores, 32, AS(FIELD)),
    I32(config.s.scores, -1, AS(FIELD)),
    I32(config.s.n_layers, 0, AS(SHAPE)),
    I32(config.s.n_layers, INT32_MIN, AS(SHAPE)),
    I32(config.s.n_layers, INT32_MAX, AS(OVERFLOW) | AS(MEMORY)),
    I32(config.s.n_heads, 0, AS(SHAPE)),
    I32(config.s.n_heads, 3, AS(SHAPE)),
    I32(config.s.n_heads, INT32_MAX - 1, AS(OVERFLOW) | AS(MEMORY)),
    I32(config.s.n_kv_heads, -2, AS(SHAPE)),
    I32(config.s.n_kv_heads, 0, FINE),
    I32(config.s.value_dim, 0, AS(SHAPE)),
    I32(config.s.value_dim, -1, AS(SHAPE)),
    I32(config.s.value_dim, INT32_MAX, AS(OVERFLOW) | AS(MEMORY)),
    I32(config.s.model_dim, -1, AS(SHAPE)),
    I32(config.s.model_dim, INT32_MAX, AS(OVERFLOW) | AS(MEMORY)),
    I32(config.s.top_k, -1, AS(SHAPE)),
    I32(config.s.top_k, 65, AS(SHAPE)),
    I32(config.s.top_k, 64, FINE),
    I32(config.s.max_needle, -1, AS(SHAPE)),
    I32(config.s.max_needle, INT32_MAX, AS(OVERFLOW) | AS(MEMORY)),
    F32(config.s.sink_threshold, NAN, AS(VALUE)),
    F32(config.s.sink_threshold, INFINITY, AS(VALUE)),
    I64(config.s.columns, -1, AS(SHAPE)),
    I64(config.s.columns, INT64_MAX, AS(OVERFLOW)),
    I64(config.s.columns, (int64_t)1 << 31, AS(OVERFLOW) | AS(MEMORY)),
    I64(config.s.sinks, -1, AS(VALUE)),
    I64(config.s.sinks, INT64_MAX, FINE),
    I64(config.s.window, -1, AS(VALUE)),
    I64(config.s.window, INT64_MAX, FINE),
    I64(config.s.row_step, -1, AS(SHAPE)),
    I64(config.s.row_step, INT64_MAX, AS(OVERFLOW)),
    PTR(config_at, NULL, AS(NULL) | MUTE),
    PTR(made_at, NULL, AS(NULL)),
    PTR(memory, NULL, AS(NULL)),
    FIELD(M_I64, bytes, "0", 0, 0, NULL, AS(MEMORY)),
    FIELD(M_I64, bytes, "100", 100, 0, NULL, AS(MEMORY)),
};
#define CALL_LIST                                                                                  \
  SIZES(options, lattn_attn), I32(options.s.mask, -1, AS(FIELD)),                                  \
      I32(options.s.mask, 3, AS(FIELD)), F32(options.s.scale, NAN, AS(VALUE)),                     \
      F32(options.s.softcap, -1, AS(VALUE)), I64(options.s.window, -1, AS(VALUE)),                 \
      I64(options.s.sinks, -1, AS(VALUE)), I64(options.s.n_sequences, 2, AS(CONFIG) | AS(NULL)),   \
      I64(options.s.n_sequences, -1, AS(SHAPE)), I64(options.s.key_position, -1, AS(VALUE)),       \
      I64(options.s.key_position, INT64_MAX, AS(OVERFLOW)), I32(options.s.zero, 1, AS(FIELD)),     \
      I32(options.s.weighting, 2, AS(FIELD)), I32(options.s.weighting, LATTN_SIGMOID, AS(CONFIG)), \
      PTR(options_at, NULL, FINE), EXEC(exec), PTR(exec_at, NULL, FINE),                           \
      PTR(exec.s.scratch, NULL, FINE),                                                             \
      FIELD(M_I64, exec.s.scratch_bytes, "100", 100, 0, NULL, AS(SCRATCH))
static const mutation observe_list[] = {
    CALL_LIST,
    INPUT(q),
    INPUT(k),
    INPUT(v),
    PTR(residual.data, NULL, AS(NULL)),
    I32(residual.type, 4, AS(TYPE)),
    I32(residual.zero, 1, AS(FIELD)),
    I64(residual.n_heads, 2, AS(SHAPE)),
    I64(residual.dim, 0, AS(SHAPE)),
    I64(residual.dim, 3, FINE),
    I64(residual.stride_token, -1, AS(STRIDE)),
    I64(residual.stride_token, LATTN_BROADCAST, FINE),
    I64(k.n_tokens, 11, AS(SHAPE)),
    I64(v.dim, 5, AS(SHAPE)),
    I64(residual.n_tokens, 11, AS(SHAPE)),
    SIZES(observed, lattn_observed),
    I32(observed.s.layer, -1, AS(SHAPE)),
    I32(observed.s.layer, LAYERS, AS(SHAPE)),
    I32(observed.s.scores, 32, AS(FIELD)),
    I32(observed.s.scores, -1, AS(FIELD)),
    I32(observed.s.zero, 1, AS(FIELD)),
    PTR(observed.s.lse, NULL, AS(NULL)),
    PTR(observed.s.tokens, NULL, AS(NULL)),
    I64(observed.s.n_tokens, N - 1, AS(SHAPE)),
    I64(observed.s.n_tokens, INT64_MIN, AS(SHAPE)),
    I64(observed.s.first_answer, -1, FINE),
    I64(observed.s.first_answer, INT64_MIN, FINE),
    I64(observed.s.first_answer, INT64_MAX, FINE),
    I64(observed.s.needle_from, -1, AS(SHAPE)),
    I64(observed.s.needle_from, 6, AS(SHAPE)),
    I64(observed.s.needle_from, 3, AS(STATE)),
    I64(observed.s.needle_from, 5, FINE),
    I64(observed.s.needle_to, N + 1, AS(SHAPE)),
    I64(observed.s.needle_to, INT64_MAX, AS(SHAPE)),
    I64(observed.s.period, -1, AS(VALUE)),
    I64(observed.s.period, 1, AS(VALUE)),
    I64(observed.s.period, INT64_MAX, AS(VALUE)),
    I64(observed.s.period, 0, FINE),
    I64(observed.s.first, -1, AS(VALUE)),
    I64(observed.s.first, INT64_MAX, AS(VALUE)),
    I64(observed.s.first, N, FINE),
    I64(observed.s.n_rows, -1, AS(SHAPE)),
    I64(observed.s.n_rows, 1, AS(NULL)),
    PTR(observed.s.projection, NULL, AS(NULL)),
    PTR(observed.s.residual, NULL, FINE),
    PTR(observed_at, NULL, AS(NULL)),
    PTR(profile, NULL, AS(NULL)),
};
static const mutation rows_list[] = {
    PTR(observed.s.rows, NULL, AS(NULL)),
    PTR(observed.s.rows, backward, AS(SHAPE)),
    PTR(observed.s.rows, beyond, AS(SHAPE)),
    PTR(observed.s.rows, below, AS(SHAPE)),
};
static const mutation some_list[] = {
    I32(options.s.weighting, LATTN_SIGMOID, FINE),
    I64(v.dim, 77, FINE),
    PTR(observed.s.lse, NULL, AS(NULL)),
};
static const mutation sample_list[] = {
    I32(keep, 2, AS(FIELD)),
    I32(keep, -1, AS(FIELD)),
    I32(keep, 1, FINE),
    PTR(profile, NULL, AS(NULL)),
};
static const mutation null_list[] = {PTR(profile, NULL, AS(NULL))};
static const mutation report_list[] = {
    PTR(profile, NULL, AS(NULL)),       PTR(values, NULL, AS(NULL)),
    I32(table, -1, AS(FIELD)),          I32(table, LATTN_TABLE_GATES + 1, AS(FIELD)),
    I64(n, LAYERS *FEW - 1, AS(SHAPE)), I64(n, -1, AS(SHAPE)),
    I64(n, INT64_MAX, AS(SHAPE)),
};
static const mutation strongest_list[] = {
    PTR(profile, NULL, AS(NULL)),  PTR(positions, NULL, AS(NULL)), I32(layer, -1, AS(SHAPE)),
    I32(layer, LAYERS, AS(SHAPE)), I32(head, -1, AS(SHAPE)),       I32(head, HEADS, AS(SHAPE)),
    I64(n, -1, AS(SHAPE)),
};
static const mutation stats_list[] = {
    PTR(profile, NULL, AS(NULL)),
    PTR(stats_at, NULL, AS(NULL)),
    I32(stats.s.size, 0, AS(SIZE)),
    I32(stats.s.size, 4, AS(SIZE)),
};
static const mutation gates_list[] = {
    SIZES(gates, lattn_gates),
    I32(gates.s.method, -1, AS(FIELD)),
    I32(gates.s.method, 3, AS(FIELD)),
    I32(gates.s.zero, 1, AS(FIELD)),
    I32(gates.s.max_sweeps, -1, AS(SHAPE)),
    I32(gates.s.max_sweeps, 1, FINE),
    F64(gates.s.lambda, -1, AS(VALUE)),
    F64(gates.s.lambda, NAN, AS(VALUE)),
    F64(gates.s.lambda, INFINITY, AS(VALUE)),
    F64(gates.s.budget, -1, AS(VALUE)),
    F64(gates.s.budget, NAN, AS(VALUE)),
    F64(gates.s.budget, 4.1, AS(VALUE)),
    F64(gates.s.budget, 4, FINE),
    F64(gates.s.tolerance, -1, AS(VALUE)),
    F64(gates.s.tolerance, NAN, AS(VALUE)),
    PTR(gates.s.residual, NULL, FINE),
    PTR(gates.s.penalty, NULL, FINE),
    PTR(gates_at, NULL, AS(NULL)),
    PTR(q_at, NULL, AS(NULL)),
    PTR(q_at, not_finite, AS(VALUE)),
    PTR(q_at, negative, AS(VALUE)),
    PTR(values, NULL, AS(NULL)),
    I32(n_layers, 0, AS(SHAPE)),
    I32(n_kv_heads, -1, AS(SHAPE)),
};
static const mutation heads_list[] = {
    SIZES(heads, lattn_heads),
    I32(heads.s.rule, -1, AS(FIELD)),
    I32(heads.s.rule, 3, AS(FIELD)),
    F64(heads.s.sparsity, NAN, AS(VALUE)),
    F64(heads.s.threshold, NAN, AS(VALUE)),
    F64(heads.s.induction_share, NAN, AS(VALUE)),
    F64(heads.s.echo_share, NAN, AS(VALUE)),
    F64(heads.s.echo_share, 1e300, FINE),
    F64(heads.s.sparsity, -INFINITY, FINE),
    PTR(heads.s.echo, NULL, AS(NULL)),
    PTR(heads.s.echo, nans, AS(VALUE)),
    PTR(heads_at, NULL, AS(NULL)),
    PTR(q_at, NULL, AS(NULL)),
    PTR(q_at, nans, AS(VALUE)),
    PTR(full, NULL, AS(NULL)),
    I32(n_layers, 0, AS(SHAPE)),
    I32(n_kv_heads, 0, AS(SHAPE)),
};
static const mutation group_list[] = {
    PTR(q_at, NULL, AS(NULL)),     PTR(kv_scores, NULL, AS(NULL)), I32(group, 2, AS(FIELD)),
    I32(group, -1, AS(FIELD)),     I32(n_layers, 0, AS(SHAPE)),    I32(n_heads, 3, AS(SHAPE)),
    I32(n_kv_heads, 0, AS(SHAPE)),
};
static const mutation alibi_list[] = {
    PTR(length, NULL, AS(NULL)),       F64(slope, 0, AS(VALUE)),    F64(slope, NAN, AS(VALUE)),
    F64(slope, INFINITY, AS(VALUE)),   F64(bound, -1, AS(VALUE)),   F64(bound, NAN, AS(VALUE)),
    F64(epsilon, 0, AS(VALUE)),        F64(epsilon, -1, AS(VALUE)), F64(epsilon, NAN, AS(VALUE)),
    F64(epsilon, INFINITY, AS(VALUE)), I32(form, 2, AS(FIELD)),     F64(slope, 5e-324, FINE),
    F64(epsilon, 5e-324, FINE),
};
static const mutation calibrated_list[] = {
    CALL_LIST,
    INPUT(q),
    INPUT(k),
    INPUT(v),
    OUTPUT(out),
    I64(out.n_tokens, 11, AS(SHAPE)),
    SIZES(calibration, lattn_calibration),
    I32(calibration.s.keep, 2, AS(FIELD)),
    I32(calibration.s.keep, -1, AS(FIELD)),
    I32(calibration.s.given, 2, AS(FIELD)),
    I32(calibration.s.zero, 1, AS(FIELD)),
    F32(calibration.s.threshold, -1, AS(VALUE)),
    F32(calibration.s.threshold, NAN, AS(VALUE)),
    F32(calibration.s.beta, -0.5, AS(VALUE)),
    F32(calibration.s.beta, 1.5, AS(VALUE)),
    F32(calibration.s.beta, NAN, AS(VALUE)),
    PTR(calibration.s.betas, world.betas, FINE),
    PTR(calibration.s.betas, no_betas, AS(VALUE)),
    PTR(calibration.s.betas, nan_betas, AS(VALUE)),
    I64(calibration.s.least_rows, -1, AS(SHAPE)),
    I64(calibration.s.least_rows, INT64_MAX, FINE),
    I64(calibration.s.stride, N - 1, AS(SHAPE)),
    I64(calibration.s.stride, -1, AS(SHAPE)),
    I64(calibration.s.stride, INT64_MAX, AS(OVERFLOW)),
    PTR(calibration.s.marks, NULL, AS(NULL)),
    PTR(calibration.s.means, NULL, AS(NULL)),
    PTR(calibration.s.means, world.q, AS(ALIAS)),
    PTR(calibration.s.marks, world.lse, AS(ALIAS)),
    PTR(calibration.s.marks, world.means, AS(ALIAS)),
    PTR(lse, NULL, AS(NULL)),
    PTR(lse, world.out, AS(ALIAS)),
    PTR(out.data, world.q, AS(ALIAS)),
    PTR(out.data, world.v, AS(ALIAS)),
    PTR(options.s.sink_logits, world.sinks, AS(CONFIG)),
    PTR(options.s.partial, world.memory, AS(CONFIG)),
    PTR(calibration_at, NULL, AS(NULL)),
};

#define RUN_LIST(text, start, call, list, faults)                        \
  do {                                                                   \
    VARIANT(target_of_list, text, args, start, call, faults);            \
    run_mutations(&target_of_list, list, sizeof(list) / sizeof *(list)); \
  } while (0)

/* Memory that is a byte short; a config whose size is 0 for lattn_profile_bytes. */
static void memory_short(void) {
  lattn_profile *p = NULL;
  check_case("a byte short");
  world_reset();
  reset();
  size_t bytes = lattn_profile_bytes(&args.config.s);
  CHECK(bytes > 0 && bytes < MEMORY);
  for (int at_end = 0; at_end < 2; at_end++)
    for (size_t offset = 0; offset < 64; offset += 7) {
      test_guard g = guard_alloc_at(bytes, at_end, offset);
      CHECK_STATUS(lattn_profile_init(&p, g.data, bytes - 1, &args.config.s), LATTN_E_MEMORY);
      CHECK_STATUS(lattn_profile_init(&p, g.data, bytes, &args.config.s), LATTN_OK);
      CHECK_STATUS(lattn_profile_observe(p, &args.observed.s, &args.options.s, args.q, args.k,
                                         args.v, &args.exec.s),
                   LATTN_OK);
      CHECK_STATUS(lattn_profile_sample(p, 1), LATTN_OK);
      CHECK_STATUS(lattn_profile_clear(p), LATTN_OK);
      CHECK(guard_free(&g));
    }
  args.config.s.size = 0;
  CHECK(lattn_profile_bytes(&args.config.s) == 0 && lattn_profile_bytes(NULL) == 0);
}

/* Calls without rows, or without keys, do nothing. */
static void nothing(void) {
  check_case("no rows, no keys");
  world_reset();
  reset();
  args.q.n_tokens = args.residual.n_tokens = 0;
  CHECK_STATUS(call_observe(), LATTN_OK);
  args.out.n_tokens = 0;
  CHECK_STATUS(call_calibrated(), LATTN_OK);
  reset();
  args.k.n_tokens = args.v.n_tokens = 0;
  CHECK_STATUS(call_observe(), LATTN_OK);
  CHECK_STATUS(call_calibrated(), LATTN_OK);
  for (int i = 0; i < N * HEADS * DIM; i++) CHECK(world.out[i] == 0);
}

int main(void) {
  RUN_LIST("lattn_profile_init", reset, call_init, init_list, 1);
  RUN_LIST("lattn_profile_observe", reset_open, call_observe, observe_list, 1);
  RUN_LIST("lattn_profile_observe, given rows", reset_rows, call_observe, rows_list, 1);
  RUN_LIST("lattn_profile_observe, some", reset_some, call_observe, some_list, 1);
  RUN_LIST("lattn_profile_sample", reset_open, call_sample, sample_list, 0);
  RUN_LIST("lattn_profile_clear", reset_open, call_clear, null_list, 0);
  RUN_LIST("lattn_profile_emit", reset_open, call_emit, null_list, 0);
  RUN_LIST("lattn_profile_report", reset_open, call_report, report_list, 0);
  RUN_LIST("lattn_profile_strongest", reset_positions, call_strongest, strongest_list, 0);
  RUN_LIST("lattn_profile_stats_get", reset_open, call_stats, stats_list, 0);
  RUN_LIST("lattn_gates_solve", reset, call_gates, gates_list, 0);
  RUN_LIST("lattn_gates_solve, budget", reset_budget, call_gates, gates_list, 0);
  RUN_LIST("lattn_gates_solve, greedy", reset_greedy, call_gates, gates_list, 0);
  RUN_LIST("lattn_heads_choose", reset_razor, call_heads, heads_list, 0);
  RUN_LIST("lattn_heads_group", reset, call_group, group_list, 0);
  RUN_LIST("lattn_alibi_length", reset, call_alibi, alibi_list, 0);
  RUN_LIST("lattn_attention_calibrated", reset, call_calibrated, calibrated_list, 1);
  memory_short();
  nothing();
  return test_summary();
}
