/* cases.h - random calls of lattn_attention: any option, shape, type, stride and exec, made from a
 * seed alone, every buffer between guard pages. attend.c checks them, contract.c hashes some.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h, longattn.h and ref.h. Everything random is drawn one statement at a time:
   the order of evaluation inside an expression is the compiler's choice. */
#ifndef CASES_H
#define CASES_H

enum { CASE_GUARDS = 40, CASE_POOL = 65521, CASE_NAME = 400 };

/* How large a case may be. */
enum case_kind { CASE_ANY, CASE_LONG, CASE_GOLDEN };

/* The options that are counted: each is on in at least 15 % of the random cases. */
#define CASE_OPTIONS(X)                                                                    \
  X(CAUSAL)                                                                                \
  X(CAUSAL_AT)                                                                             \
  X(SCALE)                                                                                 \
  X(SOFTCAP) X(WINDOW) X(AHEAD) X(SINKS) X(QUERY_POSITION) X(KEY_POSITION) X(VISIBLE_FROM) \
      X(VISIBLE_TO) X(QUERY_POSITIONS) X(KEY_POSITIONS) X(PACKED) X(KEY_BIAS) X(PAIR_BIAS) \
          X(ALIBI) X(LEARNED_SINK) X(GATE) X(SCORE) X(PARTIAL) X(LSE) X(THREADS) X(ALIAS)  \
              X(POISON) X(SIGMOID) X(EXTRA_KEY)

enum case_option {
#define CASE_ENUM(name) OPTION_##name,
  CASE_OPTIONS(CASE_ENUM)
#undef CASE_ENUM
      OPTION_COUNT
};

static const char *const case_option_names[OPTION_COUNT] = {
#define CASE_TEXT(name) #name,
    CASE_OPTIONS(CASE_TEXT)
#undef CASE_TEXT
};

typedef struct attend_case {
  test_rng rng;
  uint64_t seed;
  enum case_kind kind;
  uint32_t options; /* bit per enum case_option */
  test_guard guards[CASE_GUARDS];
  int n_guards, n_made;     /* buffers; those of case_make, before any exec */
  int outputs, outputs_end; /* the buffers that the call may write */
  int64_t n_queries, n_keys, heads, kv_heads, key_dim, value_dim;
  int amplitude; /* of keys and queries: 0 ... 2 */
  lattn_tensor q, k, v, out, key_bias, pair_bias, gate, extra_key, extra_value;
  lattn_attn a;
  lattn_partial partial;
  float *lse;
  char name[CASE_NAME];
} attend_case;

static inline int case_on(const attend_case *c, enum case_option o) { return c->options >> o & 1; }

/* Turns an option on in `percent` of the cases. */
static inline int case_draw(attend_case *c, enum case_option o, int percent) {
  if (!rng_chance(&c->rng, percent)) return 0;
  c->options |= 1u << o;
  return 1;
}

/* A buffer for n elements of `bytes`; void * data of tensors may be at any address. */
static inline void *case_buffer(attend_case *c, int64_t n, size_t bytes, int any_address) {
  int at_end = rng_chance(&c->rng, 70), odd = rng_chance(&c->rng, 20);
  size_t offset = (size_t)rng_range(&c->rng, 1, 63), size = (size_t)n * bytes;
  if (!odd) offset = 0;
  else if (!any_address) offset = offset * bytes;
  c->guards[c->n_guards] = guard_alloc_at(size, at_end, offset);
  return c->guards[c->n_guards++].data;
}

static inline int64_t *case_indices(attend_case *c, int64_t n) {
  return (int64_t *)case_buffer(c, n, sizeof(int64_t), 0);
}

static inline float *case_floats(attend_case *c, int64_t n) {
  return (float *)case_buffer(c, n, sizeof(float), 0);
}

/* Makes the inputs read-only, or writable again. */
static inline void case_protect(const attend_case *c, int read_only) {
  for (int i = 0; i < c->n_made; i++)
    if (i < c->outputs || i >= c->outputs_end) guard_read_only(&c->guards[i], read_only);
}

static inline int case_free(attend_case *c) {
  int intact = 1;
  while (c->n_guards) intact &= guard_free(&c->guards[--c->n_guards]);
  return intact;
}

/* ---- data: copied from a pool of normal numbers, in every type, times 1/4, 1 and 4 ---- */

static unsigned char case_pool[4][3][CASE_POOL * 4];

