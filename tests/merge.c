/* merge.c - lattn_merge and lattn_partial_import: aligned ranges of segments merge to the bits of
 * one call, everything else to rounding; empty parts are exact identities; the three modes.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

enum { MAX_PARTS = 1024, SEGMENT = 2048 };

/* ---- parts ---- */

static lattn_partial part_new(int64_t n_rows, int64_t value_dim) {
  lattn_partial p;
  memset(&p, 0, sizeof p);
  p.size = sizeof p;
  p.n_rows = n_rows;
  p.value_dim = value_dim;
  p.maximum = (float *)ref_memory(n_rows, sizeof(float));
  p.sum = (float *)ref_memory(n_rows, sizeof(float));
  p.output = (float *)ref_memory(n_rows * value_dim, sizeof(float));
  return p;
}

static void part_free(lattn_partial *p) {
  free(p->maximum);
  free(p->sum);
  free(p->output);
}

static void parts_free(lattn_partial *parts, int n) {
  for (int i = 0; i < n; i++) part_free(&parts[i]);
}

/* A part that saw nothing, its unread members full of NaN. */
static lattn_partial part_empty(int64_t n_rows, int64_t value_dim) {
  lattn_partial p = part_new(n_rows, value_dim);
  for (int64_t i = 0; i < n_rows; i++) p.maximum[i] = -INFINITY;
  memset(p.sum, 0xff, (size_t)n_rows * 4);
  memset(p.output, 0xff, (size_t)(n_rows * value_dim) * 4);
  return p;
}

/* A part without place in the order of segments, of random contents. */
static lattn_partial part_random(test_rng *r, int64_t n_rows, int64_t value_dim, float spread) {
  lattn_partial p = part_new(n_rows, value_dim);
  for (int64_t i = 0; i < n_rows; i++) {
    p.maximum[i] = rng_normal(r) * spread;
    p.sum[i] = 1 + fabsf(rng_normal(r)) * 20;
    for (int64_t d = 0; d < value_dim; d++) p.output[i * value_dim + d] = rng_normal(r) * p.sum[i];
  }
  return p;
}

static uint64_t hash_part(const lattn_partial *p) {
  uint64_t hash = HASH_SEED;
  for (int64_t i = 0; i < p->n_rows; i++) {
    hash = hash_f32(hash, p->maximum + i, 1);
    if (p->maximum[i] == -INFINITY) continue; /* the rest of an empty row is not promised */
    hash = hash_f32(hash, p->sum + i, 1);
    hash = hash_f32(hash, p->output + i * p->value_dim, p->value_dim);
  }
  return hash;
}

/* ---- a problem: one attention call, whose keys can be cut ---- */

typedef struct problem {
  int64_t n_queries, n_keys, heads, kv_heads, key_dim, value_dim, first_key;
  float *q, *k, *v, *out, *lse;
  lattn_attn a;
  lattn_merge_options merge;
} problem;

static problem problem_new(uint64_t seed, int64_t n_queries, int64_t n_keys, int64_t first_key) {
  test_rng r = rng_seed(seed);
  problem p;
  int64_t n;
  memset(&p, 0, sizeof p);
  p.n_queries = n_queries;
  p.n_keys = n_keys;
  p.first_key = first_key;
  p.heads = 4;
  p.kv_heads = 2;
  p.key_dim = 6;
  p.value_dim = 5;
  n = n_queries * p.heads;
  p.q = (float *)ref_memory(n * p.key_dim, sizeof(float));
  p.k = (float *)ref_memory(n_keys * p.kv_heads * p.key_dim, sizeof(float));
  p.v = (float *)ref_memory(n_keys * p.kv_heads * p.value_dim, sizeof(float));
  p.out = (float *)ref_memory(n * p.value_dim, sizeof(float));
  p.lse = (float *)ref_memory(n, sizeof(float));
  for (int64_t i = 0; i < n * p.key_dim; i++) p.q[i] = rng_normal(&r);
  for (int64_t i = 0; i < n_keys * p.kv_heads * p.key_dim; i++) p.k[i] = rng_normal(&r) * 2;
  for (int64_t i = 0; i < n_keys * p.kv_heads * p.value_dim; i++) p.v[i] = rng_normal(&r);
  p.a.size = sizeof p.a;
  p.a.mask = LATTN_CAUSAL_AT;
  p.a.key_position = first_key;
  p.a.query_position = first_key + n_keys - n_queries;
  p.merge.size = sizeof p.merge;
  return p;
}

