/* weights.c - attention weights on demand, over arrays and over caches, against the float64
 * reference: p of every key, argmax and top-k with their ties, mass, special values, bad arguments.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   THE BOUND. Let s be the exact score of a key and e what ref.h allows the computed one to be off;
   lse the exact log-sum-exp and b what ref.h allows the one that was handed over, half an ulp of
   lse included (ref.h counts 2u|lse|). The computed weight is exp of a difference that was rounded
   once (u|s - lse|, twice for second order), within 2 ulp = 4u: so it is p exp(+-E) with
       E = e + b + 2u|s - lse| + 4u,
   or was flushed below 2^-126. With lse_low, 2u|lse| are taken from b: what the rounding of lse
   lost is then known, but for u^2 |lse|; and subtracting it rounds once more (2u|s - lse|).
   Of sigmoid attention, p is the weight that ref.h bounds. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

#include "cases.h"

enum { MOST_ROWS = 8, MOST_HEADS = 16 };

/* ---- what is asked for: rows and heads by chance, arrays between guard pages ---- */

typedef struct wanted {
  lattn_weights w;
  int64_t rows[MOST_ROWS];
  int32_t heads[MOST_HEADS];
  int64_t n_rows, n_heads, n_keys, stride; /* resolved */
  double before;                           /* what mass held */
  test_guard weights, argmax, top_keys, top_weights, mass;
} wanted;

/* Some of 0 ... n - 1, each once, in any order. */
static int64_t choose(int64_t *chosen, int64_t most, int64_t n, test_rng *rng) {
  int64_t count = rng_range(rng, 1, most < n ? most : n);
  for (int64_t i = 0; i < count; i++) {
    int again = 1;
    while (again) {
      again = 0;
      chosen[i] = rng_below(rng, n);
      for (int64_t j = 0; j < i; j++) again |= chosen[j] == chosen[i];
    }
  }
  return count;
}

/* Outputs hold a number that no call would give, where they do not hold what mass adds to. */
static void wanted_clear(wanted *x) {
  double *mass = (double *)(void *)x->mass.data;
  memset(x->weights.data, 0x5a, x->weights.bytes);
  memset(x->argmax.data, 0x5a, x->argmax.bytes);
  memset(x->top_keys.data, 0x5a, x->top_keys.bytes);
  memset(x->top_weights.data, 0x5a, x->top_weights.bytes);
  for (int64_t i = 0; i < x->n_heads * x->stride; i++) mass[i] = x->before;
}

static void wanted_open(wanted *x, int64_t n_queries, int64_t heads, int64_t n_keys,
                        const float *lse, const float *low, test_rng *rng) {
  static const int32_t tops[] = {1, 2, 3, 16, 17, 300, 3000};
  int64_t chosen[MOST_HEADS], pairs;
  memset(x, 0, sizeof *x);
  x->w.size = sizeof x->w;
  x->w.lse = lse, x->w.lse_low = low;
  x->n_keys = n_keys;
  x->n_rows = n_queries, x->n_heads = heads;
  if (n_queries > MOST_ROWS || rng_chance(rng, 60)) {
    x->n_rows = x->w.n_rows = choose(x->rows, MOST_ROWS, n_queries, rng);
    x->w.rows = x->rows;
  }
  if (heads > 3 || rng_chance(rng, 50)) {
    x->n_heads = x->w.n_heads = choose(chosen, 3, heads, rng);
    for (int64_t i = 0; i < x->n_heads; i++) x->heads[i] = (int32_t)chosen[i];
    x->w.heads = x->heads;
  }
  x->w.stride = rng_chance(rng, 50) ? 0 : n_keys + rng_below(rng, 20);
  x->stride = x->w.stride ? x->w.stride : n_keys;
  x->w.top_k = tops[rng_below(rng, n_keys > 500 ? 5 : 7)];
  x->before = rng_chance(rng, 50) ? 0 : 0.75;
  pairs = x->n_rows * x->n_heads;
  x->weights = guard_alloc((size_t)(pairs * x->stride) * sizeof(float), 1);
  x->argmax = guard_alloc((size_t)pairs * sizeof(int64_t), 1);
  x->top_keys = guard_alloc((size_t)(pairs * x->w.top_k) * sizeof(int64_t), 1);
  x->top_weights = guard_alloc((size_t)(pairs * x->w.top_k) * sizeof(float), 1);
  x->mass = guard_alloc((size_t)(x->n_heads * x->stride) * sizeof(double), 1);
  x->w.weights = (float *)(void *)x->weights.data;
  x->w.argmax = (int64_t *)(void *)x->argmax.data;
  x->w.top_keys = (int64_t *)(void *)x->top_keys.data;
  x->w.top_weights = (float *)(void *)x->top_weights.data;
  x->w.mass = (double *)(void *)x->mass.data;
  wanted_clear(x);
}

static void wanted_close(wanted *x) {
  CHECK(guard_free(&x->weights) && guard_free(&x->argmax) && guard_free(&x->top_keys) &&
        guard_free(&x->top_weights) && guard_free(&x->mass));
}

static uint64_t wanted_hash(const wanted *x) {
  const float *weights = (const float *)(const void *)x->weights.data;
  const float *top = (const float *)(const void *)x->top_weights.data;
  const double *mass = (const double *)(const void *)x->mass.data;
  uint64_t hash = hash_bytes(HASH_SEED, x->argmax.data, x->argmax.bytes);
  hash = hash_bytes(hash, x->top_keys.data, x->top_keys.bytes);
  hash = hash_f32(hash, weights, (int64_t)x->weights.bytes / 4);
  hash = hash_f32(hash, top, (int64_t)x->top_weights.bytes / 4);
  for (size_t i = 0; i < x->mass.bytes / sizeof *mass; i++) {
    double m = isnan(mass[i]) ? -1 : mass[i];
    hash = hash_bytes(hash, &m, sizeof m);
  }
  return hash;
}

static int64_t wanted_row(const wanted *x, int64_t i) { return x->w.n_rows ? x->rows[i] : i; }
static int64_t wanted_head(const wanted *x, int64_t h) { return x->w.n_heads ? x->heads[h] : h; }

/* ---- one row against the reference ---- */

