/* expected.h - what golden_hash of golden.h gives, on every machine.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#define GOLDEN_HASH 0x352a0984e69c7a80u
