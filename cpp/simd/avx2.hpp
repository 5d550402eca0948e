// SPDX-License-Identifier: Apache-2.0
// 256-bit vectors: AVX2, FMA, BMI2. The vocabulary of every simd/*.hpp:
//   Simd<T>::V        the vector of T; V::lanes, V::Scalar, V::Key (the integer of the same width)
//   Simd<T>::Narrow   half of it, for the products of few columns: Load Set Store Add MulAdd (below 32 bytes, where a
//                     tile of one shape has two vectors, V itself)
//   Load Set Store Add Mul Div MulAdd Abs ReduceSum  as in Highway; unaligned addresses are fine
//   LoadAs            of T, or for float of Half, BFloat and int8, widened
//   IsNaN NonZero Greater Less Equal                 a bit per lane, lane 0 lowest; false for NaN (but IsNaN, NonZero)
//   OrderKey          bits as a signed integer that orders like the number (no NaN, no -0)
//   RotateFour        of keys: lane i gets lane (i + r) % 4 of its group of four; where V has four lanes or more
//   KeepBits          the lane where the bit is set, +0 elsewhere
//   Widen             a stored scalar as the number that is computed with
//   Sum4 AddPicked    four sums, and sum[k] += stored number k * x[index k]; ReduceSum
//   LoadFour Spread   four stored numbers, widened, as Four<V>; one of them in all lanes
//   Lanes<V>          a set of lanes, from bits
//   Expand            the next packed numbers into a set of lanes, +0 elsewhere; reads as many as V has lanes
//   MulAddWhere       a * b + c in a set of lanes (a must be +0 elsewhere), c elsewhere
//   K16               16-bit floats as signed integers: Load16 Set16 Max16 Greater; Magnitude16 the bits without the
//   sign,
//                     Order16 a key that orders like the number, 0 for both zeros (no NaN)
#pragma once
#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "core/table.hpp"
#include "simd/x86.hpp"

