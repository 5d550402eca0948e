// SPDX-License-Identifier: Apache-2.0
// Every entry of every table that this CPU can run, in buffers of exactly the size that the entry may touch, for all
// lengths up to 200: keys, masks, scores and statistics equal the baseline's bit for bit, sums are within rounding.
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/cpu.hpp"
#include "core/dtype.hpp"
#include "ops/bits.hpp"
#include "ops/panel.hpp"
#include "ops/tiles.hpp"
#include "random.hpp"

using namespace gossamer;

namespace {

constexpr std::int64_t longest = 200;

template <class T>
struct Types {
  using Key = typename KeyOf<T>::type;
};

template <class T>
bool same_bits(const Heap<T>& a, const Heap<T>& b) {
  return a.size() == b.size() &&
         (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(T)) == 0);
}

std::int64_t padded(std::int64_t n) { return (n + 63) / 64 * 64; }

// Compares `run(table)`, a buffer, between every other table and the baseline.
template <class T, class Run>
void same_everywhere(const char* what, std::int64_t n, Run&& run) {
  const auto& first = isas()[0].kernels->typed(T{});
  const auto expected = run(first);
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    const auto got = run(isa.kernels->typed(T{}));
    CHECK(same_bits(got, expected), "%s %s n=%d float%d", what, isa.name, static_cast<int>(n),
          static_cast<int>(sizeof(T) * 8));
  }
}

// f(T{}, n, random, mix) for both types, all lengths and kinds of data.
template <class F>
void for_all(std::uint64_t seed, F&& f) {
  Random random(seed);
  for (std::int64_t n = 0; n <= longest; ++n)
    for (const Mix mix : {Mix::plain, Mix::ties, Mix::wild}) {
      f(float{}, n, random, mix);
      f(double{}, n, random, mix);
    }
}

template <class T>
Heap<typename KeyOf<T>::type> keys_of(const Heap<T>& scores, NanRank rank) {
  Heap<typename KeyOf<T>::type> keys(padded(scores.size()));
  isas()[0].kernels->typed(T{}).keys(scores.data(), scores.size(), rank, keys.data());
  return keys;
}

Heap<std::uint8_t> random_bits(Random& random, std::int64_t n) {
  Heap<std::uint8_t> bits((n + 7) / 8);
  for (std::int64_t i = 0; i < n; ++i)
    if (random.below(3) != 0) bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | 1 << (i % 8));
  return bits;
}

bool bit(const Heap<std::uint8_t>& bits, std::int64_t i) { return (bits[i / 8] >> (i % 8) & 1) != 0; }

template <class T>
bool close(T got, double exact, double magnitude) {
  if (exact != exact) return got != got;
  return std::abs(static_cast<double>(got) - exact) <= (sizeof(T) == 4 ? 1e-6 : 1e-14) * magnitude;
}

}  // namespace

template <class T>
constexpr int storages = sizeof(T) == 4 ? static_cast<int>(Storage::count) : 1;

// Weights rounded to what a storage can hold, in buffers of exactly their size.
template <class T>
struct StoredWeights {
  Storage storage;
  Heap<T> values;
  Heap<Half> half;
  Heap<BFloat> bfloat;

  StoredWeights(const Heap<T>& w, Storage kind)
      : storage(kind),
        values(w.size()),
        half(kind == Storage::half ? w.size() : 0),
        bfloat(kind == Storage::bfloat ? w.size() : 0) {
    for (std::int64_t i = 0; i < w.size(); ++i) {
      values[i] = w[i];
      if (kind == Storage::half) values[i] = convert<T>(half[i] = convert<Half>(w[i]));
      if (kind == Storage::bfloat) values[i] = convert<T>(bfloat[i] = convert<BFloat>(w[i]));
    }
  }
  TileInputs<T> inputs(Criterion criterion, const Heap<T>& a, const Heap<T>& b, T r) const {
    const void* w = values.data();
    if (storage == Storage::half) w = half.data();
    if (storage == Storage::bfloat) w = bfloat.data();
    return {criterion, storage, w, a.data(), b.data(), r};
  }
};

template <class T>
T expected_score(Criterion criterion, T w, T a, T b, T r) {
  const T product = w * a, size = std::abs(w);
  switch (criterion) {
    case Criterion::identity: return w;
    case Criterion::magnitude: return size;
    case Criterion::product: return product;
    case Criterion::taylor: return std::abs(product);
    case Criterion::taylor2: return product * product;
    case Criterion::wanda: return size * a;
    case Criterion::square: return w * w * a;
    case Criterion::ria: return (size / r + size / b) * a;
    default: return std::abs(product) / r;
  }
}

