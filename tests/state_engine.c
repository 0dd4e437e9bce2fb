/* state_engine.c - states as an engine uses them: the same bits for any cut of the tokens, any
 * threads and scratch, absorbed or advanced, alone or in a batch, drafted and committed, copied,
 * moved, saved and loaded; merges to rounding.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SEED=n in the environment runs that one random case. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

#include "ref_state.h"
#include "state_cases.h"

enum { N_CASES = 260, N_MERGES = 80, N_BATCHES = 50 };

/* ---- a file in memory ---- */

typedef struct stream {
  unsigned char *data;
  size_t n, room, at;
  int64_t n_calls, fail_at; /* the call of that number fails (0 = none) */
} stream;

static int32_t stream_write(void *user, const void *data, size_t bytes) {
  stream *f = (stream *)user;
  if (++f->n_calls == f->fail_at) return 7;
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
  if (++f->n_calls == f->fail_at || bytes > f->n - f->at) return 1;
  memcpy(data, f->data + f->at, bytes);
  f->at += bytes;
  return 0;
}

static stream saved_of(const lattn_state *state) {
  stream f = {NULL, 0, 0, 0, 0, 0};
  uint64_t bytes = 0;
  CHECK_STATUS(lattn_state_save(state, stream_write, &f, &bytes), LATTN_OK);
  CHECK_I64((int64_t)bytes, (int64_t)f.n);
  return f;
}

static int same_files(const stream *a, const stream *b) {
  return a->n == b->n && !memcmp(a->data, b->data, a->n);
}

/* ---- a case, and what one call of all its tokens gives ---- */

typedef struct engine {
  state_case c;
  int64_t row; /* numbers of a row of out */
  float *want; /* out of one call */
  float *got;  /* of other ways */
  stream file; /* the state after all tokens, saved */
  test_rng rng;
} engine;

static int draw_exec(engine *e) {
  int kind = (int)rng_below(&e->rng, STATE_EXECS);
  return kind == STATE_NONE && !state_small(&e->c.config) ? STATE_ONE : kind;
}

/* Tokens first ... first + n - 1; to NULL: absorbed. drafts: as drafts. */
static lattn_status engine_call(engine *e, lattn_state *state, int64_t first, int64_t n, float *to,
                                int drafts, int kind) {
  state_part part;
  state_exec x;
  lattn_status status;
  lattn_tensor out = tensor_of(to ? to + first * e->row : NULL, LATTN_F32, n, e->c.config.n_heads,
                               state_value_dim(&e->c));
  const lattn_exec *exec = state_exec_open(&x, &e->c.config, n, kind);
  state_part_of(&part, &e->c, first, n);
  if (drafts) status = lattn_state_draft(state, &part.call, part.q, part.k, part.v, out, exec);
  else status = lattn_state_advance(state, &part.call, part.q, part.k, part.v, out, exec);
  state_exec_close(&x);
  return status;
}

static void engine_run(engine *e, lattn_state *state, int64_t first, int64_t n, float *to) {
  CHECK_STATUS(engine_call(e, state, first, n, to, 0, draw_exec(e)), LATTN_OK);
}

/* In pieces of 1 ... 7 tokens. */
static void engine_cuts(engine *e, lattn_state *state, int64_t first, int64_t end, float *to,
                        int absorbs) {
  while (first < end) {
    int64_t n = rng_range(&e->rng, 1, 7);
    if (n > end - first) n = end - first;
    engine_run(e, state, first, n, absorbs && rng_chance(&e->rng, 40) ? NULL : to);
    first += n;
  }
}

static void engine_open(engine *e, uint64_t seed, int32_t kind, int64_t n) {
  state_box b;
  memset(e, 0, sizeof *e);
  state_case_make(&e->c, seed, kind, n);
  check_case("%s", e->c.name);
  e->rng = rng_seed(seed + 31);
  e->row = e->c.config.n_heads * state_value_dim(&e->c);
  e->want = (float *)ref_memory(e->c.n * e->row, sizeof(float));
  e->got = (float *)ref_memory(e->c.n * e->row, sizeof(float));
  b = state_open(&e->c);
  CHECK_STATUS(engine_call(e, b.state, 0, e->c.n, e->want, 0, STATE_ONE), LATTN_OK);
  e->file = saved_of(b.state);
  box_close(&b);
}

