/* inexact.c - LATTN_INEXACT_BF16 by hand and on caches: rows against the reference in bfloat16, the
 * stored bits that do not change, and the calls that stay exact. (attend.c has the random stateless
 * calls.) In a build without the instructions every row is exact.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SEED=n in the environment runs that one random cache. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

enum { N_CACHES = 60, CAPACITY = 700 };

static long rows_checked, rows_inexact;
static double worst;

/* ---- by hand: nothing rounds, so every bit is known ---- */

static lattn_attn inexact_options(void) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.scale = 1;
  a.mask = LATTN_CAUSAL;
  a.inexact = LATTN_INEXACT_BF16;
  return a;
}

static lattn_exec exec_of(test_guard *scratch, size_t bytes) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  *scratch = guard_alloc(bytes, 1);
  exec.size = sizeof exec;
  exec.scratch = scratch->data;
  exec.scratch_bytes = bytes;
  return exec;
}

static void fill_integers(float *x, int64_t n, test_rng *rng) {
  for (int64_t i = 0; i < n; i++) x[i] = (float)rng_range(rng, -8, 8);
}

/* Queries of 0 give every visible key the weight 1: outputs are means of integers, rounded once.
   Integer queries and keys give integer scores, whose maximum a partial holds. */
static void integers(int64_t n, int64_t dk, int64_t dv, int zero, int32_t type) {
  float q[200 * 40], k[200 * 40], v[200 * 40], out[200 * 40], m[200], sum[200], acc[200 * 40];
  uint16_t k16[200 * 40], v16[200 * 40];
  lattn_attn a = inexact_options();
  lattn_partial p;
  test_rng rng = rng_seed((uint64_t)(n * dk + dv));
  test_guard scratch;
  lattn_tensor Q = tensor_of(q, LATTN_F32, n, 1, dk), K = tensor_of(k, type, n, 1, dk);
  lattn_tensor V = tensor_of(v, type, n, 1, dv);
  check_case("integers: %d rows, dims %d and %d, %s, %s", (int)n, (int)dk, (int)dv,
             zero ? "means" : "maxima", type_name(type));
  fill_integers(q, n * dk, &rng);
  fill_integers(k, n * dk, &rng);
  fill_integers(v, n * dv, &rng);
  for (int64_t i = 0; zero && i < n * dk; i++) q[i] = 0;
  for (int64_t i = 0; i < n * dk; i++) element_set(k16, LATTN_BF16, i, k[i]);
  for (int64_t i = 0; i < n * dv; i++) element_set(v16, LATTN_BF16, i, v[i]);
  if (type == LATTN_BF16) K.data = k16, V.data = v16;
  memset(&p, 0, sizeof p);
  p.size = sizeof p;
  p.n_rows = n;
  p.value_dim = dv;
  p.maximum = m;
  p.sum = sum;
  p.output = acc;
  a.partial = &p;
  lattn_exec exec = exec_of(&scratch, lattn_attention_scratch(&a, Q, K, V, 1));
  CHECK_STATUS(
      lattn_attention(&a, Q, K, V, tensor_of(out, LATTN_F32, n, 1, dv), NULL, &exec), LATTN_OK);
  for (int64_t i = 0; i < n; i++) {
    float top = -INFINITY;
    for (int64_t j = 0; j <= i; j++) {
      float s = 0;
      for (int64_t d = 0; d < dk; d++) s += q[i * dk + d] * k[j * dk + d];
      if (s > top) top = s;
    }
    CHECK(m[i] == top);
    for (int64_t d = 0; d < dv && zero; d++) {
      float total = 0;
      for (int64_t j = 0; j <= i; j++) total += v[j * dv + d];
      CHECK(sum[i] == (float)(i + 1) && out[i * dv + d] == total / (float)(i + 1));
    }
  }
  CHECK(guard_free(&scratch));
}

/* A value beyond bfloat16 is infinite to the rows that see it, and is nothing to the others. */
static void too_large(void) {
  float x[40], out[40];
  lattn_attn a = inexact_options();
  test_guard scratch;
  lattn_tensor t = tensor_of(x, LATTN_F32, 40, 1, 1);
  check_case("a value beyond the range of bfloat16");
  for (int i = 0; i < 40; i++) x[i] = i == 20 ? 3.4e38f : 0;
  lattn_tensor zeros = tensor_of(x, LATTN_F32, 40, 1, 1);
  zeros.stride_token = LATTN_BROADCAST;
  lattn_exec exec = exec_of(&scratch, lattn_attention_scratch(&a, zeros, zeros, t, 1));
  CHECK_STATUS(lattn_attention(&a, zeros, zeros, t, tensor_of(out, LATTN_F32, 40, 1, 1), NULL,
                               &exec), LATTN_OK);
  for (int i = 0; i < 40; i++)
    CHECK(i < 20 ? out[i] == 0 : isinf(out[i]) == lattn_inexact_supported(LATTN_INEXACT_BF16));
  CHECK(guard_free(&scratch));
}

