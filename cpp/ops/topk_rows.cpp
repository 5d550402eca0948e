// SPDX-License-Identifier: Apache-2.0
// Exact selection within rows, and within windows of a row.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/parallel.hpp"
#include "ops/topk_tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t long_row = 1 << 18;  // elements; longer rows leave the cache and are selected like tensors

// The best `count` of every row, one row after the other in the cache: memory is read once.
template <class T>
class Rows {
 public:
  using Key = typename KeyOf<T>::type;

  Rows(Item& item, std::int64_t count, NanRule nan) : item_(item), count_(count), nan_(nan) {}

  void run() {
    item_.nnz = count_ * item_.rows();
    if (item_.cols() > long_row) {
      for (std::int64_t r = 0; r < item_.rows(); ++r) as_tensor(r);
      return;
    }
    const std::int64_t step = std::max<std::int64_t>(1, chunk_size / std::max<std::int64_t>(1, item_.cols()));
    PerWorker<RowScratch> scratch;
    parallel_for((item_.rows() + step - 1) / step, scratch, [&](std::int64_t c, RowScratch& s) {
      s.keys_of_row.resize(static_cast<std::size_t>(item_.cols() + 64));
      for (std::int64_t row = c * step; row < std::min(item_.rows(), (c + 1) * step); ++row) {
        if (item_.cols() < 1024 || count_ == 0 || !(follow(row, s) || (draw(row, s) && attempt(row, s))))
          by_keys(row, s);
      }
    });
  }

 private:
  struct RowScratch : Scratch<T> {
    std::vector<Key> keys_of_row, sorted, members;
    std::vector<Candidate<Key>> candidates;
    bool crowded = false;  // so many scores equal an end of it that the last one to keep is probably one of them
    bool known = false;    // whether low and high are worth trying
    T low, high;           // the bracket
    bool rising = false;   // whether the last bracket that held was that of a trend
    int thresholds = 0;    // how many of these are known, of the rows before
    T last = T{0}, previous = T{0};
  };

  std::uint8_t* mask(std::int64_t row) const { return item_.mask + item_.byte(row, 0); }

  bool draw(std::int64_t row, RowScratch& s) {
    constexpr std::int64_t runs = 32;
    Drawn<Key> drawn;
    drawn.keys.reserve(16 * runs);
    for (std::int64_t i = 0; i < runs; ++i)
      draw_run(item_, row, (2 * i + 1) * item_.cols() / (2 * runs), nan_.rank, s, drawn);
    Bracket<T> bracket;
    s.known = false;
    if (!draw_bracket(drawn, static_cast<double>(count_) / static_cast<double>(item_.cols()), bracket)) return false;
    s.low = score_of<T>(bracket.low);
    s.high = score_of<T>(bracket.high);
    const auto tied = std::count_if(drawn.keys.begin(), drawn.keys.end(),
                                    [&](Key k) { return k == bracket.low || k == bracket.high; });
    s.crowded = tied > static_cast<std::ptrdiff_t>(drawn.keys.size() / 8);
    return true;
  }

  // Tries the bracket that the rows before have left; and where their thresholds go on rising or falling, as those of
  // sorted data do, the place where the next one would lie.
  bool follow(std::int64_t row, RowScratch& s) {
    const bool rising = s.rising;
    if ((rising && extrapolate(s) && attempt(row, s)) || (s.known && attempt(row, s))) return true;
    s.rising = !rising && extrapolate(s) && attempt(row, s);
    return s.rising;
  }

  // A row of sorted data reaches about as far as the thresholds of two rows are apart.
  bool extrapolate(RowScratch& s) const {
    s.known = false;
    if (s.thresholds < 2) return false;
    const T step = s.last - s.previous, center = s.last + step;
    const T half = std::abs(step) * static_cast<T>(2 * wanted() / static_cast<double>(item_.cols()));
    s.low = center - half;
    s.high = center + half;
    s.crowded = false;
    return half > T{0} && half < std::numeric_limits<T>::max();
  }

