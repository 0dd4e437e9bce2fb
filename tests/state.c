/* state.c - linear, flow and recurrent states against the reference: the golden values of the
 * methods, random states of every option, and what their maths says must be so.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors.

   SEED=n runs that one random case, KIND=9 SEED=n that one of lattn_flow_attention;
   VERBOSE=1 prints each that is beyond half of its bound. */
#include "test.h"

#define LONGATTN_IMPLEMENTATION
#include "longattn.h"

#include "ref.h"

#include "ref_state.h"
#include "state_cases.h"

enum { N_ANY = 600, N_FLOW = 80 };

/* ---- golden values: linear.md 10.2, flow.md 11. The inputs are formulas in double precision; the
   library gets them as floats ---- */

enum { G_TOKENS = 8, G_KEY = 4, G_VALUE = 3 };

static double g_x(int64_t t, int64_t i, int s) {
  return (double)((7 * t + 3 * i + 5 * s) % 11 - 5) / 5;
}

static ref_rows g_rows(int64_t n, int64_t dim) {
  ref_rows r = {ref_doubles(n * dim), n, 1, dim};
  return r;
}

/* A tensor of the rows, in floats. */
static lattn_tensor g_tensor(const ref_rows *r) {
  float *x = (float *)ref_memory(r->n * r->heads * r->dim, sizeof *x);
  for (int64_t i = 0; i < r->n * r->heads * r->dim; i++) x[i] = (float)r->x[i];
  return tensor_of(x, LATTN_F32, r->n, r->heads, r->dim);
}

typedef struct golden {
  const char *name;
  lattn_state_config config;
  double out[2][3], sum, square; /* of tokens 1 and 7; over the final state */
  int with_z;                    /* the normaliser is a column of it */
} golden;

static const float g_bonus[4] = {0.5f, -0.25f, 1, 0.75f}, g_slow[1] = {-0.25f};

#define G_CONFIG(preset, feature, scale, decay, delta, reads, normaliser, epsilon, unit)          \
  {                                                                                               \
    sizeof(lattn_state_config), 0, 1, 0, 0, 0, G_KEY, G_VALUE, feature, 0, unit, 0, scale, decay, \
        delta, reads, normaliser, epsilon, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,                          \
        (decay) == LATTN_DECAY_HEAD ? g_slow : NULL, (reads) ? g_bonus : NULL, NULL, NULL         \
  }

enum { G_COMBA = 11, G_RWKV7 = 10 };

static const golden g_linear[] = {
    {"identity, plain",
     G_CONFIG(0, LATTN_FEATURE_IDENTITY, 1, 0, 0, 0, 0, 0, 0),
     {{1.048, -1.328, 0.608}, {0.032, -1.808, 1.456}},
     0.68,
     32.5232,
     0},
    {"elu1, normalised",
     G_CONFIG(0, LATTN_FEATURE_ELU1, 1, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-6f, 0),
     {{0.616649988, 0.0708624117, -0.383349917}, {0.0995285788, -0.126364375, 0.00686128801}},
     34.9011441,
     339.976968,
     1},
    {"Taylor, normalised",
     G_CONFIG(0, LATTN_FEATURE_TAYLOR, 0, 0, 0, 0, LATTN_NORMALISER_SUM, 1e-12f, 0),
     {{0.776005178, -0.208009061, -0.223994822}, {0.143457743, -0.215758616, 0.0334620335}},
     11.2600847,
     93.470904,
     1},
    {"decay of a head",
     G_CONFIG(0, 0, 1, LATTN_DECAY_HEAD, 0, 0, 0, 0, 0),
     {{0.78256094, -1.16873656, 0.608}, {-0.512315, -0.490266011, 0.316631063}},
     1.02714928,
     9.91066795,
     0},
    {"SSD",
     G_CONFIG(0, 0, 0, LATTN_DECAY_STEP, 0, 0, 0, 0, 0),
     {{0.326192028, -0.545315217, 0.304}, {-0.273368496, -0.198256054, 0.146980157}},
     1.07830408,
     9.83608169,
     0},
    {"GLA",
     G_CONFIG(0, 0, 0, LATTN_DECAY_CHANNEL, 0, 0, 0, 0, 0),
     {{0.417696692, -0.600218015, 0.304}, {-0.34224149, -0.132406191, 0.15594882}},
     1.04227319,
     9.24600365,
     0},
    {"RWKV-6",
     G_CONFIG(0, 0, 1, LATTN_DECAY_CHANNEL, 0, LATTN_READS_BEFORE, 0, 0, 0),
     {{1.13, -1, 0.28}, {-0.846558665, -0.286942653, 0.985806144}},
     1.04227319,
     9.24600365,
     0},
    {"DeltaNet",
     G_CONFIG(0, 0, 0, 0, LATTN_DELTA_KEY, 0, 0, 0, LATTN_UNIT_L2),
     {{0.0111735622, -0.137357465, 0.113611589}, {-0.32339678, -0.0552260567, 0.219560808}},
     -0.251710242,
     2.41449508,
     0},
    {"Gated DeltaNet",
     G_CONFIG(0, 0, 0, LATTN_DECAY_STEP, LATTN_DELTA_KEY, 0, 0, 0, LATTN_UNIT_L2),
     {{-0.00187400311, -0.129528926, 0.113611589}, {-0.183956532, 0.00453855039, 0.0942807918}},
     -0.0679239412,
     0.748758805,
     0},
    {"KDA",
     G_CONFIG(0, 0, 0, LATTN_DECAY_CHANNEL, LATTN_DELTA_KEY, 0, 0, 0, LATTN_UNIT_L2),
     {{0.00532383906, -0.133847631, 0.113611589}, {-0.21696947, 0.0211751103, 0.105047012}},
     -0.0798230768,
     0.76913503,
     0},
    {"RWKV-7",
     G_CONFIG(0, 0, 1, LATTN_DECAY_CHANNEL, LATTN_DELTA_GENERAL, 0, 0, 0, 0),
     {{0.583221777, -1.04913307, 0.608}, {-0.532535173, -0.0790365006, -0.032240724}},
     0.73899503,
     5.3539918,
     0},
    {"Comba",
     G_CONFIG(0, 0, 0, LATTN_DECAY_STEP, LATTN_DELTA_GENERAL, 0, 0, 0, LATTN_UNIT_L2),
     {{-0.00216384606, -0.12935502, 0.113611589}, {-0.184611858, -0.000660552292, 0.102819936}},
     -0.0570202133,
     0.760674488,
     0},
};

