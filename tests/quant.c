/* quant.c - caches of 8 and 4 bits: against a float64 simulation of the format, one answer by every
 * route, special values, errors, and how far the outputs are from those of an f32 cache.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   quant --print writes the golden hashes anew, quant --table all families of the table of errors.

   THE REFERENCE. Each token's key and value, and each query, is turned, rounded and read in
   double as §1 of longattn.h and its section "keys and values of 8 and 4 bits" say. Two things
   keep it from being the cache's number exactly. The transform in float32 is off by delta
   (derived at ref_hadamard), so that x / scale may fall to the other side of a tie: then the
   stored number may be its neighbour, and `off` of that number is the step. Likewise for a scale
   that falls near a tie of float16. Of keys and values both are rare (delta is 1e-4 steps of 8
   bits); else `off` is 0, as it is for all dims that have no transform. A step of a query of 15
   bits is often in doubt, but small: 6e-5 of its largest. All the rest is float32 arithmetic on
   equal numbers, bounded as in ref.h:

   Scores. Sums of products of integers are exact: |sum| <= 127 * 128 * 127 * 1024 < 2^31. Then
   come, each rounded once: the number as a float; the product with the key's scale (LATTN_I4: a
   fused multiply-add for each 32 channels), and with the query's, of which amplitude / 127 and
   the factor 1/sqrt(dk) took 4. With A = sum |q_d k_d|:
       |ds| <= |scale| (7 + channels / 32) u A + what `off` of both can do.

   Values. LATTN_I4: no rounding more (4 bits * 11 bits). As in ref.h, in the basis, + sum p_j off_j
   / P. Then the transform back: its delta, + 2u.

   Values of LATTN_I8 have weights of their own, p'_j = u_j X / (16383 h_j), as longattn.h says at
   "weights of integers": h_j is the value's scale, X the largest p_j h_j of the block, u_j = p_j
   h_j / (X / 16383), rounded. Where float32's weights, off by D_j as in ref.h, could round u_j to a
   neighbour, the step is in doubt. So with d the part by which X may be off,
       |dp'_j| <= (D_j may round u_j elsewhere ? X / (16383 h_j) : 0) + d p'_j,
       |do| <= (sum |dp'_j| |v_j| + |o| sum D_j) / P + 5 u sum p'_j |v_j| / P,
   of which 5 are w h, X / 16383, the sum as a float, the product of both, and the fold; and 127 *
   2^-127 a key, where X is below 2^-112 and thus is not the largest. */
#include "test.h"
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

enum { HEADS = 12, KV_HEADS = 4, MAX_DIM = 1024, N_TYPES = 5 };

static const char *quant_type_name(int32_t type) {
  return type == LATTN_I8 ? "i8" : type == LATTN_I4 ? "i4" : type_name(type);
}

static int is_quant(int32_t type) { return type == LATTN_I8 || type == LATTN_I4; }

/* ---- a cache, its configuration, and the tokens that go into it ---- */

typedef struct rig {
  lattn_cache_config config;
  lattn_head head[KV_HEADS];
  lattn_rotary rotary;
  uint64_t turns[MAX_DIM / 2];
  float slopes[HEADS], sinks[HEADS];
  lattn_fault fault;
  int64_t n_tokens, heads, kv_heads, key_dim, value_dim; /* of the arrays */
  test_guard q_at, k_at, v_at, out_at, lse_at;
  float *q, *k, *v, *out, *lse; /* [n_tokens][heads][dim] */
  float *key_bias;              /* NULL, or [heads][n_tokens]: by position */
  float *pair_bias;             /* NULL, or [n_tokens][heads][n_tokens]: by row, position */
  float *gate;                  /* NULL, or [n_tokens][heads]: by row */
  test_guard arena;
  lattn_pool *pool;
  lattn_cache *cache;
} rig;

static int32_t key_type_of(const rig *r, int64_t g) {
  int32_t type = r->head[g].key_type ? r->head[g].key_type : r->config.key_type;
  return type ? type : LATTN_F32;
}
static int32_t value_type_of(const rig *r, int64_t g) {
  int32_t type = r->head[g].value_type ? r->head[g].value_type : r->config.value_type;
  return type ? type : LATTN_F32;
}

/* All heads full. Set what else config is to have, then rig_open. */
static void rig_init(rig *r, int64_t heads, int64_t kv_heads, int64_t key_dim, int64_t value_dim,
                     int64_t n_tokens) {
  memset(r, 0, sizeof *r);
  r->config.size = sizeof r->config;
  r->config.head_size = sizeof *r->head;
  r->config.n_heads = (int32_t)heads;
  r->config.n_kv_heads = (int32_t)kv_heads;
  r->config.key_dim = (int32_t)key_dim;
  r->config.value_dim = (int32_t)value_dim;
  r->config.capacity = n_tokens;
  r->config.heads = r->head;
  r->config.fault = &r->fault;
  r->heads = heads;
  r->kv_heads = kv_heads;
  r->key_dim = key_dim;
  r->value_dim = value_dim;
  r->n_tokens = n_tokens;
}

static void rig_types(rig *r, int32_t key_type, int32_t value_type) {
  r->config.key_type = key_type;
  r->config.value_type = value_type;
}

static void rig_stream(rig *r, int64_t g, int64_t sinks, int64_t window, int64_t slack,
                       int32_t positions) {
  r->head[g].policy = LATTN_HEAD_STREAMING;
  r->head[g].positions = positions;
  r->head[g].sinks = sinks;
  r->head[g].window = window;
  r->head[g].slack = slack;
}

static void rig_rotate(rig *r, int32_t layout, int64_t first, int64_t n_dims) {
  lattn_rotary_scaling scaling;
  memset(&scaling, 0, sizeof scaling);
  scaling.size = sizeof scaling;
  scaling.n_dims = (int32_t)n_dims;
  r->rotary.size = sizeof r->rotary;
  r->rotary.layout = layout;
  r->rotary.first_dim = (int32_t)first;
  r->rotary.n_dims = (int32_t)n_dims;
  r->rotary.turns = r->turns;
  r->config.rotary = &r->rotary;
  CHECK_STATUS(lattn_rotary_turns(r->turns, &scaling), LATTN_OK);
}

static void rig_alibi(rig *r) {
  for (int h = 0; h < HEADS; h++) r->slopes[h] = ldexpf(1, -(h + 1) / 2 - 1);
  r->config.alibi_slopes = r->slopes;
}

static void rig_sinks(rig *r) {
  for (int h = 0; h < HEADS; h++) r->sinks[h] = (float)(h % 5) - 2;
  r->config.sink_logits = r->sinks;
}

static float *floats_new(test_guard *at, int64_t n) {
  *at = guard_alloc((size_t)n * sizeof(float), 1);
  return (float *)(void *)at->data;
}

/* A pool for n caches of r, of exactly the size that the library names, filled with NaN. */
static lattn_pool *pool_new(test_guard *arena, const rig *r, int64_t n) {
  lattn_pool *pool = NULL;
  size_t bytes = lattn_pool_bytes(NULL, &r->config, n);
  CHECK(bytes > 0);
  *arena = guard_alloc(bytes, 1);
  memset(arena->data, 0xff, bytes);
  if (!CHECK_STATUS(lattn_pool_init(&pool, arena->data, bytes, NULL), LATTN_OK)) exit(1);
  return pool;
}

static lattn_cache *cache_new(lattn_pool *pool, const rig *r) {
  lattn_cache *cache = NULL;
  if (!CHECK_STATUS(lattn_cache_init(&cache, pool, &r->config), LATTN_OK)) {
    printf("    at %s\n", r->fault.argument ? r->fault.argument : "(no argument named)");
    exit(test_summary());
  }
  return cache;
}

/* Arrays of normal numbers, a pool for n_caches caches, and one of them. */
static void rig_open(rig *r, int64_t n_caches, test_rng *rng) {
  int64_t n = r->n_tokens, q = n * r->heads * r->key_dim, k = n * r->kv_heads * r->key_dim;
  int64_t v = n * r->kv_heads * r->value_dim;
  r->q = floats_new(&r->q_at, q);
  r->k = floats_new(&r->k_at, k);
  r->v = floats_new(&r->v_at, v);
  r->out = floats_new(&r->out_at, n * r->heads * r->value_dim);
  r->lse = floats_new(&r->lse_at, n * r->heads);
  for (int64_t i = 0; i < q; i++) r->q[i] = rng_normal(rng);
  for (int64_t i = 0; i < k; i++) r->k[i] = rng_normal(rng);
  for (int64_t i = 0; i < v; i++) r->v[i] = rng_normal(rng);
  r->pool = pool_new(&r->arena, r, n_caches);
  r->cache = cache_new(r->pool, r);
}

/* The pool must then be empty. */
static void rig_close(rig *r) {
  lattn_pool_stats stats;
  memset(&stats, 0, sizeof stats);
  stats.size = sizeof stats;
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  CHECK_STATUS(lattn_pool_stats_get(r->pool, &stats), LATTN_OK);
  CHECK_I64(stats.n_caches, 0);
  CHECK_I64(stats.n_pages, 0);
  CHECK(guard_free(&r->q_at));
  CHECK(guard_free(&r->k_at));
  CHECK(guard_free(&r->v_at));
  CHECK(guard_free(&r->out_at));
  CHECK(guard_free(&r->lse_at));
  CHECK(guard_free(&r->arena));
  free(r->key_bias);
  free(r->pair_bias);
  free(r->gate);
}

static lattn_tensor rig_q(const rig *r, int64_t first, int64_t n) {
  return tensor_of(r->q + first * r->heads * r->key_dim, LATTN_F32, n, r->heads, r->key_dim);
}
static lattn_tensor rig_k(const rig *r, int64_t first, int64_t n) {
  return tensor_of(r->k + first * r->kv_heads * r->key_dim, LATTN_F32, n, r->kv_heads, r->key_dim);
}
static lattn_tensor rig_v(const rig *r, int64_t first, int64_t n) {
  return tensor_of(r->v + first * r->kv_heads * r->value_dim, LATTN_F32, n, r->kv_heads,
                   r->value_dim);
}
static lattn_tensor rig_out(const rig *r, float *out, int64_t first, int64_t n) {
  return tensor_of(out + first * r->heads * r->value_dim, LATTN_F32, n, r->heads, r->value_dim);
}

/* What a call gives: its rows are first ... of the biases and gates. */
typedef struct call_views {
  lattn_call call;
  lattn_tensor key_bias, pair_bias, gate;
} call_views;

static const lattn_call *call_of(call_views *c, const rig *r, int64_t first, int64_t n) {
  int64_t all = r->n_tokens;
  memset(c, 0, sizeof *c);
  c->call.size = sizeof c->call;
  if (r->key_bias) {
    c->key_bias = tensor_of(r->key_bias, LATTN_F32, 1, r->heads, all);
    c->call.key_bias = &c->key_bias;
  }
  if (r->pair_bias) {
    c->pair_bias =
        tensor_of(r->pair_bias + first * r->heads * all, LATTN_F32, n, r->heads, all);
    c->call.pair_bias = &c->pair_bias;
  }
  if (r->gate) {
    c->gate = tensor_of(r->gate + first * r->heads, LATTN_F32, n, r->heads, 1);
    c->call.gate = &c->gate;
  }
  return &c->call;
}

/* Threads and scratch by chance; rng NULL: one thread, with scratch. */
typedef struct runner {
  lattn_exec exec;
  test_guard scratch;
  lattn_fault fault;
} runner;

static const lattn_exec *runner_open(runner *x, const rig *r, int64_t n, test_rng *rng) {
  static const int32_t threads[4] = {1, 1, 2, 7};
  int small = r->key_dim <= 256 && r->value_dim <= 160;
  memset(x, 0, sizeof *x);
  x->exec.size = sizeof x->exec;
  x->exec.fault = &x->fault;
  x->exec.n_threads = rng ? threads[rng_below(rng, 4)] : 1;
  if (x->exec.n_threads > 1)
    x->exec.parallel_for = rng_chance(rng, 20) ? test_parallel_threads : test_parallel_scrambled;
  if (rng && small && rng_chance(rng, 20)) {
    x->scratch = guard_alloc(0, 1);
    return rng_chance(rng, 50) ? NULL : &x->exec;
  }
  x->scratch = guard_alloc(lattn_cache_scratch(&r->config, n, x->exec.n_threads), 1);
  x->exec.scratch = x->scratch.data;
  x->exec.scratch_bytes = x->scratch.bytes;
  return &x->exec;
}

static void runner_close(runner *x) { CHECK(guard_free(&x->scratch)); }

/* Appends and attends tokens first ... first + n - 1 of the arrays, at position `at`. */
static lattn_status rig_extend(const rig *r, lattn_cache *cache, int64_t at, int64_t first,
                               int64_t n, float *out, float *lse, test_rng *rng) {
  runner x;
  call_views c;
  const lattn_exec *exec = runner_open(&x, r, n, rng);
  lattn_status status =
      lattn_cache_extend(cache, call_of(&c, r, at, n), rig_q(r, first, n), rig_k(r, first, n),
                         rig_v(r, first, n), rig_out(r, out, first, n), lse + first * r->heads,
                         exec);
  if (status < 0) printf("    at %s\n", x.fault.argument ? x.fault.argument : "?");
  runner_close(&x);
  return status;
}

/* ---- the format, in double ---- */

static int ref_turns = 1; /* 0: the simulation leaves the transform out */

