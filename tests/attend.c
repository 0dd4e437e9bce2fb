/* attend.c - lattn_attention against the reference: random calls in which every option, shape,
 * type, stride and kind of exec occurs, within the bound that ref.h derives, and not one byte
 * outside.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SEED=n KIND=0|1 INEXACT=0|1 in the environment runs that one case; INEXACT=1 alone, those that
   may be inexact. */
#include "test.h"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

#include "cases.h"

enum { N_ANY = 3000, N_LONG = 36, N_INEXACT = 1500, REPEAT_EVERY = 20, ROW_WORK = 1 << 18 };

typedef struct attend_stats {
  long cases, rows;
  long inexact_rows; /* of inexact cases, those that are not what the exact call gives */
  long on[OPTION_COUNT];
  double worst_out, worst_16, worst_lse; /* out: of f32, and of f16 and bf16 */
} attend_stats;

static attend_stats stats;

/* ---- one case ---- */

static int is_sentinel(const lattn_tensor *t, int64_t index) {
  uint32_t u = 0;
  memcpy(&u, (const char *)t->data + index * (int64_t)type_bytes(t->type), type_bytes(t->type));
  return u == (type_bytes(t->type) == 4 ? 0xffffffffu : 0xffffu);
}

/* Every element of out is written, and what lies between its rows is not. */
static void check_written(const attend_case *c) {
  int64_t n = case_extent(&c->out), unwritten = 0, kept = 0, elements;
  for (int64_t i = 0; i < n; i++) kept += is_sentinel(&c->out, i);
  for (int64_t i = 0; i < c->n_queries; i++)
    for (int64_t h = 0; h < c->heads; h++)
      for (int64_t d = 0; d < c->value_dim; d++)
        unwritten += is_sentinel(&c->out, tensor_index(&c->out, i, h) + d);
  elements = c->n_queries * c->heads * c->value_dim;
  CHECK_I64(unwritten, 0);
  CHECK_I64(kept, n - elements);
}

static void note(double *worst, double ratio, const char *what, int64_t row, int64_t head,
                 int64_t d, double got, double want) {
  if (ratio > *worst) *worst = ratio;
  if (ratio > 1)
    FAIL("%s of row %" PRId64 " head %" PRId64 " dim %" PRId64
         ": got %.9g, expected %.9g, "
         "%.3g times the bound",
         what, row, head, d, got, want, ratio);
}

static void check_row(const attend_case *c, const ref_row *r, int64_t row, int64_t head) {
  double worst = 0;
  int64_t at = 0;
  for (int64_t d = 0; d < c->value_dim; d++) {
    float got = tensor_get(&c->out, row, head, d);
    double ratio = ref_ratio((double)got, r->out[d], r->bound[d]);
    if (r->n_visible == 0 && bits_of_f32(got) != 0) ratio = REF_INFINITY; /* exactly +0 */
    if (ratio > worst) at = d;
    worst = fmax(worst, ratio);
  }
  note(c->out.type == LATTN_F32 ? &stats.worst_out : &stats.worst_16, worst, "out", row, head, at,
       (double)tensor_get(&c->out, row, head, at), r->out[at]);
  if (c->lse) {
    double got = (double)c->lse[row * c->heads + head];
    note(&stats.worst_lse, ref_ratio(got, r->lse, r->lse_bound), "lse", row, head, 0, got, r->lse);
  }
  stats.rows++;
}

/* The partial of a row is the row before learned sink, gate and rounding. */
static void check_partial(const attend_case *c, const ref_row *r, int64_t row, int64_t head) {
  int64_t i = row * c->heads + head;
  double m = (double)c->partial.maximum[i], sum = (double)c->partial.sum[i];
  double lse = c->a.weighting == LATTN_SIGMOID ? (double)NAN : m + log(sum);
  if (r->is_empty) {
    CHECK(m == -REF_INFINITY);
    return;
  }
  if (c->a.weighting == LATTN_SIGMOID) CHECK(m == 0 && sum == 1);
  note(&stats.worst_lse, ref_ratio(lse, r->lse, r->lse_bound), "partial's lse", row, head, 0, lse,
       r->lse);
  for (int64_t d = 0; d < c->value_dim; d++) {
    double got = (double)c->partial.output[i * c->value_dim + d] / sum;
    note(&stats.worst_out, ref_ratio(got, r->out[d], r->bound[d]), "partial", row, head, d, got,
         r->out[d]);
  }
}

