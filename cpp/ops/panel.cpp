// SPDX-License-Identifier: Apache-2.0
#include "ops/panel.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr int groups = 1 << panel_rows;

std::uint64_t load_bits(const std::uint8_t* bits, std::int64_t bytes) {
  std::uint64_t word = 0;
  if (bytes > 0) std::memcpy(&word, bits, static_cast<std::size_t>(std::min<std::int64_t>(bytes, 8)));
  return word;
}

// f(column within the block, which rows keep it) for the columns of one block of a panel that some row keeps.
template <class F>
void for_columns(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t panel, std::int64_t first,
                 std::int64_t last, F&& f) {
  const std::int64_t bytes = row_bytes(cols), height = std::min<std::int64_t>(panel_rows, rows - panel * panel_rows);
  for (std::int64_t col = first; col < last; col += 64) {
    std::uint64_t words[panel_rows] = {}, any = 0;
    for (std::int64_t r = 0; r < height; ++r) {
      words[r] = load_bits(mask + (panel * panel_rows + r) * bytes + col / 8, row_bytes(last) - col / 8);
      any |= words[r];
    }
    for (; any != 0; any &= any - 1) {
      const int bit = std::countr_zero(any);
      unsigned group = 0;
      for (int r = 0; r < panel_rows; ++r) group |= static_cast<unsigned>(words[r] >> bit & 1) << r;
      f(col - first + bit, group);
    }
  }
}

int parts(int step) {
  int n = 0;
  while (n < 4 && panel_steps[step][n] != 0) ++n;
  return n;
}

// f(group) for the columns of a panel in the order of its steps.
template <class F>
void for_parts(const std::uint16_t* counts, F&& f) {
  for (int step = 0; step < panel_step_count; ++step)
    for (int n = counts[step]; n > 0; --n)
      for (int i = 0; i < parts(step); ++i) f(panel_steps[step][i]);
}

// How many steps of each kind take all columns of the groups.
void match(const std::int64_t* sizes, std::uint16_t* counts) {
  std::int64_t left[groups];
  std::copy(sizes, sizes + groups, left);
  for (int step = 0; step < panel_step_count; ++step) {
    std::int64_t n = left[panel_steps[step][0]];
    for (int i = 1; i < parts(step); ++i) n = std::min(n, left[panel_steps[step][i]]);
    for (int i = 0; i < parts(step); ++i) left[panel_steps[step][i]] -= n;
    counts[step] = static_cast<std::uint16_t>(n);
  }
}

}  // namespace

PanelPattern::PanelPattern(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols) {
  const std::int64_t all_panels = (rows + panel_rows - 1) / panel_rows;
  counts_.resize(static_cast<std::size_t>(all_panels * blocks() * panel_step_count));
  starts_.resize(static_cast<std::size_t>(chunks() * blocks() + 1));
  const auto counts_of = [&](std::int64_t chunk, std::int64_t block, std::int64_t panel) {
    return const_cast<std::uint16_t*>(counts(chunk, block)) + panel * panel_step_count;
  };

  parallel_for(chunks(), [&](std::int64_t chunk) {
    for (std::int64_t block = 0; block < blocks(); ++block) {
      Start size{0, 0};
      for (std::int64_t panel = 0; panel < panels(chunk); ++panel) {
        std::int64_t sizes[groups] = {};
        for_columns(mask, rows, cols, chunk * panels_per_chunk + panel, block * panel_depth,
                    std::min(cols, (block + 1) * panel_depth), [&](std::int64_t, unsigned group) { ++sizes[group]; });
        match(sizes, counts_of(chunk, block, panel));
        for (int g = 1; g < groups; ++g) {
          size.column += sizes[g];
          size.value += sizes[g] * std::popcount(static_cast<unsigned>(g));
        }
      }
      starts_[static_cast<std::size_t>(chunk * blocks() + block) + 1] = size;
    }
  });
  for (std::size_t i = 1; i < starts_.size(); ++i) {
    starts_[i].column += starts_[i - 1].column;
    starts_[i].value += starts_[i - 1].value;
  }

  columns_.resize(static_cast<std::size_t>(starts_.back().column));
  struct Lists {
    std::vector<std::uint16_t> of[groups];
  };
  PerWorker<Lists> scratch;
  parallel_for(chunks(), scratch, [&](std::int64_t chunk, Lists& lists) {
    for (std::int64_t block = 0; block < blocks(); ++block) {
      std::uint16_t* to = columns_.data() + start(chunk, block).column;
      for (std::int64_t panel = 0; panel < panels(chunk); ++panel) {
        for (auto& list : lists.of) list.clear();
        for_columns(mask, rows, cols, chunk * panels_per_chunk + panel, block * panel_depth,
                    std::min(cols, (block + 1) * panel_depth), [&](std::int64_t col, unsigned group) {
                      lists.of[group].push_back(static_cast<std::uint16_t>(col));
                    });
        std::size_t at[groups] = {};
        for_parts(counts_of(chunk, block, panel), [&](std::uint8_t group) { *to++ = lists.of[group][at[group]++]; });
      }
    }
  });
}

