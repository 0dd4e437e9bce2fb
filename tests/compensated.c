/* compensated.c - RazorAttention's compensated heads, policies that wait for a mark, and bounds on
 * lost attention, against float64 (heads.md 3.3, 3.4, 3.7 and 12).
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Each cache under test has two siblings that get the same tokens: its heads streaming, at absolute
   positions (what they see beside the mean key, in the same arithmetic), and its heads full (what
   is stored, to be read; what attention would have been). The mean key is then merged in double.
   The reference of whole rows, without siblings, is in ref_cache.h; tests/cache.c and tests/model.c
   use it. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

#define PICK(rng, list) ((list)[rng_below(rng, (int64_t)(sizeof(list) / sizeof *(list)))])

/* ---- a cache and all rows it ever gave ---- */

typedef struct run {
  setup s;
  lattn_pool *pool;
  char *arena;
  size_t arena_bytes;
  lattn_cache *cache;
  int64_t n, capacity;
  int marked;
  float *out, *lse, *bound, *estimate; /* by position */
  const lattn_tensor *gate;            /* of all positions */
} run;

static void *scratch_memory(size_t bytes) {
  static void *memory;
  static size_t room;
  if (bytes > room) memory = realloc(memory, room = bytes);
  if (!memory) exit(1);
  return memory;
}

/* 0: none; else so many threads, with scratch. */
static const lattn_exec *exec_of(lattn_exec *exec, const setup *s, int64_t n, int threads) {
  memset(exec, 0, sizeof *exec);
  if (!threads) return NULL;
  exec->size = sizeof *exec;
  exec->n_threads = threads;
  exec->parallel_for = threads > 4 ? test_parallel_threads : test_parallel_scrambled;
  exec->scratch_bytes = lattn_cache_scratch(&s->config, n, threads);
  exec->scratch = scratch_memory(exec->scratch_bytes);
  return exec;
}

static lattn_cache *cache_new(lattn_pool *pool, setup *s) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, pool, &s->config), LATTN_OK)) {
    printf("    at %s\n", s->fault.argument ? s->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

/* In a pool for so many caches of that kind. */
static void run_open(run *r, const setup *s, int64_t capacity, int64_t n_caches) {
  int64_t heads = setup_heads(s);
  memset(r, 0, sizeof *r);
  setup_copy(&r->s, s);
  r->capacity = capacity;
  r->arena_bytes = lattn_pool_bytes(NULL, &r->s.config, n_caches);
  CHECK(r->arena_bytes > 0);
  r->arena = (char *)ref_memory((int64_t)r->arena_bytes, 1);
  memset(r->arena, 0xff, r->arena_bytes);
  if (!CHECK_STATUS(lattn_pool_init(&r->pool, r->arena, r->arena_bytes, NULL), LATTN_OK)) exit(1);
  r->cache = cache_new(r->pool, &r->s);
  r->out = (float *)ref_memory(capacity * heads * setup_value_dim(s), sizeof(float));
  r->lse = (float *)ref_memory(capacity * heads, sizeof(float));
  r->bound = (float *)ref_memory(capacity * heads, sizeof(float));
  r->estimate = (float *)ref_memory(capacity * heads, sizeof(float));
}

/* The pool is then as empty as it was. */
static void run_close(run *r) {
  lattn_pool_stats stats;
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  stats = pool_stats(r->pool);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_pages, 0);
  CHECK_I64(stats.n_checkpoints, 0);
  CHECK_I64(stats.page_bytes, 0);
  free(r->arena);
  free(r->out);
  free(r->lse);
  free(r->bound);
  free(r->estimate);
}

/* What lattn_cache_bytes and the counts of its heads say of it, after an extend. */
static void check_bytes(const run *r) {
  lattn_cache_stats stats = cache_stats(r->cache);
  int64_t pages = 0;
  for (int64_t g = 0; g < r->s.config.n_kv_heads; g++) {
    lattn_cache_head_stats head = head_stats(r->cache, g);
    pages += head.page_bytes;
    CHECK_I64(head.policy, r->s.heads[g].policy);
    CHECK_I64(head.n_tokens_held, head.n_sink_tokens + r->n - head.first_token);
    int waits = r->s.heads[g].mark && !r->marked; /* as a full head, then */
    CHECK_I64(head.positions, setup_in_cache(&r->s, g) && !waits ? LATTN_POSITIONS_IN_CACHE
                                                                 : LATTN_POSITIONS_ABSOLUTE);
  }
  CHECK_I64(stats.full_bytes + stats.streaming_bytes, pages);
  CHECK((size_t)(stats.table_bytes + pages) <= lattn_cache_bytes(&r->s.config));
}

typedef struct row_arrays {
  lattn_call call;
  lattn_tensor gate, out;
  float *lse;
} row_arrays;

/* Where rows first ... first + n - 1 go, and the call that gives them. */
static void rows_at(row_arrays *at, const run *r, int64_t first, int64_t n) {
  int64_t heads = setup_heads(&r->s), dv = setup_value_dim(&r->s);
  memset(at, 0, sizeof *at);
  at->call.size = sizeof at->call;
  at->call.lost_bound = r->bound + first * heads;
  at->call.lost_estimate = r->estimate + first * heads;
  if (r->gate) {
    at->gate = *r->gate;
    at->gate.data = (const float *)r->gate->data + first * heads;
    at->gate.n_tokens = n;
    at->call.gate = &at->gate;
  }
  at->out = tensor_of(r->out + first * heads * dv, LATTN_F32, n, heads, dv);
  at->lse = r->lse + first * heads;
}

/* The next n tokens; apart: append and attend. */
static void run_feed(run *r, const token_list *t, int64_t n, int threads, int apart) {
  lattn_exec exec;
  const lattn_exec *e = exec_of(&exec, &r->s, n, threads);
  lattn_tensor q = tokens_q(t, &r->s, r->n, n), k = tokens_k(t, &r->s, r->n, n);
  lattn_tensor v = tokens_v(t, &r->s, r->n, n);
  lattn_status status;
  row_arrays at;
  rows_at(&at, r, r->n, n);
  if (apart) {
    CHECK_STATUS(lattn_cache_append(r->cache, k, v, NULL), LATTN_OK);
    status = lattn_cache_attend(r->cache, &at.call, q, at.out, at.lse, e);
  } else {
    status = lattn_cache_extend(r->cache, &at.call, q, k, v, at.out, at.lse, e);
  }
  if (!CHECK_STATUS(status, LATTN_OK)) exit(test_summary());
  r->n += n;
  if (!apart) check_bytes(r);
}

/* All up to `end`, in random cuts and ways. */
static void run_to(run *r, const token_list *t, int64_t end, test_rng *rng) {
  static const int64_t cuts[] = {1, 1, 2, 3, 15, 16, 17, 60, 128, 129, 300, 1000};
  static const int threads[] = {0, 1, 1, 3, 7};
  while (r->n < end) {
    int64_t n = rng ? PICK(rng, cuts) : end;
    int apart = rng && n <= setup_max_append(&r->s) && rng_chance(rng, 30);
    if (n > end - r->n) n = end - r->n;
    run_feed(r, t, n, rng ? PICK(rng, threads) : 1, apart);
  }
}

static void run_mark(run *r, int threads) {
  lattn_exec exec;
  const lattn_exec *e = exec_of(&exec, &r->s, 1, threads);
  if (e) exec.scratch = NULL, exec.scratch_bytes = 0;
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, e), LATTN_OK);
  r->marked = 1;
  check_bytes(r);
}

/* Rows first ... end - 1 of both have the same bits, of head h (-1: of all). */
static void check_same(const run *a, const run *b, int64_t first, int64_t end, int64_t h,
                       int lost) {
  int64_t heads = setup_heads(&a->s), dv = setup_value_dim(&a->s), wrong = 0, row = -1;
  for (int64_t i = first * heads; i < end * heads; i++) {
    int same = same_f32(a->lse[i], b->lse[i]);
    if (h >= 0 && i % heads != h) continue;
    for (int64_t d = 0; d < dv; d++) same &= same_f32(a->out[i * dv + d], b->out[i * dv + d]);
    if (lost) same &= same_f32(a->bound[i], b->bound[i]);
    if (lost) same &= same_f32(a->estimate[i], b->estimate[i]);
    if (!same && !wrong++) row = i / heads;
  }
  if (wrong)
    FAIL("%" PRId64 " of rows %" PRId64 " ... %" PRId64 " have other bits, first row %" PRId64,
         wrong, first, end - 1, row);
}

/* Does head g hold all tokens from ... to - 1? */
static int holds(const run *r, int64_t g, int64_t from, int64_t to) {
  lattn_cache_head_stats stats = head_stats(r->cache, g);
  if (from < stats.n_sink_tokens) from = stats.n_sink_tokens;
  return from >= to || stats.first_token <= from;
}

/* Arrays of its own, of the same cache. */
static void run_shadow(run *to, const run *r) {
  int64_t heads = setup_heads(&r->s);
  *to = *r;
  to->out = (float *)ref_memory(r->capacity * heads * setup_value_dim(&r->s), sizeof(float));
  to->lse = (float *)ref_memory(r->capacity * heads, sizeof(float));
  to->bound = (float *)ref_memory(r->capacity * heads, sizeof(float));
  to->estimate = (float *)ref_memory(r->capacity * heads, sizeof(float));
}

static void shadow_close(run *r) {
  free(r->out);
  free(r->lse);
  free(r->bound);
  free(r->estimate);
}

/* Attends again with the newest rows: evicted exactly when a window is not held, else the bits that
   they had. Then forgets some, and takes them again. */
static void check_again(run *r, const token_list *t, test_rng *rng) {
  run again;
  run_shadow(&again, r);
  for (int i = 0; i < 4; i++) {
    int64_t back = rng_range(rng, 0, r->n < 200 ? r->n : 200), first = r->n - back, held = 1;
    lattn_exec exec;
    row_arrays at;
    for (int64_t g = 0; g < r->s.config.n_kv_heads && back; g++)
      held &= holds(r, g, first - r->s.heads[g].window + 1, r->n);
    rows_at(&at, &again, first, back);
    lattn_status got =
        lattn_cache_attend(r->cache, &at.call, tokens_q(t, &r->s, first, back), at.out, at.lse,
                           exec_of(&exec, &r->s, back, (int)rng_below(rng, 4)));
    if (CHECK_STATUS(got, held ? LATTN_OK : LATTN_E_EVICTED) && held)
      check_same(&again, r, first, r->n, -1, 1);
  }
  int64_t end = r->n, to = end - rng_below(rng, end < 150 ? end + 1 : 150), held = 1;
  for (int64_t g = 0; g < r->s.config.n_kv_heads && to < end; g++)
    held &= holds(r, g, to - (r->s.heads[g].window > 2 ? r->s.heads[g].window : 2) + 1, to);
  if (CHECK_STATUS(lattn_cache_truncate(r->cache, to), held ? LATTN_OK : LATTN_E_EVICTED) && held) {
    again.n = to;
    run_to(&again, t, end, rng);
    check_same(&again, r, to, end, -1, 1);
  }
  shadow_close(&again);
}