// All 65,536 values, against the definition of the formats.
TEST(sixteen_bit_floats_widen_and_narrow) {
  Heap<Half> halves(1 << 16);
  Heap<BFloat> bfloats(1 << 16);
  for (std::uint32_t i = 0; i < 1 << 16; ++i) {
    halves[i].bits = bfloats[i].bits = static_cast<std::uint16_t>(i);
    const int exponent = static_cast<int>(i >> 10 & 31), fraction = static_cast<int>(i & 1023);
    const double size = exponent == 0    ? std::ldexp(fraction, -24)
                        : exponent == 31 ? (fraction == 0 ? HUGE_VAL : std::nan(""))
                                         : std::ldexp(1024 + fraction, exponent - 25);
    const double wanted = (i & 0x8000) != 0 ? -size : size;
    const float got = widen(halves[i]);
    CHECK(static_cast<double>(got) == wanted || (got != got && wanted != wanted));
    CHECK(std::signbit(got) == ((i & 0x8000) != 0));
    CHECK(got != got || convert<Half>(got).bits == i);
    CHECK(widen(bfloats[i]) != widen(bfloats[i]) || convert<BFloat>(widen(bfloats[i])).bits == i);
    // Half way between two neighbours: to the even one; a hair above: up.
    if (exponent < 30) {
      const Half next{static_cast<std::uint16_t>(i + 1)};
      const float middle = (got + widen(next)) / 2;
      CHECK(convert<Half>(middle).bits == ((i & 1) == 0 ? i : i + 1));
      CHECK(convert<Half>(std::nextafter(middle, widen(next))).bits == i + 1);
      CHECK(convert<Half>(std::nextafter(middle, got)).bits == i);
    }
  }
  CHECK(convert<Half>(65519.0f).bits == 0x7BFF && convert<Half>(65520.0f).bits == 0x7C00);
  CHECK(convert<Half>(std::nanf("")).bits > 0x7C00 && convert<BFloat>(std::nanf("")).bits > 0x7F80);
  CHECK(convert<BFloat>(std::numeric_limits<float>::max()).bits == 0x7F80);
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    Heap<float> out(1 << 16);
    isa.kernels->half.widen(halves.data(), out.data(), 1 << 16);
    for (std::int64_t i = 0; i < 1 << 16; ++i)
      CHECK(std::isnan(out[i]) ? std::isnan(widen(halves[i])) : out[i] == widen(halves[i]), "%s", isa.name);
    isa.kernels->half.widen_bfloat(bfloats.data(), out.data(), (1 << 16) - 3);
    for (std::int64_t i = 0; i < (1 << 16) - 3; ++i)
      CHECK(std::isnan(out[i]) ? std::isnan(widen(bfloats[i])) : out[i] == widen(bfloats[i]), "%s", isa.name);
  }
}

TEST(scores_are_the_same_everywhere) {
  for_all(1, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    const Heap<T> w = drawn<T>(random, n, mix), a = drawn<T>(random, n, mix), b = drawn<T>(random, n, mix);
    for (int c = 0; c < static_cast<int>(Criterion::count); ++c)
      for (int storage = 0; storage < storages<T>; ++storage) {
        const StoredWeights<T> stored(w, static_cast<Storage>(storage));
        const TileInputs<T> in = stored.inputs(static_cast<Criterion>(c), a, b, T(3));
        same_everywhere<T>("score", n, [&](const TypedKernels<T>& table) {
          Heap<T> out(n);
          table.score[c][storage](in, out.data(), n);
          for (std::int64_t i = 0; i < n; ++i) {
            const T wanted = expected_score(in.criterion, stored.values[i], a[i], b[i], T(3));
            CHECK(out[i] == wanted || (out[i] != out[i] && wanted != wanted));
            if (out[i] != out[i]) out[i] = 0;  // the payload of a NaN is nobody's business
          }
          return out;
        });
      }
    const std::uint64_t seed = random.bits(), first = random.bits() >> 30;
    same_everywhere<T>("score_random", n, [&](const TypedKernels<T>& table) {
      Heap<T> out(n);
      table.score_random(seed, first, out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) CHECK(out[i] >= 0 && out[i] < 1);
      return out;
    });
    same_everywhere<T>("add_lanes", n, [&](const TypedKernels<T>& table) {
      Heap<double> lanes(8);
      const Heap<T> zeros(n);
      const T* from = mix == Mix::wild ? zeros.data() : w.data();
      table.add_lanes(from, n, lanes.data());
      double expected[8] = {};
      for (std::int64_t i = 0; i < n; ++i) expected[i % 8] += static_cast<double>(from[i]);
      CHECK(std::equal(expected, expected + 8, lanes.data()));
      return lanes;
    });
  });
}