static void engine_close(engine *e) {
  free(e->want), free(e->got), free(e->file.data);
  state_case_free(&e->c);
}

/* Rows first ... of got are those of want, and the state saves the same bytes. state NULL: rows
   only. */
static void engine_same(engine *e, const char *what, const lattn_state *state, int64_t first) {
  int64_t n = e->c.n * e->row, differ = 0, at = -1;
  for (int64_t i = first * e->row; i < n; i++)
    if (!same_f32(e->got[i], e->want[i])) {
      if (at < 0) at = i;
      differ++;
    }
  if (differ)
    FAIL("%s: %" PRId64 " of %" PRId64 " numbers differ, the first in token %" PRId64
         ": %.9g, not %.9g",
         what, differ, n - first * e->row, at / e->row, (double)e->got[at], (double)e->want[at]);
  if (state) {
    stream f = saved_of(state);
    if (!same_files(&f, &e->file)) FAIL("%s: the saved state differs", what);
    free(f.data);
  }
  for (int64_t i = 0; i < n; i++) e->got[i] = -77;
}

/* ---- cuts, threads, scratch, absorbing ---- */

static void check_cuts(engine *e) {
  state_box b = state_open(&e->c);
  for (int kind = 0; kind < STATE_EXECS; kind++) {
    if (kind == STATE_NONE && !state_small(&e->c.config)) continue;
    if (kind == STATE_ONE) continue;
    CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
    state_set_weights(&e->c, b.state);
    CHECK_STATUS(engine_call(e, b.state, 0, e->c.n, e->got, 0, kind), LATTN_OK);
    engine_same(e,
                kind == STATE_NONE  ? "no exec"
                : kind == STATE_TWO ? "2 threads"
                                    : "3 threads",
                b.state, 0);
  }
  CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
  state_set_weights(&e->c, b.state);
  engine_cuts(e, b.state, 0, e->c.n, e->got, 0);
  engine_same(e, "random cuts", b.state, 0);
  CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
  state_set_weights(&e->c, b.state);
  if (e->c.n > 1) {
    int64_t cut = rng_range(&e->rng, 1, e->c.n - 1);
    engine_cuts(e, b.state, 0, cut, e->got, 1);
    engine_run(e, b.state, cut, e->c.n - cut, e->got);
    engine_same(e, "absorbed, then advanced", b.state, cut);
  }
  CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
  state_set_weights(&e->c, b.state);
  engine_run(e, b.state, 0, e->c.n, NULL);
  engine_run(e, b.state, e->c.n, 0, e->got); /* no tokens: nothing */
  engine_same(e, "all absorbed", b.state, e->c.n);
  box_close(&b);
}

/* Scratch of a smaller call, or of none: the same bits, or refused and nothing changed. */
static void check_scratch(engine *e) {
  state_box b = state_open(&e->c);
  size_t enough = lattn_state_scratch(&e->c.config, e->c.n, 2), bytes[4], before = b.guard.bytes;
  bytes[0] = lattn_state_scratch(&e->c.config, 1, 2), bytes[1] = enough - 1, bytes[2] = 1;
  bytes[3] = enough / 2;
  for (int i = 0; i < 4; i++) {
    state_part part;
    lattn_exec exec;
    lattn_status status;
    test_guard scratch = guard_alloc_at(bytes[i], 1, 1);
    unsigned char *copy = (unsigned char *)ref_memory((int64_t)before, 1);
    lattn_tensor out =
        tensor_of(e->got, LATTN_F32, e->c.n, e->c.config.n_heads, state_value_dim(&e->c));
    CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
    state_set_weights(&e->c, b.state);
    memcpy(copy, b.guard.data, before);
    memset(&exec, 0, sizeof exec);
    exec.size = sizeof exec;
    exec.n_threads = 2;
    exec.scratch = scratch.data, exec.scratch_bytes = bytes[i];
    state_part_of(&part, &e->c, 0, e->c.n);
    status = lattn_state_advance(b.state, &part.call, part.q, part.k, part.v, out, &exec);
    if (status == LATTN_OK) {
      engine_same(e, "less scratch", b.state, 0);
    } else {
      CHECK_STATUS(status, LATTN_E_SCRATCH);
      CHECK(!memcmp(copy, b.guard.data, before));
      for (int64_t x = 0; x < e->c.n * e->row; x++) CHECK(e->got[x] == -77);
    }
    if (!guard_free(&scratch)) FAIL("something was written beside scratch");
    free(copy);
  }
  box_close(&b);
}

