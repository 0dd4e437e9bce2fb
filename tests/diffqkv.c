/* diffqkv.c - different numbers of key heads and value heads (DiffQKV: Lin et al., Sigma), and
 * selective values: over arrays and in caches, against plain double, and bit for bit against calls
 * whose heads are repeated until there is one of each for every query head.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   THE BOUND of the plain reference, for |q|, |k|, |v| < 6, n keys and dims d: a score is off by at
   most (d + 2) u sum |scale q k|, its weight by e times that, and 2 ulp of exp; a sum of 128 keys
   adds 128 u, its folds and merges 40 more. All of it is below 1e-4 of the largest |v|. That a
   mistake in a head's index is far above, the reference with another index shows (SHUFFLED). */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

enum { MOST_TOKENS = 700, MOST_HEADS = 32, MOST_DIM = 40, MOST_BUNDLES = 8 };

typedef struct shape {
  int32_t heads, keys, values;
} shape;

static const shape shapes[] = {{32, 4, 16}, {6, 1, 3},  {12, 2, 3}, {12, 3, 2}, {8, 8, 2},
                               {8, 2, 2},   {12, 6, 4}, {5, 1, 5},  {4, 4, 1},  {16, 1, 2}};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* Inputs of a case: heads as they are, and repeated for each query head. */
typedef struct tokens {
  shape s;
  int64_t n, dk, dv;
  float *q, *k, *v, *all_k, *all_v;
} tokens;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static float *floats(int64_t n) {
  float *p = (float *)malloc((size_t)(n ? n : 1) * sizeof *p);
  if (!p) exit(1);
  return p;
}

static void tokens_repeat(tokens *t) {
  shape s = t->s;
  for (int64_t i = 0; i < t->n; i++)
    for (int64_t h = 0; h < s.heads; h++) {
      memcpy(t->all_k + (i * s.heads + h) * t->dk,
             t->k + (i * s.keys + h * s.keys / s.heads) * t->dk, (size_t)t->dk * sizeof(float));
      memcpy(t->all_v + (i * s.heads + h) * t->dv,
             t->v + (i * s.values + h * s.values / s.heads) * t->dv, (size_t)t->dv * sizeof(float));
    }
}

static tokens tokens_new(shape s, int64_t n, int64_t dk, int64_t dv, test_rng *rng) {
  tokens t = {s, n, dk, dv, NULL, NULL, NULL, NULL, NULL};
  t.q = floats(n * s.heads * dk);
  t.k = floats(n * s.keys * dk);
  t.v = floats(n * s.values * dv);
  t.all_k = floats(n * s.heads * dk);
  t.all_v = floats(n * s.heads * dv);
  for (int64_t i = 0; i < n * s.heads * dk; i++) t.q[i] = rng_normal(rng);
  for (int64_t i = 0; i < n * s.keys * dk; i++) t.k[i] = rng_normal(rng);
  for (int64_t i = 0; i < n * s.values * dv; i++) t.v[i] = rng_normal(rng);
  tokens_repeat(&t);
  return t;
}

static void tokens_free(tokens *t) {
  free(t->q), free(t->k), free(t->v), free(t->all_k), free(t->all_v);
}

static lattn_tensor view(const float *data, int64_t from, int64_t n, int64_t heads, int64_t dim) {
  return tensor_of(data + from * heads * dim, LATTN_F32, n, heads, dim);
}
static lattn_tensor q_of(const tokens *t, int64_t from, int64_t n) {
  return view(t->q, from, n, t->s.heads, t->dk);
}
static lattn_tensor k_of(const tokens *t, int all, int64_t from, int64_t n) {
  return all ? view(t->all_k, from, n, t->s.heads, t->dk) : view(t->k, from, n, t->s.keys, t->dk);
}
static lattn_tensor v_of(const tokens *t, int all, int64_t from, int64_t n) {
  return all ? view(t->all_v, from, n, t->s.heads, t->dv) : view(t->v, from, n, t->s.values, t->dv);
}

/* What a call gives. */
typedef struct result {
  float *out, *lse, *dropped;
  int64_t n_out, n_lse;
} result;

static result result_new(const tokens *t, int64_t n) {
  result r = {NULL, NULL, NULL, n * t->s.heads * t->dv, n * t->s.heads};
  r.out = floats(r.n_out);
  r.lse = floats(r.n_lse);
  r.dropped = floats(r.n_lse);
  memset(r.out, 0x5a, (size_t)r.n_out * sizeof(float));
  memset(r.lse, 0x5a, (size_t)r.n_lse * sizeof(float));
  memset(r.dropped, 0x5a, (size_t)r.n_lse * sizeof(float));
  return r;
}

static void result_free(result *r) { free(r->out), free(r->lse), free(r->dropped); }

static uint64_t result_hash(const result *r) {
  return hash_f32(hash_f32(HASH_SEED, r->out, r->n_out), r->lse, r->n_lse);
}

/* An exec with scratch of its own, and threads; or none. */
typedef struct means {
  lattn_exec exec;
  void *scratch;
} means;

static means means_new(size_t scratch, int32_t threads) {
  means m;
  memset(&m, 0, sizeof m);
  m.exec.size = sizeof m.exec;
  m.exec.n_threads = threads;
  if (threads > 1) m.exec.parallel_for = test_parallel_scrambled;
  m.scratch = scratch ? malloc(scratch) : NULL;
  m.exec.scratch = m.scratch;
  m.exec.scratch_bytes = scratch;
  return m;
}

/* ---- arrays ---- */

static uint64_t attend(const lattn_attn *a, const tokens *t, int all, int64_t rows, int32_t threads,
                       result *r) {
  lattn_tensor q = q_of(t, t->n - rows, rows), k = k_of(t, all, 0, t->n), v = v_of(t, all, 0, t->n);
  size_t bytes = threads ? lattn_attention_scratch(a, q, k, v, threads) : 0;
  means m = means_new(bytes, threads ? threads : 1);
  lattn_tensor out = view(r->out, 0, rows, t->s.heads, t->dv);
  CHECK(!threads || bytes > 0);
  CHECK_STATUS(lattn_attention(a, q, k, v, out, r->lse, &m.exec), LATTN_OK);
  free(m.scratch);
  return result_hash(r);
}

