/* demo.h - what the demo and the measuring of heads share: the sizes, the input.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef DEMO_H
#define DEMO_H

#include "llama.h"

enum {
  DEMO_SINKS = 4,    /* streaming heads keep the first so many tokens ... */
  DEMO_WINDOW = 124, /* ... and the newest so many, the own one included: 128 in all */
  DEMO_EXACT = 4,    /* letters in a row that must be right for a needle to count as found */
  DEMO_ERROR = 256,
  DEMO_PATH = 512
};

typedef struct demo_input {
  const char *folder; /* with model.bin, text.txt and heads.tsv */
  int32_t n_threads;
  llama_model model;
  char *text;
  int64_t n_bytes;
} demo_input;

/* Reads model and text of a byte-level model; arguments: [FOLDER [THREADS]]. 0, or -1 with a text.
   */
int demo_open(demo_input *in, int argc, char **argv, char error[DEMO_ERROR]);
void demo_close(demo_input *in);
void demo_file(char path[DEMO_PATH], const demo_input *in, const char *name);

/* The policy of streaming heads: sinks + window. */
lattn_head demo_streaming(void);

#endif /* DEMO_H */