/* float32 copies of 16-bit and strided inputs; f32 is what they are widened to. */
static void check_types(engine *e) {
  state_part part;
  state_box b = state_open(&e->c);
  lattn_tensor *all[10];
  int n = 0;
  state_part_of(&part, &e->c, 0, e->c.n);
  all[n++] = &part.q, all[n++] = &part.k, all[n++] = &part.v;
  if (part.call.decay) all[n++] = &part.decay;
  if (part.call.beta) all[n++] = &part.beta;
  if (part.call.predict) all[n++] = &part.predict, all[n++] = &part.write;
  if (part.call.rate) all[n++] = &part.rate;
  if (part.call.momentum) all[n++] = &part.momentum;
  if (part.call.forget) all[n++] = &part.forget;
  for (int i = 0; i < n; i++) {
    float *x = ref_copy(all[i], 0);
    *all[i] = tensor_of(x, LATTN_F32, all[i]->n_tokens, all[i]->n_heads, all[i]->dim);
  }
  {
    state_exec x;
    const lattn_exec *exec = state_exec_open(&x, &e->c.config, e->c.n, STATE_ONE);
    CHECK_STATUS(lattn_state_advance(b.state, &part.call, part.q, part.k, part.v,
                                     tensor_of(e->got, LATTN_F32, e->c.n, e->c.config.n_heads,
                                               state_value_dim(&e->c)),
                                     exec),
                 LATTN_OK);
    state_exec_close(&x);
  }
  engine_same(e, "contiguous float32", b.state, 0);
  for (int i = 0; i < n; i++) free(test_writable(all[i]->data));
  box_close(&b);
}

/* ---- drafts ---- */

static int64_t n_drafts_of(const lattn_state *state) {
  lattn_state_stats s;
  memset(&s, 0, sizeof s);
  s.size = sizeof s;
  CHECK_STATUS(lattn_state_stats_get(state, &s), LATTN_OK);
  return s.n_drafts;
}

/* Drafts in several calls; some are committed, the rest are drafted anew. */
static void check_drafts(engine *e) {
  state_box b = state_open(&e->c);
  int64_t at = 0, most = e->c.config.max_drafts;
  if (!most) {
    CHECK_STATUS(engine_call(e, b.state, 0, 1, e->got, 1, STATE_ONE), LATTN_E_SHAPE);
    box_close(&b);
    return;
  }
  while (at < e->c.n) {
    int64_t pending = 0, n, keep;
    if (rng_chance(&e->rng, 30)) { /* some as they are */
      n = rng_range(&e->rng, 1, 7);
      if (n > e->c.n - at) n = e->c.n - at;
      engine_run(e, b.state, at, n, e->got);
      at += n;
      continue;
    }
    do {
      n = rng_range(&e->rng, 1, most - pending);
      if (n > e->c.n - at - pending) n = e->c.n - at - pending;
      if (!n) break;
      CHECK_STATUS(engine_call(e, b.state, at + pending, n, e->got, 1, draw_exec(e)), LATTN_OK);
      pending += n;
      CHECK_I64(n_drafts_of(b.state), pending);
    } while (pending < most && rng_chance(&e->rng, 60));
    if (most - pending < e->c.n) /* one too many */
      CHECK_STATUS(engine_call(e, b.state, 0, most - pending + 1, NULL, 1, STATE_ONE),
                   LATTN_E_SHAPE);
    CHECK_STATUS(lattn_state_commit(b.state, -1), LATTN_E_SHAPE);
    CHECK_STATUS(lattn_state_commit(b.state, (int32_t)pending + 1), LATTN_E_SHAPE);
    CHECK_STATUS(engine_call(e, b.state, 0, 1, NULL, 0, STATE_ONE), LATTN_E_STATE);
    keep = rng_below(&e->rng, pending + 1); /* 0: all are dropped */
    CHECK_STATUS(lattn_state_commit(b.state, (int32_t)keep), LATTN_OK);
    CHECK_I64(n_drafts_of(b.state), 0);
    at += keep;
  }
  engine_same(e, "drafts", b.state, 0);
  box_close(&b);
}