static void problem_free(problem *p) {
  free(p->q);
  free(p->k);
  free(p->v);
  free(p->out);
  free(p->lse);
}

static int64_t problem_rows(const problem *p) { return p->n_queries * p->heads; }
static lattn_tensor problem_q(const problem *p) {
  return tensor_of(p->q, LATTN_F32, p->n_queries, p->heads, p->key_dim);
}
static lattn_tensor problem_k(const problem *p, int64_t from, int64_t to) {
  const float *k = p->k + from * p->kv_heads * p->key_dim;
  return tensor_of(k, LATTN_F32, to - from, p->kv_heads, p->key_dim);
}
static lattn_tensor problem_v(const problem *p, int64_t from, int64_t to) {
  const float *v = p->v + from * p->kv_heads * p->value_dim;
  return tensor_of(v, LATTN_F32, to - from, p->kv_heads, p->value_dim);
}
static lattn_tensor problem_out(const problem *p) {
  return tensor_of(p->out, LATTN_F32, p->n_queries, p->heads, p->value_dim);
}

static uint64_t problem_hash(const problem *p) {
  uint64_t hash = hash_f32(HASH_SEED, p->out, problem_rows(p) * p->value_dim);
  return hash_f32(hash, p->lse, problem_rows(p));
}

/* Attention over keys from ... to - 1 (indices of k), its partial; out and lse where whole. */
static lattn_partial problem_attend(problem *p, int64_t from, int64_t to, int whole) {
  lattn_partial part = part_new(problem_rows(p), p->value_dim);
  lattn_attn a = p->a;
  lattn_tensor out = problem_out(p);
  a.key_position = p->first_key + from;
  a.partial = &part;
  lattn_tensor q = problem_q(p), k = problem_k(p, from, to), v = problem_v(p, from, to);
  lattn_exec exec;
  if (!whole) {
    out.data = NULL;
    a.sink_logits = NULL;
    a.gate = NULL;
  }
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_attention_scratch(&a, q, k, v, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  CHECK_STATUS(lattn_attention(&a, q, k, v, out, whole ? p->lse : NULL, &exec), LATTN_OK);
  free(exec.scratch);
  return part;
}

static void problem_merge(problem *p, int64_t n, const lattn_partial *parts, int threads) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = threads;
  exec.parallel_for = test_parallel_threads;
  memset(p->out, 0x7e, (size_t)(problem_rows(p) * p->value_dim) * 4);
  memset(p->lse, 0x7e, (size_t)problem_rows(p) * 4);
  CHECK_STATUS(lattn_merge(&p->merge, n, parts, problem_out(p), p->lse, threads ? &exec : NULL),
               LATTN_OK);
}

/* Parts of the keys between cuts: absolute key indices, rising, the first and last included. */
static int problem_cut(problem *p, lattn_partial *parts, const int64_t *cuts, int n_cuts) {
  for (int i = 0; i + 1 < n_cuts; i++)
    parts[i] = problem_attend(p, cuts[i] - p->first_key, cuts[i + 1] - p->first_key, 0);
  return n_cuts - 1;
}

static void shuffle(test_rng *r, lattn_partial *parts, int n) {
  for (int i = n - 1; i > 0; i--) {
    int64_t j = rng_below(r, i + 1);
    lattn_partial t = parts[i];
    parts[i] = parts[j];
    parts[j] = t;
  }
}

/* ---- split keys ---- */

static void set_options(problem *p, int which) {
  static const float slopes[4] = {0.5f, 0.25f, 0.125f, 0.0625f}, sinks[4] = {1, -3, 8, 0};
  if (which & 1) p->a.window = 3000;
  if (which & 1) p->a.sinks = 5;
  if (which & 2) p->a.alibi_slopes = slopes;
  if (which & 4) p->a.softcap = 15;
  if (which & 8) p->a.sink_logits = p->merge.sink_logits = sinks;
}