/* What the reference says of one row of one head, by key. */
typedef struct known {
  double *score, *error; /* [n_keys] */
  unsigned char *seen;   /* [n_keys] */
  double lse, lse_error;
  const lattn_attn *options;
  int64_t n_keys, n_listed; /* of the seen keys, those of scores that can be in a list */
} known;

static void known_open(known *k, int64_t n_keys) {
  memset(k, 0, sizeof *k);
  k->n_keys = n_keys;
  k->score = (double *)ref_memory(n_keys, sizeof(double));
  k->error = (double *)ref_memory(n_keys, sizeof(double));
  k->seen = (unsigned char *)ref_memory(n_keys, 1);
}

static void known_close(known *k) {
  free(k->score);
  free(k->error);
  free(k->seen);
}

static int can_be_listed(double score) { return !isnan(score) && score != -REF_INFINITY; }

/* After ref_attend of that row; ref_scores finds the scores again, which it overwrote. */
static void known_row(known *k, ref_call *c, int64_t row, int64_t head, const ref_row *r,
                      double further, int has_low) {
  int folds, levels;
  int64_t n = ref_scores(c, row, head, &folds, &levels);
  memset(k->seen, 0, (size_t)k->n_keys);
  k->n_listed = 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t t = c->visible[i];
    k->seen[t] = 1;
    k->score[t] = c->scores[i];
    k->error[t] = c->errors[i];
    k->n_listed += can_be_listed(c->scores[i]);
  }
  k->options = &c->options;
  k->lse = r->lse;
  k->lse_error = r->lse_bound + further;
  if (has_low) k->lse_error -= 2 * REF_U * (1 - REF_U) * fabs(r->lse);
}

static int is_sigmoid(const known *k) { return k->options->weighting == LATTN_SIGMOID; }
static double biased(const known *k, int64_t t) {
  return k->score[t] + (double)k->options->sigmoid_bias;
}

static double known_p(const known *k, int64_t t) {
  if (!k->seen[t]) return 0;
  return is_sigmoid(k) ? ref_sigmoid(biased(k, t)) : exp(ref_difference(k->score[t], k->lse));
}

static double known_bound(const known *k, int64_t t, double p, int has_low) {
  if (is_sigmoid(k))
    return ref_sigmoid_slack(biased(k, t), k->error[t] + REF_U * fabs(biased(k, t)), 7 * REF_U);
  double difference = fabs(ref_difference(k->score[t], k->lse));
  double e = k->error[t] + k->lse_error + (has_low ? 4 : 2) * REF_U * difference + 4 * REF_U;
  return p * expm1(e) + 0x1p-126;
}

/* p of every key. The numbers beyond n_keys of a row are not written. */
static void check_p(const wanted *x, const known *k, const float *p, int has_low) {
  uint32_t untouched;
  memset(&untouched, 0x5a, sizeof untouched);
  for (int64_t t = 0; t < x->n_keys; t++) {
    double want = known_p(k, t);
    if (!k->seen[t] || k->lse == -REF_INFINITY || k->score[t] == -REF_INFINITY) {
      if (isnan(k->lse) && !is_sigmoid(k) && k->seen[t]) CHECK(isnan(p[t]));
      else if (bits_of_f32(p[t]) != 0) FAIL("key %" PRId64 ": %.9g, expected +0", t, (double)p[t]);
    } else if (!(ref_ratio((double)p[t], want, known_bound(k, t, want, has_low)) <= 1)) {
      FAIL("key %" PRId64 ": p = %.9g, reference %.9g, bound %.3g", t, (double)p[t], want,
           known_bound(k, t, want, has_low));
    }
  }
  for (int64_t t = x->n_keys; t < x->stride; t++) CHECK(bits_of_f32(p[t]) == untouched);
}

/* The list is falling, of keys that are seen, none twice, and nothing larger is left out; scores
   that the reference cannot tell apart may come in any order here (test_ties knows their bits). */
static void check_top(const wanted *x, const known *k, const int64_t *keys, const float *top,
                      const float *p) {
  int64_t n = 0, most = x->w.top_k;
  unsigned char *listed = (unsigned char *)ref_memory(x->n_keys, 1);
  while (n < most && keys[n] >= 0) {
    int64_t t = keys[n];
    if (!CHECK(t < x->n_keys) || !CHECK(k->seen[t] && !listed[t] && can_be_listed(k->score[t])))
      break;
    listed[t] = 1;
    CHECK(same_f32(top[n], p[t]));
    if (n) CHECK(k->score[keys[n - 1]] + k->error[keys[n - 1]] >= k->score[t] - k->error[t]);
    n++;
  }
  CHECK_I64(n, k->n_listed < most ? k->n_listed : most);
  for (int64_t i = n; i < most; i++) CHECK(keys[i] == -1 && bits_of_f32(top[i]) == 0);
  for (int64_t t = 0; t < x->n_keys && n; t++)
    if (k->seen[t] && !listed[t] && can_be_listed(k->score[t]))
      CHECK(k->score[t] - k->error[t] <= k->score[keys[n - 1]] + k->error[keys[n - 1]]);
  free(listed);
}

static void check_argmax(const wanted *x, const known *k, int64_t argmax, const int64_t *keys) {
  CHECK(argmax == keys[0]); /* top_k >= 1: by the same rule */
  CHECK(argmax >= -1 && argmax < x->n_keys);
  CHECK((argmax >= 0) == (k->n_listed > 0));
}

/* Mass is the sum of the very weights, in order, in double; rounded once more for what it is added
   to: 2^-52 of each number. */
static void check_mass(const wanted *x) {
  const float *p = x->w.weights;
  for (int64_t h = 0; h < x->n_heads; h++)
    for (int64_t t = 0; t < x->stride; t++) {
      double sum = 0, got = x->w.mass[h * x->stride + t], slack;
      for (int64_t i = 0; i < x->n_rows && t < x->n_keys; i++)
        sum += (double)p[(i * x->n_heads + h) * x->stride + t];
      slack = x->before != 0 ? (double)(x->n_rows + 2) * 0x1p-52 * (fabs(sum) + x->before) : 0;
      CHECK(isnan(sum) ? isnan(got) : fabs(got - x->before - sum) <= slack);
    }
}

