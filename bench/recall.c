/* recall.c - what do so many bytes of state remember? Multi-query associative recall without a
 * trained model: tokens have random codes, and a token's code is to bring back what followed it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   recall_proxy: N random unit keys with a random unit value each, written once, all asked for: the
   share for which the nearest of the N values is the right one. The figures to expect were made by
   another program, from as many draws.

   recall: MQAR as Zoology makes it (Arora et al. 2023): pairs of key and value tokens, then the
   keys again, early ones likelier, among random tokens. Each token writes its code as value, under
   the code of the one before as key, and reads with its own as query; the nearest of all tokens'
   value codes is the answer. "again": the pairs come twice; "changed": the second time with other
   values, which count.

   `make recall` takes all sizes, and draws them into build/bench/recall.svg. */
#include "caches.h"
#include "chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUE_DIM = 64, VOCABULARY = 8192, THREADS = 2 };
#define LOGIT 16.0f        /* scale of softmax: of the logit of a key with itself */
#define TAYLOR_LENGTH 8.0f /* of queries and keys */
#define FLOW_LENGTH 16.0f
#define FORGETS -0.005f /* log decay of gated delta: half in 139 tokens */

enum { PLAIN, AGAIN, CHANGED, VARIANTS };
static const char *const variant_names[] = {"plain", "again", "changed"};

/* ---- random numbers and codes ---- */

static uint64_t seed;

static uint64_t draw(void) {
  uint64_t z = seed += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}
static double uniform(void) { return ((double)(draw() >> 11) + 0.5) * 0x1p-53; }
static int32_t below(int32_t n) { return (int32_t)(uniform() * n); }

static double normal(void) {
  double sum = -6;
  for (int i = 0; i < 12; i++) sum += uniform();
  return sum;
}

static void *need(size_t n, size_t bytes) {
  void *p = calloc(n ? n : 1, bytes);
  if (!p) exit(1);
  return p;
}

/* n random directions of that length. */
static float *codes_make(int64_t n, int32_t dim, double length) {
  float *codes = need((size_t)(n * dim), sizeof *codes);
  for (int64_t i = 0; i < n; i++) {
    double x[512], sum = 0;
    for (int32_t d = 0; d < dim; d++) {
      x[d] = normal();
      sum += x[d] * x[d];
    }
    for (int32_t d = 0; d < dim; d++) codes[i * dim + d] = (float)(x[d] * length / sqrt(sum));
  }
  return codes;
}

/* ---- what remembers ---- */

/* DELTA writes every token in full; CHOSEN does so where the token is one of the half of the
   vocabulary that values come from, as a trained beta would; GATED forgets besides. */
enum { IDENTITY, TAYLOR, DELTA, CHOSEN, GATED, FLOW, SOFTMAX };

typedef struct memory {
  const char *name;
  int32_t method, dim; /* of keys */
  float length;        /* of keys and queries */
  int32_t type;        /* of a cache */
  int64_t window;      /* 0 = all of it; else with 4 sinks */
  int32_t curve;       /* of the picture; memories of one curve differ in size */
  int32_t brief;       /* also in `make bench` */
} memory;

