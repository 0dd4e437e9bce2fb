/* cache.c - pools and caches: a random model-based test (a list of tokens and the float64
 * reference), StreamingLLM equivalence, the tests of heads.md 1.8 by name, memory, cancelling,
 * moving an arena, allocators that fail. Every array and arena of the random test lies between
 * guard pages.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

/* Whether a fused multiply-add rounds once here (else, by choice, twice). */
#if defined(__FMA__) || defined(__aarch64__) || (defined(LONGATTN_STRICT) && LONGATTN_STRICT)
enum { HAS_FMA = 1 };
#else
enum { HAS_FMA = 0 };
#endif

/* ---- a cache under test ---- */

enum pages_from { FROM_ARENA, FROM_ALLOCATOR };

/* A caller's allocator: counts what is out, and fails at the call of that number (0 = never). */
typedef struct page_source {
  int64_t n_calls, fail_at, n_out, bytes_out;
} page_source;

/* Must lie still while open: the pool keeps a pointer to its page source. */
typedef struct rig {
  setup *s;
  token_list tokens; /* the model: the cache stands for exactly these */
  test_guard arena;
  page_source source;
  lattn_pool *pool;
  lattn_cache *cache;
  int64_t heads, value_dim;
  float *out, *lse;                  /* of every token, once it has been attended */
  unsigned char *done;               /* [capacity] */
  int64_t held_from[CACHE_KV_HEADS]; /* first token that the contract says a streaming head holds */
  int64_t appended;            /* tokens that the last append left beyond the trimmed window */
  lattn_tensor key_bias, gate; /* data NULL = none; indexed by position, so any cut sees the same */
  int scored;                  /* a score callback is on */
  int64_t mark;                /* tokens when the prompt ended; -1: it has not */
} rig;

static void *source_alloc(void *user, size_t bytes, size_t alignment) {
  page_source *source = (page_source *)user;
  CHECK(alignment == 64 && bytes > 0);
  if (++source->n_calls == source->fail_at) return NULL;
  source->n_out++;
  source->bytes_out += (int64_t)bytes;
  void *page = aligned_alloc(alignment, (bytes + 63) / 64 * 64);
  memset(page, 0xff, bytes); /* NaN in every type */
  return page;
}

static void source_free(void *user, void *page, size_t bytes) {
  page_source *source = (page_source *)user;
  source->n_out--;
  source->bytes_out -= (int64_t)bytes;
  memset(page, 0xff, bytes);
  free(page);
}

/* A pool for n caches of s, of exactly the size that the library names, filled with NaN. */
static lattn_pool *pool_new(test_guard *arena, const setup *s, int64_t n, page_source *source) {
  lattn_pool *pool = NULL;
  lattn_pool_config config;
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  if (source) {
    config.alloc = source_alloc;
    config.free = source_free;
    config.user = source;
  }
  size_t bytes = lattn_pool_bytes(&config, &s->config, n);
  CHECK(bytes > 0);
  *arena = guard_alloc(bytes, 1);
  memset(arena->data, 0xff, bytes);
  if (!CHECK_STATUS(lattn_pool_init(&pool, arena->data, bytes, &config), LATTN_OK)) exit(1);
  return pool;
}

static lattn_cache *cache_new(lattn_pool *pool, const setup *s) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, pool, &s->config), LATTN_OK)) {
    printf("    at %s\n", s->fault.argument ? s->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

static void rig_open(rig *r, setup *s, int64_t capacity, enum pages_from from) {
  memset(r, 0, sizeof *r);
  r->s = s;
  r->mark = -1;
  r->tokens = tokens_new(s, capacity);
  r->heads = setup_heads(s);
  r->value_dim = setup_value_dim(s);
  r->out = (float *)ref_memory(capacity * r->heads * r->value_dim, sizeof(float));
  r->lse = (float *)ref_memory(capacity * r->heads, sizeof(float));
  r->done = (unsigned char *)ref_memory(capacity, 1);
  r->pool = pool_new(&r->arena, s, 1, from == FROM_ALLOCATOR ? &r->source : NULL);
  r->cache = cache_new(r->pool, s);
}

/* Nothing may be left in the pool, nor written beside its arena. */
static void rig_close(rig *r) {
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  lattn_pool_stats stats = pool_stats(r->pool);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.page_bytes, 0);
  CHECK_I64(r->source.n_out, 0);
  CHECK_I64(r->source.bytes_out, 0);
  CHECK(guard_free(&r->arena));
  tokens_free(&r->tokens);
  free(r->out);
  free(r->lse);
  free(r->done);
}

/* ---- one call, its arrays between guard pages ---- */

typedef struct call_arrays {
  test_guard q, k, v, out, lse, scratch;
  lattn_exec exec;
  lattn_fault fault;
  int64_t first; /* position of row 0: what the score callback is told */
} call_arrays;

static test_guard guard_copy(const float *from, int64_t n, int at_end) {
  test_guard g = guard_alloc((size_t)n * sizeof *from, at_end);
  if (n) memcpy(g.data, from, (size_t)n * sizeof *from);
  guard_read_only(&g, 1);
  return g;
}

/* Arrays of tokens first ... first + n - 1; threads and scratch by chance (rng NULL: one,
   exact). */
static void call_open(call_arrays *c, const rig *r, int64_t first, int64_t n, test_rng *rng) {
  static const int32_t threads[4] = {1, 1, 2, 7};
  const token_list *t = &r->tokens;
  int at_end = rng ? rng_chance(rng, 50) : 1;
  memset(c, 0, sizeof *c);
  c->first = first;
  c->q = guard_copy(t->q + first * t->q_row, n * t->q_row, at_end);
  c->k = guard_copy(t->k + first * t->k_row, n * t->k_row, at_end);
  c->v = guard_copy(t->v + first * t->v_row, n * t->v_row, at_end);
  c->out = guard_alloc((size_t)(n * r->heads * r->value_dim) * sizeof(float), at_end);
  c->lse = guard_alloc((size_t)(n * r->heads) * sizeof(float), at_end);
  c->exec.size = sizeof c->exec;
  c->exec.n_threads = rng ? threads[rng_below(rng, 4)] : 1;
  if (c->exec.n_threads > 1)
    c->exec.parallel_for = rng_chance(rng, 20) ? test_parallel_threads : test_parallel_scrambled;
  if (rng && rng_chance(rng, 15)) c->scratch = guard_alloc(0, 1);
  else c->scratch = guard_alloc(lattn_cache_scratch(&r->s->config, n, c->exec.n_threads), at_end);
  c->exec.scratch_bytes = c->scratch.bytes;
  if (c->scratch.bytes) c->exec.scratch = c->scratch.data;
  c->exec.fault = &c->fault;
}

static void call_close(call_arrays *c) {
  CHECK(guard_free(&c->q));
  CHECK(guard_free(&c->k));
  CHECK(guard_free(&c->v));
  CHECK(guard_free(&c->out));
  CHECK(guard_free(&c->lse));
  CHECK(guard_free(&c->scratch));
}

/* The score callback: adds a multiple of a quarter. What it is told is checked by spoiling the
   scores (it may run on any thread, where no check can be noted). */
static double tilt(int64_t query, int32_t head, int64_t key) {
  return 0.25 * (double)((key * 7 + query * 3 + head) % 5);
}

static void score_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t first_key, float scores[16]) {
  const int64_t *first = (const int64_t *)user;
  int right = sequence == 0 && query == *first + row && first_key % 16 == 0;
  for (int t = 0; t < 16; t++)
    scores[t] = right ? scores[t] + (float)tilt(query, head, first_key + t) : NAN;
}

static double ref_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t key, double s) {
  (void)user, (void)sequence, (void)row;
  return s + tilt(query, head, key);
}

typedef struct call_options {
  lattn_call call;
  lattn_tensor gate;
} call_options;

static const lattn_call *call_of(call_options *o, const rig *r, call_arrays *c, int64_t n) {
  memset(o, 0, sizeof *o);
  o->call.size = sizeof o->call;
  if (r->key_bias.data) o->call.key_bias = &r->key_bias;
  if (r->gate.data) {
    o->gate = r->gate;
    o->gate.data = (const float *)r->gate.data + c->first * r->heads;
    o->gate.n_tokens = n;
    o->call.gate = &o->gate;
  }
  if (r->scored) {
    o->call.score = score_tilt;
    o->call.score_user = &c->first;
  }
  return &o->call;
}

/* Rows of tokens first ... must be what they were when last attended; new ones are noted. */
static void note_rows(rig *r, const call_arrays *c, int64_t first, int64_t n) {
  const float *out = (const float *)(void *)c->out.data, *lse = (const float *)(void *)c->lse.data;
  int64_t row = r->heads * r->value_dim;
  for (int64_t i = 0; i < n; i++) {
    float *o = r->out + (first + i) * row, *l = r->lse + (first + i) * r->heads;
    int same = 1;
    for (int64_t d = 0; d < row && r->done[first + i]; d++)
      same &= same_f32(o[d], out[i * row + d]);
    for (int64_t h = 0; h < r->heads && r->done[first + i]; h++)
      same &= same_f32(l[h], lse[i * r->heads + h]);
    if (!same) FAIL("row %" PRId64 " changed its bits", first + i);
    memcpy(o, out + i * row, (size_t)row * sizeof *o);
    memcpy(l, lse + i * r->heads, (size_t)r->heads * sizeof *l);
    r->done[first + i] = 1;
  }
}

static lattn_tensor view_out(const rig *r, const call_arrays *c, int64_t n) {
  return tensor_of(c->out.data, LATTN_F32, n, r->heads, r->value_dim);
}

/* Views of the arrays instead of the list's. */
static lattn_tensor view_q(const rig *r, const call_arrays *c, int64_t n) {
  lattn_tensor t = tokens_q(&r->tokens, r->s, 0, n);
  t.data = c->q.data;
  return t;
}
static lattn_tensor view_k(const rig *r, const call_arrays *c, int64_t n) {
  lattn_tensor t = tokens_k(&r->tokens, r->s, 0, n);
  t.data = c->k.data;
  return t;
}
static lattn_tensor view_v(const rig *r, const call_arrays *c, int64_t n) {
  lattn_tensor t = tokens_v(&r->tokens, r->s, 0, n);
  t.data = c->v.data;
  return t;
}

/* ---- the model's operations: each does what the cache did to the list of tokens ---- */

/* After an extend or append of `appended` tokens that the next trim takes away. */
static void model_grow(rig *r, int64_t n_new, int64_t appended) {
  r->tokens.n += n_new;
  r->appended = appended;
  for (int64_t g = 0; g < r->s->config.n_kv_heads; g++) {
    const lattn_head *head = &r->s->heads[g];
    int64_t window = setup_window(head, r->mark);
    int64_t kept = r->tokens.n - appended - (window - 1 + head->slack);
    if (setup_streams(head, r->mark) && kept > r->held_from[g]) r->held_from[g] = kept;
  }
}

