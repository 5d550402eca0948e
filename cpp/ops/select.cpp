// SPDX-License-Identifier: Apache-2.0
// Exact selection. All of it works on integer keys that order like the scores (core/table.hpp), and the total order is
// (key descending, flat index ascending), so the result depends on nothing but the scores.
//
// Usual case, two passes: a 16-bit histogram of the keys finds the bin that holds the k-th one; the second pass writes
// the bits above that bin and collects the bin's few members, which are then selected among. An overfull bin is split
// by the next 16 bits first; when no bits are left, its members are all equal and only their order counts.
#include "ops/select.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>

#include "core/parallel.hpp"
#include "ops/bits.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t small_size = 1 << 14;  // below this, all keys are candidates: no histogram
constexpr std::int64_t long_row = 1 << 18;    // rows beyond this leave the cache: they go through the histogram

long long ll(std::int64_t x) { return static_cast<long long>(x); }

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
void keys_of(const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, NanRank rank, std::atomic<bool>& nan,
             Scratch<T>& s, typename KeyOf<T>::type* out) {
  const auto& table = kernels<T>();
  const std::int64_t first = table.keys(scores_of(item, row, col, n, s), n, rank, out);
  if (first < n) nan.store(true, std::memory_order_relaxed);
  if (item.prior != nullptr) table.exclude(item.prior + item.byte(row, col), n, out);
}

template <class T>
class Engine {
 public:
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  static constexpr Key lowest = std::numeric_limits<Key>::min() + 1;  // the lowest key that may be kept
  static constexpr Key highest = std::numeric_limits<Key>::max();

