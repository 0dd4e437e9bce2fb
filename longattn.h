/* longattn.h - exact and long-context attention on a CPU, in one C11 header. Version 0.4.0
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. Licence text: end of file. */
/* ==== §0 what this is, quick start, switches, contents ===========================================

   Full softmax attention over any shape, and KV caches with one policy per KV head: full, streaming
   (attention sinks + recent window, constant memory for ever), or compensated (and one key for all
   that was dropped). Caches share pages: forks, checkpoints and rollback, draft trees, batches of
   many sequences, removal from the middle, files.
   States of fixed size: linear, gated, delta-rule, flow and recurrent attention, neural memories.
   A profiler that says which head is which. Partial results merge exactly across threads, machines
   and devices. No dependency; no malloc, libm or stdio.

   BUILD. In exactly one C or C++ file:

       #define LONGATTN_IMPLEMENTATION
       #include "longattn.h"

   and in all others just the include. Compile that one file with -O2 -march=native (or -mavx2 -mfma
   -mf16c): the SIMD level is the compiler's target.

   TEN LINES. One query against two keys; prints 0.731059 0.268941.

       #define LONGATTN_IMPLEMENTATION
       #include "longattn.h"
       #include <stdio.h>
       int main(void) {
         float q[2] = {1, 0}, k[4] = {1, 0, 0, 0}, v[4] = {1, 0, 0, 1}, o[2];
         lattn_tensor Q = {q, LATTN_F32, 0, 1, 1, 2, 0, 0}, K = {k, LATTN_F32, 0, 2, 1, 2, 0, 0};
         lattn_tensor V = {v, LATTN_F32, 0, 2, 1, 2, 0, 0}, O = {o, LATTN_F32, 0, 1, 1, 2, 0, 0};
         lattn_attn a = {0}; a.size = sizeof a; a.scale = 1;
         if (lattn_attention(&a, Q, K, V, O, NULL, NULL)) return 1;
         printf("%f %f\n", (double)o[0], (double)o[1]);
       }

   The last argument (exec) brings scratch and threads; without it everything still works, one row
   at a time on the stack, with the same bits, slowly. See lattn_exec.

   WORDS. token: one position of a sequence. head: query head; KV head: the key/value head that a
   group of query heads shares. sink: one of the first tokens of a sequence, always visible to a
   streaming head. window: the newest tokens. lse: log-sum-exp of the scores, natural logarithm.
   panel: 16 keys; block: 128; segment: 2048 (fixed for ever: they fix the order of summation).
   page: one block of one KV head, K and V together. pool: what pages come from. slot: where a token
   is stored; position: what you count; equal until tokens are removed, which leaves a hole. draft:
   a token that is tried, and then accepted or dropped. state: all that a recurrent method keeps of
   a sequence; decay: what multiplies it at each token. mark: an event between two tokens, such as
   the end of a prompt, from which on some heads keep less.

   ONE ANSWER. The same bits from every SIMD level, compiler, number of threads, and way of cutting
   tokens into calls; prefill = decode; packed = alone. Three exceptions, each by name: a target
   without a fused multiply-add (see LONGATTN_STRICT), merges of partials that are not aligned
   ranges, and calls that ask for it (LATTN_INEXACT_BF16).

   SWITCHES. Define before the include that has LONGATTN_IMPLEMENTATION (the first two: before all).

   | switch             | default   | effect                                                       |
   |--------------------|-----------|--------------------------------------------------------------|
   | LONGATTN_PREFIX    | lattn_    | first part of every external name: two builds in one program |
   | LONGATTN_STATIC    | 0         | 1: every function is static; declare where you implement     |
   | LONGATTN_SHARED    | 0         | 1: export (and, on Windows, dllexport) for a shared library  |
   | LONGATTN_SIMD      | target's  | LONGATTN_SIMD_SCALAR, _NEON, _AVX2 or _AVX512: force a level |
   | LONGATTN_STRICT    | 0         | 1: without FMA hardware, emulate it: slow, the same bits     |
   | LONGATTN_OPENMP    | 0         | 1: lattn_parallel_openmp uses OpenMP (compile with -fopenmp) |

   CONTENTS (grep '§' prints the banners)
     §1 public API       §5 tiles                    §9 merge               §13 clean up, licence
     §2 platform         §6 attend                   §10 advance
     §3 vector layer     §7 append: pool and cache   §11 profile
     §4 scalar maths     §8 read back, save, load    §12 rotary positions */

#ifndef LONGATTN_H_INCLUDED
#define LONGATTN_H_INCLUDED

#include <stddef.h>
#include <stdint.h>

/* ==== §1 public API ==============================================================================
   Conventions, once, for everything below.
   - Every function returns a lattn_status: 0 ok, negative an error, positive a note. On an error
     nothing was written and every object is as it was (exceptions are named at the function).
   - No function allocates, keeps a pointer it was given (but the ones said to), or uses globals.
     Different objects may be used from different threads; "const" objects by many at once.
   - Tensor data, scratch and arenas may have any alignment; arrays of a plain C type have that
     type's. Not one byte outside them is read or written. Scratch and arenas must not overlap other
     arguments; outputs of attention and merge are checked against the inputs.
   - A struct with a `size` field: set it to sizeof the struct, zero the rest, set what you need.
     Zero means the default that its comment names.
   - An int32_t field that names a kind holds one of the enumerators said. */

#define LATTN_VERSION_MAJOR 0
#define LATTN_VERSION_MINOR 4
#define LATTN_VERSION_PATCH 0
#define LATTN_VERSION_NUMBER \
  (LATTN_VERSION_MAJOR * 10000 + LATTN_VERSION_MINOR * 100 + LATTN_VERSION_PATCH)

#ifdef LONGATTN_PREFIX /* the one list of external names */
#define LATTN_JOIN2_(a, b) a##b
#define LATTN_JOIN_(a, b) LATTN_JOIN2_(a, b)
#define lattn_version_number LATTN_JOIN_(LONGATTN_PREFIX, version_number)
#define lattn_simd_name LATTN_JOIN_(LONGATTN_PREFIX, simd_name)
#define lattn_status_text LATTN_JOIN_(LONGATTN_PREFIX, status_text)
#define lattn_inexact_supported LATTN_JOIN_(LONGATTN_PREFIX, inexact_supported)
#define lattn_parallel_openmp LATTN_JOIN_(LONGATTN_PREFIX, parallel_openmp)
#define lattn_attention LATTN_JOIN_(LONGATTN_PREFIX, attention)
#define lattn_attention_scratch LATTN_JOIN_(LONGATTN_PREFIX, attention_scratch)
#define lattn_merge LATTN_JOIN_(LONGATTN_PREFIX, merge)
#define lattn_partial_import LATTN_JOIN_(LONGATTN_PREFIX, partial_import)
#define lattn_rotary_turns LATTN_JOIN_(LONGATTN_PREFIX, rotary_turns)
#define lattn_rotary_turns_from_f32 LATTN_JOIN_(LONGATTN_PREFIX, rotary_turns_from_f32)
#define lattn_rotary_turns_from_f64 LATTN_JOIN_(LONGATTN_PREFIX, rotary_turns_from_f64)
#define lattn_rotary_yarn_magnitude LATTN_JOIN_(LONGATTN_PREFIX, rotary_yarn_magnitude)
#define lattn_rotate LATTN_JOIN_(LONGATTN_PREFIX, rotate)
#define lattn_pool_bytes LATTN_JOIN_(LONGATTN_PREFIX, pool_bytes)
#define lattn_pool_init LATTN_JOIN_(LONGATTN_PREFIX, pool_init)
#define lattn_pool_stats_get LATTN_JOIN_(LONGATTN_PREFIX, pool_stats_get)
#define lattn_cache_bytes LATTN_JOIN_(LONGATTN_PREFIX, cache_bytes)
#define lattn_cache_init LATTN_JOIN_(LONGATTN_PREFIX, cache_init)
#define lattn_cache_release LATTN_JOIN_(LONGATTN_PREFIX, cache_release)
#define lattn_cache_scratch LATTN_JOIN_(LONGATTN_PREFIX, cache_scratch)
#define lattn_cache_extend LATTN_JOIN_(LONGATTN_PREFIX, cache_extend)
#define lattn_cache_append LATTN_JOIN_(LONGATTN_PREFIX, cache_append)
#define lattn_cache_attend LATTN_JOIN_(LONGATTN_PREFIX, cache_attend)
#define lattn_cache_truncate LATTN_JOIN_(LONGATTN_PREFIX, cache_truncate)
#define lattn_cache_clear LATTN_JOIN_(LONGATTN_PREFIX, cache_clear)
#define lattn_cache_stats_get LATTN_JOIN_(LONGATTN_PREFIX, cache_stats_get)
#define lattn_cache_head_stats_get LATTN_JOIN_(LONGATTN_PREFIX, cache_head_stats_get)
#define lattn_cache_fork LATTN_JOIN_(LONGATTN_PREFIX, cache_fork)
#define lattn_cache_checkpoint LATTN_JOIN_(LONGATTN_PREFIX, cache_checkpoint)
#define lattn_cache_rollback LATTN_JOIN_(LONGATTN_PREFIX, cache_rollback)
#define lattn_checkpoint_release LATTN_JOIN_(LONGATTN_PREFIX, checkpoint_release)
#define lattn_checkpoint_stats_get LATTN_JOIN_(LONGATTN_PREFIX, checkpoint_stats_get)
#define lattn_cache_draft LATTN_JOIN_(LONGATTN_PREFIX, cache_draft)
#define lattn_cache_accept LATTN_JOIN_(LONGATTN_PREFIX, cache_accept)
#define lattn_cache_mark LATTN_JOIN_(LONGATTN_PREFIX, cache_mark)
#define lattn_pyramid_budget LATTN_JOIN_(LONGATTN_PREFIX, pyramid_budget)
#define lattn_batch_extend LATTN_JOIN_(LONGATTN_PREFIX, batch_extend)
#define lattn_batch_attend LATTN_JOIN_(LONGATTN_PREFIX, batch_attend)
#define lattn_batch_scratch LATTN_JOIN_(LONGATTN_PREFIX, batch_scratch)
#define lattn_cache_remove LATTN_JOIN_(LONGATTN_PREFIX, cache_remove)
#define lattn_cache_read LATTN_JOIN_(LONGATTN_PREFIX, cache_read)
#define lattn_cache_save LATTN_JOIN_(LONGATTN_PREFIX, cache_save)
#define lattn_cache_load LATTN_JOIN_(LONGATTN_PREFIX, cache_load)
#define lattn_fit_bytes LATTN_JOIN_(LONGATTN_PREFIX, fit_bytes)
#define lattn_fit_tokens LATTN_JOIN_(LONGATTN_PREFIX, fit_tokens)
#define lattn_attention_weights LATTN_JOIN_(LONGATTN_PREFIX, attention_weights)
#define lattn_cache_weights LATTN_JOIN_(LONGATTN_PREFIX, cache_weights)
#define lattn_state_preset LATTN_JOIN_(LONGATTN_PREFIX, state_preset)
#define lattn_state_slopes LATTN_JOIN_(LONGATTN_PREFIX, state_slopes)
#define lattn_state_bytes LATTN_JOIN_(LONGATTN_PREFIX, state_bytes)
#define lattn_state_init LATTN_JOIN_(LONGATTN_PREFIX, state_init)
#define lattn_state_clear LATTN_JOIN_(LONGATTN_PREFIX, state_clear)
#define lattn_state_scratch LATTN_JOIN_(LONGATTN_PREFIX, state_scratch)
#define lattn_state_advance LATTN_JOIN_(LONGATTN_PREFIX, state_advance)
#define lattn_state_read LATTN_JOIN_(LONGATTN_PREFIX, state_read)
#define lattn_state_draft LATTN_JOIN_(LONGATTN_PREFIX, state_draft)
#define lattn_state_commit LATTN_JOIN_(LONGATTN_PREFIX, state_commit)
#define lattn_batch_advance LATTN_JOIN_(LONGATTN_PREFIX, batch_advance)
#define lattn_state_copy LATTN_JOIN_(LONGATTN_PREFIX, state_copy)
#define lattn_state_merge LATTN_JOIN_(LONGATTN_PREFIX, state_merge)
#define lattn_state_save LATTN_JOIN_(LONGATTN_PREFIX, state_save)
#define lattn_state_load LATTN_JOIN_(LONGATTN_PREFIX, state_load)
#define lattn_state_get LATTN_JOIN_(LONGATTN_PREFIX, state_get)
#define lattn_state_set LATTN_JOIN_(LONGATTN_PREFIX, state_set)
#define lattn_state_stats_get LATTN_JOIN_(LONGATTN_PREFIX, state_stats_get)
#define lattn_flow_attention LATTN_JOIN_(LONGATTN_PREFIX, flow_attention)
#define lattn_flow_scratch LATTN_JOIN_(LONGATTN_PREFIX, flow_scratch)
#define lattn_profile_bytes LATTN_JOIN_(LONGATTN_PREFIX, profile_bytes)
#define lattn_profile_init LATTN_JOIN_(LONGATTN_PREFIX, profile_init)
#define lattn_profile_clear LATTN_JOIN_(LONGATTN_PREFIX, profile_clear)
#define lattn_profile_observe LATTN_JOIN_(LONGATTN_PREFIX, profile_observe)
#define lattn_profile_emit LATTN_JOIN_(LONGATTN_PREFIX, profile_emit)
#define lattn_profile_sample LATTN_JOIN_(LONGATTN_PREFIX, profile_sample)
#define lattn_profile_report LATTN_JOIN_(LONGATTN_PREFIX, profile_report)
#define lattn_profile_strongest LATTN_JOIN_(LONGATTN_PREFIX, profile_strongest)
#define lattn_profile_stats_get LATTN_JOIN_(LONGATTN_PREFIX, profile_stats_get)
#define lattn_gates_solve LATTN_JOIN_(LONGATTN_PREFIX, gates_solve)
#define lattn_heads_choose LATTN_JOIN_(LONGATTN_PREFIX, heads_choose)
#define lattn_heads_group LATTN_JOIN_(LONGATTN_PREFIX, heads_group)
#define lattn_alibi_length LATTN_JOIN_(LONGATTN_PREFIX, alibi_length)
#define lattn_attention_calibrated LATTN_JOIN_(LONGATTN_PREFIX, attention_calibrated)
#define lattn_calibrated_scratch LATTN_JOIN_(LONGATTN_PREFIX, calibrated_scratch)
#endif

#if defined(LONGATTN_STATIC) && LONGATTN_STATIC
#if defined(__GNUC__)
#define LATTN_API static __attribute__((unused))
#else
#define LATTN_API static
#endif
#elif defined(LONGATTN_SHARED) && LONGATTN_SHARED && defined(_WIN32)
#define LATTN_API __declspec(dllexport)
#elif defined(LONGATTN_SHARED) && LONGATTN_SHARED && defined(__GNUC__)
#define LATTN_API __attribute__((visibility("default")))
#else
#define LATTN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status ---- */

typedef int32_t lattn_status;

/* The one list of statuses: name, number (fixed for ever), text. */
#define LATTN_STATUS_LIST(X)                                                                       \
  X(LATTN_OK, 0, "ok")                                                                             \
  X(LATTN_CANCELLED, 1, "note: the progress callback asked to stop; see the count of tokens done") \
  X(LATTN_OVERFLOWED, 2, "note: a finite value was beyond its 16-bit type and became infinite")    \
  X(LATTN_E_NULL, -1, "a pointer that is required is null")                                        \
  X(LATTN_E_SIZE, -2, "a struct's size field is 0, too small or not a size")                       \
  X(LATTN_E_FIELD, -3, "an enumerator, flag or reserved field has an unknown value")               \
  X(LATTN_E_SHAPE, -4, "a count or dim is negative, zero where it may not be, or does not match")  \
  X(LATTN_E_TYPE, -5, "an element type is unknown or not supported here")                          \
  X(LATTN_E_STRIDE, -6, "a stride is negative, or an output's rows overlap")                       \
  X(LATTN_E_OVERFLOW, -7, "a size or position is beyond what this machine or library can address") \
  X(LATTN_E_VALUE, -8, "a number is NaN or outside its range")                                     \
  X(LATTN_E_ALIAS, -9, "an output overlaps an input or another output")                            \
  X(LATTN_E_SCRATCH, -10, "scratch is too small for this call (see the ..._scratch functions)")    \
  X(LATTN_E_MEMORY, -11, "the memory handed over is too small for the object")                     \
  X(LATTN_E_FULL, -12, "the pool has no page left, or the cache is at its capacity")               \
  X(LATTN_E_EVICTED, -13, "tokens that this call needs were evicted from a streaming head")        \
  X(LATTN_E_CONFIG, -14, "the options contradict each other")                                      \
  X(LATTN_E_STATE, -15, "the object is not in a state that allows this call: drafts are pending")  \
  X(LATTN_E_IO, -16, "the caller's read or write function failed")                                 \
  X(LATTN_E_FORMAT, -17, "not a saved object of this kind, of a later version, or damaged")

enum lattn_status_codes {
#define LATTN_STATUS_ENUM_(name, number, text) name = number,
  LATTN_STATUS_LIST(LATTN_STATUS_ENUM_)
#undef LATTN_STATUS_ENUM_
      LATTN_STATUS_END_ = 0x7fffffff
};

/* The text of a status; "unknown status" for any other number. Never NULL; static storage. */
LATTN_API const char *lattn_status_text(lattn_status status);

/* Which argument was wrong: give a pointer to one of these in an exec or config; an error fills it.
   `argument` is a static text in the words of the declaration, e.g. "k.dim" or "config.heads". */
typedef struct lattn_fault {
  int32_t status;
  int32_t zero;
  const char *argument;
} lattn_fault;

/* LATTN_VERSION_NUMBER of the implementation, and its SIMD level: "scalar", "neon", "avx2",
   "avx512". */
LATTN_API int32_t lattn_version_number(void);
LATTN_API const char *lattn_simd_name(void);

/* ---- views ---- */

enum lattn_type {
  LATTN_F32 = 1,
  LATTN_F16 = 2,
  LATTN_BF16 = 3,
  LATTN_I8 = 4, /* storage of caches only: 8 bits an element, a float16 scale a token and head */
  LATTN_I4 = 5  /* likewise: 4 bits, a scale for each 32 channels */
};

/* Stride that repeats one row for every token or head (inputs only). */
#define LATTN_BROADCAST INT64_MAX

/* A strided view of the caller's array, [token][head][dim], dims adjacent. Used for inputs and
   outputs (an output is written through `data`). Frozen: this struct never changes. */
typedef struct lattn_tensor {
  const void *data;      /* element (0, 0, 0); may be NULL when the view has no element */
  int32_t type;          /* enum lattn_type; 0 = LATTN_F32 */
  int32_t zero;          /* must be 0 */
  int64_t n_tokens;      /* >= 0 */
  int64_t n_heads;       /* >= 1 */
  int64_t dim;           /* >= 1 */
  int64_t stride_token;  /* in elements; 0 = n_heads * dim, or n_heads * stride_head if that is
                            set */
  int64_t stride_head;   /* in elements; 0 = dim */
} lattn_tensor;

/* ---- execution: scratch, threads, progress. NULL exec or all zeros: see scratch ---- */

/* Runs task(context, i) for i = 0 ... n_tasks - 1, in any order, on any threads, and returns
   when all are done. Running them one after another is fine: nothing waits for another task. */
typedef void (*lattn_parallel_for)(void *pool, int32_t n_tasks,
                                   void (*task)(void *context, int32_t index), void *context);

typedef struct lattn_exec {
  uint32_t size;       /* sizeof(lattn_exec) */
  int32_t n_threads;   /* number of tasks given to parallel_for; 0 = 1; at most 1024 */
  /* Scratch, any alignment, used only during the call. NULL: each task works on <= 24 KiB of its
     stack, one row at a time, for key dims <= 256 and value dims <= 160 (beyond:
     LATTN_E_SCRATCH); the same bits, fine for decode and small inputs, slow for prefill. */
  void *scratch;
  size_t scratch_bytes;
  lattn_parallel_for parallel_for; /* NULL = a plain loop on the caller's thread */
  void *pool;                      /* handed to parallel_for */
  /* Called on the caller's thread, outside of the numeric work, with tokens done and in all;
     non-zero stops the call, which returns LATTN_CANCELLED. It must not change a cache of the
     pool. NULL = none. */
  int32_t (*progress)(void *user, int64_t done, int64_t total);
  void *user;          /* handed to progress */
  int64_t *tokens_done; /* NULL, or gets the number of tokens whose rows were written */
  lattn_fault *fault;  /* NULL, or gets the argument that an error is about */
} lattn_exec;

/* A parallel_for on OpenMP (`pool` is ignored). Without LONGATTN_OPENMP, a plain loop. */
LATTN_API void lattn_parallel_openmp(void *pool, int32_t n_tasks,
                                     void (*task)(void *context, int32_t index), void *context);

/* ---- merge: partial results (Chen et al., Lamina; FlashDecoding; design: heads.md 9) ---- */

/* What attention over some of the keys knows of each row, unnormalised, in float32:
   maximum m = the largest score, sum = sum of exp(s - m), output = sum of exp(s - m) * v. Of
   LATTN_SIGMOID: m = 0, sum = 1, output as it is; LATTN_MERGE_LINEAR with weight 1 adds such
   parts. A row that saw no key has m = -infinity; its sum and output are not read. Learned sinks
   and gates are never in it. Frozen: this struct never changes. The arrays are the caller's. Rows
   are [token][query head], contiguous. */
typedef struct lattn_partial {
  uint32_t size;          /* sizeof(lattn_partial) */
  int32_t basis;          /* attend sets it. 0: plain; 16 ... 128: output is in the basis that the
                             cache's values are stored in (LATTN_I4); merged parts agree in it.
                             Heads of several bases give a plain one, whose merges are exact to
                             rounding only */
  int64_t first_segment;  /* the absolute segments (2048 tokens) that the keys lie in: attend
                             sets these. */
  int64_t n_segments;     /* 0 = outside of the order of segments: merged last, in argument order */
  int64_t n_rows;         /* tokens * query heads */
  int64_t value_dim;
  float *maximum;         /* [n_rows] */
  float *sum;             /* [n_rows] */
  float *output;          /* [n_rows][value_dim] */
  float weight;           /* lattn_merge: weight of this part, by mode */
  float zero;             /* must be 0 */
  const float *row_weights; /* lattn_merge: NULL, or [n_rows]: a weight per row, instead of
                               `weight` */
} lattn_partial;

enum lattn_merge_mode {
  LATTN_MERGE_ADD = 0,     /* weight is added to the part's lse: 0 = plain exact merge of split
                              keys */
  LATTN_MERGE_REPLACE = 1, /* weight takes the place of the lse: parts enter as softmax of
                              weights */
  LATTN_MERGE_LINEAR = 2   /* out = sum of weight * (normalised part), in argument order; no
                              division; lse = NaN */
};

typedef struct lattn_merge_options {
  uint32_t size;             /* sizeof(lattn_merge_options) */
  int32_t mode;              /* enum lattn_merge_mode; 0 = add */
  const float *sink_logits;  /* NULL, or [query heads]: learned sink logits, counted once here */
  const lattn_tensor *gate;  /* NULL, or output gates as in lattn_attn */
  lattn_partial *partial;    /* NULL, or gets the merged partial (add and replace only), without
                                sink and gate; then out.data and lse may be NULL */
} lattn_merge_options;

/* Combines n partials into out [tokens][heads][value_dim] (tokens * heads = n_rows) and lse
   [tokens][heads] (NULL = not wanted; natural log, sink included; ln of the summed weights in
   replace mode; NaN in linear). Parts are folded by the fixed tree on absolute segments,
   whatever the order of the list; parts that are aligned power-of-two ranges of segments, or
   whole, give the bits of one undivided call. Other ranges merge to rounding. (Linear mode adds in
   argument order: of LATTN_SIGMOID, the two halves of an undivided call that are such ranges give
   its bits, more parts its sum to rounding; a sigmoid part in another mode, or beside one of
   softmax, is not noticed, and means nothing.) A weight of
   -infinity drops a part unread; +infinity or NaN is LATTN_E_VALUE (linear: only NaN or
   infinite). n = 0 or all rows empty: +0 and -infinity. Errors: NULL, SIZE, FIELD, SHAPE, TYPE,
   STRIDE, OVERFLOW, VALUE (weights), ALIAS, CONFIG. n <= 1024. options and exec may be NULL
   (exec: threads and fault are used; no scratch is needed). */
LATTN_API lattn_status lattn_merge(const lattn_merge_options *options, int64_t n,
                                   const lattn_partial *parts, lattn_tensor out, float *lse,
                                   const lattn_exec *exec);

enum lattn_import_flags {
  LATTN_IMPORT_BASE2 = 1,          /* lse is a base-2 logarithm (FlashInfer) */
  LATTN_IMPORT_INFINITE_EMPTY = 2  /* lse = +infinity marks a row that saw no key
                                      (FlashAttention) */
};

/* Makes a partial of a foreign kernel's (output, lse): m = lse, sum = 1, output as it is,
   n_segments 0. Fills partial->maximum, ->sum and ->output, which the caller has set to arrays
   of n_rows and n_rows * value_dim floats. out is [tokens][heads][value_dim], lse
   [tokens][heads]. Errors: NULL, SIZE, FIELD, SHAPE, TYPE, STRIDE, OVERFLOW. */
LATTN_API lattn_status lattn_partial_import(lattn_partial *partial, lattn_tensor out,
                                            const float *lse, int32_t flags);

/* ---- attend ---- */

enum lattn_mask {
  LATTN_FULL = 0,     /* every key; on a cache: causal */
  LATTN_CAUSAL = 1,   /* causal, the last row aligned with the last key */
  LATTN_CAUSAL_AT = 2 /* causal, row r at position query_position + r, key j at key_position + j */
};

/* Speed for exactness, call by call. */
enum lattn_inexact {
  /* Where a call has more than 12 rows of a KV head (tokens * query heads), it multiplies as if
     scaled queries, keys, weights and values had been rounded to bfloat16: 8 bits, to nearest
     even; beyond 3.39e38 infinite, below 1.2e-38 zero. Sums are float32. A score is off by at most
     2^-7 * sum |scale * q_d k_d|, its weight by as much, relatively, and 2^-8 more; values by
     2^-8. So outputs have 2 to 3 digits for scores of a few units, and none for scores of
     hundreds. Out, lse and partials are outside of the one answer: their bits depend on the SIMD
     level, on threads, and on how tokens are cut into calls. What a cache stores does not. A NaN
     reaches the rows that see it and no others. Exact all the same: calls of one token, drafts,
     prefixes that a batch shares, calls without scratch, heads with integer keys or values,
     lattn_attention_weights, and builds without the instructions (lattn_inexact_supported). */
  LATTN_INEXACT_BF16 = 1
};

/* 1 if this build has the instructions (AVX512_BF16, or Arm's BF16, and a SIMD level that uses
   them), 0 if such calls are exact; 0 for any other number. */
LATTN_API int32_t lattn_inexact_supported(int32_t inexact);

/* What a score weighs. */
enum lattn_weighting {
  LATTN_SOFTMAX = 0,
  /* Sigmoid attention (Ramapuram et al. 2024, arXiv 2409.04431): out = sum of w * v, w = 1 / (1 +
     exp(-(s + sigmoid_bias))), without a division. The bias, after all else that a score gets, is a
     number of the model's: -ln(n) for the n it was trained with. A hidden key weighs exactly 0.
     w is off by at most 3 ulp for what s + bias is off. lse is NaN, lse_low 0; see lattn_partial
     for partial results. Not with sink_logits (LATTN_E_CONFIG). */
  LATTN_SIGMOID = 1
};

/* Selective values (DiffQKV: Lin et al., Sigma): of the keys that a row sees, only those with the
   top_values largest scores, the newer of equals first, give it their values; no other value is
   read. All scores are computed. With top_values not below the number of keys that it sees, a row
   has the bits of a plain call. Exact whatever `inexact` says. The chosen keys are found among all
   that the call sees: parts of one row choose each for itself. Scratch: 8 bytes a row and chosen
   key. lattn_attention_scratch counts them; lattn_cache_scratch and lattn_batch_scratch have room
   for top_values up to 100 * value_dim: beyond, add 8 * top_values bytes a thread. Without scratch,
   top_values below the number of keys is at most 256 (LATTN_E_SCRATCH). Threads share KV heads and
   blocks of rows, never the keys of a row. Learned sinks, an extra key and that of a compensated
   head are not chosen among: they join the row whatever they score, and dropped is the share of the
   weights without them. lost_bound and lost_estimate go by all keys, with
   LATTN_TOP_NORMALISE by the chosen ones. Heads that are chosen at marks go by all keys. */
enum lattn_top_mode {
  LATTN_TOP_KEEP = 0,       /* weights as they are: out is off by at most dropped * the largest
                               |v|; lse and partials' sums are those of all keys */
  LATTN_TOP_NORMALISE = 1   /* the weights of the chosen keys sum to 1, as if the row saw no others;
                               so are lse and partials. Not with LATTN_SIGMOID (LATTN_E_CONFIG) */
};

/* Changes the scores of 16 keys in place: scores[t] is that of absolute key first_key + t (a
   multiple of 16) for row `row` of q, at position `query`, query head `head`, sequence
   `sequence`. Scores of hidden keys are also there, with any value, and are ignored afterwards.
   Must be pure, and callable on any thread. */
typedef void (*lattn_score_function)(void *user, int64_t sequence, int64_t row, int64_t query,
                                     int32_t head, int64_t first_key, float scores[16]);

/* Options of lattn_attention. They compose, in this order, on a score s = sum_d (scale * q_d) *
   k_d: softcap, ALiBi, key bias, pair bias, score function, sigmoid_bias, masks, then at the root
   the learned sink, the division, the gate, the rounding to the output's type. An absent step
   changes no bit. Visible to row i (at position p_i) are the keys j that pass all of: the mask;
   visible_from[i] <= j < visible_to[i]; and (j < sinks, or p_i - p_j < window and p_j - p_i <=
   ahead). */
typedef struct lattn_attn {
  uint32_t size;            /* sizeof(lattn_attn) */
  int32_t mask;             /* enum lattn_mask */
  float scale;              /* 0 = 1 / sqrt(key dim); finite, may be negative */
  float softcap;            /* s = softcap * tanh(s / softcap); 0 or infinite = none; not
                               negative */
  int64_t window;           /* 0 = no limit; else keys up to window - 1 before the row, own key
                               included */
  int64_t ahead;            /* with mask LATTN_FULL and a window: keys after the row's own; 0 =
                               none */
  int64_t sinks;            /* absolute keys 0 ... sinks - 1 are visible whatever the window */
  int64_t query_position;   /* absolute position of row 0 (not used by LATTN_CAUSAL) */
  int64_t key_position;     /* absolute index of key 0; blocks of summation follow absolute
                               indices */
  const int64_t *visible_from; /* NULL, or [n_queries]: first absolute key that the row may see */
  const int64_t *visible_to;   /* NULL, or [n_queries]: one past the last */
  const int64_t *query_positions; /* NULL, or [n_queries]: override p_i (not in the mask) for
                                     window, ahead and ALiBi */
  const int64_t *key_positions;   /* NULL, or [n_keys]: override p_j likewise (never the order of
                                     keys) */
  /* Several sequences in one call: sequence s has rows query_starts[s] ... query_starts[s+1] - 1
     and keys key_starts[s] ... key_starts[s+1] - 1. Starts begin at 0, never fall, and end at
     the tensor's n_tokens. The result is that of n_sequences single calls, bit for bit. Absolute
     indices count from each sequence's own first key; per-row and per-key arrays and biases are
     indexed as the tensors are. */
  int64_t n_sequences;             /* 0 = one sequence, starts unused */
  const int64_t *query_starts;     /* [n_sequences + 1] */
  const int64_t *key_starts;       /* [n_sequences + 1] */
  const int64_t *sequence_query_positions; /* NULL = query_position for all, or [n_sequences] */
  const int64_t *sequence_key_positions;   /* NULL = key_position for all, or [n_sequences] */
  const lattn_tensor *key_bias;    /* NULL, or [1][heads or 1][n_keys]: added to every row's
                                      score */
  const lattn_tensor *pair_bias;   /* NULL, or [n_queries][heads or 1][n_keys]; -infinity =
                                      weight 0 */
  const float *alibi_slopes;       /* NULL, or [heads]: s = fma(-slope, |p_i - p_j|, s) */
  const float *sink_logits;        /* NULL, or [heads]: a learned logit z in the denominator,
                                      without a value (gpt-oss; z = 0 is softmax-off-by-one);
                                      -infinity = none */
  const lattn_tensor *gate;        /* NULL, or [n_queries][heads or 1][1 or value dim]: out *=
                                      gate; where it is 0, out is +0 whatever the row was. Where
                                      it is 0 for all query heads of a KV head and a block of rows
                                      (pruned heads: Jin et al., PH3) and nothing but out is
                                      wanted of the call, no key is looked at */
  lattn_score_function score;      /* NULL, or the score callback */
  void *score_user;
  lattn_partial *partial;          /* NULL, or gets the partial of this call; then out.data may
                                      be NULL. first_segment and n_segments are set; not with
                                      n_sequences > 1 */
  float *lse_low;                  /* NULL, or [n_queries][H]: what was lost when lse, which must
                                      be wanted too, was rounded to a float */
  int32_t inexact;          /* 0 = exact, or enum lattn_inexact */
  int32_t weighting;        /* enum lattn_weighting; 0 = softmax */
  float sigmoid_bias;       /* of LATTN_SIGMOID; finite; with LATTN_SOFTMAX it must be 0 */
  int32_t zero;             /* must be 0 */
  int32_t top_values;       /* 0 = all; else each row takes the values of so many keys, of the
                               largest scores: see enum lattn_top_mode */
  int32_t top_mode;         /* enum lattn_top_mode */
  float *dropped;           /* NULL, or [n_queries][H]: the share of its weights that a row dropped;
                               of LATTN_SIGMOID, their sum. 0 where top_values is 0 */
  /* NULL, or [1][heads][dk]: one key more, that every row sees whatever its mask: a learned sink
     token (Xiao et al., StreamingLLM), a K bias, or with extra_value a KV bias (Gu et al., When
     Attention Sink Emerges). heads divides H: query head h uses h * heads / H. It is not rotated,
     and has no distance: softcap applies to its score; ALiBi, biases and callback do not. It is
     merged into a row after all segments, before the learned sink, and is part of lse and of a
     partial: of parts that will be merged, give it to one. Not with LATTN_SIGMOID, nor in
     lattn_attention_calibrated (LATTN_E_CONFIG). */
  const lattn_tensor *extra_key;
  const lattn_tensor *extra_value; /* its value: NULL = zeros, or [1][heads][dv] */
} lattn_attn;

/* Exact softmax attention (Vaswani et al. 2017; tiled as Dao et al. 2022), or sigmoid attention,
   never materialising n x n. q [n_queries][H][dk], k [n_keys][G][dk], v [n_keys][G][dv], out
   [n_queries][H][dv]; H a multiple of G; query head h uses KV head h / (H / G). k and v may have
   different numbers of heads, which both divide H (DiffQKV: Lin et al., Sigma): h then uses key
   head h / (H / G_k) and value head h / (H / G_v). Any dims, any mix of element types. lse: NULL,
   or [n_queries][H] floats. A row that sees no key gets +0 and lse = -infinity (or its learned sink
   logit). NaN reaches the rows that see it and no others; hidden keys and values are never in the
   arithmetic. out may be exactly q's array (same strides and element size); any other overlap is
   LATTN_E_ALIAS. Positions are < 2^31. options NULL = all defaults. Thread-safe. With progress, the
   call proceeds in ranges of rows; when cancelled, rows >= *tokens_done are unwritten. Errors:
   NULL, SIZE, FIELD, SHAPE, TYPE, STRIDE, OVERFLOW, VALUE, ALIAS, SCRATCH, CONFIG. Notes:
   CANCELLED, OVERFLOWED. */
LATTN_API lattn_status lattn_attention(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                       lattn_tensor v, lattn_tensor out, float *lse,
                                       const lattn_exec *exec);

/* Bytes of scratch for that call with exactly n_threads (tensor data is not read); independent
   of the numbers of tokens but for their logarithm. 0: impossible shapes. */
LATTN_API size_t lattn_attention_scratch(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                         lattn_tensor v, int32_t n_threads);

/* ---- attention weights on demand ---- */

/* Which weights are wanted: those of chosen rows and heads, from the lse that attention gave: p =
   exp(s - lse), with all that the call does to scores; of LATTN_SIGMOID, its w. A hidden key has
   p = 0. Nothing of size rows * keys is made unless `weights` asks for it. Arrays are the caller's;
   NULL = not wanted. */
typedef struct lattn_weights {
  uint32_t size;         /* sizeof(lattn_weights) */
  int32_t top_k;         /* keys wanted of each row; 0 = none; <= 65536 */
  int64_t n_rows;        /* chosen rows; 0 = all of q */
  const int64_t *rows;   /* [n_rows]: rows of q, any order; not used if n_rows = 0 */
  int64_t n_heads;       /* chosen query heads; 0 = all */
  const int32_t *heads;  /* [n_heads], any order; not used if n_heads = 0 */
  const float *lse;      /* [n_queries][H]: of all rows and heads, as attention wrote it; not read
                            with LATTN_SIGMOID, and may then be NULL */
  const float *lse_low;  /* NULL, or its second float: without it, p is off by up to half an ulp of
                            lse (2e-6, relative, at |lse| = 50) */
  int64_t stride;        /* of weights and mass, from one row of keys to the next; 0 = n_keys */
  float *weights;        /* [n_rows][n_heads][stride]: p of every key; the first n_keys of each row
                            are written */
  int64_t *argmax;       /* [n_rows][n_heads]: the key with the largest score, the newest of equals;
                            -1: none (NaN and -infinity do not count) */
  int64_t *top_keys;     /* [n_rows][n_heads][top_k]: the keys with the largest scores, falling, the
                            newer of equals first; -1 where there are no more */
  float *top_weights;    /* [n_rows][n_heads][top_k]: p of those; 0 where there are no more. Both
                            or neither */
  double *mass;          /* [n_heads][stride]: to each key's, the sum of p over the chosen rows, in
                            their order, is added */
} lattn_weights;

/* Weights of a stateless call: options, q and k as lattn_attention got them (gate, partial,
   lse_low, inexact, top_values and dropped are not used, nor is extra_key, which lse knows of).
   Keys count from the first of k. Scratch as for lattn_attention with these q and k; threads share
   the KV heads. Thread-safe. Errors: as lattn_attention; SHAPE also for a row or head that is not
   there; CONFIG for n_sequences > 1, and top_keys without top_weights. exec: progress is not
   used. */
LATTN_API lattn_status lattn_attention_weights(const lattn_attn *options, lattn_tensor q,
                                               lattn_tensor k, const lattn_weights *weights,
                                               const lattn_exec *exec);

/* ---- rotary positions (Su et al., RoFormer; YaRN: Peng et al.) ---- */

enum lattn_rotary_layout {
  LATTN_ROTARY_INTERLEAVED = 0, /* pairs (x[2f], x[2f+1]): llama2.c, GPT-J, DeepSeek */
  LATTN_ROTARY_HALF_SPLIT = 1   /* pairs (x[f], x[f + n_dims/2]): GPT-NeoX, Hugging Face Llama */
};

/* How q and k are rotated. Frequencies are turns a position, theta / (2 pi) * 2^64, modulo one
   turn: the angle at any position is then an exact 64-bit integer, and rounding does not grow
   with position. */
typedef struct lattn_rotary {
  uint32_t size;          /* sizeof(lattn_rotary) */
  int32_t layout;         /* enum lattn_rotary_layout */
  int32_t first_dim;      /* rotated dims are first_dim ... first_dim + n_dims - 1 */
  int32_t n_dims;         /* even, 2 ... 1024 */
  float magnitude;        /* multiplies cos and sin of q and k alike (YaRN); 0 = 1 */
  int32_t zero;           /* must be 0 */
  const uint64_t *turns;  /* [n_dims / 2] */
} lattn_rotary;

enum lattn_rotary_kind {
  LATTN_ROTARY_PLAIN = 0,  /* theta_f = base^(-2f / n_dims) */
  LATTN_ROTARY_LINEAR = 1, /* theta_f / factor (position interpolation) */
  LATTN_ROTARY_NTK = 2,    /* base * factor^(n_dims / (n_dims - 2)) */
  LATTN_ROTARY_YARN = 3,   /* mixed by a ramp over dims; see also lattn_rotary_yarn_magnitude */
  LATTN_ROTARY_LLAMA3 = 4  /* mixed by wavelength, as in Llama 3.1 */
};
enum lattn_rotary_flags {
  LATTN_ROTARY_ROUND_F32 = 1,  /* round each theta to float32 first, as common model code does */
  LATTN_ROTARY_NO_TRUNCATE = 2 /* YaRN: bounds of the ramp without floor and ceil */
};

typedef struct lattn_rotary_scaling {
  uint32_t size;                 /* sizeof(lattn_rotary_scaling) */
  int32_t kind;                  /* enum lattn_rotary_kind */
  int32_t n_dims;                /* even, 2 ... 1024 */
  int32_t flags;                 /* enum lattn_rotary_flags */
  double base;                   /* 0 = 10000 */
  double factor;                 /* 0 = 1 */
  double original_length;        /* trained context; required > 0 by YARN and LLAMA3 */
  double low_frequency_factor;   /* LLAMA3; 0 = 1 */
  double high_frequency_factor;  /* LLAMA3; 0 = 4 */
  double beta_fast;              /* YARN; 0 = 32 */
  double beta_slow;              /* YARN; 0 = 1 */
} lattn_rotary_scaling;

/* Fills turns[n_dims / 2], to <= 2^-60 relative, by integer arithmetic. Errors: NULL, SIZE,
   FIELD, SHAPE, VALUE. */
LATTN_API lattn_status lattn_rotary_turns(uint64_t *turns, const lattn_rotary_scaling *scaling);

/* Turns of n frequencies in radians a position, taken as exact. Errors: NULL, SHAPE (n < 0),
   VALUE (not finite). */
LATTN_API lattn_status lattn_rotary_turns_from_f32(uint64_t *turns, const float *radians,
                                                   int64_t n);
LATTN_API lattn_status lattn_rotary_turns_from_f64(uint64_t *turns, const double *radians,
                                                   int64_t n);

/* YaRN's magnitude: 0.1 * mscale * ln(factor) + 1 for factor > 1, else 1. Errors: NULL, VALUE. */
LATTN_API lattn_status lattn_rotary_yarn_magnitude(float *magnitude, double factor, double mscale);

/* Rotates x in place: token t to position positions[t], or first_position + t where positions is
   NULL. In float32, then rounded to x's type. Errors: NULL, SIZE, FIELD, SHAPE, TYPE, STRIDE,
   OVERFLOW, VALUE. Note: OVERFLOWED. */
LATTN_API lattn_status lattn_rotate(const lattn_rotary *rotary, lattn_tensor x,
                                    int64_t first_position, const int64_t *positions);

/* ---- append: pools and caches ---- */

/* Owns pages and counts who holds each; hands them to caches. Lives in the arena given to
   lattn_pool_init, or its pages come from an allocator. A pool whose pages are in its arena holds
   no pointer: the arena may be copied, mapped from a file or shared, to another place of the same
   alignment modulo 64 (caches and checkpoints are then found at the same offsets).
   Where the memory lies is the caller's choice. Long caches are read faster on huge pages: on
   Linux, align the arena to 2 MiB and madvise(MADV_HUGEPAGE) before its first use
   (examples/03-heads.c); an allocator cuts its pages from such a range. On a machine of several
   memory nodes, memory comes from the node of the thread that first touches it. The library touches
   no page of an arena before it writes a token there (by extend's tasks, or append's caller; pages
   of an allocator: by the caller), moves none, and binds no task to a thread: give each node a pool
   of its own, with the sequences or layers that threads of that node work on. */
typedef struct lattn_pool lattn_pool;

/* One sequence of one layer: keys and values of n_kv_heads heads, each kept by its own policy.
   Its tables live in its pool's arena. Calls that change any cache of a pool, or make or release
   one, are serialised by the caller; calls on a const cache run beside each other, and beside a
   change of another cache of the pool, also of one that shares pages with it (but not
   lattn_cache_stats_get, which looks at the pool's counts). */
typedef struct lattn_cache lattn_cache;

/* What a cache held at one moment; shares its pages. Lives in the cache's pool, and outlives the
   cache. */
typedef struct lattn_checkpoint lattn_checkpoint;

enum lattn_policy {
  LATTN_HEAD_FULL = 0,     /* keeps every token */
  LATTN_HEAD_STREAMING = 1, /* row i sees j <= i with j < sinks or i - j < window (Xiao et al.,
                               StreamingLLM) */
  /* Streaming, and one more key that stands for all that row i no longer sees, sinks <= j <= i -
     window: the mean of those keys and values as stored (sums in double, in token order), counted
     as often as there are such tokens (Tang et al., RazorAttention, arXiv 2407.15891). Its score is
     that of the mean key, softcap and ALiBi (at the mean distance) included, + ln(count); biases
     and callbacks of a call do not reach it. By Jensen's inequality it never weighs more than the
     tokens did (with neither softcap nor LATTN_HEAD_VARIANCE). It is merged into a row after all
     segments, before learned sinks, and is part of a call's partial. Positions are
     absolute. The paper compresses once, after the prompt: mark = LATTN_PROMPT_END, sinks 4, window
     4000, window_divisor 5. Such a cache takes no lattn_cache_remove, no LATTN_SIGMOID, and no
     bundles (n_value_heads). */
  LATTN_HEAD_COMPENSATED = 2,
  /* Full until lattn_cache_mark, which keeps `budget` of the tokens held: the newest `window`, and
     those that the queries of these attended to most (SnapKV, Li et al.; PyramidKV, Cai et al.:
     with budgets of lattn_pyramid_budget; Ada-KV, Feng et al.: LATTN_SNAP_SHARED). Tokens after
     the mark are kept, all of them. Not of bundles (n_value_heads). */
  LATTN_HEAD_SNAP = 3,
  /* Likewise, but those that all rows since they came attended to most (H2O, Zhang et al.). Prefill
     and decode score the keys two times more. */
  LATTN_HEAD_HEAVY = 4
};

/* What lattn_cache_mark tells a cache. */
enum lattn_mark {
  LATTN_PROMPT_END = 1 /* the tokens so far are a prompt, those to come are answers to it */
};

enum lattn_head_flags {
  /* Keeps what lost_bound and lost_estimate of a call need: sums and bounds over the keys that left
     the window, or that marks dropped, 32 bytes a key dim. Not of bundles (n_value_heads). */
  LATTN_HEAD_LOST = 1,
  /* Of a compensated head: its key's score gets 1/2 * sum_d (scale q_d)^2 C_d more, C_d the
     variance of dim d over the keys it stands for: to second order what the mean leaves out. An
     approximation without a bound: with keys far from normal it may weigh more than they did. */
  LATTN_HEAD_VARIANCE = 2,
  /* Of LATTN_HEAD_SNAP: */
  LATTN_SNAP_AVERAGE = 256,   /* pooling by the mean, in place of the largest; 0 beyond the ends */
  LATTN_SNAP_GROUP_MAX = 512, /* of the query heads' scores the largest, in place of the mean */
  LATTN_SNAP_SHARED = 1024    /* Ada-KV: such heads of a cache share their budgets */
};

enum lattn_positions {
  LATTN_POSITIONS_DEFAULT = 0,  /* in-cache for streaming heads of a cache that rotates or has
                                   ALiBi */
  LATTN_POSITIONS_ABSOLUTE = 1, /* sinks keep their true distance (DuoAttention's deployment) */
  LATTN_POSITIONS_IN_CACHE = 2  /* sinks appear just before the window: at distance min(i, S+W-1)
                                   - j */
};

/* Policy of one KV head. */
typedef struct lattn_head {
  int32_t policy;    /* enum lattn_policy */
  int32_t positions; /* enum lattn_positions; of a full head absolute */
  int64_t sinks;     /* S >= 0 */
  int64_t window;    /* W >= 1, the own token included (DuoAttention's recent_size + 1) */
  int64_t slack;     /* tokens kept beyond the window, so that truncate can go back so far; >= 0 */
  int32_t key_type, value_type; /* enum lattn_type of its storage; 0 = the config's */
  int32_t mark;      /* 0: the policy holds from the first token. LATTN_PROMPT_END: the head is full
                        until that mark, and its policy holds for the rows after it. SNAP, HEAVY:
                        either, as these always wait for marks */
  int32_t flags;     /* enum lattn_head_flags; not of a full head */
  int64_t window_divisor; /* with a mark: W is the larger of window and tokens at the mark /
                             window_divisor; 0 = window. Not of SNAP, HEAVY */
  /* The rest is of LATTN_HEAD_SNAP and _HEAVY, which use window and slack too. SNAP: window w, 0 =
     32, is the rows whose attention is summed and the newest tokens, which stay; slack is the
     tokens that truncate may go back before a mark. HEAVY: window is the newest tokens that stay,
     0 = half of the budget. */
  int64_t budget;         /* tokens that a mark keeps, the newest included; SNAP: > window */
  int32_t kernel;         /* SNAP: a key's score is the largest (or mean) of so many keys around
                             it: odd, 1 ... 63; 0 = 7. (SnapKV's LongBench runs and Ada-KV: w 32, 7,
                             largest; SnapKV's class: 64, 5, mean; kvpress: 64, 5, mean) */
  int32_t zero;           /* must be 0 */
  double floor_alpha;     /* SNAP_SHARED: the share of its budget that a head keeps whatever the
                             others score: 0 = 0.2; negative = none; 1 = all (no sharing) */
} lattn_head;

typedef struct lattn_cache_config {
  uint32_t size;            /* sizeof(lattn_cache_config) */
  uint32_t head_size;       /* sizeof(lattn_head) if heads is given (an older one's will do) */
  int32_t n_kv_heads;       /* >= 1; see also n_value_heads */
  int32_t n_heads;          /* query heads, a multiple of n_kv_heads (and of n_value_heads); 0 =
                               n_kv_heads */
  int32_t key_dim;          /* >= 1 */
  int32_t value_dim;        /* 0 = key_dim */
  int32_t key_type;         /* enum lattn_type of storage; 0 = LATTN_F32. LATTN_I8 and LATTN_I4: */
  int32_t value_type;       /*   dims 16 ... 1024; each token is rounded alone when it is appended,
                               keys and LATTN_I4 values in a basis turned by a Hadamard transform
                               (the largest power of two that divides the dim, 16 ... 128), which
                               spreads outlier channels; scores of such keys are integer dot
                               products with queries of 15 (LATTN_I8) or 8 bits, sums of LATTN_I8
                               values those with weights of 14 bits, of each 128 tokens' largest */
  int64_t capacity;         /* tokens that full heads, and heads chosen at marks, can hold; 0 =
                               only if there are none: no limit. Positions may go beyond it if no
                               head is full, as what a mark drops makes room */
  int64_t max_append;       /* most tokens of one append, and of an extend's inner step; 0 = 512 */
  float scale;              /* as in lattn_attn */
  float softcap;
  const lattn_head *heads;  /* NULL = all full, or [n_kv_heads] (with n_value_heads: [bundles]);
                               copied */
  const lattn_rotary *rotary;  /* NULL = none: keys and queries are taken as they are; else the
                                  cache rotates both at their positions, in float32, before
                                  storage; copied */
  const float *alibi_slopes;   /* NULL, or [n_heads]; copied */
  const float *sink_logits;    /* NULL, or [n_heads]; copied */
  lattn_fault *fault;          /* NULL, or gets the field that an error is about; not kept */
  int32_t max_drafts;          /* most draft tokens at a time, 0 ... 64; their room is in the
                                  cache's tables: max_drafts tokens of every KV head; 0 with
                                  LATTN_HEAD_HEAVY */
  int32_t max_holes;           /* most removed ranges at a time, 0 = 16; at most 1024 */
  int32_t weighting;           /* as in lattn_attn */
  float sigmoid_bias;
  int32_t n_value_heads;       /* 0 = n_kv_heads. Else (DiffQKV: Lin et al., Sigma) n_kv_heads is
                                  the number of key heads: query head h uses key head h *
                                  n_kv_heads / n_heads and value head h * n_value_heads / n_heads;
                                  n_heads is a multiple of both. A KV head is then a bundle: each of
                                  the gcd(n_kv_heads, n_value_heads) has as many key heads, as many
                                  value heads, and the query heads that use them. What is said of a
                                  KV head (policy, types, pages, statistics) holds for a bundle.
                                  Bundles of more than one key head or value head are full or
                                  streaming, without LATTN_HEAD_LOST: else LATTN_E_CONFIG */
  int32_t zero;                /* must be 0 */
} lattn_cache_config;

/* Pages from the caller. alloc returns `bytes` bytes aligned to `alignment` (64), or NULL; both
   are called only inside calls that change a cache of the pool. */
typedef struct lattn_pool_config {
  uint32_t size;                   /* sizeof(lattn_pool_config) */
  int32_t zero;                    /* must be 0 */
  void *(*alloc)(void *user, size_t bytes, size_t alignment); /* NULL = pages from the arena */
  void (*free)(void *user, void *page, size_t bytes);         /* given with alloc */
  void *user;
} lattn_pool_config;

typedef struct lattn_pool_stats {
  uint32_t size;        /* sizeof(lattn_pool_stats), set by the caller */
  int32_t n_caches;     /* caches initialised and not released */
  int64_t n_pages;      /* pages in use */
  int64_t page_bytes;   /* bytes of those */
  int64_t table_bytes;  /* bytes of the pool itself and the tables of its caches */
  int64_t arena_bytes;  /* size of the arena */
  int64_t free_bytes;   /* bytes of the arena that no table or page uses */
  int64_t n_shared;     /* of n_pages, those with more than one holder */
  int64_t n_checkpoints; /* made and not released */
} lattn_pool_stats;

typedef struct lattn_cache_stats {
  uint32_t size;            /* sizeof(lattn_cache_stats), set by the caller */
  int32_t zero;
  int64_t n_tokens;         /* tokens appended (the next one's position) */
  int64_t capacity;         /* most tokens (if no head is full, and some are chosen at marks: that
                               these hold); INT64_MAX without limit */
  int64_t n_full_heads, n_streaming_heads; /* full: SNAP and HEAVY, too; streaming: all others */
  int64_t full_bytes;       /* bytes of pages held by full heads */
  int64_t streaming_bytes;  /* bytes of pages held by streaming heads */
  int64_t table_bytes;      /* bytes of the cache's tables */
  int64_t token_bytes;      /* bytes of the keys and values held (page_bytes less unused slots) */
  int64_t shared_bytes;     /* of full_bytes and streaming_bytes, pages that others hold too */
  int64_t n_drafts;         /* draft tokens pending */
  int64_t n_holes;          /* removed ranges */
} lattn_cache_stats;

typedef struct lattn_cache_head_stats {
  uint32_t size;           /* sizeof(lattn_cache_head_stats), set by the caller */
  int32_t policy;          /* enum lattn_policy */
  int32_t positions;       /* LATTN_POSITIONS_ABSOLUTE or _IN_CACHE: which one holds */
  int32_t zero;
  int64_t sinks, window, slack;
  int64_t n_sink_tokens;   /* tokens 0 ... n_sink_tokens - 1 are held whatever the window */
  int64_t first_token;     /* and tokens first_token ... n_tokens - 1 (those since a mark at which
                              it dropped some; of those before, n_tokens_held says how many) */
  int64_t n_tokens_held;   /* distinct tokens held */
  int64_t page_bytes;      /* bytes of this head's pages */
} lattn_cache_head_stats;

/* Bytes one cache takes of a pool's arena, at most, between calls of lattn_cache_extend: tables
   and pages (each removed range may take up to two pages a head more, while it lasts). 0:
   impossible config (lattn_cache_init says why). */
LATTN_API size_t lattn_cache_bytes(const lattn_cache_config *config);

/* Bytes of arena for a pool of n caches of that config, filled to capacity by extend (which
   needs room for max_append tokens of one cache's streaming heads at a time; if you append to
   several caches before you attend, add n * the difference to a config with slack + max_append).
   With an allocator (pool config with alloc): tables only. pool NULL = pages from the arena. Sum
   over configs for a mixed pool. A fork takes a cache's tables and, as it grows, pages of its own:
   count it as a cache, less the pages that stay shared. 0: impossible. */
LATTN_API size_t lattn_pool_bytes(const lattn_pool_config *pool, const lattn_cache_config *config,
                                  int64_t n_caches);

/* Makes a pool in arena (any alignment; the pool starts at the first multiple of 64). The arena
   stays the caller's: to end the pool, release its caches if they use an allocator, and forget
   it. Errors: NULL, SIZE, FIELD, MEMORY, CONFIG (alloc without free). */
LATTN_API lattn_status lattn_pool_init(lattn_pool **pool, void *arena, size_t arena_bytes,
                                       const lattn_pool_config *config);
LATTN_API lattn_status lattn_pool_stats_get(const lattn_pool *pool, lattn_pool_stats *stats);

/* Makes an empty cache in pool. Errors: NULL, SIZE, FIELD, SHAPE, TYPE, OVERFLOW, VALUE, CONFIG
   (in-cache positions without rotary or ALiBi; no capacity with a full head; integer types with
   dims below 16 or above 1024; more than 8 page sizes in a pool; LATTN_SIGMOID with learned sinks;
   sigmoid_bias without it; max_drafts with LATTN_HEAD_HEAVY; a window of max_drafts or less of a
   compensated head, or a streaming one that tells what it lost; heads that bundles cannot be),
   FULL. */
LATTN_API lattn_status lattn_cache_init(lattn_cache **cache, lattn_pool *pool,
                                        const lattn_cache_config *config);

/* Gives the cache's pages and tables back to its pool. The cache is then gone. Errors: NULL. */
LATTN_API lattn_status lattn_cache_release(lattn_cache *cache);

/* Most tokens that one pool of `bytes` can hold, if it has one cache of each of the n configs (the
   layers of a model, each with its table of policies) and they are extended together, without a
   mark; their capacity fields are not read. INT64_MAX: no limit, as all heads stream. 0: not even
   one, or an impossible config. And the converse: bytes for a pool of caches with that capacity; 0:
   impossible. */
LATTN_API int64_t lattn_fit_tokens(int64_t n, const lattn_cache_config *const *configs,
                                   size_t bytes);
LATTN_API size_t lattn_fit_bytes(int64_t n, const lattn_cache_config *const *configs,
                                 int64_t n_tokens);

/* What a call on a cache gives; NULL = none of it. The rest (scale, softcap, ALiBi, weighting,
   learned sinks, rotary, policies) is the cache's config. Key indices are positions in the cache.
   (The score callback's first_key is a multiple of 16 as long as nothing was removed; with removed
   ranges, it is called again for each run of adjacent positions, lanes of others are ignored, and
   first_key, where lane 0 would stand, may be negative.) */
typedef struct lattn_call {
  uint32_t size;                  /* sizeof(lattn_call) */
  int32_t inexact;                /* as in lattn_attn */
  const lattn_tensor *key_bias;   /* as in lattn_attn; dim >= tokens in the cache after the call */
  const lattn_tensor *pair_bias;  /* likewise */
  const lattn_tensor *gate;       /* as in lattn_attn */
  lattn_score_function score;     /* as in lattn_attn (sequence = 0, row = row of this call's q) */
  void *score_user;
  lattn_partial *partial;         /* attend only, one cache: as in lattn_attn */
  float *lse_low;                 /* as in lattn_attn */
  /* NULL, or [n][H]: of all attention that the row would have paid had its head kept every token,
     the share that went to the tokens it no longer sees: at most, and about so much. 0 where
     nothing was dropped; 1 and NaN of a head without LATTN_HEAD_LOST, and bound 1 also where
     biases or a callback change scores. Bound: count * exp(u) against the sum of what is kept
     (without learned sinks and extra key, which could only lessen it), u the least of |q| times
     the longest key and of the box that holds all keys. Estimate: count * exp(score of the mean
     key), as a compensated head weighs it; of heads chosen at marks, ALiBi as if they had dropped
     all up to the newest that the last mark could. Not of LATTN_SIGMOID (LATTN_E_CONFIG). */
  float *lost_bound;
  float *lost_estimate;
  int32_t top_values;             /* as in lattn_attn: these three */
  int32_t top_mode;
  float *dropped;
  const lattn_tensor *extra_key;  /* as in lattn_attn; if the cache rotates, a query meets it
                                     rotated at its position, also where heads have in-cache ones */
  const lattn_tensor *extra_value; /* as in lattn_attn */
} lattn_call;

/* Bytes of scratch for calls of up to n_tokens rows on a cache of this config, with exactly that
   number of threads. 0: impossible. */
LATTN_API size_t lattn_cache_scratch(const lattn_cache_config *config, int64_t n_tokens,
                                     int32_t n_threads);

/* The normal call, prefill and decode alike: appends k [n][G][dk], v [n][G][dv] (G: n_kv_heads, of
   v n_value_heads), and attends with q [n][H][dk]; out [n][H][dv]; lse NULL or [n][H]. Row r is the
   token at position (tokens before) + r and sees itself and what its head's policy lets it see. Any
   n, in inner steps of max_append tokens: memory for a streaming head stays constant. Pages for the
   whole call are reserved first: LATTN_E_FULL comes before anything is written. When cancelled, the
   cache holds exactly *tokens_done more tokens than before, whose rows are written. out may be
   exactly q's array. Errors: as lattn_attention, and FULL, STATE (drafts are pending). Notes:
   CANCELLED, OVERFLOWED. */
LATTN_API lattn_status lattn_cache_extend(lattn_cache *cache, const lattn_call *call,
                                          lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                          lattn_tensor out, float *lse, const lattn_exec *exec);

/* Appends only: at most max_append tokens (else LATTN_E_SHAPE). Streaming heads then hold these
   tokens besides their window, until the next extend or append. Errors: NULL, SIZE, FIELD, SHAPE,
   TYPE, STRIDE, OVERFLOW, FULL, STATE. Note: OVERFLOWED. exec: only fault is used. */
LATTN_API lattn_status lattn_cache_append(lattn_cache *cache, lattn_tensor k, lattn_tensor v,
                                          const lattn_exec *exec);

/* Attends only: the n rows of q are the newest n tokens of the cache. Extend = append + attend,
   bit for bit. Errors: as lattn_attention; SHAPE for more rows than tokens; EVICTED when a row's
   window is no longer held. */
LATTN_API lattn_status lattn_cache_attend(const lattn_cache *cache, const lattn_call *call,
                                          lattn_tensor q, lattn_tensor out, float *lse,
                                          const lattn_exec *exec);

/* Forgets the tokens from position n_tokens on, as if they had never been appended. For
   streaming heads that have evicted: as far back as the next token's whole window, and the
   newest token, is still held (at least `slack` tokens), else LATTN_E_EVICTED. So it is for a head
   that dropped tokens at a mark behind n_tokens, and for one of LATTN_HEAD_HEAVY, whose sums go
   forward only: checkpoints bring these back. n_tokens = 0 always works. Errors: NULL, SHAPE
   (negative, or more than held), EVICTED, STATE. */
LATTN_API lattn_status lattn_cache_truncate(lattn_cache *cache, int64_t n_tokens);

/* Forgets everything, drafts too; gives all pages back to the pool. Errors: NULL. */
LATTN_API lattn_status lattn_cache_clear(lattn_cache *cache);

/* Removes the tokens at positions from ... to - 1 from the middle (context shift, edited prompts):
   later tokens move down, so that positions stay 0 ... n_tokens - 1. No key moves or is rotated
   again: the removed slots stay behind as a hole, pages wholly inside it are given back, and later
   queries meet the keys before it at their new distance. Equal to a cache that never had these
   tokens, to rounding but not to the bit (blocks of summation are cut elsewhere). to = n_tokens is
   lattn_cache_truncate. Ranges that touch one another become one hole. Cost: O(pages). Each hole
   costs one more rotated query for the keys before it. Errors: NULL; SHAPE (not 0 <= from <= to <=
   n_tokens); FULL (more than max_holes); EVICTED: a streaming head no longer holds the window that
   the next token then has; CONFIG: the range touches a streaming head's sinks, or a head
   is compensated, tells what it lost (their sums know no hole), has a mark, or is of
   LATTN_HEAD_SNAP or _HEAVY; STATE. */
LATTN_API lattn_status lattn_cache_remove(lattn_cache *cache, int64_t from, int64_t to);

/* A new cache in the same pool with the parent's config and tokens: it shares all pages; the newest
   page of each head is copied by whoever appends first. Parent and fork live and die in any order.
   Cost: its tables (4 bytes a page of capacity) and one count a page; no key or value is touched.
   Errors: NULL, FULL (no room for its tables), STATE. */
LATTN_API lattn_status lattn_cache_fork(lattn_cache **fork, const lattn_cache *parent);

/* Keeps what the cache holds now, for lattn_cache_rollback; any number, in any order, also when the
   cache has evicted, truncated, removed or marked since. Shares all pages: takes 4 bytes a page
   held (a LATTN_HEAD_SNAP its queries, a _HEAVY 8 bytes a token, too), later the pages that the
   cache itself no longer holds, and one copied page a head when the cache goes on. Errors: NULL,
   FULL, STATE. */
LATTN_API lattn_status lattn_cache_checkpoint(lattn_checkpoint **checkpoint,
                                              const lattn_cache *cache);

/* Makes the cache what it was at the checkpoint, bit for bit, as if it had never seen what came
   after. The checkpoint stays. The cache may be another of the same pool and config (a fork; its
   capacity, slack and max_... may differ). Never takes a page. Errors: NULL; CONFIG (another pool
   or config); FULL (more tokens than its capacity, more holes than its max_holes; of a head that is
   compensated or tells what it lost, less slack or max_append than its pages at the checkpoint
   take); STATE. */
LATTN_API lattn_status lattn_cache_rollback(lattn_cache *cache, const lattn_checkpoint *checkpoint);

/* The checkpoint is then gone. Errors: NULL. */
LATTN_API lattn_status lattn_checkpoint_release(lattn_checkpoint *checkpoint);

typedef struct lattn_checkpoint_stats {
  uint32_t size;        /* sizeof(lattn_checkpoint_stats), set by the caller */
  int32_t zero;
  int64_t n_tokens;     /* of the cache then */
  int64_t table_bytes;  /* bytes of the arena that it takes */
  int64_t page_bytes;   /* bytes of the pages it holds */
  int64_t own_bytes;    /* of those, pages that nobody else holds */
} lattn_checkpoint_stats;

/* Errors: NULL, SIZE. */
LATTN_API lattn_status lattn_checkpoint_stats_get(const lattn_checkpoint *checkpoint,
                                                  lattn_checkpoint_stats *stats);

/* Verifies draft tokens (speculative decoding; trees as in SpecInfer, Miao et al.): attends with
   row i of q as if the cache held exactly its committed tokens and the path of drafts that ends
   in draft i, with the bits of plain decode of that path. Drafts are numbered in order over all
   calls until they are accepted or dropped; parents[i] is the number of draft i's parent, below
   its own, or -1: a child of the newest committed token; parents NULL: a chain, each the child of
   the draft before it. A draft's position is n_tokens + its depth (0 for children of the newest
   token). k and v are stored in an area of their own: nothing is evicted and no page is taken.
   At most max_drafts in all, else LATTN_E_SHAPE. call->pair_bias and gate are indexed by this
   call's rows. Errors: as lattn_cache_extend (FULL only for paths beyond the capacity); VALUE
   (parents). While drafts are pending, calls
   that append, truncate, remove, fork, checkpoint, roll back, save or load are LATTN_E_STATE.
   exec: progress is not used. */
LATTN_API lattn_status lattn_cache_draft(lattn_cache *cache, const lattn_call *call,
                                         const int32_t *parents, lattn_tensor q, lattn_tensor k,
                                         lattn_tensor v, lattn_tensor out, float *lse,
                                         const lattn_exec *exec);

/* Appends the drafts path[0 ... n - 1] (numbers of drafts, each the parent of the next, the first a
   child of the newest token) with their stored bits, and drops all others. n = 0 drops all.
   Streaming heads then hold what they do after an extend. Errors: NULL; SHAPE (n); VALUE (not a
   path); FULL: the drafts stay. */
LATTN_API lattn_status lattn_cache_accept(lattn_cache *cache, int32_t n, const int32_t *path);

/* Tells the cache that something ended here (enum lattn_mark): an event of the sequence, between
   two tokens. Heads whose policy waits for it (lattn_head.mark) now drop what it has no room for,
   and all rows from here on see what the policy lets them see. Heads that have been compressed stay
   as they are. Rows before the mark can no longer be attended with, and truncating to before it is
   LATTN_E_EVICTED (unless all tokens up to there are still held: then it is undone).
   lattn_cache_clear forgets the mark. Cost: one pass over the keys and values that are dropped,
   shared by exec's threads.
   Heads of LATTN_HEAD_SNAP and _HEAVY that hold more tokens than their budget drop the others;
   those that do not, and all other heads, stay as they are, bit for bit. What stays is a function
   of the tokens and the marks, not of calls or threads.
   A later mark chooses again, of what is held then: who marks every so often has H2O's bounded
   cache.
   A = the weights of the softmax (or of LATTN_SIGMOID) over all that the head held, learned sinks
   included. With w rows, and group query heads a KV head:
     SNAP   of key j, other than the newest w: a_j = mean of A_ij over the newest w rows i and the
            group (GROUP_MAX: the largest of the group's means), then pooled over the kernel. The
            budget - w keys with the largest stay. What a call adds (biases, callback, extra key) is
            not known here, and not in A.
     SHARED all such heads, if together they hold more than their budgets: n_h = how many of head
            h's keys are among the largest of all, as many as the budgets - w in all; it then
            keeps round(n_h (1 - a) + floor((budget - w) a)) of its own (ties to even).
     HEAVY  F_j = sum of A_ij over all rows i since key j came and over the group, in double. A row
            whose A is NaN adds nothing.
   Equal scores: the newer stays (of heads, the lower). Kept keys keep their rotation, and positions
   count on: distances, biases, callbacks (called as with removed ranges), reading and weights go by
   them. A token that a head dropped cannot be read: LATTN_E_EVICTED, as is attending with rows, or
   truncating to a token, from before the mark (a checkpoint from before it still serves).
   Tokens are copied, page by page; a page more than held is needed, if others share pages (forks,
   checkpoints) as many as they share, and while the call runs 8 bytes a token held (16: GROUP_MAX).
   Scratch, for such heads only: lattn_cache_scratch of any n_tokens > 0. Errors: NULL; SIZE, SHAPE
   (exec); FIELD (mark); FULL; SCRATCH; STATE: drafts are pending, or a head lacks queries: of the
   newest w tokens (SNAP) or of any (HEAVY) that lattn_cache_append added, or of more tokens than
   its slack that were truncated (after lattn_cache_load: of any, as a file has the queries of w
   tokens). exec may be NULL; progress is not used. */
LATTN_API lattn_status lattn_cache_mark(lattn_cache *cache, int32_t mark, const lattn_exec *exec);

/* The budget of one layer (0 = the first) when budgets fall with depth (Cai et al., PyramidKV): C =
   budget - window on the average, from 2C - floor(C / beta) in the first layer in equal whole steps
   down to about floor(C / beta), plus window. The steps are rounded down, so the sum may be up to
   n_layers (n_layers - 1) / 2 more than n_layers budgets. n_tokens: of the prompt, if it is known;
   0 = long. Prompts of less than 2C, or of no more than `budget`, get `budget` in every layer; of
   others, no layer gets more than the prompt has. beta 0 = 20. Returns 0 if an argument is out of
   range (0 <= window < budget, beta >= 0, 0 <= layer < n_layers, all < 2^31). */
LATTN_API int64_t lattn_pyramid_budget(int64_t budget, int64_t window, int64_t beta,
                                       int64_t n_tokens, int64_t layer, int64_t n_layers);

/* One sequence of a batched call. Frozen: this struct never changes. */
typedef struct lattn_sequence {
  lattn_cache *cache;
  int64_t n_tokens;         /* rows of q (and of k, v) that are its: the next ones of the arrays */
  const int32_t *parents;   /* NULL: they are tokens; [n_tokens]: they are drafts, as in
                               lattn_cache_draft (lattn_batch_extend only) */
} lattn_sequence;

/* Extends (or drafts, or attends with the newest n_tokens of) n caches in one call: batched decode,
   or prefill of some and decode of others. q, k, v, out and lse hold the rows of all sequences one
   after another. The result is that of n calls, one a sequence, bit for bit; pages that full heads
   of sequences share (prefixes of whole segments) are read once for all their rows. The caches
   agree in all of their config but heads, capacity and max_..., else LATTN_E_CONFIG; they may be in
   different pools. Pages are reserved for all before anything is written. A cache may come only
   once in an extend (LATTN_E_ALIAS). call: key_bias.n_tokens is 1 or n (a row for each sequence);
   the score callback gets the index of the sequence and the row of q; partial is LATTN_E_CONFIG.
   When cancelled, *tokens_done rows, in the order of the arrays, are done, the others not begun.
   Errors and notes: as lattn_cache_extend, lattn_cache_draft and lattn_cache_attend. exec NULL or
   without scratch: one sequence after another. */
LATTN_API lattn_status lattn_batch_extend(int64_t n, const lattn_sequence *sequences,
                                          const lattn_call *call, lattn_tensor q, lattn_tensor k,
                                          lattn_tensor v, lattn_tensor out, float *lse,
                                          const lattn_exec *exec);
LATTN_API lattn_status lattn_batch_attend(int64_t n, const lattn_sequence *sequences,
                                          const lattn_call *call, lattn_tensor q, lattn_tensor out,
                                          float *lse, const lattn_exec *exec);

/* Bytes of scratch for calls of up to n_sequences sequences and n_tokens rows in all, on caches of
   that config or a smaller capacity. 0: impossible. */
LATTN_API size_t lattn_batch_scratch(const lattn_cache_config *config, int64_t n_sequences,
                                     int64_t n_tokens, int32_t n_threads);

/* What the newest n rows attended to: as lattn_attention_weights, with the rows, call and lse of a
   lattn_cache_extend or _attend whose last row is the newest token. n_keys = n_tokens of the cache;
   keys are positions. Of the call, key_bias, pair_bias and score are used; the rest must be right,
   and is not used: lse knows of extra_key, dropped and lost_... are not written. Scratch:
   lattn_cache_scratch. Errors: as lattn_cache_attend and lattn_attention_weights. */
LATTN_API lattn_status lattn_cache_weights(const lattn_cache *cache, const lattn_call *call,
                                           lattn_tensor q, const lattn_weights *weights,
                                           const lattn_exec *exec);

enum lattn_read_flags {
  LATTN_READ_UNROTATED = 1 /* keys as they were before the cache rotated them, to rounding */
};

/* Reads the tokens at positions first ... first + n - 1 of one KV head: k [n][1][dk], v [n][1][dv]
   (of a bundle, all its key heads and value heads), of any element type; data NULL: not wanted, the
   view is not read. Keys are as stored: rotated, if the cache rotates, at their slots (= positions,
   unless tokens were removed before them). Errors: NULL (both), SHAPE (head, positions, dims),
   TYPE, STRIDE, OVERFLOW, FIELD; ALIAS (k and v overlap); EVICTED (a token is no longer held).
   Note: OVERFLOWED. */
LATTN_API lattn_status lattn_cache_read(const lattn_cache *cache, int32_t kv_head, int64_t first,
                                        lattn_tensor k, lattn_tensor v, int32_t flags);

/* Writes `bytes` bytes to where the caller likes; reads exactly `bytes` bytes. 0 = done; else the
   call ends with LATTN_E_IO. Called in order, on the caller's thread, with at most 16 KiB. */
typedef int32_t (*lattn_write_function)(void *user, const void *data, size_t bytes);
typedef int32_t (*lattn_read_function)(void *user, void *data, size_t bytes);

/* Saves what the cache holds (of a streaming head, what it holds after an extend): the same
   bytes for the same tokens held, whatever the machine. (A head that is compensated or tells what
   it lost also saves how far its sums have come, which depends on the calls.) The format is written
   down at §8. *bytes (NULL = not wanted) gets the size; write NULL: only that. Errors: NULL, IO,
   STATE. */
LATTN_API lattn_status lattn_cache_save(const lattn_cache *cache, lattn_write_function write,
                                        void *user, uint64_t *bytes);

/* Makes the cache what was saved, bit for bit. It must agree in all of its config but capacity,
   slack and max_... (LATTN_E_CONFIG: another config; FULL: it has no room). All or nothing: until
   the last byte was read and its checksum found right, the cache keeps what it had, so pages for
   both are needed (clear it first if they are short), and room for tables like the cache's
   (lattn_pool_bytes counts them once). Reads to the end of the object, not beyond.
   Errors: NULL, IO, FORMAT, CONFIG, FULL, STATE. */
LATTN_API lattn_status lattn_cache_load(lattn_cache *cache, lattn_read_function read, void *user);

/* What the cache, or one KV head of it, holds. Errors: NULL, SIZE, SHAPE (head). */
LATTN_API lattn_status lattn_cache_stats_get(const lattn_cache *cache, lattn_cache_stats *stats);
LATTN_API lattn_status lattn_cache_head_stats_get(const lattn_cache *cache, int32_t kv_head,
                                                  lattn_cache_head_stats *stats);

/* ---- advance: states of fixed size ---- */

/* Linear, flow and recurrent attention: one sequence of one layer, kept in a state whose size does
   not depend on the number of tokens. A linear state is, for each of its heads, a matrix S
   [features][value_dim]; of each token it does, in this order,

       decay        S = diag(exp(decay)) S
       correct      pred = S^T k (KEY), or (a^T S)^T of the undecayed S (GENERAL)
       write        S = S + k (beta (v - pred))^T (KEY), or S + b pred^T + k v^T (GENERAL), or
                    S + k v^T
       read         out = S^T q (READS_BEFORE: before decay and write, + (q . (bonus * k)) v)
       normalise    out = out / (q . z + epsilon), z the sum of the k so far, decayed alike

   with q and k first brought to unit length and through a feature map, where that is asked for,
   and q then multiplied by scale. lattn_state_preset fills in the options of a published method.

   A memory of Titans is a function f, k^T W or act(k^T W1) W2, that learns to give v for k:

       gradient     of loss_factor / 2 * |f(k) - v|^2, with respect to f's weights, at those before
                    the token (chunk > 1: before the first token of its chunk)
       learn        momentum = eta momentum - theta gradient
                    weights = (1 - alpha) weights + momentum
       read         out = f(q) (READS_BEFORE: of the weights before)

   It begins with weights of 0; lattn_state_set brings those of a model. (Two layers of zeros never
   learn: the gradient of each has the other as a factor.)

   A state lives in memory of the caller and holds no pointer. It may be copied by
   lattn_state_copy, which also serves as snapshot, fork and return, or moved with its memory, by a
   multiple of 64 bytes. Calls on different states may run beside each other, and calls that take a
   const state beside each other on one. Results are a function of the tokens alone: one call for
   all, or one a token, any number of threads, absorbed or advanced, drafted and committed: the same
   bits. */
typedef struct lattn_state lattn_state;

enum lattn_state_kind {
  LATTN_STATE_LINEAR = 0, /* as above (Katharopoulos et al. 2020; Yang et al. 2023, 2024) */
  LATTN_STATE_FLOW = 1,   /* causal Flow-Attention (Wu et al., Flowformer, 2022) */
  LATTN_STATE_AAREN = 2,  /* softmax attention of one fixed query a head (Feng et al. 2024) */
  LATTN_STATE_TITANS = 3  /* neural memory (Behrouz et al., Titans, 2025) */
};

enum lattn_feature {
  LATTN_FEATURE_IDENTITY = 0,
  LATTN_FEATURE_ELU1 = 1,    /* x > 0 ? x + 1 : exp(x) */
  LATTN_FEATURE_RELU = 2,    /* x > 0 ? x : 0; of LATTN_STATE_FLOW + 1e-6 */
  LATTN_FEATURE_RELU2 = 3,   /* its square */
  LATTN_FEATURE_SOFTMAX = 4, /* softmax over the dims of one vector */
  LATTN_FEATURE_TAYLOR = 5,  /* 1 + s + s^2/2, s = scale q.k, packed: 1 + d + d (d + 1) / 2 features
                                (Arora et al., BASED, 2024): 1; x_i; x_i^2 / sqrt 2; x_i x_j, i < j,
                                of x times sqrt(scale) */
  LATTN_FEATURE_SIGMOID = 6,
  LATTN_FEATURE_SILU = 7,
  LATTN_FEATURE_CALLER = 8   /* lattn_state_call.feature */
};

enum lattn_unit {
  LATTN_UNIT_NONE = 0,
  LATTN_UNIT_L2 = 1,    /* q and k times 1 / sqrt(sum of squares + unit_epsilon) */
  LATTN_UNIT_L2_MAX = 2 /* q and k / max(length, unit_epsilon); below 2^-60 that counts as 2^-60 */
};

enum lattn_decay {
  LATTN_DECAY_NONE = 0,
  LATTN_DECAY_HEAD = 1,   /* config.log_decay: constant (RetNet, Lightning) */
  LATTN_DECAY_STEP = 2,   /* call.decay, one a token (Mamba-2, Gated DeltaNet) */
  LATTN_DECAY_CHANNEL = 3 /* call.decay, one a token and feature (GLA, RWKV-6, KDA, RWKV-7) */
};

enum lattn_delta {
  LATTN_DELTA_NONE = 0,
  LATTN_DELTA_KEY = 1,    /* predicted by the key from the decayed state (DeltaNet and its kin) */
  LATTN_DELTA_GENERAL = 2 /* by call.predict from the undecayed state, written along call.write
                             (RWKV-7, DPLR) */
};

enum lattn_reads {
  LATTN_READS_AFTER = 0, /* a token reads its own write */
  LATTN_READS_BEFORE = 1 /* it does not, nor its decay (RWKV-6: with a bonus). Titans: reads the
                            memory before its own update */
};

enum lattn_normaliser {
  LATTN_NORMALISER_NONE = 0,
  LATTN_NORMALISER_SUM = 1,  /* divide by q . z + epsilon */
  LATTN_NORMALISER_FLOOR = 2 /* divide by max(|q . z|, epsilon): signed features */
};

enum lattn_activation { LATTN_ACTIVATION_GELU = 0, LATTN_ACTIVATION_SILU = 1 }; /* exact GELU */

enum lattn_state_flags {
  LATTN_STATE_COMPENSATED = 1 /* two floats an element: sums of a million tokens keep 1e-5. Flow,
                                 and linear states without decay and delta; slower */
};

/* Heads: out has n_heads; q, k and v may have fewer, then each serves n_heads / its number
   neighbours. A linear state or a memory of Titans belongs to each pair of a key head and a value
   head that go together: max(n_key_heads, n_value_heads) of them, the smaller number dividing the
   larger; of FLOW and AAREN to each head of out. */
typedef struct lattn_state_config {
  uint32_t size;           /* sizeof(lattn_state_config) */
  int32_t kind;            /* enum lattn_state_kind */
  int32_t n_heads;         /* >= 1 */
  int32_t n_query_heads;   /* 0 = n_heads; each divides n_heads */
  int32_t n_key_heads;
  int32_t n_value_heads;
  int32_t key_dim;         /* >= 1 */
  int32_t value_dim;       /* 0 = key_dim */
  int32_t feature;         /* enum lattn_feature; LINEAR: any; FLOW: 0 = SIGMOID, or RELU */
  int32_t feature_dim;     /* features of LATTN_FEATURE_CALLER; else 0 */
  int32_t unit;            /* enum lattn_unit; LINEAR */
  float unit_epsilon;      /* 0 = 1e-6 (L2), 1e-12 (L2_MAX) */
  float scale;             /* LINEAR, AAREN: 0 = 1 / sqrt(key_dim); others: 0 */
  int32_t decay;           /* enum lattn_decay; LINEAR */
  int32_t delta;           /* enum lattn_delta; LINEAR */
  int32_t reads;           /* enum lattn_reads; LINEAR without delta, TITANS */
  int32_t normaliser;      /* enum lattn_normaliser; LINEAR without delta */
  float epsilon;           /* of normaliser and flow; 0 = 1e-6 */
  float clamp_low, clamp_high; /* FLOW: of the competition's exponent; both 0 = -1 and 1;
                                  infinite = off */
  int32_t flags;           /* enum lattn_state_flags */
  int32_t max_drafts;      /* most draft tokens at a time, 0 ... 16 */
  int32_t chunk;           /* TITANS: tokens whose gradients are taken at the memory before the
                              first of them, counted from the first token of all; 0 = 1 */
  int32_t hidden_dim;      /* TITANS: 0 = linear memory; else two layers, so many units, no bias */
  int32_t activation;      /* of those: enum lattn_activation */
  int32_t residual;        /* of those: 1 = out = layer norm(...) * (1 + gain) + x, gain [value_dim]
                              learned like the rest; then value_dim = key_dim */
  float loss_factor;       /* TITANS: gradient = loss_factor * (f(k) - v) ...; 0 = 2 (the paper's
                              squared norm; 1: of the delta rule; 2 / value_dim: of a mean) */
  int32_t zero;            /* must be 0 */
  const float *log_decay;  /* HEAD: [states], <= 0; copied */
  const float *bonus;      /* READS_BEFORE, LINEAR: NULL = 0, or [states][features]; copied */
  const float *query;      /* AAREN: [n_heads][key_dim]; copied */
  lattn_fault *fault;      /* NULL, or gets the field that an error is about; not kept */
} lattn_state_config;

/* Published methods. What stands outside of the operator (projections, convolutions, activations of
   q, k and v, norms and gates of the output) is the model's. */
enum lattn_preset {
  LATTN_PRESET_LINEAR = 0,         /* elu + 1, normalised, scale 1 (Katharopoulos et al. 2020) */
  LATTN_PRESET_BASED = 1,          /* Taylor features, normalised, epsilon 1e-12; prefix (JRT):
                                      absorb the encoder's keys and values first */
  LATTN_PRESET_RETNET = 2,         /* DECAY_HEAD: log_decay from lattn_state_slopes */
  LATTN_PRESET_LIGHTNING = 3,      /* the same, scale 1 (TransNormerLLM, MiniMax-01) */
  LATTN_PRESET_SSD = 4,            /* Mamba-2: q = C, k = B, v = dt * x, decay = dt * A, scale 1 */
  LATTN_PRESET_GLA = 5,            /* DECAY_CHANNEL */
  LATTN_PRESET_HGRN2 = 6,          /* the same, scale 1, k = 1 - exp(decay) by the caller */
  LATTN_PRESET_RWKV6 = 7,          /* the same, READS_BEFORE, bonus */
  LATTN_PRESET_DELTA_NET = 8,      /* unit length, DELTA_KEY */
  LATTN_PRESET_GATED_DELTA_NET = 9, /* and DECAY_STEP (Qwen3-Next) */
  LATTN_PRESET_KDA = 10,           /* and DECAY_CHANNEL (Kimi Linear) */
  LATTN_PRESET_RWKV7 = 11,         /* DECAY_CHANNEL, DELTA_GENERAL: predict = -kappa, write =
                                      kappa * alpha; scale 1 */
  LATTN_PRESET_FLOW = 12,
  LATTN_PRESET_AAREN = 13,
  LATTN_PRESET_TITANS = 14         /* a linear memory; set hidden_dim for the deep one */
};

/* Sets the options of a method in a config whose size is set, and nothing else (not the heads and
   dims). Errors: NULL, SIZE, FIELD. */
LATTN_API lattn_status lattn_state_preset(lattn_state_config *config, int32_t preset);

/* Published log decays of LATTN_DECAY_HEAD, [n_heads]. RETNET: ln(1 - 2^(-5 - h)). LIGHTNING: minus
   ALiBi's slopes (2^(-8 (h + 1) / H), of the next powers of two where H is none), times 1 - layer /
   (n_layers - 1) + 1e-5 (n_layers <= 1: times 1). To 4 ulp. Errors: NULL, FIELD (another preset),
   SHAPE. */
LATTN_API lattn_status lattn_state_slopes(float *log_decay, int32_t preset, int32_t n_heads,
                                          int32_t layer, int32_t n_layers);

/* Bytes of memory for a state. 0: impossible config (lattn_state_init says why). */
LATTN_API size_t lattn_state_bytes(const lattn_state_config *config);

/* Makes an empty state in memory (any alignment; it starts at the first multiple of 64). Errors:
   NULL, SIZE, FIELD, SHAPE, OVERFLOW, VALUE, CONFIG (options that do not go together), MEMORY. */
LATTN_API lattn_status lattn_state_init(lattn_state **state, void *memory, size_t bytes,
                                        const lattn_state_config *config);

/* Forgets all tokens and drafts: all of the state is 0 again. (TITANS: its weights too. Set them
   again, or copy a state that has them.) Errors: NULL. */
LATTN_API lattn_status lattn_state_clear(lattn_state *state);

/* A feature map of the caller's: dim numbers of one vector (after unit length, before scale), of a
   query or a key of that head, to n_features. Must be pure, and callable on any thread; it runs
   under the library's floating-point word (round to nearest, no flush to zero). */
typedef void (*lattn_feature_function)(void *user, int32_t head, int32_t is_query, const float *x,
                                       int64_t dim, float *features, int64_t n_features);

/* What a call gives beside q, k and v; NULL = none of it. Tensors have one row a token, and heads
   for each state, or a number that divides it. */
typedef struct lattn_state_call {
  uint32_t size;                 /* sizeof(lattn_state_call) */
  int32_t zero;                  /* must be 0 */
  const lattn_tensor *decay;     /* natural logarithms, [n][heads][1] (STEP) or [n][heads][features]
                                    (CHANNEL); beyond [-80, 0] they count as its ends */
  const lattn_tensor *beta;      /* DELTA_KEY: [n][heads][1]; NULL = 1 */
  const lattn_tensor *predict;   /* DELTA_GENERAL: a, [n][heads][features] */
  const lattn_tensor *write;     /* DELTA_GENERAL: b, likewise */
  const lattn_tensor *rate;      /* TITANS: theta, [n][heads][1] */
  const lattn_tensor *momentum;  /* TITANS: eta; NULL = 0 */
  const lattn_tensor *forget;    /* TITANS: alpha; NULL = 0 */
  lattn_feature_function feature; /* LATTN_FEATURE_CALLER */
  void *feature_user;
  lattn_partial *partial;        /* NULL, or gets (maximum, sum, output) of each row, so that
                                    lattn_merge joins it with a cache's: LINEAR with
                                    NORMALISER_SUM (0, denominator, numerator), AAREN (exact to
                                    rounding: it comes outside of the order of segments); then
                                    out.data may be NULL. One state, not drafts */
} lattn_state_call;

/* Bytes of scratch for calls of up to n_tokens rows on states of this config, with exactly that
   number of threads. Without scratch everything works, on <= 24 KiB of stack and the caller's
   thread, for 300 features or more, by method (beyond: LATTN_E_SCRATCH), with the same bits; a
   memory of two layers while 5 * dim + 3 * hidden_dim <= 3650 (of 192 and 768, say), AAREN while
   key_dim + 3 * value_dim <= 3150. Long prompts are faster with it. 0: impossible. */
LATTN_API size_t lattn_state_scratch(const lattn_state_config *config, int64_t n_tokens,
                                     int32_t n_threads);

/* Folds n tokens into the state, and reads it for each: q [n][n_query_heads][key_dim], k
   [n][n_key_heads][key_dim], v [n][n_value_heads][value_dim], out [n][n_heads][value_dim]. out.data
   NULL: the tokens are absorbed, nothing is read, q is not looked at (FLOW needs it all the same).
   AAREN: its queries are in the config, q is not looked at. out overlaps no input. With progress,
   the call goes in ranges of tokens; when cancelled, the state has *tokens_done more tokens.
   Errors: NULL, SIZE, FIELD, SHAPE, TYPE, STRIDE, OVERFLOW, ALIAS, SCRATCH, CONFIG (a tensor that
   the method lacks or does not take), STATE (drafts are pending). Notes: CANCELLED, OVERFLOWED. */
LATTN_API lattn_status lattn_state_advance(lattn_state *state, const lattn_state_call *call,
                                           lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                           lattn_tensor out, const lattn_exec *exec);

/* Reads the state for each row of q and changes nothing: bidirectional linear attention is all
   tokens absorbed, then all queries read. Errors: as lattn_state_advance; CONFIG for FLOW (see
   lattn_flow_attention). */
LATTN_API lattn_status lattn_state_read(const lattn_state *state, const lattn_state_call *call,
                                        lattn_tensor q, lattn_tensor out, const lattn_exec *exec);

/* Draft tokens (speculative decoding): out is what lattn_state_advance would give, but the tokens
   stay pending, behind those of earlier drafts, until lattn_state_commit. At most max_drafts in
   all, else LATTN_E_SHAPE. No copy of a linear state is made: its drafts are kept as updates to
   come. (Those of TITANS run on a copy, for which a state with max_drafts has room.) Errors: as
   lattn_state_advance, but STATE. exec: progress is not used. */
LATTN_API lattn_status lattn_state_draft(lattn_state *state, const lattn_state_call *call,
                                         lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                         lattn_tensor out, const lattn_exec *exec);

/* The first n drafts become tokens, the others are dropped: n = 0 drops all. The state then has the
   bits of one that never saw the dropped ones. Errors: NULL, SHAPE. */
LATTN_API lattn_status lattn_state_commit(lattn_state *state, int32_t n);

/* One state of a batched call. Frozen: this struct never changes. */
typedef struct lattn_state_sequence {
  lattn_state *state;
  int64_t n_tokens; /* rows of q, k, v and out that are its: the next ones of the arrays */
} lattn_state_sequence;

/* lattn_state_advance of n different states of one config (else LATTN_E_CONFIG; a state that comes
   twice: LATTN_E_ALIAS) in one call: batched decode. Per-token tensors hold the rows of all, one
   after another. The bits of single calls. */
LATTN_API lattn_status lattn_batch_advance(int64_t n, const lattn_state_sequence *sequences,
                                           const lattn_state_call *call, lattn_tensor q,
                                           lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                           const lattn_exec *exec);

/* Makes `to` what `from` is, drafts too. Both were made from the same config. Errors: NULL,
   CONFIG. */
LATTN_API lattn_status lattn_state_copy(lattn_state *to, const lattn_state *from);

/* Appends the tokens of `later`, which began empty, to those of `state`: prompts cut into segments
   that several threads or machines have absorbed. Exact to rounding. AAREN: to the bit
   below 2^31 tokens, if `state` ends at a multiple of 2048 p tokens, p the largest power of two
   within the number of whole segments, of 2048 tokens, of `later` (1 if it has none). Errors: NULL,
   CONFIG (another config; DELTA, FLOW and TITANS cannot), STATE, OVERFLOW. */
LATTN_API lattn_status lattn_state_merge(lattn_state *state, const lattn_state *later);

/* Saves and loads: little-endian, checksummed, the same bytes for the same tokens on every machine.
   As lattn_cache_save and _load: *bytes (NULL = not wanted) gets the size; write NULL: only that. A
   load needs a state of the same config (max_drafts may differ) without tokens, and clears it if it
   fails. Errors: NULL, IO, FORMAT, CONFIG, STATE (drafts are pending; load: it has tokens). */
LATTN_API lattn_status lattn_state_save(const lattn_state *state, lattn_write_function write,
                                        void *user, uint64_t *bytes);
LATTN_API lattn_status lattn_state_load(lattn_state *state, lattn_read_function read, void *user);

enum lattn_matrix {
  LATTN_MATRIX_STATE = 0,    /* LINEAR, FLOW: S [features][value_dim]; TITANS, linear: the memory;
                                two layers: the first, [key_dim][hidden_dim] */
  LATTN_MATRIX_MOMENTUM = 1, /* TITANS: its momentum, likewise */
  LATTN_MATRIX_SECOND = 2,   /* TITANS: the second layer, [hidden_dim][value_dim] */
  LATTN_MATRIX_SECOND_MOMENTUM = 3,
  LATTN_MATRIX_GAIN = 4,     /* TITANS, residual: [1][value_dim] */
  LATTN_MATRIX_GAIN_MOMENTUM = 5,
  LATTN_MATRIX_NORMALISER = 6 /* normalised LINEAR: z, [1][features] */
};

/* Reads, or sets, a matrix of all states: m is [rows][states][columns] in the words of a tensor
   (rows as tokens, states as heads), of any element type, or with rows and columns exchanged
   (transposed 1: ggml's and RWKV's layout). What is read has all tokens in it. Setting is for empty
   states and for those taken over from other programs: it replaces the matrix and leaves the count
   of tokens (TITANS within a chunk: the weights at its beginning too). Errors: NULL, FIELD,
   SHAPE, TYPE, STRIDE, OVERFLOW, CONFIG (the state has no such matrix), STATE (drafts are
   pending). Note: OVERFLOWED. */
LATTN_API lattn_status lattn_state_get(const lattn_state *state, int32_t matrix, int32_t transposed,
                                       lattn_tensor m);
LATTN_API lattn_status lattn_state_set(lattn_state *state, int32_t matrix, int32_t transposed,
                                       lattn_tensor m);

typedef struct lattn_state_stats {
  uint32_t size;         /* sizeof(lattn_state_stats), set by the caller */
  int32_t n_states;
  int64_t n_tokens;
  int64_t n_drafts;
  int64_t bytes;         /* of the whole */
  int64_t matrix_bytes;  /* of those, the matrices that are read and written for a token */
} lattn_state_stats;

/* Errors: NULL, SIZE. */
LATTN_API lattn_status lattn_state_stats_get(const lattn_state *state, lattn_state_stats *stats);

typedef struct lattn_flow {
  uint32_t size;               /* sizeof(lattn_flow) */
  int32_t feature;             /* 0 = LATTN_FEATURE_SIGMOID, or LATTN_FEATURE_RELU (+ 1e-6) */
  float clamp_low, clamp_high; /* as in lattn_state_config */
  float epsilon;               /* 0 = 1e-6 */
  int32_t flags;               /* LATTN_STATE_COMPENSATED */
} lattn_flow;

/* Bidirectional Flow-Attention (Wu et al., Flowformer, 2022), n_queries sinks and n_keys sources:
   q [n_queries][H][dk], k [n_keys][G][dk], v [n_keys][G][dv], out [n_queries][H][dv], H a multiple
   of G: every query head is an operator of its own, with the k and v that its group shares. Linear
   time; memory for one dk x dv matrix a thread. n_keys = 0: out is 0. options NULL = all defaults.
   Padded tokens: leave them out. Nothing overflows without a clamp either. out overlaps no input;
   exec.progress is not used; threads share heads, and tiles of columns. Errors: NULL, SIZE, FIELD,
   SHAPE, TYPE, STRIDE, OVERFLOW, VALUE, ALIAS, SCRATCH. Note: OVERFLOWED. Scratch is required:
   lattn_flow_scratch. */
LATTN_API lattn_status lattn_flow_attention(const lattn_flow *options, lattn_tensor q,
                                            lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                            const lattn_exec *exec);
LATTN_API size_t lattn_flow_scratch(int64_t key_dim, int64_t value_dim, int32_t flags,
                                    int32_t n_threads);

/* ---- profile: which head is which (design: heads.md 2-6) ---- */

enum lattn_profile_scores {
  LATTN_PROFILE_RETRIEVAL = 1, /* does a head look at the token that is being copied? (Wu et al.,
                                  Retrieval Head, 2024) */
  LATTN_PROFILE_ECHO = 2,      /* echo and induction scores (Tang et al., RazorAttention, 2024) */
  LATTN_PROFILE_SINKS = 4,     /* how much of all attention a column gets (Gu et al., When Attention
                                  Sink Emerges, 2024) */
  LATTN_PROFILE_GATES = 8,     /* what the output would lose (objective of Xiao et al.,
                                  DuoAttention, 2024, layer by layer) */
  LATTN_PROFILE_LOST = 16      /* the share of attention that a streaming head would not see */
};

/* Watches the heads of a model while it runs, and scores them: give it what each layer's attention
   was called with. Observing changes nothing of the run. What is observed belongs to the open
   sample; lattn_profile_sample ends it. Holds no pointer: it may be moved to another place of the
   same alignment modulo 64. One call at a time. The tables are the same to the bit for any number
   of threads, and any way of cutting tokens into calls. */
typedef struct lattn_profile lattn_profile;

typedef struct lattn_profile_config {
  uint32_t size;        /* sizeof(lattn_profile_config) */
  int32_t scores;       /* enum lattn_profile_scores, added up */
  int32_t n_layers;     /* >= 1 */
  int32_t n_heads;      /* query heads, a multiple of n_kv_heads */
  int32_t n_kv_heads;   /* 0 = n_heads */
  int32_t value_dim;    /* GATES, LOST: that of the calls */
  int32_t model_dim;    /* GATES: 0 = heads weigh by what themselves lose; else rows of the output
                           projection, which each observation then gives */
  int32_t top_k;        /* RETRIEVAL: keys of a row that may be the copied token; 0 = 1; <= 64 */
  int32_t max_needle;   /* RETRIEVAL: most tokens of a needle; 0 = 256 */
  float sink_threshold; /* SINKS: a column above it is a sink; 0 = 0.3 */
  int64_t columns;      /* SINKS: positions 0 ... columns - 1 are columns; 0 = 64. Memory: 24 bytes
                           for each, a query head and layer; time, that of the scores */
  int64_t sinks;        /* GATES, LOST: the streaming head to compare with sees j < sinks ... */
  int64_t window;       /* ... or i - j < window, own key included; 0: sinks 64, window 257, as
                           DuoAttention is deployed */
  int64_t row_step;     /* GATES, LOST: rows whose position plus 1 is a multiple of it; 0 = 16 */
  lattn_fault *fault;   /* NULL, or gets the field that an error is about; not kept */
} lattn_profile_config;

/* What an observation is of: the layer, and what the tokens are. */
typedef struct lattn_observed {
  uint32_t size;           /* sizeof(lattn_observed) */
  int32_t layer;           /* 0 ... n_layers - 1 */
  int32_t scores;          /* only these; 0 = all of the config */
  int32_t zero;            /* must be 0 */
  const float *lse;        /* [n_queries][H], as lattn_attention wrote it (RETRIEVAL, GATES and LOST
                              do not need it) */
  const float *lse_low;    /* NULL, or its second float */
  /* RETRIEVAL. The row at position p >= first_answer emits tokens[p + 1]; a token that is not there
     yet is given to lattn_profile_emit. Earlier rows are the prompt's. */
  const int32_t *tokens;   /* [n_tokens]: those at positions 0, 1, ... of all that was given and
                              emitted, at least as many as there are keys */
  int64_t n_tokens;
  int64_t first_answer;
  int64_t needle_from, needle_to; /* the needle's positions; to = from: nothing is observed */
  /* ECHO, on random tokens that repeat with a period; without, nothing is observed. */
  int64_t period;          /* 2 ...; 0 = they do not repeat */
  int64_t first;           /* tokens before the repeated ones (the first token of a text) */
  /* GATES, LOST. */
  int64_t n_rows;          /* 0 = rows by row_step, or these: */
  const int64_t *rows;     /* [n_rows]: rows of q, rising */
  const float *projection; /* model_dim > 0: [model_dim][H * value_dim], float32 */
  const lattn_tensor *residual; /* NULL, or what came into the layer, [n_queries][1][any dim]: its
                              mean square is what a layer's losses with a projection are divided
                              by, else that of attention's outputs */
} lattn_observed;

/* Bytes of memory for a profile. 0: impossible config (lattn_profile_init says why). */
LATTN_API size_t lattn_profile_bytes(const lattn_profile_config *config);

/* Makes a profile without observations in memory (any alignment; it starts at the first multiple of
   64). Errors: NULL, SIZE, FIELD, SHAPE, OVERFLOW, VALUE, MEMORY. */
LATTN_API lattn_status lattn_profile_init(lattn_profile **profile, void *memory, size_t bytes,
                                          const lattn_profile_config *config);

/* Forgets everything. Errors: NULL. */
LATTN_API lattn_status lattn_profile_clear(lattn_profile *profile);

/* Observes one call of lattn_attention: options, q, k and v as it got them (the output gate,
   partial, lse_low, inexact and top_values are not used), with its lse. v is looked at for
   GATES and LOST only, which are always observed together; they want as many value heads as key
   heads. Cost, beside that of the attention: SINKS the scores of `columns` keys a row; GATES and
   LOST attention of the chosen rows; ECHO a few keys a row; RETRIEVAL the scores of the answer's
   rows. Scratch: lattn_attention_scratch; threads share KV heads. A NaN in a row stays in the sums.
   Errors: as lattn_attention_weights; SHAPE also for heads or dims other than the config's, a
   layer, row, needle or token that is not there; FIELD for scores that the config lacks; CONFIG for
   GATES and LOST of LATTN_SIGMOID; VALUE (period); STATE: the sample has another needle. On an
   error nothing was observed. exec: progress is not used. */
LATTN_API lattn_status lattn_profile_observe(lattn_profile *profile, const lattn_observed *observed,
                                             const lattn_attn *options, lattn_tensor q,
                                             lattn_tensor k, lattn_tensor v,
                                             const lattn_exec *exec);

/* The token that the newest row emitted, once it is known: all layers of a step are observed, then
   this. Does nothing if no row waits for it. Errors: NULL. */
LATTN_API lattn_status lattn_profile_emit(lattn_profile *profile, int32_t token);

/* Ends the sample: keep 1 adds it to the others (means over samples count it as one), keep 0 drops
   all that was observed since the last (a wrong answer). Reports count an open sample as kept.
   Errors: NULL, FIELD. */
LATTN_API lattn_status lattn_profile_sample(lattn_profile *profile, int32_t keep);

/* Tables of doubles, [layers][heads] if nothing else is said; 0 where nothing was observed. */
enum lattn_profile_table {
  LATTN_TABLE_RETRIEVAL = 0,     /* the count: each row whose strongest key is a needle token that
                                    is then emitted adds 1 / needle length (may exceed 1); mean over
                                    samples. Retrieval heads have >= 0.1, strong ones > 0.5 */
  LATTN_TABLE_RETRIEVAL_SET = 1, /* the share of the needle's distinct tokens that were copied so */
  LATTN_TABLE_ECHO = 2,          /* weight of earlier occurrences of the own token; mean over rows
                                    from the second period on */
  LATTN_TABLE_INDUCTION = 3,     /* of the tokens right after them */
  LATTN_TABLE_SINK = 4,          /* mean weight of token 0, of the rows that see it */
  LATTN_TABLE_COLUMNS = 5,       /* [layers][heads][columns]: the same of every column */
  LATTN_TABLE_SINK_SHARES = 6,   /* [columns]: the share of layers and heads in which it is above
                                    sink_threshold, mean over samples */
  LATTN_TABLE_LOST = 7,          /* the weight of the keys that streaming would not see; mean over
                                    rows */
  LATTN_TABLE_LOST_MOST = 8,     /* the largest */
  LATTN_TABLE_GATE_LOSS = 9,     /* [layers][kv heads]: mean square of what streaming takes from the
                                    head's output, over that of the layer's outputs */
  LATTN_TABLE_GATES = 10         /* [layers][kv heads][kv heads]: Q for lattn_gates_solve; with
                                    model_dim 0 diagonal, GATE_LOSS */
};

/* Writes a table of n doubles. Errors: NULL, FIELD, SHAPE (n is not its size), CONFIG (the config
   lacks that score). */
LATTN_API lattn_status lattn_profile_report(const lattn_profile *profile, int32_t table, int64_t n,
                                            double *values);

/* Where the sinks of a head are: the n columns with the largest mean weights, falling, the lower of
   equals first; positions [n], -1 where there are no more, means [n] or NULL. Errors: NULL, SHAPE,
   CONFIG. */
LATTN_API lattn_status lattn_profile_strongest(const lattn_profile *profile, int32_t layer,
                                               int32_t head, int64_t n, int64_t *positions,
                                               double *means);

typedef struct lattn_profile_stats {
  uint32_t size;      /* sizeof(lattn_profile_stats), set by the caller */
  int32_t zero;
  int64_t n_samples;  /* kept */
  int64_t n_needles;  /* of those, with a needle */
  int64_t bytes;      /* of the profile */
} lattn_profile_stats;

/* Errors: NULL, SIZE. */
LATTN_API lattn_status lattn_profile_stats_get(const lattn_profile *profile,
                                               lattn_profile_stats *stats);

enum lattn_gates_method {
  LATTN_GATES_PENALTY = 0, /* minimises b' Q b - lambda / (L G) sum b in each layer, 0 <= b <= 1,
                              where b = 1 - gate, by coordinate descent */
  LATTN_GATES_BUDGET = 1,  /* the same with the penalty, found by bisection, at which the sum of all
                              b is the budget (the most below it) */
  LATTN_GATES_GREEDY = 2   /* b is 0 or 1: budget times, the head whose b costs least beside those
                              that are 1; the lower index of equals */
};

typedef struct lattn_gates {
  uint32_t size;      /* sizeof(lattn_gates) */
  int32_t method;     /* enum lattn_gates_method */
  double lambda;      /* PENALTY: >= 0; DuoAttention's is 0.05 */
  double budget;      /* BUDGET, GREEDY: 0 ... L G; GREEDY: rounded to a whole number */
  double tolerance;   /* of the projected gradient, relative to max(penalty, largest Q_hh); 0 =
                         1e-12 */
  int32_t max_sweeps; /* of one layer; 0 = 100000 */
  int32_t zero;       /* must be 0 */
  double *residual;   /* NULL, or gets the largest left over: above tolerance if sweeps ran out */
  double *penalty;    /* NULL, or gets lambda / (L G) */
} lattn_gates;

/* Gates [L][G] of KV heads (1: full attention; 0: streaming) from Q [L][G][G], symmetric, positive
   semidefinite: lattn_profile_report's. In double, the same bits everywhere. A head with Q_hh = 0
   loses nothing: its gate is 0. gates overlap nothing else. Errors: NULL, SIZE, FIELD, SHAPE, VALUE
   (not finite, negative Q_hh). */
LATTN_API lattn_status lattn_gates_solve(const lattn_gates *options, int32_t n_layers,
                                         int32_t n_kv_heads, const double *q, double *gates);

enum lattn_heads_rule {
  LATTN_HEADS_SPARSITY = 0,  /* the round(sparsity * L * G) lowest stream (ties: the later layer,
                                then the later head, streams first): DuoAttention's deployment
                                without its noise */
  LATTN_HEADS_THRESHOLD = 1, /* score >= threshold is full. (Published gates of GQA models are
                                nearly all above 0.5: use SPARSITY) */
  LATTN_HEADS_RAZOR = 2      /* full are the round(induction_share * L * G) largest of scores
                                (induction), and the round(echo_share * L * G) largest of echo */
};

typedef struct lattn_heads {
  uint32_t size;           /* sizeof(lattn_heads) */
  int32_t rule;            /* enum lattn_heads_rule */
  double sparsity;         /* <= 0: all full; >= 1: none */
  double threshold;
  double induction_share;  /* both 0: 0.14 and 0.01, the paper's */
  double echo_share;
  const double *echo;      /* RAZOR: [L][G] */
} lattn_heads;

/* Which KV heads keep everything: full [L][G] gets 1, or 0 = streaming (or compressed). Errors:
   NULL, SIZE, FIELD, SHAPE, VALUE (a NaN). */
LATTN_API lattn_status lattn_heads_choose(const lattn_heads *options, int32_t n_layers,
                                          int32_t n_kv_heads, const double *scores, int32_t *full);

enum lattn_heads_group { LATTN_GROUP_MAX = 0, LATTN_GROUP_MEAN = 1 };

/* Scores of query heads [L][H] to those of KV heads [L][G]. Errors: NULL, FIELD, SHAPE. */
LATTN_API lattn_status lattn_heads_group(int32_t n_layers, int32_t n_heads, int32_t n_kv_heads,
                                         int32_t group, const double *scores, double *kv_scores);

enum lattn_alibi_form {
  LATTN_ALIBI_EACH = 0, /* no key at that distance or beyond weighs more than epsilon */
  LATTN_ALIBI_TOTAL = 1 /* all of them together */
};

/* The effective length of a head with ALiBi (RazorAttention): *length tokens, the row's own
   included, are enough. bound >= |scale q.k| of all queries and keys (scale * max |q| * max |k|).
   Errors: NULL, FIELD, VALUE (slope or epsilon not above 0, bound below 0, not finite). Note: none;
   beyond 2^62 it is INT64_MAX. */
LATTN_API lattn_status lattn_alibi_length(int64_t *length, double slope, double bound,
                                          double epsilon, int32_t form);

enum lattn_calibration_keep {
  LATTN_KEEP_FIRST_TOKEN = 0, /* token 0 is never calibrated (the paper) */
  LATTN_KEEP_FIRST_FOUND = 1  /* the first column that is found is spared (the released code) */
};

/* Calibrated attention (Yu et al., ACT, 2024). Column j of a head is a sink if its mean weight over
   the rows that see it is above threshold. Their weights are multiplied by beta; the other keys of
   the row get the freed mass in proportion, so rows still sum to 1. A row with all but 2^-20 of its
   mass in sinks, one that sees none, and heads with beta 1 stay as they are, to the bit. */
typedef struct lattn_calibration {
  uint32_t size;       /* sizeof(lattn_calibration) */
  int32_t keep;        /* enum lattn_calibration_keep */
  float threshold;     /* 0 = 0.1 (released code; the paper: 5 / n) */
  float beta;          /* 0 ... 1; the paper's 0.4 is not a default: 0 takes all of their mass */
  const float *betas;  /* NULL, or [H], in place of beta: 1 = the head is left alone */
  int64_t least_rows;  /* a column that fewer rows see is no sink; 0 = 1 */
  int32_t given;       /* 1: sinks are as `marks` says (those found in the prompt, for the rows of
                          decode: columns that came later are 0) */
  int32_t zero;        /* must be 0 */
  int64_t stride;      /* of marks and means, from head to head; 0 = n_keys */
  uint8_t *marks;      /* [H][stride]: gets 1 for the sinks that are calibrated, else 0 */
  double *means;       /* [H][stride]: gets the mean weights; given: not used, may be NULL */
} lattn_calibration;

/* lattn_attention with that. lse is required, and gets that of plain attention. out must not be q's
   array. Cost: attention, its scores once more (not if given), and attention again for the heads
   that have sinks; no n x n. Scratch: lattn_calibrated_scratch. Errors: as lattn_attention; SHAPE
   (stride); VALUE (threshold, beta); CONFIG for n_sequences > 1, partial, LATTN_SIGMOID, learned
   sinks and an extra key. lse_low, inexact, top_values, dropped and exec.progress are not used. */
LATTN_API lattn_status lattn_attention_calibrated(const lattn_calibration *calibration,
                                                  const lattn_attn *options, lattn_tensor q,
                                                  lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                                  float *lse, const lattn_exec *exec);
LATTN_API size_t lattn_calibrated_scratch(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                          lattn_tensor v, int32_t n_threads);

#ifdef __cplusplus
}
#endif

#endif /* LONGATTN_H_INCLUDED */

#ifdef LONGATTN_IMPLEMENTATION
#ifndef LONGATTN_IMPLEMENTED_
#define LONGATTN_IMPLEMENTED_

/* ==== §2 platform ================================================================================
   The only place that asks what the compiler and the machine are. Below, only our own names. */

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "longattn.h: compile the file that defines LONGATTN_IMPLEMENTATION without -ffast-math, \
-Ofast and -ffinite-math-only: they break NaN, infinities and the one-answer contract"
#endif
#if defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ != 0 && __FLT_EVAL_METHOD__ != 16
#error \
    "longattn.h: float arithmetic is not rounded to float; on 32-bit x86: -msse2 -mfpmath=sse; \
on s390x: -std=gnu11 or -fexcess-precision=fast"
#endif

#if defined(__BYTE_ORDER__) && defined(__ORDER_BIG_ENDIAN__) && \
    __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LATTN_BIG_ENDIAN_ 1
#else
#define LATTN_BIG_ENDIAN_ 0
#endif

#define LONGATTN_SIMD_SCALAR 1
#define LONGATTN_SIMD_NEON 2
#define LONGATTN_SIMD_AVX2 3
#define LONGATTN_SIMD_AVX512 4

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define LATTN_BEST_SIMD_ LONGATTN_SIMD_AVX512
#elif defined(__AVX2__) && ((defined(__FMA__) && defined(__F16C__)) || defined(_MSC_VER))
#define LATTN_BEST_SIMD_ LONGATTN_SIMD_AVX2
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define LATTN_BEST_SIMD_ LONGATTN_SIMD_NEON
#else
#define LATTN_BEST_SIMD_ LONGATTN_SIMD_SCALAR
#endif

#ifndef LONGATTN_SIMD
#define LONGATTN_SIMD LATTN_BEST_SIMD_
#endif
#if (LONGATTN_SIMD == LONGATTN_SIMD_AVX512 && LATTN_BEST_SIMD_ != LONGATTN_SIMD_AVX512) || \
    (LONGATTN_SIMD == LONGATTN_SIMD_AVX2 && LATTN_BEST_SIMD_ < LONGATTN_SIMD_AVX2) ||      \
    (LONGATTN_SIMD == LONGATTN_SIMD_NEON && LATTN_BEST_SIMD_ != LONGATTN_SIMD_NEON) ||     \
    LONGATTN_SIMD < LONGATTN_SIMD_SCALAR || LONGATTN_SIMD > LONGATTN_SIMD_AVX512
#error "longattn.h: LONGATTN_SIMD asks for a level that the compiler's target does not have"
#endif

#ifndef LONGATTN_STRICT
#define LONGATTN_STRICT 0
#endif
#ifndef LONGATTN_OPENMP
#define LONGATTN_OPENMP 0
#endif

#if LONGATTN_SIMD != LONGATTN_SIMD_SCALAR || defined(__FMA__) || defined(__aarch64__) || \
    defined(__ARM_FEATURE_FMA) || defined(__FP_FAST_FMAF) || defined(FP_FAST_FMAF)
#define LATTN_HAS_FMA_ 1
#else
#define LATTN_HAS_FMA_ 0
#endif

/* Of doubles too: an FPU may have only floats. */
#if LATTN_HAS_FMA_ && (!defined(__arm__) || (defined(__ARM_FP) && (__ARM_FP & 8)))
#define LATTN_HAS_FMA64_ 1
#else
#define LATTN_HAS_FMA64_ 0
#endif

#if defined(__clang__)
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-function"
#elif defined(__GNUC__) /* g++ 12 says it of its own AVX-512 intrinsics */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#if defined(__SSE__) || defined(_M_X64) || LONGATTN_SIMD >= LONGATTN_SIMD_AVX2
#define LATTN_HAS_MXCSR_ 1
#include <immintrin.h>
#else
#define LATTN_HAS_MXCSR_ 0
#endif
#if LONGATTN_SIMD == LONGATTN_SIMD_NEON
#include <arm_neon.h>
#endif

#if defined(__GNUC__)
#define LATTN_FN_ static __attribute__((unused))
#define LATTN_NOINLINE_ static __attribute__((unused, noinline))
#define LATTN_INLINE_ static inline __attribute__((unused, always_inline))
#define LATTN_MEMCPY_ __builtin_memcpy
#define LATTN_MEMSET_ __builtin_memset
/* Into L1: hints into L2 wait in a queue so short that most of a burst is dropped. */
#define LATTN_PREFETCH_(p) __builtin_prefetch((p), 0, 3)
#if defined(__clang__) /* constant counts everywhere; else accumulators stay in memory */
#define LATTN_UNROLL_ _Pragma("clang loop unroll(full)")
#elif __GNUC__ >= 8
#define LATTN_UNROLL_ _Pragma("GCC unroll 16")
#else
#define LATTN_UNROLL_
#endif
#else
#include <string.h>
#define LATTN_FN_ static
#define LATTN_NOINLINE_ static
#define LATTN_INLINE_ static inline
#define LATTN_MEMCPY_ memcpy
#define LATTN_MEMSET_ memset
#define LATTN_PREFETCH_(p) ((void)(p))
#define LATTN_UNROLL_
#endif


/* Work counters shared by threads. Where the target has no lock-free int, tasks take every n-th
   unit. */
#if defined(__GCC_ATOMIC_INT_LOCK_FREE) && __GCC_ATOMIC_INT_LOCK_FREE == 2
#define LATTN_HAS_ATOMIC_ 1
LATTN_FN_ int32_t lattn_take_(int32_t *counter) {
#if defined(__aarch64__) /* compilers would call a helper that needs a C library */
  int32_t taken, next, failed;
  __asm__ volatile("1: ldxr %w0, [%3]\n\tadd %w1, %w0, #1\n\tstxr %w2, %w1, [%3]\n\tcbnz %w2, 1b"
                   : "=&r"(taken), "=&r"(next), "=&r"(failed)
                   : "r"(counter)
                   : "memory");
  return taken;
#else
  return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
#endif
}
LATTN_FN_ void lattn_raise_(int32_t *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELAXED); }
#else
#define LATTN_HAS_ATOMIC_ 0
LATTN_FN_ int32_t lattn_take_(int32_t *counter) { return (*counter)++; }
LATTN_FN_ void lattn_raise_(int32_t *flag) { *flag = 1; }
#endif

/* The floating-point control word. Work runs round-to-nearest, no flush to zero, exceptions
   masked; the caller's word comes back with its sticky flags. The work itself is in a callee
   that is not inlined, so no operation can move across the write. On targets without one known
   here, nothing is done. */
typedef struct lattn_fpenv_ {
  uint64_t control, status;
} lattn_fpenv_;

LATTN_FN_ void lattn_fpenv_enter_(lattn_fpenv_ *saved) {
  saved->control = saved->status = 0;
#if LATTN_HAS_MXCSR_
  saved->control = _mm_getcsr();
  _mm_setcsr(0x1f80u);
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("mrs %0, fpcr" : "=r"(saved->control));
  __asm__ volatile("mrs %0, fpsr" : "=r"(saved->status));
  __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0) : "memory");
#endif
}

LATTN_FN_ void lattn_fpenv_leave_(const lattn_fpenv_ *saved) {
#if LATTN_HAS_MXCSR_
  _mm_setcsr((unsigned)saved->control);
#elif defined(__aarch64__) && defined(__GNUC__)
  __asm__ volatile("msr fpcr, %0" : : "r"(saved->control) : "memory");
  __asm__ volatile("msr fpsr, %0" : : "r"(saved->status) : "memory");
#else
  (void)saved;
#endif
}

/* ---- bits, 16-bit floats, scalar fused multiply-add: what the vector layer needs ---- */

LATTN_INLINE_ uint32_t lattn_bits_(float x) {
  uint32_t u;
  LATTN_MEMCPY_(&u, &x, sizeof u);
  return u;
}

LATTN_INLINE_ float lattn_float_(uint32_t u) {
  float x;
  LATTN_MEMCPY_(&x, &u, sizeof x);
  return x;
}

#define LATTN_INFINITY_ lattn_float_(0x7f800000u)
#define LATTN_NAN_ lattn_float_(0x7fc00000u)

LATTN_INLINE_ int lattn_is_nan_(float x) { return (lattn_bits_(x) & 0x7fffffffu) > 0x7f800000u; }
LATTN_INLINE_ int lattn_is_finite_(float x) {
  return (lattn_bits_(x) & 0x7f800000u) != 0x7f800000u;
}
LATTN_INLINE_ int lattn_is_empty_(float maximum) { return lattn_bits_(maximum) == 0xff800000u; }

LATTN_FN_ float lattn_from_f16_(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
  if (exponent == 31) return lattn_float_(sign | 0x7f800000u | fraction << 13);
  if (exponent != 0) return lattn_float_(sign | (exponent + 112u) << 23 | fraction << 13);
  if (fraction == 0) return lattn_float_(sign);
  exponent = 113; /* denormal: shift the leading one into place */
  while (!(fraction & 0x400u)) {
    fraction <<= 1;
    exponent--;
  }
  return lattn_float_(sign | exponent << 23 | (fraction & 0x3ffu) << 13);
}

/* Round to nearest even, on bits. */
LATTN_FN_ uint16_t lattn_to_f16_(float x) {
  uint32_t u = lattn_bits_(x), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); /* 65536 and beyond, infinity */
  if (a >= 0x38800000u) { /* normal f16; a carry may reach infinity, as IEEE says */
    uint32_t r = a - 0x38000000u;
    return (uint16_t)(sign | (r + 0xfffu + ((r >> 13) & 1u)) >> 13);
  }
  if (a < 0x33000000u) return (uint16_t)sign; /* below half of the least denormal */
  uint32_t shift = 126u - (a >> 23), fraction = (a & 0x7fffffu) | 0x800000u;
  uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1u),
           half = 1u << (shift - 1);
  return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1u)))));
}

LATTN_INLINE_ float lattn_from_bf16_(uint16_t h) { return lattn_float_((uint32_t)h << 16); }

LATTN_INLINE_ uint16_t lattn_to_bf16_(float x) {
  uint32_t u = lattn_bits_(x);
  if (lattn_is_nan_(x)) return (uint16_t)(u >> 16 | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/* a * b + c with one rounding. Without the instruction: fast (two roundings) by default; exact
   under LONGATTN_STRICT: the product of two floats is exact in double; the sum is rounded to odd
   (its last bit set if anything was lost), so that the second rounding, to float, is the only
   one that shows. */
#if LONGATTN_STRICT && !LATTN_HAS_FMA_
/* inlined into every unrolled loop, it takes minutes to compile */
LATTN_NOINLINE_ float lattn_fma_(float a, float b, float c) {
  double product = (double)a * (double)b, term = (double)c, sum = product + term;
  double back = sum - product, lost = (product - (sum - back)) + (term - back);
  uint64_t u;
  LATTN_MEMCPY_(&u, &sum, sizeof u);
  if (lost != 0 && (u & 0x7ff0000000000000u) != 0x7ff0000000000000u && !(u & 1u)) {
    u += (lost > 0) == (sum > 0) ? 1u : (uint64_t)0 - 1u;
    LATTN_MEMCPY_(&sum, &u, sizeof u);
  }
  return (float)sum;
}
#else
LATTN_INLINE_ float lattn_fma_(float a, float b, float c) {
#if LATTN_HAS_FMA_ && defined(__GNUC__)
  return __builtin_fmaf(a, b, c);
#elif LATTN_HAS_FMA_ && LATTN_HAS_MXCSR_
  return _mm_cvtss_f32(_mm_fmadd_ss(_mm_set_ss(a), _mm_set_ss(b), _mm_set_ss(c)));
#else
  return a * b + c;
#endif
}
#endif

/* The same in double. */
#if LATTN_HAS_FMA64_ && defined(__GNUC__)
LATTN_INLINE_ double lattn_fma64_(double a, double b, double c) { return __builtin_fma(a, b, c); }
#elif LATTN_HAS_FMA64_
LATTN_INLINE_ double lattn_fma64_(double a, double b, double c) {
  return _mm_cvtsd_f64(_mm_fmadd_sd(_mm_set_sd(a), _mm_set_sd(b), _mm_set_sd(c)));
}
#elif LONGATTN_STRICT || LATTN_HAS_FMA_
/* *low gets what a + b lost. */
LATTN_FN_ double lattn_sum64_(double a, double b, double *low) {
  double sum = a + b, back = sum - a;
  *low = (a - (sum - back)) + (b - back);
  return sum;
}
/* By exact products of halves and a sum rounded to odd (Boldo and Melquiond 2008). */
LATTN_NOINLINE_ double lattn_fma64_(double a, double b, double c) {
  const double split = 134217729.0; /* 2^27 + 1 */
  double product = a * b, ah, al, bh, bl, low, t, t_low, high, h_low, rest, lost;
  uint64_t u;
  LATTN_MEMCPY_(&u, &product, sizeof u);
  if ((u >> 52 & 0x7ff) == 0x7ff || (u >> 52 & 0x7ff) == 0) return product + c;
  ah = a * split;
  ah = ah - (ah - a);
  al = a - ah;
  bh = b * split;
  bh = bh - (bh - b);
  bl = b - bh;
  low = ((ah * bh - product) + ah * bl + al * bh) + al * bl;
  t = lattn_sum64_(c, low, &t_low);
  high = lattn_sum64_(product, t, &h_low);
  rest = lattn_sum64_(t_low, h_low, &lost);
  LATTN_MEMCPY_(&u, &rest, sizeof u);
  if (lost != 0 && !(u & 1)) {
    u += (lost > 0) == (rest > 0) ? 1u : (uint64_t)0 - 1u;
    LATTN_MEMCPY_(&rest, &u, sizeof rest);
  }
  return high + rest;
}
#else
LATTN_INLINE_ double lattn_fma64_(double a, double b, double c) { return a * b + c; }
#endif

/* ==== §3 vector layer ============================================================================
   One logical vector of 16 floats, the lanes of one panel, on every ISA: the same lanes, the
   same order, the same reductions, so the same bits by construction. What each function must do
   is said at the scalar block; the other blocks follow it line by line. Tile constants (rows and
   panels in registers) are per ISA and change no row's arithmetic. `n` is a count of valid
   lanes, 0 ... 16: nothing past it is read or written, and lanes past it load as +0. `bits`:
   lane t is bit t. */

enum { LATTN_PANEL_ = 16, LATTN_BLOCK_ = 128, LATTN_SEGMENT_ = 2048, LATTN_TILE_ROWS_ = 6 };

#if LONGATTN_SIMD == LONGATTN_SIMD_SCALAR

#define LATTN_SIMD_NAME_ "scalar"
#define LATTN_SWEEP_VECTORS_ 1 /* of a state, in one pass over it */
#define LATTN_SHARED_TOKENS_ 2 /* that share such a pass */
#define LATTN_TILE_PANELS_ 1
#define LATTN_UNROLL_KEYS_ /* the 16 of a panel: not worth the time it compiles */
#define LATTN_EXPS_ 1
#define LATTN_THIN_VECTORS_ 1
#define LATTN_INT_ROWS_ 6

typedef struct lattn_v16_ {
  float r[16];
} lattn_v16_;

#define LATTN_LANES_ for (int t = 0; t < 16; t++)

LATTN_INLINE_ lattn_v16_ lattn_v_set_(float x) {
  lattn_v16_ y;
  LATTN_UNROLL_ LATTN_LANES_ y.r[t] = x;
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_(const float *p) {
  lattn_v16_ y;
  LATTN_MEMCPY_(y.r, p, sizeof y.r);
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_n_(const float *p, int n) {
  lattn_v16_ y = lattn_v_set_(0);
  LATTN_MEMCPY_(y.r, p, (size_t)n * sizeof *p);
  return y;
}
LATTN_INLINE_ void lattn_v_store_(float *p, lattn_v16_ x) { LATTN_MEMCPY_(p, x.r, sizeof x.r); }
LATTN_INLINE_ void lattn_v_store_n_(float *p, lattn_v16_ x, int n) {
  LATTN_MEMCPY_(p, x.r, (size_t)n * sizeof *p);
}
/* 16-bit floats, exact */
LATTN_INLINE_ lattn_v16_ lattn_v_load_f16_(const uint16_t *p) {
  lattn_v16_ y;
  uint16_t h[16];
  LATTN_MEMCPY_(h, p, sizeof h);
  LATTN_LANES_ y.r[t] = lattn_from_f16_(h[t]);
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_bf16_(const uint16_t *p) {
  lattn_v16_ y;
  uint16_t h[16];
  LATTN_MEMCPY_(h, p, sizeof h);
  LATTN_LANES_ y.r[t] = lattn_from_bf16_(h[t]);
  return y;
}
/* round to nearest even */
LATTN_INLINE_ void lattn_v_store_f16_(uint16_t *p, lattn_v16_ x) {
  uint16_t h[16];
  LATTN_LANES_ h[t] = lattn_to_f16_(x.r[t]);
  LATTN_MEMCPY_(p, h, sizeof h);
}
LATTN_INLINE_ lattn_v16_ lattn_v_add_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_UNROLL_ LATTN_LANES_ a.r[t] = a.r[t] + b.r[t];
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_sub_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_UNROLL_ LATTN_LANES_ a.r[t] = a.r[t] - b.r[t];
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_mul_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_UNROLL_ LATTN_LANES_ a.r[t] = a.r[t] * b.r[t];
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_div_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_LANES_ a.r[t] = a.r[t] / b.r[t];
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_fma_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) { /* a * b + c */
  LATTN_UNROLL_ LATTN_LANES_ c.r[t] = lattn_fma_(a.r[t], b.r[t], c.r[t]);
  return c;
}
LATTN_INLINE_ lattn_v16_ lattn_v_max_(lattn_v16_ a, lattn_v16_ b) { /* a > b ? a : b */
  LATTN_UNROLL_ LATTN_LANES_ b.r[t] = a.r[t] > b.r[t] ? a.r[t] : b.r[t];
  return b;
}
/* x < y ? a : b, and x == y ? a : b; false for NaN */
LATTN_INLINE_ lattn_v16_ lattn_v_if_less_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_LANES_ b.r[t] = x.r[t] < y.r[t] ? a.r[t] : b.r[t];
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_equal_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_LANES_ b.r[t] = x.r[t] == y.r[t] ? a.r[t] : b.r[t];
  return b;
}
/* bit t of bits ? a : b */
LATTN_INLINE_ lattn_v16_ lattn_v_if_bits_(uint32_t bits, lattn_v16_ a, lattn_v16_ b) {
  LATTN_LANES_ b.r[t] = (bits >> t & 1u) ? a.r[t] : b.r[t];
  return b;
}
/* |x| */
LATTN_INLINE_ lattn_v16_ lattn_v_abs_(lattn_v16_ x) {
  LATTN_LANES_ x.r[t] = lattn_float_(lattn_bits_(x.r[t]) & 0x7fffffffu);
  return x;
}
/* |x| with the sign of s */
LATTN_INLINE_ lattn_v16_ lattn_v_copysign_(lattn_v16_ x, lattn_v16_ s) {
  LATTN_LANES_ x.r[t] = lattn_float_((lattn_bits_(x.r[t]) & 0x7fffffffu) |
                                     (lattn_bits_(s.r[t]) & 0x80000000u));
  return x;
}
/* 2^k from the float 1.5 * 2^23 + 127 + k, whose low bits are 127 + k: they become the exponent */
LATTN_INLINE_ lattn_v16_ lattn_v_exp2_of_(lattn_v16_ x) {
  LATTN_LANES_ x.r[t] = lattn_float_(lattn_bits_(x.r[t]) << 23);
  return x;
}
/* lanes i and i+8, then i+4, i+2, i+1: the fixed tree */
LATTN_INLINE_ float lattn_v_reduce_max_(lattn_v16_ x) {
  for (int w = 8; w > 0; w /= 2)
    for (int t = 0; t < w; t++) x.r[t] = x.r[t] > x.r[t + w] ? x.r[t] : x.r[t + w];
  return x.r[0];
}
LATTN_INLINE_ float lattn_v_reduce_add_(lattn_v16_ x) {
  for (int w = 8; w > 0; w /= 2)
    for (int t = 0; t < w; t++) x.r[t] = x.r[t] + x.r[t + w];
  return x.r[0];
}
/* bit t: lane t is infinite or NaN */
LATTN_INLINE_ uint32_t lattn_v_nonfinite_(lattn_v16_ x) {
  uint32_t bits = 0;
  LATTN_LANES_ bits |= (uint32_t)!lattn_is_finite_(x.r[t]) << t;
  return bits;
}
/* x[i] lane j <-> x[j] lane i */
LATTN_INLINE_ void lattn_v_transpose_(lattn_v16_ x[16]) {
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < i; j++) {
      float y = x[i].r[j];
      x[i].r[j] = x[j].r[i];
      x[j].r[i] = y;
    }
}
/* lane t of x <-> lane t ^ h of it, for h = 1, 2, 4, 8 */
LATTN_INLINE_ lattn_v16_ lattn_v_exchange_(lattn_v16_ x, int h) {
  lattn_v16_ y;
  LATTN_LANES_ y.r[t] = x.r[t ^ h];
  return y;
}
/* one float16 for all lanes */
LATTN_INLINE_ lattn_v16_ lattn_v_set_f16_(const void *p) {
  uint16_t h;
  LATTN_MEMCPY_(&h, p, sizeof h);
  return lattn_v_set_(lattn_from_f16_(h));
}
/* 16 bytes: signed; or their low or high halves, less 8 */
LATTN_INLINE_ lattn_v16_ lattn_v_load_i8_(const void *p) {
  lattn_v16_ y;
  signed char b[16];
  LATTN_MEMCPY_(b, p, sizeof b);
  LATTN_LANES_ y.r[t] = (float)b[t];
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i4_(const void *p, int high) {
  lattn_v16_ y;
  unsigned char b[16];
  LATTN_MEMCPY_(b, p, sizeof b);
  LATTN_LANES_ y.r[t] = (float)((b[t] >> 4 * high & 15) - 8);
  return y;
}
/* Integer dot products. 64 bytes are 4 of each of 16 lanes; q holds 4 signed bytes. dot: signed
   bytes in [-127, 127], loaded by lattn_b_keys_; the sum comes with LATTN_DOT_BIAS_ times the sum
   of q's bytes too much. dot_small: bytes in [0, 15], no bias. */
#define LATTN_DOT_BIAS_ 0
typedef struct lattn_i16_ {
  int32_t r[16];
} lattn_i16_;
typedef struct lattn_b64_ {
  unsigned char r[64];
} lattn_b64_;
LATTN_INLINE_ lattn_i16_ lattn_i_set_(int32_t x) {
  lattn_i16_ y;
  LATTN_LANES_ y.r[t] = x;
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_load_(const void *p) {
  lattn_b64_ y;
  LATTN_MEMCPY_(y.r, p, sizeof y.r);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_keys_(const void *p) { return lattn_b_load_(p); }
LATTN_INLINE_ lattn_b64_ lattn_b_half_(lattn_b64_ x, int high) {
  for (int i = 0; i < 64; i++) x.r[i] = (unsigned char)(x.r[i] >> 4 * high & 15);
  return x;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  signed char b[4];
  LATTN_MEMCPY_(b, &q, sizeof b);
  LATTN_LANES_ for (int i = 0; i < 4; i++) acc.r[t] += (signed char)k.r[4 * t + i] * b[i];
  return acc;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_small_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  return lattn_i_dot_(acc, k, q);
}
/* 4 bytes w in [0, 127] by signed bytes in [-127, 127] */
LATTN_INLINE_ lattn_i16_ lattn_i_dot_weights_(lattn_i16_ acc, int32_t w, lattn_b64_ v) {
  return lattn_i_dot_(acc, v, w);
}
/* 16 bytes each of four rows: the bytes t of all become lane t */
LATTN_INLINE_ lattn_b64_ lattn_b_quad_(const void *a, const void *b, const void *c, const void *d) {
  lattn_b64_ x, y;
  LATTN_MEMCPY_(x.r, a, 16);
  LATTN_MEMCPY_(x.r + 16, b, 16);
  LATTN_MEMCPY_(x.r + 32, c, 16);
  LATTN_MEMCPY_(x.r + 48, d, 16);
  for (int i = 0; i < 64; i++) y.r[i] = x.r[i % 4 * 16 + i / 4];
  return y;
}
/* 32 bytes of each: of columns 0 ... 15, then 16 ... 31 */
LATTN_INLINE_ void lattn_b_quads_(lattn_b64_ to[2], const char *a, const char *b, const char *c,
                                  const char *d) {
  to[0] = lattn_b_quad_(a, b, c, d);
  to[1] = lattn_b_quad_(a + 16, b + 16, c + 16, d + 16);
}
/* lanes rounded to nearest even: as bytes in [-127, 127]; those in [-16256, 16383] as 128 * high
   + low, low in [0, 127] */
LATTN_INLINE_ void lattn_v_bytes_(lattn_v16_ x, void *to) {
  unsigned char b[16];
  LATTN_LANES_ b[t] = (unsigned char)(lattn_bits_(x.r[t] + 12582912.0f) & 255);
  LATTN_MEMCPY_(to, b, sizeof b);
}
LATTN_INLINE_ void lattn_v_planes_(lattn_v16_ x, unsigned char *high, unsigned char *low) {
  LATTN_LANES_ {
    uint32_t u = lattn_bits_(x.r[t] + 12582912.0f); /* 1.5 * 2^23: ends on integers */
    high[t] = (unsigned char)(u >> 7 & 255);
    low[t] = (unsigned char)(u & 127);
  }
}
/* 128 * high + low, wrapping */
LATTN_INLINE_ lattn_i16_ lattn_i_128_(lattn_i16_ high, lattn_i16_ low) {
  LATTN_LANES_ low.r[t] = (int32_t)(((uint32_t)high.r[t] << 7) + (uint32_t)low.r[t]);
  return low;
}
/* acc - x (wrapping; the difference fits), as floats, rounded to nearest even */
LATTN_INLINE_ lattn_v16_ lattn_v_of_less_(lattn_i16_ acc, int32_t x) {
  lattn_v16_ y;
  LATTN_LANES_ y.r[t] = (float)(int32_t)((uint32_t)acc.r[t] - (uint32_t)x);
  return y;
}
#undef LATTN_LANES_

#elif LONGATTN_SIMD == LONGATTN_SIMD_AVX512

#define LATTN_SIMD_NAME_ "avx512"
#define LATTN_SWEEP_VECTORS_ 2 /* of a state, in one pass over it */
#define LATTN_SHARED_TOKENS_ 4 /* that share such a pass */
#define LATTN_UNROLL_KEYS_ LATTN_UNROLL_
#define LATTN_EXPS_ 8 /* vectors of exp at a time */
#define LATTN_TILE_PANELS_ 4 /* 6 x 4 accumulators, 4 keys, 1 query of 32 registers */
#define LATTN_THIN_VECTORS_ 8 /* value columns of 1 or 2 rows: one pass over 128 of them */
#define LATTN_INT_ROWS_ 6     /* by values of integers: 6 x 2 x 2 accumulators */

typedef struct lattn_v16_ {
  __m512 r;
} lattn_v16_;

LATTN_INLINE_ lattn_v16_ lattn_v_of_(__m512 r) {
  lattn_v16_ y;
  y.r = r;
  return y;
}
LATTN_INLINE_ __mmask16 lattn_v_count_(int n) { return (__mmask16)((1u << n) - 1u); }
LATTN_INLINE_ lattn_v16_ lattn_v_set_(float x) { return lattn_v_of_(_mm512_set1_ps(x)); }
LATTN_INLINE_ lattn_v16_ lattn_v_load_(const float *p) { return lattn_v_of_(_mm512_loadu_ps(p)); }
LATTN_INLINE_ lattn_v16_ lattn_v_load_n_(const float *p, int n) {
  return lattn_v_of_(_mm512_maskz_loadu_ps(lattn_v_count_(n), p));
}
LATTN_INLINE_ void lattn_v_store_(float *p, lattn_v16_ x) { _mm512_storeu_ps(p, x.r); }
LATTN_INLINE_ void lattn_v_store_n_(float *p, lattn_v16_ x, int n) {
  _mm512_mask_storeu_ps(p, lattn_v_count_(n), x.r);
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_f16_(const uint16_t *p) {
  return lattn_v_of_(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_bf16_(const uint16_t *p) {
  __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
  return lattn_v_of_(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)));
}
LATTN_INLINE_ void lattn_v_store_f16_(uint16_t *p, lattn_v16_ x) {
  __m256i h = _mm512_maskz_cvtps_ph((__mmask16)0xffffu, x.r,
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_storeu_si256((__m256i *)(void *)p, h);
}
LATTN_INLINE_ lattn_v16_ lattn_v_add_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_add_ps(a.r, b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_sub_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_sub_ps(a.r, b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_mul_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_mul_ps(a.r, b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_div_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_div_ps(a.r, b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_fma_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  return lattn_v_of_(_mm512_fmadd_ps(a.r, b.r, c.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_max_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_max_ps(a.r, b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_less_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.r, y.r, _CMP_LT_OQ), b.r, a.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_equal_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.r, y.r, _CMP_EQ_OQ), b.r, a.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_bits_(uint32_t bits, lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_(_mm512_mask_blend_ps((__mmask16)bits, b.r, a.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_abs_(lattn_v16_ x) { return lattn_v_of_(_mm512_abs_ps(x.r)); }
LATTN_INLINE_ lattn_v16_ lattn_v_copysign_(lattn_v16_ x, lattn_v16_ s) {
  __m512 sign = _mm512_castsi512_ps(_mm512_set1_epi32((int)0x80000000u));
  return lattn_v_of_(_mm512_or_ps(_mm512_abs_ps(x.r), _mm512_and_ps(s.r, sign)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_exp2_of_(lattn_v16_ x) {
  return lattn_v_of_(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.r), 23)));
}
/* Lane 4 (a % 4) + 2 (a / 4): the lanes of x[a] in one, in the order of the two below. */
#define LATTN_REDUCE_ROWS_ 1
LATTN_INLINE_ lattn_v16_ lattn_v_reduce8_(const lattn_v16_ x[8], int largest) {
  __m512 a[4], b[2], c;
#define LATTN_PAIR_(u, v) (largest ? _mm512_max_ps(u, v) : _mm512_add_ps(u, v))
  LATTN_UNROLL_
  for (int i = 0; i < 4; i++)
    a[i] = LATTN_PAIR_(_mm512_shuffle_f32x4(x[2 * i].r, x[2 * i + 1].r, 0x44),
                       _mm512_shuffle_f32x4(x[2 * i].r, x[2 * i + 1].r, 0xee));
  LATTN_UNROLL_
  for (int i = 0; i < 2; i++)
    b[i] = LATTN_PAIR_(_mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0x88),
                       _mm512_shuffle_f32x4(a[2 * i], a[2 * i + 1], 0xdd));
  c = LATTN_PAIR_(_mm512_shuffle_ps(b[0], b[1], 0x44), _mm512_shuffle_ps(b[0], b[1], 0xee));
  return lattn_v_of_(LATTN_PAIR_(c, _mm512_permute_ps(c, 0xb1)));
#undef LATTN_PAIR_
}
LATTN_INLINE_ float lattn_v_reduce_max_(lattn_v16_ x) {
  __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x.r), _mm512_extractf32x8_ps(x.r, 1));
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
LATTN_INLINE_ float lattn_v_reduce_add_(lattn_v16_ x) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x.r), _mm512_extractf32x8_ps(x.r, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
LATTN_INLINE_ uint32_t lattn_v_nonfinite_(lattn_v16_ x) {
  __m512i e = _mm512_set1_epi32(0x7f800000);
  return _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(x.r), e), e);
}
LATTN_INLINE_ void lattn_v_transpose_(lattn_v16_ x[16]) {
  __m512 a[16], b[16];
  LATTN_UNROLL_
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].r, x[i + 1].r);
    a[i + 1] = _mm512_unpackhi_ps(x[i].r, x[i + 1].r);
  }
  LATTN_UNROLL_
  for (int i = 0; i < 16; i += 4) { /* b[i + c]: column 4 q + c of rows i ... i+3, quarter q */
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  LATTN_UNROLL_
  for (int c = 0; c < 4; c++) {
    __m512 p = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x88),
           q = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xdd);
    __m512 s = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x88);
    __m512 u = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xdd);
    x[c].r = _mm512_shuffle_f32x4(p, s, 0x88);
    x[4 + c].r = _mm512_shuffle_f32x4(q, u, 0x88);
    x[8 + c].r = _mm512_shuffle_f32x4(p, s, 0xdd);
    x[12 + c].r = _mm512_shuffle_f32x4(q, u, 0xdd);
  }
}

LATTN_INLINE_ lattn_v16_ lattn_v_exchange_(lattn_v16_ x, int h) {
  if (h == 1) return lattn_v_of_(_mm512_permute_ps(x.r, 0xb1));
  if (h == 2) return lattn_v_of_(_mm512_permute_ps(x.r, 0x4e));
  if (h == 4) return lattn_v_of_(_mm512_shuffle_f32x4(x.r, x.r, 0xb1));
  return lattn_v_of_(_mm512_shuffle_f32x4(x.r, x.r, 0x4e));
}
LATTN_INLINE_ lattn_v16_ lattn_v_set_f16_(const void *p) {
  short h;
  LATTN_MEMCPY_(&h, p, sizeof h);
  return lattn_v_of_(_mm512_cvtph_ps(_mm256_set1_epi16(h)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i8_(const void *p) {
  __m128i b = _mm_loadu_si128((const __m128i *)p);
  return lattn_v_of_(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i4_(const void *p, int high) {
  __m128i b = _mm_loadu_si128((const __m128i *)p);
  if (high) b = _mm_srli_epi16(b, 4);
  b = _mm_sub_epi8(_mm_and_si128(b, _mm_set1_epi8(15)), _mm_set1_epi8(8));
  return lattn_v_of_(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(b)));
}
#if defined(__GNUC__) /* as __m512i, 8 numbers of 64 bits, gcc 12 copies and spills accumulators */
typedef struct lattn_i16_ {
  __v16si r;
} lattn_i16_;
#define LATTN_I16_(x) ((__v16si)(x))
#define LATTN_M512I_(x) ((__m512i)(x).r)
#else
typedef struct lattn_i16_ {
  __m512i r;
} lattn_i16_;
#define LATTN_I16_(x) (x)
#define LATTN_M512I_(x) ((x).r)
#endif /* __GNUC__ */
typedef struct lattn_b64_ {
  __m512i r;
} lattn_b64_;
LATTN_INLINE_ lattn_i16_ lattn_i_of_(__m512i r) {
  lattn_i16_ y;
  y.r = LATTN_I16_(r);
  return y;
}
LATTN_INLINE_ lattn_i16_ lattn_i_set_(int32_t x) { return lattn_i_of_(_mm512_set1_epi32(x)); }
LATTN_INLINE_ lattn_b64_ lattn_b_load_(const void *p) {
  lattn_b64_ y;
  y.r = _mm512_loadu_si512(p);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_half_(lattn_b64_ x, int high) {
  if (high) x.r = _mm512_srli_epi16(x.r, 4);
  x.r = _mm512_and_si512(x.r, _mm512_set1_epi8(15));
  return x;
}
#if defined(__AVX512VNNI__) /* unsigned by signed: keys + 128, by a flipped sign bit */
#define LATTN_DOT_BIAS_ 128
LATTN_INLINE_ lattn_b64_ lattn_b_keys_(const void *p) {
  lattn_b64_ y = lattn_b_load_(p);
  y.r = _mm512_xor_si512(y.r, _mm512_set1_epi8((char)0x80));
  return y;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  return lattn_i_of_(_mm512_dpbusd_epi32(LATTN_M512I_(acc), k.r, _mm512_set1_epi32(q)));
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_small_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  return lattn_i_dot_(acc, k, q);
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_weights_(lattn_i16_ acc, int32_t w, lattn_b64_ v) {
  return lattn_i_of_(_mm512_dpbusd_epi32(LATTN_M512I_(acc), _mm512_set1_epi32(w), v.r));
}
#else /* even and odd bytes as 16-bit numbers */
#define LATTN_DOT_BIAS_ 0
LATTN_INLINE_ lattn_b64_ lattn_b_keys_(const void *p) { return lattn_b_load_(p); }
LATTN_INLINE_ lattn_i16_ lattn_i_dot_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  __m512i b = _mm512_set1_epi32(q);
  __m512i even = _mm512_madd_epi16(_mm512_srai_epi16(_mm512_slli_epi16(k.r, 8), 8),
                                   _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
  __m512i odd = _mm512_madd_epi16(_mm512_srai_epi16(k.r, 8), _mm512_srai_epi16(b, 8));
  return lattn_i_of_(_mm512_add_epi32(LATTN_M512I_(acc), _mm512_add_epi32(even, odd)));
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_small_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  __m512i pairs = _mm512_maddubs_epi16(k.r, _mm512_set1_epi32(q));
  return lattn_i_of_(
      _mm512_add_epi32(LATTN_M512I_(acc), _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_weights_(lattn_i16_ acc, int32_t w, lattn_b64_ v) {
  __m512i pairs = _mm512_maddubs_epi16(_mm512_set1_epi32(w), v.r);
  return lattn_i_of_(
      _mm512_add_epi32(LATTN_M512I_(acc), _mm512_madd_epi16(pairs, _mm512_set1_epi16(1))));
}
#endif
/* Bytes of a and b in pairs, of c and d in pairs; then both in quads: `index` says where those of
   column 0 are, the others follow, the second 8 columns in the other vector. */
LATTN_INLINE_ __m512i lattn_b_join_(__m512i low, __m512i high, int index) {
  __m512i i = _mm512_setr_epi32(0, 0x10001, 0x20002, 0x30003, 0x40004, 0x50005, 0x60006, 0x70007,
                                0x200020, 0x210021, 0x220022, 0x230023, 0x240024, 0x250025,
                                0x260026, 0x270027);
  return _mm512_permutex2var_epi16(low, _mm512_add_epi16(i, _mm512_set1_epi32(index)), high);
}
LATTN_INLINE_ lattn_b64_ lattn_b_quad_(const void *a, const void *b, const void *c, const void *d) {
  __m256i x = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)a));
  __m256i y = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)b));
  lattn_b64_ to;
  x = _mm256_inserti128_si256(x, _mm_loadu_si128((const __m128i *)c), 1);
  y = _mm256_inserti128_si256(y, _mm_loadu_si128((const __m128i *)d), 1);
  to.r = lattn_b_join_(_mm512_castsi256_si512(_mm256_unpacklo_epi8(x, y)),
                       _mm512_castsi256_si512(_mm256_unpackhi_epi8(x, y)), 0x80000);
  return to;
}
LATTN_INLINE_ void lattn_b_quads_(lattn_b64_ to[2], const char *a, const char *b, const char *c,
                                  const char *d) {
  __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)a));
  __m512i y = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(const void *)b)), low;
  x = _mm512_inserti64x4(x, _mm256_loadu_si256((const __m256i *)(const void *)c), 1);
  y = _mm512_inserti64x4(y, _mm256_loadu_si256((const __m256i *)(const void *)d), 1);
  low = _mm512_unpacklo_epi8(x, y);
  x = _mm512_unpackhi_epi8(x, y);
  to[0].r = lattn_b_join_(low, x, 0x100000);
  to[1].r = lattn_b_join_(low, x, 0x180008);
}
LATTN_INLINE_ void lattn_v_bytes_(lattn_v16_ x, void *to) {
  _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.r)));
}
LATTN_INLINE_ void lattn_v_planes_(lattn_v16_ x, unsigned char *high, unsigned char *low) {
  __m512i u = _mm512_cvtps_epi32(x.r);
  __m128i h = _mm512_cvtepi32_epi8(_mm512_srli_epi32(u, 7));
  __m128i l = _mm512_cvtepi32_epi8(_mm512_and_si512(u, _mm512_set1_epi32(127)));
  _mm_storeu_si128((__m128i *)(void *)high, h);
  _mm_storeu_si128((__m128i *)(void *)low, l);
}
LATTN_INLINE_ lattn_i16_ lattn_i_128_(lattn_i16_ high, lattn_i16_ low) {
  return lattn_i_of_(_mm512_add_epi32(_mm512_slli_epi32(LATTN_M512I_(high), 7), LATTN_M512I_(low)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_of_less_(lattn_i16_ acc, int32_t x) {
  return lattn_v_of_(_mm512_cvtepi32_ps(_mm512_sub_epi32(LATTN_M512I_(acc), _mm512_set1_epi32(x))));
}
#undef LATTN_I16_
#undef LATTN_M512I_
#if defined(__AVX512BF16__) && defined(__GNUC__)
#define LATTN_HAS_PAIRS_ 1
LATTN_INLINE_ lattn_v16_ lattn_v_pair_row_(lattn_v16_ a, lattn_v16_ b) {
  return lattn_v_of_((__m512)_mm512_cvtne2ps_pbh(b.r, a.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_pair_(lattn_v16_ a, lattn_v16_ b) {
  __m512i x = _mm512_castps_si512(lattn_v_pair_row_(a, b).r); /* a[t] is element t, b[t] 16 + t */
  __m512i t = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  t = _mm512_or_si512(t, _mm512_slli_epi32(_mm512_add_epi32(t, _mm512_set1_epi32(16)), 16));
  return lattn_v_of_(_mm512_castsi512_ps(_mm512_permutexvar_epi16(t, x)));
}
LATTN_INLINE_ lattn_v16_ lattn_v_dot_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  return lattn_v_of_(_mm512_dpbf16_ps(c.r, (__m512bh)a.r, (__m512bh)b.r));
}
LATTN_INLINE_ lattn_v16_ lattn_v_half_(lattn_v16_ x, int second) {
  __m512i i = _mm512_castps_si512(x.r);
  i = second ? _mm512_and_si512(i, _mm512_set1_epi32(-65536)) : _mm512_slli_epi32(i, 16);
  return lattn_v_of_(_mm512_castsi512_ps(i));
}
#endif

#elif LONGATTN_SIMD == LONGATTN_SIMD_AVX2

#define LATTN_SIMD_NAME_ "avx2"
#define LATTN_SWEEP_VECTORS_ 1 /* of a state, in one pass over it */
#define LATTN_SHARED_TOKENS_ 2 /* that share such a pass */
#define LATTN_TILE_PANELS_ 1 /* 6 x 2 accumulators, 2 keys, 1 query of 16 registers */
#define LATTN_UNROLL_KEYS_ LATTN_UNROLL_
#define LATTN_EXPS_ 2
#define LATTN_THIN_VECTORS_ 2
#define LATTN_INT_ROWS_ 3

typedef struct lattn_v16_ {
  __m256 r[2];
} lattn_v16_;

#define LATTN_HALVES_ LATTN_UNROLL_ for (int i = 0; i < 2; i++)

LATTN_INLINE_ lattn_v16_ lattn_v_set_(float x) {
  lattn_v16_ y;
  LATTN_HALVES_ y.r[i] = _mm256_set1_ps(x);
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_(const float *p) {
  lattn_v16_ y;
  LATTN_HALVES_ y.r[i] = _mm256_loadu_ps(p + 8 * i);
  return y;
}
/* lanes 8 i ... 8 i + 7 below n, all ones */
LATTN_INLINE_ __m256i lattn_v_count_(int n, int i) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - 8 * i),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_n_(const float *p, int n) {
  lattn_v16_ y;
  LATTN_HALVES_ y.r[i] = _mm256_maskload_ps(p + 8 * i, lattn_v_count_(n, i));
  return y;
}
LATTN_INLINE_ void lattn_v_store_(float *p, lattn_v16_ x) {
  LATTN_HALVES_ _mm256_storeu_ps(p + 8 * i, x.r[i]);
}
LATTN_INLINE_ void lattn_v_store_n_(float *p, lattn_v16_ x, int n) {
  LATTN_HALVES_ _mm256_maskstore_ps(p + 8 * i, lattn_v_count_(n, i), x.r[i]);
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_f16_(const uint16_t *p) {
  lattn_v16_ y;
  LATTN_HALVES_ y.r[i] =
      _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 8 * i)));
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_bf16_(const uint16_t *p) {
  lattn_v16_ y;
  LATTN_HALVES_ {
    __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(p + 8 * i));
    y.r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
  }
  return y;
}
LATTN_INLINE_ void lattn_v_store_f16_(uint16_t *p, lattn_v16_ x) {
  LATTN_HALVES_ _mm_storeu_si128((__m128i *)(void *)(p + 8 * i),
                                 _mm256_cvtps_ph(x.r[i], _MM_FROUND_TO_NEAREST_INT));
}
LATTN_INLINE_ lattn_v16_ lattn_v_add_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ a.r[i] = _mm256_add_ps(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_sub_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ a.r[i] = _mm256_sub_ps(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_mul_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ a.r[i] = _mm256_mul_ps(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_div_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ a.r[i] = _mm256_div_ps(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_fma_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  LATTN_HALVES_ c.r[i] = _mm256_fmadd_ps(a.r[i], b.r[i], c.r[i]);
  return c;
}
LATTN_INLINE_ lattn_v16_ lattn_v_max_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ b.r[i] = _mm256_max_ps(a.r[i], b.r[i]);
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_less_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ b.r[i] =
      _mm256_blendv_ps(b.r[i], a.r[i], _mm256_cmp_ps(x.r[i], y.r[i], _CMP_LT_OQ));
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_equal_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_HALVES_ b.r[i] =
      _mm256_blendv_ps(b.r[i], a.r[i], _mm256_cmp_ps(x.r[i], y.r[i], _CMP_EQ_OQ));
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_bits_(uint32_t bits, lattn_v16_ a, lattn_v16_ b) {
  __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  LATTN_HALVES_ {
    __m256i m = _mm256_and_si256(_mm256_set1_epi32((int)(bits >> (8 * i))), lane);
    b.r[i] = _mm256_blendv_ps(b.r[i], a.r[i], _mm256_castsi256_ps(_mm256_cmpeq_epi32(m, lane)));
  }
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_abs_(lattn_v16_ x) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  LATTN_HALVES_ x.r[i] = _mm256_andnot_ps(sign, x.r[i]);
  return x;
}
LATTN_INLINE_ lattn_v16_ lattn_v_copysign_(lattn_v16_ x, lattn_v16_ s) {
  __m256 sign = _mm256_set1_ps(-0.0f);
  LATTN_HALVES_ x.r[i] = _mm256_or_ps(_mm256_andnot_ps(sign, x.r[i]), _mm256_and_ps(s.r[i], sign));
  return x;
}
LATTN_INLINE_ lattn_v16_ lattn_v_exp2_of_(lattn_v16_ x) {
  LATTN_HALVES_ x.r[i] =
      _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x.r[i]), 23));
  return x;
}
LATTN_INLINE_ float lattn_v_reduce_max_(lattn_v16_ x) {
  __m256 a = _mm256_max_ps(x.r[0], x.r[1]);
  __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}
LATTN_INLINE_ float lattn_v_reduce_add_(lattn_v16_ x) {
  __m256 a = _mm256_add_ps(x.r[0], x.r[1]);
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
LATTN_INLINE_ uint32_t lattn_v_nonfinite_(lattn_v16_ x) {
  __m256i e = _mm256_set1_epi32(0x7f800000);
  uint32_t bits = 0;
  LATTN_HALVES_ {
    __m256i m = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_castps_si256(x.r[i]), e), e);
    bits |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(m)) << (8 * i);
  }
  return bits;
}
/* One 8 x 8 quarter: rows x[row ...], half `half`. */
LATTN_INLINE_ void lattn_v_transpose8_(__m256 y[8], const lattn_v16_ *x, int half) {
  __m256 a[8], b[8];
  LATTN_UNROLL_
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i].r[half], x[i + 1].r[half]);
    a[i + 1] = _mm256_unpackhi_ps(x[i].r[half], x[i + 1].r[half]);
  }
  LATTN_UNROLL_
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  LATTN_UNROLL_
  for (int c = 0; c < 4; c++) {
    y[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    y[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
LATTN_INLINE_ void lattn_v_transpose_(lattn_v16_ x[16]) {
  __m256 q[2][2][8];
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) lattn_v_transpose8_(q[i][j], x + 8 * i, j);
  for (int i = 0; i < 2; i++)
    for (int t = 0; t < 8; t++)
      LATTN_UNROLL_
      for (int j = 0; j < 2; j++) x[8 * j + t].r[i] = q[i][j][t];
}
LATTN_INLINE_ lattn_v16_ lattn_v_exchange_(lattn_v16_ x, int h) {
  lattn_v16_ y;
  LATTN_HALVES_ {
    if (h == 1) y.r[i] = _mm256_permute_ps(x.r[i], 0xb1);
    else if (h == 2) y.r[i] = _mm256_permute_ps(x.r[i], 0x4e);
    else if (h == 4) y.r[i] = _mm256_permute2f128_ps(x.r[i], x.r[i], 1);
    else y.r[i] = x.r[1 - i];
  }
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_set_f16_(const void *p) {
  lattn_v16_ y;
  short h;
  LATTN_MEMCPY_(&h, p, sizeof h);
  y.r[0] = y.r[1] = _mm256_cvtph_ps(_mm_set1_epi16(h));
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_of_bytes_(__m128i b) { /* signed */
  lattn_v16_ y;
  y.r[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(b));
  y.r[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(b, 8)));
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i8_(const void *p) {
  return lattn_v_of_bytes_(_mm_loadu_si128((const __m128i *)p));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i4_(const void *p, int high) {
  __m128i b = _mm_loadu_si128((const __m128i *)p);
  if (high) b = _mm_srli_epi16(b, 4);
  return lattn_v_of_bytes_(_mm_sub_epi8(_mm_and_si128(b, _mm_set1_epi8(15)), _mm_set1_epi8(8)));
}
#define LATTN_DOT_BIAS_ 0
typedef struct lattn_i16_ {
  __m256i r[2];
} lattn_i16_;
typedef struct lattn_b64_ {
  __m256i r[2];
} lattn_b64_;
LATTN_INLINE_ lattn_i16_ lattn_i_set_(int32_t x) {
  lattn_i16_ y;
  LATTN_HALVES_ y.r[i] = _mm256_set1_epi32(x);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_load_(const void *p) {
  lattn_b64_ y;
  LATTN_HALVES_ y.r[i] = _mm256_loadu_si256((const __m256i *)p + i);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_keys_(const void *p) { return lattn_b_load_(p); }
LATTN_INLINE_ lattn_b64_ lattn_b_half_(lattn_b64_ x, int high) {
  LATTN_HALVES_ {
    if (high) x.r[i] = _mm256_srli_epi16(x.r[i], 4);
    x.r[i] = _mm256_and_si256(x.r[i], _mm256_set1_epi8(15));
  }
  return x;
}
/* |q| by keys with q's sign: pairs stay within 2 * 127 * 127 < 32768 */
LATTN_INLINE_ lattn_i16_ lattn_i_dot_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  __m256i b = _mm256_set1_epi32(q), a = _mm256_abs_epi8(b), one = _mm256_set1_epi16(1);
  LATTN_HALVES_ acc.r[i] = _mm256_add_epi32(
      acc.r[i],
      _mm256_madd_epi16(_mm256_maddubs_epi16(a, _mm256_sign_epi8(k.r[i], b)), one));
  return acc;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_small_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  __m256i b = _mm256_set1_epi32(q), one = _mm256_set1_epi16(1);
  LATTN_HALVES_ acc.r[i] = _mm256_add_epi32(
      acc.r[i], _mm256_madd_epi16(_mm256_maddubs_epi16(k.r[i], b), one));
  return acc;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_weights_(lattn_i16_ acc, int32_t w, lattn_b64_ v) {
  __m256i b = _mm256_set1_epi32(w), one = _mm256_set1_epi16(1);
  LATTN_HALVES_ acc.r[i] = _mm256_add_epi32(
      acc.r[i], _mm256_madd_epi16(_mm256_maddubs_epi16(b, v.r[i]), one));
  return acc;
}
LATTN_INLINE_ lattn_b64_ lattn_b_quad_(const void *a, const void *b, const void *c, const void *d) {
  __m128i x = _mm_loadu_si128((const __m128i *)a), y = _mm_loadu_si128((const __m128i *)b);
  __m128i z = _mm_loadu_si128((const __m128i *)c), w = _mm_loadu_si128((const __m128i *)d);
  __m128i p = _mm_unpacklo_epi8(x, y), q = _mm_unpacklo_epi8(z, w);
  lattn_b64_ to;
  to.r[0] = _mm256_setr_m128i(_mm_unpacklo_epi16(p, q), _mm_unpackhi_epi16(p, q));
  p = _mm_unpackhi_epi8(x, y);
  q = _mm_unpackhi_epi8(z, w);
  to.r[1] = _mm256_setr_m128i(_mm_unpacklo_epi16(p, q), _mm_unpackhi_epi16(p, q));
  return to;
}
LATTN_INLINE_ void lattn_b_quads_(lattn_b64_ to[2], const char *a, const char *b, const char *c,
                                  const char *d) {
  to[0] = lattn_b_quad_(a, b, c, d);
  to[1] = lattn_b_quad_(a + 16, b + 16, c + 16, d + 16);
}
LATTN_INLINE_ __m256i lattn_v_words_(lattn_v16_ x) { /* rounded, in order */
  __m256i a = _mm256_cvtps_epi32(x.r[0]), b = _mm256_cvtps_epi32(x.r[1]);
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
}
LATTN_INLINE_ void lattn_v_bytes_(lattn_v16_ x, void *to) {
  __m256i a = lattn_v_words_(x);
  _mm_storeu_si128((__m128i *)to,
                   _mm_packs_epi16(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
}
LATTN_INLINE_ void lattn_v_planes_(lattn_v16_ x, unsigned char *high, unsigned char *low) {
  __m256i a = lattn_v_words_(x), low7 = _mm256_and_si256(a, _mm256_set1_epi16(127));
  a = _mm256_permute4x64_epi64(_mm256_packs_epi16(_mm256_srai_epi16(a, 7), low7), 0xd8);
  _mm_storeu_si128((__m128i *)(void *)high, _mm256_castsi256_si128(a));
  _mm_storeu_si128((__m128i *)(void *)low, _mm256_extracti128_si256(a, 1));
}
LATTN_INLINE_ lattn_i16_ lattn_i_128_(lattn_i16_ high, lattn_i16_ low) {
  LATTN_HALVES_ low.r[i] = _mm256_add_epi32(_mm256_slli_epi32(high.r[i], 7), low.r[i]);
  return low;
}
LATTN_INLINE_ lattn_v16_ lattn_v_of_less_(lattn_i16_ acc, int32_t x) {
  lattn_v16_ y;
  LATTN_HALVES_ y.r[i] =
      _mm256_cvtepi32_ps(_mm256_sub_epi32(acc.r[i], _mm256_set1_epi32(x)));
  return y;
}
#undef LATTN_HALVES_

#elif LONGATTN_SIMD == LONGATTN_SIMD_NEON

#define LATTN_SIMD_NAME_ "neon"
#define LATTN_SWEEP_VECTORS_ 1 /* of a state, in one pass over it */
#define LATTN_SHARED_TOKENS_ 2 /* that share such a pass */
#define LATTN_TILE_PANELS_ 1 /* 6 x 4 accumulators, 4 keys, 1 query of 32 registers */
#define LATTN_UNROLL_KEYS_ LATTN_UNROLL_
#define LATTN_EXPS_ 2
#define LATTN_THIN_VECTORS_ 2
#define LATTN_INT_ROWS_ 3

typedef struct lattn_v16_ {
  float32x4_t r[4];
} lattn_v16_;

#define LATTN_QUARTERS_ LATTN_UNROLL_ for (int i = 0; i < 4; i++)

LATTN_INLINE_ lattn_v16_ lattn_v_set_(float x) {
  lattn_v16_ y;
  LATTN_QUARTERS_ y.r[i] = vdupq_n_f32(x);
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_(const float *p) {
  lattn_v16_ y;
  LATTN_QUARTERS_ y.r[i] = vld1q_f32(p + 4 * i);
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_n_(const float *p, int n) {
  float y[16] = {0};
  LATTN_MEMCPY_(y, p, (size_t)n * sizeof *p);
  return lattn_v_load_(y);
}
LATTN_INLINE_ void lattn_v_store_(float *p, lattn_v16_ x) {
  LATTN_QUARTERS_ vst1q_f32(p + 4 * i, x.r[i]);
}
LATTN_INLINE_ void lattn_v_store_n_(float *p, lattn_v16_ x, int n) {
  float y[16];
  lattn_v_store_(y, x);
  LATTN_MEMCPY_(p, y, (size_t)n * sizeof *p);
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_f16_(const uint16_t *p) {
  lattn_v16_ y;
  LATTN_QUARTERS_ y.r[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_bf16_(const uint16_t *p) {
  lattn_v16_ y;
  LATTN_QUARTERS_ y.r[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return y;
}
LATTN_INLINE_ void lattn_v_store_f16_(uint16_t *p, lattn_v16_ x) {
  LATTN_QUARTERS_ vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.r[i])));
}
LATTN_INLINE_ lattn_v16_ lattn_v_add_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ a.r[i] = vaddq_f32(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_sub_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ a.r[i] = vsubq_f32(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_mul_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ a.r[i] = vmulq_f32(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_div_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ a.r[i] = vdivq_f32(a.r[i], b.r[i]);
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_fma_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  LATTN_QUARTERS_ c.r[i] = vfmaq_f32(c.r[i], a.r[i], b.r[i]);
  return c;
}
LATTN_INLINE_ lattn_v16_ lattn_v_max_(lattn_v16_ a, lattn_v16_ b) { /* not vmaxq: it prefers NaN */
  LATTN_QUARTERS_ b.r[i] = vbslq_f32(vcgtq_f32(a.r[i], b.r[i]), a.r[i], b.r[i]);
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_less_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ b.r[i] = vbslq_f32(vcltq_f32(x.r[i], y.r[i]), a.r[i], b.r[i]);
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_equal_(lattn_v16_ x, lattn_v16_ y, lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ b.r[i] = vbslq_f32(vceqq_f32(x.r[i], y.r[i]), a.r[i], b.r[i]);
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_if_bits_(uint32_t bits, lattn_v16_ a, lattn_v16_ b) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  LATTN_QUARTERS_ {
    uint32x4_t m = vtstq_u32(vdupq_n_u32(bits >> (4 * i)), vld1q_u32(lane));
    b.r[i] = vbslq_f32(m, a.r[i], b.r[i]);
  }
  return b;
}
LATTN_INLINE_ lattn_v16_ lattn_v_abs_(lattn_v16_ x) {
  LATTN_QUARTERS_ x.r[i] = vabsq_f32(x.r[i]);
  return x;
}
LATTN_INLINE_ lattn_v16_ lattn_v_copysign_(lattn_v16_ x, lattn_v16_ s) {
  LATTN_QUARTERS_ x.r[i] = vbslq_f32(vdupq_n_u32(0x80000000u), s.r[i], x.r[i]);
  return x;
}
LATTN_INLINE_ lattn_v16_ lattn_v_exp2_of_(lattn_v16_ x) {
  LATTN_QUARTERS_ x.r[i] =
      vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(x.r[i]), 23));
  return x;
}
LATTN_INLINE_ float lattn_v_reduce_max_(lattn_v16_ x) {
  float y[4];
  float32x4_t a = vbslq_f32(vcgtq_f32(x.r[0], x.r[2]), x.r[0], x.r[2]);
  float32x4_t b = vbslq_f32(vcgtq_f32(x.r[1], x.r[3]), x.r[1], x.r[3]);
  vst1q_f32(y, vbslq_f32(vcgtq_f32(a, b), a, b));
  y[0] = y[0] > y[2] ? y[0] : y[2];
  y[1] = y[1] > y[3] ? y[1] : y[3];
  return y[0] > y[1] ? y[0] : y[1];
}
LATTN_INLINE_ float lattn_v_reduce_add_(lattn_v16_ x) {
  float y[4];
  vst1q_f32(y, vaddq_f32(vaddq_f32(x.r[0], x.r[2]), vaddq_f32(x.r[1], x.r[3])));
  y[0] = y[0] + y[2];
  y[1] = y[1] + y[3];
  return y[0] + y[1];
}
LATTN_INLINE_ uint32_t lattn_v_nonfinite_(lattn_v16_ x) {
  static const uint32_t lane[4] = {1, 2, 4, 8};
  uint32x4_t e = vdupq_n_u32(0x7f800000u);
  uint32_t bits = 0;
  LATTN_QUARTERS_ {
    uint32x4_t m = vceqq_u32(vandq_u32(vreinterpretq_u32_f32(x.r[i]), e), e);
    bits |= vaddvq_u32(vandq_u32(m, vld1q_u32(lane))) << (4 * i);
  }
  return bits;
}
LATTN_INLINE_ void lattn_v_transpose_(lattn_v16_ x[16]) {
  lattn_v16_ y[16];
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) {
      const lattn_v16_ *r = x + 4 * i;
      float32x4x2_t a = vtrnq_f32(r[0].r[j], r[1].r[j]), b = vtrnq_f32(r[2].r[j], r[3].r[j]);
      y[4 * j].r[i] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
      y[4 * j + 1].r[i] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
      y[4 * j + 2].r[i] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
      y[4 * j + 3].r[i] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
    }
  for (int i = 0; i < 16; i++) x[i] = y[i];
}
LATTN_INLINE_ lattn_v16_ lattn_v_exchange_(lattn_v16_ x, int h) {
  lattn_v16_ y;
  LATTN_QUARTERS_ {
    if (h == 1) y.r[i] = vrev64q_f32(x.r[i]);
    else if (h == 2) y.r[i] = vextq_f32(x.r[i], x.r[i], 2);
    else y.r[i] = x.r[i ^ h / 4];
  }
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_set_f16_(const void *p) {
  uint16_t h;
  LATTN_MEMCPY_(&h, p, sizeof h);
  return lattn_v_set_(lattn_from_f16_(h));
}
LATTN_INLINE_ lattn_v16_ lattn_v_of_bytes_(int8x16_t b) {
  lattn_v16_ y;
  int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
  y.r[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(low)));
  y.r[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(low)));
  y.r[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(high)));
  y.r[3] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)));
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i8_(const void *p) {
  return lattn_v_of_bytes_(vld1q_s8((const int8_t *)p));
}
LATTN_INLINE_ lattn_v16_ lattn_v_load_i4_(const void *p, int high) {
  uint8x16_t b = vld1q_u8((const uint8_t *)p);
  b = high ? vshrq_n_u8(b, 4) : vandq_u8(b, vdupq_n_u8(15));
  return lattn_v_of_bytes_(vsubq_s8(vreinterpretq_s8_u8(b), vdupq_n_s8(8)));
}
#define LATTN_DOT_BIAS_ 0
typedef struct lattn_i16_ {
  int32x4_t r[4];
} lattn_i16_;
typedef struct lattn_b64_ {
  int8x16_t r[4];
} lattn_b64_;
LATTN_INLINE_ lattn_i16_ lattn_i_set_(int32_t x) {
  lattn_i16_ y;
  LATTN_QUARTERS_ y.r[i] = vdupq_n_s32(x);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_load_(const void *p) {
  lattn_b64_ y;
  LATTN_QUARTERS_ y.r[i] = vld1q_s8((const int8_t *)p + 16 * i);
  return y;
}
LATTN_INLINE_ lattn_b64_ lattn_b_keys_(const void *p) { return lattn_b_load_(p); }
LATTN_INLINE_ lattn_b64_ lattn_b_half_(lattn_b64_ x, int high) {
  LATTN_QUARTERS_ {
    uint8x16_t b = vreinterpretq_u8_s8(x.r[i]);
    x.r[i] = vreinterpretq_s8_u8(high ? vshrq_n_u8(b, 4) : vandq_u8(b, vdupq_n_u8(15)));
  }
  return x;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(q));
#if defined(__ARM_FEATURE_DOTPROD)
  LATTN_QUARTERS_ acc.r[i] = vdotq_s32(acc.r[i], k.r[i], b);
#else
  LATTN_QUARTERS_ {
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(k.r[i]), vget_low_s8(b)));
    int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(k.r[i]), vget_high_s8(b)));
    acc.r[i] = vaddq_s32(acc.r[i], vpaddq_s32(low, high));
  }
#endif
  return acc;
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_small_(lattn_i16_ acc, lattn_b64_ k, int32_t q) {
  return lattn_i_dot_(acc, k, q);
}
LATTN_INLINE_ lattn_i16_ lattn_i_dot_weights_(lattn_i16_ acc, int32_t w, lattn_b64_ v) {
  return lattn_i_dot_(acc, v, w);
}
LATTN_INLINE_ lattn_b64_ lattn_b_quad_(const void *a, const void *b, const void *c, const void *d) {
  int8x16x2_t x = vzipq_s8(vld1q_s8((const int8_t *)a), vld1q_s8((const int8_t *)b));
  int8x16x2_t y = vzipq_s8(vld1q_s8((const int8_t *)c), vld1q_s8((const int8_t *)d));
  lattn_b64_ to;
  for (int i = 0; i < 2; i++) {
    int16x8x2_t z = vzipq_s16(vreinterpretq_s16_s8(x.val[i]), vreinterpretq_s16_s8(y.val[i]));
    to.r[2 * i] = vreinterpretq_s8_s16(z.val[0]);
    to.r[2 * i + 1] = vreinterpretq_s8_s16(z.val[1]);
  }
  return to;
}
LATTN_INLINE_ void lattn_b_quads_(lattn_b64_ to[2], const char *a, const char *b, const char *c,
                                  const char *d) {
  to[0] = lattn_b_quad_(a, b, c, d);
  to[1] = lattn_b_quad_(a + 16, b + 16, c + 16, d + 16);
}
LATTN_INLINE_ void lattn_v_words_(lattn_v16_ x, uint16x8_t u[2]) { /* rounded */
  for (int i = 0; i < 2; i++)
    u[i] = vcombine_u16(vmovn_u32(vreinterpretq_u32_s32(vcvtnq_s32_f32(x.r[2 * i]))),
                        vmovn_u32(vreinterpretq_u32_s32(vcvtnq_s32_f32(x.r[2 * i + 1]))));
}
LATTN_INLINE_ void lattn_v_bytes_(lattn_v16_ x, void *to) {
  uint16x8_t u[2];
  lattn_v_words_(x, u);
  vst1q_u8((uint8_t *)to, vcombine_u8(vmovn_u16(u[0]), vmovn_u16(u[1])));
}
LATTN_INLINE_ void lattn_v_planes_(lattn_v16_ x, unsigned char *high, unsigned char *low) {
  uint16x8_t u[2];
  lattn_v_words_(x, u);
  for (int i = 0; i < 2; i++) {
    vst1_u8(high + 8 * i, vshrn_n_u16(u[i], 7));
    vst1_u8(low + 8 * i, vmovn_u16(vandq_u16(u[i], vdupq_n_u16(127))));
  }
}
LATTN_INLINE_ lattn_i16_ lattn_i_128_(lattn_i16_ high, lattn_i16_ low) {
  LATTN_QUARTERS_ low.r[i] = vaddq_s32(vshlq_n_s32(high.r[i], 7), low.r[i]);
  return low;
}
LATTN_INLINE_ lattn_v16_ lattn_v_of_less_(lattn_i16_ acc, int32_t x) {
  lattn_v16_ y;
  LATTN_QUARTERS_ y.r[i] = vcvtq_f32_s32(vsubq_s32(acc.r[i], vdupq_n_s32(x)));
  return y;
}
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define LATTN_HAS_PAIRS_ 1
LATTN_INLINE_ lattn_v16_ lattn_v_pair_row_(lattn_v16_ a, lattn_v16_ b) {
  lattn_v16_ y;
  LATTN_QUARTERS_ {
    const float32x4_t *x = i < 2 ? a.r + 2 * i : b.r + 2 * i - 4;
    y.r[i] = vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(x[0]), x[1]));
  }
  return y;
}
LATTN_INLINE_ lattn_v16_ lattn_v_pair_(lattn_v16_ a, lattn_v16_ b) {
  LATTN_QUARTERS_ {
    uint16x8_t x = vreinterpretq_u16_bf16(
        vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(a.r[i]), b.r[i]));
    a.r[i] = vreinterpretq_f32_u16(vzip1q_u16(x, vextq_u16(x, x, 4)));
  }
  return a;
}
LATTN_INLINE_ lattn_v16_ lattn_v_dot_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  LATTN_QUARTERS_ c.r[i] = vbfdotq_f32(c.r[i], vreinterpretq_bf16_f32(a.r[i]),
                                       vreinterpretq_bf16_f32(b.r[i]));
  return c;
}
LATTN_INLINE_ lattn_v16_ lattn_v_half_(lattn_v16_ x, int second) {
  LATTN_QUARTERS_ {
    uint32x4_t u = vreinterpretq_u32_f32(x.r[i]);
    u = second ? vandq_u32(u, vdupq_n_u32(0xffff0000u)) : vshlq_n_u32(u, 16);
    x.r[i] = vreinterpretq_f32_u32(u);
  }
  return x;
}
#endif
#undef LATTN_QUARTERS_

#endif /* LONGATTN_SIMD */

/* ---- the same on every ISA ---- */

/* Pairs of bfloat16, only where the ISA can multiply them: their bits are a lane of 32, as which
   they are kept, loaded and stored. pair_row: lane t is elements 2 t and 2 t + 1 of the 32 of a and
   b; pair: lane t is (a[t], b[t]); rounded to nearest even. dot: c + a[0] b[0] + a[1] b[1] a lane;
   its roundings are the ISA's own. half: the first or second of each pair as floats. */
#ifndef LATTN_HAS_PAIRS_
#define LATTN_HAS_PAIRS_ 0 /* then none of these runs */
LATTN_INLINE_ lattn_v16_ lattn_v_pair_row_(lattn_v16_ a, lattn_v16_ b) { return (void)b, a; }
LATTN_INLINE_ lattn_v16_ lattn_v_pair_(lattn_v16_ a, lattn_v16_ b) { return (void)b, a; }
LATTN_INLINE_ lattn_v16_ lattn_v_dot_(lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  return (void)a, (void)b, c;
}
LATTN_INLINE_ lattn_v16_ lattn_v_half_(lattn_v16_ x, int second) { return (void)second, x; }
#endif

/* A type of our own beside enum lattn_type: such pairs, adjacent along the sum that they are in. */
enum { LATTN_PAIRS_ = -1 };

/* One step of that sum. */
LATTN_INLINE_ lattn_v16_ lattn_v_step_(int type, lattn_v16_ a, lattn_v16_ b, lattn_v16_ c) {
  return type == LATTN_PAIRS_ ? lattn_v_dot_(a, b, c) : lattn_v_fma_(a, b, c);
}
/* Steps of a sum of n products. */
LATTN_INLINE_ int64_t lattn_steps_(int type, int64_t n) {
  return type == LATTN_PAIRS_ ? (n + 1) / 2 : n;
}

/* Element `index` ... of an array of `type`; always inlined with a constant type. */
LATTN_INLINE_ lattn_v16_ lattn_v_get_(const void *p, int type, int64_t index) {
  if (type == LATTN_F16) return lattn_v_load_f16_((const uint16_t *)p + index);
  if (type == LATTN_BF16) return lattn_v_load_bf16_((const uint16_t *)p + index);
  return lattn_v_load_((const float *)p + index);
}

/* to[a]: the sum, or the largest, of the lanes of x[a], a < m <= 6. */
LATTN_INLINE_ void lattn_v_reduce_rows_(const lattn_v16_ *x, int m, int largest, float *to) {
#ifdef LATTN_REDUCE_ROWS_ /* six at once take half of the time */
  if (m > 2) {
    lattn_v16_ all[8];
    float lanes[16];
    LATTN_UNROLL_
    for (int a = 0; a < 8; a++) all[a] = x[a < m ? a : 0];
    lattn_v_store_(lanes, lattn_v_reduce8_(all, largest));
    for (int a = 0; a < m; a++) to[a] = lanes[a % 4 * 4 + a / 4 * 2];
    return;
  }
#endif
  for (int a = 0; a < m; a++)
    to[a] = largest ? lattn_v_reduce_max_(x[a]) : lattn_v_reduce_add_(x[a]);
}

LATTN_INLINE_ lattn_v16_ lattn_v_get_n_(const void *p, int type, int64_t index, int n) {
  uint16_t h[32] = {0}; /* 64 bytes, so that no branch could read beyond it */
  if (n == 16) return lattn_v_get_(p, type, index);
  if (type == LATTN_F32) return lattn_v_load_n_((const float *)p + index, n);
  LATTN_MEMCPY_(h, (const uint16_t *)p + index, (size_t)n * sizeof *h);
  return lattn_v_get_(h, type, 0);
}

/* n, 1 ... 32, adjacent elements as pairs. */
LATTN_INLINE_ lattn_v16_ lattn_v_get_pairs_(const void *p, int type, int64_t index, int n) {
  if (type == LATTN_BF16 && n == 32)
    return lattn_v_load_((const float *)(const void *)((const uint16_t *)p + index));
  return lattn_v_pair_row_(lattn_v_get_n_(p, type, index, n < 16 ? n : 16),
                           n > 16 ? lattn_v_get_n_(p, type, index + 16, n - 16) : lattn_v_set_(0));
}

/* Rounds to the type and stores n lanes. Returns whether a finite lane became infinite. */
LATTN_FN_ int lattn_v_put_n_(void *p, int type, int64_t index, lattn_v16_ x, int n) {
  uint16_t h[16];
  float f[16];
  uint32_t lost;
  if (type == LATTN_F32) {
    lattn_v_store_n_((float *)p + index, x, n);
    return 0;
  }
  if (type == LATTN_F16) {
    lattn_v_store_f16_(h, x);
    lost = lattn_v_nonfinite_(lattn_v_load_f16_(h));
  } else {
    lattn_v_store_(f, x);
    for (int t = 0; t < 16; t++) h[t] = lattn_to_bf16_(f[t]);
    lost = lattn_v_nonfinite_(lattn_v_load_bf16_(h));
  }
  LATTN_MEMCPY_((uint16_t *)p + index, h, (size_t)n * sizeof *h);
  return (lost & ~lattn_v_nonfinite_(x) & ((1u << n) - 1u)) != 0;
}

/* One element. */
LATTN_FN_ float lattn_get_(const void *p, int type, int64_t index) {
  uint16_t h;
  float x;
  if (type == LATTN_F32) {
    LATTN_MEMCPY_(&x, (const float *)p + index, sizeof x);
    return x;
  }
  LATTN_MEMCPY_(&h, (const uint16_t *)p + index, sizeof h);
  return type == LATTN_F16 ? lattn_from_f16_(h) : lattn_from_bf16_(h);
}

LATTN_FN_ int lattn_put_(void *p, int type, int64_t index, float x) {
  uint16_t h;
  if (type == LATTN_F32) {
    LATTN_MEMCPY_((float *)p + index, &x, sizeof x);
    return 0;
  }
  h = type == LATTN_F16 ? lattn_to_f16_(x) : lattn_to_bf16_(x);
  LATTN_MEMCPY_((uint16_t *)p + index, &h, sizeof h);
  return (h & 0x7fffu) == (type == LATTN_F16 ? 0x7c00u : 0x7f80u) && lattn_is_finite_(x);
}

/* ==== §4 scalar maths ============================================================================
   exp, log, tanh and 1/sqrt: ours, the same operations in the same order everywhere, no libm. */

/* exp(x) for x <= 0, to 1.1 ulp; +0 below ln(FLT_MIN), so no weight is denormal; NaN stays NaN.
   x = k ln 2 + r, |r| <= ln 2 / 2; e^r = 1 + (r + r^2 P(r)), P of degree 4 (6.3e-8 at most off,
   times r^2 <= 0.12: 0.06 ulp of the result); ln 2 in two parts, the first of 15 bits, so k * it
   is exact.
   Of n <= LATTN_EXPS_ vectors, step by step: each is a chain of eleven operations, and a
   processor finds what else it could do only among the next hundred. */
LATTN_INLINE_ void lattn_v_exps_(lattn_v16_ *x, int n) {
  lattn_v16_ k[LATTN_EXPS_], r[LATTN_EXPS_], y[LATTN_EXPS_];
  lattn_v16_ magic = lattn_v_set_(12583039.0f); /* 1.5 * 2^23 + 127 */
#define LATTN_EACH_ LATTN_UNROLL_ for (int i = 0; i < n; i++)
  LATTN_EACH_ k[i] = lattn_v_fma_(x[i], lattn_v_set_(1.44269504f), magic);
  LATTN_EACH_ y[i] = lattn_v_sub_(k[i], magic);
  LATTN_EACH_ r[i] = lattn_v_fma_(y[i], lattn_v_set_(-0.693145752f), x[i]);
  LATTN_EACH_ r[i] = lattn_v_fma_(y[i], lattn_v_set_(-1.42860682e-06f), r[i]);
  LATTN_EACH_ y[i] = lattn_v_fma_(lattn_v_set_(0.00139412144f), r[i], lattn_v_set_(0.00836323481f));
  LATTN_EACH_ y[i] = lattn_v_fma_(y[i], r[i], lattn_v_set_(0.0416663736f));
  LATTN_EACH_ y[i] = lattn_v_fma_(y[i], r[i], lattn_v_set_(0.166665763f));
  LATTN_EACH_ y[i] = lattn_v_fma_(y[i], r[i], lattn_v_set_(0.5f));
  LATTN_EACH_ y[i] = lattn_v_fma_(lattn_v_mul_(r[i], r[i]), y[i], r[i]);
  LATTN_EACH_ k[i] = lattn_v_exp2_of_(k[i]);
  LATTN_EACH_ y[i] = lattn_v_fma_(y[i], k[i], k[i]); /* (1 + y) 2^k: one rounding, that of 1 + y */
  LATTN_EACH_ x[i] = lattn_v_if_less_(x[i], lattn_v_set_(-87.3365402f), lattn_v_set_(0.0f), y[i]);
#undef LATTN_EACH_
}

LATTN_INLINE_ lattn_v16_ lattn_v_exp_(lattn_v16_ x) {
  lattn_v_exps_(&x, 1);
  return x;
}

LATTN_FN_ float lattn_exp_(float x) {
  float y[16];
  lattn_v_store_(y, lattn_v_exp_(lattn_v_set_(x)));
  return y[0];
}

/* 1 / (1 + exp(-x)), to 3 ulp, of n <= LATTN_EXPS_ vectors: 0 and 1 at the infinities, NaN stays
   NaN; exp(-|x|) never overflows. */
LATTN_INLINE_ void lattn_v_sigmoids_(lattn_v16_ *x, int n) {
  lattn_v16_ e[LATTN_EXPS_], zero = lattn_v_set_(0), one = lattn_v_set_(1.0f);
  LATTN_UNROLL_
  for (int i = 0; i < n; i++) e[i] = lattn_v_sub_(zero, lattn_v_abs_(x[i]));
  lattn_v_exps_(e, n);
  LATTN_UNROLL_
  for (int i = 0; i < n; i++)
    x[i] = lattn_v_div_(lattn_v_if_less_(x[i], zero, e[i], one), lattn_v_add_(one, e[i]));
}

LATTN_FN_ lattn_v16_ lattn_v_sigmoid_(lattn_v16_ x) {
  lattn_v_sigmoids_(&x, 1);
  return x;
}

/* tanh(x), to 2 ulp, odd. Near 0 an odd polynomial; else (1 - e) / (1 + e) with e = exp(-2 |x|). */
LATTN_FN_ lattn_v16_ lattn_v_tanh_(lattn_v16_ x) {
  lattn_v16_ a = lattn_v_abs_(x), one = lattn_v_set_(1.0f), u = lattn_v_mul_(a, a), y, e;
  y = lattn_v_fma_(lattn_v_set_(-0.00628366508f), u, lattn_v_set_(0.0211214535f));
  y = lattn_v_fma_(y, u, lattn_v_set_(-0.053876318f));
  y = lattn_v_fma_(y, u, lattn_v_set_(0.133329332f));
  y = lattn_v_fma_(y, u, lattn_v_set_(-0.333333313f));
  y = lattn_v_fma_(lattn_v_mul_(a, u), y, a);
  e = lattn_v_exp_(lattn_v_mul_(a, lattn_v_set_(-2.0f)));
  e = lattn_v_div_(lattn_v_sub_(one, e), lattn_v_add_(one, e));
  return lattn_v_copysign_(lattn_v_if_less_(a, lattn_v_set_(0.6f), y, e), x);
}

/* ln(x) for positive normal x, to 1 ulp of the result or 2^-25, whichever is larger.
   x = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2); ln(1 + f) = f - f^2/2 + f^3 Q(f), Q of degree
   8. */
LATTN_FN_ float lattn_log_(float x) {
  static const float q[9] = {0.333333313f, -0.249999806f, 0.200006887f, -0.166691512f, 0.142511547f,
                             -0.123967074f, 0.116346769f, -0.116598874f, 0.0733243823f};
  uint32_t u = lattn_bits_(x);
  int32_t k = (int32_t)(u >> 23) - 127;
  float f, y, e;
  if (lattn_is_nan_(x) || u == 0x7f800000u) return x;
  if ((u & 0x7fffffu) > 0x3504f3u) k++; /* 1 + f above sqrt(2): halve it */
  f = lattn_float_(u - ((uint32_t)k << 23)) - 1.0f;
  e = (float)k;
  y = q[8];
  for (int i = 7; i >= 0; i--) y = lattn_fma_(y, f, q[i]);
  y = lattn_fma_(y, f, -0.5f);
  y = lattn_fma_(f * f, y, e * 1.42860682e-06f);
  return lattn_fma_(e, 0.693145752f, f + y);
}

/* 1 / sqrt(x) to 2 ulp, for x in [2^-120, infinity); below, of 2^-120. */
LATTN_FN_ float lattn_rsqrt_(float x) {
  float y, h;
  if (x < 7.52316385e-37f) x = 7.52316385e-37f;
  if (!lattn_is_finite_(x)) return lattn_is_nan_(x) ? x : 0.0f;
  y = lattn_float_(0x5f375a86u - (lattn_bits_(x) >> 1));
  h = x * -0.5f;
  for (int i = 0; i < 4; i++) {
    float r = lattn_fma_(h * y, y, 0.5f);
    y = lattn_fma_(y, r, y);
  }
  return y;
}

/* 1 / sqrt(d), d < 2^62, rounded to nearest, by integers: the largest m with m^2 d <= 4^s has 25
   bits. */
LATTN_FN_ float lattn_rsqrt_int_(int64_t d) {
  int s = 24;
  uint64_t m = 0, quotient = 0, rest = 0;
  while (s < 56 && d >> (2 * (s - 24)) >= 1) s++; /* d < 4^(s-24) <= 4 d, so 2^24 < m <= 2^25 */
  for (int i = 2 * s; i >= 0; i--) {              /* 4^s / d, bit by bit */
    rest = rest << 1 | (uint64_t)(i == 2 * s);
    quotient = quotient << 1 | (uint64_t)(rest >= (uint64_t)d);
    if (rest >= (uint64_t)d) rest -= (uint64_t)d;
  }
  for (int bit = 25; bit >= 0; bit--) {
    uint64_t t = m | (uint64_t)1 << bit;
    if (t * t <= quotient) m = t;
  }
  m = (m + (m & 1)) >> 1; /* to 24 bits; an odd m is above half, since m^2 d = 4^s has no odd
                             solution > 1 */
  return (float)m * lattn_float_((uint32_t)(128 - s) << 23);
}

/* ==== §5 tiles ===================================================================================
   The inner kernels, written once over the vector layer. A tile is up to 6 rows (queries) by some
   panels of keys (scores) or vectors of value columns (values), its accumulators in registers.
   The order of every sum is that of one lane, whatever the tile's shape. */

/* A hint that what lies `ahead` bytes from element `index` is needed soon; a hint never faults.
   Tiles of fewer than 6 rows are decoding, from memory: block by block they ask for the next
   one, a page away, which the hardware does not foresee (it stops at 4 KiB). The processor drops
   hints that come faster than memory answers, so they are spread over all of the tile's work,
   in the order of memory and one a line of 64 bytes: `vector` is even for those that begin one
   of 16-bit elements. */
LATTN_INLINE_ void lattn_fetch_(int m, const void *p, int type, int vector, int64_t index,
                                int64_t ahead) {
  if (m < LATTN_TILE_ROWS_ && (type == LATTN_F32 || vector % 2 == 0))
    LATTN_PREFETCH_((const void *)((uintptr_t)p + (uintptr_t)ahead +
                                   (uintptr_t)(index * (type == LATTN_F32 ? 4 : 2))));
}

/* s[a][16 p ...] = q[a] . key, for m rows and `panels` adjacent panels [dim][16] of keys at
   element `at` of k. Per dim (or pair of them) of a full AVX-512 tile: 4 key loads, 6 broadcasts,
   24 multiply-adds, in 24 + 4 + 1 of 32 registers. With all that is around them, these tiles and
   those of values reach 0.86 of the multiply-adds (bench: prefill_chunk, f16, on a Zen 5). */
LATTN_INLINE_ void lattn_score_body_(int m, int panels, int type, const float *q, int64_t dim,
                                     const void *k, int64_t at, int64_t ahead, float *s) {
  const int step = m < LATTN_TILE_ROWS_ ? 2 : 1;
  lattn_v16_ acc[LATTN_TILE_ROWS_][LATTN_TILE_PANELS_], b[LATTN_TILE_PANELS_];
  const int64_t steps = lattn_steps_(type, dim);
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++) acc[a][p] = lattn_v_set_(0);
  for (int64_t d = 0; d < steps; d += step)
    LATTN_UNROLL_
    for (int u = 0; u < step; u++) {
      if (u > 0 && d + u == steps) break;
      LATTN_UNROLL_
      for (int p = 0; p < panels; p++) {
        b[p] = lattn_v_get_(k, type, at + (p * steps + d + u) * LATTN_PANEL_);
        lattn_fetch_(m, k, type, u * panels + p, at + ((d + u) * panels + p) * LATTN_PANEL_, ahead);
      }
      LATTN_UNROLL_
      for (int a = 0; a < m; a++) {
        lattn_v16_ x = lattn_v_set_(q[a * dim + d + u]);
        LATTN_UNROLL_
        for (int p = 0; p < panels; p++) acc[a][p] = lattn_v_step_(type, x, b[p], acc[a][p]);
      }
    }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++)
      lattn_v_store_(s + a * LATTN_BLOCK_ + p * LATTN_PANEL_, acc[a][p]);
}

/* Rows of one head in the caller's layout lie apart, and no processor foresees them: each asks for
   the one that many tokens later. */
enum { LATTN_AHEAD_ = 16 };

/* So n rows are needed soon. */
LATTN_INLINE_ void lattn_fetch_strided_(const void *p, int type, int64_t row, int64_t n,
                                        int64_t stride, int64_t dim) {
  const int64_t size = type == LATTN_F32 ? 4 : 2;
  for (int64_t end = row + n; row < end; row++)
    for (int64_t i = 0; i < dim * size; i += 64)
      LATTN_PREFETCH_((const void *)((uintptr_t)p + (uintptr_t)i + /* may be beyond the array */
                                     (uintptr_t)row * (uintptr_t)stride * (uintptr_t)size));
}

/* The same for one panel of keys in the caller's layout: key of lane t at (index + t) * stride,
   lanes [from, to) exist. 16 x 16 transposes in registers instead of a packing pass: 16 loads and
   64 shuffles for 16 m multiply-adds. whole: all lanes exist, and dim is a multiple of 16. */
LATTN_INLINE_ void lattn_score_strided_body_(int m, int type, int whole, const float *q,
                                             int64_t dim, const void *k, int64_t index,
                                             int64_t stride, int from, int to, float *s) {
  lattn_v16_ acc[LATTN_TILE_ROWS_], x[LATTN_PANEL_];
  int64_t hinted = 0, hint = 0;
  LATTN_UNROLL_
  for (int a = 0; a < m; a++) acc[a] = lattn_v_set_(0);
  for (int64_t d = 0; d < dim; d += LATTN_PANEL_) {
    int n = whole || dim - d >= LATTN_PANEL_ ? LATTN_PANEL_ : (int)(dim - d);
    hint = (d + n) * LATTN_PANEL_ / dim;
    lattn_fetch_strided_(k, type, index + LATTN_AHEAD_ + hinted, hint - hinted, stride, dim);
    hinted = hint;
    LATTN_UNROLL_KEYS_
    for (int t = 0; t < LATTN_PANEL_; t++)
      x[t] = whole || (t >= from && t < to) ? lattn_v_get_n_(k, type, (index + t) * stride + d, n)
                                            : lattn_v_set_(0);
    lattn_v_transpose_(x);
    LATTN_UNROLL_KEYS_
    for (int i = 0; i < LATTN_PANEL_; i++) {
      if (!whole && i == n) break;
      LATTN_UNROLL_
      for (int a = 0; a < m; a++)
        acc[a] = lattn_v_fma_(lattn_v_set_(q[a * dim + d + i]), x[i], acc[a]);
    }
  }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++) lattn_v_store_(s + a * LATTN_BLOCK_, acc[a]);
}

/* Thin tiles, of one or two rows, are wider. */
enum {
  LATTN_VALUE_VECTORS_ = LATTN_THIN_VECTORS_ > LATTN_TILE_PANELS_ ? LATTN_THIN_VECTORS_
                                                                  : LATTN_TILE_PANELS_,
  LATTN_VALUE_SUMS_ = LATTN_TILE_ROWS_ * LATTN_TILE_PANELS_ > 2 * LATTN_VALUE_VECTORS_
                          ? LATTN_TILE_ROWS_ * LATTN_TILE_PANELS_
                          : 2 * LATTN_VALUE_VECTORS_
};

/* acc[a][...] = fma(acc, e[a], sum_j w[a][j] v[j]) for m rows, keys 0 ... n_keys - 1 of v at
   element at + j * stride, and `vectors` vectors of columns, the last of which has `last`
   columns. The chain over the keys starts at +0. Per key of a full AVX-512 tile: 4 value loads,
   6 broadcasts, 24 multiply-adds, in as many registers. One row takes 128 columns at once: 8 loads,
   1 broadcast, 8 multiply-adds a key, 0.83 of a core's reading (bench: decode, f16, 32/32). */
LATTN_INLINE_ void lattn_value_body_(int m, int vectors, int type, int whole, const float *w,
                                     const void *v, int64_t at, int64_t stride, int n_keys,
                                     int last, float *acc, int64_t acc_stride, const float *e,
                                     int64_t hint, int64_t hints, int64_t ahead) {
  lattn_v16_ sum[LATTN_VALUE_SUMS_], b[LATTN_VALUE_VECTORS_];
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) sum[a * vectors + c] = lattn_v_set_(0);
  for (int j = 0; j < n_keys; j++, at += stride, hint += hints) {
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) {
      b[c] =
          whole ? lattn_v_get_(v, type, at + c * 16) : lattn_v_get_n_(v, type, at + c * 16, last);
      lattn_fetch_(m, v, type, c, hint + c * 16, ahead);
    }
    LATTN_UNROLL_
    for (int a = 0; a < m; a++) {
      lattn_v16_ x = lattn_v_set_(w[a * LATTN_BLOCK_ + j]);
      LATTN_UNROLL_
      for (int c = 0; c < vectors; c++) {
        lattn_v16_ *to = sum + a * vectors + c;
        *to = lattn_v_step_(type, x, b[c], *to);
      }
    }
  }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++) {
    lattn_v16_ x = lattn_v_set_(e[a]);
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) {
      float *to = acc + a * acc_stride + c * 16;
      lattn_v_store_(to, lattn_v_fma_(lattn_v_load_(to), x, sum[a * vectors + c]));
    }
  }
}

#define LATTN_EACH_ROWS_(m, body)                                                                  \
  switch (m) {                                                                                     \
    case 2: body(2); break;                                                                        \
    case 3: body(3); break;                                                                        \
    case 4: body(4); break;                                                                        \
    case 5: body(5); break;                                                                        \
    default: body(6); break;                                                                       \
  }
#define LATTN_EACH_TYPE_(type, body)                                                               \
  switch (type) {                                                                                  \
    case LATTN_F32: body(LATTN_F32); break;                                                        \
    case LATTN_F16: body(LATTN_F16); break;                                                        \
    default: body(LATTN_BF16); break;                                                              \
  }

/* Scores of m rows against panels [first, end) of a block whose panels start at element 0 of k.
   One row takes panel after panel, in the order of memory: its one chain of multiply-adds is half
   as fast as four panels' from L2, and a tenth faster from memory, where a decode's keys are. */
LATTN_INLINE_ void lattn_score_panels_(int m, int type, const float *q, int64_t dim, const void *k,
                                       int64_t ahead, int first, int end, float *s) {
  const int64_t panel = lattn_steps_(type, dim) * LATTN_PANEL_;
  const int panels = m == 1 ? 1 : LATTN_TILE_PANELS_;
  int p = first;
  for (; p + panels <= end; p += panels)
    lattn_score_body_(m, panels, type, q, dim, k, p * panel, ahead,
                      s + p * LATTN_PANEL_);
  for (; p < end; p++)
    lattn_score_body_(m, 1, type, q, dim, k, p * panel, ahead, s + p * LATTN_PANEL_);
}

LATTN_NOINLINE_ void lattn_score_f32_(int m, const float *q, int64_t dim, const void *k,
                                      int64_t ahead, int first, int end, float *s) {
#define LATTN_BODY_(M) lattn_score_panels_(M, LATTN_F32, q, dim, k, ahead, first, end, s)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}
LATTN_NOINLINE_ void lattn_score_f16_(int m, const float *q, int64_t dim, const void *k,
                                      int64_t ahead, int first, int end, float *s) {
#define LATTN_BODY_(M) lattn_score_panels_(M, LATTN_F16, q, dim, k, ahead, first, end, s)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}
LATTN_NOINLINE_ void lattn_score_bf16_(int m, const float *q, int64_t dim, const void *k,
                                      int64_t ahead, int first, int end, float *s) {
#define LATTN_BODY_(M) lattn_score_panels_(M, LATTN_BF16, q, dim, k, ahead, first, end, s)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

/* Keys and queries in pairs: half the steps of float32, whole calls in 0.6 of the time
   (ONLY=bf16dot make bench). */
LATTN_NOINLINE_ void lattn_score_pairs_(int m, const float *q, int64_t dim, const void *k,
                                        int first, int end, float *s) {
#define LATTN_BODY_(M) lattn_score_panels_(M, LATTN_PAIRS_, q, dim, k, 0, first, end, s)
  if (m == 1) {
    LATTN_BODY_(1);
    return;
  }
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

LATTN_NOINLINE_ void lattn_score_strided_(int m, int type, const float *q, int64_t dim,
                                          const void *k, int64_t index, int64_t stride, int from,
                                          int to, float *s) {
  int whole = from <= 0 && to >= LATTN_PANEL_ && dim % LATTN_PANEL_ == 0;
  for (int n; m > 0; m -= n, q += n * dim, s += n * LATTN_BLOCK_) {
    n = !whole || m == 1 ? 1 : m < 4 ? 2 : 4;
#define LATTN_PART_(M, T, whole)                                                                   \
  lattn_score_strided_body_(M, T, whole, q, dim, k, index, stride, from, to, s)
#define LATTN_BODY_(T)                                                                             \
  if (n == 4) LATTN_PART_(4, T, 1);                                                                \
  else if (n == 2) LATTN_PART_(2, T, 1);                                                           \
  else if (whole) LATTN_PART_(1, T, 1);                                                            \
  else LATTN_PART_(1, T, 0)
    LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
#undef LATTN_PART_
  }
}

/* One row, any type: apart from the others, whose frames are larger, for tasks that live on the
   stack. */
LATTN_NOINLINE_ void lattn_score_one_(int type, const float *q, int64_t dim, const void *k,
                                      int64_t ahead, int first, int end, float *s) {
#define LATTN_BODY_(T) lattn_score_panels_(1, T, q, dim, k, ahead, first, end, s)
  LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
}

/* Values of m rows, all columns. */
LATTN_INLINE_ void lattn_value_columns_(int m, int type, const float *w, const void *v, int64_t at,
                                        int64_t stride, int n_keys, int64_t dim, float *acc,
                                        int64_t acc_stride, const float *e, int64_t ahead) {
  const int vectors = m <= 2 ? LATTN_THIN_VECTORS_ : LATTN_TILE_PANELS_;
  const int64_t n = stride == dim ? n_keys : 1; /* hints: in the order of memory */
  int64_t c = 0;
  for (; c + 16 * vectors <= dim; c += 16 * vectors)
    lattn_value_body_(m, vectors, type, 1, w, v, at + c, stride, n_keys, 16, acc + c, acc_stride, e,
                      at + c * n, n > 1 ? 16 * vectors : stride, ahead);
  for (; vectors > LATTN_TILE_PANELS_ && c + 16 * LATTN_TILE_PANELS_ <= dim;
       c += 16 * LATTN_TILE_PANELS_)
    lattn_value_body_(m, LATTN_TILE_PANELS_, type, 1, w, v, at + c, stride, n_keys, 16, acc + c,
                      acc_stride, e, at + c * n, n > 1 ? 16 * LATTN_TILE_PANELS_ : stride, ahead);
  for (; c + 16 <= dim; c += 16)
    lattn_value_body_(m, 1, type, 1, w, v, at + c, stride, n_keys, 16, acc + c, acc_stride, e,
                      at + c * n, n > 1 ? 16 : stride, ahead);
  if (c < dim)
    lattn_value_body_(m, 1, type, 0, w, v, at + c, stride, n_keys, (int)(dim - c), acc + c,
                      acc_stride, e, at + c * n, n > 1 ? 16 : stride, ahead);
}

LATTN_NOINLINE_ void lattn_value_f32_(int m, const float *w, const void *v, int64_t at,
                                      int64_t stride, int n_keys, int64_t dim, float *acc,
                                      int64_t acc_stride, const float *e,
                                      int64_t ahead) {
#define LATTN_BODY_(M) \
  lattn_value_columns_(M, LATTN_F32, w, v, at, stride, n_keys, dim, acc, acc_stride, e, ahead)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}
LATTN_NOINLINE_ void lattn_value_f16_(int m, const float *w, const void *v, int64_t at,
                                      int64_t stride, int n_keys, int64_t dim, float *acc,
                                      int64_t acc_stride, const float *e,
                                      int64_t ahead) {
#define LATTN_BODY_(M) \
  lattn_value_columns_(M, LATTN_F16, w, v, at, stride, n_keys, dim, acc, acc_stride, e, ahead)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}
LATTN_NOINLINE_ void lattn_value_bf16_(int m, const float *w, const void *v, int64_t at,
                                       int64_t stride, int n_keys, int64_t dim, float *acc,
                                       int64_t acc_stride, const float *e,
                                      int64_t ahead) {
#define LATTN_BODY_(M) \
  lattn_value_columns_(M, LATTN_BF16, w, v, at, stride, n_keys, dim, acc, acc_stride, e, ahead)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

/* w: pairs of weights of the steps. */
LATTN_NOINLINE_ void lattn_value_pairs_(int m, const float *w, const void *v, int64_t at, int steps,
                                        int64_t columns, float *acc, const float *e) {
#define LATTN_BODY_(M) \
  lattn_value_columns_(M, LATTN_PAIRS_, w, v, at, columns, steps, columns, acc, columns, e, 0)
  if (m == 1) {
    LATTN_BODY_(1);
    return;
  }
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

#define LATTN_VALUE_ONE_(name, type)                                                               \
  LATTN_NOINLINE_ void name(const float *w, const void *v, int64_t at, int64_t stride, int n_keys, \
                            int64_t dim, float *acc, const float *e, int64_t ahead) {              \
    lattn_value_columns_(1, type, w, v, at, stride, n_keys, dim, acc, 0, e, ahead);                \
  }
LATTN_VALUE_ONE_(lattn_value_one_f32_, LATTN_F32)
LATTN_VALUE_ONE_(lattn_value_one_f16_, LATTN_F16)
LATTN_VALUE_ONE_(lattn_value_one_bf16_, LATTN_BF16)
#undef LATTN_VALUE_ONE_

LATTN_FN_ void lattn_value_one_(int type, const float *w, const void *v, int64_t at, int64_t stride,
                                int n_keys, int64_t dim, float *acc, const float *e,
                                int64_t ahead) {
  if (type == LATTN_F32)
    lattn_value_one_f32_(w, v, at, stride, n_keys, dim, acc, e, ahead);
  else if (type == LATTN_F16)
    lattn_value_one_f16_(w, v, at, stride, n_keys, dim, acc, e, ahead);
  else
    lattn_value_one_bf16_(w, v, at, stride, n_keys, dim, acc, e, ahead);
}

/* ---- keys and values of 8 and 4 bits ----
   A row x is stored as integers q and a float16 scale: x ~ q * scale, q in [-127, 127] with the
   row's largest |x| / 127; or with 4 bits, for each 32 dims, keys in [-8, 7] with -1/8 of the x of
   the largest |x|, values in [-7, 7] with 1/7 of the largest |x|. In the
   panels of 16 keys, 4 dims of a key are adjacent: [dims / 4][16][4] bytes, then 16 scales
   (LATTN_I8); for each 32 dims [4][16][4] bytes, dims 0-3 of 8 in the low and 4-7 in the high
   halves, q + 8, then 16 scales (LATTN_I4). Rows of values: dims up to a multiple of 16, scales
   apart (LATTN_I8); for each 32 dims 16 bytes, dims 0-15 in the low and 16-31 in the high halves,
   q + 8, and behind all of them their scales (LATTN_I4). What is beyond the dims is 0. */

enum { LATTN_MAX_STACK_DIM_ = 1024 }; /* a row of floats of so many dims fits on the stack */

LATTN_FN_ int lattn_is_int_(int32_t type) { return type >= LATTN_I8; }

LATTN_FN_ int64_t lattn_up_(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

LATTN_FN_ int64_t lattn_panel_bytes_(int32_t type, int64_t dim) {
  if (type == LATTN_I8) return lattn_up_(dim, 4) * LATTN_PANEL_ + 2 * LATTN_PANEL_;
  if (type == LATTN_I4)
    return lattn_up_(dim, 8) * LATTN_PANEL_ / 2 + (dim + 31) / 32 * 2 * LATTN_PANEL_;
  return dim * LATTN_PANEL_ * (type == LATTN_F32 ? 4 : 2);
}

LATTN_FN_ int64_t lattn_row_bytes_(int32_t type, int64_t dim) {
  if (type == LATTN_I8) return lattn_up_(dim, 16);
  if (type == LATTN_I4) return (dim + 31) / 32 * 18;
  return dim * (type == LATTN_F32 ? 4 : 2);
}

/* Size of the transform for a dim: the largest power of two that divides it, at most 128. */
LATTN_FN_ int32_t lattn_basis_(int64_t dim) {
  int32_t size = 128;
  while (size > 8 && dim % size) size /= 2;
  return size > 8 ? size : 0;
}

/* x becomes H x / sqrt(size), block by block of `size` elements: its own inverse. Sums of pairs 1,
   2, 4, 8 apart, then of whole vectors. */
LATTN_NOINLINE_ void lattn_hadamard_(float *x, int64_t dim, int32_t size) {
  static const uint32_t upper[4] = {0xaaaau, 0xccccu, 0xf0f0u, 0xff00u}; /* lanes with that bit */
  float root = size == 128 ? 0.0883883461f : size == 64 ? 0.125f
                                       : size == 32 ? 0.176776692f : 0.25f;
  lattn_v16_ by = lattn_v_set_(root), zero = lattn_v_set_(0);
  for (int64_t i = 0; i < dim; i += 16) {
    lattn_v16_ a = lattn_v_load_(x + i);
#define LATTN_STAGE_(h, n)                                                                         \
  a = lattn_v_add_(lattn_v_exchange_(a, h), lattn_v_if_bits_(upper[n], lattn_v_sub_(zero, a), a))
    LATTN_STAGE_(1, 0);
    LATTN_STAGE_(2, 1);
    LATTN_STAGE_(4, 2);
    LATTN_STAGE_(8, 3);
#undef LATTN_STAGE_
    lattn_v_store_(x + i, a);
  }
  for (int32_t h = 16; h < size; h *= 2)
    for (int64_t i = 0; i < dim; i += i % h == h - 16 ? h + 16 : 16) {
      lattn_v16_ a = lattn_v_load_(x + i), b = lattn_v_load_(x + i + h);
      lattn_v_store_(x + i, lattn_v_add_(a, b));
      lattn_v_store_(x + i + h, lattn_v_sub_(a, b));
    }
  for (int64_t i = 0; i < dim; i += 16)
    lattn_v_store_(x + i, lattn_v_mul_(lattn_v_load_(x + i), by));
}

/* The first x of the largest |x|; NaN if any is not finite. */
LATTN_FN_ float lattn_extreme_(const float *x, int64_t n) {
  lattn_v16_ zero = lattn_v_set_(0), top = zero, low = zero;
  uint32_t bad = 0;
  float most, least;
  for (int64_t i = 0; i < n; i += 16) {
    lattn_v16_ y = n - i < 16 ? lattn_v_load_n_(x + i, (int)(n - i)) : lattn_v_load_(x + i);
    bad |= lattn_v_nonfinite_(y);
    top = lattn_v_max_(y, top);
    low = lattn_v_max_(lattn_v_sub_(zero, y), low);
  }
  if (bad) return LATTN_NAN_;
  most = lattn_v_reduce_max_(top);
  least = lattn_v_reduce_max_(low);
  if (most != least) return most > least ? most : -least;
  for (int64_t i = 0; i < n && most > 0; i++)
    if (x[i] == most || x[i] == -most) return x[i];
  return 0;
}

/* 16 of n numbers x / scale within [least, most]; 0 beyond n. */
LATTN_INLINE_ lattn_v16_ lattn_v_ratio_(const float *x, int64_t n, float scale, float least,
                                        float most) {
  lattn_v16_ y = n < 16 ? lattn_v_load_n_(x, (int)n) : lattn_v_load_(x);
  lattn_v16_ low = lattn_v_set_(least), high = lattn_v_set_(most);
  y = lattn_v_div_(y, lattn_v_set_(scale));
  return lattn_v_if_less_(high, y, high, lattn_v_if_less_(y, low, low, y));
}

/* The float16 of a scale: NaN if it is not finite or too large (*lost). */
LATTN_FN_ uint16_t lattn_scale_bits_(float scale, int *lost) {
  uint16_t h = lattn_to_f16_(scale);
  if (lattn_is_nan_(scale)) return 0x7e00u;
  if ((h & 0x7fffu) < 0x7c00u) return h;
  *lost = 1;
  return 0x7e00u;
}

/* Up to 32 floats, in their basis, as integers in [least, most] and their scale. */
typedef struct lattn_ints_ {
  signed char q[32];
  uint16_t scale;
} lattn_ints_;

LATTN_FN_ lattn_ints_ lattn_quantise_(const float *x, int n, float exact, float least, float most,
                                      int *lost) {
  lattn_ints_ y;
  float scale;
  LATTN_MEMSET_(&y, 0, sizeof y);
  y.scale = lattn_scale_bits_(exact, lost);
  scale = lattn_from_f16_(y.scale);
  if (lattn_is_finite_(scale) && (lattn_bits_(scale) & 0x7fffffffu))
    for (int i = 0; i < n; i += 16)
      lattn_v_bytes_(lattn_v_ratio_(x + i, n - i, scale, least, most), y.q + i);
  return y;
}

/* Dims d ... d + n - 1 of a row. all: the scale of the row (LATTN_I8). Of 4 bits, the extreme of a
   key's dims becomes -8, so that of 16 numbers none is wasted: a fifth less error. It cuts the
   other end off, though, always inwards, and in sums of values that would not average out: they
   take 7 at both ends (measured: 1.4 instead of 2.7 % of perplexity). */
LATTN_FN_ lattn_ints_ lattn_quantise_dims_(const float *x, int n, int type, int is_key, float all,
                                           int *lost) {
  float extreme;
  if (type == LATTN_I8) return lattn_quantise_(x, n, all, -127, 127, lost);
  extreme = lattn_extreme_(x, n);
  if (is_key) return lattn_quantise_(x, n, extreme / -8, -8, 7, lost);
  return lattn_quantise_(x, n, (extreme < 0 ? -extreme : extreme) / 7, -7, 7, lost);
}

/* The exact scale of a row of LATTN_I8. */
LATTN_FN_ float lattn_row_scale_(const float *x, int type, int64_t dim) {
  float extreme = type == LATTN_I8 ? lattn_extreme_(x, dim) : 0;
  return (extreme < 0 ? -extreme : extreme) / 127;
}

/* Bytes low[4] and high[4], in [-8, 7], as nibbles q + 8. */
LATTN_FN_ void lattn_put_nibbles_(char *to, const signed char *low, const signed char *high) {
  uint32_t a, b;
  LATTN_MEMCPY_(&a, low, 4);
  LATTN_MEMCPY_(&b, high, 4);
  a = ((a & 0x0f0f0f0fu) | (b & 0x0f0f0f0fu) << 4) ^ 0x88888888u;
  LATTN_MEMCPY_(to, &a, 4);
}

/* A key into lane `lane` of its panel. Returns whether a finite key was too large for its scale. */
LATTN_FN_ int lattn_put_key_ints_(char *panel, int type, int lane, const float *x, int64_t dim) {
  int lost = 0;
  float all = lattn_row_scale_(x, type, dim);
  char *scales = panel + lattn_up_(dim, 4) * LATTN_PANEL_;
  for (int64_t d = 0; d < dim; d += 32) {
    int n = dim - d < 32 ? (int)(dim - d) : 32;
    lattn_ints_ y = lattn_quantise_dims_(x + d, n, type, 1, all, &lost);
    if (type == LATTN_I8) {
      for (int i = 0; i < n; i += 4)
        LATTN_MEMCPY_(panel + (d + i) / 4 * 64 + 4 * lane, y.q + i, 4);
      LATTN_MEMCPY_(scales + 2 * lane, &y.scale, 2);
      continue;
    }
    for (int i = 0; i < n; i += 8)
      lattn_put_nibbles_(panel + i / 8 * 64 + 4 * lane, y.q + i, y.q + i + 4);
    panel += lattn_up_(n, 8) / 8 * 64;
    LATTN_MEMCPY_(panel + 2 * lane, &y.scale, 2);
    panel += 2 * LATTN_PANEL_;
  }
  return lost;
}

/* The key of a lane, as the floats that it stands for. */
LATTN_FN_ void lattn_get_key_ints_(const char *panel, int type, int lane, float *x, int64_t dim) {
  const char *scales = panel + lattn_up_(dim, 4) * LATTN_PANEL_;
  uint16_t h;
  for (int64_t d = 0; d < dim; d += 32) {
    int n = dim - d < 32 ? (int)(dim - d) : 32;
    if (type == LATTN_I8) {
      LATTN_MEMCPY_(&h, scales + 2 * lane, 2);
      for (int i = 0; i < n; i++)
        x[d + i] = (float)(signed char)panel[(d + i) / 4 * 64 + 4 * lane + i % 4];
    } else {
      for (int i = 0; i < n; i++) {
        unsigned byte = (unsigned char)panel[i / 8 * 64 + 4 * lane + i % 4];
        x[d + i] = (float)((int)(byte >> (i % 8 < 4 ? 0 : 4) & 15u) - 8);
      }
      panel += lattn_up_(n, 8) / 8 * 64;
      LATTN_MEMCPY_(&h, panel + 2 * lane, 2);
      panel += 2 * LATTN_PANEL_;
    }
    for (int i = 0; i < n; i++) x[d + i] = x[d + i] * lattn_from_f16_(h);
  }
}

/* A value into its row; *scale gets that of LATTN_I8. */
LATTN_FN_ int lattn_put_value_ints_(char *row, int type, const float *x, int64_t dim, char *scale) {
  int lost = 0;
  float all = lattn_row_scale_(x, type, dim);
  char *scales = row + (dim + 31) / 32 * 16;
  for (int64_t d = 0; d < dim; d += 32) {
    int n = dim - d < 32 ? (int)(dim - d) : 32;
    lattn_ints_ y = lattn_quantise_dims_(x + d, n, type, 0, all, &lost);
    if (type == LATTN_I8) {
      LATTN_MEMCPY_(row + d, y.q, (size_t)lattn_up_(n, 16));
      LATTN_MEMCPY_(scale, &y.scale, 2);
      continue;
    }
    for (int j = 0; j < 16; j += 4) lattn_put_nibbles_(row + d / 2 + j, y.q + j, y.q + 16 + j);
    LATTN_MEMCPY_(scales + d / 32 * 2, &y.scale, 2);
  }
  return lost;
}

/* 16 columns of a row of values: LATTN_I8 without its scale. */
LATTN_INLINE_ lattn_v16_ lattn_v_value_ints_(const char *row, int type, int64_t dim, int64_t c) {
  if (type == LATTN_I8) return lattn_v_load_i8_(row + c);
  return lattn_v_mul_(lattn_v_load_i4_(row + c / 32 * 16, (int)(c / 16 % 2)),
                      lattn_v_set_f16_(row + (dim + 31) / 32 * 16 + c / 32 * 2));
}

LATTN_FN_ float lattn_value_scale_(const char *scales, int64_t row) {
  uint16_t h;
  LATTN_MEMCPY_(&h, scales + 2 * row, 2);
  return lattn_from_f16_(h);
}

/* One row of values as floats, up to a multiple of 16. */
LATTN_NOINLINE_ void lattn_widen_ints_(float *to, const char *row, int type, int64_t dim) {
  for (int64_t c = 0; c < dim; c += 16)
    lattn_v_store_(to + c, type == LATTN_I8 ? lattn_v_value_ints_(row, LATTN_I8, dim, c)
                                            : lattn_v_value_ints_(row, LATTN_I4, dim, c));
}

/* Whether a scale of n_keys rows of LATTN_I4, of which `row` is the first, is not finite. */
LATTN_FN_ int lattn_ints_nonfinite_(const char *row, int64_t row_bytes, int n_keys, int64_t dim) {
  int bad = 0;
  for (int j = 0; j < n_keys; j++, row += row_bytes)
    for (int64_t g = 0; g < (dim + 31) / 32; g++)
      bad |= !lattn_is_finite_(lattn_value_scale_(row + (dim + 31) / 32 * 16, g));
  return bad;
}

/* Rows of values: of floats, `stride` elements apart, or of integers, `stride` bytes. */
typedef struct lattn_rows_ {
  const void *v;
  const char *scales; /* LATTN_I8: of row 0 */
  int64_t stride;
  int type;
} lattn_rows_;

/* 16 columns (n of them exist) of a row, not of LATTN_I8. */
LATTN_FN_ lattn_v16_ lattn_row_columns_(const lattn_rows_ *rows, int64_t row, int64_t dim,
                                        int64_t c, int n) {
  int64_t at = row * rows->stride + c;
  if (LATTN_HAS_PAIRS_ && rows->type == LATTN_PAIRS_)
    return lattn_v_half_(lattn_v_load_((const float *)rows->v + row / 2 * rows->stride + c),
                         (int)(row % 2));
  if (rows->type == LATTN_F32) return lattn_v_get_n_(rows->v, LATTN_F32, at, n);
  if (rows->type == LATTN_F16) return lattn_v_get_n_(rows->v, LATTN_F16, at, n);
  if (rows->type == LATTN_BF16) return lattn_v_get_n_(rows->v, LATTN_BF16, at, n);
  return lattn_v_value_ints_((const char *)rows->v + row * rows->stride, LATTN_I4, dim, c);
}

/* Values of one row when a key that it does not see may hold infinity or NaN, or whose last keys
   are drafts: only its own keys, lanes [first, end) with their bit in `visible` (8 panels), enter
   the chain. The same order, the same bits. Rare, so plain. Lanes from `lane` on are the rows path[
   lane of it - lane] of `drafts`. */
LATTN_NOINLINE_ void lattn_value_careful_(const uint32_t visible[8], const lattn_rows_ *rows,
                                          const lattn_rows_ *drafts, const uint8_t *path, int lane,
                                          const float *w, int first, int end, int64_t dim,
                                          float *acc, float e) {
  for (int64_t c = 0; c < dim; c += 16) {
    int n = dim - c < 16 ? (int)(dim - c) : 16;
    lattn_v16_ sum = lattn_v_set_(0), b;
    for (int j = first; j < end; j++) {
      if (!(visible[j / 16] >> (j % 16) & 1u)) continue;
      b = j < lane ? lattn_row_columns_(rows, j, dim, c, n)
                   : lattn_row_columns_(drafts, path[j - lane], dim, c, n);
      sum = lattn_v_fma_(lattn_v_set_(w[j]), b, sum);
    }
    lattn_v_store_(acc + c, lattn_v_fma_(lattn_v_load_(acc + c), lattn_v_set_(e), sum));
  }
}

/* The same of few keys that lie apart, `lanes` of them (selective values): rows of floats, all
   columns of a chunk in one pass. */
LATTN_INLINE_ void lattn_value_picked_body_(int vectors, int type, int whole, const uint8_t *lanes,
                                            int n, const float *w, const void *v, int64_t at,
                                            int64_t stride, int last, float *acc, float e) {
  lattn_v16_ sum[LATTN_TILE_PANELS_], by = lattn_v_set_(e);
  LATTN_UNROLL_
  for (int c = 0; c < vectors; c++) sum[c] = lattn_v_set_(0);
  for (int i = 0; i < n; i++) {
    lattn_v16_ x = lattn_v_set_(w[lanes[i]]);
    int64_t row = at + lanes[i] * stride;
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++)
      sum[c] = lattn_v_fma_(x, whole ? lattn_v_get_(v, type, row + 16 * c)
                                     : lattn_v_get_n_(v, type, row + 16 * c, last), sum[c]);
  }
  LATTN_UNROLL_
  for (int c = 0; c < vectors; c++)
    lattn_v_store_(acc + 16 * c, lattn_v_fma_(lattn_v_load_(acc + 16 * c), by, sum[c]));
}

LATTN_NOINLINE_ void lattn_value_picked_(const uint32_t visible[8], const lattn_rows_ *rows,
                                         const float *w, int first, int end, int64_t dim,
                                         float *acc, float e) {
  const int wide = LATTN_TILE_PANELS_;
  uint8_t lanes[LATTN_BLOCK_];
  int64_t c = 0;
  int n = 0;
  for (int j = first; j < end; j++)
    if (visible[j / 16] >> (j % 16) & 1u) lanes[n++] = (uint8_t)j;
#define LATTN_PART_(T, vectors, whole, left)                                                       \
  lattn_value_picked_body_(vectors, T, whole, lanes, n, w, rows->v, c, rows->stride, left,         \
                           acc + c, e)
#define LATTN_BODY_(T)                                                                             \
  for (; c + 16 * wide <= dim; c += 16 * wide) LATTN_PART_(T, wide, 1, 16);                        \
  for (; c + 16 <= dim; c += 16) LATTN_PART_(T, 1, 1, 16);                                         \
  if (c < dim) LATTN_PART_(T, 1, 0, (int)(dim - c))
  LATTN_EACH_TYPE_(rows->type, LATTN_BODY_)
#undef LATTN_BODY_
#undef LATTN_PART_
}

/* ---- queries of integers ----
   In the place of a query's floats. For keys of LATTN_I8, of which its rounding must not double the
   error, 15 bits, q = 128 * high + low, low in [0, 127]: bytes of high, dims up to a multiple of 4,
   as many of low;
   128 * (sum of high) + (sum of low), an int32_t; its scale, a float. For LATTN_I4 8 bits: bytes,
   dims up to a multiple of 32; sums of each 32; its scale. */

/* Where the sums are. */
LATTN_INLINE_ int64_t lattn_query_sums_at_(int type, int64_t dim) {
  return type == LATTN_I8 ? 2 * ((dim + 3) / 4 * 4) : (dim + 31) / 32 * 32;
}
LATTN_INLINE_ int64_t lattn_query_scale_at_(int type, int64_t dim) {
  return lattn_query_sums_at_(type, dim) + (type == LATTN_I8 ? 4 : (dim + 31) / 32 * 4);
}

LATTN_NOINLINE_ void lattn_query_ints_(float *row, int type, int64_t dim, int32_t basis,
                                       float factor) {
  char *to = (char *)(void *)row;
  unsigned char low[LATTN_MAX_STACK_DIM_], sixteen[16];
  int32_t sums[LATTN_MAX_STACK_DIM_ / 32]; /* LATTN_I8: one */
  float most = type == LATTN_I8 ? 127 * 128 : 127, scale;
  int64_t end = type == LATTN_I8 ? lattn_up_(dim, 4) : lattn_up_(dim, 32);
  float sum = 0;
  lattn_v16_ magic = lattn_v_set_(12582912.0f); /* 1.5 * 2^23: ends on integers */
  if (basis) lattn_hadamard_(row, dim, basis);
  scale = lattn_extreme_(row, dim) / most;
  if (scale < 0) scale = -scale;
  for (int64_t i = 0; i < end; i += 16) { /* written is only what has been read */
    lattn_v16_ q = lattn_v_set_(0);
    if (i < dim && (lattn_bits_(scale) & 0x7fffffffu) && lattn_is_finite_(scale))
      q = lattn_v_ratio_(row + i, dim - i, scale, -most, most);
    q = lattn_v_sub_(lattn_v_add_(q, magic), magic);
    if (type == LATTN_I8) lattn_v_planes_(q, sixteen, low + i);
    else lattn_v_bytes_(q, sixteen);
    LATTN_MEMCPY_(to + i, sixteen, 16);
    sum = (type == LATTN_I4 && i % 32 == 0 ? 0 : sum) + lattn_v_reduce_add_(q); /* exact: < 2^24 */
    sums[type == LATTN_I4 ? i / 32 : 0] = (int32_t)sum;
  }
  if (type == LATTN_I8) LATTN_MEMCPY_(to + end, low, (size_t)end);
  LATTN_MEMCPY_(to + lattn_query_sums_at_(type, dim), sums,
                (size_t)(lattn_query_scale_at_(type, dim) - lattn_query_sums_at_(type, dim)));
  scale = scale * factor;
  LATTN_MEMCPY_(to + lattn_query_scale_at_(type, dim), &scale, 4);
}

LATTN_INLINE_ int32_t lattn_int_at_(const char *p) {
  int32_t x;
  LATTN_MEMCPY_(&x, p, sizeof x);
  return x;
}
LATTN_INLINE_ float lattn_query_scale_(const char *q, int type, int64_t dim) {
  float x;
  LATTN_MEMCPY_(&x, q + lattn_query_scale_at_(type, dim), sizeof x);
  return x;
}

/* Scores of m rows against `panels` panels of LATTN_I8 keys: (sum of integers) * key's scale *
   query's scale. Per 4 dims of a full AVX-512 tile, twice: 4 key loads, 6 broadcasts, 24 dot
   products, in 24 + 4 + 1 of 32 registers; see lattn_value_i8_body_. */
LATTN_INLINE_ void lattn_score_i8_body_(int m, int panels, const char *q, int64_t stride,
                                        int64_t dim, const char *k, int64_t panel_bytes,
                                        int64_t ahead, float *s) {
  lattn_i16_ acc[LATTN_TILE_ROWS_][LATTN_TILE_PANELS_];
  lattn_b64_ b[LATTN_TILE_PANELS_];
  int64_t units = lattn_up_(dim, 4) / 4;
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++) acc[a][p] = lattn_i_set_(0);
  for (int low = 0; low < 2; low++) {
    if (low) {
      LATTN_UNROLL_
      for (int a = 0; a < m; a++)
        LATTN_UNROLL_
        for (int p = 0; p < panels; p++) acc[a][p] = lattn_i_128_(acc[a][p], lattn_i_set_(0));
    }
    for (int64_t d = 0; d < units; d++) {
      LATTN_UNROLL_
      for (int p = 0; p < panels; p++) {
        int64_t hint = ((d + low * units) * panels + p) * 32; /* over both passes, in order */
        b[p] = lattn_b_keys_(k + p * panel_bytes + d * 64);
        if (ahead && p % 2 == 0)
          LATTN_PREFETCH_((const void *)((uintptr_t)k + (uintptr_t)(hint + ahead)));
      }
      LATTN_UNROLL_
      for (int a = 0; a < m; a++) {
        int32_t x = lattn_int_at_(q + a * stride + 4 * (d + low * units));
        LATTN_UNROLL_
        for (int p = 0; p < panels; p++) acc[a][p] = lattn_i_dot_(acc[a][p], b[p], x);
      }
    }
  }
  for (int64_t i = 64 * units * panels; ahead && i < panels * panel_bytes; i += 64)
    LATTN_PREFETCH_((const void *)((uintptr_t)k + (uintptr_t)(i + ahead))); /* scales */
  LATTN_UNROLL_
  for (int a = 0; a < m; a++) {
    lattn_v16_ by = lattn_v_set_(lattn_query_scale_(q + a * stride, LATTN_I8, dim));
    int32_t more =
        LATTN_DOT_BIAS_ * lattn_int_at_(q + a * stride + lattn_query_sums_at_(LATTN_I8, dim));
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++) {
      const char *scales = k + p * panel_bytes + units * 64;
      lattn_v16_ x = lattn_v_of_less_(acc[a][p], more);
      x = lattn_v_mul_(x, lattn_v_load_f16_((const uint16_t *)(const void *)scales));
      lattn_v_store_(s + a * LATTN_BLOCK_ + p * LATTN_PANEL_, lattn_v_mul_(x, by));
    }
  }
}

/* The same of LATTN_I4 keys: for each 32 dims fma(sum of integers, scale, score), from +0. */
LATTN_INLINE_ void lattn_score_i4_body_(int m, int panels, const char *q, int64_t stride,
                                        int64_t dim, const char *k, int64_t panel_bytes,
                                        int64_t ahead, float *s) {
  lattn_v16_ sum[LATTN_TILE_ROWS_][LATTN_TILE_PANELS_];
  lattn_i16_ acc[LATTN_TILE_ROWS_][LATTN_TILE_PANELS_];
  int64_t groups = (dim + 31) / 32;
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++) sum[a][p] = lattn_v_set_(0);
  for (int64_t g = 0; g < groups; g++) {
    int64_t units = lattn_up_(dim - 32 * g < 32 ? dim - 32 * g : 32, 8) / 8;
    const char *at = k + g * (256 + 2 * LATTN_PANEL_);
    LATTN_UNROLL_
    for (int a = 0; a < m; a++)
      LATTN_UNROLL_
      for (int p = 0; p < panels; p++) acc[a][p] = lattn_i_set_(0);
    for (int64_t u = 0; u < units; u++)
      LATTN_UNROLL_
      for (int p = 0; p < panels; p++) {
        lattn_b64_ b = lattn_b_load_(at + p * panel_bytes + u * 64), low, high;
        if (m < LATTN_TILE_ROWS_)
          LATTN_PREFETCH_((const void *)((uintptr_t)at + (uintptr_t)(p * panel_bytes + u * 64) +
                                         (uintptr_t)ahead));
        low = lattn_b_half_(b, 0);
        high = lattn_b_half_(b, 1);
        LATTN_UNROLL_
        for (int a = 0; a < m; a++) {
          const char *x = q + a * stride + 32 * g + 8 * u;
          acc[a][p] = lattn_i_dot_small_(acc[a][p], low, lattn_int_at_(x));
          acc[a][p] = lattn_i_dot_small_(acc[a][p], high, lattn_int_at_(x + 4));
        }
      }
    LATTN_UNROLL_
    for (int a = 0; a < m; a++) {
      int32_t more = 8 * lattn_int_at_(q + a * stride + 32 * groups + 4 * g);
      LATTN_UNROLL_
      for (int p = 0; p < panels; p++) {
        const char *scales = at + p * panel_bytes + units * 64;
        sum[a][p] = lattn_v_fma_(lattn_v_of_less_(acc[a][p], more),
                                 lattn_v_load_f16_((const uint16_t *)(const void *)scales),
                                 sum[a][p]);
      }
    }
  }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int p = 0; p < panels; p++)
      lattn_v_store_(s + a * LATTN_BLOCK_ + p * LATTN_PANEL_,
                     lattn_v_mul_(sum[a][p],
                                  lattn_v_set_(lattn_query_scale_(q + a * stride, LATTN_I4,
                                                                  dim))));
}

LATTN_INLINE_ void lattn_score_ints_panels_(int m, int type, const char *q, int64_t stride,
                                            int64_t dim, const char *k, int64_t panel_bytes,
                                            int64_t ahead, int first, int end, float *s) {
  /* of 4 bits, two kinds of accumulators share the registers */
  const int wide = type == LATTN_I8 ? LATTN_TILE_PANELS_ : (LATTN_TILE_PANELS_ + 1) / 2;
  for (int p = first, n; p < end; p += n) {
    const char *at = k + p * panel_bytes;
    n = end - p >= wide ? wide : 1;
    if (type == LATTN_I8 && n == wide)
      lattn_score_i8_body_(m, wide, q, stride, dim, at, panel_bytes, ahead, s + 16 * p);
    else if (type == LATTN_I8)
      lattn_score_i8_body_(m, 1, q, stride, dim, at, panel_bytes, ahead, s + 16 * p);
    else if (n == wide)
      lattn_score_i4_body_(m, wide, q, stride, dim, at, panel_bytes, ahead, s + 16 * p);
    else
      lattn_score_i4_body_(m, 1, q, stride, dim, at, panel_bytes, ahead, s + 16 * p);
  }
}

/* One row apart, as lattn_score_one_. */
#define LATTN_SCORE_INTS_(name, one)                                                               \
  LATTN_NOINLINE_ void one(const char *q, int64_t dim, const char *k, int64_t panel_bytes,         \
                           int64_t ahead, int first, int end, float *s) {                          \
    const int64_t stride = 0;                                                                      \
    LATTN_BODY_(1);                                                                                \
  }                                                                                                \
  LATTN_NOINLINE_ void name(int m, const char *q, int64_t stride, int64_t dim, const char *k,      \
                            int64_t panel_bytes, int64_t ahead, int first, int end, float *s) {    \
    LATTN_EACH_ROWS_(m, LATTN_BODY_)                                                               \
  }
#define LATTN_BODY_(M)                                                                             \
  lattn_score_ints_panels_(M, LATTN_I8, q, stride, dim, k, panel_bytes, ahead, first, end, s)
LATTN_SCORE_INTS_(lattn_score_i8_, lattn_score_i8_one_)
#undef LATTN_BODY_
#define LATTN_BODY_(M)                                                                             \
  lattn_score_ints_panels_(M, LATTN_I4, q, stride, dim, k, panel_bytes, ahead, first, end, s)
LATTN_SCORE_INTS_(lattn_score_i4_, lattn_score_i4_one_)
#undef LATTN_BODY_
#undef LATTN_SCORE_INTS_

/* Values of m rows, as lattn_value_body_: rows of `row_bytes` bytes of LATTN_I4, as floats: weights
   of integers would have to be made anew for each 32 columns' scales, which for the 4 rows of a
   decoding group takes as long as it saves. Per key of a full AVX-512 tile: 2 loads of 32 numbers,
   4 conversions and products with scales, 6 broadcasts, 24 multiply-adds; a third of a core's
   reading (bench: decode, int4). */
LATTN_INLINE_ void lattn_value_i4_body_(int m, int vectors, const float *w, const char *v,
                                        int64_t row_bytes, int n_keys, int64_t dim, int64_t c,
                                        float *acc, int64_t acc_stride, const float *e,
                                        int64_t ahead) {
  lattn_v16_ sum[LATTN_TILE_ROWS_][LATTN_TILE_PANELS_], b[LATTN_TILE_PANELS_];
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) sum[a][i] = lattn_v_set_(0);
  for (int j = 0; j < n_keys; j++, v += row_bytes) {
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) b[i] = lattn_v_value_ints_(v, LATTN_I4, dim, c + 16 * i);
    if (m < LATTN_TILE_ROWS_)
      LATTN_PREFETCH_((const void *)((uintptr_t)v + (uintptr_t)(c / 2) +
                                     (uintptr_t)ahead));
    LATTN_UNROLL_
    for (int a = 0; a < m; a++) {
      lattn_v16_ x = lattn_v_set_(w[a * LATTN_BLOCK_ + j]);
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++) sum[a][i] = lattn_v_fma_(x, b[i], sum[a][i]);
    }
  }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) {
      float *to = acc + a * acc_stride + 16 * i;
      lattn_v_store_(to, lattn_v_fma_(lattn_v_load_(to), lattn_v_set_(e[a]), sum[a][i]));
    }
}

LATTN_INLINE_ void lattn_value_i4_columns_(int m, const float *w, const char *v, int64_t row_bytes,
                                           int n_keys, int64_t dim, float *acc, int64_t acc_stride,
                                           const float *e, int64_t ahead) {
  int64_t c = 0;
  for (; c + 16 * LATTN_TILE_PANELS_ <= lattn_up_(dim, 16); c += 16 * LATTN_TILE_PANELS_)
    lattn_value_i4_body_(m, LATTN_TILE_PANELS_, w, v, row_bytes, n_keys, dim, c, acc + c,
                         acc_stride, e, ahead);
  for (; c < dim; c += 16)
    lattn_value_i4_body_(m, 1, w, v, row_bytes, n_keys, dim, c, acc + c, acc_stride, e, ahead);
}

LATTN_NOINLINE_ void lattn_value_i4_(int m, const float *w, const char *v, int64_t row_bytes,
                                     int n_keys, int64_t dim, float *acc, int64_t acc_stride,
                                     const float *e, int64_t ahead) {
#define LATTN_BODY_(M)                                                                             \
  lattn_value_i4_columns_(M, w, v, row_bytes, n_keys, dim, acc, acc_stride, e, ahead)
  if (m == 1) {
    LATTN_BODY_(1);
    return;
  }
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

/* ---- weights of integers ----
   Values of LATTN_I8 are summed by weights of integers. Of one row and one block: x = weight *
   value's scale; X = the largest x, at least 2^-112; u = x * (16383 / X), rounded to nearest even;
   out = (sum of u * value) * (X / 16383). The sum is exact, in any order, and below 128 * 16383 *
   127 < 2^28. A weight is off by at most 2^-15 of the block's largest, so that a tail of a hundred
   keys, which 7 bits would lose, keeps its mass. u = 128 * high + low, planes of 7 bits: no sum of
   two products leaves 16 bits. */

/* Bytes from row to row. The planes of 16 keys lie where the 16 weights were: high, then low. */
enum { LATTN_PLANES_ = 4 * LATTN_BLOCK_ };

/* Of m rows: weights w[a][128], which their planes take the place of, and the keys' scales. by[a]:
   X / 16383; NaN where sum[a] is. */
LATTN_NOINLINE_ void lattn_weights_ints_(int m, float *w, const float *scales, const float *sum,
                                         float *by) {
  float most[16] = {0};
  lattn_v16_ largest[LATTN_TILE_ROWS_], top, steps = lattn_v_set_(16383);
  lattn_v16_ magic = lattn_v_set_(12582912.0f); /* 1.5 * 2^23: ends on integers */
  for (int a = 0; a < m; a++) {
    largest[a] = lattn_v_set_(0);
    LATTN_UNROLL_
    for (int p = 0; p < 8; p++)
      largest[a] = lattn_v_max_(lattn_v_mul_(lattn_v_load_(w + a * LATTN_BLOCK_ + 16 * p),
                                             lattn_v_load_(scales + 16 * p)),
                                largest[a]);
  }
  lattn_v_reduce_rows_(largest, m, 1, most);
  top = lattn_v_max_(lattn_v_load_(most), lattn_v_set_(1.92592994e-34f)); /* 2^-112 */
  lattn_v_store_(by, lattn_v_div_(top, steps));
  lattn_v_store_(most, lattn_v_div_(steps, top));
  for (int a = 0; a < m; a++) {
    lattn_v16_ r = lattn_v_set_(most[a]);
    if (lattn_is_nan_(sum[a])) by[a] = LATTN_NAN_;
    LATTN_UNROLL_
    for (int p = 0; p < 8; p++) {
      float *at = w + a * LATTN_BLOCK_ + 16 * p;
      unsigned char *to = (unsigned char *)(void *)at;
      lattn_v16_ x = lattn_v_mul_(lattn_v_load_(at), lattn_v_load_(scales + 16 * p));
      lattn_v_planes_(lattn_v_sub_(lattn_v_fma_(x, r, magic), magic), to, to + 16);
    }
  }
}

/* Of a row that may not see a key whose scale is NaN: it reaches the rows that see it only. */
LATTN_NOINLINE_ void lattn_weights_apart_(float *w, const float *scales, const uint32_t *visible,
                                          float sum, float *by) {
  float own[LATTN_BLOCK_], of_row[16];
  for (int j = 0; j < LATTN_BLOCK_; j++) {
    own[j] = !visible || (visible[j / 16] >> (j % 16) & 1u) ? scales[j] : 0.0f;
    if (lattn_is_finite_(own[j])) continue;
    own[j] = 0;
    sum = LATTN_NAN_;
  }
  lattn_weights_ints_(1, w, own, &sum, of_row);
  *by = of_row[0];
}

/* Where a row of values is; those from `lane` on are the rows path[row - lane] of `drafts`, which
   may be NULL. */
LATTN_INLINE_ const char *lattn_int_row_(const lattn_rows_ *rows, const lattn_rows_ *drafts,
                                         const uint8_t *path, int lane, int row) {
  if (drafts && row >= lane) return (const char *)drafts->v + path[row - lane] * drafts->stride;
  return (const char *)rows->v + row * rows->stride;
}

/* acc[a] = fma(acc[a], e[a], sum of u * value * by[a]) for m rows and 16 * vectors columns from c
   on; keys [first, end), whole quads. Per quad of a full AVX-512 tile: 4 value loads, 6 shuffles,
   12 broadcasts, 24 dot products, in 24 + 2 + 5 of 32 registers. With the scores 1.36 of the peak
   of float32, where twice is the most (bench: prefill_chunk, int8). */
LATTN_INLINE_ void lattn_value_i8_body_(int m, int vectors, const unsigned char *planes,
                                        const lattn_rows_ *rows, const lattn_rows_ *drafts,
                                        const uint8_t *path, int lane, int first, int end,
                                        int64_t c, float *acc, int64_t acc_stride, const float *e,
                                        const float *by, int64_t ahead) {
  lattn_i16_ high[LATTN_INT_ROWS_][2], low[LATTN_INT_ROWS_][2];
  lattn_b64_ b[2];
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) high[a][i] = low[a][i] = lattn_i_set_(0);
  for (int j = first; j < end; j += 4) {
    const char *r[4];
    LATTN_UNROLL_
    for (int t = 0; t < 4; t++) {
      r[t] = lattn_int_row_(rows, drafts, path, lane, j + t) + c;
      if (ahead && t < vectors) /* of all columns' rows, in order */
        LATTN_PREFETCH_((const void *)((uintptr_t)rows->v +
                                       (uintptr_t)(c * LATTN_BLOCK_ + j * 16 * vectors + t * 64 +
                                                   ahead)));
    }
    if (vectors > 1) lattn_b_quads_(b, r[0], r[1], r[2], r[3]);
    else b[0] = lattn_b_quad_(r[0], r[1], r[2], r[3]);
    LATTN_UNROLL_
    for (int a = 0; a < m; a++) {
      const char *w = (const char *)planes + a * LATTN_PLANES_ + j / 16 * 64 + j % 16;
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++)
        high[a][i] = lattn_i_dot_weights_(high[a][i], lattn_int_at_(w), b[i]);
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++)
        low[a][i] = lattn_i_dot_weights_(low[a][i], lattn_int_at_(w + 16), b[i]);
    }
  }
  LATTN_UNROLL_
  for (int a = 0; a < m; a++)
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) {
      float *to = acc + a * acc_stride + c + 16 * i;
      lattn_v16_ x = lattn_v_of_less_(lattn_i_128_(high[a][i], low[a][i]), 0);
      x = lattn_v_mul_(x, lattn_v_set_(by[a]));
      lattn_v_store_(to, lattn_v_fma_(lattn_v_load_(to), lattn_v_set_(e[a]), x));
    }
}

LATTN_INLINE_ void lattn_value_i8_columns_(int m, const unsigned char *planes,
                                           const lattn_rows_ *rows, const lattn_rows_ *drafts,
                                           const uint8_t *path, int lane, int first, int end,
                                           int64_t dim, float *acc, int64_t acc_stride,
                                           const float *e, const float *by, int64_t ahead) {
  int64_t c = 0;
  for (; c + 16 < dim; c += 32)
    lattn_value_i8_body_(m, 2, planes, rows, drafts, path, lane, first, end, c, acc, acc_stride, e,
                         by, ahead);
  if (c < dim)
    lattn_value_i8_body_(m, 1, planes, rows, drafts, path, lane, first, end, c, acc, acc_stride, e,
                         by, ahead);
}

/* As many rows at a time as there are registers for. */
LATTN_INLINE_ void lattn_value_i8_rows_(int m, const unsigned char *planes, const lattn_rows_ *rows,
                                        int first, int end, int64_t dim, float *acc,
                                        int64_t acc_stride, const float *e, const float *by,
                                        int64_t ahead) {
  const int n = m < LATTN_INT_ROWS_ ? m : LATTN_INT_ROWS_;
  lattn_value_i8_columns_(n, planes, rows, 0, 0, 0, first, end, dim, acc, acc_stride, e, by, ahead);
  if (n < m)
    lattn_value_i8_columns_(m - n, planes + n * LATTN_PLANES_, rows, 0, 0, 0, first, end, dim,
                            acc + n * acc_stride, acc_stride, e + n, by + n, ahead);
}

LATTN_NOINLINE_ void lattn_value_i8_(int m, const unsigned char *planes, const lattn_rows_ *rows,
                                     int first, int end, int64_t dim, float *acc,
                                     int64_t acc_stride, const float *e, const float *by,
                                     int64_t ahead) {
#define LATTN_BODY_(M)                                                                             \
  lattn_value_i8_rows_(M, planes, rows, first, end, dim, acc, acc_stride, e, by, ahead)
  LATTN_EACH_ROWS_(m, LATTN_BODY_)
#undef LATTN_BODY_
}

/* One row, and one whose last keys are drafts: apart, as lattn_score_one_. */
LATTN_NOINLINE_ void lattn_value_i8_one_(const unsigned char *planes, const lattn_rows_ *rows,
                                         int first, int end, int64_t dim, float *acc,
                                         const float *e, const float *by, int64_t ahead) {
  lattn_value_i8_rows_(1, planes, rows, first, end, dim, acc, 0, e, by, ahead);
}
LATTN_NOINLINE_ void lattn_value_i8_drafts_(const unsigned char *planes, const lattn_rows_ *rows,
                                            const lattn_rows_ *drafts, const uint8_t *path,
                                            int lane, int first, int end, int64_t dim, float *acc,
                                            const float *e, const float *by) {
  lattn_value_i8_columns_(1, planes, rows, drafts, path, lane, first, end, dim, acc, 0, e, by, 0);
}

/* The scales of values [first, end), of panels that hold them; the others' are 0. Returns whether
   one is not finite. */
LATTN_FN_ int lattn_value_scales_(float to[LATTN_BLOCK_], const lattn_rows_ *rows,
                                  const lattn_rows_ *drafts, const uint8_t *path, int lane,
                                  int first, int end) {
  uint32_t bad = 0;
  for (int p = 0; p < 8; p++) {
    lattn_v16_ x = lattn_v_set_(0);
    int low = first - 16 * p, high = (end < lane ? end : lane) - 16 * p;
    low = low > 0 ? low : 0;
    high = high < 16 ? high : 16;
    if (rows->scales && low < high) /* other slots may never have been written */
      x = lattn_v_if_bits_((1u << high) - (1u << low),
                           lattn_v_load_f16_((const uint16_t *)(const void *)rows->scales + 16 * p),
                           x);
    x = lattn_v_if_less_(x, lattn_v_set_(0), lattn_v_set_(LATTN_NAN_), x); /* a file that lies */
    lattn_v_store_(to + 16 * p, x);
    bad |= lattn_v_nonfinite_(x);
  }
  for (int j = first > lane ? first : lane; j < end; j++) {
    to[j] = lattn_value_scale_(drafts->scales, path[j - lane]);
    bad |= !lattn_is_finite_(to[j]);
  }
  return bad != 0;
}

/* Values of m rows of LATTN_I8: weights w[a][128], which are lost, their sums, and of each row 8
   panels of bits of the keys that it sees (NULL: all), which are in lanes [first, end). drafts:
   NULL, or m is 1 and keys from `lane` on are those. */
LATTN_NOINLINE_ void lattn_value_ints_(int m, const lattn_rows_ *rows, const lattn_rows_ *drafts,
                                       const uint8_t *path, int lane, const uint32_t *visible,
                                       float *w, const float *sum, int first, int end,
                                       int64_t dim, float *acc, int64_t acc_stride, const float *e,
                                       int64_t ahead) {
  const unsigned char *planes = (const unsigned char *)(const void *)w;
  float scales[LATTN_BLOCK_], by[16];
  if (lattn_value_scales_(scales, rows, drafts, path, lane, first, end))
    for (int a = 0; a < m; a++)
      lattn_weights_apart_(w + a * LATTN_BLOCK_, scales, visible ? visible + 8 * a : 0, sum[a],
                           by + a);
  else
    lattn_weights_ints_(m, w, scales, sum, by);
  first = first / 4 * 4;
  end = (end + 3) / 4 * 4;
  for (int i = 0; ahead && i < 2 * LATTN_BLOCK_; i += 64)
    LATTN_PREFETCH_((const void *)((uintptr_t)rows->scales + (uintptr_t)(i + ahead)));
  if (drafts)
    lattn_value_i8_drafts_(planes, rows, drafts, path, lane, first, end, dim, acc, e, by);
  else if (m == 1)
    lattn_value_i8_one_(planes, rows, first, end, dim, acc, e, by, ahead);
  else
    lattn_value_i8_(m, planes, rows, first, end, dim, acc, acc_stride, e, by, ahead);
}

/* to[p][d][16]: keys of the caller's layout, lanes [from, end) of a block; other lanes of the
   panels that these touch become +0. pairs: d counts pairs of dims; one transpose then moves 32. */
LATTN_INLINE_ void lattn_pack_body_(int pairs, float *to, const void *k, int type, int64_t index,
                                    int64_t stride, int64_t dim, int from, int end) {
  const int64_t steps = pairs ? lattn_steps_(LATTN_PAIRS_, dim) : dim;
  lattn_v16_ x[LATTN_PANEL_];
  for (int p = from / 16; p * 16 < end; p++)
    for (int64_t d = 0; d < steps; d += 16) {
      int n = steps - d < 16 ? (int)(steps - d) : 16;
      int left = pairs && dim - 2 * d < 32 ? (int)(dim - 2 * d) : 32;
      float *out = to + (p * steps + d) * LATTN_PANEL_;
#define LATTN_BODY_(T)                                                                             \
  if (p * 16 >= from && p * 16 + 16 <= end && (pairs ? left == 32 : n == 16))                      \
    LATTN_UNROLL_                                                                                  \
    for (int t = 0; t < 16; t++) {                                                                 \
      int64_t at = (index + p * 16 + t) * stride;                                                  \
      x[t] = pairs ? lattn_v_get_pairs_(k, T, at + 2 * d, 32) : lattn_v_get_(k, T, at + d);        \
    }                                                                                              \
  else                                                                                             \
    for (int t = 0; t < 16; t++) {                                                                 \
      int64_t at = (index + p * 16 + t) * stride;                                                  \
      x[t] = p * 16 + t < from || p * 16 + t >= end ? lattn_v_set_(0)                              \
             : pairs ? lattn_v_get_pairs_(k, T, at + 2 * d, left)                                  \
                     : lattn_v_get_n_(k, T, at + d, n);                                            \
    }
      LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
      lattn_v_transpose_(x);
      for (int i = 0; i < n; i++) lattn_v_store_(out + i * LATTN_PANEL_, x[i]);
    }
}
LATTN_NOINLINE_ void lattn_pack_keys_(float *to, const void *k, int type, int64_t index,
                                      int64_t stride, int64_t dim, int from, int end) {
  lattn_pack_body_(0, to, k, type, index, stride, dim, from, end);
}
LATTN_NOINLINE_ void lattn_pack_key_pairs_(float *to, const void *k, int type, int64_t index,
                                           int64_t stride, int64_t dim, int from, int end) {
  lattn_pack_body_(1, to, k, type, index, stride, dim, from, end);
}

/* to[j / 2][column]: rows [from, end), `stride` apart, of `dim` columns, in pairs: the partner of a
   row outside is 0, and so are columns up to a multiple of 16. A panel is dims as rows. */
LATTN_NOINLINE_ void lattn_pair_rows_(float *to, const void *rows, int type, int64_t at,
                                      int64_t stride, int64_t dim, int from, int end) {
  const int64_t columns = (dim + 15) / 16 * 16;
  lattn_v16_ zero = lattn_v_set_(0);
#define LATTN_BODY_(T)                                                                         \
  for (int64_t j = from / 2 * 2; j < end; j += 2)                                              \
    for (int64_t c = 0, n = 16; c < dim; c += 16) {                                            \
      if (dim - c < 16) n = dim - c;                                                           \
      lattn_v_store_(                                                                          \
          to + j / 2 * columns + c,                                                            \
          lattn_v_pair_(                                                                       \
              j < from ? zero : lattn_v_get_n_(rows, T, at + j * stride + c, (int)n),          \
              j + 1 < end ? lattn_v_get_n_(rows, T, at + (j + 1) * stride + c, (int)n) : zero)); \
    }
  LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
}

/* A row of n floats as pairs, in its place. */
LATTN_FN_ void lattn_pair_in_place_(float *row, int64_t n) {
  for (int64_t i = 0; i < n; i += 32) {
    int left = n - i < 32 ? (int)(n - i) : 32;
    lattn_v_store_n_(row + i / 2, lattn_v_get_pairs_(row, LATTN_F32, i, left), (left + 1) / 2);
  }
}

/* Widens n adjacent elements (rows of panels, or one row of values padded to full vectors with
   +0). */
LATTN_NOINLINE_ void lattn_widen_(float *to, const void *from, int type, int64_t at, int64_t n) {
#define LATTN_BODY_(T)                                                            \
  for (int64_t i = 0; i < n; i += 16)                                             \
  lattn_v_store_(to + i, lattn_v_get_n_(from, T, at + i, n - i < 16 ? (int)(n - i) : 16))
  LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
}

/* Whether any of n_keys value rows holds infinity or NaN. */
LATTN_NOINLINE_ int lattn_values_nonfinite_(const void *v, int type, int64_t at, int64_t stride,
                                            int n_keys, int64_t dim) {
  uint32_t bits = 0;
  for (int j = 0; j < n_keys; j++, at += stride) {
#define LATTN_BODY_(T)                  \
  for (int64_t c = 0; c < dim; c += 16) \
  bits |= lattn_v_nonfinite_(lattn_v_get_n_(v, T, at + c, dim - c < 16 ? (int)(dim - c) : 16))
    LATTN_EACH_TYPE_(type, LATTN_BODY_)
#undef LATTN_BODY_
  }
  return bits != 0;
}

/* s[0..127]: the weights w, and their sum by the fixed tree: ((p0+p1)+(p2+p3))+((p4+p5)+(p6+p7)),
   whose lanes the caller adds. */
LATTN_INLINE_ lattn_v16_ lattn_keep_weights_(float *s, lattn_v16_ w[8]) {
  LATTN_UNROLL_
  for (int p = 0; p < 8; p++) lattn_v_store_(s + 16 * p, w[p]);
  w[0] = lattn_v_add_(lattn_v_add_(w[0], w[1]), lattn_v_add_(w[2], w[3]));
  w[4] = lattn_v_add_(lattn_v_add_(w[4], w[5]), lattn_v_add_(w[6], w[7]));
  return lattn_v_add_(w[0], w[4]);
}

/* s[0..127]: exp(s - m), and their sum. x - x is 0 for infinities too: only m = +infinity can meet
   an equal infinite score. */
LATTN_NOINLINE_ lattn_v16_ lattn_weights_(float *s, float maximum) {
  lattn_v16_ m = lattn_v_set_(maximum), w[8];
  if (lattn_bits_(maximum) == 0x7f800000u) {
    for (int p = 0; p < 8; p++) {
      lattn_v16_ x = lattn_v_load_(s + 16 * p);
      w[p] = lattn_v_exp_(lattn_v_if_equal_(x, m, lattn_v_set_(0), lattn_v_sub_(x, m)));
    }
  } else {
    LATTN_UNROLL_
    for (int p = 0; p < 8; p++) w[p] = lattn_v_sub_(lattn_v_load_(s + 16 * p), m);
    LATTN_UNROLL_
    for (int p = 0; p < 8; p += LATTN_EXPS_) lattn_v_exps_(w + p, LATTN_EXPS_);
  }
  return lattn_keep_weights_(s, w);
}

/* s[0..127]: sigmoid(s + bias), and their sum, of which only whether it is NaN counts. */
LATTN_NOINLINE_ lattn_v16_ lattn_sigmoid_weights_(float *s, float bias) {
  lattn_v16_ b = lattn_v_set_(bias), w[8];
  LATTN_UNROLL_
  for (int p = 0; p < 8; p++) w[p] = lattn_v_add_(lattn_v_load_(s + 16 * p), b);
  LATTN_UNROLL_
  for (int p = 0; p < 8; p += LATTN_EXPS_) lattn_v_sigmoids_(w + p, LATTN_EXPS_);
  return lattn_keep_weights_(s, w);
}

/* Weights of a row as pairs, in their place. Returns sums of the rounded ones, to be reduced:
   outputs are then means with weights that sum to 1, and what values have in common is not off by
   what weights lost. */
LATTN_FN_ lattn_v16_ lattn_pair_weights_(float *s) {
  lattn_v16_ one = lattn_v_pair_(lattn_v_set_(1), lattn_v_set_(1)), x, sum[4];
  LATTN_UNROLL_
  for (int i = 0; i < 4; i++) {
    x = lattn_v_pair_row_(lattn_v_load_(s + 32 * i), lattn_v_load_(s + 32 * i + 16));
    lattn_v_store_(s + 16 * i, x);
    sum[i] = lattn_v_dot_(x, one, lattn_v_set_(0));
  }
  return lattn_v_add_(lattn_v_add_(sum[0], sum[1]), lattn_v_add_(sum[2], sum[3]));
}

/* Whether any element of a pair of those columns is not finite. */
LATTN_NOINLINE_ int lattn_pairs_nonfinite_(const float *v, int64_t n) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < n; i += 16) {
    lattn_v16_ x = lattn_v_load_(v + i);
    bits |= lattn_v_nonfinite_(lattn_v_half_(x, 0)) | lattn_v_nonfinite_(lattn_v_half_(x, 1));
  }
  return bits != 0;
}

/* Merge of two partials of one row (DESIGN 3): the one with the larger maximum leads, B on a tie
   or NaN; e = exp(m_S - m_L); acc = fma(acc_S, e, acc_L), the sum likewise. Into A's place. An
   empty side is the identity. `columns` is a multiple of 16. */
LATTN_FN_ void lattn_merge_row_(float *m_a, float *l_a, float *acc_a, float m_b, float l_b,
                                const float *acc_b, int64_t columns) {
  int a_leads;
  float e;
  lattn_v16_ x;
  if (lattn_is_empty_(m_b)) return;
  if (lattn_is_empty_(*m_a)) {
    *m_a = m_b;
    *l_a = l_b;
    LATTN_MEMCPY_(acc_a, acc_b, (size_t)columns * sizeof *acc_a);
    return;
  }
  a_leads = *m_a > m_b;
  e = a_leads ? m_b - *m_a : *m_a == m_b ? 0.0f : *m_a - m_b;
  e = lattn_exp_(e);
  x = lattn_v_set_(e);
  if (a_leads) {
    *l_a = lattn_fma_(l_b, e, *l_a);
    for (int64_t c = 0; c < columns; c += 16)
      lattn_v_store_(acc_a + c,
                     lattn_v_fma_(lattn_v_load_(acc_b + c), x, lattn_v_load_(acc_a + c)));
  } else {
    *l_a = lattn_fma_(*l_a, e, l_b);
    for (int64_t c = 0; c < columns; c += 16)
      lattn_v_store_(acc_a + c,
                     lattn_v_fma_(lattn_v_load_(acc_a + c), x, lattn_v_load_(acc_b + c)));
    *m_a = m_b;
  }
}

/* Height of the least subtree of the segment tree that holds both segments: 0 when equal. In a
   list of partials in order, the neighbours A, B are merged before C comes iff height(A, B) <
   height(B, C). */
LATTN_FN_ int lattn_height_(int64_t a, int64_t b) {
  int h = 0;
  for (uint64_t x = (uint64_t)a ^ (uint64_t)b; x; x >>= 1) h++;
  return h;
}

/* ==== §6 attend ==================================================================================
   A call becomes a job: its keys lie in the caller's arrays or in a cache. The job is cut into
   items (sequence, KV head, block of rows), each item into units (aligned runs of segments) when
   there are fewer items than threads could use; workers take units in turn. A unit folds its
   blocks into one partial a row; an item of one unit is finished on the spot, the others'
   partials are folded by the caller's thread, through the same tree. Cost: rows * keys * (dk +
   dv) multiply-adds; keys packed (or widened) once per block of rows. */

enum {
  LATTN_MAX_ROWS_ = 768,     /* rows of an item at most: amortises packing (192: -6 %, 384: -2 %) */
  LATTN_FEW_ROWS_ = 12,      /* up to so many rows, 16-bit cache pages are widened in the kernel
                                instead */
  /* Partials of a worker. Before leaf n of the segment tree comes, those before it are in at most
     popcount(n - 1) + 1 subtrees (merges wait for the next leaf): below 2^20 segments, the last
     leaf included, never more than 21. */
  LATTN_MAX_DEPTH_ = 21,
  LATTN_STACK_KEY_DIM_ = 256,
  LATTN_STACK_VALUE_DIM_ = 160,
  /* Workspace of a task without scratch: two queries, scores, partials, and one row's record. */
  LATTN_STACK_BYTES_ = 4 * (2 * LATTN_STACK_KEY_DIM_ + LATTN_BLOCK_ +
                            LATTN_MAX_DEPTH_ * (2 + LATTN_STACK_VALUE_DIM_)) + 64,
  LATTN_STACK_TOP_ = 256,    /* chosen keys of a row without scratch */
  LATTN_MAX_PAIRS_ = 512,    /* rotary pairs */
  LATTN_MAX_STRUCT_ = 4096,  /* bytes of a caller's struct: more is not a size but garbage */
  LATTN_PASS_ROWS_ = 512     /* tokens of q whose angles are kept at a time */
};
#define LATTN_MAX_POSITION_ ((int64_t)1 << 31)

/* ---- faults, struct sizes, views ---- */

LATTN_FN_ lattn_status lattn_fail_(lattn_fault *fault, lattn_status status, const char *argument) {
  if (fault) {
    fault->status = status;
    fault->zero = 0;
    fault->argument = argument;
  }
  return status;
}

/* Bytes of structs in their first version, where they have grown. */
enum {
  LATTN_FIRST_ATTN_ = offsetof(lattn_attn, sigmoid_bias),
  LATTN_FIRST_CONFIG_ = offsetof(lattn_cache_config, weighting),
  LATTN_FIRST_HEAD_ = offsetof(lattn_head, mark),
  LATTN_FIRST_CALL_ = offsetof(lattn_call, lost_bound)
};

/* Copies a caller's struct of any version into ours: what it lacks is zero, what we do not know
   must be. (Never inlined: gcc 12 would see a struct of ours, and warn of the bytes behind it.) */
LATTN_NOINLINE_ lattn_status lattn_import_(void *own, size_t own_bytes, size_t first_bytes,
                                           const void *from) {
  uint32_t size;
  LATTN_MEMSET_(own, 0, own_bytes);
  if (!from) return LATTN_OK;
  LATTN_MEMCPY_(&size, from, sizeof size);
  if (size < first_bytes || size % 4 || size > LATTN_MAX_STRUCT_) return LATTN_E_SIZE;
  for (size_t i = own_bytes; i < size; i++)
    if (((const unsigned char *)from)[i]) return LATTN_E_FIELD;
  LATTN_MEMCPY_(own, from, size < own_bytes ? size : own_bytes);
  return LATTN_OK;
}

/* The names of a tensor argument and its fields, for faults. */
typedef struct lattn_names_ {
  char whole[20], data[24], type[24], zero[24], tokens[24], heads[24], dim[20], token[28], head[28];
} lattn_names_;
#define LATTN_NAMES_(t)                                                                       \
  {                                                                                           \
    t, t ".data", t ".type", t ".zero", t ".n_tokens", t ".n_heads", t ".dim",                \
        t ".stride_token", t ".stride_head"                                                   \
  }

LATTN_FN_ int64_t lattn_min_(int64_t a, int64_t b) { return a < b ? a : b; }
LATTN_FN_ int64_t lattn_max_(int64_t a, int64_t b) { return a > b ? a : b; }
LATTN_FN_ uint64_t lattn_round64_(uint64_t n) { return (n + 63) / 64 * 64; }
LATTN_FN_ size_t lattn_type_size_(int32_t type) { return type == LATTN_F32 ? 4 : 2; }

/* a * b, or -1 beyond PTRDIFF_MAX / 8 (so that a count of elements is a count of bytes too). */
LATTN_FN_ int64_t lattn_times_(int64_t a, int64_t b) {
  const int64_t most = (int64_t)(SIZE_MAX / 16);
  if (a < 0 || b < 0 || (b && a > most / b)) return -1;
  return a * b;
}

LATTN_FN_ int64_t lattn_plus_(int64_t a, int64_t b) {
  const int64_t most = (int64_t)(SIZE_MAX / 16);
  return a < 0 || b < 0 || a > most - b ? -1 : a + b;
}

/* Elements from the first to one past the last of a normalised view; -1: too many. */
LATTN_FN_ int64_t lattn_extent_(const lattn_tensor *t) {
  int64_t n;
  if (t->n_tokens == 0) return 0;
  n = lattn_plus_(lattn_times_(t->n_tokens - 1, t->stride_token),
                  lattn_times_(t->n_heads - 1, t->stride_head));
  return lattn_plus_(n, t->dim);
}

/* Checks a view and makes it explicit: type set, strides set, broadcast = stride 0. */
LATTN_FN_ lattn_status lattn_view_(lattn_tensor *t, int is_output, int needs_data,
                                   const lattn_names_ *name, lattn_fault *fault) {
  if (t->type == 0) t->type = LATTN_F32;
  if (t->type < LATTN_F32 || t->type > LATTN_BF16)
    return lattn_fail_(fault, LATTN_E_TYPE, name->type);
  if (t->zero) return lattn_fail_(fault, LATTN_E_FIELD, name->zero);
  if (t->n_tokens < 0) return lattn_fail_(fault, LATTN_E_SHAPE, name->tokens);
  if (t->n_heads < 1) return lattn_fail_(fault, LATTN_E_SHAPE, name->heads);
  if (t->dim < 1) return lattn_fail_(fault, LATTN_E_SHAPE, name->dim);
  if (t->n_tokens >= LATTN_MAX_POSITION_) return lattn_fail_(fault, LATTN_E_OVERFLOW, name->tokens);
  if (t->n_heads >= LATTN_MAX_POSITION_) return lattn_fail_(fault, LATTN_E_OVERFLOW, name->heads);
  if (t->dim >= LATTN_MAX_POSITION_) return lattn_fail_(fault, LATTN_E_OVERFLOW, name->dim);
  if (t->stride_head < 0 || (is_output && t->stride_head == LATTN_BROADCAST))
    return lattn_fail_(fault, LATTN_E_STRIDE, name->head);
  if (t->stride_token < 0 || (is_output && t->stride_token == LATTN_BROADCAST))
    return lattn_fail_(fault, LATTN_E_STRIDE, name->token);
  if (t->stride_head == 0) t->stride_head = t->dim;
  if (t->stride_token == 0) {
    t->stride_token = t->stride_head == LATTN_BROADCAST ? t->dim
                                                        : lattn_times_(t->n_heads, t->stride_head);
    if (t->stride_token < 0) return lattn_fail_(fault, LATTN_E_OVERFLOW, name->whole);
  }
  if (t->stride_head == LATTN_BROADCAST) t->stride_head = 0;
  if (t->stride_token == LATTN_BROADCAST) t->stride_token = 0;
  if (lattn_extent_(t) < 0) return lattn_fail_(fault, LATTN_E_OVERFLOW, name->whole);
  if (is_output && t->n_tokens > 0) { /* token-major or head-major without overlap */
    int64_t tokens = t->n_tokens > 1 ? t->stride_token : INT64_MAX;
    int64_t heads = t->n_heads > 1 ? t->stride_head : INT64_MAX;
    int64_t row = (t->n_heads - 1) * t->stride_head + t->dim;
    int64_t column = (t->n_tokens - 1) * t->stride_token + t->dim;
    if (!(heads >= t->dim && tokens >= row) && !(tokens >= t->dim && heads >= column))
      return lattn_fail_(fault, LATTN_E_STRIDE, name->token);
  }
  if (needs_data && !t->data && t->n_tokens > 0)
    return lattn_fail_(fault, LATTN_E_NULL, name->data);
  return LATTN_OK;
}

/* Rows of len_a and len_b bytes that both repeat every `stride` bytes, the second `off` after
   the first: do they never touch? */
LATTN_FN_ int lattn_interleave_(uint64_t stride, uint64_t len_a, uint64_t len_b, uint64_t off) {
  return stride > 0 && off % stride >= len_a && off % stride + len_b <= stride;
}

/* Do two views share an element? Exact for views that interleave within the same token or head
   stride (a fused q-k-v buffer); otherwise by their spans. */
LATTN_FN_ int lattn_overlap_(const lattn_tensor *one, const lattn_tensor *two) {
  int first = (uintptr_t)one->data <= (uintptr_t)two->data;
  const lattn_tensor *a = first ? one : two, *b = first ? two : one;
  uint64_t at_a = (uintptr_t)a->data, at_b = (uintptr_t)b->data;
  uint64_t size_a = lattn_type_size_(a->type), size_b = lattn_type_size_(b->type);
  uint64_t span_a = (uint64_t)lattn_extent_(a) * size_a;
  uint64_t span_b = (uint64_t)lattn_extent_(b) * size_b;
  uint64_t token_a = (uint64_t)a->stride_token * size_a;
  uint64_t token_b = (uint64_t)b->stride_token * size_b;
  uint64_t head_a = (uint64_t)a->stride_head * size_a, head_b = (uint64_t)b->stride_head * size_b;
  uint64_t row_a, row_b, column_a, column_b;
  if (!a->data || !b->data || !span_a || !span_b) return 0;
  if (at_a + span_a <= at_b) return 0;
  row_a = (uint64_t)(a->n_heads - 1) * head_a + (uint64_t)a->dim * size_a;
  row_b = (uint64_t)(b->n_heads - 1) * head_b + (uint64_t)b->dim * size_b;
  column_a = (uint64_t)(a->n_tokens - 1) * token_a + (uint64_t)a->dim * size_a;
  column_b = (uint64_t)(b->n_tokens - 1) * token_b + (uint64_t)b->dim * size_b;
  if (token_a == token_b && lattn_interleave_(token_a, row_a, row_b, at_b - at_a)) return 0;
  return !(head_a == head_b && lattn_interleave_(head_a, column_a, column_b, at_b - at_a));
}

LATTN_FN_ int lattn_same_view_(const lattn_tensor *a, const lattn_tensor *b) {
  return a->data == b->data && lattn_type_size_(a->type) == lattn_type_size_(b->type) &&
         (a->n_tokens <= 1 || a->stride_token == b->stride_token) &&
         (a->n_heads <= 1 || a->stride_head == b->stride_head) && a->dim == b->dim;
}

/* ---- what a cache's tables say (§7 fills them) ----
   A slot is where a token is stored, a position what the user counts: equal until tokens are
   removed. Blocks, ranges of rows and the tree count slots. */

/* How a KV head's pages store keys and values: for each of its key heads (a bundle has several)
   panels of 16 keys, then for each value head rows of values and, of LATTN_I8, the rows' scales. A
   basis is the size of a Hadamard transform, 0 = none. */
typedef struct lattn_storage_ {
  int32_t key_type, value_type, key_basis, value_basis;
  int32_t page_size, zero; /* index into the pool's sizes */
  int64_t panel_bytes, row_bytes;
  int64_t value_at, page_bytes; /* of a page */
  int64_t draft_value_at, draft_scales_at, draft_bytes; /* of a draft area */
  int64_t key_stride, value_stride; /* bytes from one of its heads to the next */
  int64_t draft_key_stride, draft_value_stride;
  int64_t n_keys, n_values; /* its heads */
} lattn_storage_;

/* Of heads whose tokens are chosen at a mark; all 0 for others. Offsets are from the cache. */
typedef struct lattn_chosen_ {
  int64_t budget, recent; /* tokens kept; of them the newest, whatever they score */
  int32_t kernel, flags;
  double floor_alpha;
  int64_t list, most_kept; /* offset of uint32_t positions [most_kept] */
  int64_t queries;         /* SNAP: offset of floats [n_queries][group][dk], not rotated: of */
  int64_t n_queries;       /*   position p in row p % n_queries */
  int64_t draft_queries;   /* [max_drafts][group][dk]: of draft tokens */
  int64_t mass;            /* HEAVY: offset of doubles [capacity], of slots */
  int64_t seen_from;       /* positions from there on brought their queries */
} lattn_chosen_;

typedef struct lattn_rule_ {
  lattn_storage_ s;
  int64_t sinks, window, slack; /* window 0: full head, or until its mark */
  int32_t policy, in_cache;
  int32_t mark, flags; /* enum lattn_mark that it waits for, enum lattn_head_flags */
  int64_t marked;      /* position of the first row behind the mark; 0: without; -1: not yet */
  int64_t next_window, divisor, next_in_cache; /* what they become at the mark */
  int64_t sums;        /* offset of two prefixes (lattn_sums_) from the cache; 0: none */
  int64_t sums_bytes;  /* of one */
  int64_t pages;       /* offset of uint32_t numbers of pages from the cache */
  int64_t sink_blocks; /* blocks [0, sink_blocks) have their own entries, block b >= that */
  int64_t ring;        /*   entry sink_blocks + (b less the blocks gone before it) % ring */
  int64_t first_block; /* blocks [first_block, end) are held besides the sink blocks */
  int64_t drafts;      /* offset of the draft area from the cache */
  /* Of a head that dropped tokens at a mark: its slots [0, kept) hold the positions of its list, a
     slot behind them holds position slot + shift. Both are 0 before. */
  int64_t kept, shift;
  lattn_chosen_ c;
} lattn_rule_;

/* Sums over tokens that left a head's window, in double, in token order: no cut of calls changes
   them. Of keys and values as stored, in their basis. */
typedef struct lattn_sums_ {
  int64_t *to;         /* tokens [sinks, *to) are in it */
  double *longest;     /* the largest sum of squares of a key */
  double *k, *v, *squares; /* v and squares of k: NULL where not wanted */
  float *least, *most; /* of each dim of the keys; likewise */
} lattn_sums_;

/* Where the scales of a page's or draft area's values are, in bytes from the values on. */
LATTN_FN_ int64_t lattn_scales_at_(const lattn_storage_ *s, int64_t rows) {
  return rows * s->row_bytes;
}

LATTN_FN_ const lattn_rule_ *lattn_cache_rule_(const lattn_cache *cache, int32_t kv_head);
LATTN_FN_ const char *lattn_cache_page_(const lattn_cache *cache, int32_t kv_head, int64_t block);
LATTN_FN_ int lattn_has_holes_(const lattn_cache *cache);
/* The slot of a position; tokens removed before a slot; whether the slot is in a hole, which then
   ends at *end, or else when the next one begins. */
LATTN_FN_ int64_t lattn_slot_of_(const lattn_cache *cache, int64_t position);
LATTN_FN_ int64_t lattn_removed_before_(const lattn_cache *cache, int64_t slot);
LATTN_FN_ int lattn_in_hole_(const lattn_cache *cache, int64_t slot, int64_t *end);
LATTN_FN_ int lattn_is_gone_(const lattn_cache *cache, int64_t block); /* wholly in a hole */
/* No hole among the n slots from there on. */
LATTN_FN_ int lattn_adjacent_(const lattn_cache *cache, int64_t slot, int64_t n);
/* Of the head's first n pages, how many both caches, without holes, hold in common. */
LATTN_FN_ int64_t lattn_common_pages_(const lattn_cache *a, const lattn_cache *b, int32_t kv_head,
                                      int64_t n);
/* Slots below it have pages, of that head. */
LATTN_FN_ int64_t lattn_head_slots_(const lattn_cache *cache, const lattn_rule_ *rule);
/* The position of a slot of a head, without holes. */
LATTN_FN_ int64_t lattn_slot_position_(const lattn_cache *cache, const lattn_rule_ *rule,
                                       int64_t slot);
LATTN_FN_ int lattn_draft_number_(const lattn_cache *cache, const uint8_t *depth);
LATTN_FN_ int lattn_draft_depth_(const lattn_cache *cache, int number);
LATTN_FN_ int lattn_draft_parent_(const lattn_cache *cache, int number);
LATTN_FN_ const char *lattn_draft_keys_(const lattn_cache *cache, int32_t kv_head);

/* One sequence of a call on caches. */
typedef struct lattn_seq_ {
  const lattn_cache *cache;
  int64_t q0, nq;       /* its rows of q */
  int64_t first;        /* position of the first (of drafts: of those of depth 0) */
  int64_t n_keys;       /* positions below it may be seen */
  const uint8_t *depth; /* NULL, or the depths of the rows' draft tokens */
  int64_t shared;       /* the first segments of its full heads, which its group reads together */
  int64_t group_token;  /* number of its first row of the pass among the groups' */
  int32_t leader, next; /* of its group: the first sequence, and the next after this; -1 none */
} lattn_seq_;

/* Rotation of a cache's keys and queries. */
typedef struct lattn_turning_ {
  int32_t layout, first_dim, n_dims;
  float magnitude;
  const uint64_t *turns; /* NULL: none */
} lattn_turning_;

/* Of one position: angles gets [n_dims / 2] cosines, then as many sines; they then turn rows.
   §12. */
LATTN_FN_ void lattn_angles_(float *angles, const lattn_turning_ *r, int64_t position);
LATTN_FN_ void lattn_turn_(float *row, const float *angles, const lattn_turning_ *r);
LATTN_FN_ void lattn_turn_pair_(float *x, float *y, float cosine, float sine);
LATTN_FN_ void lattn_turn_at_(float *row, float *angles, const lattn_turning_ *r, int64_t position,
                              int64_t *at);
LATTN_FN_ lattn_status lattn_check_rotary_(const lattn_rotary *r, int64_t dim, lattn_fault *fault);

/* ---- the job ---- */

/* Some of the keys that a row sees: what the profiler takes apart. */
enum {
  LATTN_KEPT_ = 1,  /* those that a streaming head would keep: j < sinks or position - j < window */
  LATTN_LOST_ = 2,  /* the others */
  LATTN_IN_ = 3,    /* those whose column is marked, of the row's head */
  LATTN_OUT_ = 4    /* the others */
};
typedef struct lattn_part_ {
  int kind;
  int64_t sinks, window;
  const uint8_t *marks; /* [query heads][stride], by key */
  int64_t stride;
} lattn_part_;

typedef struct lattn_job_ {
  lattn_attn o;          /* options; of a cache, those that its config and call give */
  lattn_tensor q, k, v, out, key_bias, pair_bias, gate;
  float *lse;
  lattn_partial *partial;
  const lattn_seq_ *seqs;   /* NULL: keys are k and v; else in caches, o.n_sequences of them */
  const lattn_weights *weights; /* NULL, or these are wanted, and no output */
  const lattn_weights *chosen;  /* NULL, or its rows and heads are the job's */
  lattn_seq_ *own_seqs;     /* room in scratch for all that the call has; NULL: one at a time */
  float *grouped;           /* partials of the rows of groups; NULL: none */
  int64_t most_grouped;     /* tokens that it has room for */
  int32_t first_sequence;   /* the caller's index of seqs[0] */
  int32_t of_caches;
  size_t seqs_at;           /* in scratch */
  lattn_turning_ turning;
  int64_t dk, dv, columns;  /* columns: dv up to a multiple of 16 */
  int64_t group;            /* query heads of a KV head */
  int32_t n_kv;
  int32_t n_keys, n_values; /* key heads and value heads of a KV head, if it is a bundle; else 1 */
  float scale;
  int plain;                /* scores are used as they are: no softcap, ALiBi, bias, callback */
  int64_t top;              /* keys whose values a row takes; 0 = all */
  int64_t from_token, to_token; /* rows of this pass */
  int64_t rows;             /* rows of an item at most */
  int depth;                /* slots of a worker */
  int log_run;              /* a unit is 2^log_run segments; 62: everything */
  int32_t n_workers;
  char *scratch;            /* NULL: workers use their stack */
  size_t worker_bytes, keys_at; /* of a worker; its packed keys, which an append borrows */
  float *split;             /* partials of items of several units */
  float *angles;            /* NULL, or of the tokens of this pass: [LATTN_PASS_ROWS_][n_dims] */
  float *lost_bound, *lost_estimate;
  int64_t sums_bytes;       /* of the largest sums that a head keeps; 0: none does */
  int32_t stopped;          /* the progress callback said so */
  int32_t next, overflowed; /* the only members that workers change */
} lattn_job_;

/* One row of an item: its keys are [lo, hi) and [sink_lo, sink_hi), absolute (of a cache: slots,
   less the holes), apart from each other. */
typedef struct lattn_row_ {
  int64_t token;    /* of q */
  int64_t position; /* for ALiBi, windows, callbacks */
  int64_t lo, hi, sink_lo, sink_hi;
  int32_t head, sequence;
  float extra, zero; /* score of the extra key */
} lattn_row_;

/* One item: rows [row, row + rows) of a sequence and KV head; row r is query r / group, head r %
   group. (A worker has those of a bundle in another order: lattn_row_after_.) */
typedef struct lattn_item_ {
  int64_t sequence, q0, nq, k0, nk, query_position, key_position; /* of the sequence */
  const lattn_cache *cache;         /* NULL: keys are arrays */
  const uint8_t *depth;             /* NULL, or of the sequence's rows, which are drafts */
  int64_t first_segment;            /* those before it are read with others' rows */
  int64_t blocks, block_rows;       /* of the sequence and head */
  int64_t block, row, rows;
  int32_t kv, started;
  int64_t lo, hi, sink_lo, sink_hi; /* unions over its rows */
  int64_t run[2], run_end[2];       /* runs of segments that hold its keys: [run, run_end) twice */
  int64_t units, first_unit, slot;  /* slot: of its first unit in shared, if units > 1 */
  int of_group;                     /* rows of all sequences of the group that `sequence` leads */
  const lattn_part_ *part;          /* NULL, or only these of the visible keys are seen */
} lattn_item_;

/* Partials of all rows of an item: what a segment, or a subtree of segments, came to. */
typedef struct lattn_slot_ {
  float *m, *l, *acc;
} lattn_slot_;

/* The chosen keys of a row: their scores and slots follow, at first as a heap whose root is the
   next to go, then in order of slots. */
typedef struct lattn_pick_ {
  float score;
  uint32_t slot;
} lattn_pick_;
typedef struct lattn_picks_ {
  int32_t n, at;
  float m, l; /* maximum and sum of all keys */
} lattn_picks_;

/* A worker's memory. */
typedef struct lattn_space_ {
  lattn_row_ *rows;
  float *q, *q_other; /* queries, rotated at their slots, scaled; those that score another zone */
  float *s;          /* scores, then weights: [6][128] */
  float *keys, *values; /* two prepared blocks, used in turn; NULL on the stack */
  int side;             /* of the block in use: 0 or 1 */
  int ahead_end;        /* panels of the other side before it are prepared ... */
  int64_t ahead;        /* ... for the block at this slot; -1: none */
  float *angles;
  char *dropped; /* room for lattn_dropped_: sums, a query, means, a row; NULL: behind slot 0 */
  float *slots;
  size_t slot_floats;
  int64_t n_rows, columns;
  int32_t stack[LATTN_MAX_DEPTH_];
  int64_t leaf[LATTN_MAX_DEPTH_];
  int n_stack;
  uint32_t used; /* bit i: slot i is on the stack */
  int64_t own, other; /* zones (lattn_zone_) of the rows' own slots, and of q_other; -2: none */
  int sinks_differ;
  char *picks;      /* of each row, if the job has a top */
  size_t picks_bytes;
  int picking;       /* rows choose keys, and take no values yet */
} lattn_space_;

LATTN_FN_ size_t lattn_slot_floats_(int64_t rows, int64_t columns) {
  return (size_t)(rows * columns + 2 * ((rows + 15) / 16 * 16));
}

LATTN_FN_ lattn_slot_ lattn_slot_at_(float *base, int64_t rows) {
  lattn_slot_ s;
  int64_t padded = (rows + 15) / 16 * 16;
  s.m = base;
  s.l = base + padded;
  s.acc = base + 2 * padded;
  return s;
}

/* Floats that hold a key or value, as it is read to be summed: integers whole, others in pieces. */
LATTN_FN_ int64_t lattn_sums_row_(int64_t dk, int64_t dv) {
  return lattn_up_(lattn_min_(lattn_max_(dk, dv), LATTN_MAX_STACK_DIM_), 16);
}

/* Bytes of lattn_dropped_. */
LATTN_FN_ size_t lattn_dropped_bytes_(const lattn_job_ *job) {
  return (size_t)(job->sums_bytes + 4 * (2 * lattn_up_(job->dk, 16) + job->columns +
                                         lattn_sums_row_(job->dk, job->dv)));
}

/* Of the choices of a row. */
LATTN_FN_ size_t lattn_picks_bytes_(int64_t top) {
  return sizeof(lattn_picks_) + (size_t)top * sizeof(lattn_pick_);
}

/* Carves a worker's memory from p (NULL: only counts). Every part a multiple of 64 bytes but on
   the stack. */
LATTN_FN_ size_t lattn_carve_(lattn_space_ *sp, char *p, const lattn_job_ *job, size_t *keys_at) {
  size_t at = 0, unit = job->scratch || !p ? 64 : 8, part[10];
  int64_t tile = job->rows < LATTN_TILE_ROWS_ ? job->rows : (int64_t)LATTN_TILE_ROWS_;
  int packs = job->scratch || !p;
  size_t slot = lattn_slot_floats_(job->rows, job->columns);
  if (!packs) slot = (size_t)(2 + job->columns); /* one row: no padding */
  part[0] = (size_t)job->rows * sizeof(lattn_row_);
  part[1] = (size_t)(job->rows * job->dk) * sizeof(float);
  part[2] = job->turning.turns ? part[1] : 0;
  part[3] = (size_t)(tile * LATTN_BLOCK_) * sizeof(float);
  part[4] = packs ? (size_t)(2 * LATTN_BLOCK_ * job->dk * job->n_keys) * sizeof(float) : 0;
  part[5] = packs ? (size_t)(2 * LATTN_BLOCK_ * job->columns * job->n_values) * sizeof(float) : 0;
  if (job->top) part[5] = 0;
  part[6] = packs && job->turning.turns ? (size_t)job->turning.n_dims * sizeof(float) : 0;
  part[7] = slot * (size_t)job->depth * sizeof(float);
  part[8] = job->top ? (size_t)job->rows * lattn_picks_bytes_(job->top) : 0;
  part[9] = packs && job->sums_bytes ? lattn_dropped_bytes_(job) : 0;
  if (!packs && job->sums_bytes) { /* sums lie behind slot 0, in the end in the choices' place */
    size_t least = slot * sizeof(float) + lattn_dropped_bytes_(job);
    if (part[7] + part[8] < least) part[8] = least - part[7];
  }
  for (int i = 0; i < 10; i++) {
    size_t next = at + (part[i] + unit - 1) / unit * unit;
    if (i == 4) *keys_at = at;
    if (sp) {
      char *here = p + at;
      if (i == 0) sp->rows = (lattn_row_ *)(void *)here;
      if (i == 1) sp->q = sp->q_other = (float *)(void *)here;
      if (i == 2 && part[2]) sp->q_other = (float *)(void *)here;
      if (i == 3) sp->s = (float *)(void *)here;
      if (i == 4) sp->keys = part[4] ? (float *)(void *)here : 0;
      if (i == 5) sp->values = part[5] ? (float *)(void *)here : 0;
      if (i == 6) sp->angles = part[6] ? (float *)(void *)here : 0;
      if (i == 7) sp->slots = (float *)(void *)here;
      if (i == 8) sp->picks = job->top ? here : 0;
      if (i == 9) sp->dropped = part[9] ? here : 0;
    }
    at = next;
  }
  if (sp) {
    sp->picks_bytes = lattn_picks_bytes_(job->top);
    sp->slot_floats = slot;
    sp->n_rows = packs ? job->rows : 1;
    sp->columns = job->columns;
    sp->n_stack = 0;
    sp->used = 0;
  }
  return at;
}

LATTN_FN_ lattn_slot_ lattn_space_slot_(const lattn_space_ *sp, int i) {
  float *base = sp->slots + (size_t)i * sp->slot_floats;
  if (sp->keys) return lattn_slot_at_(base, sp->n_rows);
  lattn_slot_ s;
  s.m = base;
  s.l = base + 1;
  s.acc = base + 2;
  return s;
}

/* ---- which keys a row sees ---- */

/* Does the window need a test a key (the caller gave the keys' positions)? */
LATTN_FN_ int lattn_by_lane_(const lattn_job_ *job) {
  return job->o.key_positions != 0 && job->o.window > 0;
}

/* Joins the sink range to the window where they touch, so that the two are apart. */
LATTN_FN_ void lattn_row_join_(lattn_row_ *row) {
  if (row->sink_hi <= row->sink_lo) row->sink_lo = row->sink_hi = 0;
  if (row->hi <= row->lo) row->lo = row->hi = row->sink_hi;
  if (row->sink_hi > row->sink_lo && row->sink_hi >= row->lo) {
    row->lo = row->sink_lo;
    row->hi = lattn_max_(row->hi, row->sink_hi);
    row->sink_lo = row->sink_hi = 0;
  }
}

/* The keys of a row of a cache. */
LATTN_FN_ void lattn_row_of_cache_(const lattn_cache *cache, int32_t kv, lattn_row_ *row) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  int64_t slot = lattn_slot_of_(cache, row->position) - rule->shift;
  row->sink_lo = row->sink_hi = row->lo = 0;
  row->hi = slot + 1;
  if (rule->window > 0) {
    row->sink_hi = lattn_min_(slot + 1, rule->sinks);
    row->lo = lattn_slot_of_(cache, lattn_max_(0, row->position - rule->window + 1));
  }
  lattn_row_join_(row);
}

/* Takes keys [from, to) out of the row's, as far as two ranges can say it (of a row with a range
   to spare: always). */
LATTN_FN_ void lattn_row_cut_(lattn_row_ *row, int64_t from, int64_t to) {
  for (int i = 0; i < 2; i++) {
    int64_t *lo = i ? &row->sink_lo : &row->lo, *hi = i ? &row->sink_hi : &row->hi;
    int64_t *other_lo = i ? &row->lo : &row->sink_lo, *other_hi = i ? &row->hi : &row->sink_hi;
    if (*lo >= *hi || *hi <= from || *lo >= to) continue;
    if (*lo >= from) {
      *lo = lattn_min_(to, *hi);
    } else if (*hi <= to) {
      *hi = from;
    } else if (*other_lo >= *other_hi) {
      int64_t end = *hi;
      row->sink_lo = *lo;
      row->sink_hi = from;
      row->lo = to;
      row->hi = end;
      return;
    }
  }
  if (row->sink_lo >= row->sink_hi) row->sink_lo = row->sink_hi = 0;
  if (row->lo >= row->hi) row->lo = row->hi = row->sink_hi;
}

/* The keys of a row at that position that are of the part; marks are looked at key by key. */
LATTN_NOINLINE_ void lattn_row_part_(const lattn_part_ *part, int64_t position, lattn_row_ *row) {
  int64_t middle = position - lattn_min_(part->window, LATTN_MAX_POSITION_) + 1;
  middle = lattn_max_(middle, part->sinks);
  if (part->kind == LATTN_KEPT_ && part->sinks < middle)
    lattn_row_cut_(row, part->sinks, middle);
  if (part->kind != LATTN_LOST_) return;
  lattn_row_cut_(row, 0, part->sinks);
  lattn_row_cut_(row, middle, INT64_MAX);
}

/* Row r of the item's sequence. */
LATTN_FN_ void lattn_row_at_(const lattn_job_ *job, const lattn_item_ *it, int64_t r,
                             lattn_row_ *row) {
  const lattn_attn *o = &job->o;
  int64_t i = r / job->group, from, to;
  row->token = it->q0 + i;
  row->head = it->kv * (int32_t)job->group + (int32_t)(r % job->group);
  row->sequence = (int32_t)it->sequence + job->first_sequence;
  row->position = it->query_position + (it->depth ? it->depth[i] : i);
  if (it->cache) {
    lattn_row_of_cache_(it->cache, it->kv, row);
    return;
  }
  from = it->key_position;
  to = it->key_position + it->nk;
  if (o->mask != LATTN_FULL) to = lattn_min_(to, row->position + 1);
  if (o->visible_from) from = lattn_max_(from, o->visible_from[row->token]);
  if (o->visible_to) to = lattn_min_(to, o->visible_to[row->token]);
  if (o->query_positions) row->position = o->query_positions[row->token];
  row->sink_lo = row->sink_hi = 0;
  row->lo = from;
  row->hi = to;
  if (o->window > 0 && !lattn_by_lane_(job)) {
    row->sink_lo = from;
    row->sink_hi = lattn_min_(to, o->sinks);
    row->lo = lattn_max_(from, row->position - lattn_min_(o->window, LATTN_MAX_POSITION_) + 1);
    row->hi = lattn_min_(to, row->position + lattn_min_(o->ahead, LATTN_MAX_POSITION_) + 1);
  }
  lattn_row_join_(row);
  if (it->part) lattn_row_part_(it->part, it->query_position + i, row);
}

/* Lanes of 16 keys that do not belong to the part. */
LATTN_NOINLINE_ uint32_t lattn_not_of_part_(const lattn_item_ *it, const lattn_row_ *row,
                                            int64_t base) {
  const lattn_part_ *part = it->part;
  int64_t position = it->query_position + (row->token - it->q0);
  uint32_t bits = 0;
  for (int t = 0; t < 16; t++) {
    int64_t key = base + t - it->key_position;
    int kept = base + t < part->sinks || position - (base + t) < part->window;
    if (part->kind >= LATTN_IN_) {
      kept = key >= 0 && key < it->nk && part->marks[row->head * part->stride + it->k0 + key];
      kept = kept == (part->kind == LATTN_IN_);
    } else if (part->kind == LATTN_LOST_) {
      kept = !kept;
    }
    if (!kept) bits |= 1u << t;
  }
  return bits;
}

/* Bit t: the row sees key base + t. holes: some of these slots may be in one, or of another
   part. */
LATTN_FN_ uint32_t lattn_visible16_(const lattn_job_ *job, const lattn_item_ *it,
                                    const lattn_row_ *row, int64_t base, int holes) {
  uint32_t bits = 0;
  for (int i = 0; i < 2; i++) {
    int64_t lo = lattn_max_(0, (i ? row->sink_lo : row->lo) - base);
    int64_t hi = lattn_min_(16, (i ? row->sink_hi : row->hi) - base);
    if (lo < hi) bits |= ((1u << hi) - 1u) & ~((1u << lo) - 1u);
  }
  if (bits && holes && it->part) bits &= ~lattn_not_of_part_(it, row, base);
  if (bits && holes && it->cache)
    for (int t = 0; t < 16; t++)
      if (lattn_in_hole_(it->cache, base + t, 0)) bits &= ~(1u << t);
  if (bits && lattn_by_lane_(job))
    for (int t = 0; t < 16; t++) {
      int64_t distance;
      if (!(bits >> t & 1u) || base + t < job->o.sinks) continue;
      distance = row->position - job->o.key_positions[it->k0 + base + t - it->key_position];
      if (distance >= job->o.window || -distance > job->o.ahead) bits &= ~(1u << t);
    }
  return bits;
}

/* ---- scores: everything between the dot product and the maximum ---- */

/* Where 16 keys stand: their indices in biases, at[t], or -1 for lanes without a key; returns
   whether they are adjacent. */
LATTN_FN_ int lattn_keys16_(const lattn_item_ *it, int64_t base, int64_t at[16]) {
  const lattn_rule_ *rule = it->cache ? lattn_cache_rule_(it->cache, it->kv) : 0;
  int holes = it->cache && !lattn_adjacent_(it->cache, base, LATTN_PANEL_);
  int64_t removed =
      it->cache && lattn_has_holes_(it->cache) ? lattn_removed_before_(it->cache, base) : 0;
  if (rule && rule->kept) {
    for (int t = 0; t < 16; t++) {
      at[t] = lattn_slot_position_(it->cache, rule, base + t);
      if (at[t] >= it->nk) at[t] = -1;
    }
    return 0;
  }
  for (int t = 0; t < 16; t++) {
    int64_t key = base + t - it->key_position - removed;
    if (holes) key = lattn_in_hole_(it->cache, base + t, 0)
                         ? -1
                         : base + t - lattn_removed_before_(it->cache, base + t);
    at[t] = key >= 0 && key < it->nk ? it->k0 + key : -1;
  }
  return !holes && !removed;
}

/* 16 elements of one row of a bias; 0 for lanes without a key. */
LATTN_FN_ lattn_v16_ lattn_bias16_(const lattn_tensor *t, int64_t token, int64_t head,
                                   const int64_t at[16]) {
  float x[16];
  int64_t row = (t->n_tokens > 1 ? token * t->stride_token : 0) +
                (t->n_heads > 1 ? head * t->stride_head : 0);
  for (int i = 0; i < 16; i++)
    x[i] = at[i] >= 0 ? lattn_get_(t->data, t->type, row + at[i]) : 0.0f;
  return lattn_v_load_(x);
}

/* |position - key| of 16 keys as floats; sinks of an in-cache head stand at distance
   min(position, S + W - 1) - key. */
LATTN_FN_ lattn_v16_ lattn_distance16_(const lattn_job_ *job, const lattn_item_ *it,
                                       const lattn_row_ *row, const int64_t at[16]) {
  float x[16];
  const lattn_rule_ *rule = it->cache ? lattn_cache_rule_(it->cache, it->kv) : 0;
  int64_t sinks = rule && rule->in_cache ? rule->sinks : 0;
  for (int t = 0; t < 16; t++) {
    int64_t key = it->key_position + at[t] - it->k0, from = row->position, distance;
    if (at[t] < 0) {
      x[t] = 0;
      continue;
    }
    if (job->o.key_positions) key = job->o.key_positions[at[t]];
    if (key < sinks) from = lattn_min_(from, rule->sinks + rule->window - 1);
    distance = from - key;
    x[t] = (float)(distance < 0 ? -distance : distance);
  }
  return lattn_v_load_(x);
}

/* The score callback. With holes, it is called for each run of adjacent keys. */
LATTN_FN_ lattn_v16_ lattn_call_score_(const lattn_attn *o, const lattn_row_ *row, int64_t base,
                                       const int64_t at[16], int adjacent, lattn_v16_ s) {
  float x[16], y[16];
  lattn_v_store_(x, s);
  if (adjacent) {
    o->score(o->score_user, row->sequence, row->token, row->position, row->head, base, x);
    return lattn_v_load_(x);
  }
  for (int t = 0, end; t < 16; t = end) {
    for (end = t + 1; end < 16 && (at[end] < 0) == (at[t] < 0) && at[end] - end == at[t] - t; end++)
      continue;
    if (at[t] < 0) continue;
    lattn_v_store_(y, s);
    o->score(o->score_user, row->sequence, row->token, row->position, row->head, at[t] - t, y);
    LATTN_MEMCPY_(x + t, y + t, (size_t)(end - t) * sizeof *x);
  }
  return lattn_v_load_(x);
}

LATTN_NOINLINE_ lattn_v16_ lattn_adjust_(const lattn_job_ *job, const lattn_item_ *it,
                                         const lattn_row_ *row, int64_t base, lattn_v16_ s) {
  const lattn_attn *o = &job->o;
  int64_t at[16];
  int adjacent = lattn_keys16_(it, base, at);
  if (lattn_bits_(o->softcap)) {
    lattn_v16_ cap = lattn_v_set_(o->softcap);
    s = lattn_v_mul_(lattn_v_tanh_(lattn_v_div_(s, cap)), cap);
  }
  if (o->alibi_slopes)
    s = lattn_v_fma_(lattn_v_set_(-o->alibi_slopes[row->head]),
                     lattn_distance16_(job, it, row, at), s);
  if (o->key_bias)
    s = lattn_v_add_(s, lattn_bias16_(&job->key_bias, row->sequence, row->head, at));
  if (o->pair_bias)
    s = lattn_v_add_(s, lattn_bias16_(&job->pair_bias, row->token, row->head, at));
  if (o->score) s = lattn_call_score_(o, row, base, at, adjacent, s);
  return s;
}

/* Adjusts and masks the scores of a block (panels [first, end) are computed, the others hidden),
   and returns their maximum: -infinity when the row sees none, or only scores of -infinity; NaN
   if only those and NaN. visible gets the bits of the 8 panels. */
LATTN_FN_ float lattn_mask_row_(const lattn_job_ *job, const lattn_item_ *it, const lattn_row_ *row,
                                int64_t base, int holes, int first, int end, float *s,
                                uint32_t visible[8]) {
  lattn_v16_ least = lattn_v_set_(-LATTN_INFINITY_), top = least;
  float maximum;
  for (int p = 0; p < 8; p++) {
    lattn_v16_ x = least;
    visible[p] = 0;
    if (p >= first && p < end) {
      visible[p] = lattn_visible16_(job, it, row, base + 16 * p, holes);
      x = lattn_v_load_(s + 16 * p);
      if (visible[p] && !job->plain) x = lattn_adjust_(job, it, row, base + 16 * p, x);
      x = lattn_v_if_bits_(visible[p], x, least);
      top = lattn_v_max_(x, top); /* NaN is never greater: it is found by the sum of weights */
    }
    lattn_v_store_(s + 16 * p, x);
  }
  maximum = lattn_v_reduce_max_(top);
  if (lattn_is_empty_(maximum))
    for (int j = 0; j < LATTN_BLOCK_; j++)
      if (lattn_is_nan_(s[j])) return LATTN_NAN_;
  return maximum;
}

/* ---- blocks ---- */

/* Where the keys and values of one block are. */
typedef struct lattn_block_ {
  const void *k, *v;
  int k_type, v_type;
  int64_t panel_bytes; /* of integer keys */
  const char *scales;  /* NULL, or of the values of LATTN_I8 */
  int64_t hints;       /* as ahead, of tiles of LATTN_I8; 0 if they are not to ask for it */
  int64_t k_part, v_part; /* bytes from one key head, or value head, of a bundle to the next */
  int panels;          /* k is in panels; else strided, lane t at (k_index + t) * k_stride */
  int64_t k_index, k_stride;
  int64_t v_index, v_stride; /* value of lane t at (v_index + t) * v_stride */
  int64_t ahead;       /* bytes to where the next block is, for hints; 0 unknown */
  int lo, hi;          /* lanes that any row of the item may see */
  int stored;          /* lanes below it are in k and v, the others are drafts */
  int holes;           /* some of its slots are in one, or of another part */
  int pairs;           /* it is prepared in pairs of bfloat16 */
  int n_other;         /* zones besides the rows' own: 0, 1, 2 = more */
  int64_t other;       /* the one */
  int nonfinite;       /* -1 unknown; whether those values hold infinity or NaN */
} lattn_block_;

/* Widens the lanes [*lo, *hi) of the block at base so that they hold those of keys [from, to). */
LATTN_FN_ void lattn_cover_(int *lo, int *hi, int64_t from, int64_t to, int64_t base) {
  from = lattn_max_(from - base, 0);
  to = lattn_min_(to - base, LATTN_BLOCK_);
  if (from >= to) return;
  if (from < *lo) *lo = (int)from;
  if (to > *hi) *hi = (int)to;
}

LATTN_FN_ void lattn_find_page_(const lattn_job_ *job, const lattn_item_ *it, int64_t base,
                                lattn_block_ *b) {
  const lattn_rule_ *rule = lattn_cache_rule_(it->cache, it->kv);
  const lattn_storage_ *st = &rule->s;
  const char *page = lattn_cache_page_(it->cache, it->kv, base / LATTN_BLOCK_);
  b->panels = 1;
  b->k = page;
  b->k_type = st->key_type;
  b->panel_bytes = st->panel_bytes;
  b->k_part = st->key_stride;
  b->v = page + st->value_at;
  b->v_part = st->value_stride;
  b->v_type = st->value_type;
  b->v_stride = lattn_is_int_(st->value_type) ? st->row_bytes : job->dv;
  if (st->value_type == LATTN_I8)
    b->scales = page + st->value_at + lattn_scales_at_(st, LATTN_BLOCK_);
  base += LATTN_BLOCK_;
  if (base >= it->lo && base < it->hi && base < lattn_head_slots_(it->cache, rule) &&
      !lattn_is_gone_(it->cache, base / LATTN_BLOCK_)) {
    const char *next = lattn_cache_page_(it->cache, it->kv, base / LATTN_BLOCK_);
    b->ahead = (int64_t)((uintptr_t)next - (uintptr_t)page);
  }
}

LATTN_FN_ const char *lattn_head_of_(const lattn_tensor *t, int32_t head) {
  return (const char *)t->data + (size_t)(head * t->stride_head) * lattn_type_size_(t->type);
}

LATTN_FN_ void lattn_find_arrays_(const lattn_job_ *job, const lattn_item_ *it, int64_t base,
                                  lattn_block_ *b) {
  b->k = lattn_head_of_(&job->k, it->kv * job->n_keys);
  if (job->n_keys > 1) b->k_part = job->k.stride_head * (int64_t)lattn_type_size_(job->k.type);
  b->k_type = job->k.type;
  b->k_stride = job->k.stride_token;
  b->v = lattn_head_of_(&job->v, it->kv * job->n_values);
  if (job->n_values > 1) b->v_part = job->v.stride_head * (int64_t)lattn_type_size_(job->v.type);
  b->v_type = job->v.type;
  b->v_stride = job->v.stride_token;
  b->k_index = b->v_index = it->k0 + base - it->key_position;
}

/* ---- bundles: KV heads of several key heads or value heads ----
   DiffQKV: with G_k key heads and G_v value heads, gcd(G_k, G_v) bundles, each of all the key heads
   and value heads that its query heads use. A tile's rows may belong to several: runs of rows with
   one key head are scored together, runs with one value head take its values together. */

LATTN_FN_ const void *lattn_bundle_at_(const void *p, int64_t part, int64_t bytes) {
  return p ? (const char *)p + part * bytes : 0;
}

/* How many of m rows use the first one's of `parts` heads, which is *part. */
LATTN_FN_ int lattn_bundle_rows_(const lattn_job_ *job, const lattn_row_ *rows, int m,
                                 int32_t parts, int64_t *part) {
  int n = 1;
  *part = 0;
  if (parts == 1) return m;
  *part = rows[0].head % job->group * parts / job->group;
  while (n < m && rows[n].head % job->group * parts / job->group == *part) n++;
  return n;
}

/* Whether an item has many rows: `few` for each of its key heads or value heads. */
LATTN_FN_ int lattn_many_rows_(const lattn_job_ *job, const lattn_item_ *it, int few) {
  return it->rows > (int64_t)few * (job->n_keys > job->n_values ? job->n_keys : job->n_values);
}

/* One row of q as floats. */
LATTN_FN_ void lattn_widen_row_(float *to, const lattn_tensor *t, int64_t token, int64_t head) {
  int64_t at = token * t->stride_token + head * t->stride_head;
  int64_t whole = t->dim / 16 * 16, d;
  int n = (int)(t->dim - whole);
#define LATTN_BODY_(T)                                                                             \
  for (d = 0; d < whole; d += 16) lattn_v_store_(to + d, lattn_v_get_(t->data, T, at + d));        \
  if (n) lattn_v_store_n_(to + d, lattn_v_get_n_(t->data, T, at + d, n), n)
  LATTN_EACH_TYPE_(t->type, LATTN_BODY_)
#undef LATTN_BODY_
}

LATTN_FN_ void lattn_scale_(float *x, int64_t n, float scale) {
  lattn_v16_ by = lattn_v_set_(scale);
  for (int64_t i = 0; i < n; i += 16) {
    int left = n - i < 16 ? (int)(n - i) : 16;
    lattn_v_store_n_(x + i, lattn_v_mul_(lattn_v_load_n_(x + i, left), by), left);
  }
}

/* ---- zones: runs of keys that one rotation of the query serves ----
   A key before a hole stands nearer than its slot says: the query meets it rotated at (position +
   tokens removed before the key), in-cache sinks at min(position, S + W - 1). So a zone is named by
   its count of removed tokens, or -1 for such sinks. */

/* The zone of the lane of a block; it ends before lane *end. */
LATTN_FN_ int64_t lattn_zone_(const lattn_job_ *job, const lattn_item_ *it,
                              const lattn_space_ *sp, int64_t base, int lane, int *end) {
  const lattn_rule_ *rule;
  int64_t stop = base + LATTN_BLOCK_, slot = base + lane, zone, next;
  *end = LATTN_BLOCK_;
  if (!it->cache || !job->turning.turns) return sp->own;
  rule = lattn_cache_rule_(it->cache, it->kv);
  if (sp->sinks_differ && slot < rule->sinks) {
    *end = (int)lattn_min_(rule->sinks - base, LATTN_BLOCK_);
    return -1;
  }
  if (!lattn_has_holes_(it->cache)) return sp->own;
  if (lattn_in_hole_(it->cache, slot, &next)) slot = next; /* hidden lanes: with the zone behind */
  zone = lattn_removed_before_(it->cache, slot);
  if (slot < stop && !lattn_in_hole_(it->cache, slot, &next)) stop = lattn_min_(stop, next);
  *end = (int)(stop - base);
  return zone;
}

/* Whether the item's rows are worked on in pairs of bfloat16: if the call asks for it, for many
   rows of more than one token, that are not part of decode (drafts, groups). */
LATTN_FN_ int lattn_in_pairs_(const lattn_job_ *job, const lattn_item_ *it) {
  const lattn_storage_ *st = it->cache ? &lattn_cache_rule_(it->cache, it->kv)->s : 0;
  if (!LATTN_HAS_PAIRS_ || !job->o.inexact || !job->scratch || job->weights || job->top) return 0;
  if (!lattn_many_rows_(job, it, LATTN_FEW_ROWS_)) return 0;
  if (it->nq < 2 || it->depth || it->of_group) return 0;
  return !st || !(lattn_is_int_(st->key_type) || lattn_is_int_(st->value_type));
}

/* Rotated queries are scaled, or made integers, or rounded to pairs. */
LATTN_FN_ void lattn_finish_queries_(const lattn_job_ *job, const lattn_item_ *it, float *q,
                                     int64_t n) {
  const lattn_storage_ *st = it->cache ? &lattn_cache_rule_(it->cache, it->kv)->s : 0;
  if (!st || !lattn_is_int_(st->key_type)) {
    lattn_scale_(q, n * job->dk, job->scale);
    if (lattn_in_pairs_(job, it))
      for (int64_t i = 0; i < n; i++) lattn_pair_in_place_(q + i * job->dk, job->dk);
    return;
  }
  for (int64_t i = 0; i < n; i++)
    lattn_query_ints_(q + i * job->dk, st->key_type, job->dk, st->key_basis, job->scale);
}

/* Rows r ... r + m - 1 of q_other as a zone wants them. */
LATTN_FN_ void lattn_fill_other_(const lattn_job_ *job, const lattn_item_ *it,
                                 const lattn_space_ *sp, int64_t r, int64_t m, int64_t zone) {
  const lattn_rule_ *rule = lattn_cache_rule_(it->cache, it->kv);
  int64_t at = -1;
  for (int64_t i = r; i < r + m; i++) {
    const lattn_row_ *row = sp->rows + i;
    int64_t position = zone < 0 ? lattn_min_(row->position, rule->sinks + rule->window - 1)
                                : row->position + zone;
    lattn_widen_row_(sp->q_other + i * job->dk, &job->q, row->token, row->head);
    lattn_turn_at_(sp->q_other + i * job->dk, sp->angles, &job->turning, position, &at);
  }
  lattn_finish_queries_(job, it, sp->q_other + r * job->dk, m);
}

/* Counts the zones of the block that are not the rows' own. One other is filled for all rows, and
   kept for the next block. */
LATTN_FN_ void lattn_find_zones_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                 int64_t base, lattn_block_ *b) {
  for (int lane = b->lo, end; lane < b->hi; lane = end) {
    int64_t zone = lattn_zone_(job, it, sp, base, lane, &end);
    if (zone == sp->own || (b->n_other > 0 && zone == b->other)) continue;
    b->n_other = b->n_other ? 2 : 1;
    b->other = zone;
  }
  if (b->n_other == 1 && sp->other != b->other) {
    lattn_fill_other_(job, it, sp, 0, it->rows, b->other);
    sp->other = b->other;
  }
}

/* Whether a key of the block is marked, of any query head that the item has. */
LATTN_FN_ int lattn_block_marked_(const lattn_job_ *job, const lattn_item_ *it, int64_t base,
                                  const lattn_block_ *b) {
  for (int64_t h = it->kv * job->group; h < (it->kv + 1) * job->group; h++) {
    const uint8_t *marks = it->part->marks + h * it->part->stride + it->k0 - it->key_position;
    for (int64_t j = base + b->lo; j < base + b->hi; j++)
      if (marks[j]) return 1;
  }
  return 0;
}

/* Finds the block at base: its lanes, and where their keys and values are. */
LATTN_FN_ void lattn_find_block_(const lattn_job_ *job, const lattn_item_ *it, int64_t base,
                                 lattn_block_ *b) {
  int64_t stored;
  LATTN_MEMSET_(b, 0, sizeof *b);
  b->nonfinite = -1;
  b->lo = b->stored = LATTN_BLOCK_;
  b->pairs = lattn_in_pairs_(job, it);
  if (it->cache && lattn_is_gone_(it->cache, base / LATTN_BLOCK_)) return;
  lattn_cover_(&b->lo, &b->hi, it->lo, it->hi, base);
  lattn_cover_(&b->lo, &b->hi, it->sink_lo, it->sink_hi, base);
  if (b->lo >= b->hi) return;
  if (!it->cache) {
    lattn_find_arrays_(job, it, base, b);
    b->holes = it->part != 0;
    if (b->holes && it->part->kind == LATTN_IN_ && !lattn_block_marked_(job, it, base, b))
      b->lo = b->hi;
    return;
  }
  b->panels = 1;
  stored = lattn_head_slots_(it->cache, lattn_cache_rule_(it->cache, it->kv)) - base;
  b->stored = (int)lattn_max_(0, lattn_min_(stored, LATTN_BLOCK_));
  b->holes = !lattn_adjacent_(it->cache, base, LATTN_BLOCK_);
  if (b->stored > b->lo) lattn_find_page_(job, it, base, b);
}

/* ---- prepared blocks ----
   For many rows, keys in the caller's layout are packed, and all that is not float32 is widened,
   once a block. The next block is prepared while the tiles of this one work, panel by panel, and
   asked for before that: row by row it comes from memory at a fraction of the bandwidth. */

LATTN_FN_ int lattn_prepares_(const lattn_job_ *job, const lattn_item_ *it,
                              const lattn_space_ *sp) {
  int few = it->cache ? (int)LATTN_FEW_ROWS_ : (int)LATTN_TILE_ROWS_;
  return sp->keys && lattn_many_rows_(job, it, few);
}

LATTN_FN_ int lattn_prepares_keys_(const lattn_block_ *b) {
  return !b->panels || b->pairs || b->k_type == LATTN_F16 || b->k_type == LATTN_BF16;
}

LATTN_FN_ int lattn_prepares_values_(const lattn_job_ *job, const lattn_block_ *b) {
  if (job->weights || job->top || b->v_type == LATTN_I8) return 0;
  return !b->panels || b->pairs || b->v_type != LATTN_F32;
}

LATTN_FN_ int lattn_last_lane_(const lattn_block_ *b) {
  return b->hi < b->stored ? b->hi : b->stored;
}

/* Lanes [from, to) of panel p of one key head's k. */
LATTN_FN_ void lattn_prepare_keys_(const lattn_job_ *job, const lattn_block_ *b, const void *k,
                                   float *keys, int p, int from, int to) {
  int64_t dk = job->dk;
  if (LATTN_HAS_PAIRS_ && b->pairs && !b->panels)
    lattn_pack_key_pairs_(keys, k, b->k_type, b->k_index, b->k_stride, dk, from, to);
  else if (LATTN_HAS_PAIRS_ && b->pairs)
    lattn_pair_rows_(keys + p * lattn_steps_(LATTN_PAIRS_, dk) * LATTN_PANEL_, k, b->k_type,
                     p * dk * LATTN_PANEL_, LATTN_PANEL_, LATTN_PANEL_, 0, (int)dk);
  else if (!b->panels)
    lattn_pack_keys_(keys, k, b->k_type, b->k_index, b->k_stride, dk, from, to);
  else
    lattn_widen_(keys + 16 * p * dk, k, b->k_type, 16 * p * dk, 16 * dk);
}

/* Rows [from, to) of one value head's v. */
LATTN_FN_ void lattn_prepare_values_(const lattn_job_ *job, const lattn_block_ *b, const void *v,
                                     float *values, int from, int to) {
  if (LATTN_HAS_PAIRS_ && b->pairs) {
    lattn_pair_rows_(values, v, b->v_type, b->v_index * b->v_stride, b->v_stride, job->dv, from,
                     to);
    return;
  }
  for (int j = from; j < to; j++)
    if (b->v_type == LATTN_I4)
      lattn_widen_ints_(values + j * job->columns,
                        (const char *)v + (b->v_index + j) * b->v_stride, b->v_type, job->dv);
    else
      lattn_widen_(values + j * job->columns, v, b->v_type, (b->v_index + j) * b->v_stride,
                   job->dv);
}

/* Where a side of the worker's memory is. */
LATTN_FN_ float *lattn_side_keys_(const lattn_job_ *job, const lattn_space_ *sp, int side) {
  return sp->keys + side * LATTN_BLOCK_ * job->dk * job->n_keys;
}
LATTN_FN_ float *lattn_side_values_(const lattn_job_ *job, const lattn_space_ *sp, int side) {
  return sp->values + side * LATTN_BLOCK_ * job->columns * job->n_values;
}

/* Panel p of a block, into one side of the worker's memory. */
LATTN_FN_ void lattn_prepare_panel_(const lattn_job_ *job, const lattn_space_ *sp,
                                    const lattn_block_ *b, int side, int p) {
  float *keys = lattn_side_keys_(job, sp, side);
  float *values = sp->values ? lattn_side_values_(job, sp, side) : 0;
  int from = b->lo > 16 * p ? b->lo : 16 * p, to = lattn_last_lane_(b);
  to = to < 16 * p + 16 ? to : 16 * p + 16;
  for (int i = 0; lattn_prepares_keys_(b) && i < job->n_keys; i++)
    lattn_prepare_keys_(job, b, lattn_bundle_at_(b->k, i, b->k_part),
                        keys + i * LATTN_BLOCK_ * job->dk, p, from, to);
  for (int i = 0; lattn_prepares_values_(job, b) && i < job->n_values; i++)
    lattn_prepare_values_(job, b, lattn_bundle_at_(b->v, i, b->v_part),
                          values + i * LATTN_BLOCK_ * job->columns, from, to);
}

/* Finds the block at base and makes it ready for the item's tiles. */
LATTN_FN_ void lattn_begin_block_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                  int64_t base, lattn_block_ *b) {
  int p;
  lattn_find_block_(job, it, base, b);
  if (b->lo >= b->hi) return;
  if (it->cache) lattn_find_zones_(job, it, sp, base, b);
  b->hints = lattn_prepares_(job, it, sp) ? 0 : b->ahead;
  if (b->stored <= b->lo || !lattn_prepares_(job, it, sp)) return; /* drafts only, or few rows */
  p = b->lo / 16;
  if (sp->ahead == base) {
    sp->side = !sp->side;
    p = sp->ahead_end;
  }
  sp->ahead = -1;
  for (; p * 16 < lattn_last_lane_(b); p++) lattn_prepare_panel_(job, sp, b, sp->side, p);
  if (lattn_prepares_keys_(b)) {
    b->k = lattn_side_keys_(job, sp, sp->side);
    b->k_part = LATTN_BLOCK_ * job->dk * (int64_t)sizeof(float);
    b->k_type = b->pairs ? (int)LATTN_PAIRS_ : (int)LATTN_F32;
  }
  if (lattn_prepares_values_(job, b)) {
    b->v = lattn_side_values_(job, sp, sp->side);
    b->v_part = LATTN_BLOCK_ * job->columns * (int64_t)sizeof(float);
    b->v_type = b->pairs ? (int)LATTN_PAIRS_ : (int)LATTN_F32;
    b->v_index = 0;
    b->v_stride = job->columns;
  }
  b->panels = 1;
}

/* Bytes at p are needed soon. Inline always: gcc takes a function that only hints for one without
   effect, and deletes its calls. */
LATTN_INLINE_ void lattn_hint_(const void *p, int64_t at, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    LATTN_PREFETCH_((const void *)((uintptr_t)p + (uintptr_t)(at + i)));
}

/* So is a row. */
LATTN_INLINE_ void lattn_fetch_row_(const lattn_tensor *t, int64_t token, int64_t head) {
  int64_t size = (int64_t)lattn_type_size_(t->type);
  if (token < t->n_tokens)
    lattn_hint_(t->data, (token * t->stride_token + head * t->stride_head) * size, t->dim * size);
}

/* The share of the tile at row r in preparing the next block: keys are asked for 16 keys before
   they are used. */
LATTN_FN_ void lattn_look_ahead_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                 const lattn_block_ *next, int64_t r) {
  int64_t size = lattn_is_int_(next->v_type) ? 1 : (int64_t)lattn_type_size_(next->v_type);
  int64_t stride = next->v_stride * size, steps = LATTN_BLOCK_ + LATTN_PANEL_;
  int64_t j = lattn_max_(steps * r / it->rows, next->lo);
  int64_t end = steps * (r + LATTN_TILE_ROWS_) / it->rows;
  int last = lattn_last_lane_(next);
  for (; j < end && j < last; j++) {
    for (int i = 0; i < job->n_keys; i++)
      if (next->panels)
        lattn_hint_(next->k, i * next->k_part + j * next->panel_bytes / LATTN_PANEL_,
                    next->panel_bytes / LATTN_PANEL_);
      else
        lattn_fetch_row_(&job->k, next->k_index + j, it->kv * job->n_keys + i);
    for (int i = 0; !job->top && i < job->n_values; i++)
      lattn_hint_(next->v, i * next->v_part + (next->v_index + j) * stride,
                  next->panels ? stride : job->dv * size);
  }
  if (!lattn_prepares_(job, it, sp)) return;
  for (; (sp->ahead_end + 2) * 16 <= end && sp->ahead_end * 16 < last; sp->ahead_end++)
    lattn_prepare_panel_(job, sp, next, !sp->side, sp->ahead_end);
}

/* Scores of m rows with keys k, which are b's. */
LATTN_FN_ void lattn_score_tile_(const lattn_job_ *job, const lattn_block_ *b, const void *k, int m,
                                 const float *q, int first, int end, float *s) {
  if (LATTN_HAS_PAIRS_ && b->k_type == LATTN_PAIRS_) {
    lattn_score_pairs_(m, q, job->dk, k, first, end, s);
  } else if (!b->panels) {
    for (int p = first; p < end; p++)
      lattn_score_strided_(m, b->k_type, q, job->dk, k, b->k_index + 16 * p, b->k_stride,
                           b->lo - 16 * p, b->hi - 16 * p, s + 16 * p);
  } else if (lattn_is_int_(b->k_type)) {
    const char *ints = (const char *)(const void *)q, *bytes = (const char *)k;
    int64_t stride = job->dk * (int64_t)sizeof *q;
    if (m == 1)
      (b->k_type == LATTN_I8 ? lattn_score_i8_one_ : lattn_score_i4_one_)(
          ints, job->dk, bytes, b->panel_bytes, b->ahead, first, end, s);
    else if (b->k_type == LATTN_I8)
      lattn_score_i8_(m, ints, stride, job->dk, bytes, b->panel_bytes, b->hints, first, end, s);
    else
      lattn_score_i4_(m, ints, stride, job->dk, bytes, b->panel_bytes, b->ahead, first, end, s);
  } else if (m == 1) {
    lattn_score_one_(b->k_type, q, job->dk, k, b->ahead, first, end, s);
  } else if (b->k_type == LATTN_F32) {
    lattn_score_f32_(m, q, job->dk, k, b->ahead, first, end, s);
  } else if (b->k_type == LATTN_F16) {
    lattn_score_f16_(m, q, job->dk, k, b->ahead, first, end, s);
  } else {
    lattn_score_bf16_(m, q, job->dk, k, b->ahead, first, end, s);
  }
}

/* The same for rows r ... r + m - 1 of the item, whose queries are q[r ...]. */
LATTN_FN_ void lattn_score_rows_(const lattn_job_ *job, const lattn_space_ *sp,
                                 const lattn_block_ *b, int64_t r, int m, const float *q, int first,
                                 int end, float *s) {
  q += r * job->dk;
  if (job->n_keys == 1) {
    lattn_score_tile_(job, b, b->k, m, q, first, end, s);
    return;
  }
  for (int a = 0, n; a < m; a += n) {
    int64_t part;
    n = lattn_bundle_rows_(job, sp->rows + r + a, m - a, job->n_keys, &part);
    lattn_score_tile_(job, b, lattn_bundle_at_(b->k, part, b->k_part), n, q + a * job->dk, first,
                      end, s + a * LATTN_BLOCK_);
  }
}

/* Scores of the lanes [16 * first, 16 * end), each zone with its query; of a panel that two zones
   share, which is scored twice, lanes are selected. */
LATTN_NOINLINE_ void lattn_score_zones_(const lattn_job_ *job, const lattn_item_ *it,
                                        lattn_space_ *sp, const lattn_block_ *b, int64_t base,
                                        int64_t r, int m, int first, int end, float *s) {
  float kept[LATTN_TILE_ROWS_][16];
  for (int lane = 16 * first, stop; lane < 16 * end; lane = stop) {
    int64_t zone = lattn_zone_(job, it, sp, base, lane, &stop);
    const float *q = zone == sp->own ? sp->q : sp->q_other;
    int p = lane / 16, part = lane % 16, to = (stop + 15) / 16 < end ? (stop + 15) / 16 : end;
    if (zone != sp->own && b->n_other > 1) {
      lattn_fill_other_(job, it, sp, r, m, zone);
      sp->other = -2;
    }
    for (int a = 0; part && a < m; a++) LATTN_MEMCPY_(kept[a], s + a * LATTN_BLOCK_ + 16 * p, 64);
    lattn_score_rows_(job, sp, b, r, m, q, p, to, s);
    for (int a = 0; part && a < m; a++)
      LATTN_MEMCPY_(s + a * LATTN_BLOCK_ + 16 * p, kept[a], (size_t)part * sizeof *s);
  }
}

LATTN_FN_ void lattn_value_tile_(const lattn_job_ *job, const lattn_block_ *b, int m, int lo,
                                 int hi, const float *w, float *acc, const float *e) {
  int64_t at = (b->v_index + lo) * b->v_stride;
  int64_t ahead = b->ahead;
  if (!b->panels) /* may be far beyond the array */
    ahead = (int64_t)(LATTN_AHEAD_ * (uint64_t)b->v_stride * lattn_type_size_(b->v_type));
  if (LATTN_HAS_PAIRS_ && b->v_type == LATTN_PAIRS_)
    lattn_value_pairs_(m, w + lo / 2, b->v, lo / 2 * b->v_stride, (hi + 1) / 2 - lo / 2,
                       job->columns, acc, e);
  else if (b->v_type == LATTN_I4)
    lattn_value_i4_(m, w + lo, (const char *)b->v + at, b->v_stride, hi - lo, job->dv, acc,
                    job->columns, e, b->ahead);
  else if (m == 1)
    lattn_value_one_(b->v_type, w + lo, b->v, at, b->v_stride, hi - lo, job->dv, acc, e, ahead);
  else if (b->v_type == LATTN_F32)
    lattn_value_f32_(m, w + lo, b->v, at, b->v_stride, hi - lo, job->dv, acc, job->columns, e,
                     ahead);
  else if (b->v_type == LATTN_F16)
    lattn_value_f16_(m, w + lo, b->v, at, b->v_stride, hi - lo, job->dv, acc, job->columns, e,
                     ahead);
  else
    lattn_value_bf16_(m, w + lo, b->v, at, b->v_stride, hi - lo, job->dv, acc, job->columns, e,
                     ahead);
}

LATTN_FN_ lattn_rows_ lattn_rows_of_(const lattn_block_ *b) {
  lattn_rows_ rows;
  size_t size = lattn_is_int_(b->v_type) ? 1 : lattn_type_size_(b->v_type);
  rows.v = b->v ? (const char *)b->v + b->v_index * b->v_stride * (int64_t)size : 0;
  rows.scales = b->scales;
  rows.stride = b->v_stride;
  rows.type = b->v_type;
  return rows;
}

/* Bytes of those scales. */
LATTN_FN_ int64_t lattn_scale_bytes_(const lattn_storage_ *s, int64_t rows) {
  return s->value_type == LATTN_I8 ? 2 * rows : 0;
}

/* ---- drafts ----
   A draft row's keys after the committed ones are its path: the draft at depth d takes the lane
   that a committed token there would have. */

/* The path to the row's own draft: path[d] is the number of the draft at depth d; returns its own
   depth. */
LATTN_FN_ int lattn_draft_path_(const lattn_item_ *it, const lattn_row_ *row, uint8_t path[64]) {
  int number = lattn_draft_number_(it->cache, it->depth) + (int)(row->token - it->q0), depth;
  depth = lattn_draft_depth_(it->cache, number);
  for (int d = depth; d >= 0; d--) {
    path[d] = (uint8_t)number;
    number = lattn_draft_parent_(it->cache, number);
  }
  return depth;
}

/* Scores of the drafts of one row's path into their lanes. */
LATTN_NOINLINE_ void lattn_draft_scores_(const lattn_job_ *job, const lattn_item_ *it,
                                         lattn_space_ *sp, int64_t base, int64_t r, int hi,
                                         float *s) {
  uint8_t path[64];
  float scores[LATTN_PANEL_];
  const lattn_rule_ *rule = lattn_cache_rule_(it->cache, it->kv);
  int64_t first = lattn_head_slots_(it->cache, rule);
  const lattn_storage_ *st = &rule->s;
  int depth = lattn_draft_path_(it, sp->rows + r, path), panels = 0, stop;
  lattn_block_ b;
  LATTN_MEMSET_(&b, 0, sizeof b);
  b.k_part = st->draft_key_stride;
  b.k_type = st->key_type;
  b.panel_bytes = st->panel_bytes;
  b.panels = 1;
  for (int d = 0; d <= depth; d++)
    if (path[d] / LATTN_PANEL_ >= panels) panels = path[d] / LATTN_PANEL_ + 1;
  for (int lane = (int)lattn_max_(0, first - base); lane < hi; lane = stop) {
    int64_t zone = lattn_zone_(job, it, sp, base, lane, &stop);
    const float *q = zone == sp->own ? sp->q : sp->q_other;
    if (zone != sp->own) {
      lattn_fill_other_(job, it, sp, r, 1, zone);
      sp->other = -2;
    }
    for (int p = 0; p < panels; p++) {
      b.k = lattn_draft_keys_(it->cache, it->kv) + p * st->panel_bytes;
      lattn_score_rows_(job, sp, &b, r, 1, q, 0, 1, scores);
      for (int j = lane; j < stop && j < hi && base + j - first <= depth; j++)
        if (path[base + j - first] / LATTN_PANEL_ == p)
          s[j] = scores[path[base + j - first] % LATTN_PANEL_];
    }
  }
}

/* Values of one row of a block that drafts end. */
LATTN_NOINLINE_ void lattn_draft_values_(const lattn_job_ *job, const lattn_item_ *it,
                                         const lattn_space_ *sp, lattn_rows_ rows,
                                         const uint32_t visible[8], int64_t base, int64_t r, int lo,
                                         int hi, float *w, float sum, float *acc, float e) {
  uint8_t path[64 + 3] = {0}; /* quads of keys may end behind it */
  const lattn_rule_ *rule = lattn_cache_rule_(it->cache, it->kv);
  const lattn_storage_ *st = &rule->s;
  lattn_rows_ drafts;
  int64_t first = lattn_head_slots_(it->cache, rule);
  int lane = (int)lattn_max_(0, first - base);
  const char *v = lattn_draft_keys_(it->cache, it->kv);
  int64_t part;
  const uint8_t *from = path + (base + lane - first);
  lattn_draft_path_(it, sp->rows + r, path);
  lattn_bundle_rows_(job, sp->rows + r, 1, job->n_values, &part);
  v += part * st->draft_value_stride;
  drafts.v = v + st->draft_value_at;
  drafts.type = st->value_type;
  drafts.stride = lattn_is_int_(st->value_type) ? st->row_bytes : job->dv;
  drafts.scales = st->value_type == LATTN_I8 ? v + st->draft_scales_at : 0;
  if (!rows.v) { /* no row of it is used, but quads of keys may begin before the drafts */
    rows = drafts;
    rows.stride = 0;
    rows.scales = 0;
  }
  if (drafts.type == LATTN_I8)
    lattn_value_ints_(1, &rows, &drafts, from, lane, visible, w, &sum, lo, hi,
                      job->dv, acc, 0, &e, 0);
  else
    lattn_value_careful_(visible, &rows, &drafts, from, lane, w, lo, hi, job->dv, acc, e);
}

/* Scores of rows r ... r + m - 1 of the item against one block: panels [*first, *end) of sp->s, of
   lanes [*lo, *hi) that one of them may see; 0: none. */
LATTN_FN_ int lattn_tile_scores_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                 const lattn_block_ *b, int64_t base, int64_t r, int m, int *lo,
                                 int *hi, int *first, int *end) {
  int stored;
  *lo = LATTN_BLOCK_;
  *hi = 0;
  for (int a = 0; a < m; a++) {
    const lattn_row_ *row = sp->rows + r + a;
    lattn_cover_(lo, hi, row->lo, row->hi, base);
    lattn_cover_(lo, hi, row->sink_lo, row->sink_hi, base);
  }
  if (*lo >= *hi) return 0;
  *first = *lo / 16;
  *end = (*hi + 15) / 16;
  stored = *lo >= b->stored ? *first : *hi > b->stored ? (b->stored + 15) / 16 : *end;
  if (b->n_other)
    lattn_score_zones_(job, it, sp, b, base, r, m, *first, stored, sp->s);
  else if (*first < stored)
    lattn_score_rows_(job, sp, b, r, m, sp->q, *first, stored, sp->s);
  for (int a = 0; *hi > b->stored && a < m; a++)
    lattn_draft_scores_(job, it, sp, base, r + a, *hi, sp->s + a * LATTN_BLOCK_);
  return 1;
}

/* Whether a value of the lanes that rows of the item may see is not finite. */
LATTN_FN_ int lattn_head_nonfinite_(const lattn_job_ *job, const lattn_block_ *b,
                                    const void *v) {
  int64_t from = b->v_index + b->lo;
  int hi = b->hi < b->stored ? b->hi : b->stored;
  if (b->v_type == LATTN_I8) return 0; /* the scales of its weights are looked at */
  if (LATTN_HAS_PAIRS_ && b->v_type == LATTN_PAIRS_)
    return lattn_pairs_nonfinite_((const float *)v + b->lo / 2 * job->columns,
                                  ((hi + 1) / 2 - b->lo / 2) * job->columns);
  if (b->v_type == LATTN_I4)
    return lattn_ints_nonfinite_((const char *)v + from * b->v_stride, b->v_stride, hi - b->lo,
                                 job->dv);
  return lattn_values_nonfinite_(v, b->v_type, from * b->v_stride, b->v_stride, hi - b->lo,
                                 job->dv);
}

/* Of any value head. */
LATTN_FN_ int lattn_block_nonfinite_(const lattn_job_ *job, const lattn_block_ *b) {
  int bad = 0;
  for (int i = 0; i < job->n_values && !bad; i++)
    bad = lattn_head_nonfinite_(job, b, lattn_bundle_at_(b->v, i, b->v_part));
  return bad;
}

/* Whether scores of the tile have to be changed or hidden. */
LATTN_FN_ int lattn_tile_masked_(const lattn_job_ *job, const lattn_row_ *rows, int64_t base,
                                 const lattn_block_ *b, int m) {
  int masked = !job->plain || lattn_by_lane_(job) || b->holes || b->stored < LATTN_BLOCK_;
  for (int a = 0; a < m; a++)
    masked |= rows[a].lo > base || rows[a].hi < base + LATTN_BLOCK_;
  return masked;
}

/* The maxima of m rows whose tile needs no mask; 0: it does, or a row has no finite score. Four
   chains; NaN is never greater, so it never enters one. */
LATTN_NOINLINE_ int lattn_maxima_(const lattn_job_ *job, const lattn_row_ *rows, int64_t base,
                            const lattn_block_ *b, int m, const float *s, float *top) {
  lattn_v16_ least = lattn_v_set_(-LATTN_INFINITY_), most[LATTN_TILE_ROWS_];
  int masked = 0;
  if (lattn_tile_masked_(job, rows, base, b, m)) return 0;
  for (int a = 0; a < m; a++, s += LATTN_BLOCK_) {
    lattn_v16_ t[4];
    LATTN_UNROLL_
    for (int p = 0; p < 4; p++) t[p] = lattn_v_max_(lattn_v_load_(s + 16 * p), least);
    LATTN_UNROLL_
    for (int p = 0; p < 4; p++) t[p] = lattn_v_max_(lattn_v_load_(s + 16 * p + 64), t[p]);
    most[a] = lattn_v_max_(lattn_v_max_(t[0], t[1]), lattn_v_max_(t[2], t[3]));
  }
  lattn_v_reduce_rows_(most, m, 1, top);
  for (int a = 0; a < m; a++) masked |= lattn_is_empty_(top[a]);
  return !masked;
}

/* A tile's rows, r ... r + m - 1 of the item, against one block. */
typedef struct lattn_against_ {
  int64_t r, base;
  int m, lo, hi;                             /* lanes that one of them may see */
  int masked;                                /* visible says what each sees; else all of them */
  int apart;                                 /* one may not see a key that the tile touches */
  int empty[LATTN_TILE_ROWS_];               /* it sees none */
  float top[LATTN_TILE_ROWS_];               /* largest scores */
  float sum[LATTN_TILE_ROWS_], e[16];        /* of weights; what is older is multiplied by e */
  uint32_t visible[LATTN_TILE_ROWS_ * 8];
} lattn_against_;

/* The values of rows a ... a + n - 1 of the tile, which share a value head. */
LATTN_INLINE_ void lattn_tile_values_(const lattn_job_ *job, const lattn_item_ *it,
                                      lattn_space_ *sp, const lattn_block_ *b,
                                      const lattn_against_ *t, int a, int n, float *acc) {
  lattn_rows_ rows = lattn_rows_of_(b);
  float *s = sp->s + a * LATTN_BLOCK_;
  const uint32_t *visible = t->visible + 8 * a;
  int drafts = t->hi > b->stored;
  acc += (t->r + a) * job->columns;
  if (!drafts && b->v_type == LATTN_I8) {
    lattn_value_ints_(n, &rows, 0, 0, LATTN_BLOCK_, t->masked ? visible : 0, s, t->sum + a, t->lo,
                      t->hi, job->dv, acc, job->columns, t->e + a, b->hints);
    return;
  }
  if (!drafts && (!t->apart || !b->nonfinite)) {
    lattn_value_tile_(job, b, n, t->lo, t->hi, s, acc, t->e + a);
    return;
  }
  for (int i = 0; i < n; i++, s += LATTN_BLOCK_, visible += 8, acc += job->columns) {
    if (t->empty[a + i]) continue;
    if (drafts)
      lattn_draft_values_(job, it, sp, rows, visible, t->base, t->r + a + i, t->lo, t->hi, s,
                          t->sum[a + i], acc, t->e[a + i]);
    else
      lattn_value_careful_(visible, &rows, 0, 0, LATTN_BLOCK_, s, t->lo, t->hi, job->dv, acc,
                           t->e[a + i]);
  }
}

/* Scores, which are in sp->s, become weights, and are folded into the rows' partials. */
LATTN_INLINE_ void lattn_fold_tile_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                    lattn_block_ *b, lattn_against_ *t, lattn_slot_ to) {
  lattn_v16_ sums[LATTN_TILE_ROWS_];
  const int sigmoid = job->o.weighting == LATTN_SIGMOID;
  const void *v;
  const char *scales;
  int pairs;
  if (t->apart && t->hi <= b->stored && b->nonfinite < 0 && !sp->picking)
    b->nonfinite = lattn_block_nonfinite_(job, b);
  pairs = LATTN_HAS_PAIRS_ && b->v_type == LATTN_PAIRS_ && !(t->apart && b->nonfinite);
  for (int a = 0; a < t->m; a++) {
    float *s = sp->s + a * LATTN_BLOCK_, *m = to.m + t->r + a, old = *m;
    if (t->empty[a]) { /* e = exp(0): the fold below is then the identity */
      LATTN_MEMSET_(s, 0, LATTN_BLOCK_ * sizeof *s);
      sums[a] = lattn_v_set_(0);
      continue;
    }
    if (sigmoid) t->top[a] = 0; /* of all blocks: e = 1, so their sums add up */
    *m = old > t->top[a] ? old : t->top[a];
    t->e[a] = old == *m ? 0.0f : old - *m;
    sums[a] = sigmoid ? lattn_sigmoid_weights_(s, job->o.sigmoid_bias) : lattn_weights_(s, *m);
    if (pairs) sums[a] = lattn_pair_weights_(s);
  }
  lattn_v_reduce_rows_(sums, t->m, 0, t->sum);
  lattn_v_store_(t->e, lattn_v_exp_(lattn_v_load_(t->e)));
  for (int a = 0; a < t->m; a++)
    to.l[t->r + a] = lattn_fma_(to.l[t->r + a], t->e[a], t->sum[a]);
  if (sp->picking) return;
  if (job->n_values == 1) {
    lattn_tile_values_(job, it, sp, b, t, 0, t->m, to.acc);
    return;
  }
  v = b->v;
  scales = b->scales;
  for (int a = 0, n; a < t->m; a += n) {
    int64_t part;
    n = lattn_bundle_rows_(job, sp->rows + t->r + a, t->m - a, job->n_values, &part);
    b->v = lattn_bundle_at_(v, part, b->v_part);
    b->scales = (const char *)lattn_bundle_at_(scales, part, b->v_part);
    lattn_tile_values_(job, it, sp, b, t, a, n, to.acc);
  }
  b->v = v;
  b->scales = scales;
}

/* ---- selective values ----
   All keys are scored once, and each row keeps the scores of the best so far; then their values are
   folded in as any others are, by blocks and segments, so that all keys give the bits of a plain
   call. */

LATTN_FN_ lattn_picks_ *lattn_picks_of_(const lattn_space_ *sp, int64_t r) {
  return (lattn_picks_ *)(void *)(sp->picks + (size_t)r * sp->picks_bytes);
}

/* Which of two is nearer to the root: the worse one, or the one of the higher slot. */
LATTN_FN_ int lattn_is_nearer_(const lattn_pick_ *a, const lattn_pick_ *b, int by_slot) {
  if (by_slot || a->score == b->score) return by_slot ? a->slot > b->slot : a->slot < b->slot;
  return a->score < b->score;
}

/* Puts x into the heap of n, whose place i is free and whose subtrees there are heaps. */
LATTN_FN_ void lattn_sift_(lattn_pick_ *heap, int64_t n, int64_t i, lattn_pick_ x,
                           int by_slot) {
  for (int64_t next; (next = 2 * i + 1) < n; i = next) {
    if (next + 1 < n && lattn_is_nearer_(heap + next + 1, heap + next, by_slot)) next++;
    if (!lattn_is_nearer_(heap + next, &x, by_slot)) break;
    heap[i] = heap[next];
  }
  heap[i] = x;
}

/* A key that is newer than all before. */
LATTN_FN_ void lattn_pick_key_(lattn_picks_ *c, int64_t top, float score, int64_t slot) {
  lattn_pick_ *heap = (lattn_pick_ *)(void *)(c + 1), x;
  int64_t i = c->n;
  x.score = score;
  x.slot = (uint32_t)slot;
  if (c->n == top) {
    if (score >= heap[0].score) lattn_sift_(heap, top, 0, x, 0);
    return;
  }
  for (c->n++; i > 0 && lattn_is_nearer_(&x, heap + (i - 1) / 2, 0); i = (i - 1) / 2)
    heap[i] = heap[(i - 1) / 2];
  heap[i] = x;
}

/* The scores of a row of a tile; visible NULL: it sees all. NaN is never chosen: it shows in the
   sum. */
LATTN_NOINLINE_ void lattn_pick_row_(lattn_picks_ *c, int64_t top, int64_t base,
                                     const uint32_t *visible, const float *s, float largest) {
  const lattn_pick_ *heap = (const lattn_pick_ *)(const void *)(c + 1);
  lattn_v16_ zero = lattn_v_set_(0), infinite = lattn_v_set_(LATTN_INFINITY_);
  if (c->n == top && largest < heap[0].score) return;
  for (int p = 0; p < 8; p++, s += 16, base += 16) {
    uint32_t bits = visible ? visible[p] : 0xffffu;
    if (bits && c->n == top) /* those that are not below the worst */
      bits &= lattn_v_nonfinite_(lattn_v_if_less_(lattn_v_load_(s), lattn_v_set_(heap[0].score),
                                                  zero, infinite));
    for (int t = 0; bits; t++, bits >>= 1)
      if ((bits & 1u) && !lattn_is_nan_(s[t])) lattn_pick_key_(c, top, s[t], base + t);
  }
}

/* Between the two passes: what all keys came to is kept, and the chosen are put in order. */
LATTN_NOINLINE_ void lattn_order_picks_(lattn_picks_ *c, float m, float l) {
  lattn_pick_ *heap = (lattn_pick_ *)(void *)(c + 1), last;
  c->m = m;
  c->l = l;
  for (int64_t i = c->n / 2; i-- > 0;) lattn_sift_(heap, c->n, i, heap[i], 1);
  for (int64_t n = c->n; n-- > 1;) {
    last = heap[n];
    heap[n] = heap[0];
    lattn_sift_(heap, n, 0, last, 1);
  }
}

/* The values that rows chose in a block are needed soon. */
LATTN_FN_ void lattn_fetch_picked_(const lattn_job_ *job, const lattn_item_ *it,
                                   const lattn_space_ *sp, const lattn_block_ *b, int64_t base) {
  int64_t size = lattn_is_int_(b->v_type) ? 1 : (int64_t)lattn_type_size_(b->v_type), part;
  int64_t bytes = b->panels ? b->v_stride * size : job->dv * size;
  for (int64_t r = 0; r < it->rows; r++) {
    const lattn_picks_ *c = lattn_picks_of_(sp, r);
    const lattn_pick_ *key = (const lattn_pick_ *)(const void *)(c + 1);
    lattn_bundle_rows_(job, sp->rows + r, 1, job->n_values, &part);
    for (int64_t i = c->at; i < c->n && key[i].slot < base + b->stored; i++)
      lattn_hint_(b->v, part * b->v_part + (b->v_index + key[i].slot - base) * b->v_stride * size,
                  bytes);
  }
}

/* The values of a row's chosen keys of one block, whose scores are lanes [lo, hi) of sp->s with
   their bit in visible, and whose largest is `top`: as in lattn_fold_tile_, one row. */
LATTN_NOINLINE_ void lattn_fold_picked_(const lattn_job_ *job, const lattn_item_ *it,
                                        lattn_space_ *sp, const lattn_block_ *b, int64_t base,
                                        int64_t r, const uint32_t visible[8], int lo, int hi,
                                        float top, lattn_slot_ to) {
  const int sigmoid = job->o.weighting == LATTN_SIGMOID;
  float old = to.m[r], e[16] = {0}, sum, *acc = to.acc + r * job->columns;
  lattn_rows_ rows = lattn_rows_of_(b);
  int64_t part;
  lattn_bundle_rows_(job, sp->rows + r, 1, job->n_values, &part);
  rows.v = lattn_bundle_at_(rows.v, part, b->v_part);
  rows.scales = (const char *)lattn_bundle_at_(rows.scales, part, b->v_part);
  if (sigmoid) top = 0;
  to.m[r] = old > top ? old : top;
  e[0] = old == to.m[r] ? 0.0f : old - to.m[r];
  sum = lattn_v_reduce_add_(sigmoid ? lattn_sigmoid_weights_(sp->s, job->o.sigmoid_bias)
                                    : lattn_weights_(sp->s, to.m[r]));
  lattn_v_store_(e, lattn_v_exp_(lattn_v_load_(e)));
  to.l[r] = lattn_fma_(to.l[r], e[0], sum);
  if (hi > b->stored)
    lattn_draft_values_(job, it, sp, rows, visible, base, r, lo, hi, sp->s, sum, acc, e[0]);
  else if (b->v_type == LATTN_I8)
    lattn_value_ints_(1, &rows, 0, 0, LATTN_BLOCK_, visible, sp->s, &sum, lo, hi, job->dv, acc, 0,
                      e, 0);
  else if (b->v_type == LATTN_I4)
    lattn_value_careful_(visible, &rows, 0, 0, LATTN_BLOCK_, sp->s, lo, hi, job->dv, acc, e[0]);
  else
    lattn_value_picked_(visible, &rows, sp->s, lo, hi, job->dv, acc, e[0]);
}

/* A row's chosen keys of one block. */
LATTN_FN_ void lattn_take_row_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                               const lattn_block_ *b, int64_t base, int64_t r, lattn_slot_ to) {
  lattn_picks_ *c = lattn_picks_of_(sp, r);
  const lattn_pick_ *key = (const lattn_pick_ *)(const void *)(c + 1);
  lattn_v16_ top = lattn_v_set_(-LATTN_INFINITY_);
  uint32_t visible[8] = {0};
  int lo = 0, hi = 0;
  float largest;
  for (int p = 0; p < 8; p++) lattn_v_store_(sp->s + 16 * p, top);
  for (; c->at < c->n && key[c->at].slot < base + LATTN_BLOCK_; c->at++) {
    int lane = (int)(key[c->at].slot - base);
    if (!hi) lo = lane;
    hi = lane + 1;
    visible[lane / 16] |= 1u << lane % 16;
    sp->s[lane] = key[c->at].score;
  }
  for (int p = 0; p < 8; p++) top = lattn_v_max_(lattn_v_load_(sp->s + 16 * p), top);
  largest = lattn_v_reduce_max_(top);
  if (!lattn_is_empty_(largest))
    lattn_fold_picked_(job, it, sp, b, base, r, visible, lo, hi, largest, to);
}

/* Rows r ... r + m - 1 of the item against one block. */
LATTN_FN_ void lattn_tile_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                           lattn_block_ *b, int64_t base, int64_t r, int m, lattn_slot_ to) {
  lattn_against_ t;
  uint32_t all = 0xffffu;
  int first, end;
  if (!lattn_tile_scores_(job, it, sp, b, base, r, m, &t.lo, &t.hi, &first, &end)) return;
  t.r = r;
  t.base = base;
  t.m = m;
  t.apart = 0;
  LATTN_MEMSET_(t.e, 0, sizeof t.e);
  LATTN_MEMSET_(t.empty, 0, sizeof t.empty);
  t.masked = !lattn_maxima_(job, sp->rows + r, base, b, m, sp->s, t.top);
  if (t.masked)
    for (int a = 0; a < m; a++) {
      t.top[a] = lattn_mask_row_(job, it, sp->rows + r + a, base, b->holes, first, end,
                                 sp->s + a * LATTN_BLOCK_, t.visible + 8 * a);
      t.empty[a] = lattn_is_empty_(t.top[a]);
      for (int p = first; p < end; p++) all &= t.visible[8 * a + p];
      t.apart |= t.empty[a] || all != 0xffffu; /* it may not see a key that the tile touches */
    }
  for (int a = 0; sp->picking && a < m; a++)
    if (!t.masked || !t.empty[a])
      lattn_pick_row_(lattn_picks_of_(sp, r + a), job->top, base,
                      t.masked ? t.visible + 8 * a : 0, sp->s + a * LATTN_BLOCK_, t.top[a]);
  lattn_fold_tile_(job, it, sp, b, &t, to);
}

/* ---- units ---- */

LATTN_FN_ void lattn_item_sequence_(const lattn_job_ *job, lattn_item_ *it) {
  const lattn_attn *o = &job->o;
  int64_t s = it->sequence;
  if (job->seqs) {
    const lattn_seq_ *seq = job->seqs + s;
    it->cache = seq->cache;
    it->depth = seq->depth;
    it->q0 = seq->q0;
    it->nq = seq->nq;
    it->k0 = it->key_position = 0;
    it->nk = seq->n_keys;
    it->query_position = seq->first;
    return;
  }
  if (o->n_sequences > 0) {
    it->q0 = o->query_starts[s];
    it->nq = o->query_starts[s + 1] - it->q0;
    it->k0 = o->key_starts[s];
    it->nk = o->key_starts[s + 1] - it->k0;
  } else {
    it->q0 = it->k0 = 0;
    it->nq = job->q.n_tokens;
    it->nk = job->k.n_tokens;
  }
  it->key_position = o->n_sequences > 0 && o->sequence_key_positions ? o->sequence_key_positions[s]
                                                                     : o->key_position;
  it->query_position = o->n_sequences > 0 && o->sequence_query_positions
                           ? o->sequence_query_positions[s]
                           : o->query_position;
  if (o->mask == LATTN_CAUSAL) /* unsigned: the position may not have been checked yet */
    it->query_position = (int64_t)((uint64_t)it->key_position + (uint64_t)(it->nk - it->nq));
}

/* Rows of the sequence in this pass. */
LATTN_FN_ int64_t lattn_pass_tokens_(const lattn_job_ *job, const lattn_seq_ *seq) {
  return lattn_max_(0, lattn_min_(seq->q0 + seq->nq, job->to_token) -
                           lattn_max_(seq->q0, job->from_token));
}

/* Row r of the rows of a group, in the order of its sequences. */
LATTN_FN_ void lattn_group_row_(const lattn_job_ *job, const lattn_item_ *it, int64_t r,
                                lattn_row_ *row) {
  lattn_item_ own;
  LATTN_MEMSET_(&own, 0, sizeof own);
  own.kv = it->kv;
  for (own.sequence = it->sequence;; own.sequence = job->seqs[own.sequence].next) {
    const lattn_seq_ *seq = job->seqs + own.sequence;
    int64_t rows = lattn_pass_tokens_(job, seq) * job->group;
    if (r >= rows) {
      r -= rows;
      continue;
    }
    lattn_item_sequence_(job, &own);
    lattn_row_at_(job, &own, r + lattn_max_(0, job->from_token - seq->q0) * job->group, row);
    return;
  }
}

/* The chosen query heads of a KV head: their number, or the n-th's index among the chosen. */
LATTN_FN_ int64_t lattn_chosen_heads_(const lattn_job_ *job, int32_t kv) {
  int64_t n = 0;
  if (!job->chosen->n_heads) return job->group;
  for (int64_t i = 0; i < job->chosen->n_heads; i++)
    n += job->chosen->heads[i] / job->group == kv;
  return n;
}
LATTN_FN_ int64_t lattn_chosen_head_(const lattn_job_ *job, int32_t kv, int64_t n) {
  if (!job->chosen->n_heads) return kv * job->group + n;
  for (int64_t i = 0;; i++)
    if (job->chosen->heads[i] / job->group == kv && n-- == 0) return i;
}

/* Row r of the chosen ones, as a row of the item: chosen rows in order, each with its heads. */
LATTN_FN_ int64_t lattn_chosen_row_(const lattn_job_ *job, const lattn_item_ *it, int64_t r) {
  int64_t heads = lattn_chosen_heads_(job, it->kv);
  int64_t head = lattn_chosen_head_(job, it->kv, r % heads), i = r / heads;
  if (job->chosen->n_rows) i = job->chosen->rows[i];
  if (job->chosen->n_heads) head = job->chosen->heads[head];
  return i * job->group + head % job->group;
}

/* The row that a worker has behind row r of the item; r < 0: the first. Of a bundle all of a query
   head, then of the next, so that tiles find rows with one key head and one value head; but chosen
   rows stay in the caller's order. */
LATTN_FN_ int64_t lattn_row_after_(const lattn_job_ *job, const lattn_item_ *it, int64_t r) {
  int64_t begin = it->row, end = it->row + it->rows, group = job->group, head;
  if (job->chosen || job->n_keys * job->n_values == 1) return r < 0 ? begin : r + 1;
  head = r < 0 ? 0 : r % group;
  r = r < 0 ? begin + (group - begin % group) % group : r + group;
  while (r >= end && ++head < group) r = begin + (head + group - begin % group) % group;
  return r;
}

/* A score of the row after softcap and ALiBi. */
LATTN_FN_ float lattn_capped_(const lattn_job_ *job, const lattn_row_ *row, float s,
                              float distance) {
  float x[16];
  if (lattn_bits_(job->o.softcap)) {
    lattn_v16_ cap = lattn_v_set_(job->o.softcap);
    lattn_v_store_(x, lattn_v_mul_(lattn_v_tanh_(lattn_v_div_(lattn_v_set_(s), cap)), cap));
    s = x[0];
  }
  if (job->o.alibi_slopes) s = lattn_fma_(-job->o.alibi_slopes[row->head], distance, s);
  return s;
}

/* ---- the extra key ---- */

/* Elements [from, from + n) of a query head's row of a view that was checked (and is in nobody's
   job, which lies on the stack), and zeros up to a multiple of 16. */
LATTN_FN_ void lattn_widen_some_(const lattn_job_ *job, float *to, const lattn_tensor *t,
                                 int64_t head, int64_t from, int64_t n) {
  static const lattn_names_ name = LATTN_NAMES_("extra_key");
  lattn_tensor some = *t;
  (void)lattn_view_(&some, 0, 1, &name, 0);
  from += head * some.n_heads / (job->n_kv * job->group) * some.stride_head;
  some.dim = n;
  some.stride_head = 1;
  lattn_widen_row_(to, &some, 0, from);
  for (int64_t i = n; i < lattn_up_(n, 16); i++) to[i] = 0;
}

/* Of a query that is rotated and not yet scaled. */
LATTN_NOINLINE_ float lattn_extra_score_(const lattn_job_ *job, const lattn_row_ *row,
                                         const float *q) {
  lattn_v16_ sum = lattn_v_set_(0), scale = lattn_v_set_(job->scale);
  float some[64];
  for (int64_t from = 0; from < job->dk; from += 64) {
    int64_t n = lattn_min_(64, job->dk - from);
    lattn_widen_some_(job, some, job->o.extra_key, row->head, from, n);
    for (int64_t i = 0; i < n; i += 16) {
      lattn_v16_ x = lattn_v_load_n_(q + from + i, (int)lattn_min_(16, n - i));
      sum = lattn_v_fma_(lattn_v_mul_(x, scale), lattn_v_load_(some + i), sum);
    }
  }
  return lattn_capped_(job, row, lattn_v_reduce_add_(sum), 0);
}

/* Merges it into the row's partial, which is in that basis. */
LATTN_NOINLINE_ void lattn_merge_extra_(const lattn_job_ *job, const lattn_row_ *row, int64_t r,
                                        const lattn_slot_ *s, int32_t basis) {
  float some[128], m = s->m[r], l = s->l[r]; /* whole blocks of any basis */
  for (int64_t from = 0; from < job->dv; from += 128) {
    int64_t n = lattn_min_(128, job->dv - from);
    if (job->o.extra_value)
      lattn_widen_some_(job, some, job->o.extra_value, row->head, from, n);
    else
      LATTN_MEMSET_(some, 0, sizeof some);
    if (basis) lattn_hadamard_(some, n, basis);
    s->m[r] = m, s->l[r] = l;
    lattn_merge_row_(s->m + r, s->l + r, s->acc + r * job->columns + from, row->extra, 1.0f, some,
                     lattn_up_(n, 16));
  }
}

/* Fills the item's rows: ranges, queries rotated at their own slots and scaled. */
LATTN_FN_ void lattn_fill_rows_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp) {
  const lattn_rule_ *rule = it->cache ? lattn_cache_rule_(it->cache, it->kv) : 0;
  int64_t limit = rule && rule->in_cache ? rule->sinks + rule->window - 1 : LATTN_MAX_POSITION_;
  int64_t at = -1, from = -1, shift = rule ? rule->shift : 0;
  sp->sinks_differ = 0;
  sp->own = 0;
  sp->other = -2;
  sp->side = 0;
  sp->ahead = -1;
  for (int64_t r = 0; r < it->rows; r++) {
    lattn_row_ *row = sp->rows + r;
    float *q = sp->q + r * job->dk;
    int64_t zone;
    from = lattn_row_after_(job, it, from);
    if (it->of_group)
      lattn_group_row_(job, it, from, row);
    else
      lattn_row_at_(job, it, job->chosen ? lattn_chosen_row_(job, it, from) : from, row);
    lattn_fetch_row_(&job->q, row->token + 8 / job->group, row->head);
    lattn_widen_row_(q, &job->q, row->token, row->head);
    if (job->o.extra_key) {
      if (job->turning.turns)
        lattn_turn_at_(q, sp->angles, &job->turning, row->position, &at);
      row->extra = lattn_extra_score_(job, row, q);
      lattn_widen_row_(q, &job->q, row->token, row->head);
    }
    if (!job->turning.turns) continue;
    if (row->position > limit && rule->sinks > 0) sp->sinks_differ = 1;
    zone = row->hi - 1 + shift - row->position;
    if (r > 0 && zone != sp->own) zone = -2; /* rows on both sides of a hole: no zone is theirs */
    sp->own = zone;
    if (job->angles)
      lattn_turn_(q, job->angles + (row->token - job->from_token) * job->turning.n_dims,
                  &job->turning);
    else
      lattn_turn_at_(q, sp->angles, &job->turning, row->hi - 1 + shift, &at);
  }
  lattn_finish_queries_(job, it, sp->q, it->rows);
}

LATTN_FN_ int lattn_free_slot_(const lattn_space_ *sp) {
  int i = 0;
  while (sp->used >> i & 1u) i++;
  return i;
}

LATTN_FN_ void lattn_merge_slots_(const lattn_space_ *sp, int a, int b, int64_t rows) {
  lattn_slot_ x = lattn_space_slot_(sp, a), y = lattn_space_slot_(sp, b);
  for (int64_t r = 0; r < rows; r++)
    lattn_merge_row_(x.m + r, x.l + r, x.acc + r * sp->columns, y.m[r], y.l[r],
                     y.acc + r * sp->columns, sp->columns);
}

/* Merges the two newest subtrees of the stack. */
LATTN_FN_ void lattn_fold_top_(lattn_space_ *sp, int64_t rows) {
  int b = sp->stack[--sp->n_stack];
  lattn_merge_slots_(sp, sp->stack[sp->n_stack - 1], b, rows);
  sp->used &= ~(1u << b);
}

/* The slot becomes the newest subtree, whose first segment is leaf; complete older ones merge
   first. */
LATTN_FN_ void lattn_push_(lattn_space_ *sp, int slot, int64_t leaf, int64_t rows) {
  int n = sp->n_stack;
  while (n >= 2 &&
         lattn_height_(sp->leaf[n - 2], sp->leaf[n - 1]) < lattn_height_(sp->leaf[n - 1], leaf)) {
    lattn_fold_top_(sp, rows);
    n--;
  }
  sp->stack[n] = slot;
  sp->leaf[n] = leaf;
  sp->n_stack = n + 1;
  sp->used |= 1u << slot;
}

/* Folds what is left, newest first, and returns the slot of the root (an empty one if nothing
   was pushed). */
LATTN_FN_ int lattn_root_(lattn_space_ *sp, int64_t rows) {
  int slot;
  if (sp->n_stack == 0) {
    lattn_slot_ s = lattn_space_slot_(sp, 0);
    for (int64_t r = 0; r < rows; r++) s.m[r] = -LATTN_INFINITY_, s.l[r] = 0;
    return 0;
  }
  while (sp->n_stack > 1) lattn_fold_top_(sp, rows);
  slot = sp->stack[0];
  sp->n_stack = 0;
  sp->used = 0;
  return slot;
}

/* An empty partial for each row, in a slot that was free. */
LATTN_FN_ lattn_slot_ lattn_begin_slot_(const lattn_job_ *job, const lattn_item_ *it,
                                        const lattn_space_ *sp, int *slot) {
  lattn_slot_ to;
  *slot = lattn_free_slot_(sp);
  to = lattn_space_slot_(sp, *slot);
  for (int64_t r = 0; r < it->rows; r++) to.m[r] = -LATTN_INFINITY_, to.l[r] = 0;
  LATTN_MEMSET_(to.acc, 0, (size_t)(it->rows * job->columns) * sizeof *to.acc);
  return to;
}

/* Rows of a tile, if the item has few: tiles of one size, smaller than the largest, whose kernels
   do not prefetch. In caches of 16 bits, 4 + 4 rows decode in 0.8 of the time of 6 + 2, and 3 + 3
   in 0.85 of that of 6; kernels of LATTN_I8 always prefetch, and float32 is slower to read. */
LATTN_FN_ int64_t lattn_few_rows_(const lattn_job_ *job, const lattn_item_ *it,
                                  const lattn_block_ *b) {
  int is_half = b->k_type == LATTN_F16 || b->k_type == LATTN_BF16;
  int64_t most = 4, tiles;
  if (job->n_keys * job->n_values == 1) {
    if (!b->panels || b->k_type == LATTN_I8) return LATTN_TILE_ROWS_;
    if (it->rows < LATTN_TILE_ROWS_ + !is_half) return LATTN_TILE_ROWS_;
    most = 5;
  }
  tiles = (it->rows + most - 1) / most;
  return (it->rows + tiles - 1) / tiles;
}

/* Segments [first, end) of the item into one partial a row; returns its slot. */
LATTN_FN_ int lattn_run_segments_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                  int64_t first, int64_t end) {
  for (int64_t seg = first; seg < end; seg++) {
    int64_t start = seg * LATTN_SEGMENT_, stop = start + LATTN_SEGMENT_;
    int slot = -1;
    lattn_slot_ to = {0, 0, 0};
    if (start >= it->sink_hi && stop <= it->lo) { /* nothing until the window */
      seg = lattn_min_(it->lo / LATTN_SEGMENT_, end) - 1;
      continue;
    }
    for (int64_t base = start; base < stop; base += LATTN_BLOCK_) {
      lattn_block_ b, next;
      if (base >= it->sink_hi && base + LATTN_BLOCK_ <= it->lo) {
        base = lattn_min_(it->lo / LATTN_BLOCK_ * LATTN_BLOCK_, stop) - LATTN_BLOCK_;
        continue;
      }
      lattn_begin_block_(job, it, sp, base, &b);
      if (b.lo >= b.hi) continue;
      if (slot < 0) to = lattn_begin_slot_(job, it, sp, &slot);
      next.hi = 0;
      if (lattn_many_rows_(job, it, LATTN_FEW_ROWS_) &&
          base + LATTN_BLOCK_ < end * LATTN_SEGMENT_) {
        lattn_find_block_(job, it, base + LATTN_BLOCK_, &next);
        sp->ahead = base + LATTN_BLOCK_;
        sp->ahead_end = next.lo / LATTN_PANEL_;
      }
      for (int64_t r = 0, m = LATTN_TILE_ROWS_; r < it->rows; r += m) {
        if (!lattn_many_rows_(job, it, LATTN_FEW_ROWS_)) m = lattn_few_rows_(job, it, &b);
        if (next.hi > 0 && next.stored > next.lo) lattn_look_ahead_(job, it, sp, &next, r);
        lattn_tile_(job, it, sp, &b, base, r, (int)lattn_min_(m, it->rows - r), to);
      }
      if (base + LATTN_BLOCK_ >= it->hi && base + LATTN_BLOCK_ >= it->sink_hi) break;
    }
    if (slot >= 0) lattn_push_(sp, slot, seg, it->rows);
    if (stop >= it->hi && stop >= it->sink_hi) break;
  }
  return lattn_root_(sp, it->rows);
}

/* Finishing (attend's root and lattn_merge): learned sink, division, gate, rounding, lse. m, l
   and acc are changed. z: the head's sink logit, or -infinity. basis: that of acc, turned
   back after the division. Returns whether a finite value overflowed its type. */
LATTN_FN_ int lattn_finish_row_(float m, float l, float *acc, float z, int64_t dv,
                                int32_t basis, const lattn_tensor *gate, const lattn_tensor *out,
                                int64_t token, int64_t head, float *lse, float *lse_low) {
  int64_t at = token * out->stride_token + head * out->stride_head, gate_at = 0;
  int lost = 0;
  if (!lattn_is_empty_(z)) {
    if (lattn_is_empty_(m)) {
      m = z;
      l = 1;
      for (int64_t c = 0; c < (dv + 15) / 16 * 16; c++) acc[c] = 0;
    } else { /* a merge with the partial (z, 1, 0) */
      float e = lattn_exp_(m > z ? z - m : m == z ? 0.0f : m - z);
      if (m > z) {
        l = lattn_fma_(1.0f, e, l);
      } else {
        l = lattn_fma_(l, e, 1.0f);
        for (int64_t c = 0; c < dv; c++) acc[c] = lattn_fma_(acc[c], e, 0.0f);
        m = z;
      }
    }
  }
  if (lse) {
    float log_sum = lattn_is_empty_(m) ? 0.0f : lattn_log_(l), sum = m + log_sum;
    *lse = lattn_is_empty_(m) ? m : sum;
    if (lse_low) { /* what the sum lost, exactly (Knuth's two-sum); 0 where it is not finite */
      float back = sum - m, low = (m - (sum - back)) + (log_sum - back);
      *lse_low = lattn_is_finite_(low) ? low : 0.0f;
    }
  }
  if (!out->data) return 0;
  if (basis && !lattn_is_empty_(m)) {
    for (int64_t c = 0; c < dv; c += 16)
      lattn_v_store_(acc + c, lattn_v_div_(lattn_v_load_(acc + c), lattn_v_set_(l)));
    lattn_hadamard_(acc, dv, basis);
  }
  if (gate)
    gate_at = (gate->n_tokens > 1 ? token * gate->stride_token : 0) +
              (gate->n_heads > 1 ? head * gate->stride_head : 0);
  for (int64_t c = 0; c < dv; c += 16) {
    int n = dv - c < 16 ? (int)(dv - c) : 16;
    lattn_v16_ x = lattn_v_set_(0), g;
    if (!lattn_is_empty_(m)) {
      x = lattn_v_load_n_(acc + c, n);
      if (!basis) x = lattn_v_div_(x, lattn_v_set_(l));
      if (gate) {
        if (gate->dim == 1) {
          g = lattn_v_set_(lattn_get_(gate->data, gate->type, gate_at));
        } else {
          float y[16] = {0};
          for (int t = 0; t < n; t++) y[t] = lattn_get_(gate->data, gate->type, gate_at + c + t);
          g = lattn_v_load_(y);
        }
        x = lattn_v_if_equal_(g, lattn_v_set_(0), g, lattn_v_mul_(x, g)); /* NaN * 0 is 0, too */
      }
      x = lattn_v_if_equal_(x, lattn_v_set_(0), lattn_v_set_(0), x); /* -0 becomes +0 */
    }
    lost |= lattn_v_put_n_((void *)(uintptr_t)out->data, out->type, at + c, x, n);
  }
  return lost;
}

/* What a row dropped. Its sum becomes that of all keys, unless it is to be normalised; a NaN among
   the scores, which nobody chose, reaches it. */
LATTN_NOINLINE_ void lattn_finish_picks_(const lattn_job_ *job, const lattn_space_ *sp, int64_t r,
                                         lattn_slot_ s, float *dropped) {
  float m = s.m[r], l = s.l[r], less;
  if (job->top) {
    m = lattn_picks_of_(sp, r)->m;
    l = lattn_picks_of_(sp, r)->l;
    if (lattn_is_empty_(s.m[r])) s.m[r] = m, s.l[r] = 0;
  }
  if (dropped) {
    less = l - s.l[r];
    if (job->o.weighting == LATTN_SOFTMAX) less = less / l;
    *dropped = !job->o.top_values || lattn_is_empty_(m) || less < 0 ? 0.0f : less;
  }
  if (!job->top || lattn_is_empty_(m)) return;
  for (int64_t c = 0; lattn_is_nan_(l) && c < job->columns; c++)
    s.acc[r * job->columns + c] = LATTN_NAN_;
  if (lattn_is_nan_(l) || job->o.top_mode == LATTN_TOP_KEEP) s.l[r] = l;
}

/* ---- what a head dropped ----
   A head with sums (lattn_head.flags, or compensated) keeps two prefixes of them: up to its oldest
   page, from which any row that can still be asked for is reached, and up to what the next row has
   lost, so that a row of decode finds its own. */

/* Tokens [sinks, this) are those that a row at that position no longer sees. Of heads chosen at
   marks (rows all come after the last mark) some of these: all but what that mark had to keep. */
LATTN_FN_ int64_t lattn_dropped_end_(const lattn_rule_ *rule, int64_t position) {
  if (rule->kept) return rule->kept + rule->shift - rule->c.recent;
  if (rule->window == 0) return rule->sinks;
  return lattn_max_(rule->sinks, position - rule->window + 1);
}

/* How many, with that end. */
LATTN_FN_ int64_t lattn_dropped_count_(const lattn_rule_ *rule, int64_t end) {
  return rule->kept ? rule->shift : end - rule->sinks;
}

/* The parts of sums that lie at p. */
LATTN_FN_ lattn_sums_ lattn_sums_at_(const lattn_rule_ *rule, int64_t dk, int64_t dv, void *p) {
  lattn_sums_ t;
  double *next = (double *)p + 2;
  t.to = (int64_t *)p;
  t.longest = (double *)p + 1;
  t.k = next;
  next += dk;
  t.v = rule->policy == LATTN_HEAD_COMPENSATED ? next : 0;
  if (t.v) next += dv;
  t.squares = rule->flags & LATTN_HEAD_VARIANCE ? next : 0;
  if (t.squares) next += dk;
  t.least = rule->flags & LATTN_HEAD_LOST ? (float *)(void *)next : 0;
  t.most = t.least ? t.least + dk : 0;
  return t;
}

/* Prefix 0 or 1 of a head of a cache. */
LATTN_FN_ lattn_sums_ lattn_cache_sums_(const lattn_cache *cache, int32_t kv, int prefix);

/* Elements at, at + 16, ... of a panel. */
LATTN_INLINE_ void lattn_gather_(float *row, const char *panel, int type, int64_t at, int64_t n) {
  const size_t size = lattn_type_size_(type);
  const char *from = panel + (size_t)at * size;
  float lanes[LATTN_PANEL_] = {0};
  char *to = (char *)(void *)lanes;
  for (int64_t i = 0; i < n; i += LATTN_PANEL_, from += LATTN_PANEL_ * LATTN_PANEL_ * size) {
    int some = n - i < LATTN_PANEL_ ? (int)(n - i) : LATTN_PANEL_;
    if (some == LATTN_PANEL_) {
      LATTN_UNROLL_
      for (size_t j = 0; j < LATTN_PANEL_; j++)
        LATTN_MEMCPY_(to + j * size, from + j * LATTN_PANEL_ * size, size);
    } else {
      for (int j = 0; j < some; j++)
        LATTN_MEMCPY_(to + (size_t)j * size, from + (size_t)j * LATTN_PANEL_ * size, size);
    }
    lattn_v_store_n_(row + i, lattn_v_get_(lanes, type, 0), some);
  }
}

/* Dims [d, d + n) of a key or value of a page as the floats they stand for; all, of integers. */
LATTN_FN_ void lattn_stored_key_(float *row, const lattn_storage_ *st, const char *page, int lane,
                                 int64_t dk, int64_t d, int64_t n) {
  const char *panel = page + lane / LATTN_PANEL_ * st->panel_bytes;
  lane %= LATTN_PANEL_;
  if (lattn_is_int_(st->key_type)) {
    lattn_get_key_ints_(panel, st->key_type, lane, row, dk);
    return;
  }
#define LATTN_BODY_(T) lattn_gather_(row, panel, T, d * LATTN_PANEL_ + lane, n)
  LATTN_EACH_TYPE_(st->key_type, LATTN_BODY_)
#undef LATTN_BODY_
}
LATTN_FN_ void lattn_stored_value_(float *row, const lattn_storage_ *st, const char *page, int lane,
                                   int64_t dv, int64_t c, int64_t n) {
  const char *values = page + st->value_at;
  if (lattn_is_int_(st->value_type)) {
    lattn_widen_ints_(row, values + lane * st->row_bytes, st->value_type, dv);
    if (st->value_type == LATTN_I8)
      lattn_scale_(row, dv, lattn_value_scale_(values + lattn_scales_at_(st, LATTN_BLOCK_), lane));
    return;
  }
  lattn_widen_(row, values, st->value_type, lane * dv + c, n);
}

LATTN_FN_ void lattn_add_doubles_(double *sum, const float *x, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) sum[i + j] += (double)x[i + j];
  for (; i < n; i++) sum[i] += (double)x[i];
}

/* A prefix without a token. */
LATTN_FN_ void lattn_sums_none_(const lattn_sums_ *t, const lattn_rule_ *rule, int64_t dk) {
  LATTN_MEMSET_(t->to, 0, (size_t)rule->sums_bytes);
  *t->to = rule->sinks;
  for (int64_t d = 0; t->least && d < dk; d++) {
    t->least[d] = LATTN_INFINITY_;
    t->most[d] = -LATTN_INFINITY_;
  }
}

/* Adds the token in a lane of a page. (Squares of floats are exact in double: nothing to fuse.) */
LATTN_FN_ void lattn_sum_token_(const lattn_sums_ *t, const lattn_storage_ *st, int64_t dk,
                                int64_t dv, const char *page, int lane, float *row) {
  int64_t step = lattn_sums_row_(dk, dv);
  double square = 0;
  for (int64_t d = 0, n; d < dk; d += n) {
    n = lattn_min_(dk - d, step);
    lattn_stored_key_(row, st, page, lane, dk, d, n);
    lattn_add_doubles_(t->k + d, row, n);
    for (int64_t i = 0; t->squares && i < n; i++)
      t->squares[d + i] += (double)row[i] * (double)row[i];
    for (int64_t i = 0; t->least && i < n; i++) {
      square += (double)row[i] * (double)row[i];
      int is_nan = lattn_is_nan_(row[i]); /* it stays */
      if (is_nan || row[i] < t->least[d + i]) t->least[d + i] = row[i];
      if (is_nan || row[i] > t->most[d + i]) t->most[d + i] = row[i];
    }
  }
  if (square > *t->longest) *t->longest = square; /* not a NaN: the box has it */
  for (int64_t c = 0, n; t->v && c < dv; c += n) {
    n = lattn_min_(dv - c, step);
    lattn_stored_value_(row, st, page, lane, dv, c, n);
    lattn_add_doubles_(t->v + c, row, n);
  }
  ++*t->to;
}

/* Adds the tokens up to `to`, which the head holds. There are no holes. */
LATTN_FN_ void lattn_sum_tokens_(const lattn_cache *cache, int32_t kv, const lattn_sums_ *t,
                                 int64_t dk, int64_t dv, int64_t to, float *row) {
  const lattn_storage_ *st = &lattn_cache_rule_(cache, kv)->s;
  while (*t->to < to) {
    const char *page = lattn_cache_page_(cache, kv, *t->to / LATTN_BLOCK_);
    int lane = (int)(*t->to % LATTN_BLOCK_);
    do
      lattn_sum_token_(t, st, dk, dv, page, lane, row);
    while (++lane < LATTN_BLOCK_ && *t->to < to);
  }
}

/* The key and value that stand for what a row no longer sees. */
typedef struct lattn_dropped_ {
  const lattn_rule_ *rule;
  lattn_sums_ own;   /* in the worker's memory */
  lattn_sums_ sums;  /* those that end where the row's do: a prefix of the cache's, or own */
  int64_t loaded;    /* 1 + the prefix that own began with; 0: none */
  int64_t end, count; /* of the tokens that the means are of; end -1: none */
  float *q, *mean, *value, *row;
  int64_t at;        /* position of the worker's angles */
} lattn_dropped_;

LATTN_FN_ void lattn_dropped_init_(const lattn_job_ *job, const lattn_item_ *it,
                                   const lattn_space_ *sp, lattn_dropped_ *d) {
  char *p = sp->dropped ? sp->dropped : (char *)(void *)(sp->slots + sp->slot_floats);
  LATTN_MEMSET_(d, 0, sizeof *d);
  d->rule = lattn_cache_rule_(it->cache, it->kv);
  d->end = d->at = -1;
  if (!d->rule->sums) return;
  d->own = lattn_sums_at_(d->rule, job->dk, job->dv, p);
  d->q = (float *)(void *)(p + job->sums_bytes);
  d->mean = d->q + lattn_up_(job->dk, 16);
  d->value = d->mean + lattn_up_(job->dk, 16);
  d->row = d->value + job->columns;
}

/* Means of the first n numbers, and zeros up to a multiple of 16. */
LATTN_FN_ void lattn_means_(float *to, const double *sum, int64_t n, double inverse) {
  for (int64_t i = 0; i < n; i++) to[i] = (float)(sum[i] * inverse);
  for (int64_t i = n; i < lattn_up_(n, 16); i++) to[i] = 0;
}

/* Makes the sums, and their means, those of tokens up to `end`. Rows mostly come in order. */
LATTN_FN_ void lattn_dropped_reach_(const lattn_job_ *job, const lattn_item_ *it,
                                    lattn_dropped_ *d, int64_t end) {
  lattn_sums_ newer = lattn_cache_sums_(it->cache, it->kv, 1);
  double inverse;
  if (d->end == end) return;
  if (*newer.to == end || d->rule->kept) {
    d->sums = newer;
  } else {
    int prefix = *newer.to <= end;
    if (!d->loaded || *d->own.to > end || (prefix && *d->own.to < *newer.to)) {
      lattn_sums_ from = lattn_cache_sums_(it->cache, it->kv, prefix);
      if (*from.to > end) /* all that it lost lies in pages of sinks, which are held */
        lattn_sums_none_(&d->own, d->rule, job->dk);
      else
        LATTN_MEMCPY_(d->own.to, from.to, (size_t)d->rule->sums_bytes);
      d->loaded = 1;
    }
    lattn_sum_tokens_(it->cache, it->kv, &d->own, job->dk, job->dv, end, d->row);
    d->sums = d->own;
  }
  d->end = end;
  d->count = lattn_dropped_count_(d->rule, end);
  inverse = 1.0 / (double)d->count;
  lattn_means_(d->mean, d->sums.k, job->dk, inverse);
  if (d->sums.v) lattn_means_(d->value, d->sums.v, job->dv, inverse);
}

/* The row's query as its scores' keys are: turned at its position, in the keys' basis, scaled. */
LATTN_FN_ const float *lattn_dropped_query_(const lattn_job_ *job, const lattn_item_ *it,
                                            const lattn_space_ *sp, lattn_dropped_ *d, int64_t r) {
  const lattn_row_ *row = sp->rows + r;
  int64_t padded = lattn_up_(job->dk, 16);
  if (!lattn_is_int_(d->rule->s.key_type) && !lattn_in_pairs_(job, it)) {
    LATTN_MEMCPY_(d->q, sp->q + r * job->dk, (size_t)job->dk * sizeof *d->q);
  } else {
    lattn_widen_row_(d->q, &job->q, row->token, row->head);
    if (job->turning.turns)
      lattn_turn_at_(d->q, sp->angles, &job->turning, row->position, &d->at);
    if (d->rule->s.key_basis) lattn_hadamard_(d->q, job->dk, d->rule->s.key_basis);
    lattn_scale_(d->q, job->dk, job->scale);
  }
  for (int64_t i = job->dk; i < padded; i++) d->q[i] = 0;
  return d->q;
}

/* A dot product in 16 chains. */
LATTN_FN_ float lattn_dot16_(const float *a, const float *b, int64_t n) {
  lattn_v16_ sum = lattn_v_set_(0);
  for (int64_t i = 0; i < n; i += 16)
    sum = lattn_v_fma_(lattn_v_load_(a + i), lattn_v_load_(b + i), sum);
  return lattn_v_reduce_add_(sum);
}

/* Score of the mean key, counted as often as tokens were dropped. */
LATTN_FN_ float lattn_dropped_score_(const lattn_job_ *job, const lattn_row_ *row,
                                     const lattn_dropped_ *d, const float *q) {
  double n = (double)d->count;
  float s = lattn_dot16_(q, d->mean, lattn_up_(job->dk, 16)), more = 0;
  s = lattn_capped_(job, row, s,
                    (float)(2 * row->position - d->end - d->rule->sinks + 1) * 0.5f);
  for (int64_t i = 0; d->sums.squares && i < job->dk; i++) {
    double mean = d->sums.k[i] / n;
    double variance = lattn_fma64_(-mean, mean, d->sums.squares[i] / n);
    more = lattn_fma_(q[i] * q[i], variance < 0 ? 0.0f : (float)variance, more);
  }
  return lattn_fma_(0.5f, more, s) + lattn_log_((float)n);
}

/* No dropped key scores more: neither |q| times the longest, nor the box around all of them, can.
   Chains of dk float multiply-adds round a score by below (dk + 3) 2^-24 of |q| |k|, and our own
   numbers by a few 2^-24: twice as much is allowed. An integer query (lattn_query_ints_) is off by
   half a step, which its largest dim has 127 or 127 * 128 of. */
LATTN_FN_ float lattn_dropped_bound_(const lattn_job_ *job, const lattn_row_ *row,
                                     const lattn_dropped_ *d, const float *q) {
  double box = 0, square = 0, sizes = 0, most, step;
  int64_t distance = row->position - d->end + 1; /* the nearest; or the farthest */
  float length, u;
  for (int64_t i = 0; i < job->dk; i++) {
    double x = (double)q[i] * (double)d->sums.least[i], y = (double)q[i] * (double)d->sums.most[i];
    square += (double)q[i] * (double)q[i];
    box += x > y ? x : y;
    x = -(double)d->sums.least[i];
    sizes += x > (double)d->sums.most[i] ? x : (double)d->sums.most[i];
  }
  length = (float)(square * *d->sums.longest);
  length *= lattn_rsqrt_(length);
  most = (double)length < box ? (double)length : box;
  if (lattn_is_int_(d->rule->s.key_type)) {
    step = (double)lattn_extreme_(q, job->dk) / (d->rule->s.key_type == LATTN_I8 ? 127 * 128 : 127);
    most = lattn_fma64_(step < 0 ? -step : step, sizes * 0.5, most);
  }
  u = (float)lattn_fma64_((double)length, (double)(job->dk + 16) * 0x1p-23, most);
  if (job->o.alibi_slopes && job->o.alibi_slopes[row->head] < 0)
    distance = row->position - d->rule->sinks;
  return lattn_capped_(job, row, u, (float)distance);
}

/* The share of a part, of that score and logarithm of a count, in the whole of it and what is kept,
   of that maximum and logarithm of its sum. (Large scores are not rounded once more.) */
LATTN_FN_ float lattn_lost_share_(float score, float log_count, float most, float log_sum) {
  float x = (score - most) + (log_count - log_sum), e;
  if (lattn_is_empty_(score)) return 0;
  if (x <= 0) {
    e = lattn_exp_(x);
    return e / (1.0f + e);
  }
  return 1.0f / (1.0f + lattn_exp_(-x));
}

/* Row r of the item, all of whose segments are merged into s: what it lost, and what stands for
   it. */
LATTN_NOINLINE_ void lattn_finish_dropped_(const lattn_job_ *job, const lattn_item_ *it,
                                           const lattn_space_ *sp, lattn_dropped_ *d, int64_t r,
                                           const lattn_slot_ *s) {
  const lattn_row_ *row = sp->rows + r;
  int64_t at = row->token * job->n_kv * job->group + row->head;
  int64_t end = lattn_dropped_end_(d->rule, row->position);
  int64_t n = lattn_dropped_count_(d->rule, end);
  float bound = n > 0 ? 1.0f : 0.0f, estimate = n > 0 ? LATTN_NAN_ : 0.0f;
  int tells = job->lost_bound || job->lost_estimate;
  if (n > 0 && d->rule->sums && (tells || d->rule->policy == LATTN_HEAD_COMPENSATED)) {
    const float *q = lattn_dropped_query_(job, it, sp, d, r);
    float score, most = s->m[r], log_sum = lattn_log_(s->l[r]);
    lattn_dropped_reach_(job, it, d, end);
    score = lattn_dropped_score_(job, row, d, q);
    if (d->sums.least) {
      estimate = lattn_lost_share_(score, 0, most, log_sum);
      if (job->lost_bound && !(job->o.key_bias || job->o.pair_bias || job->o.score))
        bound = lattn_lost_share_(lattn_dropped_bound_(job, row, d, q), lattn_log_((float)n), most,
                                  log_sum) * 1.00001f;
      if (bound < 0x1p-126f) bound = 0x1p-126f; /* what exp makes 0 is not nothing */
      if (!(bound <= 1.0f)) bound = 1.0f;
    }
    if (d->sums.v)
      lattn_merge_row_(s->m + r, s->l + r, s->acc + r * job->columns, score, 1.0f, d->value,
                       job->columns);
  }
  if (job->lost_bound) job->lost_bound[at] = bound;
  if (job->lost_estimate) job->lost_estimate[at] = estimate;
}

LATTN_FN_ void lattn_finish_item_(lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                  int slot) {
  const int sigmoid = job->o.weighting == LATTN_SIGMOID;
  lattn_slot_ s = lattn_space_slot_(sp, slot);
  lattn_dropped_ dropped;
  int sums = it->cache && lattn_cache_rule_(it->cache, it->kv)->sums;
  int drops = sums || job->lost_bound || job->lost_estimate;
  if (sums && !sp->dropped && slot > 0) { /* the other slots are free: room for the sums */
    s = lattn_space_slot_(sp, 0);
    LATTN_MEMCPY_(sp->slots, sp->slots + (size_t)slot * sp->slot_floats,
                  sp->slot_floats * sizeof *sp->slots);
  }
  if (drops) lattn_dropped_init_(job, it, sp, &dropped);
  for (int64_t r = 0; r < it->rows; r++) {
    const lattn_row_ *row = sp->rows + r;
    int32_t basis = it->cache ? lattn_cache_rule_(it->cache, it->kv)->s.value_basis : 0;
    int64_t at = row->token * job->n_kv * job->group + row->head;
    float *acc = s.acc + r * job->columns;
    float z = job->o.sink_logits ? job->o.sink_logits[row->head] : -LATTN_INFINITY_;
    if (job->out.data) lattn_fetch_row_(&job->out, row->token + 16 / job->group, row->head);
    lattn_finish_picks_(job, sp, r, s, job->o.dropped ? job->o.dropped + at : 0);
    if (drops) lattn_finish_dropped_(job, it, sp, &dropped, r, &s);
    if (job->o.extra_key) lattn_merge_extra_(job, row, r, &s, basis);
    if (sigmoid) s.l[r] = 1; /* the output is the sum: dividing by 1 changes no bit */
    if (job->partial) {
      int none = lattn_is_empty_(s.m[r]);
      job->partial->maximum[at] = s.m[r];
      job->partial->sum[at] = none ? 0.0f : s.l[r];
      if (basis != job->partial->basis) { /* heads of several bases: the plain one */
        if (!none) lattn_hadamard_(acc, job->dv, basis);
        basis = 0;
      }
      for (int64_t c = 0; c < job->dv; c++)
        job->partial->output[at * job->dv + c] = none ? 0.0f : acc[c];
    }
    if (job->out.data || job->lse)
      if (lattn_finish_row_(s.m[r], s.l[r], acc, z, job->dv, basis,
                            job->o.gate ? &job->gate : 0, &job->out, row->token, row->head,
                            job->lse ? job->lse + at : 0,
                            job->o.lse_low ? job->o.lse_low + at : 0))
        lattn_raise_(&job->overflowed);
    if (sigmoid && job->lse) job->lse[at] = LATTN_NAN_;
  }
}

/* ---- items and units in order ---- */

/* Widens the item's unions by a row. */
LATTN_FN_ void lattn_item_add_(lattn_item_ *it, const lattn_row_ *row) {
  if (row->lo < row->hi) {
    it->lo = lattn_min_(it->lo, row->lo);
    it->hi = lattn_max_(it->hi, row->hi);
  }
  if (row->sink_lo < row->sink_hi) {
    it->sink_lo = lattn_min_(it->sink_lo, row->sink_lo);
    it->sink_hi = lattn_max_(it->sink_hi, row->sink_hi);
  }
}

/* ---- groups: sequences that share pages ----
   Rows of several sequences against the pages that all of them hold, which are read once. What the
   shared segments come to for each row is kept, as the roots of at most 4 aligned subtrees, and is
   what the row's own item begins with: the tree is the one that the row alone would have. */

enum { LATTN_PIECES_ = 4, LATTN_GROUP_TOKENS_ = 8, LATTN_MOST_LEADERS_ = 64 };

/* Heads that groups read: full ones, whose slots are positions. */
LATTN_FN_ int lattn_in_groups_(const lattn_rule_ *rule) {
  return !rule->window && !rule->c.budget;
}

/* Segments of the item's row that its group reads. */
LATTN_FN_ int64_t lattn_grouped_segments_(const lattn_job_ *job, const lattn_item_ *it) {
  if (!it->cache || !job->grouped) return 0;
  return lattn_in_groups_(lattn_cache_rule_(it->cache, it->kv)) ? job->seqs[it->sequence].shared
                                                                : 0;
}

/* The i-th of the aligned pieces [*first, *end) that `segments` falls into; 0: no more. */
LATTN_FN_ int lattn_piece_(int64_t segments, int i, int64_t *first, int64_t *end) {
  *first = *end = 0;
  for (int bit = 30; bit >= 0; bit--) {
    if (!(segments >> bit & 1)) continue;
    *first = *end;
    *end += (int64_t)1 << bit;
    if (i-- == 0) return 1;
  }
  return 0;
}

/* Where the partial of a piece for a grouped row is: maximum, sum, and from 16 on the output. */
LATTN_FN_ float *lattn_grouped_at_(const lattn_job_ *job, int piece, const lattn_row_ *row) {
  const lattn_seq_ *seq = job->seqs + (row->sequence - job->first_sequence);
  int64_t token = row->token - lattn_max_(seq->q0, job->from_token) + seq->group_token;
  int64_t at = (piece * job->most_grouped + token) * job->n_kv * job->group + row->head;
  return job->grouped + at * (job->columns + 16);
}

/* The item's stack begins with what its group did. */
LATTN_FN_ void lattn_push_grouped_(const lattn_job_ *job, const lattn_item_ *it,
                                   lattn_space_ *sp) {
  int64_t first, end;
  for (int i = 0; lattn_piece_(it->first_segment, i, &first, &end); i++) {
    int slot = lattn_free_slot_(sp);
    lattn_slot_ to = lattn_space_slot_(sp, slot);
    for (int64_t r = 0; r < it->rows; r++) {
      const float *from = lattn_grouped_at_(job, i, sp->rows + r);
      to.m[r] = from[0];
      to.l[r] = from[1];
      LATTN_MEMCPY_(to.acc + r * job->columns, from + 16, (size_t)job->columns * sizeof *from);
    }
    lattn_push_(sp, slot, first, it->rows);
  }
}

/* Unions over the item's rows, and its runs of segments. */
LATTN_FN_ void lattn_item_runs_(const lattn_job_ *job, lattn_item_ *it) {
  int64_t first = it->row / job->group, last = (it->row + it->rows - 1) / job->group;
  it->lo = it->sink_lo = INT64_MAX;
  it->hi = it->sink_hi = 0;
  for (int64_t i = first; i <= last; i++) {
    lattn_row_ row;
    lattn_row_at_(job, it, i * job->group, &row);
    lattn_item_add_(it, &row);
  }
  if (it->hi == 0) it->lo = 0;
  if (it->sink_hi == 0) it->sink_lo = 0;
  it->first_segment = lattn_grouped_segments_(job, it);
  it->units = 1;
  if (it->first_segment) return; /* what a group has done is the beginning of one unit */
  for (int i = 0; i < 2; i++) {
    int64_t lo = i ? it->lo : it->sink_lo, hi = i ? it->hi : it->sink_hi;
    int shift = job->log_run;
    it->run[i] = lo < hi ? lo / LATTN_SEGMENT_ >> shift : 0;
    it->run_end[i] = lo < hi ? ((hi - 1) / LATTN_SEGMENT_ >> shift) + 1 : 0;
  }
  if (it->run_end[0] > 0 && it->run_end[1] > 0 && it->run_end[0] >= it->run[1]) {
    it->run[1] = lattn_min_(it->run[0], it->run[1]);
    it->run_end[1] = lattn_max_(it->run_end[0], it->run_end[1]);
    it->run[0] = it->run_end[0] = 0;
  }
  it->units = it->run_end[0] - it->run[0] + it->run_end[1] - it->run[1];
  if (it->units < 1) it->units = 1;
}

/* The next item; 0 at the end. All blocks of rows of a KV head, whose keys they share, then the
   next head; the heaviest rows of a causal sequence first. */
LATTN_FN_ int lattn_next_item_(const lattn_job_ *job, lattn_item_ *it) {
  int64_t from, to;
  if (!it->started) {
    LATTN_MEMSET_(it, 0, sizeof *it);
    it->sequence = -1;
    it->started = 1;
  } else {
    it->first_unit += it->units;
    if (it->units > 1) it->slot += it->units;
  }
  for (;;) {
    if (it->blocks > 0 && --it->block < 0 && ++it->kv < job->n_kv) it->block = it->blocks - 1;
    if (it->blocks > 0 && it->block >= 0) break;
    if (++it->sequence >= (job->o.n_sequences > 0 ? job->o.n_sequences : 1)) return 0;
    lattn_item_sequence_(job, it);
    from = lattn_max_(it->q0, job->from_token);
    to = lattn_min_(it->q0 + it->nq, job->to_token);
    it->blocks = from < to ? ((to - from) * job->group + job->rows - 1) / job->rows : 0;
    it->block = it->blocks; /* the step above begins at the last */
    if (it->blocks) { /* rows evenly, in whole tiles */
      int64_t each = ((to - from) * job->group + it->blocks - 1) / it->blocks;
      each = (each + LATTN_TILE_ROWS_ - 1) / LATTN_TILE_ROWS_ * LATTN_TILE_ROWS_;
      it->block_rows = lattn_min_(each, job->rows);
    }
    it->kv = 0;
  }
  from = lattn_max_(it->q0, job->from_token) - it->q0;
  to = lattn_min_(it->q0 + it->nq, job->to_token) - it->q0;
  it->row = from * job->group + it->block * it->block_rows;
  it->rows = lattn_min_(it->block_rows, to * job->group - it->row);
  lattn_item_runs_(job, it);
  return 1;
}

/* The values of all chosen keys, by blocks and segments; returns the slot of the root. */
LATTN_NOINLINE_ int lattn_take_picked_(const lattn_job_ *job, const lattn_item_ *it,
                                       lattn_space_ *sp) {
  int64_t segment = -1;
  int slot = -1;
  lattn_slot_ to = {0, 0, 0};
  for (;;) {
    lattn_block_ b;
    int64_t next = INT64_MAX, base;
    for (int64_t r = 0; r < it->rows; r++) {
      const lattn_picks_ *c = lattn_picks_of_(sp, r);
      const lattn_pick_ *key = (const lattn_pick_ *)(const void *)(c + 1);
      if (c->at < c->n) next = lattn_min_(next, key[c->at].slot);
    }
    if (slot >= 0 && next / LATTN_SEGMENT_ != segment) {
      lattn_push_(sp, slot, segment, it->rows);
      slot = -1;
    }
    if (next == INT64_MAX) return lattn_root_(sp, it->rows);
    segment = next / LATTN_SEGMENT_;
    base = next / LATTN_BLOCK_ * LATTN_BLOCK_;
    if (slot < 0) to = lattn_begin_slot_(job, it, sp, &slot);
    lattn_find_block_(job, it, base, &b);
    lattn_fetch_picked_(job, it, sp, &b, base);
    for (int64_t r = 0; r < it->rows; r++) lattn_take_row_(job, it, sp, &b, base, r, to);
  }
}

/* Selective values: the item's rows against all keys, then against those that they chose. */
LATTN_NOINLINE_ int lattn_run_picked_(const lattn_job_ *job, const lattn_item_ *it,
                                      lattn_space_ *sp) {
  int slot;
  lattn_slot_ all;
  for (int64_t r = 0; r < it->rows; r++) lattn_picks_of_(sp, r)->n = 0;
  sp->picking = 1;
  slot = lattn_run_segments_(job, it, sp, 0, LATTN_MAX_POSITION_);
  sp->picking = 0;
  all = lattn_space_slot_(sp, slot);
  for (int64_t r = 0; r < it->rows; r++) {
    lattn_picks_of_(sp, r)->at = 0;
    lattn_order_picks_(lattn_picks_of_(sp, r), all.m[r], all.l[r]);
  }
  return lattn_take_picked_(job, it, sp);
}

/* Whether the gate makes all of the rows +0, which is all that is wanted of them. */
LATTN_FN_ int lattn_pruned_(const lattn_job_ *job, const lattn_space_ *sp, int64_t rows) {
  const lattn_tensor *gate = &job->gate;
  if (!job->o.gate || job->lse || job->partial || job->lost_bound || job->lost_estimate || job->top)
    return 0;
  for (int64_t r = 0; r < rows; r++) {
    int64_t at = (gate->n_tokens > 1 ? sp->rows[r].token * gate->stride_token : 0) +
                 (gate->n_heads > 1 ? sp->rows[r].head * gate->stride_head : 0);
    for (int64_t d = 0; d < gate->dim; d++)
      if (lattn_bits_(lattn_get_(gate->data, gate->type, at + d)) << 1) return 0;
  }
  return 1;
}

LATTN_FN_ void lattn_unit_(lattn_job_ *job, const lattn_item_ *it, int64_t unit, lattn_space_ *sp) {
  int64_t run = it->run[0] + unit, first, end;
  int slot;
  if (run >= it->run_end[0]) run += it->run[1] - it->run_end[0];
  lattn_fill_rows_(job, it, sp);
  first = job->log_run >= 62 ? 0 : run << job->log_run;
  end = job->log_run >= 62 ? LATTN_MAX_POSITION_ : (run + 1) << job->log_run;
  if (lattn_pruned_(job, sp, it->rows)) {
    slot = lattn_root_(sp, it->rows);
  } else if (job->top) {
    slot = lattn_run_picked_(job, it, sp);
  } else {
    if (it->first_segment) {
      lattn_push_grouped_(job, it, sp);
      first = it->first_segment;
      end = LATTN_MAX_POSITION_;
    }
    slot = lattn_run_segments_(job, it, sp, first, end);
  }
  if (it->units == 1) {
    lattn_finish_item_(job, it, sp, slot);
  } else {
    lattn_slot_ from = lattn_space_slot_(sp, slot);
    size_t floats = lattn_slot_floats_(job->rows, job->columns);
    lattn_slot_ to = lattn_slot_at_(job->split + (size_t)(it->slot + unit) * floats, job->rows);
    LATTN_MEMCPY_(to.m, from.m, (size_t)it->rows * sizeof(float));
    LATTN_MEMCPY_(to.l, from.l, (size_t)it->rows * sizeof(float));
    LATTN_MEMCPY_(to.acc, from.acc, (size_t)(it->rows * job->columns) * sizeof(float));
  }
}

LATTN_NOINLINE_ void lattn_work_on_stack_(void *context, int32_t index,
                                          void (*work)(void *, int32_t, char *)) {
  union { /* of 8-byte members, for its alignment */
    int64_t align;
    char bytes[LATTN_STACK_BYTES_];
  } memory;
  work(context, index, memory.bytes);
}

/* A task: work (never inlined) under our control word, with a worker's memory of the job's scratch,
   or on the stack. */
LATTN_FN_ void lattn_work_(const lattn_job_ *job, void *context, int32_t index,
                           void (*work)(void *, int32_t, char *)) {
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  if (job->scratch)
    work(context, index, job->scratch + (size_t)index * job->worker_bytes);
  else
    lattn_work_on_stack_(context, index, work);
  lattn_fpenv_leave_(&saved);
}

LATTN_NOINLINE_ void lattn_worker_(void *context, int32_t index, char *memory) {
  lattn_job_ *job = (lattn_job_ *)context;
  lattn_space_ sp;
  lattn_item_ it;
  int64_t unit = index, turn = 0;
  size_t keys_at;
  int more;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  it.started = 0;
  more = lattn_next_item_(job, &it);
  for (;;) {
    if (LATTN_HAS_ATOMIC_)
      unit = lattn_take_(&job->next);
    else
      unit = index + job->n_workers * turn++;
    while (more && unit >= it.first_unit + it.units) more = lattn_next_item_(job, &it);
    if (!more) return;
    lattn_unit_(job, &it, unit - it.first_unit, &sp);
  }
}

LATTN_FN_ void lattn_task_(void *context, int32_t index) {
  lattn_work_((const lattn_job_ *)context, context, index, lattn_worker_);
}

/* Folds the partials of items that were split, on the caller's thread, with worker 0's memory. */
LATTN_NOINLINE_ void lattn_fold_split_(lattn_job_ *job) {
  lattn_space_ sp;
  lattn_item_ it;
  size_t floats = lattn_slot_floats_(job->rows, job->columns), keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, job->scratch, job, &keys_at);
  it.started = 0;
  while (lattn_next_item_(job, &it)) {
    if (it.units == 1) continue;
    if (job->o.extra_key || (it.cache && lattn_cache_rule_(it.cache, it.kv)->sums))
      lattn_fill_rows_(job, &it, &sp); /* queries too */
    else
      for (int64_t r = 0, from = -1; r < it.rows; r++) {
        from = lattn_row_after_(job, &it, from);
        lattn_row_at_(job, &it, from, sp.rows + r);
      }
    for (int64_t u = 0; u < it.units; u++) {
      int64_t run = it.run[0] + u;
      int slot = lattn_free_slot_(&sp);
      lattn_slot_ to = lattn_space_slot_(&sp, slot);
      lattn_slot_ from = lattn_slot_at_(job->split + (size_t)(it.slot + u) * floats, job->rows);
      if (run >= it.run_end[0]) run += it.run[1] - it.run_end[0];
      int64_t r = 0;
      while (r < it.rows && lattn_is_empty_(from.m[r])) r++;
      if (r == it.rows) continue; /* nobody saw anything: no subtree */
      LATTN_MEMCPY_(to.m, from.m, (size_t)it.rows * sizeof(float));
      LATTN_MEMCPY_(to.l, from.l, (size_t)it.rows * sizeof(float));
      LATTN_MEMCPY_(to.acc, from.acc, (size_t)(it.rows * job->columns) * sizeof(float));
      lattn_push_(&sp, slot, run << job->log_run, it.rows);
    }
    lattn_finish_item_(job, &it, &sp, lattn_root_(&sp, it.rows));
  }
}

/* Piece i of the segments that the item's group shares, for the item's rows. */
LATTN_FN_ void lattn_group_unit_(const lattn_job_ *job, lattn_item_ *it, int piece,
                                 lattn_space_ *sp) {
  int64_t first, end;
  lattn_slot_ from;
  lattn_piece_(job->seqs[it->sequence].shared, piece, &first, &end);
  it->lo = first * LATTN_SEGMENT_;
  it->hi = end * LATTN_SEGMENT_;
  lattn_fill_rows_(job, it, sp);
  from = lattn_space_slot_(sp, lattn_pruned_(job, sp, it->rows)
                                   ? lattn_root_(sp, it->rows)
                                   : lattn_run_segments_(job, it, sp, first, end));
  for (int64_t r = 0; r < it->rows; r++) {
    float *to = lattn_grouped_at_(job, piece, sp->rows + r);
    to[0] = from.m[r];
    to[1] = from.l[r];
    LATTN_MEMCPY_(to + 16, from.acc + r * job->columns, (size_t)job->columns * sizeof *to);
  }
}

/* Units of groups: (group, full KV head, block of rows, piece), taken in turn. */
LATTN_NOINLINE_ void lattn_group_worker_(lattn_job_ *job, int32_t index, char *memory) {
  lattn_space_ sp;
  lattn_item_ it;
  int64_t unit = index, turn = 0, n = 0, first, end;
  size_t keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  if (LATTN_HAS_ATOMIC_) unit = lattn_take_(&job->next);
  for (int64_t s = 0; s < job->o.n_sequences; s++) {
    int64_t rows = 0, each;
    if (!job->seqs[s].shared || job->seqs[s].leader != s) continue;
    for (int64_t m = s; m >= 0; m = job->seqs[m].next)
      rows += lattn_pass_tokens_(job, job->seqs + m) * job->group;
    each = (rows + (rows + job->rows - 1) / job->rows - 1) / ((rows + job->rows - 1) / job->rows);
    each = lattn_min_((each + LATTN_TILE_ROWS_ - 1) / LATTN_TILE_ROWS_ * LATTN_TILE_ROWS_,
                      job->rows);
    LATTN_MEMSET_(&it, 0, sizeof it);
    it.sequence = s;
    it.of_group = 1;
    lattn_item_sequence_(job, &it);
    for (it.kv = 0; it.kv < job->n_kv; it.kv++) {
      if (!lattn_in_groups_(lattn_cache_rule_(it.cache, it.kv))) continue;
      for (it.row = 0; it.row < rows; it.row += each)
        for (int piece = 0; lattn_piece_(job->seqs[s].shared, piece, &first, &end); piece++) {
          if (n++ != unit) continue;
          it.rows = lattn_min_(each, rows - it.row);
          lattn_group_unit_(job, &it, piece, &sp);
          unit = LATTN_HAS_ATOMIC_ ? lattn_take_(&job->next) : index + job->n_workers * ++turn;
        }
    }
  }
}

LATTN_FN_ void lattn_group_task_(void *context, int32_t index) {
  lattn_job_ *job = (lattn_job_ *)context;
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_group_worker_(job, index, job->scratch + (size_t)index * job->worker_bytes);
  lattn_fpenv_leave_(&saved);
}

/* ---- planning ---- */

/* Most partials of split items that scratch has room for. */
LATTN_FN_ int64_t lattn_max_split_(int32_t n_workers) {
  return n_workers > 1 ? 16 * (int64_t)n_workers : 0;
}

/* Rows of an item: many, to amortise packing, but none may be left for other threads. q and acc may
   outgrow the L2 cache: of them a tile touches 6 rows, of the block all. No row's arithmetic
   depends on it. */
LATTN_FN_ int64_t lattn_choose_rows_(int64_t total_rows, int64_t n_kv, int64_t dk, int64_t dv,
                                     int32_t n_workers) {
  int64_t rows = 196608 / (dk + dv), share = total_rows * n_kv / (4 * (int64_t)n_workers);
  rows = lattn_max_(24, lattn_min_(rows, LATTN_MAX_ROWS_));
  if (n_workers > 1) rows = lattn_min_(rows, lattn_max_(24, share));
  rows = rows / LATTN_TILE_ROWS_ * LATTN_TILE_ROWS_;
  return lattn_max_(1, lattn_min_(rows, total_rows)); /* never falls with total_rows: scratch is
                                                         for "up to" */
}

/* Floats of the angles of a pass. */
LATTN_FN_ size_t lattn_pass_angles_(const lattn_job_ *job, int64_t tokens) {
  if (!job->turning.turns) return 0;
  return (size_t)(lattn_min_(tokens, LATTN_PASS_ROWS_) * job->turning.n_dims);
}

/* Partials that a worker stacks when the last key is in that segment. */
LATTN_FN_ int lattn_depth_(int64_t segments) {
  return lattn_height_(0, lattn_max_(segments - 1, 0)) + 1;
}

/* Of a batched call: the sequences, and what groups of them share; -1: too much. */
LATTN_FN_ int64_t lattn_sequence_bytes_(lattn_job_ *job, int64_t tokens) {
  int64_t seqs = (int64_t)lattn_round64_((uint64_t)job->o.n_sequences * sizeof(lattn_seq_));
  int64_t row = lattn_times_(job->n_kv * job->group, (job->columns + 16) * 4 * LATTN_PIECES_);
  if (!job->of_caches || job->o.n_sequences <= 1) return 0;
  job->most_grouped = lattn_min_(tokens, LATTN_GROUP_TOKENS_ * job->o.n_sequences);
  return lattn_plus_(seqs, lattn_times_(job->most_grouped, row));
}

/* Sizes of a worker: rows, slots, bytes; returns those of all scratch, 0 if they are beyond
   size_t. most_rows: of an item; 0 = as many as pay. */
LATTN_FN_ size_t lattn_plan_worker_(lattn_job_ *job, int64_t total_rows, int depth,
                                    int64_t most_rows) {
  uint64_t most;
  size_t bytes;
  int64_t width = job->dk * job->n_keys + job->columns * job->n_values; /* of a token */
  int64_t sequences = lattn_sequence_bytes_(job, total_rows / job->group);
  if (width > (int64_t)1 << 40) return 0; /* of a bundle of many wide heads: products below wrap */
  job->rows = lattn_choose_rows_(total_rows, job->n_kv, job->dk, job->dv, job->n_workers);
  if (job->top) { /* choices take no more than prepared values would, if they can */
    int64_t fit = lattn_max_(1, 1024 * job->columns / (int64_t)lattn_picks_bytes_(job->top));
    most_rows = most_rows > 0 ? lattn_min_(most_rows, fit) : fit;
  }
  if (most_rows > 0) job->rows = lattn_min_(job->rows, most_rows);
  job->depth = depth;
  most = (uint64_t)job->n_workers *
         (uint64_t)(1024 * (width + 16) +
                    (job->rows + 16) * (128 + 8 * job->dk + 8 * job->top) +
                    4 * (job->depth + 16) * (job->rows + 16) * (job->columns + 2));
  if (most > SIZE_MAX / 4 || sequences < 0) return 0;
  job->worker_bytes = lattn_carve_(0, 0, job, &job->keys_at);
  bytes = job->worker_bytes * (size_t)job->n_workers +
          sizeof(float) * ((size_t)lattn_max_split_(job->n_workers) *
                               lattn_slot_floats_(job->rows, job->columns) +
                           lattn_pass_angles_(job, total_rows / job->group)) + 64;
  bytes = (bytes + 63) / 64 * 64;
  job->seqs_at = bytes - 64; /* from where scratch is aligned */
  return bytes + (size_t)sequences;
}

/* Chooses the length of runs: one unit an item unless there are too few items for the threads. */
LATTN_FN_ void lattn_plan_units_(lattn_job_ *job) {
  int64_t cost = 0, items = 0, slots;
  lattn_item_ it;
  job->log_run = 62;
  it.started = 0;
  while (lattn_next_item_(job, &it)) {
    items++;
    cost += (it.hi - it.lo + it.sink_hi - it.sink_lo) / LATTN_SEGMENT_ + 1;
  }
  if (job->n_workers == 1 || !job->scratch || items >= 64 * (int64_t)job->n_workers) return;
  if (job->top) return; /* a row's keys are chosen among all */
  job->log_run = 0;
  while ((int64_t)2 << job->log_run <= cost / (4 * job->n_workers)) job->log_run++;
  for (;; job->log_run++) {
    slots = 0;
    it.started = 0;
    while (lattn_next_item_(job, &it))
      if (it.units > 1) slots += it.units;
    if (slots <= lattn_max_split_(job->n_workers)) break;
  }
}

/* The angles of a pass's tokens, once for all heads. */
LATTN_NOINLINE_ void lattn_fill_angles_(const lattn_job_ *job) {
  lattn_item_ it;
  LATTN_MEMSET_(&it, 0, sizeof it);
  for (; it.sequence < job->o.n_sequences; it.sequence++) {
    lattn_item_sequence_(job, &it);
    int64_t t = lattn_max_(it.q0, job->from_token), end = lattn_min_(it.q0 + it.nq, job->to_token);
    for (; t < end; t++) {
      int64_t position = it.query_position + (it.depth ? it.depth[t - it.q0] : t - it.q0);
      lattn_angles_(job->angles + (t - job->from_token) * job->turning.n_dims, &job->turning,
                    lattn_slot_of_(it.cache, position));
    }
  }
}

/* Prepares rows [from_token, to_token): at most LATTN_PASS_ROWS_ if the job keeps their angles. */
LATTN_FN_ void lattn_begin_pass_(lattn_job_ *job) {
  lattn_fpenv_ saved;
  if (!job->angles) return;
  lattn_fpenv_enter_(&saved);
  lattn_fill_angles_(job);
  lattn_fpenv_leave_(&saved);
}

LATTN_FN_ void lattn_parallel_(const lattn_exec *ex, int32_t n, void (*task)(void *, int32_t),
                               void *context) {
  if (ex->parallel_for && n > 1)
    ex->parallel_for(ex->pool, n, task, context);
  else
    for (int32_t i = 0; i < n; i++) task(context, i);
}

/* Whole segments of full heads whose pages both sequences hold; 0 where they differ in what they
   keep. */
LATTN_FN_ int64_t lattn_common_segments_(const lattn_job_ *job, const lattn_seq_ *a,
                                         const lattn_seq_ *b) {
  int64_t most = lattn_min_(a->first, b->first) / LATTN_SEGMENT_, blocks;
  int any = 0;
  for (int32_t h = 0; h < job->n_kv && most > 0; h++) {
    int full = lattn_in_groups_(lattn_cache_rule_(a->cache, h));
    if (full != lattn_in_groups_(lattn_cache_rule_(b->cache, h))) return 0;
    if (!full) continue;
    any = 1;
    blocks = lattn_common_pages_(a->cache, b->cache, h, most * (LATTN_SEGMENT_ / LATTN_BLOCK_));
    most = blocks / (LATTN_SEGMENT_ / LATTN_BLOCK_);
  }
  return any ? most : 0;
}

/* At most LATTN_PIECES_ of the aligned pieces. */
LATTN_FN_ int64_t lattn_round_pieces_(int64_t segments) {
  int64_t first, end, least;
  if (!lattn_piece_(segments, LATTN_PIECES_, &first, &least)) return segments;
  lattn_piece_(segments, LATTN_PIECES_ - 1, &first, &end);
  return end;
}

/* Joins sequences of the pass that have few rows to the earlier one with which they share most;
   returns whether there are groups. Only speed depends on who joins whom. */
LATTN_FN_ int lattn_find_groups_(lattn_job_ *job) {
  lattn_seq_ *seqs = job->own_seqs;
  int64_t tokens = 0, groups = 0;
  for (int64_t s = 0; s < job->o.n_sequences; s++) {
    int64_t n = lattn_pass_tokens_(job, seqs + s), most = 0, leader = -1;
    seqs[s].shared = 0;
    seqs[s].next = -1;
    seqs[s].leader = (int32_t)s;
    seqs[s].group_token = -1;
    if (n < 1 || n > LATTN_GROUP_TOKENS_ || tokens + n > job->most_grouped ||
        lattn_has_holes_(seqs[s].cache))
      continue;
    seqs[s].group_token = tokens;
    tokens += n;
    for (int64_t l = 0, met = 0; l < s && met < LATTN_MOST_LEADERS_; l++) {
      int64_t common;
      if (seqs[l].leader != l || seqs[l].group_token < 0) continue;
      met++;
      common = lattn_common_segments_(job, seqs + l, seqs + s);
      if (common > most) most = common, leader = l;
    }
    if (leader < 0 || 2 * most < seqs[leader].shared) continue;
    if (seqs[leader].shared == 0 || most < seqs[leader].shared) seqs[leader].shared = most;
    seqs[s].leader = (int32_t)leader;
    seqs[s].next = seqs[leader].next;
    seqs[leader].next = (int32_t)s;
    groups++;
  }
  for (int64_t s = 0; s < job->o.n_sequences; s++) {
    int64_t leader = seqs[s].leader;
    if (leader == s) seqs[s].shared = lattn_round_pieces_(seqs[s].shared);
    else seqs[s].shared = seqs[leader].shared;
  }
  return groups > 0;
}

/* Runs a job over the rows of a pass that has begun. */
LATTN_FN_ void lattn_run_pass_(lattn_job_ *job, const lattn_exec *ex) {
  lattn_fpenv_ saved;
  if (job->own_seqs && !job->top && lattn_find_groups_(job)) {
    job->next = 0;
    lattn_parallel_(ex, job->n_workers, lattn_group_task_, job);
  }
  lattn_plan_units_(job);
  job->next = 0;
  lattn_parallel_(ex, job->n_workers, lattn_task_, job);
  if (job->log_run >= 62 || !job->scratch) return;
  lattn_fpenv_enter_(&saved);
  lattn_fold_split_(job);
  lattn_fpenv_leave_(&saved);
}

/* Places scratch, the shared partials, and what sequences need. thin: items may have fewer rows if
   scratch is short (it has room for one row with the deepest stack). */
LATTN_FN_ lattn_status lattn_place_(lattn_job_ *job, const lattn_exec *ex, int64_t total_rows,
                                    int depth, int thin, lattn_fault *fault) {
  size_t need;
  uintptr_t at = (uintptr_t)ex->scratch;
  int64_t items = lattn_times_(job->n_kv, lattn_plus_(total_rows, job->o.n_sequences));
  job->n_workers = ex->n_threads > 0 ? ex->n_threads : 1;
  /* Items are counted in 32 bits; at worst one has a row, or a sequence. */
  if (items < 0 || items > INT32_MAX / 2) return lattn_fail_(fault, LATTN_E_OVERFLOW, "q");
  if (!ex->scratch) {
    if (job->dk > LATTN_STACK_KEY_DIM_ || job->dv > LATTN_STACK_VALUE_DIM_ ||
        job->top > LATTN_STACK_TOP_)
      return lattn_fail_(fault, LATTN_E_SCRATCH, "exec.scratch");
    job->rows = 1;
    job->depth = job->top ? depth : (int)LATTN_MAX_DEPTH_; /* choices lie in what is left */
    job->scratch = 0;
    if (job->top && lattn_carve_(0, (char *)job, job, &need) > LATTN_STACK_BYTES_)
      return lattn_fail_(fault, LATTN_E_SCRATCH, "exec.scratch");
    return LATTN_OK;
  }
  need = lattn_plan_worker_(job, total_rows, depth, 0);
  if (!need) return lattn_fail_(fault, LATTN_E_OVERFLOW, "exec.n_threads");
  while (thin && need > ex->scratch_bytes && job->rows > 1)
    need = lattn_plan_worker_(job, total_rows, depth, job->rows / 2);
  if (ex->scratch_bytes < need) return lattn_fail_(fault, LATTN_E_SCRATCH, "exec.scratch_bytes");
  at = (at + 63) / 64 * 64;
  job->scratch = (char *)ex->scratch + (at - (uintptr_t)ex->scratch);
  job->split = (float *)(void *)(job->scratch + job->worker_bytes * (size_t)job->n_workers);
  if (job->turning.turns)
    job->angles = job->split + (size_t)lattn_max_split_(job->n_workers) *
                                    lattn_slot_floats_(job->rows, job->columns);
  if (job->of_caches && job->o.n_sequences > 1) {
    size_t seqs = (size_t)lattn_round64_((uint64_t)job->o.n_sequences * sizeof(lattn_seq_));
    job->own_seqs = (lattn_seq_ *)(void *)(job->scratch + job->seqs_at);
    job->grouped = (float *)(void *)(job->scratch + job->seqs_at + seqs);
  }
  return LATTN_OK;
}

/* ---- checks ---- */

LATTN_FN_ lattn_status lattn_exec_in_(lattn_exec *own, const lattn_exec *exec) {
  lattn_status s = lattn_import_(own, sizeof *own, sizeof *own, exec);
  if (s == LATTN_E_FIELD) return lattn_fail_(exec->fault, s, "exec.size");
  if (s) return s; /* too short to trust its fault pointer */
  if (own->n_threads < 0 || own->n_threads > 1024)
    return lattn_fail_(own->fault, LATTN_E_SHAPE, "exec.n_threads");
  return LATTN_OK;
}

/* A view that a pointer may give. */
LATTN_FN_ lattn_status lattn_optional_(const lattn_tensor *from, lattn_tensor *to,
                                       const lattn_names_ *name, lattn_fault *fault) {
  if (!from) return LATTN_OK;
  *to = *from;
  return lattn_view_(to, 0, 1, name, fault);
}

/* An extra key, or its value: of one token, and of heads that query heads share evenly. */
LATTN_FN_ lattn_status lattn_check_extra_(const lattn_job_ *job, const lattn_tensor *from,
                                          int64_t dim, const lattn_names_ *name, lattn_fault *f) {
  lattn_tensor t;
  lattn_status s = lattn_optional_(from, &t, name, f);
  if (s || !from) return s;
  if (t.n_tokens != 1) return lattn_fail_(f, LATTN_E_SHAPE, name->tokens);
  if (job->n_kv * job->group % t.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, name->heads);
  return t.dim == dim ? LATTN_OK : lattn_fail_(f, LATTN_E_SHAPE, name->dim);
}

LATTN_FN_ lattn_status lattn_check_extra_key_(const lattn_job_ *job, lattn_fault *f) {
  static const lattn_names_ key = LATTN_NAMES_("extra_key"), value = LATTN_NAMES_("extra_value");
  lattn_status s;
  if (!job->o.extra_key && job->o.extra_value) return lattn_fail_(f, LATTN_E_NULL, "extra_key");
  if (job->o.extra_key && job->o.weighting == LATTN_SIGMOID)
    return lattn_fail_(f, LATTN_E_CONFIG, "extra_key");
  s = lattn_check_extra_(job, job->o.extra_key, job->dk, &key, f);
  return s ? s : lattn_check_extra_(job, job->o.extra_value, job->dv, &value, f);
}

/* Biases and gate against the shapes they go with. exact_keys: their dim must be n_keys, else at
   least. */
LATTN_FN_ lattn_status lattn_check_extras_(lattn_job_ *job, int64_t n_keys, int exact_keys,
                                           lattn_fault *f) {
  static const lattn_names_ key_bias = LATTN_NAMES_("key_bias");
  static const lattn_names_ pair_bias = LATTN_NAMES_("pair_bias"), gate = LATTN_NAMES_("gate");
  int64_t heads = job->n_kv * job->group, n = job->q.n_tokens;
  const lattn_tensor *t = &job->key_bias;
  lattn_status s = lattn_optional_(job->o.key_bias, &job->key_bias, &key_bias, f);
  if (!s) s = lattn_optional_(job->o.pair_bias, &job->pair_bias, &pair_bias, f);
  if (!s) s = lattn_optional_(job->o.gate, &job->gate, &gate, f);
  if (s) return s;
  if (job->o.key_bias) {
    if (t->n_tokens != 1 && !(job->of_caches && t->n_tokens == job->o.n_sequences))
      return lattn_fail_(f, LATTN_E_SHAPE, "key_bias.n_tokens");
    if (t->n_heads != 1 && t->n_heads != heads)
      return lattn_fail_(f, LATTN_E_SHAPE, "key_bias.n_heads");
    if (t->dim < n_keys || (exact_keys && t->dim != n_keys && n_keys > 0))
      return lattn_fail_(f, LATTN_E_SHAPE, "key_bias.dim");
  }
  t = &job->pair_bias;
  if (job->o.pair_bias) {
    if (t->n_tokens != n) return lattn_fail_(f, LATTN_E_SHAPE, "pair_bias.n_tokens");
    if (t->n_heads != 1 && t->n_heads != heads)
      return lattn_fail_(f, LATTN_E_SHAPE, "pair_bias.n_heads");
    if (t->dim < n_keys || (exact_keys && t->dim != n_keys && n_keys > 0))
      return lattn_fail_(f, LATTN_E_SHAPE, "pair_bias.dim");
  }
  t = &job->gate;
  if (job->o.gate) {
    if (t->n_tokens != n) return lattn_fail_(f, LATTN_E_SHAPE, "gate.n_tokens");
    if (t->n_heads != 1 && t->n_heads != heads)
      return lattn_fail_(f, LATTN_E_SHAPE, "gate.n_heads");
    if (t->dim != 1 && t->dim != job->dv) return lattn_fail_(f, LATTN_E_SHAPE, "gate.dim");
  }
  return lattn_check_extra_key_(job, f);
}

LATTN_FN_ lattn_status lattn_check_finite_(const float *x, int64_t n, int sink, lattn_fault *f,
                                           const char *name) {
  for (int64_t i = 0; x && i < n; i++) /* a sink may be -infinity: none */
    if (!lattn_is_finite_(x[i]) && !(sink && lattn_is_empty_(x[i])))
      return lattn_fail_(f, LATTN_E_VALUE, name);
  return LATTN_OK;
}

/* scale, softcap, ALiBi slopes, learned sinks and the weighting; sets job->scale. */
LATTN_FN_ lattn_status lattn_check_numbers_(lattn_job_ *job, lattn_fault *f) {
  int64_t heads = job->n_kv * job->group;
  lattn_status s;
  if (!lattn_is_finite_(job->o.scale)) return lattn_fail_(f, LATTN_E_VALUE, "scale");
  if (lattn_bits_(job->o.softcap) == 0x80000000u || !lattn_is_finite_(job->o.softcap)) {
    if (lattn_is_nan_(job->o.softcap) || lattn_is_empty_(job->o.softcap))
      return lattn_fail_(f, LATTN_E_VALUE, "softcap");
    job->o.softcap = 0;
  }
  if (lattn_bits_(job->o.softcap) >> 31) return lattn_fail_(f, LATTN_E_VALUE, "softcap");
  s = lattn_check_finite_(job->o.alibi_slopes, heads, 0, f, "alibi_slopes");
  if (!s) s = lattn_check_finite_(job->o.sink_logits, heads, 1, f, "sink_logits");
  if (s) return s;
  if (job->o.weighting != LATTN_SOFTMAX && job->o.weighting != LATTN_SIGMOID)
    return lattn_fail_(f, LATTN_E_FIELD, "weighting");
  if (!lattn_is_finite_(job->o.sigmoid_bias)) return lattn_fail_(f, LATTN_E_VALUE, "sigmoid_bias");
  if (job->o.weighting == LATTN_SOFTMAX && lattn_bits_(job->o.sigmoid_bias) << 1)
    return lattn_fail_(f, LATTN_E_CONFIG, "sigmoid_bias");
  if (job->o.weighting == LATTN_SIGMOID && job->o.sink_logits)
    return lattn_fail_(f, LATTN_E_CONFIG, "sink_logits");
  job->scale = (lattn_bits_(job->o.scale) & 0x7fffffffu) ? job->o.scale : lattn_rsqrt_int_(job->dk);
  job->plain = !(lattn_bits_(job->o.softcap) || job->o.alibi_slopes || job->o.key_bias ||
                 job->o.pair_bias || job->o.score);
  return s;
}

/* Selective values of a call with so many keys. */
LATTN_FN_ lattn_status lattn_check_top_(lattn_job_ *job, int64_t n_keys, lattn_fault *f) {
  if (job->o.top_values < 0) return lattn_fail_(f, LATTN_E_SHAPE, "top_values");
  if (job->o.top_mode != LATTN_TOP_KEEP && job->o.top_mode != LATTN_TOP_NORMALISE)
    return lattn_fail_(f, LATTN_E_FIELD, "top_mode");
  if (job->o.top_mode == LATTN_TOP_NORMALISE && job->o.weighting == LATTN_SIGMOID)
    return lattn_fail_(f, LATTN_E_CONFIG, "top_mode");
  job->top = job->o.top_values < n_keys ? job->o.top_values : 0;
  return LATTN_OK;
}

/* Starts of packed sequences: from 0, never falling, to n. */
LATTN_FN_ lattn_status lattn_check_starts_(const int64_t *starts, int64_t sequences, int64_t n,
                                           lattn_fault *f, const char *name) {
  if (!starts) return lattn_fail_(f, LATTN_E_NULL, name);
  for (int64_t i = 0; i < sequences; i++)
    if (starts[i] < 0 || starts[i + 1] < starts[i]) return lattn_fail_(f, LATTN_E_SHAPE, name);
  if (starts[0] != 0 || starts[sequences] != n) return lattn_fail_(f, LATTN_E_SHAPE, name);
  return LATTN_OK;
}

LATTN_FN_ lattn_status lattn_check_sequences_(const lattn_job_ *job, lattn_fault *f) {
  const lattn_attn *o = &job->o;
  lattn_status s;
  if (o->n_sequences == 0) return LATTN_OK;
  s = lattn_check_starts_(o->query_starts, o->n_sequences, job->q.n_tokens, f,
                          "options.query_starts");
  if (s) return s;
  return lattn_check_starts_(o->key_starts, o->n_sequences, job->k.n_tokens, f,
                             "options.key_starts");
}

/* Absolute positions of every sequence lie in [0, 2^31]; segments up to the last key come out. */
LATTN_FN_ lattn_status lattn_check_positions_(const lattn_job_ *job, int64_t *segments,
                                              lattn_fault *f) {
  lattn_item_ it;
  int64_t last = 0, n = job->o.n_sequences > 0 ? job->o.n_sequences : 1;
  LATTN_MEMSET_(&it, 0, sizeof it);
  for (it.sequence = 0; it.sequence < n; it.sequence++) {
    int64_t at;
    lattn_item_sequence_(job, &it);
    if (it.key_position < 0) return lattn_fail_(f, LATTN_E_VALUE, "options.key_position");
    if (it.key_position > LATTN_MAX_POSITION_ - it.nk)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "options.key_position");
    last = lattn_max_(last, it.key_position + it.nk);
    if (job->o.mask == LATTN_CAUSAL) continue;
    at = it.query_position;
    if (at < 0) return lattn_fail_(f, LATTN_E_VALUE, "options.query_position");
    if (at > LATTN_MAX_POSITION_ - it.nq)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "options.query_position");
  }
  for (int64_t i = 0; job->o.query_positions && i < job->q.n_tokens; i++)
    if (job->o.query_positions[i] > LATTN_MAX_POSITION_ ||
        job->o.query_positions[i] < -LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "options.query_positions");
  for (int64_t i = 0; job->o.key_positions && i < job->k.n_tokens; i++)
    if (job->o.key_positions[i] > LATTN_MAX_POSITION_ ||
        job->o.key_positions[i] < -LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "options.key_positions");
  *segments = (last + LATTN_SEGMENT_ - 1) / LATTN_SEGMENT_;
  return LATTN_OK;
}

/* KV heads, bundles if the numbers differ: their greatest common divisor. */
LATTN_FN_ int32_t lattn_bundles_(int32_t n_key_heads, int32_t n_value_heads) {
  int32_t a = n_key_heads, b = n_value_heads;
  while (b) {
    int32_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}

/* Shapes of q, k and v of a stateless call. */
LATTN_FN_ lattn_status lattn_check_shapes_(lattn_job_ *job, int needs_data, lattn_fault *f) {
  static const lattn_names_ q = LATTN_NAMES_("q"), k = LATTN_NAMES_("k"), v = LATTN_NAMES_("v");
  lattn_status s = lattn_view_(&job->q, 0, needs_data, &q, f);
  if (!s) s = lattn_view_(&job->k, 0, needs_data, &k, f);
  if (!s) s = lattn_view_(&job->v, 0, needs_data, &v, f);
  if (s) return s;
  if (job->k.dim != job->q.dim) return lattn_fail_(f, LATTN_E_SHAPE, "k.dim");
  if (job->v.n_tokens != job->k.n_tokens) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_tokens");
  if (job->q.n_heads % job->v.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_heads");
  if (job->q.n_heads % job->k.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_heads");
  job->dk = job->q.dim;
  job->dv = job->v.dim;
  job->columns = (job->dv + 15) / 16 * 16;
  job->n_kv = lattn_bundles_((int32_t)job->k.n_heads, (int32_t)job->v.n_heads);
  job->n_keys = (int32_t)job->k.n_heads / job->n_kv;
  job->n_values = (int32_t)job->v.n_heads / job->n_kv;
  job->group = job->q.n_heads / job->n_kv;
  return LATTN_OK;
}

/* The options of a stateless call, but for the arrays. */
LATTN_FN_ lattn_status lattn_check_options_(lattn_job_ *job, const lattn_attn *options,
                                            lattn_fault *f) {
  lattn_attn *o = &job->o;
  lattn_status s = lattn_import_(o, sizeof *o, LATTN_FIRST_ATTN_, options);
  if (s) return lattn_fail_(f, s, "options.size");
  if (o->mask < LATTN_FULL || o->mask > LATTN_CAUSAL_AT)
    return lattn_fail_(f, LATTN_E_FIELD, "options.mask");
  if (o->inexact && o->inexact != LATTN_INEXACT_BF16)
    return lattn_fail_(f, LATTN_E_FIELD, "options.inexact");
  if (o->zero) return lattn_fail_(f, LATTN_E_FIELD, "options.zero");
  if (o->window < 0) return lattn_fail_(f, LATTN_E_VALUE, "options.window");
  if (o->ahead < 0) return lattn_fail_(f, LATTN_E_VALUE, "options.ahead");
  if (o->sinks < 0) return lattn_fail_(f, LATTN_E_VALUE, "options.sinks");
  if (o->n_sequences < 0) return lattn_fail_(f, LATTN_E_SHAPE, "options.n_sequences");
  if (o->n_sequences >= LATTN_MAX_POSITION_)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "options.n_sequences");
  if (o->partial && o->n_sequences > 1) return lattn_fail_(f, LATTN_E_CONFIG, "options.partial");
  return LATTN_OK;
}

/* A partial that a call fills: its arrays, and their size. */
LATTN_FN_ lattn_status lattn_check_partial_(const lattn_partial *p, int64_t rows, int64_t dv,
                                            lattn_fault *f) {
  lattn_partial own;
  lattn_status s = lattn_import_(&own, sizeof own, sizeof own, p);
  if (s) return lattn_fail_(f, s, "partial.size");
  if (lattn_bits_(p->zero)) return lattn_fail_(f, LATTN_E_FIELD, "partial.zero");
  if (p->n_rows != rows) return lattn_fail_(f, LATTN_E_SHAPE, "partial.n_rows");
  if (p->value_dim != dv) return lattn_fail_(f, LATTN_E_SHAPE, "partial.value_dim");
  if (rows > 0 && !p->maximum) return lattn_fail_(f, LATTN_E_NULL, "partial.maximum");
  if (rows > 0 && !p->sum) return lattn_fail_(f, LATTN_E_NULL, "partial.sum");
  if (rows > 0 && !p->output) return lattn_fail_(f, LATTN_E_NULL, "partial.output");
  return LATTN_OK;
}

/* A float array of a call as a view, to test overlaps. */
LATTN_FN_ lattn_tensor lattn_floats_(const float *p, int64_t n) {
  lattn_tensor t;
  LATTN_MEMSET_(&t, 0, sizeof t);
  t.data = p;
  t.type = LATTN_F32;
  t.n_tokens = p && n > 0 ? 1 : 0;
  t.n_heads = 1;
  t.dim = t.stride_head = n > 0 ? n : 1;
  t.stride_token = t.dim;
  return t;
}

/* n 8-byte numbers of a call as a view, to test overlaps. */
LATTN_FN_ lattn_tensor lattn_numbers_(const void *p, int64_t n) {
  return lattn_floats_((const float *)p, 2 * n);
}

/* The first output of a call that overlaps an input or another output: LATTN_E_ALIAS. */
LATTN_FN_ lattn_status lattn_check_apart_(const lattn_tensor *made, int n_made,
                                          const lattn_tensor *in, int n_in, const char *const *name,
                                          lattn_fault *f) {
  for (int i = 0; i < n_made; i++) {
    for (int j = 0; j < n_in; j++)
      if (lattn_overlap_(made + i, in + j)) return lattn_fail_(f, LATTN_E_ALIAS, name[i]);
    for (int j = 0; j < i; j++)
      if (lattn_overlap_(made + i, made + j)) return lattn_fail_(f, LATTN_E_ALIAS, name[i]);
  }
  return LATTN_OK;
}

/* Outputs: shapes, and apart from the inputs and each other. */
LATTN_FN_ lattn_status lattn_check_outputs_(lattn_job_ *job, const lattn_partial *partial,
                                            const lattn_tensor *more, int n_more, lattn_fault *f) {
  static const lattn_names_ name = LATTN_NAMES_("out");
  const char *names[9] = {"out",     "lse",     "lse_low", "lost_bound", "lost_estimate",
                          "dropped", "partial", "partial", "partial"};
  const lattn_attn *o = &job->o;
  int64_t heads = job->n_kv * job->group, n = job->q.n_tokens, rows = n * heads;
  int64_t sequences = o->n_sequences;
  lattn_tensor in[18], made[9];
  int n_in = 0, n_made = 6;
  lattn_status s = lattn_view_(&job->out, 1, partial == 0, &name, f);
  if (s) return s;
  if (o->lse_low && !job->lse) return lattn_fail_(f, LATTN_E_NULL, "lse");
  if (job->out.n_tokens != n) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_tokens");
  if (job->out.n_heads != job->q.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_heads");
  if (job->out.dim != job->dv) return lattn_fail_(f, LATTN_E_SHAPE, "out.dim");
  made[0] = job->out;
  made[1] = lattn_floats_(job->lse, rows);
  made[2] = lattn_floats_(o->lse_low, rows);
  made[3] = lattn_floats_(job->lost_bound, rows);
  made[4] = lattn_floats_(job->lost_estimate, rows);
  made[5] = lattn_floats_(o->dropped, rows);
  if (partial) {
    s = lattn_check_partial_(partial, rows, job->dv, f);
    if (s) return s;
    made[n_made++] = lattn_floats_(partial->maximum, rows);
    made[n_made++] = lattn_floats_(partial->sum, rows);
    made[n_made++] = lattn_floats_(partial->output, rows * job->dv);
  }
  if (job->k.data) in[n_in++] = job->k;
  if (job->v.data) in[n_in++] = job->v;
  if (o->key_bias) in[n_in++] = job->key_bias;
  if (o->pair_bias) in[n_in++] = job->pair_bias;
  if (o->gate) in[n_in++] = job->gate;
  for (int i = 0; i < 2; i++) {
    const lattn_tensor *extra = i ? o->extra_value : o->extra_key;
    if (extra) in[n_in] = *extra, (void)lattn_view_(in + n_in++, 0, 1, &name, f);
  }
  in[n_in++] = lattn_floats_(o->alibi_slopes, heads);
  in[n_in++] = lattn_floats_(o->sink_logits, heads);
  in[n_in++] = lattn_numbers_(o->visible_from, n);
  in[n_in++] = lattn_numbers_(o->visible_to, n);
  in[n_in++] = lattn_numbers_(o->query_positions, n);
  in[n_in++] = lattn_numbers_(o->key_positions, job->k.n_tokens);
  if (sequences > 0) {
    in[n_in++] = lattn_numbers_(o->query_starts, sequences + 1);
    in[n_in++] = lattn_numbers_(o->key_starts, sequences + 1);
    in[n_in++] = lattn_numbers_(o->sequence_query_positions, sequences);
    in[n_in++] = lattn_numbers_(o->sequence_key_positions, sequences);
  }
  s = lattn_check_apart_(made, n_made, in, n_in, names, f);
  if (!s) s = lattn_check_apart_(made, n_made, more, n_more, names, f);
  if (!s) s = lattn_check_apart_(made + 1, n_made - 1, &job->q, 1, names + 1, f);
  if (!s && !lattn_same_view_(&job->out, &job->q))
    s = lattn_check_apart_(made, 1, &job->q, 1, names, f);
  return s;
}

/* Runs rows [at, end); with progress, in ranges of about 2^32 multiply-adds. Returns the end, or
   where a cancelled call stopped. */
LATTN_FN_ int64_t lattn_run_rows_(lattn_job_ *job, const lattn_exec *ex, int64_t at, int64_t end) {
  int64_t n = job->q.n_tokens, step = end - at;
  if (ex->progress) {
    int64_t a_token = (job->dk + job->dv) * job->n_kv * job->group;
    step = ((int64_t)1 << 32) / lattn_max_(1, a_token) / lattn_max_(1, job->k.n_tokens);
    step = lattn_max_(step, job->rows / job->group + 1);
  }
  if (job->angles) step = lattn_min_(step, LATTN_PASS_ROWS_);
  while (at < end && !job->stopped) {
    job->from_token = at;
    job->to_token = at = lattn_min_(end, at + step);
    lattn_begin_pass_(job);
    lattn_run_pass_(job, ex);
    if (ex->progress && at < n && ex->progress(ex->user, at, n)) job->stopped = 1;
  }
  return at;
}

LATTN_FN_ void lattn_job_init_(lattn_job_ *job) {
  LATTN_MEMSET_(job, 0, sizeof *job);
  job->n_keys = job->n_values = 1;
}

/* ---- attention weights on demand: the scores again, less lse ---- */

/* Where the results of one chosen row and head go. */
typedef struct lattn_weighed_ {
  float *weights, *top_weights;
  double *mass;
  int64_t *argmax, *top_keys;
  float lse, lse_low;
} lattn_weighed_;

LATTN_FN_ int64_t lattn_chosen_count_(const lattn_job_ *job, int rows) {
  int64_t n = rows ? job->chosen->n_rows : job->chosen->n_heads;
  return n ? n : rows ? job->q.n_tokens : job->n_kv * job->group;
}

/* Of row r of the item. */
LATTN_FN_ lattn_weighed_ lattn_weighed_of_(const lattn_job_ *job, const lattn_item_ *it,
                                           const lattn_row_ *row, int64_t r) {
  const lattn_weights *w = job->weights;
  int64_t heads = lattn_chosen_heads_(job, it->kv), n_heads = lattn_chosen_count_(job, 0);
  int64_t head = lattn_chosen_head_(job, it->kv, r % heads), at = r / heads * n_heads + head;
  int64_t from = row->token * job->n_kv * job->group + row->head;
  lattn_weighed_ to;
  to.weights = w->weights ? w->weights + at * w->stride : 0;
  to.mass = w->mass ? w->mass + head * w->stride : 0;
  to.argmax = w->argmax ? w->argmax + at : 0;
  to.top_keys = w->top_keys ? w->top_keys + at * w->top_k : 0;
  to.top_weights = w->top_weights ? w->top_weights + at * w->top_k : 0;
  to.lse = w->lse ? w->lse[from] : 0.0f;
  to.lse_low = w->lse_low ? w->lse_low[from] : 0.0f;
  return to;
}

/* exp(s - lse); a row that saw nothing gives 0. Or sigmoid(s + bias). */
LATTN_FN_ lattn_v16_ lattn_weight16_(const lattn_job_ *job, const lattn_weighed_ *to,
                                     lattn_v16_ s) {
  lattn_v16_ l = lattn_v_set_(to->lse), x;
  if (job->o.weighting == LATTN_SIGMOID)
    return lattn_v_sigmoid_(lattn_v_add_(s, lattn_v_set_(job->o.sigmoid_bias)));
  if (lattn_is_empty_(to->lse)) return lattn_v_set_(0);
  x = lattn_v_if_equal_(s, l, lattn_v_set_(0), lattn_v_sub_(s, l)); /* infinities too */
  return lattn_v_exp_(lattn_v_sub_(x, lattn_v_set_(to->lse_low)));
}

/* A key among the best so far: places are kept in falling order of score, then from new to old;
   scores stand where their weights will. */
LATTN_FN_ void lattn_place_key_(int64_t *keys, float *scores, int64_t n, int64_t key, float score) {
  int64_t i = n - 1;
  if (keys[i] >= 0 && score < scores[i]) return;
  for (; i > 0 && (keys[i - 1] < 0 || score >= scores[i - 1]); i--) {
    keys[i] = keys[i - 1];
    scores[i] = scores[i - 1];
  }
  keys[i] = key;
  scores[i] = score;
}

/* Whether any of 16 scores may be among the best, if nothing else is asked. */
LATTN_FN_ int lattn_weigh_matters_(const lattn_job_ *job, const lattn_weighed_ *to, const float *s,
                                   float best) {
  float least = best;
  int matters = 0;
  if (to->weights || to->mass) return 1;
  if (to->top_keys) {
    int64_t last = job->weights->top_k - 1;
    if (to->top_keys[last] < 0) return 1;
    least = to->top_weights[last]; /* not above best */
  }
  for (int t = 0; t < 16; t++) matters |= s[t] >= least;
  return matters;
}

/* One row's scores of a block. best: the largest score so far. */
LATTN_FN_ void lattn_weigh_row_(const lattn_job_ *job, const lattn_item_ *it,
                                const lattn_weighed_ *to, int64_t base, int first, int end,
                                const float *s, const uint32_t visible[8], float *best) {
  for (int p = first; p < end; p++) {
    float weight[16];
    int64_t at[16];
    int whole;
    if (!visible[p] || !lattn_weigh_matters_(job, to, s + 16 * p, *best)) continue;
    if (to->weights || to->mass)
      lattn_v_store_(weight, lattn_weight16_(job, to, lattn_v_load_(s + 16 * p)));
    lattn_keys16_(it, base + 16 * p, at);
    whole = visible[p] == 0xffffu && at[15] - at[0] == 15;
    for (int t = 0; whole && to->weights && t < 16; t++) to->weights[at[0] + t] = weight[t];
    for (int t = 0; whole && to->mass && t < 16; t++) to->mass[at[0] + t] += (double)weight[t];
    if (whole && !to->argmax && !to->top_keys) continue;
    for (int t = 0; t < 16; t++) {
      float score = s[16 * p + t];
      if (!(visible[p] >> t & 1u)) continue;
      if (to->weights) to->weights[at[t]] = weight[t];
      if (to->mass && !whole) to->mass[at[t]] += (double)weight[t];
      if (lattn_is_nan_(score) || lattn_is_empty_(score)) continue;
      if (to->argmax && score >= *best) *to->argmax = at[t];
      if (score >= *best) *best = score;
      if (to->top_keys)
        lattn_place_key_(to->top_keys, to->top_weights, job->weights->top_k, at[t], score);
    }
  }
}

/* Before the first block. */
LATTN_FN_ void lattn_weigh_begin_(const lattn_job_ *job, const lattn_item_ *it,
                                  const lattn_weighed_ *to) {
  for (int64_t j = 0; to->weights && j < it->nk; j++) to->weights[j] = 0;
  if (to->argmax) *to->argmax = -1;
  for (int64_t j = 0; to->top_keys && j < job->weights->top_k; j++) {
    to->top_keys[j] = -1;
    to->top_weights[j] = 0;
  }
}

/* Whether nothing but masses is wanted, of a block whose keys are all in the array. */
LATTN_FN_ int lattn_only_mass_(const lattn_job_ *job, const lattn_item_ *it, int64_t base) {
  const lattn_weights *w = job->weights;
  if (w->weights || w->argmax || w->top_keys || !w->mass || it->cache) return 0;
  return job->o.weighting == LATTN_SOFTMAX && base >= it->key_position &&
         base + LATTN_BLOCK_ <= it->key_position + it->nk;
}

/* lattn_weigh_row_ of such a block: 128 weights at once, those of hidden keys 0. visible NULL: all
   are seen. */
LATTN_FN_ void lattn_add_mass_(const lattn_job_ *job, const lattn_item_ *it, const lattn_row_ *row,
                               int64_t r, int64_t base, const float *s, const uint32_t *visible) {
  const lattn_weights *w = job->weights;
  int64_t from = row->token * job->n_kv * job->group + row->head, head = row->head;
  lattn_v16_ lse = lattn_v_set_(w->lse[from]), zero = lattn_v_set_(0);
  lattn_v16_ low = lattn_v_set_(w->lse_low ? w->lse_low[from] : 0.0f);
  double *mass;
  if (lattn_is_empty_(w->lse[from])) return;
  if (w->n_heads) head = lattn_chosen_head_(job, it->kv, r % lattn_chosen_heads_(job, it->kv));
  mass = w->mass + head * w->stride + (it->k0 + base - it->key_position);
  for (int p = 0; p < LATTN_BLOCK_ / LATTN_PANEL_; p += LATTN_EXPS_) {
    lattn_v16_ x[LATTN_EXPS_];
    float weight[LATTN_EXPS_ * LATTN_PANEL_];
    LATTN_UNROLL_
    for (int i = 0; i < LATTN_EXPS_; i++) {
      lattn_v16_ y = lattn_v_load_(s + LATTN_PANEL_ * (p + i));
      x[i] = lattn_v_sub_(lattn_v_if_equal_(y, lse, zero, lattn_v_sub_(y, lse)), low);
    }
    lattn_v_exps_(x, LATTN_EXPS_);
    LATTN_UNROLL_
    for (int i = 0; i < LATTN_EXPS_; i++)
      lattn_v_store_(weight + LATTN_PANEL_ * i,
                     visible ? lattn_v_if_bits_(visible[p + i], x[i], zero) : x[i]);
    for (int t = 0; t < LATTN_EXPS_ * LATTN_PANEL_; t++)
      mass[LATTN_PANEL_ * p + t] += (double)weight[t];
  }
}

/* Rows r ... of the item, a tile of them, against one block. best: of each. */
LATTN_FN_ void lattn_weigh_tile_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                 const lattn_block_ *b, int64_t base, int64_t r, float *best) {
  int m = (int)lattn_min_(LATTN_TILE_ROWS_, it->rows - r), lo, hi, first, end, masked;
  int only_mass = lattn_only_mass_(job, it, base);
  if (!lattn_tile_scores_(job, it, sp, b, base, r, m, &lo, &hi, &first, &end)) return;
  masked = !only_mass || lattn_tile_masked_(job, sp->rows + r, base, b, m);
  for (int a = 0; a < m; a++) {
    const lattn_row_ *row = sp->rows + r + a;
    float *s = sp->s + a * LATTN_BLOCK_;
    uint32_t visible[8];
    if (masked) lattn_mask_row_(job, it, row, base, b->holes, first, end, s, visible);
    if (only_mass) {
      lattn_add_mass_(job, it, row, it->row + r + a, base, s, masked ? visible : 0);
    } else {
      lattn_weighed_ to = lattn_weighed_of_(job, it, row, it->row + r + a);
      lattn_weigh_row_(job, it, &to, base, first, end, s, visible, best + a);
    }
  }
}

/* Rows [row, row + rows) of the item, all keys. */
LATTN_FN_ void lattn_weigh_item_(const lattn_job_ *job, lattn_item_ *it, lattn_space_ *sp) {
  lattn_slot_ best = lattn_space_slot_(sp, 0);
  lattn_fill_rows_(job, it, sp);
  it->lo = it->sink_lo = INT64_MAX;
  it->hi = it->sink_hi = 0;
  for (int64_t r = 0; r < it->rows; r++) {
    lattn_weighed_ to = lattn_weighed_of_(job, it, sp->rows + r, it->row + r);
    lattn_weigh_begin_(job, it, &to);
    best.m[r] = -LATTN_INFINITY_;
    lattn_item_add_(it, sp->rows + r);
  }
  for (int64_t base = 0; base < lattn_max_(it->hi, it->sink_hi); base += LATTN_BLOCK_) {
    lattn_block_ b;
    if (base >= it->sink_hi && base + LATTN_BLOCK_ <= it->lo) continue;
    lattn_begin_block_(job, it, sp, base, &b);
    if (b.lo >= b.hi) continue;
    for (int64_t r = 0; r < it->rows; r += LATTN_TILE_ROWS_)
      lattn_weigh_tile_(job, it, sp, &b, base, r, best.m + r);
  }
  for (int64_t r = 0; r < it->rows; r++) { /* scores of the best become weights */
    lattn_weighed_ to = lattn_weighed_of_(job, it, sp->rows + r, it->row + r);
    for (int64_t j = 0; to.top_keys && j < job->weights->top_k && to.top_keys[j] >= 0; j++) {
      float x[16];
      lattn_v_store_(x, lattn_weight16_(job, &to, lattn_v_set_(to.top_weights[j])));
      to.top_weights[j] = x[0];
    }
  }
}

/* A worker takes whole KV heads: the rows that add to a key's mass come in order. */
LATTN_NOINLINE_ void lattn_weigh_heads_(void *context, int32_t index, char *memory) {
  const lattn_job_ *job = (const lattn_job_ *)context;
  lattn_space_ sp;
  lattn_item_ it;
  size_t keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(job, &it);
  for (it.kv = index; it.kv < job->n_kv; it.kv += job->n_workers) {
    int64_t rows = lattn_chosen_heads_(job, it.kv) * lattn_chosen_count_(job, 1);
    for (it.row = 0; it.row < rows; it.row += it.rows) {
      it.rows = lattn_min_(job->rows, rows - it.row);
      lattn_weigh_item_(job, &it, &sp);
    }
  }
}

LATTN_FN_ void lattn_weigh_task_(void *context, int32_t index) {
  lattn_work_((const lattn_job_ *)context, context, index, lattn_weigh_heads_);
}

LATTN_FN_ lattn_status lattn_check_weights_apart_(const lattn_job_ *job, const lattn_weights *w,
                                                  int64_t rows, lattn_fault *f) {
  static const char *const names[5] = {"weights.weights", "weights.argmax", "weights.top_keys",
                                       "weights.top_weights", "weights.mass"};
  int64_t heads = lattn_chosen_count_(job, 0), all = job->q.n_tokens * job->n_kv * job->group;
  lattn_tensor made[5], in[16];
  int n = 0;
  made[0] = lattn_floats_(w->weights, rows * w->stride);
  made[1] = lattn_numbers_(w->argmax, rows);
  made[2] = lattn_numbers_(w->top_keys, rows * w->top_k);
  made[3] = lattn_floats_(w->top_weights, rows * w->top_k);
  made[4] = lattn_numbers_(w->mass, heads * w->stride);
  in[n++] = job->q;
  if (job->k.data) in[n++] = job->k;
  if (job->o.key_bias) in[n++] = job->key_bias;
  if (job->o.pair_bias) in[n++] = job->pair_bias;
  in[n++] = lattn_floats_(w->lse, all);
  in[n++] = lattn_floats_(w->lse_low, all);
  in[n++] = lattn_numbers_(w->rows, w->n_rows);
  in[n++] = lattn_floats_((const float *)(const void *)w->heads, w->n_heads);
  in[n++] = lattn_floats_(job->o.alibi_slopes, job->n_kv * job->group);
  in[n++] = lattn_floats_(job->o.sink_logits, job->n_kv * job->group);
  in[n++] = lattn_numbers_(job->o.visible_from, job->q.n_tokens);
  in[n++] = lattn_numbers_(job->o.visible_to, job->q.n_tokens);
  in[n++] = lattn_numbers_(job->o.query_positions, job->q.n_tokens);
  in[n++] = lattn_numbers_(job->o.key_positions, job->k.n_tokens);
  return lattn_check_apart_(made, 5, in, n, names, f);
}

/* What is wanted, against the call's shapes; *own gets it with its defaults. */
LATTN_FN_ lattn_status lattn_check_weights_(lattn_job_ *job, const lattn_weights *weights,
                                            lattn_weights *own, int64_t n_keys, lattn_fault *f) {
  int64_t heads = job->n_kv * job->group, rows;
  lattn_status s = lattn_import_(own, sizeof *own, sizeof *own, weights);
  if (!weights) return lattn_fail_(f, LATTN_E_NULL, "weights");
  if (s) return lattn_fail_(f, s, "weights.size");
  if (own->top_k < 0 || own->top_k > 65536) return lattn_fail_(f, LATTN_E_SHAPE, "weights.top_k");
  if (own->n_rows < 0 || own->n_rows >= LATTN_MAX_POSITION_)
    return lattn_fail_(f, LATTN_E_SHAPE, "weights.n_rows");
  if (own->n_heads < 0 || own->n_heads >= LATTN_MAX_POSITION_)
    return lattn_fail_(f, LATTN_E_SHAPE, "weights.n_heads");
  if (own->n_rows && !own->rows) return lattn_fail_(f, LATTN_E_NULL, "weights.rows");
  if (own->n_heads && !own->heads) return lattn_fail_(f, LATTN_E_NULL, "weights.heads");
  for (int64_t i = 0; i < own->n_rows; i++)
    if (own->rows[i] < 0 || own->rows[i] >= job->q.n_tokens)
      return lattn_fail_(f, LATTN_E_SHAPE, "weights.rows");
  for (int64_t i = 0; i < own->n_heads; i++)
    if (own->heads[i] < 0 || own->heads[i] >= heads)
      return lattn_fail_(f, LATTN_E_SHAPE, "weights.heads");
  if (!own->lse && job->q.n_tokens > 0 && job->o.weighting == LATTN_SOFTMAX)
    return lattn_fail_(f, LATTN_E_NULL, "weights.lse");
  if (own->stride == 0) own->stride = n_keys;
  if (own->stride < n_keys) return lattn_fail_(f, LATTN_E_SHAPE, "weights.stride");
  if (own->top_k == 0) own->top_keys = 0, own->top_weights = 0;
  if (!own->top_keys != !own->top_weights)
    return lattn_fail_(f, LATTN_E_CONFIG, "weights.top_weights");
  job->weights = job->chosen = own;
  rows = lattn_times_(lattn_chosen_count_(job, 1), lattn_chosen_count_(job, 0));
  if (lattn_times_(rows, lattn_plus_(lattn_times_(own->stride, 8), 8 * own->top_k + 8)) < 0 ||
      lattn_times_(lattn_chosen_count_(job, 0), lattn_times_(own->stride, 8)) < 0)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "weights.stride");
  return lattn_check_weights_apart_(job, own, rows, f);
}

/* Places scratch and runs: everything but scratch is checked. */
LATTN_FN_ lattn_status lattn_weigh_(lattn_job_ *job, const lattn_exec *ex, int depth) {
  int64_t rows = job->q.n_tokens * job->group;
  lattn_status s = lattn_place_(job, ex, rows, depth, 1, ex->fault);
  if (s) return s;
  job->angles = 0;
  lattn_parallel_(ex, job->n_workers, lattn_weigh_task_, job);
  return LATTN_OK;
}

LATTN_API lattn_status lattn_attention_weights(const lattn_attn *options, lattn_tensor q,
                                               lattn_tensor k, const lattn_weights *weights,
                                               const lattn_exec *exec) {
  lattn_job_ job;
  lattn_weights own;
  lattn_exec ex;
  int64_t segments = 0;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  lattn_job_init_(&job);
  job.q = q;
  job.k = job.v = k;
  s = lattn_check_options_(&job, options, ex.fault);
  if (!s && job.o.n_sequences > 1) s = lattn_fail_(ex.fault, LATTN_E_CONFIG, "options.n_sequences");
  if (!s) s = lattn_check_shapes_(&job, 1, ex.fault);
  if (!s) s = lattn_check_sequences_(&job, ex.fault);
  if (s) return s;
  job.o.gate = job.o.extra_key = job.o.extra_value = 0;
  s = lattn_check_numbers_(&job, ex.fault);
  if (!s) s = lattn_check_extras_(&job, k.n_tokens, 1, ex.fault);
  if (!s) s = lattn_check_positions_(&job, &segments, ex.fault);
  if (!s) s = lattn_check_weights_(&job, weights, &own, k.n_tokens, ex.fault);
  if (s) return s;
  if (job.o.window == 0) job.o.sinks = 0;
  job.dv = 1; /* no values are read */
  job.columns = 16;
  return lattn_weigh_(&job, &ex, 1);
}

LATTN_API lattn_status lattn_attention(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                       lattn_tensor v, lattn_tensor out, float *lse,
                                       const lattn_exec *exec) {
  lattn_job_ job;
  lattn_exec ex;
  lattn_status s;
  int64_t segments = 0, at;
  lattn_job_init_(&job);
  s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  job.q = q;
  job.k = k;
  job.v = v;
  job.out = out;
  job.lse = lse;
  s = lattn_check_options_(&job, options, ex.fault);
  if (!s) s = lattn_check_shapes_(&job, 1, ex.fault);
  if (s) return s;
  s = lattn_check_sequences_(&job, ex.fault);
  if (s) return s;
  job.partial = job.o.partial;
  s = lattn_check_numbers_(&job, ex.fault);
  if (!s) s = lattn_check_top_(&job, k.n_tokens, ex.fault);
  if (!s) s = lattn_check_extras_(&job, k.n_tokens, 1, ex.fault);
  if (!s) s = lattn_check_positions_(&job, &segments, ex.fault);
  if (!s) s = lattn_check_outputs_(&job, job.partial, 0, 0, ex.fault);
  if (!s)
    s = lattn_place_(&job, &ex, q.n_tokens * job.group, lattn_depth_(segments), 0, ex.fault);
  if (s) return s;
  if (job.o.window == 0) job.o.sinks = 0;
  if (job.partial) {
    lattn_item_ it;
    job.partial->basis = 0;
    LATTN_MEMSET_(&it, 0, sizeof it);
    lattn_item_sequence_(&job, &it);
    job.partial->first_segment = it.key_position / LATTN_SEGMENT_;
    job.partial->n_segments = lattn_max_(segments - job.partial->first_segment, 0);
  }
  at = lattn_run_rows_(&job, &ex, 0, q.n_tokens);
  if (ex.tokens_done) *ex.tokens_done = at;
  if (at < q.n_tokens) return LATTN_CANCELLED;
  return job.overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

LATTN_API size_t lattn_attention_scratch(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                         lattn_tensor v, int32_t n_threads) {
  lattn_job_ job;
  size_t bytes, plain;
  int64_t segments = 0;
  lattn_job_init_(&job);
  if (n_threads < 0 || n_threads > 1024) return 0;
  job.q = q;
  job.k = k;
  job.v = v;
  job.n_workers = n_threads > 0 ? n_threads : 1;
  if (lattn_check_options_(&job, options, 0) || lattn_check_shapes_(&job, 0, 0)) return 0;
  if (lattn_check_sequences_(&job, 0)) return 0;
  if (lattn_check_positions_(&job, &segments, 0) || lattn_check_top_(&job, k.n_tokens, 0)) return 0;
  bytes = lattn_plan_worker_(&job, q.n_tokens * job.group, lattn_depth_(segments), 0);
  job.top = 0; /* weights and profiles look at such calls as if they were plain */
  plain = lattn_plan_worker_(&job, q.n_tokens * job.group, lattn_depth_(segments), 0);
  return !bytes || bytes > plain ? bytes : plain;
}

/* ==== §7 append: pool and cache ==================================================================
   A pool is an arena: its header, then tables and pages in the order they were first needed, and
   from its end downwards a directory with 16 bytes a page: where it is and how many hold it. Free
   pages of each size form a list. A cache is a header with tables behind it: rules, numbers of
   pages per KV head, removed ranges, the draft area. Key pages hold 8 panels [dim][16], then 128
   value rows: a page is a block. Cost of an append: O(dims) a token and head; of an eviction: O(1)
   a page; of a fork or checkpoint: O(1) a page held. */

enum {
  LATTN_MAX_SIZES_ = 8,
  LATTN_MAX_DRAFTS_ = 64,
  LATTN_MAX_HOLES_ = 1024
};

/* One page that the pool has made. Pages are known by their number in the directory, 1 ... */
typedef struct lattn_page_ {
  uint64_t at;      /* offset from the pool, or the allocator's pointer */
  uint32_t holders; /* caches and checkpoints that hold it; 0: free */
  uint32_t next;    /* of a free page or number: the next one, 0 = none */
} lattn_page_;

/* Pages of one size. bytes 0: not in use. */
typedef struct lattn_size_ {
  uint64_t bytes, n_free, n_used;
  uint64_t promised; /* during a call: pages reserved so far */
  uint64_t free;     /* number of the first free page; with an allocator, whose free pages have no
                        numbers, its address, and the next one's is in its first 8 bytes */
} lattn_size_;

/* A free table: tables of released caches form a list, and serve the next cache that they fit. */
typedef struct lattn_free_table_ {
  uint64_t next, bytes;
} lattn_free_table_;

struct lattn_pool {
  uint64_t arena_bytes, used; /* from the pool's own address */
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*free)(void *user, void *page, size_t bytes);
  void *user;
  int64_t n_caches, n_checkpoints;
  uint64_t free_table, table_bytes; /* offset of the first; bytes of those in use */
  uint32_t n_numbers, free_number;  /* of the directory; the first that has no page */
  uint64_t n_free_numbers;
  uint64_t n_shared;                /* pages with more than one holder */
  lattn_size_ sizes[LATTN_MAX_SIZES_];
};

/* A removed range of slots. */
typedef struct lattn_hole_ {
  int64_t from, to;
  int64_t removed, gone; /* tokens in it and all before; blocks wholly inside it and all before */
} lattn_hole_;

struct lattn_cache {
  int64_t from_pool; /* bytes from the pool to this */
  uint64_t bytes;    /* of header and tables */
  int64_t n_tokens, capacity, max_append;
  int64_t removed;   /* tokens: the next slot is n_tokens + removed */
  int64_t dk, dv, columns, group;
  int32_t n_kv, n_heads, key_type, value_type, rotates, weighting; /* types: of heads without own */
  int32_t n_keys, n_values; /* key heads and value heads of a KV head, if it is a bundle; else 1 */
  float scale, softcap;
  int32_t layout, first_dim, n_dims;
  float magnitude;
  int64_t rules, turns, slopes, sink_logits, holes; /* offsets from this; 0 = none */
  uint64_t fingerprint; /* of all that decides what answers it gives */
  int32_t max_holes, n_holes, max_drafts, n_drafts;
  int64_t sums_bytes;   /* of the largest sums that a head keeps */
  int32_t listed;       /* during a batched call: it was met */
  float sigmoid_bias;
  int32_t open, zero; /* no head is full, some are chosen at marks: capacity is what these hold */
  int8_t parent[LATTN_MAX_DRAFTS_]; /* of the drafts */
  uint8_t depth[LATTN_MAX_DRAFTS_];
};

struct lattn_checkpoint {
  int64_t from_pool;
  uint64_t bytes, fingerprint;
  int64_t n_tokens;
  int32_t n_kv, n_holes;
  int64_t holes, heads, sums, pages; /* offsets from this: lattn_hole_ [n_holes], lattn_kept_
                                        [n_kv], the first prefix of each head that has sums,
                                        numbers of pages [n_pages] */
  int64_t n_pages;
};

/* What a checkpoint keeps of a head: its next `count` pages, of the sink blocks and of blocks from
   first_block on, but those in holes. */
typedef struct lattn_kept_ {
  int64_t first_block, count, page_bytes, marked;
  int32_t page_size, zero;
  int64_t kept, shift, seen_from; /* as the rule's */
  int64_t extra;          /* offset from the checkpoint of what the head chooses by: doubles, */
  int64_t n_sums, n_rows; /*   then rows of queries up to the newest, then its list */
} lattn_kept_;

LATTN_FN_ int64_t lattn_blocks_(int64_t tokens) {
  return (tokens + LATTN_BLOCK_ - 1) / LATTN_BLOCK_;
}

LATTN_FN_ lattn_pool *lattn_cache_pool_(const lattn_cache *cache) {
  return (lattn_pool *)(void *)((char *)(uintptr_t)cache - cache->from_pool);
}
LATTN_FN_ lattn_rule_ *lattn_rules_(const lattn_cache *cache) {
  return (lattn_rule_ *)(void *)((char *)(uintptr_t)cache + cache->rules);
}
LATTN_FN_ const lattn_rule_ *lattn_cache_rule_(const lattn_cache *cache, int32_t kv_head) {
  return lattn_rules_(cache) + kv_head;
}
/* Slots of heads that dropped nothing at a mark. */
LATTN_FN_ int64_t lattn_stored_slots_(const lattn_cache *cache) {
  return cache->n_tokens + cache->removed;
}
LATTN_FN_ int64_t lattn_head_slots_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return cache->n_tokens + cache->removed - rule->shift;
}
LATTN_FN_ uint32_t *lattn_list_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return (uint32_t *)(void *)((char *)(uintptr_t)cache + rule->c.list);
}
LATTN_FN_ int64_t lattn_slot_position_(const lattn_cache *cache, const lattn_rule_ *rule,
                                       int64_t slot) {
  return slot < rule->kept ? (int64_t)lattn_list_(cache, rule)[slot] : slot + rule->shift;
}
/* Is its head one whose tokens are chosen at a mark? */
LATTN_FN_ int lattn_chooses_(const lattn_rule_ *rule) {
  return rule->policy == LATTN_HEAD_SNAP || rule->policy == LATTN_HEAD_HEAVY;
}
LATTN_FN_ int lattn_any_chooses_(const lattn_cache *cache) {
  int any = 0;
  for (int32_t i = 0; i < cache->n_kv; i++) any |= lattn_chooses_(lattn_cache_rule_(cache, i));
  return any;
}
/* The slot of a position that the head may have dropped: then -1. */
LATTN_FN_ int64_t lattn_find_slot_(const lattn_cache *cache, const lattn_rule_ *rule,
                                   int64_t position) {
  int64_t lo = 0, hi = rule->kept;
  if (!rule->kept || position >= rule->kept + rule->shift)
    return lattn_slot_of_(cache, position) - rule->shift;
  while (lo < hi) {
    int64_t middle = (lo + hi) / 2;
    if (lattn_list_(cache, rule)[middle] < position)
      lo = middle + 1;
    else
      hi = middle;
  }
  return lo < rule->kept && lattn_list_(cache, rule)[lo] == position ? lo : -1;
}

/* ---- holes ---- */

LATTN_FN_ lattn_hole_ *lattn_holes_(const lattn_cache *cache) {
  return (lattn_hole_ *)(void *)((char *)(uintptr_t)cache + cache->holes);
}
LATTN_FN_ int lattn_has_holes_(const lattn_cache *cache) { return cache->n_holes > 0; }

/* The number of holes that begin at or before a slot. */
LATTN_FN_ int32_t lattn_holes_until_(const lattn_cache *cache, int64_t slot) {
  int32_t lo = 0, hi = cache->n_holes;
  while (lo < hi) {
    int32_t middle = (lo + hi) / 2;
    if (lattn_holes_(cache)[middle].from <= slot)
      lo = middle + 1;
    else
      hi = middle;
  }
  return lo;
}

LATTN_FN_ int64_t lattn_slot_of_(const lattn_cache *cache, int64_t position) {
  int32_t lo = 0, hi = cache->n_holes;
  while (lo < hi) { /* holes whose first token would have been at or before that position */
    int32_t middle = (lo + hi) / 2;
    int64_t before = middle ? lattn_holes_(cache)[middle - 1].removed : 0;
    if (lattn_holes_(cache)[middle].from - before <= position)
      lo = middle + 1;
    else
      hi = middle;
  }
  return position + (lo ? lattn_holes_(cache)[lo - 1].removed : 0);
}

LATTN_FN_ int64_t lattn_removed_before_(const lattn_cache *cache, int64_t slot) {
  int32_t n = lattn_holes_until_(cache, slot);
  return n ? lattn_holes_(cache)[n - 1].removed : 0;
}

LATTN_FN_ int lattn_in_hole_(const lattn_cache *cache, int64_t slot, int64_t *end) {
  int32_t n = lattn_holes_until_(cache, slot);
  int inside = n > 0 && slot < lattn_holes_(cache)[n - 1].to;
  if (end) {
    *end = inside ? lattn_holes_(cache)[n - 1].to : INT64_MAX;
    if (!inside && n < cache->n_holes) *end = lattn_holes_(cache)[n].from;
  }
  return inside;
}

LATTN_FN_ int lattn_adjacent_(const lattn_cache *cache, int64_t slot, int64_t n) {
  int64_t end;
  return !cache->n_holes || (!lattn_in_hole_(cache, slot, &end) && end >= slot + n);
}

LATTN_FN_ int lattn_is_gone_(const lattn_cache *cache, int64_t block) {
  int64_t end;
  if (!cache->n_holes) return 0;
  return lattn_in_hole_(cache, block * LATTN_BLOCK_, &end) && end >= (block + 1) * LATTN_BLOCK_;
}

/* Blocks before this one that are gone. (Right also for a block that is itself gone, or end.) */
LATTN_FN_ int64_t lattn_gone_before_(const lattn_cache *cache, int64_t block) {
  const lattn_hole_ *h = lattn_holes_(cache);
  int32_t n = cache->n_holes ? lattn_holes_until_(cache, block * LATTN_BLOCK_) : 0;
  int64_t over;
  if (!n) return 0;
  over = h[n - 1].to / LATTN_BLOCK_ - block;
  return h[n - 1].gone - lattn_max_(0, over);
}

/* Counts what the holes add up to, after one changed. */
LATTN_FN_ void lattn_sum_holes_(lattn_cache *cache) {
  lattn_hole_ *h = lattn_holes_(cache);
  int64_t removed = 0, gone = 0;
  for (int32_t i = 0; i < cache->n_holes; i++) {
    h[i].removed = removed += h[i].to - h[i].from;
    h[i].gone = gone +=
        lattn_max_(0, h[i].to / LATTN_BLOCK_ - lattn_blocks_(h[i].from));
  }
  cache->removed = removed;
}

/* ---- sums of what heads dropped ---- */

LATTN_FN_ lattn_sums_ lattn_cache_sums_(const lattn_cache *cache, int32_t kv, int prefix) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  char *p = (char *)(uintptr_t)cache + rule->sums + prefix * rule->sums_bytes;
  return lattn_sums_at_(rule, cache->dk, cache->dv, p);
}

LATTN_FN_ void lattn_sums_clear_(const lattn_cache *cache, int32_t kv, int prefix) {
  lattn_sums_ t = lattn_cache_sums_(cache, kv, prefix);
  lattn_sums_none_(&t, lattn_cache_rule_(cache, kv), cache->dk);
}

/* Brings a prefix up to `to`; the head holds those tokens. */
LATTN_NOINLINE_ void lattn_sums_advance_(const lattn_cache *cache, int32_t kv, int prefix,
                                         int64_t to) {
  float row[LATTN_MAX_STACK_DIM_];
  lattn_sums_ t = lattn_cache_sums_(cache, kv, prefix);
  lattn_sum_tokens_(cache, kv, &t, cache->dk, cache->dv, to, row);
}

/* Before the head's pages before slot `keep` go (0: none do), its first prefix takes up what is in
   them; the second becomes what the next token's row has lost. Both go back where tokens were
   forgotten. */
LATTN_NOINLINE_ void lattn_sums_settle_(const lattn_cache *cache, int32_t kv, int64_t keep) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  int64_t end = lattn_dropped_end_(rule, cache->n_tokens);
  lattn_sums_ old, now;
  if (!rule->sums || !rule->window) return;
  old = lattn_cache_sums_(cache, kv, 0);
  now = lattn_cache_sums_(cache, kv, 1);
  if (*old.to > end) lattn_sums_clear_(cache, kv, 0);
  lattn_sums_advance_(cache, kv, 0, lattn_min_(keep, end));
  if (*now.to > end || *now.to < *old.to)
    LATTN_MEMCPY_(now.to, old.to, (size_t)rule->sums_bytes);
  lattn_sums_advance_(cache, kv, 1, end);
}

/* Of all heads, after tokens were forgotten, or another cache's came. */
LATTN_FN_ void lattn_sums_settle_all_(const lattn_cache *cache) {
  lattn_fpenv_ saved;
  if (!cache->sums_bytes) return;
  lattn_fpenv_enter_(&saved);
  for (int32_t i = 0; i < cache->n_kv; i++) lattn_sums_settle_(cache, i, 0);
  lattn_fpenv_leave_(&saved);
}

/* ---- drafts of a cache ---- */

LATTN_FN_ int lattn_draft_number_(const lattn_cache *cache, const uint8_t *depth) {
  return (int)(depth - cache->depth);
}
LATTN_FN_ int lattn_draft_depth_(const lattn_cache *cache, int number) {
  return cache->depth[number];
}
LATTN_FN_ int lattn_draft_parent_(const lattn_cache *cache, int number) {
  return cache->parent[number];
}
LATTN_FN_ const char *lattn_draft_keys_(const lattn_cache *cache, int32_t kv_head) {
  return (const char *)cache + lattn_cache_rule_(cache, kv_head)->drafts;
}
/* ---- pool ---- */

LATTN_FN_ lattn_page_ *lattn_page_of_(const lattn_pool *pool, uint32_t number) {
  return (lattn_page_ *)(void *)((char *)(uintptr_t)pool + pool->arena_bytes) - number;
}
LATTN_FN_ char *lattn_page_at_(const lattn_pool *pool, uint32_t number) {
  uint64_t at = lattn_page_of_(pool, number)->at;
  return pool->alloc ? (char *)(uintptr_t)at : (char *)(uintptr_t)pool + at;
}
LATTN_FN_ uint32_t *lattn_page_entry_(const lattn_cache *cache, const lattn_rule_ *rule,
                                      int64_t block) {
  uint32_t *pages = (uint32_t *)(void *)((char *)(uintptr_t)cache + rule->pages);
  if (block < rule->sink_blocks) return pages + block;
  if (cache->n_holes) block -= lattn_gone_before_(cache, block);
  return pages + rule->sink_blocks + block % rule->ring;
}
LATTN_FN_ const char *lattn_cache_page_(const lattn_cache *cache, int32_t kv_head, int64_t block) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv_head);
  return lattn_page_at_(lattn_cache_pool_(cache), *lattn_page_entry_(cache, rule, block));
}

LATTN_FN_ int64_t lattn_common_pages_(const lattn_cache *a, const lattn_cache *b, int32_t kv_head,
                                      int64_t n) {
  const uint32_t *x = lattn_page_entry_(a, lattn_cache_rule_(a, kv_head), 0);
  const uint32_t *y = lattn_page_entry_(b, lattn_cache_rule_(b, kv_head), 0);
  int64_t i = 0;
  if (lattn_cache_pool_(a) != lattn_cache_pool_(b)) return 0;
  while (i < n && x[i] == y[i]) i++;
  return i;
}

/* The index of a page size, or of the place for a new one; -1: there are too many. */
LATTN_FN_ int32_t lattn_size_of_(const uint64_t sizes[LATTN_MAX_SIZES_], uint64_t bytes) {
  for (int32_t i = 0; i < LATTN_MAX_SIZES_; i++)
    if (sizes[i] == bytes) return i;
  for (int32_t i = 0; i < LATTN_MAX_SIZES_; i++)
    if (sizes[i] == 0) return i;
  return -1;
}

/* Bytes between the tables and pages, and the directory. */
LATTN_FN_ uint64_t lattn_pool_room_(const lattn_pool *pool) {
  return pool->arena_bytes - pool->used - pool->n_numbers * sizeof(lattn_page_);
}

/* Memory for a table: an offset, or 0 if there is none. bytes is a multiple of 64. */
LATTN_FN_ uint64_t lattn_pool_take_table_(lattn_pool *pool, uint64_t bytes) {
  uint64_t at = pool->free_table, before = 0;
  while (at) {
    lattn_free_table_ table;
    LATTN_MEMCPY_(&table, (char *)pool + at, sizeof table);
    if (table.bytes >= bytes) {
      if (table.bytes > bytes) { /* the rest stays in the list */
        lattn_free_table_ rest;
        rest.next = table.next;
        rest.bytes = table.bytes - bytes;
        table.next = at + bytes;
        LATTN_MEMCPY_((char *)pool + table.next, &rest, sizeof rest);
      }
      LATTN_MEMCPY_(before ? (char *)pool + before : (char *)&pool->free_table, &table.next,
                    sizeof table.next);
      break;
    }
    before = at;
    at = table.next;
  }
  if (!at) {
    if (lattn_pool_room_(pool) < bytes) return 0;
    at = pool->used;
    pool->used += bytes;
  }
  pool->table_bytes += bytes;
  return at;
}

/* Free tables lie in the list in order, neighbours joined, so that any size can be had again. */
LATTN_FN_ void lattn_pool_return_table_(lattn_pool *pool, uint64_t at, uint64_t bytes) {
  lattn_free_table_ table, other;
  uint64_t before = 0, next = pool->free_table;
  pool->table_bytes -= bytes;
  table.bytes = bytes;
  while (next && next < at) {
    before = next;
    LATTN_MEMCPY_(&other, (char *)pool + next, sizeof other);
    next = other.next;
  }
  table.next = next;
  if (!next && at + bytes == pool->used) { /* the newest memory: may become anything again */
    pool->used = at;
    return;
  }
  if (next && at + bytes == next) {
    LATTN_MEMCPY_(&other, (char *)pool + next, sizeof other);
    table.next = other.next;
    table.bytes += other.bytes;
  }
  if (before) {
    LATTN_MEMCPY_(&other, (char *)pool + before, sizeof other);
    other.next = at;
    if (before + other.bytes == at) {
      other.bytes += table.bytes;
      other.next = table.next;
      at = 0;
    }
    LATTN_MEMCPY_((char *)pool + before, &other, sizeof other);
  } else {
    pool->free_table = at;
  }
  if (at) LATTN_MEMCPY_((char *)pool + at, &table, sizeof table);
}

/* A number without a page; promised before. */
LATTN_FN_ uint32_t lattn_pool_number_(lattn_pool *pool) {
  uint32_t number = pool->free_number;
  if (number) {
    pool->free_number = lattn_page_of_(pool, number)->next;
    pool->n_free_numbers--;
  } else {
    number = ++pool->n_numbers;
  }
  LATTN_MEMSET_(lattn_page_of_(pool, number), 0, sizeof(lattn_page_));
  return number;
}

/* Ends a call: nothing is promised any more, free pages go back to the allocator. */
LATTN_FN_ void lattn_pool_settle_(lattn_pool *pool) {
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) {
    lattn_size_ *z = pool->sizes + i;
    z->promised = 0;
    while (pool->alloc && z->n_free) {
      void *page = (void *)(uintptr_t)z->free;
      LATTN_MEMCPY_(&z->free, page, sizeof z->free);
      z->n_free--;
      pool->free(pool->user, page, (size_t)z->bytes);
    }
    if (pool->alloc) z->free = 0;
  }
}

/* Puts a page that nobody holds into its size's list. */
LATTN_FN_ void lattn_pool_put_(lattn_pool *pool, int32_t size, uint32_t number) {
  lattn_size_ *z = pool->sizes + size;
  lattn_page_ *page = lattn_page_of_(pool, number);
  if (pool->alloc) {
    LATTN_MEMCPY_((void *)(uintptr_t)page->at, &z->free, sizeof z->free);
    z->free = page->at;
    page->next = pool->free_number;
    pool->free_number = number;
    pool->n_free_numbers++;
  } else {
    page->next = (uint32_t)z->free;
    z->free = number;
  }
  z->n_free++;
}

/* Fetches pages from the allocator until n are free. */
LATTN_FN_ int lattn_pool_fetch_(lattn_pool *pool, lattn_size_ *z, uint64_t n) {
  while (z->n_free < n) {
    void *page = pool->alloc(pool->user, (size_t)z->bytes, 64);
    if (!page) return 0;
    LATTN_MEMCPY_(page, &z->free, sizeof z->free);
    z->free = (uint64_t)(uintptr_t)page;
    z->n_free++;
  }
  return 1;
}

/* Promises n more pages of a size, besides those promised before in this call; 0: cannot. With an
   allocator they are fetched now. Whoever reserves settles at the end of the call. */
LATTN_FN_ int lattn_pool_reserve_(lattn_pool *pool, int32_t size, uint64_t n) {
  uint64_t bytes = 0, numbers = 0;
  if (n > UINT32_MAX) return 0;
  pool->sizes[size].promised += n;
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) {
    const lattn_size_ *z = pool->sizes + i;
    uint64_t more = z->promised > z->n_free ? z->promised - z->n_free : 0;
    numbers += pool->alloc ? z->promised : more; /* free pages of an arena have theirs */
    if (pool->alloc) continue;
    if (more > pool->arena_bytes / 64) return 0;
    bytes += more * z->bytes;
  }
  numbers -= numbers < pool->n_free_numbers ? numbers : pool->n_free_numbers;
  if (numbers > UINT32_MAX - pool->n_numbers) return 0;
  if (bytes + numbers * sizeof(lattn_page_) > lattn_pool_room_(pool)) return 0;
  return !pool->alloc || lattn_pool_fetch_(pool, pool->sizes + size, pool->sizes[size].promised);
}

/* Takes a page that was promised. */
LATTN_FN_ uint32_t lattn_pool_take_(lattn_pool *pool, int32_t size) {
  lattn_size_ *z = pool->sizes + size;
  uint32_t number = pool->alloc || !z->n_free ? lattn_pool_number_(pool) : (uint32_t)z->free;
  lattn_page_ *page = lattn_page_of_(pool, number);
  z->n_used++;
  z->promised--;
  if (pool->alloc) {
    page->at = z->free;
    LATTN_MEMCPY_(&z->free, (const void *)(uintptr_t)page->at, sizeof z->free);
    z->n_free--;
  } else if (z->n_free) {
    z->free = page->next;
    z->n_free--;
  } else {
    page->at = pool->used;
    pool->used += z->bytes;
  }
  page->holders = 1;
  return number;
}

LATTN_FN_ void lattn_pool_share_(lattn_pool *pool, uint32_t number) {
  if (lattn_page_of_(pool, number)->holders++ == 1) pool->n_shared++;
}

/* One holder less. */
LATTN_FN_ void lattn_pool_return_(lattn_pool *pool, int32_t size, uint32_t number) {
  uint32_t left = --lattn_page_of_(pool, number)->holders;
  if (left == 1) pool->n_shared--;
  if (left) return;
  pool->sizes[size].n_used--;
  lattn_pool_put_(pool, size, number);
}

LATTN_API lattn_status lattn_pool_init(lattn_pool **pool, void *arena, size_t arena_bytes,
                                       const lattn_pool_config *config) {
  lattn_pool_config c;
  lattn_status s = lattn_import_(&c, sizeof c, sizeof c, config);
  size_t skip = (64 - (uintptr_t)arena % 64) % 64;
  lattn_pool *p;
  if (!pool || !arena) return LATTN_E_NULL;
  if (s) return s;
  if (c.zero) return LATTN_E_FIELD;
  if (!c.alloc != !c.free) return LATTN_E_CONFIG;
  if (arena_bytes < skip || arena_bytes - skip < lattn_round64_(sizeof *p)) return LATTN_E_MEMORY;
  p = (lattn_pool *)(void *)((char *)arena + skip);
  LATTN_MEMSET_(p, 0, sizeof *p);
  p->arena_bytes = (arena_bytes - skip) / 64 * 64;
  p->used = lattn_round64_(sizeof *p);
  p->alloc = c.alloc;
  p->free = c.free;
  p->user = c.user;
  *pool = p;
  return LATTN_OK;
}

/* Copies our own statistics into the caller's struct of any version. */
LATTN_FN_ lattn_status lattn_export_(void *to, const void *own, size_t own_bytes) {
  uint32_t size;
  LATTN_MEMCPY_(&size, to, sizeof size);
  if (size < own_bytes || size > LATTN_MAX_STRUCT_) return LATTN_E_SIZE;
  LATTN_MEMSET_((char *)to + sizeof size, 0, size - sizeof size);
  LATTN_MEMCPY_((char *)to + sizeof size, (const char *)own + sizeof size, own_bytes - sizeof size);
  return LATTN_OK;
}

LATTN_API lattn_status lattn_pool_stats_get(const lattn_pool *pool, lattn_pool_stats *stats) {
  lattn_pool_stats s;
  uint64_t used = 0;
  if (!pool || !stats) return LATTN_E_NULL;
  LATTN_MEMSET_(&s, 0, sizeof s);
  s.n_caches = (int32_t)pool->n_caches;
  s.n_checkpoints = pool->n_checkpoints;
  s.n_shared = (int64_t)pool->n_shared;
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) used += pool->sizes[i].n_used;
  s.table_bytes = (int64_t)(lattn_round64_(sizeof *pool) + pool->table_bytes +
                            used * sizeof(lattn_page_));
  s.arena_bytes = (int64_t)pool->arena_bytes;
  s.free_bytes =
      (int64_t)(lattn_pool_room_(pool) + (pool->n_numbers - used) * sizeof(lattn_page_));
  for (uint64_t at = pool->free_table; at;) {
    lattn_free_table_ table;
    LATTN_MEMCPY_(&table, (const char *)pool + at, sizeof table);
    s.free_bytes += (int64_t)table.bytes;
    at = table.next;
  }
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) {
    const lattn_size_ *z = pool->sizes + i;
    s.n_pages += (int64_t)z->n_used;
    s.page_bytes += (int64_t)(z->n_used * z->bytes);
    if (!pool->alloc) s.free_bytes += (int64_t)(z->n_free * z->bytes);
  }
  return lattn_export_(stats, &s, sizeof s);
}

/* ---- config ---- */

/* What a mark makes of one head; see there. */
typedef struct lattn_choice_ {
  double *score; /* of each slot held; then, in its place, the slots that stay, as uint32_t */
  double *own;   /* NULL, or of one query head */
  const double *from; /* score, or the head's sums */
  int64_t slots, candidates, take, next;
  int32_t drops, shares;
} lattn_choice_;

/* Bytes that it takes a slot, beside itself. */
LATTN_FN_ int64_t lattn_choice_bytes_(const lattn_rule_ *rule) {
  return rule->c.flags & LATTN_SNAP_GROUP_MAX ? 16 : 8;
}

/* A checked config: the cache's header and rules as they will be, and its sizes. */
typedef struct lattn_plan_ {
  lattn_cache_config c;
  lattn_rotary rotary;
  lattn_cache header;
  /* Of each page size: at most, between calls and during an extend, all heads. */
  int64_t sizes[LATTN_MAX_SIZES_], held[LATTN_MAX_SIZES_], peak[LATTN_MAX_SIZES_];
  int64_t shared;     /* budgets less windows of the heads that share them */
  int64_t mark_bytes; /* of a table that a mark needs */
} lattn_plan_;

/* Most blocks that a window of `tokens` tokens before the next one touches. */
LATTN_FN_ int64_t lattn_window_blocks_(int64_t tokens) {
  return (tokens + LATTN_BLOCK_ - 2) / LATTN_BLOCK_ + 1;
}

/* How a head stores its tokens. */
LATTN_FN_ lattn_status lattn_plan_storage_(const lattn_plan_ *p, const lattn_head *head,
                                           lattn_storage_ *st) {
  const lattn_cache *h = &p->header;
  lattn_fault *f = p->c.fault;
  int64_t panels = (h->max_drafts + LATTN_PANEL_ - 1) / LATTN_PANEL_;
  st->key_type = head->key_type ? head->key_type : h->key_type;
  st->value_type = head->value_type ? head->value_type : h->value_type;
  if (st->key_type < LATTN_F32 || st->key_type > LATTN_I4)
    return lattn_fail_(f, LATTN_E_TYPE, "config.heads.key_type");
  if (st->value_type < LATTN_F32 || st->value_type > LATTN_I4)
    return lattn_fail_(f, LATTN_E_TYPE, "config.heads.value_type");
  if (lattn_is_int_(st->key_type) && (h->dk < 16 || h->dk > LATTN_MAX_STACK_DIM_))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.key_dim");
  if (lattn_is_int_(st->value_type) && (h->dv < 16 || h->dv > LATTN_MAX_STACK_DIM_))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.value_dim");
  st->key_basis = lattn_is_int_(st->key_type) ? lattn_basis_(h->dk) : 0;
  st->value_basis = st->value_type == LATTN_I4 ? lattn_basis_(h->dv) : 0;
  st->panel_bytes = lattn_panel_bytes_(st->key_type, h->dk);
  st->row_bytes = lattn_row_bytes_(st->value_type, h->dv);
  st->n_keys = h->n_keys;
  st->n_values = h->n_values;
  st->key_stride = lattn_up_(LATTN_BLOCK_ / LATTN_PANEL_ * st->panel_bytes, 64);
  st->value_at = st->n_keys * st->key_stride;
  st->value_stride = lattn_up_(lattn_scales_at_(st, LATTN_BLOCK_) +
                               lattn_scale_bytes_(st, LATTN_BLOCK_), 64);
  st->page_bytes = st->value_at + st->n_values * st->value_stride;
  st->draft_key_stride = lattn_up_(panels * st->panel_bytes, 64);
  st->draft_value_at = st->n_keys * st->draft_key_stride;
  st->draft_scales_at = st->draft_value_at + lattn_scales_at_(st, h->max_drafts);
  st->draft_value_stride = lattn_up_(lattn_scales_at_(st, h->max_drafts) +
                                     lattn_scale_bytes_(st, h->max_drafts), 64);
  st->draft_bytes = st->draft_value_at + st->n_values * st->draft_value_stride;
  return LATTN_OK;
}

/* Of a head that keeps sums: their size. */
LATTN_FN_ void lattn_plan_sums_(const lattn_plan_ *p, lattn_rule_ *rule) {
  rule->sums_bytes = 16 + 8 * p->header.dk +
                     (rule->policy == LATTN_HEAD_COMPENSATED ? 8 * p->header.dv : 0) +
                     (rule->flags & LATTN_HEAD_VARIANCE ? 8 * p->header.dk : 0) +
                     (rule->flags & LATTN_HEAD_LOST ? 8 * p->header.dk : 0);
}

/* A head that drops tokens: its window, and what it keeps of what it dropped. */
LATTN_FN_ lattn_status lattn_plan_dropping_(const lattn_plan_ *p, const lattn_head *head,
                                            lattn_rule_ *rule) {
  lattn_fault *f = p->c.fault;
  int64_t all = lattn_blocks_(p->header.open ? LATTN_MAX_POSITION_ : p->header.capacity);
  int compensated = head->policy == LATTN_HEAD_COMPENSATED;
  lattn_status s = (p->header.rotates || p->c.alibi_slopes) && !compensated ? LATTN_OK
                                                                            : LATTN_E_CONFIG;
  if (head->sinks < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.sinks");
  if (head->window < 1) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.window");
  if (head->slack < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.slack");
  if (head->mark && head->mark != LATTN_PROMPT_END)
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.mark");
  if (head->flags & ~(LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE))
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.flags");
  if (head->flags & LATTN_HEAD_VARIANCE && !compensated)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.heads.flags");
  if (head->window_divisor < 0)
    return lattn_fail_(f, LATTN_E_VALUE, "config.heads.window_divisor");
  if (head->window_divisor && !head->mark)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.heads.window_divisor");
  if (head->positions == LATTN_POSITIONS_IN_CACHE && s)
    return lattn_fail_(f, s, "config.heads.positions");
  if (compensated && p->c.weighting == LATTN_SIGMOID)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.weighting");
  rule->in_cache = head->positions != LATTN_POSITIONS_ABSOLUTE && !s;
  rule->sinks = lattn_min_(head->sinks, LATTN_MAX_POSITION_);
  rule->window = lattn_min_(head->window, LATTN_MAX_POSITION_);
  rule->slack = lattn_min_(head->slack, LATTN_MAX_POSITION_);
  rule->mark = head->mark;
  rule->flags = head->flags;
  rule->divisor = head->window_divisor;
  rule->sink_blocks = lattn_min_(lattn_blocks_(rule->sinks), all);
  rule->ring = lattn_window_blocks_(rule->window - 1 + rule->slack + p->header.max_append);
  rule->ring = lattn_min_(rule->ring, all) + 2 * (int64_t)p->header.max_holes;
  if (!compensated && !(head->flags & LATTN_HEAD_LOST)) return LATTN_OK;
  if (p->header.n_keys > 1 || p->header.n_values > 1) /* sums are of one key and value head */
    return lattn_fail_(f, LATTN_E_CONFIG, "config.n_value_heads");
  if (rule->window <= p->header.max_drafts) /* drafts are in no sum */
    return lattn_fail_(f, LATTN_E_CONFIG, "config.heads.window");
  lattn_plan_sums_(p, rule);
  return LATTN_OK;
}

/* Fields of a head that is chosen at a mark. */
LATTN_FN_ lattn_status lattn_plan_chosen_(const lattn_plan_ *p, const lattn_head *head,
                                          lattn_rule_ *rule) {
  lattn_chosen_ *c = &rule->c;
  lattn_fault *f = p->c.fault;
  const int32_t flags = LATTN_SNAP_AVERAGE | LATTN_SNAP_GROUP_MAX | LATTN_SNAP_SHARED;
  int snap = head->policy == LATTN_HEAD_SNAP;
  if (p->header.n_keys > 1 || p->header.n_values > 1)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.n_value_heads");
  if (head->positions == LATTN_POSITIONS_IN_CACHE || head->sinks || head->window_divisor)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.heads");
  if (head->positions < 0 || head->positions > LATTN_POSITIONS_IN_CACHE)
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.positions");
  if (head->mark && head->mark != LATTN_PROMPT_END)
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.mark");
  if (head->flags & ~(flags | LATTN_HEAD_LOST))
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.flags");
  if (head->zero) return lattn_fail_(f, LATTN_E_FIELD, "config.heads.zero");
  if (head->window < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.window");
  if (head->slack < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.slack");
  if (head->budget < 1) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.budget");
  if (head->kernel < 0 || head->kernel > 63 || (head->kernel && head->kernel % 2 == 0))
    return lattn_fail_(f, LATTN_E_VALUE, "config.heads.kernel");
  if (!(head->floor_alpha <= 1)) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.floor_alpha");
  if (!snap && (head->flags & flags || head->kernel || head->slack || head->floor_alpha < 0 ||
                head->floor_alpha > 0))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.heads");
  if (!snap && p->header.max_drafts) return lattn_fail_(f, LATTN_E_CONFIG, "config.max_drafts");
  if (p->c.capacity == 0) return lattn_fail_(f, LATTN_E_CONFIG, "config.capacity");
  c->budget = lattn_min_(head->budget, LATTN_MAX_POSITION_);
  c->recent = lattn_min_(head->window, LATTN_MAX_POSITION_);
  if (!c->recent) c->recent = snap ? 32 : c->budget / 2;
  if (c->recent > c->budget - snap) return lattn_fail_(f, LATTN_E_VALUE, "config.heads.budget");
  c->kernel = head->kernel ? head->kernel : 7;
  c->flags = head->flags & flags;
  rule->flags = head->flags & LATTN_HEAD_LOST;
  if (rule->flags) lattn_plan_sums_(p, rule);
  c->floor_alpha = head->floor_alpha < 0 ? 0 : head->floor_alpha > 0 ? head->floor_alpha : 0.2;
  c->most_kept = c->budget;
  if (c->flags & LATTN_SNAP_SHARED) c->most_kept = lattn_plus_(p->shared, 1 + c->recent);
  if (c->most_kept < 0) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.heads.budget");
  c->most_kept = lattn_min_(c->most_kept, p->header.capacity);
  c->n_queries = c->recent + lattn_min_(head->slack, LATTN_MAX_POSITION_);
  c->n_queries = snap ? lattn_min_(c->n_queries, p->header.capacity) : 0;
  return LATTN_OK;
}

/* 1: the head is chosen at a mark; 0: it has none of the fields of such heads; -1: it has. */
LATTN_FN_ int lattn_plan_kind_(const lattn_head *head) {
  if (head->policy == LATTN_HEAD_SNAP || head->policy == LATTN_HEAD_HEAVY) return 1;
  if (head->policy < 0 || head->policy > LATTN_HEAD_HEAVY) return 0; /* said later */
  if (head->budget || head->kernel || head->zero) return -1;
  return head->floor_alpha >= 0 && head->floor_alpha <= 0 ? 0 : -1;
}

LATTN_FN_ lattn_status lattn_plan_rule_(const lattn_plan_ *p, int32_t kv, lattn_rule_ *rule) {
  lattn_head head;
  lattn_fault *f = p->c.fault;
  int64_t all = lattn_blocks_(p->header.capacity);
  lattn_status s;
  LATTN_MEMSET_(&head, 0, sizeof head);
  LATTN_MEMSET_(rule, 0, sizeof *rule);
  if (p->c.heads) {
    const char *at = (const char *)(const void *)p->c.heads + (size_t)kv * p->c.head_size;
    for (size_t i = sizeof head; i < p->c.head_size; i++)
      if (at[i]) return lattn_fail_(f, LATTN_E_FIELD, "config.heads");
    LATTN_MEMCPY_(&head, at, p->c.head_size < sizeof head ? p->c.head_size : sizeof head);
  }
  s = lattn_plan_storage_(p, &head, &rule->s);
  if (s) return s;
  rule->policy = head.policy;
  rule->ring = all + 2 * (int64_t)p->header.max_holes; /* what a hole leaves may straddle blocks */
  if (lattn_plan_kind_(&head) > 0) return lattn_plan_chosen_(p, &head, rule);
  if (lattn_plan_kind_(&head)) return lattn_fail_(f, LATTN_E_CONFIG, "config.heads");
  if (head.positions < 0 || head.positions > LATTN_POSITIONS_IN_CACHE)
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.positions");
  if (head.policy == LATTN_HEAD_FULL) {
    if (head.positions == LATTN_POSITIONS_IN_CACHE || head.sinks || head.window || head.slack ||
        head.mark || head.flags || head.window_divisor)
      return lattn_fail_(f, LATTN_E_CONFIG, "config.heads");
    if (p->c.capacity == 0) return lattn_fail_(f, LATTN_E_CONFIG, "config.capacity");
    return LATTN_OK;
  }
  if (head.policy != LATTN_HEAD_STREAMING && head.policy != LATTN_HEAD_COMPENSATED)
    return lattn_fail_(f, LATTN_E_FIELD, "config.heads.policy");
  s = lattn_plan_dropping_(p, &head, rule);
  if (s || !rule->mark) return s;
  if (p->c.capacity == 0) return lattn_fail_(f, LATTN_E_CONFIG, "config.capacity");
  rule->ring = all + 2 * (int64_t)p->header.max_holes;
  rule->next_window = rule->window; /* until the mark it is full */
  rule->next_in_cache = rule->in_cache;
  rule->window = rule->in_cache = 0;
  rule->marked = -1;
  return LATTN_OK;
}

/* Most pages of a head between calls, and during an extend. */
LATTN_FN_ void lattn_rule_pages_(const lattn_plan_ *p, const lattn_rule_ *rule, int64_t *held,
                                 int64_t *peak) {
  int64_t all = lattn_blocks_(p->header.capacity), kept = all;
  if (p->header.open && !lattn_chooses_(rule)) all = lattn_blocks_(LATTN_MAX_POSITION_);
  if (rule->window)
    kept =
        lattn_min_(all, rule->sink_blocks + lattn_window_blocks_(rule->window - 1 + rule->slack));
  *held = *peak = kept;
  if (rule->window)
    *peak = lattn_min_(all, rule->sink_blocks + rule->ring - 2 * (int64_t)p->header.max_holes);
  if (lattn_chooses_(rule)) *peak = all + 1; /* one more while a mark copies */
}

LATTN_FN_ lattn_status lattn_plan_rotary_(lattn_plan_ *p) {
  lattn_fault *f = p->c.fault;
  lattn_rotary *r = &p->rotary;
  lattn_status s;
  if (!p->c.rotary) return LATTN_OK;
  s = lattn_import_(r, sizeof *r, sizeof *r, p->c.rotary);
  if (s) return lattn_fail_(f, s, "config.rotary.size");
  s = lattn_check_rotary_(r, p->header.dk, f);
  if (s) return s;
  p->header.rotates = 1;
  p->header.layout = r->layout;
  p->header.first_dim = r->first_dim;
  p->header.n_dims = r->n_dims;
  p->header.magnitude = (lattn_bits_(r->magnitude) & 0x7fffffffu) ? r->magnitude : 1.0f;
  return LATTN_OK;
}

/* Numbers. */
LATTN_FN_ lattn_status lattn_plan_numbers_(lattn_plan_ *p) {
  const lattn_cache_config *c = &p->c;
  lattn_cache *h = &p->header;
  lattn_job_ job;
  lattn_status s;
  lattn_job_init_(&job);
  job.n_kv = h->n_kv;
  job.group = h->group;
  job.dk = h->dk;
  job.o.scale = c->scale;
  job.o.softcap = c->softcap;
  job.o.alibi_slopes = c->alibi_slopes;
  job.o.sink_logits = c->sink_logits;
  job.o.weighting = c->weighting;
  job.o.sigmoid_bias = c->sigmoid_bias;
  s = lattn_check_numbers_(&job, c->fault);
  h->scale = job.scale;
  h->softcap = job.o.softcap;
  h->weighting = c->weighting;
  h->sigmoid_bias = c->sigmoid_bias;
  return s;
}

/* Heads, dims, types, numbers. */
LATTN_FN_ lattn_status lattn_plan_fields_(lattn_plan_ *p) {
  const lattn_cache_config *c = &p->c;
  lattn_cache *h = &p->header;
  lattn_fault *f = c->fault;
  int32_t values;
  if (c->n_kv_heads < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.n_kv_heads");
  if (c->n_value_heads < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.n_value_heads");
  if (c->zero) return lattn_fail_(f, LATTN_E_FIELD, "config.zero");
  values = c->n_value_heads ? c->n_value_heads : c->n_kv_heads;
  h->n_kv = lattn_bundles_(c->n_kv_heads, values);
  h->n_keys = c->n_kv_heads / h->n_kv;
  h->n_values = values / h->n_kv;
  h->n_heads = c->n_heads ? c->n_heads : c->n_kv_heads;
  if (h->n_heads < 1 || h->n_heads % c->n_kv_heads || h->n_heads % values)
    return lattn_fail_(f, LATTN_E_SHAPE, "config.n_heads");
  h->group = h->n_heads / h->n_kv;
  h->dk = c->key_dim;
  h->dv = c->value_dim ? c->value_dim : c->key_dim;
  if (h->dk < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.key_dim");
  if (h->dv < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.value_dim");
  if (h->dk > 1 << 20) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.key_dim");
  if (h->dv > 1 << 20) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.value_dim");
  h->columns = (h->dv + 15) / 16 * 16;
  h->key_type = c->key_type ? c->key_type : LATTN_F32;
  h->value_type = c->value_type ? c->value_type : LATTN_F32;
  if (h->key_type < LATTN_F32 || h->key_type > LATTN_I4)
    return lattn_fail_(f, LATTN_E_TYPE, "config.key_type");
  if (h->value_type < LATTN_F32 || h->value_type > LATTN_I4)
    return lattn_fail_(f, LATTN_E_TYPE, "config.value_type");
  if (c->capacity < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.capacity");
  if (c->capacity > LATTN_MAX_POSITION_) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.capacity");
  if (c->max_append < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.max_append");
  if (c->max_append > LATTN_MAX_POSITION_)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "config.max_append");
  h->capacity = c->capacity ? c->capacity : LATTN_MAX_POSITION_;
  h->max_append = c->max_append ? c->max_append : 512;
  if (c->max_drafts < 0 || c->max_drafts > LATTN_MAX_DRAFTS_)
    return lattn_fail_(f, LATTN_E_SHAPE, "config.max_drafts");
  if (c->max_holes < 0 || c->max_holes > LATTN_MAX_HOLES_)
    return lattn_fail_(f, LATTN_E_SHAPE, "config.max_holes");
  h->max_drafts = c->max_drafts;
  h->max_holes = c->max_holes ? c->max_holes : 16;
  if (c->heads && (c->head_size < LATTN_FIRST_HEAD_ || c->head_size % 8))
    return lattn_fail_(f, LATTN_E_SIZE, "config.head_size");
  return lattn_plan_numbers_(p);
}

/* Sets the offset of a table of n bytes behind those so far. */
LATTN_FN_ int64_t lattn_lay_(int64_t *at, int64_t n) {
  int64_t here = *at;
  *at = n < 0 ? -1 : lattn_plus_(*at, (n + 7) / 8 * 8);
  return here;
}

/* Bytes of the pages held at most between calls, with their places in the directory, or of those
   more that an extend takes; with an allocator, of the places only. */
LATTN_FN_ int64_t lattn_pages_bytes_(const lattn_plan_ *p, int more, int places_only) {
  int64_t all = 0;
  for (int i = 0; i < LATTN_MAX_SIZES_; i++)
    all = lattn_plus_(all, lattn_times_(more ? p->peak[i] - p->held[i] : p->held[i],
                                        (places_only ? 0 : p->sizes[i]) +
                                            (int64_t)sizeof(lattn_page_)));
  return all;
}

/* Adds the pages of a head to those of its size. */
LATTN_FN_ lattn_status lattn_plan_pages_(lattn_plan_ *p, const lattn_storage_ *st, int64_t held,
                                         int64_t peak) {
  int k = 0;
  while (k < LATTN_MAX_SIZES_ && p->sizes[k] && p->sizes[k] != st->page_bytes) k++;
  if (k == LATTN_MAX_SIZES_) return lattn_fail_(p->c.fault, LATTN_E_CONFIG, "config.heads");
  p->sizes[k] = st->page_bytes;
  p->held[k] += held;
  p->peak[k] += peak;
  if (lattn_pages_bytes_(p, 0, 0) < 0 || lattn_pages_bytes_(p, 1, 0) < 0)
    return lattn_fail_(p->c.fault, LATTN_E_OVERFLOW, "config.capacity");
  return LATTN_OK;
}

/* What the heads come to together: what they share, and what limits the cache. */
LATTN_FN_ lattn_status lattn_plan_heads_(lattn_plan_ *p) {
  lattn_cache *h = &p->header;
  int chosen = 0, full = 0;
  int64_t shared = 0;
  for (int32_t i = 0; i < h->n_kv; i++) {
    lattn_rule_ rule;
    lattn_status s = lattn_plan_rule_(p, i, &rule);
    if (s) return s;
    full |= !rule.window && !lattn_chooses_(&rule);
    p->mark_bytes = lattn_plus_(p->mark_bytes, (int64_t)sizeof(lattn_choice_));
    if (!lattn_chooses_(&rule)) continue;
    chosen = 1;
    if (rule.c.flags & LATTN_SNAP_SHARED)
      shared = lattn_plus_(shared, rule.c.budget - rule.c.recent);
    p->mark_bytes = lattn_plus_(p->mark_bytes,
                                lattn_times_(h->capacity, lattn_choice_bytes_(&rule)));
    if (shared < 0 || p->mark_bytes < 0)
      return lattn_fail_(p->c.fault, LATTN_E_OVERFLOW, "config.heads.budget");
  }
  p->mark_bytes = chosen ? lattn_up_(p->mark_bytes, 64) : 0;
  p->shared = shared;
  h->open = chosen && !full;
  return LATTN_OK;
}

/* Tables of a head that is chosen at a mark. */
LATTN_FN_ void lattn_lay_chosen_(const lattn_plan_ *p, lattn_chosen_ *c, int heavy, int64_t *at) {
  int64_t query = lattn_times_(p->header.group, 4 * p->header.dk);
  c->list = lattn_lay_(at, lattn_times_(c->most_kept, 4));
  if (heavy) {
    c->mass = lattn_lay_(at, lattn_times_(p->header.capacity, 8));
    return;
  }
  c->queries = lattn_lay_(at, lattn_times_(c->n_queries, query));
  c->draft_queries = lattn_lay_(at, lattn_times_(p->header.max_drafts, query));
}

/* Checks a config and sizes its cache. rules: NULL, or gets [n_kv]. */
LATTN_FN_ lattn_status lattn_plan_cache_(lattn_plan_ *p, const lattn_cache_config *config,
                                         lattn_rule_ *rules) {
  lattn_cache *h = &p->header;
  lattn_status s;
  int64_t at = (int64_t)lattn_round64_(sizeof *h);
  LATTN_MEMSET_(p, 0, sizeof *p);
  if (!config) return LATTN_E_NULL;
  s = lattn_import_(&p->c, sizeof p->c, LATTN_FIRST_CONFIG_, config);
  if (s == LATTN_E_FIELD) return lattn_fail_(config->fault, s, "config.size");
  if (s) return s;
  s = lattn_plan_fields_(p);
  if (!s) s = lattn_plan_rotary_(p);
  if (!s) s = lattn_plan_heads_(p);
  if (s) return s;
  h->rules = lattn_lay_(&at, h->n_kv * (int64_t)sizeof(lattn_rule_));
  h->holes = lattn_lay_(&at, h->max_holes * (int64_t)sizeof(lattn_hole_));
  if (h->rotates) h->turns = lattn_lay_(&at, h->n_dims / 2 * (int64_t)sizeof(uint64_t));
  if (p->c.alibi_slopes) h->slopes = lattn_lay_(&at, (int64_t)h->n_heads * 4);
  if (p->c.sink_logits) h->sink_logits = lattn_lay_(&at, (int64_t)h->n_heads * 4);
  for (int32_t i = 0; i < h->n_kv; i++) {
    lattn_rule_ rule;
    int64_t held, peak;
    s = lattn_plan_rule_(p, i, &rule);
    if (s) return s;
    lattn_rule_pages_(p, &rule, &held, &peak);
    rule.pages = lattn_lay_(&at, lattn_times_(rule.sink_blocks + rule.ring, 4));
    rule.drafts = lattn_lay_(&at, rule.s.draft_bytes);
    if (rule.sums_bytes) rule.sums = lattn_lay_(&at, 2 * rule.sums_bytes);
    h->sums_bytes = lattn_max_(h->sums_bytes, rule.sums_bytes);
    if (lattn_chooses_(&rule))
      lattn_lay_chosen_(p, &rule.c, rule.policy == LATTN_HEAD_HEAVY, &at);
    s = lattn_plan_pages_(p, &rule.s, held, peak);
    if (s) return s;
    if (at < 0) return lattn_fail_(p->c.fault, LATTN_E_OVERFLOW, "config.heads");
    if (rules) rules[i] = rule;
  }
  h->bytes = lattn_round64_((uint64_t)at);
  return LATTN_OK;
}

LATTN_API size_t lattn_cache_bytes(const lattn_cache_config *config) {
  lattn_plan_ p;
  if (lattn_plan_cache_(&p, config, 0)) return 0;
  return (size_t)p.header.bytes + (size_t)lattn_pages_bytes_(&p, 0, 0);
}

/* Of the arena, besides caches. */
LATTN_FN_ int64_t lattn_pool_own_bytes_(void) {
  return (int64_t)lattn_round64_(sizeof(lattn_pool)) + 128;
}

LATTN_API size_t lattn_pool_bytes(const lattn_pool_config *pool, const lattn_cache_config *config,
                                  int64_t n_caches) {
  lattn_plan_ p;
  lattn_pool_config c;
  int64_t one, all, extra;
  if (n_caches < 0 || lattn_import_(&c, sizeof c, sizeof c, pool)) return 0;
  if (lattn_plan_cache_(&p, config, 0)) return 0;
  one = lattn_plus_((int64_t)p.header.bytes, lattn_pages_bytes_(&p, 0, c.alloc != 0));
  extra = lattn_pages_bytes_(&p, 1, c.alloc != 0);
  extra = lattn_plus_(extra, /* tables while one loads, or is marked */
                      lattn_max_((int64_t)p.header.bytes, p.mark_bytes));
  all = lattn_plus_(lattn_plus_(lattn_times_(one, n_caches), extra), lattn_pool_own_bytes_());
  return all < 0 ? 0 : (size_t)all;
}

/* One 64-bit word into a hash. */
LATTN_FN_ void lattn_mix_(uint64_t *hash, uint64_t word) {
  *hash = (*hash ^ word) * 0x100000001b3u;
  *hash ^= *hash >> 29;
}

LATTN_FN_ void lattn_mix_chosen_(uint64_t *hash, const lattn_chosen_ *c) {
  uint64_t bits;
  LATTN_MEMCPY_(&bits, &c->floor_alpha, sizeof bits);
  lattn_mix_(hash, (uint64_t)c->budget);
  lattn_mix_(hash, (uint64_t)c->recent);
  lattn_mix_(hash, (uint64_t)c->kernel << 32 | (uint64_t)c->flags);
  lattn_mix_(hash, bits);
}

/* Of all in a config that decides what answers a cache gives. */
LATTN_FN_ uint64_t lattn_fingerprint_(const lattn_cache *h) {
  const char *base = (const char *)h;
  const float *slopes = (const float *)(const void *)(base + h->slopes);
  const float *logits = (const float *)(const void *)(base + h->sink_logits);
  const uint64_t *turns = (const uint64_t *)(const void *)(base + h->turns);
  uint64_t hash = 0xcbf29ce484222325u;
  const int64_t fields[12] = {h->dk,        h->dv,         h->n_kv,       h->n_heads,
                              h->key_type,  h->value_type, h->rotates,    h->layout,
                              h->first_dim, h->n_dims,     h->slopes > 0, h->sink_logits > 0};
  for (int i = 0; i < 12; i++) lattn_mix_(&hash, (uint64_t)fields[i]);
  lattn_mix_(&hash, lattn_bits_(h->scale));
  lattn_mix_(&hash, lattn_bits_(h->softcap));
  lattn_mix_(&hash, lattn_bits_(h->magnitude));
  for (int32_t i = 0; h->turns && i < h->n_dims / 2; i++) lattn_mix_(&hash, turns[i]);
  for (int32_t i = 0; h->slopes && i < h->n_heads; i++) lattn_mix_(&hash, lattn_bits_(slopes[i]));
  for (int32_t i = 0; h->sink_logits && i < h->n_heads; i++)
    lattn_mix_(&hash, lattn_bits_(logits[i]));
  for (int32_t i = 0; i < h->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(h, i);
    int64_t own = rule->s.key_type != h->key_type || rule->s.value_type != h->value_type
                      ? 256 * rule->s.key_type + 65536 * rule->s.value_type : 0;
    lattn_mix_(&hash, (uint64_t)(rule->policy + 16 * rule->in_cache + own));
    lattn_mix_(&hash, (uint64_t)rule->sinks);
    lattn_mix_(&hash, (uint64_t)rule->window);
    if (rule->mark || rule->flags) {
      lattn_mix_(&hash, (uint64_t)(rule->mark + 16 * rule->flags + 256 * rule->next_in_cache));
      lattn_mix_(&hash, (uint64_t)rule->next_window);
      lattn_mix_(&hash, (uint64_t)rule->divisor);
    }
    if (lattn_chooses_(rule)) lattn_mix_chosen_(&hash, &rule->c);
  }
  if (h->n_keys > 1 || h->n_values > 1)
    lattn_mix_(&hash, (uint64_t)h->n_keys << 32 | (uint64_t)h->n_values);
  if (h->weighting)
    lattn_mix_(&hash, (uint64_t)h->weighting << 32 | lattn_bits_(h->sigmoid_bias));
  return hash;
}

/* Bytes of a pool with one cache of each config, with room for n_tokens each (0: as the configs
   say); 0: impossible. *limited: a head is full. */
LATTN_FN_ size_t lattn_fit_(int64_t n, const lattn_cache_config *const *configs, int64_t n_tokens,
                            int *limited) {
  int64_t size[LATTN_MAX_SIZES_] = {0}, extra[LATTN_MAX_SIZES_] = {0}, table = 0;
  int64_t all = lattn_pool_own_bytes_();
  for (int64_t i = 0; i < n; i++) {
    lattn_plan_ p;
    lattn_cache_config c;
    if (!configs[i] || lattn_import_(&c, sizeof c, LATTN_FIRST_CONFIG_, configs[i])) return 0;
    c.size = sizeof c;
    c.fault = 0;
    c.capacity = n_tokens;
    if (lattn_plan_cache_(&p, &c, 0)) return 0;
    for (int32_t h = 0; h < p.header.n_kv; h++) {
      lattn_rule_ rule;
      lattn_plan_rule_(&p, h, &rule);
      if (!rule.window) *limited = 1;
    }
    for (int q = 0; q < LATTN_MAX_SIZES_ && p.sizes[q]; q++) {
      int k = 0;
      while (k < LATTN_MAX_SIZES_ && size[k] && size[k] != p.sizes[q]) k++;
      if (k == LATTN_MAX_SIZES_) return 0;
      size[k] = p.sizes[q];
      extra[k] = lattn_max_(extra[k], lattn_times_(p.peak[q] - p.held[q],
                                                   p.sizes[q] + (int64_t)sizeof(lattn_page_)));
    }
    table = lattn_max_(table, lattn_max_((int64_t)p.header.bytes, p.mark_bytes));
    all = lattn_plus_(all, lattn_plus_((int64_t)p.header.bytes, lattn_pages_bytes_(&p, 0, 0)));
  }
  for (int k = 0; k < LATTN_MAX_SIZES_; k++) all = lattn_plus_(all, extra[k]);
  all = lattn_plus_(all, table); /* while one loads, or is marked */
  return all < 0 ? 0 : (size_t)all;
}

LATTN_API size_t lattn_fit_bytes(int64_t n, const lattn_cache_config *const *configs,
                                 int64_t n_tokens) {
  int limited = 0;
  if (n < 0 || (n && !configs) || n_tokens < 0 || n_tokens > LATTN_MAX_POSITION_) return 0;
  return lattn_fit_(n, configs, lattn_max_(1, n_tokens), &limited);
}

LATTN_API int64_t lattn_fit_tokens(int64_t n, const lattn_cache_config *const *configs,
                                   size_t bytes) {
  int64_t least = 0, most = LATTN_MAX_POSITION_;
  int limited = 0;
  size_t need;
  if (n < 1 || !configs) return 0;
  need = lattn_fit_(n, configs, most, &limited);
  if (need && need <= bytes) return limited ? most : INT64_MAX;
  while (least + 1 < most) { /* least fits, most does not */
    int64_t middle = least + (most - least) / 2;
    need = lattn_fit_(n, configs, middle, &limited);
    if (need && need <= bytes)
      least = middle;
    else
      most = middle;
  }
  return least;
}

LATTN_API lattn_status lattn_cache_init(lattn_cache **cache, lattn_pool *pool,
                                        const lattn_cache_config *config) {
  lattn_plan_ p;
  lattn_cache *own;
  lattn_status s;
  uint64_t sizes[LATTN_MAX_SIZES_];
  if (!cache || !pool) return LATTN_E_NULL;
  s = lattn_plan_cache_(&p, config, 0);
  if (s) return s;
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) sizes[i] = pool->sizes[i].bytes;
  for (int i = 0; i < LATTN_MAX_SIZES_ && p.sizes[i]; i++) {
    int32_t at = lattn_size_of_(sizes, (uint64_t)p.sizes[i]);
    if (at < 0) return lattn_fail_(p.c.fault, LATTN_E_CONFIG, "pool");
    sizes[at] = (uint64_t)p.sizes[i];
  }
  p.header.from_pool = (int64_t)lattn_pool_take_table_(pool, p.header.bytes);
  if (!p.header.from_pool) return lattn_fail_(p.c.fault, LATTN_E_FULL, "pool");
  for (int i = 0; i < LATTN_MAX_SIZES_; i++) pool->sizes[i].bytes = sizes[i];
  own = (lattn_cache *)(void *)((char *)pool + p.header.from_pool);
  LATTN_MEMSET_(own, 0, (size_t)p.header.bytes);
  *own = p.header;
  if (own->turns)
    LATTN_MEMCPY_((char *)own + own->turns, p.rotary.turns, (size_t)(own->n_dims / 2) * 8);
  if (own->slopes)
    LATTN_MEMCPY_((char *)own + own->slopes, p.c.alibi_slopes, (size_t)own->n_heads * 4);
  if (own->sink_logits)
    LATTN_MEMCPY_((char *)own + own->sink_logits, p.c.sink_logits, (size_t)own->n_heads * 4);
  lattn_plan_cache_(&p, config, lattn_rules_(own));
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_storage_ *st = &lattn_rules_(own)[i].s;
    st->page_size = lattn_size_of_(sizes, (uint64_t)st->page_bytes);
  }
  for (int32_t i = 0; i < 2 * own->n_kv; i++)
    if (lattn_cache_rule_(own, i / 2)->sums) lattn_sums_clear_(own, i / 2, i % 2);
  own->fingerprint = lattn_fingerprint_(own);
  pool->n_caches++;
  *cache = own;
  return LATTN_OK;
}

/* ---- pages of a head ---- */

/* Blocks of the head that are held when slots [0, slots) are in use: the sink blocks [0, *sinks),
   then those of [*first, *end) that are not gone. Returns their number. */
LATTN_FN_ int64_t lattn_held_blocks_(const lattn_cache *cache, const lattn_rule_ *rule,
                                     int64_t slots, int64_t *sinks, int64_t *first, int64_t *end) {
  *end = lattn_blocks_(slots);
  *sinks = lattn_min_(rule->sink_blocks, *end);
  *first = lattn_max_(lattn_min_(rule->first_block, *end), *sinks);
  return *sinks + (*end - lattn_gone_before_(cache, *end)) -
         (*first - lattn_gone_before_(cache, *first));
}

/* The block behind `block` that is held: skips those between sinks and window, and holes. */
LATTN_FN_ int64_t lattn_next_held_(const lattn_cache *cache, const lattn_rule_ *rule,
                                   int64_t block) {
  int64_t end;
  block++;
  if (block >= rule->sink_blocks && block < rule->first_block) block = rule->first_block;
  while (lattn_is_gone_(cache, block)) {
    lattn_in_hole_(cache, block * LATTN_BLOCK_, &end);
    block = end / LATTN_BLOCK_;
  }
  return block;
}

/* The first block that a streaming head keeps when the next token is at position `next`. */
LATTN_FN_ int64_t lattn_keep_from_(const lattn_cache *cache, const lattn_rule_ *rule,
                                   int64_t next) {
  if (!rule->window) return 0;
  next = lattn_max_(0, next - (rule->window - 1) - rule->slack);
  return lattn_slot_of_(cache, next) / LATTN_BLOCK_;
}

/* Is the newest page held, if it still has room? Appending relies on it. */
LATTN_FN_ int lattn_tail_held_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t slot = lattn_head_slots_(cache, rule), block = slot / LATTN_BLOCK_;
  return slot % LATTN_BLOCK_ == 0 || block < rule->sink_blocks || block >= rule->first_block;
}

/* Is the newest page, which still has room, somebody else's too? Then whoever appends copies it. */
LATTN_FN_ int lattn_tail_shared_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t slot = lattn_head_slots_(cache, rule);
  uint32_t number;
  if (slot % LATTN_BLOCK_ == 0) return 0;
  number = *lattn_page_entry_(cache, rule, slot / LATTN_BLOCK_);
  return lattn_page_of_(lattn_cache_pool_(cache), number)->holders > 1;
}

/* The head's sums take up what it no longer keeps. */
LATTN_FN_ void lattn_sums_evict_(const lattn_cache *cache, int32_t kv) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  int64_t keep = lattn_keep_from_(cache, rule, cache->n_tokens);
  lattn_sums_settle_(cache, kv, lattn_max_(rule->first_block, keep) * LATTN_BLOCK_);
}

/* Releases what lies before the window and slack of the next token. */
LATTN_FN_ void lattn_evict_(lattn_cache *cache) {
  lattn_pool *pool = lattn_cache_pool_(cache);
  lattn_fpenv_ saved;
  if (cache->sums_bytes) {
    lattn_fpenv_enter_(&saved);
    for (int32_t i = 0; i < cache->n_kv; i++) lattn_sums_evict_(cache, i);
    lattn_fpenv_leave_(&saved);
  }
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_rule_ *rule = lattn_rules_(cache) + i;
    int64_t sinks, first, end, keep = lattn_keep_from_(cache, rule, cache->n_tokens);
    lattn_held_blocks_(cache, rule, lattn_head_slots_(cache, rule), &sinks, &first, &end);
    first = lattn_next_held_(cache, rule, first - 1);
    for (int64_t b = first; b < lattn_min_(keep, end); b = lattn_next_held_(cache, rule, b))
      lattn_pool_return_(pool, rule->s.page_size, *lattn_page_entry_(cache, rule, b));
    rule->first_block = lattn_max_(rule->first_block, keep);
  }
}

/* Copies the head's newest page, whose first `slots` slots are in use, into one of its own. */
LATTN_FN_ void lattn_own_tail_(lattn_cache *cache, const lattn_rule_ *rule) {
  lattn_pool *pool = lattn_cache_pool_(cache);
  int64_t slot = lattn_head_slots_(cache, rule), used = slot % LATTN_BLOCK_;
  uint32_t *entry = lattn_page_entry_(cache, rule, slot / LATTN_BLOCK_), old = *entry;
  char *from = lattn_page_at_(pool, old), *to;
  int64_t scales = lattn_scales_at_(&rule->s, LATTN_BLOCK_);
  *entry = lattn_pool_take_(pool, rule->s.page_size);
  to = lattn_page_at_(pool, *entry);
  for (int64_t i = 0; i < rule->s.n_keys; i++)
    LATTN_MEMCPY_(to + i * rule->s.key_stride, from + i * rule->s.key_stride,
                  (size_t)((used + 15) / 16 * rule->s.panel_bytes));
  from += rule->s.value_at;
  to += rule->s.value_at;
  for (int64_t i = 0; i < rule->s.n_values; i++) {
    LATTN_MEMCPY_(to, from, (size_t)(used * rule->s.row_bytes));
    LATTN_MEMCPY_(to + scales, from + scales, (size_t)lattn_scale_bytes_(&rule->s, used));
    from += rule->s.value_stride;
    to += rule->s.value_stride;
  }
  lattn_pool_return_(pool, rule->s.page_size, old);
}

/* Sums of weights of a head's slots; NULL: it has none. */
LATTN_FN_ double *lattn_mass_(const lattn_cache *cache, const lattn_rule_ *rule) {
  if (!rule->c.mass) return 0;
  return (double *)(void *)((char *)(uintptr_t)cache + rule->c.mass);
}

/* Takes the pages for n more tokens; promised before. */
LATTN_FN_ void lattn_grow_(lattn_cache *cache, int64_t n) {
  lattn_pool *pool = lattn_cache_pool_(cache);
  for (int32_t i = 0; i < cache->n_kv && n > 0; i++) {
    const lattn_rule_ *rule = lattn_rules_(cache) + i;
    int64_t slots = lattn_head_slots_(cache, rule);
    int64_t b = lattn_blocks_(slots), end = lattn_blocks_(slots + n);
    double *sums = lattn_mass_(cache, rule);
    for (int64_t j = slots; sums && j < slots + n; j++) sums[j] = 0;
    if (lattn_tail_shared_(cache, rule)) lattn_own_tail_(cache, rule);
    for (; b < end; b++)
      *lattn_page_entry_(cache, rule, b) = lattn_pool_take_(pool, rule->s.page_size);
  }
}

/* Pages of [first, end) that others hold too: they do not come free when this cache lets go. */
LATTN_FN_ int64_t lattn_shared_count_(const lattn_cache *cache, const lattn_rule_ *rule,
                                      int64_t first, int64_t end) {
  const lattn_pool *pool = lattn_cache_pool_(cache);
  int64_t n = 0;
  for (int64_t b = first; b < end && pool->n_shared; b++)
    if (!lattn_is_gone_(cache, b))
      n += lattn_page_of_(pool, *lattn_page_entry_(cache, rule, b))->holders > 1;
  return n;
}

/* Pages of a size that appending n tokens in steps takes at its peak, beyond those held now; each
   step evicts first. */
LATTN_FN_ int64_t lattn_peak_pages_(const lattn_cache *cache, int64_t n, int64_t step,
                                    int32_t size) {
  int64_t now = 0, peak = 0, at = 0, settled = 0, last = -1;
  int64_t sinks, first, end;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    if (rule->s.page_size != size) continue;
    now += lattn_held_blocks_(cache, rule, lattn_head_slots_(cache, rule), &sinks, &first, &end);
    now -= lattn_tail_shared_(cache, rule);
  }
  while (at < n) {
    int64_t total = 0, next = lattn_min_(n, at + step);
    for (int32_t i = 0; i < cache->n_kv; i++) {
      lattn_rule_ rule = *lattn_cache_rule_(cache, i);
      int64_t keep = lattn_keep_from_(cache, &rule, cache->n_tokens + at);
      int64_t slots = lattn_head_slots_(cache, &rule);
      if (rule.s.page_size != size) continue;
      lattn_held_blocks_(cache, &rule, slots, &sinks, &first, &end);
      total += lattn_shared_count_(cache, &rule, first, lattn_min_(keep, slots / LATTN_BLOCK_));
      rule.first_block = lattn_max_(rule.first_block, keep);
      total += lattn_held_blocks_(cache, &rule, slots + next, &sinks, &first, &end);
    }
    peak = lattn_max_(peak, total - now);
    settled = total == last ? settled + 1 : 0; /* nothing grows any more: rings turn over */
    last = total;
    at = next;
    if (!cache->n_holes && settled > LATTN_BLOCK_ && n - at > step * 2) at = n - step * 2;
  }
  return peak;
}

/* Are the positions [start, end) held? (start may be negative.) */
LATTN_FN_ int lattn_resident_(const lattn_cache *cache, const lattn_rule_ *rule, int64_t start,
                              int64_t end) {
  int64_t always = rule->sink_blocks * LATTN_BLOCK_, behind;
  if (!rule->window || start >= end) return 1;
  if (lattn_slot_of_(cache, end - 1) < always) return 1;
  start = lattn_max_(lattn_slot_of_(cache, lattn_max_(start, 0)), always);
  if (lattn_in_hole_(cache, start, &behind)) start = behind;
  return start >= rule->first_block * LATTN_BLOCK_;
}

/* ---- append ---- */

/* One token's key into its lane of a panel: turned in float32, then rounded to the stored type. The
   turned dims, and pieces of the others, go over the stack. */
LATTN_NOINLINE_ int lattn_append_key_(int32_t type, char *page, int64_t slot, const lattn_tensor *k,
                                      int64_t token, int64_t head, const lattn_turning_ *turning,
                                      const float *angles) {
  float row[LATTN_MAX_STACK_DIM_];
  int64_t size = (int64_t)lattn_type_size_(type), n;
  int lost = 0;
  page += (slot / LATTN_PANEL_ * LATTN_PANEL_ * k->dim + slot % LATTN_PANEL_) * size;
  for (int64_t d = 0; d < k->dim; d += n) {
    lattn_turning_ piece = *turning;
    lattn_tensor from = *k;
    int turned = piece.turns && d == piece.first_dim;
    n = (piece.turns && d < piece.first_dim ? piece.first_dim : k->dim) - d;
    if (turned) n = piece.n_dims;
    n = lattn_min_(n, LATTN_MAX_STACK_DIM_);
    from.data = (char *)(uintptr_t)k->data + (size_t)d * lattn_type_size_(k->type);
    from.dim = n;
    piece.first_dim = 0;
    lattn_widen_row_(row, &from, token, head);
    if (turned) lattn_turn_(row, angles, &piece);
    for (int64_t i = 0; i < n; i += 16) {
      int m = n - i < 16 ? (int)(n - i) : 16;
      float lane[16];
      lost |= lattn_v_put_n_(lane, type, 0, lattn_v_load_n_(row + i, m), m);
      for (int j = 0; j < m; j++, page += LATTN_PANEL_ * size)
        LATTN_MEMCPY_(page, (const char *)(const void *)lane + j * size, (size_t)size);
    }
  }
  return lost;
}

LATTN_FN_ int lattn_append_value_(const lattn_cache *cache, int32_t type, char *values,
                                  int64_t slot, const lattn_tensor *v, int64_t token,
                                  int64_t head) {
  int64_t from = token * v->stride_token + head * v->stride_head, to = slot * cache->dv;
  int lost = 0;
  for (int64_t d = 0; d < cache->dv; d += 16) {
    int n = cache->dv - d < 16 ? (int)(cache->dv - d) : 16;
#define LATTN_BODY_(T)                                      \
  lost |= lattn_v_put_n_(values, type, to + d,              \
                         lattn_v_get_n_(v->data, T, from + d, n), n)
    LATTN_EACH_TYPE_(v->type, LATTN_BODY_)
#undef LATTN_BODY_
  }
  return lost;
}

LATTN_FN_ lattn_turning_ lattn_cache_turning_(const lattn_cache *cache) {
  lattn_turning_ t;
  t.layout = cache->layout;
  t.first_dim = cache->first_dim;
  t.n_dims = cache->n_dims;
  t.magnitude = cache->magnitude;
  t.turns = cache->rotates
                ? (const uint64_t *)(const void *)((const char *)cache + cache->turns)
                : 0;
  return t;
}

/* 16 tokens of one head that fill a panel: rows [16][dk] are turned, transposed, rounded. The same
   operations on every element as one token at a time. */
LATTN_FN_ int lattn_append_panel_(const lattn_cache *cache, int32_t type, char *page, int64_t slot,
                                  const lattn_tensor *k, int64_t token, int64_t head,
                                  const lattn_turning_ *turning, const float *angles, float *rows) {
  lattn_v16_ x[LATTN_PANEL_];
  int lost = 0;
  for (int64_t t = 0; t < LATTN_PANEL_; t++) {
    lattn_widen_row_(rows + t * cache->dk, k, token + t, head);
    if (turning->turns)
      lattn_turn_(rows + t * cache->dk, angles + t * turning->n_dims, turning);
  }
  for (int64_t d = 0; d < cache->dk; d += LATTN_PANEL_) {
    int n = cache->dk - d < LATTN_PANEL_ ? (int)(cache->dk - d) : LATTN_PANEL_;
    for (int t = 0; t < LATTN_PANEL_; t++) x[t] = lattn_v_load_n_(rows + t * cache->dk + d, n);
    lattn_v_transpose_(x);
    for (int i = 0; i < n; i++)
      lost |= lattn_v_put_n_(page, type, slot * cache->dk + (d + i) * LATTN_PANEL_, x[i],
                             LATTN_PANEL_);
  }
  return lost;
}

/* What the tasks of a pass's writing share: tokens [from, to) of k and v become the next ones, or
   drafts, of their sequences' caches. Each task writes whole heads. */
typedef struct lattn_writing_ {
  const lattn_seq_ *seqs;
  int64_t n_seqs;
  const lattn_tensor *k, *v;
  int64_t from, to;
  lattn_turning_ turning;
  const float *angles;    /* of those tokens, [to - from][n_dims] */
  char *scratch;          /* of a worker: [16][dk] floats; NULL: token by token */
  size_t worker_bytes;
  int32_t n_workers, lost;
} lattn_writing_;

/* Where a token is stored: the page of a slot, or the draft area. */
typedef struct lattn_place_at_ {
  char *keys, *values, *scales;
  int64_t slot;
  int64_t key_stride, value_stride; /* from one head of a bundle to the next */
} lattn_place_at_;

LATTN_FN_ lattn_place_at_ lattn_place_of_(const lattn_cache *cache, int32_t kv, int is_draft,
                                          int64_t i) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  lattn_place_at_ at;
  if (is_draft) {
    at.keys = (char *)(uintptr_t)lattn_draft_keys_(cache, kv);
    at.values = at.keys + rule->s.draft_value_at;
    at.scales = at.keys + rule->s.draft_scales_at;
    at.key_stride = rule->s.draft_key_stride;
    at.value_stride = rule->s.draft_value_stride;
    at.slot = i;
  } else {
    at.keys = lattn_page_at_(lattn_cache_pool_(cache),
                             *lattn_page_entry_(cache, rule, i / LATTN_BLOCK_));
    at.values = at.keys + rule->s.value_at;
    at.scales = at.values + lattn_scales_at_(&rule->s, LATTN_BLOCK_);
    at.key_stride = rule->s.key_stride;
    at.value_stride = rule->s.value_stride;
    at.slot = i % LATTN_BLOCK_;
  }
  return at;
}

/* One token's key of integers: turned in float32, then in its basis, then rounded. */
LATTN_NOINLINE_ int lattn_append_key_ints_(const lattn_storage_ *st, const lattn_place_at_ *at,
                                           const lattn_tensor *k, int64_t token, int64_t head,
                                           const lattn_turning_ *turning, const float *angles) {
  float row[LATTN_MAX_STACK_DIM_];
  lattn_widen_row_(row, k, token, head);
  if (turning->turns) lattn_turn_(row, angles, turning);
  if (st->key_basis) lattn_hadamard_(row, k->dim, st->key_basis);
  return lattn_put_key_ints_(at->keys + at->slot / LATTN_PANEL_ * st->panel_bytes, st->key_type,
                             (int)(at->slot % LATTN_PANEL_), row, k->dim);
}

/* The value of the token `more` behind. */
LATTN_NOINLINE_ int lattn_append_value_ints_(const lattn_storage_ *st, const lattn_place_at_ *at,
                                             int64_t more, const lattn_tensor *v, int64_t token,
                                             int64_t head) {
  float row[LATTN_MAX_STACK_DIM_];
  int64_t slot = at->slot + more;
  lattn_widen_row_(row, v, token, head);
  if (st->value_basis) lattn_hadamard_(row, v->dim, st->value_basis);
  return lattn_put_value_ints_(at->values + slot * st->row_bytes, st->value_type, row, v->dim,
                               at->scales + 2 * slot);
}

/* The next slot of the head, or number of a draft, that the sequence's tokens get. */
LATTN_FN_ int64_t lattn_next_place_(const lattn_seq_ *seq, int32_t h) {
  if (seq->depth) return seq->cache->n_drafts;
  return lattn_head_slots_(seq->cache, lattn_cache_rule_(seq->cache, h));
}

/* Keys of n tokens: one, or a panel of them. */
LATTN_FN_ int lattn_write_keys_(const lattn_writing_ *w, const lattn_cache *cache,
                                const lattn_storage_ *st, const lattn_place_at_ *at, int64_t n,
                                int64_t token, int64_t head, const float *angles, float *rows) {
  if (lattn_is_int_(st->key_type))
    return lattn_append_key_ints_(st, at, w->k, token, head, &w->turning, angles);
  if (n == 1)
    return lattn_append_key_(st->key_type, at->keys, at->slot, w->k, token, head, &w->turning,
                             angles);
  return lattn_append_panel_(cache, st->key_type, at->keys, at->slot, w->k, token, head,
                             &w->turning, angles, rows);
}

LATTN_FN_ int lattn_write_values_(const lattn_writing_ *w, const lattn_cache *cache,
                                  const lattn_storage_ *st, const lattn_place_at_ *at, int64_t n,
                                  int64_t token, int64_t head) {
  int lost = 0;
  for (int64_t j = 0; j < n; j++)
    if (lattn_is_int_(st->value_type))
      lost |= lattn_append_value_ints_(st, at, j, w->v, token + j, head);
    else
      lost |= lattn_append_value_(cache, st->value_type, at->values, at->slot + j, w->v, token + j,
                                  head);
  return lost;
}

LATTN_FN_ int lattn_write_head_(const lattn_writing_ *w, const lattn_seq_ *seq, int32_t h,
                                float *rows) {
  const lattn_storage_ *st = &lattn_cache_rule_(seq->cache, h)->s;
  int64_t t = lattn_max_(seq->q0, w->from), to = lattn_min_(seq->q0 + seq->nq, w->to);
  int64_t i = lattn_next_place_(seq, h);
  int lost = 0;
  for (int64_t n; t < to; t += n, i += n) {
    const float *angles = w->turning.turns ? w->angles + (t - w->from) * w->turning.n_dims : 0;
    lattn_place_at_ at = lattn_place_of_(seq->cache, h, seq->depth != 0, i);
    n = rows && at.slot % LATTN_PANEL_ == 0 && to - t >= LATTN_PANEL_ ? LATTN_PANEL_ : 1;
    if (lattn_is_int_(st->key_type)) n = 1;
    for (int64_t j = 0; j < st->n_keys; j++, at.keys += at.key_stride)
      lost |= lattn_write_keys_(w, seq->cache, st, &at, n, t, h * st->n_keys + j, angles, rows);
    for (int64_t j = 0; j < st->n_values; j++) {
      lost |= lattn_write_values_(w, seq->cache, st, &at, n, t, h * st->n_values + j);
      at.values += at.value_stride;
      at.scales += at.value_stride;
    }
  }
  return lost;
}

LATTN_NOINLINE_ void lattn_write_heads_(lattn_writing_ *w, int32_t index) {
  float *rows = (float *)(void *)(w->scratch ? w->scratch + (size_t)index * w->worker_bytes : 0);
  int32_t turn = 0;
  for (int64_t s = 0; s < w->n_seqs; s++) {
    const lattn_seq_ *seq = w->seqs + s;
    if (seq->q0 >= w->to || seq->q0 + seq->nq <= w->from) continue;
    for (int32_t h = 0; h < seq->cache->n_kv; h++, turn = turn + 1 < w->n_workers ? turn + 1 : 0)
      if (turn == index && lattn_write_head_(w, seq, h, rows)) lattn_raise_(&w->lost);
  }
}

LATTN_FN_ void lattn_write_task_(void *context, int32_t index) {
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_write_heads_((lattn_writing_ *)context, index);
  lattn_fpenv_leave_(&saved);
}

/* The tokens [from, to) are written: they count. */
LATTN_FN_ void lattn_written_(const lattn_writing_ *w) {
  for (int64_t s = 0; s < w->n_seqs; s++) {
    const lattn_seq_ *seq = w->seqs + s;
    lattn_cache *cache = (lattn_cache *)(uintptr_t)seq->cache;
    int64_t n = lattn_min_(seq->q0 + seq->nq, w->to) - lattn_max_(seq->q0, w->from);
    if (n <= 0) continue;
    if (seq->depth)
      cache->n_drafts += (int32_t)n;
    else
      cache->n_tokens += n;
  }
}

/* Writes tokens [from, to), one after another, without scratch; pages are there. */
LATTN_NOINLINE_ void lattn_write_tokens_(lattn_writing_ *w, int64_t from, int64_t to) {
  float angles[2 * LATTN_MAX_PAIRS_];
  w->angles = angles;
  w->scratch = 0;
  w->n_workers = 1;
  for (int64_t s = 0; s < w->n_seqs; s++) {
    const lattn_seq_ *seq = w->seqs + s;
    int64_t t = lattn_max_(seq->q0, from), end = lattn_min_(seq->q0 + seq->nq, to);
    for (; t < end; t++) {
      int64_t position = seq->cache->n_tokens + (seq->depth ? seq->depth[t - seq->q0] : 0);
      w->from = t;
      w->to = t + 1;
      if (w->turning.turns)
        lattn_angles_(angles, &w->turning, lattn_slot_of_(seq->cache, position));
      lattn_write_heads_(w, 0);
      lattn_written_(w);
    }
  }
}

LATTN_FN_ void lattn_write_serial_(lattn_writing_ *w, int64_t from, int64_t to) {
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_write_tokens_(w, from, to);
  lattn_fpenv_leave_(&saved);
}

/* k and v of a call on caches like this one. */
LATTN_FN_ lattn_status lattn_check_tokens_(const lattn_cache *cache, lattn_tensor *k,
                                           lattn_tensor *v, lattn_fault *f) {
  static const lattn_names_ kn = LATTN_NAMES_("k"), vn = LATTN_NAMES_("v");
  lattn_status s = lattn_view_(k, 0, 1, &kn, f);
  if (!s) s = lattn_view_(v, 0, 1, &vn, f);
  if (s) return s;
  if (k->n_heads != (int64_t)cache->n_kv * cache->n_keys)
    return lattn_fail_(f, LATTN_E_SHAPE, "k.n_heads");
  if (k->dim != cache->dk) return lattn_fail_(f, LATTN_E_SHAPE, "k.dim");
  if (v->n_heads != (int64_t)cache->n_kv * cache->n_values)
    return lattn_fail_(f, LATTN_E_SHAPE, "v.n_heads");
  if (v->dim != cache->dv) return lattn_fail_(f, LATTN_E_SHAPE, "v.dim");
  if (v->n_tokens != k->n_tokens) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_tokens");
  return LATTN_OK;
}

/* Tokens that count towards the capacity. */
LATTN_FN_ int64_t lattn_limited_tokens_(const lattn_cache *cache) {
  int64_t most = 0;
  if (!cache->open) return cache->n_tokens;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    if (lattn_chooses_(rule)) most = lattn_max_(most, lattn_head_slots_(cache, rule));
  }
  return most;
}

/* Has the cache room for n more tokens, but for pages? */
LATTN_FN_ lattn_status lattn_check_room_(const lattn_cache *cache, int64_t n, lattn_fault *f) {
  if (n > LATTN_MAX_POSITION_ - lattn_stored_slots_(cache))
    return lattn_fail_(f, LATTN_E_OVERFLOW, "k.n_tokens");
  if (n > cache->capacity - lattn_limited_tokens_(cache))
    return lattn_fail_(f, LATTN_E_FULL, "k.n_tokens");
  return LATTN_OK;
}

/* Bit i: a head has pages of size i. */
LATTN_FN_ uint32_t lattn_cache_sizes_(const lattn_cache *cache) {
  uint32_t sizes = 0;
  for (int32_t i = 0; i < cache->n_kv; i++)
    sizes |= 1u << lattn_cache_rule_(cache, i)->s.page_size;
  return sizes;
}

/* Promises the pages of appending n tokens in steps. */
LATTN_FN_ lattn_status lattn_reserve_(const lattn_cache *cache, int64_t n, int64_t step,
                                      lattn_fault *f) {
  uint32_t sizes = lattn_cache_sizes_(cache);
  for (int32_t i = 0; sizes; i++, sizes >>= 1) {
    int64_t peak = sizes & 1u ? lattn_peak_pages_(cache, n, step, i) : 0;
    if (peak > 0 && !lattn_pool_reserve_(lattn_cache_pool_(cache), i, (uint64_t)peak))
      return lattn_fail_(f, LATTN_E_FULL, "pool");
  }
  return LATTN_OK;
}

/* A sequence of nq rows from q0 on, whose first is at a position. */
LATTN_FN_ void lattn_seq_init_(lattn_seq_ *seq, const lattn_cache *cache, int64_t q0, int64_t nq,
                               int64_t first) {
  LATTN_MEMSET_(seq, 0, sizeof *seq);
  seq->cache = cache;
  seq->q0 = q0;
  seq->nq = nq;
  seq->first = first;
  seq->n_keys = first + nq;
  seq->next = -1;
}

LATTN_API lattn_status lattn_cache_append(lattn_cache *cache, lattn_tensor k, lattn_tensor v,
                                          const lattn_exec *exec) {
  lattn_exec ex;
  lattn_writing_ w;
  lattn_seq_ seq;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  if (!cache) return lattn_fail_(ex.fault, LATTN_E_NULL, "cache");
  if (cache->n_drafts) return lattn_fail_(ex.fault, LATTN_E_STATE, "cache");
  s = lattn_check_tokens_(cache, &k, &v, ex.fault);
  if (!s) s = lattn_check_room_(cache, k.n_tokens, ex.fault);
  if (s) return s;
  if (k.n_tokens > cache->max_append) return lattn_fail_(ex.fault, LATTN_E_SHAPE, "k.n_tokens");
  s = lattn_reserve_(cache, k.n_tokens, cache->max_append, ex.fault);
  if (!s) {
    lattn_evict_(cache);
    lattn_grow_(cache, k.n_tokens);
    lattn_seq_init_(&seq, cache, 0, k.n_tokens, cache->n_tokens);
    LATTN_MEMSET_(&w, 0, sizeof w);
    w.seqs = &seq;
    w.n_seqs = 1;
    w.k = &k;
    w.v = &v;
    w.turning = lattn_cache_turning_(cache);
    lattn_write_serial_(&w, 0, k.n_tokens);
    for (int32_t i = 0; i < cache->n_kv && k.n_tokens > 0; i++)
      if (lattn_chooses_(lattn_rules_(cache) + i))
        lattn_rules_(cache)[i].c.seen_from = cache->n_tokens;
    s = w.lost ? LATTN_OVERFLOWED : LATTN_OK;
  }
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return s;
}

/* ---- what rows attend to, summed over rows ----
   Heads that are chosen at a mark need the columns of the matrix of weights: LATTN_HEAD_HEAVY of
   every row, as it comes; LATTN_HEAD_SNAP of the newest rows, at the mark, from their queries. Each
   row's scores are computed twice: first for their maximum and sum, then for the weights. A worker
   takes whole KV heads, so a key's weights are added in the order of rows. */

LATTN_FN_ int64_t lattn_query_bytes_(const lattn_cache *cache) {
  return 4 * cache->group * cache->dk;
}
LATTN_FN_ char *lattn_query_row_(const lattn_cache *cache, const lattn_rule_ *rule,
                                 int64_t position) {
  return (char *)(uintptr_t)cache + rule->c.queries +
         position % rule->c.n_queries * lattn_query_bytes_(cache);
}

/* The queries up to position `end` are there. */
LATTN_FN_ void lattn_seen_(lattn_rule_ *rule, int64_t end) {
  rule->c.seen_from = lattn_max_(rule->c.seen_from, end - rule->c.n_queries);
}

/* A head keeps the queries of rows [from, to), as they were given. */
LATTN_FN_ void lattn_keep_queries_(const lattn_job_ *job, const lattn_seq_ *seq, lattn_rule_ *rule,
                                   int32_t h, int64_t from, int64_t to) {
  const lattn_cache *cache = seq->cache;
  int64_t first = seq->first - seq->q0, bytes = lattn_query_bytes_(cache);
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  if (!seq->depth) from = lattn_max_(from, to - rule->c.n_queries);
  for (int64_t t = from; t < to; t++) {
    char *row = lattn_query_row_(cache, rule, first + t);
    if (seq->depth)
      row = (char *)(uintptr_t)cache + rule->c.draft_queries +
            (lattn_draft_number_(cache, seq->depth) + t - seq->q0) * bytes;
    for (int64_t g = 0; g < cache->group; g++)
      lattn_widen_row_((float *)(void *)row + g * cache->dk, &job->q, t, h * cache->group + g);
  }
  lattn_fpenv_leave_(&saved);
  if (!seq->depth) lattn_seen_(rule, first + to);
}

/* Rows that heads look at. */
typedef struct lattn_observing_ {
  lattn_job_ *job;
  int64_t sequence;
  int64_t q0, first, n;   /* HEAVY: rows q0 ... q0 + n - 1 of job->q, at positions from first on */
  lattn_choice_ *choices; /* NULL, or of a mark, [n_kv]: SNAP heads look, with what they kept */
} lattn_observing_;

/* Some rows of one KV head: of each token, n_heads query heads of the group. */
typedef struct lattn_looking_ {
  int64_t first, n, head, n_heads;
  const lattn_rule_ *kept; /* NULL: queries are rows q0 + ... of job->q */
  int64_t q0;
  double *to; /* sums, of slots */
} lattn_looking_;

/* Fills the item's rows: those from number `at` on. */
LATTN_FN_ void lattn_look_rows_(const lattn_job_ *job, lattn_item_ *it, lattn_space_ *sp,
                                const lattn_looking_ *l, int64_t at) {
  int64_t angles_of = -1;
  sp->sinks_differ = sp->side = 0;
  sp->own = 0;
  sp->other = -2;
  sp->ahead = -1;
  it->lo = it->sink_lo = INT64_MAX;
  it->hi = it->sink_hi = 0;
  for (int64_t r = 0; r < it->rows; r++, at++) {
    lattn_row_ *row = sp->rows + r;
    int64_t i = at / l->n_heads, g = l->head + at % l->n_heads;
    float *q = sp->q + r * job->dk;
    row->token = l->q0 + i;
    row->position = l->first + i;
    row->head = it->kv * (int32_t)job->group + (int32_t)g;
    row->sequence = (int32_t)it->sequence + job->first_sequence;
    lattn_row_of_cache_(it->cache, it->kv, row);
    lattn_item_add_(it, row);
    if (l->kept)
      LATTN_MEMCPY_(q, lattn_query_row_(it->cache, l->kept, row->position) + 4 * g * job->dk,
                    (size_t)job->dk * sizeof *q);
    else
      lattn_widen_row_(q, &job->q, row->token, row->head);
    if (job->turning.turns)
      lattn_turn_at_(q, sp->angles, &job->turning, row->position, &angles_of);
  }
  lattn_finish_queries_(job, it, sp->q, it->rows);
}

/* One row's scores of a block into its maximum and sum, or, if these are known, their weights into
   the sums of lanes [lo, hi). */
LATTN_FN_ void lattn_look_row_(const lattn_job_ *job, float *m, float *l, float top, float *s,
                               double *to, int lo, int hi) {
  const int sigmoid = job->o.weighting == LATTN_SIGMOID;
  if (!to) {
    float old = *m;
    *m = old > top ? old : top;
    *l = lattn_fma_(*l, lattn_exp_(old == *m ? 0.0f : old - *m),
                    lattn_v_reduce_add_(lattn_weights_(s, *m)));
    return;
  }
  if (sigmoid) {
    lattn_sigmoid_weights_(s, job->o.sigmoid_bias);
  } else {
    lattn_v16_ sum = lattn_v_set_(*l);
    lattn_weights_(s, *m);
    for (int j = 0; j < LATTN_BLOCK_; j += 16)
      lattn_v_store_(s + j, lattn_v_div_(lattn_v_load_(s + j), sum));
  }
  for (int j = lo; j < hi; j++) to[j] += (double)s[j];
}

/* Between the passes: the learned sink joins the row's sum. A row without weights gets sum 0. */
LATTN_FN_ void lattn_look_between_(const lattn_job_ *job, const lattn_row_ *row, float *m,
                                   float *l) {
  float z = job->o.sink_logits ? job->o.sink_logits[row->head] : -LATTN_INFINITY_;
  if (job->o.weighting == LATTN_SIGMOID) *l = 1;
  if (!lattn_is_finite_(*l) || lattn_is_nan_(*m)) *l = 0;
  if (*l > 0 && z > *m) {
    *l = lattn_fma_(*l, lattn_exp_(*m - z), 1.0f);
    *m = z;
  } else if (*l > 0 && !lattn_is_empty_(z)) {
    *l = lattn_fma_(1.0f, lattn_exp_(z == *m ? 0.0f : z - *m), *l);
  }
}

/* The item's rows, once over all keys: for maxima and sums, or for weights. */
LATTN_FN_ void lattn_look_keys_(const lattn_job_ *job, const lattn_item_ *it, lattn_space_ *sp,
                                double *to) {
  lattn_slot_ of = lattn_space_slot_(sp, 0);
  for (int64_t base = 0; base < it->hi; base += LATTN_BLOCK_) {
    lattn_block_ b;
    lattn_begin_block_(job, it, sp, base, &b);
    if (b.lo >= b.hi) continue;
    for (int64_t r = 0; r < it->rows; r += LATTN_TILE_ROWS_) {
      int m = (int)lattn_min_(LATTN_TILE_ROWS_, it->rows - r), lo, hi, first, end;
      if (!lattn_tile_scores_(job, it, sp, &b, base, r, m, &lo, &hi, &first, &end)) continue;
      for (int a = 0; a < m; a++) {
        float *s = sp->s + a * LATTN_BLOCK_, top;
        uint32_t visible[8];
        if (to && !(of.l[r + a] > 0)) continue;
        top = lattn_mask_row_(job, it, sp->rows + r + a, base, b.holes, first, end, s, visible);
        if (lattn_is_empty_(top)) continue;
        lattn_look_row_(job, of.m + r + a, of.l + r + a, top, s, to ? to + base : 0, lo, hi);
      }
    }
  }
}

/* All rows, as many at a time as there is room for. */
LATTN_FN_ void lattn_look_at_(const lattn_job_ *job, lattn_item_ *it, lattn_space_ *sp,
                              const lattn_looking_ *l) {
  lattn_slot_ of = lattn_space_slot_(sp, 0);
  int64_t rows = l->n * l->n_heads;
  for (int64_t at = 0; at < rows; at += it->rows) {
    it->rows = lattn_min_(job->rows, rows - at);
    lattn_look_rows_(job, it, sp, l, at);
    for (int64_t r = 0; r < it->rows; r++) of.m[r] = -LATTN_INFINITY_, of.l[r] = 0;
    if (job->o.weighting != LATTN_SIGMOID) lattn_look_keys_(job, it, sp, 0);
    for (int64_t r = 0; r < it->rows; r++)
      lattn_look_between_(job, sp->rows + r, of.m + r, of.l + r);
    lattn_look_keys_(job, it, sp, l->to);
  }
}

/* Rows whose attention a SNAP head goes by. */
LATTN_FN_ int64_t lattn_observed_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return lattn_min_(rule->c.recent, cache->n_tokens);
}

/* A SNAP head at a mark: the means over rows and heads, or the largest of the heads' means. */
LATTN_FN_ void lattn_look_snap_(const lattn_job_ *job, lattn_item_ *it, lattn_space_ *sp,
                                const lattn_rule_ *rule, const lattn_choice_ *c) {
  lattn_looking_ l;
  int64_t heads = c->own ? 1 : job->group;
  LATTN_MEMSET_(&l, 0, sizeof l);
  l.n = lattn_observed_(it->cache, rule);
  l.first = it->cache->n_tokens - l.n;
  l.kept = rule;
  l.n_heads = heads;
  LATTN_MEMSET_(c->score, 0, (size_t)c->slots * sizeof *c->score);
  for (; l.head < job->group; l.head += heads) {
    l.to = c->own ? c->own : c->score;
    LATTN_MEMSET_(l.to, 0, (size_t)c->slots * sizeof *l.to);
    lattn_look_at_(job, it, sp, &l);
    for (int64_t j = 0; j < c->slots; j++) {
      double mean = l.to[j] / (double)(l.n * heads);
      if (!c->own || mean > c->score[j]) c->score[j] = mean;
    }
  }
}

LATTN_NOINLINE_ void lattn_observe_heads_(void *context, int32_t index, char *memory) {
  const lattn_observing_ *o = (const lattn_observing_ *)context;
  const lattn_job_ *job = o->job;
  lattn_space_ sp;
  lattn_item_ it;
  lattn_looking_ l;
  size_t keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  LATTN_MEMSET_(&it, 0, sizeof it);
  LATTN_MEMSET_(&l, 0, sizeof l);
  it.sequence = o->sequence;
  lattn_item_sequence_(job, &it);
  l.q0 = o->q0;
  l.first = o->first;
  l.n = o->n;
  l.n_heads = job->group;
  for (it.kv = index; it.kv < job->n_kv; it.kv += job->n_workers) {
    const lattn_rule_ *rule = lattn_cache_rule_(it.cache, it.kv);
    if (o->choices && rule->c.queries && o->choices[it.kv].drops)
      lattn_look_snap_(job, &it, &sp, rule, o->choices + it.kv);
    l.to = lattn_mass_(it.cache, rule);
    if (!o->choices && l.to) lattn_look_at_(job, &it, &sp, &l);
  }
}

LATTN_FN_ void lattn_observe_task_(void *context, int32_t index) {
  lattn_work_(((const lattn_observing_ *)context)->job, context, index, lattn_observe_heads_);
}

/* The job then has no need of values, whatever else it is for. */
LATTN_FN_ void lattn_observe_(lattn_observing_ *o, const lattn_exec *ex) {
  lattn_weights none;
  LATTN_MEMSET_(&none, 0, sizeof none);
  o->job->weights = &none;
  lattn_parallel_(ex, o->job->n_workers, lattn_observe_task_, o);
  o->job->weights = 0;
}

/* ---- calls on caches: extend, draft and attend, of one cache or of many ---- */

typedef struct lattn_batch_ {
  lattn_job_ job;
  lattn_exec ex;
  const lattn_sequence *list;
  int64_t n;
  int appends;
  lattn_writing_ w;
  lattn_seq_ one;     /* instead of an array in scratch */
} lattn_batch_;

/* A job whose keys are in caches like this one; everything but the views of q and out. */
LATTN_FN_ void lattn_cache_job_(lattn_job_ *job, const lattn_cache *cache) {
  const char *base = (const char *)cache;
  job->turning = lattn_cache_turning_(cache);
  job->dk = cache->dk;
  job->dv = cache->dv;
  job->columns = cache->columns;
  job->group = cache->group;
  job->n_kv = cache->n_kv;
  job->n_keys = cache->n_keys;
  job->n_values = cache->n_values;
  job->sums_bytes = cache->sums_bytes;
  job->o.mask = LATTN_CAUSAL;
  job->o.scale = cache->scale;
  job->o.softcap = cache->softcap;
  job->o.weighting = cache->weighting;
  job->o.sigmoid_bias = cache->sigmoid_bias;
  if (cache->slopes) job->o.alibi_slopes = (const float *)(const void *)(base + cache->slopes);
  if (cache->sink_logits)
    job->o.sink_logits = (const float *)(const void *)(base + cache->sink_logits);
}

/* Checks a call on caches like this one, the largest of which will hold n_keys tokens; the job
   gets everything but its scratch. */
LATTN_FN_ lattn_status lattn_check_call_(lattn_job_ *job, const lattn_cache *cache,
                                         const lattn_call *call, lattn_tensor q, lattn_tensor out,
                                         float *lse, int64_t n_keys, lattn_fault *f) {
  static const lattn_names_ name = LATTN_NAMES_("q");
  lattn_call c;
  lattn_status s = lattn_import_(&c, sizeof c, LATTN_FIRST_CALL_, call);
  if (s) return lattn_fail_(f, s, "call.size");
  if (c.inexact && c.inexact != LATTN_INEXACT_BF16)
    return lattn_fail_(f, LATTN_E_FIELD, "call.inexact");
  lattn_cache_job_(job, cache);
  job->o.inexact = c.inexact;
  job->q = q;
  job->out = out;
  job->lse = lse;
  job->o.key_bias = c.key_bias;
  job->o.pair_bias = c.pair_bias;
  job->o.gate = c.gate;
  job->o.score = c.score;
  job->o.score_user = c.score_user;
  job->o.lse_low = c.lse_low;
  job->o.top_values = c.top_values;
  job->o.top_mode = c.top_mode;
  job->o.dropped = c.dropped;
  job->o.extra_key = c.extra_key;
  job->o.extra_value = c.extra_value;
  job->lost_bound = c.lost_bound;
  job->lost_estimate = c.lost_estimate;
  job->partial = c.partial;
  if ((c.lost_bound || c.lost_estimate) && cache->weighting == LATTN_SIGMOID)
    return lattn_fail_(f, LATTN_E_CONFIG, c.lost_bound ? "call.lost_bound" : "call.lost_estimate");
  s = lattn_view_(&job->q, 0, 1, &name, f);
  if (s) return s;
  if (job->q.n_heads != cache->n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_heads");
  if (job->q.dim != cache->dk) return lattn_fail_(f, LATTN_E_SHAPE, "q.dim");
  s = lattn_check_extras_(job, n_keys, 0, f);
  if (!s) s = lattn_check_numbers_(job, f);
  if (!s) s = lattn_check_top_(job, n_keys, f);
  return s;
}

LATTN_FN_ int64_t lattn_segments_(int64_t tokens) {
  return (tokens + LATTN_SEGMENT_ - 1) / LATTN_SEGMENT_;
}

/* Do two caches agree in all that a batched call takes from the first? */
LATTN_FN_ int lattn_same_model_(const lattn_cache *a, const lattn_cache *b) {
  lattn_turning_ x = lattn_cache_turning_(a), y = lattn_cache_turning_(b);
  const char *p = (const char *)a, *q = (const char *)b;
  if (a == b) return 1;
  if (a->dk != b->dk || a->dv != b->dv || a->n_kv != b->n_kv || a->n_heads != b->n_heads ||
      a->n_keys != b->n_keys || a->n_values != b->n_values ||
      lattn_bits_(a->scale) != lattn_bits_(b->scale) || lattn_bits_(a->softcap) !=
      lattn_bits_(b->softcap) || a->weighting != b->weighting || lattn_bits_(a->sigmoid_bias) !=
      lattn_bits_(b->sigmoid_bias) || a->rotates != b->rotates || !a->slopes != !b->slopes ||
      !a->sink_logits != !b->sink_logits || x.layout != y.layout || x.first_dim != y.first_dim ||
      x.n_dims != y.n_dims || lattn_bits_(x.magnitude) != lattn_bits_(y.magnitude))
    return 0;
  for (int32_t i = 0; a->rotates && i < x.n_dims / 2; i++)
    if (x.turns[i] != y.turns[i]) return 0;
  for (int64_t i = 0; i < 4 * (int64_t)a->n_heads; i++) {
    if (a->slopes && p[a->slopes + i] != q[b->slopes + i]) return 0;
    if (a->sink_logits && p[a->sink_logits + i] != q[b->sink_logits + i]) return 0;
  }
  return 1;
}

/* Depths of n new drafts, numbered from `first` on; -1: not parents, else the largest. */
LATTN_FN_ int lattn_depths_(const lattn_cache *cache, const int32_t *parents, int32_t first,
                            int32_t n, uint8_t depth[LATTN_MAX_DRAFTS_]) {
  int most = 0;
  LATTN_MEMCPY_(depth, cache->depth, (size_t)first);
  for (int32_t i = first; i < first + n; i++) {
    int32_t parent = parents[i - first];
    if (parent < -1 || parent >= i) return -1;
    depth[i] = parent < 0 ? 0 : (uint8_t)(depth[parent] + 1);
    most = depth[i] > most ? depth[i] : most;
  }
  return most;
}

/* One sequence of a call that appends or drafts: room and state. *keys gets the tokens that its
   rows may see. */
LATTN_FN_ lattn_status lattn_check_extending_(const lattn_sequence *e, int64_t *keys,
                                              lattn_fault *f) {
  const lattn_cache *cache = e->cache;
  uint8_t depth[LATTN_MAX_DRAFTS_];
  int most;
  *keys = cache->n_tokens + e->n_tokens;
  if (!e->parents) {
    if (cache->n_drafts) return lattn_fail_(f, LATTN_E_STATE, "cache");
    return lattn_check_room_(cache, e->n_tokens, f);
  }
  if (e->n_tokens > cache->max_drafts - cache->n_drafts)
    return lattn_fail_(f, LATTN_E_SHAPE, "k.n_tokens");
  most = lattn_depths_(cache, e->parents, cache->n_drafts, (int32_t)e->n_tokens, depth);
  if (most < 0) return lattn_fail_(f, LATTN_E_VALUE, "parents");
  *keys = e->n_tokens ? cache->n_tokens + most + 1 : cache->n_tokens;
  return lattn_check_room_(cache, *keys - cache->n_tokens, f);
}

LATTN_FN_ lattn_status lattn_check_attending_(const lattn_sequence *e, int64_t *keys,
                                              lattn_fault *f) {
  const lattn_cache *cache = e->cache;
  *keys = cache->n_tokens;
  if (e->parents) return lattn_fail_(f, LATTN_E_CONFIG, "sequences.parents");
  if (e->n_tokens > cache->n_tokens) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_tokens");
  for (int32_t i = 0; i < cache->n_kv && e->n_tokens > 0; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t first = cache->n_tokens - e->n_tokens;
    if (first < lattn_max_(rule->marked, rule->kept + rule->shift) ||
        !lattn_resident_(cache, rule, first - rule->window + 1, cache->n_tokens))
      return lattn_fail_(f, LATTN_E_EVICTED, "q.n_tokens");
  }
  return LATTN_OK;
}

/* The list: caches, counts, all of one model, none twice where they change. *keys, *slots and
   *holes get the most that a cache has. */
LATTN_FN_ lattn_status lattn_check_list_(const lattn_batch_ *b, int64_t rows, int64_t *keys,
                                         int64_t *slots, int64_t *holes) {
  lattn_fault *f = b->ex.fault;
  int64_t total = 0, own = 0;
  *keys = *slots = *holes = 0;
  for (int64_t i = 0; i < b->n; i++) {
    const lattn_sequence *e = b->list + i;
    lattn_status s;
    if (!e->cache) return lattn_fail_(f, LATTN_E_NULL, "cache");
    if (e->n_tokens < 0 || e->n_tokens > rows - total)
      return lattn_fail_(f, LATTN_E_SHAPE, b->n > 1 ? "sequences.n_tokens" : "q.n_tokens");
    if (!lattn_same_model_(b->list[0].cache, e->cache))
      return lattn_fail_(f, LATTN_E_CONFIG, "sequences.cache");
    s = b->appends ? lattn_check_extending_(e, &own, f) : lattn_check_attending_(e, &own, f);
    if (s) return s;
    total += e->n_tokens;
    *keys = lattn_max_(*keys, own);
    *slots = lattn_max_(*slots, own + e->cache->removed);
    *holes = lattn_max_(*holes, e->cache->n_holes);
  }
  if (total != rows) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_tokens");
  if (b->appends && b->n > 1) { /* mark and look, then take the marks away */
    lattn_status s = LATTN_OK;
    int64_t i = 0;
    for (; i < b->n && !b->list[i].cache->listed; i++) b->list[i].cache->listed = 1;
    if (i < b->n) s = lattn_fail_(f, LATTN_E_ALIAS, "sequences.cache");
    while (i-- > 0) b->list[i].cache->listed = 0;
    return s;
  }
  return LATTN_OK;
}

/* Drafts of a sequence get their parents and depths. */
LATTN_FN_ void lattn_note_parents_(const lattn_sequence *e, lattn_seq_ *seq) {
  lattn_cache *cache = e->cache;
  int32_t first = cache->n_drafts;
  uint8_t depth[LATTN_MAX_DRAFTS_];
  int most = lattn_depths_(cache, e->parents, first, (int32_t)e->n_tokens, depth);
  for (int32_t i = first; i < first + e->n_tokens; i++) {
    cache->parent[i] = (int8_t)e->parents[i - first];
    cache->depth[i] = depth[i];
  }
  seq->depth = cache->depth + first;
  seq->n_keys = cache->n_tokens + most + 1;
}

LATTN_FN_ void lattn_batch_seq_(const lattn_batch_ *b, int64_t i, int64_t q0, lattn_seq_ *seq) {
  const lattn_sequence *e = b->list + i;
  lattn_seq_init_(seq, e->cache, q0, e->n_tokens,
                  e->cache->n_tokens - (b->appends ? 0 : e->n_tokens));
  seq->leader = (int32_t)i;
  if (e->parents && e->n_tokens > 0) lattn_note_parents_(e, seq);
}

/* Tokens that a cache gets in one pass, which are what their pages were promised for. */
LATTN_FN_ int64_t lattn_step_(const lattn_cache *cache) {
  return lattn_min_(cache->max_append, LATTN_PASS_ROWS_);
}

/* Where a pass over new tokens from `at` on ends: before LATTN_PASS_ROWS_ tokens are exceeded, and
   behind a step of a sequence that goes on; so each sequence is cut into steps from its first. */
LATTN_FN_ int64_t lattn_pass_end_(const lattn_job_ *job, int64_t at) {
  int64_t begin = at;
  for (int64_t s = 0; s < job->o.n_sequences; s++) {
    const lattn_seq_ *seq = job->seqs + s;
    int64_t left = seq->q0 + seq->nq - at;
    int64_t n = seq->depth ? left : lattn_min_(left, lattn_step_(seq->cache));
    if (left <= 0) continue;
    if (at + n - begin > LATTN_PASS_ROWS_) return at;
    at += n;
    if (n < left) return at;
  }
  return at;
}

/* Gives the tokens of a pass their pages. */
LATTN_FN_ void lattn_grow_pass_(const lattn_job_ *job) {
  for (int64_t s = 0; s < job->o.n_sequences; s++) {
    const lattn_seq_ *seq = job->seqs + s;
    lattn_cache *cache = (lattn_cache *)(uintptr_t)seq->cache;
    int64_t from = lattn_max_(job->from_token, seq->q0);
    int64_t to = lattn_min_(job->to_token, seq->q0 + seq->nq);
    if (from >= to || seq->depth) continue;
    lattn_evict_(cache);
    lattn_grow_(cache, to - from);
  }
}

LATTN_FN_ void lattn_write_pass_(lattn_batch_ *b) {
  lattn_job_ *job = &b->job;
  lattn_writing_ *w = &b->w;
  int64_t from = job->from_token, to = job->to_token, heads = job->o.n_sequences * job->n_kv;
  w->seqs = job->seqs;
  w->n_seqs = job->o.n_sequences;
  if (!job->scratch) {
    lattn_write_serial_(w, from, to);
    return;
  }
  w->from = from;
  w->to = to;
  w->angles = job->angles;
  w->scratch = job->scratch + job->keys_at;
  w->worker_bytes = job->worker_bytes;
  w->n_workers = to - from < LATTN_PANEL_ ? 1 : (int32_t)lattn_min_(job->n_workers, heads);
  lattn_parallel_(&b->ex, w->n_workers, lattn_write_task_, w);
  lattn_written_(w);
}

/* Heads that are chosen at a mark look at the rows of a pass, before out may take q's place. */
LATTN_NOINLINE_ void lattn_look_(lattn_batch_ *b, int64_t s) {
  lattn_job_ *job = &b->job;
  const lattn_seq_ *seq = job->seqs + s;
  lattn_cache *cache = (lattn_cache *)(uintptr_t)seq->cache;
  int64_t from = lattn_max_(job->from_token, seq->q0), heavy = 0;
  int64_t to = lattn_min_(job->to_token, seq->q0 + seq->nq);
  lattn_observing_ o;
  if (from >= to) return;
  for (int32_t h = 0; h < cache->n_kv; h++) {
    lattn_rule_ *rule = lattn_rules_(cache) + h;
    if (rule->c.queries) lattn_keep_queries_(job, seq, rule, h, from, to);
    heavy |= rule->c.mass != 0;
  }
  if (!heavy) return;
  LATTN_MEMSET_(&o, 0, sizeof o);
  o.job = job;
  o.sequence = s;
  o.q0 = from;
  o.first = seq->first + from - seq->q0;
  o.n = to - from;
  lattn_observe_(&o, &b->ex);
}

LATTN_FN_ void lattn_look_pass_(lattn_batch_ *b) {
  for (int64_t s = 0; s < b->job.o.n_sequences; s++)
    if (lattn_any_chooses_(b->job.seqs[s].cache)) lattn_look_(b, s);
}

/* Rows [at, end) of the job's sequences; returns where a cancelled call stopped. */
LATTN_FN_ int64_t lattn_extend_rows_(lattn_batch_ *b, int64_t at, int64_t end) {
  lattn_job_ *job = &b->job;
  while (at < end && !job->stopped) {
    job->from_token = at;
    job->to_token = at = lattn_pass_end_(job, at);
    lattn_grow_pass_(job);
    lattn_begin_pass_(job);
    lattn_write_pass_(b);
    lattn_look_pass_(b);
    lattn_run_pass_(job, &b->ex);
    if (b->ex.progress && at < job->q.n_tokens &&
        b->ex.progress(b->ex.user, at, job->q.n_tokens))
      job->stopped = 1;
  }
  return at;
}

/* Runs a checked call: with scratch all sequences together, else one after another. */
LATTN_FN_ lattn_status lattn_batch_run_(lattn_batch_ *b) {
  lattn_job_ *job = &b->job;
  int64_t at = 0, q0 = 0, n = job->q.n_tokens, each = job->own_seqs ? b->n : 1;
  for (int64_t i = 0; i < b->n && !job->stopped; i += each) {
    lattn_seq_ *seqs = job->own_seqs ? job->own_seqs : &b->one;
    for (int64_t j = 0; j < each; j++) {
      lattn_batch_seq_(b, i + j, q0, seqs + j);
      q0 += b->list[i + j].n_tokens;
    }
    job->seqs = seqs;
    job->first_sequence = (int32_t)i;
    job->o.n_sequences = each;
    at = b->appends ? lattn_extend_rows_(b, at, q0) : lattn_run_rows_(job, &b->ex, at, q0);
  }
  for (int64_t i = 0; b->appends && i < b->n; i++) {
    if (!b->list[i].parents) lattn_evict_(b->list[i].cache);
    lattn_pool_settle_(lattn_cache_pool_(b->list[i].cache));
  }
  if (b->ex.tokens_done) *b->ex.tokens_done = at;
  if (at < n) return LATTN_CANCELLED;
  return b->w.lost || job->overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

/* Everything before the first write: checks, scratch, pages. */
LATTN_FN_ lattn_status lattn_batch_check_(lattn_batch_ *b, const lattn_call *call, lattn_tensor q,
                                          lattn_tensor out, float *lse) {
  lattn_job_ *job = &b->job;
  lattn_fault *f = b->ex.fault;
  int64_t keys, slots, holes, rows;
  int depth;
  lattn_status s = lattn_check_list_(b, q.n_tokens, &keys, &slots, &holes);
  job->o.n_sequences = b->n;
  job->of_caches = 1;
  if (!s) s = lattn_check_call_(job, b->list[0].cache, call, q, out, lse, keys, f);
  if (s) return s;
  for (int64_t i = 0; i < b->n; i++)
    job->sums_bytes = lattn_max_(job->sums_bytes, b->list[i].cache->sums_bytes);
  if (job->partial && (b->appends || b->n > 1))
    return lattn_fail_(f, LATTN_E_CONFIG, "call.partial");
  s = lattn_check_outputs_(job, job->partial, 0, 0, f);
  if (s) return s;
  rows = job->q.n_tokens;
  if (b->appends && b->n == 1 && !b->list[0].parents)
    rows = lattn_min_(rows, lattn_step_(b->list[0].cache));
  depth = lattn_depth_(lattn_segments_(slots));
  /* With holes there are fewer segments than slots say, but far apart: neighbours on the stack have
     strictly falling heights, so beyond those of an undivided run each hole has room for two. */
  if (slots > keys)
    depth = (int)lattn_min_(depth, lattn_depth_(lattn_segments_(keys)) + 2 + 2 * holes);
  s = lattn_place_(job, &b->ex, rows * job->group, depth, slots > keys, f);
  job->k.n_tokens = keys;
  for (int64_t i = 0; !s && b->appends && i < b->n; i++)
    if (!b->list[i].parents)
      s = lattn_reserve_(b->list[i].cache, b->list[i].n_tokens, lattn_step_(b->list[i].cache), f);
  for (int64_t i = 0; s && b->appends && i < b->n; i++)
    lattn_pool_settle_(lattn_cache_pool_(b->list[i].cache));
  return s;
}

/* The basis of all heads' values; 0 if they differ. */
LATTN_FN_ int32_t lattn_common_basis_(const lattn_cache *cache) {
  int32_t basis = lattn_cache_rule_(cache, 0)->s.value_basis;
  for (int32_t i = 1; i < cache->n_kv; i++)
    if (lattn_cache_rule_(cache, i)->s.value_basis != basis) return 0;
  return basis;
}

LATTN_FN_ lattn_status lattn_batch_call_(int64_t n, const lattn_sequence *list, int appends,
                                    const lattn_call *call, const lattn_tensor *q,
                                    lattn_tensor *k, lattn_tensor *v, const lattn_tensor *out,
                                    float *lse, const lattn_exec *exec) {
  lattn_batch_ b;
  lattn_status s;
  LATTN_MEMSET_(&b, 0, sizeof b);
  s = lattn_exec_in_(&b.ex, exec);
  if (s) return s;
  b.list = list;
  b.n = n;
  b.appends = appends;
  if (q->n_tokens >= LATTN_MAX_POSITION_)
    return lattn_fail_(b.ex.fault, LATTN_E_OVERFLOW, "q.n_tokens");
  if (n < 0 || n >= LATTN_MAX_POSITION_ / 4)
    return lattn_fail_(b.ex.fault, LATTN_E_SHAPE, "n");
  if (n > 0 && !list) return lattn_fail_(b.ex.fault, LATTN_E_NULL, "sequences");
  if (n == 0 && q->n_tokens) return lattn_fail_(b.ex.fault, LATTN_E_SHAPE, "q.n_tokens");
  if (n == 0) {
    if (b.ex.tokens_done) *b.ex.tokens_done = 0;
    return LATTN_OK;
  }
  if (!list[0].cache) return lattn_fail_(b.ex.fault, LATTN_E_NULL, "cache");
  if (appends) {
    s = lattn_check_tokens_(list[0].cache, k, v, b.ex.fault);
    if (s) return s;
    if (k->n_tokens != q->n_tokens) return lattn_fail_(b.ex.fault, LATTN_E_SHAPE, "q.n_tokens");
    b.job.k = *k;
    b.job.v = *v;
    b.w.k = k;
    b.w.v = v;
    b.w.turning = lattn_cache_turning_(list[0].cache);
  }
  s = lattn_batch_check_(&b, call, *q, *out, lse);
  if (s) return s;
  if (b.job.partial) {
    b.job.partial->basis = lattn_common_basis_(list[0].cache);
    b.job.partial->first_segment = 0;
    b.job.partial->n_segments = lattn_segments_(lattn_stored_slots_(list[0].cache));
  }
  return lattn_batch_run_(&b);
}

LATTN_API lattn_status lattn_batch_extend(int64_t n, const lattn_sequence *sequences,
                                          const lattn_call *call, lattn_tensor q, lattn_tensor k,
                                          lattn_tensor v, lattn_tensor out, float *lse,
                                          const lattn_exec *exec) {
  return lattn_batch_call_(n, sequences, 1, call, &q, &k, &v, &out, lse, exec);
}

LATTN_API lattn_status lattn_batch_attend(int64_t n, const lattn_sequence *sequences,
                                          const lattn_call *call, lattn_tensor q, lattn_tensor out,
                                          float *lse, const lattn_exec *exec) {
  return lattn_batch_call_(n, sequences, 0, call, &q, 0, 0, &out, lse, exec);
}

LATTN_API lattn_status lattn_cache_extend(lattn_cache *cache, const lattn_call *call,
                                          lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                          lattn_tensor out, float *lse, const lattn_exec *exec) {
  lattn_sequence one = {cache, q.n_tokens, 0};
  return lattn_batch_call_(1, &one, 1, call, &q, &k, &v, &out, lse, exec);
}

LATTN_API lattn_status lattn_cache_attend(const lattn_cache *cache, const lattn_call *call,
                                          lattn_tensor q, lattn_tensor out, float *lse,
                                          const lattn_exec *exec) {
  lattn_sequence one = {(lattn_cache *)(uintptr_t)cache, q.n_tokens, 0};
  return lattn_batch_call_(1, &one, 0, call, &q, 0, 0, &out, lse, exec);
}

#define LATTN_COUNT8_(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
#define LATTN_COUNT32_(n) \
  LATTN_COUNT8_(n), LATTN_COUNT8_(n + 8), LATTN_COUNT8_(n + 16), LATTN_COUNT8_(n + 24)

LATTN_API lattn_status lattn_cache_draft(lattn_cache *cache, const lattn_call *call,
                                         const int32_t *parents, lattn_tensor q, lattn_tensor k,
                                         lattn_tensor v, lattn_tensor out, float *lse,
                                         const lattn_exec *exec) {
  /* Not on the stack, of which drafts take most: the parent of each, beginning with any. */
  static const int32_t chain[2 * LATTN_MAX_DRAFTS_] = {
      LATTN_COUNT32_(-1), LATTN_COUNT32_(31), LATTN_COUNT32_(63), LATTN_COUNT32_(95)};
  lattn_sequence one = {cache, q.n_tokens, parents};
  if (!parents && cache) one.parents = chain + cache->n_drafts;
  return lattn_batch_call_(1, &one, 1, call, &q, &k, &v, &out, lse, exec);
}
#undef LATTN_COUNT32_
#undef LATTN_COUNT8_

LATTN_API size_t lattn_batch_scratch(const lattn_cache_config *config, int64_t n_sequences,
                                     int64_t n_tokens, int32_t n_threads) {
  lattn_plan_ p;
  lattn_job_ job;
  static const uint64_t some = 0;
  size_t bytes, thin;
  int depth;
  if (n_tokens < 0 || n_tokens > LATTN_MAX_POSITION_ || n_threads < 0 || n_threads > 1024) return 0;
  if (n_sequences < 0 || n_sequences >= LATTN_MAX_POSITION_ / 4) return 0;
  if (lattn_plan_cache_(&p, config, 0)) return 0;
  lattn_job_init_(&job);
  job.dk = p.header.dk;
  job.dv = p.header.dv;
  job.columns = p.header.columns;
  job.group = p.header.group;
  job.n_kv = p.header.n_kv;
  job.n_keys = p.header.n_keys;
  job.n_values = p.header.n_values;
  job.turning.turns = p.header.rotates ? &some : 0;
  job.turning.n_dims = p.header.n_dims;
  job.sums_bytes = p.header.sums_bytes;
  job.n_workers = n_threads > 0 ? n_threads : 1;
  job.o.n_sequences = n_sequences;
  job.of_caches = 1;
  depth = lattn_depth_(lattn_segments_(p.header.capacity)) + 4; /* one removed range needs it */
  if (depth > LATTN_MAX_DEPTH_ || p.header.open) depth = LATTN_MAX_DEPTH_;
  bytes = lattn_plan_worker_(&job, lattn_max_(1, n_tokens) * job.group, depth, 0);
  thin = lattn_plan_worker_(&job, lattn_max_(1, n_tokens) * job.group, LATTN_MAX_DEPTH_, 1);
  if (!bytes || !thin) return 0;
  return bytes > thin ? bytes : thin; /* whatever was removed, a row at a time has room */
}

LATTN_API size_t lattn_cache_scratch(const lattn_cache_config *config, int64_t n_tokens,
                                     int32_t n_threads) {
  return lattn_batch_scratch(config, 1, n_tokens, n_threads);
}

LATTN_API lattn_status lattn_cache_weights(const lattn_cache *cache, const lattn_call *call,
                                           lattn_tensor q, const lattn_weights *weights,
                                           const lattn_exec *exec) {
  lattn_batch_ b;
  lattn_weights own;
  lattn_sequence one = {(lattn_cache *)(uintptr_t)cache, q.n_tokens, 0};
  int64_t keys, slots, holes;
  lattn_tensor none;
  lattn_status s;
  LATTN_MEMSET_(&b, 0, sizeof b);
  LATTN_MEMSET_(&none, 0, sizeof none);
  s = lattn_exec_in_(&b.ex, exec);
  if (s) return s;
  b.list = &one;
  b.n = 1;
  s = lattn_check_list_(&b, q.n_tokens, &keys, &slots, &holes);
  b.job.o.n_sequences = b.job.of_caches = 1;
  if (!s) s = lattn_check_call_(&b.job, cache, call, q, none, 0, keys, b.ex.fault);
  if (!s) s = lattn_check_weights_(&b.job, weights, &own, keys, b.ex.fault);
  if (s) return s;
  b.job.top = 0;
  b.job.o.extra_key = 0; /* lse knows it */
  lattn_batch_seq_(&b, 0, 0, &b.one);
  b.job.seqs = &b.one;
  return lattn_weigh_(&b.job, &b.ex, 1);
}

/* ---- truncate, clear ---- */

/* Lets go of the pages of blocks [from, to) that the head holds. */
LATTN_FN_ void lattn_drop_blocks_(lattn_cache *cache, const lattn_rule_ *rule, int64_t from,
                                  int64_t to) {
  int64_t sinks, first, end;
  lattn_held_blocks_(cache, rule, lattn_head_slots_(cache, rule), &sinks, &first, &end);
  for (int64_t b = lattn_next_held_(cache, rule, from - 1); b < lattn_min_(to, end);
       b = lattn_next_held_(cache, rule, b))
    lattn_pool_return_(lattn_cache_pool_(cache), rule->s.page_size,
                       *lattn_page_entry_(cache, rule, b));
}

/* The window that a head gets at a mark after n tokens. */
LATTN_FN_ int64_t lattn_marked_window_(const lattn_rule_ *rule, int64_t n) {
  return lattn_max_(rule->next_window, rule->divisor ? n / rule->divisor : 0);
}

/* The head is as it was behind that mark (-1: before it; 0: no matter of marks). */
LATTN_FN_ void lattn_set_marked_(lattn_rule_ *rule, int64_t marked) {
  if (!rule->mark) return;
  rule->marked = marked;
  rule->window = marked < 0 ? 0 : lattn_marked_window_(rule, marked);
  rule->in_cache = marked < 0 ? 0 : (int32_t)rule->next_in_cache;
}

/* The head is full again, until another mark; what it forgot of the tokens left, it holds. */
LATTN_FN_ void lattn_unmark_(lattn_cache *cache, int32_t kv) {
  lattn_rule_ *rule = lattn_rules_(cache) + kv;
  lattn_set_marked_(rule, -1);
  rule->first_block = 0;
  for (int i = 0; i < 2 && rule->sums; i++) lattn_sums_clear_(cache, kv, i);
}

/* Without tokens, none were chosen. */
LATTN_FN_ void lattn_forget_choice_(lattn_cache *cache, int32_t kv) {
  lattn_rule_ *rule = lattn_rules_(cache) + kv;
  rule->kept = rule->shift = 0;
  for (int i = 0; i < 2 && rule->sums; i++) lattn_sums_clear_(cache, kv, i);
}

/* Forgets what follows position n_tokens; the windows it needs are there. */
LATTN_FN_ void lattn_cut_(lattn_cache *cache, int64_t n_tokens) {
  int64_t slots = n_tokens ? lattn_slot_of_(cache, n_tokens - 1) + 1 : 0;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_rule_ *rule = lattn_rules_(cache) + i;
    int64_t own = lattn_max_(0, slots - rule->shift);
    lattn_drop_blocks_(cache, rule, lattn_blocks_(own), INT64_MAX);
    rule->first_block = lattn_min_(rule->first_block, lattn_blocks_(own));
    if (rule->mark && n_tokens < rule->marked) lattn_unmark_(cache, i);
    if (!slots && rule->kept) lattn_forget_choice_(cache, i);
    rule->c.seen_from = lattn_min_(rule->c.seen_from, n_tokens);
  }
  while (cache->n_holes && lattn_holes_(cache)[cache->n_holes - 1].from >= slots) cache->n_holes--;
  lattn_sum_holes_(cache);
  cache->n_tokens = n_tokens;
}

LATTN_API lattn_status lattn_cache_truncate(lattn_cache *cache, int64_t n_tokens) {
  if (!cache) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  if (n_tokens < 0 || n_tokens > cache->n_tokens) return LATTN_E_SHAPE;
  for (int32_t i = 0; i < cache->n_kv && n_tokens < cache->n_tokens; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t needed = lattn_max_(rule->window - 1, 1); /* the newest too: its page goes on */
    if (n_tokens < rule->marked) needed = n_tokens;
    if (n_tokens && (rule->c.mass || n_tokens < rule->kept + rule->shift)) return LATTN_E_EVICTED;
    if (!lattn_resident_(cache, rule, n_tokens - needed, n_tokens)) return LATTN_E_EVICTED;
  }
  lattn_cut_(cache, n_tokens);
  lattn_sums_settle_all_(cache);
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return LATTN_OK;
}

LATTN_API lattn_status lattn_cache_clear(lattn_cache *cache) {
  if (!cache) return LATTN_E_NULL;
  cache->n_drafts = 0;
  lattn_cut_(cache, 0);
  for (int32_t i = 0; i < cache->n_kv; i++) lattn_unmark_(cache, i);
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return LATTN_OK;
}

/* ---- mark ---- */

typedef struct lattn_marking_ {
  lattn_cache *cache;
  int32_t n_tasks;
} lattn_marking_;

/* Does the mark that comes now change the head? */
LATTN_FN_ int lattn_waits_(const lattn_rule_ *rule) { return rule->mark && rule->marked < 0; }

LATTN_FN_ void lattn_mark_task_(void *context, int32_t index) {
  const lattn_marking_ *m = (const lattn_marking_ *)context;
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  for (int32_t i = index; i < m->cache->n_kv; i += m->n_tasks) {
    lattn_rule_ *rule = lattn_rules_(m->cache) + i;
    if (!lattn_waits_(rule)) continue;
    lattn_set_marked_(rule, m->cache->n_tokens);
    lattn_sums_evict_(m->cache, i);
  }
  lattn_fpenv_leave_(&saved);
}

/* ---- accept ---- */

/* Piece i of a key in its panel: where that of lane 0 is, and its bytes (lane t's is t times as
   many behind); 0: no more. Scales are pieces too, 2 bytes behind the 4 of integers. */
LATTN_FN_ int lattn_key_piece_(int32_t type, int64_t dim, int64_t i, int64_t *at) {
  int64_t units = lattn_up_(dim, 4) / 4, group = 4;
  if (!lattn_is_int_(type)) {
    int size = type == LATTN_F32 ? 4 : 2;
    *at = i * LATTN_PANEL_ * size;
    return i < dim ? size : 0;
  }
  if (type == LATTN_I4) {
    int64_t g = i / 5;
    i %= 5;
    *at = g * (256 + 2 * LATTN_PANEL_) + i * 64;
    if (32 * g >= dim) return 0;
    group = lattn_up_(lattn_min_(dim - 32 * g, 32), 8) / 8;
    return i < group ? 4 : i == group ? 2 : 0;
  }
  *at = i * 64;
  return i < units ? 4 : i == units ? 2 : 0;
}

/* A token of a head to another place, bit for bit. */
LATTN_FN_ void lattn_copy_token_(const lattn_storage_ *st, int64_t dk, const lattn_place_at_ *from,
                                 const lattn_place_at_ *to) {
  const char *k = from->keys + from->slot / LATTN_PANEL_ * st->panel_bytes;
  char *into = to->keys + to->slot / LATTN_PANEL_ * st->panel_bytes;
  int64_t at;
  int size;
  for (int64_t j = 0; j < st->n_keys; j++, into += to->key_stride, k += from->key_stride)
    for (int64_t i = 0; (size = lattn_key_piece_(st->key_type, dk, i, &at)) != 0; i++)
      LATTN_MEMCPY_(into + at + to->slot % LATTN_PANEL_ * size,
                    k + at + from->slot % LATTN_PANEL_ * size, (size_t)size);
  for (int64_t j = 0; j < st->n_values; j++) {
    int64_t in = j * to->value_stride, out = j * from->value_stride;
    LATTN_MEMCPY_(to->values + in + to->slot * st->row_bytes,
                  from->values + out + from->slot * st->row_bytes, (size_t)st->row_bytes);
    if (st->value_type == LATTN_I8)
      LATTN_MEMCPY_(to->scales + in + 2 * to->slot, from->scales + out + 2 * from->slot, 2);
  }
}

/* A draft of every head becomes the next token; its pages are there. */
LATTN_FN_ void lattn_accept_one_(lattn_cache *cache, int draft) {
  for (int32_t h = 0; h < cache->n_kv; h++) {
    lattn_rule_ *rule = lattn_rules_(cache) + h;
    lattn_place_at_ from = lattn_place_of_(cache, h, 1, draft);
    lattn_place_at_ to = lattn_place_of_(cache, h, 0, lattn_head_slots_(cache, rule));
    lattn_copy_token_(&rule->s, cache->dk, &from, &to);
    if (rule->c.queries) {
      LATTN_MEMCPY_(lattn_query_row_(cache, rule, cache->n_tokens),
                    (const char *)cache + rule->c.draft_queries + draft * lattn_query_bytes_(cache),
                    (size_t)lattn_query_bytes_(cache));
      lattn_seen_(rule, cache->n_tokens + 1);
    }
  }
  cache->n_tokens++;
}

LATTN_API lattn_status lattn_cache_accept(lattn_cache *cache, int32_t n, const int32_t *path) {
  lattn_status s = LATTN_OK;
  if (!cache || (n > 0 && !path)) return LATTN_E_NULL;
  if (n < 0 || n > cache->n_drafts) return LATTN_E_SHAPE;
  for (int32_t i = 0; i < n; i++) {
    if (path[i] < 0 || path[i] >= cache->n_drafts) return LATTN_E_VALUE;
    if (cache->parent[path[i]] != (i ? path[i - 1] : -1)) return LATTN_E_VALUE;
  }
  if (n > 0) s = lattn_reserve_(cache, n, cache->max_append, 0);
  for (int32_t at = 0; !s && at < n;) {
    int32_t to = (int32_t)lattn_min_(n, at + cache->max_append);
    lattn_evict_(cache);
    lattn_grow_(cache, to - at);
    for (; at < to; at++) lattn_accept_one_(cache, path[at]);
  }
  if (!s) {
    cache->n_drafts = 0;
    lattn_evict_(cache);
  }
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return s;
}

/* ---- tokens that are chosen at a mark ---- */

/* A score as a number that sorts as it does: scores are not negative; NaN is least. */
LATTN_FN_ uint64_t lattn_score_rank_(double score) {
  uint64_t bits;
  LATTN_MEMCPY_(&bits, &score, sizeof bits);
  return bits > 0x7ff0000000000000u ? 0 : bits;
}

/* Of the candidates of all choices with `shares` as said: the k-th largest rank, 1 <= k <= their
   number; *ties gets how many that have it are among the first k. */
LATTN_FN_ uint64_t lattn_kth_(const lattn_choice_ *choices, int32_t n, int64_t k, int64_t *ties) {
  uint64_t at = 0;
  for (int shift = 56; shift >= 0; shift -= 8) {
    int64_t counts[256];
    int byte = 255;
    LATTN_MEMSET_(counts, 0, sizeof counts);
    for (int32_t i = 0; i < n; i++)
      for (int64_t j = 0; choices[i].shares && j < choices[i].candidates; j++) {
        uint64_t rank = lattn_score_rank_(choices[i].from[j]);
        if (shift == 56 || (rank ^ at) >> (shift + 8) == 0) counts[rank >> shift & 255]++;
      }
    while (counts[byte] < k) k -= counts[byte--];
    at |= (uint64_t)byte << shift;
  }
  *ties = k;
  return at;
}

/* SnapKV's pooling, in place: of the kernel's scores around each, the largest or the mean. */
LATTN_FN_ void lattn_pool_scores_(double *score, int64_t n, int32_t kernel, int mean) {
  double before[32] = {0}; /* of the places before this one, as they were */
  int64_t half = kernel / 2;
  for (int64_t j = 0; j < n; j++) {
    double own = score[j], all = mean ? 0 : own;
    for (int64_t i = lattn_max_(0, j - half); i <= lattn_min_(n - 1, j + half); i++) {
      double x = i < j ? before[i % 32] : score[i];
      if (mean)
        all += x;
      else if (x > all)
        all = x;
    }
    score[j] = mean ? all / (double)kernel : all;
    before[j % 32] = own;
  }
}

/* round(x + whole) of 0 <= x < 2^52, a tie to even: by bits, so that no compiler makes one fused
   operation of what gave x and the sum. */
LATTN_FN_ int64_t lattn_round_sum_(double x, int64_t whole) {
  int64_t down = (int64_t)x, twice = (int64_t)(x * 2) - 2 * down;
  if (twice && ((double)(2 * down + 1) < x * 2 || ((down + whole) & 1))) down++;
  return down + whole;
}

/* How many each head keeps that shares its budget (Ada-KV). */
LATTN_FN_ void lattn_share_budgets_(const lattn_cache *cache, lattn_choice_ *choices) {
  int64_t budget = 0, candidates = 0, ties = 0;
  uint64_t least = 0;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_choice_ *c = choices + i;
    c->shares = c->drops && (lattn_cache_rule_(cache, i)->c.flags & LATTN_SNAP_SHARED);
    if (c->shares) budget += c->take, candidates += c->candidates;
    c->next = c->candidates - 1;
  }
  if (!budget) return;
  if (budget < candidates) least = lattn_kth_(choices, cache->n_kv, budget, &ties);
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_choice_ *c = choices + i;
    int64_t n = 0;
    for (int64_t j = 0; c->shares && j < c->candidates; j++)
      n += budget >= candidates || lattn_score_rank_(c->from[j]) > least;
    if (c->shares) c->take = n;
  }
  for (; ties > 0; ties--) { /* of those at the limit, the newest, of the lowest head */
    int64_t newest = -1;
    int32_t of = 0;
    for (int32_t i = 0; i < cache->n_kv; i++) {
      lattn_choice_ *c = choices + i;
      int64_t position;
      if (!c->shares) continue;
      while (c->next >= 0 && lattn_score_rank_(c->from[c->next]) != least) c->next--;
      if (c->next < 0) continue;
      position = lattn_slot_position_(cache, lattn_cache_rule_(cache, i), c->next);
      if (position > newest) newest = position, of = i;
    }
    choices[of].next--;
    choices[of].take++;
  }
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_chosen_ *r = &lattn_cache_rule_(cache, i)->c;
    lattn_choice_ *c = choices + i;
    int64_t floor;
    if (!c->shares) continue;
    floor = (int64_t)((double)(r->budget - r->recent) * r->floor_alpha);
    c->take = lattn_round_sum_((double)c->take * (1 - r->floor_alpha), floor);
    if (c->take >= c->candidates) c->drops = 0;
  }
}

/* The slots that stay, in order, in the place of the scores: the best, then the newest. */
LATTN_NOINLINE_ void lattn_list_slots_(lattn_choice_ *c) {
  uint32_t *list = (uint32_t *)(void *)c->score;
  int64_t ties = 0, equal = 0, n = 0;
  uint64_t least = ~(uint64_t)0;
  c->shares = 1;
  if (c->take) least = lattn_kth_(c, 1, c->take, &ties);
  for (int64_t j = 0; j < c->candidates; j++) equal += lattn_score_rank_(c->from[j]) == least;
  for (int64_t j = 0; j < c->slots; j++) {
    uint64_t rank = j < c->candidates ? lattn_score_rank_(c->from[j]) : ~(uint64_t)0;
    int stays = j >= c->candidates || (c->take && rank > least);
    if (j < c->candidates && c->take && rank == least) stays = equal-- <= ties;
    if (!stays) continue;
    list[n++] = (uint32_t)j; /* it lies at or before score[j] */
  }
}

/* What the head will drop joins both of its sums. */
LATTN_NOINLINE_ void lattn_sum_dropped_(const lattn_cache *cache, int32_t kv,
                                        const lattn_choice_ *c) {
  float row[LATTN_MAX_STACK_DIM_];
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  const uint32_t *slots = (const uint32_t *)(const void *)c->score;
  int64_t n = c->take + c->slots - c->candidates, next = 0;
  lattn_sums_ t;
  if (!rule->sums) return;
  t = lattn_cache_sums_(cache, kv, 0);
  for (int64_t j = 0; j < c->slots; j++) {
    if (next < n && slots[next] == j) next++;
    else
      lattn_sum_token_(&t, &rule->s, cache->dk, cache->dv,
                       lattn_cache_page_(cache, kv, j / LATTN_BLOCK_), (int)(j % LATTN_BLOCK_),
                       row);
  }
  LATTN_MEMCPY_(lattn_cache_sums_(cache, kv, 1).to, t.to, (size_t)rule->sums_bytes);
}

/* Copies the tokens that stay into new pages, and renumbers them. Page b is full when all that
   stays of old blocks up to b has been copied, so it can take the place of that. */
LATTN_NOINLINE_ void lattn_compact_(lattn_cache *cache, int32_t kv, const lattn_choice_ *c) {
  lattn_pool *pool = lattn_cache_pool_(cache);
  lattn_rule_ *rule = lattn_rules_(cache) + kv;
  const uint32_t *slots = (const uint32_t *)(const void *)c->score;
  int64_t n = c->take + c->slots - c->candidates;
  double *sums = lattn_mass_(cache, rule);
  uint32_t *list = lattn_list_(cache, rule);
  for (int64_t b = 0; b < lattn_blocks_(n); b++) {
    uint32_t *entry = lattn_page_entry_(cache, rule, b), number;
    lattn_place_at_ to;
    pool->sizes[rule->s.page_size].promised++; /* it lies ready */
    number = lattn_pool_take_(pool, rule->s.page_size);
    to.keys = lattn_page_at_(pool, number);
    to.values = to.keys + rule->s.value_at;
    to.scales = to.values + lattn_scales_at_(&rule->s, LATTN_BLOCK_);
    to.key_stride = rule->s.key_stride;
    to.value_stride = rule->s.value_stride;
    for (int64_t i = b * LATTN_BLOCK_; i < lattn_min_(n, (b + 1) * LATTN_BLOCK_); i++) {
      lattn_place_at_ from = lattn_place_of_(cache, kv, 0, slots[i]);
      to.slot = i % LATTN_BLOCK_;
      lattn_copy_token_(&rule->s, cache->dk, &from, &to);
    }
    lattn_pool_return_(pool, rule->s.page_size, *entry);
    *entry = number;
  }
  lattn_drop_blocks_(cache, rule, lattn_blocks_(n), INT64_MAX);
  for (int64_t i = 0; i < n; i++) {
    list[i] = (uint32_t)lattn_slot_position_(cache, rule, slots[i]);
    if (sums) sums[i] = sums[slots[i]];
  }
  rule->kept = n;
  rule->shift = cache->n_tokens - n;
}

/* Makes n pages of a size lie ready, besides those promised. */
LATTN_FN_ int lattn_ready_pages_(lattn_pool *pool, int32_t size, int64_t n) {
  uint32_t first = 0;
  if (!lattn_pool_reserve_(pool, size, (uint64_t)n)) return 0;
  for (; n > 0; n--) {
    uint32_t number = lattn_pool_take_(pool, size);
    lattn_page_of_(pool, number)->next = first;
    first = number;
  }
  while (first) {
    uint32_t next = lattn_page_of_(pool, first)->next;
    lattn_pool_return_(pool, size, first);
    first = next;
  }
  return 1;
}

/* Has the head more than it may keep? Of those that share budgets: have they, together? */
LATTN_FN_ int lattn_exceeds_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t more = 0;
  if (!lattn_chooses_(rule)) return 0;
  if (!(rule->c.flags & LATTN_SNAP_SHARED))
    return lattn_head_slots_(cache, rule) > rule->c.budget;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *other = lattn_cache_rule_(cache, i);
    if (other->c.flags & LATTN_SNAP_SHARED)
      more += lattn_head_slots_(cache, other) - other->c.budget;
  }
  return more > 0;
}

/* Pages that the mark takes at most before it gives some back: one, and of those that others hold
   too as many as a head has, or keeps. */
LATTN_FN_ int lattn_ready_mark_(const lattn_cache *cache) {
  uint32_t sizes = lattn_cache_sizes_(cache);
  int ready = 1;
  for (int32_t size = 0; sizes && ready; size++, sizes >>= 1) {
    int64_t n = 0;
    for (int32_t i = 0; i < cache->n_kv; i++) {
      const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
      int64_t slots = lattn_head_slots_(cache, rule);
      if (rule->s.page_size != size || !lattn_exceeds_(cache, rule)) continue;
      n = lattn_max_(n, 1) + lattn_min_(lattn_blocks_(rule->c.most_kept),
                                        lattn_shared_count_(cache, rule, 0, lattn_blocks_(slots)));
    }
    if (n) ready = lattn_ready_pages_(lattn_cache_pool_(cache), size, n);
  }
  return ready;
}

/* Which heads have more than they may keep, and the bytes of what they need; < 0: a status. */
LATTN_FN_ int64_t lattn_mark_needs_(const lattn_cache *cache) {
  int64_t bytes = 0;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t slots = lattn_head_slots_(cache, rule), from = rule->c.seen_from;
    if (!lattn_exceeds_(cache, rule)) continue;
    if (rule->c.mass ? from > 0 : cache->n_tokens - from < lattn_observed_(cache, rule))
      return LATTN_E_STATE;
    bytes += lattn_choice_bytes_(rule) * slots;
  }
  if (!bytes) return 0;
  return lattn_up_(bytes + cache->n_kv * (int64_t)sizeof(lattn_choice_), 64);
}

/* Lays the choices, and all that they need, into a table. */
LATTN_FN_ lattn_choice_ *lattn_lay_choices_(const lattn_cache *cache, char *table) {
  lattn_choice_ *choices = (lattn_choice_ *)(void *)table;
  char *at = table + cache->n_kv * (int64_t)sizeof *choices;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    lattn_choice_ *c = choices + i;
    LATTN_MEMSET_(c, 0, sizeof *c);
    c->slots = lattn_head_slots_(cache, rule);
    if (!lattn_exceeds_(cache, rule)) continue;
    c->drops = 1;
    c->candidates = lattn_max_(0, c->slots - rule->c.recent);
    c->take = rule->c.budget - rule->c.recent;
    c->score = (double *)(void *)at;
    c->from = rule->c.mass ? lattn_mass_(cache, rule) : c->score;
    at += 8 * c->slots;
    if (rule->c.flags & LATTN_SNAP_GROUP_MAX) {
      c->own = (double *)(void *)at;
      at += 8 * c->slots;
    }
  }
  return choices;
}

/* From sums to how many each head keeps. */
LATTN_NOINLINE_ void lattn_choose_(const lattn_cache *cache, lattn_choice_ *choices) {
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_chosen_ *c = &lattn_cache_rule_(cache, i)->c;
    if (choices[i].drops && c->queries)
      lattn_pool_scores_(choices[i].score, choices[i].candidates, c->kernel,
                         (c->flags & LATTN_SNAP_AVERAGE) != 0);
  }
  lattn_share_budgets_(cache, choices);
}

/* Everything is there: chooses and drops. */
LATTN_FN_ void lattn_mark_(lattn_cache *cache, lattn_job_ *job, const lattn_exec *ex,
                           char *table) {
  lattn_choice_ *choices = lattn_lay_choices_(cache, table);
  lattn_observing_ o;
  lattn_fpenv_ saved;
  lattn_seq_ seq;
  LATTN_MEMSET_(&o, 0, sizeof o);
  lattn_seq_init_(&seq, cache, 0, 0, cache->n_tokens);
  job->seqs = &seq;
  job->o.n_sequences = 1;
  o.job = job;
  o.choices = choices;
  lattn_observe_(&o, ex);
  lattn_fpenv_enter_(&saved);
  lattn_choose_(cache, choices);
  for (int32_t i = 0; i < cache->n_kv; i++) {
    if (!choices[i].drops) continue;
    lattn_list_slots_(choices + i);
    lattn_sum_dropped_(cache, i, choices + i);
    lattn_compact_(cache, i, choices + i);
  }
  lattn_fpenv_leave_(&saved);
}

/* Heads with a budget choose, if one holds more than it may; all or nothing. */
LATTN_NOINLINE_ lattn_status lattn_mark_chosen_(lattn_cache *cache, const lattn_exec *ex) {
  lattn_job_ job;
  lattn_pool *pool;
  int64_t at, bytes = lattn_mark_needs_(cache);
  lattn_status s;
  if (bytes < 0) return lattn_fail_(ex->fault, (lattn_status)bytes, "cache");
  if (!bytes) return LATTN_OK;
  lattn_job_init_(&job);
  lattn_cache_job_(&job, cache);
  s = lattn_check_numbers_(&job, ex->fault); /* gives the job its scale */
  job.of_caches = 1;
  job.o.n_sequences = 1;
  if (!s) s = lattn_place_(&job, ex, LATTN_MAX_ROWS_, 1, 1, ex->fault);
  if (s) return s;
  pool = lattn_cache_pool_(cache);
  if (lattn_ready_mark_(cache)) {
    at = (int64_t)lattn_pool_take_table_(pool, (uint64_t)bytes);
    if (at) {
      lattn_mark_(cache, &job, ex, (char *)pool + at);
      lattn_pool_return_table_(pool, (uint64_t)at, (uint64_t)bytes);
    }
    s = at ? LATTN_OK : LATTN_E_FULL;
  } else {
    s = LATTN_E_FULL;
  }
  lattn_pool_settle_(pool);
  return s ? lattn_fail_(ex->fault, s, "pool") : LATTN_OK;
}


LATTN_API lattn_status lattn_cache_mark(lattn_cache *cache, int32_t mark, const lattn_exec *exec) {
  lattn_marking_ m;
  lattn_exec ex;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  if (!cache) return lattn_fail_(ex.fault, LATTN_E_NULL, "cache");
  if (mark != LATTN_PROMPT_END) return lattn_fail_(ex.fault, LATTN_E_FIELD, "mark");
  if (cache->n_drafts) return lattn_fail_(ex.fault, LATTN_E_STATE, "cache");
  s = lattn_mark_chosen_(cache, &ex);
  if (s) return s;
  m.cache = cache;
  m.n_tasks = ex.n_threads > 0 ? ex.n_threads : 1;
  lattn_parallel_(&ex, m.n_tasks, lattn_mark_task_, &m);
  lattn_evict_(cache);
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return LATTN_OK;
}

LATTN_API int64_t lattn_pyramid_budget(int64_t budget, int64_t window, int64_t beta,
                                       int64_t n_tokens, int64_t layer, int64_t n_layers) {
  int64_t c, least, most;
  const int64_t limit = LATTN_MAX_POSITION_;
  if (window < 0 || window >= budget || budget >= limit || beta < 0 || n_tokens < 0 ||
      n_tokens >= limit || layer < 0 || layer >= n_layers || n_layers >= limit)
    return 0;
  c = budget - window;
  if (n_layers == 1 || (n_tokens > 0 && (n_tokens < 2 * c || n_tokens <= budget))) return budget;
  least = c / (beta ? beta : 20);
  most = 2 * c - least;
  if (n_tokens > 0 && most >= n_tokens - window) {
    most = n_tokens - window;
    least = 2 * c - most;
  }
  return most - layer * ((most - least) / (n_layers - 1)) + window;
}

/* ---- fork, checkpoint, rollback ---- */

/* Blocks that a head holds, in order: for (b = first; b < end; b = next). */
LATTN_FN_ int64_t lattn_first_held_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return lattn_next_held_(cache, rule, -1);
}

LATTN_API lattn_status lattn_cache_fork(lattn_cache **fork, const lattn_cache *parent) {
  lattn_pool *pool;
  lattn_cache *own;
  uint64_t at;
  if (!fork || !parent) return LATTN_E_NULL;
  if (parent->n_drafts) return LATTN_E_STATE;
  pool = lattn_cache_pool_(parent);
  at = lattn_pool_take_table_(pool, parent->bytes);
  if (!at) return LATTN_E_FULL;
  own = (lattn_cache *)(void *)((char *)pool + at);
  LATTN_MEMCPY_(own, parent, (size_t)parent->bytes);
  own->from_pool = (int64_t)at;
  for (int32_t i = 0; i < own->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(own, i);
    int64_t b = lattn_first_held_(own, rule), end;
    end = lattn_blocks_(lattn_head_slots_(own, rule));
    for (; b < end; b = lattn_next_held_(own, rule, b))
      lattn_pool_share_(pool, *lattn_page_entry_(own, rule, b));
  }
  pool->n_caches++;
  *fork = own;
  return LATTN_OK;
}

LATTN_FN_ lattn_pool *lattn_checkpoint_pool_(const lattn_checkpoint *c) {
  return (lattn_pool *)(void *)((char *)(uintptr_t)c - c->from_pool);
}
LATTN_FN_ lattn_hole_ *lattn_checkpoint_holes_(const lattn_checkpoint *c) {
  return (lattn_hole_ *)(void *)((char *)(uintptr_t)c + c->holes);
}
LATTN_FN_ lattn_kept_ *lattn_checkpoint_heads_(const lattn_checkpoint *c) {
  return (lattn_kept_ *)(void *)((char *)(uintptr_t)c + c->heads);
}
LATTN_FN_ uint32_t *lattn_checkpoint_pages_(const lattn_checkpoint *c) {
  return (uint32_t *)(void *)((char *)(uintptr_t)c + c->pages);
}

/* Rows of queries that the head has of the newest tokens. */
LATTN_FN_ int64_t lattn_query_rows_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return lattn_min_(cache->n_tokens - rule->c.seen_from, rule->c.n_queries);
}
LATTN_FN_ int64_t lattn_extra_bytes_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t sums = rule->c.mass ? lattn_head_slots_(cache, rule) : 0;
  return 8 * sums + lattn_query_rows_(cache, rule) * lattn_query_bytes_(cache) + 4 * rule->kept;
}

/* Copies what a head chooses by into a checkpoint, and back. */
LATTN_FN_ void lattn_keep_extra_(const lattn_cache *cache, const lattn_rule_ *rule, char *to,
                                 lattn_kept_ *kept) {
  int64_t bytes = lattn_query_bytes_(cache), first;
  kept->kept = rule->kept;
  kept->shift = rule->shift;
  kept->seen_from = rule->c.seen_from;
  kept->n_sums = rule->c.mass ? lattn_head_slots_(cache, rule) : 0;
  kept->n_rows = lattn_query_rows_(cache, rule);
  if (kept->n_sums) LATTN_MEMCPY_(to, lattn_mass_(cache, rule), (size_t)kept->n_sums * 8);
  to += 8 * kept->n_sums;
  first = cache->n_tokens - kept->n_rows;
  for (int64_t i = 0; i < kept->n_rows; i++, to += bytes)
    LATTN_MEMCPY_(to, lattn_query_row_(cache, rule, first + i), (size_t)bytes);
  if (rule->kept) LATTN_MEMCPY_(to, lattn_list_(cache, rule), (size_t)rule->kept * 4);
}
LATTN_FN_ void lattn_restore_extra_(const lattn_cache *cache, lattn_rule_ *rule, const char *from,
                                    const lattn_kept_ *kept) {
  int64_t bytes = lattn_query_bytes_(cache);
  int64_t i = lattn_max_(0, kept->n_rows - rule->c.n_queries);
  rule->kept = kept->kept;
  rule->shift = kept->shift;
  rule->c.seen_from = kept->seen_from;
  if (kept->n_sums) LATTN_MEMCPY_(lattn_mass_(cache, rule), from, (size_t)kept->n_sums * 8);
  from += 8 * kept->n_sums;
  for (; i < kept->n_rows; i++)
    LATTN_MEMCPY_(lattn_query_row_(cache, rule, cache->n_tokens - kept->n_rows + i),
                  from + i * bytes, (size_t)bytes);
  if (rule->c.queries) lattn_seen_(rule, cache->n_tokens);
  from += kept->n_rows * bytes;
  if (rule->kept) LATTN_MEMCPY_(lattn_list_(cache, rule), from, (size_t)rule->kept * 4);
}

/* The table of a checkpoint of such a cache with room for n_pages numbers, empty; NULL: none. */
LATTN_FN_ lattn_checkpoint *lattn_checkpoint_make_(const lattn_cache *cache, int32_t n_holes,
                                                   int64_t n_pages) {
  lattn_pool *pool = lattn_cache_pool_(cache);
  lattn_checkpoint head, *own;
  int64_t at = (int64_t)lattn_round64_(sizeof head);
  LATTN_MEMSET_(&head, 0, sizeof head);
  head.holes = lattn_lay_(&at, n_holes * (int64_t)sizeof(lattn_hole_));
  head.heads = lattn_lay_(&at, cache->n_kv * (int64_t)sizeof(lattn_kept_));
  head.sums = at;
  for (int32_t i = 0; i < cache->n_kv; i++)
    lattn_lay_(&at, lattn_cache_rule_(cache, i)->sums_bytes);
  head.pages = lattn_lay_(&at, n_pages * 4);
  for (int32_t i = 0; i < cache->n_kv; i++)
    lattn_lay_(&at, lattn_extra_bytes_(cache, lattn_cache_rule_(cache, i)));
  head.bytes = lattn_round64_((uint64_t)at);
  head.fingerprint = cache->fingerprint;
  head.n_kv = cache->n_kv;
  head.n_holes = n_holes;
  head.from_pool = (int64_t)lattn_pool_take_table_(pool, head.bytes);
  if (!head.from_pool) return 0;
  own = (lattn_checkpoint *)(void *)((char *)pool + head.from_pool);
  LATTN_MEMSET_(own, 0, (size_t)head.bytes);
  *own = head;
  pool->n_checkpoints++;
  return own;
}

LATTN_API lattn_status lattn_cache_checkpoint(lattn_checkpoint **checkpoint,
                                              const lattn_cache *cache) {
  lattn_checkpoint *own;
  int64_t n_pages = 0, sinks, first, end, extra;
  char *sums;
  if (!checkpoint || !cache) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t slots = lattn_head_slots_(cache, rule);
    n_pages += lattn_held_blocks_(cache, rule, slots, &sinks, &first, &end);
  }
  own = lattn_checkpoint_make_(cache, cache->n_holes, n_pages);
  if (!own) return LATTN_E_FULL;
  own->n_tokens = cache->n_tokens;
  extra = own->pages;
  lattn_lay_(&extra, n_pages * 4);
  LATTN_MEMCPY_(lattn_checkpoint_holes_(own), lattn_holes_(cache),
                (size_t)cache->n_holes * sizeof(lattn_hole_));
  sums = (char *)own + own->sums;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    lattn_kept_ *kept = lattn_checkpoint_heads_(own) + i;
    if (rule->sums)
      LATTN_MEMCPY_(sums, (const char *)cache + rule->sums, (size_t)rule->sums_bytes);
    sums += rule->sums_bytes;
    kept->marked = rule->marked;
    kept->first_block = rule->first_block;
    kept->page_bytes = rule->s.page_bytes;
    kept->page_size = rule->s.page_size;
    kept->extra = lattn_lay_(&extra, lattn_extra_bytes_(cache, rule));
    lattn_keep_extra_(cache, rule, (char *)own + kept->extra, kept);
    end = lattn_blocks_(lattn_head_slots_(cache, rule));
    for (int64_t b = lattn_first_held_(cache, rule); b < end;
         b = lattn_next_held_(cache, rule, b)) {
      uint32_t number = *lattn_page_entry_(cache, rule, b);
      lattn_pool_share_(lattn_cache_pool_(cache), number);
      lattn_checkpoint_pages_(own)[own->n_pages++] = number;
      kept->count++;
    }
  }
  *checkpoint = own;
  return LATTN_OK;
}

/* Blocks [first, end), less those of sinks, are more than the ring of a head has room for. */
LATTN_FN_ int lattn_ring_short_(const lattn_rule_ *rule, int64_t first, int64_t end) {
  return end - lattn_max_(first, lattn_min_(rule->sink_blocks, end)) > rule->ring;
}

/* Puts the pages of one head of a checkpoint into the cache's empty tables; those that another
   config's ring has no room for are let go. */
LATTN_FN_ void lattn_restore_head_(lattn_cache *cache, lattn_rule_ *rule, const lattn_kept_ *kept,
                                   const uint32_t *pages) {
  int64_t slots = lattn_head_slots_(cache, rule);
  int64_t end = lattn_blocks_(slots), from, sinks, last, b, keep;
  lattn_set_marked_(rule, kept->marked);
  rule->first_block = kept->first_block;
  lattn_held_blocks_(cache, rule, slots, &sinks, &from, &last);
  if (end - lattn_gone_before_(cache, end) - from + lattn_gone_before_(cache, from) > rule->ring)
    from = lattn_max_(from, lattn_keep_from_(cache, rule, cache->n_tokens));
  keep = from;
  for (b = lattn_first_held_(cache, rule); b < end; b = lattn_next_held_(cache, rule, b), pages++)
    if (b < sinks || b >= keep)
      *lattn_page_entry_(cache, rule, b) = *pages;
    else
      lattn_pool_return_(lattn_cache_pool_(cache), rule->s.page_size, *pages);
  rule->first_block = lattn_max_(rule->first_block, keep);
}

LATTN_API lattn_status lattn_cache_rollback(lattn_cache *cache,
                                            const lattn_checkpoint *checkpoint) {
  const lattn_checkpoint *c = checkpoint;
  lattn_pool *pool;
  const uint32_t *pages;
  const char *sums;
  if (!cache || !c) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  pool = lattn_cache_pool_(cache);
  if (pool != lattn_checkpoint_pool_(c) || c->fingerprint != cache->fingerprint ||
      c->n_kv != cache->n_kv)
    return LATTN_E_CONFIG;
  for (int32_t i = 0; i < cache->n_kv; i++)
    if (lattn_checkpoint_heads_(c)[i].page_size != lattn_cache_rule_(cache, i)->s.page_size)
      return LATTN_E_CONFIG;
  for (int32_t i = 0; i < cache->n_kv; i++) /* what sums do not know of cannot be let go */
    if (lattn_cache_rule_(cache, i)->sums &&
        lattn_ring_short_(lattn_cache_rule_(cache, i), lattn_checkpoint_heads_(c)[i].first_block,
                          lattn_blocks_(c->n_tokens - lattn_checkpoint_heads_(c)[i].shift)))
      return LATTN_E_FULL;
  for (int32_t i = 0; i < cache->n_kv; i++)
    if ((!cache->open || lattn_chooses_(lattn_cache_rule_(cache, i))) &&
        c->n_tokens - lattn_checkpoint_heads_(c)[i].shift > cache->capacity)
      return LATTN_E_FULL;
  if (c->n_holes > cache->max_holes) return LATTN_E_FULL;
  pages = lattn_checkpoint_pages_(c);
  for (int64_t i = 0; i < c->n_pages; i++) lattn_pool_share_(pool, pages[i]);
  sums = (const char *)c + c->sums;
  lattn_cut_(cache, 0);
  LATTN_MEMCPY_(lattn_holes_(cache), lattn_checkpoint_holes_(c),
                (size_t)c->n_holes * sizeof(lattn_hole_));
  cache->n_holes = c->n_holes;
  cache->n_tokens = c->n_tokens;
  lattn_sum_holes_(cache);
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_kept_ *kept = lattn_checkpoint_heads_(c) + i;
    lattn_rule_ *rule = lattn_rules_(cache) + i;
    lattn_restore_extra_(cache, rule, (const char *)c + kept->extra, kept);
    lattn_restore_head_(cache, rule, kept, pages);
    pages += kept->count;
    for (int32_t j = 0; j < 2 && rule->sums; j++)
      LATTN_MEMCPY_(lattn_cache_sums_(cache, i, j).to, sums, (size_t)rule->sums_bytes);
    sums += rule->sums_bytes;
  }
  lattn_sums_settle_all_(cache);
  lattn_pool_settle_(pool);
  return LATTN_OK;
}

LATTN_API lattn_status lattn_checkpoint_release(lattn_checkpoint *checkpoint) {
  lattn_pool *pool;
  const uint32_t *pages;
  if (!checkpoint) return LATTN_E_NULL;
  pool = lattn_checkpoint_pool_(checkpoint);
  pages = lattn_checkpoint_pages_(checkpoint);
  for (int32_t h = 0; h < checkpoint->n_kv; h++) {
    const lattn_kept_ *kept = lattn_checkpoint_heads_(checkpoint) + h;
    for (int64_t i = 0; i < kept->count; i++) lattn_pool_return_(pool, kept->page_size, *pages++);
  }
  pool->n_checkpoints--;
  lattn_pool_return_table_(pool, (uint64_t)checkpoint->from_pool, checkpoint->bytes);
  lattn_pool_settle_(pool);
  return LATTN_OK;
}

LATTN_API lattn_status lattn_checkpoint_stats_get(const lattn_checkpoint *checkpoint,
                                                  lattn_checkpoint_stats *stats) {
  lattn_checkpoint_stats s;
  const uint32_t *pages;
  if (!checkpoint || !stats) return LATTN_E_NULL;
  LATTN_MEMSET_(&s, 0, sizeof s);
  s.n_tokens = checkpoint->n_tokens;
  s.table_bytes = (int64_t)checkpoint->bytes;
  pages = lattn_checkpoint_pages_(checkpoint);
  for (int32_t h = 0; h < checkpoint->n_kv; h++) {
    const lattn_kept_ *kept = lattn_checkpoint_heads_(checkpoint) + h;
    for (int64_t i = 0; i < kept->count; i++, pages++) {
      s.page_bytes += kept->page_bytes;
      if (lattn_page_of_(lattn_checkpoint_pool_(checkpoint), *pages)->holders == 1)
        s.own_bytes += kept->page_bytes;
    }
  }
  return lattn_export_(stats, &s, sizeof s);
}

/* ---- remove ---- */

/* Reverses entries [a, b). */
LATTN_FN_ void lattn_reverse_(uint32_t *x, int64_t a, int64_t b) {
  for (b--; a < b; a++, b--) {
    uint32_t y = x[a];
    x[a] = x[b];
    x[b] = y;
  }
}

/* Blocks [from, to), wholly in a hole to be, are `more` blocks that were not yet gone: lets go of
   those that the head holds, and moves the entries behind them down. Holes are as before. */
LATTN_FN_ void lattn_close_up_(lattn_cache *cache, lattn_rule_ *rule, int64_t from, int64_t to,
                               int64_t more) {
  uint32_t *ring = (uint32_t *)(void *)((char *)cache + rule->pages) + rule->sink_blocks;
  int64_t end = lattn_blocks_(lattn_stored_slots_(cache)), by = more % rule->ring;
  lattn_drop_blocks_(cache, rule, from, to);
  if (rule->first_block > from) { /* all held blocks are behind: the ring turns */
    lattn_reverse_(ring, 0, by);
    lattn_reverse_(ring, by, rule->ring);
    lattn_reverse_(ring, 0, rule->ring);
    return;
  }
  for (int64_t b = lattn_next_held_(cache, rule, to - 1); b < end;
       b = lattn_next_held_(cache, rule, b)) {
    int64_t place = b - lattn_gone_before_(cache, b);
    ring[(place - more) % rule->ring] = ring[place % rule->ring];
  }
}

/* May positions [from, to) go, which leaves that hole? */
LATTN_FN_ lattn_status lattn_check_remove_(const lattn_cache *cache, int64_t from, int64_t to,
                                           const lattn_hole_ *hole) {
  for (int32_t i = 0; i < cache->n_kv; i++)
    if (lattn_cache_rule_(cache, i)->sums || lattn_cache_rule_(cache, i)->mark)
      return LATTN_E_CONFIG;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t always = rule->sink_blocks * LATTN_BLOCK_, start, end;
    if (!rule->window) continue;
    if (from < rule->sinks) return LATTN_E_CONFIG;
    if (rule->window == 1 || lattn_stored_slots_(cache) <= always) continue;
    start = lattn_max_(0, cache->n_tokens - (to - from) - rule->window + 1);
    if (start >= from) start += to - from;
    start = lattn_max_(lattn_slot_of_(cache, start), always);
    if (lattn_in_hole_(cache, start, &end)) start = end;
    if (start >= hole->from && start < hole->to) start = hole->to;
    if (start < rule->first_block * LATTN_BLOCK_) return LATTN_E_EVICTED;
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_cache_remove(lattn_cache *cache, int64_t from, int64_t to) {
  lattn_hole_ *h, hole;
  int32_t first = 0, end;
  int64_t more;
  lattn_status s;
  if (!cache) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  if (from < 0 || from > to || to > cache->n_tokens) return LATTN_E_SHAPE;
  if (to == cache->n_tokens) return lattn_cache_truncate(cache, from);
  if (from == to) return LATTN_OK;
  if (lattn_any_chooses_(cache)) return LATTN_E_CONFIG;
  h = lattn_holes_(cache);
  LATTN_MEMSET_(&hole, 0, sizeof hole);
  hole.from = lattn_slot_of_(cache, from);
  hole.to = lattn_slot_of_(cache, to - 1) + 1;
  while (first < cache->n_holes && h[first].to < hole.from) first++;
  for (end = first; end < cache->n_holes && h[end].from <= hole.to; end++) {
    hole.from = lattn_min_(hole.from, h[end].from); /* they touch: one hole */
    hole.to = lattn_max_(hole.to, h[end].to);
  }
  s = lattn_check_remove_(cache, from, to, &hole);
  if (s) return s;
  if (end == first && cache->n_holes == cache->max_holes) return LATTN_E_FULL;
  more = lattn_max_(0, hole.to / LATTN_BLOCK_ - lattn_blocks_(hole.from));
  for (int32_t i = first; i < end; i++)
    more -= lattn_max_(0, h[i].to / LATTN_BLOCK_ - lattn_blocks_(h[i].from));
  for (int32_t i = 0; i < cache->n_kv && more > 0; i++)
    lattn_close_up_(cache, lattn_rules_(cache) + i, lattn_blocks_(hole.from),
                    hole.to / LATTN_BLOCK_, more);
  if (end == first)
    for (int32_t i = cache->n_holes++; i > first; i--) h[i] = h[i - 1];
  else
    for (int32_t i = end; i < cache->n_holes; i++) h[i - (end - first) + 1] = h[i];
  if (end > first) cache->n_holes -= end - first - 1;
  h[first] = hole;
  lattn_sum_holes_(cache);
  cache->n_tokens -= to - from;
  lattn_pool_settle_(lattn_cache_pool_(cache));
  return LATTN_OK;
}

/* ---- release, statistics, sizes ---- */

LATTN_API lattn_status lattn_cache_release(lattn_cache *cache) {
  lattn_pool *pool;
  if (!cache) return LATTN_E_NULL;
  lattn_cache_clear(cache);
  pool = lattn_cache_pool_(cache);
  pool->n_caches--;
  lattn_pool_return_table_(pool, (uint64_t)cache->from_pool, cache->bytes);
  return LATTN_OK;
}

/* Tokens stored before a slot: the position of the first at or behind it. */
LATTN_FN_ int64_t lattn_position_from_(const lattn_cache *cache, int64_t slot) {
  int64_t end;
  if (slot >= lattn_stored_slots_(cache)) return cache->n_tokens;
  if (lattn_in_hole_(cache, slot, &end)) slot = end;
  return slot - lattn_removed_before_(cache, slot);
}

LATTN_API lattn_status lattn_cache_head_stats_get(const lattn_cache *cache, int32_t kv_head,
                                                  lattn_cache_head_stats *stats) {
  lattn_cache_head_stats s;
  const lattn_rule_ *rule;
  int64_t sinks, first, end, held;
  if (!cache || !stats) return LATTN_E_NULL;
  if (kv_head < 0 || kv_head >= cache->n_kv) return LATTN_E_SHAPE;
  rule = lattn_cache_rule_(cache, kv_head);
  LATTN_MEMSET_(&s, 0, sizeof s);
  held = lattn_held_blocks_(cache, rule, lattn_head_slots_(cache, rule), &sinks, &first, &end);
  s.policy = rule->policy;
  s.positions = rule->in_cache ? LATTN_POSITIONS_IN_CACHE : LATTN_POSITIONS_ABSOLUTE;
  s.sinks = rule->sinks;
  s.window = rule->window;
  s.slack = rule->slack;
  s.n_sink_tokens = lattn_position_from_(cache, sinks * LATTN_BLOCK_);
  s.first_token = lattn_position_from_(cache, first * LATTN_BLOCK_);
  if (first == sinks) s.n_sink_tokens = s.first_token = 0;
  s.n_tokens_held = s.n_sink_tokens + cache->n_tokens - s.first_token - rule->shift;
  s.first_token += rule->kept + rule->shift;
  if (lattn_chooses_(rule)) s.window = rule->c.recent;
  s.page_bytes = held * rule->s.page_bytes;
  return lattn_export_(stats, &s, sizeof s);
}

/* Bytes of a token's key and value. */
LATTN_FN_ int64_t lattn_token_bytes_(const lattn_storage_ *st) {
  return st->n_keys * st->panel_bytes / LATTN_PANEL_ +
         st->n_values * (st->row_bytes + lattn_scale_bytes_(st, 1));
}

/* Pages of the head that others hold too. */
LATTN_FN_ int64_t lattn_shared_pages_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t sinks, first, end;
  lattn_held_blocks_(cache, rule, lattn_head_slots_(cache, rule), &sinks, &first, &end);
  return lattn_shared_count_(cache, rule, 0, sinks) + lattn_shared_count_(cache, rule, first, end);
}

LATTN_API lattn_status lattn_cache_stats_get(const lattn_cache *cache, lattn_cache_stats *stats) {
  lattn_cache_stats s;
  if (!cache || !stats) return LATTN_E_NULL;
  LATTN_MEMSET_(&s, 0, sizeof s);
  s.n_tokens = cache->n_tokens;
  s.capacity = cache->capacity == LATTN_MAX_POSITION_ ? INT64_MAX : cache->capacity;
  s.table_bytes = (int64_t)cache->bytes;
  s.n_drafts = cache->n_drafts;
  s.n_holes = cache->n_holes;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_cache_head_stats h;
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    h.size = sizeof h;
    lattn_cache_head_stats_get(cache, i, &h);
    if (h.policy == LATTN_HEAD_FULL || lattn_chooses_(rule)) {
      s.n_full_heads++;
      s.full_bytes += h.page_bytes;
    } else {
      s.n_streaming_heads++;
      s.streaming_bytes += h.page_bytes;
    }
    s.token_bytes += h.n_tokens_held * lattn_token_bytes_(&rule->s);
    s.shared_bytes += lattn_shared_pages_(cache, rule) * rule->s.page_bytes;
  }
  return lattn_export_(stats, &s, sizeof s);
}

/* ==== §8 read back, save, load ===================================================================
   A saved cache, all little-endian:
     0   the characters LATTNKVC; u32 version = 1 (2: some heads are chosen at marks); u32 bytes
         of the header, with its checksum
     16  u64 fingerprint of the config; u64 n_tokens; u64 n_slots; u64 bytes of the whole
     48  u32 n_kv_heads, n_holes, key_dim, value_dim, key type, value type, number of KV heads with
         a mark; of bundles u32 key heads and u32 value heads of each, else 8 bytes of zero; 12
         bytes of zero
     96  removed ranges of slots, rising: u64 first, u64 one past the last, for each
         for each KV head with a mark: u64 1 + the position of its first row behind it, 0 = not yet
         for each KV head: u64 sink_end, u64 first: it holds the slots [0, sink_end) and [first,
         n_slots), less the holes
         version 2: for each head that is chosen at marks: u64 kept, u64 shift: its slots [0, kept)
         hold the positions of a list, slot s behind them holds position s + shift, and it holds
         the slots [0, n_slots - shift); u64: positions from there on brought their queries
         checksum of all before
     The fingerprint is 0xcbf29ce484222325 at first; each 64-bit word enters by hash = (hash ^
     word) * 0x100000001b3, hash ^= hash >> 29: those of lattn_fingerprint_, in that order.
     Then, for each KV head: if it keeps sums (lattn_sums_), of its tokens between sinks and `to`
     (of a head chosen at marks: of the `to` tokens that it dropped), u64 to, f64 longest, k
     [key_dim], and, as far as it has them, v [value_dim], squares [key_dim], f32 least [key_dim],
     most [key_dim]; of its tokens in order, keys [count][key_dim] as stored
     (rotated, if the cache rotates), then values [count][value_dim] (of a bundle, keys of each of
     its key heads, then values of each of its value heads); of a head chosen at marks then u32
     positions [kept], rising; of LATTN_HEAD_SNAP the f32 queries of the newest tokens, [as many as
     window, or brought queries][query heads of the KV head][key_dim], not rotated; of _HEAVY f64
     sums of weights [count]. At the end, a checksum of all before.
   A checksum is two u64, s1 = 1 and s2 = 0 to begin with: for each 32-bit word (the last filled up
   with zeros) s1 += word, s2 += s1. */

enum { LATTN_SAVED_FIXED_ = 96, LATTN_SAVED_CHECK_ = 16, LATTN_STREAM_ = 4096 };

/* Bytes on their way to or from the caller, and their checksum. */
typedef struct lattn_stream_ {
  lattn_write_function write; /* NULL and no read: only counted */
  lattn_read_function read;
  void *user;
  uint64_t s1, s2;        /* of all whole buffers so far */
  uint64_t left;          /* reading: bytes that may still be fetched */
  uint32_t n, at, failed; /* in the buffer; reading: taken from it */
  unsigned char buffer[LATTN_STREAM_];
} lattn_stream_;

LATTN_FN_ void lattn_put_bytes_(unsigned char *to, uint64_t x, int n) {
  for (int i = 0; i < n; i++) to[i] = (unsigned char)(x >> 8 * i);
}

LATTN_FN_ uint64_t lattn_get_bytes_(const unsigned char *from, int n) {
  uint64_t x = 0;
  for (int i = 0; i < n; i++) x |= (uint64_t)from[i] << 8 * i;
  return x;
}

/* Adds n bytes to a checksum; all but the last call bring a multiple of 4. */
LATTN_FN_ void lattn_sum_bytes_(uint64_t *s1, uint64_t *s2, const unsigned char *p, uint32_t n) {
  uint64_t a = *s1, b = *s2;
  for (; n >= 4; n -= 4, p += 4) {
    a += (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    b += a;
  }
  if (n) {
    a += lattn_get_bytes_(p, (int)n);
    b += a;
  }
  *s1 = a;
  *s2 = b;
}

LATTN_FN_ void lattn_stream_init_(lattn_stream_ *st, lattn_write_function write,
                                  lattn_read_function read, void *user) {
  LATTN_MEMSET_(st, 0, sizeof *st);
  st->write = write;
  st->read = read;
  st->user = user;
  st->s1 = 1;
}

/* Hands the buffer on. */
LATTN_FN_ void lattn_stream_flush_(lattn_stream_ *st) {
  if (st->n && st->write && !st->failed && st->write(st->user, st->buffer, st->n)) st->failed = 1;
  lattn_sum_bytes_(&st->s1, &st->s2, st->buffer, st->n);
  st->n = 0;
}

/* Fetches the next buffer. */
LATTN_FN_ void lattn_stream_fill_(lattn_stream_ *st) {
  uint32_t n = st->left < LATTN_STREAM_ ? (uint32_t)st->left : (uint32_t)LATTN_STREAM_;
  lattn_sum_bytes_(&st->s1, &st->s2, st->buffer, st->n);
  if (!n || st->read(st->user, st->buffer, n)) {
    st->failed = 1;
    n = LATTN_STREAM_;
    LATTN_MEMSET_(st->buffer, 0, n);
  } else {
    st->left -= n;
  }
  st->n = n;
  st->at = 0;
}

LATTN_FN_ void lattn_stream_put_(lattn_stream_ *st, uint64_t x, uint32_t n) {
  unsigned char bytes[8];
  lattn_put_bytes_(bytes, x, (int)n);
  for (uint32_t i = 0; i < n; i++) {
    if (st->n == LATTN_STREAM_) lattn_stream_flush_(st);
    st->buffer[st->n++] = bytes[i];
  }
}

LATTN_FN_ uint64_t lattn_stream_get_(lattn_stream_ *st, uint32_t n) {
  unsigned char bytes[8];
  for (uint32_t i = 0; i < n; i++) {
    if (st->at == st->n && !st->failed) lattn_stream_fill_(st);
    bytes[i] = st->failed ? 0 : st->buffer[st->at++];
  }
  return lattn_get_bytes_(bytes, (int)n);
}

/* The checksum of all that was put, or taken, so far. */
LATTN_FN_ void lattn_stream_sum_(const lattn_stream_ *st, uint64_t *s1, uint64_t *s2) {
  *s1 = st->s1;
  *s2 = st->s2;
  lattn_sum_bytes_(s1, s2, st->buffer, st->read ? st->at : st->n);
}

LATTN_FN_ void lattn_stream_put_sum_(lattn_stream_ *st) {
  uint64_t s1, s2;
  lattn_stream_sum_(st, &s1, &s2);
  lattn_stream_put_(st, s1, 8);
  lattn_stream_put_(st, s2, 8);
}

/* Takes a checksum, and tells whether it is that of all before it. */
LATTN_FN_ int lattn_stream_check_(lattn_stream_ *st) {
  uint64_t s1, s2, a, b;
  lattn_stream_sum_(st, &s1, &s2);
  a = lattn_stream_get_(st, 8);
  b = lattn_stream_get_(st, 8);
  return a == s1 && b == s2;
}

/* One element between memory, in the machine's order, and the stream. p NULL: it is read past. */
LATTN_FN_ void lattn_stream_element_(lattn_stream_ *st, char *p, uint32_t size) {
  uint32_t x = 0;
  uint16_t half;
  unsigned char byte;
  void *own = size == 4 ? (void *)&x : size == 2 ? (void *)&half : (void *)&byte;
  if (st->read) {
    x = (uint32_t)lattn_stream_get_(st, size);
    half = (uint16_t)x;
    byte = (unsigned char)x;
    if (p) LATTN_MEMCPY_(p, own, size);
  } else {
    LATTN_MEMCPY_(own, p, size);
    lattn_stream_put_(st, size == 4 ? x : size == 2 ? half : byte, size);
  }
}

/* n elements, `stride` apart. Whole ones in the buffer are copied; one that straddles its end, or
   that the machine keeps in another order, goes by bytes. */
LATTN_FN_ void lattn_stream_row_(lattn_stream_ *st, char *p, uint32_t size, int64_t n,
                                 int64_t stride) {
  int64_t step = p ? stride * (int64_t)size : 0;
  while (n > 0 && !(st->read && st->failed)) {
    uint32_t *at = st->read ? &st->at : &st->n;
    int64_t count = lattn_min_(n, ((st->read ? st->n : (uint32_t)LATTN_STREAM_) - *at) / size);
    unsigned char *b = st->buffer + *at;
    if (LATTN_BIG_ENDIAN_ || !p || !count) {
      lattn_stream_element_(st, p, size);
      if (p) p += step;
      n--;
      continue;
    }
    if (stride == 1)
      LATTN_MEMCPY_(st->read ? (void *)p : (void *)b, st->read ? (void *)b : (void *)p,
                    (size_t)count * size);
    else
      for (int64_t i = 0; i < count; i++) { /* constant sizes: no call an element */
        char *element = p + i * step;
        unsigned char *byte = b + i * size;
        char *to = st->read ? element : (char *)byte;
        const char *from = st->read ? (const char *)byte : element;
        if (size == 2)
          LATTN_MEMCPY_(to, from, 2);
        else
          LATTN_MEMCPY_(to, from, 4);
      }
    p += count * step;
    n -= count;
    *at += (uint32_t)count * size;
  }
}

/* A key as stored; of integers, groups of 4 bytes, and scales. page NULL: read past. */
LATTN_FN_ void lattn_stream_key_(lattn_stream_ *st, const lattn_storage_ *how, int64_t dim,
                                 char *page, int64_t lane) {
  char *panel = page ? page + lane / LATTN_PANEL_ * how->panel_bytes : 0;
  int64_t at;
  int size;
  lane %= LATTN_PANEL_;
  if (!lattn_is_int_(how->key_type)) {
    size = (int)lattn_type_size_(how->key_type);
    lattn_stream_row_(st, panel ? panel + lane * size : 0, (uint32_t)size, dim, LATTN_PANEL_);
    return;
  }
  for (int64_t i = 0; (size = lattn_key_piece_(how->key_type, dim, i, &at)) != 0; i++) {
    char *piece = panel ? panel + at + lane * size : 0;
    lattn_stream_row_(st, piece, size == 4 ? 1 : 2, size == 4 ? 4 : 1, 1);
  }
}

/* A value as stored: of LATTN_I8 its dims up to a multiple of 16, then its scale; of LATTN_I4 16
   bytes for each 32 dims, then their scales. */
LATTN_FN_ void lattn_stream_value_(lattn_stream_ *st, const lattn_storage_ *how, int64_t dim,
                                   char *page, int64_t lane) {
  char *row = page ? page + how->value_at + lane * how->row_bytes : 0;
  char *scales = page ? page + how->value_at + lattn_scales_at_(how, LATTN_BLOCK_) + 2 * lane : 0;
  int64_t ints = (dim + 31) / 32 * 16;
  if (how->value_type == LATTN_I8) {
    lattn_stream_row_(st, row, 1, how->row_bytes, 1);
    lattn_stream_row_(st, scales, 2, 1, 1);
  } else if (how->value_type == LATTN_I4) {
    lattn_stream_row_(st, row, 1, ints, 1);
    lattn_stream_row_(st, row ? row + ints : 0, 2, ints / 16, 1);
  } else {
    lattn_stream_row_(st, row, (uint32_t)lattn_type_size_(how->value_type), dim, 1);
  }
}

/* The keys or values of one head's held tokens, in order: those at `part` bytes from the first
   head's. Blocks before `keep` that are no sink blocks are read past. */
LATTN_FN_ void lattn_stream_part_(lattn_stream_ *st, const lattn_cache *cache,
                                  const lattn_rule_ *rule, int values, int64_t part,
                                  int64_t keep) {
  int64_t slots = lattn_head_slots_(cache, rule), end = lattn_blocks_(slots);
  int64_t b = lattn_first_held_(cache, rule);
  for (; b < end && !st->failed; b = lattn_next_held_(cache, rule, b)) {
    int64_t stop = lattn_min_(slots, (b + 1) * LATTN_BLOCK_);
    char *page = 0;
    if (b < rule->sink_blocks || b >= keep)
      page = lattn_page_at_(lattn_cache_pool_(cache), *lattn_page_entry_(cache, rule, b)) + part;
    for (int64_t slot = b * LATTN_BLOCK_; slot < stop; slot++) {
      if (cache->n_holes && lattn_in_hole_(cache, slot, 0)) continue;
      if (values)
        lattn_stream_value_(st, &rule->s, cache->dv, page, slot % LATTN_BLOCK_);
      else
        lattn_stream_key_(st, &rule->s, cache->dk, page, slot % LATTN_BLOCK_);
    }
  }
}

LATTN_FN_ void lattn_stream_head_(lattn_stream_ *st, const lattn_cache *cache,
                                  const lattn_rule_ *rule, int64_t keep) {
  for (int64_t i = 0; i < rule->s.n_keys; i++)
    lattn_stream_part_(st, cache, rule, 0, i * rule->s.key_stride, keep);
  for (int64_t i = 0; i < rule->s.n_values; i++)
    lattn_stream_part_(st, cache, rule, 1, i * rule->s.value_stride, keep);
}

/* The first prefix of a head's sums. */
LATTN_FN_ void lattn_stream_sums_(lattn_stream_ *st, const lattn_cache *cache, int32_t kv) {
  const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
  lattn_sums_ t;
  int64_t floats;
  if (!rule->sums) return;
  t = lattn_cache_sums_(cache, kv, 0);
  floats = t.least ? 2 * cache->dk : 0;
  for (int64_t i = 0; i < (rule->sums_bytes - 4 * floats) / 8; i++) {
    uint64_t x;
    if (st->read) x = lattn_stream_get_(st, 8);
    else LATTN_MEMCPY_(&x, t.to + i, 8);
    if (st->read) LATTN_MEMCPY_(t.to + i, &x, 8);
    else lattn_stream_put_(st, x, 8);
  }
  if (floats) lattn_stream_row_(st, (char *)t.least, 4, floats, 1);
}

/* The rule as it is saved: what it would hold after an extend; with sums, which would have to take
   up what goes, what it holds. */
LATTN_FN_ lattn_rule_ lattn_saved_rule_(const lattn_cache *cache, int32_t kv) {
  lattn_rule_ rule = *lattn_cache_rule_(cache, kv);
  if (rule.sums) return rule;
  rule.first_block =
      lattn_max_(rule.first_block, lattn_keep_from_(cache, &rule, cache->n_tokens));
  return rule;
}

/* Slots [0, *sink_end) and [*first, n_slots) of a head; returns how many tokens those are. */
LATTN_FN_ int64_t lattn_saved_range_(const lattn_cache *cache, const lattn_rule_ *rule,
                                     int64_t *sink_end, int64_t *first) {
  int64_t slots = lattn_head_slots_(cache, rule), sinks, begin, end;
  lattn_held_blocks_(cache, rule, slots, &sinks, &begin, &end);
  while (begin > sinks && lattn_is_gone_(cache, begin - 1)) { /* gone, or evicted before */
    int32_t hole = lattn_holes_until_(cache, (begin - 1) * LATTN_BLOCK_) - 1;
    begin = lattn_max_(sinks, lattn_blocks_(lattn_holes_(cache)[hole].from));
  }
  *sink_end = lattn_min_(sinks * LATTN_BLOCK_, slots);
  *first = lattn_min_(begin * LATTN_BLOCK_, slots);
  return lattn_position_from_(cache, *sink_end) + cache->n_tokens - rule->shift -
         lattn_position_from_(cache, *first);
}

LATTN_FN_ int64_t lattn_marks_(const lattn_cache *cache) {
  int64_t n = 0;
  for (int32_t i = 0; i < cache->n_kv; i++) n += lattn_cache_rule_(cache, i)->mark != 0;
  return n;
}

/* Heads that are chosen at marks: files of caches that have some are of version 2. */
LATTN_FN_ int64_t lattn_n_chosen_(const lattn_cache *cache) {
  int64_t n = 0;
  for (int32_t i = 0; i < cache->n_kv; i++) n += lattn_chooses_(lattn_cache_rule_(cache, i));
  return n;
}

/* Rows of queries of the head that are saved. */
LATTN_FN_ int64_t lattn_saved_rows_(const lattn_cache *cache, const lattn_rule_ *rule) {
  return rule->c.queries ? lattn_min_(lattn_query_rows_(cache, rule), rule->c.recent) : 0;
}
LATTN_FN_ int64_t lattn_saved_extra_(const lattn_cache *cache, const lattn_rule_ *rule) {
  int64_t sums = rule->c.mass ? 8 * lattn_head_slots_(cache, rule) : 0;
  return 4 * rule->kept + lattn_saved_rows_(cache, rule) * lattn_query_bytes_(cache) + sums;
}

/* What a head chooses by; when reading, returns whether its positions rise to those of its mark. */
LATTN_FN_ int lattn_stream_extra_(lattn_stream_ *st, const lattn_cache *cache,
                                  const lattn_rule_ *rule) {
  int64_t rows = lattn_saved_rows_(cache, rule), n = rule->c.mass ? cache->n_tokens : 0, last = -1;
  int right = 1;
  lattn_stream_row_(st, (char *)(void *)lattn_list_(cache, rule), 4, rule->kept, 1);
  for (int64_t i = 0; i < rule->kept; i++) {
    int64_t position = lattn_list_(cache, rule)[i];
    right &= position > last && position < rule->kept + rule->shift;
    last = position;
  }
  for (int64_t i = cache->n_tokens - rows; i < cache->n_tokens; i++)
    lattn_stream_row_(st, lattn_query_row_(cache, rule, i), 4, lattn_query_bytes_(cache) / 4, 1);
  for (int64_t i = 0; i < n - rule->shift; i++) {
    uint64_t bits;
    LATTN_MEMCPY_(&bits, lattn_mass_(cache, rule) + i, sizeof bits);
    if (st->read)
      bits = lattn_stream_get_(st, 8);
    else
      lattn_stream_put_(st, bits, 8);
    LATTN_MEMCPY_(lattn_mass_(cache, rule) + i, &bits, sizeof bits);
  }
  return right;
}

LATTN_FN_ uint64_t lattn_saved_header_(const lattn_cache *cache) {
  return LATTN_SAVED_FIXED_ + 16 * ((uint64_t)cache->n_holes + (uint64_t)cache->n_kv) +
         8 * (uint64_t)lattn_marks_(cache) + 24 * (uint64_t)lattn_n_chosen_(cache) +
         LATTN_SAVED_CHECK_;
}

/* Bytes of the whole saved cache. */
LATTN_FN_ uint64_t lattn_saved_bytes_(const lattn_cache *cache) {
  uint64_t bytes = lattn_saved_header_(cache) + LATTN_SAVED_CHECK_;
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_rule_ rule = lattn_saved_rule_(cache, i);
    int64_t sink_end, first;
    bytes += (uint64_t)lattn_saved_range_(cache, &rule, &sink_end, &first) *
                 (uint64_t)lattn_token_bytes_(&rule.s) + (uint64_t)rule.sums_bytes;
    if (lattn_chooses_(&rule)) bytes += (uint64_t)lattn_saved_extra_(cache, &rule);
  }
  return bytes;
}

/* Key heads and value heads of a bundle, as saved. */
LATTN_FN_ uint64_t lattn_saved_bundle_(const lattn_cache *cache) {
  if (cache->n_keys == 1 && cache->n_values == 1) return 0;
  return (uint64_t)cache->n_keys | (uint64_t)cache->n_values << 32;
}

LATTN_FN_ void lattn_save_header_(lattn_stream_ *st, const lattn_cache *cache) {
  const char *magic = "LATTNKVC";
  const int64_t counts[7] = {cache->n_kv,     cache->n_holes,    cache->dk,          cache->dv,
                             cache->key_type, cache->value_type, lattn_marks_(cache)};
  for (int i = 0; i < 8; i++) lattn_stream_put_(st, (uint64_t)(unsigned char)magic[i], 1);
  lattn_stream_put_(st, lattn_n_chosen_(cache) ? 2 : 1, 4);
  lattn_stream_put_(st, lattn_saved_header_(cache), 4);
  lattn_stream_put_(st, cache->fingerprint, 8);
  lattn_stream_put_(st, (uint64_t)cache->n_tokens, 8);
  lattn_stream_put_(st, (uint64_t)lattn_stored_slots_(cache), 8);
  lattn_stream_put_(st, lattn_saved_bytes_(cache), 8);
  for (int i = 0; i < 7; i++) lattn_stream_put_(st, (uint64_t)counts[i], 4);
  lattn_stream_put_(st, lattn_saved_bundle_(cache), 8);
  for (int i = 0; i < 3; i++) lattn_stream_put_(st, 0, 4);
  for (int32_t i = 0; i < cache->n_holes; i++) {
    lattn_stream_put_(st, (uint64_t)lattn_holes_(cache)[i].from, 8);
    lattn_stream_put_(st, (uint64_t)lattn_holes_(cache)[i].to, 8);
  }
  for (int32_t i = 0; i < cache->n_kv; i++)
    if (lattn_cache_rule_(cache, i)->mark)
      lattn_stream_put_(st, (uint64_t)(lattn_cache_rule_(cache, i)->marked + 1), 8);
  for (int32_t i = 0; i < cache->n_kv; i++) {
    lattn_rule_ rule = lattn_saved_rule_(cache, i);
    int64_t sink_end, first;
    lattn_saved_range_(cache, &rule, &sink_end, &first);
    lattn_stream_put_(st, (uint64_t)sink_end, 8);
    lattn_stream_put_(st, (uint64_t)first, 8);
  }
  for (int32_t i = 0; i < cache->n_kv; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, i);
    int64_t seen = rule->c.seen_from;
    if (!lattn_chooses_(rule)) continue;
    if (rule->c.queries) seen = cache->n_tokens - lattn_saved_rows_(cache, rule);
    lattn_stream_put_(st, (uint64_t)rule->kept, 8);
    lattn_stream_put_(st, (uint64_t)rule->shift, 8);
    lattn_stream_put_(st, (uint64_t)seen, 8);
  }
  lattn_stream_put_sum_(st);
}

LATTN_API lattn_status lattn_cache_save(const lattn_cache *cache, lattn_write_function write,
                                        void *user, uint64_t *bytes) {
  lattn_stream_ st;
  if (!cache || (!write && !bytes)) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  if (write) {
    lattn_stream_init_(&st, write, 0, user);
    lattn_save_header_(&st, cache);
    for (int32_t i = 0; i < cache->n_kv && !st.failed; i++) {
      lattn_rule_ rule = lattn_saved_rule_(cache, i);
      lattn_stream_sums_(&st, cache, i);
      lattn_stream_head_(&st, cache, &rule, 0);
      if (lattn_chooses_(&rule)) lattn_stream_extra_(&st, cache, &rule);
    }
    lattn_stream_put_sum_(&st);
    lattn_stream_flush_(&st);
    if (st.failed) return LATTN_E_IO;
  }
  if (bytes) *bytes = lattn_saved_bytes_(cache);
  return LATTN_OK;
}

/* What a loading reads before it believes the rest. */
typedef struct lattn_saved_ {
  uint64_t version, header, fingerprint, n_tokens, n_slots, bytes, bundle;
  int64_t counts[7], n_chosen;
} lattn_saved_;

/* The fixed part of the header. */
LATTN_FN_ lattn_status lattn_load_fixed_(lattn_stream_ *st, lattn_saved_ *h) {
  const char *magic = "LATTNKVC";
  uint64_t least;
  int known = 1;
  st->left = LATTN_SAVED_FIXED_;
  for (int i = 0; i < 8; i++)
    if (lattn_stream_get_(st, 1) != (uint64_t)(unsigned char)magic[i]) known = 0;
  h->version = lattn_stream_get_(st, 4);
  if (h->version != 1 && h->version != 2) known = 0;
  h->header = lattn_stream_get_(st, 4);
  h->fingerprint = lattn_stream_get_(st, 8);
  h->n_tokens = lattn_stream_get_(st, 8);
  h->n_slots = lattn_stream_get_(st, 8);
  h->bytes = lattn_stream_get_(st, 8);
  for (int i = 0; i < 7; i++) h->counts[i] = (int64_t)lattn_stream_get_(st, 4);
  h->bundle = lattn_stream_get_(st, 8);
  for (int i = 0; i < 3; i++)
    if (lattn_stream_get_(st, 4)) known = 0;
  if (st->failed) return LATTN_E_IO;
  if (!known || h->n_tokens > h->n_slots || h->n_slots > (uint64_t)LATTN_MAX_POSITION_)
    return LATTN_E_FORMAT;
  least = LATTN_SAVED_FIXED_ + LATTN_SAVED_CHECK_ +
          16 * ((uint64_t)h->counts[0] + (uint64_t)h->counts[1]) + 8 * (uint64_t)h->counts[6];
  if (h->header < least || (h->header - least) % 24) return LATTN_E_FORMAT;
  h->n_chosen = (int64_t)((h->header - least) / 24);
  if (h->n_chosen > h->counts[0] || (h->version == 2) != (h->n_chosen > 0)) return LATTN_E_FORMAT;
  return LATTN_OK;
}

/* Does what the header says go with the cache? If not, the ranges are only read past, so that the
   checksum decides first. */
LATTN_FN_ lattn_status lattn_load_suits_(lattn_stream_ *st, const lattn_cache *cache,
                                         const lattn_saved_ *h) {
  lattn_status s = LATTN_OK;
  if (h->n_tokens > (uint64_t)cache->capacity && !cache->open) s = LATTN_E_FULL;
  if (h->counts[1] > cache->max_holes) s = LATTN_E_FULL;
  if (h->fingerprint != cache->fingerprint || h->counts[0] != cache->n_kv ||
      h->counts[2] != cache->dk || h->counts[3] != cache->dv || h->counts[4] != cache->key_type ||
      h->counts[5] != cache->value_type || h->counts[6] != lattn_marks_(cache) ||
      h->n_chosen != lattn_n_chosen_(cache) || h->bundle != lattn_saved_bundle_(cache))
    s = LATTN_E_CONFIG;
  if (!s) return s;
  for (uint64_t i = LATTN_SAVED_FIXED_ + LATTN_SAVED_CHECK_; i < h->header && !st->failed; i += 8)
    lattn_stream_get_(st, 8);
  if (!lattn_stream_check_(st)) s = LATTN_E_FORMAT;
  return st->failed ? LATTN_E_IO : s;
}

/* What a head held of the time before its mark. */
LATTN_FN_ lattn_status lattn_load_chosen_(lattn_stream_ *st, lattn_cache *own, int32_t kv) {
  lattn_rule_ *rule = lattn_rules_(own) + kv;
  uint64_t kept = lattn_stream_get_(st, 8), shift = lattn_stream_get_(st, 8);
  uint64_t seen = lattn_stream_get_(st, 8), n = (uint64_t)own->n_tokens;
  rule->kept = rule->shift = 0;
  rule->c.seen_from = own->n_tokens;
  if (kept > n || shift > n - kept || seen > n || !kept != !shift) return LATTN_E_FORMAT;
  if (rule->c.queries && n - seen > (uint64_t)rule->c.recent) return LATTN_E_FORMAT;
  if (kept && kept < (uint64_t)rule->c.recent) return LATTN_E_FORMAT;
  if (n - shift > (uint64_t)own->capacity) return LATTN_E_FULL;
  if (kept > (uint64_t)rule->c.most_kept) return LATTN_E_FORMAT;
  rule->kept = (int64_t)kept;
  rule->shift = (int64_t)shift;
  rule->c.seen_from = (int64_t)seen;
  return LATTN_OK;
}

/* Marks and ranges, into a cache that is to hold them; its rules then begin where the file does.
   Returns whether they can be right, if the holes are. */
LATTN_FN_ int lattn_load_heads_(lattn_stream_ *st, lattn_cache *own, const lattn_saved_ *h,
                                int right) {
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ *rule = lattn_rules_(own) + i;
    uint64_t marked = rule->mark ? lattn_stream_get_(st, 8) : 0;
    if (marked > h->n_tokens + 1) right = 0;
    lattn_set_marked_(rule, right ? (int64_t)marked - 1 : -1);
  }
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ *rule = lattn_rules_(own) + i;
    uint64_t sink_end = lattn_stream_get_(st, 8), first = lattn_stream_get_(st, 8);
    int64_t expected, begin;
    if (first > h->n_slots || (!rule->window && first > sink_end)) right = 0;
    rule->first_block = right ? lattn_blocks_((int64_t)first) : 0;
    if (right) lattn_saved_range_(own, rule, &expected, &begin);
    if (right && ((uint64_t)expected != sink_end || (uint64_t)begin != first)) right = 0;
    if (right && !lattn_resident_(own, rule, own->n_tokens - rule->window + 1, own->n_tokens))
      right = 0;
    if (right && !lattn_tail_held_(own, rule)) right = 0;
    if (own->n_holes && (rule->sums || rule->mark || lattn_chooses_(rule) ||
                         lattn_holes_(own)->from < rule->sinks))
      right = 0;
  }
  return right;
}

/* Holes, and what the heads hold of the slots. */
LATTN_FN_ lattn_status lattn_load_ranges_(lattn_stream_ *st, lattn_cache *own,
                                          const lattn_saved_ *h) {
  int64_t slots = (int64_t)h->n_slots, last = -1;
  int right = 1, full = 0;
  own->n_holes = (int32_t)h->counts[1];
  for (int32_t i = 0; i < own->n_holes; i++) {
    lattn_hole_ *hole = lattn_holes_(own) + i;
    uint64_t from = lattn_stream_get_(st, 8), to = lattn_stream_get_(st, 8);
    if (from >= to || to >= h->n_slots || (int64_t)from <= last) right = 0;
    if (!right) from = to = 0;
    hole->from = (int64_t)from;
    hole->to = last = (int64_t)to;
  }
  lattn_sum_holes_(own);
  own->n_tokens = slots - own->removed;
  if (own->n_tokens != (int64_t)h->n_tokens) right = 0;
  right = lattn_load_heads_(st, own, h, right);
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_status s =
        lattn_chooses_(lattn_cache_rule_(own, i)) ? lattn_load_chosen_(st, own, i) : LATTN_OK;
    if (s == LATTN_E_FORMAT) right = 0;
    full |= s == LATTN_E_FULL;
  }
  if (!lattn_stream_check_(st)) right = 0;
  if (st->failed) return LATTN_E_IO;
  if (!right) return LATTN_E_FORMAT;
  if (full) return LATTN_E_FULL;
  return lattn_saved_bytes_(own) <= h->bytes ? LATTN_OK : LATTN_E_FORMAT;
}

/* Takes the pages of what the cache is to hold: of what is in the file, what its slack wants. */
LATTN_FN_ lattn_status lattn_load_pages_(lattn_cache *own) {
  lattn_pool *pool = lattn_cache_pool_(own);
  int64_t sinks, first, end;
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ rule = lattn_saved_rule_(own, i);
    int64_t slots = lattn_head_slots_(own, &rule);
    int64_t n = lattn_held_blocks_(own, &rule, slots, &sinks, &first, &end);
    if (rule.sums && lattn_ring_short_(&rule, first, end)) return LATTN_E_FULL;
    if (!lattn_pool_reserve_(pool, rule.s.page_size, (uint64_t)n)) return LATTN_E_FULL;
  }
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ rule = lattn_saved_rule_(own, i);
    int64_t slots = lattn_head_slots_(own, &rule);
    for (int64_t b = lattn_first_held_(own, &rule); b < lattn_blocks_(slots);
         b = lattn_next_held_(own, &rule, b))
      *lattn_page_entry_(own, &rule, b) = lattn_pool_take_(pool, rule.s.page_size);
  }
  return LATTN_OK;
}

/* Do sums that were read go with the tokens? Those behind them are to be held. */
LATTN_FN_ int lattn_sums_suit_(const lattn_cache *own, int32_t kv) {
  const lattn_rule_ *rule = lattn_cache_rule_(own, kv);
  int64_t end = lattn_dropped_end_(rule, own->n_tokens), to;
  if (!rule->sums) return 1;
  to = *lattn_cache_sums_(own, kv, 0).to;
  if (lattn_chooses_(rule)) return to == rule->shift;
  if (to < rule->sinks || to > lattn_max_(end, rule->sinks)) return 0;
  return to >= rule->first_block * LATTN_BLOCK_ || rule->first_block <= rule->sink_blocks ||
         end <= rule->sink_blocks * LATTN_BLOCK_;
}

/* Fills a cache with empty tables; on an error it may hold pages, if *taken. */
LATTN_FN_ lattn_status lattn_load_(lattn_stream_ *st, lattn_cache *own, int *taken) {
  lattn_saved_ h;
  uint64_t bytes;
  lattn_status s = lattn_load_fixed_(st, &h);
  if (s) return s;
  st->left = h.header - LATTN_SAVED_FIXED_;
  s = lattn_load_suits_(st, own, &h);
  if (!s) s = lattn_load_ranges_(st, own, &h);
  if (s) return s;
  bytes = lattn_saved_header_(own) + LATTN_SAVED_CHECK_;
  for (int32_t i = 0; i < own->n_kv; i++) {
    int64_t sink_end, first;
    const lattn_rule_ *rule = lattn_cache_rule_(own, i);
    bytes += (uint64_t)lattn_saved_range_(own, rule, &sink_end, &first) *
                 (uint64_t)lattn_token_bytes_(&rule->s) + (uint64_t)rule->sums_bytes;
    if (lattn_chooses_(rule)) bytes += (uint64_t)lattn_saved_extra_(own, rule);
  }
  if (bytes != h.bytes) return LATTN_E_FORMAT;
  s = lattn_load_pages_(own);
  if (s) return s;
  *taken = 1;
  st->left = h.bytes - h.header;
  for (int32_t i = 0; i < own->n_kv && !st->failed; i++) {
    lattn_rule_ *rule = lattn_rules_(own) + i, kept = lattn_saved_rule_(own, i);
    lattn_stream_sums_(st, own, i);
    lattn_stream_head_(st, own, rule, kept.first_block);
    if (lattn_chooses_(rule) && !lattn_stream_extra_(st, own, rule)) s = LATTN_E_FORMAT;
  }
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ kept = lattn_saved_rule_(own, i);
    lattn_rules_(own)[i].first_block = kept.first_block;
  }
  for (int32_t i = 0; i < own->n_kv; i++)
    if (!lattn_sums_suit_(own, i)) s = LATTN_E_FORMAT;
  if (!lattn_stream_check_(st)) s = LATTN_E_FORMAT;
  return st->failed ? LATTN_E_IO : s;
}

LATTN_API lattn_status lattn_cache_load(lattn_cache *cache, lattn_read_function read, void *user) {
  lattn_stream_ st;
  lattn_pool *pool;
  lattn_cache *own; /* built beside the cache, then put in its place */
  int64_t at;
  int taken = 0;
  lattn_status s;
  if (!cache || !read) return LATTN_E_NULL;
  if (cache->n_drafts) return LATTN_E_STATE;
  pool = lattn_cache_pool_(cache);
  at = (int64_t)lattn_pool_take_table_(pool, cache->bytes);
  if (!at) return LATTN_E_FULL;
  own = (lattn_cache *)(void *)((char *)pool + at);
  LATTN_MEMCPY_(own, cache, (size_t)cache->bytes);
  own->from_pool = at;
  own->n_tokens = own->removed = own->n_holes = 0;
  for (int32_t i = 0; i < own->n_kv; i++) {
    lattn_rule_ *rule = lattn_rules_(own) + i;
    rule->kept = rule->shift = rule->c.seen_from = 0;
  }
  lattn_stream_init_(&st, 0, read, user);
  s = lattn_load_(&st, own, &taken);
  if (s && taken) lattn_cut_(own, 0);
  if (!s) {
    lattn_cut_(cache, 0);
    own->from_pool = cache->from_pool;
    LATTN_MEMCPY_(cache, own, (size_t)cache->bytes);
    for (int32_t i = 0; i < cache->n_kv; i++) /* the other prefix begins with the one read */
      if (lattn_cache_rule_(cache, i)->sums)
        LATTN_MEMCPY_(lattn_cache_sums_(cache, i, 1).to, lattn_cache_sums_(cache, i, 0).to,
                      (size_t)lattn_cache_rule_(cache, i)->sums_bytes);
    lattn_sums_settle_all_(cache);
  }
  lattn_pool_return_table_(pool, (uint64_t)at, cache->bytes);
  lattn_pool_settle_(pool);
  return s;
}

/* The inverse of (c, s) is (c, -s) / (c^2 + s^2). */
LATTN_FN_ void lattn_turn_back_(float *x, float *y, float c, float s) {
  float size = lattn_fma_(c, c, lattn_fma_(s, s, 0.0f));
  lattn_turn_pair_(x, y, c / size, -s / size);
}

/* The key of one slot, turned back if angles is there, into k, from element `to` on. */
LATTN_FN_ int lattn_read_key_(const lattn_cache *cache, const lattn_storage_ *st, const char *page,
                              int64_t slot, const lattn_tensor *k, int64_t to, float *angles) {
  int64_t lane = slot % LATTN_BLOCK_, at = lane / 16 * 16 * cache->dk + lane % 16;
  int64_t pairs = angles ? cache->n_dims / 2 : 0, d0 = cache->first_dim, step = 16;
  int64_t next = cache->layout == LATTN_ROTARY_INTERLEAVED ? 2 : 1;
  int64_t other = cache->layout == LATTN_ROTARY_INTERLEAVED ? 1 : pairs;
  float row[LATTN_MAX_STACK_DIM_]; /* of integers */
  const void *from = page;
  int32_t type = st->key_type;
  void *out = (void *)(uintptr_t)k->data;
  int lost = 0;
  if (lattn_is_int_(type)) {
    lattn_get_key_ints_(page + lane / 16 * st->panel_bytes, type, (int)(lane % 16), row, cache->dk);
    if (st->key_basis) lattn_hadamard_(row, cache->dk, st->key_basis);
    from = row;
    type = LATTN_F32;
    at = 0;
    step = 1;
  }
  for (int64_t d = 0; d < cache->dk; d++)
    if (!pairs || d < d0 || d >= d0 + 2 * pairs)
      lost |= lattn_put_(out, k->type, to + d, lattn_get_(from, type, at + d * step));
  for (int64_t f = 0; f < pairs; f++) {
    int64_t d = d0 + f * next;
    float x = lattn_get_(from, type, at + d * step);
    float y = lattn_get_(from, type, at + (d + other) * step);
    lattn_turn_back_(&x, &y, angles[f], angles[pairs + f]);
    lost |= lattn_put_(out, k->type, to + d, x);
    lost |= lattn_put_(out, k->type, to + d + other, y);
  }
  return lost;
}

LATTN_FN_ int lattn_read_value_(const lattn_cache *cache, const lattn_storage_ *st,
                                const char *page, int64_t lane, const lattn_tensor *v, int64_t to) {
  float row[LATTN_MAX_STACK_DIM_]; /* of integers */
  const char *values = page + st->value_at;
  int lost = 0;
  if (lattn_is_int_(st->value_type)) {
    lattn_widen_ints_(row, values + lane * st->row_bytes, st->value_type, cache->dv);
    if (st->value_type == LATTN_I8)
      lattn_scale_(row, cache->dv,
                   lattn_value_scale_(values + lattn_scales_at_(st, LATTN_BLOCK_), lane));
    if (st->value_basis) lattn_hadamard_(row, cache->dv, st->value_basis);
  }
  for (int64_t d = 0; d < cache->dv; d++)
    lost |= lattn_put_((void *)(uintptr_t)v->data, v->type, to + d,
                       lattn_is_int_(st->value_type)
                           ? row[d] : lattn_get_(values, st->value_type, lane * cache->dv + d));
  return lost;
}

/* Reads tokens whose pages are there. */
LATTN_NOINLINE_ int lattn_read_tokens_(const lattn_cache *cache, int32_t kv, int64_t first,
                                       int64_t n, const lattn_tensor *k, const lattn_tensor *v,
                                       int unrotated) {
  const lattn_storage_ *st = &lattn_cache_rule_(cache, kv)->s;
  lattn_turning_ turning = lattn_cache_turning_(cache);
  float angles[2 * LATTN_MAX_PAIRS_];
  int lost = 0;
  for (int64_t i = 0; i < n; i++) {
    const lattn_rule_ *rule = lattn_cache_rule_(cache, kv);
    int64_t slot = lattn_find_slot_(cache, rule, first + i);
    const char *page = lattn_cache_page_(cache, kv, slot / LATTN_BLOCK_);
    if (unrotated) lattn_angles_(angles, &turning, lattn_slot_of_(cache, first + i));
    for (int64_t j = 0; k->data && j < st->n_keys; j++)
      lost |= lattn_read_key_(cache, st, page + j * st->key_stride, slot, k,
                              i * k->stride_token + j * k->stride_head, unrotated ? angles : 0);
    for (int64_t j = 0; v->data && j < st->n_values; j++)
      lost |= lattn_read_value_(cache, st, page + j * st->value_stride, slot % LATTN_BLOCK_, v,
                                i * v->stride_token + j * v->stride_head);
  }
  return lost;
}

LATTN_API lattn_status lattn_cache_read(const lattn_cache *cache, int32_t kv_head, int64_t first,
                                        lattn_tensor k, lattn_tensor v, int32_t flags) {
  static const lattn_names_ kn = LATTN_NAMES_("k"), vn = LATTN_NAMES_("v");
  const lattn_rule_ *rule;
  lattn_status s = LATTN_OK;
  lattn_fpenv_ saved;
  int64_t n;
  int lost;
  if (!cache || (!k.data && !v.data)) return LATTN_E_NULL;
  if (flags & ~LATTN_READ_UNROTATED) return LATTN_E_FIELD;
  if (kv_head < 0 || kv_head >= cache->n_kv) return LATTN_E_SHAPE;
  if (k.data) s = lattn_view_(&k, 1, 1, &kn, 0);
  if (!s && v.data) s = lattn_view_(&v, 1, 1, &vn, 0);
  if (s) return s;
  n = k.data ? k.n_tokens : v.n_tokens;
  if (k.data && (k.n_heads != cache->n_keys || k.dim != cache->dk)) return LATTN_E_SHAPE;
  if (v.data && (v.n_heads != cache->n_values || v.dim != cache->dv || v.n_tokens != n))
    return LATTN_E_SHAPE;
  if (first < 0 || first > cache->n_tokens || n > cache->n_tokens - first) return LATTN_E_SHAPE;
  if (k.data && v.data && lattn_overlap_(&k, &v)) return LATTN_E_ALIAS;
  rule = lattn_cache_rule_(cache, kv_head);
  for (int64_t i = first; i < first + n; i++) {
    int64_t slot = lattn_find_slot_(cache, rule, i), block = slot / LATTN_BLOCK_;
    if (slot < 0) return LATTN_E_EVICTED;
    if (block >= rule->sink_blocks && block < rule->first_block) return LATTN_E_EVICTED;
  }
  lattn_fpenv_enter_(&saved);
  lost = lattn_read_tokens_(cache, kv_head, first, n, &k, &v,
                            cache->rotates && (flags & LATTN_READ_UNROTATED));
  lattn_fpenv_leave_(&saved);
  return lost ? LATTN_OVERFLOWED : LATTN_OK;
}

/* ==== §9 merge ===================================================================================
   Partials of one row, folded by the segment tree (heads.md 9.3; the rule of lattn_height_),
   whatever the order of the list; those outside of the order come last, in the order given. A
   row is folded in strips of 128 columns, so a stack of subtrees fits in 12 KiB. */

enum { LATTN_MAX_PARTS_ = 1024, LATTN_STRIP_ = 128 }; /* a strip holds the largest basis */

typedef struct lattn_fold_ {
  int32_t mode, n, basis;
  const lattn_partial *parts;
  int16_t order[LATTN_MAX_PARTS_];
  int64_t dv, heads, rows;
  const float *sink_logits;
  const lattn_tensor *gate;
  lattn_tensor out;
  float *lse;
  lattn_partial *partial;
  int32_t n_workers, overflowed;
} lattn_fold_;

/* The maximum, sum and strip [c, c + n) of part p for a row, as the mode has them enter. */
LATTN_FN_ float lattn_part_enter_(const lattn_fold_ *fold, const lattn_partial *p, int64_t row,
                                  int64_t c, int n, float *sum, float strip[LATTN_STRIP_]) {
  float m = p->maximum[row], w = p->row_weights ? p->row_weights[row] : p->weight;
  const float *from = p->output + row * p->value_dim + c;
  if (lattn_is_empty_(m)) return m;
  if (fold->mode != LATTN_MERGE_LINEAR && lattn_is_empty_(w)) return w;
  *sum = p->sum[row];
  for (int i = 0; i < LATTN_STRIP_; i += 16) {
    int left = n - i < 0 ? 0 : n - i < 16 ? n - i : 16;
    lattn_v16_ x = left ? lattn_v_load_n_(from + i, left) : lattn_v_set_(0);
    if (fold->mode != LATTN_MERGE_ADD) x = lattn_v_div_(x, lattn_v_set_(*sum));
    lattn_v_store_(strip + i, x);
  }
  if (fold->mode == LATTN_MERGE_ADD) return m + w;
  *sum = 1.0f;
  return w;
}

/* Folds one strip of a row over all parts, by the tree. */
LATTN_FN_ void lattn_fold_strip_(const lattn_fold_ *fold, int64_t row, int64_t c, int n,
                                 float *maximum, float *sum, float strip[LATTN_STRIP_]) {
  float m[LATTN_MAX_DEPTH_ + 2], l[LATTN_MAX_DEPTH_ + 2], acc[LATTN_MAX_DEPTH_ + 2][LATTN_STRIP_];
  int64_t leaf[LATTN_MAX_DEPTH_ + 2];
  int depth = 0, i = 0;
  for (; i < fold->n && fold->parts[fold->order[i]].n_segments > 0; i++) {
    const lattn_partial *p = fold->parts + fold->order[i];
    float part_m = lattn_part_enter_(fold, p, row, c, n, sum, strip);
    if (lattn_is_empty_(part_m)) continue;
    while (depth >= 2 && lattn_height_(leaf[depth - 2], leaf[depth - 1]) <
                             lattn_height_(leaf[depth - 1], p->first_segment)) {
      depth--;
      lattn_merge_row_(m + depth - 1, l + depth - 1, acc[depth - 1], m[depth], l[depth], acc[depth],
                       LATTN_STRIP_);
    }
    if (depth && leaf[depth - 1] == p->first_segment) { /* ranges that overlap: in order */
      lattn_merge_row_(m + depth - 1, l + depth - 1, acc[depth - 1], part_m, *sum, strip,
                       LATTN_STRIP_);
      continue;
    }
    m[depth] = part_m;
    l[depth] = *sum;
    leaf[depth] = p->first_segment;
    LATTN_MEMCPY_(acc[depth++], strip, sizeof acc[0]);
  }
  for (; depth > 1; depth--)
    lattn_merge_row_(m + depth - 2, l + depth - 2, acc[depth - 2], m[depth - 1], l[depth - 1],
                     acc[depth - 1], LATTN_STRIP_);
  if (depth == 0) m[0] = -LATTN_INFINITY_, l[0] = 0;
  for (; i < fold->n; i++) {
    float part_m =
        lattn_part_enter_(fold, fold->parts + fold->order[i], row, c, n, sum, strip);
    lattn_merge_row_(m, l, acc[0], part_m, *sum, strip, LATTN_STRIP_);
  }
  *maximum = m[0];
  *sum = l[0];
  if (!lattn_is_empty_(m[0])) LATTN_MEMCPY_(strip, acc[0], sizeof acc[0]);
}

/* Linear mode: out = sum of weight * part, no division; what saw no key adds nothing. */
LATTN_FN_ void lattn_fold_linear_(const lattn_fold_ *fold, int64_t row, int64_t c, int n,
                                  float strip[LATTN_STRIP_]) {
  float part[LATTN_STRIP_], sum;
  LATTN_MEMSET_(strip, 0, LATTN_STRIP_ * sizeof *strip);
  for (int i = 0; i < fold->n; i++) {
    const lattn_partial *p = fold->parts + i;
    float w = p->row_weights ? p->row_weights[row] : p->weight;
    if (lattn_is_empty_(p->maximum[row])) continue;
    lattn_part_enter_(fold, p, row, c, n, &sum, part);
    for (int j = 0; j < n; j++) strip[j] = lattn_fma_(w, part[j], strip[j]);
  }
}

LATTN_NOINLINE_ void lattn_fold_rows_(lattn_fold_ *fold, int64_t from, int64_t to) {
  for (int64_t row = from; row < to; row++) {
    int64_t token = row / fold->heads, head = row % fold->heads;
    for (int64_t c = 0; c < fold->dv; c += LATTN_STRIP_) {
      float strip[LATTN_STRIP_] = {0}, m = 0, l = 0, z = -LATTN_INFINITY_, lse;
      int n = fold->dv - c < LATTN_STRIP_ ? (int)(fold->dv - c) : LATTN_STRIP_;
      lattn_tensor out = fold->out, gate;
      if (fold->mode == LATTN_MERGE_LINEAR) {
        lattn_fold_linear_(fold, row, c, n, strip);
        l = 1; /* m = 0, sum = 1: finishing then divides by 1, which changes no bit */
      } else {
        lattn_fold_strip_(fold, row, c, n, &m, &l, strip);
        if (fold->sink_logits) z = fold->sink_logits[head];
      }
      if (fold->partial) {
        fold->partial->maximum[row] = m;
        fold->partial->sum[row] = lattn_is_empty_(m) ? 0.0f : l;
        for (int i = 0; i < n; i++)
          fold->partial->output[row * fold->dv + c + i] = lattn_is_empty_(m) ? 0.0f : strip[i];
      }
      if (out.data)
        out.data = (const char *)out.data + (size_t)c * lattn_type_size_(out.type);
      if (fold->gate) {
        gate = *fold->gate;
        if (gate.dim > 1)
          gate.data = (const char *)gate.data + (size_t)c * lattn_type_size_(gate.type);
      }
      if (lattn_finish_row_(m, l, strip, z, n, fold->basis, fold->gate ? &gate : 0, &out, token,
                            head, &lse, 0))
        lattn_raise_(&fold->overflowed);
      if (fold->lse) fold->lse[row] = fold->mode == LATTN_MERGE_LINEAR ? LATTN_NAN_ : lse;
    }
  }
}

LATTN_FN_ void lattn_fold_task_(void *context, int32_t index) {
  lattn_fold_ *fold = (lattn_fold_ *)context;
  lattn_fpenv_ saved;
  int64_t each = fold->rows / fold->n_workers, rest = fold->rows % fold->n_workers;
  int64_t from = each * index + lattn_min_(index, rest);
  lattn_fpenv_enter_(&saved);
  lattn_fold_rows_(fold, from, from + each + (index < rest));
  lattn_fpenv_leave_(&saved);
}

/* Every part has the shape of the first, known fields, and weights in range. */
LATTN_FN_ lattn_status lattn_check_parts_(const lattn_fold_ *fold, lattn_fault *f) {
  for (int32_t i = 0; i < fold->n; i++) {
    const lattn_partial *p = fold->parts + i;
    lattn_status s = lattn_check_partial_(p, fold->rows, fold->dv, f);
    if (s) return s;
    if (p->basis && (lattn_basis_(fold->dv) < p->basis || p->basis < 16 ||
                     (p->basis & (p->basis - 1))))
      return lattn_fail_(f, LATTN_E_FIELD, "partial.basis");
    if (p->basis != fold->parts->basis) return lattn_fail_(f, LATTN_E_TYPE, "partial.basis");
    if (p->n_segments < 0 || p->first_segment < 0)
      return lattn_fail_(f, LATTN_E_VALUE, "parts.first_segment");
    if (p->first_segment > LATTN_MAX_POSITION_ / LATTN_SEGMENT_ ||
        p->n_segments > LATTN_MAX_POSITION_ / LATTN_SEGMENT_)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "parts.first_segment");
    for (int64_t r = 0; r < (p->row_weights ? fold->rows : 1); r++) {
      float w = p->row_weights ? p->row_weights[r] : p->weight;
      if (!lattn_is_finite_(w) && !(lattn_is_empty_(w) && fold->mode != LATTN_MERGE_LINEAR))
        return lattn_fail_(f, LATTN_E_VALUE, "parts.weight");
    }
  }
  return LATTN_OK;
}

/* Parts in the order of their segments, then those without, each stable. */
LATTN_FN_ void lattn_sort_parts_(lattn_fold_ *fold) {
  for (int32_t i = 0; i < fold->n; i++) {
    const lattn_partial *p = fold->parts + i;
    int64_t key = p->n_segments > 0 ? p->first_segment : INT64_MAX;
    int32_t j = i;
    for (; j > 0; j--) {
      const lattn_partial *o = fold->parts + fold->order[j - 1];
      if ((o->n_segments > 0 ? o->first_segment : INT64_MAX) <= key) break;
      fold->order[j] = fold->order[j - 1];
    }
    fold->order[j] = (int16_t)i;
  }
}

/* Views, gate, sinks and the partial that comes out. */
LATTN_FN_ lattn_status lattn_check_merge_(lattn_fold_ *fold, lattn_job_ *job,
                                          const lattn_merge_options *o, lattn_fault *f) {
  static const lattn_names_ name = LATTN_NAMES_("out");
  lattn_tensor *out = &job->out;
  lattn_status s = lattn_view_(out, 1, o->partial == 0, &name, f);
  if (s) return s;
  fold->heads = out->n_heads;
  fold->dv = out->dim;
  fold->rows = lattn_times_(out->n_tokens, out->n_heads);
  if (fold->rows < 0) return lattn_fail_(f, LATTN_E_OVERFLOW, "out");
  s = lattn_check_parts_(fold, f);
  if (s) return s;
  job->q = *out; /* stands for the rows' shape in the checks shared with attend */
  job->q.data = 0;
  job->dv = out->dim;
  job->n_kv = (int32_t)out->n_heads;
  job->group = 1;
  job->dk = 1;
  job->o.gate = o->gate;
  job->o.sink_logits = o->sink_logits;
  s = lattn_check_extras_(job, 0, 0, f);
  if (!s) s = lattn_check_numbers_(job, f);
  if (!s) s = lattn_check_outputs_(job, o->partial, 0, 0, f);
  for (int32_t i = 0; i < fold->n && !s; i++) {
    const lattn_partial *p = fold->parts + i;
    lattn_tensor in[4];
    in[0] = lattn_floats_(p->maximum, fold->rows);
    in[1] = lattn_floats_(p->sum, fold->rows);
    in[2] = lattn_floats_(p->output, fold->rows * fold->dv);
    in[3] = lattn_floats_(p->row_weights, fold->rows);
    s = lattn_check_outputs_(job, o->partial, in, 4, f);
  }
  return s;
}

LATTN_API lattn_status lattn_merge(const lattn_merge_options *options, int64_t n,
                                   const lattn_partial *parts, lattn_tensor out, float *lse,
                                   const lattn_exec *exec) {
  lattn_merge_options o;
  lattn_exec ex;
  lattn_fold_ fold;
  lattn_job_ job;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  s = lattn_import_(&o, sizeof o, sizeof o, options);
  if (s) return lattn_fail_(ex.fault, s, "options.size");
  if (o.mode < LATTN_MERGE_ADD || o.mode > LATTN_MERGE_LINEAR)
    return lattn_fail_(ex.fault, LATTN_E_FIELD, "options.mode");
  if (n < 0 || n > LATTN_MAX_PARTS_) return lattn_fail_(ex.fault, LATTN_E_SHAPE, "n");
  if (n > 0 && !parts) return lattn_fail_(ex.fault, LATTN_E_NULL, "parts");
  if (o.mode == LATTN_MERGE_LINEAR && (o.partial || o.sink_logits))
    return lattn_fail_(ex.fault, LATTN_E_CONFIG, "options.mode");
  LATTN_MEMSET_(&fold, 0, sizeof fold);
  lattn_job_init_(&job);
  fold.mode = o.mode;
  fold.n = (int32_t)n;
  fold.parts = parts;
  job.out = out;
  job.lse = lse;
  s = lattn_check_merge_(&fold, &job, &o, ex.fault);
  if (s) return s;
  fold.out = job.out;
  fold.lse = lse;
  fold.gate = o.gate ? &job.gate : 0;
  fold.sink_logits = o.sink_logits;
  fold.partial = o.partial;
  fold.basis = n ? parts[0].basis : 0;
  if (fold.partial) fold.partial->basis = fold.basis;
  fold.n_workers = ex.n_threads > 0 ? ex.n_threads : 1;
  lattn_sort_parts_(&fold);
  if (fold.partial) {
    int64_t end = 0;
    fold.partial->first_segment = n && parts[fold.order[0]].n_segments > 0
                                      ? parts[fold.order[0]].first_segment : 0;
    for (int64_t i = 0; i < n; i++)
      if (parts[i].n_segments > 0)
        end = lattn_max_(end, parts[i].first_segment + parts[i].n_segments);
    fold.partial->n_segments = lattn_max_(0, end - fold.partial->first_segment);
  }
  lattn_parallel_(&ex, fold.n_workers, lattn_fold_task_, &fold);
  if (ex.tokens_done) *ex.tokens_done = job.out.n_tokens;
  return fold.overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

LATTN_NOINLINE_ void lattn_import_rows_(lattn_partial *p, const lattn_tensor *out, const float *lse,
                                        int32_t flags) {
  for (int64_t t = 0; t < out->n_tokens; t++)
    for (int64_t h = 0; h < out->n_heads; h++) {
      int64_t row = t * out->n_heads + h, at = t * out->stride_token + h * out->stride_head;
      float m = lse[row];
      if ((flags & LATTN_IMPORT_INFINITE_EMPTY) && lattn_bits_(m) == 0x7f800000u)
        m = -LATTN_INFINITY_;
      if (flags & LATTN_IMPORT_BASE2) m = m * 0.693147182f;
      p->maximum[row] = m;
      p->sum[row] = lattn_is_empty_(m) ? 0.0f : 1.0f;
      for (int64_t c = 0; c < out->dim; c++)
        p->output[row * out->dim + c] =
            lattn_is_empty_(m) ? 0.0f : lattn_get_(out->data, out->type, at + c);
    }
}

LATTN_API lattn_status lattn_partial_import(lattn_partial *partial, lattn_tensor out,
                                            const float *lse, int32_t flags) {
  static const lattn_names_ name = LATTN_NAMES_("out");
  lattn_fpenv_ saved;
  lattn_status s;
  int64_t rows;
  if (!partial) return LATTN_E_NULL;
  s = lattn_view_(&out, 0, 1, &name, 0);
  if (s) return s;
  if (flags & ~(LATTN_IMPORT_BASE2 | LATTN_IMPORT_INFINITE_EMPTY)) return LATTN_E_FIELD;
  rows = lattn_times_(out.n_tokens, out.n_heads);
  if (rows < 0) return LATTN_E_OVERFLOW;
  s = lattn_check_partial_(partial, rows, out.dim, 0);
  if (s) return s;
  if (rows > 0 && !lse) return LATTN_E_NULL;
  partial->first_segment = partial->n_segments = 0;
  partial->basis = 0;
  lattn_fpenv_enter_(&saved);
  lattn_import_rows_(partial, &out, lse, flags);
  lattn_fpenv_leave_(&saved);
  return LATTN_OK;
}

/* ==== §10 advance ================================================================================
   A linear state keeps S for each of its heads in tiles of 32 columns, [tile][feature][columns],
   beside it a list of updates to come: the newest token's k and x, or those of drafts, for S = S +
   k x^T. A token passes once over a tile: each row applies what is pending, then adds to the
   prediction P = S^T k and to the reading R = S^T q; x = beta (v - P) is the next pending update,
   and out = R + (q . k) x what the token reads of its own write. So one token and many have the
   same operations on each element, in the same order; columns are independent, and a tile stays in
   the first-level cache while all tokens of a chunk pass over it. Without a correction x is v, and
   four tokens share a pass.

   Decay costs no operation on an element: S is kept divided by exp(L), L the sum of the log decays
   since the last fold, in double; k (or x, where all channels decay alike) is divided by it, q
   multiplied. Where L would fall below -24 in any channel, the token folds: the next pass
   multiplies S by exp(L), and L begins at 0. When that is depends on the tokens alone. No exponent
   is above 0.

   Cost of a token and head: features * columns * 2 multiply-adds (3 with a correction), one load
   and store of the tile by as many tokens as share a pass; of the rest, (5 ... 12) * features
   operations. On a Zen 4, delta rule, 128 x 128: 0.65 of the multiply-adds; without, 0.66 ... 0.70
   (bench: state_delta, state_linear). */

enum {
  LATTN_TILE_COLUMNS_ = 32,
  LATTN_CHUNK_TOKENS_ = 32, /* prepared at a time, with scratch */
  LATTN_STATE_DRAFTS_ = 16,
  LATTN_MAX_HINTS_ = 128,     /* of one pass */
  LATTN_STACK_STATE_ = 15360 /* bytes of a task's workspace without scratch */
};
#define LATTN_FOLD_AT_ 24.0f /* a fold is due when L < -24 */
#define LATTN_LEAST_DECAY_ (-80.0f)

/* ---- arithmetic in double: where sums of a million tokens must keep their last digits ---- */

/* The fixed tree of lattn_v_reduce_add_. */
LATTN_FN_ double lattn_reduce64_(double x[16]) {
  for (int w = 8; w > 0; w /= 2)
    for (int t = 0; t < w; t++) x[t] = x[t] + x[t + w];
  return x[0];
}

/* sum_i (x_i + more) (z_i + more), i < count, in 16 lanes. */
LATTN_NOINLINE_ double lattn_dot64_(const float *x, const double *z, int64_t count, double more) {
  double sum[16] = {0};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int t = 0; t < 16; t++)
      sum[t] = lattn_fma64_((double)x[i + t] + more, z[i + t] + more, sum[t]);
  for (int t = 0; i + t < count; t++)
    sum[t] = lattn_fma64_((double)x[i + t] + more, z[i + t] + more, sum[t]);
  return lattn_reduce64_(sum);
}

/* exp of a sum of logarithms <= 0, to 2 ulp: what the sum loses as a float enters as 1 + it. */
LATTN_FN_ float lattn_exp_sum_(double x) {
  float high = (float)x, y = lattn_exp_(high);
  return lattn_fma_(y, (float)(x - (double)high), y);
}

/* ---- what a state is ---- */

struct lattn_state {
  uint64_t bytes, fingerprint;
  int64_t n_tokens;
  int32_t kind, n_heads, n_query, n_key, n_value, n_states;
  int32_t dk, dv, features, feature, unit, decay, delta, reads, normaliser, flags;
  int32_t max_drafts, chunk, hidden, activation, residual;
  float unit_epsilon, scale, epsilon, clamp_low, clamp_high, loss_factor;
  int32_t n_drafts, n_pending, list, side; /* pending updates, in which list; the small sums now */
  int32_t listed, zero;                    /* during a batched call: it was met */
  int64_t rows, columns;                   /* features and dv, up to multiples of 16 */
  int64_t log_decay, bonus, query;         /* offsets from this; 0 = none */
  int64_t heads, head_bytes;               /* offset of the first head, and from one to the next */
  int64_t low, entries, entry_floats;      /* of a head: offsets of sums' lost parts, of updates */
  int64_t sums64, small_doubles;            /* of small sums: sides of so many */
  int64_t weights, shadow; /* TITANS: floats of a memory; offset of that on which drafts run */
  int64_t matrix_bytes;
};

/* Small sums of a head, in double: L and its total since the beginning, [1 or rows] each; z [rows];
   of flow A, B, A', B' [rows] each, then Z and the maximum. */
LATTN_FN_ int64_t lattn_small_decays_(const lattn_state *s) {
  return s->decay == LATTN_DECAY_CHANNEL ? s->rows : 8;
}

LATTN_FN_ char *lattn_state_head_(const lattn_state *s, int64_t n) {
  return (char *)(uintptr_t)s + s->heads + n * s->head_bytes;
}
LATTN_FN_ int32_t lattn_state_lists_(const lattn_state *s) {
  return s->max_drafts > 1 ? s->max_drafts : 1;
}

/* Update `index` of a list (0 or 1). */
LATTN_FN_ float *lattn_state_entry_(const lattn_state *s, int64_t n, int32_t list, int32_t index) {
  return (float *)(void *)(lattn_state_head_(s, n) + s->entries) +
         (list * lattn_state_lists_(s) + index) * s->entry_floats;
}
/* The small sums, `ahead` tokens after those of the state. */
LATTN_FN_ double *lattn_state_small_(const lattn_state *s, int64_t n, int32_t ahead) {
  return (double *)(void *)(lattn_state_head_(s, n) + s->sums64) +
         (s->side + ahead) % (lattn_state_lists_(s) + 1) * s->small_doubles;
}

/* Parts of an update: whether it folds and the factor of all channels; k, x; b, y; factors a
   channel. */
LATTN_FN_ float *lattn_entry_k_(float *entry) { return entry + 16; }
LATTN_FN_ float *lattn_entry_x_(const lattn_state *s, float *entry) { return entry + 16 + s->rows; }
LATTN_FN_ float *lattn_entry_b_(const lattn_state *s, float *entry) {
  return entry + 16 + s->rows + s->columns;
}
LATTN_FN_ float *lattn_entry_y_(const lattn_state *s, float *entry) {
  return entry + 16 + 2 * s->rows + s->columns;
}
LATTN_FN_ float *lattn_entry_f_(const lattn_state *s, float *entry) {
  return entry + 16 + (s->delta == LATTN_DELTA_GENERAL ? 2 : 1) * (s->rows + s->columns);
}

/* Where columns [c, ...) of row 0 of a head's S are, in floats; a row has *stride of them. */
LATTN_FN_ int64_t lattn_tile_at_(const lattn_state *s, int64_t c, int64_t *stride) {
  int64_t first = c / LATTN_TILE_COLUMNS_ * LATTN_TILE_COLUMNS_;
  *stride = lattn_min_(s->columns - first, LATTN_TILE_COLUMNS_);
  return first * s->features + c - first;
}

/* ---- passes over a tile ---- */

typedef struct lattn_update_ {
  const float *k, *x; /* x: of the pass's columns */
  const float *fold;  /* NULL, or S is multiplied first: by *fold, or row by row */
  int64_t fold_step;  /* 0 or 1 */
} lattn_update_;

typedef struct lattn_pass_ {
  float *s, *low; /* rows of `stride` floats; low NULL: sums are not compensated */
  int64_t rows, stride;
  int n_updates, stores; /* 1, 0: not; 2: not what was lost */
  const lattn_update_ *updates;
  int n_hints;       /* what is needed soon is asked for, spread over the rows */
  const float *p_by; /* NULL, or the key of the prediction */
  const float *q[LATTN_SHARED_TOKENS_];
  float *p, *r;         /* the sums: [32]; [tokens][32] */
  const void *hints[LATTN_MAX_HINTS_];
} lattn_pass_;

/* s + k x, or by Kahan's sum, which keeps in *low what was lost. */
LATTN_INLINE_ lattn_v16_ lattn_v_write_(int compensated, lattn_v16_ k, lattn_v16_ x, lattn_v16_ s,
                                        lattn_v16_ *low) {
  lattn_v16_ y, sum;
  if (!compensated) return lattn_v_fma_(k, x, s);
  y = lattn_v_fma_(k, x, *low);
  sum = lattn_v_add_(s, y);
  *low = lattn_v_sub_(y, lattn_v_sub_(sum, s));
  return sum;
}

/* `steps` tokens, each `ranks` updates, then a reading and perhaps a prediction; all is stored, or
   without updates nothing. AVX-512, 2 vectors, one token with prediction: a row loads and stores 2
   vectors, broadcasts 3 numbers and makes 6 multiply-adds, in 4 sums, 2 of x, 2 of S (two chains a
   sum, or 4 vectors, are slower by a seventh on a Zen 4); four tokens: 2 loads, 2 stores, 8
   broadcasts, 16 multiply-adds, in 8 sums, 8 of x, 2 of S. */
#define LATTN_EACH_C_ LATTN_UNROLL_ for (int c = 0; c < vectors; c++)
LATTN_INLINE_ void lattn_pass_body_(int vectors, int steps, int ranks, int predicts,
                                    int compensated, lattn_pass_ *w) {
  enum { V = LATTN_SWEEP_VECTORS_, J = LATTN_SHARED_TOKENS_ };
  lattn_v16_ r[J * V], p[V], x[J * V], s[V], low[V], zero = lattn_v_set_(0);
  const float *k[J + 1], *q[J], *by = w->p_by;
  float *at = w->s, *lost = w->low;
  const int64_t rows = w->rows, stride = w->stride, pairs = (rows + 1) / 2, hints = w->n_hints;
  int64_t due = 0;
  const void *const *ask = w->hints;
  LATTN_UNROLL_
  for (int j = 0; j < steps * ranks; j++) {
    k[j] = w->updates[j].k;
    LATTN_EACH_C_ x[j * vectors + c] = lattn_v_load_(w->updates[j].x + 16 * c);
  }
  LATTN_UNROLL_
  for (int j = 0; j < steps; j++) q[j] = w->q[j];
  LATTN_EACH_C_ p[c] = low[c] = zero;
  LATTN_UNROLL_
  for (int c = 0; c < steps * vectors; c++) r[c] = zero;
  for (int64_t i = 0; i < rows; i += 2) {
    for (due += hints; due >= pairs; due -= pairs) LATTN_PREFETCH_(*ask++);
    LATTN_UNROLL_
    for (int u = 0; u < 2; u++) {
      if (u == 1 && i + u == rows) break;
      LATTN_EACH_C_ {
        s[c] = lattn_v_load_(at + 16 * c);
        if (compensated) low[c] = lattn_v_load_(lost + 16 * c);
      }
      LATTN_UNROLL_
      for (int j = 0; j < steps; j++) {
        lattn_v16_ b;
        LATTN_UNROLL_
        for (int a = j * ranks; a < (j + 1) * ranks; a++) {
          b = lattn_v_set_(k[a][i + u]);
          LATTN_EACH_C_ s[c] = lattn_v_write_(compensated, b, x[a * vectors + c], s[c], low + c);
        }
        if (predicts) {
          b = lattn_v_set_(by[i + u]);
          LATTN_EACH_C_ p[c] = lattn_v_fma_(b, s[c], p[c]);
        }
        b = lattn_v_set_(q[j][i + u]);
        LATTN_EACH_C_ r[j * vectors + c] = lattn_v_fma_(b, s[c], r[j * vectors + c]);
      }
      LATTN_EACH_C_ {
        if (ranks) lattn_v_store_(at + 16 * c, s[c]);
        if (ranks && compensated) lattn_v_store_(lost + 16 * c, low[c]);
      }
      at += stride;
      if (compensated) lost += stride;
    }
  }
  LATTN_UNROLL_
  for (int j = 0; j < steps; j++)
    LATTN_EACH_C_ lattn_v_store_(w->r + j * LATTN_TILE_COLUMNS_ + 16 * c, r[j * vectors + c]);
  LATTN_EACH_C_ if (predicts) lattn_v_store_(w->p + 16 * c, p[c]);
}
#undef LATTN_EACH_C_

/* Denormal numbers become 0: some processors take a hundred cycles for one. */
LATTN_INLINE_ lattn_v16_ lattn_v_flush_(lattn_v16_ x) {
  return lattn_v_if_less_(lattn_v_abs_(x), lattn_v_set_(1.17549435e-38f), lattn_v_set_(0), x);
}

/* Any number of updates, folds too, then one reading and a prediction; stored or not. */
LATTN_NOINLINE_ void lattn_pass_list_(lattn_pass_ *w, int vectors) {
  for (int c = 0; c < 16 * vectors; c += 16) {
    lattn_v16_ p = lattn_v_set_(0), r = p, low = p;
    for (int64_t i = 0; i < w->rows; i++) {
      float *at = w->s + i * w->stride + c, *lost = w->low ? w->low + i * w->stride + c : 0;
      lattn_v16_ s = lattn_v_load_(at);
      if (lost) low = lattn_v_load_(lost);
      for (int u = 0; u < w->n_updates; u++) {
        const lattn_update_ *by = w->updates + u;
        if (by->fold) {
          s = lattn_v_mul_(s, lattn_v_set_(by->fold[i * by->fold_step]));
          s = lattn_v_flush_(s);
        }
        s = lattn_v_write_(lost != 0, lattn_v_set_(by->k[i]), lattn_v_load_(by->x + c), s, &low);
      }
      if (w->p_by) p = lattn_v_fma_(lattn_v_set_(w->p_by[i]), s, p);
      r = lattn_v_fma_(lattn_v_set_(w->q[0][i]), s, r);
      if (w->stores) lattn_v_store_(at, s);
      if (w->stores == 1 && lost) lattn_v_store_(lost, low);
    }
    if (w->p_by) lattn_v_store_(w->p + c, p);
    lattn_v_store_(w->r + c, r);
  }
}

/* vectors is LATTN_SWEEP_VECTORS_ or 1. */
#define LATTN_PASS_(steps, ranks, predicts, compensated)                            \
  if (LATTN_SWEEP_VECTORS_ > 1 && vectors > 1)                                      \
    lattn_pass_body_(LATTN_SWEEP_VECTORS_, steps, ranks, predicts, compensated, w); \
  else                                                                              \
    lattn_pass_body_(1, steps, ranks, predicts, compensated, w)
LATTN_NOINLINE_ void lattn_pass_plain_(lattn_pass_ *w, int vectors) { LATTN_PASS_(1, 1, 0, 0); }
LATTN_NOINLINE_ void lattn_pass_shared_(lattn_pass_ *w, int vectors) {
  LATTN_PASS_(LATTN_SHARED_TOKENS_, 1, 0, 0);
}
LATTN_NOINLINE_ void lattn_pass_delta_(lattn_pass_ *w, int vectors) { LATTN_PASS_(1, 1, 1, 0); }
LATTN_NOINLINE_ void lattn_pass_general_(lattn_pass_ *w, int vectors) { LATTN_PASS_(1, 2, 1, 0); }
LATTN_NOINLINE_ void lattn_pass_exact_(lattn_pass_ *w, int vectors) { LATTN_PASS_(1, 1, 0, 1); }
LATTN_NOINLINE_ void lattn_pass_read_(lattn_pass_ *w, int vectors) {
  LATTN_PASS_(LATTN_SHARED_TOKENS_, 0, 0, 0);
}
#undef LATTN_PASS_

/* ---- features ---- */

/* One call, or one range of its tokens. */
typedef struct lattn_advance_ {
  const lattn_state_sequence *list;
  int64_t n_list;
  lattn_state_call o;
  lattn_tensor q, k, v, out, decay, beta, predict, write, rate, momentum,
      forget; /* data NULL: none */
  lattn_partial *partial;
  int drafts, reads_only;    /* how the tokens go in */
  int64_t from, to;          /* rows of this range */
  int32_t n_workers, pieces; /* of a head, by tiles */
  int64_t chunk;             /* tokens prepared at a time */
  char *scratch;
  size_t worker_bytes;
  int32_t next, overflowed; /* the only members that workers change */
} lattn_advance_;

/* The row of a per-token tensor that state n has. */
LATTN_FN_ int64_t lattn_state_row_(const lattn_state *s, const lattn_tensor *t, int64_t token,
                                   int64_t n) {
  return token * t->stride_token + n * t->n_heads / s->n_states * t->stride_head;
}

/* Loads dim elements as floats, padded with 0 to a multiple of 16. */
LATTN_FN_ void lattn_load_row_(float *to, const lattn_tensor *t, int64_t at, int64_t dim) {
#define LATTN_BODY_(T)                  \
  for (int64_t i = 0; i < dim; i += 16) \
  lattn_v_store_(to + i, lattn_v_get_n_(t->data, T, at + i, dim - i < 16 ? (int)(dim - i) : 16))
  LATTN_EACH_TYPE_(t->type, LATTN_BODY_)
#undef LATTN_BODY_
}

/* x . y, n a multiple of 16; z NULL, or x . (y * z). */
LATTN_FN_ float lattn_dot_(const float *x, const float *y, const float *z, int64_t n) {
  lattn_v16_ sum = lattn_v_set_(0);
  for (int64_t i = 0; i < n; i += 16) {
    lattn_v16_ b = lattn_v_load_(y + i);
    if (z) b = lattn_v_mul_(b, lattn_v_load_(z + i));
    sum = lattn_v_fma_(lattn_v_load_(x + i), b, sum);
  }
  return lattn_v_reduce_add_(sum);
}

LATTN_FN_ void lattn_unit_row_(float *x, int64_t n, int32_t unit, float epsilon) {
  float sum = lattn_dot_(x, x, 0, n), by;
  if (unit == LATTN_UNIT_L2) {
    by = lattn_rsqrt_(sum + epsilon);
  } else {
    by = lattn_rsqrt_(sum);
    if (epsilon > 8.67361738e-19f && sum * by < epsilon) by = 1.0f / epsilon;
  }
  lattn_scale_(x, n, by);
}

/* softmax over x[0 ... dim). */
LATTN_FN_ void lattn_softmax_row_(float *x, int64_t dim) {
  lattn_v16_ most = lattn_v_set_(-LATTN_INFINITY_), sum = lattn_v_set_(0);
  float m;
  for (int64_t i = 0; i < dim; i += 16) {
    uint32_t bits = dim - i < 16 ? (1u << (dim - i)) - 1u : 0xffffu;
    most = lattn_v_max_(lattn_v_if_bits_(bits, lattn_v_load_(x + i), most), most);
  }
  m = lattn_v_reduce_max_(most);
  for (int64_t i = 0; i < dim; i += 16) {
    lattn_v16_ y = lattn_v_exp_(lattn_v_sub_(lattn_v_load_(x + i), lattn_v_set_(m)));
    uint32_t bits = dim - i < 16 ? (1u << (dim - i)) - 1u : 0xffffu;
    y = lattn_v_if_bits_(bits, y, lattn_v_set_(0));
    sum = lattn_v_add_(sum, y);
    lattn_v_store_(x + i, y);
  }
  m = lattn_v_reduce_add_(sum);
  for (int64_t i = 0; i < dim; i += 16)
    lattn_v_store_(x + i, lattn_v_div_(lattn_v_load_(x + i), lattn_v_set_(m)));
}

/* Features of 16 numbers. */
LATTN_FN_ lattn_v16_ lattn_feature_(int32_t feature, lattn_v16_ x) {
  lattn_v16_ zero = lattn_v_set_(0), y;
  switch (feature) {
    case LATTN_FEATURE_ELU1:
      y = lattn_v_exp_(lattn_v_if_less_(zero, x, zero, x));
      return lattn_v_if_less_(zero, x, lattn_v_add_(x, lattn_v_set_(1)), y);
    case LATTN_FEATURE_RELU:
      return lattn_v_if_less_(x, zero, zero, x);
    case LATTN_FEATURE_RELU2:
      x = lattn_v_if_less_(x, zero, zero, x);
      return lattn_v_mul_(x, x);
    case LATTN_FEATURE_SIGMOID:
      return lattn_v_sigmoid_(x);
    case LATTN_FEATURE_SILU:
      return lattn_v_mul_(x, lattn_v_sigmoid_(x));
    default:
      return x;
  }
}

/* 1; x; x_i^2 / sqrt 2; x_i x_j, i < j. */
LATTN_FN_ void lattn_taylor_(float *to, const float *x, int64_t dim) {
  int64_t at = 2 * dim + 1;
  to[0] = 1.0f;
  for (int64_t i = 0; i < dim; i++) {
    float y = x[i] * 0.707106769f;
    to[1 + i] = x[i];
    to[1 + dim + i] = x[i] * y;
    for (int64_t j = i + 1; j < dim; j++) to[at++] = x[i] * x[j];
  }
}

/* The features of a query or key row of head `head`, padded with 0, scaled if a query. raw: room
   for the row itself. */
LATTN_NOINLINE_ void lattn_features_(const lattn_advance_ *job, const lattn_state *s, float *to,
                                     float *raw, const lattn_tensor *t, int64_t token, int64_t head,
                                     int is_query) {
  int64_t m = s->features, dim = s->dk, at = token * t->stride_token + head * t->stride_head;
  int expands = s->feature == LATTN_FEATURE_TAYLOR || s->feature == LATTN_FEATURE_CALLER;
  float *x = expands ? raw : to;
  lattn_load_row_(x, t, at, dim);
  if (s->unit) lattn_unit_row_(x, (dim + 15) / 16 * 16, s->unit, s->unit_epsilon);
  if (s->feature == LATTN_FEATURE_TAYLOR) {
    lattn_scale_(x, (dim + 15) / 16 * 16, s->scale * lattn_rsqrt_(s->scale));
    lattn_taylor_(to, x, dim);
  } else if (s->feature == LATTN_FEATURE_CALLER) {
    job->o.feature(job->o.feature_user, (int32_t)head, is_query, x, dim, to, m);
  } else if (s->feature == LATTN_FEATURE_SOFTMAX) {
    lattn_softmax_row_(to, dim);
  } else if (s->feature != LATTN_FEATURE_IDENTITY) {
    lattn_v16_ more = lattn_v_set_(
        s->kind == LATTN_STATE_FLOW && s->feature == LATTN_FEATURE_RELU ? 1e-6f : 0.0f);
    for (int64_t i = 0; i < m; i += 16)
      lattn_v_store_(to + i, lattn_v_add_(lattn_feature_(s->feature, lattn_v_load_(to + i)), more));
  }
  for (int64_t i = m; i < s->rows; i++) to[i] = 0;
  if (is_query && s->kind == LATTN_STATE_LINEAR && s->feature != LATTN_FEATURE_TAYLOR)
    lattn_scale_(to, s->rows, s->scale);
}

/* ---- tokens, prepared ---- */

/* What a token's decay came to, where all channels decay alike (else 1, but for folds). */
typedef struct lattn_gate_ {
  float e, before; /* S is e times what is stored; and before this token's decay */
  float inverse;   /* what is written is multiplied by it */
  float fold;      /* what is stored is multiplied by it first ... */
  int32_t folds;   /* ... if so */
  float beta;      /* DELTA_KEY */
  float competes;  /* FLOW: v is multiplied by it */
} lattn_gate_;

/* A worker's memory. Rows of a token are `rows` floats. */
typedef struct lattn_prep_ {
  float *q, *k, *p, *b, *f; /* [queries][chunk]; [chunk] of each: read, write, predict (may be
                                      k), second write, factors of folds */
  float *w, *wb, *den;      /* [queries][chunk]: q . k; q . b; denominator, or flow's factor */
  lattn_gate_ *gate;        /* [chunk] */
  float *last_k, *last_b, *last_f; /* of the token before the chunk */
  lattn_gate_ last;
  float *raw, *e; /* a row; exp(L) a channel */
  float *x, *y;   /* [chunk + 1][32]: updates of a tile; 0 is that before the chunk */
  float *own, *y_own;              /* [chunk][32]: what tokens write, unscaled */
  float *r;                        /* [queries][chunk][32]: what they read */
  float *tile;                     /* [features][32]: a tile with all updates in it, to be read */
  double *sums;   /* the small sums, after the tokens prepared */
} lattn_prep_;

/* Carves it from p (NULL: only counts). */
LATTN_FN_ size_t lattn_carve_prep_(lattn_prep_ *w, char *p, const lattn_state *s, int64_t chunk,
                                   int64_t queries) {
  int channel = s->decay == LATTN_DECAY_CHANNEL, general = s->delta == LATTN_DELTA_GENERAL;
  int64_t row = s->rows, rows = chunk * row, all = queries * chunk, at = 0, part[21];
  float **to[21];
  part[0] = queries * rows, to[0] = &w->q;
  part[1] = rows, to[1] = &w->k;
  part[2] = general || (s->delta && channel) ? rows : 0, to[2] = &w->p;
  part[3] = general ? rows : 0, to[3] = &w->b;
  part[4] = channel ? rows : 0, to[4] = &w->f;
  part[5] = all, to[5] = &w->w;
  part[6] = general ? all : 0, to[6] = &w->wb;
  part[7] = s->normaliser || s->kind == LATTN_STATE_FLOW ? all : 0, to[7] = &w->den;
  part[8] = chunk > 1 ? row : 0, to[8] = &w->last_k;
  part[9] = chunk > 1 && general ? row : 0, to[9] = &w->last_b;
  part[10] = chunk > 1 && channel ? row : 0, to[10] = &w->last_f;
  part[11] = (s->dk + 15) / 16 * 16, to[11] = &w->raw;
  part[12] = channel ? row : 0, to[12] = &w->e;
  part[13] = (chunk + 1) * LATTN_TILE_COLUMNS_, to[13] = &w->x;
  part[14] = general ? part[13] : 0, to[14] = &w->y;
  part[15] = chunk > 1 ? (int64_t)s->features * LATTN_TILE_COLUMNS_ : 0, to[15] = &w->tile;
  part[16] = chunk * LATTN_TILE_COLUMNS_, to[16] = &w->own;
  part[17] = general ? part[16] : 0, to[17] = &w->y_own;
  part[18] = queries * part[16], to[18] = &w->r;
  part[19] = 2 * s->small_doubles;
  part[20] = chunk * (int64_t)(sizeof(lattn_gate_) / sizeof(float));
  for (int i = 0; i < 21; i++) {
    if (p && i < 19) *to[i] = part[i] ? (float *)(void *)p + at : 0;
    if (p && i == 19) w->sums = (double *)(void *)((float *)(void *)p + at);
    if (p && i == 20) w->gate = (lattn_gate_ *)(void *)((float *)(void *)p + at);
    at += (part[i] + 15) / 16 * 16;
  }
  return (uint64_t)at > SIZE_MAX / 8 ? SIZE_MAX : (size_t)at * sizeof(float);
}

/* The log decay of a token, clamped; NaN stays. */
LATTN_FN_ float lattn_clamp_decay_(float g) {
  g = g > 0 ? 0 : g;
  return g < LATTN_LEAST_DECAY_ ? LATTN_LEAST_DECAY_ : g;
}

/* The decay of a token where all channels have the same. */
LATTN_FN_ void lattn_prepare_step_(const lattn_advance_ *job, lattn_prep_ *w, const lattn_state *s,
                                   int64_t token, int64_t n, lattn_gate_ *gate) {
  double *sum = w->sums, *total = w->sums + 8;
  const float *own = (const float *)(const void *)((const char *)s + s->log_decay);
  float g;
  if (s->decay == LATTN_DECAY_NONE) return;
  if (s->decay == LATTN_DECAY_HEAD) g = own[n];
  else
    g = lattn_clamp_decay_(
        lattn_get_(job->decay.data, job->decay.type, lattn_state_row_(s, &job->decay, token, n)));
  if (s->reads == LATTN_READS_BEFORE || s->delta == LATTN_DELTA_GENERAL)
    gate->before = lattn_exp_sum_(*sum);
  *sum = *sum + (double)g;
  *total = *total + (double)g;
  gate->e = lattn_exp_sum_(*sum);
  if ((float)*sum < -LATTN_FOLD_AT_) {
    gate->folds = 1;
    gate->fold = gate->e;
    *sum = 0;
  } else {
    gate->inverse = 1.0f / gate->e;
  }
}

/* e gets exp(L) of all channels; returns whether any L is below -24. NULL g: that is all; else g
   [rows], a token's log decays, is added to L first, and to *total, if wanted. */
LATTN_FN_ int lattn_channel_exps_(float *e, double *sum, double *total, const float *g,
                                  int64_t rows) {
  lattn_v16_ least = lattn_v_set_(0), zero = least, floor = lattn_v_set_(LATTN_LEAST_DECAY_), y;
  for (int64_t i = 0; i < rows; i += 16) {
    float high[16], low[16], decay[16] = {0};
    double *l = sum + i;
    if (g) {
      y = lattn_v_load_(g + i);
      y = lattn_v_if_less_(zero, y, zero, y);
      lattn_v_store_(decay, lattn_v_if_less_(y, floor, floor, y)); /* NaN stays */
      for (int t = 0; t < 16; t++) l[t] = l[t] + (double)decay[t];
    }
    if (g && total)
      for (int t = 0; t < 16; t++) total[i + t] = total[i + t] + (double)decay[t];
    for (int t = 0; t < 16; t++) {
      high[t] = (float)l[t];
      low[t] = (float)(l[t] - (double)high[t]);
    }
    y = lattn_v_load_(high);
    least = lattn_v_if_less_(y, least, y, least);
    y = lattn_v_exp_(y);
    lattn_v_store_(e + i, lattn_v_fma_(y, lattn_v_load_(low), y));
  }
  return lattn_v_reduce_max_(lattn_v_sub_(zero, least)) > LATTN_FOLD_AT_;
}

/* x *= y, or x /= y. */
LATTN_FN_ void lattn_times_row_(float *x, const float *y, int64_t n, int divides) {
  for (int64_t i = 0; i < n; i += 16) {
    lattn_v16_ a = lattn_v_load_(x + i), b = lattn_v_load_(y + i);
    lattn_v_store_(x + i, divides ? lattn_v_div_(a, b) : lattn_v_mul_(a, b));
  }
}

/* The decays of a token, one a channel: into q, k, p and b of token j. w->e is that before it. */
LATTN_FN_ void lattn_prepare_channels_(const lattn_advance_ *job, lattn_prep_ *w,
                                       const lattn_state *s, int64_t token, int64_t n, int64_t j,
                                       int64_t queries) {
  int64_t rows = s->rows, at = lattn_state_row_(s, &job->decay, token, n);
  double *sum = w->sums, *total = w->sums + rows;
  float *k = w->k + j * rows, *f = w->f + j * rows;
  float *p = w->p ? w->p + j * rows : 0, *b = w->b ? w->b + j * rows : 0;
  int folds, before = s->reads == LATTN_READS_BEFORE;
  if (s->delta == LATTN_DELTA_GENERAL) lattn_times_row_(p, w->e, rows, 0);
  for (int64_t i = 0; before && i < queries; i++)
    lattn_times_row_(w->q + (i * job->chunk + j) * rows, w->e, rows, 0);
  lattn_load_row_(f, &job->decay, at, s->features);
  folds = lattn_channel_exps_(w->e, sum, s->delta ? 0 : total, f, rows);
  for (int64_t i = 0; !before && i < queries; i++)
    lattn_times_row_(w->q + (i * job->chunk + j) * rows, w->e, rows, 0);
  if (s->delta == LATTN_DELTA_KEY) {
    LATTN_MEMCPY_(p, k, (size_t)rows * sizeof *p);
    lattn_times_row_(p, w->e, rows, 0);
  }
  w->gate[j].folds = folds;
  if (folds) {
    LATTN_MEMCPY_(f, w->e, (size_t)rows * sizeof *f);
    for (int64_t i = 0; i < rows; i++) {
      sum[i] = 0;
      w->e[i] = 1.0f;
    }
  } else {
    lattn_times_row_(k, w->e, rows, 1);
    if (s->delta == LATTN_DELTA_GENERAL) lattn_times_row_(b, w->e, rows, 1);
  }
}

/* What a reading by q is divided by: e (q . z) + w, z in the small sums. */
LATTN_FN_ float lattn_denominator_(const lattn_state *s, const float *q, const double *sums,
                                   float e, float w) {
  double d = lattn_dot64_(q, sums + 2 * lattn_small_decays_(s), s->features, 0.0);
  float den = (float)lattn_fma64_((double)e, d, (double)w);
  if (s->normaliser == LATTN_NORMALISER_SUM) return den + s->epsilon;
  den = lattn_float_(lattn_bits_(den) & 0x7fffffffu);
  return den <= s->epsilon ? s->epsilon : den;
}

/* The denominators of token j's readings, then z with the token in it. */
LATTN_FN_ void lattn_prepare_normaliser_(const lattn_advance_ *job, lattn_prep_ *w,
                                         const lattn_state *s, int64_t j, int64_t queries) {
  const lattn_gate_ *gate = w->gate + j;
  double *z = w->sums + 2 * lattn_small_decays_(s);
  const float *k = w->k + j * s->rows, *f = w->f ? w->f + j * s->rows : 0;
  float e = s->reads == LATTN_READS_BEFORE ? gate->before : gate->e;
  for (int64_t i = 0; i < queries; i++) {
    int64_t at = i * job->chunk + j;
    w->den[at] = lattn_denominator_(s, w->q + at * s->rows, w->sums, e, w->w[at]);
  }
  for (int64_t i = 0; gate->folds && i < s->rows; i++)
    z[i] = z[i] * (double)(f ? f[i] : gate->fold);
  for (int64_t i = 0; i < s->rows; i += 16) /* its bits do not depend on a fused operation: exact */
    for (int t = 0; t < 16; t++)
      z[i + t] = lattn_fma64_((double)k[i + t], (double)gate->inverse, z[i + t]);
}

/* Flow-Attention's sums of token number `count`, from 1 on: how it competes and what its reading is
   multiplied by (flow.md 1.4; the largest exponent is subtracted). */
LATTN_FN_ void lattn_prepare_flow_(lattn_prep_ *w, const lattn_state *s, int64_t j, int64_t count) {
  int64_t m = s->features, rows = s->rows;
  const float *q = w->q + j * rows, *k = w->k + j * rows;
  double *a = w->sums + 2 * lattn_small_decays_(s), *b = a + rows, *a2 = b + rows, *b2 = a2 + rows;
  double *z = b2 + rows, *most = z + 1, t = (double)count, eps = (double)s->epsilon;
  double in, leaves, g, c, top;
  float y[16];
  for (int64_t i = 0; i < m; i++) {
    a[i] = a[i] + (double)k[i];
    b[i] = b[i] + (double)q[i];
  }
  in = 1.0 / lattn_dot64_(q, a, m, eps);
  leaves = t / lattn_dot64_(k, b, m, eps);
  for (int64_t i = 0; i < m; i++) {
    a2[i] = lattn_fma64_(leaves, (double)k[i], a2[i]);
    b2[i] = lattn_fma64_(t * in, (double)q[i], b2[i]);
  }
  g = lattn_dot64_(q, a2, m, eps) / t;
  c = lattn_dot64_(k, b2, m, eps) / t;
  if (c < (double)s->clamp_low) c = (double)s->clamp_low;
  if (c > (double)s->clamp_high) c = (double)s->clamp_high;
  top = count > 1 && *most > c ? *most : c;
  c = (double)lattn_exp_((float)(c - top));
  *z = lattn_fma64_(*z, count > 1 && *most < top ? (double)lattn_exp_((float)(*most - top)) : 1.0,
                    c);
  *most = top;
  w->gate[j].competes = (float)(t * c / *z);
  lattn_v_store_(y, lattn_v_sigmoid_(lattn_v_set_((float)g)));
  w->den[j] = y[0] * (float)in;
}

/* Prepares token j of a chunk: row `token` of the tensors, number `count` of the sequence. */
LATTN_FN_ void lattn_prepare_(const lattn_advance_ *job, lattn_prep_ *w, const lattn_state *s,
                              int64_t token, int64_t n, int64_t j, int64_t count) {
  int64_t rows = s->rows, queries = s->n_heads / s->n_states;
  float *k = w->k + j * rows;
  const float *bonus = (const float *)(const void *)((const char *)s + s->bonus);
  int general = s->delta == LATTN_DELTA_GENERAL;
  lattn_gate_ gate = {1, 1, 1, 1, 0, 1, 1};
  w->gate[j] = gate;
  lattn_features_(job, s, k, w->raw, &job->k, token, n * s->n_key / s->n_states, 0);
  if (general) {
    const lattn_tensor *a = &job->predict, *b = &job->write;
    lattn_load_row_(w->p + j * rows, a, lattn_state_row_(s, a, token, n), s->features);
    lattn_load_row_(w->b + j * rows, b, lattn_state_row_(s, b, token, n), s->features);
  }
  for (int64_t i = 0; i < queries; i++) {
    int64_t at = i * job->chunk + j, head = n * queries + i;
    float *q = w->q + at * rows;
    if (job->q.data) {
      lattn_features_(job, s, q, w->raw, &job->q, token, head * s->n_query / s->n_heads, 1);
    } else {
      LATTN_MEMSET_(q, 0, (size_t)rows * sizeof *q);
    }
    w->w[at] = 0;
    if (s->reads == LATTN_READS_AFTER) w->w[at] = lattn_dot_(q, k, 0, rows);
    else if (s->bonus) w->w[at] = lattn_dot_(q, k, bonus + n * rows, rows);
    if (general) w->wb[at] = lattn_dot_(q, w->b + j * rows, 0, rows);
  }
  if (s->delta == LATTN_DELTA_KEY && job->beta.data)
    w->gate[j].beta =
        lattn_get_(job->beta.data, job->beta.type, lattn_state_row_(s, &job->beta, token, n));
  if (s->decay == LATTN_DECAY_CHANNEL) lattn_prepare_channels_(job, w, s, token, n, j, queries);
  else lattn_prepare_step_(job, w, s, token, n, w->gate + j);
  if (s->kind == LATTN_STATE_FLOW) lattn_prepare_flow_(w, s, j, count);
  else if (s->normaliser) lattn_prepare_normaliser_(job, w, s, j, queries);
}

/* ---- a chunk of tokens over a strip of a tile ---- */

/* Where a worker is: `tokens` prepared tokens of a state's head, the first of which is row `row` of
   the tensors and token `done` of the state's in this call. */
typedef struct lattn_walk_ {
  const lattn_advance_ *job;
  lattn_prep_ *w;
  lattn_state *s;
  int64_t n, row, done;
  int tokens;
  int first; /* this worker has the head's first columns: it also writes what is not of columns */
  int64_t strip, strips, end; /* the strip, of so many; one past the last row */
  int64_t queries, value_at, out_at; /* heads that read this one; where its v and its out begin */
} lattn_walk_;

LATTN_FN_ lattn_walk_ lattn_walk_at_(const lattn_advance_ *job, lattn_prep_ *w, lattn_state *s,
                                     int64_t n, int64_t row) {
  lattn_walk_ a;
  LATTN_MEMSET_(&a, 0, sizeof a);
  a.job = job;
  a.w = w;
  a.s = s;
  a.n = n;
  a.row = row;
  a.queries = s->n_heads / s->n_states;
  if (!job) return a;
  a.value_at = n * s->n_value / s->n_states * job->v.stride_head;
  a.out_at = n * a.queries * job->out.stride_head;
  return a;
}

/* Appends an update, or the two of one token. */
LATTN_FN_ int lattn_add_update_(const lattn_state *s, lattn_update_ *to, const float *k,
                                const float *x, const float *b, const float *y,
                                const lattn_gate_ *gate, const float *f) {
  int n = 0;
  int channel = s->decay == LATTN_DECAY_CHANNEL;
  const float *fold = gate->folds ? channel ? f : &gate->fold : 0;
  if (s->delta == LATTN_DELTA_GENERAL) {
    lattn_update_ second = {b, y, fold, channel};
    to[n++] = second;
    fold = 0;
  }
  lattn_update_ u = {k, x, fold, channel};
  to[n++] = u;
  return n;
}

/* The same of an update in a list of the state, for columns from c on. *gate is its. */
LATTN_FN_ int lattn_add_entry_(const lattn_walk_ *a, lattn_update_ *to, int32_t list, int32_t index,
                               int64_t c, lattn_gate_ *gate) {
  const lattn_state *s = a->s;
  float *e = lattn_state_entry_(s, a->n, list, index);
  gate->folds = e[0] > 0;
  gate->fold = e[1];
  return lattn_add_update_(s, to, lattn_entry_k_(e), lattn_entry_x_(s, e) + c, lattn_entry_b_(s, e),
                           lattn_entry_y_(s, e) + c, gate, lattn_entry_f_(s, e));
}

/* Updates that S lacks before the first token of the chunk. gates: room for as many. */
LATTN_FN_ int lattn_pending_(const lattn_walk_ *a, lattn_update_ *to, lattn_gate_ *gates,
                             int64_t c) {
  const lattn_state *s = a->s;
  const lattn_prep_ *w = a->w;
  int n = 0;
  if (a->job->drafts) {
    for (int32_t i = 0; i < s->n_drafts + a->done; i++)
      n += lattn_add_entry_(a, to + n, 1 - s->list, i, c, gates + i);
  } else if (a->done == 0) {
    for (int32_t i = 0; i < s->n_pending; i++)
      n += lattn_add_entry_(a, to + n, s->list, i, c, gates + i);
  } else if (w->last_k) { /* others may be writing the state's copy of k */
    float *e = lattn_state_entry_(s, a->n, 1 - s->list, 0);
    gates[0] = w->last;
    n = lattn_add_update_(s, to, w->last_k, lattn_entry_x_(s, e) + c, w->last_b,
                          lattn_entry_y_(s, e) + c, gates, w->last_f);
  } else {
    n = lattn_add_entry_(a, to, 1 - s->list, 0, c, gates);
  }
  return n;
}

/* Token j of the chunk is now the update at `to`. */
LATTN_FN_ int lattn_add_token_(const lattn_walk_ *a, lattn_update_ *to, int64_t j) {
  const lattn_prep_ *w = a->w;
  int64_t rows = a->s->rows, x = (j + 1) * LATTN_TILE_COLUMNS_;
  return lattn_add_update_(a->s, to, w->k + j * rows, w->x + x, w->b ? w->b + j * rows : 0,
                           w->y ? w->y + x : 0, w->gate + j, w->f ? w->f + j * rows : 0);
}

/* 16 columns of a value row. */
LATTN_INLINE_ lattn_v16_ lattn_value_at_(const lattn_walk_ *a, int64_t j, int64_t c) {
  const lattn_tensor *v = &a->job->v;
  int64_t at = (a->row + j) * v->stride_token + a->value_at + c, left = a->s->dv - c;
  return lattn_v_get_n_(v->data, v->type, at, left < 16 ? (int)left : 16);
}

/* What token j writes, in columns c + i ... : v, less the prediction p, times beta; of flow, as it
   competes. */
LATTN_INLINE_ lattn_v16_ lattn_value_written_(const lattn_walk_ *a, int64_t j, int64_t c, int64_t i,
                                              const float *p) {
  const lattn_gate_ *gate = a->w->gate + j;
  lattn_v16_ v = lattn_value_at_(a, j, c + i);
  if (a->s->delta == LATTN_DELTA_KEY) {
    v = lattn_v_fma_(lattn_v_set_(-gate->e), lattn_v_load_(p + i), v);
    return lattn_v_mul_(v, lattn_v_set_(gate->beta));
  }
  return a->s->kind == LATTN_STATE_FLOW ? lattn_v_mul_(v, lattn_v_set_(gate->competes)) : v;
}

/* Token j's update: x (and y), and the same in the scale of what is stored. */
LATTN_INLINE_ void lattn_write_token_(const lattn_walk_ *a, int64_t j, int64_t c, int vectors,
                                      const float *p) {
  const lattn_gate_ *gate = a->w->gate + j;
  float *x = a->w->x + (j + 1) * LATTN_TILE_COLUMNS_, *own = x - a->w->x + a->w->own;
  lattn_v16_ inverse = lattn_v_set_(gate->inverse);
  own -= LATTN_TILE_COLUMNS_;
  for (int i = 0; i < 16 * vectors; i += 16) {
    lattn_v16_ v = lattn_value_written_(a, j, c, i, p);
    if (a->s->delta == LATTN_DELTA_GENERAL) {
      lattn_v16_ y = lattn_v_mul_(lattn_v_load_(p + i), lattn_v_set_(gate->before));
      lattn_v_store_(a->w->y_own + j * LATTN_TILE_COLUMNS_ + i, y);
      lattn_v_store_(a->w->y + (j + 1) * LATTN_TILE_COLUMNS_ + i, lattn_v_mul_(y, inverse));
    }
    lattn_v_store_(own + i, v);
    lattn_v_store_(x + i, lattn_v_mul_(v, inverse));
  }
}

/* Row of out (and of a partial) for query `i` of token j: what it read, and of its own write. */
LATTN_INLINE_ int lattn_finish_token_(const lattn_walk_ *a, int64_t j, int64_t i, int64_t c,
                                      int vectors) {
  const lattn_advance_ *job = a->job;
  const lattn_state *s = a->s;
  const lattn_prep_ *w = a->w;
  const lattn_gate_ *gate = w->gate + j;
  int64_t at = i * job->chunk + j, row = (a->row + j) * s->n_heads + a->n * a->queries + i;
  int64_t to = (a->row + j) * job->out.stride_token + a->out_at + i * job->out.stride_head + c;
  int64_t here = j * LATTN_TILE_COLUMNS_;
  lattn_v16_ e = lattn_v_set_(s->reads == LATTN_READS_BEFORE ? gate->before : gate->e);
  int lost = 0;
  for (int64_t b = 0; b < 16 * vectors; b += 16) {
    int n = s->dv - c - b < 16 ? (int)(s->dv - c - b) : 16;
    lattn_v16_ o = lattn_v_mul_(lattn_v_load_(w->r + at * LATTN_TILE_COLUMNS_ + b), e);
    if (w->y_own && !job->reads_only)
      o = lattn_v_fma_(lattn_v_set_(w->wb[at]), lattn_v_load_(w->y_own + here + b), o);
    if (!job->reads_only)
      o = lattn_v_fma_(lattn_v_set_(w->w[at]), lattn_v_load_(w->own + here + b), o);
    if (job->partial) lattn_v_store_n_(job->partial->output + row * s->dv + c + b, o, n);
    if (!job->out.data) continue;
    if (s->kind == LATTN_STATE_FLOW) o = lattn_v_mul_(o, lattn_v_set_(w->den[at]));
    else if (s->normaliser) o = lattn_v_div_(o, lattn_v_set_(w->den[at]));
    o = lattn_v_if_equal_(o, lattn_v_set_(0), lattn_v_set_(0), o); /* -0 becomes +0 */
    if (n == 16 && job->out.type == LATTN_F32)
      lattn_v_store_((float *)(uintptr_t)job->out.data + to + b, o);
    else lost |= lattn_v_put_n_((void *)(uintptr_t)job->out.data, job->out.type, to + b, o, n);
  }
  if (job->partial && a->first && c == 0) {
    job->partial->maximum[row] = 0;
    job->partial->sum[row] = s->normaliser ? w->den[at] : 1.0f;
  }
  return lost;
}

/* All rows of a chunk, in a strip of columns. */
LATTN_NOINLINE_ int lattn_finish_strip_(const lattn_walk_ *a, int64_t c, int vectors) {
  int lost = 0;
  if (!a->job->out.data && !a->job->partial) return 0;
  for (int64_t i = 0; i < a->queries; i++)
    for (int64_t j = 0; j < a->tokens; j++) lost |= lattn_finish_token_(a, j, i, c, vectors);
  return lost;
}

/* Token j read by the other queries of its state. */
LATTN_FN_ void lattn_read_others_(const lattn_walk_ *a, lattn_pass_ *pass, int64_t j, int vectors) {
  pass->p_by = 0;
  if (pass->stores) pass->n_updates = 0; /* they are in the tile now */
  pass->stores = 0;
  for (int64_t i = 1; i < a->queries; i++) {
    pass->q[0] = a->w->q + (i * a->job->chunk + j) * a->s->rows;
    pass->r = a->w->r + (i * a->job->chunk + j) * LATTN_TILE_COLUMNS_;
    lattn_pass_list_(pass, vectors);
  }
}

/* How many tokens from j on share a pass: none but the last of them folds. */
LATTN_FN_ int lattn_shared_(const lattn_walk_ *a, int64_t j) {
  const lattn_state *s = a->s;
  if (s->delta || (s->flags & LATTN_STATE_COMPENSATED) || s->n_heads > s->n_states) return 1;
  if (a->tokens - j < LATTN_SHARED_TOKENS_) return 1;
  for (int i = 0; i < LATTN_SHARED_TOKENS_ - 1; i++)
    if (a->w->gate[j + i].folds) return 1;
  return LATTN_SHARED_TOKENS_;
}

/* The pass of `shared` tokens from j on, the first updates of which are in pass. */
LATTN_FN_ void lattn_run_pass_of_(const lattn_walk_ *a, lattn_pass_ *pass, lattn_update_ *updates,
                                  int64_t j, int shared, int vectors) {
  const lattn_state *s = a->s;
  int ranks = s->delta == LATTN_DELTA_GENERAL ? 2 : 1;
  if (a->job->drafts || pass->n_updates != ranks || updates[0].fold) {
    lattn_pass_list_(pass, vectors);
    return;
  }
  for (int i = 0; i < shared - 1; i++) {
    pass->n_updates += lattn_add_token_(a, updates + pass->n_updates, j + i);
    pass->q[1 + i] = a->w->q + (j + 1 + i) * s->rows;
  }
  if (ranks == 2) lattn_pass_general_(pass, vectors);
  else if (s->delta) lattn_pass_delta_(pass, vectors);
  else if (s->flags & LATTN_STATE_COMPENSATED) lattn_pass_exact_(pass, vectors);
  else if (shared > 1) lattn_pass_shared_(pass, vectors);
  else lattn_pass_plain_(pass, vectors);
}

/* One head's rows of the caller's arrays lie apart, and no processor foresees them: while a token
   is worked on, the one a chunk later is asked for. Adds lines of a row to a pass's hints. */
LATTN_FN_ void lattn_hint_rows_(lattn_pass_ *pass, const lattn_tensor *t, int64_t token,
                                int64_t head, int64_t dim) {
  int64_t size = t->type == LATTN_F32 ? 4 : 2;
  uintptr_t at = (uintptr_t)t->data +
                 (uintptr_t)(token * t->stride_token + head * t->stride_head) * (uintptr_t)size;
  for (int64_t i = 0; t->data && i < dim * size && pass->n_hints < LATTN_MAX_HINTS_; i += 64)
    pass->hints[pass->n_hints++] = (const void *)(at + (uintptr_t)i); /* maybe beyond the array */
}

LATTN_FN_ void lattn_hint_token_(const lattn_walk_ *a, lattn_pass_ *pass, int64_t token) {
  const lattn_advance_ *job = a->job;
  const lattn_state *s = a->s;
  int64_t n = s->n_states, h = a->n, queries = s->n_heads / n;
  if (token >= a->end) return;
  lattn_hint_rows_(pass, &job->k, token, h * s->n_key / n, s->dk);
  lattn_hint_rows_(pass, &job->q, token, h * queries * s->n_query / s->n_heads, s->dk);
  lattn_hint_rows_(pass, &job->v, token, h * s->n_value / n, s->dv);
  lattn_hint_rows_(pass, &job->out, token, h * queries, s->dv);
  if (s->decay == LATTN_DECAY_CHANNEL)
    lattn_hint_rows_(pass, &job->decay, token, h * job->decay.n_heads / n, s->features);
  if (s->delta == LATTN_DELTA_GENERAL) {
    lattn_hint_rows_(pass, &job->predict, token, h * job->predict.n_heads / n, s->features);
    lattn_hint_rows_(pass, &job->write, token, h * job->write.n_heads / n, s->features);
  }
}

/* What is not of a pass but of a whole strip. */
LATTN_NOINLINE_ int lattn_run_strip_(const lattn_walk_ *a, int64_t c, int vectors) {
  lattn_state *s = a->s;
  lattn_prep_ *w = a->w;
  lattn_update_ updates[2 * LATTN_STATE_DRAFTS_ + 2];
  lattn_gate_ gates[LATTN_STATE_DRAFTS_];
  lattn_pass_ pass;
  float p[LATTN_TILE_COLUMNS_];
  int64_t stride, at = lattn_tile_at_(s, c, &stride);
  char *head = lattn_state_head_(s, a->n);
  int drafts = a->job->drafts, n, shared;
  pass.n_hints = 0;
  pass.p = p;
  pass.r = w->r;
  pass.s = (float *)(void *)head + at;
  pass.low = s->low ? (float *)(void *)(head + s->low) + at : 0;
  pass.rows = s->features;
  pass.stride = stride;
  pass.updates = updates;
  if (drafts && a->done == 0 && s->n_pending) { /* what is committed goes into S */
    for (int32_t i = n = 0; i < s->n_pending; i++)
      n += lattn_add_entry_(a, updates + n, s->list, i, c, gates + i);
    pass.n_updates = n;
    pass.stores = 1;
    pass.p_by = 0;
    pass.q[0] = w->q;
    lattn_pass_list_(&pass, vectors);
  }
  n = lattn_pending_(a, updates, gates, c);
  for (int64_t j = 0; !s->delta && j < a->tokens; j++) lattn_write_token_(a, j, c, vectors, p);
  for (int64_t j = 0; j < a->tokens; j += shared) {
    shared = drafts || n != 1 || updates[0].fold ? 1 : lattn_shared_(a, j);
    pass.n_hints = 0; /* the strips share the tokens that share a pass */
    for (int64_t i = a->strip; i < shared; i += a->strips)
      lattn_hint_token_(a, &pass, a->row + j + i + a->job->chunk);
    pass.stores = !drafts;
    pass.n_updates = n;
    pass.p_by = !s->delta ? 0 : w->p ? w->p + j * s->rows : w->k + j * s->rows;
    pass.q[0] = w->q + j * s->rows;
    pass.r = w->r + j * LATTN_TILE_COLUMNS_;
    lattn_run_pass_of_(a, &pass, updates, j, shared, vectors);
    if (s->delta) lattn_write_token_(a, j, c, vectors, p);
    if (a->queries > 1) lattn_read_others_(a, &pass, j, vectors);
    n = lattn_add_token_(a, updates + (drafts ? n : 0), j + shared - 1) + (drafts ? n : 0);
  }
  for (int64_t j = drafts ? 0 : a->tokens - 1; j < a->tokens; j++) {
    int32_t index = drafts ? (int32_t)(s->n_drafts + a->done + j) : 0;
    float *e = lattn_state_entry_(s, a->n, 1 - s->list, index);
    size_t bytes = (size_t)vectors * 16 * sizeof *e;
    LATTN_MEMCPY_(lattn_entry_x_(s, e) + c, w->x + (j + 1) * LATTN_TILE_COLUMNS_, bytes);
    if (w->y) LATTN_MEMCPY_(lattn_entry_y_(s, e) + c, w->y + (j + 1) * LATTN_TILE_COLUMNS_, bytes);
  }
  return lattn_finish_strip_(a, c, vectors);
}

/* Prepared token j as update `index` of the list to come: all but its columns. */
LATTN_FN_ void lattn_keep_update_(const lattn_walk_ *a, int64_t j, int32_t index) {
  const lattn_state *s = a->s;
  const lattn_prep_ *w = a->w;
  float *e = lattn_state_entry_(s, a->n, 1 - s->list, index);
  size_t bytes = (size_t)s->rows * sizeof *e;
  e[0] = w->gate[j].folds ? 1.0f : 0.0f;
  e[1] = w->gate[j].fold;
  LATTN_MEMCPY_(lattn_entry_k_(e), w->k + j * s->rows, bytes);
  if (w->b) LATTN_MEMCPY_(lattn_entry_b_(s, e), w->b + j * s->rows, bytes);
  if (w->f) LATTN_MEMCPY_(lattn_entry_f_(s, e), w->f + j * s->rows, bytes);
}

/* Tiles [tile, end) of head n of a state over rows [row, row + tokens) of the tensors. */
LATTN_NOINLINE_ int lattn_linear_piece_(const lattn_advance_ *job, lattn_prep_ *w, lattn_state *s,
                                        int64_t n, int64_t row, int64_t tokens, int64_t tile,
                                        int64_t end) {
  lattn_walk_ a = lattn_walk_at_(job, w, s, n, row);
  int64_t before = s->n_tokens + s->n_drafts + 1, from = tile * LATTN_TILE_COLUMNS_;
  int64_t to = lattn_min_(s->columns, end * LATTN_TILE_COLUMNS_);
  int lost = 0;
  size_t sums = (size_t)s->small_doubles * sizeof(double);
  int drafted = job->drafts ? s->n_drafts : 0;
  a.first = tile == 0;
  a.end = row + tokens;
  a.strips = lattn_max_(1, (to - from) / 16 / LATTN_SWEEP_VECTORS_);
  LATTN_MEMCPY_(w->sums, lattn_state_small_(s, n, drafted), sums);
  if (w->e && (s->reads == LATTN_READS_BEFORE || s->delta == LATTN_DELTA_GENERAL))
    lattn_channel_exps_(w->e, w->sums, 0, 0, s->rows); /* of the token before */
  for (; a.done < tokens; a.done += a.tokens, a.row += a.tokens) {
    a.tokens = (int)lattn_min_(job->chunk, tokens - a.done);
    for (int64_t j = 0; j < a.tokens; j++) {
      lattn_prepare_(job, w, s, a.row + j, n, j, before + a.done + j);
      if (job->drafts && a.first)
        LATTN_MEMCPY_(lattn_state_small_(s, n, (int32_t)(drafted + a.done + j + 1)), w->sums, sums);
    }
    a.strip = 0;
    for (int64_t c = from; c < to; a.strip++) {
      int64_t stride, left;
      lattn_tile_at_(s, c, &stride);
      left = (c / LATTN_TILE_COLUMNS_ * LATTN_TILE_COLUMNS_ + stride - c) / 16;
      int vectors = left >= LATTN_SWEEP_VECTORS_ ? LATTN_SWEEP_VECTORS_ : 1;
      lost |= lattn_run_strip_(&a, c, vectors);
      c += 16 * vectors;
    }
    for (int64_t j = job->drafts ? 0 : a.tokens - 1; a.first && j < a.tokens; j++)
      lattn_keep_update_(&a, j, job->drafts ? (int32_t)(drafted + a.done + j) : 0);
    if (w->last_k) {
      int64_t at = (a.tokens - 1) * s->rows;
      size_t bytes = (size_t)s->rows * sizeof(float);
      w->last = w->gate[a.tokens - 1];
      LATTN_MEMCPY_(w->last_k, w->k + at, bytes);
      if (w->b) LATTN_MEMCPY_(w->last_b, w->b + at, bytes);
      if (w->f) LATTN_MEMCPY_(w->last_f, w->f + at, bytes);
    }
  }
  if (a.first && !job->drafts && tokens) LATTN_MEMCPY_(lattn_state_small_(s, n, 1), w->sums, sums);
  return lost;
}

/* The updates that head n has in its list, for columns from c on. */
LATTN_FN_ int lattn_listed_updates_(const lattn_walk_ *a, lattn_update_ *to, lattn_gate_ *gates,
                                    int64_t c) {
  int n = 0;
  for (int32_t u = 0; u < a->s->n_pending; u++)
    n += lattn_add_entry_(a, to + n, a->s->list, u, c, gates + u);
  return n;
}

/* Prepares row `row` of q as reading j of a chunk: the state as it is, nothing written. */
LATTN_FN_ void lattn_prepare_read_(const lattn_walk_ *a, int64_t j, const lattn_gate_ *gate) {
  const lattn_advance_ *job = a->job;
  const lattn_state *s = a->s;
  lattn_prep_ *w = a->w;
  int64_t queries = s->n_heads / s->n_states;
  w->gate[j] = *gate;
  for (int64_t i = 0; i < queries; i++) {
    int64_t head = a->n * queries + i, at = i * job->chunk + j;
    float *q = w->q + at * s->rows;
    lattn_features_(job, s, q, w->raw, &job->q, a->row + j, head * s->n_query / s->n_heads, 1);
    if (w->e) lattn_times_row_(q, w->e, s->rows, 0);
    w->w[at] = 0;
    if (s->normaliser)
      w->den[at] = lattn_denominator_(s, q, lattn_state_small_(s, a->n, 0), gate->e, 0);
  }
}

/* The readings of a chunk over a strip of a tile that has all updates in it. */
LATTN_FN_ int lattn_read_strip_(const lattn_walk_ *a, lattn_pass_ *pass, int64_t c, int vectors) {
  float r[LATTN_SHARED_TOKENS_ * LATTN_TILE_COLUMNS_];
  int64_t n = a->queries * a->tokens;
  size_t bytes = (size_t)vectors * 16 * sizeof *r;
  pass->r = r;
  for (int64_t at = 0; at < n; at += LATTN_SHARED_TOKENS_) {
    int64_t row[LATTN_SHARED_TOKENS_];
    for (int l = 0; l < LATTN_SHARED_TOKENS_; l++) {
      int64_t m = lattn_min_(at + l, n - 1);
      row[l] = m % a->queries * a->job->chunk + m / a->queries;
      pass->q[l] = a->w->q + row[l] * a->s->rows;
    }
    lattn_pass_read_(pass, vectors);
    for (int l = 0; l < LATTN_SHARED_TOKENS_; l++)
      LATTN_MEMCPY_(a->w->r + row[l] * LATTN_TILE_COLUMNS_, r + l * LATTN_TILE_COLUMNS_, bytes);
  }
  return lattn_finish_strip_(a, c, vectors);
}

/* Rows [row, row + tokens) of q read head n of a state as it is. */
LATTN_NOINLINE_ int lattn_read_piece_(const lattn_advance_ *job, lattn_prep_ *w, lattn_state *s,
                                      int64_t n, int64_t row, int64_t tokens) {
  lattn_walk_ a = lattn_walk_at_(job, w, s, n, row);
  lattn_update_ updates[2 * LATTN_STATE_DRAFTS_ + 2];
  lattn_gate_ gates[LATTN_STATE_DRAFTS_ + 1], gate = {1, 1, 1, 1, 0, 1, 1};
  lattn_pass_ pass;
  int64_t stride, at, vectors;
  double *sums64 = lattn_state_small_(s, n, 0);
  char *base = lattn_state_head_(s, n);
  int lost = 0;
  a.first = 1;
  if (w->e) lattn_channel_exps_(w->e, sums64, 0, 0, s->rows);
  else gate.e = gate.before = lattn_exp_sum_(*sums64);
  pass.n_hints = 0;
  pass.rows = s->features;
  pass.updates = updates;
  pass.p_by = 0;
  for (int64_t c = 0; c < s->columns; c += 16 * vectors) {
    at = lattn_tile_at_(s, c, &stride);
    vectors = w->tile ? stride / 16 : 1;
    pass.s = (float *)(void *)base + at;
    pass.low = s->low ? (float *)(void *)(base + s->low) + at : 0;
    pass.stride = stride;
    pass.n_updates = lattn_listed_updates_(&a, updates, gates, c);
    pass.stores = 0;
    pass.q[0] = w->q;
    if (w->tile) { /* a copy of the tile, brought up to date */
      LATTN_MEMCPY_(w->tile, pass.s, (size_t)(s->features * stride) * sizeof(float));
      pass.s = w->tile;
      pass.stores = 2;
      pass.r = w->r;
      lattn_prepare_read_(&a, 0, &gate);
      lattn_pass_list_(&pass, (int)vectors);
    }
    for (a.row = row; a.row < row + tokens; a.row += a.tokens) {
      a.tokens = (int)lattn_min_(job->chunk, row + tokens - a.row);
      for (int64_t j = 0; j < a.tokens; j++) lattn_prepare_read_(&a, j, &gate);
      if (!w->tile) {
        for (int64_t i = 0; i < s->n_heads / s->n_states; i++) {
          pass.q[0] = w->q + i * s->rows;
          pass.r = w->r + i * LATTN_TILE_COLUMNS_;
          lattn_pass_list_(&pass, 1);
        }
        lost |= lattn_finish_strip_(&a, c, 1);
        continue;
      }
      for (int64_t v = 0; v < vectors;) {
        int width = vectors - v >= LATTN_SWEEP_VECTORS_ ? LATTN_SWEEP_VECTORS_ : 1;
        pass.s = w->tile + 16 * v;
        lost |= lattn_read_strip_(&a, &pass, c + 16 * v, width);
        v += width;
      }
    }
    a.row = row;
  }
  return lost;
}

/* ---- Aaren ----
   A head keeps partials (maximum, sum, weighted values), as §6 and §9 do: of the segment of 2048
   tokens that is being filled, in place 0, and of the subtrees of segments before it: that of 2^b
   segments is in place 1 + b, if bit b of their number is set (the last place takes all that come
   after 2^20 segments). A sum of 0: none. A token is a partial of its own (score, 1, value): it
   joins its segment by lattn_merge_row_'s rule, so a segment is one chain over its tokens, and an
   output the fold of the places by attend's tree, divided: a prefix has the same bits however its
   tokens came.

   Cost of a token and head: dk + dv multiply-adds, dv more for each subtree, dv divisions. */

enum {
  LATTN_AAREN_PARTS_ = 22,
  LATTN_AAREN_PIECES_ = 3, /* segments of a thread in a round of the scan */
  LATTN_AAREN_HEAD_ = 48,  /* floats before the first row: maxima and sums, 24 each */
  LATTN_AAREN_VECTORS_ = LATTN_TILE_PANELS_ > 2 ? LATTN_TILE_PANELS_ : 2
};

/* How A and B merge: A is kept, B taken, or one of them leads. */
enum { LATTN_KEEPS_A_ = 0, LATTN_TAKES_B_ = 1, LATTN_A_LEADS_ = 2, LATTN_B_LEADS_ = 3 };

/* Partials of a head. spare: rows that what changes goes to, instead of where it was: drafts leave
   the state as it is. */
typedef struct lattn_parts_ {
  float *m, *l, *row[LATTN_AAREN_PARTS_], *spare[2];
  int64_t columns;
} lattn_parts_;

LATTN_FN_ lattn_parts_ lattn_parts_at_(float *p, int64_t columns) {
  lattn_parts_ parts;
  parts.m = p;
  parts.l = p + LATTN_AAREN_HEAD_ / 2;
  parts.columns = columns;
  parts.spare[0] = parts.spare[1] = 0;
  for (int i = 0; i < LATTN_AAREN_PARTS_; i++) parts.row[i] = p + LATTN_AAREN_HEAD_ + i * columns;
  return parts;
}
LATTN_FN_ lattn_parts_ lattn_parts_of_(const lattn_state *s, int64_t n) {
  return lattn_parts_at_((float *)(void *)lattn_state_head_(s, n), s->columns);
}
LATTN_FN_ float lattn_parts_maximum_(const lattn_parts_ *p, int i) {
  return p->l[i] == 0 ? -LATTN_INFINITY_ : p->m[i];
}

LATTN_FN_ void lattn_parts_drop_(lattn_parts_ *p, int i) {
  p->m[i] = p->l[i] = 0;
  if (i == 0 || !p->spare[0])
    LATTN_MEMSET_(p->row[i], 0, (size_t)p->columns * sizeof(float));
}

LATTN_FN_ void lattn_parts_copy_(lattn_parts_ *to, const lattn_parts_ *from) {
  size_t bytes = (size_t)to->columns * sizeof(float);
  LATTN_MEMCPY_(to->m, from->m, LATTN_AAREN_HEAD_ * sizeof(float));
  for (int i = 0; i < LATTN_AAREN_PARTS_; i++)
    if (from->l[i] != 0) LATTN_MEMCPY_(to->row[i], from->row[i], bytes);
}

/* The same to a memory of three rows, enough for drafts: they fill one segment at most, whose carry
   needs two rows in turn. */
LATTN_FN_ void lattn_parts_draft_(lattn_parts_ *p, float *to) {
  float *row = to + LATTN_AAREN_HEAD_;
  LATTN_MEMCPY_(to, p->m, LATTN_AAREN_HEAD_ * sizeof *to);
  LATTN_MEMCPY_(row, p->row[0], (size_t)p->columns * sizeof *row);
  p->m = to;
  p->l = to + LATTN_AAREN_HEAD_ / 2;
  p->row[0] = row;
  p->spare[0] = row + p->columns;
  p->spare[1] = row + 2 * p->columns;
}

/* Place i, the older, merges with a later partial. */
LATTN_FN_ void lattn_parts_join_(lattn_parts_ *p, int i, float m, float l, const float *acc) {
  float own = lattn_parts_maximum_(p, i), *to = p->spare[0];
  if (l == 0) return;
  if (to) {
    p->spare[0] = p->spare[1];
    p->spare[1] = to;
    LATTN_MEMCPY_(to, p->row[i], (size_t)p->columns * sizeof *to);
    p->row[i] = to;
  }
  lattn_merge_row_(&own, p->l + i, p->row[i], m, l, acc, p->columns);
  p->m[i] = own;
}

/* Appends a subtree of 2^height segments to `segments` of them: a carry, as of a counter. */
LATTN_FN_ void lattn_parts_add_(lattn_parts_ *p, int height, int64_t segments, float m, float l,
                                const float *acc) {
  int i = 1 + height;
  lattn_parts_join_(p, i, m, l, acc);
  for (; i < LATTN_AAREN_PARTS_ - 1 && (segments >> (i - 1) & 1); i++) {
    lattn_parts_join_(p, i + 1, p->m[i], p->l[i], p->row[i]);
    lattn_parts_drop_(p, i);
  }
}

/* The segment that was being filled, number `segments`, is full. */
LATTN_FN_ void lattn_parts_finish_(lattn_parts_ *p, int64_t segments) {
  lattn_parts_add_(p, 0, segments, p->m[0], p->l[0], p->row[0]);
  lattn_parts_drop_(p, 0);
}

/* A worker's memory, for chunks of tokens. */
typedef struct lattn_aaren_space_ {
  float *q;           /* the query, scaled */
  float *s, *m, *l;   /* scores; maximum and sum after each token */
  float *e;           /* [parts][chunk]: factors of merges ... */
  unsigned char *how; /* ... likewise */
  int64_t step;       /* from one part's to the next's */
  float *own;         /* a copy of a head's parts, or what drafts change of them */
  float *totals;      /* of a scan: partials, one row each */
} lattn_aaren_space_;

LATTN_FN_ int64_t lattn_aaren_total_(const lattn_state *s) { return 16 + s->columns; }

/* Carves it from p (NULL: only counts). */
LATTN_FN_ size_t lattn_carve_aaren_(lattn_aaren_space_ *w, char *p, const lattn_state *s,
                                    int64_t chunk) {
  int64_t step = (chunk + 15) / 16 * 16, dk = ((int64_t)s->dk + 15) / 16 * 16;
  int64_t own = LATTN_AAREN_HEAD_ + (chunk > 1 ? LATTN_AAREN_PARTS_ : 3) * s->columns;
  int64_t totals = chunk > 1 ? LATTN_AAREN_PIECES_ * lattn_aaren_total_(s) : 0;
  int64_t how = (LATTN_AAREN_PARTS_ * step / 4 + 15) / 16 * 16;
  if (p) {
    w->q = (float *)(void *)p;
    w->s = w->q + dk;
    w->m = w->s + step;
    w->l = w->m + step;
    w->e = w->l + step;
    w->how = (unsigned char *)(w->e + LATTN_AAREN_PARTS_ * step);
    w->own = w->e + LATTN_AAREN_PARTS_ * step + how;
    w->totals = w->own + own;
    w->step = step;
  }
  return (size_t)(dk + (3 + LATTN_AAREN_PARTS_) * step + how + own + totals) * sizeof(float);
}

LATTN_FN_ size_t lattn_aaren_worker_(const lattn_state *s, int64_t chunk) {
  return lattn_carve_aaren_(0, 0, s, chunk);
}

/* A head: its partials, then of drafts their scores, [16], and values. */
LATTN_FN_ int64_t lattn_lay_aaren_(lattn_state *s) {
  int64_t at = 0;
  s->matrix_bytes = 4 * s->columns;
  lattn_lay_(&at, 4 * (LATTN_AAREN_HEAD_ + LATTN_AAREN_PARTS_ * s->columns));
  s->entries = lattn_lay_(&at, 4 * (LATTN_STATE_DRAFTS_ + s->max_drafts * s->columns));
  return at;
}
LATTN_FN_ float *lattn_aaren_drafts_(const lattn_state *s, int64_t n) {
  return (float *)(void *)(lattn_state_head_(s, n) + s->entries);
}

/* Tokens on their way into the partials of head n. */
typedef struct lattn_aaren_ {
  const lattn_advance_ *job; /* NULL: nothing is read */
  const lattn_state *s;
  lattn_aaren_space_ *w;
  lattn_parts_ parts;
  int64_t n, count; /* tokens in the parts */
  int reads, stores;
  int finishes; /* a full segment goes to the subtrees */
} lattn_aaren_;

/* Scores of rows [row, row + tokens) of k: dots of the scaled query in 16 lanes. */
LATTN_INLINE_ void lattn_aaren_dots_(int rows, int type, const float *q, const void *k, int64_t at,
                                     int64_t stride, int64_t dim, float *to) {
  lattn_v16_ sum[4];
  LATTN_UNROLL_
  for (int r = 0; r < rows; r++) sum[r] = lattn_v_set_(0);
  for (int64_t i = 0; i < dim; i += 16) {
    int n = dim - i < 16 ? (int)(dim - i) : 16;
    lattn_v16_ x = lattn_v_load_(q + i);
    LATTN_UNROLL_
    for (int r = 0; r < rows; r++)
      sum[r] = lattn_v_fma_(x, lattn_v_get_n_(k, type, at + r * stride + i, n), sum[r]);
  }
  lattn_v_reduce_rows_(sum, rows, 0, to);
}

LATTN_NOINLINE_ void lattn_aaren_scores_(const lattn_aaren_ *a, int64_t row, int64_t tokens) {
  const lattn_tensor *k = &a->job->k;
  const lattn_state *s = a->s;
  int64_t at = row * k->stride_token + a->n * s->n_key / s->n_heads * k->stride_head, j = 0;
#define LATTN_BODY_(T)                                                                            \
  for (; j + 4 <= tokens; j += 4)                                                                 \
    lattn_aaren_dots_(4, T, a->w->q, k->data, at + j * k->stride_token, k->stride_token, s->dk,   \
                      a->w->s + j);                                                               \
  for (; j < tokens; j++)                                                                         \
    lattn_aaren_dots_(1, T, a->w->q, k->data, at + j * k->stride_token, 0, s->dk, a->w->s + j)
  LATTN_EACH_TYPE_(k->type, LATTN_BODY_)
#undef LATTN_BODY_
}

/* How partials with these maxima merge; *d: the exponent of the one that does not lead. */
LATTN_INLINE_ int lattn_how_(float a, float b, float *d) {
  *d = 0;
  if (lattn_is_empty_(b)) return LATTN_KEEPS_A_;
  if (lattn_is_empty_(a)) return LATTN_TAKES_B_;
  if (a > b) {
    *d = b - a;
    return LATTN_A_LEADS_;
  }
  if (a != b) *d = a - b;
  return LATTN_B_LEADS_;
}

LATTN_INLINE_ float lattn_sum_of_(int how, float a, float b, float e) {
  if (how == LATTN_KEEPS_A_) return a;
  if (how == LATTN_TAKES_B_) return b;
  return how == LATTN_A_LEADS_ ? lattn_fma_(b, e, a) : lattn_fma_(a, e, b);
}

LATTN_FN_ void lattn_aaren_exps_(float *e, int tokens) {
  for (int j = tokens; j % 16; j++) e[j] = 0;
  for (int j = 0; j < tokens; j += 16) lattn_v_store_(e + j, lattn_v_exp_(lattn_v_load_(e + j)));
}

/* The tokens' scores join the segment: factors, and maximum and sum after each. */
LATTN_FN_ void lattn_aaren_weigh_(lattn_aaren_ *a, int tokens) {
  lattn_aaren_space_ *w = a->w;
  float m = lattn_parts_maximum_(&a->parts, 0), l = a->parts.l[0];
  for (int j = 0; j < tokens; j++) {
    w->how[j] = (unsigned char)lattn_how_(m, w->s[j], w->e + j);
    if (w->how[j] == LATTN_TAKES_B_ || w->how[j] == LATTN_B_LEADS_) m = w->s[j];
    w->m[j] = m;
  }
  lattn_aaren_exps_(w->e, tokens);
  for (int j = 0; j < tokens; j++) w->l[j] = l = lattn_sum_of_(w->how[j], l, 1.0f, w->e[j]);
  if (!a->stores || lattn_is_empty_(m)) return;
  a->parts.m[0] = m;
  a->parts.l[0] = l;
}

/* Then a subtree, which is older, joins each of these prefixes. */
LATTN_FN_ void lattn_aaren_fold_(lattn_aaren_ *a, int place, int tokens) {
  lattn_aaren_space_ *w = a->w;
  float m = a->parts.m[place], l = a->parts.l[place], *e = w->e + place * w->step;
  unsigned char *how = w->how + place * w->step;
  for (int j = 0; j < tokens; j++) {
    how[j] = (unsigned char)lattn_how_(m, w->m[j], e + j);
    if (how[j] == LATTN_KEEPS_A_ || how[j] == LATTN_A_LEADS_) w->m[j] = m;
  }
  lattn_aaren_exps_(e, tokens);
  for (int j = 0; j < tokens; j++) w->l[j] = lattn_sum_of_(how[j], l, w->l[j], e[j]);
}

/* Merges vectors of two partials into b. */
LATTN_INLINE_ void lattn_aaren_join_(int vectors, int how, float e, const lattn_v16_ *a,
                                     lattn_v16_ *b) {
  lattn_v16_ by = lattn_v_set_(e);
  if (how == LATTN_A_LEADS_) {
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) b[c] = lattn_v_fma_(b[c], by, a[c]);
  } else if (how == LATTN_B_LEADS_) {
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) b[c] = lattn_v_fma_(a[c], by, b[c]);
  } else if (how == LATTN_KEEPS_A_) {
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) b[c] = a[c];
  }
}

/* Columns [c, ...) of token j's output, row `row` of the call's. */
LATTN_INLINE_ int lattn_aaren_finish_(const lattn_aaren_ *a, int vectors, int64_t row, int64_t c,
                                      int j, const lattn_v16_ *x) {
  const lattn_tensor *out = &a->job->out;
  lattn_partial *partial = a->job->partial;
  lattn_v16_ zero = lattn_v_set_(0), l = lattn_v_set_(a->w->l[j]);
  int lost = 0, empty = lattn_is_empty_(a->w->m[j]);
  int64_t at = row * out->stride_token + a->n * out->stride_head + c;
  int64_t part = (row * a->s->n_heads + a->n) * a->s->dv + c;
  LATTN_UNROLL_
  for (int i = 0; i < vectors; i++) {
    int64_t left = a->s->dv - c - 16 * i;
    int n = left < 16 ? (int)left : 16;
    lattn_v16_ o = empty ? zero : x[i];
    if (partial) lattn_v_store_n_(partial->output + part + 16 * i, o, n);
    if (!out->data) continue;
    if (!empty) o = lattn_v_div_(o, l);
    o = lattn_v_if_equal_(o, zero, zero, o); /* -0 becomes +0 */
    lost |= lattn_v_put_n_((void *)(uintptr_t)out->data, out->type, at + 16 * i, o, n);
  }
  return lost;
}

/* Tokens whose scores are in place, over a strip of columns; their values are at element `value`
   of v. */
LATTN_INLINE_ int lattn_aaren_strip_(int vectors, lattn_aaren_ *a, const lattn_tensor *v,
                                     int64_t value, int64_t row, int64_t c, int tokens,
                                     const int *places, int n_places) {
  const lattn_aaren_space_ *w = a->w;
  lattn_v16_ acc[LATTN_AAREN_VECTORS_], x[LATTN_AAREN_VECTORS_], y[LATTN_AAREN_VECTORS_];
  float *own = a->parts.row[0] + c;
  int lost = 0;
  LATTN_UNROLL_
  for (int i = 0; i < vectors; i++) acc[i] = lattn_v_load_(own + 16 * i);
  for (int j = 0; j < tokens; j++, value += v->stride_token) {
    if (w->how[j] != LATTN_KEEPS_A_) {
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++) {
        int64_t left = a->s->dv - c - 16 * i;
        x[i] = lattn_v_get_n_(v->data, v->type, value + c + 16 * i, left < 16 ? (int)left : 16);
      }
      lattn_aaren_join_(vectors, w->how[j], w->e[j], acc, x);
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++) acc[i] = x[i];
    }
    if (!a->reads) continue;
    LATTN_UNROLL_
    for (int i = 0; i < vectors; i++) x[i] = acc[i];
    for (int p = 0; p < n_places; p++) {
      int64_t at = places[p] * w->step + j;
      const float *from = a->parts.row[places[p]] + c;
      LATTN_UNROLL_
      for (int i = 0; i < vectors; i++) y[i] = lattn_v_load_(from + 16 * i);
      lattn_aaren_join_(vectors, w->how[at], w->e[at], y, x);
    }
    lost |= lattn_aaren_finish_(a, vectors, row + j, c, j, x);
  }
  if (!a->stores) return lost;
  LATTN_UNROLL_
  for (int i = 0; i < vectors; i++) lattn_v_store_(own + 16 * i, acc[i]);
  return lost;
}

/* A chunk of tokens of one segment whose scores are in place. */
LATTN_NOINLINE_ int lattn_aaren_chunk_(lattn_aaren_ *a, const lattn_tensor *v, int64_t value,
                                       int64_t row, int tokens) {
  enum { V = LATTN_AAREN_VECTORS_ };
  int places[LATTN_AAREN_PARTS_], n = 0, lost = 0;
  lattn_partial *partial = a->job ? a->job->partial : 0;
  lattn_aaren_weigh_(a, tokens);
  for (int i = 1; a->reads && i < LATTN_AAREN_PARTS_; i++)
    if (a->parts.l[i] != 0) {
      places[n++] = i;
      lattn_aaren_fold_(a, i, tokens);
    }
  for (int64_t c = 0; c < a->s->columns;) {
    int whole = a->s->columns - c >= 16 * V;
    lost |= whole ? lattn_aaren_strip_(V, a, v, value, row, c, tokens, places, n)
                  : lattn_aaren_strip_(1, a, v, value, row, c, tokens, places, n);
    c += whole ? 16 * V : 16;
  }
  for (int j = 0; a->reads && partial && j < tokens; j++) {
    int64_t at = (row + j) * a->s->n_heads + a->n;
    partial->maximum[at] = a->w->m[j];
    partial->sum[at] = lattn_is_empty_(a->w->m[j]) ? 0.0f : a->w->l[j];
  }
  if (!a->stores) return lost;
  a->count += tokens;
  if (a->finishes && a->count % LATTN_SEGMENT_ == 0)
    lattn_parts_finish_(&a->parts, a->count / LATTN_SEGMENT_ - 1);
  return lost;
}

/* Tokens of one segment, at most a chunk, of `left`. */
LATTN_FN_ int lattn_aaren_some_(const lattn_aaren_ *a, int64_t chunk, int64_t left) {
  return (int)lattn_min_(lattn_min_(chunk, left), LATTN_SEGMENT_ - a->count % LATTN_SEGMENT_);
}

LATTN_FN_ void lattn_aaren_query_(const lattn_aaren_ *a) {
  int64_t dk = ((int64_t)a->s->dk + 15) / 16 * 16;
  LATTN_MEMCPY_(a->w->q, (const char *)a->s + a->s->query + a->n * dk * 4, (size_t)dk * 4);
  lattn_scale_(a->w->q, dk, a->s->scale);
}

/* Rows [row, row + tokens) of k and v. */
LATTN_FN_ int lattn_aaren_rows_(lattn_aaren_ *a, int64_t row, int64_t tokens) {
  const lattn_tensor *v = &a->job->v;
  int64_t head = a->n * a->s->n_value / a->s->n_heads * v->stride_head;
  int lost = 0, n;
  lattn_aaren_query_(a);
  for (int64_t end = row + tokens; row < end; row += n) {
    n = lattn_aaren_some_(a, a->job->chunk, end - row);
    lattn_aaren_scores_(a, row, n);
    lost |= lattn_aaren_chunk_(a, v, row * v->stride_token + head, row, n);
  }
  return lost;
}

/* The first n drafts of a head, whose values are kept as floats. */
LATTN_FN_ void lattn_aaren_replay_(lattn_aaren_ *a, int64_t n) {
  float *drafts = lattn_aaren_drafts_(a->s, a->n);
  lattn_tensor v = lattn_floats_(drafts, 1);
  v.stride_token = a->s->columns;
  for (int64_t at = 0; at < n;) {
    int some = lattn_aaren_some_(a, 1, n - at);
    a->w->s[0] = drafts[at];
    lattn_aaren_chunk_(a, &v, LATTN_STATE_DRAFTS_ + at * a->s->columns, 0, some);
    at += some;
  }
}

/* Keeps rows [row, row + tokens) as drafts; what changes of the parts is a copy. */
LATTN_FN_ int lattn_aaren_draft_(lattn_aaren_ *a, int64_t row, int64_t tokens) {
  const lattn_state *s = a->s;
  const lattn_tensor *v = &a->job->v;
  float *drafts = lattn_aaren_drafts_(s, a->n);
  lattn_parts_draft_(&a->parts, a->w->own);
  a->reads = 0;
  lattn_aaren_replay_(a, s->n_drafts);
  lattn_aaren_query_(a);
  for (int64_t j = 0; j < tokens; j++) {
    int64_t at = s->n_drafts + j, value = (row + j) * v->stride_token;
    lattn_aaren_scores_(a, row + j, 1);
    drafts[at] = a->w->s[0];
    lattn_load_row_(drafts + LATTN_STATE_DRAFTS_ + at * s->columns, v,
                    value + a->n * s->n_value / s->n_heads * v->stride_head, s->dv);
  }
  a->reads = a->job->out.data != 0;
  return lattn_aaren_rows_(a, row, tokens);
}

/* Rows [row, row + tokens) of a call, head n. */
LATTN_FN_ int lattn_aaren_piece_(const lattn_advance_ *job, char *space, lattn_state *s, int64_t n,
                                 int64_t row, int64_t tokens) {
  lattn_aaren_space_ w;
  lattn_aaren_ a = {job, s, &w, lattn_parts_of_(s, n), n, s->n_tokens, 1, 1, 1};
  int lost = 0;
  lattn_carve_aaren_(&w, space, s, job->chunk);
  a.reads = job->out.data || job->partial;
  if (job->drafts) return lattn_aaren_draft_(&a, row, tokens);
  if (!job->reads_only) return lattn_aaren_rows_(&a, row, tokens);
  a.stores = 0;
  for (int64_t i = row; i < row + tokens; i++) { /* as after a token that nothing sees */
    w.s[0] = -LATTN_INFINITY_;
    lost |= lattn_aaren_chunk_(&a, &job->k, 0, i, 1);
  }
  return lost;
}

LATTN_FN_ void lattn_commit_aaren_(lattn_state *s, int32_t n) {
  float rows[4 * 16];
  unsigned char how[16];
  lattn_aaren_space_ w = {0, rows, rows + 16, rows + 32, rows + 48, how, 16, 0, 0};
  for (int64_t i = 0; i < s->n_states; i++) {
    lattn_aaren_ a = {0, s, &w, lattn_parts_of_(s, i), i, s->n_tokens, 0, 1, 1};
    lattn_aaren_replay_(&a, n);
  }
}

/* Appends b, which began empty. Its subtrees stay what they are where they are aligned in the
   whole; else all that both hold becomes one partial. */
LATTN_NOINLINE_ void lattn_merge_aaren_(lattn_state *s, const lattn_state *b) {
  int64_t all = s->n_tokens + b->n_tokens, more = b->n_tokens / LATTN_SEGMENT_;
  int64_t segments = s->n_tokens / LATTN_SEGMENT_;
  int top = 0, aligned = s->n_tokens % LATTN_SEGMENT_ == 0;
  while (top < LATTN_AAREN_PARTS_ - 2 && more >> 1 >> top) top++; /* 2^top <= more */
  if (more && segments % ((int64_t)1 << top)) aligned = 0;
  for (int64_t n = 0; n < s->n_states; n++) {
    lattn_parts_ to = lattn_parts_of_(s, n), from = lattn_parts_of_(b, n);
    int64_t at = segments, count = all / LATTN_SEGMENT_;
    int place = 0;
    if (aligned) {
      for (int i = LATTN_AAREN_PARTS_ - 1; i >= 1; i--) {
        int64_t size = i < LATTN_AAREN_PARTS_ - 1 ? more & (int64_t)1 << (i - 1)
                                                  : more >> (i - 1) << (i - 1);
        if (size) lattn_parts_add_(&to, i - 1, at, from.m[i], from.l[i], from.row[i]);
        at += size;
      }
      lattn_parts_join_(&to, 0, from.m[0], from.l[0], from.row[0]);
      continue;
    }
    for (int i = 1; i < LATTN_AAREN_PARTS_; i++) { /* newest first, each joins the older */
      if (to.l[i] == 0) continue;
      lattn_parts_join_(&to, i, to.m[place], to.l[place], to.row[place]);
      lattn_parts_drop_(&to, place);
      place = i;
    }
    for (int i = LATTN_AAREN_PARTS_ - 1; i >= 0; i--)
      lattn_parts_join_(&to, place, from.m[i], from.l[i], from.row[i]);
    top = 0; /* where the whole's largest subtree is */
    while (top < LATTN_AAREN_PARTS_ - 1 && count >> top) top++;
    if (top == place) continue;
    lattn_parts_join_(&to, top, to.m[place], to.l[place], to.row[place]);
    lattn_parts_drop_(&to, place);
  }
  s->n_tokens = all;
}

/* Places that may hold something: a saved state has no others. */
LATTN_FN_ int lattn_aaren_filled_(const lattn_state *s, int i) {
  int64_t segments = s->n_tokens / LATTN_SEGMENT_;
  if (i == 0) return s->n_tokens % LATTN_SEGMENT_ != 0;
  if (i == LATTN_AAREN_PARTS_ - 1) return segments >> (i - 1) != 0;
  return (int)(segments >> (i - 1) & 1);
}
LATTN_FN_ void lattn_stream_aaren_(lattn_stream_ *st, lattn_state *s, int64_t n) {
  lattn_parts_ p = lattn_parts_of_(s, n);
  for (int i = 0; i < LATTN_AAREN_PARTS_ && !st->failed; i++) {
    if (!lattn_aaren_filled_(s, i)) continue;
    lattn_stream_row_(st, (char *)(p.m + i), 4, 1, 1);
    lattn_stream_row_(st, (char *)(p.l + i), 4, 1, 1);
    lattn_stream_row_(st, (char *)p.row[i], 4, s->dv, 1);
  }
}
LATTN_FN_ int64_t lattn_saved_aaren_(const lattn_state *s) {
  int64_t rows = 0;
  for (int i = 0; i < LATTN_AAREN_PARTS_; i++) rows += lattn_aaren_filled_(s, i);
  return rows * (2 + (int64_t)s->dv) * 4;
}

/* A long call of few heads, by a scan over segments, in rounds of as many as the threads have room
   for: each segment's total, then, with the totals of those before it, its outputs. Where nothing
   is read the totals are all. */
typedef struct lattn_scan_ {
  lattn_advance_ *job;
  lattn_state *s;
  int64_t row, count, tokens; /* of the round: first row, tokens before, tokens */
  int32_t last, outputs;      /* number of the last segment; whether this is the second pass */
  int32_t next;               /* the only member that workers change */
} lattn_scan_;

LATTN_FN_ float *lattn_scan_total_(const lattn_scan_ *scan, int64_t n, int64_t piece) {
  const lattn_advance_ *job = scan->job;
  int64_t unit = n * (scan->last + 1) + piece;
  lattn_aaren_space_ w;
  lattn_carve_aaren_(&w, job->scratch + (size_t)(unit / LATTN_AAREN_PIECES_) * job->worker_bytes,
                     scan->s, job->chunk);
  return w.totals + unit % LATTN_AAREN_PIECES_ * lattn_aaren_total_(scan->s);
}

/* Segment `piece` of the round for head n. */
LATTN_FN_ int lattn_scan_piece_(const lattn_scan_ *scan, char *space, int64_t n, int64_t piece) {
  const lattn_state *s = scan->s;
  int64_t first = scan->count / LATTN_SEGMENT_, end = scan->count + scan->tokens;
  int64_t from = piece ? (first + piece) * LATTN_SEGMENT_ : scan->count;
  float *total = lattn_scan_total_(scan, n, piece);
  lattn_aaren_space_ w;
  lattn_parts_ before = lattn_parts_of_(s, n);
  lattn_aaren_ a = {scan->job, s, &w, before, n, from, 1, 1, 0};
  int lost;
  lattn_carve_aaren_(&w, space, s, scan->job->chunk);
  end = lattn_min_(end, (first + piece + 1) * LATTN_SEGMENT_);
  a.parts = lattn_parts_at_(w.own, s->columns);
  a.reads = (scan->job->out.data || scan->job->partial) && (scan->outputs || piece == 0);
  lattn_parts_copy_(&a.parts, &before);
  if (piece) lattn_parts_drop_(&a.parts, 0);
  for (int64_t i = 0; scan->outputs && i < piece; i++) {
    const float *t = lattn_scan_total_(scan, n, i);
    lattn_parts_add_(&a.parts, 0, first + i, t[0], t[1], t + 16);
  }
  lost = lattn_aaren_rows_(&a, scan->row + from - scan->count, end - from);
  if (scan->outputs && piece < scan->last) return lost; /* others may be reading it */
  total[0] = a.parts.m[0];
  total[1] = a.parts.l[0];
  LATTN_MEMCPY_(total + 16, a.parts.row[0], (size_t)s->columns * sizeof(float));
  return lost;
}

/* Works off units: (head, segment). First all segments but the last, whose total nothing needs
   before it has its outputs; then all but the first, which had them at once. */
LATTN_NOINLINE_ void lattn_scan_worker_(lattn_scan_ *scan, int32_t index, char *space) {
  lattn_advance_ *job = scan->job;
  int reads = job->out.data || job->partial;
  int64_t each = reads && scan->last ? scan->last : scan->last + 1, turn = 0;
  for (;;) {
    int64_t unit = LATTN_HAS_ATOMIC_ ? lattn_take_(&scan->next) : index + job->n_workers * turn++;
    if (unit >= each * scan->s->n_states) return;
    if (lattn_scan_piece_(scan, space, unit / each, unit % each + scan->outputs))
      lattn_raise_(&job->overflowed);
  }
}

LATTN_FN_ void lattn_scan_task_(void *context, int32_t index) {
  lattn_scan_ *scan = (lattn_scan_ *)context;
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_scan_worker_(scan, index, scan->job->scratch + (size_t)index * scan->job->worker_bytes);
  lattn_fpenv_leave_(&saved);
}

/* The totals of a round go into the state. */
LATTN_NOINLINE_ void lattn_scan_settle_(const lattn_scan_ *scan) {
  int64_t first = scan->count / LATTN_SEGMENT_, end = scan->count + scan->tokens;
  for (int64_t n = 0; n < scan->s->n_states; n++) {
    lattn_parts_ p = lattn_parts_of_(scan->s, n);
    lattn_parts_drop_(&p, 0);
    for (int64_t i = 0; i <= scan->last; i++) {
      const float *t = lattn_scan_total_(scan, n, i);
      if ((first + i + 1) * LATTN_SEGMENT_ <= end)
        lattn_parts_add_(&p, 0, first + i, t[0], t[1], t + 16);
      else
        lattn_parts_join_(&p, 0, t[0], t[1], t + 16);
    }
  }
}

/* Rows [row, row + tokens) of a state that has `count` tokens. */
LATTN_FN_ void lattn_scan_state_(lattn_advance_ *job, const lattn_exec *ex, lattn_state *s,
                                 int64_t row, int64_t tokens) {
  int64_t most = (int64_t)LATTN_AAREN_PIECES_ * job->n_workers / s->n_states;
  lattn_scan_ scan = {job, s, row, s->n_tokens, 0, 0, 0, 0};
  lattn_fpenv_ saved;
  for (int64_t end = s->n_tokens + tokens; scan.count < end; scan.count += scan.tokens) {
    int64_t first = scan.count / LATTN_SEGMENT_;
    scan.tokens = lattn_min_(end, (first + most) * LATTN_SEGMENT_) - scan.count;
    scan.last = (int32_t)((scan.count + scan.tokens - 1) / LATTN_SEGMENT_ - first);
    scan.next = scan.outputs = 0;
    lattn_parallel_(ex, job->n_workers, lattn_scan_task_, &scan);
    if ((job->out.data || job->partial) && scan.last) {
      scan.next = 0;
      scan.outputs = 1;
      lattn_parallel_(ex, job->n_workers, lattn_scan_task_, &scan);
    }
    lattn_fpenv_enter_(&saved);
    lattn_scan_settle_(&scan);
    lattn_fpenv_leave_(&saved);
    scan.row += scan.tokens;
  }
}

/* Fewer heads than threads, and segments enough. */
LATTN_FN_ int lattn_scans_(const lattn_advance_ *job) {
  const lattn_state *s = job->list[0].state;
  return s->kind == LATTN_STATE_AAREN && job->scratch && job->chunk > 1 && !job->drafts &&
         !job->reads_only && job->n_list * s->n_states < job->n_workers &&
         job->to - job->from > 2 * LATTN_SEGMENT_ * job->n_list;
}

LATTN_FN_ void lattn_scan_aaren_(lattn_advance_ *job, const lattn_exec *ex) {
  int64_t row = 0;
  for (int64_t i = 0; i < job->n_list; i++) {
    int64_t from = lattn_max_(job->from, row);
    int64_t to = lattn_min_(job->to, row + job->list[i].n_tokens);
    if (from < to) lattn_scan_state_(job, ex, job->list[i].state, from, to - from);
    row += job->list[i].n_tokens;
  }
}

/* ---- Titans: a memory that learns while it reads ----
   A head has two or three copies of its weights, one after another: the memory, its momentum and,
   if gradients are taken at a chunk's beginning, the memory as it was there; beside them, if
   drafts may come, a second set on which drafts run, and what they learned. The weights are
   planes: W [key_dim][value_dim] of a linear memory, in tiles as S above; W1 [key_dim][hidden], W2
   [hidden][value_dim] and the gain [1][value_dim] of a deep one, row by row.

   What a token learns is of rank 1 in each plane: momentum = eta momentum + x u^T, memory = (1 -
   alpha) memory + momentum, with x what came in, and u minus the gradient of what came out, times
   rate. So (x, u) of all planes is a lesson: a draft is kept as one, and committed by it.

   Cost of a token and head: 4 passes over a linear memory (predicted, momentum and memory written,
   read), 7 over a deep one; the tiles of a linear one stay in the first-level cache for a chunk. */

enum {
  LATTN_MEMORY_ = 0, /* copies */
  LATTN_MOMENTUM_ = 1,
  LATTN_FROZEN_ = 2,
  LATTN_MEMORY_COLUMNS_ = 64, /* of a tile */
  LATTN_THROUGH_VECTORS_ = 4  /* columns of a pass / 16 */
};

typedef struct lattn_plane_ {
  int64_t at, rows, columns, tile; /* in floats from the copy's first; columns padded; of a tile */
} lattn_plane_;

LATTN_FN_ int64_t lattn_hidden_(const lattn_state *s) {
  return ((int64_t)s->hidden + 15) / 16 * 16;
}

/* Plane 0, or of a deep memory 1 and 2 (the gain: without residual, it has no rows). */
LATTN_FN_ lattn_plane_ lattn_plane_of_(const lattn_state *s, int which) {
  int64_t hidden = lattn_hidden_(s), first = s->features * hidden, second = s->hidden * s->columns;
  lattn_plane_ p = {0, s->features, s->columns, LATTN_MEMORY_COLUMNS_};
  if (!s->hidden) return p;
  p.at = which == 0 ? 0 : which == 1 ? first : first + second;
  p.rows = which == 0 ? s->features : which == 1 ? s->hidden : s->residual;
  p.columns = p.tile = which == 0 ? hidden : s->columns;
  return p;
}

LATTN_FN_ float *lattn_memory_(const lattn_state *s, int64_t n) {
  return (float *)(void *)lattn_state_head_(s, n);
}
LATTN_FN_ float *lattn_memory_shadow_(const lattn_state *s, int64_t n) {
  return (float *)(void *)(lattn_state_head_(s, n) + s->shadow);
}

/* Parts of a lesson: rate, eta and 1 - alpha; k; u of the output, where at first v is; of a deep
   memory, what is hidden and its u; u of the gain. */
LATTN_FN_ float *lattn_lesson_k_(float *e) { return e + 16; }
LATTN_FN_ float *lattn_lesson_u_(const lattn_state *s, float *e) { return e + 16 + s->rows; }
LATTN_FN_ float *lattn_lesson_a_(const lattn_state *s, float *e) {
  return e + 16 + s->rows + s->columns;
}
LATTN_FN_ float *lattn_lesson_h_(const lattn_state *s, float *e) {
  return lattn_lesson_a_(s, e) + lattn_hidden_(s);
}
LATTN_FN_ float *lattn_lesson_g_(const lattn_state *s, float *e) {
  return lattn_lesson_h_(s, e) + lattn_hidden_(s);
}

LATTN_FN_ int64_t lattn_lay_titans_(lattn_state *s) {
  int64_t at = 0, hidden = lattn_hidden_(s), copies = s->chunk > 1 ? 3 : 2;
  lattn_plane_ last = lattn_plane_of_(s, s->hidden ? 2 : 0);
  s->weights = last.at + last.rows * last.columns;
  s->matrix_bytes = lattn_times_(s->weights, 4 * copies);
  s->entry_floats = 16 + s->rows + s->columns + 2 * hidden + (s->residual ? s->columns : 0);
  lattn_lay_(&at, s->matrix_bytes);
  if (s->max_drafts) {
    s->shadow = lattn_lay_(&at, s->matrix_bytes);
    s->entries = lattn_lay_(&at, s->max_drafts * s->entry_floats * 4);
  }
  return at;
}

/* Lessons made at a time: of a deep memory one, which does not stay in a cache beside it. */
LATTN_FN_ int64_t lattn_lessons_(const lattn_state *s, int64_t chunk) {
  return s->hidden ? 1 : chunk;
}

/* Lessons; then a query, what is hidden, and an output. */
LATTN_FN_ size_t lattn_titans_worker_(const lattn_state *s, int64_t chunk) {
  int64_t more = s->rows + (s->hidden ? lattn_hidden_(s) + s->columns : 0);
  return (size_t)(lattn_lessons_(s, chunk) * s->entry_floats + more) * sizeof(float);
}

/* -- activations -- */

/* P(X <= x), X normal, to 1e-7; *density = exp(-x^2 / 2) / sqrt(2 pi).
   P(X <= -a) = exp(-a^2 / 2) Q(s), s = (a - 3) / (a + 3) with its rounding error corrected, Q of
   degree 9: 6.7e-9 of the result at most off for a <= 13.3, beyond which exp is 0. */
LATTN_FN_ lattn_v16_ lattn_v_normal_(lattn_v16_ x, lattn_v16_ *density) {
  static const float q[10] = {0.121513948f,     -0.206402615f,    0.123225018f,   -0.0462133139f,
                              0.00613218313f,   0.00290470268f,   -0.000984182814f,
                              -0.000339911319f, 0.000116037379f,  5.41508525e-05f};
  lattn_v16_ a = lattn_v_abs_(x), one = lattn_v_set_(1), zero = lattn_v_set_(0), y, s, e;
  y = lattn_v_div_(one, lattn_v_add_(a, lattn_v_set_(3)));
  s = lattn_v_fma_(lattn_v_set_(-6), y, one);
  e = lattn_v_fma_(lattn_v_add_(s, one), lattn_v_set_(-3), a);
  e = lattn_v_fma_(lattn_v_sub_(zero, s), a, e); /* a - 3 - s (a + 3) */
  s = lattn_v_fma_(e, y, s);
  y = lattn_v_set_(q[9]);
  for (int i = 8; i >= 0; i--) y = lattn_v_fma_(y, s, lattn_v_set_(q[i]));
  e = lattn_v_exp_(lattn_v_mul_(lattn_v_mul_(a, a), lattn_v_set_(-0.5f)));
  *density = lattn_v_mul_(e, lattn_v_set_(0.398942292f));
  s = lattn_v_fma_(lattn_v_sub_(zero, e), y, one);
  return lattn_v_if_less_(x, zero, lattn_v_mul_(e, y), s);
}

/* An activation of 16 numbers, and its derivative: x F(x) and F(x) + x f(x), F the normal or the
   logistic distribution (whose density is F (1 - F)). */
LATTN_FN_ lattn_v16_ lattn_activation_(int32_t activation, lattn_v16_ x, lattn_v16_ *slope) {
  lattn_v16_ p, density, one = lattn_v_set_(1);
  if (activation == LATTN_ACTIVATION_SILU) {
    p = lattn_v_sigmoid_(x);
    *slope = lattn_v_mul_(p, lattn_v_fma_(x, lattn_v_sub_(one, p), one));
  } else {
    p = lattn_v_normal_(x, &density);
    *slope = lattn_v_fma_(x, density, p);
  }
  return lattn_v_mul_(x, p);
}

/* -- a plane, or a tile of it -- */

LATTN_INLINE_ void lattn_through_body_(int vectors, const float *w, int64_t rows, int64_t stride,
                                       const float *x, float *y) {
  lattn_v16_ sum[LATTN_THROUGH_VECTORS_];
  LATTN_UNROLL_
  for (int c = 0; c < vectors; c++) sum[c] = lattn_v_set_(0);
  for (int64_t i = 0; i < rows; i++, w += stride) {
    lattn_v16_ b = lattn_v_set_(x[i]);
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) sum[c] = lattn_v_fma_(b, lattn_v_load_(w + 16 * c), sum[c]);
  }
  LATTN_UNROLL_
  for (int c = 0; c < vectors; c++) lattn_v_store_(y + 16 * c, sum[c]);
}

/* y = W^T x. */
LATTN_NOINLINE_ void lattn_through_(const float *w, int64_t rows, int64_t stride, int64_t columns,
                                    const float *x, float *y) {
  int64_t c = 0;
  for (; c + 16 * LATTN_THROUGH_VECTORS_ <= columns; c += 16 * LATTN_THROUGH_VECTORS_)
    lattn_through_body_(LATTN_THROUGH_VECTORS_, w + c, rows, stride, x, y + c);
  for (; c < columns; c += 16) lattn_through_body_(1, w + c, rows, stride, x, y + c);
}

/* S = eta S + x u^T, W = keep W + S, S `apart` floats behind W. */
LATTN_NOINLINE_ void lattn_learn_(float *w, int64_t apart, int64_t rows, int64_t columns,
                                  const float *x, const float *u, float eta, float keep) {
  lattn_v16_ a = lattn_v_set_(eta), b = lattn_v_set_(keep);
  for (int64_t i = 0; i < rows; i++, w += columns) {
    lattn_v16_ by = lattn_v_set_(x[i]);
    for (int64_t c = 0; c < columns; c += 16) {
      lattn_v16_ m = lattn_v_load_(w + apart + c);
      m = lattn_v_fma_(by, lattn_v_load_(u + c), lattn_v_mul_(a, m));
      lattn_v_store_(w + apart + c, m);
      lattn_v_store_(w + c, lattn_v_fma_(b, lattn_v_load_(w + c), m));
    }
  }
}

/* -- the deep memory -- */

/* x in columns below n, 0 beyond: so nothing beyond the last column, be it infinite, is seen. */
LATTN_INLINE_ lattn_v16_ lattn_v_below_(int64_t n, int64_t c, lattn_v16_ x) {
  return n - c >= 16 ? x : lattn_v_if_bits_((1u << (n - c)) - 1u, x, lattn_v_set_(0));
}

/* y becomes (y - mean) / sqrt(variance + 1e-5); returns what it was multiplied by. */
LATTN_FN_ float lattn_layer_norm_(float *y, int64_t n) {
  lattn_v16_ sum = lattn_v_set_(0), mean;
  float by;
  for (int64_t c = 0; c < n; c += 16)
    sum = lattn_v_add_(sum, lattn_v_below_(n, c, lattn_v_load_(y + c)));
  mean = lattn_v_set_(lattn_v_reduce_add_(sum) / (float)n);
  sum = lattn_v_set_(0);
  for (int64_t c = 0; c < n; c += 16) {
    lattn_v16_ d = lattn_v_below_(n, c, lattn_v_sub_(lattn_v_load_(y + c), mean));
    sum = lattn_v_fma_(d, d, sum);
    lattn_v_store_(y + c, d);
  }
  by = lattn_rsqrt_(lattn_v_reduce_add_(sum) / (float)n + 1e-5f);
  for (int64_t c = 0; c < n; c += 16)
    lattn_v_store_(y + c, lattn_v_mul_(lattn_v_load_(y + c), lattn_v_set_(by)));
  return by;
}

/* a = act(W1^T x), y = W2^T a; slope: NULL, or gets the activation's derivative. */
LATTN_FN_ void lattn_deep_(const lattn_state *s, const float *w, const float *x, float *a,
                           float *slope, float *y) {
  int64_t hidden = lattn_hidden_(s);
  lattn_plane_ second = lattn_plane_of_(s, 1);
  lattn_through_(w, s->features, hidden, hidden, x, a);
  for (int64_t i = 0; i < hidden; i += 16) {
    lattn_v16_ d;
    lattn_v_store_(a + i, lattn_activation_(s->activation, lattn_v_load_(a + i), &d));
    if (slope) lattn_v_store_(slope + i, d);
  }
  lattn_through_(w + second.at, s->hidden, s->columns, s->columns, a, y);
}

/* The residual memory: of z = norm(y), `by` what normed it, and v in u: u becomes minus the
   gradient of y, of out = z (1 + gain) + k (flow.md 3.4), g that of the gain. */
LATTN_FN_ void lattn_unlearn_norm_(const lattn_state *s, const float *gain, float rate, float by,
                                   const float *z, const float *k, float *u, float *g) {
  lattn_v16_ one = lattn_v_set_(1), sum = lattn_v_set_(0), more = sum, mean;
  int64_t n = s->dv;
  for (int64_t c = 0; c < n; c += 16) {
    lattn_v16_ slope = lattn_v_add_(one, lattn_v_load_(gain + c)), y = lattn_v_load_(z + c), d;
    d = lattn_v_sub_(lattn_v_load_(u + c), lattn_v_fma_(y, slope, lattn_v_load_(k + c)));
    d = lattn_v_below_(n, c, lattn_v_mul_(lattn_v_set_(rate), d));
    slope = lattn_v_below_(n, c, slope);
    y = lattn_v_mul_(d, y);
    lattn_v_store_(u + c, d);
    lattn_v_store_(g + c, y);
    sum = lattn_v_fma_(d, slope, sum);
    more = lattn_v_fma_(y, slope, more);
  }
  mean = lattn_v_set_(-(lattn_v_reduce_add_(sum) / (float)n));
  more = lattn_v_set_(-(lattn_v_reduce_add_(more) / (float)n));
  for (int64_t c = 0; c < n; c += 16) {
    lattn_v16_ slope = lattn_v_add_(one, lattn_v_load_(gain + c)), d;
    d = lattn_v_fma_(lattn_v_load_(u + c), slope, mean);
    d = lattn_v_mul_(lattn_v_set_(by), lattn_v_fma_(lattn_v_load_(z + c), more, d));
    lattn_v_store_(u + c, lattn_v_below_(n, c, d));
  }
}

/* h_i becomes h_i (W2 u)_i, four rows at a time. */
LATTN_FN_ void lattn_unlearn_(const lattn_state *s, const float *w, const float *u, float *h) {
  enum { R = 4 };
  for (int64_t i = 0; i < s->hidden; i += R) {
    lattn_v16_ sum[R];
    float d[R];
    for (int r = 0; r < R; r++) {
      const float *row = w + lattn_min_(i + r, s->hidden - 1) * s->columns;
      sum[r] = lattn_v_set_(0);
      for (int64_t c = 0; c < s->columns; c += 16)
        sum[r] = lattn_v_fma_(lattn_v_below_(s->dv, c, lattn_v_load_(row + c)),
                              lattn_v_load_(u + c), sum[r]);
    }
    lattn_v_reduce_rows_(sum, R, 0, d);
    for (int r = 0; r < R && i + r < s->hidden; r++) h[i + r] = h[i + r] * d[r];
  }
  for (int64_t i = s->hidden; i < lattn_hidden_(s); i++) h[i] = 0;
}

/* -- a token -- */

/* Row `row` of the call as a lesson to come. */
LATTN_FN_ void lattn_lesson_load_(const lattn_advance_ *job, const lattn_state *s, int64_t n,
                                  int64_t row, float *e) {
  const lattn_tensor *t[3] = {&job->rate, &job->momentum, &job->forget};
  for (int i = 0; i < 3; i++)
    e[i] = t[i]->data ? lattn_get_(t[i]->data, t[i]->type, lattn_state_row_(s, t[i], row, n)) : 0;
  e[0] = e[0] * s->loss_factor;
  e[2] = 1.0f - e[2];
  lattn_load_row_(lattn_lesson_k_(e), &job->k, lattn_state_row_(s, &job->k, row, n), s->dk);
  lattn_load_row_(lattn_lesson_u_(s, e), &job->v, lattn_state_row_(s, &job->v, row, n), s->dv);
}

/* Tiles of the output: columns [c, c + width), at *tile of a copy. A deep memory has one. */
LATTN_FN_ int64_t lattn_memory_tile_(const lattn_state *s, int64_t c, int64_t *tile) {
  *tile = s->hidden ? 0 : c * s->features;
  return s->hidden ? s->columns : lattn_min_(s->columns - c, LATTN_MEMORY_COLUMNS_);
}

/* Before token number `index` of the sequence: a chunk's first keeps the memory as it is. */
LATTN_FN_ void lattn_memory_freeze_(const lattn_state *s, float *w, int64_t c, int64_t index) {
  int64_t tile, width = lattn_memory_tile_(s, c, &tile);
  int64_t floats = s->hidden ? s->weights : s->features * width;
  if (s->chunk > 1 && index % s->chunk == 0)
    LATTN_MEMCPY_(w + LATTN_FROZEN_ * s->weights + tile, w + tile,
                  (size_t)floats * sizeof *w);
}

/* Makes the lesson of a token: columns from c on. y: room for an output. */
LATTN_FN_ void lattn_lesson_make_(const lattn_state *s, const float *w, int64_t c, float *e,
                                  float *y) {
  int64_t tile, width = lattn_memory_tile_(s, c, &tile);
  float *k = lattn_lesson_k_(e), *u = lattn_lesson_u_(s, e) + c, *h = lattn_lesson_h_(s, e);
  float prediction[LATTN_MEMORY_COLUMNS_];
  if (s->chunk > 1) w += LATTN_FROZEN_ * s->weights;
  if (s->hidden) {
    lattn_deep_(s, w, k, lattn_lesson_a_(s, e), h, y);
  } else {
    y = prediction;
    lattn_through_(w + tile, s->features, width, width, k, y);
  }
  if (s->residual) {
    float by = lattn_layer_norm_(y, s->dv);
    lattn_unlearn_norm_(s, w + lattn_plane_of_(s, 2).at, e[0], by, y, k, u, lattn_lesson_g_(s, e));
  } else {
    for (int64_t i = 0; i < width; i += 16) {
      lattn_v16_ d = lattn_v_sub_(lattn_v_load_(u + i), lattn_v_load_(y + i));
      d = lattn_v_below_(s->dv, c + i, lattn_v_mul_(lattn_v_set_(e[0]), d));
      lattn_v_store_(u + i, d);
    }
  }
  if (s->hidden) lattn_unlearn_(s, w + lattn_plane_of_(s, 1).at, u, h);
}

/* The memory w learns it. */
LATTN_FN_ void lattn_lesson_learn_(const lattn_state *s, float *w, int64_t c, float *e) {
  static const float one[1] = {1};
  int64_t tile, width = lattn_memory_tile_(s, c, &tile), apart = s->weights;
  float *k = lattn_lesson_k_(e), *u = lattn_lesson_u_(s, e) + c;
  if (!s->hidden) {
    lattn_learn_(w + tile, apart, s->features, width, k, u, e[1], e[2]);
    return;
  }
  lattn_learn_(w, apart, s->features, lattn_hidden_(s), k, lattn_lesson_h_(s, e), e[1], e[2]);
  lattn_learn_(w + lattn_plane_of_(s, 1).at, apart, s->hidden, width, lattn_lesson_a_(s, e), u,
               e[1], e[2]);
  if (s->residual)
    lattn_learn_(w + lattn_plane_of_(s, 2).at, apart, 1, width, one, lattn_lesson_g_(s, e), e[1],
                 e[2]);
}

/* All queries of row `row` read columns from c on. space: a query, what is hidden, an output. */
LATTN_FN_ int lattn_memory_read_(const lattn_advance_ *job, const lattn_state *s, int64_t n,
                                 const float *w, int64_t c, int64_t row, float *space) {
  int64_t tile, width = lattn_memory_tile_(s, c, &tile), queries = s->n_heads / s->n_states;
  const float *gain = w + lattn_plane_of_(s, 2).at;
  float reading[LATTN_MEMORY_COLUMNS_], *q = space, *a = q + s->rows, *y = a + lattn_hidden_(s);
  int lost = 0;
  for (int64_t head = n * queries; head < (n + 1) * queries; head++) {
    int64_t from = row * job->q.stride_token + head * s->n_query / s->n_heads * job->q.stride_head;
    int64_t to = row * job->out.stride_token + head * job->out.stride_head + c;
    lattn_load_row_(q, &job->q, from, s->dk);
    if (s->hidden) {
      lattn_deep_(s, w, q, a, 0, y);
    } else {
      y = reading;
      lattn_through_(w + tile, s->features, width, width, q, y);
    }
    if (s->residual) lattn_layer_norm_(y, s->dv);
    for (int64_t i = 0; i < width; i += 16) {
      lattn_v16_ x = lattn_v_load_(y + i);
      if (s->residual)
        x = lattn_v_fma_(x, lattn_v_add_(lattn_v_set_(1), lattn_v_load_(gain + i)),
                         lattn_v_load_(q + i));
      x = lattn_v_if_equal_(x, lattn_v_set_(0), lattn_v_set_(0), x); /* -0 becomes +0 */
      lost |= lattn_v_put_n_((void *)(uintptr_t)job->out.data, job->out.type, to + i, x,
                             (int)lattn_min_(16, s->dv - c - i));
    }
  }
  return lost;
}

/* Rows [row, row + tokens) of a call, of head n. */
LATTN_NOINLINE_ int lattn_titans_piece_(const lattn_advance_ *job, char *space, lattn_state *s,
                                        int64_t n, int64_t row, int64_t tokens) {
  float *w = lattn_memory_(s, n), *lessons = (float *)(void *)space, *more;
  int64_t index = s->n_tokens + s->n_drafts, most = lattn_lessons_(s, job->chunk), count, tile;
  int reads = job->out.data != 0, before = s->reads == LATTN_READS_BEFORE, lost = 0;
  more = lessons + most * s->entry_floats;
  if (job->drafts) {
    if (!s->n_drafts)
      LATTN_MEMCPY_(lattn_memory_shadow_(s, n), w, (size_t)s->matrix_bytes);
    w = lattn_memory_shadow_(s, n);
    lessons = lattn_state_entry_(s, n, 0, s->n_drafts);
  }
  for (int64_t end = row + tokens; row < end; row += count, index += count) {
    count = lattn_min_(most, end - row);
    for (int64_t j = 0; j < count && !job->reads_only; j++)
      lattn_lesson_load_(job, s, n, row + j, lessons + j * s->entry_floats);
    for (int64_t c = 0; c < s->columns; c += lattn_memory_tile_(s, c, &tile))
      for (int64_t j = 0; j < count; j++) {
        float *e = lessons + j * s->entry_floats;
        if (reads && (before || job->reads_only))
          lost |= lattn_memory_read_(job, s, n, w, c, row + j, more);
        if (job->reads_only) continue;
        lattn_memory_freeze_(s, w, c, index + j);
        lattn_lesson_make_(s, w, c, e, more + s->rows);
        lattn_lesson_learn_(s, w, c, e);
        if (reads && !before) lost |= lattn_memory_read_(job, s, n, w, c, row + j, more);
      }
    if (job->drafts) lessons += count * s->entry_floats;
  }
  return lost;
}

/* The first n > 0 drafts: all, as the shadow; else their lessons again. */
LATTN_FN_ void lattn_commit_titans_(lattn_state *s, int32_t n) {
  int64_t tile;
  for (int64_t head = 0; head < s->n_states; head++) {
    float *w = lattn_memory_(s, head);
    if (n == s->n_drafts) {
      LATTN_MEMCPY_(w, lattn_memory_shadow_(s, head), (size_t)s->matrix_bytes);
      continue;
    }
    for (int64_t c = 0; c < s->columns; c += lattn_memory_tile_(s, c, &tile))
      for (int32_t j = 0; j < n; j++) {
        lattn_memory_freeze_(s, w, c, s->n_tokens + j);
        lattn_lesson_learn_(s, w, c, lattn_state_entry_(s, head, 0, j));
      }
  }
}

/* -- the memory as a whole -- */

/* Row i of a plane of a copy, or of its tile with column c. */
LATTN_FN_ float *lattn_plane_at_(float *copy, const lattn_plane_ *p, int64_t i, int64_t c) {
  int64_t first = c / p->tile * p->tile, stride = lattn_min_(p->columns - first, p->tile);
  return copy + p->at + first * p->rows + i * stride + c - first;
}

LATTN_FN_ int lattn_titans_shape_(const lattn_state *s, int32_t matrix, int64_t *rows,
                                  int64_t *columns) {
  int which = matrix / 2;
  lattn_plane_ p = lattn_plane_of_(s, which);
  *rows = p.rows;
  *columns = which == 0 && s->hidden ? s->hidden : s->dv;
  return which < 3 && (which == 0 || s->hidden) && p.rows > 0;
}

LATTN_FN_ float *lattn_titans_element_(const lattn_state *s, int64_t n, int32_t matrix, int64_t i,
                                       int64_t c) {
  lattn_plane_ p = lattn_plane_of_(s, matrix / 2);
  return lattn_plane_at_(lattn_memory_(s, n) + matrix % 2 * s->weights, &p, i, c);
}

/* Sets weights where a chunk began, too. */
LATTN_FN_ void lattn_titans_set_(lattn_state *s, int64_t n, int32_t matrix, int64_t i, int64_t c,
                                 float x) {
  float *at = lattn_titans_element_(s, n, matrix, i, c);
  *at = x;
  if (s->chunk > 1 && matrix % 2 == LATTN_MEMORY_) at[LATTN_FROZEN_ * s->weights] = x;
}

/* One head, to or from the stream. */
LATTN_FN_ void lattn_stream_titans_(lattn_stream_ *st, lattn_state *s, int64_t n) {
  int64_t copies = s->chunk > 1 ? 3 : 2, rows, columns;
  for (int64_t copy = 0; copy < copies; copy++)
    for (int which = 0; which < 3; which++) {
      lattn_plane_ p = lattn_plane_of_(s, which);
      if (!lattn_titans_shape_(s, 2 * which, &rows, &columns)) continue;
      for (int64_t i = 0; i < rows && !st->failed; i++)
        for (int64_t c = 0; c < columns; c += p.tile)
          lattn_stream_row_(
              st, (char *)lattn_plane_at_(lattn_memory_(s, n) + copy * s->weights, &p, i, c), 4,
              lattn_min_(p.tile, columns - c), 1);
    }
}

LATTN_FN_ int64_t lattn_saved_titans_(const lattn_state *s) {
  int64_t floats = 0, rows, columns;
  for (int which = 0; which < 3; which++)
    if (lattn_titans_shape_(s, 2 * which, &rows, &columns)) floats += rows * columns;
  return (s->chunk > 1 ? 3 : 2) * 4 * floats;
}

/* ---- both: drafts are replayed ---- */

LATTN_NOINLINE_ void lattn_replay_commit_(lattn_state *s, int32_t n) {
  if (n > 0 && s->kind == LATTN_STATE_TITANS) lattn_commit_titans_(s, n);
  else if (s->kind == LATTN_STATE_AAREN) lattn_commit_aaren_(s, n);
}

/* ---- configs ---- */

/* Options that go together. */
LATTN_FN_ lattn_status lattn_check_state_options_(const lattn_state_config *c, lattn_fault *f) {
  int linear = c->kind == LATTN_STATE_LINEAR, titans = c->kind == LATTN_STATE_TITANS;
  int flow = c->kind == LATTN_STATE_FLOW, aaren = c->kind == LATTN_STATE_AAREN;
  if (c->kind < LATTN_STATE_LINEAR || c->kind > LATTN_STATE_TITANS)
    return lattn_fail_(f, LATTN_E_FIELD, "config.kind");
  if (c->feature < 0 || c->feature > LATTN_FEATURE_CALLER)
    return lattn_fail_(f, LATTN_E_FIELD, "config.feature");
  if (c->unit < 0 || c->unit > LATTN_UNIT_L2_MAX)
    return lattn_fail_(f, LATTN_E_FIELD, "config.unit");
  if (c->decay < 0 || c->decay > LATTN_DECAY_CHANNEL)
    return lattn_fail_(f, LATTN_E_FIELD, "config.decay");
  if (c->delta < 0 || c->delta > LATTN_DELTA_GENERAL)
    return lattn_fail_(f, LATTN_E_FIELD, "config.delta");
  if (c->reads < 0 || c->reads > LATTN_READS_BEFORE)
    return lattn_fail_(f, LATTN_E_FIELD, "config.reads");
  if (c->normaliser < 0 || c->normaliser > LATTN_NORMALISER_FLOOR)
    return lattn_fail_(f, LATTN_E_FIELD, "config.normaliser");
  if (c->flags & ~LATTN_STATE_COMPENSATED) return lattn_fail_(f, LATTN_E_FIELD, "config.flags");
  if (c->activation < 0 || c->activation > LATTN_ACTIVATION_SILU)
    return lattn_fail_(f, LATTN_E_FIELD, "config.activation");
  if (c->residual < 0 || c->residual > 1) return lattn_fail_(f, LATTN_E_FIELD, "config.residual");
  if (c->zero) return lattn_fail_(f, LATTN_E_FIELD, "config.zero");
  if (!linear && (c->unit || c->decay || c->delta || c->normaliser))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.kind");
  if (!linear && c->feature &&
      !(flow && (c->feature == LATTN_FEATURE_SIGMOID || c->feature == LATTN_FEATURE_RELU)))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.feature");
  if (c->reads && !linear && !titans) return lattn_fail_(f, LATTN_E_CONFIG, "config.reads");
  if (c->delta && (c->normaliser || c->reads))
    return lattn_fail_(f, LATTN_E_CONFIG, c->reads ? "config.reads" : "config.normaliser");
  if ((c->flags & LATTN_STATE_COMPENSATED) && !flow && (!linear || c->decay || c->delta))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.flags");
  if ((c->decay == LATTN_DECAY_HEAD) != (c->log_decay != 0))
    return lattn_fail_(f, c->log_decay ? LATTN_E_CONFIG : LATTN_E_NULL, "config.log_decay");
  if (c->bonus && (!linear || !c->reads)) return lattn_fail_(f, LATTN_E_CONFIG, "config.bonus");
  if (aaren != (c->query != 0))
    return lattn_fail_(f, c->query ? LATTN_E_CONFIG : LATTN_E_NULL, "config.query");
  if ((c->feature_dim != 0) != (c->feature == LATTN_FEATURE_CALLER))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.feature_dim");
  if (!titans && (c->chunk || c->hidden_dim || lattn_bits_(c->loss_factor)))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.kind");
  if ((c->activation || c->residual) && !c->hidden_dim)
    return lattn_fail_(f, LATTN_E_CONFIG, "config.hidden_dim");
  return LATTN_OK;
}

/* Numbers in their ranges; the defaults of those that are 0. */
LATTN_FN_ lattn_status lattn_check_state_numbers_(lattn_state *s, const lattn_state_config *c,
                                                  lattn_fault *f) {
  int flow = c->kind == LATTN_STATE_FLOW;
  int has_scale = c->kind == LATTN_STATE_LINEAR || c->kind == LATTN_STATE_AAREN;
  s->scale = (lattn_bits_(c->scale) & 0x7fffffffu) ? c->scale : lattn_rsqrt_int_(c->key_dim);
  if (!lattn_is_finite_(c->scale)) return lattn_fail_(f, LATTN_E_VALUE, "config.scale");
  if (!has_scale && (lattn_bits_(c->scale) & 0x7fffffffu))
    return lattn_fail_(f, LATTN_E_CONFIG, "config.scale");
  if (c->feature == LATTN_FEATURE_TAYLOR && s->scale < 0)
    return lattn_fail_(f, LATTN_E_VALUE, "config.scale");
  s->epsilon = lattn_bits_(c->epsilon) ? c->epsilon : 1e-6f;
  if (!lattn_is_finite_(s->epsilon) || !(s->epsilon > 0))
    return lattn_fail_(f, LATTN_E_VALUE, "config.epsilon");
  s->unit_epsilon = lattn_bits_(c->unit_epsilon) ? c->unit_epsilon
                    : c->unit == LATTN_UNIT_L2   ? 1e-6f
                                                 : 1e-12f;
  if (!lattn_is_finite_(s->unit_epsilon) || !(s->unit_epsilon > 0))
    return lattn_fail_(f, LATTN_E_VALUE, "config.unit_epsilon");
  s->clamp_low = c->clamp_low;
  s->clamp_high = c->clamp_high;
  if (!lattn_bits_(c->clamp_low) && !lattn_bits_(c->clamp_high)) {
    s->clamp_low = -1;
    s->clamp_high = 1;
  } else if (!flow) {
    return lattn_fail_(f, LATTN_E_CONFIG, "config.clamp_low");
  }
  if (lattn_is_nan_(c->clamp_low)) return lattn_fail_(f, LATTN_E_VALUE, "config.clamp_low");
  if (lattn_is_nan_(c->clamp_high) || s->clamp_low > s->clamp_high)
    return lattn_fail_(f, LATTN_E_VALUE, "config.clamp_high");
  s->loss_factor = lattn_bits_(c->loss_factor) ? c->loss_factor : 2;
  if (!lattn_is_finite_(s->loss_factor)) return lattn_fail_(f, LATTN_E_VALUE, "config.loss_factor");
  return LATTN_OK;
}

/* The heads: who shares what. */
LATTN_FN_ lattn_status lattn_check_state_heads_(lattn_state *s, const lattn_state_config *c,
                                                lattn_fault *f) {
  static const char *const name[4] = {"config.n_heads", "config.n_query_heads",
                                      "config.n_key_heads", "config.n_value_heads"};
  int32_t n[4] = {c->n_heads, c->n_query_heads, c->n_key_heads, c->n_value_heads};
  int linear = c->kind == LATTN_STATE_LINEAR || c->kind == LATTN_STATE_TITANS;
  int32_t most, least;
  for (int i = 0; i < 4; i++) {
    if (n[i] == 0 && i > 0) n[i] = n[0];
    if (n[i] < 1 || n[0] % n[i]) return lattn_fail_(f, LATTN_E_SHAPE, name[i]);
  }
  most = n[2] > n[3] ? n[2] : n[3];
  least = n[2] > n[3] ? n[3] : n[2];
  if (linear && most % least) return lattn_fail_(f, LATTN_E_SHAPE, name[3]);
  s->n_heads = n[0];
  s->n_query = n[1];
  s->n_key = n[2];
  s->n_value = n[3];
  s->n_states = linear ? most : n[0];
  return LATTN_OK;
}

enum { LATTN_MAX_FEATURES_ = 1 << 24 };
#define LATTN_MAX_COUNT_ (INT64_MAX / 2) /* tokens of a state: sums with it do not overflow */

LATTN_FN_ lattn_status lattn_check_state_dims_(lattn_state *s, const lattn_state_config *c,
                                               lattn_fault *f) {
  int64_t d = c->key_dim, m = d;
  if (c->key_dim < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.key_dim");
  if (c->value_dim < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.value_dim");
  if (c->feature_dim < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.feature_dim");
  if (c->hidden_dim < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.hidden_dim");
  if (c->chunk < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.chunk");
  if (c->max_drafts < 0 || c->max_drafts > LATTN_STATE_DRAFTS_)
    return lattn_fail_(f, LATTN_E_SHAPE, "config.max_drafts");
  if (c->feature == LATTN_FEATURE_TAYLOR) m = 1 + d + (d < 8192 ? d * (d + 1) / 2 : d * 4096);
  if (c->feature == LATTN_FEATURE_CALLER) m = c->feature_dim;
  s->dk = c->key_dim;
  s->dv = c->value_dim ? c->value_dim : c->key_dim;
  if (d > LATTN_MAX_FEATURES_ || m > LATTN_MAX_FEATURES_)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "config.key_dim");
  if (s->dv > LATTN_MAX_FEATURES_) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.value_dim");
  if (c->hidden_dim > LATTN_MAX_FEATURES_)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "config.hidden_dim");
  if (c->residual && s->dv != s->dk) return lattn_fail_(f, LATTN_E_CONFIG, "config.residual");
  s->features = (int32_t)m;
  s->rows = (m + 15) / 16 * 16;
  s->columns = ((int64_t)s->dv + 15) / 16 * 16;
  return LATTN_OK;
}

/* Parts of a head of linear and flow states. */
LATTN_FN_ int64_t lattn_lay_linear_(lattn_state *s) {
  int64_t at = 0, channel = s->decay == LATTN_DECAY_CHANNEL ? s->rows : 0;
  int64_t matrix = lattn_times_(s->features, 4 * s->columns);
  s->matrix_bytes = matrix;
  lattn_lay_(&at, matrix);
  s->low = 0;
  if (s->flags & LATTN_STATE_COMPENSATED) {
    s->low = lattn_lay_(&at, matrix);
    s->matrix_bytes = lattn_times_(matrix, 2);
  }
  s->entry_floats =
      16 + (s->delta == LATTN_DELTA_GENERAL ? 2 : 1) * (s->rows + s->columns) + channel;
  s->entries = lattn_lay_(&at, 2 * lattn_state_lists_(s) * s->entry_floats * 4);
  s->small_doubles = 2 * lattn_small_decays_(s);
  if (s->normaliser) s->small_doubles += s->rows;
  if (s->kind == LATTN_STATE_FLOW) s->small_doubles += 4 * s->rows + 8;
  s->sums64 = lattn_lay_(&at, (lattn_state_lists_(s) + 1) * s->small_doubles * 8);
  return at;
}

/* The state of a config, but for what it holds. */
LATTN_FN_ lattn_status lattn_plan_state_(lattn_state *s, lattn_state_config *c,
                                         const lattn_state_config *config) {
  int64_t at = (int64_t)lattn_round64_(sizeof *s);
  lattn_fault *f;
  lattn_status e;
  LATTN_MEMSET_(s, 0, sizeof *s);
  if (!config) return LATTN_E_NULL;
  e = lattn_import_(c, sizeof *c, sizeof *c, config);
  f = e == LATTN_E_SIZE ? 0 : config->fault;
  if (e) return lattn_fail_(f, e, "config.size");
  e = lattn_check_state_options_(c, f);
  if (!e) e = lattn_check_state_heads_(s, c, f);
  if (!e) e = lattn_check_state_dims_(s, c, f);
  if (!e) e = lattn_check_state_numbers_(s, c, f);
  if (!e) e = lattn_check_finite_(c->log_decay, s->n_states, 0, f, "config.log_decay");
  for (int32_t i = 0; !e && c->log_decay && i < s->n_states; i++)
    if (c->log_decay[i] > 0) e = lattn_fail_(f, LATTN_E_VALUE, "config.log_decay");
  if (!e)
    e = lattn_check_finite_(c->bonus, (int64_t)s->n_states * s->features, 0, f, "config.bonus");
  if (!e) e = lattn_check_finite_(c->query, (int64_t)s->n_heads * s->dk, 0, f, "config.query");
  if (e) return e;
  s->kind = c->kind;
  s->feature = c->kind == LATTN_STATE_FLOW && !c->feature ? LATTN_FEATURE_SIGMOID : c->feature;
  s->unit = c->unit;
  s->decay = c->decay;
  s->delta = c->delta;
  s->reads = c->reads;
  s->normaliser = c->normaliser;
  s->flags = c->flags;
  s->max_drafts = c->max_drafts;
  s->chunk = c->chunk ? c->chunk : 1;
  s->hidden = c->hidden_dim;
  s->activation = c->activation;
  s->residual = c->residual;
  if (c->log_decay)
    s->log_decay = lattn_lay_(&at, (int64_t)lattn_round64_((uint64_t)s->n_states * 4));
  if (c->bonus) s->bonus = lattn_lay_(&at, lattn_times_(s->n_states, s->rows * 4));
  if (c->query)
    s->query = lattn_lay_(&at, lattn_times_(s->n_heads, ((int64_t)s->dk + 15) / 16 * 64));
  s->heads = at;
  s->head_bytes = s->kind == LATTN_STATE_AAREN    ? lattn_lay_aaren_(s)
                  : s->kind == LATTN_STATE_TITANS ? lattn_lay_titans_(s)
                                                  : lattn_lay_linear_(s);
  at = lattn_plus_(at, lattn_times_(s->head_bytes, s->n_states));
  if (at < 0) return lattn_fail_(f, LATTN_E_OVERFLOW, "config");
  s->bytes = (uint64_t)at;
  return LATTN_OK;
}

LATTN_API size_t lattn_state_bytes(const lattn_state_config *config) {
  lattn_state s;
  lattn_state_config c;
  if (lattn_plan_state_(&s, &c, config)) return 0;
  return (size_t)s.bytes + 63;
}

/* Of all in a config that decides what the state means. */
LATTN_FN_ uint64_t lattn_state_fingerprint_(const lattn_state *s) {
  uint64_t hash = 0xcbf29ce484222325u;
  const int32_t fields[20] = {s->kind,  s->n_heads, s->n_query,    s->n_key,      s->n_value,
                              s->dk,    s->dv,      s->feature,    s->features,   s->unit,
                              s->decay, s->delta,   s->reads,      s->normaliser, s->flags,
                              s->chunk, s->hidden,  s->activation, s->residual,   0};
  const float numbers[6] = {s->unit_epsilon, s->scale,      s->epsilon,
                            s->clamp_low,    s->clamp_high, s->loss_factor};
  const float *more = (const float *)(const void *)((const char *)s + lattn_round64_(sizeof *s));
  int64_t n = (s->heads - (int64_t)lattn_round64_(sizeof *s)) / 4;
  for (int i = 0; i < 20; i++) lattn_mix_(&hash, (uint64_t)(int64_t)fields[i]);
  for (int i = 0; i < 6; i++) lattn_mix_(&hash, lattn_bits_(numbers[i]));
  for (int64_t i = 0; i < n; i++) lattn_mix_(&hash, lattn_bits_(more[i]));
  return hash;
}

/* Rows of `from` [n][dim], padded with 0. */
LATTN_FN_ void lattn_pad_rows_(float *to, const float *from, int64_t n, int64_t dim) {
  int64_t padded = (dim + 15) / 16 * 16;
  for (int64_t i = 0; i < n; i++) {
    LATTN_MEMSET_(to + i * padded, 0, (size_t)padded * sizeof *to);
    LATTN_MEMCPY_(to + i * padded, from + i * dim, (size_t)dim * sizeof *to);
  }
}

LATTN_API lattn_status lattn_state_init(lattn_state **state, void *memory, size_t bytes,
                                        const lattn_state_config *config) {
  lattn_state own, *s;
  lattn_state_config c;
  uintptr_t at = (uintptr_t)memory, start = (at + 63) / 64 * 64;
  char *base;
  lattn_status e = lattn_plan_state_(&own, &c, config);
  if (e) return e;
  if (!state) return lattn_fail_(c.fault, LATTN_E_NULL, "state");
  if (!memory) return lattn_fail_(c.fault, LATTN_E_NULL, "memory");
  if (bytes < start - at || bytes - (start - at) < own.bytes)
    return lattn_fail_(c.fault, LATTN_E_MEMORY, "bytes");
  base = (char *)memory + (start - at);
  s = (lattn_state *)(void *)base;
  LATTN_MEMSET_(base, 0, (size_t)own.bytes);
  *s = own;
  if (s->log_decay) {
    float *g = (float *)(void *)(base + s->log_decay);
    for (int32_t i = 0; i < s->n_states; i++) g[i] = lattn_clamp_decay_(c.log_decay[i]);
  }
  if (s->bonus)
    lattn_pad_rows_((float *)(void *)(base + s->bonus), c.bonus, s->n_states, s->features);
  if (s->query) lattn_pad_rows_((float *)(void *)(base + s->query), c.query, s->n_heads, s->dk);
  s->fingerprint = lattn_state_fingerprint_(s);
  *state = s;
  return LATTN_OK;
}

LATTN_API lattn_status lattn_state_clear(lattn_state *state) {
  if (!state) return LATTN_E_NULL;
  LATTN_MEMSET_(lattn_state_head_(state, 0), 0, (size_t)(state->bytes - (uint64_t)state->heads));
  state->n_tokens = 0;
  state->n_drafts = state->n_pending = state->list = state->side = 0;
  return LATTN_OK;
}

LATTN_API lattn_status lattn_state_copy(lattn_state *to, const lattn_state *from) {
  if (!to || !from) return LATTN_E_NULL;
  if (to == from) return LATTN_OK;
  if (to->fingerprint != from->fingerprint || to->max_drafts != from->max_drafts ||
      to->bytes != from->bytes)
    return LATTN_E_CONFIG;
  LATTN_MEMCPY_(to, from, (size_t)from->bytes);
  return LATTN_OK;
}

LATTN_API lattn_status lattn_state_stats_get(const lattn_state *state, lattn_state_stats *stats) {
  lattn_state_stats s;
  if (!state || !stats) return LATTN_E_NULL;
  LATTN_MEMSET_(&s, 0, sizeof s);
  s.n_states = state->n_states;
  s.n_tokens = state->n_tokens;
  s.n_drafts = state->n_drafts;
  s.bytes = (int64_t)state->bytes;
  s.matrix_bytes = state->n_states * state->matrix_bytes;
  return lattn_export_(stats, &s, sizeof s);
}

/* ---- calls ---- */

/* A tensor of a call that a method takes, or not: rows of `dim`, heads for each state or fewer. */
LATTN_FN_ lattn_status lattn_check_rows_(const lattn_state *s, const lattn_tensor *from,
                                         lattn_tensor *to, int takes, int needs, int64_t tokens,
                                         int64_t dim, const lattn_names_ *name, lattn_fault *f) {
  lattn_status e;
  LATTN_MEMSET_(to, 0, sizeof *to);
  if (!from && needs && tokens > 0) return lattn_fail_(f, LATTN_E_NULL, name->whole);
  if (!from) return LATTN_OK;
  if (!takes) return lattn_fail_(f, LATTN_E_CONFIG, name->whole);
  *to = *from;
  e = lattn_view_(to, 0, 1, name, f);
  if (e) return e;
  if (to->n_tokens != tokens) return lattn_fail_(f, LATTN_E_SHAPE, name->tokens);
  if (s->n_states % to->n_heads) return lattn_fail_(f, LATTN_E_SHAPE, name->heads);
  if (to->dim != dim) return lattn_fail_(f, LATTN_E_SHAPE, name->dim);
  return LATTN_OK;
}

/* The tensors beside q, k and v, and the callback. */
LATTN_FN_ lattn_status lattn_check_state_call_(lattn_advance_ *job, const lattn_state *s,
                                               const lattn_state_call *call, lattn_fault *f) {
  static const lattn_names_ decay = LATTN_NAMES_("decay"), beta = LATTN_NAMES_("beta");
  static const lattn_names_ predict = LATTN_NAMES_("predict"), write = LATTN_NAMES_("write");
  static const lattn_names_ rate = LATTN_NAMES_("rate"), momentum = LATTN_NAMES_("momentum");
  static const lattn_names_ forget = LATTN_NAMES_("forget");
  int channel = s->decay == LATTN_DECAY_CHANNEL, step = s->decay == LATTN_DECAY_STEP;
  int titans = s->kind == LATTN_STATE_TITANS, general = s->delta == LATTN_DELTA_GENERAL;
  int folds = !job->reads_only;
  int64_t n = job->k.n_tokens, m = s->features;
  lattn_state_call *o = &job->o;
  lattn_status e = lattn_import_(o, sizeof *o, sizeof *o, call);
  if (e) return lattn_fail_(f, e, "call.size");
  if (o->zero) return lattn_fail_(f, LATTN_E_FIELD, "call.zero");
  if (s->feature == LATTN_FEATURE_CALLER && !o->feature)
    return lattn_fail_(f, LATTN_E_NULL, "call.feature");
  e = lattn_check_rows_(s, o->decay, &job->decay, folds && (channel || step),
                        folds && (channel || step), n, channel ? m : 1, &decay, f);
  if (!e)
    e = lattn_check_rows_(s, o->beta, &job->beta, folds && s->delta == LATTN_DELTA_KEY, 0, n, 1,
                          &beta, f);
  if (!e)
    e = lattn_check_rows_(s, o->predict, &job->predict, folds && general, folds && general, n, m,
                          &predict, f);
  if (!e)
    e = lattn_check_rows_(s, o->write, &job->write, folds && general, folds && general, n, m,
                          &write, f);
  if (!e)
    e = lattn_check_rows_(s, o->rate, &job->rate, folds && titans, folds && titans, n, 1, &rate, f);
  if (!e)
    e = lattn_check_rows_(s, o->momentum, &job->momentum, folds && titans, 0, n, 1, &momentum, f);
  if (!e) e = lattn_check_rows_(s, o->forget, &job->forget, folds && titans, 0, n, 1, &forget, f);
  return e;
}

/* The partial and the output: shapes, and apart from all inputs. */
LATTN_FN_ lattn_status lattn_check_state_outputs_(lattn_advance_ *job, const lattn_state *s,
                                                  int64_t tokens, lattn_fault *f) {
  static const lattn_names_ out = LATTN_NAMES_("out");
  const char *names[4] = {"out", "partial", "partial", "partial"};
  lattn_tensor made[4];
  int n_made = 0;
  lattn_status e = LATTN_OK;
  lattn_partial *p = job->o.partial;
  lattn_tensor in[10] = {job->q,       job->k,     job->v,    job->decay,    job->beta,
                         job->predict, job->write, job->rate, job->momentum, job->forget};
  if (job->out.data || (job->reads_only && !p)) {
    e = lattn_view_(&job->out, 1, 1, &out, f);
    if (e) return e;
    if (job->out.n_tokens != tokens) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_tokens");
    if (job->out.n_heads != s->n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_heads");
    if (job->out.dim != s->dv) return lattn_fail_(f, LATTN_E_SHAPE, "out.dim");
    made[n_made++] = job->out;
  } else {
    LATTN_MEMSET_(&job->out, 0, sizeof job->out);
  }
  if (p) {
    int64_t rows = lattn_times_(tokens, s->n_heads);
    int known = s->kind == LATTN_STATE_AAREN || s->normaliser == LATTN_NORMALISER_SUM;
    if (!known || job->drafts || job->n_list != 1)
      return lattn_fail_(f, LATTN_E_CONFIG, "call.partial");
    if (rows < 0 || lattn_times_(rows, s->dv) < 0)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "partial.n_rows");
    e = lattn_check_partial_(p, rows, s->dv, f);
    if (e) return e;
    names[n_made] = "partial", made[n_made++] = lattn_floats_(p->maximum, rows);
    names[n_made] = "partial", made[n_made++] = lattn_floats_(p->sum, rows);
    names[n_made] = "partial", made[n_made++] = lattn_floats_(p->output, rows * s->dv);
  }
  for (int i = 0; i < 10; i++)
    if (!in[i].data) LATTN_MEMSET_(in + i, 0, sizeof *in);
  return lattn_check_apart_(made, n_made, in, 10, names, f);
}

/* Views of q, k and v. */
LATTN_FN_ lattn_status lattn_check_state_views_(lattn_advance_ *job, const lattn_state *s,
                                                int64_t tokens, lattn_fault *f) {
  static const lattn_names_ q = LATTN_NAMES_("q"), k = LATTN_NAMES_("k"), v = LATTN_NAMES_("v");
  int absorbs = !job->reads_only && !job->out.data && !job->o.partial;
  int needs_q = s->kind != LATTN_STATE_AAREN && (!absorbs || s->kind == LATTN_STATE_FLOW);
  lattn_status e = LATTN_OK;
  if (!needs_q) LATTN_MEMSET_(&job->q, 0, sizeof job->q);
  if (needs_q) {
    e = lattn_view_(&job->q, 0, 1, &q, f);
    if (e) return e;
    if (job->q.n_tokens != tokens) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_tokens");
    if (job->q.n_heads != s->n_query) return lattn_fail_(f, LATTN_E_SHAPE, "q.n_heads");
    if (job->q.dim != s->dk) return lattn_fail_(f, LATTN_E_SHAPE, "q.dim");
  }
  if (job->reads_only) return LATTN_OK;
  e = lattn_view_(&job->k, 0, 1, &k, f);
  if (!e) e = lattn_view_(&job->v, 0, 1, &v, f);
  if (e) return e;
  if (job->k.n_tokens != tokens) return lattn_fail_(f, LATTN_E_SHAPE, "k.n_tokens");
  if (job->k.n_heads != s->n_key) return lattn_fail_(f, LATTN_E_SHAPE, "k.n_heads");
  if (job->k.dim != s->dk) return lattn_fail_(f, LATTN_E_SHAPE, "k.dim");
  if (job->v.n_tokens != tokens) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_tokens");
  if (job->v.n_heads != s->n_value) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_heads");
  if (job->v.dim != s->dv) return lattn_fail_(f, LATTN_E_SHAPE, "v.dim");
  return LATTN_OK;
}

/* The states of a call: there, of one config, each once, ready; *tokens gets the sum. */
LATTN_FN_ lattn_status lattn_check_states_(const lattn_advance_ *job, int64_t *tokens,
                                           lattn_fault *f) {
  const lattn_state_sequence *l = job->list;
  lattn_status e = LATTN_OK;
  int64_t i;
  *tokens = 0;
  for (i = 0; i < job->n_list; i++) {
    const lattn_state *s = l[i].state;
    if (!s) return lattn_fail_(f, LATTN_E_NULL, "sequences.state");
    if (l[i].n_tokens < 0) return lattn_fail_(f, LATTN_E_SHAPE, "sequences.n_tokens");
    *tokens = lattn_plus_(*tokens, l[i].n_tokens);
    if (*tokens < 0 || *tokens >= LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "sequences.n_tokens");
    if (!job->reads_only && s->n_tokens > LATTN_MAX_COUNT_ - LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_OVERFLOW, "state");
    if (s->fingerprint != l[0].state->fingerprint || s->max_drafts != l[0].state->max_drafts ||
        s->bytes != l[0].state->bytes)
      return lattn_fail_(f, LATTN_E_CONFIG, "sequences.state");
    if (!job->drafts && s->n_drafts) return lattn_fail_(f, LATTN_E_STATE, "state");
    if (job->drafts && l[i].n_tokens > s->max_drafts - s->n_drafts)
      return lattn_fail_(f, LATTN_E_SHAPE, "q.n_tokens");
  }
  if (job->n_list == 1) return LATTN_OK;
  for (i = 0; i < job->n_list && !e; i++) {
    if (l[i].state->listed) e = lattn_fail_(f, LATTN_E_ALIAS, "sequences.state");
    if (!e) l[i].state->listed = 1;
  }
  for (int64_t j = 0; j < (e ? i - 1 : i); j++) l[j].state->listed = 0;
  return e;
}

LATTN_FN_ int64_t lattn_tiles_(const lattn_state *s) {
  return (s->columns + LATTN_TILE_COLUMNS_ - 1) / LATTN_TILE_COLUMNS_;
}

/* Bytes of a worker. */
LATTN_FN_ size_t lattn_state_worker_(const lattn_state *s, int64_t chunk) {
  lattn_prep_ unused;
  if (s->kind == LATTN_STATE_AAREN) return lattn_aaren_worker_(s, chunk);
  if (s->kind == LATTN_STATE_TITANS) return lattn_titans_worker_(s, chunk);
  return lattn_carve_prep_(&unused, 0, s, chunk, s->n_heads / s->n_states);
}

/* Tokens prepared at a time: as many as a worker of half a MiB has room for. */
LATTN_FN_ int64_t lattn_state_chunk_(const lattn_state *s, int64_t tokens) {
  int64_t most = LATTN_CHUNK_TOKENS_; /* of any call: fewer tokens never need more scratch */
  while (most > LATTN_STATE_DRAFTS_ && lattn_state_worker_(s, most) > ((size_t)1 << 19)) most /= 2;
  return lattn_max_(1, lattn_min_(tokens, most));
}

LATTN_API size_t lattn_state_scratch(const lattn_state_config *config, int64_t n_tokens,
                                     int32_t n_threads) {
  lattn_state s;
  lattn_state_config c;
  size_t worker, threads = n_threads > 0 ? (size_t)n_threads : 1;
  if (n_tokens < 0 || n_threads < 0 || n_threads > 1024 || lattn_plan_state_(&s, &c, config))
    return 0;
  worker = lattn_state_worker_(&s, lattn_state_chunk_(&s, n_tokens));
  return worker > (SIZE_MAX - 63) / threads ? 0 : worker * threads + 63;
}

/* Scratch or the stack; how many pieces a head is cut into. */
LATTN_FN_ lattn_status lattn_place_state_(lattn_advance_ *job, const lattn_exec *ex,
                                          const lattn_state *s, int64_t tokens, lattn_fault *f) {
  int64_t items = lattn_times_(job->n_list, s->n_states), pieces = lattn_tiles_(s);
  uintptr_t at = (uintptr_t)ex->scratch, start = (at + 63) / 64 * 64;
  job->n_workers = ex->n_threads > 0 ? ex->n_threads : 1;
  job->chunk = 1;
  job->pieces = 1;
  if (items < 0 || items > INT32_MAX / 4) return lattn_fail_(f, LATTN_E_OVERFLOW, "sequences");
  if (!ex->scratch) {
    job->n_workers = 1;
    if (lattn_state_worker_(s, 1) > LATTN_STACK_STATE_)
      return lattn_fail_(f, LATTN_E_SCRATCH, "exec.scratch");
    return LATTN_OK;
  }
  job->chunk = lattn_state_chunk_(s, tokens);
  job->worker_bytes = lattn_state_worker_(s, job->chunk);
  if (ex->scratch_bytes < start - at ||
      (ex->scratch_bytes - (start - at)) / (size_t)job->n_workers < job->worker_bytes)
    return lattn_fail_(f, LATTN_E_SCRATCH, "exec.scratch_bytes");
  job->scratch = (char *)ex->scratch + (start - at);
  if ((s->kind == LATTN_STATE_LINEAR || s->kind == LATTN_STATE_FLOW) && !job->reads_only)
    while (job->pieces < pieces && items * job->pieces < 3 * (int64_t)job->n_workers &&
           job->n_workers > 1)
      job->pieces++;
  return LATTN_OK;
}

/* Piece `piece` of head n of a state, for rows [row, row + tokens). w: of space, where the kind has
   one. */
LATTN_FN_ int lattn_state_piece_(const lattn_advance_ *job, char *space, lattn_prep_ *w,
                                 lattn_state *s, int64_t n, int64_t row, int64_t tokens,
                                 int64_t piece) {
  int64_t tiles = lattn_tiles_(s);
  if (s->kind == LATTN_STATE_AAREN) return lattn_aaren_piece_(job, space, s, n, row, tokens);
  if (s->kind == LATTN_STATE_TITANS) return lattn_titans_piece_(job, space, s, n, row, tokens);
  if (job->reads_only) return lattn_read_piece_(job, w, s, n, row, tokens);
  return lattn_linear_piece_(job, w, s, n, row, tokens, tiles * piece / job->pieces,
                             tiles * (piece + 1) / job->pieces);
}

/* Works off units: (state, head, piece), in order. */
LATTN_NOINLINE_ void lattn_advance_worker_(lattn_advance_ *job, int32_t index, char *space) {
  int64_t each = (int64_t)job->list[0].state->n_states * job->pieces, units = each * job->n_list;
  int64_t sequence = 0, row = 0, turn = 0, unit;
  const lattn_state *s = job->list[0].state; /* all are of one config */
  lattn_prep_ w;
  if (s->kind == LATTN_STATE_LINEAR || s->kind == LATTN_STATE_FLOW)
    lattn_carve_prep_(&w, space, s, job->chunk, s->n_heads / s->n_states);
  for (;;) {
    unit = LATTN_HAS_ATOMIC_ ? lattn_take_(&job->next) : index + job->n_workers * turn++;
    if (unit >= units) return;
    for (; sequence < unit / each; sequence++) row += job->list[sequence].n_tokens;
    int64_t from = lattn_max_(job->from, row), u = unit % each;
    int64_t to = lattn_min_(job->to, row + job->list[sequence].n_tokens);
    if (from >= to) continue;
    if (lattn_state_piece_(job, space, &w, job->list[sequence].state, u / job->pieces, from,
                           to - from, u % job->pieces))
      lattn_raise_(&job->overflowed);
  }
}

LATTN_FN_ void lattn_advance_task_(void *context, int32_t index) {
  lattn_advance_ *job = (lattn_advance_ *)context;
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_advance_worker_(job, index, job->scratch + (size_t)index * job->worker_bytes);
  lattn_fpenv_leave_(&saved);
}

/* The same on the stack. */
LATTN_NOINLINE_ void lattn_advance_stack_(lattn_advance_ *job) {
  double space[LATTN_STACK_STATE_ / sizeof(double)];
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_advance_worker_(job, 0, (char *)space);
  lattn_fpenv_leave_(&saved);
}

/* What changed in the states of a range of rows. */
LATTN_FN_ void lattn_advance_settle_(const lattn_advance_ *job) {
  int64_t row = 0;
  for (int64_t i = 0; i < job->n_list; i++) {
    lattn_state *s = job->list[i].state;
    int64_t n = lattn_min_(job->to, row + job->list[i].n_tokens) - lattn_max_(job->from, row);
    row += job->list[i].n_tokens;
    if (n <= 0) continue;
    if (job->drafts) {
      s->n_drafts += (int32_t)n;
      s->n_pending = 0;
      continue;
    }
    s->n_tokens += n;
    s->n_pending = 1;
    s->list = 1 - s->list;
    s->side = (s->side + 1) % (lattn_state_lists_(s) + 1);
  }
}

/* All rows, in ranges if the caller wants to know how far they are. Returns how many were done. */
LATTN_FN_ int64_t lattn_run_advance_(lattn_advance_ *job, const lattn_exec *ex, int64_t tokens) {
  const lattn_state *s = job->list[0].state;
  int64_t step = tokens, at = 0;
  if (ex->progress && !job->drafts)
    step = lattn_max_(LATTN_CHUNK_TOKENS_,
                      ((int64_t)1 << 32) / lattn_max_(1, s->n_states * s->matrix_bytes));
  while (at < tokens) {
    job->from = at;
    job->to = at = lattn_min_(tokens, at + step);
    job->next = 0;
    if (lattn_scans_(job)) lattn_scan_aaren_(job, ex);
    else if (job->scratch) lattn_parallel_(ex, job->n_workers, lattn_advance_task_, job);
    else lattn_advance_stack_(job);
    if (!job->reads_only) lattn_advance_settle_(job);
    if (ex->progress && !job->drafts && at < tokens && ex->progress(ex->user, at, tokens)) break;
  }
  return at;
}

/* Every call on states: advance, draft, read, of one or of many. */
LATTN_FN_ lattn_status lattn_advance_call_(lattn_advance_ *job, const lattn_state_call *call,
                                           const lattn_exec *exec) {
  lattn_exec ex;
  int64_t tokens, done;
  const lattn_state *s;
  lattn_status e = lattn_exec_in_(&ex, exec);
  if (e) return e;
  if (job->n_list < 0 || job->n_list >= LATTN_MAX_POSITION_)
    return lattn_fail_(ex.fault, LATTN_E_SHAPE, "n");
  if (job->n_list && !job->list) return lattn_fail_(ex.fault, LATTN_E_NULL, "sequences");
  if (job->n_list && !job->list[0].state) return lattn_fail_(ex.fault, LATTN_E_NULL, "state");
  e = lattn_check_states_(job, &tokens, ex.fault);
  if (e) return e;
  if (!job->n_list) {
    if (ex.tokens_done) *ex.tokens_done = 0;
    return LATTN_OK;
  }
  s = job->list[0].state;
  if (job->reads_only && s->kind == LATTN_STATE_FLOW)
    return lattn_fail_(ex.fault, LATTN_E_CONFIG, "state");
  if (call && call->size >= sizeof *call) job->o.partial = call->partial;
  e = lattn_check_state_views_(job, s, tokens, ex.fault);
  if (!e) e = lattn_check_state_call_(job, s, call, ex.fault);
  if (!e) e = lattn_check_state_outputs_(job, s, tokens, ex.fault);
  if (!e) e = lattn_place_state_(job, &ex, s, tokens, ex.fault);
  if (e) return e;
  job->partial = job->o.partial;
  if (job->partial) {
    job->partial->first_segment = job->partial->n_segments = 0;
    job->partial->basis = 0;
  }
  done = lattn_run_advance_(job, &ex, tokens);
  if (ex.tokens_done) *ex.tokens_done = done;
  if (done < tokens) return LATTN_CANCELLED;
  return job->overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

LATTN_API lattn_status lattn_batch_advance(int64_t n, const lattn_state_sequence *sequences,
                                           const lattn_state_call *call, lattn_tensor q,
                                           lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                           const lattn_exec *exec) {
  lattn_advance_ job;
  LATTN_MEMSET_(&job, 0, sizeof job);
  job.list = sequences;
  job.n_list = n;
  job.q = q;
  job.k = k;
  job.v = v;
  job.out = out;
  return lattn_advance_call_(&job, call, exec);
}

LATTN_API lattn_status lattn_state_advance(lattn_state *state, const lattn_state_call *call,
                                           lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                           lattn_tensor out, const lattn_exec *exec) {
  lattn_state_sequence one = {state, k.n_tokens};
  return lattn_batch_advance(1, &one, call, q, k, v, out, exec);
}

LATTN_API lattn_status lattn_state_draft(lattn_state *state, const lattn_state_call *call,
                                         lattn_tensor q, lattn_tensor k, lattn_tensor v,
                                         lattn_tensor out, const lattn_exec *exec) {
  lattn_state_sequence one = {state, k.n_tokens};
  lattn_advance_ job;
  LATTN_MEMSET_(&job, 0, sizeof job);
  job.list = &one;
  job.n_list = job.drafts = 1;
  job.q = q;
  job.k = k;
  job.v = v;
  job.out = out;
  return lattn_advance_call_(&job, call, exec);
}

LATTN_API lattn_status lattn_state_read(const lattn_state *state, const lattn_state_call *call,
                                        lattn_tensor q, lattn_tensor out, const lattn_exec *exec) {
  lattn_state_sequence one = {(lattn_state *)(uintptr_t)state, q.n_tokens};
  lattn_advance_ job;
  LATTN_MEMSET_(&job, 0, sizeof job);
  job.list = &one;
  job.n_list = job.reads_only = 1;
  job.q = q;
  job.out = out;
  return lattn_advance_call_(&job, call, exec);
}

LATTN_API lattn_status lattn_state_commit(lattn_state *state, int32_t n) {
  if (!state) return LATTN_E_NULL;
  if (n < 0 || n > state->n_drafts) return LATTN_E_SHAPE;
  if (state->kind == LATTN_STATE_AAREN || state->kind == LATTN_STATE_TITANS) {
    lattn_fpenv_ saved;
    lattn_fpenv_enter_(&saved);
    lattn_replay_commit_(state, n);
    lattn_fpenv_leave_(&saved);
  } else if (n > 0) {
    state->list = 1 - state->list;
    state->n_pending = n;
    state->side = (state->side + n) % (lattn_state_lists_(state) + 1);
  }
  state->n_drafts = 0;
  state->n_tokens += n;
  return LATTN_OK;
}

/* ---- the state as a whole: brought up to date, merged, read and set ---- */

/* 16 columns of row i with all updates in them, as stored: to be multiplied by exp(L). *low: what
   sums lost. */
LATTN_FN_ lattn_v16_ lattn_state_vector_(const lattn_state *s, int64_t n, int64_t i, int64_t c,
                                         lattn_v16_ *low) {
  lattn_update_ updates[2 * LATTN_STATE_DRAFTS_];
  lattn_gate_ gates[LATTN_STATE_DRAFTS_];
  lattn_walk_ a = lattn_walk_at_(0, 0, (lattn_state *)(uintptr_t)s, n, 0);
  lattn_pass_ pass;
  int64_t stride, at = lattn_tile_at_(s, c, &stride) + i * stride;
  float *base = (float *)(void *)lattn_state_head_(s, n), row[16], lost[16] = {0}, r[16];
  static const float zero[1] = {0};
  pass.s = row;
  pass.low = s->low ? lost : 0;
  pass.n_hints = 0;
  pass.rows = 1;
  pass.stride = 16;
  pass.stores = 1;
  pass.p_by = 0;
  pass.r = r;
  pass.q[0] = zero;
  pass.updates = updates;
  pass.n_updates = lattn_listed_updates_(&a, updates, gates, c);
  for (int u = 0; u < pass.n_updates; u++) {
    updates[u].k += i;
    if (updates[u].fold) updates[u].fold += i * updates[u].fold_step;
  }
  lattn_v_store_(row, lattn_v_load_(base + at));
  if (s->low) lattn_v_store_(lost, lattn_v_load_(base + s->low / 4 + at));
  lattn_pass_list_(&pass, 1);
  *low = lattn_v_load_(lost);
  return lattn_v_load_(row);
}

/* exp(L) of row i. */
LATTN_FN_ float lattn_state_factor_(const lattn_state *s, int64_t n, int64_t i) {
  const double *sum = lattn_state_small_(s, n, 0);
  return lattn_exp_sum_(sum[s->decay == LATTN_DECAY_CHANNEL ? i : 0]);
}

/* Applies all updates and multiplies by exp(L), so that S and z are what they stand for. */
LATTN_NOINLINE_ void lattn_state_flush_(lattn_state *s) {
  for (int64_t n = 0; n < s->n_states; n++) {
    float *base = (float *)(void *)lattn_state_head_(s, n);
    double *sum = lattn_state_small_(s, n, 0), *z = sum + 2 * lattn_small_decays_(s);
    int64_t stride, decays = s->decay == LATTN_DECAY_CHANNEL ? s->features : 1;
    for (int64_t i = 0; i < s->features; i++) {
      float e = lattn_state_factor_(s, n, i);
      if (s->normaliser) z[i] = z[i] * (double)e;
      for (int64_t c = 0; c < s->columns; c += 16) {
        lattn_v16_ low, x = lattn_state_vector_(s, n, i, c, &low);
        int64_t at = lattn_tile_at_(s, c, &stride) + i * stride;
        lattn_v_store_(base + at, lattn_v_flush_(lattn_v_mul_(x, lattn_v_set_(e))));
        if (s->low) lattn_v_store_(base + s->low / 4 + at, low);
      }
    }
    for (int64_t i = 0; i < decays; i++) sum[i] = 0;
  }
  s->n_pending = 0;
}

LATTN_NOINLINE_ void lattn_merge_states_(lattn_state *s, const lattn_state *b) {
  lattn_state_flush_(s);
  for (int64_t n = 0; n < s->n_states; n++) {
    float *base = (float *)(void *)lattn_state_head_(s, n);
    double *sum = lattn_state_small_(s, n, 0);
    const double *more = lattn_state_small_(b, n, 0);
    int64_t decays = lattn_small_decays_(s), stride;
    for (int64_t i = 0; i < s->features; i++) {
      int64_t l = s->decay == LATTN_DECAY_CHANNEL ? i : 0;
      float all = lattn_exp_sum_(more[decays + l]), e = lattn_state_factor_(b, n, i);
      double *z = sum + 2 * decays + i;
      for (int64_t c = 0; c < s->columns; c += 16) {
        lattn_v16_ low, lost = lattn_v_set_(0), x = lattn_state_vector_(b, n, i, c, &low);
        int64_t at = lattn_tile_at_(s, c, &stride) + i * stride;
        lattn_v16_ own = lattn_v_load_(base + at);
        if (s->low) {
          lost = lattn_v_add_(lattn_v_load_(base + s->low / 4 + at), low);
          own = lattn_v_write_(1, lattn_v_set_(1), x, own, &lost);
          lattn_v_store_(base + s->low / 4 + at, lost);
        } else {
          own = lattn_v_fma_(own, lattn_v_set_(all), lattn_v_mul_(x, lattn_v_set_(e)));
        }
        lattn_v_store_(base + at, own);
      }
      if (s->normaliser) *z = lattn_fma64_(more[2 * decays + i], (double)e, *z * (double)all);
    }
    for (int64_t i = 0; i < decays; i++) sum[decays + i] = sum[decays + i] + more[decays + i];
  }
  s->n_tokens += b->n_tokens;
}

LATTN_API lattn_status lattn_state_merge(lattn_state *state, const lattn_state *later) {
  lattn_fpenv_ saved;
  lattn_status e = LATTN_OK;
  if (!state || !later) return LATTN_E_NULL;
  if (state == later || state->fingerprint != later->fingerprint || state->delta ||
      state->kind == LATTN_STATE_FLOW || state->kind == LATTN_STATE_TITANS)
    return LATTN_E_CONFIG;
  if (state->n_drafts || later->n_drafts) return LATTN_E_STATE;
  if (state->n_tokens > LATTN_MAX_COUNT_ - later->n_tokens) return LATTN_E_OVERFLOW;
  if (!later->n_tokens) return LATTN_OK;
  lattn_fpenv_enter_(&saved);
  if (state->kind == LATTN_STATE_AAREN) lattn_merge_aaren_(state, later);
  else lattn_merge_states_(state, later);
  lattn_fpenv_leave_(&saved);
  return e;
}

/* Rows and columns of a matrix of the state; 0: it has none of that name. */
LATTN_FN_ int lattn_matrix_shape_(const lattn_state *s, int32_t matrix, int64_t *rows,
                                  int64_t *columns) {
  int linear = s->kind == LATTN_STATE_LINEAR;
  if (s->kind == LATTN_STATE_TITANS) return lattn_titans_shape_(s, matrix, rows, columns);
  *rows = matrix == LATTN_MATRIX_STATE ? s->features : 1;
  *columns = matrix == LATTN_MATRIX_STATE ? s->dv : s->features;
  if (matrix == LATTN_MATRIX_STATE) return linear || s->kind == LATTN_STATE_FLOW;
  return matrix == LATTN_MATRIX_NORMALISER && linear && s->normaliser;
}

/* Elements of row i of a matrix, from column c on, a multiple of 16: up to 16. */
LATTN_FN_ void lattn_matrix_get_(const lattn_state *s, int64_t n, int32_t matrix, int64_t i,
                                 int64_t c, int64_t columns, float x[16]) {
  const double *z = lattn_state_small_(s, n, 0) + 2 * lattn_small_decays_(s);
  int linear = s->kind != LATTN_STATE_TITANS;
  lattn_v16_ low;
  if (linear && matrix == LATTN_MATRIX_STATE) {
    lattn_v16_ e = lattn_v_set_(lattn_state_factor_(s, n, i));
    lattn_v_store_(x, lattn_v_flush_(lattn_v_mul_(lattn_state_vector_(s, n, i, c, &low), e)));
    return;
  }
  for (int64_t t = 0; t < 16 && c + t < columns; t++)
    x[t] = linear ? (float)(z[c + t] * (double)lattn_state_factor_(s, n, c + t))
                  : *lattn_titans_element_(s, n, matrix, i, c + t);
}

/* Sets one, of a state brought up to date. */
LATTN_FN_ void lattn_matrix_set_(lattn_state *s, int64_t n, int32_t matrix, int64_t i, int64_t c,
                                 float x) {
  int64_t stride, at = lattn_tile_at_(s, c, &stride) + i * stride;
  float *base = (float *)(void *)lattn_state_head_(s, n);
  if (s->kind == LATTN_STATE_TITANS) {
    lattn_titans_set_(s, n, matrix, i, c, x);
  } else if (matrix == LATTN_MATRIX_NORMALISER) {
    lattn_state_small_(s, n, 0)[2 * lattn_small_decays_(s) + c] = (double)x;
  } else {
    base[at] = x;
    if (s->low) base[s->low / 4 + at] = 0;
  }
}

/* All elements, between the state and m. */
LATTN_NOINLINE_ int lattn_matrix_all_(lattn_state *s, int32_t matrix, int transposed,
                                      const lattn_tensor *m, int64_t rows, int64_t columns,
                                      int sets) {
  float x[16];
  int lost = 0;
  if (sets && s->kind != LATTN_STATE_TITANS) lattn_state_flush_(s);
  for (int64_t n = 0; n < s->n_states; n++)
    for (int64_t i = 0; i < rows; i++)
      for (int64_t c = 0; c < columns; c++) {
        int64_t at =
            n * m->stride_head + (transposed ? c * m->stride_token + i : i * m->stride_token + c);
        if (!sets && c % 16 == 0) lattn_matrix_get_(s, n, matrix, i, c, columns, x);
        if (sets) lattn_matrix_set_(s, n, matrix, i, c, lattn_get_(m->data, m->type, at));
        else lost |= lattn_put_((void *)(uintptr_t)m->data, m->type, at, x[c % 16]);
      }
  return lost;
}

LATTN_FN_ lattn_status lattn_matrix_(lattn_state *s, int32_t matrix, int32_t transposed,
                                     lattn_tensor m, int sets) {
  static const lattn_names_ name = LATTN_NAMES_("m");
  int64_t rows, columns;
  lattn_fpenv_ saved;
  lattn_status e;
  int lost;
  if (!s) return LATTN_E_NULL;
  if (matrix < 0 || matrix > LATTN_MATRIX_NORMALISER || transposed < 0 || transposed > 1)
    return LATTN_E_FIELD;
  if (!lattn_matrix_shape_(s, matrix, &rows, &columns)) return LATTN_E_CONFIG;
  if (s->n_drafts) return LATTN_E_STATE;
  e = lattn_view_(&m, !sets, 1, &name, 0);
  if (e) return e;
  if (m.n_heads != s->n_states || m.n_tokens != (transposed ? columns : rows) ||
      m.dim != (transposed ? rows : columns))
    return LATTN_E_SHAPE;
  lattn_fpenv_enter_(&saved);
  lost = lattn_matrix_all_(s, matrix, transposed, &m, rows, columns, sets);
  lattn_fpenv_leave_(&saved);
  return lost ? LATTN_OVERFLOWED : LATTN_OK;
}

LATTN_API lattn_status lattn_state_get(const lattn_state *state, int32_t matrix, int32_t transposed,
                                       lattn_tensor m) {
  return lattn_matrix_((lattn_state *)(uintptr_t)state, matrix, transposed, m, 0);
}

LATTN_API lattn_status lattn_state_set(lattn_state *state, int32_t matrix, int32_t transposed,
                                       lattn_tensor m) {
  return lattn_matrix_(state, matrix, transposed, m, 1);
}

/* ---- save, load: little-endian ----
     0   the characters LATTNSTA; u32 version = 1; u32 kind; u64 fingerprint of the config (as of
         caches, of lattn_state_fingerprint_); u64 n_tokens; u64 bytes of the whole
     40  for each head, of a linear or flow state: its small sums, as double; then S, row by row, in
         runs of 16 columns, as stored with all updates in it (to be multiplied by exp(L)), and
         after each run what sums lost, if compensated; of an Aaren state: of each place that may
         hold something (of the segment being filled, if it has tokens; of those of bits set in the
         number of full ones), its maximum, sum and values; of Titans: the memory, the momentum
         and, if chunk > 1, the memory at the chunk's beginning, of each its planes, row by row
         a checksum of all before, as of caches */

enum { LATTN_SAVED_STATE_ = 40 };

LATTN_FN_ void lattn_stream_double_(lattn_stream_ *st, double *x) {
  uint64_t u;
  LATTN_MEMCPY_(&u, x, sizeof u);
  if (!st->read) {
    lattn_stream_put_(st, u, 8);
    return;
  }
  u = lattn_stream_get_(st, 8);
  LATTN_MEMCPY_(x, &u, sizeof u);
}

/* One head, to or from the stream. */
LATTN_FN_ void lattn_stream_linear_(lattn_stream_ *st, lattn_state *s, int64_t n) {
  double *sums64 = lattn_state_small_(s, n, 0);
  float *base = (float *)(void *)lattn_state_head_(s, n), row[16], lost[16];
  for (int64_t i = 0; i < s->small_doubles; i++) lattn_stream_double_(st, sums64 + i);
  for (int64_t i = 0; i < s->features && !st->failed; i++)
    for (int64_t c = 0; c < s->columns; c += 16) {
      int64_t count = lattn_min_(16, s->dv - c), stride, at;
      lattn_v16_ low = lattn_v_set_(0);
      LATTN_MEMSET_(row, 0, sizeof row);
      LATTN_MEMSET_(lost, 0, sizeof lost);
      if (!st->read) {
        lattn_v_store_(row, lattn_state_vector_(s, n, i, c, &low));
        lattn_v_store_(lost, low);
      }
      lattn_stream_row_(st, (char *)row, 4, count, 1);
      if (s->low) lattn_stream_row_(st, (char *)lost, 4, count, 1);
      if (!st->read) continue;
      at = lattn_tile_at_(s, c, &stride) + i * stride;
      LATTN_MEMCPY_(base + at, row, sizeof row);
      if (s->low) LATTN_MEMCPY_(base + s->low / 4 + at, lost, sizeof lost);
    }
}

LATTN_NOINLINE_ void lattn_stream_state_(lattn_stream_ *st, lattn_state *s) {
  for (int64_t n = 0; n < s->n_states && !st->failed; n++) {
    if (s->kind == LATTN_STATE_AAREN) lattn_stream_aaren_(st, s, n);
    else if (s->kind == LATTN_STATE_TITANS) lattn_stream_titans_(st, s, n);
    else lattn_stream_linear_(st, s, n);
  }
}

LATTN_FN_ uint64_t lattn_saved_state_bytes_(const lattn_state *s) {
  int64_t rows = s->features, head;
  if (s->kind == LATTN_STATE_AAREN) head = lattn_saved_aaren_(s);
  else if (s->kind == LATTN_STATE_TITANS) head = lattn_saved_titans_(s);
  else head = 8 * s->small_doubles + rows * s->dv * (s->low ? 8 : 4);
  return LATTN_SAVED_STATE_ + LATTN_SAVED_CHECK_ + (uint64_t)(s->n_states * head);
}

LATTN_API lattn_status lattn_state_save(const lattn_state *state, lattn_write_function write,
                                        void *user, uint64_t *bytes) {
  const char *magic = "LATTNSTA";
  lattn_stream_ st;
  lattn_fpenv_ saved;
  if (!state || (!write && !bytes)) return LATTN_E_NULL;
  if (state->n_drafts) return LATTN_E_STATE;
  if (write) {
    lattn_stream_init_(&st, write, 0, user);
    for (int i = 0; i < 8; i++) lattn_stream_put_(&st, (uint64_t)(unsigned char)magic[i], 1);
    lattn_stream_put_(&st, 1, 4);
    lattn_stream_put_(&st, (uint64_t)state->kind, 4);
    lattn_stream_put_(&st, state->fingerprint, 8);
    lattn_stream_put_(&st, (uint64_t)state->n_tokens, 8);
    lattn_stream_put_(&st, lattn_saved_state_bytes_(state), 8);
    lattn_fpenv_enter_(&saved);
    lattn_stream_state_(&st, (lattn_state *)(uintptr_t)state);
    lattn_fpenv_leave_(&saved);
    lattn_stream_put_sum_(&st);
    lattn_stream_flush_(&st);
    if (st.failed) return LATTN_E_IO;
  }
  if (bytes) *bytes = lattn_saved_state_bytes_(state);
  return LATTN_OK;
}

LATTN_FN_ lattn_status lattn_load_state_(lattn_stream_ *st, lattn_state *s) {
  const char *magic = "LATTNSTA";
  uint64_t kind, fingerprint, tokens, bytes;
  int known = 1;
  st->left = LATTN_SAVED_STATE_;
  for (int i = 0; i < 8; i++)
    if (lattn_stream_get_(st, 1) != (uint64_t)(unsigned char)magic[i]) known = 0;
  if (lattn_stream_get_(st, 4) != 1) known = 0;
  kind = lattn_stream_get_(st, 4);
  fingerprint = lattn_stream_get_(st, 8);
  tokens = lattn_stream_get_(st, 8);
  bytes = lattn_stream_get_(st, 8);
  if (st->failed) return LATTN_E_IO;
  if (!known || tokens > (uint64_t)LATTN_MAX_COUNT_) return LATTN_E_FORMAT;
  if (kind != (uint64_t)s->kind || fingerprint != s->fingerprint) return LATTN_E_CONFIG;
  s->n_tokens = (int64_t)tokens;
  if (bytes != lattn_saved_state_bytes_(s)) return LATTN_E_FORMAT;
  st->left = bytes - LATTN_SAVED_STATE_;
  lattn_stream_state_(st, s);
  if (!lattn_stream_check_(st)) known = 0;
  return st->failed ? LATTN_E_IO : known ? LATTN_OK : LATTN_E_FORMAT;
}

LATTN_API lattn_status lattn_state_load(lattn_state *state, lattn_read_function read, void *user) {
  lattn_stream_ st;
  lattn_status e;
  if (!state || !read) return LATTN_E_NULL;
  if (state->n_drafts || state->n_tokens) return LATTN_E_STATE;
  lattn_state_clear(state);
  lattn_stream_init_(&st, 0, read, user);
  e = lattn_load_state_(&st, state);
  if (e) lattn_state_clear(state);
  return e;
}

/* ---- Flow-Attention of a whole sequence, every query with every key ----
   Three passes over q and k make the sums of flow.md 1.2, in double: of features; of features by
   the flow that leaves or enters; of the competition. The fourth, over k and v, makes the matrix
   of features and columns, in blocks of 128 keys, each of which is one chain of fused multiply-adds
   from +0 that is then added; the last, over q, reads it. A unit of work is a head's run of tiles
   of columns; each makes the sums for itself. Features are made again in each pass: (4 S + 3 L) dk
   of them, 3 S + 3 L dots in double, (S + L) dk dv multiply-adds. */

typedef struct lattn_flows_ {
  lattn_tensor q, k, v, out;
  lattn_state as;            /* how features are made, and of what size: no state is behind it */
  int32_t n_workers, pieces; /* of a head, by tiles */
  char *scratch;
  size_t worker_bytes;
  int32_t next, overflowed; /* the only members that workers change */
} lattn_flows_;

enum { LATTN_FLOW_COLUMNS_ = 64 }; /* of a tile of the matrix */

LATTN_FN_ int64_t lattn_flow_tiles_(const lattn_state *as) {
  return (as->columns + LATTN_FLOW_COLUMNS_ - 1) / LATTN_FLOW_COLUMNS_;
}

/* Where the tile that begins at column c is, in floats; its rows have *stride of them. */
LATTN_FN_ int64_t lattn_flow_tile_at_(const lattn_state *as, int64_t c, int64_t *stride) {
  *stride = lattn_min_(as->columns - c, LATTN_FLOW_COLUMNS_);
  return c * as->features;
}

/* A worker's memory: of sinks (q) and sources (k) in turn. */
typedef struct lattn_flow_space_ {
  double *sum[2], *flow[2]; /* [rows]: of features of q and k; of those by their flows */
  double *s;                /* [128]: what competes */
  double most, total;       /* the largest of all s; sum of exp(s - most) */
  float *x;                 /* [128][rows]: features */
  float *y;                 /* [128][64]: of a tile, values as they compete */
  float *by;                /* [128] */
  float *matrix, *low;      /* tiles; what their sums lost */
} lattn_flow_space_;

/* Carves it from p (NULL: only counts); -1: too much. */
LATTN_FN_ int64_t lattn_carve_flow_(lattn_flow_space_ *w, char *p, const lattn_state *as) {
  int exact = (as->flags & LATTN_STATE_COMPENSATED) != 0;
  int64_t at = 0, matrix = lattn_times_(as->features, 4 * as->columns);
  int64_t sums = lattn_lay_(&at, 8 * (4 * as->rows + LATTN_BLOCK_));
  int64_t rows = lattn_lay_(&at, 4 * LATTN_BLOCK_ * (as->rows + LATTN_FLOW_COLUMNS_ + 1));
  int64_t tiles = lattn_lay_(&at, matrix), low = exact ? lattn_lay_(&at, matrix) : 0;
  if (!p || at < 0) return at;
  w->sum[0] = (double *)(void *)(p + sums);
  w->sum[1] = w->sum[0] + as->rows;
  w->flow[0] = w->sum[1] + as->rows;
  w->flow[1] = w->flow[0] + as->rows;
  w->s = w->flow[1] + as->rows;
  w->x = (float *)(void *)(p + rows);
  w->y = w->x + LATTN_BLOCK_ * as->rows;
  w->by = w->y + LATTN_BLOCK_ * LATTN_FLOW_COLUMNS_;
  w->matrix = (float *)(void *)(p + tiles);
  w->low = exact ? (float *)(void *)(p + low) : 0;
  return at; /* of multiples of 64 */
}

/* Features of rows [from, ...) of a head, a block of them at most. Returns how many. */
LATTN_FN_ int lattn_flow_rows_(const lattn_flows_ *job, const lattn_flow_space_ *w,
                               const lattn_tensor *t, int64_t from, int64_t head) {
  int n = (int)lattn_min_(LATTN_BLOCK_, t->n_tokens - from);
  for (int j = 0; j < n; j++)
    lattn_features_(0, &job->as, w->x + j * job->as.rows, 0, t, from + j, head, 0);
  return n;
}

/* to += by x; rows is a multiple of 16. */
LATTN_FN_ void lattn_add64_(double *to, double by, const float *x, int64_t rows) {
  for (int64_t i = 0; i < rows; i += 16)
    for (int t = 0; t < 16; t++) to[i + t] = lattn_fma64_(by, (double)x[i + t], to[i + t]);
}

/* The sums of a head: of features, then of features by their flows. Side 0 is q, 1 is k. */
LATTN_NOINLINE_ void lattn_flow_sums_(const lattn_flows_ *job, lattn_flow_space_ *w,
                                      const int64_t head[2]) {
  const lattn_state *as = &job->as;
  const lattn_tensor *t[2];
  t[0] = &job->q;
  t[1] = &job->k;
  LATTN_MEMSET_(w->sum[0], 0, (size_t)(4 * as->rows) * sizeof(double));
  for (int pass = 0; pass < 2; pass++)
    for (int side = 0; side < 2; side++) {
      int n;
      for (int64_t from = 0; from < t[side]->n_tokens; from += n) {
        n = lattn_flow_rows_(job, w, t[side], from, head[side]);
        for (int j = 0; j < n; j++) {
          const float *x = w->x + j * as->rows;
          double by = 1.0;
          if (pass) by = 1.0 / lattn_dot64_(x, w->sum[1 - side], as->features, (double)as->epsilon);
          lattn_add64_(pass ? w->flow[side] : w->sum[side], by, x, as->rows);
        }
      }
    }
}

/* What the n sources of the block compete with. */
LATTN_FN_ void lattn_flow_exponents_(const lattn_state *as, lattn_flow_space_ *w, int n) {
  double low = (double)as->clamp_low, high = (double)as->clamp_high;
  for (int j = 0; j < n; j++) {
    double s = lattn_dot64_(w->x + j * as->rows, w->flow[0], as->features, (double)as->epsilon);
    w->s[j] = s < low ? low : s > high ? high : s;
  }
}

/* by[j] = exp(s[j] - most), j < n. */
LATTN_FN_ void lattn_flow_exps_(lattn_flow_space_ *w, int n, double most) {
  for (int j = 0; j < LATTN_BLOCK_; j++) {
    double d = j >= n || w->s[j] == most ? 0 : w->s[j] - most;
    w->by[j] = d < -1000 ? -1000.0f : (float)d;
  }
  for (int j = 0; j < n; j += 16)
    lattn_v_store_(w->by + j, lattn_v_exp_(lattn_v_load_(w->by + j)));
}

/* The maximum and the sum of all sources: as if the sum were rescaled at each new maximum, so
   that nothing overflows without a clamp. */
LATTN_NOINLINE_ void lattn_flow_compete_(const lattn_flows_ *job, lattn_flow_space_ *w,
                                         int64_t head) {
  int n;
  w->most = w->total = 0;
  for (int64_t from = 0; from < job->k.n_tokens; from += n) {
    double top;
    n = lattn_flow_rows_(job, w, &job->k, from, head);
    lattn_flow_exponents_(&job->as, w, n);
    top = from ? w->most : w->s[0];
    for (int j = 0; j < n; j++) top = top > w->s[j] ? top : w->s[j];
    if (from && w->most < top) {
      double d = w->most - top;
      w->total = w->total * (double)lattn_exp_(d < -1000 ? -1000.0f : (float)d);
    }
    lattn_flow_exps_(w, n, top);
    for (int j = 0; j < n; j++) w->total = w->total + (double)w->by[j];
    w->most = top;
  }
}

/* to[64 r + c] = sum over t < n, in order, of a[r row + t step] b[t stride + c], c < 16 vectors.
   Per t of a full AVX-512 tile: 4 loads, 6 broadcasts, 24 multiply-adds. */
LATTN_INLINE_ void lattn_flow_body_(int rows, int vectors, const float *a, int64_t row,
                                    int64_t step, int64_t n, const float *b, int64_t stride,
                                    float *to) {
  lattn_v16_ sum[LATTN_TILE_ROWS_ * LATTN_TILE_PANELS_], x[LATTN_TILE_PANELS_];
  LATTN_UNROLL_
  for (int r = 0; r < rows * vectors; r++) sum[r] = lattn_v_set_(0);
  for (int64_t t = 0; t < n; t++) {
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++) x[c] = lattn_v_load_(b + t * stride + 16 * c);
    LATTN_UNROLL_
    for (int r = 0; r < rows; r++) {
      lattn_v16_ y = lattn_v_set_(a[r * row + t * step]);
      LATTN_UNROLL_
      for (int c = 0; c < vectors; c++)
        sum[r * vectors + c] = lattn_v_fma_(y, x[c], sum[r * vectors + c]);
    }
  }
  LATTN_UNROLL_
  for (int r = 0; r < rows; r++)
    LATTN_UNROLL_
    for (int c = 0; c < vectors; c++)
      lattn_v_store_(to + r * LATTN_FLOW_COLUMNS_ + 16 * c, sum[r * vectors + c]);
}

/* The same, of at most LATTN_TILE_ROWS_ rows and all `stride` columns. */
LATTN_NOINLINE_ void lattn_flow_tile_(int rows, const float *a, int64_t row, int64_t step,
                                      int64_t n, const float *b, int64_t stride, float *to) {
  enum { V = LATTN_TILE_PANELS_ };
  int64_t c = 0;
#define LATTN_BODY_(M)                                                     \
  for (; c + 16 * V <= stride; c += 16 * V)                                \
    lattn_flow_body_(M, V, a, row, step, n, b + c, stride, to + c);        \
  for (; c < stride; c += 16)                                              \
    lattn_flow_body_(M, 1, a, row, step, n, b + c, stride, to + c)
  if (rows == 1) {
    LATTN_BODY_(1);
    return;
  }
  LATTN_EACH_ROWS_(rows, LATTN_BODY_)
#undef LATTN_BODY_
}

/* Adds the block's n keys and values to the tile of columns [c, c + stride). */
LATTN_FN_ void lattn_flow_write_(const lattn_flows_ *job, const lattn_flow_space_ *w, int64_t from,
                                 int n, int64_t head, int64_t c) {
  const lattn_state *as = &job->as;
  const lattn_tensor *v = &job->v;
  float sum[LATTN_TILE_ROWS_ * LATTN_FLOW_COLUMNS_];
  int64_t stride, at = lattn_flow_tile_at_(as, c, &stride);
  for (int j = 0; j < n; j++) {
    int64_t value = (from + j) * v->stride_token + head * v->stride_head;
    for (int64_t i = 0; i < stride; i += 16) {
      int left = as->dv - c - i < 16 ? (int)(as->dv - c - i) : 16;
      lattn_v16_ x = lattn_v_get_n_(v->data, v->type, value + c + i, left);
      lattn_v_store_(w->y + j * stride + i, lattn_v_mul_(x, lattn_v_set_(w->by[j])));
    }
  }
  for (int64_t r = 0; r < as->features; r += LATTN_TILE_ROWS_) {
    int rows = (int)lattn_min_(LATTN_TILE_ROWS_, as->features - r);
    lattn_flow_tile_(rows, w->x + r, 1, as->rows, n, w->y, stride, sum);
    for (int i = 0; i < rows; i++)
      for (int64_t b = 0; b < stride; b += 16) {
        int64_t here = at + (r + i) * stride + b;
        lattn_v16_ low = lattn_v_set_(0), s = lattn_v_load_(w->matrix + here);
        lattn_v16_ more = lattn_v_load_(sum + i * LATTN_FLOW_COLUMNS_ + b);
        if (w->low) low = lattn_v_load_(w->low + here);
        s = lattn_v_write_(w->low != 0, lattn_v_set_(1), more, s, &low);
        lattn_v_store_(w->matrix + here, s);
        if (w->low) lattn_v_store_(w->low + here, low);
      }
  }
}

/* The matrix of columns [c, end) of a head. */
LATTN_NOINLINE_ void lattn_flow_matrix_(const lattn_flows_ *job, lattn_flow_space_ *w, int64_t head,
                                        int64_t c, int64_t end) {
  const lattn_state *as = &job->as;
  size_t bytes = (size_t)(as->features * as->columns) * sizeof(float);
  double share = (double)job->k.n_tokens / w->total;
  int n;
  LATTN_MEMSET_(w->matrix, 0, bytes);
  if (w->low) LATTN_MEMSET_(w->low, 0, bytes);
  for (int64_t from = 0; from < job->k.n_tokens; from += n) {
    n = lattn_flow_rows_(job, w, &job->k, from, head);
    lattn_flow_exponents_(as, w, n);
    lattn_flow_exps_(w, n, w->most);
    for (int j = 0; j < n; j++) w->by[j] = (float)(share * (double)w->by[j]);
    for (int64_t i = c; i < end; i += LATTN_FLOW_COLUMNS_)
      lattn_flow_write_(job, w, from, n, head, i);
  }
}

/* What the n readings of the block are multiplied by: the sink's share and its flow. */
LATTN_FN_ void lattn_flow_gates_(const lattn_flows_ *job, lattn_flow_space_ *w, int n) {
  const lattn_state *as = &job->as;
  double eps = (double)as->epsilon, most = 3.40282347e38;
  double ratio = (double)job->q.n_tokens / (double)job->k.n_tokens;
  for (int j = 0; j < LATTN_BLOCK_; j++) {
    double g = 0;
    if (j < n) g = lattn_dot64_(w->x + j * as->rows, w->flow[1], as->features, eps) * ratio;
    w->by[j] = g > most ? (float)most : (float)g;
  }
  for (int j = 0; j < n; j += 16)
    lattn_v_store_(w->by + j, lattn_v_sigmoid_(lattn_v_load_(w->by + j)));
  for (int j = 0; j < n; j++) {
    double in = (double)w->by[j];
    in = in / lattn_dot64_(w->x + j * as->rows, w->sum[1], as->features, eps);
    w->by[j] = in > most ? (float)most : (float)in;
  }
}

/* Queries of a head read columns [c, end). */
LATTN_NOINLINE_ int lattn_flow_read_(const lattn_flows_ *job, lattn_flow_space_ *w,
                                     const int64_t head[2], int64_t c, int64_t end) {
  const lattn_state *as = &job->as;
  const lattn_tensor *out = &job->out;
  float sum[LATTN_TILE_ROWS_ * LATTN_FLOW_COLUMNS_];
  int n, lost = 0;
  for (int64_t from = 0; from < job->q.n_tokens; from += n) {
    n = lattn_flow_rows_(job, w, &job->q, from, head[0]);
    lattn_flow_gates_(job, w, n);
    for (int64_t tile = c; tile < end; tile += LATTN_FLOW_COLUMNS_) {
      int64_t stride, at = lattn_flow_tile_at_(as, tile, &stride);
      for (int r = 0; r < n; r += LATTN_TILE_ROWS_) {
        int rows = n - r < LATTN_TILE_ROWS_ ? n - r : LATTN_TILE_ROWS_;
        lattn_flow_tile_(rows, w->x + r * as->rows, as->rows, 1, as->features, w->matrix + at,
                         stride, sum);
        for (int i = 0; i < rows; i++)
          for (int64_t b = 0; b < stride && tile + b < as->dv; b += 16) {
            int left = as->dv - tile - b < 16 ? (int)(as->dv - tile - b) : 16;
            lattn_v16_ zero = lattn_v_set_(0), o = lattn_v_load_(sum + i * LATTN_FLOW_COLUMNS_ + b);
            o = lattn_v_mul_(o, lattn_v_set_(w->by[r + i]));
            o = lattn_v_if_equal_(o, zero, zero, o); /* -0 becomes +0 */
            lost |= lattn_v_put_n_((void *)(uintptr_t)out->data, out->type,
                                   (from + r + i) * out->stride_token +
                                       head[0] * out->stride_head + tile + b,
                                   o, left);
          }
      }
    }
  }
  return lost;
}

/* Without keys a row is +0. */
LATTN_FN_ void lattn_flow_empty_(const lattn_flows_ *job, int64_t head, int64_t c, int64_t end) {
  const lattn_tensor *out = &job->out;
  for (int64_t t = 0; t < out->n_tokens; t++)
    for (int64_t i = c; i < lattn_min_(end, out->dim); i += 16)
      lattn_v_put_n_((void *)(uintptr_t)out->data, out->type,
                     t * out->stride_token + head * out->stride_head + i, lattn_v_set_(0),
                     out->dim - i < 16 ? (int)(out->dim - i) : 16);
}

/* Works off units: (head, piece), in order. A piece's tiles are where a head's are. */
LATTN_NOINLINE_ void lattn_flow_worker_(lattn_flows_ *job, int32_t index) {
  const lattn_state *as = &job->as;
  int64_t units = as->n_heads * (int64_t)job->pieces, tiles = lattn_flow_tiles_(as), turn = 0;
  lattn_flow_space_ w;
  lattn_carve_flow_(&w, job->scratch + (size_t)index * job->worker_bytes, as);
  for (;;) {
    int64_t unit = LATTN_HAS_ATOMIC_ ? lattn_take_(&job->next) : index + job->n_workers * turn++;
    int64_t head[2], piece = unit % job->pieces, c, end;
    if (unit >= units) return;
    head[0] = unit / job->pieces;
    head[1] = head[0] * as->n_key / as->n_heads;
    c = tiles * piece / job->pieces * LATTN_FLOW_COLUMNS_;
    end = lattn_min_(tiles * (piece + 1) / job->pieces * LATTN_FLOW_COLUMNS_, as->columns);
    if (job->k.n_tokens == 0) {
      lattn_flow_empty_(job, head[0], c, end);
      continue;
    }
    lattn_flow_sums_(job, &w, head);
    lattn_flow_compete_(job, &w, head[1]);
    lattn_flow_matrix_(job, &w, head[1], c, end);
    if (lattn_flow_read_(job, &w, head, c, end)) lattn_raise_(&job->overflowed);
  }
}

LATTN_FN_ void lattn_flow_task_(void *context, int32_t index) {
  lattn_flows_ *job = (lattn_flows_ *)context;
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_flow_worker_(job, index);
  lattn_fpenv_leave_(&saved);
}

/* The dims, and flags, as a state has them. 0: too large. */
LATTN_FN_ int lattn_flow_dims_(lattn_state *as, int64_t dk, int64_t dv, int32_t flags) {
  LATTN_MEMSET_(as, 0, sizeof *as);
  if (dk < 1 || dv < 1 || dk > LATTN_MAX_FEATURES_ || dv > LATTN_MAX_FEATURES_) return 0;
  as->kind = LATTN_STATE_FLOW;
  as->dk = as->features = (int32_t)dk;
  as->dv = (int32_t)dv;
  as->rows = (dk + 15) / 16 * 16;
  as->columns = (dv + 15) / 16 * 16;
  as->flags = flags;
  return 1;
}

LATTN_API size_t lattn_flow_scratch(int64_t key_dim, int64_t value_dim, int32_t flags,
                                    int32_t n_threads) {
  lattn_state as;
  int64_t all;
  if (n_threads < 0 || n_threads > 1024 || (flags & ~LATTN_STATE_COMPENSATED)) return 0;
  if (!lattn_flow_dims_(&as, key_dim, value_dim, flags)) return 0;
  all = lattn_times_(lattn_carve_flow_(0, 0, &as), n_threads > 0 ? n_threads : 1);
  return all < 0 ? 0 : (size_t)all + 63;
}

LATTN_FN_ lattn_status lattn_check_flow_options_(lattn_state *as, const lattn_flow *options,
                                                 lattn_fault *f) {
  lattn_flow o;
  lattn_status e = lattn_import_(&o, sizeof o, sizeof o, options);
  if (e) return lattn_fail_(f, e, "options.size");
  if (o.feature && o.feature != LATTN_FEATURE_SIGMOID && o.feature != LATTN_FEATURE_RELU)
    return lattn_fail_(f, LATTN_E_FIELD, "options.feature");
  if (o.flags & ~LATTN_STATE_COMPENSATED) return lattn_fail_(f, LATTN_E_FIELD, "options.flags");
  as->feature = o.feature ? o.feature : LATTN_FEATURE_SIGMOID;
  as->flags = o.flags;
  as->epsilon = lattn_bits_(o.epsilon) ? o.epsilon : 1e-6f;
  if (!lattn_is_finite_(as->epsilon) || !(as->epsilon > 0))
    return lattn_fail_(f, LATTN_E_VALUE, "options.epsilon");
  as->clamp_low = o.clamp_low;
  as->clamp_high = o.clamp_high;
  if (!lattn_bits_(o.clamp_low) && !lattn_bits_(o.clamp_high)) {
    as->clamp_low = -1;
    as->clamp_high = 1;
  }
  if (lattn_is_nan_(o.clamp_low)) return lattn_fail_(f, LATTN_E_VALUE, "options.clamp_low");
  if (lattn_is_nan_(o.clamp_high) || as->clamp_low > as->clamp_high)
    return lattn_fail_(f, LATTN_E_VALUE, "options.clamp_high");
  return LATTN_OK;
}

/* Views; shapes that go together; out apart from the inputs. */
LATTN_FN_ lattn_status lattn_check_flow_(lattn_flows_ *job, lattn_fault *f) {
  static const lattn_names_ q = LATTN_NAMES_("q"), k = LATTN_NAMES_("k"), v = LATTN_NAMES_("v");
  static const lattn_names_ out = LATTN_NAMES_("out");
  static const char *const name[1] = {"out"};
  lattn_tensor in[3];
  lattn_state *as = &job->as, options = *as;
  lattn_status e = lattn_view_(&job->q, 0, 1, &q, f);
  if (!e) e = lattn_view_(&job->k, 0, 1, &k, f);
  if (!e) e = lattn_view_(&job->v, 0, 1, &v, f);
  if (!e) e = lattn_view_(&job->out, 1, 1, &out, f);
  if (e) return e;
  if (job->k.dim != job->q.dim) return lattn_fail_(f, LATTN_E_SHAPE, "k.dim");
  if (job->q.n_heads % job->k.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "k.n_heads");
  if (job->v.n_tokens != job->k.n_tokens) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_tokens");
  if (job->v.n_heads != job->k.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "v.n_heads");
  if (job->out.n_tokens != job->q.n_tokens) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_tokens");
  if (job->out.n_heads != job->q.n_heads) return lattn_fail_(f, LATTN_E_SHAPE, "out.n_heads");
  if (job->out.dim != job->v.dim) return lattn_fail_(f, LATTN_E_SHAPE, "out.dim");
  if (job->q.dim > LATTN_MAX_FEATURES_) return lattn_fail_(f, LATTN_E_OVERFLOW, "q.dim");
  if (job->v.dim > LATTN_MAX_FEATURES_) return lattn_fail_(f, LATTN_E_OVERFLOW, "v.dim");
  if (job->q.n_heads > INT32_MAX / 4) return lattn_fail_(f, LATTN_E_OVERFLOW, "q.n_heads");
  lattn_flow_dims_(as, job->q.dim, job->v.dim, options.flags);
  as->feature = options.feature;
  as->epsilon = options.epsilon;
  as->clamp_low = options.clamp_low;
  as->clamp_high = options.clamp_high;
  as->n_heads = (int32_t)job->q.n_heads;
  as->n_key = (int32_t)job->k.n_heads;
  in[0] = job->q;
  in[1] = job->k;
  in[2] = job->v;
  return lattn_check_apart_(&job->out, 1, in, 3, name, f);
}

/* Scratch; how many pieces a head is cut into. */
LATTN_FN_ lattn_status lattn_place_flow_(lattn_flows_ *job, const lattn_exec *ex) {
  int64_t worker = lattn_carve_flow_(0, 0, &job->as), tiles = lattn_flow_tiles_(&job->as);
  uintptr_t at = (uintptr_t)ex->scratch, start = (at + 63) / 64 * 64;
  job->n_workers = ex->n_threads > 0 ? ex->n_threads : 1;
  job->pieces = 1;
  if (!ex->scratch) return lattn_fail_(ex->fault, LATTN_E_SCRATCH, "exec.scratch");
  if (worker < 0 || ex->scratch_bytes < start - at ||
      (ex->scratch_bytes - (start - at)) / (size_t)job->n_workers < (size_t)worker)
    return lattn_fail_(ex->fault, LATTN_E_SCRATCH, "exec.scratch_bytes");
  job->scratch = (char *)ex->scratch + (start - at);
  job->worker_bytes = (size_t)worker;
  while (job->pieces < tiles && job->n_workers > 1 &&
         job->as.n_heads * (int64_t)job->pieces < 3 * (int64_t)job->n_workers)
    job->pieces++;
  return LATTN_OK;
}

LATTN_API lattn_status lattn_flow_attention(const lattn_flow *options, lattn_tensor q,
                                            lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                            const lattn_exec *exec) {
  lattn_exec ex;
  lattn_flows_ job;
  lattn_status e = lattn_exec_in_(&ex, exec);
  if (e) return e;
  LATTN_MEMSET_(&job, 0, sizeof job);
  job.q = q;
  job.k = k;
  job.v = v;
  job.out = out;
  e = lattn_check_flow_options_(&job.as, options, ex.fault);
  if (!e) e = lattn_check_flow_(&job, ex.fault);
  if (!e) e = lattn_place_flow_(&job, &ex);
  if (e) return e;
  if (job.q.n_tokens > 0) lattn_parallel_(&ex, job.n_workers, lattn_flow_task_, &job);
  if (ex.tokens_done) *ex.tokens_done = job.q.n_tokens;
  return job.overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

/* ---- published methods ---- */

LATTN_API lattn_status lattn_state_preset(lattn_state_config *config, int32_t preset) {
  /* kind, feature, unit, scale (0: 1 / sqrt(key_dim)), decay, delta, reads, normaliser, epsilon */
  static const struct {
    int32_t kind, feature, unit;
    float scale;
    int32_t decay, delta, reads, normaliser;
    float epsilon;
  } table[15] = {
      {LATTN_STATE_LINEAR, LATTN_FEATURE_ELU1, 0, 1, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-6f},
      {LATTN_STATE_LINEAR, LATTN_FEATURE_TAYLOR, 0, 0, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-12f},
      {LATTN_STATE_LINEAR, 0, 0, 0, LATTN_DECAY_HEAD, 0, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 1, LATTN_DECAY_HEAD, 0, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 1, LATTN_DECAY_STEP, 0, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 0, LATTN_DECAY_CHANNEL, 0, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 1, LATTN_DECAY_CHANNEL, 0, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 1, LATTN_DECAY_CHANNEL, 0, LATTN_READS_BEFORE, 0, 0},
      {LATTN_STATE_LINEAR, 0, LATTN_UNIT_L2, 0, 0, LATTN_DELTA_KEY, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, LATTN_UNIT_L2, 0, LATTN_DECAY_STEP, LATTN_DELTA_KEY, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, LATTN_UNIT_L2, 0, LATTN_DECAY_CHANNEL, LATTN_DELTA_KEY, 0, 0, 0},
      {LATTN_STATE_LINEAR, 0, 0, 1, LATTN_DECAY_CHANNEL, LATTN_DELTA_GENERAL, 0, 0, 0},
      {LATTN_STATE_FLOW, 0, 0, 0, 0, 0, 0, 0, 0},
      {LATTN_STATE_AAREN, 0, 0, 0, 0, 0, 0, 0, 0},
      {LATTN_STATE_TITANS, 0, 0, 0, 0, 0, 0, 0, 0}};
  if (!config) return LATTN_E_NULL;
  if (config->size < sizeof *config || config->size > LATTN_MAX_STRUCT_) return LATTN_E_SIZE;
  if (preset < 0 || preset > LATTN_PRESET_TITANS) return LATTN_E_FIELD;
  config->kind = table[preset].kind;
  config->feature = table[preset].feature;
  config->unit = table[preset].unit;
  config->scale = table[preset].scale;
  config->decay = table[preset].decay;
  config->delta = table[preset].delta;
  config->reads = table[preset].reads;
  config->normaliser = table[preset].normaliser;
  config->epsilon = table[preset].epsilon;
  return LATTN_OK;
}

/* 2^(-8 (h + 1) / n), n a power of two. */
LATTN_FN_ float lattn_alibi_slope_(int64_t h, int64_t n) {
  float x = 8.0f * (float)(h + 1) / (float)n, whole = (float)(int32_t)x;
  return lattn_exp_((whole - x) * 0.693147182f) * lattn_float_((uint32_t)(127 - (int32_t)x) << 23);
}

LATTN_NOINLINE_ void lattn_slopes_(float *log_decay, int32_t retnet, int32_t n_heads, int32_t layer,
                                   int32_t n_layers) {
  int64_t power = 1;
  double factor = 1;
  while (power <= n_heads / 2) power *= 2;
  if (n_layers > 1) factor = 1.0 - (double)layer / (double)(n_layers - 1) + 1e-5;
  for (int32_t h = 0; h < n_heads; h++) {
    double x = 0.03125, sum = 0, to = 1;
    if (!retnet) {
      float slope =
          h < power ? lattn_alibi_slope_(h, power) : lattn_alibi_slope_(2 * (h - power), 2 * power);
      log_decay[h] = -(float)((double)slope * factor);
      continue;
    }
    for (int32_t i = 0; i < h && i < 1000; i++) x *= 0.5; /* ln(1 - x) = -(x + x^2 / 2 + ...) */
    for (int k = 1; k <= 12; k++) {
      to = to * x; /* a power of two */
      sum = sum + to / (double)k;
    }
    log_decay[h] = -(float)sum;
  }
}

LATTN_API lattn_status lattn_state_slopes(float *log_decay, int32_t preset, int32_t n_heads,
                                          int32_t layer, int32_t n_layers) {
  lattn_fpenv_ saved;
  if (!log_decay) return LATTN_E_NULL;
  if (preset != LATTN_PRESET_RETNET && preset != LATTN_PRESET_LIGHTNING) return LATTN_E_FIELD;
  if (n_heads < 1 || layer < 0 || n_layers < 0 || (n_layers > 1 && layer >= n_layers))
    return LATTN_E_SHAPE;
  lattn_fpenv_enter_(&saved);
  lattn_slopes_(log_decay, preset == LATTN_PRESET_RETNET, n_heads, layer, n_layers);
  lattn_fpenv_leave_(&saved);
  return LATTN_OK;
}

/* ==== §11 profile ================================================================================
   Scores of heads from what attention was called with. Weights that are wanted of whole columns, or
   of a row's best keys, come from §6 (attention weights on demand); those of a few keys a row, and
   attention of some rows over some of their keys (a part), from its tiles. A row's numbers are
   added in the order of rows, a head's by one worker, in double: no sum depends on threads or on
   how the tokens were cut into calls.

   A profile is a struct and, behind it, areas of 8-byte slots. Sums that a sample's end adds to
   those of all samples stand twice: the open sample's, then the closed ones'. */

enum lattn_area_ {
  LATTN_AREA_ECHO_ROWS_, /* [L] */
  LATTN_AREA_ECHO_,      /* [L][H] */
  LATTN_AREA_INDUCTION_, /* [L][H] */
  LATTN_AREA_PART_ROWS_, /* [L] */
  LATTN_AREA_LOST_,      /* [L][H] */
  LATTN_AREA_OUT_,       /* [L]: squares of outputs */
  LATTN_AREA_RESIDUAL_,  /* [L]: mean squares of what came in */
  LATTN_AREA_LOSS_,      /* [L][G]: squares of what streaming loses */
  LATTN_AREA_Q_,         /* [L][G][G]: products of that, projected; its lower triangle */
  LATTN_AREA_COPIED_,    /* [L][H] */
  LATTN_AREA_MOST_,      /* [L][H]: not a sum but the largest */
  LATTN_SUMS_,           /* areas up to here are followed by those of the closed samples */
  LATTN_AREA_SET_ = 2 * LATTN_SUMS_, /* [L][H]: shares, of the closed samples */
  LATTN_AREA_COPIES_,    /* [L][H][needle]: 1 where that token was copied */
  LATTN_AREA_NEEDLE_,    /* [needle]: its tokens, int64 */
  LATTN_AREA_WAITS_,     /* [L]: 1 if keys wait for the token, int64 */
  LATTN_AREA_KEYS_,      /* [L][H][top_k]: positions of the newest row's best keys, int64 */
  LATTN_AREA_MASS_,      /* [L][H][T]: sums of weights, of the open sample */
  LATTN_AREA_SEEN_,      /* [L][T]: rows that saw the column */
  LATTN_AREA_MEANS_,     /* [L][H][T]: sums of means, of the closed samples */
  LATTN_AREA_HITS_,      /* [L][H][T]: samples in which it was a sink */
  LATTN_AREA_TIMES_,     /* [L][T]: samples in which it was seen */
  /* From here on, room for one call: */
  LATTN_AREA_BEST_,      /* [LATTN_ANSWER_ROWS_][H][top_k]: keys, int64, then their weights */
  LATTN_AREA_CHOSEN_,    /* [B]: rows of a batch */
  LATTN_AREA_ENDS_,      /* [B][H]: maximum and sum of the kept part, floats */
  LATTN_AREA_OMEGA_,     /* [B][H] */
  LATTN_AREA_SQUARE_,    /* [B][H]: of the output */
  LATTN_AREA_LESS_,      /* [B][H]: of what it loses */
  LATTN_AREA_D_,         /* [G][B][H / G][dv]: what it loses, floats */
  LATTN_AREA_U_,         /* [LATTN_PROJECTED_ROWS_][G][model dim]: the same projected, floats */
  LATTN_AREAS_
};

enum {
  LATTN_BATCH_ROWS_ = 192,    /* chosen rows that go through both parts at a time: B */
  LATTN_PROJECTED_ROWS_ = 48, /* of those, projected at a time */
  LATTN_ANSWER_ROWS_ = 12,    /* rows of an answer whose best keys are looked for at a time */
  LATTN_ALL_SCORES_ = LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_ECHO | LATTN_PROFILE_SINKS |
                      LATTN_PROFILE_GATES | LATTN_PROFILE_LOST,
  LATTN_PARTS_ = LATTN_PROFILE_GATES | LATTN_PROFILE_LOST
};

struct lattn_profile {
  lattn_profile_config c; /* without zeros */
  int64_t bytes, n_samples, n_needles, needle_from, needle_to;
  int32_t open, has_needle; /* something was observed; a needle */
  int64_t distinct;         /* tokens of the needle */
  int64_t at[LATTN_AREAS_]; /* of each area, in slots behind this */
};

LATTN_FN_ size_t lattn_profile_head_(void) {
  return (size_t)lattn_round64_(sizeof(struct lattn_profile));
}

LATTN_FN_ double *lattn_area_(const lattn_profile *p, int area) {
  return (double *)(void *)((char *)(uintptr_t)p + lattn_profile_head_()) + p->at[area];
}
LATTN_FN_ int64_t *lattn_area_numbers_(const lattn_profile *p, int area) {
  return (int64_t *)(void *)lattn_area_(p, area);
}
LATTN_FN_ float *lattn_area_floats_(const lattn_profile *p, int area) {
  return (float *)(void *)lattn_area_(p, area);
}

/* Slots of an area; -1: too many. */
LATTN_FN_ int64_t lattn_area_slots_(const lattn_profile_config *c, int area) {
  int64_t layers = c->n_layers, heads = c->n_heads, groups = c->n_kv_heads;
  int64_t all = lattn_times_(layers, heads), parts = (c->scores & LATTN_PARTS_) != 0;
  int64_t echo = (c->scores & LATTN_PROFILE_ECHO) != 0;
  int64_t copies = (c->scores & LATTN_PROFILE_RETRIEVAL) != 0;
  int64_t columns = c->scores & LATTN_PROFILE_SINKS ? c->columns : 0;
  int64_t gates = (c->scores & LATTN_PROFILE_GATES) != 0, projects = gates && c->model_dim;
  int64_t batch = parts * LATTN_BATCH_ROWS_;
  if (area >= LATTN_SUMS_ && area < LATTN_AREA_SET_) area -= LATTN_SUMS_;
  switch (area) {
    case LATTN_AREA_ECHO_ROWS_: return echo * layers;
    case LATTN_AREA_ECHO_:
    case LATTN_AREA_INDUCTION_: return echo * all;
    case LATTN_AREA_PART_ROWS_:
    case LATTN_AREA_OUT_:
    case LATTN_AREA_RESIDUAL_: return parts * layers;
    case LATTN_AREA_LOST_:
    case LATTN_AREA_MOST_: return parts * all;
    case LATTN_AREA_LOSS_: return gates * layers * groups;
    case LATTN_AREA_Q_: return projects ? lattn_times_(layers, lattn_times_(groups, groups)) : 0;
    case LATTN_AREA_COPIED_:
    case LATTN_AREA_SET_: return copies * all;
    case LATTN_AREA_COPIES_: return copies * lattn_times_(all, c->max_needle);
    case LATTN_AREA_NEEDLE_: return copies * c->max_needle;
    case LATTN_AREA_WAITS_: return copies * layers;
    case LATTN_AREA_KEYS_: return copies * lattn_times_(all, c->top_k);
    case LATTN_AREA_BEST_: return copies * LATTN_ANSWER_ROWS_ * heads * 2 * c->top_k;
    case LATTN_AREA_MASS_:
    case LATTN_AREA_MEANS_:
    case LATTN_AREA_HITS_: return lattn_times_(all, columns);
    case LATTN_AREA_SEEN_:
    case LATTN_AREA_TIMES_: return lattn_times_(layers, columns);
    case LATTN_AREA_CHOSEN_: return batch;
    case LATTN_AREA_D_: return lattn_times_(batch * heads, ((int64_t)c->value_dim + 1) / 2);
    case LATTN_AREA_U_:
      if (!projects) return 0;
      return lattn_times_(LATTN_PROJECTED_ROWS_ * groups, ((int64_t)c->model_dim + 1) / 2);
    default: return batch * heads;
  }
}

/* Copies a config with its defaults, and checks it. */
LATTN_FN_ lattn_status lattn_profile_config_(lattn_profile_config *c,
                                             const lattn_profile_config *config) {
  lattn_status s = lattn_import_(c, sizeof *c, sizeof *c, config);
  lattn_fault *f;
  if (!config) return LATTN_E_NULL;
  if (s == LATTN_E_FIELD) return lattn_fail_(config->fault, s, "config.size");
  if (s) return s;
  f = c->fault;
  c->fault = 0;
  if (!c->scores || c->scores & ~LATTN_ALL_SCORES_)
    return lattn_fail_(f, LATTN_E_FIELD, "config.scores");
  if (c->n_layers < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.n_layers");
  if (c->n_heads < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.n_heads");
  if (c->n_kv_heads == 0) c->n_kv_heads = c->n_heads;
  if (c->n_kv_heads < 1 || c->n_heads % c->n_kv_heads)
    return lattn_fail_(f, LATTN_E_SHAPE, "config.n_kv_heads");
  if (c->value_dim < 0 || (c->value_dim == 0 && c->scores & LATTN_PARTS_))
    return lattn_fail_(f, LATTN_E_SHAPE, "config.value_dim");
  if (c->model_dim < 0) return lattn_fail_(f, LATTN_E_SHAPE, "config.model_dim");
  if (c->top_k == 0) c->top_k = 1;
  if (c->top_k < 1 || c->top_k > 64) return lattn_fail_(f, LATTN_E_SHAPE, "config.top_k");
  if (c->max_needle == 0) c->max_needle = 256;
  if (c->max_needle < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.max_needle");
  if (!(lattn_bits_(c->sink_threshold) << 1)) c->sink_threshold = 0.3f;
  if (!lattn_is_finite_(c->sink_threshold))
    return lattn_fail_(f, LATTN_E_VALUE, "config.sink_threshold");
  if (c->columns == 0) c->columns = 64;
  if (c->columns < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.columns");
  if (c->columns > LATTN_MAX_POSITION_) return lattn_fail_(f, LATTN_E_OVERFLOW, "config.columns");
  if (c->sinks < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.sinks");
  if (c->window < 0) return lattn_fail_(f, LATTN_E_VALUE, "config.window");
  if (c->window == 0) c->sinks = 64, c->window = 257;
  if (c->row_step == 0) c->row_step = 16;
  if (c->row_step < 1) return lattn_fail_(f, LATTN_E_SHAPE, "config.row_step");
  if (c->row_step > LATTN_MAX_POSITION_)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "config.row_step");
  c->sinks = lattn_min_(c->sinks, LATTN_MAX_POSITION_);
  return LATTN_OK;
}

/* Bytes of a profile of that (checked) config, and where its areas are; 0: too many. */
LATTN_FN_ size_t lattn_profile_plan_(const lattn_profile_config *c, int64_t at[LATTN_AREAS_]) {
  int64_t slots = 0;
  for (int i = 0; i < LATTN_AREAS_; i++) {
    at[i] = slots;
    slots = lattn_plus_(slots, lattn_area_slots_(c, i));
  }
  slots = lattn_times_(slots, 8);
  slots = lattn_plus_(slots, (int64_t)lattn_profile_head_() + 64);
  return slots < 0 ? 0 : (size_t)slots;
}

LATTN_API size_t lattn_profile_bytes(const lattn_profile_config *config) {
  lattn_profile_config c, mute;
  int64_t at[LATTN_AREAS_];
  if (lattn_import_(&mute, sizeof mute, sizeof mute, config) || !config) return 0;
  mute.size = sizeof mute;
  mute.fault = 0;
  if (lattn_profile_config_(&c, &mute)) return 0;
  return lattn_profile_plan_(&c, at);
}

LATTN_API lattn_status lattn_profile_init(lattn_profile **profile, void *memory, size_t bytes,
                                          const lattn_profile_config *config) {
  lattn_profile_config c;
  lattn_profile *p;
  int64_t at[LATTN_AREAS_];
  size_t need;
  uintptr_t place = ((uintptr_t)memory + 63) / 64 * 64;
  lattn_status s = lattn_profile_config_(&c, config);
  if (s) return s;
  need = lattn_profile_plan_(&c, at);
  if (!need) return lattn_fail_(config->fault, LATTN_E_OVERFLOW, "config");
  if (!profile) return lattn_fail_(config->fault, LATTN_E_NULL, "profile");
  if (!memory) return lattn_fail_(config->fault, LATTN_E_NULL, "memory");
  if (bytes < need) return lattn_fail_(config->fault, LATTN_E_MEMORY, "bytes");
  p = (lattn_profile *)(void *)((char *)memory + (place - (uintptr_t)memory));
  LATTN_MEMSET_(p, 0, need - 64);
  p->c = c;
  p->bytes = (int64_t)need;
  LATTN_MEMCPY_(p->at, at, sizeof at);
  *profile = p;
  return LATTN_OK;
}

LATTN_API lattn_status lattn_profile_clear(lattn_profile *profile) {
  lattn_profile kept;
  if (!profile) return LATTN_E_NULL;
  kept = *profile;
  LATTN_MEMSET_(profile, 0, (size_t)kept.bytes - 64);
  profile->c = kept.c;
  profile->bytes = kept.bytes;
  LATTN_MEMCPY_(profile->at, kept.at, sizeof kept.at);
  return LATTN_OK;
}

/* ---- retrieval ---- */

/* The keys of a row, and the token that it emitted. */
LATTN_FN_ void lattn_profile_copies_(lattn_profile *p, int64_t layer, const int64_t *keys,
                                     int64_t key_position, int64_t token) {
  const int64_t *needle = lattn_area_numbers_(p, LATTN_AREA_NEEDLE_);
  int64_t length = p->needle_to - p->needle_from, k = p->c.top_k;
  for (int64_t h = 0; h < p->c.n_heads; h++) {
    int64_t at = layer * p->c.n_heads + h;
    double *copies = lattn_area_(p, LATTN_AREA_COPIES_) + at * p->c.max_needle;
    for (int64_t i = 0; i < k; i++) {
      int64_t key = keys[h * k + i] < 0 ? -1 : keys[h * k + i] + key_position - p->needle_from;
      int64_t first = 0;
      if (key < 0 || key >= length || needle[key] != token) continue;
      lattn_area_(p, LATTN_AREA_COPIED_)[at] += 1.0 / (double)length;
      while (needle[first] != token) first++;
      copies[first] = 1;
      break;
    }
  }
}

/* The needle of the sample, if it is new. */
LATTN_FN_ void lattn_profile_needle_(lattn_profile *p, const lattn_observed *o) {
  int64_t *needle = lattn_area_numbers_(p, LATTN_AREA_NEEDLE_);
  if (p->has_needle) return;
  p->has_needle = 1;
  p->needle_from = o->needle_from;
  p->needle_to = o->needle_to;
  p->distinct = 0;
  for (int64_t i = 0; i < o->needle_to - o->needle_from; i++) {
    int64_t first = 0;
    needle[i] = o->tokens[o->needle_from + i];
    while (needle[first] != needle[i]) first++;
    p->distinct += first == i;
  }
}

/* What a row found: scored with the token that it emitted, or kept until that is known. */
LATTN_FN_ void lattn_observe_copy_(lattn_profile *p, const lattn_observed *o, int64_t position,
                                   int64_t key_position, const int64_t *best) {
  int64_t n = (int64_t)p->c.n_heads * p->c.top_k;
  int64_t *keys = lattn_area_numbers_(p, LATTN_AREA_KEYS_) + o->layer * n;
  if (position + 1 < o->n_tokens) {
    lattn_profile_copies_(p, o->layer, best, key_position, o->tokens[position + 1]);
    return;
  }
  lattn_area_numbers_(p, LATTN_AREA_WAITS_)[o->layer] = 1;
  for (int64_t i = 0; i < n; i++) keys[i] = best[i] < 0 ? best[i] : best[i] + key_position;
}

/* Of each row of the answer, every head's best keys. */
LATTN_NOINLINE_ void lattn_observe_copies_(lattn_profile *p, lattn_job_ *whole,
                                           const lattn_observed *o, const lattn_exec *ex,
                                           int depth) {
  int64_t first = whole->o.query_position, all = (int64_t)p->c.n_heads * p->c.top_k;
  int64_t row = lattn_max_(0, lattn_max_(0, o->first_answer) - first), rows[LATTN_ANSWER_ROWS_];
  int64_t *best = lattn_area_numbers_(p, LATTN_AREA_BEST_);
  lattn_weights w;
  LATTN_MEMSET_(&w, 0, sizeof w);
  w.rows = rows;
  w.lse = o->lse;
  w.top_k = p->c.top_k;
  w.top_keys = best;
  w.top_weights = (float *)(void *)(best + LATTN_ANSWER_ROWS_ * all);
  w.stride = whole->k.n_tokens;
  lattn_profile_needle_(p, o);
  whole->weights = whole->chosen = &w;
  for (; row < whole->q.n_tokens; row += w.n_rows) {
    w.n_rows = lattn_min_(LATTN_ANSWER_ROWS_, whole->q.n_tokens - row);
    for (int64_t i = 0; i < w.n_rows; i++) rows[i] = row + i;
    lattn_weigh_(whole, ex, depth);
    for (int64_t i = 0; i < w.n_rows; i++)
      lattn_observe_copy_(p, o, first + row + i, whole->o.key_position, best + i * all);
  }
  whole->weights = whole->chosen = 0;
}

LATTN_API lattn_status lattn_profile_emit(lattn_profile *profile, int32_t token) {
  int64_t keys = profile ? (int64_t)profile->c.n_heads * profile->c.top_k : 0;
  int64_t *waits;
  if (!profile) return LATTN_E_NULL;
  if (!(profile->c.scores & LATTN_PROFILE_RETRIEVAL)) return LATTN_OK;
  waits = lattn_area_numbers_(profile, LATTN_AREA_WAITS_);
  for (int64_t l = 0; l < profile->c.n_layers; l++) {
    if (!waits[l]) continue;
    waits[l] = 0;
    lattn_profile_copies_(profile, l, lattn_area_numbers_(profile, LATTN_AREA_KEYS_) + l * keys, 0,
                          token);
  }
  return LATTN_OK;
}

/* ---- echo and induction: two keys a row and period ---- */

typedef struct lattn_echoes_ {
  lattn_job_ *job;
  const float *lse, *lse_low;
  int64_t first, period;
  double *echo, *induction; /* [H] */
} lattn_echoes_;

/* Leaves of the rows' keys the two that are `back` before; returns whether there are any, and where
   they begin. */
LATTN_FN_ int lattn_echo_rows_(const lattn_echoes_ *e, lattn_item_ *it, lattn_space_ *sp,
                               int64_t back) {
  int any = 0;
  it->lo = it->sink_lo = INT64_MAX;
  it->hi = it->sink_hi = 0;
  for (int64_t r = 0; r < it->rows; r++) {
    lattn_row_ *row = sp->rows + r;
    int64_t key;
    lattn_row_at_(e->job, it, it->row + r, row);
    key = it->query_position + (row->token - it->q0) - back;
    any |= key >= e->first;
    if (key < e->first) key = INT64_MAX - 2;
    row->lo = lattn_max_(row->lo, key);
    row->hi = lattn_min_(row->hi, key + 2);
    row->sink_lo = lattn_max_(row->sink_lo, key);
    row->sink_hi = lattn_min_(row->sink_hi, key + 2);
    lattn_row_join_(row);
    lattn_item_add_(it, row);
  }
  return any;
}

/* Adds the weights of a row's two keys, the first of which is `key`, as far as they are in the
   block. */
LATTN_FN_ void lattn_echo_pick_(const lattn_echoes_ *e, const lattn_row_ *row, int64_t key,
                                int64_t base, const float *s, const uint32_t visible[8],
                                double sums[2]) {
  int64_t at = row->token * e->job->n_kv * e->job->group + row->head;
  lattn_weighed_ to;
  LATTN_MEMSET_(&to, 0, sizeof to);
  to.lse = e->lse ? e->lse[at] : 0.0f;
  to.lse_low = e->lse_low ? e->lse_low[at] : 0.0f;
  for (int i = 0; i < 2; i++) {
    int64_t lane = key + i - base;
    float x[16];
    if (lane < 0 || lane >= LATTN_BLOCK_ || !(visible[lane / 16] >> lane % 16 & 1u)) continue;
    lattn_v_store_(x, lattn_weight16_(e->job, &to, lattn_v_set_(s[lane])));
    sums[i] += (double)x[0];
  }
}

LATTN_FN_ void lattn_echo_tile_(const lattn_echoes_ *e, lattn_item_ *it, lattn_space_ *sp) {
  double sums[LATTN_TILE_ROWS_][2];
  LATTN_MEMSET_(sums, 0, sizeof sums);
  lattn_fill_rows_(e->job, it, sp);
  for (int64_t back = e->period; lattn_echo_rows_(e, it, sp, back); back += e->period) {
    int64_t base = lattn_min_(it->lo, it->sink_lo) / LATTN_BLOCK_ * LATTN_BLOCK_;
    for (; base < lattn_max_(it->hi, it->sink_hi); base += LATTN_BLOCK_) {
      lattn_block_ b;
      int lo, hi, first, end;
      lattn_begin_block_(e->job, it, sp, base, &b);
      if (b.lo >= b.hi || !lattn_tile_scores_(e->job, it, sp, &b, base, 0, (int)it->rows, &lo, &hi,
                                              &first, &end))
        continue;
      for (int r = 0; r < (int)it->rows; r++) {
        const lattn_row_ *row = sp->rows + r;
        int64_t key = it->query_position + (row->token - it->q0) - back;
        float *s = sp->s + r * LATTN_BLOCK_;
        uint32_t visible[8];
        lattn_mask_row_(e->job, it, row, base, b.holes, first, end, s, visible);
        lattn_echo_pick_(e, row, key, base, s, visible, sums[r]);
      }
    }
  }
  for (int64_t r = 0; r < it->rows; r++) {
    e->echo[sp->rows[r].head] += sums[r][0];
    e->induction[sp->rows[r].head] += sums[r][1];
  }
}

/* A worker's share: all rows from the second period on, of whole KV heads. */
LATTN_NOINLINE_ void lattn_echo_heads_(void *context, int32_t index, char *memory) {
  const lattn_echoes_ *e = (const lattn_echoes_ *)context;
  const lattn_job_ *job = e->job;
  int64_t most = lattn_min_(job->rows, LATTN_TILE_ROWS_), from, end;
  lattn_space_ sp;
  lattn_item_ it;
  size_t keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(job, &it);
  from = lattn_max_(0, e->first + e->period - it.query_position) * job->group;
  end = it.nq * job->group;
  for (it.kv = index; it.kv < job->n_kv; it.kv += job->n_workers)
    for (it.row = from; it.row < end; it.row += it.rows) {
      it.rows = lattn_min_(most, end - it.row);
      lattn_echo_tile_(e, &it, &sp);
    }
}

LATTN_FN_ void lattn_echo_task_(void *context, int32_t index) {
  lattn_work_(((const lattn_echoes_ *)context)->job, context, index, lattn_echo_heads_);
}

LATTN_NOINLINE_ void lattn_observe_echo_(lattn_profile *p, lattn_job_ *whole,
                                         const lattn_observed *o, const lattn_exec *ex,
                                         int depth) {
  int64_t end = whole->o.query_position + whole->q.n_tokens, from = o->first + o->period;
  lattn_echoes_ e;
  e.job = whole;
  e.lse = o->lse;
  e.lse_low = o->lse_low;
  e.first = o->first;
  e.period = o->period;
  e.echo = lattn_area_(p, LATTN_AREA_ECHO_) + (int64_t)o->layer * p->c.n_heads;
  e.induction = lattn_area_(p, LATTN_AREA_INDUCTION_) + (int64_t)o->layer * p->c.n_heads;
  from = lattn_max_(from, whole->o.query_position);
  lattn_area_(p, LATTN_AREA_ECHO_ROWS_)[o->layer] += (double)lattn_max_(0, end - from);
  lattn_place_(e.job, ex, whole->q.n_tokens * whole->group, depth, 1, 0);
  lattn_parallel_(ex, e.job->n_workers, lattn_echo_task_, &e);
}

/* ---- sinks: sums of columns ---- */

/* Rows of the call that see a key. */
LATTN_FN_ int64_t lattn_rows_seeing_(const lattn_job_ *job, const lattn_item_ *it, int64_t key) {
  const lattn_attn *o = &job->o;
  int64_t from = it->query_position, to = it->query_position + it->nq, n = 0;
  if (!o->visible_from && !o->visible_to && !o->query_positions && !o->key_positions) {
    if (o->mask != LATTN_FULL) from = lattn_max_(from, key);
    else if (o->window > 0 && key >= o->sinks) from = lattn_max_(from, key - o->ahead);
    if (o->window > 0 && key >= o->sinks)
      to = lattn_min_(to, key + lattn_min_(o->window, LATTN_MAX_POSITION_));
    return lattn_max_(0, to - from);
  }
  for (int64_t i = 0; i < it->nq; i++) {
    lattn_row_ row;
    lattn_row_at_(job, it, i * job->group, &row);
    n += lattn_visible16_(job, it, &row, key / 16 * 16, 0) >> key % 16 & 1u;
  }
  return n;
}

LATTN_NOINLINE_ void lattn_observe_columns_(lattn_profile *p, lattn_job_ *whole,
                                            const lattn_observed *o, const lattn_exec *ex,
                                            int depth) {
  int64_t layer = o->layer, columns = p->c.columns, first = whole->o.key_position;
  double *seen = lattn_area_(p, LATTN_AREA_SEEN_) + layer * columns;
  int64_t n_keys = whole->k.n_tokens;
  lattn_weights w;
  lattn_item_ it;
  if (first >= columns) return;
  whole->k.n_tokens = lattn_min_(n_keys, columns - first);
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(whole, &it);
  for (int64_t j = first; j < first + whole->k.n_tokens; j++)
    seen[j] += (double)lattn_rows_seeing_(whole, &it, j);
  LATTN_MEMSET_(&w, 0, sizeof w);
  w.lse = o->lse;
  w.lse_low = o->lse_low;
  w.stride = columns;
  w.mass = lattn_area_(p, LATTN_AREA_MASS_) + layer * p->c.n_heads * columns + first;
  whole->weights = whole->chosen = &w;
  lattn_weigh_(whole, ex, depth);
  whole->weights = whole->chosen = 0;
  whole->k.n_tokens = n_keys;
}

/* ---- parts: attention of some rows over some of their keys ---- */

/* What two parts of a row's keys come to: F = full output, P = of the kept part (learned sinks
   included), o = of the lost part. F - P = omega (o - P), omega = share of the lost part. (F - P as
   it stands loses all its digits where omega is small.) */
typedef struct lattn_split_ {
  lattn_job_ *job;      /* its chosen rows are the batch's */
  lattn_part_ parts[2]; /* kept, lost */
  int64_t tokens;       /* of the batch */
  float *ends, *d;      /* of the profile's areas */
  double *omega, *square, *less;
} lattn_split_;

/* The worker's rows over one part; returns the slot of the partial. */
LATTN_FN_ int lattn_run_part_(const lattn_job_ *job, lattn_item_ *it, lattn_space_ *sp,
                              const lattn_part_ *part) {
  it->part = part;
  lattn_fill_rows_(job, it, sp);
  it->lo = it->sink_lo = INT64_MAX;
  it->hi = it->sink_hi = 0;
  for (int64_t r = 0; r < it->rows; r++) lattn_item_add_(it, sp->rows + r);
  if (it->hi == 0) it->lo = 0;
  if (it->sink_hi == 0) it->sink_lo = 0;
  return lattn_run_segments_(job, it, sp, 0, LATTN_MAX_POSITION_);
}

/* e^(x - most); 0 for nothing. */
LATTN_FN_ double lattn_power_(float x, float most) {
  if (lattn_is_empty_(x)) return 0;
  return (double)lattn_exp_(x == most ? 0.0f : x - most);
}

/* Where what row r of the item loses goes. */
LATTN_FN_ float *lattn_split_at_(const lattn_split_ *split, const lattn_item_ *it, int64_t r) {
  const lattn_job_ *job = split->job;
  int64_t row = it->kv * (int64_t)LATTN_BATCH_ROWS_ * job->group + it->row + r;
  return split->d + row * job->dv;
}

/* Row r of the item, whose lost part has come, and whose kept part was put aside. */
LATTN_FN_ void lattn_split_row_(const lattn_split_ *split, const lattn_item_ *it,
                                const lattn_row_ *row, int64_t r, float m, float l,
                                const float *acc) {
  const lattn_job_ *job = split->job;
  int64_t at = (it->row + r) / job->group * job->n_kv * job->group + row->head;
  float *d = lattn_split_at_(split, it, r), most = m;
  float z = job->o.sink_logits ? job->o.sink_logits[row->head] : -LATTN_INFINITY_;
  float kept_m = split->ends[2 * at], kept_l = split->ends[2 * at + 1];
  int none = lattn_is_empty_(m), none_kept = lattn_is_empty_(kept_m);
  double kept, lost, total, omega, square = 0, less = 0;
  if (kept_m > most || lattn_is_nan_(kept_m)) most = kept_m;
  if (z > most) most = z;
  kept = lattn_power_(kept_m, most);
  lost = lattn_power_(m, most);
  total = lattn_power_(z, most);
  if (!none_kept) total = lattn_fma64_((double)kept_l, kept, total);
  kept = none_kept ? 0 : kept / total; /* P is so much of its sum */
  if (!none) total = lattn_fma64_((double)l, lost, total);
  omega = none ? 0 : (double)l * lost / total;
  for (int64_t c = 0; c < job->dv; c++) {
    double p = none_kept ? 0 : (double)d[c] * kept, x = 0;
    if (!none) x = (double)acc[c] / (double)l;
    if (!none && !none_kept) x = lattn_fma64_((double)-d[c], kept, x);
    square = lattn_fma64_(lattn_fma64_(omega, x, p), lattn_fma64_(omega, x, p), square);
    x = omega * x;
    d[c] = (float)x;
    less = lattn_fma64_(x, x, less);
  }
  split->omega[at] = omega;
  split->square[at] = square;
  split->less[at] = less;
}

/* Items of a batch (KV head, some rows), each over its two parts. */
LATTN_NOINLINE_ void lattn_split_items_(void *context, int32_t index, char *memory) {
  const lattn_split_ *split = (const lattn_split_ *)context;
  const lattn_job_ *job = split->job;
  int64_t rows = split->tokens * job->group, blocks = (rows + job->rows - 1) / job->rows;
  lattn_space_ sp;
  lattn_item_ it;
  size_t keys_at;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(job, &it);
  for (int64_t u = index; u < blocks * job->n_kv; u += job->n_workers) {
    lattn_slot_ s;
    it.kv = (int32_t)(u / blocks);
    it.row = u % blocks * job->rows;
    it.rows = lattn_min_(job->rows, rows - it.row);
    s = lattn_space_slot_(&sp, lattn_run_part_(job, &it, &sp, split->parts));
    for (int64_t r = 0; r < it.rows; r++) {
      int64_t at = (it.row + r) / job->group * job->n_kv * job->group + sp.rows[r].head;
      if (job->o.extra_key) lattn_merge_extra_(job, sp.rows + r, r, &s, 0);
      split->ends[2 * at] = s.m[r];
      split->ends[2 * at + 1] = s.l[r];
      if (lattn_is_empty_(s.m[r])) continue;
      LATTN_MEMCPY_(lattn_split_at_(split, &it, r), s.acc + r * job->columns,
                    (size_t)job->dv * sizeof(float));
    }
    s = lattn_space_slot_(&sp, lattn_run_part_(job, &it, &sp, split->parts + 1));
    for (int64_t r = 0; r < it.rows; r++)
      lattn_split_row_(split, &it, sp.rows + r, r, s.m[r], s.l[r], s.acc + r * job->columns);
  }
}

LATTN_FN_ void lattn_split_task_(void *context, int32_t index) {
  lattn_work_(((const lattn_split_ *)context)->job, context, index, lattn_split_items_);
}

/* Through the output projection W [model][H dv]: u of KV head h, row and channel = W's columns of
   the head's group times what they lose; Q += products of u, over channels and rows. A worker takes
   whole heads. */
typedef struct lattn_projecting_ {
  const float *w, *d;
  float *u;
  double *q;
  int64_t rows, model, groups, width; /* width: (H / G) dv */
  int32_t n_workers;
  char *scratch; /* of the workers: NULL, or worker_bytes each */
  size_t worker_bytes;
} lattn_projecting_;

/* Channels [c, c + n) of W for a head, packed into memory if there is some; rows of the batch. */
LATTN_FN_ void lattn_project_block_(const lattn_projecting_ *p, int64_t h, int64_t c, int n,
                                    float *packed) {
  float s[LATTN_TILE_ROWS_ * LATTN_BLOCK_];
  const float *w = p->w + h * p->width;
  int64_t stride = p->groups * p->width;
  int panels = (n + LATTN_PANEL_ - 1) / LATTN_PANEL_;
  if (packed) lattn_pack_keys_(packed, w, LATTN_F32, c, stride, p->width, 0, n);
  for (int64_t r = 0; r < p->rows; r += LATTN_TILE_ROWS_) {
    const float *d = p->d + (h * LATTN_BATCH_ROWS_ + r) * p->width;
    int m = (int)lattn_min_(LATTN_TILE_ROWS_, p->rows - r);
    if (packed) lattn_score_f32_(m, d, p->width, packed, 0, 0, panels, s);
    else lattn_score_strided_(m, LATTN_F32, d, p->width, w, c, stride, 0, n, s);
    for (int a = 0; a < m; a++)
      LATTN_MEMCPY_(p->u + ((r + a) * p->groups + h) * p->model + c, s + a * LATTN_BLOCK_,
                    (size_t)n * sizeof *s);
  }
}

LATTN_NOINLINE_ void lattn_project_heads_(const lattn_projecting_ *p, int32_t index) {
  int64_t panel = p->width * LATTN_PANEL_ * (int64_t)sizeof(float), panels, step;
  char *memory = p->scratch ? p->scratch + (size_t)index * p->worker_bytes : 0;
  panels = memory ? lattn_min_((int64_t)p->worker_bytes / panel, LATTN_BLOCK_ / LATTN_PANEL_) : 0;
  step = panels > 0 ? panels * LATTN_PANEL_ : (int64_t)LATTN_PANEL_;
  for (int64_t h = index; h < p->groups; h += p->n_workers)
    for (int64_t c = 0; c < p->model; c += step)
      lattn_project_block_(p, h, c, (int)lattn_min_(step, p->model - c),
                           panels > 0 ? (float *)(void *)memory : 0);
}

/* Sum of products: chains of 8 in each of 16 lanes, their sums in double. */
LATTN_FN_ double lattn_dot_rows_(const float *x, const float *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i += LATTN_BLOCK_) {
    lattn_v16_ lanes = lattn_v_set_(0);
    int64_t end = lattn_min_(n, i + LATTN_BLOCK_);
    for (int64_t j = i; j < end; j += LATTN_PANEL_) {
      int left = (int)lattn_min_(LATTN_PANEL_, end - j);
      lanes = lattn_v_fma_(lattn_v_load_n_(x + j, left), lattn_v_load_n_(y + j, left), lanes);
    }
    sum += (double)lattn_v_reduce_add_(lanes);
  }
  return sum;
}

LATTN_NOINLINE_ void lattn_project_products_(const lattn_projecting_ *p, int32_t index) {
  for (int64_t r = 0; r < p->rows; r++)
    for (int64_t h = index; h < p->groups; h += p->n_workers)
      for (int64_t k = 0; k <= h; k++)
        p->q[h * p->groups + k] += lattn_dot_rows_(p->u + (r * p->groups + h) * p->model,
                                                   p->u + (r * p->groups + k) * p->model, p->model);
}

LATTN_FN_ void lattn_project_task_(void *context, int32_t index) {
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_project_heads_((const lattn_projecting_ *)context, index);
  lattn_fpenv_leave_(&saved);
}
LATTN_FN_ void lattn_products_task_(void *context, int32_t index) {
  lattn_fpenv_ saved;
  lattn_fpenv_enter_(&saved);
  lattn_project_products_((const lattn_projecting_ *)context, index);
  lattn_fpenv_leave_(&saved);
}

LATTN_FN_ void lattn_project_(lattn_profile *p, const lattn_split_ *split,
                              const lattn_observed *o, const lattn_exec *ex) {
  int64_t groups = p->c.n_kv_heads;
  int32_t n_workers = ex->n_threads > 0 ? ex->n_threads : 1;
  lattn_projecting_ w;
  w.w = o->projection;
  w.u = lattn_area_floats_(p, LATTN_AREA_U_);
  w.q = lattn_area_(p, LATTN_AREA_Q_) + o->layer * groups * groups;
  w.model = p->c.model_dim;
  w.groups = groups;
  w.width = split->job->group * split->job->dv;
  w.scratch = split->job->scratch;
  w.worker_bytes = split->job->worker_bytes;
  for (int64_t row = 0; row < split->tokens; row += LATTN_PROJECTED_ROWS_) {
    w.rows = lattn_min_(LATTN_PROJECTED_ROWS_, split->tokens - row);
    w.d = split->d + row * w.width;
    w.n_workers = n_workers;
    lattn_parallel_(ex, w.n_workers, lattn_project_task_, &w);
    if (groups <= 8) w.n_workers = 1; /* so little work that waiting for threads is most of it */
    lattn_parallel_(ex, w.n_workers, lattn_products_task_, &w);
  }
}

/* Mean square of what came into the layer at a token. */
LATTN_FN_ double lattn_mean_square_(const lattn_tensor *t, int64_t token) {
  double sum = 0;
  for (int64_t c = 0; c < t->dim; c++) {
    double x = (double)lattn_get_(t->data, t->type, token * t->stride_token + c);
    sum = lattn_fma64_(x, x, sum);
  }
  return sum / (double)t->dim;
}

/* Adds a batch up, row by row. */
LATTN_NOINLINE_ void lattn_split_add_(lattn_profile *p, const lattn_split_ *split,
                                      const lattn_observed *o, const lattn_tensor *residual) {
  int64_t heads = p->c.n_heads, groups = p->c.n_kv_heads, layer = o->layer;
  double *lost = lattn_area_(p, LATTN_AREA_LOST_) + layer * heads;
  double *most = lattn_area_(p, LATTN_AREA_MOST_) + layer * heads;
  double *loss = p->c.scores & LATTN_PROFILE_GATES
                     ? lattn_area_(p, LATTN_AREA_LOSS_) + layer * groups : 0;
  double *out = lattn_area_(p, LATTN_AREA_OUT_) + layer;
  lattn_area_(p, LATTN_AREA_PART_ROWS_)[layer] += (double)split->tokens;
  for (int64_t i = 0; i < split->tokens; i++) {
    for (int64_t h = 0; h < heads; h++) {
      int64_t at = i * heads + h;
      lost[h] += split->omega[at];
      if (split->omega[at] > most[h]) most[h] = split->omega[at];
      *out += split->square[at];
      if (loss) loss[h / split->job->group] += split->less[at];
    }
    if (residual)
      lattn_area_(p, LATTN_AREA_RESIDUAL_)[layer] +=
          lattn_mean_square_(residual, split->job->chosen->rows[i]);
  }
}

LATTN_NOINLINE_ void lattn_observe_parts_(lattn_profile *p, lattn_job_ *whole,
                                          const lattn_observed *o, const lattn_tensor *residual,
                                          const lattn_exec *ex, int depth) {
  int64_t first = whole->o.query_position, step = p->c.row_step, next;
  int64_t *chosen = lattn_area_numbers_(p, LATTN_AREA_CHOSEN_), rows = o->n_rows;
  lattn_weights w;
  lattn_split_ split;
  next = (step - (first + 1) % step) % step; /* the first row by step */
  if (next >= step) next -= step;
  if (!rows) rows = lattn_max_(0, (whole->q.n_tokens - next + step - 1) / step);
  LATTN_MEMSET_(&w, 0, sizeof w);
  LATTN_MEMSET_(&split, 0, sizeof split);
  split.ends = lattn_area_floats_(p, LATTN_AREA_ENDS_);
  split.d = lattn_area_floats_(p, LATTN_AREA_D_);
  split.omega = lattn_area_(p, LATTN_AREA_OMEGA_);
  split.square = lattn_area_(p, LATTN_AREA_SQUARE_);
  split.less = lattn_area_(p, LATTN_AREA_LESS_);
  split.parts[0].kind = LATTN_KEPT_;
  split.parts[1].kind = LATTN_LOST_;
  split.parts[0].sinks = split.parts[1].sinks = p->c.sinks;
  split.parts[0].window = split.parts[1].window = p->c.window;
  split.job = whole;
  whole->chosen = &w;
  w.rows = chosen;
  for (int64_t i = 0; i < rows; i += split.tokens) {
    split.tokens = w.n_rows = lattn_min_(LATTN_BATCH_ROWS_, rows - i);
    for (int64_t j = 0; j < split.tokens; j++)
      chosen[j] = o->n_rows ? o->rows[i + j] : next + (i + j) * step;
    lattn_place_(whole, ex, split.tokens * whole->group, depth, 1, 0);
    lattn_parallel_(ex, whole->n_workers, lattn_split_task_, &split);
    lattn_split_add_(p, &split, o, residual);
    if (p->c.scores & LATTN_PROFILE_GATES && p->c.model_dim) lattn_project_(p, &split, o, ex);
  }
  whole->chosen = 0;
}

/* ---- observe ---- */

/* What is asked for, against the config and the call. which gets the scores. */
LATTN_FN_ lattn_status lattn_check_observed_(const lattn_profile *p, const lattn_job_ *job,
                                             lattn_observed *o, int32_t *which, lattn_fault *f) {
  int64_t keys = job->o.key_position + job->k.n_tokens;
  if (o->layer < 0 || o->layer >= p->c.n_layers)
    return lattn_fail_(f, LATTN_E_SHAPE, "observed.layer");
  if (o->scores & ~p->c.scores) return lattn_fail_(f, LATTN_E_FIELD, "observed.scores");
  if (o->zero) return lattn_fail_(f, LATTN_E_FIELD, "observed.zero");
  *which = o->scores ? o->scores : p->c.scores;
  if (o->needle_from == o->needle_to ||
      job->o.query_position + job->q.n_tokens <= o->first_answer)
    *which &= ~LATTN_PROFILE_RETRIEVAL;
  if (o->period == 0) *which &= ~LATTN_PROFILE_ECHO;
  if (*which & (LATTN_PROFILE_SINKS | LATTN_PROFILE_ECHO) && !o->lse && job->q.n_tokens > 0 &&
      job->o.weighting == LATTN_SOFTMAX)
    return lattn_fail_(f, LATTN_E_NULL, "observed.lse");
  if (*which & LATTN_PROFILE_RETRIEVAL) {
    if (!o->tokens) return lattn_fail_(f, LATTN_E_NULL, "observed.tokens");
    if (o->n_tokens < keys || o->n_tokens < job->o.query_position + job->q.n_tokens)
      return lattn_fail_(f, LATTN_E_SHAPE, "observed.n_tokens");
    if (o->needle_from < 0 || o->needle_to < o->needle_from || o->needle_to > o->n_tokens)
      return lattn_fail_(f, LATTN_E_SHAPE, "observed.needle_from");
    if (o->needle_to - o->needle_from > p->c.max_needle)
      return lattn_fail_(f, LATTN_E_SHAPE, "observed.needle_to");
    if (p->has_needle && (p->needle_from != o->needle_from || p->needle_to != o->needle_to))
      return lattn_fail_(f, LATTN_E_STATE, "observed.needle_from");
  }
  if (*which & LATTN_PROFILE_ECHO) {
    if (o->period < 2 || o->period > LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_VALUE, "observed.period");
    if (o->first < 0 || o->first > LATTN_MAX_POSITION_)
      return lattn_fail_(f, LATTN_E_VALUE, "observed.first");
  }
  return LATTN_OK;
}

/* The same of GATES and LOST. */
LATTN_FN_ lattn_status lattn_check_parts_of_(const lattn_profile *p, const lattn_job_ *job,
                                             const lattn_observed *o, lattn_tensor *residual,
                                             lattn_fault *f) {
  static const lattn_names_ name = LATTN_NAMES_("residual");
  lattn_status s = lattn_optional_(o->residual, residual, &name, f);
  if (s) return s;
  if (job->v.dim != p->c.value_dim) return lattn_fail_(f, LATTN_E_SHAPE, "v.dim");
  if (job->o.weighting == LATTN_SIGMOID) return lattn_fail_(f, LATTN_E_CONFIG, "weighting");
  if (o->n_rows < 0) return lattn_fail_(f, LATTN_E_SHAPE, "observed.n_rows");
  if (o->n_rows && !o->rows) return lattn_fail_(f, LATTN_E_NULL, "observed.rows");
  for (int64_t i = 0; i < o->n_rows; i++)
    if (o->rows[i] < 0 || o->rows[i] >= job->q.n_tokens || (i && o->rows[i] < o->rows[i - 1]))
      return lattn_fail_(f, LATTN_E_SHAPE, "observed.rows");
  if (p->c.scores & LATTN_PROFILE_GATES && p->c.model_dim && !o->projection)
    return lattn_fail_(f, LATTN_E_NULL, "observed.projection");
  if (o->residual && residual->n_tokens != job->q.n_tokens)
    return lattn_fail_(f, LATTN_E_SHAPE, "residual.n_tokens");
  if (o->residual && residual->n_heads != 1)
    return lattn_fail_(f, LATTN_E_SHAPE, "residual.n_heads");
  return LATTN_OK;
}

/* A stateless call that is looked at, not run: checks all but its outputs. Not gated: without the
   gate; not valued: without the extra key's value. */
LATTN_FN_ lattn_status lattn_check_watched_(lattn_job_ *job, const lattn_attn *options, int gated,
                                            int valued, int64_t *segments, lattn_fault *f) {
  lattn_status s = lattn_check_options_(job, options, f);
  int64_t n_keys = job->k.n_tokens;
  if (!s && job->o.n_sequences > 1) s = lattn_fail_(f, LATTN_E_CONFIG, "options.n_sequences");
  if (!s) s = lattn_check_shapes_(job, 1, f);
  if (!s) s = lattn_check_sequences_(job, f);
  if (!s) s = lattn_check_numbers_(job, f);
  if (!gated) job->o.gate = 0;
  if (!valued) job->o.extra_value = 0;
  if (!s) s = lattn_check_extras_(job, n_keys, 1, f);
  if (!s) s = lattn_check_positions_(job, segments, f);
  if (s) return s;
  if (job->o.window == 0) job->o.sinks = 0;
  if (job->o.n_sequences == 1) { /* as if there were none: rows and keys may be left out */
    lattn_item_ it;
    LATTN_MEMSET_(&it, 0, sizeof it);
    lattn_item_sequence_(job, &it);
    job->o.query_position = it.query_position;
    job->o.key_position = it.key_position;
    job->o.n_sequences = 0;
  } else if (job->o.mask == LATTN_CAUSAL) {
    job->o.query_position = job->o.key_position + job->k.n_tokens - job->q.n_tokens;
  }
  if (job->o.mask == LATTN_CAUSAL) job->o.mask = LATTN_CAUSAL_AT;
  job->o.partial = 0;
  job->o.lse_low = job->o.dropped = 0;
  job->o.top_values = 0;
  job->o.inexact = 0;
  return LATTN_OK;
}

/* Scratch that is enough for the whole call is enough for every part of the work. */
LATTN_NOINLINE_ lattn_status lattn_check_scratch_(const lattn_job_ *job, const lattn_exec *ex,
                                                  int depth) {
  lattn_job_ trial = *job;
  return lattn_place_(&trial, ex, job->q.n_tokens * job->group, depth, 1, ex->fault);
}

LATTN_API lattn_status lattn_profile_observe(lattn_profile *profile, const lattn_observed *observed,
                                             const lattn_attn *options, lattn_tensor q,
                                             lattn_tensor k, lattn_tensor v,
                                             const lattn_exec *exec) {
  lattn_job_ job;
  lattn_observed o;
  lattn_exec ex;
  lattn_tensor residual;
  int64_t segments = 0;
  int valued;
  int32_t which = 0;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  if (!profile) return lattn_fail_(ex.fault, LATTN_E_NULL, "profile");
  if (!observed) return lattn_fail_(ex.fault, LATTN_E_NULL, "observed");
  s = lattn_import_(&o, sizeof o, sizeof o, observed);
  if (s) return lattn_fail_(ex.fault, s, "observed.size");
  lattn_job_init_(&job);
  job.q = q;
  job.k = k;
  valued = ((o.scores ? o.scores : profile->c.scores) & LATTN_PARTS_) != 0;
  job.v = valued ? v : k;
  s = lattn_check_watched_(&job, options, 0, valued, &segments, ex.fault);
  if (s) return s;
  if (q.n_heads != profile->c.n_heads) return lattn_fail_(ex.fault, LATTN_E_SHAPE, "q.n_heads");
  if (k.n_heads != profile->c.n_kv_heads) return lattn_fail_(ex.fault, LATTN_E_SHAPE, "k.n_heads");
  if (job.v.n_heads != k.n_heads) return lattn_fail_(ex.fault, LATTN_E_SHAPE, "v.n_heads");
  s = lattn_check_observed_(profile, &job, &o, &which, ex.fault);
  if (!s && which & LATTN_PARTS_)
    s = lattn_check_parts_of_(profile, &job, &o, &residual, ex.fault);
  if (s) return s;
  if (!(which & LATTN_PARTS_)) job.dv = 1, job.columns = 16;
  s = lattn_check_scratch_(&job, &ex, lattn_depth_(segments));
  if (s) return s;
  profile->open = 1;
  if (which & LATTN_PROFILE_RETRIEVAL)
    lattn_observe_copies_(profile, &job, &o, &ex, lattn_depth_(segments));
  if (which & LATTN_PROFILE_ECHO)
    lattn_observe_echo_(profile, &job, &o, &ex, lattn_depth_(segments));
  if (which & LATTN_PROFILE_SINKS)
    lattn_observe_columns_(profile, &job, &o, &ex, lattn_depth_(segments));
  if (which & LATTN_PARTS_)
    lattn_observe_parts_(profile, &job, &o, o.residual ? &residual : 0, &ex,
                         lattn_depth_(segments));
  return LATTN_OK;
}

/* ---- samples, reports ---- */

/* The mean of a column in the open sample; negative: no row saw it. */
LATTN_FN_ double lattn_open_mean_(const lattn_profile *p, int64_t layer, int64_t head,
                                  int64_t column) {
  double seen = lattn_area_(p, LATTN_AREA_SEEN_)[layer * p->c.columns + column];
  int64_t at = (layer * p->c.n_heads + head) * p->c.columns + column;
  return seen > 0 ? lattn_area_(p, LATTN_AREA_MASS_)[at] / seen : -1;
}

/* The share of the needle that a head copied in the open sample. */
LATTN_FN_ double lattn_open_set_(const lattn_profile *p, int64_t at) {
  const double *copies = lattn_area_(p, LATTN_AREA_COPIES_) + at * p->c.max_needle;
  double n = 0;
  if (!p->has_needle) return 0;
  for (int64_t i = 0; i < p->needle_to - p->needle_from; i++) n += copies[i];
  return n / (double)p->distinct;
}

LATTN_FN_ void lattn_close_columns_(lattn_profile *p) {
  int64_t columns = p->c.columns, heads = p->c.n_heads;
  for (int64_t l = 0; l < p->c.n_layers; l++) {
    for (int64_t h = 0; h < heads; h++)
      for (int64_t j = 0; j < columns; j++) {
        double mean = lattn_open_mean_(p, l, h, j);
        int64_t at = (l * heads + h) * columns + j;
        if (mean < 0) continue;
        lattn_area_(p, LATTN_AREA_MEANS_)[at] += mean;
        lattn_area_(p, LATTN_AREA_HITS_)[at] += mean > (double)p->c.sink_threshold;
      }
    for (int64_t j = 0; j < columns; j++)
      lattn_area_(p, LATTN_AREA_TIMES_)[l * columns + j] +=
          lattn_area_(p, LATTN_AREA_SEEN_)[l * columns + j] > 0;
  }
}

LATTN_FN_ void lattn_close_sample_(lattn_profile *p) {
  int64_t all = (int64_t)p->c.n_layers * p->c.n_heads;
  for (int a = 0; a < LATTN_SUMS_; a++) {
    double *from = lattn_area_(p, a), *to = lattn_area_(p, a + LATTN_SUMS_);
    for (int64_t i = 0, n = lattn_area_slots_(&p->c, a); i < n; i++) {
      if (a != LATTN_AREA_MOST_) to[i] += from[i];
      else if (from[i] > to[i]) to[i] = from[i];
    }
  }
  if (p->c.scores & LATTN_PROFILE_RETRIEVAL)
    for (int64_t i = 0; i < all; i++)
      lattn_area_(p, LATTN_AREA_SET_)[i] += lattn_open_set_(p, i);
  if (p->c.scores & LATTN_PROFILE_SINKS) lattn_close_columns_(p);
  p->n_samples++;
  p->n_needles += p->has_needle;
}

LATTN_API lattn_status lattn_profile_sample(lattn_profile *profile, int32_t keep) {
  static const int opens[] = {LATTN_AREA_COPIES_, LATTN_AREA_WAITS_, LATTN_AREA_MASS_,
                              LATTN_AREA_SEEN_};
  if (!profile) return LATTN_E_NULL;
  if (keep != 0 && keep != 1) return LATTN_E_FIELD;
  if (!profile->open) return LATTN_OK;
  if (keep) lattn_close_sample_(profile);
  for (int a = 0; a < LATTN_SUMS_; a++)
    LATTN_MEMSET_(lattn_area_(profile, a), 0, (size_t)lattn_area_slots_(&profile->c, a) * 8);
  for (int i = 0; i < 4; i++)
    LATTN_MEMSET_(lattn_area_(profile, opens[i]), 0,
                  (size_t)lattn_area_slots_(&profile->c, opens[i]) * 8);
  profile->open = profile->has_needle = 0;
  return LATTN_OK;
}

/* Element i of a sum over all samples, the open one included. */
LATTN_FN_ double lattn_profile_sum_(const lattn_profile *p, int area, int64_t i) {
  double open = lattn_area_(p, area)[i], closed = lattn_area_(p, area + LATTN_SUMS_)[i];
  if (area == LATTN_AREA_MOST_) return open > closed ? open : closed;
  return closed + open;
}

/* x / n; 0 where n is. */
LATTN_FN_ double lattn_over_(double x, double n) { return n > 0 || n < 0 ? x / n : 0; }

/* The mean of a column over samples. */
LATTN_FN_ double lattn_column_mean_(const lattn_profile *p, int64_t l, int64_t h, int64_t j) {
  double open = lattn_open_mean_(p, l, h, j);
  double sum = lattn_area_(p, LATTN_AREA_MEANS_)[(l * p->c.n_heads + h) * p->c.columns + j];
  double n = lattn_area_(p, LATTN_AREA_TIMES_)[l * p->c.columns + j];
  if (open >= 0) sum += open, n += 1;
  return lattn_over_(sum, n);
}

/* Of layers and heads, the share in which a column is a sink. */
LATTN_FN_ double lattn_sink_share_(const lattn_profile *p, int64_t j) {
  double hits = 0, n = 0;
  for (int64_t l = 0; l < p->c.n_layers; l++)
    for (int64_t h = 0; h < p->c.n_heads; h++) {
      double open = lattn_open_mean_(p, l, h, j);
      hits += lattn_area_(p, LATTN_AREA_HITS_)[(l * p->c.n_heads + h) * p->c.columns + j];
      n += lattn_area_(p, LATTN_AREA_TIMES_)[l * p->c.columns + j];
      if (open < 0) continue;
      hits += open > (double)p->c.sink_threshold;
      n += 1;
    }
  return lattn_over_(hits, n);
}

/* Q of a layer: what KV heads a and b lose together. */
LATTN_FN_ double lattn_gate_loss_(const lattn_profile *p, int64_t l, int64_t a, int64_t b) {
  int64_t groups = p->c.n_kv_heads, low = a < b ? a : b, high = a < b ? b : a;
  double out = lattn_profile_sum_(p, LATTN_AREA_OUT_, l), residual, x;
  if (!p->c.model_dim) {
    if (a != b) return 0;
    x = lattn_profile_sum_(p, LATTN_AREA_LOSS_, l * groups + a);
    return lattn_over_(x * (double)groups, out);
  }
  residual = lattn_profile_sum_(p, LATTN_AREA_RESIDUAL_, l);
  if (!(residual > 0)) residual = out / (double)p->c.n_heads / (double)p->c.value_dim;
  x = lattn_profile_sum_(p, LATTN_AREA_Q_, (l * groups + high) * groups + low);
  return lattn_over_(x / (double)p->c.model_dim, residual);
}

/* Element i of a table that has one for each layer and head. */
LATTN_FN_ double lattn_head_score_(const lattn_profile *p, int32_t table, int64_t i) {
  int64_t l = i / p->c.n_heads, h = i % p->c.n_heads;
  double needles = (double)(p->n_needles + p->has_needle);
  double echoes, rows;
  switch (table) {
    case LATTN_TABLE_RETRIEVAL:
      return lattn_over_(lattn_profile_sum_(p, LATTN_AREA_COPIED_, i), needles);
    case LATTN_TABLE_RETRIEVAL_SET:
      return lattn_over_(lattn_area_(p, LATTN_AREA_SET_)[i] + lattn_open_set_(p, i), needles);
    case LATTN_TABLE_ECHO:
    case LATTN_TABLE_INDUCTION:
      echoes = lattn_profile_sum_(p, LATTN_AREA_ECHO_ROWS_, l);
      return lattn_over_(
          lattn_profile_sum_(
              p, table == LATTN_TABLE_ECHO ? LATTN_AREA_ECHO_ : LATTN_AREA_INDUCTION_, i),
          echoes);
    case LATTN_TABLE_SINK: return lattn_column_mean_(p, l, h, 0);
    case LATTN_TABLE_LOST_MOST: return lattn_profile_sum_(p, LATTN_AREA_MOST_, i);
    default:
      rows = lattn_profile_sum_(p, LATTN_AREA_PART_ROWS_, l);
      return lattn_over_(lattn_profile_sum_(p, LATTN_AREA_LOST_, i), rows);
  }
}

LATTN_API lattn_status lattn_profile_report(const lattn_profile *profile, int32_t table, int64_t n,
                                            double *values) {
  static const int32_t needs[] = {
      LATTN_PROFILE_RETRIEVAL, LATTN_PROFILE_RETRIEVAL, LATTN_PROFILE_ECHO, LATTN_PROFILE_ECHO,
      LATTN_PROFILE_SINKS,     LATTN_PROFILE_SINKS,     LATTN_PROFILE_SINKS, LATTN_PARTS_,
      LATTN_PARTS_,            LATTN_PROFILE_GATES,     LATTN_PROFILE_GATES};
  const lattn_profile *p = profile;
  int64_t all, groups, columns;
  if (!p || !values) return LATTN_E_NULL;
  if (table < 0 || table > LATTN_TABLE_GATES) return LATTN_E_FIELD;
  if (!(p->c.scores & needs[table])) return LATTN_E_CONFIG;
  all = (int64_t)p->c.n_layers * p->c.n_heads;
  groups = p->c.n_kv_heads;
  columns = p->c.columns;
  if (table == LATTN_TABLE_COLUMNS) all *= columns;
  if (table == LATTN_TABLE_SINK_SHARES) all = columns;
  if (table >= LATTN_TABLE_GATE_LOSS) all = p->c.n_layers * groups;
  if (table == LATTN_TABLE_GATES) all *= groups;
  if (n != all) return LATTN_E_SHAPE;
  for (int64_t i = 0; i < n; i++) {
    int64_t row = i / (table == LATTN_TABLE_COLUMNS ? columns : groups);
    if (table == LATTN_TABLE_COLUMNS)
      values[i] = lattn_column_mean_(p, row / p->c.n_heads, row % p->c.n_heads, i % columns);
    else if (table == LATTN_TABLE_SINK_SHARES)
      values[i] = lattn_sink_share_(p, i);
    else if (table == LATTN_TABLE_GATES)
      values[i] = lattn_gate_loss_(p, row / groups, row % groups, i % groups);
    else if (table == LATTN_TABLE_GATE_LOSS)
      values[i] = lattn_over_(lattn_profile_sum_(p, LATTN_AREA_LOSS_, i) * (double)groups,
                              lattn_profile_sum_(p, LATTN_AREA_OUT_, row));
    else
      values[i] = lattn_head_score_(p, table, i);
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_profile_strongest(const lattn_profile *profile, int32_t layer,
                                               int32_t head, int64_t n, int64_t *positions,
                                               double *means) {
  const lattn_profile *p = profile;
  double last = (double)LATTN_INFINITY_;
  int64_t at = -1;
  if (!p || (n > 0 && !positions)) return LATTN_E_NULL;
  if (!(p->c.scores & LATTN_PROFILE_SINKS)) return LATTN_E_CONFIG;
  if (layer < 0 || layer >= p->c.n_layers || head < 0 || head >= p->c.n_heads || n < 0)
    return LATTN_E_SHAPE;
  for (int64_t i = 0; i < n; i++) { /* the next in the order (mean falling, position rising) */
    double best = 0;
    int64_t found = -1;
    for (int64_t j = 0; j < p->c.columns; j++) {
      double mean = lattn_column_mean_(p, layer, head, j);
      if (mean > last || (!(mean < last) && j <= at) || !(mean > best)) continue;
      best = mean;
      found = j;
    }
    positions[i] = found;
    if (means) means[i] = found < 0 ? 0 : best;
    if (found < 0) last = 0, at = p->c.columns;
    else last = best, at = found;
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_profile_stats_get(const lattn_profile *profile,
                                               lattn_profile_stats *stats) {
  lattn_profile_stats own;
  if (!profile || !stats) return LATTN_E_NULL;
  LATTN_MEMSET_(&own, 0, sizeof own);
  own.n_samples = profile->n_samples + profile->open;
  own.n_needles = profile->n_needles + profile->has_needle;
  own.bytes = profile->bytes;
  return lattn_export_(stats, &own, sizeof own);
}

/* ---- gates: a box-constrained quadratic problem a layer ---- */

LATTN_FN_ int lattn_is_finite64_(double x) {
  uint64_t u;
  LATTN_MEMCPY_(&u, &x, sizeof u);
  return (u >> 52 & 0x7ff) != 0x7ff;
}

LATTN_FN_ double lattn_clip_(double x) { return x < 0 ? 0 : x > 1 ? 1 : x; }

/* Row h of Q b, without its own term if `others`. */
LATTN_FN_ double lattn_q_row_(const double *q, const double *b, int64_t n, int64_t h, int others) {
  double sum = 0;
  for (int64_t k = 0; k < n; k++)
    if (!others || k != h) sum = lattn_fma64_(q[h * n + k], b[k], sum);
  return sum;
}

/* How far b is from the minimum: the largest step of the projected gradient, whose unit is the
   larger of the penalty and twice the largest Q_hh. */
LATTN_FN_ double lattn_gates_residual_(const double *q, const double *b, int64_t n,
                                       double penalty) {
  double unit = penalty, most = 0;
  for (int64_t h = 0; h < n; h++)
    if (2 * q[h * n + h] > unit) unit = 2 * q[h * n + h];
  for (int64_t h = 0; unit > 0 && h < n; h++) {
    double slope = lattn_fma64_(2, lattn_q_row_(q, b, n, h, 0), -penalty), step;
    if (!(q[h * n + h] > 0)) continue; /* it is 1 */
    step = b[h] - lattn_clip_(b[h] - slope / unit);
    if (step < 0) step = -step;
    if (step > most) most = step;
  }
  return most;
}

/* One layer by coordinate descent from b = 0. */
LATTN_FN_ double lattn_gates_descend_(const lattn_gates *o, const double *q, int64_t n,
                                      double penalty, double *b) {
  double left = 1;
  for (int64_t h = 0; h < n; h++) b[h] = 0;
  for (int32_t sweep = 0; sweep < o->max_sweeps && left > o->tolerance; sweep++) {
    for (int64_t h = 0; h < n; h++) {
      double c = penalty * 0.5, own = q[h * n + h];
      c = c - lattn_q_row_(q, b, n, h, 1);
      b[h] = own > 0 ? lattn_clip_(c / own) : 1;
    }
    left = lattn_gates_residual_(q, b, n, penalty);
  }
  return left;
}

/* All layers; returns the sum of b, which is in gates. */
LATTN_FN_ double lattn_gates_layers_(const lattn_gates *o, int64_t layers, int64_t n,
                                     const double *q, double penalty, double *gates,
                                     double *residual) {
  double sum = 0;
  *residual = 0;
  for (int64_t l = 0; l < layers; l++) {
    double left = lattn_gates_descend_(o, q + l * n * n, n, penalty, gates + l * n);
    if (left > *residual) *residual = left;
    for (int64_t h = 0; h < n; h++) sum += gates[l * n + h];
  }
  return sum;
}

/* The penalty at which the sum of b is the budget: it never falls with the penalty. */
LATTN_FN_ double lattn_gates_bisect_(const lattn_gates *o, int64_t layers, int64_t n,
                                     const double *q, double *gates, double *residual) {
  double low = 0, high = 0;
  for (int64_t r = 0; r < layers * n; r++) { /* at `high`, every b is 1 */
    double sum = 0;
    for (int64_t k = 0; k < n; k++) sum += q[r * n + k] < 0 ? -q[r * n + k] : q[r * n + k];
    if (2 * sum > high) high = 2 * sum;
  }
  if (lattn_gates_layers_(o, layers, n, q, high, gates, residual) <= o->budget) return high;
  for (int i = 0; i < 200 && high - low > 1e-15 * high; i++) {
    double middle = 0.5 * (low + high);
    if (lattn_gates_layers_(o, layers, n, q, middle, gates, residual) <= o->budget) low = middle;
    else high = middle;
  }
  lattn_gates_layers_(o, layers, n, q, low, gates, residual);
  return low;
}

/* b = 1 for as many heads as the budget says, each time where it costs least. */
LATTN_FN_ void lattn_gates_greedy_(const lattn_gates *o, int64_t layers, int64_t n, const double *q,
                                   double *gates) {
  int64_t all = layers * n, budget = (int64_t)(o->budget + 0.5);
  for (int64_t i = 0; i < all; i++) gates[i] = 0;
  for (int64_t chosen = 0; chosen < budget; chosen++) {
    double least = 0;
    int64_t best = -1;
    for (int64_t i = 0; i < all; i++) {
      const double *layer = q + i / n * n * n, *b = gates + i / n * n;
      double cost = layer[i % n * n + i % n];
      if (gates[i] > 0) continue;
      cost = lattn_fma64_(2, lattn_q_row_(layer, b, n, i % n, 1), cost);
      if (best < 0 || cost < least) least = cost, best = i;
    }
    gates[best] = 1;
  }
}

LATTN_FN_ lattn_status lattn_check_gates_(lattn_gates *own, const lattn_gates *options,
                                          int32_t n_layers, int32_t n_kv_heads, const double *q,
                                          const double *gates) {
  int64_t all, n = n_kv_heads;
  lattn_status s = lattn_import_(own, sizeof *own, sizeof *own, options);
  if (!options || !q || !gates) return LATTN_E_NULL;
  if (s) return s;
  if (own->method < LATTN_GATES_PENALTY || own->method > LATTN_GATES_GREEDY) return LATTN_E_FIELD;
  if (own->zero) return LATTN_E_FIELD;
  if (n_layers < 1 || n_kv_heads < 1 || own->max_sweeps < 0) return LATTN_E_SHAPE;
  all = lattn_times_(n_layers, lattn_times_(n, n));
  if (all < 0) return LATTN_E_OVERFLOW;
  if (own->max_sweeps == 0) own->max_sweeps = 100000;
  if (!lattn_is_finite64_(own->lambda) || own->lambda < 0) return LATTN_E_VALUE;
  if (!lattn_is_finite64_(own->tolerance) || own->tolerance < 0) return LATTN_E_VALUE;
  if (!(own->tolerance > 0)) own->tolerance = 1e-12;
  if (!(own->budget >= 0 && own->budget <= (double)(n_layers * n))) return LATTN_E_VALUE;
  for (int64_t i = 0; i < all; i++)
    if (!lattn_is_finite64_(q[i]) || (i / n % n == i % n && q[i] < 0)) return LATTN_E_VALUE;
  return LATTN_OK;
}

LATTN_API lattn_status lattn_gates_solve(const lattn_gates *options, int32_t n_layers,
                                         int32_t n_kv_heads, const double *q, double *gates) {
  lattn_gates o;
  lattn_fpenv_ saved;
  double residual = 0, penalty = 0;
  int64_t all = (int64_t)n_layers * n_kv_heads;
  lattn_status s = lattn_check_gates_(&o, options, n_layers, n_kv_heads, q, gates);
  if (s) return s;
  lattn_fpenv_enter_(&saved);
  if (o.method == LATTN_GATES_GREEDY) {
    lattn_gates_greedy_(&o, n_layers, n_kv_heads, q, gates);
  } else if (o.method == LATTN_GATES_BUDGET) {
    penalty = lattn_gates_bisect_(&o, n_layers, n_kv_heads, q, gates, &residual);
  } else {
    penalty = o.lambda / (double)all;
    lattn_gates_layers_(&o, n_layers, n_kv_heads, q, penalty, gates, &residual);
  }
  for (int64_t i = 0; i < all; i++) gates[i] = 1 - gates[i];
  lattn_fpenv_leave_(&saved);
  if (o.residual) *o.residual = residual;
  if (o.penalty) *o.penalty = penalty;
  return LATTN_OK;
}

/* ---- which heads are full ---- */

/* How many heads come before head i, from the lowest score on (ties: the later head first), or from
   the highest (the earlier first). */
LATTN_FN_ int64_t lattn_rank_(const double *scores, int64_t n, int64_t i, int falling) {
  int64_t before = 0;
  for (int64_t j = 0; j < n; j++) {
    if (falling) before += scores[j] > scores[i] || (scores[j] == scores[i] && j < i);
    else before += scores[j] < scores[i] || (scores[j] == scores[i] && j > i);
  }
  return before;
}

/* share * n, rounded, within 0 ... n. */
LATTN_FN_ int64_t lattn_part_of_(double share, int64_t n) {
  if (!(share > 0)) return 0;
  return share >= 1 ? n : (int64_t)(lattn_fma64_(share, (double)n, 0.5));
}

LATTN_API lattn_status lattn_heads_choose(const lattn_heads *options, int32_t n_layers,
                                          int32_t n_kv_heads, const double *scores, int32_t *full) {
  lattn_heads o;
  int64_t n = (int64_t)n_layers * n_kv_heads;
  lattn_status s = lattn_import_(&o, sizeof o, sizeof o, options);
  if (!options || !scores || !full) return LATTN_E_NULL;
  if (s) return s;
  if (o.rule < LATTN_HEADS_SPARSITY || o.rule > LATTN_HEADS_RAZOR) return LATTN_E_FIELD;
  if (n_layers < 1 || n_kv_heads < 1) return LATTN_E_SHAPE;
  if (o.sparsity != o.sparsity || o.threshold != o.threshold) return LATTN_E_VALUE;
  if (o.induction_share != o.induction_share || o.echo_share != o.echo_share) return LATTN_E_VALUE;
  if (o.rule == LATTN_HEADS_RAZOR && !o.echo) return LATTN_E_NULL;
  for (int64_t i = 0; i < n; i++)
    if (scores[i] != scores[i] || (o.rule == LATTN_HEADS_RAZOR && o.echo[i] != o.echo[i]))
      return LATTN_E_VALUE;
  if (!(o.induction_share > 0 || o.induction_share < 0 || o.echo_share > 0 || o.echo_share < 0))
    o.induction_share = 0.14, o.echo_share = 0.01;
  for (int64_t i = 0; i < n; i++) {
    if (o.rule == LATTN_HEADS_SPARSITY)
      full[i] = lattn_rank_(scores, n, i, 0) >= lattn_part_of_(o.sparsity, n);
    else if (o.rule == LATTN_HEADS_THRESHOLD)
      full[i] = scores[i] >= o.threshold;
    else
      full[i] = lattn_rank_(scores, n, i, 1) < lattn_part_of_(o.induction_share, n) ||
                lattn_rank_(o.echo, n, i, 1) < lattn_part_of_(o.echo_share, n);
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_heads_group(int32_t n_layers, int32_t n_heads, int32_t n_kv_heads,
                                         int32_t group, const double *scores, double *kv_scores) {
  int64_t size;
  if (!scores || !kv_scores) return LATTN_E_NULL;
  if (group != LATTN_GROUP_MAX && group != LATTN_GROUP_MEAN) return LATTN_E_FIELD;
  if (n_layers < 1 || n_kv_heads < 1 || n_heads < 1 || n_heads % n_kv_heads) return LATTN_E_SHAPE;
  size = n_heads / n_kv_heads;
  for (int64_t i = 0; i < (int64_t)n_layers * n_kv_heads; i++) {
    double x = scores[i * size];
    for (int64_t j = 1; j < size; j++) {
      double y = scores[i * size + j];
      if (group == LATTN_GROUP_MEAN) x = x + y;
      else if (y > x || y != y) x = y;
    }
    kv_scores[i] = group == LATTN_GROUP_MEAN ? x / (double)size : x;
  }
  return LATTN_OK;
}

/* ---- ALiBi: how far a head can look ---- */

/* ln(x) of a finite x > 0, to 4 ulp or 2^-52: x = 2^k f, sqrt(1/2) <= f < sqrt(2), ln f =
   2 artanh(r), r = (f - 1) / (f + 1). */
LATTN_FN_ double lattn_log64_(double x) {
  uint64_t u;
  int64_t k = 0;
  double f, r, square, y = 0;
  if (x < 1e-300) { /* no denormals */
    x = x * 18014398509481984.0;
    k = -54;
  }
  LATTN_MEMCPY_(&u, &x, sizeof u);
  k += (int64_t)(u >> 52) - 1023;
  u = (u & 0xfffffffffffffu) | 0x3ff0000000000000u;
  LATTN_MEMCPY_(&f, &u, sizeof f);
  if (f > 1.4142135623730951) f = f * 0.5, k++;
  r = (f - 1) / (f + 1);
  square = r * r; /* <= 0.0295: the 13th term is below 2^-60 */
  for (int i = 12; i >= 0; i--) y = lattn_fma64_(y, square, 1.0 / (double)(2 * i + 1));
  return lattn_fma64_((double)k, 0.6931471805599453, 2 * r * y);
}

/* 1 - exp(-x), x > 0: by its series for x / 2^k, then k times 1 - (1 - y)^2. */
LATTN_FN_ double lattn_less_exp_(double x) {
  double y = 0;
  int k = 0;
  if (x > 60) return 1;
  for (; x > 0.25; k++) x = x * 0.5;
  for (int i = 14; i >= 1; i--) /* x / i (1 - y of the rest) */
    y = lattn_fma64_(-(x / (double)i), y, x / (double)i);
  for (; k > 0; k--) y = lattn_fma64_(-y, y, 2 * y);
  return y;
}

LATTN_API lattn_status lattn_alibi_length(int64_t *length, double slope, double bound,
                                          double epsilon, int32_t form) {
  double at;
  int64_t n;
  lattn_fpenv_ saved;
  if (!length) return LATTN_E_NULL;
  if (form != LATTN_ALIBI_EACH && form != LATTN_ALIBI_TOTAL) return LATTN_E_FIELD;
  if (!(slope > 0) || !lattn_is_finite64_(slope) || !(bound >= 0) || !lattn_is_finite64_(bound) ||
      !(epsilon > 0) || !lattn_is_finite64_(epsilon))
    return LATTN_E_VALUE;
  lattn_fpenv_enter_(&saved);
  at = lattn_log64_(epsilon);
  if (form == LATTN_ALIBI_TOTAL) at = at + lattn_log64_(lattn_less_exp_(slope));
  at = lattn_fma64_(2, bound, -at) / slope;
  at = lattn_fma64_(at > 0 ? at : -at, 1e-15, at); /* what was rounded */
  n = at <= 0 ? 0 : at < 4.6e18 ? (int64_t)at : INT64_MAX;
  if (at > 0 && at < 4.6e18 && (double)n < at) n++;
  lattn_fpenv_leave_(&saved);
  *length = n;
  return LATTN_OK;
}

/* ---- calibrated attention (ACT) ---- */

typedef struct lattn_calibrating_ {
  lattn_job_ job;
  lattn_part_ parts[2]; /* sinks, the others */
  float beta;
  const float *betas;
} lattn_calibrating_;

LATTN_FN_ float lattn_beta_(const lattn_calibrating_ *c, int64_t head) {
  return c->betas ? c->betas[head] : c->beta;
}

/* Whether the KV head has a query head with sinks to calibrate. */
LATTN_FN_ int lattn_calibrates_(const lattn_calibrating_ *c, int64_t kv) {
  for (int64_t h = kv * c->job.group; h < (kv + 1) * c->job.group; h++) {
    const uint8_t *marks = c->parts->marks + h * c->parts->stride;
    if (lattn_bits_(lattn_beta_(c, h)) == 0x3f800000u) continue;
    for (int64_t j = 0; j < c->job.k.n_tokens; j++)
      if (marks[j]) return 1;
  }
  return 0;
}

/* The row's output from its two parts, in acc of the others; M = share of the sinks: beta M of
   theirs, 1 - beta M of the others'. Returns 0 if the row stays as it is. */
LATTN_FN_ int lattn_calibrate_row_(const lattn_job_ *job, float beta, float sink_m, float sink_l,
                                   const float *sinks, float m, float l, float *acc) {
  float most = sink_m > m ? sink_m : m;
  double sink, rest, total, of_sinks, of_rest;
  if (lattn_bits_(beta) == 0x3f800000u || lattn_is_empty_(sink_m) || lattn_is_empty_(m)) return 0;
  sink = (double)sink_l * lattn_power_(sink_m, most);
  rest = (double)l * lattn_power_(m, most);
  total = lattn_fma64_((double)sink_l, lattn_power_(sink_m, most), rest);
  if (!(rest > total * 9.5367431640625e-07)) return 0; /* 2^-20; NaN too */
  of_sinks = (double)beta * sink / total;
  of_rest = lattn_fma64_(1.0 - (double)beta, sink, rest) / total;
  of_sinks = of_sinks / (double)sink_l;
  of_rest = of_rest / (double)l;
  for (int64_t c = 0; c < job->dv; c++) {
    double x = of_rest * (double)acc[c];
    acc[c] = (float)(of_sinks > 0 ? lattn_fma64_(of_sinks, (double)sinks[c], x) : x);
  }
  return 1;
}

/* Runs over the sinks first, whose partials stay in their slot. */
LATTN_FN_ void lattn_calibrate_item_(lattn_calibrating_ *c, lattn_item_ *it, lattn_space_ *sp) {
  const lattn_job_ *job = &c->job;
  int kept = lattn_run_part_(job, it, sp, c->parts);
  lattn_slot_ sinks = lattn_space_slot_(sp, kept), rest;
  int64_t any = 0;
  for (int64_t r = 0; r < it->rows; r++) any |= !lattn_is_empty_(sinks.m[r]);
  if (!any) return;
  sp->used = 1u << kept;
  rest = lattn_space_slot_(sp, lattn_run_part_(job, it, sp, c->parts + 1));
  sp->used = 0;
  for (int64_t r = 0; r < it->rows; r++) {
    const lattn_row_ *row = sp->rows + r;
    float *acc = rest.acc + r * job->columns;
    if (!lattn_calibrate_row_(job, lattn_beta_(c, row->head), sinks.m[r], sinks.l[r],
                              sinks.acc + r * job->columns, rest.m[r], rest.l[r], acc))
      continue;
    if (lattn_finish_row_(0.0f, 1.0f, acc, -LATTN_INFINITY_, job->dv, 0,
                          job->o.gate ? &job->gate : 0, &job->out, row->token, row->head, 0, 0))
      lattn_raise_(&c->job.overflowed);
  }
}

LATTN_NOINLINE_ void lattn_calibrate_heads_(void *context, int32_t index, char *memory) {
  lattn_calibrating_ *c = (lattn_calibrating_ *)context;
  const lattn_job_ *job = &c->job;
  int64_t rows = job->q.n_tokens * job->group, blocks = (rows + job->rows - 1) / job->rows;
  lattn_space_ sp;
  lattn_item_ it;
  size_t keys_at;
  int32_t looked = -1;
  int wanted = 0;
  LATTN_MEMSET_(&sp, 0, sizeof sp);
  lattn_carve_(&sp, memory, job, &keys_at);
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(job, &it);
  for (int64_t u = index; u < blocks * job->n_kv; u += job->n_workers) {
    it.kv = (int32_t)(u / blocks);
    it.row = u % blocks * job->rows;
    it.rows = lattn_min_(job->rows, rows - it.row);
    if (it.kv != looked) wanted = lattn_calibrates_(c, it.kv);
    looked = it.kv;
    if (wanted) lattn_calibrate_item_(c, &it, &sp);
  }
}

LATTN_FN_ void lattn_calibrate_task_(void *context, int32_t index) {
  lattn_work_(&((const lattn_calibrating_ *)context)->job, context, index, lattn_calibrate_heads_);
}

/* Options, and their arrays apart from all others. */
LATTN_FN_ lattn_status lattn_check_calibration_(const lattn_job_ *job, lattn_calibration *c,
                                                const float *lse, lattn_fault *f) {
  static const char *const names[2] = {"calibration.marks", "calibration.means"};
  int64_t heads = job->n_kv * job->group, n = job->k.n_tokens, rows = job->q.n_tokens;
  lattn_tensor made[2], in[5];
  if (c->keep != LATTN_KEEP_FIRST_TOKEN && c->keep != LATTN_KEEP_FIRST_FOUND)
    return lattn_fail_(f, LATTN_E_FIELD, "calibration.keep");
  if (c->given != 0 && c->given != 1) return lattn_fail_(f, LATTN_E_FIELD, "calibration.given");
  if (c->zero) return lattn_fail_(f, LATTN_E_FIELD, "calibration.zero");
  if (!(lattn_bits_(c->threshold) << 1)) c->threshold = 0.1f;
  if (!lattn_is_finite_(c->threshold) || c->threshold < 0)
    return lattn_fail_(f, LATTN_E_VALUE, "calibration.threshold");
  if (!(c->beta >= 0 && c->beta <= 1)) return lattn_fail_(f, LATTN_E_VALUE, "calibration.beta");
  for (int64_t h = 0; c->betas && h < heads; h++)
    if (!(c->betas[h] >= 0 && c->betas[h] <= 1))
      return lattn_fail_(f, LATTN_E_VALUE, "calibration.betas");
  if (c->least_rows < 0) return lattn_fail_(f, LATTN_E_SHAPE, "calibration.least_rows");
  if (c->least_rows == 0) c->least_rows = 1;
  if (c->stride == 0) c->stride = n;
  if (c->stride < n) return lattn_fail_(f, LATTN_E_SHAPE, "calibration.stride");
  if (lattn_times_(lattn_times_(heads, c->stride), 8) < 0)
    return lattn_fail_(f, LATTN_E_OVERFLOW, "calibration.stride");
  if (n > 0 && !c->marks) return lattn_fail_(f, LATTN_E_NULL, "calibration.marks");
  if (n > 0 && !c->given && !c->means) return lattn_fail_(f, LATTN_E_NULL, "calibration.means");
  if (rows > 0 && !lse) return lattn_fail_(f, LATTN_E_NULL, "lse");
  made[0] = lattn_floats_((const float *)(const void *)c->marks, heads * c->stride / 4);
  made[1] = lattn_numbers_(c->given ? 0 : c->means, heads * c->stride);
  in[0] = job->q;
  in[1] = job->k;
  in[2] = job->v;
  in[3] = job->out;
  in[4] = lattn_floats_(lse, rows * heads);
  if (job->out.data && lattn_overlap_(&job->out, &job->q))
    return lattn_fail_(f, LATTN_E_ALIAS, "out");
  return lattn_check_apart_(made, 2, in, 5, names, f);
}

/* Column means of plain attention, and which of them are sinks. */
LATTN_NOINLINE_ void lattn_find_sinks_(lattn_job_ *whole, const lattn_calibration *c,
                                       const float *lse, const lattn_exec *ex, int depth) {
  int64_t heads = whole->n_kv * whole->group, n = whole->k.n_tokens;
  lattn_weights w;
  lattn_item_ it;
  LATTN_MEMSET_(&w, 0, sizeof w);
  w.lse = lse;
  w.stride = c->stride;
  w.mass = c->means;
  for (int64_t h = 0; h < heads; h++)
    for (int64_t j = 0; j < n; j++) c->means[h * c->stride + j] = 0;
  whole->weights = whole->chosen = &w;
  lattn_weigh_(whole, ex, depth);
  whole->weights = whole->chosen = 0;
  LATTN_MEMSET_(&it, 0, sizeof it);
  lattn_item_sequence_(whole, &it);
  for (int64_t j = 0; j < n; j++) {
    int64_t seen = lattn_rows_seeing_(whole, &it, j + it.key_position);
    for (int64_t h = 0; h < heads; h++) {
      double *mean = c->means + h * c->stride + j;
      *mean = seen > 0 ? *mean / (double)seen : 0;
      c->marks[h * c->stride + j] = seen >= c->least_rows && *mean > (double)c->threshold;
    }
  }
  for (int64_t h = 0; h < heads; h++) {
    uint8_t *marks = c->marks + h * c->stride;
    int64_t spared = c->keep == LATTN_KEEP_FIRST_TOKEN ? -it.key_position : 0;
    while (c->keep == LATTN_KEEP_FIRST_FOUND && spared < n && !marks[spared]) spared++;
    if (spared >= 0 && spared < n) marks[spared] = 0;
  }
}

/* All that can be wrong; job and own get the call with its defaults. */
LATTN_NOINLINE_ lattn_status lattn_check_calibrated_(lattn_job_ *job, lattn_calibration *own,
                                                     const lattn_calibration *calibration,
                                                     const lattn_attn *options, float *lse,
                                                     int64_t *segments, lattn_fault *f) {
  lattn_status s = lattn_import_(own, sizeof *own, sizeof *own, calibration);
  if (!calibration) return lattn_fail_(f, LATTN_E_NULL, "calibration");
  if (s) return lattn_fail_(f, s, "calibration.size");
  s = lattn_check_watched_(job, options, 1, 1, segments, f);
  if (s) return s;
  if (options && options->partial) return lattn_fail_(f, LATTN_E_CONFIG, "options.partial");
  if (job->o.weighting == LATTN_SIGMOID) return lattn_fail_(f, LATTN_E_CONFIG, "weighting");
  if (job->o.sink_logits) return lattn_fail_(f, LATTN_E_CONFIG, "sink_logits");
  if (job->o.extra_key) return lattn_fail_(f, LATTN_E_CONFIG, "extra_key");
  job->lse = lse;
  s = lattn_check_outputs_(job, 0, 0, 0, f);
  return s ? s : lattn_check_calibration_(job, own, lse, f);
}

LATTN_API size_t lattn_calibrated_scratch(const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                                          lattn_tensor v, int32_t n_threads) {
  size_t plain = lattn_attention_scratch(options, q, k, v, n_threads), more;
  lattn_job_ job;
  int64_t segments = 0;
  lattn_job_init_(&job);
  job.q = q;
  job.k = k;
  job.v = v;
  job.n_workers = n_threads > 0 ? n_threads : 1;
  if (!plain || lattn_check_options_(&job, options, 0) || lattn_check_shapes_(&job, 0, 0) ||
      lattn_check_positions_(&job, &segments, 0))
    return 0;
  more = lattn_plan_worker_(&job, q.n_tokens * job.group, lattn_depth_(segments) + 1, 0);
  return !more ? 0 : more > plain ? more : plain;
}

LATTN_API lattn_status lattn_attention_calibrated(const lattn_calibration *calibration,
                                                  const lattn_attn *options, lattn_tensor q,
                                                  lattn_tensor k, lattn_tensor v, lattn_tensor out,
                                                  float *lse, const lattn_exec *exec) {
  lattn_calibrating_ c;
  lattn_calibration own;
  lattn_exec ex;
  int64_t segments = 0;
  int depth;
  lattn_status s = lattn_exec_in_(&ex, exec);
  if (s) return s;
  LATTN_MEMSET_(&c, 0, sizeof c);
  c.job.q = q;
  c.job.k = k;
  c.job.v = v;
  c.job.out = out;
  s = lattn_check_calibrated_(&c.job, &own, calibration, options, lse, &segments, ex.fault);
  if (s) return s;
  depth = lattn_depth_(segments) + 1; /* the sinks' partial stays while the others' is made */
  if (!ex.scratch && depth > LATTN_MAX_DEPTH_)
    return lattn_fail_(ex.fault, LATTN_E_SCRATCH, "exec.scratch");
  s = lattn_place_(&c.job, &ex, q.n_tokens * c.job.group, depth, 0, ex.fault);
  if (s) return s;
  ex.progress = 0;
  lattn_run_rows_(&c.job, &ex, 0, q.n_tokens); /* plain attention */
  if (!own.given) lattn_find_sinks_(&c.job, &own, lse, &ex, depth);
  c.parts[0].kind = LATTN_IN_;
  c.parts[1].kind = LATTN_OUT_;
  c.parts[0].marks = c.parts[1].marks = own.marks;
  c.parts[0].stride = c.parts[1].stride = own.stride;
  c.beta = own.beta;
  c.betas = own.betas;
  lattn_parallel_(&ex, c.job.n_workers, lattn_calibrate_task_, &c);
  if (ex.tokens_done) *ex.tokens_done = q.n_tokens;
  return c.job.overflowed ? LATTN_OVERFLOWED : LATTN_OK;
}

/* ==== §12 rotary positions =======================================================================
   A frequency is kept as *turns a position*, theta/(2 pi), in units of 2^-64 turn. Then the
   angle at a position is one wrapping 64-bit product: exact range reduction, for any position,
   on any machine. What the rounding of a frequency costs is half a unit a position: 2^-65 turn,
   so 2^-34 turn (4e-10 radians) at position 2^31.

   Frequencies are made once, at init, so they are made slowly and in integers only: their bits
   cannot depend on a compiler, its flags, the FPU's modes or a libm. The working type is a
   positive number with a 128-bit mantissa. Every operation below truncates; its relative error
   is at most 2^-126, that of the two transcendental ones is given with them. A whole derivation
   stays below 2^-110 relative, far under the half unit of 2^-64 of the final rounding to turns:
   results are within 0.5 + 2^-40 units, which is a relative 2^-62 for the fastest frequency
   (theta = 1). Rounding a theta to float32 is correct but for operands within 2^-110 of a tie. */


/* (high:low)/2^127 * 2^exponent with the top bit of high set; high = 0 is zero. */
typedef struct lattn_wide_ {
  uint64_t high, low;
  int32_t exponent;
} lattn_wide_;

/* What `lattn_rotary_turns` needs to know, checked and with the defaults filled in. */
typedef struct lattn_rotary_plan_ {
  int32_t kind, n_dims, flags;
  lattn_wide_ log_base, factor, length; /* log2(base); factor; original length/(2 pi) */
  lattn_wide_ low, high; /* where the blend starts and ends: in pairs (YaRN) or rotations */
} lattn_rotary_plan_;

/* The first 1184 bits of 1/(2 pi) after the binary point. A double's largest integer part is a
   multiple of 2^971 and 192 bits are used after the 971 that only count whole turns. */
static const uint32_t lattn_inverse_two_pi_[37] = {
    0x28BE60DBu, 0x9391054Au, 0x7F09D5F4u, 0x7D4D3770u, 0x36D8A566u, 0x4F10E410u, 0x7F9458EAu,
    0xF7AEF158u, 0x6DC91B8Eu, 0x909374B8u, 0x01924BBAu, 0x82746487u, 0x3F877AC7u, 0x2C4A69CFu,
    0xBA208D7Du, 0x4BAED121u, 0x3A671C09u, 0xAD17DF90u, 0x4E64758Eu, 0x60D4CE7Du, 0x272117E2u,
    0xEF7E4A0Eu, 0xC7FE25FFu, 0xF7816603u, 0xFBCBC462u, 0xD6829B47u, 0xDB4D9FB3u, 0xC9F2C26Du,
    0xD3D18FD9u, 0xA797FA8Bu, 0x5D49EEB1u, 0xFAF97C5Eu, 0xCF41CE7Du, 0xE294A4BAu, 0x9AFED7ECu,
    0x47E35742u, 0x1580CC11u};

/* ln 2 in units of 2^-128. */
static const uint64_t lattn_ln2_high_ = UINT64_C(0xB17217F7D1CF79AB);
static const uint64_t lattn_ln2_low_ = UINT64_C(0xC9E3B39803F2F6AF);

/* a * b: the low half is returned, the high half stored. By 32-bit halves, as no 128-bit type is
   portable; `middle` cannot overflow: 3 * (2^32 - 1) + ... stays below 2^34. */
LATTN_FN_ uint64_t lattn_multiply_64_(uint64_t a, uint64_t b, uint64_t *high) {
  const uint64_t mask = UINT64_C(0xFFFFFFFF);
  const uint64_t a0 = a & mask, a1 = a >> 32, b0 = b & mask, b1 = b >> 32;
  const uint64_t p00 = a0 * b0, p01 = a0 * b1, p10 = a1 * b0;
  const uint64_t middle = (p00 >> 32) + (p01 & mask) + (p10 & mask);
  *high = a1 * b1 + (p01 >> 32) + (p10 >> 32) + (middle >> 32);
  return (middle << 32) | (p00 & mask);
}

/* Leading zero bits of x; 63 for x = 0, so that the result is always a legal shift. Without
   branches: it is on the path of every rotated pair. */
LATTN_FN_ int32_t lattn_leading_zeros_64_(uint64_t x) {
  int32_t n = 0, step;
  for (step = 32; step > 0; step >>= 1) {
    const int32_t empty = step & -(int32_t)((x >> (64 - step)) == 0);
    n += empty;
    x <<= empty;
  }
  return n;
}

/* (high:low) >> n, for any n >= 0. */
LATTN_FN_ void lattn_shift_right_128_(uint64_t *high, uint64_t *low, int32_t n) {
  if (n >= 64) {
    *low = n < 128 ? *high >> (n - 64) : 0;
    *high = 0;
  } else if (n > 0) {
    *low = (*low >> n) | (*high << (64 - n));
    *high >>= n;
  }
}

/* (high:low) << n, for any n >= 0. */
LATTN_FN_ void lattn_shift_left_128_(uint64_t *high, uint64_t *low, int32_t n) {
  if (n >= 64) {
    *high = n < 128 ? *low << (n - 64) : 0;
    *low = 0;
  } else if (n > 0) {
    *high = (*high << n) | (*low >> (64 - n));
    *low <<= n;
  }
}

/* floor((a_high:a_low) * (b_high:b_low) / 2^128) */
LATTN_FN_ void lattn_multiply_128_(uint64_t a_high, uint64_t a_low, uint64_t b_high, uint64_t b_low,
                                   uint64_t *high, uint64_t *low) {
  uint64_t p00_high, p01_high, p10_high, p11_high, sum, carry;
  const uint64_t p01_low = lattn_multiply_64_(a_low, b_high, &p01_high);
  const uint64_t p10_low = lattn_multiply_64_(a_high, b_low, &p10_high);
  const uint64_t p11_low = lattn_multiply_64_(a_high, b_high, &p11_high);
  (void)lattn_multiply_64_(a_low, b_low, &p00_high);
  sum = p00_high + p01_low;
  carry = (uint64_t)(sum < p01_low);
  sum += p10_low;
  carry += (uint64_t)(sum < p10_low);
  /* The four high parts: carry <= 2, and the whole is below 2^128. */
  sum = p11_low + carry;
  p11_high += (uint64_t)(sum < carry);
  sum += p01_high;
  p11_high += (uint64_t)(sum < p01_high);
  sum += p10_high;
  p11_high += (uint64_t)(sum < p10_high);
  *high = p11_high;
  *low = sum;
}

/* (high:low)/2^127 * 2^exponent, normalised. Exact. */
LATTN_FN_ lattn_wide_ lattn_wide_make_(uint64_t high, uint64_t low, int32_t exponent) {
  lattn_wide_ w;
  int32_t n;
  if (high == 0) {
    high = low;
    low = 0;
    exponent -= 64;
  }
  n = lattn_leading_zeros_64_(high);
  lattn_shift_left_128_(&high, &low, n);
  w.high = high;
  w.low = low;
  w.exponent = high == 0 ? 0 : exponent - n;
  return w;
}

LATTN_FN_ lattn_wide_ lattn_wide_from_u64_(uint64_t x) {
  return lattn_wide_make_(x, 0, 63);
}

/* 1/(2 pi), relative error < 2^-125 (two of the 128 bits are leading zeros). */
LATTN_FN_ lattn_wide_ lattn_wide_inverse_two_pi_(void) {
  const uint32_t *w = lattn_inverse_two_pi_;
  return lattn_wide_make_(((uint64_t)w[0] << 32) | w[1], ((uint64_t)w[2] << 32) | w[3], -1);
}

LATTN_FN_ int32_t lattn_wide_less_(lattn_wide_ a, lattn_wide_ b) {
  if (a.high == 0 || b.high == 0) return b.high != 0 && a.high == 0;
  if (a.exponent != b.exponent) return a.exponent < b.exponent;
  return a.high != b.high ? a.high < b.high : a.low < b.low;
}

LATTN_FN_ lattn_wide_ lattn_wide_multiply_(lattn_wide_ a, lattn_wide_ b) {
  uint64_t high, low;
  lattn_multiply_128_(a.high, a.low, b.high, b.low, &high, &low);
  return lattn_wide_make_(high, low, a.exponent + b.exponent + 1);
}

/* a/b by long division, a bit a step; b is not zero. */
LATTN_FN_ lattn_wide_ lattn_wide_divide_(lattn_wide_ a, lattn_wide_ b) {
  lattn_wide_ q;
  uint64_t carry = 0;
  int32_t i;
  q.high = q.low = 0;
  q.exponent = a.exponent - b.exponent;
  if (a.high == 0) return a;
  if (a.high < b.high || (a.high == b.high && a.low < b.low)) {
    carry = a.high >> 63;
    lattn_shift_left_128_(&a.high, &a.low, 1);
    --q.exponent;
  }
  for (i = 0; i < 128; ++i) { /* invariant: the remainder (carry:a) is below 2b */
    lattn_shift_left_128_(&q.high, &q.low, 1);
    if (carry != 0 || a.high > b.high || (a.high == b.high && a.low >= b.low)) {
      a.high -= b.high + (uint64_t)(a.low < b.low);
      a.low -= b.low;
      q.low |= 1;
    }
    carry = a.high >> 63;
    lattn_shift_left_128_(&a.high, &a.low, 1);
  }
  return q; /* the first bit is 1, so it is normalised */
}

LATTN_FN_ lattn_wide_ lattn_wide_add_(lattn_wide_ a, lattn_wide_ b) {
  lattn_wide_ sum;
  if (lattn_wide_less_(a, b)) {
    sum = a;
    a = b;
    b = sum;
  }
  if (b.high == 0) return a;
  sum = a;
  lattn_shift_right_128_(&b.high, &b.low, a.exponent - b.exponent);
  sum.low = a.low + b.low;
  sum.high = a.high + b.high + (uint64_t)(sum.low < b.low);
  if (lattn_wide_less_(sum, a)) { /* the sum passed 2^128 and wrapped */
    lattn_shift_right_128_(&sum.high, &sum.low, 1);
    sum.high |= UINT64_C(1) << 63;
    ++sum.exponent;
  }
  return sum;
}

/* a - b, or 0 where b >= a. The error is at most 2^-127 of *a*. */
LATTN_FN_ lattn_wide_ lattn_wide_subtract_(lattn_wide_ a, lattn_wide_ b) {
  if (!lattn_wide_less_(b, a)) return lattn_wide_make_(0, 0, 0);
  if (b.high == 0) return a;
  lattn_shift_right_128_(&b.high, &b.low, a.exponent - b.exponent);
  return lattn_wide_make_(a.high - b.high - (uint64_t)(a.low < b.low), a.low - b.low, a.exponent);
}

/* log2(x) for x >= 1, by squaring the mantissa: each time it passes 2 the next bit of the
   logarithm is 1. The squaring of step i is off by 2^-126 relative, which the logarithm sees as
   1.45 * 2^-126 * 2^-i: all of them and the bits after the 128th add up to less than 2^-124.
   Exact for powers of two. */
LATTN_FN_ lattn_wide_ lattn_wide_log2_(lattn_wide_ x) {
  const lattn_wide_ whole = lattn_wide_from_u64_((uint64_t)x.exponent);
  uint64_t high = 0, low = 0;
  int32_t i;
  x.exponent = 0;
  for (i = 0; i < 128; ++i) {
    x = lattn_wide_multiply_(x, x);
    lattn_shift_left_128_(&high, &low, 1);
    low |= (uint64_t)x.exponent; /* 0 or 1 */
    x.exponent = 0;
  }
  return lattn_wide_add_(whole, lattn_wide_make_(high, low, -1));
}

/* 2^-y for y >= 0, as 2^g * 2^-k with k = ceil(y) and 0 <= g < 1. 2^g = exp(g ln 2) is its
   Taylor series, by Horner, in units of 2^-127: z^33/33! < 2^-140 is left out; each step
   truncates twice and its error is multiplied by z/n afterwards, so that all of them stay below
   2^-124. An error d of y itself is a relative 0.7 d: y < 2^13 with 2^-124 relative gives
   2^-111. */
LATTN_FN_ lattn_wide_ lattn_wide_exp2_minus_(lattn_wide_ y) {
  uint64_t high = y.high, low = y.low, z_high, z_low;
  uint64_t sum_high = UINT64_C(1) << 63, sum_low = 0;
  int32_t k = 0, n;
  if (y.exponent >= 30) return lattn_wide_make_(0, 0, 0); /* 2^-(2^30): 0 to everyone here */
  if (y.exponent >= 0) {
    k = (int32_t)(high >> (63 - y.exponent));
    lattn_shift_left_128_(&high, &low, y.exponent + 1);
  } else {
    lattn_shift_right_128_(&high, &low, -y.exponent - 1);
  }
  if ((high | low) != 0) { /* g = 1 - fraction */
    high = ~high + (uint64_t)(low == 0);
    low = UINT64_C(0) - low;
    ++k;
    lattn_multiply_128_(high, low, lattn_ln2_high_, lattn_ln2_low_, &z_high, &z_low);
    for (n = 32; n >= 1; --n) {
      uint64_t part;
      const uint64_t divisor = (uint64_t)n;
      lattn_multiply_128_(sum_high, sum_low, z_high, z_low, &high, &low);
      part = ((high % divisor) << 32) | (low >> 32); /* schoolbook: 64 bits, then 32 and 32 */
      sum_high = (UINT64_C(1) << 63) + high / divisor;
      sum_low = ((part / divisor) << 32) |
                ((((part % divisor) << 32) | (low & UINT64_C(0xFFFFFFFF))) / divisor);
    }
  }
  return lattn_wide_make_(sum_high, sum_low, -k);
}

/* The float32 bits of w, rounded to nearest even; infinity above the range. */
LATTN_FN_ uint32_t lattn_wide_to_f32_(lattn_wide_ w) {
  const uint64_t half = UINT64_C(1) << 63;
  uint64_t high = w.high, low = w.low, rest_high = w.high, rest_low = w.low;
  uint32_t bits;
  int32_t drop = 104; /* of the 128 bits, 24 stay; fewer for a subnormal */
  if (w.exponent > 127) return UINT32_C(0x7F800000);
  if (w.exponent < -126) drop += -126 - w.exponent;
  if (drop > 128 || w.high == 0) return 0;
  lattn_shift_right_128_(&high, &low, drop);
  lattn_shift_left_128_(&rest_high, &rest_low, 128 - drop); /* what was dropped */
  bits = (uint32_t)low;
  if (w.exponent >= -126) bits += (uint32_t)(w.exponent + 126) << 23; /* the hidden bit adds 1 */
  if (rest_high < half) return bits;
  return rest_high == half && rest_low == 0 ? bits + (bits & 1) : bits + 1;
}

/* theta radians, 0 <= theta <= 1, to turns, rounded to nearest. */
LATTN_FN_ uint64_t lattn_wide_to_turns_(lattn_wide_ theta) {
  lattn_wide_ w = lattn_wide_multiply_(theta, lattn_wide_inverse_two_pi_());
  if (w.high == 0) return 0;
  lattn_shift_right_128_(&w.high, &w.low, 62 - w.exponent); /* leaves one bit below the unit */
  return (w.low + 1) >> 1;
}

/* m * 2^q radians, m < 2^53, to turns modulo 1, rounded to nearest. For q >= 0 the first q bits
   of 1/(2 pi) only make whole turns and are passed over; the next 192 are multiplied by m. What
   is cut off is below 2^53 * 2^-192 turn, so the result is within 0.5 + 2^-75 units. */
LATTN_FN_ uint64_t lattn_turns_of_(uint64_t m, int32_t q) {
  const int32_t skip = q > 0 ? q : 0, shift = 128 + (q < 0 ? -q : 0);
  const uint64_t factor[2] = {m & UINT64_C(0xFFFFFFFF), m >> 32};
  uint32_t product[10] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0}; /* least word first; the last two stay 0 */
  uint64_t turns;
  int32_t i, j, bit;
  if (shift >= 256) return 0; /* m/(2 pi) < 2^51: far below half a unit */
  for (j = 0; j < 2; ++j) {
    uint64_t carry = 0;
    for (i = 0; i < 6; ++i) {
      const uint32_t *w = lattn_inverse_two_pi_ + (skip >> 5) + (5 - i);
      const uint64_t pair = ((uint64_t)w[0] << 32) | w[1];
      const uint64_t word = (pair >> (32 - (skip & 31))) & UINT64_C(0xFFFFFFFF);
      carry += factor[j] * word + product[i + j]; /* (2^32-1)^2 + 2 (2^32-1) = 2^64 - 1 */
      product[i + j] = (uint32_t)(carry & UINT64_C(0xFFFFFFFF));
      carry >>= 32;
    }
    product[j + 6] = (uint32_t)carry;
  }
  i = shift >> 5;
  bit = shift & 31;
  turns = (((uint64_t)product[i + 1] << 32) | product[i]) >> bit;
  if (bit != 0) turns |= (uint64_t)product[i + 2] << (64 - bit);
  return turns + ((product[(shift - 1) >> 5] >> ((shift - 1) & 31)) & 1);
}

/* The same from the bits of a finite double, sign included. */
LATTN_FN_ uint64_t lattn_turns_of_f64_(uint64_t bits) {
  const int32_t exponent = (int32_t)((bits >> 52) & 0x7FF);
  const uint64_t fraction = bits & ((UINT64_C(1) << 52) - 1);
  const uint64_t hidden = exponent == 0 ? 0 : UINT64_C(1) << 52;
  const uint64_t turns = lattn_turns_of_(fraction | hidden, (exponent == 0 ? 1 : exponent) - 1075);
  return (bits >> 63) != 0 ? UINT64_C(0) - turns : turns;
}

/* The same from the bits of a finite float. */
LATTN_FN_ uint64_t lattn_turns_of_f32_(uint32_t bits) {
  const int32_t exponent = (int32_t)((bits >> 23) & 0xFF);
  const uint64_t fraction = bits & UINT32_C(0x7FFFFF);
  const uint64_t hidden = exponent == 0 ? 0 : UINT64_C(1) << 23;
  const uint64_t turns = lattn_turns_of_(fraction | hidden, (exponent == 0 ? 1 : exponent) - 150);
  return (bits >> 31) != 0 ? UINT64_C(0) - turns : turns;
}

/* Reads *value into *out, `fallback` where it is 0. Returns 0 if it is negative or not finite.
   Doubles are taken apart as bits here and below, so neither rounding modes nor -ffast-math have
   a say. */
LATTN_FN_ int32_t lattn_wide_read_(lattn_wide_ *out, const double *value, uint64_t fallback) {
  uint64_t bits, fraction;
  int32_t exponent;
  LATTN_MEMCPY_(&bits, value, sizeof bits);
  exponent = (int32_t)((bits >> 52) & 0x7FF);
  fraction = bits & ((UINT64_C(1) << 52) - 1);
  if (exponent == 0x7FF || ((bits >> 63) != 0 && (bits << 1) != 0)) return 0;
  if (exponent == 0) {
    *out = lattn_wide_make_(fraction, 0, 63 - 1074);
  } else {
    *out = lattn_wide_make_(fraction | (UINT64_C(1) << 52), 0, 63 - 1075 + exponent);
  }
  if (out->high == 0) *out = lattn_wide_from_u64_(fallback);
  return 1;
}

/* How many pairs turn more than `beta` times over the original length, as a real number: n_dims
   * log2(length/(2 pi beta)) / (2 log2(base)), at least 0 and at most n_dims - 1. With
   truncation rounded to the whole number below (up = 0) or above. It is never within rounding of
   a whole number by chance of the arithmetic: base^(2k/n) * 2 pi * beta = length has no rational
   solution. */
LATTN_FN_ lattn_wide_ lattn_rotary_bound_(const lattn_rotary_plan_ *plan, lattn_wide_ beta,
                                          int32_t up) {
  const lattn_wide_ one = lattn_wide_from_u64_(1);
  const lattn_wide_ last = lattn_wide_from_u64_((uint64_t)plan->n_dims - 1);
  const lattn_wide_ n_dims = lattn_wide_from_u64_((uint64_t)plan->n_dims);
  lattn_wide_ x = lattn_wide_divide_(plan->length, beta), whole;
  if (!lattn_wide_less_(one, x)) return lattn_wide_make_(0, 0, 0);
  x = lattn_wide_multiply_(lattn_wide_log2_(x), n_dims);
  x = lattn_wide_divide_(x, plan->log_base);
  --x.exponent; /* the 2 of 2 log2(base); x is not 0 here */
  if (lattn_wide_less_(last, x)) return last;
  if ((plan->flags & LATTN_ROTARY_NO_TRUNCATE) != 0) return x;
  if (x.exponent < 0) return lattn_wide_from_u64_((uint64_t)up);
  whole = lattn_wide_from_u64_(x.high >> (63 - x.exponent)); /* exponent <= 30 */
  return up && lattn_wide_less_(whole, x) ? lattn_wide_add_(whole, one) : whole;
}

/* Zero bytes after the fields this version knows? A newer caller that uses a field we lack must
   hear it. */
LATTN_FN_ lattn_status lattn_rotary_check_size_(const lattn_rotary_scaling *scaling) {
  const uint32_t size = scaling->size;
  const unsigned char *bytes = (const unsigned char *)scaling;
  uint32_t i;
  if (size < sizeof *scaling || size > 4096) return LATTN_E_SIZE;
  for (i = (uint32_t)sizeof *scaling; i < size; ++i) {
    if (bytes[i] != 0) return LATTN_E_FIELD;
  }
  return LATTN_OK;
}

/* Checks a description and resolves its defaults. Order: size, kind and flags, n_dims, values. */
LATTN_FN_ lattn_status lattn_rotary_plan_init_(lattn_rotary_plan_ *plan,
                                               const lattn_rotary_scaling *s) {
  const lattn_wide_ one = lattn_wide_from_u64_(1);
  const int32_t flags = LATTN_ROTARY_ROUND_F32 | LATTN_ROTARY_NO_TRUNCATE;
  lattn_wide_ base, low, high, fast = {0, 0, 0}, slow = {0, 0, 0};
  int32_t ok = 1;
  const lattn_status status = lattn_rotary_check_size_(s);
  if (status != LATTN_OK) return status;
  if (s->kind < LATTN_ROTARY_PLAIN || s->kind > LATTN_ROTARY_LLAMA3) return LATTN_E_FIELD;
  if ((s->flags & ~flags) != 0) return LATTN_E_FIELD;
  if (s->n_dims < 2 || s->n_dims > 1024 || (s->n_dims & 1) != 0) return LATTN_E_SHAPE;
  plan->kind = s->kind;
  plan->flags = s->flags;
  plan->n_dims = s->n_dims;
  ok &= lattn_wide_read_(&base, &s->base, 10000);
  ok &= lattn_wide_read_(&plan->factor, &s->factor, 1);
  ok &= lattn_wide_read_(&plan->length, &s->original_length, 0);
  ok &= lattn_wide_read_(&low, &s->low_frequency_factor, 1);
  ok &= lattn_wide_read_(&high, &s->high_frequency_factor, 4);
  ok &= lattn_wide_read_(&fast, &s->beta_fast, 32);
  ok &= lattn_wide_read_(&slow, &s->beta_slow, 1);
  if (!ok || lattn_wide_less_(base, one)) return LATTN_E_VALUE;
  if (lattn_wide_less_(plan->factor, one)) return LATTN_E_VALUE;
  plan->log_base = lattn_wide_log2_(base);
  plan->low = low;
  plan->high = high;
  if (s->kind != LATTN_ROTARY_YARN && s->kind != LATTN_ROTARY_LLAMA3) return LATTN_OK;
  if (plan->length.high == 0) return LATTN_E_VALUE;
  plan->length = lattn_wide_multiply_(plan->length, lattn_wide_inverse_two_pi_());
  if (s->kind == LATTN_ROTARY_LLAMA3) return lattn_wide_less_(low, high) ? LATTN_OK : LATTN_E_VALUE;
  if (plan->log_base.high == 0 || lattn_wide_less_(fast, slow)) return LATTN_E_VALUE;
  plan->low = lattn_rotary_bound_(plan, fast, 0);
  plan->high = lattn_rotary_bound_(plan, slow, 1);
  return LATTN_OK;
}

/* How much of pair f is interpolated (divided by the factor): 0 none, 1 all, between them a
   ramp. YaRN: (f - low)/(high - low). Where the bounds meet the width is 0.001, as in common
   model code; where they cross (lengths below 2 pi or beyond what the slowest pair sees) that
   code divides by a negative width and inverts the ramp, and we keep the step. Llama 3: the ramp
   is over length/wavelength, the rotations made over the original length. */
LATTN_FN_ lattn_wide_ lattn_rotary_ramp_(const lattn_rotary_plan_ *plan, lattn_wide_ theta,
                                         int32_t f) {
  const lattn_wide_ one = lattn_wide_from_u64_(1);
  lattn_wide_ part, width = lattn_wide_subtract_(plan->high, plan->low);
  if (width.high == 0) width = lattn_wide_divide_(one, lattn_wide_from_u64_(1000));
  if (plan->kind == LATTN_ROTARY_YARN) {
    part = lattn_wide_subtract_(lattn_wide_from_u64_((uint64_t)f), plan->low);
  } else {
    part = lattn_wide_subtract_(plan->high, lattn_wide_multiply_(plan->length, theta));
  }
  part = lattn_wide_divide_(part, width);
  return lattn_wide_less_(part, one) ? part : one;
}

/* Radians a position of pair f. NTK's base * factor^(n/(n-2)) goes in as a second exponent,
   2f/(n-2) on the factor: no rounded base in between. */
LATTN_FN_ lattn_wide_ lattn_rotary_theta_(const lattn_rotary_plan_ *plan, int32_t f) {
  const lattn_wide_ one = lattn_wide_from_u64_(1), two_f = lattn_wide_from_u64_(2 * (uint64_t)f);
  lattn_wide_ y = lattn_wide_multiply_(plan->log_base, two_f), theta, ramp, slow;
  y = lattn_wide_divide_(y, lattn_wide_from_u64_((uint64_t)plan->n_dims));
  if (plan->kind == LATTN_ROTARY_NTK && f > 0) { /* so n_dims > 2 */
    slow = lattn_wide_multiply_(lattn_wide_log2_(plan->factor), two_f);
    slow = lattn_wide_divide_(slow, lattn_wide_from_u64_((uint64_t)plan->n_dims - 2));
    y = lattn_wide_add_(y, slow);
  }
  theta = lattn_wide_exp2_minus_(y);
  if (plan->kind == LATTN_ROTARY_PLAIN || plan->kind == LATTN_ROTARY_NTK) return theta;
  slow = lattn_wide_divide_(theta, plan->factor);
  if (plan->kind == LATTN_ROTARY_LINEAR) return slow;
  ramp = lattn_rotary_ramp_(plan, theta, f);
  theta = lattn_wide_multiply_(theta, lattn_wide_subtract_(one, ramp));
  return lattn_wide_add_(theta, lattn_wide_multiply_(slow, ramp));
}

LATTN_API lattn_status lattn_rotary_turns(uint64_t *turns, const lattn_rotary_scaling *scaling) {
  lattn_rotary_plan_ plan;
  lattn_status status;
  int32_t f;
  if (turns == NULL || scaling == NULL) return LATTN_E_NULL;
  status = lattn_rotary_plan_init_(&plan, scaling);
  if (status != LATTN_OK) return status;
  for (f = 0; f < plan.n_dims / 2; ++f) {
    const lattn_wide_ theta = lattn_rotary_theta_(&plan, f);
    if ((plan.flags & LATTN_ROTARY_ROUND_F32) != 0) {
      turns[f] = lattn_turns_of_f32_(lattn_wide_to_f32_(theta));
    } else {
      turns[f] = lattn_wide_to_turns_(theta);
    }
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_rotary_turns_from_f32(uint64_t *turns, const float *radians,
                                                   int64_t n) {
  int64_t i;
  uint32_t bits;
  if (turns == NULL || radians == NULL) return LATTN_E_NULL;
  if (n < 0) return LATTN_E_SHAPE;
  for (i = 0; i < n; ++i) {
    LATTN_MEMCPY_(&bits, radians + i, sizeof bits);
    if ((bits & UINT32_C(0x7F800000)) == UINT32_C(0x7F800000)) return LATTN_E_VALUE;
  }
  for (i = 0; i < n; ++i) {
    LATTN_MEMCPY_(&bits, radians + i, sizeof bits);
    turns[i] = lattn_turns_of_f32_(bits);
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_rotary_turns_from_f64(uint64_t *turns, const double *radians,
                                                   int64_t n) {
  int64_t i;
  uint64_t bits;
  if (turns == NULL || radians == NULL) return LATTN_E_NULL;
  if (n < 0) return LATTN_E_SHAPE;
  for (i = 0; i < n; ++i) {
    LATTN_MEMCPY_(&bits, radians + i, sizeof bits);
    if (((bits >> 52) & 0x7FF) == 0x7FF) return LATTN_E_VALUE;
  }
  for (i = 0; i < n; ++i) {
    LATTN_MEMCPY_(&bits, radians + i, sizeof bits);
    turns[i] = lattn_turns_of_f64_(bits);
  }
  return LATTN_OK;
}

LATTN_API lattn_status lattn_rotary_yarn_magnitude(float *magnitude, double factor, double mscale) {
  const lattn_wide_ one = lattn_wide_from_u64_(1), zero = lattn_wide_make_(0, 0, 0);
  lattn_wide_ scale, x = one, value;
  uint64_t bits;
  uint32_t out;
  if (magnitude == NULL) return LATTN_E_NULL;
  LATTN_MEMCPY_(&bits, &factor, sizeof bits);
  if (((bits >> 52) & 0x7FF) == 0x7FF) return LATTN_E_VALUE;
  if (!lattn_wide_read_(&scale, &mscale, 0)) return LATTN_E_VALUE;
  if ((bits >> 63) == 0) (void)lattn_wide_read_(&x, &factor, 1);
  value = lattn_wide_less_(one, x) ? lattn_wide_log2_(x) : zero;
  value = lattn_wide_multiply_(value, lattn_wide_make_(lattn_ln2_high_, lattn_ln2_low_, -1));
  value = lattn_wide_divide_(lattn_wide_multiply_(value, scale), lattn_wide_from_u64_(10));
  out = lattn_wide_to_f32_(lattn_wide_add_(one, value));
  if (out == UINT32_C(0x7F800000)) return LATTN_E_VALUE;
  LATTN_MEMCPY_(magnitude, &out, sizeof out);
  return LATTN_OK;
}

/* 2^exponent, -126 <= exponent <= 127, from bits. */
LATTN_FN_ float lattn_power_of_two_(int32_t exponent) {
  const uint32_t bits = (uint32_t)(exponent + 127) << 23;
  float power;
  LATTN_MEMCPY_(&power, &bits, sizeof power);
  return power;
}

/* sin and cos of 2 pi (t + l) for 0 <= t + l <= 1/8; l is what did not fit into t, below 2^-23 t.
   Polynomials in z = (t + l)^2, minimax, their coefficients rounded to float one after another:
     sin: t (C + z S(z)), C = 2 pi in two floats; relative error of the polynomial 2^-33
     cos: 1 - 2 pi^2 z + z^2 Q(z), 2 pi^2 in two floats; absolute error 2^-33
   Error bounds in ulp, with u = 2^-24, the ulp of a value in [1/2, 1), at t near 1/8, where they
   are largest (for smaller t what is added falls as t^3, the ulp as t):
     sin: the last fma 0.5; the roundings of z (t 41.3 2^-31) 0.04 u, of the tail (2^-28), of r
       (t 2^-25) and of the step before r (t z 2^-19) 0.063 u each, the rest 0.01 u. Sum 0.74.
     cos: the last addition 0.5; the rounding of z (2 pi^2 2^-31) 0.16 u; q, the step before it and
       the correction 0.03 u. `head` loses nothing: the second fma recovers its error exactly
       (1 - head is exact, head >= 1/2). Sum 0.69.
   Measured over 8e8 turns: 0.710 and 0.661. Where lattn_fma_ is not fused: 1.7 and 1.1. */
LATTN_FN_ void lattn_sincos_octant_(float t, float l, float *sine, float *cosine) {
  const float c_high = 0x1.921fb6p+2f, c_low = -0x1.777a5cp-23f; /* 2 pi */
  const float d_high = -0x1.3bd3ccp+4f, d_low = -0x1.37c8bcp-21f; /* -2 pi^2 */
  const float z = lattn_fma_(t, t, t * (l + l));
  float r = lattn_fma_(z, 0x1.443a9ap+5f, -0x1.32adaap+6f);
  float q = lattn_fma_(z, 0x1.dac7d4p+5f, -0x1.55c9dep+6f);
  const float head = lattn_fma_(z, d_high, 1.0f);
  const float lost = lattn_fma_(z, d_high, 1.0f - head);
  r = lattn_fma_(z, r, 0x1.466b78p+6f);
  r = lattn_fma_(z, r, -0x1.4abbcep+5f);
  r = lattn_fma_(z, r, c_low);
  q = lattn_fma_(z, q, 0x1.03c1e8p+6f);
  q = lattn_fma_(z, q, d_low);
  *sine = lattn_fma_(t, c_high, lattn_fma_(t, r, l * (r + c_high)));
  *cosine = head + lattn_fma_(z, q, lost);
}

/* sin and cos of a fraction of a turn, in units of 2^-64. The turn is folded onto [0, 1/8] in
   integers (exact), so that sin is odd, cos even and all eight octants agree to the bit;
   multiples of 1/4 give 0, 1, -1 exactly (a zero is +0). The top 24 bits of what is left become
   t and the next 24 l, both exact; nothing is rounded (the rest is below 2^-47 relative). Masks,
   not branches: which octant comes next cannot be predicted. */
LATTN_FN_ void lattn_sincos_turn_(uint64_t turn, float *sine, float *cosine) {
  const uint64_t eighth = UINT64_C(1) << 61;
  const uint64_t minus = UINT64_C(0) - (turn >> 63);         /* all ones: beyond a half */
  const uint64_t half = (turn ^ minus) - minus;              /* |turn|, 0 ... 1/2 */
  const uint64_t back = UINT64_C(0) - (uint64_t)(half > 2 * eighth);
  const uint64_t quarter = (half ^ back) - back + (back & (4 * eighth));
  const uint64_t swap = UINT64_C(0) - (uint64_t)(quarter > eighth);
  uint64_t rest = (quarter ^ swap) - swap + (swap & (2 * eighth));
  const int32_t n = lattn_leading_zeros_64_(rest);
  uint32_t s_bits, c_bits, differ;
  float t, l;
  rest <<= n;
  t = (float)(int32_t)(rest >> 40) * lattn_power_of_two_(-24 - n);
  l = (float)(int32_t)((rest >> 16) & 0xFFFFFF) * lattn_power_of_two_(-48 - n);
  lattn_sincos_octant_(t, l, sine, cosine);
  LATTN_MEMCPY_(&s_bits, sine, sizeof s_bits);
  LATTN_MEMCPY_(&c_bits, cosine, sizeof c_bits);
  differ = (s_bits ^ c_bits) & (uint32_t)(swap & UINT32_C(0xFFFFFFFF));
  s_bits ^= differ ^ ((uint32_t)(turn > 4 * eighth) << 31);  /* 1/2 itself: +0 */
  c_bits ^= differ ^ ((uint32_t)(back & 1) << 31);
  LATTN_MEMCPY_(sine, &s_bits, sizeof s_bits);
  LATTN_MEMCPY_(cosine, &c_bits, sizeof c_bits);
}

/* Cosine and sine of pair f, times the magnitude. */
LATTN_FN_ void lattn_angle_(const lattn_turning_ *r, int32_t f, int64_t position, float *cosine,
                            float *sine) {
  lattn_sincos_turn_((uint64_t)position * r->turns[f], sine, cosine);
  if (lattn_bits_(r->magnitude) & 0x7fffffffu) {
    *cosine = *cosine * r->magnitude;
    *sine = *sine * r->magnitude;
  }
}

/* Of the pairs of r at a position (any int64: an angle is position * turns modulo one turn): the
   cosines, then the sines, each times the magnitude. All heads of a token share them. */
LATTN_FN_ void lattn_angles_(float *angles, const lattn_turning_ *r, int64_t position) {
  int32_t pairs = r->n_dims / 2;
  for (int32_t f = 0; f < pairs; f++)
    lattn_angle_(r, f, position, angles + f, angles + pairs + f);
}

/* x' = x cos - y sin, y' = x sin + y cos: the second product rounded, the first fused. Error,
   with h = |(x, y)| and u = 2^-24: cos and sin 0.75 u each, so 0.75 sqrt(2) u h; the rounded
   product u h; the fma u h: 3.1 u h; 4.1 u h times the magnitude where there is one. */
LATTN_FN_ void lattn_turn_pair_(float *x, float *y, float cosine, float sine) {
  float a = *x, b = *y, b_sine = b * sine, b_cosine = b * cosine;
  *x = lattn_fma_(a, cosine, -b_sine);
  *y = lattn_fma_(a, sine, b_cosine);
}

LATTN_FN_ void lattn_turn_(float *row, const float *angles, const lattn_turning_ *r) {
  int32_t pairs = r->n_dims / 2, step = r->layout == LATTN_ROTARY_INTERLEAVED ? 2 : 1;
  int32_t other = r->layout == LATTN_ROTARY_INTERLEAVED ? 1 : pairs;
  for (int32_t f = 0; f < pairs; f++) {
    float *x = row + r->first_dim + f * step;
    lattn_turn_pair_(x, x + other, angles[f], angles[pairs + f]);
  }
}

/* A row turned to a position; angles holds those of position *at. NULL: there is no room for any,
   so each pair's are made as it is turned: the same bits. */
LATTN_FN_ void lattn_turn_at_(float *row, float *angles, const lattn_turning_ *r, int64_t position,
                              int64_t *at) {
  int32_t step = r->layout == LATTN_ROTARY_INTERLEAVED ? 2 : 1;
  int32_t other = r->layout == LATTN_ROTARY_INTERLEAVED ? 1 : r->n_dims / 2;
  if (angles) {
    if (*at != position) lattn_angles_(angles, r, *at = position);
    lattn_turn_(row, angles, r);
    return;
  }
  for (int32_t f = 0; f < r->n_dims / 2; f++) {
    float *x = row + r->first_dim + f * step, cosine, sine;
    lattn_angle_(r, f, position, &cosine, &sine);
    lattn_turn_pair_(x, x + other, cosine, sine);
  }
}

LATTN_FN_ lattn_status lattn_check_rotary_(const lattn_rotary *r, int64_t dim, lattn_fault *f) {
  if (r->layout != LATTN_ROTARY_INTERLEAVED && r->layout != LATTN_ROTARY_HALF_SPLIT)
    return lattn_fail_(f, LATTN_E_FIELD, "rotary.layout");
  if (r->zero) return lattn_fail_(f, LATTN_E_FIELD, "rotary.zero");
  if (r->n_dims < 2 || r->n_dims % 2 || r->n_dims > 2 * LATTN_MAX_PAIRS_)
    return lattn_fail_(f, LATTN_E_SHAPE, "rotary.n_dims");
  if (r->first_dim < 0 || r->n_dims > dim || r->first_dim > dim - r->n_dims)
    return lattn_fail_(f, LATTN_E_SHAPE, "rotary.first_dim");
  if (!lattn_is_finite_(r->magnitude)) return lattn_fail_(f, LATTN_E_VALUE, "rotary.magnitude");
  if (!r->turns) return lattn_fail_(f, LATTN_E_NULL, "rotary.turns");
  return LATTN_OK;
}

/* One row in place, pair by pair, in its own type. */
LATTN_NOINLINE_ int lattn_turn_tensor_(const lattn_tensor *x, const lattn_turning_ *r,
                                       int64_t first_position, const int64_t *positions) {
  float angles[2 * LATTN_MAX_PAIRS_];
  int32_t pairs = r->n_dims / 2, step = r->layout == LATTN_ROTARY_INTERLEAVED ? 2 : 1;
  int32_t other = r->layout == LATTN_ROTARY_INTERLEAVED ? 1 : pairs;
  void *data = (void *)(uintptr_t)x->data;
  int lost = 0;
  for (int64_t t = 0; t < x->n_tokens; t++) {
    lattn_angles_(angles, r,
                  positions ? positions[t] : (int64_t)((uint64_t)first_position + (uint64_t)t));
    for (int64_t h = 0; h < x->n_heads; h++)
      for (int32_t f = 0; f < pairs; f++) {
        int64_t at = t * x->stride_token + h * x->stride_head + r->first_dim + f * step;
        float a = lattn_get_(data, x->type, at), b = lattn_get_(data, x->type, at + other);
        lattn_turn_pair_(&a, &b, angles[f], angles[pairs + f]);
        lost |= lattn_put_(data, x->type, at, a);
        lost |= lattn_put_(data, x->type, at + other, b);
      }
  }
  return lost;
}

LATTN_API lattn_status lattn_rotate(const lattn_rotary *rotary, lattn_tensor x,
                                    int64_t first_position, const int64_t *positions) {
  static const lattn_names_ name = LATTN_NAMES_("x");
  lattn_rotary r;
  lattn_turning_ t;
  lattn_fpenv_ saved;
  lattn_status s;
  int lost;
  if (!rotary) return LATTN_E_NULL;
  s = lattn_import_(&r, sizeof r, sizeof r, rotary);
  if (!s) s = lattn_view_(&x, 1, 1, &name, 0);
  if (!s) s = lattn_check_rotary_(&r, x.dim, 0);
  if (s) return s;
  t.layout = r.layout;
  t.first_dim = r.first_dim;
  t.n_dims = r.n_dims;
  t.magnitude = r.magnitude;
  t.turns = r.turns;
  lattn_fpenv_enter_(&saved);
  lost = lattn_turn_tensor_(&x, &t, first_position, positions);
  lattn_fpenv_leave_(&saved);
  return lost ? LATTN_OVERFLOWED : LATTN_OK;
}

/* ---- the library itself ---- */

LATTN_API const char *lattn_status_text(lattn_status status) {
  switch (status) {
#define LATTN_STATUS_TEXT_(name, number, text) \
  case number: return text;
    LATTN_STATUS_LIST(LATTN_STATUS_TEXT_)
#undef LATTN_STATUS_TEXT_
    default: return "unknown status";
  }
}

LATTN_API int32_t lattn_version_number(void) { return LATTN_VERSION_NUMBER; }
LATTN_API const char *lattn_simd_name(void) { return LATTN_SIMD_NAME_; }
LATTN_API int32_t lattn_inexact_supported(int32_t inexact) {
  return LATTN_HAS_PAIRS_ && inexact == LATTN_INEXACT_BF16;
}

LATTN_API void lattn_parallel_openmp(void *pool, int32_t n_tasks,
                                     void (*task)(void *context, int32_t index), void *context) {
  (void)pool;
#if LONGATTN_OPENMP
#pragma omp parallel for num_threads(n_tasks) schedule(static, 1)
#endif
  for (int32_t i = 0; i < n_tasks; i++) task(context, i);
}

/* ==== §13 clean up, licence ================================================================== */

#if defined(__clang__)
#pragma clang diagnostic pop
#elif defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#undef LATTN_API
#undef LATTN_BEST_SIMD_
#undef LATTN_HAS_FMA_
#undef LATTN_HAS_FMA64_
#undef LATTN_SWEEP_VECTORS_
#undef LATTN_SHARED_TOKENS_
#undef LATTN_FOLD_AT_
#undef LATTN_MAX_COUNT_
#undef LATTN_LEAST_DECAY_
#undef LATTN_HAS_MXCSR_
#undef LATTN_HAS_ATOMIC_
#undef LATTN_BIG_ENDIAN_
#undef LATTN_DOT_BIAS_
#undef LATTN_HAS_PAIRS_
#undef LATTN_FN_
#undef LATTN_NOINLINE_
#undef LATTN_INLINE_
#undef LATTN_MEMCPY_
#undef LATTN_MEMSET_
#undef LATTN_PREFETCH_
#undef LATTN_UNROLL_
#undef LATTN_INFINITY_
#undef LATTN_NAN_
#undef LATTN_SIMD_NAME_
#undef LATTN_TILE_PANELS_
#undef LATTN_EXPS_
#undef LATTN_UNROLL_KEYS_
#undef LATTN_REDUCE_ROWS_
#undef LATTN_THIN_VECTORS_
#undef LATTN_INT_ROWS_
#undef LATTN_EACH_ROWS_
#undef LATTN_EACH_TYPE_
#undef LATTN_MAX_POSITION_
#undef LATTN_NAMES_

#endif /* LONGATTN_IMPLEMENTED_ */
#endif /* LONGATTN_IMPLEMENTATION */

/* MIT License

   Copyright (c) 2026 the longattn authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
   associated documentation files (the "Software"), to deal in the Software without restriction,
   including without limitation the rights to use, copy, modify, merge, publish, distribute,
   sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
   furnished to do so, subject to the following conditions:

   The above copyright notice and this permission notice shall be included in all copies or
   substantial portions of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING
   BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
   NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM,
   DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
   OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE. */