static ref_input g_input(int which) {
  const lattn_state_config *c = &g_linear[which].config;
  ref_input in;
  memset(&in, 0, sizeof in);
  in.q = g_rows(G_TOKENS, G_KEY), in.k = g_rows(G_TOKENS, G_KEY), in.v = g_rows(G_TOKENS, G_VALUE);
  if (c->decay > LATTN_DECAY_HEAD)
    in.decay = g_rows(G_TOKENS, c->decay == LATTN_DECAY_STEP ? 1 : G_KEY);
  if (c->delta == LATTN_DELTA_KEY) in.beta = g_rows(G_TOKENS, 1);
  if (c->delta == LATTN_DELTA_GENERAL)
    in.predict = g_rows(G_TOKENS, G_KEY), in.write = g_rows(G_TOKENS, G_KEY);
  for (int t = 0; t < G_TOKENS; t++) {
    double beta = (double)(4 * t % 7 + 1) / 8, square = 0;
    if (in.beta.x) in.beta.x[t] = beta;
    for (int i = 0; i < G_KEY; i++) {
      in.q.x[t * G_KEY + i] = g_x(t, i, 0);
      in.k.x[t * G_KEY + i] = g_x(t, i, 1);
      square += g_x(t, i, 1) * g_x(t, i, 1);
      if (i < G_VALUE) in.v.x[t * G_VALUE + i] = g_x(t, i, 2) * (which == G_COMBA ? beta : 1);
      if (in.decay.x && in.decay.dim > 1)
        in.decay.x[t * G_KEY + i] = -(double)((3 * t + 2 * i) % 5 + 1) / 10;
      if (which == G_RWKV7) in.decay.x[t * G_KEY + i] = -exp(-0.5) * ref_sigmoid(g_x(t, i, 3));
    }
    if (in.decay.x && in.decay.dim == 1) in.decay.x[t] = -(double)(3 * t % 5 + 1) / 10;
    for (int i = 0; i < G_KEY && in.predict.x; i++) {
      double unit = g_x(t, i, 1) / sqrt(square), comba = g_x(t, i, 1) / sqrt(square + 1e-6);
      in.predict.x[t * G_KEY + i] = which == G_RWKV7 ? -unit : -0.7 * comba;
      in.write.x[t * G_KEY + i] =
          which == G_RWKV7 ? unit * (double)((2 * t + 3 * i) % 7 + 1) / 8 : beta * comba;
    }
  }
  return in;
}

/* The last printed digit of the golden values: 9 significant ones. */
static int g_same(double got, double want, double tolerance) {
  return fabs(got - want) <= tolerance * fmax(fabs(want), 0.1);
}

/* tolerance 2e-8: of doubles; floats: inputs are rounded, and 8 tokens are summed. */
static void g_check(const golden *g, const double *out, double sum, double square,
                    double tolerance) {
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < G_VALUE; j++) {
      double got = out[(i ? 7 : 1) * G_VALUE + j];
      if (!g_same(got, g->out[i][j], tolerance))
        FAIL("token %d, dim %d: got %.10g, expected %.10g", i ? 7 : 1, j, got, g->out[i][j]);
    }
  if (!g_same(sum, g->sum, 10 * tolerance)) FAIL("sum: got %.10g, expected %.10g", sum, g->sum);
  if (!g_same(square, g->square, 10 * tolerance))
    FAIL("sum of squares: got %.10g, expected %.10g", square, g->square);
}