/* ---- files ---- */

static uint64_t saved(const lattn_cache *cache) {
  static memory_file f;
  memory_file_save(&f, cache);
  return hash_bytes(HASH_SEED, f.bytes, f.n);
}

/* ---- configurations ---- */

static void random_setup(setup *s, test_rng *rng, int64_t capacity, int is_long) {
  static const int32_t dims[] = {1, 2, 3, 5, 8, 16, 17, 20, 33, 46};
  static const int32_t integer_dims[] = {16, 17, 20, 32, 40, 64};
  static const int64_t sinks[] = {0, 0, 1, 3, 4, 15, 17, 130};
  static const int64_t windows[] = {1, 1, 2, 3, 16, 17, 50, 127, 128, 129, 200};
  static const int64_t slacks[] = {0, 0, 5, 140};
  static const int64_t appends[] = {3, 16, 60, 200, 0};
  int32_t kv_heads = (int32_t)rng_range(rng, 1, is_long ? 2 : 3);
  int32_t group = (int32_t)rng_range(rng, 1, is_long ? 2 : 4);
  int32_t kt = (int32_t)rng_range(rng, 1, 5), vt = (int32_t)rng_range(rng, 1, 5);
  int32_t dk = kt >= LATTN_I8 ? PICK(rng, integer_dims) : PICK(rng, dims);
  int32_t dv = vt >= LATTN_I8 ? PICK(rng, integer_dims) : PICK(rng, dims);
  setup_init(s, kv_heads * group, kv_heads, dk, dv, capacity);
  s->config.key_type = kt;
  s->config.value_type = vt;
  s->config.max_append = PICK(rng, appends);
  if (dk >= 2 && rng_chance(rng, 35)) setup_rotate(s, (int32_t)rng_below(rng, 2), 0, dk / 2 * 2);
  if (s->config.rotary && rng_chance(rng, 25)) s->rotary.magnitude = 1.25f;
  if (rng_chance(rng, 30)) setup_alibi(s);
  if (s->config.alibi_slopes && rng_chance(rng, 30)) /* growing with distance: bounds differ */
    for (int h = 0; h < CACHE_HEADS; h++) s->slopes[h] *= -0.125f;
  if (rng_chance(rng, 25)) setup_sinks(s);
  if (rng_chance(rng, 20)) s->config.softcap = 3;
  if (rng_chance(rng, 20)) s->config.scale = -0.5f;
  for (int32_t g = 0; g < kv_heads; g++) {
    int kind = (int)rng_below(rng, 10);
    setup_stream(s, g, PICK(rng, sinks), PICK(rng, windows), PICK(rng, slacks), 0);
    if (kind < 8) setup_compensate(s, g, 0);
    else if (kind == 8 && (s->config.rotary || s->config.alibi_slopes))
      s->heads[g].positions = (int32_t)rng_below(rng, 3);
    if (rng_chance(rng, 60)) s->heads[g].flags |= LATTN_HEAD_LOST;
    if (kind < 3) s->heads[g].flags |= LATTN_HEAD_VARIANCE;
  }
}

/* Heads streaming, at absolute positions if they are compensated; or all full. Without learned
   sinks, which come last. */
static void sibling_setup(setup *to, const setup *s, int streams) {
  setup_copy(to, s);
  to->config.sink_logits = NULL;
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    lattn_head *h = &to->heads[g];
    int compensated = h->policy == LATTN_HEAD_COMPENSATED;
    h->flags = 0;
    if (!streams) memset(h, 0, sizeof *h);
    else if (compensated) h->policy = LATTN_HEAD_STREAMING;
    if (streams && compensated) h->positions = LATTN_POSITIONS_ABSOLUTE;
  }
}

/* What the keys of a stream are like. */
enum keys {
  KEYS_NORMAL,
  KEYS_EQUAL,
  KEYS_HUGE,
  KEYS_OPPOSITE,
  KEYS_TINY,
  KEYS_OUTLIER,
  KEYS_FAR,
  N_KEYS
};

static void keys_make(token_list *t, enum keys kind, test_rng *rng) {
  float *k = t->k;
  for (int64_t i = 0; i < t->capacity; i++, k += t->k_row)
    for (int64_t d = 0; d < t->k_row; d++) {
      if (kind == KEYS_EQUAL) k[d] = t->k[d];
      if (kind == KEYS_HUGE) k[d] *= 50;
      if (kind == KEYS_OPPOSITE) k[d] = (i & 1 ? -6.0f : 6.0f) * (float)(1 + d % 3);
      if (kind == KEYS_TINY) k[d] = i % 3 ? 0 : k[d] * 1e-41f;
      if (kind == KEYS_OUTLIER) k[d] *= i % 41 == 7 ? 12.0f : 0.01f;
      if (kind == KEYS_FAR) k[d] += 8; /* a large mean, a small spread */
    }
  (void)rng;
}

static void stream_new(token_list *t, const setup *s, int64_t n, enum keys kind, test_rng *rng) {
  *t = tokens_new(s, n);
  tokens_make(t, n, rng);
  t->n = n;
  keys_make(t, kind, rng);
}

/* ---- the mean key in double ---- */

/* Turns x as LATTN_I8 and LATTN_I4 keys are stored: blocks of the largest power of two that divides
   the dim, at most 128, by a Hadamard transform of length 1; others are not. */
static void turn(double *x, int64_t dim) {
  int64_t size = dim & -dim;
  if (size > 128) size = 128;
  if (size < 16) return;
  for (int64_t at = 0; at < dim; at += size)
    for (int64_t half = 1; half < size; half *= 2)
      for (int64_t i = at; i < at + size; i++) {
        double a = x[i], b = x[i ^ half];
        if (i & half) continue;
        x[i] = (a + b) * sqrt(0.5);
        x[i ^ half] = (a - b) * sqrt(0.5);
      }
}

/* What is stored of one KV head, as doubles, and prefix sums over it. */
typedef struct stored {
  double *k, *v;                                      /* [n][dim] */
  double *sum_k, *sum_v, *sum_squares, *sum_absolute; /* [n + 1][dim] */
  double *longest;                                    /* [n + 1]: the longest of the first keys */
} stored;

static void stored_read(stored *m, const run *full, int64_t g) {
  int64_t n = full->n, dk = full->s.config.key_dim, dv = setup_value_dim(&full->s);
  float *k = (float *)ref_memory(n * dk, sizeof *k), *v = (float *)ref_memory(n * dv, sizeof *v);
  m->k = (double *)ref_memory(n * dk, sizeof(double));
  m->v = (double *)ref_memory(n * dv, sizeof(double));
  m->sum_k = (double *)ref_memory((n + 1) * dk, sizeof(double));
  m->sum_squares = (double *)ref_memory((n + 1) * dk, sizeof(double));
  m->sum_absolute = (double *)ref_memory((n + 1) * dk, sizeof(double));
  m->sum_v = (double *)ref_memory((n + 1) * dv, sizeof(double));
  m->longest = (double *)ref_memory(n + 1, sizeof(double));
  CHECK_STATUS(lattn_cache_read(full->cache, (int32_t)g, 0, tensor_of(k, LATTN_F32, n, 1, dk),
                                tensor_of(v, LATTN_F32, n, 1, dv), 0),
               LATTN_OK);
  for (int64_t i = 0; i < n * dk; i++) m->k[i] = (double)k[i];
  for (int64_t i = 0; i < n && full->s.config.key_type >= LATTN_I8; i++) turn(m->k + i * dk, dk);
  for (int64_t i = 0; i < n; i++) {
    double length = 0;
    for (int64_t d = 0, at = i * dk; d < dk; d++, at++) {
      double x = m->k[at];
      m->sum_k[at + dk] = m->sum_k[at] + x;
      m->sum_squares[at + dk] = m->sum_squares[at] + x * x;
      m->sum_absolute[at + dk] = m->sum_absolute[at] + fabs(x);
      length += x * x;
    }
    m->longest[i + 1] = fmax(m->longest[i], sqrt(length));
    for (int64_t d = 0, at = i * dv; d < dv; d++, at++) {
      m->v[at] = (double)v[at];
      m->sum_v[at + dv] = m->sum_v[at] + m->v[at];
    }
  }
  free(k);
  free(v);
}

static void stored_free(stored *m) {
  free(m->k);
  free(m->v);
  free(m->sum_k);
  free(m->sum_v);
  free(m->sum_squares);
  free(m->sum_absolute);
  free(m->longest);
}

static double head_scale(const setup *s) {
  return s->config.scale != 0 ? (double)s->config.scale : 1 / sqrt((double)s->config.key_dim);
}

static double head_slope(const setup *s, int64_t h) {
  return s->config.alibi_slopes ? (double)s->slopes[h] : 0;
}

/* Tokens from ... end - 1, that row i no longer sees, as its query sees them. */
typedef struct dropped {
  int64_t n;
  double score, error;      /* of the mean key, + ln n; and without variance */
  double plain;             /* the score without its variance */
  double lse;               /* ln sum exp(s_j): what they would have weighed */
  double key_error;         /* of any s_j in float32 */
  double value[CACHE_DIMS]; /* the mean */
} dropped;

/* ln sum exp of the scores of tokens from ... end - 1, for row i of head h with query q, rotated
   and turned as the stored keys are. */
static double dropped_lse(const setup *s, const stored *m, const double *q, int64_t i, int64_t h,
                          int64_t from, int64_t end) {
  int64_t dk = s->config.key_dim;
  double scale = head_scale(s), slope = head_slope(s, h), cap = (double)s->config.softcap;
  double maximum = -REF_INFINITY, total = 0;
  for (int64_t j = from; j < end; j++) {
    double x = 0;
    for (int64_t d = 0; d < dk; d++) x += q[d] * m->k[j * dk + d];
    x *= scale;
    if (cap > 0) x = cap * tanh(x / cap);
    x -= slope * (double)(i - j);
    if (x > maximum) {
      total = total * exp(maximum - x) + 1;
      maximum = x;
    } else {
      total += exp(x - maximum);
    }
  }
  return maximum + log(total);
}

/* Errors. Of the mean key's score in float32: a chain of dk multiply-adds, the scale and the mean
   rounded, (dk + 5) u * |scale| * mean of sum |q_d k_d|; a rotated query 16 u |scale| |q| |k|;
   softcap 8 u |s|; ALiBi u for slope * distance and u for the sum, and the mean distance rounded, u
   again; ln n 4u of itself and u for the sum; prefix sums in double: n 2^-53 of the sum of |k|,
   both here and there. LATTN_I8 and LATTN_I4 keys are read turned back by a Hadamard transform of
   up to 128 dims, 7 levels, and scaled: 16 u |scale| |q| |k| for that, and as much for the query's.
   Variance: squares' sums in double (as above, with k^2), the difference and the chain rounded, 16
   u of the term. */
