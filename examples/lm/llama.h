/* llama.h - a small engine for Llama models in the llama2.c format, and for hybrids of a format of
 * our own (MODEL.md), some of whose layers are gated delta nets; longattn.h does the attention.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   A model is read once (llama_model_load) and may serve many sessions; a session is one sequence
   of tokens: of each layer with attention a lattn_cache, all in one pool, of each gated delta net
   a lattn_state of fixed size and the last tokens that its convolution saw. llama_extend takes any
   number of tokens, prompt or answer alike, in blocks of LLAMA_BLOCK; the logits do not depend on
   how the tokens are cut into calls. Build: llama.c holds the implementation of longattn.h; link
   with -lm. */
#ifndef LLAMA_H
#define LLAMA_H

#include "longattn.h"

enum {
  LLAMA_BOS = 1,           /* the token every sequence begins with (llama2.c) */
  LLAMA_EOS = 2,           /* ends a sequence, except in byte vocabularies, where it is a byte */
  LLAMA_PANEL = 32,        /* outputs of a matrix that are computed together */
  LLAMA_BLOCK = 256,       /* tokens that pass through the layers together */
  LLAMA_DRAFTS = 32,       /* draft tokens a session has room for ... */
  LLAMA_STATE_DRAFTS = 16, /* ... and if the model has gated delta nets */
  LLAMA_ERROR = 256        /* bytes of an error text */
};

/* A matrix of n_out rows of n_in weights, transposed: panels of LLAMA_PANEL outputs, input by
   input, [n_out / PANEL rounded up][n_in][PANEL], so that a loop over outputs reads adjacent
   floats. */
typedef struct llama_matrix {
  int32_t n_in, n_out;
  float *panels;
} llama_matrix;

/* How a layer mixes tokens; the numbers are those of the file. */
enum llama_kind {
  LLAMA_FULL = 0,   /* attention, kept as the session's options say */
  LLAMA_WINDOW = 1, /* attention over the newest llama_model.window tokens */
  LLAMA_DELTA = 2   /* a gated delta net (Yang, Kautz, Hatamizadeh 2024), as in Qwen3-Next */
};

typedef struct llama_layer {
  int32_t kind;                              /* enum llama_kind */
  float *attention_norm, *feed_forward_norm; /* [dim] */
  llama_matrix qkv; /* queries, keys and values, one below the other; LLAMA_DELTA: then the gates of
                       the output, and for each head what decay and write strength come from */
  llama_matrix out;
  llama_matrix gate_up; /* w1 and w3 of llama2.c */
  llama_matrix down;    /* w2 */
  /* LLAMA_DELTA: */
  float *taps;  /* [n_taps][queries, keys, values] the convolution; the last is the own token's */
  float *decay; /* [2][delta_heads]: logarithm of the rate, bias */
  float *output_norm; /* [delta_value_dim] */
} llama_layer;

typedef struct llama_model {
  int32_t dim, hidden_dim, n_layers, n_heads, n_kv_heads, head_dim, vocab_size;
  int32_t max_length; /* trained context; streaming heads and states go beyond it */
  int32_t window;     /* of LLAMA_WINDOW */
  int32_t delta_heads, delta_key_dim, delta_value_dim, n_taps; /* of LLAMA_DELTA; n_deltas layers */
  int32_t n_deltas;
  int64_t n_parameters;
  float *embedding;        /* [vocab_size][dim] */
  float *final_norm;       /* [dim] */
  llama_matrix classifier; /* the embedding again, unless the checkpoint has its own */
  llama_layer *layers;
  lattn_head *window_heads; /* [n_kv_heads] the policy of LLAMA_WINDOW */
  float *memory;            /* of all weights */
} llama_model;

/* Reads a checkpoint. 0, or -1 with a text in error and nothing to free. */
int llama_model_load(llama_model *model, const char *path, char error[LLAMA_ERROR]);
void llama_model_free(llama_model *model);

typedef struct llama_options {
  const lattn_head *heads; /* of LLAMA_FULL layers: NULL = all full, or [n_layers][n_kv_heads];
                              copied */
  int64_t capacity;        /* most tokens of the sequence, where any head is full */
  int32_t kv_type;         /* enum lattn_type; 0 = f32 */
  int32_t n_threads;       /* 0 = 1 */
  /* NULL, or called after each block of a call of several, with tokens done and in all; non-zero
     stops the call. */
  int (*progress)(void *user, int64_t done, int64_t total);
  void *user;
} llama_options;