static void golden_linear(int which) {
  const golden *g = &g_linear[which];
  ref_state r;
  ref_input in = g_input(which);
  double out[G_TOKENS * G_VALUE], bound[G_TOKENS * G_VALUE], sum = 0, square = 0;
  check_case("golden %s: the reference", g->name);
  ref_state_open(&r, &g->config);
  ref_advance(&r, &in, out, bound);
  for (int64_t i = 0; i < r.features * r.width; i++) {
    if (!g->with_z && i % r.width >= G_VALUE) continue;
    sum += r.S[i], square += r.S[i] * r.S[i];
  }
  g_check(g, out, sum, square, 2e-8);
#ifndef REF_ONLY
  {
    state_box b;
    lattn_state_call call;
    lattn_tensor q = g_tensor(&in.q), k = g_tensor(&in.k), v = g_tensor(&in.v), decay, beta, p, w,
                 m;
    float *got = (float *)ref_memory(G_TOKENS * G_VALUE, sizeof *got);
    float *S = (float *)ref_memory(r.features * r.width, sizeof *S);
    check_case("golden %s: the library", g->name);
    memset(&call, 0, sizeof call);
    call.size = sizeof call;
    decay = beta = p = w = q;
    if (in.decay.x) decay = g_tensor(&in.decay), call.decay = &decay;
    if (in.beta.x) beta = g_tensor(&in.beta), call.beta = &beta;
    if (in.predict.x) p = g_tensor(&in.predict), call.predict = &p;
    if (in.write.x) w = g_tensor(&in.write), call.write = &w;
    b = box_open(&g->config);
    CHECK_STATUS(lattn_state_advance(b.state, &call, q, k, v,
                                     tensor_of(got, LATTN_F32, G_TOKENS, 1, G_VALUE), NULL),
                 LATTN_OK);
    for (int i = 0; i < G_TOKENS * G_VALUE; i++) out[i] = (double)got[i];
    m = tensor_of(S, LATTN_F32, r.features, 1, G_VALUE);
    CHECK_STATUS(lattn_state_get(b.state, LATTN_MATRIX_STATE, 0, m), LATTN_OK);
    if (g->with_z) {
      m = tensor_of(S + r.features * G_VALUE, LATTN_F32, 1, 1, r.features);
      CHECK_STATUS(lattn_state_get(b.state, LATTN_MATRIX_NORMALISER, 0, m), LATTN_OK);
    }
    sum = square = 0;
    for (int64_t i = 0; i < r.features * (G_VALUE + g->with_z); i++)
      sum += (double)S[i], square += (double)S[i] * (double)S[i];
    g_check(g, out, sum, square, 2e-6);
    box_close(&b);
    free(got), free(S);
    free(test_writable(q.data)), free(test_writable(k.data)), free(test_writable(v.data));
    if (call.decay) free(test_writable(decay.data));
    if (call.beta) free(test_writable(beta.data));
    if (call.predict) free(test_writable(p.data)), free(test_writable(w.data));
  }
#endif
  ref_input_free(&in);
  ref_state_close(&r);
}

/* X(n, d, s)[t][i] = sin(0.7 (t d + i) + s) */
static ref_rows g_sine(int64_t n, int64_t d, double s) {
  ref_rows r = g_rows(n, d);
  for (int64_t i = 0; i < n * d; i++) r.x[i] = sin(0.7 * (double)i + s);
  return r;
}

typedef struct golden_sine {
  const char *name;
  int32_t kind;
  int cross; /* FLOW: bidirectional, of so many queries */
  float low, high;
  int32_t chunk;
  int n;
  double out[5][2];
} golden_sine;

static const golden_sine g_sines[] = {
    {"flow, bidirectional",
     LATTN_STATE_FLOW,
     5,
     -1,
     1,
     0,
     5,
     {{+0.125148438837, +0.088838667375},
      {+0.131143039961, +0.081531042968},
      {+0.104359955813, +0.073178424152},
      {+0.125376367221, +0.088898705071},
      {+0.131001804473, +0.081370057276}}},
    {"flow, bidirectional, no clamp",
     LATTN_STATE_FLOW,
     5,
     -INFINITY,
     INFINITY,
     0,
     5,
     {{+0.185179348439, +0.120015782309},
      {+0.187986212849, +0.112671626123},
      {+0.154302317963, +0.099258703493},
      {+0.185462051400, +0.120118461198},
      {+0.187748521809, +0.112469191365}}},
    {"flow, cross",
     LATTN_STATE_FLOW,
     2,
     -1,
     1,
     0,
     2,
     {{+0.131851280520, +0.081146163271},
      {+0.136433859967, +0.074295564132},
      {0, 0},
      {0, 0},
      {0, 0}}},
    {"flow, causal",
     LATTN_STATE_FLOW,
     0,
     -1,
     1,
     0,
     5,
     {{+0.174904761972, -0.323507418210},
      {-0.061884353894, -0.392562767323},
      {-0.153183725592, -0.206393860483},
      {+0.067444807165, +0.095337161866},
      {+0.128000726610, +0.093181415583}}},
    {"flow, causal, no clamp",
     LATTN_STATE_FLOW,
     0,
     -INFINITY,
     INFINITY,
     0,
     5,
     {{+0.174904761972, -0.323507418210},
      {-0.061884303963, -0.392562715062},
      {-0.153183674346, -0.206393834908},
      {+0.100187360765, +0.140187944575},
      {+0.151953838791, +0.129999050901}}},
    {"Aaren",
     LATTN_STATE_AAREN,
     0,
     0,
     0,
     0,
     5,
     {{+0.239249329214, -0.442520443295},
      {+0.046062577764, -0.528863753408},
      {-0.164956764318, -0.300635773837},
      {+0.145527171862, +0.150603294027},
      {+0.188392214807, +0.155348713891}}},
    {"Titans, each token",
     LATTN_STATE_TITANS,
     0,
     0,
     0,
     1,
     5,
     {{+0.168641297933, -0.311922387261},
      {+0.161993835775, -0.356757294320},
      {-1.610790971710, -0.948328668309},
      {+0.875486738146, +1.635238855517},
      {+0.196624031714, -0.043213592555}}},
    {"Titans, chunks of 2",
     LATTN_STATE_TITANS,
     0,
     0,
     0,
     2,
     5,
     {{+0.168641297933, -0.311922387261},
      {+0.157617378519, -0.348662509639},
      {-1.897027836151, -0.418899120667},
      {+1.421116819855, +1.498073743672},
      {+0.460104482746, +0.432828903259}}},
};

static const double g_lse[5] = {0.678268002380, 0.861231134817, 1.297591774690, 1.724269732805,
                                1.792170998481};
static const double g_memory[6] = {0.055587938707, 0.044893969802,  -0.265839566594,
                                   0.208810003384, -0.462238569868, 0.274519429629};

