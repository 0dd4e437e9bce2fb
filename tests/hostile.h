/* hostile.h - bad input by table: one mutation patches one field of a valid call, which must then
 * fail as listed and change nothing.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Include after test.h and longattn.h, and after these of the test's own:

       static ... world;                   every array that a call could write, and the objects
       static void world_reset(void);      makes it new
       static lattn_fault fault;           what all configs and execs give as theirs */
#ifndef HOSTILE_H
#define HOSTILE_H

static unsigned seen; /* bit -s of every error status s that came back; notes are in seen_notes */
static unsigned seen_notes;

/* ---- mutations ---- */

/* AS(SHAPE) | AS(VALUE): the statuses that the header allows; 0 = LATTN_OK. */
#define AS(name) (1u << (unsigned)-(LATTN_E_##name))
#define FINE 1u
#define MUTE (1u << 31) /* and no fault is named: the struct that points to it cannot be read */

enum mutation_kind { M_I32, M_I64, M_F32, M_F64, M_POINTER, M_TAIL };

typedef struct mutation {
  const char *name;
  size_t offset;
  int kind;
  unsigned want;
  int64_t integer;
  double number;
  const void *pointer;
} mutation;

#define FIELD(kind, f, text, integer, number, pointer, want) \
  { #f " = " text, offsetof(ARGS, f), kind, want, integer, number, pointer }
#define I32(f, x, want) FIELD(M_I32, f, #x, (int64_t)(x), 0, NULL, want)
#define I64(f, x, want) FIELD(M_I64, f, #x, x, 0, NULL, want)
#define F32(f, x, want) FIELD(M_F32, f, #x, 0, (double)(x), NULL, want)
#define F64(f, x, want) FIELD(M_F64, f, #x, 0, (double)(x), NULL, want)
#define PTR(f, x, want) FIELD(M_POINTER, f, #x, 0, 0, x, want)

/* A struct with a size field, and room for a tail that this version does not know. */
#define SIZED(type)         \
  struct {                  \
    type s;                 \
    unsigned char tail[16]; \
  }
#define SIZES(f, type) SIZES_AS(f, type, AS(SIZE))
#define SIZES_AS(f, type, small)                                                            \
  I32(f.s.size, 0, small), I32(f.s.size, 4, small), I32(f.s.size, sizeof(type) - 1, small), \
      I32(f.s.size, sizeof(type) + 16, FINE),                                               \
      FIELD(M_TAIL, f, "(non-zero tail)", (int64_t)sizeof(type), 0, NULL, AS(FIELD))

#define ANY_TENSOR(f)                                                                              \
  PTR(f.data, NULL, AS(NULL)), I32(f.type, -1, AS(TYPE)), I32(f.type, 4, AS(TYPE)),                \
      I32(f.type, INT32_MAX, AS(TYPE)), I32(f.zero, 1, AS(FIELD)), I64(f.n_tokens, -1, AS(SHAPE)), \
      I64(f.n_tokens, INT64_MIN, AS(SHAPE)), I64(f.n_tokens, INT64_MAX, AS(OVERFLOW)),             \
      I64(f.n_heads, 0, AS(SHAPE)), I64(f.n_heads, -1, AS(SHAPE)),                                 \
      I64(f.n_heads, INT64_MAX, AS(OVERFLOW)), I64(f.dim, -1, AS(SHAPE)),                          \
      I64(f.dim, 0, AS(SHAPE)), I64(f.dim, 3, AS(SHAPE)), I64(f.dim, INT64_MAX, AS(OVERFLOW)),     \
      I64(f.stride_token, -1, AS(STRIDE)), I64(f.stride_token, INT64_MIN, AS(STRIDE)),             \
      I64(f.stride_head, -1, AS(STRIDE))
#define TENSOR(f) ANY_TENSOR(f), I64(f.n_heads, 3, AS(SHAPE))
#define INPUT_ROW(f)                                     \
  TENSOR(f), I64(f.stride_token, LATTN_BROADCAST, FINE), \
      I64(f.stride_head, INT64_MAX - 1, AS(OVERFLOW)), I64(f.stride_head, LATTN_BROADCAST, FINE)
#define INPUT(f)                                                  \
  INPUT_ROW(f), I64(f.stride_token, INT64_MAX - 1, AS(OVERFLOW)), \
      I64(f.stride_token, INT64_MAX / 8, AS(OVERFLOW))
#define OUTPUT(f) TENSOR(f), OUTPUT_STRIDES(f)
#define OUTPUT_STRIDES(f)                                                                  \
  I64(f.stride_token, INT64_MAX - 1, AS(OVERFLOW)), I64(f.stride_token, 1, AS(STRIDE)),    \
      I64(f.stride_token, LATTN_BROADCAST, AS(STRIDE)), I64(f.stride_head, 1, AS(STRIDE)), \
      I64(f.stride_head, LATTN_BROADCAST, AS(STRIDE))
#define EXEC(f)                                                                \
  SIZES_AS(f, lattn_exec, AS(SIZE) | MUTE), I32(f.s.n_threads, -1, AS(SHAPE)), \
      I32(f.s.n_threads, 1025, AS(SHAPE)), I32(f.s.n_threads, INT32_MAX, AS(SHAPE))

/* One function under test. */
typedef struct target {
  const char *name;
  void *args;
  size_t bytes;
  void (*reset)(void); /* makes the valid call, and all objects new */
  lattn_status (*invoke)(void);
  int has_fault;
} target;

static void patch(const target *t, const mutation *m) {
  unsigned char *at = (unsigned char *)t->args + m->offset;
  int32_t i32 = (int32_t)m->integer;
  float f32 = (float)m->number;
  uint32_t larger = (uint32_t)m->integer + 16;
  switch (m->kind) {
    case M_I32:
      memcpy(at, &i32, sizeof i32);
      break;
    case M_I64:
      memcpy(at, &m->integer, sizeof m->integer);
      break;
    case M_F32:
      memcpy(at, &f32, sizeof f32);
      break;
    case M_F64:
      memcpy(at, &m->number, sizeof m->number);
      break;
    case M_POINTER:
      memcpy(at, &m->pointer, sizeof m->pointer);
      break;
    default: /* M_TAIL: at a SIZED struct; its first field is the size */
      memcpy(at, &larger, sizeof larger);
      at[m->integer + 15] = 1;
  }
}

static void note_status(lattn_status status) {
  if (status <= 0) seen |= 1u << (unsigned)-status;
  else seen_notes |= 1u << (unsigned)status;
}

/* The call must fail, or succeed, as wanted; a failure writes nothing but the fault. */
static void expect(const target *t, unsigned want) {
  static unsigned char args_before[1 << 13];
  uint64_t world_before = hash_bytes(HASH_SEED, &world, sizeof world);
  lattn_status status;
  CHECK(t->bytes <= sizeof args_before);
  memcpy(args_before, t->args, t->bytes);
  memset(&fault, 0, sizeof fault);
  status = t->invoke();
  note_status(status);
  if (status > 0 || status < LATTN_E_FORMAT || !(want >> (unsigned)-status & 1))
    FAIL("status %d (%s) is not among the bits %#x", (int)status, lattn_status_text(status), want);
  if (status >= 0) return;
  CHECK(hash_bytes(HASH_SEED, &world, sizeof world) == world_before);
  CHECK(!memcmp(args_before, t->args, t->bytes));
  if (t->has_fault && !(want & MUTE)) {
    CHECK_STATUS(fault.status, status);
    CHECK(fault.argument && fault.argument[0]);
  }
}

static void run_mutations(const target *t, const mutation *list, size_t n) {
  check_case("%s: the valid call", t->name);
  world_reset();
  t->reset();
  CHECK_STATUS(t->invoke(), LATTN_OK);
  for (size_t i = 0; i < n; i++) {
    static unsigned char valid[1 << 13];
    check_case("%s: %s", t->name, list[i].name);
    world_reset();
    t->reset();
    CHECK(t->bytes <= sizeof valid);
    memcpy(valid, t->args, t->bytes);
    patch(t, &list[i]);
    expect(t, list[i].want);
    memcpy(t->args, valid, t->bytes); /* undo the patch only: the objects must still be usable */
    if (!(list[i].want & FINE)) CHECK_STATUS(t->invoke(), LATTN_OK);
  }
}

#define RUN(target, list) run_mutations(&(target), list, sizeof(list) / sizeof *(list))

#define TARGET(variable, text, call, has_fault) \
  static const target variable = {text, &call, sizeof call, call##_reset, call##_invoke, has_fault}
#define VARIANT(variable, text, call, reset, invoke, has_fault) \
  static const target variable = {text, &call, sizeof call, reset, invoke, has_fault}

#endif /* HOSTILE_H */
