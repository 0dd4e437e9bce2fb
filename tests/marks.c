/* marks.c - heads whose tokens are chosen at a mark: SnapKV, PyramidKV, Ada-KV, H2O. What stays is
 * held against a dense simulation in double; what a head then answers, bit for bit, against a full
 * head that never had the other tokens. Any cut into calls, any threads, every storage type, forks,
 * checkpoints, files, drafts, bad arguments.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   TIES OF ROUNDING. A score is a sum over d of products of a few units, each rounded: off by at
   most (dk + 4) u sum |q k| scale, u = 2^-24, plus u of the distance term: with dk <= 32 and |q||k|
   scale <= 60, 36 * 6e-8 * 60 = 1.3e-4; its weight is off by twice that, relatively (it and the sum
   of the row), so are sums, means and maxima of weights. Two scores closer than 4 * 1.3e-4 = 5e-4,
   relatively, may change places; nothing else may. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"
#include "ref_marks.h"

#define CLOSE 5e-4

enum { MOST = 700 }; /* tokens of a rig */

/* ---- a cache, its tokens, what the reference says it holds, what it answered ---- */

typedef struct rig {
  setup s;
  token_list t;
  void *arena, *scratch;
  size_t arena_bytes;
  lattn_pool *pool;
  lattn_cache *cache;
  ref_marks ref;
  float *out, *lse; /* of all tokens */
  int64_t n;        /* tokens in the cache */
  lattn_exec ex;
  lattn_call call;
  int allocates; /* pages come from an allocator; set it before rig_open */
  int64_t n_out; /* of which so many are out */
} rig;

static void *rig_alloc(void *user, size_t bytes, size_t alignment) {
  rig *r = (rig *)user;
  void *page = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!page) exit(1);
  memset(page, 0xff, bytes);
  r->n_out++;
  return page;
}

static void rig_free(void *user, void *page, size_t bytes) {
  rig *r = (rig *)user;
  memset(page, 0xff, bytes);
  r->n_out--;
  free(page);
}

static lattn_cache *cache_new(lattn_pool *pool, const setup *s) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, pool, &s->config), LATTN_OK)) {
    printf("    at %s\n", s->fault.argument ? s->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

static void head_snap(setup *s, int g, int64_t budget, int64_t window, int32_t kernel,
                      int32_t flags) {
  memset(&s->heads[g], 0, sizeof s->heads[g]);
  s->heads[g].policy = LATTN_HEAD_SNAP;
  s->heads[g].budget = budget;
  s->heads[g].window = window;
  s->heads[g].kernel = kernel;
  s->heads[g].flags = flags;
}

static void head_heavy(setup *s, int g, int64_t budget, int64_t recent) {
  memset(&s->heads[g], 0, sizeof s->heads[g]);
  s->heads[g].policy = LATTN_HEAD_HEAVY;
  s->heads[g].budget = budget;
  s->heads[g].window = recent;
}

/* A pool for n_caches of what r->s says, no byte more than lattn_pool_bytes asks for. */
static void rig_open(rig *r, int64_t n_caches, int32_t threads, test_rng *rng) {
  size_t bytes = lattn_cache_scratch(&r->s.config, MOST, threads);
  lattn_pool_config config;
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  if (r->allocates) config.alloc = rig_alloc, config.free = rig_free, config.user = r;
  r->arena_bytes = lattn_pool_bytes(&config, &r->s.config, n_caches);
  r->arena = ref_memory((int64_t)r->arena_bytes, 1);
  memset(r->arena, 0xff, r->arena_bytes);
  CHECK_STATUS(lattn_pool_init(&r->pool, r->arena, r->arena_bytes, &config), LATTN_OK);
  r->cache = cache_new(r->pool, &r->s);
  r->t = tokens_new(&r->s, MOST);
  tokens_make(&r->t, MOST, rng);
  ref_marks_open(&r->ref, &r->s, &r->t, MOST);
  r->out = (float *)ref_memory(MOST * setup_heads(&r->s) * setup_value_dim(&r->s), sizeof(float));
  r->lse = (float *)ref_memory(MOST * setup_heads(&r->s), sizeof(float));
  r->scratch = ref_memory((int64_t)bytes, 1);
  r->ex.size = sizeof r->ex;
  r->ex.n_threads = threads;
  r->ex.parallel_for = test_parallel_scrambled;
  r->ex.scratch = threads ? r->scratch : NULL;
  r->ex.scratch_bytes = threads ? bytes : 0;
  r->call.size = sizeof r->call;
}

static void rig_close(rig *r) {
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  CHECK_I64(pool_stats(r->pool).n_pages, 0);
  CHECK_I64(r->n_out, 0);
  free(r->arena);
  free(r->scratch);
  free(r->out);
  free(r->lse);
  tokens_free(&r->t);
  ref_marks_close(&r->ref);
}

/* The next n tokens, in calls of at most `step`. */
static void rig_extend(rig *r, lattn_cache *cache, int64_t first, int64_t n, int64_t step) {
  int64_t heads = setup_heads(&r->s), dv = setup_value_dim(&r->s);
  for (int64_t at = first, m; at < first + n; at += m) {
    m = first + n - at < step ? first + n - at : step;
    CHECK_STATUS(lattn_cache_extend(cache, &r->call, tokens_q(&r->t, &r->s, at, m),
                                    tokens_k(&r->t, &r->s, at, m), tokens_v(&r->t, &r->s, at, m),
                                    tensor_of(r->out + at * heads * dv, LATTN_F32, m, heads, dv),
                                    r->lse + at * heads, &r->ex),
                 LATTN_OK);
  }
}

static int is_held(const setup *s, const lattn_cache *cache, int64_t g, int64_t position) {
  float k[CACHE_DIMS];
  lattn_tensor none;
  lattn_status status;
  memset(&none, 0, sizeof none);
  status = lattn_cache_read(cache, (int32_t)g, position,
                            tensor_of(k, LATTN_F32, 1, 1, s->config.key_dim), none, 0);
  if (status != LATTN_E_EVICTED) CHECK_STATUS(status, LATTN_OK);
  return status == LATTN_OK;
}

/* A head whose tokens are chosen at a mark. */
static int setup_chooses(const setup *s, int64_t g) {
  return s->heads[g].policy == LATTN_HEAD_SNAP || s->heads[g].policy == LATTN_HEAD_HEAVY;
}

/* Marks, and holds what stays against the reference, which then goes on with it. exact: the keys
   are stored as they are. */
static void rig_mark(rig *r, int exact) {
  unsigned char stays[MOST];
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, &r->ex), LATTN_OK);
  ref_marks_choose(&r->ref);
  for (int64_t g = 0; g < r->s.config.n_kv_heads; g++) {
    int64_t n = 0, held = head_stats(r->cache, g).n_tokens_held;
    double least = (double)INFINITY, most = 0;
    if (!setup_chooses(&r->s, g)) continue;
    if (exact || !(r->s.heads[g].flags & LATTN_SNAP_SHARED))
      CHECK_I64(held, r->ref.candidates[g]
                          ? r->ref.take[g] + r->ref.n_held[g] - r->ref.candidates[g]
                          : r->ref.n_held[g]);
    for (int64_t j = 0; j < r->ref.n_held[g]; j++) {
      stays[j] = (unsigned char)is_held(&r->s, r->cache, g, r->ref.held[g][j]);
      n += stays[j];
      if (j >= r->ref.candidates[g]) {
        CHECK(stays[j]);
        continue;
      }
      if (stays[j]) least = fmin(least, r->ref.score[g][j]);
      else most = fmax(most, r->ref.score[g][j]);
    }
    CHECK_I64(n, held);
    if (exact && !(least >= most * (1 - CLOSE)))
      FAIL("head %d keeps a score of %g, drops one of %g", (int)g, least, most);
    if (!exact && r->ref.candidates[g] == 0 && held < r->ref.n_held[g])
      r->ref.candidates[g] = r->ref.n_held[g] - ref_marks_recent(&r->s.heads[g]);
    ref_marks_drop(&r->ref, g, stays);
  }
}

/* ---- the oracle: a full head that has only the tokens held, rotated before ---- */

/* A callback that goes by the position of keys. map: the positions of the oracle's, NULL = as said.
   slope: ALiBi, which the oracle does itself. */
typedef struct score_map {
  const int64_t *map;
  int64_t n, query_at; /* the oracle's positions from query_at on are query_position and so on */
  int64_t query_position;
  const float *slopes;
  int64_t first_head;
  int own;
} score_map;

