/* speculate.c - speculative decoding: guess the next tokens, check all guesses in one call.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   The guesses are looked up: what followed the last few tokens when they stood in the text
   before (prompt lookup: Saxena). They go through the model together, as a chain or as a small
   tree (SpecInfer: Miao et al.), so its weights are read once for all of them; lattn_cache_draft
   gives each row the bits of plain decode, so the text is the same, byte for byte, with every
   policy of the cache: a window evicts nothing for a guess that is dropped. To copy: look_up,
   follow and decode; llama_draft and llama_accept in llama.c.

   speculate [FOLDER [THREADS [TEXTS]]]; build: make speculate, or in this folder: cc -O3
   -march=native -I../.. speculate.c choices.c demo_input.c llama.c policy.c -lm -o speculate */
#include "choices.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
  TEXTS = 6,    /* for each policy, if not told otherwise: continuations of pieces of the text */
  PROMPT = 600, /* tokens of those pieces */
  TOKENS = 256, /* of a continuation: with the prompt, fewer than the model was trained on */
  LENGTH = 1 + PROMPT + 1 + TOKENS, /* BOS, prompt, the token that it gives, continuation */
  REPEATS = 3,                      /* the shortest time counts */
  LONGEST = 16,                     /* tokens that stood before: no need to look whether more did */
  BRANCHES = 3,                     /* guesses that a tree begins with */
  ROOM = 16 /* the newest token and the guesses of a call; at most LLAMA_DRAFTS */
};

/* A row more costs about a third of what a call costs: a guess that is less likely right than that
   is not worth it. (Measured with this model; where weights are read from memory, less.) */
static const double worth = 0.33;

/* How to guess: rows of a call, and guesses for the next token. */
typedef struct method {
  const char *name;
  int32_t rows, branches;
} method;

enum { METHODS = 3 };
static const method methods[METHODS] = {
    {"plain", 1, 0}, {"chain", ROOM, 1}, {"tree", ROOM, BRANCHES}};

/* ---- how often guesses were right ---- */

/* Kinds of guesses: first, second, ... guess for the next token, by how many tokens had stood
   before. Learned as the text goes on. */
enum { KINDS = BRANCHES * (LONGEST + 1) };

typedef struct odds {
  int32_t tried[KINDS], right[KINDS];
} odds;

static int32_t kind_of(int32_t branch, int64_t matched) {
  return branch * (LONGEST + 1) + (int32_t)(matched < LONGEST ? matched : LONGEST);
}

static double chance_of(const odds *o, int32_t kind) {
  return (o->right[kind] + 2.0) / (o->tried[kind] + 3.0);
}

/* ---- guessing ---- */

/* Draft 0 is the newest token, which the cache does not have yet; the others follow from it. */
typedef struct draft_tree {
  int32_t n, tokens[ROOM], parents[ROOM], kinds[ROOM];
} draft_tree;

static int32_t child(const draft_tree *tree, int32_t parent, int32_t token) {
  for (int32_t i = parent + 1; i < tree->n; i++)
    if (tree->parents[i] == parent && tree->tokens[i] == token) return i;
  return -1;
}

/* Adds those of n tokens that are worth it; what is there already is shared. `matched` tokens had
   stood before them. */
static void add_path(draft_tree *tree, const odds *o, const int32_t *tokens, int64_t n,
                     int32_t branch, int64_t matched, int32_t room) {
  int32_t node = 0;
  double chance = 1;
  for (int64_t i = 0; i < n; i++) {
    int32_t next = child(tree, node, tokens[i]), kind = kind_of(i ? 0 : branch, matched + i);
    chance *= chance_of(o, kind);
    if (chance < worth || (next < 0 && tree->n == room)) return;
    if (next < 0) {
      next = tree->n++;
      tree->tokens[next] = tokens[i];
      tree->parents[next] = node;
      tree->kinds[next] = kind;
    }
    node = next;
  }
}

