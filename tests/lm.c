/* lm.c - the engine of examples/lm on real checkpoints: numbers, cuts, policies, and refusals.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   lm [FOLDER]: FOLDER of the checkpoint that is not ours (../shared/models/stories260K/), skipped
   when absent. Runs from the root of the repository, for examples/lm/. */
#include "test.h"

#include "examples/lm/choose.c"
#include "examples/lm/demo_input.c"
#include "examples/lm/llama.c" /* with the implementation of longattn.h */
#include "examples/lm/needle.c"
#include "examples/lm/policy.c"
#include "examples/lm/recorder.c"
#include "examples/lm/scan.c"
#include "examples/lm/scores.c"
#include "examples/lm/tokenizer.c"
#include "examples/lm/trial.c"

static const char our_model[] = "examples/lm/model.bin", our_text[] = "examples/lm/text.txt";
static const char our_heads[] = "examples/lm/heads.tsv", our_hybrid[] = "examples/lm/hybrid.bin";

/* ---- help ---- */

static char *slurp(const char *path, int64_t *n) {
  size_t bytes;
  char *text = policy_read_file(path, &bytes);
  *n = text ? (int64_t)bytes : 0;
  return text;
}

/* A file of these bytes in the build folder; its path lasts until the next call. */
static const char *scratch_file(const char *name, const void *bytes, size_t n) {
  static char path[512];
  const char *folder = getenv("BUILD") ? getenv("BUILD") : "build";
  snprintf(path, sizeof path, "%s/lm-%s-%ld", folder, name, (long)getpid());
  FILE *file = fopen(path, "wb");
  if (!file || fwrite(bytes, 1, n, file) != n) FAIL("%s cannot be written", path);
  if (file) fclose(file);
  return path;
}

static llama_session *open_session(const llama_model *m, const lattn_head *heads, int64_t capacity,
                                   int32_t n_threads) {
  llama_options options = {heads, capacity, LATTN_F32, n_threads, NULL, NULL};
  char error[LLAMA_ERROR] = "";
  llama_session *s = llama_session_open(m, &options, error);
  if (!s) FAIL("no session: %s", error);
  return s;
}

static lattn_head streaming(int64_t sinks, int64_t window, int32_t positions) {
  lattn_head head = {
      .policy = LATTN_HEAD_STREAMING, .positions = positions, .sinks = sinks, .window = window};
  return head;
}

/* The same policy for all heads; the caller frees it. */
static lattn_head *all_heads(const llama_model *m, lattn_head head) {
  int32_t n = m->n_layers * m->n_kv_heads;
  lattn_head *heads = (lattn_head *)malloc((size_t)n * sizeof *heads);
  for (int32_t i = 0; i < n; i++) heads[i] = head;
  return heads;
}

/* Perplexity of tokens first ... n - 1, each given those before it. */
static double perplexity(const llama_model *m, const lattn_head *heads, const int32_t *tokens,
                         int64_t first, int64_t n) {
  float *logits = (float *)malloc((size_t)(n * m->vocab_size) * sizeof *logits);
  llama_session *s = open_session(m, heads, n, 1);
  double sum = 0;
  CHECK_STATUS(llama_extend(s, tokens, n - 1, n - 1, logits), LATTN_OK);
  for (int64_t i = first; i < n; i++)
    sum += llama_loss(logits + (i - 1) * m->vocab_size, m->vocab_size, tokens[i]);
  llama_session_close(s);
  free(logits);
  return exp(sum / (double)(n - first));
}

/* ---- the forward pass again, plainly, in double precision and from the file's own order ---- */

typedef struct plain_weights { /* pointers into the file's floats */
  const float *embedding, *attention_norm, *wq, *wk, *wv, *wo, *feed_forward_norm, *w1, *w2, *w3;
  const float *final_norm;
} plain_weights;

static plain_weights plain_map(const llama_model *m, const float *p) {
  plain_weights w;
  int64_t dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  int64_t layers = m->n_layers;
  w.embedding = p;
  w.attention_norm = w.embedding + m->vocab_size * dim;
  w.wq = w.attention_norm + layers * dim;
  w.wk = w.wq + layers * dim * dim;
  w.wv = w.wk + layers * dim * kv;
  w.wo = w.wv + layers * dim * kv;
  w.feed_forward_norm = w.wo + layers * dim * dim;
  w.w1 = w.feed_forward_norm + layers * dim;
  w.w2 = w.w1 + layers * dim * hidden;
  w.w3 = w.w2 + layers * dim * hidden;
  w.final_norm = w.w3 + layers * dim * hidden;
  return w;
}

static void plain_matmul(double *y, const float *w, const double *x, int64_t n_out, int64_t n_in) {
  for (int64_t o = 0; o < n_out; o++) {
    y[o] = 0;
    for (int64_t i = 0; i < n_in; i++) y[o] += (double)w[o * n_in + i] * x[i];
  }
}

static void plain_norm(double *y, const double *x, const float *weight, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; i++) sum += x[i] * x[i];
  for (int64_t i = 0; i < dim; i++)
    y[i] = x[i] / sqrt(sum / (double)dim + 1e-5) * (double)weight[i];
}

static void plain_rotate(double *x, int64_t n_heads, int64_t head_dim, int64_t position) {
  for (int64_t h = 0; h < n_heads; h++, x += head_dim)
    for (int64_t f = 0; f < head_dim; f += 2) {
      double theta = (double)(float)pow(10000, -(double)f / (double)head_dim);
      double angle = theta * (double)position, a = x[f], b = x[f + 1];
      x[f] = a * cos(angle) - b * sin(angle);
      x[f + 1] = a * sin(angle) + b * cos(angle);
    }
}

/* One row of causal attention from key `first` on; keys and values are [position][kv_dim]. */
static void plain_attend(const llama_model *m, double *out, const double *q, const double *keys,
                         const double *values, int64_t first, int64_t position, double *weights) {
  int64_t d = m->head_dim, kv = m->n_kv_heads * d, group = m->n_heads / m->n_kv_heads;
  for (int64_t h = 0; h < m->n_heads; h++) {
    double sum = 0;
    for (int64_t j = first; j <= position; j++) {
      double score = 0;
      for (int64_t i = 0; i < d; i++) score += q[h * d + i] * keys[j * kv + h / group * d + i];
      sum += weights[j] = exp(score / sqrt((double)d));
    }
    for (int64_t i = 0; i < d; i++) {
      out[h * d + i] = 0;
      for (int64_t j = first; j <= position; j++)
        out[h * d + i] += weights[j] / sum * values[j * kv + h / group * d + i];
    }
  }
}

/* Logits [n][vocab] of n tokens. `room` is zeroed scratch. */
static void plain_forward(const llama_model *m, const plain_weights *w, const int32_t *tokens,
                          int64_t n, double *logits, double *room) {
  int64_t dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  double *x = room, *h = x + dim, *q = h + dim, *a = q + dim, *gate = a + dim, *up = gate + hidden;
  double *weights = up + hidden, *keys = weights + n, *values = keys + m->n_layers * n * kv;
  for (int64_t t = 0; t < n; t++) {
    for (int64_t i = 0; i < dim; i++) x[i] = (double)w->embedding[tokens[t] * dim + i];
    for (int64_t l = 0; l < m->n_layers; l++) {
      double *k = keys + l * n * kv, *v = values + l * n * kv;
      plain_norm(h, x, w->attention_norm + l * dim, dim);
      plain_matmul(q, w->wq + l * dim * dim, h, dim, dim);
      plain_matmul(k + t * kv, w->wk + l * dim * kv, h, kv, dim);
      plain_matmul(v + t * kv, w->wv + l * dim * kv, h, kv, dim);
      plain_rotate(q, m->n_heads, m->head_dim, t);
      plain_rotate(k + t * kv, m->n_kv_heads, m->head_dim, t);
      plain_attend(m, a, q, k, v, 0, t, weights);
      plain_matmul(h, w->wo + l * dim * dim, a, dim, dim);
      for (int64_t i = 0; i < dim; i++) x[i] += h[i];
      plain_norm(h, x, w->feed_forward_norm + l * dim, dim);
      plain_matmul(gate, w->w1 + l * dim * hidden, h, hidden, dim);
      plain_matmul(up, w->w3 + l * dim * hidden, h, hidden, dim);
      for (int64_t i = 0; i < hidden; i++) gate[i] *= up[i] / (1 + exp(-gate[i]));
      plain_matmul(h, w->w2 + l * dim * hidden, gate, dim, hidden);
      for (int64_t i = 0; i < dim; i++) x[i] += h[i];
    }
    plain_norm(h, x, w->final_norm, dim);
    plain_matmul(logits + t * m->vocab_size, w->embedding, h, m->vocab_size, dim);
  }
}

/* ---- our model ---- */

static void test_plain(const llama_model *m, const int32_t *tokens) {
  enum { N = 64 };
  int64_t n_bytes, vocab = m->vocab_size;
  int64_t room = 4 * m->dim + 2 * m->hidden_dim + N + 2L * m->n_layers * N * m->dim;
  char *file = slurp(our_model, &n_bytes);
  float *weights = (float *)malloc((size_t)n_bytes), *logits;
  double *want = (double *)calloc((size_t)(N * vocab + room), sizeof *want), worst = 0, largest = 0;
  check_case("forward pass against double precision, %d tokens", N);
  memcpy(weights, file + HEADER_BYTES, (size_t)n_bytes - HEADER_BYTES);
  plain_weights w = plain_map(m, weights);
  plain_forward(m, &w, tokens, N, want, want + N * vocab);
  logits = (float *)malloc((size_t)(N * vocab) * sizeof *logits);
  llama_session *s = open_session(m, NULL, N, 1);
  CHECK_STATUS(llama_extend(s, tokens, N, N, logits), LATTN_OK);
  for (int64_t i = 0; i < N * vocab; i++) {
    worst = fmax(worst, fabs((double)logits[i] - want[i]));
    largest = fmax(largest, fabs(want[i]));
  }
  /* chains of a few hundred roundings of 2^-24, through 4 layers: about 1e-5 of the largest */
  if (!(worst <= 1e-4 * largest)) FAIL("off by %g of %g", worst, largest);
  llama_session_close(s);
  free(file);
  free(weights);
  free(want);
  free(logits);
}

