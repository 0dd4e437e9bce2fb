/* soak.c - the demo's model, streaming without end: millions of tokens through sinks and a window.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   make soak, or: build/lm/soak [FOLDER [THREADS]], with SOAK_TOKENS=N in the environment (ten
   million, a quarter of an hour). The text is read over and over. A line a tenth of the way:
   tokens so far, perplexity of the last tenth, bytes of the caches, microseconds a token when one
   follows another. Ends with 1 if the caches grew, or the perplexity of the end is more than 2 %
   off that of the second tenth. */
#define _POSIX_C_SOURCE 200809L
#include "demo.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { BLOCK = LLAMA_BLOCK, SINGLE = 512, PARTS = 10, PAGE = 128 };

typedef struct soak {
  const demo_input *in;
  llama_session *session;
  int64_t n; /* tokens so far */
  double nats, per_token;
  float *logits; /* [BLOCK][vocab_size] */
} soak;

static int32_t token_at(const soak *s, int64_t i) {
  return (int32_t)(unsigned char)s->in->text[i % s->in->n_bytes];
}

/* The next n tokens, in blocks of `block`. */
static lattn_status feed(soak *s, int64_t n, int64_t block) {
  int32_t tokens[BLOCK], vocab = s->in->model.vocab_size;
  for (int64_t count; n > 0; n -= count, s->n += count) {
    count = n < block ? n : block;
    for (int64_t i = 0; i < count; i++) tokens[i] = token_at(s, s->n + i);
    lattn_status status = llama_extend(s->session, tokens, count, count, s->logits);
    if (status < 0) return status;
    for (int64_t i = 0; i < count; i++)
      s->nats += llama_loss(s->logits + i * vocab, vocab, token_at(s, s->n + i + 1));
  }
  return LATTN_OK;
}

/* A tenth of the way; its last tokens one by one, on the clock. The perplexity, or 0: failed. */
static double part(soak *s, int64_t n) {
  s->nats = 0;
  if (feed(s, n - SINGLE, BLOCK) < 0) return 0;
  double begin = llama_seconds();
  if (feed(s, SINGLE, 1) < 0) return 0;
  s->per_token = (llama_seconds() - begin) / SINGLE;
  return exp(s->nats / (double)n);
}

static int run(soak *s, int64_t n) {
  int64_t bytes = 0;
  double second = 0, last = 0;
  printf("    tokens  perplexity  cache bytes  us/token\n");
  for (int i = 0; i < PARTS; i++) {
    last = part(s, n / PARTS / PAGE * PAGE); /* whole pages: each time as much of the newest */
    if (last <= 0) return fprintf(stderr, "soak: the engine failed\n"), 1;
    lattn_cache_stats stats = llama_stats(s->session);
    printf("%10lld  %10.3f  %11lld  %8.1f\n", (long long)s->n, last,
           (long long)stats.streaming_bytes, 1e6 * s->per_token);
    fflush(stdout);
    if (i == 0) bytes = stats.streaming_bytes;
    if (i == 1) second = last;
    if (stats.streaming_bytes != bytes || stats.full_bytes) return puts("the caches grew") < 0 || 1;
  }
  if (fabs(last / second - 1) > 0.02) return puts("the perplexity drifted") < 0 || 1;
  return puts("ok") < 0;
}

int main(int argc, char **argv) {
  char error[DEMO_ERROR];
  const char *wanted = getenv("SOAK_TOKENS");
  int64_t n = wanted ? atoll(wanted) : 10000000;
  demo_input in;
  if (n < 100000) n = 100000; /* several texts a tenth */
  if (demo_open(&in, argc, argv, error)) return fprintf(stderr, "soak: %s\n", error), 1;
  size_t heads = (size_t)in.model.n_layers * (size_t)in.model.n_kv_heads;
  lattn_head *policy = (lattn_head *)calloc(heads, sizeof *policy);
  for (size_t i = 0; policy && i < heads; i++) policy[i] = demo_streaming();
  llama_options options = {policy, 0, LATTN_F16, in.n_threads, NULL, NULL};
  soak s = {&in, NULL, 0, 0, 0, NULL};
  s.logits = (float *)malloc((size_t)BLOCK * (size_t)in.model.vocab_size * sizeof *s.logits);
  s.session = policy && s.logits ? llama_session_open(&in.model, &options, error) : NULL;
  int bad = s.session ? run(&s, n) : (fprintf(stderr, "soak: no session\n"), 1);
  llama_session_close(s.session);
  free(s.logits);
  free(policy);
  demo_close(&in);
  return bad;
}
