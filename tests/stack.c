/* stack.c - how much stack a call takes without scratch: 24 KiB at most, at the largest dims that
 * are promised. Each call runs on a thread of its own whose stack was painted.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

/* Sanitizers put their own things on the stack; without optimisation, everything is there. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
    __has_feature(memory_sanitizer)
#define STACK_SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(STACK_SANITIZED) || \
    !defined(__OPTIMIZE__)
enum { STACK_MEASURED = 0 };
#else
enum { STACK_MEASURED = 1 };
#endif

enum {
  LIMIT = 24576, /* 24 KiB */
  STACK = 1 << 20,
  PAINT = 0xa7,
  HEADS = 2,
  KEY_DIM = 256,
  VALUE_DIM = 160,
  TOKENS = 300,
  ROWS = 3,
  DRAFTS = 8,
  CAPACITY = 400
};

/* ---- what every call works on: nothing of it is on a stack ---- */

static float q[TOKENS * HEADS * KEY_DIM], k[TOKENS * KEY_DIM], v[TOKENS * VALUE_DIM];
static float out[TOKENS * HEADS * VALUE_DIM], lse[TOKENS * HEADS], low[TOKENS * HEADS];
static float lost[2][TOKENS * HEADS];
static float weights[ROWS * HEADS * CAPACITY], top_weights[ROWS * HEADS * 4];
static float maximum[2][ROWS * HEADS], sums[2][ROWS * HEADS], sums_out[2][ROWS * HEADS * VALUE_DIM];
static float key_out[ROWS * KEY_DIM], value_out[ROWS * VALUE_DIM];
static float slopes[HEADS] = {0.5f, 0.25f}, sinks[HEADS] = {1, 2};
static int64_t argmax[ROWS * HEADS], top_keys[ROWS * HEADS * 4];
static double mass[HEADS * CAPACITY];
static unsigned char file[1 << 22];
static size_t file_bytes, file_at;
static uint64_t turns[KEY_DIM / 2];
static lattn_rotary rotary;
static lattn_head head;
static lattn_cache_config config;
static lattn_cache *cache, *other;
static lattn_checkpoint *checkpoint;
static lattn_call call;
static lattn_attn attn;
static lattn_tensor extra_key, extra_value;
static lattn_weights wanted;
static lattn_profile *profile;
static lattn_observed observed;
static lattn_calibration calibration;
static unsigned char profile_memory[1 << 21], marks[HEADS * TOKENS];
static double means[HEADS * TOKENS];
static float projection[8 * HEADS * VALUE_DIM];
static int32_t tokens[TOKENS];
static lattn_partial parts[2];
static lattn_sequence sequences[2];
static lattn_status status;

static void fill(float *x, int64_t n, test_rng *rng) {
  for (int64_t i = 0; i < n; i++) x[i] = rng_normal(rng);
}

static lattn_tensor rows_of(const float *data, int64_t n, int64_t heads, int64_t dim) {
  return tensor_of(data, LATTN_F32, n, heads, dim);
}

#define Q rows_of(q, ROWS, HEADS, KEY_DIM)
#define K rows_of(k, ROWS, 1, KEY_DIM)
#define V rows_of(v, ROWS, 1, VALUE_DIM)
#define OUT rows_of(out, ROWS, HEADS, VALUE_DIM)
#define ALL_K rows_of(k, TOKENS, 1, KEY_DIM)
#define ALL_V rows_of(v, TOKENS, 1, VALUE_DIM)

static int32_t file_write(void *user, const void *data, size_t bytes) {
  (void)user;
  if (bytes > sizeof file - file_bytes) return 1;
  memcpy(file + file_bytes, data, bytes);
  file_bytes += bytes;
  return 0;
}

static int32_t file_read(void *user, void *data, size_t bytes) {
  (void)user;
  if (bytes > file_bytes - file_at) return 1;
  memcpy(data, file + file_at, bytes);
  file_at += bytes;
  return 0;
}

static void score_same(void *user, int64_t sequence, int64_t row, int64_t query, int32_t h,
                       int64_t first_key, float scores[16]) {
  (void)user, (void)sequence, (void)row, (void)query, (void)h, (void)first_key;
  scores[0] *= 1;
}