/* A place in the text where the same tokens stand as at its end. */
typedef struct match {
  int64_t end; /* one past them: what followed */
  int64_t n;   /* how many */
} match;

/* Keeps the longest matches with different next tokens, longest first; of equals the newest. */
static int32_t keep_match(match *best, int32_t n, int32_t most, match m, const int32_t *text) {
  int32_t at = 0, last;
  while (at < n && best[at].n >= m.n) {
    if (text[best[at].end] == text[m.end]) return n;
    at++;
  }
  for (last = at; last < n && text[best[last].end] != text[m.end]; last++) continue;
  if (last == n && n == most) last--; /* the shortest one goes */
  else if (last == n) n++;
  if (at > last) return n;
  memmove(best + at + 1, best + at, (size_t)(last - at) * sizeof *best);
  best[at] = m;
  return n;
}

/* Guesses what follows the n tokens of the text. */
static void look_up(draft_tree *tree, const odds *o, const int32_t *text, int64_t n,
                    const method *how, int32_t room) {
  match best[BRANCHES];
  int32_t n_best = 0;
  tree->n = 1;
  tree->tokens[0] = text[n - 1];
  tree->parents[0] = -1;
  for (int64_t end = n - 1; end > 0 && room > 1; end--) {
    match m = {end, 0};
    while (m.n < LONGEST && m.n < end && text[end - 1 - m.n] == text[n - 1 - m.n]) m.n++;
    if (m.n) n_best = keep_match(best, n_best, how->branches, m, text);
  }
  for (int32_t i = 0; i < n_best; i++)
    add_path(tree, o, text + best[i].end, n - best[i].end, i, best[i].n, room);
}

/* ---- checking ---- */

/* Walks down the tree as long as the model's own choice is among the guesses. Returns the number of
   drafts of that path, and in *next the token after it. */
static int32_t follow(const draft_tree *tree, const float *logits, int32_t vocab, int32_t *path,
                      int32_t *next) {
  int32_t n = 0;
  for (int32_t node = 0; node >= 0; node = child(tree, node, *next)) {
    path[n++] = node;
    *next = llama_argmax(logits + (int64_t)node * vocab, vocab);
  }
  return n;
}

/* Guesses that follow from a draft of the path were tried: the one on the path was right. */
static void learn(odds *o, const draft_tree *tree, const int32_t *path, int32_t n_path) {
  for (int32_t i = 1; i < tree->n; i++)
    for (int32_t at = 0; at < n_path; at++) {
      if (path[at] == tree->parents[i]) o->tried[tree->kinds[i]]++;
      if (path[at] == i) o->right[tree->kinds[i]]++;
    }
}

typedef struct counts {
  odds odds;
  uint64_t bits; /* a hash of the logits that the tokens were chosen from */
  int64_t tokens, calls, guessed, right;
  double seconds;
} counts;

/* Goes on from text [n], whose last token the session has not seen, until it has n + wanted. */
static lattn_status decode(llama_session *session, int32_t vocab, const method *how, int32_t *text,
                           int64_t n, int64_t wanted, float *logits, counts *c) {
  draft_tree tree;
  int32_t path[ROOM], next;
  for (int64_t end = n + wanted; n < end;) {
    int32_t n_path = 1, room = end - n < how->rows ? (int32_t)(end - n) : how->rows;
    path[0] = 0;
    lattn_status status;
    look_up(&tree, &c->odds, text, n, how, room);
    if (tree.n == 1) { /* no guess: plain decode */
      status = llama_extend(session, tree.tokens, 1, 1, logits);
      next = llama_argmax(logits, vocab);
    } else {
      status = llama_draft(session, tree.tokens, tree.parents, tree.n, logits);
      if (status) return status;
      n_path = follow(&tree, logits, vocab, path, &next);
      status = llama_accept(session, n_path, path);
    }
    if (status) return status;
    learn(&c->odds, &tree, path, n_path);
    for (int32_t i = 0; i < n_path; i++)
      c->bits = llama_hash(c->bits, logits + (int64_t)path[i] * vocab, vocab);
    for (int32_t i = 1; i < n_path; i++) text[n++] = tree.tokens[path[i]];
    text[n++] = next;
    c->calls++;
    c->guessed += tree.n - 1;
    c->right += n_path - 1;
  }
  c->tokens += wanted;
  return LATTN_OK;
}

