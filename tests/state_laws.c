/* state_laws.c - what the maths of linear, flow, Aaren and Titans states says must be so: special
 * values, equivalences of methods, and steep, shut and open gates; and a million tokens.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

#include "ref_state.h"
#include "state_cases.h"

/* ---- a lab: a method, its state, and contiguous float32 arrays of all that a token needs ---- */

typedef struct lab {
  lattn_state_config c;
  lattn_state_call call;
  state_box box;
  int64_t n, H, HQ, HK, HV, states, features, dk, dv;
  float *q, *k, *v, *decay, *beta, *predict, *write, *rate, *momentum, *forget, *out;
  lattn_tensor tensors[7];
  float *arrays[5]; /* log_decay, bonus, query; all of the lab's own */
  float *S0;        /* NULL, or [states][features][dv]: what the state begins with */
  test_rng rng;
} lab;

static float *lab_array(lab *l, int64_t n, float times) {
  float *x = (float *)ref_memory(n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = rng_normal(&l->rng) * times;
  return x;
}

/* Sets everything that the preset needs: normal numbers, decays in -0.5 ... 0, beta in 0 ... 1. */
static void lab_open(lab *l, int32_t preset, int64_t H, int64_t HK, int64_t HV, int64_t dk,
                     int64_t dv, int64_t n) {
  lattn_state_config *c = &l->c;
  float unit = (float)(1 / sqrt((double)dk));
  int64_t few;
  memset(l, 0, sizeof *l);
  l->rng = rng_seed((uint64_t)preset * 1000 + (uint64_t)dk);
  c->size = sizeof *c;
  l->call.size = sizeof l->call;
  CHECK_STATUS(lattn_state_preset(c, preset), LATTN_OK);
  c->n_heads = (int32_t)H, c->n_query_heads = 0;
  c->n_key_heads = (int32_t)HK, c->n_value_heads = (int32_t)HV;
  c->key_dim = (int32_t)dk, c->value_dim = (int32_t)dv;
  l->n = n, l->H = H, l->HQ = H, l->HK = HK, l->HV = HV, l->dk = dk, l->dv = dv;
  l->states = ref_n_states(c), l->features = ref_n_features(c);
  few = n * l->states;
  l->q = lab_array(l, n * H * dk, 1);
  l->k = lab_array(l, n * HK * dk, c->delta || preset == LATTN_PRESET_TITANS ? unit : 1);
  l->v = lab_array(l, n * HV * dv, 1);
  l->decay = lab_array(l, few * l->features, 1);
  l->beta = lab_array(l, few, 1);
  l->predict = lab_array(l, few * l->features, unit);
  l->write = lab_array(l, few * l->features, unit);
  l->rate = lab_array(l, few, 1), l->momentum = lab_array(l, few, 1);
  l->forget = lab_array(l, few, 1);
  l->out = lab_array(l, n * H * dv, 0);
  for (int64_t i = 0; i < few * l->features; i++) l->decay[i] = (rng_uniform(&l->rng) - 1) * 0.25f;
  for (int64_t i = 0; i < few; i++) {
    l->beta[i] = (rng_uniform(&l->rng) + 1) * 0.5f;
    l->rate[i] = (rng_uniform(&l->rng) + 1) * 0.125f;
    l->momentum[i] = (rng_uniform(&l->rng) + 1) * 0.375f;
    l->forget[i] = (rng_uniform(&l->rng) + 1) * 0.0625f;
  }
  /* RWKV-7: predict = -kappa, of length 1; write = kappa * alpha. */
  for (int64_t i = 0; i < few && c->delta == LATTN_DELTA_GENERAL; i++) {
    float *a = l->predict + i * l->features, *b = l->write + i * l->features;
    double sum = 0;
    for (int64_t f = 0; f < l->features; f++) sum += (double)a[f] * (double)a[f];
    for (int64_t f = 0; f < l->features; f++) {
      a[f] = (float)((double)a[f] / sqrt(sum));
      b[f] = -a[f] * (rng_uniform(&l->rng) + 1) * 0.5f;
    }
  }
  l->arrays[0] = lab_array(l, l->states, 1);
  l->arrays[1] = lab_array(l, l->states * l->features, 1);
  l->arrays[2] = lab_array(l, H * dk, 1);
  for (int64_t s = 0; s < l->states; s++) l->arrays[0][s] = (rng_uniform(&l->rng) - 1) * 0.25f;
  if (c->decay == LATTN_DECAY_HEAD) c->log_decay = l->arrays[0];
  if (c->kind == LATTN_STATE_LINEAR && c->reads == LATTN_READS_BEFORE) c->bonus = l->arrays[1];
  if (c->kind == LATTN_STATE_AAREN) c->query = l->arrays[2];
}

static void lab_close(lab *l) {
  float *all[] = {l->q,       l->k,     l->v,         l->decay,     l->beta,
                  l->predict, l->write, l->rate,      l->momentum,  l->forget,
                  l->out,     l->S0,    l->arrays[0], l->arrays[1], l->arrays[2]};
  if (l->box.guard.map) box_close(&l->box);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
}

static lattn_tensor lab_rows(const float *x, int64_t first, int64_t n, int64_t heads, int64_t dim) {
  return tensor_of(x + first * heads * dim, LATTN_F32, n, heads, dim);
}

/* The tensors that the method takes, from token `first` on. */
static const lattn_state_call *lab_call(lab *l, int64_t first, int64_t n) {
  lattn_tensor *t = l->tensors;
  int64_t S = l->states, m = l->features;
  int channel = l->c.decay == LATTN_DECAY_CHANNEL;
  t[0] = lab_rows(l->decay, first, n, S, channel ? m : 1);
  t[1] = lab_rows(l->beta, first, n, S, 1);
  t[2] = lab_rows(l->predict, first, n, S, m);
  t[3] = lab_rows(l->write, first, n, S, m);
  t[4] = lab_rows(l->rate, first, n, S, 1);
  t[5] = lab_rows(l->momentum, first, n, S, 1);
  t[6] = lab_rows(l->forget, first, n, S, 1);
  l->call.decay = l->c.decay > LATTN_DECAY_HEAD ? t : NULL;
  l->call.beta = l->c.delta == LATTN_DELTA_KEY ? t + 1 : NULL;
  l->call.predict = l->c.delta == LATTN_DELTA_GENERAL ? t + 2 : NULL;
  l->call.write = l->c.delta == LATTN_DELTA_GENERAL ? t + 3 : NULL;
  l->call.rate = l->c.kind == LATTN_STATE_TITANS ? t + 4 : NULL;
  l->call.momentum = l->c.kind == LATTN_STATE_TITANS ? t + 5 : NULL;
  l->call.forget = l->c.kind == LATTN_STATE_TITANS ? t + 6 : NULL;
  return &l->call;
}

/* A new state, set to S0 if there is one. */
static void lab_begin(lab *l) {
  if (l->box.guard.map) box_close(&l->box);
  l->box = box_open(&l->c);
  if (l->S0) {
    lattn_tensor m = tensor_of(l->S0, LATTN_F32, l->features, l->states, l->dv);
    m.stride_head = l->features * l->dv, m.stride_token = l->dv;
    CHECK_STATUS(lattn_state_set(l->box.state, LATTN_MATRIX_STATE, 0, m), LATTN_OK);
  }
}

/* Tokens first ... first + n - 1; absorb: without their outputs. */
static void lab_advance(lab *l, int64_t first, int64_t n, int absorb) {
  lattn_tensor out = lab_rows(l->out, first, n, l->H, l->dv);
  if (absorb) out.data = NULL;
  CHECK_STATUS(lattn_state_advance(l->box.state, lab_call(l, first, n),
                                   lab_rows(l->q, first, n, l->H, l->dk),
                                   lab_rows(l->k, first, n, l->HK, l->dk),
                                   lab_rows(l->v, first, n, l->HV, l->dv), out, NULL),
               LATTN_OK);
}

static void lab_run(lab *l) {
  lab_begin(l);
  lab_advance(l, 0, l->n, 0);
}

/* Element (i, j) of matrix s. */
static double lab_S(const lab *l, int64_t s, int64_t i, int64_t j) {
  float *x = (float *)ref_memory(l->features * l->states * l->dv, sizeof *x);
  double got;
  CHECK_STATUS(lattn_state_get(l->box.state, LATTN_MATRIX_STATE, 0,
                               tensor_of(x, LATTN_F32, l->features, l->states, l->dv)),
               LATTN_OK);
  got = (double)x[(i * l->states + s) * l->dv + j];
  free(x);
  return got;
}

/* The rows of out against the reference. */
static double lab_want(lab *l, double *want, double *bound) {
  ref_state r;
  lattn_tensor q = lab_rows(l->q, 0, l->n, l->H, l->dk), k = lab_rows(l->k, 0, l->n, l->HK, l->dk);
  lattn_tensor v = lab_rows(l->v, 0, l->n, l->HV, l->dv);
  ref_input in = ref_input_of(lab_call(l, 0, l->n), &q, &k, &v);
  double most = 0;
  ref_state_open(&r, &l->c);
  r.feature = state_feature_exact;
  for (int64_t i = 0; l->S0 && i < l->states * l->features * l->dv; i++)
    ref_set(&r, i / (l->features * l->dv), i / l->dv % l->features, i % l->dv, (double)l->S0[i]);
  ref_advance(&r, &in, want, bound);
  for (int64_t i = 0; i < l->n * l->H * l->dv; i++) most = fmax(most, fabs(want[i]));
  ref_input_free(&in);
  ref_state_close(&r);
  return most;
}

static double worst_law;

/* out against these numbers and bounds. */
static void lab_compare(const lab *l, const char *what, const double *want, const double *bound) {
  for (int64_t i = 0; i < l->n * l->H * l->dv; i++) {
    double ratio = ref_ratio((double)l->out[i], want[i], bound[i] + 0x1p-120);
    if (bound[i] >= REF_INFINITY) continue;
    worst_law = fmax(worst_law, ratio);
    if (ratio > 1) {
      FAIL("%s: row %" PRId64 ", dim %" PRId64 ": got %.9g, expected %.9g, %.3g times the bound",
           what, i / l->dv, i % l->dv, (double)l->out[i], want[i], ratio);
      return;
    }
  }
}

/* Runs it, and compares with the reference. */
static void lab_check(lab *l, const char *what) {
  double *want = ref_doubles(l->n * l->H * l->dv), *bound = ref_doubles(l->n * l->H * l->dv);
  lab_run(l);
  lab_want(l, want, bound);
  lab_compare(l, what, want, bound);
  free(want), free(bound);
}

/* Two labs' outputs: the same bits; or within the bounds of both. */
static void lab_same(const lab *a, const lab *b) {
  int64_t n = a->n * a->H * a->dv, differ = 0;
  for (int64_t i = 0; i < n; i++) differ += !same_f32(a->out[i], b->out[i]);
  CHECK_I64(differ, 0);
}

static void lab_near(lab *a, lab *b) {
  int64_t n = a->n * a->H * a->dv;
  double *want = ref_doubles(n), *bound = ref_doubles(n), *other = ref_doubles(n);
  double *bound_b = ref_doubles(n);
  lab_want(a, want, bound);
  lab_want(b, other, bound_b);
  for (int64_t i = 0; i < n; i++) {
    /* What went in may have been rounded. */
    CHECK(fabs(want[i] - other[i]) <= bound[i] + bound_b[i]);
    want[i] = (double)b->out[i];
    bound[i] += bound_b[i];
  }
  lab_compare(a, "the other way", want, bound);
  free(want), free(bound), free(other), free(bound_b);
}

static void make_unit(float *x, int64_t d) {
  double sum = 0;
  for (int64_t i = 0; i < d; i++) sum += (double)x[i] * (double)x[i];
  for (int64_t i = 0; i < d; i++) x[i] = (float)((double)x[i] / sqrt(sum));
}

/* Row i of an orthonormal basis of 16: Hadamard's, exact in binary. */
static void make_hadamard(float *x, int64_t i) {
  for (int64_t d = 0; d < 16; d++) {
    int64_t b = i & d;
    b ^= b >> 2, b ^= b >> 1;
    x[d] = b & 1 ? -0.25f : 0.25f;
  }
}

static void fill_with(float *x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i++) x[i] = value;
}