/* ---- the calls: each leaves its status in `status`, and the caches as they were ---- */

static void call_extend(void) {
  status = lattn_cache_extend(cache, &call, Q, K, V, OUT, lse, NULL);
}
static void call_mark_chosen(void) { status = lattn_cache_mark(cache, LATTN_PROMPT_END, NULL); }
static void call_append(void) { status = lattn_cache_append(cache, K, V, NULL); }
static void call_attend(void) { status = lattn_cache_attend(cache, &call, Q, OUT, lse, NULL); }
static void call_attend_chosen(void) {
  call.top_values = 256;
  status = lattn_cache_attend(cache, &call, Q, OUT, lse, NULL);
  call.top_values = 0;
}
static void call_draft(void) {
  status = lattn_cache_draft(cache, &call, NULL, Q, K, V, OUT, lse, NULL);
}
static void call_accept(void) {
  static const int32_t path[2] = {0, 1};
  status = lattn_cache_accept(cache, 2, path);
}
static void call_truncate(void) { status = lattn_cache_truncate(cache, TOKENS); }
static void call_mark(void) { status = lattn_cache_mark(other, LATTN_PROMPT_END, NULL); }
static void call_remove(void) { status = lattn_cache_remove(other, 20, 40); }
static void call_checkpoint(void) { status = lattn_cache_checkpoint(&checkpoint, cache); }
static void call_rollback(void) { status = lattn_cache_rollback(cache, checkpoint); }
static void call_release(void) { status = lattn_checkpoint_release(checkpoint); }
static void call_batch_extend(void) {
  status = lattn_batch_extend(2, sequences, &call, Q, K, V, OUT, lse, NULL);
}
static void call_batch_attend(void) {
  status = lattn_batch_attend(2, sequences, &call, Q, OUT, lse, NULL);
}
static void call_weights(void) { status = lattn_cache_weights(cache, &call, Q, &wanted, NULL); }
static void call_attention(void) {
  status = lattn_attention(&attn, Q, ALL_K, ALL_V, OUT, lse, NULL);
}
static void call_attention_chosen(void) {
  attn.top_values = 256;
  status = lattn_attention(&attn, Q, ALL_K, ALL_V, OUT, lse, NULL);
  attn.top_values = 0;
}
static void call_attention_weights(void) {
  status = lattn_attention_weights(&attn, Q, ALL_K, &wanted, NULL);
}
static void call_profile(void) {
  status = lattn_profile_observe(profile, &observed, &attn, Q, ALL_K, ALL_V, NULL);
}
static void call_profile_sample(void) { status = lattn_profile_sample(profile, 1); }
static void call_calibrated(void) {
  static lattn_attn plain;
  plain = attn;
  plain.sink_logits = NULL;
  plain.extra_key = plain.extra_value = NULL;
  status = lattn_attention_calibrated(&calibration, &plain, Q, ALL_K, ALL_V, OUT, lse, NULL);
}
static void call_merge(void) { status = lattn_merge(NULL, 2, parts, OUT, lse, NULL); }
static void call_read(void) {
  status = lattn_cache_read(cache, 0, TOKENS - ROWS, rows_of(key_out, ROWS, 1, KEY_DIM),
                            rows_of(value_out, ROWS, 1, VALUE_DIM), LATTN_READ_UNROTATED);
}
static void call_rotate(void) { status = lattn_rotate(&rotary, Q, 1000000, NULL); }
static void call_turns(void) {
  lattn_rotary_scaling scaling = {
      sizeof scaling, LATTN_ROTARY_PLAIN, KEY_DIM, 0, 0, 0, 0, 0, 0, 0, 0};
  status = lattn_rotary_turns(turns, &scaling);
}
static void call_save(void) {
  file_bytes = 0;
  status = lattn_cache_save(cache, file_write, NULL, NULL);
}
static void call_load(void) {
  file_at = 0;
  status = lattn_cache_load(other, file_read, NULL);
}

/* ---- states of fixed size ---- */