static inline void case_pool_make(void) {
  test_rng r = rng_seed(2026);
  for (int64_t i = 0; i < CASE_POOL; i++) {
    float x = rng_normal(&r);
    for (int32_t type = LATTN_F32; type <= LATTN_BF16; type++) {
      element_set(case_pool[type][0], type, i, x * 0.25f);
      element_set(case_pool[type][1], type, i, x);
      element_set(case_pool[type][2], type, i, x * 4.0f);
    }
  }
}

static inline void case_fill(attend_case *c, void *data, int32_t type, int64_t n, int amplitude) {
  size_t bytes = type_bytes(type);
  char *to = (char *)data;
  while (n > 0) {
    int64_t from = rng_below(&c->rng, CASE_POOL), count = CASE_POOL - from;
    if (count > n) count = n;
    memcpy(to, case_pool[type][amplitude] + (size_t)from * bytes, (size_t)count * bytes);
    to += (size_t)count * bytes;
    n -= count;
  }
}

/* Strides of a view, one of six layouts; broadcast only for inputs. */
static inline void case_layout(attend_case *c, lattn_tensor *t, int broadcast) {
  int64_t layout = rng_below(&c->rng, 10), pad = rng_range(&c->rng, 1, 9);
  int64_t longest = t->n_tokens ? t->n_tokens : 1;
  if (layout == 4) { /* said, not left to the default */
    t->stride_token = t->n_heads * t->dim;
    t->stride_head = t->dim;
  } else if (layout == 5) { /* padded tokens */
    t->stride_token = t->n_heads * t->dim + pad;
  } else if (layout == 6) { /* padded heads, tokens by default */
    t->stride_head = t->dim + pad;
  } else if (layout == 7 || layout == 8) { /* one head after the other */
    t->stride_token = t->dim + (layout == 8 ? pad : 0);
    t->stride_head = longest * t->stride_token + pad;
  } else if (layout == 9 && broadcast) {
    if (pad & 1) t->stride_token = LATTN_BROADCAST;
    else t->stride_head = LATTN_BROADCAST;
    if (pad & 1) t->stride_head = t->dim + pad;
    else t->stride_token = t->dim + pad;
  }
}

/* Elements from the first to the end of the last. */
static inline int64_t case_extent(const lattn_tensor *t) {
  if (!t->n_tokens) return 0;
  return tensor_index(t, t->n_tokens - 1, t->n_heads - 1) + t->dim;
}

/* A view with a buffer full of NaN: what no row covers must not be read, or not be written. */
static inline lattn_tensor case_view(attend_case *c, int32_t type, int64_t n_tokens,
                                     int64_t n_heads, int64_t dim, int broadcast) {
  lattn_tensor t = {NULL, type, 0, n_tokens, n_heads, dim, 0, 0};
  void *data;
  int64_t n;
  case_layout(c, &t, broadcast);
  n = case_extent(&t);
  data = case_buffer(c, n, type_bytes(type), 1);
  memset(data, 0xff, (size_t)n * type_bytes(type));
  t.data = data;
  return t;
}

static inline void *case_row(const lattn_tensor *t, int64_t token, int64_t head) {
  char *data = (char *)test_writable(t->data);
  return data + tensor_index(t, token, head) * (int64_t)type_bytes(t->type);
}

static inline void case_fill_view(attend_case *c, const lattn_tensor *t, int amplitude) {
  int64_t tokens = t->stride_token == LATTN_BROADCAST && t->n_tokens ? 1 : t->n_tokens;
  int64_t heads = t->stride_head == LATTN_BROADCAST ? 1 : t->n_heads;
  for (int64_t i = 0; i < tokens; i++)
    for (int64_t h = 0; h < heads; h++) case_fill(c, case_row(t, i, h), t->type, t->dim, amplitude);
}

static inline int32_t case_type(attend_case *c) {
  static const int32_t types[4] = {LATTN_F32, LATTN_F32, LATTN_F16, LATTN_BF16};
  return types[rng_below(&c->rng, 4)];
}

static inline lattn_tensor case_input(attend_case *c, int64_t n_tokens, int64_t n_heads,
                                      int64_t dim, int amplitude) {
  int32_t type = case_type(c);
  lattn_tensor t = case_view(c, type, n_tokens, n_heads, dim, 1);
  case_fill_view(c, &t, amplitude);
  return t;
}

