/* demo.c - a real model under four cache policies, and one with a fixed state, side by side.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Perplexity as the text outgrows the window, needles in a haystack, bytes kept, tokens per second.
   Prints tables and draws two pictures, into build/run/.

   demo [FOLDER [THREADS]]: FOLDER (examples/lm) has model.bin, hybrid.bin, text.txt and
   heads.tsv. */
#define _POSIX_C_SOURCE 200809L
#include "choose.h"
#include "demo.h"
#include "needle.h"
#include "plot.h"
#include "policy.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
  SEED = 1,
  POLICIES = 5, /* the last is the hybrid */
  HYBRID = 4,
  SPLIT = 3,
  LENGTHS = 4, /* of the needle grid, from twice the streaming window on */
  SAMPLES = 8, /* of each cell */
  RANDOM_SPLITS = 20,
  SPLIT_LENGTH = 2, /* of the lengths: where random splits are tried */
  DECODED = 256,    /* tokens, to measure the speed of decoding */
  MOST_READ = 8192,
  BANDS = 6
};

static const int64_t lengths[LENGTHS] = {256, 448, 640, 896};
static const double split_sparsity = 0.75; /* three of four heads stream */
static const char out_folder[] = "build/run";

/* A model, one way to keep its past, and what came of it. */
typedef struct policy {
  const char *name, *color;
  const llama_model *model;
  lattn_head *heads; /* [n_layers][n_kv_heads], or NULL = all full */
  double *losses;    /* [n_bytes] nats of each token of the text */
  needle_result needles[LENGTHS * SAMPLES * NEEDLE_DEPTHS];
  double cells[LENGTHS * NEEDLE_DEPTHS], found;
  int64_t bytes_kept;     /* at the end of the text: caches and states */
  double prefill, decode; /* tokens a second */
} policy;

static int fail(const char *what) {
  fprintf(stderr, "demo: %s\n", what);
  return -1;
}

/* ---- the policies ---- */

/* How much of the text is read for the perplexity. */
static int64_t length_read(const demo_input *in) {
  return in->n_bytes < MOST_READ ? in->n_bytes : MOST_READ;
}

static void set_all(lattn_head *heads, int32_t n, lattn_head head) {
  for (int32_t i = 0; i < n; i++) heads[i] = head;
}

/* Full; window only, of as many tokens as sinks + window have together; sinks + window; the
   measured split; the hybrid. Returns the number of full heads of the split, or -1. */
static int32_t make_policies(const demo_input *in, const llama_model *hybrid,
                             const head_table *table, policy *p) {
  static const char *const names[POLICIES] = {"full cache", "window only", "sinks + window",
                                              "head split", "gated delta net"};
  static const char *const colors[POLICIES] = {"#808080", "#d95f02", "#1b9e77", "#7570b3",
                                               "#c51b7d"};
  int32_t n = in->model.n_layers * in->model.n_kv_heads;
  lattn_head window = demo_streaming();
  window.sinks = 0;
  window.window = DEMO_SINKS + DEMO_WINDOW;
  for (int32_t i = 0; i < POLICIES; i++) {
    p[i].name = names[i];
    p[i].color = colors[i];
    p[i].losses = (double *)calloc((size_t)length_read(in), sizeof(double));
    p[i].model = i == HYBRID ? hybrid : &in->model;
    int streams = i && i != HYBRID;
    if (streams) p[i].heads = (lattn_head *)calloc((size_t)n, sizeof(lattn_head));
    if (!p[i].losses || (streams && !p[i].heads)) return fail("not enough memory");
  }
  set_all(p[1].heads, n, window);
  set_all(p[2].heads, n, demo_streaming());
  return head_table_split(table, split_sparsity, demo_streaming(), p[SPLIT].heads);
}

/* ---- measuring ---- */

