// SPDX-License-Identifier: Apache-2.0
// Dot products of one row of X with the rows of Y that a sparse row names. Kernel text.
//
// Eight rows of Y go along with each reading of x: eight independent sums hide the latency of the multiply-add, and
// what is left to load are the rows of Y, one vector a multiplication. A product is summed in the same order however
// many go along, so that it does not depend on what else its row keeps.
namespace gossamer {
namespace {

// Vectors that are added in one run: the rounding error of a long product grows with sqrt(run) + sqrt(runs).
constexpr std::int64_t dot_run = 64;

template <int count, class T, class Index>
void dots(const T* x, const T* y, std::int64_t stride, const Index* indices, std::int64_t k, T* out) {
  using V = typename Simd<T>::V;
  const T* row[count];
  V total[count];
  GOSSAMER_UNROLL for (int c = 0; c < count; ++c) row[c] = y + static_cast<std::int64_t>(indices[c]) * stride;
  GOSSAMER_UNROLL for (int c = 0; c < count; ++c) total[c] = Set<V>(T{0});
  const std::int64_t whole = k / V::lanes * V::lanes;
  for (std::int64_t i = 0; i < whole;) {
    const std::int64_t stop = whole - i < dot_run * V::lanes ? whole : i + dot_run * V::lanes;
    V sum[count];
    GOSSAMER_UNROLL for (int c = 0; c < count; ++c) sum[c] = Set<V>(T{0});
    for (; i < stop; i += V::lanes) {
      const V a = Load<V>(x + i);
      GOSSAMER_UNROLL for (int c = 0; c < count; ++c) sum[c] = MulAdd(a, Load<V>(row[c] + i), sum[c]);
    }
    GOSSAMER_UNROLL for (int c = 0; c < count; ++c) total[c] = Add(total[c], sum[c]);
  }
  GOSSAMER_UNROLL for (int c = 0; c < count; ++c) {
    T tail{0};
    for (std::int64_t i = whole; i < k; ++i) tail += x[i] * row[c][i];
    out[c] = ReduceSum(total[c]) + tail;
  }
}

template <class T, class Index>
void sddmm(const T* x, const T* y, std::int64_t stride, const void* indices_, std::int64_t count, std::int64_t k,
           T* out) {
  const Index* indices = static_cast<const Index*>(indices_);
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) dots<8>(x, y, stride, indices + i, k, out + i);
  if (i + 4 <= count) {
    dots<4>(x, y, stride, indices + i, k, out + i);
    i += 4;
  }
  for (; i < count; ++i) dots<1>(x, y, stride, indices + i, k, out + i);
}

}  // namespace
}  // namespace gossamer
