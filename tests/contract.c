/* contract.c - one answer: the golden cases give the hashes of golden.h on every level, compiler
 * and language mode, and the same bits for any number of threads and any way of cutting the work.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   contract --print writes a new golden.h. A golden hash changes only when the answer is meant to
   change: say so where you commit it. */
#include "test.h"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

#include "cases.h"
#include "ref_cache.h"
#include "ref_state.h"
#include "state_cases.h"
#include "profile_cases.h"
#include "golden.h"

enum {
  N_ATTEND = sizeof golden_attend / sizeof *golden_attend,
  N_CACHE = sizeof golden_cache / sizeof *golden_cache,
  N_SIGMOID = sizeof golden_sigmoid / sizeof *golden_sigmoid,
  N_SIGMOID_CACHE = sizeof golden_sigmoid_cache / sizeof *golden_sigmoid_cache,
  N_COMPENSATED = sizeof golden_compensated / sizeof *golden_compensated,
  N_POLICY = sizeof golden_policy / sizeof *golden_policy,
  N_STATE = sizeof golden_state / sizeof *golden_state,
  N_FLOW = sizeof golden_flow / sizeof *golden_flow,
  N_PROFILE = sizeof golden_profile / sizeof *golden_profile
};

static uint64_t hashes_attend[N_ATTEND], hashes_cache[N_CACHE];
static uint64_t hashes_sigmoid[N_SIGMOID], hashes_sigmoid_cache[N_SIGMOID_CACHE];
static uint64_t hashes_compensated[N_COMPENSATED], hashes_policy[N_POLICY];
static uint64_t hashes_state[N_STATE], hashes_flow[N_FLOW], hashes_profile[N_PROFILE];

/* How much of a check runs for golden case i: its hash is asked for on every level; all cases are
   cut up on one level, every second or third on those that share most of the code with it. */
static int thorough(uint64_t i) {
  const char *name = lattn_simd_name();
  if (test_is_quick()) return i % 8 == 0;
  return i % (strcmp(name, "scalar") ? strcmp(name, "avx2") ? 1 : 2 : 3) == 0;
}

static void check_golden(uint64_t hash, uint64_t want) {
  if (hash != want)
    FAIL("hash %016" PRIx64 ", golden.h has %016" PRIx64 " (level %s)", hash, want,
         lattn_simd_name());
}

/* ---- golden cases of lattn_attention ---- */

/* A call on some rows and keys, or on one head, of a case. */
typedef struct piece {
  lattn_attn a;
  lattn_tensor q, k, v, key_bias, pair_bias, gate;
  case_shift shift;
  int64_t first_row, first_head; /* of the case's out */
} piece;

/* Tokens t ... t + n - 1 of a view, and dims d ... d + n_dims - 1. */
static lattn_tensor view_part(const lattn_tensor *t, int64_t token, int64_t n, int64_t d,
                              int64_t n_dims) {
  lattn_tensor part = *t;
  const char *data = (const char *)t->data;
  if (!part.stride_head) part.stride_head = t->dim;
  if (!part.stride_token) part.stride_token = t->n_heads * part.stride_head;
  if (data) part.data = data + (tensor_index(t, token, 0) + d) * (int64_t)type_bytes(t->type);
  part.n_tokens = n;
  part.dim = n_dims;
  return part;
}

static lattn_tensor view_head(const lattn_tensor *t, int64_t head) {
  lattn_tensor part = view_part(t, 0, t->n_tokens, 0, t->dim);
  const char *data = (const char *)t->data;
  if (t->n_heads == 1) return part;
  if (data) part.data = data + tensor_index(t, 0, head) * (int64_t)type_bytes(t->type);
  part.n_heads = 1;
  return part;
}

/* The whole case; q stands for its q, which out may have replaced. */
static void piece_whole(piece *p, const attend_case *c, const lattn_tensor *q) {
  memset(p, 0, sizeof *p);
  p->a = c->a;
  p->a.partial = NULL;
  p->q = *q;
  p->k = c->k;
  p->v = c->v;
  p->key_bias = c->key_bias;
  p->pair_bias = c->pair_bias;
  p->gate = c->gate;
  if (p->a.key_bias) p->a.key_bias = &p->key_bias;
  if (p->a.pair_bias) p->a.pair_bias = &p->pair_bias;
  if (p->a.gate) p->a.gate = &p->gate;
  p->a.score_user = &p->shift;
}

/* Rows row ... row + n - 1, all of one sequence, on its first n_keys keys. */
static void piece_rows(piece *p, const attend_case *c, int64_t row, int64_t n, int64_t n_keys) {
  ref_call rows;
  ref_place place;
  lattn_attn *a = &p->a;
  memset(&rows, 0, sizeof rows);
  rows.options = c->a;
  rows.options.query_positions = NULL;
  rows.n_queries = c->n_queries;
  rows.n_keys = c->n_keys;
  place = ref_find(&rows, row);
  a->n_sequences = 0;
  a->query_starts = a->key_starts = NULL;
  a->sequence_query_positions = a->sequence_key_positions = NULL;
  a->query_position = place.position;
  a->key_position = place.key_position;
  if (a->visible_from) a->visible_from += row;
  if (a->visible_to) a->visible_to += row;
  if (a->query_positions) a->query_positions += row;
  if (a->key_positions) a->key_positions += place.first_key;
  p->q = view_part(&p->q, row, n, 0, c->key_dim);
  p->k = view_part(&p->k, place.first_key, n_keys, 0, c->key_dim);
  p->v = view_part(&p->v, place.first_key, n_keys, 0, c->value_dim);
  if (a->gate) p->gate = view_part(&p->gate, row, n, 0, p->gate.dim);
  if (a->key_bias) p->key_bias = view_part(&p->key_bias, 0, 1, place.first_key, n_keys);
  if (a->pair_bias) p->pair_bias = view_part(&p->pair_bias, row, n, place.first_key, n_keys);
  if (!n_keys) a->key_bias = a->pair_bias = NULL;
  p->shift.sequence = place.sequence;
  p->shift.row = row;
  p->first_row = row;
}

