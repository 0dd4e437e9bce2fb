/* Causal grouped-query attention, forward and backward, for training tiny models on a CPU (see train.py).
   q and out are [B][T][H][D], k and v [B][T][G][D], lse (log-sum-exp of the scores) [B][H][T]; query head h uses KV
   head h / (H / G), and a query the last W tokens, its own included. One task is one KV head of one sequence; its keys and values are transposed to [D][T] first, so that
   the inner loops run over tokens and the compiler vectorises them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { D = 16 };

static float *room(long rows, long T) { return aligned_alloc(64, (size_t)(4 * rows * T + 63) / 64 * 64); }

static void transpose(const float *x, float *y, long T, long stride) {
  for (long t = 0; t < T; t++)
    for (int d = 0; d < D; d++) y[d * T + t] = x[t * stride + d];
}

static void transpose_back(const float *y, float *x, long T, long stride) {
  for (long t = 0; t < T; t++)
    for (int d = 0; d < D; d++) x[t * stride + d] = y[d * T + t];
}

void forward(const float *q, const float *k, const float *v, float *out, float *lse,
             long B, long T, long H, long G, long W, float scale) {
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < B * G; task++) {
    long b = task / G, g = task % G, group = H / G;
    float *kt = room(D, T), *vt = room(D, T), *s = room(1, T);
    transpose(k + (b * T * G + g) * D, kt, T, G * D);
    transpose(v + (b * T * G + g) * D, vt, T, G * D);
    for (long h = g * group; h < (g + 1) * group; h++)
      for (long i = 0; i < T; i++) {
        long at = ((b * T + i) * H + h) * D, first = i < W ? 0 : i + 1 - W, n = i + 1;
        const float *qi = q + at;
        float *oi = out + at, m = -1e30f, z = 0;
        for (long j = first; j < n; j++) {
          float a = 0;
          for (int d = 0; d < D; d++) a += qi[d] * kt[d * T + j];
          s[j] = a * scale;
        }
        for (long j = first; j < n; j++) m = s[j] > m ? s[j] : m;
        for (long j = first; j < n; j++) { s[j] = expf(s[j] - m); z += s[j]; }
        for (int d = 0; d < D; d++) {
          float a = 0;
          for (long j = first; j < n; j++) a += s[j] * vt[d * T + j];
          oi[d] = a / z;
        }
        lse[(b * H + h) * T + i] = m + logf(z);
      }
    free(kt); free(vt); free(s);
  }
}

void backward(const float *q, const float *k, const float *v, const float *out, const float *lse, const float *gout,
              float *gq, float *gk, float *gv, long B, long T, long H, long G, long W, float scale) {
#pragma omp parallel for schedule(dynamic)
  for (long task = 0; task < B * G; task++) {
    long b = task / G, g = task % G, group = H / G;
    float *kt = room(D, T), *vt = room(D, T), *dk = room(D, T), *dv = room(D, T), *p = room(1, T), *s = room(1, T);
    transpose(k + (b * T * G + g) * D, kt, T, G * D);
    transpose(v + (b * T * G + g) * D, vt, T, G * D);
    memset(dk, 0, (size_t)(4 * D * T));
    memset(dv, 0, (size_t)(4 * D * T));
    for (long h = g * group; h < (g + 1) * group; h++)
      for (long i = 0; i < T; i++) {
        long at = ((b * T + i) * H + h) * D, first = i < W ? 0 : i + 1 - W, n = i + 1;
        const float *qi = q + at, *gi = gout + at;
        float l = lse[(b * H + h) * T + i], dot = 0;
        for (int d = 0; d < D; d++) dot += out[at + d] * gi[d];
        for (long j = first; j < n; j++) {                          /* weights p, gradients of the scores s */
          float a = 0, c = 0;
          for (int d = 0; d < D; d++) { a += qi[d] * kt[d * T + j]; c += gi[d] * vt[d * T + j]; }
          p[j] = expf(a * scale - l);
          s[j] = p[j] * (c - dot) * scale;
        }
        for (int d = 0; d < D; d++) {
          float a = 0, qd = qi[d], gd = gi[d];
          for (long j = first; j < n; j++) {
            a += s[j] * kt[d * T + j];
            dk[d * T + j] += s[j] * qd;
            dv[d * T + j] += p[j] * gd;
          }
          gq[at + d] = a;
        }
      }
    transpose_back(dk, gk + (b * T * G + g) * D, T, G * D);
    transpose_back(dv, gv + (b * T * G + g) * D, T, G * D);
    free(kt); free(vt); free(dk); free(dv); free(p); free(s);
  }
}
