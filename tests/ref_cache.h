/* ref_cache.h - a cache as tests see it: a configuration with the arrays it points to, the list of
 * tokens that a cache stands for, and what the float64 reference says of any row of it.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h, longattn.h and ref.h. */
#ifndef REF_CACHE_H
#define REF_CACHE_H

enum { CACHE_HEADS = 16, CACHE_KV_HEADS = 4, CACHE_DIMS = 64 };

/* A configuration and everything it points to. Do not copy: call setup_link after filling it. */
typedef struct setup {
  lattn_cache_config config;
  lattn_head heads[CACHE_KV_HEADS];
  lattn_rotary rotary;
  uint64_t turns[CACHE_DIMS / 2];
  float slopes[CACHE_HEADS], sinks[CACHE_HEADS];
  lattn_fault fault;
} setup;

static inline int64_t setup_heads(const setup *s) {
  return s->config.n_heads ? s->config.n_heads : s->config.n_kv_heads;
}
static inline int64_t setup_value_dim(const setup *s) {
  return s->config.value_dim ? s->config.value_dim : s->config.key_dim;
}
static inline int64_t setup_value_heads(const setup *s) {
  return s->config.n_value_heads ? s->config.n_value_heads : s->config.n_kv_heads;
}
/* KV heads: bundles, where keys and values have different numbers of heads. */
static inline int64_t setup_bundles(const setup *s) {
  int64_t a = s->config.n_kv_heads, b = setup_value_heads(s);
  while (b) {
    int64_t rest = a % b;
    a = b;
    b = rest;
  }
  return a;
}
/* Is the head one whose tokens marks choose? */
static inline int setup_chosen(const lattn_head *h) {
  return h->policy == LATTN_HEAD_SNAP || h->policy == LATTN_HEAD_HEAVY;
}
static inline int64_t setup_max_append(const setup *s) {
  return s->config.max_append ? s->config.max_append : 512;
}

/* All heads full, float32, no options. */
static inline void setup_init(setup *s, int32_t n_heads, int32_t n_kv_heads, int32_t key_dim,
                              int32_t value_dim, int64_t capacity) {
  memset(s, 0, sizeof *s);
  s->config.size = sizeof s->config;
  s->config.head_size = sizeof *s->heads;
  s->config.n_heads = n_heads;
  s->config.n_kv_heads = n_kv_heads;
  s->config.key_dim = key_dim;
  s->config.value_dim = value_dim;
  s->config.capacity = capacity;
  s->config.heads = s->heads;
  s->config.fault = &s->fault;
}

static inline void setup_stream(setup *s, int head, int64_t sinks, int64_t window, int64_t slack,
                                int32_t positions) {
  lattn_head h = {.policy = LATTN_HEAD_STREAMING,
                  .positions = positions,
                  .sinks = sinks,
                  .window = window,
                  .slack = slack};
  s->heads[head] = h;
}

/* Rotates dims first ... first + n_dims - 1, plain frequencies of base 10000. */
static inline void setup_rotate(setup *s, int32_t layout, int32_t first, int32_t n_dims) {
  lattn_rotary_scaling scaling;
  memset(&scaling, 0, sizeof scaling);
  scaling.size = sizeof scaling;
  scaling.n_dims = n_dims;
  s->rotary.size = sizeof s->rotary;
  s->rotary.layout = layout;
  s->rotary.first_dim = first;
  s->rotary.n_dims = n_dims;
  s->rotary.turns = s->turns;
  s->config.rotary = &s->rotary;
  CHECK_STATUS(lattn_rotary_turns(s->turns, &scaling), LATTN_OK);
}

static inline void setup_alibi(setup *s) {
  for (int h = 0; h < CACHE_HEADS; h++) s->slopes[h] = ldexpf(1, -(h + 1) / 2 - 1);
  s->config.alibi_slopes = s->slopes;
}

