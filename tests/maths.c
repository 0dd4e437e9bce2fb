/* maths.c - white-box tests of what all results rest on: the vector layer against plain C,
 * 16-bit floats, exp, log, tanh, 1/sqrt and the fused multiply-add, against double precision and
 * integers; and what no call can bring about.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   Sines and cosines are in rotary.c. A NaN's sign and payload are not promised: NaNs count as
   one. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

enum { LANES = 16 };

/* Numbers where things go wrong, as bits: zeros, denormals, edges of the normal range,
   infinities, NaNs. */
static const uint32_t special[] = {0x00000000u, 0x80000000u, 0x00000001u, 0x80000001u, 0x007fffffu,
                                   0x807fffffu, 0x00800000u, 0x80800000u, 0x3f800000u, 0xbf800000u,
                                   0x3f7fffffu, 0x3f800001u, 0x7f7fffffu, 0xff7fffffu, 0x7f800000u,
                                   0xff800000u, 0x7fc00000u, 0xffc00000u, 0x7f800001u, 0x7fffffffu};

/* Any float: a special one, any bits, or one of moderate size. */
static float any_float(test_rng *rng) {
  int64_t kind = rng_below(rng, 4);
  if (kind == 0) return f32_of_bits(special[rng_below(rng, sizeof special / sizeof *special)]);
  if (kind == 1) return f32_of_bits((uint32_t)rng_u64(rng));
  return rng_normal(rng) * (kind == 2 ? 1.0f : 1e-3f);
}

static lattn_v16_ any_vector(test_rng *rng, float x[LANES]) {
  for (int t = 0; t < LANES; t++) x[t] = any_float(rng);
  return lattn_v_load_(x);
}

static int same_lanes(lattn_v16_ got, const float want[LANES]) {
  float x[LANES];
  int same = 1;
  lattn_v_store_(x, got);
  for (int t = 0; t < LANES; t++) same &= same_f32(x[t], want[t]);
  return same;
}

/* |got - want| in units of the last place of a float of want's size. */
static double ulps(float got, double want) {
  int exponent;
  (void)frexp(want, &exponent);
  return fabs((double)got - want) / ldexp(1, (exponent > -125 ? exponent : -125) - 24);
}

/* ---- the vector layer: each function against its definition ---- */

static void test_arithmetic(void) {
  test_rng rng = rng_seed(31);
  int64_t n = test_count(100000);
  check_case("vector layer: arithmetic");
  for (int64_t i = 0; i < n; i++) {
    float a[LANES], b[LANES], c[LANES], y[LANES];
    lattn_v16_ va = any_vector(&rng, a), vb = any_vector(&rng, b), vc = any_vector(&rng, c);
    for (int t = 0; t < LANES; t++) y[t] = a[t] + b[t];
    CHECK(same_lanes(lattn_v_add_(va, vb), y));
    for (int t = 0; t < LANES; t++) y[t] = a[t] - b[t];
    CHECK(same_lanes(lattn_v_sub_(va, vb), y));
    for (int t = 0; t < LANES; t++) y[t] = a[t] * b[t];
    CHECK(same_lanes(lattn_v_mul_(va, vb), y));
    for (int t = 0; t < LANES; t++) y[t] = a[t] / b[t];
    CHECK(same_lanes(lattn_v_div_(va, vb), y));
    for (int t = 0; t < LANES; t++) y[t] = lattn_fma_(a[t], b[t], c[t]);
    CHECK(same_lanes(lattn_v_fma_(va, vb, vc), y));
    for (int t = 0; t < LANES; t++) y[t] = f32_of_bits(bits_of_f32(a[t]) & 0x7fffffffu);
    CHECK(same_lanes(lattn_v_abs_(va), y));
    for (int t = 0; t < LANES; t++) y[t] = copysignf(a[t], b[t]);
    CHECK(same_lanes(lattn_v_copysign_(va, vb), y));
  }
}

