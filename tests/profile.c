/* profile.c - the profiler's scores, gates, choices of heads and calibrated attention against plain
 * double-precision references, written from the definitions over the whole matrix of weights.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   THE BOUND of weights. Inputs are of size <= 2, softmax over n <= 400 keys. A score is a chain of
   d <= 32 fused multiply-adds, each term at most 4 / sqrt(d): off by d u * 4 sqrt(d) <= 4e-5 at
   worst, by its root-mean-square 1e-6; lse is off by that, and half an ulp of its own (|lse| < 16:
   5e-7); exp by 2 ulp. So a weight is off by less than LOOSE of itself, and so are means and shares
   of weights. Sums are in double. */
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
  lattn_tensor extra_key, extra_value;
  float *q, *k, *v, *out, *lse, slopes[64], sinks[64], extra[2][64];
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

/* Of what joins a row's keys at the end: a learned sink, or an extra key. */
static double root_score(const call *c, int64_t h, int64_t i) {
  double s = 0;
  if (c->a.sink_logits) return (double)c->a.sink_logits[h];
  if (!c->a.extra_key) return (double)-INFINITY;
  for (int32_t d = 0; d < c->dk; d++)
    s += (double)c->q[(i * c->heads + h) * c->dk + d] * (double)c->extra[0][d];
  return s / sqrt((double)c->dk);
}

/* The matrix of weights, and ours: outputs and lse. */
static void call_run(call *c) {
  for (int64_t h = 0; h < c->heads; h++)
    for (int64_t i = 0; i < c->n; i++) {
      double *row = c->weights + (h * c->n + i) * c->n, most = root_score(c, h, i), sum = 0;
      for (int64_t j = 0; j < c->n; j++) {
        row[j] = sees(c, i, j) ? score_of(c, h, i, j) : (double)-INFINITY;
        if (row[j] > most) most = row[j];
      }
      if (c->a.sink_logits || c->a.extra_key) sum = exp(root_score(c, h, i) - most);
      for (int64_t j = 0; j < c->n; j++) sum += row[j] = exp(row[j] - most);
      for (int64_t j = 0; j < c->n; j++) row[j] /= sum;
    }
  CHECK_STATUS(lattn_attention(&c->a, q_of(c), k_of(c), v_of(c), out_of(c), c->lse, &c->exec),
               LATTN_OK);
}

static double weight(const call *c, int64_t h, int64_t i, int64_t j) {
  return c->weights[(h * c->n + i) * c->n + j];
}

static double value(const call *c, int64_t h, int64_t j, int64_t d) {
  return (double)c->v[(j * c->kv_heads + h / (c->heads / c->kv_heads)) * c->dv + d];
}

/* ---- a profile ---- */

static lattn_profile *profile_open(const lattn_profile_config *c, void **held) {
  lattn_profile *p = NULL;
  size_t bytes = lattn_profile_bytes(c);
  *held = malloc(bytes);
  CHECK_STATUS(lattn_profile_init(&p, *held, bytes, c), LATTN_OK);
  return p;
}

/* To other memory of the same alignment modulo 64. */
static void profile_move(lattn_profile **p, void **held, size_t bytes) {
  char *to = (char *)malloc(bytes + 64), *from = (char *)*p;
  size_t at = ((uintptr_t)from - (uintptr_t)to) % 64;
  memcpy(to + at, from, bytes - 64);
  memset(*held, 0xa5, bytes);
  free(*held);
  *held = to;
  *p = (lattn_profile *)(void *)(to + at);
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
  if (kind == 5) {
    for (int d = 0; d < 64; d++)
      c->extra[0][d] = (float)(d % 5) * 0.4f, c->extra[1][d] = 3 - (float)(d % 7);
    c->extra_key = tensor_of(c->extra[0], 0, 1, 1, c->dk), c->a.extra_key = &c->extra_key;
    c->extra_value = tensor_of(c->extra[1], 0, 1, 1, c->dv), c->a.extra_value = &c->extra_value;
  }
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
    profile_move(&p, &held, lattn_profile_bytes(&config));
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

/* ---- retrieval ---- */

/* Head 0 copies: its query at position p is the code of the token that p emits, its keys are codes
   of tokens; head 1 is uniform; head 2 looks at the right positions of another needle token; head
   3 is a copier whose code of every second token is wrong; head 4 goes through the needle by place.
   */
enum { CODES = 40, RETRIEVING = 5 };

static void plant_copiers(call *c, const int32_t *tokens, int64_t from, int64_t length,
                          int64_t prompt) {
  for (int64_t i = 0; i < c->n; i++) {
    int32_t next = tokens[i + 1], wrong = (int32_t)((next + 1) % CODES);
    float *q = c->q + i * RETRIEVING * CODES, *k = c->k + i * RETRIEVING * CODES;
    memset(q, 0, RETRIEVING * CODES * sizeof *q);
    memset(k, 0, RETRIEVING * CODES * sizeof *k);
    q[0 * CODES + next] = 40, k[0 * CODES + tokens[i]] = 1;
    q[2 * CODES] = 40, k[2 * CODES] = i == from + (length > 1) ? 1.0f : 0.0f;
    q[3 * CODES + (i % 2 ? wrong : next)] = 40, k[3 * CODES + tokens[i]] = 1;
    if (i >= prompt - 1) q[4 * CODES + i - prompt + 1] = 40;
    if (i >= from && i < from + length) k[4 * CODES + i - from] = 1;
  }
}

/* A needle [FROM, FROM + length) in a prompt of PROMPT tokens, and its copy as the answer. */
enum { FROM = 20, PROMPT = 60 };

static void check_retrieval(const int32_t *needle, int64_t length, int top_k, int live) {
  int32_t tokens[PROMPT + 40];
  int64_t n = PROMPT + length - 1;
  double right[RETRIEVING] = {0}, set[RETRIEVING] = {0}, distinct = 0;
  call c;
  void *held;
  check_case("retrieval: needle of %d, top %d, %s", (int)length, top_k, live ? "live" : "at once");
  for (int i = 0; i < PROMPT + 40; i++) tokens[i] = 30 + i % 9;
  for (int64_t i = 0; i < length; i++) tokens[FROM + i] = tokens[PROMPT + i] = needle[i];
  call_open(&c, RETRIEVING, RETRIEVING, CODES, 4, n, 3);
  plant_copiers(&c, tokens, FROM, length, PROMPT);
  call_run(&c);
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_RETRIEVAL);
  config.top_k = top_k;
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  o.tokens = tokens, o.n_tokens = n + 1, o.first_answer = PROMPT - 1;
  o.needle_from = FROM, o.needle_to = FROM + length;
  if (!live) {
    observe_rows(p, &o, &c, 0, 40);
    observe_rows(p, &o, &c, 40, n);
  }
  for (int64_t t = 0; live && t < n; t++) {
    o.n_tokens = t + 1; /* what comes next is not known yet */
    observe_rows(p, &o, &c, t, t + 1);
    CHECK_STATUS(lattn_profile_emit(p, tokens[t + 1]), LATTN_OK);
  }
  for (int64_t i = 0; i < length; i++) { /* the definition */
    int first = 1;
    for (int64_t j = 0; j < i; j++) first &= needle[j] != needle[i];
    distinct += first;
  }
  for (int64_t t = PROMPT - 1; top_k == 1 && t < n; t++)
    for (int64_t h = 0; h < RETRIEVING; h++) {
      int64_t best = 0, again = 0;
      for (int64_t j = 0; j <= t; j++)
        if (score_of(&c, h, t, j) >= score_of(&c, h, t, best)) best = j;
      if (best < FROM || best >= FROM + length || tokens[best] != tokens[t + 1]) continue;
      right[h] += 1.0 / (double)length;
      for (int64_t u = PROMPT - 1; u < t; u++) again |= tokens[u + 1] == tokens[t + 1];
      set[h] += !again / distinct;
    }
  double *count = report(p, LATTN_TABLE_RETRIEVAL, RETRIEVING);
  double *share = report(p, LATTN_TABLE_RETRIEVAL_SET, RETRIEVING);
  for (int64_t h = 0; top_k == 1 && h < 3; h++) {
    check_near(count[h], right[h], 1e-12, "count", h);
    check_near(share[h], set[h], 1e-12, "set", h);
  }
  CHECK(top_k == 1 || count[0] > 0.99);
  CHECK(fabs(count[4] - 1) < 1e-12 && fabs(share[4] - 1) < 1e-12);
  CHECK(count[1] < 0.01 || top_k > 1);
  CHECK(length < 2 || count[3] < count[0]);
  CHECK_STATUS(lattn_profile_sample(p, 1), LATTN_OK); /* a second sample, dropped */
  observe_rows(p, &o, &c, 0, n);
  CHECK_STATUS(lattn_profile_sample(p, 0), LATTN_OK);
  double *after = report(p, LATTN_TABLE_RETRIEVAL, RETRIEVING);
  CHECK(!memcmp(after, count, RETRIEVING * sizeof *count));
  free(count), free(share), free(after), free(held);
  call_close(&c);
}

