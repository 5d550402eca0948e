// SPDX-License-Identifier: Apache-2.0
// Selection over a tile of order-preserving keys (see core/table.hpp). Kernel text, included once by each isa/*.cpp.
namespace gossamer {
namespace {

template <class Key>
inline Key key_excluded() {
  return static_cast<Key>(Key{1} << (sizeof(Key) * 8 - 1));
}
template <class Key>
inline Key key_nan(NanRank rank) {
  return rank == NanRank::low ? static_cast<Key>(key_excluded<Key>() + 1) : static_cast<Key>(~key_excluded<Key>());
}

// Writes the low n bits (or all 64) of a word, in whole bytes.
inline void store_bits(std::uint64_t word, std::int64_t n, std::uint8_t* bits) {
  if (n >= 64) {
    __builtin_memcpy(bits, &word, 8);
  } else {
    for (std::int64_t b = 0; b * 8 < n; ++b) bits[b] = static_cast<std::uint8_t>(word >> (b * 8));
  }
}

template <class T>
std::int64_t keys(const T* scores, std::int64_t n, NanRank rank, typename KeyOf<T>::type* out) {
  using V = typename Simd<T>::V;
  using Key = typename V::Key;
  const V zero = Set<V>(T{0});
  std::int64_t first_nan = n, i = 0;
  const auto mend = [&](unsigned nan, std::int64_t at, Key* tile) {
    if (first_nan == n) first_nan = at + __builtin_ctz(nan);
    for (; nan != 0; nan &= nan - 1) tile[__builtin_ctz(nan)] = key_nan<Key>(rank);
  };
  for (; i + V::lanes <= n; i += V::lanes) {
    const V s = Add(Load<V>(scores + i), zero);  // -0 + 0 = +0
    StoreKey(OrderKey(s), out + i);
    if (const unsigned nan = IsNaN(s); __builtin_expect(nan != 0, 0)) mend(nan, i, out + i);
  }
  if (i < n) {
    T tail[V::lanes] = {};
    Key tail_keys[V::lanes];
    for (std::int64_t j = i; j < n; ++j) tail[j - i] = scores[j];
    const V s = Add(Load<V>(tail), zero);
    StoreKey(OrderKey(s), tail_keys);
    if (const unsigned nan = IsNaN(s); nan != 0) mend(nan, i, tail_keys);
    for (; i < n; ++i) out[i] = tail_keys[i % V::lanes];
  }
  for (; i % 64 != 0; ++i) out[i] = key_excluded<Key>();
  return first_nan;
}

template <class Key>
void exclude(const std::uint8_t* allowed, std::int64_t n, Key* key) {
  for (std::int64_t i = 0; i < n; ++i) key[i] = (allowed[i / 8] >> (i % 8) & 1) != 0 ? key[i] : key_excluded<Key>();
}

// Counts the keys whose bits above shift + 16 equal `prefix` in bins of the 16 bits from `shift` on.
template <class Key, class Unsigned>
void histogram(const Key* key, std::int64_t n, int shift, std::uint64_t prefix, std::uint32_t* bins) {
  const bool all = shift + 16 == static_cast<int>(sizeof(Key) * 8);
  for (std::int64_t i = 0; i < n; ++i) {
    const Unsigned u = static_cast<Unsigned>(key[i]) ^ static_cast<Unsigned>(key_excluded<Key>());
    const Unsigned digit = static_cast<Unsigned>(u >> shift);
    if (all || (digit >> 16) == static_cast<Unsigned>(prefix)) ++bins[digit & 0xFFFF];
  }
}

// A bit for every key above `top`; positions of the keys in [bottom, top] go to `open`. bottom > key_excluded.
template <class T>
std::int64_t mark(const typename KeyOf<T>::type* key, std::int64_t n, typename KeyOf<T>::type top,
                  typename KeyOf<T>::type bottom, std::uint8_t* bits, std::uint32_t* open, std::int64_t* open_count) {
  using V = typename Simd<T>::V;
  const auto above = SetKey<V>(top);
  const auto below = SetKey<V>(bottom - 1);
  std::int64_t kept = 0, found = 0;
  for (std::int64_t i = 0; i < n; i += 64) {
    std::uint64_t sure = 0, candidates = 0;
    for (int j = 0; j < 64; j += V::lanes) {
      const auto k = LoadKey<V>(key + i + j);
      sure |= std::uint64_t{Greater(k, above)} << j;
      candidates |= std::uint64_t{Greater(k, below)} << j;
    }
    store_bits(sure, n - i, bits + i / 8);
    kept += __builtin_popcountll(sure);
    for (candidates &= ~sure; candidates != 0; candidates &= candidates - 1)
      open[found++] = static_cast<std::uint32_t>(i + __builtin_ctzll(candidates));
  }
  *open_count = found;
  return kept;
}

// The hardware's own prefetch stops at page borders and lets a stream that computes this much wait: two threads over
// 16.7 M float32 took 0.9 ms without and 0.55 ms with it (a plain read: 0.4 ms). Any distance from 8 to 32 KiB will do.
template <class X>
inline void prefetch_group(const X* x) {
  GOSSAMER_UNROLL
  for (int line = 0; line < static_cast<int>(sizeof(X)); ++line)
    __builtin_prefetch(reinterpret_cast<const char*>(x) + (16 << 10) + 64 * line);
}

// The bits of `allowed` for the group of 64 that begins at i.
inline std::uint64_t allowed_word(const std::uint8_t* allowed, std::int64_t i, std::int64_t n) {
  std::uint64_t word = 0;
  if (n - i >= 64)
    __builtin_memcpy(&word, allowed + i / 8, 8);
  else  // no memcpy of some bytes: where it is a call, vectors wait on the stack for it
    for (std::int64_t b = 0; 8 * b < n - i; ++b) word |= std::uint64_t{allowed[i / 8 + b]} << 8 * b;
  return word;
}

// write(at, bit) for the bits that are set, `at` counting on from `found`; -> the count after them. Two are always
// written and then counted or not: with a loop alone, every open score cost two mispredictions.
template <class Write>
inline std::int64_t write_open(std::uint64_t maybe, std::int64_t found, Write&& write) {
  constexpr std::uint64_t last = std::uint64_t{1} << 63;
  std::uint64_t others = maybe & (maybe - 1);
  write(found, __builtin_ctzll(maybe | last));
  write(found + 1, __builtin_ctzll(others | last));
  const int count = __builtin_popcountll(maybe);
  if (__builtin_expect(count > 2, 0)) {
    std::int64_t at = found + 2;
    for (others &= others - 1; others != 0; others &= others - 1) write(at++, __builtin_ctzll(others));
  }
  return found + count;
}

// The one-pass kernel: scores in registers, a bit for every score above `high`; the scores in [low, high] are open:
// counted, and unless `open` is null their positions and values written there, with room for two more than there are.
// NaN is counted apart and kept or not as `keep_nan` says. Positions that `allowed` (null: all) leaves out get no bit
// and are not open, but their NaN counts. The inputs are read in whole groups of 64; the last, partial one is copied
// first.
template <class C, class T, class W>
std::int64_t stream(const TileInputs<T>& in, const std::uint8_t* allowed, std::int64_t n, T high, T low, bool keep_nan,
                    std::uint8_t* bits, T* values, std::uint32_t* open, StreamCounts* counts) {
  using V = typename Simd<T>::V;
  constexpr bool reads_a = C::inputs > 1, reads_b = C::inputs > 2;
  const W* w = static_cast<const W*>(in.w);
  const V r = Set<V>(in.r);
  const V above = Set<V>(high), below = Set<V>(low);
  std::int64_t kept = 0, found = 0, nans = 0;
  alignas(64) T group[64], tail_a[64], tail_b[64];
  alignas(64) W tail_w[64];
  for (std::int64_t i = 0; i < n; i += 64) {
    const W* gw = w + i;
    const T *ga = reads_a ? in.a + i : nullptr, *gb = reads_b ? in.b + i : nullptr;
    std::uint64_t valid = ~std::uint64_t{0};
    if (n - i < 64) {
      for (std::int64_t j = 0; j < 64; ++j) {
        tail_w[j] = i + j < n ? gw[j] : W{};
        if constexpr (reads_a) tail_a[j] = i + j < n ? ga[j] : T{0};
        if constexpr (reads_b) tail_b[j] = i + j < n ? gb[j] : T{0};
      }
      gw = tail_w;
      ga = tail_a;
      gb = tail_b;
      valid >>= 64 - (n - i);
    }
    prefetch_group(gw);
    if constexpr (C::pairs) prefetch_group(ga);
    std::uint64_t sure = 0, lower = 0;
    GOSSAMER_UNROLL
    for (int j = 0; j < 64; j += V::lanes) {
      const V score = C::apply(LoadAs<V>(gw + j), load_input<V, reads_a>(ga, j), load_input<V, reads_b>(gb, j), r);
      Store(score, group + j);
      sure |= std::uint64_t{Greater(score, above)} << j;
      lower |= std::uint64_t{Less(score, below)} << j;
    }
    std::uint64_t maybe = ~(sure | lower) & valid;  // NaN is neither above nor below
    sure &= valid;
    if (allowed != nullptr) {
      const std::uint64_t mask = allowed_word(allowed, i, n);
      sure &= mask;
      for (std::uint64_t out = maybe & ~mask; out != 0; out &= out - 1)
        nans += group[__builtin_ctzll(out)] != group[__builtin_ctzll(out)];
      maybe &= mask;
    }
    if (open == nullptr) {
      std::uint64_t nan = 0;
      if (maybe != 0)
        for (int j = 0; j < 64; j += V::lanes) nan |= std::uint64_t{IsNaN(Load<V>(group + j))} << j;
      nan &= maybe;
      nans += __builtin_popcountll(nan);
      found += __builtin_popcountll(maybe & ~nan);
      if (keep_nan) sure |= nan;
    } else {
      found = write_open(maybe, found, [&](std::int64_t at, int j) {
        values[at] = group[j];
        open[at] = static_cast<std::uint32_t>(i + j);
      });
    }
    store_bits(sure, n - i, bits + i / 8);
    kept += __builtin_popcountll(sure);
  }
  if (open != nullptr) {  // NaN is neither above nor below: take it out
    bool any = false;
    for (std::int64_t k = 0; k < found; ++k) any |= values[k] != values[k];
    if (any) {
      const std::int64_t all = found;
      found = 0;
      for (std::int64_t k = 0; k < all; ++k) {
        const T value = values[k];
        const std::uint32_t at = open[k];
        if (value != value) {
          ++nans;
          if (!keep_nan) continue;
          bits[at / 8] = static_cast<std::uint8_t>(bits[at / 8] | 1 << (at % 8));
          ++kept;
        } else {
          values[found] = value;
          open[found++] = at;
        }
      }
    }
  }
  counts->open = found;
  counts->nan = nans;
  return kept;
}

template <class W>
constexpr int infinity_16 = 0;
template <>
constexpr int infinity_16<Half> = 0x7C00;
template <>
constexpr int infinity_16<BFloat> = 0x7F80;

template <class W>
inline float widened(int bits) {
  const W w{static_cast<std::uint16_t>(bits)};
  float value[Simd<float>::V::lanes];
  W tile[Simd<float>::V::lanes] = {w};
  Store(LoadAs<typename Simd<float>::V>(tile), value);
  return value[0];
}

// The bits of the largest W that is not above |x|.
inline int floor_bits(float x, BFloat) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return static_cast<int>(bits >> 16 & 0x7FFF);
}
inline int floor_bits(float x, Half) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits &= 0x7FFFFFFF;
  if (bits >= 0x7F800000) return 0x7C00;
  if (bits >= 0x47800000) return 0x7BFF;                                           // 65536 and more
  if (bits < 0x38800000) return static_cast<int>((x < 0 ? -x : x) * 16777216.0f);  // below 2^-14: multiples of 2^-24
  return static_cast<int>((bits - 0x38000000) >> 13);
}

