// SPDX-License-Identifier: Apache-2.0
// Transposing in registers.
#pragma once
#include <cstdint>
#include <cstring>

namespace gossamer {

inline constexpr std::int64_t square = 16;  // rows and columns that are transposed together: a cache line of floats

// from [square][from_stride] transposed to [square][to_stride]: four by four in registers.
template <class T>
void transpose_square(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride) {
  using Vector [[gnu::vector_size(4 * sizeof(T))]] = T;
  for (std::int64_t i = 0; i < square; i += 4)
    for (std::int64_t j = 0; j < square; j += 4) {
      Vector a, b, c, d;
      const T* at = from + i * from_stride + j;
      std::memcpy(&a, at, sizeof a);
      std::memcpy(&b, at + from_stride, sizeof b);
      std::memcpy(&c, at + 2 * from_stride, sizeof c);
      std::memcpy(&d, at + 3 * from_stride, sizeof d);
      const Vector ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5),
                   bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5),
                   ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7),
                   bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
      const Vector rows[4] = {
          __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5), __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7),
          __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5), __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7)};
      for (int r = 0; r < 4; ++r) std::memcpy(to + (j + r) * to_stride + i, &rows[r], sizeof rows[r]);
    }
}

// from [rows][from_stride] transposed to [cols][to_stride].
template <class T>
void transpose(const T* from, std::int64_t rows, std::int64_t cols, std::int64_t from_stride, T* to,
               std::int64_t to_stride) {
  const std::int64_t whole_rows = rows / square * square, whole_cols = cols / square * square;
  for (std::int64_t i = 0; i < whole_rows; i += square)
    for (std::int64_t j = 0; j < whole_cols; j += square)
      transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = i < whole_rows ? whole_cols : 0; j < cols; ++j)
      to[j * to_stride + i] = from[i * from_stride + j];
}

}  // namespace gossamer
