/* model.c - random operations over several caches of one small pool, against a plain model: of each
 * cache a list of tokens by slot, with the ranges removed from it, and the pages that it holds. Any
 * route to the same tokens must give the same bits. Then every allocation made to fail, and pools
 * that are exactly one page short.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SEED=n in the environment runs the one round of random operations with that seed. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

enum {
  MAX_CACHES = 8,
  MAX_POINTS = 6, /* checkpoints */
  MAX_FILES = 4,
  MAX_SLOTS = 40 * REF_BLOCK, /* beyond two segments */
  MAX_BLOCKS = MAX_SLOTS / REF_BLOCK,
  MAX_HOLES = 16,
  MAX_ROWS = 700, /* of one call: more than a pass takes */
  MAX_DRAFTS = 12,
  MAX_PAGES = 8192,
  N_BASES = 3,
  N_VARIANTS = 4 * N_BASES,
  ROUND_OPS = 3500
};

#define PICK(rng, list) ((list)[rng_below(rng, (int64_t)(sizeof(list) / sizeof *(list)))])

/* ---- the model ---- */

/* What a cache, a checkpoint or a file holds. Slots of a hole have an id too: nobody reads it. */
typedef struct state {
  int64_t n_slots, n_tokens;
  int64_t mark; /* tokens at the end of the prompt; -1: not yet (or nobody waits) */
  int32_t n_holes;
  int64_t from[MAX_HOLES + 2], to[MAX_HOLES + 2]; /* slots of the holes, rising */
  uint32_t ids[MAX_SLOTS];                        /* the token in each slot */
  int32_t page[CACHE_KV_HEADS][MAX_BLOCKS];       /* the page of each block; 0 = not held */
} state;

typedef struct live {
  lattn_cache *cache;
  int v; /* its configuration */
  state st;
  int32_t n_drafts, parents[MAX_DRAFTS];
  uint32_t drafts[MAX_DRAFTS];
} live;

typedef struct point {
  lattn_checkpoint *checkpoint;
  int v;
  state st;
} point;

typedef struct file {
  unsigned char *bytes;
  size_t n, room;
  int v;
  state st; /* its pages are nobody's: not used */
} file;

/* Configurations: those of one base differ in heads, capacity, slack and max_... only. */
typedef struct variant {
  setup s;
  int base;
  int64_t page_bytes; /* 0: no cache has had a page yet */
  size_t scratch[2];  /* for MAX_ROWS rows and 1 or 3 threads */
} variant;

/* The caller's allocator: refuses by chance, and whatever is beyond its limit. */
typedef struct page_source {
  int64_t n_calls, fail_at, n_out, bytes_out, most_out;
  int percent, denied; /* denied: since it was last set to 0 */
  test_rng rng;
} page_source;

enum { TAKES_NOTHING, TAKES_PAGES, TAKES_TABLES, TAKES_BOTH };

/* How often an operation was done, met a pool without room, and was refused for another reason. */
typedef struct tally {
  int64_t done, full, refused;
} tally;

typedef struct world {
  test_rng rng;
  variant variants[N_VARIANTS];
  test_guard arena;
  lattn_pool *pool;
  page_source source;
  int allocates, ample, is_long; /* ample: there is always room for tables */
  live *caches[MAX_CACHES];
  point *points[MAX_POINTS];
  file files[MAX_FILES];
  int32_t n_caches, n_points;
  int32_t holders[MAX_PAGES], free_pages[MAX_PAGES]; /* of each page; a stack of unused numbers */
  int32_t n_free;
  int64_t n_pages, n_shared;
  uint32_t last_id;
  float *q, *k, *v, *out, *lse; /* of one call */
  char *scratch;
  size_t scratch_bytes, batch_scratch[N_BASES][2];
  setup twin_setup;
  test_guard twin_arena;
  tally tallies[32]; /* of all rounds, by operation */
  int operation;
} world;

static world w;

