/* cc -O2 -march=native -I.. 05-shared-prefix.c -o 05-shared-prefix && ./05-shared-prefix
 * One system prompt, eight users: the prompt is read once, each user gets a fork of its cache, and
 * all users are decoded together, a call a step. What they share is stored once.
 * Prints: 8 users of a prompt of 2148 tokens: 66 pages (528 KiB), 32 of them shared;
 * without sharing: 288 pages (2304 KiB); every user has the bits of being served alone: yes */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { USERS = 8, PROMPT = 2148, QUESTION = 12, ANSWER = 20, PAGE = 128 };
enum { HEADS = 4, KV_HEADS = 2, DIM = 16, CAPACITY = PROMPT + QUESTION + USERS + ANSWER };
enum { Q_ROW = HEADS * DIM, K_ROW = KV_HEADS * DIM, MOST_ROWS = PROMPT };

/* The rows of one call: those of all users one after another. */
typedef struct rows {
  float q[MOST_ROWS * Q_ROW], k[MOST_ROWS * K_ROW], v[MOST_ROWS * K_ROW], out[MOST_ROWS * Q_ROW];
  int64_t n;
} rows;

static rows now;
static lattn_exec exec;

static void check(lattn_status status, const char *what) {
  if (status == LATTN_OK) return;
  fprintf(stderr, "%s: %s\n", what, lattn_status_text(status));
  exit(1);
}

/* In an engine, the model makes q, k and v of tokens. Here they are random numbers, a function of
   the user and the position; in the prompt, of the position only. */
static void add_rows(rows *r, int user, int64_t first, int64_t n) {
  for (int64_t t = first; t < first + n; t++, r->n++) {
    uint32_t seed = (uint32_t)t * 64 + (t < PROMPT ? 0 : (uint32_t)user + 1);
    for (int i = 0; i < Q_ROW + 2 * K_ROW; i++) {
      seed = seed * 1664525u + 1013904223u;
      float x = (float)(seed >> 8) / 16777216 - 0.5f;
      if (i < Q_ROW) r->q[r->n * Q_ROW + i] = x;
      else if (i < Q_ROW + K_ROW) r->k[r->n * K_ROW + i - Q_ROW] = x;
      else r->v[r->n * K_ROW + i - Q_ROW - K_ROW] = x;
    }
  }
}

/* Takes the rows through the caches of n sequences, in one call. */
static void extend(rows *r, int64_t n, const lattn_sequence *sequences) {
  lattn_tensor Q = {r->q, LATTN_F32, 0, r->n, HEADS, DIM, 0, 0}, O = Q;
  lattn_tensor K = {r->k, LATTN_F32, 0, r->n, KV_HEADS, DIM, 0, 0}, V = K;
  O.data = r->out, V.data = r->v;
  check(lattn_batch_extend(n, sequences, NULL, Q, K, V, O, NULL, &exec), "extend");
}

/* Tokens of step 0 (the question: users ask at different lengths) and of each later step. */
static int64_t step_tokens(int user, int step) { return step ? 1 : QUESTION + user; }

/* The last output of each user after a step. */
static void keep(float answers[USERS][ANSWER][Q_ROW], const rows *r, int user, int step,
                 int64_t last) {
  memcpy(answers[user][step], r->out + last * Q_ROW, sizeof answers[user][step]);
}

