// SPDX-License-Identifier: Apache-2.0
#include "ops/compress.hpp"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
void check_csr(const char* function, const CsrPattern& p, std::int64_t stored) {
  if (p.indptr[0] != 0) value_error(format("%s: indptr must begin with 0, got %lld", function, ll(p.indptr[0])));
  for (std::int64_t r = 0; r < p.rows; ++r)
    if (p.indptr[r + 1] < p.indptr[r])
      value_error(format("%s: indptr must not fall, got %lld after %lld at row %lld", function, ll(p.indptr[r + 1]),
                         ll(p.indptr[r]), ll(r)));
  if (p.nnz() != stored)
    value_error(
        format("%s: indptr must end with the number of indices %lld, got %lld", function, ll(stored), ll(p.nnz())));
  // All bounds of rows are now inside the index array; the lowest bad row is the one to report.
  std::atomic<std::int64_t> bad{std::numeric_limits<std::int64_t>::max()};
  const auto row_is_bad = [&](const auto* indices, std::int64_t r) {
    std::int64_t previous = -1;
    for (std::int64_t i = p.indptr[r]; i < p.indptr[r + 1]; ++i) {
      const std::int64_t c = indices[i];
      if (c <= previous || c >= p.cols) return true;
      previous = c;
    }
    return false;
  };
  with_indices(p, [&](const auto* indices) {
    for_rows(p.rows, stored / std::max<std::int64_t>(1, p.rows), [&](std::int64_t r) {
      if (!row_is_bad(indices, r)) return;
      std::int64_t seen = bad.load();
      while (r < seen && !bad.compare_exchange_weak(seen, r)) {
      }
    });
  });
  if (bad.load() != std::numeric_limits<std::int64_t>::max())
    value_error(format("%s: indices must be in [0, %lld), sorted and unique in each row, got others in row %lld",
                       function, ll(p.cols), ll(bad.load())));
}

void mask_to_indptr(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t* indptr) {
  const std::int64_t bytes = row_bytes(cols);
  indptr[0] = 0;
  for_rows(rows, bytes, [&](std::int64_t r) { indptr[r + 1] = count_bits(mask + r * bytes, bytes); });
  for (std::int64_t r = 0; r < rows; ++r) indptr[r + 1] += indptr[r];
}

void mask_to_indices(const std::uint8_t* mask, const CsrPattern& p, void* out) {
  const auto fill = [&](auto* indices) {
    using Index = std::remove_pointer_t<decltype(indices)>;
    for_rows(p.rows, p.cols, [&](std::int64_t r) {
      Index* to = indices + p.indptr[r];
      const std::uint8_t* bits = mask + r * row_bytes(p.cols);
      for (std::int64_t b = 0; b < row_bytes(p.cols); ++b)
        for (unsigned byte = bits[b]; byte != 0; byte &= byte - 1)
          *to++ = static_cast<Index>(b * 8 + std::countr_zero(byte));
    });
  };
  p.wide ? fill(static_cast<std::int64_t*>(out)) : fill(static_cast<std::int32_t*>(out));
}

void mask_to_values(const Array& weights_, const std::uint8_t* mask, const std::int64_t* indptr, void* values) {
  const Array weights = weights_.moved();
  dispatch_moved(weights.dtype(), [&](auto zero) {
    using T = decltype(zero);
    struct Tile {
      T in[tile_size];
    };
    PerWorker<Tile> scratch;
    parallel_for(weights.rows(), scratch, [&](std::int64_t r, Tile& t) {
      T* to = static_cast<T*>(values) + indptr[r];
      for (std::int64_t col = 0; col < weights.cols(); col += tile_size) {
        const std::int64_t n = std::min(tile_size, weights.cols() - col);
        to +=
            kernels<T>().compress(weights.load(r, col, n, t.in), mask + r * row_bytes(weights.cols()) + col / 8, n, to);
      }
    });
  });
}

void pattern_to_mask(const CsrPattern& p, std::uint8_t* mask) {
  std::fill_n(mask, p.rows * row_bytes(p.cols), std::uint8_t{0});
  with_indices(p, [&](const auto* indices) {
    for_rows(p.rows, p.cols, [&](std::int64_t r) {
      for (std::int64_t i = p.indptr[r]; i < p.indptr[r + 1]; ++i) set_bit(mask + r * row_bytes(p.cols), indices[i]);
    });
  });
}

void values_to_dense(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, const std::int64_t* indptr,
                     DType dtype, const void* values, void* out) {
  dispatch_size(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* const beyond = static_cast<const T*>(values) + indptr[rows];
    for_rows(rows, cols, [&](std::int64_t r) {
      T* to = static_cast<T*>(out) + r * cols;
      const T* from = static_cast<const T*>(values) + indptr[r];
      const std::uint8_t* bits = mask + r * row_bytes(cols);
      for (std::int64_t col = 0; col < cols; col += 8, to += 8) {
        unsigned byte = bits[col / 8];
        if (cols - col >= 8 && beyond - from >= 8) {  // without branches, which half of the bits would mispredict
          for (int i = 0; i < 8; ++i, byte >>= 1) {
            to[i] = static_cast<T>(*from & (T{0} - T(byte & 1)));
            from += byte & 1;
          }
          continue;
        }
        for (std::int64_t i = 0; i < std::min<std::int64_t>(8, cols - col); ++i, byte >>= 1)
          to[i] = (byte & 1) != 0 ? *from++ : T{0};
      }
    });
  });
}

void transpose(const CsrPattern& p, std::int64_t* t_indptr, void* t_indices, bool t_wide, std::int64_t* order) {
  // A counting sort by column; going through the rows in order leaves every row of the transpose sorted.
  std::memset(t_indptr, 0, static_cast<std::size_t>(p.cols + 1) * sizeof(std::int64_t));
  const auto sort = [&](const auto* indices, auto* rows) {
    using Index = std::remove_pointer_t<decltype(rows)>;
    for (std::int64_t i = 0; i < p.nnz(); ++i) ++t_indptr[indices[i] + 1];
    for (std::int64_t c = 0; c < p.cols; ++c) t_indptr[c + 1] += t_indptr[c];
    for (std::int64_t r = 0; r < p.rows; ++r)
      for (std::int64_t i = p.indptr[r]; i < p.indptr[r + 1]; ++i) {
        const std::int64_t at = t_indptr[indices[i]]++;
        rows[at] = static_cast<Index>(r);
        order[at] = i;
      }
  };
  with_indices(p, [&](const auto* indices) {
    t_wide ? sort(indices, static_cast<std::int64_t*>(t_indices))
           : sort(indices, static_cast<std::int32_t*>(t_indices));
  });
  for (std::int64_t c = p.cols; c > 0; --c) t_indptr[c] = t_indptr[c - 1];  // the sort moved each start to its end
  t_indptr[0] = 0;
}

void gather(DType dtype, const void* values, const std::int64_t* order, std::int64_t n, void* out) {
  dispatch_size(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(values);
    T* to = static_cast<T*>(out);
    parallel_for((n + chunk_size - 1) / chunk_size, [&](std::int64_t chunk) {
      for (std::int64_t i = chunk * chunk_size; i < std::min(n, (chunk + 1) * chunk_size); ++i) to[i] = from[order[i]];
    });
  });
}

}  // namespace gossamer
