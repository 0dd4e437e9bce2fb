/* ref_state.h - states of fixed size in double precision, from the maths, token after token, with a
 * bound on the error that float32 arithmetic may make. Slow, plain, written without the kernels in
 * view.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h, longattn.h and ref.h.

       ref_state r;
       ref_state_open(&r, &config);
       ref_input in = ref_input_of(&call, &q, &k, &v);    copies; absent tensors: NULL
       ref_advance(&r, &in, out, bound);                  [n][n_heads][value_dim], doubles
       ref_read(&r, &in, out, bound);                     reads only q
       ref_input_free(&in); ref_state_close(&r);

   THE BOUNDS (u = 2^-24; exp is taken to be within 4u, as in ref.h; second orders are covered by
   the constants, which are larger than a count of the roundings would give).

   Linear states. Features: unit length is one factor on all dims, whose sum of squares is some tree
   or chain of d products: (d/2 + 6)u. The maps are then bounded one by one, where they are written.
   The state takes a token by S' = D S + b p^T + k x^T. Three roundings on D S (exp, product, sum),
   two on each other term. Without a delta, errors keep to their elements:
       E' = D E + 8u D|S| + 2u |k x| + u|S'| + dk |x|,
   which grows with the number of tokens when D = 1, and levels off when D < 1. With a delta a
   column's errors mix, but S' = M S + ..., where M = (I - beta k k^T) D or D + b a^T, so the
   2-norm e of a column's error obeys
       e' = |M| e + 8u |D S| + |k| dx + |dk| |x| + |b| dp + 3u (|k x| + |b p|) + u|S'|,
   with dp = (m + 12)u sum |k| D|S| + sum dk D|S| (one chain of m), dx = beta (dp + 3u|v - p|). |M|
   is at most max D * max(1, |1 - beta |k|^2|); or, because M^T M = D^2 + w a^T + a w^T with w =
   D b + a |b|^2 / 2, its square is at most max D^2 + w.a + |w||a|. A contraction keeps its errors
   level.
   A read is one chain over m features: (m + 20)u sum |q| G, where G = D|S| + |b p| + |k x| >= |S'|
   holds for either order of work, S'^T q or D S^T q + (q.k) x; plus what q and S had: sum dq G +
   sum |q| E, or |q| e. The quotient by c = q.z + epsilon adds (dn + |o| dc) / (c - dc) + 3u|o|.
   Compensated sums keep to themselves only the products' own roundings: E' = E + 2u |k x| + dk|x|,
   and a read rounds S once. Numbers below 2^-126 may become 0, and so may a product of decays: that
   much of the largest number that the state ever had is added per token. A gate below 2^-100 may as
   well be 0.

   Flow. Every sum but the last has positive terms only, so relative errors add: features f = 10u, a
   prefix sum of t terms tu (compensated: 2u), a dot product of D (D + 4)u, a division u. The chain
   A -> in, out -> A' -> s is followed in that order; exp(s) then has the absolute error of s, and
   6u; c twice that. The output's relative error stands on r in sum Q K c |v|.

   Aaren. As in ref.h, with one chain of the t tokens in place of blocks.

   Titans. Recurrences that feed back on themselves: a bound that takes absolute values grows beyond
   use. So the reference runs noisy copies of itself beside: each number that float32 would round is
   moved to an end of its interval, (m + c)u times the sum of absolute values for a chain of m, with
   a random sign. What the copies differ by is what such roundings can do; the bound is 4 times the
   most of it over the row. */
#ifndef REF_STATE_H
#define REF_STATE_H

enum { REF_COPIES = 3 }; /* noisy ones */

/* The double form of a lattn_feature_function; must not stretch a distance. */
typedef void (*ref_feature)(int32_t head, int32_t is_query, const double *x, int64_t dim, double *f,
                            int64_t n_features);

/* Rows of numbers, [token][head][dim]. */
typedef struct ref_rows {
  double *x;
  int64_t n, heads, dim;
} ref_rows;

typedef struct ref_input {
  ref_rows q, k, v, decay, beta, predict, write, rate, momentum, forget;
} ref_input;

/* Weights of a memory, and what belongs to them: [0] the first (or only) layer, [1] the second, [2]
   the gain. */
typedef struct ref_memory_of {
  double *w[3], *momentum[3], *start[3], *gradient[3];
  test_rng rng;
  int noisy;
} ref_memory_of;

typedef struct ref_state {
  lattn_state_config c; /* with its defaults filled in */
  ref_feature feature;
  int64_t n, states, features, width; /* tokens so far; columns of S: value_dim, and z */
  double *S, *E, *G;                  /* [states][features][width]; delta: E is [states][width] */
  double peak;                        /* largest |S| so far */
  double *kf, *dk, *qf, *dq, *row, *row2, *pred;
  double *log_decay, *bonus, *query;
  ref_memory_of *memories; /* TITANS: [states][1 + REF_COPIES] */
  int64_t sizes[3];
} ref_state;

static inline double *ref_doubles(int64_t n) { return (double *)ref_memory(n, sizeof(double)); }

/* ---- inputs ---- */

static inline ref_rows ref_rows_of(const lattn_tensor *t) {
  ref_rows r = {NULL, 0, 1, 1};
  int64_t at = 0;
  if (!t) return r;
  r.n = t->n_tokens, r.heads = t->n_heads, r.dim = t->dim;
  r.x = ref_doubles(r.n * r.heads * r.dim);
  for (int64_t i = 0; i < r.n; i++)
    for (int64_t h = 0; h < r.heads; h++)
      for (int64_t d = 0; d < r.dim; d++) r.x[at++] = (double)tensor_get(t, i, h, d);
  return r;
}

/* The row of `head` of `heads`: each row serves its neighbours. */
static inline const double *ref_row_at(const ref_rows *r, int64_t t, int64_t head, int64_t heads) {
  return r->x + (t * r->heads + head / (heads / r->heads)) * r->dim;
}

static inline ref_input ref_input_of(const lattn_state_call *call, const lattn_tensor *q,
                                     const lattn_tensor *k, const lattn_tensor *v) {
  ref_input in;
  in.q = ref_rows_of(q);
  in.k = ref_rows_of(k);
  in.v = ref_rows_of(v);
  in.decay = ref_rows_of(call ? call->decay : NULL);
  in.beta = ref_rows_of(call ? call->beta : NULL);
  in.predict = ref_rows_of(call ? call->predict : NULL);
  in.write = ref_rows_of(call ? call->write : NULL);
  in.rate = ref_rows_of(call ? call->rate : NULL);
  in.momentum = ref_rows_of(call ? call->momentum : NULL);
  in.forget = ref_rows_of(call ? call->forget : NULL);
  return in;
}