/* The prompt once, a fork for each user, then one call a step for all. */
static lattn_pool_stats serve_together(lattn_pool *pool, const lattn_cache_config *config,
                                       float answers[USERS][ANSWER][Q_ROW]) {
  lattn_sequence prompt = {NULL, PROMPT, NULL}, users[USERS];
  lattn_pool_stats stats = {.size = sizeof stats};
  int64_t position[USERS];
  check(lattn_cache_init(&prompt.cache, pool, config), "cache");
  now.n = 0;
  add_rows(&now, 0, 0, PROMPT);
  extend(&now, 1, &prompt);
  for (int u = 0; u < USERS; u++) {
    check(lattn_cache_fork(&users[u].cache, prompt.cache), "fork");
    position[u] = PROMPT;
  }
  for (int step = 0; step < ANSWER; step++) {
    now.n = 0;
    for (int u = 0; u < USERS; u++) {
      users[u].n_tokens = step_tokens(u, step);
      users[u].parents = NULL;
      add_rows(&now, u, position[u], users[u].n_tokens);
      position[u] += users[u].n_tokens;
    }
    extend(&now, USERS, users);
    int64_t end = 0;
    for (int u = 0; u < USERS; u++) keep(answers, &now, u, step, (end += users[u].n_tokens) - 1);
  }
  check(lattn_pool_stats_get(pool, &stats), "stats");
  return stats;
}

/* Each user has a cache of its own, reads the whole prompt and is served alone. */
static lattn_pool_stats serve_alone(lattn_pool *pool, const lattn_cache_config *config,
                                    float answers[USERS][ANSWER][Q_ROW]) {
  lattn_pool_stats stats = {.size = sizeof stats};
  for (int u = 0; u < USERS; u++) {
    lattn_sequence user = {NULL, PROMPT, NULL};
    int64_t position = PROMPT;
    check(lattn_cache_init(&user.cache, pool, config), "cache");
    now.n = 0;
    add_rows(&now, u, 0, PROMPT);
    extend(&now, 1, &user);
    for (int step = 0; step < ANSWER; step++) {
      now.n = 0;
      user.n_tokens = step_tokens(u, step);
      add_rows(&now, u, position, user.n_tokens);
      position += user.n_tokens;
      extend(&now, 1, &user);
      keep(answers, &now, u, step, now.n - 1);
    }
  }
  check(lattn_pool_stats_get(pool, &stats), "stats");
  return stats;
}

int main(void) {
  static float together[USERS][ANSWER][Q_ROW], alone[USERS][ANSWER][Q_ROW];
  lattn_cache_config config = {.size = sizeof config,
                               .n_kv_heads = KV_HEADS,
                               .n_heads = HEADS,
                               .key_dim = DIM,
                               .key_type = LATTN_F16,
                               .value_type = LATTN_F16,
                               .capacity = CAPACITY};
  /* A cache and eight forks need the memory of nine caches, less what the forks share: the full
     pages of the prompt. (Here K and V of a page are f16.) */
  size_t page_bytes = PAGE * 2 * DIM * sizeof(uint16_t);
  size_t shared_bytes = (size_t)(PROMPT / PAGE * KV_HEADS) * page_bytes;
  size_t bytes = lattn_pool_bytes(NULL, &config, 1 + USERS) - USERS * shared_bytes;
  size_t alone_bytes = lattn_pool_bytes(NULL, &config, USERS);
  void *arena = malloc(bytes), *alone_arena = malloc(alone_bytes);
  lattn_pool *pool, *alone_pool;
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_batch_scratch(&config, USERS, MOST_ROWS, 1);
  exec.scratch = malloc(exec.scratch_bytes);
  check(lattn_pool_init(&pool, arena, bytes, NULL), "pool");
  check(lattn_pool_init(&alone_pool, alone_arena, alone_bytes, NULL), "pool");

  lattn_pool_stats shared = serve_together(pool, &config, together);
  lattn_pool_stats own = serve_alone(alone_pool, &config, alone);
  int same = !memcmp(together, alone, sizeof alone);
  printf("%d users of a prompt of %d tokens: %lld pages (%lld KiB), %lld of them shared;\n", USERS,
         PROMPT, (long long)shared.n_pages, (long long)shared.page_bytes / 1024,
         (long long)shared.n_shared);
  printf("without sharing: %lld pages (%lld KiB); ", (long long)own.n_pages,
         (long long)own.page_bytes / 1024);
  printf("every user has the bits of being served alone: %s\n", same ? "yes" : "no");
  free(exec.scratch), free(arena), free(alone_arena);
  return !same;
}