/* Size of the Hadamard transform of a dim; 0: none. */
static int64_t ref_basis(int64_t dim) {
  for (int64_t size = 128; ref_turns && size >= 16; size /= 2)
    if (dim % size == 0) return size;
  return 0;
}

/* x becomes its transform: y_i = sum_j (-1)^(bits of i & j) x_j / sqrt(size). delta, NULL or what
   each x may be off, becomes that of y when float32 makes it: log2(size) additions and, with the
   constant 1/sqrt(size), 2 more roundings, each of at most the sum of all |x_j| / sqrt(size). */
static void ref_hadamard(double *x, double *delta, int64_t dim) {
  int64_t size = ref_basis(dim);
  for (int64_t at = 0; size && at < dim; at += size) {
    double sum = 0, off = 0, levels = log2((double)size), *y = x + at;
    for (int64_t i = 0; i < size; i++) {
      sum += fabs(y[i]);
      if (delta) off += delta[at + i];
    }
    off = (off + (levels + 2) * REF_U * sum) / sqrt((double)size);
    for (int64_t h = 1; h < size; h *= 2)
      for (int64_t i = 0; i < size; i++)
        if (!(i & h)) {
          double a = y[i], b = y[i + h];
          y[i] = a + b;
          y[i + h] = a - b;
        }
    for (int64_t i = 0; i < size; i++) {
      y[i] /= sqrt((double)size);
      if (delta) delta[at + i] = off;
    }
  }
}

/* Integers of a kind: least ... most, times a scale, extreme / divisor, of float16 if `half`. The
   extreme is the first of the numbers with the largest magnitude; but for keys of 4 bits, the
   magnitude. */
typedef struct ref_grid {
  double divisor, least, most;
  int half;
} ref_grid;

static const ref_grid grid_8 = {127, -127, 127, 1}, grid_4_key = {-8, -8, 7, 1};
static const ref_grid grid_4_value = {7, -7, 7, 1};
static const ref_grid grid_query_8 = {127 * 128, -127 * 128, 127 * 128, 0}; /* for keys of 8 bits */
static const ref_grid grid_query_4 = {127, -127, 127, 0};

static double ref_scale_of(double extreme, const ref_grid *grid) {
  float scale = (float)(extreme / grid->divisor);
  return (double)(grid->half ? f32_of_f16(f16_of_f32(scale)) : scale);
}

static double ref_round(double x, double scale, const ref_grid *grid) {
  return scale != 0 ? fmax(grid->least, fmin(grid->most, rint(x / scale))) * scale : 0;
}

/* n numbers, each off by at most delta, become what is stored of them; delta how far the stored
   number may be from this one: of each, and of the extreme, there are neighbours; and if delta lets
   another number be the extreme, that of the other sign. Returns the scale. */
static double ref_quantise(double *x, double *delta, int64_t n, const ref_grid *grid) {
  double extreme = 0, slack = 0, scale[6];
  int sides = 1, negative = grid->divisor < 0;
  for (int64_t i = 0; i < n; i++) {
    if (!isfinite(x[i]) || isnan(extreme)) extreme = (double)NAN;
    else if (fabs(x[i]) > fabs(extreme)) extreme = x[i];
    slack = fmax(slack, delta[i]);
  }
  for (int64_t i = 0; i < n && negative && slack > 0; i++)
    if (x[i] * extreme < 0 && fabs(x[i]) >= fabs(extreme) - 2 * slack) sides = 2;
  if (!negative) extreme = fabs(extreme);
  for (int s = 0; s < 3 * sides; s++) {
    double more = (s % 3 - 1) * (slack + 2 * REF_U * fabs(extreme));
    scale[s] = ref_scale_of((s < 3 ? 1 : -1) * (extreme + (extreme < 0 ? -more : more)), grid);
  }
  for (int64_t i = 0; i < n; i++) {
    double y = isfinite(scale[1]) ? ref_round(x[i], scale[1], grid) : (double)NAN, off = 0;
    double t = delta[i] + 2 * REF_U * fabs(x[i]);
    for (int s = 0; s < 3 * sides; s++)
      for (int side = -1; side <= 1; side++)
        off = fmax(off, fabs(ref_round(x[i] + side * t, scale[s], grid) - y));
    x[i] = y;
    delta[i] = off;
  }
  return scale[1];
}

/* One key or value, as stored by `type`, in its basis. Returns the scale of LATTN_I8. */
static double ref_store(double *x, double *delta, int64_t dim, int32_t type, int is_key) {
  if (!is_quant(type)) {
    for (int64_t d = 0; d < dim; d++) {
      unsigned char element[4];
      element_set(element, type, 0, (float)x[d]);
      x[d] = (double)element_get(element, type, 0);
    }
    return 1;
  }
  if (is_key || type == LATTN_I4) ref_hadamard(x, delta, dim);
  if (type == LATTN_I8) return ref_quantise(x, delta, dim, &grid_8);
  for (int64_t d = 0; d < dim; d += 32)
    ref_quantise(x + d, delta + d, dim - d < 32 ? dim - d : 32,
                 is_key ? &grid_4_key : &grid_4_value);
  return 1;
}

/* What a cache holds of a list of tokens: position i is token token[i] of the arrays, in slot
   slot[i]. */
typedef struct ref_list {
  const rig *r;
  int64_t n;
  int64_t *token, *slot;
  double *k, *k_off, *v, *v_off; /* [n][kv_heads][dim] in their bases */
  double *v_scale;               /* [n][kv_heads] of LATTN_I8 */
  double *q, *q_off;             /* of one row, for keys of one angle */
  double *o;                     /* [3][value_dim] */
  ref_call sums;                 /* its arrays of scores and weights */
} ref_list;

/* Room for n tokens; positions 0 ... n - 1 are tokens 0 ... n - 1. */
static void list_open(ref_list *l, const rig *r, int64_t n) {
  memset(l, 0, sizeof *l);
  l->r = r;
  l->n = n;
  l->token = (int64_t *)ref_memory(n, sizeof(int64_t));
  l->slot = (int64_t *)ref_memory(n, sizeof(int64_t));
  for (int64_t i = 0; i < n; i++) l->token[i] = l->slot[i] = i;
  l->k = (double *)ref_memory(n * r->kv_heads * r->key_dim, sizeof(double));
  l->k_off = (double *)ref_memory(n * r->kv_heads * r->key_dim, sizeof(double));
  l->v = (double *)ref_memory(n * r->kv_heads * r->value_dim, sizeof(double));
  l->v_off = (double *)ref_memory(n * r->kv_heads * r->value_dim, sizeof(double));
  l->v_scale = (double *)ref_memory(n * r->kv_heads, sizeof(double));
  l->q = (double *)ref_memory(r->key_dim, sizeof(double));
  l->q_off = (double *)ref_memory(r->key_dim, sizeof(double));
  l->o = (double *)ref_memory(3 * r->value_dim, sizeof(double));
  l->sums.scores = (double *)ref_memory(n, sizeof(double));
  l->sums.errors = (double *)ref_memory(n, sizeof(double));
  l->sums.weights = (double *)ref_memory(n, sizeof(double));
  l->sums.visible = (int64_t *)ref_memory(n, sizeof(int64_t));
  l->sums.value_dim = r->value_dim;
}

static void list_close(ref_list *l) {
  free(l->token);
  free(l->slot);
  free(l->k);
  free(l->k_off);
  free(l->v);
  free(l->v_off);
  free(l->v_scale);
  free(l->q);
  free(l->q_off);
  free(l->o);
  free(l->sums.scores);
  free(l->sums.errors);
  free(l->sums.weights);
  free(l->sums.visible);
}

/* One row of floats, turned to a position in float32 (lattn_rotate is tested by rotary.c, and
   cache.c shows that caches turn keys and queries to its bits), in double. */
static void turned(double *to, const rig *r, const float *from, int64_t position) {
  float x[MAX_DIM];
  memcpy(x, from, (size_t)r->key_dim * sizeof *x);
  if (r->config.rotary) {
    lattn_tensor t = tensor_of(x, LATTN_F32, 1, 1, r->key_dim);
    CHECK_STATUS(lattn_rotate(r->config.rotary, t, position, NULL), LATTN_OK);
  }
  for (int64_t d = 0; d < r->key_dim; d++) to[d] = (double)x[d];
}

/* Stores positions from ... n - 1, after token and slot were set. */
static void list_store(ref_list *l, int64_t from) {
  const rig *r = l->r;
  for (int64_t i = from; i < l->n; i++)
    for (int64_t g = 0; g < r->kv_heads; g++) {
      int64_t at = l->token[i] * r->kv_heads + g, to = i * r->kv_heads + g;
      double *k = l->k + to * r->key_dim, *v = l->v + to * r->value_dim;
      double *k_off = l->k_off + to * r->key_dim, *v_off = l->v_off + to * r->value_dim;
      turned(k, r, r->k + at * r->key_dim, l->slot[i]);
      for (int64_t d = 0; d < r->value_dim; d++) v[d] = (double)r->v[at * r->value_dim + d];
      memset(k_off, 0, (size_t)r->key_dim * sizeof *k_off);
      memset(v_off, 0, (size_t)r->value_dim * sizeof *v_off);
      ref_store(k, k_off, r->key_dim, key_type_of(r, g), 1);
      l->v_scale[to] = ref_store(v, v_off, r->value_dim, value_type_of(r, g), 0);
    }
}

/* ---- attention over the list ---- */

/* The query of a row's head for keys that see it at slot `angle`. */
static void list_query(ref_list *l, int64_t i, int64_t head, int64_t angle) {
  const rig *r = l->r;
  int32_t type = key_type_of(r, head / (r->heads / r->kv_heads));
  turned(l->q, r, r->q + (l->token[i] * r->heads + head) * r->key_dim, angle);
  memset(l->q_off, 0, (size_t)r->key_dim * sizeof *l->q_off);
  if (!is_quant(type)) return;
  ref_hadamard(l->q, l->q_off, r->key_dim);
  ref_quantise(l->q, l->q_off, r->key_dim, type == LATTN_I8 ? &grid_query_8 : &grid_query_4);
}

/* scale * (query . key j), and what float32 and `off` may do to it. */
static double list_dot(const ref_list *l, int64_t j, int64_t g, double *error) {
  const rig *r = l->r;
  int64_t dim = r->key_dim, at = (j * r->kv_heads + g) * dim;
  const double *q = l->q, *q_off = l->q_off, *k = l->k + at, *k_off = l->k_off + at;
  double scale = r->config.scale != 0 ? (double)r->config.scale : 1 / sqrt((double)dim);
  double sum = 0, all = 0, loose = 0, rounds = (double)(dim + 3);
  if (is_quant(key_type_of(r, g))) rounds = 7 + (double)dim / 32;
  for (int64_t d = 0; d < dim; d++) {
    double x = q[d] * k[d];
    sum += x;
    all += fabs(x);
    loose += q_off[d] * fabs(k[d]) + (fabs(q[d]) + q_off[d]) * k_off[d];
  }
  *error = fabs(scale) * (rounds * REF_U * 1.001 * all + loose) + 0x1p-100;
  return scale * sum;
}

/* The score by every step of the options; `row` counts in the call's arrays. */
static double list_score(const ref_list *l, int64_t j, int64_t head, int64_t row, int64_t distance,
                         double *error) {
  const rig *r = l->r;
  double s = list_dot(l, j, head / (r->heads / r->kv_heads), error);
  double cap = (double)r->config.softcap;
  if (cap > 0) {
    s = cap * tanh(s / cap);
    *error += 8 * REF_U * fabs(s);
  }
  if (r->config.alibi_slopes) {
    double term = (double)r->slopes[head] * (double)distance;
    s -= term;
    *error += REF_U * (fabs(term) + fabs(s));
  }
  if (r->key_bias) {
    s += (double)r->key_bias[head * r->n_tokens + j];
    *error += REF_U * fabs(s);
  }
  if (r->pair_bias) {
    s += (double)r->pair_bias[(row * r->heads + head) * r->n_tokens + j];
    *error += REF_U * fabs(s);
  }
  return s;
}

/* Distance at which position i meets key j; -1: it does not see it. */
static int64_t list_distance(const rig *r, int64_t g, int64_t i, int64_t j) {
  const lattn_head *head = &r->head[g];
  int in_cache = head->positions == LATTN_POSITIONS_IN_CACHE ||
                 (!head->positions && (r->config.rotary || r->config.alibi_slopes));
  int64_t length = head->sinks + head->window;
  if (head->policy != LATTN_HEAD_STREAMING || i - j < head->window) return i - j;
  if (j >= head->sinks) return -1;
  return in_cache && i >= length ? length - 1 - j : i - j;
}

/* Fills scores, errors, visible; returns how many. */
static int64_t list_scores(ref_list *l, int64_t i, int64_t head, int64_t row, int *folds,
                           int *levels) {
  const rig *r = l->r;
  int64_t g = head / (r->heads / r->kv_heads), angle = -1, n = 0;
  int64_t block = -1, segment = -1, blocks = 0, segments = 0;
  for (int64_t j = 0; j <= i; j++) {
    int64_t distance = list_distance(r, g, i, j);
    if (distance < 0) continue;
    if (l->slot[j] + distance != angle) list_query(l, i, head, l->slot[j] + distance);
    angle = l->slot[j] + distance;
    blocks += l->slot[j] / REF_BLOCK != block;
    segments += l->slot[j] / REF_SEGMENT != segment;
    block = l->slot[j] / REF_BLOCK;
    segment = l->slot[j] / REF_SEGMENT;
    l->sums.scores[n] = list_score(l, j, head, row, distance, &l->sums.errors[n]);
    l->sums.visible[n++] = j;
  }
  *folds = (int)(blocks > 16 ? 15 : blocks > 0 ? blocks - 1 : 0);
  *levels = r->config.sink_logits != NULL;
  for (int64_t reach = 1; reach < segments; reach *= 2) (*levels)++;
  return n;
}

