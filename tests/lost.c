/* lost.c - what heads that were chosen at marks say that they lost, against a full cache of the
 * same tokens and against the maths. (Of streaming and compensated heads: compensated.c.)
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   With l the log-sum-exp of a row over all tokens and l' over those kept, it lost 1 - exp(l' - l).
   lost_bound is no less, lost_estimate is n e / (n e + exp l'), e = exp(score of the mean of the n
   keys dropped).

   BOUNDS. Keys are stored as both caches have them, so l and l' are off by what their sums and
   scores are: scores are below 20 (of 32 dims, normal, scaled), off by 60 u * 20 < 8e-5 (u =
   2^-24), with a rotation 16 u * 20 more; each l by as much and 2e-6, the share by a quarter of
   twice that: 1e-4 in all. Integer keys have queries in integers too, the mean's has not: half a
   step of 127 of a query moves a score by at most 1.2e-2 of |q| |k| / sqrt(dk) < 20, and a share by
   half of that: 0.12. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"
#include "ref_cache.h"

enum { HEADS = 4, KV_HEADS = 2, KEY_DIM = 32, VALUE_DIM = 16, ROWS = 6, MOST = 700 };

typedef struct answer {
  float out[MOST * HEADS * VALUE_DIM], lse[MOST * HEADS];
  float bound[MOST * HEADS], estimate[MOST * HEADS];
} answer;

static void extend(lattn_cache *cache, const setup *s, const token_list *t, int64_t first,
                   int64_t n, answer *a) {
  lattn_call c;
  memset(&c, 0, sizeof c);
  c.size = sizeof c;
  c.lost_bound = a->bound;
  c.lost_estimate = a->estimate;
  CHECK_STATUS(lattn_cache_extend(cache, &c, tokens_q(t, s, first, n), tokens_k(t, s, first, n),
                                  tokens_v(t, s, first, n),
                                  tensor_of(a->out, LATTN_F32, n, HEADS, VALUE_DIM), a->lse, NULL),
               LATTN_OK);
}

/* The mean of the keys that KV head g no longer has, which the full cache has, as stored; returns
   their number. */
static int64_t mean_of_dropped(const lattn_cache *cache, const lattn_cache *full, int32_t g,
                               int64_t n, double *mean) {
  int64_t count = 0;
  for (int d = 0; d < KEY_DIM; d++) mean[d] = 0;
  for (int64_t j = 0; j < n; j++) {
    float k[KEY_DIM];
    lattn_tensor to = tensor_of(k, LATTN_F32, 1, 1, KEY_DIM), none;
    memset(&none, 0, sizeof none);
    if (lattn_cache_read(cache, g, j, to, none, 0) == LATTN_OK) continue;
    CHECK_STATUS(lattn_cache_read(full, g, j, to, none, 0), LATTN_OK);
    for (int d = 0; d < KEY_DIM; d++) mean[d] += (double)k[d];
    count++;
  }
  for (int d = 0; d < KEY_DIM; d++) mean[d] /= (double)count;
  return count;
}

static void check_rows(const setup *s, const token_list *t, const lattn_cache *cache,
                       const lattn_cache *full, int64_t first, const answer *a, const answer *all) {
  double error = s->config.key_type > LATTN_BF16 ? 0.12 : 1e-4;
  for (int64_t h = 0; h < HEADS; h++) {
    double mean[KEY_DIM];
    int32_t g = (int32_t)(h / (HEADS / KV_HEADS));
    int64_t n = mean_of_dropped(cache, full, g, first, mean);
    for (int64_t row = 0; row < ROWS; row++) {
      int64_t i = row * HEADS + h;
      double q[KEY_DIM], score = 0, lost = 1 - exp((double)a->lse[i] - (double)all->lse[i]), x;
      for (int d = 0; d < KEY_DIM; d++)
        q[d] = (double)t->q[(first + row) * t->q_row + h * KEY_DIM + d];
      if (s->config.rotary) ref_rotate(q, s->config.rotary, first + row, NULL);
      for (int d = 0; d < KEY_DIM; d++) score += q[d] * mean[d] / sqrt((double)KEY_DIM);
      x = log((double)n) + score - (double)a->lse[i];
      if (s->config.sink_logits) /* which is not in the estimate */
        x -= log1p(-exp((double)s->sinks[h] - (double)a->lse[i]));
      CHECK((double)a->bound[i] <= 1 && (double)a->bound[i] >= lost - 1e-4);
      CHECK(n ? fabs((double)a->estimate[i] - 1 / (1 + exp(-x))) < error : a->estimate[i] == 0);
      CHECK(n || a->bound[i] == 0);
    }
  }
}

typedef struct rig {
  setup s, f; /* chosen heads; full ones */
  token_list t;
  void *arena;
  lattn_cache *cache, *full;
} rig;