static void *source_alloc(void *user, size_t bytes, size_t alignment) {
  page_source *source = (page_source *)user;
  CHECK(alignment == 64 && bytes > 0);
  if (++source->n_calls == source->fail_at || source->n_out >= source->most_out ||
      (source->percent && rng_chance(&source->rng, source->percent))) {
    source->denied++;
    return NULL;
  }
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

static const setup *setup_of(int v) { return &w.variants[v].s; }

/* Whether one's checkpoints and files are the other's too: all but capacity, slack and max_... */
static int same_config(int a, int b) {
  if (w.variants[a].base != w.variants[b].base) return 0;
  for (int g = 0; g < setup_bundles(setup_of(a)); g++) {
    const lattn_head *x = &setup_of(a)->heads[g], *y = &setup_of(b)->heads[g];
    if (x->policy != y->policy || x->sinks != y->sinks || x->window != y->window) return 0;
    if (x->flags != y->flags || x->mark != y->mark) return 0;
    if (x->window_divisor != y->window_divisor || x->budget != y->budget) return 0;
    if (setup_in_cache(setup_of(a), g) != setup_in_cache(setup_of(b), g)) return 0;
  }
  return 1;
}

static int setup_choosing(const setup *s) {
  int chosen = 0;
  for (int g = 0; g < setup_bundles(s); g++) chosen |= setup_chosen(&s->heads[g]);
  return chosen;
}
/* Its sums of attention go forward only. */
static int setup_heavy(const setup *s) {
  int heavy = 0;
  for (int g = 0; g < setup_bundles(s); g++) heavy |= s->heads[g].policy == LATTN_HEAD_HEAVY;
  return heavy;
}

static int64_t max_holes(int v) {
  return setup_of(v)->config.max_holes ? setup_of(v)->config.max_holes : 16;
}

static int beyond(int v, int64_t n_tokens) {
  return setup_of(v)->config.capacity && n_tokens > setup_of(v)->config.capacity;
}

/* The slot of a position; of n_tokens: the slot that the next token takes. */
static int64_t slot_of(const state *st, int64_t position) {
  for (int32_t i = 0; i < st->n_holes && st->from[i] <= position; i++)
    position += st->to[i] - st->from[i];
  return position;
}

static int in_hole(const state *st, int64_t block) {
  for (int32_t i = 0; i < st->n_holes; i++)
    if (st->from[i] <= block * REF_BLOCK && st->to[i] >= (block + 1) * REF_BLOCK) return 1;
  return 0;
}

/* Whether head g holds all tokens at positions first ... end - 1. */
static int held(const state *st, int64_t g, int64_t first, int64_t end) {
  if (first < 0) first = 0;
  if (first >= end) return 1;
  for (int64_t b = slot_of(st, first) / REF_BLOCK; b <= slot_of(st, end - 1) / REF_BLOCK; b++)
    if (!st->page[g][b] && !in_hole(st, b)) return 0;
  return 1;
}

/* ---- the model's pages ---- */

static int32_t page_new(void) {
  int32_t page = w.free_pages[--w.n_free];
  w.holders[page] = 1;
  w.n_pages++;
  return page;
}

static void page_hold(int32_t page) {
  if (page && ++w.holders[page] == 2) w.n_shared++;
}

static void page_drop(int32_t *page) {
  if (*page) {
    int32_t left = --w.holders[*page];
    w.n_shared -= left == 1;
    w.n_pages -= left == 0;
    if (!left) w.free_pages[w.n_free++] = *page;
  }
  *page = 0;
}

static void pages_drop(int v, state *st) {
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    for (int b = 0; b < MAX_BLOCKS; b++) page_drop(&st->page[g][b]);
}

/* A second holder of all that `from` holds; `to` must hold nothing. */
static void state_copy(state *to, const state *from) {
  memcpy(to->from, from->from, sizeof to->from);
  memcpy(to->to, from->to, sizeof to->to);
  memcpy(to->ids, from->ids, (size_t)from->n_slots * sizeof *to->ids);
  to->n_slots = from->n_slots;
  to->n_tokens = from->n_tokens;
  to->mark = from->mark;
  to->n_holes = from->n_holes;
}

static void state_share(int v, state *to, const state *from) {
  state_copy(to, from);
  memcpy(to->page, from->page, sizeof to->page);
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    for (int b = 0; b < MAX_BLOCKS; b++) page_hold(to->page[g][b]);
}

/* The first token that head g keeps: of its window and slack of the next token. */
static int64_t keeps_from(int v, const state *st, int g) {
  const lattn_head *head = &setup_of(v)->heads[g];
  int64_t keep = st->n_tokens - (setup_window(head, st->mark) - 1) - head->slack;
  return setup_streams(head, st->mark) && keep > 0 ? keep : 0;
}

/* Drops what lies before the sinks, window and slack of the next token, in whole pages. */
static void state_evict(int v, state *st) {
  for (int g = 0; g < setup_bundles(setup_of(v)); g++) {
    const lattn_head *head = &setup_of(v)->heads[g];
    int64_t keep = keeps_from(v, st, g);
    if (keep == 0) continue;
    int64_t b = (head->sinks + REF_BLOCK - 1) / REF_BLOCK, end = slot_of(st, keep) / REF_BLOCK;
    for (; b < end; b++) page_drop(&st->page[g][b]);
  }
}

/* Whether n more tokens need a page: a new block, or a copy of a newest page that others hold. */
static int needs_pages(int v, const state *st, int64_t n) {
  int64_t b = st->n_slots / REF_BLOCK, used = st->n_slots % REF_BLOCK;
  if (n == 0) return 0;
  if (used == 0 || used + n > REF_BLOCK) return 1;
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    if (w.holders[st->page[g][b]] > 1) return 1;
  return 0;
}

/* After an append, which evicts first, or an extend, which evicts behind itself too. */
static void state_grow(int v, state *st, const uint32_t *ids, int64_t n, int extends) {
  int64_t first = st->n_slots / REF_BLOCK, used = st->n_slots % REF_BLOCK;
  int64_t end = (st->n_slots + n + REF_BLOCK - 1) / REF_BLOCK;
  state_evict(v, st);
  for (int g = 0; g < setup_bundles(setup_of(v)) && n; g++) {
    int32_t *page = st->page[g];
    if (used && w.holders[page[first]] > 1) page_drop(&page[first]);
    for (int64_t b = first; b < end; b++)
      if (!page[b]) page[b] = page_new();
  }
  memcpy(st->ids + st->n_slots, ids, (size_t)n * sizeof *ids);
  st->n_slots += n;
  st->n_tokens += n;
  if (extends) state_evict(v, st);
}

/* A hole at the very end goes too: the next token takes the slot behind the newest token. */
static void state_truncate(int v, state *st, int64_t n) {
  st->n_slots = n ? slot_of(st, n - 1) + 1 : 0;
  st->n_tokens = n;
  if (n < st->mark) st->mark = -1;
  while (st->n_holes && st->from[st->n_holes - 1] >= st->n_slots) st->n_holes--;
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    for (int64_t b = (st->n_slots + REF_BLOCK - 1) / REF_BLOCK; b < MAX_BLOCKS; b++)
      page_drop(&st->page[g][b]);
}

/* Slots from ... to - 1 become a hole: those inside are swallowed, those that touch are joined.
   Returns the number of holes, at most one more than before. */
static int32_t state_hole(state *st, int64_t from, int64_t to) {
  int32_t before = 0, after;
  while (before < st->n_holes && st->to[before] < from) before++;
  after = before;
  while (after < st->n_holes && st->from[after] <= to) after++;
  if (after > before) {
    from = from < st->from[before] ? from : st->from[before];
    to = to > st->to[after - 1] ? to : st->to[after - 1];
  }
  size_t rest = (size_t)(st->n_holes - after) * sizeof *st->from;
  memmove(st->from + before + 1, st->from + after, rest);
  memmove(st->to + before + 1, st->to + after, rest);
  st->from[before] = from;
  st->to[before] = to;
  return st->n_holes += before + 1 - after;
}

/* ---- tokens ---- */

/* q, k and v of a token follow from its id. */
static void token_make(const setup *s, uint32_t id, float *q, float *k, float *v) {
  test_rng rng = rng_seed(id);
  int64_t n_k = s->config.n_kv_heads * s->config.key_dim;
  for (int64_t i = 0; i < n_k; i++) k[i] = rng_normal(&rng);
  for (int64_t i = 0; i < setup_value_heads(s) * setup_value_dim(s); i++) v[i] = rng_normal(&rng);
  for (int64_t i = 0; i < setup_heads(s) * s->config.key_dim; i++) q[i] = rng_normal(&rng);
}

/* Fills rows at ... at + n - 1 of the call's arrays. */
static void tokens_fill(const setup *s, const uint32_t *ids, int64_t at, int64_t n) {
  int64_t q = setup_heads(s) * s->config.key_dim, k = s->config.n_kv_heads * s->config.key_dim;
  int64_t v = setup_value_heads(s) * setup_value_dim(s);
  for (int64_t i = at; i < at + n; i++)
    token_make(s, ids[i - at], w.q + i * q, w.k + i * k, w.v + i * v);
}

static void ids_new(uint32_t *ids, int64_t n) {
  for (int64_t i = 0; i < n; i++) ids[i] = ++w.last_id;
}

/* Ids of the newest n tokens. */
static void ids_newest(const state *st, uint32_t *ids, int64_t n) {
  for (int64_t i = 0; i < n; i++) ids[i] = st->ids[slot_of(st, st->n_tokens - n + i)];
}

static lattn_tensor view_q(const setup *s, int64_t n) {
  return tensor_of(w.q, LATTN_F32, n, setup_heads(s), s->config.key_dim);
}
static lattn_tensor view_k(const setup *s, int64_t n) {
  return tensor_of(w.k, LATTN_F32, n, s->config.n_kv_heads, s->config.key_dim);
}
static lattn_tensor view_v(const setup *s, int64_t n) {
  return tensor_of(w.v, LATTN_F32, n, setup_value_heads(s), setup_value_dim(s));
}
static lattn_tensor view_out(const setup *s, float *out, int64_t n) {
  return tensor_of(out, LATTN_F32, n, setup_heads(s), setup_value_dim(s));
}

/* No exec, or scratch for one thread, or for three. */
static const lattn_exec *random_exec(lattn_exec *exec, const size_t scratch[2]) {
  int kind = (int)rng_below(&w.rng, 3);
  memset(exec, 0, sizeof *exec);
  exec->size = sizeof *exec;
  exec->scratch = w.scratch;
  exec->scratch_bytes = scratch[kind == 2];
  if (kind == 2) exec->n_threads = 3;
  if (kind == 2) exec->parallel_for = test_parallel_scrambled;
  return kind ? exec : NULL;
}

/* ---- statistics ---- */

/* The pool has the caches, checkpoints and pages that the model has. */
static void check_pool(void) {
  lattn_pool_stats stats = pool_stats(w.pool);
  CHECK_I64(stats.n_caches, w.n_caches);
  CHECK_I64(stats.n_checkpoints, w.n_points);
  CHECK_I64(stats.n_pages, w.n_pages);
  CHECK_I64(stats.n_shared, w.n_shared);
  CHECK(stats.free_bytes >= 0 && stats.free_bytes <= stats.arena_bytes);
  if (!w.allocates) {
    CHECK_I64(stats.arena_bytes, stats.table_bytes + stats.page_bytes + stats.free_bytes);
    return;
  }
  CHECK_I64(w.source.n_out, w.n_pages); /* none is hoarded */
  CHECK_I64(w.source.bytes_out, stats.page_bytes);
}

/* Tokens that head g holds: all of each page's slots but those in holes. */
static int64_t tokens_held(const state *st, int64_t g) {
  int64_t n = 0;
  for (int64_t b = 0; b * REF_BLOCK < st->n_slots; b++) {
    int64_t first = b * REF_BLOCK, end = first + REF_BLOCK;
    if (end > st->n_slots) end = st->n_slots;
    if (!st->page[g][b]) continue;
    n += end - first;
    for (int32_t i = 0; i < st->n_holes; i++) {
      int64_t from = st->from[i] > first ? st->from[i] : first;
      int64_t to = st->to[i] < end ? st->to[i] : end;
      if (from < to) n -= to - from;
    }
  }
  return n;
}

static void check_cache(const live *c) {
  lattn_cache_stats stats = cache_stats(c->cache);
  variant *v = &w.variants[c->v];
  int64_t pages = 0, shared = 0, bytes = stats.full_bytes + stats.streaming_bytes;
  for (int64_t g = 0; g < setup_bundles(&v->s); g++) {
    lattn_cache_head_stats head = head_stats(c->cache, g);
    CHECK_I64(head.n_tokens_held, tokens_held(&c->st, g));
    CHECK_I64(head.n_sink_tokens + c->st.n_tokens - head.first_token, head.n_tokens_held);
    CHECK(held(&c->st, g, 0, head.n_sink_tokens));
    CHECK(held(&c->st, g, head.first_token, c->st.n_tokens));
    for (int b = 0; b < MAX_BLOCKS; b++) {
      pages += c->st.page[g][b] != 0;
      shared += w.holders[c->st.page[g][b]] > 1;
    }
  }
  CHECK_I64(stats.n_tokens, c->st.n_tokens);
  CHECK_I64(stats.n_drafts, c->n_drafts);
  CHECK_I64(stats.n_holes, c->st.n_holes);
  if (!v->page_bytes && pages) v->page_bytes = bytes / pages;
  CHECK_I64(bytes, pages * v->page_bytes);
  CHECK_I64(stats.shared_bytes, shared * v->page_bytes);
}

/* ---- files ---- */

static int32_t file_write(void *user, const void *data, size_t bytes) {
  file *f = (file *)user;
  CHECK(bytes > 0 && bytes <= 16384);
  if (f->n + bytes > f->room) {
    f->room = 2 * (f->n + bytes);
    f->bytes = (unsigned char *)realloc(f->bytes, f->room);
  }
  memcpy(f->bytes + f->n, data, bytes);
  f->n += bytes;
  return 0;
}

/* A file being read; ends after `end` bytes. */
typedef struct reading {
  const unsigned char *bytes;
  size_t at, end;
} reading;

static int32_t file_read(void *user, void *data, size_t bytes) {
  reading *r = (reading *)user;
  CHECK(bytes > 0 && bytes <= 16384);
  if (bytes > r->end - r->at) return 1;
  memcpy(data, r->bytes + r->at, bytes);
  r->at += bytes;
  return 0;
}

static void file_save(file *f, const lattn_cache *cache) {
  uint64_t bytes = 0;
  f->n = 0;
  CHECK_STATUS(lattn_cache_save(cache, file_write, f, &bytes), LATTN_OK);
  CHECK_I64((int64_t)bytes, (int64_t)f->n);
}

static uint64_t saved_hash(const lattn_cache *cache) {
  static file f;
  file_save(&f, cache);
  return hash_bytes(HASH_SEED, f.bytes, f.n);
}

/* ---- errors change nothing ---- */

/* What a call found: to be compared when it fails. c NULL: the pool only. */
typedef struct probe {
  const live *c;
  int hashed;
  uint64_t hash;
  lattn_cache_stats cache;
  lattn_pool_stats pool;
} probe;

static probe probe_begin(const live *c, int percent) {
  probe p;
  memset(&p, 0, sizeof p);
  p.c = c;
  p.pool = pool_stats(w.pool);
  if (c) p.cache = cache_stats(c->cache);
  p.hashed = c && !c->n_drafts && rng_chance(&w.rng, percent);
  if (p.hashed) p.hash = saved_hash(c->cache);
  w.source.denied = 0;
  return p;
}

static void check_unchanged(const probe *p) {
  lattn_pool_stats pool = pool_stats(w.pool);
  CHECK_I64(pool.n_pages, p->pool.n_pages);
  CHECK_I64(pool.table_bytes, p->pool.table_bytes);
  CHECK_I64(pool.free_bytes, p->pool.free_bytes);
  CHECK(memcmp(&pool, &p->pool, sizeof pool) == 0);
  if (p->c) {
    lattn_cache_stats cache = cache_stats(p->c->cache);
    CHECK(memcmp(&cache, &p->cache, sizeof cache) == 0);
  }
  if (p->hashed) CHECK(saved_hash(p->c->cache) == p->hash);
}

/* A set of errors. */
#define REFUSES(status) (1u << -(status))

/* Did the call do its work? It must have, but for the errors that the model expects, and for
   LATTN_E_FULL if it takes what may not be there (from an allocator: exactly when that refused). */
static int settle(const probe *p, lattn_status got, uint32_t refusals, int takes) {
  tally *t = &w.tallies[w.operation];
  t->done += got == LATTN_OK;
  t->full += got == LATTN_E_FULL && !refusals;
  t->refused += got < 0 && refusals;
  if (got < 0) check_unchanged(p);
  if (refusals) {
    if (got >= 0 || got < -30 || !(refusals & REFUSES(got)))
      FAIL("status %d (%s), expected one of the set %#x", (int)got, lattn_status_text(got),
           (unsigned)refusals);
    return 0;
  }
  /* Each page has 16 bytes in the pool's own tables: a small arena may have no room for them. */
  int crowded = !w.ample && got == LATTN_E_FULL && takes == TAKES_PAGES;
  if (w.allocates && (takes == TAKES_PAGES || w.source.denied) && !crowded) {
    CHECK_STATUS(got, w.source.denied ? LATTN_E_FULL : LATTN_OK);
  } else if (takes == TAKES_NOTHING || got != LATTN_E_FULL) {
    CHECK_STATUS(got, LATTN_OK);
  }
  return got == LATTN_OK;
}

/* ---- the reference, and the same tokens by another way ---- */

/* The tokens at positions 0 ... n - 1, then a path of drafts, as the reference takes them. */
static token_list tokens_listed(const setup *s, const state *st, int64_t n, const uint32_t *path,
                                int64_t n_path) {
  token_list t = tokens_new(s, n + n_path);
  t.slots = (int64_t *)ref_memory(n + n_path, sizeof *t.slots);
  for (t.n = 0; t.n < n + n_path; t.n++) {
    int64_t i = t.n;
    t.slots[i] = i < n ? slot_of(st, i) : st->n_slots + i - n;
    token_make(s, i < n ? st->ids[t.slots[i]] : path[i - n], t.q + i * t.q_row, t.k + i * t.k_row,
               t.v + i * t.v_row);
  }
  return t;
}

/* Query head `head` alone, with its key head and its value head. */
static token_list list_head(setup *one, const setup *s, const token_list *t, int64_t head) {
  int64_t heads = setup_heads(s), dk = s->config.key_dim, dv = setup_value_dim(s);
  int64_t key = head * s->config.n_kv_heads / heads, value = head * setup_value_heads(s) / heads;
  setup_copy(one, s);
  one->config.n_heads = one->config.n_kv_heads = 1;
  one->config.n_value_heads = 0;
  one->heads[0] = s->heads[head * setup_bundles(s) / heads];
  one->slopes[0] = s->slopes[head];
  one->sinks[0] = s->sinks[head];
  token_list u = tokens_new(one, t->n);
  for (u.n = 0; u.n < t->n; u.n++) {
    memcpy(u.q + u.n * dk, t->q + u.n * t->q_row + head * dk, (size_t)dk * sizeof *u.q);
    memcpy(u.k + u.n * dk, t->k + u.n * t->k_row + key * dk, (size_t)dk * sizeof *u.k);
    memcpy(u.v + u.n * dv, t->v + u.n * t->v_row + value * dv, (size_t)dv * sizeof *u.v);
  }
  u.slots = t->slots;
  return u;
}

/* The float64 reference of one head of one row, whose token is the last of the list. */
static void check_row(const setup *s, const token_list *t, int64_t mark, int64_t head,
                      const float *out, float lse) {
  static setup one;
  token_list u = list_head(&one, s, t, head);
  ref_call c;
  ref_cache_open(&c, &one, &u);
  ref_row row = ref_row_new(&c);
  ref_cache_attend_marked(&c, &one, u.n - 1, 0, mark, &row);
  for (int64_t d = 0; d < setup_value_dim(s); d++) {
    double ratio = ref_ratio((double)out[d], row.out[d], row.bound[d]);
    if (!(ratio <= 1))
      FAIL("position %" PRId64 " head %" PRId64 " dim %" PRId64 ": %.9g, reference %.9g, %.3g off",
           t->n - 1, head, d, (double)out[d], row.out[d], ratio);
  }
  double ratio = ref_ratio((double)lse, row.lse, row.lse_bound);
  if (!(ratio <= 1))
    FAIL("position %" PRId64 " head %" PRId64 ": lse %.9g, reference %.9g, %.3g bounds off",
         t->n - 1, head, (double)lse, row.lse, ratio);
  ref_row_free(&row);
  ref_close(&c);
  u.slots = NULL;
  tokens_free(&u);
}

/* Now and then, one of the call's n newest rows, which begin at row `at` of its arrays. */
static void check_sampled(int v, const state *st, int64_t at, int64_t n, int percent) {
  const setup *s = setup_of(v);
  if (n == 0 || !rng_chance(&w.rng, percent)) return;
  int64_t row = rng_below(&w.rng, n), head = rng_below(&w.rng, setup_heads(s));
  int64_t index = (at + row) * setup_heads(s) + head;
  token_list t = tokens_listed(s, st, st->n_tokens - n + row + 1, NULL, 0);
  check_row(s, &t, st->mark, head, w.out + index * setup_value_dim(s), w.lse[index]);
  tokens_free(&t);
}

/* Appends n tokens to the twin, in any cut. */
static void twin_append(lattn_cache *twin, const uint32_t *ids, int64_t n) {
  const setup *s = &w.twin_setup;
  while (n > 0) {
    int64_t step = rng_range(&w.rng, 1, n < MAX_ROWS ? n : MAX_ROWS);
    tokens_fill(s, ids, 0, step);
    CHECK_STATUS(lattn_cache_append(twin, view_k(s, step), view_v(s, step), NULL), LATTN_OK);
    ids += step;
    n -= step;
  }
}

/* A cache made from nothing: the slots are appended in order, and each hole removed as soon as
   there is a token behind it. Its slack is so long that no window is missed. It is gone with the
   next. Uses the call's arrays but out and lse. */
static lattn_cache *twin_new(int v, const state *st) {
  lattn_pool *pool = NULL;
  lattn_cache *twin = NULL;
  setup *s = &w.twin_setup;
  int64_t at = 0, gone = 0;
  setup_copy(s, setup_of(v));
  s->config.capacity = MAX_SLOTS + MAX_ROWS;
  s->config.max_append = MAX_ROWS;
  s->config.max_holes = MAX_HOLES;
  s->config.max_drafts = 0;
  for (int g = 0; g < setup_bundles(s); g++)
    if (setup_streams(&s->heads[g], 0)) s->heads[g].slack = MAX_SLOTS;
  CHECK_STATUS(lattn_pool_init(&pool, w.twin_arena.data, w.twin_arena.bytes, NULL), LATTN_OK);
  if (!CHECK_STATUS(lattn_cache_init(&twin, pool, &s->config), LATTN_OK)) return NULL;
  for (int32_t i = 0; i < st->n_holes; i++) {
    twin_append(twin, st->ids + at, st->to[i] + 1 - at);
    at = st->to[i] + 1;
    CHECK_STATUS(lattn_cache_remove(twin, st->from[i] - gone, st->to[i] - gone), LATTN_OK);
    gone += st->to[i] - st->from[i];
  }
  if (st->mark >= 0 && setup_waits(s)) { /* then there is no hole */
    twin_append(twin, st->ids, st->mark);
    CHECK_STATUS(lattn_cache_mark(twin, LATTN_PROMPT_END, NULL), LATTN_OK);
    at = st->mark;
  }
  twin_append(twin, st->ids + at, st->n_slots - at);
  return twin;
}

static int same_rows(const float *a, const float *b, int64_t n) {
  int same = 1;
  for (int64_t i = 0; i < n; i++) same &= same_f32(a[i], b[i]);
  return same;
}

/* Now and then: rows at ... at + n - 1 of a call that added these n tokens are those that plain
   decode of a twin gives, one token at a time. `st` is what was there before. */
static void check_decoded(int v, const state *st, const uint32_t *ids, int64_t at, int64_t n,
                          int percent) {
  const setup *s = setup_of(v);
  int64_t heads = setup_heads(s), row = heads * setup_value_dim(s);
  float out[CACHE_HEADS * CACHE_DIMS], lse[CACHE_HEADS];
  if (n == 0 || n > 20 || !rng_chance(&w.rng, percent)) return;
  lattn_cache *twin = twin_new(v, st);
  for (int64_t i = 0; i < n && twin; i++) {
    tokens_fill(s, ids + i, 0, 1);
    CHECK_STATUS(lattn_cache_extend(twin, NULL, view_q(s, 1), view_k(s, 1), view_v(s, 1),
                                    view_out(s, out, 1), lse, NULL),
                 LATTN_OK);
    if (!same_rows(out, w.out + (at + i) * row, row) ||
        !same_rows(lse, w.lse + (at + i) * heads, heads))
      FAIL("row %" PRId64 " of %" PRId64 " has other bits than decode", i, n);
  }
}

/* Whether each head holds its window and slack, as a cache does that never went back: what is saved
   is what is held of these. */
static int holds_slack(const live *c) {
  for (int g = 0; g < setup_bundles(setup_of(c->v)); g++) {
    int64_t keep = keeps_from(c->v, &c->st, g), b = keep ? slot_of(&c->st, keep) : 0;
    for (b /= REF_BLOCK; b * REF_BLOCK < c->st.n_slots; b++)
      if (!c->st.page[g][b] && !in_hole(&c->st, b)) return 0;
  }
  return 1;
}

/* What the twin holds, in a cache with the slack of the configuration, by way of a checkpoint. */
static lattn_cache *twin_fitted(int v, lattn_cache *twin) {
  lattn_pool *pool = (lattn_pool *)(void *)w.twin_arena.data;
  lattn_checkpoint *checkpoint = NULL;
  lattn_cache *fitted = twin;
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    w.twin_setup.heads[g].slack = setup_of(v)->heads[g].slack;
  CHECK_STATUS(lattn_cache_checkpoint(&checkpoint, twin), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&fitted, pool, &w.twin_setup.config), LATTN_OK);
  CHECK_STATUS(lattn_cache_rollback(fitted, checkpoint), LATTN_OK);
  return fitted;
}