/* ---- measuring ---- */

typedef struct input {
  demo_input demo;
  choice policies[CHOICES];
  int32_t n_texts;
} input;

/* A session that has seen BOS and a prompt: the part of the text that begins index / n_texts into
   it. text [LENGTH] gets them, and the token that comes next. */
static llama_session *read_prompt(const input *in, const choice *policy, int index, int32_t *text) {
  static float logits[256]; /* tokens are bytes */
  const char *prompt = in->demo.text + (in->demo.n_bytes - PROMPT) * index / in->n_texts;
  llama_options options = {policy->heads, LENGTH + ROOM, LATTN_F32, in->demo.n_threads, NULL, NULL};
  char error[LLAMA_ERROR];
  llama_session *session = llama_session_open(&in->demo.model, &options, error);
  text[0] = LLAMA_BOS;
  for (int i = 0; i < PROMPT; i++) text[1 + i] = (unsigned char)prompt[i];
  if (session && !llama_extend(session, text, 1 + PROMPT, 1, logits)) {
    text[1 + PROMPT] = llama_argmax(logits, 256);
    return session;
  }
  fprintf(stderr, "speculate: no session: %s\n", session ? "the prompt cannot be read" : error);
  llama_session_close(session);
  return NULL;
}

/* All texts of one policy [n_texts][LENGTH], guessed so; the shortest time of several. */
static int write_texts(const input *in, const choice *policy, const method *how, int32_t *texts,
                       counts *best) {
  static float logits[ROOM * 256];
  double begin = llama_seconds();
  for (int r = 0; r < REPEATS && (!r || llama_seconds() - begin < 2); r++) {
    counts c;
    memset(&c, 0, sizeof c);
    for (int i = 0; i < in->n_texts; i++) {
      llama_session *session = read_prompt(in, policy, i, texts + i * LENGTH);
      if (!session) return -1;
      double start = llama_seconds();
      lattn_status status =
          decode(session, 256, how, texts + i * LENGTH, PROMPT + 2, TOKENS, logits, &c);
      c.seconds += llama_seconds() - start;
      llama_session_close(session);
      if (status) return fprintf(stderr, "speculate: %s\n", lattn_status_text(status)), -1;
    }
    if (!r || c.seconds < best->seconds) *best = c;
  }
  return 0;
}

/* The shortest time of a call with n tokens after a prompt. */
static double call_seconds(const input *in, int32_t n) {
  static float logits[ROOM * 256];
  int32_t text[LENGTH];
  double shortest = 1e9;
  llama_session *session = read_prompt(in, &in->policies[0], 0, text);
  for (int r = 0; session && r < 20; r++) {
    double start = llama_seconds();
    llama_extend(session, text + 1, n, n, logits);
    double seconds = llama_seconds() - start;
    if (seconds < shortest) shortest = seconds;
    llama_truncate(session, 1 + PROMPT);
  }
  llama_session_close(session);
  return shortest;
}

/* ---- showing ---- */

static double speed(const counts *c) { return (double)c->tokens / c->seconds; }

static void show(const counts *c, const counts *plain) {
  printf("  %7.0f %5.2fx %6.0f %% %6.2f", speed(c), speed(c) / speed(plain),
         c->guessed ? 100.0 * (double)c->right / (double)c->guessed : 0.0,
         (double)c->tokens / (double)c->calls);
}