  Engine(std::vector<Item>& items, NanRank rank, std::atomic<bool>& nan) : items_(items), rank_(rank), nan_(nan) {
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
    kernels<T>().keys(&t, 1, rank_, key);
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
        keys_of(item, row, col, n, rank_, nan_, s, s.keys);
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
                             keys_of(item, row, col, n, rank_, nan_, s, s.keys);
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
  NanRank rank_;
  std::atomic<bool>& nan_;
  std::vector<Chunk> chunks_;
  std::int64_t size_ = 0;
  PerWorker<Scratch<T>> scratch_;
};

// The best `count` of every row. A row's keys stay in the cache: memory is read once.
template <class T>
void keep_top_of_rows(Item& item, std::int64_t count, NanRank rank, std::atomic<bool>& nan) {
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
      Engine<T>(row, rank, nan).keep_top(count);
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
        keys_of(item, row, col, std::min(tile_size, item.cols() - col), rank, nan, s, s.keys.data() + col);
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
void keep_n_of_m(Item& item, std::int64_t keep, std::int64_t of, NanRank rank, std::atomic<bool>& nan) {
  const std::int64_t step = std::lcm<std::int64_t>(8, of), tile = tile_size / step * step;
  std::vector<Chunk> chunks;
  append_chunks(chunks, 0, item.rows(), item.cols(), tile);
  PerWorker<Scratch<T>> scratch;
  parallel_for(static_cast<std::int64_t>(chunks.size()), scratch, [&](std::int64_t c, Scratch<T>& s) {
    for_tiles(chunks[static_cast<std::size_t>(c)], tile, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
      keys_of(item, row, col, n, rank, nan, s, s.keys);
      kernels<T>().keep_n_of_m(s.keys, n, static_cast<int>(keep), static_cast<int>(of),
                               item.mask + item.byte(row, col));
    });
  });
  item.nnz = item.size() / of * keep;
}

// --- structured units ------------------------------------------------------------------------------------------------

struct Units {
  std::int64_t height, width;  // elements of a unit
  std::int64_t rows, cols;     // units of the tensor
  std::vector<double> scores;
  std::vector<std::uint8_t> prior, mask;
};

double sum_of_lanes(const double* lane) {
  return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

template <class T>
void score_units(const ScoreSource& source, Units& units) {
  const auto& table = kernels<T>();
  const std::int64_t per_tile = std::max<std::int64_t>(1, tile_size / units.width);
  const std::int64_t tiles = (units.cols + per_tile - 1) / per_tile;
  const std::int64_t step = std::max<std::int64_t>(
      1, chunk_size / std::max<std::int64_t>(1, units.height * std::min(units.cols, per_tile) * units.width));
  const std::int64_t strips = (units.rows + step - 1) / step;
  PerWorker<ScoreScratch<T>> scratch;
  parallel_for(strips * tiles, scratch, [&](std::int64_t job, ScoreScratch<T>& s) {
    const std::int64_t first = job % tiles * per_tile, last = std::min(units.cols, first + per_tile);
    const std::int64_t strip_begin = job / tiles * step, strip_end = std::min(units.rows, strip_begin + step);
    for (std::int64_t strip = strip_begin; strip < strip_end; ++strip) {
      double* sums = units.scores.data() + strip * units.cols + first;
      for (std::int64_t row = strip * units.height; row < (strip + 1) * units.height; ++row) {
        if (units.width > tile_size) {  // one unit, longer than a tile
          double lane[8] = {};
          for (std::int64_t col = 0; col < units.width; col += tile_size) {
            const std::int64_t n = std::min(tile_size, units.width - col);
            table.add_lanes(score_tile(source, row, first * units.width + col, n, s), n, lane);
          }
          sums[0] += sum_of_lanes(lane);
          continue;
        }
        const T* scores = score_tile(source, row, first * units.width, (last - first) * units.width, s);
        for (std::int64_t u = 0; u < last - first; ++u) {
          if (units.width == 1) {
            sums[u] += static_cast<double>(scores[u]);
          } else {
            double lane[8] = {};
            table.add_lanes(scores + u * units.width, units.width, lane);
            sums[u] += sum_of_lanes(lane);
          }
        }
      }
    }
  });
}

// A unit may be kept if all of its elements may.
void units_prior(const std::uint8_t* prior, std::int64_t cols, Units& units) {
  units.prior.assign(static_cast<std::size_t>(units.rows * row_bytes(units.cols)), 0);
  for (std::int64_t r = 0; r < units.rows; ++r)
    for (std::int64_t c = 0; c < units.cols; ++c) {
      bool all = true;
      for (std::int64_t row = r * units.height; all && row < (r + 1) * units.height; ++row)
        all = all_set(prior + row * row_bytes(cols), c * units.width, (c + 1) * units.width);
      if (all) set_bit(units.prior.data() + r * row_bytes(units.cols), c);
    }
}

void expand_units(const Units& units, std::int64_t rows, std::int64_t cols, std::uint8_t* mask) {
  std::memset(mask, 0, static_cast<std::size_t>(rows * row_bytes(cols)));
  parallel_for(units.rows, [&](std::int64_t r) {
    const std::uint8_t* kept = units.mask.data() + r * row_bytes(units.cols);
    std::uint8_t* first = mask + r * units.height * row_bytes(cols);
    for (std::int64_t c = 0; c < units.cols; ++c)
      if (bit(kept, c)) set_range(first, c * units.width, (c + 1) * units.width);
    for (std::int64_t row = 1; row < units.height; ++row)
      std::memcpy(first + row * row_bytes(cols), first, static_cast<std::size_t>(row_bytes(cols)));
  });
}

// --- one call --------------------------------------------------------------------------------------------------------

class Call {
 public:
  Call(const char* function, std::vector<SelectTensor>& tensors, const Selection& how)
      : function_(function), tensors_(tensors), how_(how) {}

  void run() {
    check();
    const bool structured = how_.pattern.kind != Pattern::Kind::element && how_.pattern.kind != Pattern::Kind::n_of_m;
    std::int64_t base = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      SelectTensor& t = tensors_[i];
      if (structured) {
        units_.push_back(make_units(t));
      } else {
        const bool flat = how_.group != Group::row || how_.pattern.kind == Pattern::Kind::n_of_m;
        items_.push_back({flat ? t.source.flattened() : t.source, t.prior, t.mask, base});
        base += t.source.rows() * t.source.cols();
      }
    }
    for (Units& u : units_) {  // only now: the vector has stopped moving
      ScoreSource source;
      const std::int64_t shape[2] = {u.rows, u.cols};
      source.weights = Array(u.scores.data(), DType::float64, 2, shape, nullptr, function_);
      items_.push_back({source, u.prior.empty() ? nullptr : u.prior.data(), u.mask.data(), base});
      base += u.rows * u.cols;
    }
    bool wide = false;
    for (const Item& item : items_) wide = wide || item.source.dtype() == DType::float64;
    wide ? select_as<double>() : select_as<float>();
    if (nan_.load() && how_.nan == Nan::raise) throw_nan();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (structured) {
        expand_units(units_[i], tensors_[i].source.rows(), tensors_[i].source.cols(), tensors_[i].mask);
        tensors_[i].nnz = items_[i].nnz * units_[i].height * units_[i].width;
      } else {
        tensors_[i].nnz = items_[i].nnz;
      }
    }
  }

