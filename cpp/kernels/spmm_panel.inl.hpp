// SPDX-License-Identifier: Apache-2.0
// Panels of four rows times a packed tile of X ([cols][width]). Kernel text.
namespace gossamer {
namespace {

// Adds one column to the rows of `rows`, a bit each: its values lie in order, and a row of X is loaded once for all.
template <class V, int vectors, unsigned rows, class S, class T>
inline void add_column(const std::uint16_t*& cols, const S*& values, const T* x, V (&sum)[panel_rows][vectors]) {
  const T* from = x + std::int64_t{*cols++} * (vectors * V::lanes);
  V line[vectors];
  GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) line[v] = Load<V>(from + v * V::lanes);
  GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) {
    if ((rows >> r & 1) == 0) continue;
    const V value = Set<V>(Widen(*values++));
    GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] = MulAdd(value, line[v], sum[r][v]);
  }
}

template <class V, int vectors, int step, class S, class T>
inline void run_step(std::int64_t n, const std::uint16_t*& cols, const S*& values, const T* x,
                     V (&sum)[panel_rows][vectors]) {
  for (; n > 0; --n) {
    add_column<V, vectors, panel_steps[step][0]>(cols, values, x, sum);
    if constexpr (panel_steps[step][1] != 0) add_column<V, vectors, panel_steps[step][1]>(cols, values, x, sum);
    if constexpr (panel_steps[step][2] != 0) add_column<V, vectors, panel_steps[step][2]>(cols, values, x, sum);
    if constexpr (panel_steps[step][3] != 0) add_column<V, vectors, panel_steps[step][3]>(cols, values, x, sum);
  }
}

template <class V, int vectors, int step = 0, class S, class T>
inline void run_steps(const std::uint16_t* counts, const std::uint16_t*& cols, const S*& values, const T* x,
                      V (&sum)[panel_rows][vectors]) {
  if constexpr (step < panel_step_count) {
    run_step<V, vectors, step>(counts[step], cols, values, x, sum);
    run_steps<V, vectors, step + 1>(counts, cols, values, x, sum);
  }
}

template <class V, class S, int vectors, class T = typename V::Scalar>
void spmm_panel(const std::uint16_t* counts, const std::uint16_t* cols, const void* values_, std::int64_t panels,
                const T* x, bool add, T* y) {
  constexpr std::int64_t width = vectors * V::lanes;
  const S* values = static_cast<const S*>(values_);
  for (; panels > 0; --panels, counts += panel_step_count, y += panel_rows * width) {
    V sum[panel_rows][vectors];
    GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) sum[r][v] =
        Set<V>(T{0});
    run_steps<V, vectors>(counts, cols, values, x, sum);
    GOSSAMER_UNROLL for (int r = 0; r < panel_rows; ++r) GOSSAMER_UNROLL for (int v = 0; v < vectors; ++v) {
      T* to = y + r * width + v * V::lanes;
      Store(add ? Add(Load<V>(to), sum[r][v]) : sum[r][v], to);
    }
  }
}

}  // namespace
}  // namespace gossamer