static void test_choices(void) {
  test_rng rng = rng_seed(32);
  int64_t n = test_count(100000);
  check_case("vector layer: maximum, choices, reductions");
  for (int64_t i = 0; i < n; i++) {
    float a[LANES], b[LANES], c[LANES], d[LANES], y[LANES];
    lattn_v16_ va = any_vector(&rng, a), vb = any_vector(&rng, b), vc = any_vector(&rng, c);
    lattn_v16_ vd = any_vector(&rng, d);
    uint32_t bits = (uint32_t)rng_u64(&rng) & 0xffffu, nonfinite = 0;
    for (int t = 0; t < LANES; t++) y[t] = a[t] > b[t] ? a[t] : b[t]; /* also of NaN, +0 and -0 */
    CHECK(same_lanes(lattn_v_max_(va, vb), y));
    for (int t = 0; t < LANES; t++) y[t] = a[t] < b[t] ? c[t] : d[t];
    CHECK(same_lanes(lattn_v_if_less_(va, vb, vc, vd), y));
    if (i % 2) memcpy(b, a, 8 * sizeof *a); /* some equal lanes */
    vb = lattn_v_load_(b);
    for (int t = 0; t < LANES; t++) y[t] = a[t] == b[t] ? c[t] : d[t];
    CHECK(same_lanes(lattn_v_if_equal_(va, vb, vc, vd), y));
    for (int t = 0; t < LANES; t++) y[t] = bits >> t & 1 ? a[t] : b[t];
    CHECK(same_lanes(lattn_v_if_bits_(bits, va, vb), y));
    for (int t = 0; t < LANES; t++) nonfinite |= (uint32_t)!isfinite(a[t]) << t;
    CHECK(lattn_v_nonfinite_(va) == nonfinite);
    memcpy(c, a, sizeof c);
    memcpy(d, a, sizeof d);
    for (int w = 8; w; w /= 2) /* the fixed tree: lanes t and t + 8, then t + 4, t + 2, t + 1 */
      for (int t = 0; t < w; t++) {
        c[t] = c[t] + c[t + w];
        d[t] = d[t] > d[t + w] ? d[t] : d[t + w];
      }
    CHECK(same_f32(lattn_v_reduce_add_(va), c[0]));
    CHECK(same_f32(lattn_v_reduce_max_(va), d[0]));
  }
}

/* Loads and stores of n lanes touch nothing beyond; lanes beyond load as +0. */
static void test_edges(void) {
  float x[LANES], y[LANES], m[LANES * LANES], w[LANES * LANES];
  lattn_v16_ rows[LANES];
  for (int t = 0; t < LANES; t++) x[t] = (float)(t + 1);
  for (int n = 0; n <= LANES; n++)
    for (int at_end = 0; at_end < 2; at_end++) {
      check_case("vector layer: %d lanes, at the %s of a page", n, at_end ? "end" : "beginning");
      test_guard g = guard_alloc((size_t)n * sizeof *x, at_end);
      float *data = (float *)(void *)g.data;
      lattn_v_store_n_(data, lattn_v_load_(x), n);
      for (int t = 0; t < n; t++) CHECK(data[t] == x[t]);
      for (int t = 0; t < LANES; t++) y[t] = t < n ? x[t] : 0;
      CHECK(same_lanes(lattn_v_load_n_(data, n), y));
      CHECK(guard_free(&g));
    }
  check_case("vector layer: transposition");
  for (int i = 0; i < LANES * LANES; i++) m[i] = (float)i;
  for (int i = 0; i < LANES; i++) rows[i] = lattn_v_load_(m + i * LANES);
  lattn_v_transpose_(rows);
  for (int i = 0; i < LANES; i++) lattn_v_store_(w + i * LANES, rows[i]);
  for (int i = 0; i < LANES * LANES; i++) CHECK(w[i] == m[i % LANES * LANES + i / LANES]);
}

/* ---- 16-bit floats ---- */

static int same_f16(uint16_t a, uint16_t b) {
  return a == b || ((a & 0x7fffu) > 0x7c00u && (b & 0x7fffu) > 0x7c00u);
}

static int same_bf16(uint16_t a, uint16_t b) {
  return a == b || ((a & 0x7fffu) > 0x7f80u && (b & 0x7fffu) > 0x7f80u);
}

