/* save.c - caches saved and loaded: any history comes back bit for bit, into any cache of the same
 * config; the exact bytes of one file, made by hand from the format's text; every damage, every
 * failing call and every other config is refused and changes nothing.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

/* ---- a file in memory ---- */

enum { STREAM_MOST = 16384 }; /* bytes of one call, as the contract has it */

typedef struct stream {
  unsigned char *data;
  size_t n, room, at;       /* bytes there are; bytes of memory; where the next read begins */
  int64_t n_calls, fail_at; /* the call of that number fails (0 = none) */
  int failed, wrong;        /* a call failed; a call was empty, too large, or after a failure */
  int endless;              /* reads beyond the end give zeros */
} stream;

static int32_t stream_call(stream *f, size_t bytes) {
  if (f->failed || !bytes || bytes > STREAM_MOST) f->wrong = 1;
  if (++f->n_calls == f->fail_at) f->failed = 1;
  return f->failed;
}

static int32_t stream_write(void *user, const void *data, size_t bytes) {
  stream *f = (stream *)user;
  if (stream_call(f, bytes)) return 7;
  if (f->n + bytes > f->room) {
    f->room = 2 * (f->n + bytes);
    f->data = (unsigned char *)realloc(f->data, f->room);
    if (!f->data) exit(1);
  }
  memcpy(f->data + f->n, data, bytes);
  f->n += bytes;
  return 0;
}

static int32_t stream_read(void *user, void *data, size_t bytes) {
  stream *f = (stream *)user;
  size_t left = f->n - f->at, n = bytes < left ? bytes : left;
  if (stream_call(f, bytes)) return -7;
  if (n < bytes && !f->endless) {
    f->failed = 1;
    return 1;
  }
  memset(data, 0, bytes);
  if (n) memcpy(data, f->data + f->at, n);
  f->at += n;
  return 0;
}

/* Begins to read from the first byte. */
static void stream_rewind(stream *f) {
  CHECK(!f->wrong);
  f->at = 0;
  f->n_calls = f->fail_at = f->failed = f->wrong = 0;
}

static void stream_free(stream *f) {
  CHECK(!f->wrong);
  free(f->data);
  memset(f, 0, sizeof *f);
}

static int stream_equal(const stream *a, const stream *b) {
  return a->n == b->n && !memcmp(a->data, b->data, a->n);
}

/* What the cache saves; the size is also asked for alone, and not at all. */
static stream saved(const lattn_cache *cache) {
  stream f;
  uint64_t bytes = 1, alone = 2;
  memset(&f, 0, sizeof f);
  CHECK_STATUS(lattn_cache_save(cache, NULL, NULL, &alone), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(cache, stream_write, &f, &bytes), LATTN_OK);
  CHECK(bytes == f.n && alone == f.n && f.n > 0);
  return f;
}

/* Loads the whole file, which must be read to its end. */
static lattn_status load_all(lattn_cache *cache, stream *f) {
  lattn_status status;
  stream_rewind(f);
  status = lattn_cache_load(cache, stream_read, f);
  if (!status) CHECK(f->at == f->n);
  return status;
}

/* ---- pools, caches, and a fingerprint of all that can be seen of them ---- */

typedef struct store {
  lattn_pool *pool;
  void *arena;
  int64_t n_calls, fail_at, n_out; /* of an allocator: calls, the call that fails, pages out */
} store;

static void *store_alloc(void *user, size_t bytes, size_t alignment) {
  store *p = (store *)user;
  void *page;
  if (++p->n_calls == p->fail_at) return NULL;
  page = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (!page) exit(1);
  memset(page, 0xff, bytes); /* NaN in every type */
  p->n_out++;
  return page;
}

static void store_free(void *user, void *page, size_t bytes) {
  store *p = (store *)user;
  memset(page, 0xff, bytes);
  p->n_out--;
  free(page);
}

/* A pool in an arena of so many bytes, or with an allocator and the arena for tables. */
static void store_open(store *p, size_t bytes, int allocator) {
  lattn_pool_config config;
  memset(p, 0, sizeof *p);
  memset(&config, 0, sizeof config);
  config.size = sizeof config;
  if (allocator) {
    config.alloc = store_alloc;
    config.free = store_free;
    config.user = p;
  }
  p->arena = ref_memory((int64_t)bytes, 1);
  memset(p->arena, 0xff, bytes);
  if (!CHECK_STATUS(lattn_pool_init(&p->pool, p->arena, bytes, &config), LATTN_OK)) exit(1);
}

/* Roomy: for several caches of that config. */
static void store_open_for(store *p, const setup *s, int allocator) {
  store_open(p, 8 * lattn_pool_bytes(NULL, &s->config, 1) + 65536, allocator);
}

/* Every cache and checkpoint must have been released. */
static void store_close(store *p) {
  lattn_pool_stats stats = pool_stats(p->pool);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_checkpoints, 0);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.page_bytes, 0);
  CHECK_I64(p->n_out, 0);
  free(p->arena);
}

