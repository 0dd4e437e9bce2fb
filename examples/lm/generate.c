/* generate.c - prompt in, text out, on a llama2.c checkpoint, with a KV cache of your choice, or on
 * a hybrid, which keeps what it keeps.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   cd examples/lm && cc -O3 -march=native -fopenmp -I../.. generate.c llama.c tokenizer.c policy.c
   -lm -o generate; or, at the top: make examples. */
#define _POSIX_C_SOURCE 200809L
#include "llama.h"
#include "policy.h"
#include "tokenizer.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char usage[] =
    "usage: generate [options] [PROMPT]\n"
    "  --model FILE       llama2.c checkpoint (examples/lm/model.bin), or a hybrid (hybrid.bin "
    "there)\n"
    "  --tokenizer FILE   tokenizer.bin of llama2.c (none: tokens are bytes)\n"
    "  --file FILE        take the prompt from a file\n"
    "  -n N               tokens to generate (256; 0 = without end, if every head streams)\n"
    "  --window N         every head keeps the newest N tokens, the own one included ...\n"
    "  --sinks N          ... and the first N tokens (4)\n"
    "  --heads FILE       only heads of a low gate in this table (DuoAttention's format) do so;\n"
    "                     a config.json beside it gives sinks = sink_size and window =\n"
    "                     recent_size + 1, at absolute positions\n"
    "  --sparsity X       share of heads that stream, lowest gates first (else: gates below 0.5)\n"
    "  --kv-type T        type of the KV cache: f32, f16, bf16, i8 or i4 (f32)\n"
    "  --threads N        (1)\n"
    "  --temperature X    0 = always the likeliest token (0)\n"
    "  --seed N           of the random choices (1)\n";

typedef struct settings {
  const char *model, *tokenizer, *file, *heads, *prompt;
  int64_t n, sinks, window; /* -1 = not given */
  uint64_t seed;
  int32_t kv_type, threads;
  double sparsity, temperature;
} settings;

/* ---- command line ---- */

static int fail(const char *what, const char *which) {
  fprintf(stderr, "generate: %s%s%s\n", what, which ? ": " : "", which ? which : "");
  return -1;
}

static int whole(const char *text, int64_t least, int64_t most, int64_t *value) {
  char *end;
  errno = 0;
  long long v = strtoll(text, &end, 10);
  if (end == text || *end || errno || v < least || v > most) return fail("bad number", text);
  *value = v;
  return 0;
}

static int real(const char *text, double least, double most, double *value) {
  char *end;
  double v = strtod(text, &end);
  if (end == text || *end || !(v >= least && v <= most)) return fail("bad number", text);
  *value = v;
  return 0;
}

static int kv_type(const char *text, int32_t *type) {
  static const char *const names[] = {"f32", "f16", "bf16", "i8", "i4"}; /* LATTN_F32 = 1 ... */
  for (int32_t i = 0; i < 5; i++)
    if (!strcmp(text, names[i])) return *type = i + 1, 0;
  return fail("unknown type", text);
}

static int set_option(settings *s, const char *name, const char *value) {
  const int64_t most = (int64_t)1 << 40;
  int64_t number = 0;
  int bad = 0;
  if (!strcmp(name, "--model")) s->model = value;
  else if (!strcmp(name, "--tokenizer")) s->tokenizer = value;
  else if (!strcmp(name, "--file")) s->file = value;
  else if (!strcmp(name, "--heads")) s->heads = value;
  else if (!strcmp(name, "-n")) bad = whole(value, 0, most, &s->n);
  else if (!strcmp(name, "--sinks")) bad = whole(value, 0, most, &s->sinks);
  else if (!strcmp(name, "--window")) bad = whole(value, 1, most, &s->window);
  else if (!strcmp(name, "--sparsity")) bad = real(value, 0, 1, &s->sparsity);
  else if (!strcmp(name, "--temperature")) bad = real(value, 0, 1e6, &s->temperature);
  else if (!strcmp(name, "--kv-type")) bad = kv_type(value, &s->kv_type);
  else if (!strcmp(name, "--threads")) {
    bad = whole(value, 1, 1024, &number);
    s->threads = (int32_t)number;
  } else if (!strcmp(name, "--seed")) {
    bad = whole(value, 0, INT64_MAX, &number);
    s->seed = (uint64_t)number;
  } else return fail("unknown option (see --help)", name);
  return bad;
}