/* Weights of integers of keys [from, to) of one block: p becomes p', slack |dp'|. */
static void list_round_block(const ref_list *l, int64_t g, int64_t from, int64_t to, double *p,
                             double *slack) {
  int64_t most = -1;
  double largest = 0, doubt;
  for (int64_t j = from; j < to; j++) {
    double x = p[j] * l->v_scale[l->sums.visible[j] * l->r->kv_heads + g];
    if (x > largest) largest = x, most = j; /* NaN is none: it makes the row NaN by its value */
  }
  if (most < 0 || p[most] < 0x1p-90) { /* what float32 makes of it is about as small */
    for (int64_t j = from; j < to; j++) slack[j] += p[j];
    return;
  }
  doubt = slack[most] / p[most];
  for (int64_t j = from; j < to; j++) {
    double h = l->v_scale[l->sums.visible[j] * l->r->kv_heads + g], step = largest / 16383 / h;
    double y = p[j] / step, off = slack[j] / step + y * (doubt + 4 * REF_U), u = rint(y);
    if (!(h > 0)) continue;
    off = fmax(rint(y + off) - u, u - rint(y - off));
    p[j] = u * step;
    slack[j] = off * step + p[j] * doubt;
  }
}

/* The row's weights for values of LATTN_I8, apart from those in its sum; *lost = sum D_j. */
static void list_round_weights(ref_list *l, int64_t g, int64_t n, double *lost) {
  *lost = 0;
  for (int64_t j = 0; j < n; j++) *lost += l->sums.errors[j];
  for (int64_t from = 0, to; from < n; from = to) {
    int64_t block = l->slot[l->sums.visible[from]] / REF_BLOCK;
    for (to = from; to < n && l->slot[l->sums.visible[to]] / REF_BLOCK == block;) to++;
    list_round_block(l, g, from, to, l->sums.weights, l->sums.errors);
  }
}

/* out and bound, in the basis of the values. */
static void list_values(ref_list *l, ref_row *y, int64_t g, int64_t n, const ref_sums *sums) {
  const rig *r = l->r;
  int64_t dim = r->value_dim, d;
  const double *p = l->sums.weights, *slack = l->sums.errors;
  double *all = l->o, *largest = l->o + dim, *loose = l->o + 2 * dim;
  int ints = value_type_of(r, g) == LATTN_I8;
  double rounds = sums->roundings, lost = 0;
  if (ints) { /* no chain of a block's keys */
    rounds += 5 - (double)(n < REF_BLOCK ? n : REF_BLOCK);
    list_round_weights(l, g, n, &lost);
  }
  for (d = 0; d < dim; d++) y->out[d] = y->bound[d] = all[d] = largest[d] = loose[d] = 0;
  for (int64_t j = 0; j < n; j++) {
    int64_t at = (l->sums.visible[j] * r->kv_heads + g) * dim;
    for (d = 0; d < dim; d++) {
      double v = l->v[at + d], off = l->v_off[at + d];
      y->out[d] += p[j] * v;
      all[d] += p[j] * fabs(v);
      largest[d] = fmax(largest[d], fabs(v) + off);
      loose[d] += p[j] * off;
    }
  }
  for (d = 0; d < dim; d++) y->out[d] /= sums->total;
  for (int64_t j = 0; j < n; j++) {
    int64_t at = (l->sums.visible[j] * r->kv_heads + g) * dim;
    for (d = 0; d < dim; d++)
      y->bound[d] += slack[j] * fabs(l->v[at + d] - (ints || !sums->is_mean ? 0 : y->out[d]));
  }
  for (d = 0; d < dim; d++) {
    double drift = (y->bound[d] + (lost + sums->sink_slack) * fabs(y->out[d])) / sums->low;
    if (!sums->is_mean) drift = y->bound[d] * (1 + rounds * REF_U);
    else drift = fmin(drift, 2 * largest[d]);
    y->bound[d] = drift + rounds * REF_U * (all[d] + loose[d]) / sums->total +
                  loose[d] / sums->low + (double)n * (ints ? 0x1p-120 : 0x1p-142);
  }
}

/* From the basis to the output: turned back, gated, rounded. */
static void list_finish(const ref_list *l, ref_row *y, int64_t head, int64_t row) {
  const rig *r = l->r;
  double gate = r->gate ? (double)r->gate[row * r->heads + head] : 1;
  if (value_type_of(r, head / (r->heads / r->kv_heads)) == LATTN_I4)
    ref_hadamard(y->out, y->bound, r->value_dim);
  for (int64_t d = 0; d < r->value_dim; d++) {
    y->bound[d] = fabs(gate) * (y->bound[d] + 2 * REF_U * fabs(y->out[d]));
    y->out[d] *= gate;
    y->bound[d] += ref_half_ulp(LATTN_F32, fabs(y->out[d]) + y->bound[d]);
  }
}

/* Attention of position i by one query head; `row` is its row in the call's biases and gates. */
static void list_attend(ref_list *l, int64_t i, int64_t head, int64_t row, ref_row *y) {
  const rig *r = l->r;
  int folds, levels;
  int64_t n = list_scores(l, i, head, row, &folds, &levels), b = n < REF_BLOCK ? n : REF_BLOCK;
  double sink = r->config.sink_logits ? (double)r->sinks[head] : -REF_INFINITY, maximum = sink;
  ref_sums sums;
  y->n_visible = n;
  for (int64_t j = 0; j < n; j++) {
    if (isnan(l->sums.scores[j])) { /* and all of the row with it */
      for (int64_t d = 0; d < r->value_dim; d++) y->out[d] = y->bound[d] = (double)NAN;
      y->lse = y->lse_bound = (double)NAN;
      return;
    }
    maximum = fmax(maximum, l->sums.scores[j]);
  }
  if (r->config.weighting == LATTN_SIGMOID) {
    l->sums.options.sigmoid_bias = r->config.sigmoid_bias;
    sums = ref_sigmoids(&l->sums, n, 7 * REF_U);
    sums.roundings = (double)b + folds + levels + 2;
  } else {
    sums = ref_weights(&l->sums, n, maximum, sink, (double)(1 + folds + levels) * 4 * REF_U);
    sums.roundings = (double)b + (double)b / 16 + 2 * folds + 2 * levels + 7;
  }
  list_values(l, y, head / (r->heads / r->kv_heads), n, &sums);
  list_finish(l, y, head, row);
  y->lse = y->lse_bound = (double)NAN;
  if (r->config.weighting == LATTN_SIGMOID) return;
  y->lse = maximum + log(sums.total);
  y->lse_bound = fmax(log1p(sums.slack / sums.total), -log(sums.low / sums.total)) +
                 (sums.roundings - (double)b + 4 * fabs(log(sums.total))) * REF_U +
                 2 * REF_U * fabs(y->lse);
}

static ref_row row_new(const rig *r) {
  ref_call sizes;
  memset(&sizes, 0, sizeof sizes);
  sizes.value_dim = r->value_dim;
  return ref_row_new(&sizes);
}

static double worst_ratio; /* largest error / bound seen */

/* Position i of the list against out, lse [heads][value_dim] of its row. */
static void check_row(ref_list *l, int64_t i, int64_t head, int64_t row, const float *out,
                      const float *lse) {
  const rig *r = l->r;
  ref_row y = row_new(r);
  double worst = 0, of_lse;
  list_attend(l, i, head, row, &y);
  for (int64_t d = 0; d < r->value_dim; d++) {
    double ratio = ref_ratio((double)out[head * r->value_dim + d], y.out[d], y.bound[d]);
    if (ratio > 1 && worst <= 1)
      FAIL("position %" PRId64 " head %" PRId64 " dim %" PRId64 ": %.9g, expected %.9g +- %.3g", i,
           head, d, (double)out[head * r->value_dim + d], y.out[d], y.bound[d]);
    worst = fmax(worst, ratio);
  }
  of_lse = ref_ratio((double)lse[head], y.lse, y.lse_bound);
  if (of_lse > 1)
    FAIL("position %" PRId64 " head %" PRId64 " lse: %.9g, expected %.9g +- %.3g", i, head,
         (double)lse[head], y.lse, y.lse_bound);
  worst_ratio = fmax(worst_ratio, fmax(worst, of_lse));
  ref_row_free(&y);
}

/* `samples` rows of positions from ... to - 1, whose rows lie at their token in r->out. */
static void check_rows(ref_list *l, int64_t from, int64_t to, int samples, test_rng *rng) {
  const rig *r = l->r;
  for (int s = 0; s < samples && to > from; s++) {
    int64_t i = s == 0 ? to - 1 : rng_range(rng, from, to - 1), head = rng_below(rng, r->heads);
    int64_t t = l->token[i];
    check_row(l, i, head, i, r->out + t * r->heads * r->value_dim, r->lse + t * r->heads);
  }
}

/* ---- random configurations ---- */

/* Sigmoid attention in place of softmax, which alone has learned sinks. */
static void rig_sigmoid(rig *r, float bias) {
  r->config.weighting = LATTN_SIGMOID;
  r->config.sigmoid_bias = bias;
  r->config.sink_logits = NULL;
}

static int32_t pick_type(test_rng *rng) {
  return rng_chance(rng, 70) ? (rng_chance(rng, 50) ? LATTN_I8 : LATTN_I4)
                             : (int32_t)rng_range(rng, LATTN_F32, LATTN_BF16);
}

static int64_t pick_dim(test_rng *rng) {
  static const int64_t dims[12] = {16, 17, 32, 33, 48, 64, 80, 100, 128, 160, 192, 256};
  return rng_chance(rng, 80) ? dims[rng_below(rng, 12)] : rng_range(rng, 16, 200);
}

static void pick_rotary(rig *r, test_rng *rng) {
  int32_t layout = rng_chance(rng, 50) ? LATTN_ROTARY_INTERLEAVED : LATTN_ROTARY_HALF_SPLIT;
  int64_t n = r->key_dim / 2 * 2, first = 0;
  if (rng_chance(rng, 40)) {
    n = 2 * rng_range(rng, 1, r->key_dim / 2);
    first = rng_range(rng, 0, r->key_dim - n);
  }
  rig_rotate(r, layout, first, n);
  if (rng_chance(rng, 25)) r->rotary.magnitude = 1.25f;
}

static void pick_heads(rig *r, test_rng *rng, int64_t slack) {
  int per_head = rng_chance(rng, 50);
  r->config.key_type = pick_type(rng); /* one statement for each: the same on every compiler */
  r->config.value_type = pick_type(rng);
  for (int64_t g = 0; g < r->kv_heads; g++) {
    if (per_head && rng_chance(rng, 70)) r->head[g].key_type = pick_type(rng);
    if (per_head && rng_chance(rng, 70)) r->head[g].value_type = pick_type(rng);
    if (rng_chance(rng, 35)) {
      int64_t sinks = rng_chance(rng, 30) ? 0 : rng_range(rng, 1, 40);
      int64_t window = rng_range(rng, 1, 150);
      rig_stream(r, g, sinks, window, slack, rng_chance(rng, 40) ? LATTN_POSITIONS_ABSOLUTE : 0);
    }
  }
}

static void make_full(lattn_head *head) {
  lattn_head full = {.key_type = head->key_type, .value_type = head->value_type};
  *head = full;
}

/* Anything goes. slack: of streaming heads. */
static void pick_config(rig *r, test_rng *rng, int64_t n_tokens, int64_t slack) {
  int64_t kv_heads = rng_range(rng, 1, KV_HEADS), group = rng_range(rng, 1, 3);
  int64_t key_dim = pick_dim(rng), value_dim = rng_chance(rng, 50) ? key_dim : pick_dim(rng);
  rig_init(r, kv_heads * group, kv_heads, key_dim, value_dim, n_tokens);
  pick_heads(r, rng, slack);
  if (rng_chance(rng, 50)) pick_rotary(r, rng);
  if (rng_chance(rng, 20)) rig_alibi(r);
  if (rng_chance(rng, 20)) rig_sinks(r);
  if (rng_chance(rng, 20)) r->config.softcap = 5;
  if (rng_chance(rng, 20)) r->config.scale = rng_chance(rng, 30) ? -0.1f : 0.2f;
  if (rng_chance(rng, 60)) r->config.max_append = (int32_t)rng_range(rng, 1, 200);
}

/* Amplitudes and outlier channels of keys; values with a mean; biases and gates. */
static void pick_data(rig *r, test_rng *rng) {
  int64_t n = r->n_tokens, dim = r->key_dim, rows = n * r->kv_heads;
  int64_t loud = rng_chance(rng, 30) ? rng_below(rng, dim) : -1;
  float by = ldexpf(1, (int)rng_range(rng, -4, 1)), mean = rng_chance(rng, 30) ? 1.5f : 0;
  for (int64_t i = 0; i < rows * dim; i++)
    r->k[i] = by * (r->k[i] + (loud >= 0 && i % dim == loud ? 10.0f : 0.0f));
  for (int64_t i = 0; i < rows * r->value_dim; i++) r->v[i] += mean;
  if (rng_chance(rng, 20)) {
    r->key_bias = (float *)ref_memory(n * r->heads, sizeof(float));
    for (int64_t i = 0; i < n * r->heads; i++) r->key_bias[i] = rng_uniform(rng);
  }
  if (rng_chance(rng, 15)) {
    r->pair_bias = (float *)ref_memory(n * n * r->heads, sizeof(float));
    for (int64_t i = 0; i < n * n * r->heads; i++)
      r->pair_bias[i] = rng_chance(rng, 5) && i % n ? -INFINITY : rng_uniform(rng);
  }
  if (rng_chance(rng, 20)) {
    r->gate = (float *)ref_memory(n * r->heads, sizeof(float));
    for (int64_t i = 0; i < n * r->heads; i++) r->gate[i] = rng_uniform(rng);
  }
}

