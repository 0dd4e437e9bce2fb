/* profile_cases.h - golden cases of the profiler, of gates and of calibrated attention: every score
 * on, over several calls.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h and longattn.h. */
#ifndef PROFILE_CASES_H
#define PROFILE_CASES_H

enum { PROFILE_TABLES = LATTN_TABLE_GATES + 1, PROFILE_CASES = 8 };

typedef struct profile_case {
  int32_t heads, kv_heads, dk, dv, type;
  int64_t n;
  lattn_attn a;
  lattn_profile_config config;
  lattn_observed o;
  float slopes[8], sinks[8], *q, *lse, *projection;
  void *k, *v;
  int32_t *tokens;
} profile_case;

static inline void *profile_values(int64_t n, int32_t type, float size, test_rng *rng) {
  void *data = calloc((size_t)n, type_bytes(type));
  for (int64_t i = 0; i < n; i++) element_set(data, type, i, size * rng_uniform(rng));
  return data;
}

static inline lattn_tensor profile_rows(const profile_case *c, const void *data, int32_t type,
                                        int64_t from, int64_t to, int64_t heads, int64_t dim) {
  const char *at = (const char *)data + (size_t)(from * heads * dim) * type_bytes(type);
  (void)c;
  return tensor_of(at, type, to - from, heads, dim);
}

static inline void profile_case_open(profile_case *c, uint64_t seed) {
  static const int32_t kv_heads[] = {4, 2, 1, 4}, dims[] = {16, 24, 40, 7};
  test_rng rng = rng_seed(seed + 4000);
  int32_t i = (int32_t)seed;
  memset(c, 0, sizeof *c);
  c->heads = 4, c->kv_heads = kv_heads[i % 4];
  c->dk = dims[i % 4], c->dv = dims[(i + 1) % 4];
  c->type = 1 + i % 3;
  c->n = i == 3 ? 2200 : 150 + 61 * i;
  c->q = (float *)profile_values(c->n * 4 * c->dk, LATTN_F32, 2, &rng);
  c->k = profile_values(c->n * c->kv_heads * c->dk, c->type, 2, &rng);
  c->v = profile_values(c->n * c->kv_heads * c->dv, c->type, 1, &rng);
  c->lse = (float *)calloc((size_t)(c->n * 4), sizeof(float));
  c->projection = (float *)profile_values(33 * 4 * c->dv, LATTN_F32, 1, &rng);
  c->tokens = (int32_t *)calloc((size_t)c->n, sizeof(int32_t));
  for (int64_t j = 0; j < c->n; j++) c->tokens[j] = (int32_t)rng_below(&rng, 5);
  for (int h = 0; h < 8; h++) c->slopes[h] = 0.125f / (float)(1 << h), c->sinks[h] = 0.5f;
  c->a.size = sizeof c->a;
  c->a.mask = LATTN_CAUSAL;
  if (i == 1) c->a.softcap = 2;
  if (i == 2) c->a.window = 70, c->a.sinks = 3;
  if (i == 4) c->a.alibi_slopes = c->slopes;
  if (i == 5) c->a.sink_logits = c->sinks;
  c->config.size = sizeof c->config;
  c->config.scores = LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_ECHO | LATTN_PROFILE_SINKS |
                     LATTN_PROFILE_GATES | LATTN_PROFILE_LOST;
  c->config.n_layers = 2;
  c->config.n_heads = 4, c->config.n_kv_heads = c->kv_heads, c->config.value_dim = c->dv;
  c->config.model_dim = i % 2 ? 33 : 0;
  c->config.top_k = 1 + i % 3;
  c->config.columns = i % 2 ? 90 : c->n;
  c->config.sink_threshold = 0.05f;
  c->config.sinks = i, c->config.window = 30 + 10 * i, c->config.row_step = 1 + i;
  c->o.size = sizeof c->o;
  c->o.tokens = c->tokens;
  c->o.first_answer = c->n / 2, c->o.needle_from = 10, c->o.needle_to = 60;
  c->o.period = 23, c->o.first = 1;
  c->o.projection = c->projection;
}

static inline void profile_case_close(profile_case *c) {
  free(c->q), free(c->k), free(c->v), free(c->lse), free(c->projection), free(c->tokens);
}

/* Observes both layers (the second: the first's heads in another order would be the same calls, so
   it gets the case once more) in calls of `cut` tokens; 0 = one call. */
static inline void profile_case_feed(profile_case *c, lattn_profile *p, int64_t cut,
                                     const lattn_exec *exec) {
  for (int32_t layer = 0; layer < 2; layer++)
    for (int64_t from = 0, to; from < c->n; from = to) {
      lattn_observed o = c->o;
      to = cut && from + cut < c->n ? from + cut : c->n;
      o.layer = layer;
      o.lse = c->lse + from * 4;
      o.n_tokens = c->n; /* of the newest row, nobody knows what it emits */
      CHECK_STATUS(
          lattn_profile_observe(p, &o, &c->a, profile_rows(c, c->q, LATTN_F32, from, to, 4, c->dk),
                                profile_rows(c, c->k, c->type, 0, to, c->kv_heads, c->dk),
                                profile_rows(c, c->v, c->type, 0, to, c->kv_heads, c->dv), exec),
          LATTN_OK);
    }
  CHECK_STATUS(lattn_profile_emit(p, 3), LATTN_OK);
}

