// SPDX-License-Identifier: Apache-2.0
// What the engines of topk.cpp and topk_rows.cpp share: tiles of scores and keys, and brackets drawn from samples.
#pragma once
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/topk.hpp"

namespace gossamer {

// A score that may or may not be kept; `at` counts from the beginning of its chunk.
template <class Key>
struct Candidate {
  Key key;
  std::uint32_t at;
};

// A list that grows by blocks: nothing is copied, and hardly more is held than was asked for.
template <class Key>
class CandidateList {
 public:
  // Room for n <= chunk_size candidates side by side.
  Candidate<Key>* room(std::size_t n) {
    if (n > left_) {
      const bool many = n > block / 8;  // a block of their own leaves no gap
      blocks_.push_back(std::make_unique_for_overwrite<Candidate<Key>[]>(many ? n : block));
      if (many) return blocks_.back().get();
      next_ = blocks_.back().get();
      left_ = block;
    }
    left_ -= n;
    return std::exchange(next_, next_ + n);
  }
  void clear() {
    blocks_.clear();
    left_ = 0;
  }

 private:
  static constexpr std::size_t block = chunk_size / 2;
  std::vector<std::unique_ptr<Candidate<Key>[]>> blocks_;
  Candidate<Key>* next_ = nullptr;
  std::size_t left_ = 0;
};

template <class T>
struct Scratch : ScoreScratch<T> {
  using Key = typename KeyOf<T>::type;
  alignas(64) Key keys[tile_size + 64];
  T values[tile_size + 2];
  std::uint32_t open[tile_size + 2];
  std::unique_ptr<T[]> chunk_values;  // as many as a chunk has elements, where an engine streams whole chunks
  std::unique_ptr<std::uint32_t[]> chunk_open;
  CandidateList<Key> found;
  std::int64_t unclaimed = 0;  // candidates that have not yet been taken from the room for them
  ScoreScratch<float> narrow;  // float32 tensors that compete with float64 ones
};

template <class T>
inline typename KeyOf<T>::type key_of(T score) {  // of a number
  typename KeyOf<T>::type key[64];
  kernels<T>().keys(&score, 1, NanRank::low, key);
  return key[0];
}

template <class T>
inline T score_of(typename KeyOf<T>::type key) {
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  const Key bits = static_cast<Key>(key ^ static_cast<Key>(static_cast<Unsigned>(key >> (sizeof(Key) * 8 - 1)) >> 1));
  T score;
  std::memcpy(&score, &bits, sizeof score);
  return score;
}

template <class T>
TileInputs<T> inputs_of(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
  if constexpr (sizeof(T) == 8) {
    if (item.source.dtype() == DType::float32) {
      const float* narrow = score_tile(item.source, row, col, n, s.narrow);
      std::copy(narrow, narrow + n, s.a);
      return {Criterion::identity, Storage::native, s.a, nullptr, nullptr, T{1}};
    }
  }
  return tile_inputs(item.source, row, col, n, s);
}

template <class T>
const T* scores_of(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
  return score_tile(inputs_of(item, row, col, n, s), n, s);
}

// Keys of a tile, padded to a multiple of 64; NaN is ranked and noticed.
template <class T>
void keys_of(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, NanRule nan, Scratch<T>& s,
             typename KeyOf<T>::type* out) {
  const auto& table = kernels<T>();
  const std::int64_t first = table.keys(scores_of(item, row, col, n, s), n, nan.rank, out);
  if (first < n) nan.seen.store(true, std::memory_order_relaxed);
  if (item.prior != nullptr) table.exclude(item.prior + item.byte(row, col), n, out);
}

// Runs the stream kernel over a tile: sets the mask's bits above `high`, puts the open scores into `values` and their
// positions into `open` (null: only counts them), notices NaN; -> how many bits were set.
template <class T>
std::int64_t stream_tile(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, T high, T low,
                         NanRule nan, Scratch<T>& s, T* values, std::uint32_t* open, StreamCounts& counts) {
  const TileInputs<T> in = inputs_of(item, row, col, n, s);
  const std::int64_t byte = item.byte(row, col);
  const std::int64_t kept = kernels<T>().stream[static_cast<int>(in.criterion)][static_cast<int>(in.storage)](
      in, item.prior != nullptr ? item.prior + byte : nullptr, n, high, low, nan.rank == NanRank::high,
      item.mask + byte, values, open, &counts);
  if (counts.nan > 0) nan.seen.store(true, std::memory_order_relaxed);
  return kept;
}

// Bins of equal width, a power of two, over the keys from `low` to `high`.
template <class Key, int bits>
class KeyBins {
 public:
  static constexpr std::size_t count = std::size_t{1} << bits;

  KeyBins(Key low, Key high) : low_(low), high_(high) {
    shift_ = std::max(0, static_cast<int>(std::bit_width(distance(high))) - bits);
  }
  std::size_t of(Key key) const { return static_cast<std::size_t>(distance(key) >> shift_); }
  Key first(std::size_t bin) const { return static_cast<Key>(Unsigned(low_) + (Unsigned(bin) << shift_)); }
  Key last(std::size_t bin) const { return of(high_) == bin ? high_ : static_cast<Key>(first(bin + 1) - 1); }

 private:
  using Unsigned = std::make_unsigned_t<Key>;
  Unsigned distance(Key key) const { return static_cast<Unsigned>(Unsigned(key) - Unsigned(low_)); }

