// SPDX-License-Identifier: Apache-2.0
// Test data from fixed seeds, and buffers of exactly the size asked for, so that AddressSanitizer sees any overrun.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>

struct Random {
  std::uint64_t state;
  explicit Random(std::uint64_t seed) : state(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n)); }
  std::int64_t between(std::int64_t low, std::int64_t high) { return low + below(high - low + 1); }
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
};

// What a score may be. ties: few values, both zeros; wild: NaN, infinities, denormals too.
enum class Mix { plain, ties, wild, wild_without_nan };

template <class T>
T draw(Random& random, Mix mix) {
  const double u = 2 * random.unit() - 1;
  if (mix == Mix::ties) {
    const std::int64_t k = random.between(-2, 2);
    return k == 0 && random.below(2) != 0 ? -T{0} : static_cast<T>(k);
  }
  if (mix != Mix::plain) {
    const T special[] = {std::numeric_limits<T>::infinity(),
                         -std::numeric_limits<T>::infinity(),
                         std::numeric_limits<T>::denorm_min(),
                         -std::numeric_limits<T>::denorm_min(),
                         std::numeric_limits<T>::max(),
                         std::numeric_limits<T>::lowest(),
                         T{0},
                         -T{0},
                         T{1},
                         std::numeric_limits<T>::quiet_NaN(),
                         -std::numeric_limits<T>::quiet_NaN()};
    const std::int64_t at = random.below(40);
    if (at < (mix == Mix::wild ? 11 : 9)) return special[at];
  }
  return static_cast<T>(u);
}

template <class T>
class Heap {
 public:
  explicit Heap(std::int64_t n) : data_(new T[static_cast<std::size_t>(n)]()), size_(n) {}
  T* data() const { return data_.get(); }
  T& operator[](std::int64_t i) const { return data_[static_cast<std::size_t>(i)]; }
  std::int64_t size() const { return size_; }

 private:
  std::unique_ptr<T[]> data_;
  std::int64_t size_;
};

template <class T>
Heap<T> drawn(Random& random, std::int64_t n, Mix mix) {
  Heap<T> values(n);
  for (std::int64_t i = 0; i < n; ++i) values[i] = draw<T>(random, mix);
  return values;
}