static void drop(dropped *o, const setup *s, const stored *m, const float *query, int64_t i,
                 int64_t h, int64_t from, int64_t end) {
  int64_t g = h / (setup_heads(s) / s->config.n_kv_heads), dk = s->config.key_dim;
  int64_t dv = setup_value_dim(s);
  double scale = head_scale(s), slope = head_slope(s, h), cap = (double)s->config.softcap;
  double n = (double)(end - from), q[CACHE_DIMS], all = 0, dot = 0, size = 0, spread = 0, most = 0;
  double squares = 0, turned, term, second;
  for (int64_t d = 0; d < dk; d++) q[d] = (double)query[d];
  if (s->config.rotary) ref_rotate(q, s->config.rotary, i, NULL);
  if (s->config.key_type >= LATTN_I8) turn(q, dk);
  for (int64_t d = 0; d < dk; d++) {
    double sum = m->sum_k[end * dk + d] - m->sum_k[from * dk + d], t = scale * q[d];
    double square = m->sum_squares[end * dk + d] - m->sum_squares[from * dk + d];
    all += q[d] * q[d];
    dot += q[d] * (sum / n);
    size += fabs(q[d]) * (m->sum_absolute[end * dk + d] - m->sum_absolute[from * dk + d]) / n;
    spread += t * t * (square / n - (sum / n) * (sum / n)) / 2;
    squares += t * t * m->sum_squares[end * dk + d] / n / 2;
    most += fabs(t) * m->sum_absolute[end * dk + d] / n;
  }
  turned = fabs(scale) * sqrt(all) * m->longest[end] * REF_U *
           ((s->config.rotary ? 16 : 0) + (s->config.key_type >= LATTN_I8 ? 32 : 0));
  o->n = end - from;
  o->score = scale * dot;
  o->error = (double)(dk + 5) * REF_U * fabs(scale) * size + turned + (double)end * 0x1p-51 * most;
  o->error += 0x1p-100;
  o->key_error = (double)(dk + 4) * REF_U * fabs(scale) * sqrt(all) * m->longest[end] + turned;
  if (cap > 0) {
    o->score = cap * tanh(o->score / cap);
    o->error += 8 * REF_U * fabs(o->score);
    o->key_error += 8 * REF_U * cap;
  }
  term = slope * ((double)i - (double)(from + end - 1) / 2);
  o->score -= term;
  if (slope != 0) {
    o->error += 2 * REF_U * (fabs(term) + fabs(o->score));
    o->key_error += 2 * REF_U * fabs(slope) * (double)(i - from);
  }
  second = s->heads[g].flags & LATTN_HEAD_VARIANCE ? spread : 0;
  o->plain = o->score + log(n);
  o->score += second + log(n);
  if (second != 0) o->error += 16 * REF_U * spread + (double)end * 0x1p-50 * squares;
  o->error += REF_U * (4 * log(n) + 3 * fabs(o->score));
  o->lse = dropped_lse(s, m, q, i, h, from, end);
  for (int64_t d = 0; d < dv; d++)
    o->value[d] = (m->sum_v[end * dv + d] - m->sum_v[from * dv + d]) / n;
}

/* ---- one row, against its siblings ---- */

/* e^a / (e^a + e^b), of what may be far apart. */
static double share(double a, double b) { return 1 / (1 + exp(b - a)); }

typedef struct checked {
  const run *ours, *stream, *full;
  const token_list *tokens;
  double loosest, tightest; /* bound over what was lost, where at least 1e-6 was */
} checked;

static void check_close(double got, double want, double bound, const char *what, int64_t row,
                        int64_t head) {
  double ratio = ref_ratio(got, want, bound);
  if (!(ratio <= 1))
    FAIL("row %" PRId64 " head %" PRId64 ": %s is %.9g, reference %.9g, %.3g bounds off", row, head,
         what, got, want, ratio);
}

/* Row i is its streaming sibling's with the mean key (m NULL: none) and the learned sink merged in.
   The sibling's lse is that of the same sums, off by its rounding u |lse| and 4u |ln sum| <= 4u
   (|lse| + |largest score|); the weights' exps are within 4u each. So the parts' weights are off by
   a factor within 1 +- e, and with w their shares (which sum to 1) and o3 = 0
       |do| <= e (w1 |o1 - o| + w2 |o2 - o| + w3 |o|) + 8u (w1 |o1| + w2 |o2|)
   the last for the sibling's, the mean's and the row's own roundings. Values of LATTN_I4 are turned
   back at the end, 7 levels of a Hadamard transform, in both: 32 u of the lengths of o1 and o2. */
static void check_merged(const checked *c, const dropped *m, int64_t i, int64_t h) {
  const setup *s = &c->ours->s;
  int64_t dv = setup_value_dim(s), at = i * setup_heads(s) + h;
  double kept = (double)c->stream->lse[at], mean = m ? m->score : -REF_INFINITY;
  double sink = s->config.sink_logits ? (double)s->sinks[h] : -REF_INFINITY;
  double most = fmax(kept, fmax(mean, sink)), size = fabs(kept) + (m ? fabs(mean) : 0), a = 0,
         b = 0;
  double w1 = exp(kept - most), w2 = exp(mean - most), w3 = exp(sink - most), w = w1 + w2 + w3;
  double e = (m ? m->error : 0) + REF_U * (16 + 6 * size + (isinf(sink) ? 0 : 2 * fabs(sink)));
  double lse = most + log(w), turned = 0;
  double gate = c->ours->gate ? (double)((const float *)c->ours->gate->data)[at] : 1;
  const float *o1 = c->stream->out + at * dv, *got = c->ours->out + at * dv;
  w1 /= w, w2 /= w, w3 /= w;
  check_close((double)c->ours->lse[at], lse, e + 4 * REF_U * fabs(lse), "lse", i, h);
  for (int64_t d = 0; d < dv && s->config.value_type == LATTN_I4; d++) {
    a += (double)o1[d] * (double)o1[d];
    b += m ? m->value[d] * m->value[d] : 0;
    turned = 32 * REF_U * (w1 * sqrt(a) + w2 * sqrt(b));
  }
  for (int64_t d = 0; d < dv; d++) {
    double x = (double)o1[d], y = m ? m->value[d] : 0, o = w1 * x + w2 * y;
    double bound = e * (w1 * fabs(x - o) + w2 * fabs(y - o) + w3 * fabs(o)) * 1.01 + turned +
                   8 * REF_U * (w1 * fabs(x) + w2 * fabs(y)) + 0x1p-120;
    check_close((double)got[d], o * gate, bound * fabs(gate) + 0x1p-140, "out", i, h);
  }
}

/* Lost attention of row i, of a head with LATTN_HEAD_LOST. The bound is one of what float32 makes
   of the scores: key_error below what they are in exact arithmetic, and the sibling's lse, u
   |lse| off. Integer queries differ from the real ones more than that: there, what the full sibling
   paid is the measure, to the rounding of two lse. */
static void check_lost(checked *c, const dropped *m, int64_t i, int64_t h) {
  const setup *s = &c->ours->s;
  int64_t at = i * setup_heads(s) + h, g = h / (setup_heads(s) / s->config.n_kv_heads);
  double kept = (double)c->stream->lse[at], lost = share(m->lse, kept);
  double bound = (double)c->ours->bound[at], estimate = (double)c->ours->estimate[at];
  double e = m->key_error + REF_U * (16 + 6 * fabs(kept));
  if (s->config.key_type < LATTN_I8 && !(bound >= lost * (1 - 1.01 * e)))
    FAIL("row %" PRId64 " head %" PRId64 ": bound %.9g, but %.9g was lost", i, h, bound, lost);
  if (!setup_in_cache(s, g)) {
    double all = (double)c->full->lse[at], paid = -expm1(kept - all);
    double slack = 8 * REF_U * (1 + fabs(kept) + fabs(all));
    if (s->config.key_type < LATTN_I8) slack += 2 * m->key_error;
    if (!(bound >= paid - slack))
      FAIL("row %" PRId64 " head %" PRId64 ": bound %.9g, but %.9g was lost of the full head", i, h,
           bound, paid);
  }
  if (!(bound <= 1)) FAIL("row %" PRId64 " head %" PRId64 ": bound %.9g", i, h, bound);
  e = 1.01 * (m->error + REF_U * (16 + 6 * fabs(kept) + 2 * fabs(m->score)));
  check_close(estimate, share(m->score, kept), e * share(m->score, kept) + 0x1p-126, "estimate", i,
              h);
  if (lost > 1e-6) {
    c->loosest = fmax(c->loosest, bound / lost);
    c->tightest = fmin(c->tightest, bound / lost);
  }
}

/* Every row of head h. from, window: what holds after the mark, at row `from`. */
static void check_head(checked *c, int64_t h, int64_t first, int64_t window) {
  const setup *s = &c->ours->s;
  int64_t g = h / (setup_heads(s) / s->config.n_kv_heads), heads = setup_heads(s);
  int compensated = s->heads[g].policy == LATTN_HEAD_COMPENSATED;
  int is_plain = !c->ours->gate && !s->config.sink_logits;
  int64_t sinks = s->heads[g].sinks;
  stored m;
  stored_read(&m, c->full, g);
  for (int64_t i = first; i < c->ours->n; i++) {
    int64_t at = i * heads + h;
    dropped o;
    if (i - window < sinks) { /* nothing dropped */
      check_merged(c, NULL, i, h);
      if (is_plain) check_same(c->ours, c->stream, i, i + 1, h, 0);
      if (is_plain) check_same(c->ours, c->full, i, i + 1, h, 0);
      CHECK(c->ours->bound[at] == 0 && c->ours->estimate[at] == 0);
      continue;
    }
    drop(&o, s, &m, c->tokens->q + i * c->tokens->q_row + h * s->config.key_dim, i, h, sinks,
         i - window + 1);
    check_merged(c, compensated ? &o : NULL, i, h);
    if (!compensated && is_plain) check_same(c->ours, c->stream, i, i + 1, h, 0);
    /* Jensen: exp is convex in the score, which softcap alone bends. */
    if (is_plain && compensated && !(s->config.softcap > 0) &&
        !(s->heads[g].flags & LATTN_HEAD_VARIANCE)) {
      double all = (double)c->full->lse[at], ours = (double)c->ours->lse[at];
      if (!(o.score <= o.lse + o.error + 2 * o.key_error))
        FAIL("row %" PRId64 ": %.9g > %.9g: not the sign of Jensen's", i, o.score, o.lse);
      /* Integer queries are rounded for the keys that are kept in both: they are the same. */
      if (s->config.key_type < LATTN_I8 &&
          !(ours <= all + o.error + 2 * o.key_error + 8 * REF_U * (2 + fabs(all) + fabs(ours))))
        FAIL("row %" PRId64 ": lse %.9g, of all tokens %.9g", i, ours, all);
    }
    if (s->heads[g].flags & LATTN_HEAD_LOST) check_lost(c, &o, i, h);
    else CHECK(c->ours->bound[at] == 1 && isnan(c->ours->estimate[at]));
  }
  stored_free(&m);
}

static const char *const keys_names[N_KEYS] = {"normal", "equal",   "huge", "opposite",
                                               "tiny",   "outlier", "far"};