/* All that was asked for. first: the reference's row of row 0 of q. s NULL: a call on arrays. */
static void check_all(const wanted *x, ref_call *c, const setup *s, int64_t first, double further) {
  ref_row r = ref_row_new(c);
  known k;
  int has_low = x->w.lse_low != NULL;
  known_open(&k, x->n_keys);
  for (int64_t i = 0; i < x->n_rows; i++)
    for (int64_t h = 0; h < x->n_heads; h++) {
      int64_t at = i * x->n_heads + h, row = first + wanted_row(x, i), head = wanted_head(x, h);
      const float *p = x->w.weights + at * x->stride;
      if (s) ref_cache_attend(c, s, row, head, &r);
      else ref_attend(c, row, head, &r);
      known_row(&k, c, row, head, &r, further, has_low);
      check_p(x, &k, p, has_low);
      check_top(x, &k, x->w.top_keys + at * x->w.top_k, x->w.top_weights + at * x->w.top_k, p);
      check_argmax(x, &k, x->w.argmax[at], x->w.top_keys + at * x->w.top_k);
    }
  check_mass(x);
  known_close(&k);
  ref_row_free(&r);
}

/* ---- over arrays: the random calls of attend.c ---- */

static void array_call(attend_case *c, wanted *x, enum exec_kind kind) {
  lattn_exec exec;
  const lattn_exec *given = case_exec(c, &exec, kind, 3);
  lattn_status status;
  case_protect(c, 1);
  status = lattn_attention_weights(&c->a, c->q, c->k, &x->w, given);
  case_protect(c, 0);
  if (!CHECK_STATUS(status, LATTN_OK)) printf("    exec: %s\n", exec_names[kind]);
}

static void array_random(uint64_t seed) {
  attend_case c;
  lattn_exec exec;
  ref_call reference;
  wanted x;
  test_rng rng = rng_seed(seed);
  case_make(&c, seed, CASE_GOLDEN);
  check_case("weights of %s", c.name);
  int64_t pairs = c.n_queries * c.heads;
  float *lse = (float *)ref_memory(pairs, sizeof *lse);
  float *low = (float *)ref_memory(pairs, sizeof *low);
  float *out = (float *)ref_memory(pairs * c.value_dim, sizeof *out);
  c.a.partial = NULL;
  if (seed % 5 == 2) case_sigmoid(&c);
  wanted_open(&x, c.n_queries ? c.n_queries : 1, c.heads, c.n_keys, seed % 10 == 2 ? NULL : lse,
              rng_chance(&rng, 50) ? low : NULL, &rng);
  if (c.a.n_sequences > 1)
    CHECK_STATUS(lattn_attention_weights(&c.a, c.q, c.k, &x.w, NULL), LATTN_E_CONFIG);
  c.a.n_sequences = 0;
  c.a.lse_low = low;
  const lattn_exec *given = case_exec(&c, &exec, EXEC_ONE, 1);
  lattn_tensor to = tensor_of(out, LATTN_F32, c.n_queries, c.heads, c.value_dim);
  CHECK_STATUS(lattn_attention(&c.a, c.q, c.k, c.v, to, lse, given), LATTN_OK);
  c.a.lse_low = NULL;
  if (c.n_queries) {
    ref_open(&reference, &c.a, c.q, c.k, c.v, LATTN_F32);
    if (c.a.score) reference.score = case_score_exact;
    array_call(&c, &x, EXEC_ONE);
    check_all(&x, &reference, NULL, 0, 0);
    uint64_t hash = wanted_hash(&x);
    for (int kind = 0; kind < EXEC_KINDS; kind++) {
      if (!case_small(&c) && (kind == EXEC_NULL || kind == EXEC_STACK)) continue;
      wanted_clear(&x);
      array_call(&c, &x, (enum exec_kind)kind);
      if (wanted_hash(&x) != hash) FAIL("other bits with %s", exec_names[kind]);
    }
    ref_close(&reference);
  }
  wanted_close(&x);
  free(lse), free(low), free(out);
  CHECK(case_free(&c));
}

/* Each output alone gives what it gives with the others. */
static void test_alone(void) {
  enum { N = 5, KEYS = 200, HEADS = 4, DIM = 7, TOP = 20 };
  static float q[N * HEADS * DIM], k[KEYS * 2 * DIM], out[N * HEADS * DIM], lse[N * HEADS];
  static float p[N * HEADS * KEYS], top[N * HEADS * TOP], top2[N * HEADS * TOP];
  static float p2[N * HEADS * KEYS];
  static int64_t keys[N * HEADS * TOP], keys2[N * HEADS * TOP], best[N * HEADS], best2[N * HEADS];
  static double mass[HEADS * KEYS], mass2[HEADS * KEYS];
  lattn_tensor tq = tensor_of(q, LATTN_F32, N, HEADS, DIM), to = tensor_of(out, 0, N, HEADS, DIM);
  lattn_tensor tk = tensor_of(k, LATTN_F32, KEYS, 2, DIM);
  test_rng rng = rng_seed(21);
  lattn_weights all, one;
  check_case("each output alone");
  for (int i = 0; i < N * HEADS * DIM; i++) q[i] = rng_normal(&rng);
  for (int i = 0; i < KEYS * 2 * DIM; i++) k[i] = rng_normal(&rng);
  CHECK_STATUS(lattn_attention(NULL, tq, tk, tk, to, lse, NULL), LATTN_OK);
  memset(&one, 0, sizeof one);
  one.size = sizeof one, one.lse = lse;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK); /* nothing wanted */
  all = one;
  all.weights = p, all.argmax = best, all.mass = mass;
  all.top_k = TOP, all.top_keys = keys, all.top_weights = top;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &all, NULL), LATTN_OK);
  one.weights = p2;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK);
  CHECK(!memcmp(p, p2, sizeof p));
  one.weights = NULL, one.argmax = best2;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK);
  CHECK(!memcmp(best, best2, sizeof best));
  one.argmax = NULL, one.top_k = TOP, one.top_keys = keys2, one.top_weights = top2;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK);
  CHECK(!memcmp(keys, keys2, sizeof keys) && !memcmp(top, top2, sizeof top));
  one.top_keys = NULL, one.top_weights = NULL, one.top_k = 0, one.mass = mass2;
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK);
  CHECK(!memcmp(mass, mass2, sizeof mass));
  CHECK_STATUS(lattn_attention_weights(NULL, tq, tk, &one, NULL), LATTN_OK); /* mass accumulates */
  for (int i = 0; i < HEADS * KEYS; i++)
    CHECK(fabs(mass2[i] - 2 * mass[i]) <= 2 * (N + 1) * 0x1p-52 * mass[i]);
}