static const memory memories[] = {{"identity", IDENTITY, 16, 1, 0, 0, 0, 0},
                                  {"identity", IDENTITY, 32, 1, 0, 0, 0, 0},
                                  {"identity", IDENTITY, 64, 1, 0, 0, 0, 1},
                                  {"identity", IDENTITY, 128, 1, 0, 0, 0, 0},
                                  {"identity", IDENTITY, 256, 1, 0, 0, 0, 0},
                                  {"Taylor", TAYLOR, 8, TAYLOR_LENGTH, 0, 0, 1, 0},
                                  {"Taylor", TAYLOR, 16, TAYLOR_LENGTH, 0, 0, 1, 1},
                                  {"Taylor", TAYLOR, 24, TAYLOR_LENGTH, 0, 0, 1, 0},
                                  {"delta", DELTA, 16, 1, 0, 0, 2, 0},
                                  {"delta", DELTA, 32, 1, 0, 0, 2, 0},
                                  {"delta", DELTA, 64, 1, 0, 0, 2, 1},
                                  {"delta", DELTA, 128, 1, 0, 0, 2, 0},
                                  {"delta", DELTA, 256, 1, 0, 0, 2, 0},
                                  {"delta, chosen", CHOSEN, 16, 1, 0, 0, 3, 0},
                                  {"delta, chosen", CHOSEN, 32, 1, 0, 0, 3, 0},
                                  {"delta, chosen", CHOSEN, 64, 1, 0, 0, 3, 1},
                                  {"delta, chosen", CHOSEN, 128, 1, 0, 0, 3, 0},
                                  {"delta, chosen", CHOSEN, 256, 1, 0, 0, 3, 0},
                                  {"gated delta", GATED, 16, 1, 0, 0, 4, 0},
                                  {"gated delta", GATED, 32, 1, 0, 0, 4, 0},
                                  {"gated delta", GATED, 64, 1, 0, 0, 4, 1},
                                  {"gated delta", GATED, 128, 1, 0, 0, 4, 0},
                                  {"gated delta", GATED, 256, 1, 0, 0, 4, 0},
                                  {"flow, relu", FLOW, 32, FLOW_LENGTH, 0, 0, 5, 0},
                                  {"flow, relu", FLOW, 64, FLOW_LENGTH, 0, 0, 5, 1},
                                  {"flow, relu", FLOW, 128, FLOW_LENGTH, 0, 0, 5, 0},
                                  {"softmax f16", SOFTMAX, 32, 1, LATTN_F16, 0, 6, 0},
                                  {"softmax f16", SOFTMAX, 64, 1, LATTN_F16, 0, 6, 1},
                                  {"softmax int8", SOFTMAX, 32, 1, LATTN_I8, 0, 7, 0},
                                  {"softmax int8", SOFTMAX, 64, 1, LATTN_I8, 0, 7, 0},
                                  {"softmax int4", SOFTMAX, 32, 1, LATTN_I4, 0, 8, 0},
                                  {"softmax int4", SOFTMAX, 64, 1, LATTN_I4, 0, 8, 1},
                                  {"window, f16", SOFTMAX, 64, 1, LATTN_F16, 64, 9, 0},
                                  {"window, f16", SOFTMAX, 64, 1, LATTN_F16, 128, 9, 1},
                                  {"window, f16", SOFTMAX, 64, 1, LATTN_F16, 256, 9, 0},
                                  {"window, f16", SOFTMAX, 64, 1, LATTN_F16, 512, 9, 0}};
enum { MEMORIES = (int)(sizeof memories / sizeof *memories) };

/* n tokens of `heads` sequences, each a head: [token][head][dim]. */
typedef struct reading {
  int32_t heads, dim;
  int64_t n;
  float *q, *k, *v, *out;
  float *chosen; /* [token][head]: whether it is to be written */
  double bytes;  /* of state, a head, in the end */
} reading;

static void reading_make(reading *r, int32_t heads, int32_t dim, int64_t n) {
  size_t rows = (size_t)heads * (size_t)n;
  *r = (reading){.heads = heads, .dim = dim, .n = n};
  r->q = need(rows * (size_t)dim, sizeof(float));
  r->k = need(rows * (size_t)dim, sizeof(float));
  r->v = need(rows * VALUE_DIM, sizeof(float));
  r->out = need(rows * VALUE_DIM, sizeof(float));
  r->chosen = need(rows, sizeof(float));
}

static void reading_free(reading *r) {
  free(r->q);
  free(r->k);
  free(r->v);
  free(r->out);
  free(r->chosen);
}

static int config_make(lattn_state_config *c, const memory *m, int32_t heads) {
  static const int32_t presets[] = {[TAYLOR] = LATTN_PRESET_BASED,
                                    [DELTA] = LATTN_PRESET_DELTA_NET,
                                    [CHOSEN] = LATTN_PRESET_DELTA_NET,
                                    [GATED] = LATTN_PRESET_GATED_DELTA_NET,
                                    [FLOW] = LATTN_PRESET_FLOW};
  c->size = sizeof *c;
  c->n_heads = heads;
  c->key_dim = m->dim;
  c->value_dim = VALUE_DIM;
  if (m->method == IDENTITY) return 1;
  lattn_status status = lattn_state_preset(c, presets[m->method]);
  if (m->method == FLOW) c->feature = LATTN_FEATURE_RELU;
  return !bench_failed("lattn_state_preset", status);
}