static void score_by_position(void *user, int64_t sequence, int64_t row, int64_t query,
                              int32_t head, int64_t first_key, float scores[16]) {
  const score_map *m = (const score_map *)user;
  (void)sequence, (void)row;
  if (m->map) query = query - m->query_at + m->query_position;
  for (int64_t t = 0; t < 16; t++) {
    int64_t key = first_key + t;
    if (m->map && key >= m->n) continue;
    if (m->map) key = m->map[key];
    if (m->slopes && m->map)
      scores[t] = fmaf(-m->slopes[m->first_head + head], (float)(query - key), scores[t]);
    if (m->own && key >= 0) scores[t] += (float)(key % 7) * 0.25f - (float)(query % 3) * 0.125f;
  }
}

static void turned(const rig *r, float *to, const float *from, int64_t n, int64_t heads,
                   int64_t head, int64_t row, const int64_t *positions) {
  int64_t dk = r->s.config.key_dim;
  for (int64_t i = 0; i < n; i++)
    for (int64_t h = 0; h < heads; h++)
      memcpy(to + (i * heads + h) * dk, from + positions[i] * row + (head + h) * dk,
             (size_t)dk * sizeof *to);
  if (r->s.config.rotary)
    CHECK_STATUS(
        lattn_rotate(r->s.config.rotary, tensor_of(to, LATTN_F32, n, heads, dk), 0, positions),
        LATTN_OK);
}

/* The newest m rows of head g, as the cache answered them, are the oracle's. */
static void check_oracle(rig *r, int64_t g, int64_t m, int own_scores) {
  int64_t n = r->ref.n_held[g], heads = setup_heads(&r->s), group = heads / r->s.config.n_kv_heads;
  int64_t dk = r->s.config.key_dim, dv = setup_value_dim(&r->s), from = r->ref.n - m;
  const int64_t *positions = r->ref.held[g];
  float *q = (float *)ref_memory(m * group * dk, 4), *k = (float *)ref_memory(n * dk, 4);
  float *v = (float *)ref_memory(n * dv, 4), *out = (float *)ref_memory(m * group * dv, 4);
  float *lse = (float *)ref_memory(m * group, 4);
  void *arena;
  lattn_pool *pool;
  lattn_cache *cache;
  lattn_call call;
  setup o;
  score_map map = {positions, n, n - m, from, r->s.config.alibi_slopes, g * group, own_scores};
  setup_init(&o, (int32_t)group, 1, (int32_t)dk, (int32_t)dv, n);
  o.config.key_type = r->s.heads[g].key_type ? r->s.heads[g].key_type : r->s.config.key_type;
  o.config.value_type =
      r->s.heads[g].value_type ? r->s.heads[g].value_type : r->s.config.value_type;
  o.config.scale = r->s.config.scale;
  o.config.softcap = r->s.config.softcap;
  o.config.weighting = r->s.config.weighting;
  o.config.sigmoid_bias = r->s.config.sigmoid_bias;
  if (r->s.config.sink_logits) o.config.sink_logits = r->s.config.sink_logits + g * group;
  o.config.max_append = n;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  if (o.config.softcap != 0 || r->s.config.alibi_slopes || own_scores) {
    call.score = score_by_position;
    call.score_user = &map;
  }
  turned(r, q, r->t.q, m, group, g * group, r->t.q_row, positions + n - m);
  turned(r, k, r->t.k, n, 1, g, r->t.k_row, positions);
  for (int64_t i = 0; i < n; i++)
    memcpy(v + i * dv, r->t.v + positions[i] * r->t.v_row + g * dv, (size_t)dv * 4);
  arena = ref_memory((int64_t)lattn_pool_bytes(NULL, &o.config, 1), 1);
  CHECK_STATUS(lattn_pool_init(&pool, arena, lattn_pool_bytes(NULL, &o.config, 1), NULL), LATTN_OK);
  cache = cache_new(pool, &o);
  CHECK_STATUS(lattn_cache_append(cache, tensor_of(k, LATTN_F32, n, 1, dk),
                                  tensor_of(v, LATTN_F32, n, 1, dv), NULL),
               LATTN_OK);
  CHECK_STATUS(lattn_cache_attend(cache, &call, tensor_of(q, LATTN_F32, m, group, dk),
                                  tensor_of(out, LATTN_F32, m, group, dv), lse, NULL),
               LATTN_OK);
  for (int64_t i = 0; i < m; i++)
    for (int64_t h = 0; h < group; h++) {
      int64_t row = (from + i) * heads + g * group + h, same = 1;
      for (int64_t d = 0; d < dv; d++)
        same &= same_f32(r->out[row * dv + d], out[(i * group + h) * dv + d]);
      CHECK(same);
      CHECK(same_f32(r->lse[row], lse[i * group + h]));
    }
  free(q), free(k), free(v), free(out), free(lse), free(arena);
}

static void check_oracles(rig *r, int64_t m, int own_scores) {
  for (int64_t g = 0; g < r->s.config.n_kv_heads; g++) check_oracle(r, g, m, own_scores);
}

/* ---- random configurations ---- */

static void random_heads(setup *s, test_rng *rng, int64_t n, int heavy) {
  int64_t window = rng_range(rng, 1, 40);
  int shared = rng_chance(rng, 40);
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    int32_t flags = (rng_chance(rng, 40) ? LATTN_SNAP_AVERAGE : 0) |
                    (rng_chance(rng, 40) ? LATTN_SNAP_GROUP_MAX : 0) |
                    (shared ? LATTN_SNAP_SHARED : 0);
    int64_t budget = window + rng_range(rng, 1, n);
    if (heavy && rng_chance(rng, 40)) {
      head_heavy(s, g, budget, rng_chance(rng, 30) ? 0 : rng_range(rng, 1, budget));
    } else if (g > 0 && rng_chance(rng, 25)) {
      memset(&s->heads[g], 0, sizeof s->heads[g]);
    } else {
      head_snap(s, g, budget, window, 2 * (int32_t)rng_below(rng, 6) + 1, flags);
      if (shared && rng_chance(rng, 60))
        s->heads[g].floor_alpha = (double)rng_range(rng, -1, 8) / 8;
      s->heads[g].slack = rng_below(rng, 20);
    }
  }
}

/* types: storage of other types than float32 too. */
static void random_setup(setup *s, test_rng *rng, int64_t n, int types) {
  static const int32_t dims[] = {4, 16, 20, 32};
  int32_t kv = (int32_t)rng_range(rng, 1, 3);
  int32_t dk = dims[rng_below(rng, 4)];
  setup_init(s, kv * (int32_t)rng_range(rng, 1, 3), kv, dk, (int32_t)rng_range(rng, 16, 24), MOST);
  random_heads(s, rng, n, 1);
  if (rng_chance(rng, 50)) setup_rotate(s, (int32_t)rng_below(rng, 2), 0, dk);
  if (rng_chance(rng, 30)) setup_alibi(s);
  if (rng_chance(rng, 30)) s->config.softcap = 20;
  if (rng_chance(rng, 30)) setup_sinks(s);
  else if (rng_chance(rng, 30)) setup_sigmoid(s, -3);
  s->config.max_append = rng_range(rng, 1, 300);
  if (types) {
    s->config.key_type = 1 + (int32_t)rng_below(rng, dk < 16 ? 3 : 5);
    s->config.value_type = 1 + (int32_t)rng_below(rng, 5);
  }
}

/* Tokens, a mark, tokens, a mark, tokens. */
static void test_choice(uint64_t seed, int types) {
  static const int32_t threads[] = {0, 1, 2, 3};
  rig r;
  test_rng rng = rng_seed(seed);
  int64_t parts[3], at = 0;
  check_case("choice, seed %d%s", (int)seed, types ? ", types" : "");
  memset(&r, 0, sizeof r);
  parts[0] = rng_range(&rng, 1, 420);
  parts[1] = rng_range(&rng, 1, 160);
  parts[2] = rng_range(&rng, 1, 40);
  random_setup(&r.s, &rng, parts[0], types);
  rig_open(&r, 1, threads[rng_below(&rng, 4)], &rng);
  for (int i = 0; i < 3; i++) {
    rig_extend(&r, r.cache, at, parts[i], rng_chance(&rng, 30) ? 1 : rng_range(&rng, 1, 500));
    ref_marks_extend(&r.ref, parts[i]);
    at += parts[i];
    check_oracles(&r, parts[i] < 5 ? parts[i] : 5, 0);
    if (i < 2) rig_mark(&r, !types);
  }
  rig_close(&r);
}

