/* state_cases.h - random states of fixed size, and calls on them: any kind, option, shape, type,
 * stride and exec, made from a seed alone, every buffer between guard pages. state.c checks them
 * against the reference, state_engine.c cuts them up, contract.c hashes some.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h, longattn.h, ref.h and ref_state.h. Everything random is drawn one statement
   at a time: the order of evaluation inside an expression is the compiler's choice. */
#ifndef STATE_CASES_H
#define STATE_CASES_H

enum { STATE_GUARDS = 64 };

/* ---- a state in memory of its own, which ends at a guard page ---- */

typedef struct state_box {
  test_guard guard;
  lattn_state *state;
} state_box;

static inline state_box box_open(const lattn_state_config *config) {
  state_box b;
  size_t bytes = lattn_state_bytes(config);
  b.state = NULL;
  b.guard = guard_alloc(bytes, 1);
  memset(b.guard.data, 0xff, bytes);
  CHECK(bytes > 0);
  CHECK_STATUS(lattn_state_init(&b.state, b.guard.data, bytes, config), LATTN_OK);
  return b;
}

static inline void box_close(state_box *b) {
  if (!guard_free(&b->guard)) FAIL("something was written beside a state");
}

/* ---- a case: tokens, and all that a call of them needs ---- */

typedef struct state_case {
  test_rng rng;
  uint64_t seed;
  int64_t n, states, features;
  test_guard guards[STATE_GUARDS];
  int n_guards;
  lattn_state_config config;
  lattn_state_call call;
  lattn_tensor q, k, v, decay, beta, predict, write, rate, momentum, forget;
  float *w[3]; /* TITANS: its first weights, [states][...] */
  int absorbs; /* has no q */
  char name[256];
} state_case;

/* A part of a case's tokens, as a call. */
typedef struct state_part {
  lattn_state_call call;
  lattn_tensor q, k, v, decay, beta, predict, write, rate, momentum, forget;
} state_part;

static inline void *state_buffer(state_case *c, int64_t n, size_t bytes, int any_address) {
  int at_end = rng_chance(&c->rng, 70), odd = rng_chance(&c->rng, 20);
  size_t offset = (size_t)rng_range(&c->rng, 1, 63), size = (size_t)n * bytes;
  if (!odd) offset = 0;
  else if (!any_address) offset = offset * bytes;
  c->guards[c->n_guards] = guard_alloc_at(size, at_end, offset);
  return c->guards[c->n_guards++].data;
}

/* Strides, not of type f32 alone, of a view of n rows: contiguous, padded, heads first, and for
   inputs repeated heads. */
static inline void state_layout(state_case *c, lattn_tensor *t, int input) {
  int64_t how = rng_below(&c->rng, 6), pad = rng_range(&c->rng, 1, 5);
  if (how == 1) t->stride_head = t->dim + pad;
  if (how == 2) t->stride_token = t->n_heads * t->dim + pad;
  if (how == 3 && t->n_tokens) t->stride_head = t->n_tokens * t->dim, t->stride_token = t->dim;
  if (how == 4 && input) t->stride_head = LATTN_BROADCAST, t->stride_token = t->dim;
}

static inline int64_t state_extent(const lattn_tensor *t) {
  if (!t->n_tokens) return 0;
  return tensor_index(t, t->n_tokens - 1, t->n_heads - 1) + t->dim;
}

/* A view in a buffer of its own, and numbers in it that fill(rng) gives, times 2^-halvings. */
typedef float (*state_fill)(test_rng *rng);

static inline lattn_tensor state_tensor(state_case *c, int64_t heads, int64_t dim, state_fill fill,
                                        float times) {
  lattn_tensor t = tensor_of(NULL, (int32_t)rng_below(&c->rng, 6), c->n, heads, dim);
  void *data;
  if (t.type > LATTN_BF16) t.type = LATTN_F32;
  state_layout(c, &t, 1);
  data = state_buffer(c, state_extent(&t), type_bytes(t.type), 1);
  t.data = data;
  for (int64_t i = 0; i < state_extent(&t); i++)
    element_set(data, t.type, i, fill(&c->rng) * times);
  return t;
}

static inline float fill_normal(test_rng *r) { return rng_normal(r); }
static inline float fill_unit(test_rng *r) { return (rng_uniform(r) + 1) * 0.5f; }
static inline float fill_small(test_rng *r) { return (rng_uniform(r) + 1) * 0.0625f; }

