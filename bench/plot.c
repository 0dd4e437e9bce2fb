/* plot.c - draws the rows of a sweep: n along, each panel a question.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "bench.h"
#include "chart.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_LEAST = 9, LOG_MOST = 17, N_POINTS = LOG_MOST - LOG_LEAST + 1, MOST_CURVES = 6 };
/* One value of the rows of one kind, or a peer's, over n. */
typedef struct curve {
  const char *label;
  int32_t decode, dim, group, threads; /* of the rows */
  const char *type, *value, *peer;     /* key of the value; it is ours divided by vs_`peer` */
} curve;

typedef struct panel {
  const char *title;
  curve curves[MOST_CURVES];
} panel;

static const panel panels[] = {
    {"causal prefill, f32, 8/8 heads of 128, 2 threads: GFLOP/s",
     {{"longattn", 0, 128, 1, 2, "f32", "gflops", NULL},
      {"two-pass BLAS", 0, 128, 1, 2, "f32", "gflops", "blas"},
      {"ONNX Runtime", 0, 128, 1, 2, "f32", "gflops", "onnx"},
      {"ggml", 0, 128, 1, 2, "f32", "gflops", "ggml"},
      {"peak", 0, 128, 1, 2, "f32", "limit", NULL}}},
    {"flash against the two-pass BLAS form: prefill, f32, 8/8 heads, times as fast",
     {{"dim 64, 2 thr.", 0, 64, 1, 2, "f32", "vs_blas", NULL},
      {"dim 128, 2", 0, 128, 1, 2, "f32", "vs_blas", NULL},
      {"dim 256, 2", 0, 256, 1, 2, "f32", "vs_blas", NULL},
      {"dim 64, 1", 0, 64, 1, 1, "f32", "vs_blas", NULL},
      {"dim 128, 1", 0, 128, 1, 1, "f32", "vs_blas", NULL},
      {"dim 256, 1", 0, 256, 1, 1, "f32", "vs_blas", NULL}}},
    {"decode, 32/8 heads of 128, 2 threads: GB/s of keys and values as stored",
     {{"longattn f16", 1, 128, 4, 2, "f16", "gbs", NULL},
      {"longattn int8", 1, 128, 4, 2, "int8", "gbs", NULL},
      {"longattn int4", 1, 128, 4, 2, "int4", "gbs", NULL},
      {"ggml f16", 1, 128, 4, 2, "f16", "gbs", "ggml"},
      {"ggml q8_0", 1, 128, 4, 2, "int8", "gbs", "ggml"},
      {"ggml q4_0", 1, 128, 4, 2, "int4", "gbs", "ggml"}}},
    {"causal prefill, 8/8 heads of 128, 2 threads: GFLOP/s by storage",
     {{"f32", 0, 128, 1, 2, "f32", "gflops", NULL},
      {"f16", 0, 128, 1, 2, "f16", "gflops", NULL},
      {"bf16", 0, 128, 1, 2, "bf16", "gflops", NULL},
      {"int8", 0, 128, 1, 2, "int8", "gflops", NULL},
      {"int4", 0, 128, 1, 2, "int4", "gflops", NULL}}},
    {"causal prefill, f32, 8/8 heads, 2 threads: fraction of the limit",
     {{"dim 64", 0, 64, 1, 2, "f32", "fraction_of_limit", NULL},
      {"dim 80", 0, 80, 1, 2, "f32", "fraction_of_limit", NULL},
      {"dim 128", 0, 128, 1, 2, "f32", "fraction_of_limit", NULL},
      {"dim 256", 0, 256, 1, 2, "f32", "fraction_of_limit", NULL}}},
    {"decode, f16, 8 KV heads of 128, 2 threads: fraction of the limit",
     {{"8/8 heads", 1, 128, 1, 2, "f16", "fraction_of_limit", NULL},
      {"32/8", 1, 128, 4, 2, "f16", "fraction_of_limit", NULL},
      {"64/8", 1, 128, 8, 2, "f16", "fraction_of_limit", NULL}}},
    {"causal prefill, 8/2 heads of 128: GFLOP/s by type and threads",
     {{"f32, 2", 0, 128, 4, 2, "f32", "gflops", NULL},
      {"f16, 2", 0, 128, 4, 2, "f16", "gflops", NULL},
      {"bf16, 2", 0, 128, 4, 2, "bf16", "gflops", NULL},
      {"f32, 1", 0, 128, 4, 1, "f32", "gflops", NULL},
      {"f16, 1", 0, 128, 4, 1, "f16", "gflops", NULL},
      {"bf16, 1", 0, 128, 4, 1, "bf16", "gflops", NULL}}},
    {"decode, 32/8 heads of 128: GB/s by type and threads",
     {{"f32, 2", 1, 128, 4, 2, "f32", "gbs", NULL},
      {"f16, 2", 1, 128, 4, 2, "f16", "gbs", NULL},
      {"bf16, 2", 1, 128, 4, 2, "bf16", "gbs", NULL},
      {"f32, 1", 1, 128, 4, 1, "f32", "gbs", NULL},
      {"f16, 1", 1, 128, 4, 1, "f16", "gbs", NULL},
      {"bf16, 1", 1, 128, 4, 1, "bf16", "gbs", NULL}}}};