/* A callback and biases by positions, on a head that dropped; weights, too. */
static void test_positions(uint64_t seed) {
  rig r;
  test_rng rng = rng_seed(seed);
  score_map map = {NULL, 0, 0, 0, NULL, 0, 1};
  const int64_t n = 300, m = 30;
  float *weights = (float *)ref_memory(MOST * 3, 4), *bias = (float *)ref_memory(MOST, 4);
  lattn_tensor key_bias = tensor_of(bias, LATTN_F32, 1, 1, MOST);
  lattn_weights w;
  check_case("positions, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 3, 1, 16, 16, MOST);
  head_snap(&r.s, 0, 130 + rng_below(&rng, 20), 8, 0, 0);
  if (seed & 1) setup_rotate(&r.s, 0, 0, 16);
  rig_open(&r, 1, 2, &rng);
  rig_extend(&r, r.cache, 0, n, 100);
  ref_marks_extend(&r.ref, n);
  rig_mark(&r, 1);
  r.call.score = score_by_position;
  r.call.score_user = &map;
  rig_extend(&r, r.cache, n, m, 7);
  ref_marks_extend(&r.ref, m);
  check_oracles(&r, m, 1);
  memset(&w, 0, sizeof w);
  w.size = sizeof w;
  w.lse = r.lse + (n + m - 1) * 3;
  w.weights = weights;
  CHECK_STATUS(lattn_cache_weights(r.cache, &r.call, tokens_q(&r.t, &r.s, n + m - 1, 1), &w, &r.ex),
               LATTN_OK);
  for (int h = 0; h < 3; h++) {
    double sum = 0;
    for (int64_t j = 0; j < n + m; j++) {
      float p = weights[h * (n + m) + j];
      if (!is_held(&r.s, r.cache, 0, j)) CHECK(p == 0);
      sum += (double)p;
    }
    CHECK(fabs(sum - 1) < 1e-4); /* 330 weights, each within 5u + u |lse| */
  }
  /* A bias of the held keys is that of their positions: the same numbers by a callback. */
  for (int64_t j = 0; j < MOST; j++) bias[j] = (float)(j % 7) * 0.25f;
  r.call.score = NULL;
  r.call.key_bias = &key_bias;
  map.own = 0;
  {
    float a[3 * 16], b[3 * 16];
    CHECK_STATUS(lattn_cache_attend(r.cache, &r.call, tokens_q(&r.t, &r.s, n + m - 1, 1),
                                    tensor_of(a, LATTN_F32, 1, 3, 16), NULL, &r.ex),
                 LATTN_OK);
    for (int64_t j = 0; j < MOST; j++)
      bias[j] = is_held(&r.s, r.cache, 0, j < n + m ? j : 0) ? bias[j] : 1e30f;
    CHECK_STATUS(lattn_cache_attend(r.cache, &r.call, tokens_q(&r.t, &r.s, n + m - 1, 1),
                                    tensor_of(b, LATTN_F32, 1, 3, 16), NULL, &r.ex),
                 LATTN_OK);
    CHECK(!memcmp(a, b, sizeof a));
  }
  free(weights);
  free(bias);
  rig_close(&r);
}

/* Budgets that hold all: the bits of full heads, marked or not. */
static void test_all_kept(uint64_t seed) {
  rig r, full;
  test_rng rng = rng_seed(seed), again = rng_seed(seed + 1000000);
  int64_t n = rng_range(&rng, 1, 400), m = rng_range(&rng, 1, 50);
  check_case("all kept, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  random_setup(&r.s, &rng, n, 1);
  for (int g = 0; g < r.s.config.n_kv_heads; g++) /* Ada-KV's, too */
    if (r.s.heads[g].policy) r.s.heads[g].budget = n + rng_below(&rng, 5) + r.s.heads[g].window + 1;
  rig_open(&r, 1, 2, &again);
  memset(&full, 0, sizeof full);
  full.s = r.s;
  full.s.config.heads = NULL;
  if (full.s.config.rotary) full.s.config.rotary = &full.s.rotary;
  again = rng_seed(seed + 1000000);
  rig_open(&full, 1, 1, &again);
  rig_extend(&r, r.cache, 0, n, 90);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
  rig_extend(&r, r.cache, n, m, 11);
  rig_extend(&full, full.cache, 0, n + m, 1000);
  CHECK(!memcmp(r.out, full.out,
                (size_t)((n + m) * setup_heads(&r.s) * setup_value_dim(&r.s)) * sizeof(float)));
  CHECK(!memcmp(r.lse, full.lse, (size_t)((n + m) * setup_heads(&r.s)) * sizeof(float)) ||
        r.s.config.weighting == LATTN_SIGMOID);
  rig_close(&r);
  rig_close(&full);
}

/* ---- what a cache is: what it holds and all that it would answer ---- */

static int32_t file_hash(void *user, const void *data, size_t bytes) {
  uint64_t *hash = (uint64_t *)user;
  *hash = hash_bytes(*hash, data, bytes);
  return 0;
}

/* What it reads back, and its file: that has the sums and the queries, too, by which it chooses.
   queries: 0 = caches may differ in how many queries they still have. */
static uint64_t fingerprint(const rig *r, const lattn_cache *cache, int queries) {
  uint64_t hash = HASH_SEED;
  int64_t n = cache_stats(cache).n_tokens, dk = r->s.config.key_dim, dv = setup_value_dim(&r->s);
  float k[CACHE_DIMS], v[CACHE_DIMS];
  int has_queries = 0;
  for (int32_t g = 0; g < r->s.config.n_kv_heads; g++) {
    has_queries |= r->s.heads[g].policy == LATTN_HEAD_SNAP;
    for (int64_t j = 0; j < n; j++) {
      lattn_status s = lattn_cache_read(cache, g, j, tensor_of(k, LATTN_F32, 1, 1, dk),
                                        tensor_of(v, LATTN_F32, 1, 1, dv), 0);
      hash = hash_u32(hash, (uint32_t)s);
      if (s) continue;
      hash = hash_f32(hash_f32(hash, k, dk), v, dv);
    }
  }
  if (queries || !has_queries)
    CHECK_STATUS(lattn_cache_save(cache, file_hash, &hash, NULL), LATTN_OK);
  return hash;
}

/* Whatever the calls, the threads and the scratch. */
static void test_cuts(uint64_t seed) {
  uint64_t first = 0, answers = 0;
  check_case("cuts, seed %d", (int)seed);
  for (int way = 0; way < 4; way++) {
    rig r;
    test_rng rng = rng_seed(seed);
    int64_t n, m, steps[4] = {1, 1000, 33, 128};
    uint64_t own, hash;
    memset(&r, 0, sizeof r);
    n = rng_range(&rng, 60, 400), m = rng_range(&rng, 1, 60);
    random_setup(&r.s, &rng, n / 3, 1);
    rig_open(&r, 1, way == 3 ? 0 : way + 1, &rng);
    if (way == 1) r.ex.parallel_for = test_parallel_threads;
    if (way == 2) { /* no more scratch than its calls need */
      r.ex.scratch_bytes = lattn_cache_scratch(&r.s.config, 60, 3);
    }
    rig_extend(&r, r.cache, 0, n, steps[way]);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    rig_extend(&r, r.cache, n, m, steps[3 - way]);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    own = fingerprint(&r, r.cache, 1);
    hash = hash_f32(HASH_SEED, r.out, (n + m) * setup_heads(&r.s) * setup_value_dim(&r.s));
    if (way) CHECK(own == first && hash == answers);
    first = own;
    answers = hash;
    rig_close(&r);
  }
}

/* ---- one method at a time ---- */

/* A key that the newest rows attend to stays, with its neighbours if scores are pooled. */
static void test_needle(int32_t kernel, int32_t flags) {
  rig r;
  test_rng rng = rng_seed((uint64_t)kernel);
  const int64_t n = 400, needle = 150, half = (kernel ? kernel : 7) / 2;
  check_case("needle, kernel %d, flags %d", (int)kernel, (int)flags);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 2, 1, 16, 16, MOST);
  head_snap(&r.s, 0, 16 + 2 * half + 4, 16, kernel, flags);
  rig_open(&r, 1, 1, &rng);
  for (int64_t i = 0; i < n * r.t.k_row; i++) r.t.k[i] *= 0.05f;
  for (int64_t d = 0; d < 16; d++) r.t.k[needle * r.t.k_row + d] = 4;
  for (int64_t i = (n - 16) * r.t.q_row; i < n * r.t.q_row; i++) r.t.q[i] = 4;
  rig_extend(&r, r.cache, 0, n, n);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  for (int64_t j = needle - half; j <= needle + half; j++) CHECK(is_held(&r.s, r.cache, 0, j));
  CHECK_I64(head_stats(r.cache, 0).n_tokens_held, r.s.heads[0].budget);
  CHECK_I64(head_stats(r.cache, 0).page_bytes,
            (int64_t)sizeof(float) * 128 * 32); /* one page is left of four */
  rig_close(&r);
}

/* Keys that are all alike: the newest stay. NaN among them: never above the others. */
static void test_ties(int policy) {
  rig r;
  test_rng rng = rng_seed(5);
  const int64_t n = 200;
  check_case("ties, policy %d", policy);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 2, 1, 16, 16, MOST);
  if (policy == LATTN_HEAD_SNAP) head_snap(&r.s, 0, 50, 10, 1, 0);
  else head_heavy(&r.s, 0, 50, 10);
  rig_open(&r, 1, 1, &rng);
  for (int64_t i = 0; i < n * r.t.k_row; i++) r.t.k[i] = 0;
  rig_extend(&r, r.cache, 0, n, 64);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  for (int64_t j = 0; j < n; j++) {
    /* of H2O, the oldest have met the most rows */
    int want = policy == LATTN_HEAD_SNAP ? j >= n - 50 : j < 40 || j >= n - 10;
    CHECK(is_held(&r.s, r.cache, 0, j) == want);
  }
  rig_close(&r);
}