/* ---- copies, moves, files ---- */

static void check_copies(engine *e) {
  state_box b = state_open(&e->c), snapshot = state_open(&e->c);
  int64_t cut = rng_below(&e->rng, e->c.n + 1), n = e->c.n - cut;
  int64_t wrong = n < 5 ? n : 5;
  engine_cuts(e, b.state, 0, cut, e->got, 0);
  CHECK_STATUS(lattn_state_copy(snapshot.state, b.state), LATTN_OK);
  engine_cuts(e, b.state, e->c.n - wrong, e->c.n, e->got, 1); /* diverges */
  if (e->c.config.max_drafts && n)
    CHECK_STATUS(engine_call(e, b.state, cut, 1, e->got, 1, STATE_ONE), LATTN_OK);
  CHECK_STATUS(lattn_state_copy(b.state, snapshot.state), LATTN_OK);
  engine_cuts(e, b.state, cut, e->c.n, e->got, 0);
  engine_same(e, "copied, diverged, copied back", b.state, 0);
  if (e->c.config.max_drafts && n) { /* a copy has the drafts too */
    int64_t d = n < e->c.config.max_drafts ? n : e->c.config.max_drafts;
    CHECK_STATUS(lattn_state_copy(b.state, snapshot.state), LATTN_OK);
    CHECK_STATUS(engine_call(e, b.state, cut, d, e->got, 1, draw_exec(e)), LATTN_OK);
    CHECK_STATUS(lattn_state_copy(snapshot.state, b.state), LATTN_OK);
    CHECK_STATUS(lattn_state_commit(snapshot.state, (int32_t)d), LATTN_OK);
    engine_cuts(e, snapshot.state, cut + d, e->c.n, e->got, 0);
    engine_same(e, "a copy's drafts", snapshot.state, cut);
  }
  box_close(&b), box_close(&snapshot);
}

/* The state's memory goes elsewhere, by a multiple of 64 bytes, in the middle. */
static void check_moves(engine *e) {
  state_box b = state_open(&e->c);
  int64_t cut = rng_below(&e->rng, e->c.n + 1);
  size_t bytes = b.guard.bytes, offset = (size_t)((uintptr_t)b.guard.data & 63);
  size_t into = (size_t)((char *)b.state - b.guard.data);
  test_guard other = guard_alloc(bytes + 64, 0);
  char *to = other.data + (offset + 64 - ((uintptr_t)other.data & 63)) % 64;
  lattn_state *moved = (lattn_state *)(void *)(to + into);
  engine_cuts(e, b.state, 0, cut, e->got, 0);
  memcpy(to, b.guard.data, bytes);
  memset(b.guard.data, 0xee, bytes);
  engine_cuts(e, moved, cut, e->c.n, e->got, 0);
  engine_same(e, "moved", moved, 0);
  guard_free(&other);
  box_close(&b);
}

static void check_files(engine *e) {
  state_box b = state_open(&e->c), other;
  int32_t drafts = e->c.config.max_drafts;
  int64_t cut = rng_below(&e->rng, e->c.n + 1);
  stream f;
  engine_cuts(e, b.state, 0, cut, e->got, 0);
  f = saved_of(b.state);
  e->c.config.max_drafts = 16 - drafts; /* the only thing that may differ; scratch depends on it */
  other = box_open(&e->c.config);
  CHECK_STATUS(lattn_state_load(other.state, stream_read, &f), LATTN_OK);
  CHECK_I64((int64_t)f.at, (int64_t)f.n);
  engine_cuts(e, other.state, cut, e->c.n, e->got, 0);
  engine_same(e, "saved and loaded", other.state, 0);
  e->c.config.max_drafts = drafts;
  free(f.data);
  box_close(&other);
  box_close(&b);
}

