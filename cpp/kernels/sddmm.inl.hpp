// SPDX-License-Identifier: Apache-2.0
// Products of a part of one row of X with those of the rows of Y that a sparse row names. Kernel text.
//
// The part of x stays in registers where they hold it (16 of the 32 of AVX-512), so that what is left to load is Y, one
// vector a multiplication; four sums hide the latency of the addition. Rows of Y are walked one after the other: eight
// at a time, as independent sums, took 8.6 ns a position and not 5.5 (float32, k = 256, Zen 5).
namespace gossamer {
namespace {

template <class V, int vectors, class T, class Index>
void dots_held(const T* x, const T* y, std::int64_t stride, const Index* indices, std::int64_t count, bool add,
               T* out) {
  V held[vectors];
  GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) held[v] = Load<V>(x + v * V::lanes);
  for (std::int64_t i = 0; i < count; ++i) {
    const T* row = y + static_cast<std::int64_t>(indices[i]) * stride;
    V sum[4];
    GOSSAMER_UNROLL for (int s = 0; s < 4; ++s) sum[s] = Set<V>(T{0});
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[v % 4] =
        MulAdd(held[v], Load<V>(row + v * V::lanes), sum[v % 4]);
    const T total = ReduceSum(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3])));
    out[i] = add ? out[i] + total : total;
  }
}

template <class V, class T, class Index>
void dots(const T* x, const T* y, std::int64_t stride, const Index* indices, std::int64_t count, std::int64_t n,
          bool add, T* out) {
  constexpr std::int64_t step = 4 * V::lanes;
  for (std::int64_t i = 0; i < count; ++i) {
    const T* row = y + static_cast<std::int64_t>(indices[i]) * stride;
    V sum[4];
    GOSSAMER_UNROLL for (int s = 0; s < 4; ++s) sum[s] = Set<V>(T{0});
    std::int64_t j = 0;
    for (; j + step <= n; j += step)
      GOSSAMER_UNROLL for (int s = 0; s < 4; ++s) sum[s] =
          MulAdd(Load<V>(x + j + s * V::lanes), Load<V>(row + j + s * V::lanes), sum[s]);
    for (; j + V::lanes <= n; j += V::lanes) sum[0] = MulAdd(Load<V>(x + j), Load<V>(row + j), sum[0]);
    T total = ReduceSum(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3])));
    for (; j < n; ++j) total += x[j] * row[j];
    out[i] = add ? out[i] + total : total;
  }
}

template <class T, class Index>
void sddmm(const T* x, const T* y, std::int64_t stride, const void* indices_, std::int64_t count, std::int64_t n,
           bool add, T* out) {
  using V = typename Simd<T>::V;
  const Index* indices = static_cast<const Index*>(indices_);
  if constexpr (V::lanes * sizeof(T) == 64) {
    switch (n % V::lanes == 0 ? n / V::lanes : 0) {
      case 4: return dots_held<V, 4>(x, y, stride, indices, count, add, out);
      case 8: return dots_held<V, 8>(x, y, stride, indices, count, add, out);
      case 12: return dots_held<V, 12>(x, y, stride, indices, count, add, out);
      case 16: return dots_held<V, 16>(x, y, stride, indices, count, add, out);
      default: break;
    }
  }
  dots<V>(x, y, stride, indices, count, n, add, out);
}

}  // namespace
}  // namespace gossamer