/* ---- ties: small integers, so that every score is exact and many are equal ---- */

enum { TIE_KEYS = 300, TIE_ROWS = 6, TIE_HEADS = 2, TIE_DIM = 3, TIE_TOP = 120 };

typedef struct tie_call {
  float q[TIE_ROWS * TIE_HEADS * TIE_DIM], k[TIE_KEYS * TIE_DIM];
  float out[TIE_ROWS * TIE_HEADS * TIE_DIM], lse[TIE_ROWS * TIE_HEADS];
  float top[TIE_ROWS * TIE_HEADS * TIE_TOP];
  int64_t best[TIE_ROWS * TIE_HEADS], keys[TIE_ROWS * TIE_HEADS * TIE_TOP];
} tie_call;

static void tie_make(tie_call *c, test_rng *rng) {
  for (int i = 0; i < TIE_ROWS * TIE_HEADS * TIE_DIM; i++) c->q[i] = (float)rng_range(rng, -2, 2);
  for (int i = 0; i < TIE_KEYS * TIE_DIM; i++) c->k[i] = (float)rng_range(rng, -1, 1);
}

/* The rule itself: of the keys not yet listed, the largest score, the newest of equals. */
static void tie_check(const tie_call *c, int64_t row, int64_t head, int64_t position, int64_t sinks,
                      int64_t window) {
  int64_t at = row * TIE_HEADS + head;
  const float *q = c->q + at * TIE_DIM;
  unsigned char listed[TIE_KEYS] = {0};
  for (int64_t i = 0; i < TIE_TOP; i++) {
    int64_t best = -1;
    float largest = 0;
    for (int64_t t = 0; t <= position && t < TIE_KEYS; t++) {
      const float *k = c->k + t * TIE_DIM;
      float s = q[0] * k[0] + q[1] * k[1] + q[2] * k[2]; /* exact */
      if (listed[t] || (t >= sinks && position - t >= window)) continue;
      if (best < 0 || s >= largest) best = t, largest = s;
    }
    if (c->keys[at * TIE_TOP + i] != best)
      FAIL("row %" PRId64 ", place %" PRId64 ": key %" PRId64 ", expected %" PRId64, row, i,
           c->keys[at * TIE_TOP + i], best);
    if (i == 0) CHECK_I64(c->best[at], best);
    if (best >= 0) listed[best] = 1;
  }
}

static void tie_wanted(lattn_weights *w, tie_call *c) {
  memset(w, 0, sizeof *w);
  w->size = sizeof *w;
  w->lse = c->lse;
  w->argmax = c->best;
  w->top_k = TIE_TOP, w->top_keys = c->keys, w->top_weights = c->top;
}

static void test_ties(void) {
  static const int64_t windows[][2] = {{0, TIE_KEYS}, {0, 1}, {3, 17}, {4, 100}, {130, 129}};
  static tie_call c;
  lattn_attn a;
  lattn_weights w;
  test_rng rng = rng_seed(31);
  for (int i = 0; i < 5; i++) {
    check_case("ties: the newer first; sinks %d, window %d", (int)windows[i][0],
               (int)windows[i][1]);
    tie_make(&c, &rng);
    lattn_tensor q = tensor_of(c.q, LATTN_F32, TIE_ROWS, TIE_HEADS, TIE_DIM), out = q;
    lattn_tensor k = tensor_of(c.k, LATTN_F32, TIE_KEYS, 1, TIE_DIM);
    out.data = c.out;
    memset(&a, 0, sizeof a);
    a.size = sizeof a;
    a.mask = LATTN_CAUSAL, a.scale = 1;
    a.sinks = windows[i][0], a.window = windows[i][1];
    CHECK_STATUS(lattn_attention(&a, q, k, k, out, c.lse, NULL), LATTN_OK);
    tie_wanted(&w, &c);
    CHECK_STATUS(lattn_attention_weights(&a, q, k, &w, NULL), LATTN_OK);
    for (int64_t row = 0; row < TIE_ROWS; row++)
      for (int64_t h = 0; h < TIE_HEADS; h++)
        tie_check(&c, row, h, TIE_KEYS - TIE_ROWS + row, windows[i][0], windows[i][1]);
  }
}

/* ---- lse as two floats ---- */

/* Scores near 1000: half an ulp of lse is 3e-5. The weights come from the same bits of the scores
   as the lse, so they must sum to 1 but for the roundings of exp and sums: with N <= 128 keys, one
   block, those are (8 + 4) u of the sum, 4u of ln P <= 5, 2u|s - m| <= 2u * 12 of the differences
   each time, 4u of each exp: < 100u = 6e-6. Without lse_low they need not, and do not. */
static void test_low(void) {
  enum { N = 64, KEYS = 128, DIM = 4 };
  static float q[N * DIM], k[KEYS * DIM], out[N * DIM], lse[N], low[N], p[N * KEYS], bias[KEYS];
  lattn_tensor tq = tensor_of(q, LATTN_F32, N, 1, DIM), to = tensor_of(out, LATTN_F32, N, 1, DIM);
  lattn_tensor tk = tensor_of(k, LATTN_F32, KEYS, 1, DIM);
  lattn_tensor tb = tensor_of(bias, LATTN_F32, 1, 1, KEYS);
  test_rng rng = rng_seed(41);
  lattn_weights w;
  lattn_attn a;
  check_case("lse_low: weights sum to 1 at |lse| = 1000");
  for (int i = 0; i < N * DIM; i++) q[i] = rng_normal(&rng);
  for (int i = 0; i < KEYS * DIM; i++) k[i] = rng_normal(&rng);
  for (int i = 0; i < KEYS; i++) bias[i] = 1000;
  memset(&a, 0, sizeof a), memset(&w, 0, sizeof w);
  a.size = sizeof a, w.size = sizeof w;
  a.lse_low = low, a.key_bias = &tb, a.softcap = 6;
  w.lse = lse, w.weights = p;
  CHECK_STATUS(lattn_attention(&a, tq, tk, tk, to, lse, NULL), LATTN_OK);
  for (int with = 0; with < 2; with++) {
    double worst = 0;
    w.lse_low = with ? low : NULL;
    CHECK_STATUS(lattn_attention_weights(&a, tq, tk, &w, NULL), LATTN_OK);
    for (int i = 0; i < N; i++) {
      double sum = 0;
      for (int t = 0; t < KEYS; t++) sum += (double)p[i * KEYS + t];
      worst = fmax(worst, fabs(sum - 1));
      CHECK(fabs(sum - 1) <= 100 * REF_U + (with ? 0 : 2 * REF_U * 1010));
    }
    if (!with) CHECK(worst > 200 * REF_U); /* else lse_low would show nothing */
  }
}

