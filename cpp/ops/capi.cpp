// SPDX-License-Identifier: Apache-2.0
// The C ABI: descriptors in, statuses out. No exception leaves it.
#include <new>
#include <stdexcept>
#include <string>

#include "core/dispatch.hpp"
#include "core/float_guard.hpp"
#include "core/parallel.hpp"
#include "gossamer/gossamer.h"
#include "ops/mask.hpp"
#include "ops/matmul.hpp"
#include "ops/prune.hpp"

namespace gossamer {
namespace {

thread_local std::string last_error;

gossamer_status fail(gossamer_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

template <class F>
gossamer_status guarded(F&& f) noexcept {
  try {
    const FloatGuard guard;
    f();
    return GOSSAMER_OK;
  } catch (const Error& error) {
    return fail(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return fail(GOSSAMER_ERROR_MEMORY, "gossamer: out of memory");
  } catch (const std::length_error&) {
    return fail(GOSSAMER_ERROR_MEMORY, "gossamer: out of memory");
  } catch (const std::exception& error) {
    return fail(GOSSAMER_ERROR_RUNTIME, error.what());
  } catch (...) {
    return fail(GOSSAMER_ERROR_RUNTIME, "gossamer: unknown error");
  }
}

Array view(const char* function, const char* argument, const gossamer_array* array) {
  const std::string what = format("%s: %s", function, argument);
  if (array == nullptr) value_error(what + " must not be NULL");
  if (array->dtype < GOSSAMER_FLOAT32 || array->dtype > GOSSAMER_BFLOAT16)
    type_error(what + format(" must have a gossamer_dtype, got %d", static_cast<int>(array->dtype)));
  if (array->ndim > 0 && array->shape == nullptr) value_error(what + " must have a shape");
  const Array result(array->data, static_cast<DType>(array->dtype), array->ndim, array->shape, array->strides,
                     what.c_str());
  if (array->data == nullptr && !result.empty()) value_error(what + " must have data");
  return result;
}

// For the products, which know no 16-bit values.
Array wide_view(const char* function, const char* argument, const gossamer_array* array) {
  const Array result = view(function, argument, array);
  if (is_16_bit(result.dtype()))
    type_error(format("%s: %s must be GOSSAMER_FLOAT32 or GOSSAMER_FLOAT64, got %s", function, argument,
                      name_of(result.dtype())));
  return result;
}

const char* text(const char* function, const char* argument, const char* value) {
  if (value == nullptr) value_error(format("%s: %s must not be NULL", function, argument));
  return value;
}

ScoreSource source(const char* function, const char* method, const gossamer_array* weights, const gossamer_array* aux,
                   std::uint64_t seed) {
  ScoreSource s;
  s.method = &find_method(function, text(function, "method", method));
  s.weights = view(function, "weights", weights);
  if (s.method->uses_aux()) s.aux = view(function, "aux", aux);
  s.seed = seed;
  check_source(function, "", s);
  return s;
}

}  // namespace
}  // namespace gossamer

using namespace gossamer;

extern "C" {

const char* gossamer_version(void) { return GOSSAMER_VERSION; }

const char* gossamer_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = active_isa().name; });
  return name;
}

const char* gossamer_last_error(void) { return last_error.c_str(); }

gossamer_status gossamer_set_num_threads(std::int32_t n) {
  return guarded([&] {
    if (n < 1 || n > 1 << 16) value_error(format("set_num_threads: n must be in [1, 65536], got %d", n));
    set_num_threads(n);
  });
}

std::int32_t gossamer_get_num_threads(void) {
  std::int32_t n = 1;
  guarded([&] { n = num_threads(); });
  return n;
}

void gossamer_shutdown(void) {
  guarded([] { shutdown_threads(); });
}

std::int64_t gossamer_mask_bytes(const gossamer_array* array) {
  std::int64_t bytes = -1;
  guarded([&] {
    const Array a = view("mask_bytes", "array", array);
    bytes = a.rows() * row_bytes(a.cols());
  });
  return bytes;
}

