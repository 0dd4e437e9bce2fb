/* report.c - repetitions, medians and rows: a table for people, JSON lines for programs.
 * SPDX-License-Identifier: MIT */
#include "peer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PEERS 16
#define MAX_REPETITIONS 25
/* Of peers, which are slow, and whose ratios are not what is at stake: so many repetitions, fewer
   once they have taken so many seconds. */
#define PEER_REPETITIONS 3
#define PEER_SECONDS 1.5
#define SHORT_RUN 5e-3        /* seconds */
#define LARGEST_ERROR 1e-4    /* far above float32 rounding, far below any mistake */
#define BUSY 0.05             /* an idle machine's peak moves by a hundredth */
#define READ_MATTERS_BELOW 64 /* FLOP a byte: beyond, no machine's memory is the limit */

typedef struct series {
  int32_t n;
  double value[MAX_REPETITIONS];
} series;

/* Everything measured about one row. */
typedef struct row {
  const bench_shape *shape;
  int32_t n_threads;
  series ours, flops, read; /* seconds; FLOP a second; bytes a second */
  series peers[MAX_PEERS];
  /* Largest difference to each peer, relative to the largest value of its row. */
  double errors[MAX_PEERS];
  int32_t failed[MAX_PEERS];
  double peer_seconds; /* each may take */
} row;

/* The limit that binds: the multiply-adds or the reading, whichever takes longer. */
typedef struct bound {
  const char *unit; /* the key of the figure that it limits */
  double limit, noise, fraction, fraction_of_best;
} bound;

static int32_t n_wrong, n_failed;
static series all_flops[2], all_read[2];
static double all_errors[MAX_PEERS];

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

double bench_median(double *values, int32_t n) {
  if (!n) return (double)NAN;
  qsort(values, (size_t)n, sizeof *values, ascending);
  return (values[(n - 1) / 2] + values[n / 2]) / 2;
}

static double median(const series *s) {
  series sorted = *s;
  return bench_median(sorted.value, s->n);
}

/* Median distance from the median, relative to it: how noisy the machine was. */
static double noise(const series *s) {
  series distance = *s;
  double middle = median(s);
  for (int32_t i = 0; i < s->n; i++) distance.value[i] = fabs(s->value[i] / middle - 1);
  return median(&distance);
}

static double extreme(const series *s, double sign) {
  double best = (double)NAN;
  for (int32_t i = 0; i < s->n; i++)
    best = i && sign * best >= sign * s->value[i] ? best : s->value[i];
  return best;
}

static void add(series *s, double value) {
  if (s->n < MAX_REPETITIONS) s->value[s->n++] = value;
}

int bench_wanted(const bench_options *options, const char *bench, int32_t quick) {
  if (options->quick && !quick) return 0;
  return !options->only || strstr(bench, options->only) != NULL;
}

/* ---- measuring ---- */

/* Seconds for the repetitions of a row. */
static double budget_of(const bench_options *options, const bench_shape *shape) {
  return options->quick ? 0.3 : shape->goal > 0 ? 2.0 : 1.0;
}

static int read_matters(const bench_shape *shape) {
  return bench_shape_flops(shape) < READ_MATTERS_BELOW * bench_shape_bytes(shape);
}

double bench_row_error(const float *ours, const float *peer, int32_t n) {
  double largest = 0, difference = 0;
  for (int32_t d = 0; d < n; d++) {
    double distance = fabs((double)ours[d] - (double)peer[d]);
    if (!(distance <= difference)) difference = distance; /* a NaN stays */
    largest = fmax(largest, fabs((double)peer[d]));
  }
  return difference != 0 ? difference / largest : 0;
}

/* Largest error of ours against a peer's rows. */
static double compare(const bench_shape *shape, const bench_peer *ours, void *our_state,
                      const bench_peer *peer, void *state) {
  double worst = 0;
  for (int64_t r = 0; r < shape->queries; r++)
    for (int32_t h = 0; h < shape->heads; h++) {
      const float *b = peer->row(state, r, h), *a = ours->row(our_state, r, h);
      double error = b ? bench_row_error(a, b, shape->value_dim) : 0;
      if (!(error <= worst)) worst = error;
    }
  return worst;
}

