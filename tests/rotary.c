/* rotary.c - frequencies in turns, sin and cos of a turn, rotated rows.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   The reference for frequencies shares no method with the library: it is fixed-point arithmetic on
   256 fraction bits that knows only sums and products. base^(-2/n) is the root g of g^(n/2) =
   1/base, found bit by bit; pi is Machin's formula; YaRN's bounds are found by comparing powers of
   g, without a logarithm. The library must give the turn correctly rounded, or miss it by 2^-30
   of a unit. sin, cos and rows are checked against libm's double: its error, 2^-52, is 2^-28 of
   an ulp here. */
#include "test.h"
#include <fenv.h>
#include <float.h>
#define LONGATTN_IMPLEMENTATION
#include "../longattn.h"

/* Outputs of every kind of call go through this hash: one number for all compilers, flags and
   machines. */
static uint64_t outputs = HASH_SEED;
static const uint64_t outputs_expected = 0x4690ce1762b1f5eb;

/* ---- reference: unsigned fixed point, a 32-bit integer part and 256 fraction bits ---- */

enum { BIG_WORDS = 9, BIG_TOP = BIG_WORDS - 1 };
typedef struct big {
  uint32_t w[BIG_WORDS]; /* least first; w[BIG_TOP] is the integer part */
} big;

static big big_of(uint32_t whole) {
  big x = {{0}};
  x.w[BIG_TOP] = whole;
  return x;
}

static int big_compare(const big *a, const big *b) {
  for (int i = BIG_TOP; i >= 0; i--)
    if (a->w[i] != b->w[i]) return a->w[i] < b->w[i] ? -1 : 1;
  return 0;
}

