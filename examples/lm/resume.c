/* resume.c - save a conversation, and go on after a restart without reading it again.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   The first run reads a prompt, answers, saves all layers' caches to a file, and goes on
   talking. The second run, a new process, loads the file and goes on too: with the same text,
   byte for byte, as the one that never stopped, and as one that reads the whole conversation
   again. The file holds what the policy holds: of a streaming head its sinks and window. To
   copy: save and load below; llama_save and llama_load in llama.c.

   resume FILE [FOLDER], then resume --resume FILE [FOLDER]; without arguments: both, over a
   temporary file. Build: make resume, or in this folder: cc -O3 -march=native -I../.. resume.c
   choices.c demo_input.c llama.c policy.c -lm -o resume */
#include "choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  PROMPT = 800,                /* bytes of the text that the conversation begins with */
  ANSWER = 100,                /* tokens before the restart, and after it */
  SAVED = 1 + PROMPT + ANSWER, /* BOS, prompt, answer */
  ALL = SAVED + ANSWER
};

/* A conversation: its tokens, and the session that has seen all of them but the newest. */
typedef struct talk {
  llama_session *session;
  int32_t tokens[ALL], n;
  uint64_t bits; /* a hash of the logits of what was said last */
} talk;

static int fail(const char *what, const char *why) {
  fprintf(stderr, "resume: %s: %s\n", what, why);
  return -1;
}

/* ---- the file ---- */

static int32_t write_bytes(void *file, const void *data, size_t bytes) {
  return fwrite(data, 1, bytes, (FILE *)file) != bytes;
}

static int32_t read_bytes(void *file, void *data, size_t bytes) {
  return fread(data, 1, bytes, (FILE *)file) != bytes;
}

/* The tokens, which are bytes; then what the caches hold. */
static int save(const talk *t, FILE *file) {
  unsigned char text[SAVED];
  for (int i = 0; i < SAVED; i++) text[i] = (unsigned char)t->tokens[i];
  if (write_bytes(file, text, SAVED)) return fail("save", "the file cannot be written");
  lattn_status status = llama_save(t->session, write_bytes, file);
  return status ? fail("save", lattn_status_text(status)) : 0;
}

static int load(talk *t, FILE *file) {
  unsigned char text[SAVED];
  if (read_bytes(file, text, SAVED)) return fail("load", "the file cannot be read");
  for (int i = 0; i < SAVED; i++) t->tokens[i] = text[i];
  t->n = SAVED;
  lattn_status status = llama_load(t->session, read_bytes, file);
  if (!status && llama_length(t->session) != SAVED - 1) status = LATTN_E_FORMAT;
  return status ? fail("load", lattn_status_text(status)) : 0;
}

/* ---- talking ---- */

static int begin(talk *t, const demo_input *in, const choice *policy) {
  llama_options options = {policy->heads, ALL, LATTN_F32, in->n_threads, NULL, NULL};
  char error[LLAMA_ERROR];
  memset(t, 0, sizeof *t);
  t->session = llama_session_open(&in->model, &options, error);
  return t->session ? 0 : fail("session", error);
}

/* Reads the first n tokens (all but the last of them), as a prompt. */
static int read_again(talk *t, const int32_t *tokens, int32_t n) {
  memcpy(t->tokens, tokens, (size_t)n * sizeof *tokens);
  t->n = n;
  lattn_status status = llama_extend(t->session, tokens, n - 1, 0, NULL);
  return status ? fail("prompt", lattn_status_text(status)) : 0;
}

/* Says n tokens more, always the likeliest. */
static int go_on(talk *t, const demo_input *in, int32_t n) {
  static float logits[256]; /* tokens are bytes */
  t->bits = 0;
  for (int32_t end = t->n + n; t->n < end; t->n++) {
    lattn_status status = llama_extend(t->session, t->tokens + t->n - 1, 1, 1, logits);
    if (status) return fail("answer", lattn_status_text(status));
    t->tokens[t->n] = llama_argmax(logits, in->model.vocab_size);
    t->bits = llama_hash(t->bits, logits, in->model.vocab_size);
  }
  return 0;
}

