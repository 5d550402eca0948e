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

// Loads of single numbers into vectors: on Zen 5 faster than its gather instructions, which decode into more.
template <class T>
struct Sum4;
template <>
struct Sum4<float> {
  __m128 v;
};
template <>
struct Sum4<double> {
  __m256d v;
};
template <class S, class Index>
inline Sum4<float> AddPicked(const S* values, const float* x, const Index* i, Sum4<float> sum) {
  return {_mm_fmadd_ps(Load4(values), _mm_setr_ps(x[i[0]], x[i[1]], x[i[2]], x[i[3]]), sum.v)};
}
template <class Index>
inline Sum4<double> AddPicked(const double* values, const double* x, const Index* i, Sum4<double> sum) {
  return {_mm256_fmadd_pd(_mm256_loadu_pd(values), _mm256_setr_pd(x[i[0]], x[i[1]], x[i[2]], x[i[3]]), sum.v)};
}
inline float ReduceSum(Sum4<float> a) {
  const __m128 two = _mm_add_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline double ReduceSum(Sum4<double> a) {
  const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
}
inline Sum4<float> Add(Sum4<float> a, Sum4<float> b) { return {_mm_add_ps(a.v, b.v)}; }
inline Sum4<double> Add(Sum4<double> a, Sum4<double> b) { return {_mm256_add_pd(a.v, b.v)}; }

}  // namespace
}  // namespace gossamer