TEST(keys_order_like_scores_and_are_the_same_everywhere) {
  for_all(2, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    using Key = typename KeyOf<T>::type;
    const Heap<T> scores = drawn<T>(random, n, mix);
    std::int64_t first_nan = 0;
    while (first_nan < n && scores[first_nan] == scores[first_nan]) ++first_nan;
    for (const NanRank rank : {NanRank::low, NanRank::high}) {
      same_everywhere<T>("keys", n, [&](const TypedKernels<T>& table) {
        Heap<Key> keys(padded(n));
        CHECK(table.keys(scores.data(), n, rank, keys.data()) == first_nan);
        return keys;
      });
      const Heap<Key> keys = keys_of(scores, rank);
      constexpr Key excluded = std::numeric_limits<Key>::min();
      for (std::int64_t i = n; i < padded(n); ++i) CHECK(keys[i] == excluded);
      for (std::int64_t i = 0; i < n; ++i) {
        const T a = scores[i], b = scores[random.below(n)];
        Heap<T> other(1);
        other[0] = b;
        const Key key = keys[i], second = keys_of(other, rank)[0];
        CHECK(key != excluded);
        if (a == a && b == b) CHECK((a < b) == (key < second) && (a == b) == (key == second));
        if (a != a) CHECK(key == (rank == NanRank::low ? excluded + 1 : std::numeric_limits<Key>::max()));
      }
      const Heap<std::uint8_t> allowed = random_bits(random, n);
      same_everywhere<T>("exclude", n, [&](const TypedKernels<T>& table) {
        Heap<Key> out(n);
        for (std::int64_t i = 0; i < n; ++i) out[i] = keys[i];
        table.exclude(allowed.data(), n, out.data());
        for (std::int64_t i = 0; i < n; ++i) CHECK(out[i] == (bit(allowed, i) ? keys[i] : excluded));
        return out;
      });
    }
  });
}

TEST(histograms_count_every_matching_key) {
  Random random(3);
  const auto run = [&](auto zero, std::int64_t n) {
    using T = decltype(zero);
    using Key = typename KeyOf<T>::type;
    using Unsigned = typename KeyOf<T>::unsigned_type;
    const Heap<Key> keys = keys_of(drawn<T>(random, n, Mix::wild), NanRank::low);
    const auto unsigned_key = [&](std::int64_t i) {
      return static_cast<Unsigned>(static_cast<Unsigned>(keys[i]) ^
                                   static_cast<Unsigned>(std::numeric_limits<Key>::min()));
    };
    const Heap<Key> exact(n);
    std::copy(keys.data(), keys.data() + n, exact.data());
    Unsigned prefix = 0;
    for (int shift = static_cast<int>(sizeof(Key)) * 8 - 16; shift >= 0; shift -= 16) {
      Heap<std::uint32_t> expected(1 << 16);
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint64_t digits = std::uint64_t{unsigned_key(i)} >> shift;
        if (shift + 16 == static_cast<int>(sizeof(Key)) * 8 || digits >> 16 == prefix)
          ++expected[static_cast<std::int64_t>(digits & 0xFFFF)];
      }
      for (const Isa& isa : isas()) {
        if (!isa.supported) continue;
        Heap<std::uint32_t> bins(1 << 16);
        isa.kernels->typed(T{}).histogram(exact.data(), n, shift, prefix, bins.data());
        CHECK(same_bits(bins, expected), "%s shift=%d", isa.name, shift);
      }
      if (n > 0) prefix = static_cast<Unsigned>(std::uint64_t{unsigned_key(random.below(n))} >> shift);
    }
  };
  for (const std::int64_t n : {0, 1, 2, 31, 64, 65, 127, 200}) {
    run(float{}, n);
    run(double{}, n);
  }
}

TEST(marks_are_the_same_everywhere) {
  for_all(4, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    using Key = typename KeyOf<T>::type;
    constexpr Key excluded = std::numeric_limits<Key>::min(), highest = std::numeric_limits<Key>::max();
    const Heap<Key> keys = keys_of(drawn<T>(random, n, mix), NanRank::high);
    if (n > 0 && random.below(2) != 0) keys[random.below(n)] = excluded;
    const auto some = [&] { return n == 0 ? Key{5} : std::max<Key>(keys[random.below(n)], excluded + 1); };
    Key top = some(), bottom = some();
    if (top < bottom) std::swap(top, bottom);
    if (random.below(5) == 0) top = highest, bottom = excluded + 1;
    if (random.below(5) == 0) top = bottom = highest;
    std::int64_t above = 0, within = 0, equal = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      above += keys[i] > top;
      within += keys[i] <= top && keys[i] >= bottom;
      equal += keys[i] == bottom;
    }
    same_everywhere<T>("mark", n, [&](const TypedKernels<T>& table) {
      Heap<std::uint8_t> bits((n + 7) / 8);
      Heap<std::uint32_t> open(within);  // exactly as many as there are
      std::int64_t found = -1;
      CHECK(table.mark(keys.data(), n, top, bottom, bits.data(), open.data(), &found) == above);
      CHECK(found == within);
      for (std::int64_t i = 0; i < n; ++i) CHECK(bit(bits, i) == (keys[i] > top));
      for (std::int64_t i = n; i < 8 * bits.size(); ++i) CHECK(!bit(bits, i));
      for (std::int64_t i = 0; i < within; ++i)
        CHECK(keys[open[i]] <= top && keys[open[i]] >= bottom && (i == 0 || open[i] > open[i - 1]));
      return bits;
    });
    for (const std::int64_t quota : {std::int64_t{0}, std::int64_t{1}, equal / 2, equal, equal + 5})
      same_everywhere<T>("mark_ties", n, [&](const TypedKernels<T>& table) {
        Heap<std::uint8_t> bits((n + 7) / 8);
        std::int64_t left = quota, wanted = quota, kept = 0;
        const std::int64_t marked = table.mark_ties(keys.data(), n, bottom, &left, bits.data());
        for (std::int64_t i = 0; i < n; ++i) {
          const bool keep = keys[i] > bottom || (keys[i] == bottom && wanted > 0);
          wanted -= keep && keys[i] == bottom;
          kept += keep;
          CHECK(bit(bits, i) == keep);
        }
        CHECK(marked == kept && left == wanted);
        return bits;
      });
  });
}