/* All patterns, to float32 and back, by element and by vector. */
static void test_widening(void) {
  check_case("f16 and bf16: all 65536 patterns");
  for (uint32_t first = 0; first < 65536; first += LANES) {
    uint16_t h[LANES], back[LANES];
    float f16[LANES], bf16[LANES];
    for (uint32_t t = 0; t < LANES; t++) {
      h[t] = (uint16_t)(first + t);
      f16[t] = f32_of_f16(h[t]);
      bf16[t] = f32_of_bf16(h[t]);
      CHECK(same_f32(lattn_from_f16_(h[t]), f16[t]));
      CHECK(same_f32(lattn_from_bf16_(h[t]), bf16[t]));
      CHECK(same_f16(lattn_to_f16_(f16[t]), h[t]));
      CHECK(same_bf16(lattn_to_bf16_(bf16[t]), h[t]));
    }
    CHECK(same_lanes(lattn_v_load_f16_(h), f16));
    CHECK(same_lanes(lattn_v_load_bf16_(h), bf16));
    lattn_v_store_f16_(back, lattn_v_load_(f16));
    for (int t = 0; t < LANES; t++) CHECK(same_f16(back[t], h[t]));
  }
}

/* 16 floats: rounded by element and by vector as test.h rounds them (another algorithm); the
   note of an overflow with them. */
static void check_narrowing(const float x[LANES]) {
  uint16_t f16[LANES], half[LANES], brain[LANES];
  lattn_v16_ v = lattn_v_load_(x);
  int over_half = 0, over_brain = 0;
  lattn_v_store_f16_(f16, v);
  for (int t = 0; t < LANES; t++) {
    uint16_t h = f16_of_f32(x[t]), b = bf16_of_f32(x[t]), one;
    int lost_half = isfinite(x[t]) && (h & 0x7fffu) == 0x7c00u;
    int lost_brain = isfinite(x[t]) && (b & 0x7fffu) == 0x7f80u;
    CHECK(same_f16(lattn_to_f16_(x[t]), h));
    CHECK(same_f16(f16[t], h));
    CHECK(same_bf16(lattn_to_bf16_(x[t]), b));
    CHECK(lattn_put_(&one, LATTN_F16, 0, x[t]) == lost_half && same_f16(one, h));
    CHECK(lattn_put_(&one, LATTN_BF16, 0, x[t]) == lost_brain && same_bf16(one, b));
    over_half |= lost_half, over_brain |= lost_brain;
  }
  CHECK(lattn_v_put_n_(half, LATTN_F16, 0, v, LANES) == over_half);
  CHECK(lattn_v_put_n_(brain, LATTN_BF16, 0, v, LANES) == over_brain);
  for (int t = 0; t < LANES; t++) {
    CHECK(same_f16(half[t], f16_of_f32(x[t])));
    CHECK(same_bf16(brain[t], bf16_of_f32(x[t])));
  }
}

/* Around every f16 number and every tie between two (the same for bf16: its ties lie there in
   any float range), then any floats. */
static void test_narrowing(void) {
  test_rng rng = rng_seed(33);
  int64_t n = test_count(200000);
  float x[LANES];
  check_case("f16: ties, and what lies beside them");
  for (uint32_t h = 0; h < 0x7c00u; h++) {
    uint32_t low = bits_of_f32(f32_of_f16((uint16_t)h)),
             high = bits_of_f32(f32_of_f16((uint16_t)(h + 1)));
    double middle = ((double)f32_of_bits(low) + (double)f32_of_bits(high)) / 2; /* exact */
    if (h == 0x7bffu) middle = 65520; /* as if the next were 65536 */
    uint32_t tie = bits_of_f32((float)middle);
    const uint32_t near_by[5] = {low ? low - 1 : 0, low + 1, tie - 1, tie, tie + 1};
    for (int t = 0; t < LANES; t++)
      x[t] = f32_of_bits(near_by[t % 5] | (uint32_t)(t / 5 % 2) << 31);
    check_narrowing(x);
  }
  check_case("bf16: ties, and what lies beside them");
  for (uint32_t h = 0; h < 65536; h += 3) {
    for (uint32_t t = 0; t < LANES; t++) x[t] = f32_of_bits((h << 16) + 0x8000u + t - 8);
    check_narrowing(x);
  }
  check_case("f16 and bf16: any floats");
  for (int64_t i = 0; i < n; i++) {
    (void)any_vector(&rng, x);
    check_narrowing(x);
  }
}

