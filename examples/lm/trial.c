/* trial.c - see trial.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "trial.h"

#include <math.h>
#include <stdlib.h>

/* ---- perplexity ---- */

typedef struct text_job {
  const demo_input *in;
  const trial_plan *plan;
  const lattn_head *heads;
  int64_t n_pieces;
  double *nats;   /* [n_pieces] of all tokens that are judged */
  int64_t *bytes; /* [n_threads] kept at the end of a piece */
  int *failed;    /* [n_threads] */
  int marked;     /* a head waits for the end of the prompt */
} text_job;

/* Reads the piece that begins at byte p * (piece - 1). */
static int read_piece(const text_job *job, llama_session *session, int64_t p, int32_t *tokens,
                      float *logits) {
  int64_t n = job->plan->piece, first = job->plan->first;
  int32_t vocab = job->in->model.vocab_size;
  tokens[0] = LLAMA_BOS;
  for (int64_t i = 1; i < n; i++) tokens[i] = (unsigned char)job->in->text[p * (n - 1) + i - 1];
  if (llama_truncate(session, 0) || llama_extend(session, tokens, first - 1, 0, NULL)) return -1;
  if (job->marked && llama_end_prompt(session)) return -1;
  if (llama_extend(session, tokens + first - 1, n - first, n - first, logits)) return -1;
  job->nats[p] = 0;
  for (int64_t i = first; i < n; i++)
    job->nats[p] += llama_loss(logits + (i - first) * vocab, vocab, tokens[i]);
  return 0;
}

/* Every n_threads-th piece, on a session of this task's own. */
static void read_text_pieces(void *context, int32_t task) {
  const text_job *job = (const text_job *)context;
  int64_t n = job->plan->piece;
  llama_options options = {job->heads, n, LATTN_F32, 1, NULL, NULL};
  char error[LLAMA_ERROR];
  llama_session *session = llama_session_open(&job->in->model, &options, error);
  int32_t *tokens = (int32_t *)malloc((size_t)n * sizeof *tokens);
  float *logits = (float *)malloc((size_t)(n - job->plan->first) *
                                  (size_t)job->in->model.vocab_size * sizeof *logits);
  job->failed[task] = !session || !tokens || !logits;
  for (int64_t p = task; p < job->n_pieces && !job->failed[task]; p += job->in->n_threads)
    job->failed[task] = read_piece(job, session, p, tokens, logits);
  if (!job->failed[task]) job->bytes[task] = llama_stats(session).token_bytes;
  llama_session_close(session);
  free(tokens);
  free(logits);
}

static int text_run(const demo_input *in, const trial_plan *plan, const lattn_head *heads,
                    trial_result *result) {
  int64_t n_pieces = in->n_bytes / (plan->piece - 1);
  if (n_pieces > plan->n_pieces) n_pieces = plan->n_pieces;
  double *nats = (double *)malloc((size_t)(n_pieces + 1) * sizeof *nats), sum = 0;
  int *failed = (int *)calloc((size_t)in->n_threads, sizeof *failed);
  int64_t *bytes = (int64_t *)calloc((size_t)in->n_threads, sizeof *bytes);
  int bad = !nats || !failed || !bytes || !n_pieces, marked = 0;
  for (int32_t i = 0; heads && i < in->model.n_layers * in->model.n_kv_heads; i++)
    marked |= heads[i].mark != 0;
  if (!bad) {
    text_job job = {in, plan, heads, n_pieces, nats, bytes, failed, marked};
    lattn_parallel_openmp(NULL, in->n_threads, read_text_pieces, &job);
    for (int32_t i = 0; i < in->n_threads; i++) bad |= failed[i];
    result->bytes = bytes[0];
  }
  for (int64_t p = 0; p < n_pieces && !bad; p++) sum += nats[p];
  result->text = exp(sum / (double)(n_pieces * (plan->piece - plan->first)));
  free(nats);
  free(failed);
  free(bytes);
  return bad ? -1 : 0;
}

/* ---- needles ---- */

static int needles_run(const demo_input *in, const trial_plan *plan, const lattn_head *heads,
                       trial_result *result) {
  int32_t n = plan->needles.n_lengths * plan->needles.n_samples * NEEDLE_DEPTHS;
  needle_result *results = (needle_result *)malloc((size_t)n * sizeof *results);
  double log_probability = 0;
  int bad = !results || needle_grid_run(&plan->needles, &in->model, heads, in->text, in->n_bytes,
                                        in->n_threads, results);
  for (int32_t i = 0; i < n && !bad; i++) log_probability += results[i].log_probability / n;
  if (!bad) result->found = needle_share(results, n, 1, DEMO_EXACT);
  result->letters = exp(-log_probability);
  free(results);
  return bad ? -1 : 0;
}

int trial_run(const demo_input *in, const trial_plan *plan, const lattn_head *heads,
              trial_result *result) {
  return text_run(in, plan, heads, result) || needles_run(in, plan, heads, result) ? -1 : 0;
}

/* ---- quartiles ---- */

static int compare_numbers(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

void trial_quartiles(double *values, int32_t n, double quartiles[5]) {
  qsort(values, (size_t)n, sizeof *values, compare_numbers);
  for (int i = 0; i < 5; i++) {
    double at = (n - 1) * i / 4.0, below = floor(at);
    int32_t j = (int32_t)below;
    quartiles[i] = values[j];
    if (at > below) quartiles[i] += (at - below) * (values[j + 1] - values[j]);
  }
}