  Key low_, high_;
  int shift_;
};

// The rank-th highest of the keys, rank >= 1; only keys near it are left in the vector. Bins first: nth_element alone
// takes three times as long for 1000 random keys.
template <class Key>
Key kth_highest(std::vector<Key>& keys, std::int64_t rank) {
  if (keys.size() > 128) {
    Key low = keys[0], high = low;
    for (const Key key : keys) low = std::min(low, key), high = std::max(high, key);
    const KeyBins<Key, 8> bins(low, high);
    std::uint32_t counts[bins.count] = {};
    for (const Key key : keys) ++counts[bins.of(key)];
    std::size_t bin = bins.count - 1;
    for (; rank > counts[bin]; --bin) rank -= counts[bin];
    if (low != high) std::erase_if(keys, [&](Key key) { return bins.of(key) != bin; });
  }
  const auto at = keys.begin() + (rank - 1);
  std::nth_element(keys.begin(), at, keys.end(), std::greater<Key>());
  return *at;
}

// Between the keys `low` and `high` the last one to keep is expected, and about at `center`; all are numbers.
template <class T>
struct Bracket {
  using Key = typename KeyOf<T>::type;
  Key low = key_of(-std::numeric_limits<T>::infinity());
  Key high = key_of(std::numeric_limits<T>::infinity());
  Key center = 0;
};

// Ranks of a bracket around rank `middle`, 4 standard deviations to each side.
struct Ranks {
  std::int64_t high, low;
  Ranks(double middle, double variance)
      : high(static_cast<std::int64_t>(std::floor(middle - 4 * std::sqrt(variance) - 2))),
        low(static_cast<std::int64_t>(std::ceil(middle + 4 * std::sqrt(variance) + 2))) {}
};

// Variance of the sum of counts from parts at a fixed stride, by the squared differences of neighbours: right for
// random data, wide for blocked data, and narrow for sorted data, where a fixed stride is the best sample there is
// (Wolter 1984, J. Am. Stat. Assoc. 79: the estimator v2 of systematic sampling).
inline double systematic_variance(const std::vector<std::int64_t>& counts) {
  double squares = 0;
  for (std::size_t i = 1; i < counts.size(); ++i) {
    const auto d = static_cast<double>(counts[i] - counts[i - 1]);
    squares += d * d / 2;
  }
  return squares;
}

// A sample: runs of up to 16 neighbours, and where each run ends.
template <class Key>
struct Drawn {
  std::vector<Key> keys;
  std::vector<std::size_t> ends;
};

template <class T, class Key>
void draw_run(const Item& item, std::int64_t row, std::int64_t col, NanRank rank, Scratch<T>& s, Drawn<Key>& drawn) {
  std::atomic<bool> ignored{false};
  col = col / 16 * 16;
  const std::int64_t n = std::min<std::int64_t>(16, item.cols() - col);
  keys_of(item, row, col, n, NanRule{rank, ignored}, s, s.keys);
  for (std::int64_t j = 0; j < n; ++j)
    if (s.keys[j] > std::numeric_limits<Key>::min()) drawn.keys.push_back(s.keys[j]);
  drawn.ends.push_back(drawn.keys.size());
}

// The bracket of the best `share`; false when the sample says too little.
template <class T, class Key>
bool draw_bracket(Drawn<Key>& drawn, double share, Bracket<T>& bracket) {
  const auto n = static_cast<std::int64_t>(drawn.keys.size());
  if (n < 64) return false;
  std::vector<Key> keys = drawn.keys;
  const double middle = share * static_cast<double>(n);
  const auto at = [&](std::int64_t rank) { return keys.begin() + std::clamp<std::int64_t>(rank, 0, n - 1); };
  const auto center = at(static_cast<std::int64_t>(middle));
  std::nth_element(keys.begin(), center, keys.end(), std::greater<Key>());
  bracket.center = *center;
  std::vector<std::int64_t> counts;
  counts.reserve(drawn.ends.size());
  const auto variance = [&](auto&& counted) {
    counts.clear();
    auto run = drawn.keys.begin();
    for (const std::size_t end : drawn.ends) {
      const auto next = drawn.keys.begin() + static_cast<std::ptrdiff_t>(end);
      counts.push_back(std::count_if(run, next, counted));
      run = next;
    }
    return systematic_variance(counts);
  };
  // Of equal keys either border may be the one that matters.
  const auto from = [key = *center](Key k) { return k >= key; };
  const auto above = [key = *center](Key k) { return k > key; };
  const bool tied = std::count(drawn.keys.begin(), drawn.keys.end(), *center) > 1;
  const Ranks ranks(middle, tied ? std::max(variance(from), variance(above)) : variance(from));
  if (ranks.low < n) {
    std::nth_element(center, at(ranks.low), keys.end(), std::greater<Key>());
    bracket.low = std::max(bracket.low, *at(ranks.low));
  }
  if (ranks.high >= 0) {
    std::nth_element(keys.begin(), at(ranks.high), center, std::greater<Key>());
    bracket.high = std::min(bracket.high, *at(ranks.high));
  }
  return bracket.low <= bracket.high;
}

// Selection reads its inputs more than once; when the counts do not add up, somebody has written to them in between.
[[noreturn]] inline void throw_changed() {
  throw Error(GOSSAMER_ERROR_RUNTIME,
              "select: scores must not change during the call, got other values on a second read");
}

}  // namespace gossamer
