// SPDX-License-Identifier: Apache-2.0
// Exact selection. All of it works on integer keys that order like the scores (core/table.hpp), and the total order is
// (key descending, flat index ascending), so the result depends on nothing but the scores.
//
// Usual case, two passes: a 16-bit histogram of the keys finds the bin that holds the k-th one; the second pass writes
// the bits above that bin and collects the bin's few members, which are then selected among. An overfull bin is split
// by the next 16 bits first; when no bits are left, its members are all equal and only their order counts.
#include "ops/topk.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "core/parallel.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t small_size = 1 << 14;  // below this, all keys are candidates: no histogram
constexpr std::int64_t long_row = 1 << 18;    // rows beyond this leave the cache: they go through the histogram

template <class T>
struct Scratch : ScoreScratch<T> {
  using Key = typename KeyOf<T>::type;
  alignas(64) Key keys[tile_size + 64];
  std::uint32_t open[tile_size];
  ScoreScratch<float> narrow;  // float32 tensors that compete with float64 ones
};

template <class Key>
struct Candidate {
  Key key;
  std::int64_t index;
};

struct Bins {
  std::vector<std::uint32_t> count = std::vector<std::uint32_t>(1 << 16);
  std::vector<std::uint64_t> total = std::vector<std::uint64_t>(1 << 16);
  std::int64_t pending = 0;
  void flush() {
    for (std::size_t i = 0; i < count.size(); ++i) total[i] += count[i];
    std::fill(count.begin(), count.end(), 0u);
    pending = 0;
  }
};