static void name_case(const char *what, uint64_t seed, const rig *r) {
  char heads[160] = "";
  for (int64_t g = 0; g < r->kv_heads; g++) {
    size_t at = strlen(heads);
    snprintf(heads + at, sizeof heads - at, " %s/%s%s", quant_type_name(key_type_of(r, g)),
             quant_type_name(value_type_of(r, g)),
             r->head[g].policy ? (r->head[g].positions ? "/absolute" : "/stream") : "");
  }
  check_case("%s, seed %" PRIu64 ": %" PRId64 " tokens, %" PRId64 "/%" PRId64
             " heads%s, dims %" PRId64 " %" PRId64 "%s%s%s",
             what, seed, r->n_tokens, r->heads, r->kv_heads, heads, r->key_dim, r->value_dim,
             r->config.rotary ? ", rotary" : "", r->config.alibi_slopes ? ", ALiBi" : "",
             r->config.sink_logits ? ", sinks"
             : r->config.weighting ? ", sigmoid"
                                   : "");
}

/* Extends by positions first ... end - 1 in random cuts. */
static void extend_cut(rig *r, lattn_cache *cache, int64_t first, int64_t end, float *out,
                       float *lse, test_rng *rng) {
  while (first < end) {
    int64_t n = rng_chance(rng, 50) ? end - first : rng_range(rng, 1, 40);
    if (n > end - first) n = end - first;
    if (!CHECK_STATUS(rig_extend(r, cache, first, first, n, out, lse, rng), LATTN_OK)) return;
    first += n;
  }
}

/* ---- tests against the reference ---- */

static void test_random(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(120); seed++) {
    test_rng rng = rng_seed(1000 + test_first_seed() + seed);
    int64_t n = seed % 100 == 59 ? 2300 : seed % 6 == 5 ? rng_range(&rng, 200, 500)
                                                       : rng_range(&rng, 1, 150);
    rig r;
    ref_list l;
    pick_config(&r, &rng, n, 0);
    if (seed % 5 == 2) rig_sigmoid(&r, seed % 3 ? -2.5f : 0);
    rig_open(&r, 1, &rng);
    if (n < 1000) pick_data(&r, &rng);
    name_case("random", seed, &r);
    extend_cut(&r, r.cache, 0, n, r.out, r.lse, &rng);
    list_open(&l, &r, n);
    list_store(&l, 0);
    check_rows(&l, 0, n, 24, &rng);
    list_close(&l);
    rig_close(&r);
  }
}

/* ---- drafts and holes, against the reference ---- */

enum { DRAFTS = 12 };

/* Draft tokens, their arrays, and their places in the tree. */
typedef struct drafts {
  int32_t n, parent[DRAFTS];
  int64_t token[DRAFTS]; /* of the rig's arrays */
  float *q, *k, *v, *out, *lse;
} drafts;

static void drafts_open(drafts *d, const rig *r) {
  memset(d, 0, sizeof *d);
  d->q = (float *)ref_memory(DRAFTS * r->heads * r->key_dim, sizeof(float));
  d->k = (float *)ref_memory(DRAFTS * r->kv_heads * r->key_dim, sizeof(float));
  d->v = (float *)ref_memory(DRAFTS * r->kv_heads * r->value_dim, sizeof(float));
  d->out = (float *)ref_memory(DRAFTS * r->heads * r->value_dim, sizeof(float));
  d->lse = (float *)ref_memory(DRAFTS * r->heads, sizeof(float));
}

static void drafts_close(drafts *d) {
  free(d->q);
  free(d->k);
  free(d->v);
  free(d->out);
  free(d->lse);
}

static void drafts_add(drafts *d, const rig *r, int64_t token, int32_t parent) {
  int64_t q = r->heads * r->key_dim, k = r->kv_heads * r->key_dim, v = r->kv_heads * r->value_dim;
  memcpy(d->q + d->n * q, r->q + token * q, (size_t)q * sizeof(float));
  memcpy(d->k + d->n * k, r->k + token * k, (size_t)k * sizeof(float));
  memcpy(d->v + d->n * v, r->v + token * v, (size_t)v * sizeof(float));
  d->token[d->n] = token;
  d->parent[d->n++] = parent;
}

/* In two calls, if there are enough. Rows of biases and gates are those of positions at ... */
static void drafts_attend(drafts *d, const rig *r, lattn_cache *cache, int64_t at, test_rng *rng) {
  for (int32_t first = 0, n; first < d->n; first += n) {
    runner x;
    call_views c;
    n = first || d->n < 4 || rng_chance(rng, 50) ? d->n - first : d->n / 2;
    const lattn_exec *exec = runner_open(&x, r, n, rng);
    lattn_tensor q = tensor_of(d->q + first * r->heads * r->key_dim, LATTN_F32, n, r->heads,
                               r->key_dim);
    lattn_tensor k = tensor_of(d->k + first * r->kv_heads * r->key_dim, LATTN_F32, n, r->kv_heads,
                               r->key_dim);
    lattn_tensor v = tensor_of(d->v + first * r->kv_heads * r->value_dim, LATTN_F32, n,
                               r->kv_heads, r->value_dim);
    CHECK_STATUS(lattn_cache_draft(cache, call_of(&c, r, at + first, n), d->parent + first, q, k, v,
                                   rig_out(r, d->out, first, n), d->lse + first * r->heads, exec),
                 LATTN_OK);
    runner_close(&x);
  }
}

/* The committed positions 0 ... n - 1 of the list, then the path to draft i. Its position. */
static int64_t list_path(ref_list *l, const drafts *d, int64_t n, int32_t i) {
  int64_t depth = 0, position, slot = n ? l->slot[n - 1] + 1 : 0;
  for (int32_t p = d->parent[i]; p >= 0; p = d->parent[p]) depth++;
  position = n + depth;
  l->n = position + 1;
  for (int32_t p = i; p >= 0; p = d->parent[p], depth--) {
    l->token[n + depth] = d->token[p];
    l->slot[n + depth] = slot + depth;
  }
  list_store(l, n);
  return position;
}

/* Removes positions from ... to - 1 of the list: the others keep their slots. */
static void list_remove(ref_list *l, int64_t from, int64_t to) {
  for (int64_t i = to; i < l->n; i++) {
    l->token[from + i - to] = l->token[i];
    l->slot[from + i - to] = l->slot[i];
  }
  l->n -= to - from;
}

/* A range that may be removed of n positions: behind all sinks, and no later than the slack. */
static int pick_hole(const rig *r, int64_t n, int64_t slack, int64_t *from, int64_t *to,
                     test_rng *rng) {
  int64_t begin = 0;
  for (int64_t g = 0; g < r->kv_heads; g++)
    if (r->head[g].policy && r->head[g].sinks > begin) begin = r->head[g].sinks;
  if (begin + 2 >= n) return 0;
  *from = rng_range(rng, begin, n - 2);
  *to = rng_range(rng, *from + 1, *from + slack < n - 1 ? *from + slack : n - 1);
  return 1;
}

/* Some tokens, a hole or two, more tokens, then drafts: all rows against the reference. */
static void test_holes_and_drafts(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(50); seed++) {
    test_rng rng = rng_seed(5000 + test_first_seed() + seed);
    int64_t n = rng_range(&rng, 30, 350), first = rng_range(&rng, 10, n - DRAFTS - 5);
    int64_t from, to, end = n - DRAFTS;
    rig r;
    ref_list l;
    drafts d;
    pick_config(&r, &rng, n, 60);
    r.config.max_drafts = DRAFTS;
    rig_open(&r, 2, &rng);
    pick_data(&r, &rng);
    name_case("holes and drafts", seed, &r);
    list_open(&l, &r, n);
    l.n = first;
    extend_cut(&r, r.cache, 0, first, r.out, r.lse, &rng);
    for (int hole = 0; hole < 2; hole++) {
      if (rng_chance(&rng, 30) || !pick_hole(&r, l.n, 30, &from, &to, &rng)) continue;
      if (!CHECK_STATUS(lattn_cache_remove(r.cache, from, to), LATTN_OK)) break;
      list_remove(&l, from, to);
    }
    int64_t base = l.n, slot = l.slot[base - 1] + 1;
    if (first > l.slot[base - 1] + 1) slot = first; /* nothing was removed at the end */
    for (int64_t t = first; t < end; t++, l.n++) {
      l.token[l.n] = t;
      l.slot[l.n] = slot++;
    }
    CHECK_STATUS(rig_extend(&r, r.cache, base, first, end - first, r.out, r.lse, &rng), LATTN_OK);
    list_store(&l, 0);
    check_rows(&l, base, l.n, 12, &rng);
    drafts_open(&d, &r);
    base = l.n;
    for (int32_t i = 0; i < DRAFTS; i++)
      drafts_add(&d, &r, end + i, (int32_t)rng_range(&rng, i > 4 ? i - 4 : -1, i - 1));
    drafts_attend(&d, &r, r.cache, base, &rng);
    for (int32_t i = 0; i < DRAFTS; i++) {
      int64_t position = list_path(&l, &d, base, i);
      int64_t head = rng_below(&rng, r.heads);
      check_row(&l, position, head, base + i, d.out + i * r.heads * r.value_dim,
                d.lse + i * r.heads);
    }
    CHECK_STATUS(lattn_cache_accept(r.cache, 0, NULL), LATTN_OK);
    drafts_close(&d);
    list_close(&l);
    rig_close(&r);
  }
}

/* ---- one answer ---- */

/* A cache whose tokens so far came by one route, and the rows that it gave. */
typedef struct route {
  rig *r;
  lattn_cache *cache;
  const char *name;
  float *out, *lse;
} route;

static route route_new(rig *r, const char *name, lattn_cache *cache) {
  route x = {r, cache ? cache : cache_new(r->pool, r), name, NULL, NULL};
  x.out = (float *)ref_memory(r->n_tokens * r->heads * r->value_dim, sizeof(float));
  x.lse = (float *)ref_memory(r->n_tokens * r->heads, sizeof(float));
  return x;
}

/* Rows from ... to - 1 must be those of r->out; then the route ends. */
static void route_same(route *x, int64_t from, int64_t to) {
  const rig *r = x->r;
  int64_t row = r->heads * r->value_dim, same = 1;
  for (int64_t i = from * row; i < to * row; i++) same &= same_f32(x->out[i], r->out[i]);
  for (int64_t i = from * r->heads; i < to * r->heads; i++) same &= same_f32(x->lse[i], r->lse[i]);
  if (!same) FAIL("%s: other bits", x->name);
}

static void route_end(route *x, int64_t from, int64_t to) {
  route_same(x, from, to);
  CHECK_STATUS(lattn_cache_release(x->cache), LATTN_OK);
  free(x->out);
  free(x->lse);
}

static void route_go(route *x, int64_t from, int64_t to, test_rng *rng) {
  extend_cut(x->r, x->cache, from, to, x->out, x->lse, rng);
}

/* The first n tokens, whose rows are not compared. */
static void route_begin(route *x, int64_t n, test_rng *rng) {
  const rig *r = x->r;
  int64_t most = r->config.max_append ? r->config.max_append : 512;
  int extends = n < 1000 && rng_chance(rng, 50);
  if (extends) route_go(x, 0, n, rng);
  for (int64_t t = 0, cut; t < n && !extends; t += cut) {
    cut = rng_range(rng, 1, most < n - t ? most : n - t);
    CHECK_STATUS(lattn_cache_append(x->cache, rig_k(r, t, cut), rig_v(r, t, cut), NULL), 0);
  }
}

/* n tokens that do not belong to the sequence, from position `at` on. */
static void route_stray(route *x, int64_t at, int64_t n, test_rng *rng) {
  CHECK_STATUS(rig_extend(x->r, x->cache, at, 0, n, x->out, x->lse, rng), LATTN_OK);
}

static void route_one_by_one(rig *r, int64_t mid, test_rng *rng) {
  route x = route_new(r, "one by one", NULL);
  for (int64_t t = 0; t < r->n_tokens; t++) {
    if (t < mid) CHECK_STATUS(lattn_cache_append(x.cache, rig_k(r, t, 1), rig_v(r, t, 1), NULL), 0);
    else
      CHECK_STATUS(rig_extend(r, x.cache, t, t, 1, x.out, x.lse, rng_chance(rng, 50) ? rng : NULL),
                   LATTN_OK);
  }
  route_end(&x, mid, r->n_tokens);
}

static void route_append_attend(rig *r, test_rng *rng) {
  route x = route_new(r, "append, attend", NULL);
  int64_t most = r->config.max_append ? r->config.max_append : 512;
  for (int64_t t = 0, n; t < r->n_tokens; t += n) {
    runner run;
    call_views c;
    n = rng_range(rng, 1, most < r->n_tokens - t ? most : r->n_tokens - t);
    CHECK_STATUS(lattn_cache_append(x.cache, rig_k(r, t, n), rig_v(r, t, n), NULL), LATTN_OK);
    const lattn_exec *exec = runner_open(&run, r, n, rng);
    CHECK_STATUS(lattn_cache_attend(x.cache, call_of(&c, r, t, n), rig_q(r, t, n),
                                    rig_out(r, x.out, t, n), x.lse + t * r->heads, exec),
                 LATTN_OK);
    runner_close(&run);
  }
  route_end(&x, 0, r->n_tokens);
}