/* Rows of NaN add nothing; the choice is that of the other rows. */
static void test_nan(int policy) {
  rig r;
  test_rng rng = rng_seed(6);
  const int64_t n = 200;
  check_case("NaN, policy %d", policy);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 1, 1, 16, 16, MOST);
  if (policy == LATTN_HEAD_SNAP) head_snap(&r.s, 0, 50, 10, 1, 0);
  else head_heavy(&r.s, 0, 50, 10);
  rig_open(&r, 1, 1, &rng);
  r.t.q[195 * r.t.q_row] = (float)NAN;
  rig_extend(&r, r.cache, 0, n, 64);
  r.ref.n = 0;
  for (int64_t i = 0; i < 16; i++) r.ref.q[195 * r.t.q_row + i] = 0;
  ref_marks_extend(&r.ref, n);
  if (policy == LATTN_HEAD_HEAVY) { /* take the row out again */
    double a[MOST];
    ref_marks_row(&r.ref, 0, 195, a);
    for (int64_t j = 0; j <= 195; j++) r.ref.heavy[0][j] -= a[j];
    rig_mark(&r, 1);
  } else {
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    CHECK_I64(head_stats(r.cache, 0).n_tokens_held, 50);
  }
  rig_close(&r);
}

/* Ada-KV: heads that are alike get the same; floor 1 = each its own budget; floor 0 = the best of
   all. (test_choice has the formula between.) */
static void test_shared(void) {
  for (int alike = 0; alike < 3; alike++) /* 2: and one more token than they can share evenly */
    for (int floor = 0; floor < 3; floor++) {
      rig r;
      test_rng rng = rng_seed(7);
      int64_t n = 300, total = 0;
      check_case("shared budgets, floor %d%s", floor, alike ? ", heads alike" : "");
      memset(&r, 0, sizeof r);
      setup_init(&r.s, 6, 3, 16, 16, MOST);
      for (int g = 0; g < 3; g++) {
        head_snap(&r.s, g, 60, 20, 5, LATTN_SNAP_SHARED);
        r.s.heads[g].floor_alpha = floor == 0 ? -1 : floor == 1 ? 0.5 : 1;
      }
      if (alike == 2) r.s.heads[2].budget = 61;
      rig_open(&r, 1, 1, &rng);
      for (int64_t i = 0; i < n; i++)
        for (int64_t g = 0; g < 3; g++) {
          float *k = r.t.k + i * r.t.k_row, *q = r.t.q + i * r.t.q_row;
          if (alike && g) memcpy(k + g * 16, k, 64), memcpy(q + g * 32, q, 128);
          for (int64_t d = 0; !alike && d < 16; d++) k[g * 16 + d] *= (float)(g + 1);
        }
      ref_marks_close(&r.ref);
      ref_marks_open(&r.ref, &r.s, &r.t, MOST);
      rig_extend(&r, r.cache, 0, n, 100);
      ref_marks_extend(&r.ref, n);
      rig_mark(&r, 1);
      for (int g = 0; g < 3; g++) {
        int64_t held = head_stats(r.cache, g).n_tokens_held;
        total += held;
        if (alike == 1 || (alike < 2 && floor == 2)) CHECK_I64(held, 60);
        if (alike == 2 && floor == 0) CHECK_I64(held, g ? 60 : 61);
      }
      CHECK(total >= 180 - 2 && total <= 180 + 2);
      if (floor == 0) CHECK_I64(total, alike == 2 ? 181 : 180);
      if (!alike && floor == 0) CHECK(head_stats(r.cache, 0).n_tokens_held != 60);
      rig_close(&r);
    }
}

static void test_pyramid(void) {
  check_case("pyramid");
  for (int64_t layers = 1; layers < 40; layers += 3)
    for (int64_t budget = 9; budget < 3000; budget = budget * 2 + 1)
      for (int64_t beta = 1; beta < 30; beta += 9)
        for (int64_t n = 0; n < 9000; n = n * 3 + budget / 2 + 7) {
          int64_t w = 8, c = budget - w, sum = 0, before = INT64_MAX;
          for (int64_t l = 0; l < layers; l++) {
            int64_t b = lattn_pyramid_budget(budget, w, beta, n, l, layers), most, least, want;
            least = c / beta, most = 2 * c - least;
            if (n && most >= n - w) most = n - w, least = 2 * c - most;
            want = layers > 1 ? most - l * ((most - least) / (layers - 1)) + w : budget;
            if (n && n < 2 * c) want = budget;
            CHECK_I64(b, want);
            CHECK(b <= before && b > w && (beta != 1 || b == budget || n));
            before = b;
            sum += b;
          }
          CHECK(sum >= layers * budget && sum <= layers * budget + layers * (layers - 1) / 2);
        }
  CHECK_I64(lattn_pyramid_budget(128, 8, 0, 0, 0, 32), 240 - 6 + 8);
  for (int64_t l = 0; l < 32; l++) { /* a window longer than C: budgets never rise with depth */
    CHECK_I64(lattn_pyramid_budget(96, 64, 0, 70, l, 32), 96);
    CHECK_I64(lattn_pyramid_budget(96, 64, 0, 96, l, 32), 96);
    CHECK(lattn_pyramid_budget(96, 64, 0, 97, l, 32) <= 97);
  }
  CHECK_I64(lattn_pyramid_budget(8, 8, 0, 0, 0, 32), 0);
  CHECK_I64(lattn_pyramid_budget(128, -1, 0, 0, 0, 32), 0);
  CHECK_I64(lattn_pyramid_budget(128, 8, -1, 0, 0, 32), 0);
  CHECK_I64(lattn_pyramid_budget(128, 8, 0, -1, 0, 32), 0);
  CHECK_I64(lattn_pyramid_budget(128, 8, 0, 0, 32, 32), 0);
  CHECK_I64(lattn_pyramid_budget(INT64_MAX, 8, 0, 0, 0, 32), 0);
}

/* H2O, marked after each token: 200 steps of the dense simulation. The capacity is of what is held,
   so the cache never fills. */
static void test_replay(void) {
  rig r;
  test_rng rng = rng_seed(8);
  check_case("H2O, 200 steps");
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 4, 2, 16, 16, 60);
  setup_rotate(&r.s, 0, 0, 16);
  head_heavy(&r.s, 0, 32, 8);
  head_heavy(&r.s, 1, 20, 0);
  rig_open(&r, 1, 1, &rng);
  rig_extend(&r, r.cache, 0, 40, 40);
  ref_marks_extend(&r.ref, 40);
  rig_mark(&r, 1);
  for (int64_t i = 40; i < 240; i++) {
    rig_extend(&r, r.cache, i, 1, 1);
    ref_marks_extend(&r.ref, 1);
    check_oracles(&r, 1, 0);
    rig_mark(&r, 1);
  }
  CHECK_I64(cache_stats(r.cache).n_tokens, 240);
  CHECK_I64(head_stats(r.cache, 0).n_tokens_held, 32);
  CHECK_I64(head_stats(r.cache, 1).first_token, 240);
  CHECK_STATUS(lattn_cache_extend(r.cache, NULL, tokens_q(&r.t, &r.s, 240, 30),
                                  tokens_k(&r.t, &r.s, 240, 30), tokens_v(&r.t, &r.s, 240, 30),
                                  tensor_of(r.out, LATTN_F32, 30, 4, 16), NULL, NULL),
               LATTN_E_FULL);
  rig_close(&r);
}

/* A streaming head beside such heads goes beyond their capacity, as if it were alone. */
static void test_beyond_capacity(void) {
  rig r, alone;
  check_case("beyond the capacity");
  memset(&r, 0, sizeof r);
  memset(&alone, 0, sizeof alone);
  for (int i = 0; i < 2; i++) {
    rig *x = i ? &alone : &r;
    test_rng rng = rng_seed(8);
    setup_init(&x->s, 2, 2, 16, 16, i ? 0 : 60);
    setup_stream(&x->s, 0, 4, 300, 0, LATTN_POSITIONS_ABSOLUTE);
    if (i) setup_stream(&x->s, 1, 4, 300, 0, LATTN_POSITIONS_ABSOLUTE);
    else head_heavy(&x->s, 1, 32, 8);
    rig_open(x, 1, 1, &rng);
    for (int64_t at = 0; at < 690; at += 10) {
      rig_extend(x, x->cache, at, 10, 10);
      CHECK_STATUS(lattn_cache_mark(x->cache, LATTN_PROMPT_END, NULL), LATTN_OK);
    }
  }
  for (int64_t i = 0; i < 690; i++) CHECK(!memcmp(r.out + i * 32, alone.out + i * 32, 64));
  rig_close(&r);
  rig_close(&alone);
}

