/* engine.c - what inference engines build on a cache: forks, checkpoints and rollback, slack, draft
 * trees, batches, removed ranges, reading back, fitting, endless streams. Directed cases, each
 * against the float64 reference or bit for bit against another route to the same tokens.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A token has a number, its row of q, k and v in the world's library. What a cache holds is a line:
   a list of such numbers. Two caches of one line must agree in every bit that can be asked for:
   that is check_equals, and most of the cases are ways to come to one. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

/* ---- a world: a configuration, tokens by number, a pool ---- */

/* Must lie still while open: its setup points into itself. */
typedef struct world {
  setup s;
  token_list library; /* token `number` is its row of that number */
  test_guard arena;
  lattn_pool *pool;
  int64_t heads, value_dim;
} world;

/* A sequence, as numbers of tokens. */
enum { LINE_MOST = 70000 };
typedef struct line {
  int32_t tokens[LINE_MOST];
  int64_t n;
  int truncated; /* since it was empty: streaming heads may hold less than one that never was */
} line;

static void line_clear(line *l) { l->n = l->truncated = 0; }

static void line_remove(line *l, int64_t from, int64_t to) {
  memmove(l->tokens + from, l->tokens + to, (size_t)(l->n - to) * sizeof *l->tokens);
  l->n -= to - from;
}

static int64_t pages(const world *w) { return pool_stats(w->pool).n_pages; }

static lattn_checkpoint_stats checkpoint_stats(const lattn_checkpoint *checkpoint) {
  lattn_checkpoint_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_checkpoint_stats_get(checkpoint, &stats), LATTN_OK);
  return stats;
}

/* A pool of that many bytes, full of NaN, between guard pages. */
static lattn_pool *pool_of(test_guard *arena, size_t bytes) {
  lattn_pool *pool = NULL;
  *arena = guard_alloc(bytes, 1);
  memset(arena->data, 0xff, bytes);
  if (!CHECK_STATUS(lattn_pool_init(&pool, arena->data, bytes, NULL), LATTN_OK))
    exit(test_summary());
  return pool;
}

static lattn_cache *cache_of(lattn_pool *pool, const setup *s) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, pool, &s->config), LATTN_OK)) {
    printf("    at %s\n", s->fault.argument ? s->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

/* After w->s is filled: a library of that many tokens, a pool for that many caches. */
static void world_open(world *w, int64_t tokens, int64_t caches, uint64_t seed) {
  test_rng rng = rng_seed(seed);
  w->heads = setup_heads(&w->s);
  w->value_dim = setup_value_dim(&w->s);
  w->library = tokens_new(&w->s, tokens);
  tokens_make(&w->library, tokens, &rng);
  w->pool = pool_of(&w->arena, lattn_pool_bytes(NULL, &w->s.config, caches));
}

/* All caches and checkpoints are released: no page, no count may be left. */
static void world_close(world *w) {
  lattn_pool_stats stats = pool_stats(w->pool);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_checkpoints, 0);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.n_shared, 0);
  CHECK_I64(stats.page_bytes, 0);
  CHECK(guard_free(&w->arena));
  tokens_free(&w->library);
}

/* A caller's allocator that may be short of pages. */
typedef struct page_budget {
  int64_t left, out;
} page_budget;

static void *budget_alloc(void *user, size_t bytes, size_t alignment) {
  page_budget *budget = (page_budget *)user;
  if (budget->left <= 0) return NULL;
  budget->left--, budget->out++;
  void *page = aligned_alloc(alignment, (bytes + 63) / 64 * 64);
  memset(page, 0xff, bytes); /* NaN in every type */
  return page;
}

static void budget_free(void *user, void *page, size_t bytes) {
  page_budget *budget = (page_budget *)user;
  budget->left++, budget->out--;
  memset(page, 0xff, bytes);
  free(page);
}

/* A world whose pages come from the budget. */
static void world_open_budget(world *w, int64_t tokens, int64_t caches, uint64_t seed,
                              page_budget *budget) {
  lattn_pool_config config;
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  config.alloc = budget_alloc, config.free = budget_free, config.user = budget;
  world_open(w, tokens, caches, seed);
  memset(w->arena.data, 0xff, w->arena.bytes);
  if (!CHECK_STATUS(lattn_pool_init(&w->pool, w->arena.data, w->arena.bytes, &config), LATTN_OK))
    exit(test_summary());
}

static void release(lattn_cache *cache) { CHECK_STATUS(lattn_cache_release(cache), LATTN_OK); }

static void drop(lattn_checkpoint *checkpoint) {
  CHECK_STATUS(lattn_checkpoint_release(checkpoint), LATTN_OK);
}

static lattn_cache *fork_of(const lattn_cache *parent) {
  lattn_cache *fork = NULL;
  if (!CHECK_STATUS(lattn_cache_fork(&fork, parent), LATTN_OK)) exit(test_summary());
  return fork;
}

static lattn_checkpoint *checkpoint_of(const lattn_cache *cache) {
  lattn_checkpoint *checkpoint = NULL;
  if (!CHECK_STATUS(lattn_cache_checkpoint(&checkpoint, cache), LATTN_OK)) exit(test_summary());
  return checkpoint;
}

/* Bytes of a page of this setup, as a pool counts them. */
static int64_t bytes_of_page(const world *w) {
  lattn_pool_stats stats = pool_stats(w->pool);
  return stats.n_pages ? stats.page_bytes / stats.n_pages : 0;
}

/* ---- a way to run a call: threads and scratch ---- */

enum { RUN_NULL, RUN_NO_SCRATCH, RUN_1, RUN_2, RUN_THREADS, RUN_KINDS };

typedef struct runner {
  lattn_exec exec;
  lattn_fault fault;
  test_guard scratch;
} runner;

/* n_sequences = 0: a call on one cache. Scratch is of exactly the size that the library names. */
static const lattn_exec *runner_open(runner *r, const lattn_cache_config *config,
                                     int64_t n_sequences, int64_t n_rows, int kind) {
  size_t bytes;
  memset(r, 0, sizeof *r);
  if (kind == RUN_NULL) return NULL;
  r->exec.size = sizeof r->exec;
  r->exec.fault = &r->fault;
  r->exec.n_threads = kind == RUN_THREADS ? 3 : kind == RUN_2 ? 2 : 1;
  if (kind == RUN_2) r->exec.parallel_for = test_parallel_scrambled;
  if (kind == RUN_THREADS) r->exec.parallel_for = test_parallel_threads;
  if (kind == RUN_NO_SCRATCH) return &r->exec;
  if (n_rows == 0) n_rows = 1; /* none need none, but that is what 0 is for */
  bytes = n_sequences ? lattn_batch_scratch(config, n_sequences, n_rows, r->exec.n_threads)
                      : lattn_cache_scratch(config, n_rows, r->exec.n_threads);
  CHECK(bytes > 0);
  r->scratch = guard_alloc(bytes, 1);
  r->exec.scratch = r->scratch.data;
  r->exec.scratch_bytes = bytes;
  return &r->exec;
}

static void runner_close(runner *r) {
  if (r->scratch.map) CHECK(guard_free(&r->scratch));
}

/* ---- rows of a call ---- */

typedef struct call_rows {
  lattn_tensor q, k, v, out;
  float *lse, *low;
  int64_t n;
} call_rows;

/* Views of rows first ... first + n - 1. */
static call_rows rows_part(const call_rows *r, int64_t first, int64_t n) {
  call_rows part = *r;
  part.q.data = (const float *)r->q.data + first * r->q.n_heads * r->q.dim;
  part.k.data = (const float *)r->k.data + first * r->k.n_heads * r->k.dim;
  part.v.data = (const float *)r->v.data + first * r->v.n_heads * r->v.dim;
  part.out.data = (const float *)r->out.data + first * r->out.n_heads * r->out.dim;
  part.lse = r->lse + first * r->q.n_heads;
  part.low = r->low + first * r->q.n_heads;
  part.q.n_tokens = part.k.n_tokens = part.v.n_tokens = part.out.n_tokens = part.n = n;
  return part;
}

static float *rows_copy(const float *library, int64_t row, const int32_t *tokens, int64_t n) {
  float *to = (float *)ref_memory(n * row, sizeof *to);
  for (int64_t i = 0; i < n; i++)
    memcpy(to + i * row, library + tokens[i] * row, (size_t)row * sizeof *to);
  return to;
}

/* q, k and v of these tokens, one after another; outputs hold a number that no call would give. */
static call_rows rows_new(const world *w, const int32_t *tokens, int64_t n) {
  const token_list *t = &w->library;
  call_rows r;
  int64_t size = n * w->heads * w->value_dim;
  float *out = (float *)ref_memory(size, sizeof *out);
  r.n = n;
  r.q = tokens_q(t, &w->s, 0, n), r.k = tokens_k(t, &w->s, 0, n), r.v = tokens_v(t, &w->s, 0, n);
  r.q.data = rows_copy(t->q, t->q_row, tokens, n);
  r.k.data = rows_copy(t->k, t->k_row, tokens, n);
  r.v.data = rows_copy(t->v, t->v_row, tokens, n);
  r.out = tensor_of(out, LATTN_F32, n, w->heads, w->value_dim);
  r.lse = (float *)ref_memory(n * w->heads, sizeof *r.lse);
  r.low = (float *)ref_memory(n * w->heads, sizeof *r.low);
  for (int64_t i = 0; i < size; i++) out[i] = 12345;
  for (int64_t i = 0; i < n * w->heads; i++) r.lse[i] = r.low[i] = 12345;
  return r;
}

static void rows_free(call_rows *r) {
  free(test_writable(r->q.data));
  free(test_writable(r->k.data));
  free(test_writable(r->v.data));
  free(test_writable(r->out.data));
  free(r->lse);
  free(r->low);
}

/* The same bits in `n` rows, from row a0 of a and row b0 of b. NaNs are one. */
static int same_rows(const call_rows *a, int64_t a0, const call_rows *b, int64_t b0, int64_t n) {
  int64_t heads = a->out.n_heads, row = heads * a->out.dim;
  const float *x = (const float *)a->out.data + a0 * row;
  const float *y = (const float *)b->out.data + b0 * row;
  int same = 1;
  for (int64_t i = 0; i < n * row; i++) same &= same_f32(x[i], y[i]);
  for (int64_t i = 0; i < n * heads; i++) {
    same &= same_f32(a->lse[a0 * heads + i], b->lse[b0 * heads + i]);
    same &= same_f32(a->low[a0 * heads + i], b->low[b0 * heads + i]);
  }
  return same;
}

/* ---- what a call may bring besides its rows ---- */

/* Made for the rows of a whole batch; the call of some of them gets its part. So a row has the same
   bias, gate and score callback in every call that it is in. */
typedef struct extras {
  lattn_tensor key_bias, pair_bias, gate; /* data NULL = none */
  int64_t n_keys;
  int scored, low;
} extras;

/* Where the rows of a call begin in the batch: the callback counts from there. */
typedef struct batch_place {
  int64_t sequence, row;
} batch_place;

typedef struct call_of {
  lattn_call call;
  lattn_tensor key_bias, pair_bias, gate;
  batch_place place;
} call_of;

/* Of row, sequence, position and head; a multiple of a quarter, so that the float is exact. */
static double tilt(int64_t sequence, int64_t row, int64_t query, int32_t head, int64_t key) {
  return 0.25 * (double)((key * 7 + query * 3 + head + row * 5 + sequence * 11) % 5);
}

static void score_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t first_key, float scores[16]) {
  const batch_place *at = (const batch_place *)user;
  for (int t = 0; t < 16; t++)
    if (first_key + t >= 0)
      scores[t] += (float)tilt(at->sequence + sequence, at->row + row, query, head, first_key + t);
}