  // Candidates that a bracket around a threshold of the past should hold: two standard deviations to either side. Rows
  // of one distribution then miss it one time in 20; four would take three times the work each time.
  double wanted() const {
    const double share = static_cast<double>(count_) / static_cast<double>(item_.cols());
    return 4 * std::sqrt(2 * static_cast<double>(item_.cols()) * share * (1 - share)) + 8;
  }

  bool attempt(std::int64_t row, RowScratch& s) {
    if (!s.crowded) return try_bracket(row, s);
    s.known = try_tie(row, s.high, s) || (s.low != s.high && try_tie(row, s.low, s));
    return s.known;
  }

  // Keeps the scores above `tied` and the first of those equal to it; false if that cannot make the count.
  bool try_tie(std::int64_t row, T tied, RowScratch& s) {
    std::int64_t kept = 0, equal = 0;
    const auto tile_end = [&](std::int64_t col) { return std::min(tile_size, item_.cols() - col); };
    for (std::int64_t col = 0; col < item_.cols(); col += tile_size) {
      StreamCounts counts{};
      kept += stream_tile<T>(item_, row, col, tile_end(col), tied, tied, nan_, s, s.values, nullptr, counts);
      equal += counts.open;
    }
    std::int64_t quota = count_ - kept;
    if (quota < 0 || quota > equal) return false;
    if (quota == equal && equal == 0) return true;
    for (std::int64_t col = 0; col < item_.cols(); col += tile_size) {
      keys_of<T>(item_, row, col, tile_end(col), nan_, s, s.keys);
      kernels<T>().mark_ties(s.keys, tile_end(col), key_of(tied), &quota, item_.mask + item_.byte(row, col));
    }
    if (quota != 0) throw_changed();
    return true;
  }

  bool try_bracket(std::int64_t row, RowScratch& s) {
    s.candidates.clear();
    const Key lowest = key_of(s.low), highest = key_of(s.high);
    std::int64_t kept = 0;
    for (std::int64_t col = 0; col < item_.cols(); col += tile_size) {
      StreamCounts counts{};
      kept += stream_tile<T>(item_, row, col, std::min(tile_size, item_.cols() - col), s.high, s.low, nan_, s, s.values,
                             s.open, counts);
      kernels<T>().keys(s.values, counts.open, nan_.rank, s.keys);
      const std::size_t before = s.candidates.size();
      s.candidates.resize(before + static_cast<std::size_t>(counts.open));
      for (std::int64_t j = 0; j < counts.open; ++j)
        s.candidates[before + static_cast<std::size_t>(j)] = {
            std::clamp(s.keys[j], lowest, highest),  // see Engine::stream()
            static_cast<std::uint32_t>(col + s.open[j])};
    }
    const std::int64_t rank = count_ - kept, found = static_cast<std::int64_t>(s.candidates.size());
    if (rank < 0 || rank > found) return false;
    if (rank > 0) aim(score_of<T>(keep_best(rank, s, mask(row))), found, s);
    return true;
  }

  // Sets the bits of the best `rank` of the row's candidates, rank >= 1; -> the key of the last one.
  static Key keep_best(std::int64_t rank, RowScratch& s, std::uint8_t* bits) {
    const KeyBins<Key, 6> bins(key_of(s.low), key_of(s.high));
    std::uint32_t counts[bins.count] = {};
    for (const auto& candidate : s.candidates) ++counts[bins.of(candidate.key)];
    std::size_t bin = bins.count - 1;
    for (; bin > 0 && rank > counts[bin]; --bin) rank -= counts[bin];
    if (rank > counts[bin]) throw_changed();
    s.members.clear();
    Key least = std::numeric_limits<Key>::max(), most = std::numeric_limits<Key>::min();
    for (const auto& candidate : s.candidates)
      if (bins.of(candidate.key) == bin) {
        s.members.push_back(candidate.key);
        least = std::min(least, candidate.key);
        most = std::max(most, candidate.key);
      }
    const auto last = s.members.begin() + (rank - 1);
    if (least != most) std::nth_element(s.members.begin(), last, s.members.end(), std::greater<Key>());
    const Key limit = *last;
    std::int64_t ties = std::count(s.members.begin(), last + 1, limit);
    for (const auto& candidate : s.candidates) {  // in order, without a branch
      const bool tie = candidate.key == limit && ties > 0, keep = candidate.key > limit || tie;
      ties -= tie;
      bits[candidate.at / 8] = static_cast<std::uint8_t>(bits[candidate.at / 8] | int{keep} << (candidate.at % 8));
    }
    return limit;
  }