// The highest key of a W that is not above x, and the lowest of one that is not below.
template <class W>
inline int floor_key(float x) {
  const int size = floor_bits(x, W{});
  return x < 0 ? -(size + (widened<W>(size) != -x)) : size;
}
template <class W>
inline int ceil_key(float x) {
  return -floor_key<W>(-x);
}

// stream() where the score has 16 bits, as the weights have: 32 of them are compared at once, as integers. NaN lies
// beyond the infinities; if there is one, the general kernel does it all again.
template <class C, class W>
std::int64_t stream_16(const TileInputs<float>& in, const std::uint8_t* allowed, std::int64_t n, float high, float low,
                       bool keep_nan, std::uint8_t* bits, float* values, std::uint32_t* open, StreamCounts* counts) {
  const W* w = static_cast<const W*>(in.w);
  const K16 above = Set16(floor_key<W>(high)), below = Set16(ceil_key<W>(low));
  K16 largest = Set16(0);
  std::int64_t kept = 0, found = 0;
  alignas(64) W tail[64];
  for (std::int64_t i = 0; i < n; i += 64) {
    const W* group = w + i;
    std::uint64_t valid = ~std::uint64_t{0};
    if (n - i < 64) {
      for (std::int64_t j = 0; j < 64; ++j) tail[j] = i + j < n ? group[j] : W{};
      group = tail;
      valid >>= 64 - (n - i);
    }
    prefetch_group(group);
    std::uint64_t sure = 0, lower = 0;
    GOSSAMER_UNROLL
    for (int j = 0; j < 64; j += K16::lanes) {
      const K16 x = Load16(group + j), key = C::key_16(x);
      largest = Max16(largest, Magnitude16(x));
      sure |= std::uint64_t{Greater(key, above)} << j;
      lower |= std::uint64_t{Greater(below, key)} << j;
    }
    std::uint64_t maybe = ~(sure | lower) & valid;
    sure &= valid;
    if (allowed != nullptr) {
      const std::uint64_t mask = allowed_word(allowed, i, n);
      sure &= mask;
      maybe &= mask;
    }
    found = open == nullptr ? found + __builtin_popcountll(maybe)
                            : write_open(maybe, found,
                                         [&](std::int64_t at, int j) { open[at] = static_cast<std::uint32_t>(i + j); });
    store_bits(sure, n - i, bits + i / 8);
    kept += __builtin_popcountll(sure);
  }
  if (Greater(largest, Set16(infinity_16<W>)) != 0)
    return stream<C, float, W>(in, allowed, n, high, low, keep_nan, bits, values, open, counts);
  using V = typename Simd<float>::V;
  for (std::int64_t k = 0; open != nullptr && k < found; k += V::lanes) {
    W tile[V::lanes] = {};
    float scores[V::lanes];
    const int count = found - k < V::lanes ? static_cast<int>(found - k) : V::lanes;
    for (int j = 0; j < count; ++j) tile[j] = w[open[k + j]];
    const V score = LoadAs<V>(tile);
    Store(C::apply(score, score, score, score), scores);
    for (int j = 0; j < count; ++j) values[k + j] = scores[j];
  }
  counts->open = found;
  counts->nan = 0;
  return kept;
}