/* Whether head g can serve the newest n rows: those behind a mark, whose windows are held. */
static int holds_rows(const live *c, int g, int64_t n) {
  const lattn_head *head = &setup_of(c->v)->heads[g];
  int64_t first = c->st.n_tokens - n;
  if (n == 0 || !setup_streams(head, c->st.mark)) return 1;
  if (head->mark && first < c->st.mark) return 0;
  return held(&c->st, g, first - setup_window(head, c->st.mark) + 1, c->st.n_tokens);
}

/* Newest rows and saved bytes of the cache and of a twin are the same. (A cache with sums is saved
   with all that it holds, whatever its slack; a head that marks choose for, with what it knows of
   queries, which the twin has not met.) */
static void check_twin(const live *c) {
  static file ours, its;
  const setup *s = setup_of(c->v);
  uint32_t ids[8] = {0};
  float out[8 * CACHE_HEADS * CACHE_DIMS], lse[8 * CACHE_HEADS];
  int64_t n = rng_range(&w.rng, 0, c->st.n_tokens < 8 ? c->st.n_tokens : 8), resident = 1;
  lattn_cache *twin = twin_new(c->v, &c->st);
  if (!twin) return;
  ids_newest(&c->st, ids, n);
  tokens_fill(s, ids, 0, n);
  for (int g = 0; g < setup_bundles(s); g++) resident &= holds_rows(c, g, n);
  if (n && resident) {
    CHECK_STATUS(lattn_cache_attend(twin, NULL, view_q(s, n), view_out(s, out, n), lse, NULL),
                 LATTN_OK);
    CHECK_STATUS(
        lattn_cache_attend(c->cache, NULL, view_q(s, n), view_out(s, w.out, n), w.lse, NULL),
        LATTN_OK);
    CHECK(same_rows(out, w.out, n * setup_heads(s) * setup_value_dim(s)));
    CHECK(same_rows(lse, w.lse, n * setup_heads(s)));
  }
  if (c->n_drafts || !holds_slack(c) || setup_sums(s) || setup_choosing(s)) return;
  file_save(&ours, c->cache);
  file_save(&its, twin_fitted(c->v, twin));
  CHECK_I64((int64_t)ours.n, (int64_t)its.n);
  CHECK(ours.n == its.n && !memcmp(ours.bytes, its.bytes, ours.n));
}

/* ---- operations: each does to the model what it does to the cache ---- */

static live *live_at(int i) {
  int at = 0;
  while (!w.caches[at] || i--) at++;
  return w.caches[at];
}

static live *random_live(void) { return live_at((int)rng_below(&w.rng, w.n_caches)); }

/* Mostly few, sometimes pages full. */
static int64_t random_rows(int64_t most) {
  int kind = (int)rng_below(&w.rng, 100);
  int64_t n = kind < 5    ? 0
              : kind < 60 ? 1
              : kind < 80 ? rng_range(&w.rng, 2, 6)
              : kind < 95 ? rng_range(&w.rng, 7, 40)
              : kind < 99 ? rng_range(&w.rng, 41, 150)
                          : rng_range(&w.rng, 100, MAX_ROWS);
  return n < most ? n : most;
}

static uint32_t pending(const live *c) { return c->n_drafts ? REFUSES(LATTN_E_STATE) : 0; }

/* Errors of adding n tokens. */
static uint32_t refuses_tokens(const live *c, int64_t n) {
  return pending(c) | (beyond(c->v, c->st.n_tokens + n) ? REFUSES(LATTN_E_FULL) : 0);
}

static live *live_new(void) {
  live *c = (live *)ref_memory(1, sizeof *c);
  for (int i = 0; i < MAX_CACHES; i++)
    if (!w.caches[i]) {
      w.caches[i] = c;
      c->st.mark = -1;
      w.n_caches++;
      return c;
    }
  return NULL;
}

static void live_free(live *c) {
  for (int i = 0; i < MAX_CACHES; i++)
    if (w.caches[i] == c) w.caches[i] = NULL;
  pages_drop(c->v, &c->st);
  free(c);
  w.n_caches--;
}

static live *op_init(live *c) {
  lattn_cache *cache = NULL;
  int v = (int)rng_below(&w.rng, N_VARIANTS);
  if (w.n_caches == MAX_CACHES) return c;
  probe p = probe_begin(NULL, 0);
  if (!settle(&p, lattn_cache_init(&cache, w.pool, &setup_of(v)->config), 0, TAKES_TABLES))
    return c;
  c = live_new();
  c->cache = cache;
  c->v = v;
  return c;
}

/* Room in the model for n more slots. */
static void make_room(live *c, int64_t n) {
  if (c->st.n_slots + n <= MAX_SLOTS) return;
  CHECK_STATUS(lattn_cache_clear(c->cache), LATTN_OK);
  state_truncate(c->v, &c->st, 0);
  c->st.mark = -1;
  c->n_drafts = 0;
}

static int32_t stop_sometimes(void *user, int64_t done, int64_t total) {
  (void)done, (void)total;
  return rng_chance((test_rng *)user, 30);
}

static live *op_extend(live *c) {
  const setup *s = setup_of(c->v);
  static state before;
  uint32_t ids[MAX_ROWS];
  lattn_exec exec;
  int64_t n = random_rows(MAX_ROWS), done = n;
  make_room(c, n);
  ids_new(ids, n);
  tokens_fill(s, ids, 0, n);
  const lattn_exec *e = random_exec(&exec, w.variants[c->v].scratch);
  int stops = e && rng_chance(&w.rng, 10);
  if (stops) {
    exec.progress = stop_sometimes;
    exec.user = &w.rng;
    exec.tokens_done = &done;
  }
  probe p = probe_begin(c, 2);
  lattn_status got = lattn_cache_extend(c->cache, NULL, view_q(s, n), view_k(s, n), view_v(s, n),
                                        view_out(s, w.out, n), w.lse, e);
  if (got == LATTN_CANCELLED && CHECK(stops && done < n)) got = LATTN_OK;
  int takes = needs_pages(c->v, &c->st, n) ? TAKES_PAGES : TAKES_NOTHING;
  if (!settle(&p, got, refuses_tokens(c, n), takes)) return c;
  state_copy(&before, &c->st);
  state_grow(c->v, &c->st, ids, done, 1);
  check_sampled(c->v, &c->st, 0, done, 3);
  check_decoded(c->v, &before, ids, 0, done, 3);
  return c;
}

static live *op_append(live *c) {
  const setup *s = setup_of(c->v);
  uint32_t ids[MAX_ROWS];
  int64_t n = random_rows(setup_max_append(s));
  if (rng_chance(&w.rng, 15)) n = setup_max_append(s) < 200 ? setup_max_append(s) : 200;
  make_room(c, n);
  ids_new(ids, n);
  tokens_fill(s, ids, 0, n);
  probe p = probe_begin(c, 2);
  lattn_status got = lattn_cache_append(c->cache, view_k(s, n), view_v(s, n), NULL);
  int takes = needs_pages(c->v, &c->st, n) ? TAKES_PAGES : TAKES_NOTHING;
  if (settle(&p, got, refuses_tokens(c, n), takes)) state_grow(c->v, &c->st, ids, n, 0);
  return c;
}

/* Selective values of the rows in the call's arrays: the same with threads, scratch or none; the
   plain rows, where all keys are among the top. */