TEST(streams_are_the_same_everywhere) {
  for_all(10, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    const Heap<T> w = drawn<T>(random, n, mix), a = drawn<T>(random, n, mix), b = drawn<T>(random, n, mix);
    const Heap<std::uint8_t> allowed = random_bits(random, n);
    const bool all = random.below(2) != 0, keep_nan = random.below(2) != 0;
    const auto c = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(Criterion::count)));
    const auto storage = static_cast<std::size_t>(random.below(storages<T>));
    const StoredWeights<T> stored(w, static_cast<Storage>(storage));
    const TileInputs<T> in = stored.inputs(static_cast<Criterion>(c), a, b, T(3));
    Heap<T> scores(n);
    isas()[0].kernels->typed(zero).score[c][storage](in, scores.data(), n);
    const auto some = [&] {
      const T value = n == 0 || random.below(4) == 0 ? static_cast<T>(random.unit()) : scores[random.below(n)];
      return value == value ? value : T{0};
    };
    T high = some(), low = some();
    if (high < low) std::swap(high, low);
    if (random.below(6) == 0) low = high;
    if (random.below(6) == 0) high = std::numeric_limits<T>::infinity(), low = -high;
    std::int64_t above = 0, within = 0, nans = 0;
    const auto may = [&](std::int64_t i) { return all || bit(allowed, i); };
    const auto kept = [&](std::int64_t i) {
      return may(i) && (scores[i] > high || (scores[i] != scores[i] && keep_nan));
    };
    const auto open = [&](std::int64_t i) { return may(i) && scores[i] >= low && scores[i] <= high; };
    for (std::int64_t i = 0; i < n; ++i) {
      above += kept(i);
      within += open(i);
      nans += scores[i] != scores[i];
    }
    for (const bool collect : {true, false})
      same_everywhere<T>("stream", n, [&](const TypedKernels<T>& table) {
        Heap<std::uint8_t> bits((n + 7) / 8);
        const Heap<T> values(within + nans + 2);
        const Heap<std::uint32_t> places(within + nans + 2);  // exactly as many as may be written
        StreamCounts counts{-1, -1};
        CHECK(table.stream[c][storage](in, all ? nullptr : allowed.data(), n, high, low, keep_nan, bits.data(),
                                       values.data(), collect ? places.data() : nullptr, &counts) == above);
        CHECK(counts.open == within && counts.nan == nans);
        for (std::int64_t i = 0; i < 8 * bits.size(); ++i) CHECK(bit(bits, i) == (i < n && kept(i)));
        for (std::int64_t i = 0; collect && i < within; ++i) {
          CHECK(open(places[i]) && (i == 0 || places[i] > places[i - 1]));
          CHECK(values[i] == scores[places[i]]);
        }
        return bits;
      });
  });
}

TEST(n_of_m_is_the_same_everywhere) {
  for_all(5, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    using Key = typename KeyOf<T>::type;
    const int of = static_cast<int>(random.between(0, 2) == 0 ? 4 : random.between(1, 32)),
              keep = static_cast<int>(random.between(1, of));
    n = n / of * of;
    const Heap<Key> all = keys_of(drawn<T>(random, n, mix), NanRank::low);
    const Heap<Key> keys(n);
    std::copy(all.data(), all.data() + n, keys.data());
    same_everywhere<T>("keep_n_of_m", n, [&](const TypedKernels<T>& table) {
      Heap<std::uint8_t> bits((n + 7) / 8);
      std::fill(bits.data(), bits.data() + bits.size(), std::uint8_t{0xFF});
      CHECK(table.keep_n_of_m(keys.data(), n, keep, of, bits.data()) == n / of * keep);
      for (std::int64_t i = 0; i < n; ++i) {
        int before = 0;
        for (std::int64_t j = i / of * of; j < i / of * of + of; ++j)
          before += keys[j] > keys[i] || (keys[j] == keys[i] && j < i);
        CHECK(bit(bits, i) == (before < keep));
      }
      for (std::int64_t i = n; i < 8 * bits.size(); ++i) CHECK(!bit(bits, i));
      return bits;
    });
  });
}

