// SPDX-License-Identifier: Apache-2.0
// One row of X stays in the L1 cache while the rows of Y that the pattern names pass it. Y is taken a block of rows at
// a time, which stays in the L2 cache while a chunk of the rows of X passes in turn; both are packed first where their
// rows are not contiguous, as when the activations of a layer come in as [batch, features].
#include "ops/sddmm.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/dispatch.hpp"
#include "core/lines.hpp"
#include "core/parallel.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t block_bytes = 1 << 19;  // of Y
constexpr std::int64_t most_rows = 128;        // of X in a chunk, but where they are little work
constexpr std::int64_t square = 16;            // rows and columns that are transposed together: a cache line of floats

// from [square][from_stride] transposed to [square][to_stride]: four by four in registers.
template <class T>
void transpose_square(const T* from, std::int64_t from_stride, T* to, std::int64_t to_stride) {
  using Vector [[gnu::vector_size(4 * sizeof(T))]] = T;
  for (std::int64_t i = 0; i < square; i += 4)
    for (std::int64_t j = 0; j < square; j += 4) {
      Vector a, b, c, d;
      const T* at = from + i * from_stride + j;
      std::memcpy(&a, at, sizeof a);
      std::memcpy(&b, at + from_stride, sizeof b);
      std::memcpy(&c, at + 2 * from_stride, sizeof c);
      std::memcpy(&d, at + 3 * from_stride, sizeof d);
      const Vector ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5), bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5),
                   ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7),
                   bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
      const Vector rows[4] = {
          __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5), __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7),
          __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5), __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7)};
      for (int r = 0; r < 4; ++r) std::memcpy(to + (j + r) * to_stride + i, &rows[r], sizeof rows[r]);
    }
}

// The rows of a matrix as contiguous T, where they lie or packed. A packed row begins at a cache line and is filled up
// with zeros to whole ones if it is longer than one.
template <class T>
class Rows {
 public:
  explicit Rows(const Array& array) : cols_(array.cols()), stride_(cols_) {
    if (array.empty()) return;
    data_ = array.direct<T>(0, 0);
    if (data_ != nullptr) {
      stride_ = array.row_stride() / static_cast<std::int64_t>(sizeof(T));
      return;
    }
    constexpr std::int64_t line = 64 / sizeof(T);
    if (cols_ > line) stride_ = (cols_ + line - 1) / line * line;
    data_ = packed_.at_least(static_cast<std::size_t>(array.rows() * stride_));
    const bool turned = array.can_transpose() && array.transposed().direct<T>(0, 0) != nullptr;
    for_rows((array.rows() + square - 1) / square, square * cols_, [&](std::int64_t part) {
      const std::int64_t first = part * square, last = std::min(array.rows(), first + square);
      T* const to = packed_.data();
      std::int64_t done = 0;
      if (turned && last - first == square) {
        const Array from = array.transposed();
        for (; done + square <= cols_; done += square)
          transpose_square(from.direct<T>(done, first), from.row_stride() / static_cast<std::int64_t>(sizeof(T)),
                           to + first * stride_ + done, stride_);
      }
      for (std::int64_t r = first; r < last; ++r) {
        T* const rest = to + r * stride_ + done;
        const T* values = array.load(r, done, cols_ - done, rest);
        if (values != rest) std::copy(values, values + cols_ - done, rest);
        std::fill(rest + cols_ - done, to + (r + 1) * stride_, T{0});
      }
    });
  }
  const T* operator[](std::int64_t row) const { return data_ + row * stride_; }
  const T* data() const { return data_; }
  std::int64_t stride() const { return stride_; }
  bool packed() const { return packed_.data() != nullptr; }

 private:
  std::int64_t cols_, stride_;
  const T* data_ = nullptr;
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
    const std::int64_t k = left.packed() && right.packed() ? left.stride() : x.cols();
    const std::int64_t work = k * (1 + p.nnz() / p.rows);  // of a row
    const std::int64_t rows =
        std::max({std::int64_t{1}, 8 * chunk_size / work, std::min(most_rows, p.rows / 16)});
    const std::int64_t block = std::max<std::int64_t>(16, block_bytes / (k * static_cast<std::int64_t>(sizeof(T))));
    const auto kernel = kernels<T>().sddmm[p.wide];
    with_indices(p, [&](const auto* indices) {
      const auto multiply = [&](std::int64_t row, std::int64_t begin, std::int64_t end) {
        if (begin != end) kernel(left[row], right.data(), right.stride(), indices + begin, end - begin, k, out + begin);
      };
      parallel_for((p.rows + rows - 1) / rows, [&](std::int64_t chunk) {
        const std::int64_t first = chunk * rows, last = std::min(p.rows, first + rows);
        if (p.cols <= block) {
          for (std::int64_t r = first; r < last; ++r) multiply(r, p.indptr[r], p.indptr[r + 1]);
          return;
        }
        std::vector<std::int64_t> next(p.indptr + first, p.indptr + last);
        for (std::int64_t beyond = block; beyond < p.cols + block; beyond += block)
          for (std::int64_t r = first; r < last; ++r) {
            std::int64_t& begin = next[static_cast<std::size_t>(r - first)];
            const std::int64_t end =
                std::lower_bound(indices + begin, indices + p.indptr[r + 1], beyond) - indices;
            multiply(r, begin, end);
            begin = end;
          }
      });
    });
  });
}

}  // namespace gossamer
