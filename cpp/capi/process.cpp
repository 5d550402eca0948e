// SPDX-License-Identifier: Apache-2.0
// The C ABI: the process, and what guard.hpp declares.
#include <limits>

#include "capi/guard.hpp"
#include "core/device.hpp"
#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/mask.hpp"
#include "ops/matrix.hpp"

namespace gossamer::capi {

static thread_local std::string last_error;

gossamer_status fail(gossamer_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error = "out of memory";  // short: fits without an allocation
  }
  return status;
}

Array describe(const char* function, const char* argument, const gossamer_array* array, bool values) {
  const std::string what = format("%s: %s", function, argument);
  given(function, argument, array);
  const bool known = array->dtype >= GOSSAMER_FLOAT32 && array->dtype <= GOSSAMER_BFLOAT16;
  if (!known && !(values && array->dtype == GOSSAMER_INT8))
    type_error(what + format(" must have a gossamer_dtype, got %d", static_cast<int>(array->dtype)));
  if (array->ndim > 0 && array->shape == nullptr) value_error(what + " must have a shape");
  return Array(array->data, static_cast<DType>(array->dtype), array->ndim, array->shape, array->strides, what.c_str());
}

Array view(const char* function, const char* argument, const gossamer_array* array, bool values) {
  const Array result = describe(function, argument, array, values);
  if (result.data() == nullptr && !result.empty()) value_error(format("%s: %s must have data", function, argument));
  return result;
}

DType dtype_of_values(const char* function, const char* argument, std::int32_t dtype) {
  if ((dtype < GOSSAMER_FLOAT32 || dtype > GOSSAMER_BFLOAT16) && dtype != GOSSAMER_INT8)
    type_error(format("%s: %s must be a gossamer_dtype, got %d", function, argument, dtype));
  return static_cast<DType>(dtype);
}

Act activation_of(const char* function, std::int32_t activation) {
  if (activation < GOSSAMER_IDENTITY || activation > GOSSAMER_TANH)
    value_error(format("%s: activation must be a gossamer_activation, got %d", function, activation));
  return static_cast<Act>(activation);
}

std::int64_t check_sizes(const char* function, std::int64_t rows, std::int64_t cols) {
  constexpr std::int64_t most = std::int64_t{1} << 62;
  if (rows < 0 || cols < 0 || rows >= most || cols >= most)
    value_error(format("%s: the shape must be at least 0 and fit into 62 bits, got %s", function,
                       shape_text(rows, cols).c_str()));
  return packed_size(rows, cols);
}

const std::uint8_t* check_mask(const char* function, const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  if (check_sizes(function, rows, cols) == 0) return mask;
  if (!padding_is_zero(given(function, "mask", mask), rows, cols))
    value_error(format("%s: mask must have padding bits of 0, got others", function));
  return mask;
}

}  // namespace gossamer::capi

using namespace gossamer;
using capi::guarded;

extern "C" {

const char* gossamer_version(void) { return GOSSAMER_VERSION; }

std::int32_t gossamer_abi_version(void) { return GOSSAMER_ABI_VERSION; }

const char* gossamer_isa(void) {
  const char* name = nullptr;
  guarded([&] { name = active_isa().name; });
  return name;
}

const char* gossamer_cuda_unavailable_reason(void) { return cuda_unavailable_reason(); }

const char* gossamer_last_error(void) { return capi::last_error.c_str(); }

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

gossamer_status gossamer_set_parallel_for(gossamer_parallel_for f, void* context) {
  return guarded([&] { set_host_parallel_for(f, context); });
}

void gossamer_shutdown(void) {
  guarded([] { shutdown_threads(); });
}

}  // extern "C"