static void random_case(uint64_t seed) {
  test_rng rng = rng_seed(seed);
  enum keys kind = rng_chance(&rng, 50) ? KEYS_NORMAL : (enum keys)rng_below(&rng, N_KEYS);
  int is_long = seed % 25 == 3;
  int64_t n = is_long ? 2047 + rng_below(&rng, 3) : rng_range(&rng, 1, 420);
  setup s, other;
  run ours, stream, full;
  token_list t;
  lattn_tensor gate;
  random_setup(&s, &rng, n, is_long);
  check_case("random: seed %" PRIu64 ", %" PRId64 " tokens, %s keys of %d, dims %d %d%s%s%s", seed,
             n, keys_names[kind], (int)s.config.key_type, (int)s.config.key_dim,
             (int)s.config.value_dim, s.config.rotary ? ", rotary" : "",
             s.config.alibi_slopes ? ", ALiBi" : "", s.config.softcap > 0 ? ", softcap" : "");
  stream_new(&t, &s, n, kind, &rng);
  run_open(&ours, &s, n, 1);
  sibling_setup(&other, &s, 1);
  run_open(&stream, &other, n, 1);
  sibling_setup(&other, &s, 0);
  run_open(&full, &other, n, 1);
  int64_t heads = setup_heads(&s);
  float *gates = (float *)ref_memory(n * heads, sizeof *gates);
  for (int64_t i = 0; i < n * heads; i++) gates[i] = rng_uniform(&rng);
  gate = tensor_of(gates, LATTN_F32, n, heads, 1);
  if (rng_chance(&rng, 15)) ours.gate = &gate;
  for (int64_t end = n / 2; end <= n; end += (n + 1) / 2) {
    run_to(&ours, &t, end, &rng);
    check_again(&ours, &t, &rng);
  }
  run_to(&ours, &t, n, &rng);
  run_to(&stream, &t, n, &rng);
  run_to(&full, &t, n, NULL);
  checked c = {&ours, &stream, &full, &t, 0, 9};
  for (int64_t h = 0; h < heads; h++)
    check_head(&c, h, 0, s.heads[h / (heads / s.config.n_kv_heads)].window);
  run_close(&ours);
  run_close(&stream);
  run_close(&full);
  tokens_free(&t);
  free(gates);
}

static void test_random(void) {
  for (uint64_t i = 0; i < (uint64_t)test_count(70); i++) random_case(test_first_seed() + 5000 + i);
}

/* ---- heads.md 3.7, by name ---- */

/* One KV head, compensated. */
static void small_setup(setup *s, int32_t dk, int32_t dv, int64_t sinks, int64_t window,
                        int32_t flags, int64_t capacity) {
  setup_init(s, 2, 1, dk, dv, capacity);
  setup_stream(s, 0, sinks, window, 0, 0);
  setup_compensate(s, 0, flags);
}

/* All dropped keys equal, and all dropped values: full attention, to rounding. A compensated row is
   off by what check_merged allows, its score by (dk + 5) u |q| |k| / sqrt(dk); the full one by as
   much in each key's score, and (n / 128 + 128 / 16 + 20) u of the sums and 2 (128 + n / 128) u of
   the values (ref.h), which lie within 4. The bound on what was lost is then what was lost: the box
   that holds all keys is that key; 2^-9 are the library's for what its own sums round. */
static void test_equal_keys(void) {
  enum { N = 700, DK = 20, DV = 7 };
  setup s, other;
  run ours, full;
  token_list t;
  test_rng rng = rng_seed(11);
  check_case("all dropped keys and values equal: full attention, and a bound that is tight");
  small_setup(&s, DK, DV, 3, 40, LATTN_HEAD_LOST, N);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  for (int64_t i = 4; i < N - 39; i++) {
    memcpy(t.k + i * t.k_row, t.k + 3 * t.k_row, DK * sizeof *t.k);
    memcpy(t.v + i * t.v_row, t.v + 3 * t.v_row, DV * sizeof *t.v);
  }
  run_open(&ours, &s, N, 1);
  sibling_setup(&other, &s, 0);
  run_open(&full, &other, N, 1);
  run_to(&ours, &t, N, &rng);
  run_to(&full, &t, N, NULL);
  for (int64_t i = 0; i < N; i++)
    for (int64_t h = 0, at = 2 * i; h < 2; h++, at++) {
      double all = (double)full.lse[at], length = 0, key = 0, e;
      for (int64_t d = 0; d < DK; d++) {
        double a = (double)t.q[at * DK + d], b = (double)t.k[3 * DK + d];
        length += a * a;
        key += b * b;
      }
      e = REF_U * (2 * (DK + 5) * sqrt(fmax(key, 60) * length / DK) + 200 + 8 * fabs(all));
      check_close((double)ours.lse[at], all, e, "lse", i, h);
      for (int64_t d = 0; d < DV; d++)
        check_close((double)ours.out[at * DV + d], (double)full.out[at * DV + d],
                    2 * 4 * (e + 300 * REF_U), "out", i, h);
      if (i < 43) continue;
      /* The share of n keys of that score. */
      double score = 0, lost;
      for (int64_t d = 0; d < DK; d++)
        score += (double)t.q[at * DK + d] * (double)t.k[3 * DK + d] / sqrt(DK);
      lost = exp(score + log((double)(i - 42)) - all);
      if (!((double)ours.bound[at] >= lost * (1 - 4 * e)) ||
          !((double)ours.bound[at] <= lost * (1 + 4 * e + 0x1p-9)))
        FAIL("row %" PRId64 ": bound %.9g of %.9g", i, (double)ours.bound[at], lost);
      check_close((double)ours.estimate[at], lost, lost * 4 * e + 0x1p-126, "estimate", i, h);
    }
  run_close(&ours);
  run_close(&full);
  tokens_free(&t);
}

/* A mean of equal numbers: sums of doubles of floats are exact here (2048 of 24 bits), and so is
   the mean to u; the row's sums and weights round as in ref.h, (128 + 8 + 16 + 12) u. */
static void test_constant_values(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(12);
  check_case("constant values: constant output");
  small_setup(&s, 8, 5, 4, 100, LATTN_HEAD_VARIANCE, 2049);
  stream_new(&t, &s, 2049, KEYS_NORMAL, &rng);
  for (int64_t i = 0; i < 2049 * t.v_row; i++) t.v[i] = 1.0f / (float)(3 + i % t.v_row);
  run_open(&r, &s, 2049, 1);
  run_to(&r, &t, 2049, &rng);
  for (int64_t i = 0; i < 2049 * 2 * 5; i++)
    check_close((double)r.out[i], (double)t.v[i % 5], 180 * REF_U * (double)t.v[i % 5], "out",
                i / 10, i / 5 % 2);
  run_close(&r);
  tokens_free(&t);
}

/* A million tokens of a window of 1, whose keys and values have a large mean and drift: the last
   rows have the mean that a sum with a running error term (Neumaier's) has. With q = 1 and dk = 1
   the score of the mean key is the mean. The library's sum of n doubles is off by n 2^-53 of the
   sum of sizes: 1e-10 of them. */
static void test_sums(void) {
  int64_t n = test_count(1000000) + 3000, at = 0;
  float k[1000], v[1000], q[1000], out[1000], lse[1000], bound[1000];
  double sum_k = 0, sum_v = 0, low_k = 0, low_v = 0, last_k = 0, last_v = 0;
  lattn_call call = {.size = sizeof call, .lost_bound = bound};
  test_rng rng = rng_seed(13);
  setup s;
  run r;
  check_case("sums of %" PRId64 " evictions", n);
  setup_init(&s, 1, 1, 1, 1, 0);
  setup_stream(&s, 0, 0, 1, 0, 0);
  setup_compensate(&s, 0, LATTN_HEAD_LOST);
  run_open(&r, &s, 1, 1);
  for (; at < n; at += 1000)
    for (int64_t i = 0; i < 1000; i++) {
      double x, y, a = last_k, b = last_v;
      k[i] = 8 + rng_normal(&rng) + (float)at * 1e-6f;
      v[i] = (at + i) % 3 ? 1e-3f * rng_normal(&rng) : 100 + rng_normal(&rng);
      q[i] = 1;
      last_k = (double)k[i];
      last_v = (double)v[i];
      x = sum_k + a, y = sum_v + b;
      low_k += fabs(sum_k) >= fabs(a) ? (sum_k - x) + a : (a - x) + sum_k;
      low_v += fabs(sum_v) >= fabs(b) ? (sum_v - y) + b : (b - y) + sum_v;
      sum_k = x, sum_v = y;
      if (i < 999) continue;
      if (at + 1000 < n && at % 100000) { /* most are only appended: a tenth of the time */
        for (int part = 0; part < 1000; part += 500)
          CHECK_STATUS(lattn_cache_append(r.cache, tensor_of(k + part, LATTN_F32, 500, 1, 1),
                                          tensor_of(v + part, LATTN_F32, 500, 1, 1), NULL),
                       LATTN_OK);
        continue;
      }
      CHECK_STATUS(lattn_cache_extend(r.cache, &call, tensor_of(q, LATTN_F32, 1000, 1, 1),
                                      tensor_of(k, LATTN_F32, 1000, 1, 1),
                                      tensor_of(v, LATTN_F32, 1000, 1, 1),
                                      tensor_of(out, LATTN_F32, 1000, 1, 1), lse, NULL),
                   LATTN_OK);
    }
  /* The last row: one key of its own, n - 1 in the mean. */
  double count = (double)(at - 1), mean = (sum_k + low_k) / count, score = mean + log(count);
  double w = share(score, last_k), value = (sum_v + low_v) / count;
  double e = REF_U * (6 * mean + 8 * fabs(score) + 16);
  check_close((double)lse[999], score + log1p(exp(last_k - score)), e, "lse", at - 1, 0);
  check_close((double)out[999], w * value + (1 - w) * last_v,
              e * w * (1 - w) * fabs(value - last_v) + 6 * REF_U * fabs(value), "out", at - 1, 0);
  CHECK(bound[999] >= (float)w && bound[999] <= 1);
  r.n = at;
  check_bytes(&r);
  run_close(&r);
}

/* What row i of each of 2 heads no longer sees, tokens from ... end - 1, as a part of one row: the
   score + ln n, and the mean value. */
static void mean_part(float *score, float *value, const setup *s, const stored *m,
                      const token_list *t, int64_t i, int64_t from, int64_t end) {
  int64_t dk = s->config.key_dim, dv = setup_value_dim(s);
  for (int64_t h = 0; h < 2; h++) {
    dropped d;
    drop(&d, s, m, t->q + i * t->q_row + h * dk, i, h, from, end);
    score[h] = (float)d.score;
    for (int64_t x = 0; x < dv; x++) value[h * dv + x] = (float)d.value[x];
  }
}

/* Partials of a compensated cache hold the mean key; of two caches that split the query's work they
   merge as any. The same sums as the sibling's, with the mean key: lattn_merge of the sibling's
   partial with (score + ln n, 1, mean value) as a foreign part gives the row, to what check_merged
   allows; a partial alone, finished by lattn_merge, gives its bits. */
