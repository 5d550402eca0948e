// SPDX-License-Identifier: Apache-2.0
// Masks on a tile of values that begins at a byte border of the mask. Kernel text, included once by each isa/*.cpp.
namespace gossamer {
namespace {

template <class T>
inline bool is_nonzero(T x) {
  return x != T{0};
}
inline bool is_nonzero(Half x) { return (x.bits & 0x7FFF) != 0; }

template <class T>
void apply(const T* w, const std::uint8_t* bits, T* out, std::int64_t n) {
  using V = typename Simd<T>::V;
  std::int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    std::uint64_t word;
    __builtin_memcpy(&word, bits + i / 8, 8);
    for (int j = 0; j < 64; j += V::lanes)
      Store(KeepBits(static_cast<unsigned>(word >> j), Load<V>(w + i + j)), out + i + j);
  }
  for (; i < n; ++i) out[i] = (bits[i / 8] >> (i % 8) & 1) != 0 ? w[i] : T{};
}

template <class T>
void nonzero(const T* w, std::uint8_t* bits, std::int64_t n) {
  using V = typename Simd<T>::V;
  std::int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    std::uint64_t word = 0;
    for (int j = 0; j < 64; j += V::lanes) word |= std::uint64_t{NonZero(Load<V>(w + i + j))} << j;
    store_bits(word, 64, bits + i / 8);
  }
  std::uint64_t word = 0;
  for (std::int64_t j = i; j < n; ++j) word |= std::uint64_t{is_nonzero(w[j])} << (j - i);
  store_bits(word, n - i, bits + i / 8);
}

// Every number is stored, and the place goes on past those that are kept: a branch for each would often be
// mispredicted. As long as eight more are to come, that is, so that nothing is written past the last one.
template <class T>
std::int64_t compress(const T* w, const std::uint8_t* bits, std::int64_t n, T* values) {
  std::int64_t total = 0, kept = 0, i = 0;
  for (std::int64_t b = 0, bytes = (n + 7) / 8; b < bytes; b += 8) {
    std::uint64_t word = 0;
    __builtin_memcpy(&word, bits + b, static_cast<std::size_t>(bytes - b < 8 ? bytes - b : 8));
    total += __builtin_popcountll(word);
  }
  for (; kept + 8 <= total; i += 8) {
    const unsigned byte = bits[i / 8];
    GOSSAMER_UNROLL for (int k = 0; k < 8; ++k) {
      values[kept] = w[i + k];
      kept += byte >> k & 1;
    }
  }
  for (; i < n; i += 8)
    for (unsigned byte = bits[i / 8]; byte != 0; byte &= byte - 1) values[kept++] = w[i + __builtin_ctz(byte)];
  return kept;
}

}  // namespace
}  // namespace gossamer