/* Cuts at aligned ranges: the bits of the whole, in any order of the list, with any threads. */
static void check_aligned(uint64_t seed, int64_t first_key, int64_t n_keys, const int64_t *segments,
                          int n) {
  for (int which = 0; which < 16; which++) {
    problem p = problem_new(seed, 20, n_keys, first_key);
    test_rng r = rng_seed(seed);
    int64_t cuts[16];
    lattn_partial whole, parts[16], merged = part_new(problem_rows(&p), p.value_dim);
    uint64_t want;
    int n_parts;
    check_case("aligned split of %" PRId64 " keys from %" PRId64 " in %d, options %d", n_keys,
               first_key, n - 1, which);
    set_options(&p, which);
    whole = problem_attend(&p, 0, n_keys, 1);
    want = problem_hash(&p);
    for (int i = 0; i < n; i++) cuts[i] = segments[i] * SEGMENT;
    cuts[0] = first_key;
    cuts[n - 1] = first_key + n_keys;
    n_parts = problem_cut(&p, parts, cuts, n);
    for (int order = 0; order < 3; order++) {
      problem_merge(&p, n_parts, parts, order * 3);
      CHECK(problem_hash(&p) == want);
      shuffle(&r, parts, n_parts);
    }
    problem_merge(&p, 1, &whole, 0);
    CHECK(problem_hash(&p) == want);
    p.merge.partial = &merged;
    problem_merge(&p, n_parts, parts, 0);
    CHECK(hash_part(&merged) == hash_part(&whole));
    CHECK_I64(merged.first_segment, whole.first_segment);
    CHECK_I64(merged.n_segments, whole.n_segments);
    parts_free(parts, n_parts);
    part_free(&whole);
    part_free(&merged);
    problem_free(&p);
  }
}

static void aligned_splits(void) {
  static const int64_t a[] = {0, 2, 3, 4, 5}, b[] = {0, 4, 5}, c[] = {0, 1, 2, 3, 4, 5};
  static const int64_t d[] = {0, 1, 2, 4, 5}, e[] = {2, 4, 6, 7, 8}, f[] = {3, 4, 8};
  check_aligned(1, 0, 9000, a, 5);
  check_aligned(2, 0, 9000, b, 3);
  check_aligned(3, 0, 9000, c, 6);
  check_aligned(4, 0, 9000, d, 5);
  check_aligned(5, 2 * SEGMENT, 5 * SEGMENT + 700, e, 5);
  check_aligned(6, 3 * SEGMENT + 100, 4 * SEGMENT, f, 3);
}

/* out and lse against the reference of the whole; `parts` merges more than the bound counts. */
static void check_reference(problem *p, int parts) {
  ref_call c;
  ref_row r;
  ref_open(&c, &p->a, problem_q(p), problem_k(p, 0, p->n_keys), problem_v(p, 0, p->n_keys),
           LATTN_F32);
  r = ref_row_new(&c);
  for (int64_t row = 0; row < problem_rows(p); row += 7) {
    double more = 8 * parts * REF_U; /* an exp within 2 ulp and two roundings each */
    ref_attend(&c, row / p->heads, row % p->heads, &r);
    CHECK(ref_ratio((double)p->lse[row], r.lse, r.lse_bound + more) <= 1);
    for (int64_t d = 0; d < p->value_dim; d++)
      CHECK(ref_ratio((double)p->out[row * p->value_dim + d], r.out[d], r.bound[d] + 4 * more) <=
            1); /* values are below 4 */
  }
  ref_row_free(&r);
  ref_close(&c);
}

static void other_splits(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(60); seed++) {
    test_rng r = rng_seed(seed + 100);
    int64_t n_keys = rng_range(&r, 1, 7000), first = rng_below(&r, 3) * 1000, cuts[12];
    int n = (int)rng_range(&r, 2, 11), n_parts;
    problem p = problem_new(seed, 20, n_keys, first);
    lattn_partial parts[16];
    check_case("split anywhere, seed %" PRIu64, seed);
    set_options(&p, (int)rng_below(&r, 16));
    for (int i = 0; i < n; i++) cuts[i] = first + rng_below(&r, n_keys + 1);
    cuts[0] = first;
    cuts[n - 1] = first + n_keys;
    for (int i = 1; i < n; i++) /* rising; empty parts happen */
      for (int j = i; j > 0 && cuts[j] < cuts[j - 1]; j--) {
        int64_t t = cuts[j];
        cuts[j] = cuts[j - 1];
        cuts[j - 1] = t;
      }
    n_parts = problem_cut(&p, parts, cuts, n);
    problem_merge(&p, n_parts, parts, 2);
    check_reference(&p, n_parts);
    parts_free(parts, n_parts);
    problem_free(&p);
  }
}