/* Extends in pieces: of `cut` tokens, or of random lengths for cut 0. */
static void extend_cut(llama_session *s, const llama_model *m, const int32_t *tokens, int64_t n,
                       int64_t cut, float *logits) {
  test_rng rng = rng_seed(7);
  for (int64_t t = 0; t < n;) {
    int64_t step = cut ? cut : rng_range(&rng, 1, 90);
    if (step > n - t) step = n - t;
    CHECK_STATUS(llama_extend(s, tokens + t, step, step, logits + t * m->vocab_size), LATTN_OK);
    t += step;
  }
}

/* Logits do not depend on threads or on cuts, whatever the policy. */
static void test_cuts(const llama_model *m, const int32_t *tokens) {
  const int64_t n = test_is_quick() ? 280 : 700, cuts[] = {700, 1, 0, 256};
  size_t bytes = (size_t)(n * m->vocab_size) * sizeof(float);
  float *want = (float *)malloc(bytes), *got = (float *)malloc(bytes);
  for (int p = test_is_quick(); p < 2; p++) {
    lattn_head *heads = p ? all_heads(m, streaming(4, 60, LATTN_POSITIONS_DEFAULT)) : NULL;
    for (int c = 0; c < 4; c++) {
      check_case("%s, cut into %d tokens", p ? "sinks + window" : "full", (int)cuts[c]);
      llama_session *s = open_session(m, heads, n, c == 2 ? 3 : 1);
      extend_cut(s, m, tokens, n, cuts[c], c ? got : want);
      if (c) CHECK(!memcmp(want, got, bytes));
      CHECK_I64(llama_length(s), n);
      llama_session_close(s);
    }
    free(heads);
  }
  free(want);
  free(got);
}

static void test_policies(const llama_model *m, const int32_t *tokens) {
  enum { N = 270 };
  size_t bytes = (size_t)(N * m->vocab_size) * sizeof(float);
  float *want = (float *)malloc(bytes), *got = (float *)malloc(bytes);
  const lattn_head long_heads[3] = {streaming(4, N, LATTN_POSITIONS_IN_CACHE),
                                    streaming(0, N, LATTN_POSITIONS_ABSOLUTE),
                                    streaming(N, 1, LATTN_POSITIONS_ABSOLUTE)};
  llama_session *s = open_session(m, NULL, N, 1);
  check_case("full");
  CHECK_STATUS(llama_extend(s, tokens, N, N, want), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens, 1, 1, got), LATTN_E_FULL);
  CHECK_I64(llama_length(s), N);
  check_case("truncated and said again");
  CHECK_STATUS(llama_truncate(s, 123), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens + 123, N - 123, N - 123, got), LATTN_OK);
  CHECK(!memcmp(want + 123 * m->vocab_size, got, (size_t)((N - 123) * m->vocab_size) * 4));
  llama_session_close(s);
  for (int i = 0; i < (test_is_quick() ? 1 : 3); i++) {
    lattn_head *heads = all_heads(m, long_heads[i]);
    check_case("a streaming head with a window longer than the text is full, %d", i);
    s = open_session(m, heads, 0, 1);
    CHECK_STATUS(llama_extend(s, tokens, N, N, got), LATTN_OK);
    CHECK(!memcmp(want, got, bytes));
    lattn_cache_stats stats = llama_stats(s);
    CHECK_I64(stats.n_streaming_heads, m->n_layers * m->n_kv_heads);
    llama_session_close(s);
    free(heads);
  }
  free(want);
  free(got);
}

static void test_bad_tokens(const llama_model *m) {
  int32_t tokens[2] = {1, 0};
  float logits[256];
  llama_session *s = open_session(m, NULL, 8, 1);
  check_case("tokens outside of the vocabulary");
  tokens[1] = m->vocab_size;
  CHECK_STATUS(llama_extend(s, tokens, 2, 1, logits), LATTN_E_VALUE);
  tokens[1] = -1;
  CHECK_STATUS(llama_extend(s, tokens, 2, 1, logits), LATTN_E_VALUE);
  CHECK_STATUS(llama_extend(s, tokens, 1, 2, logits), LATTN_E_SHAPE);
  CHECK_STATUS(llama_extend(s, tokens, -1, 0, NULL), LATTN_E_SHAPE);
  CHECK_I64(llama_length(s), 0);
  CHECK_STATUS(llama_extend(s, tokens, 1, 1, logits), LATTN_OK);
  llama_session_close(s);
}

/* What the demo shows, with room for chance: sinks + window stays flat where full and window only
   do not. */
static void test_streaming(const llama_model *m, const int32_t *tokens) {
  const int64_t n = test_is_quick() ? 320 : 3000;
  lattn_head *sinks = all_heads(m, streaming(4, 124, LATTN_POSITIONS_DEFAULT));
  lattn_head *window = all_heads(m, streaming(0, 128, LATTN_POSITIONS_DEFAULT));
  check_case("perplexity by policy, %d tokens", (int)n);
  double with_sinks = perplexity(m, sinks, tokens, 128, n);
  double window_only = perplexity(m, window, tokens, 128, n);
  double full = perplexity(m, NULL, tokens, 128, n);
  if (!(with_sinks < 8 && window_only > 1.1 * with_sinks))
    FAIL("sinks + window %g, window only %g", with_sinks, window_only);
  if (n > 2 * m->max_length ? !(full > 2 * with_sinks) : !(full < 1.1 * with_sinks))
    FAIL("full %g, sinks + window %g", full, with_sinks);
  free(sinks);
  free(window);
}

/* A whole prompt asks what the prompts ask that share their text. */
static void test_needles(const llama_model *m, const char *text, int64_t n_bytes) {
  enum { LENGTH = 300 };
  int32_t tokens[LENGTH + NEEDLE_ASKED];
  needle_case c;
  needle_result want[NEEDLE_DEPTHS], others[NEEDLE_DEPTHS], got;
  uint64_t state = 3;
  float *logits = (float *)malloc((size_t)(NEEDLE_ASKED * m->vocab_size) * sizeof *logits);
  llama_session *s = open_session(m, NULL, LENGTH + NEEDLE_ASKED, 1);
  CHECK(!needle_make(&c, text, n_bytes, LENGTH, &state));
  CHECK_STATUS(needle_run(s, m, &c, want), LATTN_OK);
  for (int i = 0; i < NEEDLE_DEPTHS; i++) {
    int64_t letter, n = needle_prompt(&c, i, tokens, &letter);
    check_case("needle %d, asked for in one prompt", i);
    CHECK_I64(n, LENGTH + NEEDLE_ASKED - 1);
    CHECK(tokens[letter - NEEDLE_CUE - 1] == '<' && tokens[letter + NEEDLE_ASKED] == '>');
    for (int a = 0; a < NEEDLE_ASKED; a++) /* the token before letter a */
      CHECK_I64(tokens[n - NEEDLE_ASKED + a], tokens[letter + a - 1]);
    CHECK_STATUS(llama_truncate(s, 0), LATTN_OK);
    CHECK_STATUS(llama_extend(s, tokens, n, NEEDLE_ASKED, logits), LATTN_OK);
    got = needle_judge(m, &c, i, logits);
    CHECK_I64(got.n_right, want[i].n_right);
    CHECK(!memcmp(&got.log_probability, &want[i].log_probability, sizeof(double)));
  }
  check_case("needles behind the end of the prompt");
  CHECK_STATUS(needle_run_marked(s, m, &c, others), LATTN_OK); /* no head waits for it */
  for (int i = 0; i < NEEDLE_DEPTHS; i++) {
    CHECK_I64(others[i].n_right, want[i].n_right);
    CHECK(!memcmp(&others[i].log_probability, &want[i].log_probability, sizeof(double)));
  }
  llama_session_close(s);
  lattn_head waits = streaming(4, 28, 0);
  waits.mark = LATTN_PROMPT_END;
  lattn_head *heads = all_heads(m, waits);
  s = open_session(m, heads, LENGTH + NEEDLE_ASKED, 1);
  CHECK_STATUS(needle_run_marked(s, m, &c, others), LATTN_OK);
  CHECK(others[0].log_probability < want[0].log_probability - 1); /* it is out of the window */
  free(heads);
  llama_session_close(s);
  free(logits);
}

enum { RECORDED = 300 };

/* What attention got in layer 0 is what the maths says. */
static void check_recorded(const recorder *r, const plain_weights *w, const int32_t *tokens) {
  const llama_model *m = r->model;
  int64_t dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
  double *x = (double *)calloc((size_t)(4 * dim + 2 * kv), sizeof *x), worst = 0, largest = 0;
  llama_block seen = recorder_read(r, 0, 0, RECORDED);
  for (int64_t t = 0; t < RECORDED; t++) {
    double *h = x + dim, *want[3] = {h + dim, h + 2 * dim, h + 2 * dim + kv};
    const lattn_tensor *got[3] = {&seen.q, &seen.k, &seen.v};
    for (int64_t i = 0; i < dim; i++) x[i] = (double)w->embedding[tokens[t] * dim + i];
    CHECK(!memcmp((const float *)seen.stream.data + t * seen.stream.stride_token,
                  w->embedding + tokens[t] * dim, (size_t)dim * sizeof(float)));
    plain_norm(h, x, w->attention_norm, dim);
    plain_matmul(want[0], w->wq, h, dim, dim);
    plain_matmul(want[1], w->wk, h, kv, dim);
    plain_matmul(want[2], w->wv, h, kv, dim);
    plain_rotate(want[0], m->n_heads, m->head_dim, t);
    plain_rotate(want[1], m->n_kv_heads, m->head_dim, t);
    for (int j = 0; j < 3; j++)
      for (int64_t i = 0; i < (j ? kv : dim); i++) {
        float y = ((const float *)got[j]->data)[t * got[j]->stride_token + i];
        worst = fmax(worst, fabs((double)y - want[j][i]));
        largest = fmax(largest, fabs(want[j][i]));
      }
  }
  /* chains of 128 products, then a rotation: some 2^-24 * 16 of the largest */
  if (!(worst <= 1e-5 * largest)) FAIL("off by %g of %g", worst, largest);
  free(x);
}

