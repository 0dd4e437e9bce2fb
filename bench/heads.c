/* heads.c - what do policies of heads save, and what do they cost? The published geometries of
 * DuoAttention and RazorAttention, and what a head says that it lost.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Heads are alike, so that some of a model's do for all: 8 KV heads where a token is decoded, 4 of
   a prompt. A prompt's time is that of four pieces of it, in the middles of its quarters: what a
   full head does for a token grows evenly with its position. */
#include "caches.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { DIM = 128, PIECES = 4, PIECE = 512 };

/* A model as published: bytes of its weights, of all tokens' keys and values a token (16 bits),
   parameters that multiply a token, and its attention's multiply-adds for a key. */
typedef struct geometry {
  const char *name;
  int32_t group; /* query heads of a KV head */
  double full;   /* share of full heads */
  int64_t sinks, window;
  double weights, token, factors, key_factors;
  double memory, decode, prefill; /* published ratios of the whole program */
} geometry;

static const geometry duo[] = {
    {"duo_llama2_7b", 1, 0.25, 128, 257, 13.48e9, 524288, 6.6e9, 32 * 4096 * 2, 2.55, 2.18, 1.73},
    {"duo_llama3_8b", 4, 0.5, 128, 257, 16.06e9, 131072, 7.5e9, 32 * 4096 * 2, 1.67, 1.50, 1.63}};

/* ---- two ways to keep the same tokens ---- */

typedef struct side {
  bench_caches c;
  lattn_cache *cache;
  lattn_checkpoint *at[PIECES];
  const lattn_call *call; /* of a decode step; NULL */
} side;

typedef struct contest {
  bench_shape shape; /* of the split */
  side split, full;
  bench_tokens tokens;
  int32_t steps;
  double least[2]; /* seconds of the split, and with all heads full */
} contest;

static bench_shape shape_of(const char *bench, const geometry *g, int32_t kv_heads, int64_t keys,
                            int64_t rows) {
  bench_shape s = bench_shape_of(bench, kv_heads * g->group, kv_heads, DIM, rows, keys, LATTN_F16);
  s.streaming_heads = kv_heads - (int32_t)lround(g->full * kv_heads);
  s.sinks = g->sinks;
  s.window = g->window;
  return s;
}

static void side_free(side *s) { bench_caches_free(&s->c); }

/* An empty cache in a pool for `n` of them; streaming heads have absolute positions. */
static int side_make(side *s, const bench_shape *shape, int32_t n, int64_t rows) {
  s->c = bench_caches_make(shape, PIECE);
  for (int32_t g = 0; g < shape->kv_heads; g++) s->c.heads[g].positions = LATTN_POSITIONS_ABSOLUTE;
  s->c.config.capacity = shape->keys + PIECE;
  if (!bench_caches_pool(&s->c, bench_caches_filled_bytes(&s->c, n),
                         lattn_cache_scratch(&s->c.config, rows, 64)))
    return 0;
  s->cache = bench_caches_new(&s->c);
  return s->cache != NULL;
}

static double extend(contest *c, side *s, lattn_tensor out, int32_t n_threads) {
  lattn_exec exec = bench_caches_exec(&s->c, n_threads);
  lattn_tensor q = c->tokens.q, kv = c->tokens.kv;
  double start = bench_seconds();
  lattn_status status = lattn_cache_extend(s->cache, s->call, q, kv, kv, out, NULL, &exec);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_extend", status) ? -1 : seconds;
}

/* ---- decode ---- */

static double decode_side(contest *c, side *s, lattn_tensor out, int32_t n_threads) {
  double all = 0;
  int64_t n = c->shape.keys - 1;
  for (int32_t i = 0; i < c->steps; i++) {
    double seconds = extend(c, s, out, n_threads);
    if (seconds < 0 || bench_failed("lattn_cache_truncate", lattn_cache_truncate(s->cache, n)))
      return -1;
    all += seconds;
  }
  return all / c->steps;
}

static double noted(contest *c, int which, double seconds) {
  if (seconds > 0 && (c->least[which] == 0 || seconds < c->least[which])) c->least[which] = seconds;
  return seconds;
}