/* `late`: all is written before anything is read; else each token reads what is there. */
static int state_read(reading *r, const memory *m, int late) {
  lattn_state_config c = {0};
  if (!config_make(&c, m, r->heads)) return 0;
  bench_buffer scratch = bench_buffer_make(lattn_state_scratch(&c, r->n, THREADS) + 1);
  bench_buffer place = bench_buffer_make(lattn_state_bytes(&c) + 1);
  lattn_exec exec = bench_exec(&scratch, THREADS);
  lattn_tensor q = bench_view(r->q, LATTN_F32, r->n, r->heads, r->dim), k = q, v, out, none;
  float *decays = need((size_t)r->n, sizeof *decays);
  for (int64_t i = 0; i < r->n; i++) decays[i] = FORGETS;
  lattn_tensor decay = bench_view(decays, LATTN_F32, r->n, 1, 1);
  k.data = r->k;
  v = bench_view(r->v, LATTN_F32, r->n, r->heads, VALUE_DIM);
  out = none = bench_view(r->out, LATTN_F32, r->n, r->heads, VALUE_DIM);
  none.data = NULL;
  lattn_state_call call = {0};
  call.size = sizeof call;
  lattn_tensor beta = bench_view(r->chosen, LATTN_F32, r->n, r->heads, 1);
  if (m->method == GATED) call.decay = &decay;
  if (m->method == GATED || m->method == CHOSEN) call.beta = &beta;
  lattn_state *state = NULL;
  lattn_status status = lattn_state_init(&state, place.data, place.bytes - 1, &c);
  if (!status) status = lattn_state_advance(state, &call, q, k, v, late ? none : out, &exec);
  if (!status && late) status = lattn_state_read(state, NULL, q, out, &exec);
  lattn_state_stats stats = {0};
  stats.size = sizeof stats;
  if (!status) status = lattn_state_stats_get(state, &stats);
  r->bytes = (double)stats.bytes / r->heads;
  free(decays);
  bench_buffer_free(&place);
  bench_buffer_free(&scratch);
  return !bench_failed(m->name, status);
}

static int cache_read(reading *r, const memory *m) {
  bench_shape s = bench_shape_of("recall", r->heads, r->heads, r->dim, r->n, r->n, m->type);
  s.value_dim = VALUE_DIM;
  s.streaming_heads = m->window ? r->heads : 0;
  s.sinks = 4;
  s.window = m->window;
  bench_caches c = bench_caches_make(&s, 0);
  c.config.scale = LOGIT;
  size_t scratch = lattn_cache_scratch(&c.config, r->n, THREADS);
  lattn_cache *cache = NULL;
  lattn_status status = LATTN_E_FULL;
  lattn_tensor q = bench_view(r->q, LATTN_F32, r->n, r->heads, r->dim), k = q, v;
  k.data = r->k;
  v = bench_view(r->v, LATTN_F32, r->n, r->heads, VALUE_DIM);
  lattn_tensor out = bench_view(r->out, LATTN_F32, r->n, r->heads, VALUE_DIM);
  if (bench_caches_pool(&c, lattn_pool_bytes(NULL, &c.config, 1), scratch))
    cache = bench_caches_new(&c);
  lattn_exec exec = bench_caches_exec(&c, THREADS);
  lattn_cache_stats stats = {0};
  stats.size = sizeof stats;
  if (cache) status = lattn_cache_extend(cache, NULL, q, k, v, out, NULL, &exec);
  if (!status) status = lattn_cache_stats_get(cache, &stats);
  r->bytes = (double)(stats.full_bytes + stats.streaming_bytes + stats.table_bytes) / r->heads;
  bench_caches_free(&c);
  return !bench_failed(m->name, status);
}

/* Candidates are compared in tiles, which all answers see while they lie in a processor's cache:
   [tile][dim][candidate], zeros after the last. */
enum { TILE = 256 };

static float *tiles_make(const float *codes, int32_t n) {
  size_t n_tiles = ((size_t)n + TILE - 1) / TILE;
  float *tiles = need(n_tiles * VALUE_DIM * TILE, sizeof *tiles);
  for (int32_t c = 0; c < n; c++)
    for (int32_t d = 0; d < VALUE_DIM; d++)
      tiles[((c / TILE) * VALUE_DIM + d) * TILE + c % TILE] = codes[c * VALUE_DIM + d];
  return tiles;
}