/* Log decays: mostly of real models, sometimes a gate that is shut, open, or beyond the ends. */
static inline float fill_decay(test_rng *r) {
  int64_t how = rng_below(r, 40);
  float x = (rng_uniform(r) - 1) * 0.25f; /* -0.5 ... 0 */
  if (how == 0) return 0;
  if (how == 1) return -80;
  if (how == 2) return -100;
  if (how == 3) return -INFINITY;
  if (how == 4) return 0.5f;
  if (how < 9) return x * 40;
  return how < 25 ? x * 0.03125f : x;
}

/* Dims at which vectors and tiles begin and end. */
static inline int32_t state_dim(test_rng *r, int64_t most) {
  static const int32_t dims[] = {1,  2,  3,  5,  8,  15, 16, 17,  24,
                                 31, 32, 33, 48, 64, 65, 96, 128, 130};
  int32_t d = dims[rng_below(r, 18)];
  return d <= most ? d : dims[rng_below(r, 10)];
}

static inline int64_t state_length(test_rng *r) {
  static const int64_t lengths[] = {1, 1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129};
  return lengths[rng_below(r, 15)];
}

static inline void state_heads(state_case *c) {
  static const int32_t heads[][4] = {{1, 1, 1, 1}, {1, 0, 0, 0}, {2, 0, 0, 0}, {4, 2, 2, 4},
                                     {4, 4, 2, 2}, {4, 4, 2, 4}, {4, 4, 4, 2}, {4, 1, 1, 4},
                                     {6, 3, 3, 6}, {6, 6, 1, 3}, {4, 2, 1, 2}, {8, 8, 2, 4},
                                     {3, 1, 3, 1}, {4, 4, 1, 1}};
  int64_t i = rng_below(&c->rng, 14);
  c->config.n_heads = heads[i][0];
  c->config.n_query_heads = heads[i][1];
  c->config.n_key_heads = heads[i][2];
  c->config.n_value_heads = heads[i][3];
}

static inline int64_t state_value_dim(const state_case *c) {
  return c->config.value_dim ? c->config.value_dim : c->config.key_dim;
}

/* A number of heads that divides that of the states. */
static inline int64_t state_few(state_case *c) {
  int64_t of[] = {c->states, c->states, 1}, i = rng_below(&c->rng, 3);
  return of[i];
}

/* The tests' own map: 2 d + 1 features, which do not stretch a distance. */
static inline double state_feature_of(int32_t head, int32_t is_query, const double *x, int64_t dim,
                                      int64_t i) {
  double by = ldexp(is_query ? -0.5 : 0.5, -(head & 3));
  if (i == 2 * dim) return 0.25;
  return i < dim ? x[i] * by : fmax(x[i - dim], 0) * fabs(by);
}

static inline void state_feature_exact(int32_t head, int32_t is_query, const double *x, int64_t dim,
                                       double *f, int64_t n) {
  for (int64_t i = 0; i < n; i++) f[i] = state_feature_of(head, is_query, x, dim, i);
}

static inline void state_feature(void *user, int32_t head, int32_t is_query, const float *x,
                                 int64_t dim, float *features, int64_t n) {
  (void)user;
  for (int64_t i = 0; i < n; i++) {
    double at[2];
    at[0] = (double)x[i < dim ? i : i < 2 * dim ? i - dim : 0];
    at[1] = 0;
    features[i] = (float)state_feature_of(head, is_query, at, 1, i < dim ? 0 : i < 2 * dim ? 1 : 2);
  }
}

static inline void state_draw_linear_options(state_case *c) {
  lattn_state_config *o = &c->config;
  int64_t scales;
  o->feature = (int32_t)rng_below(&c->rng, 14);
  if (o->feature > LATTN_FEATURE_CALLER) o->feature = LATTN_FEATURE_IDENTITY;
  o->key_dim = state_dim(&c->rng, o->feature == LATTN_FEATURE_TAYLOR ? 17 : 130);
  o->value_dim = state_dim(&c->rng, 130);
  if (rng_chance(&c->rng, 15)) o->value_dim = 0;
  if (o->feature == LATTN_FEATURE_CALLER) o->feature_dim = 2 * o->key_dim + 1;
  o->unit = (int32_t)rng_below(&c->rng, 3);
  if (rng_chance(&c->rng, 20)) o->unit_epsilon = 0.125f;
  scales = rng_below(&c->rng, 3);
  o->scale = scales == 1 ? 1.0f : scales == 2 ? 0.3125f : 0;
  o->delta = (int32_t)rng_below(&c->rng, 4);
  if (o->delta > LATTN_DELTA_GENERAL) o->delta = 0;
  /* Features of 1 each are too long for the delta rule: it would not contract. */
  if (o->feature == LATTN_FEATURE_ELU1 || o->feature == LATTN_FEATURE_TAYLOR ||
      o->feature == LATTN_FEATURE_SIGMOID)
    o->delta = 0;
  o->decay = (int32_t)rng_below(&c->rng, 4);
  if (!o->delta) o->reads = rng_chance(&c->rng, 25);
  if (!o->delta) o->normaliser = (int32_t)rng_below(&c->rng, 3);
  if (rng_chance(&c->rng, 20)) o->epsilon = 0.0625f;
  if (!o->delta && !o->decay && rng_chance(&c->rng, 30)) o->flags = LATTN_STATE_COMPENSATED;
}