static double decode_split(void *state, int32_t n_threads) {
  contest *c = state;
  return noted(c, 0, decode_side(c, &c->split, c->tokens.out[0], n_threads));
}
static double decode_full(void *state, int32_t n_threads) {
  contest *c = state;
  return noted(c, 1, decode_side(c, &c->full, c->tokens.out[1], n_threads));
}

/* ---- prefill ---- */

static int stop_at_pieces(side *s, int64_t keys) {
  int64_t n = 0;
  for (int i = 0; i < PIECES; i++) {
    int64_t middle = (2 * i + 1) * keys / (2 * PIECES) / PIECE * PIECE;
    if (!bench_caches_grow(&s->c, s->cache, middle - n)) return 0;
    n = middle;
    if (bench_failed("lattn_cache_checkpoint", lattn_cache_checkpoint(&s->at[i], s->cache)))
      return 0;
  }
  return 1;
}

static double prefill_side(contest *c, side *s, lattn_tensor out, int32_t n_threads) {
  double all = 0;
  for (int i = 0; i < PIECES; i++) {
    double seconds;
    if (bench_failed("lattn_cache_rollback", lattn_cache_rollback(s->cache, s->at[i]))) return -1;
    seconds = extend(c, s, out, n_threads);
    if (seconds < 0) return -1;
    all += seconds;
  }
  return all;
}

static double prefill_split(void *state, int32_t n_threads) {
  contest *c = state;
  return noted(c, 0, prefill_side(c, &c->split, c->tokens.out[0], n_threads));
}
static double prefill_full(void *state, int32_t n_threads) {
  contest *c = state;
  return noted(c, 1, prefill_side(c, &c->full, c->tokens.out[1], n_threads));
}

/* Opens both sides, with the same tokens; prompts stop at the pieces. */
static int contest_open(contest *c, int prompts) {
  bench_shape full = c->shape;
  full.streaming_heads = 0;
  c->tokens = bench_tokens_make(&c->shape, c->shape.queries);
  if (!side_make(&c->split, &c->shape, prompts ? 3 : 1, c->shape.queries) ||
      !side_make(&c->full, &full, prompts ? 3 : 1, c->shape.queries))
    return 0;
  if (prompts)
    return stop_at_pieces(&c->split, c->shape.keys) && stop_at_pieces(&c->full, c->shape.keys);
  return bench_caches_grow(&c->split.c, c->split.cache, c->shape.keys - 1) &&
         bench_caches_grow(&c->full.c, c->full.cache, c->shape.keys - 1);
}

static void contest_close(contest *c) {
  side_free(&c->split);
  side_free(&c->full);
  bench_tokens_free(&c->tokens);
}

/* Bytes of a cache's pages and tables. */
static double held(const side *s) {
  lattn_cache_stats stats = {0};
  stats.size = sizeof stats;
  bench_failed("lattn_cache_stats_get", lattn_cache_stats_get(s->cache, &stats));
  return (double)(stats.full_bytes + stats.streaming_bytes + stats.table_bytes);
}

/* ---- the whole program ---- */

/* The saving of a whole program of which a part, `rest`, is saved nothing. */
static double diluted(double rest, double part, double ratio) {
  return (rest + part) / (rest + part / ratio);
}

/* Weights, and what attention was measured to save; a token's decode is held to take the time of
   reading both, a prompt that of the multiply-adds of both. */
static void program_row(const bench_options *options, const geometry *g, int64_t keys,
                        const double saved[3]) {
  double n = (double)keys, parts[3][2] = {{g->weights, n * g->token},
                                          {g->weights, n * g->token},
                                          {n * g->factors, n * n / 2 * g->key_factors}};
  const double published[3] = {g->memory, g->decode, g->prefill};
  static const char *const what[3] = {"memory", "decode", "prefill"};
  if (options->json) printf("{\"bench\":\"%s_program\",\"keys\":%lld", g->name, (long long)keys);
  else printf("%-16s whole program, %lldk tokens:", g->name, (long long)keys / 1000);
  for (int i = 0; i < 3; i++) {
    double ratio = diluted(parts[i][0], parts[i][1], saved[i]);
    if (options->json)
      printf(",\"%s\":%.3f,\"%s_published\":%.2f", what[i], ratio, what[i], published[i]);
    else
      printf(" %s %.2fx (published, up to %.2fx)%s", what[i], ratio, published[i],
             i < 2 ? "," : "\n");
  }
  if (options->json) printf("}\n");
}

