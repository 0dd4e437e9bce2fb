/* poison.h - what careless headers define, <windows.h> and old system headers before all.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef POISON_H
#define POISON_H

#define min(a, b) (((a) < (b)) ? (a) : (b))
#define max(a, b) (((a) > (b)) ? (a) : (b))
#define near
#define far
#define pascal
#define huge
#define hyper long
#define small char
#define interface struct
#define cdecl
#define NEAR
#define FAR
#define CONST const
#define IN
#define OUT
#define OPTIONAL
#define ERROR 0
#define NO_ERROR 0
#define DELETE 0x10000
#define STRICT 1
#define TRUE 1
#define FALSE 0
#define BOOL int
#define BYTE unsigned char
#define WORD unsigned short
#define DWORD unsigned int
#define VOID void
#define U32 unsigned
#define U64 unsigned long long
#define I 1
#define B0 0
#define PI 3
#define EPS 1
#define N 8
#define M 8
#define PAGE_SIZE 4096
#define BLOCK 1
#define SWAP(a, b)
#define ABS(x) x
#define CLAMP(x, a, b) x
#define ALIGN(x) x
#define UNUSED(x) x
#define LIKELY(x) x
#define log2 poisoned_log2
#define expf poisoned_expf
#define fmaf poisoned_fmaf
#define assert(x) poisoned_assert

#endif /* POISON_H */
