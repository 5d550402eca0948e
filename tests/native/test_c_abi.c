/* SPDX-License-Identifier: Apache-2.0 */
/* The C ABI from a C99 program: results, status codes, messages per thread, and descriptions that must be refused. */
#include "gossamer/gossamer.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0, tests = 0;

static void check(int right, const char* file, int line, const char* expression) {
  if (right) return;
  ++failures;
  fprintf(stderr, "%s:%d: CHECK(%s); last error: %s\n", file, line, expression, gossamer_last_error());
}
#define CHECK(expression) check((expression) != 0, __FILE__, __LINE__, #expression)
#define FAILS(status, fragment, call)                                 \
  do {                                                                \
    const gossamer_status got = (call);                               \
    check(got == (status), __FILE__, __LINE__, #call " -> " #status); \
    CHECK(strstr(gossamer_last_error(), (fragment)) != NULL);         \
  } while (0)

static gossamer_array array(void* data, int32_t dtype, int32_t ndim, const int64_t* shape, const int64_t* strides) {
  gossamer_array a;
  a.data = data;
  a.dtype = dtype;
  a.ndim = ndim;
  a.shape = shape;
  a.strides = strides;
  return a;
}

/* The calls on one tensor that most tests make. */
static gossamer_status score(const char* method, const gossamer_array* weights, const gossamer_array* aux,
                             uint64_t seed, const gossamer_array* scores) {
  gossamer_tensor tensor;
  memset(&tensor, 0, sizeof tensor);
  tensor.weights = weights;
  tensor.aux = aux;
  tensor.out = scores;
  return gossamer_score(method, &tensor, 1, seed);
}

static gossamer_status prune(const char* method, const gossamer_array* weights, const gossamer_array* aux,
                             double sparsity, const char* pattern, const char* group, uint8_t* mask,
                             const gossamer_array* out, int64_t* nnz) {
  gossamer_tensor tensor;
  gossamer_selection how;
  gossamer_status status;
  memset(&tensor, 0, sizeof tensor);
  memset(&how, 0, sizeof how);
  tensor.weights = weights;
  tensor.aux = aux;
  tensor.mask = mask;
  tensor.out = out;
  how.sparsity = sparsity;
  how.pattern = pattern;
  how.group = group;
  if (nnz != NULL) tensor.nnz = *nnz;
  status = gossamer_prune(method, &tensor, 1, 0, &how);
  if (nnz != NULL) *nnz = tensor.nnz;
  return status;
}

static const int64_t two_by_four[2] = {2, 4}, four_by_two[2] = {4, 2}, four[1] = {4}, two[1] = {2};

static void test_process(void) {
  const char* isa = gossamer_isa();
  const char* wanted = getenv("GOSSAMER_ISA");
  CHECK(strcmp(gossamer_version(), GOSSAMER_VERSION) == 0);
  CHECK(gossamer_abi_version() == GOSSAMER_ABI_VERSION);
  CHECK(gossamer_cuda_unavailable_reason() != NULL);
  CHECK(isa != NULL && (wanted == NULL || strcmp(isa, wanted) == 0));
  CHECK(strcmp(gossamer_last_error(), "") == 0);
  CHECK(gossamer_get_num_threads() >= 1);
  CHECK(gossamer_set_num_threads(3) == GOSSAMER_OK && gossamer_get_num_threads() == 3);
  FAILS(GOSSAMER_ERROR_VALUE, "set_num_threads: n must be in [1, 65536], got 0", gossamer_set_num_threads(0));
  FAILS(GOSSAMER_ERROR_VALUE, "got -5", gossamer_set_num_threads(-5));
  FAILS(GOSSAMER_ERROR_VALUE, "got 65537", gossamer_set_num_threads(65537));
  CHECK(gossamer_get_num_threads() == 3);
  gossamer_shutdown();
  gossamer_shutdown();
}

static void test_score_and_prune(void) {
  float w[8] = {0.1f, -4, 3, -0.2f, 5, 0, -0.3f, 2}, g[8] = {1, 1, 1, -30, 1, 1, 1, 1}, out[8], scores[8];
  const float magnitude[8] = {0.1f, 4, 3, 0.2f, 5, 0, 0.3f, 2};
  const gossamer_array weights = array(w, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  const gossamer_array grads = array(g, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  const gossamer_array to = array(out, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  const gossamer_array into = array(scores, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  uint8_t mask[2] = {0xFF, 0xFF}, same[2] = {0xFF, 0xFF};
  int64_t nnz = -1;
  int i;
  CHECK(gossamer_mask_bytes(&weights) == 2);
  CHECK(score("magnitude", &weights, NULL, 0, &into) == GOSSAMER_OK);
  CHECK(memcmp(scores, magnitude, sizeof scores) == 0);
  CHECK(score("taylor", &weights, &grads, 0, &into) == GOSSAMER_OK && scores[3] > 5.9f && scores[3] < 6.1f);
  CHECK(score("random", &weights, NULL, 7, &into) == GOSSAMER_OK && scores[0] >= 0 && scores[0] < 1);

  CHECK(prune("magnitude", &weights, NULL, 0.5, "element", "tensor", mask, &to, &nnz) == GOSSAMER_OK);
  CHECK(nnz == 4 && mask[0] == 0x6 && mask[1] == 0x9);
  for (i = 0; i < 8; ++i) CHECK(out[i] == ((mask[i / 4] >> (i % 4) & 1) != 0 ? w[i] : 0));
  CHECK(prune("taylor", &weights, &grads, 0.875, "element", "tensor", mask, NULL, NULL) == GOSSAMER_OK);
  CHECK(mask[0] == 0x8 && mask[1] == 0);
  CHECK(prune("magnitude", &weights, NULL, 0.5, "2:4", "tensor", mask, NULL, &nnz) == GOSSAMER_OK);
  CHECK(nnz == 4 && mask[0] == 0x6 && mask[1] == 0x9);
  CHECK(prune("magnitude", &weights, NULL, 0.5, "element", "row", mask, &weights, NULL) == GOSSAMER_OK);
  CHECK(w[0] == 0 && w[1] == -4 && w[4] == 5 && w[7] == 2);
  CHECK(gossamer_apply_mask(&grads, mask, &to) == GOSSAMER_OK && out[0] == 0 && out[1] == 1 && out[3] == 0);

  memcpy(same, mask, sizeof same);
  memset(out, 0x11, sizeof out);
  memcpy(scores, out, sizeof out);
  nnz = -7;
  FAILS(GOSSAMER_ERROR_VALUE, "prune: sparsity must be in [0, 1], got 1.3",
        prune("magnitude", &weights, NULL, 1.3, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: pattern must be",
        prune("magnitude", &weights, NULL, 0.5, "elements", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: group must be",
        prune("magnitude", &weights, NULL, 0.5, "element", "", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: method must be one of",
        prune("magnitudes", &weights, NULL, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: aux must not be NULL",
        prune("taylor", &weights, NULL, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: method must not be NULL",
        prune(NULL, &weights, NULL, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: weights must not be NULL",
        prune("magnitude", NULL, NULL, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: mask must not be NULL",
        prune("magnitude", &weights, NULL, 0.5, "element", "tensor", NULL, &to, &nnz));
  w[6] = (float)NAN;
  FAILS(GOSSAMER_ERROR_VALUE, "flat index 6",
        prune("magnitude", &weights, NULL, 0.5, "element", "tensor", mask, &to, &nnz));
  w[6] = 0;
  CHECK(memcmp(mask, same, sizeof same) == 0 && memcmp(out, scores, sizeof out) == 0 && nnz == -7);
  FAILS(GOSSAMER_ERROR_VALUE, "apply_mask: mask must not be NULL", gossamer_apply_mask(&weights, NULL, &to));
  FAILS(GOSSAMER_ERROR_VALUE, "apply_mask: out must not be NULL", gossamer_apply_mask(&weights, mask, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "score: out must not be NULL", score("magnitude", &weights, NULL, 0, NULL));
}

static void test_descriptions(void) {
  double data[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
  double out[9] = {0};
  const gossamer_array to = array(out, GOSSAMER_FLOAT64, 2, two_by_four, NULL);
  const int64_t negative[2] = {2, -4}, huge[3] = {1 << 30, 1 << 30, 1 << 30},
                empty_huge[3] = {0, (int64_t)1 << 62, 1 << 30};
  const int64_t empty[2] = {0, 5}, backwards[2] = {-32, -8}, nothing[2] = {0, 0}, apart[2] = {32, 8},
                windows[2] = {8, 8};
  gossamer_array bad = array(data, GOSSAMER_FLOAT64, 2, negative, NULL);
  FAILS(GOSSAMER_ERROR_VALUE, "score: weights has a negative dimension -4", score("magnitude", &bad, NULL, 0, &to));
  CHECK(gossamer_mask_bytes(&bad) == -1);
  bad.shape = huge;
  bad.ndim = 3;
  FAILS(GOSSAMER_ERROR_VALUE, "larger than the address space", score("magnitude", &bad, NULL, 0, &to));
  CHECK(gossamer_mask_bytes(&bad) == -1);
  bad.shape = empty_huge;
  FAILS(GOSSAMER_ERROR_VALUE, "larger than the address space", score("magnitude", &bad, NULL, 0, &to));
  bad.shape = two_by_four;
  bad.ndim = -1;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got -1", score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = 65;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got 65", score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = INT32_MAX;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got 2147483647", score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = 2;
  bad.dtype = 7;
  FAILS(GOSSAMER_ERROR_TYPE, "must have a gossamer_dtype, got 7", score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = -1;
  FAILS(GOSSAMER_ERROR_TYPE, "must have a gossamer_dtype, got -1", score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = GOSSAMER_FLOAT64;
  bad.data = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "weights must have data", score("magnitude", &bad, NULL, 0, &to));
  bad.data = data;
  bad.shape = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "weights must have a shape", score("magnitude", &bad, NULL, 0, &to));
  bad.shape = four_by_two;
  FAILS(GOSSAMER_ERROR_VALUE, "out must have the shape (4, 2), got (2, 4)", score("magnitude", &bad, NULL, 0, &to));
  bad.shape = two_by_four;
  bad.dtype = GOSSAMER_FLOAT32;
  FAILS(GOSSAMER_ERROR_TYPE, "out must be float32, got float64", score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = GOSSAMER_FLOAT64;
  {
    gossamer_array repeated = array(out, GOSSAMER_FLOAT64, 2, two_by_four, nothing);
    FAILS(GOSSAMER_ERROR_VALUE, "one element in two places", score("magnitude", &bad, NULL, 0, &repeated));
    repeated.strides = windows;
    FAILS(GOSSAMER_ERROR_VALUE, "one element in two places", score("magnitude", &bad, NULL, 0, &repeated));
  }
  {
    const gossamer_array shifted = array(data + 1, GOSSAMER_FLOAT64, 2, two_by_four, NULL);
    FAILS(GOSSAMER_ERROR_VALUE, "the input itself or not overlap", score("magnitude", &bad, NULL, 0, &shifted));
  }
  FAILS(GOSSAMER_ERROR_VALUE, "mask_bytes: array must not be NULL",
        (gossamer_status)(gossamer_mask_bytes(NULL) == -1 ? 2 : 0));

  /* Legal ones: backwards, broadcast, nothing at all, no dimensions. */
  bad.data = data + 7;
  bad.strides = backwards;
  CHECK(score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[0] == 8 && out[7] == 1);
  bad.strides = nothing;
  CHECK(score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[0] == 8 && out[7] == 8);
  bad.data = data;
  bad.strides = apart;
  CHECK(score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[7] == 8);
  {
    uint8_t bits = 0x55;
    const gossamer_array none = array(NULL, GOSSAMER_FLOAT64, 2, empty, NULL);
    const gossamer_array scalar = array(data, GOSSAMER_FLOAT64, 0, NULL, NULL);
    const gossamer_array single = array(out, GOSSAMER_FLOAT64, 0, NULL, NULL);
    CHECK(gossamer_mask_bytes(&none) == 0 && gossamer_mask_bytes(&scalar) == 1);
    CHECK(score("magnitude", &none, NULL, 0, &none) == GOSSAMER_OK);
    CHECK(prune("magnitude", &none, NULL, 0.5, "element", "tensor", NULL, &none, NULL) == GOSSAMER_OK);
    CHECK(gossamer_apply_mask(&none, NULL, &none) == GOSSAMER_OK);
    CHECK(prune("magnitude", &scalar, NULL, 0, "element", "tensor", &bits, &single, NULL) == GOSSAMER_OK);
    CHECK(bits == 1 && out[0] == 1);
  }
}

static void test_several_tensors(void) {
  float one[4] = {1, -9, 2, 8}, two_[4] = {7, 3, -6, 0.5f}, pruned[2][4], scores[2][4];
  const gossamer_array weights[2] = {array(one, GOSSAMER_FLOAT32, 1, four, NULL),
                                     array(two_, GOSSAMER_FLOAT32, 1, four, NULL)};
  const gossamer_array outs[2] = {array(pruned[0], GOSSAMER_FLOAT32, 1, four, NULL),
                                  array(pruned[1], GOSSAMER_FLOAT32, 1, four, NULL)};
  const gossamer_array into[2] = {array(scores[0], GOSSAMER_FLOAT32, 1, four, NULL),
                                  array(scores[1], GOSSAMER_FLOAT32, 1, four, NULL)};
  uint8_t masks[2] = {0x55, 0x55}, prior = 0x0C;
  int64_t indices[4];
  gossamer_tensor tensors[2];
  gossamer_selection how;
  int i;
  memset(tensors, 0, sizeof tensors);
  memset(&how, 0, sizeof how);
  for (i = 0; i < 2; ++i) {
    tensors[i].name = i == 0 ? "first" : "second";
    tensors[i].weights = &weights[i];
    tensors[i].mask = &masks[i];
    tensors[i].out = &outs[i];
  }
  how.rule = GOSSAMER_BY_NNZ;
  how.nnz = 3;
  how.group = "global";
  CHECK(gossamer_prune("magnitude", tensors, 2, 0, &how) == GOSSAMER_OK);
  CHECK(masks[0] == 0xA && masks[1] == 0x1 && tensors[0].nnz == 2 && tensors[1].nnz == 1);
  CHECK(pruned[0][1] == -9 && pruned[0][0] == 0 && pruned[1][0] == 7 && pruned[1][2] == 0);
  CHECK(gossamer_mask_count(&masks[0], 1, 4) == 2 && gossamer_mask_indices(&masks[0], 1, 4, indices) == GOSSAMER_OK);
  CHECK(indices[0] == 1 && indices[1] == 3);
  how.min_density = 0.5; /* two of the four of each: more than three */
  FAILS(GOSSAMER_ERROR_VALUE, "prune: ", gossamer_prune("magnitude", tensors, 2, 0, &how));
  how.min_density = 0;
  how.rule = GOSSAMER_BY_THRESHOLD;
  how.threshold = 2;
  CHECK(gossamer_prune("magnitude", tensors, 2, 0, &how) == GOSSAMER_OK && masks[0] == 0xE && masks[1] == 0x7);
  tensors[0].prior = &prior;
  CHECK(gossamer_prune("magnitude", tensors, 2, 0, &how) == GOSSAMER_OK && masks[0] == 0xC && masks[1] == 0x7);
  prior = 0x1C;
  FAILS(GOSSAMER_ERROR_VALUE, "padding bits of 0", gossamer_prune("magnitude", tensors, 2, 0, &how));
  tensors[0].prior = &masks[0]; /* the mask may be its own prior */
  masks[0] = 0x4;
  CHECK(gossamer_prune("magnitude", tensors, 2, 0, &how) == GOSSAMER_OK && masks[0] == 0x4);
  tensors[0].prior = NULL;

  for (i = 0; i < 2; ++i) tensors[i].out = &into[i];
  CHECK(gossamer_score("magnitude", tensors, 2, 0) == GOSSAMER_OK && scores[0][1] == 9 && scores[1][2] == 6);
  for (i = 0; i < 2; ++i) {
    tensors[i].aux = &into[i];
    tensors[i].out = &outs[i];
  }
  CHECK(gossamer_adjust(tensors, 2, 0.5, "sign") == GOSSAMER_OK && pruned[0][1] == -9.5f && pruned[1][0] == 6.5f);
  for (i = 0; i < 2; ++i) tensors[i].weights = &into[i];
  how.rule = GOSSAMER_BY_SPARSITY;
  how.sparsity = 0.5;
  CHECK(gossamer_topk_mask(tensors, 2, &how) == GOSSAMER_OK && masks[0] == 0xA && masks[1] == 0x5);
  how.rule = GOSSAMER_BY_PATTERN;
  how.pattern = "1:4";
  how.group = NULL;
  CHECK(gossamer_topk_mask(tensors, 2, &how) == GOSSAMER_OK && masks[0] == 0x2 && masks[1] == 0x1);

  masks[0] = masks[1] = 0x3;
  how.rule = 4;
  FAILS(GOSSAMER_ERROR_VALUE, "rule must be a gossamer_rule, got 4", gossamer_topk_mask(tensors, 2, &how));
  how.rule = GOSSAMER_BY_PATTERN;
  FAILS(GOSSAMER_ERROR_VALUE, "how must not be NULL", gossamer_topk_mask(tensors, 2, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "tensors must not be NULL", gossamer_topk_mask(NULL, 2, &how));
  FAILS(GOSSAMER_ERROR_VALUE, "count must be at least 0, got -1", gossamer_topk_mask(tensors, -1, &how));
  scores[1][3] = (float)NAN;
  FAILS(GOSSAMER_ERROR_VALUE, "second", gossamer_topk_mask(tensors, 2, &how));
  how.nan = "never";
  FAILS(GOSSAMER_ERROR_VALUE, "nan must be", gossamer_topk_mask(tensors, 2, &how));
  how.nan = "keep";
  tensors[1].out = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "for all tensors or for none", gossamer_prune("magnitude", tensors, 2, 0, &how));
  CHECK(masks[0] == 0x3 && masks[1] == 0x3);
  CHECK(gossamer_topk_mask(tensors, 2, &how) == GOSSAMER_OK && masks[1] == 0x8);
  CHECK(gossamer_topk_mask(NULL, 0, &how) == GOSSAMER_OK);
}

static void test_counts_and_sums(void) {
  const uint8_t bits[2] = {0x5, 0x13};
  float x[4] = {1, 2, 3, 4};
  double sums[2] = {10, 20}, products[4] = {0, 0, 0, 0};
  const int64_t square[2] = {2, 2};
  const gossamer_array rows = array(x, GOSSAMER_FLOAT32, 2, square, NULL);
  const gossamer_array flat = array(x, GOSSAMER_FLOAT32, 1, four, NULL);
  uint8_t mask = 0;
  CHECK(gossamer_mask_count(bits, 1, 4) == 2 && gossamer_mask_count(bits, 2, 5) == 5);
  CHECK(gossamer_mask_count(bits, 2, 4) == -1 && strstr(gossamer_last_error(), "padding") != NULL);
  CHECK(gossamer_mask_count(NULL, 1, 4) == -1 && gossamer_mask_count(NULL, 0, 4) == 0);
  CHECK(gossamer_mask_count(bits, -1, 4) == -1 && strstr(gossamer_last_error(), "at least 0") != NULL);
  CHECK(gossamer_mask_count(bits, (int64_t)1 << 61, (int64_t)1 << 61) == -1);
  CHECK(strstr(gossamer_last_error(), "out of memory") != NULL);
  CHECK(gossamer_kept_count(10, 0.25) == 7 && gossamer_kept_count(0, 1) == 0);
  CHECK(gossamer_kept_count(10, 1.5) == -1 && gossamer_kept_count(-1, 0.5) == -1 && gossamer_kept_count(1, NAN) == -1);
  CHECK(gossamer_add_squares(&rows, 0.5, sums) == GOSSAMER_OK && sums[0] == 15 && sums[1] == 30);
  CHECK(gossamer_subtract_products(&flat, &flat, 1, products) == GOSSAMER_OK && products[3] == -16);
  FAILS(GOSSAMER_ERROR_VALUE, "decay must be finite", gossamer_add_squares(&rows, INFINITY, sums));
  FAILS(GOSSAMER_ERROR_VALUE, "grads must have the shape", gossamer_subtract_products(&flat, &rows, 1, products));
  x[1] = 0;
  CHECK(gossamer_nonzero_mask(&flat, &mask) == GOSSAMER_OK && mask == 0xD);
}

static gossamer_matrix_info info_of(const gossamer_matrix* a) {
  gossamer_matrix_info info;
  memset(&info, 0, sizeof info);
  CHECK(gossamer_matrix_get_info(a, &info) == GOSSAMER_OK);
  return info;
}

static const float sparse[8] = {0, 2, 0, 1, 3, 0, 0, 0};

static gossamer_matrix* example(const char* format, int32_t dtype) {
  float w[8];
  gossamer_matrix* a = NULL;
  gossamer_array dense;
  memcpy(w, sparse, sizeof w);
  dense = array(w, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  CHECK(gossamer_matrix_from_dense(&dense, NULL, format, dtype, &a) == GOSSAMER_OK);
  return a;
}

static void test_matrices(void) {
  static const char* const formats[] = {"csr", "bitmask", "panel", "auto", "dense", "2:4", "bsr:1x1", NULL};
  static const int32_t dtypes[] = {-1, GOSSAMER_FLOAT64, GOSSAMER_FLOAT16, GOSSAMER_BFLOAT16, GOSSAMER_INT8};
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[4], back[8], xt[8] = {1, 3, 5, 7, 2, 4, 6, 8}, b[2] = {100, -100};
  float r[4] = {1, 1, 1, 1}, column[2], scales[2];
  double wide[8];
  int64_t indptr[3], indices[3];
  int8_t numbers[3];
  uint8_t mask[2];
  const int64_t square[2] = {2, 2};
  const gossamer_array input = array(x, GOSSAMER_FLOAT32, 2, four_by_two, NULL);
  const gossamer_array rows = array(xt, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  const gossamer_array bias = array(b, GOSSAMER_FLOAT32, 1, two, NULL);
  const gossamer_array more = array(r, GOSSAMER_FLOAT32, 2, square, NULL);
  const gossamer_array out = array(y, GOSSAMER_FLOAT32, 2, square, NULL);
  const gossamer_array vector = array(x, GOSSAMER_FLOAT32, 1, four, NULL);
  const gossamer_array of_vector = array(column, GOSSAMER_FLOAT32, 1, two, NULL);
  const gossamer_epilogue all = {&bias, GOSSAMER_RELU, &more};
  unsigned i, j;
  for (i = 0; i < sizeof formats / sizeof *formats; ++i) {
    for (j = 0; j < sizeof dtypes / sizeof *dtypes; ++j) {
      gossamer_matrix *a = example(formats[i], dtypes[j]), *t = NULL, *other = NULL;
      const gossamer_matrix_info info = info_of(a);
      const int is_wide = info.dtype == GOSSAMER_FLOAT64, is_int8 = info.dtype == GOSSAMER_INT8;
      const gossamer_array dense = array(is_wide ? (void*)wide : (void*)back, is_wide, 2, two_by_four, NULL);
      CHECK(info.rows == 2 && info.cols == 4 && info.nnz == 3 && info.nbytes > 0);
      CHECK(strcmp(info.format, formats[i] != NULL ? formats[i] : "auto") == 0);
      CHECK(gossamer_matmul(a, &input, NULL, &out) == GOSSAMER_OK);
      CHECK(fabsf(y[0] - 13) < 0.1f && fabsf(y[1] - 16) < 0.1f && y[2] == 3 && y[3] == 6);
      CHECK(gossamer_linear(a, &rows, NULL, &out) == GOSSAMER_OK && y[1] == 3 && fabsf(y[2] - 16) < 0.1f);
      CHECK(gossamer_matmul(a, &input, &all, &out) == GOSSAMER_OK && y[2] == 1 && y[3] == 1 && y[1] > 116);
      CHECK(gossamer_matmul(a, &vector, NULL, &of_vector) == GOSSAMER_OK && column[1] == 3);
      CHECK(gossamer_linear(a, &vector, NULL, &of_vector) == GOSSAMER_OK && column[1] == 3);
      CHECK(gossamer_matrix_get_mask(a, mask) == GOSSAMER_OK && mask[0] == 0xA && mask[1] == 0x1);
      CHECK(gossamer_matrix_get_csr(a, indptr, indices) == GOSSAMER_OK && indptr[2] == 3 && indices[1] == 3);
      if (is_wide || is_int8 || info.dtype == GOSSAMER_FLOAT32) {
        CHECK(gossamer_matrix_to_dense(a, &dense) == GOSSAMER_OK);
        CHECK(is_wide ? wide[1] == 2 && wide[4] == 3 : back[4] == 3 && back[0] == 0);
      } else {
        FAILS(GOSSAMER_ERROR_TYPE, "matrix_to_dense: out must be", gossamer_matrix_to_dense(a, &dense));
      }
      if (is_int8) {
        CHECK(gossamer_matrix_get_values(a, numbers, scales) == GOSSAMER_OK && numbers[0] == 127 && numbers[1] == 64);
        CHECK(scales[1] == 3.0f / 127);
      } else {
        FAILS(GOSSAMER_ERROR_VALUE, "scales must be NULL", gossamer_matrix_get_values(a, NULL, scales));
      }
      CHECK(gossamer_matrix_transposed(a, &t) == GOSSAMER_OK && info_of(t).rows == 4 && info_of(t).nnz == 3);
      CHECK(gossamer_matrix_transposed(t, &other) == GOSSAMER_OK);
      CHECK(gossamer_matrix_get_csr(other, NULL, indices) == GOSSAMER_OK && indices[0] == 1 && indices[2] == 0);
      gossamer_matrix_free(other);
      gossamer_matrix_free(t);
      gossamer_matrix_free(a);
    }
  }
  gossamer_matrix_free(NULL);
}

/* Matrices that keep nothing, or have no rows or columns, in every format. */
static void test_empty_matrices(void) {
  static const char* const formats[] = {"auto", "csr", "bitmask", "panel", "dense", "n:m", "0:4", "bsr:1x4"};
  static const int64_t shapes[4][2] = {{3, 4}, {3, 0}, {0, 4}, {0, 0}};
  static const char path[] = "test_c_abi_empty.safetensors";
  int64_t starts[5] = {0}, turned[5];
  float x[4] = {1, 2, 3, 4}, y[3], back[12];
  double wide_x[4] = {1, 2, 3, 4}, wide_y[3];
  uint8_t mask[3];
  size_t i, shape, kind;
  for (i = 0; i < sizeof formats / sizeof *formats; ++i)
    for (shape = 0; shape < 4; ++shape)
      for (kind = 0; kind < 2; ++kind) {
        const int64_t rows = shapes[shape][0], cols = shapes[shape][1];
        const gossamer_array in = array(x, GOSSAMER_FLOAT32, 1, &shapes[shape][1], NULL);
        const gossamer_array out = array(y, GOSSAMER_FLOAT32, 1, &shapes[shape][0], NULL);
        const gossamer_array wide_in = array(wide_x, GOSSAMER_FLOAT64, 1, &shapes[shape][1], NULL);
        const gossamer_array wide_out = array(wide_y, GOSSAMER_FLOAT64, 1, &shapes[shape][0], NULL);
        const gossamer_array dense = array(back, GOSSAMER_FLOAT32, 2, shapes[shape], NULL);
        gossamer_matrix *a = NULL, *t = NULL, *read = NULL;
        gossamer_file* file = NULL;
        gossamer_saved saved;
        gossamer_csr csr;
        memset(back, 0, sizeof back);
        memset(mask, 0xFF, sizeof mask);
        y[0] = y[1] = y[2] = 7;
        wide_y[0] = wide_y[1] = wide_y[2] = 7;
        memset(&csr, 0, sizeof csr);
        csr.rows = rows;
        csr.cols = cols;
        csr.indptr = starts;
        csr.index_bytes = 4;
        if (kind == 0)
          CHECK(gossamer_matrix_from_csr(&csr, formats[i], &a) == GOSSAMER_OK);
        else
          CHECK(gossamer_matrix_from_dense(&dense, NULL, formats[i], GOSSAMER_INT8, &a) == GOSSAMER_OK);
        CHECK(gossamer_linear(a, &in, NULL, &out) == GOSSAMER_OK && (rows == 0 || (y[0] == 0 && y[2] == 0)));
        CHECK(gossamer_linear(a, &wide_in, NULL, &wide_out) == GOSSAMER_OK && (rows == 0 || wide_y[2] == 0));
        CHECK(gossamer_matrix_get_mask(a, mask) == GOSSAMER_OK && (rows * cols == 0 || mask[2] == 0));
        CHECK(gossamer_matrix_to_dense(a, &dense) == GOSSAMER_OK);
        CHECK(gossamer_matrix_transposed(a, &t) == GOSSAMER_OK);
        CHECK(gossamer_matrix_get_csr(t, turned, NULL) == GOSSAMER_OK && turned[cols] == 0);
        memset(&saved, 0, sizeof saved);
        saved.name = "a";
        saved.matrix = a;
        CHECK(gossamer_save(path, &saved, 1) == GOSSAMER_OK && gossamer_file_open(path, &file) == GOSSAMER_OK);
        CHECK(gossamer_file_read_matrix(file, "a", NULL, &read) == GOSSAMER_OK);
        CHECK(info_of(read).rows == rows && info_of(read).cols == cols && info_of(read).dtype == info_of(a).dtype);
        gossamer_file_free(file);
        gossamer_matrix_free(read);
        gossamer_matrix_free(t);
        gossamer_matrix_free(a);
      }
  remove(path);
  { /* No memory, whatever the numbers say: a block's height times the columns exceeds 64 bits. */
    gossamer_matrix* a = NULL;
    gossamer_csr csr;
    memset(&csr, 0, sizeof csr);
    csr.cols = (int64_t)1 << 61;
    csr.indptr = starts;
    csr.index_bytes = 8;
    CHECK(gossamer_matrix_from_csr(&csr, "bsr:999999999x1", &a) == GOSSAMER_OK && info_of(a).cols == csr.cols);
    gossamer_matrix_free(a);
  }
}

static void test_gradients(void) {
  gossamer_matrix *a = example("auto", -1), *other = NULL;
  float x[4] = {1, 2, 3, 4}, dy[2] = {10, -1}, dx[4], dvalues[3], dbias[2], sampled[3], new_values[3] = {1, 1, 1};
  const int64_t three[1] = {3}, batch[2] = {1, 4}, results[2] = {1, 2};
  const gossamer_array in = array(x, GOSSAMER_FLOAT32, 2, batch, NULL),
                       grad = array(dy, GOSSAMER_FLOAT32, 2, results, NULL);
  const gossamer_array to = array(dx, GOSSAMER_FLOAT32, 2, batch, NULL);
  const gossamer_array values = array(dvalues, GOSSAMER_FLOAT32, 1, three, NULL);
  const gossamer_array sums = array(dbias, GOSSAMER_FLOAT32, 1, two, NULL);
  const gossamer_array kept = array(sampled, GOSSAMER_FLOAT32, 1, three, NULL);
  const gossamer_array other_values = array(new_values, GOSSAMER_FLOAT32, 1, three, NULL);
  const int64_t column_dy[2] = {2, 1}, column_x[2] = {4, 1};
  const gossamer_array dy_t = array(dy, GOSSAMER_FLOAT32, 2, column_dy, NULL);
  const gossamer_array x_t = array(x, GOSSAMER_FLOAT32, 2, column_x, NULL);
  CHECK(gossamer_linear_backward(a, NULL, GOSSAMER_IDENTITY, &in, &grad, &to, &values, &sums) == GOSSAMER_OK);
  CHECK(dx[0] == -3 && dx[1] == 20 && dx[2] == 0 && dx[3] == 10);
  CHECK(dvalues[0] == 20 && dvalues[1] == 40 && dvalues[2] == -1 && dbias[0] == 10 && dbias[1] == -1);
  CHECK(gossamer_sddmm(&dy_t, &x_t, a, &kept) == GOSSAMER_OK && memcmp(sampled, dvalues, sizeof sampled) == 0);
  {
    float shift[2] = {0, -100}; /* the second output is cut off */
    const gossamer_array bias = array(shift, GOSSAMER_FLOAT32, 1, two, NULL);
    CHECK(gossamer_linear_backward(a, &bias, GOSSAMER_RELU, &in, &grad, &to, NULL, NULL) == GOSSAMER_OK);
    CHECK(dx[0] == 0 && dx[1] == 20);
  }
  FAILS(GOSSAMER_ERROR_VALUE, "dy must have the shape (1, 2)",
        gossamer_linear_backward(a, NULL, GOSSAMER_IDENTITY, &in, &in, &to, NULL, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "must not overlap",
        gossamer_linear_backward(a, NULL, GOSSAMER_IDENTITY, &in, &grad, &in, NULL, NULL));
  CHECK(gossamer_matrix_with_values(a, &other_values, &other) == GOSSAMER_OK);
  CHECK(gossamer_linear(other, &in, NULL, &grad) == GOSSAMER_OK && dy[0] == 6 && dy[1] == 1);
  FAILS(GOSSAMER_ERROR_VALUE, "values must have the shape (3,)", gossamer_matrix_with_values(a, &sums, &other));
  gossamer_matrix_free(other);
  gossamer_matrix_free(a);
}

static void test_hostile_csr(void) {
  const int64_t good[3] = {0, 2, 3}, late[3] = {1, 2, 3}, falling[3] = {0, 3, 2}, below[3] = {0, -1, 3};
  const int64_t negative_end[3] = {0, 2, -3}, beyond_end[3] = {0, 2, (int64_t)1 << 60};
  const int32_t columns[3] = {1, 3, 0}, beyond[3] = {1, 4, 0}, before[3] = {-1, 3, 0}, twice[3] = {1, 1, 0};
  const int32_t unsorted[3] = {3, 1, 0}, extreme[3] = {1, INT32_MAX, INT32_MIN};
  const int64_t wide_columns[3] = {1, 3, 0}, wide_beyond[3] = {1, (int64_t)1 << 32, 0};
  const float values[3] = {2, 1, 3};
  gossamer_matrix *a = NULL, *const before_call = NULL;
  gossamer_csr csr;
  csr.rows = 2;
  csr.cols = 4;
  csr.nnz = 3;
  csr.indptr = good;
  csr.indices = wide_columns;
  csr.index_bytes = 8;
  csr.dtype = GOSSAMER_FLOAT32;
  csr.values = values;
#define FROM_CSR() gossamer_matrix_from_csr(&csr, "auto", &a)
  CHECK(FROM_CSR() == GOSSAMER_OK && info_of(a).nnz == 3);
  gossamer_matrix_free(a);
  a = before_call;
  csr.indices = wide_beyond;
  FAILS(GOSSAMER_ERROR_VALUE, "in row 0", FROM_CSR());
  csr.index_bytes = 4;
  csr.indices = beyond;
  FAILS(GOSSAMER_ERROR_VALUE, "indices must be in [0, 4)", FROM_CSR());
  csr.indices = before;
  FAILS(GOSSAMER_ERROR_VALUE, "indices must be in [0, 4)", FROM_CSR());
  csr.indices = twice;
  FAILS(GOSSAMER_ERROR_VALUE, "sorted and unique", FROM_CSR());
  csr.indices = unsorted;
  FAILS(GOSSAMER_ERROR_VALUE, "sorted and unique", FROM_CSR());
  csr.indices = extreme;
  FAILS(GOSSAMER_ERROR_VALUE, "in row 0", FROM_CSR());
  csr.indices = columns;
  csr.indptr = late;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must begin with 0, got 1", FROM_CSR());
  csr.indptr = falling;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall, got 2 after 3 at row 1", FROM_CSR());
  csr.indptr = below;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall, got -1 after 0 at row 0", FROM_CSR());
  csr.indptr = negative_end;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall", FROM_CSR());
  csr.indptr = beyond_end;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must end with the number of indices 3", FROM_CSR());
  csr.indptr = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not be NULL", FROM_CSR());
  csr.indptr = good;
  csr.indices = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "must have indices and values", FROM_CSR());
  csr.indices = columns;
  csr.values = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "must have indices and values", FROM_CSR());
  csr.values = values;
  csr.index_bytes = 3;
  FAILS(GOSSAMER_ERROR_TYPE, "index_bytes must be 4 or 8, got 3", FROM_CSR());
  csr.index_bytes = 4;
  csr.rows = -1;
  FAILS(GOSSAMER_ERROR_VALUE, "the shape must be at least 0", FROM_CSR());
  csr.rows = 2;
  csr.cols = -4;
  FAILS(GOSSAMER_ERROR_VALUE, "the shape must be at least 0", FROM_CSR());
  csr.cols = 4;
  csr.nnz = -3;
  FAILS(GOSSAMER_ERROR_VALUE, "nnz must be at least 0", FROM_CSR());
  csr.nnz = 3;
  csr.dtype = GOSSAMER_INT8;
  FAILS(GOSSAMER_ERROR_TYPE, "dtype must be of floats", FROM_CSR());
  csr.dtype = 7;
  FAILS(GOSSAMER_ERROR_TYPE, "dtype must be a gossamer_dtype, got 7", FROM_CSR());
  csr.dtype = GOSSAMER_FLOAT32;
  FAILS(GOSSAMER_ERROR_VALUE, "format must be one of", gossamer_matrix_from_csr(&csr, "coo", &a));
  FAILS(GOSSAMER_ERROR_VALUE, "at most 1 of every 4, got more in row 0, group 0",
        gossamer_matrix_from_csr(&csr, "1:4", &a));
  FAILS(GOSSAMER_ERROR_VALUE, "must divide the rows", gossamer_matrix_from_csr(&csr, "1:3", &a));
  FAILS(GOSSAMER_ERROR_VALUE, "a part of block (0, 0)", gossamer_matrix_from_csr(&csr, "bsr:2x2", &a));
  FAILS(GOSSAMER_ERROR_VALUE, "csr must not be NULL", gossamer_matrix_from_csr(NULL, "auto", &a));
  FAILS(GOSSAMER_ERROR_VALUE, "result must not be NULL", gossamer_matrix_from_csr(&csr, "auto", NULL));
  CHECK(a == before_call);
}

static void test_hostile_products(void) {
  gossamer_matrix* a = example("panel", -1);
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[4] = {-1, -1, -1, -1};
  const int64_t square[2] = {2, 2}, no_columns[2] = {4, 0}, no_result[2] = {2, 0};
  const gossamer_array input = array(x, GOSSAMER_FLOAT32, 2, four_by_two, NULL);
  const gossamer_array out = array(y, GOSSAMER_FLOAT32, 2, square, NULL);
  const gossamer_array vector = array(x, GOSSAMER_FLOAT32, 1, four, NULL), wrong_bias = vector;
  gossamer_array wrong = input;
  gossamer_epilogue after;
  int i;
  memset(&after, 0, sizeof after);
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: a must not be NULL", gossamer_matmul(NULL, &input, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: x must not be NULL", gossamer_matmul(a, NULL, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "linear: out must not be NULL", gossamer_linear(a, &input, NULL, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "linear: x must have 4 columns", gossamer_linear(a, &input, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "out must be a vector where x is one", gossamer_matmul(a, &vector, NULL, &out));
  wrong.dtype = GOSSAMER_INT8;
  FAILS(GOSSAMER_ERROR_TYPE, "matmul: x must have a gossamer_dtype", gossamer_matmul(a, &wrong, NULL, &out));
  after.activation = 7;
  FAILS(GOSSAMER_ERROR_VALUE, "activation must be a gossamer_activation, got 7",
        gossamer_matmul(a, &input, &after, &out));
  after.activation = -1;
  FAILS(GOSSAMER_ERROR_VALUE, "activation", gossamer_matmul(a, &input, &after, &out));
  after.activation = GOSSAMER_IDENTITY;
  after.bias = &wrong_bias;
  FAILS(GOSSAMER_ERROR_VALUE, "bias must have the shape (2,), got (4,)", gossamer_matmul(a, &input, &after, &out));
  after.bias = NULL;
  after.residual = &input;
  FAILS(GOSSAMER_ERROR_VALUE, "residual must have the shape", gossamer_matmul(a, &input, &after, &out));
  for (i = 0; i < 4; ++i) CHECK(y[i] == -1);
  {
    const gossamer_array onto = array(x, GOSSAMER_FLOAT32, 2, square, NULL);
    FAILS(GOSSAMER_ERROR_VALUE, "out must not overlap with x", gossamer_matmul(a, &input, NULL, &onto));
  }
  {
    const gossamer_array nothing = array(NULL, GOSSAMER_FLOAT32, 2, no_columns, NULL);
    const gossamer_array none = array(NULL, GOSSAMER_FLOAT32, 2, no_result, NULL);
    CHECK(gossamer_matmul(a, &nothing, NULL, &none) == GOSSAMER_OK);
  }
  gossamer_matrix_free(a);
  { /* One number as 2^50 rows of X: legal as a description, too large to be packed. */
    const int64_t tall[2] = {(int64_t)1 << 50, 1}, still[2] = {0, 0}, column[2] = {2, 1}, none[3] = {0, 0, 0};
    const gossamer_array endless = array(x, GOSSAMER_FLOAT32, 2, tall, still);
    const gossamer_array result = array(y, GOSSAMER_FLOAT32, 2, column, NULL);
    gossamer_csr csr;
    memset(&csr, 0, sizeof csr);
    csr.rows = 2;
    csr.cols = tall[0];
    csr.indptr = none;
    csr.index_bytes = 8;
    a = NULL;
    CHECK(gossamer_matrix_from_csr(&csr, "csr", &a) == GOSSAMER_OK);
    FAILS(GOSSAMER_ERROR_MEMORY, "out of memory", gossamer_matmul(a, &endless, NULL, &result));
    gossamer_matrix_free(a);
  }
}

static void test_int8(void) {
  const uint8_t mask[2] = {0xA, 0x1}, padded[2] = {0xA, 0x11};
  int8_t numbers[3] = {100, -128, 5};
  float scales[2] = {0.5f, 2}, bad[2] = {NAN, 1}, floats[3] = {1, INFINITY, 2}, back[8];
  const int64_t three[1] = {3};
  const gossamer_array values = array(numbers, GOSSAMER_INT8, 1, three, NULL);
  const gossamer_array endless = array(floats, GOSSAMER_FLOAT32, 1, three, NULL);
  const gossamer_array dense = array(back, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  gossamer_matrix *a = NULL, *b = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "got -128", gossamer_matrix_from_mask(mask, 2, 4, &values, scales, NULL, &a));
  numbers[1] = -3;
  FAILS(GOSSAMER_ERROR_VALUE, "scales must be finite", gossamer_matrix_from_mask(mask, 2, 4, &values, bad, NULL, &a));
  FAILS(GOSSAMER_ERROR_VALUE, "scales must not be NULL",
        gossamer_matrix_from_mask(mask, 2, 4, &values, NULL, NULL, &a));
  FAILS(GOSSAMER_ERROR_VALUE, "padding bits", gossamer_matrix_from_mask(padded, 2, 4, &values, scales, NULL, &a));
  FAILS(GOSSAMER_ERROR_VALUE, "values must have the shape (1,)",
        gossamer_matrix_from_mask(mask + 1, 1, 4, &values, scales, NULL, &a));
  CHECK(a == NULL);
  CHECK(gossamer_matrix_from_mask(mask, 2, 4, &values, scales, "2:4", &a) == GOSSAMER_OK);
  CHECK(gossamer_matrix_to_dense(a, &dense) == GOSSAMER_OK && back[1] == 50 && back[3] == -1.5f && back[4] == 10);
  FAILS(GOSSAMER_ERROR_VALUE, "must be finite", gossamer_matrix_with_values(a, &endless, &b));
  floats[1] = -127;
  CHECK(gossamer_matrix_with_values(a, &endless, &b) == GOSSAMER_OK && info_of(b).dtype == GOSSAMER_INT8);
  CHECK(gossamer_matrix_to_dense(b, &dense) == GOSSAMER_OK && back[1] == 1 && back[3] == -127 && back[4] == 2);
  gossamer_matrix_free(a);
  gossamer_matrix_free(b);
}

static void test_files(void) {
  static const char path[] = "test_c_abi.safetensors", broken[] = "test_c_abi_broken.safetensors";
  static const char name[] = "w \"\\\n\xC3\xA9";
  gossamer_matrix *a = example("2:4", GOSSAMER_INT8), *b = NULL;
  float bias[4] = {1, 2, 3, 4}, back[8], into[4];
  uint8_t mask[2] = {0xA, 0x1}, bits[2] = {0, 0};
  const int64_t backwards[1] = {-4};
  const gossamer_array vector = array(bias + 3, GOSSAMER_FLOAT32, 1, four, backwards);
  const gossamer_array to = array(into, GOSSAMER_FLOAT32, 1, four, NULL);
  const gossamer_array dense = array(back, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  gossamer_saved entries[3];
  gossamer_entry entry;
  gossamer_file* file = NULL;
  FILE* raw;
  memset(entries, 0, sizeof entries);
  entries[0].name = name;
  entries[0].matrix = a;
  entries[1].name = "bias";
  entries[1].array = &vector;
  entries[2].name = "m";
  entries[2].mask = mask;
  entries[2].shape = two_by_four;
  entries[2].ndim = 2;
  CHECK(gossamer_save(path, entries, 3) == GOSSAMER_OK);
  CHECK(gossamer_file_open(path, &file) == GOSSAMER_OK && gossamer_file_count(file) == 3);
  CHECK(gossamer_file_get_entry(file, 0, &entry) == GOSSAMER_OK && strcmp(entry.name, name) == 0);
  CHECK(entry.kind == GOSSAMER_KIND_MATRIX && entry.dtype == GOSSAMER_INT8 && entry.ndim == 2 && entry.shape[1] == 4);
  CHECK(gossamer_file_read_matrix(file, name, NULL, &b) == GOSSAMER_OK && strcmp(info_of(b).format, "2:4") == 0);
  CHECK(gossamer_matrix_to_dense(b, &dense) == GOSSAMER_OK && back[1] == 2 && back[4] == 3);
  gossamer_matrix_free(b);
  b = NULL;
  CHECK(gossamer_file_read_array(file, "bias", &to) == GOSSAMER_OK && into[0] == 4 && into[3] == 1);
  CHECK(gossamer_file_read_mask(file, "m", bits) == GOSSAMER_OK && bits[0] == 0xA && bits[1] == 0x1);
  CHECK(gossamer_file_find(file, "m", &entry) == GOSSAMER_OK && entry.kind == GOSSAMER_KIND_MASK && entry.dtype == -1);
  FAILS(GOSSAMER_ERROR_VALUE, "must have 'w', got none", gossamer_file_read_matrix(file, "w", NULL, &b));
  FAILS(GOSSAMER_ERROR_TYPE, "'bias' must be a matrix, got an array",
        gossamer_file_read_matrix(file, "bias", NULL, &b));
  FAILS(GOSSAMER_ERROR_TYPE, "'m' must be an array, got a mask", gossamer_file_read_array(file, "m", &to));
  FAILS(GOSSAMER_ERROR_VALUE, "out must have the shape", gossamer_file_read_array(file, "bias", &dense));
  FAILS(GOSSAMER_ERROR_VALUE, "index must be in [0, 3), got 3", gossamer_file_get_entry(file, 3, &entry));
  FAILS(GOSSAMER_ERROR_VALUE, "index must be in", gossamer_file_get_entry(file, -1, &entry));
  gossamer_file_free(file);
  gossamer_file_free(NULL);
  file = NULL;
  CHECK(b == NULL && gossamer_file_count(NULL) == -1);

  entries[1].name = "m.bitmask";
  FAILS(GOSSAMER_ERROR_VALUE, "must stay different with their endings", gossamer_save(path, entries, 3));
  entries[1].name = name; /* the file would have it twice, and could not be opened */
  FAILS(GOSSAMER_ERROR_VALUE, "names must be different", gossamer_save(path, entries, 3));
  entries[1].name = "__metadata__";
  FAILS(GOSSAMER_ERROR_VALUE, "reserved", gossamer_save(path, entries, 3));
  entries[1].name = "\xFF";
  FAILS(GOSSAMER_ERROR_VALUE, "names must be UTF-8", gossamer_save(path, entries, 3));
  entries[1].name = "b";
  entries[1].mask = mask;
  FAILS(GOSSAMER_ERROR_VALUE, "one of matrix, array and mask", gossamer_save(path, entries, 3));
  entries[1].mask = NULL;
  FAILS(GOSSAMER_ERROR_RUNTIME, "No such file", gossamer_save("no/such/folder", entries, 3));
  FAILS(GOSSAMER_ERROR_RUNTIME, "directory", gossamer_save("/", entries, 3));
  FAILS(GOSSAMER_ERROR_RUNTIME, "No such file", gossamer_file_open("no/such/file", &file));
  FAILS(GOSSAMER_ERROR_RUNTIME, "directory", gossamer_file_open("/", &file));
  raw = fopen(broken, "wb");
  CHECK(raw != NULL && fputs("\x02\x00", raw) >= 0);
  if (raw != NULL) fclose(raw);
  FAILS(GOSSAMER_ERROR_VALUE, "must be a safetensors file", gossamer_file_open(broken, &file));
  CHECK(file == NULL);
  CHECK(gossamer_file_open(path, &file) == GOSSAMER_OK && gossamer_file_count(file) == 3); /* the old one */
  gossamer_file_free(file);
  gossamer_matrix_free(a);
  remove(path);
  remove(broken);
}

/* Hosts: one that runs all in turn, one that leaves the last out, one that calls too often, one with threads. */
static int asked_for;
static void in_turn(void* context, int32_t count, gossamer_task task, void* argument) {
  int32_t i;
  ++*(int*)context;
  asked_for = count;
  for (i = 0; i < count; ++i) task(argument, i);
}
static void too_few(void* context, int32_t count, gossamer_task task, void* argument) {
  (void)context;
  if (count > 2) task(argument, 0);
}
static void too_often(void* context, int32_t count, gossamer_task task, void* argument) {
  int32_t i;
  (void)context;
  for (i = 0; i < 3 * count; ++i) task(argument, 7);
}
struct call {
  gossamer_task task;
  void* argument;
};
static void* run_call(void* argument) {
  const struct call* call = argument;
  call->task(call->argument, 1);
  return NULL;
}
static void with_threads(void* context, int32_t count, gossamer_task task, void* argument) {
  struct call call;
  pthread_t threads[8];
  int32_t i;
  (void)context;
  call.task = task;
  call.argument = argument;
  for (i = 0; i < count && i < 8; ++i) CHECK(pthread_create(&threads[i], NULL, run_call, &call) == 0);
  for (i = 0; i < count && i < 8; ++i) pthread_join(threads[i], NULL);
}

static void test_hosts(void) {
  static float w[64 * 2048], expected[64 * 2048], got[64 * 2048];
  static const int64_t large[2] = {64, 2048};
  static const gossamer_parallel_for hosts[] = {in_turn, too_few, too_often, with_threads};
  const gossamer_array weights = array(w, GOSSAMER_FLOAT32, 2, large, NULL);
  const gossamer_array to = array(expected, GOSSAMER_FLOAT32, 2, large, NULL);
  const gossamer_array into = array(got, GOSSAMER_FLOAT32, 2, large, NULL);
  static uint8_t masks[2][64 * 256];
  int64_t kept[2] = {0, 0};
  int calls = 0;
  unsigned i;
  uint32_t state = 1;
  for (i = 0; i < 64 * 2048; ++i) w[i] = (float)((state = state * 1664525u + 1013904223u) >> 8) - 8e6f;
  CHECK(gossamer_set_num_threads(4) == GOSSAMER_OK);
  CHECK(prune("magnitude", &weights, NULL, 0.7, NULL, NULL, masks[0], &to, &kept[0]) == GOSSAMER_OK);
  for (i = 0; i < sizeof hosts / sizeof *hosts; ++i) {
    memset(got, 0, sizeof got);
    CHECK(gossamer_set_parallel_for(hosts[i], &calls) == GOSSAMER_OK);
    CHECK(prune("magnitude", &weights, NULL, 0.7, NULL, NULL, masks[1], &into, &kept[1]) == GOSSAMER_OK);
    CHECK(kept[0] == kept[1] && memcmp(got, expected, sizeof got) == 0 &&
          memcmp(masks[0], masks[1], sizeof *masks) == 0);
  }
  CHECK(calls > 0 && asked_for >= 2 && asked_for <= 4);
  i = (unsigned)calls;
  CHECK(gossamer_set_parallel_for(NULL, NULL) == GOSSAMER_OK);
  CHECK(prune("magnitude", &weights, NULL, 0.7, NULL, NULL, masks[1], &into, &kept[1]) == GOSSAMER_OK);
  CHECK((unsigned)calls == i && memcmp(got, expected, sizeof got) == 0);
}

/* Every thread sees the message of its own last failure. */
static void* fail_in_a_thread(void* argument) {
  const int n = *(const int*)argument;
  char expected[64];
  int i;
  if (strcmp(gossamer_last_error(), "") != 0) return argument;
  snprintf(expected, sizeof expected, "got %d", -n);
  for (i = 0; i < 200; ++i) {
    if (gossamer_set_num_threads(-n) != GOSSAMER_ERROR_VALUE) return argument;
    if (strstr(gossamer_last_error(), expected) == NULL) return argument;
    if (gossamer_get_num_threads() < 1) return argument;
  }
  return NULL;
}

static void test_errors_belong_to_their_thread(void) {
  pthread_t threads[4];
  int numbers[4], i;
  FAILS(GOSSAMER_ERROR_VALUE, "got -77", gossamer_set_num_threads(-77));
  for (i = 0; i < 4; ++i) {
    numbers[i] = 10 + i;
    CHECK(pthread_create(&threads[i], NULL, fail_in_a_thread, &numbers[i]) == 0);
  }
  for (i = 0; i < 4; ++i) {
    void* wrong = NULL;
    pthread_join(threads[i], &wrong);
    CHECK(wrong == NULL);
  }
  CHECK(strstr(gossamer_last_error(), "got -77") != NULL);
}

static void run(const char* name, void (*test)(void)) {
  const int before = failures;
  test();
  ++tests;
  if (failures != before) fprintf(stderr, "FAILED %s\n", name);
}

int main(void) {
  const char* isa = gossamer_isa();
  const char* wanted = getenv("GOSSAMER_ISA");
  if (wanted != NULL && isa != NULL && strcmp(isa, wanted) != 0) {
    printf("this CPU has no %s\n", wanted);
    return 77;
  }
  run("process", test_process);
  run("score_and_prune", test_score_and_prune);
  run("descriptions", test_descriptions);
  run("several_tensors", test_several_tensors);
  run("counts_and_sums", test_counts_and_sums);
  run("matrices", test_matrices);
  run("empty matrices", test_empty_matrices);
  run("gradients", test_gradients);
  run("hostile_csr", test_hostile_csr);
  run("hostile_products", test_hostile_products);
  run("int8", test_int8);
  run("files", test_files);
  run("hosts", test_hosts);
  run("errors_belong_to_their_thread", test_errors_belong_to_their_thread);
  gossamer_shutdown();
  printf("%d tests, %d failed checks\n", tests, failures);
  return failures != 0;
}
