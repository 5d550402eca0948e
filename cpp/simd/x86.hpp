// SPDX-License-Identifier: Apache-2.0
// What AVX2 and AVX-512 load the same way. Compiled into each level's object with that level's flags.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "core/table.hpp"

namespace gossamer {
namespace {

inline float Widen(float x) { return x; }
inline double Widen(double x) { return x; }
inline float Widen(Half x) { return _cvtsh_ss(x.bits); }
inline float Widen(std::int8_t x) { return x; }
inline float Widen(BFloat x) { return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(x.bits << 16))); }

// Four stored numbers, widened.
inline __m128 Load4(const float* p) { return _mm_loadu_ps(p); }
inline __m128 Load4(const Half* p) { return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
inline __m128 Load4(const BFloat* p) {
  const __m128i wide = _mm_cvtepu16_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  return _mm_castsi128_ps(_mm_slli_epi32(wide, 16));
}
inline __m128 Load4(const std::int8_t* p) {
  std::int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}

}  // namespace
}  // namespace gossamer