/* A damaged or short file, and failing calls: refused, and the state is empty. */
static void check_damage(engine *e) {
  state_box b = state_open(&e->c);
  stream f = e->file, none = {NULL, 0, 0, 0, 0, 0};
  uint64_t bytes = 0;
  int64_t calls;
  CHECK_STATUS(lattn_state_save(b.state, NULL, NULL, &bytes), LATTN_OK);
  none = saved_of(b.state);
  CHECK_I64((int64_t)bytes, (int64_t)none.n);
  for (int i = 0; i < 6; i++) {
    size_t at = (size_t)rng_below(&e->rng, (int64_t)f.n);
    unsigned char bit = (unsigned char)(1u << rng_below(&e->rng, 8));
    lattn_status status;
    stream now;
    CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
    f.data[at] ^= bit;
    f.at = 0, f.n_calls = 0;
    status = lattn_state_load(b.state, stream_read, &f);
    f.data[at] ^= bit;
    if (status != LATTN_E_FORMAT && status != LATTN_E_CONFIG && status != LATTN_E_IO)
      FAIL("bit flipped at %d of %d: status %d", (int)at, (int)f.n, (int)status);
    CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
    if (e->c.config.kind != LATTN_STATE_TITANS) {
      now = saved_of(b.state);
      CHECK(same_files(&now, &none));
      free(now.data);
    }
  }
  f.at = 0, f.n_calls = 0;
  f.n -= 1 + (size_t)rng_below(&e->rng, 40);
  CHECK_STATUS(lattn_state_load(b.state, stream_read, &f), LATTN_E_IO);
  f.n = e->file.n;
  f.at = 0, f.n_calls = 0;
  CHECK_STATUS(lattn_state_load(b.state, stream_read, &f), LATTN_OK);
  calls = f.n_calls;
  if (e->c.n) CHECK_STATUS(lattn_state_load(b.state, stream_read, &f), LATTN_E_STATE);
  engine_same(e, "loaded after failures", b.state, e->c.n);
  for (int64_t i = 1; i <= calls && i < 8; i++) {
    CHECK_STATUS(lattn_state_clear(b.state), LATTN_OK);
    f.at = 0, f.n_calls = 0, f.fail_at = i;
    CHECK_STATUS(lattn_state_load(b.state, stream_read, &f), LATTN_E_IO);
  }
  f.fail_at = 0;
  free(none.data);
  box_close(&b);
}

/* The denominator may be near 0: signed features, or a bonus. */
static int may_vanish(const lattn_state_config *o) {
  return o->normaliser && (o->reads || o->feature == LATTN_FEATURE_IDENTITY ||
                           o->feature == LATTN_FEATURE_SILU || o->feature == LATTN_FEATURE_CALLER);
}

/* Rows first ... of got are near those of want. (Each number is a sum over features of an error of
   some u of S, which a sum of the tokens levels at sqrt(n) u or a contraction at a few u.) */
static void near_rows(engine *e, int64_t first) {
  double most = 0;
  for (int64_t i = first * e->row; i < e->c.n * e->row; i++)
    if (isfinite(e->want[i])) most = fmax(most, fabs((double)e->want[i]));
  for (int64_t i = first * e->row; i < e->c.n * e->row; i++)
    CHECK(fabs((double)e->got[i] - (double)e->want[i]) <= 1e-5 * most);
  for (int64_t i = 0; i < e->c.n * e->row; i++) e->got[i] = -77;
}

