// SPDX-License-Identifier: Apache-2.0
// Panels of four rows times a block of a packed tile of X ([panel_depth + 1][width], the last row zeros). Kernel text.
//
// A step multiplies one value of each row with the row of X that its column names. The four values are loaded at once
// and spread over the lanes in registers, so that the loads left are those of X: as many as there are multiplications.
// Where the four rows keep the same columns (`shared`: vectors and blocks), a step has one column, whose row of X is
// loaded once for all four.
namespace gossamer {
namespace {

template <class V, class S, int vectors, bool shared, class T = typename V::Scalar>
void spmm_panel(const Panel* panels, std::int64_t count, const std::uint8_t* cols, const void* values_, const T* x,
                bool add, T* y) {
  constexpr std::int64_t width = vectors * V::lanes;
  const S* values = static_cast<const S*>(values_);
  for (const Panel* panel = panels; panel != panels + count; ++panel) {
    V sum[panel_rows][vectors];
    GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] =
        Set<V>(T{0});
    for (const S* end = values + panel_rows * panel->steps; values != end; values += panel_rows) {
      if constexpr (shared) {
        const T* from = x + *cols++ * width;
        V line[vectors];
        GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) line[v] = Load<V>(from + v * V::lanes);
        GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) {
          const V value = Set<V>(Widen(values[r]));
          GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] = MulAdd(value, line[v], sum[r][v]);
        }
      } else {
        const Four<V> four = LoadFour<V>(values);
        std::uint32_t places;
        std::memcpy(&places, cols, sizeof places);
        cols += panel_rows;
        const auto add_row = [&]<int r>() {
          const T* from = x + (places >> 8 * r & 0xFF) * width;
          const V value = Spread<r>(four);
          GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] =
              MulAdd(value, Load<V>(from + v * V::lanes), sum[r][v]);
        };
        add_row.template operator()<0>();
        add_row.template operator()<1>();
        add_row.template operator()<2>();
        add_row.template operator()<3>();
      }
    }
    GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) {
      T* to = y + panel->rows[r] * width + v * V::lanes;
      Store(add ? Add(Load<V>(to), sum[r][v]) : sum[r][v], to);
    }
  }
}

}  // namespace
}  // namespace gossamer