/* The type must be a constant there (as it is in the kernels), or gcc warns of paths that are
   not taken. */
static lattn_v16_ get_n(const void *p, int32_t type, int n) {
  if (type == LATTN_F16) return lattn_v_get_n_(p, LATTN_F16, 0, n);
  if (type == LATTN_BF16) return lattn_v_get_n_(p, LATTN_BF16, 0, n);
  return lattn_v_get_n_(p, LATTN_F32, 0, n);
}

/* Tails: n elements of any type, to the byte. */
static void test_tails(void) {
  static const int32_t types[] = {LATTN_F32, LATTN_F16, LATTN_BF16};
  for (int i = 0; i < 3; i++)
    for (int n = 0; n <= LANES; n++) {
      float x[LANES] = {0};
      check_case("elements: %d of type %s", n, type_name(types[i]));
      test_guard g = guard_alloc((size_t)n * type_bytes(types[i]), n % 2);
      for (int t = 0; t < n; t++) x[t] = (float)(t + 1) * 0.5f;
      CHECK(!lattn_v_put_n_(g.data, types[i], 0, lattn_v_load_(x), n));
      CHECK(same_lanes(get_n(g.data, types[i], n), x));
      for (int t = 0; t < n; t++) CHECK(lattn_get_(g.data, types[i], t) == x[t]);
      CHECK(guard_free(&g));
    }
}

/* ---- exp, log, tanh ---- */

/* exp of 16 floats, by vector: the worst error in ulps; each lane as if alone (for some). */
static double check_exp(const float x[LANES], int alone) {
  float y[LANES];
  double worst = 0;
  lattn_v_store_(y, lattn_v_exp_(lattn_v_load_(x)));
  for (int t = 0; t < LANES; t++) {
    if (alone) CHECK(same_f32(lattn_exp_(x[t]), y[t]));
    if (y[t] == 0) {
      CHECK(bits_of_f32(y[t]) == 0 && exp((double)x[t]) < 0x1p-126 * (1 + 0x1p-20));
      continue;
    }
    CHECK(y[t] >= 0x1p-126f); /* never denormal */
    worst = fmax(worst, ulps(y[t], exp((double)x[t])));
  }
  return worst;
}

static void test_exp(void) {
  const uint32_t end = bits_of_f32(-104.0f);
  const uint32_t step = test_is_quick() ? 64 * 20 + 1 : 64; /* odd: all last bits */
  double worst = 0;
  uint32_t groups = 0;
  check_case("exp: every %uth float in [-104, 0]", (unsigned)step);
  for (uint64_t u = 0x80000000u; u <= end; u += (uint64_t)step * LANES) {
    float x[LANES];
    for (uint32_t t = 0; t < LANES; t++) x[t] = f32_of_bits((uint32_t)u + t * step);
    if (bits_of_f32(x[LANES - 1]) > end) break;
    worst = fmax(worst, check_exp(x, groups++ % 16 == 0));
  }
  printf("exp: worst %.4f ulp\n", worst);
  CHECK(worst <= 2); /* what ref.h allows; 1.03 is measured */
  check_case("exp: floats around ln(FLT_MIN)");
  for (int64_t i = -4096; i < 4096; i += LANES) {
    float x[LANES];
    for (int t = 0; t < LANES; t++)
      x[t] = f32_of_bits((uint32_t)((int64_t)bits_of_f32(-87.3365448f) + i + t));
    CHECK(check_exp(x, 1) <= 2);
    for (int t = 0; t < LANES; t++)
      if (exp((double)x[t]) >= 0x1p-126) CHECK(lattn_exp_(x[t]) > 0);
  }
  check_case("exp: special values");
  CHECK(same_f32(lattn_exp_(0.0f), 1) && same_f32(lattn_exp_(-0.0f), 1));
  CHECK(same_f32(lattn_exp_(-INFINITY), 0) && same_f32(lattn_exp_(-0x1.fffffep127f), 0));
  CHECK(isnan(lattn_exp_(NAN)) && isnan(lattn_exp_(-NAN)));
  CHECK(isnan(lattn_exp_(f32_of_bits(0x7f800001u))) && isnan(lattn_exp_(f32_of_bits(0xffffffffu))));
}