static void op_extend(rig *r, int64_t n, test_rng *rng) {
  call_arrays c;
  call_options o;
  int64_t first = r->tokens.n;
  if (n > r->tokens.capacity - first) n = r->tokens.capacity - first;
  tokens_make(&r->tokens, n, rng);
  memset(r->done + first, 0, (size_t)n);
  call_open(&c, r, first, n, rng);
  const lattn_call *call = call_of(&o, r, &c, n);
  lattn_status status =
      lattn_cache_extend(r->cache, call, view_q(r, &c, n), view_k(r, &c, n), view_v(r, &c, n),
                         view_out(r, &c, n), (float *)(void *)c.lse.data, &c.exec);
  if (CHECK_STATUS(status, LATTN_OK)) note_rows(r, &c, first, n);
  else printf("    at %s\n", c.fault.argument ? c.fault.argument : "?");
  model_grow(r, n, 0);
  call_close(&c);
}

static void op_append(rig *r, int64_t n, test_rng *rng) {
  call_arrays c;
  int64_t first = r->tokens.n;
  if (n > r->tokens.capacity - first) n = r->tokens.capacity - first;
  tokens_make(&r->tokens, n, rng);
  memset(r->done + first, 0, (size_t)n);
  call_open(&c, r, first, n, rng);
  CHECK_STATUS(lattn_cache_append(r->cache, view_k(r, &c, n), view_v(r, &c, n), &c.exec), LATTN_OK);
  model_grow(r, n, n);
  call_close(&c);
}

/* Whether head g says that it holds all of the tokens from ... to - 1. */
static int holds(const rig *r, int64_t g, int64_t from, int64_t to) {
  lattn_cache_head_stats stats = head_stats(r->cache, g);
  int64_t begin = from > stats.n_sink_tokens ? from : stats.n_sink_tokens;
  return begin >= to || stats.first_token <= begin;
}

/* Attends the newest n rows: evicted exactly when a key that one of them sees is not held. */
static void op_attend(rig *r, int64_t n, test_rng *rng) {
  call_arrays c;
  call_options o;
  int64_t first = r->tokens.n - n;
  int held = 1;
  for (int64_t g = 0; g < r->s->config.n_kv_heads && n; g++)
    held &= !setup_streams(&r->s->heads[g], r->mark) ||
            ((!r->s->heads[g].mark || first >= r->mark) &&
             holds(r, g, first - setup_window(&r->s->heads[g], r->mark) + 1, r->tokens.n));
  call_open(&c, r, first, n, rng);
  const lattn_call *call = call_of(&o, r, &c, n);
  uint64_t before = hash_bytes(HASH_SEED, c.out.data, c.out.bytes);
  lattn_status status = lattn_cache_attend(r->cache, call, view_q(r, &c, n), view_out(r, &c, n),
                                           (float *)(void *)c.lse.data, &c.exec);
  if (CHECK_STATUS(status, held ? LATTN_OK : LATTN_E_EVICTED) && held) note_rows(r, &c, first, n);
  if (!held) CHECK(hash_bytes(HASH_SEED, c.out.data, c.out.bytes) == before);
  call_close(&c);
}

/* Truncates to n: refused exactly when the next token's window is not held (nor, for a window of
   1, the newest token, whose page goes on being filled), or, to before a mark, any token. */
static void op_truncate(rig *r, int64_t n) {
  int held = 1;
  for (int64_t g = 0; g < r->s->config.n_kv_heads && n < r->tokens.n; g++) {
    int64_t window = setup_window(&r->s->heads[g], r->mark),
            from = n - (window > 2 ? window : 2) + 1;
    if (r->s->heads[g].mark && n < r->mark) from = 0;
    held &= holds(r, g, from, n);
  }
  lattn_status status = lattn_cache_truncate(r->cache, n);
  if (!CHECK_STATUS(status, held ? LATTN_OK : LATTN_E_EVICTED) || !held) return;
  r->tokens.n = n;
  for (int64_t g = 0; g < r->s->config.n_kv_heads; g++)
    if (r->held_from[g] > n || (r->s->heads[g].mark && n < r->mark))
      r->held_from[g] = r->s->heads[g].mark && n < r->mark ? 0 : n;
  if (n < r->mark) r->mark = -1;
}

/* The end of the prompt: what was attended before it stays noted. */
static void op_mark(rig *r, test_rng *rng) {
  lattn_exec exec = {.size = sizeof exec, .n_threads = (int32_t)rng_range(rng, 0, 3)};
  int first = r->mark < 0;
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, &exec), LATTN_OK);
  if (first) r->mark = r->tokens.n;
  model_grow(r, 0, 0);
}

static void op_clear(rig *r) {
  CHECK_STATUS(lattn_cache_clear(r->cache), LATTN_OK);
  CHECK_I64(pool_stats(r->pool).n_pages, 0);
  r->tokens.n = 0;
  r->appended = 0;
  r->mark = -1;
  memset(r->held_from, 0, sizeof r->held_from);
}

/* A call that does not fit changes nothing, not one byte of the arena. */
static void op_overfill(rig *r, test_rng *rng) {
  call_arrays c;
  int64_t room = r->s->config.capacity - r->tokens.n, n = room + 1;
  if (n > r->tokens.capacity) return;
  call_open(&c, r, 0, n, rng); /* any tokens */
  uint64_t before = hash_bytes(HASH_SEED, r->arena.data, r->arena.bytes);
  uint64_t out = hash_bytes(HASH_SEED, c.out.data, c.out.bytes);
  int64_t pages = r->source.n_out;
  lattn_status status =
      lattn_cache_extend(r->cache, NULL, view_q(r, &c, n), view_k(r, &c, n), view_v(r, &c, n),
                         view_out(r, &c, n), (float *)(void *)c.lse.data, &c.exec);
  CHECK_STATUS(status, LATTN_E_FULL);
  CHECK(hash_bytes(HASH_SEED, r->arena.data, r->arena.bytes) == before);
  CHECK(hash_bytes(HASH_SEED, c.out.data, c.out.bytes) == out);
  CHECK_I64(r->source.n_out, pages);
  call_close(&c);
}

/* Bytes that a page may take: K and V of 128 tokens, and 512 for what else the library keeps of
   it. */
static int64_t page_limit(const setup *s) {
  return REF_BLOCK * (s->config.key_dim * (int64_t)type_bytes(s->config.key_type) +
                      setup_value_dim(s) * (int64_t)type_bytes(s->config.value_type)) +
         512;
}

static void check_head_stats(const rig *r, int64_t g, const lattn_cache_head_stats *stats) {
  const lattn_head *head = &r->s->heads[g];
  int streams = setup_streams(head, r->mark);
  int64_t n = r->tokens.n, window = setup_window(head, r->mark);
  int64_t kept = window - 1 + head->slack + r->appended;
  CHECK_I64(stats->policy, head->policy);
  CHECK_I64(stats->positions, setup_in_cache(r->s, g) && streams ? LATTN_POSITIONS_IN_CACHE
                                                                 : LATTN_POSITIONS_ABSOLUTE);
  if (!streams) {
    CHECK(stats->first_token <= stats->n_sink_tokens);
    CHECK_I64(stats->n_tokens_held, n);
    CHECK(stats->page_bytes <= (n / REF_BLOCK + 1) * page_limit(r->s));
    return;
  }
  int64_t sinks = stats->n_sink_tokens, first = stats->first_token;
  CHECK_I64(stats->sinks, head->sinks);
  CHECK_I64(stats->window, window);
  CHECK_I64(stats->slack, head->slack);
  CHECK(first >= sinks && first <= n && sinks <= n);
  CHECK(first == 0 || sinks >= (n < head->sinks ? n : head->sinks));
  CHECK_I64(stats->n_tokens_held, sinks + n - first);
  /* No less than promised; no more than that rounded to pages (constant memory). */
  CHECK(first <= r->held_from[g] || first <= sinks);
  CHECK(first >= n - kept - (REF_BLOCK - 1) || first <= sinks);
  CHECK(stats->page_bytes <= (head->sinks / REF_BLOCK + kept / REF_BLOCK + 4) * page_limit(r->s));
}

static void check_stats(const rig *r) {
  lattn_cache_stats stats = cache_stats(r->cache);
  lattn_pool_stats pool = pool_stats(r->pool);
  int64_t full = 0, streaming = 0, token_bytes = 0;
  for (int64_t g = 0; g < r->s->config.n_kv_heads; g++) {
    lattn_cache_head_stats head = head_stats(r->cache, g);
    check_head_stats(r, g, &head);
    if (head.policy == LATTN_HEAD_FULL) full += head.page_bytes;
    else streaming += head.page_bytes;
    token_bytes += head.n_tokens_held;
  }
  token_bytes *= r->s->config.key_dim * (int64_t)type_bytes(r->s->config.key_type) +
                 r->value_dim * (int64_t)type_bytes(r->s->config.value_type);
  CHECK_I64(stats.n_tokens, r->tokens.n);
  CHECK_I64(stats.capacity, r->s->config.capacity ? r->s->config.capacity : INT64_MAX);
  CHECK_I64(stats.n_full_heads + stats.n_streaming_heads, r->s->config.n_kv_heads);
  CHECK_I64(stats.full_bytes, full);
  CHECK_I64(stats.streaming_bytes, streaming);
  CHECK_I64(stats.token_bytes, token_bytes);
  CHECK(stats.token_bytes <= full + streaming);
  CHECK_I64(pool.page_bytes, full + streaming);
  if (r->source.n_calls) CHECK_I64(r->source.bytes_out, pool.page_bytes); /* none is hoarded */
  CHECK_I64(pool.n_caches, 1);
  CHECK(pool.arena_bytes <= (int64_t)r->arena.bytes);
  if (!r->appended)
    CHECK((size_t)(stats.table_bytes + full + streaming) <= lattn_cache_bytes(&r->s->config));
}

/* ---- the random test ---- */

#define PICK(rng, list) ((list)[rng_below(rng, (int64_t)(sizeof(list) / sizeof *(list)))])

/* Rotary dims anywhere in the key, any table that the library makes, or one of the caller's. */
static void random_rotary(setup *s, test_rng *rng) {
  lattn_rotary_scaling scaling;
  int32_t pairs = s->config.key_dim / 2, used = (int32_t)rng_range(rng, 1, pairs);
  float radians[CACHE_DIMS / 2];
  int32_t first = (int32_t)rng_range(rng, 0, s->config.key_dim - 2 * used);
  setup_rotate(s, (int32_t)rng_below(rng, 2), first, 2 * used);
  if (rng_chance(rng, 25)) s->rotary.magnitude = 1.25f;
  if (rng_chance(rng, 20)) {
    for (int f = 0; f < used; f++) radians[f] = rng_uniform(rng) * 3;
    CHECK_STATUS(lattn_rotary_turns_from_f32(s->turns, radians, used), LATTN_OK);
    return;
  }
  memset(&scaling, 0, sizeof scaling);
  scaling.size = sizeof scaling;
  scaling.kind = used > 1 ? (int32_t)rng_below(rng, 5) : LATTN_ROTARY_PLAIN;
  scaling.n_dims = 2 * used;
  scaling.flags = (int32_t)rng_below(rng, 4);
  scaling.factor = 4;
  scaling.original_length = 128;
  CHECK_STATUS(lattn_rotary_turns(s->turns, &scaling), LATTN_OK);
}

