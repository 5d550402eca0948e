// SPDX-License-Identifier: Apache-2.0
// 128-bit vectors: Advanced SIMD of AArch64, which every such CPU has. The vocabulary is described in avx2.hpp.
#pragma once
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/table.hpp"

namespace gossamer {
namespace {

// Shapes of a panel's tile: 4 rows x 3 x 2 sums (two vectors a shape), the four values and a row of X take 31 of 32
// registers.
constexpr int panel_shapes = 3;

struct VF32 {
  using Scalar = float;
  using Key = std::int32_t;
  static constexpr int lanes = 4;
  float32x4_t v;
};
struct VF64 {
  using Scalar = double;
  using Key = std::int64_t;
  static constexpr int lanes = 2;
  float64x2_t v;
};
struct VU16 {
  using Scalar = Half;
  static constexpr int lanes = 8;
  uint16x8_t v;
};
struct KI32 {
  int32x4_t v;
};
struct KI64 {
  int64x2_t v;
};

// Narrow: half of the two vectors that a shape has.
template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = VF32;
  using Narrow = V;
};
template <>
struct Simd<double> {
  using V = VF64;
  using Narrow = V;
};
template <>
struct Simd<Half> {
  using V = VU16;
};

inline const std::uint16_t* bits_at(const Half* p) { return reinterpret_cast<const std::uint16_t*>(p); }
inline const std::uint16_t* bits_at(const BFloat* p) { return reinterpret_cast<const std::uint16_t*>(p); }

template <class V>
V Load(const typename V::Scalar* p);
template <>
inline VF32 Load<VF32>(const float* p) {
  return {vld1q_f32(p)};
}
template <>
inline VF64 Load<VF64>(const double* p) {
  return {vld1q_f64(p)};
}
template <>
inline VU16 Load<VU16>(const Half* p) {
  return {vld1q_u16(bits_at(p))};
}
template <class V>
inline V LoadAs(const typename V::Scalar* p) {
  return Load<V>(p);
}
template <class V>
inline V LoadAs(const Half* p) {
  return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(bits_at(p))))};
}
template <class V>
inline V LoadAs(const BFloat* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(bits_at(p)), 16))};
}
template <class V>
inline V LoadAs(const std::int8_t* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x8_t wide = vmovl_s8(vcreate_s8(four));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))};
}
template <class V>
V Set(typename V::Scalar x);
template <>
inline VF32 Set<VF32>(float x) {
  return {vdupq_n_f32(x)};
}
template <>
inline VF64 Set<VF64>(double x) {
  return {vdupq_n_f64(x)};
}
inline void Store(VF32 a, float* p) { vst1q_f32(p, a.v); }
inline void Store(VF64 a, double* p) { vst1q_f64(p, a.v); }
inline void Store(VU16 a, Half* p) { vst1q_u16(reinterpret_cast<std::uint16_t*>(p), a.v); }
inline VF32 Div(VF32 a, VF32 b) { return {vdivq_f32(a.v, b.v)}; }
inline VF64 Div(VF64 a, VF64 b) { return {vdivq_f64(a.v, b.v)}; }
inline VF32 Add(VF32 a, VF32 b) { return {vaddq_f32(a.v, b.v)}; }
inline VF64 Add(VF64 a, VF64 b) { return {vaddq_f64(a.v, b.v)}; }
inline VF32 Mul(VF32 a, VF32 b) { return {vmulq_f32(a.v, b.v)}; }
inline VF64 Mul(VF64 a, VF64 b) { return {vmulq_f64(a.v, b.v)}; }
inline VF32 MulAdd(VF32 a, VF32 b, VF32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline VF64 MulAdd(VF64 a, VF64 b, VF64 c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
inline VF32 Abs(VF32 a) { return {vabsq_f32(a.v)}; }
inline VF64 Abs(VF64 a) { return {vabsq_f64(a.v)}; }

// There is no move of masks to a general register: every lane keeps a bit of its own, and their sum is moved.
inline uint32x4_t bit_of_32() { return uint32x4_t{1, 2, 4, 8}; }
inline uint64x2_t bit_of_64() { return uint64x2_t{1, 2}; }
inline uint16x8_t bit_of_16() { return uint16x8_t{1, 2, 4, 8, 16, 32, 64, 128}; }
inline unsigned bits_in(uint32x4_t mask) { return vaddvq_u32(vandq_u32(mask, bit_of_32())); }
inline unsigned bits_in(uint64x2_t mask) { return static_cast<unsigned>(vaddvq_u64(vandq_u64(mask, bit_of_64()))); }
inline unsigned bits_out(uint32x4_t mask) { return vaddvq_u32(vbicq_u32(bit_of_32(), mask)); }
inline unsigned bits_out(uint64x2_t mask) { return static_cast<unsigned>(vaddvq_u64(vbicq_u64(bit_of_64(), mask))); }

inline unsigned IsNaN(VF32 a) { return bits_out(vceqq_f32(a.v, a.v)); }
inline unsigned IsNaN(VF64 a) { return bits_out(vceqq_f64(a.v, a.v)); }
inline unsigned NonZero(VF32 a) { return bits_out(vceqzq_f32(a.v)); }
inline unsigned NonZero(VF64 a) { return bits_out(vceqzq_f64(a.v)); }
inline unsigned NonZero(VU16 a) { return vaddvq_u16(vandq_u16(vtstq_u16(a.v, vdupq_n_u16(0x7FFF)), bit_of_16())); }
inline unsigned Greater(VF32 a, VF32 b) { return bits_in(vcgtq_f32(a.v, b.v)); }
inline unsigned Greater(VF64 a, VF64 b) { return bits_in(vcgtq_f64(a.v, b.v)); }
inline unsigned Less(VF32 a, VF32 b) { return bits_in(vcltq_f32(a.v, b.v)); }
inline unsigned Less(VF64 a, VF64 b) { return bits_in(vcltq_f64(a.v, b.v)); }
inline KI32 OrderKey(VF32 a) {
  const int32x4_t bits = vreinterpretq_s32_f32(a.v);
  const uint32x4_t negative = vreinterpretq_u32_s32(vshrq_n_s32(bits, 31));
  return {veorq_s32(bits, vreinterpretq_s32_u32(vshrq_n_u32(negative, 1)))};
}
inline KI64 OrderKey(VF64 a) {
  const int64x2_t bits = vreinterpretq_s64_f64(a.v);
  const uint64x2_t negative = vreinterpretq_u64_s64(vshrq_n_s64(bits, 63));
  return {veorq_s64(bits, vreinterpretq_s64_u64(vshrq_n_u64(negative, 1)))};
}

template <class V>
struct Lanes {
  unsigned bits;
  explicit Lanes(unsigned lanes) : bits(lanes) {}
};
inline VF32 Keep(Lanes<VF32> lanes, VF32 a) {
  const uint32x4_t kept = vtstq_u32(vdupq_n_u32(lanes.bits), bit_of_32());
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), kept))};
}
inline VF64 Keep(Lanes<VF64> lanes, VF64 a) {
  const uint64x2_t kept = vtstq_u64(vdupq_n_u64(lanes.bits), bit_of_64());
  return {vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(a.v), kept))};
}
inline VF32 KeepBits(unsigned bits, VF32 a) { return Keep(Lanes<VF32>(bits), a); }
inline VF64 KeepBits(unsigned bits, VF64 a) { return Keep(Lanes<VF64>(bits), a); }
inline VU16 KeepBits(unsigned bits, VU16 a) {
  const uint16x8_t all = vdupq_n_u16(static_cast<std::uint16_t>(bits));
  return {vandq_u16(a.v, vtstq_u16(all, bit_of_16()))};
}
inline float ReduceSum(VF32 a) { return vaddvq_f32(a.v); }
inline double ReduceSum(VF64 a) { return vaddvq_f64(a.v); }

