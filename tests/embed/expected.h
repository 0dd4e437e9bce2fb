/* expected.h - what golden_hash of golden.h gives, on every machine.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#define GOLDEN_HASH 0xdbf0daa93d25e894u
