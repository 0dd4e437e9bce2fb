/* profile.c - the profiler's scores, gates, choices of heads and calibrated attention against plain
 * double-precision references, written from the definitions over the whole matrix of weights.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   THE BOUND of weights. Inputs are of size <= 1, scores of a few units, softmax over n <= 400 keys. A
   score is a chain of d <= 32 fused multiply-adds: off by d u |q||k| <= 32 * 6e-8 * 4 = 8e-6; lse is
   off by that, and half an ulp of its own (|lse| < 16: 5e-7); exp by 2 ulp. So a weight is off by
   less than 2e-5 of itself, and so are means and shares of weights. Sums are in double. LOOSE is
   that, and some more for outputs, whose values are of size 1. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#define LOOSE 4e-5

enum { MOST = 512 };

/* ---- a call, and its weights as a matrix ---- */

typedef struct call {
  int32_t heads, kv_heads, dk, dv;
  int64_t n; /* tokens: a causal prefill */
  lattn_attn a;
  float *q, *k, *v, *out, *lse, slopes[64], sinks[64];
  double *weights; /* [heads][n][n] */
  void *scratch;
  lattn_exec exec;
} call;

static lattn_tensor q_of(const call *c) { return tensor_of(c->q, 0, c->n, c->heads, c->dk); }
static lattn_tensor k_of(const call *c) { return tensor_of(c->k, 0, c->n, c->kv_heads, c->dk); }
static lattn_tensor v_of(const call *c) { return tensor_of(c->v, 0, c->n, c->kv_heads, c->dv); }
static lattn_tensor out_of(const call *c) { return tensor_of(c->out, 0, c->n, c->heads, c->dv); }

static void *memory(int64_t n, size_t size) {
  void *p = calloc((size_t)(n > 0 ? n : 1), size);
  if (!p) exit(1);
  return p;
}

static void call_open(call *c, int32_t heads, int32_t kv_heads, int32_t dk, int32_t dv, int64_t n,
                      uint64_t seed) {
  test_rng rng = rng_seed(seed);
  memset(c, 0, sizeof *c);
  c->heads = heads, c->kv_heads = kv_heads, c->dk = dk, c->dv = dv, c->n = n;
  c->a.size = sizeof c->a;
  c->a.mask = LATTN_CAUSAL;
  c->q = (float *)memory(n * heads * dk, sizeof(float));
  c->k = (float *)memory(n * kv_heads * dk, sizeof(float));
  c->v = (float *)memory(n * kv_heads * dv, sizeof(float));
  c->out = (float *)memory(n * heads * dv, sizeof(float));
  c->lse = (float *)memory(n * heads, sizeof(float));
  c->weights = (double *)memory(heads * n * n, sizeof(double));
  for (int64_t i = 0; i < n * heads * dk; i++) c->q[i] = 2 * rng_uniform(&rng);
  for (int64_t i = 0; i < n * kv_heads * dk; i++) c->k[i] = 2 * rng_uniform(&rng);
  for (int64_t i = 0; i < n * kv_heads * dv; i++) c->v[i] = rng_uniform(&rng);
  for (int h = 0; h < 64; h++) c->slopes[h] = 0.25f / (float)(h + 1), c->sinks[h] = 0.5f;
  c->exec.size = sizeof c->exec;
}

static void call_close(call *c) {
  free(c->q), free(c->k), free(c->v), free(c->out), free(c->lse), free(c->weights);
  free(c->scratch);
}

static void call_scratch(call *c, int32_t n_threads) {
  size_t bytes = lattn_calibrated_scratch(&c->a, q_of(c), k_of(c), v_of(c), n_threads);
  free(c->scratch);
  c->scratch = malloc(bytes);
  c->exec.scratch = c->scratch;
  c->exec.scratch_bytes = bytes;
  c->exec.n_threads = n_threads;
  c->exec.parallel_for = n_threads > 1 ? test_parallel_threads : NULL;
}

static int sees(const call *c, int64_t i, int64_t j) {
  if (j > i) return 0;
  return !c->a.window || j < c->a.sinks || i - j < c->a.window;
}

