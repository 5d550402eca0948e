// SPDX-License-Identifier: Apache-2.0
#include "ops/panel.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <numeric>
#include <tuple>

#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr std::size_t words = panel_depth / 64;
// Loops that end where the last one did are predicted, so few different lengths are better (4 before 1, 8 and 16).
constexpr std::int64_t whole_steps = 4;
// Rows that are looked at for one to go along with: more of them share more loads, but keep less alike numbers of
// columns, and packing takes longer (8: 7 % fewer products a second at 50 %; 64: no more than 32).
constexpr std::size_t candidates = 32;

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

// What a row keeps of a block.
using Kept = std::array<std::uint64_t, words>;

std::int64_t count(const Kept& a) {
  std::int64_t n = 0;
  for (const std::uint64_t word : a) n += std::popcount(word);
  return n;
}

Kept both(const Kept& a, const Kept& b) {
  Kept c;
  for (std::size_t w = 0; w < words; ++w) c[w] = a[w] & b[w];
  return c;
}

void remove(Kept& a, const Kept& b) {
  for (std::size_t w = 0; w < words; ++w) a[w] &= ~b[w];
}

template <class F>
void for_bits(const Kept& a, F&& f) {
  for (std::size_t w = 0; w < words; ++w)
    for (std::uint64_t word = a[w]; word != 0; word &= word - 1)
      f(static_cast<std::int64_t>(w * 64) + std::countr_zero(word));
}

Kept first_of(const Kept& a, std::int64_t n) {
  Kept first = {};
  for_bits(a, [&](std::int64_t column) {
    if (n-- > 0) first[static_cast<std::size_t>(column) / 64] |= std::uint64_t{1} << column % 64;
  });
  return first;
}

// Puts n columns `stride` apart, filled up with `none`.
void put_columns(const Kept& row, std::int64_t n, std::uint8_t none, std::uint8_t* to, std::int64_t stride) {
  for_bits(row, [&](std::int64_t column) {
    *to = static_cast<std::uint8_t>(column);
    to += stride;
    --n;
  });
  for (; n > 0; --n, to += stride) *to = none;
}

// f(column) for the steps of one of a panel's rows.
template <class F>
void for_columns(const Panel& panel, const std::uint8_t* columns, int row, F&& f) {
  for (int step = 0; step < panel.together; ++step) f(*columns++);
  for (int step = 0; step < panel.in_pairs; ++step, columns += 2) f(columns[row / 2]);
  for (int step = 0; step < panel.alone; ++step, columns += 4) f(columns[row]);
}

// What a chunk keeps of a block, and its panels.
struct ChunkBlock {
  Kept kept[max_chunk_rows];
  std::int64_t counts[max_chunk_rows];
  std::uint8_t order[max_chunk_rows];
  std::int64_t rows;  // whole panels

  void read(const std::uint8_t* mask, std::int64_t first, std::int64_t here, std::int64_t cols, std::int64_t block) {
    const std::int64_t bytes = row_bytes(cols), offset = block * panel_depth / 8;
    const auto size = static_cast<std::size_t>(std::min(panel_depth / 8, bytes - offset));
    rows = (here + panel_rows - 1) / panel_rows * panel_rows;
    std::int64_t at[panel_depth + 1] = {};
    for (std::int64_t r = 0; r < rows; ++r) {
      kept[r] = {};
      if (r < here)
        std::memcpy(kept[r].data(), mask + (first + r) * bytes + offset, size);
      else
        kept[r] = kept[r - 1];  // filled up: takes no step more
      counts[r] = count(kept[r]);
      ++at[panel_depth - counts[r]];
    }
    std::exclusive_scan(at, at + panel_depth + 1, at, std::int64_t{0});
    for (std::int64_t r = 0; r < rows; ++r) order[at[panel_depth - counts[r]]++] = static_cast<std::uint8_t>(r);
    pair(1, [&](std::size_t i) { return kept[order[i]]; });
    pair(2, [&](std::size_t i) { return both(kept[order[i]], kept[order[i + 1]]); });
  }

