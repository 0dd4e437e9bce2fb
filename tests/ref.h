/* ref.h - attention in double precision, from the maths, one row of one head at a time, with a
 * bound on the error that float32 arithmetic may make. Slow, plain, written without the kernel in
 * view.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h and longattn.h.

       ref_call c;
       ref_open(&c, &options, q, k, v, out.type);       copies the inputs (so out may be q)
       ... c.score = my_score; c.rotary = &rotary; ...  what a view cannot say
       ref_row r = ref_row_new(&c);
       ref_attend(&c, row, head, &r);                   r.out, r.lse, r.bound, r.lse_bound
       CHECK(ref_ratio(out[d], r.out[d], r.bound[d]) <= 1);
       ref_row_free(&r); ref_close(&c);

   THE BOUND (USERS.md 4.2 with the summation of DESIGN.md 3; u = 2^-24). Let s_j be the exact score
   of visible key j, m their maximum, p_j = exp(s_j - m), P = sum p_j, o = sum p_j v_j / P.

   Scores. scale * q_d is rounded once (and 1/sqrt(dk) once or twice), then a chain of dk fused
   multiply-adds: |ds| <= gamma(dk + 3) * |scale| * sum |q_d k_d|. Each further step adds its
   own rounding: softcap 8u|s| (division, tanh within 3 ulp, product; it is 1-Lipschitz, so what
   comes in does not grow); ALiBi u|slope * distance| + u|s|; either bias u|s|; the callback
   4u(|s in| + |s out|). Rotation, where the reference rotates: 16u on the largest that |q'_d
   k'_d| can be; storage as f16 or bf16: half an ulp of that type on the same.

   Weights. The weight of key j is exp of a rounded difference, multiplied by one exp of a
   rounded difference of maxima for every fold and every level of the tree above it. The
   differences add up to s_j - m in all, so their roundings are within u|s_j - m| (twice, for
   second order); there are at most F = blocks - 1 (at most T/B - 1 = 15) folds and L =
   ceil(log2(segments)) levels, + 1 with a learned sink, each within eps_exp = 2 ulp = 4u. So
   the computed weight is p_j exp(+-e_j) with
       e_j = |ds_j| + 2u|s_j - m| + (1 + F + L) 4u,
   or is off by 2^-126 where it was flushed. With D_j = p_j (exp(e_j) - 1) + 2^-126, and
   exactly,
       |do| <= sum D_j |v_j - o| / sum p_j exp(-e_j)
   which is at most the published 2 (max|ds| + eps) * sum p|v| / P, to first order. It is capped
   by 2 max|v_j|, for o lies among the v_j.

   Sums. The value sum is one chain over a block's visible keys (b <= min(128, visible)), then F
   folds and L merges, one rounding each: (b + F + L + 1) u sum p|v| / P. The denominator is a
   tree of 16-lane vectors: (b/16 + 4 + F + L) u, and the division and the gate round once each:
   together
       (b + b/16 + 2F + 2L + 7) u sum p|v| / P,
   within the published (B + T/B + 2 ceil(log2(n/T)) + c) u. Underflow adds visible * 2^-149.
   Last comes half an ulp of the output's type.

   In bfloat16 (LATTN_INEXACT_BF16), after ref_bf16. The reference is given what the call takes its
   inputs as: scaled queries, keys and values rounded to nearest even, so that only what happens to
   them is left to bound: weights are rounded, each by a factor within 1 +- 2^-8, which adds 2^-8 +
   2^-15 to every e_j (the same weights are summed for the denominator); hardware may round a sum
   of two products in its own way, within twice what a multiply-add may do, and products and inputs
   below 2^-126 count as 0. Queries and keys that the reference rotates are not rounded: that, 2^-8
   each, adds 2^-7 + 2^-15 of the largest that sum |q'_d k'_d| can be to |ds|.

   Sigmoid. w_j = 1 / (1 + exp(-x_j)), x_j = s_j + b: the sum rounds once, |dx| <= |ds| + u|x|. Of
   e = exp(-|x|), within eps_exp, w is 1 / (1 + e) or e / (1 + e), so what the exp is off enters it
   at most as it is; two more roundings make 6u, 7u for second order. So
       D_j = max(w(x + |dx|) (1 + 7u) - w, w - w(x - |dx|) (1 - 7u)) + 2^-126.
   There is no maximum, no denominator, and exp(0) = 1 exactly at every fold and merge: o = sum w v,
       |do| <= sum D_j |v_j| + (b + F + L + 2) u sum (w_j + D_j) |v_j|,
   the last for the gate and for second order. In bfloat16 the 7u become 7u + 2^-8 + 2^-15.

   The extra key (options.extra_key) is one more score, of a query rotated at its own position (16u
   on the largest that |q'_d k_d| can be) and softcapped; it is merged last: one more level. In
   bfloat16 it meets the query as it was, not rounded: 2^-8 of sum |q_d k_d| more.

   lse. ln(P) lies between ln(sum p_j exp(-e_j)) and ln(P + sum D_j), plus the roundings of the
   sum, the logarithm (4u |ln P|) and the last addition (u|lse|). */