typedef struct llama_session llama_session;

/* NULL with a text in error when memory or the options do not allow it. The model must stay. */
llama_session *llama_session_open(const llama_model *model, const llama_options *options,
                                  char error[LLAMA_ERROR]);
void llama_session_close(llama_session *session);

/* Appends n tokens; logits gets those of the last n_logits of them, [n_logits][vocab_size].
   Stopped by progress (LATTN_CANCELLED): whole blocks were appended, no logits were written. */
lattn_status llama_extend(llama_session *session, const int32_t *tokens, int64_t n,
                          int64_t n_logits, float *logits);

/* Forgets the tokens from position n on; as far back as the slack of the streaming heads allows. A
   model with gated delta nets comes back only to the last mark, or to 0; else LATTN_E_EVICTED. */
lattn_status llama_truncate(llama_session *session, int64_t n);

/* Remembers all of what the session holds now, so that llama_truncate can come back to it, again
   and again; a new mark replaces the old one. A model without gated delta nets needs none. */
lattn_status llama_mark(llama_session *session);

/* The prompt ends here: heads whose policy waits for LATTN_PROMPT_END are compressed. */
lattn_status llama_end_prompt(llama_session *session);

/* Speculative decoding. llama_draft takes n draft tokens through the layers together: a tree, where
   parents[i] is the number of draft i's parent, or -1 for what may follow the newest token; parents
   NULL = a chain. Drafts are numbered over all calls until llama_accept. Row i of logits
   [n][vocab_size] is what plain decoding gives after the path that ends in draft i, bit for bit.
   llama_accept appends the drafts of a path from the root (none: n = 0) and drops all others. While
   drafts are pending, the session takes no other change. A model with gated delta nets takes chains
   only (else LATTN_E_CONFIG), and LLAMA_STATE_DRAFTS; compensated heads fewer than their window. */
lattn_status llama_draft(llama_session *session, const int32_t *tokens, const int32_t *parents,
                         int32_t n, float *logits);
lattn_status llama_accept(llama_session *session, int32_t n, const int32_t *path);

/* Writes what the session holds, and reads it back into a session of the same model and policies,
   of any capacity that has the room: the logits that follow have the bits of a session that never
   stopped. llama_length tells the number of its tokens. A load that fails leaves the session empty.
   */
lattn_status llama_save(const llama_session *session, lattn_write_function write, void *user);
lattn_status llama_load(llama_session *session, lattn_read_function read, void *user);

int64_t llama_length(const llama_session *session);

/* What attention of a layer got for a block of tokens, and made of it. */
typedef struct llama_block {
  int32_t layer;
  int64_t position;     /* of the first token */
  lattn_tensor q, k, v; /* before rotation */
  lattn_tensor stream;  /* [n][1][dim] what came into the layer */
  const float *lse;     /* [n][n_heads] log-sum-exp of the scores of each row */
} llama_block;

typedef void (*llama_observer)(void *user, const llama_block *block);

/* From now on each layer with attention calls it after each block; NULL = no more. Not for drafts.
   The views last until it returns. */
void llama_observe(llama_session *session, llama_observer observer, void *user);

/* How the model rotates queries and keys, by lattn_rotate or a cache. */
enum { LLAMA_MOST_TURNS = 512 }; /* head_dim / 2 */
lattn_status llama_rotary(const llama_model *model, lattn_rotary *rotary,
                          uint64_t turns[LLAMA_MOST_TURNS]);

/* A matrix row by row, [n_out][n_in]. */
void llama_unpack(const llama_matrix *matrix, float *rows);

/* The statistics of all layers' caches, added up. */
lattn_cache_stats llama_stats(const llama_session *session);

/* Bytes of what the gated delta nets keep of all tokens so far: always the same. */
int64_t llama_state_bytes(const llama_session *session);

/* Index of the largest of n values (the first of equals). */
int32_t llama_argmax(const float *values, int32_t n);

/* -ln softmax(logits)[token], in nats. */
double llama_loss(const float *logits, int32_t n, int32_t token);

/* For the programs: 64 random bits (splitmix64: Steele, Lea, Flood), the hash of more floats' bits
   (FNV-1a, word by word), and a clock. */
uint64_t llama_random(uint64_t *state);
uint64_t llama_hash(uint64_t hash, const float *values, int32_t n);
double llama_seconds(void);

#endif /* LLAMA_H */
