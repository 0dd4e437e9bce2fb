/* profile.c - which heads of the demo's model retrieve, by every score, and what that is worth.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Runs the model with the profiler plugged in, on needles, on repeated tokens and on ordinary text;
   writes a table and a picture of each score; then lets a few heads be full, chosen by each score,
   by measuring (heads.tsv, of `make heads`) and at random, and counts what that is worth. All goes
   into build/profile/.

   profile [FOLDER [THREADS]]; with QUICK=1 in the environment it takes fewer samples. */
#define _POSIX_C_SOURCE 200809L
#include "compare.h"
#include "needle.h"
#include "plot_heads.h"
#include "scan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char out_folder[] = "build/profile";

static int fail(const char *what) {
  fprintf(stderr, "profile: %s\n", what);
  return -1;
}

static void show_table(const head_table *t, const char *title) {
  printf("%s\n", title);
  for (int32_t l = 0; l < t->n_layers; l++) {
    printf("  layer %d", (int)l);
    for (int32_t h = 0; h < t->n_kv_heads; h++) printf("  %5.3f", t->gates[l * t->n_kv_heads + h]);
    printf("\n");
  }
}

/* Prints a score, and writes NAME.tsv and NAME.svg. */
static int put(const head_table *t, const int64_t *places, const char *name, const char *heads,
               const char *title) {
  char path[64], error[POLICY_ERROR];
  plot_scores picture = {title, heads, t->gates, places, t->n_layers, t->n_kv_heads, 0};
  show_table(t, title);
  snprintf(path, sizeof path, "%s/%s.tsv", out_folder, name);
  if (head_table_save(t, path, error)) return fail(error);
  snprintf(path, sizeof path, "%s/%s.svg", out_folder, name);
  return plot_heat(path, &picture) ? fail("a picture cannot be written") : 0;
}

/* Where the strongest sinks are, as a table too. */
static int put_places(const scan *s) {
  char path[64], error[POLICY_ERROR];
  head_table places = s->sinks;
  int32_t n = places.n_layers * places.n_kv_heads;
  places.gates = (double *)malloc((size_t)n * sizeof(double));
  if (!places.gates) return fail("not enough memory");
  for (int32_t i = 0; i < n; i++) places.gates[i] = (double)s->sink_at[i];
  snprintf(path, sizeof path, "%s/sinks_at.tsv", out_folder);
  int bad = head_table_save(&places, path, error);
  head_table_free(&places);
  return bad ? fail(error) : 0;
}

static int put_scores(const scan *s) {
  char path[64], error[POLICY_ERROR];
  if (mkdir("build", 0777) && errno != EEXIST) return fail("build/ cannot be made");
  if (mkdir(out_folder, 0777) && errno != EEXIST) return fail("build/profile/ cannot be made");
  printf(
      "%d of %d needles answered with all %d letters; %d sequences of %d random bytes that repeat; "
      "scored in %.1f seconds\n\n",
      (int)s->samples.n_samples, (int)s->n_prompts, NEEDLE_ASKED, (int)s->n_repeated,
      (int)s->period, s->seconds);
  snprintf(path, sizeof path, "%s/retrieval.json", out_folder);
  if (head_scores_save(&s->samples, path, error)) return fail(error);
  const struct {
    const head_table *table;
    const int64_t *places;
    const char *name, *heads, *title;
  } all[] = {
      {&s->gates, NULL, "gates", "KV head",
       "Gates of DuoAttention's penalty, from attention alone"},
      {&s->projected, NULL, "gates_projected", "KV head",
       "Gates of DuoAttention's penalty, behind the output projection"},
      {&s->stream, NULL, "gates_stream", "KV head",
       "The same over what came into the layer, not over what attention gave"},
      {&s->loss, NULL, "loss", "KV head", "What streaming takes from the layer's output, squared"},
      {&s->lost, NULL, "lost", "query head",
       "Attention beyond sinks and window, where letters are asked for"},
      {&s->retrieval, NULL, "retrieval", "query head",
       "Retrieval score: the share of the letters that the head copies"},
      {&s->echo, NULL, "echo", "query head", "Echo: weight of the same token, periods ago"},
      {&s->induction, NULL, "induction", "query head",
       "Induction: weight of what came after the same token"},
      {&s->sinks, s->sink_at, "sinks", "query head",
       "Sinks: mean weight of the strongest position, and where it is"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (put(all[i].table, all[i].places, all[i].name, all[i].heads, all[i].title)) return -1;
  if (put_places(s)) return -1;
  printf("Token 0 gets more than 0.3 of the first %d tokens' attention in %.0f %% of the heads.\n",
         SCAN_PAPER, 100 * s->sink_share);
  return 0;
}

/* Scores of query heads become scores of KV heads: the largest of a group. */
static int group(const demo_input *in, const scan *s, compare_scores *c) {
  int32_t of = in->model.n_heads / in->model.n_kv_heads;
  c->loss = s->loss;
  c->q = s->q;
  c->q_projected = s->q_projected;
  c->q_stream = s->q_stream;
  if (head_table_group(&s->retrieval, of, &c->retrieval) ||
      head_table_group(&s->echo, of, &c->echo) ||
      head_table_group(&s->induction, of, &c->induction))
    return fail("not enough memory");
  return 0;
}

static int load_measured(const demo_input *in, head_table *measured) {
  char error[DEMO_ERROR], path[DEMO_PATH];
  demo_file(path, in, "heads.tsv");
  if (head_table_load(measured, path, error)) return fail(error);
  if (measured->n_layers == in->model.n_layers && measured->n_kv_heads == in->model.n_kv_heads)
    return 0;
  return fail("heads.tsv is not for this model: make heads");
}

static int run(const demo_input *in, int quick) {
  char error[DEMO_ERROR], picture[64];
  double start = llama_seconds();
  compare_scores c;
  scan s;
  memset(&c, 0, sizeof c);
  memset(&s, 0, sizeof s);
  snprintf(picture, sizeof picture, "%s/choices.svg", out_folder);
  int bad = load_measured(in, &c.measured);
  if (!bad && scan_run(&s, in, quick, error)) bad = fail(error);
  if (!bad)
    bad = put_scores(&s) || group(in, &s, &c) || compare_choices(in, &c, quick, picture) ||
          compare_ways(in, &c, quick);
  if (!bad)
    printf("\nTables and pictures: %s/. %.1f seconds\n", out_folder, llama_seconds() - start);
  head_table_free(&c.measured);
  head_table_free(&c.retrieval);
  head_table_free(&c.echo);
  head_table_free(&c.induction);
  scan_free(&s);
  return bad;
}

int main(int argc, char **argv) {
  demo_input in;
  char error[DEMO_ERROR];
  const char *quick = getenv("QUICK");
  if (demo_open(&in, argc, argv, error)) return fail(error), 1;
  int bad = run(&in, quick && atoi(quick));
  demo_close(&in);
  return bad ? 1 : 0;
}
