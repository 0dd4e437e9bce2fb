/* extra.c - an extra key (learned sink token, K bias, KV bias) in calls on caches: against the same
 * call without it, to which the reference adds it, and to the bit over cuts, threads and batches.
 * And pruned heads: a gate of 0.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A row's output o and log-sum-exp l without the extra key give those with it: with s its score and
   v its value, o' = (1 - w) o + w v, w = 1 / (1 + exp(l - s)), l' = l + ln(1 + exp(s - l)).

   BOUNDS (u = 2^-24). Scores are sums of at most 48 products, of queries and keys that are
   normal: below 40 with the scale, so s is off by 51 u * 40 + 16 u * 40 of its rotation < 2e-4 (as
   in ref.h); l is a float below 64, of a sum whose weights are off by as much: 2e-4 + 4e-6. w is
   then off by a quarter of their sum at most (the slope of the logistic function), o' by that times
   |o| + |v| < 12: 1.2e-3; half an ulp of f16 is 1e-3 more. l' is off by no more than l and s. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

enum { HEADS = 8, KV_HEADS = 4, KEY_DIM = 48, VALUE_DIM = 32, ROWS = 9, MOST = 5000 };
#define OUT_ERROR 2.5e-3
#define LSE_ERROR 4.5e-4

typedef struct rig {
  setup s;
  token_list t;
  void *arena, *scratch;
  lattn_pool *pool;
  lattn_exec ex;
  float key[HEADS * KEY_DIM], value[HEADS * VALUE_DIM];
  lattn_tensor extra_key, extra_value;
} rig;

typedef struct answer {
  float out[ROWS * HEADS * VALUE_DIM], lse[ROWS * HEADS];
} answer;

/* Heads of every policy that a cache may have. */
static void rig_policies(rig *r, test_rng *rng) {
  for (int g = 0; g < KV_HEADS; g++) {
    int64_t policy = rng_below(rng, 5);
    int32_t positions = rng_chance(rng, 50) && r->s.config.rotary ? LATTN_POSITIONS_IN_CACHE
                                                                  : LATTN_POSITIONS_ABSOLUTE;
    if (policy == 0) continue;
    setup_stream(&r->s, g, rng_below(rng, 6), rng_range(rng, 20, 300), ROWS, positions);
    if (policy == 2) setup_compensate(&r->s, g, LATTN_HEAD_LOST);
    if (policy < 3) continue;
    memset(&r->s.heads[g], 0, sizeof r->s.heads[g]);
    r->s.heads[g].policy = policy == 3 ? LATTN_HEAD_SNAP : LATTN_HEAD_HEAVY;
    r->s.heads[g].budget = rng_range(rng, 40, 140);
    r->s.heads[g].window = rng_range(rng, 1, 30);
  }
}

static void rig_open(rig *r, int64_t n, int32_t threads, test_rng *rng) {
  static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16, LATTN_I8, LATTN_I4};
  const int64_t heads[] = {1, KV_HEADS, HEADS};
  int64_t of_key = heads[rng_below(rng, 3)], of_value = heads[rng_below(rng, 3)];
  memset(r, 0, sizeof *r);
  setup_init(&r->s, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM, n + ROWS);
  r->s.config.key_type = types[rng_below(rng, 5)];
  r->s.config.value_type = types[rng_below(rng, 5)];
  r->s.config.max_append = rng_range(rng, 1, 200);
  if (rng_chance(rng, 60)) setup_rotate(&r->s, LATTN_ROTARY_HALF_SPLIT, 0, 16);
  if (rng_chance(rng, 30)) setup_alibi(&r->s);
  if (rng_chance(rng, 30)) r->s.config.softcap = 8;
  rig_policies(r, rng);
  size_t bytes = lattn_pool_bytes(NULL, &r->s.config, 2 * ROWS);
  size_t scratch = threads ? lattn_cache_scratch(&r->s.config, n + ROWS, threads) : 0;
  r->arena = ref_memory((int64_t)bytes, 1);
  r->scratch = ref_memory((int64_t)scratch + 1, 1);
  CHECK(bytes && (scratch || !threads));
  CHECK_STATUS(lattn_pool_init(&r->pool, r->arena, bytes, NULL), LATTN_OK);
  r->ex.size = sizeof r->ex;
  r->ex.n_threads = threads;
  r->ex.parallel_for = test_parallel_scrambled;
  r->ex.scratch = threads ? r->scratch : NULL;
  r->ex.scratch_bytes = scratch;
  r->t = tokens_new(&r->s, n + ROWS);
  tokens_make(&r->t, n + ROWS, rng);
  for (int i = 0; i < HEADS * KEY_DIM; i++) r->key[i] = 2 * rng_normal(rng);
  for (int i = 0; i < HEADS * VALUE_DIM; i++) r->value[i] = rng_normal(rng);
  r->extra_key = tensor_of(r->key, LATTN_F32, 1, of_key, KEY_DIM);
  r->extra_value = tensor_of(r->value, LATTN_F32, 1, of_value, VALUE_DIM);
}