/* Attention of what it got in each layer is what it made of it then. */
static void check_recorded_attention(const recorder *r, const plain_weights *w) {
  static float out[RECORDED * 1024], lse[RECORDED * 64];
  const llama_model *m = r->model;
  int64_t dim = m->dim;
  check_case("what attention got gives what attention made of it");
  float *rows = (float *)malloc((size_t)(dim * dim) * sizeof *rows);
  llama_unpack(&m->layers[1].out, rows);
  CHECK(!memcmp(rows, w->wo + dim * dim, (size_t)(dim * dim) * sizeof(float)));
  free(rows);
  lattn_attn causal;
  memset(&causal, 0, sizeof causal);
  causal.size = sizeof causal;
  causal.mask = LATTN_CAUSAL;
  for (int32_t l = 0; l < m->n_layers; l++) {
    llama_block seen = recorder_read(r, l, 0, RECORDED);
    lattn_tensor to = {out, LATTN_F32, 0, RECORDED, m->n_heads, m->head_dim, 0, 0};
    CHECK_STATUS(lattn_attention(&causal, seen.q, seen.k, seen.v, to, lse, NULL), LATTN_OK);
    CHECK(!memcmp(lse, seen.lse, (size_t)(RECORDED * m->n_heads) * sizeof(float)));
  }
}

/* What the recorder keeps of layer 0 is what the maths says, and does not depend on cuts. */
static void test_recorder(const llama_model *m, const int32_t *tokens) {
  enum { N = RECORDED };
  int64_t n_bytes, dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim;
  char *file = slurp(our_model, &n_bytes);
  float *weights = (float *)malloc((size_t)n_bytes);
  float *logits = (float *)malloc((size_t)(N * m->vocab_size) * sizeof *logits);
  recorder whole, cut;
  memcpy(weights, file + HEADER_BYTES, (size_t)n_bytes - HEADER_BYTES);
  plain_weights w = plain_map(m, weights);
  check_case("what attention got, recorded");
  CHECK(!recorder_open(&whole, m, N) && !recorder_open(&cut, m, N));
  llama_session *s = open_session(m, NULL, N, 1);
  llama_observe(s, recorder_observe, &whole);
  CHECK_STATUS(llama_extend(s, tokens, N, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_truncate(s, 0), LATTN_OK);
  llama_observe(s, recorder_observe, &cut);
  extend_cut(s, m, tokens, N, 0, logits);
  llama_observe(s, NULL, NULL);
  CHECK_STATUS(llama_truncate(s, 0), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens + 1, N, 0, NULL), LATTN_OK); /* seen by no one */
  CHECK_STATUS(whole.status, LATTN_OK);
  CHECK_I64(whole.n_tokens, N);
  CHECK(!memcmp(whole.memory, cut.memory,
                (size_t)(m->n_layers * N * (2 * dim + 2 * kv)) * sizeof(float)));
  CHECK(!memcmp(whole.lse, cut.lse, (size_t)(m->n_layers * N * m->n_heads) * sizeof(float)));
  check_recorded(&whole, &w, tokens);
  check_recorded_attention(&whole, &w);
  check_case("more than the recorder has room for");
  recorder_close(&cut);
  CHECK(!recorder_open(&cut, m, N - 1));
  llama_observe(s, recorder_observe, &cut);
  CHECK_STATUS(llama_truncate(s, 0), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens, N, 0, NULL), LATTN_OK);
  CHECK_STATUS(cut.status, LATTN_E_FULL);
  recorder_close(&cut);
  recorder_close(&whole);
  llama_session_close(s);
  free(file);
  free(weights);
  free(logits);
}

/* Weights of one row of a recorded layer, in double. */
static void plain_weights_of(const recorder *r, int32_t layer, int32_t head, int64_t row,
                             double *weights) {
  const llama_model *m = r->model;
  int64_t kv = head / (m->n_heads / m->n_kv_heads);
  llama_block b = recorder_read(r, layer, 0, row + 1);
  const float *q = (const float *)b.q.data + row * b.q.stride_token + head * b.q.stride_head;
  double most = -(double)INFINITY, sum = 0;
  for (int64_t j = 0; j <= row; j++) {
    const float *k = (const float *)b.k.data + j * b.k.stride_token + kv * b.k.stride_head;
    weights[j] = 0;
    for (int64_t d = 0; d < m->head_dim; d++) weights[j] += (double)q[d] * (double)k[d];
    weights[j] /= sqrt((double)m->head_dim);
    most = fmax(most, weights[j]);
  }
  for (int64_t j = 0; j <= row; j++) sum += weights[j] = exp(weights[j] - most);
  for (int64_t j = 0; j <= row; j++) weights[j] /= sum;
}

/* The profiles of a needle's letters say what the recorded queries and keys say. */
static void check_scan_needle(watcher *w, const llama_model *m, char *text, int64_t n_bytes) {
  enum { LENGTH = 300 };
  needle_case c;
  uint64_t state = 4;
  int32_t tokens[LENGTH + NEEDLE_ASKED + 1], n_heads = m->n_layers * m->n_heads, copies = 0;
  int64_t letter, n;
  double weights[1024], got[256], lost[256];
  CHECK(add_profile(w, LATTN_PROFILE_RETRIEVAL | LATTN_PROFILE_LOST, PLAIN, 0) != NULL);
  CHECK(!needle_make(&c, text, n_bytes, LENGTH, &state));
  n = needle_prompt(&c, 1, tokens, &letter);
  tokens[n] = c.phrases[1][NEEDLE_LETTERS - 1];
  w->what.tokens = tokens;
  w->what.n_tokens = n + 1;
  w->what.first_answer = w->first_row = n - NEEDLE_ASKED;
  w->what.needle_from = letter;
  w->what.needle_to = letter + NEEDLE_ASKED;
  CHECK(!read_watched(w, tokens, n, 0, NULL));
  CHECK_STATUS(lattn_profile_report(w->profiles[0].profile, LATTN_TABLE_RETRIEVAL, n_heads, got),
               LATTN_OK);
  CHECK_STATUS(lattn_profile_report(w->profiles[0].profile, LATTN_TABLE_LOST, n_heads, lost),
               LATTN_OK);
  for (int32_t h = 0; h < n_heads; h++) {
    double copied = 0, beyond = 0;
    for (int64_t a = 0; a < NEEDLE_ASKED; a++) {
      int64_t row = n - NEEDLE_ASKED + a, best = 0;
      plain_weights_of(&w->past, h / m->n_heads, h % m->n_heads, row, weights);
      for (int64_t j = 0; j <= row; j++) {
        if (weights[j] > weights[best]) best = j;
        if (j >= DEMO_SINKS && row - j >= DEMO_WINDOW) beyond += weights[j] / NEEDLE_ASKED;
      }
      copied +=
          best >= letter && best < letter + NEEDLE_ASKED && tokens[best] == tokens[letter + a];
    }
    copies += copied > 0;
    /* a weight is off by some roundings of a score of tens: 1e-5 */
    if (!(fabs(got[h] - copied / NEEDLE_ASKED) < 1e-9 && fabs(lost[h] - beyond) < 1e-4))
      FAIL("head %d: retrieval %g, not %g; lost %g, not %g", (int)h, got[h], copied / NEEDLE_ASKED,
           lost[h], beyond);
  }
  CHECK(copies >= 3); /* MODEL.md: three KV heads carry it */
}

/* So do those of repeated tokens. */
static void check_scan_repeated(watcher *w, const llama_model *m) {
  enum { PERIOD = 20, REPEATED = 15 * PERIOD };
  int32_t tokens[REPEATED + 1], n_heads = m->n_layers * m->n_heads;
  double weights[1024], got[256], induction[256];
  CHECK(add_profile(w, LATTN_PROFILE_ECHO, PLAIN, 0) != NULL);
  memset(&w->what, 0, sizeof w->what);
  w->what.period = PERIOD;
  w->what.first = 1;
  tokens[0] = LLAMA_BOS;
  for (int32_t t = 1; t <= REPEATED; t++) tokens[t] = 'a' + (t - 1) % PERIOD;
  CHECK(!read_watched(w, tokens, REPEATED + 1, 0, NULL));
  CHECK_STATUS(lattn_profile_report(w->profiles[0].profile, LATTN_TABLE_ECHO, n_heads, got),
               LATTN_OK);
  CHECK_STATUS(
      lattn_profile_report(w->profiles[0].profile, LATTN_TABLE_INDUCTION, n_heads, induction),
      LATTN_OK);
  for (int32_t h = 0; h < n_heads; h++) {
    double same = 0, next = 0;
    for (int64_t i = PERIOD; i < REPEATED; i++) { /* the first token is not counted */
      plain_weights_of(&w->past, h / m->n_heads, h % m->n_heads, i + 1, weights);
      for (int64_t j = i - PERIOD; j >= 0; j -= PERIOD) {
        same += weights[j + 1] / (REPEATED - PERIOD);
        next += weights[j + 2] / (REPEATED - PERIOD);
      }
    }
    if (!(fabs(got[h] - same) < 1e-4 && fabs(induction[h] - next) < 1e-4))
      FAIL("head %d: echo %g, not %g; induction %g, not %g", (int)h, got[h], same, induction[h],
           next);
  }
}