/* Compensated heads, heads that tell what they lost, and heads that wait for a mark. */
static void random_policies(setup *s, test_rng *rng) {
  for (int32_t g = 0; g < s->config.n_kv_heads; g++) {
    int kind = (int)rng_below(rng, 5);
    if (!s->heads[g].policy) continue;
    if (kind < 4) setup_compensate(s, g, kind == 1 ? LATTN_HEAD_VARIANCE : 0);
    if (rng_chance(rng, 30)) s->heads[g].flags |= LATTN_HEAD_LOST;
    if (rng_chance(rng, 50)) s->heads[g].mark = LATTN_PROMPT_END;
    if (s->heads[g].mark && rng_chance(rng, 50)) s->heads[g].window_divisor = rng_range(rng, 1, 5);
  }
}

/* Any mix of policies; windows and sinks around the edges of panels and blocks. */
static void random_heads(setup *s, test_rng *rng) {
  static const int64_t sinks[] = {0, 1, 4, 4, 15, 16, 17, 128, 130};
  static const int64_t windows[] = {1, 2, 3, 15, 16, 17, 64, 127, 128, 129, 200};
  static const int64_t slacks[] = {0, 0, 1, 16, 130};
  int has_positions = s->config.rotary || s->config.alibi_slopes, all_stream = rng_chance(rng, 25);
  int full = 0;
  for (int32_t g = 0; g < s->config.n_kv_heads; g++) {
    int32_t positions = (int32_t)rng_below(rng, has_positions ? 3 : 2);
    if (all_stream || rng_chance(rng, 60))
      setup_stream(s, g, PICK(rng, sinks), PICK(rng, windows), PICK(rng, slacks), positions);
  }
  if (rng_chance(rng, 40)) random_policies(s, rng);
  for (int32_t g = 0; g < s->config.n_kv_heads; g++) full |= !setup_streams(&s->heads[g], -1);
  if (!full && rng_chance(rng, 60)) s->config.capacity = 0; /* no limit */
}

static void random_setup(setup *s, test_rng *rng, int64_t capacity, int is_long) {
  static const int32_t key_dims[] = {1, 2, 3, 5, 8, 16, 16, 17, 20, 33, 46};
  static const int32_t value_dims[] = {1, 2, 3, 7, 8, 16, 19, 33};
  static const int64_t appends[] = {1, 3, 16, 60, 200, 0};
  int32_t kv_heads = (int32_t)rng_range(rng, 1, is_long ? 2 : CACHE_KV_HEADS);
  int32_t group = (int32_t)rng_range(rng, 1, is_long ? 2 : 4);
  int32_t key_dim = is_long ? 6 : PICK(rng, key_dims);
  setup_init(s, kv_heads * group, kv_heads, key_dim, is_long ? 5 : PICK(rng, value_dims), capacity);
  if (group == 1 && rng_chance(rng, 50)) s->config.n_heads = 0;
  if (rng_chance(rng, 25)) s->config.value_dim = 0;
  s->config.key_type = (int32_t)rng_below(rng, 4); /* 0 and 1 are both float32 */
  s->config.value_type = (int32_t)rng_below(rng, 4);
  s->config.max_append = PICK(rng, appends);
  if (key_dim >= 2 && rng_chance(rng, 55)) random_rotary(s, rng);
  if (rng_chance(rng, 25)) setup_alibi(s);
  if (rng_chance(rng, 25)) setup_sinks(s);
  if (rng_chance(rng, 20)) s->config.softcap = 3;
  if (rng_chance(rng, 20)) s->config.scale = -0.5f;
  random_heads(s, rng);
}

/* Key bias and gates by position, a score callback: what a call brings. */
static void random_options(rig *r, test_rng *rng) {
  int64_t n = r->tokens.capacity, bias_heads = rng_chance(rng, 50) ? 1 : r->heads;
  float *bias = (float *)ref_memory(bias_heads * n, sizeof *bias);
  float *gate = (float *)ref_memory(n * r->heads, sizeof *gate);
  for (int64_t i = 0; i < bias_heads * n; i++) bias[i] = rng_normal(rng);
  for (int64_t i = 0; i < n * r->heads; i++) gate[i] = rng_uniform(rng);
  if (rng_chance(rng, 20)) r->key_bias = tensor_of(bias, LATTN_F32, 1, bias_heads, n);
  else free(bias);
  if (rng_chance(rng, 20)) r->gate = tensor_of(gate, LATTN_F32, n, r->heads, 1);
  else free(gate);
  r->scored = rng_chance(rng, 15);
}

static void free_options(const rig *r) {
  void *bias, *gate;
  memcpy(&bias, &r->key_bias.data, sizeof bias); /* the view is const; the arrays are ours */
  memcpy(&gate, &r->gate.data, sizeof gate);
  free(bias);
  free(gate);
}

static void random_op(rig *r, test_rng *rng, int64_t largest) {
  int64_t n = r->tokens.n, max_append = setup_max_append(r->s), op = rng_below(rng, 100);
  if (op < 40) {
    op_extend(r, rng_chance(rng, 30) ? rng_below(rng, 3) : rng_range(rng, 1, largest), rng);
  } else if (op < 65) {
    int64_t most = max_append < largest ? max_append : largest, count = rng_range(rng, 0, most);
    op_append(r, count, rng);
    if (rng_chance(rng, 80)) op_attend(r, r->tokens.n - n, rng);
  } else if (op < 75) {
    op_attend(r, rng_range(rng, 0, n < largest || rng_chance(rng, 10) ? n : largest), rng);
  } else if (op < 95) {
    int64_t back = rng_chance(rng, 50) ? rng_below(rng, 20) : rng_below(rng, largest);
    op_truncate(r, back > n || rng_chance(rng, 5) ? rng_below(rng, n + 1) : n - back);
  } else if (op < 96) {
    op_clear(r);
  } else if (op < 98) {
    op_mark(r, rng);
  } else if (r->s->config.capacity) {
    op_overfill(r, rng);
  }
}

/* One extend of all the tokens into a new cache, its pages from the other kind of pool, gives
   the bits of every row that any cut gave. */
static void check_one_call(const rig *r, enum pages_from from, test_rng *rng) {
  rig whole;
  call_arrays c;
  call_options o;
  int64_t n = r->tokens.n;
  rig_open(&whole, r->s, n ? n : 1, from);
  whole.key_bias = r->key_bias;
  whole.gate = r->gate;
  whole.scored = r->scored;
  memcpy(whole.out, r->out, (size_t)(n * r->heads * r->value_dim) * sizeof(float));
  memcpy(whole.lse, r->lse, (size_t)(n * r->heads) * sizeof(float));
  memcpy(whole.done, r->done, (size_t)n);
  for (int64_t first = 0, count = n; first <= n; first += count) { /* before a mark, behind it */
    count = r->mark >= 0 && first < r->mark ? r->mark : n - first;
    if (r->mark == first)
      CHECK_STATUS(lattn_cache_mark(whole.cache, LATTN_PROMPT_END, NULL), LATTN_OK);
    call_open(&c, r, first, count, rng);
    const lattn_call *call = call_of(&o, r, &c, count);
    CHECK_STATUS(lattn_cache_extend(whole.cache, call, view_q(r, &c, count), view_k(r, &c, count),
                                    view_v(r, &c, count), view_out(r, &c, count),
                                    (float *)(void *)c.lse.data, &c.exec),
                 LATTN_OK);
    note_rows(&whole, &c, first, count);
    call_close(&c);
    if (count == 0) break;
  }
  rig_close(&whole);
}

/* The float64 reference, on a sample of the rows that were attended; the bound is derived in
   ref.h. */
static void check_reference(const rig *r, int samples, test_rng *rng) {
  ref_call c;
  ref_cache_open(&c, r->s, &r->tokens);
  if (r->key_bias.data) c.options.key_bias = &r->key_bias;
  if (r->gate.data) c.options.gate = &r->gate;
  if (r->scored) c.score = ref_tilt;
  ref_row row = ref_row_new(&c);
  for (int i = 0; i < samples && r->tokens.n; i++) {
    int64_t token = i == 0 ? r->tokens.n - 1 : rng_below(rng, r->tokens.n);
    int64_t head = rng_below(rng, r->heads), at = token * r->heads + head;
    if (!r->done[token]) continue;
    ref_cache_attend_marked(&c, r->s, token, head, r->mark, &row);
    for (int64_t d = 0; d < r->value_dim; d++) {
      double got = (double)r->out[at * r->value_dim + d];
      double ratio = ref_ratio(got, row.out[d], row.bound[d]);
      if (!(ratio <= 1))
        FAIL("row %" PRId64 " head %" PRId64 " dim %" PRId64
             ": %.9g, reference %.9g, %.3g bounds off",
             token, head, d, got, row.out[d], ratio);
    }
    double ratio = ref_ratio((double)r->lse[at], row.lse, row.lse_bound);
    if (!(ratio <= 1))
      FAIL("row %" PRId64 " head %" PRId64 ": lse %.9g, reference %.9g, %.3g bounds off", token,
           head, (double)r->lse[at], row.lse, ratio);
  }
  ref_row_free(&row);
  ref_close(&c);
}

static void random_case(uint64_t seed) {
  test_rng rng = rng_seed(seed);
  setup s;
  rig r;
  int is_long = rng_chance(&rng, 6);
  int64_t capacity = is_long ? rng_range(&rng, 2000, 4200) : rng_range(&rng, 1, 500);
  int64_t ops = is_long ? 14 : rng_range(&rng, 4, 30), largest = is_long ? 900 : 150;
  enum pages_from from = rng_chance(&rng, 40) ? FROM_ALLOCATOR : FROM_ARENA;
  check_case("random cache: seed %" PRIu64, seed);
  random_setup(&s, &rng, capacity, is_long);
  if (seed % 5 == 2) {
    setup_sigmoid(&s, seed % 3 ? -3 : 0);
    for (int g = 0; g < s.config.n_kv_heads; g++) {
      if (s.heads[g].policy == LATTN_HEAD_COMPENSATED) s.heads[g].policy = LATTN_HEAD_STREAMING;
      s.heads[g].flags = 0;
    }
  }
  rig_open(&r, &s, capacity, from);
  random_options(&r, &rng);
  for (int64_t i = 0; i < ops; i++) {
    random_op(&r, &rng, largest);
    check_stats(&r);
  }
  check_one_call(&r, from == FROM_ARENA ? FROM_ALLOCATOR : FROM_ARENA, &rng);
  check_reference(&r, is_long ? 6 : 16, &rng);
  free_options(&r);
  rig_close(&r);
}