static void piece_head(piece *p, const attend_case *c, int64_t head) {
  int64_t g = head / (c->heads / c->kv_heads);
  p->q = view_head(&p->q, head);
  p->k = view_head(&p->k, g);
  p->v = view_head(&p->v, g);
  if (p->a.gate) p->gate = view_head(&p->gate, head);
  if (p->a.key_bias) p->key_bias = view_head(&p->key_bias, head);
  if (p->a.pair_bias) p->pair_bias = view_head(&p->pair_bias, head);
  if (p->a.alibi_slopes) p->a.alibi_slopes += head;
  if (p->a.sink_logits) p->a.sink_logits += head;
  p->shift.head = (int32_t)head;
  p->first_head = head;
}

/* Runs the piece and compares it with the case's out and lse, bit for bit. */
static void piece_check(const piece *p, const attend_case *c, const char *what) {
  int64_t rows = p->q.n_tokens, heads = p->q.n_heads;
  lattn_tensor out = tensor_of(NULL, c->out.type, rows, heads, c->value_dim);
  void *data = ref_memory(rows * heads * c->value_dim, 4);
  float *lse = (float *)ref_memory(rows * heads, sizeof(float));
  lattn_exec exec;
  int same = 1;
  out.data = data;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_attention_scratch(&p->a, p->q, p->k, p->v, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  CHECK_STATUS(lattn_attention(&p->a, p->q, p->k, p->v, out, lse, &exec), LATTN_OK);
  for (int64_t i = 0; i < rows; i++)
    for (int64_t h = 0; h < heads; h++) {
      int64_t row = p->first_row + i, head = p->first_head + h;
      if (c->lse) same &= same_f32(lse[i * heads + h], c->lse[row * c->heads + head]);
      for (int64_t d = 0; d < c->value_dim; d++)
        same &= same_f32(tensor_get(&out, i, h, d), tensor_get(&c->out, row, head, d));
    }
  if (!same)
    FAIL("%s gives other bits (row %" PRId64 ", head %" PRId64 ")", what, p->first_row,
         p->first_head);
  free(exec.scratch);
  free(data);
  free(lse);
}

/* Each row as a call of its own with the keys that its mask allows: prefill = decode. */
static void check_rows_alone(attend_case *c, const lattn_tensor *q) {
  int64_t n = c->n_queries < 20 ? c->n_queries : 14;
  ref_call rows;
  memset(&rows, 0, sizeof rows);
  rows.options = c->a;
  rows.n_queries = c->n_queries;
  rows.n_keys = c->n_keys;
  for (int64_t i = 0; i < n; i++) {
    int64_t row = i < 2 ? i * (c->n_queries - 1) : rng_below(&c->rng, c->n_queries), keys;
    ref_place place;
    piece p;
    if (n == c->n_queries) row = i;
    place = ref_find(&rows, row);
    keys = place.end_key - place.first_key;
    piece_whole(&p, c, q);
    if (c->a.mask != LATTN_FULL) {
      if (place.causal < 0) continue; /* no position for a call of its own */
      if (place.causal - place.key_position + 1 < keys)
        keys = place.causal - place.key_position + 1;
      p.a.mask = LATTN_CAUSAL_AT;
    }
    piece_rows(&p, c, row, 1, keys < 0 ? 0 : keys);
    piece_check(&p, c, "a row alone");
  }
}

static void check_sequences_alone(attend_case *c, const lattn_tensor *q) {
  for (int64_t s = 0; s < c->a.n_sequences; s++) {
    int64_t first = c->a.query_starts[s], end = c->a.query_starts[s + 1];
    piece p;
    if (first == end) continue;
    piece_whole(&p, c, q);
    piece_rows(&p, c, first, end - first, c->a.key_starts[s + 1] - c->a.key_starts[s]);
    if (c->a.mask == LATTN_CAUSAL) p.a.query_position = 0; /* not used */
    piece_check(&p, c, "a sequence alone");
  }
}

static void check_heads_alone(attend_case *c, const lattn_tensor *q) {
  for (int64_t h = 0; h < c->heads && c->heads > 1; h++) {
    piece p;
    piece_whole(&p, c, q);
    piece_head(&p, c, h);
    piece_check(&p, c, "a head alone");
  }
}

static uint64_t attend_hash(attend_case *c, enum exec_kind kind, int32_t n_threads) {
  lattn_exec exec;
  const lattn_exec *given = case_exec(c, &exec, kind, n_threads);
  uint64_t hash;
  CHECK_STATUS(lattn_attention(&c->a, c->q, c->k, c->v, c->out, c->lse, given), LATTN_OK);
  hash = hash_tensor(HASH_SEED, &c->out);
  if (c->lse) hash = hash_f32(hash, c->lse, c->n_queries * c->heads);
  return hash;
}

/* Case i, or that of sigmoid attention; its hash goes to *hash. */
static void golden_attention(uint64_t i, int sigmoid, uint64_t *hash, uint64_t want) {
  static const struct {
    enum exec_kind kind;
    int32_t n_threads;
  } ways[] = {{EXEC_SCRAMBLED, 2}, {EXEC_THREADS, 7}, {EXEC_STACK, 3}, {EXEC_NULL, 1}};
  attend_case c;
  lattn_tensor q;
  int64_t bytes;
  void *before, *at;
  case_make(&c, i, CASE_GOLDEN);
  check_case("golden %s%s", c.name, sigmoid ? " SIGMOID" : "");
  if (sigmoid) case_sigmoid(&c);
  bytes = case_extent(&c.out) * (int64_t)type_bytes(c.out.type);
  before = ref_memory(bytes, 1);
  at = test_writable(c.out.data);
  if (bytes) memcpy(before, at, (size_t)bytes);
  q = c.q;
  if (case_on(&c, OPTION_ALIAS)) q.data = before;
  *hash = attend_hash(&c, EXEC_ONE, 1);
  check_golden(*hash, want);
  if (thorough(i)) {
    check_rows_alone(&c, &q);
    check_sequences_alone(&c, &q);
    check_heads_alone(&c, &q);
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
      if (w >= 2 && !case_small(&c)) break;
      if (bytes) memcpy(at, before, (size_t)bytes);
      if (attend_hash(&c, ways[w].kind, ways[w].n_threads) != *hash)
        FAIL("%s, %d threads: other bits", exec_names[ways[w].kind], (int)ways[w].n_threads);
    }
  }
  free(before);
  CHECK(case_free(&c));
}