/* The loss of each byte of the text given those before, the bytes kept, and the speed. */
static int read_text(const demo_input *in, policy *p) {
  int64_t n = length_read(in);
  int32_t vocab = p->model->vocab_size;
  llama_options options = {p->heads, n + 1 + DECODED, LATTN_F32, in->n_threads, NULL, NULL};
  char error[LLAMA_ERROR];
  llama_session *session = llama_session_open(p->model, &options, error);
  int32_t *tokens = (int32_t *)malloc(((size_t)n + 1) * sizeof *tokens), token;
  float *logits = (float *)malloc((size_t)(n + 1) * (size_t)vocab * sizeof *logits);
  if (!session || !tokens || !logits) return fail("not enough memory");
  tokens[0] = LLAMA_BOS;
  for (int64_t i = 0; i < n; i++) tokens[i + 1] = (unsigned char)in->text[i];
  double start = llama_seconds();
  lattn_status status = llama_extend(session, tokens, n, n, logits);
  p->prefill = (double)n / (llama_seconds() - start);
  for (int64_t i = 0; i < n; i++)
    p->losses[i] = llama_loss(logits + i * vocab, vocab, tokens[i + 1]);
  lattn_cache_stats stats = llama_stats(session);
  p->bytes_kept = stats.full_bytes + stats.streaming_bytes + llama_state_bytes(session);
  start = llama_seconds();
  token = tokens[n];
  for (int32_t i = 0; i < DECODED && !status; i++) {
    status = llama_extend(session, &token, 1, 1, logits);
    token = llama_argmax(logits, vocab);
  }
  p->decode = DECODED / (llama_seconds() - start);
  llama_session_close(session);
  free(tokens);
  free(logits);
  return status ? fail(lattn_status_text(status)) : 0;
}

static int find_needles(const demo_input *in, policy *p) {
  needle_grid grid = {lengths, LENGTHS, SAMPLES, SEED};
  if (needle_grid_run(&grid, p->model, p->heads, in->text, in->n_bytes, in->n_threads, p->needles))
    return fail("the needles cannot be run");
  for (int32_t l = 0; l < LENGTHS; l++)
    for (int32_t d = 0; d < NEEDLE_DEPTHS; d++)
      p->cells[l * NEEDLE_DEPTHS + d] = needle_share(p->needles + l * SAMPLES * NEEDLE_DEPTHS + d,
                                                     SAMPLES, NEEDLE_DEPTHS, DEMO_EXACT);
  p->found = needle_share(p->needles, LENGTHS * SAMPLES * NEEDLE_DEPTHS, 1, DEMO_EXACT);
  return 0;
}

/* The share of needles found by each random split, at one length, with the cases of the grid. */
static int try_random_splits(const demo_input *in, int32_t n_full, double *found) {
  static needle_result results[SAMPLES * NEEDLE_DEPTHS];
  int32_t n = in->model.n_layers * in->model.n_kv_heads;
  lattn_head *heads = (lattn_head *)malloc((size_t)n * sizeof *heads);
  needle_grid grid = {lengths + SPLIT_LENGTH, 1, SAMPLES, SEED};
  uint64_t state = SEED;
  int bad = !heads;
  for (int32_t i = 0; i < RANDOM_SPLITS && !bad; i++) {
    choose_random(n, n_full, demo_streaming(), &state, heads);
    bad = needle_grid_run(&grid, &in->model, heads, in->text, in->n_bytes, in->n_threads, results);
    found[i] = needle_share(results, SAMPLES * NEEDLE_DEPTHS, 1, DEMO_EXACT);
  }
  free(heads);
  return bad ? fail("the random splits cannot be run") : 0;
}

/* ---- showing ---- */

static double mean(const double *values, int64_t begin, int64_t end) {
  double sum = 0;
  for (int64_t i = begin; i < end; i++) sum += values[i];
  return sum / (double)(end - begin); /* NaN for nothing */
}

static void show_losses(const demo_input *in, const policy *p) {
  int64_t edges[BANDS + 1] = {0, 128, 256, 512, 1024, 2048, 0};
  char cell[32];
  edges[BANDS] = length_read(in);
  printf("\nLoss by position, nats a byte (perplexity)\n%-16s", "");
  for (int32_t b = 0; b < BANDS; b++) {
    snprintf(cell, sizeof cell, "%lld-%lld", (long long)edges[b], (long long)edges[b + 1]);
    printf("  %-12s", cell);
  }
  for (int32_t i = 0; i < POLICIES; i++) {
    printf("\n%-16s", p[i].name);
    for (int32_t b = 0; b < BANDS; b++) {
      double nats = mean(p[i].losses, edges[b], edges[b + 1]);
      snprintf(cell, sizeof cell, "%.2f (%.1f)", nats, exp(nats));
      printf("  %-12s", cell);
    }
  }
  printf("\n");
}