/* One that failed once is not run again; its row says so. Threads of whoever ran before may still
   spin: they get time to stop. A short run is made again, now with its threads awake, as those of
   ours are. */
static void run_peer(row *r, int32_t p, void *state) {
  series *s = &r->peers[p];
  double spent = 0;
  for (int32_t i = 0; i < s->n; i++) spent += s->value[i];
  if (r->failed[p] || spent > r->peer_seconds) return;
  bench_rest();
  double seconds = bench_peers[p]->run(state, r->n_threads);
  if (seconds < SHORT_RUN) seconds = bench_peers[p]->run(state, r->n_threads);
  if (seconds >= 0) add(s, seconds);
  else r->failed[p] = 1;
}

/* Fills a row; 0 when ours failed. */
static int measure(row *r, double budget, const bench_peer *ours, void *our_state, void **states) {
  const bench_shape *shape = r->shape;
  int32_t least = 3, slot = r->n_threads > 1;
  if (ours->run(our_state, r->n_threads) < 0) return 0; /* warms up */
  double start = bench_seconds();
  for (int32_t i = 0; i < MAX_REPETITIONS; i++) {
    if (i >= least && bench_seconds() - start > budget) break;
    add(&r->flops, bench_limit_flops(r->n_threads));
    if (read_matters(shape)) add(&r->read, bench_limit_read(r->n_threads));
    double seconds = ours->run(our_state, r->n_threads);
    if (seconds < 0) return 0;
    add(&r->ours, seconds);
    for (int32_t p = 0; p < bench_n_peers && i < PEER_REPETITIONS; p++)
      if (states[p]) run_peer(r, p, states[p]);
  }
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (r->peers[p].n) {
      r->errors[p] = compare(shape, ours, our_state, bench_peers[p], states[p]);
      if (!bench_shape_is_int(shape) && !(r->errors[p] <= all_errors[p]))
        all_errors[p] = r->errors[p];
    }
  add(&all_flops[slot], median(&r->flops));
  if (r->read.n) add(&all_read[slot], median(&r->read));
  return 1;
}

static bound bound_of(const row *r) {
  double flops = bench_shape_flops(r->shape), bytes = bench_shape_bytes(r->shape);
  double ours = median(&r->ours), best = extreme(&r->ours, -1);
  /* Of integers, the float multiply-adds are no limit, but what prefill is held against. */
  int by_read = r->read.n && (bench_shape_is_int(r->shape) ||
                              bytes / median(&r->read) > flops / median(&r->flops));
  const series *limit = by_read ? &r->read : &r->flops;
  double work = by_read ? bytes : flops;
  bound b;
  b.unit = by_read ? "gbs" : "gflops";
  b.limit = median(limit);
  b.noise = noise(limit);
  b.fraction = work / ours / b.limit;
  b.fraction_of_best = work / best / extreme(limit, 1);
  return b;
}

/* ---- printing ---- */

void bench_shape_json(char *to, size_t bytes, const bench_shape *s, int32_t n_threads) {
  char more[160] = "";
  size_t n = 0;
  if (s->streaming_heads)
    n += (size_t)snprintf(more, sizeof more,
                          ",\"streaming_heads\":%d,\"sinks\":%lld,\"window\":%lld",
                          s->streaming_heads, (long long)s->sinks, (long long)s->window);
  if (s->layers) n += (size_t)snprintf(more + n, sizeof more - n, ",\"layers\":%d", s->layers);
  if (s->sequences)
    snprintf(more + n, sizeof more - n, ",\"sequences\":%d,\"shared\":%lld", s->sequences,
             (long long)s->shared);
  snprintf(to, bytes,
           "{\"bench\":\"%s\",\"heads\":%d,\"kv_heads\":%d,\"key_dim\":%d,\"value_dim\":%d,"
           "\"queries\":%lld,\"keys\":%lld,\"type\":\"%s\",\"threads\":%d,\"isa\":\"%s\"%s",
           s->bench, s->heads, s->kv_heads, s->key_dim, s->value_dim, (long long)s->queries,
           (long long)s->keys, bench_shape_type_name(s), n_threads, lattn_simd_name(), more);
}