#ifndef REF_H
#define REF_H

#define REF_U 0x1p-24
#define REF_INFINITY ((double)INFINITY)

enum { REF_BLOCK = 128, REF_SEGMENT = 2048, REF_TABLE = 8192 };
/* Keys besides those of k, whose values are in v behind the others: of compensation, and extra. */
enum { REF_MEAN, REF_EXTRA, REF_MORE };

/* The double form of a lattn_score_function, one key at a time. */
typedef double (*ref_score)(void *user, int64_t sequence, int64_t row, int64_t query, int32_t head,
                            int64_t key, double s);

typedef struct ref_call {
  lattn_attn options;
  float *q, *k, *v; /* [token][head][dim] */
  int64_t n_queries, n_keys, heads, kv_heads, key_dim, value_dim;
  int32_t out_type;
  ref_score score; /* NULL, or the callback; its slope in s is at most score_slope (0 = 1) */
  void *score_user;
  double score_slope;
  const lattn_rotary *rotary; /* NULL, or q and k are rotated here, at their positions */
  int32_t in_cache; /* positions inside the cache: a streaming head of options.sinks, .window */
  int32_t key_type, value_type; /* storage that rounds keys (after rotation) and values; 0 = f32 */
  const int64_t *slots; /* NULL = absolute indices, or [n_keys]: where keys lie in the blocks */
  int32_t bf16;         /* multiplied in bfloat16: ref_bf16 */
  int32_t has_mean;     /* one more key, of this score and error, its value in v */
  double mean_score, mean_error;
  double *table; /* cos, sin of positions below REF_TABLE, made when needed */
  double *scores, *errors, *weights, *query, *key, *absolute; /* of one row */
  int64_t *visible;                                           /* keys that the row sees, rising */
} ref_call;

typedef struct ref_row {
  double *out, *bound; /* [value_dim] */
  double lse, lse_bound;
  int64_t n_visible;
  int is_empty; /* saw nothing, or only scores of -infinity */
} ref_row;

/* Where a row stands. */
typedef struct ref_place {
  int64_t sequence, row;      /* row within the sequence */
  int64_t first_key, end_key; /* keys of the sequence, as indices of k */
  int64_t key_position;       /* absolute index of first_key */
  int64_t causal;             /* last absolute key that the mask allows */
  int64_t position;           /* p_i */
} ref_place;

static inline void *ref_memory(int64_t n, size_t bytes) {
  void *p = calloc((size_t)(n > 0 ? n : 1), bytes);
  if (!p) {
    printf("out of memory\n");
    exit(1);
  }
  return p;
}

/* With room for so many tokens more. */
static inline float *ref_copy(const lattn_tensor *t, int64_t more) {
  float *x = (float *)ref_memory((t->n_tokens + more) * t->n_heads * t->dim, sizeof *x), *to = x;
  for (int64_t i = 0; i < t->n_tokens; i++)
    for (int64_t h = 0; h < t->n_heads; h++) {
      int64_t from = tensor_index(t, i, h);
      for (int64_t d = 0; d < t->dim; d++) *to++ = element_get(t->data, t->type, from + d);
    }
  return x;
}

