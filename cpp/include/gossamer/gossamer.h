/* SPDX-License-Identifier: Apache-2.0
 *
 * gossamer's C ABI. Rules that hold for every function:
 *  - Arrays are described, never owned: the caller keeps `data`, `shape` and `strides` alive during the call, and
 *    nothing of them is kept after it. Their data may lie at any address, other pointers must be aligned to what they
 *    point to. Objects (gossamer_matrix, gossamer_file) own their memory until they are freed.
 *  - Strides are in bytes and may be zero or negative (inputs) as in numpy. Sizes are 64-bit. Arrays of more than two
 *    dimensions are read as the matrix [shape[0], rest], a vector as one row.
 *  - The result is a status; on anything but GOSSAMER_OK the outputs are unchanged and gossamer_last_error()
 *    tells, for the calling thread, what was expected and what came. But the elements of an output array may be changed
 *    in part if memory runs out, or a file cannot be read to its end, on the way; objects, masks and counts are not.
 *  - Every function may be called from any thread. Matrices and open files are immutable: any number of threads may use
 *    one at once. Work is split over gossamer's own threads (or the host's, see
 *    gossamer_set_parallel_for); a call that finds them busy runs in the calling thread. Results do not depend on it.
 *  - No exception leaves the library. After fork() the child may use everything that it inherited (with a host's pool,
 *    if the host's survives it).
 *  - A packed mask is rows * ceil(cols / 8) bytes, the lowest bit first, padding bits 0; the & and | of two masks are
 *    those of their bytes.
 */
#ifndef GOSSAMER_H
#define GOSSAMER_H

#include <stddef.h>
#include <stdint.h>

#include "gossamer/version.h"

#if !defined(_WIN32)
#define GOSSAMER_API __attribute__((visibility("default")))
#elif defined(GOSSAMER_BUILD)
#define GOSSAMER_API __declspec(dllexport)
#else
#define GOSSAMER_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gossamer_status {
  GOSSAMER_OK = 0,
  GOSSAMER_ERROR_TYPE = 1,    /* dtype or kind of an argument */
  GOSSAMER_ERROR_VALUE = 2,   /* shape or value of an argument */
  GOSSAMER_ERROR_MEMORY = 3,  /* out of memory */
  GOSSAMER_ERROR_RUNTIME = 4, /* device or system; a file that cannot be read or written */
  GOSSAMER_ERROR_NOT_IMPLEMENTED = 5
} gossamer_status;

typedef enum gossamer_dtype {
  GOSSAMER_FLOAT32 = 0,
  GOSSAMER_FLOAT64 = 1,
  GOSSAMER_FLOAT16 = 2,  /* IEEE 754 binary16 */
  GOSSAMER_BFLOAT16 = 3, /* the upper half of a float32 */
  GOSSAMER_INT8 = 16     /* only of a matrix's values: -127 to 127, times a float32 scale for each row */
} gossamer_dtype;

typedef struct gossamer_array {
  void* data;
  int32_t dtype;          /* a gossamer_dtype; an int32_t, so that a wrong one can be refused */
  int32_t ndim;           /* 0 .. 64 */
  const int64_t* shape;   /* ndim entries */
  const int64_t* strides; /* ndim entries, in bytes; NULL means contiguous in C order */
} gossamer_array;

/* ------------------------------------------------------------------------------------------------- the process -- */

/* "0.1.0". Static storage. */
GOSSAMER_API const char* gossamer_version(void);
/* GOSSAMER_ABI_VERSION of the library that runs; another than the header's was compiled against a different ABI. */
GOSSAMER_API int32_t gossamer_abi_version(void);
/* The instruction set in use: "baseline", "avx2", "avx512", "neon"; NULL with an error set if GOSSAMER_ISA is wrong. */
GOSSAMER_API const char* gossamer_isa(void);
/* Why there is no CUDA back end, or NULL if there is one. Static storage. */
GOSSAMER_API const char* gossamer_cuda_unavailable_reason(void);
/* Why the last call in this thread failed; "" after none. Valid until the thread's next failing call. */
GOSSAMER_API const char* gossamer_last_error(void);

/* Threads that work on one call, the caller included. n >= 1. The default: GOSSAMER_NUM_THREADS, else OMP_NUM_THREADS,
 * else the processors that the process may use. */
