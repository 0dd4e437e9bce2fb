/* scan.c - see scan.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "needle.h"
#include "recorder.h"

enum { SEED = 5, LENGTHS = 2, PIECE = 1024 };

static const int64_t needle_lengths[LENGTHS] = {384, 768};

/* ---- profiles that watch a session ---- */

enum { MOST_PROFILES = 4 };

enum gates_kind { PLAIN, PROJECTED, OVER_STREAM };

typedef struct watched {
  lattn_profile *profile;
  void *memory;
  int32_t scores;
  int gates; /* enum gates_kind */
} watched;

typedef struct watcher {
  const demo_input *in;
  llama_session *session;
  recorder past; /* keys and values of all tokens so far */
  watched profiles[MOST_PROFILES];
  int32_t n_profiles;
  lattn_observed what; /* what the tokens are */
  int64_t first_row;   /* gates: rows at positions from there on */
  float *projections;  /* [n_layers][dim][n_heads * head_dim] */
  void *scratch;
  size_t scratch_bytes;
  lattn_status status;
} watcher;

static lattn_attn causal(void) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.size = sizeof a;
  a.mask = LATTN_CAUSAL; /* the last row is the newest token */
  return a;
}

static lattn_exec exec_of_watcher(const watcher *w) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = w->in->n_threads;
  exec.parallel_for = lattn_parallel_openmp;
  exec.scratch = w->scratch;
  exec.scratch_bytes = w->scratch_bytes;
  return exec;
}

/* Shows a block to one profile: its queries, and all keys and values so far. */
static lattn_status show(const watcher *w, const watched *to, const llama_block *own,
                         const int64_t *rows, int64_t n_rows) {
  const llama_model *m = &w->in->model;
  llama_block all = recorder_read(&w->past, own->layer, 0, own->position + own->q.n_tokens);
  lattn_attn options = causal();
  lattn_exec exec = exec_of_watcher(w);
  lattn_observed seen = w->what;
  seen.size = sizeof seen;
  seen.layer = own->layer;
  seen.scores = n_rows ? to->scores : to->scores & ~(LATTN_PROFILE_GATES | LATTN_PROFILE_LOST);
  seen.lse = own->lse;
  seen.n_rows = n_rows;
  seen.rows = rows;
  if (to->gates != PLAIN) seen.projection = w->projections + (int64_t)own->layer * m->dim * m->dim;
  if (to->gates == OVER_STREAM) seen.residual = &own->stream;
  if (!seen.scores) return LATTN_OK;
  return lattn_profile_observe(to->profile, &seen, &options, own->q, all.k, all.v, &exec);
}

/* The engine calls it after each block of each layer. */
static void watch(void *user, const llama_block *block) {
  watcher *w = (watcher *)user;
  int64_t rows[LLAMA_BLOCK], n_rows = 0;
  recorder_observe(&w->past, block);
  if (!w->status) w->status = w->past.status;
  for (int64_t i = 0; i < block->q.n_tokens; i++)
    if (block->position + i >= w->first_row) rows[n_rows++] = i;
  for (int32_t i = 0; i < w->n_profiles && !w->status; i++) {
    llama_block own = recorder_read(&w->past, block->layer, block->position, block->q.n_tokens);
    w->status = show(w, &w->profiles[i], &own, rows, n_rows);
  }
}

/* The output projections of all layers, row by row. */
static int unpack_projections(watcher *w) {
  const llama_model *m = &w->in->model;
  int64_t each = (int64_t)m->dim * m->dim;
  w->projections = (float *)malloc((size_t)(m->n_layers * each) * sizeof(float));
  for (int32_t l = 0; w->projections && l < m->n_layers; l++)
    llama_unpack(&m->layers[l].out, w->projections + l * each);
  return w->projections ? 0 : -1;
}

/* 0, or -1; to be closed in any case. */
static int watcher_open(watcher *w, const demo_input *in) {
  llama_options options = {NULL, PIECE, LATTN_F32, in->n_threads, NULL, NULL};
  lattn_attn of_call = causal();
  char error[LLAMA_ERROR];
  memset(w, 0, sizeof *w);
  w->in = in;
  if (recorder_open(&w->past, &in->model, PIECE) || unpack_projections(w)) return -1;
  llama_block b = recorder_read(&w->past, 0, 0, PIECE);
  w->scratch_bytes = lattn_attention_scratch(&of_call, b.q, b.k, b.v, in->n_threads);
  w->scratch = malloc(w->scratch_bytes + 1);
  w->session = llama_session_open(&in->model, &options, error);
  if (w->session) llama_observe(w->session, watch, w);
  return w->scratch && w->session ? 0 : -1;
}