enum { N_PANELS = (int)(sizeof panels / sizeof *panels) };

/* The number or text after a key in a line of JSON; an empty text = not there. */
static const char *field(const char *line, const char *prefix, const char *key) {
  char quoted[64];
  snprintf(quoted, sizeof quoted, "\"%s%s\":", prefix, key);
  const char *at = strstr(line, quoted);
  return at ? at + strlen(quoted) : "";
}

static double number(const char *line, const char *prefix, const char *key) {
  const char *text = field(line, prefix, key);
  char *end;
  double x = strtod(text, &end);
  return end == text ? (double)NAN : x;
}

static int matches(const char *line, const curve *c) {
  int decode = !strncmp(field(line, "", "bench"), "\"sweep_decode\"", 14);
  size_t n = strlen(c->type);
  const char *type = field(line, "", "type");
  return decode == c->decode && number(line, "", "key_dim") == c->dim &&
         number(line, "", "heads") == c->group * number(line, "", "kv_heads") &&
         number(line, "", "threads") == c->threads && *type == '"' &&
         !strncmp(type + 1, c->type, n) && type[n + 1] == '"';
}

/* The curve's values by log2 of n; NaN where there is none. */
static void points(char *rows, const curve *c, double values[N_POINTS]) {
  for (int i = 0; i < N_POINTS; i++) values[i] = (double)NAN;
  for (char *line = rows, *end; *line; line = end) {
    end = line + strcspn(line, "\n");
    char kept = *end;
    *end = 0; /* a line alone, for the time that it is looked at */
    int at = (int)lround(log2(number(line, "", "keys") + 1e-9)) - LOG_LEAST;
    if (end > line && end[-1] == '}' && matches(line, c) && at >= 0 && at < N_POINTS) {
      values[at] = number(line, "", c->value);
      if (c->peer) values[at] /= number(line, "vs_", c->peer);
    }
    *end = kept;
    if (kept) end++;
  }
}

void bench_plot(char *rows, const char *path) {
  static bench_chart charts[N_PANELS];
  for (int i = 0; i < N_PANELS; i++) {
    charts[i].title = panels[i].title;
    charts[i].least = LOG_LEAST;
    charts[i].most = LOG_MOST;
    for (int j = 0; j < MOST_CURVES; j++) {
      bench_curve *c = &charts[i].curves[j];
      c->label = panels[i].curves[j].label;
      c->n = c->label ? N_POINTS : 0;
      for (int p = 0; p < c->n; p++) c->x[p] = LOG_LEAST + p;
      if (c->label) points(rows, &panels[i].curves[j], c->y);
    }
  }
  bench_charts_draw(path, N_PANELS, charts,
                    "n, the number of keys, along. Prefill of n above 8k: the newest 512 rows of a "
                    "prompt of n tokens, for flash and peers alike.");
}
