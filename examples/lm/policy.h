/* policy.h - which KV head keeps everything and which one streams: head tables of DuoAttention.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef POLICY_H
#define POLICY_H

#include "longattn.h"

enum { POLICY_ERROR = 256 };

/* A table of gates in [0, 1], one a KV head: the larger, the more the head needs its whole past. */
typedef struct head_table {
  int32_t n_layers, n_kv_heads;
  double *gates; /* [n_layers][n_kv_heads] */
} head_table;

/* Reads a table as DuoAttention publishes them: a line a layer, a number a KV head, split by tabs.
   Any syntax of floats, CR LF and a missing last line end are accepted; gates are clipped to [0,
   1]. 0, or -1 with a text in error: ragged rows, what is no number, NaN, infinity, an empty file.
   */
int head_table_load(head_table *table, const char *path, char error[POLICY_ERROR]);
int head_table_save(const head_table *table, const char *path, char error[POLICY_ERROR]);
void head_table_free(head_table *table);

/* Reads sink_size and recent_size from the config.json beside a table. 0, or -1: there is none. */
int head_table_config(const char *table_path, int64_t *sink_size, int64_t *recent_size);

/* Sets heads[i] to full or to `streaming`, for i in [n_layers][n_kv_heads]. By sparsity: so large a
   share of all heads streams, those of the smallest gates; of equal gates the last layer's and
   the last head first. Negative sparsity: a gate below 0.5 streams. Returns how many are full;
   -1: a gate is NaN, or there are more than 16384. */
int32_t head_table_split(const head_table *table, double sparsity, lattn_head streaming,
                         lattn_head *heads);

/* The bytes of a file, at most 16 MiB, and a zero after them; or NULL. The caller frees it. */
char *policy_read_file(const char *path, size_t *n_bytes);

#endif /* POLICY_H */