/* To 3 ulp, as its comment says; ref.h allows 6u, and 2^-126 where it is flushed. */
static void test_sigmoid(void) {
  const uint32_t step = test_is_quick() ? 100003 : 1009;
  double worst = 0, relative = 0;
  check_case("sigmoid: every %uth float", (unsigned)step);
  for (uint64_t u = 0; u + (uint64_t)step * LANES < 0x100000000u; u += (uint64_t)step * LANES) {
    float x[LANES], y[LANES];
    lattn_v16_ v;
    for (uint32_t t = 0; t < LANES; t++) x[t] = f32_of_bits((uint32_t)u + t * step);
    v = lattn_v_load_(x);
    lattn_v_sigmoids_(&v, 1);
    lattn_v_store_(y, v);
    for (int t = 0; t < LANES; t++) {
      double want = 1 / (1 + exp(-(double)x[t]));
      if (isnan(x[t])) CHECK(isnan(y[t]));
      if (isnan(x[t])) continue;
      if (y[t] == 0) CHECK(bits_of_f32(y[t]) == 0 && want < 0x1p-126 * (1 + 0x1p-20));
      if (y[t] == 0) continue;
      CHECK(y[t] >= 0x1p-126f); /* never denormal */
      worst = fmax(worst, ulps(y[t], want));
      relative = fmax(relative, fabs((double)y[t] / want - 1));
    }
  }
  printf("sigmoid: worst %.4f ulp\n", worst);
  CHECK(worst <= 3 && relative <= 6 * 0x1p-24);
}

/* To 1 ulp of the result or 2^-25 (near 1, where ln vanishes), as its comment says. */
static void test_log(void) {
  const uint32_t step = test_is_quick() ? 20011 : 1009;
  double worst = 0;
  check_case("log: every %uth normal float", (unsigned)step);
  for (uint64_t u = 0x00800000u; u < 0x7f800000u; u += step) {
    float x = f32_of_bits((uint32_t)u), y = lattn_log_(x);
    double exact = log((double)x), error = fabs((double)y - exact);
    if (error > 0x1p-25) worst = fmax(worst, ulps(y, exact));
  }
  for (int32_t i = -40000; i < 40000; i++) { /* around 1: every float */
    float x = f32_of_bits((uint32_t)(0x3f800000 + i)), y = lattn_log_(x);
    double exact = log((double)x), error = fabs((double)y - exact);
    if (error > 0x1p-25) worst = fmax(worst, ulps(y, exact));
  }
  printf("log: worst %.4f ulp\n", worst);
  CHECK(worst <= 1);
  check_case("log: special values");
  CHECK(same_f32(lattn_log_(1), 0));
  CHECK(same_f32(lattn_log_(INFINITY), INFINITY));
  CHECK(isnan(lattn_log_(NAN)));
}

static float tanh_of(float x) {
  float y[LANES];
  lattn_v_store_(y, lattn_v_tanh_(lattn_v_set_(x)));
  return y[0];
}

/* To 2 ulp, odd, never falling. */
static void test_tanh(void) {
  const uint32_t step = test_is_quick() ? 5003 : 251;
  double worst = 0;
  float last = 0;
  check_case("tanh: every %uth float", (unsigned)step);
  for (uint64_t u = 0; u < bits_of_f32(30.0f); u += (uint64_t)step * LANES) {
    float x[LANES], y[LANES], z[LANES];
    for (uint32_t t = 0; t < LANES; t++) x[t] = f32_of_bits((uint32_t)u + t * step);
    lattn_v_store_(y, lattn_v_tanh_(lattn_v_load_(x)));
    for (int t = 0; t < LANES; t++) {
      CHECK(y[t] >= last && y[t] <= 1);
      last = y[t];
      worst = fmax(worst, ulps(y[t], tanh((double)x[t])));
      x[t] = -x[t];
      y[t] = -y[t];
    }
    lattn_v_store_(z, lattn_v_tanh_(lattn_v_load_(x)));
    CHECK(!memcmp(y, z, sizeof y));
  }
  printf("tanh: worst %.4f ulp\n", worst);
  CHECK(worst <= 2);
  check_case("tanh: special values");
  CHECK(same_f32(tanh_of(0.0f), 0.0f) && same_f32(tanh_of(-0.0f), -0.0f));
  CHECK(same_f32(tanh_of(INFINITY), 1) && same_f32(tanh_of(-INFINITY), -1));
  CHECK(same_f32(tanh_of(0x1p-140f), 0x1p-140f) && same_f32(tanh_of(3e38f), 1));
  CHECK(isnan(tanh_of(NAN)));
}

