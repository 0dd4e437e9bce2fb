/* ref_marks.h - heads whose tokens are chosen at a mark, in double precision, written from the
 * definitions: weights of dense rows over what a head holds, their sums, pooling, budgets.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after ref_cache.h. Rotary, ALiBi, softcap, learned sinks, sigmoid; no biases. */
#ifndef REF_MARKS_H
#define REF_MARKS_H

typedef struct ref_marks {
  const setup *s;
  const token_list *t;
  int64_t n;                     /* tokens so far */
  double *q, *k;                 /* of all tokens of the list, rotated */
  int64_t *held[CACHE_KV_HEADS]; /* positions that a head holds */
  int64_t n_held[CACHE_KV_HEADS];
  double *heavy[CACHE_KV_HEADS];      /* sums of weights, by position */
  double *score[CACHE_KV_HEADS];      /* at a mark: of the candidates, in order */
  int64_t candidates[CACHE_KV_HEADS]; /* 0: the head drops nothing */
  int64_t take[CACHE_KV_HEADS];
} ref_marks;

static inline void ref_marks_open(ref_marks *r, const setup *s, const token_list *t, int64_t n) {
  int64_t dk = s->config.key_dim;
  memset(r, 0, sizeof *r);
  r->s = s;
  r->t = t;
  r->q = (double *)ref_memory(n * t->q_row, sizeof(double));
  r->k = (double *)ref_memory(n * t->k_row, sizeof(double));
  for (int64_t i = 0; i < n * t->q_row; i++) r->q[i] = (double)t->q[i];
  for (int64_t i = 0; i < n * t->k_row; i++) r->k[i] = (double)t->k[i];
  for (int64_t i = 0; s->config.rotary && i < n * t->q_row; i += dk)
    ref_rotate(r->q + i, s->config.rotary, i / t->q_row, NULL);
  for (int64_t i = 0; s->config.rotary && i < n * t->k_row; i += dk)
    ref_rotate(r->k + i, s->config.rotary, i / t->k_row, NULL);
  for (int g = 0; g < CACHE_KV_HEADS; g++) {
    r->held[g] = (int64_t *)ref_memory(n, sizeof(int64_t));
    r->heavy[g] = (double *)ref_memory(n, sizeof(double));
    r->score[g] = (double *)ref_memory(n, sizeof(double));
    memset(r->heavy[g], 0, (size_t)n * sizeof(double));
  }
}

static inline void ref_marks_close(ref_marks *r) {
  free(r->q);
  free(r->k);
  for (int g = 0; g < CACHE_KV_HEADS; g++) {
    free(r->held[g]);
    free(r->heavy[g]);
    free(r->score[g]);
  }
}

/* Weights of a row of query head h over what its head holds up to it; a[i] goes with held[i]. */
static inline int64_t ref_marks_row(const ref_marks *r, int64_t h, int64_t row, double *a) {
  const lattn_cache_config *c = &r->s->config;
  int64_t g = h / (setup_heads(r->s) / c->n_kv_heads), dk = c->key_dim, n = 0;
  double scale = c->scale != 0 ? (double)c->scale : 1 / sqrt((double)dk), most = (double)-INFINITY,
         sum = 0;
  for (; n < r->n_held[g] && r->held[g][n] <= row; n++) {
    const double *q = r->q + row * r->t->q_row + h * dk;
    const double *k = r->k + r->held[g][n] * r->t->k_row + g * dk;
    a[n] = 0;
    for (int64_t d = 0; d < dk; d++) a[n] += scale * q[d] * k[d];
    if (c->softcap != 0) a[n] = (double)c->softcap * tanh(a[n] / (double)c->softcap);
    if (c->alibi_slopes) a[n] -= (double)c->alibi_slopes[h] * (double)(row - r->held[g][n]);
    most = a[n] > most ? a[n] : most;
  }
  if (c->weighting == LATTN_SIGMOID) {
    for (int64_t i = 0; i < n; i++) a[i] = 1 / (1 + exp(-a[i] - (double)c->sigmoid_bias));
    return n;
  }
  for (int64_t i = 0; i < n; i++) sum += exp(a[i] - most);
  if (c->sink_logits) sum += exp((double)c->sink_logits[h] - most);
  for (int64_t i = 0; i < n; i++) a[i] = exp(a[i] - most) / sum;
  return n;
}

/* The next tokens come. */
static inline void ref_marks_extend(ref_marks *r, int64_t n) {
  int64_t group = setup_heads(r->s) / r->s->config.n_kv_heads;
  double *a = (double *)ref_memory(r->n + n, sizeof(double));
  for (int64_t end = r->n + n; r->n < end; r->n++)
    for (int64_t g = 0; g < r->s->config.n_kv_heads; g++) {
      r->held[g][r->n_held[g]++] = r->n;
      if (r->s->heads[g].policy != LATTN_HEAD_HEAVY) continue;
      for (int64_t h = g * group; h < (g + 1) * group; h++) {
        int64_t seen = ref_marks_row(r, h, r->n, a);
        for (int64_t i = 0; i < seen; i++) r->heavy[g][r->held[g][i]] += a[i];
      }
    }
  free(a);
}

static inline int64_t ref_marks_recent(const lattn_head *head) {
  if (head->window) return head->window;
  return head->policy == LATTN_HEAD_SNAP ? 32 : head->budget / 2;
}