std::int64_t PanelPattern::panels(std::int64_t chunk) const {
  return std::min(panels_per_chunk, (rows_ - chunk * chunk_rows + panel_rows - 1) / panel_rows);
}

const PanelPattern::Start& PanelPattern::start(std::int64_t chunk, std::int64_t block) const {
  return starts_[static_cast<std::size_t>(chunk * blocks() + block)];
}

const std::uint16_t* PanelPattern::counts(std::int64_t chunk, std::int64_t block) const {
  return counts_.data() + (chunk * panels_per_chunk * blocks() + block * panels(chunk)) * panel_step_count;
}

std::int64_t PanelPattern::nbytes() const {
  return static_cast<std::int64_t>((counts_.size() + columns_.size()) * sizeof(std::uint16_t) +
                                   starts_.size() * sizeof(Start));
}

// f(position in the order of the panels, position in row-major order) for all values.
template <class F>
void PanelPattern::for_values(const std::int64_t* indptr, F&& f) const {
  struct Block {
    std::vector<std::uint8_t> group;  // of each column
    std::vector<std::int64_t> place;  // of its first value
  };
  PerWorker<Block> scratch;
  parallel_for(chunks(), scratch, [&](std::int64_t chunk, Block& s) {
    s.group.resize(static_cast<std::size_t>(panel_depth));
    s.place.resize(static_cast<std::size_t>(panel_depth));
    std::int64_t next[chunk_rows] = {};
    for (std::int64_t r = 0; r < std::min(chunk_rows, rows_ - chunk * chunk_rows); ++r)
      next[r] = indptr[chunk * chunk_rows + r];
    for (std::int64_t block = 0; block < blocks(); ++block) {
      const std::uint16_t* column = columns() + start(chunk, block).column;
      const std::uint16_t* steps = counts(chunk, block);
      std::int64_t place = start(chunk, block).value;
      for (std::int64_t panel = 0; panel < panels(chunk); ++panel, steps += panel_step_count) {
        std::fill(s.group.begin(), s.group.end(), std::uint8_t{0});
        for_parts(steps, [&](std::uint8_t group) {
          s.group[*column] = group;
          s.place[*column++] = place;
          place += std::popcount(unsigned{group});
        });
        for (std::size_t c = 0; c < s.group.size(); ++c) {
          std::int64_t at = s.place[c];
          for (unsigned rows = s.group[c]; rows != 0; rows &= rows - 1)
            f(at++, next[panel * panel_rows + std::countr_zero(rows)]++);
        }
      }
    }
  });
}

void PanelPattern::pack(const std::int64_t* indptr, DType dtype, const void* row_major, void* packed) const {
  dispatch_moved(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(row_major);
    T* to = static_cast<T*>(packed);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) { to[at] = from[i]; });
  });
}

void PanelPattern::unpack(const std::int64_t* indptr, DType dtype, const void* packed, void* row_major) const {
  dispatch_moved(dtype, [&](auto zero) {
    using T = decltype(zero);
    const T* from = static_cast<const T*>(packed);
    T* to = static_cast<T*>(row_major);
    for_values(indptr, [=](std::int64_t at, std::int64_t i) { to[i] = from[at]; });
  });
}

}  // namespace gossamer