static void test_random(void) {
  for (uint64_t i = 0; i < (uint64_t)test_count(100); i++)
    random_case(test_first_seed() + 1000 + i);
}

/* ---- StreamingLLM equivalence ---- */

enum { STREAM_PERIOD = 1009, STREAM_CHUNK = 4096 };

/* A stream of any length: token t is row t % STREAM_PERIOD; a chunk more, so that any chunk is
   contiguous. */
static void stream_new(token_list *t, const setup *s, test_rng *rng) {
  *t = tokens_new(s, STREAM_PERIOD + STREAM_CHUNK);
  tokens_make(t, STREAM_PERIOD, rng);
  for (int64_t i = STREAM_PERIOD; i < t->capacity; i++) {
    int64_t from = i - STREAM_PERIOD;
    memcpy(t->q + i * t->q_row, t->q + from * t->q_row, (size_t)t->q_row * sizeof(float));
    memcpy(t->k + i * t->k_row, t->k + from * t->k_row, (size_t)t->k_row * sizeof(float));
    memcpy(t->v + i * t->v_row, t->v + from * t->v_row, (size_t)t->v_row * sizeof(float));
  }
}

/* Appends until the cache holds n tokens. */
static void stream_advance(lattn_cache *cache, const setup *s, const token_list *t, int64_t n) {
  int64_t done = cache_stats(cache).n_tokens, most = setup_max_append(s);
  if (most > STREAM_CHUNK) most = STREAM_CHUNK;
  while (done < n) {
    int64_t count = n - done < most ? n - done : most, at = done % STREAM_PERIOD;
    if (!CHECK_STATUS(
            lattn_cache_append(cache, tokens_k(t, s, at, count), tokens_v(t, s, at, count), NULL),
            LATTN_OK))
      return;
    done += count;
  }
}

/* What the authors' cache holds when token i is attended, by place: sinks, then the newest. */
static void stream_compact(token_list *short_list, const setup *s, const token_list *t, int64_t i) {
  int64_t sinks = s->heads[0].sinks, window = s->heads[0].window, n = 0;
  for (int64_t j = 0; j <= i; j++) {
    if (j >= sinks && j <= i - window) j = i - window + 1;
    int64_t at = j % STREAM_PERIOD;
    memcpy(short_list->q + n * t->q_row, t->q + at * t->q_row, (size_t)t->q_row * sizeof(float));
    memcpy(short_list->k + n * t->k_row, t->k + at * t->k_row, (size_t)t->k_row * sizeof(float));
    memcpy(short_list->v + n * t->v_row, t->v + at * t->v_row, (size_t)t->v_row * sizeof(float));
    n++;
  }
  short_list->n = n;
}

/* Attends the newest token and compares all its heads with the authors' way. The window may
   touch two blocks more in the true numbering than in the cache's own: 2 folds, 8u of a weight,
   twice. */
static void check_step(const lattn_cache *cache, const setup *s, const token_list *t,
                       token_list *short_list, int64_t i) {
  float out[CACHE_HEADS * CACHE_DIMS], lse[CACHE_HEADS];
  int64_t heads = setup_heads(s), dims = setup_value_dim(s);
  ref_call c;
  CHECK_STATUS(lattn_cache_attend(cache, NULL, tokens_q(t, s, i % STREAM_PERIOD, 1),
                                  tensor_of(out, LATTN_F32, 1, heads, dims), lse, NULL),
               LATTN_OK);
  stream_compact(short_list, s, t, i);
  ref_streaming_open(&c, s, short_list);
  ref_row row = ref_row_new(&c);
  for (int64_t h = 0; h < heads; h++) {
    ref_attend(&c, 0, h, &row);
    for (int64_t d = 0; d < dims; d++) {
      double bound = row.bound[d] + 16 * REF_U * 4; /* |v| <= 4 here */
      if (!(ref_ratio((double)out[h * dims + d], row.out[d], bound) <= 1))
        FAIL("token %" PRId64 " head %" PRId64 ": %.9g, reference %.9g, bound %.3g", i, h,
             (double)out[h * dims + d], row.out[d], bound);
    }
    CHECK(ref_ratio((double)lse[h], row.lse, row.lse_bound + 16 * REF_U) <= 1);
  }
  ref_row_free(&row);
  ref_close(&c);
}

static void streaming_llm(const char *name, setup *s, const int64_t *tokens, int n) {
  test_guard arena;
  test_rng rng = rng_seed(7);
  token_list t, short_list = tokens_new(s, s->heads[0].sinks + s->heads[0].window);
  check_case("StreamingLLM equivalence: %s, sinks %" PRId64 ", window %" PRId64, name,
             s->heads[0].sinks, s->heads[0].window);
  stream_new(&t, s, &rng);
  lattn_pool *pool = pool_new(&arena, s, 1, NULL);
  lattn_cache *cache = cache_new(pool, s);
  for (int i = 0; i < n; i++) {
    stream_advance(cache, s, &t, tokens[i] + 1);
    check_step(cache, s, &t, &short_list, tokens[i]);
  }
  tokens_free(&t);
  tokens_free(&short_list);
  CHECK(guard_free(&arena));
}

static void streaming_setup(setup *s, int kind, int64_t sinks, int64_t window) {
  setup_init(s, 2, 1, 8, 4, 0);
  setup_stream(s, 0, sinks, window, 0, LATTN_POSITIONS_DEFAULT);
  s->config.max_append = STREAM_CHUNK;
  if (kind < 2) setup_rotate(s, kind, 0, 8);
  if (kind == 2) setup_rotate(s, LATTN_ROTARY_HALF_SPLIT, 2, 4); /* partial */
  if (kind >= 3) setup_alibi(s);
  if (kind == 4) setup_rotate(s, LATTN_ROTARY_INTERLEAVED, 0, 8), setup_sinks(s);
}

static void test_streaming_llm(void) {
  static const char *const names[] = {"interleaved", "half-split", "partial", "ALiBi",
                                      "rotary, ALiBi and learned sinks"};
  static const int64_t far[] = {10, 1000, 100000, 1000000, 4000000};
  static const int64_t sizes[][2] = {{0, 1}, {1, 1}, {4, 2}, {4, 60}, {17, 129}, {130, 16}};
  int64_t steps[400];
  setup s;
  for (int i = 0; i < 400; i++) steps[i] = i;
  for (int kind = 0; kind < 5; kind++) {
    streaming_setup(&s, kind, 4, 60);
    streaming_llm(names[kind], &s, far, test_is_quick() ? 2 + (kind == 0) : kind < 2 ? 5 : 4);
    for (int i = 0; i < 6; i++) {
      if (test_is_quick() && i != kind) continue;
      streaming_setup(&s, kind, sizes[i][0], sizes[i][1]);
      streaming_llm(names[kind], &s, steps, 400); /* every step */
    }
  }
}

/* ---- heads.md 1.8, one by one ---- */

/* The quick tier runs each of the i cases with one of the kinds only. */
static int skips(int i, int kind) { return test_is_quick() && kind != i % 5; }

/* One thread, with scratch for any call of the named tests (the random test gives each call its
   own). */
static const lattn_exec *plain_exec(void) {
  static char scratch[1 << 21];
  static lattn_exec exec;
  exec.size = sizeof exec;
  exec.scratch = scratch;
  exec.scratch_bytes = sizeof scratch;
  return &exec;
}

/* Extends r by all `n` tokens of `t` in cuts of `cut`, and notes the rows. */
static void extend_all(rig *r, const token_list *t, int64_t n, int64_t cut) {
  for (int64_t i = 0; i < n; i += cut) {
    int64_t count = n - i < cut ? n - i : cut, at = r->tokens.n;
    lattn_tensor out =
        tensor_of(r->out + at * r->heads * r->value_dim, LATTN_F32, count, r->heads, r->value_dim);
    lattn_status status =
        lattn_cache_extend(r->cache, NULL, tokens_q(t, r->s, i, count), tokens_k(t, r->s, i, count),
                           tokens_v(t, r->s, i, count), out, r->lse + at * r->heads, plain_exec());
    CHECK_STATUS(status, LATTN_OK);
    r->tokens.n += count;
  }
}

/* The rows of two rigs from first to first + n - 1 are the same bits. */
static int same_rows(const rig *a, const rig *b, int64_t first, int64_t n) {
  size_t row = (size_t)(a->heads * a->value_dim), heads = (size_t)a->heads, at = (size_t)first;
  return !memcmp(a->out + at * row, b->out + at * row, (size_t)n * row * sizeof(float)) &&
         !memcmp(a->lse + at * heads, b->lse + at * heads, (size_t)n * heads * sizeof(float));
}

/* 1: up to n = S + W tokens, a streaming head gives the bits of a full one. */
static void test_short_is_full(void) {
  static const int64_t sizes[][2] = {{0, 1}, {1, 1}, {4, 60}, {128, 3}, {17, 129}, {4, 2100}};
  for (int i = 0; i < (test_is_quick() ? 5 : 6); i++)
    for (int kind = 0; kind < 6; kind++) {
      setup full, stream;
      rig a, b;
      test_rng rng = rng_seed(11);
      int64_t n = sizes[i][0] + sizes[i][1];
      if (skips(i, kind)) continue;
      check_case("1.8.1 n <= S + W: sinks %d, window %d, kind %d", (int)sizes[i][0],
                 (int)sizes[i][1], kind);
      streaming_setup(&stream, kind % 5, sizes[i][0], sizes[i][1]);
      if (kind == 5) stream.heads[0].positions = LATTN_POSITIONS_ABSOLUTE;
      streaming_setup(&full, kind % 5, 0, 1);
      memset(full.heads, 0, sizeof full.heads);
      full.config.capacity = n;
      rig_open(&a, &full, n, FROM_ARENA);
      rig_open(&b, &stream, n, FROM_ARENA);
      tokens_make(&a.tokens, n, &rng);
      extend_all(&a, &a.tokens, n, n);
      extend_all(&b, &a.tokens, n, n > 60 ? 60 : 1);
      CHECK(same_rows(&a, &b, 0, n));
      rig_close(&a);
      rig_close(&b);
    }
}

/* lattn_attention on the tokens that a cache was given, rotated by lattn_rotate where it
   rotates. */