enum { STATE_ROWS = 20, STATE_KEY = 600, STATE_KINDS = 9 };

static float state_q[STATE_ROWS * STATE_KEY], state_k[STATE_ROWS * STATE_KEY];
static float state_more[4][STATE_ROWS * STATE_KEY], state_v[STATE_ROWS * VALUE_DIM];
static float state_out[STATE_ROWS * VALUE_DIM], state_matrix[STATE_KEY * VALUE_DIM];
static float state_query[STATE_KEY];
static unsigned char state_memory[2][1 << 22];
static lattn_state_config state_config;
static lattn_state_call state_call;
static lattn_tensor state_extra[4];
static lattn_state *state, *state_other;
static lattn_state_sequence state_list[2];

#define STATE_Q rows_of(state_q, STATE_ROWS, 1, state_config.key_dim)
#define STATE_K rows_of(state_k, STATE_ROWS, 1, state_config.key_dim)
#define STATE_V rows_of(state_v, STATE_ROWS, 1, state_config.value_dim)
#define STATE_OUT rows_of(state_out, STATE_ROWS, 1, state_config.value_dim)

static void state_feature(void *user, int32_t h, int32_t is_query, const float *x, int64_t dim,
                          float *features, int64_t n) {
  (void)user, (void)h, (void)is_query;
  for (int64_t i = 0; i < n; i++) features[i] = x[i % dim];
}

static void state_advance(void) {
  status = lattn_state_advance(state, &state_call, STATE_Q, STATE_K, STATE_V, STATE_OUT, NULL);
}
static void state_batch(void) {
  status =
      lattn_batch_advance(2, state_list, &state_call, STATE_Q, STATE_K, STATE_V, STATE_OUT, NULL);
}
static void state_draft(void) {
  lattn_tensor q_rows = STATE_Q, k_rows = STATE_K, v_rows = STATE_V, out_rows = STATE_OUT;
  q_rows.n_tokens = k_rows.n_tokens = v_rows.n_tokens = out_rows.n_tokens = 16;
  for (int i = 0; i < 4; i++) state_extra[i].n_tokens = 16;
  status = lattn_state_draft(state, &state_call, q_rows, k_rows, v_rows, out_rows, NULL);
  for (int i = 0; i < 4; i++) state_extra[i].n_tokens = STATE_ROWS;
}
static void state_commit(void) { status = lattn_state_commit(state, 7); }
static void state_read(void) {
  lattn_state_call maps;
  memset(&maps, 0, sizeof maps);
  maps.size = sizeof maps, maps.feature = state_feature;
  status = lattn_state_read(state, &maps, STATE_Q, STATE_OUT, NULL);
}
static void state_copy(void) { status = lattn_state_copy(state_other, state); }
static void state_merge(void) {
  status = lattn_state_clear(state_other);
  status = lattn_state_merge(state, state_other);
}
static void state_get(void) {
  int wide = state_config.kind == LATTN_STATE_TITANS && state_config.hidden_dim;
  status = lattn_state_get(
      state, LATTN_MATRIX_STATE, 0,
      rows_of(state_matrix,
              state_config.feature_dim ? state_config.feature_dim : state_config.key_dim, 1,
              wide ? state_config.hidden_dim : state_config.value_dim));
}
static void state_save(void) {
  file_bytes = 0;
  status = lattn_state_save(state, file_write, NULL, NULL);
}
static void state_load(void) {
  file_at = 0;
  status = lattn_state_clear(state_other);
  status = lattn_state_load(state_other, file_read, NULL);
}