/* Of the last row: the largest difference of head h from double, with the heads that it should use,
   or others. */
static double difference(const tokens *t, const float *out, int64_t h, int64_t key, int64_t value) {
  double *w = (double *)malloc((size_t)t->n * sizeof *w), sum = 0, most = -(double)INFINITY,
         worst = 0;
  const float *q = t->q + ((t->n - 1) * t->s.heads + h) * t->dk;
  for (int64_t j = 0; j < t->n; j++) {
    w[j] = 0;
    for (int64_t d = 0; d < t->dk; d++)
      w[j] += (double)q[d] * (double)t->k[(j * t->s.keys + key) * t->dk + d];
    w[j] /= sqrt((double)t->dk);
    most = fmax(most, w[j]);
  }
  for (int64_t j = 0; j < t->n; j++) sum += w[j] = exp(w[j] - most);
  for (int64_t d = 0; d < t->dv; d++) {
    double o = 0;
    for (int64_t j = 0; j < t->n; j++)
      o += w[j] / sum * (double)t->v[(j * t->s.values + value) * t->dv + d];
    worst = fmax(worst, fabs(o - (double)out[h * t->dv + d]));
  }
  free(w);
  return worst;
}

static void test_reference(void) {
  test_rng rng = rng_seed(71);
  for (int i = 0; i < SHAPES; i++) {
    shape s = shapes[i];
    tokens t = tokens_new(s, 150, 24, 40, &rng);
    lattn_attn a;
    result r = result_new(&t, 1);
    memset(&a, 0, sizeof a);
    a.size = sizeof a;
    check_case("reference %d %d %d", s.heads, s.keys, s.values);
    attend(&a, &t, 0, 1, 1, &r);
    for (int64_t h = 0; h < s.heads; h++) {
      int64_t key = h * s.keys / s.heads, value = h * s.values / s.heads;
      CHECK(difference(&t, r.out, h, key, value) < 6e-4);
      /* SHUFFLED */
      if (s.keys > 1) CHECK(difference(&t, r.out, h, (key + 1) % s.keys, value) > 1e-2);
      if (s.values > 1) CHECK(difference(&t, r.out, h, key, (value + 1) % s.values) > 1e-2);
    }
    result_free(&r);
    tokens_free(&t);
  }
}

/* Any options: heads repeated or not, without scratch, with it, with threads. */
static void test_repeated(void) {
  int64_t n = test_count(200);
  for (int64_t i = 0; i < n; i++) {
    test_rng rng = rng_seed(test_first_seed() + (uint64_t)i);
    shape s = shapes[rng_below(&rng, SHAPES)];
    int64_t dk = rng_range(&rng, 1, MOST_DIM), dv = rng_range(&rng, 1, MOST_DIM);
    tokens t = tokens_new(s, rng_range(&rng, 1, rng_chance(&rng, 10) ? 4200 : 400), dk, dv, &rng);
    int64_t rows = rng_range(&rng, 1, rng_chance(&rng, 50) ? 3 : least(t.n, 150));
    float slopes[MOST_HEADS], sinks[MOST_HEADS];
    lattn_attn a;
    result one, two;
    uint64_t hash;
    if (rows > t.n) rows = t.n;
    one = result_new(&t, rows);
    two = result_new(&t, rows);
    for (int h = 0; h < MOST_HEADS; h++) slopes[h] = ldexpf(1, -h / 4), sinks[h] = (float)(h % 3);
    memset(&a, 0, sizeof a);
    a.size = sizeof a;
    a.mask = rng_chance(&rng, 70) ? LATTN_CAUSAL : LATTN_FULL;
    if (rng_chance(&rng, 30)) a.window = rng_range(&rng, 1, 300), a.sinks = rng_below(&rng, 9);
    if (rng_chance(&rng, 20)) a.alibi_slopes = slopes;
    if (rng_chance(&rng, 20)) a.sink_logits = sinks;
    if (rng_chance(&rng, 20)) a.softcap = 4;
    if (rng_chance(&rng, 15)) t.v[rng_below(&rng, t.n * s.values * dv)] = NAN;
    check_case("repeated seed %d: %d %d %d, %d of %d, dims %d %d", (int)i, s.heads, s.keys,
               s.values, (int)rows, (int)t.n, (int)dk, (int)dv);
    tokens_repeat(&t);
    hash = attend(&a, &t, 1, rows, 1, &one);
    CHECK(attend(&a, &t, 0, rows, 1, &two) == hash);
    CHECK(attend(&a, &t, 0, rows, 0, &two) == hash);
    CHECK(attend(&a, &t, 0, rows, (int32_t)rng_range(&rng, 2, 5), &two) == hash);
    result_free(&one);
    result_free(&two);
    tokens_free(&t);
  }
}

static lattn_attn causal(void) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.mask = LATTN_CAUSAL;
  return a;
}

/* Calibrated attention: heads repeated or not. It takes the values of all keys, whatever top_values
   says. */
