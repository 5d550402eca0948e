// SPDX-License-Identifier: Apache-2.0
// One lane: plain C++ for every CPU. Operation names follow Google Highway's. See avx2.hpp for what each one means.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/table.hpp"

namespace gossamer {
namespace {

// Shapes of a panel's tile: 4 rows x 2 x 2 sums.
constexpr int panel_shapes = 2;

template <class T, class K, class U>
struct Lane {
  using Scalar = T;
  using Key = K;
  using Unsigned = U;
  static constexpr int lanes = 1;
  T v;
};
template <class K>
struct KeyLane {
  K v;
};
struct HalfLane {
  using Scalar = Half;
  static constexpr int lanes = 1;
  Half v;
};

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using V = Lane<float, std::int32_t, std::uint32_t>;
  using Narrow = V;
};
template <>
struct Simd<double> {
  using V = Lane<double, std::int64_t, std::uint64_t>;
  using Narrow = V;
};

template <>
struct Simd<Half> {
  using V = HalfLane;
};

template <class V>
inline V Load(const typename V::Scalar* p) {
  return {*p};
}
template <class V>
inline V LoadAs(const typename V::Scalar* p) {
  return {*p};
}
template <class V>
inline V LoadAs(const Half* p) {
  const std::uint32_t body = std::uint32_t{p->bits} & 0x7FFF;
  std::uint32_t bits = body << 13;
  float scaled;
  std::memcpy(&scaled, &bits, sizeof bits);
  scaled *= 0x1p112f;  // from the exponent bias 15 to 127
  if (body < 0x7C00) std::memcpy(&bits, &scaled, sizeof bits);
  bits |= (body >= 0x7C00 ? 0x7F800000u : 0u) | (std::uint32_t{p->bits} & 0x8000) << 16;
  V result;
  std::memcpy(&result.v, &bits, sizeof bits);
  return result;
}
template <class V>
inline V LoadAs(const BFloat* p) {
  const std::uint32_t bits = std::uint32_t{p->bits} << 16;
  V result;
  std::memcpy(&result.v, &bits, sizeof bits);
  return result;
}
template <class V>
inline V LoadAs(const std::int8_t* p) {
  return {static_cast<float>(*p)};
}
template <class V>
inline V Set(typename V::Scalar x) {
  return {x};
}
template <class V>
inline void Store(V a, typename V::Scalar* p) {
  *p = a.v;
}
template <class T, class K, class U>
inline Lane<T, K, U> Add(Lane<T, K, U> a, Lane<T, K, U> b) {
  return {a.v + b.v};
}
template <class T, class K, class U>
inline Lane<T, K, U> Div(Lane<T, K, U> a, Lane<T, K, U> b) {
  return {a.v / b.v};
}
template <class T, class K, class U>
inline Lane<T, K, U> Mul(Lane<T, K, U> a, Lane<T, K, U> b) {
  return {a.v * b.v};
}
// a * b + c. Without an FMA unit it rounds twice: products may differ between instruction sets, scores never use it.
template <class T, class K, class U>
inline Lane<T, K, U> MulAdd(Lane<T, K, U> a, Lane<T, K, U> b, Lane<T, K, U> c) {
  return {a.v * b.v + c.v};
}
template <class T, class K, class U>
inline Lane<T, K, U> Abs(Lane<T, K, U> a) {
  U bits;
  std::memcpy(&bits, &a.v, sizeof bits);
  bits &= static_cast<U>(~U{0}) >> 1;
  std::memcpy(&a.v, &bits, sizeof bits);
  return a;
}
template <class T, class K, class U>
inline unsigned IsNaN(Lane<T, K, U> a) {
  return a.v != a.v;
}
template <class T, class K, class U>
inline unsigned NonZero(Lane<T, K, U> a) {
  return a.v != T{0};
}
inline unsigned NonZero(HalfLane a) { return (a.v.bits & 0x7FFF) != 0; }
template <class T, class K, class U>
inline unsigned Greater(Lane<T, K, U> a, Lane<T, K, U> b) {
  return a.v > b.v;
}
template <class T, class K, class U>
inline unsigned Less(Lane<T, K, U> a, Lane<T, K, U> b) {
  return a.v < b.v;
}
template <class T, class K, class U>
inline KeyLane<K> OrderKey(Lane<T, K, U> a) {
  K bits;
  std::memcpy(&bits, &a.v, sizeof bits);
  const K flip = static_cast<K>(static_cast<U>(bits >> (sizeof(K) * 8 - 1)) >> 1);
  return {static_cast<K>(bits ^ flip)};
}
template <class T, class K, class U>
inline Lane<T, K, U> KeepBits(unsigned bits, Lane<T, K, U> a) {
  return (bits & 1) != 0 ? a : Lane<T, K, U>{0};
}
inline HalfLane KeepBits(unsigned bits, HalfLane a) { return (bits & 1) != 0 ? a : HalfLane{Half{0}}; }
template <class T, class K, class U>
inline T ReduceSum(Lane<T, K, U> a) {
  return a.v;
}
struct K16 {
  static constexpr int lanes = 1;
  std::int16_t v;
};
inline K16 Load16(const void* p) {
  K16 x;
  std::memcpy(&x.v, p, sizeof x.v);
  return x;
}
inline K16 Set16(int k) { return {static_cast<std::int16_t>(k)}; }
inline K16 Magnitude16(K16 x) { return {static_cast<std::int16_t>(x.v & 0x7FFF)}; }
inline K16 Order16(K16 x) { return {static_cast<std::int16_t>(x.v < 0 ? -(x.v & 0x7FFF) : x.v)}; }
inline K16 Max16(K16 x, K16 y) { return x.v > y.v ? x : y; }
inline std::uint32_t Greater(K16 x, K16 y) { return x.v > y.v; }

template <class V>
inline KeyLane<typename V::Key> LoadKey(const typename V::Key* p) {
  return {*p};
}
template <class V>
inline KeyLane<typename V::Key> SetKey(typename V::Key k) {
  return {k};
}
template <class K>
inline void StoreKey(KeyLane<K> a, K* p) {
  *p = a.v;
}
template <class K>
inline unsigned Greater(KeyLane<K> a, KeyLane<K> b) {
  return a.v > b.v;
}
template <class K>
inline unsigned Equal(KeyLane<K> a, KeyLane<K> b) {
  return a.v == b.v;
}

inline float Widen(float x) { return x; }
inline double Widen(double x) { return x; }
inline float Widen(Half x) { return LoadAs<Simd<float>::V>(&x).v; }
inline float Widen(std::int8_t x) { return x; }
inline float Widen(BFloat x) { return LoadAs<Simd<float>::V>(&x).v; }

template <class T>
struct Sum4 {
  T v[4];
};
template <class S, class T, class Index>
inline Sum4<T> AddPicked(const S* values, const T* x, const Index* i, Sum4<T> sum) {
  for (int k = 0; k < 4; ++k) sum.v[k] += Widen(values[k]) * x[i[k]];
  return sum;
}
template <class T>
inline T ReduceSum(Sum4<T> a) {
  return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
}
template <class T>
inline Sum4<T> Add(Sum4<T> a, Sum4<T> b) {
  for (int k = 0; k < 4; ++k) a.v[k] += b.v[k];
  return a;
}

// Four numbers, each of which can be spread over all lanes.
template <class V>
struct Four {
  typename V::Scalar v[4];
};
template <class V, class S>
inline Four<V> LoadFour(const S* p) {
  return {{Widen(p[0]), Widen(p[1]), Widen(p[2]), Widen(p[3])}};
}
template <int i, class V>
inline V Spread(Four<V> a) {
  return Set<V>(a.v[i]);
}

template <class V>
struct Lanes {
  bool kept;
  explicit Lanes(unsigned bits) : kept((bits & 1) != 0) {}
};
template <class V, class S>
inline V Expand(Lanes<V> lanes, const S* p) {
  return {lanes.kept ? Widen(*p) : typename V::Scalar{0}};
}
template <class V>
inline V MulAddWhere(Lanes<V> lanes, V a, V b, V c) {
  return lanes.kept ? MulAdd(a, b, c) : c;
}

}  // namespace
}  // namespace gossamer