static void print_json_shape(const bench_shape *s, int32_t n_threads) {
  char text[512];
  bench_shape_json(text, sizeof text, s, n_threads);
  printf("%s", text);
}

/* Why a peer is not run; NULL: it is. The first is the check of ours. */
static const char *why_not(const bench_shape *shape, int32_t p) {
  const char *why = bench_peers[p]->missing();
  if (!why && shape->alone && p > 0) why = "not asked";
  return why ? why : bench_peers[p]->unsupported(shape);
}

static double tolerance(const row *r, int32_t p) {
  double its = bench_peers[p]->tolerance ? bench_peers[p]->tolerance(r->shape) : LARGEST_ERROR;
  return its + bench_shape_rounding(r->shape);
}

/* The first peer that ours differs from, or that failed; -1 = none. */
static int32_t wrong(const row *r) {
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (r->failed[p] || !(r->errors[p] <= tolerance(r, p))) return p;
  return -1;
}

/* How many times as fast as a peer ours should be; 0 = not said. */
static double goal_of(const row *r, int32_t p) {
  return bench_peers[p]->goal ? bench_peers[p]->goal(r->shape) : 0;
}

static void print_json(const row *r) {
  double seconds = median(&r->ours);
  bound b = bound_of(r);
  print_json_shape(r->shape, r->n_threads);
  printf(",\"ms\":%.4f,\"ms_best\":%.4f,\"noise\":%.4f,\"repetitions\":%d", seconds * 1e3,
         extreme(&r->ours, -1) * 1e3, noise(&r->ours), r->ours.n);
  printf(",\"gflops\":%.3f,\"gbs\":%.3f", bench_shape_flops(r->shape) / seconds * 1e-9,
         bench_shape_bytes(r->shape) / seconds * 1e-9);
  printf(",\"limit\":%.3f,\"limit_of\":\"%s\",\"fraction_of_limit\":%.4f", b.limit * 1e-9, b.unit,
         b.fraction);
  printf(",\"fraction_of_best\":%.4f,\"limit_noise\":%.4f", b.fraction_of_best, b.noise);
  if (r->shape->goal > 0) printf(",\"goal\":%.2f", r->shape->goal);
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (r->peers[p].n && goal_of(r, p) > 0)
      printf(",\"goal_vs_%s\":%.1f", bench_peers[p]->name, goal_of(r, p));
  for (int32_t p = 0; p < bench_n_peers; p++) {
    const char *name = bench_peers[p]->name;
    if (r->peers[p].n)
      printf(",\"vs_%s\":%.3f,\"ms_%s\":%.4f,\"error_%s\":%.3e", name,
             median(&r->peers[p]) / seconds, name, median(&r->peers[p]) * 1e3, name, r->errors[p]);
    else
      printf(",\"vs_%s\":null,\"why_not_%s\":\"%s\"", name, name,
             r->failed[p] ? "failed" : why_not(r->shape, p));
  }
  if (wrong(r) >= 0) printf(",\"wrong\":\"%s\"", bench_peers[wrong(r)]->name);
  printf(",\"error\":%.3e}\n", r->errors[0]);
}

static void print_table_shape(const bench_shape *s, int32_t n_threads) {
  char heads[32], dims[32];
  snprintf(heads, sizeof heads, "%d/%d", s->heads, s->kv_heads);
  snprintf(dims, sizeof dims, "%d", s->key_dim);
  if (s->key_dim != s->value_dim) snprintf(dims, sizeof dims, "%d/%d", s->key_dim, s->value_dim);
  long long rows = (long long)s->queries * (s->sequences ? s->sequences : 1);
  printf("%-17s %6s %4s %6lld %7lld %-4s %3d", s->bench, heads, dims, rows, (long long)s->keys,
         bench_shape_type_name(s), n_threads);
}