/* ---- random caches ---- */

typedef struct twin { /* the same tokens; only one is asked to be inexact */
  test_guard arena;
  lattn_cache *cache;
  float *out, *lse; /* of all tokens */
} twin;

static void twin_open(twin *t, const setup *s) {
  lattn_pool *pool = NULL;
  int64_t heads = setup_heads(s);
  t->arena = guard_alloc(lattn_pool_bytes(NULL, &s->config, 2), 1);
  memset(t->arena.data, 0xff, t->arena.bytes);
  t->out = (float *)ref_memory(CAPACITY * heads * setup_value_dim(s), sizeof(float));
  t->lse = (float *)ref_memory(CAPACITY * heads, sizeof(float));
  if (!CHECK_STATUS(lattn_pool_init(&pool, t->arena.data, t->arena.bytes, NULL), LATTN_OK) ||
      !CHECK_STATUS(lattn_cache_init(&t->cache, pool, &s->config), LATTN_OK))
    exit(test_summary());
}

static void twin_close(twin *t) {
  CHECK(guard_free(&t->arena));
  free(t->out);
  free(t->lse);
}

static int32_t hash_write(void *user, const void *data, size_t bytes) {
  uint64_t *hash = (uint64_t *)user;
  *hash = hash_bytes(*hash, data, bytes);
  return 0;
}

/* What a cache holds. */
static uint64_t hash_cache(const lattn_cache *cache) {
  uint64_t hash = HASH_SEED;
  CHECK_STATUS(lattn_cache_save(cache, hash_write, &hash, NULL), LATTN_OK);
  return hash;
}

/* Extends by the list's tokens first ... first + n - 1. */
static void extend(twin *t, const setup *s, const token_list *list, int64_t first, int64_t n,
                   int32_t inexact, int32_t threads) {
  int64_t heads = setup_heads(s), dv = setup_value_dim(s);
  test_guard scratch;
  lattn_call call;
  lattn_exec exec = exec_of(&scratch, lattn_cache_scratch(&s->config, n, threads));
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  call.inexact = inexact;
  exec.n_threads = threads;
  exec.parallel_for = test_parallel_scrambled;
  CHECK_STATUS(lattn_cache_extend(t->cache, &call, tokens_q(list, s, first, n),
                                  tokens_k(list, s, first, n), tokens_v(list, s, first, n),
                                  tensor_of(t->out + first * heads * dv, LATTN_F32, n, heads, dv),
                                  t->lse + first * heads, &exec),
               LATTN_OK);
  CHECK(guard_free(&scratch));
}

static int row_is_same(const twin *a, const twin *b, int64_t i, int64_t dv) {
  int same = same_f32(a->lse[i], b->lse[i]);
  for (int64_t d = 0; d < dv; d++) same &= same_f32(a->out[i * dv + d], b->out[i * dv + d]);
  return same;
}

/* Whether an output of a row is not finite; if so, the exact call's is the same there. */
static int row_is_spoilt(const twin *exact, const twin *t, int64_t i, int64_t dv) {
  int spoilt = 0;
  for (int64_t d = 0; d < dv; d++) {
    float x = t->out[i * dv + d], y = exact->out[i * dv + d];
    if (isfinite(x) && isfinite(y)) continue;
    CHECK(same_f32(x, y));
    spoilt = 1;
  }
  return spoilt;
}

