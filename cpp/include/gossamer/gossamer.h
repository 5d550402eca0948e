/* SPDX-License-Identifier: Apache-2.0
 *
 * gossamer's C ABI. Rules that hold for every function:
 *  - Arrays are described, never owned: the caller keeps `data`, `shape` and `strides` alive during the call.
 *  - Strides are in bytes and may be zero or negative (inputs) as in numpy. Sizes are 64-bit.
 *  - The result is a status; on anything but GOSSAMER_OK the outputs are unchanged and gossamer_last_error()
 *    tells, for the calling thread, what was expected and what came.
 *  - Every function may be called from any thread. Work is split over gossamer's own threads; a call that finds
 *    them busy runs in the calling thread.
 */
#ifndef GOSSAMER_H
#define GOSSAMER_H

#include <stddef.h>
#include <stdint.h>

#include "gossamer/version.h"

#if defined(_WIN32)
#define GOSSAMER_API __declspec(dllexport)
#else
#define GOSSAMER_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gossamer_status {
  GOSSAMER_OK = 0,
  GOSSAMER_ERROR_TYPE = 1,    /* dtype or kind of an argument */
  GOSSAMER_ERROR_VALUE = 2,   /* shape or value of an argument */
  GOSSAMER_ERROR_MEMORY = 3,  /* out of memory */
  GOSSAMER_ERROR_RUNTIME = 4, /* device or system */
  GOSSAMER_ERROR_NOT_IMPLEMENTED = 5
} gossamer_status;

typedef enum gossamer_dtype {
  GOSSAMER_FLOAT32 = 0,
  GOSSAMER_FLOAT64 = 1,
  GOSSAMER_FLOAT16 = 2, /* IEEE 754 binary16 */
  GOSSAMER_BFLOAT16 = 3 /* the upper half of a float32 */
} gossamer_dtype;

typedef struct gossamer_array {
  void* data;
  int32_t dtype;          /* a gossamer_dtype; an int32_t, so that a wrong one can be refused */
  int32_t ndim;           /* 0 .. 64; more than two dimensions are read as the matrix [shape[0], rest] */
  const int64_t* shape;   /* ndim entries */
  const int64_t* strides; /* ndim entries, in bytes; NULL means contiguous in C order */
} gossamer_array;

typedef enum gossamer_activation {
  GOSSAMER_IDENTITY = 0,
  GOSSAMER_RELU = 1,
  GOSSAMER_GELU = 2,
  GOSSAMER_GELU_TANH = 3,
  GOSSAMER_SILU = 4,
  GOSSAMER_SIGMOID = 5,
  GOSSAMER_TANH = 6
} gossamer_activation;

/* A CSR matrix: indptr [rows + 1], sorted unique column indices, values in row-major order. */
typedef struct gossamer_csr {
  int64_t rows, cols;
  const int64_t* indptr;
  const void* indices;
  int32_t index_bytes; /* 4 or 8 */
  int32_t dtype;       /* a gossamer_dtype */
  const void* values;
} gossamer_csr;

/* "0.1.0". Static storage. */
GOSSAMER_API const char* gossamer_version(void);
/* The instruction set in use: "baseline", "avx2", "avx512", "neon"; NULL with an error set if GOSSAMER_ISA is wrong. */
GOSSAMER_API const char* gossamer_isa(void);
/* Why the last call in this thread failed; "" after none. Valid until the thread's next failing call. */
GOSSAMER_API const char* gossamer_last_error(void);

/* Threads that work on one call, the caller included. n >= 1. */
GOSSAMER_API gossamer_status gossamer_set_num_threads(int32_t n);
GOSSAMER_API int32_t gossamer_get_num_threads(void);
/* Joins and frees gossamer's threads; they come back with the next call. Call it when no other call is running. */
GOSSAMER_API void gossamer_shutdown(void);

/* Bytes of a packed mask for an array: rows * ceil(cols / 8); -1, with an error set, for a bad descriptor. */
GOSSAMER_API int64_t gossamer_mask_bytes(const gossamer_array* array);

/* Scores of one array, written to `scores`: same shape, GOSSAMER_FLOAT64 for float64 weights (for "synflow" for float64
 * gradients too), else GOSSAMER_FLOAT32. `method` as in Python; `aux` holds what it needs beside the weights:
 *   magnitude, lamp, fpgm, random                      nothing, NULL
 *   gradient, taylor, taylor2, snip, grasp, synflow    the gradients (grasp: H g; synflow: dR/dw), like the weights
 *   movement                                           the accumulated -sum g w, like the weights
 *   fisher                                             E[g^2] / 2, like the weights
 *   wanda                                              the input norms [cols]
 *   ria                                                a power of the input norms [cols], usually their square roots
 *   obs                                                1 / (2 [H^-1]_jj) [cols]
 */
GOSSAMER_API gossamer_status gossamer_score(const char* method, const gossamer_array* weights,
                                            const gossamer_array* aux, uint64_t seed, const gossamer_array* scores);

/* The fused path on one array: exactly the kept count of `sparsity` (the share of zeros), ties to the lower index.
 * `mask` gets gossamer_mask_bytes() bytes, little-endian bits; `out` (may be NULL, may be the weights) the pruned
 * weights; `nnz` (may be NULL) the number kept. NaN scores are GOSSAMER_ERROR_VALUE. */
GOSSAMER_API gossamer_status gossamer_prune(const char* method, const gossamer_array* weights,
                                            const gossamer_array* aux, uint64_t seed, double sparsity,
                                            const char* pattern, const char* group, uint8_t* mask,
                                            const gossamer_array* out, int64_t* nnz);

/* out = weights where the mask keeps them, 0 elsewhere. */
GOSSAMER_API gossamer_status gossamer_apply_mask(const gossamer_array* weights, const uint8_t* mask,
                                                 const gossamer_array* out);

/* out = act(A X + bias) + residual, A [rows, cols], X [cols, n]; or, when `linear` is not 0,
 * out = act(X A^T + bias) + residual, X [n, cols]. bias [rows] and residual (as out) may be NULL.
 * `activation` is a gossamer_activation; x has the dtype of A. */
GOSSAMER_API gossamer_status gossamer_matmul_csr(const gossamer_csr* a, const gossamer_array* x, int32_t linear,
                                                 const gossamer_array* bias, int32_t activation,
                                                 const gossamer_array* residual, const gossamer_array* out);

#ifdef __cplusplus
}
#endif
#endif
