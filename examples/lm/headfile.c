/* headfile.c - looks into published files of heads, and makes a table and a picture of them.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   headfile FILE [GROUP [OUT]]: FILE.json has retrieval scores of query heads (scores.h), any other
   file gates of KV heads (policy.h). GROUP query heads share a KV head: 1, or as the model has it.
   Writes OUT.tsv, a number a KV head, the largest of its group, and OUT.svg, a picture of it. */
#include "plot_heads.h"
#include "scores.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STRONGEST = 5, LONGEST = 500 };

static int fail(const char *what) {
  fprintf(stderr, "headfile: %s\n", what);
  return -1;
}

/* Reads a table of either kind. */
static int load(const char *path, head_table *table, char *error) {
  size_t n = strlen(path);
  head_scores scores;
  if (n < 5 || strcmp(path + n - 5, ".json")) return head_table_load(table, path, error);
  if (head_scores_load(&scores, path, error)) return -1;
  printf("%d samples of each head\n", (int)scores.n_samples);
  int bad = head_scores_mean(&scores, table);
  if (bad) snprintf(error, POLICY_ERROR, "not enough memory");
  head_scores_free(&scores);
  return bad;
}

/* How many heads are at least so strong, and which are the strongest. */
static void show(const head_table *t) {
  int32_t n = t->n_layers * t->n_kv_heads, tenth = 0, half = 0, zero = 0, before = -1;
  for (int32_t i = 0; i < n; i++) {
    tenth += t->gates[i] >= 0.1;
    half += t->gates[i] >= 0.5;
    zero += t->gates[i] <= 0;
  }
  printf(
      "%d layers of %d heads: %d of %d (%.1f %%) at least 0.1, %d at least 0.5, %d never above 0\n"
      "the strongest:",
      (int)t->n_layers, (int)t->n_kv_heads, (int)tenth, (int)n, 100.0 * tenth / n, (int)half,
      (int)zero);
  for (int k = 0; k < STRONGEST && k < n; k++) {
    int32_t best = -1; /* the largest of those that come after `before`: equal ones in order */
    for (int32_t i = 0; i < n; i++) {
      int after = before < 0 || t->gates[i] < t->gates[before] ||
                  (t->gates[i] <= t->gates[before] && i > before);
      if (after && (best < 0 || t->gates[i] > t->gates[best])) best = i;
    }
    printf(" %d-%d: %.3f", (int)(best / t->n_kv_heads), (int)(best % t->n_kv_heads),
           t->gates[best]);
    before = best;
  }
  printf("\n");
}

static int write_files(const head_table *t, const char *title, const char *out, char *error) {
  char path[LONGEST + 8];
  plot_scores picture = {title, "KV head", t->gates, NULL, t->n_layers, t->n_kv_heads, 0};
  if (strlen(out) > LONGEST) return fail("the name of the files is too long");
  snprintf(path, sizeof path, "%s.tsv", out);
  if (head_table_save(t, path, error)) return fail(error);
  snprintf(path, sizeof path, "%s.svg", out);
  if (plot_heat(path, &picture)) return fail("the picture cannot be written");
  printf("written: %s.tsv, %s\n", out, path);
  return 0;
}

int main(int argc, char **argv) {
  head_table table, kv_heads;
  char error[POLICY_ERROR];
  int group = argc > 2 ? atoi(argv[2]) : 1;
  if (argc < 2 || argc > 4 || group < 1) return fail("usage: headfile FILE [GROUP [OUT]]"), 1;
  if (load(argv[1], &table, error)) return fail(error), 1;
  show(&table);
  int bad = head_table_group(&table, group, &kv_heads);
  if (bad) fail("the heads cannot be grouped so");
  else if (argc > 3) bad = write_files(&kv_heads, argv[1], argv[3], error);
  head_table_free(&kv_heads);
  head_table_free(&table);
  return bad ? 1 : 0;
}