/* c->query points to `query`. */
static void sine_case(const golden_sine *g, lattn_state_config *c, ref_input *in, float *query) {
  memset(c, 0, sizeof *c);
  memset(in, 0, sizeof *in);
  c->size = sizeof *c;
  c->kind = g->kind, c->n_heads = 1, c->key_dim = 3, c->value_dim = 2;
  c->clamp_low = g->low, c->clamp_high = g->high, c->chunk = g->chunk;
  in->q = g_sine(5, 3, 0.1), in->k = g_sine(5, 3, 1.3), in->v = g_sine(5, 2, 2.9);
  for (int i = 0; i < 3; i++) query[i] = (float)in->q.x[i];
  if (c->kind == LATTN_STATE_AAREN) c->query = query;
  if (c->kind != LATTN_STATE_TITANS) return;
  in->rate = g_rows(5, 1), in->momentum = g_rows(5, 1), in->forget = g_rows(5, 1);
  for (int t = 0; t < 5; t++) {
    in->rate.x[t] = 0.3 - 0.02 * t;
    in->momentum.x[t] = 0.5 + 0.05 * t;
    in->forget.x[t] = 0.02 * t;
  }
}

static void sine_by_reference(const golden_sine *g, const lattn_state_config *c,
                              const ref_input *in) {
  ref_state r;
  double out[10], bound[10], lse[10];
  check_case("golden %s: the reference", g->name);
  ref_state_open(&r, c);
  for (int i = 0; i < 3 && r.query; i++) r.query[i] = in->q.x[i];
  if (g->cross) {
    ref_flow_options o = ref_flow_options_of(&r.c);
    ref_flow(&o, 0, in->q.x, 3, g->cross, in->k.x, 3, in->v.x, 2, 5, 3, 2, out, bound, 2);
  } else if (c->kind == LATTN_STATE_AAREN) {
    ref_aaren_advance(&r, in, out, bound, lse);
    for (int t = 0; t < 5; t++) CHECK(g_same(lse[t], g_lse[t], 1e-11));
  } else {
    ref_advance(&r, in, out, bound);
  }
  for (int i = 0; i < 2 * g->n; i++)
    if (!g_same(out[i], g->out[i / 2][i % 2], 2e-11))
      FAIL("number %d: got %.12g, expected %.12g", i, out[i], g->out[i / 2][i % 2]);
  for (int i = 0; i < 6 && c->kind == LATTN_STATE_TITANS && g->chunk == 1; i++)
    CHECK(g_same(r.memories[0].w[0][i], g_memory[i], 2e-11));
  ref_state_close(&r);
}

#ifndef REF_ONLY
static void sine_by_flow_attention(const golden_sine *g, lattn_tensor q, lattn_tensor k,
                                   lattn_tensor v, lattn_tensor y) {
  lattn_flow o;
  lattn_exec exec;
  memset(&o, 0, sizeof o);
  memset(&exec, 0, sizeof exec);
  o.size = sizeof o, o.clamp_low = g->low, o.clamp_high = g->high;
  exec.size = sizeof exec;
  exec.scratch_bytes = lattn_flow_scratch(3, 2, 0, 1);
  exec.scratch = ref_memory((int64_t)exec.scratch_bytes, 1);
  q.n_tokens = g->cross;
  CHECK_STATUS(lattn_flow_attention(&o, q, k, v, y, &exec), LATTN_OK);
  free(exec.scratch);
}

static void sine_by_state(const lattn_state_config *c, const ref_input *in, lattn_tensor q,
                          lattn_tensor k, lattn_tensor v, lattn_tensor y) {
  lattn_state_call call;
  lattn_tensor rate, eta, alpha;
  state_box b = box_open(c);
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  rate = eta = alpha = q;
  if (in->rate.x) {
    rate = g_tensor(&in->rate), eta = g_tensor(&in->momentum), alpha = g_tensor(&in->forget);
    call.rate = &rate, call.momentum = &eta, call.forget = &alpha;
  }
  CHECK_STATUS(lattn_state_advance(b.state, &call, q, k, v, y, NULL), LATTN_OK);
  box_close(&b);
  if (!in->rate.x) return;
  free(test_writable(rate.data)), free(test_writable(eta.data)), free(test_writable(alpha.data));
}

static void sine_by_library(const golden_sine *g, const lattn_state_config *c,
                            const ref_input *in) {
  lattn_tensor q = g_tensor(&in->q), k = g_tensor(&in->k), v = g_tensor(&in->v), y;
  float got[10];
  check_case("golden %s: the library", g->name);
  y = tensor_of(got, LATTN_F32, g->n, 1, 2);
  if (g->cross) sine_by_flow_attention(g, q, k, v, y);
  else sine_by_state(c, in, q, k, v, y);
  for (int i = 0; i < 2 * g->n; i++)
    if (!g_same((double)got[i], g->out[i / 2][i % 2], 5e-6))
      FAIL("number %d: got %.9g, expected %.12g", i, (double)got[i], g->out[i / 2][i % 2]);
  free(test_writable(q.data)), free(test_writable(k.data)), free(test_writable(v.data));
}
#endif

static void golden_sines(const golden_sine *g) {
  lattn_state_config c;
  ref_input in;
  float query[3];
  sine_case(g, &c, &in, query);
  sine_by_reference(g, &c, &in);
#ifndef REF_ONLY
  sine_by_library(g, &c, &in);
#endif
  ref_input_free(&in);
}

static void golden_values(void) {
  for (int i = 0; i < (int)(sizeof g_linear / sizeof *g_linear); i++) golden_linear(i);
  for (int i = 0; i < (int)(sizeof g_sines / sizeof *g_sines); i++) golden_sines(&g_sines[i]);
}