static void print_table(const row *r) {
  double seconds = median(&r->ours);
  bound b = bound_of(r);
  print_table_shape(r->shape, r->n_threads);
  printf(" %9.3f %3.0f%% %8.1f %7.1f %5.2f %-5s", seconds * 1e3, noise(&r->ours) * 100,
         bench_shape_flops(r->shape) / seconds * 1e-9, bench_shape_bytes(r->shape) / seconds * 1e-9,
         b.fraction, b.unit[1] == 'f' ? "fma" : "read");
  if (r->shape->goal > 0) printf(" %.2f", r->shape->goal);
  else printf("     ");
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (r->peers[p].n) printf(" %7.1fx", median(&r->peers[p]) / seconds);
    else if (!bench_peers[p]->missing()) printf(" %7s ", r->failed[p] ? "failed" : "-");
  printf(" %8.1e", r->errors[0]);
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (r->peers[p].n && goal_of(r, p) > 0)
      printf(" %s goal %.1fx", bench_peers[p]->name, goal_of(r, p));
  if (wrong(r) >= 0) printf("  WRONG against %s", bench_peers[wrong(r)]->name);
  printf("\n");
}

void bench_report_begin(const bench_options *options) {
  if (options->json) {
    for (int32_t p = 0; p < bench_n_peers; p++) {
      const bench_peer *peer = bench_peers[p];
      const char *why = peer->missing();
      if (!why && !peer->version) continue;
      printf("{\"bench\":\"peer\",\"peer\":\"%s\",\"%s\":\"%s\"}\n", peer->name,
             why ? "status" : "version", why ? why : peer->version());
    }
    return;
  }
  printf(
      "longattn.h on %s, threads by %s. Limits are measured between the repetitions of each row.\n"
      "limit: fraction of the machine's multiply-adds (fma) or reading (read), whichever binds;\n"
      "goal: what it should reach; +-: noise. GFLOP/s of prefill count half of the square.\n"
      "vs: how much longer a peer takes; -: it does not support the shape, or a row above has it.\n"
      "error: against naive, rounding of int8 and int4 included; ggml of int8 and int4: q8_0, "
      "q4_0.\n",
      lattn_simd_name(), bench_threads_name());
  printf("\n%-17s %6s %4s %6s %7s %-4s %3s %9s %4s %8s %7s %11s %4s", "bench", "heads", "dim",
         "rows", "keys", "type", "thr", "ms", "+-", "GFLOP/s", "GB/s", "limit     ", "goal");
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (!bench_peers[p]->missing()) printf(" vs %-5s", bench_peers[p]->name);
  printf(" %8s\n", "error");
}

void bench_report_wrong(void) { n_wrong++; }

void bench_report_failed(const bench_shape *shape) {
  n_failed++;
  fprintf(stderr, "bench: %s failed\n", shape->bench);
}

void bench_report_rows(const bench_options *options, const bench_shape *shape,
                       const bench_peer *ours) {
  if (!bench_wanted(options, shape->bench, shape->quick)) return;
  bench_input input = bench_input_make(shape, 1);
  void *states[MAX_PEERS] = {NULL};
  void *our_state = ours->unsupported(shape) ? NULL : ours->prepare(shape, &input);
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (!why_not(shape, p)) states[p] = bench_peers[p]->prepare(shape, &input);
  for (int32_t i = 0; i < options->n_thread_counts; i++) {
    row *r = calloc(1, sizeof *r);
    if (!r) break;
    r->shape = shape;
    r->n_threads = options->thread_counts[i];
    r->peer_seconds = options->quick ? 0.3 : PEER_SECONDS;
    if (!our_state || !measure(r, budget_of(options, shape), ours, our_state, states)) {
      bench_report_failed(shape);
    } else if (options->json) {
      print_json(r);
    } else {
      print_table(r);
    }
    if (wrong(r) >= 0) n_wrong++;
    fflush(stdout);
    free(r);
  }
  for (int32_t p = 0; p < bench_n_peers; p++)
    if (states[p]) bench_peers[p]->release(states[p]);
  if (our_state) ours->release(our_state);
  bench_input_free(&input);
}