static void test_partials(void) {
  enum { N = 300, DK = 16, DV = 9 };
  setup s, other;
  run ours, stream, full;
  token_list t;
  test_rng rng = rng_seed(14);
  stored m;
  float maximum[2][2], sum[2][2], output[2][2 * DV], out[2 * DV], lse[2], plain[2 * DV], alone[2];
  lattn_merge_options o = {.size = sizeof o};
  lattn_call call = {.size = sizeof call};
  check_case("partial results");
  small_setup(&s, DK, DV, 4, 70, 0, N);
  setup_sinks(&s);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  run_open(&ours, &s, N, 1);
  sibling_setup(&other, &s, 1);
  run_open(&stream, &other, N, 1);
  sibling_setup(&other, &s, 0);
  run_open(&full, &other, N, 1);
  run_to(&ours, &t, N, &rng);
  run_to(&stream, &t, N, &rng);
  run_to(&full, &t, N, NULL);
  stored_read(&m, &full, 0);
  lattn_partial parts[2];
  memset(parts, 0, sizeof parts);
  for (int i = 0; i < 2; i++) {
    parts[i].size = sizeof parts[i];
    parts[i].n_rows = 2;
    parts[i].value_dim = DV;
    parts[i].maximum = maximum[i];
    parts[i].sum = sum[i];
    parts[i].output = output[i];
  }
  lattn_tensor q = tokens_q(&t, &s, N - 1, 1), to = tensor_of(out, LATTN_F32, 1, 2, DV), none = to;
  none.data = NULL;
  call.partial = &parts[0];
  o.sink_logits = s.sinks;
  CHECK_STATUS(lattn_cache_attend(ours.cache, &call, q, none, NULL, NULL), LATTN_OK);
  CHECK_STATUS(lattn_merge(&o, 1, parts, to, lse, NULL), LATTN_OK);
  for (int i = 0; i < 2; i++) CHECK(same_f32(lse[i], ours.lse[2 * (N - 1) + i]));
  for (int i = 0; i < 2 * DV; i++) CHECK(same_f32(out[i], ours.out[2 * (N - 1) * DV + i]));
  CHECK_STATUS(lattn_cache_attend(stream.cache, &call, q, none, NULL, NULL), LATTN_OK);
  mean_part(alone, plain, &s, &m, &t, N - 1, 4, N - 70);
  CHECK_STATUS(lattn_partial_import(&parts[1], tensor_of(plain, LATTN_F32, 1, 2, DV), alone, 0),
               LATTN_OK);
  CHECK_STATUS(lattn_merge(&o, 2, parts, to, lse, NULL), LATTN_OK);
  for (int h = 0; h < 2; h++) {
    double want = (double)ours.lse[2 * (N - 1) + h], e = REF_U * (2 * DK * 20 / 4 + 64);
    check_close((double)lse[h], want, e, "merged lse", N - 1, h);
    for (int64_t d = 0; d < DV; d++) /* values within 4, so parts' means too */
      check_close((double)out[h * DV + d], (double)ours.out[(2 * (N - 1) + h) * DV + d], 8 * e,
                  "merged out", N - 1, h);
  }
  stored_free(&m);
  run_close(&ours);
  run_close(&stream);
  run_close(&full);
  tokens_free(&t);
}

/* ---- marks ---- */

/* Of a mark at `mark` tokens: rows before it have the bits of full heads, rows after it those of
   heads that streamed from the first token, with the window that the mark gave them. Whatever the
   cuts and threads; the mark comes at any place between calls. */
static void check_mark(const setup *s, int64_t n, int64_t mark, enum keys kind, test_rng *rng) {
  int64_t heads = setup_heads(s), group = heads / s->config.n_kv_heads;
  setup other;
  run ours, full, policy, stream;
  token_list t;
  stream_new(&t, s, n, kind, rng);
  run_open(&ours, s, n, 1);
  run_to(&ours, &t, mark, rng);
  run_mark(&ours, (int)rng_below(rng, 8));
  for (int64_t g = 0; g < s->config.n_kv_heads; g++) {
    lattn_cache_head_stats h = head_stats(ours.cache, g);
    const lattn_head *head = &s->heads[g];
    if (head->policy) CHECK_I64(h.window, setup_window(head, mark));
    /* Nothing is held that the policy has no room for, but the rest of a page. */
    if (head->policy && h.first_token > h.n_sink_tokens)
      CHECK(h.first_token > mark - h.window - head->slack - REF_BLOCK);
  }
  run_to(&ours, &t, n, rng);
  sibling_setup(&other, s, 0);
  other.config.sink_logits = s->config.sink_logits;
  run_open(&full, &other, n, 1);
  run_to(&full, &t, n, NULL);
  setup_copy(&other, s);
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    other.heads[g].window = setup_window(&s->heads[g], mark);
    other.heads[g].mark = 0;
    other.heads[g].window_divisor = 0;
  }
  run_open(&policy, &other, n, 1);
  run_to(&policy, &t, n, rng);
  sibling_setup(&other, &policy.s, 1);
  run_open(&stream, &other, n, 1);
  run_to(&stream, &t, n, rng);
  for (int64_t h = 0; h < heads; h++) {
    if (s->heads[h / group].mark) {
      check_same(&ours, &full, 0, mark, h, 0);
      for (int64_t i = 0; i < mark; i++)
        CHECK(ours.bound[i * heads + h] == 0 && ours.estimate[i * heads + h] == 0);
    }
    check_same(&ours, &policy, s->heads[h / group].mark ? mark : 0, n, h, 1);
  }
  if (!s->config.sink_logits) {
    checked c = {&policy, &stream, &full, &t, 0, 9};
    for (int64_t h = 0; h < heads; h++)
      if (s->heads[h / group].policy) check_head(&c, h, 0, policy.s.heads[h / group].window);
  }
  run_close(&ours);
  run_close(&full);
  run_close(&policy);
  run_close(&stream);
  tokens_free(&t);
}

static void random_marks(setup *s, test_rng *rng) {
  for (int g = 0; g < s->config.n_kv_heads; g++) {
    if (s->heads[g].policy && rng_chance(rng, 80)) {
      s->heads[g].mark = LATTN_PROMPT_END;
      if (rng_chance(rng, 60)) s->heads[g].window_divisor = rng_range(rng, 1, 6);
    } else if (rng_chance(rng, 30)) {
      memset(&s->heads[g], 0, sizeof s->heads[g]);
    }
  }
}

static void test_marks(void) {
  for (uint64_t i = 0; i < (uint64_t)test_count(40); i++) {
    uint64_t seed = test_first_seed() + 9000 + i;
    test_rng rng = rng_seed(seed);
    int64_t n = i % 20 == 4 ? 2049 : rng_range(&rng, 1, 500), mark = rng_range(&rng, 0, n);
    enum keys kind = rng_chance(&rng, 70) ? KEYS_NORMAL : (enum keys)rng_below(&rng, N_KEYS);
    setup s;
    check_case("mark: seed %" PRIu64 ", at %" PRId64 " of %" PRId64, seed, mark, n);
    random_setup(&s, &rng, n, n > 500);
    random_marks(&s, &rng);
    check_mark(&s, n, mark, kind, &rng);
  }
}

/* ---- to and fro: whatever was done, the cache is one that got the same tokens and mark ---- */

/* Ours and a new cache that is given tokens 0 ... ours->n - 1 with a mark (-1: none) after `mark`
   of them answer the next tokens alike, and `extra` of them are taken. */
static void check_new(run *ours, const token_list *t, int64_t mark, int64_t extra, test_rng *rng) {
  run fresh;
  int64_t n = ours->n;
  run_open(&fresh, &ours->s, ours->capacity, 1);
  if (mark >= 0) {
    run_to(&fresh, t, mark, rng);
    run_mark(&fresh, 1);
  }
  run_to(&fresh, t, n, rng);
  run_to(&fresh, t, n + extra, rng);
  run_to(ours, t, n + extra, rng);
  check_same(ours, &fresh, n, n + extra, -1, 1);
  run_close(&fresh);
}

/* Refused, and nothing changed. */
#define CHECK_REFUSED(r, call, status)   \
  do {                                   \
    uint64_t before = saved((r)->cache); \
    CHECK_STATUS(call, status);          \
    CHECK(saved((r)->cache) == before);  \
  } while (0)

/* A full head, a compensated one, and one of each policy that waits for a mark, with all flags. */
static void mixed_setup(setup *s, int64_t capacity, int64_t slack, int32_t marked) {
  setup_init(s, 4, 4, 16, 10, capacity);
  s->config.max_append = 100;
  s->config.max_drafts = 8;
  s->config.key_type = LATTN_F16;
  setup_rotate(s, 1, 0, 16);
  setup_stream(s, 1, 5, 30, slack, 0);
  setup_compensate(s, 1, LATTN_HEAD_LOST);
  setup_stream(s, 2, 4, 20, slack, 0);
  setup_compensate(s, 2, LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE);
  setup_stream(s, 3, 130, 40, slack, 0);
  s->heads[3].flags = LATTN_HEAD_LOST;
  s->heads[2].mark = s->heads[3].mark = marked;
  if (marked) s->heads[2].window_divisor = 10;
}

static lattn_status truncate_all(lattn_cache *cache) { return lattn_cache_truncate(cache, 0); }

static void test_truncate(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(21);
  check_case("truncate: within the slack as if never appended, before the mark evicted");
  mixed_setup(&s, 900, 150, LATTN_PROMPT_END);
  stream_new(&t, &s, 900, KEYS_NORMAL, &rng);
  run_open(&r, &s, 900, 1);
  run_to(&r, &t, 350, &rng);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 290), LATTN_OK); /* before any mark */
  r.n = 290;
  check_new(&r, &t, -1, 110, &rng); /* 400 */
  run_mark(&r, 3);
  check_new(&r, &t, 400, 100, &rng); /* 500 */
  CHECK_STATUS(lattn_cache_truncate(r.cache, 420), LATTN_OK);
  r.n = 420;
  check_new(&r, &t, 400, 60, &rng);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 400), LATTN_OK); /* to the mark: it stays */
  r.n = 400;
  check_new(&r, &t, 400, 20, &rng);
  CHECK_REFUSED(&r, lattn_cache_truncate(r.cache, 399), LATTN_E_EVICTED);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK); /* they stay */
  check_new(&r, &t, 400, 30, &rng);
  run_to(&r, &t, 900, &rng);
  CHECK_REFUSED(&r, lattn_cache_truncate(r.cache, 600), LATTN_E_EVICTED);
  lattn_status (*const forget[2])(lattn_cache *) = {lattn_cache_clear, truncate_all};
  for (int i = 0; i < 2; i++) { /* both forget the mark: nothing is missing of no tokens */
    CHECK_STATUS(forget[i](r.cache), LATTN_OK);
    r.n = 0;
    r.marked = 0;
    check_new(&r, &t, -1, 200, &rng);
    run_mark(&r, 0);
    check_new(&r, &t, 200, 50, &rng);
  }
  run_close(&r);
  tokens_free(&t);
}

