// SPDX-License-Identifier: Apache-2.0
// The engine of selection: marks the kept elements of tensors whose shapes, priors and counts have been checked.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "ops/bits.hpp"
#include "ops/score.hpp"

namespace gossamer {

// A tensor as the engine sees it; `base` is the index of its element 0 among all that compete.
struct Item {
  ScoreSource source;
  const std::uint8_t* prior;
  std::uint8_t* mask;
  std::int64_t base;
  std::int64_t nnz = 0;

  std::int64_t rows() const { return source.rows(); }
  std::int64_t cols() const { return source.cols(); }
  std::int64_t size() const { return rows() * cols(); }
  std::int64_t byte(std::int64_t row, std::int64_t col) const { return row * row_bytes(cols()) + col / 8; }
  std::int64_t allowed() const { return prior == nullptr ? size() : count_bits(prior, rows() * row_bytes(cols())); }
};

// What happens to NaN: how it ranks, and the flag that is raised when there is one.
struct NanRule {
  NanRank rank;
  std::atomic<bool>& seen;
};

// The best `count` of all items together. count must not exceed what the priors allow.
void keep_top(std::vector<Item>& items, std::int64_t count, NanRule nan);
// The count-th highest score, 1 <= count <= size; no NaN. The item's mask is not used.
double kth_score(Item item, std::int64_t count);
// Every score >= threshold.
void keep_from(std::vector<Item>& items, double threshold, NanRule nan);
// Every score > threshold and the first `ties` equal to it; -> how many of these there were, at most `ties`.
std::int64_t keep_above(Item& item, double threshold, std::int64_t ties, NanRule nan);
// Copies the scores in [low, high] to `values` (room for all of them, of the source's dtype), in flat order, and counts
// the others. The item's mask is not used.
struct Collected {
  std::int64_t above, inside, below;
};
Collected collect(Item item, double low, double high, NanRule nan, void* values);
// The best `count` of every row.
void keep_top_of_rows(Item& item, std::int64_t count, NanRule nan);
// The best `keep` of every `of` consecutive elements of a row; `of` must divide the columns.
void keep_n_of_m(Item& item, std::int64_t keep, std::int64_t of, NanRule nan);

}  // namespace gossamer