static inline void setup_sinks(setup *s) {
  for (int h = 0; h < CACHE_HEADS; h++) s->sinks[h] = (float)(h % 5) - 2;
  s->config.sink_logits = s->sinks;
}

/* Sigmoid attention in place of softmax, which alone has learned sinks. */
static inline void setup_sigmoid(setup *s, float bias) {
  s->config.weighting = LATTN_SIGMOID;
  s->config.sigmoid_bias = bias;
  s->config.sink_logits = NULL;
}

/* Whether streaming head g has its sinks at in-cache positions (DESIGN 5: the default of a cache
   that rotates or has ALiBi). */
static inline int setup_in_cache(const setup *s, int64_t g) {
  int32_t positions = s->heads[g].positions;
  if (s->heads[g].policy != LATTN_HEAD_STREAMING) return 0;
  if (positions) return positions == LATTN_POSITIONS_IN_CACHE;
  return s->config.rotary || s->config.alibi_slopes;
}

/* The window that a head has after a mark at so many tokens (-1: none). */
static inline int64_t setup_window(const lattn_head *h, int64_t mark) {
  int64_t part = h->window_divisor && mark > 0 ? mark / h->window_divisor : 0;
  return part > h->window ? part : h->window;
}

/* Whether the head has a window (by then). */
static inline int setup_streams(const lattn_head *h, int64_t mark) {
  return h->policy != LATTN_HEAD_FULL && !setup_chosen(h) && (!h->mark || mark >= 0);
}

/* Whether a head keeps sums of what it drops, or waits for marks: then nothing can be removed. */
static inline int setup_sums(const setup *s) {
  int sums = 0;
  for (int g = 0; g < s->config.n_kv_heads; g++)
    sums |= s->heads[g].policy == LATTN_HEAD_COMPENSATED ||
            (s->heads[g].flags & (LATTN_HEAD_LOST | LATTN_HEAD_VARIANCE)) != 0;
  return sums;
}
static inline int setup_waits(const setup *s) {
  int waits = 0;
  for (int g = 0; g < s->config.n_kv_heads; g++)
    waits |= s->heads[g].mark || setup_chosen(&s->heads[g]);
  return waits;
}

/* Streaming becomes compensated: absolute positions. */
static inline void setup_compensate(setup *s, int head, int32_t flags) {
  s->heads[head].policy = LATTN_HEAD_COMPENSATED;
  s->heads[head].positions = LATTN_POSITIONS_DEFAULT;
  s->heads[head].flags = flags;
}

/* It points into itself: so does the copy. */
static inline void setup_copy(setup *to, const setup *from) {
  *to = *from;
  to->config.heads = to->heads;
  to->config.fault = &to->fault;
  to->rotary.turns = to->turns;
  if (from->config.rotary) to->config.rotary = &to->rotary;
  if (from->config.alibi_slopes) to->config.alibi_slopes = to->slopes;
  if (from->config.sink_logits) to->config.sink_logits = to->sinks;
}

/* ---- statistics ---- */

static inline lattn_pool_stats pool_stats(const lattn_pool *pool) {
  lattn_pool_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_pool_stats_get(pool, &stats), LATTN_OK);
  return stats;
}

static inline lattn_cache_stats cache_stats(const lattn_cache *cache) {
  lattn_cache_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_cache_stats_get(cache, &stats), LATTN_OK);
  return stats;
}

static inline lattn_cache_head_stats head_stats(const lattn_cache *cache, int64_t g) {
  lattn_cache_head_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_cache_head_stats_get(cache, (int32_t)g, &stats), LATTN_OK);
  return stats;
}

/* ---- a file in memory ---- */

typedef struct memory_file {
  unsigned char *bytes;
  size_t n, room, at; /* at: of the next byte that is read */
} memory_file;

static inline int32_t memory_file_write(void *user, const void *data, size_t bytes) {
  memory_file *f = (memory_file *)user;
  if (f->n + bytes > f->room) {
    f->room = 2 * (f->n + bytes);
    f->bytes = (unsigned char *)realloc(f->bytes, f->room);
    if (!f->bytes) exit(1);
  }
  memcpy(f->bytes + f->n, data, bytes);
  f->n += bytes;
  return 0;
}

