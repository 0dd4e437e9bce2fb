/* ops.c - a fuzz target: the input is a sequence of operations, with good and wild arguments, on a
 * few caches of one small pool. After each: a failed call has changed nothing, one that worked has
 * done what it says, no other cache has changed; at the end nothing is left in the pool.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifdef FUZZ_TARGET
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define LONGATTN_IMPLEMENTATION
#endif
#include "fuzz.h"

enum { OPS_CACHES = 4, OPS_MARKS = 2, OPS_MOST = 60, OPS_ARENA = 150 * 1024 };

typedef struct ops_state {
  fuzz_input in;
  lattn_pool *pool;
  lattn_cache *cache[OPS_CACHES];
  int kind[OPS_CACHES];      /* which config */
  uint64_t seen[OPS_CACHES]; /* fingerprint after the cache's own last operation */
  lattn_checkpoint *mark[OPS_MARKS];
  uint64_t marked[OPS_MARKS]; /* what the cache saved then */
  int mark_kind[OPS_MARKS];
} ops_state;

static fuzz_config ops_configs[FUZZ_CONFIGS];
static uint8_t ops_memory[2][FUZZ_FILE];
static float ops_out[FUZZ_ROWS * FUZZ_HEADS * FUZZ_DIM], ops_lse[FUZZ_ROWS * FUZZ_HEADS];
static float ops_dropped[FUZZ_ROWS * FUZZ_HEADS];

static int64_t ops_n(const ops_state *t, int c) { return fuzz_cache_stats(t->cache[c]).n_tokens; }

static int64_t ops_heads(const ops_state *t, int c) {
  return ops_configs[t->kind[c]].config.n_heads;
}

static uint64_t ops_saved(const lattn_cache *cache) {
  fuzz_file f = fuzz_save(cache, ops_memory[1]);
  return fuzz_hash(0xcbf29ce484222325u, f.bytes, f.n);
}

static lattn_tensor ops_view(int64_t n, int64_t heads) {
  lattn_tensor t = {ops_out, LATTN_F32, 0, n, heads, FUZZ_DIM, 0, 0};
  return t;
}

/* ---- each operation returns the status of its call ---- */

/* Now and then, with selective values. */
static const lattn_call *ops_call(ops_state *t, lattn_call *call, int wild) {
  int64_t top = take(&t->in);
  if (top < 200) return NULL;
  memset(call, 0, sizeof *call);
  call->size = sizeof *call;
  call->top_values = (int32_t)(wild ? take_wild(&t->in) : top - 200);
  call->top_mode = wild ? (int32_t)take(&t->in) % 4 : (int32_t)top & 1;
  call->dropped = ops_dropped;
  return call;
}

/* Extends, appends or drafts n rows, or attends with them. */
static lattn_status ops_rows(ops_state *t, int c, int what, int64_t n) {
  static int32_t parents[OPS_MOST];
  int64_t at = take(&t->in), heads = ops_heads(t, c), before = ops_n(t, c);
  int wild = take_below(&t->in, 8) == 7;
  lattn_tensor q = fuzz_rows(at, n, heads), k = fuzz_rows(at + 1, n, 2), out = ops_view(n, heads);
  lattn_tensor v = fuzz_rows(at, n, fuzz_values(t->kind[c]));
  lattn_call own;
  const lattn_call *call = ops_call(t, &own, wild);
  lattn_status status;
  if (wild && what != 3) k.stride_token = take_wild(&t->in) % 5 - 1; /* overlapping rows: good */
  if (wild) q.type = (int32_t)take(&t->in) % 5;
  if (wild && q.type != LATTN_F32 && q.type) q.type = 9;
  if (what == 2)
    for (int i = 0; i < OPS_MOST; i++) parents[i] = (int32_t)take_below(&t->in, 67) - 2;
  if (what == 0) status = lattn_cache_extend(t->cache[c], call, q, k, v, out, ops_lse, NULL);
  else if (what == 1) status = lattn_cache_append(t->cache[c], k, v, NULL);
  else if (what == 2)
    status =
        lattn_cache_draft(t->cache[c], call, wild ? NULL : parents, q, k, v, out, ops_lse, NULL);
  else status = lattn_cache_attend(t->cache[c], call, q, out, ops_lse, NULL);
  if (status >= 0) MUST(ops_n(t, c) == before + (what < 2 ? n : 0));
  return status;
}