/* One key takes nearly all: its score is lse, rounded, and what is left is in lse_low alone. */
static void test_low_alone(void) {
  static const float scores[2] = {1000, 989};
  float one = 1, out, lse, low, p[2];
  lattn_tensor q = tensor_of(&one, LATTN_F32, 1, 1, 1), to = tensor_of(&out, LATTN_F32, 1, 1, 1);
  lattn_tensor k = tensor_of(scores, LATTN_F32, 2, 1, 1);
  lattn_weights w;
  lattn_attn a;
  check_case("lse_low: the score of one key is lse");
  memset(&a, 0, sizeof a), memset(&w, 0, sizeof w);
  a.size = sizeof a, w.size = sizeof w;
  a.scale = 1, a.lse_low = &low;
  w.lse = &lse, w.lse_low = &low, w.weights = p;
  CHECK_STATUS(lattn_attention(&a, q, k, k, to, &lse, NULL), LATTN_OK);
  CHECK_STATUS(lattn_attention_weights(&a, q, k, &w, NULL), LATTN_OK);
  CHECK(lse == 1000.0f);
  double small = exp(-11.0) / (1 + exp(-11.0)); /* rounded: u of 1, and 20u of the small one */
  CHECK(fabs((double)p[0] - (1 - small)) <= 4 * REF_U);
  CHECK(fabs((double)p[1] - small) <= 50 * REF_U * small);
}

/* ---- special values ---- */

/* Weights of one row over keys of dim 1 whose scores are given. */
static void special_row(const float *scores, int64_t n, float *p, int64_t *best, int64_t *keys,
                        float *lse) {
  float one = 1, out, top[2];
  lattn_attn a;
  lattn_weights w;
  lattn_tensor q = tensor_of(&one, LATTN_F32, 1, 1, 1), to = tensor_of(&out, LATTN_F32, 1, 1, 1);
  lattn_tensor k = tensor_of(scores, LATTN_F32, n, 1, 1), v = tensor_of(&one, LATTN_F32, n, 1, 1);
  memset(&a, 0, sizeof a), memset(&w, 0, sizeof w);
  v.stride_token = LATTN_BROADCAST;
  a.size = sizeof a, w.size = sizeof w;
  a.scale = 1;
  CHECK_STATUS(lattn_attention(&a, q, k, v, to, lse, NULL), LATTN_OK);
  w.lse = lse, w.weights = p, w.argmax = best;
  w.top_k = 2, w.top_keys = keys, w.top_weights = top;
  CHECK_STATUS(lattn_attention_weights(&a, q, k, &w, NULL), LATTN_OK);
}

static void test_special(void) {
  static const float nan_key[4] = {1, NAN, 3, 2}, all_nan[2] = {NAN, NAN};
  static const float infinite[4] = {1, 2, INFINITY, 3}, none[3] = {-INFINITY, -INFINITY, -INFINITY};
  static const float some[4] = {-INFINITY, 1, -INFINITY, 1}, far[3] = {0, -200, -80};
  float p[4], lse;
  int64_t best, keys[2];
  check_case("special: a NaN score makes all p NaN, and is no maximum");
  special_row(nan_key, 4, p, &best, keys, &lse);
  CHECK(isnan(lse) && isnan(p[0]) && isnan(p[1]) && isnan(p[2]) && isnan(p[3]));
  CHECK(best == 2 && keys[0] == 2 && keys[1] == 3);
  check_case("special: only NaN scores");
  special_row(all_nan, 2, p, &best, keys, &lse);
  CHECK(isnan(p[0]) && isnan(p[1]));
  CHECK(best == -1 && keys[0] == -1 && keys[1] == -1);
  check_case("special: one infinite score takes all");
  special_row(infinite, 4, p, &best, keys, &lse);
  CHECK(p[0] == 0 && p[1] == 0 && p[2] == 1 && p[3] == 0);
  CHECK(best == 2 && keys[0] == 2 && keys[1] == 3);
  check_case("special: scores of minus infinity weigh nothing");
  special_row(some, 4, p, &best, keys, &lse);
  CHECK(p[0] == 0 && p[2] == 0 && fabs((double)p[1] - 0.5) < 1e-6 && same_f32(p[1], p[3]));
  CHECK(best == 3 && keys[0] == 3 && keys[1] == 1);
  special_row(none, 3, p, &best, keys, &lse);
  CHECK(lse == -INFINITY && p[0] == 0 && p[1] == 0 && p[2] == 0);
  CHECK(best == -1 && keys[0] == -1);
  check_case("special: weights are flushed, never denormal");
  special_row(far, 3, p, &best, keys, &lse);
  CHECK(p[0] == 1 && bits_of_f32(p[1]) == 0 && p[2] > 0 && p[2] < 2e-35f);
}

/* ---- over caches ---- */

enum { CACHE_ROWS = 24 };

/* A cache of n tokens, its newest rows attended, perhaps with removed ranges before those. */
typedef struct cache_case {
  setup s;
  token_list tokens;
  test_guard arena;
  lattn_pool *pool;
  lattn_cache *cache;
  int64_t rows, holes, heads, first; /* position of the callback's row 0 */
  lattn_tensor key_bias, pair_bias;
  int scored;
  float *lse, *low;
} cache_case;

static double tilt(int64_t row, int64_t query, int32_t head, int64_t key) {
  return 0.25 * (double)((key * 7 + query * 3 + head + row * 5) % 5);
}

static void score_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t first_key, float scores[16]) {
  (void)user, (void)sequence;
  for (int t = 0; t < 16; t++)
    if (first_key + t >= 0) scores[t] += (float)tilt(row, query, head, first_key + t);
}

static double ref_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t key, double s) {
  (void)sequence;
  return s + tilt(row - *(const int64_t *)user, query, head, key);
}