static int parse(settings *s, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    if (argv[i][0] != '-' || !argv[i][1]) {
      if (s->prompt) return fail("more than one prompt", argv[i]);
      s->prompt = argv[i];
    } else if (i + 1 == argc) return fail("unknown option, or a value is missing", argv[i]);
    else if (set_option(s, argv[i], argv[i + 1])) return -1;
    else i++;
  }
  if (s->prompt && s->file) return fail("a prompt and a file with a prompt", NULL);
  if (s->sparsity >= 0 && !s->heads) return fail("--sparsity needs --heads", NULL);
  if (s->sinks >= 0 && s->window < 0 && !s->heads) return fail("--sinks needs --window", NULL);
  return 0;
}

/* ---- input ---- */

/* The prompt's bytes; the caller frees them. */
static char *read_prompt(const settings *s, int64_t *n_bytes) {
  size_t room = 1 << 16, n = 0, got;
  FILE *file = s->file ? fopen(s->file, "rb") : NULL;
  char *text = (char *)malloc(room);
  if (s->file && !file) return fail("cannot be opened", s->file), free(text), NULL;
  while (file && text && (got = fread(text + n, 1, room - n, file)) > 0) {
    n += got;
    if (n < room) continue;
    char *more = (char *)realloc(text, room *= 2);
    if (!more) free(text);
    text = more;
  }
  if (file) fclose(file);
  if (!file && s->prompt && text) {
    n = strlen(s->prompt);
    char *copy = (char *)realloc(text, n + 1);
    if (copy) memcpy(copy, s->prompt, n);
    text = copy;
  }
  if (!text) fail("not enough memory for the prompt", NULL);
  *n_bytes = (int64_t)n;
  return text;
}

/* Sets the policy of each head: NULL heads on return 0 = all full. */
static int choose_heads(const settings *s, const llama_model *m, lattn_head **heads) {
  int64_t sink_size, recent_size, n = (int64_t)m->n_layers * m->n_kv_heads;
  lattn_head streaming = {
      .policy = LATTN_HEAD_STREAMING, .sinks = s->sinks, .window = s->window};
  head_table table;
  char error[POLICY_ERROR];
  *heads = NULL;
  if (s->window < 0 && !s->heads) return 0;
  if (m->n_deltas) return fail("--window and --heads are not for a hybrid", NULL);
  if (s->heads && !head_table_config(s->heads, &sink_size, &recent_size)) {
    streaming.positions = LATTN_POSITIONS_ABSOLUTE;
    if (s->sinks < 0) streaming.sinks = sink_size;
    if (s->window < 0) streaming.window = recent_size + 1;
  }
  if (streaming.window < 0)
    return fail("--heads needs --window, or a config.json beside", s->heads);
  if (streaming.sinks < 0) streaming.sinks = 4;
  *heads = (lattn_head *)malloc((size_t)n * sizeof **heads);
  if (!*heads) return fail("not enough memory", NULL);
  for (int64_t i = 0; i < n; i++) (*heads)[i] = streaming;
  if (!s->heads) return 0;
  if (head_table_load(&table, s->heads, error)) return fail(error, NULL);
  int fits = table.n_layers == m->n_layers && table.n_kv_heads == m->n_kv_heads;
  int32_t n_full = fits ? head_table_split(&table, s->sparsity, streaming, *heads) : 0;
  head_table_free(&table);
  if (!fits) return fail("not a table for this model's layers and KV heads", s->heads);
  fprintf(stderr, "%d of %d KV heads full, the others %lld sinks + window %lld\n", (int)n_full,
          (int)n, (long long)streaming.sinks, (long long)streaming.window);
  return 0;
}

/* ---- generating ---- */

static int32_t sample(const float *logits, int32_t n, double temperature, uint64_t *state) {
  int32_t best = llama_argmax(logits, n);
  if (temperature <= 0) return best;
  double largest = (double)logits[best], total = 0, target;
  for (int32_t i = 0; i < n; i++) total += exp(((double)logits[i] - largest) / temperature);
  target = (double)(llama_random(state) >> 11) * 0x1p-53 * total;
  for (int32_t i = 0; i < n; i++) {
    target -= exp(((double)logits[i] - largest) / temperature);
    if (target < 0) return i;
  }
  return best;
}

static int show_progress(void *user, int64_t done, int64_t total) {
  (void)user;
  fprintf(stderr, "\rprompt: %lld of %lld tokens%s", (long long)done, (long long)total,
          done == total ? "\n" : "");
  return 0;
}