static inline uint64_t hash_f64(uint64_t hash, const double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    uint64_t u;
    memcpy(&u, x + i, sizeof u);
    hash = hash_u32(hash_u32(hash, (uint32_t)u), (uint32_t)(u >> 32));
  }
  return hash;
}

/* All tables, and gates solved from them. */
static inline uint64_t profile_case_tables(const profile_case *c, const lattn_profile *p,
                                           uint64_t hash) {
  for (int32_t t = 0; t < PROFILE_TABLES; t++) {
    int64_t n = 2 * 4;
    if (t == LATTN_TABLE_COLUMNS) n *= c->config.columns;
    if (t == LATTN_TABLE_SINK_SHARES) n = c->config.columns;
    if (t >= LATTN_TABLE_GATE_LOSS) n = 2 * c->kv_heads;
    if (t == LATTN_TABLE_GATES) n *= c->kv_heads;
    double *values = (double *)calloc((size_t)n, sizeof(double)), gates[8];
    CHECK_STATUS(lattn_profile_report(p, t, n, values), LATTN_OK);
    hash = hash_f64(hash, values, n);
    if (t == LATTN_TABLE_GATES) {
      lattn_gates solve = {0};
      solve.size = sizeof solve;
      solve.method = LATTN_GATES_BUDGET, solve.budget = 0.5 * c->kv_heads;
      CHECK_STATUS(lattn_gates_solve(&solve, 2, c->kv_heads, values, gates), LATTN_OK);
      hash = hash_f64(hash, gates, 2 * c->kv_heads);
    }
    free(values);
  }
  return hash;
}

/* Calibrated attention of the case: outputs, means and marks. */
static inline uint64_t profile_case_calibrated(const profile_case *c, const lattn_exec *exec,
                                               uint64_t hash) {
  lattn_calibration x;
  lattn_attn a = c->a;
  int64_t rows = c->n * 4;
  float *out = (float *)calloc((size_t)(rows * c->dv), sizeof(float)), *lse = c->lse;
  memset(&x, 0, sizeof x);
  x.size = sizeof x;
  x.threshold = 0.02f, x.beta = 0.4f, x.least_rows = 8;
  x.marks = (uint8_t *)calloc((size_t)rows, 1);
  x.means = (double *)calloc((size_t)rows, sizeof(double));
  a.sink_logits = NULL;
  CHECK_STATUS(
      lattn_attention_calibrated(&x, &a, profile_rows(c, c->q, LATTN_F32, 0, c->n, 4, c->dk),
                                 profile_rows(c, c->k, c->type, 0, c->n, c->kv_heads, c->dk),
                                 profile_rows(c, c->v, c->type, 0, c->n, c->kv_heads, c->dv),
                                 tensor_of(out, LATTN_F32, c->n, 4, c->dv), lse, exec),
      LATTN_OK);
  hash = hash_f32(hash, out, rows * c->dv);
  hash = hash_f64(hash, x.means, rows);
  hash = hash_bytes(hash, x.marks, (size_t)rows);
  free(x.marks), free(x.means), free(out);
  return hash;
}

/* The hash of a case in calls of `cut` tokens, on n_threads (0: without scratch). */
static inline uint64_t profile_case_hash(uint64_t seed, int64_t cut, int32_t n_threads) {
  profile_case c;
  lattn_exec exec;
  lattn_profile *p = NULL;
  uint64_t hash;
  profile_case_open(&c, seed);
  lattn_tensor q = profile_rows(&c, c.q, LATTN_F32, 0, c.n, 4, c.dk);
  lattn_tensor k = profile_rows(&c, c.k, c.type, 0, c.n, c.kv_heads, c.dk);
  lattn_tensor v = profile_rows(&c, c.v, c.type, 0, c.n, c.kv_heads, c.dv), out = q;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  if (n_threads) {
    exec.n_threads = n_threads;
    exec.parallel_for = n_threads > 1 ? test_parallel_threads : NULL;
    exec.scratch_bytes = lattn_calibrated_scratch(&c.a, q, k, v, n_threads);
    exec.scratch = malloc(exec.scratch_bytes);
  }
  size_t bytes = lattn_profile_bytes(&c.config);
  void *memory = malloc(bytes);
  hash = profile_case_calibrated(&c, &exec, HASH_SEED);
  out.dim = c.dv;
  out.data = calloc((size_t)(c.n * 4 * c.dv), sizeof(float));
  CHECK_STATUS(lattn_attention(&c.a, q, k, v, out, c.lse, &exec), LATTN_OK);
  CHECK_STATUS(lattn_profile_init(&p, memory, bytes, &c.config), LATTN_OK);
  profile_case_feed(&c, p, cut, &exec);
  CHECK_STATUS(lattn_profile_sample(p, 1), LATTN_OK);
  c.o.needle_from += 5;
  profile_case_feed(&c, p, 0, &exec);
  hash = profile_case_tables(&c, p, hash);
  free(test_writable(out.data));
  free(memory);
  free(exec.scratch);
  profile_case_close(&c);
  return hash;
}

#endif /* PROFILE_CASES_H */