static void rig_close(rig *r) {
  tokens_free(&r->t);
  free(r->arena);
  free(r->scratch);
}

static lattn_cache *cache_new(rig *r) {
  lattn_cache *cache = NULL;
  CHECK_STATUS(lattn_cache_init(&cache, r->pool, &r->s.config), LATTN_OK);
  return cache;
}

static lattn_call call_of(const rig *r, int extra, int value) {
  lattn_call c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  if (extra) c.extra_key = &r->extra_key;
  if (extra && value) c.extra_value = &r->extra_value;
  return c;
}

/* n tokens from `first` on, in calls of `step`; the answers of the last call's rows. */
static void extend(rig *r, lattn_cache *cache, const lattn_call *c, int64_t first, int64_t n,
                   int64_t step, answer *a) {
  for (int64_t i = 0; i < n; i += step) {
    int64_t m = n - i < step ? n - i : step;
    static float out[MOST * HEADS * VALUE_DIM], lse[MOST * HEADS];
    CHECK_STATUS(lattn_cache_extend(cache, c, tokens_q(&r->t, &r->s, first + i, m),
                                    tokens_k(&r->t, &r->s, first + i, m),
                                    tokens_v(&r->t, &r->s, first + i, m),
                                    tensor_of(out, LATTN_F32, m, HEADS, VALUE_DIM), lse, &r->ex),
                 LATTN_OK);
    for (int64_t row = 0; a && row < m; row++) {
      int64_t to = i + row - (n - ROWS);
      if (to < 0) continue;
      memcpy(a->out + to * HEADS * VALUE_DIM, out + row * HEADS * VALUE_DIM,
             HEADS * VALUE_DIM * sizeof *out);
      memcpy(a->lse + to * HEADS, lse + row * HEADS, HEADS * sizeof *lse);
    }
  }
}

static int same(const answer *a, const answer *b) {
  int equal = 1;
  for (int i = 0; i < ROWS * HEADS * VALUE_DIM; i++) equal &= same_f32(a->out[i], b->out[i]);
  for (int i = 0; i < ROWS * HEADS; i++) equal &= same_f32(a->lse[i], b->lse[i]);
  return equal;
}

/* Score of the extra key for the query of token t, at that position. */
static double score_of(const rig *r, int64_t t, int64_t position, int64_t h) {
  double q[KEY_DIM], s = 0, cap = (double)r->s.config.softcap;
  const float *key = r->key + h * r->extra_key.n_heads / HEADS * KEY_DIM;
  for (int d = 0; d < KEY_DIM; d++) q[d] = (double)r->t.q[t * r->t.q_row + h * KEY_DIM + d];
  if (r->s.config.rotary) ref_rotate(q, r->s.config.rotary, position, NULL);
  for (int d = 0; d < KEY_DIM; d++) s += q[d] * (double)key[d];
  s /= sqrt((double)KEY_DIM);
  return cap > 0 ? cap * tanh(s / cap) : s;
}

/* Rows of tokens `first` and on, the first at that position. */
static void check_rows(const rig *r, const answer *plain, const answer *with, int64_t first,
                       int64_t position, int value) {
  for (int64_t row = 0; row < ROWS; row++)
    for (int64_t h = 0; h < HEADS; h++) {
      int64_t i = row * HEADS + h;
      double s = score_of(r, first + row, position + row, h), l = (double)plain->lse[i];
      double w = 1 / (1 + exp(l - s)), most = fmax(l, s);
      const float *v = r->value + h * r->extra_value.n_heads / HEADS * VALUE_DIM;
      double want = most + log(exp(l - most) + exp(s - most));
      CHECK(fabs((double)with->lse[i] - want) < LSE_ERROR);
      for (int d = 0; d < VALUE_DIM; d++) {
        double o = (1 - w) * (double)plain->out[i * VALUE_DIM + d];
        if (value) o += w * (double)v[d];
        CHECK(fabs((double)with->out[i * VALUE_DIM + d] - o) < OUT_ERROR);
      }
    }
}