static void attention_of(const setup *s, const token_list *t, int64_t n, const lattn_head *head,
                         float *out, float *lse) {
  lattn_attn a;
  int64_t heads = setup_heads(s);
  float *q = (float *)ref_memory(n * t->q_row, sizeof *q);
  float *k = (float *)ref_memory(n * t->k_row, sizeof *k);
  lattn_tensor tq = tokens_q(t, s, 0, n), tk = tokens_k(t, s, 0, n);
  memcpy(q, t->q, (size_t)(n * t->q_row) * sizeof *q);
  memcpy(k, t->k, (size_t)(n * t->k_row) * sizeof *k);
  tq.data = q, tk.data = k;
  if (s->config.rotary) {
    CHECK_STATUS(lattn_rotate(s->config.rotary, tq, 0, NULL), LATTN_OK);
    CHECK_STATUS(lattn_rotate(s->config.rotary, tk, 0, NULL), LATTN_OK);
  }
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.mask = LATTN_CAUSAL;
  a.scale = s->config.scale;
  a.alibi_slopes = s->config.alibi_slopes;
  a.sink_logits = s->config.sink_logits;
  a.weighting = s->config.weighting;
  a.sigmoid_bias = s->config.sigmoid_bias;
  if (head->policy == LATTN_HEAD_STREAMING) a.sinks = head->sinks, a.window = head->window;
  CHECK_STATUS(
      lattn_attention(&a, tq, tk, tokens_v(t, s, 0, n),
                      tensor_of(out, LATTN_F32, n, heads, setup_value_dim(s)), lse, plain_exec()),
      LATTN_OK);
  free(q);
  free(k);
}

/* Both the cache and lattn_attention on all tokens: the same bits. */
static void check_masked(setup *s, int64_t n, int64_t cut) {
  test_rng rng = rng_seed(12);
  rig r;
  rig_open(&r, s, n, FROM_ARENA);
  float *out = (float *)ref_memory(n * r.heads * r.value_dim, sizeof *out);
  float *lse = (float *)ref_memory(n * r.heads, sizeof *lse);
  tokens_make(&r.tokens, n, &rng);
  extend_all(&r, &r.tokens, n, cut);
  attention_of(s, &r.tokens, n, &s->heads[0], out, lse);
  CHECK(!memcmp(out, r.out, (size_t)(n * r.heads * r.value_dim) * sizeof *out));
  CHECK(!memcmp(lse, r.lse, (size_t)(n * r.heads) * sizeof *lse));
  free(out);
  free(lse);
  rig_close(&r);
}

/* 2: S = 0 is a sliding window (its positions do not matter). 6: absolute mode is masked
   attention. */
static void test_absolute_mode(void) {
  static const int64_t windows[] = {1, 2, 16, 127, 128, 129, 400};
  setup s;
  for (int i = 0; i < 7; i++)
    for (int kind = 0; kind < 5; kind++) {
      if (skips(i, kind)) continue;
      check_case("1.8.2 S = 0: sliding window of %d, kind %d", (int)windows[i], kind);
      streaming_setup(&s, kind, 0, windows[i]);
      check_masked(&s, 500, 37);
      check_case("1.8.6 absolute = masked attention: window %d, kind %d", (int)windows[i], kind);
      streaming_setup(&s, kind, i % 2 ? 4 : 130, windows[i]);
      s.heads[0].positions = LATTN_POSITIONS_ABSOLUTE;
      check_masked(&s, 500, 123);
    }
  for (int kind = 0; kind < 5; kind++) {
    if (skips(4, kind)) continue;
    check_case("a full head = causal attention, kind %d", kind);
    streaming_setup(&s, kind, 0, 1);
    memset(s.heads, 0, sizeof s.heads);
    s.config.capacity = test_is_quick() ? 300 : 2300;
    check_masked(&s, s.config.capacity, 170);
  }
}

/* Likewise of sigmoid attention; caches of another weighting or bias are other models. */
static void test_sigmoid(void) {
  enum { N = 12 };
  static float q[4 * 8], kv[4 * 8], out[4 * 8];
  setup s[3];
  lattn_pool *pool;
  lattn_cache *cache[3];
  lattn_checkpoint *kept = NULL;
  lattn_sequence two[2];
  test_guard arena;
  for (int kind = 0; kind < 5; kind++) {
    if (skips(3, kind)) continue;
    check_case("sigmoid: cache = masked attention, kind %d", kind);
    streaming_setup(&s[0], kind, kind % 2 ? 4 : 130, kind < 3 ? 60 : 150);
    s->heads[0].positions = LATTN_POSITIONS_ABSOLUTE;
    if (kind == 4) memset(s->heads, 0, sizeof s->heads), s->config.capacity = 2300;
    setup_sigmoid(&s[0], -1.25f);
    check_masked(&s[0], kind == 4 ? 2300 : 500, 123);
  }
  check_case("sigmoid: other weighting, other bias");
  for (int i = 0; i < 3; i++) {
    setup_init(&s[i], 1, 1, 8, 8, N);
    if (i) setup_sigmoid(&s[i], i == 1 ? 0 : -2.0f);
  }
  pool = pool_new(&arena, &s[0], 4, NULL);
  for (int i = 0; i < 3; i++) cache[i] = cache_new(pool, &s[i]);
  CHECK_STATUS(lattn_cache_checkpoint(&kept, cache[1]), LATTN_OK);
  for (int i = 0; i < 3; i++) {
    CHECK_STATUS(lattn_cache_rollback(cache[i], kept), i == 1 ? LATTN_OK : LATTN_E_CONFIG);
    lattn_sequence one = {cache[i], 1, NULL}, other = {cache[(i + 1) % 3], 1, NULL};
    two[0] = one, two[1] = other;
    lattn_tensor t = tensor_of(kv, LATTN_F32, 2, 1, 8), rows = t, to = t;
    rows.data = q, to.data = out;
    CHECK_STATUS(lattn_batch_extend(2, two, NULL, rows, t, t, to, NULL, NULL), LATTN_E_CONFIG);
  }
  CHECK_STATUS(lattn_checkpoint_release(kept), LATTN_OK);
  for (int i = 0; i < 3; i++) CHECK_STATUS(lattn_cache_release(cache[i]), LATTN_OK);
  CHECK(guard_free(&arena));
}

/* 3: with W = 1 and S = 0 a row sees itself alone: its value exactly, and lse its score, which
   is one chain of fused multiply-adds over (scale * q_d) * k_d. */
static void test_single_key(void) {
  setup s;
  rig r;
  test_rng rng = rng_seed(13);
  enum { N = 300 };
  check_case("1.8.3 W = 1, S = 0: the value and the score");
  setup_init(&s, 1, 1, 5, 3, 0);
  setup_stream(&s, 0, 0, 1, 0, 0);
  s.config.scale = 0.375f;
  rig_open(&r, &s, N, FROM_ARENA);
  tokens_make(&r.tokens, N, &rng);
  extend_all(&r, &r.tokens, N, 7);
  CHECK(!memcmp(r.out, r.tokens.v, N * 3 * sizeof(float)));
  for (int i = 0; i < N; i++) {
    float score = 0;
    for (int d = 0; d < 5; d++) {
      volatile float scaled = 0.375f * r.tokens.q[i * 5 + d]; /* rounded, never contracted */
      score = fmaf(scaled, r.tokens.k[i * 5 + d], score);
    }
    if (HAS_FMA) CHECK(same_f32(r.lse[i], score));
  }
  rig_close(&r);
}

/* 5: any cut gives the same bits. */
static void test_cuts(void) {
  static const int64_t cuts[] = {1, 7, 16, 128, 129, 512, 513};
  for (int kind = 0; kind < 5; kind++) {
    setup s;
    rig whole, r;
    test_rng rng = rng_seed(15);
    enum { N = 1100 };
    if (skips(1, kind)) continue;
    streaming_setup(&s, kind, 4, 150);
    s.config.max_append = 100;
    check_case("1.8.5 any cut, kind %d", kind);
    rig_open(&whole, &s, N, FROM_ARENA);
    tokens_make(&whole.tokens, N, &rng);
    extend_all(&whole, &whole.tokens, N, N);
    for (int i = 0; i < 7; i++) {
      check_case("1.8.5 any cut: %d, kind %d", (int)cuts[i], kind);
      rig_open(&r, &s, N, FROM_ARENA);
      extend_all(&r, &whole.tokens, N, cuts[i]);
      CHECK(same_rows(&whole, &r, 0, N));
      rig_close(&r);
    }
    rig_close(&whole);
  }
}

typedef struct part_arrays {
  float maximum[2][2], sum[2][2], output[2][8], weights[2];
} part_arrays;

/* The partial of keys from ... to - 1 for the newest of n tokens, absolute ALiBi. */
static void alibi_part(const setup *s, const token_list *t, int64_t n, int64_t from, int64_t to,
                       int index, part_arrays *arrays, lattn_partial *part) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  memset(part, 0, sizeof *part);
  part->size = sizeof *part;
  part->n_rows = 2, part->value_dim = 4;
  part->maximum = arrays->maximum[index];
  part->sum = arrays->sum[index];
  part->output = arrays->output[index];
  a.size = sizeof a;
  a.mask = LATTN_CAUSAL;
  a.alibi_slopes = s->slopes;
  a.visible_from = &from, a.visible_to = &to;
  a.partial = part;
  CHECK_STATUS(
      lattn_attention(&a, tokens_q(t, s, n - 1, 1), tokens_k(t, s, 0, n), tokens_v(t, s, 0, n),
                      tensor_of(NULL, LATTN_F32, 1, 2, 4), NULL, NULL),
      LATTN_OK);
}

/* 7: in-cache ALiBi is absolute ALiBi with the sinks' part weighted by slope * evicted (heads.md
   1.3). Both sides are within the reference's bound of the exact value; the weight itself rounds
   once. */
static void test_alibi_weight(void) {
  enum { N = 300, SINKS = 4, WINDOW = 50 };
  setup s;
  rig r;
  part_arrays arrays;
  lattn_partial parts[2];
  lattn_merge_options options;
  float out[8], lse[2];
  test_rng rng = rng_seed(17);
  check_case("1.8.7 in-cache ALiBi = a log-weight on the sinks");
  streaming_setup(&s, 3, SINKS, WINDOW);
  rig_open(&r, &s, N, FROM_ARENA);
  tokens_make(&r.tokens, N, &rng);
  extend_all(&r, &r.tokens, N, 64);
  alibi_part(&s, &r.tokens, N, 0, SINKS, 0, &arrays, &parts[0]);
  alibi_part(&s, &r.tokens, N, N - WINDOW, N, 1, &arrays, &parts[1]);
  for (int h = 0; h < 2; h++) arrays.weights[h] = s.slopes[h] * (float)(N - WINDOW - SINKS);
  parts[0].row_weights = arrays.weights;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  CHECK_STATUS(lattn_merge(&options, 2, parts, tensor_of(out, LATTN_F32, 1, 2, 4), lse, NULL),
               LATTN_OK);
  ref_call c;
  ref_cache_open(&c, &s, &r.tokens);
  ref_row row = ref_row_new(&c);
  for (int h = 0; h < 2; h++) {
    double rounding = 4 * REF_U * (double)(s.slopes[h] * N); /* of slope * distance, both ways */
    ref_cache_attend(&c, &s, N - 1, h, &row);
    for (int d = 0; d < 4; d++)
      CHECK(fabs((double)out[h * 4 + d] - (double)r.out[((N - 1) * 2 + h) * 4 + d]) <=
            2 * row.bound[d] + 8 * rounding);
    CHECK(fabs((double)lse[h] - (double)r.lse[(N - 1) * 2 + h]) <=
          2 * row.lse_bound + 2 * rounding);
  }
  ref_row_free(&row);
  ref_close(&c);
  rig_close(&r);
}