/* ---- golden cases of caches ---- */

static const int32_t cache_shapes[][2] = {{1, 1}, {2, 1}, {4, 2}, {4, 4}, {6, 3}, {8, 1}};
static const int32_t cache_dims[] = {2, 4, 6, 8, 16, 20, 32, 46, 64};
static const int64_t cache_lengths[] = {1, 16, 17, 127, 129, 200, 300, 400, 700};

/* A random configuration; returns the number of tokens of the text. */
static int64_t cache_setup(setup *s, test_rng *r) {
  int64_t shape = rng_below(r, 6), key = rng_below(r, 9), value = rng_below(r, 9);
  int64_t n = cache_lengths[rng_below(r, 9)], sinks, window, slack, mode;
  if (rng_chance(r, 6)) n = 2200;
  if (n > 150) key = key % 5, value = value % 5; /* dims <= 16: the longer, the smaller */
  if (n > 700) key = 1, value = 2, shape = shape % 3;
  setup_init(s, cache_shapes[shape][0], cache_shapes[shape][1], cache_dims[key], cache_dims[value],
             n);
  s->config.key_type = (int32_t)rng_below(r, 4);
  s->config.value_type = (int32_t)rng_below(r, 4);
  mode = rng_below(r, 10);
  if (mode < 6) setup_rotate(s, mode & 1, 0, s->config.key_dim / 2 * 2);
  if (mode == 5 && s->config.key_dim >= 6) setup_rotate(s, 1, 2, s->config.key_dim / 2 * 2 - 4);
  if (mode == 6 || mode == 7) setup_alibi(s);
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    sinks = rng_below(r, 6);
    if (rng_chance(r, 20)) sinks = rng_range(r, 15, 140);
    window = rng_range(r, 1, 60);
    if (rng_chance(r, 30)) window = rng_range(r, 120, 300);
    slack = rng_chance(r, 30) ? rng_below(r, 40) : 0;
    if (rng_chance(r, 60))
      setup_stream(s, g, sinks, window, slack, (int32_t)rng_below(r, mode < 8 ? 3 : 2));
  }
  if (rng_chance(r, 25)) setup_sinks(s);
  if (rng_chance(r, 25)) s->config.softcap = 15;
  if (rng_chance(r, 25)) s->config.scale = 0.3125f;
  if (rng_chance(r, 50)) s->config.max_append = (int64_t)1 << rng_range(r, 3, 7);
  return n;
}

/* Its streaming heads become compensated (or the first, if there is none), or tell what they lost;
   some wait for a mark. Of types of all sorts. */
static void compensate(setup *s, test_rng *r) {
  static const int32_t dims[] = {16, 20, 32};
  int64_t sinks = rng_below(r, 6), window = rng_range(r, 1, 60);
  int streams = 0;
  for (int g = 0; g < s->config.n_kv_heads; g++) streams |= s->heads[g].policy;
  if (!streams) setup_stream(s, 0, sinks, window, 0, 0);
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    lattn_head *head = &s->heads[g];
    if (!head->policy) continue;
    if (rng_chance(r, 80)) setup_compensate(s, g, rng_chance(r, 30) ? LATTN_HEAD_VARIANCE : 0);
    if (rng_chance(r, 60)) head->flags |= LATTN_HEAD_LOST;
    if (rng_chance(r, 40)) head->mark = LATTN_PROMPT_END;
    if (head->mark && rng_chance(r, 50)) head->window_divisor = rng_range(r, 2, 6);
  }
  if (rng_chance(r, 70)) return;
  s->config.key_type = (int32_t)rng_range(r, LATTN_I8, LATTN_I4);
  s->config.value_type = (int32_t)rng_range(r, LATTN_F16, LATTN_I4);
  if (setup_value_dim(s) < 16) s->config.value_dim = dims[rng_below(r, 3)];
  if (s->config.key_dim < 16) s->config.key_dim = dims[rng_below(r, 3)];
}

/* Saved bytes are the same everywhere. */
static int32_t hash_write(void *user, const void *data, size_t bytes) {
  uint64_t *hash = (uint64_t *)user;
  *hash = hash_bytes(*hash, data, bytes);
  return 0;
}

static void *page_alloc(void *user, size_t bytes, size_t alignment) {
  void *page = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  (void)user;
  if (page) memset(page, 0xff, bytes);
  return page;
}

static void page_free(void *user, void *page, size_t bytes) {
  (void)user, (void)bytes;
  free(page);
}

/* How a text is fed to a cache. */
enum feed { FEED_WHOLE, FEED_TOKENS, FEED_CUTS, FEED_APPEND, FEED_COUNT };

