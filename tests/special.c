/* special.c - the contract on special values, and inputs that broke other libraries, by name.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

/* A call in float32 with contiguous arrays, run without exec and with three tasks. */
typedef struct probe {
  int64_t n_queries, n_keys, heads, kv_heads, key_dim, value_dim;
  float *q, *k, *v, *out, *lse;
  lattn_attn a;
} probe;

static float *floats(int64_t n) { return (float *)ref_memory(n, sizeof(float)); }

static probe probe_new(int64_t n_queries, int64_t n_keys, int64_t heads, int64_t kv_heads,
                       int64_t key_dim, int64_t value_dim) {
  probe p;
  test_rng r = rng_seed((uint64_t)(n_queries * 31 + n_keys * 7 + key_dim));
  memset(&p, 0, sizeof p);
  p.n_queries = n_queries;
  p.n_keys = n_keys;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.key_dim = key_dim;
  p.value_dim = value_dim;
  p.q = floats(n_queries * heads * key_dim);
  p.k = floats(n_keys * kv_heads * key_dim);
  p.v = floats(n_keys * kv_heads * value_dim);
  p.out = floats(n_queries * heads * value_dim);
  p.lse = floats(n_queries * heads);
  for (int64_t i = 0; i < n_queries * heads * key_dim; i++) p.q[i] = rng_normal(&r);
  for (int64_t i = 0; i < n_keys * kv_heads * key_dim; i++) p.k[i] = rng_normal(&r);
  for (int64_t i = 0; i < n_keys * kv_heads * value_dim; i++) p.v[i] = rng_normal(&r);
  p.a.size = sizeof p.a;
  return p;
}

/* One head, dim 1, q = 1 and scale 1: key j's score is k[j]. */
static probe probe_scores(int64_t n_queries, int64_t n_keys) {
  probe p = probe_new(n_queries, n_keys, 1, 1, 1, 1);
  for (int64_t i = 0; i < n_queries; i++) p.q[i] = 1;
  p.a.scale = 1;
  return p;
}

static void probe_free(probe *p) {
  free(p->q);
  free(p->k);
  free(p->v);
  free(p->out);
  free(p->lse);
}

static lattn_tensor probe_q(const probe *p) {
  return tensor_of(p->q, LATTN_F32, p->n_queries, p->heads, p->key_dim);
}
static lattn_tensor probe_k(const probe *p) {
  return tensor_of(p->k, LATTN_F32, p->n_keys, p->kv_heads, p->key_dim);
}
static lattn_tensor probe_v(const probe *p) {
  return tensor_of(p->v, LATTN_F32, p->n_keys, p->kv_heads, p->value_dim);
}
static lattn_tensor probe_out(const probe *p) {
  return tensor_of(p->out, LATTN_F32, p->n_queries, p->heads, p->value_dim);
}

static int64_t probe_outputs(const probe *p) { return p->n_queries * p->heads * p->value_dim; }

static uint64_t probe_hash(const probe *p) {
  uint64_t hash = hash_f32(HASH_SEED, p->out, probe_outputs(p));
  return hash_f32(hash, p->lse, p->n_queries * p->heads);
}

/* Runs the call into out and lse, which are first filled with rubbish; with three tasks, then
   (where the dims allow) without exec: the same bits. */
static void probe_run(probe *p) {
  lattn_exec exec;
  lattn_tensor q = probe_q(p), k = probe_k(p), v = probe_v(p), out = probe_out(p);
  uint64_t hash;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = 3;
  exec.parallel_for = test_parallel_scrambled;
  exec.scratch_bytes = lattn_attention_scratch(&p->a, q, k, v, 3);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  memset(exec.scratch, 0xff, exec.scratch_bytes);
  memset(p->out, 0x7e, (size_t)probe_outputs(p) * 4);
  CHECK_STATUS(lattn_attention(&p->a, q, k, v, out, p->lse, &exec), LATTN_OK);
  free(exec.scratch);
  if (p->key_dim > 256 || p->value_dim > 160) return;
  hash = probe_hash(p);
  memset(p->out, 0x7e, (size_t)probe_outputs(p) * 4);
  CHECK_STATUS(lattn_attention(&p->a, q, k, v, out, p->lse, NULL), LATTN_OK);
  CHECK(probe_hash(p) == hash);
}

/* Runs, and compares every row with the reference. */
static void probe_check(probe *p) {
  ref_call c;
  ref_row r;
  probe_run(p);
  ref_open(&c, &p->a, probe_q(p), probe_k(p), probe_v(p), LATTN_F32);
  r = ref_row_new(&c);
  for (int64_t i = 0; i < p->n_queries; i++)
    for (int64_t h = 0; h < p->heads; h++) {
      int64_t row = i * p->heads + h;
      ref_attend(&c, i, h, &r);
      if (ref_ratio((double)p->lse[row], r.lse, r.lse_bound) > 1)
        FAIL("lse of row %" PRId64 ": got %.9g, expected %.9g", row, (double)p->lse[row], r.lse);
      for (int64_t d = 0; d < p->value_dim; d++) {
        double got = (double)p->out[row * p->value_dim + d];
        if (ref_ratio(got, r.out[d], r.bound[d]) > 1)
          FAIL("row %" PRId64 " dim %" PRId64 ": got %.9g, expected %.9g within %.3g", row, d, got,
               r.out[d], r.bound[d]);
      }
    }
  ref_row_free(&r);
  ref_close(&c);
}