static uint64_t calibrate(const tokens *t, int all, int32_t top, int32_t threads, int64_t *sinks) {
  int64_t columns = t->s.heads * t->n;
  lattn_attn a = causal();
  lattn_calibration c;
  lattn_tensor q = q_of(t, 0, t->n), k = k_of(t, all, 0, t->n), v = v_of(t, all, 0, t->n);
  result r = result_new(t, t->n);
  means m;
  uint64_t hash;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.beta = 0.4f;
  c.threshold = 0.012f;
  c.marks = (uint8_t *)malloc((size_t)columns);
  c.means = (double *)malloc((size_t)columns * sizeof *c.means);
  a.top_values = top;
  a.dropped = r.dropped;
  m = means_new(lattn_calibrated_scratch(&a, q, k, v, threads), threads);
  CHECK_STATUS(lattn_attention_calibrated(&c, &a, q, k, v, view(r.out, 0, t->n, t->s.heads, t->dv),
                                          r.lse, &m.exec),
               LATTN_OK);
  *sinks = 0;
  for (int64_t i = 0; i < columns; i++) *sinks += c.marks[i];
  for (int64_t i = 0; i < r.n_lse; i++) CHECK(bits_of_f32(r.dropped[i]) == 0x5a5a5a5au);
  hash = hash_bytes(result_hash(&r), c.marks, (size_t)columns);
  hash = hash_bytes(hash, c.means, (size_t)columns * sizeof *c.means);
  free(m.scratch), free(c.marks), free(c.means);
  result_free(&r);
  return hash;
}

static void test_calibrated(void) {
  test_rng rng = rng_seed(29);
  for (int i = 0; i < SHAPES; i++) {
    tokens t = tokens_new(shapes[i], 150, 16, 20, &rng);
    int64_t sinks;
    uint64_t hash;
    check_case("calibrated %d %d %d", t.s.heads, t.s.keys, t.s.values);
    hash = calibrate(&t, 1, 0, 1, &sinks);
    CHECK(sinks > t.s.heads && sinks < t.s.heads * t.n / 2);
    CHECK(calibrate(&t, 0, 0, 1, &sinks) == hash);
    CHECK(calibrate(&t, 0, 3, 3, &sinks) == hash);
    tokens_free(&t);
  }
}

/* Profiles of a call: as without top_values; values want the heads of the keys. */
static void test_profile(void) {
  enum { N = 60, COLUMNS = 12 * 64 };
  test_rng rng = rng_seed(31);
  shape s = {12, 2, 3}, same = {12, 2, 2};
  tokens t = tokens_new(s, N, 16, 16, &rng), u = tokens_new(same, N, 16, 16, &rng);
  double tables[2][COLUMNS + 12];
  lattn_profile_config c;
  lattn_observed o;
  lattn_fault f = {0, 0, NULL};
  result r = result_new(&u, N);
  check_case("profiles");
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.scores = LATTN_PROFILE_SINKS | LATTN_PROFILE_LOST;
  c.n_layers = 1, c.n_heads = s.heads, c.n_kv_heads = s.keys, c.value_dim = 16;
  c.sinks = 1, c.window = 8, c.row_step = 1;
  memset(&o, 0, sizeof o);
  o.size = sizeof o;
  o.lse = r.lse;
  for (int i = 0; i < 2; i++) {
    lattn_attn a = causal();
    lattn_tensor q = q_of(&u, 0, N), k = k_of(&u, 0, 0, N), v = v_of(&u, 0, 0, N);
    lattn_profile *p;
    size_t bytes = lattn_profile_bytes(&c) + 64;
    void *memory = malloc(bytes);
    means m;
    attend(&a, &u, 0, N, 1, &r);
    a.top_values = i ? 3 : 0;
    a.dropped = r.dropped;
    m = means_new(lattn_attention_scratch(&a, q, k, v, 1), 1);
    m.exec.fault = &f;
    CHECK_STATUS(lattn_profile_init(&p, memory, bytes, &c), LATTN_OK);
    CHECK_STATUS(lattn_profile_observe(p, &o, &a, q, k, v, &m.exec), LATTN_OK);
    CHECK(bits_of_f32(r.dropped[0]) == 0x5a5a5a5au);
    CHECK_STATUS(lattn_profile_report(p, LATTN_TABLE_COLUMNS, COLUMNS, tables[i]), LATTN_OK);
    CHECK_STATUS(lattn_profile_report(p, LATTN_TABLE_LOST, 12, tables[i] + COLUMNS), LATTN_OK);
    v = v_of(&t, 0, 0, N);
    CHECK_STATUS(lattn_profile_observe(p, &o, &a, q, k, v, &m.exec), LATTN_E_SHAPE);
    CHECK(f.argument && !strcmp(f.argument, "v.n_heads"));
    o.scores = LATTN_PROFILE_SINKS;
    CHECK_STATUS(lattn_profile_observe(p, &o, &a, q, k, v, &m.exec), LATTN_OK);
    o.scores = 0;
    free(memory), free(m.scratch);
  }
  CHECK(!memcmp(tables[0], tables[1], sizeof tables[0]) && tables[0][COLUMNS] > 0);
  result_free(&r);
  tokens_free(&t), tokens_free(&u);
}

/* ---- selective values ---- */

/* What the rows' top keys are, by lattn_attention_weights, as a bias that hides the others. With
   finite values a score of -infinity changes no bit of a row that sees others. */
static float *hide(const lattn_attn *a, const tokens *t, int64_t rows, int32_t top,
                   const float *lse) {
  int64_t all = rows * t->s.heads;
  float *bias = floats(all * t->n), *top_weights = floats(all * top);
  int64_t *keys = (int64_t *)malloc((size_t)(all * top) * sizeof *keys);
  lattn_attn own = *a;
  lattn_weights w;
  memset(&w, 0, sizeof w);
  w.size = sizeof w;
  w.lse = lse;
  w.top_k = top;
  w.top_keys = keys;
  w.top_weights = top_weights;
  CHECK_STATUS(
      lattn_attention_weights(&own, q_of(t, t->n - rows, rows), k_of(t, 0, 0, t->n), &w, NULL),
      LATTN_OK);
  for (int64_t i = 0; i < all * t->n; i++) bias[i] = -INFINITY;
  for (int64_t i = 0; i < all * top; i++)
    if (keys[i] >= 0) bias[i / top * t->n + keys[i]] = 0;
  free(top_weights);
  free(keys);
  return bias;
}