static big big_add(big a, big b) {
  uint64_t carry = 0;
  for (int i = 0; i < BIG_WORDS; i++) {
    carry += (uint64_t)a.w[i] + b.w[i];
    a.w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  return a;
}

static big big_subtract(big a, big b) {
  uint64_t borrow = 0;
  for (int i = 0; i < BIG_WORDS; i++) {
    uint64_t d = (uint64_t)a.w[i] - b.w[i] - borrow;
    a.w[i] = (uint32_t)d;
    borrow = d >> 63;
  }
  return a;
}

/* a * b modulo 2^32, truncated. Small words are skipped: most factors here have few. */
static big big_multiply(const big *a, const big *b) {
  uint32_t p[2 * BIG_WORDS] = {0};
  big r;
  for (int i = 0; i < BIG_WORDS; i++) {
    uint64_t carry = 0;
    if (!a->w[i]) continue;
    for (int j = 0; j < BIG_WORDS; j++) {
      carry += (uint64_t)a->w[i] * b->w[j] + p[i + j];
      p[i + j] = (uint32_t)carry;
      carry >>= 32;
    }
    p[i + BIG_WORDS] = (uint32_t)carry;
  }
  memcpy(r.w, p + BIG_TOP, sizeof r.w);
  return r;
}

static big big_times(big a, uint32_t m) {
  uint64_t carry = 0;
  for (int i = 0; i < BIG_WORDS; i++) {
    carry += (uint64_t)a.w[i] * m;
    a.w[i] = (uint32_t)carry;
    carry >>= 32;
  }
  return a;
}

static big big_over(big a, uint32_t d) {
  uint64_t rest = 0;
  for (int i = BIG_TOP; i >= 0; i--) {
    rest = rest << 32 | a.w[i];
    a.w[i] = (uint32_t)(rest / d);
    rest %= d;
  }
  return a;
}

/* A double in [0, 2^32) with at most 256 fraction bits. */
static big big_of_double(double x) {
  big r = big_of(0);
  for (int i = BIG_TOP; i >= 0; i--) {
    r.w[i] = (uint32_t)x;
    x = ldexp(x - r.w[i], 32);
  }
  return r;
}

/* The largest g < 1 with g^k * b <= a, to 224 bits. Quotients are k = 1. Needs a < b. */
static big big_root(const big *a, const big *b, int k) {
  big g = big_of(0);
  for (int bit = 0; bit < 224; bit++) {
    int word = BIG_TOP - 1 - bit / 32;
    uint32_t one = (uint32_t)1 << (31 - bit % 32);
    big product = *b, power;
    g.w[word] |= one;
    power = g;
    for (int n = k; n; n >>= 1) {
      if (n & 1) product = big_multiply(&product, &power);
      if (n > 1) power = big_multiply(&power, &power);
    }
    if (big_compare(&product, a) > 0) g.w[word] &= ~one;
  }
  return g;
}

/* atan(1/n) by its series. */
static big big_arctangent(uint32_t n) {
  big term = big_over(big_of(1), n), sum = big_of(0);
  for (uint32_t i = 0; i < 120; i++) {
    big part = big_over(term, 2 * i + 1);
    sum = i % 2 ? big_subtract(sum, part) : big_add(sum, part);
    term = big_over(term, n * n);
  }
  return sum;
}

static big two_pi, inverse_two_pi;

static void big_init(void) {
  big one = big_of(1);
  two_pi = big_subtract(big_times(big_arctangent(5), 32), big_times(big_arctangent(239), 8));
  inverse_two_pi = big_root(&one, &two_pi, 1);
}

/* theta rounded to float32, to nearest even (normal floats below 2 only). */
static big big_round_f32(big theta) {
  int top = 32 * BIG_WORDS - 1;
  big half = big_of(0), mask;
  while (top > 0 && !(theta.w[top / 32] >> top % 32 & 1)) top--;
  if (top < 24) return theta;
  int last = top - 23;
  uint32_t odd = theta.w[last / 32] >> last % 32 & 1;
  half.w[(last - 1) / 32] = (uint32_t)1 << (last - 1) % 32;
  if (!odd) half = big_subtract(half, (big){{1}}); /* a tie stays below */
  mask = big_add(theta, half);
  for (int i = 0; i < last; i++) mask.w[i / 32] &= ~((uint32_t)1 << i % 32);
  return mask;
}

/* Checks turns against radians; the distance in units of 2^-64 turn must not pass 1/2 + 2^-30. */
static double worst_turn;

static void check_turn(uint64_t turn, const big *theta) {
  big exact = big_multiply(theta, &inverse_two_pi);
  uint64_t whole = (uint64_t)exact.w[7] << 32 | exact.w[6];
  double distance = (double)(int64_t)(turn - whole) - ldexp(exact.w[5], -32);
  CHECK(fabs(distance) <= 0.5 + 0x1p-30);
  if (fabs(distance) > worst_turn) worst_turn = fabs(distance);
}

/* ---- frequencies ---- */

static lattn_rotary_scaling scaling_of(int32_t kind, int32_t n_dims, double base, double factor) {
  lattn_rotary_scaling s;
  memset(&s, 0, sizeof s);
  s.size = sizeof s;
  s.kind = kind;
  s.n_dims = n_dims;
  s.base = base;
  s.factor = factor;
  return s;
}

static lattn_status turns_of(uint64_t *turns, const lattn_rotary_scaling *s) {
  lattn_status status = lattn_rotary_turns(turns, s);
  if (status == LATTN_OK) {
    outputs = hash_bytes(outputs, turns, sizeof *turns * (size_t)(s->n_dims / 2));
  }
  return status;
}

/* Powers g^0 ... g^(count - 1) of base^(-2/n). */
static void powers_of(big *powers, int count, double base, int n_dims) {
  big one = big_of(1), b = big_of_double(base), g = big_root(&one, &b, n_dims / 2);
  powers[0] = one;
  for (int f = 1; f < count; f++) powers[f] = big_multiply(&powers[f - 1], &g);
}

/* Checks the turns of s, and again with ROUND_F32, against theta[n_dims / 2]. */
static void check_turns(lattn_rotary_scaling s, const big *theta) {
  uint64_t turns[512];
  CHECK_STATUS(turns_of(turns, &s), LATTN_OK);
  for (int f = 0; f < s.n_dims / 2; f++) check_turn(turns[f], &theta[f]);
  s.flags |= LATTN_ROTARY_ROUND_F32;
  CHECK_STATUS(turns_of(turns, &s), LATTN_OK);
  for (int f = 0; f < s.n_dims / 2; f++) {
    big rounded = big_round_f32(theta[f]);
    check_turn(turns[f], &rounded);
  }
}

static void test_plain(void) {
  static const double bases[] = {10, 10000, 500000, 1e6, 1e7};
  big theta[128];
  for (int b = 0; b < 5; b++)
    for (int n = 2; n <= 256; n += 2) {
      check_case("plain base %g n_dims %d", bases[b], n);
      powers_of(theta, n / 2, bases[b], n);
      check_turns(scaling_of(LATTN_ROTARY_PLAIN, n, bases[b], 0), theta);
    }
}

/* theta * (1 - ramp) + theta / factor * ramp, ramp = part / width (clamped). */
static big blend(const big *theta, const big *over_factor, const big *part, const big *width) {
  big slow = big_multiply(theta, over_factor), ramp, rest;
  if (big_compare(part, width) >= 0) return slow;
  ramp = big_root(part, width, 1);
  rest = big_subtract(big_of(1), ramp);
  slow = big_multiply(&slow, &ramp);
  rest = big_multiply(theta, &rest);
  return big_add(slow, rest);
}

/* YaRN: pair k makes more than beta turns over the length where g^k >= 2 pi beta / length. */
static void yarn_thetas(big *theta, const big *powers, int n, const big *over_factor,
                        double length) {
  big l = big_of_double(length), fast = big_times(two_pi, 32);
  big limit_fast = big_root(&fast, &l, 1), limit_slow = big_root(&two_pi, &l, 1);
  int low = 0, high = 0;
  while (low + 1 < n && big_compare(&powers[low + 1], &limit_fast) >= 0) low++;
  while (high < n - 1 && big_compare(&powers[high], &limit_slow) > 0) high++;
  for (int f = 0; f < n / 2; f++) {
    big part = big_of((uint32_t)(f > low ? f - low : 0));
    big width = big_of((uint32_t)(high > low ? high - low : 1));
    theta[f] = blend(&powers[f], over_factor, &part, &width);
  }
}

/* Llama 3, low 1 and high 4: rotations over the length = theta * length / (2 pi). */
static void llama_thetas(big *theta, const big *powers, int n, const big *over_factor,
                         double length) {
  big l = big_of_double(length), high = big_of(4), width = big_of(3);
  for (int f = 0; f < n / 2; f++) {
    big turn = big_multiply(&powers[f], &inverse_two_pi), rotations = big_multiply(&turn, &l);
    big part = big_compare(&rotations, &high) < 0 ? big_subtract(high, rotations) : big_of(0);
    theta[f] = blend(&powers[f], over_factor, &part, &width);
  }
}

static void test_scaled(void) {
  static const double bases[] = {10, 10000, 500000, 1e6, 1e7};
  static const double factors[] = {1, 1.5, 4, 8, 40};
  static const int dims[] = {2, 4, 6, 64, 128, 256};
  big powers[256], theta[128], ntk[128];
  for (int i = 0; i < 5 * 6; i++) {
    double base = bases[i / 6], length = i % 2 ? 4096 : 32768;
    int n = dims[i % 6];
    powers_of(powers, n, base, n);
    for (int k = 0; k < 5; k++) {
      double factor = factors[k];
      big f = big_of_double(factor), one = big_of(1);
      big over = k ? big_root(&one, &f, 1) : one;
      lattn_rotary_scaling s = scaling_of(LATTN_ROTARY_LINEAR, n, base, factor);
      check_case("linear base %g n_dims %d factor %g", base, n, factor);
      for (int j = 0; j < n / 2; j++) theta[j] = big_multiply(&powers[j], &over);
      check_turns(s, theta);

      s.kind = LATTN_ROTARY_NTK;
      check_case("ntk base %g n_dims %d factor %g", base, n, factor);
      if (k && n > 2) powers_of(ntk, n / 2, factor, n - 2);
      for (int j = 0; j < n / 2; j++)
        theta[j] = k && n > 2 ? big_multiply(&powers[j], &ntk[j]) : powers[j];
      check_turns(s, theta);

      s.original_length = length;
      s.kind = LATTN_ROTARY_YARN;
      check_case("yarn base %g n_dims %d factor %g length %g", base, n, factor, length);
      yarn_thetas(theta, powers, n, &over, length);
      check_turns(s, theta);

      s.kind = LATTN_ROTARY_LLAMA3;
      check_case("llama3 base %g n_dims %d factor %g length %g", base, n, factor, length);
      llama_thetas(theta, powers, n, &over, length);
      check_turns(s, theta);
    }
  }
}

/* YaRN with real bounds: here the reference is double, so only to 1e-12. */
static void test_yarn_real_bounds(void) {
  for (int n = 32; n <= 256; n += 32)
    for (int b = 0; b < 3; b++) {
      static const double bases[] = {10000, 150000, 1e7};
      double base = bases[b], factor = 32, length = 4096, pi2 = 6.283185307179586477;
      double low = n * log(length / (32 * pi2)) / (2 * log(base));
      double high = n * log(length / pi2) / (2 * log(base));
      lattn_rotary_scaling s = scaling_of(LATTN_ROTARY_YARN, n, base, factor);
      uint64_t turns[128];
      check_case("yarn real bounds base %g n_dims %d", base, n);
      s.original_length = length;
      s.flags = LATTN_ROTARY_NO_TRUNCATE;
      CHECK_STATUS(turns_of(turns, &s), LATTN_OK);
      if (high > n - 1) high = n - 1;
      for (int f = 0; f < n / 2; f++) {
        double ramp = (f - low) / (high - low), theta = pow(base, -2.0 * f / n), want;
        if (!(ramp > 0)) ramp = 0;
        if (ramp > 1) ramp = 1;
        want = (theta * (1 - ramp) + theta / factor * ramp) / pi2;
        CHECK(fabs(ldexp((double)turns[f], -64) - want) <= 1e-12 * want + 0x1p-64);
      }
    }
}

/* Computed once with mpmath (300 and 1400 bits). */
static void test_golden(void) {
  static const struct {
    int32_t kind, flags, n_dims, f;
    double base, factor, length;
    uint64_t turns;
  } golden[] = {
      {LATTN_ROTARY_PLAIN, 0, 128, 0, 1e4, 0, 0, 0x28BE60DB9391054A},
      {LATTN_ROTARY_PLAIN, 0, 128, 1, 1e4, 0, 0, 0x234855E55644662F},
      {LATTN_ROTARY_PLAIN, 0, 128, 31, 1e4, 0, 0, 0x007872B8A7EC4E20},
      {LATTN_ROTARY_PLAIN, 0, 128, 63, 1e4, 0, 0, 0x00013458E2F59024},
      {LATTN_ROTARY_PLAIN, LATTN_ROTARY_ROUND_F32, 128, 1, 1e4, 0, 0, 0x234855F9A7D67AA3},
      {LATTN_ROTARY_PLAIN, LATTN_ROTARY_ROUND_F32, 128, 63, 1e4, 0, 0, 0x00013458E34838F9},
      {LATTN_ROTARY_LINEAR, 0, 64, 7, 1e6, 2.5, 0, 0x00CB2B939F18B9F2},
      {LATTN_ROTARY_NTK, 0, 128, 5, 5e5, 8, 0, 0x0C6472254422EE67},
      {LATTN_ROTARY_NTK, 0, 128, 40, 5e5, 8, 0, 0x0000C390E4040764},
      {LATTN_ROTARY_YARN, 0, 128, 20, 1e6, 4, 32768, 0x008B176173E0158C},
      {LATTN_ROTARY_YARN, 0, 128, 35, 1e6, 4, 32768, 0x0002918DB21EC03C},
      {LATTN_ROTARY_YARN, LATTN_ROTARY_NO_TRUNCATE, 64, 12, 150000, 32, 4096, 0x0046DFBE5B2B4D6B},
      {LATTN_ROTARY_LLAMA3, 0, 128, 20, 5e5, 8, 8192, 0x00ACBB4DC9A23F60},
      {LATTN_ROTARY_LLAMA3, 0, 128, 32, 5e5, 8, 8192, 0x0005796E9C552800},
      {LATTN_ROTARY_LLAMA3, 0, 128, 33, 5e5, 8, 8192, 0x000342F296F37431},
      {LATTN_ROTARY_LLAMA3, 0, 128, 50, 5e5, 8, 8192, 0x00000BC792690E5F},
  };
  uint64_t turns[512];
  for (size_t i = 0; i < sizeof golden / sizeof *golden; i++) {
    lattn_rotary_scaling s =
        scaling_of(golden[i].kind, golden[i].n_dims, golden[i].base, golden[i].factor);
    check_case("golden turns %d", (int)i);
    s.flags = golden[i].flags;
    s.original_length = golden[i].length;
    CHECK_STATUS(turns_of(turns, &s), LATTN_OK);
    CHECK(turns[golden[i].f] == golden[i].turns);
  }
}

/* Of conversions and magnitudes, made in the same way. */
static void test_golden_conversion(void) {
  static const struct {
    double radians;
    uint64_t turns;
  } fixed[] = {
      {0x1p1023, 0x67A0E73EF14A525D},
      {DBL_MAX, 0x7FCC3EA616B1AE41},
      {0x1.6ac5b262ca1ffp+849, 0x4000000000000001}, /* the double nearest to a multiple of pi/2 */
      {-0.1, 0xFBECF650713E4C35},
      {0x1p-50, 0x0000000000000A30},
      {6.283185307179586, 0xFFFFFFFFFFFFFD31},
      {0, 0},
      {-0.0, 0},
      {5e-324, 0},
      {-5e-324, 0},
  };
  static const struct {
    double factor, mscale;
    float magnitude;
  } magnitudes[] = {
      {40, 1, 0x1.5e6f7p+0f}, {40, 0.707, 0x1.42c40ap+0f}, {4, 1, 0x1.237d38p+0f}, {40, 0, 1},
      {1, 1, 1},              {0.5, 1, 1},                 {0, 1, 1},              {-3, 1, 1},
  };
  uint64_t turns[1];
  for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
    check_case("golden conversion %d", (int)i);
    CHECK_STATUS(lattn_rotary_turns_from_f64(turns, &fixed[i].radians, 1), LATTN_OK);
    CHECK(turns[0] == fixed[i].turns);
  }
  for (size_t i = 0; i < sizeof magnitudes / sizeof *magnitudes; i++) {
    float m = -1;
    check_case("golden magnitude %d", (int)i);
    CHECK_STATUS(lattn_rotary_yarn_magnitude(&m, magnitudes[i].factor, magnitudes[i].mscale),
                 LATTN_OK);
    CHECK(same_f32(m, magnitudes[i].magnitude));
  }
}

