// SPDX-License-Identifier: Apache-2.0
// Weights moved by their scores. out may be w. Kernel text, included once by each isa/*.cpp; the compiler vectorises.
namespace gossamer {
namespace {

template <class T>
Extent<T> extent(const T* x, std::int64_t n) {
  constexpr int lanes = 16;
  const T infinity = static_cast<T>(__builtin_huge_val());
  T low[lanes], high[lanes];
  for (int j = 0; j < lanes; ++j) low[j] = infinity, high[j] = -infinity;
  int nan = 0;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (int j = 0; j < lanes; ++j) {
      const T v = x[i + j];
      low[j] = v < low[j] ? v : low[j];
      high[j] = v > high[j] ? v : high[j];
      nan |= v != v;
    }
  for (; i < n; ++i) {
    low[0] = x[i] < low[0] ? x[i] : low[0];
    high[0] = x[i] > high[0] ? x[i] : high[0];
    nan |= x[i] != x[i];
  }
  for (int j = 1; j < lanes; ++j) {
    low[0] = low[j] < low[0] ? low[j] : low[0];
    high[0] = high[j] > high[0] ? high[j] : high[0];
  }
  return {low[0], high[0], nan != 0};
}

template <class T>
void adjust_sign(const T* w, const T* scores, T rate, T* out, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) {
    const T sign = static_cast<T>((scores[i] > T{0}) - (scores[i] < T{0}));
    out[i] = w[i] - rate * sign;
  }
}

template <class T>
void adjust_scale(const T* w, const T* scores, T rate, T center, T spread, T* out, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) out[i] = w[i] * (T{1} + rate * ((scores[i] - center) / spread));
}

}  // namespace
}  // namespace gossamer