/* The learned sink and the gate come once, at the merge: the bits of one call. */
static void sink_and_gate(void) {
  static const float sinks[4] = {2, -INFINITY, 30, -1};
  problem p = problem_new(9, 30, 3 * SEGMENT, 0);
  int64_t cuts[4] = {0, SEGMENT, 2 * SEGMENT, 3 * SEGMENT};
  float *gates = (float *)ref_memory(30 * 4 * 5, sizeof(float));
  lattn_tensor gate = tensor_of(gates, LATTN_F32, 30, 4, 5);
  lattn_partial parts[3], whole;
  uint64_t want;
  check_case("learned sink and gate are applied once");
  for (int i = 0; i < 600; i++) gates[i] = (float)(i % 11) * 0.25f - 1;
  p.a.gate = p.merge.gate = &gate;
  p.a.sink_logits = p.merge.sink_logits = sinks;
  whole = problem_attend(&p, 0, p.n_keys, 1);
  want = problem_hash(&p);
  problem_cut(&p, parts, cuts, 4);
  problem_merge(&p, 3, parts, 0);
  CHECK(problem_hash(&p) == want);
  problem_merge(&p, 1, &whole, 0);
  CHECK(problem_hash(&p) == want);
  parts_free(parts, 3);
  part_free(&whole);
  problem_free(&p);
  free(gates);
}

/* Partials of sigmoid attention are sums, which linear mode adds in the order of the list: two
   halves that are aligned ranges give the bits of the whole (the tree's last sum), and so does the
   whole by itself; others add one rounding a part to the bound of the whole. */
static void sigmoid_parts(void) {
  for (int n = 1; n < 12; n++) {
    int64_t cuts[13], n_keys = n < 3 ? 5 * SEGMENT + 77 : 4999;
    problem p = problem_new((uint64_t)n + 300, 20, n_keys, n < 3 ? 0 : 700);
    lattn_partial whole, parts[12];
    uint64_t want;
    ref_call c;
    ref_row r;
    check_case("sigmoid: %d parts", n);
    p.a.weighting = LATTN_SIGMOID;
    p.a.sigmoid_bias = -3;
    p.a.window = 3000; /* some rows see nothing of some parts */
    p.merge.mode = LATTN_MERGE_LINEAR;
    whole = problem_attend(&p, 0, n_keys, 1);
    want = problem_hash(&p);
    for (int i = 0; i <= n; i++) cuts[i] = p.first_key + i * n_keys / n;
    if (n == 2) cuts[1] = 4 * SEGMENT;
    problem_cut(&p, parts, cuts, n + 1);
    for (int i = 0; i < n; i++) {
      parts[i].weight = 1;
      for (int64_t row = 0; row < problem_rows(&p); row++)
        CHECK(parts[i].maximum[row] == -INFINITY
                  ? n > 1
                  : parts[i].maximum[row] == 0 && parts[i].sum[row] == 1);
    }
    problem_merge(&p, n, parts, 2);
    if (n < 3) CHECK(problem_hash(&p) == want);
    ref_open(&c, &p.a, problem_q(&p), problem_k(&p, 0, n_keys), problem_v(&p, 0, n_keys),
             LATTN_F32);
    r = ref_row_new(&c);
    for (int64_t row = 0; row < problem_rows(&p); row += 7) {
      ref_attend(&c, row / p.heads, row % p.heads, &r);
      CHECK(isnan(p.lse[row]));
      for (int64_t d = 0; d < p.value_dim; d++) {
        double more = n * REF_U * c.absolute[d]; /* sum w |v| */
        CHECK(ref_ratio((double)p.out[row * p.value_dim + d], r.out[d], r.bound[d] + more) <= 1);
      }
    }
    ref_row_free(&r);
    ref_close(&c);
    parts_free(parts, n);
    part_free(&whole);
    problem_free(&p);
  }
}