static void test_magnitude(void) {
  for (int i = 0; i < 400; i++) {
    double factor = 1 + ldexp(i * i, -7), mscale = i % 5 * 0.353;
    float m = 0;
    check_case("yarn magnitude factor %g mscale %g", factor, mscale);
    CHECK_STATUS(lattn_rotary_yarn_magnitude(&m, factor, mscale), LATTN_OK);
    outputs = hash_bytes(outputs, &m, sizeof m);
    double want = 0.1 * mscale * log(factor) + 1;
    CHECK(fabs((double)m - want) <= 0.5001 * (want < 2 ? 0x1p-23 : 0x1p-22));
  }
}

/* ---- conversion of tables ---- */

static void test_conversion(void) {
  test_rng r = rng_seed(7);
  uint64_t a[3] = {0}, b = 0;
  check_case("turns from f64, against the reference");
  for (int i = 0; i < 20000; i++) {
    int e = (int)rng_range(&r, 22, 90);
    double x = ldexp((double)(rng_u64(&r) >> 11), -e);
    big exact = big_of_double(x);
    double both[2] = {x, -x};
    CHECK_STATUS(lattn_rotary_turns_from_f64(a, both, 2), LATTN_OK);
    check_turn(a[0], &exact);
    CHECK(a[0] + a[1] == 0);
    outputs = hash_bytes(outputs, a, 16);
  }
  check_case("turns from f64: doubling an angle doubles its turns");
  for (int i = 0; i < 200; i++) {
    uint64_t mantissa = rng_u64(&r) >> 11;
    for (int e = -60; e < 970; e++) {
      double x[2] = {ldexp((double)mantissa, e), ldexp((double)mantissa, e + 1)};
      lattn_rotary_turns_from_f64(a, x, 2);
      CHECK(a[1] - 2 * a[0] + 1 <= 2); /* half a unit each: -1, 0 or 1 */
      outputs = hash_bytes(outputs, a, 16);
    }
  }
  check_case("turns from f64: angles add");
  for (int i = 0; i < 20000; i++) {
    int e = (int)rng_range(&r, -100, 970);
    uint64_t u = rng_u64(&r) >> 12, w = rng_u64(&r) >> 12;
    double x[3] = {ldexp((double)u, e), ldexp((double)w, e), ldexp((double)(u + w), e)};
    lattn_rotary_turns_from_f64(a, x, 3);
    CHECK(a[2] - a[0] - a[1] + 1 <= 2);
  }
  check_case("turns from f32 = from f64");
  for (int i = 0; i < 20000; i++) {
    float x = f32_of_bits((uint32_t)(rng_u64(&r) >> 32));
    double d = (double)x;
    int finite = (bits_of_f32(x) & 0x7f800000u) != 0x7f800000u;
    lattn_status status = lattn_rotary_turns_from_f32(a, &x, 1);
    CHECK_STATUS(status, finite ? LATTN_OK : LATTN_E_VALUE);
    if (status != LATTN_OK) continue;
    lattn_rotary_turns_from_f64(&b, &d, 1);
    CHECK(a[0] == b);
    outputs = hash_bytes(outputs, a, 8);
  }
}

