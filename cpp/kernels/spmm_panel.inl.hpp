// SPDX-License-Identifier: Apache-2.0
// Panels of four rows times a block of a packed tile of X ([panel_depth + 1][width], the last row zeros). Kernel text.
//
// A step multiplies one value of each of the four rows with the row of X that its column names. What bounds it are the
// loads of X: one for a multiplication where every row has a column of its own, so rows that keep the same column
// share its load, all four or two and two.
namespace gossamer {
namespace {

template <class V, class S, int vectors, class T = typename V::Scalar>
void spmm_panel(const Panel* panels, std::int64_t count, const std::uint8_t* cols, const void* values_, const T* x,
                bool add, T* y) {
  constexpr std::int64_t width = vectors * V::lanes;
  constexpr int chains = vectors == 1 ? 2 : 1;  // four sums are too few to keep the multipliers busy
  const S* values = static_cast<const S*>(values_);
  for (const Panel* panel = panels; panel != panels + count; ++panel) {
    V sum[chains][panel_rows][vectors];
    GOSSAMER_UNROLL for (int c = 0; c < chains; ++c) GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r)
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[c][r][v] = Set<V>(T{0});
    // Rows [first, first + n) with the same row of X, which is in registers.
    const auto share = [&]<int chain, int first, int n>(const T* from) {
      V line[vectors];
      GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) line[v] = Load<V>(from + v * V::lanes);
      GOSSAMER_UNROLL for (int r = first; r < first + n; ++r) {
        const V value = Set<V>(Widen(values[r]));
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[chain][r][v] = MulAdd(value, line[v], sum[chain][r][v]);
      }
    };
    const auto together = [&]<int chain>() {
      share.template operator()<chain, 0, 4>(x + cols[0] * width);
      cols += 1;
    };
    const auto in_pairs = [&]<int chain>() {
      share.template operator()<chain, 0, 2>(x + cols[0] * width);
      share.template operator()<chain, 2, 2>(x + cols[1] * width);
      cols += 2;
    };
    const auto alone = [&]<int chain>() {
      const Four<V> four = LoadFour<V>(values);
      std::uint32_t places;
      std::memcpy(&places, cols, sizeof places);
      const auto add_row = [&]<int r>() {
        // Wide tiles have no load to spare, narrow ones no instruction.
        const T* from = x + (chains == 1 ? places >> 8 * r & 0xFF : cols[r]) * width;
        const V value = Spread<r>(four);
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[chain][r][v] =
            MulAdd(value, Load<V>(from + v * V::lanes), sum[chain][r][v]);
      };
      add_row.template operator()<0>();
      add_row.template operator()<1>();
      add_row.template operator()<2>();
      add_row.template operator()<3>();
      cols += 4;
    };
    const auto take = [&](int steps, const auto& step) {
      const S* end = values + panel_rows * steps;
      if constexpr (chains == 2) {
        for (const S* even = values + panel_rows * (steps & ~1); values != even; values += panel_rows) {
          step.template operator()<0>();
          values += panel_rows;
          step.template operator()<1>();
        }
      }
      for (; values != end; values += panel_rows) step.template operator()<0>();
    };
    take(panel->together, together);
    take(panel->in_pairs, in_pairs);
    take(panel->alone, alone);
    GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) {
      T* to = y + panel->rows[r] * width + v * V::lanes;
      V all = sum[0][r][v];
      if constexpr (chains == 2) all = Add(all, sum[1][r][v]);
      Store(add ? Add(Load<V>(to), all) : all, to);
    }
  }
}

}  // namespace
}  // namespace gossamer