/* The bits of a row that sees its top keys only; those of a plain call where it sees no others;
   what it dropped, by its lse. */
static void test_top(void) {
  int64_t n = test_count(100);
  for (int64_t i = 0; i < n; i++) {
    test_rng rng = rng_seed(9000 + test_first_seed() + (uint64_t)i);
    shape s = shapes[rng_below(&rng, SHAPES)];
    tokens t = tokens_new(s, rng_range(&rng, 1, rng_chance(&rng, 20) ? 2500 : 300),
                          rng_range(&rng, 1, MOST_DIM), rng_range(&rng, 1, MOST_DIM), &rng);
    int64_t rows = least(t.n, rng_range(&rng, 1, rng_chance(&rng, 50) ? 3 : 40));
    int32_t top = (int32_t)rng_range(&rng, 1, rng_chance(&rng, 70) ? 20 : 250);
    lattn_attn a = causal(), plain;
    result dense = result_new(&t, rows), kept = result_new(&t, rows), only = result_new(&t, rows);
    result same = result_new(&t, rows);
    lattn_tensor hidden;
    float *bias;
    if (rng_chance(&rng, 30)) a.window = rng_range(&rng, 1, 400), a.sinks = rng_below(&rng, 9);
    if (rng_chance(&rng, 30)) /* many equal scores */
      for (int64_t j = 0; j < rows * s.heads * t.dk; j++)
        t.q[(t.n - rows) * s.heads * t.dk + j] = rng_chance(&rng, 50) ? 0 : 1;
    for (int64_t j = 0; j < t.n * s.keys * t.dk; j++) t.k[j] = rintf(t.k[j]);
    tokens_repeat(&t);
    check_case("top seed %d: %d %d %d, %d of %d, top %d", (int)i, s.heads, s.keys, s.values,
               (int)rows, (int)t.n, (int)top);
    plain = a;
    attend(&a, &t, 0, rows, 1, &dense);
    bias = hide(&a, &t, rows, top, dense.lse);
    hidden = tensor_of(bias, LATTN_F32, rows, s.heads, t.n);
    a.top_values = top;
    a.dropped = kept.dropped;
    attend(&a, &t, 0, rows, 1, &kept);
    a.top_mode = LATTN_TOP_NORMALISE;
    a.dropped = only.dropped;
    attend(&a, &t, 0, rows, (int32_t)rng_range(&rng, 2, 4), &only);
    plain.pair_bias = &hidden;
    attend(&plain, &t, 0, rows, 1, &same);
    CHECK(!memcmp(same.out, only.out, (size_t)only.n_out * sizeof(float)));
    CHECK(!memcmp(same.lse, only.lse, (size_t)only.n_lse * sizeof(float)));
    CHECK(!memcmp(dense.lse, kept.lse, (size_t)only.n_lse * sizeof(float)));
    CHECK(!memcmp(kept.dropped, only.dropped, (size_t)only.n_lse * sizeof(float)));
    for (int64_t j = 0; j < only.n_lse; j++) {
      /* both sums are off by 170 u at most, and each lse by an ulp of 8 */
      double share = exp((double)only.lse[j] - (double)dense.lse[j]);
      int whole = rows - j / s.heads - 1 + top >= t.n; /* it sees no more keys */
      CHECK(fabs(1 - share - (double)kept.dropped[j]) < 3e-5);
      CHECK(!whole || kept.dropped[j] == 0);
      for (int64_t d = j * t.dv; d < (j + 1) * t.dv; d++) {
        CHECK(!whole || bits_of_f32(kept.out[d]) == bits_of_f32(dense.out[d]));
        CHECK(fabs((double)only.out[d] * share - (double)kept.out[d]) < 2e-4);
        CHECK(fabs((double)dense.out[d] - (double)kept.out[d]) <=
              (double)kept.dropped[j] * 6 + 2e-4); /* |v| < 6 */
      }
    }
    CHECK(attend(&a, &t, 1, rows, 0, &same) == result_hash(&only));
    free(bias);
    result_free(&dense), result_free(&kept), result_free(&only), result_free(&same);
    tokens_free(&t);
  }
}

/* A NaN among the scores reaches its row; one among values only if its key was chosen. */
static void test_top_special(void) {
  test_rng rng = rng_seed(77);
  shape s = {2, 1, 2};
  tokens t = tokens_new(s, 300, 8, 20, &rng);
  lattn_attn a = causal();
  result r = result_new(&t, 1);
  check_case("special values");
  a.dropped = r.dropped;
  a.top_values = 3;
  memset(t.q, 0, (size_t)(t.n * s.heads * t.dk) * sizeof(float)); /* all equal: the newest */
  for (int64_t j = 0; j < 297 * s.values * t.dv; j++) t.v[j] = NAN;
  attend(&a, &t, 0, 1, 1, &r);
  CHECK(isfinite(r.out[0]) && fabs((double)r.dropped[0] - 0.99) < 1e-6);
  a.top_values = 4;
  attend(&a, &t, 0, 1, 1, &r);
  CHECK(isnan(r.out[0]) && isnan(r.out[39]) && isfinite(r.lse[0]));
  for (int mode = 0; mode < 3; mode++) {
    a.weighting = mode == 2 ? LATTN_SIGMOID : LATTN_SOFTMAX;
    a.top_mode = mode == 1 ? LATTN_TOP_NORMALISE : LATTN_TOP_KEEP;
    a.top_values = 3;
    attend(&a, &t, 0, 1, 1, &r);
    CHECK(isfinite(r.out[0]));
    t.k[5] = NAN;
    attend(&a, &t, 0, 1, 0, &r);
    CHECK(isnan(r.out[0]) && isnan(r.out[19]) && isnan(r.dropped[1]));
    for (int64_t j = 0; j < t.n * t.dk; j++) t.k[j] = NAN;
    attend(&a, &t, 0, 1, 1, &r);
    CHECK(isnan(r.out[0]) && isnan(r.out[19]) && isnan(r.lse[0]));
    for (int64_t j = 0; j < t.n * t.dk; j++) t.k[j] = 1;
  }
  a.top_values = a.top_mode = a.weighting = 0; /* nothing is dropped */
  t.k[5] = NAN;
  attend(&a, &t, 0, 1, 1, &r);
  CHECK(isnan(r.out[0]) && r.dropped[0] == 0 && r.dropped[1] == 0);
  a.top_values = 3;
  a.window = 1; /* no key: an empty row */
  a.sinks = 0;
  a.mask = LATTN_FULL;
  a.weighting = LATTN_SOFTMAX;
  a.query_position = 1000;
  attend(&a, &t, 0, 1, 1, &r);
  CHECK(r.out[0] == 0 && r.dropped[0] == 0 && isinf(r.lse[0]) && r.lse[0] < 0);
  result_free(&r);
  tokens_free(&t);
}