static void copy_floats(float *to, const float *from, int64_t n) {
  memcpy(to, from, (size_t)n * sizeof *to);
}

/* ---- the delta family: linear.md 7.8, 10.3 ---- */

static const int32_t deltas[] = {LATTN_PRESET_DELTA_NET, LATTN_PRESET_GATED_DELTA_NET,
                                 LATTN_PRESET_KDA};

static void no_writes(void) {
  for (int i = 0; i < 3; i++)
    for (int set = 0; set < 2; set++) {
      lab l;
      check_case("beta 0, preset %d, %s state: it only decays", (int)deltas[i],
                 set ? "a set" : "an empty");
      lab_open(&l, deltas[i], 2, 2, 2, 17, 19, 40);
      fill_with(l.beta, l.n * l.states, 0);
      if (set) l.S0 = lab_array(&l, l.states * l.features * l.dv, 1);
      lab_check(&l, "out");
      for (int64_t x = 0; x < l.n * l.H * l.dv && !set; x++)
        if (bits_of_f32(l.out[x])) FAIL("out %d is %g, not +0", (int)x, (double)l.out[x]);
      if (set && !l.c.decay) /* nothing ever changed */
        for (int64_t x = 0; x < l.features; x++)
          CHECK(lab_S(&l, 1, x, 3) == (double)l.S0[(l.features + x) * l.dv + 3]);
      lab_close(&l);
    }
}

/* The same key twice: the second value replaces the first, to rounding. */
static void overwrite(void) {
  for (int i = 0; i < 3; i++) {
    lab l;
    check_case("overwrite, preset %d: a read with k gives v", (int)deltas[i]);
    lab_open(&l, deltas[i], 1, 1, 1, 16, 9, 8);
    l.c.unit = LATTN_UNIT_NONE, l.c.scale = 1;
    fill_with(l.beta, l.n, 1);
    fill_with(l.decay, l.n * l.features, 0);
    for (int64_t t = 0; t < l.n; t++) {
      make_hadamard(l.k + t * 16, t / 2);
      make_hadamard(l.q + t * 16, t / 2);
    }
    lab_check(&l, "out");
    for (int64_t t = 0; t < l.n; t++) /* a value, a chain of 16 and its correction */
      for (int64_t j = 0; j < 9; j++)
        CHECK(fabs((double)l.out[t * 9 + j] - (double)l.v[t * 9 + j]) < 40 * REF_U * 4);
    lab_close(&l);
  }
}

/* Orthonormal keys do not meet: the delta rule is plain linear attention of beta v. */
static void orthonormal(void) {
  lab l, plain;
  check_case("orthonormal keys: delta = plain with beta v");
  lab_open(&l, LATTN_PRESET_DELTA_NET, 1, 1, 1, 16, 5, 16);
  lab_open(&plain, LATTN_PRESET_SSD, 1, 1, 1, 16, 5, 16);
  l.c.unit = LATTN_UNIT_NONE;
  plain.c.scale = 0.25f;
  fill_with(plain.decay, 16, 0);
  for (int64_t t = 0; t < 16; t++) {
    make_hadamard(l.k + t * 16, t);
    for (int64_t j = 0; j < 5; j++) plain.v[t * 5 + j] = l.v[t * 5 + j] * l.beta[t];
  }
  copy_floats(plain.k, l.k, 256);
  copy_floats(plain.q, l.q, 256);
  lab_run(&l), lab_run(&plain);
  lab_near(&l, &plain);
  lab_close(&l), lab_close(&plain);
}

/* Gates shut at every token: only the token itself is left. All of -80 and below is one gate. */
static void shut_gates(void) {
  static const float gates[] = {-80, -81, -1000, -3e38f, -INFINITY};
  static const int32_t presets[] = {LATTN_PRESET_SSD,   LATTN_PRESET_GLA,
                                    LATTN_PRESET_HGRN2, LATTN_PRESET_GATED_DELTA_NET,
                                    LATTN_PRESET_KDA,   LATTN_PRESET_RWKV6};
  for (int p = 0; p < 6; p++) {
    lab first;
    for (int g = 0; g < 5; g++) {
      lab l;
      check_case("gates of %g, preset %d", (double)gates[g], (int)presets[p]);
      lab_open(&l, presets[p], 2, 2, 2, 18, 7, 40);
      fill_with(l.decay, l.n * l.states * l.features, gates[g]);
      lab_check(&l, "out");
      for (int64_t i = 0; i < l.n * l.H * l.dv; i++) CHECK(isfinite(l.out[i]));
      /* o = scale beta (q.k) v */
      for (int64_t t = 0; t < l.n && presets[p] == LATTN_PRESET_SSD; t++) {
        double dot = 0, size = 0;
        for (int64_t i = 0; i < 18; i++) {
          double a = (double)l.q[t * 36 + i] * (double)l.k[t * 36 + i];
          dot += a, size += fabs(a);
        }
        for (int64_t j = 0; j < 7; j++) {
          double v = (double)l.v[t * 14 + j];
          CHECK(fabs((double)l.out[t * 14 + j] - dot * v) <= 40 * REF_U * size * fabs(v));
        }
      }
      if (!g) first = l;
      else lab_same(&first, &l), lab_close(&l);
    }
    lab_close(&first);
  }
}

/* Gates open at every token, also beyond 0: no gates, bit for bit. */
static void open_gates(void) {
  static const struct {
    int32_t gated, plain;
  } pairs[] = {{LATTN_PRESET_GATED_DELTA_NET, LATTN_PRESET_DELTA_NET},
               {LATTN_PRESET_KDA, LATTN_PRESET_DELTA_NET},
               {LATTN_PRESET_GLA, -1},
               {LATTN_PRESET_SSD, -1},
               {LATTN_PRESET_RWKV6, -1}};
  for (int p = 0; p < 5; p++)
    for (int beyond = 0; beyond < 2; beyond++) {
      lab a, b;
      check_case("gates %s, preset %d: as without", beyond ? "beyond 0" : "of 0",
                 (int)pairs[p].gated);
      lab_open(&a, pairs[p].gated, 2, 1, 2, 33, 18, 50);
      fill_with(a.decay, a.n * a.states * a.features, beyond ? 3.0f : 0.0f);
      lab_open(&b, pairs[p].plain < 0 ? pairs[p].gated : pairs[p].plain, 2, 1, 2, 33, 18, 50);
      b.c.decay = LATTN_DECAY_NONE;
      b.c.scale = a.c.scale;
      copy_floats(b.q, a.q, a.n * 2 * 33);
      copy_floats(b.k, a.k, a.n * 33);
      copy_floats(b.v, a.v, a.n * 2 * 18);
      copy_floats(b.beta, a.beta, a.n * 2);
      copy_floats(b.arrays[1], a.arrays[1], a.states * a.features);
      lab_run(&a), lab_run(&b);
      lab_same(&a, &b);
      lab_close(&a), lab_close(&b);
    }
}

/* A gate a channel, all alike, is a gate a token; and a constant one, of a head. */
static void equal_channels(void) {
  static const int32_t pairs[][2] = {{LATTN_PRESET_KDA, LATTN_PRESET_GATED_DELTA_NET},
                                     {LATTN_PRESET_HGRN2, LATTN_PRESET_SSD},
                                     {LATTN_PRESET_SSD, LATTN_PRESET_LIGHTNING}};
  for (int p = 0; p < 3; p++) {
    lab a, b;
    int64_t channels;
    check_case("equal gates: preset %d = preset %d", (int)pairs[p][0], (int)pairs[p][1]);
    lab_open(&a, pairs[p][0], 2, 2, 2, 20, 33, 50);
    lab_open(&b, pairs[p][1], 2, 2, 2, 20, 33, 50);
    channels = a.c.decay == LATTN_DECAY_CHANNEL ? 20 : 1;
    for (int64_t i = 0; i < a.n * 2; i++) {
      float g = pairs[p][1] == LATTN_PRESET_LIGHTNING ? b.arrays[0][i % 2] : b.decay[i];
      fill_with(a.decay + i * channels, channels, g);
    }
    b.c.scale = a.c.scale;
    copy_floats(b.q, a.q, a.n * 2 * 20);
    copy_floats(b.k, a.k, a.n * 2 * 20);
    copy_floats(b.v, a.v, a.n * 2 * 33);
    copy_floats(b.beta, a.beta, a.n * 2);
    lab_run(&a), lab_run(&b);
    lab_near(&a, &b);
    lab_close(&a), lab_close(&b);
  }
}