/* ---- random cases ---- */

enum { WORST_LINEAR, WORST_FLOW, WORST_AAREN, WORST_TITANS, WORST_16, WORST_STATE, WORST_COUNT };

static const char *const worst_names[WORST_COUNT] = {"linear", "flow",    "Aaren",
                                                     "Titans", "16 bits", "matrices"};
static double worst_of[WORST_COUNT];
static long n_cases, n_numbers, n_loose; /* loose: the bound is beyond 1e-2 of the largest output */

static void note(int which, const char *what, int64_t i, double got, double want, double bound) {
  double ratio = ref_ratio(got, want, bound);
  if (bound >= REF_INFINITY) return;
  if (ratio > worst_of[which]) worst_of[which] = ratio;
  if (ratio > 0.5 && ratio <= 1 && getenv("VERBOSE"))
    printf("%s %" PRId64 ": %.9g, expected %.9g, %.3f of the bound; %s\n", what, i, got, want,
           ratio, test_global.name);
  if (ratio > 1)
    FAIL("%s %" PRId64 ": got %.9g, expected %.9g, %.3g times the bound of %.3g", what, i, got,
         want, ratio, bound);
}

/* An output of n rows: any type and layout, filled with a pattern. */
static lattn_tensor case_output(state_case *c, int64_t n) {
  lattn_tensor t =
      tensor_of(NULL, (int32_t)rng_below(&c->rng, 5), n, c->config.n_heads, state_value_dim(c));
  if (t.type > LATTN_BF16) t.type = LATTN_F32;
  state_layout(c, &t, 0);
  if (c->n_guards == STATE_GUARDS) exit(1);
  t.data = state_buffer(c, state_extent(&t), type_bytes(t.type), 1);
  memset(test_writable(t.data), 0xff, (size_t)state_extent(&t) * type_bytes(t.type));
  return t;
}

/* Of the elements between rows, all still have the pattern. */
static void check_between(const lattn_tensor *t) {
  int64_t kept = 0, extent = state_extent(t), bytes = (int64_t)type_bytes(t->type);
  int64_t rows = t->n_tokens * t->n_heads * t->dim;
  for (int64_t i = 0; i < extent; i++) {
    uint32_t u = 0, pattern = bytes == 4 ? 0xffffffffu : 0xffffu;
    memcpy(&u, (const char *)t->data + i * bytes, (size_t)bytes);
    kept += u == pattern;
  }
  CHECK_I64(kept, extent - rows);
}

static void check_output(const state_case *c, const lattn_tensor *t, const char *what,
                         const double *want, const double *bound) {
  int which = t->type > LATTN_F32 ? WORST_16 : c->config.kind;
  int64_t i = 0;
  double most = 0;
  for (int64_t n = 0; n < t->n_tokens * t->n_heads * t->dim; n++) most = fmax(most, fabs(want[n]));
  for (int64_t n = 0; n < t->n_tokens; n++)
    for (int64_t h = 0; h < t->n_heads; h++)
      for (int64_t d = 0; d < t->dim; d++, i++) {
        double limit = bound[i] + ref_half_ulp(t->type, fabs(want[i]) + bound[i]);
        if (t->type == LATTN_F16 && fabs(want[i]) > 65000) continue;
        n_numbers++;
        /* Roundings have grown to what is left of a quotient by nearly 0, or of a memory that
           diverges: no answer is better than another. */
        if (bound[i] > 0.01 * most) {
          n_loose++;
          continue;
        }
        note(which, what, i, (double)tensor_get(t, n, h, d), want[i], limit);
      }
  check_between(t);
}

/* The matrices of a linear state, or of a memory, by lattn_state_get. */
static void check_matrices(const state_case *c, const ref_state *r, const lattn_state *state,
                           int transposed) {
  int64_t m = r->features, w = r->width, dv = r->c.value_dim, S = r->states;
  int64_t columns = c->config.kind == LATTN_STATE_TITANS && r->c.hidden_dim ? r->c.hidden_dim : dv;
  float *x = (float *)ref_memory(S * m * columns, sizeof *x);
  lattn_tensor t = tensor_of(x, LATTN_F32, transposed ? columns : m, S, transposed ? m : columns);
  CHECK_STATUS(lattn_state_get(state, LATTN_MATRIX_STATE, transposed, t), LATTN_OK);
  for (int64_t s = 0; s < S; s++)
    for (int64_t i = 0; i < m; i++)
      for (int64_t j = 0; j < columns; j++) {
        double got = (double)x[transposed ? (j * S + s) * m + i : (i * S + s) * columns + j];
        if (c->config.kind == LATTN_STATE_LINEAR) {
          double e = r->E[r->c.delta ? s * w + j : (s * m + i) * w + j];
          note(WORST_STATE, "S", i * w + j, got, r->S[(s * m + i) * w + j],
               e + REF_U * fabs(got) + 0x1p-126);
        } else {
          const ref_memory_of *o = r->memories + s * (1 + REF_COPIES);
          double e = 0, size = 0;
          for (int64_t a = 0; a < columns; a++) {
            size = fmax(size, fabs(o->w[0][i * columns + a]));
            for (int n = 1; n <= REF_COPIES; n++)
              e = fmax(e, fabs(o[n].w[0][i * columns + a] - o->w[0][i * columns + a]));
          }
          note(WORST_STATE, "memory", i * columns + j, got, o->w[0][i * columns + j],
               4 * e + REF_U * size + 0x1p-126);
        }
      }
  free(x);
  if (!ref_is_normalised(r)) return;
  x = (float *)ref_memory(S * m, sizeof *x);
  t = tensor_of(x, LATTN_F32, 1, S, m);
  CHECK_STATUS(lattn_state_get(state, LATTN_MATRIX_NORMALISER, 0, t), LATTN_OK);
  for (int64_t i = 0; i < S * m; i++)
    note(WORST_STATE, "z", i, (double)x[i], r->S[i * w + dv],
         r->E[i * w + dv] + REF_U * fabs((double)x[i]));
  free(x);
}

