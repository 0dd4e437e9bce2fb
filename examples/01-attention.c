/* cc -O2 -march=native -I.. 01-attention.c -o 01-attention && ./01-attention
 * Causal attention, 1000 tokens, 8 query heads on 2 KV heads. Prints: ok: 0.0 249.5 499.5 */
#define LONGATTN_IMPLEMENTATION
#include "longattn.h"
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 1000, HEADS = 8, KV_HEADS = 2, DIM = 64 };
static float q[TOKENS][HEADS][DIM], k[TOKENS][KV_HEADS][DIM], v[TOKENS][KV_HEADS][DIM];
static float out[TOKENS][HEADS][DIM];

int main(void) {
  /* All keys are equal: a row is the plain mean of the values 0 ... t of the tokens it sees. */
  for (int t = 0; t < TOKENS; t++)
    for (int i = 0; i < KV_HEADS * DIM; i++) v[t][i / DIM][i % DIM] = (float)t;
  lattn_tensor Q = {q, LATTN_F32, 0, TOKENS, HEADS, DIM, 0, 0}, O = Q;
  lattn_tensor K = {k, LATTN_F32, 0, TOKENS, KV_HEADS, DIM, 0, 0}, V = K;
  O.data = out, V.data = v;
  lattn_attn options = {.size = sizeof options, .mask = LATTN_CAUSAL};
  lattn_exec exec = {.size = sizeof exec};
  exec.scratch_bytes = lattn_attention_scratch(&options, Q, K, V, 1);
  exec.scratch = malloc(exec.scratch_bytes);
  lattn_status status = lattn_attention(&options, Q, K, V, O, NULL, &exec);
  printf("%s: %.1f %.1f %.1f\n", lattn_status_text(status), (double)out[0][0][0],
         (double)out[499][3][0], (double)out[999][7][63]);
  free(exec.scratch);
  return status != LATTN_OK;
}
