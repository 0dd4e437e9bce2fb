/* compare.c - see compare.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "compare.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choose.h"
#include "plot_heads.h"

enum {
  SEED = 3,
  SIZES = 3,
  CHOICES = 7,
  MOST_RANDOM = 20,
  MEASURES = 3,
  LENGTHS = 2,
  QUARTILES = 5,
  PIECE = 1024, /* of the text, judged from FIRST on */
  FIRST = 128,
  PIECES = 100
};

static const int64_t lengths[LENGTHS] = {384, 768};
static const int32_t parts[SIZES] = {8, 4, 2}; /* one head of so many is full */

enum { BY_GATES, BY_PROJECTED, BY_STREAM, BY_RETRIEVAL, BY_ECHO, BY_MEASURING, WRONG };

static const plot_choice choices[CHOICES] = {
    {"gates", "#7570b3"},       {"projected", "#4a1486"},       {"over stream", "#c3b1e1"},
    {"retrieval", "#1b9e77"},   {"echo, induction", "#d95f02"}, {"leaving one out", "#2b83ba"},
    {"wrong heads", "#c51b7d"},
};

static const char *const measures[MEASURES] = {
    "share of the needles found",
    "perplexity of the needles' letters, when they are asked for (lower is better)",
    "perplexity of the text, from position 128 on (lower is better)"};

/* All numbers, [measure][size] of each. */
typedef struct comparison {
  double of_choices[MEASURES][SIZES][CHOICES];
  double of_random[MEASURES][SIZES][MOST_RANDOM];
  double quartiles[MEASURES][SIZES][QUARTILES];
  trial_result all, none; /* every head full; every head streaming */
  int64_t bytes[SIZES];
  int32_t n_full[SIZES], n_heads, n_random;
  lattn_head *heads; /* [n_heads] */
} comparison;

static int fail(const char *what) {
  fprintf(stderr, "profile: %s\n", what);
  return -1;
}

/* ---- choosing ---- */

/* Wrong are the heads that lose least when they stream. */
static int choose(const compare_scores *s, int32_t choice, int32_t n_full, lattn_head *heads) {
  int32_t n_layers = s->loss.n_layers, n_kv_heads = s->loss.n_kv_heads;
  lattn_head streaming = demo_streaming();
  if (choice == BY_GATES)
    return choose_greedy(s->q, n_layers, n_kv_heads, n_full, streaming, heads);
  if (choice == BY_PROJECTED)
    return choose_greedy(s->q_projected, n_layers, n_kv_heads, n_full, streaming, heads);
  if (choice == BY_STREAM)
    return choose_greedy(s->q_stream, n_layers, n_kv_heads, n_full, streaming, heads);
  if (choice == BY_RETRIEVAL) choose_best(&s->retrieval, n_full, streaming, heads);
  if (choice == BY_ECHO) choose_razor(&s->echo, &s->induction, n_full, streaming, heads);
  if (choice == BY_MEASURING) choose_best(&s->measured, n_full, streaming, heads);
  if (choice == WRONG) choose_worst(&s->loss, n_full, streaming, heads);
  return 0;
}

/* ---- measuring ---- */

static double of(const trial_result *r, int measure) {
  return measure == 0 ? r->found : measure == 1 ? r->letters : r->text;
}

static int try_size(const demo_input *in, const compare_scores *scores, const trial_plan *plan,
                    comparison *c, int size, uint64_t *state) {
  trial_result r;
  for (int32_t i = 0; i < CHOICES + c->n_random; i++) {
    if (i < CHOICES && choose(scores, i, c->n_full[size], c->heads)) return -1;
    if (i >= CHOICES) choose_random(c->n_heads, c->n_full[size], demo_streaming(), state, c->heads);
    if (trial_run(in, plan, c->heads, &r)) return -1;
    if (i == 0) c->bytes[size] = r.bytes;
    if (r.bytes != c->bytes[size]) return fail("choices differ in bytes");
    for (int m = 0; m < MEASURES; m++)
      if (i < CHOICES) c->of_choices[m][size][i] = of(&r, m);
      else c->of_random[m][size][i - CHOICES] = of(&r, m);
  }
  for (int m = 0; m < MEASURES; m++)
    trial_quartiles(c->of_random[m][size], c->n_random, c->quartiles[m][size]);
  return 0;
}