static inline void ref_input_free(ref_input *in) {
  ref_rows *all[] = {&in->q,       &in->k,     &in->v,    &in->decay,    &in->beta,
                     &in->predict, &in->write, &in->rate, &in->momentum, &in->forget};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->x);
}

/* ---- opening ---- */

static inline double *ref_widen(const float *x, int64_t n) {
  double *y = x ? ref_doubles(n) : NULL;
  for (int64_t i = 0; x && i < n; i++) y[i] = (double)x[i];
  return y;
}

static inline int64_t ref_n_features(const lattn_state_config *c) {
  int64_t d = c->key_dim;
  if (c->kind != LATTN_STATE_LINEAR) return d;
  if (c->feature == LATTN_FEATURE_TAYLOR) return 1 + d + d * (d + 1) / 2;
  return c->feature == LATTN_FEATURE_CALLER ? c->feature_dim : d;
}

/* Matrices (LINEAR, FLOW), or memories (TITANS). */
static inline int64_t ref_n_states(const lattn_state_config *c) {
  int64_t k = c->n_key_heads ? c->n_key_heads : c->n_heads;
  int64_t v = c->n_value_heads ? c->n_value_heads : c->n_heads;
  if (c->kind == LATTN_STATE_FLOW || c->kind == LATTN_STATE_AAREN) return c->n_heads;
  return k > v ? k : v;
}

static inline int ref_is_normalised(const ref_state *r) {
  return r->c.kind == LATTN_STATE_LINEAR && r->c.normaliser != LATTN_NORMALISER_NONE;
}

static inline void ref_state_open(ref_state *r, const lattn_state_config *config) {
  lattn_state_config *c = &r->c;
  int64_t m;
  memset(r, 0, sizeof *r);
  r->c = *config;
  if (!c->n_query_heads) c->n_query_heads = c->n_heads;
  if (!c->n_key_heads) c->n_key_heads = c->n_heads;
  if (!c->n_value_heads) c->n_value_heads = c->n_heads;
  if (!c->value_dim) c->value_dim = c->key_dim;
  if (c->kind == LATTN_STATE_FLOW && !c->feature) c->feature = LATTN_FEATURE_SIGMOID;
  if (c->unit_epsilon == 0) c->unit_epsilon = c->unit == LATTN_UNIT_L2_MAX ? 1e-12f : 1e-6f;
  if (c->epsilon == 0) c->epsilon = 1e-6f;
  if (c->clamp_low == 0 && c->clamp_high == 0) c->clamp_low = -1, c->clamp_high = 1;
  if (c->chunk == 0) c->chunk = 1;
  if (c->loss_factor == 0) c->loss_factor = 2;
  r->states = ref_n_states(c);
  r->features = m = ref_n_features(c);
  r->width = c->value_dim + ref_is_normalised(r);
  r->S = ref_doubles(r->states * m * r->width);
  r->G = ref_doubles(r->states * m * r->width);
  r->E = ref_doubles(r->states * m * r->width);
  r->kf = ref_doubles(m), r->dk = ref_doubles(m), r->qf = ref_doubles(m), r->dq = ref_doubles(m);
  r->row = ref_doubles(r->width), r->row2 = ref_doubles(r->width), r->pred = ref_doubles(r->width);
  r->log_decay = ref_widen(config->log_decay, r->states);
  r->bonus = ref_widen(config->bonus, r->states * m);
  r->query = ref_widen(config->query, (int64_t)c->n_heads * c->key_dim);
  if (c->kind != LATTN_STATE_TITANS) return;
  r->sizes[0] = (int64_t)c->key_dim * (c->hidden_dim ? c->hidden_dim : c->value_dim);
  r->sizes[1] = (int64_t)c->hidden_dim * c->value_dim;
  r->sizes[2] = c->residual ? c->value_dim : 0;
  r->memories = (ref_memory_of *)ref_memory(r->states * (1 + REF_COPIES), sizeof(ref_memory_of));
  for (int64_t s = 0; s < r->states * (1 + REF_COPIES); s++) {
    ref_memory_of *o = r->memories + s;
    o->noisy = s % (1 + REF_COPIES) != 0;
    o->rng = rng_seed((uint64_t)s + 1);
    for (int i = 0; i < 3; i++) {
      o->w[i] = ref_doubles(r->sizes[i]), o->momentum[i] = ref_doubles(r->sizes[i]);
      o->start[i] = ref_doubles(r->sizes[i]), o->gradient[i] = ref_doubles(r->sizes[i]);
    }
  }
}

static inline void ref_state_close(ref_state *r) {
  double *all[] = {r->S,   r->E,    r->G,    r->kf,        r->dk,    r->qf,   r->dq,
                   r->row, r->row2, r->pred, r->log_decay, r->bonus, r->query};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
  for (int64_t s = 0; r->memories && s < r->states * (1 + REF_COPIES); s++)
    for (int i = 0; i < 3; i++) {
      free(r->memories[s].w[i]);
      free(r->memories[s].momentum[i]);
      free(r->memories[s].start[i]);
      free(r->memories[s].gradient[i]);
    }
  free(r->memories);
}

/* ---- features ---- */

/* Brings x to unit length in y; returns the relative error of all of y. */
static inline double ref_unit(const lattn_state_config *c, const double *x, double *y) {
  int64_t d = c->key_dim;
  double sum = 0, by = 1;
  for (int64_t i = 0; i < d; i++) sum += x[i] * x[i];
  if (c->unit == LATTN_UNIT_L2) by = 1 / sqrt(sum + (double)c->unit_epsilon);
  if (c->unit == LATTN_UNIT_L2_MAX) by = 1 / fmax(sqrt(sum), (double)c->unit_epsilon);
  for (int64_t i = 0; i < d; i++) y[i] = x[i] * by;
  return c->unit ? ((double)d / 2 + 6) * REF_U : 0;
}