static float *random_floats(int64_t n, test_rng *rng) {
  float *x = (float *)ref_memory(n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = rng_normal(rng);
  return x;
}

/* Each with a chance of `percent`. */
static void extras_open(extras *e, const world *w, int64_t sequences, int64_t rows, int64_t n_keys,
                        int percent, test_rng *rng) {
  int64_t heads;
  memset(e, 0, sizeof *e);
  e->n_keys = n_keys;
  heads = rng_chance(rng, 50) ? 1 : w->heads;
  if (rng_chance(rng, percent))
    e->key_bias = tensor_of(random_floats(sequences * heads * n_keys, rng), LATTN_F32,
                            rng_chance(rng, 30) ? 1 : sequences, heads, n_keys);
  heads = rng_chance(rng, 50) ? 1 : w->heads;
  if (rng_chance(rng, percent) && rows * heads * n_keys < 1 << 21)
    e->pair_bias =
        tensor_of(random_floats(rows * heads * n_keys, rng), LATTN_F32, rows, heads, n_keys);
  heads = rng_chance(rng, 50) ? 1 : w->heads;
  int64_t dim = rng_chance(rng, 50) ? 1 : w->value_dim;
  if (rng_chance(rng, percent))
    e->gate = tensor_of(random_floats(rows * heads * dim, rng), LATTN_F32, rows, heads, dim);
  e->scored = rng_chance(rng, percent);
  e->low = rng_chance(rng, 2 * percent);
}

static void extras_close(extras *e) {
  free(test_writable(e->key_bias.data));
  free(test_writable(e->pair_bias.data));
  free(test_writable(e->gate.data));
}

/* Without those that belong to rows: what the float64 reference of a line is told. */
static void extras_by_position(extras *e) {
  free(test_writable(e->pair_bias.data));
  free(test_writable(e->gate.data));
  e->pair_bias.data = e->gate.data = NULL;
}

static lattn_tensor tensor_part(const lattn_tensor *t, int64_t first, int64_t n) {
  lattn_tensor part = *t;
  part.data = (const float *)t->data + first * t->n_heads * t->dim;
  part.n_tokens = n;
  return part;
}

/* The call of rows first ... of the batch, in sequences sequence ... sequence + n_sequences - 1.
   e NULL: a call without anything. */
static const lattn_call *call_part(call_of *c, const extras *e, int64_t sequence,
                                   int64_t n_sequences, int64_t first, int64_t n, float *low) {
  memset(c, 0, sizeof *c);
  c->call.size = sizeof c->call;
  c->place.sequence = sequence;
  c->place.row = first;
  if (!e) return &c->call;
  if (e->key_bias.data) {
    c->key_bias = e->key_bias;
    if (e->key_bias.n_tokens > 1) c->key_bias = tensor_part(&e->key_bias, sequence, n_sequences);
    c->call.key_bias = &c->key_bias;
  }
  if (e->pair_bias.data) {
    c->pair_bias = tensor_part(&e->pair_bias, first, n);
    c->call.pair_bias = &c->pair_bias;
  }
  if (e->gate.data) {
    c->gate = tensor_part(&e->gate, first, n);
    c->call.gate = &c->gate;
  }
  if (e->scored) {
    c->call.score = score_tilt;
    c->call.score_user = &c->place;
  }
  if (e->low) c->call.lse_low = low;
  return &c->call;
}

/* ---- the calls themselves ---- */

/* Rows first ... first + n - 1 of r, row `first` of the batch that e was made for. */
static lattn_status extend_rows(const world *w, lattn_cache *cache, const extras *e,
                                int64_t sequence, const call_rows *r, int64_t first, int64_t n,
                                int run) {
  runner u;
  call_of c;
  call_rows part = rows_part(r, first, n);
  const lattn_exec *exec = runner_open(&u, &w->s.config, 0, n, run);
  const lattn_call *call = call_part(&c, e, sequence, 1, first, n, part.low);
  lattn_status status =
      lattn_cache_extend(cache, call, part.q, part.k, part.v, part.out, part.lse, exec);
  runner_close(&u);
  return status;
}

static lattn_status attend_rows(const world *w, const lattn_cache *cache, const extras *e,
                                int64_t sequence, const call_rows *r, int64_t first, int64_t n,
                                int run) {
  runner u;
  call_of c;
  call_rows part = rows_part(r, first, n);
  const lattn_exec *exec = runner_open(&u, &w->s.config, 0, n, run);
  const lattn_call *call = call_part(&c, e, sequence, 1, first, n, part.low);
  lattn_status status = lattn_cache_attend(cache, call, part.q, part.out, part.lse, exec);
  runner_close(&u);
  return status;
}

/* Extends by these tokens, nothing else asked for; the line grows with the cache. */
static void extend_tokens(const world *w, lattn_cache *cache, line *l, const int32_t *tokens,
                          int64_t n) {
  call_rows r = rows_new(w, tokens, n);
  CHECK_STATUS(extend_rows(w, cache, NULL, 0, &r, 0, n, n < 16 ? RUN_NULL : RUN_1), LATTN_OK);
  rows_free(&r);
  if (l) memcpy(l->tokens + l->n, tokens, (size_t)n * sizeof *tokens);
  if (l) l->n += n;
}

/* Extends cache and line by n tokens of the library, by chance. */
static void grow(const world *w, lattn_cache *cache, line *l, int64_t n, test_rng *rng) {
  int32_t *tokens = (int32_t *)ref_memory(n, sizeof *tokens);
  for (int64_t i = 0; i < n; i++) tokens[i] = (int32_t)rng_below(rng, w->library.capacity);
  extend_tokens(w, cache, l, tokens, n);
  free(tokens);
}

/* The same, without attention: fast, for long prefixes. */
static void grow_unseen(const world *w, lattn_cache *cache, line *l, int64_t n, test_rng *rng) {
  int64_t most = setup_max_append(&w->s);
  for (int64_t at = 0, count; at < n; at += count) {
    count = n - at < most ? n - at : most;
    for (int64_t i = 0; i < count; i++)
      l->tokens[l->n + i] = (int32_t)rng_below(rng, w->library.capacity);
    call_rows r = rows_new(w, l->tokens + l->n, count);
    CHECK_STATUS(lattn_cache_append(cache, r.k, r.v, NULL), LATTN_OK);
    rows_free(&r);
    l->n += count;
  }
  grow(w, cache, l, 0, rng); /* trims what streaming heads hold beyond their window */
}

static int32_t hash_write(void *user, const void *data, size_t bytes) {
  uint64_t *hash = (uint64_t *)user;
  *hash = hash_bytes(*hash, data, bytes);
  return 0;
}

/* The hash of what lattn_cache_save writes. */
static uint64_t saved(const lattn_cache *cache) {
  uint64_t hash = HASH_SEED;
  CHECK_STATUS(lattn_cache_save(cache, hash_write, &hash, NULL), LATTN_OK);
  return hash;
}

/* Saved bytes and what can be seen from outside: an error must not change it. */
static uint64_t state_of(const lattn_cache *cache) {
  lattn_cache_stats stats = cache_stats(cache);
  uint64_t hash = saved(cache);
  hash = hash_bytes(hash, &stats.n_tokens, sizeof stats.n_tokens);
  hash = hash_bytes(hash, &stats.token_bytes, sizeof stats.token_bytes);
  return hash_bytes(hash, &stats.n_holes, sizeof stats.n_holes);
}

/* How many of the newest rows, up to `most`, have their whole windows held. As many as the slack,
   unless something was truncated or removed: then only the next token's window must be. */
static int64_t attendable(const world *w, const lattn_cache *cache, int64_t most) {
  int64_t n = cache_stats(cache).n_tokens, rows = n < most ? n : most;
  for (int64_t g = 0; g < w->s.config.n_kv_heads; g++) {
    lattn_cache_head_stats stats = head_stats(cache, g);
    int64_t window = w->s.heads[g].window;
    if (w->s.heads[g].policy != LATTN_HEAD_STREAMING) continue;
    while (rows > 0) {
      int64_t begin = n - rows - window + 1;
      if (begin < stats.n_sink_tokens) begin = stats.n_sink_tokens;
      if (begin >= stats.first_token) break;
      rows--;
    }
  }
  return rows;
}

static int holds_newest(const world *w, const lattn_cache *cache) {
  return attendable(w, cache, 1) == 1;
}

/* The least slack of the streaming heads, at most `most`. */
static int64_t least_slack(const world *w, int64_t most) {
  for (int64_t g = 0; g < w->s.config.n_kv_heads; g++)
    if (w->s.heads[g].policy == LATTN_HEAD_STREAMING && w->s.heads[g].slack < most)
      most = w->s.heads[g].slack;
  return most;
}

/* The cache is, bit for bit, one that was only ever given this line: its newest rows, what it saves
   (unless it was truncated: it then holds less, perhaps not even the newest row's window), and its
   future. Needs room for two more. */
static void check_equals_as(const world *w, const lattn_cache *cache, const line *l, int saves,
                            test_rng *rng) {
  lattn_cache *fresh = cache_of(w->pool, &w->s), *fork = fork_of(cache);
  int64_t n = l->n, seen = attendable(w, cache, 5), more = rng_range(rng, 1, 3);
  call_rows all = rows_new(w, l->tokens, n), newest = rows_new(w, l->tokens + n - seen, seen);
  int32_t next[3];
  CHECK_I64(cache_stats(cache).n_tokens, n);
  if (saves) CHECK(seen >= least_slack(w, n < 5 ? n : 5));
  CHECK_STATUS(extend_rows(w, fresh, NULL, 0, &all, 0, n, RUN_1), LATTN_OK);
  if (saves) CHECK(saved(cache) == saved(fresh));
  if (CHECK_STATUS(attend_rows(w, cache, NULL, 0, &newest, 0, seen, (int)rng_below(rng, RUN_KINDS)),
                   LATTN_OK))
    CHECK(same_rows(&newest, 0, &all, n - seen, seen));
  for (int64_t i = 0; i < more; i++) next[i] = (int32_t)rng_below(rng, w->library.capacity);
  call_rows a = rows_new(w, next, more), b = rows_new(w, next, more);
  CHECK_STATUS(extend_rows(w, fresh, NULL, 0, &a, 0, more, RUN_1), LATTN_OK);
  if (CHECK_STATUS(extend_rows(w, fork, NULL, 0, &b, 0, more, (int)rng_below(rng, RUN_KINDS)),
                   LATTN_OK))
    CHECK(same_rows(&a, 0, &b, 0, more));
  if (saves) CHECK(saved(fork) == saved(fresh));
  release(fresh);
  release(fork);
  rows_free(&all), rows_free(&newest), rows_free(&a), rows_free(&b);
}

static void check_equals(const world *w, const lattn_cache *cache, const line *l, test_rng *rng) {
  int streams = 0;
  for (int64_t g = 0; g < w->s.config.n_kv_heads; g++)
    streams |= w->s.heads[g].policy == LATTN_HEAD_STREAMING;
  check_equals_as(w, cache, l, !(l->truncated && streams), rng);
}

/* ---- setups by chance ---- */

#define PICK(rng, list) ((list)[rng_below(rng, (int64_t)(sizeof(list) / sizeof *(list)))])

/* Heads of any mix of policies. slack: the most; full_only: no streaming ones. */
static void random_heads(setup *s, int64_t slack, test_rng *rng) {
  static const int64_t sinks[] = {0, 1, 4, 4, 17, 130};
  static const int64_t windows[] = {2, 3, 16, 60, 127, 128, 129, 200};
  int has_positions = s->config.rotary || s->config.alibi_slopes;
  memset(s->heads, 0, sizeof s->heads);
  for (int32_t g = 0; g < s->config.n_kv_heads; g++)
    if (rng_chance(rng, 55))
      setup_stream(s, g, PICK(rng, sinks), PICK(rng, windows), rng_range(rng, 0, slack),
                   (int32_t)rng_below(rng, has_positions ? 3 : 2));
}

/* Everything that a config can say but its heads. */
static void random_config(setup *s, int64_t capacity, test_rng *rng) {
  static const int32_t key_dims[] = {4, 6, 8, 16, 17}, value_dims[] = {1, 4, 5, 8, 17};
  static const int64_t appends[] = {16, 60, 200, 0};
  int32_t kv_heads = (int32_t)rng_range(rng, 1, 3), group = (int32_t)rng_range(rng, 1, 2);
  setup_init(s, kv_heads * group, kv_heads, PICK(rng, key_dims), PICK(rng, value_dims), capacity);
  s->config.key_type = (int32_t)rng_below(rng, 4); /* 0 and 1 are both float32 */
  s->config.value_type = (int32_t)rng_below(rng, 4);
  s->config.max_append = PICK(rng, appends);
  if (rng_chance(rng, 60))
    setup_rotate(s, (int32_t)rng_below(rng, 2), rng_chance(rng, 30) ? 2 : 0,
                 rng_chance(rng, 50) ? 2 : 4 - 2 * (s->config.key_dim < 6));
  if (rng_chance(rng, 25)) setup_alibi(s);
  if (rng_chance(rng, 25)) setup_sinks(s);
  if (rng_chance(rng, 20)) s->config.softcap = 3;
  if (rng_chance(rng, 20)) s->config.scale = -0.5f;
  if (rng_chance(rng, 20)) setup_sigmoid(s, -1.5f);
}

/* Two KV heads of one query head each: full, and streaming of that window; interleaved rotary. */
static void plain_setup(setup *s, int64_t capacity, int64_t sinks, int64_t window, int64_t slack) {
  setup_init(s, 2, 2, 6, 5, capacity);
  setup_rotate(s, LATTN_ROTARY_INTERLEAVED, 0, 4);
  if (window) setup_stream(s, 1, sinks, window, slack, 0);
}

/* ---- forks ---- */

/* Pages are shared until somebody writes into the newest one, which alone is copied; the last
   holder of it writes in place. */
static void fork_pages(int64_t n) {
  enum { FORKS = 20, HEADS = 2 };
  world w;
  test_rng rng = rng_seed(31);
  lattn_cache *forks[FORKS], *parent;
  line *lines = (line *)ref_memory(FORKS + 1, sizeof *lines);
  int64_t held, copied = n % REF_BLOCK ? FORKS : FORKS + 1; /* the last holder need not copy */
  check_case("fork: pages of 20 forks of %" PRId64 " tokens", n);
  plain_setup(&w.s, 400, 4, 100, 0);
  world_open(&w, 500, FORKS + 4, 31);
  parent = cache_of(w.pool, &w.s);
  grow(&w, parent, &lines[FORKS], n, &rng);
  held = pages(&w);
  for (int i = 0; i < FORKS; i++) forks[i] = fork_of(parent), lines[i] = lines[FORKS];
  lattn_cache_stats stats = cache_stats(forks[3]);
  CHECK_I64(pages(&w), held);
  CHECK_I64(pool_stats(w.pool).n_shared, held);
  CHECK_I64(pool_stats(w.pool).n_caches, FORKS + 1);
  CHECK_I64(stats.shared_bytes, stats.full_bytes + stats.streaming_bytes);
  CHECK_I64(stats.n_tokens, n);
  grow(&w, forks[0], &lines[0], 1, &rng);
  CHECK_I64(pages(&w), held + HEADS);
  grow(&w, forks[0], &lines[0], 5, &rng);
  CHECK_I64(pages(&w), held + HEADS);
  CHECK_I64(pool_stats(w.pool).n_shared, held);
  CHECK_I64(cache_stats(forks[0]).shared_bytes,
            (pages(&w) - 2 * HEADS + (n % REF_BLOCK == 0) * HEADS) * bytes_of_page(&w));
  grow(&w, parent, &lines[FORKS], 2, &rng);
  CHECK_I64(pages(&w), held + 2 * HEADS);
  for (int i = 1; i < FORKS; i++) grow(&w, forks[i], &lines[i], i % 4 + 1, &rng);
  CHECK_I64(pages(&w), held + copied * HEADS);
  release(parent);
  for (int i = 0; i < FORKS; i += 6) check_equals(&w, forks[i], &lines[i], &rng);
  for (int i = 0; i < FORKS; i++) release(forks[(i * 7 + 3) % FORKS]);
  world_close(&w);
  free(lines);
}

/* A parent that appends before its only fork copies; the fork then owns the page and does not. */
static void fork_one_copy(void) {
  world w;
  test_rng rng = rng_seed(32);
  line a = {{0}, 0, 0}, b;
  check_case("fork: whoever appends first copies");
  plain_setup(&w.s, 400, 4, 100, 0);
  world_open(&w, 500, 5, 32);
  lattn_cache *parent = cache_of(w.pool, &w.s), *fork;
  grow(&w, parent, &a, 200, &rng);
  int64_t held = pages(&w);
  fork = fork_of(parent), b = a;
  grow(&w, parent, &a, 1, &rng);
  CHECK_I64(pages(&w), held + 2);
  grow(&w, fork, &b, 1, &rng);
  CHECK_I64(pages(&w), held + 2);
  check_equals(&w, parent, &a, &rng);
  check_equals(&w, fork, &b, &rng);
  CHECK_STATUS(lattn_cache_clear(parent), LATTN_OK);
  CHECK_I64(pool_stats(w.pool).n_shared, 0);
  check_equals(&w, fork, &b, &rng);
  line_clear(&a);
  grow(&w, parent, &a, 40, &rng);
  check_equals(&w, parent, &a, &rng);
  release(fork);
  release(parent);
  world_close(&w);
}

/* Forks until the arena has no room: E_FULL, nothing changed, and all of it comes back. */
static void fork_full(void) {
  enum { MOST = 200 };
  world w;
  test_rng rng = rng_seed(33);
  line l = {{0}, 0, 0};
  lattn_cache *forks[MOST], *parent, *none = NULL;
  int n = 0;
  check_case("fork: no room for its tables");
  plain_setup(&w.s, 384, 0, 0, 0);
  world_open(&w, 500, 1, 33);
  parent = cache_of(w.pool, &w.s);
  grow(&w, parent, &l, 384, &rng);
  while (n < MOST && lattn_cache_fork(&forks[n], parent) == LATTN_OK) n++;
  CHECK(n < MOST);
  uint64_t arena = hash_bytes(HASH_SEED, w.arena.data, w.arena.bytes);
  CHECK_STATUS(lattn_cache_fork(&none, parent), LATTN_E_FULL);
  CHECK(none == NULL);
  CHECK(hash_bytes(HASH_SEED, w.arena.data, w.arena.bytes) == arena);
  for (int i = 0; i < n; i++) release(forks[i]);
  CHECK_STATUS(lattn_cache_clear(parent), LATTN_OK);
  grow(&w, parent, &l, 384, &rng);
  CHECK_STATUS(lattn_cache_fork(NULL, parent), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_fork(&none, NULL), LATTN_E_NULL);
  release(parent);
  world_close(&w);
}

/* One of many caches: what it stands for, and its newest row as it was when it last changed. */
typedef struct member {
  lattn_cache *cache;
  line l;
  call_rows newest;
} member;

static void member_note(const world *w, member *m) {
  int64_t seen = m->l.n > 0 && holds_newest(w, m->cache);
  rows_free(&m->newest);
  m->newest = rows_new(w, m->l.tokens + (m->l.n ? m->l.n - 1 : 0), seen);
  CHECK_STATUS(attend_rows(w, m->cache, NULL, 0, &m->newest, 0, m->newest.n, RUN_NULL), LATTN_OK);
}

/* Whatever others did since, its newest row has the same bits. */
static void member_check(const world *w, const member *m) {
  call_rows again = rows_new(w, m->l.tokens + (m->l.n ? m->l.n - 1 : 0), m->newest.n);
  CHECK_STATUS(attend_rows(w, m->cache, NULL, 0, &again, 0, again.n, RUN_1), LATTN_OK);
  CHECK(same_rows(&again, 0, &m->newest, 0, again.n));
  rows_free(&again);
}

static void member_fork(const world *w, member *to, const member *from) {
  memset(to, 0, sizeof *to);
  to->cache = fork_of(from->cache);
  to->l = from->l;
  member_note(w, to);
}

static void member_end(member *m) {
  release(m->cache);
  rows_free(&m->newest);
}

/* Forks of forks, each going its own way, living and dying in any order. */
static void fork_family(uint64_t seed) {
  enum { MOST = 8 };
  world w;
  test_rng rng = rng_seed(seed);
  member *m = (member *)ref_memory(MOST, sizeof *m);
  int n = 1;
  check_case("fork: a family, seed %" PRIu64, seed);
  random_config(&w.s, 700, &rng);
  random_heads(&w.s, 40, &rng);
  world_open(&w, 300, MOST + 3, seed);
  m[0].cache = cache_of(w.pool, &w.s);
  grow(&w, m[0].cache, &m[0].l, rng_range(&rng, 1, 300), &rng);
  member_note(&w, &m[0]);
  for (int step = 0; step < 30; step++) {
    int i = (int)rng_below(&rng, n), op = (int)rng_below(&rng, 100);
    if (op < 30 && n < MOST) {
      member_fork(&w, &m[n], &m[i]);
      n++;
    } else if (op < 45 && n > 1) {
      member_end(&m[i]);
      m[i] = m[--n];
    } else if (op < 50) {
      CHECK_STATUS(lattn_cache_clear(m[i].cache), LATTN_OK);
      line_clear(&m[i].l);
      member_note(&w, &m[i]);
    } else if (op < 65) {
      int64_t to = m[i].l.n - rng_below(&rng, (rng_chance(&rng, 70) ? 30 : m[i].l.n) + 1);
      if (to < 0 || lattn_cache_truncate(m[i].cache, to)) continue;
      m[i].l.truncated |= to < m[i].l.n;
      m[i].l.n = to;
      member_note(&w, &m[i]);
    } else if (m[i].l.n < 650) {
      grow(&w, m[i].cache, &m[i].l, rng_range(&rng, 1, 45), &rng);
      member_note(&w, &m[i]);
    }
    member_check(&w, &m[rng_below(&rng, n)]);
  }
  for (; n > 0; n--) {
    int i = (int)rng_below(&rng, n);
    check_equals(&w, m[i].cache, &m[i].l, &rng);
    member_end(&m[i]);
    m[i] = m[n - 1];
  }
  world_close(&w);
  free(m);
}

static void test_forks(void) {
  fork_pages(300);
  fork_pages(256);
  fork_one_copy();
  fork_full();
  for (uint64_t i = 0; i < (uint64_t)test_count(24); i++) fork_family(test_first_seed() + 3100 + i);
}

/* ---- checkpoints ---- */

/* What a cache was when a checkpoint was made. */
typedef struct mark {
  lattn_checkpoint *checkpoint;
  line l;
  uint64_t state;
  lattn_cache_head_stats heads[CACHE_KV_HEADS];
} mark;

static void mark_make(const world *w, mark *m, const lattn_cache *cache, const line *l) {
  m->checkpoint = checkpoint_of(cache);
  m->l = *l;
  m->state = state_of(cache);
  for (int64_t g = 0; g < w->s.config.n_kv_heads; g++) m->heads[g] = head_stats(cache, g);
}

/* Rolls back; all that can be seen is what it was. Never takes a page. */
static void mark_return(const world *w, const mark *m, lattn_cache *cache, line *l) {
  int64_t before = pages(w);
  if (!CHECK_STATUS(lattn_cache_rollback(cache, m->checkpoint), LATTN_OK)) return;
  CHECK(pages(w) <= before);
  *l = m->l;
  CHECK(state_of(cache) == m->state);
  CHECK_I64(cache_stats(cache).n_tokens, m->l.n);
  for (int64_t g = 0; g < w->s.config.n_kv_heads; g++) {
    lattn_cache_head_stats now = head_stats(cache, g);
    CHECK_I64(now.n_sink_tokens, m->heads[g].n_sink_tokens);
    CHECK_I64(now.first_token, m->heads[g].first_token);
    CHECK_I64(now.n_tokens_held, m->heads[g].n_tokens_held);
    CHECK_I64(now.page_bytes, m->heads[g].page_bytes);
  }
}

/* Checkpoints of two caches of a family, taken and gone back to in any order. */
static void checkpoint_random(uint64_t seed) {
  enum { MOST = 6 };
  world w;
  test_rng rng = rng_seed(seed);
  mark *marks = (mark *)ref_memory(MOST, sizeof *marks);
  line *l = (line *)ref_memory(2, sizeof *l);
  lattn_cache *c[2];
  int n = 0;
  check_case("checkpoint: any order, seed %" PRIu64, seed);
  random_config(&w.s, 900, &rng);
  random_heads(&w.s, 60, &rng);
  world_open(&w, 300, MOST + 6, seed);
  c[0] = cache_of(w.pool, &w.s);
  grow(&w, c[0], &l[0], rng_range(&rng, 0, 300), &rng);
  c[1] = fork_of(c[0]), l[1] = l[0];
  for (int step = 0; step < 40; step++) {
    int i = (int)rng_below(&rng, 2), op = (int)rng_below(&rng, 100);
    if (op < 25 && n < MOST) {
      mark_make(&w, &marks[n++], c[i], &l[i]);
    } else if (op < 50 && n) {
      mark_return(&w, &marks[rng_below(&rng, n)], c[i], &l[i]);
      if (rng_chance(&rng, 30)) check_equals(&w, c[i], &l[i], &rng);
    } else if (op < 60 && n) {
      int gone = (int)rng_below(&rng, n);
      drop(marks[gone].checkpoint);
      marks[gone] = marks[--n];
    } else if (op < 63) {
      CHECK_STATUS(lattn_cache_clear(c[i]), LATTN_OK);
      line_clear(&l[i]);
    } else if (op < 70) {
      int64_t to = l[i].n - rng_below(&rng, l[i].n < 10 ? l[i].n + 1 : 10);
      l[i].truncated |= to < l[i].n;
      if (lattn_cache_truncate(c[i], to) == LATTN_OK) l[i].n = to;
    } else if (l[i].n < 700) {
      grow(&w, c[i], &l[i], rng_range(&rng, 1, rng_chance(&rng, 20) ? 190 : 20), &rng);
    }
    CHECK_I64(pool_stats(w.pool).n_checkpoints, n);
  }
  for (int i = 0; i < n; i++) {
    mark_return(&w, &marks[i], c[i % 2], &l[i % 2]);
    check_equals(&w, c[i % 2], &l[i % 2], &rng);
  }
  release(c[0]);
  for (int i = 0; i < n; i++) mark_return(&w, &marks[i], c[1], &l[1]), drop(marks[i].checkpoint);
  release(c[1]);
  world_close(&w);
  free(marks), free(l);
}

/* Back over far more than a window and its slack: truncate cannot, a checkpoint can. */
static void checkpoint_far(int kind) {
  enum { N = 50, FAR = 3000 };
  static const char *const names[] = {"windows only", "full and window", "window in f16, sinks"};
  world w;
  test_rng rng = rng_seed(35);
  line l = {{0}, 0, 0};
  mark m;
  check_case("checkpoint: 3000 tokens beyond a window of 20: %s", names[kind]);
  plain_setup(&w.s, 4000, kind == 2 ? 4 : 0, 20, 3);
  if (kind == 0) setup_stream(&w.s, 0, 1, 60, 0, 0);
  if (kind == 2) w.s.config.key_type = LATTN_F16, w.s.config.value_type = LATTN_BF16;
  world_open(&w, 300, 4, 35);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, N, &rng);
  mark_make(&w, &m, cache, &l);
  for (int i = 0; i < 3; i++) {
    grow_unseen(&w, cache, &l, i ? FAR / 10 : FAR, &rng);
    if (i == 0 && kind < 2) CHECK_STATUS(lattn_cache_truncate(cache, N), LATTN_E_EVICTED);
    mark_return(&w, &m, cache, &l);
    check_equals(&w, cache, &l, &rng);
  }
  CHECK_STATUS(lattn_cache_clear(cache), LATTN_OK);
  CHECK(pages(&w) > 0);
  mark_return(&w, &m, cache, &l);
  check_equals(&w, cache, &l, &rng);
  drop(m.checkpoint);
  release(cache);
  world_close(&w);
}