namespace gossamer {
namespace {

// Shapes of a panel's tile: 4 rows x 3 sums, four values and one of them take 14 of 16 registers.
constexpr int panel_shapes = 3;

struct VF32 {
  using Scalar = float;
  using Key = std::int32_t;
  static constexpr int lanes = 8;
  __m256 v;
};
struct VF64 {
  using Scalar = double;
  using Key = std::int64_t;
  static constexpr int lanes = 4;
  __m256d v;
};
struct VU16 {
  using Scalar = Half;
  static constexpr int lanes = 16;
  __m256i v;
};
struct KI32 {
  __m256i v;
};
struct KI64 {
  __m256i v;
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
  return {_mm256_loadu_ps(p)};
}
template <>
inline VF64 Load<VF64>(const double* p) {
  return {_mm256_loadu_pd(p)};
}
template <>
inline VU16 Load<VU16>(const Half* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
template <class V>
inline V LoadAs(const typename V::Scalar* p) {
  return Load<V>(p);
}
template <class V>
inline V LoadAs(const Half* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
template <class V>
inline V LoadAs(const BFloat* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
template <class V>
inline V LoadAs(const std::int8_t* p) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
template <class V>
V Set(typename V::Scalar x);
template <>
inline VF32 Set<VF32>(float x) {
  return {_mm256_set1_ps(x)};
}
template <>
inline VF64 Set<VF64>(double x) {
  return {_mm256_set1_pd(x)};
}
inline void Store(VF32 a, float* p) { _mm256_storeu_ps(p, a.v); }
inline void Store(VF64 a, double* p) { _mm256_storeu_pd(p, a.v); }
inline void Store(VU16 a, Half* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline VF32 Div(VF32 a, VF32 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline VF64 Div(VF64 a, VF64 b) { return {_mm256_div_pd(a.v, b.v)}; }
inline VF32 Add(VF32 a, VF32 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline VF64 Add(VF64 a, VF64 b) { return {_mm256_add_pd(a.v, b.v)}; }
inline VF32 Mul(VF32 a, VF32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline VF64 Mul(VF64 a, VF64 b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline VF32 MulAdd(VF32 a, VF32 b, VF32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline VF64 MulAdd(VF64 a, VF64 b, VF64 c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline VF32 Abs(VF32 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
inline VF64 Abs(VF64 a) { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), a.v)}; }
inline unsigned IsNaN(VF32 a) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q)));
}
inline unsigned IsNaN(VF64 a) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, a.v, _CMP_UNORD_Q)));
}
inline unsigned NonZero(VF32 a) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NEQ_UQ)));
}
inline unsigned NonZero(VF64 a) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, _mm256_setzero_pd(), _CMP_NEQ_UQ)));
}
inline unsigned NonZero(VU16 a) {
  const __m256i zero = _mm256_cmpeq_epi16(_mm256_slli_epi16(a.v, 1), _mm256_setzero_si256());
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(zero), _mm256_extracti128_si256(zero, 1));
  return static_cast<unsigned>(_mm_movemask_epi8(bytes)) ^ 0xFFFFu;
}
inline unsigned Greater(VF32 a, VF32 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ)));
}
inline unsigned Greater(VF64 a, VF64 b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_GT_OQ)));
}
inline unsigned Less(VF32 a, VF32 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)));
}
inline unsigned Less(VF64 a, VF64 b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)));
}
inline KI32 OrderKey(VF32 a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  return {_mm256_xor_si256(bits, _mm256_srli_epi32(_mm256_srai_epi32(bits, 31), 1))};
}
inline KI64 OrderKey(VF64 a) {
  const __m256i bits = _mm256_castpd_si256(a.v);
  const __m256i negative = _mm256_cmpgt_epi64(_mm256_setzero_si256(), bits);
  return {_mm256_xor_si256(bits, _mm256_srli_epi64(negative, 1))};
}
template <class V>
struct Lanes {
  unsigned bits;
  V kept;  // all bits of the lanes
  explicit Lanes(unsigned lanes);
};
template <>
inline Lanes<VF32>::Lanes(unsigned lanes) : bits(lanes) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i all = _mm256_set1_epi32(static_cast<int>(bits));
  kept = {_mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(all, lane), lane))};
}
template <>
inline Lanes<VF64>::Lanes(unsigned lanes) : bits(lanes) {
  const __m256i lane = _mm256_setr_epi64x(1, 2, 4, 8);
  kept = {_mm256_castsi256_pd(_mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x(bits), lane), lane))};
}
inline VF32 Keep(Lanes<VF32> lanes, VF32 a) { return {_mm256_and_ps(a.v, lanes.kept.v)}; }
inline VF64 Keep(Lanes<VF64> lanes, VF64 a) { return {_mm256_and_pd(a.v, lanes.kept.v)}; }
inline VF32 KeepBits(unsigned bits, VF32 a) { return Keep(Lanes<VF32>(bits), a); }
inline VF64 KeepBits(unsigned bits, VF64 a) { return Keep(Lanes<VF64>(bits), a); }
inline VU16 KeepBits(unsigned bits, VU16 a) {
  const __m256i lane = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, -32768);
  const __m256i all = _mm256_set1_epi16(static_cast<short>(bits));
  return {_mm256_and_si256(a.v, _mm256_cmpeq_epi16(_mm256_and_si256(all, lane), lane))};
}
inline float ReduceSum(VF32 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline double ReduceSum(VF64 a) {
  const __m128d s = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(s, _mm_unpackhi_pd(s, s)));
}