GOSSAMER_API gossamer_status gossamer_set_num_threads(int32_t n);
GOSSAMER_API int32_t gossamer_get_num_threads(void);

/* A host's own pool does the work. For every call it is asked to run `task(argument, i)` for each i in [0, count), on
 * any threads, at once or one after the other, and to return when all have returned; count is at most
 * gossamer_get_num_threads(). A task that starts late finds less to do, one that is left out is made up for by the
 * calling thread: the result is right in each case. `f` must not throw. NULL: gossamer's own threads again.
 * To be called when no other call is running. */
typedef void (*gossamer_task)(void* argument, int32_t index);
typedef void (*gossamer_parallel_for)(void* context, int32_t count, gossamer_task task, void* argument);
GOSSAMER_API gossamer_status gossamer_set_parallel_for(gossamer_parallel_for f, void* context);

/* Joins and frees gossamer's threads; they come back with the next call. Call it when no other call is running, and
 * before the library is unloaded. */
GOSSAMER_API void gossamer_shutdown(void);

/* ----------------------------------------------------------------------------------- scores, masks and pruning -- */

/* A tensor of a call; the tensors of one call may compete. Zero what is not needed. */
typedef struct gossamer_tensor {
  const char* name;              /* for messages; NULL: none */
  const gossamer_array* weights; /* of gossamer_topk_mask: the scores */
  const gossamer_array* aux;     /* what the method needs beside the weights, see gossamer_score */
  const uint8_t* prior;          /* a packed mask: only what it keeps may be kept; NULL: everything may */
  uint8_t* mask;                 /* result: gossamer_mask_bytes() bytes; may be the prior */
  const gossamer_array* out;     /* result: like the weights, and may be them; NULL in all tensors: not wanted */
  int64_t nnz;                   /* result: the number kept */
} gossamer_tensor;

typedef enum gossamer_rule {
  GOSSAMER_BY_SPARSITY = 0,  /* nnz = n - floor(n * round(sparsity, 12) + 0.5) */
  GOSSAMER_BY_NNZ = 1,       /* a number for each group */
  GOSSAMER_BY_THRESHOLD = 2, /* every score >= threshold */
  GOSSAMER_BY_PATTERN = 3    /* what the pattern N:M says */
} gossamer_rule;

/* Which are kept. Exactly as many as the rule says; of equal scores the lower flat index, in the order of the tensors.
 * Higher scores are kept. Zeroed, it keeps everything. */
typedef struct gossamer_selection {
  int32_t rule;    /* a gossamer_rule, for which one of the next three counts */
  double sparsity; /* the share of zeros, in [0, 1] */
  int64_t nnz;     /* in all for "global", else of each tensor or row */
  double threshold;
  const char* pattern; /* "element" (NULL), "row", "col", "block:RxC", "N:M" (keep N of every M <= 32) */
  const char* group;   /* what competes: "tensor", "row", "global"; NULL: the method's own, "tensor" for scores */
  double min_density;  /* for "global": the least of each tensor, within the same total */
  const char* nan;     /* "raise" (NULL): GOSSAMER_ERROR_VALUE names tensor and index; "prune" or "keep" */
} gossamer_selection;

/* Bytes of a packed mask for an array (whose data may be NULL here): rows * ceil(cols / 8); -1, with an error set, for
 * a bad description. */
GOSSAMER_API int64_t gossamer_mask_bytes(const gossamer_array* array);
/* The number that a sparsity keeps of n; -1, with an error set, outside of [0, 1] or for n < 0. */
GOSSAMER_API int64_t gossamer_kept_count(int64_t n, double sparsity);

/* Scores of the tensors, written to their `out`: same shape, GOSSAMER_FLOAT64 for float64 weights (for "synflow" for
 * float64 gradients too), else GOSSAMER_FLOAT32. `method` as in Python; `aux` holds what it needs:
 *   magnitude, lamp, fpgm, random                      nothing
 *   gradient, taylor, taylor2, snip, grasp, synflow    the gradients (grasp: H g; synflow: dR/dw), like the weights
 *   movement                                           the accumulated -sum g w, like the weights
 *   fisher                                             E[g^2] / 2, like the weights
 *   wanda                                              the input norms [cols]
 *   ria                                                a power of the input norms [cols], usually their square roots
 *   obs                                                1 / (2 [H^-1]_jj) [cols]
 * `seed` is read by "random" alone. snip is normalised over all tensors of the call. */