/* options NULL = defaults. */
static inline void ref_open(ref_call *c, const lattn_attn *options, lattn_tensor q, lattn_tensor k,
                            lattn_tensor v, int32_t out_type) {
  memset(c, 0, sizeof *c);
  if (options) c->options = *options;
  c->q = ref_copy(&q, 0);
  c->k = ref_copy(&k, 0);
  c->v = ref_copy(&v, REF_MORE);
  c->n_queries = q.n_tokens;
  c->n_keys = k.n_tokens;
  c->heads = q.n_heads;
  c->kv_heads = k.n_heads;
  c->key_dim = q.dim;
  c->value_dim = v.dim;
  c->out_type = out_type;
  c->scores = (double *)ref_memory(c->n_keys + REF_MORE, sizeof(double));
  c->errors = (double *)ref_memory(c->n_keys + REF_MORE, sizeof(double));
  c->weights = (double *)ref_memory(c->n_keys + REF_MORE, sizeof(double));
  c->visible = (int64_t *)ref_memory(c->n_keys + REF_MORE, sizeof(int64_t));
  c->query = (double *)ref_memory(c->key_dim, sizeof(double));
  c->key = (double *)ref_memory(c->key_dim, sizeof(double));
  c->absolute = (double *)ref_memory(2 * c->value_dim, sizeof(double));
}

/* The call works in bfloat16: all that it does not rotate is rounded. Call it last. */
static inline void ref_bf16(ref_call *c) {
  float scale = c->options.scale != 0 ? c->options.scale : (float)(1 / sqrt((double)c->key_dim));
  c->bf16 = 1;
  for (int64_t i = 0; i < c->n_keys * c->kv_heads * c->value_dim; i++)
    c->v[i] = f32_of_bf16(bf16_of_f32(c->v[i]));
  if (c->rotary) return;
  for (int64_t i = 0; i < c->n_keys * c->kv_heads * c->key_dim; i++)
    c->k[i] = f32_of_bf16(bf16_of_f32(c->k[i]));
  for (int64_t i = 0; i < c->n_queries * c->heads * c->key_dim; i++)
    c->q[i] = f32_of_bf16(bf16_of_f32(c->q[i] * scale));
  c->options.scale = 1;
}

static inline void ref_close(ref_call *c) {
  free(c->q);
  free(c->k);
  free(c->v);
  free(c->scores);
  free(c->errors);
  free(c->weights);
  free(c->visible);
  free(c->query);
  free(c->key);
  free(c->absolute);
  free(c->table);
}

static inline ref_row ref_row_new(const ref_call *c) {
  ref_row r = {NULL, NULL, 0, 0, 0, 0};
  r.out = (double *)ref_memory(c->value_dim, sizeof(double));
  r.bound = (double *)ref_memory(c->value_dim, sizeof(double));
  return r;
}

static inline void ref_row_free(ref_row *r) {
  free(r->out);
  free(r->bound);
}

/* Half an ulp of `type` at x, at least that of its smallest number. */
static inline double ref_half_ulp(int32_t type, double x) {
  x = fabs(x);
  if (type == LATTN_F16) return fmax(x * 0x1p-11, 0x1p-25);
  if (type == LATTN_BF16) return fmax(x * 0x1p-8, 0x1p-134);
  return fmax(x * 0x1p-24, 0x1p-150);
}

/* ---- rotary positions ---- */

static inline void ref_angle(const lattn_rotary *rotary, int64_t position, int64_t f,
                             double *cosine, double *sine) {
  uint64_t turn = rotary->turns[f] * (uint64_t)position; /* modulo one turn: exact */
  double angle = (double)(int64_t)turn * (0x1p-64 * 6.283185307179586476925);
  *cosine = cos(angle);
  *sine = sin(angle);
}