static void show_needles(const policy *p) {
  printf("\nNeedles found (the next %d letters right), length by depth, %d samples a cell\n",
         DEMO_EXACT, SAMPLES);
  for (int32_t i = 0; i < POLICIES; i++) {
    printf("%-16s", p[i].name);
    for (int32_t d = 0; d < NEEDLE_DEPTHS; d++) printf("%6.0f %%", 100 * needle_depths[d]);
    printf("    mean %.2f\n", p[i].found);
    for (int32_t l = 0; l < LENGTHS; l++) {
      printf("%16lld", (long long)lengths[l]);
      for (int32_t d = 0; d < NEEDLE_DEPTHS; d++)
        printf("%8.2f", p[i].cells[l * NEEDLE_DEPTHS + d]);
      printf("\n");
    }
  }
}

static void show_split(const head_table *table, const policy *split, int32_t n_full,
                       double measured, const double *found) {
  double sum = 0, best = 0;
  printf("\nHead split: gates of heads.tsv (KV heads side by side, * = full)\n");
  for (int32_t l = 0; l < table->n_layers; l++) {
    printf("  layer %d ", (int)l);
    for (int32_t g = 0; g < table->n_kv_heads; g++) {
      int32_t i = l * table->n_kv_heads + g;
      printf("  %.3f%c", table->gates[i], split->heads[i].policy == LATTN_HEAD_FULL ? '*' : ' ');
    }
    printf("\n");
  }
  for (int32_t i = 0; i < RANDOM_SPLITS; i++) {
    sum += found[i];
    if (found[i] > best) best = found[i];
  }
  printf(
      "needles found at length %lld with %d of %d heads full: measured split %.2f; "
      "%d random splits: mean %.2f, best %.2f\n",
      (long long)lengths[SPLIT_LENGTH], (int)n_full, (int)(table->n_layers * table->n_kv_heads),
      measured, RANDOM_SPLITS, sum / RANDOM_SPLITS, best);
}

static void show_summary(const demo_input *in, const policy *p) {
  int64_t n = length_read(in), trained = in->model.max_length < n ? in->model.max_length : n;
  printf(
      "\n                 perplexity at positions          needles   bytes kept   prefill    "
      "decode\n");
  printf(
      "                  0-%-4d  %4d-%-5lld  %5lld-%-5lld    found   after %lld  tokens/s  "
      "tokens/s\n",
      DEMO_SINKS + DEMO_WINDOW, DEMO_SINKS + DEMO_WINDOW, (long long)trained, (long long)trained,
      (long long)n, (long long)n);
  for (int32_t i = 0; i < POLICIES; i++)
    printf("%-16s %7.2f %11.2f %12.2f %8.2f %8.0f KiB %9.0f %9.0f\n", p[i].name,
           exp(mean(p[i].losses, 0, DEMO_SINKS + DEMO_WINDOW)),
           exp(mean(p[i].losses, DEMO_SINKS + DEMO_WINDOW, trained)),
           exp(mean(p[i].losses, trained, n)), p[i].found, (double)p[i].bytes_kept / 1024,
           p[i].prefill, p[i].decode);
  if (p[0].found < 0.9)
    printf(
        "Note: the full cache finds less than 0.9 of the needles: the model is small, see "
        "MODEL.md.\n");
}

/* ---- pictures ---- */