/* The profiles that watch the engine say what the recorded queries and keys say. */
static void test_scan(const llama_model *m, char *text, int64_t n_bytes) {
  demo_input in = {"", 1, *m, text, n_bytes};
  watcher w;
  check_case("profiles of a needle and of repeated tokens");
  CHECK(m->n_layers * m->n_heads <= 256 && !watcher_open(&w, &in));
  check_scan_needle(&w, m, text, n_bytes);
  drop_profiles(&w);
  check_scan_repeated(&w, m);
  watcher_close(&w);
}

static void test_ours(void) {
  llama_model m;
  tokenizer words;
  char error[LLAMA_ERROR] = "";
  int64_t n_bytes;
  char *text = slurp(our_text, &n_bytes);
  int32_t *tokens = (int32_t *)malloc(((size_t)n_bytes + 2) * sizeof *tokens);
  check_case("%s", our_model);
  if (!CHECK(text) || llama_model_load(&m, our_model, error)) {
    FAIL("%s", error);
  } else {
    CHECK(!tokenizer_load(&words, NULL, m.vocab_size, error));
    CHECK_I64(tokenizer_encode(&words, text, n_bytes, tokens), n_bytes + 1);
    test_plain(&m, tokens);
    test_cuts(&m, tokens);
    test_policies(&m, tokens);
    test_bad_tokens(&m);
    test_streaming(&m, tokens);
    test_needles(&m, text, n_bytes);
    test_recorder(&m, tokens);
    test_scan(&m, text, n_bytes);
    llama_model_free(&m);
  }
  free(tokens);
  free(text);
}

/* ---- our hybrid ---- */

typedef struct plain_layer { /* pointers into the file's floats */
  const float *attention_norm, *wq, *wk, *wv, *wz, *wa, *wb, *taps, *rate, *bias, *output_norm;
  const float *wo, *feed_forward_norm, *w1, *w2, *w3;
} plain_layer;

static const float *skip(const float **p, int64_t n) {
  const float *here = *p;
  *p += n;
  return here;
}

static plain_layer plain_map_layer(const llama_model *m, int32_t kind, const float **p) {
  plain_layer w;
  int64_t dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  int64_t heads = m->delta_heads, keys = heads * m->delta_key_dim;
  memset(&w, 0, sizeof w);
  w.attention_norm = skip(p, dim);
  if (kind == LLAMA_DELTA) {
    w.wq = skip(p, dim * keys), w.wk = skip(p, dim * keys), w.wv = skip(p, dim * dim);
    w.wz = skip(p, dim * dim), w.wa = skip(p, dim * heads), w.wb = skip(p, dim * heads);
    w.taps = skip(p, (2 * keys + dim) * m->n_taps);
    w.rate = skip(p, heads), w.bias = skip(p, heads), w.output_norm = skip(p, m->delta_value_dim);
  } else {
    w.wq = skip(p, dim * dim), w.wk = skip(p, dim * kv), w.wv = skip(p, dim * kv);
  }
  w.wo = skip(p, dim * dim);
  w.feed_forward_norm = skip(p, dim);
  w.w1 = skip(p, dim * hidden), w.w2 = skip(p, dim * hidden), w.w3 = skip(p, dim * hidden);
  return w;
}

static double plain_silu(double x) { return x / (1 + exp(-x)); }

static double plain_dot(const double *x, const double *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * y[i];
  return sum;
}

/* One token of a gated delta net: out from h. past is [n_taps][channels], the newest last; states
   [heads][key_dim][value_dim]; mixed [channels] is scratch. */
static void plain_delta(const llama_model *m, const plain_layer *w, double *out, const double *h,
                        double *past, double *states, double *mixed) {
  int64_t dk = m->delta_key_dim, dv = m->delta_value_dim, heads = m->delta_heads, dim = m->dim;
  int64_t keys = heads * dk, all = 2 * keys + dim, taps = m->n_taps;
  memmove(past, past + all, (size_t)((taps - 1) * all) * sizeof *past);
  double *now = past + (taps - 1) * all;
  plain_matmul(now, w->wq, h, keys, dim);
  plain_matmul(now + keys, w->wk, h, keys, dim);
  plain_matmul(now + 2 * keys, w->wv, h, dim, dim);
  for (int64_t c = 0; c < all; c++) {
    double sum = 0;
    for (int64_t i = 0; i < taps; i++) sum += (double)w->taps[c * taps + i] * past[i * all + c];
    mixed[c] = plain_silu(sum);
  }
  for (int64_t j = 0; j < heads; j++) {
    double *q = mixed + j * dk, *k = mixed + keys + j * dk, *v = mixed + 2 * keys + j * dv;
    double *S = states + j * dk * dv, a, b, z, norm = 0;
    plain_matmul(&a, w->wa + j * dim, h, 1, dim);
    plain_matmul(&b, w->wb + j * dim, h, 1, dim);
    double decay = exp(-exp((double)w->rate[j]) * log1p(exp(a + (double)w->bias[j])));
    double beta = 1 / (1 + exp(-b));
    double q_unit = 1 / sqrt(plain_dot(q, q, dk) + 1e-6),
           k_unit = 1 / sqrt(plain_dot(k, k, dk) + 1e-6);
    for (int64_t c = 0; c < dv; c++) {
      double guess = 0, read = 0;
      for (int64_t i = 0; i < dk; i++) guess += k[i] * k_unit * (S[i * dv + c] *= decay);
      for (int64_t i = 0; i < dk; i++) {
        S[i * dv + c] += k[i] * k_unit * beta * (v[c] - guess);
        read += q[i] * q_unit * S[i * dv + c];
      }
      out[j * dv + c] = read / sqrt((double)dk);
      norm += out[j * dv + c] * out[j * dv + c];
    }
    for (int64_t c = 0; c < dv; c++) {
      plain_matmul(&z, w->wz + (j * dv + c) * dim, h, 1, dim);
      out[j * dv + c] *= (double)w->output_norm[c] / sqrt(norm / (double)dv + 1e-5) * plain_silu(z);
    }
  }
}

enum { PLAIN_ROOM = 4096 }; /* doubles for one token's vectors, and more */

/* Logits [n][vocab] of n tokens, from a file's floats. */
static void plain_hybrid(const llama_model *m, const float *file, const int32_t *tokens, int64_t n,
                         double *logits) {
  int64_t dim = m->dim, kv = (int64_t)m->n_kv_heads * m->head_dim, hidden = m->hidden_dim;
  int64_t all = 2 * (int64_t)m->delta_heads * m->delta_key_dim + dim;
  int64_t of_state = dim * m->delta_key_dim, of_past = all * m->n_taps;
  int64_t of_layer = n * 2 * kv > of_state + of_past ? n * 2 * kv : of_state + of_past;
  const float *embedding = skip(&file, m->vocab_size * dim);
  plain_layer layers[8];
  for (int64_t l = 0; l < m->n_layers; l++)
    layers[l] = plain_map_layer(m, m->layers[l].kind, &file);
  double *room = (double *)calloc((size_t)(PLAIN_ROOM + n + m->n_layers * of_layer), sizeof *room);
  double *x = room, *h = x + dim, *q = h + dim, *a = q + dim, *gate = a + dim, *up = gate + hidden;
  double *mixed = up + hidden, *weights = room + PLAIN_ROOM, *kept = weights + n;
  CHECK(4 * dim + 2 * hidden + all <= PLAIN_ROOM);
  for (int64_t t = 0; t < n; t++) {
    for (int64_t i = 0; i < dim; i++) x[i] = (double)embedding[tokens[t] * dim + i];
    for (int64_t l = 0; l < m->n_layers; l++) {
      const plain_layer *w = &layers[l];
      double *mine = kept + l * of_layer, *k = mine, *v = mine + n * kv;
      plain_norm(h, x, w->attention_norm, dim);
      if (m->layers[l].kind == LLAMA_DELTA) {
        plain_delta(m, w, a, h, mine, mine + of_past, mixed);
      } else {
        plain_matmul(q, w->wq, h, dim, dim);
        plain_matmul(k + t * kv, w->wk, h, kv, dim);
        plain_matmul(v + t * kv, w->wv, h, kv, dim);
        plain_rotate(q, m->n_heads, m->head_dim, t);
        plain_rotate(k + t * kv, m->n_kv_heads, m->head_dim, t);
        plain_attend(m, a, q, k, v, t < m->window ? 0 : t + 1 - m->window, t, weights);
      }
      plain_matmul(h, w->wo, a, dim, dim);
      for (int64_t i = 0; i < dim; i++) x[i] += h[i];
      plain_norm(h, x, w->feed_forward_norm, dim);
      plain_matmul(gate, w->w1, h, hidden, dim);
      plain_matmul(up, w->w3, h, hidden, dim);
      for (int64_t i = 0; i < hidden; i++) gate[i] = plain_silu(gate[i]) * up[i];
      plain_matmul(h, w->w2, gate, dim, hidden);
      for (int64_t i = 0; i < dim; i++) x[i] += h[i];
    }
    plain_norm(h, x, file, dim);
    plain_matmul(logits + t * m->vocab_size, embedding, h, m->vocab_size, dim);
  }
  free(room);
}