/* Rotates one row in place. table: NULL, or cos and sin of [REF_TABLE][n_dims / 2]. */
static inline void ref_rotate(double *x, const lattn_rotary *rotary, int64_t position,
                              const double *table) {
  int64_t half = rotary->n_dims / 2;
  double magnitude = rotary->magnitude != 0 ? (double)rotary->magnitude : 1;
  for (int64_t f = 0; f < half; f++) {
    int interleaved = rotary->layout == LATTN_ROTARY_INTERLEAVED;
    double *a = x + rotary->first_dim + (interleaved ? 2 * f : f);
    double *b = a + (interleaved ? 1 : half);
    double c, s, x0 = *a, x1 = *b;
    if (table && position >= 0 && position < REF_TABLE) {
      c = table[(position * half + f) * 2];
      s = table[(position * half + f) * 2 + 1];
    } else {
      ref_angle(rotary, position, f, &c, &s);
    }
    *a = (x0 * c - x1 * s) * magnitude;
    *b = (x0 * s + x1 * c) * magnitude;
  }
}

static inline void ref_make_table(ref_call *c) {
  int64_t half = c->rotary->n_dims / 2;
  c->table = (double *)ref_memory(REF_TABLE * half * 2, sizeof(double));
  for (int64_t p = 0; p < REF_TABLE; p++)
    for (int64_t f = 0; f < half; f++) {
      double *at = c->table + (p * half + f) * 2;
      ref_angle(c->rotary, p, f, at, at + 1);
    }
}

/* Position of a token as a streaming head sees it, inside its cache: tokens are renumbered without
   the evicted ones. Query and keys alike. */
static inline int64_t ref_cache_position(const ref_call *c, int64_t query, int64_t token) {
  int64_t sinks = c->options.sinks, length = sinks + c->options.window;
  if (!c->in_cache || query < length || token < sinks) return token;
  return token - (query - (length - 1));
}

/* ---- one row ---- */

static inline ref_place ref_find(const ref_call *c, int64_t row) {
  const lattn_attn *a = &c->options;
  ref_place p = {0, row, 0, c->n_keys, a->key_position, INT64_MAX, 0};
  int64_t n_queries = c->n_queries, first = a->query_position;
  if (a->n_sequences) {
    while (row >= a->query_starts[p.sequence + 1]) p.sequence++;
    p.row = row - a->query_starts[p.sequence];
    n_queries = a->query_starts[p.sequence + 1] - a->query_starts[p.sequence];
    p.first_key = a->key_starts[p.sequence];
    p.end_key = a->key_starts[p.sequence + 1];
    if (a->sequence_query_positions) first = a->sequence_query_positions[p.sequence];
    if (a->sequence_key_positions) p.key_position = a->sequence_key_positions[p.sequence];
  }
  if (a->mask == LATTN_CAUSAL) first = p.key_position + p.end_key - p.first_key - n_queries;
  p.position = first + p.row;
  if (a->mask != LATTN_FULL) p.causal = p.position;
  if (a->query_positions) p.position = a->query_positions[row];
  return p;
}

/* Whether the row sees key t (an index of k), which is absolute key `index` at `position`. */
static inline int ref_sees(const ref_call *c, const ref_place *p, int64_t row, int64_t index,
                           int64_t position) {
  const lattn_attn *a = &c->options;
  if (index > p->causal) return 0;
  if (a->visible_from && index < a->visible_from[row]) return 0;
  if (a->visible_to && index >= a->visible_to[row]) return 0;
  if (!a->window || index < a->sinks) return 1;
  return p->position - position < a->window && position - p->position <= a->ahead;
}