static void drop_profiles(watcher *w) {
  for (int32_t i = 0; i < w->n_profiles; i++) free(w->profiles[i].memory);
  w->n_profiles = 0;
}

static void watcher_close(watcher *w) {
  drop_profiles(w);
  llama_session_close(w->session);
  recorder_close(&w->past);
  free(w->scratch);
  free(w->projections);
}

/* A profile more, which compares with the demo's streaming heads. NULL: not enough memory. */
static lattn_profile *add_profile(watcher *w, int32_t scores, int gates, int64_t columns) {
  const llama_model *m = &w->in->model;
  watched *to = &w->profiles[w->n_profiles];
  lattn_profile_config c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.scores = scores;
  c.n_layers = m->n_layers;
  c.n_heads = m->n_heads;
  c.n_kv_heads = m->n_kv_heads;
  c.value_dim = m->head_dim;
  c.model_dim = gates != PLAIN ? m->dim : 0;
  c.columns = columns;
  c.sinks = DEMO_SINKS;
  c.window = DEMO_WINDOW;
  size_t bytes = lattn_profile_bytes(&c);
  to->memory = malloc(bytes + 1);
  to->scores = scores;
  to->gates = gates;
  if (!to->memory) return NULL;
  w->n_profiles++;
  return lattn_profile_init(&to->profile, to->memory, bytes, &c) ? NULL : to->profile;
}

/* Reads n tokens into an empty session, watched; logits gets those of the last n_logits. */
static int read_watched(watcher *w, const int32_t *tokens, int64_t n, int64_t n_logits,
                        float *logits) {
  w->status = llama_truncate(w->session, 0);
  if (w->status) return -1;
  lattn_status status = llama_extend(w->session, tokens, n, n_logits, logits);
  return status || w->status ? -1 : 0;
}

/* ---- tables ---- */

static int empty_table(head_table *t, const llama_model *m, int32_t n_heads) {
  t->n_layers = m->n_layers;
  t->n_kv_heads = n_heads;
  t->gates = (double *)calloc((size_t)m->n_layers * (size_t)n_heads, sizeof(double));
  return t->gates ? 0 : -1;
}

/* A table of KV heads or of query heads. */
static int report(const watcher *w, const lattn_profile *p, int32_t table, head_table *to) {
  const llama_model *m = &w->in->model;
  int32_t n_heads = table == LATTN_TABLE_GATE_LOSS ? m->n_kv_heads : m->n_heads;
  if (empty_table(to, m, n_heads)) return -1;
  return lattn_profile_report(p, table, (int64_t)m->n_layers * n_heads, to->gates) ? -1 : 0;
}

/* Q, and DuoAttention's gates from it. */
static int report_gates(const watcher *w, const lattn_profile *p, head_table *gates, double **q) {
  const llama_model *m = &w->in->model;
  int64_t n = (int64_t)m->n_layers * m->n_kv_heads * m->n_kv_heads;
  lattn_gates options;
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.method = LATTN_GATES_PENALTY;
  options.lambda = 0.05;
  *q = (double *)calloc((size_t)n, sizeof(double));
  if (empty_table(gates, m, m->n_kv_heads) || !*q) return -1;
  if (lattn_profile_report(p, LATTN_TABLE_GATES, n, *q)) return -1;
  return lattn_gates_solve(&options, m->n_layers, m->n_kv_heads, *q, gates->gates) ? -1 : 0;
}

/* ---- needles ---- */

/* The profile of one prompt alone: its retrieval scores are a sample more. */
static int put_sample(const watcher *w, scan *s, lattn_profile *one) {
  head_table scores;
  int bad = report(w, one, LATTN_TABLE_RETRIEVAL, &scores);
  for (int32_t h = 0; h < s->samples.n_layers * s->samples.n_heads && !bad; h++)
    s->samples.scores[h * s->n_prompts + s->samples.n_samples] = scores.gates[h];
  s->samples.n_samples += !bad;
  free(scores.gates);
  return bad;
}

/* A prompt has all letters but the last. Only prompts after which the model says all of them count:
   it would then have said the same token by token. */
