/* tokenizer.h - text to tokens and back: bytes, or a tokenizer.bin of llama2.c (byte-pair merges).
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

enum { TOKENIZER_ERROR = 256 };

typedef struct tokenizer {
  int32_t vocab_size;
  int32_t longest; /* bytes of the longest piece */
  char **pieces;   /* [vocab_size] the text of each token; NULL = tokens are bytes */
  int32_t *bytes;  /* [vocab_size] length of each piece */
  float *scores;   /* [vocab_size] of two possible merges the higher score comes first */
  int32_t *sorted; /* [vocab_size] tokens in the order of their pieces, for look-ups */
  char *memory;    /* of the pieces */
} tokenizer;

/* path NULL: tokens are bytes, for a vocabulary of 256. 0, or -1 with a text in error. */
int tokenizer_load(tokenizer *t, const char *path, int32_t vocab_size, char error[TOKENIZER_ERROR]);
void tokenizer_free(tokenizer *t);

/* Writes BOS and the text's tokens, at most n_bytes + 2 of them; returns their number. -1: no
   memory. */
int64_t tokenizer_encode(const tokenizer *t, const char *text, int64_t n_bytes, int32_t *tokens);

/* Writes the text of a token after the token `previous`, at most t->longest bytes and no zero at
   the end; returns its length. */
int32_t tokenizer_decode(const tokenizer *t, int32_t previous, int32_t token, char *out);

#endif /* TOKENIZER_H */