/* q . k; *magnitude gets (no less than) sum |q_d k_d|, *error what rotation and storage may do. */
static inline double ref_dot(ref_call *c, const ref_place *p, const float *k, int64_t position,
                             double *magnitude, double *error) {
  double sum[4] = {0, 0, 0, 0}, absolute[4] = {0, 0, 0, 0}, storage = 0;
  const double *x = c->query;
  int64_t n = c->key_dim, d;
  *error = 0;
  if (c->rotary || c->key_type > LATTN_F32) {
    double *y = c->key, total = 0, all = 0, small = 0, large = 0;
    for (d = 0; d < n; d++) y[d] = (double)k[d];
    if (c->rotary) ref_rotate(y, c->rotary, ref_cache_position(c, p->position, position), c->table);
    for (d = 0; d < n; d++) {
      total += x[d] * y[d];
      all += x[d] * x[d];
      large += y[d] * y[d];
      small += fabs(x[d]);
    }
    *magnitude = sqrt(all * large); /* Cauchy and Schwarz: also of any rotation of the pairs */
    storage = c->key_type > LATTN_F32 ? ref_half_ulp(c->key_type, 1) * *magnitude : 0;
    if (c->key_type == LATTN_F16) storage += small * 0x1p-25;
    *error = storage + (c->rotary ? 16 * REF_U * *magnitude : 0);
    return total;
  }
  for (d = 0; d + 4 <= n; d += 4)
    for (int i = 0; i < 4; i++) {
      double product = x[d + i] * (double)k[d + i];
      sum[i] += product;
      absolute[i] += fabs(product);
    }
  for (; d < n; d++) {
    sum[0] += x[d] * (double)k[d];
    absolute[0] += fabs(x[d] * (double)k[d]);
  }
  *magnitude = absolute[0] + absolute[1] + absolute[2] + absolute[3];
  return sum[0] + sum[1] + (sum[2] + sum[3]);
}

static inline double ref_scale(const ref_call *c) {
  return c->options.scale != 0 ? (double)c->options.scale : 1 / sqrt((double)c->key_dim);
}

/* The score of key t by every step of the options, in their order; *error bounds its rounding. */
static inline double ref_score_of(ref_call *c, const ref_place *p, int64_t row, int64_t head,
                                  int64_t t, double *error) {
  const lattn_attn *a = &c->options;
  int64_t index = p->key_position + t - p->first_key, group = c->heads / c->kv_heads;
  int64_t position = a->key_positions ? a->key_positions[t] : index;
  const float *k = c->k + (t * c->kv_heads + head / group) * c->key_dim;
  double magnitude, more, scale = ref_scale(c), s, cap = (double)a->softcap;
  s = scale * ref_dot(c, p, k, position, &magnitude, &more);
  *error = (double)(c->key_dim + 3) * REF_U * 1.001 * fabs(scale) * magnitude + fabs(scale) * more +
           0x1p-100;
  if (c->bf16) *error += *error + (c->rotary ? 0x1.01p-7 * fabs(scale) * magnitude : 0);
  if (cap > 0 && cap < 1e38) {
    s = cap * tanh(s / cap);
    *error += 8 * REF_U * fabs(s);
  }
  if (a->alibi_slopes) {
    int64_t query = ref_cache_position(c, p->position, p->position);
    double distance = fabs((double)(query - ref_cache_position(c, p->position, position)));
    double term = (double)a->alibi_slopes[head] * distance;
    s -= term;
    *error += REF_U * (fabs(term) + fabs(s));
  }
  if (a->key_bias) {
    s += (double)tensor_get(a->key_bias, 0, a->key_bias->n_heads > 1 ? head : 0, t);
    *error += REF_U * fabs(s);
  }
  if (a->pair_bias) {
    s += (double)tensor_get(a->pair_bias, row, a->pair_bias->n_heads > 1 ? head : 0, t);
    *error += REF_U * fabs(s);
  }
  if (c->score) {
    double before = s;
    s = c->score(c->score_user, p->sequence, row, p->position, (int32_t)head, index, s);
    *error =
        *error * (c->score_slope != 0 ? c->score_slope : 1) + 4 * REF_U * (fabs(before) + fabs(s));
  }
  if (isinf(s)) *error = 0;
  return s;
}

