// SPDX-License-Identifier: Apache-2.0
// Exact selection over tensors and over all of them together. The order is total: (key descending, flat index
// ascending), where keys are integers that order like the scores (core/table.hpp), so the result depends on nothing but
// the scores.
//
// Usual case, one pass: see one_pass(). Where the sample misled it, or too many scores are equal: mark_ties(), or
// two_passes(), a 16-bit histogram of the keys and then a pass that sorts out the members of one bin.
#include "ops/topk.hpp"

#include <algorithm>
#include <bit>
#include <mutex>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>

#include "core/parallel.hpp"
#include "ops/topk_tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t small_size = 1 << 14;  // below this, all keys are candidates: no histogram

struct Histogram {
  std::vector<std::uint32_t> count = std::vector<std::uint32_t>(1 << 16);
  std::int64_t pending = 0;
  void flush(std::vector<std::uint64_t>& total) {
    for (std::size_t i = 0; i < count.size(); ++i) total[i] += std::exchange(count[i], 0u);
    pending = 0;
  }
};

template <class T>
class Engine {
 public:
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  using Bins = KeyBins<Key, 12>;
  static constexpr Key highest = std::numeric_limits<Key>::max();

  Engine(std::vector<Item>& items, NanRule nan) : items_(items), nan_(nan) {
    for (std::size_t i = 0; i < items.size(); ++i) {
      append_chunks(chunks_, static_cast<std::int64_t>(i), items[i].rows(), items[i].cols());
      size_ += items[i].size();
      items[i].nnz = 0;
    }
  }

  void keep_top(std::int64_t count) {
    if (count == 0) return static_cast<void>(mark_tied_keys(highest, 0));
    if (size_ <= small_size) return sort_out_all(count);
    if (!one_pass(count)) two_passes(count);
  }

  // The key of the count-th best, count >= 1.
  Key find_kth(std::int64_t count) {
    needs_key_ = true;
    keep_top(count);
    return last_key_;
  }

  void keep_from(double threshold) {
    const T t = round_up(threshold);
    clear();
    if (t == -std::numeric_limits<T>::infinity()) {  // no number lies below it
      mark_keys(key_of(t) - 1);
      return add_counts();
    }
    const T below = std::nextafter(t, -std::numeric_limits<T>::infinity());
    parallel_for(static_cast<std::int64_t>(chunks_.size()), scratch_,
                 [&](std::int64_t c, Scratch<T>& s) { stream_chunk(static_cast<std::size_t>(c), below, t, s, false); });
    add_counts();
  }

  std::int64_t keep_above(double threshold, std::int64_t ties) {
    const T t = round_up(threshold);
    if (static_cast<double>(t) != threshold) {
      keep_from(threshold);
      return 0;
    }
    clear();
    stream_equal(t);
    ties = std::min(ties, sum(&Part::equal));
    fill_ties(key_of(t), ties);
    add_counts();
    return ties;
  }

  Collected collect(double low, double high, T* values) {
    const T from = round_up(low), to = -round_up(-high);
    std::vector<std::vector<T>> inside(chunks_.size());
    clear();
    parallel_for(static_cast<std::int64_t>(chunks_.size()), scratch_, [&](std::int64_t i, Scratch<T>& s) {
      const auto c = static_cast<std::size_t>(i);
      const std::int64_t open = stream_chunk(c, to, from, s, true);
      inside[c].assign(s.chunk_values.get(), s.chunk_values.get() + open);
    });
    Collected result{sum(&Part::kept), 0, 0};
    for (const auto& part : inside) {
      std::copy(part.begin(), part.end(), values + result.inside);
      result.inside += static_cast<std::int64_t>(part.size());
    }
    result.below = size_ - result.above - result.inside;
    return result;
  }

 private:
  // The smallest T that is not below x.
  static T round_up(double x) {
    const T t = static_cast<T>(x);
    return static_cast<double>(t) < x ? std::nextafter(t, std::numeric_limits<T>::infinity()) : t;
  }

  static Key signed_key(Unsigned u) {
    return static_cast<Key>(u ^ static_cast<Unsigned>(std::numeric_limits<Key>::min()));
  }