TEST(masks_are_applied_and_compressed_alike) {
  for_all(6, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    const Heap<T> w = drawn<T>(random, n, mix);
    const Heap<std::uint8_t> bits = random_bits(random, n);
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < n; ++i) kept += bit(bits, i);
    same_everywhere<T>("apply", n, [&](const TypedKernels<T>& table) {
      Heap<T> out(n);
      table.apply(w.data(), bits.data(), out.data(), n);
      const T nothing{0};
      for (std::int64_t i = 0; i < n; ++i)
        CHECK(std::memcmp(&out[i], bit(bits, i) ? &w[i] : &nothing, sizeof(T)) == 0);  // a dropped -0 or NaN is +0
      Heap<T> in_place(n);
      std::copy(w.data(), w.data() + n, in_place.data());
      table.apply(in_place.data(), bits.data(), in_place.data(), n);
      CHECK(same_bits(out, in_place));
      return out;
    });
    same_everywhere<T>("nonzero", n, [&](const TypedKernels<T>& table) {
      Heap<std::uint8_t> out((n + 7) / 8);
      table.nonzero(w.data(), out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) CHECK(bit(out, i) == !(w[i] == 0));
      return out;
    });
    same_everywhere<T>("compress", n, [&](const TypedKernels<T>& table) {
      Heap<T> values(kept);
      CHECK(table.compress(w.data(), bits.data(), n, values.data()) == kept);
      std::int64_t at = 0;
      for (std::int64_t i = 0; i < n; ++i)
        if (bit(bits, i)) CHECK(std::memcmp(&values[at++], &w[i], sizeof(T)) == 0);
      return values;
    });
  });
}

TEST(adjustments_and_statistics_are_the_same_everywhere) {
  for_all(7, [](auto zero, std::int64_t n, Random& random, Mix mix) {
    using T = decltype(zero);
    const Mix finite = mix == Mix::wild ? Mix::plain : mix;
    const Heap<T> w = drawn<T>(random, n, finite), s = drawn<T>(random, n, finite);
    const T rate = static_cast<T>(0.1), center = static_cast<T>(0.3), spread = static_cast<T>(1.7);
    same_everywhere<T>("adjust_sign", n, [&](const TypedKernels<T>& table) {
      Heap<T> out(n);
      table.adjust_sign(w.data(), s.data(), rate, out.data(), n);
      for (std::int64_t i = 0; i < n; ++i) CHECK(out[i] == w[i] - rate * static_cast<T>((s[i] > 0) - (s[i] < 0)));
      return out;
    });
    same_everywhere<T>("adjust_scale", n, [&](const TypedKernels<T>& table) {
      Heap<T> out(n);
      std::copy(w.data(), w.data() + n, out.data());
      table.adjust_scale(out.data(), s.data(), rate, center, spread, out.data(), n);  // in place
      for (std::int64_t i = 0; i < n; ++i) {
        volatile T t = s[i] - center;  // volatile: every step rounds, whatever this file is compiled with
        t = t / spread;
        t = rate * t;
        t = T{1} + t;
        t = w[i] * t;
        CHECK(out[i] == t);
      }
      return out;
    });
    const Heap<double> start = drawn<double>(random, n, Mix::plain);
    same_everywhere<T>("add_squares", n, [&](const TypedKernels<T>& table) {
      Heap<double> sums(n);
      std::copy(start.data(), start.data() + n, sums.data());
      table.add_squares(w.data(), sums.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        volatile double product = static_cast<double>(w[i]) * static_cast<double>(w[i]);
        CHECK(sums[i] == start[i] + product);
      }
      return sums;
    });
    same_everywhere<T>("subtract_products", n, [&](const TypedKernels<T>& table) {
      Heap<double> sums(n);
      std::copy(start.data(), start.data() + n, sums.data());
      table.subtract_products(w.data(), s.data(), sums.data(), n);
      for (std::int64_t i = 0; i < n; ++i) {
        volatile double product = static_cast<double>(s[i]) * static_cast<double>(w[i]);
        CHECK(sums[i] == start[i] - product);
      }
      return sums;
    });
  });
}

