// SPDX-License-Identifier: Apache-2.0
// Statistics accumulate in float64, product first, then sum: the same bits everywhere. Kernel text.
namespace gossamer {
namespace {

template <class T>
void add_squares(const T* x, double* sums, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) sums[i] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
}

template <class T>
void subtract_products(const T* w, const T* g, double* sums, std::int64_t n) {
  GOSSAMER_INDEPENDENT
  for (std::int64_t i = 0; i < n; ++i) sums[i] -= static_cast<double>(g[i]) * static_cast<double>(w[i]);
}

}  // namespace
}  // namespace gossamer