/* The share of a full head's work that is left, at a position or over a prompt. */
static double kept(const geometry *g, int64_t keys, double times) {
  return g->full + (1 - g->full) * times * (double)(g->sinks + g->window) / (double)keys;
}

static int decode_rows(const bench_options *options, const geometry *g, int64_t keys, char *name,
                       double saved[3]) {
  contest c = {0};
  c.steps = 4;
  c.shape = shape_of(name, g, 8, keys, 1);
  c.shape.goal = 0.92;
  if (!bench_wanted(options, name, 0)) return 0;
  bench_pair pair = {"full", decode_split,         decode_full, NULL, bench_shape_bytes(&c.shape),
                     0,      1 / kept(g, keys, 1), NULL};
  int right = contest_open(&c, 0);
  if (right) {
    bench_report_pair(options, &c.shape, &pair, &c);
    c.shape.bench = g->name;
    bench_report_memory(options, &c.shape, held(&c.split), held(&c.split),
                        bench_shape_bytes(&c.shape));
    saved[0] = held(&c.full) / held(&c.split);
    saved[1] = c.least[1] / c.least[0];
  } else {
    bench_report_failed(&c.shape);
  }
  contest_close(&c);
  return right;
}

static int prefill_rows(const bench_options *options, const geometry *g, int64_t keys, char *name,
                        double saved[3]) {
  contest c = {0};
  c.shape = shape_of(name, g, 4, keys, PIECE);
  c.shape.goal = 0.92;
  if (!bench_wanted(options, name, 0)) return 0;
  bench_pair pair = {"full", prefill_split, prefill_full, NULL, 0, 0, 1 / kept(g, keys, 2), NULL};
  int right = contest_open(&c, 1); /* a full head's row of a prompt sees half of it in the mean */
  if (right) bench_report_pair(options, &c.shape, &pair, &c);
  else bench_report_failed(&c.shape);
  if (right) saved[2] = c.least[1] / c.least[0];
  contest_close(&c);
  return right;
}

static void geometry_rows(const bench_options *options, const geometry *g, int64_t keys) {
  char name[2][64];
  double saved[3];
  snprintf(name[0], sizeof name[0], "%s_decode", g->name);
  snprintf(name[1], sizeof name[1], "%s_prefill", g->name);
  int right = decode_rows(options, g, keys, name[0], saved);
  right = prefill_rows(options, g, keys, name[1], saved) && right;
  for (int i = 1; right && i <= 10; i *= 3) program_row(options, g, i * keys, saved);
}

/* ---- compensated heads ---- */

static void compensate(side *s, int32_t mark, int64_t divisor) {
  for (int32_t g = 0; g < s->c.shape.streaming_heads; g++) {
    s->c.heads[g].policy = LATTN_HEAD_COMPENSATED;
    s->c.heads[g].mark = mark;
    s->c.heads[g].window_divisor = divisor;
  }
}

enum { APPENDS = 512 };

static double append_side(side *s, const contest *c) {
  double start = bench_seconds();
  for (int i = 0; i < APPENDS; i++)
    if (bench_failed("lattn_cache_append",
                     lattn_cache_append(s->cache, c->tokens.kv, c->tokens.kv, NULL)))
      return -1;
  return bench_seconds() - start;
}
static double append_streaming(void *state, int32_t n_threads) {
  contest *c = state;
  return (void)n_threads, append_side(&c->split, c);
}
static double append_compensated(void *state, int32_t n_threads) {
  contest *c = state;
  return (void)n_threads, append_side(&c->full, c);
}
static double step_side(contest *c, side *s, int32_t n_threads) {
  double all = 0;
  for (int i = 0; i < 32; i++) {
    double seconds = extend(c, s, c->tokens.out[0], n_threads);
    if (seconds < 0) return -1;
    all += seconds;
  }
  return all / 32;
}
static double step_streaming(void *state, int32_t n_threads) {
  contest *c = state;
  return step_side(c, &c->split, n_threads);
}
static double step_compensated(void *state, int32_t n_threads) {
  contest *c = state;
  return step_side(c, &c->full, n_threads);
}

