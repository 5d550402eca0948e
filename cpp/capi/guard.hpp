// SPDX-License-Identifier: Apache-2.0
// What every function of the C ABI shares: descriptions in, statuses out. No exception leaves it.
#pragma once
#include <new>
#include <stdexcept>
#include <string>

#include "core/array.hpp"
#include "core/float_guard.hpp"
#include "gossamer/gossamer.h"
#include "ops/matmul.hpp"

namespace gossamer::capi {

// Keeps the message for gossamer_last_error.
gossamer_status fail(gossamer_status status, const char* message) noexcept;

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

// `pointer`, which must not be null.
template <class T>
T* given(const char* function, const char* argument, T* pointer) {
  if (pointer == nullptr) value_error(format("%s: %s must not be NULL", function, argument));
  return pointer;
}

// Of the float dtypes, or also int8 with `values`; describe() of memory that need not be there.
Array describe(const char* function, const char* argument, const gossamer_array* array, bool values = false);
Array view(const char* function, const char* argument, const gossamer_array* array, bool values = false);
DType dtype_of_values(const char* function, const char* argument, std::int32_t dtype);
Act activation_of(const char* function, std::int32_t activation);
// Sizes of a mask or matrix; -> bytes of the packed mask.
std::int64_t check_sizes(const char* function, std::int64_t rows, std::int64_t cols);
// The bits, if their padding is 0.
const std::uint8_t* check_mask(const char* function, const std::uint8_t* mask, std::int64_t rows, std::int64_t cols);

}  // namespace gossamer::capi
