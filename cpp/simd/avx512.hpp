// SPDX-License-Identifier: Apache-2.0
// 512-bit vectors: AVX-512 F, BW, DQ, VL, CD. The vocabulary is described in avx2.hpp.
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/table.hpp"
#include "simd/x86.hpp"

namespace gossamer {
namespace {

// Shapes of a panel's tile: 4 rows x 4 sums of 32 registers, and a block of it is 32 KiB.
constexpr int panel_shapes = 4;

struct VF32 {
  using Scalar = float;
  using Key = std::int32_t;
  static constexpr int lanes = 16;
  __m512 v;
};
struct VF64 {
  using Scalar = double;
  using Key = std::int64_t;
  static constexpr int lanes = 8;
  __m512d v;
};
struct VU16 {
  using Scalar = Half;
  static constexpr int lanes = 32;
  __m512i v;
};
struct KI32 {
  __m512i v;
};
struct KI64 {
  __m512i v;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = VF32;
  using Narrow = struct HF32;
};
template <>
struct Simd<double> {
  using V = VF64;
  using Narrow = struct HF64;
};
template <>
struct Simd<Half> {
  using V = VU16;
};

template <class V>
V Load(const typename V::Scalar* p);
template <>
inline VF32 Load<VF32>(const float* p) {
  return {_mm512_loadu_ps(p)};
}
template <>
inline VF64 Load<VF64>(const double* p) {
  return {_mm512_loadu_pd(p)};
}
template <>
inline VU16 Load<VU16>(const Half* p) {
  return {_mm512_loadu_si512(p)};
}
template <class V>
inline V LoadAs(const typename V::Scalar* p) {
  return Load<V>(p);
}
template <class V>
inline V LoadAs(const Half* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
template <class V>
inline V LoadAs(const BFloat* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
template <class V>
inline V LoadAs(const std::int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
template <class V>
V Set(typename V::Scalar x);
template <>
inline VF32 Set<VF32>(float x) {
  return {_mm512_set1_ps(x)};
}
template <>
inline VF64 Set<VF64>(double x) {
  return {_mm512_set1_pd(x)};
}
inline void Store(VF32 a, float* p) { _mm512_storeu_ps(p, a.v); }
inline void Store(VF64 a, double* p) { _mm512_storeu_pd(p, a.v); }
inline void Store(VU16 a, Half* p) { _mm512_storeu_si512(p, a.v); }
inline VF32 Div(VF32 a, VF32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline VF64 Div(VF64 a, VF64 b) { return {_mm512_div_pd(a.v, b.v)}; }
inline VF32 Add(VF32 a, VF32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline VF64 Add(VF64 a, VF64 b) { return {_mm512_add_pd(a.v, b.v)}; }
inline VF32 Mul(VF32 a, VF32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline VF64 Mul(VF64 a, VF64 b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline VF32 MulAdd(VF32 a, VF32 b, VF32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline VF64 MulAdd(VF64 a, VF64 b, VF64 c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline VF32 Abs(VF32 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline VF64 Abs(VF64 a) { return {_mm512_andnot_pd(_mm512_set1_pd(-0.0), a.v)}; }
inline unsigned IsNaN(VF32 a) { return _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q); }
inline unsigned IsNaN(VF64 a) { return _mm512_cmp_pd_mask(a.v, a.v, _CMP_UNORD_Q); }
inline unsigned NonZero(VF32 a) { return _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
inline unsigned NonZero(VF64 a) { return _mm512_cmp_pd_mask(a.v, _mm512_setzero_pd(), _CMP_NEQ_UQ); }
inline unsigned NonZero(VU16 a) { return _mm512_test_epi16_mask(a.v, _mm512_set1_epi16(0x7FFF)); }
inline unsigned Greater(VF32 a, VF32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
inline unsigned Greater(VF64 a, VF64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_GT_OQ); }
inline unsigned Less(VF32 a, VF32 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline unsigned Less(VF64 a, VF64 b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
inline KI32 OrderKey(VF32 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  return {_mm512_xor_si512(bits, _mm512_srli_epi32(_mm512_srai_epi32(bits, 31), 1))};
}
inline KI64 OrderKey(VF64 a) {
  const __m512i bits = _mm512_castpd_si512(a.v);
  return {_mm512_xor_si512(bits, _mm512_srli_epi64(_mm512_srai_epi64(bits, 63), 1))};
}
inline VF32 KeepBits(unsigned bits, VF32 a) { return {_mm512_maskz_mov_ps(static_cast<__mmask16>(bits), a.v)}; }
inline VF64 KeepBits(unsigned bits, VF64 a) { return {_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), a.v)}; }
inline VU16 KeepBits(unsigned bits, VU16 a) { return {_mm512_maskz_mov_epi16(static_cast<__mmask32>(bits), a.v)}; }
inline float ReduceSum(VF32 a) { return _mm512_reduce_add_ps(a.v); }
inline double ReduceSum(VF64 a) { return _mm512_reduce_add_pd(a.v); }

struct K16 {
  static constexpr int lanes = 32;
  __m512i v;
};
inline K16 Load16(const void* p) { return {_mm512_loadu_si512(p)}; }
inline K16 Set16(int k) { return {_mm512_set1_epi16(static_cast<short>(k))}; }
inline K16 Magnitude16(K16 x) { return {_mm512_and_si512(x.v, _mm512_set1_epi16(0x7FFF))}; }
inline K16 Order16(K16 x) {
  const __m512i size = Magnitude16(x).v;
  return {_mm512_mask_sub_epi16(size, _mm512_movepi16_mask(x.v), _mm512_setzero_si512(), size)};
}
inline K16 Max16(K16 x, K16 y) { return {_mm512_max_epi16(x.v, y.v)}; }
inline std::uint32_t Greater(K16 x, K16 y) { return _mm512_cmpgt_epi16_mask(x.v, y.v); }

template <class V>
auto LoadKey(const typename V::Key* p);
template <>
inline auto LoadKey<VF32>(const std::int32_t* p) {
  return KI32{_mm512_loadu_si512(p)};
}
template <>
inline auto LoadKey<VF64>(const std::int64_t* p) {
  return KI64{_mm512_loadu_si512(p)};
}
template <class V>
auto SetKey(typename V::Key k);
template <>
inline auto SetKey<VF32>(std::int32_t k) {
  return KI32{_mm512_set1_epi32(k)};
}
template <>
inline auto SetKey<VF64>(std::int64_t k) {
  return KI64{_mm512_set1_epi64(k)};
}
template <int r>
inline KI32 RotateFour(KI32 a) {
  return {_mm512_shuffle_epi32(a.v, static_cast<_MM_PERM_ENUM>(r == 1 ? 0x39 : r == 2 ? 0x4E : 0x93))};
}
template <int r>
inline KI64 RotateFour(KI64 a) {
  return {_mm512_permutex_epi64(a.v, r == 1 ? 0x39 : r == 2 ? 0x4E : 0x93)};
}
inline void StoreKey(KI32 a, std::int32_t* p) { _mm512_storeu_si512(p, a.v); }
inline void StoreKey(KI64 a, std::int64_t* p) { _mm512_storeu_si512(p, a.v); }
inline unsigned Greater(KI32 a, KI32 b) { return _mm512_cmpgt_epi32_mask(a.v, b.v); }
inline unsigned Greater(KI64 a, KI64 b) { return _mm512_cmpgt_epi64_mask(a.v, b.v); }
inline unsigned Equal(KI32 a, KI32 b) { return _mm512_cmpeq_epi32_mask(a.v, b.v); }
inline unsigned Equal(KI64 a, KI64 b) { return _mm512_cmpeq_epi64_mask(a.v, b.v); }

struct HF32 {
  using Scalar = float;
  static constexpr int lanes = 8;
  __m256 v;
};
struct HF64 {
  using Scalar = double;
  static constexpr int lanes = 4;
  __m256d v;
};
template <>
inline HF32 Load<HF32>(const float* p) {
  return {_mm256_loadu_ps(p)};
}
template <>
inline HF64 Load<HF64>(const double* p) {
  return {_mm256_loadu_pd(p)};
}
template <>
inline HF32 Set<HF32>(float x) {
  return {_mm256_set1_ps(x)};
}
template <>
inline HF64 Set<HF64>(double x) {
  return {_mm256_set1_pd(x)};
}
inline void Store(HF32 a, float* p) { _mm256_storeu_ps(p, a.v); }
inline void Store(HF64 a, double* p) { _mm256_storeu_pd(p, a.v); }
inline HF32 Add(HF32 a, HF32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline HF64 Add(HF64 a, HF64 b) { return {_mm256_add_pd(a.v, b.v)}; }
inline HF32 MulAdd(HF32 a, HF32 b, HF32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline HF64 MulAdd(HF64 a, HF64 b, HF64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }

// Every 128 bits (of doubles, 256) hold the four numbers, which a permutation within them spreads.
template <class V>
struct Four {
  V v;
};
template <class V, class S>
inline Four<V> LoadFour(const S* p) {
  if constexpr (std::is_same_v<V, VF32>)
    return {{_mm512_broadcast_f32x4(Load4(p))}};
  else if constexpr (std::is_same_v<V, HF32> && std::is_same_v<S, float>)
    return {{_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))}};
  else if constexpr (std::is_same_v<V, HF32>)
    return {{_mm256_set_m128(Load4(p), Load4(p))}};
  else if constexpr (std::is_same_v<V, VF64>)
    return {{_mm512_broadcast_f64x4(_mm256_loadu_pd(p))}};
  else
    return {{_mm256_loadu_pd(p)}};
}
template <int i, class V>
inline V Spread(Four<V> a) {
  if constexpr (std::is_same_v<V, VF32>)
    return {_mm512_permute_ps(a.v.v, i * 0x55)};
  else if constexpr (std::is_same_v<V, HF32>)
    return {_mm256_permute_ps(a.v.v, i * 0x55)};
  else if constexpr (std::is_same_v<V, VF64>)
    return {_mm512_permutex_pd(a.v.v, i * 0x55)};
  else
    return {_mm256_permute4x64_pd(a.v.v, i * 0x55)};
}

// The empty asm keeps one copy of the mask. Expanding is asm because the compiler would do it from memory, which is
// microcode on Zen 4 and 5, and into a register of its own, whose former value Zen 5 waits for.
template <class V>
struct Lanes {
  std::conditional_t<V::lanes == 16, __mmask16, __mmask8> mask;
  explicit Lanes(unsigned bits) : mask(static_cast<decltype(mask)>(bits)) { __asm__("" : "+k"(mask)); }
};
template <class V, class S>
inline V Expand(Lanes<V> lanes, const S* p) {
  V a = LoadAs<V>(p);
  if constexpr (V::lanes == 16)
    __asm__("vexpandps %0, %0%{%1%}%{z%}" : "+v"(a.v) : "Yk"(lanes.mask));
  else
    __asm__("vexpandpd %0, %0%{%1%}%{z%}" : "+v"(a.v) : "Yk"(lanes.mask));
  return a;
}
inline VF32 MulAddWhere(Lanes<VF32> lanes, VF32 a, VF32 b, VF32 c) {
  return {_mm512_mask3_fmadd_ps(a.v, b.v, c.v, lanes.mask)};
}
inline VF64 MulAddWhere(Lanes<VF64> lanes, VF64 a, VF64 b, VF64 c) {
  return {_mm512_mask3_fmadd_pd(a.v, b.v, c.v, lanes.mask)};
}

}  // namespace
}  // namespace gossamer
