// SPDX-License-Identifier: Apache-2.0
// CSR structures: from masks, checked, transposed; and the values of masks. indptr [rows + 1] is int64; column indices
// are int32 or int64 and sorted within a row; values are in row-major order.
#pragma once
#include <cstdint>
#include <limits>

#include "core/array.hpp"

namespace gossamer {

struct CsrPattern {
  std::int64_t rows = 0, cols = 0;
  const std::int64_t* indptr = nullptr;
  const void* indices = nullptr;
  bool wide = false;  // int64 indices

  std::int64_t nnz() const { return indptr[rows]; }
};

// Whether the indices of so many columns need 64 bits.
inline bool needs_wide(std::int64_t cols) { return cols > std::numeric_limits<std::int32_t>::max(); }

// Calls f with a typed pointer to the indices.
template <class F>
decltype(auto) with_indices(const CsrPattern& p, F&& f) {
  if (p.wide) return f(static_cast<const std::int64_t*>(p.indices));
  return f(static_cast<const std::int32_t*>(p.indices));
}

// Everything that a kernel relies on. `stored` is the number of indices that there are.
void check_csr(const char* function, const CsrPattern& pattern, std::int64_t stored);

void mask_to_indptr(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t* indptr);
void mask_to_indices(const std::uint8_t* mask, const CsrPattern& pattern, void* indices);
void mask_to_values(const Array& weights, const std::uint8_t* mask, const std::int64_t* indptr, void* values);
void pattern_to_mask(const CsrPattern& pattern, std::uint8_t* mask);
// out [rows, cols], contiguous: 0 where nothing is kept. Any dtype of values.
void values_to_dense(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, const std::int64_t* indptr,
                     DType dtype, const void* values, void* out);
// t_indptr [cols + 1]; t_indices and order [nnz]: value i of the transpose is value order[i] of the matrix.
void transpose(const CsrPattern& pattern, std::int64_t* t_indptr, void* t_indices, bool t_wide, std::int64_t* order);
// out[i] = values[order[i]] for n of them, of any dtype.
void gather(DType dtype, const void* values, const std::int64_t* order, std::int64_t n, void* out);

}  // namespace gossamer