/* ---- sizes ---- */

static const int64_t case_lengths[] = {0,    1,    15,   16,   17,   127,  128, 129,
                                       2047, 2048, 2049, 4095, 4096, 4097, 6000};
static const int64_t case_long_lengths[] = {6145, 8192, 8193, 10001, 12289, 16384, 20000, 33000};
static const int64_t case_dims[] = {1,  2,  3,  4,   5,   6,   7,   8,   9,  10, 11,
                                    12, 13, 14, 15,  16,  17,  18,  19,  20, 46, 64,
                                    64, 80, 96, 112, 128, 128, 192, 256, 576};
static const int64_t case_heads[][2] = {{1, 1}, {1, 1}, {2, 2}, {3, 3}, {2, 1}, {4, 1},
                                        {8, 1}, {4, 2}, {6, 3}, {6, 2}, {5, 1}, {16, 2}};

#define CASE_PICK(c, array) \
  ((array)[rng_below(&(c)->rng, (int64_t)(sizeof(array) / sizeof((array)[0])))])

static inline void case_draw_dims(attend_case *c) {
  int64_t how = rng_below(&c->rng, 100);
  c->key_dim = CASE_PICK(c, case_dims);
  c->value_dim = CASE_PICK(c, case_dims);
  if (how < 60) c->value_dim = c->key_dim;
  if (how >= 94) c->key_dim = 192;
  if (how >= 94) c->value_dim = 128;
  if (how >= 97) c->key_dim = 576;
  if (how >= 97) c->value_dim = 512;
}

/* Multiply-adds of the whole, without masks. */
static inline int64_t case_work(const attend_case *c) {
  return c->n_queries * c->n_keys * c->heads * (c->key_dim + c->value_dim);
}

static inline int64_t case_elements(const attend_case *c) {
  return (c->key_dim + c->value_dim) * (c->n_queries * c->heads + c->n_keys * c->kv_heads);
}

/* Lengths first, the second of the two redrawn until it fits; then dims and heads that fit. */
static inline void case_draw_sizes(attend_case *c) {
  int64_t size = rng_below(&c->rng, 1000), queries_first = rng_below(&c->rng, 2), tries;
  int64_t work = size < 600 ? 1 << 18 : size < 900 ? 1 << 20 : size < 990 ? 1 << 22 : 1 << 24;
  int64_t elements = size < 600 ? 1 << 16 : size < 900 ? 1 << 18 : 1 << 20;
  if (c->kind == CASE_LONG) {
    work = (int64_t)1 << (size < 800 ? 24 : 26);
    elements = 1 << 23;
    c->n_keys = CASE_PICK(c, case_long_lengths);
    queries_first = 0;
  } else {
    c->n_keys = CASE_PICK(c, case_lengths);
    c->n_queries = CASE_PICK(c, case_lengths);
  }
  if (size == 999 && c->kind == CASE_ANY) work = 1 << 27;
  if (c->kind == CASE_GOLDEN) work = size < 700 ? 1 << 18 : 1 << 20;
  if (c->kind == CASE_GOLDEN) elements = size < 700 ? 1 << 15 : 1 << 17;
  do {
    int64_t n = CASE_PICK(c, case_lengths);
    if (queries_first) c->n_keys = n;
    else c->n_queries = n;
  } while (c->n_queries * c->n_keys * 2 > work);
  for (tries = 0; tries < 100; tries++) {
    int64_t h = rng_below(&c->rng, (int64_t)(sizeof case_heads / sizeof case_heads[0]));
    case_draw_dims(c);
    c->heads = case_heads[h][0];
    c->kv_heads = case_heads[h][1];
    if (case_work(c) <= work && case_elements(c) <= elements) return;
  }
  c->heads = c->kv_heads = c->key_dim = c->value_dim = 1;
}

/* ---- options ---- */

static const int64_t case_edges[] = {0,   1,   2,   5,   15,   16,   17,  64,
                                     127, 128, 129, 300, 2047, 2048, 2049};

/* A number near an edge of a panel, block or segment, at most `limit`. */
static inline int64_t case_edge(attend_case *c, int64_t limit) {
  int64_t x = CASE_PICK(c, case_edges);
  int64_t any = rng_range(&c->rng, 0, limit);
  return x <= limit ? x : any;
}