/* Why no more is gained. */
static void show_bound(const input *in, double least) {
  double one = call_seconds(in, 1), all = call_seconds(in, ROOM);
  printf("\nright: of the guesses; a call: tokens that a call of the model gives, on average;\n");
  printf("same bits: the texts, and the logits that each of their tokens was chosen from.\n");
  printf("One row takes %.0f us, %d rows %.0f us: if all guesses were right, %.1fx.\n", 1e6 * one,
         ROOM, 1e6 * all, ROOM * one / all);
  printf("The model is small: its %.1f MB of weights lie in the processor's cache, where reading\n",
         4e-6 * (double)in->demo.model.n_parameters);
  printf("them once for all rows saves less than in memory. And its greedy text repeats itself:\n");
  printf("more guesses are right than in good prose.\n");
  if (in->demo.n_threads > 1)
    printf("(One row is too little work to be shared by threads; several rows are not.)\n");
  if (least < 1)
    printf(
        "Slower than plain decode somewhere (%.2fx): the wrong guesses cost more there than the\n"
        "right ones saved.\n",
        least);
}

static int run(const input *in, int32_t *texts) {
  size_t bytes = (size_t)in->n_texts * LENGTH * sizeof *texts;
  counts c[METHODS];
  double least = 1e9;
  int differ = 0;
  printf("%d texts of %d tokens after %d, the likeliest byte each time; %s, %d thread%s\n\n",
         (int)in->n_texts, TOKENS, 1 + PROMPT, lattn_simd_name(), (int)in->demo.n_threads,
         in->demo.n_threads > 1 ? "s" : "");
  printf("%-15s %8s  %-30s  %-30s\n", "", "plain", "  chain of up to 15 guesses",
         "  tree of up to 15 guesses");
  printf("%-15s %8s", "", "tokens/s");
  for (int i = 1; i < METHODS; i++) printf("  %7s %6s %8s %6s", "tok/s", "gain", "right", "a call");
  printf("  same bits\n");
  for (int p = 0; p < CHOICES; p++) {
    int same = 1;
    for (int i = 0; i < METHODS; i++) {
      int32_t *mine = texts + i * in->n_texts * LENGTH;
      if (write_texts(in, &in->policies[p], &methods[i], mine, &c[i])) return -1;
      if (memcmp(texts, mine, bytes) || c[i].bits != c[0].bits) same = 0;
    }
    printf("%-15s %8.0f", in->policies[p].name, speed(&c[0]));
    for (int i = 1; i < METHODS; i++) {
      show(&c[i], &c[0]);
      if (speed(&c[i]) / speed(&c[0]) < least) least = speed(&c[i]) / speed(&c[0]);
    }
    printf("  %s\n", same ? "yes" : "NO");
    fflush(stdout);
    differ += !same;
  }
  show_bound(in, least);
  return differ ? -1 : 0;
}

int main(int argc, char **argv) {
  static input in;
  char error[DEMO_ERROR];
  in.n_texts = argc > 3 ? atoi(argv[3]) : TEXTS;
  if (in.n_texts < 1 || in.n_texts > 1000 || argc > 4)
    return fprintf(stderr, "usage: %s [FOLDER [THREADS [TEXTS]]]\n", argv[0]), 2;
  if (demo_open(&in.demo, argc > 3 ? 3 : argc, argv, error))
    return fprintf(stderr, "speculate: %s\n", error), 1;
  if (argc < 3) in.demo.n_threads = 1; /* a row alone keeps only one busy: a fair comparison */
  int bad = choices_make(in.policies, &in.demo, error);
  if (bad) fprintf(stderr, "speculate: %s\n", error);
  else {
    size_t n = (size_t)METHODS * (size_t)in.n_texts * LENGTH;
    int32_t *texts = (int32_t *)calloc(n, sizeof *texts);
    bad = texts ? run(&in, texts) : -1;
    free(texts);
    choices_free(in.policies);
  }
  demo_close(&in.demo);
  return bad ? 1 : 0;
}