static const char *const feed_names[FEED_COUNT] = {"one extend", "token by token", "random cuts",
                                                   "append and attend"};

typedef struct text_run {
  const setup *s;
  const token_list *tokens;
  lattn_cache *cache;
  float *out, *lse, *bound, *estimate;
  lattn_exec exec;
  int32_t top; /* top_values of the calls */
} text_run;

/* Feeds n tokens from `first` on, by extend, or by append and attend. */
static void feed_some(text_run *t, int64_t first, int64_t n, int apart) {
  int64_t heads = setup_heads(t->s), dim = setup_value_dim(t->s);
  lattn_tensor q = tokens_q(t->tokens, t->s, first, n), k = tokens_k(t->tokens, t->s, first, n);
  lattn_tensor v = tokens_v(t->tokens, t->s, first, n);
  lattn_tensor out = tensor_of(t->out + first * heads * dim, LATTN_F32, n, heads, dim);
  float *lse = t->lse + first * heads;
  const lattn_exec *exec = t->exec.size ? &t->exec : NULL;
  lattn_call lost = {.size = sizeof lost};
  const lattn_call *call = t->top || setup_sums(t->s) ? &lost : NULL;
  if (!t->top) lost.lost_bound = t->bound + first * heads;
  if (!t->top) lost.lost_estimate = t->estimate + first * heads;
  lost.top_values = t->top;
  if (t->top) lost.dropped = t->bound + first * heads;
  if (apart) {
    CHECK_STATUS(lattn_cache_append(t->cache, k, v, exec), LATTN_OK);
    CHECK_STATUS(lattn_cache_attend(t->cache, call, q, out, lse, exec), LATTN_OK);
  } else {
    CHECK_STATUS(lattn_cache_extend(t->cache, call, q, k, v, out, lse, exec), LATTN_OK);
  }
}

static int64_t cut_length(const text_run *t, enum feed how, test_rng *r) {
  static const int64_t typical[] = {1, 2, 15, 16, 17, 60, 128, 129, 250};
  int64_t n = typical[rng_below(r, 9)], most = setup_max_append(t->s);
  if (how == FEED_WHOLE) return t->tokens->n;
  if (how == FEED_TOKENS) return 1;
  return how == FEED_APPEND && n > most ? most : n;
}

