// SPDX-License-Identifier: Apache-2.0
#include "ops/stats.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

template <class T>
struct Tile {
  alignas(64) T x[tile_size], y[tile_size];
};

void scale(double decay, double* sums, std::int64_t n) {
  if (decay != 1)
    for (std::int64_t i = 0; i < n; ++i) sums[i] *= decay;
}

}  // namespace

void add_squares(const Array& x, double decay, double* sums) {
  // Threads share the columns, never a sum. 512 columns of float32 are 2 KiB of a row: long enough to stream.
  constexpr std::int64_t width = 512;
  dispatch(x.dtype(), [&](auto zero) {
    using T = decltype(zero);
    PerWorker<Tile<T>> scratch;
    parallel_for((x.cols() + width - 1) / width, scratch, [&](std::int64_t chunk, Tile<T>& t) {
      const std::int64_t col = chunk * width, n = std::min(width, x.cols() - col);
      scale(decay, sums + col, n);
      for (std::int64_t row = 0; row < x.rows(); ++row)
        kernels<T>().add_squares(x.load(row, col, n, t.x), sums + col, n);
    });
  });
}

void subtract_products(const Array& weights, const Array& grads, double decay, double* sums) {
  const bool wide = weights.dtype() == DType::float64 || grads.dtype() == DType::float64;
  dispatch(wide ? DType::float64 : DType::float32, [&](auto zero) {
    using T = decltype(zero);
    PerWorker<Tile<T>> scratch;
    for_all_tiles(weights.rows(), weights.cols(), scratch,
                  [&](Tile<T>& t, std::int64_t row, std::int64_t col, std::int64_t n) {
                    double* at = sums + row * weights.cols() + col;
                    scale(decay, at, n);
                    kernels<T>().subtract_products(weights.load(row, col, n, t.x), grads.load(row, col, n, t.y), at, n);
                  });
  });
}

}  // namespace gossamer