/* ---- caches: a bundled one and one with heads repeated, fed alike ---- */

typedef struct pair {
  lattn_cache_config config[2];
  lattn_head heads[2][MOST_HEADS];
  lattn_rotary rotary;
  uint64_t turns[MOST_DIM / 2];
  float slopes[MOST_HEADS];
  void *arena[2];
  lattn_pool *pool[2];
  lattn_cache *cache[2];
  means m[2];
} pair;

static int bundles(shape s) {
  int n = 1;
  for (int i = 1; i <= s.keys; i++)
    if (s.keys % i == 0 && s.values % i == 0) n = i;
  return n;
}

static void pair_config(pair *p, const tokens *t, test_rng *rng) {
  static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16, LATTN_I8, LATTN_I4};
  int n = bundles(t->s), ints = t->dk >= 16 && t->dv >= 16;
  lattn_cache_config *c = p->config;
  memset(p, 0, sizeof *p);
  c->size = sizeof *c;
  c->head_size = sizeof **p->heads;
  c->n_heads = t->s.heads;
  c->n_kv_heads = t->s.keys;
  c->n_value_heads = t->s.values;
  c->key_dim = (int32_t)t->dk;
  c->value_dim = (int32_t)t->dv;
  c->key_type = types[rng_below(rng, ints ? 5 : 3)];
  c->value_type = types[rng_below(rng, ints ? 5 : 3)];
  c->capacity = t->n;
  c->max_append = rng_range(rng, 1, 200);
  c->max_drafts = 12;
  if (t->dk >= 4 && rng_chance(rng, 60)) {
    lattn_rotary_scaling scaling;
    memset(&scaling, 0, sizeof scaling);
    scaling.size = sizeof scaling;
    p->rotary.size = sizeof p->rotary;
    scaling.n_dims = p->rotary.n_dims = (int32_t)(t->dk / 4 * 2);
    p->rotary.turns = p->turns;
    CHECK_STATUS(lattn_rotary_turns(p->turns, &scaling), LATTN_OK);
    c->rotary = &p->rotary;
  } else if (rng_chance(rng, 30)) {
    for (int h = 0; h < MOST_HEADS; h++) p->slopes[h] = ldexpf(1, -h / 4);
    c->alibi_slopes = p->slopes;
  }
  for (int i = 0; i < n; i++) {
    lattn_head *head = p->heads[0] + i;
    if (rng_chance(rng, 50)) {
      head->policy = LATTN_HEAD_STREAMING;
      head->sinks = rng_below(rng, 140);
      head->window = rng_range(rng, 1, 200);
      head->slack = 100;
      if (rng_chance(rng, 30)) head->mark = LATTN_PROMPT_END, head->window_divisor = 5;
    }
    if (rng_chance(rng, 30)) head->key_type = types[rng_below(rng, 3)];
    if (rng_chance(rng, 30)) head->value_type = types[rng_below(rng, 3)];
  }
  p->config[1] = *c;
  p->config[1].n_kv_heads = t->s.heads;
  p->config[1].n_value_heads = 0;
  for (int h = 0; h < t->s.heads; h++) p->heads[1][h] = p->heads[0][h * n / t->s.heads];
  for (int i = 0; i < 2; i++) p->config[i].heads = p->heads[i];
}

static void pair_open(pair *p, int32_t threads) {
  for (int i = 0; i < 2; i++) {
    size_t bytes = lattn_pool_bytes(NULL, p->config + i, 3) + 65536, scratch;
    CHECK(bytes > 65536);
    p->arena[i] = malloc(bytes);
    CHECK_STATUS(lattn_pool_init(p->pool + i, p->arena[i], bytes, NULL), LATTN_OK);
    CHECK_STATUS(lattn_cache_init(p->cache + i, p->pool[i], p->config + i), LATTN_OK);
    scratch = i && !threads ? 0 : lattn_batch_scratch(p->config + i, 2, 300, threads ? threads : 1);
    p->m[i] = means_new(i == 0 && !threads ? 0 : scratch, threads ? threads : 1);
  }
}

static void pair_close(pair *p) {
  for (int i = 0; i < 2; i++) {
    CHECK_STATUS(lattn_cache_release(p->cache[i]), LATTN_OK);
    free(p->m[i].scratch);
    free(p->arena[i]);
  }
}

/* The next n tokens into both, as tokens or drafts. */
static void pair_extend(pair *p, const tokens *t, int64_t at, int64_t n, int drafts,
                        const lattn_call *call) {
  result r[2];
  uint64_t hash[2];
  for (int i = 0; i < 2; i++) {
    lattn_tensor q = q_of(t, at, n), k = k_of(t, i, at, n), v = v_of(t, i, at, n), out;
    r[i] = result_new(t, n);
    out = view(r[i].out, 0, n, t->s.heads, t->dv);
    if (drafts)
      CHECK_STATUS(
          lattn_cache_draft(p->cache[i], call, NULL, q, k, v, out, r[i].lse, &p->m[i].exec),
          LATTN_OK);
    else
      CHECK_STATUS(lattn_cache_extend(p->cache[i], call, q, k, v, out, r[i].lse, &p->m[i].exec),
                   LATTN_OK);
    hash[i] = result_hash(r + i);
  }
  CHECK(hash[0] == hash[1]);
  for (int i = 0; i < 2; i++) result_free(r + i);
}

