// SPDX-License-Identifier: Apache-2.0
#include "ops/sddmm.hpp"

#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

// The rows of a matrix as contiguous T.
template <class T>
class Rows {
 public:
  explicit Rows(const Array& array) : array_(array) {
    if (array.empty() || array.direct<T>(0, 0) != nullptr) return;
    packed_.resize(static_cast<std::size_t>(array.size()));
    const std::int64_t rows = array.rows(), cols = array.cols();
    if (array.can_transpose() && array.transposed().direct<T>(0, 0) != nullptr) {
      // 32 x 32 blocks: both sides of the transpose stay in the cache.
      const Array t = array.transposed();
      parallel_for((rows + 31) / 32, [&](std::int64_t block) {
        for (std::int64_t c = 0; c < cols; c += 32)
          for (std::int64_t j = c; j < std::min(cols, c + 32); ++j) {
            const T* from = t.direct<T>(j, 0);
            for (std::int64_t i = block * 32; i < std::min(rows, block * 32 + 32); ++i)
              packed_[static_cast<std::size_t>(i * cols + j)] = from[i];
          }
      });
      return;
    }
    parallel_for(rows, [&](std::int64_t r) {
      T* to = packed_.data() + r * cols;
      const T* from = array.load(r, 0, cols, to);
      if (from != to) std::copy(from, from + cols, to);
    });
  }
  const T* operator[](std::int64_t row) const {
    return packed_.empty() ? array_.direct<T>(row, 0) : packed_.data() + row * array_.cols();
  }

 private:
  const Array& array_;
  std::vector<T> packed_;
};

}  // namespace

void sddmm(const char* function, const Array& x, const Array& y, const CsrPattern& p, DType dtype, void* values) {
  if (x.cols() != y.cols())
    value_error(format("%s: x and y must have as many columns, got the shapes %s and %s", function,
                       x.shape_text().c_str(), y.shape_text().c_str()));
  if (x.rows() != p.rows || y.rows() != p.cols)
    value_error(format("%s: pattern must have the shape %s of x @ y.T, got %s", function,
                       shape_text(x.rows(), y.rows()).c_str(), shape_text(p.rows, p.cols).c_str()));
  const std::int64_t k = x.cols();
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = static_cast<T*>(values);
    if (k == 0) {
      std::fill(out, out + p.nnz(), T{0});
      return;
    }
    const Rows<T> left(x), right(y);
    const std::int64_t step =
        std::max<std::int64_t>(1, chunk_size * 8 / (1 + k * (p.nnz() / std::max<std::int64_t>(1, p.rows))));
    with_indices(p, [&](const auto* indices) {
      parallel_for((p.rows + step - 1) / step, [&](std::int64_t chunk) {
        for (std::int64_t r = chunk * step; r < std::min(p.rows, (chunk + 1) * step); ++r)
          for (std::int64_t i = p.indptr[r]; i < p.indptr[r + 1]; ++i)
            out[i] = kernels<T>().dot(left[r], right[indices[i]], k);
      });
    });
  });
}

}  // namespace gossamer