TEST(bitmasks_are_within_rounding_and_read_nothing_beyond) {
  Random random(10);
  const auto run = [&](auto zero, auto stored_zero, const Isa& isa, std::int64_t rows, std::int64_t cols) {
    using T = decltype(zero);
    using S = decltype(stored_zero);
    const TypedKernels<T>& table = isa.kernels->typed(zero);
    const Heap<std::uint8_t> mask(rows * row_bytes(cols));
    std::fill(mask.data(), mask.data() + rows * row_bytes(cols), std::uint8_t{0});
    const Heap<std::int64_t> indptr(rows + 1);
    std::vector<std::int64_t> columns;
    indptr[0] = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c)
        if (random.below(2) != 0 || r % 5 == 2) {
          columns.push_back(c);
          set_bit(mask.data() + r * row_bytes(cols), c);
        }
      indptr[r + 1] = static_cast<std::int64_t>(columns.size());
    }
    const auto nnz = static_cast<std::int64_t>(columns.size());
    const Heap<T> wide = drawn<T>(random, nnz, Mix::plain);
    const Heap<S> values(nnz);
    for (std::int64_t i = 0; i < nnz; ++i) values[i] = convert<S>(wide[i]);
    const std::int64_t stride = (cols + table.columns - 1) / table.columns * table.columns;
    for (int n = 1; n <= TypedKernels<T>::max_vectors; ++n)
      for (const bool finite : {false, true}) {
        Heap<T> x = drawn<T>(random, n * stride, Mix::plain);
        for (int j = 0; j < n; ++j) std::fill(x.data() + j * stride + cols, x.data() + (j + 1) * stride, T{0});
        const Heap<T> y(n * rows);
        table.bitmask[static_cast<int>(storage_of(dtype_of<S>))][finite][n](
            mask.data(), row_bytes(cols), cols, indptr.data(), values.data(), nnz, 0, rows, x.data(), stride, y.data());
        for (std::int64_t r = 0; r < rows; ++r)
          for (int j = 0; j < n; ++j) {
            double exact = 0, magnitude = 0;
            for (std::int64_t i = indptr[r]; i < indptr[r + 1]; ++i) {
              const double product = static_cast<double>(convert<T>(values[i])) *
                                     static_cast<double>(x[j * stride + columns[static_cast<std::size_t>(i)]]);
              exact += product;
              magnitude += std::abs(product);
            }
            CHECK(close(y[j * rows + r], exact, magnitude), "bitmask %s n=%d cols=%lld", isa.name, n, ll(cols));
          }
      }
  };
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    for (const std::int64_t cols : {1, 3, 7, 8, 9, 15, 17, 63, 64, 65, 130, 700})
      for (const std::int64_t rows : {1, 4}) {
        run(float{}, float{}, isa, rows, cols);
        run(float{}, Half{}, isa, rows, cols);
        run(float{}, BFloat{}, isa, rows, cols);
        run(double{}, double{}, isa, rows, cols);
      }
  }
}