/* While all tokens are held, a truncate to before the mark undoes it. */
static void test_undone(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(22);
  check_case("a mark that dropped nothing is undone");
  mixed_setup(&s, 400, 350, LATTN_PROMPT_END);
  stream_new(&t, &s, 400, KEYS_NORMAL, &rng);
  run_open(&r, &s, 400, 1);
  run_to(&r, &t, 200, &rng);
  run_mark(&r, 1);
  check_new(&r, &t, 200, 60, &rng);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 180), LATTN_OK);
  r.n = 180;
  r.marked = 0;
  check_new(&r, &t, -1, 100, &rng); /* full again */
  run_mark(&r, 1);                  /* and again marked, elsewhere: another window */
  CHECK_I64(head_stats(r.cache, 2).window, 28);
  check_new(&r, &t, 280, 60, &rng);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 0), LATTN_OK);
  r.n = 0;
  r.marked = 0;
  run_mark(&r, 1); /* no prompt */
  check_new(&r, &t, 0, 340, &rng);
  CHECK_STATUS(lattn_cache_truncate(r.cache, 0), LATTN_OK); /* to the mark: it stays */
  r.n = 0;
  check_new(&r, &t, 0, 100, &rng);
  CHECK_STATUS(lattn_cache_clear(r.cache), LATTN_OK);
  r.n = 0;
  r.marked = 0;
  check_new(&r, &t, -1, 100, &rng);
  run_close(&r);
  tokens_free(&t);
}

/* Rows before a mark, and rows whose window is not held, are not to be attended with. */
static void test_attend_refused(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(23);
  row_arrays at;
  check_case("attend: rows before the mark are evicted, those after it are not");
  mixed_setup(&s, 600, 300, LATTN_PROMPT_END);
  stream_new(&t, &s, 600, KEYS_NORMAL, &rng);
  run_open(&r, &s, 600, 1);
  run_to(&r, &t, 220, &rng);
  run_mark(&r, 1);
  run_to(&r, &t, 300, &rng);
  for (int64_t back = 70; back <= 90; back++) {
    float before = r.out[(300 - back) * 40];
    rows_at(&at, &r, 300 - back, back);
    CHECK_STATUS(lattn_cache_attend(r.cache, &at.call, tokens_q(&t, &s, 300 - back, back), at.out,
                                    at.lse, NULL),
                 back <= 80 ? LATTN_OK : LATTN_E_EVICTED);
    CHECK(same_f32(before, r.out[(300 - back) * 40]));
  }
  check_new(&r, &t, 220, 100, &rng);
  run_close(&r);
  tokens_free(&t);
}

/* A fork of r with arrays of its own, for `capacity` rows of mixed_setup. */
static void run_fork(run *f, const run *r, int64_t capacity) {
  *f = *r;
  CHECK_STATUS(lattn_cache_fork(&f->cache, r->cache), LATTN_OK);
  f->out = (float *)ref_memory(capacity * 40, sizeof(float));
  f->lse = (float *)ref_memory(capacity * 4, sizeof(float));
  f->bound = (float *)ref_memory(capacity * 4, sizeof(float));
  f->estimate = (float *)ref_memory(capacity * 4, sizeof(float));
}

/* Forks, checkpoints and rollbacks, before and after the mark, also to a fork with other slack. */
static void test_forks(void) {
  enum { N = 700, POINTS = 5 };
  setup s, narrow;
  run r, f, other;
  token_list t;
  test_rng rng = rng_seed(24);
  lattn_checkpoint *points[POINTS] = {NULL};
  static const int64_t at[POINTS] = {150, 260, 260, 330, 530}; /* at last pages are gone */
  lattn_pool_stats empty;
  check_case("fork, checkpoint, rollback");
  mixed_setup(&s, N, 60, LATTN_PROMPT_END);
  mixed_setup(&narrow, N + 90, 0, LATTN_PROMPT_END);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  run_open(&r, &narrow, N, 8);
  lattn_cache *slim = r.cache;
  setup_copy(&r.s, &s);
  r.cache = cache_new(r.pool, &r.s);
  empty = pool_stats(r.pool);
  for (int i = 0; i < POINTS; i++) {
    run_to(&r, &t, at[i], &rng);
    if (i == 2) run_mark(&r, 1);
    CHECK_STATUS(lattn_cache_checkpoint(&points[i], r.cache), LATTN_OK);
  }
  run_fork(&f, &r, N);
  CHECK(saved(f.cache) == saved(r.cache));
  check_new(&f, &t, 260, 100, &rng);
  check_new(&r, &t, 260, 130, &rng);
  check_same(&r, &f, 530, 630, -1, 1);
  CHECK_STATUS(lattn_cache_truncate(f.cache, 600), LATTN_OK);
  f.n = 600;
  check_new(&f, &t, 260, 20, &rng);
  other = f;
  other.cache = slim;
  setup_copy(&other.s, &narrow);
  for (int round = 0; round < 10; round++) {
    int i = (round * 3) % POINTS, mark = i >= 2;
    run *to = round & 1 ? &f : &r;
    if (round >= 5) to = &other;
    CHECK_STATUS(lattn_cache_rollback(to->cache, points[i]), LATTN_OK);
    to->n = at[i];
    to->marked = mark;
    check_new(to, &t, mark ? 260 : -1, 90, &rng);
    if (!mark && round < 7) {
      int64_t n = to->n;
      run_mark(to, 1);
      check_new(to, &t, n, 40, &rng);
    }
  }
  for (int i = 0; i < POINTS; i++) CHECK_STATUS(lattn_checkpoint_release(points[i]), LATTN_OK);
  CHECK_STATUS(lattn_cache_clear(r.cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_clear(slim), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(f.cache), LATTN_OK);
  CHECK_I64(pool_stats(r.pool).free_bytes, empty.free_bytes);
  CHECK_I64(pool_stats(r.pool).n_pages, 0);
  CHECK_STATUS(lattn_cache_release(slim), LATTN_OK);
  free(f.out), free(f.lse), free(f.bound), free(f.estimate);
  run_close(&r);
  tokens_free(&t);
}

/* ---- save and load ---- */

/* f with a bit turned, or cut short, is refused, and leaves the cache as it was. */
static void check_damaged(lattn_cache *cache, memory_file *f, test_rng *rng) {
  uint64_t before = saved(cache);
  for (int damage = 0; damage < (test_is_quick() ? 4 : 24); damage++) {
    size_t at = damage == 0 ? f->n - 1 : (size_t)rng_below(rng, (int64_t)f->n);
    if (damage > 12 && f->n > 900) at = (size_t)rng_below(rng, 900); /* the tables */
    unsigned char old = f->bytes[at];
    f->bytes[at] ^= (unsigned char)(1 << (damage % 8));
    f->at = 0;
    lattn_status got = lattn_cache_load(cache, memory_file_read, f);
    CHECK(got == LATTN_E_FORMAT || got == LATTN_E_CONFIG || got == LATTN_E_IO ||
          got == LATTN_E_FULL);
    CHECK(saved(cache) == before);
    f->bytes[at] = old;
  }
  size_t whole = f->n;
  f->n = (size_t)rng_below(rng, (int64_t)whole);
  f->at = 0;
  CHECK_STATUS(lattn_cache_load(cache, memory_file_read, f), LATTN_E_IO);
  CHECK(saved(cache) == before);
  f->n = whole;
}

/* Caches of other configurations refuse what one saved. */
static void check_other_configs(memory_file *f, test_rng *rng) {
  setup s, other;
  run r, to;
  token_list t;
  check_case("load: another policy, flag, mark or divisor is another config");
  mixed_setup(&s, 300, 10, LATTN_PROMPT_END);
  stream_new(&t, &s, 300, KEYS_NORMAL, rng);
  run_open(&r, &s, 300, 1);
  run_to(&r, &t, 100, rng);
  memory_file_save(f, r.cache);
  for (int kind = 0; kind < 6; kind++) {
    setup_copy(&other, &s);
    lattn_head *h = &other.heads[2];
    if (kind == 0) h->policy = LATTN_HEAD_STREAMING, h->flags = LATTN_HEAD_LOST, h->positions = 1;
    if (kind == 1) h->flags = LATTN_HEAD_VARIANCE;
    if (kind == 2) h->flags = LATTN_HEAD_LOST;
    if (kind == 3) h->mark = 0, h->window_divisor = 0;
    if (kind == 4) h->window_divisor = 11;
    if (kind == 5) h->window = 21;
    run_open(&to, &other, 300, 2);
    run_to(&to, &t, 20, rng);
    f->at = 0;
    CHECK_REFUSED(&to, lattn_cache_load(to.cache, memory_file_read, f), LATTN_E_CONFIG);
    run_close(&to);
  }
  run_close(&r);
  tokens_free(&t);
}

static void test_saved(void) {
  setup s, other;
  run r, to;
  token_list t;
  test_rng rng = rng_seed(25);
  static const int64_t stages[] = {0, 3, 25, 129, 200, -200, 201, 240, 420};
  memory_file f = {NULL, 0, 0, 0}, again = {NULL, 0, 0, 0};
  for (int types = 0; types < 2; types++) {
    int64_t mark = -1;
    mixed_setup(&s, 700, 60, LATTN_PROMPT_END);
    if (types) s.config.key_type = LATTN_I4, s.config.value_type = LATTN_I8;
    if (types) s.config.value_dim = 17;
    stream_new(&t, &s, 700, KEYS_NORMAL, &rng);
    run_open(&r, &s, 700, 1);
    for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) {
      if (stages[i] < 0) run_mark(&r, 1), mark = -stages[i];
      else run_to(&r, &t, stages[i], &rng);
      check_case("save and load%s, at %" PRId64, types ? ", int4" : "", stages[i]);
      setup_copy(&other, &s);
      for (int g = 1; g < 4; g++) other.heads[g].slack = 33 * (int64_t)(i % 3);
      other.config.capacity = 650;
      run_open(&to, &other, 700, 2);
      run_to(&to, &t, 40, &rng); /* it has tokens of its own, and a mark */
      run_mark(&to, 1);
      memory_file_save(&f, r.cache);
      check_damaged(to.cache, &f, &rng);
      f.at = 0;
      CHECK_STATUS(lattn_cache_load(to.cache, memory_file_read, &f), LATTN_OK);
      CHECK(f.at == f.n);
      memory_file_save(&again, to.cache);
      if (other.heads[1].slack >= 60) CHECK(again.n == f.n && !memcmp(again.bytes, f.bytes, f.n));
      to.n = r.n;
      to.marked = mark >= 0;
      check_new(&to, &t, mark, 150, &rng);
      if (mark < 0 && r.n > 0 && i % 2) { /* the mark that it waits for comes after the load */
        run_mark(&to, 1);
        check_new(&to, &t, r.n + 150, 60, &rng);
      }
      run_close(&to);
    }
    check_new(&r, &t, mark, 30, &rng); /* saving changed nothing */
    run_close(&r);
    tokens_free(&t);
  }
  check_other_configs(&f, &rng);
  free(f.bytes);
  free(again.bytes);
}

/* ---- drafts, batches ---- */

/* Tokens from ... from + n - 1 of b become tokens at ... of a. */
static void tokens_copy(token_list *a, int64_t at, const token_list *b, int64_t from, int64_t n) {
  int64_t q = b->q_row, k = b->k_row, v = b->v_row;
  memcpy(a->q + at * q, b->q + from * q, (size_t)(n * q) * sizeof *b->q);
  memcpy(a->k + at * k, b->k + from * k, (size_t)(n * k) * sizeof *b->k);
  memcpy(a->v + at * v, b->v + from * v, (size_t)(n * v) * sizeof *b->v);
}