struct K16 {
  static constexpr int lanes = 32;
  __m256i a, b;
};
inline K16 Load16(const void* p) {
  const __m256i* from = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
inline K16 Set16(int k) {
  const __m256i v = _mm256_set1_epi16(static_cast<short>(k));
  return {v, v};
}
inline K16 Magnitude16(K16 x) {
  const __m256i mask = _mm256_set1_epi16(0x7FFF);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
inline K16 Order16(K16 x) {  // psignw: minus the magnitude where x is negative, 0 where x is 0
  const K16 size = Magnitude16(x);
  return {_mm256_sign_epi16(size.a, x.a), _mm256_sign_epi16(size.b, x.b)};
}
inline K16 Max16(K16 x, K16 y) { return {_mm256_max_epi16(x.a, y.a), _mm256_max_epi16(x.b, y.b)}; }
inline std::uint32_t Greater(K16 x, K16 y) {
  const __m256i bytes = _mm256_packs_epi16(_mm256_cmpgt_epi16(x.a, y.a), _mm256_cmpgt_epi16(x.b, y.b));
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_permute4x64_epi64(bytes, 0xD8)));
}

template <class V>
auto LoadKey(const typename V::Key* p);
template <>
inline auto LoadKey<VF32>(const std::int32_t* p) {
  return KI32{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
template <>
inline auto LoadKey<VF64>(const std::int64_t* p) {
  return KI64{_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
template <class V>
auto SetKey(typename V::Key k);
template <>
inline auto SetKey<VF32>(std::int32_t k) {
  return KI32{_mm256_set1_epi32(k)};
}
template <>
inline auto SetKey<VF64>(std::int64_t k) {
  return KI64{_mm256_set1_epi64x(k)};
}
template <int r>
inline KI32 RotateFour(KI32 a) {
  return {_mm256_shuffle_epi32(a.v, r == 1 ? 0x39 : r == 2 ? 0x4E : 0x93)};
}
template <int r>
inline KI64 RotateFour(KI64 a) {
  return {_mm256_permute4x64_epi64(a.v, r == 1 ? 0x39 : r == 2 ? 0x4E : 0x93)};
}
inline void StoreKey(KI32 a, std::int32_t* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline void StoreKey(KI64 a, std::int64_t* p) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline unsigned Greater(KI32 a, KI32 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.v, b.v))));
}
inline unsigned Greater(KI64 a, KI64 b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpgt_epi64(a.v, b.v))));
}
inline unsigned Equal(KI32 a, KI32 b) {
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(a.v, b.v))));
}
inline unsigned Equal(KI64 a, KI64 b) {
  return static_cast<unsigned>(_mm256_movemask_pd(_mm256_castsi256_pd(_mm256_cmpeq_epi64(a.v, b.v))));
}

struct HF32 {
  using Scalar = float;
  static constexpr int lanes = 4;
  __m128 v;
};
struct HF64 {
  using Scalar = double;
  static constexpr int lanes = 2;
  __m128d v;
};
template <>
inline HF32 Load<HF32>(const float* p) {
  return {_mm_loadu_ps(p)};
}
template <>
inline HF64 Load<HF64>(const double* p) {
  return {_mm_loadu_pd(p)};
}
template <>
inline HF32 Set<HF32>(float x) {
  return {_mm_set1_ps(x)};
}
template <>
inline HF64 Set<HF64>(double x) {
  return {_mm_set1_pd(x)};
}
inline void Store(HF32 a, float* p) { _mm_storeu_ps(p, a.v); }
inline void Store(HF64 a, double* p) { _mm_storeu_pd(p, a.v); }
inline HF32 Add(HF32 a, HF32 b) { return {_mm_add_ps(a.v, b.v)}; }
inline HF64 Add(HF64 a, HF64 b) { return {_mm_add_pd(a.v, b.v)}; }
inline HF32 MulAdd(HF32 a, HF32 b, HF32 c) { return {_mm_fmadd_ps(a.v, b.v, c.v)}; }
inline HF64 MulAdd(HF64 a, HF64 b, HF64 c) { return {_mm_fmadd_pd(a.v, b.v, c.v)}; }

