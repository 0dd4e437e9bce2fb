/* The gated delta rule, forward and backward, for training tiny models on a CPU (see train.py).
   A head's state S is D x D. For each token, with decay a = exp(g):
       S = a S;  x = beta (v - k S);  S = S + k^T x;  out = scale q S
   q, k, v and out are [B][T][H][D], g and beta [B][T][H]. One task is one head of one sequence. The forward pass keeps
   the state before every CHUNK-th token in `kept`, [B][H][T / CHUNK rounded up][D][D]; the backward pass computes those
   in between again, a chunk at a time, the last chunk first. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifndef DELTA
#define DELTA 64
#endif
enum { D = DELTA, CHUNK = 32 };

static float *room(long n) { return aligned_alloc(64, (size_t)(4 * n + 63) / 64 * 64); }

/* One token: S becomes the next state, x what was written, u = v - k S. */
static void step(float *restrict S, const float *k, const float *v, float a, float beta, float *restrict x,
                 float *restrict u) {
  float p[D] = {0};
  for (int i = 0; i < D; i++)
    for (int j = 0; j < D; j++) p[j] += k[i] * (S[i * D + j] *= a);
  for (int j = 0; j < D; j++) { u[j] = v[j] - p[j]; x[j] = beta * u[j]; }
  for (int i = 0; i < D; i++)
    for (int j = 0; j < D; j++) S[i * D + j] += k[i] * x[j];
}

void delta_forward(const float *q, const float *k, const float *v, const float *g, const float *beta, float *out,
                   float *kept, long B, long T, long H, float scale) {
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < B * H; task++) {
    long b = task / H, h = task % H, chunks = (T + CHUNK - 1) / CHUNK;
    float *S = room(D * D), x[D], u[D];
    memset(S, 0, D * D * sizeof *S);
    for (long t = 0; t < T; t++) {
      long at = (b * T + t) * H + h;
      float o[D] = {0};
      if (t % CHUNK == 0) memcpy(kept + (task * chunks + t / CHUNK) * D * D, S, D * D * sizeof *S);
      step(S, k + at * D, v + at * D, expf(g[at]), beta[at], x, u);
      for (int i = 0; i < D; i++)
        for (int j = 0; j < D; j++) o[j] += q[at * D + i] * S[i * D + j];
      for (int j = 0; j < D; j++) out[at * D + j] = scale * o[j];
    }
    free(S);
  }
}

void delta_backward(const float *q, const float *k, const float *v, const float *g, const float *beta,
                    const float *kept, const float *gout, float *gq, float *gk, float *gv, float *gg, float *gbeta,
                    long B, long T, long H, float scale) {
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < B * H; task++) {
    long b = task / H, h = task % H, chunks = (T + CHUNK - 1) / CHUNK;
    float *dS = room(D * D), *S = room((CHUNK + 1) * D * D), *x = room(CHUNK * D), *u = room(CHUNK * D);
    memset(dS, 0, D * D * sizeof *dS);
    for (long chunk = chunks - 1; chunk >= 0; chunk--) {
      long first = chunk * CHUNK, n = T - first < CHUNK ? T - first : CHUNK;
      memcpy(S, kept + (task * chunks + chunk) * D * D, D * D * sizeof *S);
      for (long t = 0; t < n; t++) {
        long at = (b * T + first + t) * H + h;
        memcpy(S + (t + 1) * D * D, S + t * D * D, D * D * sizeof *S);
        step(S + (t + 1) * D * D, k + at * D, v + at * D, expf(g[at]), beta[at], x + t * D, u + t * D);
      }
      for (long t = n - 1; t >= 0; t--) {
        long at = (b * T + first + t) * H + h;
        const float *P = S + t * D * D, *xt = x + t * D, *ut = u + t * D, *qt = q + at * D, *kt = k + at * D;
        float go[D], dx[D] = {0}, du[D], a = expf(g[at]), xgo = 0, dbeta = 0, da = 0;
        for (int j = 0; j < D; j++) { go[j] = scale * gout[at * D + j]; xgo += xt[j] * go[j]; }
        for (int i = 0; i < D; i++)
          for (int j = 0; j < D; j++) dx[j] += kt[i] * (dS[i * D + j] += qt[i] * go[j]);
        for (int j = 0; j < D; j++) { dbeta += dx[j] * ut[j]; du[j] = beta[at] * dx[j]; }
        for (int i = 0; i < D; i++) {
          float s_x = 0, p_u = 0, p_o = 0, s_p = 0;
          float *dSi = dS + i * D;
          const float *Pi = P + i * D;
          for (int j = 0; j < D; j++) {
            float s = dSi[j] - kt[i] * du[j];
            s_x += dSi[j] * xt[j];
            p_u += Pi[j] * du[j];
            p_o += Pi[j] * go[j];
            s_p += s * Pi[j];
            dSi[j] = a * s;
          }
          gk[at * D + i] = s_x - a * p_u;
          gq[at * D + i] = a * p_o + kt[i] * xgo;
          da += s_p;
        }
        memcpy(gv + at * D, du, sizeof du);
        gg[at] = a * da;
        gbeta[at] = dbeta;
      }
    }
    free(dS); free(S); free(x); free(u);
  }
}
