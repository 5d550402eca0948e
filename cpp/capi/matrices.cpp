// SPDX-License-Identifier: Apache-2.0
// The C ABI: sparse matrices and products.
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "capi/matrix_handle.hpp"
#include "ops/formats.hpp"
#include "ops/mask.hpp"
#include "ops/score.hpp"
#include "ops/sddmm.hpp"
#include "ops/tiles.hpp"

using namespace gossamer;
using namespace gossamer::capi;

namespace {

const char* format_or_auto(const char* name) { return name != nullptr ? name : "auto"; }

// A description of a vector as a matrix of one column (or one row, which it is read as anyway).
Array column_view(const char* function, const char* argument, const gossamer_array* array, bool as_column) {
  const Array plain = view(function, argument, array);
  if (array->ndim == 0)
    value_error(format("%s: %s must have at least one dimension, got a scalar", function, argument));
  if (array->ndim != 1 || !as_column) return plain;
  const std::int64_t size = size_of(plain.dtype());
  const std::int64_t shape[] = {array->shape[0], 1}, strides[] = {array->strides ? array->strides[0] : size, size};
  return Array(array->data, plain.dtype(), 2, shape, strides, function);
}

void check_vector(const char* function, const char* argument, const Array& array, std::int64_t n) {
  if (array.rows() != 1 || array.cols() != n)
    value_error(
        format("%s: %s must have the shape (%lld,), got %s", function, argument, ll(n), array.shape_text().c_str()));
}

// Values [n] that go into a matrix.
Array kept_view(const char* function, const gossamer_array* array, std::int64_t n) {
  const Array values = view(function, "values", array, true);
  check_vector(function, "values", values, n);
  if (values.dtype() == DType::int8 && !values.contiguous())
    value_error(format("%s: values of int8 must be contiguous", function));
  return values;
}

// A result [nnz] of values, in the dtype that `x` and `y` are computed in.
Array values_view(const char* function, const char* argument, const gossamer_array* array, std::int64_t nnz,
                  const Array& x, const Array& y) {
  const Array values = view(function, argument, array);
  const bool wide = x.dtype() == DType::float64 || y.dtype() == DType::float64;
  check_out(function, values, 1, nnz, wide ? DType::float64 : DType::float32, {});
  if (!values.contiguous()) value_error(format("%s: %s must be contiguous", function, argument));
  if (values.overlaps(x) || values.overlaps(y))
    value_error(format("%s: %s must not overlap with an input, got one that does", function, argument));
  return values;
}

gossamer_status product(const char* function, bool linear, const gossamer_matrix* a, const gossamer_array* x,
                        const gossamer_epilogue* epilogue, const gossamer_array* out) {
  return guarded([&] {
    const Matrix& matrix = of(function, "a", a);
    const Array from = column_view(function, "x", x, !linear);
    Array to = column_view(function, "out", out, !linear);
    if ((x->ndim == 1) != (out->ndim == 1))
      value_error(
          format("%s: out must be a vector where x is one, got the shape %s", function, to.shape_text().c_str()));
    Epilogue e;
    if (epilogue != nullptr) {
      e.activation = activation_of(function, epilogue->activation);
      if (epilogue->bias != nullptr) e.bias = view(function, "bias", epilogue->bias);
      if (epilogue->residual != nullptr) e.residual = column_view(function, "residual", epilogue->residual, !linear);
    }
    matrix.multiply(function, from, linear, e, to);
  });
}

// The sums of the columns of x, in float64.
std::vector<double> column_sums(const Array& x) {
  std::vector<double> sums(static_cast<std::size_t>(x.cols())), row(sums.size());
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    const double* values = x.load(r, 0, x.cols(), row.data());
    for (std::size_t c = 0; c < sums.size(); ++c) sums[c] += values[c];
  }
  return sums;
}

// An array of its own, like another.
class Owned {
 public:
  Owned(std::int64_t rows, std::int64_t cols, DType dtype)
      : bytes_(static_cast<std::size_t>(rows * cols * size_of(dtype))) {
    const std::int64_t shape[] = {rows, cols};
    array_ = Array(bytes_.data(), dtype, 2, shape, nullptr, "scratch");
  }
  const Array& array() const { return array_; }

 private:
  Lines<std::byte> bytes_;
  Array array_;
};

