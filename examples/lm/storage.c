/* storage.c - what storage types cost the demo's model: perplexity, needles found and bytes by
 * type of K and V.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   make storage, or: build/lm/storage [FOLDER [THREADS]]. The text is read in pieces of the model's
   trained length, every head keeping everything, once for each pair of types; needles are as in the
   demo. A head of this model has 16 dims: int4 keys have little to spread their outliers over. */
#define _POSIX_C_SOURCE 200809L
#include "demo.h"
#include "needle.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PIECE = 1024, BLOCK = LLAMA_BLOCK, LENGTHS = 4, SAMPLES = 8 };

static const int64_t lengths[LENGTHS] = {256, 448, 640, 896};

typedef struct pair {
  int32_t key_type, value_type;
  const char *name;
} pair;

static const pair pairs[] = {{LATTN_F32, LATTN_F32, "f32"},        {LATTN_F16, LATTN_F16, "f16"},
                             {LATTN_BF16, LATTN_BF16, "bf16"},     {LATTN_I8, LATTN_I8, "int8"},
                             {LATTN_I8, LATTN_I4, "K int8, V int4"}, {LATTN_I4, LATTN_I4, "int4"}};

/* Nats of a piece of the text, or a negative number; *bytes gets those of its tokens. */
static double piece(const demo_input *in, const llama_options *options, int64_t at, float *logits,
                    int64_t *bytes) {
  char error[DEMO_ERROR];
  double nats = 0;
  llama_session *s = llama_session_open(&in->model, options, error);
  for (int64_t i = 0; s && nats >= 0 && i < PIECE; i += BLOCK) {
    int32_t tokens[BLOCK], vocab = in->model.vocab_size;
    for (int j = 0; j < BLOCK; j++) tokens[j] = (unsigned char)in->text[at + i + j];
    if (llama_extend(s, tokens, BLOCK, BLOCK, logits) < 0) nats = -1;
    for (int j = 0; nats >= 0 && j < BLOCK; j++)
      nats += llama_loss(logits + j * vocab, vocab, (unsigned char)in->text[at + i + j + 1]);
  }
  if (s) *bytes = llama_stats(s).token_bytes;
  llama_session_close(s);
  return s ? nats : -1;
}

/* Perplexity with heads of some types; 0: failed. */
static double perplexity(const demo_input *in, const lattn_head *heads, float *logits,
                         int64_t *bytes) {
  llama_options options = {heads, PIECE, LATTN_F32, in->n_threads, NULL, NULL};
  double nats = 0, count = 0;
  for (int64_t at = 0; at + PIECE < in->n_bytes; at += PIECE, count += PIECE) {
    double x = piece(in, &options, at, logits, bytes);
    if (x < 0) return 0;
    nats += x;
  }
  return count > 0 ? exp(nats / count) : 0;
}

/* The share of needles found; negative: failed. */
static double found(const demo_input *in, const lattn_head *heads) {
  static needle_result results[LENGTHS * SAMPLES * NEEDLE_DEPTHS];
  needle_grid grid = {lengths, LENGTHS, SAMPLES, 1};
  if (needle_grid_run(&grid, &in->model, heads, in->text, in->n_bytes, in->n_threads, results))
    return -1;
  return needle_share(results, LENGTHS * SAMPLES * NEEDLE_DEPTHS, 1, DEMO_EXACT);
}

int main(int argc, char **argv) {
  demo_input in;
  char error[DEMO_ERROR];
  double base = 0;
  if (demo_open(&in, argc, argv, error)) return fprintf(stderr, "storage: %s\n", error), 1;
  size_t n_heads = (size_t)in.model.n_layers * (size_t)in.model.n_kv_heads;
  float *logits = (float *)malloc((size_t)BLOCK * (size_t)in.model.vocab_size * sizeof *logits);
  lattn_head *heads = (lattn_head *)calloc(n_heads, sizeof *heads);
  int bad = !logits || !heads;
  printf("                 perplexity              needles    KV cache\n");
  for (size_t i = 0; !bad && i < sizeof pairs / sizeof *pairs; i++) {
    int64_t bytes = 0;
    for (size_t h = 0; h < n_heads; h++) {
      heads[h].key_type = pairs[i].key_type;
      heads[h].value_type = pairs[i].value_type;
    }
    double p = perplexity(&in, heads, logits, &bytes), share = found(&in, heads);
    if (i == 0) base = p;
    bad = p <= 0 || share < 0;
    printf("%-14s %12.4f  %+7.3f %%  %8.2f  %6lld KiB\n", pairs[i].name, p, 100 * (p / base - 1),
           share, (long long)(bytes / 1024));
  }
  if (bad) fprintf(stderr, "storage: not enough memory, or the text is too short\n");
  free(heads);
  free(logits);
  demo_close(&in);
  return bad;
}