/* 8: memory, and pages asked for, at 10^6 tokens as at 10^4. */
static void test_constant_memory(void) {
  int64_t far = test_is_quick() ? 100096 : 1000064, near = 10112; /* all multiples of 128 */
  setup s;
  test_guard arena;
  token_list t;
  page_source source = {0, 0, 0, 0};
  test_rng rng = rng_seed(18);
  check_case("1.8.8 constant memory at %" PRId64 " tokens", far);
  streaming_setup(&s, 0, 4, 1000);
  s.config.max_append = 512;
  stream_new(&t, &s, &rng);
  lattn_pool *pool = pool_new(&arena, &s, 1, &source);
  lattn_cache *cache = cache_new(pool, &s);
  stream_advance(cache, &s, &t, near);
  lattn_pool_stats before = pool_stats(pool);
  int64_t calls = source.n_calls, held = head_stats(cache, 0).n_tokens_held;
  stream_advance(cache, &s, &t, 2 * near);
  int64_t more = source.n_calls - calls; /* for `near` tokens */
  stream_advance(cache, &s, &t, far - near);
  calls = source.n_calls;
  stream_advance(cache, &s, &t, far);
  lattn_pool_stats after = pool_stats(pool);
  CHECK(source.n_calls - calls <= more + 2 && more <= source.n_calls - calls + 2);
  CHECK(after.page_bytes <= before.page_bytes + 4 * page_limit(&s));
  CHECK(after.table_bytes == before.table_bytes);
  CHECK(head_stats(cache, 0).n_tokens_held <= held + 4 * REF_BLOCK);
  CHECK(after.page_bytes <= (1004 + 512 + 4 * REF_BLOCK) / REF_BLOCK * page_limit(&s));
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  CHECK_I64(source.n_out, 0);
  tokens_free(&t);
  CHECK(guard_free(&arena));
}

/* Whether all that can be seen of a cache is the same: bytes of its pool, stats, newest row. */
static uint64_t cache_hash(const rig *r) {
  uint64_t hash = hash_bytes(HASH_SEED, r->arena.data, r->arena.bytes);
  lattn_pool_stats pool = pool_stats(r->pool);
  lattn_cache_stats stats = cache_stats(r->cache);
  hash = hash_bytes(hash, &pool, sizeof pool);
  hash = hash_bytes(hash, &stats, sizeof stats);
  return hash_bytes(hash, &r->source.n_out, sizeof r->source.n_out);
}

/* 9: back by the slack and on again is as if nothing had been; further back is refused, nothing
   changed. */
static void test_truncate(void) {
  enum { N = 700, SLACK = 40 };
  for (int kind = 0; kind < 5; kind++) {
    setup s;
    rig r, straight;
    test_rng rng = rng_seed(19);
    if (skips(2, kind)) continue;
    check_case("1.8.9 truncate within the slack, kind %d", kind);
    streaming_setup(&s, kind, 4, 100);
    s.heads[0].slack = SLACK;
    rig_open(&r, &s, N, FROM_ARENA);
    rig_open(&straight, &s, N, FROM_ARENA);
    tokens_make(&straight.tokens, N, &rng);
    extend_all(&straight, &straight.tokens, N, 90);
    extend_all(&r, &straight.tokens, N - 7, 33);
    for (int64_t back = 1; back <= SLACK - 7; back += 8) {
      token_list rest = straight.tokens;
      op_extend(&r, 7, &rng); /* other tokens, taken back */
      CHECK_STATUS(lattn_cache_truncate(r.cache, N - 7), LATTN_OK);
      CHECK_STATUS(lattn_cache_truncate(r.cache, N - 7 - back), LATTN_OK);
      r.tokens.n = N - 7 - back;
      rest.q += r.tokens.n * rest.q_row;
      rest.k += r.tokens.n * rest.k_row;
      rest.v += r.tokens.n * rest.v_row;
      extend_all(&r, &rest, back, 5);
      CHECK(same_rows(&r, &straight, 0, N - 7));
    }
    check_case("1.8.9 truncate beyond the slack, kind %d", kind);
    uint64_t before = cache_hash(&r);
    CHECK_STATUS(lattn_cache_truncate(r.cache, N - 7 - SLACK - 2 * REF_BLOCK), LATTN_E_EVICTED);
    CHECK(cache_hash(&r) == before);
    rig_close(&r);
    rig_close(&straight);
  }
}

/* 10: fewer tokens than sinks; truncation into the sinks: the tokens that follow are the sinks
   then. */
static void test_sink_area(void) {
  static const int64_t cuts[] = {1, 5, 127, 128, 129, 150};
  setup s;
  rig r, fresh;
  for (int kind = 0; kind < 5; kind++)
    for (int i = 0; i < 6; i++) {
      test_rng rng = rng_seed(20);
      if (skips(i, kind)) continue;
      check_case("1.8.10 truncate to %d of 150 sinks, kind %d", (int)cuts[i], kind);
      streaming_setup(&s, kind, 150, 20);
      rig_open(&r, &s, 600, FROM_ARENA);
      op_extend(&r, 100, &rng);
      check_stats(&r);
      CHECK_I64(head_stats(r.cache, 0).n_tokens_held, 100);
      op_extend(&r, 500, &rng);
      op_truncate(&r, cuts[i]);
      CHECK_I64(r.tokens.n, cuts[i]); /* the window of the next token lies in the sinks */
      check_stats(&r);
      op_extend(&r, 400, &rng);
      check_stats(&r);
      rig_open(&fresh, &s, 600, FROM_ARENA);
      extend_all(&fresh, &r.tokens, r.tokens.n, 600);
      CHECK(same_rows(&r, &fresh, 0, r.tokens.n));
      check_reference(&r, 10, &rng);
      rig_close(&fresh);
      rig_close(&r);
    }
}

/* ---- heads.md 13 and the rest ---- */

/* n = 0, 1, S, S + 1, S + W - 1, S + W, S + W + 1, against the reference. */
static void test_lengths(void) {
  for (int kind = 0; kind < 5; kind++)
    for (int i = 0; i < 7; i++) {
      enum { S = 5, W = 20 };
      static const int64_t lengths[] = {0, 1, S, S + 1, S + W - 1, S + W, S + W + 1};
      setup s;
      rig r;
      test_rng rng = rng_seed(21);
      if (skips(i, kind)) continue;
      check_case("13.3 length %d, kind %d", (int)lengths[i], kind);
      streaming_setup(&s, kind, S, W);
      rig_open(&r, &s, 40, FROM_ARENA);
      op_extend(&r, lengths[i], &rng);
      check_stats(&r);
      check_reference(&r, 40, &rng);
      rig_close(&r);
    }
}

/* Evicted keys and values may be NaN: rows that do not see them keep their bits. */
static void test_evicted_nan(void) {
  enum { N = 400, S = 4, W = 30, BAD = 50 };
  for (int kind = 0; kind < 5; kind++) {
    setup s;
    rig clean, bad;
    test_rng rng = rng_seed(22);
    if (skips(3, kind)) continue;
    check_case("13.5 NaN in an evicted token, kind %d", kind);
    streaming_setup(&s, kind, S, W);
    rig_open(&clean, &s, N, FROM_ARENA);
    rig_open(&bad, &s, N, FROM_ARENA);
    tokens_make(&clean.tokens, N, &rng);
    extend_all(&clean, &clean.tokens, N, N);
    for (int d = 0; d < 8; d++) clean.tokens.k[BAD * 8 + d] = d % 2 ? NAN : INFINITY;
    for (int d = 0; d < 4; d++) clean.tokens.v[(BAD + 3) * 4 + d] = d % 2 ? NAN : INFINITY;
    extend_all(&bad, &clean.tokens, N, 45);
    CHECK(same_rows(&clean, &bad, 0, BAD));
    CHECK(same_rows(&clean, &bad, BAD + 3 + W, N - BAD - 3 - W));
    CHECK(isnan(bad.lse[BAD * 2]) && isnan(bad.out[(BAD + 3) * 8 + 1]));
    rig_close(&clean);
    rig_close(&bad);
  }
}

/* A layer of mixed heads gives each head the bits that it has alone. */
static void test_mixed_alone(void) {
  enum { N = 600, G = 4, H = 8, DK = 6, DV = 5 };
  setup mixed;
  rig r;
  test_rng rng = rng_seed(23);
  check_case("13.7 mixed heads = each alone");
  setup_init(&mixed, H, G, DK, DV, N);
  setup_rotate(&mixed, LATTN_ROTARY_HALF_SPLIT, 0, DK);
  mixed.config.key_type = LATTN_F16, mixed.config.value_type = LATTN_BF16;
  setup_stream(&mixed, 1, 4, 100, 0, LATTN_POSITIONS_IN_CACHE);
  setup_stream(&mixed, 2, 0, 17, 30, LATTN_POSITIONS_DEFAULT);
  setup_stream(&mixed, 3, 130, 128, 0, LATTN_POSITIONS_ABSOLUTE);
  rig_open(&r, &mixed, N, FROM_ARENA);
  tokens_make(&r.tokens, N, &rng);
  extend_all(&r, &r.tokens, N, 77);
  for (int g = 0; g < G; g++) {
    setup alone;
    rig one;
    int same = 1;
    setup_init(&alone, H / G, 1, DK, DV, N);
    setup_rotate(&alone, LATTN_ROTARY_HALF_SPLIT, 0, DK);
    alone.config.key_type = LATTN_F16, alone.config.value_type = LATTN_BF16;
    alone.heads[0] = mixed.heads[g];
    rig_open(&one, &alone, N, FROM_ARENA);
    for (int i = 0; i < N; i++) {
      memcpy(one.tokens.q + i * 2 * DK, r.tokens.q + (i * H + g * 2) * DK, 2 * DK * sizeof(float));
      memcpy(one.tokens.k + i * DK, r.tokens.k + (i * G + g) * DK, DK * sizeof(float));
      memcpy(one.tokens.v + i * DV, r.tokens.v + (i * G + g) * DV, DV * sizeof(float));
    }
    extend_all(&one, &one.tokens, N, N);
    for (int i = 0; i < N; i++)
      same &= !memcmp(one.out + i * 2 * DV, r.out + (i * H + g * 2) * DV, 2 * DV * sizeof(float));
    CHECK(same);
    rig_close(&one);
  }
  rig_close(&r);
}