TEST(panels_are_within_rounding_on_every_table) {
  Random random(9);
  // Every `height` rows keep the same columns.
  const auto run = [&](auto zero, const Isa& isa, std::int64_t rows, std::int64_t cols, unsigned kept_of_16,
                       std::int64_t height) {
    using T = decltype(zero);
    const TypedKernels<T>& table = isa.kernels->typed(zero);
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(rows * row_bytes(cols)));
    std::vector<std::int64_t> indptr{0}, columns;
    std::vector<bool> kept(static_cast<std::size_t>(cols));
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) {
        if (r % height == 0) kept[static_cast<std::size_t>(c)] = random.below(16) < kept_of_16;
        if (kept[static_cast<std::size_t>(c)]) {
          columns.push_back(c);
          set_bit(mask.data() + r * row_bytes(cols), c);
        }
      }
      indptr.push_back(static_cast<std::int64_t>(columns.size()));
    }
    const auto nnz = static_cast<std::int64_t>(columns.size());
    const PanelPattern panels(mask.data(), rows, cols);
    // Rows that keep half of the columns share loads: alone, each value would have a column of its own.
    if (kept_of_16 == 8 && rows > 100 && cols > 1000)
      CHECK(panels.nbytes() < nnz * 85 / 100, "%lld bytes for %lld values", ll(panels.nbytes()), ll(nnz));
    CHECK(panels.nnz() == nnz, "panels of %lld x %lld", ll(rows), ll(cols));
    const Heap<T> values = drawn<T>(random, nnz, Mix::plain), packed(panels.room()), back(nnz);
    constexpr DType dtype = sizeof(T) == 4 ? DType::float32 : DType::float64;
    panels.pack(indptr.data(), dtype, values.data(), packed.data());
    panels.unpack(indptr.data(), dtype, packed.data(), back.data());
    CHECK(std::equal(values.data(), values.data() + nnz, back.data()), "values keep their places");
    for (int shape = 0; shape <= table.panel_shapes; ++shape) {
      const std::int64_t width = shape == 0 ? table.columns / 2 : shape * table.columns;
      // A row of zeros after each block.
      Heap<T> x = drawn<T>(random, (cols + panels.blocks()) * width, Mix::plain);
      for (std::int64_t block = 0; block < panels.blocks(); ++block) {
        const std::int64_t end = std::min(cols, (block + 1) * panel_depth) + block;
        std::fill(x.data() + end * width, x.data() + (end + 1) * width, T{0});
      }
      for (std::int64_t chunk = 0; chunk < panels.chunks(); ++chunk) {
        const Heap<T> y(max_chunk_rows * width);
        for (std::int64_t b = 0; b < panels.blocks(); ++b) {
          const PanelPattern::Block block = panels.block(chunk, b);
          for (const Panel* panel = block.panels; panel != block.panels + block.count; ++panel)
            CHECK(height % 4 != 0 || panel->in_pairs + panel->alone == 0, "rows that keep the same columns share them");
          table.panel[0][shape](block.panels, block.count, block.columns, packed.data() + block.place,
                                x.data() + b * (panel_depth + 1) * width, b > 0, y.data());
        }
        for (std::int64_t r = panels.first_row(chunk); r < panels.first_row(chunk + 1); ++r)
          for (std::int64_t j = 0; j < width; ++j) {
            double exact = 0, magnitude = 0;
            for (std::int64_t i = indptr[static_cast<std::size_t>(r)]; i < indptr[static_cast<std::size_t>(r) + 1];
                 ++i) {
              const std::int64_t column = columns[static_cast<std::size_t>(i)], at = column + column / panel_depth;
              const double product = static_cast<double>(values[i]) * static_cast<double>(x[at * width + j]);
              exact += product;
              magnitude += std::abs(product);
            }
            CHECK(close(y[(r - panels.first_row(chunk)) * width + j], exact, magnitude), "panel %s shape=%d", isa.name,
                  shape);
          }
      }
    }
  };
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    for (const std::int64_t cols : {1, 7, 64, 65, 1100, 4500})
      for (const std::int64_t rows : {1, 4, 6, 131})
        for (const unsigned kept : {0u, 1u, 8u, 16u}) {
          if (rows * cols > 200'000) continue;
          for (const std::int64_t height : {1, 8}) {
            run(float{}, isa, rows, cols, kept, height);
            run(double{}, isa, rows, cols, kept, height);
          }
        }
  }
}

TEST(products_are_within_rounding_on_every_table) {
  Random random(8);
  const auto run = [&](auto zero, auto index_zero, const Isa& isa, int shape, std::int64_t rows, std::int64_t cols) {
    using T = decltype(zero);
    using Index = decltype(index_zero);
    const TypedKernels<T>& table = isa.kernels->typed(zero);
    const std::int64_t width = shape == 0 ? 1 : shape * table.columns;
    std::vector<std::int64_t> starts{0}, columns;
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c)
        if (random.below(3) != 0 && r % 5 != 3) columns.push_back(c);
      starts.push_back(static_cast<std::int64_t>(columns.size()));
    }
    const auto nnz = static_cast<std::int64_t>(columns.size());
    const Heap<std::int64_t> indptr(rows + 1);
    std::copy(starts.begin(), starts.end(), indptr.data());
    const Heap<Index> indices(nnz);
    for (std::int64_t i = 0; i < nnz; ++i) indices[i] = static_cast<Index>(columns[static_cast<std::size_t>(i)]);
    const Heap<T> values = drawn<T>(random, nnz, Mix::plain), x = drawn<T>(random, cols * width, Mix::plain);
    const std::int64_t first = rows > 3 ? 1 : 0, last = rows > 3 ? rows - 1 : rows;
    const Heap<T> y((last - first) * width);
    table.spmm[0][sizeof(Index) / 4 - 1][shape](indptr.data(), indices.data(), values.data(), first, last, x.data(),
                                                y.data());
    for (std::int64_t r = first; r < last; ++r)
      for (std::int64_t j = 0; j < width; ++j) {
        double exact = 0, magnitude = 0;
        for (std::int64_t i = indptr[r]; i < indptr[r + 1]; ++i) {
          const double product = static_cast<double>(values[i]) *
                                 static_cast<double>(x[static_cast<std::int64_t>(indices[i]) * width + j]);
          exact += product;
          magnitude += std::abs(product);
        }
        CHECK(close(y[(r - first) * width + j], exact, magnitude), "spmm %s shape=%d", isa.name, shape);
      }
  };
  for (const Isa& isa : isas()) {
    if (!isa.supported) continue;
    for (int shape = 0; shape <= TypedKernels<float>::max_shape; ++shape)
      for (const std::int64_t cols : {0, 1, 2, 3, 4, 5, 9, 17, 600})
        for (const std::int64_t rows : {0, 1, 6}) {
          run(float{}, std::int32_t{}, isa, shape, rows, cols);
          run(float{}, std::int64_t{}, isa, shape, rows, cols);
          run(double{}, std::int32_t{}, isa, shape, rows, cols);
          run(double{}, std::int64_t{}, isa, shape, rows, cols);
        }
  }
}