/* Steep in one half of the channels, open in the other; hard resets between; tiny gates. */
static void steep_gates(void) {
  static const int32_t presets[] = {LATTN_PRESET_GLA, LATTN_PRESET_KDA, LATTN_PRESET_RWKV6,
                                    LATTN_PRESET_RWKV7};
  for (int p = 0; p < 4; p++)
    for (int how = 0; how < 3; how++) {
      lab l;
      check_case("steep gates, way %d, preset %d", how, (int)presets[p]);
      lab_open(&l, presets[p], 2, 2, 2, 34, 20, 130);
      for (int64_t i = 0; i < l.n * 2 * 34; i++) {
        float *g = l.decay + i;
        if (how == 0) *g = i % 34 < 17 ? -8.0f : 0;
        if (how == 1) *g = i / 68 % 10 == 9 ? -INFINITY : *g * 0.125f;
        if (how == 2) *g = i % 3 ? -1e-7f : i % 2 ? -40.0f : -1e-30f;
      }
      lab_check(&l, "out");
      for (int64_t i = 0; i < l.n * l.H * l.dv; i++) CHECK(isfinite(l.out[i]));
      lab_close(&l);
    }
}

/* Keys that inverses by doubling break on. */
static void same_keys(void) {
  for (int how = 0; how < 3; how++) {
    lab l;
    check_case("%s", how == 0   ? "64 identical unit keys, beta 1"
                     : how == 1 ? "64 keys of alternating sign, beta 1"
                                : "64 keys of alternating sign, beta 2");
    lab_open(&l, LATTN_PRESET_DELTA_NET, 1, 1, 1, 24, 10, 64);
    fill_with(l.beta, 64, how == 2 ? 2.0f : 1.0f);
    make_unit(l.k, 24);
    for (int64_t i = 24; i < 64 * 24; i++) l.k[i] = how && i / 24 % 2 ? -l.k[i % 24] : l.k[i % 24];
    lab_check(&l, "out");
    lab_close(&l);
  }
}

/* General updates: with a = 0 nothing is corrected; as KDA: a = -k e^g, b = beta k, v beta. */
static void general_updates(void) {
  lab a, b;
  check_case("general, predict = 0: as without");
  lab_open(&a, LATTN_PRESET_RWKV7, 2, 2, 2, 12, 21, 40);
  lab_open(&b, LATTN_PRESET_HGRN2, 2, 2, 2, 12, 21, 40);
  fill_with(a.predict, a.n * 2 * 12, 0);
  copy_floats(b.q, a.q, a.n * 24), copy_floats(b.k, a.k, a.n * 24);
  copy_floats(b.v, a.v, a.n * 42), copy_floats(b.decay, a.decay, a.n * 24);
  lab_run(&a), lab_run(&b);
  for (int64_t i = 0; i < a.n * a.H * a.dv; i++) CHECK(a.out[i] == b.out[i]);
  lab_near(&a, &b);
  lab_close(&a), lab_close(&b);
  check_case("general as KDA");
  lab_open(&a, LATTN_PRESET_RWKV7, 1, 1, 1, 12, 21, 40);
  lab_open(&b, LATTN_PRESET_KDA, 1, 1, 1, 12, 21, 40);
  b.c.unit = LATTN_UNIT_NONE, b.c.scale = 1;
  copy_floats(a.q, b.q, 480), copy_floats(a.k, b.k, 480), copy_floats(a.decay, b.decay, 480);
  for (int64_t i = 0; i < 480; i++) {
    a.predict[i] = (float)(-(double)b.k[i] * exp((double)b.decay[i]));
    a.write[i] = (float)((double)b.k[i] * (double)b.beta[i / 12]);
  }
  for (int64_t i = 0; i < 40 * 21; i++) a.v[i] = (float)((double)b.v[i] * (double)b.beta[i / 21]);
  lab_run(&a), lab_run(&b);
  /* The inputs of one were rounded: relative errors u of three factors, over 40 tokens. */
  for (int64_t i = 0; i < 40 * 21; i++) CHECK(fabs((double)a.out[i] - (double)b.out[i]) < 2e-5);
  lab_close(&a), lab_close(&b);
}

/* o(v, S0) = o(v, 0) + o(0, S0). */
static void linearity(void) {
  static const int32_t presets[] = {LATTN_PRESET_GLA, LATTN_PRESET_KDA, LATTN_PRESET_RWKV7,
                                    LATTN_PRESET_RWKV6, LATTN_PRESET_RETNET};
  for (int p = 0; p < 5; p++) {
    lab l;
    double *sum, *bound, *rest;
    float *v;
    int64_t n;
    check_case("linear in (v, S0), preset %d", (int)presets[p]);
    lab_open(&l, presets[p], 2, 2, 2, 19, 6, 40);
    n = l.n * l.H * l.dv;
    sum = ref_doubles(n), bound = ref_doubles(n), rest = ref_doubles(n);
    lab_want(&l, rest, bound);
    lab_run(&l);
    for (int64_t i = 0; i < n; i++) sum[i] = (double)l.out[i];
    l.S0 = lab_array(&l, l.states * l.features * l.dv, 1);
    v = l.v;
    l.v = (float *)ref_memory(l.n * l.HV * l.dv, sizeof(float));
    lab_run(&l);
    for (int64_t i = 0; i < n; i++) sum[i] += (double)l.out[i];
    free(l.v);
    l.v = v;
    lab_want(&l, rest, bound);
    lab_run(&l);
    for (int64_t i = 0; i < n; i++) bound[i] *= 2;
    lab_compare(&l, "the sum", sum, bound);
    free(sum), free(bound), free(rest);
    lab_close(&l);
  }
}

/* ---- sums without decay ---- */

static void permuted(void) {
  static const int32_t presets[] = {LATTN_PRESET_LINEAR, LATTN_PRESET_BASED, LATTN_PRESET_AAREN};
  for (int p = 0; p < 3; p++) {
    lab a, b;
    int64_t last = 39;
    check_case("permuted past tokens, preset %d", (int)presets[p]);
    lab_open(&a, presets[p], 1, 1, 1, 9, 11, 40);
    lab_open(&b, presets[p], 1, 1, 1, 9, 11, 40);
    copy_floats(b.q, a.q, 40 * 9);
    copy_floats(b.arrays[2], a.arrays[2], 9);
    for (int64_t t = 0; t < 40; t++) {
      int64_t from = t == last ? last : t * 7 % 39;
      copy_floats(b.k + t * 9, a.k + from * 9, 9);
      copy_floats(b.v + t * 11, a.v + from * 11, 11);
    }
    lab_check(&a, "out"), lab_check(&b, "permuted");
    for (int64_t j = 0; j < 11; j++)
      CHECK(fabs((double)a.out[last * 11 + j] - (double)b.out[last * 11 + j]) < 1e-5);
    lab_close(&a), lab_close(&b);
  }
}

/* What comes later changes no bit of what came before. */
static void causality(void) {
  for (int32_t preset = 0; preset <= LATTN_PRESET_TITANS; preset++) {
    lab a, b;
    check_case("causality, preset %d", (int)preset);
    lab_open(&a, preset, 2, 2, 2, 10, 10, 30);
    lab_open(&b, preset, 2, 2, 2, 10, 10, 30);
    for (int64_t i = 17 * 20; i < 30 * 20; i++) b.q[i] += 1, b.k[i] -= 0.5f, b.v[i] *= 3;
    lab_run(&a), lab_run(&b);
    CHECK(!memcmp(a.out, b.out, 17 * 20 * sizeof(float)));
    CHECK(memcmp(a.out + 17 * 20, b.out + 17 * 20, 13 * 20 * sizeof(float)) != 0);
    lab_check(&a, "out");
    lab_close(&a), lab_close(&b);
  }
}

/* o = v den / (den + epsilon) */
static void constant_values(void) {
  static const int32_t features[] = {LATTN_FEATURE_ELU1,   LATTN_FEATURE_RELU,
                                     LATTN_FEATURE_RELU2,  LATTN_FEATURE_SOFTMAX,
                                     LATTN_FEATURE_TAYLOR, LATTN_FEATURE_SIGMOID};
  for (int f = 0; f < 6; f++)
    for (int compensated = 0; compensated < 2; compensated++) {
      lab l;
      check_case("constant v, feature %d%s", (int)features[f], compensated ? ", compensated" : "");
      lab_open(&l, LATTN_PRESET_LINEAR, 1, 1, 1, 12, 3, 200);
      l.c.feature = features[f];
      l.c.flags = compensated;
      l.features = ref_n_features(&l.c);
      for (int64_t i = 0; i < 600; i++) l.v[i] = 1 + (float)(i % 3);
      lab_check(&l, "out");
      for (int64_t i = 30; i < 600; i++) /* by then some feature is not 0; epsilon 1e-6 */
        CHECK(fabs((double)l.out[i] - (double)l.v[i]) < 1e-4 * (double)l.v[i]);
      lab_close(&l);
    }
}

/* All tokens absorbed, then read: the last token's own output. */
static void bidirectional(void) {
  for (int32_t preset = 0; preset <= LATTN_PRESET_TITANS; preset++) {
    lab l;
    float *last;
    lattn_state_call call;
    int64_t row;
    if (preset == LATTN_PRESET_FLOW || preset == LATTN_PRESET_AAREN || preset == LATTN_PRESET_RWKV6)
      continue;
    check_case("bidirectional = causal at the last token, preset %d", (int)preset);
    lab_open(&l, preset, 4, 2, 2, 16, 8, 50);
    row = l.H * l.dv;
    lab_run(&l);
    last = (float *)ref_memory(row, sizeof *last);
    lab_begin(&l);
    lab_advance(&l, 0, l.n, 1);
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    CHECK_STATUS(lattn_state_read(l.box.state, &call, lab_rows(l.q, 49, 1, 4, 16),
                                  tensor_of(last, LATTN_F32, 1, 4, 8), NULL),
                 LATTN_OK);
    /* Reads of what is written are within the read's own bound of each other: a chain of 16. */
    for (int64_t i = 0; i < row; i++) {
      double size = 0;
      for (int64_t j = 0; j < row; j++) size = fmax(size, fabs((double)last[j]));
      CHECK(fabs((double)last[i] - (double)l.out[49 * row + i]) <= 400 * REF_U * size);
    }
    free(last);
    lab_close(&l);
  }
}

