// SPDX-License-Identifier: Apache-2.0
// numpy arrays as core views. Nothing is converted and nothing copied: what does not fit is a TypeError.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "core/array.hpp"

namespace gossamer::bindings {

namespace py = pybind11;

inline std::string dtype_name(const py::array& array) { return py::str(array.dtype()); }

// False for what the core does not know.
inline bool find_dtype(const py::array& array, DType& dtype) {
  const py::dtype given = array.dtype();
  if (given.byteorder() == '>') return false;
  if (given.kind() == 'f') {
    const auto size = given.itemsize();
    dtype = size == 2 ? DType::float16 : size == 4 ? DType::float32 : DType::float64;
    return size == 2 || size == 4 || size == 8;
  }
  dtype = DType::bfloat16;
  return given.kind() == 'V' && given.itemsize() == 2 && dtype_name(array) == "bfloat16";
}

inline Array view(const char* function, const char* argument, const py::array& array) {
  const std::string what = std::string(function) + ": " + argument;
  DType dtype{};
  if (!find_dtype(array, dtype))
    type_error(what + " must be float32, float64, float16 or bfloat16, got " + dtype_name(array));
  if (array.ndim() > Array::max_dims)
    value_error(what + " must have at most 64 dimensions, got " + std::to_string(array.ndim()));
  std::int64_t shape[Array::max_dims], strides[Array::max_dims];
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    shape[d] = array.shape(d);
    strides[d] = array.strides(d);
  }
  return Array(const_cast<void*>(array.data()), dtype, static_cast<int>(array.ndim()), shape, strides, what.c_str());
}

inline void check_writable(const char* function, const char* argument, const py::array& array) {
  if (!array.writeable())
    value_error(std::string(function) + ": " + argument + " must be writable, got a read-only array");
}
inline Array writable_view(const char* function, const char* argument, const py::array& array) {
  check_writable(function, argument, array);
  return view(function, argument, array);
}

// For the products, which know no 16-bit values.
inline Array wide_view(const char* function, const char* argument, const py::array& array) {
  DType dtype{};
  if (!find_dtype(array, dtype) || is_16_bit(dtype))
    type_error(std::string(function) + ": " + argument + " must be float32 or float64, got " + dtype_name(array));
  return view(function, argument, array);
}
inline Array wide_writable_view(const char* function, const char* argument, const py::array& array) {
  check_writable(function, argument, array);
  return wide_view(function, argument, array);
}

// A contiguous buffer of exactly `size` T that the Python side has made (or, where writable is false, checked).
template <class T>
T* buffer(const char* argument, const py::array& array, std::int64_t size, bool writable) {
  if (!py::isinstance<py::array_t<T>>(array) || (array.flags() & py::array::c_style) == 0)
    type_error(std::string("_core: ") + argument + " must be a contiguous array of its type, got " + dtype_name(array));
  if (array.size() != size)
    value_error(std::string("_core: ") + argument + " must have " + std::to_string(size) + " entries, got " +
                std::to_string(array.size()));
  if (writable && !array.writeable())
    value_error(std::string("_core: ") + argument + " must be writable, got a read-only array");
  return static_cast<T*>(const_cast<void*>(array.data()));
}

}  // namespace gossamer::bindings
