/* selective.c - selective values (top_values) in caches whose heads drop tokens: a compensated head
 * against streaming ones, heads chosen at marks against the keys that lattn_cache_weights names.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   BOUNDS. Inputs are below 6, dims at most 24: a score is off by at most 28 u * 6 (u = 2^-24; of
   |scale q k| sums of a few units), its weight by e times that and 2 ulp of exp, sums of at most
   700 weights by 200 u: weights and shares below 1e-4 in all, outputs below 6e-4, and what is
   compared is made of at most three of them. Each lse is a float of a few units: 1e-6 more. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

enum { TOKENS = 600, HEADS = 4, KV_HEADS = 2, VALUE_DIM = 20, ROWS = 12, TOP = 5 };
#define SHARE_ERROR 2e-4
#define OUT_ERROR 2e-3

/* What a call gives. */
typedef struct answer {
  float out[TOKENS * HEADS * VALUE_DIM];
  float lse[TOKENS * HEADS], dropped[TOKENS * HEADS];
  float bound[TOKENS * HEADS], estimate[TOKENS * HEADS];
} answer;

typedef struct rig {
  setup s;
  token_list t;
  void *arena, *scratch;
  lattn_pool *pool;
  lattn_cache *cache;
  lattn_exec ex;
} rig;

static void rig_init(rig *r, test_rng *rng) {
  static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16};
  memset(r, 0, sizeof *r);
  setup_init(&r->s, HEADS, KV_HEADS, 24, VALUE_DIM, TOKENS);
  r->s.config.key_type = types[rng_below(rng, 3)];
  r->s.config.value_type = types[rng_below(rng, 3)];
  r->s.config.max_append = rng_range(rng, 1, 200);
  if (rng_chance(rng, 50)) setup_rotate(&r->s, LATTN_ROTARY_HALF_SPLIT, 0, 8);
  if (rng_chance(rng, 30)) setup_sinks(&r->s);
}

static void rig_open(rig *r, int32_t threads, test_rng *rng) {
  size_t bytes = lattn_pool_bytes(NULL, &r->s.config, 1);
  size_t scratch = threads ? lattn_cache_scratch(&r->s.config, TOKENS, threads) : 0;
  r->arena = ref_memory((int64_t)bytes, 1);
  r->scratch = ref_memory((int64_t)scratch + 1, 1);
  CHECK(bytes && (scratch || !threads));
  CHECK_STATUS(lattn_pool_init(&r->pool, r->arena, bytes, NULL), LATTN_OK);
  if (!CHECK_STATUS(lattn_cache_init(&r->cache, r->pool, &r->s.config), LATTN_OK)) {
    printf("    at %s\n", r->s.fault.argument ? r->s.fault.argument : "(no argument named)");
    exit(test_summary());
  }
  r->ex.size = sizeof r->ex;
  r->ex.n_threads = threads;
  r->ex.parallel_for = test_parallel_scrambled;
  r->ex.scratch = threads ? r->scratch : NULL;
  r->ex.scratch_bytes = scratch;
  r->t = tokens_new(&r->s, TOKENS);
  tokens_make(&r->t, TOKENS, rng);
}

static void rig_close(rig *r) {
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  tokens_free(&r->t);
  free(r->arena);
  free(r->scratch);
}

static lattn_call call_of(answer *a, int32_t top, int32_t mode) {
  lattn_call c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.top_values = top;
  c.top_mode = mode;
  c.dropped = a->dropped;
  c.lost_bound = a->bound;
  c.lost_estimate = a->estimate;
  return c;
}

static void extend(rig *r, answer *a, int64_t first, int64_t n, int32_t top) {
  lattn_call c = call_of(a, top, LATTN_TOP_KEEP);
  CHECK_STATUS(
      lattn_cache_extend(r->cache, &c, tokens_q(&r->t, &r->s, first, n),
                         tokens_k(&r->t, &r->s, first, n), tokens_v(&r->t, &r->s, first, n),
                         tensor_of(a->out, LATTN_F32, n, HEADS, VALUE_DIM), a->lse, &r->ex),
      LATTN_OK);
}

/* The newest `rows` of n tokens. */
static void attend(rig *r, answer *a, int64_t n, int64_t rows, int32_t top, int32_t mode) {
  lattn_call c = call_of(a, top, mode);
  memset(a, 0x5a, sizeof *a);
  CHECK_STATUS(
      lattn_cache_attend(r->cache, &c, tokens_q(&r->t, &r->s, n - rows, rows),
                         tensor_of(a->out, LATTN_F32, rows, HEADS, VALUE_DIM), a->lse, &r->ex),
      LATTN_OK);
}