void bench_report_memory(const bench_options *options, const bench_shape *shape, double bytes,
                         double peak, double least) {
  if (options->json) {
    print_json_shape(shape, 1);
    printf(",\"bytes\":%.0f,\"peak_bytes\":%.0f,\"limit\":%.0f", bytes, peak, least);
    printf(",\"limit_of\":\"bytes\",\"fraction_of_limit\":%.4f}\n", least / bytes);
    return;
  }
  print_table_shape(shape, 1);
  printf(" %10.0f bytes, %.4f of its tokens'; %.0f while appending\n", bytes, bytes / least, peak);
}

void bench_report_capacity(const bench_options *options, const bench_shape *shape,
                           int32_t n_threads, const bench_capacity *c) {
  bench_shape plain = *shape;
  plain.type = LATTN_F16;
  plain.streaming_heads = 0;
  double f16 = bench_shape_bytes(&plain) * shape->layers;
  double rate = bench_shape_bytes(shape) * shape->layers / c->seconds;
  double append = c->fill_seconds / (double)shape->keys;
  if (options->json) {
    print_json_shape(shape, n_threads);
    printf(",\"ms\":%.4f,\"gbs\":%.3f,\"limit\":%.3f,\"limit_of\":\"gbs\"", c->seconds * 1e3,
           rate * 1e-9, c->read * 1e-9);
    printf(",\"fraction_of_limit\":%.4f,\"bytes\":%.0f,\"f16_full_bytes\":%.0f", rate / c->read,
           c->bytes, f16);
    printf(",\"append_us\":%.3f}\n", append * 1e6);
  } else {
    print_table_shape(shape, n_threads);
    printf(" %9.3f %4s %8s %7.1f %5.2f read ", c->seconds * 1e3, "", "", rate * 1e-9,
           rate / c->read);
    printf("     %d layer%s: %.0f bytes, %.3f of f16 with full heads; filled in %.1f us a token\n",
           shape->layers, shape->layers > 1 ? "s" : "", c->bytes, c->bytes / f16, append * 1e6);
  }
  fflush(stdout);
}

/* ---- pairs and costs ---- */

typedef struct pair_row {
  series ours, other, flops;
  int same;
  double error;
} pair_row;

/* Turn i: both, the other first in odd turns, as who runs second may find its keys in a cache. */
static int measure_turn(pair_row *r, int32_t i, const bench_pair *pair, void *state,
                        int32_t n_threads) {
  double other = i & 1 ? pair->other(state, n_threads) : 0, ours = pair->ours(state, n_threads);
  if (!(i & 1)) other = pair->other(state, n_threads);
  add(&r->ours, ours);
  add(&r->other, other);
  if (pair->same && !pair->same(state)) r->same = 0;
  return ours >= 0 && other >= 0;
}

static int measure_pair(pair_row *r, double budget, const bench_pair *pair, void *state,
                        int32_t n_threads) {
  if (!measure_turn(r, 0, pair, state, n_threads)) return 0; /* warms up */
  r->ours.n = r->other.n = 0;
  r->same = 1;
  double start = bench_seconds();
  for (int32_t i = 0; i < MAX_REPETITIONS - 1; i++) { /* an even number of turns */
    if (i >= 4 && !(i & 1) && bench_seconds() - start > budget) break;
    if (!(pair->bytes > 0)) add(&r->flops, bench_limit_flops(n_threads));
    if (!measure_turn(r, i, pair, state, n_threads)) return 0;
  }
  if (r->flops.n) add(&all_flops[n_threads > 1], median(&r->flops));
  if (pair->error) r->error = pair->error(state);
  return r->error >= 0;
}

