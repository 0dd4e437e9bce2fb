/* save.c - how fast is a cache saved and loaded? To memory and to a file in TMPDIR, against a plain
 * copy of the same bytes, in the same pieces.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "caches.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 16384 }; /* the most that save and load give or ask at a time */

typedef struct saving {
  bench_caches c;
  lattn_cache *cache, *loaded;
  bench_buffer image, copy; /* what was saved; what was copied */
  size_t bytes;             /* of the image */
  char *at;                 /* memory: the next byte */
  int file;                 /* -1: there is none */
} saving;

/* ---- the caller's side of save and load ---- */

static int32_t to_memory(void *user, const void *data, size_t bytes) {
  saving *s = user;
  memcpy(s->at, data, bytes);
  s->at += bytes;
  return 0;
}

static int32_t from_memory(void *user, void *data, size_t bytes) {
  saving *s = user;
  memcpy(data, s->at, bytes);
  s->at += bytes;
  return 0;
}

static int32_t to_file(void *user, const void *data, size_t bytes) {
  saving *s = user;
  return write(s->file, data, bytes) != (ssize_t)bytes;
}

static int32_t from_file(void *user, void *data, size_t bytes) {
  saving *s = user;
  return read(s->file, data, bytes) != (ssize_t)bytes;
}

/* Ours and the plain copy start at the same place: the first byte, of a file too. */
static void rewind_all(saving *s, void *memory) {
  s->at = memory;
  if (s->file >= 0) (void)lseek(s->file, 0, SEEK_SET);
}

/* ---- what is timed ---- */

static double save(saving *s, lattn_write_function write_some) {
  rewind_all(s, s->image.data);
  double start = bench_seconds();
  lattn_status status = lattn_cache_save(s->cache, write_some, s, NULL);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_save", status) ? -1 : seconds;
}

static double load(saving *s, lattn_read_function read_some) {
  if (bench_failed("lattn_cache_clear", lattn_cache_clear(s->loaded))) return -1;
  rewind_all(s, s->image.data);
  double start = bench_seconds();
  lattn_status status = lattn_cache_load(s->loaded, read_some, s);
  double seconds = bench_seconds() - start;
  return bench_failed("lattn_cache_load", status) ? -1 : seconds;
}

static double write_plain(saving *s, lattn_write_function write_some) {
  const char *data = s->image.data;
  int32_t bad = 0;
  rewind_all(s, s->copy.data);
  double start = bench_seconds();
  for (size_t i = 0; i < s->bytes; i += PIECE)
    bad |= write_some(s, data + i, s->bytes - i < PIECE ? s->bytes - i : PIECE);
  double seconds = bench_seconds() - start;
  return bad ? -1 : seconds;
}

static double read_plain(saving *s, lattn_read_function read_some) {
  char *data = s->copy.data;
  int32_t bad = 0;
  rewind_all(s, s->image.data);
  double start = bench_seconds();
  for (size_t i = 0; i < s->bytes; i += PIECE)
    bad |= read_some(s, data + i, s->bytes - i < PIECE ? s->bytes - i : PIECE);
  double seconds = bench_seconds() - start;
  return bad ? -1 : seconds;
}

static double save_memory(void *s, int32_t n) { return (void)n, save(s, to_memory); }
static double copy_out(void *s, int32_t n) { return (void)n, write_plain(s, to_memory); }
static double save_file(void *s, int32_t n) { return (void)n, save(s, to_file); }
static double write_file(void *s, int32_t n) { return (void)n, write_plain(s, to_file); }
static double load_memory(void *s, int32_t n) { return (void)n, load(s, from_memory); }
static double copy_in(void *s, int32_t n) { return (void)n, read_plain(s, from_memory); }
static double load_file(void *s, int32_t n) { return (void)n, load(s, from_file); }
static double read_file(void *s, int32_t n) { return (void)n, read_plain(s, from_file); }

/* What was loaded saves as the bytes that it was loaded from. */
static int same(void *state) {
  saving *s = state;
  memset(s->copy.data, 0, s->copy.bytes);
  s->at = s->copy.data;
  lattn_status status = lattn_cache_save(s->loaded, to_memory, s, NULL);
  return !bench_failed("lattn_cache_save", status) &&
         !memcmp(s->copy.data, s->image.data, s->bytes);
}

/* ---- making it ---- */

/* A file without a name, where this machine keeps such; nothing stays behind. */
static int file_open(void) {
  FILE *named = tmpfile();
  int file = named ? dup(fileno(named)) : -1;
  if (named) fclose(named);
  return file;
}

static int saving_make(saving *s, const bench_shape *shape) {
  uint64_t bytes = 0;
  s->c = bench_caches_make(shape, 0);
  if (!bench_caches_pool(&s->c, lattn_pool_bytes(NULL, &s->c.config, 2), 1)) return 0;
  s->cache = bench_caches_new(&s->c);
  s->loaded = bench_caches_new(&s->c);
  if (!s->cache || !s->loaded || !bench_caches_append(&s->c, s->cache, shape->keys)) return 0;
  if (bench_failed("lattn_cache_save", lattn_cache_save(s->cache, NULL, NULL, &bytes))) return 0;
  s->bytes = (size_t)bytes;
  s->image = bench_buffer_make(s->bytes);
  s->copy = bench_buffer_make(s->bytes);
  s->file = file_open();
  if (save_memory(s, 1) < 0) return 0;
  return s->file < 0 || write_file(s, 1) >= 0; /* for a load without a save before */
}

static void saving_free(saving *s) {
  if (s->file >= 0) close(s->file);
  bench_buffer_free(&s->image);
  bench_buffer_free(&s->copy);
  bench_caches_free(&s->c);
}

static void report(const bench_options *options, bench_shape shape) {
  static const char *const names[] = {"save_memory", "load_memory", "save_file", "load_file"};
  bench_pair pairs[] = {{"copy", save_memory, copy_out, NULL, 0, 1, 0, NULL},
                        {"copy", load_memory, copy_in, same, 0, 1, 0, NULL},
                        {"copy", save_file, write_file, NULL, 0, 1, 0, NULL},
                        {"copy", load_file, read_file, same, 0, 1, 0, NULL}};
  saving s = {0};
  s.file = -1;
  int made = saving_make(&s, &shape);
  for (int i = 0; i < 4; i++) {
    shape.bench = names[i];
    pairs[i].bytes = (double)s.bytes;
    if (!bench_wanted(options, shape.bench, shape.quick)) continue;
    if (!made || (i >= 2 && s.file < 0)) bench_report_failed(&shape);
    else bench_report_pair(options, &shape, &pairs[i], &s);
  }
  saving_free(&s);
}

void bench_save(const bench_options *options) {
  bench_shape s = bench_shape_of("save_load", 32, 8, 128, 0, 32768, LATTN_F16);
  s.quick = 1;
  if (!options->only || strstr("save_memory load_memory save_file load_file", options->only))
    report(options, s);
}