static lattn_status ops_truncate(ops_state *t, int c, int64_t n) {
  lattn_status status = lattn_cache_truncate(t->cache[c], n);
  if (!status) MUST(ops_n(t, c) == n);
  return status;
}

static lattn_status ops_remove(ops_state *t, int c, int64_t from, int64_t to) {
  int64_t before = ops_n(t, c);
  lattn_status status = lattn_cache_remove(t->cache[c], from, to);
  if (!status) MUST(ops_n(t, c) == before - (to - from));
  return status;
}

/* Puts a new cache, or a fork of c, in the place of another. */
static lattn_status ops_new(ops_state *t, int c, int fork) {
  int to = (int)take_below(&t->in, OPS_CACHES), kind = (int)take_below(&t->in, FUZZ_CONFIGS);
  lattn_cache *made = NULL;
  lattn_status status;
  if (to == c && t->cache[c]) return LATTN_OK;
  if (t->cache[to]) MUST_OK(lattn_cache_release(t->cache[to]));
  t->cache[to] = NULL;
  if (fork) kind = t->kind[c];
  status = fork ? lattn_cache_fork(&made, t->cache[c])
                : lattn_cache_init(&made, t->pool, &ops_configs[kind].config);
  MUST(!status == !!made);
  if (status) return status;
  if (fork) MUST(fuzz_fingerprint(made) == t->seen[c]);
  t->cache[to] = made;
  t->kind[to] = kind;
  t->seen[to] = fuzz_fingerprint(made);
  return status;
}

static lattn_status ops_release(ops_state *t, int c) {
  lattn_status status = lattn_cache_release(t->cache[c]);
  MUST(status == LATTN_OK);
  t->cache[c] = NULL;
  return status;
}

static lattn_status ops_mark(ops_state *t, int c) {
  int m = (int)take_below(&t->in, OPS_MARKS);
  lattn_status status;
  if (t->mark[m]) MUST_OK(lattn_checkpoint_release(t->mark[m]));
  t->mark[m] = NULL;
  status = lattn_cache_checkpoint(&t->mark[m], t->cache[c]);
  MUST(!status == !!t->mark[m]);
  if (status) return status;
  t->marked[m] = ops_saved(t->cache[c]);
  t->mark_kind[m] = t->kind[c];
  return status;
}

/* What a mark leaves of heads that are chosen at it: no more than their budgets. */
static lattn_status ops_prompt_end(ops_state *t, int c) {
  int64_t before = ops_n(t, c), held = 0, budgets = 1; /* shares are rounded */
  lattn_status status = lattn_cache_mark(t->cache[c], LATTN_PROMPT_END, NULL);
  if (status) MUST(status == LATTN_E_FULL || status == LATTN_E_STATE);
  if (status) return status;
  MUST(ops_n(t, c) == before);
  for (int32_t g = 0; g < 2; g++) {
    lattn_cache_head_stats head;
    memset(&head, 0, sizeof head);
    head.size = sizeof head;
    MUST_OK(lattn_cache_head_stats_get(t->cache[c], g, &head));
    if (t->kind[c] == FUZZ_CHOSEN) MUST(head.n_tokens_held <= fuzz_heads[FUZZ_CHOSEN][g].budget);
    held += head.n_tokens_held;
    budgets += fuzz_heads[FUZZ_SHARED][g].budget;
  }
  if (t->kind[c] == FUZZ_SHARED) MUST(held <= budgets);
  return status;
}

static lattn_status ops_rollback(ops_state *t, int c) {
  int m = (int)take_below(&t->in, OPS_MARKS);
  lattn_status status;
  if (!t->mark[m]) return LATTN_OK;
  status = lattn_cache_rollback(t->cache[c], t->mark[m]);
  if (!status) MUST(ops_saved(t->cache[c]) == t->marked[m]);
  if (t->mark_kind[m] != t->kind[c]) MUST(status == LATTN_E_CONFIG || status == LATTN_E_STATE);
  return status;
}

static lattn_status ops_accept(ops_state *t, int c) {
  int32_t path[70];
  int64_t n = take_below(&t->in, 70), before = ops_n(t, c);
  int wild = take_below(&t->in, 4) == 3;
  lattn_status status;
  if (!wild && n > fuzz_cache_stats(t->cache[c]).n_drafts) n = 0;
  for (int i = 0; i < 70; i++) path[i] = (int32_t)take(&t->in) - 1;
  if (!wild)
    for (int i = 0; i < 70; i++) path[i] = i;
  status = lattn_cache_accept(t->cache[c], (int32_t)(wild ? take_wild(&t->in) % 70 : n), path);
  if (!status) {
    MUST(fuzz_cache_stats(t->cache[c]).n_drafts == 0);
    MUST(wild || ops_n(t, c) == before + n);
  }
  return status;
}