static void check_top(const live *c, int64_t n) {
  const setup *s = setup_of(c->v);
  static float out[2][20 * CACHE_HEADS * CACHE_DIMS], lse[2][20 * CACHE_HEADS];
  static float dropped[20 * CACHE_HEADS];
  int64_t heads = setup_heads(s), floats = n * heads * setup_value_dim(s);
  lattn_exec exec;
  lattn_call call;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  call.top_values = (int32_t)rng_range(&w.rng, 1, rng_chance(&w.rng, 50) ? 20 : 256);
  call.top_mode = (int32_t)rng_below(&w.rng, s->config.weighting == LATTN_SOFTMAX ? 2 : 1);
  call.dropped = dropped;
  for (int i = 0; i < 2; i++)
    CHECK_STATUS(lattn_cache_attend(c->cache, &call, view_q(s, n), view_out(s, out[i], n), lse[i],
                                    i ? random_exec(&exec, w.variants[c->v].scratch) : NULL),
                 LATTN_OK);
  CHECK(same_rows(out[0], out[1], floats) && same_rows(lse[0], lse[1], n * heads));
  if (call.top_values < c->st.n_tokens) return;
  CHECK(same_rows(out[0], w.out, floats) && same_rows(lse[0], w.lse, n * heads));
  for (int64_t i = 0; i < n * heads; i++) CHECK(dropped[i] == 0);
}

static live *op_attend(live *c) {
  const setup *s = setup_of(c->v);
  uint32_t ids[MAX_ROWS], refusals = 0;
  int64_t n = rng_range(&w.rng, 0, rng_chance(&w.rng, 90) ? 3 : rng_chance(&w.rng, 80) ? 20 : 150);
  lattn_exec exec;
  if (n > c->st.n_tokens) n = c->st.n_tokens;
  ids_newest(&c->st, ids, n);
  tokens_fill(s, ids, 0, n);
  for (int g = 0; g < setup_bundles(s) && n; g++)
    if (!holds_rows(c, g, n)) refusals = REFUSES(LATTN_E_EVICTED);
  probe p = probe_begin(c, 0);
  lattn_status got = lattn_cache_attend(c->cache, NULL, view_q(s, n), view_out(s, w.out, n), w.lse,
                                        random_exec(&exec, w.variants[c->v].scratch));
  if (!settle(&p, got, refusals, TAKES_NOTHING)) return c;
  check_sampled(c->v, &c->st, 0, n, 3);
  if (n && n <= 20 && rng_chance(&w.rng, 15)) check_top(c, n);
  return c;
}

/* Whether each head holds the window of the next token at position n (and, with `newest`, the
   token before it in any case); before a mark, that it holds all. */
static int holds_window(const live *c, const state *st, int64_t n, int newest) {
  for (int g = 0; g < setup_bundles(setup_of(c->v)); g++) {
    const lattn_head *head = &setup_of(c->v)->heads[g];
    int64_t window = setup_window(head, st->mark),
            reach = window - 1 > newest ? window - 1 : newest;
    if (head->mark && n < st->mark) reach = n;
    if (setup_streams(head, st->mark) && !held(st, g, n - reach, n)) return 0;
  }
  return 1;
}

static live *op_truncate(live *c) {
  int64_t n = c->st.n_tokens, to = n - rng_below(&w.rng, rng_chance(&w.rng, 80) ? 8 : 150);
  uint32_t refusals = pending(c);
  if (to < 0 || rng_chance(&w.rng, 2)) to = rng_below(&w.rng, n + 1);
  if (to < n && !holds_window(c, &c->st, to, 1)) refusals |= REFUSES(LATTN_E_EVICTED);
  if (to && to < n && setup_heavy(setup_of(c->v))) refusals |= REFUSES(LATTN_E_EVICTED);
  probe p = probe_begin(c, 2);
  int removes = rng_chance(&w.rng, 20); /* to the end: the same */
  lattn_status got =
      removes ? lattn_cache_remove(c->cache, to, n) : lattn_cache_truncate(c->cache, to);
  if (settle(&p, got, refusals, TAKES_NOTHING)) state_truncate(c->v, &c->st, to);
  return c;
}

static live *op_clear(live *c) {
  w.tallies[w.operation].done += CHECK_STATUS(lattn_cache_clear(c->cache), LATTN_OK);
  state_truncate(c->v, &c->st, 0);
  c->st.mark = -1;
  c->n_drafts = 0;
  return c;
}

static live *op_remove(live *c) {
  static state after;
  int64_t n = c->st.n_tokens;
  uint32_t refusals = pending(c);
  if (n < 2) return c;
  int64_t from = rng_below(&w.rng, n - 1);
  int64_t to = from + rng_below(&w.rng, rng_chance(&w.rng, 70) ? 20 : 300);
  if (to >= n) to = n - 1;
  if (rng_chance(&w.rng, 5)) to = from;
  if (from < to) {
    int64_t first = slot_of(&c->st, from), end = slot_of(&c->st, to - 1) + 1;
    state_copy(&after, &c->st);
    memcpy(after.page, c->st.page, sizeof after.page);
    if (state_hole(&after, first, end) > max_holes(c->v)) refusals |= REFUSES(LATTN_E_FULL);
    after.n_tokens -= to - from;
    for (int g = 0; g < setup_bundles(setup_of(c->v)); g++)
      if (from < setup_of(c->v)->heads[g].sinks) refusals |= REFUSES(LATTN_E_CONFIG);
    if (!holds_window(c, &after, after.n_tokens, 0)) refusals |= REFUSES(LATTN_E_EVICTED);
    if (setup_sums(setup_of(c->v)) || setup_waits(setup_of(c->v)))
      refusals = REFUSES(LATTN_E_CONFIG) | pending(c);
  }
  probe p = probe_begin(c, 2);
  if (!settle(&p, lattn_cache_remove(c->cache, from, to), refusals, TAKES_NOTHING)) return c;
  if (from == to) return c;
  memcpy(c->st.page, after.page, sizeof after.page);
  state_copy(&c->st, &after);
  for (int g = 0; g < setup_bundles(setup_of(c->v)); g++)
    for (int64_t b = 0; b < MAX_BLOCKS; b++)
      if (in_hole(&c->st, b)) page_drop(&c->st.page[g][b]);
  return c;
}

/* Heads that wait for it drop what they have no room for; those that have met one stay. */
static live *op_mark(live *c) {
  lattn_exec exec;
  probe p = probe_begin(c, 2);
  lattn_status got =
      lattn_cache_mark(c->cache, LATTN_PROMPT_END, random_exec(&exec, w.variants[c->v].scratch));
  if (!settle(&p, got, pending(c), TAKES_NOTHING)) return c;
  if (c->st.mark < 0) c->st.mark = c->st.n_tokens;
  state_evict(c->v, &c->st);
  return c;
}

static live *op_fork(live *c) {
  lattn_cache *fork = NULL;
  if (w.n_caches == MAX_CACHES) return c;
  probe p = probe_begin(c, 2);
  if (!settle(&p, lattn_cache_fork(&fork, c->cache), pending(c), TAKES_TABLES)) return c;
  live *f = live_new();
  f->cache = fork;
  f->v = c->v;
  state_share(c->v, &f->st, &c->st);
  return f;
}

static live *op_release(live *c) {
  w.tallies[w.operation].done += CHECK_STATUS(lattn_cache_release(c->cache), LATTN_OK);
  live_free(c);
  return NULL;
}

static live *op_checkpoint(live *c) {
  lattn_checkpoint *checkpoint = NULL;
  int at = 0;
  while (at < MAX_POINTS && w.points[at]) at++;
  if (at == MAX_POINTS) return c;
  probe p = probe_begin(c, 2);
  lattn_status got = lattn_cache_checkpoint(&checkpoint, c->cache);
  if (!settle(&p, got, pending(c), TAKES_TABLES)) return c;
  point *to = (point *)ref_memory(1, sizeof *to);
  to->checkpoint = checkpoint;
  to->v = c->v;
  state_share(c->v, &to->st, &c->st);
  w.points[at] = to;
  w.n_points++;
  return c;
}

/* Rather one that suits configuration v (-1: any). */
static point *random_point(int v) {
  point *found = NULL;
  for (int tries = 0; tries < 4; tries++) {
    int at = 0, i = (int)rng_below(&w.rng, w.n_points);
    while (!w.points[at] || i--) at++;
    found = w.points[at];
    if (v < 0 || same_config(v, found->v)) break;
  }
  return found;
}

static file *random_file(int v) {
  file *f = &w.files[rng_below(&w.rng, MAX_FILES)];
  for (int tries = 0; tries < 4 && !(f->n && same_config(v, f->v)); tries++)
    f = &w.files[rng_below(&w.rng, MAX_FILES)];
  return f;
}

/* A cache with less slack than the checkpoint's need not keep more than its own. */
static void state_narrow(live *c) {
  for (int g = 0; g < setup_bundles(setup_of(c->v)); g++) {
    const lattn_head *head = &setup_of(c->v)->heads[g];
    int64_t keep = keeps_from(c->v, &c->st, g);
    int64_t b = (head->sinks + REF_BLOCK - 1) / REF_BLOCK, first;
    if (keep == 0) continue;
    first = slot_of(&c->st, head_stats(c->cache, g).first_token) / REF_BLOCK;
    if (first > slot_of(&c->st, keep) / REF_BLOCK) continue; /* nothing beyond: all or an error */
    for (; b < first; b++) page_drop(&c->st.page[g][b]);
  }
}

/* Whether configuration v may have to let pages go that another's slack kept: which sums do not
   allow (they would have to take them up). */
static int lets_go(int v, int from) {
  int less = 0;
  for (int g = 0; g < setup_bundles(setup_of(v)); g++)
    less |= setup_of(v)->heads[g].slack < setup_of(from)->heads[g].slack ||
            setup_max_append(setup_of(v)) < setup_max_append(setup_of(from));
  return less && setup_sums(setup_of(v));
}

static live *op_rollback(live *c) {
  if (!w.n_points) return c;
  const point *from = random_point(c->v);
  uint32_t refusals = pending(c);
  if (!same_config(c->v, from->v)) refusals |= REFUSES(LATTN_E_CONFIG);
  else if (beyond(c->v, from->st.n_tokens) || from->st.n_holes > max_holes(c->v))
    refusals |= REFUSES(LATTN_E_FULL);
  probe p = probe_begin(c, 2);
  lattn_status got = lattn_cache_rollback(c->cache, from->checkpoint);
  if (got == LATTN_E_FULL && lets_go(c->v, from->v)) refusals |= REFUSES(LATTN_E_FULL);
  if (!settle(&p, got, refusals, TAKES_NOTHING)) return c;
  pages_drop(c->v, &c->st);
  state_share(c->v, &c->st, &from->st);
  if (c->v != from->v) state_narrow(c);
  if (rng_chance(&w.rng, 4)) check_twin(c);
  return c;
}

static void check_point(const point *at) {
  lattn_checkpoint_stats stats;
  int64_t pages = 0, own = 0, page_bytes = w.variants[at->v].page_bytes;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_checkpoint_stats_get(at->checkpoint, &stats), LATTN_OK);
  for (int g = 0; g < setup_bundles(setup_of(at->v)); g++)
    for (int b = 0; b < MAX_BLOCKS; b++) {
      pages += at->st.page[g][b] != 0;
      own += w.holders[at->st.page[g][b]] == 1;
    }
  CHECK_I64(stats.n_tokens, at->st.n_tokens);
  CHECK_I64(stats.page_bytes, pages * page_bytes);
  CHECK_I64(stats.own_bytes, own * page_bytes);
}

static live *op_forget(live *c) {
  if (!w.n_points) return c;
  point *at = random_point(-1);
  check_point(at);
  w.tallies[w.operation].done += CHECK_STATUS(lattn_checkpoint_release(at->checkpoint), LATTN_OK);
  for (int i = 0; i < MAX_POINTS; i++)
    if (w.points[i] == at) w.points[i] = NULL;
  w.n_points--;
  pages_drop(at->v, &at->st);
  free(at);
  return c;
}

/* The tokens of the drafts from the root to draft i; returns its depth + 1. */
static int32_t draft_path(const live *c, int32_t i, int32_t *numbers, uint32_t *ids) {
  int32_t n = 0, at = n;
  for (int32_t d = i; d >= 0; d = c->parents[d]) n++;
  for (at = n; i >= 0; i = c->parents[i]) {
    numbers[--at] = i;
    ids[at] = c->drafts[i];
  }
  return n;
}

/* Errors of drafts first ... end - 1: a path may not be longer than the cache has room. */
static uint32_t refuses_drafts(const live *c, int32_t first, int32_t end) {
  int32_t numbers[MAX_DRAFTS], longest = 0;
  uint32_t path[MAX_DRAFTS];
  if (end > setup_of(c->v)->config.max_drafts) return REFUSES(LATTN_E_SHAPE);
  for (int32_t i = first; i < end; i++) {
    int32_t length = draft_path(c, i, numbers, path);
    longest = length > longest ? length : longest;
  }
  return beyond(c->v, c->st.n_tokens + longest) ? REFUSES(LATTN_E_FULL) : 0;
}