/* The reference of what a partial holds; shares the arrays. */
static ref_call without_root(const ref_call *reference) {
  ref_call plain = *reference;
  plain.options.sink_logits = NULL;
  plain.options.gate = NULL;
  plain.out_type = LATTN_F32;
  return plain;
}

/* Whether everything that a row gave is within the bounds of this reference. */
static int row_fits(const attend_case *c, ref_call *reference, int64_t row, int64_t head,
                    ref_row *r) {
  int64_t i = row * c->heads + head;
  double worst = 0;
  ref_attend(reference, row, head, r);
  if (c->lse) worst = ref_ratio((double)c->lse[i], r->lse, r->lse_bound);
  for (int64_t d = 0; d < c->value_dim; d++)
    worst = fmax(worst,
                 ref_ratio((double)tensor_get(&c->out, row, head, d), r->out[d], r->bound[d]));
  if (c->a.partial && worst <= 1) {
    ref_call plain = without_root(reference);
    double sum = (double)c->partial.sum[i];
    ref_attend(&plain, row, head, r);
    if (r->is_empty) return 1;
    if (c->a.weighting == LATTN_SOFTMAX)
      worst = ref_ratio((double)c->partial.maximum[i] + log(sum), r->lse, r->lse_bound);
    for (int64_t d = 0; d < c->value_dim; d++)
      worst = fmax(worst, ref_ratio((double)c->partial.output[i * c->value_dim + d] / sum,
                                    r->out[d], r->bound[d]));
  }
  return worst <= 1;
}

/* Rows to check: all, or the first, the last and some between, within a budget of work. */
static void check_rows(attend_case *c, ref_call *reference, ref_call *inexact) {
  int64_t pairs = c->n_queries * c->heads;
  int64_t count = 4 + ROW_WORK / (1000 + c->n_keys * (c->key_dim + 3 * c->value_dim));
  ref_row r = ref_row_new(reference);
  for (int64_t i = 0; i < pairs && i < count; i++) {
    int64_t pair = i < 2 ? i * (pairs - 1) : rng_below(&c->rng, pairs);
    if (pairs <= count) pair = i;
    ref_call *of = reference, plain;
    if (inexact && !row_fits(c, of, pair / c->heads, pair % c->heads, &r)) {
      of = inexact; /* which rows are exact all the same depends on the threads */
      stats.inexact_rows++;
    }
    ref_attend(of, pair / c->heads, pair % c->heads, &r);
    check_row(c, &r, pair / c->heads, pair % c->heads);
    if (!c->a.partial) continue;
    plain = without_root(of);
    ref_attend(&plain, pair / c->heads, pair % c->heads, &r);
    check_partial(c, &r, pair / c->heads, pair % c->heads);
  }
  ref_row_free(&r);
}

static void check_segments(const attend_case *c) {
  int64_t first = c->a.key_position / 2048, last = (c->a.key_position + c->n_keys - 1) / 2048;
  if (!c->a.partial || !c->n_keys) return;
  CHECK_I64(c->partial.first_segment, first);
  CHECK_I64(c->partial.n_segments, last - first + 1);
}

static uint64_t hash_results(const attend_case *c) {
  uint64_t hash = hash_tensor(HASH_SEED, &c->out);
  if (c->lse) hash = hash_f32(hash, c->lse, c->n_queries * c->heads);
  if (c->a.partial) {
    hash = hash_f32(hash, c->partial.maximum, c->partial.n_rows);
    for (int64_t i = 0; i < c->partial.n_rows; i++)
      if (c->partial.maximum[i] > -INFINITY) { /* the rest of an empty row is not promised */
        hash = hash_f32(hash, c->partial.sum + i, 1);
        hash = hash_f32(hash, c->partial.output + i * c->value_dim, c->value_dim);
      }
  }
  return hash;
}

static enum exec_kind draw_exec(attend_case *c, int32_t *n_threads) {
  enum exec_kind kind = (enum exec_kind)rng_below(&c->rng, EXEC_KINDS);
  *n_threads = (int32_t)rng_range(&c->rng, 2, 7);
  if ((kind == EXEC_NULL || kind == EXEC_STACK) && (!case_small(c) || case_work(c) > 1 << 20))
    kind = EXEC_ONE;
  return kind;
}