 private:
  std::string where(const SelectTensor& t) const { return t.name.empty() ? "" : format(" in '%.80s'", t.name.c_str()); }

  void check() const {
    const int given = int(how_.sparsity.has_value()) + int(how_.nnz.has_value()) + int(how_.threshold.has_value());
    const Pattern& p = how_.pattern;
    const bool n_of_m = p.kind == Pattern::Kind::n_of_m;
    if (given > 1 || (given == 0 && !n_of_m))
      value_error(
          format("%s: exactly one of sparsity, nnz and threshold must be given, got %d of them", function_, given));
    if (how_.sparsity && !(*how_.sparsity >= 0 && *how_.sparsity <= 1))
      value_error(format("%s: sparsity must be in [0, 1], got %s", function_, text(*how_.sparsity).c_str()));
    if (how_.threshold && std::isnan(*how_.threshold))
      value_error(format("%s: threshold must be a number, got nan", function_));
    if (how_.nnz && *how_.nnz < 0)
      value_error(format("%s: nnz must be at least 0, got %lld", function_, ll(*how_.nnz)));
    if (!(how_.min_density >= 0 && how_.min_density <= 1))
      value_error(format("%s: min_density must be in [0, 1], got %s", function_, text(how_.min_density).c_str()));
    if (how_.min_density > 0 && (how_.group != Group::global || how_.threshold || n_of_m))
      value_error(format("%s: min_density needs group='global' and a count (sparsity or nnz), got %s", function_,
                         text(how_.min_density).c_str()));
    if (p.kind == Pattern::Kind::row && how_.group == Group::row)
      value_error(format("%s: group must be 'tensor' or 'global' for pattern 'row', got 'row': one unit cannot compete",
                         function_));
    for (const SelectTensor& t : tensors_) {
      check_source(function_, t.name.c_str(), t.source);
      const std::int64_t rows = t.source.rows(), cols = t.source.cols();
      if (n_of_m && cols % p.b != 0)
        value_error(format("%s: pattern '%lld:%lld' must divide the last axis, got %lld columns%s", function_, ll(p.a),
                           ll(p.b), ll(cols), where(t).c_str()));
      if (p.kind == Pattern::Kind::block && (rows % p.a != 0 || cols % p.b != 0))
        value_error(format("%s: pattern 'block:%lldx%lld' must divide the shape, got %s%s", function_, ll(p.a), ll(p.b),
                           t.source.weights.shape_text().c_str(), where(t).c_str()));
      if (n_of_m) check_n_of_m(t);
    }
  }

  void check_n_of_m(const SelectTensor& t) const {
    const Pattern& p = how_.pattern;
    const double implied = 1 - static_cast<double>(p.a) / static_cast<double>(p.b);
    if (how_.threshold)
      value_error(format("%s: threshold must be left out with pattern '%lld:%lld', got %s", function_, ll(p.a), ll(p.b),
                         text(*how_.threshold).c_str()));
    if (how_.sparsity && std::abs(*how_.sparsity - implied) > 1e-9)
      value_error(format("%s: sparsity must be %s with pattern '%lld:%lld', got %s", function_, text(implied).c_str(),
                         ll(p.a), ll(p.b), text(*how_.sparsity).c_str()));
    const std::int64_t per_row = t.source.cols() / p.b * p.a;
    const std::int64_t implied_nnz = how_.group == Group::row ? per_row : per_row * t.source.rows();
    if (how_.nnz && how_.group != Group::global && *how_.nnz != implied_nnz)
      value_error(format("%s: nnz must be %lld with pattern '%lld:%lld', got %lld", function_, ll(implied_nnz), ll(p.a),
                         ll(p.b), ll(*how_.nnz)));
  }

  Units make_units(const SelectTensor& t) const {
    const std::int64_t rows = t.source.rows(), cols = t.source.cols();
    Units u{};
    switch (how_.pattern.kind) {
      case Pattern::Kind::row: u.height = 1, u.width = cols, u.rows = rows, u.cols = 1; break;
      case Pattern::Kind::col: u.height = rows, u.width = 1, u.rows = 1, u.cols = cols; break;
      default: u.height = how_.pattern.a, u.width = how_.pattern.b; u.rows = rows / u.height, u.cols = cols / u.width;
    }
    u.scores.assign(static_cast<std::size_t>(u.rows * u.cols), 0.0);
    u.mask.assign(static_cast<std::size_t>(u.rows * row_bytes(u.cols)), 0);
    if (rows * cols > 0) dispatch(t.source.dtype(), [&](auto zero) { score_units<decltype(zero)>(t.source, u); });
    if (t.prior != nullptr) units_prior(t.prior, cols, u);
    return u;
  }

