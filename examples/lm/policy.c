/* policy.c - see policy.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "policy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 24, MOST_HEADS = 1 << 14 };

/* ---- reading and writing tables ---- */

static int table_error(char *error, const char *path, const char *what, int32_t line) {
  if (line) snprintf(error, POLICY_ERROR, "%s:%d: %s", path, (int)line, what);
  else snprintf(error, POLICY_ERROR, "%s: %s", path, what);
  return -1;
}

char *policy_read_file(const char *path, size_t *n_bytes) {
  FILE *file = fopen(path, "rb");
  char *text = file ? (char *)malloc(MOST_BYTES + 1) : NULL;
  *n_bytes = text ? fread(text, 1, MOST_BYTES, file) : 0;
  if (text && (ferror(file) || !feof(file))) {
    free(text);
    text = NULL;
  }
  if (text) text[*n_bytes] = 0;
  if (file) fclose(file);
  return text;
}

static const char *skip_spaces(const char *p) {
  while (*p == ' ') p++;
  return p;
}

/* Reads one line of numbers into row, at most `room`; returns how many, or -1 with `what` is
   wrong. */
static int32_t read_row(const char *line, double *row, int32_t room, const char **what) {
  int32_t n = 0;
  for (;;) {
    char *end;
    line = skip_spaces(line);
    *what = "not a number";
    if (*line == '\t') return -1; /* strtod would skip it */
    double gate = strtod(line, &end);
    if (end == line || !isfinite(gate)) return -1;
    *what = "too many heads";
    if (n == room) return -1;
    row[n++] = gate < 0 ? 0 : gate > 1 ? 1 : gate;
    line = skip_spaces(end);
    if (!*line) return n;
    *what = "a tab is expected between two numbers";
    if (*line++ != '\t') return -1;
  }
}

static int parse_table(head_table *table, char *text, size_t n_bytes, const char *path,
                       char *error) {
  char *end = text + n_bytes;
  for (char *line = text, *next; line < end; line = next) {
    const char *what;
    char *stop = (char *)memchr(line, '\n', (size_t)(end - line));
    if (!stop) stop = end;
    next = stop + 1;
    if (memchr(line, 0, (size_t)(stop - line))) return table_error(error, path, "not a text", 0);
    if (stop > line && stop[-1] == '\r') stop--;
    *stop = 0;
    int32_t held = table->n_layers * table->n_kv_heads, number = table->n_layers + 1;
    int32_t n = read_row(line, table->gates + held, MOST_HEADS - held, &what);
    if (n < 0) return table_error(error, path, what, number);
    if (table->n_layers && n != table->n_kv_heads)
      return table_error(error, path, "not as many heads as in the lines above", number);
    table->n_kv_heads = n;
    table->n_layers++;
  }
  return table->n_layers ? 0 : table_error(error, path, "no line in it", 0);
}

int head_table_load(head_table *table, const char *path, char error[POLICY_ERROR]) {
  size_t n_bytes;
  memset(table, 0, sizeof *table);
  char *text = policy_read_file(path, &n_bytes);
  if (!text) return table_error(error, path, "cannot be read as a table of heads", 0);
  table->gates = (double *)malloc(MOST_HEADS * sizeof(double));
  int bad = table->gates ? parse_table(table, text, n_bytes, path, error)
                         : table_error(error, path, "not enough memory", 0);
  free(text);
  if (bad) head_table_free(table);
  return bad;
}

int head_table_save(const head_table *table, const char *path, char error[POLICY_ERROR]) {
  FILE *file = fopen(path, "wb");
  if (!file) return table_error(error, path, "cannot be written", 0);
  for (int32_t l = 0; l < table->n_layers; l++)
    for (int32_t g = 0; g < table->n_kv_heads; g++)
      fprintf(file, "%.18e%c", table->gates[l * table->n_kv_heads + g],
              g + 1 < table->n_kv_heads ? '\t' : '\n');
  int bad = ferror(file);
  if (fclose(file) || bad) return table_error(error, path, "cannot be written", 0);
  return 0;
}

void head_table_free(head_table *table) {
  free(table->gates);
  memset(table, 0, sizeof *table);
}

/* ---- config.json ---- */

/* The whole number after "key": in a JSON object, or -1. Keys of strings inside are not expected.
   */
static int64_t json_number(const char *text, const char *key) {
  const char *p = strstr(text, key);
  if (!p) return -1;
  p += strlen(key);
  p += strspn(p, " \t\r\n");
  if (*p++ != ':') return -1;
  p += strspn(p, " \t\r\n");
  size_t digits = strspn(p, "0123456789");
  return digits && digits < 16 ? strtoll(p, NULL, 10) : -1;
}

int head_table_config(const char *table_path, int64_t *sink_size, int64_t *recent_size) {
  static const char name[] = "config.json";
  const char *slash = strrchr(table_path, '/');
  size_t folder = slash ? (size_t)(slash - table_path) + 1 : 0, n_bytes;
  char *path = (char *)malloc(folder + sizeof name);
  if (!path) return -1;
  memcpy(path, table_path, folder);
  memcpy(path + folder, name, sizeof name);
  char *text = policy_read_file(path, &n_bytes);
  free(path);
  if (!text) return -1;
  *sink_size = json_number(text, "\"sink_size\"");
  *recent_size = json_number(text, "\"recent_size\"");
  free(text);
  return *sink_size >= 0 && *recent_size >= 0 ? 0 : -1;
}

/* ---- splitting ---- */

int32_t head_table_split(const head_table *table, double sparsity, lattn_head streaming,
                         lattn_head *heads) {
  int32_t n = table->n_layers * table->n_kv_heads, n_full = 0, full[MOST_HEADS];
  lattn_heads rule;
  memset(&rule, 0, sizeof rule);
  rule.size = sizeof rule;
  rule.rule = sparsity < 0 ? LATTN_HEADS_THRESHOLD : LATTN_HEADS_SPARSITY;
  rule.sparsity = sparsity;
  rule.threshold = 0.5;
  if (n > MOST_HEADS ||
      lattn_heads_choose(&rule, table->n_layers, table->n_kv_heads, table->gates, full))
    return -1;
  for (int32_t i = 0; i < n; i++) {
    memset(&heads[i], 0, sizeof heads[i]);
    if (!full[i]) heads[i] = streaming;
    n_full += full[i];
  }
  return n_full;
}