/* What lattn_state_get gives, lattn_state_set takes: the stream goes on, to rounding. */
static void check_matrices(engine *e) {
  const lattn_state_config *o = &e->c.config;
  state_box a = state_open(&e->c), b = state_open(&e->c);
  int64_t cut = rng_below(&e->rng, e->c.n + 1), dv = state_value_dim(&e->c);
  int64_t m = e->c.features, S = e->c.states;
  float *x = (float *)ref_memory(S * m * dv, sizeof *x);
  float *z = (float *)ref_memory(S * m, sizeof *z);
  lattn_tensor t = tensor_of(x, LATTN_F32, m, S, dv), u = tensor_of(z, LATTN_F32, 1, S, m);
  lattn_tensor turned = tensor_of(x, LATTN_F32, dv, S, m);
  int transposed = (int)rng_below(&e->rng, 2);
  engine_cuts(e, a.state, 0, cut, e->got, 0);
  if (transposed) t = turned;
  CHECK_STATUS(lattn_state_get(a.state, LATTN_MATRIX_STATE, transposed, t), LATTN_OK);
  CHECK_STATUS(lattn_state_set(b.state, LATTN_MATRIX_STATE, transposed, t), LATTN_OK);
  if (o->normaliser) {
    CHECK_STATUS(lattn_state_get(a.state, LATTN_MATRIX_NORMALISER, 0, u), LATTN_OK);
    CHECK_STATUS(lattn_state_set(b.state, LATTN_MATRIX_NORMALISER, 0, u), LATTN_OK);
  } else {
    CHECK_STATUS(lattn_state_get(a.state, LATTN_MATRIX_NORMALISER, 0, u), LATTN_E_CONFIG);
  }
  if (!(o->flags & LATTN_STATE_COMPENSATED) && !may_vanish(o)) {
    engine_cuts(e, b.state, cut, e->c.n, e->got, 0);
    near_rows(e, cut);
  }
  free(x), free(z);
  box_close(&a), box_close(&b);
}

/* ---- batches: several sequences of one config in one call ---- */

static void check_batch(uint64_t seed) {
  enum { MOST = 4 };
  engine e;
  state_box alone[MOST], together[MOST];
  lattn_state_sequence sequences[MOST];
  int n = 0;
  engine_open(&e, seed, -1, 0);
  check_case("batch of %s", e.c.name);
  for (int64_t at = 0; n < MOST; n++) {
    int64_t left = e.c.n - at, tokens = n == MOST - 1 ? left : rng_below(&e.rng, left + 1);
    alone[n] = state_open(&e.c), together[n] = state_open(&e.c);
    sequences[n].state = together[n].state, sequences[n].n_tokens = tokens;
    engine_run(&e, alone[n].state, 0, n < e.c.n ? n : e.c.n, NULL); /* 0 ... 3 tokens before */
    CHECK_STATUS(lattn_state_copy(together[n].state, alone[n].state), LATTN_OK);
    engine_run(&e, alone[n].state, at, tokens, e.want);
    at += tokens;
  }
  for (int kind = 0; kind < STATE_EXECS; kind++) {
    state_part part;
    state_exec x;
    const lattn_exec *exec;
    if (kind == STATE_NONE && !state_small(&e.c.config)) continue;
    for (int i = 0; i < MOST; i++) {
      CHECK_STATUS(lattn_state_clear(together[i].state), LATTN_OK);
      state_set_weights(&e.c, together[i].state);
      engine_run(&e, together[i].state, 0, i < e.c.n ? i : e.c.n, NULL);
    }
    exec = state_exec_open(&x, &e.c.config, e.c.n, kind);
    state_part_of(&part, &e.c, 0, e.c.n);
    CHECK_STATUS(
        lattn_batch_advance(
            MOST, sequences, &part.call, part.q, part.k, part.v,
            tensor_of(e.got, LATTN_F32, e.c.n, e.c.config.n_heads, state_value_dim(&e.c)), exec),
        LATTN_OK);
    state_exec_close(&x);
    engine_same(&e, "a batch", NULL, 0);
    for (int i = 0; i < MOST; i++) {
      stream f = saved_of(alone[i].state), g = saved_of(together[i].state);
      CHECK(same_files(&f, &g));
      free(f.data), free(g.data);
    }
  }
  for (int i = 0; i < MOST; i++) box_close(&alone[i]), box_close(&together[i]);
  engine_close(&e);
}

/* ---- merges ---- */

static double worst_merge;