/* Heads that tell what they lost go back to a checkpoint although the cache has seen far more
   tokens than it has room for. */
static void test_back_beyond_capacity(void) {
  rig r;
  lattn_checkpoint *kept = NULL;
  test_rng rng = rng_seed(9);
  check_case("rollback beyond the capacity");
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 1, 1, 16, 16, 60);
  head_heavy(&r.s, 0, 32, 8);
  r.s.heads[0].flags = LATTN_HEAD_LOST;
  r.s.config.max_holes = 1; /* the head's table has room for three pages */
  rig_open(&r, 2, 1, &rng);
  for (int64_t at = 0; at < 690; at += 10) {
    rig_extend(&r, r.cache, at, 10, 10);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
  }
  if (CHECK_STATUS(lattn_cache_checkpoint(&kept, r.cache), LATTN_OK)) {
    CHECK_STATUS(lattn_cache_rollback(r.cache, kept), LATTN_OK);
    CHECK_STATUS(lattn_checkpoint_release(kept), LATTN_OK);
  }
  rig_close(&r);
}

/* ---- fork, checkpoint, rollback, truncate, save, load, drafts, batches ---- */

static memory_file saved(const lattn_cache *cache) {
  memory_file f = {0};
  memory_file_save(&f, cache);
  return f;
}

/* A life of a cache: a prompt, a mark, some more tokens, a mark; and what it was on the way. Other
   lives of the same tokens and marks end alike. */
typedef struct life {
  rig r;
  test_rng rng;
  lattn_checkpoint *before, *behind; /* the first mark */
  lattn_cache *fork;                 /* of before it */
  uint64_t prompt, marked, end;
  int64_t n, m;
  float *answers; /* of the tokens between the marks */
} life;

static void life_answers(const life *l, const char *what) {
  int64_t row = setup_heads(&l->r.s) * setup_value_dim(&l->r.s);
  if (memcmp(l->answers, l->r.out + l->n * row, (size_t)(l->m * row) * 4))
    FAIL("other answers %s", what);
}

static void life_lead(life *l, uint64_t seed) {
  rig *r = &l->r;
  int64_t row;
  memset(l, 0, sizeof *l);
  l->rng = rng_seed(seed);
  l->n = rng_range(&l->rng, 60, 400), l->m = rng_range(&l->rng, 1, 60);
  random_setup(&r->s, &l->rng, l->n / 3, 1);
  r->allocates = rng_chance(&l->rng, 30);
  rig_open(r, 5, 1, &l->rng);
  row = setup_heads(&r->s) * setup_value_dim(&r->s);
  l->answers = (float *)ref_memory(l->m * row, 4);
  rig_extend(r, r->cache, 0, l->n, 100);
  l->prompt = fingerprint(r, r->cache, 1);
  CHECK_STATUS(lattn_cache_checkpoint(&l->before, r->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&l->fork, r->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, &r->ex), LATTN_OK);
  CHECK(fingerprint(r, l->fork, 1) == l->prompt);
  l->marked = fingerprint(r, r->cache, 1);
  CHECK_STATUS(lattn_cache_checkpoint(&l->behind, r->cache), LATTN_OK);
  rig_extend(r, r->cache, l->n, l->m, 9);
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, &r->ex), LATTN_OK);
  l->end = fingerprint(r, r->cache, 1);
  memcpy(l->answers, r->out + l->n * row, (size_t)(l->m * row) * 4);
}

/* Its file, in another cache, which no damaged file changes. */
static void life_in_a_file(life *l) {
  rig *r = &l->r;
  memory_file f = saved(r->cache), g;
  lattn_cache *loaded = cache_new(r->pool, &r->s);
  CHECK_STATUS(lattn_cache_load(loaded, memory_file_read, &f), LATTN_OK);
  CHECK(fingerprint(r, loaded, 1) == l->marked);
  g = saved(loaded);
  CHECK(f.n == g.n && !memcmp(f.bytes, g.bytes, f.n));
  for (int i = 0; i < 3; i++) {
    size_t at = (size_t)rng_below(&l->rng, (int64_t)f.n);
    f.bytes[at] ^= 16;
    f.at = 0;
    CHECK(lattn_cache_load(loaded, memory_file_read, &f) < 0);
    CHECK(fingerprint(r, loaded, 1) == l->marked);
    f.bytes[at] ^= 16;
  }
  rig_extend(r, loaded, l->n, l->m, 3);
  life_answers(l, "of a loaded cache");
  CHECK_STATUS(lattn_cache_mark(loaded, LATTN_PROMPT_END, &r->ex), LATTN_OK);
  CHECK(fingerprint(r, loaded, 1) == l->end);
  CHECK_STATUS(lattn_cache_release(loaded), LATTN_OK);
  free(f.bytes), free(g.bytes);
}

/* Truncating goes to the mark, not beyond; and not at all with sums. */
static void life_cut_short(life *l) {
  rig *r = &l->r;
  int dropped = 0, heavy = 0;
  for (int h = 0; h < r->s.config.n_kv_heads; h++) {
    dropped |= head_stats(r->cache, h).n_tokens_held < l->n + l->m;
    heavy |= r->s.heads[h].policy == LATTN_HEAD_HEAVY;
  }
  if (heavy) {
    CHECK_STATUS(lattn_cache_truncate(r->cache, l->n + l->m - 1), LATTN_E_EVICTED);
  } else {
    CHECK_STATUS(lattn_cache_truncate(r->cache, l->n - 1), dropped ? LATTN_E_EVICTED : LATTN_OK);
    if (!dropped) rig_extend(r, r->cache, l->n - 1, 1, 1);
    if (dropped) CHECK_STATUS(lattn_cache_truncate(r->cache, l->n), LATTN_OK);
    rig_extend(r, r->cache, l->n, l->m, 7);
    life_answers(l, "after truncating");
  }
  CHECK_STATUS(lattn_cache_truncate(r->cache, 0), LATTN_OK);
  rig_extend(r, r->cache, 0, l->n, 64);
  CHECK(fingerprint(r, r->cache, 1) == l->prompt);
}

/* A file of another budget, kernel or policy is not ours. */
static void test_other_configs(void) {
  for (int kind = 0; kind < 6; kind++) {
    rig r;
    test_rng rng = rng_seed(15);
    setup other;
    lattn_cache *cache;
    memory_file f;
    check_case("a file of another config, kind %d", kind);
    memset(&r, 0, sizeof r);
    setup_init(&r.s, 1, 1, 16, 16, MOST);
    head_snap(&r.s, 0, 60, 10, 5, 0);
    rig_open(&r, 3, 1, &rng);
    rig_extend(&r, r.cache, 0, 100, 100);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
    f = saved(r.cache);
    setup_init(&other, 1, 1, 16, 16, MOST);
    head_snap(&other, 0, 60, 10, 5, 0);
    if (kind == 0) other.heads[0].budget = 61;
    if (kind == 1) other.heads[0].kernel = 3;
    if (kind == 2) other.heads[0].flags = LATTN_SNAP_AVERAGE;
    if (kind == 3) head_heavy(&other, 0, 60, 10);
    if (kind == 4) memset(other.heads, 0, sizeof other.heads);
    if (kind == 5) other.config.capacity = 50;
    cache = cache_new(r.pool, &other);
    CHECK_STATUS(lattn_cache_load(cache, memory_file_read, &f),
                 kind == 5 ? LATTN_E_FULL : LATTN_E_CONFIG);
    free(f.bytes);
    CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
    rig_close(&r);
  }
}

static void test_lives(uint64_t seed) {
  life l;
  rig *r = &l.r;
  check_case("lives, seed %d", (int)seed);
  life_lead(&l, seed);
  CHECK_STATUS(lattn_cache_mark(l.fork, LATTN_PROMPT_END, NULL), LATTN_OK);
  CHECK(fingerprint(r, l.fork, 1) == l.marked);
  rig_extend(r, l.fork, l.n, l.m, 1000);
  life_answers(&l, "of a fork");
  CHECK_STATUS(lattn_cache_rollback(r->cache, l.behind), LATTN_OK);
  CHECK(fingerprint(r, r->cache, 1) == l.marked);
  life_in_a_file(&l);
  CHECK_STATUS(lattn_cache_rollback(r->cache, l.before), LATTN_OK);
  CHECK(fingerprint(r, r->cache, 1) == l.prompt);
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, &r->ex), LATTN_OK);
  CHECK(fingerprint(r, r->cache, 1) == l.marked);
  rig_extend(r, r->cache, l.n, l.m, 50);
  life_cut_short(&l);
  CHECK_STATUS(lattn_checkpoint_release(l.before), LATTN_OK);
  CHECK_STATUS(lattn_checkpoint_release(l.behind), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(l.fork), LATTN_OK);
  free(l.answers);
  rig_close(r);
}

