// SPDX-License-Identifier: Apache-2.0
// The panel format: rows that keep about as many columns of a block, four at a time.
//
// Up to 256 rows make a chunk, and `panel_depth` columns of the matrix a block, so that the rows of X which a block
// needs lie in the L1 cache while the rows of a chunk pass. In every block of a chunk, rows that keep about as many
// columns, and many of them in common, come together by two and then by four: a panel. The kernel walks the four
// together, first the columns that all keep, then those that two and two keep, then the rest of each, and loads a row
// of X once for all that keep its column. A panel holds these columns, and for each step a value of each of its rows;
// a row that ends early is filled up with zeros and the column past the block (where the packed X has a row of zeros).
// Panels with the same numbers of steps follow each other, so that loops end where the processor expects it. Panels
// that keep nothing are left out, but for the first block, where they start the sums.
//
// Tried: steps for all three ways to make two and two of four rows: as fast at 50 % and 2:4, slower with few columns.
// Blocks of 112, 144 and 160 columns: 128 is best (the sums of a chunk pass through the L1 cache beside X).
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/array.hpp"
#include "core/table.hpp"

namespace gossamer {

// Columns of a block, and the longest chain of additions.
inline constexpr std::int64_t panel_depth = 128;
inline constexpr std::int64_t max_chunk_rows = 256;

class PanelPattern {
 public:
  // Where the panels, the values and the columns of a block begin.
  struct Start {
    std::int64_t panel, place, column;
  };
  // From the packed mask of a matrix.
  PanelPattern(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols);

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t nnz() const { return nnz_; }
  std::int64_t room() const { return starts_.back().place; }  // of the values: nnz and what is filled up
  std::int64_t nbytes() const;
  std::int64_t chunks() const { return static_cast<std::int64_t>(first_rows_.size()) - 1; }
  std::int64_t first_row(std::int64_t chunk) const { return first_rows_[static_cast<std::size_t>(chunk)]; }
  std::int64_t blocks() const { return (cols_ + panel_depth - 1) / panel_depth; }

  // The panels of a block of a chunk, their columns, and where their values begin.
  struct Block {
    const Panel* panels;
    const std::uint8_t* columns;
    std::int64_t count, place;
  };
  Block block(std::int64_t chunk, std::int64_t block) const;

  // Values [nnz] from row-major order (indptr [rows + 1]) to the order of the panels ([room]), and back.
  void pack(const std::int64_t* indptr, DType dtype, const void* row_major, void* packed) const;
  void unpack(const std::int64_t* indptr, DType dtype, const void* packed, void* row_major) const;

 private:
  // The column past a block.
  std::uint8_t after(std::int64_t block) const {
    return static_cast<std::uint8_t>(std::min(panel_depth, cols_ - block * panel_depth));
  }
  template <class F>
  void for_values(const std::int64_t* indptr, F&& f) const;

  std::int64_t rows_, cols_, nnz_ = 0;
  std::vector<std::int64_t> first_rows_;  // of the chunks
  std::vector<Panel> panels_;
  std::vector<std::uint8_t> columns_;
  std::vector<Start> starts_;
};

}  // namespace gossamer