static void test_retrieval(void) {
  static const int32_t one[] = {5}, apart[] = {1, 2, 3, 4, 5, 6, 7, 8},
                       again[] = {1, 2, 1, 2, 3, 3, 3, 1, 9};
  for (int live = 0; live < 2; live++)
    for (int top = 1; top < 4; top += 2) {
      check_retrieval(one, 1, top, live);
      check_retrieval(apart, 8, top, live);
      check_retrieval(again, 9, top, live);
    }
}

/* ---- lost mass, and what streaming takes from the output ---- */

typedef struct losses {
  double *omega; /* [rows][heads] */
  double *d;     /* [rows][heads][dv]: full output less that of the streaming head */
  double *full;
} losses;

/* Of one row: full output less streaming output, by the plain difference of two softmaxes. */
static void losses_of_row(const call *c, const losses *to, int64_t at, int64_t i, int64_t sinks,
                          int64_t window) {
  for (int64_t h = 0; h < c->heads; h++) {
    double kept = 0, lost = 0, z = 1;
    for (int64_t j = 0; j <= i; j++) {
      int keeps = j < sinks || i - j < window;
      *(keeps ? &kept : &lost) += weight(c, h, i, j);
      z -= weight(c, h, i, j); /* what a learned sink or an extra key takes */
    }
    if (!c->a.sink_logits && !c->a.extra_key) z = 0;
    to->omega[at * c->heads + h] = lost;
    for (int64_t d = 0; d < c->dv; d++) {
      double extra = c->a.extra_key ? z * (double)c->extra[1][d] : 0, full = extra, stream = extra;
      for (int64_t j = 0; j <= i; j++) {
        int keeps = j < sinks || i - j < window;
        full += weight(c, h, i, j) * value(c, h, j, d);
        if (keeps) stream += weight(c, h, i, j) * value(c, h, j, d);
      }
      stream = kept + z > 0 ? stream / (kept + z) : 0;
      to->full[(at * c->heads + h) * c->dv + d] = full;
      to->d[(at * c->heads + h) * c->dv + d] = full - stream;
    }
  }
}

/* What streaming loses, projected and not, against the tables. w: [model][heads * dv]. */
static void check_products(const call *c, const lattn_profile *p, const losses *l, int64_t n,
                           const float *w, int64_t model, double square, double norm) {
  int64_t G = c->kv_heads, g = c->heads / G, width = c->heads * c->dv;
  double *loss = report(p, LATTN_TABLE_GATE_LOSS, G), *q = report(p, LATTN_TABLE_GATES, G * G);
  double *u = (double *)memory(n * G * (model + 1), 8), largest = 0; /* [rows][G][model] */
  for (int64_t i = 0; i < n; i++)
    for (int64_t m = 0; m < model; m++)
      for (int64_t k = 0; k < width; k++)
        u[(i * G + k / (g * c->dv)) * model + m] += (double)w[m * width + k] * l->d[i * width + k];
  for (int64_t a = 0; a < G; a++) {
    double own = 0;
    for (int64_t i = 0; i < n; i++)
      for (int64_t k = a * g * c->dv; k < (a + 1) * g * c->dv; k++)
        own += l->d[i * width + k] * l->d[i * width + k];
    own = square > 0 ? own / (double)(g * c->dv) / (square / (double)width) : 0;
    check_near(loss[a], own, 2 * LOOSE, "loss", a);
    for (int64_t b = 0; b < G; b++) {
      double want = a == b && !model ? own : 0;
      for (int64_t i = 0; i < n; i++)
        for (int64_t m = 0; m < model; m++)
          want += u[(i * G + a) * model + m] * u[(i * G + b) * model + m] / (double)model / norm;
      largest = fmax(largest, fabs(want));
      if (!(fabs(q[a * G + b] - want) <= 2 * LOOSE * largest + 1e-12)) /* signs cancel */
        FAIL("Q %d %d is %.9g, expected %.9g", (int)a, (int)b, q[a * G + b], want);
      CHECK(!memcmp(&q[a * G + b], &q[b * G + a], 8));
    }
  }
  free(loss), free(q), free(u);
}

/* Observes all tokens: at once with the rows given, or in two calls, by row_step. */
static void observe_losses(const call *c, lattn_profile *p, lattn_observed *o, const float *x) {
  lattn_tensor part = tensor_of(x, 0, c->n, 1, 5);
  int64_t from = o->n_rows ? 0 : c->n / 3;
  if (x) o->residual = &part;
  part.n_tokens = from;
  if (from) observe_rows(p, o, c, 0, from);
  part.n_tokens = c->n - from;
  if (x) part.data = x + from * 5;
  observe_rows(p, o, c, from, c->n);
}