/* ---- identities, order ---- */

static void identities(void) {
  problem p = problem_new(10, 25, 1, 0);
  test_rng r = rng_seed(10);
  lattn_partial parts[4], merged = part_new(100, 5);
  uint64_t want, part_want;
  for (int i = 0; i < 2; i++) parts[i] = part_random(&r, 100, 5, 5);
  for (int i = 2; i < 4; i++) parts[i] = part_empty(100, 5);
  parts[0].output[3] = -0.0f;
  parts[0].maximum[7] = parts[1].maximum[7] = -INFINITY; /* a row that is empty in all */
  parts[1].maximum[8] = -INFINITY;
  parts[1].output[8 * 5] = NAN;
  p.merge.partial = &merged;
  check_case("no part, or only empty ones: +0 and -infinity");
  for (int n = 0; n < 3; n++) {
    problem_merge(&p, n, parts + 2, 0);
    for (int64_t i = 0; i < 100; i++) CHECK(p.lse[i] == -INFINITY);
    for (int64_t i = 0; i < 500; i++) CHECK(bits_of_f32(p.out[i]) == 0);
    for (int64_t i = 0; i < 100; i++) CHECK(merged.maximum[i] == -INFINITY);
  }
  check_case("an empty part changes no bit, wherever it stands");
  problem_merge(&p, 2, parts, 0);
  want = problem_hash(&p);
  part_want = hash_part(&merged);
  for (int place = 0; place < 4; place++) {
    lattn_partial list[4];
    int at = 0;
    for (int i = 0; i < 4; i++) list[i] = parts[i == place ? 3 : at++];
    problem_merge(&p, 4, list, 0);
    CHECK(problem_hash(&p) == want);
    CHECK(hash_part(&merged) == part_want);
  }
  check_case("a part beside an empty one stays as it is, -0 included");
  { /* parts[0] alone */
    lattn_partial list[2];
    list[0] = parts[2];
    list[1] = parts[0];
    problem_merge(&p, 2, list, 0);
    CHECK(hash_part(&merged) == hash_part(&parts[0]));
  }
  check_case("two parts commute, bit for bit");
  {
    lattn_partial list[2];
    list[0] = parts[1];
    list[1] = parts[0];
    problem_merge(&p, 2, list, 0);
    CHECK(problem_hash(&p) == want);
    CHECK(hash_part(&merged) == part_want);
  }
  parts_free(parts, 4);
  part_free(&merged);
  problem_free(&p);
}

static void extremes(void) {
  problem p = problem_new(11, 25, 1, 0);
  test_rng r = rng_seed(11);
  lattn_partial parts[2];
  for (int i = 0; i < 2; i++) parts[i] = part_random(&r, 100, 5, 5);
  check_case("a spread of 1e4 against -1e4");
  for (int i = 0; i < 100; i++) {
    parts[0].maximum[i] = i & 1 ? 1e4f : -1e4f;
    parts[1].maximum[i] = i & 1 ? -1e4f : 1e4f;
  }
  problem_merge(&p, 2, parts, 0);
  for (int i = 0; i < 100; i++) {
    const lattn_partial *large = &parts[!(i & 1)];
    double want = 1e4 + log((double)large->sum[i]);
    CHECK(fabs((double)p.lse[i] - want) <= 1e-3);
    for (int d = 0; d < 5; d++) CHECK(p.out[i * 5 + d] == large->output[i * 5 + d] / large->sum[i]);
  }
  check_case("a NaN in a part reaches its row only");
  for (int i = 0; i < 100; i++) parts[0].maximum[i] = 1;
  parts[0].maximum[13] = NAN;
  problem_merge(&p, 2, parts, 0);
  for (int i = 0; i < 100; i++) {
    CHECK(!isnan(p.lse[i]) == (i != 13));
    for (int d = 0; d < 5; d++) CHECK(!isnan(p.out[i * 5 + d]) == (i != 13));
  }
  check_case("maxima of +infinity share by their sums");
  for (int i = 0; i < 100; i++) parts[0].maximum[i] = parts[1].maximum[i] = INFINITY;
  problem_merge(&p, 2, parts, 0);
  for (int i = 0; i < 100; i++) {
    double sum = (double)parts[0].sum[i] + (double)parts[1].sum[i];
    CHECK(p.lse[i] == INFINITY);
    for (int d = 0; d < 5; d++) {
      double want = ((double)parts[0].output[i * 5 + d] + (double)parts[1].output[i * 5 + d]) / sum;
      CHECK(fabs((double)p.out[i * 5 + d] - want) < 1e-5);
    }
  }
  parts_free(parts, 2);
  problem_free(&p);
}