/* Score of the extra key; its value joins v. c->query gets the query, rotated at its position. */
static inline double ref_extra(ref_call *c, const ref_place *p, int64_t row, int64_t head,
                               double *error) {
  const lattn_tensor *k = c->options.extra_key, *v = c->options.extra_value;
  int64_t own = head * k->n_heads / c->heads, g = head / (c->heads / c->kv_heads);
  double cap = (double)c->options.softcap, scale = ref_scale(c), s = 0, size = 0, all = 0,
         large = 0;
  float *value = c->v + ((c->n_keys + REF_EXTRA) * c->kv_heads + g) * c->value_dim;
  for (int64_t d = 0; d < c->value_dim; d++)
    value[d] = v ? tensor_get(v, 0, head * v->n_heads / c->heads, d) : 0;
  for (int64_t d = 0; d < c->key_dim; d++)
    c->query[d] = (double)c->q[(row * c->heads + head) * c->key_dim + d];
  if (c->rotary) ref_rotate(c->query, c->rotary, p->position, c->table);
  for (int64_t d = 0; d < c->key_dim; d++) {
    double y = (double)tensor_get(k, 0, own, d);
    s += c->query[d] * y;
    size += fabs(c->query[d] * y);
    all += c->query[d] * c->query[d];
    large += y * y;
  }
  s *= scale;
  *error = (double)(c->key_dim + 3) * REF_U * 1.001 * fabs(scale) * size + 0x1p-100;
  if (c->rotary) *error += 16 * REF_U * fabs(scale) * sqrt(all * large);
  if (c->bf16) *error += 0x1.01p-8 * fabs(scale) * size;
  if (cap > 0 && cap < 1e38) {
    s = cap * tanh(s / cap);
    *error += 8 * REF_U * fabs(s);
  }
  return s;
}

/* Fills visible, scores, errors; returns their number. *folds, *levels: F and L of the bound. */
static inline int64_t ref_scores(ref_call *c, int64_t row, int64_t head, int *folds, int *levels) {
  const lattn_attn *a = &c->options;
  ref_place p = ref_find(c, row);
  int64_t n = 0, last_block = -1, last_segment = -1, blocks = 0, segments = 0;
  if (c->rotary && !c->table && c->n_queries * c->n_keys > 4 * REF_TABLE) ref_make_table(c);
  for (int64_t d = 0; d < c->key_dim; d++)
    c->query[d] = (double)c->q[(row * c->heads + head) * c->key_dim + d];
  if (c->rotary)
    ref_rotate(c->query, c->rotary, ref_cache_position(c, p.position, p.position), c->table);
  for (int64_t t = p.first_key; t < p.end_key; t++) {
    int64_t index = p.key_position + t - p.first_key;
    if (!ref_sees(c, &p, row, index, a->key_positions ? a->key_positions[t] : index)) continue;
    int64_t slot = c->slots ? c->slots[t] : index;
    blocks += slot / REF_BLOCK != last_block;
    segments += slot / REF_SEGMENT != last_segment;
    last_block = slot / REF_BLOCK;
    last_segment = slot / REF_SEGMENT;
    c->visible[n] = t;
    c->scores[n] = ref_score_of(c, &p, row, head, t, &c->errors[n]);
    n++;
  }
  *folds = (int)(blocks > 16 ? 15 : blocks > 0 ? blocks - 1 : 0);
  *levels = a->sink_logits != NULL;
  for (int64_t reach = 1; reach < segments; reach *= 2) (*levels)++;
  if (c->has_mean) {
    c->visible[n] = c->n_keys + REF_MEAN;
    c->scores[n] = c->mean_score;
    c->errors[n++] = c->mean_error;
    (*levels)++;
  }
  if (a->extra_key) {
    c->visible[n] = c->n_keys + REF_EXTRA;
    c->scores[n] = ref_extra(c, &p, row, head, &c->errors[n]);
    n++;
    (*levels)++;
  }
  return n;
}

static inline double ref_gate(const ref_call *c, int64_t row, int64_t head, int64_t d) {
  const lattn_tensor *g = c->options.gate;
  if (!g) return 1;
  return (double)tensor_get(g, row, g->n_heads > 1 ? head : 0, g->dim > 1 ? d : 0);
}