static inline int32_t memory_file_read(void *user, void *data, size_t bytes) {
  memory_file *f = (memory_file *)user;
  if (bytes > f->n - f->at) return 1;
  memcpy(data, f->bytes + f->at, bytes);
  f->at += bytes;
  return 0;
}

static inline void memory_file_save(memory_file *f, const lattn_cache *cache) {
  uint64_t bytes = 0;
  f->n = f->at = 0;
  CHECK_STATUS(lattn_cache_save(cache, memory_file_write, f, &bytes), LATTN_OK);
  CHECK_I64((int64_t)bytes, (int64_t)f->n);
}

/* ---- the list of tokens that a cache stands for ---- */

typedef struct token_list {
  float *q, *k, *v; /* [capacity][heads][dim] */
  int64_t n, capacity;
  int64_t q_row, k_row, v_row; /* floats a token */
  int64_t *slots; /* NULL = positions, or [capacity]: where the tokens lie, after removals */
} token_list;

static inline token_list tokens_new(const setup *s, int64_t capacity) {
  token_list t = {NULL, NULL, NULL, 0, capacity, 0, 0, 0, NULL};
  t.q_row = setup_heads(s) * s->config.key_dim;
  t.k_row = s->config.n_kv_heads * s->config.key_dim;
  t.v_row = setup_value_heads(s) * setup_value_dim(s);
  t.q = (float *)ref_memory(capacity * t.q_row, sizeof(float));
  t.k = (float *)ref_memory(capacity * t.k_row, sizeof(float));
  t.v = (float *)ref_memory(capacity * t.v_row, sizeof(float));
  return t;
}

static inline void tokens_free(token_list *t) {
  free(t->q);
  free(t->k);
  free(t->v);
  free(t->slots);
}

/* Makes `count` new tokens behind the n that there are; does not change n. */
static inline void tokens_make(token_list *t, int64_t count, test_rng *rng) {
  float *q = t->q + t->n * t->q_row, *k = t->k + t->n * t->k_row, *v = t->v + t->n * t->v_row;
  for (int64_t i = 0; i < count * t->q_row; i++) q[i] = rng_normal(rng);
  for (int64_t i = 0; i < count * t->k_row; i++) k[i] = rng_normal(rng);
  for (int64_t i = 0; i < count * t->v_row; i++) v[i] = rng_normal(rng);
}

static inline lattn_tensor tokens_q(const token_list *t, const setup *s, int64_t first, int64_t n) {
  return tensor_of(t->q + first * t->q_row, LATTN_F32, n, setup_heads(s), s->config.key_dim);
}
static inline lattn_tensor tokens_k(const token_list *t, const setup *s, int64_t first, int64_t n) {
  return tensor_of(t->k + first * t->k_row, LATTN_F32, n, s->config.n_kv_heads, s->config.key_dim);
}
static inline lattn_tensor tokens_v(const token_list *t, const setup *s, int64_t first, int64_t n) {
  return tensor_of(t->v + first * t->v_row, LATTN_F32, n, setup_value_heads(s), setup_value_dim(s));
}

/* ---- the reference of a cache ---- */

static inline float ref_rounded(int32_t type, float x) {
  unsigned char element[4];
  element_set(element, type, 0, x);
  return element_get(element, type, 0);
}

/* What 16-bit storage makes of rotated keys: the rotation in float32 (lattn_rotate: tested
   alone, and shown to give the cache's own bits in test_absolute_mode), each number to nearest,
   and turned back in double for a reference that rotates for itself. That last number is a float
   again: one u of the 16u that ref.h allows for the rotation, which is now the query's alone. Keys
   are stored turned by their slots. */