/* 1 + s + s^2/2 of s = scale q.k, as a product of features; x times sqrt(scale) has 4u more. */
static inline void ref_taylor(const double *y, int64_t d, double by, double relative, double *f,
                              double *df) {
  int64_t at = 1 + d;
  double e = relative + 4 * REF_U;
  f[0] = 1, df[0] = 0;
  for (int64_t i = 0; i < d; i++) {
    f[1 + i] = y[i] * by, df[1 + i] = fabs(f[1 + i]) * e;
    f[1 + d + i] = f[1 + i] * f[1 + i] / sqrt(2.0);
    df[1 + d + i] = f[1 + d + i] * (2 * e + 3 * REF_U);
  }
  at += d;
  for (int64_t i = 0; i < d; i++)
    for (int64_t j = i + 1; j < d; j++, at++) {
      f[at] = f[1 + i] * f[1 + j];
      df[at] = fabs(f[at]) * (2 * e + 3 * REF_U);
    }
}

/* One feature of y, whose absolute error is e. */
static inline double ref_map(int32_t feature, double y, double e, double *df) {
  double f;
  switch (feature) {
    case LATTN_FEATURE_ELU1:
      f = y > 0 ? y + 1 : exp(y);
      *df = e + 4 * REF_U * f;
      return f;
    case LATTN_FEATURE_RELU:
      *df = y > -e ? e : 0;
      return fmax(y, 0);
    case LATTN_FEATURE_RELU2:
      f = fmax(y, 0);
      *df = (2 * f + e) * e + REF_U * f * f;
      return f * f;
    case LATTN_FEATURE_SIGMOID: /* exp, a sum, a quotient */
      f = ref_sigmoid(y);
      *df = f * e + 10 * REF_U * f;
      return f;
    case LATTN_FEATURE_SILU: /* its slope is at most 1.1 */
      f = y * ref_sigmoid(y);
      *df = 1.1 * e + 11 * REF_U * fabs(f);
      return f;
    default:
      *df = e;
      return y;
  }
}

/* exp(y - max) and their sum: the difference is rounded, both have the error e. */
static inline void ref_softmax(const double *y, int64_t d, double e, double *f, double *df) {
  double most = y[0], sum = 0, worst = 0;
  for (int64_t i = 1; i < d; i++) most = fmax(most, y[i]);
  for (int64_t i = 0; i < d; i++) {
    sum += f[i] = exp(y[i] - most);
    df[i] = 2 * e + REF_U * (most - y[i]) + 5 * REF_U;
  }
  for (int64_t i = 0; i < d; i++) worst += f[i] / sum * df[i];
  for (int64_t i = 0; i < d; i++) {
    f[i] /= sum;
    df[i] = f[i] * (df[i] + worst + ((double)d + 6) * REF_U) + 0x1p-126;
  }
}

/* The features of x, and their absolute errors; a query's are times the scale. */
static inline void ref_features(const ref_state *r, const double *x, int32_t head, int32_t is_query,
                                double *f, double *df) {
  const lattn_state_config *c = &r->c;
  int64_t d = c->key_dim;
  double *y = ref_doubles(d), relative = ref_unit(c, x, y), most = 0;
  double scale = c->scale != 0 ? (double)c->scale : 1 / sqrt((double)d);
  for (int64_t i = 0; i < d; i++) most = fmax(most, fabs(y[i]));
  if (c->feature == LATTN_FEATURE_TAYLOR) {
    ref_taylor(y, d, sqrt(scale), relative, f, df);
  } else if (c->feature == LATTN_FEATURE_SOFTMAX) {
    ref_softmax(y, d, relative * most, f, df);
  } else if (c->feature == LATTN_FEATURE_CALLER) {
    r->feature(head, is_query, y, d, f, r->features);
    for (int64_t i = 0; i < r->features; i++) df[i] = relative * most + 2 * REF_U * fabs(f[i]);
  } else {
    for (int64_t i = 0; i < d; i++) f[i] = ref_map(c->feature, y[i], relative * fabs(y[i]), &df[i]);
  }
  for (int64_t i = 0; i < r->features && is_query && c->feature != LATTN_FEATURE_TAYLOR; i++) {
    f[i] *= scale;
    df[i] = df[i] * fabs(scale) + 3 * REF_U * fabs(f[i]);
  }
  free(y);
}

/* ---- linear ---- */

/* Reads state s for the query in r->qf, r->dq: numerators (and z) into r->row, errors r->row2. */
static inline void ref_read_matrix(ref_state *r, int64_t s) {
  int64_t m = r->features, w = r->width;
  const double *S = r->S + s * m * w, *G = r->G + s * m * w, *E = r->E + s * m * w;
  double norm = 0;
  for (int64_t i = 0; i < m; i++) norm += r->qf[i] * r->qf[i];
  norm = sqrt(norm);
  for (int64_t j = 0; j < w; j++) {
    double o = 0, e = 0, sum = 0;
    for (int64_t i = 0; i < m; i++) {
      o += r->qf[i] * S[i * w + j];
      sum += fabs(r->qf[i]) * G[i * w + j];
      e += r->dq[i] * G[i * w + j];
      if (!r->c.delta) e += fabs(r->qf[i]) * E[i * w + j];
    }
    if (r->c.delta) e += norm * r->E[s * w + j];
    r->row[j] = o;
    r->row2[j] = e + ((double)m + 20) * REF_U * sum + (double)m * 0x1p-126 * (1 + r->peak);
  }
}

/* What the token in r->kf adds of itself, when it is read before it is written. */
static inline void ref_read_bonus(ref_state *r, int64_t s, const double *v) {
  int64_t m = r->features, dv = r->c.value_dim;
  const double *bonus = r->bonus + s * m;
  double dot = 0, e = 0;
  for (int64_t i = 0; i < m; i++) {
    double p = fabs(r->qf[i] * bonus[i] * r->kf[i]);
    dot += r->qf[i] * bonus[i] * r->kf[i];
    e += ((double)m + 8) * REF_U * p + r->dq[i] * fabs(bonus[i] * r->kf[i]) +
         r->dk[i] * fabs(bonus[i] * r->qf[i]);
  }
  for (int64_t j = 0; j < r->width; j++) {
    double x = j < dv ? v[j] : 1;
    r->row[j] += dot * x;
    r->row2[j] += e * fabs(x) + 3 * REF_U * (fabs(dot * x) + fabs(r->row[j]));
  }
}