/* ---- histories: whatever was done to a cache, it is what its tokens and marks make of it ---- */

enum { MOST_MARKS = 100 };

typedef struct history {
  int64_t n, marks[MOST_MARKS]; /* tokens; tokens before each mark */
  int n_marks;
} history;

static lattn_cache *replay(rig *r, const history *h) {
  lattn_cache *cache = cache_new(r->pool, &r->s);
  int64_t at = 0;
  for (int i = 0; i <= h->n_marks; i++) {
    int64_t to = i < h->n_marks ? h->marks[i] : h->n;
    rig_extend(r, cache, at, to - at, 1000);
    if (i < h->n_marks) CHECK_STATUS(lattn_cache_mark(cache, LATTN_PROMPT_END, &r->ex), LATTN_OK);
    at = to;
  }
  return cache;
}

static void history_truncate(rig *r, history *h, test_rng *rng) {
  int64_t to = h->n - rng_below(rng, h->n < 40 ? h->n + 1 : 40);
  lattn_status s = lattn_cache_truncate(r->cache, to);
  if (s) {
    CHECK_STATUS(s, LATTN_E_EVICTED);
    return;
  }
  h->n = to;
  while (h->n_marks && (h->marks[h->n_marks - 1] > to || !to)) h->n_marks--;
}