// A bit for every key above `threshold` and for the first *quota keys equal to it; *quota falls by those used.
template <class T>
std::int64_t mark_ties(const typename KeyOf<T>::type* key, std::int64_t n, typename KeyOf<T>::type threshold,
                       std::int64_t* quota, std::uint8_t* bits) {
  using V = typename Simd<T>::V;
  const auto t = SetKey<V>(threshold);
  std::int64_t kept = 0, left = *quota;
  for (std::int64_t i = 0; i < n; i += 64) {
    std::uint64_t sure = 0, ties = 0;
    for (int j = 0; j < 64; j += V::lanes) {
      const auto k = LoadKey<V>(key + i + j);
      sure |= std::uint64_t{Greater(k, t)} << j;
      ties |= std::uint64_t{Equal(k, t)} << j;
    }
    std::int64_t count = __builtin_popcountll(ties);
    if (count > left) {
      std::uint64_t first = 0;
      for (std::int64_t q = 0; q < left; ++q, ties &= ties - 1) first |= ties & (~ties + 1);
      ties = first;
      count = left;
    }
    left -= count;
    sure |= ties;
    store_bits(sure, n - i, bits + i / 8);
    kept += __builtin_popcountll(sure);
  }
  *quota = left;
  return kept;
}

// Bits of the keys that come before lane i of a group of four as lane (i + r) % 4: where they are larger, or equal and
// earlier.
template <class V, int r>
std::uint64_t before_in_four(const typename V::Key* key) {
  std::uint64_t larger = 0, equal = 0;
  for (int j = 0; j < 64; j += V::lanes) {
    const auto k = LoadKey<V>(key + j), other = RotateFour<r>(k);
    larger |= std::uint64_t{Greater(other, k)} << j;
    equal |= std::uint64_t{Equal(other, k)} << j;
  }
  constexpr std::uint64_t earlier = (std::uint64_t{0xF} << (4 - r) & 0xF) * 0x1111'1111'1111'1111;
  return larger | (equal & earlier);
}