template <class T>
const T* scores_of(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
  if constexpr (sizeof(T) == 8) {
    if (item.source.dtype() == DType::float32) {
      const float* narrow = score_tile(item.source, row, col, n, s.narrow);
      std::copy(narrow, narrow + n, s.scores);
      return s.scores;
    }
  }
  return score_tile(item.source, row, col, n, s);
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

template <class T>
class Engine {
 public:
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  static constexpr Key lowest = std::numeric_limits<Key>::min() + 1;  // the lowest key that may be kept
  static constexpr Key highest = std::numeric_limits<Key>::max();

  Engine(std::vector<Item>& items, NanRule nan) : items_(items), nan_(nan) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      append_chunks(chunks_, static_cast<std::int64_t>(i), items[i].rows(), items[i].cols());
      size_ += items[i].size();
      items[i].nnz = 0;
    }
  }

  void keep_top(std::int64_t count) {
    if (count == 0) return mark(highest, highest, 0);
    if (size_ <= small_size) return mark(highest, lowest, count);
    std::int64_t rank = count;  // of the last key to keep, among those that match `prefix`
    Unsigned prefix = 0;
    for (int shift = static_cast<int>(sizeof(Key)) * 8 - 16;; shift -= 16) {
      const std::vector<std::uint64_t> bins = histogram(shift, prefix);
      std::size_t bin = bins.size() - 1;
      for (; static_cast<std::uint64_t>(rank) > bins[bin]; --bin) rank -= static_cast<std::int64_t>(bins[bin]);
      prefix = static_cast<Unsigned>(prefix << 16 | static_cast<Unsigned>(bin));
      if (shift == 0) return mark_ties(signed_key(prefix), rank);
      if (bins[bin] <= static_cast<std::uint64_t>(small_size + size_ / 64)) {
        const Unsigned low = static_cast<Unsigned>(prefix << shift),
                       width = static_cast<Unsigned>(Unsigned{1} << shift);
        return mark(signed_key(static_cast<Unsigned>(low + width - 1)), std::max(signed_key(low), lowest), rank);
      }
    }
  }

  void keep_from(double threshold) {
    T t = static_cast<T>(threshold);  // the smallest T that is not below it
    if (static_cast<double>(t) < threshold) t = std::nextafter(t, std::numeric_limits<T>::infinity());
    Key key[64];
    kernels<T>().keys(&t, 1, nan_.rank, key);
    mark(key[0] - 1, highest, 0);
  }

 private:
  static Key signed_key(Unsigned u) {
    return static_cast<Key>(u ^ static_cast<Unsigned>(std::numeric_limits<Key>::min()));
  }

  // f(chunk number, item, row, col, count, keys, scratch) for every tile
  template <class F>
  void for_key_tiles(F&& f) {
    parallel_for(static_cast<std::int64_t>(chunks_.size()), scratch_, [&](std::int64_t c, Scratch<T>& s) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
      const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
      for_tiles(chunk, tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
        keys_of(item, row, col, n, nan_, s, s.keys);
        f(static_cast<std::size_t>(c), item, row, col, n, s);
      });
    });
  }

  std::vector<std::uint64_t> histogram(int shift, Unsigned prefix) {
    PerWorker<Bins> bins;
    const auto& table = kernels<T>();
    detail::parallel_for(static_cast<std::int64_t>(chunks_.size()), std::min(scratch_.workers(), bins.workers()),
                         [&](std::int64_t c, int worker) {
                           const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
                           const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
                           Scratch<T>& s = scratch_[worker];
                           Bins& mine = bins[worker];
                           for_tiles(chunk, tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
                             keys_of(item, row, col, n, nan_, s, s.keys);
                             table.histogram(s.keys, n, shift, prefix, mine.count.data());
                             mine.pending += n;
                           });
                           if (mine.pending > std::numeric_limits<std::uint32_t>::max() / 2) mine.flush();
                         });
    std::vector<std::uint64_t> total(1 << 16);
    bins.for_each([&](Bins& mine) {
      for (std::size_t i = 0; i < total.size(); ++i) total[i] += mine.total[i] + mine.count[i];
    });
    return total;
  }

  // Keeps all keys above `top` and the best `rank` of those in [bottom, top].
  void mark(Key top, Key bottom, std::int64_t rank) {
    std::vector<std::int64_t> kept(chunks_.size());
    std::vector<std::vector<Candidate<Key>>> found(chunks_.size());
    const auto& table = kernels<T>();
    for_key_tiles(
        [&](std::size_t c, const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
          std::int64_t open = 0;
          kept[c] += table.mark(s.keys, n, top, bottom, item.mask + item.byte(row, col), s.open, &open);
          if (rank == 0) return;
          const std::int64_t base = item.base + row * item.cols() + col;
          for (std::int64_t i = 0; i < open; ++i)
            if (s.open[i] < n) found[c].push_back({s.keys[s.open[i]], base + s.open[i]});
        });
    add_counts(kept);
    if (rank == 0) return;
    std::vector<Candidate<Key>> all;
    for (auto& part : found) all.insert(all.end(), part.begin(), part.end());
    const auto before = [](const Candidate<Key>& a, const Candidate<Key>& b) {
      return a.key > b.key || (a.key == b.key && a.index < b.index);
    };
    if (rank < static_cast<std::int64_t>(all.size()))
      std::nth_element(all.begin(), all.begin() + rank, all.end(), before);
    for (std::int64_t i = 0; i < rank; ++i) {
      const std::int64_t index = all[static_cast<std::size_t>(i)].index;
      Item& item = *(std::upper_bound(items_.begin(), items_.end(), index,
                                      [](std::int64_t at, const Item& it) { return at < it.base; }) -
                     1);
      const std::int64_t at = index - item.base;
      set_bit(item.mask + at / item.cols() * row_bytes(item.cols()), at % item.cols());
      ++item.nnz;
    }
  }

  // Keeps all keys above `key` and the first `rank` equal to it.
  void mark_ties(Key key, std::int64_t rank) {
    std::vector<std::int64_t> quota(chunks_.size()), kept(chunks_.size());
    const auto& table = kernels<T>();
    for_key_tiles([&](std::size_t c, const Item&, std::int64_t, std::int64_t, std::int64_t n, Scratch<T>& s) {
      quota[c] += table.count_equal(s.keys, n, key);
    });
    for (auto& q : quota) {
      q = std::min(q, rank);
      rank -= q;
    }
    for_key_tiles(
        [&](std::size_t c, const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
          kept[c] += table.mark_ties(s.keys, n, key, &quota[c], item.mask + item.byte(row, col));
        });
    add_counts(kept);
  }

  void add_counts(const std::vector<std::int64_t>& kept) {
    for (std::size_t c = 0; c < chunks_.size(); ++c) items_[static_cast<std::size_t>(chunks_[c].tensor)].nnz += kept[c];
  }

  std::vector<Item>& items_;
  NanRule nan_;
  std::vector<Chunk> chunks_;
  std::int64_t size_ = 0;
  PerWorker<Scratch<T>> scratch_;
};