/* A merge of the partial alone gives the output. */
static void check_partial(const state_case *c, const ref_state *r, const ref_input *in,
                          const lattn_partial *p, const double *want, const double *bound) {
  int64_t dv = state_value_dim(c);
  if (c->config.kind == LATTN_STATE_AAREN) {
    double *lse = ref_doubles(2 * p->n_rows), *out = ref_doubles(2 * p->n_rows * dv);
    ref_aaren_advance(r, in, out, out + p->n_rows * dv, lse);
    for (int64_t i = 0; i < p->n_rows; i++)
      note(WORST_AAREN, "lse", i, (double)p->maximum[i] + log((double)p->sum[i]), lse[i],
           lse[p->n_rows + i]);
    free(lse), free(out);
  }
  for (int64_t i = 0; i < p->n_rows * dv; i++) {
    double by = (double)p->sum[i / dv];
    if (c->config.kind == LATTN_STATE_LINEAR) CHECK(bits_of_f32(p->maximum[i / dv]) == 0);
    note(c->config.kind, "partial", i, (double)p->output[i] / by, want[i],
         bound[i] + 4 * REF_U * fabs(want[i]));
  }
}

/* The call gives a partial, too. */
static void case_partial(state_case *c, lattn_partial *p) {
  memset(p, 0, sizeof *p);
  p->size = sizeof *p;
  p->n_rows = c->n * c->config.n_heads, p->value_dim = state_value_dim(c);
  p->maximum = (float *)state_buffer(c, p->n_rows, sizeof(float), 0);
  p->sum = (float *)state_buffer(c, p->n_rows, sizeof(float), 0);
  p->output = (float *)state_buffer(c, p->n_rows * p->value_dim, sizeof(float), 0);
  c->call.partial = p;
}

static void case_advance(const state_case *c, lattn_state *state, lattn_tensor out, int exec) {
  state_exec e;
  state_part part;
  lattn_status status;
  const lattn_exec *given;
  state_part_of(&part, c, 0, c->n);
  given = state_exec_open(&e, &c->config, c->n, exec);
  if (c->absorbs) out.data = NULL;
  status = lattn_state_advance(state, &part.call, part.q, part.k, part.v, out, given);
  if (out.type != LATTN_F16 || status != LATTN_OVERFLOWED) CHECK_STATUS(status, LATTN_OK);
  state_exec_close(&e);
}

/* What is in the state after it: its matrices, and what up to three of the tokens read. */
static void check_state(state_case *c, ref_state *r, const lattn_state *state, int exec) {
  int64_t first = rng_below(&c->rng, c->n), n = c->n - first < 3 ? c->n - first : 3;
  int64_t total = n * c->config.n_heads * state_value_dim(c);
  double *want = ref_doubles(total), *bound = ref_doubles(total);
  state_exec e;
  state_part part;
  ref_input some;
  lattn_status status;
  lattn_tensor reads;
  lattn_state_call call;
  const lattn_exec *given = state_exec_open(&e, &c->config, n, exec);
  check_matrices(c, r, state, (int)rng_below(&c->rng, 2));
  state_part_of(&part, c, first, n);
  some = ref_input_of(NULL, &part.q, NULL, NULL);
  reads = case_output(c, n);
  memset(&call, 0, sizeof call);
  call.size = sizeof call;
  call.feature = c->call.feature;
  ref_read(r, &some, want, bound);
  status = lattn_state_read(state, call.feature ? &call : NULL, part.q, reads, given);
  if (reads.type != LATTN_F16 || status != LATTN_OVERFLOWED) CHECK_STATUS(status, LATTN_OK);
  check_output(c, &reads, "read", want, bound);
  state_exec_close(&e);
  ref_input_free(&some);
  free(want), free(bound);
}

static void run_case(uint64_t seed, int32_t kind) {
  state_case c;
  ref_state r;
  ref_input in;
  state_box b;
  lattn_tensor out;
  lattn_partial partial;
  double *want, *bound;
  int64_t total;
  int exec, partials;
  state_case_make(&c, seed, kind, 0);
  check_case("%s", c.name);
  total = c.n * c.config.n_heads * state_value_dim(&c);
  exec = (int)rng_below(&c.rng, STATE_EXECS);
  if (exec == STATE_NONE && !state_small(&c.config)) exec = STATE_ONE;
  c.absorbs = rng_chance(&c.rng, 15);
  partials = !c.absorbs && rng_chance(&c.rng, 25) &&
             (c.config.kind == LATTN_STATE_AAREN || c.config.normaliser == LATTN_NORMALISER_SUM);
  state_reference(&c, &r);
  in = ref_input_of(&c.call, &c.q, &c.k, &c.v);
  want = ref_doubles(total), bound = ref_doubles(total);
  ref_advance(&r, &in, want, bound);
  b = state_open(&c);
  out = case_output(&c, c.n);
  if (partials) case_partial(&c, &partial);
  case_advance(&c, b.state, out, exec);
  if (!c.absorbs) check_output(&c, &out, "out", want, bound);
  if (partials) check_partial(&c, &r, &in, &partial, want, bound);
  c.call.partial = NULL;
  if (c.config.kind == LATTN_STATE_LINEAR || c.config.kind == LATTN_STATE_TITANS)
    check_state(&c, &r, b.state, exec);
  n_cases++;
  box_close(&b);
  ref_input_free(&in);
  ref_state_close(&r);
  free(want), free(bound);
  state_case_free(&c);
}