static void check_losses(call *c, int64_t sinks, int64_t window, int64_t step, int32_t model,
                         int listed, int with_residual) {
  int64_t rows[MOST], n = 0, H = c->heads, width = H * c->dv;
  double square = 0, came_in = 0;
  test_rng rng = rng_seed(11);
  void *held;
  lattn_profile_config config = config_of(c, LATTN_PROFILE_GATES | LATTN_PROFILE_LOST);
  config.sinks = sinks, config.window = window, config.row_step = step, config.model_dim = model;
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(c);
  float *w = (float *)memory(model * width, sizeof *w), *x = (float *)memory(c->n * 5, sizeof *x);
  for (int64_t i = 0; i < model * width; i++) w[i] = rng_uniform(&rng);
  for (int64_t i = 0; i < c->n * 5; i++) x[i] = rng_uniform(&rng);
  for (int64_t i = 0; i < c->n; i++)
    if (listed ? i % 7 == 3 || i % 11 == 2 : (i + 1) % step == 0) rows[n++] = i;
  if (model) o.projection = w;
  if (listed) o.n_rows = n, o.rows = rows;
  observe_losses(c, p, &o, with_residual ? x : NULL);
  losses l = {(double *)memory(n * H, 8), (double *)memory(n * width, 8),
              (double *)memory(n * width, 8)};
  for (int64_t i = 0; i < n; i++) losses_of_row(c, &l, i, rows[i], sinks, window);
  double *lost = report(p, LATTN_TABLE_LOST, H), *most = report(p, LATTN_TABLE_LOST_MOST, H);
  for (int64_t i = 0; i < n * width; i++) square += l.full[i] * l.full[i];
  for (int64_t i = 0; i < n * 5; i++) {
    double y = (double)x[rows[i / 5] * 5 + i % 5];
    came_in += y * y / 5;
  }
  for (int64_t h = 0; h < H; h++) {
    double sum = 0, top = 0;
    for (int64_t i = 0; i < n; i++) sum += l.omega[i * H + h], top = fmax(top, l.omega[i * H + h]);
    check_near(lost[h], n ? sum / (double)n : 0, LOOSE, "lost", h);
    check_near(most[h], top, LOOSE, "largest lost", h);
  }
  check_products(c, p, &l, n, w, model, square, with_residual ? came_in : square / (double)width);
  free(l.omega), free(l.d), free(l.full), free(w), free(x), free(held), free(lost), free(most);
}

static void test_losses(void) {
  static const int64_t sinks[] = {0, 6, 2, 4, 1}, windows[] = {1, 20, 300, 60, 7};
  for (int kind = 0; kind < 6; kind++)
    for (int i = 0; i < 5; i++) {
      call c;
      check_case("losses, options %d, streaming %d", kind, i);
      call_open(&c, 4, i % 2 ? 2 : 4, 16, i == 2 ? 5 : 12, 200, (uint64_t)(kind * 5 + i) + 300);
      options_of(&c, kind);
      if (kind == 3) c.a.window = 90; /* its keys are two runs: cut in the middle, three */
      if (i % 3) call_scratch(&c, i);
      call_run(&c);
      check_losses(&c, sinks[i], windows[i], kind == 1 ? 4 : 1, i % 2 ? 19 : 0, i == 4, i == 3);
      call_close(&c);
    }
}

/* A head that only looks at itself loses nothing, however small the numbers: D is not a difference
   of two outputs. */
static void test_small_losses(void) {
  call c;
  void *held;
  check_case("a lost share of 1e-12");
  call_open(&c, 1, 1, 2, 1, 100, 5);
  for (int64_t i = 0; i < 100; i++) {
    c.q[2 * i] = 1, c.q[2 * i + 1] = 0;
    c.k[2 * i] = i >= 90 ? 14.0f : -14.0f, c.k[2 * i + 1] = 0;
    c.v[i] = i >= 90 ? 1.0f : 3.0f;
  }
  c.a.scale = 1;
  call_run(&c);
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_GATES | LATTN_PROFILE_LOST);
  config.window = 10;
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  int64_t row = 99;
  o.n_rows = 1, o.rows = &row;
  observe_rows(p, &o, &c, 0, 100);
  double *lost = report(p, LATTN_TABLE_LOST, 1), *loss = report(p, LATTN_TABLE_GATE_LOSS, 1);
  double omega = 90 * exp(-28.0) / 10;
  check_near(*lost, omega, 1e-5, "omega", 0);
  check_near(*loss, 4 * omega * omega, 1e-5, "loss", 0);
  free(lost), free(loss), free(held);
  call_close(&c);
}

/* ---- gates ---- */

static double objective(const double *q, const double *b, int n, double penalty) {
  double f = 0;
  for (int h = 0; h < n; h++) {
    f -= penalty * b[h];
    for (int k = 0; k < n; k++) f += b[h] * q[h * n + k] * b[k];
  }
  return f;
}

/* Q = sum of rank-one matrices: positive semidefinite. */
static void random_q(double *q, int n, int rank, test_rng *rng) {
  memset(q, 0, sizeof *q * (size_t)(n * n));
  for (int r = 0; r < rank; r++) {
    double u[32];
    for (int h = 0; h < n; h++) u[h] = (double)rng_uniform(rng);
    for (int h = 0; h < n; h++)
      for (int k = 0; k < n; k++) q[h * n + k] += u[h] * u[k];
  }
}

static void test_gates(void) {
  test_rng rng = rng_seed(21);
  for (int i = 0; i < 60; i++) {
    int n = 2 + i % 2;
    double q[9], gates[3], b[3], residual = 1, penalty, best = 0;
    lattn_gates o = {.size = sizeof o, .residual = &residual, .penalty = &penalty};
    check_case("gates against a grid, %d", i);
    random_q(q, n, 3, &rng);
    o.lambda = n * (0.05 + 2 * fabs((double)rng_uniform(&rng)));
    CHECK_STATUS(lattn_gates_solve(&o, 1, n, q, gates), LATTN_OK);
    CHECK(residual <= 1e-12 && fabs(penalty * n - o.lambda) < 1e-12);
    for (int h = 0; h < n; h++) CHECK(gates[h] >= 0 && gates[h] <= 1);
    for (int a = 0; a <= 100; a++)
      for (int c = 0; c <= 100; c++)
        for (int d = 0; d <= (n == 3 ? 100 : 0); d++) {
          b[0] = a / 100.0, b[1] = c / 100.0, b[2] = d / 100.0;
          best = fmin(best, objective(q, b, n, penalty));
        }
    for (int h = 0; h < n; h++) b[h] = 1 - gates[h];
    CHECK(objective(q, b, n, penalty) <= best + 1e-12); /* not above any point of the grid */
  }
}