static int64_t cache_tokens(const lattn_cache *cache) {
  lattn_cache_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_cache_stats_get(cache, &stats), LATTN_OK);
  return stats.n_tokens;
}

/* What both hold, by lattn_cache_read; tokens that were evicted are in neither. */
static void pair_read(pair *p, const tokens *t) {
  int n = bundles(t->s), keys = t->s.keys / n, values = t->s.values / n;
  int64_t group = t->s.heads / n;
  float k[2][MOST_HEADS * MOST_DIM], v[2][MOST_HEADS * MOST_DIM];
  for (int64_t i = cache_tokens(p->cache[0]) - 1; i >= 0; i -= 37)
    for (int b = 0; b < n; b++)
      for (int64_t h = 0; h < group; h++) {
        int64_t key = h * keys / group, value = h * values / group;
        lattn_status s0 = lattn_cache_read(p->cache[0], b, i, view(k[0], 0, 1, keys, t->dk),
                                           view(v[0], 0, 1, values, t->dv), 0);
        lattn_status s1 =
            lattn_cache_read(p->cache[1], (int32_t)(b * group + h), i, view(k[1], 0, 1, 1, t->dk),
                             view(v[1], 0, 1, 1, t->dv), 0);
        if (!CHECK(s0 == s1) || s0) return;
        CHECK(!memcmp(k[0] + key * t->dk, k[1], (size_t)t->dk * sizeof(float)));
        CHECK(!memcmp(v[0] + value * t->dv, v[1], (size_t)t->dv * sizeof(float)));
      }
}

typedef struct file {
  unsigned char *bytes;
  size_t n, at;
} file;

static int32_t file_write(void *user, const void *data, size_t bytes) {
  file *f = (file *)user;
  memcpy(f->bytes + f->n, data, bytes);
  f->n += bytes;
  return 0;
}

static int32_t file_read(void *user, void *data, size_t bytes) {
  file *f = (file *)user;
  if (bytes > f->n - f->at) return 1;
  memcpy(data, f->bytes + f->at, bytes);
  f->at += bytes;
  return 0;
}

/* Saves the bundled cache, and goes on with what a new one loads. */
static void pair_save(pair *p) {
  lattn_cache *other;
  file f = {NULL, 0, 0};
  uint64_t bytes = 0;
  CHECK_STATUS(lattn_cache_save(p->cache[0], NULL, NULL, &bytes), LATTN_OK);
  f.bytes = (unsigned char *)malloc((size_t)bytes);
  CHECK_STATUS(lattn_cache_save(p->cache[0], file_write, &f, NULL), LATTN_OK);
  CHECK(f.n == bytes);
  CHECK_STATUS(lattn_cache_init(&other, p->pool[0], p->config), LATTN_OK);
  CHECK_STATUS(lattn_cache_load(other, file_read, &f), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(p->cache[0]), LATTN_OK);
  p->cache[0] = other;
  f.at = 0;
  f.bytes[76] = (unsigned char)(f.bytes[76] + 1); /* another number of key heads */
  CHECK(lattn_cache_load(other, file_read, &f) < 0);
  free(f.bytes);
}

/* Both forked; the forks and their parents go on alike, in one batch. */
static void pair_batch(pair *p, const tokens *t, int64_t at, int64_t n, const lattn_call *call) {
  uint64_t hash[2];
  for (int i = 0; i < 2; i++) {
    lattn_sequence s[2] = {{p->cache[i], n, NULL}, {NULL, n, NULL}};
    lattn_tensor q = q_of(t, at, 2 * n), k = k_of(t, i, at, 2 * n), v = v_of(t, i, at, 2 * n), out;
    result r = result_new(t, 2 * n);
    out = view(r.out, 0, 2 * n, t->s.heads, t->dv);
    CHECK_STATUS(lattn_cache_fork(&s[1].cache, p->cache[i]), LATTN_OK);
    CHECK_STATUS(lattn_batch_extend(2, s, call, q, k, v, out, r.lse, &p->m[i].exec), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(s[1].cache), LATTN_OK);
    hash[i] = result_hash(&r);
    result_free(&r);
  }
  CHECK(hash[0] == hash[1]);
}