TEST(sampled_products_on_every_table) {
  Random random(11);
  const auto run = [&](auto zero, auto index, std::int64_t n) {
    using T = decltype(zero);
    using Index = decltype(index);
    const std::int64_t rows = 5, stride = n + 3;
    const Heap<T> x = drawn<T>(random, n, Mix::plain), y = drawn<T>(random, rows * stride - 3, Mix::plain);
    const Index indices[] = {0, 2, 4};
    for (const Isa& isa : isas()) {
      if (!isa.supported) continue;
      for (const bool add : {false, true}) {
        T out[] = {T{1}, T{2}, T{3}};
        isa.kernels->typed(zero).sddmm[sizeof(Index) == 8](x.data(), y.data(), stride, indices, 3, n, add, out);
        for (int i = 0; i < 3; ++i) {
          double exact = add ? i + 1 : 0, magnitude = exact;
          for (std::int64_t j = 0; j < n; ++j) {
            const double product = static_cast<double>(x[j]) * static_cast<double>(y[indices[i] * stride + j]);
            exact += product;
            magnitude += std::abs(product);
          }
          CHECK(close(out[i], exact, magnitude), "sddmm %s n=%d", isa.name, static_cast<int>(n));
        }
      }
    }
  };
  for (std::int64_t n = 1; n <= TypedKernels<float>::sddmm_part; ++n) run(float{}, std::int32_t{}, n);
  for (std::int64_t n = 1; n <= TypedKernels<double>::sddmm_part; ++n) run(double{}, std::int64_t{}, n);
}

TEST(activations_and_their_slopes_on_every_table) {
  const auto activate = [](double x, Act act) {
    const double c = std::sqrt(2 / std::acos(-1.0));
    switch (act) {
      case Act::relu: return x > 0 ? x : 0.0;
      case Act::gelu: return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
      case Act::gelu_tanh: return 0.5 * x * (1 + std::tanh(c * (x + 0.044715 * x * x * x)));
      case Act::silu: return x / (1 + std::exp(-x));
      case Act::sigmoid: return 1 / (1 + std::exp(-x));
      case Act::tanh: return std::tanh(x);
      default: return x;
    }
  };
  Random random(9);
  const auto run = [&](auto zero, const Isa& isa, std::int64_t n, Act act) {
    using T = decltype(zero);
    const TypedKernels<T>& table = isa.kernels->typed(zero);
    const T bias = static_cast<T>(0.25);
    Heap<T> x(n), y(n), dy(n), dz(n);
    for (std::int64_t i = 0; i < n; ++i) {
      x[i] = y[i] = static_cast<T>(8 * random.unit() - 4);
      dy[i] = static_cast<T>(random.unit());
    }
    table.epilogue(y.data(), n, bias, act);
    table.activation_grad(x.data(), dy.data(), dz.data(), n, act);
    for (std::int64_t i = 0; i < n; ++i) {
      const double z = static_cast<double>(x[i] + bias), at = static_cast<double>(x[i]), h = 1e-5;
      CHECK(close(y[i], activate(z, act), 4.0), "%s %d", isa.name, static_cast<int>(act));
      const double slope = (activate(at + h, act) - activate(at - h, act)) / (2 * h);
      if (std::abs(at) > h) CHECK(std::abs(static_cast<double>(dz[i]) - slope * static_cast<double>(dy[i])) < 1e-5);
    }
  };
  for (const Isa& isa : isas())
    for (int act = 0; isa.supported && act < static_cast<int>(Act::count); ++act)
      for (const std::int64_t n : {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 100}) {
        run(float{}, isa, n, static_cast<Act>(act));
        run(double{}, isa, n, static_cast<Act>(act));
      }
  for (const Isa& isa : isas()) {  // what overflows on the way must not show
    if (!isa.supported) continue;
    for (const Act act : {Act::silu, Act::sigmoid, Act::tanh, Act::gelu_tanh, Act::gelu, Act::relu}) {
      Heap<float> y(2);
      y[0] = 1e4f;
      y[1] = -1e4f;
      isa.kernels->f32.epilogue(y.data(), 2, 0.0f, act);
      const bool bounded = act == Act::sigmoid || act == Act::tanh;
      CHECK(y[0] == (bounded ? 1.0f : 1e4f), "%s %d %g", isa.name, static_cast<int>(act), static_cast<double>(y[0]));
      CHECK(y[1] == (act == Act::tanh ? -1.0f : 0.0f), "%s %d %g", isa.name, static_cast<int>(act),
            static_cast<double>(y[1]));
    }
  }
}

RUN_TESTS()