/* The numbers of lattn_checkpoint_stats, and who owns what. */
static void checkpoint_numbers(void) {
  world w;
  test_rng rng = rng_seed(36);
  line l = {{0}, 0, 0};
  check_case("checkpoint: statistics");
  plain_setup(&w.s, 1000, 4, 100, 0);
  world_open(&w, 300, 5, 36);
  lattn_cache *cache = cache_of(w.pool, &w.s), *fork;
  grow(&w, cache, &l, 300, &rng);
  lattn_cache_stats held = cache_stats(cache);
  int64_t n_pages = pages(&w), free_bytes = pool_stats(w.pool).free_bytes;
  lattn_checkpoint *kept = checkpoint_of(cache);
  lattn_checkpoint_stats s = checkpoint_stats(kept);
  CHECK_I64(pages(&w), n_pages);
  CHECK_I64(s.n_tokens, 300);
  CHECK_I64(s.page_bytes, held.full_bytes + held.streaming_bytes);
  CHECK_I64(s.own_bytes, 0);
  CHECK(s.table_bytes >= 4 * n_pages && s.table_bytes <= 4 * n_pages + 1024);
  CHECK(pool_stats(w.pool).free_bytes <= free_bytes - 4 * n_pages);
  grow(&w, cache, &l, 1, &rng); /* the newest page of both heads is copied */
  CHECK_I64(pages(&w), n_pages + 2);
  CHECK_I64(checkpoint_stats(kept).own_bytes, 2 * bytes_of_page(&w));
  fork = fork_of(cache);
  CHECK_STATUS(lattn_cache_rollback(fork, kept), LATTN_OK);
  CHECK_I64(checkpoint_stats(kept).own_bytes, 0);
  release(fork);
  CHECK_STATUS(lattn_cache_clear(cache), LATTN_OK);
  s = checkpoint_stats(kept);
  CHECK_I64(s.own_bytes, s.page_bytes);
  CHECK_I64(pages(&w), n_pages);
  CHECK_STATUS(lattn_checkpoint_stats_get(kept, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_checkpoint_stats_get(NULL, &s), LATTN_E_NULL);
  s.size = 0;
  CHECK_STATUS(lattn_checkpoint_stats_get(kept, &s), LATTN_E_SIZE);
  CHECK_STATUS(lattn_checkpoint_release(NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_checkpoint(NULL, cache), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_rollback(cache, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_rollback(NULL, kept), LATTN_E_NULL);
  drop(kept);
  CHECK_I64(pages(&w), 0);
  release(cache);
  world_close(&w);
}

/* A cache of the same config but for capacity, slack and max_append may take a checkpoint. */
static void checkpoint_other_cache(void) {
  world w;
  setup small, other;
  test_rng rng = rng_seed(37);
  line l = {{0}, 0, 0};
  lattn_cache *to;
  check_case("rollback: a cache of another capacity, slack, max_append");
  plain_setup(&w.s, 1000, 4, 100, 0);
  plain_setup(&small, 310, 4, 100, 50);
  small.config.max_append = 7;
  small.config.max_holes = 3;
  world_open(&w, 300, 6, 37);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 300, &rng);
  lattn_checkpoint *fits = checkpoint_of(cache), *large;
  uint64_t state = state_of(cache);
  grow(&w, cache, &l, 11, &rng);
  large = checkpoint_of(cache);
  release(cache);
  to = cache_of(w.pool, &small);
  CHECK_STATUS(lattn_cache_rollback(to, large), LATTN_E_FULL);
  CHECK_I64(cache_stats(to).n_tokens, 0);
  CHECK_STATUS(lattn_cache_rollback(to, fits), LATTN_OK);
  CHECK(state_of(to) == state);
  CHECK_STATUS(lattn_cache_rollback(to, large), LATTN_E_FULL);
  CHECK(state_of(to) == state);
  l.n = 300;
  check_equals_as(&w, to, &l, 0, &rng);
  release(to);
  for (int i = 0; i < 5; i++) {
    check_case("rollback: another config, kind %d", i);
    plain_setup(&other, 1000, 4, i == 0 ? 101 : 100, 0);
    if (i == 1) other.turns[1]++;
    if (i == 2) setup_alibi(&other);
    if (i == 3) other.config.softcap = 5;
    if (i == 4) other.heads[1].positions = LATTN_POSITIONS_ABSOLUTE;
    to = cache_of(w.pool, &other);
    CHECK_STATUS(lattn_cache_rollback(to, fits), LATTN_E_CONFIG);
    CHECK_I64(cache_stats(to).n_tokens, 0);
    release(to);
  }
  drop(fits), drop(large);
  world_close(&w);
}

static void checkpoint_other_pool(void) {
  world w, elsewhere;
  test_rng rng = rng_seed(38);
  line l = {{0}, 0, 0};
  check_case("rollback: another pool");
  plain_setup(&w.s, 300, 4, 100, 0);
  plain_setup(&elsewhere.s, 300, 4, 100, 0);
  world_open(&w, 300, 2, 38);
  world_open(&elsewhere, 300, 2, 38);
  lattn_cache *a = cache_of(w.pool, &w.s), *b = cache_of(elsewhere.pool, &elsewhere.s);
  grow(&w, a, &l, 10, &rng);
  lattn_checkpoint *kept = checkpoint_of(a);
  CHECK_STATUS(lattn_cache_rollback(b, kept), LATTN_E_CONFIG);
  CHECK_I64(cache_stats(b).n_tokens, 0);
  drop(kept);
  release(a), release(b);
  world_close(&w), world_close(&elsewhere);
}

static void test_checkpoints(void) {
  for (int kind = 0; kind < 3; kind++) checkpoint_far(kind);
  checkpoint_numbers();
  checkpoint_other_cache();
  checkpoint_other_pool();
  for (uint64_t i = 0; i < (uint64_t)test_count(36); i++)
    checkpoint_random(test_first_seed() + 3500 + i);
}

/* ---- slack ---- */

/* Whether streaming head g holds what a next token at position n needs: its window, and the newest
   token, whose page goes on being filled. */
static int holds_window(const world *w, const lattn_cache *cache, int64_t g, int64_t n) {
  lattn_cache_head_stats stats = head_stats(cache, g);
  int64_t window = w->s.heads[g].window > 2 ? w->s.heads[g].window : 2, from = n - window + 1;
  if (w->s.heads[g].policy != LATTN_HEAD_STREAMING) return 1;
  if (from < stats.n_sink_tokens) from = stats.n_sink_tokens;
  return from >= n || stats.first_token <= from;
}

/* Back by every distance: within the slack it works, beyond it is refused and nothing changed. */
static void slack_distances(int64_t slack, int64_t window, int64_t n, int64_t by) {
  world w;
  test_rng rng = rng_seed(39);
  line l = {{0}, 0, 0}, shorter;
  check_case("slack %" PRId64 ", window %" PRId64 ", %" PRId64 " tokens", slack, window, n);
  plain_setup(&w.s, n + 10, 4, window, slack);
  world_open(&w, 300, 5, 39);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, n, &rng);
  uint64_t before = state_of(cache);
  for (int64_t back = 0; back <= n; back += back < 3 ? 1 : by) {
    lattn_cache *fork = fork_of(cache);
    int held = holds_window(&w, cache, 1, n - back) || back == 0;
    if (back <= slack) CHECK(held);
    lattn_status status = lattn_cache_truncate(fork, n - back);
    CHECK_STATUS(status, held ? LATTN_OK : LATTN_E_EVICTED);
    if (!held) CHECK(state_of(fork) == before);
    shorter = l;
    shorter.n -= held ? back : 0;
    if (held && rng_chance(&rng, 30)) check_equals_as(&w, fork, &shorter, 0, &rng);
    release(fork);
  }
  CHECK_STATUS(lattn_cache_truncate(cache, n + 1), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_truncate(cache, -1), LATTN_E_SHAPE);
  CHECK(state_of(cache) == before);
  release(cache);
  world_close(&w);
}

static void test_slack(void) {
  slack_distances(0, 1, 300, 1);
  slack_distances(0, 60, 700, 5);
  slack_distances(1, 129, 513, 3);
  slack_distances(64, 100, 700, 3);
  slack_distances(200, 20, 600, 3);
}

/* ---- drafts ---- */

enum { DRAFTS = 64 };

/* Draft tokens of one cache and what they are the children of. */
typedef struct draft_tree {
  int32_t tokens[DRAFTS], parents[DRAFTS];
  int32_t n;
} draft_tree;

enum draft_shapes { DRAFT_CHAIN, DRAFT_STAR, DRAFT_TREE, DRAFT_DEEP };

static void draft_tree_make(draft_tree *t, const world *w, int32_t n, int shape, test_rng *rng) {
  t->n = n;
  for (int32_t i = 0; i < n; i++) {
    t->tokens[i] = (int32_t)rng_below(rng, w->library.capacity);
    t->parents[i] = i - 1;
    if (shape == DRAFT_STAR) t->parents[i] = -1;
    if (shape == DRAFT_TREE) t->parents[i] = (int32_t)rng_range(rng, -1, i - 1);
    if (shape == DRAFT_DEEP && rng_chance(rng, 20)) t->parents[i] = (int32_t)rng_range(rng, -1, i);
    if (t->parents[i] == i) t->parents[i] = i - 1;
  }
}

/* The drafts from the root to draft i; returns how many. */
static int32_t draft_path(const draft_tree *t, int32_t i, int32_t *path) {
  int32_t n = 0;
  for (int32_t j = i; j >= 0; j = t->parents[j]) n++;
  for (int32_t j = i, at = n; j >= 0; j = t->parents[j]) path[--at] = j;
  return n;
}

/* Rows first ... as drafts, in one call. */
static lattn_status draft_rows_of(const world *w, lattn_cache *cache, const extras *e,
                                  int64_t sequence, const call_rows *r, int64_t first, int64_t n,
                                  const int32_t *parents, int run) {
  runner u;
  call_of c;
  call_rows part = rows_part(r, first, n);
  const lattn_exec *exec = runner_open(&u, &w->s.config, 0, n, run);
  const lattn_call *call = call_part(&c, e, sequence, 1, first, n, part.low);
  lattn_status status =
      lattn_cache_draft(cache, call, parents, part.q, part.k, part.v, part.out, part.lse, exec);
  runner_close(&u);
  return status;
}

static lattn_status draft_rows(const world *w, lattn_cache *cache, const extras *e,
                               const call_rows *r, int64_t first, int64_t n, const int32_t *parents,
                               int run) {
  return draft_rows_of(w, cache, e, 0, r, first, n, parents, run);
}

/* Plain decode of draft i: a fork of the cache before the drafts, extended by the path; the row of
   draft i goes to that row of r. */
static void draft_plainly(const world *w, const lattn_cache *before, const extras *e,
                          const draft_tree *t, int32_t i, const call_rows *r) {
  int32_t path[DRAFTS], tokens[DRAFTS], n = draft_path(t, i, path);
  lattn_cache *fork = fork_of(before);
  for (int32_t j = 0; j < n; j++) tokens[j] = t->tokens[path[j]];
  extend_tokens(w, fork, NULL, tokens, n - 1);
  CHECK_STATUS(extend_rows(w, fork, e, 0, r, i, 1, RUN_NULL), LATTN_OK);
  release(fork);
}

/* All drafts in calls of chance sizes; each row has the bits of plain decode, no page was taken. */
static void draft_all(const world *w, lattn_cache *cache, const lattn_cache *before,
                      const extras *e, const draft_tree *t, test_rng *rng) {
  call_rows drafted = rows_new(w, t->tokens, t->n), plain = rows_new(w, t->tokens, t->n);
  int64_t held = pages(w), n_tokens = cache_stats(cache).n_tokens;
  for (int32_t at = 0, count; at < t->n; at += count) {
    int is_chain = 1;
    count = rng_chance(rng, 60) ? t->n - at : (int32_t)rng_range(rng, 1, t->n - at);
    for (int32_t i = at; i < at + count; i++) is_chain &= t->parents[i] == i - 1;
    const int32_t *parents = is_chain && rng_chance(rng, 50) ? NULL : t->parents + at;
    lattn_status status =
        draft_rows(w, cache, e, &drafted, at, count, parents, (int)rng_below(rng, RUN_KINDS));
    CHECK_STATUS(status, LATTN_OK);
    CHECK_I64(cache_stats(cache).n_drafts, at + count);
  }
  CHECK_I64(cache_stats(cache).n_tokens, n_tokens);
  CHECK_I64(pages(w), held);
  for (int32_t i = 0; i < t->n; i++) {
    draft_plainly(w, before, e, t, i, &plain);
    if (!same_rows(&drafted, i, &plain, i, 1))
      FAIL("draft %d of %d (parent %d) after %" PRId64 " tokens is not plain decode", (int)i,
           (int)t->n, (int)t->parents[i], n_tokens);
  }
  rows_free(&drafted), rows_free(&plain);
}

/* Accepts the path to a draft of chance (or none): the cache is one that was extended by it. */
static void draft_accept(const world *w, lattn_cache *cache, line *l, const draft_tree *t,
                         test_rng *rng) {
  int32_t path[DRAFTS], n = draft_path(t, (int32_t)rng_range(rng, -1, t->n - 1), path);
  int32_t some = rng_chance(rng, 30) ? (int32_t)rng_range(rng, 0, n) : n;
  if (CHECK_STATUS(lattn_cache_accept(cache, some, some ? path : NULL), LATTN_OK))
    for (int32_t i = 0; i < some; i++) l->tokens[l->n++] = t->tokens[path[i]];
  CHECK_I64(cache_stats(cache).n_drafts, 0);
  check_equals(w, cache, l, rng);
}

/* Any tree on any cache, around the borders of panels, pages and segments. */
static void draft_random(uint64_t seed) {
  static const int64_t lengths[] = {0, 1, 5, 15, 100, 120, 127, 128, 129, 300};
  static const int64_t long_lengths[] = {2030, 2047, 2048, 2049};
  world w;
  extras e;
  draft_tree t;
  test_rng rng = rng_seed(seed);
  line l;
  int64_t n = rng_chance(&rng, 15) ? PICK(&rng, long_lengths) : PICK(&rng, lengths);
  line_clear(&l);
  check_case("drafts: seed %" PRIu64 ", after %" PRId64 " tokens", seed, n);
  random_config(&w.s, n + 3 * DRAFTS + 8, &rng);
  random_heads(&w.s, 20, &rng);
  w.s.config.max_drafts = DRAFTS;
  world_open(&w, 300, 6, seed);
  lattn_cache *cache = cache_of(w.pool, &w.s), *before;
  grow_unseen(&w, cache, &l, n, &rng);
  for (int round = 0; round < 2; round++) {
    draft_tree_make(&t, &w, (int32_t)rng_range(&rng, 1, rng_chance(&rng, 30) ? DRAFTS : 12),
                    (int)rng_below(&rng, 4), &rng);
    extras_open(&e, &w, 1, t.n, l.n + t.n, 30, &rng);
    before = fork_of(cache);
    draft_all(&w, cache, before, &e, &t, &rng);
    release(before);
    extras_close(&e);
    draft_accept(&w, cache, &l, &t, &rng);
  }
  release(cache);
  world_close(&w);
}

/* A full tree of 64 on both sides of a page's and a segment's border, all threads. */
static void draft_borders(void) {
  static const int64_t lengths[] = {100, 2040};
  for (int i = 0; i < 2; i++)
    for (int shape = DRAFT_CHAIN; shape <= DRAFT_TREE; shape++) {
      world w;
      draft_tree t;
      line l;
      test_rng rng = rng_seed(41 + (uint64_t)shape);
      line_clear(&l);
      check_case("drafts: 64 of shape %d after %d tokens", shape, (int)lengths[i]);
      plain_setup(&w.s, 2300, 4, 50, 0);
      w.s.config.max_drafts = DRAFTS;
      world_open(&w, 300, 5, 41);
      lattn_cache *cache = cache_of(w.pool, &w.s), *before;
      grow_unseen(&w, cache, &l, lengths[i], &rng);
      before = fork_of(cache);
      draft_tree_make(&t, &w, DRAFTS, shape, &rng);
      draft_all(&w, cache, before, NULL, &t, &rng);
      release(before);
      draft_accept(&w, cache, &l, &t, &rng);
      release(cache);
      world_close(&w);
    }
}

/* A draft with NaN in its key or value: its descendants get it, nobody else. */
static void draft_nan(int in_value) {
  enum { N = 130, COUNT = 24, BAD = 5 };
  world w;
  draft_tree t;
  line l;
  test_rng rng = rng_seed(42);
  line_clear(&l);
  check_case("drafts: NaN in a %s", in_value ? "value" : "key");
  plain_setup(&w.s, 300, 0, 0, 0);
  w.s.config.max_drafts = DRAFTS;
  world_open(&w, 300, 5, 42);
  lattn_cache *cache = cache_of(w.pool, &w.s), *before;
  draft_tree_make(&t, &w, COUNT, DRAFT_TREE, &rng);
  t.parents[BAD + 1] = BAD, t.parents[BAD + 3] = BAD + 1;
  for (int32_t i = 0; i < COUNT; i++) t.tokens[i] = i; /* each its own row */
  float *row = in_value ? w.library.v + BAD * w.library.v_row : w.library.k + BAD * w.library.k_row;
  for (int64_t d = 0; d < (in_value ? w.library.v_row : w.library.k_row); d++) row[d] = NAN;
  for (int64_t i = 0; i < N; i++) {
    int32_t token = (int32_t)(BAD + 1 + i % 100);
    extend_tokens(&w, cache, &l, &token, 1);
  }
  before = fork_of(cache);
  call_rows r = rows_new(&w, t.tokens, COUNT), plain = rows_new(&w, t.tokens, COUNT);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, COUNT, t.parents, RUN_1), LATTN_OK);
  for (int32_t i = 0; i < COUNT; i++) {
    int32_t path[DRAFTS], n = draft_path(&t, i, path), sees = 0;
    const float *out = (const float *)r.out.data + i * w.heads * w.value_dim;
    for (int32_t j = 0; j < n; j++) sees |= path[j] == BAD;
    for (int64_t d = 0; d < w.heads * w.value_dim; d++) CHECK(!isnan(out[d]) == !sees);
    draft_plainly(&w, before, NULL, &t, i, &plain);
    CHECK(same_rows(&r, i, &plain, i, 1));
  }
  CHECK_STATUS(lattn_cache_accept(cache, 0, NULL), LATTN_OK);
  check_equals(&w, cache, &l, &rng);
  rows_free(&r), rows_free(&plain);
  release(before), release(cache);
  world_close(&w);
}