/* What c saves is loaded into another cache, now and then with one byte wrong. */
static lattn_status ops_load(ops_state *t, int c) {
  int from = (int)take_below(&t->in, OPS_CACHES);
  int64_t flip = take(&t->in), place = take(&t->in);
  lattn_status status;
  fuzz_file f;
  if (!t->cache[from] || fuzz_cache_stats(t->cache[from]).n_drafts) return LATTN_OK;
  f = fuzz_save(t->cache[from], ops_memory[0]);
  if (flip > 128) f.bytes[(size_t)place * f.n / 256] ^= (uint8_t)(flip - 128);
  status = lattn_cache_load(t->cache[c], fuzz_read, &f);
  MUST(flip <= 128 || status < 0);
  if (status) return status;
  MUST(f.at == f.n && t->kind[c] == t->kind[from]);
  MUST(ops_saved(t->cache[c]) == ops_saved(t->cache[from]));
  return status;
}

static lattn_status ops_batch(ops_state *t, int c) {
  lattn_sequence list[3];
  int64_t n = 0, rows = 0, before[3];
  int at = (int)take_below(&t->in, 3), attend = (int)take_below(&t->in, 2);
  lattn_tensor q, k, v, out;
  lattn_status status;
  for (int i = 0; i < OPS_CACHES && n < 3; i++) {
    int other = (c + i * (1 + at)) % OPS_CACHES; /* the same one twice, now and then */
    if (!t->cache[other] || t->kind[other] != t->kind[c]) continue;
    list[n].cache = t->cache[other];
    list[n].n_tokens = take_below(&t->in, 20);
    list[n].parents = NULL;
    before[n] = ops_n(t, other);
    rows += list[n++].n_tokens;
  }
  q = fuzz_rows(at, rows, ops_heads(t, c));
  k = fuzz_rows(at + 2, rows, 2);
  v = fuzz_rows(at + 1, rows, fuzz_values(t->kind[c]));
  out = ops_view(rows, ops_heads(t, c));
  if (attend) return lattn_batch_attend(n, list, NULL, q, out, ops_lse, NULL);
  status = lattn_batch_extend(n, list, NULL, q, k, v, out, ops_lse, NULL);
  for (int64_t i = 0; i < n; i++) {
    int64_t now = fuzz_cache_stats(list[i].cache).n_tokens;
    MUST(now == before[i] + (status >= 0 ? list[i].n_tokens : 0));
  }
  for (int i = 0; i < OPS_CACHES && status >= 0; i++)
    if (t->cache[i]) t->seen[i] = fuzz_fingerprint(t->cache[i]);
  return status;
}

/* Reads and weighs: nothing changes. */
static lattn_status ops_look(ops_state *t, int c) {
  int64_t n = ops_n(t, c), first = take(&t->in), rows = take_below(&t->in, 40), keys[3];
  float top[3], k[40 * FUZZ_DIM], v[40 * 2 * FUZZ_DIM];
  lattn_tensor kv = {k, LATTN_F32, 0, rows, 1, FUZZ_DIM, 0, 0}, vv = kv;
  int32_t head = 0;
  int64_t row = 0;
  lattn_weights w;
  memset(&w, 0, sizeof w);
  vv.data = v;
  vv.n_heads = fuzz_values(t->kind[c]) / 2;
  if (first & 1) first = n - rows;
  if (take_below(&t->in, 3) == 2)
    return lattn_cache_read(t->cache[c], (int32_t)take_wild(&t->in), take_wild(&t->in), kv, vv,
                            (int32_t)take_wild(&t->in));
  if (take_below(&t->in, 2))
    return lattn_cache_read(t->cache[c], (int32_t)(first & 1), first, kv, vv,
                            (int32_t)(first >> 1 & 1));
  memset(ops_lse, 0, sizeof ops_lse);
  w.size = sizeof w;
  w.top_k = 3;
  w.n_rows = 1;
  w.rows = &row;
  w.n_heads = 1;
  w.heads = &head;
  w.lse = ops_lse;
  w.top_keys = keys;
  w.top_weights = top;
  return lattn_cache_weights(t->cache[c], NULL, fuzz_rows(0, n > 0, ops_heads(t, c)), &w, NULL);
}