/* Hash of out and lse of the whole text, fed in that way to a new cache of a new pool. */
static uint64_t text_hash(const setup *s, const token_list *tokens, enum feed how, int allocator,
                          int32_t n_threads) {
  int64_t heads = setup_heads(s), n = tokens->n, outputs = n * heads * setup_value_dim(s);
  int64_t mark = setup_waits(s) ? n / 2 : -1;
  lattn_pool_config pool_config = {sizeof pool_config, 0, NULL, NULL, NULL};
  test_rng r = rng_seed((uint64_t)how + 77);
  lattn_pool *pool = NULL;
  text_run t;
  size_t bytes;
  void *arena;
  uint64_t hash;
  memset(&t, 0, sizeof t);
  if (allocator) pool_config.alloc = page_alloc;
  if (allocator) pool_config.free = page_free;
  t.s = s;
  t.tokens = tokens;
  t.out = (float *)ref_memory(outputs, sizeof(float));
  t.lse = (float *)ref_memory(n * heads, sizeof(float));
  t.bound = (float *)ref_memory(n * heads, sizeof(float));
  t.estimate = (float *)ref_memory(n * heads, sizeof(float));
  bytes = lattn_pool_bytes(&pool_config, &s->config, 1);
  arena = ref_memory((int64_t)bytes, 1);
  memset(arena, 0xff, bytes);
  CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, &pool_config), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&t.cache, pool, &s->config), LATTN_OK);
  if (n_threads) {
    t.exec.size = sizeof t.exec;
    t.exec.n_threads = n_threads;
    t.exec.parallel_for = n_threads > 2 ? test_parallel_threads : test_parallel_scrambled;
    t.exec.scratch_bytes = lattn_cache_scratch(&s->config, n, n_threads);
    t.exec.scratch = ref_memory((int64_t)t.exec.scratch_bytes, 1);
  }
  for (int64_t first = 0; first < n && t.cache;) {
    int64_t count = cut_length(&t, how, &r);
    if (count > n - first) count = n - first;
    if (first < mark && count > mark - first) count = mark - first;
    if (first == mark) CHECK_STATUS(lattn_cache_mark(t.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
    feed_some(&t, first, count, how == FEED_APPEND);
    first += count;
  }
  hash = hash_f32(HASH_SEED, t.out, outputs);
  hash = hash_f32(hash, t.lse, n * heads);
  if (setup_sums(s)) {
    hash = hash_f32(hash, t.bound, n * heads);
    hash = hash_f32(hash, t.estimate, n * heads);
  }
  if (t.cache) CHECK_STATUS(lattn_cache_release(t.cache), LATTN_OK);
  free(t.exec.scratch);
  free(arena);
  free(t.out);
  free(t.lse);
  free(t.bound);
  free(t.estimate);
  return hash;
}

enum cache_kind { CACHE_PLAIN, CACHE_SIGMOID, CACHE_COMPENSATED };

static void golden_cache_case(uint64_t i, enum cache_kind kind, uint64_t *kept, uint64_t want) {
  static const char *const kinds[] = {"", ", sigmoid", ", compensated"};
  test_rng r = rng_seed(i + 5000);
  setup s;
  token_list tokens;
  int64_t n;
  uint64_t hash;
  check_case("golden cache %" PRIu64 "%s", i, kinds[kind]);
  n = cache_setup(&s, &r);
  if (kind == CACHE_SIGMOID) setup_sigmoid(&s, -2.25f);
  if (kind == CACHE_COMPENSATED) compensate(&s, &r);
  tokens = tokens_new(&s, n);
  tokens_make(&tokens, n, &r);
  tokens.n = n;
  hash = *kept = text_hash(&s, &tokens, FEED_WHOLE, 0, 1);
  check_golden(hash, want);
  if (kind == CACHE_COMPENSATED ? i % 8 == 0 : thorough(i)) { /* compensated.c cuts others up */
    if (text_hash(&s, &tokens, FEED_WHOLE, 1, 7) != hash) FAIL("allocator, 7 threads: other bits");
    if (text_hash(&s, &tokens, FEED_WHOLE, 0, 2) != hash) FAIL("2 threads: other bits");
    for (int how = FEED_TOKENS; how < FEED_COUNT; how++) {
      int threads = (i + (uint64_t)how) & 1 && n < 1000 ? 0 : 3; /* 0: no exec */
      if (text_hash(&s, &tokens, (enum feed)how, how & 1, threads) != hash)
        FAIL("%s, %d threads: other bits", feed_names[how], threads);
    }
  }
  tokens_free(&tokens);
}

/* ---- one golden case each of the newest policies ---- */

enum { POLICY_SNAP, POLICY_HEAVY, POLICY_SHARED, POLICY_BUNDLES, POLICY_TOP, POLICY_TEXT = 300 };

static void policy_setup(setup *s, uint64_t i) {
  lattn_head snap = {.policy = LATTN_HEAD_SNAP, .window = 8, .budget = 60, .kernel = 5};
  setup_init(s, 4, 2, 20, 16, POLICY_TEXT);
  setup_rotate(s, 0, 0, 20);
  s->config.value_type = LATTN_BF16;
  if (i == POLICY_SNAP) s->config.key_type = LATTN_I8;
  if (i == POLICY_SHARED) snap.flags = LATTN_SNAP_SHARED | LATTN_SNAP_AVERAGE;
  for (int g = 0; g < 2 && i <= POLICY_SHARED; g++) s->heads[g] = snap;
  if (i == POLICY_HEAVY) {
    s->heads[0].policy = LATTN_HEAD_HEAVY;
    s->heads[0].kernel = 0;
  }
  if (i == POLICY_BUNDLES) {
    s->config.n_value_heads = 4;
    setup_stream(s, 1, 4, 50, 0, LATTN_POSITIONS_DEFAULT);
  }
}

/* The text in calls of `step` tokens, with a mark at two thirds: rows, and the bytes saved. */
static uint64_t policy_hash(const setup *s, const token_list *tokens, int32_t top, int64_t step,
                            int32_t n_threads) {
  int64_t heads = setup_heads(s), n = tokens->n, outputs = n * heads * setup_value_dim(s);
  size_t bytes = lattn_pool_bytes(NULL, &s->config, 1);
  float *memory = (float *)ref_memory(outputs + 2 * n * heads, sizeof *memory);
  void *arena = ref_memory((int64_t)bytes, 1);
  uint64_t hash = HASH_SEED;
  lattn_pool *pool = NULL;
  text_run t = {s,    tokens, NULL, memory, memory + outputs, memory + outputs + n * heads,
                NULL, {0},    top};
  CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&t.cache, pool, &s->config), LATTN_OK);
  t.exec.size = sizeof t.exec;
  t.exec.n_threads = n_threads;
  t.exec.parallel_for = test_parallel_scrambled;
  t.exec.scratch_bytes = lattn_cache_scratch(&s->config, n, n_threads);
  t.exec.scratch = ref_memory((int64_t)t.exec.scratch_bytes, 1);
  for (int64_t first = 0, end; first < n && t.cache; first = end) {
    end = first + step < n ? first + step : n;
    if (first < n / 3 * 2 && end > n / 3 * 2) end = n / 3 * 2;
    if (first == n / 3 * 2)
      CHECK_STATUS(lattn_cache_mark(t.cache, LATTN_PROMPT_END, &t.exec), LATTN_OK);
    feed_some(&t, first, end - first, 0);
  }
  hash = hash_f32(hash, memory, outputs + n * heads);
  if (top) hash = hash_f32(hash, t.bound, n * heads);
  if (t.cache) CHECK_STATUS(lattn_cache_save(t.cache, hash_write, &hash, NULL), LATTN_OK);
  free(t.exec.scratch);
  free(arena);
  free(memory);
  return hash;
}

static void golden_policy_case(uint64_t i) {
  static const char *const names[] = {"SNAP", "HEAVY", "shared SNAP", "bundles", "top values"};
  static const int64_t steps[] = {1, 77};
  test_rng r = rng_seed(i + 7000);
  int32_t top = i == POLICY_TOP ? 20 : 0;
  setup s;
  token_list tokens;
  uint64_t hash;
  check_case("golden policy: %s", names[i]);
  policy_setup(&s, i);
  tokens = tokens_new(&s, POLICY_TEXT);
  tokens_make(&tokens, POLICY_TEXT, &r);
  tokens.n = POLICY_TEXT;
  hash = hashes_policy[i] = policy_hash(&s, &tokens, top, POLICY_TEXT, 1);
  check_golden(hash, golden_policy[i]);
  for (int k = 0; k < 2; k++)
    if (policy_hash(&s, &tokens, top, steps[k], 3) != hash)
      FAIL("calls of %d tokens, 3 threads: other bits", (int)steps[k]);
  tokens_free(&tokens);
}

/* ---- golden cases of states ---- */

enum state_feed { STATE_WHOLE, STATE_CUTS, STATE_DRAFTED, STATE_FEEDS };

