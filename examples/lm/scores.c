/* scores.c - see scores.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "scores.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LAYERS = 1024, MOST_LAYER_HEADS = 1024 };

/* ---- reading ---- */

/* One head of the file: its scores are values[first ...]. */
typedef struct entry {
  int32_t layer, head;
  size_t first;
} entry;

typedef struct reader {
  const char *text, *at; /* a zero ends the text */
  const char *what;      /* is wrong there, or NULL */
  entry *entries;
  double *values;
  size_t n_entries, n_values;
  size_t n_samples; /* of each head, once one was read */
} reader;

static void skip_blank(reader *r) { r->at += strspn(r->at, " \t\r\n"); }

/* The next character, blanks skipped, if it is c. */
static int accept(reader *r, char c) {
  skip_blank(r);
  if (*r->at != c) return 0;
  r->at++;
  return 1;
}

static int expect(reader *r, char c, const char *what) {
  if (accept(r, c)) return 1;
  r->what = what;
  return 0;
}

static size_t digits(const char *p) { return strspn(p, "0123456789"); }

/* A whole number below `limit`, without signs or leading zeros; or -1. */
static int32_t read_index(reader *r, int32_t limit) {
  size_t n = digits(r->at);
  int32_t x = 0;
  if (!n || n > 6 || (n > 1 && *r->at == '0')) return -1;
  while (n--) x = 10 * x + (*r->at++ - '0');
  return x < limit ? x : -1;
}

/* A number as JSON spells it; strtod alone takes more. */
static int read_number(reader *r, double *x) {
  const char *p = r->at + (*r->at == '-');
  size_t n = digits(p);
  int bad = !n || (n > 1 && *p == '0');
  p += n;
  if (!bad && *p == '.') {
    n = digits(++p);
    bad = !n;
    p += n;
  }
  if (!bad && (*p == 'e' || *p == 'E')) {
    p++;
    p += *p == '+' || *p == '-';
    n = digits(p);
    bad = !n;
    p += n;
  }
  if (!bad) {
    *x = strtod(r->at, NULL);
    bad = !isfinite(*x);
  }
  if (bad) r->what = "a finite number is expected";
  else r->at = p;
  return !bad;
}

/* "layer-head" */
static int read_name(reader *r, entry *e) {
  skip_blank(r);
  const char *start = r->at;
  int good = *r->at == '"';
  r->at += good;
  good = good && (e->layer = read_index(r, MOST_LAYERS)) >= 0 && *r->at == '-';
  r->at += good;
  good = good && (e->head = read_index(r, MOST_LAYER_HEADS)) >= 0 && *r->at == '"';
  r->at += good;
  if (!good) {
    r->at = start;
    r->what = "a name like \"3-14\" is expected: layer and head";
  }
  return good;
}

/* [score, score, ...] */
static int read_samples(reader *r) {
  size_t first = r->n_values;
  if (!expect(r, '[', "a list is expected")) return 0;
  do {
    skip_blank(r);
    if (!read_number(r, &r->values[r->n_values])) return 0;
    r->n_values++;
  } while (accept(r, ','));
  if (!expect(r, ']', "a comma or the end of the list is expected")) return 0;
  size_t n = r->n_values - first;
  if (r->n_entries && n != r->n_samples) {
    r->what = "not as many samples as the heads before";
    return 0;
  }
  r->n_samples = n;
  return 1;
}

static int read_object(reader *r) {
  if (!expect(r, '{', "an object of heads is expected")) return 0;
  do {
    entry *e = &r->entries[r->n_entries];
    if (!read_name(r, e) || !expect(r, ':', "a colon is expected")) return 0;
    e->first = r->n_values;
    if (!read_samples(r)) return 0;
    r->n_entries++;
  } while (accept(r, ','));
  if (!expect(r, '}', "a comma or the end of the object is expected")) return 0;
  skip_blank(r);
  if (*r->at) r->what = "something after the object";
  return !*r->at;
}