/* Against the reference of all tokens: its own bound, and that of the later part, decayed. */
static void check_merge(uint64_t seed) {
  engine e;
  int64_t cut, total;
  const lattn_state_config *o = &e.c.config;
  engine_open(&e, seed, seed % 4 ? LATTN_STATE_LINEAR : LATTN_STATE_AAREN, 0);
  cut = rng_below(&e.rng, e.c.n + 1), total = e.row;
  check_case("merge at %d of %s", (int)cut, e.c.name);
  {
    state_box a = state_open(&e.c), b = state_open(&e.c);
    engine_cuts(&e, a.state, 0, cut, e.got, 1);
    engine_cuts(&e, b.state, cut, e.c.n, e.got, 1);
    if (o->delta) {
      CHECK_STATUS(lattn_state_merge(a.state, b.state), LATTN_E_CONFIG);
    } else {
      ref_state r;
      ref_input in = ref_input_of(&e.c.call, &e.c.q, &e.c.k, &e.c.v), last;
      lattn_state_stats stats;
      lattn_state_call call = e.c.call;
      state_part part;
      double *want = ref_doubles(e.c.n * total), *bound = ref_doubles(e.c.n * total);
      memset(&stats, 0, sizeof stats);
      stats.size = sizeof stats;
      CHECK_STATUS(lattn_state_merge(a.state, b.state), LATTN_OK);
      CHECK_STATUS(lattn_state_stats_get(a.state, &stats), LATTN_OK);
      CHECK_I64(stats.n_tokens, e.c.n);
      state_reference(&e.c, &r);
      ref_advance(&r, &in, want, bound);
      state_part_of(&part, &e.c, e.c.n - 1, 1);
      last = ref_input_of(NULL, &part.q, NULL, NULL);
      if (o->kind == LATTN_STATE_LINEAR) ref_read(&r, &last, want, bound);
      else
        memmove(want, want + (e.c.n - 1) * total, (size_t)total * sizeof *want),
            memmove(bound, bound + (e.c.n - 1) * total, (size_t)total * sizeof *bound);
      call.decay = call.beta = call.predict = call.write = NULL;
      CHECK_STATUS(
          lattn_state_read(a.state, call.feature ? &call : NULL, part.q,
                           tensor_of(e.got, LATTN_F32, 1, o->n_heads, state_value_dim(&e.c)), NULL),
          LATTN_OK);
      for (int64_t i = 0; i < total; i++) {
        /* One more sum, and the product of decays: exp of a sum of up to 129, each rounded. */
        double ratio = ref_ratio((double)e.got[i], want[i], 3 * bound[i] + 0x1p-126);
        if (bound[i] >= REF_INFINITY) continue;
        worst_merge = fmax(worst_merge, ratio);
        if (ratio > 1)
          FAIL("dim %d: got %.9g, expected %.9g, %.3g times the bound", (int)i, (double)e.got[i],
               want[i], ratio);
      }
      free(want), free(bound);
      ref_input_free(&in), ref_input_free(&last);
      ref_state_close(&r);
    }
    box_close(&a), box_close(&b);
  }
  engine_close(&e);
}

/* Aaren, cut at a segment: to the bit. Flow and Titans cannot. */
static void merge_at_segments(void) {
  engine e;
  state_box a, b;
  check_case("Aaren merges to the bit at 2048 tokens");
  engine_open(&e, 5, LATTN_STATE_AAREN, 3000);
  a = state_open(&e.c), b = state_open(&e.c);
  engine_run(&e, a.state, 0, 2048, NULL);
  engine_run(&e, b.state, 2048, e.c.n - 2048, NULL);
  CHECK_STATUS(lattn_state_merge(a.state, b.state), LATTN_OK);
  engine_same(&e, "a merge", a.state, e.c.n);
  box_close(&a), box_close(&b);
  engine_close(&e);
  for (int32_t kind = LATTN_STATE_FLOW; kind <= LATTN_STATE_TITANS; kind += 2) {
    check_case("kind %d does not merge", (int)kind);
    engine_open(&e, 5, kind, 4);
    a = state_open(&e.c), b = state_open(&e.c);
    CHECK_STATUS(lattn_state_merge(a.state, b.state), LATTN_E_CONFIG);
    box_close(&a), box_close(&b);
    engine_close(&e);
  }
}

/* ---- long calls: beyond whatever is blocked ---- */

static void long_cuts(uint64_t seed) {
  engine e;
  state_box b;
  engine_open(&e, seed, -1, 1500);
  check_case("1500 tokens: %s", e.c.name);
  b = state_open(&e.c);
  for (int64_t at = 0; at < e.c.n;) {
    int64_t n = rng_range(&e.rng, 1, 300);
    if (n > e.c.n - at) n = e.c.n - at;
    engine_run(&e, b.state, at, n, e.got);
    at += n;
  }
  engine_same(&e, "long cuts", b.state, 0);
  box_close(&b);
  engine_close(&e);
}