/* Drafts have the rows of plain decode, and leave the cache as they found it until accepted. */
static void test_drafts(void) {
  static const int32_t parents[6] = {-1, 0, 1, 0, 3, 4}, path[4] = {0, 3, 4, 5};
  enum { N = 400 };
  setup s;
  run r, plain;
  token_list t, line;
  test_rng rng = rng_seed(26);
  row_arrays at;
  check_case("drafts");
  mixed_setup(&s, N, 10, LATTN_PROMPT_END);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  line = tokens_new(&s, N);
  tokens_copy(&line, 0, &t, 0, N);
  run_open(&r, &s, N, 1);
  run_open(&plain, &s, N, 1);
  for (int64_t n = 10; n < N - 40; n += n < 40 ? 5 : 61) {
    run_to(&r, &line, n, &rng);
    run_to(&plain, &line, n, &rng);
    if (n > 150 && n < 212) run_mark(&r, 1), run_mark(&plain, 1);
    uint64_t before = saved(r.cache);
    for (int accepts = 0; accepts < 2; accepts++) {
      rows_at(&at, &r, n, 6);
      CHECK_STATUS(
          lattn_cache_draft(r.cache, &at.call, parents, tokens_q(&t, &s, n, 6),
                            tokens_k(&t, &s, n, 6), tokens_v(&t, &s, n, 6), at.out, at.lse, NULL),
          LATTN_OK);
      CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_E_STATE);
      CHECK_STATUS(lattn_cache_accept(r.cache, accepts ? 4 : 0, path), LATTN_OK);
      if (!accepts) CHECK(saved(r.cache) == before);
    }
    for (int i = 0; i < 4; i++) { /* row n + i of the line is draft path[i] */
      int64_t from = n + path[i], to = n + i;
      tokens_copy(&line, to, &t, from, 1);
      memmove(r.out + to * 40, r.out + from * 40, 40 * sizeof(float));
      memmove(r.lse + to * 4, r.lse + from * 4, 4 * sizeof(float));
      memmove(r.bound + to * 4, r.bound + from * 4, 4 * sizeof(float));
      memmove(r.estimate + to * 4, r.estimate + from * 4, 4 * sizeof(float));
    }
    r.n = n + 4;
    run_to(&plain, &line, n + 4, NULL);
    check_same(&r, &plain, n, n + 4, -1, 1);
    CHECK(saved(r.cache) == saved(plain.cache));
  }
  run_to(&r, &line, N, &rng);
  run_to(&plain, &line, N, &rng);
  check_same(&r, &plain, N - 30, N, -1, 1);
  run_close(&r);
  run_close(&plain);
  tokens_free(&t);
  tokens_free(&line);
}

/* Attends with the last rows of n runs, one by one, into joined's arrays. What failed last. */
static lattn_status attend_each(const run *joined, const run *one, const lattn_sequence *sequences,
                                int n, const token_list *t) {
  lattn_status status = LATTN_OK;
  for (int i = 0; i < n; i++) {
    int64_t rows = sequences[i].n_tokens;
    lattn_tensor q = tokens_q(t, &one[i].s, one[i].n - rows, rows);
    lattn_tensor to = tensor_of(joined->out, LATTN_F32, rows, 4, 10);
    lattn_status alone = lattn_cache_attend(one[i].cache, NULL, q, to, NULL, NULL);
    if (alone) status = alone;
  }
  return status;
}

/* How many results of joined are not those of the last rows of n runs. */
static int64_t rows_wrong(const run *joined, const run *one, const lattn_sequence *sequences,
                          int n) {
  int64_t row = 0, wrong = 0;
  for (int i = 0; i < n; i++) {
    int64_t rows = sequences[i].n_tokens, from = one[i].n - rows;
    for (int64_t x = 0; x < rows * 40; x++)
      wrong += !same_f32(joined->out[row * 40 + x], one[i].out[from * 40 + x]);
    for (int64_t x = 0; x < rows * 4; x++) {
      wrong += !same_f32(joined->lse[row * 4 + x], one[i].lse[from * 4 + x]);
      wrong += !same_f32(joined->bound[row * 4 + x], one[i].bound[from * 4 + x]);
      wrong += !same_f32(joined->estimate[row * 4 + x], one[i].estimate[from * 4 + x]);
    }
    row += rows;
  }
  return wrong;
}

static lattn_exec batch_exec(const setup *s, int64_t n, int64_t rows, int32_t n_threads) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = n_threads;
  exec.parallel_for = test_parallel_scrambled;
  exec.scratch_bytes = lattn_batch_scratch(&s->config, n, rows, n_threads);
  exec.scratch = scratch_memory(exec.scratch_bytes);
  return exec;
}

/* Batches of sequences before and behind their marks: the bits of single calls. */
static void test_batches(void) {
  enum { N = 420, MANY = 5 };
  static const int64_t starts[MANY] = {0, 35, 150, 260, 300}, more[MANY] = {40, 1, 3, 1, 90};
  setup s;
  run one[MANY], all[MANY];
  token_list t;
  test_rng rng = rng_seed(27);
  lattn_sequence sequences[MANY];
  check_case("batches");
  mixed_setup(&s, N, 0, LATTN_PROMPT_END);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  token_list inputs = tokens_new(&s, 200);
  row_arrays at;
  for (int i = 0; i < MANY; i++) {
    run_open(&one[i], &s, N, 1);
    run_open(&all[i], &s, N, 1);
    run_to(&one[i], &t, starts[i], &rng);
    run_to(&all[i], &t, starts[i], &rng);
    if (i % 2) run_mark(&one[i], 1), run_mark(&all[i], 1);
  }
  run joined; /* only its arrays are used */
  run_open(&joined, &s, 200, 1);
  for (int round = 0; round < 3; round++) {
    int64_t rows = 0;
    for (int i = 0; i < MANY; i++) {
      int64_t n = more[(i + round) % MANY], from = one[i].n;
      if (n > N - from) n = N - from;
      run_to(&one[i], &t, from + n, NULL);
      sequences[i].cache = all[i].cache;
      sequences[i].n_tokens = n;
      sequences[i].parents = NULL;
      tokens_copy(&inputs, rows, &t, from, n);
      rows += n;
    }
    lattn_exec exec = batch_exec(&s, MANY, rows, round ? 3 : 1);
    rows_at(&at, &joined, 0, rows);
    for (int again = 0; again < 2; again++) { /* extend, then attend: the same rows */
      lattn_status attended = again ? attend_each(&joined, one, sequences, MANY, &t) : LATTN_OK;
      lattn_status got =
          again ? lattn_batch_attend(MANY, sequences, &at.call, tokens_q(&inputs, &s, 0, rows),
                                     at.out, at.lse, &exec)
                : lattn_batch_extend(MANY, sequences, &at.call, tokens_q(&inputs, &s, 0, rows),
                                     tokens_k(&inputs, &s, 0, rows), tokens_v(&inputs, &s, 0, rows),
                                     at.out, at.lse, round == 2 ? NULL : &exec);
      CHECK_STATUS(got, attended);
      CHECK_I64(got ? 0 : rows_wrong(&joined, one, sequences, MANY), 0);
    }
  }
  for (int i = 0; i < MANY; i++) {
    all[i].n = one[i].n;
    CHECK(saved(all[i].cache) == saved(one[i].cache));
    run_close(&one[i]);
    run_close(&all[i]);
  }
  run_close(&joined);
  tokens_free(&t);
  tokens_free(&inputs);
}

/* ---- weights, and what is refused ---- */

/* p of all held keys sums to 1 less the share of the mean key; each is exp(s - lse), off by what
   lse_low leaves (nothing) and its own exp and score: 4u + (dk + 4) u |s| sizes, summed. */
static void test_weights(void) {
  enum { N = 330, DK = 12, DV = 6 };
  setup s, other;
  run r, full;
  token_list t;
  test_rng rng = rng_seed(28);
  stored m;
  static float p[2 * N], lse[N * 2], low[N * 2], out[N * 2 * DV];
  check_case("weights: what the mean key takes is missing from their sum");
  small_setup(&s, DK, DV, 3, 50, 0, N);
  stream_new(&t, &s, N, KEYS_NORMAL, &rng);
  run_open(&r, &s, N, 1);
  sibling_setup(&other, &s, 0);
  run_open(&full, &other, N, 1);
  run_to(&full, &t, N, NULL);
  stored_read(&m, &full, 0);
  for (int64_t n = 40; n <= N; n += 29) {
    lattn_call call = {.size = sizeof call, .lse_low = low};
    lattn_weights w = {.size = sizeof w, .weights = p, .lse = lse, .lse_low = low};
    run_to(&r, &t, n, &rng);
    lattn_tensor q = tokens_q(&t, &s, n - 1, 1), to = tensor_of(out, LATTN_F32, 1, 2, DV);
    CHECK_STATUS(lattn_cache_attend(r.cache, &call, q, to, lse, NULL), LATTN_OK);
    CHECK_STATUS(lattn_cache_weights(r.cache, &call, q, &w, NULL), LATTN_OK);
    for (int64_t h = 0; h < 2; h++) {
      double sum = 0, mean = 0;
      for (int64_t j = 0; j < n; j++) {
        int seen = j < 3 || j > n - 1 - 50;
        sum += (double)p[h * n + j];
        if (!seen) CHECK(p[h * n + j] == 0);
      }
      if (n > 53) {
        dropped d;
        drop(&d, &s, &m, t.q + (n - 1) * t.q_row + h * DK, n - 1, h, 3, n - 50);
        mean = exp(d.score - (double)lse[h] - (double)low[h]);
      }
      check_close(sum, 1 - mean, REF_U * (16 * 20 + 64), "sum", n - 1, h);
    }
  }
  stored_free(&m);
  run_close(&r);
  run_close(&full);
  tokens_free(&t);
}

static float bias_data[400];

static void score_add(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                      int64_t first_key, float scores[16]) {
  (void)user, (void)sequence, (void)row, (void)query, (void)head;
  for (int i = 0; i < 16; i++) scores[i] += (float)((first_key + i) % 3);
}

/* Biases and callbacks reach the kept keys alone: the mean key keeps its weight. Their sibling has
   the same biases. The bound is then 1. */