/* r->row becomes an output and its bound. */
static inline void ref_normalise(const ref_state *r, double *out, double *bound) {
  int64_t dv = r->c.value_dim;
  double c = 1, dc = 0, epsilon = (double)r->c.epsilon;
  if (ref_is_normalised(r)) {
    c = r->row[dv] + epsilon;
    if (r->c.normaliser == LATTN_NORMALISER_FLOOR) c = fmax(fabs(r->row[dv]), epsilon);
    dc = r->row2[dv] + 2 * REF_U * fabs(c);
  }
  for (int64_t j = 0; j < dv; j++) {
    double o = r->row[j] / c, left = fabs(c) - dc;
    out[j] = o;
    bound[j] = left > 0 ? (r->row2[j] + fabs(o) * dc) / left + 3 * REF_U * fabs(o) + 0x1p-126
                        : REF_INFINITY;
  }
}

/* decay of state s, feature i, at token t. */
static inline double ref_decay(const ref_state *r, const ref_input *in, int64_t t, int64_t s,
                               int64_t i) {
  double g = 0;
  if (r->c.decay == LATTN_DECAY_HEAD) return exp(r->log_decay[s]);
  if (r->c.decay == LATTN_DECAY_NONE) return 1;
  g = ref_row_at(&in->decay, t, s, r->states)[r->c.decay == LATTN_DECAY_CHANNEL ? i : 0];
  return exp(fmin(fmax(g, -80), 0));
}

typedef struct ref_norms {
  double most, a, b, k, w, wa, dk; /* of D; 2-norms; w.a */
} ref_norms;

/* |M|, see above; d: the decays. */
static inline double ref_contraction(const ref_state *r, const ref_norms *n, double beta) {
  double general = sqrt(fmax(n->most * n->most + n->wa + n->w * n->a, 0));
  if (r->c.delta == LATTN_DELTA_KEY) return n->most * fmax(1, fabs(1 - beta * n->k * n->k));
  return fmin(general, n->most + n->a * n->b);
}

static inline ref_norms ref_norms_of(const ref_state *r, const double *d, const double *a,
                                     const double *b) {
  ref_norms n = {0, 0, 0, 0, 0, 0, 0};
  for (int64_t i = 0; i < r->features; i++) {
    n.most = fmax(n.most, d[i]);
    n.k += r->kf[i] * r->kf[i], n.dk += r->dk[i] * r->dk[i];
    if (a) n.a += a[i] * a[i], n.b += b[i] * b[i];
  }
  for (int64_t i = 0; i < r->features && a; i++) {
    double w = d[i] * b[i] + a[i] * n.b / 2;
    n.w += w * w, n.wa += w * a[i];
  }
  n.k = sqrt(n.k), n.a = sqrt(n.a), n.b = sqrt(n.b), n.w = sqrt(n.w), n.dk = sqrt(n.dk);
  return n;
}

/* Decay, correct, write; the key's features are in r->kf. */
static inline void ref_update(ref_state *r, const ref_input *in, int64_t t, int64_t s) {
  int64_t m = r->features, w = r->width, dv = r->c.value_dim;
  const double *v = ref_row_at(&in->v, t, s, r->states);
  const double *a =
      r->c.delta == LATTN_DELTA_GENERAL ? ref_row_at(&in->predict, t, s, r->states) : NULL;
  const double *b = a ? ref_row_at(&in->write, t, s, r->states) : NULL;
  double beta = in->beta.x ? *ref_row_at(&in->beta, t, s, r->states) : 1;
  double *S = r->S + s * m * w, *G = r->G + s * m * w, *E = r->E + s * m * w;
  double *d = ref_doubles(m), u = REF_U;
  int compensated = r->c.flags & LATTN_STATE_COMPENSATED;
  ref_norms n;
  for (int64_t i = 0; i < m; i++) d[i] = ref_decay(r, in, t, s, i);
  n = ref_norms_of(r, d, a, b);
  for (int64_t j = 0; j < w; j++) {
    double x = j < dv ? v[j] : 1, p = 0, dp = 0, dx = 0, old = 0, now = 0, shut = 0;
    if (r->c.delta == LATTN_DELTA_KEY) {
      for (int64_t i = 0; i < m; i++) {
        double g = d[i] * fabs(S[i * w + j]);
        p += r->kf[i] * d[i] * S[i * w + j];
        dp += ((double)m + 12) * u * fabs(r->kf[i]) * g + r->dk[i] * g;
      }
      dx = fabs(beta) * (dp + 3 * u * (fabs(x - p) + fabs(p)));
      x = beta * (x - p);
      dp = p = 0;
    }
    for (int64_t i = 0; i < m && a; i++) {
      p += a[i] * S[i * w + j];
      dp += ((double)m + 4) * u * fabs(a[i] * S[i * w + j]);
    }
    for (int64_t i = 0; i < m; i++) {
      double ds = d[i] * S[i * w + j], bp = a ? b[i] * p : 0, kx = r->kf[i] * x;
      double e = d[i] * E[i * w + j] + 8 * u * fabs(ds) + r->dk[i] * fabs(x) + 2 * u * fabs(kx);
      if (compensated) e = E[i * w + j] + 2 * u * fabs(kx) + r->dk[i] * fabs(x);
      if (d[i] < 0x1p-100) e += fabs(ds), shut += fabs(ds);
      S[i * w + j] = ds + bp + kx;
      G[i * w + j] = fabs(ds) + fabs(bp) + fabs(kx);
      if (!compensated) e += u * fabs(S[i * w + j]);
      r->peak = fmax(r->peak, G[i * w + j]);
      if (!r->c.delta) E[i * w + j] = e + 0x1p-126 * (1 + r->peak);
      old += ds * ds, now += S[i * w + j] * S[i * w + j];
    }
    if (r->c.delta)
      r->E[s * w + j] = ref_contraction(r, &n, beta) * r->E[s * w + j] + 8 * u * sqrt(old) +
                        n.k * dx + n.dk * fabs(x) + n.b * dp +
                        3 * u * (n.k * fabs(x) + n.b * fabs(p)) + u * sqrt(now) + shut +
                        (double)m * 0x1p-126 * (1 + r->peak);
  }
  free(d);
}

