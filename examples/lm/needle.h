/* needle.h - needles in a haystack: pass phrases planted in text and asked for at its end.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A needle is <abcdefghijkl>, twelve different random letters, planted once in a text; the
   question at the end is <abc, and the model is right when its greedy continuation says the next
   letters. */
#ifndef NEEDLE_H
#define NEEDLE_H

#include "llama.h"

enum {
  NEEDLE_LETTERS = 12,                        /* of a phrase */
  NEEDLE_CUE = 3,                             /* of them are said in the question */
  NEEDLE_ASKED = NEEDLE_LETTERS - NEEDLE_CUE, /* and these are expected */
  NEEDLE_DEPTHS = 5
};

/* One haystack with a needle at each of NEEDLE_DEPTHS depths in turn: so many prompts, which share
   the text before their needles. */
typedef struct needle_case {
  const char *text;       /* [filler] */
  int64_t filler, length; /* length counts BOS, text, needle and question */
  int64_t at[NEEDLE_DEPTHS];
  char phrases[NEEDLE_DEPTHS][NEEDLE_LETTERS];
} needle_case;

typedef struct needle_result {
  int32_t n_right;        /* letters before the first wrong one */
  double log_probability; /* mean of the letters asked for, each given those before it */
} needle_result;

/* The depths: the share of the text that comes before the needle. */
extern const double needle_depths[NEEDLE_DEPTHS];

/* A random number below n. */
int64_t random_below(uint64_t *state, int64_t n);

/* Takes the text from a random place. 0, or -1: the text or the length is too short. */
int needle_make(needle_case *c, const char *text, int64_t n_bytes, int64_t length, uint64_t *state);

/* Prompt i of a case, from BOS to the last letter but one of the answer, into tokens
   [c->length + NEEDLE_ASKED - 1]; its length. The last NEEDLE_ASKED tokens are those after which
   the letters asked for come; *letter gets the position of the first of these in the needle. */
int64_t needle_prompt(const needle_case *c, int i, int32_t *tokens, int64_t *letter);

/* What came of the letters, from the logits of those NEEDLE_ASKED tokens. */
needle_result needle_judge(const llama_model *model, const needle_case *c, int i,
                           const float *logits);

/* Runs the prompts of a case on a session, the shallowest needle first, going back in between:
   streaming heads need a slack of c->length (what a row attends to does not depend on it), the
   session a capacity of c->length + NEEDLE_ASKED. */
lattn_status needle_run(llama_session *session, const llama_model *model, const needle_case *c,
                        needle_result results[NEEDLE_DEPTHS]);

/* The same, but llama_end_prompt is called before each question, and nothing is shared. */
lattn_status needle_run_marked(llama_session *session, const llama_model *model,
                               const needle_case *c, needle_result results[NEEDLE_DEPTHS]);

/* What to measure: for every length and sample a case of its own, the same for every policy. */
typedef struct needle_grid {
  const int64_t *lengths;
  int32_t n_lengths, n_samples;
  uint64_t seed;
} needle_grid;

/* Runs a grid with `heads` ([n_layers][n_kv_heads] or NULL = all full), the cases shared out to
   n_threads sessions; if a head waits for a mark, by needle_run_marked. results is
   [n_lengths][n_samples][NEEDLE_DEPTHS]. 0, or -1: something failed. */
int needle_grid_run(const needle_grid *grid, const llama_model *model, const lattn_head *heads,
                    const char *text, int64_t n_bytes, int32_t n_threads, needle_result *results);

/* The share of n results with at least `exact` letters right. */
double needle_share(const needle_result *results, int32_t n, int32_t stride, int32_t exact);

#endif /* NEEDLE_H */