// Four vectors: as many keys as there are bits in what Greater gives, so that their masks are summed together.
struct K16 {
  static constexpr int lanes = 32;
  int16x8x4_t v;
};
template <class Operation>
inline K16 for_each_16(Operation&& operation) {
  return {{{operation(0), operation(1), operation(2), operation(3)}}};
}
inline K16 Load16(const void* p) {
  const std::int16_t* from = static_cast<const std::int16_t*>(p);
  return for_each_16([&](int i) { return vld1q_s16(from + 8 * i); });
}
inline K16 Set16(int k) {
  return for_each_16([&](int) { return vdupq_n_s16(static_cast<std::int16_t>(k)); });
}
inline K16 Magnitude16(K16 x) {
  return for_each_16([&](int i) { return vandq_s16(x.v.val[i], vdupq_n_s16(0x7FFF)); });
}
inline K16 Order16(K16 x) {  // minus the magnitude where x is negative: its bits the other way round, and one more
  const K16 size = Magnitude16(x);
  return for_each_16([&](int i) {
    const int16x8_t negative = vshrq_n_s16(x.v.val[i], 15);
    return vsubq_s16(veorq_s16(size.v.val[i], negative), negative);
  });
}
inline K16 Max16(K16 x, K16 y) {
  return for_each_16([&](int i) { return vmaxq_s16(x.v.val[i], y.v.val[i]); });
}
inline std::uint32_t Greater(K16 x, K16 y) {
  const uint8x16_t bit_of_8{1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const auto half = [&](int i) {  // a bit for each of 16 keys
    const uint8x16_t first = vreinterpretq_u8_u16(vcgtq_s16(x.v.val[i], y.v.val[i]));
    const uint8x16_t second = vreinterpretq_u8_u16(vcgtq_s16(x.v.val[i + 1], y.v.val[i + 1]));
    return vandq_u8(vuzp1q_u8(first, second), bit_of_8);
  };
  uint8x16_t sums = vpaddq_u8(half(0), half(2));
  sums = vpaddq_u8(sums, sums);
  return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(sums, sums)), 0);
}

