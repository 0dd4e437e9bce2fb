/* choices.h - the ways to keep the cache that speculate and resume go through.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef CHOICES_H
#define CHOICES_H

#include "demo.h"

enum { CHOICES = 3 };

typedef struct choice {
  const char *name;
  lattn_head *heads; /* [n_layers][n_kv_heads], or NULL = all full */
} choice;

/* All heads full; sinks + window; the measured split of FOLDER/heads.tsv, where three of four heads
   stream. 0, or -1 with a text in error and nothing to free. */
int choices_make(choice choices[CHOICES], const demo_input *in, char error[DEMO_ERROR]);
void choices_free(choice choices[CHOICES]);

#endif /* CHOICES_H */
