/* heads.c - which KV heads need their whole past? Measured by taking it from one head at a time.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   For each KV head: that head streams (sinks + window), all others are full, and needles are asked
   for. Its score is what the right letters lose in mean log-probability; divided by the largest
   loss, it is a gate in [0, 1], written in DuoAttention's format.

   heads [FOLDER [THREADS]]: reads FOLDER/model.bin and text.txt, writes FOLDER/heads.tsv. */
#include "demo.h"
#include "needle.h"
#include "policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LENGTHS = 2, SAMPLES = 16, SEED = 2 }; /* other needles than those of the demo */
static const int64_t lengths[LENGTHS] = {384, 768};

/* Mean log-probability of the letters asked for, and the share of needles found. */
static int measure(const demo_input *in, const lattn_head *heads, double *log_probability,
                   double *share) {
  static needle_result results[LENGTHS * SAMPLES * NEEDLE_DEPTHS];
  const int32_t n = LENGTHS * SAMPLES * NEEDLE_DEPTHS;
  needle_grid grid = {lengths, LENGTHS, SAMPLES, SEED};
  if (needle_grid_run(&grid, &in->model, heads, in->text, in->n_bytes, in->n_threads, results))
    return -1;
  *log_probability = 0;
  for (int32_t i = 0; i < n; i++) *log_probability += results[i].log_probability / n;
  *share = needle_share(results, n, 1, DEMO_EXACT);
  return 0;
}

static int measure_all(const demo_input *in, head_table *table, lattn_head *heads) {
  int32_t n = table->n_layers * table->n_kv_heads;
  double full, share, largest = 0;
  if (measure(in, NULL, &full, &share)) return -1;
  printf(
      "all heads full: %.3f nats a letter, %.2f of the needles found\n"
      "nats lost (needles found) when one KV head streams, layer by layer:\n",
      -full, share);
  for (int32_t i = 0; i < n; i++) {
    memset(heads, 0, (size_t)n * sizeof *heads);
    heads[i] = demo_streaming();
    if (measure(in, heads, &table->gates[i], &share)) return -1;
    table->gates[i] = full - table->gates[i];
    printf("%s%7.3f (%.2f)%s", i % table->n_kv_heads ? "" : "  ", table->gates[i], share,
           (i + 1) % table->n_kv_heads ? "" : "\n");
    fflush(stdout);
    if (table->gates[i] > largest) largest = table->gates[i];
  }
  for (int32_t i = 0; i < n; i++)
    table->gates[i] = table->gates[i] > 0 ? table->gates[i] / largest : 0;
  return 0;
}

int main(int argc, char **argv) {
  demo_input in;
  char error[DEMO_ERROR], path[DEMO_PATH];
  if (demo_open(&in, argc, argv, error)) return fprintf(stderr, "heads: %s\n", error), 1;
  size_t n = (size_t)in.model.n_layers * (size_t)in.model.n_kv_heads;
  head_table table = {in.model.n_layers, in.model.n_kv_heads, (double *)calloc(n, sizeof(double))};
  lattn_head *heads = (lattn_head *)calloc(n, sizeof *heads);
  int bad = !table.gates || !heads || measure_all(&in, &table, heads);
  demo_file(path, &in, "heads.tsv");
  if (bad) fprintf(stderr, "heads: not enough memory, or the text is too short\n");
  else if ((bad = head_table_save(&table, path, error)) != 0) fprintf(stderr, "heads: %s\n", error);
  else printf("written: %s\n", path);
  head_table_free(&table);
  free(heads);
  demo_close(&in);
  return bad ? 1 : 0;
}