static lattn_cache *cache_new(store *p, const setup *s) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, p->pool, &s->config), LATTN_OK)) {
    printf("    at %s\n", s->fault.argument ? s->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

static uint64_t hash_heads(uint64_t hash, const lattn_cache *cache) {
  lattn_cache_stats stats = cache_stats(cache);
  int32_t n = (int32_t)(stats.n_full_heads + stats.n_streaming_heads);
  for (int32_t g = 0; g < n; g++) {
    lattn_cache_head_stats head;
    memset(&head, 0, sizeof head);
    head.size = sizeof head;
    CHECK_STATUS(lattn_cache_head_stats_get(cache, g, &head), LATTN_OK);
    if (head.first_token <= head.n_sink_tokens) /* one run of tokens, cut anywhere */
      head.first_token = head.n_sink_tokens = 0;
    hash = hash_bytes(hash, &head, sizeof head);
  }
  return hash;
}

/* Changes when anything does that a user can see: tokens, tables, pages. */
static uint64_t fingerprint(const lattn_cache *cache, const store *p) {
  lattn_pool_stats pool = pool_stats(p->pool);
  lattn_cache_stats stats = cache_stats(cache);
  stream f = saved(cache);
  uint64_t hash = hash_bytes(HASH_SEED, f.data, f.n);
  hash = hash_bytes(hash, &pool, sizeof pool);
  hash = hash_bytes(hash, &stats, sizeof stats);
  stream_free(&f);
  return hash_heads(hash, cache);
}

/* ---- operations, the same for any number of caches ---- */

/* A cache that operations are done to. Rows come from the list of tokens, from a cursor on. */
typedef struct actor {
  const setup *s;
  const token_list *tokens;
  lattn_cache *cache;
  lattn_checkpoint *checkpoint;
} actor;

enum op_kind {
  OP_EXTEND,
  OP_APPEND,
  OP_ATTEND,
  OP_TRUNCATE,
  OP_REMOVE,
  OP_FORK, /* goes on with a fork; the parent is released */
  OP_CHECKPOINT,
  OP_ROLLBACK,
  OP_CLEAR,
  OP_MARK,
  OP_KINDS
};

static const char *const op_names[OP_KINDS] = {"extend", "append", "attend",     "truncate",
                                               "remove", "fork",   "checkpoint", "rollback",
                                               "clear",  "mark"};

typedef struct operation {
  enum op_kind kind;
  int64_t a, b, cursor;
} operation;

enum { TEXT = 700, MOST = 200 }; /* tokens of the list; of one operation */

/* Of a SNAP head, a file has the queries of its window, not of its slack: what was loaded cannot be
   marked after truncating. */
static int setup_snap_slack(const setup *s) {
  int slack = 0;
  for (int g = 0; g < s->config.n_kv_heads; g++)
    slack |= s->heads[g].policy == LATTN_HEAD_SNAP && s->heads[g].slack;
  return slack;
}

/* Nothing can be removed, but marks change something. */
static int setup_marks(const setup *s) { return setup_sums(s) || setup_waits(s); }

/* An operation that is within bounds for a cache of n tokens. */
static operation op_random(test_rng *r, const setup *s, int64_t n) {
  static const unsigned char often[] = {OP_EXTEND, OP_EXTEND,   OP_EXTEND,     OP_EXTEND,
                                        OP_APPEND, OP_APPEND,   OP_ATTEND,     OP_ATTEND,
                                        OP_REMOVE, OP_REMOVE,   OP_TRUNCATE,   OP_TRUNCATE,
                                        OP_FORK,   OP_ROLLBACK, OP_CHECKPOINT, OP_CLEAR};
  operation op = {(enum op_kind)often[rng_below(r, 16)], 0, 0, rng_below(r, TEXT - MOST)};
  int64_t most =
      s->config.capacity && s->config.capacity - n < MOST ? s->config.capacity - n : MOST;
  if (op.kind == OP_CLEAR && rng_chance(r, 60)) op.kind = OP_EXTEND;
  if (op.kind == OP_REMOVE && setup_marks(s) && rng_chance(r, 70)) op.kind = OP_MARK;
  switch (op.kind) {
    case OP_EXTEND:
    case OP_APPEND:
      if (op.kind == OP_APPEND && most > setup_max_append(s)) most = setup_max_append(s);
      op.a = rng_below(r, (rng_chance(r, 50) && most > 9 ? 9 : most) + 1);
      break;
    case OP_ATTEND:
      op.a = rng_below(r, (n < 9 ? n : 9) + 1);
      break;
    case OP_TRUNCATE:
      op.a = n - rng_below(r, (rng_chance(r, 70) && n > 20 ? 20 : n) + 1);
      break;
    case OP_REMOVE:
      op.a = rng_below(r, n + 1);
      op.b = op.a + rng_below(r, n - op.a + 1);
      if (rng_chance(r, 60) && op.b > op.a + 12) op.b = op.a + 12;
      break;
    default:
      break;
  }
  return op;
}

/* Extends or attends; adds the rows' bits to the hash. */
static lattn_status op_rows(actor *t, const operation *op, uint64_t *hash) {
  const setup *s = t->s;
  int64_t heads = setup_heads(s), dim = setup_value_dim(s), n = op->a;
  float *data = (float *)ref_memory(n * heads * dim, sizeof *data);
  float *lse = (float *)ref_memory(n * heads, sizeof *lse);
  lattn_tensor q = tokens_q(t->tokens, s, op->cursor, n), k = tokens_k(t->tokens, s, op->cursor, n);
  lattn_tensor v = tokens_v(t->tokens, s, op->cursor, n);
  lattn_tensor out = tensor_of(data, LATTN_F32, n, heads, dim);
  lattn_status status;
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_cache_scratch(&s->config, n, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  if (op->kind == OP_EXTEND) status = lattn_cache_extend(t->cache, NULL, q, k, v, out, lse, &exec);
  else status = lattn_cache_attend(t->cache, NULL, q, out, lse, &exec);
  if (!status) {
    *hash = hash_tensor(*hash, &out);
    *hash = hash_f32(*hash, lse, n * heads);
  }
  free(data);
  free(lse);
  free(exec.scratch);
  return status;
}

static lattn_status op_fork(actor *t) {
  lattn_cache *fork = NULL;
  lattn_status status = lattn_cache_fork(&fork, t->cache);
  if (status) return status;
  CHECK_STATUS(lattn_cache_release(t->cache), LATTN_OK);
  t->cache = fork;
  return status;
}

static void forget_checkpoint(actor *t) {
  if (t->checkpoint) CHECK_STATUS(lattn_checkpoint_release(t->checkpoint), LATTN_OK);
  t->checkpoint = NULL;
}

static lattn_status op_checkpoint(actor *t) {
  forget_checkpoint(t);
  return lattn_cache_checkpoint(&t->checkpoint, t->cache);
}

static lattn_status op_run(actor *t, const operation *op, uint64_t *hash) {
  int64_t at = op->cursor;
  switch (op->kind) {
    case OP_APPEND:
      return lattn_cache_append(t->cache, tokens_k(t->tokens, t->s, at, op->a),
                                tokens_v(t->tokens, t->s, at, op->a), NULL);
    case OP_TRUNCATE:
      return lattn_cache_truncate(t->cache, op->a);
    case OP_REMOVE:
      return lattn_cache_remove(t->cache, op->a, op->b);
    case OP_FORK:
      return op_fork(t);
    case OP_CHECKPOINT:
      return op_checkpoint(t);
    case OP_ROLLBACK:
      return t->checkpoint ? lattn_cache_rollback(t->cache, t->checkpoint) : LATTN_OK;
    case OP_CLEAR:
      return lattn_cache_clear(t->cache);
    case OP_MARK:
      return lattn_cache_mark(t->cache, LATTN_PROMPT_END, NULL);
    default:
      return op_rows(t, op, hash);
  }
}

/* What an operation within bounds may answer. */
static int op_may(const operation *op, lattn_status status) {
  if (!status) return 1;
  if (status == LATTN_E_EVICTED)
    return op->kind == OP_ATTEND || op->kind == OP_TRUNCATE || op->kind == OP_REMOVE;
  if (status == LATTN_E_CONFIG) return op->kind == OP_REMOVE; /* sinks; sums, marks */
  if (status == LATTN_E_STATE) return op->kind == OP_MARK;    /* tokens that were appended */
  return status == LATTN_E_FULL && op->kind == OP_REMOVE;     /* holes */
}

static void live(actor *t, int64_t n_steps, test_rng *r) {
  for (int64_t i = 0; i < n_steps; i++) {
    operation op = op_random(r, t->s, cache_stats(t->cache).n_tokens);
    uint64_t hash = HASH_SEED;
    lattn_status status = op_run(t, &op, &hash);
    if (!op_may(&op, status))
      FAIL("%s %" PRId64 " %" PRId64 ": %d", op_names[op.kind], op.a, op.b, (int)status);
  }
}

/* The same operations on two caches: the same statuses, bits and, at the end, bytes. A cache with
   more room and slack may do what the first cannot: then neither does it. */
static void live_alike(actor *first, actor *other, int roomier, int64_t n_steps, test_rng *r) {
  forget_checkpoint(first);
  forget_checkpoint(other);
  for (int64_t i = 0; i < n_steps; i++) {
    operation op = op_random(r, first->s, cache_stats(first->cache).n_tokens);
    uint64_t hash = HASH_SEED, hash_other = HASH_SEED;
    lattn_status status, status_other;
    if (op.kind == OP_ROLLBACK && (!first->checkpoint || !other->checkpoint))
      op.kind = OP_CHECKPOINT;
    if (op.kind == OP_MARK && setup_snap_slack(first->s)) {
      if (op_run(other, &op, &hash_other) == LATTN_E_STATE) continue;
      CHECK_STATUS(op_run(first, &op, &hash), LATTN_OK);
      continue;
    }
    status = op_run(first, &op, &hash);
    if (status && roomier) continue;
    status_other = op_run(other, &op, &hash_other);
    if (status != status_other || hash != hash_other)
      FAIL("%s %" PRId64 " %" PRId64 ": status %d, after loading %d%s", op_names[op.kind], op.a,
           op.b, (int)status, (int)status_other, hash == hash_other ? "" : ", other bits");
  }
}

/* Streaming heads let go what an append left beyond their window: it is not saved, unless the head
   keeps sums, which take it up. */
static void trim(actor *t) {
  operation op = {OP_EXTEND, 0, 0, 0};
  uint64_t hash = HASH_SEED;
  CHECK_STATUS(op_run(t, &op, &hash), LATTN_OK);
}

static void actor_end(actor *t) {
  forget_checkpoint(t);
  CHECK_STATUS(lattn_cache_release(t->cache), LATTN_OK);
}

/* ---- any history, into any cache of the same config ---- */

/* A random config and a list of tokens for it. Do not copy. */
typedef struct world {
  setup s;
  token_list tokens;
  store home; /* the pool of the cache that is saved */
  actor original;
} world;

static void random_setup(setup *s, test_rng *r) {
  static const int32_t shapes[][2] = {{1, 1}, {2, 1}, {4, 2}, {3, 3}, {6, 3}, {4, 4}};
  static const int32_t dims[] = {1, 2, 4, 6, 7, 16, 20};
  const int32_t *shape = shapes[rng_below(r, 6)];
  int64_t mode = rng_below(r, 8);
  setup_init(s, shape[0], shape[1], dims[rng_below(r, 7)], dims[rng_below(r, 7)],
             rng_range(r, 100, 700));
  s->config.key_type = (int32_t)rng_below(r, 4);
  s->config.value_type = (int32_t)rng_below(r, 4);
  if (mode < 4 && s->config.key_dim > 1)
    setup_rotate(s, (int32_t)mode & 1, 0, s->config.key_dim / 2 * 2);
  if (mode == 4) setup_alibi(s);
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    int64_t sinks = rng_chance(r, 20) ? rng_range(r, 15, 140) : rng_below(r, 6);
    int64_t window = rng_chance(r, 25) ? rng_range(r, 100, 200) : rng_range(r, 1, 40);
    int64_t slack = rng_chance(r, 50) ? rng_below(r, 40) : 0;
    int can_be_in_cache = s->config.rotary || s->config.alibi_slopes;
    if (rng_chance(r, 60))
      setup_stream(s, g, sinks, window, slack, (int32_t)rng_below(r, can_be_in_cache ? 3 : 2));
  }
  if (rng_chance(r, 25)) setup_sinks(s);
  if (rng_chance(r, 25)) s->config.softcap = 15;
  if (rng_chance(r, 25)) s->config.scale = 0.3125f;
  if (rng_chance(r, 70)) s->config.max_append = (int64_t)1 << rng_range(r, 3, 7);
  if (rng_chance(r, 30)) s->config.max_drafts = (int32_t)rng_range(r, 1, 9);
  if (rng_chance(r, 50)) s->config.max_holes = (int32_t)rng_range(r, 1, 6);
}

static void world_tokens(world *w, test_rng *r) {
  w->tokens = tokens_new(&w->s, TEXT);
  tokens_make(&w->tokens, TEXT, r);
}

/* A cache without tokens, in a roomy pool. */
static void world_open(world *w) {
  memset(&w->original, 0, sizeof w->original);
  store_open_for(&w->home, &w->s, 0);
  w->original.s = &w->s;
  w->original.tokens = &w->tokens;
  w->original.cache = cache_new(&w->home, &w->s);
}

static void world_close(world *w) {
  actor_end(&w->original);
  store_close(&w->home);
  tokens_free(&w->tokens);
}

/* Some of its heads get the other policies; or it gets bundles. */
static void random_policies(setup *s, test_rng *r) {
  int32_t kv = s->config.n_kv_heads, heads = (int32_t)setup_heads(s), most = 64;
  int shared = rng_chance(r, 50) ? LATTN_SNAP_SHARED : 0;
  if (rng_chance(r, 25)) {
    s->config.n_value_heads = rng_chance(r, 50) || kv == 1 ? heads : 1;
    if (rng_chance(r, 50) && s->heads[0].policy) s->heads[0].mark = LATTN_PROMPT_END;
    return;
  }
  for (int g = 0; g < kv; g++) {
    lattn_head *h = &s->heads[g];
    int kind = (int)rng_below(r, 5);
    if (kind < 2) memset(h, 0, sizeof *h);
    if (kind == 0) h->policy = LATTN_HEAD_SNAP, h->flags = shared;
    if (kind == 0 && rng_chance(r, 40)) h->slack = rng_below(r, 20);
    if (kind == 1) h->policy = LATTN_HEAD_HEAVY, most = 0;
    if (kind < 2) h->window = rng_range(r, 1, 9), h->budget = h->window + rng_range(r, 1, 40);
    if (kind > 3 || !h->policy || kind < 2) continue;
    if (kind == 2) setup_compensate(s, g, rng_chance(r, 50) ? LATTN_HEAD_VARIANCE : 0);
    if (rng_chance(r, 50)) h->flags |= LATTN_HEAD_LOST;
    if (rng_chance(r, 50)) h->mark = LATTN_PROMPT_END;
    if (h->mark && rng_chance(r, 50)) h->window_divisor = rng_range(r, 1, 5);
    if (setup_sums(s) && h->window - 1 < most) most = (int32_t)h->window - 1;
  }
  if (s->config.max_drafts > most) s->config.max_drafts = most;
}

static int setup_heavy(const setup *s) {
  int heavy = 0;
  for (int g = 0; g < s->config.n_kv_heads; g++) heavy |= s->heads[g].policy == LATTN_HEAD_HEAVY;
  return heavy;
}

/* The config with more room; shares what it points to with s. */
static void setup_roomier(setup *large, const setup *s) {
  *large = *s;
  large->config.heads = large->heads;
  large->config.capacity = 2 * s->config.capacity + 100;
  large->config.max_append = 2 * setup_max_append(s);
  if (!setup_sums(s) && !setup_heavy(s)) large->config.max_drafts = s->config.max_drafts + 3;
  large->config.max_holes = 40;
  for (int g = 0; g < s->config.n_kv_heads; g++)
    if (large->heads[g].policy == LATTN_HEAD_STREAMING) large->heads[g].slack += 150;
}

/* What a mark keeps goes by the queries and sums that were loaded. */
static void mark_alike(actor *a, actor *b) {
  lattn_status status = lattn_cache_mark(a->cache, LATTN_PROMPT_END, NULL);
  stream mine, its;
  CHECK_STATUS(lattn_cache_mark(b->cache, LATTN_PROMPT_END, NULL), status);
  mine = saved(a->cache);
  its = saved(b->cache);
  if (!setup_sums(a->s)) CHECK(stream_equal(&mine, &its));
  stream_free(&mine);
  stream_free(&its);
}

enum target { TARGET_EMPTY, TARGET_FILLED, TARGET_ALLOCATOR, TARGET_ROOMIER, TARGET_KINDS };

static const char *const target_names[TARGET_KINDS] = {
    "an empty cache", "a filled cache", "a pool with an allocator", "a roomier cache"};

/* Loads into such a target, which must then be the original in all that can be seen. */
static void check_target(world *w, stream *f, enum target kind, test_rng *r) {
  setup large;
  store other;
  stream again;
  actor t = {&w->s, &w->tokens, NULL, NULL};
  setup_roomier(&large, &w->s);
  if (kind == TARGET_ROOMIER) t.s = &large;
  store_open_for(&other, t.s, kind == TARGET_ALLOCATOR);
  t.cache = cache_new(&other, t.s);
  if (kind == TARGET_FILLED || kind == TARGET_ROOMIER) live(&t, 12, r);
  if (!CHECK_STATUS(load_all(t.cache, f), LATTN_OK)) printf("    into %s\n", target_names[kind]);
  again = saved(t.cache);
  if (!stream_equal(f, &again)) FAIL("%s saves other bytes", target_names[kind]);
  stream_free(&again);
  trim(&w->original);
  again = saved(w->original.cache);
  if (!stream_equal(f, &again)) FAIL("what an extend trims was saved");
  stream_free(&again);
  CHECK_I64(cache_stats(t.cache).n_tokens, cache_stats(w->original.cache).n_tokens);
  CHECK_I64(cache_stats(t.cache).n_holes, cache_stats(w->original.cache).n_holes);
  CHECK_I64(cache_stats(t.cache).token_bytes, cache_stats(w->original.cache).token_bytes);
  if (kind != TARGET_ROOMIER)
    CHECK(hash_heads(HASH_SEED, t.cache) == hash_heads(HASH_SEED, w->original.cache));
  if (kind == TARGET_FILLED && setup_marks(&w->s)) mark_alike(&w->original, &t);
  live_alike(&w->original, &t, kind == TARGET_ROOMIER, 15, r);
  if (kind != TARGET_ROOMIER && !setup_snap_slack(&w->s) && !setup_sums(&w->s)) {
    stream mine = saved(w->original.cache);
    again = saved(t.cache);
    if (!stream_equal(&mine, &again)) FAIL("later, %s saves other bytes", target_names[kind]);
    stream_free(&again);
    stream_free(&mine);
  }
  actor_end(&t);
  store_close(&other);
}

/* Back into the cache itself, which has gone on, and beside a fork that shares its pages. */
static void check_itself(world *w, test_rng *r) {
  actor fork = {&w->s, &w->tokens, NULL, NULL};
  stream f, again;
  if (setup_sums(&w->s)) trim(&w->original);
  f = saved(w->original.cache);
  trim(&w->original);
  CHECK_STATUS(lattn_cache_fork(&fork.cache, w->original.cache), LATTN_OK);
  live(&w->original, 5, r);
  CHECK_STATUS(load_all(w->original.cache, &f), LATTN_OK);
  again = saved(w->original.cache);
  CHECK(stream_equal(&f, &again));
  stream_free(&again);
  again = saved(fork.cache);
  CHECK(stream_equal(&f, &again));
  live_alike(&w->original, &fork, 0, 10, r);
  stream_free(&again);
  stream_free(&f);
  actor_end(&fork);
}

static void test_round_trip(uint64_t seed, int policies) {
  test_rng r = rng_seed(seed);
  world w;
  check_case("round trip, seed %" PRIu64 "%s", seed, policies ? ", all policies" : "");
  memset(&w, 0, sizeof w);
  random_setup(&w.s, &r);
  if (policies) random_policies(&w.s, &r);
  world_tokens(&w, &r);
  world_open(&w);
  live(&w.original, rng_range(&r, 0, 25), &r);
  for (int kind = 0; kind < TARGET_KINDS; kind++) {
    stream f;
    if (setup_sums(&w.s)) trim(&w.original);
    f = saved(w.original.cache);
    check_target(&w, &f, (enum target)kind, &r);
    stream_free(&f);
  }
  check_itself(&w, &r);
  world_close(&w);
}

/* ---- the same tokens, the same bytes ---- */

enum cut { CUT_NONE, CUT_TOKENS, CUT_RANDOM, CUT_APPEND, CUT_FORKS, CUT_LOADS, CUT_KINDS };

static const char *const cut_names[CUT_KINDS] = {"one extend", "token by token", "random cuts",
                                                 "appends",    "a fork a call",  "a load a call"};

static void cut_step(actor *t, store *p, enum cut how, test_rng *r) {
  operation op = {OP_FORK, 0, 0, 0};
  uint64_t hash = HASH_SEED;
  (void)r;
  if (how == CUT_FORKS) CHECK_STATUS(op_run(t, &op, &hash), LATTN_OK);
  if (how == CUT_LOADS) {
    stream f = saved(t->cache);
    CHECK_STATUS(lattn_cache_release(t->cache), LATTN_OK);
    t->cache = cache_new(p, t->s);
    CHECK_STATUS(load_all(t->cache, &f), LATTN_OK);
    stream_free(&f);
  }
}

/* The bytes of the first n tokens of the text; a removal comes in their middle. All ways end with
   an extend, which trims streaming heads. */
static stream cut_saved(const world *w, int64_t n, enum cut how, test_rng *r) {
  store p;
  stream f;
  uint64_t hash = HASH_SEED;
  int64_t first = 0, middle = n / 2;
  actor t = {&w->s, &w->tokens, NULL, NULL};
  store_open_for(&p, &w->s, 0);
  t.cache = cache_new(&p, &w->s);
  while (first < n) {
    int64_t end = first < middle ? middle : n;
    operation op = {OP_EXTEND, end - first, 0, first};
    if (how == CUT_TOKENS) op.a = 1;
    else if (how > CUT_NONE) op.a = rng_range(r, 1, end - first < 40 ? end - first : 40);
    if (how == CUT_APPEND && first + op.a < n) op.kind = OP_APPEND;
    if (op.kind == OP_APPEND && op.a > setup_max_append(&w->s)) op.a = setup_max_append(&w->s);
    CHECK_STATUS(op_run(&t, &op, &hash), LATTN_OK);
    first += op.a;
    if (first == middle && middle > 2) {
      operation remove = {OP_REMOVE, middle - 2, middle - 1, 0};
      lattn_status status;
      trim(&t);
      status = op_run(&t, &remove, &hash); /* the same on all ways */
      if (!op_may(&remove, status)) FAIL("remove: %d", (int)status);
    }
    cut_step(&t, &p, how, r);
  }
  f = saved(t.cache);
  actor_end(&t);
  store_close(&p);
  return f;
}

static void test_cuts(uint64_t seed) {
  test_rng r = rng_seed(seed);
  int64_t n;
  stream whole;
  world w;
  check_case("the same bytes for every cut, seed %" PRIu64, seed);
  memset(&w, 0, sizeof w);
  random_setup(&w.s, &r);
  world_tokens(&w, &r);
  n = rng_range(&r, 1, w.s.config.capacity);
  whole = cut_saved(&w, n, CUT_NONE, &r);
  for (int how = CUT_TOKENS; how < CUT_KINDS; how++) {
    stream f = cut_saved(&w, n, (enum cut)how, &r);
    if (!stream_equal(&whole, &f)) FAIL("%s: other bytes", cut_names[how]);
    stream_free(&f);
  }
  stream_free(&whole);
  tokens_free(&w.tokens);
}

/* More than one segment of tokens, and a file of many calls of 16 KiB. */
static void test_long(int32_t type) {
  world w;
  test_rng r = rng_seed(31 + (uint64_t)type);
  operation op = {OP_EXTEND, 120, 0, 0}, remove = {OP_REMOVE, 300, 700, 0};
  uint64_t hash = HASH_SEED;
  stream f;
  check_case("4800 tokens, %s", type_name(type));
  memset(&w, 0, sizeof w);
  setup_init(&w.s, 4, 3, 8, 4, 5000);
  w.s.config.n_heads = 6;
  setup_rotate(&w.s, LATTN_ROTARY_HALF_SPLIT, 2, 6);
  setup_stream(&w.s, 0, 4, 129, 7, LATTN_POSITIONS_IN_CACHE);
  setup_stream(&w.s, 2, 130, 2100, 400, LATTN_POSITIONS_ABSOLUTE);
  w.s.config.key_type = type;
  w.s.config.value_type = type ? LATTN_F16 : LATTN_BF16;
  world_tokens(&w, &r);
  world_open(&w);
  for (int i = 0; i < 40; i++) {
    op.cursor = rng_below(&r, TEXT - op.a);
    CHECK_STATUS(op_run(&w.original, &op, &hash), LATTN_OK);
  }
  CHECK_STATUS(op_run(&w.original, &remove, &hash), LATTN_OK); /* where no window is any more */
  for (int kind = TARGET_EMPTY; kind < TARGET_KINDS; kind++) {
    f = saved(w.original.cache);
    CHECK(f.n_calls > 10);
    check_target(&w, &f, (enum target)kind, &r);
    stream_free(&f);
  }
  world_close(&w);
}

/* ---- the format: files written by hand, from its text alone (longattn.h, "read back, save, load")
   ---- */

enum { HAND_HEADS = 3, HAND_KEY = 4, HAND_VALUE = 3 };

/* What is in a file. Keys and values are numbers that 16 bits hold exactly, none of them zero; keys
   are rotated by a quarter turn a slot, so what is stored is plain, too. */
typedef struct hand {
  int64_t n_slots, hole_from, hole_to;
  int64_t sink_end[HAND_HEADS], first[HAND_HEADS];
} hand;

static float hand_number(int64_t slot, int64_t head, int64_t dim) {
  int64_t x = (slot * 7 + head * 5 + dim * 3) % 31 - 15;
  return (float)(x ? x : 16) * 0.25f;
}

/* A pair of dims 2 and 3 after so many quarter turns. */
static float hand_stored_key(int64_t slot, int64_t head, int64_t dim) {
  float x = hand_number(slot, head, 2), y = hand_number(slot, head, 3);
  const float turned[4][2] = {{x, y}, {-y, x}, {-x, -y}, {y, -x}};
  return dim < 2 ? hand_number(slot, head, dim) : turned[slot % 4][dim - 2];
}

static void put(stream *f, uint64_t x, int n_bytes) {
  for (int i = 0; i < n_bytes; i++) {
    unsigned char byte = (unsigned char)(x >> 8 * i & 255);
    CHECK(!stream_write(f, &byte, 1));
  }
}

static void put_checksum(stream *f) {
  uint64_t s1 = 1, s2 = 0;
  for (size_t at = 0; at < f->n; at += 4) {
    for (size_t i = at; i < at + 4 && i < f->n; i++) s1 += (uint64_t)f->data[i] << 8 * (i - at);
    s2 += s1;
  }
  put(f, s1, 8);
  put(f, s2, 8);
}

static uint64_t enter(uint64_t hash, int n, const uint64_t *words) {
  for (int i = 0; i < n; i++) {
    hash = (hash ^ words[i]) * 0x100000001b3u;
    hash ^= hash >> 29;
  }
  return hash;
}

/* The config that both files are of: full; sinks in the cache; sinks at their own positions. */
static void hand_setup(setup *s) {
  setup_init(s, 3, HAND_HEADS, HAND_KEY, HAND_VALUE, 400);
  setup_stream(s, 1, 1, 20, 0, LATTN_POSITIONS_DEFAULT);
  setup_stream(s, 2, 2, 200, 0, LATTN_POSITIONS_ABSOLUTE);
  s->rotary.size = sizeof s->rotary;
  s->rotary.layout = LATTN_ROTARY_HALF_SPLIT;
  s->rotary.first_dim = 2;
  s->rotary.n_dims = 2;
  s->rotary.turns = s->turns;
  s->turns[0] = (uint64_t)1 << 62;
  s->config.rotary = &s->rotary;
  s->config.key_type = LATTN_F16;
  s->config.value_type = LATTN_BF16;
  s->config.softcap = 20;
  s->sinks[1] = -2.5f;
  s->config.sink_logits = s->sinks;
}

static uint64_t hand_fingerprint(void) {
  const uint64_t shape[] = {HAND_KEY, HAND_VALUE, HAND_HEADS, 3, LATTN_F16, LATTN_BF16};
  const uint64_t flags[] = {1, 1, 2, 2, 0, 1}; /* half-split from dim 2 on, 2 dims; sink logits */
  const uint64_t floats[] = {0x3f000000, 0x41a00000, 0x3f800000}; /* scale, softcap, magnitude */
  const uint64_t turns[] = {(uint64_t)1 << 62}, logits[] = {0, 0xc0200000, 0};
  const uint64_t heads[] = {0, 0, 0, 1 + 16, 1, 20, 1, 2, 200};
  uint64_t hash = enter(0xcbf29ce484222325u, 6, shape);
  hash = enter(hash, 6, flags);
  hash = enter(hash, 3, floats);
  hash = enter(hash, 1, turns);
  hash = enter(hash, 3, logits);
  return enter(hash, 9, heads);
}

static int hand_holds(const hand *h, int head, int64_t slot) {
  return (slot < h->sink_end[head] || slot >= h->first[head]) &&
         (slot < h->hole_from || slot >= h->hole_to);
}

static stream hand_file(const hand *h) {
  const char *magic = "LATTNKVC";
  int64_t n_holes = h->hole_to > h->hole_from, header = 112 + 16 * (n_holes + HAND_HEADS);
  int64_t total = header + 16;
  stream f;
  memset(&f, 0, sizeof f);
  for (int g = 0; g < HAND_HEADS; g++)
    for (int64_t i = 0; i < h->n_slots; i++)
      if (hand_holds(h, g, i)) total += 2 * (HAND_KEY + HAND_VALUE);
  for (int i = 0; i < 8; i++) put(&f, (uint64_t)magic[i], 1);
  put(&f, 1, 4);
  put(&f, (uint64_t)header, 4);
  put(&f, hand_fingerprint(), 8);
  put(&f, (uint64_t)(h->n_slots - (h->hole_to - h->hole_from)), 8);
  put(&f, (uint64_t)h->n_slots, 8);
  put(&f, (uint64_t)total, 8);
  put(&f, HAND_HEADS, 4);
  put(&f, (uint64_t)n_holes, 4);
  put(&f, HAND_KEY, 4);
  put(&f, HAND_VALUE, 4);
  put(&f, 2, 4); /* f16 */
  put(&f, 3, 4); /* bf16 */
  for (int i = 0; i < 3; i++) put(&f, 0, 8);
  if (n_holes) put(&f, (uint64_t)h->hole_from, 8), put(&f, (uint64_t)h->hole_to, 8);
  for (int g = 0; g < HAND_HEADS; g++)
    put(&f, (uint64_t)h->sink_end[g], 8), put(&f, (uint64_t)h->first[g], 8);
  put_checksum(&f);
  for (int g = 0; g < HAND_HEADS; g++) {
    for (int64_t i = 0; i < h->n_slots; i++)
      for (int d = 0; d < HAND_KEY && hand_holds(h, g, i); d++)
        put(&f, f16_of_f32(hand_stored_key(i, g, d)), 2);
    for (int64_t i = 0; i < h->n_slots; i++)
      for (int d = 0; d < HAND_VALUE && hand_holds(h, g, i); d++)
        put(&f, bf16_of_f32(hand_number(i, g, d + 4)), 2);
  }
  put_checksum(&f);
  CHECK_I64((int64_t)f.n, total);
  return f;
}

/* The cache that the file is of, made by extend and remove. */
static void hand_cache(world *w, const hand *h) {
  test_rng r = rng_seed(4);
  operation extend = {OP_EXTEND, h->n_slots, 0, 0};
  operation remove = {OP_REMOVE, h->hole_from, h->hole_to, 0};
  uint64_t hash = HASH_SEED;
  memset(w, 0, sizeof *w);
  hand_setup(&w->s);
  world_tokens(w, &r);
  for (int64_t i = 0; i < h->n_slots; i++)
    for (int g = 0; g < HAND_HEADS; g++) {
      for (int d = 0; d < HAND_KEY; d++)
        w->tokens.k[i * w->tokens.k_row + g * HAND_KEY + d] = hand_number(i, g, d);
      for (int d = 0; d < HAND_VALUE; d++)
        w->tokens.v[i * w->tokens.v_row + g * HAND_VALUE + d] = hand_number(i, g, d + 4);
    }
  world_open(w);
  CHECK_STATUS(op_run(&w->original, &extend, &hash), LATTN_OK);
  if (h->hole_to) CHECK_STATUS(op_run(&w->original, &remove, &hash), LATTN_OK);
}

/* Six tokens without the one at slot 3: small enough to be written down. */
static const hand hand_small = {6, 3, 4, {0, 6, 6}, {0, 6, 6}};
/* Three blocks; head 1 has evicted the middle one, and what is left of the window has a hole. */
static const hand hand_long = {300, 290, 295, {0, 128, 128}, {0, 256, 128}};
static const hand hand_empty = {0, 0, 0, {0, 0, 0}, {0, 0, 0}};

static const char hand_hex[] =
    "4c4154544e4b564301000000b00000006b700d7a24bd06e3050000000000000006000000000000009201000000"
    "000000030000000100000004000000030000000200000003000000000000000000000000000000000000000000"
    "000000000000030000000000000004000000000000000000000000000000000000000000000006000000000000"
    "00060000000000000006000000000000000600000000000000a7bcbef40100000075a41fa34700000080c300c2"
    "80c000be00c000bd00b400b800b4003800bd00c0804280c300c280c080c100c0003800bd40bf8040403f803fe0"
    "3f20403040604060c0c0bf40bf8040803e803fe03f00c100bf00bc00b400ba004400be003a003c003f00c180c2"
    "80c200c100bf00bc00be00ba00ba0044003fa03f004010404040704070c040c010c080be003fa03fc03f104040"
    "4000bd00b80034003c0038003d80c100408040004280c3804200c000bd00b8003400b4003800c0003de03f2040"
    "5040604060c030c020c0e0bf80bf803fe03f20403040604060c0cb0849c11c000000b81dae4a14040000";

static void test_by_hand(const char *name, const hand *h) {
  test_rng r = rng_seed(6);
  stream mine = hand_file(h), f;
  world w;
  check_case("a file made by hand: %s", name);
  hand_cache(&w, h);
  f = saved(w.original.cache);
  CHECK_I64((int64_t)f.n, (int64_t)mine.n);
  for (size_t i = 0; i < f.n && i < mine.n; i++)
    if (f.data[i] != mine.data[i]) FAIL("byte %zu is %d, by hand %d", i, f.data[i], mine.data[i]);
  check_target(&w, &mine, TARGET_FILLED, &r);
  stream_free(&f);
  stream_free(&mine);
  world_close(&w);
}

/* The small file, byte by byte: it changes only with the version of the format. */
static void test_golden(void) {
  stream mine = hand_file(&hand_small);
  check_case("the bytes of a saved cache");
  CHECK_I64((int64_t)sizeof hand_hex - 1, 2 * (int64_t)mine.n);
  for (size_t i = 0; i < mine.n && 2 * i + 2 < sizeof hand_hex; i++) {
    char hex[3];
    snprintf(hex, sizeof hex, "%02x", mine.data[i]);
    if (memcmp(hex, hand_hex + 2 * i, 2)) FAIL("byte %zu is %s", i, hex);
  }
  stream_free(&mine);
}

static void print_golden(void) {
  stream mine = hand_file(&hand_small);
  for (size_t i = 0; i < mine.n; i++)
    printf("%s%02x%s", i % 45 ? "" : "    \"", mine.data[i],
           i + 1 == mine.n ? "\";\n"
           : i % 45 == 44  ? "\"\n"
                           : "");
  stream_free(&mine);
}

/* ---- damage, failing calls, no room: refused, and the target is what it was ---- */

/* A cache with one full and one streaming head, 21 tokens, a hole; and a target with others. */
typedef struct small {
  world w;
  store p;
  actor target;
  stream f;
} small;

static void small_setup(setup *s) {
  setup_init(s, 4, 2, 4, 3, 60);
  setup_stream(s, 1, 2, 5, 3, LATTN_POSITIONS_DEFAULT);
  setup_rotate(s, LATTN_ROTARY_HALF_SPLIT, 0, 4);
  setup_alibi(s);
  setup_sinks(s);
  s->config.key_type = LATTN_F16;
  s->config.value_type = LATTN_BF16;
  s->config.softcap = 20;
  s->config.max_append = 8;
  s->config.max_holes = 3;
}

/* Feeds 21 tokens from the cursor on and removes one of them. */
static void small_feed(actor *t, int64_t cursor) {
  operation extend = {OP_EXTEND, 21, 0, 0}, remove = {OP_REMOVE, 15, 16, 0};
  uint64_t hash = HASH_SEED;
  extend.cursor = cursor;
  CHECK_STATUS(op_run(t, &extend, &hash), LATTN_OK);
  CHECK_STATUS(op_run(t, &remove, &hash), LATTN_OK);
}

static void small_open(small *t, int allocator) {
  test_rng r = rng_seed(5);
  memset(t, 0, sizeof *t);
  small_setup(&t->w.s);
  world_tokens(&t->w, &r);
  world_open(&t->w);
  small_feed(&t->w.original, 0);
  t->f = saved(t->w.original.cache);
  store_open_for(&t->p, &t->w.s, allocator);
  t->target.s = &t->w.s;
  t->target.tokens = &t->w.tokens;
  t->target.cache = cache_new(&t->p, &t->w.s);
  small_feed(&t->target, 50);
}

static void small_close(small *t) {
  stream_free(&t->f);
  actor_end(&t->target);
  store_close(&t->p);
  world_close(&t->w);
}

/* The target must refuse the file, with that status or (LATTN_OK) as damaged, and stay what
   `before` says. A count that grew is found by its checksum, or by the reader at the file's end. */
static int refuses(small *t, stream *f, lattn_status status, uint64_t before) {
  lattn_status got = load_all(t->target.cache, f);
  int ok =
      status ? got == status : got == LATTN_E_FORMAT || got == LATTN_E_CONFIG || got == LATTN_E_IO;
  return ok && fingerprint(t->target.cache, &t->p) == before;
}

static void test_truncated(void) {
  small t;
  uint64_t before;
  stream f;
  check_case("every truncation is refused");
  small_open(&t, 0);
  before = fingerprint(t.target.cache, &t.p);
  f = t.f;
  for (f.n = 0; f.n < t.f.n; f.n++) {
    f.endless = 0;
    if (!refuses(&t, &f, LATTN_E_IO, before)) FAIL("ends after %zu bytes", f.n);
    f.endless = 1; /* an empty or short file whose reader gives zeros */
    if (t.f.data[f.n] && !refuses(&t, &f, LATTN_OK, before)) FAIL("zeros after %zu bytes", f.n);
  }
  CHECK_STATUS(load_all(t.target.cache, &t.f), LATTN_OK);
  small_close(&t);
}

/* Not even two flips in different bytes: at random, beside all single ones. */
static void test_flipped(void) {
  small t;
  uint64_t before;
  test_rng r = rng_seed(12);
  check_case("every flipped bit is refused");
  small_open(&t, 0);
  before = fingerprint(t.target.cache, &t.p);
  for (size_t bit = 0; bit < 8 * t.f.n; bit += test_is_quick() ? 3 : 1) {
    t.f.data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    if (!refuses(&t, &t.f, LATTN_OK, before)) FAIL("bit %zu of byte %zu", bit % 8, bit / 8);
    t.f.data[bit / 8] ^= (unsigned char)(1 << bit % 8);
  }
  for (int64_t i = 0; i < test_count(2000); i++) {
    size_t a = (size_t)rng_below(&r, (int64_t)t.f.n), b = (size_t)rng_below(&r, (int64_t)t.f.n);
    unsigned char x = (unsigned char)rng_range(&r, 1, 255),
                  y = (unsigned char)rng_range(&r, 1, 255);
    t.f.data[a] ^= x, t.f.data[b] ^= y;
    if ((a != b || x != y) && !refuses(&t, &t.f, LATTN_OK, before)) FAIL("bytes %zu and %zu", a, b);
    t.f.data[a] ^= x, t.f.data[b] ^= y;
  }
  CHECK_STATUS(load_all(t.target.cache, &t.f), LATTN_OK);
  small_close(&t);
}

/* ---- heads chosen at a mark: what a file says of them, damaged behind a right checksum ---- */

/* One head drops 4 of 12 tokens, the other 3. Then 2 more come. */
enum { CHOSEN_HEADER = 192, CHOSEN_TOKEN = 2 * (4 + 3), CHOSEN_KEPT = 8, CHOSEN_HELD = 10 };

static void chosen_setup(setup *s) {
  setup_init(s, 4, 2, 4, 3, 60);
  s->config.key_type = s->config.value_type = LATTN_F16;
  s->heads[0].policy = LATTN_HEAD_SNAP, s->heads[1].policy = LATTN_HEAD_HEAVY;
  s->heads[0].window = 3, s->heads[1].window = 2;
  s->heads[0].budget = CHOSEN_KEPT, s->heads[1].budget = CHOSEN_KEPT + 1;
}

static void chosen_feed(actor *t) {
  operation extend = {OP_EXTEND, 12, 0, 0}, mark = {OP_MARK, 0, 0, 0};
  uint64_t hash = HASH_SEED;
  CHECK_STATUS(op_run(t, &extend, &hash), LATTN_OK);
  CHECK_STATUS(op_run(t, &mark, &hash), LATTN_OK);
  extend.a = 2;
  CHECK_STATUS(op_run(t, &extend, &hash), LATTN_OK);
}

static void number_set(stream *f, size_t at, int64_t x, int n_bytes) {
  for (int i = 0; i < n_bytes; i++) f->data[at + (size_t)i] = (unsigned char)(x >> 8 * i & 255);
}

static void checksums_set(stream *f) {
  size_t n = f->n;
  f->n = CHOSEN_HEADER - 16;
  put_checksum(f);
  f->n = n - 16;
  put_checksum(f);
}

static void test_chosen(void) {
  enum { LIST = CHOSEN_HEADER + CHOSEN_HELD * CHOSEN_TOKEN };
  static const struct {
    size_t at;
    int64_t x;
    int n_bytes;
    lattn_status want;
  } damage[] = {
      {8, 1, 4, LATTN_E_FORMAT},           {8, 3, 4, LATTN_E_FORMAT},
      {128, 0, 8, LATTN_E_FORMAT},         {128, 9, 8, LATTN_E_FORMAT}, /* kept */
      {128, 2, 8, LATTN_E_FORMAT},         {128, 15, 8, LATTN_E_FORMAT},
      {128, INT64_MAX, 8, LATTN_E_FORMAT}, {128, -1, 8, LATTN_E_FORMAT},
      {136, 0, 8, LATTN_E_FORMAT},         {136, 5, 8, LATTN_E_FORMAT}, /* shift */
      {136, 7, 8, LATTN_E_FORMAT},         {136, -1, 8, LATTN_E_FORMAT},
      {144, 0, 8, LATTN_E_FORMAT},         {144, 15, 8, LATTN_E_FORMAT}, /* queries from */
      {144, -1, 8, LATTN_E_FORMAT},        {144, 10, 8, LATTN_E_FORMAT},
      {152, 10, 8, LATTN_E_FORMAT},        {160, 4, 8, LATTN_E_FORMAT}, /* HEAVY */
      {168, 15, 8, LATTN_E_FORMAT},        {LIST, 11, 4, LATTN_E_FORMAT},
      {LIST + 28, 12, 4, LATTN_E_FORMAT},  {LIST + 28, -1, 4, LATTN_E_FORMAT},
      {LIST + 24, 11, 4, LATTN_E_FORMAT},  {40, 2000, 8, LATTN_E_FORMAT}};
  test_rng r = rng_seed(8);
  world w;
  stream f, bad;
  uint64_t before;
  memset(&w, 0, sizeof w);
  check_case("heads chosen at a mark: damage behind a right checksum");
  chosen_setup(&w.s);
  world_tokens(&w, &r);
  world_open(&w);
  chosen_feed(&w.original);
  f = saved(w.original.cache);
  before = fingerprint(w.original.cache, &w.home);
  bad = saved(w.original.cache);
  checksums_set(&bad);
  CHECK(stream_equal(&f, &bad));
  for (size_t i = 0; i < sizeof damage / sizeof *damage; i++) {
    lattn_status status;
    memcpy(bad.data, f.data, f.n);
    number_set(&bad, damage[i].at, damage[i].x, damage[i].n_bytes);
    checksums_set(&bad);
    status = load_all(w.original.cache, &bad);
    if (status != damage[i].want) FAIL("damage %zu: status %d", i, (int)status);
    CHECK(fingerprint(w.original.cache, &w.home) == before);
    if (!status) CHECK_STATUS(load_all(w.original.cache, &f), LATTN_OK);
  }
  stream_free(&bad);
  stream_free(&f);
  world_close(&w);
}

/* The read, then the write, of every number fails. */
static void test_failing_calls(void) {
  small t;
  uint64_t before, of_original, bytes;
  int64_t n_reads, n_writes;
  check_case("every failing read and write is reported");
  small_open(&t, 0);
  n_writes = t.f.n_calls;
  CHECK_STATUS(load_all(t.target.cache, &t.f), LATTN_OK);
  n_reads = t.f.n_calls;
  CHECK_STATUS(lattn_cache_clear(t.target.cache), LATTN_OK);
  small_feed(&t.target, 80);
  before = fingerprint(t.target.cache, &t.p);
  of_original = fingerprint(t.w.original.cache, &t.w.home);
  for (int64_t k = 1; k <= n_reads; k++) {
    stream_rewind(&t.f);
    t.f.fail_at = k;
    CHECK_STATUS(lattn_cache_load(t.target.cache, stream_read, &t.f), LATTN_E_IO);
    CHECK_I64(t.f.n_calls, k);
    CHECK(fingerprint(t.target.cache, &t.p) == before);
  }
  for (int64_t k = 1; k <= n_writes; k++) {
    stream f;
    memset(&f, 0, sizeof f);
    f.fail_at = k;
    bytes = 99;
    CHECK_STATUS(lattn_cache_save(t.w.original.cache, stream_write, &f, &bytes), LATTN_E_IO);
    CHECK(f.n_calls == k && f.n < t.f.n && (!f.n || !memcmp(f.data, t.f.data, f.n)));
    CHECK(bytes == 99); /* on an error nothing was written */
    CHECK(fingerprint(t.w.original.cache, &t.w.home) == of_original);
    stream_free(&f);
  }
  CHECK_STATUS(load_all(t.target.cache, &t.f), LATTN_OK);
  small_close(&t);
}

/* An allocator that fails at every call of a load; then the retry succeeds. */
static void test_failing_pages(void) {
  small t;
  uint64_t before;
  int64_t k = 1;
  check_case("every page that is missing is LATTN_E_FULL");
  small_open(&t, 1);
  before = fingerprint(t.target.cache, &t.p);
  for (; k < 1000; k++) {
    lattn_status status;
    t.p.n_calls = 0;
    t.p.fail_at = k;
    status = load_all(t.target.cache, &t.f);
    if (!status) break;
    CHECK_STATUS(status, LATTN_E_FULL);
    CHECK(fingerprint(t.target.cache, &t.p) == before);
  }
  CHECK(k > 2 && k < 1000); /* at least a page a head was asked for */
  t.p.fail_at = 0;
  small_feed(&t.target, 80);
  CHECK_STATUS(load_all(t.target.cache, &t.f), LATTN_OK);
  small_close(&t);
}

/* A pool with pages for one such cache only: full until the target is cleared. */
static void test_no_room(void) {
  test_rng r = rng_seed(77);
  operation extend = {OP_EXTEND, 200, 0, 0};
  uint64_t hash = HASH_SEED, before;
  actor target;
  stream f;
  store p;
  world w;
  check_case("pages for the old and the new are needed");
  memset(&w, 0, sizeof w);
  setup_init(&w.s, 2, 2, 4, 4, 500);
  setup_stream(&w.s, 1, 4, 100, 0, LATTN_POSITIONS_ABSOLUTE);
  w.s.config.max_append = 64;
  world_tokens(&w, &r);
  world_open(&w);
  CHECK_STATUS(op_run(&w.original, &extend, &hash), LATTN_OK);
  CHECK_STATUS(op_run(&w.original, &extend, &hash), LATTN_OK);
  f = saved(w.original.cache);
  store_open(&p, lattn_pool_bytes(NULL, &w.s.config, 1), 0);
  target = w.original;
  target.cache = cache_new(&p, &w.s);
  CHECK_STATUS(load_all(target.cache, &f), LATTN_OK);
  CHECK_STATUS(op_run(&target, &extend, &hash), LATTN_E_FULL); /* beyond its capacity */
  before = fingerprint(target.cache, &p);
  CHECK_STATUS(load_all(target.cache, &f), LATTN_E_FULL);
  CHECK(fingerprint(target.cache, &p) == before);
  CHECK_STATUS(lattn_cache_clear(target.cache), LATTN_OK);
  CHECK_STATUS(load_all(target.cache, &f), LATTN_OK);
  CHECK(fingerprint(target.cache, &p) == before);
  actor_end(&target);
  store_close(&p);
  stream_free(&f);
  world_close(&w);
}

/* A cache of one token, or one hole, less than the file has. */
static void test_no_capacity(void) {
  small t;
  setup s;
  uint64_t before;
  lattn_cache *cache;
  operation remove = {OP_REMOVE, 5, 6, 0};
  uint64_t hash = HASH_SEED;
  check_case("fewer tokens or holes than the file has");
  small_open(&t, 0);
  CHECK_STATUS(op_run(&t.w.original, &remove, &hash), LATTN_OK);
  stream_free(&t.f);
  t.f = saved(t.w.original.cache);
  for (int i = 0; i < 4; i++) {
    s = t.w.s;
    s.config.heads = s.heads;
    s.config.capacity = i == 0 ? 18 : i == 1 ? 21 : 60;
    s.config.max_holes = i == 2 ? 1 : 2;
    cache = cache_new(&t.p, &s);
    before = fingerprint(cache, &t.p);
    CHECK_STATUS(load_all(cache, &t.f), i == 0 || i == 2 ? LATTN_E_FULL : LATTN_OK);
    if (i == 0 || i == 2) CHECK(fingerprint(cache, &t.p) == before);
    CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  }
  small_close(&t);
}

/* ---- other configs, field by field ---- */

enum { N_OTHER = 26, N_SAME = 9 };

static const char *const other_names[N_OTHER] = {
    "key_dim",     "value_dim",        "key_type",  "value_type", "n_heads",   "n_kv_heads",
    "a full head", "a window head",    "sinks",     "window",     "positions", "no rotary",
    "layout",      "first_dim",        "n_dims",    "magnitude",  "one turn",  "no ALiBi",
    "one slope",   "no learned sinks", "one logit", "scale",      "softcap",   "heads swapped",
    "no softcap",  "sign of scale"};

/* Changes one thing that a load must not ignore, in the order of the names. */
static void setup_change(setup *s, int what) {
  lattn_head full = s->heads[0];
  lattn_cache_config *c = &s->config;
  if (what == 0) c->key_dim = 6;
  if (what == 1) c->value_dim = 4;
  if (what == 2) c->key_type = LATTN_BF16;
  if (what == 3) c->value_type = LATTN_F16;
  if (what == 4) c->n_heads = 6;
  if (what == 5) c->n_kv_heads = 4;
  if (what == 6) setup_stream(s, 0, 2, 5, 3, LATTN_POSITIONS_DEFAULT);
  if (what == 7) s->heads[1] = full;
  if (what == 8) s->heads[1].sinks++;
  if (what == 9) s->heads[1].window++;
  if (what == 10) s->heads[1].positions = LATTN_POSITIONS_ABSOLUTE;
  if (what == 11) c->rotary = NULL;
  if (what == 12) s->rotary.layout = LATTN_ROTARY_INTERLEAVED;
  if (what == 13) s->rotary.first_dim = 0;
  if (what == 14) s->rotary.n_dims = 4, s->rotary.first_dim = 0;
  if (what == 15) s->rotary.magnitude = 1.5f;
  if (what == 16) s->turns[0] ^= 1;
  if (what == 17) c->alibi_slopes = NULL;
  if (what == 18) s->slopes[3] *= 2;
  if (what == 19) c->sink_logits = NULL;
  if (what == 20) s->sinks[2] = 7;
  if (what == 21) c->scale *= 1.0000002f;
  if (what == 22) c->softcap += 1;
  if (what == 23) s->heads[0] = s->heads[1], s->heads[1] = full;
  if (what == 24) c->softcap = 0;
  if (what == 25) c->scale = -c->scale;
}

static const char *const same_names[N_SAME] = {"nothing",          "capacity",    "slack",
                                               "max_append",       "max_drafts",  "max_holes",
                                               "in-cache by name", "magnitude 1", "less slack"};

/* Changes what may differ, or says the same in other words. */
static void setup_change_room(setup *s, int what) {
  lattn_cache_config *c = &s->config;
  if (what == 1) c->capacity = 300;
  if (what == 2) s->heads[1].slack = 50;
  if (what == 3) c->max_append = 3;
  if (what == 4) c->max_drafts = 8;
  if (what == 5) c->max_holes = 30;
  if (what == 6) s->heads[1].positions = LATTN_POSITIONS_IN_CACHE;
  if (what == 7) s->rotary.magnitude = 1;
  if (what == 8) s->heads[1].slack = 0;
}

/* The setup of the small cache, rotating two of the dims, with a scale. */
static void setup_rich(setup *s) {
  small_setup(s);
  setup_rotate(s, LATTN_ROTARY_HALF_SPLIT, 2, 2);
  s->config.scale = 0.3f;
}

static stream rich_saved(int64_t n_tokens) {
  static world w; /* setups point into themselves */
  test_rng r = rng_seed(9);
  operation extend = {OP_EXTEND, 0, 0, 0};
  uint64_t hash = HASH_SEED;
  stream f;
  memset(&w, 0, sizeof w);
  setup_rich(&w.s);
  world_tokens(&w, &r);
  world_open(&w);
  extend.a = n_tokens;
  CHECK_STATUS(op_run(&w.original, &extend, &hash), LATTN_OK);
  f = saved(w.original.cache);
  world_close(&w);
  return f;
}

/* Loads what the rich setup saved into a cache with a change. */
static void check_config(int what, int may_differ, int64_t n_tokens) {
  stream f = rich_saved(n_tokens);
  uint64_t before;
  lattn_cache *cache;
  store p;
  setup s;
  setup_rich(&s);
  if (may_differ) setup_change_room(&s, what);
  else setup_change(&s, what);
  store_open_for(&p, &s, 0);
  cache = cache_new(&p, &s);
  before = fingerprint(cache, &p);
  CHECK_STATUS(load_all(cache, &f), may_differ ? LATTN_OK : LATTN_E_CONFIG);
  CHECK(may_differ || fingerprint(cache, &p) == before);
  CHECK_I64(cache_stats(cache).n_tokens, may_differ ? n_tokens : 0);
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  store_close(&p);
  stream_free(&f);
}

static void test_configs(void) {
  for (int what = 0; what < N_OTHER; what++) {
    check_case("another config: %s", other_names[what]);
    check_config(what, 0, 12);
    check_config(what, 0, 0);
  }
  for (int what = 0; what < N_SAME; what++) {
    check_case("a config that may differ: %s", same_names[what]);
    check_config(what, 1, 12);
    check_config(what, 1, 0);
  }
}

/* ---- calls that are wrong, and files behind one another ---- */

static void test_arguments(void) {
  small t;
  uint64_t before, bytes = 5;
  stream f;
  check_case("null pointers");
  small_open(&t, 0);
  memset(&f, 0, sizeof f);
  before = fingerprint(t.target.cache, &t.p);
  CHECK_STATUS(lattn_cache_save(NULL, stream_write, &f, &bytes), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_load(NULL, stream_read, &f), LATTN_E_NULL);
  CHECK_STATUS(lattn_cache_load(t.target.cache, NULL, NULL), LATTN_E_NULL);
  CHECK(bytes == 5 && !f.n_calls);
  CHECK_STATUS(lattn_cache_save(t.target.cache, NULL, NULL, NULL), LATTN_E_NULL); /* of no use */
  CHECK_STATUS(lattn_cache_save(t.target.cache, stream_write, &f, NULL), LATTN_OK);
  CHECK(f.n > 0 && fingerprint(t.target.cache, &t.p) == before);
  stream_free(&f);
  small_close(&t);
}

/* With drafts pending, neither; afterwards both. */
static void test_drafts(void) {
  static const int32_t parents[2] = {-1, -1};
  test_rng r = rng_seed(3);
  float out[2 * 4 * 3];
  uint64_t bytes = 5;
  lattn_tensor view = tensor_of(out, LATTN_F32, 2, 4, 3);
  const setup *s;
  stream f;
  world w;
  check_case("drafts are pending");
  memset(&w, 0, sizeof w);
  small_setup(&w.s);
  w.s.config.max_drafts = 2;
  s = &w.s;
  world_tokens(&w, &r);
  world_open(&w);
  small_feed(&w.original, 0);
  f = saved(w.original.cache);
  CHECK_STATUS(lattn_cache_draft(w.original.cache, NULL, parents, tokens_q(&w.tokens, s, 30, 2),
                                 tokens_k(&w.tokens, s, 30, 2), tokens_v(&w.tokens, s, 30, 2), view,
                                 NULL, NULL),
               LATTN_OK);
  CHECK_I64(cache_stats(w.original.cache).n_drafts, 2);
  stream_rewind(&f);
  CHECK_STATUS(lattn_cache_load(w.original.cache, stream_read, &f), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_save(w.original.cache, stream_write, &f, &bytes), LATTN_E_STATE);
  CHECK_STATUS(lattn_cache_save(w.original.cache, NULL, NULL, &bytes), LATTN_E_STATE);
  CHECK(bytes == 5 && !f.n_calls);
  CHECK_I64(cache_stats(w.original.cache).n_drafts, 2);
  CHECK_STATUS(lattn_cache_accept(w.original.cache, 0, NULL), LATTN_OK);
  CHECK_STATUS(load_all(w.original.cache, &f), LATTN_OK);
  stream_free(&f);
  world_close(&w);
}

/* Two caches in one file: each load reads its own part and not a byte more. */
static void test_one_after_another(void) {
  small t;
  stream both, again;
  check_case("two caches in one file");
  small_open(&t, 0);
  memset(&both, 0, sizeof both);
  CHECK_STATUS(lattn_cache_save(t.w.original.cache, stream_write, &both, NULL), LATTN_OK);
  CHECK(both.n == t.f.n);
  CHECK_STATUS(lattn_cache_save(t.target.cache, stream_write, &both, NULL), LATTN_OK);
  stream_rewind(&both);
  CHECK_STATUS(lattn_cache_load(t.target.cache, stream_read, &both), LATTN_OK);
  CHECK(both.at == t.f.n);
  again = saved(t.target.cache);
  CHECK(stream_equal(&again, &t.f));
  stream_free(&again);
  CHECK_STATUS(lattn_cache_load(t.target.cache, stream_read, &both), LATTN_OK);
  CHECK(both.at == both.n);
  again = saved(t.target.cache);
  CHECK(again.n == both.n - t.f.n && !memcmp(again.data, both.data + t.f.n, again.n));
  stream_free(&again);
  stream_free(&both);
  small_close(&t);
}

/* An empty cache, and one that was emptied, save the same; both come back. */
static void test_empty(void) {
  small t;
  stream f, again;
  check_case("an empty cache");
  small_open(&t, 0);
  CHECK_STATUS(lattn_cache_clear(t.w.original.cache), LATTN_OK);
  f = saved(t.w.original.cache);
  CHECK_STATUS(load_all(t.target.cache, &f), LATTN_OK);
  CHECK_I64(cache_stats(t.target.cache).n_tokens, 0);
  CHECK_I64(pool_stats(t.p.pool).n_pages, 0);
  small_feed(&t.target, 0);
  again = saved(t.target.cache);
  CHECK(stream_equal(&again, &t.f));
  stream_free(&again);
  stream_free(&f);
  small_close(&t);
}

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "--print")) {
    print_golden();
    return 0;
  }
  for (uint64_t i = 0; i < (uint64_t)test_count(300); i++) {
    test_round_trip(test_first_seed() + i, 0);
    if (i % 4 == 0) test_round_trip(test_first_seed() + i, 1);
  }
  for (uint64_t i = 0; i < (uint64_t)test_count(90); i++) test_cuts(test_first_seed() + 1000 + i);
  test_long(LATTN_F32);
  if (!test_is_quick()) test_long(LATTN_BF16);
  test_golden();
  test_by_hand("six tokens and a hole", &hand_small);
  test_by_hand("three blocks", &hand_long);
  test_by_hand("no token", &hand_empty);
  test_truncated();
  test_flipped();
  test_chosen();
  test_failing_calls();
  test_failing_pages();
  test_no_room();
  test_no_capacity();
  test_configs();
  test_arguments();
  test_drafts();
  test_one_after_another();
  test_empty();
  return test_summary();
}
