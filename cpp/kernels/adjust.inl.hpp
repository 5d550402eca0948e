// SPDX-License-Identifier: Apache-2.0
// Weights moved by their scores. out may be w. Kernel text, included once by each isa/*.cpp; the compiler vectorises.
namespace gossamer {
namespace {

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