void linear_backward(const char* f, const Matrix& a, const gossamer_array* bias, std::int32_t activation,
                     const gossamer_array* x_, const gossamer_array* dy_, const gossamer_array* dx_,
                     const gossamer_array* dvalues_, const gossamer_array* dbias_) {
  const Act act = activation_of(f, activation);
  const Array x = view(f, "x", x_), dy = view(f, "dy", dy_);
  if (x_->ndim > 2 || dy_->ndim > 2) value_error(format("%s: x and dy must have at most two dimensions", f));
  if (x.dtype() != dy.dtype())
    type_error(format("%s: dy must be %s as x is, got %s", f, name_of(x.dtype()), name_of(dy.dtype())));
  const std::int64_t batch = x.rows(), inputs = a.cols(), outputs = a.rows();
  if (x.cols() != inputs)
    value_error(format("%s: x must have the shape (batch, %lld), got %s", f, ll(inputs), x.shape_text().c_str()));
  if (dy.rows() != batch || dy.cols() != outputs)
    value_error(format("%s: dy must have the shape %s, got %s", f, shape_text(batch, outputs).c_str(),
                       dy.shape_text().c_str()));
  // All results are checked before the first is written.
  std::vector<Array> results;
  Array dx, dvalues, dbias;
  if (dx_ != nullptr) {
    dx = view(f, "dx", dx_);
    check_out(f, dx, batch, inputs, dy.dtype(), {});
    results.push_back(dx);
  }
  if (dvalues_ != nullptr) results.push_back(dvalues = values_view(f, "dvalues", dvalues_, a.nnz(), x, dy));
  if (dbias_ != nullptr) {
    dbias = view(f, "dbias", dbias_);
    check_out(f, dbias, 1, outputs, dbias.dtype(), {});
    results.push_back(dbias);
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    bool shared = results[i].overlaps(x) || results[i].overlaps(dy);
    for (std::size_t j = 0; j < i; ++j) shared = shared || results[i].overlaps(results[j]);
    if (shared)
      value_error(format("%s: the results must not overlap with an input or each other, got some that do", f));
  }
  const bool active = act != Act::identity;
  const Owned z(active ? batch : 0, outputs, x.dtype()), dz(active ? batch : 0, outputs, x.dtype());
  Array grad = dy;
  if (active) {
    Epilogue e;
    if (bias != nullptr) e.bias = view(f, "bias", bias);
    a.multiply(f, x, true, e, z.array());
    activation_grad(f, z.array(), dy, act, dz.array());
    grad = dz.array();
  }
  if (dx_ != nullptr) {
    const auto transposed = a.transposed(f);
    transposed->multiply(f, grad, true, {}, dx);
  }
  if (dvalues_ != nullptr)
    sddmm(f, grad.transposed(), x.transposed(), a.structure().csr(), dvalues.dtype(), dvalues.data());
  if (dbias_ != nullptr) dbias.store(0, 0, outputs, column_sums(grad).data());
}

}  // namespace