static int read_needle(watcher *w, scan *s, const needle_case *c, int depth) {
  static float logits[NEEDLE_ASKED * 256];
  int32_t tokens[PIECE];
  int64_t letter, n = needle_prompt(c, depth, tokens, &letter);
  tokens[n] = c->phrases[depth][NEEDLE_LETTERS - 1];
  memset(&w->what, 0, sizeof w->what);
  w->what.tokens = tokens;
  w->what.n_tokens = n + 1;
  w->what.first_answer = w->first_row = n - NEEDLE_ASKED;
  w->what.needle_from = letter;
  w->what.needle_to = letter + NEEDLE_ASKED;
  if (read_watched(w, tokens, n, NEEDLE_ASKED, logits)) return -1;
  int right = needle_judge(&w->in->model, c, depth, logits).n_right == NEEDLE_ASKED;
  lattn_profile *one = w->profiles[w->n_profiles - 1].profile;
  for (int32_t i = 0; i < w->n_profiles - 1; i++)
    if (lattn_profile_sample(w->profiles[i].profile, right)) return -1;
  if (right && put_sample(w, s, one)) return -1;
  return lattn_profile_clear(one) ? -1 : 0;
}

/* Closes the gaps that prompts without an answer have left. */
static void pack_samples(head_scores *h, int32_t room) {
  for (int32_t i = 1; i < h->n_layers * h->n_heads; i++)
    memmove(h->scores + (size_t)i * (size_t)h->n_samples, h->scores + (size_t)i * (size_t)room,
            (size_t)h->n_samples * sizeof(double));
}

static int scan_needles(watcher *w, scan *s, int32_t n_cases) {
  const llama_model *m = &w->in->model;
  const int32_t gates = LATTN_PROFILE_GATES | LATTN_PROFILE_LOST;
  uint64_t state = SEED;
  s->n_prompts = n_cases * NEEDLE_DEPTHS;
  s->samples.n_layers = m->n_layers;
  s->samples.n_heads = m->n_heads;
  s->samples.scores =
      (double *)calloc((size_t)(m->n_layers * m->n_heads) * (size_t)s->n_prompts, sizeof(double));
  lattn_profile *plain = add_profile(w, gates | LATTN_PROFILE_RETRIEVAL, PLAIN, 0);
  lattn_profile *projected = add_profile(w, gates, PROJECTED, 0);
  lattn_profile *stream = add_profile(w, gates, OVER_STREAM, 0);
  lattn_profile *one = add_profile(w, LATTN_PROFILE_RETRIEVAL, PLAIN, 0);
  if (!plain || !projected || !stream || !one || !s->samples.scores) return -1;
  for (int32_t i = 0; i < n_cases; i++) {
    needle_case c;
    if (needle_make(&c, w->in->text, w->in->n_bytes, needle_lengths[i % LENGTHS], &state))
      return -1;
    for (int depth = 0; depth < NEEDLE_DEPTHS; depth++)
      if (read_needle(w, s, &c, depth)) return -1;
  }
  if (!s->samples.n_samples) return -1;
  pack_samples(&s->samples, s->n_prompts);
  int bad = report(w, plain, LATTN_TABLE_RETRIEVAL, &s->retrieval) ||
            report(w, plain, LATTN_TABLE_LOST, &s->lost) ||
            report(w, plain, LATTN_TABLE_GATE_LOSS, &s->loss) ||
            report_gates(w, plain, &s->gates, &s->q) ||
            report_gates(w, projected, &s->projected, &s->q_projected) ||
            report_gates(w, stream, &s->stream, &s->q_stream);
  drop_profiles(w);
  return bad ? -1 : 0;
}

/* ---- repeated tokens ---- */

/* The different bytes of the text, in a random order: a byte that the model never read in training
   would say little. */
static int32_t shuffled_bytes(const demo_input *in, int32_t *bytes, uint64_t *state) {
  unsigned char there[256] = {0};
  int32_t n = 0;
  for (int64_t i = 0; i < in->n_bytes; i++) there[(unsigned char)in->text[i]] = 1;
  there[LLAMA_BOS] = 0;
  for (int32_t i = 0; i < 256; i++) {
    if (!there[i]) continue;
    int64_t j = random_below(state, n + 1);
    bytes[n] = bytes[j]; /* j = n: itself, not yet written, and not read again */
    bytes[j] = i;
    n++;
  }
  return n;
}

