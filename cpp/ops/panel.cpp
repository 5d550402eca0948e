// SPDX-License-Identifier: Apache-2.0
#include "ops/panel.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t words = panel_depth / 64;

// Even chunks, and eight of a smaller matrix, so that threads have something to share.
std::int64_t rows_of_a_chunk(std::int64_t rows) {
  const auto parts = [](std::int64_t n, std::int64_t size) { return (n + size - 1) / size; };
  const std::int64_t chunks =
      std::max({std::int64_t{1}, parts(rows, max_chunk_rows), std::min<std::int64_t>(8, parts(rows, 64))});
  return std::max<std::int64_t>(1, parts(parts(rows, chunks), panel_rows)) * panel_rows;
}

// What a chunk keeps of a block, and the order of its rows.
struct ChunkBlock {
  std::uint64_t kept[max_chunk_rows][words];
  std::int64_t counts[max_chunk_rows];
  std::uint8_t order[max_chunk_rows];
  std::int64_t rows;  // whole panels

  void read(const std::uint8_t* mask, std::int64_t first, std::int64_t here, std::int64_t cols, std::int64_t block) {
    const std::int64_t bytes = row_bytes(cols), offset = block * panel_depth / 8;
    const auto size = static_cast<std::size_t>(std::min(panel_depth / 8, bytes - offset));
    rows = (here + panel_rows - 1) / panel_rows * panel_rows;
    std::int64_t at[panel_depth + 1] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      std::fill(kept[r], kept[r] + words, 0);
      if (r < here) std::memcpy(kept[r], mask + (first + r) * bytes + offset, size);
      counts[r] = 0;
      for (const std::uint64_t word : kept[r]) counts[r] += std::popcount(word);
      ++at[panel_depth - counts[r]];
    }
    std::exclusive_scan(at, at + panel_depth + 1, at, std::int64_t{0});
    for (std::int64_t r = 0; r < rows; ++r) order[at[panel_depth - counts[r]]++] = static_cast<std::uint8_t>(r);
  }
};

}  // namespace

PanelPattern::PanelPattern(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols)
    : rows_(rows), cols_(cols), nnz_(count_bits(mask, rows * row_bytes(cols))), chunk_rows_(rows_of_a_chunk(rows)) {
  starts_.resize(static_cast<std::size_t>(chunks() * blocks() + 1));
  PerWorker<ChunkBlock> scratch;
  // f(the block, its panels, its Start) for all blocks
  const auto for_blocks = [&](auto&& f) {
    parallel_for(chunks(), scratch, [&](std::int64_t chunk, ChunkBlock& s) {
      const std::int64_t first = chunk * chunk_rows_;
      for (std::int64_t block = 0; block < blocks(); ++block) {
        s.read(mask, first, std::min(chunk_rows_, rows - first), cols, block);
        std::int64_t panels = s.rows / panel_rows;
        while (block > 0 && panels > 0 && s.counts[s.order[(panels - 1) * panel_rows]] == 0) --panels;
        f(s, panels, block, starts_.data() + chunk * blocks() + block);
      }
    });
  };
  for_blocks([](const ChunkBlock& s, std::int64_t panels, std::int64_t, Start* start) {
    start->panel = panels;
    start->place = 0;
    for (std::int64_t p = 0; p < panels; ++p) start->place += panel_rows * s.counts[s.order[p * panel_rows]];
  });
  std::exclusive_scan(starts_.begin(), starts_.end(), starts_.begin(), Start{0, 0}, [](Start a, Start b) {
    return Start{a.panel + b.panel, a.place + b.place};
  });
  panels_.resize(static_cast<std::size_t>(starts_.back().panel));
  columns_.resize(static_cast<std::size_t>(starts_.back().place));
  for_blocks([&](const ChunkBlock& s, std::int64_t panels, std::int64_t block, const Start* start) {
    const auto none = static_cast<std::uint8_t>(std::min(panel_depth, cols - block * panel_depth));
    std::uint8_t* columns = columns_.data() + start->place;
    for (std::int64_t p = 0; p < panels; ++p) {
      Panel& panel = panels_[static_cast<std::size_t>(start->panel + p)];
      panel.steps = static_cast<std::uint8_t>(s.counts[s.order[p * panel_rows]]);
      for (int i = 0; i < panel_rows; ++i) {
        const std::uint8_t row = panel.rows[i] = s.order[p * panel_rows + i];
        std::uint8_t* to = columns + i;
        for (std::int64_t w = 0; w < words; ++w)
          for (std::uint64_t word = s.kept[row][w]; word != 0; word &= word - 1, to += panel_rows)
            *to = static_cast<std::uint8_t>(w * 64 + std::countr_zero(word));
        for (std::int64_t n = s.counts[row]; n < panel.steps; ++n, to += panel_rows) *to = none;
      }
      columns += panel_rows * panel.steps;
    }
  });
}

PanelPattern::Block PanelPattern::block(std::int64_t chunk, std::int64_t block) const {
  const Start* start = starts_.data() + chunk * blocks() + block;
  return {panels_.data() + start->panel, start[1].panel - start->panel, start->place};
}

std::int64_t PanelPattern::nbytes() const {
  return static_cast<std::int64_t>(panels_.size() * sizeof(Panel) + columns_.size() + starts_.size() * sizeof(Start));
}

// f(place in the order of the panels, position in row-major order, or -1 where a row is filled up) for all values.
template <class F>
void PanelPattern::for_values(const std::int64_t* indptr, F&& f) const {
  parallel_for(chunks(), [&](std::int64_t chunk) {
    std::int64_t next[max_chunk_rows] = {};
    std::copy(indptr + chunk * chunk_rows_, indptr + std::min(rows_, (chunk + 1) * chunk_rows_), next);
    for (std::int64_t b = 0; b < blocks(); ++b) {
      const std::int64_t none = std::min(panel_depth, cols_ - b * panel_depth);
      Block at = block(chunk, b);
      for (const Panel* panel = at.panels; panel != at.panels + at.count; ++panel)
        for (int step = 0; step < panel->steps; ++step)
          for (int i = 0; i < panel_rows; ++i, ++at.place)
            f(at.place, columns()[at.place] == none ? -1 : next[panel->rows[i]]++);
    }
  });
}

void PanelPattern::pack(const std::int64_t* indptr, DType dtype, const void* row_major, void* packed) const {
  dispatch_moved(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(row_major);
    T* to = static_cast<T*>(packed);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) { to[at] = i < 0 ? T{} : from[i]; });
  });
}

void PanelPattern::unpack(const std::int64_t* indptr, DType dtype, const void* packed, void* row_major) const {
  dispatch_moved(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(packed);
    T* to = static_cast<T*>(row_major);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) {
      if (i >= 0) to[i] = from[at];
    });
  });
}

}  // namespace gossamer