/* One operation on cache c. */
static lattn_status ops_one(ops_state *t, int c, int64_t what) {
  int64_t a = take(&t->in), n = ops_n(t, c);
  int limited = t->kind[c] != 2 && t->kind[c] != 3 &&
                t->kind[c] != FUZZ_SUMS; /* a wild number of tokens ends at the capacity */
  switch (what) {
    case 0:
      return ops_rows(t, c, 0, a % OPS_MOST);
    case 1:
      return ops_rows(t, c, 1, a % OPS_MOST);
    case 2:
      return ops_rows(t, c, 2, a % 12);
    case 3:
      return ops_rows(t, c, 3, a % 12);
    case 4:
      return ops_rows(t, c, (int)a & 1, limited ? take_wild(&t->in) : a % OPS_MOST);
    case 5:
      return ops_truncate(t, c, n - a % 16);
    case 6:
      return ops_truncate(t, c, take_wild(&t->in));
    case 7:
      return ops_remove(t, c, a, a + take_below(&t->in, 20));
    case 8:
      return ops_remove(t, c, take_wild(&t->in), take_wild(&t->in));
    case 9:
      return ops_new(t, c, 1);
    case 10:
      return a & 1 ? ops_release(t, c) : ops_mark(t, c);
    case 11:
      return a % 4 ? ops_prompt_end(t, c) : ops_mark(t, c);
    case 12:
      return ops_rollback(t, c);
    case 13:
      return ops_accept(t, c);
    case 14:
      return a % 8 ? ops_load(t, c) : lattn_cache_clear(t->cache[c]);
    case 15:
      return ops_batch(t, c);
    default:
      return ops_look(t, c);
  }
}

/* An operation, and whether it kept to what all calls promise. */
static void ops_step(ops_state *t) {
  int64_t what = take(&t->in);
  int c = (int)(what / 18 % OPS_CACHES);
  lattn_pool_stats before = fuzz_pool_stats(t->pool), after;
  lattn_status status;
  if (!t->cache[c]) {
    ops_new(t, c, 0);
    return;
  }
  status = ops_one(t, c, what % 18);
  MUST(status <= LATTN_OVERFLOWED && status >= LATTN_E_FORMAT);
  if (!t->cache[c]) return;
  if (status < 0) MUST(fuzz_fingerprint(t->cache[c]) == t->seen[c]);
  t->seen[c] = fuzz_fingerprint(t->cache[c]);
  after = fuzz_pool_stats(t->pool);
  if (status < 0 && before.n_caches == after.n_caches &&
      before.n_checkpoints == after.n_checkpoints)
    MUST(before.n_pages == after.n_pages && before.free_bytes == after.free_bytes);
}

static int ops_open(ops_state *t, const uint8_t *bytes, size_t n) {
  static uint8_t arena[OPS_ARENA];
  for (int kind = 0; kind < FUZZ_CONFIGS; kind++) fuzz_config_make(&ops_configs[kind], kind);
  memset(t, 0, sizeof *t);
  t->in.bytes = bytes;
  t->in.n = n;
  memset(arena, 0xff, sizeof arena);
  MUST_OK(lattn_pool_init(&t->pool, arena, sizeof arena, NULL));
  return t->pool != NULL;
}

static void ops_close(ops_state *t) {
  lattn_pool_stats stats;
  for (int c = 0; c < OPS_CACHES; c++) {
    if (!t->cache[c]) continue;
    MUST(fuzz_fingerprint(t->cache[c]) == t->seen[c]);
    MUST_OK(lattn_cache_release(t->cache[c]));
  }
  for (int m = 0; m < OPS_MARKS; m++)
    if (t->mark[m]) MUST_OK(lattn_checkpoint_release(t->mark[m]));
  stats = fuzz_pool_stats(t->pool);
  MUST(!stats.n_caches && !stats.n_checkpoints && !stats.n_pages && !stats.page_bytes);
}

static void fuzz_ops(const uint8_t *bytes, size_t n) {
  ops_state t;
  if (n > 4096 || !ops_open(&t, bytes, n)) return;
  for (int i = 0; t.in.at < t.in.n; i++) {
    int other = i % OPS_CACHES;
    ops_step(&t);
    if (t.cache[other]) MUST(fuzz_fingerprint(t.cache[other]) == t.seen[other]);
  }
  ops_close(&t);
}

#ifdef FUZZ_TARGET
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n);
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n) {
  fuzz_ops(bytes, n);
  return 0;
}
#endif