static inline int64_t case_position(attend_case *c, int64_t n) {
  static const int64_t starts[] = {1, 16, 100, 127, 128, 2000, 2048, 5000, 131071, 2147000000};
  int64_t p = CASE_PICK(c, starts);
  return p + n > 2147483647 ? 2147483647 - n : p;
}

/* Starts of n sequences over `length` tokens; empty ones happen. */
static inline const int64_t *case_starts(attend_case *c, int64_t n, int64_t length) {
  int64_t *starts = case_indices(c, n + 1);
  starts[0] = 0;
  starts[n] = length;
  for (int64_t i = 1; i < n; i++) starts[i] = rng_below(&c->rng, length + 1);
  for (int64_t i = 1; i < n; i++)
    for (int64_t j = i; j > 1 && starts[j] < starts[j - 1]; j--) {
      int64_t t = starts[j];
      starts[j] = starts[j - 1];
      starts[j - 1] = t;
    }
  return starts;
}

static inline void case_draw_sequences(attend_case *c) {
  int64_t n = rng_range(&c->rng, 1, 5);
  c->a.n_sequences = n;
  c->a.query_starts = case_starts(c, n, c->n_queries);
  c->a.key_starts = case_starts(c, n, c->n_keys);
  if (rng_chance(&c->rng, 50)) {
    int64_t *p = case_indices(c, n);
    for (int64_t i = 0; i < n; i++) p[i] = rng_below(&c->rng, c->n_keys + 200);
    c->a.sequence_query_positions = p;
  }
  if (rng_chance(&c->rng, 50)) {
    int64_t *p = case_indices(c, n);
    for (int64_t i = 0; i < n; i++) p[i] = rng_below(&c->rng, 300);
    c->a.sequence_key_positions = p;
  }
}

static inline void case_draw_masks(attend_case *c) {
  lattn_attn *a = &c->a;
  int64_t mask = rng_below(&c->rng, 100);
  a->mask = mask < 50 ? LATTN_FULL : mask < 75 ? LATTN_CAUSAL : LATTN_CAUSAL_AT;
  if (a->mask == LATTN_CAUSAL) c->options |= 1u << OPTION_CAUSAL;
  if (a->mask == LATTN_CAUSAL_AT) c->options |= 1u << OPTION_CAUSAL_AT;
  if (case_draw(c, OPTION_KEY_POSITION, 25)) a->key_position = case_position(c, c->n_keys);
  if (case_draw(c, OPTION_QUERY_POSITION, 30)) {
    int64_t near = a->key_position - 20 + rng_below(&c->rng, c->n_keys + 40);
    if (near + c->n_queries > 2147483647) near = 2147483647 - c->n_queries;
    a->query_position = near > 0 ? near : 1;
  }
  if (case_draw(c, OPTION_WINDOW, 55)) a->window = case_edge(c, c->n_keys) + 1;
  if (a->window && a->mask == LATTN_FULL && case_draw(c, OPTION_AHEAD, 75))
    a->ahead = case_edge(c, c->n_keys) + 1;
  if (case_draw(c, OPTION_SINKS, 40)) a->sinks = case_edge(c, 140) + 1;
  if (case_draw(c, OPTION_PACKED, 22)) case_draw_sequences(c);
}

static inline void case_draw_ranges(attend_case *c) {
  lattn_attn *a = &c->a;
  if (case_draw(c, OPTION_VISIBLE_FROM, 20)) {
    int64_t *from = case_indices(c, c->n_queries);
    for (int64_t i = 0; i < c->n_queries; i++)
      from[i] = a->key_position + case_edge(c, c->n_keys + 3);
    a->visible_from = from;
  }
  if (case_draw(c, OPTION_VISIBLE_TO, 20)) {
    int64_t *to = case_indices(c, c->n_queries);
    for (int64_t i = 0; i < c->n_queries; i++)
      to[i] = a->key_position + c->n_keys + 2 - case_edge(c, c->n_keys);
    a->visible_to = to;
  }
  if (case_draw(c, OPTION_QUERY_POSITIONS, 20)) {
    int64_t *p = case_indices(c, c->n_queries);
    for (int64_t i = 0; i < c->n_queries; i++) p[i] = i + rng_below(&c->rng, c->n_keys + 3);
    a->query_positions = p;
  }
  if (case_draw(c, OPTION_KEY_POSITIONS, 20)) {
    int64_t *p = case_indices(c, c->n_keys), step = rng_range(&c->rng, 1, 3);
    for (int64_t i = 0; i < c->n_keys; i++) p[i] = i / step + rng_below(&c->rng, 4);
    a->key_positions = p;
  }
}