/* An output, what it is to be nearest to, and what it is. */
typedef struct answer {
  const float *out;
  int32_t right, nearest;
  float score;
} answer;

static void compare(answer *a, const float *tile, int32_t first, int32_t n) {
  float score[TILE] = {0};
  for (int32_t d = 0; d < VALUE_DIM; d++)
    for (int32_t c = 0; c < TILE; c++) score[c] += a->out[d] * tile[d * TILE + c];
  for (int32_t c = 0; c < TILE && first + c < n; c++)
    if (first + c == 0 || score[c] > a->score) {
      a->score = score[c];
      a->nearest = first + c;
    }
}

/* How many are right. */
static int32_t answers_right(answer *answers, int32_t n_answers, const float *codes, int32_t n) {
  float *tiles = tiles_make(codes, n);
  int32_t right = 0;
  for (int32_t first = 0; first < n; first += TILE)
    for (int32_t i = 0; i < n_answers; i++)
      compare(&answers[i], tiles + (size_t)first * VALUE_DIM, first, n);
  for (int32_t i = 0; i < n_answers; i++) right += answers[i].nearest == answers[i].right;
  free(tiles);
  return right;
}

/* ---- the proxy ---- */

enum { SIZES = 7, DRAWS = 5, LEAST_PAIRS = 8192 };
static const int32_t sizes[SIZES] = {16, 32, 64, 128, 256, 512, 1024};

/* What is to be expected has two digits and is the mean of DRAWS draws; a draw of n answers moves
   as n coins do: three sigma of the two together, 0.04 at worst. */
static double within(double p, int32_t n, int32_t draws) {
  double sigma = sqrt(p * (1 - p) / n * (1.0 / DRAWS + 1.0 / draws));
  return 0.01 + 3 * sigma;
}
static int32_t draws_of(int32_t n) { return LEAST_PAIRS / n; }

typedef struct expected {
  memory m;
  double recall[SIZES];
} expected;
static const expected proxies[] = {
    {{"identity", IDENTITY, 16, 1, 0, 0, 0, 1}, {1.00, .97, .76, .41, .12, .05, .01}},
    {{"Taylor, length 4", TAYLOR, 16, 4, 0, 0, 0, 1}, {1.00, 1.00, .99, .87, .44, .17, .04}},
    {{"Taylor, length 8", TAYLOR, 16, 8, 0, 0, 0, 1}, {1.00, 1.00, 1.00, .99, .89, .53, .16}},
    {{"identity", IDENTITY, 64, 1, 0, 0, 0, 1}, {1.00, 1.00, 1.00, .98, .74, .32, .09}},
    {{"identity", IDENTITY, 128, 1, 0, 0, 0, 1}, {1.00, 1.00, 1.00, 1.00, .98, .73, .28}},
    {{"delta", DELTA, 64, 1, 0, 0, 0, 1}, {1.00, .99, .91, .54, .27, .13, .06}},
    {{"delta", DELTA, 128, 1, 0, 0, 0, 1}, {1.00, 1.00, 1.00, .94, .55, .26, .13}}};

/* Each head is a draw of its own. Negative: failed. */
static double proxy(const memory *m, int32_t n, double *bytes) {
  reading r;
  int32_t draws = draws_of(n), right = 0;
  reading_make(&r, draws, m->dim, n);
  float *values = need((size_t)draws * (size_t)n * VALUE_DIM, sizeof *values);
  for (int32_t h = 0; h < draws; h++) {
    float *keys = codes_make(n, m->dim, (double)m->length), *v = codes_make(n, VALUE_DIM, 1);
    for (int32_t i = 0; i < n; i++) {
      size_t row = (size_t)(i * draws + h);
      memcpy(r.k + row * (size_t)m->dim, keys + i * m->dim, (size_t)m->dim * sizeof(float));
      memcpy(r.v + row * VALUE_DIM, v + i * VALUE_DIM, VALUE_DIM * sizeof(float));
    }
    memcpy(values + (size_t)h * (size_t)n * VALUE_DIM, v, (size_t)n * VALUE_DIM * sizeof(float));
    free(keys);
    free(v);
  }
  memcpy(r.q, r.k, (size_t)draws * (size_t)n * (size_t)m->dim * sizeof(float));
  int good = state_read(&r, m, 1);
  answer *answers = need((size_t)n, sizeof *answers);
  for (int32_t h = 0; h < draws && good; h++) {
    for (int32_t i = 0; i < n; i++)
      answers[i] = (answer){.out = r.out + (size_t)(i * draws + h) * VALUE_DIM, .right = i};
    right += answers_right(answers, n, values + (size_t)h * (size_t)n * VALUE_DIM, n);
  }
  free(answers);
  *bytes = r.bytes;
  free(values);
  reading_free(&r);
  return good ? (double)right / draws / n : -1;
}

