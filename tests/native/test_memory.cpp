// SPDX-License-Identifier: Apache-2.0
// Every allocation of a call through the C ABI fails once: the status says so, the result is not set, nothing leaks and
// nothing is broken afterwards.
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "check.hpp"
#include "gossamer/gossamer.h"

namespace {

std::atomic<int> until_failure{-1};  // allocations; negative: none fails
std::atomic<int> held{0};

void* allocate(std::size_t size, std::size_t border) {
  if (until_failure >= 0 && until_failure-- == 0) throw std::bad_alloc();
  void* const room = std::aligned_alloc(border, (size / border + 1) * border);
  if (room == nullptr) throw std::bad_alloc();
  ++held;
  return room;
}
void give_back(void* room) noexcept {
  if (room != nullptr) --held;
  std::free(room);
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t border) {
  return allocate(size, static_cast<std::size_t>(border));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  try {
    return operator new(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
void operator delete(void* room) noexcept { give_back(room); }
void operator delete(void* room, std::size_t) noexcept { give_back(room); }
void operator delete(void* room, std::align_val_t) noexcept { give_back(room); }
void operator delete(void* room, std::size_t, std::align_val_t) noexcept { give_back(room); }

namespace {

// Calls f until no allocation is left that could fail; `undone` undoes a success.
template <class F, class Undo>
void fails_everywhere(const char* what, F&& f, Undo&& undo) {
  CHECK(f() == GOSSAMER_OK, "%s", what);  // what is made once for the process is made
  undo();
  gossamer_set_num_threads(0);  // and so is room for a message
  for (int n = 0;; ++n) {
    CHECK(n < 10000, "%s", what);
    const int before = held;
    until_failure = n;
    const gossamer_status status = f();
    const bool over = until_failure >= 0;
    until_failure = -1;
    const bool done = status == GOSSAMER_OK;
    CHECK(done || (status == GOSSAMER_ERROR_MEMORY && std::strstr(gossamer_last_error(), "out of memory") != nullptr),
          "%s: allocation %d gives %d, %s", what, n, static_cast<int>(status), gossamer_last_error());
    if (done) undo();
    CHECK(held == before, "%s: allocation %d: %d blocks before, %d after", what, n, before, held.load());
    if (over || n >= 10000) return;
  }
}

constexpr std::int64_t shape[] = {24, 40}, in_shape[] = {5, 40}, out_shape[] = {5, 24};
constexpr const char* path = "test_memory.safetensors";

}  // namespace

TEST(every_allocation_fails_once) {
  CHECK(gossamer_set_num_threads(1) == GOSSAMER_OK);
  std::vector<float> w(24 * 40), x(5 * 40, 1), y(5 * 24), b(24, 2);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = i % 4 < 2 ? 0.0f : static_cast<float>(i % 7);
  const gossamer_array weights{w.data(), GOSSAMER_FLOAT32, 2, shape, nullptr};
  const gossamer_array in{x.data(), GOSSAMER_FLOAT32, 2, in_shape, nullptr};
  const gossamer_array out{y.data(), GOSSAMER_FLOAT32, 2, out_shape, nullptr};
  for (const char* format : {"auto", "csr", "bitmask", "panel", "2:4", "bsr:1x1"}) {
    for (const std::int32_t dtype : {-1, static_cast<std::int32_t>(GOSSAMER_INT8)}) {
      gossamer_matrix* a = nullptr;
      const auto make = [&] {
        const gossamer_status status = gossamer_matrix_from_dense(&weights, nullptr, format, dtype, &a);
        CHECK((a != nullptr) == (status == GOSSAMER_OK));
        return status;
      };
      const auto free = [&] { gossamer_matrix_free(std::exchange(a, nullptr)); };
      fails_everywhere("from_dense", make, free);
      // A fresh matrix each time: a product makes its packs, and keeps those that it could make.
      fails_everywhere(
          "linear",
          [&] {
            const int failing = until_failure.exchange(-1);
            if (make() != GOSSAMER_OK) return GOSSAMER_ERROR_RUNTIME;
            until_failure = failing;
            const gossamer_status status = gossamer_linear(a, &in, nullptr, &out);
            const int left = until_failure.exchange(-1);
            free();
            until_failure = left;
            return status;
          },
          [] {});
      CHECK(make() == GOSSAMER_OK);
      gossamer_matrix* other = nullptr;
      fails_everywhere(
          "transposed",
          [&] {
            const gossamer_status status = gossamer_matrix_transposed(a, &other);
            CHECK((other != nullptr) == (status == GOSSAMER_OK));
            return status;
          },
          [&] { gossamer_matrix_free(std::exchange(other, nullptr)); });
      gossamer_saved saved{};
      saved.name = "a name that is too long to be held without memory";
      saved.matrix = a;
      fails_everywhere(
          "save", [&] { return gossamer_save(path, &saved, 1); }, [] {});
      free();
      gossamer_file* file = nullptr;
      fails_everywhere(
          "file_open",
          [&] {
            const gossamer_status status = gossamer_file_open(path, &file);
            CHECK((file != nullptr) == (status == GOSSAMER_OK));
            return status;
          },
          [&] { gossamer_file_free(std::exchange(file, nullptr)); });
      CHECK(gossamer_file_open(path, &file) == GOSSAMER_OK);
      fails_everywhere(
          "file_read_matrix", [&] { return gossamer_file_read_matrix(file, saved.name, nullptr, &a); }, free);
      gossamer_file_free(file);
    }
  }
  std::remove(path);
}

TEST(pruning_without_memory_changes_no_mask) {
  CHECK(gossamer_set_num_threads(1) == GOSSAMER_OK);
  std::vector<float> w(24 * 40);
  for (std::size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(i * 37 % 101);
  const gossamer_array weights{w.data(), GOSSAMER_FLOAT32, 2, shape, nullptr};
  std::vector<std::uint8_t> mask(24 * 5, 0xA5), untouched = mask;
  gossamer_tensor tensor{};
  tensor.weights = &weights;
  tensor.mask = mask.data();
  gossamer_selection how{};
  how.sparsity = 0.5;
  for (const char* method : {"magnitude", "lamp", "fpgm"})
    for (const char* group : {"tensor", "row", "global"}) {
      how.group = group;
      fails_everywhere(
          method,
          [&] {
            const gossamer_status status = gossamer_prune(method, &tensor, 1, 0, &how);
            CHECK(status == GOSSAMER_OK ? tensor.nnz == 480 : tensor.nnz == 0 && mask == untouched);
            return status;
          },
          [&] {
            mask.assign(mask.size(), 0xA5);
            tensor.nnz = 0;
          });
    }
}

RUN_TESTS()