/* The rows of out that read state s at token t; v not NULL: with the bonus. */
static inline void ref_linear_rows(ref_state *r, const ref_input *in, int64_t t, int64_t s,
                                   const double *v, double *out, double *bound) {
  int64_t H = r->c.n_heads, dv = r->c.value_dim, group = H / r->states;
  for (int64_t h = s * group; h < (s + 1) * group && in->q.x && out; h++) {
    ref_features(r, ref_row_at(&in->q, t, h, H), (int32_t)(h / (H / in->q.heads)), 1, r->qf, r->dq);
    ref_read_matrix(r, s);
    if (v && r->bonus) ref_read_bonus(r, s, v);
    ref_normalise(r, out + (t * H + h) * dv, bound + (t * H + h) * dv);
  }
}

static inline void ref_linear_advance(ref_state *r, const ref_input *in, int64_t t, double *out,
                                      double *bound) {
  for (int64_t s = 0; s < r->states; s++) {
    int32_t key_head = (int32_t)(s / (r->states / in->k.heads));
    int before = r->c.reads == LATTN_READS_BEFORE;
    ref_features(r, ref_row_at(&in->k, t, s, r->states), key_head, 0, r->kf, r->dk);
    if (before) ref_linear_rows(r, in, t, s, ref_row_at(&in->v, t, s, r->states), out, bound);
    ref_update(r, in, t, s);
    if (!before) ref_linear_rows(r, in, t, s, NULL, out, bound);
  }
}

/* Sets state s's element (i, j), as if exactly; z is column value_dim. */
static inline void ref_set(ref_state *r, int64_t s, int64_t i, int64_t j, double x) {
  int64_t at = (s * r->features + i) * r->width + j;
  r->S[at] = x, r->G[at] = fabs(x);
  r->peak = fmax(r->peak, fabs(x));
}

/* ---- flow: batch forms. Relative errors, in units of u, beside the numbers ---- */

typedef struct ref_flow_options {
  int relu, compensated;
  double low, high, epsilon;
} ref_flow_options;

static inline double ref_flow_map(const ref_flow_options *o, double x) {
  return o->relu ? fmax(x, 0) + (double)1e-6f : ref_sigmoid(x);
}

/* sum (x_d + epsilon)(a_d + epsilon) */
static inline double ref_flow_dot(const double *x, const double *a, double scale, int64_t d,
                                  double epsilon) {
  double sum = 0;
  for (int64_t i = 0; i < d; i++) sum += (x[i] + epsilon) * (a[i] * scale + epsilon);
  return sum;
}

static inline double ref_clamp(double x, double low, double high) {
  return fmin(fmax(x, low), high);
}

/* One head: what it is given, and the names of flow.md 1.2. */
typedef struct ref_flow_head {
  const ref_flow_options *o;
  const double *v;
  int64_t by_v, n, n_keys, d, dv;
  int causal;
  double *Q, *K, *in, *go, *g, *s, *c;
  double worst, changes; /* of s: its largest error in units of f2; how often its maximum grew */
} ref_flow_head;

/* Steps 1 to 4, by prefixes. */
static inline void ref_flow_prefixes(ref_flow_head *f) {
  int64_t d = f->d;
  double *A = ref_doubles(d), *B = ref_doubles(d), *A2 = ref_doubles(d), *B2 = ref_doubles(d);
  double e = f->o->epsilon;
  for (int64_t t = 0; t < f->n; t++) {
    const double *Q = f->Q + t * d, *K = f->K + t * d;
    double count = (double)(t + 1);
    for (int64_t i = 0; i < d; i++) A[i] += K[i], B[i] += Q[i];
    f->in[t] = count / ref_flow_dot(Q, A, 1, d, e);
    f->go[t] = count / ref_flow_dot(K, B, 1, d, e);
    for (int64_t i = 0; i < d; i++) A2[i] += f->go[t] * K[i], B2[i] += f->in[t] * Q[i];
    f->g[t] = ref_flow_dot(Q, A2, 1, d, e) / count;
    f->s[t] = ref_flow_dot(K, B2, 1, d, e) / count;
  }
  free(A), free(B), free(A2), free(B2);
}

/* Steps 1 to 4, by sums over all. */
static inline void ref_flow_sums(ref_flow_head *f) {
  int64_t n = f->n, n_keys = f->n_keys, d = f->d;
  double *A = ref_doubles(d), *B = ref_doubles(d), *A2 = ref_doubles(d), *B2 = ref_doubles(d);
  double *Q = f->Q, *K = f->K, e = f->o->epsilon;
  for (int64_t i = 0; i < n * d; i++) B[i % d] += Q[i];
  for (int64_t i = 0; i < n_keys * d; i++) A[i % d] += K[i];
  for (int64_t i = 0; i < n; i++) f->in[i] = 1 / ref_flow_dot(Q + i * d, A, 1, d, e);
  for (int64_t j = 0; j < n_keys; j++) f->go[j] = 1 / ref_flow_dot(K + j * d, B, 1, d, e);
  for (int64_t i = 0; i < n * d; i++) B2[i % d] += f->in[i / d] * Q[i];
  for (int64_t j = 0; j < n_keys * d; j++) A2[j % d] += f->go[j / d] * K[j];
  for (int64_t i = 0; i < n; i++)
    f->g[i] = ref_flow_dot(Q + i * d, A2, 1, d, e) * (double)n / (double)n_keys;
  for (int64_t j = 0; j < n_keys; j++) f->s[j] = ref_flow_dot(K + j * d, B2, 1, d, e);
  free(A), free(B), free(A2), free(B2);
}

/* Competition: c, by the running maximum where it is causal. */
static inline void ref_flow_compete(ref_flow_head *f) {
  const ref_flow_options *o = f->o;
  int64_t n_keys = f->n_keys;
  double *s = f->s, *c = f->c, Z = 0, most = -REF_INFINITY;
  for (int64_t j = 0; j < n_keys; j++) {
    double before = most, error = fabs(s[j]);
    s[j] = ref_clamp(s[j], o->low, o->high);
    if (s[j] == o->low || s[j] == o->high) error = fmin(error, 0.01 * fabs(s[j]));
    f->worst = fmax(f->worst, error);
    most = fmax(most, s[j]);
    if (most > before) f->changes++;
    if (!f->causal) continue;
    Z = (before > -REF_INFINITY ? Z * exp(before - most) : 0) + exp(s[j] - most);
    c[j] = (double)(j + 1) * exp(s[j] - most) / Z;
  }
  if (f->causal) return;
  for (int64_t j = 0; j < n_keys; j++) Z += exp(s[j] - most);
  for (int64_t j = 0; j < n_keys; j++) c[j] = (double)n_keys * exp(s[j] - most) / Z;
}