/* -infinity at some places of a bias. */
static inline void case_hide_some(attend_case *c, const lattn_tensor *t) {
  int64_t n = t->n_tokens * t->n_heads * t->dim / 20;
  if (rng_chance(&c->rng, 60) || n > 2000) return;
  for (int64_t i = 0; i < n; i++) {
    int64_t token = rng_below(&c->rng, t->n_tokens), head = rng_below(&c->rng, t->n_heads);
    element_set(case_row(t, token, head), t->type, rng_below(&c->rng, t->dim), -INFINITY);
  }
}

static inline void case_draw_biases(attend_case *c) {
  int64_t heads = rng_chance(&c->rng, 50) ? c->heads : 1;
  if (c->n_keys && case_draw(c, OPTION_KEY_BIAS, 22)) {
    c->key_bias = case_input(c, 1, heads, c->n_keys, 1);
    case_hide_some(c, &c->key_bias);
    c->a.key_bias = &c->key_bias;
  }
  if (c->n_keys && case_draw(c, OPTION_PAIR_BIAS, 22)) {
    int32_t type = case_type(c);
    lattn_tensor t = {NULL, type, 0, c->n_queries, heads, c->n_keys, 0, 0};
    if (c->n_queries * heads * c->n_keys <= 1 << 18) {
      t = case_view(c, type, c->n_queries, heads, c->n_keys, 1);
    } else { /* too large for one of its own: every row has the same */
      t.stride_token = LATTN_BROADCAST;
      t.data = case_buffer(c, heads * c->n_keys, type_bytes(type), 1);
    }
    case_fill_view(c, &t, 1);
    case_hide_some(c, &t);
    c->pair_bias = t;
    c->a.pair_bias = &c->pair_bias;
  }
}

/* A callback that knows every argument; 0.5 * s is exact, so contraction changes nothing. */
static inline float case_score_term(int64_t sequence, int64_t row, int64_t query, int32_t head,
                                    int64_t key) {
  return (float)((key + 2 * row + 3 * head + 5 * sequence + query) % 7) * 0.25f;
}

/* What a call on a part of the case's rows or heads must add to be told what the whole is told. */
typedef struct case_shift {
  int64_t sequence, row;
  int32_t head;
} case_shift;

static inline void case_score(void *user, int64_t sequence, int64_t row, int64_t query,
                              int32_t head, int64_t first_key, float scores[16]) {
  const case_shift *shift = (const case_shift *)user;
  if (shift) {
    sequence += shift->sequence;
    row += shift->row;
    head += shift->head;
  }
  for (int64_t t = 0; t < 16; t++)
    if ((first_key + t) % 3 == 0)
      scores[t] = scores[t] * 0.5f + case_score_term(sequence, row, query, head, first_key + t);
}

static inline double case_score_exact(void *user, int64_t sequence, int64_t row, int64_t query,
                                      int32_t head, int64_t key, double s) {
  (void)user;
  if (key % 3) return s;
  return s * 0.5 + (double)case_score_term(sequence, row, query, head, key);
}

static inline void case_draw_heads(attend_case *c) {
  lattn_attn *a = &c->a;
  if (case_draw(c, OPTION_ALIBI, 22)) {
    float *slopes = case_floats(c, c->heads);
    for (int64_t h = 0; h < c->heads; h++) slopes[h] = f32_of_bits((uint32_t)(126 - h) << 23);
    a->alibi_slopes = slopes;
  }
  if (case_draw(c, OPTION_LEARNED_SINK, 22)) {
    float *sinks = case_floats(c, c->heads);
    for (int64_t h = 0; h < c->heads; h++) {
      sinks[h] = rng_normal(&c->rng) * 4.0f;
      if (rng_chance(&c->rng, 10)) sinks[h] = -INFINITY;
    }
    a->sink_logits = sinks;
  }
  if (case_draw(c, OPTION_GATE, 22)) {
    int64_t heads = rng_chance(&c->rng, 50) ? c->heads : 1;
    int64_t dim = rng_chance(&c->rng, 50) ? c->value_dim : 1;
    c->gate = case_input(c, c->n_queries, heads, dim, 1);
    a->gate = &c->gate;
  }
  if (case_draw(c, OPTION_SCORE, 20)) a->score = case_score;
}