static const char *const state_feed_names[STATE_FEEDS] = {"one call", "random cuts", "drafts"};

/* Hash of out and of the saved state, of all tokens fed in that way. */
static uint64_t state_hash(const state_case *c, enum state_feed how, int exec_kind) {
  int64_t row = c->config.n_heads * state_value_dim(c);
  float *out = (float *)ref_memory(c->n * row, sizeof *out);
  state_box b = state_open(c);
  test_rng r = rng_seed((uint64_t)how + 99);
  uint64_t hash = HASH_SEED;
  for (int64_t first = 0, n; first < c->n; first += n) {
    state_part part;
    state_exec x;
    const lattn_exec *exec;
    lattn_tensor to;
    n = rng_range(&r, 1, 6);
    if (how == STATE_WHOLE) n = c->n;
    if (how == STATE_DRAFTED && n > c->config.max_drafts) n = c->config.max_drafts;
    if (n > c->n - first) n = c->n - first;
    exec = state_exec_open(&x, &c->config, n, exec_kind);
    state_part_of(&part, c, first, n);
    to = tensor_of(out + first * row, LATTN_F32, n, c->config.n_heads, state_value_dim(c));
    if (how == STATE_DRAFTED) {
      int64_t keep = rng_range(&r, 1, n);
      CHECK_STATUS(lattn_state_draft(b.state, &part.call, part.q, part.k, part.v, to, exec),
                   LATTN_OK);
      CHECK_STATUS(lattn_state_commit(b.state, (int32_t)keep), LATTN_OK);
      n = keep;
    } else {
      CHECK_STATUS(lattn_state_advance(b.state, &part.call, part.q, part.k, part.v, to, exec),
                   LATTN_OK);
    }
    state_exec_close(&x);
  }
  hash = hash_f32(hash, out, c->n * row);
  CHECK_STATUS(lattn_state_save(b.state, hash_write, &hash, NULL), LATTN_OK);
  box_close(&b);
  free(out);
  return hash;
}

static void golden_state_case(uint64_t i) {
  state_case c;
  uint64_t hash;
  state_case_make(&c, i + 50000, -1, 1 + (int64_t)(i * 5 % 37));
  check_case("golden state, %s", c.name);
  hash = hashes_state[i] = state_hash(&c, STATE_WHOLE, STATE_ONE);
  check_golden(hash, golden_state[i]);
  for (int how = 0; how < STATE_FEEDS && thorough(i); how++) {
    int exec = (int)(i + (uint64_t)how) % STATE_EXECS;
    if (exec == STATE_NONE && !state_small(&c.config)) exec = STATE_TWO;
    if (how == STATE_DRAFTED && !c.config.max_drafts) continue;
    if (state_hash(&c, (enum state_feed)how, exec) != hash)
      FAIL("%s, exec %d: other bits", state_feed_names[how], exec);
  }
  state_case_free(&c);
}

/* Bidirectional flow: for any number of threads. */
static uint64_t flow_hash(const state_case *c, const lattn_flow *o, int32_t n_threads) {
  int64_t H = c->q.n_heads, n = c->q.n_tokens, dv = c->v.dim;
  float *out = (float *)ref_memory(n * H * dv, sizeof *out);
  lattn_exec exec;
  uint64_t hash;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = n_threads;
  exec.parallel_for = n_threads > 2 ? test_parallel_threads : test_parallel_scrambled;
  exec.scratch_bytes = lattn_flow_scratch(c->q.dim, dv, o->flags, n_threads);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  CHECK_STATUS(
      lattn_flow_attention(o, c->q, c->k, c->v, tensor_of(out, LATTN_F32, n, H, dv), &exec),
      LATTN_OK);
  hash = hash_f32(HASH_SEED, out, n * H * dv);
  free(exec.scratch);
  free(out);
  return hash;
}

static void golden_flow_case(uint64_t i) {
  state_case c;
  lattn_flow o;
  uint64_t hash;
  memset(&c, 0, sizeof c);
  memset(&o, 0, sizeof o);
  c.rng = rng_seed(i + 60000);
  check_case("golden flow %" PRIu64, i);
  o.size = sizeof o;
  o.flags = i % 3 == 1;
  o.feature = i % 4 == 2 ? LATTN_FEATURE_RELU : 0;
  if (i % 5 == 3) o.clamp_low = -INFINITY, o.clamp_high = INFINITY;
  c.n = 1 + (int64_t)(i * 11 % 140);
  c.q = state_tensor(&c, 1 + (int64_t)(i % 2) * 3, 1 + (int64_t)(i * 7 % 40), fill_normal, 1);
  c.n = 1 + (int64_t)(i * 17 % 150);
  c.k = state_tensor(&c, 1, c.q.dim, fill_normal, 1);
  c.v = state_tensor(&c, 1, 1 + (int64_t)(i * 13 % 50), fill_normal, 1);
  hash = hashes_flow[i] = flow_hash(&c, &o, 1);
  check_golden(hash, golden_flow[i]);
  for (int32_t threads = 2; threads < 5 && thorough(i); threads++)
    if (flow_hash(&c, &o, threads) != hash) FAIL("%d threads: other bits", (int)threads);
  state_case_free(&c);
}

/* ---- what equals what ---- */

/* A text for s; the same for every s of equal shape. */
static token_list text_for(const setup *s, int64_t n) {
  test_rng r = rng_seed(42);
  token_list t = tokens_new(s, n);
  tokens_make(&t, n, &r);
  t.n = n;
  return t;
}