/* How many roundings an output of row i is away from its value. */
static inline double ref_flow_roundings(const ref_flow_head *f, int64_t i) {
  int64_t n = f->n, n_keys = f->n_keys;
  double length = (double)(f->causal ? i + 1 : n > n_keys ? n : n_keys), worst = f->worst;
  double sums = f->o->compensated ? 4 : length + 4, dots = (double)f->d + 8;
  double f1 = 12 + sums + dots;      /* A, in, out */
  double f2 = f1 + 12 + sums + dots; /* A', s, g */
  double fs = f2 * worst + 16 * fabs(worst) /* exp(s): absolute error of s */;
  double fc = 2 * fs + 20 + sums + 6 * f->changes;
  return f2 * f->g[i] + 12 + f1 + 12 + dots + fc + 12 + sums; /* r, in, Q, dot, c, K, KV */
}

/* Source j into the sums of K c v, and of its absolute value. */
static inline void ref_flow_add(const ref_flow_head *f, int64_t j, double *KV, double *KA) {
  int64_t d = f->d, dv = f->dv;
  for (int64_t x = 0; x < d * dv; x++) {
    KV[x] += f->K[j * d + x / dv] * f->c[j] * f->v[j * f->by_v + x % dv];
    KA[x] += f->K[j * d + x / dv] * f->c[j] * fabs(f->v[j * f->by_v + x % dv]);
  }
}

/* The read, and its bound. */
static inline void ref_flow_read(const ref_flow_head *f, double *out, double *bound,
                                 int64_t by_out) {
  int64_t d = f->d, dv = f->dv;
  double *KV = ref_doubles(d * dv), *KA = ref_doubles(d * dv);
  for (int64_t j = 0; !f->causal && j < f->n_keys; j++) ref_flow_add(f, j, KV, KA);
  for (int64_t i = 0; i < f->n; i++) {
    double r = ref_sigmoid(f->g[i]), fy = ref_flow_roundings(f, i);
    if (f->causal) ref_flow_add(f, i, KV, KA);
    for (int64_t j = 0; j < dv; j++) {
      double y = 0, a = 0, by = r * f->in[i] / (f->causal ? (double)(i + 1) : 1);
      for (int64_t x = 0; x < d; x++) {
        y += f->Q[i * d + x] * KV[x * dv + j];
        a += f->Q[i * d + x] * KA[x * dv + j];
      }
      out[i * by_out + j] = f->n_keys ? by * y : 0;
      bound[i * by_out + j] = f->n_keys ? fy * REF_U * by * a + 0x1p-126 : 0;
    }
  }
  free(KV), free(KA);
}

/* One head: rows q [n][d], k [n][d], v [n][dv] at these strides. Causal (n = n_keys), or not. */
static inline void ref_flow(const ref_flow_options *o, int causal, const double *q, int64_t by_q,
                            int64_t n, const double *k, int64_t by_k, const double *v, int64_t by_v,
                            int64_t n_keys, int64_t d, int64_t dv, double *out, double *bound,
                            int64_t by_out) {
  ref_flow_head f;
  f.o = o, f.v = v, f.by_v = by_v, f.n = n, f.n_keys = n_keys, f.d = d, f.dv = dv;
  f.causal = causal, f.worst = 0, f.changes = 0;
  f.Q = ref_doubles(n * d), f.K = ref_doubles(n_keys * d);
  f.in = ref_doubles(n), f.go = ref_doubles(n_keys);
  f.g = ref_doubles(n), f.s = ref_doubles(n_keys), f.c = ref_doubles(n_keys);
  for (int64_t i = 0; i < n * d; i++) f.Q[i] = ref_flow_map(o, q[i / d * by_q + i % d]);
  for (int64_t i = 0; i < n_keys * d; i++) f.K[i] = ref_flow_map(o, k[i / d * by_k + i % d]);
  if (causal) ref_flow_prefixes(&f);
  else ref_flow_sums(&f);
  ref_flow_compete(&f);
  ref_flow_read(&f, out, bound, by_out);
  free(f.Q), free(f.K), free(f.in), free(f.go), free(f.g), free(f.s), free(f.c);
}

static inline ref_flow_options ref_flow_options_of(const lattn_state_config *c) {
  ref_flow_options o = {c->feature == LATTN_FEATURE_RELU, c->flags & LATTN_STATE_COMPENSATED,
                        (double)c->clamp_low, (double)c->clamp_high, (double)c->epsilon};
  return o;
}

/* From the first token: r->n must be 0. */
static inline void ref_flow_advance(ref_state *r, const ref_input *in, double *out, double *bound) {
  ref_flow_options o = ref_flow_options_of(&r->c);
  int64_t H = r->c.n_heads, d = r->c.key_dim, dv = r->c.value_dim;
  for (int64_t h = 0; h < H; h++)
    ref_flow(&o, 1, ref_row_at(&in->q, 0, h, H), in->q.heads * d, in->q.n,
             ref_row_at(&in->k, 0, h, H), in->k.heads * d, ref_row_at(&in->v, 0, h, H),
             in->v.heads * dv, in->k.n, d, dv, out + h * dv, bound + h * dv, H * dv);
}

/* ---- Aaren: each prefix by direct softmax; from the first token. lse: NULL, or [n][heads], and
   the same again of their bounds ---- */