static int is_plus_zero(float x) { return bits_of_f32(x) == 0; }

/* Rows first ... end - 1 are +0 with that lse. */
static void check_empty(const probe *p, int64_t first, int64_t end, float lse) {
  for (int64_t i = first * p->heads; i < end * p->heads; i++) {
    CHECK(same_f32(p->lse[i], lse));
    for (int64_t d = 0; d < p->value_dim; d++) CHECK(is_plus_zero(p->out[i * p->value_dim + d]));
  }
}

static void set_all(float *x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i++) x[i] = value;
}

/* ---- rows that see nothing ---- */

static void zero_keys(void) {
  float sinks[2] = {0.5f, -INFINITY};
  probe p = probe_new(3, 0, 2, 1, 8, 4);
  check_case("zero_keys, sigmoid");
  p.a.weighting = LATTN_SIGMOID;
  probe_run(&p);
  check_empty(&p, 0, 3, NAN);
  p.a.weighting = LATTN_SOFTMAX;
  check_case("zero_keys");
  probe_run(&p);
  check_empty(&p, 0, 3, -INFINITY);
  p.a.sink_logits = sinks;
  probe_run(&p);
  for (int i = 0; i < 3; i++) CHECK(p.lse[2 * i] == 0.5f && p.lse[2 * i + 1] == -INFINITY);
  for (int i = 0; i < 24; i++) CHECK(is_plus_zero(p.out[i]));
  probe_free(&p);
  check_case("zero_queries");
  p = probe_new(0, 5, 2, 1, 8, 4);
  probe_run(&p);
  probe_free(&p);
}

static void q_longer_than_kv(void) {
  probe p = probe_new(7, 4, 2, 2, 8, 8);
  check_case("q_longer_than_kv");
  p.a.mask = LATTN_CAUSAL;
  probe_check(&p);
  check_empty(&p, 0, 3, -INFINITY);
  probe_free(&p);
}

/* Keys hidden by a bias of -infinity and by a mask give the same bits. */
static void neg_inf_bias(int32_t weighting) {
  float empty = weighting == LATTN_SIGMOID ? NAN : -INFINITY;
  enum { ROWS = 20, KEYS = 4300 };
  probe p = probe_new(ROWS, KEYS, 1, 1, 4, 4);
  float *bias = floats((int64_t)ROWS * KEYS);
  int64_t from[ROWS];
  lattn_tensor t = tensor_of(bias, LATTN_F32, ROWS, 1, KEYS);
  uint64_t hash;
  for (int64_t i = 0; i < ROWS; i++) {
    from[i] = i * 217 + (i == ROWS - 1) * KEYS; /* the last row sees nothing */
    for (int64_t j = 0; j < from[i] && j < KEYS; j++) bias[i * KEYS + j] = -INFINITY;
  }
  check_case("leading_masked_block, weighting %d", (int)weighting);
  p.a.weighting = weighting;
  p.a.visible_from = from;
  probe_check(&p);
  hash = probe_hash(&p);
  check_empty(&p, ROWS - 1, ROWS, empty);
  check_case("all_neg_inf_row, weighting %d", (int)weighting);
  p.a.visible_from = NULL;
  p.a.pair_bias = &t;
  probe_check(&p);
  check_empty(&p, ROWS - 1, ROWS, empty);
  CHECK(probe_hash(&p) == hash);
  free(bias);
  probe_free(&p);
}

static void neg_inf_from_data(void) {
  probe p = probe_scores(2, 300);
  check_case("all scores -infinity from keys");
  set_all(p.k, 300, -INFINITY);
  probe_run(&p);
  check_empty(&p, 0, 2, -INFINITY);
  check_case("14 leading keys of -infinity"); /* ik_llama #2344 */
  for (int i = 14; i < 300; i++) p.k[i] = (float)(i % 5);
  probe_check(&p);
  probe_free(&p);
}

static void empty_sequences(void) {
  static const int64_t query_starts[4] = {0, 3, 6, 8}, key_starts[4] = {0, 5, 5, 20};
  probe p = probe_new(8, 20, 2, 1, 8, 8);
  check_case("rows of a sequence without keys are written");
  p.a.n_sequences = 3;
  p.a.query_starts = query_starts;
  p.a.key_starts = key_starts;
  probe_check(&p);
  check_empty(&p, 3, 6, -INFINITY);
  probe_free(&p);
}

/* ---- NaN and infinity ---- */

typedef struct hidden_case {
  const char *name;
  int32_t mask;
  int64_t window, ahead, sinks;
  int64_t from, to; /* visible range of every row */
} hidden_case;

static const hidden_case hidden_cases[] = {
    {"causal", LATTN_CAUSAL, 0, 0, 0, 0, INT64_MAX},
    {"window", LATTN_CAUSAL, 20, 0, 0, 0, INT64_MAX},
    {"sinks and window", LATTN_CAUSAL, 20, 0, 3, 0, INT64_MAX},
    {"window and ahead", LATTN_FULL, 5, 9, 0, 0, INT64_MAX},
    {"visible range", LATTN_FULL, 0, 0, 0, 7, 130},
};

static int hidden_sees(const hidden_case *h, int64_t n_queries, int64_t n_keys, int64_t i,
                       int64_t j) {
  int64_t p = h->mask == LATTN_CAUSAL ? n_keys - n_queries + i : i;
  if (h->mask == LATTN_CAUSAL && j > p) return 0;
  if (j < h->from || j >= h->to) return 0;
  return !h->window || j < h->sinks || (p - j < h->window && j - p <= h->ahead);
}