/* Taylor features as weights 1 + s + s^2/2, with a prefix (JRT) of other keys and values. */
static void taylor_weights(void) {
  for (int prefix = 0; prefix < 30; prefix += 13) {
    lab l;
    float *ke, *ve;
    check_case("BASED as weights, a prefix of %d", prefix);
    lab_open(&l, LATTN_PRESET_BASED, 1, 1, 1, 15, 6, 40);
    ke = lab_array(&l, 30 * 15, 1), ve = lab_array(&l, 30 * 6, 1);
    lab_begin(&l);
    if (prefix) {
      lattn_tensor none = lab_rows(l.out, 0, prefix, 1, 6);
      none.data = NULL;
      CHECK_STATUS(lattn_state_advance(l.box.state, NULL, lab_rows(l.q, 0, prefix, 1, 15),
                                       lab_rows(ke, 0, prefix, 1, 15),
                                       lab_rows(ve, 0, prefix, 1, 6), none, NULL),
                   LATTN_OK);
    }
    lab_advance(&l, 0, 40, 0);
    for (int64_t t = 0; t < 40; t++) {
      double num[6] = {0}, den = 0, size[6] = {0};
      for (int64_t j = -prefix; j <= t; j++) {
        const float *k = j < 0 ? ke + (j + prefix) * 15 : l.k + j * 15;
        const float *v = j < 0 ? ve + (j + prefix) * 6 : l.v + j * 6;
        double s = 0, w;
        for (int64_t i = 0; i < 15; i++) s += (double)l.q[t * 15 + i] * (double)k[i];
        s /= sqrt(15.0);
        w = 1 + s + s * s / 2;
        CHECK(w >= 0.5);
        den += w;
        for (int64_t x = 0; x < 6; x++)
          num[x] += w * (double)v[x], size[x] += w * fabs((double)v[x]);
      }
      /* As features: a weight is a sum of 136 products of either sign; |s| < 4 or so, and their
         absolute values add up to at most exp(|q||k| / sqrt(d)) < e^6 of a weight of 1/2 or more;
         in sums over tokens, most of that averages out. */
      for (int64_t x = 0; x < 6; x++)
        CHECK(fabs((double)l.out[t * 6 + x] - num[x] / den) < 2e-5 * (1 + size[x] / den));
    }
    free(ke), free(ve);
    lab_close(&l);
  }
}

/* HGRN2: k + exp(decay) = 1 and v constant: a convex combination of 0 and v. */
static void bounded(void) {
  lab l;
  double before = 0;
  check_case("HGRN2, v constant: the state grows to v and no further");
  lab_open(&l, LATTN_PRESET_HGRN2, 1, 1, 1, 8, 4, 300);
  for (int64_t i = 0; i < l.n * 8; i++) l.k[i] = (float)-expm1((double)l.decay[i]);
  fill_with(l.v, l.n * 4, 1.75f);
  lab_begin(&l);
  for (int64_t t = 0; t < l.n; t++) {
    double now;
    lab_advance(&l, t, 1, 0);
    now = lab_S(&l, 0, 3, 2);
    CHECK(now >= before - 1.75 * 8 * REF_U);
    CHECK(now <= 1.75 * (1 + 8 * REF_U * 40)); /* errors level off: decays are 0.6 ... 1 */
    before = now;
  }
  CHECK(fabs(before - 1.75) < 1e-4);
  lab_close(&l);
}

/* Mamba-2 with dt = 0: the token is not there. */
static void no_time(void) {
  lab a, b;
  int64_t at = 0;
  check_case("SSD: tokens of dt = 0 inserted anywhere change nothing");
  lab_open(&a, LATTN_PRESET_SSD, 4, 1, 4, 20, 12, 30);
  lab_open(&b, LATTN_PRESET_SSD, 4, 1, 4, 20, 12, 60);
  for (int64_t t = 0; t < 60; t++) {
    int real = t % 2 == 0;
    if (real) {
      copy_floats(b.q + t * 80, a.q + at * 80, 80);
      copy_floats(b.k + t * 20, a.k + at * 20, 20);
      copy_floats(b.v + t * 48, a.v + at * 48, 48);
      copy_floats(b.decay + t * 4, a.decay + at * 4, 4);
      at++;
    } else {
      fill_with(b.v + t * 48, 48, 0);
      fill_with(b.decay + t * 4, 4, 0);
    }
  }
  lab_run(&a), lab_run(&b);
  for (int64_t t = 0; t < 30; t++)
    for (int64_t i = 0; i < 48; i++) CHECK(a.out[t * 48 + i] == b.out[2 * t * 48 + i]);
  lab_close(&a), lab_close(&b);
}

/* A state that nothing writes to decays to 0, and not through denormal numbers. */
static void no_denormals(void) {
  static const int32_t presets[] = {LATTN_PRESET_SSD, LATTN_PRESET_GLA,
                                    LATTN_PRESET_GATED_DELTA_NET};
  for (int p = 0; p < 3; p++) {
    lab l;
    check_case("no writes, gates of -2: no denormal state, preset %d", (int)presets[p]);
    lab_open(&l, presets[p], 1, 1, 1, 4, 5, 1000);
    fill_with(l.decay, l.n * l.features, -2.0f);
    fill_with(l.beta, l.n, 0);
    fill_with(l.v, l.n * 5, 0);
    l.S0 = lab_array(&l, 20, 1);
    lab_begin(&l);
    for (int64_t t = 0; t < 60; t++) {
      lab_advance(&l, t, 1, 0);
      for (int64_t i = 0; i < 20; i++) {
        double x = fabs(lab_S(&l, 0, i / 5, i % 5));
        CHECK(x == 0 || x >= 0x1p-126);
      }
    }
    lab_advance(&l, 60, 940, 0);
    for (int64_t i = 0; i < 20; i++) CHECK(lab_S(&l, 0, i / 5, i % 5) == 0);
    lab_close(&l);
  }
}

/* Shared keys, values and queries are repeated ones, of neighbours. */
static void shared_heads(void) {
  static const int32_t presets[] = {
      LATTN_PRESET_GATED_DELTA_NET, LATTN_PRESET_SSD,  LATTN_PRESET_RWKV7,
      LATTN_PRESET_LINEAR,          LATTN_PRESET_FLOW, LATTN_PRESET_TITANS};
  for (int p = 0; p < 6; p++) {
    lab a, b;
    float *few;
    int64_t differ = 0;
    check_case("4 value heads, 2 of q and k: as repeated to neighbours, preset %d",
               (int)presets[p]);
    lab_open(&a, presets[p], 4, 2, 4, 17, 17, 40);
    lab_open(&b, presets[p], 4, 4, 4, 17, 17, 40);
    for (int64_t i = 0; i < 40 * 4 * 17; i++) {
      int64_t t = i / 68, h = i / 17 % 4, d = i % 17;
      b.k[i] = a.k[(t * 2 + h / 2) * 17 + d];
    }
    copy_floats(b.v, a.v, 40 * 68), copy_floats(b.q, a.q, 40 * 68);
    copy_floats(b.decay, a.decay, 40 * 4 * a.features);
    copy_floats(b.predict, a.predict, 40 * 4 * a.features);
    copy_floats(b.write, a.write, 40 * 4 * a.features);
    copy_floats(b.beta, a.beta, 160), copy_floats(b.rate, a.rate, 160);
    copy_floats(b.momentum, a.momentum, 160), copy_floats(b.forget, a.forget, 160);
    /* Queries of 2 heads too: */
    few = lab_array(&a, 40 * 2 * 17, 1);
    for (int64_t i = 0; i < 40 * 4 * 17; i++)
      b.q[i] = few[(i / 68 * 2 + i / 17 % 4 / 2) * 17 + i % 17];
    a.c.n_query_heads = 2;
    lab_begin(&a);
    CHECK_STATUS(
        lattn_state_advance(a.box.state, lab_call(&a, 0, 40), tensor_of(few, LATTN_F32, 40, 2, 17),
                            lab_rows(a.k, 0, 40, 2, 17), lab_rows(a.v, 0, 40, 4, 17),
                            lab_rows(a.out, 0, 40, 4, 17), NULL),
        LATTN_OK);
    lab_run(&b);
    lab_same(&a, &b);
    /* Tiled heads would be another answer: */
    for (int64_t i = 0; i < 40 * 4 * 17; i++) {
      int64_t t = i / 68, h = i / 17 % 4, d = i % 17;
      b.k[i] = a.k[(t * 2 + h % 2) * 17 + d];
    }
    lab_run(&b);
    for (int64_t i = 0; i < 40 * 68; i++) differ += a.out[i] != b.out[i];
    CHECK(differ > 1000);
    free(few);
    lab_close(&a), lab_close(&b);
  }
}

/* RetNet with the scalings of its authors' recurrent code, which a norm of the head removes. */
static void retnet_norm(void) {
  lab l;
  double gamma, count = 1, S[12][10] = {{0}};
  float slopes[1];
  check_case("RetNet = its authors' scaled recurrence, after RMS norm");
  lab_open(&l, LATTN_PRESET_RETNET, 1, 1, 1, 12, 10, 60);
  CHECK_STATUS(lattn_state_slopes(slopes, LATTN_PRESET_RETNET, 1, 0, 1), LATTN_OK);
  l.arrays[0][0] = slopes[0];
  gamma = 1 - ldexp(1, -5);
  lab_check(&l, "out");
  for (int64_t t = 0; t < 60; t++) {
    double next = t ? gamma * count + 1 : 1, keep = t ? gamma * sqrt(count) / sqrt(next) : 0;
    double o[10] = {0}, a = 0, b = 0;
    count = next;
    for (int i = 0; i < 12; i++)
      for (int j = 0; j < 10; j++) {
        S[i][j] = S[i][j] * keep + (double)l.k[t * 12 + i] * (double)l.v[t * 10 + j] / sqrt(count);
        o[j] += (double)l.q[t * 12 + i] * S[i][j] / sqrt(12.0);
      }
    for (int j = 0; j < 10; j++) {
      a += o[j] * o[j] / 10;
      b += (double)l.out[t * 10 + j] * (double)l.out[t * 10 + j] / 10;
    }
    for (int j = 0; j < 10; j++)
      CHECK(fabs(o[j] / sqrt(a + 1e-6) - (double)l.out[t * 10 + j] / sqrt(b + 1e-6)) < 1e-4);
  }
  lab_close(&l);
}

/* Constant k, v, q and decay: a geometric series. */
static void geometric(void) {
  lab l;
  double dot = 0, lambda, size = 0;
  check_case("constant tokens: (q.k) v (1 - lambda^T) / (1 - lambda)");
  lab_open(&l, LATTN_PRESET_LIGHTNING, 1, 1, 1, 7, 3, 100);
  l.arrays[0][0] = -0.125f;
  lambda = exp(-0.125);
  for (int64_t i = 0; i < 700; i++) l.q[i] = l.q[i % 7], l.k[i] = l.k[i % 7];
  for (int64_t i = 0; i < 300; i++) l.v[i] = l.v[i % 3];
  for (int i = 0; i < 7; i++)
    dot += (double)l.q[i] * (double)l.k[i], size += fabs((double)l.q[i] * (double)l.k[i]);
  lab_check(&l, "out");
  for (int64_t t = 0; t < 100; t++)
    for (int j = 0; j < 3; j++) {
      double sum = (1 - pow(lambda, (double)(t + 1))) / (1 - lambda), v = (double)l.v[j];
      /* 8 roundings of each token's part, which the decay levels off at 1 / (1 - lambda) < 9 */
      CHECK(fabs((double)l.out[t * 3 + j] - dot * v * sum) < 100 * REF_U * size * fabs(v) * sum);
    }
  lab_close(&l);
}