/* A compensated head against a streaming one, of 4 sinks and a window: an append alone, and with
   its attention. Here `split` is the streaming cache, `full` the compensated one. */
static void compensation(const bench_options *options, int64_t window) {
  static const geometry razor = {"compensated", 1, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0};
  contest c = {0};
  c.shape = shape_of("compensated_append", &razor, 8, 16384, 1);
  c.shape.window = window;
  if (!bench_wanted(options, c.shape.bench, 1)) return;
  c.shape.goal = 0.5;
  c.tokens = bench_tokens_make(&c.shape, 1);
  side *sides[] = {&c.split, &c.full};
  int right = 1;
  for (int i = 0; i < 2 && right; i++) {
    sides[i]->c = bench_caches_make(&c.shape, 0);
    for (int32_t g = 0; g < c.shape.kv_heads; g++)
      sides[i]->c.heads[g].positions = LATTN_POSITIONS_ABSOLUTE;
    if (i) compensate(sides[i], 0, 0);
    sides[i]->c.config.capacity = 0;
    right = bench_caches_pool(&sides[i]->c, bench_caches_filled_bytes(&sides[i]->c, 1),
                              lattn_cache_scratch(&sides[i]->c.config, 1, 64));
    sides[i]->cache = right ? bench_caches_new(&sides[i]->c) : NULL;
    right = sides[i]->cache && bench_caches_grow(&sides[i]->c, sides[i]->cache, c.shape.keys);
  }
  bench_pair append = {"streaming", append_compensated, append_streaming, NULL, 0, 1, 0, NULL};
  bench_pair step = {
      "streaming", step_compensated, step_streaming, NULL, bench_shape_bytes(&c.shape), 0, 0, NULL};
  if (right) bench_report_pair(options, &c.shape, &append, &c);
  c.shape.bench = "compensated_step";
  c.shape.goal = 1 / 1.05;
  if (right) bench_report_pair(options, &c.shape, &step, &c);
  else bench_report_failed(&c.shape);
  contest_close(&c);
}

/* RazorAttention's defaults: 15 % of the heads full, the others compressed after the prompt to 4
   sinks, a fifth of it, and the mean of the rest. 20 KV heads: 3 full. */
static void razor(const bench_options *options, int64_t keys) {
  static const geometry defaults = {"razor", 1, 0.15, 4, 0, 0, 0, 0, 0, 0, 0, 0};
  contest c = {0};
  c.steps = 2;
  c.shape = shape_of("razor_decode", &defaults, 20, keys, 1);
  c.shape.window = (keys - 1) / 5;
  c.shape.goal = 0.92;
  if (!bench_wanted(options, c.shape.bench, 0)) return;
  bench_shape full = c.shape;
  full.streaming_heads = 0;
  c.tokens = bench_tokens_make(&c.shape, 1);
  c.split.c = bench_caches_make(&c.shape, 1);
  for (int32_t g = 0; g < c.shape.kv_heads; g++)
    if (g < c.shape.streaming_heads) c.split.c.heads[g].window = 4000;
  compensate(&c.split, LATTN_PROMPT_END, 5);
  int right = bench_caches_pool(&c.split.c, lattn_pool_bytes(NULL, &c.split.c.config, 1),
                                lattn_cache_scratch(&c.split.c.config, 1, 64)) &&
              side_make(&c.full, &full, 1, 1);
  c.split.cache = right ? bench_caches_new(&c.split.c) : NULL;
  right = right && c.split.cache && bench_caches_grow(&c.split.c, c.split.cache, keys - 1) &&
          bench_caches_grow(&c.full.c, c.full.cache, keys - 1);
  lattn_exec exec = bench_caches_exec(&c.split.c, 2);
  right = right && !bench_failed("lattn_cache_mark",
                                 lattn_cache_mark(c.split.cache, LATTN_PROMPT_END, &exec));
  double ideal = bench_shape_bytes(&full) / bench_shape_bytes(&c.shape);
  bench_pair pair = {"full", decode_split, decode_full, NULL, bench_shape_bytes(&c.shape),
                     0,      ideal,        NULL};
  if (right) {
    bench_report_pair(options, &c.shape, &pair, &c);
    c.shape.bench = "razor";
    bench_report_memory(options, &c.shape, held(&c.split), held(&c.full),
                        bench_shape_bytes(&c.shape));
  } else {
    bench_report_failed(&c.shape);
  }
  contest_close(&c);
}

