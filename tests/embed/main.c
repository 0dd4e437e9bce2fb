/* main.c - prints the hashes of up to three units that differ from the golden one; nothing if none
 * does. -DSECOND, -DTHIRD: there are so many units.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include <stdint.h>
#include <stdio.h>

#include "expected.h"

uint64_t golden_first(void);
uint64_t golden_second(void);
uint64_t golden_third(void);

static int wrong(const char *name, uint64_t hash) {
  if (hash == GOLDEN_HASH) return 0;
  printf("%s unit: hash 0x%llx, expected 0x%llx\n", name, (unsigned long long)hash,
         (unsigned long long)GOLDEN_HASH);
  return 1;
}

int main(void) {
  int n = wrong("first", golden_first());
#ifdef SECOND
  n += wrong("second", golden_second());
#endif
#ifdef THIRD
  n += wrong("third", golden_third());
#endif
  return n != 0;
}
