// SPDX-License-Identifier: Apache-2.0
//
// gossamer's C ABI for C++17: objects that free themselves, and exceptions in place of statuses. Header only; what each
// function does, and what it demands, stands in gossamer.h.
//
//   gossamer::File file("model.safetensors");
//   gossamer::Matrix w = file.matrix("fc1.weight");
//   gossamer::linear(w, gossamer::array(x, {batch, inputs}), gossamer::array(y, {batch, outputs}));
#ifndef GOSSAMER_HPP
#define GOSSAMER_HPP

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "gossamer/gossamer.h"

namespace gossamer {
// The library has its own names in the namespace gossamer, which a program that links it statically must not meet.
inline namespace api {

class Error : public std::runtime_error {
 public:
  explicit Error(gossamer_status status) : std::runtime_error(gossamer_last_error()), status_(status) {}
  gossamer_status status() const noexcept { return status_; }

 private:
  gossamer_status status_;
};

inline void check(gossamer_status status) {
  if (status == GOSSAMER_ERROR_MEMORY) throw std::bad_alloc();
  if (status != GOSSAMER_OK) throw Error(status);
}
inline std::int64_t check_count(std::int64_t count) {
  if (count < 0) throw Error(GOSSAMER_ERROR_VALUE);
  return count;
}

// A description of the caller's memory.
class Array {
 public:
  Array(void* data, gossamer_dtype dtype, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides = {})
      : data_(data), dtype_(dtype), shape_(std::move(shape)), strides_(std::move(strides)) {
    if (!strides_.empty() && strides_.size() != shape_.size())
      throw std::invalid_argument("gossamer::Array: strides must have one entry a dimension");
  }
  const std::vector<std::int64_t>& shape() const { return shape_; }
  gossamer_array c() const {
    return {data_, dtype_, static_cast<std::int32_t>(shape_.size()), shape_.data(),
            strides_.empty() ? nullptr : strides_.data()};
  }

 private:
  void* data_;
  gossamer_dtype dtype_;
  std::vector<std::int64_t> shape_, strides_;
};

// Of float, double or int8_t (values only); 16-bit floats are named: Array(data, GOSSAMER_BFLOAT16, shape).
template <class T>
Array array(T* data, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides = {}) {
  using Element = std::remove_const_t<T>;
  static_assert(
      std::is_same_v<Element, float> || std::is_same_v<Element, double> || std::is_same_v<Element, std::int8_t>,
      "an element must be float, double or int8_t");
  constexpr gossamer_dtype dtype = std::is_same_v<Element, float>    ? GOSSAMER_FLOAT32
                                   : std::is_same_v<Element, double> ? GOSSAMER_FLOAT64
                                                                     : GOSSAMER_INT8;
  return Array(const_cast<Element*>(data), dtype, std::move(shape), std::move(strides));
}

struct Epilogue {
  const Array* bias = nullptr;
  gossamer_activation activation = GOSSAMER_IDENTITY;
  const Array* residual = nullptr;
};

// Movable, not copyable; any number of threads may use one.
class Matrix {
 public:
  explicit Matrix(gossamer_matrix* owned) : handle_(owned) {}

  static Matrix from_dense(const Array& w, const std::uint8_t* mask = nullptr, const char* format = "auto",
                           std::int32_t dtype = -1) {
    const gossamer_array described = w.c();
    return make([&](gossamer_matrix** a) { return gossamer_matrix_from_dense(&described, mask, format, dtype, a); });
  }
  static Matrix from_csr(const gossamer_csr& csr, const char* format = "auto") {
    return make([&](gossamer_matrix** a) { return gossamer_matrix_from_csr(&csr, format, a); });
  }
  static Matrix from_mask(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, const Array& values,
                          const float* scales = nullptr, const char* format = "auto") {
    const gossamer_array kept = values.c();
    return make(
        [&](gossamer_matrix** a) { return gossamer_matrix_from_mask(mask, rows, cols, &kept, scales, format, a); });
  }
  Matrix with_values(const Array& values) const {
    const gossamer_array kept = values.c();
    return make([&](gossamer_matrix** a) { return gossamer_matrix_with_values(c(), &kept, a); });
  }
  Matrix transposed() const {
    return make([&](gossamer_matrix** a) { return gossamer_matrix_transposed(c(), a); });
  }

  gossamer_matrix_info info() const {
    gossamer_matrix_info found{};
    check(gossamer_matrix_get_info(c(), &found));
    return found;
  }
  std::vector<std::uint8_t> mask() const {
    const gossamer_matrix_info found = info();
    std::vector<std::uint8_t> bits(static_cast<std::size_t>(found.rows * ((found.cols + 7) / 8)));
    check(gossamer_matrix_get_mask(c(), bits.data()));
    return bits;
  }
  // Of float, double or int8_t, the matrix's dtype, in row-major order.
  template <class T>
  std::vector<T> values() const {
    const gossamer_matrix_info found = info();
    std::vector<T> kept(static_cast<std::size_t>(found.nnz));
    if (api::array(kept.data(), {}).c().dtype != found.dtype)
      throw std::invalid_argument("gossamer::Matrix::values: T must be the matrix's dtype");
    check(gossamer_matrix_get_values(c(), kept.data(), nullptr));
    return kept;
  }
  struct Csr {
    std::vector<std::int64_t> indptr, indices;
  };
  Csr csr() const {
    const gossamer_matrix_info found = info();
    Csr made{std::vector<std::int64_t>(static_cast<std::size_t>(found.rows + 1)),
             std::vector<std::int64_t>(static_cast<std::size_t>(found.nnz))};
    check(gossamer_matrix_get_csr(c(), made.indptr.data(), made.indices.data()));
    return made;
  }
  void to_dense(const Array& out) const {
    const gossamer_array to = out.c();
    check(gossamer_matrix_to_dense(c(), &to));
  }
  const gossamer_matrix* c() const { return handle_.get(); }

 private:
  struct Free {
    void operator()(gossamer_matrix* a) const { gossamer_matrix_free(a); }
  };
  template <class F>
  static Matrix make(F&& f) {
    gossamer_matrix* made = nullptr;
    check(f(&made));
    return Matrix(made);
  }
  std::unique_ptr<gossamer_matrix, Free> handle_;
};

namespace detail {

template <class F>
void product(F f, const Matrix& a, const Array& x, const Array& out, const Epilogue& after) {
  const gossamer_array from = x.c(), to = out.c();
  gossamer_array bias{}, residual{};
  gossamer_epilogue epilogue{nullptr, after.activation, nullptr};
  if (after.bias != nullptr) epilogue.bias = &(bias = after.bias->c());
  if (after.residual != nullptr) epilogue.residual = &(residual = after.residual->c());
  check(f(a.c(), &from, &epilogue, &to));
}

}  // namespace detail

// out = act(A X + bias) + residual
inline void matmul(const Matrix& a, const Array& x, const Array& out, const Epilogue& after = {}) {
  detail::product(gossamer_matmul, a, x, out, after);
}
// out = act(X A^T + bias) + residual
inline void linear(const Matrix& a, const Array& x, const Array& out, const Epilogue& after = {}) {
  detail::product(gossamer_linear, a, x, out, after);
}

// The gradients of linear(); null for those that are not wanted.
inline void linear_backward(const Matrix& a, const Array& x, const Array& dy, const Array* dx, const Array* dvalues,
                            const Array* dbias, gossamer_activation activation = GOSSAMER_IDENTITY,
                            const Array* bias = nullptr) {
  const gossamer_array from = x.c(), grad = dy.c();
  gossamer_array parts[4];
  const gossamer_array* given[4] = {};
  const Array* const arrays[4] = {bias, dx, dvalues, dbias};
  for (int i = 0; i < 4; ++i)
    if (arrays[i] != nullptr) given[i] = &(parts[i] = arrays[i]->c());
  check(gossamer_linear_backward(a.c(), given[0], activation, &from, &grad, given[1], given[2], given[3]));
}
// The values of X Y^T where the pattern keeps a position.
inline void sddmm(const Array& x, const Array& y, const Matrix& pattern, const Array& values) {
  const gossamer_array left = x.c(), right = y.c(), to = values.c();
  check(gossamer_sddmm(&left, &right, pattern.c(), &to));
}

inline void score(const char* method, const Array& weights, const Array& out, const Array* aux = nullptr,
                  std::uint64_t seed = 0) {
  const gossamer_array w = weights.c(), to = out.c();
  gossamer_array with{};
  gossamer_tensor tensor{};
  tensor.weights = &w;
  tensor.out = &to;
  if (aux != nullptr) tensor.aux = &(with = aux->c());
  check(gossamer_score(method, &tensor, 1, seed));
}

struct Pruned {
  std::vector<std::uint8_t> mask;
  std::int64_t nnz = 0;
};
// One tensor; several that compete are gossamer_prune's. `out` may be null, or the weights.
inline Pruned prune(const char* method, const Array& weights, const gossamer_selection& how, const Array* out = nullptr,
                    const Array* aux = nullptr, std::uint64_t seed = 0) {
  const gossamer_array w = weights.c();
  gossamer_array to{}, with{};
  Pruned result;
  result.mask.resize(static_cast<std::size_t>(check_count(gossamer_mask_bytes(&w))));
  gossamer_tensor tensor{};
  tensor.weights = &w;
  tensor.mask = result.mask.data();
  if (out != nullptr) tensor.out = &(to = out->c());
  if (aux != nullptr) tensor.aux = &(with = aux->c());
  check(gossamer_prune(method, &tensor, 1, seed, &how));
  result.nnz = tensor.nnz;
  return result;
}

class File {
 public:
  explicit File(const std::string& path) {
    gossamer_file* opened = nullptr;
    check(gossamer_file_open(path.c_str(), &opened));
    handle_.reset(opened);
  }
  std::vector<gossamer_entry> entries() const {
    std::vector<gossamer_entry> list(static_cast<std::size_t>(check_count(gossamer_file_count(c()))));
    for (std::size_t i = 0; i < list.size(); ++i)
      check(gossamer_file_get_entry(c(), static_cast<std::int64_t>(i), &list[i]));
    return list;
  }
  gossamer_entry find(const std::string& name) const {
    gossamer_entry entry{};
    check(gossamer_file_find(c(), name.c_str(), &entry));
    return entry;
  }
  // format: null for the one that it was saved with
  Matrix matrix(const std::string& name, const char* format = nullptr) const {
    gossamer_matrix* read = nullptr;
    check(gossamer_file_read_matrix(c(), name.c_str(), format, &read));
    return Matrix(read);
  }
  void array(const std::string& name, const Array& out) const {
    const gossamer_array to = out.c();
    check(gossamer_file_read_array(c(), name.c_str(), &to));
  }
  // Of float32 or float64.
  template <class T>
  std::vector<T> values(const std::string& name) const {
    const gossamer_entry entry = find(name);
    std::vector<std::int64_t> shape(entry.shape, entry.shape + entry.ndim);
    std::int64_t size = 1;
    for (const std::int64_t n : shape) size *= n;
    std::vector<T> read(static_cast<std::size_t>(size));
    array(name, api::array(read.data(), std::move(shape)));
    return read;
  }
  const gossamer_file* c() const { return handle_.get(); }

 private:
  struct Free {
    void operator()(gossamer_file* file) const { gossamer_file_free(file); }
  };
  std::unique_ptr<gossamer_file, Free> handle_;
};

}  // namespace api
}  // namespace gossamer
#endif