/* ---- bidirectional flow ---- */

/* Options of a random call of lattn_flow_attention, and its q, k and v. */
static void flow_case_make(state_case *c, lattn_flow *o, uint64_t seed) {
  static const int32_t heads[][2] = {{1, 1}, {2, 2}, {4, 2}, {6, 2}, {4, 1}};
  static const float clamps[][2] = {{0, 0}, {-5, 5}, {-10, 10}, {-INFINITY, INFINITY}};
  int64_t n_queries, n_keys, H, G, dk, dv, i;
  memset(c, 0, sizeof *c);
  memset(o, 0, sizeof *o);
  c->rng = rng_seed(seed + 77000);
  i = rng_below(&c->rng, 5);
  H = heads[i][0], G = heads[i][1];
  dk = state_dim(&c->rng, 130), dv = state_dim(&c->rng, 130);
  n_queries = state_length(&c->rng), n_keys = state_length(&c->rng);
  if (rng_chance(&c->rng, 30)) n_keys = n_queries;
  if (rng_chance(&c->rng, 5)) n_keys = 0;
  if (rng_chance(&c->rng, 5)) n_queries = 0;
  i = rng_below(&c->rng, 4);
  o->size = sizeof *o;
  o->clamp_low = clamps[i][0], o->clamp_high = clamps[i][1];
  if (rng_chance(&c->rng, 30)) o->feature = LATTN_FEATURE_RELU;
  if (rng_chance(&c->rng, 20)) o->epsilon = 0.0078125f;
  if (rng_chance(&c->rng, 30)) o->flags = LATTN_STATE_COMPENSATED;
  check_case("flow_attention, seed %" PRIu64
             ": heads %d/%d, dims %d/%d, rows %d/%d, feature %d, "
             "clamp %g, flags %d",
             seed, (int)H, (int)G, (int)dk, (int)dv, (int)n_queries, (int)n_keys, (int)o->feature,
             (double)o->clamp_high, (int)o->flags);
  c->config.kind = LATTN_STATE_FLOW;
  c->config.n_heads = (int32_t)H, c->config.key_dim = (int32_t)dk;
  c->config.value_dim = (int32_t)dv;
  c->n = n_queries;
  c->q = state_tensor(c, H, dk, fill_normal, 1);
  c->n = n_keys;
  c->k = state_tensor(c, G, dk, fill_normal, 1);
  c->v = state_tensor(c, G, dv, fill_normal, 1);
}

static void flow_case_reference(const state_case *c, const lattn_flow *o, double *want,
                                double *bound) {
  int64_t H = c->q.n_heads, G = c->k.n_heads, dk = c->q.dim, dv = c->v.dim;
  ref_rows q = ref_rows_of(&c->q), k = ref_rows_of(&c->k), v = ref_rows_of(&c->v);
  ref_flow_options options;
  options.relu = o->feature == LATTN_FEATURE_RELU, options.compensated = o->flags;
  options.low = (double)o->clamp_low, options.high = (double)o->clamp_high;
  if (options.high == 0) options.low = -1, options.high = 1;
  options.epsilon = o->epsilon != 0 ? (double)o->epsilon : (double)1e-6f;
  for (int64_t h = 0; h < H; h++)
    ref_flow(&options, 0, ref_row_at(&q, 0, h, H), H * dk, c->q.n_tokens, ref_row_at(&k, 0, h, H),
             G * dk, ref_row_at(&v, 0, h, H), G * dv, c->k.n_tokens, dk, dv, want + h * dv,
             bound + h * dv, H * dv);
  free(q.x), free(k.x), free(v.x);
}

static void run_flow(uint64_t seed) {
  state_case c;
  lattn_flow o;
  lattn_exec exec;
  lattn_status status;
  test_guard scratch;
  lattn_tensor out;
  double *want, *bound;
  int64_t total;
  flow_case_make(&c, &o, seed);
  out = case_output(&c, c.q.n_tokens);
  memset(&exec, 0, sizeof exec);
  exec.size = sizeof exec;
  exec.n_threads = (int32_t)rng_range(&c.rng, 1, 3);
  exec.parallel_for = exec.n_threads == 3 ? test_parallel_threads : test_parallel_scrambled;
  exec.scratch_bytes = lattn_flow_scratch(c.q.dim, c.v.dim, o.flags, exec.n_threads);
  scratch = guard_alloc_at(exec.scratch_bytes, 1, (size_t)(seed % 3));
  exec.scratch = scratch.data;
  status = lattn_flow_attention(&o, c.q, c.k, c.v, out, &exec);
  if (out.type != LATTN_F16 || status != LATTN_OVERFLOWED) CHECK_STATUS(status, LATTN_OK);
  if (!guard_free(&scratch)) FAIL("something was written beside scratch");
  total = c.q.n_tokens * c.q.n_heads * c.v.dim;
  want = ref_doubles(total), bound = ref_doubles(total);
  flow_case_reference(&c, &o, want, bound);
  check_output(&c, &out, "out", want, bound);
  n_cases++;
  free(want), free(bound);
  state_case_free(&c);
}

/* The reference itself, without epsilon, by the n x n matrix of flows G: one formula for each line
   of flow.md 1.2, and what is conserved. */