/* What was said after the restart, or where it would have been. */
static void show_end(const talk *t, const char *name) {
  printf("%s says, from logits whose bits have the hash %016llx:", name,
         (unsigned long long)t->bits);
  for (int32_t i = SAVED; i < t->n; i++) {
    if (i == SAVED || t->tokens[i - 1] == '\n') printf("\n    ");
    if (t->tokens[i] != '\n') putchar(t->tokens[i]);
  }
  putchar('\n');
}

/* ---- the two runs ---- */

static int first_run(const demo_input *in, const choice *policy, FILE *file) {
  talk t;
  int32_t prompt[1 + PROMPT] = {LLAMA_BOS};
  for (int i = 0; i < PROMPT; i++) prompt[i + 1] = (unsigned char)in->text[i];
  int bad = begin(&t, in, policy) || read_again(&t, prompt, 1 + PROMPT) || go_on(&t, in, ANSWER);
  long before = ftell(file);
  double start = llama_seconds();
  if (!bad) bad = save(&t, file) || fflush(file);
  double seconds = llama_seconds() - start;
  if (!bad) bad = go_on(&t, in, ANSWER); /* saving changes nothing */
  if (!bad) {
    show_end(&t, policy->name);
    printf("[%d tokens saved: %ld bytes in %.2f ms]\n", SAVED, ftell(file) - before, 1e3 * seconds);
  }
  llama_session_close(t.session);
  return bad ? -1 : 0;
}

static int second_run(const demo_input *in, const choice *policy, FILE *file) {
  talk t, again;
  int bad = begin(&t, in, policy);
  if (begin(&again, in, policy)) bad = -1;
  double start = llama_seconds();
  if (!bad) bad = load(&t, file);
  double loaded = llama_seconds() - start;
  if (!bad) bad = go_on(&t, in, ANSWER);
  start = llama_seconds();
  if (!bad) bad = read_again(&again, t.tokens, SAVED);
  double prefilled = llama_seconds() - start;
  if (!bad) bad = go_on(&again, in, ANSWER);
  if (!bad) {
    int same = !memcmp(t.tokens, again.tokens, sizeof t.tokens) && t.bits == again.bits;
    show_end(&t, policy->name);
    printf("[%d tokens loaded in %.2f ms, read again in %.2f ms; the same bits: %s]\n", SAVED,
           1e3 * loaded, 1e3 * prefilled, same ? "yes" : "no");
    bad = same ? 0 : -1;
  }
  llama_session_close(t.session);
  llama_session_close(again.session);
  return bad;
}

static int run(const demo_input *in, FILE *file, int first, int second) {
  choice policies[CHOICES];
  char error[DEMO_ERROR];
  int bad = 0;
  if (choices_make(policies, in, error)) return fail("policies", error);
  for (int i = 0; i < CHOICES && first && !bad; i++) bad = first_run(in, &policies[i], file);
  if (first && second && !bad) {
    printf("---- again, from the file ----\n");
    rewind(file);
  }
  for (int i = 0; i < CHOICES && second && !bad; i++) bad = second_run(in, &policies[i], file);
  choices_free(policies);
  return bad;
}

int main(int argc, char **argv) {
  demo_input in;
  char error[DEMO_ERROR];
  int both = argc == 1, resume = argc > 1 && !strcmp(argv[1], "--resume");
  if (!both) argc -= 1 + resume, argv += 1 + resume; /* FILE [FOLDER], as demo_open wants it */
  if (argc < 1 || argc > 2) return fprintf(stderr, "usage: resume [[--resume] FILE [FOLDER]]\n"), 2;
  if (demo_open(&in, argc, argv, error)) return fail("input", error), 1;
  in.n_threads = 1;
  const char *name = both ? "a temporary file" : argv[0];
  FILE *file = both ? tmpfile() : fopen(name, resume ? "rb" : "wb");
  int bad = file ? run(&in, file, !resume, resume || both) : fail(name, "cannot be opened");
  if (file && fclose(file)) bad = fail(name, "cannot be written");
  demo_close(&in);
  return bad ? 1 : 0;
}