static void print_memory(const char *bench, const memory *m, double bytes) {
  char name[32];
  if (m->window) snprintf(name, sizeof name, "%s %d", m->name, (int)m->window);
  else snprintf(name, sizeof name, "%s", m->name);
  printf("%-15s %-17s %4d %8.0f ", bench, name, m->dim, bytes);
}

static void proxy_row(const bench_options *options, const expected *e, int32_t step) {
  double recall[SIZES], bytes = 0;
  int good = 1;
  for (int i = 0; i < SIZES; i += step) {
    recall[i] = proxy(&e->m, sizes[i], &bytes);
    good = good && recall[i] >= 0;
    if (recall[i] < 0) continue;
    double most = within(e->recall[i], sizes[i], draws_of(sizes[i]));
    if (fabs(recall[i] - e->recall[i]) > most) good = 0;
    if (options->json)
      printf(
          "{\"bench\":\"recall_proxy\",\"method\":\"%s\",\"key_dim\":%d,\"pairs\":%d,"
          "\"bytes\":%.0f,\"recall\":%.4f,\"expected\":%.2f}\n",
          e->m.name, e->m.dim, sizes[i], bytes, recall[i], e->recall[i]);
  }
  if (!options->json) {
    print_memory("recall_proxy", &e->m, bytes);
    for (int i = 0; i < SIZES; i += step) printf(" %5.2f (%.2f)", recall[i], e->recall[i]);
    printf("%s\n", good ? "" : "  WRONG");
  }
  fflush(stdout);
  if (!good) bench_report_wrong();
}

/* ---- MQAR ---- */

#define POWER 0.01 /* of the law of where the keys are asked for */

typedef struct mqar {
  int32_t pairs, n;         /* tokens */
  int32_t *tokens, *labels; /* a label stands where its key is asked for, -1 elsewhere */
} mqar;

/* `n` different numbers of [from, to), at random. */
static void choose(int32_t *numbers, int32_t n, int32_t from, int32_t to) {
  char *taken = need((size_t)(to - from), 1);
  for (int32_t i = 0; i < n; i++) {
    int32_t x = below(to - from);
    while (taken[x]) x = below(to - from);
    taken[x] = 1;
    numbers[i] = from + x;
  }
  free(taken);
}

/* A slot for each pair, none twice: slot r of `space` has a chance of (r + 1)^(POWER - 1) at each
   draw. The least of exponential variables with such rates come in the order of such draws. */
static void choose_slots(int32_t *slots, int32_t pairs, int32_t space) {
  double *when = need((size_t)space, sizeof *when);
  for (int32_t r = 0; r < space; r++) when[r] = -log(uniform()) / pow(r + 1, POWER - 1);
  for (int32_t i = 0; i < pairs; i++) {
    int32_t first = 0;
    for (int32_t r = 1; r < space; r++)
      if (when[r] < when[first]) first = r;
    slots[i] = first;
    when[first] = (double)INFINITY;
  }
  free(when);
}