gossamer_status gossamer_score(const char* method, const gossamer_array* weights, const gossamer_array* aux,
                               std::uint64_t seed, const gossamer_array* scores) {
  return guarded([&] {
    const ScoreSource s = source("score", method, weights, aux, seed);
    const Array out = view("score", "scores", scores);
    const Array inputs[] = {s.weights, s.method->uses_aux() ? s.aux : s.weights};
    check_out("score", out, s.rows(), s.cols(), s.dtype(), inputs);
    score({&s, 1}, {&out, 1});
  });
}

gossamer_status gossamer_prune(const char* method, const gossamer_array* weights, const gossamer_array* aux,
                               std::uint64_t seed, double sparsity, const char* pattern, const char* group,
                               std::uint8_t* mask, const gossamer_array* out, std::int64_t* nnz) {
  return guarded([&] {
    Selection how;
    how.sparsity = sparsity;
    how.pattern = parse_pattern("prune", text("prune", "pattern", pattern));
    how.group = parse_group("prune", text("prune", "group", group));
    std::vector<SelectTensor> tensors(1);
    tensors[0].source = source("prune", method, weights, aux, seed);
    // The mask is written last, so that an error leaves it as it was.
    const Array& w = tensors[0].source.weights;
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(w.rows() * row_bytes(w.cols())));
    if (mask == nullptr && !bits.empty()) value_error("prune: mask must not be NULL");
    tensors[0].mask = bits.data();
    if (out != nullptr) {
      prune("prune", tensors, how, {view("prune", "out", out)});
    } else {
      select("prune", tensors, how);
    }
    std::copy(bits.begin(), bits.end(), mask);
    if (nnz != nullptr) *nnz = tensors[0].nnz;
  });
}

gossamer_status gossamer_apply_mask(const gossamer_array* weights, const std::uint8_t* mask,
                                    const gossamer_array* out) {
  return guarded([&] {
    const Array w = view("apply_mask", "weights", weights), o = view("apply_mask", "out", out);
    if (mask == nullptr && !w.empty()) value_error("apply_mask: mask must not be NULL");
    check_out("apply_mask", o, w.rows(), w.cols(), w.dtype(), {&w, 1});
    apply_mask(w, mask, o);
  });
}

gossamer_status gossamer_matmul_csr(const gossamer_csr* a, const gossamer_array* x, std::int32_t linear,
                                    const gossamer_array* bias, std::int32_t activation, const gossamer_array* residual,
                                    const gossamer_array* out) {
  const char* function = linear != 0 ? "linear" : "matmul";
  return guarded([&] {
    if (a == nullptr || a->indptr == nullptr) value_error(format("%s: a must not be NULL", function));
    if (a->rows < 0 || a->cols < 0) value_error(format("%s: a must have sizes of at least 0", function));
    if (a->index_bytes != 4 && a->index_bytes != 8)
      type_error(format("%s: a must have index_bytes 4 or 8, got %d", function, a->index_bytes));
    if (a->dtype != GOSSAMER_FLOAT32 && a->dtype != GOSSAMER_FLOAT64)
      type_error(format("%s: a must be GOSSAMER_FLOAT32 or GOSSAMER_FLOAT64, got dtype %d", function,
                        static_cast<int>(a->dtype)));
    if (activation < GOSSAMER_IDENTITY || activation > GOSSAMER_TANH)
      value_error(format("%s: activation must be a gossamer_activation, got %d", function, activation));
    const CsrPattern pattern{a->rows, a->cols, a->indptr, a->indices, a->index_bytes == 8};
    if (pattern.nnz() != 0 && (a->indices == nullptr || a->values == nullptr))
      value_error(format("%s: a must have indices and values", function));
    check_csr(function, pattern, pattern.nnz());
    Epilogue epilogue;
    epilogue.activation = static_cast<Act>(activation);
    if (bias != nullptr) epilogue.bias = wide_view(function, "bias", bias);
    if (residual != nullptr) epilogue.residual = wide_view(function, "residual", residual);
    matmul_csr(function, pattern, static_cast<DType>(a->dtype), a->values, wide_view(function, "x", x), linear != 0,
               epilogue, wide_view(function, "out", out));
  });
}

}  // extern "C"