static inline void ref_aaren_row(const ref_state *r, const ref_input *in, int64_t t, int64_t h,
                                 double *out, double *bound, double *lse, double *lse_bound) {
  int64_t H = r->c.n_heads, d = r->c.key_dim, dv = r->c.value_dim;
  double scale = r->c.scale != 0 ? (double)r->c.scale : 1 / sqrt((double)d);
  double *s = ref_doubles(t + 1), *e = ref_doubles(t + 1), most = -REF_INFINITY, sum = 0, low = 0;
  double changes = 0, worst = 0;
  const double *q = r->query + h * d;
  for (int64_t j = 0; j <= t; j++) {
    const double *k = ref_row_at(&in->k, j, h, H);
    double a = 0;
    for (int64_t i = 0; i < d; i++) s[j] += q[i] * k[i], a += fabs(q[i] * k[i]);
    s[j] *= scale;
    e[j] = ((double)d + 4) * REF_U * fabs(scale) * a;
    if (s[j] > most) changes++;
    most = fmax(most, s[j]);
  }
  for (int64_t j = 0; j <= t; j++) {
    sum += exp(s[j] - most);
    e[j] += 2 * REF_U * (most - s[j]) + (20 + fmin(changes, 40)) * 4 * REF_U;
    low += exp(s[j] - most - e[j]);
    worst = fmax(worst, e[j]);
  }
  for (int64_t x = 0; x < dv; x++) {
    double o = 0, a = 0, error = 0;
    for (int64_t j = 0; j <= t; j++) {
      double p = exp(s[j] - most) / sum, v = ref_row_at(&in->v, j, h, H)[x];
      o += p * v, a += p * fabs(v);
    }
    for (int64_t j = 0; j <= t; j++) {
      double p = exp(s[j] - most), v = ref_row_at(&in->v, j, h, H)[x];
      error += (p * (exp(e[j]) - 1) + 0x1p-126) * fabs(v - o);
    }
    out[x] = o;
    bound[x] = error / low + (fmin((double)t, 256) * 2 + 40) * REF_U * a + 0x1p-126;
  }
  if (lse) *lse = most + log(sum);
  if (lse) *lse_bound = worst + (fmin((double)t, 256) * 2 + 40) * REF_U + 4 * REF_U * fabs(*lse);
  free(s);
  free(e);
}

static inline void ref_aaren_advance(const ref_state *r, const ref_input *in, double *out,
                                     double *bound, double *lse) {
  int64_t H = r->c.n_heads, dv = r->c.value_dim;
  for (int64_t t = 0; t < in->k.n; t++)
    for (int64_t h = 0; h < H; h++)
      ref_aaren_row(r, in, t, h, out + (t * H + h) * dv, bound + (t * H + h) * dv,
                    lse ? lse + t * H + h : NULL, lse ? lse + (in->k.n + t) * H + h : NULL);
}

/* ---- Titans ---- */

/* x, or for a noisy copy an end of the interval of that half width. */
static inline double ref_noise(ref_memory_of *o, double x, double width) {
  return o->noisy ? (rng_u64(&o->rng) >> 63 ? x + width : x - width) : x;
}

/* y_j = sum_i x_i w[i][j], one chain of n a column. */
static inline void ref_product(ref_memory_of *o, const double *x, const double *w, int64_t n,
                               int64_t columns, double *y) {
  for (int64_t j = 0; j < columns; j++) {
    double sum = 0, a = 0;
    for (int64_t i = 0; i < n; i++) {
      sum += x[i] * w[i * columns + j];
      a += fabs(x[i] * w[i * columns + j]);
    }
    y[j] = ref_noise(o, sum, ((double)n + 4) * REF_U * a);
  }
}

/* The activation at h, or its slope. Both within a few ulp of a number of the size of h, or 1. */
static inline double ref_activation(ref_memory_of *o, int32_t kind, double h, int slope) {
  double phi = 0.5 * erfc(-h / sqrt(2.0)), s = ref_sigmoid(h), y;
  double density = exp(-h * h / 2) / sqrt(2 * 3.14159265358979323846);
  if (kind == LATTN_ACTIVATION_SILU) y = slope ? s * (1 + h * (1 - s)) : h * s;
  else y = slope ? phi + h * density : h * phi;
  return ref_noise(o, y, 8 * REF_U * (slope ? 1 + fabs(h) * density : fabs(h)));
}

/* What a memory makes of x, and what its gradient needs again. */
typedef struct ref_forward {
  double *h, *a, *z, *p; /* hidden, activated, normed, out */
  double r;              /* 1 / deviation */
} ref_forward;

static inline ref_forward ref_forward_new(const lattn_state_config *c) {
  ref_forward f;
  f.h = ref_doubles(c->hidden_dim), f.a = ref_doubles(c->hidden_dim);
  f.z = ref_doubles(c->value_dim), f.p = ref_doubles(c->value_dim), f.r = 1;
  return f;
}

static inline void ref_forward_free(ref_forward *f) {
  free(f->h), free(f->a), free(f->z), free(f->p);
}

static inline void ref_apply(const lattn_state_config *c, ref_memory_of *o, double *const *w,
                             const double *x, ref_forward *f) {
  int64_t dv = c->value_dim;
  double mean = 0, var = 0;
  if (!c->hidden_dim) {
    ref_product(o, x, w[0], c->key_dim, dv, f->p);
    return;
  }
  ref_product(o, x, w[0], c->key_dim, c->hidden_dim, f->h);
  for (int64_t i = 0; i < c->hidden_dim; i++)
    f->a[i] = ref_activation(o, c->activation, f->h[i], 0);
  ref_product(o, f->a, w[1], c->hidden_dim, dv, f->p);
  if (!c->residual) return;
  for (int64_t j = 0; j < dv; j++) mean += f->p[j] / (double)dv;
  for (int64_t j = 0; j < dv; j++) var += (f->p[j] - mean) * (f->p[j] - mean) / (double)dv;
  f->r = 1 / sqrt(var + 1e-5);
  for (int64_t j = 0; j < dv; j++) {
    f->z[j] = (f->p[j] - mean) * f->r;
    f->z[j] = ref_noise(o, f->z[j], ((double)dv + 8) * REF_U * (fabs(f->z[j]) + fabs(mean) * f->r));
    f->p[j] = f->z[j] * (1 + w[2][j]) + x[j];
    f->p[j] = ref_noise(o, f->p[j], 3 * REF_U * (fabs(f->z[j] * (1 + w[2][j])) + fabs(x[j])));
  }
}