/* A full head's bytes at 32k tokens: within 3 % of tokens x dims x type size */
static void test_full_bytes(void) {
  static const int32_t types[][2] = {
      {LATTN_F32, LATTN_F32}, {LATTN_F16, LATTN_F16}, {LATTN_BF16, LATTN_F32}};
  static const int32_t dims[][2] = {{128, 128}, {64, 64}, {192, 128}};
  enum { N = 32768 };
  float *k = (float *)ref_memory((int64_t)512 * 192, sizeof *k);
  for (int i = 0; i < 3; i++) {
    setup s;
    test_guard arena;
    int64_t ideal = N * (dims[i][0] * (int64_t)type_bytes(types[i][0]) +
                         dims[i][1] * (int64_t)type_bytes(types[i][1]));
    check_case("bytes of a full head at 32k: %s %d, %s %d", type_name(types[i][0]), dims[i][0],
               type_name(types[i][1]), dims[i][1]);
    setup_init(&s, 1, 1, dims[i][0], dims[i][1], N);
    s.config.key_type = types[i][0], s.config.value_type = types[i][1];
    lattn_pool *pool = pool_new(&arena, &s, 1, NULL);
    lattn_cache *cache = cache_new(pool, &s);
    for (int64_t n = 0; n < N; n += 512)
      CHECK_STATUS(lattn_cache_append(cache, tensor_of(k, LATTN_F32, 512, 1, dims[i][0]),
                                      tensor_of(k, LATTN_F32, 512, 1, dims[i][1]), NULL),
                   LATTN_OK);
    lattn_cache_stats stats = cache_stats(cache);
    int64_t whole = stats.full_bytes + stats.table_bytes;
    CHECK_I64(stats.token_bytes, ideal);
    CHECK(whole >= ideal && whole * 100 <= ideal * 103);
    CHECK((int64_t)arena.bytes * 100 <= ideal * 103);
    CHECK((int64_t)lattn_cache_bytes(&s.config) * 100 <= ideal * 103);
    CHECK(guard_free(&arena));
  }
  free(k);
}

/* ---- cancel ---- */

typedef struct stop_after {
  int64_t tokens, last_done;
  int32_t ok;
} stop_after;

static int32_t stop_progress(void *user, int64_t done, int64_t total) {
  stop_after *stop = (stop_after *)user;
  stop->ok &= done >= stop->last_done && done <= total;
  stop->last_done = done;
  return done >= stop->tokens;
}

/* Cancelled by progress, the cache holds exactly the tokens that are done; going on gives the
   bits of one call. */
static void cancel_at(setup *s, const rig *whole, int64_t n, int64_t tokens) {
  enum { MOST = 20 };
  stop_after stop = {tokens, 0, 1};
  int64_t done = -1;
  lattn_exec exec;
  lattn_status status = LATTN_CANCELLED;
  rig r;
  rig_open(&r, s, n, FROM_ALLOCATOR);
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.progress = stop_progress;
  exec.user = &stop;
  exec.tokens_done = &done;
  for (int i = 0; i < MOST && status == LATTN_CANCELLED && r.tokens.n < n; i++) {
    int64_t at = r.tokens.n, count = n - at;
    lattn_tensor out =
        tensor_of(r.out + at * r.heads * r.value_dim, LATTN_F32, count, r.heads, r.value_dim);
    stop.last_done = 0;
    status = lattn_cache_extend(r.cache, NULL, tokens_q(&whole->tokens, s, at, count),
                                tokens_k(&whole->tokens, s, at, count),
                                tokens_v(&whole->tokens, s, at, count), out, r.lse + at * r.heads,
                                &exec);
    CHECK(status == LATTN_OK || status == LATTN_CANCELLED);
    CHECK(done >= 0 && done <= count && (status != LATTN_OK || done == count));
    CHECK_I64(cache_stats(r.cache).n_tokens, at + done);
    CHECK(stop.ok);
    model_grow(&r, done, 0);
    CHECK(same_rows(whole, &r, 0, r.tokens.n));
    check_stats(&r);
    stop.tokens += 50;
  }
  CHECK(r.tokens.n == n || status == LATTN_CANCELLED);
  rig_close(&r);
}

static void test_cancel(void) {
  static const int64_t stops[] = {0, 1, 100, 128, 250, 699};
  enum { N = 700 };
  for (int kind = 0; kind < 2; kind++) {
    setup s;
    rig whole;
    test_rng rng = rng_seed(24);
    if (skips(1, kind)) continue;
    setup_init(&s, 4, 2, 8, 4, N);
    setup_rotate(&s, kind, 0, 8);
    setup_stream(&s, 1, 4, 60, 0, 0);
    s.config.max_append = 100;
    check_case("cancel, kind %d", kind);
    rig_open(&whole, &s, N, FROM_ARENA);
    tokens_make(&whole.tokens, N, &rng);
    extend_all(&whole, &whole.tokens, N, N);
    for (int i = 0; i < 6; i += test_is_quick() ? 2 : 1) {
      check_case("cancel after %d tokens, kind %d", (int)stops[i], kind);
      cancel_at(&s, &whole, N, stops[i]);
    }
    rig_close(&whole);
  }
}

/* ---- moving an arena ---- */

/* A pool whose pages are in its arena may be copied elsewhere (same address modulo 64); the
   caches are at the same offsets, and go on as if nothing had happened. The old place is filled
   with rubbish. */
static void test_move(void) {
  enum { N = 500, MORE = 200 };
  for (int from = 0; from < 64; from += test_is_quick() ? 63 : 21) {
    setup s;
    rig straight;
    test_rng rng = rng_seed(25);
    check_case("an arena moved, base %d", from);
    setup_init(&s, 4, 2, 8, 4, N + MORE);
    setup_rotate(&s, LATTN_ROTARY_INTERLEAVED, 0, 8);
    setup_stream(&s, 1, 4, 60, 0, 0);
    rig_open(&straight, &s, N + MORE, FROM_ARENA);
    tokens_make(&straight.tokens, N + MORE, &rng);
    extend_all(&straight, &straight.tokens, N + MORE, 90);
    size_t bytes = lattn_pool_bytes(NULL, &s.config, 1);
    char *a = (char *)aligned_alloc(64, (bytes + 191) / 64 * 64);
    char *b = (char *)aligned_alloc(64, (bytes + 191) / 64 * 64);
    rig r = straight; /* arrays of its own below; the model is shared */
    r.out = (float *)ref_memory((N + MORE) * r.heads * r.value_dim, sizeof(float));
    r.lse = (float *)ref_memory((N + MORE) * r.heads, sizeof(float));
    lattn_pool_config config;
    memset(&config, 0, sizeof config);
    config.size = sizeof config;
    CHECK_STATUS(lattn_pool_init(&r.pool, a + from, bytes, &config), LATTN_OK);
    r.cache = cache_new(r.pool, &s);
    r.tokens.n = 0;
    extend_all(&r, &straight.tokens, N, 90);
    token_list rest = straight.tokens;
    rest.q += N * rest.q_row;
    rest.k += N * rest.k_row;
    rest.v += N * rest.v_row;
    memcpy(b + from, a + from, bytes);
    r.cache = (lattn_cache *)(void *)(b + ((char *)r.cache - a));
    r.pool = (lattn_pool *)(void *)(b + ((char *)r.pool - a));
    memset(a, 0xff, bytes + 64);
    extend_all(&r, &rest, MORE, 17);
    CHECK(same_rows(&r, &straight, 0, N + MORE));
    CHECK_STATUS(lattn_cache_release(r.cache), LATTN_OK);
    CHECK_I64(pool_stats(r.pool).n_pages, 0);
    free(a);
    free(b);
    free(r.out);
    free(r.lse);
    rig_close(&straight);
  }
}

/* ---- allocators that fail, and pools that run out ---- */

static uint64_t newest_row(const rig *r, uint64_t hash) {
  float out[CACHE_HEADS * CACHE_DIMS], lse[CACHE_HEADS];
  int64_t n = r->tokens.n;
  lattn_tensor view = tensor_of(out, LATTN_F32, 1, r->heads, r->value_dim);
  if (!n) return hash;
  CHECK_STATUS(
      lattn_cache_attend(r->cache, NULL, tokens_q(&r->tokens, r->s, n - 1, 1), view, lse, NULL),
      LATTN_OK);
  return hash_f32(hash_tensor(hash, &view), lse, r->heads);
}

/* One step of the script: an extend, or an append, of n tokens behind the list's end. */
static lattn_status script_step(const rig *r, int extend, int64_t n, float *out, float *lse) {
  const token_list *t = &r->tokens;
  lattn_tensor to = tensor_of(out, LATTN_F32, n, r->heads, r->value_dim);
  if (extend)
    return lattn_cache_extend(r->cache, NULL, tokens_q(t, r->s, t->n, n),
                              tokens_k(t, r->s, t->n, n), tokens_v(t, r->s, t->n, n), to, lse,
                              NULL);
  return lattn_cache_append(r->cache, tokens_k(t, r->s, t->n, n), tokens_v(t, r->s, t->n, n), NULL);
}

/* Each call with an allocator that fails at the k-th page, for k = 1, 2, ... until it succeeds:
   FULL, nothing changed, nothing kept; then the same call again, whole. */
static void test_allocator_fails(void) {
  static const struct {
    int extend;
    int64_t n;
  } script[] = {{1, 1}, {1, 127}, {0, 100}, {1, 300}, {0, 1}, {1, 129}, {0, 200}, {1, 500}};
  enum { N = 1400, MOST = 500 };
  static float out[MOST * 4 * 4], lse[MOST * 4];
  setup s;
  rig r;
  test_rng rng = rng_seed(26);
  setup_init(&s, 4, 2, 8, 4, N);
  setup_rotate(&s, LATTN_ROTARY_INTERLEAVED, 0, 8);
  setup_stream(&s, 1, 130, 60, 0, 0);
  s.config.max_append = 200;
  check_case("an allocator that fails");
  rig_open(&r, &s, N, FROM_ALLOCATOR);
  for (int i = 0; i < 8; i++) {
    int64_t n = script[i].n, fails = 0;
    lattn_status status = LATTN_E_FULL;
    tokens_make(&r.tokens, n, &rng);
    for (int64_t k = 1; status == LATTN_E_FULL; k++) {
      check_case("an allocator that fails: step %d, call %d", i, (int)k);
      uint64_t before = newest_row(&r, cache_hash(&r)),
               arrays = hash_bytes(HASH_SEED, out, sizeof out);
      r.source.fail_at = r.source.n_calls + k;
      status = script_step(&r, script[i].extend, n, out, lse);
      r.source.fail_at = 0;
      if (status == LATTN_OK) break;
      fails++;
      CHECK_STATUS(status, LATTN_E_FULL);
      CHECK(newest_row(&r, cache_hash(&r)) == before);
      CHECK(hash_bytes(HASH_SEED, out, sizeof out) == arrays);
      if (fails > 100) break;
    }
    model_grow(&r, n, script[i].extend ? 0 : n);
    check_stats(&r);
    if (script[i].extend) {
      memcpy(r.out + (r.tokens.n - n) * 16, out, (size_t)(n * 16) * sizeof(float));
      memcpy(r.lse + (r.tokens.n - n) * 4, lse, (size_t)(n * 4) * sizeof(float));
      memset(r.done + r.tokens.n - n, 1, (size_t)n);
    }
  }
  check_case("an allocator that fails: the bits at the end");
  check_one_call(&r, FROM_ARENA, &rng);
  rig_close(&r);
}