static int32_t refuse_read(void *user, void *data, size_t bytes) {
  (void)user, (void)data, (void)bytes;
  return 1;
}

/* Every call that drafts forbid, by name; what they do not forbid works. */
static void draft_states(void) {
  world w;
  test_rng rng = rng_seed(43);
  line l;
  lattn_cache *fork = NULL;
  lattn_checkpoint *mark_now = NULL;
  uint64_t hash = HASH_SEED;
  line_clear(&l);
  check_case("drafts: LATTN_E_STATE while they are pending");
  plain_setup(&w.s, 300, 4, 50, 10);
  w.s.config.max_drafts = 8;
  world_open(&w, 300, 5, 43);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 100, &rng);
  lattn_checkpoint *kept = checkpoint_of(cache);
  call_rows r = rows_new(&w, l.tokens, 3);
  int64_t held = pages(&w);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, NULL, RUN_1), LATTN_OK);
  CHECK_STATUS(lattn_cache_extend(cache, NULL, r.q, r.k, r.v, r.out, r.lse, NULL), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_append(cache, r.k, r.v, NULL), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_truncate(cache, 99), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_remove(cache, 10, 20), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_fork(&fork, cache), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_checkpoint(&mark_now, cache), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_rollback(cache, kept), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_save(cache, hash_write, &hash, NULL), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_load(cache, refuse_read, NULL), LATTN_E_STATE);
  lattn_sequence sequence = {cache, 3, NULL};
  CHECK_STATUS(lattn_batch_extend(1, &sequence, NULL, r.q, r.k, r.v, r.out, r.lse, NULL),
               LATTN_E_STATE);
  CHECK(fork == NULL && mark_now == NULL && hash == HASH_SEED);
  call_rows before = rows_new(&w, l.tokens + 99, 1), after = rows_new(&w, l.tokens + 99, 1);
  CHECK_STATUS(attend_rows(&w, cache, NULL, 0, &after, 0, 1, RUN_1), LATTN_OK); /* committed */
  CHECK_I64(pages(&w), held);
  CHECK_I64(cache_stats(cache).n_drafts, 3);
  CHECK_I64(cache_stats(cache).n_tokens, 100);
  CHECK_STATUS(lattn_cache_accept(cache, 0, NULL), LATTN_OK);
  CHECK_STATUS(attend_rows(&w, cache, NULL, 0, &before, 0, 1, RUN_1), LATTN_OK);
  CHECK(same_rows(&before, 0, &after, 0, 1));
  rows_free(&before), rows_free(&after);
  check_equals(&w, cache, &l, &rng);
  check_case("drafts: clear drops them");
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, NULL, RUN_1), LATTN_OK);
  CHECK_STATUS(lattn_cache_clear(cache), LATTN_OK);
  CHECK_I64(cache_stats(cache).n_drafts, 0);
  line_clear(&l);
  grow(&w, cache, &l, 5, &rng);
  check_equals(&w, cache, &l, &rng);
  check_case("drafts: release with drafts pending");
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, NULL, RUN_1), LATTN_OK);
  release(cache);
  drop(kept);
  rows_free(&r);
  world_close(&w);
}

/* Parents and paths that are none, more than max_drafts. */
static void draft_errors(void) {
  world w;
  test_rng rng = rng_seed(44);
  line l;
  int32_t parents[8] = {-1, 0, 1, 0, 0, 0, 0, 0}, path[4] = {0, 1, 2, 2};
  line_clear(&l);
  check_case("drafts: bad parents, paths and counts");
  plain_setup(&w.s, 300, 4, 50, 10);
  w.s.config.max_drafts = 5;
  world_open(&w, 300, 4, 44);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 50, &rng);
  call_rows r = rows_new(&w, l.tokens, 6);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 6, NULL, RUN_1), LATTN_E_SHAPE);
  parents[1] = 1;
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, parents, RUN_1), LATTN_E_VALUE);
  parents[1] = -2;
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, parents, RUN_1), LATTN_E_VALUE);
  parents[1] = 2;
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, parents, RUN_1), LATTN_E_VALUE);
  CHECK_I64(cache_stats(cache).n_drafts, 0);
  CHECK(((const float *)r.out.data)[0] == 12345.0f);
  parents[1] = 0;
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, parents, RUN_1), LATTN_OK);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 3, 3, parents, RUN_1), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_accept(cache, 4, path), LATTN_E_SHAPE);     /* more than there are */
  CHECK_STATUS(lattn_cache_accept(cache, 2, path + 1), LATTN_E_VALUE); /* 1 is no root */
  path[1] = 2;
  CHECK_STATUS(lattn_cache_accept(cache, 2, path), LATTN_E_VALUE); /* 0 is not 2's parent */
  path[1] = 3;
  CHECK_STATUS(lattn_cache_accept(cache, 2, path), LATTN_E_VALUE); /* there is no 3 */
  path[1] = -1;
  CHECK_STATUS(lattn_cache_accept(cache, 2, path), LATTN_E_VALUE);
  CHECK_STATUS(lattn_cache_accept(cache, -1, path), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_accept(cache, 1, NULL), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_accept(NULL, 1, path), LATTN_E_NULL);
  CHECK_I64(cache_stats(cache).n_drafts, 3);
  path[1] = 1;
  if (CHECK_STATUS(lattn_cache_accept(cache, 3, path), LATTN_OK))
    for (int i = 0; i < 3; i++) l.tokens[l.n + i] = l.tokens[i];
  l.n += 3;
  check_equals(&w, cache, &l, &rng);
  check_case("drafts: none configured");
  rows_free(&r);
  release(cache);
  w.s.config.max_drafts = 0;
  cache = cache_of(w.pool, &w.s);
  r = rows_new(&w, l.tokens, 1);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 1, NULL, RUN_1), LATTN_E_SHAPE);
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 0, NULL, RUN_1), LATTN_OK);
  rows_free(&r);
  release(cache);
  world_close(&w);
}

/* The pool has no page for the path: LATTN_E_FULL, and the drafts stay. */
static void draft_full(void) {
  world w;
  page_budget budget = {1000, 0};
  test_rng rng = rng_seed(45);
  line l;
  int32_t path[3] = {0, 1, 2};
  line_clear(&l);
  check_case("drafts: no page to accept them");
  plain_setup(&w.s, 256, 0, 50, 0);
  w.s.config.max_drafts = 8;
  world_open_budget(&w, 300, 4, 45, &budget);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 128, &rng);
  call_rows r = rows_new(&w, l.tokens, 3);
  budget.left = 0;
  CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, 3, NULL, RUN_1), LATTN_OK);
  for (budget.left = 0; budget.left < 2; budget.left++) { /* each head needs one */
    CHECK_STATUS(lattn_cache_accept(cache, 3, path), LATTN_E_FULL);
    CHECK_I64(cache_stats(cache).n_drafts, 3);
    CHECK_I64(cache_stats(cache).n_tokens, 128);
  }
  CHECK_STATUS(lattn_cache_accept(cache, 3, path), LATTN_OK);
  for (int i = 0; i < 3; i++) l.tokens[l.n++] = l.tokens[i];
  budget.left = 1000;
  check_equals(&w, cache, &l, &rng);
  rows_free(&r);
  release(cache);
  CHECK_I64(budget.out, 0);
  world_close(&w);
}

/* A call of these rows with scratch of just so many bytes: drafts, if there are parents. */
static lattn_status call_with_scratch(lattn_cache *cache, const call_rows *r,
                                      const int32_t *parents, size_t bytes) {
  test_guard scratch = guard_alloc(bytes, 1);
  lattn_exec exec;
  lattn_status status;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = r->n > 1 ? 2 : 1, exec.parallel_for = test_parallel_scrambled;
  exec.scratch = scratch.data, exec.scratch_bytes = bytes;
  if (parents) {
    status = lattn_cache_draft(cache, NULL, parents, r->q, r->k, r->v, r->out, r->lse, &exec);
    CHECK_STATUS(lattn_cache_accept(cache, 0, NULL), LATTN_OK);
  } else {
    status = lattn_cache_attend(cache, NULL, r->q, r->out, r->lse, &exec);
  }
  CHECK(guard_free(&scratch));
  return status;
}

/* The call with the least scratch that it takes: no byte beyond, the same bits. */
static void check_least_scratch(const world *w, lattn_cache *cache, const call_rows *r,
                                const int32_t *parents) {
  size_t least = 0, most = lattn_cache_scratch(&w->s.config, r->n, r->n > 1 ? 2 : 1);
  int64_t n = r->n * w->heads;
  float *lse = (float *)ref_memory(n, sizeof *lse);
  CHECK_STATUS(call_with_scratch(cache, r, parents, most), LATTN_OK);
  memcpy(lse, r->lse, (size_t)n * sizeof *lse);
  while (least + 1 < most) { /* most is enough, least is not */
    size_t middle = least + (most - least) / 2;
    lattn_status status = call_with_scratch(cache, r, parents, middle);
    if (status == LATTN_OK) most = middle;
    else least = middle;
    CHECK(status == LATTN_OK || status == LATTN_E_SCRATCH);
  }
  CHECK_STATUS(call_with_scratch(cache, r, parents, most), LATTN_OK);
  CHECK(!memcmp(lse, r->lse, (size_t)n * sizeof *lse));
  free(lse);
}

/* More drafts in one call than max_append tokens. */
static void draft_small_steps(void) {
  world w;
  draft_tree t;
  line l;
  test_rng rng = rng_seed(46);
  line_clear(&l);
  check_case("drafts: 64 at once, steps of 4");
  plain_setup(&w.s, 300, 4, 50, 0);
  w.s.config.max_drafts = DRAFTS;
  w.s.config.max_append = 4;
  world_open(&w, 300, 5, 46);
  lattn_cache *cache = cache_of(w.pool, &w.s), *before;
  grow_unseen(&w, cache, &l, 90, &rng);
  draft_tree_make(&t, &w, DRAFTS, DRAFT_TREE, &rng);
  call_rows r = rows_new(&w, t.tokens, DRAFTS), plain = rows_new(&w, t.tokens, DRAFTS);
  for (int run = 0; run < RUN_KINDS; run++) {
    CHECK_STATUS(draft_rows(&w, cache, NULL, &r, 0, DRAFTS, t.parents, run), LATTN_OK);
    CHECK_STATUS(lattn_cache_accept(cache, 0, NULL), LATTN_OK);
  }
  before = fork_of(cache);
  for (int32_t i = 0; i < DRAFTS; i++) draft_plainly(&w, before, NULL, &t, i, &plain);
  CHECK(same_rows(&r, 0, &plain, 0, DRAFTS));
  check_least_scratch(&w, cache, &r, t.parents);
  draft_all(&w, cache, before, NULL, &t, &rng);
  draft_accept(&w, cache, &l, &t, &rng); /* appends the path in steps of 4 */
  release(before), release(cache);
  rows_free(&r), rows_free(&plain);
  world_close(&w);
}

static void test_drafts(void) {
  draft_small_steps();
  draft_borders();
  draft_nan(0);
  draft_nan(1);
  draft_states();
  draft_errors();
  draft_full();
  for (uint64_t i = 0; i < (uint64_t)test_count(36); i++)
    draft_random(test_first_seed() + 4100 + i);
}

/* ---- batches ---- */

enum { BATCH = 20, BATCH_ROWS = 900, SOME = 8 };

/* Sequences of one call, each with a copy that gets its part in a call of its own. */
typedef struct batch {
  setup setups[BATCH]; /* of each: the world's but for its heads and limits */
  lattn_cache *caches[BATCH], *alone[BATCH];
  line lines[BATCH];
  lattn_sequence sequences[BATCH];
  draft_tree trees[BATCH];
  int64_t first[BATCH + 1]; /* rows */
  int32_t tokens[2 * BATCH_ROWS];
  int64_t n;
} batch;

static lattn_status batch_extend(const world *w, const batch *b, const extras *e,
                                 const call_rows *r, int run) {
  runner u;
  call_of c;
  const lattn_exec *exec = runner_open(&u, &w->s.config, b->n ? b->n : 1, r->n, run);
  const lattn_call *call = call_part(&c, e, 0, b->n, 0, r->n, r->low);
  lattn_status status =
      lattn_batch_extend(b->n, b->sequences, call, r->q, r->k, r->v, r->out, r->lse, exec);
  runner_close(&u);
  return status;
}

static lattn_status batch_attend(const world *w, const batch *b, const extras *e,
                                 const call_rows *r, int run) {
  runner u;
  call_of c;
  const lattn_exec *exec = runner_open(&u, &w->s.config, b->n ? b->n : 1, r->n, run);
  const lattn_call *call = call_part(&c, e, 0, b->n, 0, r->n, r->low);
  lattn_status status = lattn_batch_attend(b->n, b->sequences, call, r->q, r->out, r->lse, exec);
  runner_close(&u);
  return status;
}

/* Draws each sequence's rows: how many (up to `most`), which, and whether they are drafts. */
static void batch_rows(batch *b, const world *w, int drafts, int64_t most, test_rng *rng) {
  static const int64_t counts[] = {0, 1, 1, 1, 1, 2, 5, 16, 17, 40, 130};
  b->first[0] = 0;
  for (int64_t i = 0; i < b->n; i++) {
    int64_t at = b->first[i], count = PICK(rng, counts);
    if (rng_chance(rng, 4)) count = 700;
    if (count > BATCH_ROWS - at) count = BATCH_ROWS - at;
    if (count > most) count = most;
    b->sequences[i].cache = b->caches[i];
    b->sequences[i].parents = NULL;
    if (drafts && count > 0 && rng_chance(rng, 30)) {
      if (count > DRAFTS) count = DRAFTS;
      draft_tree_make(&b->trees[i], w, (int32_t)count, (int)rng_below(rng, 4), rng);
      b->sequences[i].parents = b->trees[i].parents;
      memcpy(b->tokens + at, b->trees[i].tokens, (size_t)count * sizeof *b->tokens);
    } else {
      for (int64_t t = 0; t < count; t++)
        b->tokens[at + t] = (int32_t)rng_below(rng, w->library.capacity);
    }
    b->sequences[i].n_tokens = count;
    b->first[i + 1] = at + count;
  }
}

/* What one call a sequence gives, on forks: the rows go to r. */
static void batch_alone(batch *b, const world *w, const extras *e, const call_rows *r) {
  for (int64_t i = 0; i < b->n; i++) {
    int64_t at = b->first[i], n = b->sequences[i].n_tokens;
    lattn_status status =
        b->sequences[i].parents
            ? draft_rows_of(w, b->alone[i], e, i, r, at, n, b->sequences[i].parents, RUN_1)
            : extend_rows(w, b->alone[i], e, i, r, at, n, RUN_1);
    CHECK_STATUS(status, LATTN_OK);
  }
}

/* Both caches of a sequence went the same way. */
static void batch_compare(batch *b, const world *w, const call_rows *together,
                          const call_rows *alone) {
  for (int64_t i = 0; i < b->n; i++) {
    int64_t n = b->sequences[i].n_tokens, drafts = b->sequences[i].parents ? n : 0;
    if (!same_rows(together, b->first[i], alone, b->first[i], n))
      FAIL("sequence %" PRId64 " of %" PRId64 ": %" PRId64 " %s after %" PRId64
           " tokens are not those of a call alone",
           i, b->n, n, drafts ? "drafts" : "rows", b->lines[i].n);
    CHECK_I64(cache_stats(b->caches[i]).n_drafts, drafts);
    CHECK_I64(cache_stats(b->caches[i]).n_tokens, b->lines[i].n + n - drafts);
    if (drafts) {
      CHECK_STATUS(lattn_cache_accept(b->caches[i], 0, NULL), LATTN_OK);
      CHECK_STATUS(lattn_cache_accept(b->alone[i], 0, NULL), LATTN_OK);
      continue;
    }
    memcpy(b->lines[i].tokens + b->lines[i].n, b->tokens + b->first[i],
           (size_t)n * sizeof *b->tokens);
    b->lines[i].n += n;
    CHECK(saved(b->caches[i]) == saved(b->alone[i]));
  }
  (void)w;
}