  // What a pass has found in a chunk. On cache lines of its own: two threads that count in one line take turns.
  // The candidates lie in one list a worker: a list a chunk would cost two threads as much in malloc as the stream
  // itself.
  struct alignas(64) Part {
    std::int64_t kept = 0, equal = 0;
    const Candidate<Key>* first = nullptr;
    std::size_t count = 0;
    std::span<const Candidate<Key>> found() const { return {first, count}; }  // in order
  };

  // Candidates by the bin of their key, as one worker counts them.
  struct Counts {
    std::vector<std::uint32_t> of = std::vector<std::uint32_t>(Bins::count);
  };
  void clear() {
    parts_.resize(chunks_.size());
    std::fill(parts_.begin(), parts_.end(), Part{});
    scratch_.for_each([](Scratch<T>& s) {
      s.found.clear();
      s.unclaimed = 0;
    });
  }
  std::int64_t sum(std::int64_t Part::*count) const {
    std::int64_t total = 0;
    for (const Part& part : parts_) total += part.*count;
    return total;
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
    PerWorker<Histogram> bins;
    std::vector<std::uint64_t> total(1 << 16);
    std::mutex adding;
    const auto& table = kernels<T>();
    detail::parallel_for(static_cast<std::int64_t>(chunks_.size()), workers(bins), [&](std::int64_t c, int worker) {
      const Chunk& chunk = chunks_[static_cast<std::size_t>(c)];
      const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
      Scratch<T>& s = scratch_[worker];
      Histogram& mine = bins[worker];
      for_tiles(chunk, tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
        keys_of(item, row, col, n, nan_, s, s.keys);
        table.histogram(s.keys, n, shift, prefix, mine.count.data());
        mine.pending += n;
      });
      if (mine.pending > std::numeric_limits<std::uint32_t>::max() / 2) {
        const std::lock_guard<std::mutex> lock(adding);
        mine.flush(total);
      }
    });
    bins.for_each([&](Histogram& mine) { mine.flush(total); });
    return total;
  }

  // Sets the bits of all keys above this one, and counts those equal to it: by keys, where NaN has a place too.
  void mark_keys(Key key) {
    for_key_tiles(
        [&](std::size_t c, const Item& item, std::int64_t row, std::int64_t col, std::int64_t n, Scratch<T>& s) {
          std::int64_t open = 0;
          parts_[c].kept += kernels<T>().mark(s.keys, n, key, key, item.mask + item.byte(row, col), s.open, &open);
          parts_[c].equal += open;
        });
  }

  // Few enough keys to put them all in one place.
  void sort_out_all(std::int64_t count) {
    std::vector<Key> keys;
    keys.reserve(static_cast<std::size_t>(size_));
    for (const Chunk& chunk : chunks_)
      for_tiles(chunk, tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
        Scratch<T>& s = scratch_[0];
        keys_of(items_[static_cast<std::size_t>(chunk.tensor)], row, col, n, nan_, s, s.keys);
        keys.insert(keys.end(), s.keys, s.keys + n);
      });
    last_key_ = kth_highest(keys, count);
    if (!mark_tied_keys(last_key_, count)) throw_changed();
  }

  // --- one pass -----------------------------------------------------------------------------------------------------
  //
  // A sample brackets the k-th score. One stream over the inputs then sets the bits above the bracket and collects what
  // lies in it. The stream's own first part is a far larger sample: after it the bracket is drawn again, much tighter.
  // A bracket that turns out not to hold the k-th score is noticed by the counts. That, or too many scores in it, calls
  // for a larger sample, which also tells whether many of them are equal: these are only counted. If that does not help
  // either, false is returned.

  bool one_pass(std::int64_t count) {
    constexpr std::int64_t few = 256, many = 4096;
    const auto parts = stages();
    const bool small = chunks_.size() < 16, single = parts.size() == 1;
    const auto free = static_cast<double>(allowed()), room = static_cast<double>(most_candidates());
    const double share = static_cast<double>(count) / free;
    // One stage of many chunks has to do with the first bracket: of 8 deviations, and twice that is to fit.
    const auto candidates = [&](std::int64_t of) {
      return 2 * free * std::sqrt(share * (1 - share) / static_cast<double>(of));
    };
    std::int64_t runs = few;
    while (single && !small && runs < many && 2 * candidates(runs) > room) runs *= 4;
    for (;; runs = many) {
      Bracket<T> bracket;
      std::vector<Key> tied;
      clear();
      if (!sample(share, runs, bracket, tied)) return false;
      if (!tied.empty() && (single || runs == many || bracket.low == bracket.high)) {
        if (std::any_of(tied.begin(), tied.end(), [&](Key key) { return mark_ties(key, count); })) return true;
      } else if (select_within(bracket, count, parts)) {
        return true;
      }
      if (small || runs == many) return false;
    }
  }

  // How many candidates there may be at a time: scratch beside the mask is to be at most 3 % of 8 bytes an element, and
  // of these the buffers of two threads take their share. Never fewer than the bracket of a small input holds.
  std::int64_t most_candidates() const {
    constexpr std::int64_t buffers = 4 * chunk_size * static_cast<std::int64_t>(sizeof(T) + 4);
    return std::max(4 * small_size, (size_ * 24 / 100 - buffers) / static_cast<std::int64_t>(sizeof(Candidate<Key>)));
  }

  // Streams over the chunks, stage by stage; false if the k-th score lies outside the bracket, or too many lie in it.
  bool select_within(Bracket<T> bracket, std::int64_t count, const std::vector<std::vector<std::size_t>>& stages) {
    const Bins bins(bracket.low, bracket.high);
    PerWorker<Counts> counts;
    std::atomic<std::int64_t> room{most_candidates()};
    std::vector<std::size_t> streamed;
    clear();
    for (const auto& stage : stages) {
      if (!streamed.empty()) {
        const std::vector<std::int64_t> open = total_of(counts);
        bracket = tighten(streamed, bins, open, bracket, static_cast<double>(count) / static_cast<double>(size_));
        if (bracket.low > bracket.high) return false;  // two stages contradict each other
        const auto begin = open.begin() + static_cast<std::ptrdiff_t>(bins.of(bracket.low));
        const auto end = open.begin() + static_cast<std::ptrdiff_t>(bins.of(bracket.high)) + 1;
        const auto inside = static_cast<double>(std::accumulate(begin, end, std::int64_t{0}));
        const double share = inside / static_cast<double>(elements(streamed));
        if (share * static_cast<double>(elements(stage)) > static_cast<double>(room.load())) return false;
      }
      if (!stream(stage, bracket, bins, counts, room)) return false;
      streamed.insert(streamed.end(), stage.begin(), stage.end());
    }
    const std::vector<std::int64_t> open = total_of(counts);
    const std::int64_t rank = count - sum(&Part::kept);
    if (rank < (needs_key_ ? 1 : 0) || rank > std::accumulate(open.begin(), open.end(), std::int64_t{0})) return false;
    if (rank == 0 && highest_candidate() > bracket.high) return false;
    if (rank > 0) {
      const Key limit = keep_best(rank, bins, open);
      if (limit < bracket.low || limit > bracket.high) return false;
    }
    add_counts();
    return true;
  }

  // A 64th of the chunks, an 8th, the rest, each spread evenly: every stage narrows the bracket of the next. Small
  // inputs have fewer stages. A prior breaks the rule that all chunks are alike.
  std::vector<std::vector<std::size_t>> stages() const {
    const std::size_t first = has_prior() || chunks_.size() < 16 ? 2 : chunks_.size() < 64 ? 1 : 0;
    std::vector<std::vector<std::size_t>> parts(3);
    for (std::size_t c = 0; c < chunks_.size(); ++c)
      parts[std::max<std::size_t>(first, c % 64 == 32 ? 0 : c % 8 == 4 ? 1 : 2)].push_back(c);
    parts.erase(parts.begin(), parts.begin() + static_cast<std::ptrdiff_t>(first));
    return parts;
  }

  bool has_prior() const {
    return std::any_of(items_.begin(), items_.end(), [](const Item& item) { return item.prior != nullptr; });
  }
  std::int64_t allowed() const {
    std::int64_t n = 0;
    for (const Item& item : items_) n += item.allowed();
    return n;
  }

  // The bracket of the best `share` of the scores, from short runs at a fixed stride; false when they say too little.
  // `tied`: keys in it that so many scores have that they alone would take a quarter of the room for candidates, the
  // likeliest to be the k-th first.
  bool sample(double share, std::int64_t runs, Bracket<T>& bracket, std::vector<Key>& tied) {
    const std::int64_t stride = size_ / runs;
    Drawn<Key> drawn;
    drawn.keys.reserve(static_cast<std::size_t>(16 * runs));
    const auto for_runs = [&](auto&& f) {
      for (std::int64_t i = 0; i < runs; ++i) {
        const std::int64_t index = items_[0].base + i * stride + stride / 2;
        const Item& item = item_at(index);
        const std::int64_t at = index - item.base;
        f(item, at / item.cols(), at % item.cols());
      }
    };
    for_runs([](const Item& item, std::int64_t row, std::int64_t col) { item.source.prefetch(row, col); });
    for_runs([&](const Item& item, std::int64_t row, std::int64_t col) {
      draw_run(item, row, col, nan_.rank, scratch_[0], drawn);
    });
    if (!draw_bracket(drawn, share, bracket)) return false;
    const auto many = static_cast<double>(most_candidates()) / static_cast<double>(4 * size_);
    for (const Key key : {bracket.center, bracket.high, bracket.low}) {
      const auto equal = static_cast<double>(std::count(drawn.keys.begin(), drawn.keys.end(), key));
      if (equal > many * static_cast<double>(drawn.keys.size()) &&
          std::find(tied.begin(), tied.end(), key) == tied.end())
        tied.push_back(key);
    }
    return true;
  }

  // Streams over the given chunks; false when there is no room for more candidates.
  bool stream(const std::vector<std::size_t>& which, Bracket<T> bracket, const Bins& bins, PerWorker<Counts>& counts,
              std::atomic<std::int64_t>& room) {
    const T high = score_of<T>(bracket.high), low = score_of<T>(bracket.low);
    detail::parallel_for(static_cast<std::int64_t>(which.size()), workers(counts), [&](std::int64_t i, int worker) {
      Scratch<T>& s = scratch_[worker];
      std::vector<std::uint32_t>& counted = counts[worker].of;
      const std::size_t c = which[static_cast<std::size_t>(i)];
      if (room.load(std::memory_order_relaxed) < 0) return;
      const std::int64_t open = stream_chunk(c, high, low, s, true);
      Candidate<Key>* found = s.found.room(static_cast<std::size_t>(open));
      parts_[c].first = found;
      parts_[c].count = static_cast<std::size_t>(open);
      for (std::int64_t first = 0; first < open; first += tile_size) {
        const std::int64_t n = std::min(tile_size, open - first);
        kernels<T>().keys(s.chunk_values.get() + first, n, nan_.rank, s.keys);
        for (std::int64_t j = 0; j < n; ++j) {
          // Another thread that writes to the inputs meanwhile may have moved a score that was read twice.
          const Key key = std::clamp(s.keys[j], bracket.low, bracket.high);
          found[first + j] = {key, s.chunk_open[static_cast<std::size_t>(first + j)]};
          ++counted[bins.of(key)];
        }
      }
      if (s.unclaimed += open; s.unclaimed >= 1024) room.fetch_sub(std::exchange(s.unclaimed, 0));
    });
    return room.load() >= 0;
  }

  // Runs the stream kernel over a chunk, adds to its part's kept, notices NaN; -> how many scores are open. With
  // `collect` they are in s.chunk_values, and their positions in the chunk in s.chunk_open.
  std::int64_t stream_chunk(std::size_t c, T high, T low, Scratch<T>& s, bool collect) {
    const Chunk& chunk = chunks_[c];
    const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
    if (s.chunk_open == nullptr) {
      s.chunk_values = std::make_unique_for_overwrite<T[]>(chunk_size + 2);
      s.chunk_open = std::make_unique_for_overwrite<std::uint32_t[]>(chunk_size + 2);
    }
    std::int64_t open = 0, kept = 0;
    for_tiles(chunk, item.source.in_place(dtype_of<T>) ? chunk_size : tile_size,
              [&](std::int64_t row, std::int64_t col, std::int64_t n) {
                StreamCounts counts{};
                std::uint32_t* places = collect ? s.chunk_open.get() + open : nullptr;
                kept += stream_tile(item, row, col, n, high, low, nan_, s, s.chunk_values.get() + open, places, counts);
                if (const std::uint32_t base = position(chunk, row, col); collect && base > 0)
                  for (std::int64_t j = 0; j < counts.open; ++j) places[j] += base;
                open += counts.open;
              });
    parts_[c].kept += kept;
    return open;
  }

  // The bracket again, from all scores of the chunks that have been streamed. `open` counts their candidates by bin:
  // those above the bracket, of earlier stages, stand beside the ones that later stages have kept.
  Bracket<T> tighten(const std::vector<std::size_t>& streamed, const Bins& bins, const std::vector<std::int64_t>& open,
                     Bracket<T> bracket, double share) const {
    std::int64_t above = 0;
    for (const std::size_t c : streamed) above += parts_[c].kept;
    const std::int64_t all = std::accumulate(open.begin(), open.end(), std::int64_t{0});
    const auto bin_at = [&](std::int64_t rank) {  // of the rank-th best candidate
      std::size_t bin = bins.count - 1;
      for (; bin > 0 && rank >= open[bin]; --bin) rank -= open[bin];
      return bin;
    };
    const double middle = share * static_cast<double>(elements(streamed));
    const std::int64_t rank = static_cast<std::int64_t>(middle) - above;
    if (rank < 0 || rank >= all) return bracket;
    const Key center = bins.first(bin_at(rank));
    std::vector<std::int64_t> counts;
    for (const std::size_t c : streamed) {
      const auto found = parts_[c].found();
      counts.push_back(parts_[c].kept +
                       std::count_if(found.begin(), found.end(), [&](const auto& x) { return x.key >= center; }));
    }
    const Ranks ranks(middle, std::max(middle * (1 - share), systematic_variance(counts)));
    if (ranks.low - above < all) bracket.low = std::max(bracket.low, bins.first(bin_at(ranks.low - above)));
    if (ranks.high - above >= 0) bracket.high = std::min(bracket.high, bins.last(bin_at(ranks.high - above)));
    return bracket;
  }

  Key highest_candidate() const {
    Key high = std::numeric_limits<Key>::min();
    for (const Part& part : parts_)
      for (const auto& candidate : part.found()) high = std::max(high, candidate.key);
    return high;
  }

  static std::vector<std::int64_t> total_of(PerWorker<Counts>& counts) {
    std::vector<std::int64_t> total(Bins::count);
    counts.for_each([&](Counts& mine) {
      for (std::size_t b = 0; b < total.size(); ++b) total[b] += mine.of[b];
    });
    return total;
  }
  // That scratch_ and another per-worker store have both.
  template <class Other>
  int workers(const PerWorker<Other>& other) const {
    return std::min(scratch_.workers(), other.workers());
  }

  // Counts the candidates that lie in the bins.
  std::vector<std::int64_t> count_candidates(const Bins& bins, Key low, Key high) {
    PerWorker<Counts> counts;
    parallel_for(static_cast<std::int64_t>(chunks_.size()), counts, [&](std::int64_t c, Counts& mine) {
      for (const auto& candidate : parts_[static_cast<std::size_t>(c)].found())
        if (candidate.key >= low && candidate.key <= high) ++mine.of[bins.of(candidate.key)];
    });
    return total_of(counts);
  }

  // Sets the bits of the best `rank` candidates, rank >= 1, which `open` counts by bin; -> the key of the last one. The
  // candidates above its bin are set at once, and only the members of that bin put in order. A bin of too many to be
  // copied is divided again, down to one of equals.
  Key keep_best(std::int64_t rank, Bins bins, std::vector<std::int64_t> open) {
    std::size_t bin;
    for (;;) {
      for (bin = open.size() - 1; bin > 0 && rank > open[bin]; --bin) rank -= open[bin];
      if (rank > open[bin]) throw_changed();
      if (open[bin] <= small_size || bins.first(bin) == bins.last(bin)) break;
      const Key low = bins.first(bin), high = bins.last(bin);
      bins = Bins(low, high);
      open = count_candidates(bins, low, high);
    }
    const Key low = bins.first(bin), high = bins.last(bin);
    // Of members; one comparison, because two and a branch for each took a tenth of the whole call.
    const auto width = static_cast<Unsigned>(low != high ? Unsigned(high) - Unsigned(low) + 1 : 0);
    std::vector<std::vector<Candidate<Key>>> members(chunks_.size());
    parallel_for(static_cast<std::int64_t>(chunks_.size()), [&](std::int64_t i) {
      const auto c = static_cast<std::size_t>(i);
      set_bits(c, parts_[c].found(), [&](const Candidate<Key>& candidate) {
        if (static_cast<Unsigned>(Unsigned(candidate.key) - Unsigned(low)) < width) members[c].push_back(candidate);
        return candidate.key > high;
      });
    });
    last_key_ = low;
    std::int64_t ties = rank;
    if (low != high) {
      std::vector<Key> keys;
      for (const auto& part : members)
        for (const auto& member : part) keys.push_back(member.key);
      std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end(), std::greater<Key>());
      last_key_ = keys[static_cast<std::size_t>(rank - 1)];
      ties = std::count(keys.begin(), keys.begin() + rank, last_key_);
    }
    for (std::size_t c = 0; c < members.size(); ++c)  // in flat order: ties are kept from the lowest index on
      set_bits(c, low != high ? std::span<const Candidate<Key>>(members[c]) : parts_[c].found(),
               [&](const Candidate<Key>& member) {
                 return (member.key > last_key_ && low != high) || (member.key == last_key_ && ties-- > 0);
               });
    return last_key_;
  }

  // Sets the bits of those candidates of a chunk for which `keep` is true, without a branch: half of them are, in no
  // order. Everything is a local copy: a store to the mask may change any byte, as far as the compiler knows.
  template <class F>
  void set_bits(std::size_t c, std::span<const Candidate<Key>> candidates, F&& keep) {
    const Chunk chunk = chunks_[c];
    const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
    const std::int64_t stride = row_bytes(item.cols()), col_begin = chunk.col_begin;
    std::uint8_t* const mask = item.mask + chunk.row_begin * stride;
    const auto width = static_cast<std::uint32_t>(chunk.col_end - chunk.col_begin);
    std::int64_t kept = 0;
    for (const Candidate<Key> candidate : candidates) {
      const std::uint32_t row = candidate.at < width ? 0 : candidate.at / width;  // most chunks are one row
      const std::int64_t col = col_begin + candidate.at - row * width;
      const bool set = keep(candidate);
      std::uint8_t& byte = mask[row * stride + col / 8];
      byte = static_cast<std::uint8_t>(byte | int{set} << (col % 8));
      kept += set;
    }
    parts_[c].kept += kept;
  }

  static std::uint32_t position(const Chunk& chunk, std::int64_t row, std::int64_t col) {
    return static_cast<std::uint32_t>((row - chunk.row_begin) * (chunk.col_end - chunk.col_begin) + col -
                                      chunk.col_begin);
  }
  std::int64_t elements(const std::vector<std::size_t>& which) const {
    std::int64_t n = 0;
    for (const std::size_t c : which)
      n += (chunks_[c].row_end - chunks_[c].row_begin) * (chunks_[c].col_end - chunks_[c].col_begin);
    return n;
  }
  const Item& item_at(std::int64_t index) const {
    return *(std::upper_bound(items_.begin(), items_.end(), index,
                              [](std::int64_t at, const Item& item) { return at < item.base; }) -
             1);
  }

  // --- the other ways -----------------------------------------------------------------------------------------------

  void two_passes(std::int64_t count) {
    clear();
    std::int64_t rank = count;  // of the last key to keep, among those that match `prefix`
    Unsigned prefix = 0;
    for (int shift = static_cast<int>(sizeof(Key)) * 8 - 16;; shift -= 16) {
      const std::vector<std::uint64_t> bins = histogram(shift, prefix);
      std::size_t bin = bins.size() - 1;
      for (; bin > 0 && static_cast<std::uint64_t>(rank) > bins[bin]; --bin)
        rank -= static_cast<std::int64_t>(bins[bin]);
      if (static_cast<std::uint64_t>(rank) > bins[bin]) throw_changed();
      prefix = static_cast<Unsigned>(prefix << 16 | static_cast<Unsigned>(bin));
      if (shift == 0) {
        if (!mark_ties(signed_key(prefix), count)) throw_changed();
        return;
      }
      const auto low = static_cast<Unsigned>(prefix << shift), width = static_cast<Unsigned>(Unsigned{1} << shift);
      const Bracket<T> numbers;
      const Bracket<T> within{std::max(signed_key(low), numbers.low),
                              std::min(signed_key(static_cast<Unsigned>(low + width - 1)), numbers.high)};
      if (within.low > within.high || bins[bin] > static_cast<std::uint64_t>(most_candidates())) continue;
      std::vector<std::size_t> all(chunks_.size());
      std::iota(all.begin(), all.end(), std::size_t{0});
      if (!select_within(within, count, {all})) throw_changed();
      return;
    }
  }

  // Keeps all keys above `key` and the first of those equal to it; false unless the k-th key is this one.
  bool mark_ties(Key key, std::int64_t count) {
    clear();
    last_key_ = key;
    if (key < Bracket<T>{}.low || key > Bracket<T>{}.high) return mark_tied_keys(key, count);  // a NaN's
    stream_equal(score_of<T>(key));
    std::int64_t rank = count - sum(&Part::kept);
    if (rank < (needs_key_ ? 1 : 0) || rank > sum(&Part::equal)) return false;
    fill_ties(key, rank);
    add_counts();
    return true;
  }

  // Keeps all scores above this one, counts those equal to it.
  void stream_equal(T score) {
    parallel_for(static_cast<std::int64_t>(chunks_.size()), scratch_, [&](std::int64_t i, Scratch<T>& s) {
      const auto c = static_cast<std::size_t>(i);
      parts_[c].equal += stream_chunk(c, score, score, s, false);
    });
  }

  // Sets the bits of the first `rank` keys equal to `key`, which have been counted.
  void fill_ties(Key key, std::int64_t rank) {
    std::vector<std::size_t> which;
    std::vector<std::int64_t> quota(chunks_.size());
    for (std::size_t c = 0; c < chunks_.size() && rank > 0; ++c) {
      quota[c] = std::min(parts_[c].equal, rank);
      rank -= quota[c];
      if (quota[c] > 0) which.push_back(c);
    }
    parallel_for(static_cast<std::int64_t>(which.size()), scratch_, [&](std::int64_t i, Scratch<T>& s) {
      const std::size_t c = which[static_cast<std::size_t>(i)];
      const Chunk& chunk = chunks_[c];
      const Item& item = items_[static_cast<std::size_t>(chunk.tensor)];
      parts_[c].kept = 0;
      for_tiles(chunk, tile_size, [&](std::int64_t row, std::int64_t col, std::int64_t n) {
        keys_of(item, row, col, n, nan_, s, s.keys);
        parts_[c].kept += kernels<T>().mark_ties(s.keys, n, key, &quota[c], item.mask + item.byte(row, col));
      });
    });
  }

  // The same by keys, where NaN has a place too.
  bool mark_tied_keys(Key key, std::int64_t count) {
    clear();
    mark_keys(key);
    const std::int64_t rank = count - sum(&Part::kept);
    if (rank < 0 || rank > sum(&Part::equal)) return false;
    fill_ties(key, rank);
    add_counts();
    return true;
  }

  void add_counts() {
    for (std::size_t c = 0; c < chunks_.size(); ++c)
      items_[static_cast<std::size_t>(chunks_[c].tensor)].nnz += parts_[c].kept;
  }

  std::vector<Item>& items_;
  NanRule nan_;
  std::vector<Chunk> chunks_;
  std::int64_t size_ = 0;
  PerWorker<Scratch<T>> scratch_;
  Key last_key_ = 0;  // of the last one kept
  bool needs_key_ = false;
  std::vector<Part> parts_;  // by chunk
};

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