/* A bad number in key or value `at` of KV head 0: the rows that see it show it, and no bit of any
   other row or head changes. */
static void check_bad(probe *p, const hidden_case *h, int64_t at, int in_value, float bad,
                      const float *clean) {
  int64_t dims = in_value ? p->value_dim : p->key_dim, d = at % dims;
  float *place = (in_value ? p->v : p->k) + at * p->kv_heads * dims + d, kept = *place;
  *place = bad;
  probe_run(p);
  *place = kept;
  for (int64_t i = 0; i < p->n_queries; i++)
    for (int64_t head = 0; head < p->heads; head++) {
      int64_t row = (i * p->heads + head) * p->value_dim;
      int touched = head < p->heads / p->kv_heads && hidden_sees(h, p->n_queries, p->n_keys, i, at);
      for (int64_t c = 0; c < p->value_dim; c++) {
        int same = same_f32(p->out[row + c], clean[row + c]);
        if (!touched && !same)
          FAIL("key %" PRId64 " changed row %" PRId64 " head %" PRId64, at, i, head);
        if (touched && !in_value && isnan(bad)) CHECK(isnan(p->out[row + c]));
        if (touched && in_value && c == d) CHECK(!isfinite(p->out[row + c]));
      }
      if (touched && !in_value && isnan(bad)) CHECK(isnan(p->lse[i * p->heads + head]));
    }
}

static void bad_slots(int32_t weighting) {
  static const int64_t places[] = {0, 2, 6, 15, 16, 100, 127, 128, 130, 149};
  for (size_t i = 0; i < sizeof hidden_cases / sizeof *hidden_cases; i++) {
    const hidden_case *h = &hidden_cases[i];
    probe p = probe_new(70, 150, 4, 2, 12, 10);
    int64_t from[70], to[70];
    float *clean = floats(probe_outputs(&p));
    for (int j = 0; j < 70; j++) from[j] = h->from;
    for (int j = 0; j < 70; j++) to[j] = h->to;
    p.a.mask = h->mask;
    p.a.window = h->window;
    p.a.ahead = h->ahead;
    p.a.sinks = h->sinks;
    p.a.visible_from = from;
    p.a.visible_to = to;
    p.a.weighting = weighting;
    probe_run(&p);
    memcpy(clean, p.out, (size_t)probe_outputs(&p) * 4);
    for (int bad = 0; bad < 3; bad++) {
      static const char *const names[3] = {"NaN_in_hidden_slot", "Inf_in_hidden_slot",
                                           "-Inf_in_hidden_slot"};
      float x = bad == 0 ? NAN : bad == 1 ? INFINITY : -INFINITY;
      check_case("%s: %s, weighting %d", names[bad], h->name, (int)weighting);
      for (size_t j = 0; j < sizeof places / sizeof *places; j++) {
        check_bad(&p, h, places[j], 0, x, clean);
        check_bad(&p, h, places[j], 1, x, clean);
      }
    }
    free(clean);
    probe_free(&p);
  }
}

static void nan_in_query(int32_t weighting) {
  probe p = probe_new(40, 200, 2, 1, 16, 16);
  float *clean = floats(probe_outputs(&p));
  check_case("NaN in a query row reaches that row and head only, weighting %d", (int)weighting);
  p.a.weighting = weighting;
  probe_run(&p);
  memcpy(clean, p.out, (size_t)probe_outputs(&p) * 4);
  p.q[(17 * 2 + 1) * 16 + 5] = NAN;
  probe_run(&p);
  for (int64_t i = 0; i < 80; i++)
    for (int64_t d = 0; d < 16; d++)
      CHECK(i == 35 ? isnan(p.out[i * 16 + d]) : same_f32(p.out[i * 16 + d], clean[i * 16 + d]));
  CHECK(isnan(p.lse[35]));
  free(clean);
  probe_free(&p);
}

static void infinite_scores(void) {
  probe p = probe_scores(1, 260);
  check_case("one logit of +infinity takes all");
  p.k[130] = INFINITY;
  probe_run(&p);
  CHECK(p.out[0] == p.v[130] && p.lse[0] == INFINITY);
  check_case("several logits of +infinity share equally");
  p.k[3] = p.k[200] = p.k[259] = INFINITY;
  p.v[3] = 1, p.v[130] = 2, p.v[200] = 3, p.v[259] = 6;
  probe_run(&p);
  CHECK(p.out[0] == 3 && p.lse[0] == INFINITY);
  check_case("a dot product that overflows counts as +infinity");
  p.q[0] = 1e30f;
  set_all(p.k, 260, 1);
  p.k[77] = 1e30f;
  probe_run(&p);
  CHECK(p.out[0] == p.v[77] && p.lse[0] == INFINITY);
  probe_free(&p);
}

static void infinite_values(void) {
  float bias[3] = {0, -INFINITY, 0};
  lattn_tensor t = tensor_of(bias, LATTN_F32, 1, 1, 3);
  probe p = probe_scores(1, 3);
  check_case("infinity in a value follows IEEE");
  p.v[1] = INFINITY;
  probe_run(&p);
  CHECK(p.out[0] == INFINITY && isfinite(p.lse[0]));
  p.v[2] = -INFINITY;
  probe_run(&p);
  CHECK(isnan(p.out[0]));
  check_case("a weight of 0 times infinity is NaN");
  p.v[2] = 1;
  p.a.key_bias = &t;
  probe_run(&p);
  CHECK(isnan(p.out[0]));
  probe_free(&p);
}