/* The median of the repetitions' own ratios: both of a repetition met the same machine. */
static double ratio_of(const pair_row *r) {
  series ratios = r->ours;
  for (int32_t i = 0; i < ratios.n; i++) ratios.value[i] = r->other.value[i] / r->ours.value[i];
  return median(&ratios);
}

static void print_pair(const bench_options *options, const bench_shape *shape,
                       const bench_pair *pair, const pair_row *r, int32_t n_threads) {
  double ours = median(&r->ours), ratio = ratio_of(r), flops = bench_shape_flops(shape);
  if (options->json) {
    print_json_shape(shape, n_threads);
    printf(",\"ms\":%.4f,\"ms_best\":%.4f,\"noise\":%.4f,\"repetitions\":%d", ours * 1e3,
           extreme(&r->ours, -1) * 1e3, noise(&r->ours), r->ours.n);
    if (pair->bytes > 0)
      printf(",\"bytes\":%.0f,\"gbs\":%.3f", pair->bytes, pair->bytes / ours * 1e-9);
    else
      printf(",\"gflops\":%.3f,\"fraction_of_gflops\":%.4f", flops / ours * 1e-9,
             flops / ours / median(&r->flops));
    printf(",\"%s_ms\":%.4f,\"vs_%s\":%.3f", pair->other_name, median(&r->other) * 1e3,
           pair->other_name, ratio);
    if (pair->ideal > 0)
      printf(",\"ideal\":%.3f,\"fraction_of_ideal\":%.4f", pair->ideal, ratio / pair->ideal);
    if (shape->goal > 0) printf(",\"goal\":%.2f", shape->goal);
    if (pair->same) printf(",\"same\":%s", r->same ? "true" : "false");
    if (pair->error) printf(",\"error\":%.3e", r->error);
    printf("}\n");
    return;
  }
  print_table_shape(shape, n_threads);
  printf(" %9.3f %3.0f%%", ours * 1e3, noise(&r->ours) * 100);
  if (pair->bytes > 0) printf(" %8s %7.2f %11s", "", pair->bytes / ours * 1e-9, "");
  else printf(" %8.1f %7s %5.2f fma  ", flops / ours * 1e-9, "", flops / ours / median(&r->flops));
  if (shape->goal > 0) printf(" %.2f", shape->goal);
  else printf("     ");
  printf(" %7.3fx %s", ratio, pair->other_name);
  if (pair->ideal > 0) printf(", %.2f of the %.2fx at best", ratio / pair->ideal, pair->ideal);
  if (pair->error) printf(", error %.1e", r->error);
  printf("%s\n", r->same ? "" : "  WRONG");
}

void bench_report_pair(const bench_options *options, const bench_shape *shape,
                       const bench_pair *pair, void *state) {
  int32_t n = pair->one_thread ? 1 : options->n_thread_counts;
  for (int32_t i = 0; i < n; i++) {
    pair_row r = {0};
    if (!measure_pair(&r, budget_of(options, shape), pair, state, options->thread_counts[i])) {
      bench_report_failed(shape);
      return;
    }
    print_pair(options, shape, pair, &r, options->thread_counts[i]);
    if (!r.same) n_wrong++;
    fflush(stdout);
  }
}

/* ---- work ---- */

typedef struct work_row {
  series ours, other, limit;
  double error;
} work_row;

/* The other rests the threads of ours first, and a short run is made twice, as peers are. */
static int run_other(work_row *r, const bench_work *work, void *state, int32_t n_threads) {
  bench_rest();
  double seconds = work->other(state, n_threads);
  if (seconds >= 0 && seconds < SHORT_RUN) seconds = work->other(state, n_threads);
  add(&r->other, seconds);
  return seconds >= 0;
}