/* ---- one system: linear.md 5.2 (Sieber et al. 2024). h_t = Lambda_t h_{t-1} + B_t u_t, y_t = C_t
   h_t, in doubles, with explicit matrices ---- */

/* SSD = the masked product (L o C B^T) (dt x), L_ij = a_{j+1} ... a_i: a 1-semiseparable matrix. */
static void semiseparable(void) {
  lab l;
  double *want, *bound;
  check_case("SSD = multiplication by a semiseparable matrix");
  lab_open(&l, LATTN_PRESET_SSD, 1, 1, 1, 10, 4, 70);
  lab_check(&l, "out");
  want = ref_doubles(280), bound = ref_doubles(280);
  lab_want(&l, want, bound);
  for (int64_t t = 0; t < 70; t++)
    for (int64_t j = 0; j < 4; j++) {
      double y = 0;
      for (int64_t s = 0; s <= t; s++) {
        double L = 0, cb = 0;
        for (int64_t x = s + 1; x <= t; x++) L += (double)l.decay[x];
        for (int64_t i = 0; i < 10; i++) cb += (double)l.q[t * 10 + i] * (double)l.k[s * 10 + i];
        y += exp(L) * cb * (double)l.v[s * 4 + j];
      }
      CHECK(fabs(y - want[t * 4 + j]) < 1e-12 * 70);
      want[t * 4 + j] = y;
    }
  lab_compare(&l, "the matrix", want, bound);
  check_case("decay 0 and v = dt x: SSD = plain linear attention");
  fill_with(l.decay, 70, 0);
  lab_check(&l, "out");
  for (int64_t t = 0; t < 70; t++)
    for (int64_t j = 0; j < 4; j++) {
      double y = 0, size = 0;
      for (int64_t s = 0; s <= t; s++) {
        double cb = 0, a = 0;
        for (int64_t i = 0; i < 10; i++) {
          cb += (double)l.q[t * 10 + i] * (double)l.k[s * 10 + i];
          a += fabs((double)l.q[t * 10 + i] * (double)l.k[s * 10 + i]);
        }
        y += cb * (double)l.v[s * 4 + j], size += a * fabs((double)l.v[s * 4 + j]);
      }
      CHECK(fabs((double)l.out[t * 4 + j] - y) <= (70 + 30) * REF_U * size);
    }
  free(want), free(bound);
  lab_close(&l);
}

/* One step of an explicit system of state h [n][d]: h = A h + b u^T. */
static void system_step(double *h, const double *A, const double *b, const double *u, int64_t n,
                        int64_t d) {
  double *next = ref_doubles(n * d);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < d; j++) {
      for (int64_t x = 0; x < n; x++) next[i * d + j] += A[i * n + x] * h[x * d + j];
      next[i * d + j] += b[i] * u[j];
    }
  memcpy(h, next, (size_t)(n * d) * sizeof *h);
  free(next);
}

/* Each method as a time-varying system; normalised linear attention has Lambda = eta_{t-1} / eta_t,
   B = phi(k) / eta_t. */
static void systems(void) {
  static const int32_t presets[] = {LATTN_PRESET_SSD, LATTN_PRESET_GLA,   LATTN_PRESET_DELTA_NET,
                                    LATTN_PRESET_KDA, LATTN_PRESET_RWKV7, LATTN_PRESET_LINEAR};
  for (int p = 0; p < 6; p++) {
    enum { N = 6, D = 4, T = 30 };
    lab l;
    double h[N * D] = {0}, z[N] = {0}, *want, *bound, eta = 0, scale;
    check_case("as a linear time-varying system, preset %d", (int)presets[p]);
    lab_open(&l, presets[p], 1, 1, 1, N, D, T);
    l.c.unit = LATTN_UNIT_NONE;
    lab_run(&l);
    want = ref_doubles(T * D), bound = ref_doubles(T * D);
    lab_want(&l, want, bound);
    scale = l.c.scale != 0 ? (double)l.c.scale : 1 / sqrt((double)N);
    for (int t = 0; t < T; t++) {
      double A[N * N] = {0}, b[N], u[D], q[N], beta = (double)l.beta[t], before = eta;
      for (int i = 0; i < N; i++) {
        double g = l.c.decay == LATTN_DECAY_CHANNEL ? (double)l.decay[t * N + i]
                   : l.c.decay                      ? (double)l.decay[t]
                                                    : 0;
        b[i] = (double)l.k[t * N + i];
        q[i] = (double)l.q[t * N + i];
        if (presets[p] == LATTN_PRESET_LINEAR) b[i] = b[i] > 0 ? b[i] + 1 : exp(b[i]);
        if (presets[p] == LATTN_PRESET_LINEAR) q[i] = q[i] > 0 ? q[i] + 1 : exp(q[i]);
        A[i * N + i] = exp(g);
      }
      for (int j = 0; j < D; j++) u[j] = (double)l.v[t * D + j];
      if (l.c.delta == LATTN_DELTA_KEY) { /* (I - beta k k^T) D */
        for (int i = 0; i < N; i++)
          for (int x = 0; x < N; x++) {
            double d = l.c.decay == LATTN_DECAY_CHANNEL ? exp((double)l.decay[t * N + x]) : 1;
            A[i * N + x] = ((i == x) - beta * b[i] * b[x]) * d;
          }
        for (int i = 0; i < N; i++) b[i] *= beta;
      }
      if (l.c.delta == LATTN_DELTA_GENERAL)
        for (int i = 0; i < N; i++)
          for (int x = 0; x < N; x++)
            A[i * N + x] += (double)l.write[t * N + i] * (double)l.predict[t * N + x];
      if (presets[p] == LATTN_PRESET_LINEAR) {
        eta = 1e-6;
        for (int i = 0; i < N; i++) z[i] += b[i], eta += q[i] * z[i];
        for (int i = 0; i < N; i++) A[i * N + i] = before / eta, b[i] /= eta;
      }
      system_step(h, A, b, u, N, D);
      for (int j = 0; j < D; j++) {
        double y = 0;
        for (int i = 0; i < N; i++) y += scale * q[i] * h[i * D + j];
        want[t * D + j] = y;
      }
    }
    lab_compare(&l, "the system", want, bound);
    free(want), free(bound);
    lab_close(&l);
  }
}

/* ---- flow: flow.md 1.3, 1.6, 1.11 ---- */