static inline void state_draw_linear(state_case *c) {
  lattn_state_config *o = &c->config;
  float times;
  int64_t d;
  state_draw_linear_options(c);
  c->states = ref_n_states(o);
  c->features = d = ref_n_features(o);
  if (o->decay == LATTN_DECAY_HEAD) {
    float *g = (float *)state_buffer(c, c->states, sizeof *g, 0);
    for (int64_t s = 0; s < c->states; s++) g[s] = (rng_uniform(&c->rng) - 1) * 0.25f;
    o->log_decay = g;
  }
  if (o->reads && rng_chance(&c->rng, 70)) {
    float *u = (float *)state_buffer(c, c->states * d, sizeof *u, 0);
    for (int64_t i = 0; i < c->states * d; i++) u[i] = rng_normal(&c->rng);
    o->bonus = u;
  }
  /* Keys of a length at which the delta rule contracts. */
  times = o->delta ? (float)(0.5 / sqrt((double)d)) : 1;
  c->k =
      state_tensor(c, o->n_key_heads ? o->n_key_heads : o->n_heads, o->key_dim, fill_normal, times);
  if (o->decay > LATTN_DECAY_HEAD) {
    int64_t heads = state_few(c);
    c->decay = state_tensor(c, heads, o->decay == LATTN_DECAY_STEP ? 1 : d, fill_decay, 1);
    c->call.decay = &c->decay;
  }
  if (o->delta == LATTN_DELTA_KEY && rng_chance(&c->rng, 80)) {
    int64_t heads = state_few(c);
    c->beta = state_tensor(c, heads, 1, fill_unit, 1);
    c->call.beta = &c->beta;
  }
  if (o->delta == LATTN_DELTA_GENERAL) {
    int64_t heads = state_few(c);
    c->predict = state_tensor(c, heads, d, fill_normal, -times);
    heads = state_few(c);
    c->write = state_tensor(c, heads, d, fill_normal, times * 0.25f);
    c->call.predict = &c->predict;
    c->call.write = &c->write;
  }
  if (o->feature == LATTN_FEATURE_CALLER) c->call.feature = state_feature;
}

static inline void state_draw_flow(state_case *c) {
  static const float clamps[][2] = {{0, 0}, {-1, 1}, {-5, 5}, {-10, 10}, {-INFINITY, INFINITY}};
  lattn_state_config *o = &c->config;
  int64_t i = rng_below(&c->rng, 5);
  o->clamp_low = clamps[i][0], o->clamp_high = clamps[i][1];
  if (rng_chance(&c->rng, 40)) o->feature = LATTN_FEATURE_SIGMOID;
  if (rng_chance(&c->rng, 30)) o->feature = LATTN_FEATURE_RELU;
  if (rng_chance(&c->rng, 20)) o->epsilon = 0.0078125f;
  if (rng_chance(&c->rng, 40)) o->flags = LATTN_STATE_COMPENSATED;
}

static inline void state_draw_aaren(state_case *c) {
  lattn_state_config *o = &c->config;
  int64_t n = (int64_t)o->n_heads * o->key_dim;
  float *q = (float *)state_buffer(c, n, sizeof *q, 0);
  for (int64_t i = 0; i < n; i++)
    q[i] = rng_normal(&c->rng) * (rng_chance(&c->rng, 10) ? 4.0f : 1.0f);
  o->query = q;
  if (rng_chance(&c->rng, 40)) o->scale = 0.625f;
}