/* Rows from `first` on: the exact one's bits, or within the bounds of the reference in bfloat16. */
static void check_cache_rows(const setup *s, const token_list *list, const twin *exact,
                             const twin *t, int64_t first) {
  int64_t heads = setup_heads(s), dv = setup_value_dim(s);
  ref_call reference;
  ref_row r;
  ref_cache_open(&reference, s, list);
  ref_bf16(&reference);
  r = ref_row_new(&reference);
  for (int64_t i = first * heads; i < list->n * heads; i += 1 + i % 5) {
    double ratio = 0;
    rows_checked++;
    if (row_is_same(exact, t, i, dv)) continue;
    rows_inexact++;
    if (row_is_spoilt(exact, t, i, dv)) continue;
    ref_cache_attend(&reference, s, i / heads, i % heads, &r);
    for (int64_t d = 0; d < dv; d++)
      ratio = fmax(ratio, ref_ratio((double)t->out[i * dv + d], r.out[d], r.bound[d]));
    ratio = fmax(ratio, ref_ratio((double)t->lse[i], r.lse, r.lse_bound));
    worst = fmax(worst, ratio);
    if (ratio > 1) FAIL("row %d head %d: %g times the bound", (int)(i / heads), (int)(i % heads),
                        ratio);
  }
  ref_row_free(&r);
  ref_close(&reference);
}

static void draw_setup(setup *s, test_rng *rng) {
  static const int32_t dims[] = {1, 2, 3, 7, 16, 20, 32, 33, 64};
  int32_t kv = (int32_t)rng_range(rng, 1, 2), group = (int32_t)rng_range(rng, 1, 4);
  int32_t dk = dims[rng_below(rng, 9)], dv = dims[rng_below(rng, 9)];
  setup_init(s, kv * group, kv, dk, dv, CAPACITY);
  s->config.key_type = (int32_t)rng_range(rng, LATTN_F32, LATTN_BF16);
  s->config.value_type = (int32_t)rng_range(rng, LATTN_F32, LATTN_BF16);
  s->config.max_append = rng_chance(rng, 50) ? 200 : 0;
  if (dk > 1 && rng_chance(rng, 50)) setup_rotate(s, (int32_t)rng_below(rng, 2), 0, dk / 2 * 2);
  else if (rng_chance(rng, 30)) setup_alibi(s);
  if (rng_chance(rng, 30)) setup_sinks(s);
  if (rng_chance(rng, 30)) s->config.softcap = 3;
  if (rng_chance(rng, 40))
    setup_stream(s, 0, rng_range(rng, 0, 20), rng_range(rng, 1, 200), 0, LATTN_POSITIONS_DEFAULT);
}

/* One number of one token is not finite, or below 2^-126. (What the reference makes of an infinite
   key that it rotates is its own.) */
static void spoil(token_list *list, const setup *s, int64_t n, test_rng *rng) {
  static const float bad[] = {NAN, INFINITY, -INFINITY, 1e-39f};
  float x = bad[rng_below(rng, 4)];
  if (!s->config.rotary && rng_chance(rng, 50)) list->k[rng_below(rng, n * list->k_row)] = x;
  else list->v[rng_below(rng, n * list->v_row)] = x;
}

/* Takes [from, to) out of the list, whose tokens keep their slots. */
static void list_remove(token_list *t, int64_t from, int64_t to) {
  size_t rest = (size_t)(t->n - to) * sizeof(float);
  memmove(t->q + from * t->q_row, t->q + to * t->q_row, rest * (size_t)t->q_row);
  memmove(t->k + from * t->k_row, t->k + to * t->k_row, rest * (size_t)t->k_row);
  memmove(t->v + from * t->v_row, t->v + to * t->v_row, rest * (size_t)t->v_row);
  t->slots = (int64_t *)ref_memory(t->capacity, sizeof *t->slots);
  for (int64_t i = 0; i < t->capacity; i++) t->slots[i] = i < from ? i : i + to - from;
  t->n -= to - from;
}