/* The library's rounding to float32 is the machine's: ties, subnormals, overflow. */
static void test_rounding(void) {
  test_rng r = rng_seed(5);
  check_case("wide to f32 = (float)");
  for (int i = 0; i < 40000; i++) {
    int e = i & 1 ? (int)rng_range(&r, -153, 130) : (int)rng_range(&r, -151, -120);
    uint64_t m = (rng_u64(&r) >> 11) & ~(uint64_t)0 << rng_range(&r, 0, 52); /* many ties */
    double x = ldexp((double)m, e - 53);
    lattn_wide_ wide = {0, 0, 0};
    CHECK(lattn_wide_read_(&wide, &x, 0));
    CHECK(lattn_wide_to_f32_(wide) == bits_of_f32((float)x));
  }
}

/* ---- sin and cos ---- */

static double worst_sine, worst_cosine;

/* sin and cos of a turn in double: reduced to the nearest quarter, not as the library does it. */
static void sincos_reference(uint64_t turn, double *sine, double *cosine) {
  uint64_t quarter = (turn + ((uint64_t)1 << 61)) >> 62;
  double x = (double)(int64_t)(turn - (quarter << 62)) * (0x1p-64 * 6.283185307179586477);
  double s = sin(x), c = cos(x);
  *sine = quarter & 1 ? c : s;
  *cosine = quarter & 1 ? -s : c;
  if (quarter & 2) *sine = -*sine, *cosine = -*cosine;
}