static void cache_setup(setup *s, test_rng *rng) {
  static const int32_t dims[] = {2, 4, 6, 8, 17};
  static const int64_t sinks[] = {0, 1, 4, 17, 130}, windows[] = {1, 2, 17, 60, 128, 200};
  int32_t kv_heads = (int32_t)rng_range(rng, 1, 3);
  setup_init(s, kv_heads * (int32_t)rng_range(rng, 1, 2), kv_heads, dims[rng_below(rng, 5)],
             dims[rng_below(rng, 5)], 3000);
  s->config.key_type = (int32_t)rng_below(rng, 4);
  s->config.max_append = rng_chance(rng, 50) ? 0 : 64;
  if (rng_chance(rng, 60)) setup_rotate(s, (int32_t)rng_below(rng, 2), 0, 2);
  if (rng_chance(rng, 25)) setup_alibi(s);
  if (rng_chance(rng, 25)) setup_sinks(s);
  if (rng_chance(rng, 25)) s->config.softcap = 3;
  for (int32_t g = 0; g < kv_heads; g++)
    if (rng_chance(rng, 50))
      setup_stream(s, g, sinks[rng_below(rng, 5)], windows[rng_below(rng, 6)], 400,
                   s->config.rotary || s->config.alibi_slopes ? (int32_t)rng_below(rng, 3) : 0);
}