static inline void ref_store_keys(ref_call *c, const setup *s) {
  int32_t type = s->config.key_type;
  int64_t row = c->kv_heads * c->key_dim;
  double x[CACHE_DIMS];
  lattn_rotary back;
  if (s->config.rotary) {
    lattn_tensor k = tensor_of(c->k, LATTN_F32, c->n_keys, c->kv_heads, c->key_dim);
    CHECK_STATUS(lattn_rotate(s->config.rotary, k, 0, c->slots), LATTN_OK);
  }
  for (int64_t i = 0; i < c->n_keys * row; i++) c->k[i] = ref_rounded(type, c->k[i]);
  if (!s->config.rotary) return;
  back = s->rotary;
  back.magnitude = s->rotary.magnitude != 0 ? 1 / s->rotary.magnitude : 0;
  for (int64_t i = 0; i < c->n_keys * c->kv_heads; i++) {
    float *k = c->k + i * c->key_dim;
    for (int64_t d = 0; d < c->key_dim; d++) x[d] = (double)k[d];
    int64_t token = i / c->kv_heads;
    ref_rotate(x, &back, -(c->slots ? c->slots[token] : token), NULL);
    for (int64_t d = 0; d < c->key_dim; d++) k[d] = (float)x[d];
  }
}

/* The reference of all tokens of the list, which must outlive it; close with ref_close. Then
   ref_cache_attend. Removed tokens are not in the list: positions close up over them. */
static inline void ref_cache_open(ref_call *c, const setup *s, const token_list *t) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.mask = LATTN_CAUSAL;
  a.scale = s->config.scale;
  a.softcap = s->config.softcap;
  a.alibi_slopes = s->config.alibi_slopes;
  a.sink_logits = s->config.sink_logits;
  a.weighting = s->config.weighting;
  a.sigmoid_bias = s->config.sigmoid_bias;
  ref_open(c, &a, tokens_q(t, s, 0, t->n), tokens_k(t, s, 0, t->n), tokens_v(t, s, 0, t->n),
           LATTN_F32);
  c->rotary = s->config.rotary;
  c->slots = t->slots;
  if (s->config.key_type > LATTN_F32) ref_store_keys(c, s);
  for (int64_t i = 0; i < t->n * t->v_row; i++)
    c->v[i] = ref_rounded(s->config.value_type, c->v[i]);
}

/* A compensated head's key for the tokens from ... end - 1 that the row no longer sees (heads.md
   3.3): their mean as stored, counted as often. What the score may be off: as any key's (the mean
   of what the keys' rotations are off is no more than the largest), u for the mean made a float,
   u |term| for the mean distance and for its product; then n * 2^-53 for sums in double, against
   the mean of |k|, or of k^2 (with variances: 16u of their term more, each dim's being a difference
   that is rounded to float), ln within 4u, and u for each sum. The mean value is rounded to float
   by us and by the cache: within the roundings that ref.h allows for one more level of the tree. */
