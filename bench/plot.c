/* plot.c - draws the rows of a sweep: n along, each panel a question.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_LEAST = 9, LOG_MOST = 17, N_POINTS = LOG_MOST - LOG_LEAST + 1, MOST_CURVES = 6 };
enum {
  COLUMNS = 2,
  WIDTH = 560,
  HEIGHT = 330,
  LEFT = 52,
  RIGHT = 118,
  TOP = 34,
  BOTTOM = 34,
  NOTE = 28
};

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

/* The curve's values by log2 of n; NaN where there is none. Returns the largest. */
static double points(char *rows, const curve *c, double values[N_POINTS]) {
  double most = 0;
  for (int i = 0; i < N_POINTS; i++) values[i] = (double)NAN;
  for (char *line = rows, *end; *line; line = end) {
    end = line + strcspn(line, "\n");
    char kept = *end;
    *end = 0; /* a line alone, for the time that it is looked at */
    int at = (int)lround(log2(number(line, "", "keys") + 1e-9)) - LOG_LEAST;
    if (end > line && end[-1] == '}' && matches(line, c) && at >= 0 && at < N_POINTS) {
      values[at] = number(line, "", c->value);
      if (c->peer) values[at] /= number(line, "vs_", c->peer);
      if (values[at] > most) most = values[at];
    }
    *end = kept;
    if (kept) end++;
  }
  return most;
}

/* The least round number that reaches `most` in five steps. */
static double step_of(double most) {
  static const double round[] = {1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8};
  double power = pow(10, floor(log10(most / 5)));
  for (int i = 0; i < 10; i++)
    if (round[i] * power * 5 >= most) return round[i] * power;
  return 10 * power;
}

static void draw_axes(FILE *f, const panel *p, double step) {
  const int right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  fprintf(f, "<text x='%d' y='18' font-weight='bold'>%s</text>\n", LEFT - 40, p->title);
  for (int i = 0; i <= 5; i++) {
    double y = bottom - (bottom - TOP) * i / 5.0;
    fprintf(f, "<path d='M%d %.1fH%d' stroke='#ddd'/>\n", LEFT, y, right);
    fprintf(f, "<text x='%d' y='%.1f' text-anchor='end'>%g</text>\n", LEFT - 6, y + 4, step * i);
  }
  for (int i = 0; i < N_POINTS; i++) {
    double x = LEFT + (right - LEFT) * i / (double)(N_POINTS - 1);
    long n = 1L << (LOG_LEAST + i);
    fprintf(f, "<path d='M%.1f %dV%d' stroke='#eee'/>\n", x, TOP, bottom);
    fprintf(f, "<text x='%.1f' y='%d' text-anchor='middle'>%ld%s</text>\n", x, bottom + 16,
            n < 1024 ? n : n / 1024, n < 1024 ? "" : "k");
  }
}

static void draw_curve(FILE *f, const curve *c, int at, const double values[N_POINTS], double top) {
  static const char *const colours[MOST_CURVES] = {"#1b6ca8", "#d1495b", "#3a7d44",
                                                   "#e09f3e", "#7d4e9e", "#666666"};
  const int right = WIDTH - RIGHT, bottom = HEIGHT - BOTTOM;
  int open = 0;
  fprintf(f, "<g stroke='%s' fill='none' stroke-width='2'><path d='", colours[at]);
  for (int i = 0; i < N_POINTS; i++) {
    double x = LEFT + (right - LEFT) * i / (double)(N_POINTS - 1);
    if (isnan(values[i])) open = 0;
    else fprintf(f, "%c%.1f %.1f", open ? 'L' : 'M', x, bottom - (bottom - TOP) * values[i] / top);
    if (!isnan(values[i])) open = 1;
  }
  fprintf(f, "'/>");
  for (int i = 0; i < N_POINTS; i++)
    if (!isnan(values[i]))
      fprintf(f, "<circle cx='%.1f' cy='%.1f' r='2' fill='%s'/>",
              LEFT + (right - LEFT) * i / (double)(N_POINTS - 1),
              bottom - (bottom - TOP) * values[i] / top, colours[at]);
  fprintf(f, "<path d='M%d %dh14'/></g>\n", right + 8, TOP + 8 + 18 * at);
  fprintf(f, "<text x='%d' y='%d'>%s</text>\n", right + 26, TOP + 12 + 18 * at, c->label);
}

void bench_plot(char *rows, const char *path) {
  FILE *f = fopen(path, "w");
  if (!f) return;
  fprintf(f, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' ", COLUMNS * WIDTH,
          (N_PANELS + COLUMNS - 1) / COLUMNS * HEIGHT + NOTE);
  fprintf(f,
          "font-family='sans-serif' font-size='12'>\n<rect width='100%%' height='100%%' "
          "fill='white'/>\n");
  for (int i = 0; i < N_PANELS; i++) {
    const panel *p = &panels[i];
    double values[MOST_CURVES][N_POINTS], most = 0;
    for (int j = 0; j < MOST_CURVES && p->curves[j].label; j++)
      most = fmax(most, points(rows, &p->curves[j], values[j]));
    double step = step_of(most > 0 ? most : 1);
    fprintf(f, "<g transform='translate(%d %d)'>\n", i % COLUMNS * WIDTH, i / COLUMNS * HEIGHT);
    draw_axes(f, p, step);
    for (int j = 0; j < MOST_CURVES && p->curves[j].label; j++)
      draw_curve(f, &p->curves[j], j, values[j], 5 * step);
    fprintf(f, "</g>\n");
  }
  fprintf(f,
          "<text x='%d' y='%d'>n, the number of keys, along. Prefill of n above 8k: the newest 512 "
          "rows of a prompt of n tokens, for flash and peers alike.</text>\n</svg>\n",
          LEFT - 40, (N_PANELS + COLUMNS - 1) / COLUMNS * HEIGHT + NOTE / 2);
  fclose(f);
}