/* ---- what heads say that they lost ---- */

enum { LOST_ROWS = 64, LOST_KEYS = 8192 };

/* Keys around a common one (as those of models are), which a share of queries points away from;
   scores of so many units. */
static void lost_fill(float *q, float *k, double common, double units) {
  uint64_t seed = 7;
  float *noise = malloc((LOST_KEYS + LOST_ROWS) * DIM * sizeof *noise);
  if (!noise) exit(1);
  bench_fill(noise, LATTN_F32, (LOST_KEYS + LOST_ROWS) * DIM, seed);
  for (int64_t i = 0; i < LOST_KEYS * DIM; i++)
    k[i] = noise[i] + (float)common * (i % DIM % 2 ? 1.0f : -1.0f);
  for (int64_t i = 0; i < LOST_ROWS * DIM; i++) q[i] = (float)units * noise[LOST_KEYS * DIM + i];
  free(noise);
}

/* All keys but the newest LOST_ROWS; of a head chosen at a mark, those before them with queries. */
static int lost_prompt(lattn_cache *cache, lattn_tensor keys, lattn_tensor rows, lattn_tensor out,
                       int snap, const lattn_exec *exec) {
  int64_t end = LOST_KEYS - LOST_ROWS * (snap ? 2 : 1);
  lattn_tensor new = bench_rows(keys, end, LOST_ROWS);
  for (int64_t t = 0, n; t < end; t += n) {
    n = end - t < 512 ? end - t : 512;
    lattn_tensor some = bench_rows(keys, t, n);
    if (bench_failed("lattn_cache_append", lattn_cache_append(cache, some, some, NULL))) return 0;
  }
  return !snap ||
         (!bench_failed("lattn_cache_extend",
                        lattn_cache_extend(cache, NULL, rows, new, new, out, NULL, exec)) &&
          !bench_failed("lattn_cache_mark", lattn_cache_mark(cache, LATTN_PROMPT_END, exec)));
}

/* A streaming head; or one that keeps as many tokens by SnapKV, whose queries behind the mark are
   those before it. */