static inline void state_draw_titans(state_case *c, float *times) {
  lattn_state_config *o = &c->config;
  static const int32_t chunks[] = {0, 1, 2, 3, 4, 16};
  int64_t i = rng_below(&c->rng, 6);
  int64_t sizes[3];
  c->states = ref_n_states(o);
  o->chunk = chunks[i];
  o->reads = rng_chance(&c->rng, 40);
  if (rng_chance(&c->rng, 60)) {
    o->hidden_dim = state_dim(&c->rng, 33);
    o->activation = rng_chance(&c->rng, 50);
    o->residual = rng_chance(&c->rng, 50);
  }
  if (o->residual) o->value_dim = rng_chance(&c->rng, 50) ? o->key_dim : 0;
  i = rng_below(&c->rng, 3);
  o->loss_factor = i == 1 ? 1.0f : i == 2 ? 2.0f / (float)state_value_dim(c) : 0;
  *times = (float)(0.5 / sqrt((double)o->key_dim));
  /* Deep memories diverge on larger steps. */
  c->rate = state_tensor(c, state_few(c), 1, fill_unit, o->hidden_dim ? 0.015625f : 0.25f);
  c->call.rate = &c->rate;
  if (rng_chance(&c->rng, 60)) {
    c->momentum = state_tensor(c, state_few(c), 1, fill_unit, 0.75f);
    c->call.momentum = &c->momentum;
  }
  if (rng_chance(&c->rng, 60)) {
    c->forget = state_tensor(c, state_few(c), 1, fill_small, 1);
    c->call.forget = &c->forget;
  }
  sizes[0] = (int64_t)o->key_dim * (o->hidden_dim ? o->hidden_dim : state_value_dim(c));
  sizes[1] = (int64_t)o->hidden_dim * state_value_dim(c);
  sizes[2] = o->residual ? state_value_dim(c) : 0;
  for (int w = 0; w < 3; w++) {
    float by = w == 2 ? 0.25f : (float)(1 / sqrt((double)(w ? o->hidden_dim : o->key_dim)));
    if (!sizes[w] || (!o->hidden_dim && rng_chance(&c->rng, 50))) continue;
    c->w[w] = (float *)state_buffer(c, c->states * sizes[w], sizeof(float), 0);
    for (int64_t x = 0; x < c->states * sizes[w]; x++) c->w[w][x] = rng_normal(&c->rng) * by;
  }
}

/* kind < 0: any. n: 0 = any. */
static inline void state_case_make(state_case *c, uint64_t seed, int32_t kind, int64_t n) {
  static const int32_t kinds[] = {0, 0, 0, 0, 0, 0, 1, 1, 2, 3};
  lattn_state_config *o = &c->config;
  float times = 1;
  int64_t i;
  memset(c, 0, sizeof *c);
  c->rng = rng_seed(seed + 9000);
  c->seed = seed;
  i = rng_below(&c->rng, 10);
  o->size = sizeof *o;
  c->call.size = sizeof c->call;
  o->kind = kind < 0 ? kinds[i] : kind;
  i = state_length(&c->rng);
  c->n = n ? n : i;
  state_heads(c);
  o->max_drafts = (int32_t)rng_below(&c->rng, 17);
  o->key_dim = state_dim(&c->rng, 130);
  o->value_dim = state_dim(&c->rng, 130);
  if (o->kind == LATTN_STATE_LINEAR) {
    state_draw_linear(c);
  } else {
    if (o->kind == LATTN_STATE_FLOW) state_draw_flow(c);
    if (o->kind == LATTN_STATE_AAREN) state_draw_aaren(c);
    if (o->kind == LATTN_STATE_TITANS) {
      o->key_dim = state_dim(&c->rng, 65);
      o->value_dim = state_dim(&c->rng, 65);
      state_draw_titans(c, &times);
    }
    c->states = ref_n_states(o);
    c->features = o->key_dim;
    c->k = state_tensor(c, o->n_key_heads ? o->n_key_heads : o->n_heads, o->key_dim, fill_normal,
                        times);
  }
  c->q =
      state_tensor(c, o->n_query_heads ? o->n_query_heads : o->n_heads, o->key_dim, fill_normal, 1);
  c->v = state_tensor(c, o->n_value_heads ? o->n_value_heads : o->n_heads, state_value_dim(c),
                      fill_normal, 1);
  snprintf(
      c->name, sizeof c->name,
      "seed %" PRIu64
      ": kind %d, heads %d/%d/%d/%d, dims %d/%d, feature %d, unit %d, decay %d, "
      "delta %d, reads %d, normaliser %d, flags %d, chunk %d, hidden %d, residual %d, n %" PRId64,
      seed, (int)o->kind, (int)o->n_heads, (int)o->n_query_heads, (int)o->n_key_heads,
      (int)o->n_value_heads, (int)o->key_dim, (int)o->value_dim, (int)o->feature, (int)o->unit,
      (int)o->decay, (int)o->delta, (int)o->reads, (int)o->normaliser, (int)o->flags, (int)o->chunk,
      (int)o->hidden_dim, (int)o->residual, c->n);
  for (int g = 0; g < c->n_guards; g++) guard_read_only(&c->guards[g], 1);
}