  // Brings those runs of n rows side by side that keep most in common, of the next few; less what must be filled up.
  template <class F>
  void pair(std::size_t n, F&& run) {
    const auto end = static_cast<std::size_t>(rows);
    for (std::size_t i = 0; i + n < end; i += 2 * n) {
      std::size_t best = i + n;
      std::int64_t most = -panel_depth - 1;
      const Kept mine = run(i);
      for (std::size_t j = i + n; j < std::min(end, i + n + candidates * n); j += n)
        if (const std::int64_t gain = count(both(mine, run(j))) - (counts[order[i]] - counts[order[j]]); gain > most) {
          most = gain;
          best = j;
        }
      std::rotate(order + i + n, order + best, order + best + n);
    }
  }

  // Four rows and the columns of their steps.
  struct Steps {
    Panel panel;
    Kept together, in_pairs[2], alone[panel_rows];

    void put(std::uint8_t none, std::uint8_t* to) const {
      put_columns(together, panel.together, none, to, 1);
      to += panel.together;
      for (int i = 0; i < 2; ++i) put_columns(in_pairs[i], panel.in_pairs, none, to + i, 2);
      to += 2 * panel.in_pairs;
      for (int i = 0; i < panel_rows; ++i) put_columns(alone[i], panel.alone, none, to + i, panel_rows);
    }
  };

  // Of the four rows from a place of the order.
  Steps steps(std::int64_t at) const {
    Steps s;
    Kept* const left = s.alone;
    for (int i = 0; i < panel_rows; ++i) {
      s.panel.rows[i] = order[at + i];
      left[i] = kept[s.panel.rows[i]];
    }
    const auto most = [&] { return std::max({count(left[0]), count(left[1]), count(left[2]), count(left[3])}); };
    const auto whole = [&](std::int64_t n) { return n == most() ? n : n / whole_steps * whole_steps; };
    s.together = both(both(left[0], left[1]), both(left[2], left[3]));
    std::int64_t n = whole(count(s.together));
    s.panel.together = static_cast<std::uint8_t>(n);
    s.together = first_of(s.together, n);
    for (Kept& row : s.alone) remove(row, s.together);
    s.in_pairs[0] = both(left[0], left[1]);
    s.in_pairs[1] = both(left[2], left[3]);
    n = whole(std::min(count(s.in_pairs[0]), count(s.in_pairs[1])));
    s.panel.in_pairs = static_cast<std::uint8_t>(n);
    for (Kept& pair : s.in_pairs) pair = first_of(pair, n);
    for (int i = 0; i < panel_rows; ++i) remove(left[i], s.in_pairs[i / 2]);
    s.panel.alone = static_cast<std::uint8_t>(most());
    return s;
  }

  // Appends the panels, those that keep something or `all`; -> how much they take.
  PanelPattern::Start put_panels(bool all, std::uint8_t none, std::vector<Panel>& panels,
                                 std::vector<std::uint8_t>& columns) const {
    Steps made[max_chunk_rows / panel_rows];
    std::int64_t n = 0;
    for (std::int64_t at = 0; at < rows; at += panel_rows) {
      made[n] = steps(at);
      if (all || made[n].panel.steps() > 0) ++n;
    }
    std::sort(made, made + n, [](const Steps& a, const Steps& b) {
      return std::tie(a.panel.together, a.panel.in_pairs, a.panel.alone, a.panel.rows[0]) >
             std::tie(b.panel.together, b.panel.in_pairs, b.panel.alone, b.panel.rows[0]);
    });
    PanelPattern::Start size{n, 0, 0};
    const std::size_t before = columns.size();
    for (const Steps* s = made; s != made + n; ++s) {
      panels.push_back(s->panel);
      size.place += panel_rows * s->panel.steps();
      size.column += s->panel.columns();
    }
    columns.resize(before + static_cast<std::size_t>(size.column));
    std::uint8_t* to = columns.data() + before;
    for (const Steps* s = made; s != made + n; to += s++->panel.columns()) s->put(none, to);
    return size;
  }
};

}  // namespace