/* Partials: the extra key is in one of two parts, whose merge is the row. */
static void check_partials(rig *r, lattn_cache *cache, int64_t n, const answer *with, int value) {
  enum { ALL = ROWS * HEADS };
  static float numbers[2][2 * ALL], outputs[2][ALL * VALUE_DIM];
  static answer got;
  lattn_partial parts[2];
  lattn_call c = call_of(r, 1, value);
  lattn_tensor out = tensor_of(got.out, LATTN_F32, ROWS, HEADS, VALUE_DIM), none = out;
  memset(parts, 0, sizeof parts);
  none.data = NULL;
  for (int i = 0; i < 2; i++) {
    parts[i].size = sizeof parts[i];
    parts[i].n_rows = ALL;
    parts[i].value_dim = VALUE_DIM;
    parts[i].maximum = numbers[i];
    parts[i].sum = numbers[i] + ALL;
    parts[i].output = outputs[i];
  }
  c.partial = parts;
  CHECK_STATUS(
      lattn_cache_attend(cache, &c, tokens_q(&r->t, &r->s, n - ROWS, ROWS), none, NULL, &r->ex),
      LATTN_OK);
  CHECK_STATUS(lattn_merge(NULL, 1, parts, out, got.lse, NULL), LATTN_OK);
  CHECK(same(&got, with));
}