static int measure_work(work_row *r, double budget, const bench_work *work, void *state,
                        int32_t n_threads) {
  int others = work->other_name && !work->other_missing;
  int32_t least = work->least ? work->least : 3;
  int32_t most = least > PEER_REPETITIONS ? least : PEER_REPETITIONS; /* of the other */
  double spent = 0;
  if (least > 1 && work->ours(state, n_threads) < 0) return 0; /* warms up */
  double start = bench_seconds();
  for (int32_t i = 0; i < MAX_REPETITIONS; i++) {
    if (i >= least && bench_seconds() - start > budget) break;
    if (work->limit == BENCH_LIMIT_FMA) add(&r->limit, bench_limit_flops(n_threads));
    if (work->limit == BENCH_LIMIT_UPDATE) add(&r->limit, bench_limit_update(n_threads));
    double seconds = work->ours(state, n_threads);
    if (seconds < 0) return 0;
    add(&r->ours, seconds);
    if (!others || i >= most || spent > PEER_SECONDS) continue;
    if (!run_other(r, work, state, n_threads)) return 0;
    spent += r->other.value[r->other.n - 1];
  }
  if (work->limit == BENCH_LIMIT_FMA) add(&all_flops[n_threads > 1], median(&r->limit));
  if (others && work->error) r->error = work->error(state);
  return r->error >= 0;
}

static void print_work(const bench_options *options, const bench_shape *shape,
                       const bench_work *work, const work_row *r, int32_t n_threads, int wrong) {
  int flops = work->limit == BENCH_LIMIT_FMA, update = work->limit == BENCH_LIMIT_UPDATE;
  double ours = median(&r->ours), other = median(&r->other), rate = work->amount / ours;
  double tokens = (double)shape->queries * (shape->sequences ? shape->sequences : 1);
  double fraction = rate / median(&r->limit);
  if (options->json) {
    print_json_shape(shape, n_threads);
    printf(",\"ms\":%.4f,\"ms_best\":%.4f,\"noise\":%.4f,\"repetitions\":%d,\"us_a_token\":%.4f",
           ours * 1e3, extreme(&r->ours, -1) * 1e3, noise(&r->ours), r->ours.n,
           ours / tokens * 1e6);
    if (work->limit)
      printf(",\"%s\":%.3f,\"limit\":%.3f,\"limit_of\":\"%s\",\"fraction_of_limit\":%.4f",
             flops ? "gflops" : "gbs", rate * 1e-9, median(&r->limit) * 1e-9,
             flops ? "gflops" : "update", fraction);
    if (shape->goal > 0) printf(",\"goal\":%.2f", shape->goal);
    if (r->other.n)
      printf(",\"vs_%s\":%.3f,\"ms_%s\":%.4f", work->other_name, other / ours, work->other_name,
             other * 1e3);
    else if (work->other_name)
      printf(",\"vs_%s\":null,\"why_not_%s\":\"%s\"", work->other_name, work->other_name,
             work->other_missing);
    if (work->other_goal > 0) printf(",\"goal_vs_%s\":%.1f", work->other_name, work->other_goal);
    if (r->other.n && work->error) printf(",\"error_%s\":%.3e", work->other_name, r->error);
    printf("%s}\n", wrong ? ",\"wrong\":true" : "");
    return;
  }
  print_table_shape(shape, n_threads);
  printf(" %9.3f %3.0f%%", ours * 1e3, noise(&r->ours) * 100);
  if (flops) printf(" %8.1f %7s %5.2f fma  ", rate * 1e-9, "", fraction);
  else if (update) printf(" %8s %7.1f %5.2f write", "", rate * 1e-9, fraction);
  else printf(" %8s %7s %11s", "", "", "");
  if (shape->goal > 0) printf(" %.2f", shape->goal);
  else printf("     ");
  printf(" %9.3f us/token", ours / tokens * 1e6);
  if (r->other.n) printf(" %6.2fx %s", other / ours, work->other_name);
  else if (work->other_name) printf(" %s: %s", work->other_name, work->other_missing);
  if (r->other.n && work->other_goal > 0) printf(" (goal %.1fx)", work->other_goal);
  if (r->other.n && work->error) printf(" %.1e", r->error);
  printf("%s\n", wrong ? "  WRONG" : "");
}