static void history_draft(rig *r, history *h, test_rng *rng) {
  static const int32_t path[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  int64_t heads = setup_heads(&r->s), dv = setup_value_dim(&r->s), n = rng_range(rng, 1, 8);
  int64_t keep = rng_below(rng, n + 1);
  if (!r->s.config.max_drafts) return;
  CHECK_STATUS(lattn_cache_draft(r->cache, NULL, NULL, tokens_q(&r->t, &r->s, h->n, n),
                                 tokens_k(&r->t, &r->s, h->n, n), tokens_v(&r->t, &r->s, h->n, n),
                                 tensor_of(r->out, LATTN_F32, n, heads, dv), NULL, &r->ex),
               LATTN_OK);
  CHECK_STATUS(lattn_cache_accept(r->cache, (int32_t)keep, path), LATTN_OK);
  h->n += keep;
}

static void history_file(rig *r) {
  memory_file f = saved(r->cache);
  CHECK_STATUS(lattn_cache_load(r->cache, memory_file_read, &f), LATTN_OK);
  free(f.bytes);
}

static void history_mark(rig *r, history *h) {
  lattn_status s = lattn_cache_mark(r->cache, LATTN_PROMPT_END, &r->ex);
  if (s) CHECK_STATUS(s, LATTN_E_STATE); /* after truncating more than slack */
  if (!s) h->marks[h->n_marks++] = h->n;
}

static void history_fork(rig *r) {
  lattn_cache *fork = NULL;
  CHECK_STATUS(lattn_cache_fork(&fork, r->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  r->cache = fork;
}

static void history_end(rig *r, const history *h) {
  int64_t row = setup_heads(&r->s) * setup_value_dim(&r->s);
  float *answers = (float *)ref_memory(3 * row, 4);
  lattn_cache *fresh = replay(r, h);
  lattn_status s;
  CHECK(fingerprint(r, r->cache, 0) == fingerprint(r, fresh, 0));
  rig_extend(r, r->cache, h->n, 3, 2);
  memcpy(answers, r->out + h->n * row, (size_t)(3 * row) * 4);
  rig_extend(r, fresh, h->n, 3, 3);
  CHECK(!memcmp(answers, r->out + h->n * row, (size_t)(3 * row) * 4));
  s = lattn_cache_mark(r->cache, LATTN_PROMPT_END, NULL);
  CHECK_STATUS(lattn_cache_mark(fresh, LATTN_PROMPT_END, NULL), LATTN_OK);
  if (!s) CHECK(fingerprint(r, r->cache, 0) == fingerprint(r, fresh, 0));
  CHECK_STATUS(lattn_cache_release(fresh), LATTN_OK);
  free(answers);
}

static void test_history(uint64_t seed) {
  rig r;
  test_rng rng = rng_seed(seed);
  lattn_checkpoint *c = NULL;
  history h = {0, {0}, 0}, then = h;
  check_case("history, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  random_setup(&r.s, &rng, rng_range(&rng, 20, 200), 1);
  if (rng_chance(&rng, 60)) {
    random_heads(&r.s, &rng, rng_range(&rng, 20, 200), 0);
    r.s.config.max_drafts = 8;
  }
  r.allocates = rng_chance(&rng, 30);
  rig_open(&r, 5, 2, &rng);
  for (int step = 0; step < 40; step++) {
    int64_t n = rng_chance(&rng, 50) ? rng_below(&rng, 3) : rng_below(&rng, 90);
    int kind = (int)rng_below(&rng, 16);
    if (kind < 6 && h.n + n < MOST - 20) rig_extend(&r, r.cache, h.n, n, n / 2 + 1), h.n += n;
    if (kind == 6 || kind == 7) history_mark(&r, &h);
    if (kind == 8 || kind == 9) history_truncate(&r, &h, &rng);
    if (kind == 10 && h.n < MOST - 20) history_draft(&r, &h, &rng);
    if (kind == 11) history_file(&r);
    if (kind == 12) history_fork(&r);
    if (kind == 13) {
      if (c) CHECK_STATUS(lattn_checkpoint_release(c), LATTN_OK);
      CHECK_STATUS(lattn_cache_checkpoint(&c, r.cache), LATTN_OK);
      then = h;
    }
    if (kind >= 14 && c) {
      CHECK_STATUS(lattn_cache_rollback(r.cache, c), LATTN_OK);
      h = then;
    }
  }
  history_end(&r, &h);
  if (c) CHECK_STATUS(lattn_checkpoint_release(c), LATTN_OK);
  rig_close(&r);
}

/* Drafts on heads that dropped; accepted ones count as rows of the next mark. */
static void test_drafts(uint64_t seed) {
  rig r;
  test_rng rng = rng_seed(seed);
  const int64_t n = 300;
  static const int32_t path[6] = {0, 1, 2, 3, 4, 5};
  lattn_cache *plain;
  int64_t heads, dv;
  float *answers;
  check_case("drafts, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 4, 2, 16, 16, MOST);
  random_heads(&r.s, &rng, 130, 0);
  if (seed & 1) setup_rotate(&r.s, 0, 0, 16);
  r.s.config.max_drafts = 8;
  r.s.config.key_type = 1 + (int32_t)(seed % 5);
  rig_open(&r, 2, 2, &rng);
  heads = setup_heads(&r.s), dv = setup_value_dim(&r.s);
  answers = (float *)ref_memory(MOST * heads * dv, 4);
  plain = cache_new(r.pool, &r.s);
  rig_extend(&r, r.cache, 0, n, 77);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  CHECK_STATUS(lattn_cache_draft(r.cache, NULL, NULL, tokens_q(&r.t, &r.s, n, 6),
                                 tokens_k(&r.t, &r.s, n, 6), tokens_v(&r.t, &r.s, n, 6),
                                 tensor_of(answers, LATTN_F32, 6, heads, dv), NULL, &r.ex),
               LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_accept(r.cache, 4, path), LATTN_OK);
  rig_extend(&r, plain, 0, n, 200);
  CHECK_STATUS(lattn_cache_mark(plain, LATTN_PROMPT_END, NULL), LATTN_OK);
  rig_extend(&r, plain, n, 4, 1);
  CHECK(!memcmp(answers, r.out + n * heads * dv, (size_t)(4 * heads * dv) * 4));
  CHECK(fingerprint(&r, r.cache, 1) == fingerprint(&r, plain, 1));
  rig_extend(&r, plain, n + 4, 130, 50);
  rig_extend(&r, r.cache, n + 4, 130, 1);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(plain, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  CHECK(fingerprint(&r, r.cache, 1) == fingerprint(&r, plain, 1));
  free(answers);
  CHECK_STATUS(lattn_cache_release(plain), LATTN_OK);
  rig_close(&r);
}

/* Forks of a marked prompt in one batched call, beside one that was not marked. */
static void test_batch(uint64_t seed) {
  rig r;
  test_rng rng = rng_seed(seed);
  const int64_t n = 300;
  int64_t heads, dv;
  lattn_cache *c[3], *unmarked = NULL;
  lattn_sequence list[3];
  float *answers;
  void *scratch;
  lattn_exec ex;
  check_case("batch, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 4, 2, 16, 16, MOST);
  random_heads(&r.s, &rng, 130, 1);
  rig_open(&r, 6, 2, &rng);
  heads = setup_heads(&r.s), dv = setup_value_dim(&r.s);
  answers = (float *)ref_memory(9 * heads * dv, 4);
  rig_extend(&r, r.cache, 0, n, 77);
  CHECK_STATUS(lattn_cache_fork(&c[2], r.cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&unmarked, r.cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&c[0], r.cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&c[1], r.cache), LATTN_OK);
  ex = r.ex;
  ex.scratch_bytes = lattn_batch_scratch(&r.s.config, 3, 9, 2);
  ex.scratch = scratch = ref_memory((int64_t)ex.scratch_bytes, 1);
  for (int i = 0; i < 3; i++) list[i].cache = c[i], list[i].n_tokens = 3, list[i].parents = NULL;
  CHECK_STATUS(lattn_batch_extend(3, list, NULL, tokens_q(&r.t, &r.s, n, 9),
                                  tokens_k(&r.t, &r.s, n, 9), tokens_v(&r.t, &r.s, n, 9),
                                  tensor_of(answers, LATTN_F32, 9, heads, dv), NULL, &ex),
               LATTN_OK);
  for (int i = 0; i < 3; i++) { /* each as if alone: from the fork of before the mark, or of it */
    lattn_tensor out = tensor_of(r.out, LATTN_F32, 3, heads, dv);
    lattn_cache *alone = NULL;
    CHECK_STATUS(lattn_cache_fork(&alone, i == 2 ? unmarked : r.cache), LATTN_OK);
    CHECK_STATUS(lattn_cache_extend(alone, NULL, tokens_q(&r.t, &r.s, n + 3 * i, 3),
                                    tokens_k(&r.t, &r.s, n + 3 * i, 3),
                                    tokens_v(&r.t, &r.s, n + 3 * i, 3), out, NULL, NULL),
                 LATTN_OK);
    CHECK(!memcmp(r.out, answers + 3 * i * heads * dv, (size_t)(3 * heads * dv) * 4));
    CHECK(fingerprint(&r, alone, 1) == fingerprint(&r, c[i], 1));
    CHECK_STATUS(lattn_cache_release(alone), LATTN_OK);
  }
  CHECK_STATUS(lattn_cache_release(unmarked), LATTN_OK);
  for (int i = 0; i < 3; i++) CHECK_STATUS(lattn_cache_release(c[i]), LATTN_OK);
  free(answers);
  free(scratch);
  rig_close(&r);
}

/* A prefix of more than a segment, whose pages sequences read together where their heads are full:
   not where a head has dropped some. */
static void test_groups(void) {
  enum { PREFIX = 2200 };
  setup s;
  token_list t;
  test_rng rng = rng_seed(13);
  lattn_pool *pool;
  lattn_cache *c[3] = {NULL};
  lattn_sequence list[3];
  lattn_exec ex;
  float together[3 * 32], alone[32], *out = (float *)ref_memory(PREFIX * 32, 4);
  size_t bytes;
  void *arena;
  check_case("groups");
  setup_init(&s, 2, 2, 16, 16, PREFIX + 10);
  head_snap(&s, 1, 2100, 8, 0, 0);
  bytes = lattn_pool_bytes(NULL, &s.config, 3);
  arena = ref_memory((int64_t)bytes, 1);
  CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, NULL), LATTN_OK);
  c[0] = cache_new(pool, &s);
  t = tokens_new(&s, PREFIX + 3);
  tokens_make(&t, PREFIX + 3, &rng);
  memset(&ex, 0, sizeof ex);
  ex.size = sizeof ex;
  ex.scratch_bytes = lattn_batch_scratch(&s.config, 3, PREFIX, 1);
  ex.scratch = ref_memory((int64_t)ex.scratch_bytes, 1);
  CHECK_STATUS(lattn_cache_extend(c[0], NULL, tokens_q(&t, &s, 0, PREFIX),
                                  tokens_k(&t, &s, 0, PREFIX), tokens_v(&t, &s, 0, PREFIX),
                                  tensor_of(out, LATTN_F32, PREFIX, 2, 16), NULL, &ex),
               LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(c[0], LATTN_PROMPT_END, &ex), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&c[1], c[0]), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&c[2], c[0]), LATTN_OK);
  for (int i = 0; i < 3; i++) list[i].cache = c[i], list[i].n_tokens = 1, list[i].parents = NULL;
  CHECK_STATUS(lattn_batch_extend(3, list, NULL, tokens_q(&t, &s, PREFIX, 3),
                                  tokens_k(&t, &s, PREFIX, 3), tokens_v(&t, &s, PREFIX, 3),
                                  tensor_of(together, LATTN_F32, 3, 2, 16), NULL, &ex),
               LATTN_OK);
  for (int i = 0; i < 3; i++) {
    CHECK_STATUS(lattn_cache_attend(c[i], NULL, tokens_q(&t, &s, PREFIX + i, 1),
                                    tensor_of(alone, LATTN_F32, 1, 2, 16), NULL, NULL),
                 LATTN_OK);
    CHECK(!memcmp(alone, together + i * 32, sizeof alone));
    CHECK_STATUS(lattn_cache_release(c[i]), LATTN_OK);
  }
  tokens_free(&t);
  free(arena), free(test_writable(ex.scratch)), free(out);
}

/* Every kind of head in one cache answers as the same head alone; between its calls the cache goes
   through a file, or back to a checkpoint. */
static void test_mixed(int kind) {
  static float all[MOST * 4 * 16];
  const int64_t n = 300, m = 20;
  check_case("mixed policies, %d", kind);
  for (int alone = -1; alone < 4; alone++) {
    test_rng rng = rng_seed(12);
    lattn_checkpoint *c = NULL;
    memory_file f;
    rig r;
    memset(&r, 0, sizeof r);
    setup_init(&r.s, 4, 4, 16, 16, MOST);
    if (kind > 0) setup_stream(&r.s, 0, 3, 50, 0, 0);
    if (kind > 1) r.s.heads[0].policy = LATTN_HEAD_COMPENSATED;
    if (kind > 1) r.s.heads[0].mark = LATTN_PROMPT_END;
    setup_stream(&r.s, 1, 3, 50, 0, 0);
    r.s.heads[1].mark = kind == 3 ? LATTN_PROMPT_END : 0;
    head_snap(&r.s, 2, 70, 20, 0, 0);
    head_heavy(&r.s, 3, 60, 10);
    setup_rotate(&r.s, 1, 0, 16);
    for (int g = 0; alone >= 0 && g < 4; g++) r.s.heads[g] = r.s.heads[alone];
    rig_open(&r, 3, 2, &rng);
    rig_extend(&r, r.cache, 0, n, 100);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    rig_extend(&r, r.cache, n, m, 5);
    CHECK_STATUS(lattn_cache_checkpoint(&c, r.cache), LATTN_OK);
    CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
    rig_extend(&r, r.cache, n + m, m, 5);
    CHECK_STATUS(lattn_cache_rollback(r.cache, c), LATTN_OK);
    f = saved(r.cache);
    CHECK_STATUS(lattn_cache_load(r.cache, memory_file_read, &f), LATTN_OK);
    free(f.bytes);
    rig_extend(&r, r.cache, n + m, m, 3);
    if (alone < 0) memcpy(all, r.out, (size_t)((n + 2 * m) * 64) * 4);
    for (int64_t i = 0; alone >= 0 && i < n + 2 * m; i++)
      CHECK(!memcmp(all + i * 64 + alone * 16, r.out + i * 64 + alone * 16, 64));
    CHECK_STATUS(lattn_checkpoint_release(c), LATTN_OK);
    rig_close(&r);
  }
}

/* What such a head lost, nobody knows: all of it, at most. */
static void test_lost(void) {
  rig r;
  test_rng rng = rng_seed(12);
  float bound[2], estimate[2];
  check_case("lost attention");
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 2, 2, 16, 16, MOST);
  head_snap(&r.s, 0, 70, 20, 0, 0);
  rig_open(&r, 1, 1, &rng);
  r.call.lost_bound = bound;
  r.call.lost_estimate = estimate;
  rig_extend(&r, r.cache, 0, 100, 1);
  CHECK(bound[0] == 0 && bound[1] == 0 && estimate[0] == 0 && estimate[1] == 0);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  rig_extend(&r, r.cache, 100, 1, 1);
  CHECK(bound[0] == 1 && bound[1] == 0 && isnan(estimate[0]) && estimate[1] == 0);
  rig_close(&r);
}

/* ---- statuses ---- */

static void check_config(const char *what, setup *s, lattn_status want) {
  lattn_cache *cache = NULL;
  size_t bytes = 1 << 22;
  void *arena = ref_memory((int64_t)bytes, 1);
  lattn_pool *pool;
  lattn_status got;
  CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, NULL), LATTN_OK);
  got = lattn_cache_init(&cache, pool, &s->config);
  if (got != want) FAIL("%s: %s", what, lattn_status_text(got));
  if (want) CHECK(lattn_cache_bytes(&s->config) == 0);
  free(arena);
}