static void rig_open(rig *r, test_rng *rng) {
  static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16, LATTN_I8, LATTN_I4};
  lattn_pool *pool = NULL;
  size_t bytes;
  memset(r, 0, sizeof *r);
  setup_init(&r->s, HEADS, KV_HEADS, KEY_DIM, VALUE_DIM, MOST);
  r->s.config.key_type = types[rng_below(rng, 5)];
  if (rng_chance(rng, 50)) setup_rotate(&r->s, LATTN_ROTARY_HALF_SPLIT, 0, 16);
  if (rng_chance(rng, 30)) setup_sinks(&r->s);
  setup_copy(&r->f, &r->s);
  for (int g = 0; g < KV_HEADS; g++) {
    lattn_head *h = &r->s.heads[g];
    h->policy = rng_chance(rng, 50) ? LATTN_HEAD_SNAP : LATTN_HEAD_HEAVY;
    h->budget = rng_range(rng, 30, 500);
    h->window = rng_range(rng, 1, 29);
    h->flags = LATTN_HEAD_LOST;
    if (h->policy == LATTN_HEAD_SNAP && rng_chance(rng, 30)) h->flags |= LATTN_SNAP_SHARED;
  }
  bytes = lattn_pool_bytes(NULL, &r->s.config, 3) + lattn_pool_bytes(NULL, &r->f.config, 1);
  r->arena = ref_memory((int64_t)bytes, 1);
  r->t = tokens_new(&r->s, MOST);
  tokens_make(&r->t, MOST, rng);
  CHECK_STATUS(lattn_pool_init(&pool, r->arena, bytes, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&r->cache, pool, &r->s.config), LATTN_OK);
  CHECK_STATUS(lattn_cache_init(&r->full, pool, &r->f.config), LATTN_OK);
}

static void rig_close(rig *r) {
  CHECK_STATUS(lattn_cache_release(r->cache), LATTN_OK);
  CHECK_STATUS(lattn_cache_release(r->full), LATTN_OK);
  tokens_free(&r->t);
  free(r->arena);
}

static int same(const answer *a, const answer *b) {
  int equal = 1;
  for (int i = 0; i < ROWS * HEADS; i++)
    equal &= same_f32(a->bound[i], b->bound[i]) && same_f32(a->estimate[i], b->estimate[i]);
  return equal;
}

/* A mark at `first` tokens, and rows after it: by the cache, a fork of it, and what was saved. */
static void check_mark(rig *r, int64_t first, memory_file *file) {
  static answer a, b, all;
  lattn_cache *other = NULL;
  CHECK_STATUS(lattn_cache_mark(r->cache, LATTN_PROMPT_END, NULL), LATTN_OK);
  CHECK_STATUS(lattn_cache_fork(&other, r->cache), LATTN_OK);
  memory_file_save(file, r->cache);
  extend(r->cache, &r->s, &r->t, first, ROWS, &a);
  extend(r->full, &r->f, &r->t, first, ROWS, &all);
  check_rows(&r->s, &r->t, r->cache, r->full, first, &a, &all);
  extend(other, &r->s, &r->t, first, ROWS, &b);
  CHECK(same(&a, &b));
  CHECK_STATUS(lattn_cache_load(other, memory_file_read, file), LATTN_OK);
  extend(other, &r->s, &r->t, first, ROWS, &b);
  CHECK(same(&a, &b));
  CHECK_STATUS(lattn_cache_release(other), LATTN_OK);
}

int main(void) {
  static answer a, b;
  static rig r;
  memory_file file = {0};
  for (int64_t c = 0, cases = test_count(60); c < cases; c++) {
    test_rng rng = rng_seed(test_first_seed() + (uint64_t)c);
    lattn_checkpoint *before = NULL;
    int64_t n = rng_range(&rng, 40, MOST - 2 * ROWS);
    rig_open(&r, &rng);
    check_case("lost seed %d, %d tokens, type %d", (int)c, (int)n, (int)r.s.config.key_type);
    extend(r.full, &r.f, &r.t, 0, n, &a);
    extend(r.cache, &r.s, &r.t, 0, n, &a);
    CHECK(a.bound[(n - 1) * HEADS] == 0 && a.estimate[0] == 0); /* nothing was dropped yet */
    CHECK_STATUS(lattn_cache_checkpoint(&before, r.cache), LATTN_OK);
    check_mark(&r, n, &file);
    check_mark(&r, n + ROWS, &file);                               /* a second mark drops more */
    CHECK_STATUS(lattn_cache_rollback(r.cache, before), LATTN_OK); /* nothing is lost again */
    extend(r.cache, &r.s, &r.t, n, ROWS, &a);
    for (int i = 0; i < ROWS * HEADS; i++) CHECK(a.bound[i] == 0 && a.estimate[i] == 0);
    CHECK_STATUS(lattn_cache_rollback(r.cache, before), LATTN_OK);
    CHECK_STATUS(lattn_cache_truncate(r.full, n), LATTN_OK);
    check_mark(&r, n, &file);
    CHECK_STATUS(lattn_cache_truncate(r.cache, 0), LATTN_OK); /* and from the beginning */
    CHECK_STATUS(lattn_cache_truncate(r.full, n), LATTN_OK);
    extend(r.cache, &r.s, &r.t, 0, n, &b);
    check_mark(&r, n, &file);
    CHECK_STATUS(lattn_checkpoint_release(before), LATTN_OK);
    rig_close(&r);
  }
  free(file.bytes);
  return test_summary();
}
