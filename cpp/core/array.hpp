// SPDX-License-Identifier: Apache-2.0
// A strided array seen as the matrix [rows, cols]: [shape[0], rest], a vector as one row. It owns nothing and never
// copies; kernels get contiguous tiles from load() and give them back through store().
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "core/dispatch.hpp"
#include "core/dtype.hpp"

namespace gossamer {

class Array {
 public:
  static constexpr int max_dims = 64;

  Array() = default;

  // strides in bytes, nullptr for C order. `what` is "function: argument" for messages.
  Array(void* data, DType dtype, int ndim, const std::int64_t* shape, const std::int64_t* strides, const char* what)
      : data_(static_cast<char*>(data)), dtype_(dtype) {
    if (ndim < 0 || ndim > max_dims)
      value_error(format("%s must have 0 to %d dimensions, got %d", what, max_dims, ndim));
    std::int64_t size = 1;  // without the zeros, as in numpy: no product of some of the dimensions may overflow either
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] < 0) value_error(format("%s has a negative dimension %lld", what, ll(shape[d])));
      const std::int64_t extent = std::max<std::int64_t>(shape[d], 1);
      if (size > std::numeric_limits<std::int64_t>::max() / 8 / extent)
        value_error(format("%s is larger than the address space", what));
      size *= extent;
    }
    std::int64_t c_order[max_dims];
    if (strides == nullptr) {
      std::int64_t step = size_of(dtype);
      for (int d = ndim; d-- > 0;) {
        c_order[d] = step;
        step *= std::max<std::int64_t>(shape[d], 1);
      }
      strides = c_order;
    }
    // No distance between two elements may overflow: what is walked must be an address.
    std::int64_t reach = 0;
    for (int d = 0; d < ndim; ++d) {
      if (shape[d] <= 1) continue;  // its stride is never used and may be anything
      const std::int64_t limit = std::numeric_limits<std::int64_t>::max() / 4;
      if (strides[d] > limit / shape[d] || strides[d] < -(limit / shape[d]))
        value_error(format("%s must have strides inside the address space, got %lld", what, ll(strides[d])));
      reach += (strides[d] < 0 ? -strides[d] : strides[d]) * (shape[d] - 1);
      if (reach > limit)
        value_error(
            format("%s must have strides inside the address space, got a reach of %lld bytes", what, ll(reach)));
    }
    ndim_ = ndim;
    for (int d = 0; d < std::min(ndim, shown_dims); ++d) shape_[d] = shape[d];
    const int first_inner = ndim >= 2 ? 1 : 0;
    rows_ = ndim >= 2 ? shape[0] : 1;
    row_stride_ = ndim >= 2 && shape[0] > 1 ? strides[0] : 0;
    cols_ = 1;
    // Merge neighbouring dimensions that one stride walks through; what cannot be merged stays a dimension.
    for (int d = first_inner; d < ndim; ++d) {
      cols_ *= shape[d];
      if (shape[d] == 1) continue;
      if (inner_dims_ > 0 && inner_stride_[inner_dims_ - 1] == shape[d] * strides[d]) {
        inner_shape_[inner_dims_ - 1] *= shape[d];
        inner_stride_[inner_dims_ - 1] = strides[d];
        continue;
      }
      inner_shape_[inner_dims_] = shape[d];
      inner_stride_[inner_dims_++] = strides[d];
    }
    if (inner_dims_ == 0) {
      inner_shape_[0] = cols_;
      inner_stride_[0] = size_of(dtype);
      inner_dims_ = 1;
    }
    const bool aligned = reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uintptr_t>(size_of(dtype)) == 0 &&
                         row_stride_ % size_of(dtype) == 0;
    rows_contiguous_ = aligned && inner_dims_ == 1 && (inner_stride_[0] == size_of(dtype) || cols_ <= 1);
  }

  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t size() const { return rows_ * cols_; }
  DType dtype() const { return dtype_; }
  bool empty() const { return size() == 0; }
  char* data() const { return data_; }
  std::int64_t row_stride() const { return row_stride_; }
  // Every row is one aligned run of elements.
  bool rows_contiguous() const { return rows_contiguous_; }
  bool contiguous() const {
    return empty() || (rows_contiguous_ && (rows_ <= 1 || row_stride_ == cols_ * size_of(dtype_)));
  }

  // A contiguous array as one long row.
  Array flat() const {
    Array a = *this;
    a.cols_ = a.inner_shape_[0] = size();
    a.rows_ = 1;
    return a;
  }

  // Rows and columns exchanged. Needs columns that one stride walks through.
  bool can_transpose() const { return inner_dims_ == 1; }
  Array transposed() const {
    Array a = *this;
    a.rows_ = cols_;
    a.cols_ = a.inner_shape_[0] = rows_;
    a.row_stride_ = inner_stride_[0];
    a.inner_stride_[0] = row_stride_;
    const auto size_bytes = size_of(dtype_);
    a.rows_contiguous_ = reinterpret_cast<std::uintptr_t>(data_) % static_cast<std::uintptr_t>(size_bytes) == 0 &&
                         a.row_stride_ % size_bytes == 0 && (a.inner_stride_[0] == size_bytes || a.cols_ <= 1);
    return a;
  }

  // As Python writes it, "(3, 4)", for messages.
  std::string shape_text() const {
    std::string text = "(";
    for (int d = 0; d < std::min(ndim_, shown_dims); ++d) text += (d > 0 ? ", " : "") + std::to_string(shape_[d]);
    return text + (ndim_ > shown_dims ? ", ...)" : ndim_ == 1 ? ",)" : ")");
  }

  // Elements [col, col + n) of a row as contiguous T: in place where they lie so already, else in `buffer`.
  template <class T>
  const T* load(std::int64_t row, std::int64_t col, std::int64_t n, T* buffer) const {
    char* start = data_ + row * row_stride_;
    if (rows_contiguous_ && dtype_ == dtype_of<T>) return reinterpret_cast<const T*>(start) + col;
    dispatch_stored(dtype_, [&](auto zero) {
      using From = decltype(zero);
      if (rows_contiguous_) return convert_run(reinterpret_cast<const From*>(start) + col, buffer, n);
      walk(start, col, n, [&](char* p, std::int64_t i) {
        From value;
        std::memcpy(&value, p, sizeof value);  // unaligned views are legal in numpy
        buffer[i] = convert<T>(value);
      });
    });
    return buffer;
  }

  // Where a kernel may write elements [col, col + n) of a row directly; nullptr when they must go through store().
  template <class T>
  T* direct(std::int64_t row, std::int64_t col) const {
    if (!rows_contiguous_ || dtype_ != dtype_of<T>) return nullptr;
    return reinterpret_cast<T*>(data_ + row * row_stride_) + col;
  }

  template <class T>
  void store(std::int64_t row, std::int64_t col, std::int64_t n, const T* values) const {
    dispatch_stored(dtype_, [&](auto zero) {
      using To = decltype(zero);
      walk(data_ + row * row_stride_, col, n, [&](char* p, std::int64_t i) {
        const To value = convert<To>(values[i]);
        std::memcpy(p, &value, sizeof value);
      });
    });
  }

  // The lowest and one past the highest byte that the array touches; equal when it is empty.
  void bounds(const char*& low, const char*& high) const {
    low = high = data_;
    if (empty()) return;
    auto widen = [&](std::int64_t extent, std::int64_t stride) { (stride < 0 ? low : high) += (extent - 1) * stride; };
    widen(rows_, row_stride_);
    for (int d = 0; d < inner_dims_; ++d) widen(inner_shape_[d], inner_stride_[d]);
    high += size_of(dtype_);
  }

  // False only if the two meet in no byte: interleaved views, such as a[::2] and a[1::2] or the halves of a matrix, are
  // apart. Descriptions too tangled to be searched through count as overlapping.
  bool overlaps(const Array& other) const {
    if (empty() || other.empty()) return false;
    const char *low, *high, *other_low, *other_high;
    bounds(low, high);
    other.bounds(other_low, other_high);
    if (low >= other_high || other_low >= high) return false;
    Walks walks;
    add_to(walks, -1);
    other.add_to(walks, +1);
    std::sort(walks.begin(), walks.end());
    std::size_t count = 0;  // walks of one stride are one walk
    for (std::size_t i = 1; i < walks.size(); ++i) {
      if (walks[i].stride != walks[count].stride) {
        walks[++count] = walks[i];
        continue;
      }
      walks[count].first += walks[i].first;
      walks[count].last += walks[i].last;
    }
    if (!walks.empty()) walks.resize(count + 1);
    int budget = 1000;
    return meets(walks, 0, other.data_ - data_, size_of(dtype_) - 1, 1 - size_of(other.dtype_), budget);
  }

  // Row `row` as a matrix of one row.
  Array row(std::int64_t row) const {
    Array a = *this;
    a.data_ += row * row_stride_;
    a.rows_ = 1;
    return a;
  }

  // For dispatch_moved: 16-bit floats of either kind as bits.
  Array moved() const {
    Array a = *this;
    if (is_16_bit(dtype_)) a.dtype_ = DType::float16;
    return a;
  }

  // The same elements at the same places.
  bool same_view(const Array& o) const {
    if (data_ != o.data_ || dtype_ != o.dtype_ || rows_ != o.rows_ || cols_ != o.cols_) return false;
    if ((rows_ > 1 && row_stride_ != o.row_stride_) || inner_dims_ != o.inner_dims_) return false;
    return cols_ <= 1 || (std::equal(inner_stride_, inner_stride_ + inner_dims_, o.inner_stride_) &&
                          std::equal(inner_shape_, inner_shape_ + inner_dims_, o.inner_shape_));
  }

  // A writable array must not hold one element twice. False if every stride steps over all that the smaller ones reach
  // (true for some strange arrays without repetition too: sure knowledge is a hard problem and not worth it).
  bool repeats_elements() const {
    if (empty()) return false;
    Walks walks;
    add_to(walks, +1);
    std::sort(walks.begin(), walks.end());
    std::int64_t reach = size_of(dtype_) - 1;
    for (auto walk = walks.rbegin(); walk != walks.rend(); ++walk) {
      if (walk->stride <= reach) return true;
      reach += (walk->last - walk->first) * walk->stride;
    }
    return false;
  }

 private:
  template <class From, class T>
  static void convert_run(const From* from, T* to, std::int64_t n) {
    if constexpr (std::is_same_v<From, Half> && std::is_same_v<T, float>) {
      active_isa().kernels->half.widen(from, to, n);
    } else if constexpr (std::is_same_v<From, BFloat> && std::is_same_v<T, float>) {
      active_isa().kernels->half.widen_bfloat(from, to, n);
    } else {
      for (std::int64_t i = 0; i < n; ++i) to[i] = convert<T>(from[i]);
    }
  }

  static constexpr int max_inner = max_dims;
  static constexpr int shown_dims = 8;

  // The offsets first * stride .. last * stride; stride >= 0. Sorted by falling stride.
  struct Walk {
    std::int64_t stride, first, last;
    bool operator<(const Walk& other) const { return stride > other.stride; }
  };
  using Walks = std::vector<Walk>;

  void add_to(Walks& walks, int sign) const {
    const auto add = [&](std::int64_t extent, std::int64_t stride) {
      if (extent <= 1) return;
      const std::int64_t steps = extent - 1;
      const bool forward = (stride >= 0) == (sign > 0);
      walks.push_back({std::abs(stride), forward ? 0 : -steps, forward ? steps : 0});
    };
    add(rows_, row_stride_);
    for (int d = 0; d < inner_dims_; ++d) add(inner_shape_[d], inner_stride_[d]);
  }

  // Whether offset plus one step of each of the walks from `at` on can lie in [low, high].
  static bool meets(const Walks& walks, std::size_t at, std::int64_t offset, std::int64_t high, std::int64_t low,
                    int& budget) {
    if (--budget < 0) return true;
    std::int64_t most = high - offset, least = low - offset;  // that the walks together must come to
    if (at == walks.size()) return least <= 0 && 0 <= most;
    for (std::size_t i = at + 1; i < walks.size(); ++i) {
      most -= walks[i].first * walks[i].stride;
      least -= walks[i].last * walks[i].stride;
    }
    const Walk& walk = walks[at];
    if (walk.stride == 0) return meets(walks, at + 1, offset, high, low, budget);
    const auto floor_of = [&](std::int64_t x) { return x / walk.stride - (x % walk.stride < 0); };
    const std::int64_t end = std::min(walk.last, floor_of(most));
    for (std::int64_t i = std::max(walk.first, -floor_of(-least)); i <= end; ++i)
      if (meets(walks, at + 1, offset + i * walk.stride, high, low, budget)) return true;
    return false;
  }

  // Calls f(address, i) for element col + i of the row that begins at `start`, i = 0 .. n-1.
  template <class F>
  void walk(char* start, std::int64_t col, std::int64_t n, F&& f) const {
    if (inner_dims_ == 1) {
      char* p = start + col * inner_stride_[0];
      for (std::int64_t i = 0; i < n; ++i, p += inner_stride_[0]) f(p, i);
      return;
    }
    std::int64_t position[max_inner];
    char* p = start;
    for (int d = inner_dims_; d-- > 0;) {
      position[d] = col % inner_shape_[d];
      col /= inner_shape_[d];
      p += position[d] * inner_stride_[d];
    }
    for (std::int64_t i = 0; i < n; ++i) {
      f(p, i);
      for (int d = inner_dims_; d-- > 0;) {
        p += inner_stride_[d];
        if (++position[d] < inner_shape_[d]) break;
        p -= inner_shape_[d] * inner_stride_[d];
        position[d] = 0;
      }
    }
  }

  int ndim_ = 0;
  std::int64_t shape_[shown_dims] = {};  // as the caller gave it, for messages only
  char* data_ = nullptr;
  DType dtype_ = DType::float32;
  std::int64_t rows_ = 0, cols_ = 0, row_stride_ = 0;
  int inner_dims_ = 0;
  bool rows_contiguous_ = true;
  std::int64_t inner_shape_[max_inner] = {}, inner_stride_[max_inner] = {};
};

}  // namespace gossamer
