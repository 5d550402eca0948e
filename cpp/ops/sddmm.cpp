// SPDX-License-Identifier: Apache-2.0
// A part of a row of X meets the same part of the rows of Y that the pattern names. Rows of Y are taken a block at a
// time, whose part stays in the L2 cache while the rows of X of a chunk pass. Both are packed first, part by part,
// where their rows are not contiguous, as when the activations of a layer come in as [batch, features].
#include "ops/sddmm.hpp"

#include <algorithm>
#include <vector>

#include "core/dispatch.hpp"
#include "core/lines.hpp"
#include "core/parallel.hpp"
#include "ops/tiles.hpp"
#include "ops/transpose.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t block_rows = 512;  // of Y: half a megabyte
constexpr std::int64_t most_rows = 128;   // of X in a chunk, but where they are little work

// The rows of a matrix in parts of contiguous T, where they lie or packed. A packed part begins at a cache line and is
// filled up with zeros to whole ones; those of all rows lie together.
template <class T>
class Rows {
 public:
  static constexpr std::int64_t part = TypedKernels<T>::sddmm_part;

  explicit Rows(const Array& array) : stride_(part), next_part_(part) {
    if (const T* direct = array.direct<T>(0, 0)) {
      data_ = direct;
      stride_ = array.row_stride() / static_cast<std::int64_t>(sizeof(T));
      return;
    }
    const std::int64_t cols = array.cols();
    if (cols < part) stride_ = whole_lines(cols);
    next_part_ = array.rows() * stride_;
    T* const to = packed_.at_least(static_cast<std::size_t>(next_part_ * ((cols + part - 1) / part)));
    data_ = to;
    const bool turned = array.can_transpose() && array.transposed().direct<T>(0, 0) != nullptr;
    for_rows((array.rows() + square - 1) / square, square * cols, [&](std::int64_t group) {
      const std::int64_t first = group * square, last = std::min(array.rows(), first + square);
      for (std::int64_t begin = 0; begin < cols; begin += part) {
        const std::int64_t n = std::min(part, cols - begin);
        T* const at = to + begin / part * next_part_ + first * stride_;
        std::int64_t done = 0;
        if (turned && last - first == square) {
          const Array from = array.transposed();
          const std::int64_t from_stride = from.row_stride() / static_cast<std::int64_t>(sizeof(T));
          done = n / square * square;
          transpose(from.direct<T>(begin, first), done, square, from_stride, at, stride_);
        }
        for (std::int64_t r = first; r < last; ++r) {
          T* const rest = at + (r - first) * stride_ + done;
          const T* values = array.load(r, begin + done, n - done, rest);
          if (values != rest) std::copy(values, values + n - done, rest);
          std::fill(rest + n - done, rest + std::min(stride_, whole_lines(n)) - done, T{0});
        }
      }
    });
  }

  const T* at(std::int64_t row, std::int64_t begin) const { return data_ + begin / part * next_part_ + row * stride_; }
  std::int64_t stride() const { return stride_; }
  bool packed() const { return packed_.data() != nullptr; }

  // A few elements are not worth a line.
  static std::int64_t whole_lines(std::int64_t n) {
    constexpr std::int64_t line = 64 / sizeof(T);
    return n < line ? n : (n + line - 1) / line * line;
  }

 private:
  std::int64_t stride_, next_part_;
  const T* data_;
  Lines<T> packed_;
};

}  // namespace

void sddmm(const char* function, const Array& x, const Array& y, const CsrPattern& p, DType dtype, void* values) {
  if (x.cols() != y.cols())
    value_error(format("%s: x and y must have as many columns, got the shapes %s and %s", function,
                       x.shape_text().c_str(), y.shape_text().c_str()));
  if (x.rows() != p.rows || y.rows() != p.cols)
    value_error(format("%s: pattern must have the shape %s of x @ y.T, got %s", function,
                       shape_text(x.rows(), y.rows()).c_str(), shape_text(p.rows, p.cols).c_str()));
  dispatch(dtype, [&](auto zero) {
    using T = decltype(zero);
    T* out = static_cast<T*>(values);
    if (x.cols() == 0 || p.nnz() == 0) {
      std::fill(out, out + p.nnz(), T{0});
      return;
    }
    const Rows<T> left(x), right(y);
    const bool filled = left.packed() && right.packed();
    const std::int64_t k = x.cols(), part = Rows<T>::part;
    const std::int64_t work = k * (1 + p.nnz() / p.rows);  // of a row
    const std::int64_t rows = std::max({std::int64_t{1}, 8 * chunk_size / work, std::min(most_rows, p.rows / 16)});
    const auto kernel = kernels<T>().sddmm[p.wide];
    with_indices(p, [&](const auto* indices) {
      parallel_for((p.rows + rows - 1) / rows, [&](std::int64_t chunk) {
        const std::int64_t first = chunk * rows, last = std::min(p.rows, first + rows);
        std::vector<std::int64_t> begins(p.indptr + first, p.indptr + last), ends(begins);
        for (std::int64_t block = 0; block < p.cols; block += block_rows) {
          for (std::int64_t r = 0; r < last - first; ++r) {
            const auto* beyond = indices + p.indptr[first + r + 1];
            std::int64_t& end = ends[static_cast<std::size_t>(r)];
            begins[static_cast<std::size_t>(r)] = end;
            end = block + block_rows >= p.cols ? beyond - indices
                                               : std::lower_bound(indices + end, beyond, block + block_rows) - indices;
          }
          for (std::int64_t begin = 0; begin < k; begin += part) {
            const std::int64_t here = std::min(part, k - begin), n = filled ? Rows<T>::whole_lines(here) : here;
            for (std::int64_t r = 0; r < last - first; ++r) {
              const std::int64_t i = begins[static_cast<std::size_t>(r)], end = ends[static_cast<std::size_t>(r)];
              if (i == end) continue;
              kernel(left.at(first + r, begin), right.at(0, begin), right.stride(), indices + i, end - i, n, begin > 0,
                     out + i);
            }
          }
        }
      });
    });
  });
}

}  // namespace gossamer
