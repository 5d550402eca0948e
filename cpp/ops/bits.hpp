// SPDX-License-Identifier: Apache-2.0
// Packed rows of bits, little-endian.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>

namespace gossamer {

inline bool bit(const std::uint8_t* bits, std::int64_t i) { return (bits[i / 8] >> (i % 8) & 1) != 0; }
inline void set_bit(std::uint8_t* bits, std::int64_t i) {
  bits[i / 8] = static_cast<std::uint8_t>(bits[i / 8] | 1 << (i % 8));
}

inline std::int64_t count_bits(const std::uint8_t* bits, std::int64_t bytes) {
  std::int64_t count = 0, i = 0;
  for (; i + 8 <= bytes; i += 8) {
    std::uint64_t word;
    std::memcpy(&word, bits + i, 8);
    count += std::popcount(word);
  }
  for (; i < bytes; ++i) count += std::popcount(bits[i]);
  return count;
}

// f(byte index, mask of the bits of [begin, end) in that byte)
template <class F>
void for_range_bytes(std::int64_t begin, std::int64_t end, F&& f) {
  while (begin < end) {
    const std::int64_t byte = begin / 8, stop = end < (byte + 1) * 8 ? end : (byte + 1) * 8;
    f(byte, static_cast<std::uint8_t>(((1u << (stop - begin)) - 1) << (begin % 8)));
    begin = stop;
  }
}

inline void set_range(std::uint8_t* bits, std::int64_t begin, std::int64_t end) {
  for_range_bytes(begin, end,
                  [&](std::int64_t b, std::uint8_t mask) { bits[b] = static_cast<std::uint8_t>(bits[b] | mask); });
}

inline bool all_set(const std::uint8_t* bits, std::int64_t begin, std::int64_t end) {
  bool all = true;
  for_range_bytes(begin, end, [&](std::int64_t b, std::uint8_t mask) { all = all && (bits[b] & mask) == mask; });
  return all;
}

}  // namespace gossamer