/* A fork goes on rightly while its parent goes astray, and the other way round. */
static void route_fork(rig *r, int64_t mid, int64_t stray, test_rng *rng) {
  route x = route_new(r, "parent", NULL), y;
  lattn_cache *fork = NULL;
  route_begin(&x, mid, rng);
  CHECK_STATUS(lattn_cache_fork(&fork, x.cache), LATTN_OK);
  y = route_new(r, "fork", fork);
  if (rng_chance(rng, 50)) {
    route z = x;
    x = y;
    y = z;
  }
  route_stray(&x, mid, stray, rng);
  route_go(&y, mid, r->n_tokens, rng);
  route_end(&x, 0, 0);
  route_end(&y, mid, r->n_tokens);
}

static void route_rollback(rig *r, int64_t mid, int64_t stray, test_rng *rng) {
  route x = route_new(r, "rollback", NULL);
  lattn_checkpoint *checkpoint = NULL;
  route_begin(&x, mid, rng);
  CHECK_STATUS(lattn_cache_checkpoint(&checkpoint, x.cache), LATTN_OK);
  route_stray(&x, mid, stray, rng);
  CHECK_STATUS(lattn_cache_rollback(x.cache, checkpoint), LATTN_OK);
  route_go(&x, mid, r->n_tokens, rng);
  CHECK_STATUS(lattn_checkpoint_release(checkpoint), LATTN_OK);
  route_end(&x, mid, r->n_tokens);
}

static void route_truncate(rig *r, int64_t mid, int64_t stray, test_rng *rng) {
  route x = route_new(r, "truncate", NULL);
  route_begin(&x, mid, rng);
  route_stray(&x, mid, stray, rng);
  CHECK_STATUS(lattn_cache_truncate(x.cache, mid), LATTN_OK);
  route_go(&x, mid, r->n_tokens, rng);
  route_end(&x, mid, r->n_tokens);
}

/* Drafts, some of them the tokens to come: their rows, and what follows when some are accepted. A
   tree only without biases and gates, whose rows it would change; strays may be NaN. */
static void route_drafts(rig *r, int64_t mid, test_rng *rng) {
  route x = route_new(r, "drafts", NULL);
  drafts d;
  int32_t path[DRAFTS], n = 0, accepted;
  int64_t row = r->heads * r->value_dim;
  int tree = !r->gate && !r->pair_bias;
  drafts_open(&d, r);
  route_begin(&x, mid, rng);
  while (d.n < DRAFTS) {
    if (tree && rng_chance(rng, 40)) {
      int32_t parent = (int32_t)rng_range(rng, -1, d.n - 1);
      int64_t depth = 0;
      for (int32_t p = parent; p >= 0; p = d.parent[p]) depth++;
      if (mid + depth >= r->n_tokens) parent = -1; /* no deeper than the capacity */
      drafts_add(&d, r, rng_below(rng, mid), parent);
      if (rng_chance(rng, 30)) d.k[(d.n - 1) * r->kv_heads * r->key_dim] = NAN;
      if (rng_chance(rng, 30)) d.v[(d.n - 1) * r->kv_heads * r->value_dim] = NAN;
    } else {
      if (mid + n >= r->n_tokens) break;
      path[n] = d.n;
      drafts_add(&d, r, mid + n, n ? path[n - 1] : -1);
      n++;
    }
  }
  drafts_attend(&d, r, x.cache, mid, rng);
  for (int32_t i = 0; i < n; i++) {
    int64_t at = mid + i;
    memcpy(x.out + at * row, d.out + path[i] * row, (size_t)row * sizeof(float));
    memcpy(x.lse + at * r->heads, d.lse + path[i] * r->heads, (size_t)r->heads * sizeof(float));
  }
  route_same(&x, mid, mid + n);
  accepted = (int32_t)rng_range(rng, 0, n);
  CHECK_STATUS(lattn_cache_accept(x.cache, accepted, path), LATTN_OK);
  x.name = "after accept";
  route_go(&x, mid + accepted, r->n_tokens, rng);
  drafts_close(&d);
  route_end(&x, mid, r->n_tokens);
}

/* ---- files ---- */

typedef struct file {
  unsigned char *data;
  size_t bytes, room, at;
} file;

static int32_t file_write(void *user, const void *data, size_t bytes) {
  file *f = (file *)user;
  if (f->bytes + bytes > f->room) {
    f->room = 2 * f->room + bytes;
    f->data = (unsigned char *)realloc(f->data, f->room);
    if (!f->data) return 1;
  }
  memcpy(f->data + f->bytes, data, bytes);
  f->bytes += bytes;
  return 0;
}

static int32_t file_read(void *user, void *data, size_t bytes) {
  file *f = (file *)user;
  if (bytes > f->bytes - f->at) return 1;
  memcpy(data, f->data + f->at, bytes);
  f->at += bytes;
  return 0;
}

/* All tokens that head g holds, read from two caches, are the same. */
static void same_tokens(const rig *r, const lattn_cache *a, const lattn_cache *b, int64_t first,
                        int64_t n) {
  float *x[4];
  for (int i = 0; i < 4; i++)
    x[i] = (float *)ref_memory(n * (i % 2 ? r->value_dim : r->key_dim), sizeof(float));
  for (int64_t g = 0; g < r->kv_heads; g++) {
    if (r->head[g].policy) continue;
    for (int i = 0; i < 2; i++)
      CHECK_STATUS(lattn_cache_read(i ? b : a, (int32_t)g, first,
                                    tensor_of(x[2 * i], LATTN_F32, n, 1, r->key_dim),
                                    tensor_of(x[2 * i + 1], LATTN_F32, n, 1, r->value_dim), 0),
                   LATTN_OK);
    CHECK(!memcmp(x[0], x[2], (size_t)(n * r->key_dim) * sizeof(float)));
    CHECK(!memcmp(x[1], x[3], (size_t)(n * r->value_dim) * sizeof(float)));
  }
  for (int i = 0; i < 4; i++) free(x[i]);
}

/* Saved by two routes to the same bytes, loaded into another pool, and on. */
static void route_file(rig *r, int64_t mid, test_rng *rng) {
  route x = route_new(r, "saved", NULL), y = route_new(r, "saved too", NULL), z;
  file a = {NULL, 0, 0, 0}, b = a;
  test_guard arena;
  lattn_pool *own = r->pool;
  route_go(&x, 0, mid, rng);
  CHECK_STATUS(rig_extend(r, y.cache, 0, 0, mid, y.out, y.lse, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(x.cache, file_write, &a, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(y.cache, file_write, &b, NULL), LATTN_OK);
  CHECK(a.bytes == b.bytes && !memcmp(a.data, b.data, a.bytes));
  r->pool = pool_new(&arena, r, 2);
  z = route_new(r, "loaded", NULL);
  CHECK_STATUS(lattn_cache_load(z.cache, file_read, &a), LATTN_OK);
  CHECK(a.at == a.bytes);
  same_tokens(r, x.cache, z.cache, 0, mid);
  b.bytes = 0;
  CHECK_STATUS(lattn_cache_save(z.cache, file_write, &b, NULL), LATTN_OK);
  CHECK(a.bytes == b.bytes && !memcmp(a.data, b.data, a.bytes));
  route_go(&z, mid, r->n_tokens, rng);
  route_end(&z, mid, r->n_tokens);
  CHECK(guard_free(&arena));
  r->pool = own;
  route_end(&x, 0, mid);
  route_end(&y, 0, mid);
  free(a.data);
  free(b.data);
}

/* ---- batches ---- */

/* Three sequences in one call: a fork at `mid`, its parent, and one of its own; without biases,
   which are for one sequence. The rows must be those of three calls. */
static void route_batch(rig *r, int64_t mid, test_rng *rng) {
  route x[3];
  int64_t n = r->n_tokens - mid < 20 ? r->n_tokens - mid : 20, row = r->heads * r->value_dim;
  int64_t q_row = r->heads * r->key_dim, k_row = r->kv_heads * r->key_dim;
  int64_t v_row = r->kv_heads * r->value_dim, all = 0;
  float *q = (float *)ref_memory(3 * n * q_row, sizeof(float));
  float *k = (float *)ref_memory(3 * n * k_row, sizeof(float));
  float *v = (float *)ref_memory(3 * n * v_row, sizeof(float));
  float *out = (float *)ref_memory(3 * n * row, sizeof(float));
  float *lse = (float *)ref_memory(3 * n * r->heads, sizeof(float));
  lattn_sequence s[3];
  lattn_exec exec;
  lattn_cache *fork = NULL;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = (int32_t)rng_range(rng, 1, 3);
  exec.parallel_for = test_parallel_scrambled;
  exec.scratch_bytes = lattn_batch_scratch(&r->config, 3, 3 * n, exec.n_threads);
  exec.scratch = malloc(exec.scratch_bytes);
  x[0] = route_new(r, "batch: parent", NULL);
  route_begin(&x[0], mid, rng);
  CHECK_STATUS(lattn_cache_fork(&fork, x[0].cache), LATTN_OK);
  x[1] = route_new(r, "batch: fork", fork);
  x[2] = route_new(r, "batch: alone", NULL);
  route_begin(&x[2], mid, rng);
  for (int i = 0; i < 3; i++) {
    int64_t m = i == 1 ? (n + 1) / 2 : n;
    memcpy(q + all * q_row, r->q + mid * q_row, (size_t)(m * q_row) * sizeof(float));
    memcpy(k + all * k_row, r->k + mid * k_row, (size_t)(m * k_row) * sizeof(float));
    memcpy(v + all * v_row, r->v + mid * v_row, (size_t)(m * v_row) * sizeof(float));
    s[i].cache = x[i].cache;
    s[i].n_tokens = m;
    s[i].parents = NULL;
    all += m;
  }
  CHECK_STATUS(lattn_batch_extend(3, s, NULL, tensor_of(q, LATTN_F32, all, r->heads, r->key_dim),
                                  tensor_of(k, LATTN_F32, all, r->kv_heads, r->key_dim),
                                  tensor_of(v, LATTN_F32, all, r->kv_heads, r->value_dim),
                                  tensor_of(out, LATTN_F32, all, r->heads, r->value_dim), lse,
                                  &exec),
               LATTN_OK);
  all = 0;
  for (int i = 0; i < 3; i++) {
    int64_t m = s[i].n_tokens;
    memcpy(x[i].out + mid * row, out + all * row, (size_t)(m * row) * sizeof(float));
    memcpy(x[i].lse + mid * r->heads, lse + all * r->heads, (size_t)(m * r->heads) * sizeof(float));
    route_go(&x[i], mid + m, r->n_tokens, rng);
    route_end(&x[i], mid, r->n_tokens);
    all += m;
  }
  free(q), free(k), free(v), free(out), free(lse), free(exec.scratch);
}

static void test_routes(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(50); seed++) {
    /* small dims; full heads of 8 and 4 bits; plain C would take as long as for all others */
    int is_long = seed == 3 && strcmp(lattn_simd_name(), "scalar");
    test_rng rng = rng_seed(is_long ? 9018 : 9000 + seed);
    int64_t n = is_long ? 2200 : rng_range(&rng, 40, 320), stray = 0, mid;
    rig r;
    pick_config(&r, &rng, n, 40);
    if (is_long) r.config.max_append = 0;
    r.config.max_drafts = DRAFTS;
    mid = is_long ? rng_range(&rng, 2049, n - 60) : rng_range(&rng, 1, n - 1);
    stray = rng_range(&rng, 1, n - mid < mid ? n - mid : mid);
    if (stray > 40) stray = 40;
    rig_open(&r, 8, &rng);
    if (!is_long) pick_data(&r, &rng);
    name_case("routes", seed, &r);
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, NULL), LATTN_OK);
    route_one_by_one(&r, is_long ? n - 8 : n / 2, &rng);
    route_append_attend(&r, &rng);
    route_fork(&r, mid, stray, &rng);
    route_rollback(&r, mid, stray, &rng);
    route_truncate(&r, mid, stray, &rng);
    route_drafts(&r, mid, &rng);
    route_file(&r, mid, &rng);
    if (!r.key_bias && !r.pair_bias && !r.gate) route_batch(&r, mid, &rng);
    rig_close(&r);
  }
}

/* ---- what is stored ---- */