static inline void state_case_free(state_case *c) {
  int intact = 1;
  while (c->n_guards) intact &= guard_free(&c->guards[--c->n_guards]);
  if (!intact) FAIL("something was written beside a buffer");
}

/* Tokens first ... first + n - 1 of a view. */
static inline lattn_tensor state_rows(const lattn_tensor *t, int64_t first, int64_t n) {
  lattn_tensor part = *t;
  if (!part.stride_head) part.stride_head = t->dim;
  if (!part.stride_token)
    part.stride_token = t->stride_head == LATTN_BROADCAST ? t->dim : t->n_heads * part.stride_head;
  if (t->data)
    part.data = (const char *)t->data + tensor_index(t, first, 0) * (int64_t)type_bytes(t->type);
  part.n_tokens = n;
  return part;
}

/* Do not copy p: its call points into it. */
static inline void state_part_of(state_part *p, const state_case *c, int64_t first, int64_t n) {
  p->call = c->call;
  p->q = state_rows(&c->q, first, n);
  p->k = state_rows(&c->k, first, n);
  p->v = state_rows(&c->v, first, n);
#define STATE_PART(name) \
  if (c->call.name) p->name = state_rows(&c->name, first, n), p->call.name = &p->name
  STATE_PART(decay);
  STATE_PART(beta);
  STATE_PART(predict);
  STATE_PART(write);
  STATE_PART(rate);
  STATE_PART(momentum);
  STATE_PART(forget);
#undef STATE_PART
}

/* Titans: its first weights. */
static inline void state_set_weights(const state_case *c, lattn_state *state) {
  const lattn_state_config *o = &c->config;
  static const int32_t matrices[] = {LATTN_MATRIX_STATE, LATTN_MATRIX_SECOND, LATTN_MATRIX_GAIN};
  for (int i = 0; i < 3; i++) {
    int64_t rows = i == 0 ? o->key_dim : i == 1 ? o->hidden_dim : 1, dv = state_value_dim(c);
    int64_t columns = i == 0 && o->hidden_dim ? o->hidden_dim : dv;
    lattn_tensor m = tensor_of(c->w[i], LATTN_F32, rows, c->states, columns);
    if (!c->w[i]) continue;
    m.stride_head = rows * columns;
    m.stride_token = columns;
    CHECK_STATUS(lattn_state_set(state, matrices[i], 0, m), LATTN_OK);
  }
}

static inline void state_reference(const state_case *c, ref_state *r) {
  ref_state_open(r, &c->config);
  r->feature = state_feature_exact;
  for (int i = 0; i < 3; i++)
    for (int64_t s = 0; c->w[i] && s < c->states; s++)
      for (int64_t x = 0; x < r->sizes[i]; x++)
        ref_set_weight(r, s, i, x, (double)c->w[i][s * r->sizes[i] + x]);
}

/* A state of the case, in memory that ends at a guard page. */
static inline state_box state_open(const state_case *c) {
  state_box b = box_open(&c->config);
  if (b.state) state_set_weights(c, b.state);
  return b;
}

/* ---- execs ---- */

enum state_exec_kind { STATE_NONE, STATE_ONE, STATE_TWO, STATE_THREADS, STATE_EXECS };

typedef struct state_exec {
  lattn_exec exec;
  test_guard guard;
} state_exec;

/* The kind's exec for calls of up to n tokens; NULL for none. */
static inline const lattn_exec *state_exec_open(state_exec *e, const lattn_state_config *config,
                                                int64_t n, int kind) {
  size_t offset = (size_t)(n % 5);
  memset(e, 0, sizeof *e);
  if (kind == STATE_NONE) return NULL;
  e->exec.size = sizeof e->exec;
  e->exec.n_threads = kind == STATE_ONE ? 1 : kind == STATE_TWO ? 2 : 3;
  if (kind == STATE_TWO) e->exec.parallel_for = test_parallel_scrambled;
  if (kind == STATE_THREADS) e->exec.parallel_for = test_parallel_threads;
  e->exec.scratch_bytes = lattn_state_scratch(config, n, e->exec.n_threads);
  e->guard = guard_alloc_at(e->exec.scratch_bytes, 1, offset);
  e->exec.scratch = e->guard.data;
  return &e->exec;
}

static inline void state_exec_close(state_exec *e) {
  if (e->guard.map && !guard_free(&e->guard)) FAIL("something was written beside scratch");
}

/* Calls without scratch are promised up to about 600 features. */
static inline int state_small(const lattn_state_config *c) {
  return ref_n_features(c) <= 512 && c->hidden_dim <= 256 && c->value_dim <= 160;
}

#endif /* STATE_CASES_H */
