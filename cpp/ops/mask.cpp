// SPDX-License-Identifier: Apache-2.0
#include "ops/mask.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

template <class T>
struct Tile {
  alignas(64) T in[tile_size];
  alignas(64) T out[tile_size];
};

// f(chunk-local scratch, row, col, n, mask byte) over a matrix; rows that pack without padding are walked as one.
template <class T, class F>
void for_mask_tiles(const Array& array, bool flat, F&& f) {
  const std::int64_t rows = flat ? 1 : array.rows(), cols = flat ? array.size() : array.cols();
  PerWorker<Tile<T>> scratch;
  for_all_tiles(rows, cols, scratch, [&](Tile<T>& s, std::int64_t row, std::int64_t col, std::int64_t n) {
    f(s, row, col, n, row * row_bytes(cols) + col / 8);
  });
}

bool packs_flat(const Array& array) { return array.contiguous() && (array.rows() <= 1 || array.cols() % 8 == 0); }

}  // namespace

void apply_mask(const Array& weights_, const std::uint8_t* mask, const Array& out_) {
  const bool flat = packs_flat(weights_) && packs_flat(out_);
  const Array weights = (flat ? weights_.flat() : weights_).moved(), out = (flat ? out_.flat() : out_).moved();
  dispatch_moved(weights.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_mask_tiles<T>(weights, flat,
                      [&](Tile<T>& s, std::int64_t row, std::int64_t col, std::int64_t n, std::int64_t byte) {
                        const T* w = weights.load(row, col, n, s.in);
                        T* direct = out.direct<T>(row, col);
                        kernels<T>().apply(w, mask + byte, direct != nullptr ? direct : s.out, n);
                        if (direct == nullptr) out.store(row, col, n, s.out);
                      });
  });
}

void nonzero_mask(const Array& weights_, std::uint8_t* mask) {
  const bool flat = packs_flat(weights_);
  const Array weights = (flat ? weights_.flat() : weights_).moved();
  dispatch_moved(weights.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_mask_tiles<T>(weights, flat,
                      [&](Tile<T>& s, std::int64_t row, std::int64_t col, std::int64_t n, std::int64_t byte) {
                        kernels<T>().nonzero(weights.load(row, col, n, s.in), mask + byte, n);
                      });
  });
}

std::int64_t count_mask(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  return count_bits(mask, rows * row_bytes(cols));
}

void mask_indices(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t* indices) {
  for (std::int64_t row = 0; row < rows; ++row)
    for (std::int64_t b = 0; b < row_bytes(cols); ++b)
      for (unsigned byte = mask[row * row_bytes(cols) + b]; byte != 0; byte &= byte - 1)
        *indices++ = row * cols + b * 8 + std::countr_zero(byte);
}

bool padding_is_zero(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  if (cols % 8 == 0) return true;
  unsigned padding = 0;
  for (std::int64_t row = 0; row < rows; ++row) padding |= mask[(row + 1) * row_bytes(cols) - 1] >> (cols % 8);
  return padding == 0;
}

}  // namespace gossamer