static int same(const float *a, const float *b, int64_t n) {
  int equal = 1;
  for (int64_t i = 0; i < n; i++) equal &= same_f32(a[i], b[i]);
  return equal;
}

static int near(double a, double b, double error) { return fabs(a - b) <= error; }

/* ---- a compensated head ----
   Its rows are those of a streaming head, and one key more, of weight p0 and value v0, relative to
   the sum L of the compensated row without choice. What a choice does to the streaming row it does
   to the compensated one, and p0 * v0 stays. */

static void check_row(const rig *r, const answer *comp, const answer *stream, int64_t row,
                      int64_t h) {
  enum { ALL, KEEP, NORM };
  int64_t i = row * HEADS + h;
  double whole = (double)comp[ALL].lse[i], z = r->s.config.sink_logits ? (double)r->s.sinks[h] : 0;
  double sink = r->s.config.sink_logits ? exp(z - whole) : 0;
  double kept = exp((double)stream[ALL].lse[i] - whole), p0 = 1 - kept; /* the sink is in both */
  double norm = exp((double)stream[NORM].lse[i] - whole);
  double sum = exp((double)comp[NORM].lse[i] - whole);
  double lost = p0 / (p0 + norm - sink);
  CHECK(near(sum, norm + p0, SHARE_ERROR));
  CHECK(near(lost, (double)comp[NORM].estimate[i], SHARE_ERROR * (1 + 1 / (p0 + norm - sink))));
  CHECK(comp[NORM].bound[i] >= comp[KEEP].bound[i]);
  for (int64_t d = i * VALUE_DIM; d < (i + 1) * VALUE_DIM; d++) {
    double value = (double)comp[ALL].out[d] - kept * (double)stream[ALL].out[d]; /* p0 * v0 */
    CHECK(near((double)comp[KEEP].out[d], kept * (double)stream[KEEP].out[d] + value, OUT_ERROR));
    CHECK(near(sum * (double)comp[NORM].out[d], norm * (double)stream[NORM].out[d] + value,
               OUT_ERROR));
  }
}

static void test_compensated(void) {
  int64_t cases = test_count(60);
  static answer comp[3], stream[3], whole;
  for (int64_t c = 0; c < cases; c++) {
    test_rng rng = rng_seed(test_first_seed() + (uint64_t)c), other;
    rig r, plain;
    int64_t n = rng_range(&rng, 200, TOKENS), all = ROWS * HEADS;
    int32_t threads = (int32_t)rng_below(&rng, 4);
    rig_init(&r, &rng);
    for (int g = 0; g < KV_HEADS; g++)
      setup_stream(&r.s, g, rng_below(&rng, 20), rng_range(&rng, 1, 150), ROWS,
                   LATTN_POSITIONS_ABSOLUTE);
    memset(&plain, 0, sizeof plain);
    setup_copy(&plain.s, &r.s);
    for (int g = 0; g < KV_HEADS; g++) setup_compensate(&r.s, g, LATTN_HEAD_LOST);
    other = rng;
    check_case("compensated seed %d, %d tokens, %d threads", (int)c, (int)n, (int)threads);
    rig_open(&r, threads, &rng);
    rig_open(&plain, threads, &other);
    extend(&r, &whole, 0, n, c % 2 ? TOP : 0);
    extend(&plain, &whole, 0, n, 0);
    for (int i = 0; i < 3; i++) {
      int32_t mode = i == 2 ? LATTN_TOP_NORMALISE : LATTN_TOP_KEEP;
      attend(&r, comp + i, n, ROWS, i ? TOP : 0, mode);
      attend(&plain, stream + i, n, ROWS, i ? TOP : 0, mode);
      CHECK(same(comp[i].dropped, stream[i].dropped, all));
    }
    CHECK(same(comp[1].lse, comp[0].lse, all) && same(comp[1].bound, comp[0].bound, all));
    CHECK(same(comp[1].estimate, comp[0].estimate, all));
    for (int64_t row = 0; row < ROWS; row++)
      for (int64_t h = 0; h < HEADS; h++) check_row(&r, comp, stream, row, h);
    attend(&r, &whole, n, ROWS, 250, LATTN_TOP_NORMALISE); /* more than a row sees */
    CHECK(same(whole.out, comp[0].out, all * VALUE_DIM) && same(whole.lse, comp[0].lse, all));
    CHECK(same(whole.bound, comp[0].bound, all) && whole.dropped[0] == 0);
    rig_close(&r);
    rig_close(&plain);
  }
}

/* ---- heads that were chosen at a mark ---- */