static void test_gates_laws(void) {
  enum { L = 3, N = 6 };
  test_rng rng = rng_seed(22);
  double q[L * N * N], gates[L * N], before[L * N], residual, sum, last = 0;
  lattn_gates o = {.size = sizeof o, .residual = &residual};
  check_case("gates: closed form of a diagonal Q");
  memset(q, 0, sizeof q);
  for (int l = 0; l < L; l++)
    for (int h = 0; h < N; h++) q[(l * N + h) * N + h] = h ? 0.01 * (l + 1) * h : 0;
  o.lambda = 0.5;
  CHECK_STATUS(lattn_gates_solve(&o, L, N, q, gates), LATTN_OK);
  for (int i = 0; i < L * N; i++) {
    double own = q[i * N + i % N], want = own > 0 ? fmin(1, 0.5 / (L * N) / (2 * own)) : 1;
    CHECK(fabs(1 - gates[i] - want) < 1e-12); /* Q_hh = 0: the head streams */
  }
  check_case("gates: the sum never falls with the penalty, budgets are met");
  for (int l = 0; l < L; l++) random_q(q + l * N * N, N, 9, &rng);
  for (double lambda = 0; lambda < 40; lambda = 1.5 * lambda + 0.1) {
    o.lambda = lambda;
    CHECK_STATUS(lattn_gates_solve(&o, L, N, q, gates), LATTN_OK);
    CHECK(residual <= 1e-12);
    sum = 0;
    for (int i = 0; i < L * N; i++) sum += 1 - gates[i];
    CHECK(sum >= last - 1e-9);
    last = sum;
  }
  o.method = LATTN_GATES_BUDGET;
  for (int budget = 0; budget <= L * N; budget += 3) {
    o.budget = budget;
    CHECK_STATUS(lattn_gates_solve(&o, L, N, q, gates), LATTN_OK);
    sum = 0;
    for (int i = 0; i < L * N; i++) sum += 1 - gates[i];
    CHECK(fabs(sum - budget) < 1e-6);
  }
  check_case("gates: greedy takes the cheapest, one more each time");
  o.method = LATTN_GATES_GREEDY;
  for (int budget = 0; budget <= L * N; budget++) {
    double cost[L * N], least = 1e300;
    int taken = -1;
    o.budget = budget;
    CHECK_STATUS(lattn_gates_solve(&o, L, N, q, gates), LATTN_OK);
    for (int i = 0; budget && i < L * N; i++) {
      CHECK(gates[i] <= before[i]);
      if (gates[i] < before[i]) taken = i;
      cost[i] = 1e300;
      if (before[i] == 0) continue;
      cost[i] = q[i * N + i % N];
      for (int k = 0; k < N; k++)
        if (before[i / N * N + k] == 0) cost[i] += 2 * q[i * N + k];
      least = fmin(least, cost[i]);
    }
    if (budget) CHECK(taken >= 0 && cost[taken] <= least + 1e-12);
    memcpy(before, gates, sizeof gates);
  }
}

/* Planted heads in a real run: local ones (keys far away score -20) stream before any that looks
   far back. */
static void test_planted_gates(void) {
  enum { H = 6 };
  call c;
  void *held;
  double gates[H], residual;
  check_case("planted local heads stream first");
  call_open(&c, H, H, 2, 6, 200, 31);
  for (int64_t i = 0; i < c.n; i++)
    for (int h = 0; h < H; h++) {
      c.q[(i * H + h) * 2] = 1, c.q[(i * H + h) * 2 + 1] = 0;
      c.k[(i * H + h) * 2] = h % 2 ? 0.1f * (float)i : i == 20 + h ? 12.0f : 0.0f;
      c.k[(i * H + h) * 2 + 1] = 0;
    }
  c.a.scale = 3;
  call_run(&c);
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_GATES);
  config.sinks = 4, config.window = 60, config.row_step = 1;
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  observe_rows(p, &o, &c, 0, c.n);
  double *q = report(p, LATTN_TABLE_GATES, H * H);
  lattn_gates solve = {.size = sizeof solve, .lambda = 0.05, .residual = &residual};
  CHECK_STATUS(lattn_gates_solve(&solve, 1, H, q, gates), LATTN_OK);
  for (int h = 0; h < H; h++) CHECK(h % 2 ? gates[h] < 1e-6 : gates[h] > 0.9);
  solve.method = LATTN_GATES_GREEDY, solve.budget = 3;
  CHECK_STATUS(lattn_gates_solve(&solve, 1, H, q, gates), LATTN_OK);
  for (int h = 0; h < H; h++) CHECK(gates[h] == !(h % 2));
  free(q), free(held);
  call_close(&c);
}

/* ---- which heads ---- */

static void test_choose(void) {
  static const double gates[8] = {0.5, 1, 0.5, 0, 0.5, 1, 0.2, 0.9};
  static const int32_t half[8] = {1, 1, 0, 0, 0, 1, 0, 1}; /* 0.5 is three times: the first stays */
  static const int32_t above[8] = {1, 1, 1, 0, 1, 1, 0, 1};
  double echo[8] = {0, 0, 0, 9, 0, 0, 9, 0}, kv[4], nan = (double)NAN;
  int32_t full[8], n = 0;
  lattn_heads o = {.size = sizeof o, .sparsity = 0.5};
  check_case("heads by quantile, threshold and union");
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  CHECK(!memcmp(full, half, sizeof full));
  o.sparsity = 0;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  for (int i = 0; i < 8; i++) CHECK(full[i] == 1);
  o.sparsity = 1;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  for (int i = 0; i < 8; i++) CHECK(full[i] == 0);
  o.sparsity = -1;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  CHECK(full[3] == 1);
  o.rule = LATTN_HEADS_THRESHOLD, o.threshold = 0.5;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  CHECK(!memcmp(full, above, sizeof full));
  o.rule = LATTN_HEADS_RAZOR, o.echo = echo, o.induction_share = 0.25, o.echo_share = 0.125;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_OK);
  for (int i = 0; i < 8; i++) CHECK(full[i] == (i == 1 || i == 5 || i == 3));
  o.induction_share = o.echo_share = 0; /* the paper's, of 1,000 heads: 140 and 10, apart */
  double many[1000], other[1000];
  int32_t chosen[1000];
  for (int i = 0; i < 1000; i++) many[i] = (i * 7) % 1000, other[i] = -many[i];
  o.echo = other;
  CHECK_STATUS(lattn_heads_choose(&o, 10, 100, many, chosen), LATTN_OK);
  for (int i = 0; i < 1000; i++) n += chosen[i];
  CHECK(n == 150);
  CHECK_STATUS(lattn_heads_group(2, 4, 2, LATTN_GROUP_MAX, gates, kv), LATTN_OK);
  CHECK(kv[0] == 1 && kv[1] == 0.5 && kv[2] == 1 && kv[3] == 0.9);
  CHECK_STATUS(lattn_heads_group(2, 4, 2, LATTN_GROUP_MEAN, gates, kv), LATTN_OK);
  CHECK(kv[0] == 0.75 && kv[1] == 0.25 && kv[2] == 0.75 && fabs(kv[3] - 0.55) < 1e-15);
  check_case("heads: what is wrong");
  o.rule = 3;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_E_FIELD);
  o.rule = 0, o.sparsity = nan;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_E_VALUE);
  o.sparsity = 0;
  CHECK_STATUS(lattn_heads_choose(&o, 1, 1, &nan, full), LATTN_E_VALUE);
  CHECK_STATUS(lattn_heads_choose(&o, 0, 4, gates, full), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_heads_choose(NULL, 2, 4, gates, full), LATTN_E_NULL);
  o.size = 3;
  CHECK_STATUS(lattn_heads_choose(&o, 2, 4, gates, full), LATTN_E_SIZE);
  CHECK_STATUS(lattn_heads_group(2, 4, 3, 0, gates, kv), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_heads_group(2, 4, 2, 2, gates, kv), LATTN_E_FIELD);
}

/* ---- ALiBi ---- */

