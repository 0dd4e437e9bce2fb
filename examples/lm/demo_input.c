/* demo_input.c - see demo.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "demo.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TEXT = 1 << 20 };

void demo_file(char path[DEMO_PATH], const demo_input *in, const char *name) {
  snprintf(path, DEMO_PATH, "%s/%s", in->folder, name);
}

static int read_text(demo_input *in, char *error) {
  char path[DEMO_PATH];
  demo_file(path, in, "text.txt");
  FILE *file = fopen(path, "rb");
  in->text = file ? (char *)malloc(MOST_TEXT) : NULL;
  if (in->text) in->n_bytes = (int64_t)fread(in->text, 1, MOST_TEXT, file);
  if (file) fclose(file);
  if (in->n_bytes >= 2048) return 0;
  snprintf(error, DEMO_ERROR, "%.200s: cannot be read, or is shorter than 2048 bytes", path);
  return -1;
}

int demo_open(demo_input *in, int argc, char **argv, char error[DEMO_ERROR]) {
  char path[DEMO_PATH];
  memset(in, 0, sizeof *in);
  in->folder = argc > 1 ? argv[1] : "examples/lm";
  in->n_threads = argc > 2 ? atoi(argv[2]) : 2;
  if (argc > 3 || in->n_threads < 1 || in->n_threads > 256) {
    snprintf(error, DEMO_ERROR, "usage: %.200s [FOLDER [THREADS]]", argv[0]);
    return -1;
  }
  demo_file(path, in, "model.bin");
  if (llama_model_load(&in->model, path, error)) return -1;
  if (in->model.vocab_size == 256) {
    if (!read_text(in, error)) return 0;
  } else {
    snprintf(error, DEMO_ERROR, "%.200s: the demo wants a model whose tokens are bytes", path);
  }
  demo_close(in);
  return -1;
}

void demo_close(demo_input *in) {
  llama_model_free(&in->model);
  free(in->text);
  in->text = NULL;
}

lattn_head demo_streaming(void) {
  lattn_head head = {.policy = LATTN_HEAD_STREAMING, .sinks = DEMO_SINKS, .window = DEMO_WINDOW};
  return head;
}
