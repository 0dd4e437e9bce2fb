/* sweep.c - does any shape fall behind? n, head dim, group size, type and threads, each over its
 * range, against every peer that can.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SWEEP=1 takes hours, and can be stopped at any time: a cell's row is appended to
   build/bench/sweep.jsonl when it is done, and cells that are there are not measured again. Remove
   the file to begin anew. plot.c draws it. */
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST = 512, MOST = 131072 };
/* A whole prompt up to this length; of a longer one the newest rows: its square takes hours. */
enum { LONGEST_SQUARE = 8192, CHUNK_ROWS = 512 };
enum { LONGEST_ALONE = 32768 }; /* ours alone goes this far, in float32 with a head dim of 128 */
enum { HEADS = 8 };             /* query heads of prefill, KV heads of decode */

static const int32_t dims[] = {64, 80, 128, 256}, groups[] = {1, 4, 8};
static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16, LATTN_I8, LATTN_I4};
enum { N_DIMS = 4, N_GROUPS = 3, N_TYPES = 5 };

static bench_shape prefill_shape(int64_t n, int32_t dim, int32_t group, int32_t type) {
  int64_t rows = n <= LONGEST_SQUARE ? n : CHUNK_ROWS;
  const char *name = rows == n ? "sweep_prefill" : "sweep_chunk";
  return bench_shape_of(name, HEADS, HEADS / group, dim, rows, n, type);
}

static bench_shape decode_shape(int64_t n, int32_t dim, int32_t group, int32_t type) {
  return bench_shape_of("sweep_decode", HEADS * group, HEADS, dim, 1, n, type);
}

/* Everything in a file, with a zero at its end; NULL = nothing there. */
static char *read_all(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) return NULL;
  char *text = NULL;
  if (!fseek(file, 0, SEEK_END)) {
    long n = ftell(file);
    rewind(file);
    text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (text) text[fread(text, 1, (size_t)n, file)] = 0;
  }
  fclose(file);
  return text;
}

/* Whether the cell's row is among those done, whole: the last one may have been cut off. */
static int is_done(const char *done, const bench_shape *shape, int32_t n_threads) {
  char key[512];
  bench_shape_json(key, sizeof key, shape, n_threads);
  for (const char *line = done; line && (line = strstr(line, key)) != NULL; line++) {
    size_t length = strcspn(line, "\n");
    if (line[length] && line[length - 1] == '}') return 1;
  }
  return 0;
}

/* The threads counts of a shape that are not done yet. */
static void cell(const bench_options *options, const char *done, bench_shape shape) {
  bench_options now = *options;
  now.n_thread_counts = 0;
  for (int32_t i = 0; i < options->n_thread_counts; i++)
    if (!is_done(done, &shape, options->thread_counts[i]))
      now.thread_counts[now.n_thread_counts++] = options->thread_counts[i];
  if (!now.n_thread_counts) return;
  shape.quick = 1; /* a third of a second for each, where that is enough for three of ours */
  bench_report_rows(&now, &shape,
                    shape.queries == shape.keys && !bench_shape_is_int(&shape)
                        ? &bench_ours_attention
                        : &bench_ours_cache);
}

void bench_sweep(const bench_options *options) {
  char path[512], picture[512];
  const char *build = getenv("BUILD");
  snprintf(path, sizeof path, "%s/bench/sweep.jsonl", build ? build : "build");
  snprintf(picture, sizeof picture, "%s/bench/sweep.svg", build ? build : "build");
  char *done = read_all(path);
  size_t length = done ? strlen(done) : 0;
  if (!freopen(path, "ab", stdout)) {
    fprintf(stderr, "bench: cannot write %s\n", path);
    free(done);
    return;
  }
  if (length && done[length - 1] != '\n') printf("\n"); /* it was stopped within a row */
  bench_options quiet = *options;
  quiet.json = quiet.quick = 1;
  for (int64_t n = LEAST; n <= MOST; n *= 2) {
    if (n > LONGEST_SQUARE && n <= LONGEST_ALONE) {
      bench_shape s = bench_shape_of("sweep_prefill", HEADS, HEADS, 128, n, n, LATTN_F32);
      s.alone = 1;
      s.goal = 0.86;
      cell(&quiet, done, s);
    }
    for (int i = 0; i < N_DIMS * N_GROUPS * N_TYPES; i++) {
      int32_t dim = dims[i % N_DIMS], group = groups[i / N_DIMS % N_GROUPS];
      int32_t type = types[i / N_DIMS / N_GROUPS];
      cell(&quiet, done, prefill_shape(n, dim, group, type));
      cell(&quiet, done, decode_shape(n, dim, group, type));
      fprintf(stderr, "\rsweep: n = %lld, %d of %d  ", (long long)n, i + 1,
              N_DIMS * N_GROUPS * N_TYPES);
    }
    char *rows = read_all(path);
    if (rows) bench_plot(rows, picture);
    free(rows);
  }
  fprintf(stderr, "\nrows in %s, drawn in %s\n", path, picture);
  free(done);
}