/* Two caches share an arena that holds one and a half: FULL for one leaves both as they were;
   what the other gives back is enough. */
static void test_pool_runs_out(void) {
  enum { N = 600 };
  static float out[N * 4 * 4];
  setup s, half;
  test_guard arena;
  test_rng rng = rng_seed(27);
  lattn_tensor to = tensor_of(out, LATTN_F32, N, 4, 4);
  check_case("a pool that runs out");
  setup_init(&half, 4, 2, 8, 4, 3 * N / 2);
  setup_init(&s, 4, 2, 8, 4, N);
  lattn_pool *pool = pool_new(&arena, &half, 1, NULL);
  lattn_cache *a = cache_new(pool, &s), *b = cache_new(pool, &s);
  token_list t = tokens_new(&s, N);
  tokens_make(&t, N, &rng);
  CHECK_STATUS(lattn_cache_extend(a, NULL, tokens_q(&t, &s, 0, N), tokens_k(&t, &s, 0, N),
                                  tokens_v(&t, &s, 0, N), to, NULL, NULL),
               LATTN_OK);
  uint64_t whole = hash_tensor(HASH_SEED, &to),
           before = hash_bytes(HASH_SEED, arena.data, arena.bytes);
  CHECK_STATUS(lattn_cache_extend(b, NULL, tokens_q(&t, &s, 0, N), tokens_k(&t, &s, 0, N),
                                  tokens_v(&t, &s, 0, N), to, NULL, NULL),
               LATTN_E_FULL);
  CHECK(hash_bytes(HASH_SEED, arena.data, arena.bytes) == before);
  CHECK(hash_tensor(HASH_SEED, &to) == whole);
  CHECK_STATUS(lattn_cache_release(a), LATTN_OK);
  memset(out, 0, sizeof out);
  CHECK_STATUS(lattn_cache_extend(b, NULL, tokens_q(&t, &s, 0, N), tokens_k(&t, &s, 0, N),
                                  tokens_v(&t, &s, 0, N), to, NULL, NULL),
               LATTN_OK);
  CHECK(hash_tensor(HASH_SEED, &to) == whole);
  tokens_free(&t);
  CHECK(guard_free(&arena));
}

/* ---- several caches in one pool ---- */

enum { SHARED = 4, SHARED_TOKENS = 260 };

static void shared_setup(setup *s, int i) {
  setup_init(s, 2, 2, 4 + 3 * i, i == 2 ? 0 : 5, SHARED_TOKENS);
  if (i) setup_stream(s, 1, 2 * i, 20 * i, i, 0);
  if (i % 2) setup_rotate(s, LATTN_ROTARY_INTERLEAVED, 0, 4);
  s->config.key_type = i == 3 ? LATTN_F16 : LATTN_F32;
  s->config.max_append = 64;
}

/* Four configurations in one arena, extended in turns, released and made again in any order:
   each has the bits that it has alone, and the pool ends as it began, every time. */
static void test_shared_pool(void) {
  setup s[SHARED];
  rig alone[SHARED];
  size_t bytes = 0;
  lattn_pool *pool = NULL;
  lattn_pool_config config;
  test_rng rng = rng_seed(28);
  check_case("several caches in one pool");
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  for (int i = 0; i < SHARED; i++) {
    shared_setup(&s[i], i);
    rig_open(&alone[i], &s[i], SHARED_TOKENS, FROM_ALLOCATOR);
    tokens_make(&alone[i].tokens, SHARED_TOKENS, &rng);
    extend_all(&alone[i], &alone[i].tokens, SHARED_TOKENS, 50);
    bytes += lattn_pool_bytes(&config, &s[i].config, 1);
  }
  test_guard arena = guard_alloc(bytes, 0);
  memset(arena.data, 0xff, bytes);
  CHECK_STATUS(lattn_pool_init(&pool, arena.data, bytes, &config), LATTN_OK);
  for (int round = 0; round < 12; round++) {
    rig r[SHARED];
    check_case("several caches in one pool: round %d", round);
    for (int i = 0; i < SHARED; i++) {
      r[i] = alone[i];
      r[i].out = (float *)ref_memory(SHARED_TOKENS * r[i].heads * r[i].value_dim, sizeof(float));
      r[i].lse = (float *)ref_memory(SHARED_TOKENS * r[i].heads, sizeof(float));
      r[i].cache = cache_new(pool, &s[i]);
      r[i].tokens.n = 0;
    }
    CHECK_I64(pool_stats(pool).n_caches, SHARED);
    for (int left = SHARED; left;) {
      int i = (int)rng_below(&rng, SHARED);
      int64_t n = rng_range(&rng, 1, 70), room = SHARED_TOKENS - r[i].tokens.n;
      if (!r[i].out) continue;
      token_list rest = alone[i].tokens;
      rest.q += r[i].tokens.n * rest.q_row;
      rest.k += r[i].tokens.n * rest.k_row;
      rest.v += r[i].tokens.n * rest.v_row;
      extend_all(&r[i], &rest, n < room ? n : room, 70);
      if (r[i].tokens.n < SHARED_TOKENS) continue;
      CHECK(same_rows(&r[i], &alone[i], 0, SHARED_TOKENS));
      CHECK_STATUS(lattn_cache_release(r[i].cache), LATTN_OK);
      free(r[i].out);
      free(r[i].lse);
      r[i].out = NULL;
      left--;
    }
    CHECK_I64(pool_stats(pool).n_caches, 0);
    CHECK_I64(pool_stats(pool).n_pages, 0);
  }
  for (int i = 0; i < SHARED; i++) rig_close(&alone[i]);
  CHECK(guard_free(&arena));
}

/* ---- partials, and out in q's place ---- */

/* attend with a partial, merged: the bits of attend, with the learned sink counted once. */
static void test_partial(void) {
  enum { N = 2200, ROWS = 5 };
  static float out[ROWS * 16], again[ROWS * 16], lse[ROWS * 4], lse_again[ROWS * 4];
  static float maximum[ROWS * 4], sum[ROWS * 4], output[ROWS * 16];
  setup s;
  rig r;
  lattn_call call;
  lattn_merge_options options;
  lattn_partial partial;
  test_rng rng = rng_seed(29);
  check_case("the partial of an attend, merged");
  setup_init(&s, 4, 2, 8, 4, N);
  setup_rotate(&s, LATTN_ROTARY_INTERLEAVED, 0, 8);
  setup_stream(&s, 1, 4, 60, 0, 0);
  setup_sinks(&s);
  rig_open(&r, &s, N, FROM_ARENA);
  tokens_make(&r.tokens, N, &rng);
  for (int64_t i = 0; i < N; i += 440)
    CHECK_STATUS(lattn_cache_append(r.cache, tokens_k(&r.tokens, &s, i, 440),
                                    tokens_v(&r.tokens, &s, i, 440), NULL),
                 LATTN_OK);
  memset(&call, 0, sizeof call);
  memset(&partial, 0, sizeof partial);
  memset(&options, 0, sizeof options);
  call.size = sizeof call;
  call.partial = &partial;
  partial.size = sizeof partial;
  partial.n_rows = ROWS * 4, partial.value_dim = 4;
  partial.maximum = maximum, partial.sum = sum, partial.output = output;
  options.size = sizeof options;
  options.sink_logits = s.sinks;
  CHECK_STATUS(lattn_cache_attend(r.cache, &call, tokens_q(&r.tokens, &s, N - ROWS, ROWS),
                                  tensor_of(out, LATTN_F32, ROWS, 4, 4), lse, NULL),
               LATTN_OK);
  CHECK_I64(partial.first_segment, 0);
  CHECK_I64(partial.n_segments, 2);
  CHECK_STATUS(
      lattn_merge(&options, 1, &partial, tensor_of(again, LATTN_F32, ROWS, 4, 4), lse_again, NULL),
      LATTN_OK);
  CHECK(!memcmp(out, again, sizeof out) && !memcmp(lse, lse_again, sizeof lse));
  rig_close(&r);
}

/* out may be q's own array; an odd cut, so that inner steps follow each other in it. */
static void test_in_place(void) {
  enum { N = 300 };
  setup s;
  rig r, apart;
  test_rng rng = rng_seed(30);
  check_case("out in q's place");
  setup_init(&s, 4, 2, 8, 8, N);
  setup_rotate(&s, LATTN_ROTARY_HALF_SPLIT, 0, 8);
  setup_stream(&s, 1, 4, 60, 0, 0);
  s.config.max_append = 33;
  rig_open(&r, &s, N, FROM_ARENA);
  rig_open(&apart, &s, N, FROM_ARENA);
  tokens_make(&apart.tokens, N, &rng);
  extend_all(&apart, &apart.tokens, N, N);
  memcpy(r.out, apart.tokens.q, (size_t)(N * 32) * sizeof(float));
  lattn_tensor q = tensor_of(r.out, LATTN_F32, N, 4, 8);
  CHECK_STATUS(lattn_cache_extend(r.cache, NULL, q, tokens_k(&apart.tokens, &s, 0, N),
                                  tokens_v(&apart.tokens, &s, 0, N), q, r.lse, NULL),
               LATTN_OK);
  CHECK(same_rows(&r, &apart, 0, N));
  r.tokens.n = N;
  rig_close(&r);
  rig_close(&apart);
}

int main(void) {
  printf("cache: simd %s\n", lattn_simd_name());
  test_lengths();
  test_short_is_full();
  test_absolute_mode();
  test_sigmoid();
  test_single_key();
  test_cuts();
  test_alibi_weight();
  test_constant_memory();
  test_truncate();
  test_sink_area();
  test_evicted_nan();
  test_mixed_alone();
  test_full_bytes();
  test_cancel();
  test_move();
  test_allocator_fails();
  test_pool_runs_out();
  test_shared_pool();
  test_partial();
  test_in_place();
  test_streaming_llm();
  test_random();
  return test_summary();
}
