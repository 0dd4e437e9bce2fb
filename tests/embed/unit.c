/* unit.c - one translation unit with an implementation, and a function GOLDEN that computes the
 * hash with it: `cc -DGOLDEN=name [-DLONGATTN_PREFIX=prefix_] -c unit.c`.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef LATTN_ELSEWHERE /* defined: the implementation is in a library */
#define LONGATTN_IMPLEMENTATION
#endif
#include "longattn.h"

#include "golden.h"

uint64_t GOLDEN(void);
uint64_t GOLDEN(void) { return golden_hash(); }