/* A key, and perhaps a value, that every row has besides. */
static inline void case_extra_key(attend_case *c) {
  const int64_t heads[3] = {1, c->kv_heads, c->heads};
  int64_t of_key = heads[rng_below(&c->rng, 3)], of_value = heads[rng_below(&c->rng, 3)];
  c->extra_key = case_input(c, 1, of_key, c->key_dim, c->amplitude);
  c->a.extra_key = &c->extra_key;
  if (rng_chance(&c->rng, 30)) return;
  c->extra_value = case_input(c, 1, of_value, c->value_dim, 1);
  c->a.extra_value = &c->extra_value;
}

/* Sigmoid attention in place of softmax, which alone has learned sinks and extra keys. */
static inline void case_sigmoid(attend_case *c) {
  int64_t how = rng_below(&c->rng, 3);
  float any = rng_normal(&c->rng) * 4.0f;
  c->a.weighting = LATTN_SIGMOID;
  c->a.sigmoid_bias = how == 0 ? 0 : how == 1 ? any : -floorf(logf((float)c->n_keys + 1) * 8) / 8;
  c->a.sink_logits = NULL;
  c->options &= ~(1u << OPTION_LEARNED_SINK);
  c->options |= 1u << OPTION_SIGMOID;
}

static inline void case_draw_scale(attend_case *c) {
  if (case_draw(c, OPTION_SCALE, 40)) {
    c->a.scale = rng_uniform(&c->rng) * 0.5f;
    if (c->a.scale == 0) c->a.scale = 1;
  }
  if (case_draw(c, OPTION_SOFTCAP, 22)) {
    c->a.softcap = (float)rng_range(&c->rng, 1, 60) * 0.5f;
    if (rng_chance(&c->rng, 10)) c->a.softcap = INFINITY;
  }
}

/* ---- the whole ---- */

/* Arrays of a partial of this call. */
static inline void case_draw_partial(attend_case *c) {
  int64_t rows = c->n_queries * c->heads;
  c->partial.size = sizeof c->partial;
  c->partial.n_rows = rows;
  c->partial.value_dim = c->value_dim;
  c->partial.maximum = case_floats(c, rows);
  c->partial.sum = case_floats(c, rows);
  c->partial.output = case_floats(c, rows * c->value_dim);
  c->a.partial = &c->partial;
}

/* Outputs, and q where out is q's own array. */
static inline void case_outputs(attend_case *c) {
  int32_t type = case_type(c);
  int alias = c->key_dim == c->value_dim && rng_chance(&c->rng, 45);
  c->outputs = c->n_guards;
  c->out = case_view(c, type, c->n_queries, c->heads, c->value_dim, 0);
  if (alias) {
    c->options |= 1u << OPTION_ALIAS;
    case_fill_view(c, &c->out, c->amplitude);
    c->q = c->out;
  }
  if (case_draw(c, OPTION_LSE, 60)) c->lse = case_floats(c, c->n_queries * c->heads);
  if (!c->a.n_sequences && case_draw(c, OPTION_PARTIAL, 24)) case_draw_partial(c);
  c->outputs_end = c->n_guards;
}

static inline int case_sees(const attend_case *c, const ref_call *rows, int64_t row, int64_t t) {
  ref_place p = ref_find(rows, row);
  int64_t index = p.key_position + t - p.first_key;
  (void)c;
  if (t < p.first_key || t >= p.end_key) return 0;
  return ref_sees(rows, &p, row, index, c->a.key_positions ? c->a.key_positions[t] : index);
}

/* NaN or infinity in keys and values that no row sees; sometimes NaN in one that some see. */
static inline void case_poison(attend_case *c) {
  ref_call rows;
  int64_t seen_by_some = rng_below(&c->rng, 3);
  memset(&rows, 0, sizeof rows);
  rows.options = c->a;
  rows.n_queries = c->n_queries;
  rows.n_keys = c->n_keys;
  for (int64_t t = 0; t < c->n_keys; t++) {
    float bad = t & 1 ? NAN : t & 2 ? INFINITY : -INFINITY;
    int seen = 0;
    for (int64_t i = 0; i < c->n_queries && !seen; i++) seen = case_sees(c, &rows, i, t);
    if (seen && (seen_by_some || rng_below(&c->rng, c->n_keys))) continue;
    if (seen) bad = NAN;
    for (int64_t g = 0; g < c->kv_heads; g++) {
      element_set(case_row(&c->k, t, g), c->k.type, rng_below(&c->rng, c->key_dim), bad);
      if (!seen || !(c->a.key_bias || c->a.pair_bias))
        element_set(case_row(&c->v, t, g), c->v.type, rng_below(&c->rng, c->value_dim), bad);
    }
  }
}