static void pair_accept(pair *p, int32_t n) {
  int32_t path[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  for (int i = 0; i < 2; i++) CHECK_STATUS(lattn_cache_accept(p->cache[i], n, path), LATTN_OK);
}

static void pair_step(pair *p, const tokens *t, test_rng *rng) {
  int64_t at = cache_tokens(p->cache[0]), left = t->n - at, n = least(left, 1);
  int what = (int)rng_below(rng, 11);
  lattn_status s[2] = {LATTN_OK, LATTN_OK};
  lattn_call call;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  if (rng_chance(rng, 40)) {
    call.top_values = (int32_t)rng_range(rng, 1, rng_chance(rng, 70) ? 10 : 200);
    call.top_mode = rng_chance(rng, 50) ? LATTN_TOP_KEEP : LATTN_TOP_NORMALISE;
  }
  if (what < 4) n = least(left, rng_range(rng, 1, rng_chance(rng, 50) ? 4 : 260));
  if (what == 4) {
    n = least(left, rng_range(rng, 1, 12));
    pair_extend(p, t, at, n, 1, &call);
    pair_accept(p, (int32_t)rng_range(rng, 0, n));
  } else if (what == 5 && left >= 4) {
    pair_batch(p, t, at, rng_range(rng, 1, least(left / 2, 10)), &call);
  } else if (what == 6) {
    pair_save(p);
  } else if (what == 7) {
    n = least(at, rng_range(rng, 0, 60));
    for (int i = 0; i < 2; i++) s[i] = lattn_cache_truncate(p->cache[i], at - n);
  } else if (what == 8 && at > 200) {
    int64_t from = rng_range(rng, 140, at - 1), to = rng_range(rng, from, at - 1);
    for (int i = 0; i < 2; i++) s[i] = lattn_cache_remove(p->cache[i], from, to);
  } else if (what == 10) {
    for (int i = 0; i < 2; i++) s[i] = lattn_cache_mark(p->cache[i], LATTN_PROMPT_END, NULL);
  } else {
    pair_extend(p, t, at, n, 0, &call);
  }
  CHECK(s[0] == s[1]);
}

static void test_caches(void) {
  int64_t n = test_count(80);
  for (int64_t i = 0; i < n; i++) {
    test_rng rng = rng_seed(5000 + test_first_seed() + (uint64_t)i);
    shape s = shapes[rng_below(&rng, SHAPES)];
    int64_t dk = rng_range(&rng, 1, MOST_DIM), dv = rng_range(&rng, 1, MOST_DIM);
    tokens t = tokens_new(s, MOST_TOKENS, dk, dv, &rng);
    static pair p;
    check_case("caches seed %d: %d %d %d, dims %d %d", (int)i, s.heads, s.keys, s.values, (int)dk,
               (int)dv);
    pair_config(&p, &t, &rng);
    pair_open(&p, (int32_t)rng_below(&rng, 4));
    for (int j = 0; j < 14; j++) pair_step(&p, &t, &rng);
    pair_read(&p, &t);
    pair_close(&p);
    tokens_free(&t);
  }
}

/* Forks that share a whole segment of pages, which a batch reads once for both; but not where rows
   choose among all keys. */
static void test_shared(void) {
  for (int i = 0; i < 4; i++) {
    test_rng rng = rng_seed(400 + (uint64_t)i);
    tokens t = tokens_new(shapes[i], 2120, 16, 20, &rng);
    lattn_call call;
    static pair p;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    check_case("shared pages %d", i);
    pair_config(&p, &t, &rng);
    memset(p.heads, 0, sizeof p.heads);
    pair_open(&p, 1 + i % 2);
    for (int64_t at = 0; at < 2060; at += 20) /* the rows of the next call see them all */
      for (int j = 0; j < 2; j++)
        CHECK_STATUS(lattn_cache_append(p.cache[j], k_of(&t, j, at, 20), v_of(&t, j, at, 20), NULL),
                     LATTN_OK);
    pair_extend(&p, &t, 2060, 30, 0, NULL);
    pair_batch(&p, &t, 2090, 3, NULL);
    call.top_values = 30;
    pair_batch(&p, &t, 2096, 4, &call);
    pair_close(&p);
    tokens_free(&t);
  }
}

/* Any cut of tokens into calls, any threads: the same rows, plain or selective. */
static void test_cuts(void) {
  int64_t n = test_count(30);
  for (int64_t i = 0; i < n; i++) {
    test_rng rng = rng_seed(7000 + test_first_seed() + (uint64_t)i);
    shape s = shapes[rng_below(&rng, SHAPES)];
    tokens t = tokens_new(s, 300, 16, 20, &rng);
    result whole = result_new(&t, t.n), parts = result_new(&t, t.n);
    lattn_call call;
    static pair p;
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    call.top_values = (int32_t)rng_range(&rng, 0, 40);
    check_case("cuts seed %d: %d %d %d", (int)i, s.heads, s.keys, s.values);
    pair_config(&p, &t, &rng);
    pair_open(&p, (int32_t)rng_below(&rng, 4));
    for (int64_t at = 0, m; at < t.n; at += m) {
      lattn_tensor out = view(parts.out, at, t.n - at, s.heads, t.dv);
      m = least(t.n - at, rng_range(&rng, 1, rng_chance(&rng, 50) ? 3 : 90));
      out.n_tokens = m;
      call.dropped = parts.dropped + at * s.heads;
      CHECK_STATUS(
          lattn_cache_extend(p.cache[0], &call, q_of(&t, at, m), k_of(&t, 0, at, m),
                             v_of(&t, 0, at, m), out, parts.lse + at * s.heads, &p.m[0].exec),
          LATTN_OK);
    }
    CHECK_STATUS(lattn_cache_clear(p.cache[0]), LATTN_OK);
    call.dropped = whole.dropped;
    CHECK_STATUS(lattn_cache_extend(p.cache[0], &call, q_of(&t, 0, t.n), k_of(&t, 0, 0, t.n),
                                    v_of(&t, 0, 0, t.n), view(whole.out, 0, t.n, s.heads, t.dv),
                                    whole.lse, NULL),
                 LATTN_OK);
    CHECK(result_hash(&parts) == result_hash(&whole));
    CHECK(!memcmp(parts.dropped, whole.dropped, (size_t)whole.n_lse * sizeof(float)));
    pair_close(&p);
    result_free(&whole), result_free(&parts);
    tokens_free(&t);
  }
}

/* ---- bad arguments ---- */

static void expect(lattn_status got, lattn_status want, const lattn_fault *f,
                   const char *argument) {
  if (!CHECK(got == want && f->argument && !strcmp(f->argument, argument)))
    printf("  got %d, %s; expected %d, %s\n", (int)got, f->argument ? f->argument : "-", (int)want,
           argument);
}

static void test_arguments(void) {
  test_rng rng = rng_seed(5);
  shape s = {12, 2, 3};
  tokens t = tokens_new(s, 20, 16, 16, &rng);
  lattn_tensor q = q_of(&t, 0, 20), k = k_of(&t, 0, 0, 20), v = v_of(&t, 0, 0, 20), wrong = v, out;
  result r = result_new(&t, 20);
  lattn_fault f = {0, 0, NULL};
  lattn_exec exec;
  lattn_attn a = causal(), b;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.fault = &f;
  out = view(r.out, 0, 20, s.heads, t.dv);
  check_case("arguments of lattn_attention");
  wrong.n_heads = 5;
  expect(lattn_attention(&a, q, k, wrong, out, NULL, &exec), LATTN_E_SHAPE, &f, "v.n_heads");
  wrong = k, wrong.n_heads = 5;
  expect(lattn_attention(&a, q, wrong, v, out, NULL, &exec), LATTN_E_SHAPE, &f, "q.n_heads");
  b = a, b.top_values = -1;
  expect(lattn_attention(&b, q, k, v, out, NULL, &exec), LATTN_E_SHAPE, &f, "top_values");
  b = a, b.top_mode = 2;
  expect(lattn_attention(&b, q, k, v, out, NULL, &exec), LATTN_E_FIELD, &f, "top_mode");
  b.top_mode = LATTN_TOP_NORMALISE, b.weighting = LATTN_SIGMOID;
  expect(lattn_attention(&b, q, k, v, out, NULL, &exec), LATTN_E_CONFIG, &f, "top_mode");
  b = a, b.top_values = 3, b.dropped = r.out;
  expect(lattn_attention(&b, q, k, v, out, NULL, &exec), LATTN_E_ALIAS, &f, "dropped");
  b.dropped = NULL;
  for (size_t size = offsetof(lattn_attn, top_values); size <= sizeof b; size += 4) {
    b.size = (uint32_t)size;
    CHECK_STATUS(lattn_attention(&b, q, k, v, out, NULL, &exec), LATTN_OK);
  }
  /* A bundle of 2^30 key heads of 2^30 dims, all at one place: its scratch is beyond 64 bits. */
  q.n_heads = k.n_heads = q.dim = k.dim = (int64_t)1 << 30;
  q.stride_head = k.stride_head = q.stride_token = k.stride_token = LATTN_BROADCAST;
  wrong = v, wrong.n_heads = 1;
  CHECK(lattn_attention_scratch(&a, q, k, wrong, 1) == 0);
  CHECK(lattn_attention_scratch(&a, q, k, wrong, 16) == 0);
  result_free(&r);
  tokens_free(&t);
}

static void test_no_scratch(void) {
  test_rng rng = rng_seed(6);
  shape s = {12, 2, 3};
  tokens t = tokens_new(s, 400, 16, 16, &rng);
  lattn_tensor q = q_of(&t, 0, 1), k = k_of(&t, 0, 0, 400), v = v_of(&t, 0, 0, 400);
  result r = result_new(&t, 1);
  lattn_attn a = causal();
  check_case("top_values without scratch");
  a.top_values = 256;
  CHECK_STATUS(lattn_attention(&a, q, k, v, view(r.out, 0, 1, 12, 16), NULL, NULL), LATTN_OK);
  a.top_values = 257;
  CHECK_STATUS(lattn_attention(&a, q, k, v, view(r.out, 0, 1, 12, 16), NULL, NULL),
               LATTN_E_SCRATCH);
  result_free(&r);
  tokens_free(&t);
}

static void test_cache_arguments(void) {
  test_rng rng = rng_seed(5);
  shape s = {12, 2, 3};
  tokens t = tokens_new(s, 20, 16, 16, &rng);
  lattn_tensor k = k_of(&t, 0, 0, 20), v = v_of(&t, 0, 0, 20);
  lattn_fault f = {0, 0, NULL};
  lattn_exec exec;
  lattn_cache *cache;
  lattn_cache_config c;
  static pair p;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.fault = &f;
  check_case("arguments of caches");
  pair_config(&p, &t, &rng);
  pair_open(&p, 0);
  c = p.config[0];
  c.fault = &f;
  c.n_value_heads = -1;
  expect(lattn_cache_init(&cache, p.pool[0], &c), LATTN_E_SHAPE, &f, "config.n_value_heads");
  c.n_value_heads = 5;
  expect(lattn_cache_init(&cache, p.pool[0], &c), LATTN_E_SHAPE, &f, "config.n_heads");
  c.n_value_heads = 3, c.zero = 1;
  expect(lattn_cache_init(&cache, p.pool[0], &c), LATTN_E_FIELD, &f, "config.zero");
  CHECK(!lattn_cache_bytes(&c));
  c.zero = 0;
  for (int i = 0; i < 4; i++) { /* what bundles of several heads cannot be */
    static const int32_t policies[] = {LATTN_HEAD_COMPENSATED, LATTN_HEAD_STREAMING,
                                       LATTN_HEAD_SNAP, LATTN_HEAD_HEAVY};
    lattn_head head;
    memset(&head, 0, sizeof head);
    head.policy = policies[i];
    head.window = 20;
    if (i == 1) head.flags = LATTN_HEAD_LOST;
    if (i > 1) head.budget = 40;
    c.n_kv_heads = 2, c.n_value_heads = 3, c.max_drafts = 0;
    c.heads = &head;
    expect(lattn_cache_init(&cache, p.pool[0], &c), LATTN_E_CONFIG, &f, "config.n_value_heads");
    c.n_kv_heads = 1, c.n_value_heads = 1;
    CHECK_STATUS(lattn_cache_init(&cache, p.pool[0], &c), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  }
  expect(lattn_cache_append(p.cache[0], v, v, &exec), LATTN_E_SHAPE, &f, "k.n_heads");
  expect(lattn_cache_append(p.cache[0], k, k, &exec), LATTN_E_SHAPE, &f, "v.n_heads");
  pair_close(&p);
  tokens_free(&t);
}

int main(void) {
  test_reference();
  test_repeated();
  test_calibrated();
  test_profile();
  test_caches();
  test_top();
  test_top_special();
  test_shared();
  test_cuts();
  test_arguments();
  test_no_scratch();
  test_cache_arguments();
  return test_summary();
}