/* Numbers n new drafts of the model and gives them parents; returns what the call takes. */
static const int32_t *drafts_add(live *c, int32_t n) {
  int32_t first = c->n_drafts;
  int chain = rng_chance(&w.rng, 30);
  for (int32_t i = first; i < first + n; i++) {
    c->drafts[i] = ++w.last_id;
    c->parents[i] = chain ? i - 1 : (int32_t)rng_range(&w.rng, i > 4 ? i - 4 : -1, i - 1);
  }
  c->n_drafts += n;
  return chain ? NULL : c->parents + first;
}

/* Rows at ... of a call are the newest n drafts: each is the last row of its path. */
static void check_drafts(const live *c, int64_t at, int32_t n) {
  const setup *s = setup_of(c->v);
  int64_t heads = setup_heads(s), row = heads * setup_value_dim(s);
  int32_t numbers[MAX_DRAFTS], i = (int32_t)rng_below(&w.rng, n);
  uint32_t path[MAX_DRAFTS];
  float out[CACHE_HEADS * CACHE_DIMS], lse[CACHE_HEADS];
  int32_t length = draft_path(c, c->n_drafts - n + i, numbers, path);
  const float *o = w.out + (at + i) * row, *l = w.lse + (at + i) * heads;
  if (rng_chance(&w.rng, 3)) {
    int64_t head = rng_below(&w.rng, heads);
    token_list t = tokens_listed(s, &c->st, c->st.n_tokens, path, length);
    check_row(s, &t, c->st.mark, head, o + head * setup_value_dim(s), l[head]);
    tokens_free(&t);
  }
  if (!rng_chance(&w.rng, 5)) return;
  lattn_cache *twin = twin_new(c->v, &c->st);
  for (int32_t d = 0; d < length && twin; d++) {
    tokens_fill(s, path + d, 0, 1);
    CHECK_STATUS(lattn_cache_extend(twin, NULL, view_q(s, 1), view_k(s, 1), view_v(s, 1),
                                    view_out(s, out, 1), lse, NULL),
                 LATTN_OK);
  }
  if (!same_rows(out, o, row) || !same_rows(lse, l, heads))
    FAIL("draft %d has other bits than decode of its path", (int)(c->n_drafts - n + i));
}

static live *op_draft(live *c) {
  const setup *s = setup_of(c->v);
  lattn_exec exec;
  int32_t had = c->n_drafts, room = s->config.max_drafts - had;
  int32_t n = (int32_t)rng_range(&w.rng, 0, rng_chance(&w.rng, 70) ? 3 : 8);
  if (n > room && rng_chance(&w.rng, 80)) n = room;
  if (n > MAX_DRAFTS - had) n = MAX_DRAFTS - had;
  const int32_t *parents = drafts_add(c, n);
  tokens_fill(s, c->drafts + had, 0, n);
  c->n_drafts = had;
  probe p = probe_begin(c, 0);
  lattn_status got =
      lattn_cache_draft(c->cache, NULL, parents, view_q(s, n), view_k(s, n), view_v(s, n),
                        view_out(s, w.out, n), w.lse, random_exec(&exec, w.variants[c->v].scratch));
  if (!settle(&p, got, refuses_drafts(c, had, had + n), TAKES_NOTHING)) return c;
  c->n_drafts = had + n;
  if (n) check_drafts(c, 0, n);
  return c;
}

static live *op_accept(live *c) {
  int32_t path[MAX_DRAFTS + 1] = {0}, n = 0;
  uint32_t ids[MAX_DRAFTS], refusals = 0;
  if (!c->n_drafts && rng_chance(&w.rng, 50)) return c;
  if (c->n_drafts) n = draft_path(c, (int32_t)rng_below(&w.rng, c->n_drafts), path, ids);
  if (rng_chance(&w.rng, 10) || c->st.n_slots + n > MAX_SLOTS) n = 0;
  if (n && rng_chance(&w.rng, 5)) { /* any number alone: a path only if it is a root's */
    path[0] = (int32_t)rng_range(&w.rng, -1, c->n_drafts);
    int is_root = path[0] >= 0 && path[0] < c->n_drafts && c->parents[path[0]] < 0;
    if (!is_root) refusals |= REFUSES(LATTN_E_VALUE);
    else ids[0] = c->drafts[path[0]];
    n = 1;
  }
  if (beyond(c->v, c->st.n_tokens + n)) refusals |= REFUSES(LATTN_E_FULL);
  probe p = probe_begin(c, 0);
  int takes = needs_pages(c->v, &c->st, n) ? TAKES_PAGES : TAKES_NOTHING;
  if (!settle(&p, lattn_cache_accept(c->cache, n, path), refusals, takes)) return c;
  c->n_drafts = 0;
  state_grow(c->v, &c->st, ids, n, 1);
  return c;
}

static live *op_save(live *c) {
  file *f = &w.files[rng_below(&w.rng, MAX_FILES)];
  probe p = probe_begin(c, 0);
  if (c->n_drafts) {
    settle(&p, lattn_cache_save(c->cache, file_write, f, NULL), pending(c), TAKES_NOTHING);
    f->n = 0;
    return c;
  }
  file_save(f, c->cache);
  w.tallies[w.operation].done++;
  f->v = c->v;
  state_copy(&f->st, &c->st);
  return c;
}

/* Pages of a cache that was loaded: it holds at least the next token's window. */
static void state_loaded(live *c, const state *from) {
  pages_drop(c->v, &c->st);
  state_copy(&c->st, from);
  for (int g = 0; g < setup_bundles(setup_of(c->v)); g++) {
    lattn_cache_head_stats head = head_stats(c->cache, g);
    int64_t first = slot_of(&c->st, head.first_token) / REF_BLOCK;
    int64_t sinks = head.n_sink_tokens ? slot_of(&c->st, head.n_sink_tokens - 1) / REF_BLOCK : -1;
    for (int64_t b = 0; b * REF_BLOCK < c->st.n_slots; b++)
      if ((b <= sinks || b >= first) && !in_hole(&c->st, b)) c->st.page[g][b] = page_new();
  }
  CHECK(holds_window(c, &c->st, c->st.n_tokens, 0));
}

static live *op_load(live *c) {
  const file *f = random_file(c->v);
  reading r = {f->bytes, 0, f->n};
  uint32_t refusals = pending(c);
  int spoilt = rng_chance(&w.rng, 20), bit = (int)rng_below(&w.rng, 8);
  size_t at = 0;
  if (!f->n) return c;
  at = (size_t)rng_below(&w.rng, (int64_t)f->n);
  if (!same_config(c->v, f->v)) refusals |= REFUSES(LATTN_E_CONFIG);
  else if (beyond(c->v, f->st.n_tokens) || f->st.n_holes > max_holes(c->v))
    refusals |= REFUSES(LATTN_E_FULL);
  if (spoilt && bit < 4) { /* too short */
    r.end = at;
    refusals |= REFUSES(LATTN_E_IO);
  } else if (spoilt) { /* damaged: any number in it may be another */
    f->bytes[at] ^= (unsigned char)(1 << bit);
    refusals |= REFUSES(LATTN_E_IO) | REFUSES(LATTN_E_FORMAT) | REFUSES(LATTN_E_CONFIG);
  }
  probe p = probe_begin(c, 5);
  lattn_status got = lattn_cache_load(c->cache, file_read, &r);
  if (spoilt && bit >= 4) f->bytes[at] ^= (unsigned char)(1 << bit);
  if (got == LATTN_E_FULL && lets_go(c->v, f->v)) refusals |= REFUSES(LATTN_E_FULL);
  if (refusals) refusals |= REFUSES(LATTN_E_FULL); /* whatever is seen first */
  if (!settle(&p, got, refusals, TAKES_BOTH)) return c;
  CHECK_I64((int64_t)r.at, (int64_t)f->n);
  state_loaded(c, &f->st);
  if (rng_chance(&w.rng, 10)) check_twin(c);
  return c;
}

/* Reads a run of tokens of a head: values are rounded, keys turned in float32 by their slots and
   rounded, to the bit. */
static live *op_read(live *c) {
  const setup *s = setup_of(c->v);
  int64_t dk = s->config.key_dim, dv = setup_value_dim(s), n = c->st.n_tokens;
  int64_t first = rng_below(&w.rng, n + 1), g = rng_below(&w.rng, setup_bundles(s));
  int64_t keys = s->config.n_kv_heads / setup_bundles(s);
  int64_t values = setup_value_heads(s) / setup_bundles(s);
  static float k[30 * CACHE_HEADS * CACHE_DIMS], v[30 * CACHE_HEADS * CACHE_DIMS];
  int wrong = 0;
  n = n - first < 30 ? n - first : 30;
  lattn_tensor kt = tensor_of(k, LATTN_F32, n, keys, dk);
  lattn_tensor vt = tensor_of(v, LATTN_F32, n, values, dv);
  uint32_t refusals = held(&c->st, g, first, first + n) ? 0 : REFUSES(LATTN_E_EVICTED);
  probe p = probe_begin(c, 0);
  lattn_status got = lattn_cache_read(c->cache, (int32_t)g, first, kt, vt, 0);
  if (!settle(&p, got, refusals, TAKES_NOTHING)) return c;
  for (int64_t i = 0; i < n; i++) {
    int64_t slot = slot_of(&c->st, first + i);
    tokens_fill(s, &c->st.ids[slot], 0, 1);
    const float *its = w.v + g * values * dv;
    lattn_tensor turned = tensor_of(w.k + g * keys * dk, LATTN_F32, 1, keys, dk);
    if (s->config.rotary)
      CHECK_STATUS(lattn_rotate(s->config.rotary, turned, slot, NULL), LATTN_OK);
    for (int64_t d = 0; d < keys * dk; d++)
      wrong +=
          !same_f32(k[i * keys * dk + d], ref_rounded(s->config.key_type, w.k[g * keys * dk + d]));
    for (int64_t d = 0; d < values * dv; d++)
      wrong += !same_f32(v[i * values * dv + d], ref_rounded(s->config.value_type, its[d]));
  }
  CHECK_I64(wrong, 0);
  return c;
}

/* ---- batches ---- */

/* Some caches of c's base, c among them. */
static int random_members(live *c, live **members, int most) {
  int n = 0;
  for (int i = 0; i < MAX_CACHES; i++) {
    live *m = w.caches[i];
    if (!m || w.variants[m->v].base != w.variants[c->v].base || n == most) continue;
    if (m == c || rng_chance(&w.rng, 60)) members[n++] = m;
  }
  return n;
}

typedef struct batch {
  live *members[MAX_CACHES];
  lattn_sequence sequences[MAX_CACHES];
  probe probes[MAX_CACHES];
  int64_t at[MAX_CACHES]; /* first row */
  uint32_t ids[MAX_ROWS];
  int n;
  int64_t rows;
  uint32_t refusals;
  int takes;
} batch;

/* Rows of sequence i: tokens or drafts; whatever the call must refuse is noted. */
static void batch_add(batch *b, int i) {
  live *c = b->members[i];
  int32_t room = setup_of(c->v)->config.max_drafts - c->n_drafts;
  int drafts = c->n_drafts ? !rng_chance(&w.rng, 5) : room > 0 && rng_chance(&w.rng, 20);
  int64_t n = rng_range(&w.rng, 0, rng_chance(&w.rng, 95) ? 3 : 24);
  if (rng_chance(&w.rng, w.is_long ? 10 : 2)) n = rng_range(&w.rng, 0, (MAX_ROWS - b->rows) / 2);
  if (drafts && n > room) n = room;
  make_room(c, n);
  b->at[i] = b->rows;
  b->sequences[i].cache = c->cache;
  b->sequences[i].n_tokens = n;
  b->sequences[i].parents = NULL;
  b->probes[i] = probe_begin(c, 1);
  if (drafts) {
    int32_t had = c->n_drafts;
    drafts_add(c, (int32_t)n);
    c->n_drafts = had;
    b->refusals |= refuses_drafts(c, had, had + (int32_t)n);
    b->sequences[i].parents = c->parents + had;
    memcpy(b->ids + b->rows, c->drafts + had, (size_t)n * sizeof *b->ids);
  } else {
    ids_new(b->ids + b->rows, n);
    b->refusals |= refuses_tokens(c, n);
    if (needs_pages(c->v, &c->st, n)) b->takes = TAKES_PAGES;
  }
  tokens_fill(setup_of(c->v), b->ids + b->rows, b->rows, n);
  b->rows += n;
}