/* Two states of a kind, of the largest dims that are promised without scratch. */
static void make_states(int kind) {
  lattn_state_config *c = &state_config;
  test_rng rng = rng_seed(7);
  memset(c, 0, sizeof *c);
  memset(&state_call, 0, sizeof state_call);
  fill(state_q, STATE_ROWS * STATE_KEY, &rng), fill(state_k, STATE_ROWS * STATE_KEY, &rng);
  fill(state_v, STATE_ROWS * VALUE_DIM, &rng), fill(state_query, STATE_KEY, &rng);
  for (int i = 0; i < 4; i++) fill(state_more[i], STATE_ROWS * STATE_KEY, &rng);
  for (int i = 0; i < STATE_ROWS * STATE_KEY; i++) {
    state_more[0][i] = -fabsf(state_more[0][i]);
    state_k[i] *= 0.03125f, state_more[2][i] *= 0.03125f, state_more[3][i] *= 0.03125f;
    state_more[1][i] = 0.0625f;
  }
  c->size = sizeof *c, state_call.size = sizeof state_call;
  c->n_heads = 1, c->key_dim = STATE_KEY, c->value_dim = VALUE_DIM, c->max_drafts = 16;
  if (kind == 0) c->decay = LATTN_DECAY_STEP, c->delta = LATTN_DELTA_KEY, c->unit = LATTN_UNIT_L2;
  if (kind == 1) c->decay = LATTN_DECAY_CHANNEL, c->delta = LATTN_DELTA_GENERAL, c->key_dim = 256;
  if (kind == 2) c->feature = LATTN_FEATURE_SOFTMAX, c->normaliser = LATTN_NORMALISER_SUM;
  if (kind == 3) c->flags = LATTN_STATE_COMPENSATED, c->reads = LATTN_READS_BEFORE;
  if (kind == 4) c->key_dim = 256, c->feature = LATTN_FEATURE_CALLER, c->feature_dim = STATE_KEY;
  if (kind == 5) c->kind = LATTN_STATE_FLOW, c->flags = LATTN_STATE_COMPENSATED, c->key_dim = 256;
  if (kind == 6) c->kind = LATTN_STATE_AAREN, c->query = state_query, c->key_dim = 256;
  if (kind == 7) c->kind = LATTN_STATE_TITANS, c->chunk = 4, c->key_dim = 256;
  if (kind == 8)
    c->kind = LATTN_STATE_TITANS, c->chunk = 4, c->hidden_dim = 512, c->key_dim = VALUE_DIM,
    c->residual = 1;
  for (int i = 0; i < 4; i++)
    state_extra[i] =
        rows_of(state_more[i], STATE_ROWS, 1, i == 1 || (i == 0 && kind == 0) ? 1 : c->key_dim);
  if (c->decay) state_call.decay = &state_extra[0];
  if (c->delta == LATTN_DELTA_KEY) state_call.beta = &state_extra[1];
  if (c->delta == LATTN_DELTA_GENERAL)
    state_call.predict = &state_extra[2], state_call.write = &state_extra[3];
  if (c->kind == LATTN_STATE_TITANS)
    state_call.rate = state_call.momentum = state_call.forget = &state_extra[1];
  if (c->feature == LATTN_FEATURE_CALLER) state_call.feature = state_feature;
  CHECK(lattn_state_bytes(c) <= sizeof state_memory[0]);
  CHECK_STATUS(lattn_state_init(&state, state_memory[0], sizeof state_memory[0], c), LATTN_OK);
  CHECK_STATUS(lattn_state_init(&state_other, state_memory[1], sizeof state_memory[1], c),
               LATTN_OK);
  state_list[0].state = state, state_list[1].state = state_other;
  state_list[0].n_tokens = STATE_ROWS - 3, state_list[1].n_tokens = 3;
}

static void run_states(void (*each)(const char *name, void (*run)(void))) {
  int kind = state_config.kind,
      merges = kind == LATTN_STATE_AAREN || (kind == LATTN_STATE_LINEAR && !state_config.delta);
  each("lattn_state_advance", state_advance);
  each("lattn_batch_advance", state_batch);
  each("lattn_state_draft", state_draft);
  each("lattn_state_commit", state_commit);
  if (kind != LATTN_STATE_FLOW) each("lattn_state_read", state_read);
  if (kind != LATTN_STATE_AAREN) each("lattn_state_get", state_get);
  each("lattn_state_copy", state_copy);
  if (merges) each("lattn_state_merge", state_merge);
  each("lattn_state_save", state_save);
  each("lattn_state_load", state_load);
}

/* ---- measuring ---- */

static size_t most; /* of all calls */
static const char *most_name;

/* Where the call's frame begins, as an offset into the painted stack. */
static unsigned char *painted;
static size_t call_top;