/* The rows' outputs from their best keys, by lattn_cache_weights and lattn_cache_read. */
static void check_best(rig *r, const answer *a, int64_t n, int64_t rows) {
  enum { MOST = ROWS * HEADS };
  static int64_t keys[MOST * TOP];
  static float shares[MOST * TOP];
  lattn_weights w;
  memset(&w, 0, sizeof w);
  w.size = sizeof w;
  w.lse = a->lse;
  w.top_k = TOP;
  w.top_keys = keys;
  w.top_weights = shares;
  CHECK_STATUS(
      lattn_cache_weights(r->cache, NULL, tokens_q(&r->t, &r->s, n - rows, rows), &w, &r->ex),
      LATTN_OK);
  for (int64_t i = 0; i < rows * HEADS; i++) {
    double want[VALUE_DIM] = {0}, taken = 0, all = 1;
    int32_t g = (int32_t)(i % HEADS / (HEADS / KV_HEADS));
    for (int64_t j = i * TOP; j < (i + 1) * TOP; j++) {
      float v[VALUE_DIM];
      lattn_tensor none;
      memset(&none, 0, sizeof none);
      if (keys[j] < 0) continue;
      CHECK_STATUS(
          lattn_cache_read(r->cache, g, keys[j], none, tensor_of(v, LATTN_F32, 1, 1, VALUE_DIM), 0),
          LATTN_OK);
      for (int d = 0; d < VALUE_DIM; d++) want[d] += (double)shares[j] * (double)v[d];
      taken += (double)shares[j];
    }
    if (r->s.config.sink_logits) all -= exp((double)r->s.sinks[i % HEADS] - (double)a->lse[i]);
    CHECK(near((double)a->dropped[i], 1 - taken / all, SHARE_ERROR * (1 + 1 / all)));
    for (int d = 0; d < VALUE_DIM; d++)
      CHECK(near((double)a->out[i * VALUE_DIM + d], want[d], OUT_ERROR));
  }
}

/* What stays is chosen by all keys, whatever values the rows took. */
static void test_chosen(void) {
  int64_t cases = test_count(60);
  static answer a, b;
  for (int64_t c = 0; c < cases; c++) {
    test_rng rng = rng_seed(4000 + test_first_seed() + (uint64_t)c), other;
    rig r, plain;
    int64_t n = rng_range(&rng, 150, TOKENS - ROWS), all = ROWS * HEADS;
    int32_t threads = (int32_t)rng_range(&rng, 1, 3);
    rig_init(&r, &rng);
    for (int g = 0; g < KV_HEADS; g++) {
      memset(&r.s.heads[g], 0, sizeof r.s.heads[g]);
      if (g && rng_chance(&rng, 50)) continue; /* a full one */
      r.s.heads[g].policy = rng_chance(&rng, 50) ? LATTN_HEAD_SNAP : LATTN_HEAD_HEAVY;
      r.s.heads[g].budget = rng_range(&rng, 40, 140);
      r.s.heads[g].window = rng_range(&rng, 1, 30);
    }
    memset(&plain, 0, sizeof plain);
    setup_copy(&plain.s, &r.s);
    other = rng;
    check_case("chosen seed %d, %d tokens, %d threads", (int)c, (int)n, (int)threads);
    rig_open(&r, threads, &rng);
    rig_open(&plain, threads, &other);
    extend(&r, &a, 0, n, TOP);
    extend(&plain, &a, 0, n, 0);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    CHECK_STATUS(lattn_cache_mark(plain.cache, LATTN_PROMPT_END, &plain.ex), LATTN_OK);
    CHECK(head_stats(r.cache, 0).n_tokens_held < n);
    extend(&r, &a, n, ROWS, TOP);
    check_best(&r, &a, n + ROWS, ROWS);
    attend(&r, &b, n + ROWS, ROWS, TOP, LATTN_TOP_KEEP);
    CHECK(same(a.out, b.out, all * VALUE_DIM) && same(a.dropped, b.dropped, all));
    extend(&plain, &a, n, ROWS, 0);
    attend(&r, &b, n + ROWS, ROWS, 0, LATTN_TOP_KEEP);
    CHECK(same(a.out, b.out, all * VALUE_DIM) && same(a.lse, b.lse, all));
    attend(&r, &b, n + ROWS, ROWS, TOKENS - 1, LATTN_TOP_KEEP); /* more than a row sees */
    CHECK(same(a.out, b.out, all * VALUE_DIM) && same(a.lse, b.lse, all));
    rig_close(&r);
    rig_close(&plain);
  }
}

int main(void) {
  test_compensated();
  test_chosen();
  return test_summary();
}