static void run_call(attend_case *c, enum exec_kind kind, int32_t n_threads) {
  lattn_exec exec;
  const lattn_exec *given = case_exec(c, &exec, kind, n_threads);
  lattn_status status;
  case_protect(c, 1);
  status = lattn_attention(&c->a, c->q, c->k, c->v, c->out, c->lse, given);
  case_protect(c, 0);
  if (!CHECK_STATUS(status, LATTN_OK)) printf("    exec: %s\n", exec_names[kind]);
}

/* The same call under every other kind of exec gives the same bits. */
static void check_execs(attend_case *c, const void *before, enum exec_kind done) {
  uint64_t want = hash_results(c);
  int64_t bytes = case_extent(&c->out) * (int64_t)type_bytes(c->out.type);
  for (int kind = 0; kind < EXEC_KINDS; kind++) {
    if (kind == (int)done) continue;
    if (!case_small(c) && (kind == EXEC_NULL || kind == EXEC_STACK)) continue;
    memcpy(test_writable(c->out.data), before, (size_t)bytes);
    run_call(c, (enum exec_kind)kind, 7);
    if (hash_results(c) != want)
      FAIL("%s gives other bits than %s", exec_names[kind], exec_names[done]);
  }
}

static void run_case(uint64_t seed, enum case_kind kind, int32_t inexact) {
  attend_case c;
  ref_call reference, rounded;
  int pairs = lattn_inexact_supported(inexact);
  enum exec_kind exec;
  int32_t n_threads;
  void *before;
  size_t bytes;
  case_make(&c, seed, kind);
  check_case("%s%s", c.name, inexact ? " INEXACT" : "");
  c.a.inexact = inexact;
  ref_open(&reference, &c.a, c.q, c.k, c.v, c.out.type);
  if (c.a.score) reference.score = case_score_exact;
  if (pairs) {
    ref_open(&rounded, &c.a, c.q, c.k, c.v, c.out.type);
    rounded.score = reference.score;
    ref_bf16(&rounded);
  }
  bytes = (size_t)case_extent(&c.out) * type_bytes(c.out.type);
  before = ref_memory((int64_t)bytes, 1);
  if (bytes) memcpy(before, c.out.data, bytes);
  exec = draw_exec(&c, &n_threads);
  if (exec != EXEC_NULL && exec != EXEC_ONE) c.options |= 1u << OPTION_THREADS;
  run_call(&c, exec, n_threads);
  if (!case_on(&c, OPTION_ALIAS)) check_written(&c);
  check_segments(&c);
  check_rows(&c, &reference, pairs ? &rounded : NULL);
  if (pairs) ref_close(&rounded);
  else if (seed % REPEAT_EVERY == 0 && kind == CASE_ANY) check_execs(&c, before, exec);
  for (int o = 0; o < OPTION_COUNT; o++) stats.on[o] += case_on(&c, (enum case_option)o);
  stats.cases++;
  free(before);
  ref_close(&reference);
  if (!case_free(&c)) FAIL("something was written beside a buffer");
}

/* ---- the reference itself, by hand ---- */

static ref_row hand_row;