/* One frame of our own between the thread and the call. */
static void *run_on_thread(void *argument) {
  void (**run)(void) = (void (**)(void))argument;
  volatile unsigned char here = 0;
  call_top = (size_t)((uintptr_t)&here - (uintptr_t)painted) + here;
  (*run)();
  return NULL;
}

/* Bytes from there to the lowest that changed. (What starts and ends a thread takes some too: a
   call that takes less is seen to take that.) */
static size_t stack_used(void (*run)(void)) {
  pthread_attr_t attributes;
  pthread_t thread;
  size_t untouched = 0;
  if (!painted)
    painted = (unsigned char *)mmap(NULL, STACK, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(painted, PAINT, STACK);
  CHECK(!pthread_attr_init(&attributes));
  CHECK(!pthread_attr_setstack(&attributes, painted, STACK));
  if (!CHECK(!pthread_create(&thread, &attributes, run_on_thread, (void *)&run))) return 0;
  pthread_join(thread, NULL);
  pthread_attr_destroy(&attributes);
  while (untouched < STACK && painted[untouched] == PAINT) untouched++;
  return untouched < call_top ? call_top - untouched : 0;
}

/* What the caller puts there himself: q, k, v and out, by value. */
#define ARGUMENTS (4 * sizeof(lattn_tensor))

/* Each call was made once before, on the caller's stack: what a dynamic linker does when memcpy is
   first called is not ours. */
static void measure(const char *name, void (*run)(void)) {
  check_case("stack of %s", name);
  size_t used = stack_used(run);
  used -= used < ARGUMENTS ? used : ARGUMENTS;
  CHECK_STATUS(status, LATTN_OK);
  if (used > most) most = used, most_name = name;
  if (getenv("STACK_ALL")) printf("stack of %s: %zu bytes\n", name, used);
  if (STACK_MEASURED && used > LIMIT) FAIL("%s takes %zu bytes of stack", name, used);
}

enum { KNOWN = 30000 };

static void use_known_bytes(void) {
  volatile unsigned char bytes[KNOWN];
  for (int i = 0; i < KNOWN; i++) bytes[i] = (unsigned char)i;
  status = bytes[KNOWN / 2] != (unsigned char)(KNOWN / 2);
}

static void test_harness(void) {
  check_case("harness: a function that takes %d bytes is seen to", KNOWN);
  size_t used = stack_used(use_known_bytes);
  CHECK(status == LATTN_OK);
  if (STACK_MEASURED) CHECK(used >= KNOWN && used < KNOWN + 1024);
}

/* ---- setting up ---- */

static void set_options(void) {
  rotary.size = sizeof rotary;
  rotary.n_dims = KEY_DIM;
  rotary.turns = turns;
  head.policy = LATTN_HEAD_STREAMING;
  head.sinks = 4, head.window = 200, head.slack = 50;
  config.size = sizeof config, config.head_size = sizeof head;
  config.n_heads = HEADS, config.n_kv_heads = 1;
  config.key_dim = KEY_DIM, config.value_dim = VALUE_DIM;
  config.capacity = CAPACITY, config.max_drafts = DRAFTS;
  config.rotary = &rotary;
  config.alibi_slopes = slopes, config.sink_logits = sinks;
  call.size = sizeof call;
  extra_key = tensor_of(k, LATTN_F32, 1, 1, KEY_DIM);
  extra_value = tensor_of(v, LATTN_F32, 1, 1, VALUE_DIM);
  call.lse_low = low, call.score = score_same;
  call.extra_key = &extra_key, call.extra_value = &extra_value;
  attn.size = sizeof attn;
  attn.mask = LATTN_CAUSAL, attn.softcap = 5;
  attn.alibi_slopes = slopes, attn.sink_logits = sinks;
  attn.score = score_same;
  attn.extra_key = &extra_key, attn.extra_value = &extra_value;
  wanted.size = sizeof wanted;
  wanted.lse = lse, wanted.lse_low = low;
  wanted.stride = CAPACITY;
  wanted.weights = weights, wanted.argmax = argmax, wanted.mass = mass;
  wanted.top_k = 4, wanted.top_keys = top_keys, wanted.top_weights = top_weights;
}

static void set_arrays(void) {
  test_rng rng = rng_seed(1);
  fill(q, TOKENS * HEADS * KEY_DIM, &rng);
  fill(k, TOKENS * KEY_DIM, &rng);
  fill(v, TOKENS * VALUE_DIM, &rng);
  for (int p = 0; p < 2; p++) {
    fill(maximum[p], ROWS * HEADS, &rng);
    fill(sums_out[p], ROWS * HEADS * VALUE_DIM, &rng);
    for (int i = 0; i < ROWS * HEADS; i++) sums[p][i] = 1;
    parts[p].size = sizeof parts[p];
    parts[p].n_rows = ROWS * HEADS, parts[p].value_dim = VALUE_DIM;
    parts[p].maximum = maximum[p], parts[p].sum = sums[p], parts[p].output = sums_out[p];
  }
}

/* Two caches of TOKENS tokens: full, streaming with its sinks at in-cache positions, or of 16-bit
   types; from COMPENSATED on compensated heads, with all that they can tell, one of which waits for
   a mark. */
enum { COMPENSATED = 6, KINDS = 10 };

static void make_caches(test_guard *arena, int kind) {
  lattn_pool *pool = NULL;
  config.heads = kind ? &head : NULL;
  static const int32_t types[][2] = {
      {LATTN_F32, LATTN_F32}, {LATTN_F32, LATTN_F32}, {LATTN_BF16, LATTN_F16}, {LATTN_I8, LATTN_I8},
      {LATTN_I4, LATTN_I4},   {LATTN_I4, LATTN_I8},   {LATTN_F32, LATTN_F32},  {LATTN_I4, LATTN_I4},
      {LATTN_I8, LATTN_F16},  {LATTN_BF16, LATTN_I8}};
  if (kind >= COMPENSATED) { /* (a callback would leave the bound out) */
    head.policy = LATTN_HEAD_COMPENSATED;
    head.flags = LATTN_HEAD_VARIANCE | LATTN_HEAD_LOST;
    head.mark = kind == KINDS - 1 ? LATTN_PROMPT_END : 0;
    call.score = NULL, call.lost_bound = lost[0], call.lost_estimate = lost[1];
    config.softcap = 5;
  }
  config.key_type = types[kind][0];
  config.value_type = types[kind][1];
  size_t bytes = lattn_pool_bytes(NULL, &config, 6);
  *arena = guard_alloc(bytes, 1);
  CHECK_STATUS(lattn_pool_init(&pool, arena->data, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&cache, pool, &config), LATTN_OK);
  CHECK_STATUS(lattn_cache_append(cache, ALL_K, ALL_V, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&other, cache), LATTN_OK);
  sequences[0].cache = cache, sequences[1].cache = other;
  sequences[0].n_tokens = ROWS - 1, sequences[1].n_tokens = 1;
}

/* A cache whose head is chosen at a mark. */
static void make_marked(test_guard *arena, int32_t policy) {
  static lattn_head chosen;
  lattn_pool *pool = NULL;
  lattn_cache_config c = config;
  memset(&chosen, 0, sizeof chosen);
  chosen.policy = policy, chosen.budget = 200, chosen.window = 40;
  c.heads = &chosen, c.max_drafts = 0;
  size_t bytes = lattn_pool_bytes(NULL, &c, 1);
  *arena = guard_alloc(bytes, 1);
  CHECK_STATUS(lattn_pool_init(&pool, arena->data, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&cache, pool, &c), LATTN_OK);
  CHECK_STATUS(lattn_cache_extend(cache, &call, rows_of(q, TOKENS, HEADS, KEY_DIM), ALL_K, ALL_V,
                                  rows_of(out, TOKENS, HEADS, VALUE_DIM), lse, NULL),
               LATTN_OK);
}

/* Everything once: each call leaves room for the next. */
static void run_all(void (*each)(const char *name, void (*run)(void))) {
  each("lattn_rotary_turns", call_turns);
  each("lattn_cache_checkpoint", call_checkpoint);
  each("lattn_cache_extend", call_extend);
  each("lattn_cache_attend", call_attend);
  each("lattn_cache_attend, top_values", call_attend_chosen);
  each("lattn_cache_weights", call_weights);
  each("lattn_cache_truncate", call_truncate);
  each("lattn_cache_draft", call_draft);
  each("lattn_cache_accept", call_accept);
  each("lattn_cache_rollback", call_rollback);
  each("lattn_checkpoint_release", call_release);
  each("lattn_batch_extend", call_batch_extend);
  each("lattn_batch_attend", call_batch_attend);
  if (head.policy == LATTN_HEAD_COMPENSATED) each("lattn_cache_mark", call_mark);
  else each("lattn_cache_remove", call_remove);
  each("lattn_batch_extend over a hole", call_batch_extend);
  each("lattn_cache_truncate", call_truncate);
  each("lattn_cache_append", call_append);
  each("lattn_cache_read", call_read);
  each("lattn_cache_save", call_save);
  each("lattn_cache_load", call_load);
  each("lattn_attention", call_attention);
  each("lattn_attention, top_values", call_attention_chosen);
  each("lattn_attention_weights", call_attention_weights);
  each("lattn_profile_observe", call_profile);
  each("lattn_profile_sample", call_profile_sample);
  each("lattn_attention_calibrated", call_calibrated);
  each("lattn_merge", call_merge);
  each("lattn_rotate", call_rotate);
}

/* Every score, of rows whose losses are looked at one by one. */
static void set_profile(void) {
  lattn_profile_config c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.scores = LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_ECHO | LATTN_PROFILE_SINKS |
             LATTN_PROFILE_GATES | LATTN_PROFILE_LOST;
  c.n_layers = 1, c.n_heads = HEADS, c.n_kv_heads = 1, c.value_dim = VALUE_DIM, c.model_dim = 8;
  c.top_k = 4, c.columns = TOKENS, c.sinks = 4, c.window = 50, c.row_step = 1;
  CHECK(lattn_profile_bytes(&c) <= sizeof profile_memory);
  CHECK_STATUS(lattn_profile_init(&profile, profile_memory, sizeof profile_memory, &c), LATTN_OK);
  observed.size = sizeof observed;
  observed.lse = lse;
  observed.tokens = tokens, observed.n_tokens = TOKENS;
  observed.needle_from = 10, observed.needle_to = 20;
  observed.period = 40, observed.first = 1;
  observed.projection = projection;
  calibration.size = sizeof calibration;
  calibration.beta = 0.5f, calibration.threshold = 1e-3f;
  calibration.marks = marks, calibration.means = means;
}

static void run_plainly(const char *name, void (*run)(void)) {
  check_case("%s, once", name);
  run();
  CHECK_STATUS(status, LATTN_OK);
}

int main(void) {
  set_arrays();
  call_turns();
  set_options();
  set_profile();
  test_harness();
  for (int kind = 0; kind < KINDS; kind++)
    for (int measured = 0; measured < 2; measured++) {
      test_guard arena;
      make_caches(&arena, kind);
      run_all(measured ? measure : run_plainly);
      CHECK(guard_free(&arena));
    }
  for (int measured = 0; measured < 4; measured++) {
    void (*each)(const char *name, void (*run)(void)) = measured % 2 ? measure : run_plainly;
    test_guard arena;
    check_case("heads chosen at a mark");
    make_marked(&arena, measured < 2 ? LATTN_HEAD_SNAP : LATTN_HEAD_HEAVY);
    each("lattn_cache_extend with a head chosen at marks", call_extend);
    each("lattn_cache_mark", call_mark_chosen);
    each("lattn_cache_extend behind a mark", call_extend);
    CHECK(guard_free(&arena));
  }
  for (int kind = 0; kind < STATE_KINDS; kind++)
    for (int measured = 0; measured < 2; measured++) {
      check_case("states of kind %d", kind);
      make_states(kind);
      run_states(measured ? measure : run_plainly);
    }
  printf("stack %s: the most is %zu bytes, of %s\n", lattn_simd_name(), most, most_name);
  return test_summary();
}