/* Never falling across the seam between its two forms: every float there. */
static void test_tanh_seam(void) {
  float last = 0;
  check_case("tanh: every float around 0.6");
  for (int32_t i = -50000; i < 50000; i++) {
    float y = tanh_of(f32_of_bits((uint32_t)((int32_t)bits_of_f32(0.6f) + i)));
    CHECK(y >= last);
    last = y;
  }
}

/* ---- the scalar rest ---- */

/* 1 / sqrt(d), rounded to nearest: y^2 d lies within (1 +- half an ulp)^2. */
static void test_rsqrt(void) {
  test_rng rng = rng_seed(34);
  int64_t n = test_count(200000);
  check_case("1/sqrt of integers");
  for (int64_t i = 1; i <= n; i++) {
    int64_t d = i <= 5000 ? i : (int64_t)(rng_u64(&rng) >> (2 + rng_below(&rng, 61))) + 1;
    double y = (double)lattn_rsqrt_int_(d), exact = 1 / sqrt((double)d);
    if (!(ulps((float)y, exact) <= 0.5 + 1e-7))
      FAIL("d = %" PRId64 ": %.6f ulp", d, ulps((float)y, exact));
  }
  CHECK(same_f32(lattn_rsqrt_int_(64), 0.125f) && same_f32(lattn_rsqrt_int_(1), 1));
}

#if defined(__FMA__) || defined(__aarch64__) || (defined(LONGATTN_STRICT) && LONGATTN_STRICT)
/* One rounding, also where the instruction is missing and the switch for it is on. */
static void test_fma(void) {
  test_rng rng = rng_seed(35);
  int64_t n = test_count(1000000);
  check_case("fused multiply-add");
  for (int64_t i = 0; i < n; i++) {
    float a = any_float(&rng), b = any_float(&rng), c = any_float(&rng);
    if (i % 3 == 0) c = -(float)((double)a * (double)b); /* cancels: only the lost bits remain */
    if (i % 3 == 1 && isfinite(c)) c = f32_of_bits(bits_of_f32(c) ^ (bits_of_f32(a) & 0x00ff0000u));
    CHECK(same_f32(lattn_fma_(a, b, c), fmaf(a, b, c)));
  }
}
#else
static void test_fma(void) {} /* two roundings, by choice */
#endif

/* A negative scale, which only a file that lies can hold, counts as not finite. */
static void test_negative_scale(void) {
  static char values[128 * 16];
  float w[128], acc[16] = {0}, sum = 1, e = 1;
  uint16_t scales[128];
  uint32_t sees[8] = {0x0f};
  lattn_rows_ rows = {values, (const char *)scales, 16, LATTN_I8};
  check_case("negative scale");
  for (int seen = 0; seen < 2; seen++) {
    for (int i = 0; i < 128; i++) scales[i] = i == 3 + !seen ? 0xbc00u : 0x3c00u, w[i] = i < 4;
    acc[0] = 0;
    lattn_value_ints_(1, &rows, NULL, NULL, 128, sees, w, &sum, 0, 128, 16, acc, 16, &e, 0);
    CHECK(isnan(acc[0]) == seen);
  }
}

int main(void) {
  printf("maths: simd %s\n", lattn_simd_name());
  test_arithmetic();
  test_choices();
  test_edges();
  test_widening();
  test_narrowing();
  test_tails();
  test_exp();
  test_sigmoid();
  test_log();
  test_tanh();
  test_tanh_seam();
  test_rsqrt();
  test_fma();
  test_negative_scale();
  return test_summary();
}
