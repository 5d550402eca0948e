// SPDX-License-Identifier: Apache-2.0
// A mask and the values it keeps, times one to four columns of X. Kernel text.
namespace gossamer {
namespace {

// Bytes. The hardware's own prefetch stops at page borders; each value is read once, so it need not stay in the cache.
// 11008x8192 at 50 %: bfloat16 1.85 ms, 2.27 with 4 KiB and no hint for the mask; 7 % slower where all is in the cache.
constexpr std::int64_t prefetch_ahead = 8192, mask_ahead = 1024;

// Columns that are summed in a run before runs are added: a chain of additions that grows with the row would lose
// digits.
constexpr std::int64_t sum_columns = 4096;

// The bits of the next `lanes` columns, of which the row has `left`.
template <int lanes>
inline unsigned bits_of(const std::uint8_t* mask, std::int64_t col, std::int64_t left) {
  const std::uint8_t* from = mask + col / 8;
  if constexpr (lanes == 16) return from[0] | (left > 8 ? unsigned{from[1]} << 8 : 0);
  return from[0] >> (col % 8) & ((1u << lanes) - 1);
}

// x [n][stride]; finite: whether all of it is, so that what is not kept may be multiplied by 0; zeros from `cols` up to
// a multiple of the lanes; y [n][last - first]. A vector of values is loaded where the next ones lie, and may reach
// beyond them, but not beyond `end`.
template <class T, class S, int n, bool finite>
void spmv_bitmask(const std::uint8_t* mask, std::int64_t mask_bytes, std::int64_t cols, const std::int64_t* indptr,
                  const void* values_, std::int64_t end, std::int64_t first, std::int64_t last, const T* x,
                  std::int64_t stride, T* y) {
  using V = typename Simd<T>::V;
  constexpr int chains = n == 1 ? 4 : n == 2 ? 2 : 1;  // sums that do not wait for each other
  const S* const beyond = static_cast<const S*>(values_) + end;
  for (std::int64_t row = first; row < last; ++row) {
    const std::uint8_t* bits = mask + row * mask_bytes;
    const S* p = static_cast<const S*>(values_) + indptr[row];
    V sum[n][chains];
    const auto add = [&](unsigned kept, std::int64_t col, int k, const S* from) {
      const Lanes<V> lanes(kept);
      const V value = Expand<V>(lanes, from);
      GOSSAMER_UNROLL for (int j = 0; j < n; ++j) {
        const V other = Load<V>(x + j * stride + col);
        sum[j][k] = finite ? MulAdd(value, other, sum[j][k]) : MulAddWhere(lanes, value, other, sum[j][k]);
      }
    };
    GOSSAMER_UNROLL for (int j = 0; j < n; ++j) y[j * (last - first) + row - first] = T{0};
    for (std::int64_t col = 0; col < cols;) {
      const std::int64_t stop = cols - col < sum_columns ? cols : col + sum_columns;
      GOSSAMER_UNROLL for (int j = 0; j < n; ++j) GOSSAMER_UNROLL for (int k = 0; k < chains; ++k) sum[j][k] =
          Set<V>(T{0});
      if constexpr (V::lanes > 1)
        for (; col + 64 <= stop && beyond - p >= 64; col += 64) {
          std::uint64_t word;
          __builtin_memcpy(&word, bits + col / 8, 8);
          if (col % 512 == 0) __builtin_prefetch(bits + col / 8 + mask_ahead);
          const char* ahead = reinterpret_cast<const char*>(p) + prefetch_ahead;
          GOSSAMER_UNROLL for (std::size_t line = 0; line < 32 * sizeof(S); line += 64)
              __builtin_prefetch(ahead + line, 0, 0);
          GOSSAMER_UNROLL for (int k = 0; k < 64 / V::lanes; ++k) {
            const auto kept = static_cast<unsigned>(word >> (k * V::lanes)) & ((1u << V::lanes) - 1);
            const std::uint64_t before = word & ((std::uint64_t{1} << (k * V::lanes)) - 1);
            add(kept, col + k * V::lanes, k % chains, p + __builtin_popcountll(before));
          }
          p += __builtin_popcountll(word);
        }
      for (; col < stop; col += V::lanes) {
        const unsigned kept = bits_of<V::lanes>(bits, col, cols - col);
        S rest[V::lanes] = {};  // the last values of all: not a whole vector
        const bool whole = beyond - p >= V::lanes;
        for (std::int64_t i = 0; i < beyond - p && !whole; ++i) rest[i] = p[i];
        add(kept, col, 0, whole ? p : rest);
        p += __builtin_popcount(kept);
      }
      GOSSAMER_UNROLL for (int j = 0; j < n; ++j) {
        V total = sum[j][0];
        GOSSAMER_UNROLL for (int k = 1; k < chains; ++k) total = Add(total, sum[j][k]);
        y[j * (last - first) + row - first] += ReduceSum(total);
      }
    }
  }
}

}  // namespace
}  // namespace gossamer