PanelPattern::PanelPattern(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) : rows_(rows), cols_(cols) {
  std::vector<std::int64_t> kept(static_cast<std::size_t>((rows + panel_rows - 1) / panel_rows));
  parallel_for(static_cast<std::int64_t>(kept.size()), [&](std::int64_t panel) {
    const std::int64_t first = panel * panel_rows, last = std::min(rows, first + panel_rows);
    kept[static_cast<std::size_t>(panel)] =
        count_bits(mask + first * row_bytes(cols), (last - first) * row_bytes(cols));
  });
  nnz_ = std::accumulate(kept.begin(), kept.end(), std::int64_t{0});
  first_rows_ = cut_rows(kept, rows, nnz_);
  starts_.resize(static_cast<std::size_t>(chunks() * blocks() + 1));
  struct Made {
    std::vector<Panel> panels;
    std::vector<std::uint8_t> columns;
  };
  std::vector<Made> made(static_cast<std::size_t>(chunks()));
  PerWorker<ChunkBlock> scratch;
  parallel_for(chunks(), scratch, [&](std::int64_t i, ChunkBlock& s) {
    Made& chunk = made[static_cast<std::size_t>(i)];
    for (std::int64_t b = 0; b < blocks(); ++b) {
      s.read(mask, first_row(i), first_row(i + 1) - first_row(i), cols, b);
      Start& start = starts_[static_cast<std::size_t>(i * blocks() + b)];
      start = s.put_panels(b == 0, after(b), chunk.panels, chunk.columns);
    }
  });
  std::exclusive_scan(starts_.begin(), starts_.end(), starts_.begin(), Start{0, 0, 0}, [](Start a, Start b) {
    return Start{a.panel + b.panel, a.place + b.place, a.column + b.column};
  });
  panels_.resize(static_cast<std::size_t>(starts_.back().panel));
  columns_.resize(static_cast<std::size_t>(starts_.back().column));
  parallel_for(chunks(), [&](std::int64_t i) {
    Made& chunk = made[static_cast<std::size_t>(i)];
    const Start& start = starts_[static_cast<std::size_t>(i * blocks())];
    std::copy(chunk.panels.begin(), chunk.panels.end(), panels_.begin() + start.panel);
    std::copy(chunk.columns.begin(), chunk.columns.end(), columns_.begin() + start.column);
    chunk = {};
  });
}

PanelPattern::Block PanelPattern::block(std::int64_t chunk, std::int64_t block) const {
  const Start* start = starts_.data() + chunk * blocks() + block;
  return {panels_.data() + start->panel, columns_.data() + start->column, start[1].panel - start->panel, start->place};
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
      const std::uint8_t none = after(b);
      const Block at = block(chunk, b);
      const std::uint8_t* columns = at.columns;
      std::int64_t place = at.place;
      for (const Panel* panel = at.panels; panel != at.panels + at.count; columns += panel++->columns()) {
        for (int i = 0; i < panel_rows; ++i) {
          // From the order of the steps to that of the columns.
          std::uint8_t steps[256];
          Kept kept = {};
          std::uint8_t step = 0;
          for_columns(*panel, columns, i, [&](std::uint8_t column) {
            steps[column] = step++;
            if (column < none) kept[column / 64] |= std::uint64_t{1} << column % 64;
          });
          const std::int64_t n = count(kept), to = place + i;
          const bool beyond = first_row(chunk) + panel->rows[i] >= rows_;
          std::int64_t from = next[panel->rows[i]];
          for_bits(kept, [&](std::int64_t column) { f(to + steps[column] * panel_rows, beyond ? -1 : from++); });
          next[panel->rows[i]] = from;
          for (std::int64_t filled = n; filled < panel->steps(); ++filled)
            f(to + filled * panel_rows, std::int64_t{-1});
        }
        place += panel_rows * panel->steps();
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