/* 2^20 equal parts of 32 equal keys, in two rounds: the value itself, and lse + ln(2^25). */
static void equal_keys(void) {
  static lattn_partial parts[MAX_PARTS];
  problem p = problem_new(12, 1, 1, 0);
  lattn_partial one = part_new(4, 5), merged = part_new(4, 5);
  check_case("equal_keys_2^25");
  p.merge.partial = &merged;
  for (int placed = 0; placed < 2; placed++) { /* in the order of segments, or of the list */
    for (int i = 0; i < 4; i++) {
      one.maximum[i] = (float)i * 100 - 150;
      one.sum[i] = 32;
      for (int d = 0; d < 5; d++) one.output[i * 5 + d] = 32 * (0.1f * (float)(d + 1));
    }
    for (int round = 0; round < 2; round++) {
      for (int i = 0; i < MAX_PARTS; i++) {
        parts[i] = one;
        parts[i].n_segments = placed ? (round ? MAX_PARTS : 1) : 0;
        parts[i].first_segment = placed ? i * parts[i].n_segments : 0;
      }
      problem_merge(&p, MAX_PARTS, parts, round * 2);
      memcpy(one.maximum, merged.maximum, 4 * 4);
      memcpy(one.sum, merged.sum, 4 * 4);
      memcpy(one.output, merged.output, 20 * 4);
      if (placed) CHECK_I64(merged.n_segments, round ? MAX_PARTS * MAX_PARTS : MAX_PARTS);
    }
    for (int i = 0; i < 4; i++) {
      double want = i * 100 - 150 + 25 * log(2.0);
      CHECK(fabs((double)p.lse[i] - want) <= fabs(want) * 4 * REF_U + 1e-5);
      CHECK(merged.sum[i] == 33554432.0f);
      for (int d = 0; d < 5; d++) /* a chain of additions rounds; the tree of equal ones does not */
        CHECK(placed ? p.out[i * 5 + d] == 0.1f * (float)(d + 1)
                     : fabsf(p.out[i * 5 + d] - 0.1f * (float)(d + 1)) < 1e-4f);
    }
  }
  part_free(&one);
  part_free(&merged);
  problem_free(&p);
}

/* ---- modes and weights ---- */

static float weight_of(const lattn_partial *p, int64_t row) {
  return p->row_weights ? p->row_weights[row] : p->weight;
}

/* The merge of one row in double, by the definition of the mode. */
static void merge_row(int mode, int n, const lattn_partial *parts, int64_t row, double *out,
                      double *lse, double *size) {
  double total = 0, largest = -REF_INFINITY;
  int64_t dims = parts->value_dim;
  for (int64_t d = 0; d < dims; d++) out[d] = 0;
  *size = 0;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < n; i++) {
      double m = (double)parts[i].maximum[row], w = (double)weight_of(&parts[i], row), factor;
      double l = m + log((double)parts[i].sum[row]);
      if (isinf(m) || (isinf(w) && mode != LATTN_MERGE_LINEAR)) continue;
      l = mode == LATTN_MERGE_REPLACE ? w : l + w;
      if (pass == 0) largest = fmax(largest, l);
      if (pass == 0) continue;
      factor = mode == LATTN_MERGE_LINEAR ? w : exp(l - largest);
      total += factor;
      for (int64_t d = 0; d < dims; d++) {
        double x = factor * (double)parts[i].output[row * dims + d] / (double)parts[i].sum[row];
        out[d] += x;
        *size = fmax(*size, fabs(x));
      }
    }
  *lse = mode == LATTN_MERGE_LINEAR ? (double)NAN : largest + log(total);
  if (largest == -REF_INFINITY && mode != LATTN_MERGE_LINEAR) *lse = -REF_INFINITY;
  if (mode == LATTN_MERGE_LINEAR || total == 0) return;
  for (int64_t d = 0; d < dims; d++) out[d] /= total;
  *size /= total;
}