/* ---- sizes of logits ---- */

static void far_logits(void) {
  static const float sizes[] = {-2.45e5f, 88.8f, -88.8f, 1e10f, -1e30f, 3e38f, -3e38f};
  static const char *const names[] = {"logits_-2.45e5", "logits_+88.8", "logits_-88.8",
                                      "logits_1e10",    "logits_-1e30", "logits_3e38",
                                      "logits_-3e38"};
  for (int i = 0; i < 7; i++) {
    probe p = probe_scores(1, 400);
    check_case("%s", names[i]);
    set_all(p.k, 400, sizes[i]);
    for (int j = 0; j < 400; j++) p.v[j] = (float)(j % 4);
    probe_check(&p);
    CHECK(p.out[0] == 1.5f);                      /* sums of 400 small integers are exact */
    check_case("%s, most keys hidden", names[i]); /* a finite sentinel would win */
    p.a.mask = LATTN_CAUSAL_AT;
    p.a.query_position = 1;
    probe_check(&p);
    CHECK(p.out[0] == 0.5f);
    probe_free(&p);
  }
}

static void spread_logits(void) {
  probe p = probe_scores(1, 2);
  check_case("logits of 3e38 and -3e38");
  p.k[0] = 3e38f;
  p.k[1] = -3e38f;
  probe_run(&p);
  CHECK(p.out[0] == p.v[0] && p.lse[0] == 3e38f);
  check_case("a weight is 0 or normal");
  p.v[0] = 0;
  p.v[1] = 1;
  for (int i = 0; i < 400; i++) {
    float x = -86.0f - (float)i * 0.01f;
    p.k[0] = 0;
    p.k[1] = x;
    probe_run(&p);
    if (x > -87.33f) CHECK(fabs((double)p.out[0] / exp((double)x) - 1) < 1e-6);
    else if (x < -87.34f) CHECK(is_plus_zero(p.out[0]));
    else CHECK(p.out[0] == 0 || p.out[0] >= 0x1p-126f);
  }
  probe_free(&p);
}

static void changing_maximum(void) {
  static const float steps[] = {0.5f, 1, 20, 100};
  for (int i = 0; i < 4; i++) {
    probe p = probe_scores(2, 5000);
    for (int j = 0; j < 5000; j++) p.k[j] = (float)j * steps[i] - 100;
    check_case("rising_max_every_key by %g", (double)steps[i]);
    probe_check(&p);
    check_case("falling_max_every_key by %g", (double)steps[i]);
    for (int j = 0; j < 5000; j++) p.k[j] = -p.k[j];
    probe_check(&p);
    check_case("falling_after_spike of %g", (double)steps[i]);
    for (int j = 0; j < 5000; j++) p.k[j] = (float)(j % 7) * 0.5f;
    p.k[5] = steps[i];
    probe_check(&p);
    probe_free(&p);
  }
}

static void cancel_in_v(void) {
  probe p = probe_scores(1, 4096);
  check_case("cancel_in_V");
  set_all(p.k, 4096, 1);
  for (int j = 0; j < 4096; j++) p.v[j] = j % 2 ? -1e6f : 1e6f;
  probe_check(&p);
  CHECK(is_plus_zero(p.out[0]));
  for (int j = 0; j < 4096; j++) p.k[j] = (float)(j % 13);
  probe_check(&p);
  probe_free(&p);
}

static void denormals(void) {
  probe p = probe_new(4, 300, 1, 1, 16, 16);
  check_case("denormal_QKV");
  for (int64_t i = 0; i < 4 * 16; i++) p.q[i] = f32_of_bits((uint32_t)i * 1000u + 1u);
  for (int64_t i = 0; i < 300 * 16; i++) p.k[i] = f32_of_bits((uint32_t)i * 100u + 1u);
  for (int64_t i = 0; i < 300 * 16; i++) p.v[i] = f32_of_bits((uint32_t)i * 1000u + 1u);
  probe_check(&p);
  CHECK(p.out[5] != 0); /* not flushed */
  check_case("denormal values, large keys");
  for (int64_t i = 0; i < 300 * 16; i++) p.k[i] = (float)(i % 9) * 0.25f;
  for (int64_t i = 0; i < 4 * 16; i++) p.q[i] = (float)(i % 5) * 0.5f;
  probe_check(&p);
  probe_free(&p);
}

static void f16_limits(void) {
  enum { KEYS = 40, DIM = 64 };
  uint16_t q[DIM], k[KEYS * DIM], v[KEYS * DIM], out[DIM];
  float big[KEYS * DIM], lse;
  lattn_tensor Q = tensor_of(q, LATTN_F16, 1, 1, DIM), K = tensor_of(k, LATTN_F16, KEYS, 1, DIM);
  lattn_tensor V = tensor_of(v, LATTN_F16, KEYS, 1, DIM), O = tensor_of(out, LATTN_F16, 1, 1, DIM);
  check_case("f16_max_values_64k");            /* ik_llama #1196 */
  for (int i = 0; i < DIM; i++) q[i] = 0x7bff; /* 65504 */
  for (int i = 0; i < KEYS * DIM; i++) k[i] = v[i] = 0x7bff;
  CHECK_STATUS(lattn_attention(NULL, Q, K, V, O, &lse, NULL), LATTN_OK);
  for (int i = 0; i < DIM; i++) CHECK(out[i] == 0x7bff);
  CHECK(fabs((double)lse / (65504.0 * 65504 * 8) - 1) < 1e-6);
  check_case("a result beyond f16 becomes infinite, with a note");
  for (int i = 0; i < KEYS * DIM; i++) big[i] = i % DIM == 3 ? 65520 : i % DIM == 4 ? -1e9f : 65519;
  V = tensor_of(big, LATTN_F32, KEYS, 1, DIM);
  CHECK_STATUS(lattn_attention(NULL, Q, K, V, O, &lse, NULL), LATTN_OVERFLOWED);
  for (int i = 0; i < DIM; i++) CHECK(out[i] == (i == 3 ? 0x7c00 : i == 4 ? 0xfc00 : 0x7bff));
}