/* A streaming head whose window is longer than the text is a full head. */
static void window_beyond_text(void) {
  int64_t step = test_is_quick() ? 99 : 33;
  for (int32_t positions = 0; positions < 3; positions++)
    for (int64_t sinks = 0; sinks < 200; sinks += step)
      for (int alibi = 0; alibi < 2; alibi++) {
        setup full, stream;
        token_list t;
        check_case("window longer than the text: positions %d, sinks %d%s", (int)positions,
                   (int)sinks, alibi ? ", ALiBi" : "");
        setup_init(&full, 4, 2, 16, 8, 350);
        setup_init(&stream, 4, 2, 16, 8, 350);
        if (alibi) setup_alibi(&full);
        if (alibi) setup_alibi(&stream);
        if (!alibi) setup_rotate(&full, 0, 0, 16);
        if (!alibi) setup_rotate(&stream, 0, 0, 16);
        for (int g = 0; g < 2; g++) setup_stream(&stream, g, sinks, 350, 0, positions);
        t = text_for(&full, 350);
        CHECK(text_hash(&full, &t, FEED_CUTS, 0, 2) == text_hash(&stream, &t, FEED_CUTS, 0, 2));
        tokens_free(&t);
      }
}

/* The text as lattn_attention sees it: q and k rotated by lattn_rotate, k and v rounded to their
   storage types. Sinks and window 0 = full heads. */