static void check_modes(int mode, uint64_t seed) {
  test_rng r = rng_seed(seed + 1000);
  problem p = problem_new(seed, 25, 1, 0);
  int n = (int)rng_range(&r, 1, 9);
  float *weights = (float *)ref_memory(9 * 100, sizeof(float));
  lattn_partial parts[9];
  check_case("merge mode %d, seed %" PRIu64, mode, seed);
  p.merge.mode = mode;
  for (int i = 0; i < n; i++) {
    parts[i] = part_random(&r, 100, 5, 6);
    parts[i].weight = rng_normal(&r) * 2;
    for (int j = 0; j < 100; j++) weights[i * 100 + j] = rng_normal(&r) * 3;
    if (rng_chance(&r, 50)) parts[i].row_weights = weights + i * 100;
    for (int j = 0; j < 100; j++) {
      if (rng_chance(&r, 10)) { /* empty: not read */
        parts[i].maximum[j] = -INFINITY;
        parts[i].sum[j] = parts[i].output[j * 5 + 2] = NAN;
      }
      if (rng_chance(&r, 10) && mode != LATTN_MERGE_LINEAR) weights[i * 100 + j] = -INFINITY;
    }
  }
  problem_merge(&p, n, parts, 3);
  for (int64_t row = 0; row < 100; row++) {
    double out[5], lse, size, bound;
    merge_row(mode, n, parts, row, out, &lse, &size);
    bound = (8 * n + 16 + 4 * 60) * REF_U; /* |maximum + weight| is below 60 */
    CHECK(ref_ratio((double)p.lse[row], lse, bound) <= 1);
    for (int d = 0; d < 5; d++)
      CHECK(ref_ratio((double)p.out[row * 5 + d], out[d], bound * size * n) <= 1);
  }
  parts_free(parts, n);
  problem_free(&p);
  free(weights);
}

static void weights(void) {
  static const float bad[3] = {NAN, INFINITY, -INFINITY};
  problem p = problem_new(13, 25, 1, 0);
  test_rng r = rng_seed(13);
  float row_weights[100] = {0};
  lattn_partial parts[2];
  uint64_t alone, before;
  parts[0] = part_random(&r, 100, 5, 5);
  parts[1] = part_random(&r, 100, 5, 5);
  problem_merge(&p, 1, parts, 0);
  alone = problem_hash(&p);
  check_case("a weight of -infinity drops a part unread");
  for (int i = 0; i < 500; i++) parts[1].output[i] = NAN;
  for (int i = 0; i < 100; i++) parts[1].sum[i] = parts[1].maximum[i] = NAN;
  parts[1].weight = -INFINITY;
  problem_merge(&p, 2, parts, 0);
  CHECK(problem_hash(&p) == alone);
  for (int mode = 0; mode < 3; mode++)
    for (int i = 0; i < 3; i++)
      for (int by_row = 0; by_row < 2; by_row++) {
        int dropped = mode != LATTN_MERGE_LINEAR && i == 2;
        check_case("mode %d: a %sweight of %g", mode, by_row ? "row's " : "", (double)bad[i]);
        p.merge.mode = mode;
        parts[1].weight = by_row ? 0 : bad[i];
        row_weights[57] = bad[i];
        parts[1].row_weights = by_row ? row_weights : NULL;
        before = problem_hash(&p);
        CHECK_STATUS(lattn_merge(&p.merge, 2, parts, problem_out(&p), p.lse, NULL),
                     dropped ? LATTN_OK : LATTN_E_VALUE);
        if (!dropped) CHECK(problem_hash(&p) == before);
      }
  parts_free(parts, 2);
  problem_free(&p);
}

/* ---- foreign partials ---- */

