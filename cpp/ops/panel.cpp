// SPDX-License-Identifier: Apache-2.0
#include "ops/panel.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t words = panel_depth / 64;

// Where chunks of whole panels begin: as even as can be, eight of a smaller matrix, so that threads have something to
// share; and fewer rows where those keep more than the others.
std::vector<std::int64_t> cut_rows(const std::vector<std::int64_t>& kept, std::int64_t rows, std::int64_t nnz) {
  const auto parts = [](std::int64_t n, std::int64_t size) { return (n + size - 1) / size; };
  const std::int64_t chunks =
      std::max({std::int64_t{1}, parts(rows, max_chunk_rows), std::min<std::int64_t>(8, parts(rows, 64))});
  const std::int64_t height = parts(parts(rows, chunks), panel_rows) * panel_rows,
                     most = std::max<std::int64_t>(nnz / chunks * 3 / 2, 1 << 12);
  std::vector<std::int64_t> first{0};
  std::int64_t size = 0;
  for (std::int64_t row = 0; row < rows; row += panel_rows) {
    const std::int64_t more = kept[static_cast<std::size_t>(row / panel_rows)];
    if (row > first.back() && (row - first.back() >= height || size + more > most)) {
      first.push_back(row);
      size = 0;
    }
    size += more;
  }
  if (rows > 0) first.push_back(rows);
  return first;
}

// Whether the rows of every four keep the same columns.
bool in_vectors(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  const std::int64_t bytes = row_bytes(cols);
  for (std::int64_t r = 1; r < rows; ++r)
    if (r % panel_rows != 0 &&
        std::memcmp(mask + (r - 1) * bytes, mask + r * bytes, static_cast<std::size_t>(bytes)) != 0)
      return false;
  return true;
}

// What a chunk keeps of a block, and the order of its rows.
struct ChunkBlock {
  std::uint64_t kept[max_chunk_rows][words];
  std::int64_t counts[max_chunk_rows];
  std::uint8_t order[max_chunk_rows];
  std::int64_t rows;  // whole panels

  void read(const std::uint8_t* mask, std::int64_t first, std::int64_t here, std::int64_t cols, std::int64_t block,
            bool shared) {
    const std::int64_t bytes = row_bytes(cols), offset = block * panel_depth / 8;
    const auto size = static_cast<std::size_t>(std::min(panel_depth / 8, bytes - offset));
    rows = (here + panel_rows - 1) / panel_rows * panel_rows;
    std::int64_t at[panel_depth + 1] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      std::fill(kept[r], kept[r] + words, 0);
      if (r < here)
        std::memcpy(kept[r], mask + (first + r) * bytes + offset, size);
      else if (shared)
        std::copy(kept[r - 1], kept[r - 1] + words, kept[r]);
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
    : rows_(rows), cols_(cols), shared_(in_vectors(mask, rows, cols)) {
  std::vector<std::int64_t> kept(static_cast<std::size_t>((rows + panel_rows - 1) / panel_rows));
  parallel_for(static_cast<std::int64_t>(kept.size()), [&](std::int64_t panel) {
    const std::int64_t first = panel * panel_rows, last = std::min(rows, first + panel_rows);
    kept[static_cast<std::size_t>(panel)] =
        count_bits(mask + first * row_bytes(cols), (last - first) * row_bytes(cols));
  });
  nnz_ = std::accumulate(kept.begin(), kept.end(), std::int64_t{0});
  first_rows_ = cut_rows(kept, rows, nnz_);
  starts_.resize(static_cast<std::size_t>(chunks() * blocks() + 1));
  PerWorker<ChunkBlock> scratch;
  // f(the block, its panels, its Start) for all blocks
  const auto for_blocks = [&](auto&& f) {
    parallel_for(chunks(), scratch, [&](std::int64_t chunk, ChunkBlock& s) {
      const std::int64_t first = first_row(chunk), here = first_row(chunk + 1) - first;
      for (std::int64_t block = 0; block < blocks(); ++block) {
        s.read(mask, first, here, cols, block, shared_);
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
  const std::int64_t stride = shared_ ? 1 : panel_rows;  // of the columns of a row
  columns_.resize(static_cast<std::size_t>(starts_.back().place / panel_rows * stride));
  for_blocks([&](const ChunkBlock& s, std::int64_t panels, std::int64_t block, const Start* start) {
    const auto none = static_cast<std::uint8_t>(std::min(panel_depth, cols - block * panel_depth));
    std::uint8_t* columns = columns_.data() + start->place / panel_rows * stride;
    for (std::int64_t p = 0; p < panels; ++p) {
      Panel& panel = panels_[static_cast<std::size_t>(start->panel + p)];
      panel.steps = static_cast<std::uint8_t>(s.counts[s.order[p * panel_rows]]);
      for (int i = 0; i < panel_rows; ++i) {
        const std::uint8_t row = panel.rows[i] = s.order[p * panel_rows + i];
        if (i >= stride) continue;
        std::uint8_t* to = columns + i;
        for (std::int64_t w = 0; w < words; ++w)
          for (std::uint64_t word = s.kept[row][w]; word != 0; word &= word - 1, to += stride)
            *to = static_cast<std::uint8_t>(w * 64 + std::countr_zero(word));
        for (std::int64_t n = s.counts[row]; n < panel.steps; ++n, to += stride) *to = none;
      }
      columns += stride * panel.steps;
    }
  });
}

PanelPattern::Block PanelPattern::block(std::int64_t chunk, std::int64_t block) const {
  const Start* start = starts_.data() + chunk * blocks() + block;
  return {panels_.data() + start->panel, columns_.data() + (shared_ ? start->place / panel_rows : start->place),
          start[1].panel - start->panel, start->place};
}

std::int64_t PanelPattern::nbytes() const {
  return static_cast<std::int64_t>(panels_.size() * sizeof(Panel) + columns_.size() + starts_.size() * sizeof(Start) +
                                   first_rows_.size() * sizeof(std::int64_t));
}

// f(place in the order of the panels, position in row-major order, or -1 where a row is filled up) for all values.
template <class F>
void PanelPattern::for_values(const std::int64_t* indptr, F&& f) const {
  parallel_for(chunks(), [&](std::int64_t chunk) {
    std::int64_t next[max_chunk_rows] = {};
    std::copy(indptr + first_row(chunk), indptr + first_row(chunk + 1), next);
    for (std::int64_t b = 0; b < blocks(); ++b) {
      const std::int64_t none = std::min(panel_depth, cols_ - b * panel_depth);
      const Block at = block(chunk, b);
      std::int64_t place = at.place;
      for (const Panel* panel = at.panels; panel != at.panels + at.count; ++panel)
        for (int step = 0; step < panel->steps; ++step)
          for (int i = 0; i < panel_rows; ++i, ++place) {
            const bool filled =
                shared_ ? first_row(chunk) + panel->rows[i] >= rows_ : at.columns[place - at.place] == none;
            f(place, filled ? -1 : next[panel->rows[i]]++);
          }
    }
  });
}

void PanelPattern::pack(const std::int64_t* indptr, DType dtype, const void* row_major, void* packed) const {
  dispatch_size(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(row_major);
    T* to = static_cast<T*>(packed);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) { to[at] = i < 0 ? T{} : from[i]; });
  });
}

void PanelPattern::unpack(const std::int64_t* indptr, DType dtype, const void* packed, void* row_major) const {
  dispatch_size(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(packed);
    T* to = static_cast<T*>(row_major);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) {
      if (i >= 0) to[i] = from[at];
    });
  });
}

}  // namespace gossamer