GOSSAMER_API gossamer_status gossamer_score(const char* method, const gossamer_tensor* tensors, int64_t count,
                                            uint64_t seed);

/* The masks of scores (in `weights`). Masks and `nnz` are written when all tensors are done. */
GOSSAMER_API gossamer_status gossamer_topk_mask(gossamer_tensor* tensors, int64_t count, const gossamer_selection* how);

/* gossamer_score, gossamer_topk_mask and gossamer_apply_mask in one, bit for bit, without holding the scores. */
GOSSAMER_API gossamer_status gossamer_prune(const char* method, gossamer_tensor* tensors, int64_t count, uint64_t seed,
                                            const gossamer_selection* how);

/* out = weights where the mask keeps them, 0 elsewhere. */
GOSSAMER_API gossamer_status gossamer_apply_mask(const gossamer_array* weights, const uint8_t* mask,
                                                 const gossamer_array* out);

/* `out` of each tensor from its weights and scores (in `aux`, like the weights). rule "sign": w - rate * sign(score);
 * "scale": w * (1 + rate * (score - c) / d), c the lower median of the scores, d = max |score - c|; w where d = 0. */
GOSSAMER_API gossamer_status gossamer_adjust(const gossamer_tensor* tensors, int64_t count, double rate,
                                             const char* rule);

/* The mask of the elements that are not zero (NaN is not). */
GOSSAMER_API gossamer_status gossamer_nonzero_mask(const gossamer_array* weights, uint8_t* mask);
/* The number of bits set; -1, with an error set, for negative sizes, NULL, or padding bits that are not 0. */
GOSSAMER_API int64_t gossamer_mask_count(const uint8_t* mask, int64_t rows, int64_t cols);
/* Their flat indices, ascending: gossamer_mask_count() of them. */
GOSSAMER_API gossamer_status gossamer_mask_indices(const uint8_t* mask, int64_t rows, int64_t cols, int64_t* indices);

/* sums[c] = decay * sums[c] + sum over rows of x[row, c]^2, for x [..., cols] whose last axis is c: of activations the
 * squares of what "wanda" needs, of gradients [batch, n] batch times E[g^2]. A vector is one row. */
GOSSAMER_API gossamer_status gossamer_add_squares(const gossamer_array* x, double decay, double* sums);
/* sums[i] = decay * sums[i] - grads[i] * weights[i], flat order: what "movement" needs. */
GOSSAMER_API gossamer_status gossamer_subtract_products(const gossamer_array* weights, const gossamer_array* grads,
                                                        double decay, double* sums);

/* ------------------------------------------------------------------------------------------- sparse matrices -- */

/* Immutable; made by the functions with `result`, which they set on success alone, and freed by gossamer_matrix_free.
 */
typedef struct gossamer_matrix gossamer_matrix;

/* CSR: indptr [rows + 1] from 0 to nnz, never falling; column indices sorted and unique in a row; values in row-major
 * order. */
typedef struct gossamer_csr {
  int64_t rows, cols, nnz;
  const int64_t* indptr;
  const void* indices;
  int32_t index_bytes; /* 4 or 8 */
  int32_t dtype;       /* a gossamer_dtype, not GOSSAMER_INT8 */
  const void* values;
} gossamer_csr;

typedef struct gossamer_matrix_info {
  int64_t rows, cols, nnz;
  int64_t nbytes;     /* held by now: values, structure, every pack */
  int32_t dtype;      /* of the values */
  const char* format; /* as asked for, "n:m" as found; valid as long as the matrix */
} gossamer_matrix_info;

/* The formats: "csr" (few kept), "bitmask" (one to four columns), "panel" (more), "auto" (by density and number of
 * columns; packs are made at the first product that needs them and kept), "N:M" or "n:m" (as found) and "bsr:RxC",
 * which are checked and multiplied as "auto". NULL is "auto". "dense", which Python multiplies by BLAS, is "auto" here.
 * What a matrix is does not depend on it. */

/* What `mask` keeps of w (NULL: what is not zero), as values of `dtype`; -1: of w's. GOSSAMER_INT8: whole numbers and a
 * scale for each row, its largest magnitude / 127; w must then be finite. */