/* Prints tokens until n are out, the sequence ends or the cache is full; returns how many. */
static int64_t generate(const settings *s, llama_session *session, const llama_model *m,
                        const tokenizer *words, int32_t last, float *logits) {
  uint64_t state = s->seed;
  char *text = (char *)malloc((size_t)words->longest);
  int64_t done = 0;
  while (text && (!s->n || done < s->n)) {
    int32_t token = sample(logits, m->vocab_size, s->temperature, &state);
    if (token == LLAMA_BOS || (token == LLAMA_EOS && words->pieces)) break;
    fwrite(text, 1, (size_t)tokenizer_decode(words, last, token, text), stdout);
    fflush(stdout);
    last = token;
    done++;
    lattn_status status = llama_extend(session, &token, 1, 1, logits);
    if (status) return fail("stopped", lattn_status_text(status)), free(text), done;
  }
  free(text);
  return done;
}

static void report(const llama_session *session, int64_t n_prompt, double prefill, int64_t n,
                   double decode) {
  lattn_cache_stats stats = llama_stats(session);
  fprintf(stderr, "prefill %lld tokens, %.0f tokens/s; decode %lld tokens, %.0f tokens/s\n",
          (long long)n_prompt, (double)n_prompt / prefill, (long long)n,
          (double)n / (decode > 0 ? decode : 1));
  fprintf(stderr,
          "KV cache: %lld tokens seen, %.1f KiB in full heads, %.1f KiB in streaming heads\n",
          (long long)stats.n_tokens, (double)stats.full_bytes / 1024,
          (double)stats.streaming_bytes / 1024);
  if (llama_state_bytes(session))
    fprintf(stderr, "states of fixed size: %.1f KiB\n", (double)llama_state_bytes(session) / 1024);
}

/* Prompt, then answer, on an open session. */
static int speak(const settings *s, llama_session *session, const llama_model *m,
                 const tokenizer *words, const int32_t *tokens, int64_t n_tokens) {
  float *logits = (float *)malloc((size_t)m->vocab_size * sizeof(float));
  double start = llama_seconds(), middle;
  if (!logits) return fail("not enough memory", NULL);
  lattn_status status = llama_extend(session, tokens, n_tokens, 1, logits);
  middle = llama_seconds();
  if (status) fail("the prompt cannot be read", lattn_status_text(status));
  if (!status) {
    int64_t n = generate(s, session, m, words, tokens[n_tokens - 1], logits);
    double end = llama_seconds();
    printf("\n");
    report(session, n_tokens, middle - start, n, end - middle);
  }
  free(logits);
  return status ? -1 : 0;
}

static int run(const settings *s, const llama_model *m, const tokenizer *words) {
  int64_t n_bytes = 0, n_tokens = 0;
  char error[LLAMA_ERROR];
  lattn_head *heads = NULL;
  llama_session *session = NULL;
  char *prompt = read_prompt(s, &n_bytes);
  int32_t *tokens = (int32_t *)malloc(((size_t)n_bytes + 2) * sizeof *tokens);
  int bad = !prompt || choose_heads(s, m, &heads);
  if (!bad && !tokens) bad = fail("not enough memory", NULL);
  if (!bad) {
    n_tokens = tokenizer_encode(words, prompt, n_bytes, tokens);
    bad = n_tokens < 0 ? fail("not enough memory for the prompt", NULL) : 0;
  }
  if (!bad) {
    llama_options o = {heads, n_tokens + (s->n ? s->n : 1 << 16), s->kv_type, s->threads, NULL,
                       NULL};
    if (isatty(STDERR_FILENO) && n_tokens > 8 * LLAMA_BLOCK) o.progress = show_progress;
    session = llama_session_open(m, &o, error);
    bad = session ? speak(s, session, m, words, tokens, n_tokens) : fail(error, NULL);
  }
  llama_session_close(session);
  free(prompt);
  free(tokens);
  free(heads);
  return bad;
}

int main(int argc, char **argv) {
  settings s = {
      "examples/lm/model.bin", NULL, NULL, NULL, NULL, 256, -1, -1, 1, LATTN_F32, 1, -1, 0};
  char error[LLAMA_ERROR];
  llama_model model;
  tokenizer words;
  if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))) return puts(usage) < 0;
  if (parse(&s, argc, argv)) return 2;
  if (llama_model_load(&model, s.model, error)) return fail(error, NULL), 1;
  int bad = tokenizer_load(&words, s.tokenizer, model.vocab_size, error);
  if (bad) fail(error, NULL);
  else {
    bad = run(&s, &model, &words);
    tokenizer_free(&words);
  }
  llama_model_free(&model);
  return bad ? 1 : 0;
}