static int try_all(const demo_input *in, const compare_scores *scores, const trial_plan *plan,
                   comparison *c) {
  uint64_t state = SEED;
  if (trial_run(in, plan, NULL, &c->all)) return -1;
  for (int32_t i = 0; i < c->n_heads; i++) c->heads[i] = demo_streaming();
  if (trial_run(in, plan, c->heads, &c->none)) return -1;
  for (int s = 0; s < SIZES; s++)
    if (try_size(in, scores, plan, c, s, &state)) return -1;
  return 0;
}

/* ---- showing ---- */

/* How many random choices are worse than that one, by a measure; equal ones are not. */
static int32_t beaten(const comparison *c, int measure, int size, int choice) {
  int32_t n = 0;
  double x = c->of_choices[measure][size][choice];
  for (int32_t i = 0; i < c->n_random; i++) {
    double y = c->of_random[measure][size][i];
    n += measure == 0 ? y < x : y > x;
  }
  return n;
}

static void show_row(const char *name, const double *const values[MEASURES]) {
  printf("  %-24s", name);
  for (int m = 0; m < MEASURES; m++) printf(m ? "%9.3f" : "%9.2f", *values[m]);
}

static void show_size(const comparison *c, int size) {
  static const char *const names[QUARTILES] = {"random: least", "first quartile", "median",
                                               "third quartile", "largest"};
  const double *row[MEASURES];
  printf("\n%d of %d KV heads full, %lld KiB%*s  needles  letters     text   random ones worse\n",
         (int)c->n_full[size], (int)c->n_heads, (long long)(c->bytes[size] / 1024),
         c->n_full[size] < 10 ? 1 : 0, "");
  for (int i = 0; i < CHOICES; i++) {
    for (int m = 0; m < MEASURES; m++) row[m] = &c->of_choices[m][size][i];
    show_row(choices[i].name, row);
    printf("   %d, %d, %d of %d\n", (int)beaten(c, 0, size, i), (int)beaten(c, 1, size, i),
           (int)beaten(c, 2, size, i), (int)c->n_random);
  }
  for (int q = 0; q < QUARTILES; q++) {
    for (int m = 0; m < MEASURES; m++) row[m] = &c->quartiles[m][size][q];
    show_row(names[q], row);
    printf("\n");
  }
}

static void show(const comparison *c, const trial_plan *plan) {
  const double *all[MEASURES] = {&c->all.found, &c->all.letters, &c->all.text};
  const double *none[MEASURES] = {&c->none.found, &c->none.letters, &c->none.text};
  printf(
      "\nWhich heads are full, the others keep %d sinks and a window of %d. needles: share found "
      "of "
      "%d; letters:\nperplexity of what is asked for; text: perplexity of the text in pieces of "
      "%lld, from position %lld on.\n",
      DEMO_SINKS, DEMO_WINDOW,
      (int)(plan->needles.n_lengths * plan->needles.n_samples * NEEDLE_DEPTHS),
      (long long)plan->piece, (long long)plan->first);
  printf("%-26s  needles  letters     text\n", "");
  show_row("every head full", all);
  printf("   %lld KiB\n", (long long)(c->all.bytes / 1024));
  show_row("no head full", none);
  printf("   %lld KiB\n", (long long)(c->none.bytes / 1024));
  for (int s = 0; s < SIZES; s++) show_size(c, s);
}

static int draw(const comparison *c, const char *path) {
  char names[SIZES][64], title[96];
  plot_comparison p;
  plot_measure of_measure[MEASURES];
  const char *groups[SIZES];
  for (int m = 0; m < MEASURES; m++) {
    plot_measure x = {measures[m],
                      m == 1,
                      c->of_choices[m][0],
                      c->of_random[m][0],
                      c->quartiles[m][0],
                      of(&c->all, m),
                      of(&c->none, m),
                      0,
                      m == 0};
    if (m == 2) { /* a wide axis: differences of 0.1 % shall not look large */
      x.low = 0.97 * c->all.text;
      x.high = 1.03 * c->all.text;
    }
    of_measure[m] = x;
  }
  for (int s = 0; s < SIZES; s++) {
    snprintf(names[s], sizeof names[s], "%d of %d heads full, %lld KiB", (int)c->n_full[s],
             (int)c->n_heads, (long long)(c->bytes[s] / 1024));
    groups[s] = names[s];
  }
  snprintf(title, sizeof title,
           "Which heads are full, at equal bytes: chosen by scores, and at random (%d)",
           (int)c->n_random);
  p.title = title;
  p.measures = of_measure;
  p.n_measures = MEASURES;
  p.groups = groups;
  p.n_groups = SIZES;
  p.choices = choices;
  p.n_choices = CHOICES;
  p.n_random = c->n_random;
  p.random_stride = MOST_RANDOM;
  return plot_choices(path, &p);
}