/* One call for all against one call each. */
static void batch_step(batch *b, const world *w, int drafts, int64_t most, int run, test_rng *rng) {
  extras e;
  int64_t longest = 0;
  batch_rows(b, w, drafts, most, rng);
  for (int64_t i = 0; i < b->n; i++) {
    int64_t n = b->lines[i].n + b->sequences[i].n_tokens;
    longest = n > longest ? n : longest;
    b->alone[i] = fork_of(b->caches[i]);
  }
  call_rows together = rows_new(w, b->tokens, b->first[b->n]);
  call_rows alone = rows_new(w, b->tokens, b->first[b->n]);
  extras_open(&e, w, b->n, together.n, longest, 30, rng);
  batch_alone(b, w, &e, &alone);
  if (CHECK_STATUS(batch_extend(w, b, &e, &together, run), LATTN_OK))
    batch_compare(b, w, &together, &alone);
  for (int64_t i = 0; i < b->n; i++) release(b->alone[i]);
  extras_close(&e);
  rows_free(&together), rows_free(&alone);
}

/* Takes a range away by chance, where the policies allow it. */
static void batch_remove(lattn_cache *cache, line *l, test_rng *rng) {
  int64_t from = rng_below(rng, l->n + 1), to = from + rng_below(rng, 200);
  if (!rng_chance(rng, 30) || to > l->n || lattn_cache_remove(cache, from, to)) return;
  line_remove(l, from, to);
}

/* A family on one prefix: forks, and forks of forks that went on by some tokens. */
static void batch_family(batch *b, const world *w, int64_t prefix, test_rng *rng) {
  static const int64_t further[] = {0, 1, 3, 100, 130, 2100};
  grow_unseen(w, b->caches[0], &b->lines[0], prefix, rng);
  for (int64_t i = 1; i < b->n; i++) {
    int64_t from = rng_below(rng, i);
    b->caches[i] = fork_of(b->caches[from]);
    b->lines[i] = b->lines[from];
    grow_unseen(w, b->caches[i], &b->lines[i], PICK(rng, further), rng);
    batch_remove(b->caches[i], &b->lines[i], rng);
  }
}

/* Sequences that share prefixes of any length, of one policy. */
static void batch_shared(uint64_t seed, int64_t prefix) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  test_rng rng = rng_seed(seed);
  check_case("batch: seed %" PRIu64 ", shared prefix of %" PRId64, seed, prefix);
  random_config(&w.s, prefix + 6 * 2100 + 3 * 900, &rng);
  if (w.s.config.capacity > 20000) w.s.config.capacity = 20000;
  random_heads(&w.s, 20, &rng);
  w.s.config.max_drafts = DRAFTS;
  w.s.config.max_append = 512;
  world_open(&w, 300, SOME, seed);
  b->n = rng_range(&rng, 2, 5);
  b->caches[0] = cache_of(w.pool, &w.s);
  batch_family(b, &w, prefix, &rng);
  for (int step = 0; step < 2; step++)
    batch_step(b, &w, 1, BATCH_ROWS, (int)rng_below(&rng, RUN_KINDS), &rng);
  for (int64_t i = 0; i < b->n; i++) release(b->caches[i]);
  world_close(&w);
  free(b);
}

/* Many sequences of one row or few, forked from one prefix at different lengths, up to 31 segments:
   more aligned pieces than a group may keep apart. */
static void batch_deep(int kind, int64_t most) {
  static const int64_t lengths[] = {0, 2047, 2048, 7 * 2048, 15 * 2048 + 10, 31 * 2048 + 300};
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  lattn_cache *trunk;
  line *l = (line *)ref_memory(1, sizeof *l);
  test_rng rng = rng_seed(54 + (uint64_t)kind);
  check_case("batch: 20 sequences on up to 31 shared segments, kind %d", kind);
  setup_init(&w.s, 4, 2, 4, 4, 66000);
  if (kind & 1) setup_rotate(&w.s, LATTN_ROTARY_HALF_SPLIT, 0, 4);
  if (kind & 1) setup_stream(&w.s, 1, 4, 100, 0, 0);
  if (kind & 2) setup_sinks(&w.s), w.s.config.key_type = LATTN_F16;
  w.s.config.max_drafts = DRAFTS;
  w.s.config.max_append = 2048;
  world_open(&w, 300, 4, 54);
  trunk = cache_of(w.pool, &w.s);
  for (int64_t i = 0; i < BATCH; i++) {
    int64_t length = lengths[i * 6 / BATCH], at = kind % 3 ? BATCH - 1 - i : i; /* longest first */
    if (l->n < length) grow_unseen(&w, trunk, l, length - l->n, &rng);
    b->caches[at] = fork_of(trunk);
    b->lines[at] = *l;
    if (i % 3) grow(&w, b->caches[at], &b->lines[at], i % 5, &rng);
  }
  release(trunk);
  b->n = BATCH;
  for (int step = 0; step < 2; step++)
    batch_step(b, &w, step, most, RUN_1 + (kind + step) % 3, &rng);
  for (int64_t i = 0; i < b->n; i++) release(b->caches[i]);
  world_close(&w);
  free(b), free(l);
}

/* Sequences of different policies and limits, sharing nothing; two pools. */
static void batch_mixed(uint64_t seed) {
  world w, v;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  test_rng rng = rng_seed(seed), same = rng;
  check_case("batch: mixed policies in two pools, seed %" PRIu64, seed);
  random_config(&w.s, 4000, &rng);
  random_config(&v.s, 4000, &same);
  w.s.config.max_drafts = v.s.config.max_drafts = DRAFTS;
  w.s.config.max_append = v.s.config.max_append = 200; /* the least of all */
  world_open(&w, 300, 2 * SOME, seed);
  world_open(&v, 300, 2 * SOME, seed);
  b->n = rng_range(&rng, 1, SOME);
  for (int64_t i = 0; i < b->n; i++) {
    setup *s = &b->setups[i];
    test_rng again = rng_seed(seed);
    world *of = rng_chance(&rng, 60) ? &w : &v;
    random_config(s, rng_range(&rng, 3500, 4000), &again);
    random_heads(s, 20, &rng);
    s->config.max_drafts = DRAFTS;
    s->config.max_append = rng_range(&rng, 200, 600);
    b->caches[i] = cache_of(of->pool, s);
    grow_unseen(of, b->caches[i], &b->lines[i], rng_below(&rng, 400), &rng);
    batch_remove(b->caches[i], &b->lines[i], &rng);
  }
  w.s.config.max_append = 600; /* the most: scratch is asked for with it */
  for (int step = 0; step < 3; step++)
    batch_step(b, &w, 1, BATCH_ROWS, (int)rng_below(&rng, RUN_KINDS), &rng);
  for (int64_t i = 0; i < b->n; i++) release(b->caches[i]);
  world_close(&w), world_close(&v);
  free(b);
}

/* Append to all, then one attend for all: the bits of extend. A cache may come twice. */
static void batch_attends(uint64_t seed) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  extras e;
  test_rng rng = rng_seed(seed);
  int64_t prefix = rng_chance(&rng, 30) ? rng_range(&rng, 2000, 4300) : rng_below(&rng, 300);
  check_case("batch: attend, seed %" PRIu64, seed);
  random_config(&w.s, prefix + 5 * 2100 + 900, &rng);
  random_heads(&w.s, 20, &rng);
  w.s.config.max_append = 800;
  world_open(&w, 300, 2 * SOME + 2, seed);
  b->n = rng_range(&rng, 2, 5);
  b->caches[0] = cache_of(w.pool, &w.s);
  batch_family(b, &w, prefix, &rng);
  batch_rows(b, &w, 0, BATCH_ROWS, &rng);
  call_rows together = rows_new(&w, b->tokens, b->first[b->n]);
  call_rows alone = rows_new(&w, b->tokens, b->first[b->n]);
  extras_open(&e, &w, b->n, together.n, w.s.config.capacity, 30, &rng);
  for (int64_t i = 0; i < b->n; i++) {
    call_rows part = rows_part(&alone, b->first[i], b->sequences[i].n_tokens);
    b->alone[i] = fork_of(b->caches[i]);
    CHECK_STATUS(lattn_cache_append(b->caches[i], part.k, part.v, NULL), LATTN_OK);
  }
  batch_alone(b, &w, &e, &alone);
  for (int run = 0; run < RUN_KINDS; run++) {
    if (CHECK_STATUS(batch_attend(&w, b, &e, &together, run), LATTN_OK))
      CHECK(same_rows(&together, 0, &alone, 0, together.n));
    memset(test_writable(together.out.data), 0, 4);
  }
  check_case("batch: attend of one cache twice, seed %" PRIu64, seed);
  b->sequences[1] = b->sequences[0];
  b->n = 2;
  int64_t n = b->sequences[0].n_tokens, row = w.heads * w.value_dim;
  memcpy(b->tokens + n, b->tokens, (size_t)n * sizeof *b->tokens);
  call_rows twice = rows_new(&w, b->tokens, 2 * n);
  if (CHECK_STATUS(batch_attend(&w, b, NULL, &twice, RUN_THREADS), LATTN_OK) && n)
    CHECK(!memcmp(twice.out.data, (const float *)twice.out.data + n * row,
                  (size_t)(n * row) * sizeof(float)));
  for (int i = 0; i < BATCH; i++) {
    if (b->caches[i]) release(b->caches[i]);
    if (b->alone[i]) release(b->alone[i]);
  }
  extras_close(&e);
  rows_free(&together), rows_free(&alone), rows_free(&twice);
  world_close(&w);
  free(b);
}

/* A world of `n` forks of a prefix, each about to get `rows` rows. */
static void batch_plain(batch *b, world *w, int64_t n, int64_t prefix, int64_t rows,
                        page_budget *budget, test_rng *rng) {
  plain_setup(&w->s, 1500, 4, 50, 0);
  w->s.config.max_drafts = 8;
  w->s.config.max_append = 16;
  if (budget) world_open_budget(w, 300, 3 * SOME, 55, budget);
  else world_open(w, 300, 3 * SOME, 55);
  b->n = n;
  for (int64_t i = 0; i < n; i++) {
    b->caches[i] = i ? fork_of(b->caches[0]) : cache_of(w->pool, &w->s);
    if (i) b->lines[i] = b->lines[0];
    else grow_unseen(w, b->caches[0], &b->lines[0], prefix, rng);
    b->sequences[i].cache = b->caches[i];
    b->sequences[i].n_tokens = rows;
    b->first[i + 1] = b->first[i] + rows;
  }
  for (int64_t i = 0; i < n * rows; i++) b->tokens[i] = (int32_t)rng_below(rng, 300);
}

static void batch_close(batch *b, world *w) {
  for (int64_t i = 0; i < BATCH; i++)
    if (b->caches[i]) release(b->caches[i]);
  world_close(w);
  free(b);
}

/* Nothing changed in any cache, nothing was written. */
static void batch_untouched(const batch *b, const call_rows *r, const uint64_t *states) {
  const float *out = (const float *)r->out.data;
  for (int64_t i = 0; i < r->n * r->out.n_heads * r->out.dim; i++) CHECK(out[i] == 12345.0f);
  for (int64_t i = 0; i < r->n * r->out.n_heads; i++) CHECK(r->lse[i] == 12345.0f);
  for (int64_t i = 0; i < BATCH && b->caches[i]; i++) CHECK(state_of(b->caches[i]) == states[i]);
}

/* Too few pages for all: nobody gets one. Every number of pages short of enough. */
static void batch_full(void) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  page_budget budget = {100000, 0};
  uint64_t states[BATCH];
  test_rng rng = rng_seed(51);
  check_case("batch: LATTN_E_FULL is for all or none");
  batch_plain(b, &w, 4, 250, 10, &budget, &rng);
  call_rows r = rows_new(&w, b->tokens, b->first[4]), alone = rows_new(&w, b->tokens, b->first[4]);
  for (int64_t i = 0; i < 4; i++) states[i] = state_of(b->caches[i]);
  int64_t need = 0, held = pages(&w);
  for (; need < 100; need++) {
    budget.left = need;
    lattn_status status = batch_extend(&w, b, NULL, &r, RUN_1);
    if (status == LATTN_OK) break;
    CHECK_STATUS(status, LATTN_E_FULL);
    CHECK_I64(pages(&w), held);
    batch_untouched(b, &r, states);
  }
  CHECK(need >= 4 * 2); /* two heads each take a new page */
  CHECK(need <= 4 * 4);
  budget.left = 100000;
  for (int64_t i = 0; i < 4; i++) b->alone[i] = cache_of(w.pool, &w.s);
  for (int64_t i = 0; i < 4; i++) extend_tokens(&w, b->alone[i], NULL, b->lines[i].tokens, 250);
  batch_alone(b, &w, NULL, &alone);
  batch_compare(b, &w, &r, &alone);
  for (int64_t i = 0; i < 4; i++) release(b->alone[i]);
  rows_free(&r), rows_free(&alone);
  batch_close(b, &w);
  CHECK_I64(budget.out, 0);
}

/* Stops at the call after so many; must not be asked again. */
typedef struct stopper {
  int32_t left, asked_again;
  int64_t stopped_at; /* tokens done then; -1: not yet */
} stopper;

static int32_t stop_after(void *user, int64_t done, int64_t total) {
  stopper *s = (stopper *)user;
  (void)total;
  s->asked_again += s->stopped_at >= 0;
  if (s->left-- > 0) return 0;
  s->stopped_at = done;
  return 1;
}

/* Stopped after any number of steps: so many rows are done in order, the others not begun; going on
   from there gives the rows of an undisturbed call. */
static void batch_cancel(int32_t after, int run) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  runner u;
  stopper stop = {after, 0, -1};
  test_rng rng = rng_seed(52);
  int64_t done = -1, rest = 0;
  check_case("batch: cancelled after %d steps, run %d", (int)after, run);
  batch_plain(b, &w, 4, 200, 60, NULL, &rng);
  call_rows r = rows_new(&w, b->tokens, b->first[4]), alone = rows_new(&w, b->tokens, b->first[4]);
  for (int64_t i = 0; i < 4; i++) b->alone[i] = fork_of(b->caches[i]);
  runner_open(&u, &w.s.config, 4, r.n, run);
  u.exec.progress = stop_after, u.exec.user = &stop, u.exec.tokens_done = &done;
  lattn_status status =
      lattn_batch_extend(4, b->sequences, NULL, r.q, r.k, r.v, r.out, r.lse, &u.exec);
  CHECK(!stop.asked_again);
  if (stop.stopped_at >= 0 && stop.stopped_at < r.n) CHECK_STATUS(status, LATTN_CANCELLED);
  if (stop.stopped_at < 0) CHECK_STATUS(status, LATTN_OK);
  if (stop.stopped_at >= 0) CHECK_I64(done, stop.stopped_at);
  else CHECK_I64(done, r.n);
  if (after == 0) CHECK(done < r.n); /* four caches are more than one step */
  runner_close(&u);
  CHECK(done >= 0 && done <= r.n);
  batch_alone(b, &w, NULL, &alone);
  CHECK(same_rows(&r, 0, &alone, 0, 0) && done >= 0);
  for (int64_t i = 0; i < 4 && done >= 0; i++) {
    int64_t part = done - b->first[i] < 0 ? 0 : done - b->first[i] > 60 ? 60 : done - b->first[i];
    CHECK_I64(cache_stats(b->caches[i]).n_tokens, 200 + part);
    if (part < 60) extend_tokens(&w, b->caches[i], NULL, b->tokens + b->first[i] + part, 60 - part);
    CHECK(saved(b->caches[i]) == saved(b->alone[i]));
    rest += 60 - part;
    release(b->alone[i]);
  }
  CHECK_I64(rest, r.n - done);
  for (int64_t i = 0; i < done * w.heads; i++) CHECK(same_f32(r.lse[i], alone.lse[i]));
  for (int64_t i = done * w.heads; i < r.n * w.heads; i++) CHECK(r.lse[i] == 12345.0f);
  rows_free(&r), rows_free(&alone);
  batch_close(b, &w);
}

/* Sizes beyond 64 bits are impossible, not small. */
static void batch_huge(void) {
  lattn_cache_config c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.n_kv_heads = 1, c.n_heads = 1 << 30;
  c.key_dim = 1, c.value_dim = 1 << 20;
  c.capacity = 128;
  check_case("batch: scratch beyond 64 bits");
  CHECK(lattn_batch_scratch(&c, 1 << 28, INT64_C(1) << 31, 1) == 0);
  CHECK(lattn_batch_scratch(&c, 1 << 28, INT64_C(1) << 30, 1024) == 0);
  CHECK(lattn_batch_scratch(&c, -1, 1, 1) == 0 && lattn_batch_scratch(&c, 1, -1, 1) == 0);
}