/* One cache with, one without; the same tokens in other cuts; a mark; marks choose by neither. */
static void test_caches(void) {
  static answer plain, with, other;
  for (int64_t c = 0, cases = test_count(60); c < cases; c++) {
    test_rng rng = rng_seed(test_first_seed() + (uint64_t)c);
    static rig r;
    int is_long = c % 12 == 0, value = rng_chance(&rng, 70);
    int64_t n = is_long ? rng_range(&rng, 4100, MOST - ROWS) : rng_range(&rng, ROWS, 700);
    int32_t threads = (int32_t)rng_below(&rng, 4);
    rig_open(&r, n, threads, &rng);
    lattn_call call = call_of(&r, 1, value), none = call_of(&r, 0, 0);
    check_case("extra seed %d, %d tokens, %d threads", (int)c, (int)n, (int)threads);
    lattn_cache *a = cache_new(&r), *b = cache_new(&r);
    extend(&r, a, &none, 0, n, n, &plain);
    extend(&r, b, &call, 0, n, rng_range(&rng, is_long ? 300 : 1, n), &with);
    check_rows(&r, &plain, &with, n - ROWS, n - ROWS, value);
    check_partials(&r, b, n, &with, value);
    CHECK_STATUS(lattn_cache_mark(a, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    CHECK_STATUS(lattn_cache_mark(b, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    lattn_cache *d = NULL;
    CHECK_STATUS(lattn_cache_fork(&d, b), LATTN_OK);
    extend(&r, a, &none, n, ROWS, ROWS, &plain);
    extend(&r, b, &call, n, ROWS, ROWS, &with);
    check_rows(&r, &plain, &with, n, n, value);
    r.ex.n_threads = 1 - (r.ex.n_threads > 0 && r.ex.n_threads < 2);
    extend(&r, d, &call, n, ROWS, 1, &other);
    CHECK(same(&with, &other));
    CHECK_STATUS(lattn_cache_release(d), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(b), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(a), LATTN_OK);
    rig_close(&r);
  }
}

/* Positions close up over removed tokens: the query meets the extra key at its new position. */
static void test_removed(void) {
  static answer plain, with;
  for (int64_t c = 0, cases = test_count(20); c < cases; c++) {
    test_rng rng = rng_seed(7000 + test_first_seed() + (uint64_t)c);
    static rig r;
    int64_t n = rng_range(&rng, 300, 700), from = rng_range(&rng, 1, 100), gone = 130;
    rig_open(&r, n, 2, &rng);
    memset(r.s.heads, 0, sizeof r.s.heads); /* all full */
    lattn_call call = call_of(&r, 1, 1), none = call_of(&r, 0, 0);
    check_case("removed seed %d, %d tokens", (int)c, (int)n);
    lattn_cache *a = cache_new(&r), *b = cache_new(&r);
    extend(&r, a, &none, 0, n, n, NULL);
    extend(&r, b, &call, 0, n, n, NULL);
    CHECK_STATUS(lattn_cache_remove(a, from, from + gone), LATTN_OK);
    CHECK_STATUS(lattn_cache_remove(b, from, from + gone), LATTN_OK);
    extend(&r, a, &none, n, ROWS, ROWS, &plain);
    extend(&r, b, &call, n, ROWS, 4, &with);
    check_rows(&r, &plain, &with, n, n - gone, 1);
    CHECK_STATUS(lattn_cache_release(b), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(a), LATTN_OK);
    rig_close(&r);
  }
}

/* Scratch for n sequences of ROWS rows in all, on two threads. */
static void rig_batch(rig *r, int64_t n) {
  size_t bytes = lattn_batch_scratch(&r->s.config, n, ROWS, 2);
  free(r->scratch);
  r->ex.scratch = r->scratch = ref_memory((int64_t)bytes, 1);
  r->ex.scratch_bytes = bytes;
}

/* Sequences of one call that share their beginning, against each alone. */
static void test_batch(void) {
  enum { N = 3, EACH = ROWS / N };
  static answer alone, together;
  for (int64_t c = 0, cases = test_count(20); c < cases; c++) {
    test_rng rng = rng_seed(9000 + test_first_seed() + (uint64_t)c);
    static rig r;
    int64_t n = c % 4 ? rng_range(&rng, 20, 600) : 4200;
    rig_open(&r, n, 2, &rng);
    lattn_call call = call_of(&r, 1, 1);
    lattn_cache *first = cache_new(&r), *fork, *forks[N];
    lattn_sequence list[N];
    check_case("batch seed %d, %d tokens", (int)c, (int)n);
    extend(&r, first, &call, 0, n, n, NULL);
    memset(list, 0, sizeof list);
    for (int64_t i = 0; i < N; i++) {
      CHECK_STATUS(lattn_cache_fork(&fork, first), LATTN_OK);
      CHECK_STATUS(lattn_cache_fork(&forks[i], first), LATTN_OK);
      extend(&r, fork, &call, n + EACH * i, EACH, EACH, NULL);
      CHECK_STATUS(lattn_cache_attend(fork, &call, tokens_q(&r.t, &r.s, n + EACH * i, EACH),
                                      tensor_of(alone.out + i * EACH * HEADS * VALUE_DIM, LATTN_F32,
                                                EACH, HEADS, VALUE_DIM),
                                      alone.lse + i * EACH * HEADS, &r.ex),
                   LATTN_OK);
      CHECK_STATUS(lattn_cache_release(fork), LATTN_OK);
      list[i].cache = forks[i];
      list[i].n_tokens = EACH;
    }
    rig_batch(&r, N);
    CHECK_STATUS(lattn_batch_extend(N, list, &call, tokens_q(&r.t, &r.s, n, ROWS),
                                    tokens_k(&r.t, &r.s, n, ROWS), tokens_v(&r.t, &r.s, n, ROWS),
                                    tensor_of(together.out, LATTN_F32, ROWS, HEADS, VALUE_DIM),
                                    together.lse, &r.ex),
                 LATTN_OK);
    CHECK(same(&alone, &together));
    for (int i = 0; i < N; i++) CHECK_STATUS(lattn_cache_release(forks[i]), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(first), LATTN_OK);
    rig_close(&r);
  }
}

/* Heads with a gate of 0 give +0, whatever they hold; the others, what they give without a gate. Of
   one sequence, and of a batch that shares its beginning. */
static void test_pruned(void) {
  enum { N = 3, EACH = ROWS / N };
  static answer plain, gated;
  for (int64_t c = 0, cases = test_count(20); c < cases; c++) {
    test_rng rng = rng_seed(11000 + test_first_seed() + (uint64_t)c);
    static rig r;
    int64_t n = c % 4 ? rng_range(&rng, 20, 600) : 4200;
    float numbers[ROWS * HEADS];
    lattn_tensor gate = tensor_of(numbers, LATTN_F32, ROWS, HEADS, 1);
    rig_open(&r, n, 2, &rng);
    lattn_call call = call_of(&r, (int)(c % 2), 1);
    lattn_cache *first = cache_new(&r), *forks[N];
    lattn_sequence list[N];
    lattn_tensor q = tokens_q(&r.t, &r.s, n, ROWS);
    lattn_tensor out = tensor_of(gated.out, LATTN_F32, ROWS, HEADS, VALUE_DIM);
    check_case("pruned seed %d, %d tokens", (int)c, (int)n);
    for (int h = 0; h < HEADS; h++) { /* some KV heads for all rows, some query heads for some */
      int whole = (int)rng_below(&rng, 3), group = HEADS / KV_HEADS;
      for (int row = 0; row < ROWS; row++) {
        int own = whole == 0 || (whole == 1 && rng_chance(&rng, 50));
        numbers[row * HEADS + h] = h % group && whole < 2 ? numbers[row * HEADS + h - 1] : !own;
      }
    }
    extend(&r, first, &call, 0, n, n, NULL);
    memset(list, 0, sizeof list);
    for (int64_t i = 0; i < N; i++) {
      CHECK_STATUS(lattn_cache_fork(&forks[i], first), LATTN_OK);
      list[i].cache = forks[i];
      list[i].n_tokens = EACH;
    }
    rig_batch(&r, N);
    out.data = plain.out;
    CHECK_STATUS(lattn_batch_extend(N, list, &call, q, tokens_k(&r.t, &r.s, n, ROWS),
                                    tokens_v(&r.t, &r.s, n, ROWS), out, NULL, &r.ex),
                 LATTN_OK);
    call.gate = &gate;
    out.data = gated.out;
    for (int both = 0; both < 2; both++) { /* skipped; and not, for lse is wanted */
      memset(&gated, 0x5a, sizeof gated);
      CHECK_STATUS(lattn_batch_attend(N, list, &call, q, out, both ? gated.lse : NULL, &r.ex),
                   LATTN_OK);
      for (int i = 0; i < ROWS * HEADS * VALUE_DIM; i++)
        CHECK(same_f32(gated.out[i], numbers[i / VALUE_DIM] > 0 ? plain.out[i] : 0));
    }
    for (int i = 0; i < N; i++) CHECK_STATUS(lattn_cache_release(forks[i]), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(first), LATTN_OK);
    rig_close(&r);
  }
}

/* What is wrong is said, and nothing is written. */
static void test_wrong(void) {
  test_rng rng = rng_seed(1);
  static rig r;
  rig_open(&r, 40, 1, &rng);
  lattn_cache *cache = cache_new(&r);
  lattn_call c = call_of(&r, 1, 1), good = c;
  lattn_tensor t = r.extra_key;
  float out[HEADS * VALUE_DIM] = {7};
  lattn_tensor o = tensor_of(out, LATTN_F32, 1, HEADS, VALUE_DIM);
  lattn_fault fault;
  r.ex.fault = &fault;
#define WRONG(status, name)                                                                 \
  CHECK_STATUS(                                                                             \
      lattn_cache_extend(cache, &c, tokens_q(&r.t, &r.s, 0, 1), tokens_k(&r.t, &r.s, 0, 1), \
                         tokens_v(&r.t, &r.s, 0, 1), o, NULL, &r.ex),                       \
      status);                                                                              \
  CHECK(!strcmp(fault.argument, name));                                                     \
  CHECK(out[0] == 7 && cache_stats(cache).n_tokens == 0);                                   \
  c = good, t = r.extra_key
  c.extra_key = NULL;
  WRONG(LATTN_E_NULL, "extra_key");
  c.extra_key = &t, t.n_tokens = 2;
  WRONG(LATTN_E_SHAPE, "extra_key.n_tokens");
  c.extra_key = &t, t.n_heads = 3;
  WRONG(LATTN_E_SHAPE, "extra_key.n_heads");
  c.extra_key = &t, t.dim = KEY_DIM - 1;
  WRONG(LATTN_E_SHAPE, "extra_key.dim");
  c.extra_key = &t, t.data = NULL;
  WRONG(LATTN_E_NULL, "extra_key.data");
  c.extra_value = &t, t.dim = VALUE_DIM, t.n_tokens = 0;
  WRONG(LATTN_E_SHAPE, "extra_value.n_tokens");
  c.extra_value = &t, t.dim = VALUE_DIM, t.n_heads = 3;
  WRONG(LATTN_E_SHAPE, "extra_value.n_heads");
  c.extra_value = &t;
  WRONG(LATTN_E_SHAPE, "extra_value.dim");
  c.extra_value = &t, t.dim = VALUE_DIM, t.data = out;
  WRONG(LATTN_E_ALIAS, "out");
#undef WRONG
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  rig_close(&r);
}

int main(void) {
  test_caches();
  test_removed();
  test_batch();
  test_pruned();
  test_wrong();
  return test_summary();
}