// Keeps `keep` of every four consecutive keys, 64 at a time.
template <class V>
void keep_n_of_four(const typename V::Key* key, std::int64_t n, int keep, std::uint8_t* bits) {
  for (std::int64_t i = 0; i < n; i += 64) {
    typename V::Key rest[64] = {};
    const typename V::Key* from = key + i;
    if (n - i < 64) {
      for (std::int64_t j = 0; j < n - i; ++j) rest[j] = from[j];
      from = rest;
    }
    const std::uint64_t a = before_in_four<V, 1>(from), b = before_in_four<V, 2>(from), c = before_in_four<V, 3>(from);
    const std::uint64_t dropped = keep == 1 ? a | b | c : keep == 2 ? (a & b) | (c & (a | b)) : a & b & c;
    const std::uint64_t inside = n - i < 64 ? (std::uint64_t{1} << (n - i)) - 1 : ~std::uint64_t{0};
    store_bits(~dropped & inside, n - i, bits + i / 8);
  }
}

// Keeps `keep` of every `of` consecutive keys: those that fewer than `keep` others of the window come before. Windows
// are turned on their side, 64 at a time, so that the comparisons run over vectors of windows.
template <class T>
std::int64_t keep_n_of_m(const typename KeyOf<T>::type* key, std::int64_t n, int keep, int of, std::uint8_t* bits) {
  using V = typename Simd<T>::V;
  using Key = typename V::Key;
  if constexpr (V::lanes >= 4)
    if (of == 4 && 0 < keep && keep < 4) {
      keep_n_of_four<V>(key, n, keep, bits);
      return n / of * keep;
    }
  constexpr int batch = 64;
  Key turned[32][batch] = {};
  for (std::int64_t b = 0; b < (n + 7) / 8; ++b) bits[b] = 0;
  for (std::int64_t first = 0; first < n; first += static_cast<std::int64_t>(batch) * of) {
    const std::int64_t left = (n - first) / of;
    const int windows = left < batch ? static_cast<int>(left) : batch;
    for (int i = 0; i < of; ++i)
      for (int w = 0; w < windows; ++w) turned[i][w] = key[first + static_cast<std::int64_t>(w) * of + i];
    for (int i = 0; i < of; ++i) {
      Key before[batch] = {};
      for (int j = 0; j < i; ++j)
        for (int w = 0; w < batch; ++w) before[w] += turned[j][w] >= turned[i][w];
      for (int j = i + 1; j < of; ++j)
        for (int w = 0; w < batch; ++w) before[w] += turned[j][w] > turned[i][w];
      std::int64_t at = first + i;
      for (int w = 0; w < windows; ++w, at += of)
        bits[at / 8] = static_cast<std::uint8_t>(bits[at / 8] | ((before[w] < keep) << (at % 8)));
    }
  }
  return n / of * keep;
}

}  // namespace
}  // namespace gossamer