enum { F_L = 9, F_S = 7, F_D = 5, F_M = 3 }; /* sinks, sources, dims of keys and values */

static void flow_both_ways(double (*G)[F_S], const double *v, const double *out) {
  double in[F_L], go[F_S], g[F_L], s[F_S], c[F_S], sums[3] = {0, 0, 0};
  for (int i = 0; i < F_L; i++) {
    double sum = 0;
    for (int j = 0; j < F_S; j++) sum += G[i][j];
    in[i] = 1 / sum;
  }
  for (int j = 0; j < F_S; j++) {
    double sum = 0;
    for (int i = 0; i < F_L; i++) sum += G[i][j];
    go[j] = 1 / sum;
  }
  for (int i = 0; i < F_L; i++) {
    g[i] = 0;
    for (int j = 0; j < F_S; j++) g[i] += G[i][j] * go[j];
    sums[0] += g[i];
  }
  for (int j = 0; j < F_S; j++) {
    s[j] = 0;
    for (int i = 0; i < F_L; i++) s[j] += G[i][j] * in[i];
    sums[1] += s[j], sums[2] += exp(s[j]);
  }
  CHECK(fabs(sums[0] - F_S) < 1e-12 && fabs(sums[1] - F_L) < 1e-12);
  for (int j = 0; j < F_S; j++) c[j] = F_S * exp(s[j]) / sums[2];
  for (int i = 0; i < F_L * F_M; i++) {
    double y = 0;
    for (int j = 0; j < F_S; j++) y += G[i / F_M][j] * c[j] * v[j * F_M + i % F_M];
    CHECK(fabs(y * in[i / F_M] * ref_sigmoid(g[i / F_M] * F_L / F_S) - out[i]) < 1e-12);
  }
}

static void flow_one_way(double (*G)[F_S], const double *v, const double *out) {
  double in[F_S], go[F_S], c[F_S], Z = 0;
  for (int t = 0; t < F_S; t++) {
    double a = 0, b = 0, g = 0, s = 0, y[F_M] = {0};
    for (int j = 0; j <= t; j++) a += G[t][j], b += G[j][t];
    in[t] = (t + 1) / a, go[t] = (t + 1) / b;
    for (int j = 0; j <= t; j++) g += G[t][j] * go[j] / (t + 1), s += G[j][t] * in[j] / (t + 1);
    Z += exp(s);
    c[t] = (t + 1) * exp(s) / Z;
    for (int j = 0; j <= t; j++)
      for (int x = 0; x < F_M; x++) y[x] += G[t][j] * c[j] * v[j * F_M + x];
    for (int x = 0; x < F_M; x++)
      CHECK(fabs(y[x] * ref_sigmoid(g) * in[t] / (t + 1) - out[t * F_M + x]) < 1e-12);
  }
}

static void flow_by_matrix(int causal) {
  int n = causal ? F_S : F_L;
  ref_flow_options o = {0, 0, -REF_INFINITY, REF_INFINITY, 0};
  test_rng rng = rng_seed(8);
  double q[F_L * F_D], k[F_S * F_D], v[F_S * F_M], out[F_L * F_M], bound[F_L * F_M];
  double G[F_L][F_S] = {{0}};
  check_case("reference: flow by its matrix, %s", causal ? "causal" : "bidirectional");
  for (int i = 0; i < F_L * F_D; i++) q[i] = (double)rng_normal(&rng);
  for (int i = 0; i < F_S * F_D; i++) k[i] = (double)rng_normal(&rng);
  for (int i = 0; i < F_S * F_M; i++) v[i] = (double)rng_normal(&rng);
  ref_flow(&o, causal, q, F_D, n, k, F_D, v, F_M, F_S, F_D, F_M, out, bound, F_M);
  for (int i = 0; i < F_L; i++)
    for (int j = 0; j < F_S; j++)
      for (int d = 0; d < F_D; d++)
        G[i][j] += ref_sigmoid(q[i * F_D + d]) * ref_sigmoid(k[j * F_D + d]);
  if (causal) flow_one_way(G, v, out);
  else flow_both_ways(G, v, out);
}

static void harness(void) {
  check_case("harness: an error beyond the bound is seen");
  CHECK(ref_ratio(1 + 3e-7, 1, 1e-7) > 1 && ref_ratio((double)NAN, 1, 1) > 1);
}

static void report(void) {
  printf("state %s: %ld random cases; worst error / bound:", lattn_simd_name(), n_cases);
  for (int i = 0; i < WORST_COUNT; i++)
    printf("%s %s %.3f", i ? "," : "", worst_names[i], worst_of[i]);
  printf("; %ld of %ld numbers not bounded\n", n_loose, n_numbers);
  check_case("most numbers are bounded");
  CHECK(n_loose < n_numbers / 50);
}

int main(void) {
  const char *seed = getenv("SEED"), *kind = getenv("KIND");
  uint64_t first;
  if (seed) {
    int k = kind ? atoi(kind) : -1;
    if (k == 9) run_flow(strtoull(seed, NULL, 10));
    else run_case(strtoull(seed, NULL, 10), k);
    report();
    return test_summary();
  }
  first = strcmp(lattn_simd_name(), "avx2") ? 0 : N_ANY; /* levels share the seeds */
  golden_values();
  flow_by_matrix(0), flow_by_matrix(1);
  harness();
  for (uint64_t i = 0; i < (uint64_t)test_count(N_ANY); i++) run_case(first + i, -1);
  for (uint64_t i = 0; i < (uint64_t)test_count(N_FLOW); i++) run_flow(first + i);
  report();
  return test_summary();
}