GOSSAMER_API gossamer_status gossamer_matrix_from_dense(const gossamer_array* w, const uint8_t* mask,
                                                        const char* format, int32_t dtype, gossamer_matrix** result);
/* Copied and checked. */
GOSSAMER_API gossamer_status gossamer_matrix_from_csr(const gossamer_csr* csr, const char* format,
                                                      gossamer_matrix** result);
/* From a packed mask and the values that it keeps, a vector in row-major order, copied. `scales` [rows], finite and not
 * negative, for GOSSAMER_INT8 and else NULL. */
GOSSAMER_API gossamer_status gossamer_matrix_from_mask(const uint8_t* mask, int64_t rows, int64_t cols,
                                                       const gossamer_array* values, const float* scales,
                                                       const char* format, gossamer_matrix** result);
/* The same structure (shared) with other values [nnz]. GOSSAMER_INT8 keeps the scales of a matrix of int8; floats get
 * new ones there, and are taken as they are elsewhere. */
GOSSAMER_API gossamer_status gossamer_matrix_with_values(const gossamer_matrix* a, const gossamer_array* values,
                                                         gossamer_matrix** result);
/* The transpose. Its structure is made once; of int8 it is float32. */
GOSSAMER_API gossamer_status gossamer_matrix_transposed(const gossamer_matrix* a, gossamer_matrix** result);
/* NULL is allowed. No call that uses the matrix may be running. */
GOSSAMER_API void gossamer_matrix_free(gossamer_matrix* a);

GOSSAMER_API gossamer_status gossamer_matrix_get_info(const gossamer_matrix* a, gossamer_matrix_info* info);
/* rows * ceil(cols / 8) bytes. */
GOSSAMER_API gossamer_status gossamer_matrix_get_mask(const gossamer_matrix* a, uint8_t* mask);
/* indptr [rows + 1] and indices [nnz]; each may be NULL. */
GOSSAMER_API gossamer_status gossamer_matrix_get_csr(const gossamer_matrix* a, int64_t* indptr, int64_t* indices);
/* nnz values of the matrix's dtype, in row-major order, and for GOSSAMER_INT8 the `scales` [rows]; each may be NULL. */
GOSSAMER_API gossamer_status gossamer_matrix_get_values(const gossamer_matrix* a, void* values, float* scales);
/* [rows, cols] of the matrix's dtype; GOSSAMER_FLOAT32 for int8, whose scales are multiplied in. */
GOSSAMER_API gossamer_status gossamer_matrix_to_dense(const gossamer_matrix* a, const gossamer_array* out);

/* ------------------------------------------------------------------------------------------------- products -- */

typedef enum gossamer_activation {
  GOSSAMER_IDENTITY = 0,
  GOSSAMER_RELU = 1,
  GOSSAMER_GELU = 2,
  GOSSAMER_GELU_TANH = 3,
  GOSSAMER_SILU = 4,
  GOSSAMER_SIGMOID = 5,
  GOSSAMER_TANH = 6
} gossamer_activation;

/* What follows a product; zeroed, nothing does. */
typedef struct gossamer_epilogue {
  const gossamer_array* bias;     /* [rows of A], or NULL */
  int32_t activation;             /* a gossamer_activation */
  const gossamer_array* residual; /* like out, added after the activation, may be out; or NULL */
} gossamer_epilogue;

/* out = act(A X + bias) + residual: A [rows, cols], X [cols, n], out [rows, n]; a vector X [cols] gives a vector.
 * X, bias and residual may be of any of the four float dtypes; out has X's. Computed in float64 where A or X is, else
 * in float32, and rounded once. out must not overlap X. `epilogue` may be NULL. */
GOSSAMER_API gossamer_status gossamer_matmul(const gossamer_matrix* a, const gossamer_array* x,
                                             const gossamer_epilogue* epilogue, const gossamer_array* out);
/* out = act(X A^T + bias) + residual: a layer of weights A [outputs, inputs], X [batch, inputs], out [batch, outputs];
 * a vector X [inputs] gives a vector. */
GOSSAMER_API gossamer_status gossamer_linear(const gossamer_matrix* a, const gossamer_array* x,
                                             const gossamer_epilogue* epilogue, const gossamer_array* out);
