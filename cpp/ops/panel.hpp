// SPDX-License-Identifier: Apache-2.0
// The panel format: rows in panels of four, a row of X loaded once for all rows of a panel that need it.
//
// 32 panels make a chunk, and `panel_depth` columns of the matrix a block, so that the rows of X which a block needs
// stay in the cache while the panels of a chunk pass. Chunk by chunk, block by block, panel by panel, in the order in
// which the kernel takes them: how many steps of each kind (counts), the column of each part of a step within its block
// (columns), and the values. No padding: a matrix has as many values here as in CSR.
#pragma once
#include <cstdint>
#include <vector>

#include "core/array.hpp"
#include "core/table.hpp"

namespace gossamer {

// Columns of a block, and the longest chain of additions. Fewer would keep the rows of X of a wide tile in the L1 cache
// (256: 7 % more for 256 columns of X), but a narrow tile then spends more time between the steps than in them (half
// the speed for 8).
inline constexpr std::int64_t panel_depth = 1024;
inline constexpr std::int64_t panels_per_chunk = 32;
inline constexpr std::int64_t chunk_rows = panels_per_chunk * panel_rows;

class PanelPattern {
 public:
  // From the packed mask of a matrix.
  PanelPattern(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t nnz() const { return starts_.back().value; }
  std::int64_t nbytes() const;
  std::int64_t chunks() const { return (rows_ + chunk_rows - 1) / chunk_rows; }
  std::int64_t blocks() const { return (cols_ + panel_depth - 1) / panel_depth; }
  std::int64_t panels(std::int64_t chunk) const;

  // Where the first panel of a block of a chunk begins.
  struct Start {
    std::int64_t column, value;
  };
  const Start& start(std::int64_t chunk, std::int64_t block) const;
  const std::uint16_t* counts(std::int64_t chunk, std::int64_t block) const;
  const std::uint16_t* columns() const { return columns_.data(); }

  // Values [nnz] from row-major order (indptr [rows + 1]) to the order of the panels, and back.
  void pack(const std::int64_t* indptr, DType dtype, const void* row_major, void* packed) const;
  void unpack(const std::int64_t* indptr, DType dtype, const void* packed, void* row_major) const;

 private:
  template <class F>
  void for_values(const std::int64_t* indptr, F&& f) const;

  std::int64_t rows_, cols_;
  std::vector<std::uint16_t> counts_, columns_;
  std::vector<Start> starts_;
};

}  // namespace gossamer
