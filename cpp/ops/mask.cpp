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

template <class T>
const auto& mask_kernels() {
  if constexpr (std::is_same_v<T, Half>)
    return active_isa().kernels->half;
  else
    return kernels<T>();
}

// f with the type that the elements are moved as.
template <class F>
void dispatch_moved(DType dtype, F&& f) {
  is_16_bit(dtype) ? f(Half{}) : dispatch(dtype, f);
}

// 16-bit floats of either kind are bits.
Array movable(const Array& array) { return is_16_bit(array.dtype()) ? array.bits_16() : array; }

bool packs_flat(const Array& array) { return array.contiguous() && (array.rows() <= 1 || array.cols() % 8 == 0); }

}  // namespace

void apply_mask(const Array& weights_, const std::uint8_t* mask, const Array& out_) {
  const bool flat = packs_flat(weights_) && packs_flat(out_);
  const Array weights = movable(flat ? weights_.flat() : weights_), out = movable(flat ? out_.flat() : out_);
  dispatch_moved(weights.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_mask_tiles<T>(weights, flat,
                      [&](Tile<T>& s, std::int64_t row, std::int64_t col, std::int64_t n, std::int64_t byte) {
                        const T* w = weights.load(row, col, n, s.in);
                        T* direct = out.direct<T>(row, col);
                        mask_kernels<T>().apply(w, mask + byte, direct != nullptr ? direct : s.out, n);
                        if (direct == nullptr) out.store(row, col, n, s.out);
                      });
  });
}

void nonzero_mask(const Array& weights_, std::uint8_t* mask) {
  const bool flat = packs_flat(weights_);
  const Array weights = movable(flat ? weights_.flat() : weights_);
  dispatch_moved(weights.dtype(), [&](auto zero) {
    using T = decltype(zero);
    for_mask_tiles<T>(weights, flat,
                      [&](Tile<T>& s, std::int64_t row, std::int64_t col, std::int64_t n, std::int64_t byte) {
                        mask_kernels<T>().nonzero(weights.load(row, col, n, s.in), mask + byte, n);
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