static double ulps(float got, double want) {
  int e;
  if (want == 0) return got == 0.0f ? 0 : 1e30;
  (void)frexp(want, &e);
  return fabs((double)got - want) / ldexp(1, e - 24);
}

static void check_sincos(uint64_t turn) {
  float s, c;
  double sine, cosine, es, ec;
  lattn_sincos_turn_(turn, &s, &c);
  sincos_reference(turn, &sine, &cosine);
  es = ulps(s, sine);
  ec = ulps(c, cosine);
  CHECK(es <= 0.75 && ec <= 0.75);
  if (es > worst_sine) worst_sine = es;
  if (ec > worst_cosine) worst_cosine = ec;
  outputs = hash_bytes(outputs, &s, 4);
  outputs = hash_bytes(outputs, &c, 4);
}

static void test_sincos(void) {
  static const float quarters[5] = {0, 1, 0, -1, 0};
  test_rng r = rng_seed(11);
  float s, c, s2, c2;
  check_case("sincos at quarters, eighths");
  for (unsigned q = 0; q < 4; q++) {
    lattn_sincos_turn_((uint64_t)q << 62, &s, &c);
    CHECK(bits_of_f32(s) == bits_of_f32(quarters[q]));
    CHECK(bits_of_f32(c) == bits_of_f32(quarters[q + 1]));
    lattn_sincos_turn_((uint64_t)(2 * q + 1) << 61, &s, &c);
    CHECK(bits_of_f32(fabsf(s)) == 0x3f3504f3u && bits_of_f32(fabsf(c)) == 0x3f3504f3u);
    CHECK((s < 0) == (q >= 2) && (c < 0) == (q == 1 || q == 2));
  }
  check_case("sincos at the edges of octants");
  for (uint64_t octant = 0; octant < 8; octant++) {
    uint64_t edge = octant << 61;
    for (uint64_t i = 0; i < 300; i++) check_sincos(edge + i), check_sincos(edge - i);
    for (int shift = 0; shift < 61; shift++)
      for (uint64_t i = 0; i < 16; i++) {
        uint64_t step = ((uint64_t)1 << shift) + ((rng_u64(&r) >> 3) >> (61 - shift));
        check_sincos(edge + step), check_sincos(edge - step);
      }
  }
  check_case("sincos at random turns");
  /* the hash of all outputs is that of so many, on every level */
  for (int64_t i = test_is_quick() ? 50000 : 1000000; i > 0; i--) check_sincos(rng_u64(&r));
  check_case("sincos symmetries, to the bit");
  for (int i = 0; i < 50000; i++) {
    uint64_t turn = rng_u64(&r) >> (i & 31);
    lattn_sincos_turn_(turn, &s, &c);
    lattn_sincos_turn_(0 - turn, &s2, &c2);
    CHECK((s2 == -s) & (c2 == c));
    lattn_sincos_turn_(turn + ((uint64_t)1 << 63), &s2, &c2);
    CHECK((s2 == -s) & (c2 == -c));
    lattn_sincos_turn_(((uint64_t)1 << 62) - turn, &s2, &c2);
    CHECK((s2 == c) & (c2 == s));
  }
}