  // The number of units to keep of n, by whichever rule was given.
  std::int64_t count_of(std::int64_t n) const {
    const std::int64_t count = how_.sparsity ? kept_count(n, *how_.sparsity) : *how_.nnz;
    if (count > n) value_error(format("%s: nnz must be in [0, %lld], got %lld", function_, ll(n), ll(count)));
    return count;
  }

  void need(std::int64_t count, std::int64_t allowed, const std::string& place) const {
    if (count > allowed)
      value_error(format("%s: prior must leave at least the %lld to keep%s, got %lld", function_, ll(count),
                         place.c_str(), ll(allowed)));
  }

  template <class T>
  void select_as() {
    const NanRank rank = how_.nan == Nan::keep ? NanRank::high : NanRank::low;
    if (how_.pattern.kind == Pattern::Kind::n_of_m) return windows<T>(rank);
    if (how_.threshold) {
      Engine<T>(items_, rank, nan_).keep_from(*how_.threshold);
    } else if (how_.group == Group::global) {
      global<T>(rank);
    } else if (how_.group == Group::row) {
      for (std::size_t i = 0; i < items_.size(); ++i) rows<T>(items_[i], tensors_[i], rank);
    } else {
      for (std::size_t i = 0; i < items_.size(); ++i) {
        const std::int64_t count = count_of(items_[i].size());
        need(count, items_[i].allowed(), where(tensors_[i]));
        std::vector<Item> one{items_[i]};
        Engine<T>(one, rank, nan_).keep_top(count);
        items_[i].nnz = one[0].nnz;
      }
    }
  }

  template <class T>
  void rows(Item& item, const SelectTensor& t, NanRank rank) {
    const std::int64_t count = count_of(item.cols());
    if (item.prior != nullptr)
      for (std::int64_t r = 0; r < item.rows(); ++r)
        need(count, count_bits(item.prior + item.byte(r, 0), row_bytes(item.cols())),
             format(" in row %lld", ll(r)) + where(t));
    keep_top_of_rows<T>(item, count, rank, nan_);
  }

  template <class T>
  void windows(NanRank rank) {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      Item& item = items_[i];
      keep_n_of_m<T>(item, how_.pattern.a, how_.pattern.b, rank, nan_);
      if (item.prior == nullptr) continue;
      for (std::int64_t b = 0; b < item.rows() * row_bytes(item.cols()); ++b)
        if ((item.mask[b] & ~item.prior[b]) != 0)
          value_error(format("%s: prior must leave at least %lld of every %lld, got a window with fewer%s", function_,
                             ll(how_.pattern.a), ll(how_.pattern.b), where(tensors_[i]).c_str()));
    }
  }

  // The floors of min_density are taken first, tensor by tensor; the rest competes for what is left of the count.
  template <class T>
  void global(NanRank rank) {
    std::int64_t size = 0, allowed = 0;
    for (const Item& item : items_) {
      size += item.size();
      allowed += item.allowed();
    }
    std::int64_t count = count_of(size);
    need(count, allowed, "");
    if (how_.min_density == 0) return Engine<T>(items_, rank, nan_).keep_top(count);

    const std::int64_t total = count;
    std::vector<std::vector<std::uint8_t>> floors(items_.size()), rest(items_.size());
    std::vector<std::int64_t> taken(items_.size());
    for (std::size_t i = 0; i < items_.size(); ++i) {
      Item& item = items_[i];
      const auto bytes = static_cast<std::size_t>(item.rows() * row_bytes(item.cols()));
      const std::int64_t least = kept_count(item.size(), 1 - how_.min_density);
      need(least, item.allowed(), where(tensors_[i]));
      taken[i] = least;
      count -= least;
      floors[i].resize(bytes);
      rest[i].resize(bytes);
    }
    if (count < 0)
      value_error(format("%s: min_density must fit into the total count %lld, got %s, which needs %lld", function_,
                         ll(total), text(how_.min_density).c_str(), ll(total - count)));
    for (std::size_t i = 0; i < items_.size(); ++i) {
      std::vector<Item> one{items_[i]};
      one[0].mask = floors[i].data();
      Engine<T>(one, rank, nan_).keep_top(taken[i]);
    }
    std::vector<Item> left = items_;
    for (std::size_t i = 0; i < left.size(); ++i) {
      for (std::size_t b = 0; b < rest[i].size(); ++b) {
        const unsigned prior = left[i].prior != nullptr ? left[i].prior[b] : 0xFFu;
        rest[i][b] = static_cast<std::uint8_t>(prior & ~unsigned{floors[i][b]});
      }
      left[i].prior = rest[i].data();
    }
    Engine<T>(left, rank, nan_).keep_top(count);
    for (std::size_t i = 0; i < items_.size(); ++i) {
      for (std::size_t b = 0; b < floors[i].size(); ++b)
        items_[i].mask[b] = static_cast<std::uint8_t>(items_[i].mask[b] | floors[i][b]);
      items_[i].nnz = left[i].nnz + taken[i];
    }
  }

  // Tells the first NaN in mapping order. A structured unit is NaN as a whole: its elements are read again to find it.
  [[noreturn]] void throw_nan() const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const ScoreSource& source = tensors_[i].source;
      std::int64_t found = -1;
      dispatch(source.dtype(), [&](auto zero) {
        using T = decltype(zero);
        auto scratch = std::make_unique<ScoreScratch<T>>();
        for (std::int64_t row = 0; row < source.rows() && found < 0; ++row)
          for (std::int64_t col = 0; col < source.cols() && found < 0; col += tile_size) {
            const std::int64_t n = std::min(tile_size, source.cols() - col);
            const T* scores = score_tile(source, row, col, n, *scratch);
            const T* nan = std::find_if(scores, scores + n, [](T x) { return x != x; });
            if (nan != scores + n) found = row * source.cols() + col + (nan - scores);
          }
      });
      if (found >= 0)
        value_error(format("%s: scores must not be NaN (or say nan='prune' or 'keep'), got NaN%s at flat index %lld",
                           function_, where(tensors_[i]).c_str(), ll(found)));
    }
    value_error(
        format("%s: the scores of a unit must have a sum, got infinities of both signs in one unit", function_));
  }

  const char* function_;
  std::vector<SelectTensor>& tensors_;
  const Selection& how_;
  std::vector<Item> items_;
  std::vector<Units> units_;
  std::atomic<bool> nan_{false};
};