/* Gradient of loss_factor / 2 * |f(k) - v|^2 in the weights w. */
static inline void ref_gradient(const lattn_state_config *c, ref_memory_of *o, double *const *w,
                                const double *k, const double *v) {
  int64_t dv = c->value_dim, hidden = c->hidden_dim;
  ref_forward f = ref_forward_new(c);
  double *dy = ref_doubles(dv), *dh = ref_doubles(hidden), m1 = 0, m2 = 0, a1 = 0;
  ref_apply(c, o, w, k, &f);
  for (int64_t j = 0; j < dv; j++) {
    dy[j] = (double)c->loss_factor * (f.p[j] - v[j]);
    dy[j] = ref_noise(o, dy[j], 2 * REF_U * fabs(dy[j]));
  }
  for (int64_t j = 0; j < dv && c->residual; j++) {
    double dz = dy[j] * (1 + w[2][j]);
    o->gradient[2][j] = dy[j] * f.z[j];
    m1 += dz / (double)dv, m2 += dz * f.z[j] / (double)dv;
    a1 += (fabs(dz) + fabs(dz * f.z[j])) / (double)dv;
  }
  for (int64_t j = 0; j < dv && c->residual; j++) {
    double dz = dy[j] * (1 + w[2][j]);
    dy[j] = f.r * (dz - m1 - f.z[j] * m2);
    dy[j] =
        ref_noise(o, dy[j], ((double)dv + 8) * REF_U * f.r * (fabs(dz) + a1 * (1 + fabs(f.z[j]))));
  }
  for (int64_t i = 0; i < hidden; i++) {
    double sum = 0, a = 0;
    for (int64_t j = 0; j < dv; j++) {
      sum += w[1][i * dv + j] * dy[j];
      a += fabs(w[1][i * dv + j] * dy[j]);
      o->gradient[1][i * dv + j] = f.a[i] * dy[j];
    }
    dh[i] = ref_noise(o, sum, ((double)dv + 4) * REF_U * a) *
            ref_activation(o, c->activation, f.h[i], 1);
  }
  for (int64_t x = 0; x < (int64_t)c->key_dim * (hidden ? hidden : dv); x++) {
    int64_t columns = hidden ? hidden : dv;
    o->gradient[0][x] = k[x / columns] * (hidden ? dh : dy)[x % columns];
  }
  ref_forward_free(&f);
  free(dy);
  free(dh);
}

static inline void ref_memory_update(const ref_state *r, ref_memory_of *o, const ref_input *in,
                                     int64_t t, int64_t s) {
  double theta = *ref_row_at(&in->rate, t, s, r->states);
  double eta = in->momentum.x ? *ref_row_at(&in->momentum, t, s, r->states) : 0;
  double alpha = in->forget.x ? *ref_row_at(&in->forget, t, s, r->states) : 0;
  if (r->n % r->c.chunk == 0)
    for (int i = 0; i < 3; i++) memcpy(o->start[i], o->w[i], (size_t)r->sizes[i] * sizeof(double));
  ref_gradient(&r->c, o, o->start, ref_row_at(&in->k, t, s, r->states),
               ref_row_at(&in->v, t, s, r->states));
  for (int i = 0; i < 3; i++)
    for (int64_t x = 0; x < r->sizes[i]; x++) {
      double *m = o->momentum[i] + x, *w = o->w[i] + x, g = theta * o->gradient[i][x];
      double a = fabs(eta * *m) + fabs(g);
      *m = ref_noise(o, eta * *m - g, 4 * REF_U * a);
      a = fabs(*m) + fabs(*w);
      *w = ref_noise(o, (1 - alpha) * *w + *m, 4 * REF_U * a);
    }
}

/* Rows of out that read memory s. */
static inline void ref_memory_rows(const ref_state *r, const ref_input *in, int64_t t, int64_t s,
                                   double *out, double *bound) {
  int64_t H = r->c.n_heads, dv = r->c.value_dim, group = H / r->states;
  ref_memory_of *o = r->memories + s * (1 + REF_COPIES);
  ref_forward f = ref_forward_new(&r->c);
  for (int64_t h = s * group; h < (s + 1) * group && in->q.x && out; h++) {
    const double *q = ref_row_at(&in->q, t, h, H);
    double *y = out + (t * H + h) * dv, worst = 0;
    ref_apply(&r->c, o, o->w, q, &f);
    memcpy(y, f.p, (size_t)dv * sizeof(double));
    for (int i = 1; i <= REF_COPIES; i++) {
      ref_apply(&r->c, o + i, o[i].w, q, &f);
      for (int64_t j = 0; j < dv; j++) worst = fmax(worst, fabs(f.p[j] - y[j]));
    }
    for (int64_t j = 0; j < dv; j++) bound[(t * H + h) * dv + j] = 4 * worst + 0x1p-126;
  }
  ref_forward_free(&f);
}

static inline void ref_titans_advance(ref_state *r, const ref_input *in, int64_t t, double *out,
                                      double *bound) {
  int before = r->c.reads == LATTN_READS_BEFORE;
  for (int64_t s = 0; s < r->states; s++) {
    if (before) ref_memory_rows(r, in, t, s, out, bound);
    for (int i = 0; i <= REF_COPIES; i++)
      ref_memory_update(r, r->memories + s * (1 + REF_COPIES) + i, in, t, s);
    if (!before) ref_memory_rows(r, in, t, s, out, bound);
  }
}

/* Sets a weight of memory s, as if exactly; which: 0 ... 2. */
static inline void ref_set_weight(ref_state *r, int64_t s, int which, int64_t at, double x) {
  for (int i = 0; i <= REF_COPIES; i++) r->memories[s * (1 + REF_COPIES) + i].w[which][at] = x;
}

/* ---- all of them ---- */

/* Takes the tokens of in; out and bound [n][heads][value_dim], or NULL: nothing is read. FLOW and
   AAREN: from the first token only. */
static inline void ref_advance(ref_state *r, const ref_input *in, double *out, double *bound) {
  if (r->c.kind == LATTN_STATE_FLOW) ref_flow_advance(r, in, out, bound);
  if (r->c.kind == LATTN_STATE_AAREN) ref_aaren_advance(r, in, out, bound, NULL);
  if (r->c.kind == LATTN_STATE_FLOW || r->c.kind == LATTN_STATE_AAREN) {
    r->n += in->k.n;
    return;
  }
  for (int64_t t = 0; t < in->k.n; t++) {
    if (r->c.kind == LATTN_STATE_LINEAR) ref_linear_advance(r, in, t, out, bound);
    else ref_titans_advance(r, in, t, out, bound);
    r->n++;
  }
}

/* Reads for each row of q; changes nothing. LINEAR and TITANS. */
static inline void ref_read(ref_state *r, const ref_input *in, double *out, double *bound) {
  for (int64_t t = 0; t < in->q.n; t++)
    for (int64_t s = 0; s < r->states; s++) {
      if (r->c.kind == LATTN_STATE_LINEAR) ref_linear_rows(r, in, t, s, NULL, out, bound);
      else ref_memory_rows(r, in, t, s, out, bound);
    }
}

#endif /* REF_STATE_H */
