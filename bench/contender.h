/* SPDX-License-Identifier: MIT
 *
 * What a contender's module exports. A module is a shared library of its own, opened at run time:
 * each may be compiled with flags of its own, and no template instantiation of one is linked with
 * those of another. Hence C, and raw pointers. */
#ifndef MHA_BENCH_CONTENDER_H_
#define MHA_BENCH_CONTENDER_H_

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Contiguous [batch, heads, query_len, head_dim] and [batch, kv_heads, kv_len, head_dim]. */
struct BenchAttention {
  int64_t batch, heads, kv_heads, query_len, kv_len, head_dim;
  int32_t causal; /* key j only if j <= query i */
  const float *query, *key, *value;
  float* output;
};

/* Self-attention over `sequences` sequences of `lengths[s]` rows each, one after the other in
 * x [rows, heads * head_dim]. Weights are inputs x outputs, row-major; biases have one entry per
 * output. */
struct BenchLayer {
  int64_t heads, head_dim, rows, sequences;
  const int64_t* lengths;
  const float *q_weight, *k_weight, *v_weight, *out_weight;
  const float *q_bias, *k_bias, *v_bias, *out_bias;
  const float* x;
  float* output;
};

struct BenchModule {
  const char* (*describe)(void); /* version, flags, settings */
  void (*set_threads)(int);      /* before the calls are made */
  /* Packing and whatever else is done once beforehand; a null pointer if the module cannot. */
  void* (*attention)(const struct BenchAttention*);
  void* (*layer)(const struct BenchLayer*);
  void (*run)(void*); /* what is measured */
  void (*release)(void*);
};

/* The one exported symbol. */
__attribute__((visibility("default"))) const struct BenchModule* bench_module(void);

#ifdef __cplusplus
}
#endif
#endif