/* Fills tokens and labels, n of each. */
static void mqar_make(mqar *a, int32_t variant) {
  int32_t pairs = a->pairs, passes = variant == PLAIN ? 1 : 2, prefix = 2 * pairs * passes;
  int32_t *keys = need((size_t)pairs, sizeof *keys);
  int32_t *values = need(2 * (size_t)pairs, sizeof *values), *later = values + pairs;
  int32_t *slots = need((size_t)pairs, sizeof *slots);
  choose(keys, pairs, 1, VOCABULARY / 2);
  choose(values, 2 * pairs, VOCABULARY / 2, VOCABULARY);
  if (variant != CHANGED) later = values;
  memset(a->tokens, 0, (size_t)a->n * sizeof *a->tokens);
  for (int32_t t = 0; t < a->n; t++) a->labels[t] = -1;
  for (int32_t i = 0; i < pairs * passes; i++) {
    a->tokens[2 * i] = keys[i % pairs];
    a->tokens[2 * i + 1] = i < pairs ? values[i] : later[i - pairs];
  }
  choose_slots(slots, pairs, (a->n - prefix) / 2);
  for (int32_t i = 0; i < pairs; i++) {
    a->tokens[prefix + 2 * slots[i]] = keys[i];
    a->labels[prefix + 2 * slots[i]] = later[i];
  }
  for (int32_t t = 0; t < a->n; t++) /* what is not a query is noise */
    if (!a->tokens[t]) a->tokens[t] = below(VOCABULARY);
  free(keys);
  free(values);
  free(slots);
}

/* Zoology's lengths for so many pairs. */
enum { LOADS = 7 };
static const int32_t loads[LOADS] = {4, 8, 16, 32, 64, 128, 256};
static const int32_t lengths[LOADS] = {64, 64, 64, 128, 256, 512, 1024};

/* What a memory reads: the codes of a token, as key and as value. */
typedef struct book {
  float *keys, *values;
} book;

static void write_token(reading *r, const book *b, int32_t h, int32_t t, int32_t before,
                        int32_t token) {
  size_t row = (size_t)(t * r->heads + h), dim = (size_t)r->dim;
  memcpy(r->k + row * dim, b->keys + (size_t)before * dim, dim * sizeof(float));
  memcpy(r->q + row * dim, b->keys + (size_t)token * dim, dim * sizeof(float));
  memcpy(r->v + row * VALUE_DIM, b->values + (size_t)token * VALUE_DIM, VALUE_DIM * sizeof(float));
  r->chosen[row] = token >= VOCABULARY / 2;
}

/* Fills n tokens of a head with an example; returns how many answers it adds, one a pair. */
static int32_t write_example(reading *r, const book *b, int32_t h, const mqar *a, answer *answers) {
  int32_t n = 0;
  for (int32_t t = 0; t < a->n; t++) {
    write_token(r, b, h, t, t ? a->tokens[t - 1] : 0, a->tokens[t]);
    if (a->labels[t] >= 0)
      answers[n++] =
          (answer){.out = r->out + (size_t)(t * r->heads + h) * VALUE_DIM, .right = a->labels[t]};
  }
  return n;
}

/* Each head reads an example of its own. Negative: failed. */
static double recall(const memory *m, const book *b, int32_t load, int32_t variant, double *bytes) {
  mqar a = {.pairs = loads[load], .n = lengths[load] * (variant == PLAIN ? 1 : 2)};
  int32_t heads = 512 / a.pairs < 4 ? 4 : 512 / a.pairs > 32 ? 32 : 512 / a.pairs, n = 0;
  reading r;
  reading_make(&r, heads, m->dim, a.n);
  a.tokens = need(2 * (size_t)a.n, sizeof *a.tokens);
  a.labels = a.tokens + a.n;
  answer *answers = need((size_t)(a.pairs * heads), sizeof *answers);
  seed = (uint64_t)(load + LOADS * variant); /* the same examples for all */
  for (int32_t h = 0; h < heads; h++) {
    mqar_make(&a, variant);
    n += write_example(&r, b, h, &a, answers + n);
  }
  int good = m->method == SOFTMAX ? cache_read(&r, m) : state_read(&r, m, 0);
  int32_t right = good ? answers_right(answers, n, b->values, VOCABULARY) : 0;
  *bytes = r.bytes;
  free(answers);
  free(a.tokens);
  reading_free(&r);
  return good ? (double)right / n : -1;
}

/* One memory's recall over the numbers of pairs. */
typedef struct result {
  double recall[LOADS], bytes[LOADS]; /* negative: not measured */
} result;