static void batch_done(const batch *b, int i) {
  static state before;
  live *c = b->members[i];
  int64_t n = b->sequences[i].n_tokens;
  if (b->sequences[i].parents) {
    c->n_drafts += (int32_t)n;
    return;
  }
  state_copy(&before, &c->st);
  state_grow(c->v, &c->st, b->ids + b->at[i], n, 1);
}

/* Checks use the call's arrays of inputs: after all else. */
static void batch_check(const batch *b) {
  static state before;
  int i = (int)rng_below(&w.rng, b->n);
  const live *c = b->members[i];
  int64_t n = b->sequences[i].n_tokens;
  if (b->sequences[i].parents) {
    if (n) check_drafts(c, b->at[i], (int32_t)n);
    return;
  }
  check_sampled(c->v, &c->st, b->at[i], n, 3);
  state_copy(&before, &c->st);
  before.n_slots -= n; /* new tokens are adjacent: no hole among them */
  before.n_tokens -= n;
  check_decoded(c->v, &before, b->ids + b->at[i], b->at[i], n, 5);
}

static live *op_batch_extend(live *c) {
  static batch b;
  lattn_exec exec;
  const setup *s = setup_of(c->v);
  memset(&b, 0, sizeof b);
  b.n = random_members(c, b.members, 6);
  for (int i = 0; i < b.n; i++) batch_add(&b, i);
  w.source.denied = 0;
  const lattn_exec *e = random_exec(&exec, w.batch_scratch[w.variants[c->v].base]);
  lattn_status got =
      lattn_batch_extend(b.n, b.sequences, NULL, view_q(s, b.rows), view_k(s, b.rows),
                         view_v(s, b.rows), view_out(s, w.out, b.rows), w.lse, e);
  for (int i = 0; i < b.n && got < 0; i++) check_unchanged(&b.probes[i]);
  if (!settle(&b.probes[0], got, b.refusals, b.takes)) return c;
  for (int i = 0; i < b.n; i++) batch_done(&b, i);
  batch_check(&b);
  for (int i = 0; i < b.n; i++) check_cache(b.members[i]);
  return c;
}

/* The same bits as one call a sequence; a cache may come twice. */
static live *op_batch_attend(live *c) {
  static batch b;
  static float out[24 * CACHE_HEADS * CACHE_DIMS], lse[24 * CACHE_HEADS];
  lattn_exec exec;
  const setup *s = setup_of(c->v);
  int64_t heads = setup_heads(s), row = heads * setup_value_dim(s);
  lattn_status status, wanted = LATTN_OK;
  memset(&b, 0, sizeof b);
  b.n = random_members(c, b.members, 5);
  if (rng_chance(&w.rng, 10)) b.members[b.n++] = c;
  for (int i = 0; i < b.n; i++) {
    const live *m = b.members[i];
    int64_t n = rng_range(&w.rng, 0, m->st.n_tokens < 4 ? m->st.n_tokens : 4);
    b.sequences[i].cache = m->cache;
    b.sequences[i].n_tokens = n;
    ids_newest(&m->st, b.ids, n);
    tokens_fill(s, b.ids, 0, n);
    status = lattn_cache_attend(m->cache, NULL, view_q(s, n), view_out(s, out + b.rows * row, n),
                                lse + b.rows * heads, NULL);
    if (status) wanted = status;
    b.rows += n;
  }
  for (int i = 0, at = 0; i < b.n; at += (int)b.sequences[i++].n_tokens) {
    ids_newest(&b.members[i]->st, b.ids, b.sequences[i].n_tokens);
    tokens_fill(s, b.ids, at, b.sequences[i].n_tokens);
  }
  const lattn_exec *e = random_exec(&exec, w.batch_scratch[w.variants[c->v].base]);
  status = lattn_batch_attend(b.n, b.sequences, NULL, view_q(s, b.rows), view_out(s, w.out, b.rows),
                              w.lse, e);
  if (!CHECK_STATUS(status, wanted) || status) return c;
  CHECK(same_rows(out, w.out, b.rows * row));
  CHECK(same_rows(lse, w.lse, b.rows * heads));
  w.tallies[w.operation].done++;
  return c;
}

/* ---- moving the arena ---- */

static void *moved(void *object, const test_guard *to) {
  return to->data + ((char *)object - w.arena.data);
}

/* Copies the arena elsewhere, destroys the old one, and goes on with the new one. */
static live *op_move(live *c) {
  if (w.allocates) return c;
  test_guard to = guard_alloc(w.arena.bytes, 1); /* ends at a page too: the same alignment */
  memcpy(to.data, w.arena.data, to.bytes);
  memset(w.arena.data, 0xff, to.bytes);
  w.pool = (lattn_pool *)moved(w.pool, &to);
  for (int i = 0; i < MAX_CACHES; i++)
    if (w.caches[i]) w.caches[i]->cache = (lattn_cache *)moved(w.caches[i]->cache, &to);
  for (int i = 0; i < MAX_POINTS; i++)
    if (w.points[i])
      w.points[i]->checkpoint = (lattn_checkpoint *)moved(w.points[i]->checkpoint, &to);
  CHECK(guard_free(&w.arena));
  w.arena = to;
  w.tallies[w.operation].done++;
  return c;
}

static live *op_twin(live *c) {
  check_twin(c);
  w.tallies[w.operation].done++;
  return c;
}

/* ---- rounds ---- */

/* Chances in 1000. */
typedef struct operation {
  const char *name;
  live *(*run)(live *c);
  int chance, takes; /* pages */
} operation;

static const operation operations[] = {
    {"init", op_init, 0, 0},
    {"extend", op_extend, 200, 1},
    {"append", op_append, 122, 1},
    {"attend", op_attend, 110, 0},
    {"truncate", op_truncate, 70, 0},
    {"checkpoint", op_checkpoint, 45, 0},
    {"rollback", op_rollback, 40, 0},
    {"forget", op_forget, 40, 0},
    {"fork", op_fork, 25, 0},
    {"release", op_release, 22, 0},
    {"draft", op_draft, 70, 0},
    {"accept", op_accept, 30, 1},
    {"remove", op_remove, 40, 0},
    {"save", op_save, 8, 0},
    {"load", op_load, 10, 1},
    {"clear", op_clear, 6, 0},
    {"mark", op_mark, 12, 0},
    {"batch extend", op_batch_extend, 60, 1},
    {"batch attend", op_batch_attend, 20, 0},
    {"read", op_read, 56, 0},
    {"twin", op_twin, 12, 0},
    {"move", op_move, 2, 0},
};
enum {
  INIT = 0,
  ACCEPT = 11,
  BATCH_ATTEND = 18,
  N_OPERATIONS = (int)(sizeof operations / sizeof *operations)
};

static void run_operation(void) {
  int64_t ticket = rng_below(&w.rng, 1000);
  int i = INIT;
  live *c = NULL;
  while (ticket >= operations[i].chance) ticket -= operations[i++].chance;
  if (w.is_long && rng_chance(&w.rng, 20)) i = BATCH_ATTEND; /* what long rounds are for */
  w.operation = INIT;
  if (w.n_caches == 0 || rng_chance(&w.rng, w.n_caches < 4 ? 4 : 1)) c = op_init(NULL);
  if (!c && w.n_caches) c = random_live();
  if (!c) return;
  w.operation = ACCEPT; /* drafts do not stay pending for long */
  if (c->n_drafts && rng_chance(&w.rng, 30)) c = op_accept(c);
  w.operation = i;
  c = operations[i].run(c);
  if (c) check_cache(c);
  check_pool();
}

/* ---- configurations ---- */

static void random_base(setup *s, int base, int is_long) {
  static const int32_t key_dims[N_BASES][3] = {{4, 5, 8}, {6, 9, 16}, {7, 20, 24}};
  static const int32_t value_dims[] = {0, 4, 5, 8, 11, 16, 19};
  int32_t kv_heads = (int32_t)rng_range(&w.rng, 1, is_long ? 2 : 3),
          group = (int32_t)rng_range(&w.rng, 1, 2);
  int32_t dk = PICK(&w.rng, key_dims[base]), pairs = (int32_t)rng_range(&w.rng, 1, dk / 2);
  setup_init(s, kv_heads * group, kv_heads, dk, PICK(&w.rng, value_dims), 0);
  if (rng_chance(&w.rng, 25)) /* bundles */
    s->config.n_value_heads = kv_heads > 1 && rng_chance(&w.rng, 50) ? 1 : kv_heads * group;
  s->config.key_type = (int32_t)rng_below(&w.rng, 4); /* 0 and 1 are both float32 */
  s->config.value_type = (int32_t)rng_below(&w.rng, 4);
  int32_t layout = (int32_t)rng_below(&w.rng, 2),
          first = (int32_t)rng_range(&w.rng, 0, dk - 2 * pairs);
  if (rng_chance(&w.rng, 55)) setup_rotate(s, layout, first, 2 * pairs);
  if (s->config.rotary && rng_chance(&w.rng, 20)) s->rotary.magnitude = 1.25f;
  if (rng_chance(&w.rng, 25)) setup_alibi(s);
  if (rng_chance(&w.rng, 25)) setup_sinks(s);
  if (rng_chance(&w.rng, 15)) s->config.softcap = 3;
  if (rng_chance(&w.rng, 10)) s->config.scale = -0.5f;
  if (rng_chance(&w.rng, 15)) setup_sigmoid(s, -1.5f);
}

/* Chosen at marks, with a budget for all that is ever held: what it answers is a full head's. What
   budgets that drop leave is in marks.c. */
static void random_chosen(lattn_head *head) {
  head->policy = rng_chance(&w.rng, 60) ? LATTN_HEAD_SNAP : LATTN_HEAD_HEAVY;
  head->window = rng_range(&w.rng, 1, 40);
  head->budget = 100000;
  if (head->policy == LATTN_HEAD_SNAP && rng_chance(&w.rng, 50)) head->flags = LATTN_SNAP_SHARED;
}

static void random_heads(setup *s) {
  static const int64_t sinks[] = {0, 0, 1, 4, 4, 16, 130};
  static const int64_t windows[] = {1, 2, 8, 17, 40, 100, 129, 150};
  int has_positions = s->config.rotary || s->config.alibi_slopes;
  int percent = rng_chance(&w.rng, 30) ? 100 : 50;
  memset(s->heads, 0, sizeof s->heads);
  for (int g = 0; g < setup_bundles(s); g++) {
    int64_t n_sinks = PICK(&w.rng, sinks), window = PICK(&w.rng, windows);
    int32_t positions = (int32_t)rng_below(&w.rng, has_positions ? 3 : 2);
    if (rng_chance(&w.rng, percent)) setup_stream(s, g, n_sinks, window, 0, positions);
  }
  if (rng_chance(&w.rng, 60)) return;
  for (int g = 0; g < setup_bundles(s); g++) { /* nothing can be removed of such caches */
    lattn_head *head = &s->heads[g];
    int soft = s->config.weighting == LATTN_SOFTMAX, kind = (int)rng_below(&w.rng, 4);
    int bundled =
        setup_bundles(s) < s->config.n_kv_heads || setup_bundles(s) < setup_value_heads(s);
    if (!head->policy && !bundled && rng_chance(&w.rng, 60)) random_chosen(head);
    if (!head->policy || setup_chosen(head)) continue;
    if (bundled) soft = 0;
    if (soft && kind < 3) setup_compensate(s, g, kind == 1 ? LATTN_HEAD_VARIANCE : 0);
    if (soft && rng_chance(&w.rng, 30)) head->flags |= LATTN_HEAD_LOST;
    if (rng_chance(&w.rng, 50)) head->mark = LATTN_PROMPT_END;
    if (head->mark && rng_chance(&w.rng, 50)) head->window_divisor = rng_range(&w.rng, 1, 5);
  }
}

/* What may differ between caches that roll back to each other's checkpoints. */
static void random_sizes(setup *s) {
  static const int64_t slacks[] = {0, 0, 1, 8, 40, 130, 500};
  static const int64_t appends[] = {1, 3, 16, 60, 200, 650};
  static const int32_t drafts[] = {0, 3, 8, MAX_DRAFTS}, holes[] = {1, 2, 5, 0};
  int full = 0;
  for (int g = 0; g < setup_bundles(s); g++) {
    if (s->heads[g].policy != LATTN_HEAD_FULL && s->heads[g].policy != LATTN_HEAD_HEAVY)
      s->heads[g].slack = PICK(&w.rng, slacks);
    full |= !setup_streams(&s->heads[g], -1);
  }
  s->config.capacity = full || rng_chance(&w.rng, 30) ? rng_range(&w.rng, 20, 500) : 0;
  s->config.max_append = PICK(&w.rng, appends);
  s->config.max_drafts = PICK(&w.rng, drafts);
  for (int g = 0; g < setup_bundles(s); g++) /* drafts are in no sum */
    if ((s->heads[g].policy == LATTN_HEAD_COMPENSATED || s->heads[g].flags) &&
        s->config.max_drafts >= s->heads[g].window)
      s->config.max_drafts = (int32_t)s->heads[g].window - 1;
  if (setup_heavy(s)) s->config.max_drafts = 0;
  s->config.max_holes = PICK(&w.rng, holes);
}