static void test_hybrid_plain(const llama_model *m, const int32_t *tokens) {
  enum { N = 300 }; /* more than the window, and than a block */
  int64_t n_bytes, header = HYBRID_BYTES + 4 * m->n_layers, n = N * m->vocab_size;
  char *file = slurp(our_hybrid, &n_bytes);
  float *weights = (float *)malloc((size_t)n_bytes);
  float *logits = (float *)malloc((size_t)n * sizeof *logits);
  double *want = (double *)calloc((size_t)n, sizeof *want), worst = 0, largest = 0;
  check_case("hybrid: forward pass against double precision, %d tokens", N);
  memcpy(weights, file + header, (size_t)(n_bytes - header));
  plain_hybrid(m, weights, tokens, N, want);
  llama_session *s = open_session(m, NULL, 0, 1);
  CHECK_STATUS(llama_extend(s, tokens, N, N, logits), LATTN_OK);
  for (int64_t i = 0; i < n; i++) {
    worst = fmax(worst, fabs((double)logits[i] - want[i]));
    largest = fmax(largest, fabs(want[i]));
  }
  /* as above; the states forget slowly and add up the roundings of some hundred tokens, and a unit
     vector of a small one magnifies them: about 1e-4 of the largest at most */
  if (!(worst <= 1e-3 * largest)) FAIL("off by %g of %g", worst, largest);
  llama_session_close(s);
  free(file);
  free(weights);
  free(want);
  free(logits);
}

