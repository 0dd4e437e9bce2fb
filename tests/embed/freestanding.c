/* freestanding.c - a program without a C library: its own entry point, exit by system call, and
 * the four functions that a compiler may call whatever the source says. Linked with an object that
 * holds the implementation. Exit status 0: the golden hash.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include <stddef.h>
#include <stdint.h>

void *memcpy(void *to, const void *from, size_t n);
void *memmove(void *to, const void *from, size_t n);
void *memset(void *to, int byte, size_t n);
int memcmp(const void *a, const void *b, size_t n);

/* Volatile: else the compiler makes of each loop a call of the function that it is in. */
void *memcpy(void *to, const void *from, size_t n) {
  volatile unsigned char *t = (volatile unsigned char *)to;
  const unsigned char *f = (const unsigned char *)from;
  for (size_t i = 0; i < n; i++) t[i] = f[i];
  return to;
}

void *memmove(void *to, const void *from, size_t n) {
  volatile unsigned char *t = (volatile unsigned char *)to;
  const unsigned char *f = (const unsigned char *)from;
  if ((uintptr_t)to <= (uintptr_t)from) return memcpy(to, from, n);
  while (n-- > 0) t[n] = f[n];
  return to;
}

void *memset(void *to, int byte, size_t n) {
  volatile unsigned char *t = (volatile unsigned char *)to;
  for (size_t i = 0; i < n; i++) t[i] = (unsigned char)byte;
  return to;
}

int memcmp(const void *a, const void *b, size_t n) {
  const volatile unsigned char *x = (const volatile unsigned char *)a;
  const volatile unsigned char *y = (const volatile unsigned char *)b;
  for (size_t i = 0; i < n; i++)
    if (x[i] != y[i]) return x[i] < y[i] ? -1 : 1;
  return 0;
}

#include "expected.h"
#include "golden.h"

int program(void);
int program(void) { return golden_hash() != GOLDEN_HASH; }

/* The stack comes without a return address: a C function as entry would find it misaligned. */
#if defined(__x86_64__)
__asm__(
    ".globl _start\n_start:\n"
    "  xor %ebp, %ebp\n  and $-16, %rsp\n  call program\n"
    "  mov %eax, %edi\n  mov $60, %eax\n  syscall\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\n  bl program\n  mov x8, #93\n  svc #0\n");
#elif defined(__arm__)
int raise(int signal); /* the C library's, for libgcc's division by zero on Linux */
int raise(int signal) { return signal; }
__asm__(".globl _start\n_start:\n  bl program\n  mov r7, #1\n  svc #0\n");
#else
#error "freestanding.c has no entry point for this machine"
#endif