/* ---- rows ---- */

/* The larger error of a pair (x0, x1) rotated into (y0, y1) by exact m * (s, c), over |x| m u. */
static double pair_error(float x0, float x1, float y0, float y1, double m, double s, double c) {
  double a = (double)x0, b = (double)x1;
  double e0 = fabs((double)y0 - m * (a * c - b * s)), e1 = fabs((double)y1 - m * (a * s + b * c));
  return fmax(e0, e1) / (sqrt(a * a + b * b) * m * 0x1p-24);
}

/* A row in place by the header's own two steps. */
static void rotate_row(float *x, int32_t layout, int32_t first_dim, int32_t n_dims,
                              float magnitude, const uint64_t *turns, int64_t position) {
  float angles[1024];
  lattn_turning_ r;
  r.layout = layout;
  r.first_dim = first_dim;
  r.n_dims = n_dims;
  r.magnitude = magnitude;
  r.turns = turns;
  lattn_angles_(angles, &r, position);
  lattn_turn_(x, angles, &r);
}

/* One row: against exact turns (the bound of rotate_row), against the documented formula to
   the bit, and against the true angle, which a rounded turn misses by half a unit a position. */
static void check_row(int32_t layout, int32_t n, int32_t first, float magnitude, int64_t position,
                      const uint64_t *turns, const big *theta, test_rng *r, double *worst) {
  enum { DIM = 300 };
  float x[DIM], y[DIM];
  double m = magnitude == 0.0f ? 1 : (double)magnitude;
  uint64_t size = position < 0 ? 0 - (uint64_t)position : (uint64_t)position;
  for (int i = 0; i < DIM; i++) y[i] = x[i] = rng_normal(r);
  rotate_row(y, layout, first, n, magnitude, turns, position);
  for (int f = 0; f < n / 2; f++) {
    int i = first + (layout ? f : 2 * f), j = layout ? i + n / 2 : i + 1;
    uint64_t turn = (uint64_t)position * turns[f];
    double s, c, error;
    float sine, cosine;
    big exact = big_multiply(&theta[f], &inverse_two_pi), count = big_of((uint32_t)size);

    sincos_reference(turn, &s, &c);
    error = pair_error(x[i], x[j], y[i], y[j], m, s, c);
    CHECK(error <= (m == 1.0 ? 3.1 : 4.1));
    if (error > *worst) *worst = error;

    lattn_sincos_turn_(turn, &sine, &cosine);
    sine *= (float)m;
    cosine *= (float)m;
    CHECK(same_f32(y[i], fmaf(x[i], cosine, -(x[j] * sine))));
    CHECK(same_f32(y[j], fmaf(x[i], sine, x[j] * cosine)));

    exact = big_multiply(&exact, &count);
    turn = (uint64_t)exact.w[7] << 32 | exact.w[6];
    sincos_reference(position < 0 ? 0 - turn : turn, &s, &c);
    error = pair_error(x[i], x[j], y[i], y[j], m, s, c);
    CHECK(error <= 4.1 + ((double)size + 2) * 0x1p-41 * 6.2832);
  }
  for (int i = 0; i < DIM; i++)
    if (i < first || i >= first + n) CHECK(same_f32(x[i], y[i]));
  outputs = hash_bytes(outputs, y, sizeof y);
}

static double worst_row;

static void test_rows(void) {
  static const int64_t positions[] = {0,          1,  2,       131071,     4000000,
                                      2147483647, -1, -131071, -2147483648};
  static const int32_t dims[] = {2, 6, 64, 128, 256};
  static const float magnitudes[] = {0, 1, 0x1.237d38p+0f};
  test_rng r = rng_seed(13);
  big theta[128];
  uint64_t turns[128];
  for (int d = 0; d < 5; d++) {
    double base = d % 2 ? 500000 : 10000;
    lattn_rotary_scaling s = scaling_of(LATTN_ROTARY_PLAIN, dims[d], base, 0);
    powers_of(theta, dims[d] / 2, base, dims[d]);
    check_case("turns of rows");
    CHECK_STATUS(turns_of(turns, &s), LATTN_OK);
    for (int i = 0; i < 9 * 2 * 3; i++) {
      int32_t layout = i & 1, first = i % 3 * 17;
      int64_t position = positions[i / 2 % 9];
      float magnitude = magnitudes[i / 18];
      check_case("row layout %d n_dims %d first %d magnitude %g position %" PRId64, (int)layout,
                 (int)dims[d], (int)first, (double)magnitude, position);
      check_row(layout, dims[d], first, magnitude, position, turns, theta, &r, &worst_row);
    }
  }
  check_case("row at position 0 keeps its values");
  {
    float x[4] = {1, -2, 3e38f, 2e-38f}, y[4];
    memcpy(y, x, sizeof y);
    rotate_row(y, 1, 0, 4, 0, turns, 0);
    for (int i = 0; i < 4; i++) CHECK(same_f32(x[i], y[i]));
  }
  check_case("row with a NaN: its pair only");
  {
    float x[4] = {NAN, 1, 2, 3};
    rotate_row(x, 0, 0, 4, 0, turns, 5);
    for (int i = 0; i < 4; i++) CHECK(((bits_of_f32(x[i]) & 0x7fffffffu) > 0x7f800000u) == (i < 2));
  }
  check_case("row at the ends of int64");
  {
    float x[4] = {1, 2, 3, 4};
    rotate_row(x, 0, 0, 4, 0, turns, INT64_MIN);
    rotate_row(x, 1, 0, 4, 0, turns, INT64_MAX);
    CHECK(fabsf(x[0]) < 10 && fabsf(x[3]) < 10);
    outputs = hash_bytes(outputs, x, sizeof x);
  }
}

