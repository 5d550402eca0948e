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

// One column of X, as it lies. Four vectors of sums hide the latency of the addition; values and indices are asked for
// long before (the hardware's own prefetch stops at page borders). 8192x8192 at 90 %, one thread: 0.50 ns a value with
// four scalar sums, 0.31 with gather instructions, 0.26 so.
template <class T, class S, class Index>
void spmv(const std::int64_t* indptr, const void* indices_, const void* values_, std::int64_t first, std::int64_t last,
          const T* x, T* y) {
  const Index* indices = static_cast<const Index*>(indices_);
  const S* values = static_cast<const S*>(values_);
  constexpr std::int64_t ahead = 4096;  // bytes
  for (std::int64_t row = first; row < last; ++row) {
    T total{0};
    const std::int64_t end = indptr[row + 1];
    for (std::int64_t i = indptr[row]; i < end;) {
      const std::int64_t stop = end - i < 4 * sum_run ? end : i + 4 * sum_run;
      Sum4<T> sum[4] = {};
      for (; i + 16 <= stop; i += 16) {
        __builtin_prefetch(reinterpret_cast<const char*>(values + i) + ahead);
        __builtin_prefetch(reinterpret_cast<const char*>(indices + i) + ahead);
        GOSSAMER_UNROLL for (int k = 0; k < 4; ++k) sum[k] =
            AddPicked(values + i + 4 * k, x, indices + i + 4 * k, sum[k]);
      }
      for (; i + 4 <= stop; i += 4) sum[0] = AddPicked(values + i, x, indices + i, sum[0]);
      T rest{0};
      for (; i < stop; ++i) rest += Widen(values[i]) * x[indices[i]];
      total += ReduceSum(Add(Add(sum[0], sum[1]), Add(sum[2], sum[3]))) + rest;
    }
    *y++ = total;
  }
}

}  // namespace
}  // namespace gossamer