static int scan_repeated(watcher *w, scan *s, int32_t n_samples) {
  uint64_t state = SEED;
  s->n_repeated = n_samples;
  lattn_profile *p = add_profile(w, LATTN_PROFILE_ECHO, PLAIN, 0);
  if (!p) return -1;
  for (int32_t i = 0; i < n_samples; i++) {
    int32_t tokens[PIECE], bytes[256] = {0};
    int32_t period = shuffled_bytes(w->in, bytes, &state);
    int32_t n = 1 + (PIECE - 1) / period * period;
    tokens[0] = LLAMA_BOS;
    for (int32_t t = 1; t < n; t++) tokens[t] = bytes[(t - 1) % period];
    memset(&w->what, 0, sizeof w->what);
    w->what.period = s->period = period;
    w->what.first = 1;
    if (read_watched(w, tokens, n, 0, NULL) || lattn_profile_sample(p, 1)) return -1;
  }
  int bad = report(w, p, LATTN_TABLE_ECHO, &s->echo) ||
            report(w, p, LATTN_TABLE_INDUCTION, &s->induction);
  drop_profiles(w);
  return bad ? -1 : 0;
}

/* ---- text ---- */

/* Reads the text in pieces of n tokens, at most n_samples of them. */
static int read_all_text(watcher *w, lattn_profile *p, int64_t n, int64_t n_samples) {
  int64_t n_pieces = w->in->n_bytes / (n - 1);
  memset(&w->what, 0, sizeof w->what);
  for (int64_t i = 0; i < n_pieces && i < n_samples; i++) {
    int32_t tokens[PIECE];
    tokens[0] = LLAMA_BOS;
    for (int64_t t = 1; t < n; t++) tokens[t] = (unsigned char)w->in->text[i * (n - 1) + t - 1];
    if (read_watched(w, tokens, n, 0, NULL) || lattn_profile_sample(p, 1)) return -1;
  }
  return 0;
}

static int scan_text(watcher *w, scan *s, int32_t n_samples) {
  const llama_model *m = &w->in->model;
  double shares[SCAN_PAPER];
  lattn_profile *p = add_profile(w, LATTN_PROFILE_SINKS, PLAIN, SCAN_PAPER);
  if (!p || read_all_text(w, p, SCAN_PAPER, 100)) return -1;
  if (lattn_profile_report(p, LATTN_TABLE_SINK_SHARES, SCAN_PAPER, shares)) return -1;
  s->sink_share = shares[0];
  drop_profiles(w);
  p = add_profile(w, LATTN_PROFILE_SINKS, PLAIN, SCAN_COLUMNS);
  if (!p || read_all_text(w, p, PIECE, n_samples) || empty_table(&s->sinks, m, m->n_heads))
    return -1;
  s->sink_at = (int64_t *)calloc((size_t)(m->n_layers * m->n_heads), sizeof *s->sink_at);
  if (!s->sink_at) return -1;
  for (int32_t i = 0; i < m->n_layers * m->n_heads; i++)
    if (lattn_profile_strongest(p, i / m->n_heads, i % m->n_heads, 1, s->sink_at + i,
                                s->sinks.gates + i))
      return -1;
  drop_profiles(w);
  return 0;
}

/* ---- all of it ---- */

int scan_run(scan *s, const demo_input *in, int quick, char error[DEMO_ERROR]) {
  watcher w;
  double start = llama_seconds();
  memset(s, 0, sizeof *s);
  int bad = watcher_open(&w, in) || scan_needles(&w, s, quick ? 2 : 16) ||
            scan_repeated(&w, s, quick ? 1 : 8) || scan_text(&w, s, quick ? 1 : 7);
  if (bad)
    snprintf(error, DEMO_ERROR, "the heads cannot be profiled: %s",
             w.status ? lattn_status_text(w.status) : "not enough memory, or no needle is found");
  watcher_close(&w);
  if (bad) scan_free(s);
  s->seconds = llama_seconds() - start;
  return bad ? -1 : 0;
}

void scan_free(scan *s) {
  head_table *const tables[] = {&s->gates,     &s->projected, &s->stream,    &s->loss, &s->lost,
                                &s->retrieval, &s->echo,      &s->induction, &s->sinks};
  for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) head_table_free(tables[i]);
  head_scores_free(&s->samples);
  free(s->sink_at);
  free(s->q);
  free(s->q_projected);
  free(s->q_stream);
  memset(s, 0, sizeof *s);
}