static inline int case_broadcast(const lattn_tensor *t) {
  return t->stride_token == LATTN_BROADCAST || t->stride_head == LATTN_BROADCAST;
}

static inline void case_describe(attend_case *c) {
  int at = snprintf(c->name, CASE_NAME,
                    "seed %" PRIu64 " kind %d: q %" PRId64 "x%" PRId64 "x%" PRId64 " %s, k %" PRId64
                    "x%" PRId64 " %s, v %" PRId64 " %s, out %s:",
                    c->seed, (int)c->kind, c->n_queries, c->heads, c->key_dim, type_name(c->q.type),
                    c->n_keys, c->kv_heads, type_name(c->k.type), c->value_dim,
                    type_name(c->v.type), type_name(c->out.type));
  for (int o = 0; o < OPTION_COUNT && at < CASE_NAME; o++)
    if (case_on(c, (enum case_option)o))
      at += snprintf(c->name + at, (size_t)(CASE_NAME - at), " %s", case_option_names[o]);
}

/* Makes the case of that seed. */
static inline void case_make(attend_case *c, uint64_t seed, enum case_kind kind) {
  memset(c, 0, sizeof *c);
  c->seed = seed;
  c->kind = kind;
  c->rng = rng_seed(seed);
  c->a.size = sizeof c->a;
  case_draw_sizes(c);
  c->amplitude = (int)rng_below(&c->rng, 3);
  case_draw_scale(c);
  case_draw_masks(c);
  case_outputs(c);
  case_draw_ranges(c);
  if (!c->q.dim) c->q = case_input(c, c->n_queries, c->heads, c->key_dim, c->amplitude);
  c->k = case_input(c, c->n_keys, c->kv_heads, c->key_dim, c->amplitude);
  c->v = case_input(c, c->n_keys, c->kv_heads, c->value_dim, 1);
  case_draw_biases(c);
  case_draw_heads(c);
  if (c->n_queries * c->n_keys <= 1 << 18 && !case_broadcast(&c->k) && !case_broadcast(&c->v) &&
      case_draw(c, OPTION_POISON, 40))
    case_poison(c);
  if (kind != CASE_GOLDEN && case_draw(c, OPTION_SIGMOID, 22)) case_sigmoid(c);
  else if (kind != CASE_GOLDEN && case_draw(c, OPTION_EXTRA_KEY, 25)) case_extra_key(c);
  case_describe(c);
  c->n_made = c->n_guards;
}

/* ---- execution ---- */

enum exec_kind { EXEC_NULL, EXEC_ONE, EXEC_SCRAMBLED, EXEC_THREADS, EXEC_STACK, EXEC_KINDS };

static const char *const exec_names[EXEC_KINDS] = {"no exec", "one thread", "scrambled order",
                                                   "threads", "stack"};

/* Whether a call without scratch can serve these dims. */
static inline int case_small(const attend_case *c) {
  return c->key_dim <= 256 && c->value_dim <= 160;
}

/* Fills an exec; its scratch is of exactly the size asked for. Returns what to hand over. */
static inline const lattn_exec *case_exec(attend_case *c, lattn_exec *exec, enum exec_kind kind,
                                          int32_t n_threads) {
  memset(exec, 0, sizeof *exec);
  exec->size = sizeof *exec;
  if (kind == EXEC_NULL) return NULL;
  exec->n_threads = kind == EXEC_ONE ? 0 : n_threads;
  if (kind != EXEC_ONE) exec->parallel_for = test_parallel_scrambled;
  if (kind == EXEC_THREADS) exec->parallel_for = test_parallel_threads;
  if (kind == EXEC_STACK) return exec;
  exec->scratch_bytes = lattn_attention_scratch(&c->a, c->q, c->k, c->v, exec->n_threads);
  CHECK(exec->scratch_bytes > 0);
  exec->scratch = case_buffer(c, (int64_t)exec->scratch_bytes, 1, 1);
  return exec;
}

#endif /* CASES_H */