/* ---- options at their limits ---- */

static void learned_sinks(void) {
  float sinks[2] = {100, -INFINITY};
  probe p = probe_new(3, 50, 2, 1, 8, 8);
  uint64_t hash;
  probe_run(&p);
  check_case("sink_dominates");
  hash = probe_hash(&p);
  p.a.sink_logits = sinks;
  probe_check(&p);
  CHECK(fabs((double)p.lse[0] - 100) < 1e-4);
  check_case("sink_-inf");
  sinks[0] = -INFINITY;
  probe_check(&p);
  CHECK(probe_hash(&p) == hash);
  check_case("a learned sink of 0 is softmax-off-by-one");
  sinks[0] = sinks[1] = 0;
  probe_check(&p);
  probe_free(&p);
}

static void softcaps(void) {
  static const float caps[] = {1e-3f, 1e-30f, 1e-6f, 30, 1e30f};
  probe p = probe_new(4, 300, 1, 1, 32, 8);
  uint64_t hash;
  probe_run(&p);
  hash = probe_hash(&p);
  for (int i = 0; i < 5; i++) {
    check_case(i ? "softcap of %g" : "softcap_tiny (%g)", (double)caps[i]);
    p.a.softcap = caps[i];
    probe_check(&p);
  }
  check_case("softcap of infinity is none");
  p.a.softcap = INFINITY;
  probe_run(&p);
  CHECK(probe_hash(&p) == hash);
  check_case("softcap of infinite scores");
  p.a.softcap = 2;
  p.k[0] = INFINITY;
  p.a.scale = 1;
  set_all(p.q, 4 * 32, 1);
  probe_run(&p);
  CHECK(isfinite(p.lse[0]) && isfinite(p.out[0]));
  probe_free(&p);
}

static void far_positions(void) {
  static const int64_t starts[] = {2048, 131072, 2147483648 - 2048, 2147483648 - 4096};
  float slope = 0.5f;
  probe p = probe_new(8, 2048, 1, 1, 8, 8);
  uint64_t hash;
  check_case("alibi_far");
  p.a.mask = LATTN_CAUSAL_AT;
  p.a.alibi_slopes = &slope;
  p.a.query_position = 2147483647 - 8;
  probe_check(&p);
  p.a.query_position = 2040;
  probe_check(&p);
  hash = probe_hash(&p);
  for (int i = 0; i < 4; i++) {
    check_case("pos_%" PRId64 ": moved by whole segments, the same bits", starts[i] + 2047);
    p.a.key_position = starts[i];
    p.a.query_position = starts[i] + 2040;
    probe_run(&p);
    CHECK(probe_hash(&p) == hash);
  }
  check_case("pos_131071: unaligned");
  p.a.key_position = 131071;
  p.a.query_position = 131071 + 2040;
  probe_check(&p);
  check_case("pos_2^31-1: unaligned");
  p.a.key_position = 2147483647 - 2047;
  p.a.query_position = 2147483647 - 7;
  probe_check(&p);
  probe_free(&p);
}

static void scales(void) {
  probe p = probe_new(5, 200, 1, 1, 64, 8);
  uint64_t hash;
  check_case("scale_0 is 1 / sqrt(key dim)");
  probe_check(&p);
  hash = probe_hash(&p);
  p.a.scale = 0.125f;
  probe_run(&p);
  CHECK(probe_hash(&p) == hash);
  check_case("scale_negative");
  p.a.scale = -0.125f;
  probe_check(&p);
  for (int i = 0; i < 5 * 64; i++) p.q[i] = -p.q[i];
  probe_run(&p);
  CHECK(probe_hash(&p) == hash);
  probe_free(&p);
}

static void odd_dims(void) {
  static const int64_t dims[][2] = {{1, 1},     {46, 46},   {3, 17},    {80, 96}, {112, 112},
                                    {192, 128}, {256, 256}, {576, 512}, {1, 300}, {600, 1}};
  for (size_t i = 0; i < sizeof dims / sizeof *dims; i++) {
    probe p = probe_new(9, 140, 2, 1, dims[i][0], dims[i][1]);
    check_case("head_dim_%" PRId64 " / %" PRId64, dims[i][0], dims[i][1]);
    p.a.mask = LATTN_CAUSAL;
    probe_check(&p);
    probe_free(&p);
  }
}