/* What is refused, and that it changes nothing. */
static void batch_errors(void) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  setup other;
  uint64_t states[BATCH];
  test_rng rng = rng_seed(53);
  lattn_partial partial;
  lattn_call call;
  check_case("batch: what is refused");
  batch_plain(b, &w, 3, 100, 2, NULL, &rng);
  call_rows r = rows_new(&w, b->tokens, 6), five = rows_part(&r, 0, 5);
  for (int64_t i = 0; i < 3; i++) states[i] = state_of(b->caches[i]);
  b->sequences[2].cache = b->caches[0];
  CHECK_STATUS(batch_extend(&w, b, NULL, &r, RUN_1), LATTN_E_ALIAS);
  CHECK_STATUS(batch_extend(&w, b, NULL, &r, RUN_NULL), LATTN_E_ALIAS);
  b->sequences[2].cache = NULL;
  CHECK_STATUS(batch_extend(&w, b, NULL, &r, RUN_1), LATTN_E_NULL);
  CHECK_STATUS(batch_attend(&w, b, NULL, &r, RUN_1), LATTN_E_NULL);
  plain_setup(&other, 500, 4, 50, 0);
  other.config.softcap = 2;
  lattn_cache *stranger = cache_of(w.pool, &other);
  b->sequences[2].cache = stranger;
  CHECK_STATUS(batch_extend(&w, b, NULL, &r, RUN_1), LATTN_E_CONFIG);
  CHECK_STATUS(batch_attend(&w, b, NULL, &r, RUN_1), LATTN_E_CONFIG);
  release(stranger);
  b->sequences[2].cache = b->caches[2];
  CHECK_STATUS(batch_extend(&w, b, NULL, &five, RUN_1), LATTN_E_SHAPE);
  b->sequences[1].n_tokens = -1;
  CHECK_STATUS(batch_extend(&w, b, NULL, &r, RUN_1), LATTN_E_SHAPE);
  b->sequences[1].n_tokens = 2;
  memset(&call, 0, sizeof call), memset(&partial, 0, sizeof partial);
  call.size = sizeof call, partial.size = sizeof partial;
  call.partial = &partial;
  CHECK_STATUS(lattn_batch_extend(3, b->sequences, &call, r.q, r.k, r.v, r.out, r.lse, NULL),
               LATTN_E_CONFIG);
  CHECK_STATUS(lattn_batch_extend(-1, b->sequences, NULL, r.q, r.k, r.v, r.out, r.lse, NULL),
               LATTN_E_SHAPE);
  CHECK_STATUS(lattn_batch_extend(3, NULL, NULL, r.q, r.k, r.v, r.out, r.lse, NULL), LATTN_E_NULL);
  batch_untouched(b, &r, states);
  check_case("batch: n = 0, and no rows");
  call_rows none = rows_part(&r, 0, 0);
  CHECK_STATUS(lattn_batch_extend(0, NULL, NULL, none.q, none.k, none.v, none.out, none.lse, NULL),
               LATTN_OK);
  CHECK_STATUS(lattn_batch_attend(0, NULL, NULL, none.q, none.out, none.lse, NULL), LATTN_OK);
  int64_t done = -1;
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec, exec.tokens_done = &done;
  CHECK_STATUS(lattn_batch_extend(0, NULL, NULL, none.q, none.k, none.v, none.out, none.lse, &exec),
               LATTN_OK);
  CHECK_I64(done, 0);
  for (int i = 0; i < 3; i++) b->sequences[i].n_tokens = 0;
  CHECK_STATUS(batch_extend(&w, b, NULL, &none, RUN_1), LATTN_OK);
  CHECK_STATUS(batch_attend(&w, b, NULL, &none, RUN_1), LATTN_OK);
  batch_untouched(b, &r, states);
  rows_free(&r);
  batch_close(b, &w);
}

/* Pages are promised for just the steps that are taken: with any number of pages short of enough
   the call is refused and nothing changed; with enough it never asks for one more. */
static void pages_promised(const char *name, int64_t n, const int64_t *rows, int64_t window,
                           int64_t max_append, int rotates) {
  world w;
  batch *b = (batch *)ref_memory(1, sizeof *b);
  page_budget budget = {0, 0};
  uint64_t states[BATCH];
  test_rng rng = rng_seed(56);
  check_case("pages: %s", name);
  setup_init(&w.s, 1, 1, 4, 4, 0);
  if (rotates) setup_rotate(&w.s, LATTN_ROTARY_INTERLEAVED, 0, 4);
  setup_stream(&w.s, 0, 0, window, 0, 0);
  w.s.config.max_append = max_append;
  world_open_budget(&w, 300, 2 * SOME, 56, &budget);
  b->n = n;
  for (int64_t i = 0; i < n; i++) {
    b->caches[i] = cache_of(w.pool, &w.s);
    b->sequences[i].cache = b->caches[i];
    b->sequences[i].n_tokens = rows[i];
    b->first[i + 1] = b->first[i] + rows[i];
    states[i] = state_of(b->caches[i]);
  }
  int32_t *tokens = (int32_t *)ref_memory(b->first[n], sizeof *tokens);
  for (int64_t i = 0; i < b->first[n]; i++) tokens[i] = (int32_t)rng_below(&rng, 300);
  call_rows r = rows_new(&w, tokens, b->first[n]);
  for (int64_t left = 0; left < 100; left++) {
    budget.left = left;
    lattn_status status = batch_extend(&w, b, NULL, &r, RUN_1);
    if (status == LATTN_OK) break;
    if (!CHECK_STATUS(status, LATTN_E_FULL)) break;
    CHECK_I64(budget.out, 0);
    batch_untouched(b, &r, states);
  }
  budget.left = 1000;
  for (int64_t i = 0; i < n; i++) {
    line l;
    line_clear(&l);
    memcpy(l.tokens, tokens + b->first[i], (size_t)rows[i] * sizeof *tokens);
    l.n = rows[i];
    check_equals(&w, b->caches[i], &l, &rng);
  }
  rows_free(&r);
  free(tokens);
  batch_close(b, &w);
}

static void batch_pages(void) {
  static const int64_t one[] = {1024}, two[] = {64, 1472}, three[] = {100, 700, 1300};
  pages_promised("one cache, window 401, steps of 600", 1, one, 401, 600, 1);
  pages_promised("one cache, window 401, steps of 600, no rotary", 1, one, 401, 600, 0);
  pages_promised("64 and 1472 rows, window 1", 2, two, 1, 0, 1);
  pages_promised("64 and 1472 rows, window 1, no rotary", 2, two, 1, 0, 0);
  pages_promised("three caches, window 130, steps of 300", 3, three, 130, 300, 1);
}

static void test_batches(void) {
  static const int64_t prefixes[] = {0, 100, 2048, 2100, 4096, 6200, 10240};
  batch_errors();
  batch_huge();
  batch_full();
  for (int32_t after = 0; after < 6; after++)
    for (int run = RUN_NO_SCRATCH; run <= RUN_THREADS; run++) batch_cancel(after, run);
  batch_pages();
  for (int kind = 0; kind < 4; kind++) batch_deep(kind, kind < 2 ? 1 : 16);
  for (uint64_t i = 0; i < (uint64_t)test_count(24); i++) {
    uint64_t seed = test_first_seed() + 5100 + i;
    batch_shared(seed, prefixes[test_is_quick() ? 5 : i % 7]);
    batch_mixed(seed + 100);
    batch_attends(seed + 200);
  }
}

/* ---- removed ranges ---- */

static void remove_range(lattn_cache *cache, line *l, int64_t from, int64_t to) {
  if (CHECK_STATUS(lattn_cache_remove(cache, from, to), LATTN_OK)) line_remove(l, from, to);
  CHECK_I64(cache_stats(cache).n_tokens, l->n);
}

static double ref_tilt(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                       int64_t key, double s) {
  const batch_place *at = (const batch_place *)user; /* `row` counts all tokens here */
  return s + tilt(at->sequence + sequence, row - at->row, query, head, key);
}

/* Rows of r, the newest of the line, against float64 attention over the line: a cache that never
   had what was removed.

   The bound is ref.h's for the line, and what the holes add to it. Blocks and segments are cut by
   slots, so a row may meet up to two blocks more a hole, and one level more of the tree for them
   all: x = 2 * holes + 2 further folds. Each is an exp (4u of a weight, once in the numerator and
   once in the denominator) and a rounding of both sums: 10u * x of the largest |v| in all, and
   10u * x of lse. A 16-bit key was rounded after the rotation to its slot, which is not the
   position that the reference knows: half an ulp, which ref.h counts when it is told key_type. */
static void check_reference(const world *w, const line *l, const extras *e, const call_rows *r,
                            int64_t holes, test_rng *rng) {
  ref_call c;
  setup plain = w->s;
  token_list t = w->library;
  batch_place place = {0, l->n - r->n};
  double further = 10 * REF_U * (double)(2 * holes + 2), largest = 0;
  plain.config.key_type = 0;
  t.n = l->n;
  t.q = rows_copy(w->library.q, t.q_row, l->tokens, l->n);
  t.k = rows_copy(w->library.k, t.k_row, l->tokens, l->n);
  t.v = rows_copy(w->library.v, t.v_row, l->tokens, l->n);
  for (int64_t i = 0; i < l->n * t.v_row; i++) largest = fmax(largest, fabs((double)t.v[i]));
  ref_cache_open(&c, &plain, &t);
  c.key_type = w->s.config.key_type;
  if (e && e->key_bias.data) c.options.key_bias = &e->key_bias;
  if (e && e->scored) c.score = ref_tilt, c.score_user = &place;
  ref_row row = ref_row_new(&c);
  for (int64_t i = 0; i < r->n; i++)
    for (int64_t h = 0; h < w->heads; h++) {
      if (i < r->n - 1 && !rng_chance(rng, 600 / (int)r->n)) continue;
      const float *out = (const float *)r->out.data + (i * w->heads + h) * w->value_dim;
      double lse = (double)r->lse[i * w->heads + h];
      ref_cache_attend(&c, &w->s, l->n - r->n + i, h, &row);
      for (int64_t d = 0; d < w->value_dim; d++) {
        double got = (double)out[d], bound = row.bound[d] + further * largest;
        if (!(ref_ratio(got, row.out[d], bound) <= 1))
          FAIL("row %" PRId64 " of the newest %" PRId64 ", head %" PRId64
               ": %.9g, reference %.9g, bound %.3g",
               i, r->n, h, got, row.out[d], bound);
      }
      if (!(ref_ratio(lse, row.lse, row.lse_bound + further) <= 1))
        FAIL("row %" PRId64 " of the newest %" PRId64 ", head %" PRId64
             ": lse %.9g, reference %.9g",
             i, r->n, h, lse, row.lse);
    }
  ref_row_free(&row);
  ref_close(&c);
  free(t.q), free(t.k), free(t.v);
}

/* Attends the newest n rows and compares them with the reference. */
static void check_newest(const world *w, const lattn_cache *cache, const line *l, const extras *e,
                         int64_t n, test_rng *rng) {
  int64_t holes = cache_stats(cache).n_holes;
  call_rows r = rows_new(w, l->tokens + l->n - n, n);
  CHECK_I64(cache_stats(cache).n_tokens, l->n);
  if (CHECK_STATUS(attend_rows(w, cache, e, 0, &r, 0, n, (int)rng_below(rng, RUN_KINDS)), LATTN_OK))
    check_reference(w, l, e, &r, holes, rng);
  rows_free(&r);
}

/* Extends forks by the same rows in every cut; the bits are the same, and the reference's. */
static void check_cuts(const world *w, const lattn_cache *cache, const line *l, int64_t n,
                       test_rng *rng) {
  static const int64_t cuts[] = {1, 16, 100};
  line longer = *l;
  call_rows whole, part;
  extras e;
  for (int64_t i = 0; i < n; i++)
    longer.tokens[longer.n++] = (int32_t)rng_below(rng, w->library.capacity);
  whole = rows_new(w, longer.tokens + l->n, n), part = rows_new(w, longer.tokens + l->n, n);
  extras_open(&e, w, 1, n, longer.n, 30, rng);
  extras_by_position(&e);
  lattn_cache *fork = fork_of(cache);
  if (CHECK_STATUS(extend_rows(w, fork, &e, 0, &whole, 0, n, RUN_1), LATTN_OK))
    check_reference(w, &longer, &e, &whole, cache_stats(fork).n_holes, rng);
  uint64_t end = saved(fork);
  release(fork);
  for (int i = 0; i < 3; i++) {
    fork = fork_of(cache);
    for (int64_t at = 0; at < n; at += cuts[i]) {
      int64_t count = n - at < cuts[i] ? n - at : cuts[i];
      int run = (int)rng_below(rng, RUN_KINDS);
      CHECK_STATUS(extend_rows(w, fork, &e, 0, &part, at, count, run), LATTN_OK);
    }
    CHECK(same_rows(&whole, 0, &part, 0, n));
    CHECK(saved(fork) == end);
    release(fork);
  }
  extras_close(&e);
  rows_free(&whole), rows_free(&part);
}

/* A tree of drafts on a cache with holes: plain decode still. */
static void check_drafts(const world *w, lattn_cache *cache, const line *l, test_rng *rng) {
  extras e;
  draft_tree t;
  lattn_cache *before = fork_of(cache);
  draft_tree_make(&t, w, (int32_t)rng_range(rng, 1, 12), (int)rng_below(rng, 4), rng);
  extras_open(&e, w, 1, t.n, l->n + t.n, 30, rng);
  draft_all(w, cache, before, &e, &t, rng);
  CHECK_STATUS(lattn_cache_accept(cache, 0, NULL), LATTN_OK);
  CHECK(state_of(cache) == state_of(before));
  extras_close(&e);
  release(before);
}

/* Whether tokens from ... to - 1 are held by the head of these statistics. */
static int holds_range(const lattn_cache_head_stats *stats, int64_t from, int64_t to) {
  if (from < stats->n_sink_tokens) from = stats->n_sink_tokens;
  return from >= to || from >= stats->first_token;
}

/* Whether a removal of from ... to - 1 must say so: CONFIG, EVICTED, or OK when neither must. The
   next token, at position n - m then, needs its window: the tokens before the range at their
   places, those behind it m further. Heads may differ: either status is then right. */
static int remove_must(const world *w, const lattn_cache *cache, int64_t from, int64_t to,
                       lattn_status status) {
  int64_t n = cache_stats(cache).n_tokens, m = to - from;
  int sinks = 0, evicted = 0;
  for (int64_t g = 0; g < w->s.config.n_kv_heads && m; g++) {
    const lattn_head *head = &w->s.heads[g];
    lattn_cache_head_stats stats = head_stats(cache, g);
    int64_t begin = n - m - head->window + 1;
    if (head->policy != LATTN_HEAD_STREAMING) continue;
    sinks |= to < n && from < head->sinks;
    if (begin < 0) begin = 0;
    if (!holds_range(&stats, begin, from)) evicted = 1;
    if (!holds_range(&stats, begin < from ? to : begin + m, n)) evicted = 1;
  }
  if (status == LATTN_E_CONFIG) return sinks;
  if (status == LATTN_E_EVICTED) return evicted;
  return status == LATTN_OK && !sinks && !evicted;
}

/* Ranges at the beginning, inside a page, over pages and segments, that touch one another. */
static void remove_named(const char *name, int64_t n, const int64_t (*ranges)[2], int count,
                         int64_t holes) {
  for (int kind = 0; kind < 6; kind++) {
    world w;
    line l;
    test_rng rng = rng_seed(61 + (uint64_t)kind);
    line_clear(&l);
    if (test_is_quick() && kind % 3) continue;
    check_case("remove: %s, kind %d", name, kind);
    setup_init(&w.s, 4, 2, 6, 5, n + 300);
    if (kind == 1) setup_rotate(&w.s, LATTN_ROTARY_INTERLEAVED, 0, 6);
    if (kind == 2) setup_rotate(&w.s, LATTN_ROTARY_HALF_SPLIT, 2, 4); /* partial */
    if (kind >= 3) setup_alibi(&w.s);
    if (kind == 4) setup_rotate(&w.s, LATTN_ROTARY_HALF_SPLIT, 0, 6), setup_sinks(&w.s);
    if (kind == 5) w.s.config.key_type = LATTN_F16, w.s.config.softcap = 2;
    w.s.config.max_drafts = DRAFTS;
    world_open(&w, 300, 5, 61);
    lattn_cache *cache = cache_of(w.pool, &w.s);
    grow_unseen(&w, cache, &l, n, &rng);
    for (int i = 0; i < count; i++) remove_range(cache, &l, ranges[i][0], ranges[i][1]);
    CHECK_I64(cache_stats(cache).n_holes, holes);
    check_newest(&w, cache, &l, NULL, l.n < 300 ? l.n : 300, &rng);
    check_cuts(&w, cache, &l, 150, &rng);
    check_drafts(&w, cache, &l, &rng);
    release(cache);
    world_close(&w);
  }
}

static void test_remove_named(void) {
  static const int64_t one[][2] = {{100, 150}}, in_page[][2] = {{140, 150}}, at_0[][2] = {{0, 50}};
  static const int64_t at_end[][2] = {{200, 299}}, panel[][2] = {{16, 32}};
  static const int64_t page[][2] = {{128, 256}}, many[][2] = {{10, 20}, {50, 60}, {100, 230}};
  static const int64_t touching[][2] = {{100, 110}, {100, 105}, {90, 100}};
  static const int64_t over[][2] = {{100, 110}, {80, 120}},
                       around[][2] = {{50, 60}, {70, 80}, {40, 90}};
  static const int64_t all_but_one[][2] = {{0, 299}}, single[][2] = {{7, 8}, {8, 9}, {100, 101}};
  static const int64_t segment[][2] = {{100, 2100}}, segments[][2] = {{5, 15}, {2000, 4100}};
  remove_named("one range", 300, one, 1, 1);
  remove_named("inside one page", 300, in_page, 1, 1);
  remove_named("from 0", 300, at_0, 1, 1);
  remove_named("up to the newest token", 300, at_end, 1, 1);
  remove_named("a panel", 300, panel, 1, 1);
  remove_named("a page", 300, page, 1, 1);
  remove_named("three ranges", 400, many, 3, 3);
  remove_named("ranges that touch", 300, touching, 3, 1);
  remove_named("a range over a hole", 300, over, 2, 1);
  remove_named("a range over two holes", 300, around, 3, 1);
  remove_named("all but the newest token", 300, all_but_one, 1, 1);
  remove_named("single tokens", 300, single, 3, 3);
  remove_named("across a segment", 2300, segment, 1, 1);
  remove_named("across two segments", 4300, segments, 2, 2);
}

/* Pages wholly inside a hole are given back; shared ones stay with the other holder. */
static void remove_pages(void) {
  world w;
  line l;
  test_rng rng = rng_seed(62);
  line_clear(&l);
  check_case("remove: pages wholly inside are given back");
  plain_setup(&w.s, 1200, 0, 0, 0);
  world_open(&w, 300, 5, 62);
  lattn_cache *cache = cache_of(w.pool, &w.s), *fork;
  grow_unseen(&w, cache, &l, 1000, &rng);
  int64_t held = pages(&w);
  CHECK_I64(held, 2 * 8);
  fork = fork_of(cache);
  remove_range(cache, &l, 100, 900); /* pages 1 ... 6 of both heads */
  CHECK_I64(pages(&w), held);
  release(fork);
  CHECK_I64(pages(&w), held - 2 * 6);
  CHECK_I64(cache_stats(cache).token_bytes, 200 * 2 * (6 + 5) * 4);
  check_newest(&w, cache, &l, NULL, 200, &rng);
  remove_range(cache, &l, 0, 100); /* the rest of page 0 */
  CHECK_I64(pages(&w), 2);
  CHECK_I64(cache_stats(cache).n_holes, 1);
  check_newest(&w, cache, &l, NULL, 100, &rng);
  grow(&w, cache, &l, 1000, &rng);
  check_newest(&w, cache, &l, NULL, 50, &rng);
  CHECK_STATUS(lattn_cache_clear(cache), LATTN_OK);
  CHECK_I64(cache_stats(cache).n_holes, 0);
  line_clear(&l);
  grow(&w, cache, &l, 300, &rng);
  check_equals(&w, cache, &l, &rng);
  release(cache);
  world_close(&w);
}