static void test_alibi(void) {
  static const double slopes[] = {0.00390625, 0.0625, 0.5, 3}, bounds[] = {0, 2, 40};
  static const double epsilons[] = {1e-12, 1e-5, 0.3, 1};
  int64_t length;
  check_case("effective lengths of ALiBi");
  for (int i = 0; i < 48; i++) {
    double m = slopes[i % 4], b = bounds[i / 4 % 3], e = epsilons[i / 12];
    double each = (2 * b - log(e)) / m, total = (2 * b - log(e * -expm1(-m))) / m;
    CHECK_STATUS(lattn_alibi_length(&length, m, b, e, LATTN_ALIBI_EACH), LATTN_OK);
    CHECK((double)length >= each * (1 - 1e-15) && (double)length <= fmax(0, each) + 1.0001);
    CHECK_STATUS(lattn_alibi_length(&length, m, b, e, LATTN_ALIBI_TOTAL), LATTN_OK);
    CHECK((double)length >= total * (1 - 1e-14) && (double)length <= fmax(0, total) + 1.0001);
  }
  CHECK_STATUS(lattn_alibi_length(&length, 1e-300, 1, 0.5, 0), LATTN_OK);
  CHECK_I64(length, INT64_MAX);
  CHECK_STATUS(lattn_alibi_length(NULL, 1, 1, 0.5, 0), LATTN_E_NULL);
  CHECK_STATUS(lattn_alibi_length(&length, 0, 1, 0.5, 0), LATTN_E_VALUE);
  CHECK_STATUS(lattn_alibi_length(&length, 1, -1, 0.5, 0), LATTN_E_VALUE);
  CHECK_STATUS(lattn_alibi_length(&length, 1, 1, 0, 0), LATTN_E_VALUE);
  CHECK_STATUS(lattn_alibi_length(&length, 1, 1, (double)NAN, 0), LATTN_E_VALUE);
  CHECK_STATUS(lattn_alibi_length(&length, 1, (double)INFINITY, 0.5, 0), LATTN_E_VALUE);
  CHECK_STATUS(lattn_alibi_length(&length, 1, 1, 0.5, 2), LATTN_E_FIELD);
  /* The worst queries and keys: own score -B, all others B. */
  for (int form = 0; form < 2; form++) {
    call c;
    double most = 0, sum;
    check_case("no weight beyond the effective length, form %d", form);
    call_open(&c, 1, 1, 1, 1, 300, 1);
    for (int64_t i = 0; i < 300; i++) c.q[i] = 1, c.k[i] = 2;
    c.k[299] = -2, c.a.scale = 1, c.slopes[0] = 0.08f, c.a.alibi_slopes = c.slopes;
    call_run(&c);
    CHECK_STATUS(lattn_alibi_length(&length, (double)c.slopes[0], 2, 1e-4, form), LATTN_OK);
    CHECK(length > 100 && length < 300);
    sum = 0;
    for (int64_t j = 0; 299 - j >= length; j++)
      most = fmax(most, weight(&c, 0, 299, j)), sum += weight(&c, 0, 299, j);
    CHECK(most > 0 && most <= 1e-4 && (form == LATTN_ALIBI_EACH || sum <= 1e-4));
    call_close(&c);
  }
}

/* ---- calibrated attention ---- */

typedef struct calibrated {
  lattn_calibration c;
  uint8_t *marks;
  double *means;
  float betas[64];
} calibrated;

static void calibrated_open(calibrated *x, const call *c, float beta) {
  memset(x, 0, sizeof *x);
  x->marks = (uint8_t *)memory(c->heads * c->n, 1);
  x->means = (double *)memory(c->heads * c->n, sizeof(double));
  x->c.size = sizeof x->c;
  x->c.beta = beta;
  x->c.marks = x->marks, x->c.means = x->means;
}

static void calibrated_close(calibrated *x) { free(x->marks), free(x->means); }

/* Columns 0, 7 and (of head 2 only) 30 are strong. */
static void plant_sinks(call *c) {
  for (int64_t j = 0; j < c->n; j++)
    for (int64_t g = 0; g < c->kv_heads; g++) {
      float *k = c->k + (j * c->kv_heads + g) * c->dk;
      k[0] = j == 0 ? 2.0f : j == 7 ? 3.0f : j == 30 && g == c->kv_heads - 1 ? 2.5f : 0.0f;
    }
  for (int64_t i = 0; i < c->n; i++)
    for (int64_t h = 0; h < c->heads; h++) c->q[(i * c->heads + h) * c->dk] = 8;
}

/* The definition on the matrix; expected outputs. */
static void calibrate_dense(const call *c, const calibrated *x, int64_t h, uint8_t *marks,
                            double *out) {
  double beta = (double)(x->c.betas ? x->c.betas[h] : x->c.beta);
  double theta = x->c.threshold > 0 ? (double)x->c.threshold : 0.1;
  int64_t least = x->c.least_rows ? x->c.least_rows : 1;
  for (int64_t j = 0; j < c->n; j++) {
    double mean = 0, rows = 0;
    for (int64_t i = j; i < c->n; i++) mean += weight(c, h, i, j), rows += sees(c, i, j);
    mean /= rows;
    CHECK(fabs(x->means[h * c->n + j] - mean) < 1e-6);
    marks[j] = mean > theta && rows >= (double)least;
  }
  for (int64_t j = 0, looking = 1; looking && j < c->n; j++) {
    looking = x->c.keep == LATTN_KEEP_FIRST_FOUND && !marks[j];
    marks[j] = 0;
  }
  for (int64_t i = 0; i < c->n; i++) {
    double mass = 0;
    for (int64_t j = 0; j <= i; j++) mass += marks[j] ? weight(c, h, i, j) : 0;
    for (int64_t d = 0; d < c->dv; d++) {
      double o = 0, sum = 0;
      for (int64_t j = 0; j <= i; j++) {
        double w = weight(c, h, i, j);
        if (1 - mass > 0x1p-20) w *= marks[j] ? beta : 1 + (1 - beta) * mass / (1 - mass);
        o += w * value(c, h, j, d);
        sum += w;
      }
      CHECK(fabs(sum - 1) < 1e-9);
      out[i * c->dv + d] = o;
    }
  }
}

static void check_calibrated(call *c, calibrated *x) {
  uint8_t *marks = (uint8_t *)memory(c->n, 1);
  double *want = (double *)memory(c->n * c->dv, sizeof(double));
  float *plain = (float *)memory(c->n * c->heads * c->dv, sizeof(float));
  memcpy(plain, c->out, (size_t)(c->n * c->heads * c->dv) * sizeof(float));
  CHECK_STATUS(lattn_attention_calibrated(&x->c, &c->a, q_of(c), k_of(c), v_of(c), out_of(c),
                                          c->lse, &c->exec),
               LATTN_OK);
  for (int64_t h = 0; h < c->heads; h++) {
    int64_t first = c->n;
    calibrate_dense(c, x, h, marks, want);
    CHECK(!memcmp(marks, x->marks + h * c->n, (size_t)c->n));
    for (int64_t j = c->n - 1; j >= 0; j--)
      if (marks[j]) first = j;
    for (int64_t i = 0; i < c->n; i++) {
      const float *got = c->out + (i * c->heads + h) * c->dv;
      for (int64_t d = 0; d < c->dv; d++)
        if (!(fabs((double)got[d] - want[i * c->dv + d]) < LOOSE))
          FAIL("head %d row %d is %.9g, expected %.9g", (int)h, (int)i, (double)got[d],
               want[i * c->dv + d]);
      if (i < first || (x->c.betas ? x->c.betas[h] : x->c.beta) == 1) /* the same bits */
        CHECK(!memcmp(got, plain + (i * c->heads + h) * c->dv, (size_t)c->dv * sizeof(float)));
    }
  }
  free(marks), free(want), free(plain);
}