/* MLA: the value is the first 512 dims of the key's row. */
static void value_is_key_prefix(void) {
  probe p = probe_new(6, 150, 4, 1, 576, 512);
  lattn_tensor view = tensor_of(p.k, LATTN_F32, 150, 1, 512);
  lattn_exec exec;
  uint64_t hash;
  check_case("Dk576_Dv512_view");
  for (int64_t t = 0; t < 150; t++) memcpy(p.v + t * 512, p.k + t * 576, 512 * 4);
  probe_check(&p);
  hash = probe_hash(&p);
  view.stride_token = 576;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_attention_scratch(&p.a, probe_q(&p), probe_k(&p), view, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  set_all(p.out, probe_outputs(&p), 7);
  CHECK_STATUS(lattn_attention(&p.a, probe_q(&p), probe_k(&p), view, probe_out(&p), p.lse, &exec),
               LATTN_OK);
  CHECK(probe_hash(&p) == hash);
  free(exec.scratch);
  probe_free(&p);
}

static void strides_and_aliases(void) {
  probe p = probe_new(6, 30, 2, 1, 8, 8);
  lattn_tensor q, k, out;
  uint64_t hash;
  probe_run(&p);
  hash = probe_hash(&p);
  check_case("stride_negative is refused");
  k = probe_k(&p);
  k.stride_token = -8;
  CHECK_STATUS(lattn_attention(&p.a, probe_q(&p), k, probe_v(&p), probe_out(&p), p.lse, NULL),
               LATTN_E_STRIDE);
  CHECK(probe_hash(&p) == hash);
  check_case("alias_out_eq_q");
  q = probe_q(&p);
  CHECK_STATUS(lattn_attention(&p.a, q, probe_k(&p), probe_v(&p), q, p.lse, NULL), LATTN_OK);
  memcpy(p.out, p.q, (size_t)probe_outputs(&p) * 4);
  CHECK(probe_hash(&p) == hash);
  check_case("any other overlap is refused");
  out = probe_out(&p);
  out.data = p.q + 8;
  out.n_tokens = q.n_tokens = 5;
  CHECK_STATUS(lattn_attention(&p.a, q, probe_k(&p), probe_v(&p), out, p.lse, NULL), LATTN_E_ALIAS);
  out.data = p.v;
  out.n_tokens = q.n_tokens = 3;
  CHECK_STATUS(lattn_attention(&p.a, q, probe_k(&p), probe_v(&p), out, p.lse, NULL), LATTN_E_ALIAS);
  probe_free(&p);
}

static void single_key(void) {
  float gate_values[8] = {0, 0, 0, 0, -1, -1, -1, -1};
  lattn_tensor gate = tensor_of(gate_values, LATTN_F32, 2, 1, 4);
  probe p = probe_new(2, 1, 1, 1, 8, 4);
  check_case("single_key");
  probe_run(&p);
  for (int i = 0; i < 8; i++) CHECK(same_f32(p.out[i], p.v[i % 4]));
  check_case("a zero result is +0");
  set_all(p.v, 4, -0.0f);
  probe_run(&p);
  for (int i = 0; i < 8; i++) CHECK(is_plus_zero(p.out[i]));
  p.a.gate = &gate;
  probe_run(&p);
  for (int i = 0; i < 8; i++) CHECK(is_plus_zero(p.out[i]));
  check_case("a gate of 0 gives +0");
  set_all(p.v, 4, -3);
  probe_run(&p);
  for (int i = 0; i < 8; i++) CHECK(i < 4 ? is_plus_zero(p.out[i]) : p.out[i] == 3);
  check_case("of NaN, too");
  set_all(p.v, 4, NAN);
  probe_run(&p);
  for (int i = 0; i < 8; i++) CHECK(i < 4 ? is_plus_zero(p.out[i]) : isnan(p.out[i]));
  probe_free(&p);
}

/* Spoils the scores of keys beyond the query, which a causal row does not see. */
static void spoil_hidden(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                         int64_t first_key, float scores[16]) {
  (void)user, (void)sequence, (void)row, (void)head;
  for (int t = 0; t < 16; t++)
    if (first_key + t > query) scores[t] = t & 1 ? NAN : INFINITY;
}

static void all_away(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                     int64_t first_key, float scores[16]) {
  (void)user, (void)sequence, (void)query, (void)head, (void)first_key;
  for (int t = 0; t < 16; t++)
    if (row == 2) scores[t] = -INFINITY;
}

static void callbacks(void) {
  probe p = probe_new(40, 150, 2, 1, 8, 8);
  uint64_t hash;
  check_case("a callback may spoil hidden scores");
  p.a.mask = LATTN_CAUSAL;
  probe_run(&p);
  hash = probe_hash(&p);
  p.a.score = spoil_hidden;
  probe_run(&p);
  CHECK(probe_hash(&p) == hash);
  check_case("a callback may empty a row");
  p.a.score = all_away;
  probe_run(&p);
  check_empty(&p, 2, 3, -INFINITY);
  probe_free(&p);
}

/* ---- sigmoid attention ---- */

static void sigmoid_logits(void) {
  static const float sizes[] = {1e30f, INFINITY, 88, 17.5f, -17.5f, -88, -1e30f, -INFINITY};
  for (int i = 0; i < 8; i++) {
    probe p = probe_scores(1, 400);
    float low = 1;
    check_case("sigmoid of logits of %g", (double)sizes[i]);
    p.a.weighting = LATTN_SIGMOID;
    p.a.lse_low = &low;
    set_all(p.k, 400, sizes[i]);
    for (int j = 0; j < 400; j++) p.v[j] = (float)(j % 4);
    probe_check(&p);
    if (i < 4) CHECK(i == 3 ? p.out[0] < 600.001f : p.out[0] == 600); /* of small integers: exact */
    if (i > 4) CHECK(is_plus_zero(p.out[0]));
    CHECK(isnan(p.lse[0]) && is_plus_zero(low));
    check_case("sigmoid of logits of %g, most keys hidden", (double)sizes[i]);
    p.a.mask = LATTN_CAUSAL_AT;
    p.a.query_position = 2;
    probe_check(&p);
    if (i < 3) CHECK(p.out[0] == 3);
    check_case("sigmoid of logits of %g, a bias of as much", (double)sizes[i]);
    p.a.sigmoid_bias = -sizes[i];
    if (isinf(sizes[i])) p.a.sigmoid_bias = 3e38f;
    probe_check(&p);
    if (isfinite(sizes[i])) CHECK(p.out[0] == 1.5f);
    probe_free(&p);
  }
}

/* Far apart in one row; weights are 0 or normal. */
static void sigmoid_spread(void) {
  probe p = probe_scores(1, 5000);
  p.a.weighting = LATTN_SIGMOID;
  check_case("sigmoid: logits of every size");
  for (int j = 0; j < 5000; j++) p.k[j] = ldexpf(j % 2 ? -1 : 1, j % 140 - 40);
  probe_check(&p);
  check_case("sigmoid: one logit of +infinity, one of -infinity and one of NaN");
  p.k[3] = INFINITY;
  p.k[4000] = -INFINITY;
  probe_check(&p);
  p.k[2500] = NAN;
  probe_check(&p);
  CHECK(isnan(p.out[0]));
  probe_free(&p);
  check_case("sigmoid: a weight is 0 or normal");
  p = probe_scores(1, 1);
  p.a.weighting = LATTN_SIGMOID;
  p.v[0] = 1;
  for (int i = 0; i < 400; i++) {
    p.k[0] = -86.0f - (float)i * 0.01f;
    probe_check(&p);
    CHECK(is_plus_zero(p.out[0]) || p.out[0] >= 0x1p-126f);
  }
  probe_free(&p);
}

/* The sigmoid's bias comes last: softcap, ALiBi and the other biases do not see it. */
static void sigmoid_bias_is_last(void) {
  float slope = 0.25f, bias[300];
  lattn_tensor t = tensor_of(bias, LATTN_F32, 4, 1, 300), same;
  probe p = probe_new(4, 300, 1, 1, 32, 8);
  uint64_t hash;
  check_case("sigmoid: the bias is added last");
  p.a.weighting = LATTN_SIGMOID;
  p.a.sigmoid_bias = -2.5f;
  p.a.softcap = 3;
  p.a.alibi_slopes = &slope;
  p.a.key_bias = NULL;
  probe_check(&p);
  hash = probe_hash(&p);
  check_case("sigmoid: a bias of each pair does as much");
  set_all(bias, 300, -2.5f);
  same = t;
  same.stride_token = LATTN_BROADCAST;
  p.a.pair_bias = &same;
  p.a.sigmoid_bias = 0;
  probe_check(&p);
  CHECK(probe_hash(&p) == hash);
  probe_free(&p);
}

/* q, k, v of the golden values: sin(0.7 (t d + i) + s), from three formulas in float64. */
static void golden_fill(float *x, int64_t dims, double s) {
  for (int64_t i = 0; i < 5 * dims; i++) x[i] = (float)sin(0.7 * (double)i + s);
}

/* Values computed in float64 by another program, to 12 digits. Here the inputs are rounded to
   float32: 2u sum |q_d k_d| / sqrt(3) <= 3.5u of a score, so as much of a weight, and u of a value.
   The call may be off by 10u of a score (ref.h), 7u of a weight and 8u of the sum. No |v| is above
   1, and no sum of weights above 2.7: 30u * 2.7. */
static void golden_values(void) {
  static const double sigmoid[10] = {
      0.067632776906,  -0.125094964806, -0.097707506705, -0.269766677075, -0.400025410862,
      -0.320064786835, 0.095821199227,  0.110693002230,  0.150077406556,  0.019148636921};
  static const double off_by_one[10] = {
      0.158706526755,  -0.293546831685, -0.153577392499, -0.466155977699, -0.570927108994,
      -0.467552245358, 0.128281166665,  0.129731539497,  0.154425740852,  0.026647416661};
  static const float zero = 0;
  probe p = probe_new(5, 5, 1, 1, 3, 2);
  golden_fill(p.q, 3, 0.1);
  golden_fill(p.k, 3, 1.3);
  golden_fill(p.v, 2, 2.9);
  p.a.mask = LATTN_CAUSAL;
  check_case("golden values of sigmoid attention, bias -ln 5");
  p.a.weighting = LATTN_SIGMOID;
  p.a.sigmoid_bias = -1.609437912434f;
  probe_check(&p);
  for (int i = 0; i < 10; i++) CHECK(fabs((double)p.out[i] - sigmoid[i]) <= 30 * 2.7 * REF_U);
  check_case("golden values of softmax-plus-one");
  p.a.weighting = LATTN_SOFTMAX;
  p.a.sigmoid_bias = 0;
  p.a.sink_logits = &zero;
  probe_check(&p);
  for (int i = 0; i < 10; i++) CHECK(fabs((double)p.out[i] - off_by_one[i]) <= 30 * 2.7 * REF_U);
  probe_free(&p);
}

/* ---- the caller's floating-point environment ---- */

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#define HAVE_FP_WORD 1
typedef unsigned int fp_word;
static fp_word fp_get(void) { return _mm_getcsr(); }
static void fp_set(fp_word w) { _mm_setcsr(w); }
static const struct {
  const char *name;
  fp_word word;
} fp_words[] = {
    {"FTZ and DAZ", 0x1f80 | 0x8040},
    {"rounding down", 0x1f80 | 0x2000},
    {"rounding up", 0x1f80 | 0x4000},
    {"rounding to zero", 0x1f80 | 0x6000},
    {"rounding up, FTZ and DAZ, sticky flags", 0x1f80 | 0x4000 | 0x8040 | 0x15},
    {"exceptions unmasked", 0x0000},
    {"invalid and overflow unmasked", 0x1f80 & ~0x480},
};
#elif defined(__aarch64__)
#define HAVE_FP_WORD 1
typedef uint64_t fp_word;
static fp_word fp_get(void) {
  fp_word w;
  __asm__ volatile("mrs %0, fpcr" : "=r"(w));
  return w;
}
static void fp_set(fp_word w) { __asm__ volatile("msr fpcr, %0" : : "r"(w)); }
static const struct {
  const char *name;
  fp_word word;
} fp_words[] = {
    {"flush to zero", 1u << 24},    {"rounding up", 1u << 22}, {"rounding down", 2u << 22},
    {"rounding to zero", 3u << 22}, {"default NaN", 1u << 25},
};
#else
#define HAVE_FP_WORD 0
#endif

#if HAVE_FP_WORD
/* Through a volatile pointer: nothing of the call can move across the changes of the word. */
static lattn_status (*volatile attention_function)(const lattn_attn *, lattn_tensor, lattn_tensor,
                                                   lattn_tensor, lattn_tensor, float *,
                                                   const lattn_exec *) = lattn_attention;
static lattn_status (*volatile merge_function)(const lattn_merge_options *, int64_t,
                                               const lattn_partial *, lattn_tensor, float *,
                                               const lattn_exec *) = lattn_merge;

/* Hash of attention and of a merge under `word`; *after gets the word on return. */
static uint64_t hash_under(probe *p, lattn_partial *part, lattn_exec *exec, fp_word word,
                           fp_word *after) {
  fp_word kept = fp_get();
  lattn_tensor q = probe_q(p), k = probe_k(p), v = probe_v(p), out = probe_out(p);
  lattn_status status, merged;
  uint64_t hash;
  fp_set(word);
  status = attention_function(&p->a, q, k, v, out, p->lse, exec);
  *after = fp_get();
  fp_set(kept);
  CHECK_STATUS(status, LATTN_OK);
  hash = probe_hash(p);
  fp_set(word);
  merged = merge_function(NULL, 1, part, out, p->lse, NULL);
  if (*after == word) *after = fp_get();
  fp_set(kept);
  CHECK_STATUS(merged, LATTN_OK);
  return hash * 31 + probe_hash(p);
}

static void fp_environment(void) {
  float slopes[2] = {0.5f, 0.25f}, sinks[2] = {1, -2};
  probe p = probe_new(40, 2100, 2, 1, 24, 24);
  lattn_partial part;
  lattn_exec exec;
  uint64_t hash;
  fp_word after;
  for (int64_t i = 0; i < 2100 * 24; i += 3) p.v[i] = f32_of_bits((uint32_t)i); /* denormal */
  p.a.alibi_slopes = slopes;
  p.a.sink_logits = sinks;
  p.a.softcap = 20;
  memset(&part, 0, sizeof part);
  part.size = sizeof part;
  part.n_rows = 80;
  part.value_dim = 24;
  part.maximum = floats(80);
  part.sum = floats(80);
  part.output = floats(80 * 24);
  p.a.partial = &part;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = 5;
  exec.parallel_for = test_parallel_threads; /* threads inherit the caller's word, or not */
  exec.scratch_bytes = lattn_attention_scratch(&p.a, probe_q(&p), probe_k(&p), probe_v(&p), 5);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  hash = hash_under(&p, &part, &exec, fp_get(), &after);
  for (size_t i = 0; i < sizeof fp_words / sizeof *fp_words; i++)
    for (int how = 0; how < 2; how++) {
      check_case("caller's word: %s, %s", fp_words[i].name, how ? "threads" : "no exec");
      CHECK(hash_under(&p, &part, how ? &exec : NULL, fp_words[i].word, &after) == hash);
      CHECK(after == fp_words[i].word);
    }
  free(part.maximum);
  free(part.sum);
  free(part.output);
  free(exec.scratch);
  probe_free(&p);
}
#endif

int main(void) {
  zero_keys();
  q_longer_than_kv();
  for (int32_t weighting = LATTN_SOFTMAX; weighting <= LATTN_SIGMOID; weighting++) {
    neg_inf_bias(weighting);
    bad_slots(weighting);
    nan_in_query(weighting);
  }
  neg_inf_from_data();
  empty_sequences();
  infinite_scores();
  infinite_values();
  far_logits();
  spread_logits();
  changing_maximum();
  cancel_in_v();
  denormals();
  f16_limits();
  learned_sinks();
  softcaps();
  far_positions();
  scales();
  odd_dims();
  value_is_key_prefix();
  strides_and_aliases();
  single_key();
  callbacks();
  sigmoid_logits();
  sigmoid_spread();
  sigmoid_bias_is_last();
  golden_values();
#if HAVE_FP_WORD
  fp_environment();
#endif
  return test_summary();
}