template <class V>
auto LoadKey(const typename V::Key* p);
template <>
inline auto LoadKey<VF32>(const std::int32_t* p) {
  return KI32{vld1q_s32(p)};
}
template <>
inline auto LoadKey<VF64>(const std::int64_t* p) {
  return KI64{vld1q_s64(p)};
}
template <class V>
auto SetKey(typename V::Key k);
template <>
inline auto SetKey<VF32>(std::int32_t k) {
  return KI32{vdupq_n_s32(k)};
}
template <>
inline auto SetKey<VF64>(std::int64_t k) {
  return KI64{vdupq_n_s64(k)};
}
template <int r>
inline KI32 RotateFour(KI32 a) {
  return {vextq_s32(a.v, a.v, r)};
}
inline void StoreKey(KI32 a, std::int32_t* p) { vst1q_s32(p, a.v); }
inline void StoreKey(KI64 a, std::int64_t* p) { vst1q_s64(p, a.v); }
inline unsigned Greater(KI32 a, KI32 b) { return bits_in(vcgtq_s32(a.v, b.v)); }
inline unsigned Greater(KI64 a, KI64 b) { return bits_in(vcgtq_s64(a.v, b.v)); }
inline unsigned Equal(KI32 a, KI32 b) { return bits_in(vceqq_s32(a.v, b.v)); }
inline unsigned Equal(KI64 a, KI64 b) { return bits_in(vceqq_s64(a.v, b.v)); }

inline float Widen(float x) { return x; }
inline double Widen(double x) { return x; }
inline float Widen(Half x) { return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x.bits))), 0); }
inline float Widen(std::int8_t x) { return x; }
inline float Widen(BFloat x) {
  return vgetq_lane_f32(vreinterpretq_f32_u32(vdupq_n_u32(std::uint32_t{x.bits} << 16)), 0);
}

template <class T>
struct Sum4;
template <>
struct Sum4<float> {
  VF32 v;
};
template <>
struct Sum4<double> {
  VF64 low, high;
};
template <class S, class Index>
inline Sum4<float> AddPicked(const S* values, const float* x, const Index* i, Sum4<float> sum) {
  const float picked[] = {x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
  return {MulAdd(LoadAs<VF32>(values), Load<VF32>(picked), sum.v)};
}
template <class Index>
inline Sum4<double> AddPicked(const double* values, const double* x, const Index* i, Sum4<double> sum) {
  const double picked[] = {x[i[0]], x[i[1]], x[i[2]], x[i[3]]};
  return {MulAdd(Load<VF64>(values), Load<VF64>(picked), sum.low),
          MulAdd(Load<VF64>(values + 2), Load<VF64>(picked + 2), sum.high)};
}
inline float ReduceSum(Sum4<float> a) { return ReduceSum(a.v); }
inline double ReduceSum(Sum4<double> a) { return ReduceSum(Add(a.low, a.high)); }
inline Sum4<float> Add(Sum4<float> a, Sum4<float> b) { return {Add(a.v, b.v)}; }
inline Sum4<double> Add(Sum4<double> a, Sum4<double> b) { return {Add(a.low, b.low), Add(a.high, b.high)}; }

template <class V>
struct Four {
  V v[4 / V::lanes];
};
template <class V, class S>
inline Four<V> LoadFour(const S* p) {
  if constexpr (std::is_same_v<V, VF32>)
    return {{LoadAs<V>(p)}};
  else
    return {{Load<V>(p), Load<V>(p + 2)}};
}
// The compiler makes it a part of the multiplication, which can take one lane of a register.
template <int i, class V>
inline V Spread(Four<V> a) {
  if constexpr (std::is_same_v<V, VF32>)
    return {vdupq_laneq_f32(a.v[0].v, i)};
  else
    return {vdupq_laneq_f64(a.v[i / 2].v, i % 2)};
}

// For every set of lanes: which of the packed numbers' bytes each byte takes (16 and more: none, which gives 0).
template <int lanes>
struct ExpandPlaces {
  static constexpr int size = 16 / lanes;
  alignas(16) std::uint8_t of[1 << lanes][16];
  constexpr ExpandPlaces() : of{} {
    for (int bits = 0; bits < 1 << lanes; ++bits)
      for (int lane = 0, next = 0; lane < lanes; ++lane) {
        const bool kept = (bits >> lane & 1) != 0;
        for (int byte = 0; byte < size; ++byte)
          of[bits][lane * size + byte] = static_cast<std::uint8_t>(kept ? next * size + byte : 0xFF);
        next += kept;
      }
  }
};
template <int lanes>
constexpr ExpandPlaces<lanes> expand_places;
template <class V, class S>
inline V Expand(Lanes<V> lanes, const S* p) {
  const uint8x16_t places = vld1q_u8(expand_places<V::lanes>.of[lanes.bits]);
  if constexpr (std::is_same_v<V, VF32>)
    return {vreinterpretq_f32_u8(vqtbl1q_u8(vreinterpretq_u8_f32(LoadAs<V>(p).v), places))};
  else
    return {vreinterpretq_f64_u8(vqtbl1q_u8(vreinterpretq_u8_f64(LoadAs<V>(p).v), places))};
}
template <class V>
inline V MulAddWhere(Lanes<V> lanes, V a, V b, V c) {
  return MulAdd(a, Keep(lanes, b), c);
}

}  // namespace
}  // namespace gossamer