/* A row that sees nothing (or only scores of -infinity). */
static inline void ref_empty(const ref_call *c, ref_row *r, double sink) {
  for (int64_t d = 0; d < c->value_dim; d++) r->out[d] = r->bound[d] = 0;
  r->is_empty = 1;
  r->lse = c->options.weighting == LATTN_SIGMOID ? (double)NAN : sink;
  r->lse_bound = isinf(sink) ? 0 : 2 * REF_U * fabs(sink);
}

/* x - y, and 0 for equal infinities. */
static inline double ref_difference(double x, double y) { return x == y ? 0 : x - y; }

typedef struct ref_sums {
  double total;      /* P */
  double slack;      /* sum of D_j */
  double low;        /* sum of p_j exp(-e_j): what the computed P is no less than */
  double sink_slack; /* D of the learned sink */
  double roundings;  /* of the sums, in u */
  int is_mean;       /* divided by P; else P is 1, and the weights are what they are */
} ref_sums;

static inline void ref_add_weight(ref_sums *s, double p, double slack, double low) {
  s->total += p;
  s->slack += slack;
  s->low += fmax(low, 0);
}

/* Weights of the n scores into c->weights, D_j into c->errors. eps: what all the exps may do. */
static inline ref_sums ref_weights(ref_call *c, int64_t n, double maximum, double sink,
                                   double eps) {
  ref_sums sums = {0, 0, 0, 0, 0, 1};
  for (int64_t j = 0; j < n; j++) {
    double below = ref_difference(c->scores[j], maximum);
    double e = isinf(below) ? 0 : c->errors[j] + 2 * REF_U * fabs(below) + eps;
    double p = below < -87.33654475 ? 0 : exp(below); /* flushed: exactly 0 */
    c->weights[j] = p;
    c->errors[j] = isinf(below) ? 0 : exp(below + e) - p + 0x1p-126;
    ref_add_weight(&sums, p, c->errors[j], p * exp(-e) - 0x1p-126);
  }
  if (!isinf(sink)) {
    double below = sink - maximum, p = exp(below), e = 2 * REF_U * fabs(below) + eps;
    sums.sink_slack = p * expm1(e) + 0x1p-126;
    ref_add_weight(&sums, p, sums.sink_slack, p * exp(-e) - 0x1p-126);
  }
  return sums;
}