static double score_of(const call *c, int64_t h, int64_t i, int64_t j) {
  const float *q = c->q + (i * c->heads + h) * c->dk;
  const float *k = c->k + (j * c->kv_heads + h / (c->heads / c->kv_heads)) * c->dk;
  double s = 0;
  for (int32_t d = 0; d < c->dk; d++) s += (double)q[d] * (double)k[d];
  s *= c->a.scale != 0 ? (double)c->a.scale : 1 / sqrt((double)c->dk);
  if (c->a.softcap > 0) s = (double)c->a.softcap * tanh(s / (double)c->a.softcap);
  if (c->a.alibi_slopes) s -= (double)c->a.alibi_slopes[h] * (double)(i - j);
  return s;
}

/* The matrix of weights, and ours: outputs and lse. */
static void call_run(call *c) {
  for (int64_t h = 0; h < c->heads; h++)
    for (int64_t i = 0; i < c->n; i++) {
      double *row = c->weights + (h * c->n + i) * c->n, most = -INFINITY, sum = 0;
      if (c->a.sink_logits) most = (double)c->a.sink_logits[h];
      for (int64_t j = 0; j < c->n; j++) {
        row[j] = sees(c, i, j) ? score_of(c, h, i, j) : (double)-INFINITY;
        if (row[j] > most) most = row[j];
      }
      if (c->a.sink_logits) sum = exp((double)c->a.sink_logits[h] - most);
      for (int64_t j = 0; j < c->n; j++) sum += row[j] = exp(row[j] - most);
      for (int64_t j = 0; j < c->n; j++) row[j] /= sum;
    }
  CHECK_STATUS(lattn_attention(&c->a, q_of(c), k_of(c), v_of(c), out_of(c), c->lse, &c->exec),
               LATTN_OK);
}

static double weight(const call *c, int64_t h, int64_t i, int64_t j) {
  return c->weights[(h * c->n + i) * c->n + j];
}


/* ---- a profile ---- */

static lattn_profile *profile_open(const lattn_profile_config *c, void **held) {
  lattn_profile *p = NULL;
  size_t bytes = lattn_profile_bytes(c);
  *held = malloc(bytes);
  CHECK_STATUS(lattn_profile_init(&p, *held, bytes, c), LATTN_OK);
  return p;
}

static lattn_profile_config config_of(const call *c, int32_t scores) {
  lattn_profile_config p;
  memset(&p, 0, sizeof p);
  p.size = sizeof p;
  p.scores = scores;
  p.n_layers = 1;
  p.n_heads = c->heads;
  p.n_kv_heads = c->kv_heads;
  p.value_dim = c->dv;
  return p;
}

static lattn_observed observed_of(const call *c) {
  lattn_observed o;
  memset(&o, 0, sizeof o);
  o.size = sizeof o;
  o.lse = c->lse;
  return o;
}

/* Observes the tokens [from, to) as a call of their own. */
static void observe_rows(lattn_profile *p, const lattn_observed *o, const call *c, int64_t from,
                         int64_t to) {
  lattn_tensor q = tensor_of(c->q + from * c->heads * c->dk, 0, to - from, c->heads, c->dk);
  lattn_tensor k = k_of(c), v = v_of(c);
  lattn_observed part = *o;
  k.n_tokens = v.n_tokens = to;
  if (part.lse) part.lse += from * c->heads;
  CHECK_STATUS(lattn_profile_observe(p, &part, &c->a, q, k, v, &c->exec), LATTN_OK);
}

static double *report(const lattn_profile *p, int32_t table, int64_t n) {
  double *values = (double *)memory(n, sizeof(double));
  CHECK_STATUS(lattn_profile_report(p, table, n, values), LATTN_OK);
  return values;
}

static void check_near(double got, double want, double relative, const char *what, int64_t i) {
  if (!(fabs(got - want) <= relative * fabs(want) + 1e-12))
    FAIL("%s %d is %.9g, expected %.9g", what, (int)i, got, want);
}

/* Options by number: what a call may have. */
static void options_of(call *c, int kind) {
  if (kind == 1) c->a.softcap = 3, c->a.scale = 0.5f;
  if (kind == 2) c->a.alibi_slopes = c->slopes;
  if (kind == 3) c->a.window = 40, c->a.sinks = 3;
  if (kind == 4) c->a.sink_logits = c->sinks;
}

/* ---- echo and induction ---- */