/* ---- hostile calls ---- */

/* The status of a call that must write nothing unless it succeeds. */
static lattn_status try_scaling(const lattn_rotary_scaling *s) {
  uint64_t turns[520];
  memset(turns, 0xa5, sizeof turns);
  lattn_status status = turns_of(turns, s);
  for (int i = status == LATTN_OK ? s->n_dims / 2 : 0; i < 520; i++)
    CHECK(turns[i] == 0xa5a5a5a5a5a5a5a5u);
  return status;
}

static void test_hostile_fields(void) {
  static const int32_t bad_dims[] = {0, -2, 1, 3, 1026, INT32_MAX, INT32_MIN};
  lattn_rotary_scaling good = scaling_of(LATTN_ROTARY_YARN, 128, 0, 0), s;
  uint64_t turns[64];
  good.original_length = 4096;
  check_case("hostile: null");
  CHECK_STATUS(lattn_rotary_turns(NULL, &good), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_turns(turns, NULL), LATTN_E_NULL);
  check_case("hostile: size");
  s = good, s.size = 0;
  CHECK_STATUS(try_scaling(&s), LATTN_E_SIZE);
  s.size = (uint32_t)sizeof s - 1;
  CHECK_STATUS(try_scaling(&s), LATTN_E_SIZE);
  s.size = UINT32_MAX;
  CHECK_STATUS(try_scaling(&s), LATTN_E_SIZE);
  {
    struct {
      lattn_rotary_scaling s;
      int64_t newer;
    } next;
    next.s = good;
    next.newer = 0;
    next.s.size = (uint32_t)sizeof next;
    CHECK_STATUS(try_scaling(&next.s), LATTN_OK);
    next.newer = 1;
    CHECK_STATUS(try_scaling(&next.s), LATTN_E_FIELD);
  }
  s.size = 4100;
  CHECK_STATUS(try_scaling(&s), LATTN_E_SIZE);
  check_case("hostile: kind, flags, n_dims");
  s = good, s.kind = -1;
  CHECK_STATUS(try_scaling(&s), LATTN_E_FIELD);
  s.kind = 5;
  CHECK_STATUS(try_scaling(&s), LATTN_E_FIELD);
  s = good, s.flags = 4;
  CHECK_STATUS(try_scaling(&s), LATTN_E_FIELD);
  s.flags = -1;
  CHECK_STATUS(try_scaling(&s), LATTN_E_FIELD);
  for (size_t i = 0; i < sizeof bad_dims / sizeof *bad_dims; i++) {
    s = good, s.n_dims = bad_dims[i];
    CHECK_STATUS(try_scaling(&s), LATTN_E_SHAPE);
  }
}

static double *scaling_field(lattn_rotary_scaling *s, int i) {
  double *fields[7];
  fields[0] = &s->base;
  fields[1] = &s->factor;
  fields[2] = &s->original_length;
  fields[3] = &s->low_frequency_factor;
  fields[4] = &s->high_frequency_factor;
  fields[5] = &s->beta_fast;
  fields[6] = &s->beta_slow;
  return fields[i];
}

static void test_hostile_values(void) {
  static const double extreme[] = {DBL_MAX, DBL_MIN, 5e-324, 1, 1 + DBL_EPSILON, 1e300, 3};
  double bad[] = {-1, -5e-324, (double)NAN, (double)INFINITY, -(double)INFINITY};
  lattn_rotary_scaling s;
  for (int32_t kind = 0; kind < 5; kind++) {
    lattn_rotary_scaling good = scaling_of(kind, 64, 0, 0);
    good.original_length = 8192;
    for (int field = 0; field < 7; field++) {
      check_case("hostile: kind %d, bad value in field %d", (int)kind, field);
      for (int i = 0; i < 5; i++) {
        s = good, *scaling_field(&s, field) = bad[i];
        CHECK_STATUS(try_scaling(&s), LATTN_E_VALUE);
      }
      check_case("kind %d, extreme value in field %d", (int)kind, field);
      for (int i = 0; i < 7 * 4; i++) { /* no undefined behaviour, the same answer everywhere */
        lattn_status status;
        s = good, *scaling_field(&s, field) = extreme[i % 7];
        s.flags = i / 7;
        *scaling_field(&s, (field + i) % 7) = extreme[(i + 3) % 7];
        status = try_scaling(&s);
        CHECK(status == LATTN_OK || status == LATTN_E_VALUE);
        outputs = hash_bytes(outputs, &status, sizeof status);
      }
    }
    check_case("kind %d: zeros are the defaults", (int)kind);
    {
      uint64_t a[32], b[32];
      s = good, s.base = 10000, s.factor = 1, s.low_frequency_factor = 1;
      s.high_frequency_factor = 4, s.beta_fast = 32, s.beta_slow = 1;
      CHECK_STATUS(turns_of(a, &good), LATTN_OK);
      CHECK_STATUS(turns_of(b, &s), LATTN_OK);
      CHECK(memcmp(a, b, sizeof a) == 0);
      s = good, s.base = -0.0, s.factor = -0.0;
      CHECK_STATUS(turns_of(b, &s), LATTN_OK);
      CHECK(memcmp(a, b, sizeof a) == 0);
    }
    check_case("hostile: kind %d, values out of range", (int)kind);
    s = good, s.base = 0.5;
    CHECK_STATUS(try_scaling(&s), LATTN_E_VALUE);
    s = good, s.factor = 0.99;
    CHECK_STATUS(try_scaling(&s), LATTN_E_VALUE);
    s = good, s.original_length = 0;
    CHECK_STATUS(try_scaling(&s), kind >= LATTN_ROTARY_YARN ? LATTN_E_VALUE : LATTN_OK);
    s = good, s.base = 1;
    CHECK_STATUS(try_scaling(&s), kind == LATTN_ROTARY_YARN ? LATTN_E_VALUE : LATTN_OK);
    s = good, s.beta_fast = 0.5;
    CHECK_STATUS(try_scaling(&s), kind == LATTN_ROTARY_YARN ? LATTN_E_VALUE : LATTN_OK);
    s = good, s.low_frequency_factor = 4;
    CHECK_STATUS(try_scaling(&s), kind == LATTN_ROTARY_LLAMA3 ? LATTN_E_VALUE : LATTN_OK);
  }
}