static inline double ref_sigmoid(double x) {
  return x > 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

/* D of the weight of x, which is off by at most e; eps: what its arithmetic may do. */
static inline double ref_sigmoid_slack(double x, double e, double eps) {
  double w = ref_sigmoid(x), above, below;
  if (isinf(x)) return 0;
  above = ref_sigmoid(x + e) * (1 + eps) - w;
  below = w - ref_sigmoid(x - e) * (1 - eps);
  return fmax(above, below) + 0x1p-126;
}

/* Likewise of sigmoid attention. */
static inline ref_sums ref_sigmoids(ref_call *c, int64_t n, double eps) {
  ref_sums sums = {1, 0, 1, 0, 0, 0};
  for (int64_t j = 0; j < n; j++) {
    double x = c->scores[j] + (double)c->options.sigmoid_bias;
    c->weights[j] = ref_sigmoid(x);
    c->errors[j] = ref_sigmoid_slack(x, c->errors[j] + REF_U * fabs(x), eps);
  }
  return sums;
}

/* out and bound of every dimension, from the weights: o, then sum D_j |v_j - o|. */
static inline void ref_values(ref_call *c, ref_row *r, int64_t row, int64_t head, int64_t n,
                              const ref_sums *sums) {
  int64_t dims = c->value_dim, stride = c->kv_heads * dims, d;
  const float *v = c->v + head / (c->heads / c->kv_heads) * dims;
  double *absolute = c->absolute, *largest = c->absolute + dims, *spread = r->bound, *o = r->out;
  for (d = 0; d < dims; d++) o[d] = spread[d] = absolute[d] = largest[d] = 0;
  for (int64_t j = 0; j < n; j++) {
    const float *x = v + c->visible[j] * stride;
    for (d = 0; d < dims; d++) {
      double term = c->weights[j] * (double)x[d], size = fabs((double)x[d]);
      o[d] += term;
      absolute[d] += fabs(term);
      largest[d] = size > largest[d] ? size : largest[d];
    }
  }
  for (d = 0; d < dims; d++) o[d] /= sums->total;
  for (int64_t j = 0; j < n; j++) {
    const float *x = v + c->visible[j] * stride;
    for (d = 0; d < dims; d++)
      spread[d] += c->errors[j] * fabs((double)x[d] - (sums->is_mean ? o[d] : 0));
  }
  for (d = 0; d < dims; d++) {
    double gate = ref_gate(c, row, head, d), mean = absolute[d] / sums->total;
    double bound = (spread[d] + sums->sink_slack * fabs(o[d])) / sums->low;
    if (sums->is_mean) bound = fmin(bound, 2 * largest[d]);
    else bound += sums->roundings * REF_U * bound;
    bound += sums->roundings * REF_U * mean + (double)n * (c->bf16 ? 0x1p-124 : 0x1p-149);
    if (c->value_type > LATTN_F32) bound += ref_half_ulp(c->value_type, 1) * mean;
    if (c->value_type == LATTN_F16) bound += 0x1p-25;
    o[d] *= gate;
    bound *= fabs(gate);
    r->bound[d] = bound + ref_half_ulp(c->out_type, fabs(o[d]) + bound);
  }
}

/* Attention of one row of one query head. */
static inline void ref_attend(ref_call *c, int64_t row, int64_t head, ref_row *r) {
  int folds, levels, is_nan = 0;
  int64_t n = ref_scores(c, row, head, &folds, &levels), b = n < REF_BLOCK ? n : REF_BLOCK;
  double sink = c->options.sink_logits ? (double)c->options.sink_logits[head] : -REF_INFINITY;
  double maximum = sink, drift;
  ref_sums sums;
  r->n_visible = n;
  r->is_empty = 0;
  for (int64_t j = 0; j < n; j++) {
    maximum = fmax(maximum, c->scores[j]);
    is_nan |= isnan(c->scores[j]);
  }
  if (is_nan || isnan(sink)) {
    for (int64_t d = 0; d < c->value_dim; d++) r->out[d] = r->bound[d] = (double)NAN;
    r->lse = r->lse_bound = (double)NAN;
    return;
  }
  if (n == 0 || maximum == -REF_INFINITY) {
    ref_empty(c, r, sink);
    return;
  }
  if (c->options.weighting == LATTN_SIGMOID) {
    sums = ref_sigmoids(c, n, 7 * REF_U + (c->bf16 ? 0x1.01p-8 : 0));
    sums.roundings = (double)b + folds + levels + 2;
    if (c->bf16) sums.roundings += sums.roundings;
    ref_values(c, r, row, head, n, &sums);
    r->lse = r->lse_bound = (double)NAN;
    return;
  }
  sums = ref_weights(c, n, maximum, sink,
                     (double)(1 + folds + levels) * 4 * REF_U + (c->bf16 ? 0x1.01p-8 : 0));
  sums.roundings = (double)b + (double)b / 16 + 2 * folds + 2 * levels + 7;
  if (c->bf16) sums.roundings += sums.roundings;
  ref_values(c, r, row, head, n, &sums);
  r->lse = maximum + log(sums.total);
  drift = fmax(log1p(sums.slack / sums.total), -log(sums.low / sums.total));
  r->lse_bound = drift + (sums.roundings - (double)b + 4 * fabs(log(sums.total))) * REF_U +
                 2 * REF_U * fabs(r->lse);
  if (isinf(maximum)) r->lse_bound = 0;
}

/* error / bound of one number: 0 when equal, infinite when NaN or infinity is misplaced. */
static inline double ref_ratio(double got, double want, double bound) {
  if (isnan(want)) return isnan(got) ? 0 : REF_INFINITY;
  if (got == want) return 0;
  if (isnan(got) || isinf(got) || isinf(want)) return REF_INFINITY;
  return bound > 0 ? fabs(got - want) / bound : REF_INFINITY;
}

#endif /* REF_H */
