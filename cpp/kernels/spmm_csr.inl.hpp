// SPDX-License-Identifier: Apache-2.0
// CSR times a packed tile of X ([cols][width]), and the epilogue. Kernel text.
namespace gossamer {
namespace {

// Rows are summed in runs of this many products and the runs then added: the rounding error of a long row grows with
// sqrt(run) + sqrt(runs) instead of sqrt(row).
constexpr std::int64_t sum_run = 256;

template <class T, class S, class Index, int vectors>
void spmm(const std::int64_t* indptr, const void* indices_, const void* values_, std::int64_t first, std::int64_t last,
          const T* x, T* y) {
  using V = typename Simd<T>::V;
  constexpr std::int64_t width = vectors * V::lanes;
  const Index* indices = static_cast<const Index*>(indices_);
  const S* values = static_cast<const S*>(values_);
  for (std::int64_t row = first; row < last; ++row, y += width) {
    V total[vectors];
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) total[v] = Set<V>(T{0});
    const std::int64_t end = indptr[row + 1];
    for (std::int64_t i = indptr[row]; i < end;) {
      const std::int64_t stop = end - i < sum_run ? end : i + sum_run;
      V sum[vectors];
      GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = Set<V>(T{0});
      for (; i < stop; ++i) {
        const V value = Set<V>(Widen(values[i]));
        const T* from = x + static_cast<std::int64_t>(indices[i]) * width;
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[v] = MulAdd(value, Load<V>(from + v * V::lanes), sum[v]);
      }
      GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) total[v] = Add(total[v], sum[v]);
    }
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) Store(total[v], y + v * V::lanes);
  }
}

// One column of X: four independent sums hide the latency of the addition.
template <class T, class S, class Index>
void spmv(const std::int64_t* indptr, const void* indices_, const void* values_, std::int64_t first, std::int64_t last,
          const T* x, T* y) {
  const Index* indices = static_cast<const Index*>(indices_);
  const S* values = static_cast<const S*>(values_);
  for (std::int64_t row = first; row < last; ++row) {
    T total{0};
    const std::int64_t end = indptr[row + 1];
    for (std::int64_t i = indptr[row]; i < end;) {
      const std::int64_t stop = end - i < sum_run ? end : i + sum_run;
      T s0{0}, s1{0}, s2{0}, s3{0};
      for (; i + 4 <= stop; i += 4) {
        s0 += Widen(values[i]) * x[indices[i]];
        s1 += Widen(values[i + 1]) * x[indices[i + 1]];
        s2 += Widen(values[i + 2]) * x[indices[i + 2]];
        s3 += Widen(values[i + 3]) * x[indices[i + 3]];
      }
      for (; i < stop; ++i) s0 += Widen(values[i]) * x[indices[i]];
      total += (s0 + s1) + (s2 + s3);
    }
    *y++ = total;
  }
}

}  // namespace
}  // namespace gossamer