static void recall_row(const bench_options *options, const memory *m, int32_t variant, int32_t step,
                       result *out) {
  char bench[32];
  int good = 1;
  snprintf(bench, sizeof bench, "recall_%s", variant_names[variant]);
  for (int i = 0; i < LOADS; i++) out->recall[i] = out->bytes[i] = -1;
  seed = 1;
  book b = {.values = codes_make(VOCABULARY, VALUE_DIM, 1)};
  b.keys = codes_make(VOCABULARY, m->dim, (double)m->length);
  for (int i = 2 % step; i < LOADS; i += step) {
    out->recall[i] = recall(m, &b, i, variant, &out->bytes[i]);
    if (out->recall[i] < 0) good = 0;
    else if (options->json)
      printf(
          "{\"bench\":\"%s\",\"method\":\"%s\",\"key_dim\":%d,\"window\":%d,\"pairs\":%d,"
          "\"tokens\":%d,\"bytes\":%.0f,\"recall\":%.4f}\n",
          bench, m->name, m->dim, (int)m->window, loads[i], lengths[i] * (variant == PLAIN ? 1 : 2),
          out->bytes[i], out->recall[i]);
  }
  free(b.keys);
  free(b.values);
  if (!options->json) {
    print_memory(bench, m, out->bytes[LOADS - 1]);
    for (int i = 2 % step; i < LOADS; i += step) printf(" %5.2f", out->recall[i]);
    printf("%s\n", good ? "" : "  failed");
  }
  fflush(stdout);
  if (!good) bench_report_wrong();
}

/* ---- the picture ---- */

static bench_chart chart_of(result results[VARIANTS][MEMORIES], const char *title, int32_t variant,
                            int32_t load) {
  bench_chart c = {.title = title, .least = 12, .most = 20, .top = 1};
  for (int i = 0; i < MEMORIES; i++) {
    bench_curve *curve = &c.curves[memories[i].curve];
    const result *r = &results[variant][i];
    if (r->recall[load] < 0 || curve->n == BENCH_POINTS) continue;
    curve->label = memories[i].name;
    curve->x[curve->n] = log2(r->bytes[load]);
    curve->y[curve->n++] = r->recall[load];
  }
  return c;
}

static void draw_all(result results[VARIANTS][MEMORIES]) {
  char path[512];
  const char *build = getenv("BUILD");
  bench_chart charts[] = {
      chart_of(results, "recall of 64 pairs among 256 tokens, over bytes a head", PLAIN, 4),
      chart_of(results, "256 pairs among 1024 tokens", PLAIN, 6),
      chart_of(results, "64 pairs, each written twice, among 512 tokens", AGAIN, 4),
      chart_of(results, "64 pairs, each value changed once, among 512 tokens", CHANGED, 4)};
  snprintf(path, sizeof path, "%s/bench/recall.svg", build ? build : "build");
  bench_charts_draw(path, 4, charts,
                    "Bytes of state or cache a head, along; each point of a curve is another dim "
                    "of keys, or another window.");
  fprintf(stderr, "drawn in %s\n", path);
}

void bench_recall(const bench_options *options) {
  static result results[VARIANTS][MEMORIES];
  const int all = getenv("RECALL") != NULL, step = all ? 1 : 2; /* sizes 16, 64 ... */
  if (!bench_wanted(options, "recall", 1)) return;
  if (!options->json) {
    printf("\n%-15s %-17s %4s %8s  recall (to be expected) of", "bench", "method", "dim", "bytes");
    for (int i = 0; i < SIZES; i += step) printf(" %d", sizes[i]);
    printf(" pairs\n");
  }
  seed = 1;
  for (size_t i = 0; i < sizeof proxies / sizeof *proxies; i++)
    proxy_row(options, &proxies[i], step);
  if (!options->json) {
    printf("\n%-15s %-17s %4s %8s  recall of", "bench", "method", "dim", "bytes");
    for (int i = 2 % step; i < LOADS; i += step) printf(" %d", loads[i]);
    printf(" pairs\n");
  }
  for (int32_t variant = 0; variant < VARIANTS; variant++)
    for (int i = 0; i < MEMORIES; i++)
      if (all || (memories[i].brief && variant != AGAIN))
        recall_row(options, &memories[i], variant, step, &results[variant][i]);
  if (all) draw_all(results);
}