double kth_score(Item item, std::int64_t count) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(item.rows() * row_bytes(item.cols())));
  item.mask = mask.data();
  std::vector<Item> items{item};
  std::atomic<bool> ignored{false};
  double score = 0;
  as_widest(items, [&](auto zero) {
    using T = decltype(zero);
    Engine<T> engine(items, NanRule{NanRank::low, ignored});
    score = static_cast<double>(score_of<T>(engine.find_kth(count)));
  });
  return score;
}

std::int64_t keep_above(Item& item, double threshold, std::int64_t ties, NanRule nan) {
  std::vector<Item> items{item};
  std::int64_t used = 0;
  as_widest(items, [&](auto zero) { used = Engine<decltype(zero)>(items, nan).keep_above(threshold, ties); });
  item.nnz = items[0].nnz;
  return used;
}

Collected collect(Item item, double low, double high, NanRule nan, void* values) {
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(item.rows() * row_bytes(item.cols())));
  item.mask = mask.data();
  std::vector<Item> items{item};
  Collected result{};
  as_widest(items, [&](auto zero) {
    using T = decltype(zero);
    result = Engine<T>(items, nan).collect(low, high, static_cast<T*>(values));
  });
  return result;
}

void keep_from(std::vector<Item>& items, double threshold, NanRule nan) {
  as_widest(items, [&](auto zero) { Engine<decltype(zero)>(items, nan).keep_from(threshold); });
}

}  // namespace gossamer
