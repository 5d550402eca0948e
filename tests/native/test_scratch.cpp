// SPDX-License-Identifier: Apache-2.0
// What selection allocates beside the mask, counted by operator new: at most 3 % of 8 bytes an element, and the 2 MB
// that matter to small tensors only.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <new>
#include <vector>

#include "check.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/select.hpp"
#include "random.hpp"

namespace {

std::atomic<std::int64_t> held{0}, peak{0};

// The size stands in front of the memory, in as many bytes as it has to be aligned to.
void* counted(std::size_t size, std::size_t alignment) {
  void* block = std::aligned_alloc(alignment, (size + 2 * alignment - 1) / alignment * alignment);
  if (block == nullptr) throw std::bad_alloc();
  *static_cast<std::size_t*>(block) = size;
  const std::int64_t now = held += static_cast<std::int64_t>(size);
  for (std::int64_t before = peak; before < now && !peak.compare_exchange_weak(before, now);) {
  }
  return static_cast<char*>(block) + alignment;
}
void forget(void* memory, std::size_t alignment) noexcept {
  if (memory == nullptr) return;
  void* const block = static_cast<char*>(memory) - alignment;
  held -= static_cast<std::int64_t>(*static_cast<std::size_t*>(block));
  std::free(block);
}
constexpr std::size_t usual = __STDCPP_DEFAULT_NEW_ALIGNMENT__;

}  // namespace

void* operator new(std::size_t size) { return counted(size, usual); }
void* operator new(std::size_t size, std::align_val_t a) { return counted(size, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { forget(p, usual); }
void operator delete(void* p, std::size_t) noexcept { forget(p, usual); }
void operator delete(void* p, std::align_val_t a) noexcept { forget(p, static_cast<std::size_t>(a)); }
void operator delete(void* p, std::size_t, std::align_val_t a) noexcept { forget(p, static_cast<std::size_t>(a)); }

using namespace gossamer;

namespace {

constexpr std::int64_t n = 10 << 20;

template <class T>
void select_in_bounds(const char* what, double parameter, std::vector<T>& scores) {
  std::vector<std::uint8_t> mask(n / 8);
  const std::int64_t shape[] = {n};
  for (const double sparsity : {0.05, 0.5, 0.9}) {
    Selection how;
    how.sparsity = sparsity;
    std::vector<SelectTensor> tensors(1);
    tensors[0].source.weights =
        Array(scores.data(), sizeof(T) == 8 ? DType::float64 : DType::float32, 1, shape, nullptr, "test: x");
    tensors[0].mask = mask.data();
    const std::int64_t before = held;
    peak = before;
    select("test", tensors, how);
    const double taken = static_cast<double>(peak - before) / (0.24 * n + (2 << 20));
    CHECK(taken <= 1, "%s %g, sparsity %g, %zu bytes a score: %.2f of what is allowed", what, parameter, sparsity,
          sizeof(T), taken);
    CHECK(count_bits(mask.data(), n / 8) == kept_count(n, sparsity));
  }
}

// x in [0, 1), uniform
template <class T>
void all_kinds(bool sorted) {
  Random random(1);
  std::vector<T> x(n), y(n);
  for (T& score : x) score = static_cast<T>(random.unit());
  if (sorted) std::sort(x.begin(), x.end());
  select_in_bounds(sorted ? "sorted" : "shuffled", 0, x);
  for (const double share : {0.001, 0.01, 0.02, 0.03, 0.06, 0.2, 0.5}) {  // as many equal each of the thresholds
    const auto tie = [&](T score) {
      for (const double threshold : {0.05, 0.5, 0.9})
        if (std::abs(score - threshold) < share / 2) return static_cast<T>(threshold);
      return score;
    };
    std::transform(x.begin(), x.end(), y.begin(), tie);
    select_in_bounds(sorted ? "sorted, ties" : "ties", share, y);
  }
  for (const double levels : {2, 16, 64, 100, 256, 1000, 4096, 65536}) {
    std::transform(x.begin(), x.end(), y.begin(), [&](T score) { return static_cast<T>(std::floor(score * levels)); });
    select_in_bounds(sorted ? "sorted, levels" : "levels", levels, y);
  }
}

}  // namespace

TEST(selection_takes_no_more_memory_than_it_may) {
  set_num_threads(2);
  for (const bool sorted : {false, true}) {
    all_kinds<float>(sorted);
    all_kinds<double>(sorted);
  }
}

RUN_TESTS()
