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

template <class T>
std::int64_t count_equal(const typename KeyOf<T>::type* key, std::int64_t n, typename KeyOf<T>::type wanted) {
  using V = typename Simd<T>::V;
  const auto w = SetKey<V>(wanted);
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < n; i += 64) {
    std::uint64_t equal = 0;
    for (int j = 0; j < 64; j += V::lanes) equal |= std::uint64_t{Equal(LoadKey<V>(key + i + j), w)} << j;
    count += __builtin_popcountll(equal);
  }
  return count;
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

// Keeps `keep` of every `of` consecutive keys: those that fewer than `keep` others of the window come before.
template <class Key>
std::int64_t keep_n_of_m(const Key* key, std::int64_t n, int keep, int of, std::uint8_t* bits) {
  for (std::int64_t b = 0; b < (n + 7) / 8; ++b) bits[b] = 0;
  for (std::int64_t first = 0; first < n; first += of) {
    const Key* window = key + first;
    for (int i = 0; i < of; ++i) {
      int before = 0;
      for (int j = 0; j < i; ++j) before += window[j] >= window[i];
      for (int j = i + 1; j < of; ++j) before += window[j] > window[i];
      const std::int64_t at = first + i;
      bits[at / 8] = static_cast<std::uint8_t>(bits[at / 8] | ((before < keep) << (at % 8)));
    }
  }
  return n / of * keep;
}

}  // namespace
}  // namespace gossamer