/* Drafts have the bits of plain decoding, and leave none when they are dropped. */
static void test_hybrid_drafts(const llama_model *m, const int32_t *tokens, const float *want) {
  const int64_t at = 260, vocab = m->vocab_size;
  const int32_t tree[2] = {-1, -1}, path[3] = {0, 1, 2}, other[2] = {0, 2};
  int32_t wrong[LLAMA_STATE_DRAFTS] = {0};
  float *got = (float *)malloc((size_t)(20 * vocab) * sizeof *got);
  llama_session *s = open_session(m, NULL, 0, 2);
  check_case("hybrid: drafts");
  CHECK_STATUS(llama_extend(s, tokens, at, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_draft(s, tokens + at, tree, 2, got), LATTN_E_CONFIG);
  CHECK_STATUS(llama_draft(s, tokens + at, NULL, LLAMA_STATE_DRAFTS + 1, got), LATTN_E_SHAPE);
  CHECK_STATUS(llama_draft(s, tokens + at, NULL, 2, got), LATTN_OK);
  CHECK_STATUS(llama_draft(s, tokens + at + 2, NULL, 4, got + 2 * vocab), LATTN_OK);
  CHECK(!memcmp(got, want + at * vocab, (size_t)(6 * vocab) * sizeof *got));
  CHECK_STATUS(llama_extend(s, tokens, 1, 0, NULL), LATTN_E_STATE);
  CHECK_STATUS(llama_mark(s), LATTN_E_STATE);
  CHECK_STATUS(llama_accept(s, 2, other), LATTN_E_VALUE);
  CHECK_STATUS(llama_accept(s, 3, path), LATTN_OK);
  CHECK_I64(llama_length(s), at + 3);
  CHECK_STATUS(llama_draft(s, wrong, NULL, LLAMA_STATE_DRAFTS, got), LATTN_OK);
  CHECK_STATUS(llama_accept(s, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens + at + 3, 17, 17, got), LATTN_OK);
  CHECK(!memcmp(got, want + (at + 3) * vocab, (size_t)(17 * vocab) * sizeof *got));
  llama_session_close(s);
  free(got);
}

static void test_hybrid_marks(const llama_model *m, const int32_t *tokens, const float *want) {
  const int64_t at = 150, n = 280, vocab = m->vocab_size;
  float *got = (float *)malloc((size_t)(n * vocab) * sizeof *got);
  llama_session *s = open_session(m, NULL, 0, 1);
  check_case("hybrid: marks");
  CHECK_STATUS(llama_extend(s, tokens, at, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_truncate(s, at - 1), LATTN_E_EVICTED);
  CHECK_STATUS(llama_truncate(s, at + 1), LATTN_E_SHAPE);
  CHECK_STATUS(llama_mark(s), LATTN_OK);
  for (int i = 0; i < 2; i++) {
    CHECK_STATUS(llama_extend(s, tokens + i, n - at, 0, NULL), LATTN_OK);
    CHECK_STATUS(llama_truncate(s, at + 1), LATTN_E_EVICTED);
    CHECK_STATUS(llama_truncate(s, at), LATTN_OK);
  }
  CHECK_STATUS(llama_extend(s, tokens + at, n - at, n - at, got), LATTN_OK);
  CHECK(!memcmp(got, want + at * vocab, (size_t)((n - at) * vocab) * sizeof *got));
  CHECK_STATUS(llama_truncate(s, 0), LATTN_OK);
  CHECK_STATUS(llama_extend(s, tokens, n, n, got), LATTN_OK);
  CHECK(!memcmp(got, want, (size_t)(n * vocab) * sizeof *got));
  CHECK_STATUS(llama_truncate(s, at), LATTN_E_EVICTED); /* the mark was of another sequence */
  llama_session_close(s);
  free(got);
}

typedef struct tape {
  unsigned char bytes[1 << 20];
  size_t n, at;
} tape;

static int tape_write(void *user, const void *bytes, uint64_t n) {
  tape *t = (tape *)user;
  if (n > sizeof t->bytes - t->n) return -1;
  memcpy(t->bytes + t->n, bytes, (size_t)n);
  t->n += (size_t)n;
  return 0;
}

static int tape_read(void *user, void *bytes, uint64_t n) {
  tape *t = (tape *)user;
  if (n > t->n - t->at) return -1;
  memcpy(bytes, t->bytes + t->at, (size_t)n);
  t->at += (size_t)n;
  return 0;
}

static void test_hybrid_saved(const llama_model *m, const int32_t *tokens, const float *want) {
  static tape t;
  const int64_t at = 200, n = 280, vocab = m->vocab_size;
  float *got = (float *)malloc((size_t)(n * vocab) * sizeof *got);
  llama_session *s = open_session(m, NULL, 0, 1), *other = open_session(m, NULL, 0, 1);
  check_case("hybrid: saved and loaded");
  CHECK_STATUS(llama_extend(s, tokens, at, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_save(s, tape_write, &t), LATTN_OK);
  CHECK_STATUS(llama_extend(other, tokens + 9, 40, 0, NULL), LATTN_OK);
  CHECK_STATUS(llama_load(other, tape_read, &t), LATTN_OK);
  CHECK_I64(llama_length(other), at);
  CHECK_STATUS(llama_extend(other, tokens + at, n - at, n - at, got), LATTN_OK);
  CHECK(!memcmp(got, want + at * vocab, (size_t)((n - at) * vocab) * sizeof *got));
  check_case("hybrid: a damaged file is refused and leaves nothing");
  const size_t places[] = {0, 9, 13, t.n / 5, t.n / 3, t.n / 2, t.n - 5, t.n - 9000};
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    t.bytes[places[i]] ^= 4;
    t.at = 0;
    if (!CHECK(llama_load(other, tape_read, &t))) FAIL("byte %d", (int)places[i]);
    CHECK_I64(llama_length(other), 0);
    t.bytes[places[i]] ^= 4;
  }
  t.at = 0;
  t.n--;
  CHECK_STATUS(llama_load(other, tape_read, &t), LATTN_E_IO);
  CHECK_STATUS(llama_extend(other, tokens, n, n, got), LATTN_OK);
  CHECK(!memcmp(got, want, (size_t)(n * vocab) * sizeof *got));
  llama_session_close(s);
  llama_session_close(other);
  free(got);
}

/* What the demo shows, with room for chance: the same loss and the same bytes at any length. */
static void test_hybrid_flat(const llama_model *m, const int32_t *tokens) {
  const int64_t n = test_is_quick() ? 400 : 4000;
  double near = perplexity(m, NULL, tokens, 128, test_is_quick() ? 400 : 1024);
  double all = perplexity(m, NULL, tokens, 128, n);
  llama_session *s = open_session(m, NULL, 0, 2);
  check_case("hybrid: perplexity and bytes, %d tokens", (int)n);
  if (!(near < 5 && all < 1.05 * near)) FAIL("%g, then %g", near, all);
  CHECK_STATUS(llama_extend(s, tokens, 300, 0, NULL), LATTN_OK);
  int64_t states = llama_state_bytes(s), cache = llama_stats(s).streaming_bytes;
  CHECK_STATUS(llama_extend(s, tokens, n, 0, NULL), LATTN_OK);
  CHECK_I64(llama_state_bytes(s), states);
  CHECK(llama_stats(s).streaming_bytes <= cache);
  CHECK(!llama_stats(s).full_bytes && states > 0);
  llama_session_close(s);
}

static void test_hybrid(void) {
  llama_model m;
  tokenizer words;
  char error[LLAMA_ERROR] = "";
  int64_t n_bytes;
  char *text = slurp(our_text, &n_bytes);
  int32_t *tokens = (int32_t *)malloc(((size_t)n_bytes + 2) * sizeof *tokens);
  check_case("%s", our_hybrid);
  if (!CHECK(text) || llama_model_load(&m, our_hybrid, error)) {
    FAIL("%s", error);
  } else {
    CHECK(!tokenizer_load(&words, NULL, m.vocab_size, error));
    tokenizer_encode(&words, text, n_bytes, tokens);
    test_hybrid_plain(&m, tokens);
    const int64_t n = 300, cuts[] = {300, 1, 0, 7};
    size_t bytes = (size_t)(n * m.vocab_size) * sizeof(float);
    float *want = (float *)malloc(bytes), *got = (float *)malloc(bytes);
    for (int c = 0; c < 4; c++) {
      check_case("hybrid, cut into %d tokens", (int)cuts[c]);
      llama_session *s = open_session(&m, NULL, 0, c == 2 ? 3 : 1);
      extend_cut(s, &m, tokens, n, cuts[c], c ? got : want);
      if (c) CHECK(!memcmp(want, got, bytes));
      llama_session_close(s);
    }
    test_hybrid_drafts(&m, tokens, want);
    test_hybrid_marks(&m, tokens, want);
    test_hybrid_saved(&m, tokens, want);
    test_hybrid_flat(&m, tokens);
    free(want);
    free(got);
    llama_model_free(&m);
  }
  free(tokens);
  free(text);
}

/* ---- a checkpoint that is not ours ---- */

static void test_text(const llama_model *m, const tokenizer *words, const char *text,
                      int64_t n_bytes, int32_t *tokens) {
  int64_t n_tokens = tokenizer_encode(words, text, n_bytes, tokens), at = 0;
  char *piece = (char *)malloc((size_t)words->longest);
  int same = 1;
  check_case("stories260K: the text from its tokens");
  CHECK(n_tokens > 1 && n_tokens < n_bytes / 2);
  for (int64_t t = 1; t < n_tokens; t++) {
    int32_t n = tokenizer_decode(words, tokens[t - 1], tokens[t], piece);
    same &= at + n <= n_bytes && !memcmp(text + at, piece, (size_t)n);
    at += n;
  }
  CHECK(same && at == n_bytes);
  free(piece);
  check_case("stories260K: perplexity");
  const int64_t n = test_is_quick() ? 700 : 3000;
  if (!CHECK(n_tokens >= n)) return;
  lattn_head *sinks = all_heads(m, streaming(4, 124, LATTN_POSITIONS_DEFAULT));
  lattn_head *longer = all_heads(m, streaming(4, 508, LATTN_POSITIONS_DEFAULT));
  double full = perplexity(m, NULL, tokens, 1, 512), in_cache = perplexity(m, sinks, tokens, 1, n);
  double in_longer = perplexity(m, longer, tokens, 1, n);
  /* 3.6 once the text is under way, more at its cold beginning; far more where positions were never
     seen in training */
  if (!(full > 3.5 && full < 4.4)) FAIL("full, 512 tokens: %g", full);
  if (!(in_cache > 3.5 && in_cache < 4.4)) FAIL("sinks + window 124: %g", in_cache);
  if (!(fabs(in_longer / in_cache - 1) < 0.03)) FAIL("sinks + window 508: %g", in_longer);
  if (!test_is_quick()) {
    double beyond = perplexity(m, NULL, tokens, 512, n);
    if (!(beyond > 2 * in_cache)) FAIL("full, past 512: %g", beyond);
  }
  free(sinks);
  free(longer);
}

static void test_stories(const char *folder) {
  char path[3][512], error[LLAMA_ERROR] = "";
  static const char *const names[3] = {"stories260K.bin", "tok512.bin", "stories_text.txt"};
  llama_model m;
  tokenizer words;
  int64_t n_bytes;
  for (int i = 0; i < 3; i++) snprintf(path[i], sizeof path[i], "%s/%s", folder, names[i]);
  FILE *file = fopen(path[0], "rb");
  if (!file) {
    printf("skipped: %s is not there\n", path[0]);
    return;
  }
  fclose(file);
  check_case("stories260K");
  if (llama_model_load(&m, path[0], error)) {
    FAIL("%s", error);
    return;
  }
  CHECK_I64(m.vocab_size, 512);
  CHECK(tokenizer_load(&words, NULL, m.vocab_size, error)); /* its tokens are not bytes */
  CHECK(tokenizer_load(&words, path[0], m.vocab_size, error));
  CHECK(tokenizer_load(&words, path[1], m.vocab_size + 1, error));
  char *text = slurp(path[2], &n_bytes);
  int32_t *tokens = (int32_t *)malloc(((size_t)n_bytes + 2) * sizeof *tokens);
  if (CHECK(text) && CHECK(!tokenizer_load(&words, path[1], m.vocab_size, error))) {
    test_text(&m, &words, text, n_bytes, tokens);
    tokenizer_free(&words);
  }
  free(tokens);
  free(text);
  llama_model_free(&m);
}

/* ---- malformed checkpoints ---- */

enum { TINY_DIM = 8, TINY_HIDDEN = 6, TINY_VOCAB = 5, TINY_LENGTH = 10, TINY_HEADS = 2 };

/* A tiny checkpoint of one layer with random weights: the bytes of its file. */
static size_t tiny_checkpoint(unsigned char *file, int own_output) {
  const int32_t header[HEADER_INTS] = {
      TINY_DIM, TINY_HIDDEN, 1, TINY_HEADS, 1, own_output ? -TINY_VOCAB : TINY_VOCAB, TINY_LENGTH};
  const int kv = TINY_DIM / TINY_HEADS;
  int n = TINY_VOCAB * TINY_DIM + 3 * TINY_DIM + 2 * TINY_DIM * (TINY_DIM + kv) +
          3 * TINY_DIM * TINY_HIDDEN + TINY_LENGTH * kv;
  test_rng rng = rng_seed(5);
  memcpy(file, header, HEADER_BYTES);
  for (int i = 0; i < n; i++) {
    float x = rng_uniform(&rng);
    memcpy(file + HEADER_BYTES + 4 * i, &x, 4);
  }
  size_t bytes = HEADER_BYTES + 4 * (size_t)n;
  if (own_output) { /* the embedding once more, as the output */
    memcpy(file + bytes, file + HEADER_BYTES, 4 * TINY_VOCAB * TINY_DIM);
    bytes += 4 * TINY_VOCAB * TINY_DIM;
  }
  return bytes;
}

static void expect_refused(const char *name, const unsigned char *file, size_t n) {
  llama_model m;
  char error[LLAMA_ERROR] = "";
  const char *path = scratch_file("checkpoint", file, n);
  check_case("refused: %s", name);
  if (!llama_model_load(&m, path, error)) {
    FAIL("it was loaded");
    llama_model_free(&m);
  }
  CHECK(error[0]);
  remove(path);
}

static void tiny_logits(const unsigned char *file, size_t n, float *logits) {
  const int32_t tokens[3] = {1, 4, 2};
  char error[LLAMA_ERROR] = "";
  llama_model m;
  const char *path = scratch_file("tiny", file, n);
  if (llama_model_load(&m, path, error)) {
    FAIL("%s", error);
  } else {
    llama_session *s = open_session(&m, NULL, 3, 1);
    CHECK_STATUS(llama_extend(s, tokens, 3, 3, logits), LATTN_OK);
    llama_session_close(s);
    llama_model_free(&m);
  }
  remove(path);
}

static void test_checkpoints(void) {
  static const int32_t bad[] = {0, -1, INT32_MIN, INT32_MAX, 7, 3, 1 << 20};
  static const float not_finite[] = {NAN, INFINITY};
  unsigned char file[8192], copy[8192];
  float tied[3 * TINY_VOCAB] = {0}, untied[3 * TINY_VOCAB] = {0};
  char error[LLAMA_ERROR] = "", name[64];
  llama_model m;
  size_t n = tiny_checkpoint(file, 1);
  check_case("a checkpoint with an output matrix of its own");
  tiny_logits(file, n, untied);
  expect_refused("a table for the output is missing", file, n - 4 * TINY_VOCAB * TINY_DIM);
  n = tiny_checkpoint(file, 0);
  tiny_logits(file, n, tied);
  CHECK(!memcmp(tied, untied, sizeof tied));
  check_case("no file");
  CHECK(llama_model_load(&m, "no/such/file", error));
  CHECK(llama_model_load(&m, "tests", error)); /* a folder */
  const size_t lengths[] = {0, 1, HEADER_BYTES - 1, HEADER_BYTES, n - 4, n - 1};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
    expect_refused("cut short", file, lengths[i]);
  memset(file + n, 0, 4);
  expect_refused("four bytes too many", file, n + 4);
  for (int field = 0; field < HEADER_INTS; field++)
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
      memcpy(copy, file, n);
      memcpy(copy + 4 * field, &bad[i], 4);
      snprintf(name, sizeof name, "header field %d is %d", field, (int)bad[i]);
      expect_refused(name, copy, n);
    }
  for (int i = 0; i < 2; i++) {
    memcpy(copy, file, n);
    memcpy(copy + HEADER_BYTES + 400, &not_finite[i], 4);
    expect_refused("a weight is not finite", copy, n);
  }
  memcpy(copy, file, n);
  memcpy(copy, "24ka", 4);
  expect_refused("a version 1 export", copy, n);
}

/* A tiny hybrid of three layers, one of each kind; the bytes of its file. */
static size_t tiny_hybrid(unsigned char *file) {
  const int32_t header[1 + HYBRID_INTS + 3] = {
      1, TINY_DIM, TINY_HIDDEN, 3, TINY_HEADS, 1,           TINY_VOCAB,   TINY_LENGTH,
      2, 2,        3,           4, 2,          LLAMA_DELTA, LLAMA_WINDOW, LLAMA_FULL};
  const int kv = TINY_DIM / TINY_HEADS, rest = TINY_DIM * (2 + TINY_DIM + 3 * TINY_HIDDEN);
  const int attention = TINY_DIM * (TINY_DIM + 2 * kv), keys = 2 * 3, all = 2 * keys + TINY_DIM;
  const int delta = TINY_DIM * (all + TINY_DIM + 2 * 2) + 2 * all + 2 * 2 + 4;
  int n = TINY_VOCAB * TINY_DIM + TINY_DIM + 3 * rest + 2 * attention + delta;
  test_rng rng = rng_seed(6);
  memcpy(file, hybrid_name, NAME_BYTES);
  memcpy(file + NAME_BYTES, header, sizeof header);
  for (int i = 0; i < n; i++) {
    float x = rng_uniform(&rng);
    memcpy(file + NAME_BYTES + sizeof header + 4 * (size_t)i, &x, 4);
  }
  return NAME_BYTES + sizeof header + 4 * (size_t)n;
}

static void test_hybrid_files(void) {
  static const int32_t bad[] = {0, -1, INT32_MIN, INT32_MAX, 7, 1 << 20};
  unsigned char file[8192], copy[8192];
  float logits[3 * TINY_VOCAB], nan = NAN;
  char name[64];
  size_t n = tiny_hybrid(file);
  check_case("a hybrid with a layer of each kind");
  CHECK(n <= sizeof file);
  tiny_logits(file, n, logits);
  for (int i = 0; i < 3 * TINY_VOCAB; i++) CHECK(isfinite(logits[i]));
  const size_t lengths[] = {NAME_BYTES,        NAME_BYTES + 4, HYBRID_BYTES,
                            HYBRID_BYTES + 12, n - 4,          n - 1};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
    expect_refused("a hybrid cut short", file, lengths[i]);
  memset(file + n, 0, 4);
  expect_refused("a hybrid with four bytes too many", file, n + 4);
  for (int field = 0; field < 1 + HYBRID_INTS + 3; field++)
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
      int any = field == 7 || field == 8; /* context and window: any number above 0 */
      if (any && bad[i] > 0 && bad[i] < 1 << 30) continue;
      if (field > HYBRID_INTS && bad[i] == 0) continue; /* full instead: another length */
      memcpy(copy, file, n);
      memcpy(copy + NAME_BYTES + 4 * field, &bad[i], 4);
      snprintf(name, sizeof name, "hybrid: number %d is %d", field, (int)bad[i]);
      expect_refused(name, copy, n);
    }
  memcpy(copy, file, n);
  memcpy(copy + n - 40, &nan, 4);
  expect_refused("a hybrid's weight is not finite", copy, n);
}