/* lattn_cache_read against the reference of the format, turned back. */
static void test_read(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(50); seed++) {
    test_rng rng = rng_seed(20000 + test_first_seed() + seed);
    int64_t n = rng_range(&rng, 1, 200), loose = 0, dim;
    rig r;
    ref_list l;
    pick_config(&r, &rng, n, 0);
    for (int64_t g = 0; g < r.kv_heads; g++) make_full(&r.head[g]);
    rig_open(&r, 1, &rng);
    pick_data(&r, &rng);
    name_case("read", seed, &r);
    extend_cut(&r, r.cache, 0, n, r.out, r.lse, &rng);
    list_open(&l, &r, n);
    list_store(&l, 0);
    dim = r.key_dim > r.value_dim ? r.key_dim : r.value_dim;
    float *k = (float *)ref_memory(n * dim, sizeof(float));
    float *v = (float *)ref_memory(n * dim, sizeof(float));
    for (int64_t g = 0; g < r.kv_heads; g++) {
      CHECK_STATUS(lattn_cache_read(r.cache, (int32_t)g, 0,
                                    tensor_of(k, LATTN_F32, n, 1, r.key_dim),
                                    tensor_of(v, LATTN_F32, n, 1, r.value_dim), 0),
                   LATTN_OK);
      for (int64_t i = 0; i < 2 * n; i++) {
        int is_key = i < n;
        int64_t t = i % n, dims = is_key ? r.key_dim : r.value_dim;
        int64_t at = (t * r.kv_heads + g) * dims;
        int32_t type = is_key ? key_type_of(&r, g) : value_type_of(&r, g);
        double *x = (is_key ? l.k : l.v) + at, *off = (is_key ? l.k_off : l.v_off) + at;
        for (int64_t d = 0; d < dims; d++)
          if (off[d] > 0) {
            loose++;
            break;
          }
        if (is_quant(type) && (is_key || type == LATTN_I4)) ref_hadamard(x, off, dims);
        for (int64_t d = 0; d < dims; d++) {
          double got = (double)(is_key ? k : v)[t * dims + d];
          if (!(fabs(got - x[d]) <= off[d] + REF_U * fabs(x[d])))
            FAIL("token %" PRId64 " head %" PRId64 " %s %" PRId64 ": %.9g, expected %.9g +- %.3g",
                 t, g, is_key ? "key" : "value", d, got, x[d], off[d]);
        }
      }
    }
    if (n > 50) CHECK(loose * 3 < 2 * n * r.kv_heads); /* else the reference says too little */
    free(k);
    free(v);
    list_close(&l);
    rig_close(&r);
  }
}

/* Bytes of a page, at dim 128: a token's key and value take 130 bytes each of LATTN_I8, 72 of
   LATTN_I4; and lattn_fit_bytes is enough for what it says. */
static void test_bytes(void) {
  static const struct {
    int32_t key, value;
    int64_t bytes;
  } want[4] = {{LATTN_I8, LATTN_I8, 260}, {LATTN_I4, LATTN_I4, 144},
               {LATTN_I8, LATTN_I4, 202}, {LATTN_F16, LATTN_I8, 386}};
  for (int i = 0; i < 4; i++) {
    lattn_cache_head_stats stats;
    const lattn_cache_config *config;
    test_rng rng = rng_seed(1);
    test_guard arena;
    rig r;
    check_case("bytes of a token: %s/%s", quant_type_name(want[i].key),
               quant_type_name(want[i].value));
    rig_init(&r, 2, 2, 128, 128, 300);
    rig_types(&r, want[i].key, want[i].value);
    rig_open(&r, 1, &rng);
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, 300, r.out, r.lse, NULL), LATTN_OK);
    memset(&stats, 0, sizeof stats);
    stats.size = sizeof stats;
    CHECK_STATUS(lattn_cache_head_stats_get(r.cache, 0, &stats), LATTN_OK);
    CHECK_I64(stats.page_bytes, 3 * 128 * want[i].bytes);
    config = &r.config;
    size_t bytes = lattn_fit_bytes(1, &config, 300);
    CHECK(lattn_fit_tokens(1, &config, bytes) >= 300);
    arena = guard_alloc(bytes, 1);
    lattn_pool *pool = NULL, *own = r.pool;
    CHECK_STATUS(lattn_pool_init(&pool, arena.data, bytes, NULL), LATTN_OK);
    r.pool = pool;
    lattn_cache *cache = cache_new(pool, &r);
    CHECK_STATUS(rig_extend(&r, cache, 0, 0, 300, r.out, r.lse, NULL), LATTN_OK);
    CHECK(guard_free(&arena));
    r.pool = own;
    rig_close(&r);
  }
}

/* ---- special values ---- */

/* Copies of a rig's tokens into two caches of which the second gets one number changed: rows
   that do not see the token keep their bits; those that do are NaN in all of the key's head, or
   where the value's transform or scale reaches. */
static int sees(const rig *r, int64_t g, int64_t i, int64_t j) {
  return i >= j && list_distance(r, g, i, j) >= 0;
}

/* Whether dim d of a value is lost with dim `bad`: they share a scale, or a block of the basis. */
static int shares(const rig *r, int64_t g, int64_t bad, int64_t d) {
  int64_t basis = ref_basis(r->value_dim), unit = basis > 32 ? basis : 32;
  if (value_type_of(r, g) == LATTN_I8) return 1;
  if (value_type_of(r, g) == LATTN_I4) return bad / unit == d / unit;
  return bad == d;
}

static void check_poisoned(const rig *r, const float *out, const float *lse, int64_t g, int64_t j,
                           int64_t key, int64_t value) {
  for (int64_t i = 0; i < r->n_tokens; i++)
    for (int64_t h = 0; h < r->heads; h++) {
      int hit = h / (r->heads / r->kv_heads) == g && sees(r, g, i, j), right = 1;
      int64_t at = (i * r->heads + h) * r->value_dim;
      for (int64_t d = 0; d < r->value_dim; d++) {
        int lost = hit && (key >= 0 || shares(r, g, value, d));
        right &= lost ? isnan(out[at + d]) : same_f32(out[at + d], r->out[at + d]);
      }
      right &= hit && key >= 0 ? isnan(lse[i * r->heads + h])
                               : same_f32(lse[i * r->heads + h], r->lse[i * r->heads + h]);
      if (!right) FAIL("row %" PRId64 " head %" PRId64 " (%s the token)", i, h,
                       hit ? "sees" : "does not see");
    }
}

/* A head whose basis and 32-channel groups do not nest: dims 48 has a basis of 16 in groups of
   32 and 16. `shares` needs one to divide the other, so those dims are left out. */
static void test_poison(void) {
  static const float bad[3] = {NAN, INFINITY, -INFINITY};
  for (uint64_t seed = 0; seed < (uint64_t)test_count(50); seed++) {
    test_rng rng = rng_seed(30000 + test_first_seed() + seed);
    int64_t n = rng_range(&rng, 2, 300), j = rng_below(&rng, n), g, key = -1, value = -1;
    rig r;
    pick_config(&r, &rng, n, 0);
    rig_open(&r, 3, &rng);
    name_case("poison", seed, &r);
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, NULL), LATTN_OK);
    g = rng_below(&rng, r.kv_heads);
    float *at, clean;
    if (rng_chance(&rng, 50)) {
      key = rng_below(&rng, r.key_dim);
      at = r.k + (j * r.kv_heads + g) * r.key_dim + key;
    } else {
      value = rng_below(&rng, r.value_dim);
      at = r.v + (j * r.kv_heads + g) * r.value_dim + value;
    }
    int32_t type = key >= 0 ? key_type_of(&r, g) : value_type_of(&r, g);
    clean = *at;
    *at = bad[is_quant(type) ? rng_below(&rng, 3) : 0];
    route x = route_new(&r, "poisoned", NULL);
    route_go(&x, 0, n, &rng);
    check_poisoned(&r, x.out, x.lse, g, j, key, value);
    CHECK_STATUS(lattn_cache_clear(x.cache), LATTN_OK); /* and by few rows: other code */
    for (int64_t t = 0; t < n; t += 3)
      CHECK_STATUS(rig_extend(&r, x.cache, t, t, n - t < 3 ? n - t : 3, x.out, x.lse, NULL),
                   LATTN_OK);
    check_poisoned(&r, x.out, x.lse, g, j, key, value);
    *at = clean;
    route_end(&x, 0, 0);
    rig_close(&r);
  }
}

/* A query that is not finite: its own row and head only. */
static void test_bad_query(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(40); seed++) {
    test_rng rng = rng_seed(40000 + test_first_seed() + seed);
    int64_t n = rng_range(&rng, 1, 200), i = rng_below(&rng, n), h, same = 1;
    rig r;
    pick_config(&r, &rng, n, 0);
    for (int64_t g = 0; g < r.kv_heads; g++)
      r.head[g].key_type = rng_chance(&rng, 50) ? LATTN_I8 : LATTN_I4;
    rig_open(&r, 2, &rng);
    name_case("a query that is not finite", seed, &r);
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, NULL), LATTN_OK);
    h = rng_below(&rng, r.heads);
    r.q[(i * r.heads + h) * r.key_dim + rng_below(&rng, r.key_dim)] =
        rng_chance(&rng, 50) ? NAN : INFINITY;
    route x = route_new(&r, "bad query", NULL);
    route_go(&x, 0, n, &rng);
    for (int64_t row = 0; row < n * r.heads; row++) {
      int bad = row == i * r.heads + h;
      for (int64_t d = 0; d < r.value_dim; d++) {
        float y = x.out[row * r.value_dim + d];
        same &= bad ? isnan(y) : same_f32(y, r.out[row * r.value_dim + d]);
      }
      same &= bad ? isnan(x.lse[row]) : same_f32(x.lse[row], r.lse[row]);
    }
    CHECK(same);
    route_end(&x, 0, 0);
    rig_close(&r);
  }
}

/* Tokens of every amplitude: scales that underflow, that are below float16's normal numbers, and
   that overflow, which the note tells and which reads as NaN. */
static void test_amplitudes(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(60); seed++) {
    test_rng rng = rng_seed(50000 + seed);
    int64_t n = rng_range(&rng, 1, 60);
    int large = rng_chance(&rng, 50), lost = 0;
    rig r;
    ref_list l;
    pick_config(&r, &rng, n, 0);
    for (int64_t g = 0; g < r.kv_heads; g++) {
      r.head[g].key_type = rng_chance(&rng, 50) ? LATTN_I8 : LATTN_I4;
      r.head[g].value_type = rng_chance(&rng, 50) ? LATTN_I8 : LATTN_I4;
    }
    rig_open(&r, 1, &rng);
    name_case("amplitudes", seed, &r);
    for (int64_t i = 0; i < n * r.kv_heads; i++) {
      float by = ldexpf(1, (int)rng_range(&rng, -30, large ? 26 : 10));
      for (int64_t d = 0; d < r.key_dim; d++) r.k[i * r.key_dim + d] *= by;
      by = ldexpf(1, (int)rng_range(&rng, -30, large ? 26 : 10));
      for (int64_t d = 0; d < r.value_dim; d++) r.v[i * r.value_dim + d] *= by;
    }
    for (int64_t i = 0; i < n * r.heads; i++) {
      float by = ldexpf(1, (int)rng_range(&rng, -140, -20));
      for (int64_t d = 0; d < r.key_dim; d++) r.q[i * r.key_dim + d] *= by;
    }
    lattn_status status = rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, &rng);
    list_open(&l, &r, n);
    list_store(&l, 0);
    for (int64_t i = 0; i < n * r.kv_heads * r.key_dim; i++) lost |= isnan(l.k[i]);
    for (int64_t i = 0; i < n * r.kv_heads * r.value_dim; i++) lost |= isnan(l.v[i]);
    CHECK_STATUS(status, lost ? LATTN_OVERFLOWED : LATTN_OK);
    check_rows(&l, 0, n, 20, &rng);
    list_close(&l);
    rig_close(&r);
  }
}

/* Keys of zeros: weights are equal; values of zeros: the output is +0; a row whose every key has a
   bias of -infinity: +0 and the lse of no key. */
static void test_zeros(void) {
  for (int i = 0; i < 4; i++) {
    int32_t type = i % 2 ? LATTN_I4 : LATTN_I8;
    int64_t n = 200;
    test_rng rng = rng_seed(1);
    rig r;
    check_case("zeros, %s, %s value", quant_type_name(type), i < 2 ? "no" : "a");
    rig_init(&r, 2, 1, 64, 64, n);
    rig_types(&r, type, type);
    rig_open(&r, 1, &rng);
    r.pair_bias = (float *)ref_memory(n * n * 2, sizeof(float));
    for (int64_t j = 0; j < n * n * 2; j++) r.pair_bias[j] = j / (2 * n) == 150 ? -INFINITY : 0.0f;
    for (int64_t j = 0; j < n * 64; j++) {
      r.k[j] = j % 2 ? -0.0f : 0.0f;
      r.v[j] = i < 2 ? (j % 3 ? -0.0f : 0.0f) : 1.0f;
    }
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, &rng), LATTN_OK);
    for (int64_t t = 0; t < n; t++)
      for (int64_t j = 0; j < 128; j++) {
        float x = r.out[t * 128 + j], lse = r.lse[t * 2 + j / 64];
        if (i < 2 || t == 150) CHECK(bits_of_f32(x) == 0);
        else CHECK(fabsf(x - 1) < 0x1p-9f); /* the scale's: float16 */
        if (t == 150) CHECK(lse == -INFINITY);
        else CHECK(fabs((double)lse - log((double)t + 1)) <= 8 * REF_U * log((double)t + 1));
      }
    rig_close(&r);
  }
}

/* ---- errors ---- */

static lattn_status init_status(const rig *r, lattn_pool *pool) {
  lattn_cache *cache = NULL;
  lattn_status status = lattn_cache_init(&cache, pool, &r->config);
  if (status == LATTN_OK) CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  return status;
}