static void random_cache(uint64_t seed) {
  test_rng rng = rng_seed(seed);
  setup s;
  token_list list;
  twin exact, t;
  int64_t removed = 0, checked = 0;
  draw_setup(&s, &rng);
  check_case("cache seed %" PRIu64 ": heads %d/%d dims %d/%d types %s/%s%s%s%s", seed,
             (int)s.config.n_heads, (int)s.config.n_kv_heads, (int)s.config.key_dim,
             (int)s.config.value_dim, type_name(s.config.key_type), type_name(s.config.value_type),
             s.config.rotary ? " rotary" : "", s.config.alibi_slopes ? " alibi" : "",
             s.heads[0].policy ? " streaming" : "");
  twin_open(&exact, &s);
  twin_open(&t, &s);
  list = tokens_new(&s, CAPACITY);
  tokens_make(&list, CAPACITY, &rng);
  if (rng_chance(&rng, 30)) spoil(&list, &s, CAPACITY, &rng);
  while (list.n < CAPACITY - removed) {
    int64_t n = rng_chance(&rng, 20) ? 1 : rng_range(&rng, 2, 400), first = list.n;
    int32_t threads = (int32_t)rng_range(&rng, 1, 3);
    if (n > CAPACITY - removed - first) n = CAPACITY - removed - first;
    extend(&exact, &s, &list, first, n, 0, 1);
    extend(&t, &s, &list, first, n, LATTN_INEXACT_BF16, threads);
    list.n += n;
    for (int64_t i = first * setup_heads(&s); n == 1 && i < list.n * setup_heads(&s); i++)
      CHECK(row_is_same(&exact, &t, i, setup_value_dim(&s))); /* decode is exact */
    check_cache_rows(&s, &list, &exact, &t, first);
    if (s.heads[0].policy || removed || list.n < 150 || !rng_chance(&rng, 40)) continue;
    checked = rng_range(&rng, 0, 100);
    removed = rng_range(&rng, 1, 50);
    CHECK_STATUS(lattn_cache_remove(exact.cache, checked, checked + removed), LATTN_OK);
    CHECK_STATUS(lattn_cache_remove(t.cache, checked, checked + removed), LATTN_OK);
    first = list.n;
    list.n = CAPACITY;
    list_remove(&list, checked, checked + removed);
    list.n = first - removed;
  }
  CHECK(hash_cache(exact.cache) == hash_cache(t.cache));
  tokens_free(&list);
  twin_close(&exact);
  twin_close(&t);
}

/* ---- calls that are exact all the same ---- */

static void integer_heads(int32_t key_type, int32_t value_type) {
  test_rng rng = rng_seed(1);
  setup s;
  twin exact, t;
  token_list list;
  check_case("heads with integer keys or values are exact (types %d and %d)", (int)key_type,
             (int)value_type);
  setup_init(&s, 2, 1, 32, 32, CAPACITY);
  s.config.key_type = key_type;
  s.config.value_type = value_type;
  twin_open(&exact, &s);
  twin_open(&t, &s);
  list = tokens_new(&s, 200);
  tokens_make(&list, 200, &rng);
  extend(&exact, &s, &list, 0, 200, 0, 1);
  extend(&t, &s, &list, 0, 200, LATTN_INEXACT_BF16, 1);
  for (int64_t i = 0; i < 200 * 2; i++) CHECK(row_is_same(&exact, &t, i, 32));
  tokens_free(&list);
  twin_close(&exact);
  twin_close(&t);
}

/* What the newest n rows gave to each key. */
static void check_weights(const lattn_cache *cache, lattn_tensor q, const lattn_exec *exec) {
  int64_t heads = q.n_heads, keys = cache_stats(cache).n_tokens;
  float *lse = (float *)ref_memory(q.n_tokens * heads, sizeof(float));
  double *mass[2];
  for (int32_t inexact = 0; inexact < 2; inexact++) {
    lattn_call call;
    lattn_weights weights;
    mass[inexact] = (double *)ref_memory(heads * keys, sizeof(double));
    memset(&call, 0, sizeof call);
    memset(&weights, 0, sizeof weights);
    call.size = sizeof call;
    call.inexact = inexact * LATTN_INEXACT_BF16;
    weights.size = sizeof weights;
    weights.lse = lse;
    weights.mass = mass[inexact];
    CHECK_STATUS(lattn_cache_weights(cache, &call, q, &weights, exec), LATTN_OK);
  }
  CHECK(!memcmp(mass[0], mass[1], (size_t)(heads * keys) * sizeof(double)));
  free(lse);
  free(mass[0]);
  free(mass[1]);
}