/* To the end it is truncate, bit for bit, whatever the policies. */
static void remove_to_end(uint64_t seed) {
  world w;
  line l;
  test_rng rng = rng_seed(seed);
  line_clear(&l);
  check_case("remove: to the end = truncate, seed %" PRIu64, seed);
  random_config(&w.s, 500, &rng);
  random_heads(&w.s, 200, &rng);
  world_open(&w, 300, 6, seed);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, rng_range(&rng, 1, 400), &rng);
  for (int i = 0; i < 5; i++) {
    int64_t from = l.n - rng_below(&rng, (i % 2 ? 30 : l.n) < l.n ? (i % 2 ? 30 : l.n) : l.n + 1);
    lattn_cache *a = fork_of(cache), *b = fork_of(cache);
    lattn_status status = lattn_cache_truncate(a, from);
    CHECK_STATUS(lattn_cache_remove(b, from, l.n), status);
    CHECK(state_of(a) == state_of(b));
    CHECK_I64(cache_stats(b).n_holes, 0);
    CHECK(state_of(b) == state_of(cache) || status == LATTN_OK);
    release(a), release(b);
  }
  release(cache);
  world_close(&w);
}

/* Any ranges on any cache: the status that the contract names, then everything after it. */
static void remove_random(uint64_t seed) {
  world w;
  line l, other;
  extras e;
  test_rng rng = rng_seed(seed);
  int is_long = rng_chance(&rng, 10);
  line_clear(&l);
  check_case("remove: random, seed %" PRIu64, seed);
  random_config(&w.s, is_long ? 5000 : 900, &rng);
  random_heads(&w.s, 300, &rng);
  w.s.config.max_drafts = DRAFTS;
  w.s.config.max_holes = 5;
  world_open(&w, 300, 8, seed);
  lattn_cache *cache = cache_of(w.pool, &w.s), *copy;
  grow_unseen(&w, cache, &l, is_long ? 4200 : rng_range(&rng, 1, 500), &rng);
  other = l;
  copy = fork_of(cache);
  extras_open(&e, &w, 1, 1, w.s.config.capacity, 20, &rng);
  extras_by_position(&e);
  for (int step = 0; step < 12; step++) {
    int64_t from = rng_below(&rng, l.n + 1), most = rng_chance(&rng, 70) ? 30 : l.n;
    int64_t to = from + rng_below(&rng, most + 1), holes = cache_stats(cache).n_holes;
    if (to >= l.n) to = from;
    uint64_t before = state_of(cache);
    int fine = remove_must(&w, cache, from, to, LATTN_OK);
    int sinks = remove_must(&w, cache, from, to, LATTN_E_CONFIG);
    int evicted = remove_must(&w, cache, from, to, LATTN_E_EVICTED);
    lattn_status got = lattn_cache_remove(cache, from, to);
    if (got == LATTN_OK) CHECK(fine);
    else if (got == LATTN_E_CONFIG) CHECK(sinks);
    else if (got == LATTN_E_EVICTED) CHECK(evicted);
    else CHECK(got == LATTN_E_FULL && holes == 5);
    if (got == LATTN_OK) line_remove(&l, from, to);
    else CHECK(state_of(cache) == before);
    CHECK(cache_stats(cache).n_holes <= holes + (got == LATTN_OK && from < to));
    if (l.n && holds_newest(&w, cache)) check_newest(&w, cache, &l, &e, 1, &rng);
    if (rng_chance(&rng, 40) && l.n < w.s.config.capacity - 300)
      grow(&w, cache, &l, rng_range(&rng, 1, 60), &rng);
    if (l.n == 0) grow(&w, cache, &l, 3, &rng);
  }
  if (l.n < w.s.config.capacity - 90) check_cuts(&w, cache, &l, 60, &rng);
  check_drafts(&w, cache, &l, &rng);
  check_equals(&w, copy, &other, &rng); /* which shared all those pages */
  extras_close(&e);
  release(copy);
  release(cache);
  world_close(&w);
}

typedef struct memory {
  char *data;
  size_t n, room, at;
} memory;

static int32_t memory_write(void *user, const void *data, size_t bytes) {
  memory *m = (memory *)user;
  if (m->n + bytes > m->room) {
    m->room = 2 * (m->n + bytes);
    m->data = (char *)realloc(m->data, m->room);
  }
  memcpy(m->data + m->n, data, bytes);
  m->n += bytes;
  return 0;
}

static int32_t memory_read(void *user, void *data, size_t bytes) {
  memory *m = (memory *)user;
  if (bytes > m->n - m->at) return 1;
  memcpy(data, m->data + m->at, bytes);
  m->at += bytes;
  return 0;
}

/* Checkpoints, forks, truncation, save and load of a cache with holes keep its bits. */
static void remove_then(int kind) {
  world w;
  line l, then;
  memory file = {NULL, 0, 0, 0};
  test_rng rng = rng_seed(64);
  line_clear(&l);
  check_case("remove: then checkpoint, truncate, save and load, kind %d", kind);
  plain_setup(&w.s, 900, 4, kind ? 50 : 0, 100);
  if (kind == 2) w.s.config.key_type = LATTN_BF16, w.s.config.value_type = LATTN_F16;
  world_open(&w, 300, 8, 64);
  lattn_cache *cache = cache_of(w.pool, &w.s), *loaded = cache_of(w.pool, &w.s), *fork;
  grow(&w, cache, &l, 600, &rng);
  lattn_checkpoint *whole = checkpoint_of(cache), *holed;
  uint64_t first = state_of(cache);
  remove_range(cache, &l, 10, 40);
  remove_range(cache, &l, 100, 400);
  holed = checkpoint_of(cache), then = l;
  uint64_t second = state_of(cache);
  call_rows before = rows_new(&w, l.tokens + l.n - 1, 1),
            after = rows_new(&w, l.tokens + l.n - 1, 1);
  CHECK_STATUS(attend_rows(&w, cache, NULL, 0, &before, 0, 1, RUN_1), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(cache, memory_write, &file, NULL), LATTN_OK);
  grow(&w, cache, &l, 200, &rng);
  CHECK_STATUS(lattn_cache_rollback(cache, whole), LATTN_OK);
  CHECK(state_of(cache) == first);
  CHECK_I64(cache_stats(cache).n_holes, 0);
  CHECK_STATUS(lattn_cache_rollback(cache, holed), LATTN_OK);
  CHECK(state_of(cache) == second);
  CHECK_I64(cache_stats(cache).n_holes, 2);
  CHECK_STATUS(lattn_cache_load(loaded, memory_read, &file), LATTN_OK);
  CHECK(file.at == file.n);
  CHECK(state_of(loaded) == second);
  fork = fork_of(loaded);
  for (int i = 0; i < 2; i++) {
    CHECK_STATUS(attend_rows(&w, i ? fork : loaded, NULL, 0, &after, 0, 1, RUN_2), LATTN_OK);
    CHECK(same_rows(&before, 0, &after, 0, 1));
  }
  check_cuts(&w, loaded, &then, 100, &rng);
  int64_t to = kind ? then.n - 20 : 5; /* a full head may go back before both holes */
  CHECK_STATUS(lattn_cache_truncate(loaded, to), LATTN_OK);
  then.n = to;
  if (!kind) CHECK_I64(cache_stats(loaded).n_holes, 0);
  check_newest(&w, loaded, &then, NULL, 1, &rng);
  if (!kind) check_equals(&w, loaded, &then, &rng);
  drop(whole), drop(holed);
  release(fork), release(loaded), release(cache);
  rows_free(&before), rows_free(&after);
  free(file.data);
  world_close(&w);
}

static void remove_errors(void) {
  world w;
  line l;
  test_rng rng = rng_seed(65);
  line_clear(&l);
  check_case("remove: what is refused changes nothing");
  plain_setup(&w.s, 500, 4, 50, 20);
  w.s.config.max_holes = 2;
  world_open(&w, 300, 5, 65);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 400, &rng);
  uint64_t before = state_of(cache);
  CHECK_STATUS(lattn_cache_remove(NULL, 10, 20), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_remove(cache, -1, 20), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_remove(cache, 20, 10), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_remove(cache, 20, 401), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_remove(cache, 3, 20), LATTN_E_CONFIG); /* sinks */
  CHECK_STATUS(lattn_cache_remove(cache, 0, 1), LATTN_E_CONFIG);
  CHECK_STATUS(lattn_cache_remove(cache, 20, 20), LATTN_OK);
  CHECK_STATUS(lattn_cache_remove(cache, 200, 399), LATTN_E_EVICTED);
  CHECK(state_of(cache) == before);
  remove_range(cache, &l, 10, 20);
  remove_range(cache, &l, 30, 40);
  before = state_of(cache);
  CHECK_STATUS(lattn_cache_remove(cache, 60, 70), LATTN_E_FULL);
  CHECK(state_of(cache) == before);
  check_newest(&w, cache, &l, NULL, 1, &rng);
  remove_range(cache, &l, 25, 35); /* it touches one: still two */
  CHECK_I64(cache_stats(cache).n_holes, 2);
  remove_range(cache, &l, 5, 50); /* both at once */
  CHECK_I64(cache_stats(cache).n_holes, 1);
  remove_range(cache, &l, l.n - 20, l.n - 10); /* in the window: within the slack */
  CHECK_I64(cache_stats(cache).n_holes, 2);
  check_newest(&w, cache, &l, NULL, 1, &rng);
  check_cuts(&w, cache, &l, 100, &rng);
  release(cache);
  world_close(&w);
}

/* A context that shifts for ever: one hole, no more memory. */
static void remove_shift(int kind) {
  enum { SINKS = 4, N = 600, STEP = 64, LOOPS = 200 };
  world w;
  line l;
  test_rng rng = rng_seed(66);
  int64_t most = 0, tables = 0;
  line_clear(&l);
  check_case("remove: context shift, %d times, kind %d", LOOPS, kind);
  plain_setup(&w.s, N, SINKS, kind ? 50 : 0, 0);
  if (kind == 2) setup_alibi(&w.s), w.s.config.key_type = LATTN_F16;
  world_open(&w, 300, 3, 66);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, N, &rng);
  for (int i = 0; i < LOOPS; i++) {
    remove_range(cache, &l, SINKS, SINKS + STEP);
    grow(&w, cache, &l, STEP, &rng);
    CHECK_I64(cache_stats(cache).n_holes, 1);
    lattn_pool_stats now = pool_stats(w.pool);
    if (i < 20) {
      most = now.n_pages > most ? now.n_pages : most;
      tables = now.table_bytes > tables ? now.table_bytes : tables;
    }
    CHECK(now.n_pages <= most && now.table_bytes <= tables);
    if (i % 40 == 39) check_newest(&w, cache, &l, NULL, kind ? 1 : 300, &rng);
  }
  /* A full head of 600 tokens: 5 pages without a hole, one more for each of its two edges. A window
     of 50: its page of sinks, and 3 at most. */
  CHECK(most <= (kind ? 7 + 4 : 2 * 7));
  check_cuts(&w, cache, &l, 0, &rng);
  release(cache);
  world_close(&w);
}

/* Four runs of 6 tokens over borders of segments, all between them removed: more partial sums wait
   for one another in the tree than these few tokens would have without holes. */
static void remove_far_apart(void) {
  enum { RUNS = 4, EACH = 6, CHUNK = 8192 };
  static const int64_t borders[RUNS + 1] = {64 * 2048, 112 * 2048, 124 * 2048, 127 * 2048, 0};
  world w;
  line l;
  test_rng rng = rng_seed(67);
  int64_t n = borders[RUNS - 1] + EACH / 2;
  line_clear(&l);
  check_case("remove: 24 tokens left of 260099, four holes");
  setup_init(&w.s, 1, 1, 1, 1, n + 100);
  w.s.config.max_append = CHUNK;
  world_open(&w, 300, 2, 67);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  for (int64_t at = 0; at < n; at += CHUNK) {
    int64_t count = n - at < CHUNK ? n - at : CHUNK;
    for (int64_t i = 0; i < count; i++) l.tokens[i] = (int32_t)((at + i) % 300);
    call_rows r = rows_new(&w, l.tokens, count);
    CHECK_STATUS(lattn_cache_append(cache, r.k, r.v, NULL), LATTN_OK);
    rows_free(&r);
  }
  for (int i = RUNS - 1; i >= 0; i--) { /* the newest first: positions are slots then */
    int64_t from = i ? borders[i - 1] + EACH / 2 : 0, to = borders[i] - EACH / 2;
    CHECK_STATUS(lattn_cache_remove(cache, from, to), LATTN_OK);
  }
  for (int i = 0; i < RUNS; i++)
    for (int64_t t = 0; t < EACH; t++)
      l.tokens[l.n++] = (int32_t)((borders[i] - EACH / 2 + t) % 300);
  CHECK_I64(cache_stats(cache).n_holes, RUNS);
  CHECK_I64(cache_stats(cache).n_tokens, l.n);
  for (int run = 0; run < RUN_KINDS; run++) {
    call_rows r = rows_new(&w, l.tokens, l.n);
    CHECK_STATUS(attend_rows(&w, cache, NULL, 0, &r, 0, l.n, run), LATTN_OK);
    check_reference(&w, &l, NULL, &r, RUNS, &rng);
    if (run == RUN_1) check_least_scratch(&w, cache, &r, NULL);
    rows_free(&r);
    r = rows_new(&w, l.tokens + l.n - 1, 1);
    if (run == RUN_1) check_least_scratch(&w, cache, &r, NULL);
    rows_free(&r);
  }
  check_cuts(&w, cache, &l, 20, &rng);
  release(cache);
  world_close(&w);
}

/* A small cache whose slots run far ahead of its capacity, with two holes: the scratch that its
   config names is enough for a row. */
static void remove_ahead(void) {
  enum { N = 1900, ROUNDS = 140 };
  world w;
  line l;
  test_rng rng = rng_seed(68);
  line_clear(&l);
  check_case("remove: slots far ahead of the capacity, two holes");
  setup_init(&w.s, 1, 1, 4, 4, 2048);
  world_open(&w, 300, 2, 68);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  for (int round = 0; round < ROUNDS; round++) {
    grow_unseen(&w, cache, &l, N - l.n, &rng);
    remove_range(cache, &l, 4, l.n - 8);
    remove_range(cache, &l, 8, 9);
    CHECK_I64(cache_stats(cache).n_holes, 2);
    check_newest(&w, cache, &l, NULL, 1, &rng);
    for (int run = RUN_1; run <= RUN_THREADS; run++) {
      int32_t next = (int32_t)rng_below(&rng, 300);
      call_rows r = rows_new(&w, &next, 1);
      CHECK_STATUS(extend_rows(&w, cache, NULL, 0, &r, 0, 1, run), LATTN_OK);
      l.tokens[l.n++] = next;
      rows_free(&r);
    }
  }
  check_newest(&w, cache, &l, NULL, l.n, &rng);
  release(cache);
  world_close(&w);
}

static void test_remove(void) {
  remove_far_apart();
  remove_ahead();
  test_remove_named();
  remove_pages();
  remove_errors();
  for (int kind = 0; kind < 3; kind++) {
    remove_then(kind);
    remove_shift(kind);
  }
  for (uint64_t i = 0; i < (uint64_t)test_count(24); i++)
    remove_to_end(test_first_seed() + 6100 + i);
  for (uint64_t i = 0; i < (uint64_t)test_count(36); i++)
    remove_random(test_first_seed() + 6200 + i);
}

/* ---- reading back ---- */

/* Bound of one element of a key that was rotated (turns = 1) or rotated and turned back (2), and
   stored in between: cos and sin are within 2u each of the float64 ones, each product and sum
   rounds once: 5u of |x| + |y| in all, taken as 8u, times the magnitude of a turn; half an ulp of
   the stored type is at most that of the length sqrt(x^2 + y^2), and a turn back mixes two of
   them: 2 halves of |x| + |y|. */
static double read_bound(const setup *s, int turns, double x, double y, int32_t out_type) {
  double size = (fabs(x) + fabs(y)) * (s->rotary.magnitude != 0 ? 1.5 : 1), bound;
  bound = (8 * turns * REF_U + 2 * ref_half_ulp(s->config.key_type, 1)) * size + 0x1p-24;
  if (s->config.key_type != LATTN_F16) bound -= 0x1p-24 - 0x1p-100;
  return bound + ref_half_ulp(out_type, size + bound);
}

/* The key of token `number` as the reference has it at that slot, or unrotated. */
static void read_key(const world *w, int32_t number, int64_t g, int64_t slot, int rotated,
                     double *key) {
  const float *k = w->library.k + number * w->library.k_row + g * w->s.config.key_dim;
  for (int64_t d = 0; d < w->s.config.key_dim; d++) key[d] = (double)k[d];
  if (rotated && w->s.config.rotary) ref_rotate(key, w->s.config.rotary, slot, NULL);
}

/* Reads tokens first ... first + n - 1 of one head; slot = position + shift. */
static void read_check(const world *w, const lattn_cache *cache, const line *l, int64_t g,
                       int64_t first, int64_t n, int64_t shift, int32_t type, int32_t flags) {
  int64_t dk = w->s.config.key_dim, dv = w->value_dim;
  int rotated = w->s.config.rotary && !(flags & LATTN_READ_UNROTATED);
  test_guard kg = guard_alloc((size_t)(n * dk) * type_bytes(type), 1);
  test_guard vg = guard_alloc((size_t)(n * dv) * type_bytes(type), 0);
  lattn_tensor k = tensor_of(kg.data, type, n, 1, dk), v = tensor_of(vg.data, type, n, 1, dv);
  double key[CACHE_DIMS], plain[CACHE_DIMS];
  if (!CHECK_STATUS(lattn_cache_read(cache, (int32_t)g, first, k, v, flags), LATTN_OK)) n = 0;
  for (int64_t i = 0; i < n; i++) {
    int32_t number = l->tokens[first + i];
    const float *value = w->library.v + number * w->library.v_row + g * dv;
    for (int64_t d = 0; d < dv; d++) {
      float stored = ref_rounded(w->s.config.value_type, value[d]);
      CHECK(same_f32(tensor_get(&v, i, 0, d), ref_rounded(type, stored)));
    }
    read_key(w, number, g, first + i + shift, rotated, key);
    read_key(w, number, g, 0, 0, plain);
    for (int64_t d = 0; d < dk; d++) {
      double got = (double)tensor_get(&k, i, 0, d), other = 0;
      if (!w->s.config.rotary) {
        float stored = ref_rounded(w->s.config.key_type, (float)plain[d]);
        CHECK(same_f32((float)got, ref_rounded(type, stored)));
        continue;
      }
      for (int64_t p = 0; p < dk; p++) other = fmax(other, fabs(plain[p]));
      CHECK(ref_ratio(got, key[d], read_bound(&w->s, rotated ? 1 : 2, plain[d], other, type)) <= 1);
    }
  }
  CHECK(guard_free(&kg) && guard_free(&vg));
}

