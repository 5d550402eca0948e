// SPDX-License-Identifier: Apache-2.0
// The element types: name, size, C++ type; the switches that go from the run-time tag to a type; conversions.
#pragma once
#include <bit>
#include <cstdint>
#include <type_traits>

#include "core/error.hpp"
#include "core/table.hpp"

namespace gossamer {

// Masks are read and written as 64-bit words of their bytes (ops/mask.hpp has their layout), and files hold values as
// they lie in memory.
static_assert(std::endian::native == std::endian::little, "gossamer needs a little-endian machine");

enum class DType : std::int32_t {
  float32 = GOSSAMER_FLOAT32,
  float64 = GOSSAMER_FLOAT64,
  float16 = GOSSAMER_FLOAT16,
  bfloat16 = GOSSAMER_BFLOAT16,
  int8 = 16  // of the values of a product only; no Array that is scored, and nothing in the C API, has it
};

inline bool is_16_bit(DType dtype) { return dtype == DType::float16 || dtype == DType::bfloat16; }
inline std::int64_t size_of(DType dtype) {
  if (dtype == DType::int8) return 1;
  return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2;
}
inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::float32: return "float32";
    case DType::float64: return "float64";
    case DType::float16: return "float16";
    case DType::int8: return "int8";
    default: return "bfloat16";
  }
}

template <class T>
inline constexpr DType dtype_of = std::is_same_v<T, Half>     ? DType::float16
                                  : std::is_same_v<T, BFloat> ? DType::bfloat16
                                  : sizeof(T) == 4            ? DType::float32
                                                              : DType::float64;

// What is computed in: float64 for float64, float32 for everything else.
inline DType compute_dtype(DType dtype) { return dtype == DType::float64 ? dtype : DType::float32; }

inline Storage storage_of(DType dtype) {
  if (dtype == DType::float16) return Storage::half;
  if (dtype == DType::int8) return Storage::int8;
  return dtype == DType::bfloat16 ? Storage::bfloat : Storage::native;
}

// Calls f with a zero of the type that is computed in: dispatch(dtype, [&](auto zero) { using T = decltype(zero);
// ...}).
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
  if (dtype == DType::float64) return f(double{});
  return f(float{});
}

// Calls f with a value of the type that is stored.
template <class F>
decltype(auto) dispatch_stored(DType dtype, F&& f) {
  if (dtype == DType::float16) return f(Half{});
  if (dtype == DType::bfloat16) return f(BFloat{});
  return dispatch(dtype, f);
}

// Calls f with a value of the type that elements are moved as: the 16-bit floats are bits of one kind.
template <class F>
decltype(auto) dispatch_moved(DType dtype, F&& f) {
  if (is_16_bit(dtype)) return f(Half{});
  return dispatch(dtype, f);
}

// Calls f with a value of the size of the elements, for those that are copied and nothing else; int8 too.
template <class F>
decltype(auto) dispatch_size(DType dtype, F&& f) {
  switch (size_of(dtype)) {
    case 1: return f(std::uint8_t{});
    case 2: return f(std::uint16_t{});
    case 4: return f(std::uint32_t{});
    default: return f(std::uint64_t{});
  }
}

inline float widen(BFloat x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }
inline float widen(Half x) {
  const std::uint32_t body = std::uint32_t{x.bits} & 0x7FFF, sign = (std::uint32_t{x.bits} & 0x8000) << 16;
  const float scaled = std::bit_cast<float>(body << 13) * 0x1p112f;  // from the exponent bias 15 to 127
  const std::uint32_t bits = body >= 0x7C00 ? body << 13 | 0x7F800000 : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(bits | sign);
}

// To the nearest, ties to even.
inline BFloat narrow(float x, BFloat) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7FFFFFFF) > 0x7F800000) return {static_cast<std::uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}
inline Half narrow(float x, Half) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t sign = bits >> 16 & 0x8000, body = bits & 0x7FFFFFFF;
  std::uint32_t half;
  if (body >= 0x47800000) {  // 65536 and more
    half = body > 0x7F800000 ? 0x7E00 : 0x7C00;
  } else if (body < 0x38800000) {  // below 2^-14: the sum with 0.5 rounds to multiples of 2^-24
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(body) + 0.5f) - std::bit_cast<std::uint32_t>(0.5f);
  } else {
    half = (body - 0x38000000 + 0xFFF + (body >> 13 & 1)) >> 13;
  }
  return {static_cast<std::uint16_t>(half | sign)};
}

// Towards the odd neighbour where it is not exact: rounded once more, to 16 bits, it is as if rounded once.
inline float round_to_odd(double x) {
  const auto near = static_cast<float>(x);
  if (static_cast<double>(near) == x || x != x) return near;
  auto bits = std::bit_cast<std::uint32_t>(near);
  const double size = near < 0 ? -static_cast<double>(near) : static_cast<double>(near);
  if (size > (x < 0 ? -x : x)) --bits;
  return std::bit_cast<float>(bits | 1);
}
inline float round_to_odd(float x) { return x; }

template <class To, class From>
inline To convert(From x) {
  constexpr bool from_16 = sizeof(From) == 2, to_16 = sizeof(To) == 2;
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else if constexpr (from_16 && to_16) {
    return narrow(widen(x), To{});
  } else if constexpr (from_16) {
    return static_cast<To>(widen(x));
  } else if constexpr (to_16) {
    return narrow(round_to_odd(x), To{});
  } else {
    return static_cast<To>(x);
  }
}

}  // namespace gossamer