static void test_calibrated(void) {
  static const float betas[] = {0.4f, 0, 1, 0.9f, 0.4f};
  for (int kind = 0; kind < 4; kind++)
    for (int i = 0; i < 5; i++) {
      call c;
      calibrated x;
      check_case("calibrated attention, options %d, %d", kind, i);
      call_open(&c, 4, i % 2 ? 2 : 4, 16, 10, i == 3 ? 150 : 60, (uint64_t)(kind * 5 + i) + 900);
      options_of(&c, kind);
      if (kind != 2) plant_sinks(&c);
      for (int64_t g = 0; i == 3 && g < c.kv_heads; g++) c.k[g * c.dk] = -1; /* 7 is the first */
      if (i % 3) call_scratch(&c, i);
      call_run(&c);
      calibrated_open(&x, &c, betas[i]);
      x.c.keep = i == 3;
      x.c.threshold = i == 1 ? 0.15f : 0;
      x.c.least_rows = i == 2 ? 10 : 0;
      for (int h = 0; h < 4; h++) x.betas[h] = 0.25f * (float)h + 0.25f;
      if (i == 4) x.c.betas = x.betas;
      check_calibrated(&c, &x);
      if (kind == 0 && i == 0) CHECK(x.marks[7] && !x.marks[0] && x.marks[3 * c.n + 30]);
      calibrated_close(&x);
      call_close(&c);
    }
}

/* Sinks found in the prompt, kept for the rows of decode. */
static void test_calibrated_edges(void) {
  enum { N = 50, PROMPT_ROWS = 40 };
  call c;
  calibrated x;
  double want[6];
  float *whole, out[2 * 6], lse[2];
  check_case("calibration that is given, row by row");
  call_open(&c, 2, 2, 16, 6, N, 77);
  plant_sinks(&c);
  call_run(&c);
  calibrated_open(&x, &c, 0.4f);
  x.c.stride = N;
  lattn_tensor q = q_of(&c), k = k_of(&c), v = v_of(&c), o = out_of(&c);
  q.n_tokens = k.n_tokens = v.n_tokens = o.n_tokens = PROMPT_ROWS;
  CHECK_STATUS(lattn_attention_calibrated(&x.c, &c.a, q, k, v, o, c.lse, NULL), LATTN_OK);
  CHECK(x.marks[7] && x.marks[N + 7]);
  x.c.given = 1, x.c.means = NULL;
  whole = (float *)memory(N * 12, sizeof(float));
  o = out_of(&c), o.data = whole;
  CHECK_STATUS(lattn_attention_calibrated(&x.c, &c.a, q_of(&c), k_of(&c), v_of(&c), o, c.lse, NULL),
               LATTN_OK);
  for (int64_t i = 0; i < N; i++) {
    q = tensor_of(c.q + i * 32, 0, 1, 2, 16);
    k.n_tokens = v.n_tokens = i + 1;
    o = tensor_of(out, 0, 1, 2, 6);
    CHECK_STATUS(lattn_attention_calibrated(&x.c, &c.a, q, k, v, o, lse, NULL), LATTN_OK);
    CHECK(!memcmp(out, whole + i * 12, sizeof out)); /* decode = prefill, bit for bit */
    for (int64_t h = 0; h < 2; h++) {
      double mass = 0;
      for (int64_t j = 0; j <= i; j++) mass += x.marks[h * N + j] ? weight(&c, h, i, j) : 0;
      for (int d = 0; d < 6; d++) {
        want[d] = 0;
        for (int64_t j = 0; j <= i; j++)
          want[d] += weight(&c, h, i, j) * value(&c, h, j, d) *
                     (x.marks[h * N + j] ? 0.4 : 1 + 0.6 * mass / (1 - mass));
        CHECK(fabs((double)out[h * 6 + d] - want[d]) < LOOSE);
      }
    }
  }
  free(whole);
  calibrated_close(&x);
  call_close(&c);
}

/* All mass, or nearly all, on sinks: the row stays. */
static void test_calibrated_rows_that_stay(void) {
  enum { N = 50 };
  call c;
  calibrated x;
  call_open(&c, 2, 2, 16, 6, N, 77);
  plant_sinks(&c);
  call_run(&c);
  calibrated_open(&x, &c, 0);
  x.c.given = 1, x.c.means = NULL;
  lattn_tensor o;
  check_case("all mass on a sink: the row stays");
  memset(x.marks, 0, 2 * N);
  for (int64_t j = 0; j < N; j++) x.marks[j] = 1;
  float *plain = (float *)memory(N * 12, sizeof(float));
  o = out_of(&c), o.data = plain;
  CHECK_STATUS(lattn_attention(&c.a, q_of(&c), k_of(&c), v_of(&c), o, c.lse, NULL), LATTN_OK);
  CHECK_STATUS(
      lattn_attention_calibrated(&x.c, &c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, NULL),
      LATTN_OK);
  CHECK(!memcmp(c.out, plain, N * 12 * sizeof(float)));
  check_case("all but 2^-30 of the mass on a sink: the row stays");
  memset(x.marks, 0, 2 * N);
  x.marks[3] = x.marks[N + 3] = 1;
  c.k[3 * 32] = c.k[3 * 32 + 16] = 14; /* scores 28 above the others */
  CHECK_STATUS(lattn_attention(&c.a, q_of(&c), k_of(&c), v_of(&c), o, c.lse, NULL), LATTN_OK);
  CHECK_STATUS(
      lattn_attention_calibrated(&x.c, &c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, NULL),
      LATTN_OK);
  CHECK(!memcmp(c.out, plain, N * 12 * sizeof(float)));
  free(plain);
  calibrated_close(&x);
  call_close(&c);
}

/* The same as a merge in replace mode of the two partials, with ln(beta M) and ln(1 - beta M). */
static void test_calibrated_merge(void) {
  call c;
  calibrated x;
  float bias[2][60], parts[2][2 * 60], outs[2][60 * 6], logs[2][60], merged[60 * 6];
  lattn_partial p[2];
  check_case("calibration as a merge in replace mode");
  call_open(&c, 1, 1, 16, 6, 60, 78);
  plant_sinks(&c);
  call_run(&c);
  calibrated_open(&x, &c, 0.4f);
  CHECK_STATUS(
      lattn_attention_calibrated(&x.c, &c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, NULL),
      LATTN_OK);
  memset(p, 0, sizeof p);
  for (int i = 0; i < 2; i++) {
    lattn_attn a = c.a;
    lattn_tensor t = tensor_of(bias[i], 0, 1, 1, 60), none = out_of(&c);
    for (int j = 0; j < 60; j++) bias[i][j] = (x.marks[j] != 0) == (i == 0) ? 0 : -INFINITY;
    p[i].size = sizeof p[i];
    p[i].n_rows = 60, p[i].value_dim = 6;
    p[i].maximum = parts[i], p[i].sum = parts[i] + 60, p[i].output = outs[i];
    p[i].row_weights = logs[i];
    a.key_bias = &t, a.partial = &p[i];
    none.data = NULL;
    CHECK_STATUS(lattn_attention(&a, q_of(&c), k_of(&c), v_of(&c), none, NULL, NULL), LATTN_OK);
    p[i].n_segments = 0;
  }
  for (int i = 0; i < 60; i++) {
    double mass = 0;
    for (int j = 0; j <= i; j++) mass += x.marks[j] ? weight(&c, 0, i, j) : 0;
    logs[0][i] = mass > 0 ? (float)log(0.4 * mass) : -INFINITY;
    logs[1][i] = (float)log1p(-0.4 * mass);
  }
  lattn_merge_options o = {.size = sizeof o, .mode = LATTN_MERGE_REPLACE};
  CHECK_STATUS(lattn_merge(&o, 2, p, tensor_of(merged, 0, 60, 1, 6), NULL, NULL), LATTN_OK);
  for (int i = 0; i < 360; i++) CHECK(fabs((double)merged[i] - (double)c.out[i]) < LOOSE);
  calibrated_close(&x);
  call_close(&c);
}