/* The gradients of that layer (without residual), from dy [batch, outputs], the loss's gradient by its output for x:
 * dx [batch, inputs]; x, dy and dx of one dtype; dvalues [nnz] in the order of the values, contiguous, GOSSAMER_FLOAT64
 * where x or dy is and else GOSSAMER_FLOAT32; dbias [outputs]. Each of the three may be NULL. With an activation the
 * output before it is computed again, for which `bias` is needed. */
GOSSAMER_API gossamer_status gossamer_linear_backward(const gossamer_matrix* a, const gossamer_array* bias,
                                                      int32_t activation, const gossamer_array* x,
                                                      const gossamer_array* dy, const gossamer_array* dx,
                                                      const gossamer_array* dvalues, const gossamer_array* dbias);
/* The values of X Y^T where `pattern` [rows, cols] keeps a position: x [rows, k], y [cols, k]; `values` [nnz] in
 * row-major order, contiguous, GOSSAMER_FLOAT64 where x or y is and else GOSSAMER_FLOAT32. They go into
 * gossamer_matrix_with_values. */
GOSSAMER_API gossamer_status gossamer_sddmm(const gossamer_array* x, const gossamer_array* y,
                                            const gossamer_matrix* pattern, const gossamer_array* values);
/* out = dy * act'(z), all of one shape. */
GOSSAMER_API gossamer_status gossamer_activation_grad(int32_t activation, const gossamer_array* z,
                                                      const gossamer_array* dy, const gossamer_array* out);

/* ---------------------------------------------------------------------------------------------------- files -- */

/* Safetensors files, as gossamer.save and gossamer.load of Python write and read them. Whoever made the file is not
 * trusted: its header is checked in full first (GOSSAMER_ERROR_VALUE says what is wrong). The file must not change
 * while it is open. `path` is in the encoding of the file system. */
typedef struct gossamer_file gossamer_file;

typedef enum gossamer_kind { GOSSAMER_KIND_ARRAY = 0, GOSSAMER_KIND_MASK = 1, GOSSAMER_KIND_MATRIX = 2 } gossamer_kind;

/* One of a file's entries; the pointers are valid as long as the file. */
typedef struct gossamer_entry {
  const char* name;
  int32_t kind;  /* a gossamer_kind */
  int32_t dtype; /* a gossamer_dtype; -1 for masks, and for arrays of others (integers) */
  int32_t ndim;
  const int64_t* shape; /* ndim entries */
} gossamer_entry;

GOSSAMER_API gossamer_status gossamer_file_open(const char* path, gossamer_file** result);
GOSSAMER_API void gossamer_file_free(gossamer_file* file);
/* In the order of the file; -1, with an error set, for NULL. */
GOSSAMER_API int64_t gossamer_file_count(const gossamer_file* file);
GOSSAMER_API gossamer_status gossamer_file_get_entry(const gossamer_file* file, int64_t index, gossamer_entry* entry);
/* Looked up by name; GOSSAMER_ERROR_VALUE if there is none. */
GOSSAMER_API gossamer_status gossamer_file_find(const gossamer_file* file, const char* name, gossamer_entry* entry);
/* A matrix, in the format that it was saved with (NULL) or another. */
GOSSAMER_API gossamer_status gossamer_file_read_matrix(const gossamer_file* file, const char* name, const char* format,
                                                       gossamer_matrix** result);
/* An array into memory of its shape and dtype. */
GOSSAMER_API gossamer_status gossamer_file_read_array(const gossamer_file* file, const char* name,
                                                      const gossamer_array* out);
/* A mask; more than two dimensions are packed as the matrix [shape[0], rest]. */
GOSSAMER_API gossamer_status gossamer_file_read_mask(const gossamer_file* file, const char* name, uint8_t* mask);

/* What is to be saved: exactly one of matrix, array and mask (with the shape of the masked array). */
typedef struct gossamer_saved {
  const char* name; /* UTF-8 */
  const gossamer_matrix* matrix;
  const gossamer_array* array;
  const uint8_t* mask;
  const int64_t* shape; /* of the mask, ndim entries */
  int32_t ndim;
} gossamer_saved;

/* Atomic: after a failure or a kill the old file, if any, is still there. */
GOSSAMER_API gossamer_status gossamer_save(const char* path, const gossamer_saved* entries, int64_t count);

#ifdef __cplusplus
}
#endif
#endif