static void check_echo(const call *c, int64_t first, int64_t period) {
  void *held;
  lattn_profile_config config = config_of(c, LATTN_PROFILE_ECHO);
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(c);
  o.first = first, o.period = period;
  observe_rows(p, &o, c, 0, c->n);
  double *echo = report(p, LATTN_TABLE_ECHO, c->heads);
  double *induction = report(p, LATTN_TABLE_INDUCTION, c->heads);
  for (int64_t h = 0; h < c->heads; h++) {
    double want[2] = {0, 0}, rows = 0;
    for (int64_t i = period; first + i < c->n; i++, rows++)
      for (int64_t j = i - period; j >= 0; j -= period) {
        want[0] += weight(c, h, first + i, first + j);
        want[1] += weight(c, h, first + i, first + j + 1);
      }
    check_near(echo[h], rows > 0 ? want[0] / rows : 0, LOOSE, "echo", h);
    check_near(induction[h], rows > 0 ? want[1] / rows : 0, LOOSE, "induction", h);
  }
  free(echo), free(induction), free(held);
}

static void test_echo(void) {
  static const int64_t periods[] = {2, 3, 37, 130, 400};
  for (int kind = 0; kind < 5; kind++)
    for (int i = 0; i < 5; i++) {
      call c;
      check_case("echo and induction, options %d, period %d", kind, (int)periods[i]);
      call_open(&c, 6, i % 2 ? 6 : 2, 24, 8, 300, (uint64_t)(kind * 5 + i));
      options_of(&c, kind);
      if (i % 3) call_scratch(&c, i);
      call_run(&c);
      check_echo(&c, i, periods[i]);
      call_close(&c);
    }
}

/* Planted heads over distinct codes (a permutation's one-hot vectors) repeated: 0 looks for its own
   token, 1 for what follows it, 2 at the token before. Copies share the weight. */
static void test_planted_echo(void) {
  enum { K = 24, COPIES = 4 };
  call c;
  check_case("planted echo, induction and local heads");
  call_open(&c, 3, 3, K, 4, 1 + K * COPIES, 7);
  memset(c.q, 0, sizeof(float) * (size_t)(c.n * 3 * K));
  memset(c.k, 0, sizeof(float) * (size_t)(c.n * 3 * K));
  for (int64_t i = 1; i < c.n; i++) {
    int64_t code = (i - 1) % K, before = (i - 2 + K) % K;
    c.q[(i * 3 + 0) * K + code] = c.k[(i * 3 + 0) * K + code] = 30;
    c.q[(i * 3 + 1) * K + code] = c.k[(i * 3 + 1) * K + (i > 1 ? before : 0)] = 30;
    c.q[(i * 3 + 2) * K] = (float)i, c.k[(i * 3 + 2) * K] = 10 * (float)i;
  }
  for (int64_t i = 1; i < c.n; i++) c.k[(i * 3 + 1) * K] = (i - 2 + K) % K == 0 ? 30.0f : 0.0f;
  call_run(&c);
  check_echo(&c, 1, K);
  void *held;
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_ECHO);
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  o.first = 1, o.period = K;
  observe_rows(p, &o, &c, 0, c.n);
  double *echo = report(p, LATTN_TABLE_ECHO, 3);
  double *induction = report(p, LATTN_TABLE_INDUCTION, 3);
  /* m earlier copies and the token itself: m / (m + 1), for m = 1, 2, 3 */
  CHECK(fabs(echo[0] - (1.0 / 2 + 2.0 / 3 + 3.0 / 4) / 3) < 1e-3);
  CHECK(induction[0] < 1e-3 && echo[1] < 0.05 && echo[2] < 1e-3 && induction[2] < 0.05);
  CHECK(induction[1] > 0.95);
  free(echo), free(induction), free(held);
  call_close(&c);
}

/* ---- sinks ---- */

