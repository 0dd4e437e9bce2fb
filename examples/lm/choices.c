/* choices.c - see choices.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "choices.h"

#include "policy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double split_sparsity = 0.75; /* as in the demo */

static int split(lattn_head *heads, const demo_input *in, char *error) {
  char path[DEMO_PATH];
  head_table table;
  demo_file(path, in, "heads.tsv");
  if (head_table_load(&table, path, error)) return -1;
  int fits = table.n_layers == in->model.n_layers && table.n_kv_heads == in->model.n_kv_heads;
  if (fits) head_table_split(&table, split_sparsity, demo_streaming(), heads);
  else snprintf(error, DEMO_ERROR, "heads.tsv is not for this model: make heads");
  head_table_free(&table);
  return fits ? 0 : -1;
}

int choices_make(choice choices[CHOICES], const demo_input *in, char error[DEMO_ERROR]) {
  static const char *const names[CHOICES] = {"full cache", "sinks + window", "head split"};
  size_t n = (size_t)in->model.n_layers * (size_t)in->model.n_kv_heads;
  int bad = 0;
  memset(choices, 0, CHOICES * sizeof *choices);
  for (int i = 0; i < CHOICES; i++) {
    choices[i].name = names[i];
    if (i && !(choices[i].heads = (lattn_head *)calloc(n, sizeof(lattn_head)))) bad = -1;
  }
  if (bad) snprintf(error, DEMO_ERROR, "not enough memory");
  for (size_t i = 0; i < n && !bad; i++) choices[1].heads[i] = demo_streaming();
  if (!bad) bad = split(choices[2].heads, in, error);
  if (bad) choices_free(choices);
  return bad;
}

void choices_free(choice choices[CHOICES]) {
  for (int i = 0; i < CHOICES; i++) {
    free(choices[i].heads);
    choices[i].heads = NULL;
  }
}
