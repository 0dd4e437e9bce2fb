/* tokenizer.c - see tokenizer.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BOS = 1, FIRST_BYTE = 3 }; /* token FIRST_BYTE + b stands for byte b (SentencePiece) */

/* ---- loading ---- */

static int tokenizer_error(char *error, const char *path, const char *what) {
  snprintf(error, TOKENIZER_ERROR, "%s: %s", path, what);
  return -1;
}

static int compare(const char *a, int32_t n_a, const char *b, int32_t n_b) {
  int order = memcmp(a, b, (size_t)(n_a < n_b ? n_a : n_b));
  return order ? order : (n_a > n_b) - (n_a < n_b);
}

/* Sorts tokens by piece, and equal pieces by token: a plain merge sort, as qsort has no context. */
static void sort_pieces(const tokenizer *t, int32_t *tokens, int32_t *spare, int32_t n) {
  if (n < 2) return;
  int32_t half = n / 2, a = 0, b = half;
  sort_pieces(t, tokens, spare, half);
  sort_pieces(t, tokens + half, spare, n - half);
  memcpy(spare, tokens, (size_t)n * sizeof *tokens);
  for (int32_t i = 0; i < n; i++) {
    int take_b = a == half || (b < n && compare(t->pieces[spare[b]], t->bytes[spare[b]],
                                                t->pieces[spare[a]], t->bytes[spare[a]]) < 0);
    tokens[i] = spare[take_b ? b++ : a++];
  }
}

/* The file: the longest piece's length, then for each token its score, length and bytes. */
static int read_pieces(FILE *file, tokenizer *t, size_t room) {
  char *at = t->memory;
  int32_t length; /* first the longest, which we count ourselves */
  if (fread(&length, 4, 1, file) != 1) return -1;
  for (int32_t i = 0; i < t->vocab_size; i++) {
    if (fread(&t->scores[i], 4, 1, file) != 1 || fread(&length, 4, 1, file) != 1) return -1;
    if (length < 0 || (size_t)length > room || t->scores[i] != t->scores[i]) return -1;
    if (length > t->longest) t->longest = length;
    if (fread(at, 1, (size_t)length, file) != (size_t)length) return -1;
    t->pieces[i] = at;
    t->bytes[i] = length;
    t->sorted[i] = i;
    at += length;
    room -= (size_t)length;
  }
  return 0;
}

static int read_tokenizer(FILE *file, tokenizer *t) {
  size_t n = (size_t)t->vocab_size;
  if (fseek(file, 0, SEEK_END)) return -1;
  long bytes = ftell(file);
  rewind(file);
  if (bytes < 4 || (uint64_t)bytes / 8 < n) return -1;
  t->memory = (char *)malloc((size_t)bytes);
  t->pieces = (char **)calloc(n, sizeof *t->pieces);
  t->bytes = (int32_t *)calloc(n, sizeof *t->bytes);
  t->scores = (float *)calloc(n, sizeof *t->scores);
  t->sorted = (int32_t *)calloc(2 * n, sizeof *t->sorted); /* the second half to sort with */
  if (!t->memory || !t->pieces || !t->bytes || !t->scores || !t->sorted) return -1;
  if (read_pieces(file, t, (size_t)bytes)) return -1;
  sort_pieces(t, t->sorted, t->sorted + n, t->vocab_size);
  return 0;
}

int tokenizer_load(tokenizer *t, const char *path, int32_t vocab_size,
                   char error[TOKENIZER_ERROR]) {
  memset(t, 0, sizeof *t);
  t->vocab_size = vocab_size;
  t->longest = 1;
  if (!path && vocab_size == 256) return 0;
  if (!path)
    return tokenizer_error(error, "the model's tokens are not bytes", "give its tokenizer");
  if (vocab_size < FIRST_BYTE + 256)
    return tokenizer_error(error, path, "too few tokens for all bytes");
  FILE *file = fopen(path, "rb");
  if (!file) return tokenizer_error(error, path, "cannot be opened");
  int bad = read_tokenizer(file, t);
  fclose(file);
  if (!bad) return 0;
  tokenizer_free(t);
  return tokenizer_error(error, path, "not a tokenizer for this model's vocabulary");
}

void tokenizer_free(tokenizer *t) {
  free(t->memory);
  free(t->pieces);
  free(t->bytes);
  free(t->scores);
  free(t->sorted);
  memset(t, 0, sizeof *t);
}

/* ---- encoding ---- */

/* The lowest token whose piece is these bytes, or -1. */
static int32_t find(const tokenizer *t, const char *text, int32_t n) {
  int32_t low = 0, high = t->vocab_size;
  while (low < high) {
    int32_t middle = low + (high - low) / 2, token = t->sorted[middle];
    if (compare(t->pieces[token], t->bytes[token], text, n) < 0) low = middle + 1;
    else high = middle;
  }
  if (low == t->vocab_size) return -1;
  int32_t token = t->sorted[low];
  return compare(t->pieces[token], t->bytes[token], text, n) ? -1 : token;
}

/* One piece of the text so far, in a doubly linked list by index; bytes 0 = merged into another. */
typedef struct part {
  const char *text;
  int32_t bytes, token;
  int64_t previous, next;
} part;

/* A pair of neighbours that could become one token; stale once either has changed its length. */
typedef struct merge {
  float score;
  int32_t token;
  int64_t left;
  int32_t left_bytes, right_bytes;
} merge;