/* Drafts, a batch's decode, and calls without scratch, on a cache that was filled exactly. */
static void exact_calls(void) {
  enum { N = 2200, HEADS = 16, DIM = 16, NEW = 24 };
  static float q[NEW * HEADS * DIM], out[2][NEW * HEADS * DIM];
  test_rng rng = rng_seed(2);
  test_guard arena, scratch;
  lattn_pool *pool;
  lattn_cache *caches[2];
  setup s;
  setup_init(&s, HEADS, 1, DIM, DIM, N + NEW);
  s.config.max_drafts = NEW;
  token_list list = tokens_new(&s, N);
  tokens_make(&list, N, &rng);
  for (int64_t i = 0; i < NEW * HEADS * DIM; i++) q[i] = rng_normal(&rng);
  arena = guard_alloc(lattn_pool_bytes(NULL, &s.config, 2), 1);
  check_case("drafts, batched decode, calls without scratch and weights are exact");
  CHECK_STATUS(lattn_pool_init(&pool, arena.data, arena.bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&caches[0], pool, &s.config), LATTN_OK);
  for (int64_t t = 0; t < N; t += 440)
    CHECK_STATUS(lattn_cache_append(caches[0], tokens_k(&list, &s, t, 440),
                                    tokens_v(&list, &s, t, 440), NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&caches[1], caches[0]), LATTN_OK);
  lattn_exec exec = exec_of(&scratch, lattn_batch_scratch(&s.config, 2, NEW, 1));
  for (int way = 0; way < 4; way++) {
    int64_t n = way == 1 ? 2 : NEW;
    lattn_tensor Q = tensor_of(q, LATTN_F32, n, HEADS, DIM);
    for (int32_t inexact = 0; inexact < 2; inexact++) {
      lattn_sequence seqs[2] = {{caches[0], 1, NULL}, {caches[1], 1, NULL}};
      lattn_tensor O = tensor_of(out[inexact], LATTN_F32, n, HEADS, DIM);
      lattn_call call;
      lattn_status status;
      memset(&call, 0, sizeof call);
      call.size = sizeof call;
      call.inexact = inexact * LATTN_INEXACT_BF16;
      if (way == 0) {
        status = lattn_cache_draft(caches[0], &call, NULL, Q, tokens_k(&list, &s, 0, n),
                                   tokens_v(&list, &s, 0, n), O, NULL, &exec);
        CHECK_STATUS(lattn_cache_accept(caches[0], 0, NULL), LATTN_OK);
      } else if (way == 1) {
        status = lattn_batch_attend(2, seqs, &call, Q, O, NULL, &exec);
      } else {
        status = lattn_cache_attend(caches[0], &call, Q, O, NULL, way == 2 ? NULL : &exec);
      }
      CHECK_STATUS(status, LATTN_OK);
    }
    int same = !memcmp(out[0], out[1], (size_t)(n * HEADS * DIM) * sizeof **out);
    CHECK(same == (way < 3 || !lattn_inexact_supported(LATTN_INEXACT_BF16)));
  }
  check_weights(caches[0], tensor_of(q, LATTN_F32, NEW, HEADS, DIM), &exec);
  CHECK(guard_free(&scratch));
  CHECK(guard_free(&arena));
  tokens_free(&list);
}

static void refused(void) {
  float x[2] = {1, 1};
  lattn_attn a = inexact_options();
  lattn_tensor t = tensor_of(x, LATTN_F32, 1, 1, 1), out = tensor_of(x + 1, LATTN_F32, 1, 1, 1);
  check_case("what is not in the list is refused, or not supported");
  a.inexact = LATTN_INEXACT_BF16 + 1;
  CHECK_STATUS(lattn_attention(&a, t, t, t, out, NULL, NULL), LATTN_E_FIELD);
  a.inexact = 0;
  a.zero = 1;
  CHECK_STATUS(lattn_attention(&a, t, t, t, out, NULL, NULL), LATTN_E_FIELD);
  CHECK(!lattn_inexact_supported(0) && !lattn_inexact_supported(LATTN_INEXACT_BF16 + 1));
}

int main(void) {
  const char *seed = getenv("SEED");
  static const int64_t dims[] = {1, 2, 3, 16, 33, 40};
  if (seed) {
    random_cache(strtoull(seed, NULL, 10));
    return test_summary();
  }
  for (int i = 0; i < 6; i++) {
    integers(200, dims[i], dims[5 - i], i % 2, LATTN_F32);
    integers(200, dims[i], dims[5 - i], (i + 1) % 2, LATTN_BF16);
    integers(13 + i, dims[i], dims[i], 1, LATTN_F32);
  }
  for (uint64_t i = 0; i < (uint64_t)test_count(N_CACHES); i++) random_cache(i);
  too_large();
  integer_heads(LATTN_I8, LATTN_I4);
  integer_heads(LATTN_F32, LATTN_I8);
  integer_heads(LATTN_I4, LATTN_F16);
  exact_calls();
  refused();
  printf("inexact %s: %ld of %ld rows of caches in bfloat16, worst error / bound %.3f\n",
         lattn_simd_name(), rows_inexact, rows_checked, worst);
  check_case("rows are in bfloat16 where they can be");
  CHECK(lattn_inexact_supported(LATTN_INEXACT_BF16) ? rows_inexact * 2 > rows_checked
                                                    : rows_inexact == 0);
  return test_summary();
}