// The best `count` of every row. A row's keys stay in the cache: memory is read once.
template <class T>
void top_of_rows(Item& item, std::int64_t count, NanRule nan) {
  using Key = typename KeyOf<T>::type;
  struct RowScratch : Scratch<T> {
    std::vector<Key> keys, sorted;
  };
  item.nnz = count * item.rows();
  if (item.cols() > long_row) {
    for (std::int64_t r = 0; r < item.rows(); ++r) {
      std::vector<Item> row{item};
      row[0].source.weights = item.source.weights.row(r);
      if (item.source.aux.rows() > 1) row[0].source.aux = item.source.aux.row(r);
      row[0].source.first_index += r * item.cols();
      row[0].base += r * item.cols();
      row[0].mask += item.byte(r, 0);
      if (item.prior != nullptr) row[0].prior += item.byte(r, 0);
      Engine<T>(row, nan).keep_top(count);
    }
    return;
  }
  const std::int64_t step = std::max<std::int64_t>(1, chunk_size / std::max<std::int64_t>(1, item.cols()));
  PerWorker<RowScratch> scratch;
  parallel_for((item.rows() + step - 1) / step, scratch, [&](std::int64_t c, RowScratch& s) {
    const auto cols = static_cast<std::size_t>(item.cols());
    s.keys.resize(cols + 64);
    for (std::int64_t row = c * step; row < std::min(item.rows(), (c + 1) * step); ++row) {
      for (std::int64_t col = 0; col < item.cols(); col += tile_size)
        keys_of(item, row, col, std::min(tile_size, item.cols() - col), nan, s, s.keys.data() + col);
      std::uint8_t* bits = item.mask + item.byte(row, 0);
      Key threshold = std::numeric_limits<Key>::max();
      std::int64_t quota = 0;
      if (count > 0) {
        s.sorted.assign(s.keys.begin(), s.keys.begin() + static_cast<std::ptrdiff_t>(cols));
        std::nth_element(s.sorted.begin(), s.sorted.begin() + (count - 1), s.sorted.end(), std::greater<Key>());
        threshold = s.sorted[static_cast<std::size_t>(count - 1)];
        quota = std::count(s.sorted.begin(), s.sorted.begin() + count, threshold);
      }
      kernels<T>().mark_ties(s.keys.data(), item.cols(), threshold, &quota, bits);
    }
  });
}

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
// Keys of float64 if any of the tensors that compete is float64: widening keeps the order of float32 scores.
template <class F>
void as_widest(const std::vector<Item>& items, F&& f) {
  const bool wide =
      std::any_of(items.begin(), items.end(), [](const Item& i) { return i.source.dtype() == DType::float64; });
  wide ? f(double{}) : f(float{});
}

}  // namespace

void keep_top(std::vector<Item>& items, std::int64_t count, NanRule nan) {
  as_widest(items, [&](auto zero) { Engine<decltype(zero)>(items, nan).keep_top(count); });
}

void keep_from(std::vector<Item>& items, double threshold, NanRule nan) {
  as_widest(items, [&](auto zero) { Engine<decltype(zero)>(items, nan).keep_from(threshold); });
}

void keep_top_of_rows(Item& item, std::int64_t count, NanRule nan) {
  dispatch(item.source.dtype(), [&](auto zero) { top_of_rows<decltype(zero)>(item, count, nan); });
}

void keep_n_of_m(Item& item, std::int64_t keep, std::int64_t of, NanRule nan) {
  dispatch(item.source.dtype(), [&](auto zero) { n_of_m<decltype(zero)>(item, keep, of, nan); });
}

}  // namespace gossamer