static void test_biases(void) {
  enum { N = 300 };
  setup s, other;
  run r, stream, full;
  token_list t;
  test_rng rng = rng_seed(29);
  for (int kind = 0; kind < 3; kind++) {
    lattn_tensor bias = tensor_of(bias_data, LATTN_F32, kind == 1 ? N : 1, 1, N);
    lattn_tensor wide = bias;
    float *pairs = (float *)ref_memory(N * N, sizeof *pairs);
    check_case("biases, kind %d: not for the mean key, and no bound", kind);
    small_setup(&s, 16, 4, 2, 33, LATTN_HEAD_LOST, N);
    stream_new(&t, &s, N, KEYS_NORMAL, &rng);
    for (int i = 0; i < N; i++) bias_data[i] = rng_normal(&rng);
    for (int i = 0; i < N * N; i++) pairs[i] = rng_normal(&rng);
    if (kind == 1) wide.data = pairs;
    run_open(&r, &s, N, 1);
    sibling_setup(&other, &s, 1);
    run_open(&stream, &other, N, 1);
    sibling_setup(&other, &s, 0);
    run_open(&full, &other, N, 1);
    run_to(&full, &t, N, NULL);
    for (int which = 0; which < 2; which++) {
      run *to = which ? &stream : &r;
      row_arrays at;
      rows_at(&at, to, 0, N);
      if (kind == 0) at.call.key_bias = &bias;
      if (kind == 1) at.call.pair_bias = &wide;
      if (kind == 2) at.call.score = score_add;
      CHECK_STATUS(
          lattn_cache_extend(to->cache, &at.call, tokens_q(&t, &s, 0, N), tokens_k(&t, &s, 0, N),
                             tokens_v(&t, &s, 0, N), at.out, at.lse, NULL),
          LATTN_OK);
      to->n = N;
    }
    checked c = {&r, &stream, &full, &t, 0, 9};
    stored m;
    stored_read(&m, &full, 0);
    for (int64_t i = 0; i < N; i++)
      for (int64_t h = 0; h < 2; h++) {
        dropped d;
        int drops = i - 33 >= 2;
        if (drops) drop(&d, &s, &m, t.q + i * t.q_row + h * 16, i, h, 2, i - 32);
        check_merged(&c, drops ? &d : NULL, i, h);
        CHECK(r.bound[i * 2 + h] == (drops ? 1 : 0));
      }
    stored_free(&m);
    run_close(&r);
    run_close(&stream);
    run_close(&full);
    tokens_free(&t);
    free(pairs);
  }
}

static void test_refused(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(30);
  lattn_cache *cache = NULL;
  check_case("what is refused");
  mixed_setup(&s, 300, 0, 0);
  run_open(&r, &s, 300, 2);
  s.heads[1].positions = LATTN_POSITIONS_IN_CACHE;
  CHECK_STATUS(lattn_cache_init(&cache, r.pool, &s.config), LATTN_E_CONFIG);
  CHECK_I64((int64_t)lattn_cache_bytes(&s.config), 0);
  s.heads[1].positions = LATTN_POSITIONS_ABSOLUTE;
  setup_sigmoid(&s, 0);
  CHECK_STATUS(lattn_cache_init(&cache, r.pool, &s.config), LATTN_E_CONFIG);
  s.config.weighting = LATTN_SOFTMAX;
  CHECK_STATUS(lattn_cache_init(&cache, r.pool, &s.config), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  stream_new(&t, &s, 300, KEYS_NORMAL, &rng);
  run_to(&r, &t, 250, &rng);
  CHECK_REFUSED(&r, lattn_cache_remove(r.cache, 235, 240), LATTN_E_CONFIG);
  CHECK_REFUSED(&r, lattn_cache_mark(r.cache, 0, NULL), LATTN_E_FIELD);
  CHECK_REFUSED(&r, lattn_cache_mark(r.cache, 2, NULL), LATTN_E_FIELD);
  CHECK_STATUS(lattn_cache_mark(NULL, LATTN_PROMPT_END, NULL), LATTN_E_NULL);
  uint64_t before = saved(r.cache);
  CHECK_STATUS(lattn_cache_mark(r.cache, LATTN_PROMPT_END, NULL), LATTN_OK); /* nobody waits */
  (void)before;
  check_new(&r, &t, -1, 50, &rng);
  run_close(&r);
  tokens_free(&t);
  /* Each reason alone: compensated, tells what it lost, has a mark. */
  for (int kind = 0; kind < 4; kind++) {
    setup_init(&s, 1, 1, 4, 4, 100);
    setup_stream(&s, 0, 0, 30, 0, 0);
    if (kind == 1) setup_compensate(&s, 0, 0);
    if (kind == 2) s.heads[0].flags = LATTN_HEAD_LOST;
    if (kind == 3) s.heads[0].mark = LATTN_PROMPT_END;
    stream_new(&t, &s, 20, KEYS_NORMAL, &rng);
    run_open(&r, &s, 100, 1);
    run_to(&r, &t, 20, &rng);
    CHECK_STATUS(lattn_cache_remove(r.cache, 3, 6), kind ? LATTN_E_CONFIG : LATTN_OK);
    if (kind) CHECK_STATUS(lattn_cache_remove(r.cache, 15, 20), LATTN_OK); /* a truncate */
    run_close(&r);
    tokens_free(&t);
  }
}

/* Sizes: a compensated head takes no more than a streaming one and its sums; fit agrees with
   itself, and a pool of lattn_pool_bytes holds what it says (every run_open does that). */
static void test_sizes(void) {
  setup s, plain;
  const lattn_cache_config *configs[1] = {&s.config};
  check_case("sizes");
  for (int marked = 0; marked < 2; marked++) {
    mixed_setup(&s, 5000, 64, marked ? LATTN_PROMPT_END : 0);
    for (int64_t n = 100; n <= 5000; n = n * 3 + 7) {
      size_t bytes = lattn_fit_bytes(1, configs, n);
      int64_t most = lattn_fit_tokens(1, configs, bytes);
      CHECK(bytes > 0 && most >= n);
      CHECK(lattn_fit_bytes(1, configs, most) <= bytes);
      CHECK(lattn_fit_tokens(1, configs, bytes - 1) < most || most > n);
      s.config.capacity = n;
      CHECK(lattn_pool_bytes(NULL, &s.config, 1) <= bytes);
      CHECK(lattn_cache_bytes(&s.config) <= lattn_pool_bytes(NULL, &s.config, 1));
    }
  }
  setup_init(&s, 1, 1, 64, 64, 0);
  setup_stream(&s, 0, 4, 1000, 0, 0);
  setup_copy(&plain, &s);
  setup_compensate(&s, 0, LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE);
  CHECK_I64(lattn_fit_tokens(1, configs, lattn_cache_bytes(&s.config) * 2), INT64_MAX);
  /* Twice: sums of keys, squares and values in double, and 2 * 20 bytes a dim of key for bounds. */
  CHECK(lattn_cache_bytes(&s.config) <=
        lattn_cache_bytes(&plain.config) + 2 * 64 * (8 + 8 + 8) + 2 * 20 * 64 + 2048);
}

/* The arena at another place, its old bytes destroyed: offsets, not pointers. */
static void test_moved(void) {
  setup s;
  run r;
  token_list t;
  test_rng rng = rng_seed(31);
  lattn_checkpoint *point = NULL;
  check_case("an arena that moves");
  mixed_setup(&s, 500, 0, LATTN_PROMPT_END);
  stream_new(&t, &s, 500, KEYS_NORMAL, &rng);
  run_open(&r, &s, 500, 3);
  for (int64_t n = 60; n <= 420; n += 60) {
    run_to(&r, &t, n, &rng);
    if (n == 240) run_mark(&r, 1);
    if (n == 180) CHECK_STATUS(lattn_cache_checkpoint(&point, r.cache), LATTN_OK);
    char *old = r.arena, *to = (char *)ref_memory((int64_t)r.arena_bytes + 128, 1), *base = to;
    to += (size_t)((uintptr_t)old - (uintptr_t)to) % 64;
    memcpy(to, old, r.arena_bytes);
    r.pool = (lattn_pool *)(void *)(to + ((char *)(void *)r.pool - old));
    r.cache = (lattn_cache *)(void *)(to + ((char *)(void *)r.cache - old));
    if (point) point = (lattn_checkpoint *)(void *)(to + ((char *)(void *)point - old));
    memset(old, 0xff, r.arena_bytes);
    check_new(&r, &t, n < 240 ? -1 : 240, 30, &rng);
    if (n == 420) CHECK_STATUS(lattn_cache_rollback(r.cache, point), LATTN_OK);
    if (n == 420) r.n = 180, r.marked = 0, check_new(&r, &t, -1, 30, &rng);
    /* Back to where it was, so that it can be freed. */
    memcpy(old, to, r.arena_bytes);
    r.pool = (lattn_pool *)(void *)(old + ((char *)(void *)r.pool - to));
    r.cache = (lattn_cache *)(void *)(old + ((char *)(void *)r.cache - to));
    if (point) point = (lattn_checkpoint *)(void *)(old + ((char *)(void *)point - to));
    free(base);
  }
  CHECK_STATUS(lattn_checkpoint_release(point), LATTN_OK);
  run_close(&r);
  tokens_free(&t);
}

/* A NaN or an infinity among the dropped is in their mean, for ever: rows before it are untouched,
   rows that see it directly or in the mean show it. Of dim 0 of the value alone: that dim only. */
static void test_not_finite(void) {
  enum { N = 300, AT = 100, W = 40 };
  static const float bad[3] = {NAN, INFINITY, -INFINITY};
  for (int kind = 0; kind < 6; kind++) {
    setup s;
    run r, clean;
    token_list t;
    test_rng rng = rng_seed(32);
    check_case("%s of %f", kind < 3 ? "key" : "value", (double)bad[kind % 3]);
    small_setup(&s, 8, 5, 4, W, LATTN_HEAD_LOST, N);
    stream_new(&t, &s, N, KEYS_NORMAL, &rng);
    run_open(&clean, &s, N, 1);
    run_to(&clean, &t, N, &rng);
    if (kind < 3) t.k[AT * 8 + 3] = bad[kind];
    else t.v[AT * 5] = bad[kind - 3];
    run_open(&r, &s, N, 1);
    run_to(&r, &t, N, &rng);
    check_same(&r, &clean, 0, AT, -1, 1);
    for (int64_t i = AT; i < N; i++)
      for (int64_t h = 0; h < 2; h++) {
        const float *o = r.out + (i * 2 + h) * 5, *was = clean.out + (i * 2 + h) * 5;
        float lse = r.lse[i * 2 + h];
        if (kind >= 3) { /* its weight is not 0, so neither is it in the sum */
          CHECK(kind == 3 ? isnan(o[0]) : isinf(o[0]) || isnan(o[0]) || i >= AT + W);
          for (int d = 1; d < 5; d++) CHECK(same_f32(o[d], was[d]));
          CHECK(same_f32(lse, clean.lse[i * 2 + h]));
          CHECK(same_f32(r.bound[i * 2 + h], clean.bound[i * 2 + h]));
        } else if (kind == 0) {
          CHECK(isnan(lse) && isnan(o[0]) && isnan(o[4]));
        }
        /* Nothing tells how much such a key would have taken. */
        if (kind < 3 && i >= AT + W) CHECK(r.bound[i * 2 + h] == 1);
      }
    run_close(&r);
    run_close(&clean);
    tokens_free(&t);
  }
}

int main(void) {
  test_random();
  test_equal_keys();
  test_constant_values();
  test_sums();
  test_partials();
  test_marks();
  test_truncate();
  test_undone();
  test_attend_refused();
  test_forks();
  test_saved();
  test_drafts();
  test_batches();
  test_weights();
  test_biases();
  test_refused();
  test_sizes();
  test_moved();
  test_not_finite();
  return test_summary();
}