  // The next row's bracket: around the last two thresholds, as wide as makes `wanted` candidates.
  void aim(T threshold, std::int64_t found, RowScratch& s) const {
    const T half = (s.high - s.low) / 2 * static_cast<T>(std::clamp(wanted() / static_cast<double>(found), 0.2, 2.0));
    const T center = s.known ? (s.low + (s.high - s.low) / 2 + threshold) / 2 : threshold;
    s.low = center - half;
    s.high = center + half;
    s.known = half > T{0} && half < std::numeric_limits<T>::max();
    s.previous = s.last;
    s.last = threshold;
    ++s.thresholds;
  }

  void by_keys(std::int64_t row, RowScratch& s) {
    for (std::int64_t col = 0; col < item_.cols(); col += tile_size)
      keys_of<T>(item_, row, col, std::min(tile_size, item_.cols() - col), nan_, s, s.keys_of_row.data() + col);
    Key threshold = std::numeric_limits<Key>::max();
    std::int64_t quota = 0;
    if (count_ > 0) {
      s.sorted.assign(s.keys_of_row.begin(), s.keys_of_row.begin() + item_.cols());
      threshold = kth_highest(s.sorted, count_);
      quota = count_ - std::count_if(s.keys_of_row.begin(), s.keys_of_row.begin() + item_.cols(),
                                     [&](Key key) { return key > threshold; });
    }
    kernels<T>().mark_ties(s.keys_of_row.data(), item_.cols(), threshold, &quota, mask(row));
  }

  void as_tensor(std::int64_t r) {
    std::vector<Item> row{item_};
    row[0].source = item_.source.row(r);
    row[0].base += r * item_.cols();
    row[0].mask = mask(r);
    if (item_.prior != nullptr) row[0].prior += item_.byte(r, 0);
    keep_top(row, count_, nan_);
    if (row[0].nnz != count_) throw_changed();
  }

  Item& item_;
  const std::int64_t count_;
  NanRule nan_;
};

template <class T>
void n_of_m(Item& item, std::int64_t keep, std::int64_t of, NanRule nan) {
  const std::int64_t step = std::lcm<std::int64_t>(8, of), tile = tile_size / step * step;
  std::vector<Chunk> chunks;
  append_chunks(chunks, 0, item.rows(), item.cols(), tile);
  PerWorker<Scratch<T>> scratch;
  parallel_for(static_cast<std::int64_t>(chunks.size()), scratch, [&](std::int64_t c, Scratch<T>& s) {
    for_tiles(chunks[static_cast<std::size_t>(c)], tile, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
      keys_of(item, row, col, n, nan, s, s.keys);
      kernels<T>().keep_n_of_m(s.keys, n, static_cast<int>(keep), static_cast<int>(of),
                               item.mask + item.byte(row, col));
    });
  });
  item.nnz = item.size() / of * keep;
}
}  // namespace

void keep_top_of_rows(Item& item, std::int64_t count, NanRule nan) {
  dispatch(item.source.dtype(), [&](auto zero) { Rows<decltype(zero)>(item, count, nan).run(); });
}

void keep_n_of_m(Item& item, std::int64_t keep, std::int64_t of, NanRule nan) {
  dispatch(item.source.dtype(), [&](auto zero) { n_of_m<decltype(zero)>(item, keep, of, nan); });
}

}  // namespace gossamer