/* Every storage type, read as every type, rotated and not. */
static void read_types(int32_t key_type, int32_t value_type, int kind) {
  world w;
  line l;
  test_rng rng = rng_seed(71);
  line_clear(&l);
  check_case("read: %s keys, %s values, rotary %d", type_name(key_type), type_name(value_type),
             kind);
  setup_init(&w.s, 2, 2, 8, 5, 400);
  if (kind) setup_rotate(&w.s, kind - 1, kind == 2 ? 2 : 0, 6);
  if (kind == 2) w.s.rotary.magnitude = 1.25f;
  w.s.config.key_type = key_type, w.s.config.value_type = value_type;
  setup_stream(&w.s, 1, 4, 40, 10, LATTN_POSITIONS_ABSOLUTE);
  world_open(&w, 300, 3, 71);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 350, &rng);
  for (int32_t type = 0; type <= LATTN_BF16; type++)
    for (int32_t flags = 0; flags <= LATTN_READ_UNROTATED; flags++) {
      read_check(&w, cache, &l, 0, 0, 350, 0, type, flags);
      read_check(&w, cache, &l, 0, 127, 3, 0, type, flags);
      read_check(&w, cache, &l, 1, 0, 4, 0, type, flags);
      read_check(&w, cache, &l, 1, 300, 50, 0, type, flags);
      read_check(&w, cache, &l, 0, 350, 0, 0, type, flags);
    }
  check_case("read: beside a removed range, %s keys, rotary %d", type_name(key_type), kind);
  remove_range(cache, &l, 100, 290);
  read_check(&w, cache, &l, 0, 0, 100, 0, LATTN_F32, 0);
  read_check(&w, cache, &l, 0, 100, 60, 190, LATTN_F32, 0);
  read_check(&w, cache, &l, 0, 0, 160, 0, LATTN_F32, LATTN_READ_UNROTATED);
  read_check(&w, cache, &l, 1, 120, 40, 190, LATTN_F32, 0);
  release(cache);
  world_close(&w);
}

/* Strided outputs, one of the two, what is refused. */
static void read_errors(void) {
  enum { N = 3, DK = 6, DV = 5 };
  world w;
  line l;
  float k[N * 10], v[N * 10];
  test_rng rng = rng_seed(72);
  line_clear(&l);
  plain_setup(&w.s, 500, 4, 40, 10);
  world_open(&w, 300, 3, 72);
  for (int64_t i = 0; i < w.library.v_row; i++) w.library.v[i] = 100000; /* token 0: beyond f16 */
  lattn_cache *cache = cache_of(w.pool, &w.s);
  grow(&w, cache, &l, 399, &rng);
  extend_tokens(&w, cache, &l, (int32_t[]){0}, 1);
  lattn_tensor tk = {k, LATTN_F32, 0, N, 1, DK, 9, 0}, tv = {v, LATTN_F32, 0, N, 1, DV, 10, 0};
  lattn_tensor none = {NULL, 0, 0, 0, 0, 0, 0, 0}, small = tk, overlap = tv, f16 = tv;
  check_case("read: strides; one of the two");
  for (int i = 0; i < N * 10; i++) k[i] = v[i] = 7;
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, none, tv, 0), LATTN_OK);
  CHECK(k[0] == 7.0f && v[0] != 7.0f && v[DV] == 7.0f && v[10] != 7.0f);
  v[0] = 7;
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, tk, none, LATTN_READ_UNROTATED), LATTN_OK);
  CHECK(v[0] == 7.0f && k[0] != 7.0f && k[DK] == 7.0f && k[9] != 7.0f);
  check_case("read: what is refused");
  for (int i = 0; i < N * 10; i++) k[i] = v[i] = 7;
  small.dim = DK - 1;
  overlap.data = k + 3;
  CHECK_STATUS(lattn_cache_read(NULL, 0, 10, tk, tv, 0), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, none, none, 0), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_read(cache, 2, 10, tk, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, -1, 10, tk, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, 0, -1, tk, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, 0, 398, tk, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, 0, INT64_MAX, tk, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, small, tv, 0), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, tk, tv, 2), LATTN_E_FIELD);
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, tk, overlap, 0), LATTN_E_ALIAS);
  CHECK_STATUS(lattn_cache_read(cache, 1, 200, tk, tv, 0), LATTN_E_EVICTED);
  CHECK_STATUS(lattn_cache_read(cache, 1, 2, tk, tv, 0), LATTN_OK); /* the page of the sinks */
  for (int i = 0; i < N * 10; i++) k[i] = v[i] = 7;
  small.dim = DK, small.stride_token = DK - 1;
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, small, tv, 0), LATTN_E_STRIDE);
  small.type = 9, small.stride_token = 0;
  CHECK_STATUS(lattn_cache_read(cache, 0, 10, small, tv, 0), LATTN_E_TYPE);
  for (int i = 0; i < N * 10; i++) CHECK(k[i] == 7.0f && v[i] == 7.0f);
  check_case("read: a value beyond its type");
  f16.type = LATTN_F16;
  CHECK_STATUS(lattn_cache_read(cache, 0, 397, none, f16, 0), LATTN_OVERFLOWED);
  CHECK(isinf(tensor_get(&f16, 2, 0, 0)) && !isinf(tensor_get(&f16, 1, 0, 0)));
  release(cache);
  world_close(&w);
}

static void test_read(void) {
  for (int32_t type = LATTN_F32; type <= LATTN_BF16; type++)
    for (int kind = 0; kind < 3; kind++) read_types(type, (type + kind) % 3 + 1, kind);
  read_errors();
}

/* ---- fit ---- */

enum { FIT_LAYERS = 3 };

/* A model of some layers, each with its table of policies. */
typedef struct fit_model {
  setup layers[FIT_LAYERS];
  const lattn_cache_config *configs[FIT_LAYERS];
  int64_t n;
  int has_full;
} fit_model;

static void fit_make(fit_model *m, test_rng *rng) {
  m->n = rng_range(rng, 1, FIT_LAYERS);
  m->has_full = 0;
  for (int64_t i = 0; i < m->n; i++) {
    setup *s = &m->layers[i];
    random_config(s, 0, rng);
    random_heads(s, 100, rng);
    s->config.fault = NULL;
    for (int32_t g = 0; g < s->config.n_kv_heads; g++)
      m->has_full |= s->heads[g].policy == LATTN_HEAD_FULL;
    m->configs[i] = &s->config;
  }
}

/* A pool of those bytes really holds so many tokens of every layer, appended together. */
static void fit_fill(const fit_model *m, size_t bytes, int64_t tokens, test_rng *rng) {
  lattn_cache *caches[FIT_LAYERS];
  world w[FIT_LAYERS];
  lattn_pool *pool;
  test_guard arena;
  pool = pool_of(&arena, bytes);
  for (int64_t i = 0; i < m->n; i++) {
    lattn_cache_config config = *m->configs[i];
    config.capacity = tokens;
    w[i].s.config = config;
    w[i].heads = setup_heads(&m->layers[i]), w[i].value_dim = setup_value_dim(&m->layers[i]);
    w[i].library = tokens_new(&m->layers[i], 64);
    tokens_make(&w[i].library, 64, rng);
    CHECK_STATUS(lattn_cache_init(&caches[i], pool, &config), LATTN_OK);
  }
  for (int64_t at = 0, count; at < tokens; at += count) {
    count = tokens - at < 60 ? tokens - at : rng_range(rng, 1, 60);
    for (int64_t i = 0; i < m->n; i++) grow(&w[i], caches[i], NULL, count, rng);
  }
  for (int64_t i = 0; i < m->n; i++) {
    CHECK_I64(cache_stats(caches[i]).n_tokens, tokens);
    release(caches[i]);
    tokens_free(&w[i].library);
  }
  CHECK(guard_free(&arena));
}

static void fit_random(uint64_t seed) {
  fit_model m;
  test_rng rng = rng_seed(seed);
  int64_t tokens = rng_range(&rng, 1, 700), last = 0;
  check_case("fit: seed %" PRIu64, seed);
  fit_make(&m, &rng);
  size_t bytes = lattn_fit_bytes(m.n, m.configs, tokens), before = 0;
  if (!CHECK(bytes > 0)) return;
  fit_fill(&m, bytes, tokens, &rng);
  int64_t fits = lattn_fit_tokens(m.n, m.configs, bytes);
  CHECK(fits >= tokens);
  if (fits < INT64_MAX) { /* bytes for less than a window have a limit, full heads or not */
    CHECK(lattn_fit_bytes(m.n, m.configs, fits) <= bytes);
    CHECK(lattn_fit_bytes(m.n, m.configs, fits + 1) > bytes);
    CHECK(lattn_fit_tokens(m.n, m.configs, lattn_fit_bytes(m.n, m.configs, fits + 1)) > fits);
    CHECK(lattn_fit_tokens(m.n, m.configs, bytes - 1) <= fits);
    size_t page = (size_t)REF_BLOCK * 5; /* no page is smaller: keys of 4 and a value, >= 1 byte */
    size_t fewer = lattn_fit_bytes(m.n, m.configs, tokens > REF_BLOCK ? tokens - REF_BLOCK : 1);
    if (tokens > REF_BLOCK) CHECK(fewer + page <= bytes);
  }
  size_t many = lattn_fit_bytes(m.n, m.configs, 100000);
  int64_t limit = lattn_fit_tokens(m.n, m.configs, many);
  CHECK(m.has_full ? limit >= 100000 && limit < 200000 : limit == INT64_MAX);
  for (size_t part = 0; part <= 20; part++) { /* rising */
    int64_t now = lattn_fit_tokens(m.n, m.configs, bytes / 10 * part);
    CHECK(now >= last);
    if (now > 0 && now < INT64_MAX)
      CHECK(lattn_fit_bytes(m.n, m.configs, now) <= bytes / 10 * part);
    last = now;
  }
  for (int64_t n = 1; n <= 1000; n += 37) {
    size_t now = lattn_fit_bytes(m.n, m.configs, n);
    CHECK(now >= before && now > 0);
    before = now;
  }
}

/* One page less than fit_bytes says: then it does not fit, and a pool of that size finds out. */
static void fit_page_less(void) {
  enum { TOKENS = 256 };
  fit_model m;
  test_guard arena;
  lattn_cache *cache = NULL;
  world w;
  test_rng rng = rng_seed(81);
  check_case("fit: one page less");
  setup_init(&w.s, 1, 1, 8, 8, TOKENS);
  w.s.config.max_append = 128;
  m.configs[0] = &w.s.config, m.n = 1;
  w.heads = 1, w.value_dim = 8;
  w.library = tokens_new(&w.s, 300);
  tokens_make(&w.library, 300, &rng);
  size_t page = REF_BLOCK * 16 * sizeof(float),
         bytes = lattn_fit_bytes(1, m.configs, TOKENS) - page;
  CHECK(lattn_fit_tokens(1, m.configs, bytes) < TOKENS);
  lattn_pool *pool = pool_of(&arena, bytes);
  if (lattn_cache_init(&cache, pool, &w.s.config) == LATTN_OK) {
    lattn_status status = LATTN_OK;
    for (int64_t at = 0; at < TOKENS && status == LATTN_OK; at += 128) {
      lattn_tensor k = tokens_k(&w.library, &w.s, at % 128, 128);
      status = lattn_cache_append(cache, k, tokens_v(&w.library, &w.s, at % 128, 128), NULL);
    }
    CHECK_STATUS(status, LATTN_E_FULL);
    release(cache);
  }
  check_case("fit: nothing fits, nothing asked");
  CHECK_I64(lattn_fit_tokens(1, m.configs, 0), 0);
  CHECK_I64(lattn_fit_tokens(1, m.configs, 100), 0);
  CHECK_I64(lattn_fit_tokens(1, NULL, 1 << 20), 0);
  CHECK(lattn_fit_bytes(1, NULL, 10) == 0);
  CHECK(lattn_fit_bytes(1, m.configs, -1) == 0);
  w.s.config.key_dim = 0;
  CHECK_I64(lattn_fit_tokens(1, m.configs, 1 << 20), 0);
  CHECK(lattn_fit_bytes(1, m.configs, 10) == 0);
  tokens_free(&w.library);
  CHECK(guard_free(&arena));
}

static void test_fit(void) {
  fit_page_less();
  for (uint64_t i = 0; i < (uint64_t)test_count(36); i++) fit_random(test_first_seed() + 8100 + i);
}

/* ---- endless ---- */

enum { ENDLESS_PERIOD = 1024, ENDLESS_CHUNK = 8192 };

/* Row i of the stream against float64: StreamingLLM as its authors have it. The keys are the sinks
   and the window alone, at their places in the cache (head 0), or at their true positions (head 1).
   The window may touch two blocks more in the true numbering than in the short list's: 2 folds, 8u
   of a weight, twice, of |v| <= 4. */
static void endless_check(const world *w, int64_t i, const call_rows *r) {
  enum { MOST = 64 };
  int64_t sinks = w->s.heads[0].sinks, window = w->s.heads[0].window, n = 0, places[MOST];
  int32_t tokens[MOST];
  lattn_attn a;
  ref_call c;
  for (int64_t j = 0; j <= i; j++) {
    if (j >= sinks && j <= i - window) j = i - window + 1;
    places[n] = j;
    tokens[n++] = (int32_t)(j % ENDLESS_PERIOD);
  }
  call_rows keys = rows_new(w, tokens, n), query = rows_new(w, tokens + n - 1, 1);
  for (int64_t h = 0; h < 2; h++) {
    int64_t at = h ? i : n - 1;
    memset(&a, 0, sizeof a);
    a.query_positions = &at;
    if (h) a.key_positions = places;
    ref_open(&c, &a, query.q, keys.k, keys.v, LATTN_F32);
    c.rotary = w->s.config.rotary;
    ref_row row = ref_row_new(&c);
    ref_attend(&c, 0, h, &row);
    for (int64_t d = 0; d < w->value_dim; d++) {
      double got = (double)((const float *)r->out.data)[h * w->value_dim + d];
      CHECK(ref_ratio(got, row.out[d], row.bound[d] + 16 * REF_U * 4) <= 1);
    }
    CHECK(ref_ratio((double)r->lse[h], row.lse, row.lse_bound + 16 * REF_U) <= 1);
    ref_row_free(&row);
    ref_close(&c);
  }
  rows_free(&keys), rows_free(&query);
}

/* Extends by the stream up to token n. Only so many chunks attend; the others append. */
static void endless_advance(const world *w, lattn_cache *cache, int64_t *at, int64_t n,
                            const call_rows *all, int64_t attend_every) {
  int64_t chunks = 0;
  while (*at < n) {
    int64_t from = *at % ENDLESS_PERIOD, count = n - *at < ENDLESS_CHUNK ? n - *at : ENDLESS_CHUNK;
    call_rows part = rows_part(all, from, count);
    lattn_status status = chunks++ % attend_every == 0
                              ? extend_rows(w, cache, NULL, 0, all, from, count, RUN_1)
                              : lattn_cache_append(cache, part.k, part.v, NULL);
    if (!CHECK_STATUS(status, LATTN_OK)) return;
    *at += count;
  }
}

/* Ten million tokens (AVX2: five; plain C: 600,000) through two streaming heads: memory never
   changes, the last rows are right. */
static void test_endless(void) {
  int64_t most = strcmp(lattn_simd_name(), "scalar") ? 10000000 : 3000000;
  int64_t total = test_count(most) / ENDLESS_CHUNK * ENDLESS_CHUNK, at = 0;
  int32_t tokens[ENDLESS_PERIOD + ENDLESS_CHUNK];
  world w;
  check_case("endless: %" PRId64 " tokens in constant memory", total);
  setup_init(&w.s, 2, 2, 4, 4, 0);
  setup_rotate(&w.s, LATTN_ROTARY_INTERLEAVED, 0, 4);
  setup_stream(&w.s, 0, 4, 40, 0, LATTN_POSITIONS_IN_CACHE);
  setup_stream(&w.s, 1, 4, 40, 0, LATTN_POSITIONS_ABSOLUTE);
  w.s.config.max_append = ENDLESS_CHUNK;
  world_open(&w, ENDLESS_PERIOD, 1, 91);
  for (int64_t i = 0; i < ENDLESS_PERIOD + ENDLESS_CHUNK; i++)
    tokens[i] = (int32_t)(i % ENDLESS_PERIOD);
  call_rows all = rows_new(&w, tokens, ENDLESS_PERIOD + ENDLESS_CHUNK);
  lattn_cache *cache = cache_of(w.pool, &w.s);
  endless_advance(&w, cache, &at, 11 * ENDLESS_CHUNK, &all, 8); /* all that will ever be held */
  endless_advance(&w, cache, &at, 12 * ENDLESS_CHUNK, &all, 1);
  lattn_pool_stats first = pool_stats(w.pool);
  lattn_cache_stats held = cache_stats(cache);
  for (int part = 1; part <= 10; part++) {
    int64_t end = total / 10 / ENDLESS_CHUNK * ENDLESS_CHUNK * part;
    endless_advance(&w, cache, &at, end > at ? end - ENDLESS_CHUNK : at, &all, 8);
    endless_advance(&w, cache, &at, end, &all, 1); /* trims; the last chunk is attended */
    lattn_pool_stats now = pool_stats(w.pool);
    lattn_cache_stats holds = cache_stats(cache);
    CHECK_I64(holds.n_tokens, at);
    CHECK_I64(holds.token_bytes, held.token_bytes);
    CHECK(!memcmp(&now, &first, sizeof now));
  }
  for (int64_t i = 0; i < 3; i++, at++) {
    int32_t next = (int32_t)(at % ENDLESS_PERIOD);
    call_rows row = rows_new(&w, &next, 1);
    CHECK_STATUS(extend_rows(&w, cache, NULL, 0, &row, 0, 1, RUN_NULL), LATTN_OK);
    endless_check(&w, at, &row);
    rows_free(&row);
  }
  rows_free(&all);
  release(cache);
  world_close(&w);
}

int main(void) {
  test_forks();
  test_checkpoints();
  test_slack();
  test_drafts();
  test_batches();
  test_remove();
  test_read();
  test_fit();
  test_endless();
  return test_summary();
}
