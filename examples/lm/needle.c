/* needle.c - see needle.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "needle.h"

#include <stdlib.h>
#include <string.h>

const double needle_depths[NEEDLE_DEPTHS] = {0, 0.25, 0.5, 0.75, 1};

int64_t random_below(uint64_t *state, int64_t n) { return (int64_t)(llama_random(state) >> 1) % n; }

/* Twelve different letters: the first of a shuffle. */
static void random_phrase(char *phrase, uint64_t *state) {
  char letters[] = "abcdefghijklmnopqrstuvwxyz";
  for (int i = 0; i < NEEDLE_LETTERS; i++) {
    int64_t j = i + random_below(state, 26 - i);
    phrase[i] = letters[j];
    letters[j] = letters[i];
  }
}

int needle_make(needle_case *c, const char *text, int64_t n_bytes, int64_t length,
                uint64_t *state) {
  c->length = length;
  c->filler = length - 1 - (NEEDLE_LETTERS + 2) - (1 + NEEDLE_CUE);
  if (c->filler < 0 || c->filler > n_bytes) return -1;
  c->text = text + random_below(state, n_bytes - c->filler + 1);
  for (int i = 0; i < NEEDLE_DEPTHS; i++) {
    c->at[i] = (int64_t)(needle_depths[i] * (double)c->filler + 0.5);
    random_phrase(c->phrases[i], state);
  }
  return 0;
}

static int64_t put(int32_t *tokens, int64_t n, const char *bytes, int64_t n_bytes) {
  for (int64_t i = 0; i < n_bytes; i++) tokens[n++] = (unsigned char)bytes[i];
  return n;
}

/* What comes after the text before needle i: the needle, the rest of the text, the question, and
   all letters but the last. A greedy continuation says the letters exactly when each of them is
   the likeliest after those before it, so one call asks for all. */
static int64_t put_tail(const needle_case *c, int i, int32_t *tokens) {
  int64_t n = put(tokens, 0, "<", 1);
  n = put(tokens, n, c->phrases[i], NEEDLE_LETTERS);
  n = put(tokens, n, ">", 1);
  n = put(tokens, n, c->text + c->at[i], c->filler - c->at[i]);
  n = put(tokens, n, "<", 1);
  return put(tokens, n, c->phrases[i], NEEDLE_LETTERS - 1);
}

int64_t needle_prompt(const needle_case *c, int i, int32_t *tokens, int64_t *letter) {
  tokens[0] = LLAMA_BOS;
  int64_t n = put(tokens, 1, c->text, c->at[i]);
  *letter = n + 1 + NEEDLE_CUE;
  return n + put_tail(c, i, tokens + n);
}

needle_result needle_judge(const llama_model *model, const needle_case *c, int i,
                           const float *logits) {
  needle_result r = {0, 0};
  int32_t vocab_size = model->vocab_size;
  for (int32_t a = 0; a < NEEDLE_ASKED; a++, logits += vocab_size) {
    int32_t letter = c->phrases[i][NEEDLE_CUE + a];
    r.n_right += r.n_right == a && llama_argmax(logits, vocab_size) == letter;
    r.log_probability -= llama_loss(logits, vocab_size, letter) / NEEDLE_ASKED;
  }
  return r;
}

lattn_status needle_run(llama_session *session, const llama_model *model, const needle_case *c,
                        needle_result results[NEEDLE_DEPTHS]) {
  size_t rows = (size_t)model->vocab_size * NEEDLE_ASKED;
  int32_t *tokens = (int32_t *)malloc((size_t)(c->length + NEEDLE_ASKED) * sizeof *tokens);
  float *logits = (float *)malloc(rows * sizeof *logits);
  lattn_status status = tokens && logits ? LATTN_OK : LATTN_E_MEMORY;
  if (!status) status = llama_truncate(session, 0);
  int64_t read = 0; /* bytes of the text that the session has, after BOS */
  for (int i = 0; i < NEEDLE_DEPTHS && !status; i++) {
    tokens[0] = LLAMA_BOS;
    int64_t n = put(tokens, i ? 0 : 1, c->text + read, c->at[i] - read);
    read = c->at[i];
    status = llama_extend(session, tokens, n, 0, NULL);
    if (!status) status = llama_mark(session);
    if (!status)
      status = llama_extend(session, tokens, put_tail(c, i, tokens), NEEDLE_ASKED, logits);
    if (!status) results[i] = needle_judge(model, c, i, logits);
    if (!status) status = llama_truncate(session, 1 + read);
  }
  free(tokens);
  free(logits);
  return status;
}