static float *floats(int64_t n, test_rng *rng) {
  float *x = (float *)ref_memory(n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = rng_normal(rng);
  return x;
}

/* Extends by the tokens first ... n - 1 of the list. */
static void cache_extend(cache_case *c, int64_t first, const lattn_call *call, float *lse) {
  static char scratch[1 << 21];
  lattn_exec exec;
  int64_t n = c->tokens.n - first;
  float *out = (float *)ref_memory(n * c->heads * setup_value_dim(&c->s), sizeof *out);
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch = scratch, exec.scratch_bytes = sizeof scratch;
  CHECK_STATUS(lattn_cache_extend(
                   c->cache, call, tokens_q(&c->tokens, &c->s, first, n),
                   tokens_k(&c->tokens, &c->s, first, n), tokens_v(&c->tokens, &c->s, first, n),
                   tensor_of(out, LATTN_F32, n, c->heads, setup_value_dim(&c->s)), lse, &exec),
               LATTN_OK);
  free(out);
}

static void list_remove(float *list, int64_t row, int64_t n, int64_t from, int64_t to) {
  memmove(list + from * row, list + to * row, (size_t)((n - to) * row) * sizeof *list);
}

/* Removes some ranges where the policies allow it. */
static void cache_holes(cache_case *c, test_rng *rng) {
  for (int i = 0; i < 3; i++) {
    int64_t n = c->tokens.n, from = rng_range(rng, 0, n - 1), to = from + rng_range(rng, 1, 90);
    if (to >= n) continue;
    if (lattn_cache_remove(c->cache, from, to) != LATTN_OK) continue;
    list_remove(c->tokens.q, c->tokens.q_row, n, from, to);
    list_remove(c->tokens.k, c->tokens.k_row, n, from, to);
    list_remove(c->tokens.v, c->tokens.v_row, n, from, to);
    c->tokens.n -= to - from;
    c->holes++;
  }
}

static void cache_open(cache_case *c, uint64_t seed, test_rng *rng) {
  int64_t n = rng_chance(rng, 10) ? 2100 : rng_range(rng, 1, 500);
  memset(c, 0, sizeof *c);
  check_case("weights of a cache, seed %" PRIu64, seed);
  cache_setup(&c->s, rng);
  if (seed % 5 == 3) setup_sigmoid(&c->s, -2);
  c->heads = setup_heads(&c->s);
  c->tokens = tokens_new(&c->s, 3000);
  size_t bytes = lattn_pool_bytes(NULL, &c->s.config, 2);
  c->arena = guard_alloc(bytes, 1);
  memset(c->arena.data, 0xff, bytes);
  CHECK_STATUS(lattn_pool_init(&c->pool, c->arena.data, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&c->cache, c->pool, &c->s.config), LATTN_OK);
  tokens_make(&c->tokens, n, rng);
  c->tokens.n = n;
  cache_extend(c, 0, NULL, NULL);
  if (rng_chance(rng, 40)) cache_holes(c, rng);
  c->rows = rng_range(rng, 1, CACHE_ROWS);
  tokens_make(&c->tokens, c->rows, rng);
  c->tokens.n += c->rows;
  c->first = c->tokens.n - c->rows;
  n = c->tokens.n;
  c->lse = (float *)ref_memory(c->rows * c->heads, sizeof(float));
  c->low = (float *)ref_memory(c->rows * c->heads, sizeof(float));
  if (rng_chance(rng, 30))
    c->key_bias = tensor_of(floats(c->heads * n, rng), LATTN_F32, 1, c->heads, n);
  if (rng_chance(rng, 30)) c->pair_bias = tensor_of(floats(n * n, rng), LATTN_F32, n, 1, n);
  c->scored = rng_chance(rng, 30);
}

static void cache_close(cache_case *c) {
  CHECK_STATUS(lattn_cache_release(c->cache), LATTN_OK);
  CHECK(guard_free(&c->arena));
  tokens_free(&c->tokens);
  free(c->lse), free(c->low);
  free(test_writable(c->key_bias.data));
  free(test_writable(c->pair_bias.data));
}

/* The call of the newest rows; `pair` is where its view of the pair bias lives. */
static lattn_call cache_call(const cache_case *c, lattn_tensor *pair) {
  lattn_call call;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  if (c->key_bias.data) call.key_bias = &c->key_bias;
  *pair = c->pair_bias;
  if (pair->data) {
    pair->data = (const float *)pair->data + c->first * pair->dim;
    pair->n_tokens = c->rows;
    call.pair_bias = pair;
  }
  if (c->scored) call.score = score_tilt;
  return call;
}

static void cache_weights(const cache_case *c, const lattn_call *call, wanted *x, int32_t threads) {
  lattn_exec exec;
  test_guard scratch = {NULL, 0, NULL, 0};
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = threads;
  exec.parallel_for = threads == 2 ? test_parallel_scrambled : test_parallel_threads;
  if (threads) {
    scratch = guard_alloc(lattn_cache_scratch(&c->s.config, c->rows, threads), 1);
    exec.scratch = scratch.data, exec.scratch_bytes = scratch.bytes;
  }
  CHECK_STATUS(lattn_cache_weights(c->cache, call, tokens_q(&c->tokens, &c->s, c->first, c->rows),
                                   &x->w, threads ? &exec : NULL),
               LATTN_OK);
  CHECK(guard_free(&scratch));
}

/* What holes add to the bound is derived in engine.c: 10u of lse a fold, 2 folds a hole and 2. A
   16-bit key was rounded at its slot: the reference is told key_type instead of rounding it. */
static void cache_random(uint64_t seed) {
  cache_case c;
  wanted x;
  ref_call reference;
  lattn_tensor pair;
  setup plain;
  test_rng rng = rng_seed(seed);
  cache_open(&c, seed, &rng);
  lattn_call call = cache_call(&c, &pair);
  call.lse_low = c.low;
  cache_extend(&c, c.first, &call, c.lse);
  call.lse_low = NULL;
  wanted_open(&x, c.rows, c.heads, c.tokens.n, c.lse, rng_chance(&rng, 50) ? c.low : NULL, &rng);
  cache_weights(&c, &call, &x, 0);
  memcpy(&plain, &c.s, sizeof plain); /* its pointers are still those of c.s */
  plain.config.key_type = 0;
  ref_cache_open(&reference, &plain, &c.tokens);
  reference.key_type = c.s.config.key_type;
  if (c.key_bias.data) reference.options.key_bias = &c.key_bias;
  if (c.pair_bias.data) reference.options.pair_bias = &c.pair_bias;
  if (c.scored) reference.score = ref_tilt, reference.score_user = &c.first;
  check_all(&x, &reference, &c.s, c.first, 10 * REF_U * (double)(c.holes ? 2 * c.holes + 2 : 0));
  uint64_t hash = wanted_hash(&x);
  for (int32_t threads = 1; threads <= 3; threads++) {
    wanted_clear(&x);
    cache_weights(&c, &call, &x, threads);
    if (wanted_hash(&x) != hash) FAIL("other bits with %d threads", (int)threads);
  }
  ref_close(&reference);
  wanted_close(&x);
  cache_close(&c);
}

/* The ties of a cache, with a removed range: keys are positions. */
static void test_cache_ties(void) {
  static tie_call c;
  setup s;
  test_guard arena;
  lattn_pool *pool = NULL;
  lattn_cache *cache = NULL;
  lattn_weights w;
  float out[TIE_HEADS * TIE_DIM];
  test_rng rng = rng_seed(32);
  for (int removed = 0; removed < 2; removed++) {
    int64_t n = removed ? TIE_KEYS - 50 : TIE_KEYS;
    check_case("ties of a cache, %s", removed ? "a range removed" : "nothing removed");
    tie_make(&c, &rng);
    setup_init(&s, TIE_HEADS, 1, TIE_DIM, TIE_DIM, TIE_KEYS);
    s.config.scale = 1;
    size_t bytes = lattn_pool_bytes(NULL, &s.config, 1);
    arena = guard_alloc(bytes, 1);
    CHECK_STATUS(lattn_pool_init(&pool, arena.data, bytes, NULL), LATTN_OK);
    CHECK_STATUS(lattn_cache_init(&cache, pool, &s.config), LATTN_OK);
    lattn_tensor k = tensor_of(c.k, LATTN_F32, TIE_KEYS, 1, TIE_DIM);
    lattn_tensor q = tensor_of(c.q, LATTN_F32, 1, TIE_HEADS, TIE_DIM), to = q;
    to.data = out;
    CHECK_STATUS(lattn_cache_append(cache, k, k, NULL), LATTN_OK);
    if (removed) CHECK_STATUS(lattn_cache_remove(cache, 37, 87), LATTN_OK);
    if (removed) list_remove(c.k, TIE_DIM, TIE_KEYS, 37, 87);
    CHECK_STATUS(lattn_cache_attend(cache, NULL, q, to, c.lse, NULL), LATTN_OK);
    tie_wanted(&w, &c);
    CHECK_STATUS(lattn_cache_weights(cache, NULL, q, &w, NULL), LATTN_OK);
    for (int64_t h = 0; h < TIE_HEADS; h++) tie_check(&c, 0, h, n - 1, 0, TIE_KEYS);
    CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
    CHECK(guard_free(&arena));
  }
}

/* Rows whose window is gone are refused, as by attend. */
static void test_cache_errors(void) {
  enum { N = 400 };
  cache_case c;
  lattn_weights w;
  float p[N * 2];
  int64_t rows[2] = {0, 2};
  test_rng rng = rng_seed(51);
  check_case("weights of a cache: what is refused");
  memset(&c, 0, sizeof c);
  setup_init(&c.s, 2, 1, 4, 4, 0);
  setup_stream(&c.s, 0, 4, 30, 0, 0);
  c.heads = 2;
  c.tokens = tokens_new(&c.s, N);
  size_t bytes = lattn_pool_bytes(NULL, &c.s.config, 1);
  c.arena = guard_alloc(bytes, 1);
  CHECK_STATUS(lattn_pool_init(&c.pool, c.arena.data, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&c.cache, c.pool, &c.s.config), LATTN_OK);
  tokens_make(&c.tokens, N, &rng);
  c.tokens.n = N;
  c.lse = (float *)ref_memory(N * c.heads, sizeof(float));
  cache_extend(&c, 0, NULL, c.lse);
  memset(&w, 0, sizeof w);
  w.size = sizeof w;
  w.lse = c.lse + (N - 1) * 2, w.weights = p;
  lattn_tensor one = tokens_q(&c.tokens, &c.s, N - 1, 1), all = tokens_q(&c.tokens, &c.s, 0, N);
  lattn_tensor wrong = one;
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, one, &w, NULL), LATTN_OK);
  double sum = 0;
  for (int t = 0; t < N; t++) sum += (double)p[t];
  CHECK(fabs(sum - 1) < 1e-5); /* 34 keys: (34 + 10)u and a few exps */
  for (int t = 4; t < N - 30; t++) CHECK(bits_of_f32(p[t]) == 0);
  for (int t = 0; t < N * 2; t++) p[t] = 9;
  CHECK_STATUS(lattn_cache_weights(NULL, NULL, one, &w, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, one, NULL, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, all, &w, NULL), LATTN_E_EVICTED);
  wrong.dim = 3;
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, wrong, &w, NULL), LATTN_E_SHAPE);
  wrong = one, wrong.n_tokens = N + 1;
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, wrong, &w, NULL), LATTN_E_SHAPE);
  w.rows = rows, w.n_rows = 2;
  CHECK_STATUS(lattn_cache_weights(c.cache, NULL, one, &w, NULL), LATTN_E_SHAPE);
  for (int t = 0; t < N * 2; t++) CHECK(p[t] == 9.0f);
  cache_close(&c);
}