/* Pooled scores of a SNAP head. */
static inline void ref_marks_snap(ref_marks *r, int64_t g) {
  const lattn_head *head = &r->s->heads[g];
  int64_t group = setup_heads(r->s) / r->s->config.n_kv_heads, w = ref_marks_recent(head);
  int64_t kernel = head->kernel ? head->kernel : 7, n = r->candidates[g];
  double *a = (double *)ref_memory(r->n, sizeof(double));
  double *raw = (double *)ref_memory(n, sizeof(double));
  double *own = (double *)ref_memory(n, sizeof(double));
  memset(raw, 0, (size_t)n * sizeof *raw);
  for (int64_t h = g * group; h < (g + 1) * group; h++) {
    memset(own, 0, (size_t)n * sizeof *own);
    for (int64_t row = r->n > w ? r->n - w : 0; row < r->n; row++) {
      ref_marks_row(r, h, row, a);
      for (int64_t j = 0; j < n; j++) own[j] += a[j] / (double)(r->n > w ? w : r->n);
    }
    for (int64_t j = 0; j < n; j++)
      raw[j] = head->flags & LATTN_SNAP_GROUP_MAX ? fmax(raw[j], own[j])
                                                  : raw[j] + own[j] / (double)group;
  }
  for (int64_t j = 0; j < n; j++) {
    double most = 0, sum = 0;
    for (int64_t i = j - kernel / 2; i <= j + kernel / 2; i++)
      if (i >= 0 && i < n) most = fmax(most, raw[i]), sum += raw[i];
    r->score[g][j] = head->flags & LATTN_SNAP_AVERAGE ? sum / (double)kernel : most;
  }
  free(a);
  free(raw);
  free(own);
}

/* Is a before b in the order of what stays? */
static inline int ref_marks_before(const ref_marks *r, int64_t g, int64_t i, int64_t f, int64_t j) {
  double a = r->score[g][i], b = r->score[f][j];
  if (a != b) return a > b;
  if (r->held[g][i] != r->held[f][j]) return r->held[g][i] > r->held[f][j];
  return g < f;
}

/* A mark: scores, and how many of its candidates each head takes. */
static inline void ref_marks_choose(ref_marks *r) {
  int64_t total = 0, n_kv = r->s->config.n_kv_heads, more = 0;
  int shares[CACHE_KV_HEADS] = {0};
  for (int64_t g = 0; g < n_kv; g++)
    if (r->s->heads[g].flags & LATTN_SNAP_SHARED) more += r->n_held[g] - r->s->heads[g].budget;
  for (int64_t g = 0; g < n_kv; g++) {
    const lattn_head *head = &r->s->heads[g];
    int64_t recent = ref_marks_recent(head);
    r->candidates[g] = 0;
    if (head->policy != LATTN_HEAD_SNAP && head->policy != LATTN_HEAD_HEAVY) continue;
    shares[g] = (head->flags & LATTN_SNAP_SHARED) != 0;
    if (shares[g] ? more <= 0 : r->n_held[g] <= head->budget) {
      shares[g] = 0;
      continue;
    }
    r->candidates[g] = r->n_held[g] > recent ? r->n_held[g] - recent : 0;
    r->take[g] = head->budget - recent;
    if (head->policy == LATTN_HEAD_SNAP) ref_marks_snap(r, g);
    for (int64_t j = 0; head->policy == LATTN_HEAD_HEAVY && j < r->candidates[g]; j++)
      r->score[g][j] = r->heavy[g][r->held[g][j]];
    if (shares[g]) total += r->take[g];
  }
  for (int64_t g = 0; g < n_kv; g++) {
    const lattn_head *head = &r->s->heads[g];
    double a = head->floor_alpha < 0 ? 0 : head->floor_alpha > 0 ? head->floor_alpha : 0.2;
    int64_t among = 0;
    if (!shares[g]) continue;
    for (int64_t j = 0; j < r->candidates[g]; j++) {
      int64_t before = 0;
      for (int64_t f = 0; f < n_kv; f++)
        for (int64_t i = 0; shares[f] && i < r->candidates[f]; i++)
          before += ref_marks_before(r, f, i, g, j);
      among += before < total;
    }
    r->take[g] = (int64_t)rint((double)among * (1 - a) + floor((double)r->take[g] * a));
  }
  for (int64_t g = 0; g < n_kv; g++)
    if (r->candidates[g] && r->take[g] >= r->candidates[g]) r->candidates[g] = 0;
}

/* Does candidate j of head g stay? */
static inline int ref_marks_stays(const ref_marks *r, int64_t g, int64_t j) {
  int64_t before = 0;
  for (int64_t i = 0; i < r->candidates[g]; i++) before += ref_marks_before(r, g, i, g, j);
  return before < r->take[g];
}

/* From now on the head holds what `stays` says of its candidates, and the newest. */
static inline void ref_marks_drop(ref_marks *r, int64_t g, const unsigned char *stays) {
  int64_t n = 0;
  for (int64_t i = 0; i < r->n_held[g]; i++)
    if (i >= r->candidates[g] || stays[i]) r->held[g][n++] = r->held[g][i];
  r->n_held[g] = n;
}

#endif /* REF_MARKS_H */