/* ---- progress ---- */

typedef struct progress {
  int64_t calls, stop_at, last;
  int wrong;
} progress;

static int32_t on_progress(void *user, int64_t done, int64_t total) {
  progress *p = (progress *)user;
  if (done < p->last || done > total) p->wrong = 1;
  p->last = done;
  return ++p->calls == p->stop_at;
}

/* Cancelled where it likes: the state has *tokens_done more tokens, and goes on from there. Ranges
   are of some 2^31 multiply-adds: one row, repeated, absorbed. */
static void cancelled(void) {
  enum { TOKENS = 12000, H = 8, D = 128 };
  static float row[H * D];
  lattn_state_config c;
  lattn_tensor t = tensor_of(row, LATTN_F32, TOKENS, H, D), none = t;
  state_box a, b;
  lattn_exec exec;
  progress p = {0, 1, 0, 0};
  int64_t done = -1;
  test_rng r = rng_seed(1);
  stream f, g;
  check_case("cancelled and continued");
  for (int i = 0; i < H * D; i++) row[i] = rng_normal(&r);
  memset(&c, 0, sizeof c);
  memset(&exec, 0, sizeof exec);
  c.size = sizeof c, c.n_heads = H, c.key_dim = D, c.feature = LATTN_FEATURE_ELU1;
  t.stride_token = LATTN_BROADCAST;
  t.stride_head = D;
  none.data = NULL;
  exec.size = sizeof exec;
  exec.progress = on_progress, exec.user = &p, exec.tokens_done = &done;
  a = box_open(&c), b = box_open(&c);
  CHECK_STATUS(lattn_state_advance(a.state, NULL, t, t, t, none, NULL), LATTN_OK);
  CHECK_STATUS(lattn_state_advance(b.state, NULL, t, t, t, none, &exec), LATTN_CANCELLED);
  CHECK(done > 0 && done < TOKENS && !p.wrong && p.calls == 1);
  if (done > 0 && done < TOKENS) {
    t.n_tokens = none.n_tokens = TOKENS - done;
    CHECK_STATUS(lattn_state_advance(b.state, NULL, t, t, t, none, NULL), LATTN_OK);
  }
  f = saved_of(a.state), g = saved_of(b.state);
  CHECK(same_files(&f, &g));
  free(f.data), free(g.data);
  box_close(&a), box_close(&b);
}

static void run_case(uint64_t seed) {
  engine e;
  engine_open(&e, seed, -1, 0);
  check_cuts(&e);
  check_drafts(&e);
  check_copies(&e);
  check_files(&e);
  if (seed % 3 == 0) check_scratch(&e);
  if (seed % 3 == 1) check_types(&e);
  if (seed % 3 == 2) check_moves(&e);
  if (seed % 4 == 0) check_damage(&e);
  if (e.c.config.kind == LATTN_STATE_LINEAR) check_matrices(&e);
  engine_close(&e);
}

int main(void) {
  const char *seed = getenv("SEED");
  uint64_t half = strcmp(lattn_simd_name(), "avx2") == 0; /* levels share the seeds */
  if (seed) {
    run_case(strtoull(seed, NULL, 10));
    return test_summary();
  }
  for (uint64_t i = 0; i < (uint64_t)test_count(N_CASES); i++) run_case(half * N_CASES + i + 1000);
  for (uint64_t i = 0; i < (uint64_t)test_count(N_BATCHES); i++)
    check_batch(half * N_BATCHES + i + 3000);
  for (uint64_t i = 0; i < (uint64_t)test_count(N_MERGES); i++)
    check_merge(half * N_MERGES + i + 4000);
  merge_at_segments();
  for (uint64_t i = 0; i < (uint64_t)test_count(10); i++) long_cuts(i + 6000);
  if (!test_is_quick() && strcmp(lattn_simd_name(), "scalar")) cancelled();
  printf("state_engine %s: merges, worst error / bound %.3f\n", lattn_simd_name(), worst_merge);
  return test_summary();
}
