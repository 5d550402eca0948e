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

static const int64_t two_by_four[2] = {2, 4}, four_by_two[2] = {4, 2}, four[1] = {4}, two[1] = {2};

static void test_process(void) {
  const char* isa = gossamer_isa();
  const char* wanted = getenv("GOSSAMER_ISA");
  CHECK(strcmp(gossamer_version(), GOSSAMER_VERSION) == 0);
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
  CHECK(gossamer_score("magnitude", &weights, NULL, 0, &into) == GOSSAMER_OK);
  CHECK(memcmp(scores, magnitude, sizeof scores) == 0);
  CHECK(gossamer_score("taylor", &weights, &grads, 0, &into) == GOSSAMER_OK && scores[3] > 5.9f && scores[3] < 6.1f);
  CHECK(gossamer_score("random", &weights, NULL, 7, &into) == GOSSAMER_OK && scores[0] >= 0 && scores[0] < 1);

  CHECK(gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz) == GOSSAMER_OK);
  CHECK(nnz == 4 && mask[0] == 0x6 && mask[1] == 0x9);
  for (i = 0; i < 8; ++i) CHECK(out[i] == ((mask[i / 4] >> (i % 4) & 1) != 0 ? w[i] : 0));
  CHECK(gossamer_prune("taylor", &weights, &grads, 0, 0.875, "element", "tensor", mask, NULL, NULL) == GOSSAMER_OK);
  CHECK(mask[0] == 0x8 && mask[1] == 0);
  CHECK(gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "2:4", "tensor", mask, NULL, &nnz) == GOSSAMER_OK);
  CHECK(nnz == 4 && mask[0] == 0x6 && mask[1] == 0x9);
  CHECK(gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", "row", mask, &weights, NULL) == GOSSAMER_OK);
  CHECK(w[0] == 0 && w[1] == -4 && w[4] == 5 && w[7] == 2);
  CHECK(gossamer_apply_mask(&grads, mask, &to) == GOSSAMER_OK && out[0] == 0 && out[1] == 1 && out[3] == 0);

  memcpy(same, mask, sizeof same);
  memset(out, 0x11, sizeof out);
  memcpy(scores, out, sizeof out);
  nnz = -7;
  FAILS(GOSSAMER_ERROR_VALUE, "prune: sparsity must be in [0, 1], got 1.3",
        gossamer_prune("magnitude", &weights, NULL, 0, 1.3, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: pattern must be",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "elements", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: group must be",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", "", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: method must be one of",
        gossamer_prune("magnitudes", &weights, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: aux must not be NULL",
        gossamer_prune("taylor", &weights, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: method must not be NULL",
        gossamer_prune(NULL, &weights, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: pattern must not be NULL",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, NULL, "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: group must not be NULL",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", NULL, mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: weights must not be NULL",
        gossamer_prune("magnitude", NULL, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz));
  FAILS(GOSSAMER_ERROR_VALUE, "prune: mask must not be NULL",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", "tensor", NULL, &to, &nnz));
  w[6] = (float)NAN;
  FAILS(GOSSAMER_ERROR_VALUE, "flat index 6",
        gossamer_prune("magnitude", &weights, NULL, 0, 0.5, "element", "tensor", mask, &to, &nnz));
  w[6] = 0;
  CHECK(memcmp(mask, same, sizeof same) == 0 && memcmp(out, scores, sizeof out) == 0 && nnz == -7);
  FAILS(GOSSAMER_ERROR_VALUE, "apply_mask: mask must not be NULL", gossamer_apply_mask(&weights, NULL, &to));
  FAILS(GOSSAMER_ERROR_VALUE, "apply_mask: out must not be NULL", gossamer_apply_mask(&weights, mask, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "score: scores must not be NULL", gossamer_score("magnitude", &weights, NULL, 0, NULL));
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
  FAILS(GOSSAMER_ERROR_VALUE, "score: weights has a negative dimension -4",
        gossamer_score("magnitude", &bad, NULL, 0, &to));
  CHECK(gossamer_mask_bytes(&bad) == -1);
  bad.shape = huge;
  bad.ndim = 3;
  FAILS(GOSSAMER_ERROR_VALUE, "larger than the address space", gossamer_score("magnitude", &bad, NULL, 0, &to));
  CHECK(gossamer_mask_bytes(&bad) == -1);
  bad.shape = empty_huge;
  FAILS(GOSSAMER_ERROR_VALUE, "larger than the address space", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.shape = two_by_four;
  bad.ndim = -1;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got -1", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = 65;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got 65", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = INT32_MAX;
  FAILS(GOSSAMER_ERROR_VALUE, "dimensions, got 2147483647", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.ndim = 2;
  bad.dtype = 7;
  FAILS(GOSSAMER_ERROR_TYPE, "must have a gossamer_dtype, got 7", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = -1;
  FAILS(GOSSAMER_ERROR_TYPE, "must have a gossamer_dtype, got -1", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = GOSSAMER_FLOAT64;
  bad.data = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "weights must have data", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.data = data;
  bad.shape = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "weights must have a shape", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.shape = four_by_two;
  FAILS(GOSSAMER_ERROR_VALUE, "out must have the shape (4, 2), got (2, 4)",
        gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.shape = two_by_four;
  bad.dtype = GOSSAMER_FLOAT32;
  FAILS(GOSSAMER_ERROR_TYPE, "out must be float32, got float64", gossamer_score("magnitude", &bad, NULL, 0, &to));
  bad.dtype = GOSSAMER_FLOAT64;
  {
    gossamer_array repeated = array(out, GOSSAMER_FLOAT64, 2, two_by_four, nothing);
    FAILS(GOSSAMER_ERROR_VALUE, "one element in two places", gossamer_score("magnitude", &bad, NULL, 0, &repeated));
    repeated.strides = windows;
    FAILS(GOSSAMER_ERROR_VALUE, "one element in two places", gossamer_score("magnitude", &bad, NULL, 0, &repeated));
  }
  {
    const gossamer_array shifted = array(data + 1, GOSSAMER_FLOAT64, 2, two_by_four, NULL);
    FAILS(GOSSAMER_ERROR_VALUE, "the input itself or not overlap",
          gossamer_score("magnitude", &bad, NULL, 0, &shifted));
  }
  FAILS(GOSSAMER_ERROR_VALUE, "mask_bytes: array must not be NULL",
        (gossamer_status)(gossamer_mask_bytes(NULL) == -1 ? 2 : 0));

  /* Legal ones: backwards, broadcast, nothing at all, no dimensions. */
  bad.data = data + 7;
  bad.strides = backwards;
  CHECK(gossamer_score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[0] == 8 && out[7] == 1);
  bad.strides = nothing;
  CHECK(gossamer_score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[0] == 8 && out[7] == 8);
  bad.data = data;
  bad.strides = apart;
  CHECK(gossamer_score("magnitude", &bad, NULL, 0, &to) == GOSSAMER_OK && out[7] == 8);
  {
    uint8_t bits = 0x55;
    const gossamer_array none = array(NULL, GOSSAMER_FLOAT64, 2, empty, NULL);
    const gossamer_array scalar = array(data, GOSSAMER_FLOAT64, 0, NULL, NULL);
    const gossamer_array single = array(out, GOSSAMER_FLOAT64, 0, NULL, NULL);
    CHECK(gossamer_mask_bytes(&none) == 0 && gossamer_mask_bytes(&scalar) == 1);
    CHECK(gossamer_score("magnitude", &none, NULL, 0, &none) == GOSSAMER_OK);
    CHECK(gossamer_prune("magnitude", &none, NULL, 0, 0.5, "element", "tensor", NULL, &none, NULL) == GOSSAMER_OK);
    CHECK(gossamer_apply_mask(&none, NULL, &none) == GOSSAMER_OK);
    CHECK(gossamer_prune("magnitude", &scalar, NULL, 0, 0, "element", "tensor", &bits, &single, NULL) == GOSSAMER_OK);
    CHECK(bits == 1 && out[0] == 1);
  }
}

static void test_matmul(void) {
  /* [[0, 2, 0, 1], [3, 0, 0, 0]] */
  const int64_t good[3] = {0, 2, 3}, late[3] = {1, 2, 3}, falling[3] = {0, 3, 2}, below[3] = {0, -1, 3};
  const int64_t negative_end[3] = {0, 2, -3};
  const int32_t columns[3] = {1, 3, 0}, beyond[3] = {1, 4, 0}, before[3] = {-1, 3, 0}, twice[3] = {1, 1, 0};
  const int32_t unsorted[3] = {3, 1, 0}, extreme[3] = {1, INT32_MAX, INT32_MIN};
  const int64_t wide_columns[3] = {1, 3, 0}, wide_beyond[3] = {1, (int64_t)1 << 32, 0};
  const float values[3] = {2, 1, 3};
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[4], xt[8] = {1, 3, 5, 7, 2, 4, 6, 8}, b[2] = {100, -100},
        r[4] = {1, 1, 1, 1};
  const int64_t square[2] = {2, 2}, no_columns[2] = {4, 0}, no_result[2] = {2, 0}, tall[2] = {(int64_t)1 << 50, 1};
  const int64_t column[2] = {2, 1}, still[2] = {0, 0};
  const gossamer_array input = array(x, GOSSAMER_FLOAT32, 2, four_by_two, NULL);
  const gossamer_array rows = array(xt, GOSSAMER_FLOAT32, 2, two_by_four, NULL);
  const gossamer_array bias = array(b, GOSSAMER_FLOAT32, 1, two, NULL);
  const gossamer_array wrong_bias = array(x, GOSSAMER_FLOAT32, 1, four, NULL);
  const gossamer_array more = array(r, GOSSAMER_FLOAT32, 2, square, NULL);
  const gossamer_array out = array(y, GOSSAMER_FLOAT32, 2, square, NULL);
  gossamer_csr a;
  int i;
  a.rows = 2;
  a.cols = 4;
  a.indptr = good;
  a.indices = columns;
  a.index_bytes = 4;
  a.dtype = GOSSAMER_FLOAT32;
  a.values = values;
  CHECK(gossamer_matmul_csr(&a, &input, 0, NULL, GOSSAMER_IDENTITY, NULL, &out) == GOSSAMER_OK);
  CHECK(y[0] == 13 && y[1] == 16 && y[2] == 3 && y[3] == 6);
  CHECK(gossamer_matmul_csr(&a, &rows, 1, NULL, GOSSAMER_IDENTITY, NULL, &out) == GOSSAMER_OK);
  CHECK(y[0] == 13 && y[1] == 3 && y[2] == 16 && y[3] == 6);
  CHECK(gossamer_matmul_csr(&a, &input, 0, &bias, GOSSAMER_RELU, &more, &out) == GOSSAMER_OK);
  CHECK(y[0] == 114 && y[1] == 117 && y[2] == 1 && y[3] == 1);
  a.indices = wide_columns;
  a.index_bytes = 8;
  CHECK(gossamer_matmul_csr(&a, &input, 0, NULL, GOSSAMER_IDENTITY, &out, &out) == GOSSAMER_OK && y[0] == 127);
  for (i = 0; i < 4; ++i) y[i] = -1;

#define MATMUL() gossamer_matmul_csr(&a, &input, 0, NULL, GOSSAMER_IDENTITY, NULL, &out)
  a.indices = wide_beyond;
  FAILS(GOSSAMER_ERROR_VALUE, "in row 0", MATMUL());
  a.index_bytes = 4;
  a.indices = beyond;
  FAILS(GOSSAMER_ERROR_VALUE, "indices must be in [0, 4)", MATMUL());
  a.indices = before;
  FAILS(GOSSAMER_ERROR_VALUE, "indices must be in [0, 4)", MATMUL());
  a.indices = twice;
  FAILS(GOSSAMER_ERROR_VALUE, "sorted and unique", MATMUL());
  a.indices = unsorted;
  FAILS(GOSSAMER_ERROR_VALUE, "sorted and unique", MATMUL());
  a.indices = extreme;
  FAILS(GOSSAMER_ERROR_VALUE, "in row 0", MATMUL());
  a.indices = columns;
  a.indptr = late;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must begin with 0, got 1", MATMUL());
  a.indptr = falling;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall, got 2 after 3 at row 1", MATMUL());
  a.indptr = below;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall, got -1 after 0 at row 0", MATMUL());
  a.indptr = negative_end;
  FAILS(GOSSAMER_ERROR_VALUE, "indptr must not fall", MATMUL());
  a.indptr = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: ", MATMUL());
  a.indptr = good;
  a.indices = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "must have indices and values", MATMUL());
  a.indices = columns;
  a.values = NULL;
  FAILS(GOSSAMER_ERROR_VALUE, "must have indices and values", MATMUL());
  a.values = values;
  a.index_bytes = 3;
  FAILS(GOSSAMER_ERROR_TYPE, "index_bytes 4 or 8, got 3", MATMUL());
  a.index_bytes = 4;
  a.rows = -1;
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: a must have sizes of at least 0", MATMUL());
  a.rows = 2;
  a.cols = -4;
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: a must have sizes of at least 0", MATMUL());
  a.cols = 3;
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: ", MATMUL());
  a.cols = 4;
  a.dtype = 2;
  FAILS(GOSSAMER_ERROR_TYPE, "got dtype 2", MATMUL());
  a.dtype = GOSSAMER_FLOAT32;
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: a must not be NULL",
        gossamer_matmul_csr(NULL, &input, 0, NULL, GOSSAMER_IDENTITY, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "matmul: x must not be NULL",
        gossamer_matmul_csr(&a, NULL, 0, NULL, GOSSAMER_IDENTITY, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "linear: out must not be NULL",
        gossamer_matmul_csr(&a, &rows, 1, NULL, GOSSAMER_IDENTITY, NULL, NULL));
  FAILS(GOSSAMER_ERROR_VALUE, "linear: x must have 4 columns",
        gossamer_matmul_csr(&a, &input, 1, NULL, GOSSAMER_IDENTITY, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "activation",
        gossamer_matmul_csr(&a, &input, 0, NULL, (gossamer_activation)7, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "activation",
        gossamer_matmul_csr(&a, &input, 0, NULL, (gossamer_activation)-1, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "bias must have the shape (2,), got (4,)",
        gossamer_matmul_csr(&a, &input, 0, &wrong_bias, GOSSAMER_IDENTITY, NULL, &out));
  FAILS(GOSSAMER_ERROR_VALUE, "residual must have the shape",
        gossamer_matmul_csr(&a, &input, 0, NULL, GOSSAMER_IDENTITY, &input, &out));
  for (i = 0; i < 4; ++i) CHECK(y[i] == -1);
  {
    const gossamer_array onto = array(x, GOSSAMER_FLOAT32, 2, square, NULL);
    FAILS(GOSSAMER_ERROR_VALUE, "out must not overlap with x",
          gossamer_matmul_csr(&a, &input, 0, NULL, GOSSAMER_IDENTITY, NULL, &onto));
  }
  {
    const gossamer_array nothing = array(NULL, GOSSAMER_FLOAT32, 2, no_columns, NULL);
    const gossamer_array none = array(NULL, GOSSAMER_FLOAT32, 2, no_result, NULL);
    CHECK(gossamer_matmul_csr(&a, &nothing, 0, NULL, GOSSAMER_IDENTITY, NULL, &none) == GOSSAMER_OK);
  }
  { /* One number as 2^50 rows: legal as a description, too large to be packed. */
    const int64_t no_rows[3] = {0, 0, 0};
    const gossamer_array endless = array(x, GOSSAMER_FLOAT32, 2, tall, still);
    const gossamer_array result = array(y, GOSSAMER_FLOAT32, 2, column, NULL);
    a.cols = tall[0];
    a.index_bytes = 8;
    a.indptr = no_rows;
    FAILS(GOSSAMER_ERROR_MEMORY, "out of memory",
          gossamer_matmul_csr(&a, &endless, 0, NULL, GOSSAMER_IDENTITY, NULL, &result));
  }
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
  run("matmul", test_matmul);
  run("errors_belong_to_their_thread", test_errors_belong_to_their_thread);
  gossamer_shutdown();
  printf("%d tests, %d failed checks\n", tests, failures);
  return failures != 0;
}
