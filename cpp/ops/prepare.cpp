// SPDX-License-Identifier: Apache-2.0
// Methods that look at whole tensors before an element has its score: ria, snip, lamp, fpgm.
#include <algorithm>
#include <bit>
#include <cmath>
#include <memory>
#include <utility>

#include "core/parallel.hpp"
#include "ops/score.hpp"

namespace gossamer {
namespace {

// --- sums in twice the precision ------------------------------------------------------------------------------------

void add(Twofold& sum, Twofold term) {
  const double high = sum.high + term.high, part = high - sum.high;
  sum.low += (sum.high - (high - part)) + (term.high - part) + term.low;
  sum.high = high;
}
double rounded(Twofold sum) { return std::isfinite(sum.high) ? sum.high + sum.low : sum.high; }
double or_one(double sum) { return sum == 0 ? 1 : sum; }

template <class T>
struct Summing : ScoreScratch<T> {
  Twofold lanes[64] = {};

  void add_lanes(const T* x, std::int64_t n) {
    for (std::int64_t i = 0; i < n; i += 64) kernels<T>().add_twofold(x + i, lanes, std::min<std::int64_t>(64, n - i));
  }
  Twofold take_lanes() {
    Twofold sum{};
    for (Twofold& lane : lanes) {
      add(sum, lane);
      lane = {};
    }
    return sum;
  }
};

// |w| of the source's weights, to be read tile by tile.
ScoreSource sizes_of(const ScoreSource& source) {
  ScoreSource sizes = source;
  sizes.method = nullptr;
  sizes.criterion = Criterion::magnitude;
  return sizes;
}

// --- ria -------------------------------------------------------------------------------------------------------------

template <class T>
struct RiaSums {
  std::vector<double> rows;
  std::vector<T> columns;
};

template <class T>
void prepare_ria(ScoreSource& source) {
  const std::int64_t rows = source.rows(), cols = source.cols();
  auto sums = std::make_shared<RiaSums<T>>();
  sums->rows.resize(static_cast<std::size_t>(rows));
  const ScoreSource sizes = sizes_of(source);
  PerWorker<Summing<T>> scratch;
  for_rows(rows, cols, scratch, [&](std::int64_t row, Summing<T>& s) {
    for (std::int64_t col = 0; col < cols; col += tile_size) {
      const std::int64_t n = std::min(tile_size, cols - col);
      s.add_lanes(score_tile(sizes, row, col, n, s), n);
    }
    sums->rows[static_cast<std::size_t>(row)] = or_one(rounded(s.take_lanes()));
  });
  // Threads share the columns, never a sum: each is added in the order of the rows.
  constexpr std::int64_t width = 512;
  sums->columns.resize(static_cast<std::size_t>(cols));
  parallel_for((cols + width - 1) / width, scratch, [&](std::int64_t strip, Summing<T>& s) {
    const std::int64_t col = strip * width, n = std::min(width, cols - col);
    std::vector<Twofold> total(static_cast<std::size_t>(n));
    for (std::int64_t row = 0; row < rows; ++row)
      kernels<T>().add_twofold(score_tile(sizes, row, col, n, s), total.data(), n);
    for (std::int64_t i = 0; i < n; ++i)
      sums->columns[static_cast<std::size_t>(col + i)] =
          static_cast<T>(or_one(rounded(total[static_cast<std::size_t>(i)])));
  });
  const std::int64_t shape[] = {1, cols};
  source.columns = Array(sums->columns.data(), dtype_of<T>, 2, shape, nullptr, "ria: columns");
  source.numbers = sums->rows.data();
  source.owned = sums;
}

// --- snip ------------------------------------------------------------------------------------------------------------

template <class T>
Twofold saliency(ScoreSource source) {
  source.criterion = Criterion::taylor;
  source = source.flattened();
  std::vector<Chunk> chunks;
  append_chunks(chunks, 0, source.rows(), source.cols());
  std::vector<Twofold> sums(chunks.size());  // added in the order of the chunks, whoever has made them
  PerWorker<Summing<T>> scratch;
  parallel_for(static_cast<std::int64_t>(chunks.size()), scratch, [&](std::int64_t i, Summing<T>& s) {
    const auto c = static_cast<std::size_t>(i);
    for_tiles(chunks[c], tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
      s.add_lanes(score_tile(source, row, col, n, s), n);
    });
    sums[c] = s.take_lanes();
  });
  Twofold sum{};
  for (const Twofold& part : sums) add(sum, part);
  return sum;
}

// --- lamp ------------------------------------------------------------------------------------------------------------

// Stable, by the lowest digit first; passes in which all keys share their digit are left out.
template <class Entry>
void radix_sort(std::vector<Entry>& entries) {
  constexpr int digit_bits = 11;
  std::vector<Entry> other(entries.size());
  for (int shift = 0; shift < static_cast<int>(sizeof(Entry::key) * 8); shift += digit_bits) {
    const auto digit = [&](const Entry& e) {
      return static_cast<std::size_t>(e.key >> shift & ((1 << digit_bits) - 1));
    };
    std::vector<std::size_t> at(std::size_t{1} << digit_bits);
    for (const Entry& e : entries) ++at[digit(e)];
    if (std::find(at.begin(), at.end(), entries.size()) != at.end()) continue;
    std::size_t begin = 0;
    for (std::size_t& count : at) begin += std::exchange(count, begin);
    for (const Entry& e : entries) other[at[digit(e)]++] = e;
    entries.swap(other);
  }
}

// w^2 over the sum of all v^2 from the largest down to this one, ties by index; relative to the largest, in float64.
template <class T, class Index>
void score_by_order(const T* sizes, std::int64_t n, T* scores) {
  struct Entry {
    typename KeyOf<T>::unsigned_type key;  // of a size: ascending as the size falls
    Index index;
  };
  std::vector<Entry> entries;
  entries.reserve(static_cast<std::size_t>(n));
  T largest{0};
  for (std::int64_t i = 0; i < n; ++i) {
    scores[i] = sizes[i];  // NaN stays, all zeros too
    if (sizes[i] != sizes[i]) continue;
    largest = std::max(largest, sizes[i]);
    entries.push_back({~std::bit_cast<typename KeyOf<T>::unsigned_type>(sizes[i]), static_cast<Index>(i)});
  }
  if (largest == T{0}) return;
  radix_sort(entries);
  double sum = 0;
  for (const Entry& e : entries) {
    const T size = sizes[e.index];
    const double relative =
        std::isinf(largest) ? (std::isinf(size) ? 1.0 : 0.0) : static_cast<double>(size) / static_cast<double>(largest);
    const double square = relative * relative;
    sum += square;
    scores[e.index] = static_cast<T>(square / sum);
  }
}

template <class T>
void prepare_lamp(ScoreSource& source) {
  const std::int64_t n = source.rows() * source.cols();
  auto scores = std::make_shared<std::vector<T>>(static_cast<std::size_t>(n));
  {
    std::vector<T> sizes(static_cast<std::size_t>(n));
    const ScoreSource read = sizes_of(source);
    PerWorker<ScoreScratch<T>> scratch;
    for_all_tiles(read.rows(), read.cols(), scratch,
                  [&](ScoreScratch<T>& s, std::int64_t row, std::int64_t col, std::int64_t count) {
                    const T* x = score_tile(read, row, col, count, s);
                    std::copy(x, x + count, sizes.data() + row * read.cols() + col);
                  });
    if (n <= std::int64_t{1} << 32) {
      score_by_order<T, std::uint32_t>(sizes.data(), n, scores->data());
    } else {
      score_by_order<T, std::int64_t>(sizes.data(), n, scores->data());
    }
  }
  const std::int64_t shape[] = {source.rows(), source.cols()};
  source.weights = Array(scores->data(), dtype_of<T>, 2, shape, nullptr, "lamp: scores");
  source.method = nullptr;
  source.owned = scores;
}

// --- fpgm ------------------------------------------------------------------------------------------------------------

// The sum of a row's distances to all rows. Eight rows share the walk over all others.
template <class T>
void prepare_fpgm(ScoreSource& source) {
  constexpr std::int64_t together = 8;
  const std::int64_t rows = source.rows(), cols = source.cols();
  const bool in_place = source.weights.rows_contiguous() && source.weights.dtype() == dtype_of<T>;
  std::vector<T> copy(in_place ? 0 : static_cast<std::size_t>(rows * cols));
  if (!in_place)
    for_rows(rows, cols, [&](std::int64_t row) { source.weights.load(row, 0, cols, copy.data() + row * cols); });
  const auto row_at = [&](std::int64_t row) {
    return in_place ? source.weights.direct<T>(row, 0) : copy.data() + row * cols;
  };
  auto sums = std::make_shared<std::vector<double>>(static_cast<std::size_t>(rows));
  parallel_for((rows + together - 1) / together, [&](std::int64_t block) {
    const std::int64_t first = block * together, last = std::min(rows, first + together);
    for (std::int64_t other = 0; other < rows; ++other)
      for (std::int64_t row = first; row < last; ++row) {
        double lane[8] = {};
        kernels<T>().add_distances(row_at(row), row_at(other), cols, lane);
        (*sums)[static_cast<std::size_t>(row)] += std::sqrt(sum_of_lanes(lane));
      }
  });
  source.numbers = sums->data();
  source.owned = sums;
}

}  // namespace

std::vector<ScoreSource> prepare(std::span<const ScoreSource> sources) {
  std::vector<ScoreSource> ready(sources.begin(), sources.end());
  Twofold saliencies{};  // of snip, over all tensors
  for (ScoreSource& source : ready) {
    if (source.method == nullptr) continue;
    source.criterion = source.method->criterion;
    dispatch(source.dtype(), [&](auto zero) {
      using T = decltype(zero);
      switch (source.method->whole) {
        case Whole::none: break;
        case Whole::ria: prepare_ria<T>(source); break;
        case Whole::snip: add(saliencies, saliency<T>(source)); break;
        case Whole::lamp: prepare_lamp<T>(source); break;
        case Whole::fpgm: prepare_fpgm<T>(source); break;
      }
    });
  }
  for (ScoreSource& source : ready)
    if (source.method != nullptr && source.method->whole == Whole::snip) source.number = or_one(rounded(saliencies));
  return ready;
}

}  // namespace gossamer