static void test_config_errors(void) {
  static char arena[1 << 20];
  static const int64_t dims[4] = {15, 16, 1024, 1025};
  lattn_pool *pool = NULL;
  rig r;
  check_case("errors of the config");
  CHECK_STATUS(lattn_pool_init(&pool, arena, sizeof arena, NULL), LATTN_OK);
  for (int i = 0; i < 4; i++)
    for (int32_t type = LATTN_I8; type <= LATTN_I4; type++)
      for (int part = 0; part < 4; part++) { /* keys or values, of the config or the head */
        int ok = i == 1 || i == 2;
        rig_init(&r, 1, 1, part % 2 ? 64 : dims[i], part % 2 ? dims[i] : 64, 8);
        if (part == 0) r.config.key_type = type;
        if (part == 1) r.config.value_type = type;
        if (part == 2) r.head[0].key_type = type;
        if (part == 3) r.head[0].value_type = type;
        CHECK_STATUS(init_status(&r, pool), ok ? LATTN_OK : LATTN_E_CONFIG);
        CHECK((lattn_cache_bytes(&r.config) != 0) == ok);
        CHECK((lattn_cache_scratch(&r.config, 8, 1) != 0) == ok);
      }
  for (int32_t type = -1; type <= 6; type += 7)
    for (int part = 0; part < 4; part++) {
      rig_init(&r, 1, 1, 64, 64, 8);
      if (part == 0) r.config.key_type = type;
      if (part == 1) r.config.value_type = type;
      if (part == 2) r.head[0].key_type = type;
      if (part == 3) r.head[0].value_type = type;
      CHECK_STATUS(init_status(&r, pool), LATTN_E_TYPE);
    }
  rig_init(&r, 1, 1, 15, 64, 8); /* no number of 4 bits: any dim */
  r.config.key_type = LATTN_I4;
  r.head[0].key_type = LATTN_F16;
  CHECK_STATUS(init_status(&r, pool), LATTN_OK);
}

/* Eight page sizes in a pool, and no more. */
static void test_page_sizes(void) {
  static char arena[1 << 22];
  lattn_pool *pool = NULL;
  lattn_cache *cache[9];
  int n = 0;
  check_case("eight page sizes in a pool");
  CHECK_STATUS(lattn_pool_init(&pool, arena, sizeof arena, NULL), LATTN_OK);
  for (int i = 0; i < 9; i++) {
    rig r;
    rig_init(&r, 1, 1, 64 + 16 * i, 64, 8);
    rig_types(&r, i % 2 ? LATTN_I8 : LATTN_I4, LATTN_I8);
    CHECK_STATUS(lattn_cache_init(&cache[n], pool, &r.config), i < 8 ? LATTN_OK : LATTN_E_CONFIG);
    n += i < 8;
  }
  rig r;
  rig_init(&r, 1, 1, 64, 64, 8);
  rig_types(&r, LATTN_I4, LATTN_I8);
  CHECK_STATUS(lattn_cache_init(&cache[n], pool, &r.config), LATTN_OK); /* a size that is there */
  for (int i = 0; i <= n; i++) CHECK_STATUS(lattn_cache_release(cache[i]), LATTN_OK);
}

