/* fuzz_replay.c - the corpus of the fuzz targets (tests/fuzz), each file as it is and with some
 * bytes changed, for compilers without libFuzzer.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   fuzz_replay FILE...: only these files, as they are (what the fuzzer found; their names say which
   target: a folder "load" or "ops").

   fuzz_replay --make: writes the files of the corpus that are not the fuzzer's. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include <dirent.h>

#include "fuzz/load.c"
#include "fuzz/ops.c"

enum { REPLAY_MOST = 4096 };

typedef struct target {
  const char *folder;
  void (*run)(const uint8_t *bytes, size_t n);
} target;

static const target targets[] = {{"tests/fuzz/corpus/load", fuzz_load},
                                 {"tests/fuzz/corpus/ops", fuzz_ops}};

static size_t file_get(const char *path, uint8_t *bytes) {
  FILE *file = fopen(path, "rb");
  size_t n = file ? fread(bytes, 1, REPLAY_MOST, file) : 0;
  if (!file) FAIL("cannot open %s", path);
  else fclose(file);
  return n;
}

/* Bytes changed, left out or doubled, as a fuzzer would. */
static size_t mutate(uint8_t *bytes, size_t n, test_rng *r) {
  for (int64_t i = rng_range(r, 1, 4); i > 0 && n; i--) {
    size_t at = (size_t)rng_below(r, (int64_t)n);
    int64_t how = rng_below(r, 8);
    if (how < 3) bytes[at] ^= (uint8_t)(1 << rng_below(r, 8));
    else if (how < 5) bytes[at] = (uint8_t)rng_below(r, 256);
    else if (how == 5) bytes[at] = (uint8_t)(bytes[at] + rng_range(r, -2, 2));
    else if (how == 6) memmove(bytes + at, bytes + at + 1, n - at - 1), n--;
    else if (n < REPLAY_MOST) memmove(bytes + at + 1, bytes + at, n - at), n++;
  }
  return n;
}

static void replay(const target *t, const char *path, int64_t n_mutants) {
  uint8_t bytes[REPLAY_MOST], mutant[REPLAY_MOST];
  test_rng r = rng_seed(n_mutants ? 1 : 0);
  size_t n = file_get(path, bytes);
  check_case("%s", path);
  t->run(bytes, n);
  if (strstr(path, "/config-")) CHECK_STATUS(load_status, LATTN_OK); /* else: --make them again */
  for (int64_t i = 0; i < n_mutants; i++) {
    size_t size;
    memcpy(mutant, bytes, n);
    size = mutate(mutant, n, &r);
    check_case("%s, mutant %" PRId64, path, i);
    t->run(mutant, size);
  }
}

static int by_name(const void *a, const void *b) {
  return strcmp((const char *)a, (const char *)b);
}

/* All files of the target's folder, in the order of their names. */
static void replay_folder(const target *t, int64_t n_mutants) {
  enum { NAMES = 400, LENGTH = 120 };
  static char names[NAMES][LENGTH];
  DIR *folder = opendir(t->folder);
  struct dirent *entry;
  size_t n = 0;
  check_case("%s", t->folder);
  while (folder && n < NAMES && (entry = readdir(folder)))
    if (entry->d_name[0] != '.')
      n += (size_t)(snprintf(names[n], LENGTH, "%s/%s", t->folder, entry->d_name) < LENGTH);
  if (folder) closedir(folder);
  CHECK(n > 5);
  qsort(names, n, LENGTH, by_name);
  for (size_t i = 0; i < n; i++) replay(t, names[i], n_mutants);
}

/* ---- the files that are made, for a fuzzer to begin with ---- */

static void file_put(const char *name, const uint8_t *bytes, size_t n) {
  FILE *file = fopen(name, "wb");
  if (!file || fwrite(bytes, 1, n, file) != n || fclose(file)) exit(1);
}

/* Saved caches of every config: empty; a few tokens; with a hole or, where there are no holes, a
   mark; truncated; where they are short, more than a block. */
static void make_saved(int kind, int what) {
  static uint8_t arena[LOAD_ARENA], memory[FUZZ_FILE];
  static const int64_t lengths[] = {0, 1, 9, 12, 11, 140};
  int64_t left = lengths[what];
  lattn_pool *pool = NULL;
  lattn_cache *cache = NULL;
  char name[80];
  fuzz_file f;
  fuzz_config_make(&load_configs[kind], kind);
  MUST_OK(lattn_pool_init(&pool, arena, sizeof arena, NULL));
  MUST_OK(lattn_cache_init(&cache, pool, &load_configs[kind].config));
  MUST(load_extend(cache, kind, left) >= 0);
  if (what == 3) (void)lattn_cache_remove(cache, 5, 7);
  if (what == 4) (void)lattn_cache_truncate(cache, 8);
  if (what == 5) (void)lattn_cache_remove(cache, 12, 132);
  if (what % 2 && kind >= FUZZ_CHOSEN) {
    MUST_OK(lattn_cache_mark(cache, LATTN_PROMPT_END, NULL));
    MUST(load_extend(cache, kind, 2) >= 0);
  }
  f = fuzz_save(cache, memory + 1);
  memory[0] = (uint8_t)((kind & 3) | (kind & 4) << 3 | (what & 1) << 2 | (what ? 8 : 0) |
                        (what > 2 ? 16 : 0));
  snprintf(name, sizeof name, "%s/config-%d-%s", targets[0].folder, kind,
           (const char *const[]){"empty", "one", "few", "hole", "truncated", "blocks"}[what]);
  if (f.n < 1000) file_put(name, memory, f.n + 1);
  MUST_OK(lattn_cache_release(cache));
}

/* Each operation, many times, with random arguments, after some tokens; and mixtures of all. */
static void make_operations(int what) {
  uint8_t bytes[900];
  char name[80];
  size_t n = what < 18 ? 200 : 900;
  test_rng r = rng_seed((uint64_t)what + 3);
  for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)rng_below(&r, 256);
  for (size_t i = 0; i + 6 < n && what < 18; i += 7)
    bytes[i] = (uint8_t)(i % 2 ? 0 : what + 18 * (int)rng_below(&r, 4));
  snprintf(name, sizeof name, "%s/operation-%02d", targets[1].folder, what);
  file_put(name, bytes, n);
}

int main(int argc, char **argv) {
  const size_t n_targets = sizeof targets / sizeof *targets;
  if (argc == 2 && !strcmp(argv[1], "--make")) {
    for (int i = 0; i < 6 * FUZZ_CONFIGS; i++) make_saved(i / 6, i % 6);
    for (int i = 0; i < 24; i++) make_operations(i);
    return test_summary();
  }
  for (int i = 1; i < argc; i++) replay(&targets[!strstr(argv[i], "load")], argv[i], 0);
  for (size_t i = 0; i < n_targets && argc == 1; i++) replay_folder(&targets[i], test_count(60));
  return test_summary();
}