static void check_columns(const call *c, const lattn_profile *p, int64_t columns) {
  double *means = report(p, LATTN_TABLE_COLUMNS, c->heads * columns);
  double *shares = report(p, LATTN_TABLE_SINK_SHARES, columns);
  double *first = report(p, LATTN_TABLE_SINK, c->heads);
  for (int64_t j = 0; j < columns; j++) {
    double hits = 0;
    for (int64_t h = 0; h < c->heads; h++) {
      double want = 0, rows = 0;
      for (int64_t i = j; i < c->n; i++) want += weight(c, h, i, j), rows += sees(c, i, j);
      want = rows > 0 ? want / rows : 0;
      check_near(means[h * columns + j], want, LOOSE, "column", h * columns + j);
      hits += want > 0.3;
      if (j == 0) check_near(first[h], want, LOOSE, "sink", h);
    }
    check_near(shares[j], hits / c->heads, 1e-9, "share", j);
  }
  free(means), free(shares), free(first);
}

static void test_sinks(void) {
  static const int64_t columns[] = {1, 64, 300, 500, 64};
  for (int kind = 0; kind < 5; kind++) {
    call c;
    void *held;
    check_case("columns, options %d", kind);
    call_open(&c, 4, kind % 2 ? 2 : 4, 16, 4, 300, (uint64_t)kind + 50);
    options_of(&c, kind);
    call_scratch(&c, 1 + kind % 3);
    call_run(&c);
    lattn_profile_config config = config_of(&c, LATTN_PROFILE_SINKS);
    config.columns = columns[kind];
    lattn_profile *p = profile_open(&config, &held);
    lattn_observed o = observed_of(&c);
    observe_rows(p, &o, &c, 0, 100);
    observe_rows(p, &o, &c, 100, 101);
    observe_rows(p, &o, &c, 101, 300);
    check_columns(&c, p, columns[kind]);
    CHECK_STATUS(lattn_profile_sample(p, 1), LATTN_OK); /* closing changes nothing */
    check_columns(&c, p, columns[kind]);
    observe_rows(p, &o, &c, 0, 300); /* another sample, the same: the means stay */
    check_columns(&c, p, columns[kind]);
    CHECK_STATUS(lattn_profile_sample(p, 0), LATTN_OK);
    check_columns(&c, p, columns[kind]);
    free(held);
    call_close(&c);
  }
}

/* Matrices of the metric: identity gives 1 / (T - k); all on column 0 gives a share of 1. */
static void test_planted_sinks(void) {
  enum { T = 64 };
  call c;
  void *held;
  int64_t at[4];
  double means[4];
  check_case("planted sinks");
  call_open(&c, 3, 3, T, 4, T, 9);
  memset(c.q, 0, sizeof(float) * (size_t)(T * 3 * T));
  memset(c.k, 0, sizeof(float) * (size_t)(T * 3 * T));
  for (int64_t i = 0; i < T; i++) {
    c.q[(i * 3 + 0) * T + i] = c.k[(i * 3 + 0) * T + i] = 40;           /* identity */
    c.q[(i * 3 + 1) * T] = 40, c.k[(i * 3 + 1) * T] = i == 0 ? 40 : 0;  /* column 0 */
    c.q[(i * 3 + 2) * T] = 40, c.k[(i * 3 + 2) * T] = i == 17 ? 40 : 0; /* column 17, once there */
  }
  call_run(&c);
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_SINKS);
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  observe_rows(p, &o, &c, 0, T);
  double *columns = report(p, LATTN_TABLE_COLUMNS, 3 * T);
  double *shares = report(p, LATTN_TABLE_SINK_SHARES, T);
  for (int64_t k = 0; k < T; k++) check_near(columns[k], 1.0 / (double)(T - k), 1e-5, "column", k);
  check_near(columns[T], 1, 1e-5, "column 0", 0);
  check_near(columns[2 * T + 17], 1, 1e-5, "column 17", 0);
  CHECK(shares[0] > 0.33 && shares[0] < 0.34); /* one of three heads */
  CHECK_STATUS(lattn_profile_strongest(p, 0, 2, 1, at, means), LATTN_OK);
  CHECK_I64(at[0], 17);
  CHECK_STATUS(lattn_profile_strongest(p, 0, 0, 4, at, means), LATTN_OK);
  for (int i = 0; i < 4; i++) CHECK_I64(at[i], T - 1 - i);
  CHECK_STATUS(lattn_profile_strongest(p, 0, 1, 4, at, NULL), LATTN_OK);
  CHECK_I64(at[0], 0);
  free(columns), free(shares), free(held);
  call_close(&c);
}

int main(void) {
  test_echo();
  test_planted_echo();
  test_sinks();
  test_planted_sinks();
  return test_summary();
}