void bench_report_work(const bench_options *options, const bench_shape *shape,
                       const bench_work *work, void *state) {
  for (int32_t i = 0; i < options->n_thread_counts; i++) {
    work_row r = {0};
    int32_t n_threads = options->thread_counts[i];
    if (!measure_work(&r, budget_of(options, shape), work, state, n_threads)) {
      bench_report_failed(shape);
      return;
    }
    int wrong = r.other.n && work->error && !(r.error <= work->tolerance);
    print_work(options, shape, work, &r, n_threads, wrong);
    n_wrong += wrong;
    fflush(stdout);
  }
}

static double cost_median(const bench_cost *cost) {
  series s = {0};
  for (int32_t i = 0; i < cost->n; i++) add(&s, cost->seconds[i]);
  return median(&s);
}

static void print_json_costs(int32_t n, const bench_cost *costs) {
  for (int32_t i = 0; i < n; i++) {
    printf(",\"%s_us\":%.2f", costs[i].name, cost_median(&costs[i]) * 1e6);
    if (costs[i].bytes >= 0) printf(",\"%s_bytes\":%.0f", costs[i].name, costs[i].bytes);
  }
  printf("}\n");
}

/* Names of the operations above the first row, then a line of times and one of bytes. */
static void print_table_costs(const bench_shape *shape, int32_t n, const bench_cost *costs) {
  static int begun;
  const int width = 53; /* of a row's shape */
  if (!begun) printf("%*s", width + 4, "");
  for (int32_t i = 0; i < n && !begun; i++) printf(" %10s", costs[i].name);
  if (!begun++) printf("\n");
  print_table_shape(shape, 1);
  printf(" us ");
  for (int32_t i = 0; i < n; i++) printf(" %10.1f", cost_median(&costs[i]) * 1e6);
  printf("\n%*s KiB", width, "");
  for (int32_t i = 0; i < n; i++)
    if (costs[i].bytes >= 0) printf(" %10.1f", costs[i].bytes / 1024);
    else printf(" %10s", "");
  printf("\n");
}

void bench_report_costs(const bench_options *options, const bench_shape *shape, int32_t n,
                        const bench_cost *costs) {
  if (options->json) {
    print_json_shape(shape, 1);
    print_json_costs(n, costs);
  } else {
    print_table_costs(shape, n, costs);
  }
  fflush(stdout);
}

/* ---- the end ---- */

static void print_peers(void) {
  for (int32_t p = 0; p < bench_n_peers; p++) {
    const bench_peer *peer = bench_peers[p];
    const char *why = peer->missing();
    if (why) printf("%-6s %s: `make peers` fetches what it needs\n", peer->name, why);
    else if (all_errors[p] > 0)
      printf("%-6s differs from ours by up to %.1e of a row's largest (floats)%s%s\n", peer->name,
             all_errors[p], peer->version ? "; " : "", peer->version ? peer->version() : "");
  }
}

int bench_report_end(const bench_options *options) {
  double busy = 0;
  for (int32_t i = 0; i < options->n_thread_counts && !options->json; i++) {
    int32_t n = options->thread_counts[i], slot = n > 1;
    if (all_flops[slot].n)
      printf("%slimits, %d thread%s: %.1f GFLOP/s of multiply-adds", i ? "" : "\n", n,
             n > 1 ? "s" : "", median(&all_flops[slot]) * 1e-9);
    if (all_read[slot].n) printf(", %.1f GB/s read", median(&all_read[slot]) * 1e-9);
    if (all_flops[slot].n) printf("\n");
    double moved = all_flops[slot].n ? noise(&all_flops[slot]) : 0;
    if (moved > BUSY && moved > busy) busy = moved;
  }
  if (busy > 0 && !options->json)
    printf(
        "this machine was busy: its own limits moved by %.0f%%, and ratios of other rows no less.\n"
        "Run it again when it is idle, or one thread with CLOCK=cpu.\n",
        busy * 100);
  if (!options->json) print_peers();
  return n_wrong + n_failed;
}
