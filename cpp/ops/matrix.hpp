// SPDX-License-Identifier: Apache-2.0
// A sparse matrix that owns its parts, for callers without Python. Immutable: any number of threads may use one. What
// is derived from the structure is made when first asked for and kept.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/array.hpp"
#include "core/lines.hpp"
#include "ops/compress.hpp"
#include "ops/matmul.hpp"
#include "ops/panel.hpp"

namespace gossamer {

// Made once, by whoever is first: of two threads that make it at the same time one's is thrown away. No lock, which a
// forked child could find taken.
template <class T>
class Lazy {
 public:
  Lazy() = default;
  explicit Lazy(std::unique_ptr<const T> made) : made_(made.release()) {}
  ~Lazy() { delete made_.load(); }
  Lazy(const Lazy&) = delete;
  Lazy& operator=(const Lazy&) = delete;

  // Before others can see this.
  void set(std::unique_ptr<const T> made) { made_.store(made.release()); }

  const T* peek() const { return made_.load(std::memory_order_acquire); }
  template <class Make>
  const T& get(Make&& make) const {
    if (const T* made = peek()) return *made;
    auto fresh = std::make_unique<const T>(make());
    const T* made = nullptr;
    if (made_.compare_exchange_strong(made, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
    return *made;
  }

 private:
  mutable std::atomic<const T*> made_{nullptr};
};

// Which positions are kept.
class Structure {
 public:
  struct Transposed;

  // From a packed mask (bytes of it, padding zero), from CSR indices that are taken over, and from a copy of CSR's; all
  // have been checked.
  Structure(std::int64_t rows, std::int64_t cols, std::unique_ptr<const std::vector<std::uint8_t>> mask);
  Structure(std::int64_t rows, std::int64_t cols, std::vector<std::int64_t> indptr,
            std::unique_ptr<const Lines<std::byte>> indices);
  explicit Structure(const CsrPattern& pattern);

  const std::int64_t rows, cols;
  std::int64_t nnz() const { return indptr_.back(); }
  const std::int64_t* indptr() const { return indptr_.data(); }
  bool wide() const { return needs_wide(cols); }
  const std::uint8_t* mask() const;
  CsrPattern csr() const;
  const PanelPattern& panels() const;
  const Transposed& transposed() const;
  std::int64_t nbytes() const;

 private:
  std::vector<std::int64_t> indptr_;
  Lazy<std::vector<std::uint8_t>> mask_;
  Lazy<Lines<std::byte>> indices_;
  Lazy<PanelPattern> panels_;
  Lazy<Transposed> transposed_;
};

// Value i of the transpose is value order[i] of the matrix.
struct Structure::Transposed {
  std::shared_ptr<const Structure> structure;
  std::vector<std::int64_t> order;
};

// Elements that lie one after the other, row by row, to an array of the same shape and dtype.
void copy_rows(const void* from, const Array& out);

// rows * ceil(cols / 8); throws where there is no such memory.
std::int64_t packed_size(std::int64_t rows, std::int64_t cols);

class Matrix {
 public:
  // Values [nnz], a vector in row-major order, as `dtype`; int8 rounds floats, or needs the scales of int8 values.
  Matrix(const char* function, const char* argument, std::shared_ptr<const Structure> structure, const Array& values,
         DType dtype, const float* scales, const std::string& asked);
  // What `mask` keeps of w, or what is not zero.
  // The mask has been checked.
  static std::unique_ptr<Matrix> from_dense(const char* function, const Array& w, const std::uint8_t* mask, DType dtype,
                                            const std::string& asked);

  const Structure& structure() const { return *structure_; }
  const std::shared_ptr<const Structure>& shared_structure() const { return structure_; }
  std::int64_t rows() const { return structure_->rows; }
  std::int64_t cols() const { return structure_->cols; }
  std::int64_t nnz() const { return structure_->nnz(); }
  DType dtype() const { return dtype_; }
  const std::string& asked() const { return asked_; }  // of the formats of gossamer.h, N:M as found
  const float* scales() const { return scales_.empty() ? nullptr : scales_.data(); }
  std::int64_t nbytes() const;

  // In row-major order, [nnz] of dtype().
  void copy_values(void* values) const;
  void to_dense(const char* function, const Array& out) const;
  std::unique_ptr<Matrix> with_values(const char* function, const Array& values) const;
  std::unique_ptr<Matrix> transposed(const char* function) const;

  // As matmul_csr of ops/matmul.hpp; the epilogue's scales are this matrix's.
  void multiply(const char* function, const Array& x, bool linear, Epilogue epilogue, const Array& out) const;

 private:
  enum class Kernel { csr, bitmask, panel };
  Kernel kernel(std::int64_t columns) const;
  const void* panel_values() const;
  // In row-major order, times their scales; in `room` where they have to be made.
  const void* floats(Lines<std::byte>& room) const;

  std::shared_ptr<const Structure> structure_;
  DType dtype_;
  std::string asked_;
  std::vector<float> scales_;
  std::unique_ptr<const Lines<std::byte>> values_;  // in row-major order; null where the format is "panel"
  Lazy<Lines<std::byte>> panel_values_;
};

}  // namespace gossamer