bool parse_number(const char*& p, const char* end, std::int64_t& value) {
  const auto result = std::from_chars(p, end, value);
  if (result.ec != std::errc() || result.ptr == p) return false;
  p = result.ptr;
  return true;
}

}  // namespace

std::int64_t kept_count(std::int64_t n, double sparsity) {
  // Python's round(sparsity, 12): the nearest decimal, exactly rounded, and back.
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, sparsity, std::chars_format::fixed, 12).ptr;
  double rounded = 0;
  std::from_chars(digits, end, rounded);
  return n - static_cast<std::int64_t>(std::floor(static_cast<double>(n) * rounded + 0.5));
}

Pattern parse_pattern(const char* function, const std::string& name) {
  using Kind = Pattern::Kind;
  if (name == "element") return {};
  if (name == "row") return {Kind::row, 1, 1};
  if (name == "col") return {Kind::col, 1, 1};
  const bool block = name.rfind("block:", 0) == 0;
  const char* p = name.c_str() + (block ? 6 : 0);
  const char* end = name.c_str() + name.size();
  Pattern pattern{block ? Kind::block : Kind::n_of_m, 0, 0};
  const char separator = block ? 'x' : ':';
  const bool parsed =
      parse_number(p, end, pattern.a) && p != end && *p++ == separator && parse_number(p, end, pattern.b);
  if (parsed && p == end && pattern.a >= 1 && pattern.b >= 1 && (block || (pattern.a <= pattern.b && pattern.b <= 32)))
    return pattern;
  value_error(
      format("%s: pattern must be 'element', 'row', 'col', 'block:RxC' or 'N:M' with 1 <= N <= M <= 32, got '%.60s'",
             function, name.c_str()));
}

Group parse_group(const char* function, const std::string& name) {
  if (name == "tensor") return Group::tensor;
  if (name == "row") return Group::row;
  if (name == "global") return Group::global;
  value_error(format("%s: group must be 'tensor', 'row' or 'global', got '%.60s'", function, name.c_str()));
}

Nan parse_nan(const char* function, const std::string& name) {
  if (name == "raise") return Nan::raise;
  if (name == "prune") return Nan::prune;
  if (name == "keep") return Nan::keep;
  value_error(format("%s: nan must be 'raise', 'prune' or 'keep', got '%.60s'", function, name.c_str()));
}

void select(const char* function, std::vector<SelectTensor>& tensors, const Selection& how) {
  Call(function, tensors, how).run();
}

}  // namespace gossamer