/* ---- head tables ---- */

typedef struct table_case {
  const char *text;
  int32_t n_layers, n_kv_heads; /* 0 = refused */
} table_case;

static void test_table_syntax(void) {
  static const table_case cases[] = {
      {"1\t0\n0\t1\n", 2, 2},
      {"1.0e+00\t.5\r\n-0.001\t+1\r\n", 2, 2}, /* CR LF; clipped */
      {"0x1p-1\t1e-400\t7", 1, 3},             /* no last line end */
      {" 1 \t 0 \n", 1, 2},
      {"0.25\n0.5\n0.75\n", 3, 1},
      {"", 0, 0},
      {"\n", 0, 0},
      {"1\t0\n1\n", 0, 0},
      {"1\n1\t0\n", 0, 0},
      {"1\t0\n\n1\t0\n", 0, 0},
      {"1\t\t0\n", 0, 0},
      {"\t1\n", 0, 0},
      {"1\t\n", 0, 0},
      {"1 0\n", 0, 0},
      {"1,0\n", 0, 0},
      {"nan\t1\n", 0, 0},
      {"1\tinf\n", 0, 0},
      {"full\tstreaming\n", 0, 0},
      {"1x\n", 0, 0},
  };
  char error[POLICY_ERROR];
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    head_table table;
    const char *path = scratch_file("table", cases[i].text, strlen(cases[i].text));
    check_case("head table %d", (int)i);
    int bad = head_table_load(&table, path, error);
    CHECK(!!bad == !cases[i].n_layers);
    if (!bad) {
      CHECK_I64(table.n_layers, cases[i].n_layers);
      CHECK_I64(table.n_kv_heads, cases[i].n_kv_heads);
      for (int32_t g = 0; g < table.n_layers * table.n_kv_heads; g++)
        CHECK(table.gates[g] >= 0 && table.gates[g] <= 1);
      head_table_free(&table);
    }
    remove(path);
  }
  const char *path = scratch_file("table", "1\t0\0\t1\n", 7);
  check_case("a zero byte in a head table");
  head_table table;
  CHECK(head_table_load(&table, path, error));
  remove(path);
}

static void test_table_split(void) {
  double gates[6] = {0.5, 1, 0, 1, 0.5, 0};
  head_table table = {2, 3, gates};
  lattn_head heads[6];
  /* streaming first: 5 and 2 (gate 0), 4 and 0 (0.5), 3 and 1 */
  static const int order[6] = {5, 2, 4, 0, 3, 1};
  for (int n = 0; n <= 6; n++) {
    check_case("split with %d of 6 heads streaming", n);
    CHECK_I64(head_table_split(&table, n / 6.0, streaming(4, 8, 0), heads), 6 - n);
    for (int i = 0; i < 6; i++)
      CHECK(heads[order[i]].policy == (i < n ? LATTN_HEAD_STREAMING : LATTN_HEAD_FULL));
  }
  check_case("split at 0.5");
  CHECK_I64(head_table_split(&table, -1, streaming(4, 8, 0), heads), 4);
}

/* Saved and loaded again, a table has the same bits. */
static void check_round_trip(const head_table *table) {
  char error[POLICY_ERROR];
  head_table again;
  const char *path = scratch_file("table", "", 0);
  CHECK(!head_table_save(table, path, error));
  if (CHECK(!head_table_load(&again, path, error))) {
    CHECK_I64(again.n_layers, table->n_layers);
    CHECK_I64(again.n_kv_heads, table->n_kv_heads);
    CHECK(!memcmp(table->gates, again.gates,
                  (size_t)(table->n_layers * table->n_kv_heads) * sizeof(double)));
    head_table_free(&again);
  }
  remove(path);
}

/* What the published procedure calls full: gates from the quantile on, linear between two of them.
   It adds noise below 1e-6 against ties: heads so near to the threshold may be either. */
static void check_official_mask(const head_table *table, double sparsity) {
  int32_t n = table->n_layers * table->n_kv_heads, certain = 0, wrong = 0;
  lattn_head *heads = (lattn_head *)malloc((size_t)n * sizeof *heads);
  double *sorted = (double *)malloc((size_t)n * sizeof *sorted);
  for (int32_t i = 0; i < n; i++) {
    int32_t j = i;
    for (; j && sorted[j - 1] > table->gates[i]; j--) sorted[j] = sorted[j - 1];
    sorted[j] = table->gates[i];
  }
  double at = sparsity * (n - 1), below = floor(at);
  double threshold = sorted[(int32_t)below], above = sorted[(int32_t)below + 1];
  threshold += (at - below) * (above - threshold);
  head_table_split(table, sparsity, streaming(64, 256, 0), heads);
  for (int32_t i = 0; i < n; i++) {
    if (fabs(table->gates[i] - threshold) <= 1e-6) continue;
    certain++;
    wrong += (heads[i].policy == LATTN_HEAD_FULL) != (table->gates[i] >= threshold);
  }
  CHECK_I64(wrong, 0);
  if (certain < n / 2) FAIL("only %d heads are certain at %g", (int)certain, sparsity);
  free(heads);
  free(sorted);
}

/* The tables that DuoAttention published, where they are at hand: known counts. */
static void test_published(const char *folder) {
  static const struct {
    const char *name;
    int32_t n_layers, n_kv_heads, n_full;
  } models[] = {{"Llama-2-7B-32K-Instruct", 32, 32, 446},
                {"Meta-Llama-3.1-8B-Instruct", 32, 8, 234},
                {"Mistral-7B-Instruct-v0.2", 32, 8, 244}};
  static const double sparsities[] = {0.25, 0.5, 0.75};
  lattn_head heads[1024];
  char path[512], error[POLICY_ERROR];
  head_table table;
  int64_t sink_size, recent_size;
  for (int i = 0; i < 3; i++) {
    snprintf(path, sizeof path, "%s/%s/full_attention_heads.tsv", folder, models[i].name);
    FILE *file = fopen(path, "rb");
    if (!file) {
      printf("skipped: %s is not there\n", path);
      continue;
    }
    fclose(file);
    check_case("%s", models[i].name);
    if (!CHECK(!head_table_load(&table, path, error))) continue;
    CHECK_I64(table.n_layers, models[i].n_layers);
    CHECK_I64(table.n_kv_heads, models[i].n_kv_heads);
    int32_t n = table.n_layers * table.n_kv_heads;
    CHECK_I64(head_table_split(&table, -1, streaming(64, 256, 0), heads), models[i].n_full);
    for (int j = 0; j < 3; j++) { /* exactly, ties or not: 768 of 1024 stream at 0.75, say */
      CHECK_I64(head_table_split(&table, sparsities[j], streaming(64, 256, 0), heads),
                n - (int32_t)(sparsities[j] * n));
      check_official_mask(&table, sparsities[j]);
    }
    CHECK(!head_table_config(path, &sink_size, &recent_size));
    CHECK_I64(sink_size, 128);
    CHECK_I64(recent_size, 256);
    check_round_trip(&table);
    head_table_free(&table);
  }
}

static void test_our_table(void) {
  head_table table;
  char error[POLICY_ERROR];
  int64_t sink_size, recent_size;
  check_case("%s", our_heads);
  if (!CHECK(!head_table_load(&table, our_heads, error))) return;
  CHECK(head_table_config(our_heads, &sink_size, &recent_size)); /* no config.json beside it */
  check_round_trip(&table);
  head_table_free(&table);
}

/* ---- choosing heads, and what is asked of them ---- */

static void expect_full(const lattn_head *heads, int32_t n, uint32_t full) {
  for (int32_t i = 0; i < n; i++)
    CHECK((heads[i].policy == LATTN_HEAD_FULL) == (int)(full >> i & 1));
}