/* Four of each base: two mixes of heads, two sizes each. */
static void random_variants(int is_long) {
  memset(w.variants, 0, sizeof w.variants);
  for (int i = 0; i < N_VARIANTS; i++) {
    variant *v = &w.variants[i];
    v->base = i / 4;
    if (i % 4 == 0) random_base(&v->s, v->base, is_long);
    else setup_copy(&v->s, &w.variants[i - 1].s);
    if (i % 2 == 0) random_heads(&v->s);
    if (is_long && v->base == 0) { /* the first is full, and no other for long */
      memset(v->s.heads, 0, sizeof *v->s.heads);
      for (int g = 1; g < setup_bundles(&v->s); g++)
        v->s.heads[g].mark = 0, v->s.heads[g].window_divisor = 0;
    }
    random_sizes(&v->s);
    if (is_long && v->base == 0) v->s.config.capacity = rng_range(&w.rng, 4300, 4600);
    for (int t = 0; t < 2; t++) {
      size_t one = lattn_cache_scratch(&v->s.config, MAX_ROWS, t ? 3 : 1);
      size_t all = lattn_batch_scratch(&v->s.config, MAX_CACHES, MAX_ROWS, t ? 3 : 1);
      size_t *most = &w.batch_scratch[v->base][t];
      CHECK(one > 0 && all > 0);
      v->scratch[t] = one;
      if (i % 4 == 0 || *most < all) *most = all;
      if (w.scratch_bytes < one) w.scratch_bytes = one;
      if (w.scratch_bytes < all) w.scratch_bytes = all;
    }
  }
}

/* An arena with room for some caches and checkpoints and for few pages; or an allocator that has
   few, and refuses now and then. */
static void pool_open(uint64_t seed, int is_long) {
  lattn_pool_config config;
  size_t tables = 0, page = 0;
  memset(&config, 0, sizeof config);
  memset(&w.source, 0, sizeof w.source);
  config.size = sizeof config;
  config.alloc = source_alloc;
  config.free = source_free;
  config.user = &w.source;
  w.allocates = rng_chance(&w.rng, 35);
  w.ample = w.allocates && rng_chance(&w.rng, 60);
  for (int i = 0; i < N_VARIANTS; i++) {
    const setup *s = setup_of(i);
    size_t table = lattn_pool_bytes(&config, &s->config, w.ample ? 40 : 7);
    int64_t row = s->config.n_kv_heads * s->config.key_dim;
    row = (row + setup_value_heads(s) * setup_value_dim(s)) / setup_bundles(s);
    size_t bytes = (size_t)(REF_BLOCK * row * 4 + 128);
    tables = table > tables ? table : tables;
    page = bytes > page ? bytes : page;
  }
  int64_t pages = is_long ? rng_range(&w.rng, 104, 140) : rng_range(&w.rng, 10, 40);
  w.source.rng = rng_seed(seed + 77);
  w.source.percent = (int)rng_range(&w.rng, 0, 8);
  w.source.most_out = pages;
  size_t bytes = (tables + (w.allocates ? 0 : (size_t)pages * page)) / 64 * 64;
  w.arena = guard_alloc(bytes, 1);
  memset(w.arena.data, 0xff, bytes);
  CHECK_STATUS(lattn_pool_init(&w.pool, w.arena.data, bytes, w.allocates ? &config : NULL),
               LATTN_OK);
}

static void model_reset(void) {
  w.n_free = w.n_caches = w.n_points = 0;
  w.n_pages = w.n_shared = 0;
  w.last_id = 0;
  memset(w.holders, 0, sizeof w.holders);
  for (int32_t i = MAX_PAGES - 1; i > 0; i--) w.free_pages[w.n_free++] = i;
  for (int i = 0; i < MAX_FILES; i++) w.files[i].n = 0;
}

/* Everything is released, in any order; nothing may be left. */
static void pool_close(void) {
  while (w.n_caches || w.n_points) {
    if (w.n_caches && rng_chance(&w.rng, 50)) op_release(random_live());
    op_forget(NULL);
    check_pool();
  }
  CHECK_I64(w.n_pages, 0);
  lattn_pool_stats stats = pool_stats(w.pool);
  CHECK_I64(stats.page_bytes, 0);
  CHECK(guard_free(&w.arena));
}

/* After a failure the model and the cache may differ: nothing more can be learned of the round. */
static void round_drop(void) {
  for (int i = 0; i < MAX_CACHES; i++) free(w.caches[i]);
  for (int i = 0; i < MAX_POINTS; i++) free(w.points[i]);
  memset(w.caches, 0, sizeof w.caches);
  memset(w.points, 0, sizeof w.points);
  guard_free(&w.arena);
}

/* Appends n tokens. */
static void grow_by(live *c, int64_t n) {
  const setup *s = setup_of(c->v);
  uint32_t ids[MAX_ROWS];
  for (int64_t step; n > 0; n -= step) {
    step = n < setup_max_append(s) ? n : setup_max_append(s);
    ids_new(ids, step);
    tokens_fill(s, ids, 0, step);
    CHECK_STATUS(lattn_cache_append(c->cache, view_k(s, step), view_v(s, step), NULL), LATTN_OK);
    state_grow(c->v, &c->st, ids, step, 0);
  }
}

/* Caches for the batches: some share one segment or two, one shares a block less, or a segment
   less, and then goes its own way. */
static void share_prefix(void) {
  live *c = live_new();
  int64_t n = REF_SEGMENT * rng_range(&w.rng, 1, 2);
  int64_t less = rng_chance(&w.rng, 50) ? REF_BLOCK : n - REF_SEGMENT + 1;
  w.source.percent = 0;
  CHECK_STATUS(lattn_cache_init(&c->cache, w.pool, &setup_of(0)->config), LATTN_OK);
  if (!c->cache) exit(test_summary());
  grow_by(c, n - rng_range(&w.rng, 1, less > 1 ? less - 1 : REF_BLOCK));
  live *other = op_fork(c);
  grow_by(c, n + rng_range(&w.rng, 0, 60) - c->st.n_tokens);
  grow_by(other, n + rng_range(&w.rng, 0, 60) - other->st.n_tokens);
  check_cache(c);
  for (int i = 0; i < 3; i++) op_fork(c);
  op_checkpoint(c);
}

/* One in ten is long: fewer operations, on more tokens. */
static int64_t random_round(uint64_t seed) {
  int is_long = w.is_long = seed % 10 == 5;
  int64_t done = 0, n = is_long ? ROUND_OPS / 7 : ROUND_OPS;
  check_case("random operations: SEED=%" PRIu64, seed);
  w.rng = rng_seed(seed);
  model_reset();
  random_variants(is_long);
  pool_open(seed, is_long);
  w.scratch = (char *)realloc(w.scratch, w.scratch_bytes);
  if (is_long) share_prefix();
  while (done < n && !test_global.case_failed) {
    run_operation();
    done++;
  }
  if (test_global.case_failed)
    printf("    after %" PRId64 " operations, the last: %s\n", done, operations[w.operation].name);
  if (test_global.case_failed) round_drop();
  else pool_close();
  return done;
}

static void arrays_open(void) {
  size_t floats = (size_t)MAX_ROWS * CACHE_HEADS * CACHE_DIMS * sizeof(float);
  w.q = (float *)ref_memory(1, floats);
  w.k = (float *)ref_memory(1, floats);
  w.v = (float *)ref_memory(1, floats);
  w.out = (float *)ref_memory(1, floats);
  w.lse = (float *)ref_memory(1, floats);
  w.twin_arena = guard_alloc((size_t)32 << 20, 1);
}

static void test_random(void) {
  const char *seed = getenv("SEED");
  int64_t rounds = test_count(90), done = 0;
  if (seed) done = random_round(strtoull(seed, NULL, 10));
  for (int64_t i = 0; i < rounds && !seed; i++)
    done += random_round(test_first_seed() + (uint64_t)i);
  printf("%" PRId64 " random operations (done + no room + refused otherwise):", done);
  for (int i = 0; i < N_OPERATIONS; i++) {
    const tally *t = &w.tallies[i];
    printf("%s %s %" PRId64 "+%" PRId64 "+%" PRId64, i % 5 ? "," : "\n   ", operations[i].name,
           t->done, t->full, t->refused);
  }
  printf("\n");
  check_case("each operation was done often, and those that take pages met a full pool often");
  for (int i = 0; i < N_OPERATIONS && !seed && !test_is_quick(); i++) {
    CHECK(w.tallies[i].done >= 2 * rounds);
    if (operations[i].takes) CHECK(2 * w.tallies[i].full >= rounds);
  }
}

/* ---- every allocation fails, and pools exactly one page short ---- */

enum { STAGE_ROWS = 150, STAGE_PREFIX = 124, STAGE_DRAFTS = 8 };

/* What is done to the caches of a stage. Those before TAKE_NONE take pages. */
enum stage_kind {
  DO_EXTEND,
  DO_APPEND,
  DO_ACCEPT,
  DO_LOAD,
  DO_BATCH,
  DO_MARK,
  TAKE_NONE,
  DO_DRAFT = TAKE_NONE,
  DO_ATTEND,
  DO_TRUNCATE,
  DO_REMOVE,
  DO_FORK,
  DO_CHECKPOINT,
  DO_ROLLBACK,
  DO_SAVE,
  DO_READ,
  N_KINDS
};

static const char *const kind_names[N_KINDS] = {
    "extend",   "append", "accept", "load",       "batch",    "mark", "draft", "attend",
    "truncate", "remove", "fork",   "checkpoint", "rollback", "save", "read"};

/* Two caches that share a prefix with a checkpoint: the newest page of each head, not full, has
   three holders. A third cache fills the pool. */
typedef struct stage {
  setup s, filler_setup;
  test_guard arena;
  page_source source;
  lattn_pool *pool;
  lattn_cache *cache, *fork, *filler;
  lattn_checkpoint *checkpoint;
  file f;
  int64_t filled; /* tokens of the filler */
  uint64_t rows;  /* hash of all rows that calls gave */
} stage;

/* Tokens `first` ... of a sequence of their own. */
static void stage_tokens(const stage *g, uint32_t first, int64_t n) {
  uint32_t ids[STAGE_ROWS];
  for (int64_t i = 0; i < n; i++) ids[i] = first + (uint32_t)i;
  tokens_fill(&g->s, ids, 0, n);
}

static void stage_rows(stage *g, lattn_status status, int64_t n) {
  if (status) return;
  g->rows = hash_f32(g->rows, w.out, n * setup_heads(&g->s) * setup_value_dim(&g->s));
  g->rows = hash_f32(g->rows, w.lse, n * setup_heads(&g->s));
}

static lattn_status stage_extend(stage *g, lattn_cache *cache, uint32_t first, int64_t n) {
  const setup *s = &g->s;
  stage_tokens(g, first, n);
  lattn_status status = lattn_cache_extend(cache, NULL, view_q(s, n), view_k(s, n), view_v(s, n),
                                           view_out(s, w.out, n), w.lse, NULL);
  stage_rows(g, status, n);
  return status;
}

static lattn_status stage_draft(stage *g) {
  static const int32_t parents[STAGE_DRAFTS] = {-1, 0, 1, 2, 0, 4, 3, 6};
  const setup *s = &g->s;
  stage_tokens(g, 9000, STAGE_DRAFTS);
  lattn_status status =
      lattn_cache_draft(g->fork, NULL, parents, view_q(s, STAGE_DRAFTS), view_k(s, STAGE_DRAFTS),
                        view_v(s, STAGE_DRAFTS), view_out(s, w.out, STAGE_DRAFTS), w.lse, NULL);
  stage_rows(g, status, STAGE_DRAFTS);
  return status;
}

/* Pages of the filler are as large as those of the others. Of marks, all heads are chosen. */
static void stage_setups(stage *g, enum stage_kind kind) {
  setup_init(&g->s, 4, 2, 6, 5, 600);
  setup_stream(&g->s, 1, 4, 40, 8, LATTN_POSITIONS_DEFAULT);
  for (int h = 0; h < 2 && kind == DO_MARK; h++) {
    memset(&g->s.heads[h], 0, sizeof g->s.heads[h]);
    g->s.heads[h].policy = h ? LATTN_HEAD_HEAVY : LATTN_HEAD_SNAP;
    g->s.heads[h].window = 10;
    g->s.heads[h].budget = 70 + 80 * h; /* one page, two */
  }
  setup_rotate(&g->s, LATTN_ROTARY_HALF_SPLIT, 0, 6);
  g->s.config.key_type = LATTN_F16;
  g->s.config.max_append = 60;
  g->s.config.max_drafts = kind == DO_MARK ? 0 : STAGE_DRAFTS;
  setup_init(&g->filler_setup, 1, 1, 6, 5, 100 * REF_BLOCK);
  g->filler_setup.config.key_type = LATTN_F16;
}