// Every 128 bits (of doubles, 256) hold the four numbers, which a permutation within them spreads.
template <class V>
struct Four {
  V v;
};
template <>
struct Four<HF64> {
  const double* p;
};
template <class V, class S>
inline Four<V> LoadFour(const S* p) {
  if constexpr (std::is_same_v<V, VF32> && std::is_same_v<S, float>)
    return {{_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))}};
  else if constexpr (std::is_same_v<V, VF32>)
    return {{_mm256_set_m128(Load4(p), Load4(p))}};
  else if constexpr (std::is_same_v<V, HF32>)
    return {{Load4(p)}};
  else if constexpr (std::is_same_v<V, VF64>)
    return {{_mm256_loadu_pd(p)}};
  else
    return {p};
}
template <int i, class V>
inline V Spread(Four<V> a) {
  if constexpr (std::is_same_v<V, VF32>)
    return {_mm256_permute_ps(a.v.v, i * 0x55)};
  else if constexpr (std::is_same_v<V, HF32>)
    return {_mm_permute_ps(a.v.v, i * 0x55)};
  else if constexpr (std::is_same_v<V, VF64>)
    return {_mm256_permute4x64_pd(a.v.v, i * 0x55)};
  else
    return Set<V>(a.p[i]);
}

// For every set of lanes: which of the packed numbers each lane takes (in floats; a double is two of them; -1: none),
// and the same in bytes for bfloat16, whose two become the upper ones of a float.
struct ExpandPlaces {
  std::int8_t of_32[256][8], of_64[16][8];
  alignas(32) std::int8_t of_bfloat[256][32];
  constexpr ExpandPlaces() : of_32{}, of_64{}, of_bfloat{} {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, next = 0; lane < 8; ++lane) {
        const bool kept = (bits >> lane & 1) != 0;
        of_32[bits][lane] = static_cast<std::int8_t>(kept ? next : -1);
        of_bfloat[bits][4 * lane] = of_bfloat[bits][4 * lane + 1] = -1;
        of_bfloat[bits][4 * lane + 2] = static_cast<std::int8_t>(kept ? 2 * next : -1);
        of_bfloat[bits][4 * lane + 3] = static_cast<std::int8_t>(kept ? 2 * next + 1 : -1);
        next += kept;
      }
    for (int bits = 0; bits < 16; ++bits)
      for (int lane = 0, next = 0; lane < 4; ++lane) {
        const bool kept = (bits >> lane & 1) != 0;
        of_64[bits][2 * lane] = static_cast<std::int8_t>(kept ? 2 * next : -1);
        of_64[bits][2 * lane + 1] = static_cast<std::int8_t>(kept ? 2 * next + 1 : -1);
        next += kept;
      }
  }
};
constexpr ExpandPlaces expand_places;
inline __m256 MoveTo(const std::int8_t* places, __m256 a) {
  const __m256i at = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(places)));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(a, at), _mm256_setzero_ps(), _mm256_castsi256_ps(at));
}
template <class V, class S>
inline V Expand(Lanes<V> lanes, const S* p) {
  if constexpr (sizeof(typename V::Scalar) == 8) {
    const __m256d a = LoadAs<V>(p).v;
    return {_mm256_castps_pd(MoveTo(expand_places.of_64[lanes.bits], _mm256_castpd_ps(a)))};
  } else {
    return {MoveTo(expand_places.of_32[lanes.bits], LoadAs<V>(p).v)};
  }
}
template <>
inline VF32 Expand<VF32, BFloat>(Lanes<VF32> lanes, const BFloat* p) {
  const __m256i packed = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const auto* places = reinterpret_cast<const __m256i*>(expand_places.of_bfloat[lanes.bits]);
  return {_mm256_castsi256_ps(_mm256_shuffle_epi8(packed, _mm256_load_si256(places)))};
}
template <class V>
inline V MulAddWhere(Lanes<V> lanes, V a, V b, V c) {
  return MulAdd(a, Keep(lanes, b), c);
}

}  // namespace
}  // namespace gossamer