static uint64_t stateless_hash(const setup *s, const token_list *t, int64_t sinks, int64_t window) {
  int64_t n = t->n, heads = setup_heads(s), outputs = n * heads * setup_value_dim(s);
  float *q = (float *)ref_memory(n * t->q_row, 4), *k = (float *)ref_memory(n * t->k_row, 4);
  float *v = (float *)ref_memory(n * t->v_row, 4), *out = (float *)ref_memory(outputs, 4);
  float *lse = (float *)ref_memory(n * heads, 4);
  int32_t dk = s->config.key_dim, kv = s->config.n_kv_heads;
  lattn_tensor Q = tensor_of(q, LATTN_F32, n, heads, dk), K = tensor_of(k, LATTN_F32, n, kv, dk);
  lattn_tensor V = tensor_of(v, LATTN_F32, n, kv, setup_value_dim(s));
  lattn_attn a;
  lattn_exec exec;
  uint64_t hash;
  memcpy(q, t->q, (size_t)(n * t->q_row) * 4);
  memcpy(k, t->k, (size_t)(n * t->k_row) * 4);
  memcpy(v, t->v, (size_t)(n * t->v_row) * 4);
  if (s->config.rotary) CHECK_STATUS(lattn_rotate(s->config.rotary, Q, 0, NULL), LATTN_OK);
  if (s->config.rotary) CHECK_STATUS(lattn_rotate(s->config.rotary, K, 0, NULL), LATTN_OK);
  K.type = s->config.key_type;
  V.type = s->config.value_type;
  for (int64_t i = 0; i < n * t->k_row; i++) element_set(k, K.type, i, k[i]);
  for (int64_t i = 0; i < n * t->v_row; i++) element_set(v, V.type, i, v[i]);
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.mask = LATTN_CAUSAL;
  a.sinks = sinks;
  a.window = window;
  a.alibi_slopes = s->config.alibi_slopes;
  a.weighting = s->config.weighting;
  a.sigmoid_bias = s->config.sigmoid_bias;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_attention_scratch(&a, Q, K, V, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  CHECK_STATUS(lattn_attention(&a, Q, K, V, tensor_of(out, LATTN_F32, n, heads, V.dim), lse, &exec),
               LATTN_OK);
  hash = hash_f32(HASH_SEED, out, outputs);
  hash = hash_f32(hash, lse, n * heads);
  free(exec.scratch);
  free(q);
  free(k);
  free(v);
  free(out);
  free(lse);
  return hash;
}

static void cache_is_attention(void) {
  static const int64_t policies[][2] = {{0, 0}, {0, 1}, {4, 60}, {0, 130}, {20, 17}, {130, 200}};
  for (int i = 0; i < 6; i++)
    for (int32_t type = LATTN_F32; type <= LATTN_BF16; type++)
      for (int rotates = 0; rotates < 4; rotates++) {
        int64_t sinks = policies[i][0], window = policies[i][1];
        setup s;
        token_list t;
        if (test_is_quick() && (i + type + rotates) % 5) continue;
        check_case("%s of S %d, W %d, %s%s = lattn_attention",
                   window ? "absolute streaming heads" : "full heads", (int)sinks, (int)window,
                   type_name(type),
                   rotates == 3 ? ", sigmoid"
                   : rotates    ? ", rotated"
                                : ", ALiBi");
        setup_init(&s, 4, 2, 20, 12, 450);
        s.config.key_type = type;
        s.config.value_type = type == LATTN_F32 ? LATTN_F16 : type;
        if (rotates) setup_rotate(&s, rotates & 1, 2, 16);
        else setup_alibi(&s);
        if (rotates == 3) setup_sigmoid(&s, -1.5f);
        for (int g = 0; g < 2 && window; g++)
          setup_stream(&s, g, sinks, window, 3, LATTN_POSITIONS_ABSOLUTE);
        t = text_for(&s, 450);
        CHECK(text_hash(&s, &t, FEED_CUTS, 0, 2) == stateless_hash(&s, &t, sinks, window));
        tokens_free(&t);
      }
}

/* A cache of several heads gives each the bits of a cache of its own. */
static void cache_heads_alone(void) {
  setup whole, one;
  token_list t, alone;
  int64_t n = 300;
  for (int g = 0; g < 3; g++) {
    float *out = (float *)ref_memory(n * 6 * 8, 4), *lse = (float *)ref_memory(n * 6, 4);
    uint64_t hash = HASH_SEED;
    check_case("KV head %d of a cache alone", g);
    setup_init(&whole, 6, 3, 16, 8, n);
    setup_rotate(&whole, 1, 0, 16);
    setup_stream(&whole, 1, 4, 50, 0, LATTN_POSITIONS_IN_CACHE);
    setup_stream(&whole, 2, 20, 130, 9, LATTN_POSITIONS_ABSOLUTE);
    setup_init(&one, 2, 1, 16, 8, n);
    setup_rotate(&one, 1, 0, 16);
    one.heads[0] = whole.heads[g];
    t = text_for(&whole, n);
    alone = tokens_new(&one, n);
    alone.n = n;
    for (int64_t i = 0; i < n; i++) {
      memcpy(alone.q + i * 32, t.q + i * 96 + g * 32, 32 * 4);
      memcpy(alone.k + i * 16, t.k + i * 48 + g * 16, 16 * 4);
      memcpy(alone.v + i * 8, t.v + i * 24 + g * 8, 8 * 4);
    }
    {
      size_t bytes = lattn_pool_bytes(NULL, &whole.config, 1);
      void *arena = ref_memory((int64_t)bytes, 1);
      lattn_pool *pool = NULL;
      text_run run;
      memset(&run, 0, sizeof run);
      run.s = &whole;
      run.tokens = &t;
      run.out = out;
      run.lse = lse;
      CHECK_STATUS(lattn_pool_init(&pool, arena, bytes, NULL), LATTN_OK);
      CHECK_STATUS(lattn_cache_init(&run.cache, pool, &whole.config), LATTN_OK);
      if (run.cache) feed_some(&run, 0, n, 0);
      free(arena);
    }
    for (int64_t i = 0; i < n * 2; i++) /* rows of this KV head's two query heads */
      hash = hash_f32(hash, out + ((i / 2) * 6 + g * 2 + i % 2) * 8, 8);
    for (int64_t i = 0; i < n * 2; i++) hash = hash_f32(hash, lse + (i / 2) * 6 + g * 2 + i % 2, 1);
    CHECK(text_hash(&one, &alone, FEED_CUTS, 0, 2) == hash);
    free(out);
    free(lse);
    tokens_free(&t);
    tokens_free(&alone);
  }
}

/* ---- the profiler ---- */

static void golden_profile_case(uint64_t i) {
  static const int64_t cuts[] = {1, 40, 100};
  check_case("golden profile %d", (int)i);
  hashes_profile[i] = profile_case_hash(i, 0, 1);
  check_golden(hashes_profile[i], golden_profile[i]);
  check_case("golden profile %d, cut and on threads", (int)i);
  if (!thorough(i)) return;
  CHECK(profile_case_hash(i, i == 3 ? 700 : cuts[i % 3], 3) == hashes_profile[i]);
  if (i != 3) CHECK(profile_case_hash(i, 60, 0) == hashes_profile[i]);
}

/* ---- golden.h ---- */

static void print_hashes(const char *name, const uint64_t *hashes, int n) {
  printf("static const uint64_t %s[%d] = {", name, n);
  for (int i = 0; i < n; i++)
    printf("%s0x%016" PRIx64 "%s", i % 4 ? " " : "\n    ", hashes[i], i + 1 < n ? "," : "};\n");
}

static int print_golden(void) {
  printf(
      "/* golden.h - hashes of the golden cases, made by `contract --print`; the same on every "
      "machine.\n * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */\n");
  print_hashes("golden_attend", hashes_attend, N_ATTEND);
  print_hashes("golden_cache", hashes_cache, N_CACHE);
  print_hashes("golden_sigmoid", hashes_sigmoid, N_SIGMOID);
  print_hashes("golden_sigmoid_cache", hashes_sigmoid_cache, N_SIGMOID_CACHE);
  print_hashes("golden_compensated", hashes_compensated, N_COMPENSATED);
  print_hashes("golden_policy", hashes_policy, N_POLICY);
  print_hashes("golden_state", hashes_state, N_STATE);
  print_hashes("golden_flow", hashes_flow, N_FLOW);
  print_hashes("golden_profile", hashes_profile, N_PROFILE);
  return 0;
}

int main(int argc, char **argv) {
  case_pool_make();
  test_global.printed = argc > 1 ? TEST_PRINTED_MAX : 0; /* --print: only the hashes */
  for (uint64_t i = 0; i < N_ATTEND; i++)
    golden_attention(i, 0, &hashes_attend[i], golden_attend[i]);
  for (uint64_t i = 0; i < N_CACHE; i++)
    golden_cache_case(i, CACHE_PLAIN, &hashes_cache[i], golden_cache[i]);
  for (uint64_t i = 0; i < N_SIGMOID; i++)
    golden_attention(i, 1, &hashes_sigmoid[i], golden_sigmoid[i]);
  for (uint64_t i = 0; i < N_SIGMOID_CACHE; i++)
    golden_cache_case(i, CACHE_SIGMOID, &hashes_sigmoid_cache[i], golden_sigmoid_cache[i]);
  for (uint64_t i = 0; i < N_COMPENSATED; i += test_is_quick() ? 4 : 1)
    golden_cache_case(i + 900, CACHE_COMPENSATED, &hashes_compensated[i], golden_compensated[i]);
  for (uint64_t i = 0; i < N_POLICY; i++) golden_policy_case(i);
  for (uint64_t i = 0; i < N_STATE; i++) golden_state_case(i);
  for (uint64_t i = 0; i < N_FLOW; i++) golden_flow_case(i);
  for (uint64_t i = 0; i < N_PROFILE; i += test_is_quick() ? 2 : 1) golden_profile_case(i);
  if (argc > 1 && strcmp(argv[1], "--print") == 0) return print_golden();
  window_beyond_text();
  cache_is_attention();
  cache_heads_alone();
  return test_summary();
}