static inline void ref_compensate(ref_call *c, const setup *s, int64_t row, int64_t head,
                                  int64_t from, int64_t end) {
  int64_t g = head / (c->heads / c->kv_heads), dk = c->key_dim, dv = c->value_dim;
  double n = (double)(end - from), scale = ref_scale(c), cap = (double)c->options.softcap;
  double dot = 0, size = 0, all = 0, far = 0, spread = 0, squares = 0, score;
  double q[CACHE_DIMS], y[CACHE_DIMS];
  double mean[CACHE_DIMS] = {0}, square[CACHE_DIMS] = {0}, absolute[CACHE_DIMS] = {0};
  double value[CACHE_DIMS] = {0};
  for (int64_t d = 0; d < dk; d++) q[d] = (double)c->q[(row * c->heads + head) * dk + d];
  if (c->rotary) ref_rotate(q, c->rotary, row, NULL);
  for (int64_t j = from; j < end; j++) {
    double length = 0;
    for (int64_t d = 0; d < dk; d++) y[d] = (double)c->k[(j * c->kv_heads + g) * dk + d];
    if (c->rotary) ref_rotate(y, c->rotary, j, NULL);
    for (int64_t d = 0; d < dk; d++) {
      mean[d] += y[d] / n;
      square[d] += y[d] * y[d] / n;
      absolute[d] += fabs(y[d]) / n;
      length += y[d] * y[d];
    }
    far = fmax(far, length);
    for (int64_t d = 0; d < dv; d++) value[d] += (double)c->v[(j * c->kv_heads + g) * dv + d] / n;
  }
  for (int64_t d = 0; d < dk; d++) {
    double t = scale * q[d];
    dot += q[d] * mean[d];
    size += fabs(q[d]) * absolute[d];
    all += q[d] * q[d];
    spread += t * t * (square[d] - mean[d] * mean[d]) / 2;
    squares += t * t * square[d] / 2;
  }
  score = scale * dot;
  c->mean_error = ((double)(dk + 5) * REF_U + n * 0x1p-52) * fabs(scale) * size + 0x1p-100;
  if (c->rotary) c->mean_error += 16 * REF_U * fabs(scale) * sqrt(all * far);
  if (cap > 0) {
    score = cap * tanh(score / cap);
    c->mean_error += 8 * REF_U * fabs(score);
  }
  if (c->options.alibi_slopes) {
    double term =
        (double)c->options.alibi_slopes[head] * ((double)row - (double)(from + end - 1) / 2);
    score -= term;
    c->mean_error += 2 * REF_U * (fabs(term) + fabs(score));
  }
  if (s->heads[g].flags & LATTN_HEAD_VARIANCE) {
    score += spread;
    c->mean_error += 16 * REF_U * spread + (n + 8) * 0x1p-50 * squares + REF_U * fabs(score);
  }
  score += log(n);
  c->mean_error += REF_U * (4 * log(n) + 2 * fabs(score));
  c->mean_score = score;
  c->has_mean = 1;
  for (int64_t d = 0; d < dv; d++) c->v[(c->n_keys * c->kv_heads + g) * dv + d] = (float)value[d];
}

/* The row as the policy of its KV head has it. `mark`: the number of tokens there were when the
   prompt ended; -1: it has not. */
static inline void ref_cache_attend_marked(ref_call *c, const setup *s, int64_t row, int64_t head,
                                           int64_t mark, ref_row *r) {
  const lattn_head *h = &s->heads[head / (c->heads / c->kv_heads)];
  int streams = setup_streams(h, row >= mark ? mark : -1);
  int64_t window = setup_window(h, mark);
  c->options.sinks = streams ? h->sinks : 0;
  c->options.window = streams ? window : 0;
  c->in_cache = streams && setup_in_cache(s, h - s->heads);
  c->has_mean = 0;
  if (streams && h->policy == LATTN_HEAD_COMPENSATED && row - window >= h->sinks)
    ref_compensate(c, s, row, head, h->sinks, row - window + 1);
  ref_attend(c, row, head, r);
  c->has_mean = 0;
}

static inline void ref_cache_attend(ref_call *c, const setup *s, int64_t row, int64_t head,
                                    ref_row *r) {
  ref_cache_attend_marked(c, s, row, head, -1, r);
}

/* StreamingLLM as its authors run it: the cache keeps unrotated keys, the sinks and the newest
   tokens; each step rotates all of them by their place in the cache, the newest query by the
   last place. So the reference is plain causal attention over that short list. `t` holds the
   tokens by place. */
static inline void ref_streaming_open(ref_call *c, const setup *s, const token_list *t) {
  lattn_attn a;
  memset(&a, 0, sizeof a);
  a.mask = LATTN_CAUSAL;
  a.alibi_slopes = s->config.alibi_slopes;
  a.sink_logits = s->config.sink_logits;
  ref_open(c, &a, tokens_q(t, s, t->n - 1, 1), tokens_k(t, s, 0, t->n), tokens_v(t, s, 0, t->n),
           LATTN_F32);
  c->rotary = s->config.rotary;
}

#endif /* REF_CACHE_H */