/* Puts the heads in order; each must be there once. */
static int arrange(reader *r, head_scores *s) {
  for (size_t i = 0; i < r->n_entries; i++) {
    if (r->entries[i].layer >= s->n_layers) s->n_layers = r->entries[i].layer + 1;
    if (r->entries[i].head >= s->n_heads) s->n_heads = r->entries[i].head + 1;
  }
  size_t n = (size_t)s->n_layers * (size_t)s->n_heads;
  s->n_samples = (int32_t)r->n_samples;
  r->what = "a head is missing, or there twice";
  if (n != r->n_entries) return 0;
  s->scores = (double *)malloc(n * r->n_samples * sizeof(double));
  unsigned char *there = (unsigned char *)calloc(n, 1);
  int good = s->scores && there;
  if (!good) r->what = "not enough memory";
  for (size_t i = 0; i < n && good; i++) {
    const entry *e = &r->entries[i];
    size_t to = (size_t)e->layer * (size_t)s->n_heads + (size_t)e->head;
    good = !there[to];
    there[to] = 1;
    memcpy(s->scores + to * r->n_samples, r->values + e->first, r->n_samples * sizeof(double));
  }
  free(there);
  return good;
}

int head_scores_load(head_scores *scores, const char *path, char error[POLICY_ERROR]) {
  size_t n_bytes;
  reader r;
  memset(scores, 0, sizeof *scores);
  memset(&r, 0, sizeof r);
  char *text = policy_read_file(path, &n_bytes);
  if (!text) return snprintf(error, POLICY_ERROR, "%s: cannot be read as scores", path), -1;
  r.text = r.at = text;
  /* the shortest number and its comma have 2 characters, the shortest head 9 */
  r.values = (double *)malloc((n_bytes / 2 + 1) * sizeof *r.values);
  r.entries = (entry *)malloc((n_bytes / 9 + 1) * sizeof *r.entries);
  if (!r.values || !r.entries) r.what = "not enough memory";
  int good = !r.what && read_object(&r);
  if (good && r.at != text + n_bytes) {
    r.what = "not a text";
    good = 0;
  }
  if (good) good = arrange(&r, scores);
  if (!good) {
    snprintf(error, POLICY_ERROR, "%s: byte %lld: %s", path, (long long)(r.at - text), r.what);
    head_scores_free(scores);
  }
  free(r.values);
  free(r.entries);
  free(text);
  return good ? 0 : -1;
}

void head_scores_free(head_scores *scores) {
  free(scores->scores);
  memset(scores, 0, sizeof *scores);
}

/* ---- writing ---- */

int head_scores_save(const head_scores *scores, const char *path, char error[POLICY_ERROR]) {
  FILE *file = fopen(path, "wb");
  int bad = !file;
  const double *x = scores->scores;
  for (int32_t l = 0; l < scores->n_layers && !bad; l++)
    for (int32_t h = 0; h < scores->n_heads; h++) {
      fprintf(file, "%s\"%d-%d\": ", l || h ? ", " : "{", (int)l, (int)h);
      for (int32_t i = 0; i < scores->n_samples; i++)
        fprintf(file, "%s%.17g", i ? ", " : "[", *x++);
      fprintf(file, "]");
    }
  if (file) {
    fprintf(file, "}");
    bad = ferror(file);
    bad |= fclose(file);
  }
  if (bad) snprintf(error, POLICY_ERROR, "%s: cannot be written", path);
  return bad ? -1 : 0;
}

/* ---- tables ---- */

static int make_table(head_table *table, int32_t n_layers, int32_t n_heads) {
  table->n_layers = n_layers;
  table->n_kv_heads = n_heads;
  table->gates = (double *)calloc((size_t)n_layers * (size_t)n_heads, sizeof(double));
  return table->gates ? 0 : -1;
}

int head_scores_mean(const head_scores *scores, head_table *means) {
  if (make_table(means, scores->n_layers, scores->n_heads)) return -1;
  const double *x = scores->scores;
  for (int32_t i = 0; i < scores->n_layers * scores->n_heads; i++) {
    for (int32_t j = 0; j < scores->n_samples; j++) means->gates[i] += *x++;
    means->gates[i] /= scores->n_samples;
  }
  return 0;
}

int head_table_group(const head_table *heads, int32_t group, head_table *kv_heads) {
  memset(kv_heads, 0, sizeof *kv_heads);
  if (group < 1 || heads->n_kv_heads % group) return -1;
  if (make_table(kv_heads, heads->n_layers, heads->n_kv_heads / group)) return -1;
  return lattn_heads_group(heads->n_layers, heads->n_kv_heads, kv_heads->n_kv_heads,
                           LATTN_GROUP_MAX, heads->gates, kv_heads->gates)
             ? -1
             : 0;
}
