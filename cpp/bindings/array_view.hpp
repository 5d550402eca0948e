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

inline Array view(const char* function, const char* argument, const py::array& array) {
  const std::string what = std::string(function) + ": " + argument;
  const py::dtype dtype = array.dtype();
  const bool known =
      dtype.kind() == 'f' && (dtype.itemsize() == 4 || dtype.itemsize() == 8) && dtype.byteorder() != '>';
  if (!known) type_error(what + " must be float32 or float64, got " + dtype_name(array));
  if (array.ndim() > Array::max_dims)
    value_error(what + " must have at most 64 dimensions, got " + std::to_string(array.ndim()));
  std::int64_t shape[Array::max_dims], strides[Array::max_dims];
  for (py::ssize_t d = 0; d < array.ndim(); ++d) {
    shape[d] = array.shape(d);
    strides[d] = array.strides(d);
  }
  return Array(const_cast<void*>(array.data()), dtype.itemsize() == 4 ? DType::float32 : DType::float64,
               static_cast<int>(array.ndim()), shape, strides, what.c_str());
}

inline Array writable_view(const char* function, const char* argument, const py::array& array) {
  if (!array.writeable())
    value_error(std::string(function) + ": " + argument + " must be writable, got a read-only array");
  return view(function, argument, array);
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