lattn_status needle_run_marked(llama_session *session, const llama_model *model,
                               const needle_case *c, needle_result results[NEEDLE_DEPTHS]) {
  const int64_t question = NEEDLE_CUE + NEEDLE_ASKED; /* <, the cue and all letters but the last */
  size_t rows = (size_t)model->vocab_size * NEEDLE_ASKED;
  int32_t *tokens = (int32_t *)malloc((size_t)(c->length + NEEDLE_ASKED) * sizeof *tokens);
  float *logits = (float *)malloc(rows * sizeof *logits);
  lattn_status status = tokens && logits ? LATTN_OK : LATTN_E_MEMORY;
  for (int i = 0; i < NEEDLE_DEPTHS && !status; i++) {
    int64_t letter, n = needle_prompt(c, i, tokens, &letter) - question;
    status = llama_truncate(session, 0);
    if (!status) status = llama_extend(session, tokens, n, 0, NULL);
    if (!status) status = llama_end_prompt(session);
    if (!status) status = llama_extend(session, tokens + n, question, NEEDLE_ASKED, logits);
    if (!status) results[i] = needle_judge(model, c, i, logits);
  }
  free(tokens);
  free(logits);
  return status;
}

/* ---- grids ---- */

typedef struct grid_job {
  const needle_grid *grid;
  const llama_model *model;
  const lattn_head *heads; /* with slack */
  const char *text;
  int64_t n_bytes, longest;
  int32_t n_tasks;
  needle_result *results;
  int *failed; /* [n_tasks] */
  int marked;  /* a head waits for the end of the prompt */
} grid_job;

/* Every n_tasks-th case, on a session of this task's own. */
static void run_cases(void *context, int32_t task) {
  const grid_job *job = (const grid_job *)context;
  const needle_grid *grid = job->grid;
  llama_options options = {job->heads, job->longest + NEEDLE_ASKED, LATTN_F32, 1, NULL, NULL};
  char error[LLAMA_ERROR];
  llama_session *session = llama_session_open(job->model, &options, error);
  job->failed[task] = !session;
  for (int32_t i = task; i < grid->n_lengths * grid->n_samples; i += job->n_tasks) {
    int64_t length = grid->lengths[i / grid->n_samples];
    uint64_t state =
        grid->seed * 1000003u + (uint64_t)length * 1009u + (uint64_t)(i % grid->n_samples);
    needle_case c;
    if (job->failed[task]) break;
    needle_result *results = job->results + (int64_t)i * NEEDLE_DEPTHS;
    job->failed[task] = needle_make(&c, job->text, job->n_bytes, length, &state) ||
                        (job->marked ? needle_run_marked(session, job->model, &c, results)
                                     : needle_run(session, job->model, &c, results));
  }
  llama_session_close(session);
}

int needle_grid_run(const needle_grid *grid, const llama_model *model, const lattn_head *heads,
                    const char *text, int64_t n_bytes, int32_t n_threads, needle_result *results) {
  size_t n = (size_t)model->n_layers * (size_t)model->n_kv_heads;
  lattn_head *with_slack = heads ? (lattn_head *)malloc(n * sizeof *heads) : NULL;
  int *failed = (int *)calloc((size_t)n_threads, sizeof *failed);
  int bad = !failed || (heads && !with_slack), marked = 0;
  int64_t longest = 0;
  for (int32_t i = 0; i < grid->n_lengths; i++)
    if (grid->lengths[i] > longest) longest = grid->lengths[i];
  for (size_t i = 0; i < n && with_slack; i++) {
    with_slack[i] = heads[i];
    if (heads[i].policy != LATTN_HEAD_FULL) with_slack[i].slack = longest;
    marked |= heads[i].mark != 0;
  }
  if (!bad) {
    grid_job job = {grid,    model,     with_slack, text,   n_bytes,
                    longest, n_threads, results,    failed, marked};
    lattn_parallel_openmp(NULL, n_threads, run_cases, &job);
    for (int32_t i = 0; i < n_threads; i++) bad |= failed[i];
  }
  free(with_slack);
  free(failed);
  return bad ? -1 : 0;
}

double needle_share(const needle_result *results, int32_t n, int32_t stride, int32_t exact) {
  int32_t right = 0;
  for (int32_t i = 0; i < n; i++) right += results[(int64_t)i * stride].n_right >= exact;
  return (double)right / n;
}