/* ---- one extra logit, or one extra pair of key and value ---- */

enum {
  EXTRA_OFF_BY_ONE,
  EXTRA_LOGIT,
  EXTRA_TOKEN,
  EXTRA_KEY_BIAS,
  EXTRA_PAIR,
  EXTRA_VALUE,
  EXTRAS
};
static const char *const extras[] = {"softmax-off-by-one",
                                     "learned sink logit",
                                     "learned sink token",
                                     "K bias",
                                     "KV bias",
                                     "V bias"};

/* The dense formula: out [dv] of a row, and its lse. */
static double extra_row(const call *c, int kind, int64_t i, int64_t h, const float *key,
                        const float *vector, double z, double *out) {
  int with_value = kind == EXTRA_TOKEN || kind == EXTRA_PAIR;
  double most, sum = 0;
  for (int d = 0; kind >= EXTRA_TOKEN && d < c->dk; d++)
    z += (double)c->q[(i * c->heads + h) * c->dk + d] * (double)key[h * c->dk + d] /
         sqrt((double)c->dk);
  if (kind == EXTRA_VALUE) z = (double)-INFINITY; /* no extra key */
  most = z;
  for (int64_t j = 0; j <= i; j++) most = fmax(most, score_of(c, h, i, j));
  sum = exp(z - most);
  for (int d = 0; d < c->dv; d++) out[d] = with_value ? sum * (double)vector[h * c->dv + d] : 0;
  for (int64_t j = 0; j <= i; j++) {
    double w = exp(score_of(c, h, i, j) - most);
    sum += w;
    for (int d = 0; d < c->dv; d++) out[d] += w * value(c, h, j, d);
  }
  for (int d = 0; d < c->dv; d++) {
    out[d] /= sum;
    if (kind == EXTRA_VALUE) out[d] += (double)vector[h * c->dv + d];
  }
  return most + log(sum);
}

/* The extra key is one more partial: attention over it alone, then a merge. splits: parts that the
   real keys are cut into. */
static void check_extra(int kind, int splits, float size) {
  enum { N = 70, H = 4, DK = 8, DV = 6 };
  call c;
  float key[H * DK], vector[H * DV], zero[H * DV] = {0}, logits[H], got[N * H * DV], lse[N * H];
  float numbers[9][2 * N * H], outputs[9][N * H * DV];
  lattn_partial parts[9];
  test_rng rng = rng_seed(5);
  lattn_tensor out = tensor_of(got, 0, N, H, DV), none = out;
  lattn_merge_options o = {.size = sizeof o};
  int n = 0;
  check_case("%s, keys in %d, size %g", extras[kind], splits, (double)size);
  call_open(&c, H, H, DK, DV, N, 123);
  for (int i = 0; i < H * DK; i++) key[i] = size * rng_uniform(&rng);
  for (int i = 0; i < H * DV; i++) vector[i] = rng_uniform(&rng);
  for (int h = 0; h < H; h++) logits[h] = kind == EXTRA_LOGIT ? size * (float)(h - 1) : 0;
  call_run(&c);
  none.data = NULL;
  memset(parts, 0, sizeof parts);
  for (int i = 0; i < splits + 1; i++) {
    lattn_attn a = c.a;
    int64_t from = i * N / splits, to = (i + 1) * N / splits;
    lattn_tensor k = tensor_of(c.k + from * H * DK, 0, to - from, H, DK);
    lattn_tensor v = tensor_of(c.v + from * H * DV, 0, to - from, H, DV);
    if (i == splits && (kind < EXTRA_TOKEN || kind == EXTRA_VALUE)) break;
    a.mask = LATTN_CAUSAL_AT, a.key_position = from;
    if (i == splits) { /* the extra key: seen by every query */
      a.mask = LATTN_FULL, a.key_position = 0;
      k = tensor_of(key, 0, 1, H, DK);
      v = tensor_of(kind == EXTRA_KEY_BIAS ? zero : vector, 0, 1, H, DV);
    }
    parts[n].size = sizeof parts[n];
    parts[n].n_rows = N * H, parts[n].value_dim = DV;
    parts[n].maximum = numbers[n], parts[n].sum = numbers[n] + N * H;
    parts[n].output = outputs[n];
    a.partial = &parts[n];
    CHECK_STATUS(lattn_attention(&a, q_of(&c), k, v, none, NULL, NULL), LATTN_OK);
    parts[n++].n_segments = 0;
  }
  if (kind == EXTRA_OFF_BY_ONE || kind == EXTRA_LOGIT) o.sink_logits = logits;
  CHECK_STATUS(lattn_merge(&o, n, parts, out, lse, NULL), LATTN_OK);
  for (int i = 0; kind == EXTRA_VALUE && i < N * H * DV; i++) got[i] += vector[i % (H * DV)];
  for (int64_t i = 0; i < N; i++)
    for (int64_t h = 0; h < H; h++) {
      double want[DV], log_sum = extra_row(&c, kind, i, h, key, vector, (double)logits[h], want);
      for (int d = 0; d < DV; d++) CHECK(fabs((double)got[(i * H + h) * DV + d] - want[d]) < LOOSE);
      CHECK(fabs((double)lse[i * H + h] - log_sum) < LOOSE * (1 + fabs(log_sum)));
    }
  call_close(&c);
}

static void test_extras(void) {
  for (int kind = 0; kind < EXTRAS; kind++)
    for (int splits = 1; splits < 8; splits += 6)
      for (int size = 1; size < 60; size += 39) check_extra(kind, splits, (float)size);
  check_case("a sink logit of -infinity changes no bit, one of 40 takes all, 0 over -200 too");
  call c;
  float *plain;
  call_open(&c, 2, 2, 8, 6, 30, 124);
  call_run(&c);
  plain = (float *)memory(30 * 12, sizeof(float));
  memcpy(plain, c.out, 30 * 12 * sizeof(float));
  c.sinks[0] = -INFINITY, c.sinks[1] = 60, c.a.sink_logits = c.sinks;
  CHECK_STATUS(lattn_attention(&c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, NULL),
               LATTN_OK);
  for (int i = 0; i < 30 * 12; i++)
    CHECK(i / 6 % 2 ? fabs((double)c.out[i]) < 1e-20 : c.out[i] == plain[i]);
  float bias[30];
  lattn_tensor b = tensor_of(bias, 0, 1, 1, 30);
  for (int i = 0; i < 30; i++) bias[i] = -200;
  c.sinks[0] = c.sinks[1] = 0, c.a.key_bias = &b;
  CHECK_STATUS(lattn_attention(&c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, NULL),
               LATTN_OK);
  for (int i = 0; i < 30 * 12; i++) CHECK(fabs((double)c.out[i]) < 1e-30);
  for (int i = 0; i < 60; i++) CHECK(c.lse[i] == 0);
  free(plain);
  call_close(&c);
}