static void test_configs(void) {
  setup s;
#define TRY(change, want)                      \
  do {                                         \
    setup_init(&s, 2, 2, 16, 16, 1000);        \
    head_snap(&s, 0, 100, 0, 0, 0);            \
    head_heavy(&s, 1, 50, 0);                  \
    change;                                    \
    check_config(#change, &s, LATTN_E_##want); \
  } while (0)
  check_case("configs");
  setup_init(&s, 2, 2, 16, 16, 1000);
  head_snap(&s, 0, 100, 0, 0, 0);
  head_heavy(&s, 1, 50, 0);
  check_config("as it is", &s, LATTN_OK);
  s.config.head_size = offsetof(lattn_head, mark); /* older callers: only the first fields */
  s.config.heads = NULL;
  check_config("none", &s, LATTN_OK);
  TRY(s.heads[0].mark = 2, FIELD);
  TRY(s.heads[0].flags = LATTN_HEAD_VARIANCE, FIELD);
  TRY(s.heads[0].zero = 1, FIELD);
  TRY(s.heads[0].positions = 3, FIELD);
  TRY(s.heads[0].policy = 77, FIELD);
  TRY(s.heads[0].positions = LATTN_POSITIONS_IN_CACHE, CONFIG);
  TRY(s.heads[0].sinks = 1, CONFIG);
  TRY(s.heads[0].window_divisor = 1, CONFIG);
  TRY(s.heads[0].window = -1, VALUE);
  TRY(s.heads[0].slack = -1, VALUE);
  TRY(s.heads[0].budget = 0, VALUE);
  TRY(s.heads[0].budget = 32, VALUE);
  TRY(s.heads[0].budget = INT64_MIN, VALUE);
  TRY(s.heads[0].kernel = 4, VALUE);
  TRY(s.heads[0].kernel = 65, VALUE);
  TRY(s.heads[0].kernel = -1, VALUE);
  TRY(s.heads[0].floor_alpha = 1.5, VALUE);
  TRY(s.heads[0].floor_alpha = (double)NAN, VALUE);
  TRY(s.heads[1].window = 51, VALUE);
  TRY(s.heads[1].kernel = 3, CONFIG);
  TRY(s.heads[1].flags = LATTN_SNAP_SHARED, CONFIG);
  TRY(s.heads[1].slack = 1, CONFIG);
  TRY(s.heads[1].floor_alpha = 0.5, CONFIG);
  TRY(s.config.max_drafts = 1, CONFIG);
  TRY(s.config.capacity = 0, CONFIG);
  TRY((s.heads[1].policy = LATTN_HEAD_FULL, s.heads[1].window = 0), CONFIG);
  TRY((setup_stream(&s, 1, 0, 5, 0, 0), s.heads[1].budget = 1), CONFIG);
#undef TRY
  setup_init(&s, 1, 1, 16, 16, 1000);
  head_snap(&s, 0, INT64_MAX, INT64_MAX - 1, 0, LATTN_SNAP_SHARED);
  check_config("no room for them in numbers", &s, LATTN_E_VALUE);
  s.heads[0].window = 5;
  s.heads[0].slack = INT64_MAX;
  check_config("all", &s, LATTN_OK);
}

static void test_statuses(void) {
  rig r;
  test_rng rng = rng_seed(9);
  lattn_checkpoint *c = NULL;
  float out[64];
  check_case("statuses");
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 2, 2, 16, 16, MOST);
  head_snap(&r.s, 0, 50, 10, 0, 0);
  r.s.heads[0].slack = 3;
  rig_open(&r, 2, 1, &rng);
  CHECK_STATUS(lattn_cache_mark(NULL, LATTN_PROMPT_END, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_mark(r.cache, 0, NULL), LATTN_E_FIELD);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK); /* empty */
  rig_extend(&r, r.cache, 0, 200, 100);
  CHECK_STATUS(lattn_cache_remove(r.cache, 5, 9), LATTN_E_CONFIG);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 197), LATTN_OK); /* as far as its slack */
  CHECK_STATUS(lattn_cache_checkpoint(&c, r.cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  CHECK_STATUS(lattn_cache_attend(r.cache, NULL, tokens_q(&r.t, &r.s, 196, 1),
                                  tensor_of(out, LATTN_F32, 1, 2, 16), NULL, NULL),
               LATTN_E_EVICTED);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 196), LATTN_E_EVICTED);
  CHECK_STATUS(lattn_cache_rollback(r.cache, c), LATTN_OK);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 196), LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_rollback(r.cache, c), LATTN_OK);
  CHECK_STATUS(
      lattn_cache_append(r.cache, tokens_k(&r.t, &r.s, 197, 1), tokens_v(&r.t, &r.s, 197, 1), NULL),
      LATTN_OK);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_E_STATE);
  rig_extend(&r, r.cache, 198, 9, 9);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_E_STATE);
  rig_extend(&r, r.cache, 207, 1, 1);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  CHECK_STATUS(lattn_checkpoint_release(c), LATTN_OK);
  rig_close(&r);
}

/* A pool of the size that lattn_pool_bytes says, and no token more. */
static void test_room(uint64_t seed) {
  rig r;
  test_rng rng = rng_seed(seed);
  check_case("room, seed %d", (int)seed);
  memset(&r, 0, sizeof r);
  random_setup(&r.s, &rng, 200, 1);
  r.allocates = rng_chance(&rng, 30);
  rig_open(&r, 1, 1, &rng);
  rig_extend(&r, r.cache, 0, MOST, 500);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex), LATTN_OK);
  rig_close(&r);
}

/* No room for the pages, or for the table, that a mark needs: nothing has changed. */
static void test_full(int shared) {
  rig r;
  test_rng rng = rng_seed(9);
  lattn_pool_stats before;
  lattn_cache *fork = NULL;
  lattn_checkpoint *c = NULL;
  uint64_t was;
  int refused = 0;
  check_case("a full pool%s", shared ? ", shared pages" : "");
  memset(&r, 0, sizeof r);
  setup_init(&r.s, 2, 2, 16, 16, MOST);
  head_snap(&r.s, 0, 300, 10, 0, 0);
  rig_open(&r, 2, 1, &rng);
  rig_extend(&r, r.cache, 0, 600, 100);
  if (shared) CHECK_STATUS(lattn_cache_fork(&fork, r.cache), LATTN_OK);
  was = fingerprint(&r, r.cache, 1);
  while (!lattn_cache_checkpoint(&c, r.cache)) { /* eats the arena, and is given back by chance */
    lattn_status s;
    before = pool_stats(r.pool);
    if (before.free_bytes > 40000) continue;
    s = lattn_cache_mark(r.cache, LATTN_PROMPT_END, &r.ex);
    if (!s) break;
    CHECK_STATUS(s, LATTN_E_FULL);
    CHECK(fingerprint(&r, r.cache, 1) == was);
    CHECK_I64(pool_stats(r.pool).free_bytes, before.free_bytes);
    CHECK_I64(pool_stats(r.pool).n_pages, before.n_pages);
    refused = 1;
  }
  CHECK(refused);
  free(r.arena); /* checkpoints and all */
  free(r.scratch), free(r.out), free(r.lse);
  tokens_free(&r.t);
  ref_marks_close(&r.ref);
}

int main(void) {
  int64_t n = test_count(120);
  uint64_t first = test_first_seed();
  for (int64_t i = 0; i < n; i++) {
    test_choice(first + (uint64_t)i, 0);
    test_choice(first + (uint64_t)i, 1);
    test_all_kept(first + (uint64_t)i);
    test_lives(first + (uint64_t)i);
  }
  for (int64_t i = 0; i < (n + 2) / 3; i++) {
    test_room(first + (uint64_t)i);
    test_room(first + (uint64_t)(n + i));
    test_history(first + (uint64_t)i);
    test_history(first + (uint64_t)(n + i));
    test_cuts(first + (uint64_t)i);
    test_drafts(first + (uint64_t)i);
    test_batch(first + (uint64_t)i);
    test_positions(first + (uint64_t)i);
  }
  for (int32_t kernel = 1; kernel < 10; kernel += 2) {
    test_needle(kernel, 0);
    test_needle(kernel, LATTN_SNAP_AVERAGE | LATTN_SNAP_GROUP_MAX);
  }
  test_ties(LATTN_HEAD_SNAP);
  test_ties(LATTN_HEAD_HEAVY);
  test_nan(LATTN_HEAD_SNAP);
  test_nan(LATTN_HEAD_HEAVY);
  test_shared();
  test_pyramid();
  test_replay();
  for (int kind = 0; kind < 4; kind++) test_mixed(kind);
  test_lost();
  test_groups();
  test_beyond_capacity();
  test_back_beyond_capacity();
  test_other_configs();
  test_configs();
  test_statuses();
  test_full(0);
  test_full(1);
  return test_summary();
}