static int draw(const demo_input *in, const policy *p, double measured, const double *found) {
  plot_curve curves[POLICIES];
  plot_grid grids[POLICIES];
  plot_splits splits = {measured, found, RANDOM_SPLITS, lengths[SPLIT_LENGTH]};
  char perplexity[64], needle[64];
  snprintf(perplexity, sizeof perplexity, "%s/perplexity.svg", out_folder);
  snprintf(needle, sizeof needle, "%s/needle.svg", out_folder);
  for (int32_t i = 0; i < POLICIES; i++) {
    plot_curve curve = {p[i].name, p[i].color, p[i].losses};
    plot_grid grid = {p[i].name, p[i].cells};
    curves[i] = curve;
    grids[i] = grid;
  }
  if (mkdir("build", 0777) && errno != EEXIST) return fail("build/ cannot be made");
  if (mkdir(out_folder, 0777) && errno != EEXIST) return fail("build/run/ cannot be made");
  if (plot_perplexity(perplexity, curves, POLICIES, length_read(in), DEMO_SINKS + DEMO_WINDOW,
                      in->model.max_length) ||
      plot_needle(needle, grids, POLICIES, lengths, LENGTHS, needle_depths, NEEDLE_DEPTHS, splits))
    return fail("the pictures cannot be written");
  printf("\nPictures: %s, %s\n", perplexity, needle);
  return 0;
}

/* ---- all of it ---- */

static int run(const demo_input *in, const llama_model *hybrid, const head_table *table,
               policy *p) {
  double found[RANDOM_SPLITS], measured, start = llama_seconds();
  int32_t n_full = make_policies(in, hybrid, table, p);
  if (n_full < 0) return -1;
  printf(
      "A Llama of %lld parameters over bytes, trained on %d tokens; %s, %d threads, seed %d.\n"
      "Streaming heads keep %d sinks and a window of %d; window only keeps %d. The text has %lld "
      "bytes.\n"
      "The gated delta net is a second model: %lld parameters; %d of its %d layers have a state of "
      "fixed size,\nthe other attends to a window of %d.\n",
      (long long)in->model.n_parameters, (int)in->model.max_length, lattn_simd_name(),
      (int)in->n_threads, SEED, DEMO_SINKS, DEMO_WINDOW, DEMO_SINKS + DEMO_WINDOW,
      (long long)length_read(in), (long long)hybrid->n_parameters, (int)hybrid->n_deltas,
      (int)hybrid->n_layers, (int)hybrid->window);
  for (int32_t i = 0; i < POLICIES; i++)
    if (read_text(in, &p[i])) return -1;
  show_losses(in, p);
  fflush(stdout);
  for (int32_t i = 0; i < POLICIES; i++)
    if (find_needles(in, &p[i])) return -1;
  show_needles(p);
  fflush(stdout);
  if (try_random_splits(in, n_full, found)) return -1;
  measured = needle_share(p[SPLIT].needles + SPLIT_LENGTH * SAMPLES * NEEDLE_DEPTHS,
                          SAMPLES * NEEDLE_DEPTHS, 1, DEMO_EXACT);
  show_split(table, &p[SPLIT], n_full, measured, found);
  if (draw(in, p, measured, found)) return -1;
  show_summary(in, p);
  printf("%.1f seconds\n", llama_seconds() - start);
  return 0;
}

int main(int argc, char **argv) {
  demo_input in;
  llama_model hybrid;
  head_table table;
  static policy policies[POLICIES];
  char error[DEMO_ERROR], path[DEMO_PATH];
  if (demo_open(&in, argc, argv, error)) return fail(error), 1;
  demo_file(path, &in, "heads.tsv");
  int bad = head_table_load(&table, path, error);
  if (bad) fail(error);
  else {
    demo_file(path, &in, "hybrid.bin");
    bad = llama_model_load(&hybrid, path, error);
    if (bad) fail(error);
    else if (hybrid.vocab_size != in.model.vocab_size) bad = fail("hybrid.bin has other tokens");
    else if (table.n_layers != in.model.n_layers || table.n_kv_heads != in.model.n_kv_heads)
      bad = fail("heads.tsv is not for this model: make heads");
    else bad = run(&in, &hybrid, &table, policies);
    llama_model_free(&hybrid);
    head_table_free(&table);
  }
  for (int32_t i = 0; i < POLICIES; i++) {
    free(policies[i].heads);
    free(policies[i].losses);
  }
  demo_close(&in);
  return bad ? 1 : 0;
}