int compare_choices(const demo_input *in, const compare_scores *scores, int quick,
                    const char *picture) {
  static comparison c;
  trial_plan plan = {{lengths, LENGTHS, quick ? 1 : 5, SEED}, PIECE, FIRST, quick ? 1 : PIECES};
  memset(&c, 0, sizeof c);
  c.n_random = quick ? 4 : MOST_RANDOM;
  c.n_heads = in->model.n_layers * in->model.n_kv_heads;
  for (int s = 0; s < SIZES; s++) c.n_full[s] = c.n_heads / parts[s];
  c.heads = (lattn_head *)calloc((size_t)c.n_heads, sizeof *c.heads);
  int bad = !c.heads || try_all(in, scores, &plan, &c);
  free(c.heads);
  if (bad) return fail("the choices cannot be tried");
  show(&c, &plan);
  return draw(&c, picture) ? fail("the picture of the choices cannot be written") : 0;
}

/* ---- ways to stream ---- */

enum { WAYS = 6, WINDOWS = 3, FULLS = 2 };

static const struct way {
  const char *name;
  int32_t policy, positions, flags, mark;
} ways[WAYS] = {
    {"streaming, in the cache", LATTN_HEAD_STREAMING, LATTN_POSITIONS_IN_CACHE, 0, 0},
    {"streaming", LATTN_HEAD_STREAMING, LATTN_POSITIONS_ABSOLUTE, 0, 0},
    {"compensated", LATTN_HEAD_COMPENSATED, LATTN_POSITIONS_ABSOLUTE, 0, 0},
    {"compensated, variance", LATTN_HEAD_COMPENSATED, LATTN_POSITIONS_ABSOLUTE, LATTN_HEAD_VARIANCE,
     0},
    {"after the prompt: streaming", LATTN_HEAD_STREAMING, LATTN_POSITIONS_ABSOLUTE, 0,
     LATTN_PROMPT_END},
    {"after: compensated", LATTN_HEAD_COMPENSATED, LATTN_POSITIONS_ABSOLUTE, 0, LATTN_PROMPT_END},
};
static const int64_t windows[WINDOWS] = {12, 28, DEMO_WINDOW};

static lattn_head head_of(const struct way *way, int64_t window) {
  lattn_head head = demo_streaming();
  head.policy = way->policy;
  head.positions = way->positions;
  head.flags = way->flags;
  head.mark = way->mark;
  head.window = window;
  return head;
}

/* A row: one way, by window. */
static int try_way(const demo_input *in, const compare_scores *scores, const trial_plan *plan,
                   const struct way *way, int32_t n_full, lattn_head *heads) {
  printf("  %-27s", way->name);
  for (int w = 0; w < WINDOWS; w++) {
    trial_result r;
    if (choose_greedy(scores->q, in->model.n_layers, in->model.n_kv_heads, n_full,
                      head_of(way, windows[w]), heads) ||
        trial_run(in, plan, heads, &r))
      return -1;
    printf(" %7.2f %8.2f %7.3f", r.found, r.letters, r.text);
    fflush(stdout);
  }
  printf("\n");
  return 0;
}

int compare_ways(const demo_input *in, const compare_scores *scores, int quick) {
  trial_plan plan = {{lengths, LENGTHS, quick ? 1 : 3, SEED}, PIECE, FIRST, quick ? 1 : PIECES};
  int32_t n = in->model.n_layers * in->model.n_kv_heads;
  lattn_head *heads = (lattn_head *)calloc((size_t)n, sizeof *heads);
  int bad = !heads;
  printf(
      "\nHow the other heads keep their past, by window, always with %d sinks; full heads by the "
      "gates. At absolute\npositions, if nothing else is said. After the prompt: full until the "
      "question, and until position %d of a piece.\n",
      DEMO_SINKS, FIRST);
  for (int i = 0; i < (quick ? 1 : FULLS) && !bad; i++) {
    int32_t n_full = i ? n / parts[i - 1] : 0;
    printf("\n%2d of %d KV heads full        ", (int)n_full, (int)n);
    for (int w = 0; w < WINDOWS; w++) printf("  window %-3d             ", (int)windows[w]);
    printf("\n%-29s", "");
    for (int w = 0; w < WINDOWS; w++) printf(" needles  letters    text");
    printf("\n");
    for (int j = 0; j < WAYS && !bad; j++)
      bad = try_way(in, scores, &plan, &ways[j], n_full, heads);
  }
  free(heads);
  return bad ? fail("the ways to keep the past cannot be tried") : 0;
}