/* Attention of one row over keys of dim 1 with value v = 1, 2, 3, ...: the reference alone. */
static double by_hand(const lattn_attn *options, int64_t n_queries, int64_t row, int64_t n_keys,
                      const float *k) {
  static const float q[4] = {1, 1, 1, 1}, v[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  static double out, bound;
  ref_call c;
  hand_row.out = &out;
  hand_row.bound = &bound;
  ref_open(&c, options, tensor_of(q, LATTN_F32, n_queries, 1, 1),
           tensor_of(k, LATTN_F32, n_keys, 1, 1), tensor_of(v, LATTN_F32, n_keys, 1, 1), LATTN_F32);
  ref_attend(&c, row, 0, &hand_row);
  ref_close(&c);
  return out;
}

static int near(double a, double b) { return fabs(a - b) < 1e-7; }

static void reference_by_hand(void) {
  static const float zeros[8] = {0}, logs[2] = {0, 1.0986122886681098f}; /* weights 1 : 3 */
  static const float sink[1] = {0};
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.scale = 1;
  check_case("reference: two keys of weights 1 and 3");
  CHECK(near(by_hand(&a, 1, 0, 2, logs), 1.75) && near(hand_row.lse, log(4.0)));
  check_case("reference: causal, last row aligned with last key");
  a.mask = LATTN_CAUSAL;
  CHECK(near(by_hand(&a, 2, 0, 4, zeros), 2) && near(by_hand(&a, 2, 1, 4, zeros), 2.5));
  check_case("reference: causal at a position");
  a.mask = LATTN_CAUSAL_AT;
  a.query_position = 1;
  CHECK(near(by_hand(&a, 2, 0, 4, zeros), 1.5) && near(by_hand(&a, 2, 1, 4, zeros), 2));
  check_case("reference: window of two, one sink");
  a.query_position = 6;
  a.window = 2;
  a.sinks = 1;
  CHECK(near(by_hand(&a, 1, 0, 8, zeros), (1.0 + 6 + 7) / 3));
  check_case("reference: window of two and one ahead");
  a.mask = LATTN_FULL;
  a.ahead = 1;
  a.sinks = 0;
  a.query_position = 4;
  CHECK(near(by_hand(&a, 1, 0, 8, zeros), (4.0 + 5 + 6) / 3));
  check_case("reference: a learned sink of 0 counts as one more key");
  a.sink_logits = sink;
  CHECK(near(by_hand(&a, 1, 0, 8, zeros), (4.0 + 5 + 6) / 4) && near(hand_row.lse, log(4.0)));
  check_case("reference: nothing visible");
  a.query_position = 100;
  CHECK(by_hand(&a, 1, 0, 8, zeros) == 0 && hand_row.lse == 0 && hand_row.n_visible == 0);
  check_case("reference: sigmoid weights of logits 0 and ln 3, bias -ln 3");
  memset(&a, 0, sizeof a);
  a.scale = 1;
  a.weighting = LATTN_SIGMOID;
  a.sigmoid_bias = -logs[1];
  CHECK(near(by_hand(&a, 1, 0, 2, logs), 1 * 0.25 + 2 * 0.5) && isnan(hand_row.lse));
  check_case("harness: an error beyond the bound is seen");
  CHECK(ref_ratio(1 + 3e-7, 1, 1e-7) > 1 && ref_ratio((double)NAN, 1, 1) > 1);
}

/* LATTN_INEXACT_BF16: in a build that has no instructions for it, exact calls by another name. */
static void run_inexact(void) {
  attend_stats exact = stats;
  int supported = lattn_inexact_supported(LATTN_INEXACT_BF16);
  memset(&stats, 0, sizeof stats);
  for (uint64_t i = 0; i < (uint64_t)test_count(supported ? N_INEXACT : N_INEXACT / 20); i++)
    run_case(i, i % 100 == 99 ? CASE_LONG : CASE_ANY, LATTN_INEXACT_BF16);
  if (supported)
    printf("attend %s, in bfloat16: %ld random cases, %ld of %ld rows; worst error / bound: f32 "
           "%.3f, 16 bits %.3f, lse %.3f\n",
           lattn_simd_name(), stats.cases, stats.inexact_rows, stats.rows, stats.worst_out,
           stats.worst_16, stats.worst_lse);
  check_case("calls that may be inexact are, where they can");
  CHECK(supported ? stats.inexact_rows * 10 > stats.rows : stats.inexact_rows == 0);
  stats = exact;
}

static void report(void) {
  printf(
      "attend %s: %ld random cases, %ld rows; worst error / bound: f32 %.3f, 16 bits %.3f, "
      "lse %.3f\n",
      lattn_simd_name(), stats.cases, stats.rows, stats.worst_out, stats.worst_16, stats.worst_lse);
  check_case("every option is on in at least 15 %% of the cases");
  for (int o = 0; o < OPTION_COUNT; o++)
    if (!test_is_quick() && stats.on[o] * 100 < stats.cases * 15)
      FAIL("%s is on in %ld of %ld", case_option_names[o], stats.on[o], stats.cases);
}

int main(void) {
  const char *seed = getenv("SEED"), *kind = getenv("KIND"), *inexact = getenv("INEXACT");
  uint64_t first;
  case_pool_make();
  if (seed) {
    run_case(strtoull(seed, NULL, 10), kind && *kind == '1' ? CASE_LONG : CASE_ANY,
             inexact && *inexact == '1' ? LATTN_INEXACT_BF16 : 0);
    return test_summary();
  }
  run_inexact();
  if (inexact) return test_summary();
  reference_by_hand();
  first = 10 * (test_first_seed() - 1);
  for (uint64_t i = 0; i < (uint64_t)test_count(N_ANY); i++) run_case(first + i, CASE_ANY, 0);
  for (uint64_t i = 0; i < (uint64_t)test_count(N_LONG); i++) run_case(first + i, CASE_LONG, 0);
  report();
  return test_summary();
}