static void test_choose(void) {
  double echo_scores[6] = {0, 0.1, 0.9, 0.9, 0, 0}, scores[6] = {0.5, 0.3, 0.4, 0, 0.5, 0};
  head_table echo = {2, 3, echo_scores}, induction = {2, 3, scores};
  lattn_head heads[40], stream = streaming(4, 8, 0);
  /* of these heads the first n: by score; those that come last; one by echo, others by induction */
  static const int best[6] = {0, 4, 2, 1, 3, 5}, razor[6] = {2, 0, 4, 1, 3, 5};
  for (int n = 0; n <= 6; n++) {
    uint32_t first = 0, last = 0, by_razor = 0;
    for (int i = 0; i < n; i++) {
      first |= 1u << best[i];
      last |= 1u << best[5 - i];
      by_razor |= 1u << razor[i];
    }
    check_case("%d of 6 heads are full", n);
    choose_best(&induction, n, stream, heads);
    expect_full(heads, 6, first);
    choose_worst(&induction, n, stream, heads);
    expect_full(heads, 6, last);
    choose_razor(&echo, &induction, n, stream, heads);
    expect_full(heads, 6, by_razor);
  }
  check_case("two of thirty heads by echo");
  double many[40] = {0}, none[40] = {0};
  many[38] = many[39] = many[37] = 1;
  head_table echoes = {4, 10, many}, nothing = {4, 10, none};
  choose_razor(&echoes, &nothing, 30, stream, heads);
  CHECK(heads[37].policy == LATTN_HEAD_FULL && heads[38].policy == LATTN_HEAD_FULL);
  CHECK(heads[39].policy == LATTN_HEAD_STREAMING && heads[27].policy == LATTN_HEAD_FULL);
  check_case("random heads");
  uint64_t state = 1;
  int32_t times[40] = {0};
  for (int n = 0; n <= 40; n++) {
    int32_t n_full = 0;
    choose_random(40, n, stream, &state, heads);
    for (int i = 0; i < 40; i++) {
      n_full += heads[i].policy == LATTN_HEAD_FULL;
      times[i] += heads[i].policy == LATTN_HEAD_FULL;
    }
    CHECK_I64(n_full, n);
  }
  /* 41 draws, 20.5 times each on average; never in 5 or less of so many by chance */
  for (int i = 0; i < 40; i++) CHECK(times[i] > 5 && times[i] < 36);
}

static void test_quartiles(void) {
  static const double want[4][5] = {
      {3, 3, 3, 3, 3}, {1, 1.5, 2, 2.5, 3}, {1, 2, 3, 4, 5}, {0, 0.75, 1.5, 2.25, 3}};
  static const double of[4][5] = {{3}, {3, 1}, {5, 1, 4, 2, 3}, {2, 0, 3, 1}};
  static const int32_t n[4] = {1, 2, 5, 4};
  for (int i = 0; i < 4; i++) {
    double values[5], quartiles[5];
    check_case("quartiles of %d", (int)n[i]);
    memcpy(values, of[i], sizeof values);
    trial_quartiles(values, n[i], quartiles);
    for (int j = 0; j < 5; j++) CHECK(fabs(quartiles[j] - want[i][j]) < 1e-12);
  }
}

/* ---- scores of query heads ---- */

static const struct {
  const char *text;
  int32_t n_layers, n_heads, n_samples; /* 0 = refused */
} score_texts[] = {
    {"{\"0-0\": [0.5]}", 1, 1, 1},
    {"{\"1-0\":[1,2.5e-1],\"0-0\":[-0,1E+2]}", 2, 1, 2}, /* any order */
    {" {\n\"0-1\" : [ 0 , 1 ] ,\r\n\t\"0-0\" : [ 2 , 3 ] } \n", 1, 2, 2},
    {"", 0, 0, 0},
    {"{}", 0, 0, 0},
    {"[]", 0, 0, 0},
    {"{\"0-0\": []}", 0, 0, 0},
    {"{\"0-0\": 0.5}", 0, 0, 0},
    {"{\"0-0\": [0.5]", 0, 0, 0},
    {"{\"0-0\": [0.5}", 0, 0, 0},
    {"{\"0-0\": [0.5],}", 0, 0, 0},
    {"{\"0-0\": [0.5,]}", 0, 0, 0},
    {"{\"0-0\": [0.5]} x", 0, 0, 0},
    {"{\"0-0\" [0.5]}", 0, 0, 0},
    {"{\"0-0: [0.5]}", 0, 0, 0},
    {"{0-0: [0.5]}", 0, 0, 0},
    {"{\"00-0\": [0.5]}", 0, 0, 0},
    {"{\"-1-0\": [0.5]}", 0, 0, 0},
    {"{\"0\": [0.5]}", 0, 0, 0},
    {"{\"0-0-0\": [0.5]}", 0, 0, 0},
    {"{\"9999-0\": [0.5]}", 0, 0, 0},
    {"{\"0-99999999999999\": [0.5]}", 0, 0, 0},
    {"{\"0-0\": [.5]}", 0, 0, 0},
    {"{\"0-0\": [5.]}", 0, 0, 0},
    {"{\"0-0\": [+5]}", 0, 0, 0},
    {"{\"0-0\": [05]}", 0, 0, 0},
    {"{\"0-0\": [1e]}", 0, 0, 0},
    {"{\"0-0\": [0x1]}", 0, 0, 0},
    {"{\"0-0\": [1e999]}", 0, 0, 0},
    {"{\"0-0\": [NaN]}", 0, 0, 0},
    {"{\"0-0\": [Infinity]}", 0, 0, 0},
    {"{\"0-0\": [true]}", 0, 0, 0},
    {"{\"0-0\": [1], \"0-0\": [1]}", 0, 0, 0},               /* twice */
    {"{\"0-0\": [1], \"0-2\": [1]}", 0, 0, 0},               /* one is missing */
    {"{\"0-0\": [1], \"0-0\": [1], \"0-2\": [1]}", 0, 0, 0}, /* both */
    {"{\"0-0\": [1], \"0-1\": [1, 2]}", 0, 0, 0},
    {"{\"0-0\": [1, 2], \"0-1\": [1]}", 0, 0, 0},
};

static void test_scores_syntax(void) {
  head_scores scores;
  char error[POLICY_ERROR];
  for (size_t i = 0; i < sizeof score_texts / sizeof *score_texts; i++) {
    const char *text = score_texts[i].text, *path = scratch_file("scores", text, strlen(text));
    check_case("scores %d", (int)i);
    error[0] = 0;
    int bad = head_scores_load(&scores, path, error);
    CHECK(!!bad == !score_texts[i].n_samples);
    CHECK(!bad == !error[0]);
    CHECK_I64(scores.n_layers, score_texts[i].n_layers);
    CHECK_I64(scores.n_heads, score_texts[i].n_heads);
    CHECK_I64(scores.n_samples, score_texts[i].n_samples);
    if (i == 1 && !bad) CHECK(scores.scores[1] > 99 && scores.scores[3] < 0.26);
    if (i == 2 && !bad) CHECK(scores.scores[0] > 1.5 && scores.scores[3] < 1.5);
    head_scores_free(&scores);
    remove(path);
  }
  const char *path = scratch_file("scores", "{\"0-0\": [1]}\0", 14);
  check_case("a zero byte after the scores");
  CHECK(head_scores_load(&scores, path, error));
  remove(path);
  CHECK(head_scores_load(&scores, "no/such/file", error));
}

static void test_groups(void) {
  double gates[8] = {0.1, 0.3, -2, -1, 0, 0, 5, 4};
  static const double want[3][8] = {{0.1, 0.3, -2, -1, 0, 0, 5, 4}, {0.3, -1, 0, 5}, {0.3, 5}};
  head_table table = {2, 4, gates}, kv_heads;
  for (int i = 0; i < 3; i++) {
    check_case("heads in groups of %d", 1 << i);
    if (!CHECK(!head_table_group(&table, 1 << i, &kv_heads))) continue;
    CHECK_I64(kv_heads.n_layers, 2);
    CHECK_I64(kv_heads.n_kv_heads, 4 >> i);
    CHECK(!memcmp(kv_heads.gates, want[i], (size_t)(8 >> i) * sizeof(double)));
    head_table_free(&kv_heads);
  }
  CHECK(head_table_group(&table, 3, &kv_heads));
  CHECK(head_table_group(&table, 0, &kv_heads));
}

/* The retrieval scores that Wu et al. published for Mistral-7B-v0.2, where they are at hand: 1024
   heads, 362 samples; a score is a count of copied tokens over the needle's length. */
static void test_published_scores(const char *path) {
  head_scores scores, again;
  head_table means;
  char error[POLICY_ERROR];
  FILE *file = fopen(path, "rb");
  if (!file) {
    printf("skipped: %s is not there\n", path);
    return;
  }
  fclose(file);
  check_case("%s", path);
  if (!CHECK(!head_scores_load(&scores, path, error))) return;
  CHECK_I64(scores.n_layers, 32);
  CHECK_I64(scores.n_heads, 32);
  CHECK_I64(scores.n_samples, 362);
  if (CHECK(!head_scores_mean(&scores, &means))) {
    int32_t tenth = 0, half = 0, zero = 0;
    for (int32_t i = 0; i < 1024; i++) {
      tenth += means.gates[i] >= 0.1;
      half += means.gates[i] >= 0.5;
      zero += means.gates[i] <= 0;
    }
    CHECK_I64(tenth, 43);
    CHECK_I64(half, 5);
    CHECK_I64(zero, 666);
    CHECK(fabs(means.gates[18 * 32 + 0] - 0.943) < 0.0005);
    CHECK(fabs(means.gates[12 * 32 + 7] - 0.928) < 0.0005);
    head_table_free(&means);
  }
  const char *copy = scratch_file("scores", "", 0);
  CHECK(!head_scores_save(&scores, copy, error));
  if (CHECK(!head_scores_load(&again, copy, error))) {
    CHECK_I64(again.n_samples, scores.n_samples);
    CHECK(!memcmp(scores.scores, again.scores, 1024 * 362 * sizeof(double)));
    head_scores_free(&again);
  }
  remove(copy);
  head_scores_free(&scores);
}

int main(int argc, char **argv) {
  test_checkpoints();
  test_hybrid_files();
  test_table_syntax();
  test_table_split();
  test_choose();
  test_quartiles();
  test_our_table();
  test_scores_syntax();
  test_groups();
  test_ours();
  test_hybrid();
  test_stories(argc > 1 ? argv[1] : "../shared/models/stories260K");
  test_published("../shared/heads/duo");
  test_published_scores("../shared/heads/retrieval_score_Mistral-7B-v0.2.json");
  return test_summary();
}