static void test_hostile_tables(void) {
  float f[3] = {1, 2, INFINITY}, magnitude = 42;
  double d[3] = {1, 2, (double)NAN}, nan = (double)NAN;
  uint64_t turns[3] = {7, 7, 7};
  check_case("hostile: tables");
  CHECK_STATUS(lattn_rotary_turns_from_f32(NULL, f, 1), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_turns_from_f32(turns, NULL, 1), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_turns_from_f32(turns, f, -1), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_rotary_turns_from_f32(turns, f, 3), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_turns_from_f32(turns, f, 0), LATTN_OK);
  CHECK_STATUS(lattn_rotary_turns_from_f64(NULL, d, 1), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_turns_from_f64(turns, NULL, 1), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_turns_from_f64(turns, d, INT64_MIN), LATTN_E_SHAPE);
  CHECK_STATUS(lattn_rotary_turns_from_f64(turns, d, 3), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_turns_from_f64(turns, d, 0), LATTN_OK);
  CHECK(turns[0] == 7 && turns[1] == 7 && turns[2] == 7);
  check_case("hostile: magnitude");
  CHECK_STATUS(lattn_rotary_yarn_magnitude(NULL, 4, 1), LATTN_E_NULL);
  CHECK_STATUS(lattn_rotary_yarn_magnitude(&magnitude, nan, 1), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_yarn_magnitude(&magnitude, (double)INFINITY, 1), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_yarn_magnitude(&magnitude, 4, nan), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_yarn_magnitude(&magnitude, 4, -1), LATTN_E_VALUE);
  CHECK_STATUS(lattn_rotary_yarn_magnitude(&magnitude, DBL_MAX, DBL_MAX), LATTN_E_VALUE);
  CHECK(magnitude == 42.0f);
}

/* Frequencies are integers all the way: the rounding mode of the caller has no say. */
static void test_environment(void) {
  static const int modes[] = {
#ifdef FE_UPWARD
      FE_UPWARD,
#endif
#ifdef FE_TOWARDZERO
      FE_TOWARDZERO,
#endif
      FE_TONEAREST};
  lattn_rotary_scaling s = scaling_of(LATTN_ROTARY_YARN, 128, 1e6, 4);
  uint64_t want[64], got[64];
  float magnitude = 0, magnitude_want = 0;
  s.original_length = 32768;
  s.flags = LATTN_ROTARY_ROUND_F32;
  lattn_rotary_turns(want, &s);
  lattn_rotary_yarn_magnitude(&magnitude_want, 40, 0.707);
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    lattn_status status;
    check_case("rounding mode %d", modes[i]);
    fesetround(modes[i]);
    status = lattn_rotary_turns(got, &s);
    lattn_rotary_yarn_magnitude(&magnitude, 40, 0.707);
    fesetround(FE_TONEAREST);
    CHECK_STATUS(status, LATTN_OK);
    CHECK(memcmp(got, want, sizeof want) == 0);
    CHECK(same_f32(magnitude, magnitude_want));
  }
}

int main(void) {
  big_init();
  test_golden();
  test_golden_conversion();
  test_plain();
  test_scaled();
  test_yarn_real_bounds();
  test_magnitude();
  test_conversion();
  test_rounding();
  test_sincos();
  test_rows();
  test_hostile_fields();
  test_hostile_values();
  test_hostile_tables();
  test_environment();
  printf("turns within %.6f units of 2^-64; sin %.3f ulp, cos %.3f ulp; row %.2f u |x|\n",
         worst_turn, worst_sine, worst_cosine, worst_row);
  if (!test_is_quick()) {
    check_case("hash of all outputs");
    printf("hash %016" PRIx64 "\n", outputs);
    CHECK(outputs == outputs_expected);
  }
  return test_summary();
}