extern "C" {

gossamer_status gossamer_matrix_from_dense(const gossamer_array* w, const std::uint8_t* mask, const char* format,
                                           std::int32_t dtype, gossamer_matrix** result) {
  constexpr const char* f = "matrix_from_dense";
  return guarded([&] {
    given(f, "result", result);
    const Array dense = view(f, "w", w);
    if (mask != nullptr) check_mask(f, mask, dense.rows(), dense.cols());
    const DType to = dtype == -1 ? dense.dtype() : dtype_of_values(f, "dtype", dtype);
    *result = hold(Matrix::from_dense(f, dense, mask, to, format_or_auto(format)));
  });
}

gossamer_status gossamer_matrix_from_csr(const gossamer_csr* csr, const char* format, gossamer_matrix** result) {
  constexpr const char* f = "matrix_from_csr";
  return guarded([&] {
    given(f, "result", result);
    given(f, "csr", csr);
    check_sizes(f, csr->rows, csr->cols);
    given(f, "indptr", csr->indptr);
    if (csr->index_bytes != 4 && csr->index_bytes != 8)
      type_error(gossamer::format("%s: index_bytes must be 4 or 8, got %d", f, csr->index_bytes));
    if (csr->nnz < 0) value_error(gossamer::format("%s: nnz must be at least 0, got %lld", f, ll(csr->nnz)));
    const DType dtype = dtype_of_values(f, "dtype", csr->dtype);
    if (dtype == DType::int8) type_error(gossamer::format("%s: dtype must be of floats, got int8", f));
    if (csr->nnz > 0 && (csr->indices == nullptr || csr->values == nullptr))
      value_error(gossamer::format("%s: csr must have indices and values", f));
    const CsrPattern pattern{csr->rows, csr->cols, csr->indptr, csr->indices, csr->index_bytes == 8};
    check_csr(f, pattern, csr->nnz);
    auto structure = std::make_shared<const Structure>(pattern);
    const Array values(const_cast<void*>(csr->values), dtype, 1, &csr->nnz, nullptr, f);
    *result = hold(std::make_unique<Matrix>(f, "values", structure, values, dtype, nullptr, format_or_auto(format)));
  });
}

gossamer_status gossamer_matrix_from_mask(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols,
                                          const gossamer_array* values, const float* scales, const char* format,
                                          gossamer_matrix** result) {
  constexpr const char* f = "matrix_from_mask";
  return guarded([&] {
    given(f, "result", result);
    const std::int64_t bytes = check_sizes(f, rows, cols);
    check_mask(f, mask, rows, cols);
    const Array kept = kept_view(f, values, bytes > 0 ? count_mask(mask, rows, cols) : 0);
    const bool int8 = kept.dtype() == DType::int8;
    if (int8 && rows > 0) given(f, "scales", scales);
    if (!int8 && scales != nullptr)
      value_error(gossamer::format("%s: scales must be NULL unless the values are int8", f));
    auto bits = std::make_unique<std::vector<std::uint8_t>>(mask, mask + bytes);
    auto structure = std::make_shared<const Structure>(rows, cols, std::move(bits));
    *result =
        hold(std::make_unique<Matrix>(f, "values", structure, kept, kept.dtype(), scales, format_or_auto(format)));
  });
}

gossamer_status gossamer_matrix_with_values(const gossamer_matrix* a, const gossamer_array* values,
                                            gossamer_matrix** result) {
  constexpr const char* f = "matrix_with_values";
  return guarded([&] {
    given(f, "result", result);
    const Matrix& matrix = of(f, "a", a);
    *result = hold(matrix.with_values(f, kept_view(f, values, matrix.nnz())));
  });
}

gossamer_status gossamer_matrix_transposed(const gossamer_matrix* a, gossamer_matrix** result) {
  constexpr const char* f = "matrix_transposed";
  return guarded([&] {
    given(f, "result", result);
    *result = hold(of(f, "a", a).transposed(f));
  });
}

void gossamer_matrix_free(gossamer_matrix* a) { delete a; }

gossamer_status gossamer_matrix_get_info(const gossamer_matrix* a, gossamer_matrix_info* info) {
  constexpr const char* f = "matrix_get_info";
  return guarded([&] {
    const Matrix& m = of(f, "a", a);
    *given(f, "info", info) = {m.rows(),         m.cols(), m.nnz(), m.nbytes(), static_cast<std::int32_t>(m.dtype()),
                               m.asked().c_str()};
  });
}

gossamer_status gossamer_matrix_get_mask(const gossamer_matrix* a, std::uint8_t* mask) {
  constexpr const char* f = "matrix_get_mask";
  return guarded([&] {
    const Matrix& m = of(f, "a", a);
    const std::int64_t bytes = packed_size(m.rows(), m.cols());
    const std::uint8_t* bits = m.structure().mask();
    if (bytes > 0) std::copy(bits, bits + bytes, given(f, "mask", mask));
  });
}

gossamer_status gossamer_matrix_get_csr(const gossamer_matrix* a, std::int64_t* indptr, std::int64_t* indices) {
  return guarded([&] {
    const Matrix& m = of("matrix_get_csr", "a", a);
    const CsrPattern csr = m.structure().csr();
    if (indptr != nullptr) std::copy(csr.indptr, csr.indptr + m.rows() + 1, indptr);
    if (indices != nullptr) with_indices(csr, [&](const auto* from) { std::copy(from, from + m.nnz(), indices); });
  });
}

gossamer_status gossamer_matrix_get_values(const gossamer_matrix* a, void* values, float* scales) {
  constexpr const char* f = "matrix_get_values";
  return guarded([&] {
    const Matrix& m = of(f, "a", a);
    if (scales != nullptr && m.dtype() != DType::int8)
      value_error(gossamer::format("%s: scales must be NULL for a matrix of %s", f, name_of(m.dtype())));
    if (values != nullptr && m.nnz() > 0) m.copy_values(values);
    if (scales != nullptr && m.scales() != nullptr) std::copy(m.scales(), m.scales() + m.rows(), scales);
  });
}

gossamer_status gossamer_matrix_to_dense(const gossamer_matrix* a, const gossamer_array* out) {
  constexpr const char* f = "matrix_to_dense";
  return guarded([&] { of(f, "a", a).to_dense(f, view(f, "out", out)); });
}

gossamer_status gossamer_matmul(const gossamer_matrix* a, const gossamer_array* x, const gossamer_epilogue* epilogue,
                                const gossamer_array* out) {
  return product("matmul", false, a, x, epilogue, out);
}

gossamer_status gossamer_linear(const gossamer_matrix* a, const gossamer_array* x, const gossamer_epilogue* epilogue,
                                const gossamer_array* out) {
  return product("linear", true, a, x, epilogue, out);
}

gossamer_status gossamer_linear_backward(const gossamer_matrix* a, const gossamer_array* bias, std::int32_t activation,
                                         const gossamer_array* x, const gossamer_array* dy, const gossamer_array* dx,
                                         const gossamer_array* dvalues, const gossamer_array* dbias) {
  constexpr const char* f = "linear_backward";
  return guarded([&] { linear_backward(f, of(f, "a", a), bias, activation, x, dy, dx, dvalues, dbias); });
}

gossamer_status gossamer_sddmm(const gossamer_array* x, const gossamer_array* y, const gossamer_matrix* pattern,
                               const gossamer_array* values) {
  constexpr const char* f = "sddmm";
  return guarded([&] {
    const Matrix& m = of(f, "pattern", pattern);
    const Array left = view(f, "x", x), right = view(f, "y", y);
    const Array to = values_view(f, "values", values, m.nnz(), left, right);
    sddmm(f, left, right, m.structure().csr(), to.dtype(), to.data());
  });
}

gossamer_status gossamer_activation_grad(std::int32_t activation, const gossamer_array* z, const gossamer_array* dy,
                                         const gossamer_array* out) {
  constexpr const char* f = "activation_grad";
  return guarded([&] {
    const Act act = activation_of(f, activation);
    activation_grad(f, view(f, "z", z), view(f, "dy", dy), act, view(f, "out", out));
  });
}

}  // extern "C"