/* A gate, and the value of an extra key, have as many dims as values: keys may have others. */
static void test_watched_dims(void) {
  call c;
  void *held;
  check_case("observed: a gate and an extra value of other dims than keys");
  call_open(&c, 2, 2, 8, 6, 30, 125);
  lattn_tensor gate = tensor_of(c.q, 0, 30, 2, 6);
  lattn_tensor key = tensor_of(c.k, 0, 1, 1, 8), extra = tensor_of(c.v, 0, 1, 1, 6);
  c.a.gate = &gate, c.a.extra_key = &key, c.a.extra_value = &extra;
  CHECK_STATUS(lattn_attention(&c.a, q_of(&c), k_of(&c), v_of(&c), out_of(&c), c.lse, &c.exec),
               LATTN_OK);
  lattn_profile_config config = config_of(&c, LATTN_PROFILE_ECHO);
  lattn_profile *p = profile_open(&config, &held);
  lattn_observed o = observed_of(&c);
  o.period = 10;
  observe_rows(p, &o, &c, 0, 30);
  free(held);
  call_close(&c);
}

/* ---- published tables, if there are: in LONGATTN_HEADS, or ../shared/heads ---- */

enum { PUBLISHED = 1600 };

/* The text of a file of that folder, or NULL; the caller frees it. */
static char *published(const char *name) {
  const char *folder = getenv("LONGATTN_HEADS");
  char path[1024];
  snprintf(path, sizeof path, "%s/%s", folder ? folder : "../shared/heads", name);
  FILE *file = fopen(path, "rb");
  if (!file) return printf("skipped: %s is not there\n", path), NULL;
  char *text = (char *)memory(1 << 24, 1);
  text[fread(text, 1, (1 << 24) - 1, file)] = 0;
  fclose(file);
  return text;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

/* DuoAttention's deployment: gate >= the linearly interpolated quantile of all gates. Ours agrees
   on every gate that its noise of 1e-6 cannot move across the threshold. */
static void check_deployment(const double *gates, int layers, int heads, double sparsity) {
  double sorted[PUBLISHED], at = sparsity * (layers * heads - 1), threshold;
  int32_t full[PUBLISHED], streaming = 0, n = layers * heads, low = (int32_t)at, unsure = 0;
  lattn_heads o = {.size = sizeof o, .sparsity = sparsity};
  memcpy(sorted, gates, (size_t)n * sizeof *gates);
  qsort(sorted, (size_t)n, sizeof *sorted, ascending);
  threshold = sorted[low] + (at - low) * (sorted[low + (low + 1 < n)] - sorted[low]);
  CHECK_STATUS(lattn_heads_choose(&o, layers, heads, gates, full), LATTN_OK);
  for (int i = 0; i < n; i++) {
    streaming += !full[i];
    if (fabs(gates[i] - threshold) > 1e-6) CHECK(full[i] == (gates[i] > threshold));
    else unsure++;
  }
  CHECK_I64(streaming, (int64_t)(sparsity * n + 0.5));
  CHECK(unsure < n / 2);
}

static void test_published_gates(void) {
  static const struct {
    const char *name;
    int layers, heads, above;
  } tables[] = {{"duo/Llama-2-7B-32K-Instruct/full_attention_heads.tsv", 32, 32, 446},
                {"duo/Meta-Llama-3.1-8B-Instruct/full_attention_heads.tsv", 32, 8, 234},
                {"duo/Mistral-7B-Instruct-v0.2/full_attention_heads.tsv", 32, 8, 244}};
  for (int t = 0; t < 3; t++) {
    double gates[PUBLISHED];
    int32_t full[PUBLISHED], above = 0, n = 0;
    lattn_heads o = {.size = sizeof o, .rule = LATTN_HEADS_THRESHOLD, .threshold = 0.5};
    check_case("%s", tables[t].name);
    char *text = published(tables[t].name), *at = text, *end;
    if (!text) continue;
    while (n < PUBLISHED) {
      double gate = strtod(at, &end);
      if (end == at) break;
      gates[n++] = fmin(1, fmax(0, gate));
      at = end;
    }
    free(text);
    CHECK_I64(n, tables[t].layers * tables[t].heads);
    if (n != tables[t].layers * tables[t].heads) continue;
    CHECK_STATUS(lattn_heads_choose(&o, tables[t].layers, tables[t].heads, gates, full), LATTN_OK);
    for (int i = 0; i < n; i++) above += full[i];
    CHECK_I64(above, tables[t].above);
    check_deployment(gates, tables[t].layers, tables[t].heads, 0.5);
    check_deployment(gates, tables[t].layers, tables[t].heads, 0.75);
  }
}

/* {"layer-head": [score, ...], ...}: means, their counts, and the strongest head. */
static void test_published_scores(void) {
  enum { LAYERS = 32, HEADS = 32, KV_HEADS = 8 };
  double scores[LAYERS * HEADS] = {0}, kv[LAYERS * KV_HEADS];
  int n = 0, high = 0, strong = 0, zero = 0, best = 0;
  check_case("published retrieval scores");
  char *text = published("retrieval_score_Mistral-7B-v0.2.json"), *at = text;
  for (; at && (at = strchr(at, '"')) != NULL; n++) {
    char *end;
    long layer = strtol(at + 1, &end, 10), head = strtol(end + 1, &end, 10);
    double sum = 0;
    int count = 0;
    for (at = strchr(end, '[') + 1; *at != ']'; count++) {
      sum += strtod(at, &end);
      at = end + (*end == ',');
    }
    CHECK_I64(count, 362);
    scores[layer * HEADS + head] = sum / count;
  }
  if (!text) return;
  free(text);
  CHECK_I64(n, LAYERS * HEADS);
  for (int i = 0; i < LAYERS * HEADS; i++) {
    high += scores[i] >= 0.1, strong += scores[i] >= 0.5, zero += scores[i] == 0;
    if (scores[i] > scores[best]) best = i;
  }
  CHECK(high == 43 && strong == 5 && zero == 666 && best == 18 * HEADS);
  CHECK(fabs(scores[best] - 0.943) < 5e-4 && fabs(scores[12 * HEADS + 7] - 0.928) < 5e-4);
  CHECK_STATUS(lattn_heads_group(LAYERS, HEADS, KV_HEADS, LATTN_GROUP_MAX, scores, kv), LATTN_OK);
  CHECK(kv[18 * KV_HEADS] == scores[best]);
}

int main(void) {
  test_echo();
  test_planted_echo();
  test_sinks();
  test_planted_sinks();
  test_retrieval();
  test_losses();
  test_small_losses();
  test_gates();
  test_gates_laws();
  test_planted_gates();
  test_choose();
  test_alibi();
  test_calibrated();
  test_calibrated_edges();
  test_calibrated_rows_that_stay();
  test_calibrated_merge();
  test_extras();
  test_watched_dims();
  test_published_gates();
  test_published_scores();
  return test_summary();
}