static void imports(void) {
  problem p = problem_new(14, 25, 300, 0);
  lattn_partial first, second, part = part_new(100, 5);
  float *out = (float *)ref_memory(500, sizeof(float)), *lse;
  lse = (float *)ref_memory(100, sizeof(float));
  first = problem_attend(&p, 0, 100, 1);
  memcpy(out, p.out, 500 * 4);
  second = problem_attend(&p, 100, 300, 0);
  for (int flags = 0; flags < 4; flags++) {
    lattn_partial parts[2];
    lattn_tensor t = tensor_of(out, LATTN_F32, 25, 4, 5);
    check_case("import with flags %d", flags);
    for (int i = 0; i < 100; i++) lse[i] = first.maximum[i] + logf(first.sum[i]);
    if (flags & LATTN_IMPORT_BASE2)
      for (int i = 0; i < 100; i++) lse[i] *= 1.44269504f;
    lse[40] = flags & LATTN_IMPORT_INFINITE_EMPTY ? INFINITY : -INFINITY;
    lse[41] = -INFINITY;
    out[40 * 5] = out[41 * 5] = NAN; /* foreign kernels leave anything there */
    CHECK_STATUS(lattn_partial_import(&part, t, lse, flags), LATTN_OK);
    CHECK_I64(part.n_segments, 0);
    CHECK(part.maximum[40] == -INFINITY && part.maximum[41] == -INFINITY);
    parts[0] = part;
    parts[1] = second;
    problem_merge(&p, 2, parts, 0);
    for (int i = 0; i < 100; i++) {
      double l[2], o[5], w[2], largest;
      l[0] =
          i == 40 || i == 41 ? -REF_INFINITY : (double)first.maximum[i] + log((double)first.sum[i]);
      l[1] = (double)second.maximum[i] + log((double)second.sum[i]);
      largest = fmax(l[0], l[1]);
      w[0] = exp(l[0] - largest);
      w[1] = exp(l[1] - largest);
      CHECK(fabs((double)p.lse[i] - largest - log(w[0] + w[1])) < 1e-5);
      for (int d = 0; d < 5; d++) {
        o[d] = w[1] * (double)second.output[i * 5 + d] / (double)second.sum[i];
        if (w[0] > 0) o[d] += w[0] * (double)out[i * 5 + d];
        CHECK(fabs((double)p.out[i * 5 + d] - o[d] / (w[0] + w[1])) < 1e-5);
      }
    }
  }
  check_case("without the flag, an lse of +infinity takes all");
  lse[40] = INFINITY;
  out[40 * 5] = 3;
  CHECK_STATUS(lattn_partial_import(&part, tensor_of(out, LATTN_F32, 25, 4, 5), lse, 0), LATTN_OK);
  CHECK(part.maximum[40] == INFINITY);
  {
    lattn_partial parts[2];
    parts[0] = part;
    parts[1] = second;
    problem_merge(&p, 2, parts, 0);
    CHECK(p.out[40 * 5] == 3 && p.lse[40] == INFINITY);
  }
  free(out);
  free(lse);
  part_free(&first);
  part_free(&second);
  part_free(&part);
  problem_free(&p);
}

static void import_types(void) {
  uint16_t half[100 * 8];
  float lse[100];
  test_rng r = rng_seed(15);
  lattn_partial part = part_new(100, 5);
  for (int i = 0; i < 800; i++) half[i] = f16_of_f32(rng_normal(&r));
  for (int i = 0; i < 100; i++) lse[i] = rng_normal(&r);
  for (int32_t type = LATTN_F16; type <= LATTN_BF16; type++) {
    lattn_tensor t = tensor_of(half, type, 25, 4, 5);
    t.stride_head = 8;
    check_case("import of %s with strides", type_name(type));
    CHECK_STATUS(lattn_partial_import(&part, t, lse, 0), LATTN_OK);
    for (int64_t i = 0; i < 100; i++) {
      CHECK(part.maximum[i] == lse[i] && part.sum[i] == 1);
      for (int64_t d = 0; d < 5; d++)
        CHECK(part.output[i * 5 + d] == tensor_get(&t, i / 4, i % 4, d));
    }
  }
  part_free(&part);
}

int main(void) {
  aligned_splits();
  other_splits();
  sink_and_gate();
  sigmoid_parts();
  identities();
  extremes();
  equal_keys();
  for (int mode = 0; mode < 3; mode++)
    for (uint64_t seed = 0; seed < (uint64_t)test_count(100); seed++) check_modes(mode, seed);
  weights();
  imports();
  import_types();
  return test_summary();
}