/* ---- bad arguments ---- */

static float bad_q[3 * 2 * 4], bad_k[9 * 4], bad_lse[6], bad_low[6], bad_p[3 * 2 * 9], bad_top[24];
static int64_t bad_best[6], bad_keys[24];
static double bad_mass[18];

static void refused(const lattn_attn *a, lattn_tensor q, const lattn_weights *w, lattn_status want,
                    const char *what) {
  lattn_tensor k = tensor_of(bad_k, LATTN_F32, 9, 1, 4);
  lattn_status got;
  for (int i = 0; i < 3 * 2 * 9; i++) bad_p[i] = 9;
  for (int i = 0; i < 6; i++) bad_best[i] = 9;
  for (int i = 0; i < 18; i++) bad_mass[i] = 9;
  got = lattn_attention_weights(a, q, k, w, NULL);
  if (got != want)
    FAIL("%s: %s, expected %s", what, lattn_status_text(got), lattn_status_text(want));
  for (int i = 0; i < 3 * 2 * 9; i++) CHECK(bad_p[i] == 9.0f);
  for (int i = 0; i < 6; i++) CHECK(bad_best[i] == 9);
  for (int i = 0; i < 18; i++) CHECK(bad_mass[i] == 9.0);
}

static void test_bad(void) {
  static const int64_t rows[3] = {0, 2, 1}, no_row[2] = {0, 3}, negative[1] = {-1};
  static const int32_t no_head[1] = {2}, negative_head[1] = {-1};
  lattn_tensor q = tensor_of(bad_q, LATTN_F32, 3, 2, 4), k = tensor_of(bad_k, LATTN_F32, 9, 1, 4);
  lattn_weights w, good;
  lattn_attn a;
  check_case("weights: what is refused");
  memset(&good, 0, sizeof good), memset(&a, 0, sizeof a);
  a.size = sizeof a;
  good.size = sizeof good;
  good.lse = bad_lse, good.lse_low = bad_low;
  good.weights = bad_p, good.argmax = bad_best, good.mass = bad_mass;
  good.top_k = 4, good.top_keys = bad_keys, good.top_weights = bad_top;
  good.rows = rows, good.n_rows = 3;
  CHECK_STATUS(lattn_attention_weights(&a, q, k, &good, NULL), LATTN_OK);
  refused(&a, q, NULL, LATTN_E_NULL, "weights NULL");
#define REFUSED(status, ...) w = good, __VA_ARGS__, refused(&a, q, &w, status, #__VA_ARGS__)
  REFUSED(LATTN_E_SIZE, w.size = 0);
  REFUSED(LATTN_E_NULL, w.lse = NULL);
  REFUSED(LATTN_E_NULL, w.rows = NULL);
  REFUSED(LATTN_E_NULL, w.heads = NULL, w.n_heads = 1);
  REFUSED(LATTN_E_SHAPE, w.n_rows = -1);
  REFUSED(LATTN_E_SHAPE, w.n_heads = -1);
  REFUSED(LATTN_E_SHAPE, w.rows = no_row, w.n_rows = 2);
  REFUSED(LATTN_E_SHAPE, w.rows = negative, w.n_rows = 1);
  REFUSED(LATTN_E_SHAPE, w.heads = no_head, w.n_heads = 1);
  REFUSED(LATTN_E_SHAPE, w.heads = negative_head, w.n_heads = 1);
  REFUSED(LATTN_E_SHAPE, w.top_k = -1);
  REFUSED(LATTN_E_SHAPE, w.stride = 8);
  REFUSED(LATTN_E_SHAPE, w.stride = -1);
  REFUSED(LATTN_E_CONFIG, w.top_keys = NULL);
  REFUSED(LATTN_E_CONFIG, w.top_weights = NULL);
  REFUSED(LATTN_E_ALIAS, w.weights = bad_q);
  REFUSED(LATTN_E_ALIAS, w.weights = bad_lse);
  REFUSED(LATTN_E_ALIAS, w.top_weights = bad_p + 3);
#undef REFUSED
  check_case("weights: no rows, and a mass beyond 64 bits");
  w = good;
  w.rows = NULL, w.n_rows = 0, w.stride = INT64_C(1) << 60;
  lattn_tensor bad = q;
  bad.n_tokens = 0;
  refused(&a, bad, &w, LATTN_E_OVERFLOW, "stride 2^60");
  check_case("weights: views that are refused");
  bad = q, bad.dim = 3;
  refused(&a, bad, &good, LATTN_E_SHAPE, "q.dim");
  bad = q, bad.n_heads = 0;
  refused(&a, bad, &good, LATTN_E_SHAPE, "q.n_heads");
  bad = q, bad.type = 9;
  refused(&a, bad, &good, LATTN_E_TYPE, "q.type");
  a.mask = 7;
  refused(&a, q, &good, LATTN_E_FIELD, "options.mask");
  a.mask = LATTN_FULL;
  a.weighting = 2;
  refused(&a, q, &good, LATTN_E_FIELD, "weighting");
  a.weighting = LATTN_SIGMOID;
  a.sink_logits = bad_low;
  refused(&a, q, &good, LATTN_E_CONFIG, "sink_logits");
}

int main(void) {
  uint64_t first = 10 * (test_first_seed() - 1);
  case_pool_make();
  test_alone();
  test_ties();
  test_low();
  test_low_alone();
  test_special();
  test_cache_ties();
  test_cache_errors();
  test_bad();
  for (int64_t i = 0; i < test_count(300); i++) array_random(first + 7000 + (uint64_t)i);
  for (int64_t i = 0; i < test_count(150); i++) cache_random(first + 8000 + (uint64_t)i);
  return test_summary();
}