/* Integers are storage: no tensor has them. */
static void test_tensor_types(void) {
  enum { N = 4, DIM = 32 };
  static float data[N * DIM], lse[N];
  test_rng rng = rng_seed(2);
  rig r;
  check_case("integer types in tensors");
  rig_init(&r, 1, 1, DIM, DIM, 64);
  rig_types(&r, LATTN_I8, LATTN_I8);
  rig_open(&r, 1, &rng);
  lattn_tensor good = tensor_of(data, LATTN_F32, N, 1, DIM), bad = good;
  CHECK_STATUS(lattn_cache_append(r.cache, good, good, NULL), LATTN_OK);
  for (int32_t type = LATTN_I8; type <= LATTN_I4; type++) {
    bad.type = type;
    CHECK_STATUS(lattn_attention(NULL, bad, good, good, good, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_attention(NULL, good, bad, good, good, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_attention(NULL, good, good, bad, good, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_attention(NULL, good, good, good, bad, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_append(r.cache, bad, good, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_append(r.cache, good, bad, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_attend(r.cache, NULL, bad, good, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_attend(r.cache, NULL, good, bad, lse, NULL), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_read(r.cache, 0, 0, bad, good, 0), LATTN_E_TYPE);
    CHECK_STATUS(lattn_cache_read(r.cache, 0, 0, good, bad, 0), LATTN_E_TYPE);
    CHECK_STATUS(lattn_rotate(&r.rotary, bad, 0, NULL), LATTN_E_SIZE);
  }
  rig_close(&r);
}

/* Caches that differ in a head's types are of different configs: no load, no common batch. */
static void test_configs_differ(void) {
  test_rng rng = rng_seed(3);
  file f = {NULL, 0, 0, 0};
  lattn_cache *other = NULL;
  rig r;
  check_case("types belong to the config");
  rig_init(&r, 2, 2, 32, 32, 64);
  rig_types(&r, LATTN_I8, LATTN_I8);
  rig_open(&r, 2, &rng);
  CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, 40, r.out, r.lse, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(r.cache, file_write, &f, NULL), LATTN_OK);
  for (int i = 0; i < 4; i++) {
    lattn_head *head = &r.head[1];
    memset(head, 0, sizeof *head);
    if (i == 0) head->key_type = LATTN_I4;
    if (i == 1) head->value_type = LATTN_I4;
    if (i == 2) head->value_type = LATTN_F32;
    if (i == 3) head->key_type = LATTN_I8; /* the config's own: no difference */
    lattn_pool *own = r.pool;
    test_guard arena;
    r.pool = pool_new(&arena, &r, 2);
    other = cache_new(r.pool, &r);
    f.at = 0;
    CHECK_STATUS(lattn_cache_load(other, file_read, &f), i < 3 ? LATTN_E_CONFIG : LATTN_OK);
    CHECK(guard_free(&arena));
    r.pool = own;
  }
  free(f.data);
  rig_close(&r);
}

/* ---- partials ---- */

typedef struct part {
  lattn_partial p;
  float maximum[HEADS], sum[HEADS];
  float output[HEADS * 256];
} part;

/* The partial of one row, whose query is that of token `row`, over all that the cache holds. */
static void part_attend(part *p, const rig *r, const lattn_cache *cache, int64_t row) {
  lattn_call call;
  memset(&p->p, 0, sizeof p->p);
  p->p.size = sizeof p->p;
  p->p.n_rows = r->heads;
  p->p.value_dim = r->value_dim;
  p->p.maximum = p->maximum;
  p->p.sum = p->sum;
  p->p.output = p->output;
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  call.partial = &p->p;
  CHECK_STATUS(lattn_cache_attend(cache, &call, rig_q(r, row, 1),
                                  tensor_of(NULL, LATTN_F32, 1, r->heads, r->value_dim), NULL,
                                  NULL),
               LATTN_OK);
}

/* Appends a rig's tokens [from, to) without attending. */
static void append_tokens(const rig *r, lattn_cache *cache, int64_t from, int64_t to) {
  for (int64_t n; from < to; from += n) {
    n = to - from < 300 ? to - from : 300;
    CHECK_STATUS(lattn_cache_append(cache, rig_k(r, from, n), rig_v(r, from, n), NULL), LATTN_OK);
  }
}

/* Three caches hold a segment, a segment, and what is left of n tokens: their partials of the last
   row, and a list of them in another order. */
static void parts_make(const rig *r, int64_t n_tokens, int32_t basis, part parts[3],
                       lattn_partial list[3]) {
  for (int i = 0; i < 3; i++) {
    lattn_cache *cache = cache_new(r->pool, r);
    int64_t first = 2048 * i, n = i < 2 ? 2048 : n_tokens - first;
    append_tokens(r, cache, first, first + n);
    part_attend(&parts[i], r, cache, n_tokens - 1);
    CHECK_I64(parts[i].p.basis, basis);
    CHECK_I64(parts[i].p.first_segment, 0);
    CHECK_I64(parts[i].p.n_segments, 1);
    parts[i].p.first_segment = i;
    list[(i + 1) % 3] = parts[i].p;
    CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  }
}

/* Those partials merge to the row of one cache that holds all, bit for bit, in any order. */
static void test_partials(int32_t key_type, int32_t value_type, int64_t dim) {
  enum { N = 2 * 2048 + 300 };
  static part parts[3], whole, merged;
  test_rng rng = rng_seed(4);
  lattn_partial list[3];
  lattn_merge_options options;
  float *out, *lse;
  rig r;
  check_case("partials, %s/%s, dim %" PRId64, quant_type_name(key_type),
             quant_type_name(value_type), dim);
  rig_init(&r, 2, 1, dim, dim, N);
  rig_types(&r, key_type, value_type);
  rig_sinks(&r);
  rig_open(&r, 4, &rng);
  out = (float *)ref_memory(2 * dim, sizeof(float));
  lse = (float *)ref_memory(2, sizeof(float));
  append_tokens(&r, r.cache, 0, N - 1);
  CHECK_STATUS(rig_extend(&r, r.cache, N - 1, N - 1, 1, r.out, r.lse, NULL), LATTN_OK);
  parts_make(&r, N, value_type == LATTN_I4 ? (int32_t)ref_basis(dim) : 0, parts, list);
  memset(&options, 0, sizeof options);
  options.size = sizeof options;
  options.sink_logits = r.sinks;
  lattn_tensor to = tensor_of(out, LATTN_F32, 1, 2, dim);
  for (int way = 0; way < 3; way++) { /* the three; the one undivided; two, then the third */
    if (way == 0) CHECK_STATUS(lattn_merge(&options, 3, list, to, lse, NULL), LATTN_OK);
    if (way == 1) {
      part_attend(&whole, &r, r.cache, N - 1);
      CHECK_I64(whole.p.n_segments, 3);
      CHECK_STATUS(lattn_merge(&options, 1, &whole.p, to, lse, NULL), LATTN_OK);
    }
    if (way == 2) {
      lattn_merge_options first = options;
      merged.p = parts[0].p;
      merged.p.maximum = merged.maximum;
      merged.p.sum = merged.sum;
      merged.p.output = merged.output;
      first.sink_logits = NULL;
      first.partial = &merged.p;
      list[0] = parts[0].p, list[1] = parts[1].p;
      CHECK_STATUS(lattn_merge(&first, 2, list, tensor_of(NULL, LATTN_F32, 1, 2, dim), NULL, NULL),
                   LATTN_OK);
      CHECK_I64(merged.p.basis, parts[0].p.basis);
      list[0] = merged.p, list[1] = parts[2].p;
      CHECK_STATUS(lattn_merge(&options, 2, list, to, lse, NULL), LATTN_OK);
    }
    CHECK(!memcmp(out, r.out + (N - 1) * 2 * dim, (size_t)(2 * dim) * sizeof(float)));
    CHECK(!memcmp(lse, r.lse + (N - 1) * 2, 2 * sizeof(float)));
  }
  list[0] = parts[0].p;
  list[1] = parts[1].p;
  list[1].basis = list[0].basis ? 0 : 16;
  CHECK_STATUS(lattn_merge(&options, 2, list, to, lse, NULL), LATTN_E_TYPE);
  list[0].basis = list[1].basis = 24;
  CHECK_STATUS(lattn_merge(&options, 2, list, to, lse, NULL), LATTN_E_FIELD);
  free(out);
  free(lse);
  rig_close(&r);
}

/* Heads of several bases: their partial is plain, and merges to the reference within its bound. */
static void test_partials_mixed(void) {
  enum { N = 300, DIM = 64 };
  static part whole;
  test_rng rng = rng_seed(5);
  float out[4 * DIM], lse[4];
  rig r;
  ref_list l;
  check_case("the partial of heads of different bases");
  rig_init(&r, 4, 4, DIM, DIM, N);
  rig_types(&r, LATTN_I8, LATTN_I4);
  r.head[1].value_type = LATTN_I8;
  r.head[2].value_type = LATTN_F32;
  rig_open(&r, 1, &rng);
  CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, N, r.out, r.lse, NULL), LATTN_OK);
  part_attend(&whole, &r, r.cache, N - 1);
  CHECK_I64(whole.p.basis, 0);
  CHECK_STATUS(lattn_merge(NULL, 1, &whole.p, tensor_of(out, LATTN_F32, 1, 4, DIM), lse, NULL),
               LATTN_OK);
  list_open(&l, &r, N);
  list_store(&l, 0);
  for (int64_t h = 0; h < 4; h++) check_row(&l, N - 1, h, N - 1, out, lse);
  list_close(&l);
  rig_close(&r);
}

/* lattn_cache_weights: each p against exp(s - lse) of the reference. */
static void test_weights(void) {
  for (uint64_t seed = 0; seed < (uint64_t)test_count(40); seed++) {
    test_rng rng = rng_seed(60000 + test_first_seed() + seed);
    int64_t n = rng_range(&rng, 1, 300);
    rig r;
    ref_list l;
    lattn_weights w;
    call_views c;
    runner x;
    pick_config(&r, &rng, n, 0);
    for (int64_t g = 0; g < r.kv_heads; g++) make_full(&r.head[g]);
    rig_open(&r, 1, &rng);
    pick_data(&r, &rng);
    name_case("weights", seed, &r);
    CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, &rng), LATTN_OK);
    float *p = (float *)ref_memory(n * r.heads, sizeof(float));
    memset(&w, 0, sizeof w);
    w.size = sizeof w;
    w.lse = r.lse + (n - 1) * r.heads;
    w.weights = p;
    const lattn_exec *exec = runner_open(&x, &r, 1, NULL);
    CHECK_STATUS(lattn_cache_weights(r.cache, call_of(&c, &r, n - 1, 1), rig_q(&r, n - 1, 1), &w,
                                     exec),
                 LATTN_OK);
    runner_close(&x);
    list_open(&l, &r, n);
    list_store(&l, 0);
    for (int64_t h = 0; h < r.heads; h++) {
      int folds, levels;
      ref_row y = row_new(&r);
      list_attend(&l, n - 1, h, n - 1, &y);
      list_scores(&l, n - 1, h, n - 1, &folds, &levels);
      for (int64_t j = 0; j < n; j++) {
        double s = l.sums.scores[j], want = exp(s - y.lse);
        double e = l.sums.errors[j] + y.lse_bound + REF_U * (2 * fabs(s - y.lse) + 4);
        if (isinf(s)) e = 0;
        CHECK(fabs((double)p[h * n + j] - want) <= want * expm1(e) + 0x1p-126);
      }
      ref_row_free(&y);
    }
    free(p);
    list_close(&l);
    rig_close(&r);
  }
}

/* ---- golden hashes ---- */

enum { GOLDEN = 24 };

static const uint64_t golden[GOLDEN] = {
    0x2d01ce976d65b269, 0x0da1bc3d5af44c70, 0x137fb86467bd74c7, 0x203e8500caa694db,
    0x0b344b5ee677e3f9, 0x4a7514a7b813c73e, 0x23d5d5c1a462d97b, 0x8373c0d33b94cee9,
    0x15a335836c51731f, 0xa9c98fabef5155e1, 0x236a9bcaebd25eb7, 0x38f0a1f7f0baa2f6,
    0x9813ef947d002243, 0x518b6003db91dbd7, 0xd10ae07a139ce9dc, 0xd5d6d87725da5234,
    0xe8b678cf077f82fa, 0xd83afc09ff65d3cf, 0x2804ce2e85c1ea5c, 0x93b39c5fe6a85830,
    0x9763ab3db76c86fc, 0x2a3786b9155f1e81, 0xe78312fd0ab5e9c5, 0x3de2bb67adc17a08};

/* Outputs, lse, and the saved bytes of a random cache. */
static uint64_t golden_hash(uint64_t seed) {
  test_rng rng = rng_seed(70000 + seed);
  int64_t n = rng_range(&rng, 30, 300);
  uint64_t hash;
  file f = {NULL, 0, 0, 0};
  rig r;
  pick_config(&r, &rng, n, 0);
  rig_open(&r, 1, &rng);
  pick_data(&r, &rng);
  name_case("golden", seed, &r);
  CHECK_STATUS(rig_extend(&r, r.cache, 0, 0, n, r.out, r.lse, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_save(r.cache, file_write, &f, NULL), LATTN_OK);
  hash = hash_f32(HASH_SEED, r.out, n * r.heads * r.value_dim);
  hash = hash_f32(hash, r.lse, n * r.heads);
  hash = hash_bytes(hash, f.data, f.bytes);
  free(f.data);
  rig_close(&r);
  return hash;
}

static void test_golden(void) {
  for (uint64_t i = 0; i < GOLDEN; i++) {
    uint64_t hash = golden_hash(i);
    if (hash != golden[i])
      FAIL("hash %016" PRIx64 ", expected %016" PRIx64 " (level %s)", hash, golden[i],
           lattn_simd_name());
  }
}

static void print_golden(void) {
  printf("static const uint64_t golden[GOLDEN] = {");
  for (uint64_t i = 0; i < GOLDEN; i++)
    printf("%s0x%016" PRIx64 "%s", i % 4 ? " " : "\n    ", golden_hash(i),
           i + 1 < GOLDEN ? "," : "};\n");
}

/* ---- how far from an f32 cache ----
   The newest rows of many tokens, one head of dim 128, normal queries, and the scale that makes
   a row's logits spread by `deviation`. Keys: normal, and on some channels a constant of so many
   sigma, all tokens the same sign (flow.md §8), before rotary where there is one. Values:
   normal, and where they have a mean, one of norm sqrt(128). Errors are relative L2 norms over
   all rows: of the cache against a cache of f32, and of the simulation in double against exact
   attention, with the transform and without. */

typedef struct family {
  const char *name;
  int channels;
  float sigma;
  int rotary;
} family;

static const family families[5] = {{"normal", 0, 0, 0},
                                   {"2 of 5 sigma", 2, 5, 0},
                                   {"3 of 10 sigma", 3, 10, 0},
                                   {"4 of 15 sigma", 4, 15, 0},
                                   {"4 of 15 sigma, rotary", 4, 15, 1}};

/* The root of the variances of all channels of the keys, as they are scored. */
static double family_spread(const rig *r) {
  double sum[128] = {0}, square[128] = {0}, all = 0, n = (double)r->n_tokens;
  for (int64_t i = 0; i < r->n_tokens; i++) {
    double k[128];
    turned(k, r, r->k + i * 128, i);
    for (int d = 0; d < 128; d++) sum[d] += k[d], square[d] += k[d] * k[d];
  }
  for (int d = 0; d < 128; d++) all += square[d] / n - sum[d] / n * (sum[d] / n);
  return sqrt(all);
}

static void family_open(rig *r, const family *f, float deviation, int mean, int32_t key_type,
                        int32_t value_type, int64_t n) {
  test_rng rng = rng_seed(80000);
  float of_v[128];
  rig_init(r, 1, 1, 128, 128, n);
  rig_types(r, key_type, value_type);
  if (f->rotary) rig_rotate(r, LATTN_ROTARY_HALF_SPLIT, 0, 128);
  rig_open(r, 1, &rng);
  for (int d = 0; d < 128; d++) of_v[d] = mean ? rng_normal(&rng) : 0;
  for (int64_t i = 0; i < n; i++)
    for (int d = 0; d < 128; d++) {
      for (int c = 0; c < f->channels; c++)
        if (d == (37 * c + 61) % 128) r->k[i * 128 + d] += c % 2 ? -f->sigma : f->sigma;
      r->v[i * 128 + d] += of_v[d];
    }
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  r->config.scale = deviation / (float)family_spread(r);
  r->cache = cache_new(r->pool, r);
}

/* The newest `rows` outputs of the family, of the cache and in double, [2][rows][128]. */
static double *family_run(const family *f, float deviation, int mean, int32_t key_type,
                          int32_t value_type, int64_t n, int64_t rows) {
  double *out = (double *)ref_memory(2 * rows * 128, sizeof(double));
  rig r;
  ref_list l;
  ref_row y;
  family_open(&r, f, deviation, mean, key_type, value_type, n);
  for (int64_t t = 0, cut; t < n - rows; t += cut) {
    cut = n - rows - t < 512 ? n - rows - t : 512;
    CHECK_STATUS(lattn_cache_append(r.cache, rig_k(&r, t, cut), rig_v(&r, t, cut), NULL), 0);
  }
  CHECK_STATUS(rig_extend(&r, r.cache, n - rows, n - rows, rows, r.out, r.lse, NULL), LATTN_OK);
  list_open(&l, &r, n);
  list_store(&l, 0);
  y = row_new(&r);
  for (int64_t i = 0; i < rows; i++) {
    list_attend(&l, n - rows + i, 0, 0, &y);
    for (int64_t d = 0; d < 128; d++) {
      out[i * 128 + d] = (double)r.out[(n - rows + i) * 128 + d];
      out[(rows + i) * 128 + d] = y.out[d];
    }
  }
  ref_row_free(&y);
  list_close(&l);
  rig_close(&r);
  return out;
}

/* ||a - b|| / ||b|| */
static double relative(const double *a, const double *b, int64_t n) {
  double difference = 0, size = 0;
  for (int64_t i = 0; i < n; i++) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return sqrt(difference / size);
}

/* One line of the table; the double simulation without the transform is made only for --table. */
static void family_line(const family *f, float deviation, int mean, const double *exact,
                        int32_t key_type, int32_t value_type, int64_t n, int64_t rows, int print) {
  double *out = family_run(f, deviation, mean, key_type, value_type, n, rows), *off = NULL;
  double ours = relative(out, exact, rows * 128), bound;
  double simulated = relative(out + rows * 128, exact + rows * 128, rows * 128);
  check_case("error of %s/%s, %s, deviation %g, %s", quant_type_name(key_type),
             quant_type_name(value_type), f->name, (double)deviation, mean ? "mean" : "no mean");
  CHECK(ours <= 1.15 * simulated && ours >= simulated / 1.15);
  bound = key_type == LATTN_I8 && value_type == LATTN_I8 ? 1e-3 : 1e-2;
  if (mean && deviation < 2 && n >= 2048) CHECK(ours <= bound);
  if (print) {
    ref_turns = 0;
    off = family_run(f, deviation, mean, key_type, value_type, n, rows);
    ref_turns = 1;
    printf("%-22s %9g %5s  %2s/%2s  %9.5f %9.5f %7.4f %9.5f\n", f->name, (double)deviation,
           mean ? "yes" : "no", quant_type_name(key_type), quant_type_name(value_type), 100 * ours,
           100 * simulated, ours / simulated,
           100 * relative(off + rows * 128, exact + rows * 128, rows * 128));
    free(off);
  }
  free(out);
}

static void test_errors(int print) {
  int64_t n = print ? 2048 : 512, rows = n / 32;
  if (print)
    printf("the newest %" PRId64 " rows of %" PRId64 " tokens, d = 128; errors in %%\n"
           "keys                   deviation  mean   types     cache    double   ratio  without "
           "transform\n", rows, n);
  for (int i = 0; i < 5; i++)
    for (int deviation = 1; deviation <= 3; deviation += 2)
      for (int mean = 1; mean >= 0; mean--) {
        double *exact = family_run(&families[i], (float)deviation, mean, LATTN_F32, LATTN_F32, n,
                                   rows);
        for (int types = 0; types < 3; types++)
          family_line(&families[i], (float)deviation, mean, exact,
                      types == 2 ? LATTN_I4 : LATTN_I8, types ? LATTN_I4 : LATTN_I8, n, rows,
                      print);
        free(exact);
      }
}

/* ---- what a review found ---- */

static void *page_alloc(void *user, size_t bytes, size_t align) {
  (void)user;
  return aligned_alloc(align, (bytes + align - 1) / align * align);
}
static void page_free(void *user, void *p, size_t bytes) {
  (void)user;
  (void)bytes;
  free(p);
}

/* Drafts that see drafts only (a window of 2), without scratch, in an arena that ends with the
   tables: what they read of the draft area must not go beyond it. */
static void test_drafts_alone(void) {
  enum { N = 9, DIM = 16 };
  static float x[100 * DIM], out[N * DIM];
  lattn_head head = {0};
  lattn_cache_config config = {0};
  lattn_pool_config pages = {0};
  lattn_pool *pool = NULL;
  lattn_cache *cache = NULL;
  lattn_tensor t = {0}, o;
  test_guard arena = {0};
  test_rng r = rng_seed(9100);
  for (int i = 0; i < 100 * DIM; i++) x[i] = rng_normal(&r);
  head.policy = LATTN_HEAD_STREAMING;
  head.window = 2;
  config.size = sizeof config;
  config.head_size = sizeof head;
  config.heads = &head;
  config.n_kv_heads = 1;
  config.key_dim = DIM;
  config.value_type = LATTN_I8;
  config.max_drafts = N;
  config.capacity = 1000;
  config.max_append = 100;
  pages.size = sizeof pages;
  pages.alloc = page_alloc;
  pages.free = page_free;
  check_case("drafts alone");
  t.data = x;
  t.n_tokens = 100;
  t.n_heads = 1;
  t.dim = DIM;
  for (size_t bytes = 64; !cache; bytes += 64) { /* the least that will do */
    guard_free(&arena);
    arena = guard_alloc(bytes, 1);
    if (lattn_pool_init(&pool, arena.data, bytes, &pages)) continue;
    if (lattn_cache_init(&cache, pool, &config)) {
      cache = NULL;
    } else if (lattn_cache_append(cache, t, t, NULL)) {
      lattn_cache_release(cache);
      cache = NULL;
    }
  }
  t.n_tokens = N;
  o = t;
  o.data = out;
  CHECK_STATUS(lattn_cache_draft(cache, NULL, NULL, t, t, t, o, NULL, NULL), LATTN_OK);
  for (int i = 0; i < DIM; i++) { /* the last two rows, to a step of int8 */
    float a = x[(N - 1) * DIM + i], b = x[(N - 2) * DIM + i], y = out[(N - 1) * DIM + i];
    CHECK(y > fminf(a, b) - 0.05f && y < fmaxf(a, b) + 0.05f);
  }
  CHECK_STATUS(lattn_cache_release(cache), LATTN_OK);
  CHECK(guard_free(&arena));
}

int main(int argc, char **argv) {
  int table = argc > 1 && !strcmp(argv[1], "--table");
  if (argc > 1 && !strcmp(argv[1], "--print")) {
    print_golden();
    return test_summary();
  }
  printf("quant: simd %s\n", lattn_simd_name());
  test_errors(table);
  if (table) return test_summary();
  test_golden();
  test_config_errors();
  test_page_sizes();
  test_tensor_types();
  test_configs_differ();
  test_partials(LATTN_I8, LATTN_I8, 64);
  test_partials(LATTN_I4, LATTN_I4, 48);
  test_partials(LATTN_F16, LATTN_I4, 128);
  test_partials_mixed();
  test_bytes();
  test_zeros();
  test_read();
  test_weights();
  test_poison();
  test_bad_query();
  test_amplitudes();
  test_random();
  test_holes_and_drafts();
  test_routes();
  test_drafts_alone();
  printf("largest error: %.2f of its bound\n", worst_ratio);
  return test_summary();
}
