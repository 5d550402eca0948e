// SPDX-License-Identifier: Apache-2.0
// One row per element type: name, size, C++ type; and the switch that goes from the run-time tag to the type.
#pragma once
#include <cstdint>

#include "core/error.hpp"

namespace gossamer {

enum class DType : std::int32_t { float32 = GOSSAMER_FLOAT32, float64 = GOSSAMER_FLOAT64 };

inline std::int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 8; }
inline const char* name_of(DType dtype) { return dtype == DType::float32 ? "float32" : "float64"; }

template <class T>
inline constexpr DType dtype_of = sizeof(T) == 4 ? DType::float32 : DType::float64;

// Calls f with a value of the element type, e.g. dispatch(dtype, [&](auto zero) { using T = decltype(zero); ... }).
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  if (dtype == DType::float32) return f(float{});
  return f(double{});
}

}  // namespace gossamer
