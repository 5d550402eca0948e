// SPDX-License-Identifier: Apache-2.0
// How a matrix is cut into work. Chunks depend on the shape alone, never on the number of threads, and a tile always
// begins at a byte border of the packed mask (rows * ceil(cols / 8) bytes).
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/parallel.hpp"

namespace gossamer {

inline constexpr std::int64_t tile_size = 2048;      // elements; scores and keys of a tile stay in the L1 cache
inline constexpr std::int64_t chunk_size = 1 << 15;  // elements a thread claims at a time

inline std::int64_t row_bytes(std::int64_t cols) { return (cols + 7) / 8; }

// The eight lanes of a sum (add_lanes, add_distances) in the one order in which they are added.
inline double sum_of_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

struct Chunk {
  std::int64_t tensor, row_begin, row_end, col_begin, col_end;
};

// Appends the chunks of one [rows, cols] matrix. `step` (a multiple of 8) is what a column border must divide by.
inline void append_chunks(std::vector<Chunk>& chunks, std::int64_t tensor, std::int64_t rows, std::int64_t cols,
                          std::int64_t step = 64) {
  if (rows == 0 || cols == 0) return;
  const std::int64_t col_step = std::max(chunk_size / step, std::int64_t{1}) * step;
  const std::int64_t row_step = std::max<std::int64_t>(1, chunk_size / cols);
  for (std::int64_t r = 0; r < rows; r += row_step)
    for (std::int64_t c = 0; c < cols; c += col_step)
      chunks.push_back({tensor, r, std::min(rows, r + row_step), c, std::min(cols, c + col_step)});
}

// f(row, col, count) for the tiles of a chunk, in the order of the flat index.
template <class F>
void for_tiles(const Chunk& chunk, std::int64_t tile, F&& f) {
  for (std::int64_t row = chunk.row_begin; row < chunk.row_end; ++row)
    for (std::int64_t col = chunk.col_begin; col < chunk.col_end; col += tile)
      f(row, col, std::min(tile, chunk.col_end - col));
}

// f(scratch, row, col, count) for all tiles of a matrix, in parallel.
template <class Scratch, class F>
void for_all_tiles(std::int64_t rows, std::int64_t cols, PerWorker<Scratch>& scratch, F&& f) {
  std::vector<Chunk> chunks;
  append_chunks(chunks, 0, rows, cols);
  parallel_for(static_cast<std::int64_t>(chunks.size()), scratch, [&](std::int64_t i, Scratch& s) {
    for_tiles(chunks[static_cast<std::size_t>(i)], tile_size,
              [&](std::int64_t row, std::int64_t col, std::int64_t n) { f(s, row, col, n); });
  });
}

// f(row, scratch) over all rows in parallel, about chunk_size elements of work at a time.
template <class Scratch, class F>
void for_rows(std::int64_t rows, std::int64_t work_per_row, PerWorker<Scratch>& scratch, F&& f) {
  const std::int64_t step = std::max<std::int64_t>(1, chunk_size / std::max<std::int64_t>(1, work_per_row));
  parallel_for((rows + step - 1) / step, scratch, [&](std::int64_t chunk, Scratch& s) {
    for (std::int64_t row = chunk * step; row < std::min(rows, (chunk + 1) * step); ++row) f(row, s);
  });
}

// The same without scratch: f(row).
template <class F>
void for_rows(std::int64_t rows, std::int64_t work_per_row, F&& f) {
  struct Nothing {};
  PerWorker<Nothing> nothing;
  for_rows(rows, work_per_row, nothing, [&](std::int64_t row, Nothing&) { f(row); });
}

}  // namespace gossamer