/* Bidirectional, one head of contiguous rows. */
static void flow_call(const lattn_flow *o, const float *q, int64_t n, const float *k,
                      const float *v, int64_t n_keys, int64_t d, int64_t dv, float *out) {
  lattn_exec exec;
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_flow_scratch(d, dv, o ? o->flags : 0, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  CHECK_STATUS(
      lattn_flow_attention(o, lab_rows(q, 0, n, 1, d), lab_rows(k, 0, n_keys, 1, d),
                           lab_rows(v, 0, n_keys, 1, dv), lab_rows(out, 0, n, 1, dv), &exec),
      LATTN_OK);
  free(exec.scratch);
}

static double mean_of(const float *v, int64_t n, int64_t dv, int64_t j) {
  double sum = 0;
  for (int64_t t = 0; t < n; t++) sum += (double)v[t * dv + j] / (double)n;
  return sum;
}

/* Bidirectional; `out` is [n][dv], `other` [n][dk]. */
static void flow_means(lab *l, float *other, float *out) {
  const int D = (int)l->dk, M = (int)l->dv, N = (int)l->n;
  double gate = ref_sigmoid(1);
  check_case("flow of one sink and one source: sigmoid(1) v");
  flow_call(NULL, l->q, 1, l->k, l->v, 1, D, M, out);
  for (int j = 0; j < M; j++) CHECK(fabs((double)out[j] - gate * (double)l->v[j]) < 1e-5);
  check_case("flow of q = k = 0: sigmoid(1) times the mean of v");
  fill_with(other, N * D, 0);
  flow_call(NULL, other, N, other, l->v, N, D, M, out);
  for (int i = 0; i < N * M; i++)
    CHECK(fabs((double)out[i] - gate * mean_of(l->v, N, M, i % M)) < 1e-5);
  check_case("flow of equal keys: every row is r mean(v)");
  for (int i = 0; i < N * D; i++) other[i] = l->k[i % D];
  flow_call(NULL, l->q, N, other, l->v, N, D, M, out);
  for (int i = 0; i < N * M; i++) {
    double r = (double)out[i / M * M] / mean_of(l->v, N, M, 0);
    CHECK(r > 0 && r < 1 && fabs((double)out[i] - r * mean_of(l->v, N, M, i % M)) < 1e-5);
  }
}

static void flow_symmetries(lab *l, const lattn_flow *o, float *other, float *out) {
  const int D = (int)l->dk, M = (int)l->dv, N = (int)l->n;
  check_case("flow: doubled values double the output, bit for bit");
  flow_call(o, l->q, N, l->k, l->v, N, D, M, l->out);
  for (int i = 0; i < N * M; i++) l->v[i] *= 2;
  flow_call(o, l->q, N, l->k, l->v, N, D, M, out);
  for (int i = 0; i < N * M; i++) l->v[i] /= 2;
  for (int i = 0; i < N * M; i++) CHECK(out[i] == 2 * l->out[i]);
  check_case("flow: permuted sinks permute the rows; permuted sources change nothing");
  for (int t = 0; t < N; t++) copy_floats(other + t * D, l->q + t * 7 % N * D, D);
  flow_call(o, other, N, l->k, l->v, N, D, M, out);
  for (int i = 0; i < N * M; i++)
    CHECK(fabs((double)out[i] - (double)l->out[i / M * 7 % N * M + i % M]) < 1e-5);
  {
    float *v = lab_array(l, N * M, 1);
    for (int t = 0; t < N; t++) copy_floats(other + t * D, l->k + t * 7 % N * D, D);
    for (int t = 0; t < N; t++) copy_floats(v + t * M, l->v + t * 7 % N * M, M);
    flow_call(o, l->q, N, other, v, N, D, M, out);
    for (int i = 0; i < N * M; i++) CHECK(fabs((double)out[i] - (double)l->out[i]) < 1e-5);
    free(v);
  }
}

static void flow_bounds(lab *l, const lattn_flow *o, float *out) {
  const int D = (int)l->dk, M = (int)l->dv, N = (int)l->n;
  check_case("flow: no sources give 0; no sinks are nothing");
  fill_with(out, N * M, 1);
  flow_call(o, l->q, N, l->k, l->v, 0, D, M, out);
  for (int i = 0; i < N * M; i++) CHECK(bits_of_f32(out[i]) == 0);
  flow_call(o, l->q, 0, l->k, l->v, N, D, M, out);
  check_case("flow: an output is within the largest weighted value; c < e");
  flow_call(o, l->q, N, l->k, l->v, N, D, M, out);
  for (int i = 0; i < N * M; i++) {
    double most = 0;
    for (int t = 0; t < N; t++) most = fmax(most, fabs((double)l->v[t * M + i % M]));
    CHECK(fabs((double)out[i]) <= most * exp(1.0));
  }
}

static void flow_causal(lab *l) {
  const int D = (int)l->dk, M = (int)l->dv, N = (int)l->n;
  double gate = ref_sigmoid(1);
  check_case("causal flow of q = k = 0: sigmoid(1) times prefix means");
  fill_with(l->q, N * D, 0), fill_with(l->k, N * D, 0);
  lab_run(l);
  for (int i = 0; i < N * M; i++)
    CHECK(fabs((double)l->out[i] - gate * mean_of(l->v, i / M + 1, M, i % M)) < 2e-5);
  check_case("causal flow: the first token gives sigmoid(1) v");
  for (int j = 0; j < M; j++) CHECK(fabs((double)l->out[j] - gate * (double)l->v[j]) < 1e-5);
  check_case("causal flow without clamp: tiny keys, then normal ones, are finite");
  l->c.clamp_low = -INFINITY, l->c.clamp_high = INFINITY;
  for (int i = 0; i < N * D; i++)
    l->q[i] = rng_normal(&l->rng), l->k[i] = i < 25 * D ? -20.0f : 0.5f;
  lab_run(l);
  for (int i = 0; i < N * M; i++) CHECK(isfinite(l->out[i]));
  /* The first normal key has s of about 1e6: c is t for it, and 0 for those before. */
  for (int j = 0; j < M; j++) {
    double one = (double)l->out[25 * M + j], v = (double)l->v[25 * M + j];
    CHECK(one * v > 0 && fabs(one) < 100 * fabs(v));
  }
  check_case("causal flow: features at their ends are finite");
  for (int i = 0; i < N * D; i++)
    l->q[i] = i % 3 ? -INFINITY : 90, l->k[i] = i % 4 ? 1000.0f : -120;
  lab_run(l);
  for (int i = 0; i < N * M; i++) CHECK(isfinite(l->out[i]));
}

static void flow_laws(void) {
  enum { D = 12, M = 5, N = 50 };
  lab l;
  lattn_flow o;
  float *other, *out;
  memset(&o, 0, sizeof o);
  o.size = sizeof o;
  lab_open(&l, LATTN_PRESET_FLOW, 1, 1, 1, D, M, N);
  other = lab_array(&l, N * D, 1), out = lab_array(&l, N * M, 0);
  flow_means(&l, other, out);
  flow_symmetries(&l, &o, other, out);
  flow_bounds(&l, &o, out);
  flow_causal(&l);
  free(other), free(out);
  lab_close(&l);
}

/* ---- Aaren: flow.md 2.5, 2.6 ---- */

static void aaren_laws(void) {
  enum { D = 8, M = 6, N = 90 };
  lab l;
  lab_open(&l, LATTN_PRESET_AAREN, 1, 1, 1, D, M, N);
  l.c.scale = 1;
  fill_with(l.arrays[2], D, 0);
  l.arrays[2][0] = 1; /* a score is dim 0 of the key */
  check_case("Aaren, equal scores: prefix means");
  for (int i = 0; i < N * D; i++) l.k[i] = i % D ? l.k[i] : 3;
  lab_check(&l, "out");
  for (int i = 0; i < N * M; i++)
    CHECK(fabs((double)l.out[i] - mean_of(l.v, i / M + 1, M, i % M)) < 1e-5);
  check_case("Aaren: a score of 200 more gives its value from there on");
  l.k[40 * D] = 203;
  lab_check(&l, "out");
  for (int i = 40 * M; i < N * M; i++) CHECK(l.out[i] == l.v[40 * M + i % M]);
  check_case("Aaren: early scores 120 below the last of 64");
  for (int t = 0; t < N; t++) l.k[t * D] = t == 63 ? 120.0f : (float)(t % 5) * 0.25f;
  lab_check(&l, "out");
  check_case("Aaren: rising scores");
  for (int t = 0; t < N; t++) l.k[t * D] = (float)t * 3;
  lab_check(&l, "out");
  check_case("Aaren: a score of -infinity is no token");
  {
    float without[M];
    copy_floats(without, l.out + 30 * M, M);
    l.k[31 * D] = -INFINITY;
    for (int i = 1; i < D; i++) l.arrays[2][i] = 0, l.k[31 * D + i] = 0;
    lab_run(&l);
    CHECK(!memcmp(without, l.out + 31 * M, sizeof without));
    l.k[0] = -INFINITY; /* and with nothing before it: 0 */
    for (int i = 1; i < D; i++) l.k[i] = 0;
    lab_run(&l);
    for (int i = 0; i < M; i++) CHECK(bits_of_f32(l.out[i]) == 0);
  }
  lab_close(&l);
}

/* A state's partial, merged with that of attention over other tokens, is attention over all. */
static void merged_with_attention(void) {
  enum { D = 8, M = 6, N = 90, FIRST = 40 };
  lab l;
  lattn_partial parts[2];
  lattn_attn a;
  float maximum[2][FIRST], sum[2][FIRST], output[2][FIRST * M], out[M], *last;
  check_case("Aaren's partial merged with that of lattn_attention");
  lab_open(&l, LATTN_PRESET_AAREN, 1, 1, 1, D, M, N);
  lab_check(&l, "out");
  last = l.out + (N - 1) * M;
  memset(parts, 0, sizeof parts);
  memset(&a, 0, sizeof a);
  for (int i = 0; i < 2; i++) {
    parts[i].size = sizeof parts[i], parts[i].value_dim = M, parts[i].n_rows = i ? 1 : FIRST;
    parts[i].maximum = maximum[i], parts[i].sum = sum[i], parts[i].output = output[i];
  }
  copy_floats(out, last, M);
  lab_begin(&l);
  l.call.partial = &parts[0];
  lab_advance(&l, 0, FIRST, 1);
  /* The last row of it. */
  parts[0].maximum += FIRST - 1, parts[0].sum += FIRST - 1, parts[0].output += (FIRST - 1) * M;
  parts[0].n_rows = 1;
  a.size = sizeof a;
  a.partial = &parts[1];
  CHECK_STATUS(
      lattn_attention(&a, tensor_of(l.arrays[2], LATTN_F32, 1, 1, D),
                      lab_rows(l.k, FIRST, N - FIRST, 1, D), lab_rows(l.v, FIRST, N - FIRST, 1, M),
                      tensor_of(NULL, LATTN_F32, 1, 1, M), NULL, NULL),
      LATTN_OK);
  CHECK_STATUS(lattn_merge(NULL, 2, parts, tensor_of(last, LATTN_F32, 1, 1, M), NULL, NULL),
               LATTN_OK);
  for (int i = 0; i < M; i++) CHECK(fabs((double)last[i] - (double)out[i]) < 2e-6);
  lab_close(&l);
}

/* Normalised linear attention: numerators and denominators of two parts of the tokens add up. */
static void merged_sums(void) {
  enum { D = 8, M = 6, N = 60, FIRST = 25 };
  lab l;
  lattn_partial parts[2];
  float maximum[2][N], sum[2][N], output[2][N * M], out[M], *last;
  check_case("partials of linear attention merge");
  lab_open(&l, LATTN_PRESET_LINEAR, 1, 1, 1, D, M, N);
  lab_check(&l, "out");
  last = l.out + (N - 1) * M;
  copy_floats(out, last, M);
  for (int i = 0; i < FIRST; i++) copy_floats(l.q + i * D, l.q + (N - 1) * D, D);
  memset(parts, 0, sizeof parts);
  for (int i = 0; i < 2; i++) {
    int64_t n = i ? N - FIRST : FIRST;
    parts[i].size = sizeof parts[i], parts[i].value_dim = M, parts[i].n_rows = n;
    parts[i].maximum = maximum[i], parts[i].sum = sum[i], parts[i].output = output[i];
    lab_begin(&l);
    l.call.partial = &parts[i];
    lab_advance(&l, i ? FIRST : 0, n, 1);
    parts[i].maximum += n - 1, parts[i].sum += n - 1, parts[i].output += (n - 1) * M;
    parts[i].n_rows = 1;
  }
  CHECK_STATUS(lattn_merge(NULL, 2, parts, tensor_of(last, LATTN_F32, 1, 1, M), NULL, NULL),
               LATTN_OK);
  for (int i = 0; i < M; i++) CHECK(fabs((double)last[i] - (double)out[i]) < 2e-6);
  lab_close(&l);
}

/* ---- Titans: flow.md 3.2, 3.4, 3.8 ---- */

static void titans_as_delta_rule(void) {
  lab a, b;
  check_case("Titans without momentum and forgetting = delta rule of beta = 2 theta");
  lab_open(&a, LATTN_PRESET_TITANS, 1, 1, 1, 14, 11, 40);
  lab_open(&b, LATTN_PRESET_DELTA_NET, 1, 1, 1, 14, 11, 40);
  b.c.unit = LATTN_UNIT_NONE, b.c.scale = 1;
  copy_floats(b.q, a.q, 560), copy_floats(b.k, a.k, 560), copy_floats(b.v, a.v, 440);
  fill_with(a.momentum, 40, 0), fill_with(a.forget, 40, 0);
  for (int t = 0; t < 40; t++) b.beta[t] = 2 * a.rate[t];
  lab_run(&a), lab_run(&b);
  lab_near(&a, &b);
  check_case("Titans with forgetting = a general update of the undecayed memory");
  lab_close(&b);
  lab_open(&b, LATTN_PRESET_RWKV7, 1, 1, 1, 14, 11, 40);
  b.c.decay = LATTN_DECAY_STEP;
  copy_floats(b.q, a.q, 560), copy_floats(b.k, a.k, 560);
  for (int t = 0; t < 40; t++) {
    a.forget[t] = 0.0625f * (float)(t % 5);
    b.decay[t] = (float)log1p(-(double)a.forget[t]);
    for (int i = 0; i < 14; i++) {
      b.predict[t * 14 + i] = -b.k[t * 14 + i];
      b.write[t * 14 + i] = 2 * a.rate[t] * b.k[t * 14 + i];
    }
    for (int j = 0; j < 11; j++) b.v[t * 11 + j] = 2 * a.rate[t] * a.v[t * 11 + j];
  }
  lab_check(&a, "out");
  lab_run(&b);
  for (int i = 0; i < 440; i++) CHECK(fabs((double)a.out[i] - (double)b.out[i]) < 1e-5);
  lab_close(&a), lab_close(&b);
}

static void titans_forgetting(void) {
  lab a;
  check_case("Titans, theta = 0: the memory is the product of what is not forgotten");
  lab_open(&a, LATTN_PRESET_TITANS, 1, 1, 1, 9, 4, 30);
  a.S0 = lab_array(&a, 36, 1);
  fill_with(a.rate, 30, 0);
  lab_run(&a);
  for (int x = 0; x < 36; x++) {
    double left = (double)a.S0[x];
    for (int t = 0; t < 30; t++) left *= 1 - (double)a.forget[t];
    CHECK(fabs(lab_S(&a, 0, x / 4, x % 4) - left) < 100 * REF_U * fabs((double)a.S0[x]));
  }
  check_case("Titans, alpha = 1: only the momentum is left");
  for (int t = 0; t < 30; t++) a.rate[t] = 0.25f;
  fill_with(a.forget, 30, 1);
  lab_run(&a);
  {
    float S[36];
    CHECK_STATUS(
        lattn_state_get(a.box.state, LATTN_MATRIX_MOMENTUM, 0, tensor_of(S, LATTN_F32, 9, 1, 4)),
        LATTN_OK);
    for (int x = 0; x < 36; x++)
      CHECK(fabs(lab_S(&a, 0, x / 4, x % 4) - (double)S[x]) <= REF_U * fabs((double)S[x]));
  }
  lab_close(&a);
}

static void titans_recall(void) {
  lab a;
  check_case("Titans, orthonormal keys, 2 theta = 1: all values are recalled");
  lab_open(&a, LATTN_PRESET_TITANS, 1, 1, 1, 16, 7, 32);
  fill_with(a.rate, 32, 0.5f), fill_with(a.momentum, 32, 0), fill_with(a.forget, 32, 0);
  for (int t = 0; t < 32; t++) make_hadamard(a.k + t * 16, t % 16);
  for (int t = 0; t < 32; t++) make_hadamard(a.q + t * 16, t % 16);
  fill_with(a.rate + 16, 16, 0);
  lab_run(&a);
  for (int i = 16 * 7; i < 32 * 7; i++)
    CHECK(fabs((double)a.out[i] - (double)a.v[i - 112]) < 200 * REF_U * 4);
  lab_close(&a);
}

static void titans_chunks(void) {
  lab a, b;
  check_case("Titans: a chunk of 1 is the default; one of 3 is not");
  lab_open(&a, LATTN_PRESET_TITANS, 2, 2, 2, 10, 5, 30);
  lab_open(&b, LATTN_PRESET_TITANS, 2, 2, 2, 10, 5, 30);
  b.c.chunk = 1;
  lab_run(&a), lab_run(&b);
  lab_same(&a, &b);
  b.c.chunk = 3;
  lab_check(&b, "chunks of 3");
  CHECK(memcmp(a.out, b.out, 300 * sizeof(float)) != 0);
  lab_close(&a), lab_close(&b);
}

/* The reference's gradient of a two-layer memory is that of its loss, by differences. */
static void gradients(void) {
  for (int how = 0; how < 4; how++) {
    lattn_state_config c;
    ref_state r;
    ref_memory_of *o;
    ref_forward f;
    test_rng rng = rng_seed(5);
    double k[6], v[6], worst = 0;
    check_case("reference: gradient of a memory, %s%s", how & 1 ? "SiLU" : "GELU",
               how & 2 ? ", residual" : "");
    memset(&c, 0, sizeof c);
    c.size = sizeof c, c.kind = LATTN_STATE_TITANS, c.n_heads = 1, c.key_dim = 6;
    c.hidden_dim = 9, c.activation = how & 1, c.residual = how >> 1;
    c.value_dim = c.residual ? 0 : 5;
    ref_state_open(&r, &c);
    o = r.memories;
    for (int i = 0; i < 3; i++)
      for (int64_t x = 0; x < r.sizes[i]; x++) o->w[i][x] = (double)rng_normal(&rng) * 0.5;
    for (int i = 0; i < 6; i++) k[i] = (double)rng_normal(&rng), v[i] = (double)rng_normal(&rng);
    ref_gradient(&r.c, o, o->w, k, v);
    f = ref_forward_new(&r.c);
    for (int i = 0; i < 3; i++)
      for (int64_t x = 0; x < r.sizes[i]; x++) {
        double h = 1e-5, at = o->w[i][x], loss[2] = {0, 0};
        for (int side = 0; side < 2; side++) {
          o->w[i][x] = at + (side ? h : -h);
          ref_apply(&r.c, o, o->w, k, &f);
          for (int64_t j = 0; j < r.c.value_dim; j++)
            loss[side] += (f.p[j] - v[j]) * (f.p[j] - v[j]);
        }
        o->w[i][x] = at;
        worst = fmax(worst, fabs((loss[1] - loss[0]) / (2 * h) - o->gradient[i][x]));
      }
    CHECK(worst < 1e-7);
    ref_forward_free(&f);
    ref_state_close(&r);
  }
}

/* ---- presets and slopes ---- */

static void presets(void) {
  typedef struct want {
    int32_t kind, feature, unit, scaled, decay, delta, reads, normaliser;
    float epsilon;
  } want;
  static const want wants[] = {
      {0, LATTN_FEATURE_ELU1, 0, 1, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-6f},
      {0, LATTN_FEATURE_TAYLOR, 0, 0, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-12f},
      {0, 0, 0, 0, LATTN_DECAY_HEAD, 0, 0, 0, 0},
      {0, 0, 0, 1, LATTN_DECAY_HEAD, 0, 0, 0, 0},
      {0, 0, 0, 1, LATTN_DECAY_STEP, 0, 0, 0, 0},
      {0, 0, 0, 0, LATTN_DECAY_CHANNEL, 0, 0, 0, 0},
      {0, 0, 0, 1, LATTN_DECAY_CHANNEL, 0, 0, 0, 0},
      {0, 0, 0, 1, LATTN_DECAY_CHANNEL, 0, LATTN_READS_BEFORE, 0, 0},
      {0, 0, LATTN_UNIT_L2, 0, 0, LATTN_DELTA_KEY, 0, 0, 0},
      {0, 0, LATTN_UNIT_L2, 0, LATTN_DECAY_STEP, LATTN_DELTA_KEY, 0, 0, 0},
      {0, 0, LATTN_UNIT_L2, 0, LATTN_DECAY_CHANNEL, LATTN_DELTA_KEY, 0, 0, 0},
      {0, 0, 0, 1, LATTN_DECAY_CHANNEL, LATTN_DELTA_GENERAL, 0, 0, 0},
      {1, -1, 0, 0, 0, 0, 0, 0, -1},
      {2, 0, 0, 0, 0, 0, 0, 0, -1},
      {3, 0, 0, 0, 0, 0, 0, 0, -1}};
  for (int32_t p = 0; p < 15; p++) {
    lattn_state_config c;
    const want *w = &wants[p];
    float query[3];
    check_case("preset %d", (int)p);
    memset(&c, 0, sizeof c);
    c.size = sizeof c;
    c.n_heads = 6, c.n_query_heads = 3, c.n_key_heads = 2, c.n_value_heads = 1;
    c.key_dim = 7, c.value_dim = 9, c.max_drafts = 5;
    c.query = query;
    CHECK_STATUS(lattn_state_preset(&c, p), LATTN_OK);
    CHECK(c.n_heads == 6 && c.n_query_heads == 3 && c.n_key_heads == 2 && c.n_value_heads == 1);
    CHECK(c.key_dim == 7 && c.value_dim == 9 && c.max_drafts == 5 && c.query == query);
    CHECK_I64(c.kind, w->kind);
    CHECK_I64(c.unit, w->unit);
    CHECK_I64(c.decay, w->decay);
    CHECK_I64(c.delta, w->delta);
    CHECK_I64(c.reads, w->reads);
    CHECK_I64(c.normaliser, w->normaliser);
    CHECK(w->scaled ? c.scale == 1 : c.scale == 0);
    if (w->feature >= 0) CHECK_I64(c.feature, w->feature);
    if (w->normaliser) CHECK(c.epsilon == w->epsilon || (c.epsilon == 0 && w->epsilon == 1e-6f));
  }
}

static void slopes(void) {
  static const int heads[] = {1, 2, 8, 12, 13, 64, 100};
  for (int i = 0; i < 7; i++)
    for (int layer = 0; layer < 3; layer++) {
      float g[100];
      int H = heads[i], p = 1;
      check_case("slopes of %d heads, layer %d", H, layer);
      CHECK_STATUS(lattn_state_slopes(g, LATTN_PRESET_RETNET, H, layer, 3), LATTN_OK);
      for (int h = 0; h < H; h++) {
        double want = log1p(-ldexp(1, -5 - h));
        CHECK(fabs((double)g[h] - want) <= 4 * 2 * REF_U * fabs(want));
      }
      CHECK_STATUS(lattn_state_slopes(g, LATTN_PRESET_LIGHTNING, H, layer, 3), LATTN_OK);
      while (2 * p <= H) p *= 2;
      for (int h = 0; h < H; h++) {
        double s = h < p ? exp2(-8.0 * (h + 1) / p) : exp2(-4.0 * (2 * (h - p) + 1) / p);
        double want = -s * (1 - layer / 2.0 + 1e-5);
        CHECK(fabs((double)g[h] - want) <= 4 * 2 * REF_U * fabs(want));
      }
      CHECK_STATUS(lattn_state_slopes(g, LATTN_PRESET_LIGHTNING, H, 0, 1), LATTN_OK);
      for (int h = 0; h < p; h++) {
        double want = -exp2(-8.0 * (h + 1) / p);
        CHECK(fabs((double)g[h] - want) <= 4 * 2 * REF_U * fabs(want));
      }
    }
}

/* RWKV-6 with u = 1 and w = 0: the token adds what it is about to write. */
static void bonus_of_one(void) {
  lab a, b;
  check_case("RWKV-6 of bonus 1, no decay = plain linear attention");
  lab_open(&a, LATTN_PRESET_RWKV6, 2, 2, 2, 15, 10, 40);
  lab_open(&b, LATTN_PRESET_SSD, 2, 2, 2, 15, 10, 40);
  fill_with(a.decay, a.n * 30, 0), fill_with(b.decay, a.n * 2, 0);
  fill_with(a.arrays[1], 30, 1);
  copy_floats(b.q, a.q, a.n * 30), copy_floats(b.k, a.k, a.n * 30);
  copy_floats(b.v, a.v, a.n * 20);
  lab_run(&a), lab_run(&b);
  lab_near(&a, &b);
  lab_close(&a), lab_close(&b);
}

/* Gated DeltaProduct of two micro-steps a token: the gated delta rule on twice the tokens, of which
   only the first is gated, read after the second. */
static void delta_product(void) {
  enum { D = 6, M = 4, T = 20 };
  lab l;
  double S[D * M] = {0};
  check_case("DeltaProduct as a stream of twice the tokens");
  lab_open(&l, LATTN_PRESET_GATED_DELTA_NET, 1, 1, 1, D, M, 2 * T);
  l.c.unit = LATTN_UNIT_NONE, l.c.scale = 1;
  for (int t = 0; t < T; t++) l.decay[2 * t + 1] = 0;
  lab_run(&l);
  for (int t = 0; t < T; t++) {
    for (int i = 0; i < D * M; i++) S[i] *= exp((double)l.decay[2 * t]);
    for (int step = 2 * t; step < 2 * t + 2; step++)
      for (int j = 0; j < M; j++) {
        double p = 0;
        for (int i = 0; i < D; i++) p += (double)l.k[step * D + i] * S[i * M + j];
        for (int i = 0; i < D; i++)
          S[i * M + j] +=
              (double)l.k[step * D + i] * (double)l.beta[step] * ((double)l.v[step * M + j] - p);
      }
    for (int j = 0; j < M; j++) {
      double y = 0;
      for (int i = 0; i < D; i++) y += (double)l.q[(2 * t + 1) * D + i] * S[i * M + j];
      CHECK(fabs((double)l.out[(2 * t + 1) * M + j] - y) < 1e-5);
    }
  }
  lab_close(&l);
}

/* ---- a million tokens ---- */

enum { LONG = 1000000, LONG_CALL = 500 };

/* Rows of 16-bit uniforms, cheap to make. */
static void long_fill(test_rng *r, float *x, int64_t n) {
  for (int64_t i = 0; i < n; i += 4) {
    uint64_t u = rng_u64(r);
    for (int64_t j = 0; j < 4 && i + j < n; j++)
      x[i + j] = (float)((int32_t)(u >> 16 * j & 65535) - 32768) * 0x1p-14f;
  }
}

/* Keeps a NaN; and fmax in these loops is an internal error of gcc 12 for ARM. */
static double larger(double worst, double error) { return error <= worst ? worst : error; }

/* o = v for constant v, however many tokens: numerator and denominator drift alike. */
static void long_constant(int64_t n, int32_t flags) {
  enum { D = 4, M = 2 };
  lab l;
  double worst = 0;
  check_case("%d tokens, normalised, v constant, flags %d", (int)n, (int)flags);
  lab_open(&l, LATTN_PRESET_LINEAR, 1, 1, 1, D, M, LONG_CALL);
  l.c.flags = flags;
  for (int i = 0; i < LONG_CALL * M; i++) l.v[i] = i % M ? -0.7f : 1.3f;
  lab_begin(&l);
  for (int64_t t = 0; t < n; t += LONG_CALL) {
    long_fill(&l.rng, l.k, LONG_CALL * D);
    long_fill(&l.rng, l.q, LONG_CALL * D);
    lab_advance(&l, 0, LONG_CALL, 0);
    for (int i = 0; i < LONG_CALL * M; i++)
      worst = larger(worst, fabs((double)l.out[i] / (double)l.v[i] - 1));
  }
  printf("state_laws %s: %d tokens, normalised, constant v, flags %d: worst relative error %.2g\n",
         lattn_simd_name(), (int)n, (int)flags, worst);
  /* Plain float32 sums of positive terms are within n u each at worst, numerator and denominator.
     Their roundings are mostly alike, so what is left of it is some hundred times less: printed. */
  CHECK(worst < (flags ? 1e-6 : (double)n * 2 * REF_U));
  lab_close(&l);
}

/* The causal form in doubles, as it streams; sums need no compensation at 2^-53. */
static void long_flow(int64_t n) {
  enum { D = 4, M = 2 };
  lab l, plain;
  double A[D] = {0}, B[D] = {0}, A2[D] = {0}, B2[D] = {0}, KV[D * M] = {0}, Z = 0,
         worst[2] = {0, 0};
  ref_flow_options o;
  check_case("%d tokens of causal flow: compensated to 1e-5", (int)n);
  lab_open(&l, LATTN_PRESET_FLOW, 1, 1, 1, D, M, LONG_CALL);
  lab_open(&plain, LATTN_PRESET_FLOW, 1, 1, 1, D, M, LONG_CALL);
  l.c.flags = LATTN_STATE_COMPENSATED;
  memset(&o, 0, sizeof o);
  o.low = -1, o.high = 1, o.epsilon = (double)1e-6f;
  lab_begin(&l), lab_begin(&plain);
  for (int64_t t = 0; t < n; t += LONG_CALL) {
    long_fill(&l.rng, l.q, LONG_CALL * D), long_fill(&l.rng, l.k, LONG_CALL * D);
    long_fill(&l.rng, l.v, LONG_CALL * M);
    for (int i = 0; i < LONG_CALL * M; i++) l.v[i] += 1;
    copy_floats(plain.q, l.q, LONG_CALL * D), copy_floats(plain.k, l.k, LONG_CALL * D);
    copy_floats(plain.v, l.v, LONG_CALL * M);
    lab_advance(&l, 0, LONG_CALL, 0), lab_advance(&plain, 0, LONG_CALL, 0);
    for (int i = 0; i < LONG_CALL; i++) {
      double Q[D], K[D], in, go, g, s, c, count = (double)(t + i + 1);
      for (int d = 0; d < D; d++) {
        A[d] += K[d] = ref_flow_map(&o, (double)l.k[i * D + d]);
        B[d] += Q[d] = ref_flow_map(&o, (double)l.q[i * D + d]);
      }
      in = count / ref_flow_dot(Q, A, 1, D, o.epsilon);
      go = count / ref_flow_dot(K, B, 1, D, o.epsilon);
      for (int d = 0; d < D; d++) A2[d] += go * K[d], B2[d] += in * Q[d];
      g = ref_flow_dot(Q, A2, 1, D, o.epsilon) / count;
      s = ref_clamp(ref_flow_dot(K, B2, 1, D, o.epsilon) / count, -1, 1);
      Z += exp(s);
      c = count * exp(s) / Z;
      for (int x = 0; x < D * M; x++) KV[x] += K[x / M] * c * (double)l.v[i * M + x % M];
      for (int j = 0; j < M; j++) {
        double y = 0, most = 0;
        for (int d = 0; d < D; d++) y += Q[d] * KV[d * M + j];
        y *= ref_sigmoid(g) * in / count;
        most = fmax(fabs(y), 0.1);
        worst[0] = fmax(worst[0], fabs((double)l.out[i * M + j] - y) / most);
        worst[1] = fmax(worst[1], fabs((double)plain.out[i * M + j] - y) / most);
      }
    }
  }
  printf(
      "state_laws %s: %d tokens of causal flow: worst relative error %.2g compensated, %.2g not\n",
      lattn_simd_name(), (int)n, worst[0], worst[1]);
  CHECK(worst[0] < 1e-5);
  CHECK(worst[1] < 1e-2);
  lab_close(&l), lab_close(&plain);
}

/* Gates forget errors with the tokens: after a million, still within the bound of the last few. */
static void long_gated(int64_t n) {
  enum { D = 8, M = 3, TAIL = 4000 };
  lab l;
  ref_state r;
  double *want = ref_doubles(LONG_CALL * M), *bound = ref_doubles(LONG_CALL * M), worst = 0;
  check_case("%d tokens of gated delta rule: within the bound", (int)n);
  lab_open(&l, LATTN_PRESET_KDA, 1, 1, 1, D, M, LONG_CALL);
  lab_begin(&l);
  ref_state_open(&r, &l.c);
  for (int64_t t = 0; t < n; t += LONG_CALL) {
    long_fill(&l.rng, l.k, LONG_CALL * D), long_fill(&l.rng, l.q, LONG_CALL * D);
    long_fill(&l.rng, l.v, LONG_CALL * M);
    lab_advance(&l, 0, LONG_CALL, t + TAIL < n);
    /* What came before the last 4000 has a weight below exp(-0.25 * 4000). */
    if (t + TAIL >= n) {
      lattn_tensor q = lab_rows(l.q, 0, LONG_CALL, 1, D), k = lab_rows(l.k, 0, LONG_CALL, 1, D);
      lattn_tensor v = lab_rows(l.v, 0, LONG_CALL, 1, M);
      ref_input in = ref_input_of(lab_call(&l, 0, LONG_CALL), &q, &k, &v);
      ref_advance(&r, &in, want, bound);
      if (t + TAIL / 2 >= n) lab_compare(&l, "out", want, bound);
      for (int i = 0; i < LONG_CALL * M && t + TAIL / 2 >= n; i++)
        worst = larger(worst, fabs((double)l.out[i] - want[i]) / bound[i]);
      ref_input_free(&in);
    }
  }
  printf("state_laws %s: %d tokens of gated delta rule: worst error / bound %.3f\n",
         lattn_simd_name(), (int)n, worst);
  ref_state_close(&r);
  free(want), free(bound);
  lab_close(&l);
}

int main(void) {
  no_writes();
  overwrite();
  orthonormal();
  shut_gates();
  open_gates();
  equal_channels();
  steep_gates();
  same_keys();
  general_updates();
  linearity();
  permuted();
  causality();
  constant_values();
  bidirectional();
  taylor_weights();
  bounded();
  no_time();
  no_denormals();
  shared_heads();
  retnet_norm();
  geometric();
  semiseparable();
  systems();
  bonus_of_one();
  delta_product();
  flow_laws();
  aaren_laws();
  merged_with_attention();
  merged_sums();
  titans_as_delta_rule();
  titans_forgetting();
  titans_recall();
  titans_chunks();
  gradients();
  presets();
  slopes();
  {
    int64_t n = test_is_quick() ? 20000 : LONG;
    long_constant(n, 0);
    long_constant(n, LATTN_STATE_COMPENSATED);
    long_flow(n);
    long_gated(n);
  }
  printf("state_laws %s: worst error / bound %.3f\n", lattn_simd_name(), worst_law);
  return test_summary();
}