/* A heap of merges: the highest score first, of equals the leftmost. */
typedef struct merge_heap {
  merge *items;
  int64_t n;
} merge_heap;

static int before(const merge *a, const merge *b) {
  return a->score > b->score || (a->score >= b->score && a->left < b->left);
}

static void push(merge_heap *heap, merge item) {
  int64_t i = heap->n++;
  for (; i && before(&item, &heap->items[(i - 1) / 2]); i = (i - 1) / 2)
    heap->items[i] = heap->items[(i - 1) / 2];
  heap->items[i] = item;
}

static merge pop(merge_heap *heap) {
  merge top = heap->items[0], item = heap->items[--heap->n];
  int64_t i = 0, child;
  while ((child = 2 * i + 1) < heap->n) {
    if (child + 1 < heap->n && before(&heap->items[child + 1], &heap->items[child])) child++;
    if (!before(&heap->items[child], &item)) break;
    heap->items[i] = heap->items[child];
    i = child;
  }
  heap->items[i] = item;
  return top;
}

/* Pieces lie side by side in the text, so a pair is the text of both. */
static void offer(const tokenizer *t, merge_heap *heap, const part *parts, int64_t left) {
  if (left < 0 || parts[left].next < 0) return;
  const part *a = &parts[left], *b = &parts[a->next];
  if (b->bytes > INT32_MAX - a->bytes) return;
  merge m = {0, find(t, a->text, a->bytes + b->bytes), left, a->bytes, b->bytes};
  if (m.token < 0) return;
  m.score = t->scores[m.token];
  push(heap, m);
}

static void merge_all(const tokenizer *t, merge_heap *heap, part *parts, int64_t n) {
  for (int64_t i = 0; i + 1 < n; i++) offer(t, heap, parts, i);
  while (heap->n) {
    merge m = pop(heap);
    part *a = &parts[m.left], *b = a->next < 0 ? NULL : &parts[a->next];
    if (a->bytes != m.left_bytes || !b || b->bytes != m.right_bytes) continue;
    a->bytes += b->bytes;
    a->token = m.token;
    b->bytes = 0;
    a->next = b->next;
    if (a->next >= 0) parts[a->next].previous = m.left;
    offer(t, heap, parts, a->previous);
    offer(t, heap, parts, m.left);
  }
}

/* Bytes of the UTF-8 character at text; 1 for what is none. */
static int32_t character(const char *text, int64_t n) {
  int32_t length = 1;
  while (length < n && length < 4 && (text[length] & 0xc0) == 0x80) length++;
  return (text[0] & 0xc0) == 0xc0 ? length : 1;
}

/* Characters that are a token, and single bytes of those that are not. */
static int64_t split(const tokenizer *t, const char *text, int64_t n_bytes, part *parts) {
  int64_t n = 0;
  for (int64_t at = 0; at < n_bytes;) {
    int32_t length = character(text + at, n_bytes - at), token = find(t, text + at, length);
    int32_t step = token >= 0 ? length : 1;
    for (int32_t i = 0; i < length; i += step, n++) {
      int32_t byte_token = FIRST_BYTE + (unsigned char)text[at + i];
      part p = {text + at + i, step, token >= 0 ? token : byte_token, n - 1, n + 1};
      parts[n] = p;
    }
    at += length;
  }
  if (n) parts[n - 1].next = -1;
  return n;
}

int64_t tokenizer_encode(const tokenizer *t, const char *text, int64_t n_bytes, int32_t *tokens) {
  int64_t n_tokens = 0;
  tokens[n_tokens++] = BOS;
  if (!t->pieces) {
    for (int64_t i = 0; i < n_bytes; i++) tokens[n_tokens++] = (unsigned char)text[i];
    return n_tokens;
  }
  if (!n_bytes) return n_tokens;
  /* SentencePiece puts a space before the text. A merge offers at most two more. */
  char *spaced = (char *)malloc((size_t)n_bytes + 1);
  part *parts = (part *)malloc(((size_t)n_bytes + 1) * sizeof *parts);
  merge_heap heap = {(merge *)malloc(3 * ((size_t)n_bytes + 1) * sizeof(merge)), 0};
  if (!spaced || !parts || !heap.items) n_tokens = -1;
  if (n_tokens > 0) {
    spaced[0] = ' ';
    memcpy(spaced + 1, text, (size_t)n_bytes);
    int64_t n = split(t, spaced, n_bytes + 1, parts);
    merge_all(t, &heap, parts, n);
    for (int64_t i = 0; i < n; i++)
      if (parts[i].bytes) tokens[n_tokens++] = parts[i].token;
  }
  free(spaced);
  free(parts);
  free(heap.items);
  return n_tokens;
}

/* ---- decoding ---- */

int32_t tokenizer_decode(const tokenizer *t, int32_t previous, int32_t token, char *out) {
  int32_t byte = t->pieces ? token - FIRST_BYTE : token;
  if (byte >= 0 && byte < 256) {
    *out = (char)byte;
    return 1;
  }
  /* the space put before the text is not the text's */
  int32_t skip = previous == BOS && t->bytes[token] && t->pieces[token][0] == ' ';
  memcpy(out, t->pieces[token] + skip, (size_t)(t->bytes[token] - skip));
  return t->bytes[token] - skip;
}