static void lost_row(const bench_options *options, int snap, double common, double units) {
  static float bound[LOST_ROWS], estimate[LOST_ROWS], all[LOST_ROWS], lse[LOST_ROWS];
  bench_buffer data = bench_buffer_make((LOST_KEYS * 2 + LOST_ROWS * 2) * DIM * sizeof(float));
  float *k = data.data, *q = k + LOST_KEYS * DIM;
  const char *name = snap ? "lost_snap" : "lost";
  bench_shape s = bench_shape_of(name, 1, 1, DIM, LOST_ROWS, LOST_KEYS, LATTN_F32);
  s.streaming_heads = !snap;
  s.sinks = 4;
  s.window = 1024;
  lost_fill(q, k, common, units);
  bench_caches c = bench_caches_make(&s, 0);
  if (snap)
    c.heads[0] = (lattn_head){.policy = LATTN_HEAD_SNAP, .budget = 1028, .window = LOST_ROWS};
  else c.heads[0].positions = LATTN_POSITIONS_ABSOLUTE;
  c.heads[0].flags = LATTN_HEAD_LOST;
  int right = bench_caches_pool(&c, lattn_pool_bytes(NULL, &c.config, 1),
                                lattn_cache_scratch(&c.config, LOST_ROWS, 1));
  lattn_cache *cache = right ? bench_caches_new(&c) : NULL;
  lattn_exec exec = bench_caches_exec(&c, 1);
  lattn_call call = {0};
  lattn_attn options_of = {0};
  call.size = sizeof call;
  call.lost_bound = bound;
  call.lost_estimate = estimate;
  options_of.size = sizeof options_of;
  options_of.mask = LATTN_CAUSAL;
  lattn_tensor keys = bench_view(k, LATTN_F32, LOST_KEYS, 1, DIM);
  lattn_tensor rows = bench_view(q, LATTN_F32, LOST_ROWS, 1, DIM);
  lattn_tensor out = bench_view(q + LOST_ROWS * DIM, LATTN_F32, LOST_ROWS, 1, DIM);
  lattn_tensor new = bench_rows(keys, LOST_KEYS - LOST_ROWS, LOST_ROWS);
  right = right && lost_prompt(cache, keys, rows, out, snap, &exec) &&
          !bench_failed("lattn_cache_extend",
                        lattn_cache_extend(cache, &call, rows, new, new, out, lse, &exec)) &&
          !bench_failed("lattn_attention",
                        lattn_attention(&options_of, rows, keys, keys, out, all, NULL));
  double mean[3] = {0, 0, 0};
  for (int i = 0; right && i < LOST_ROWS; i++) {
    mean[0] += (double)bound[i] / LOST_ROWS;
    mean[1] += (double)estimate[i] / LOST_ROWS;
    mean[2] += (1 - exp((double)lse[i] - (double)all[i])) / LOST_ROWS;
  }
  if (!right) bench_report_failed(&s);
  else if (options->json)
    printf(
        "{\"bench\":\"%s\",\"common\":%.2f,\"units\":%.2f,\"bound\":%.4f,"
        "\"estimate\":%.4f,\"lost\":%.4f}\n",
        name, common, units, mean[0], mean[1], mean[2]);
  else
    printf("%-16s keys %.1f from 0, queries times %.1f: lost %.4f, estimated %.4f, at most %.4f\n",
           name, common, units, mean[2], mean[1], mean[0]);
  bench_caches_free(&c);
  bench_buffer_free(&data);
}

static void lost(const bench_options *options) {
  if (!bench_wanted(options, "lost", 1)) return;
  for (int snap = 0; snap < 2; snap++)
    for (int common = 0; common <= 2; common += 2) {
      lost_row(options, snap, common, 0.1);
      lost_row(options, snap, common, 1);
    }
}

/* Half of the KV heads pruned by a gate of 0, against none; all are appended to. */
static void pruned(const bench_options *options) {
  static const geometry gqa = {"pruned_decode", 4, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0};
  static float numbers[32];
  contest c = {0};
  lattn_tensor gate = {.data = numbers, .n_tokens = 1, .n_heads = 32, .dim = 1};
  lattn_call call = {.size = sizeof call, .gate = &gate};
  for (int h = 0; h < 32; h++) numbers[h] = (float)(h / 4 % 2);
  c.steps = 8;
  c.shape = shape_of("pruned_decode", &gqa, 8, 32768, 1);
  c.shape.goal = 0.92;
  if (!bench_wanted(options, c.shape.bench, 1)) return;
  bench_pair pair = {"none", decode_split, decode_full, NULL, bench_shape_bytes(&c.shape) / 2, 0,
                     2,      NULL};
  c.split.call = &call;
  if (contest_open(&c, 0)) bench_report_pair(options, &c.shape, &pair, &c);
  else bench_report_failed(&c.shape);
  contest_close(&c);
}

void bench_heads(const bench_options *options) {
  for (int i = 0; i < 2; i++) geometry_rows(options, &duo[i], 100000);
  razor(options, 100000);
  pruned(options);
  compensation(options, 256);
  compensation(options, 4000);
  lost(options);
}