static void stage_open(stage *g, enum stage_kind kind, int allocates) {
  lattn_pool_config config;
  lattn_cache *spare = NULL;
  lattn_checkpoint *spare_point = NULL;
  memset(&config, 0, sizeof config);
  memset(g, 0, sizeof *g);
  stage_setups(g, kind);
  g->source.most_out = MAX_PAGES;
  config.size = sizeof config;
  config.alloc = allocates ? source_alloc : NULL;
  config.free = allocates ? source_free : NULL;
  config.user = &g->source;
  g->arena = guard_alloc(lattn_pool_bytes(&config, &g->s.config, 6) + 16384, 1);
  memset(g->arena.data, 0xff, g->arena.bytes);
  CHECK_STATUS(lattn_pool_init(&g->pool, g->arena.data, g->arena.bytes, &config), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&g->cache, g->pool, &g->s.config), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&g->filler, g->pool, &g->filler_setup.config), LATTN_OK);
  CHECK_STATUS(stage_extend(g, g->cache, 1, STAGE_PREFIX), LATTN_OK);
  CHECK_STATUS(lattn_cache_checkpoint(&g->checkpoint, g->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&g->fork, g->cache), LATTN_OK);
  if (!g->cache || !g->filler || !g->checkpoint || !g->fork) exit(test_summary());
  CHECK_STATUS(stage_extend(g, g->cache, 5000, STAGE_ROWS), LATTN_OK);
  CHECK_STATUS(stage_extend(g, g->cache, 6000, 9), LATTN_OK);
  file_save(&g->f, g->cache);
  CHECK_STATUS(lattn_cache_rollback(g->cache, g->checkpoint), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&spare, g->cache), LATTN_OK); /* leaves room for tables */
  CHECK_STATUS(lattn_cache_checkpoint(&spare_point, g->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(spare), LATTN_OK);
  CHECK_STATUS(lattn_checkpoint_release(spare_point), LATTN_OK);
}

static void stage_close(stage *g) {
  if (g->checkpoint) CHECK_STATUS(lattn_checkpoint_release(g->checkpoint), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(g->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(g->fork), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(g->filler), LATTN_OK);
  lattn_pool_stats stats = pool_stats(g->pool);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_checkpoints, 0);
  CHECK_I64(stats.free_bytes, stats.arena_bytes - stats.table_bytes);
  CHECK_I64(g->source.n_out, 0);
  CHECK(guard_free(&g->arena));
  free(g->f.bytes);
}

/* The filler takes all pages that are left. */
static void stage_fill(stage *g) {
  float k[6] = {0}, v[5] = {0};
  lattn_tensor kt = tensor_of(k, LATTN_F32, 1, 1, 6), vt = tensor_of(v, LATTN_F32, 1, 1, 5);
  kt.n_tokens = vt.n_tokens = REF_BLOCK;
  kt.stride_token = vt.stride_token = LATTN_BROADCAST;
  while (lattn_cache_append(g->filler, kt, vt, NULL) == LATTN_OK) g->filled += REF_BLOCK;
  CHECK(g->filled > 0 && g->filled < 100 * REF_BLOCK);
}

static lattn_status stage_do_taking(stage *g, enum stage_kind kind) {
  static const int32_t path[6] = {0, 1, 2, 3, 6, 7};
  const setup *s = &g->s;
  lattn_sequence both[2] = {{g->cache, 70, NULL}, {g->fork, 10, NULL}};
  reading r = {g->f.bytes, 0, g->f.n};
  lattn_status status;
  if (kind == DO_EXTEND) return stage_extend(g, g->cache, 7000, STAGE_ROWS);
  if (kind == DO_ACCEPT) return lattn_cache_accept(g->fork, 6, path);
  if (kind == DO_LOAD) return lattn_cache_load(g->cache, file_read, &r);
  if (kind == DO_MARK) return lattn_cache_mark(g->cache, LATTN_PROMPT_END, NULL);
  if (kind == DO_APPEND) {
    stage_tokens(g, 7000, 60);
    return lattn_cache_append(g->cache, view_k(s, 60), view_v(s, 60), NULL);
  }
  stage_tokens(g, 7000, 80);
  status = lattn_batch_extend(2, both, NULL, view_q(s, 80), view_k(s, 80), view_v(s, 80),
                              view_out(s, w.out, 80), w.lse, NULL);
  stage_rows(g, status, 80);
  return status;
}

static int32_t write_nowhere(void *user, const void *data, size_t bytes) {
  (void)user, (void)data, (void)bytes;
  return 0;
}

static lattn_status stage_do(stage *g, enum stage_kind kind) {
  lattn_cache *fork = NULL;
  lattn_checkpoint *checkpoint = NULL;
  lattn_tensor k = tensor_of(w.k, LATTN_F32, 20, 1, 6), v = tensor_of(w.v, LATTN_F32, 20, 1, 5);
  const setup *s = &g->s;
  switch (kind) {
    case DO_DRAFT:
      return stage_draft(g);
    case DO_ATTEND:
      stage_tokens(g, STAGE_PREFIX - 3, 4);
      return lattn_cache_attend(g->cache, NULL, view_q(s, 4), view_out(s, w.out, 4), w.lse, NULL);
    case DO_TRUNCATE:
      return lattn_cache_truncate(g->cache, STAGE_PREFIX - 5);
    case DO_REMOVE:
      return lattn_cache_remove(g->cache, 10, 20);
    case DO_ROLLBACK:
      return lattn_cache_rollback(g->cache, g->checkpoint);
    case DO_SAVE:
      return lattn_cache_save(g->cache, write_nowhere, NULL, NULL);
    case DO_READ:
      return lattn_cache_read(g->cache, 0, 3, k, v, 0);
    case DO_FORK:
      CHECK_STATUS(lattn_cache_fork(&fork, g->cache), LATTN_OK);
      return fork ? lattn_cache_release(fork) : LATTN_E_FULL;
    case DO_CHECKPOINT:
      CHECK_STATUS(lattn_cache_checkpoint(&checkpoint, g->cache), LATTN_OK);
      return checkpoint ? lattn_checkpoint_release(checkpoint) : LATTN_E_FULL;
    default:
      return stage_do_taking(g, kind);
  }
}

/* What the caches hold; of one with drafts, what its newest rows attend to. */
static uint64_t stage_hash(stage *g) {
  lattn_cache *caches[2] = {g->cache, g->fork};
  uint64_t hash = HASH_SEED;
  for (int i = 0; i < 2; i++) {
    lattn_cache_stats stats = cache_stats(caches[i]);
    hash = hash_bytes(hash, &stats, sizeof stats);
    if (!stats.n_drafts) {
      uint64_t saved = saved_hash(caches[i]);
      hash = hash_bytes(hash, &saved, sizeof saved);
      continue;
    }
    stage_tokens(g, STAGE_PREFIX - 3, 4);
    CHECK_STATUS(lattn_cache_attend(caches[i], NULL, view_q(&g->s, 4), view_out(&g->s, w.out, 4),
                                    w.lse, NULL),
                 LATTN_OK);
    hash = hash_f32(hash, w.out, 4 * setup_heads(&g->s) * setup_value_dim(&g->s));
  }
  return hash;
}

/* Tries the operation with its first, its second, ... allocation refused, until none is: returns
   how many there are. From an arena: with no page left, with one left, with two ... */
static int64_t stage_try(stage *g, enum stage_kind kind, int allocates) {
  for (int64_t k = 0; k < 40; k++) {
    uint64_t before = stage_hash(g);
    lattn_pool_stats pool = pool_stats(g->pool);
    if (allocates) g->source.fail_at = g->source.n_calls + k + 1;
    lattn_status status = stage_do(g, kind);
    g->source.fail_at = 0;
    if (status == LATTN_OK) return k;
    lattn_pool_stats after = pool_stats(g->pool);
    CHECK_STATUS(status, LATTN_E_FULL);
    CHECK(memcmp(&pool, &after, sizeof pool) == 0);
    CHECK(stage_hash(g) == before);
    if (allocates) CHECK_I64(g->source.n_out, pool.n_pages);
    else CHECK_STATUS(lattn_cache_truncate(g->filler, g->filled -= REF_BLOCK), LATTN_OK);
  }
  FAIL("never succeeds");
  return -1;
}

/* Result: hash of rows and caches at the end. */
static uint64_t stage_run(enum stage_kind kind, int allocates, int tries, int64_t *pages) {
  stage g;
  uint64_t result;
  stage_open(&g, kind, allocates);
  if (kind == DO_MARK) { /* three pages a head, all shared */
    CHECK_STATUS(stage_extend(&g, g.cache, 8000, STAGE_ROWS), LATTN_OK);
    CHECK_STATUS(lattn_cache_release(g.fork), LATTN_OK);
    CHECK_STATUS(lattn_cache_fork(&g.fork, g.cache), LATTN_OK);
  }
  if (kind == DO_ACCEPT) CHECK_STATUS(stage_draft(&g), LATTN_OK);
  if (tries && !allocates) stage_fill(&g);
  if (tries) *pages = stage_try(&g, kind, allocates);
  else CHECK_STATUS(stage_do(&g, kind), LATTN_OK);
  result = g.rows ^ stage_hash(&g);
  stage_close(&g);
  return result;
}

static void test_every_allocation(void) {
  for (int kind = 0; kind < N_KINDS; kind++) {
    int64_t refused = -1, short_of = -1;
    check_case("every allocation of %s fails", kind_names[kind]);
    uint64_t plain = stage_run((enum stage_kind)kind, 1, 0, NULL);
    CHECK(stage_run((enum stage_kind)kind, 1, 1, &refused) == plain);
    CHECK(kind < TAKE_NONE ? refused > 1 : refused == 0);
    check_case("%s in an arena with 0, 1, 2 ... pages left", kind_names[kind]);
    CHECK(stage_run((enum stage_kind)kind, 0, 1, &short_of) == plain);
    CHECK_I64(short_of, refused);
  }
}

/* An arena without room for one more table: what needs one is refused, until one is given back. */
static void test_no_table(int allocates) {
  static lattn_cache *forks[4096];
  static lattn_checkpoint *points[4096];
  lattn_cache *more = NULL;
  int n_forks = 0, n_points = 0;
  stage g;
  check_case("no room for tables, pages from the %s", allocates ? "allocator" : "arena");
  stage_open(&g, DO_EXTEND, allocates);
  while (n_forks < 4096 && !lattn_cache_fork(&forks[n_forks], g.cache)) n_forks++;
  while (n_points < 4096 && !lattn_cache_checkpoint(&points[n_points], g.fork)) n_points++;
  CHECK(n_forks > 0 && n_forks < 4096 && n_points < 4096);
  lattn_pool_stats pool = pool_stats(g.pool);
  uint64_t before = stage_hash(&g);
  CHECK_STATUS(lattn_cache_fork(&more, g.fork), LATTN_E_FULL);
  CHECK_STATUS(lattn_cache_init(&more, g.pool, &g.s.config), LATTN_E_FULL);
  CHECK_STATUS(lattn_cache_checkpoint(&points[n_points], g.cache), LATTN_E_FULL);
  lattn_pool_stats after = pool_stats(g.pool);
  CHECK(memcmp(&pool, &after, sizeof pool) == 0);
  CHECK(stage_hash(&g) == before);
  CHECK_I64(pool.n_caches, n_forks + 3);
  CHECK_I64(pool.n_checkpoints, n_points + 1);
  CHECK_STATUS(lattn_cache_release(forks[--n_forks]), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&more, g.pool, &g.s.config), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(more), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&more, g.fork), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(more), LATTN_OK);
  CHECK_STATUS(lattn_cache_checkpoint(&points[n_points], g.cache), LATTN_OK);
  n_points++;
  while (n_forks) CHECK_STATUS(lattn_cache_release(forks[--n_forks]), LATTN_OK);
  while (n_points) CHECK_STATUS(lattn_checkpoint_release(points[--n_points]), LATTN_OK);
  CHECK(stage_hash(&g) == before);
  stage_close(&g);
}

int main(void) {
  arrays_open();
  test_random();
  test_every_allocation();
  test_no_table(0);
  test_no_table(1);
  return test_summary();
}
