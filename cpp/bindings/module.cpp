// SPDX-License-Identifier: Apache-2.0
// The extension module: positional, without defaults. Python allocates, this passes views on with the GIL released.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <new>
#include <stdexcept>

#include "bindings/array_view.hpp"
#include "core/device.hpp"
#include "core/dispatch.hpp"
#include "core/float_guard.hpp"
#include "core/parallel.hpp"
#include "ops/adjust.hpp"
#include "ops/formats.hpp"
#include "ops/mask.hpp"
#include "ops/matmul.hpp"
#include "ops/prune.hpp"
#include "ops/sddmm.hpp"
#include "ops/stats.hpp"
#include "ops/topk.hpp"
#include "ops/units.hpp"

namespace gossamer::bindings {
namespace {

using OptionalArray = std::optional<py::array>;

// While the core works: the GIL is released, and the thread's floating-point state is the standard one.
struct Running {
  py::gil_scoped_release release;
  FloatGuard guard;
};

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const Error& error) {
    PyObject* type = PyExc_RuntimeError;
    if (error.status() == GOSSAMER_ERROR_TYPE) type = PyExc_TypeError;
    if (error.status() == GOSSAMER_ERROR_VALUE) type = PyExc_ValueError;
    if (error.status() == GOSSAMER_ERROR_MEMORY) type = PyExc_MemoryError;
    if (error.status() == GOSSAMER_ERROR_NOT_IMPLEMENTED) type = PyExc_NotImplementedError;
    // A long name may have been cut inside a character.
    const py::object message =
        py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(error.what(), std::strlen(error.what()), "replace"));
    if (message) PyErr_SetObject(type, message.ptr());
  } catch (const std::length_error&) {  // a vector larger than the address space
    PyErr_SetString(PyExc_MemoryError, "gossamer: out of memory");
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "gossamer: out of memory");
  }
}

std::int64_t mask_bytes(const Array& array) { return array.rows() * row_bytes(array.cols()); }

ScoreSource make_source(const char* function, const std::string& method, const py::array& weights,
                        const OptionalArray& aux, std::uint64_t seed, std::int64_t first_index) {
  ScoreSource source;
  source.method = method.empty() ? nullptr : &find_method(function, method.c_str());
  source.weights = view(function, source.method == nullptr ? "scores" : "weights", weights);
  if (source.method != nullptr && source.method->uses_aux()) {
    if (!aux) value_error(format("%s: %s needs an input that is missing", function, method.c_str()));
    source.aux = view(function, source.method->needs == Needs::grads ? "grads" : "stats", *aux);
  }
  source.seed = seed;
  source.first_index = first_index;
  return source;
}

using Arrays = std::vector<py::array>;
using OptionalArrays = std::vector<OptionalArray>;

void check_lists(std::size_t count, std::initializer_list<std::size_t> others) {
  for (std::size_t other : others)
    if (other != count) value_error("_core: lists must have one entry a tensor");
}

void bind_score(const std::string& method, const Arrays& weights, const OptionalArrays& aux, std::uint64_t seed,
                const Arrays& outs) {
  check_lists(weights.size(), {aux.size(), outs.size()});
  std::vector<ScoreSource> sources;
  std::vector<Array> to;
  std::int64_t index = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    sources.push_back(make_source("score", method, weights[i], aux[i], seed, index));
    const ScoreSource& s = sources.back();
    index += s.weights.size();
    to.push_back(writable_view("score", "out", outs[i]));
    check_source("score", "", s);
  }
  check_score_outs("score", sources, to);
  const Running running;
  score(sources, to);
}

// One mask [rows * ceil(cols / 8)] a tensor is filled; `outs` is empty (select only) or has one array a tensor (prune).
std::vector<std::int64_t> bind_select(const std::string& function, const std::vector<std::string>& names,
                                      const Arrays& weights, const std::string& method, const OptionalArrays& aux,
                                      std::uint64_t seed, const OptionalArrays& priors, const Arrays& masks,
                                      const Arrays& outs, std::optional<double> sparsity,
                                      std::optional<std::int64_t> nnz, std::optional<double> threshold,
                                      const std::string& pattern, const std::string& group, double min_density,
                                      const std::string& nan, std::int64_t first_index) {
  const char* f = function.c_str();
  Selection how;
  how.sparsity = sparsity;
  how.nnz = nnz;
  how.threshold = threshold;
  how.pattern = parse_pattern(f, pattern);
  how.group = parse_group(f, group);
  how.min_density = min_density;
  how.nan = parse_nan(f, nan);
  const std::size_t count = weights.size();
  check_lists(count, {names.size(), aux.size(), priors.size(), masks.size(), outs.empty() ? count : outs.size()});
  std::vector<SelectTensor> tensors(count);
  std::vector<Array> to;
  std::int64_t index = first_index;
  for (std::size_t i = 0; i < count; ++i) {
    SelectTensor& t = tensors[i];
    t.name = names[i];
    t.source = make_source(f, method, weights[i], aux[i], seed, index);
    index += t.source.weights.size();
    const std::int64_t bytes = mask_bytes(t.source.weights);
    t.mask = buffer<std::uint8_t>("mask", masks[i], bytes, true);
    if (priors[i]) t.prior = buffer<std::uint8_t>("prior", *priors[i], bytes, false);
    if (!outs.empty()) to.push_back(writable_view(f, "out", outs[i]));
  }
  {
    const Running running;
    outs.empty() ? select(f, tensors, how) : prune(f, tensors, how, to);
  }
  std::vector<std::int64_t> kept;
  for (const SelectTensor& t : tensors) kept.push_back(t.nnz);
  return kept;
}

Item make_item(const char* function, const std::string& method, const py::array& weights, const OptionalArray& aux,
               std::uint64_t seed, std::int64_t first_index) {
  const ScoreSource source = make_source(function, method, weights, aux, seed, first_index);
  check_source(function, "", source);
  return {prepare({&source, 1})[0].flattened(), nullptr, nullptr, 0};
}

// What collect and keep_above of a chunk found: no NaN, that is.
void refuse_nan(const std::string& function, const Item& item, const std::atomic<bool>& nan) {
  if (nan)
    value_error(
        format("%s: scores must not be NaN, got NaN at flat index %lld", function.c_str(),
               static_cast<long long>(item.source.first_index + std::max<std::int64_t>(find_nan(item.source), 0))));
}

// -> scores above `high`, in [low, high] (copied to `values`) and below `low`.
py::tuple bind_collect(const std::string& function, const std::string& method, const py::array& weights,
                       const OptionalArray& aux, std::uint64_t seed, std::int64_t first_index, double low, double high,
                       const py::array& values) {
  Item item = make_item(function.c_str(), method, weights, aux, seed, first_index);
  const Array to = writable_view(function.c_str(), "values", values);
  if (!to.contiguous() || to.size() != item.size() || to.dtype() != item.source.dtype())
    value_error("_core: values must have room for all scores");
  std::atomic<bool> nan{false};
  Collected counts{};
  {
    const Running running;
    counts = collect(item, low, high, NanRule{NanRank::low, nan}, to.data());
  }
  refuse_nan(function, item, nan);
  return py::make_tuple(counts.above, counts.inside, counts.below);
}

// The float64 scores of a tensor's units.
void bind_unit_scores(const std::string& function, const std::string& method, const py::array& weights,
                      std::uint64_t seed, std::int64_t first_index, const std::string& pattern,
                      const py::array& scores) {
  const ScoreSource source = make_source(function.c_str(), method, weights, {}, seed, first_index);
  check_source(function.c_str(), "", source);
  Units units = make_units(parse_pattern(function.c_str(), pattern), source.rows(), source.cols());
  const Array to = writable_view(function.c_str(), "scores", scores);
  if (!to.contiguous() || to.size() != units.rows * units.cols || to.dtype() != DType::float64)
    value_error("_core: scores must have room for one float64 a unit");
  const Running running;
  if (source.rows() * source.cols() > 0) score_units(prepare({&source, 1})[0], units);
  std::memcpy(to.data(), units.scores.data(), units.scores.size() * sizeof(double));
}

// -> elements kept, ties among them
py::tuple bind_keep_above(const std::string& function, const std::string& method, const py::array& weights,
                          const OptionalArray& aux, std::uint64_t seed, std::int64_t first_index, double threshold,
                          std::int64_t ties, const py::array& mask) {
  Item item = make_item(function.c_str(), method, weights, aux, seed, first_index);
  item.mask = buffer<std::uint8_t>("mask", mask, mask_bytes(view(function.c_str(), "weights", weights)), true);
  std::int64_t used = 0;
  std::atomic<bool> nan{false};
  {
    const Running running;
    used = keep_above(item, threshold, ties, NanRule{NanRank::low, nan});
  }
  refuse_nan(function, item, nan);
  return py::make_tuple(item.nnz, used);
}

void bind_apply_mask(const Arrays& weights, const Arrays& masks, const Arrays& outs) {
  check_lists(weights.size(), {masks.size(), outs.size()});
  std::vector<Array> from, to;
  std::vector<const std::uint8_t*> bits;
  for (std::size_t i = 0; i < weights.size(); ++i) {
    from.push_back(view("apply_mask", "weights", weights[i]));
    to.push_back(writable_view("apply_mask", "out", outs[i]));
    const Array& w = from.back();
    bits.push_back(buffer<std::uint8_t>("mask", masks[i], mask_bytes(w), false));
    check_out("apply_mask", to.back(), w.rows(), w.cols(), w.dtype(), {&w, 1});
  }
  check_outs_apart("apply_mask", to, from);
  const Running running;
  for (std::size_t i = 0; i < from.size(); ++i) apply_mask(from[i], bits[i], to[i]);
}

void bind_adjust(const std::vector<std::string>& names, const Arrays& weights, const Arrays& scores, double rate,
                 const std::string& rule, const Arrays& outs) {
  check_lists(weights.size(), {names.size(), scores.size(), outs.size()});
  std::vector<AdjustTensor> tensors;
  for (std::size_t i = 0; i < weights.size(); ++i)
    tensors.push_back({names[i], view("adjust", "weights", weights[i]), view("adjust", "scores", scores[i]),
                       writable_view("adjust", "out", outs[i])});
  const Running running;
  adjust("adjust", tensors, rate, rule);
}

void bind_nonzero_mask(const std::string& function, const py::array& weights, const py::array& mask) {
  const Array w = view(function.c_str(), "w", weights);
  std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, mask_bytes(w), true);
  const Running running;
  nonzero_mask(w, bits);
}

std::int64_t bind_count(const py::array& mask, std::int64_t rows, std::int64_t cols) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const Running running;
  return count_mask(bits, rows, cols);
}

bool bind_padding_is_zero(const py::array& mask, std::int64_t rows, std::int64_t cols) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const Running running;
  return padding_is_zero(bits, rows, cols);
}

void bind_indices(const py::array& mask, std::int64_t rows, std::int64_t cols, const py::array& indices) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  std::int64_t* to = buffer<std::int64_t>("indices", indices, count_mask(bits, rows, cols), true);
  const Running running;
  mask_indices(bits, rows, cols, to);
}

void bind_add_squares(const py::array& x, double decay, const py::array& sums) {
  const Array a = view("Stats.update", "x", x);
  double* to = buffer<double>("sums", sums, a.cols(), true);
  const Running running;
  add_squares(a, decay, to);
}

void bind_subtract_products(const py::array& weights, const py::array& grads, double decay, const py::array& sums) {
  const Array w = view("Stats.update", "weights", weights), g = view("Stats.update", "grads", grads);
  if (g.rows() != w.rows() || g.cols() != w.cols()) value_error("Stats.update: grads must have the shape of weights");
  double* to = buffer<double>("sums", sums, w.size(), true);
  const Running running;
  subtract_products(w, g, decay, to);
}

// --- CSR -------------------------------------------------------------------------------------------------------------

CsrPattern unchecked_pattern(std::int64_t rows, std::int64_t cols, const py::array& indptr, const py::array& indices) {
  CsrPattern p{rows, cols, buffer<std::int64_t>("indptr", indptr, rows + 1, false), nullptr, indices.itemsize() == 8};
  p.indices = p.wide ? static_cast<const void*>(buffer<std::int64_t>("indices", indices, indices.size(), false))
                     : static_cast<const void*>(buffer<std::int32_t>("indices", indices, indices.size(), false));
  return p;
}

CsrPattern make_pattern(std::int64_t rows, std::int64_t cols, const py::array& indptr, const py::array& indices) {
  const CsrPattern p = unchecked_pattern(rows, cols, indptr, indices);
  if (p.nnz() != indices.size()) value_error("_core: indptr must end with the number of indices");
  return p;
}

void bind_check_csr(const std::string& function, std::int64_t rows, std::int64_t cols, const py::array& indptr,
                    const py::array& indices) {
  const CsrPattern p = unchecked_pattern(rows, cols, indptr, indices);
  const std::int64_t stored = indices.size();
  const Running running;
  check_csr(function.c_str(), p, stored);
}

void bind_mask_to_indptr(const py::array& mask, std::int64_t rows, std::int64_t cols, const py::array& indptr) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  std::int64_t* to = buffer<std::int64_t>("indptr", indptr, rows + 1, true);
  const Running running;
  mask_to_indptr(bits, rows, cols, to);
}

void bind_mask_to_indices(const py::array& mask, std::int64_t rows, std::int64_t cols, const py::array& indptr,
                          const py::array& indices) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const CsrPattern p = make_pattern(rows, cols, indptr, indices);
  if (count_mask(bits, rows, cols) != p.nnz()) value_error("_core: indptr does not belong to the mask");
  void* to = const_cast<void*>(indices.data());
  const Running running;
  mask_to_indices(bits, p, to);
}

void bind_mask_to_values(const std::string& function, const py::array& weights, const py::array& mask,
                         const py::array& indptr, const py::array& values) {
  const Array w = view(function.c_str(), "w", weights);
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, mask_bytes(w), false);
  const std::int64_t* starts = buffer<std::int64_t>("indptr", indptr, w.rows() + 1, false);
  const Array v = writable_view(function.c_str(), "values", values);
  if (v.dtype() != w.dtype() || !v.contiguous() || v.size() != count_mask(bits, w.rows(), w.cols()) ||
      v.size() != starts[w.rows()])
    value_error("_core: values do not belong to the mask");
  const Running running;
  mask_to_values(w, bits, starts, v.data());
}

void bind_pattern_to_mask(std::int64_t rows, std::int64_t cols, const py::array& indptr, const py::array& indices,
                          const py::array& mask) {
  const CsrPattern p = make_pattern(rows, cols, indptr, indices);
  std::uint8_t* to = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), true);
  const Running running;
  pattern_to_mask(p, to);
}

// Values as a format holds them, one for each of its `count` places; int8 too.
Array stored_values(const char* function, std::int64_t count, const py::array& values, bool writable = false) {
  if (writable) check_writable(function, "values", values);
  const bool int8 = py::isinstance<py::array_t<std::int8_t>>(values) && values.ndim() == 1;
  const std::int64_t size = values.size(), stride = int8 ? values.strides(0) : 0;
  const Array v = int8 ? Array(const_cast<void*>(values.data()), DType::int8, 1, &size, &stride, function)
                       : view(function, "values", values);
  if (!v.contiguous() || v.size() != count)
    value_error(format("%s: values must have one entry a place of the format", function));
  return v;
}

std::string bind_check_format(const std::string& function, const std::string& format, const py::array& mask,
                              std::int64_t rows, std::int64_t cols) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const Running running;
  return check_format(function.c_str(), format, bits, rows, cols);
}

void bind_quantize(const std::string& function, const std::string& argument, std::int64_t rows, const py::array& indptr,
                   const py::array& values, const py::array& numbers, const py::array& scales) {
  const std::int64_t* starts = buffer<std::int64_t>("indptr", indptr, rows + 1, false);
  const Array from = view(function.c_str(), argument.c_str(), values);
  if (from.rows() != 1 || from.cols() != starts[rows]) value_error("_core: indptr does not belong to the values");
  const Array to = stored_values(function.c_str(), from.cols(), numbers, true);
  if (to.dtype() != DType::int8) type_error("_core: numbers must be int8");
  float* of_rows = buffer<float>("scales", scales, rows, true);
  const Running running;
  quantize(function.c_str(), argument.c_str(), starts, rows, from, reinterpret_cast<std::int8_t*>(to.data()), of_rows);
}

void bind_values_to_dense(const py::array& mask, std::int64_t rows, std::int64_t cols, const py::array& indptr,
                          const py::array& values, const py::array& out) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const std::int64_t* starts = buffer<std::int64_t>("indptr", indptr, rows + 1, false);
  const std::int64_t kept = count_mask(bits, rows, cols);
  if (starts[rows] != kept) value_error("_core: indptr does not belong to the mask");
  const Array v = stored_values("to_dense", kept, values), to = stored_values("to_dense", rows * cols, out, true);
  if (to.dtype() != v.dtype()) type_error("_core: out must have the values' dtype");
  const Running running;
  values_to_dense(bits, rows, cols, starts, v.dtype(), v.data(), to.data());
}

void bind_transpose(std::int64_t rows, std::int64_t cols, const py::array& indptr, const py::array& indices,
                    const py::array& t_indptr, const py::array& t_indices, const py::array& order) {
  const CsrPattern p = make_pattern(rows, cols, indptr, indices);
  std::int64_t* starts = buffer<std::int64_t>("t_indptr", t_indptr, cols + 1, true);
  const bool wide = t_indices.itemsize() == 8;
  void* to = wide ? static_cast<void*>(buffer<std::int64_t>("t_indices", t_indices, p.nnz(), true))
                  : static_cast<void*>(buffer<std::int32_t>("t_indices", t_indices, p.nnz(), true));
  std::int64_t* from = buffer<std::int64_t>("order", order, p.nnz(), true);
  const Running running;
  transpose(p, starts, to, wide, from);
}

void bind_gather(const py::array& values, const py::array& order, const py::array& out) {
  const Array from = view("gather", "values", values), to = writable_view("gather", "out", out);
  const std::int64_t n = from.size();
  if (!from.contiguous() || !to.contiguous() || to.size() != n || to.dtype() != from.dtype())
    value_error("_core: out must be contiguous and like the values");
  const std::int64_t* places = buffer<std::int64_t>("order", order, n, false);
  const Running running;
  gather(from.dtype(), from.data(), places, n, to.data());
}

// --- products --------------------------------------------------------------------------------------------------------

Epilogue make_epilogue(const char* function, const OptionalArray& bias, const std::string& activation,
                       const OptionalArray& residual) {
  Epilogue e;
  e.activation = parse_activation(function, activation);
  if (bias) e.bias = view(function, "bias", *bias);
  if (residual) e.residual = view(function, "residual", *residual);
  return e;
}

// One of ops/matmul.hpp's products of a pattern and its values.
template <class Product, class Pattern>
void run_product(Product product, const char* f, const Pattern& pattern, std::int64_t rows, const Array& values,
                 const OptionalArray& scales, const py::array& x, bool linear, const OptionalArray& bias,
                 const std::string& activation, const OptionalArray& residual, const py::array& out) {
  const Array from = view(f, "x", x), to = writable_view(f, "out", out);
  Epilogue e = make_epilogue(f, bias, activation, residual);
  if (scales) e.scales = buffer<float>("scales", *scales, rows, false);
  if (to.overlaps(values)) value_error(format("%s: out must not overlap with the values of a, got one that does", f));
  const Running running;
  product(f, pattern, values.dtype(), values.data(), from, linear, e, to);
}

void bind_matmul(const std::string& function, std::int64_t rows, std::int64_t cols, const py::array& indptr,
                 const py::array& indices, const py::array& values, const OptionalArray& scales, const py::array& x,
                 bool linear, const OptionalArray& bias, const std::string& activation, const OptionalArray& residual,
                 const py::array& out) {
  const char* f = function.c_str();
  const CsrPattern p = make_pattern(rows, cols, indptr, indices);
  run_product(matmul_csr, f, p, rows, stored_values(f, p.nnz(), values), scales, x, linear, bias, activation, residual,
              out);
}

// A PanelPattern and its values are immutable on the Python side; their sizes are checked here all the same.
std::shared_ptr<PanelPattern> make_panels(const py::array& mask, std::int64_t rows, std::int64_t cols) {
  const std::uint8_t* bits = buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false);
  const Running running;
  return std::make_shared<PanelPattern>(bits, rows, cols);
}

void reorder_panels(const PanelPattern& p, const py::array& indptr, const py::array& from, const py::array& to,
                    bool pack) {
  const std::int64_t* starts = buffer<std::int64_t>("indptr", indptr, p.rows() + 1, false);
  const Array a = stored_values("_core", pack ? p.nnz() : p.room(), from);
  const Array b = stored_values("_core", pack ? p.room() : p.nnz(), to, true);
  if (a.dtype() != b.dtype()) type_error("_core: values must keep their dtype");
  if (starts[p.rows()] != p.nnz()) value_error("_core: indptr does not belong to the panels");
  const Running running;
  pack ? p.pack(starts, a.dtype(), a.data(), b.data()) : p.unpack(starts, a.dtype(), a.data(), b.data());
}

void bind_matmul_panel(const std::string& function, const PanelPattern& p, const py::array& values,
                       const OptionalArray& scales, const py::array& x, bool linear, const OptionalArray& bias,
                       const std::string& activation, const OptionalArray& residual, const py::array& out) {
  const char* f = function.c_str();
  run_product(matmul_panel, f, p, p.rows(), stored_values(f, p.room(), values), scales, x, linear, bias, activation,
              residual, out);
}

void bind_matmul_bitmask(const std::string& function, const py::array& mask, std::int64_t rows, std::int64_t cols,
                         const py::array& indptr, const py::array& values, const OptionalArray& scales,
                         const py::array& x, bool linear, const OptionalArray& bias, const std::string& activation,
                         const OptionalArray& residual, const py::array& out) {
  const char* f = function.c_str();
  const BitmaskPattern p{rows, cols, buffer<std::uint8_t>("mask", mask, rows * row_bytes(cols), false),
                         buffer<std::int64_t>("indptr", indptr, rows + 1, false)};
  run_product(matmul_bitmask, f, p, rows, stored_values(f, p.indptr[rows], values), scales, x, linear, bias, activation,
              residual, out);
}

// What matmul checks, for a product that another library computes.
void bind_check_product(const std::string& function, std::int64_t rows, std::int64_t cols, const py::array& x,
                        bool linear, const OptionalArray& bias, const std::string& activation,
                        const OptionalArray& residual, const py::array& out) {
  const char* f = function.c_str();
  check_product(f, rows, cols, view(f, "x", x), linear, make_epilogue(f, bias, activation, residual),
                writable_view(f, "out", out));
}

void bind_epilogue(const std::string& function, bool linear, const OptionalArray& bias, const std::string& activation,
                   const OptionalArray& residual, const py::array& out) {
  const char* f = function.c_str();
  const Epilogue e = make_epilogue(f, bias, activation, residual);
  const Array to = writable_view(f, "out", out);
  const Running running;
  apply_epilogue(f, linear, e, to);
}

void bind_activation_grad(const py::array& z, const py::array& dy, const std::string& activation,
                          const py::array& out) {
  constexpr const char* f = "SparseLinear.backward";
  const Array at = view(f, "z", z), from = view(f, "dy", dy), to = writable_view(f, "out", out);
  const Act act = parse_activation(f, activation);
  const Running running;
  activation_grad(f, at, from, act, to);
}

void bind_sddmm(const std::string& function, const py::array& x, const py::array& y, std::int64_t rows,
                std::int64_t cols, const py::array& indptr, const py::array& indices, const py::array& values) {
  const char* f = function.c_str();
  const CsrPattern p = make_pattern(rows, cols, indptr, indices);
  const Array a = view(f, "x", x), b = view(f, "y", y), to = wide_writable_view(f, "values", values);
  if (!to.contiguous() || to.size() != p.nnz()) value_error(format("%s: out must have one value a kept position", f));
  const Running running;
  sddmm(f, a, b, p, to.dtype(), to.data());
}

// --- the process -----------------------------------------------------------------------------------------------------

void bind_set_num_threads(std::int64_t n) {
  if (n < 1 || n > 1 << 16) value_error(format("set_num_threads: n must be in [1, 65536], got %lld", ll(n)));
  const Running running;
  set_num_threads(static_cast<int>(n));
}

py::dict info() {
  py::dict d;
  d["version"] = gossamer_version();
  d["isa"] = active_isa().name;
  py::list supported;
  for (const Isa& isa : isas())
    if (isa.supported) supported.append(isa.name);
  d["isa_supported"] = supported;
  d["threads"] = num_threads();
  d["processors"] = usable_processors();
  const char* reason = cuda_unavailable_reason();
  d["cuda"] = py::dict(py::arg("available") = reason == nullptr,
                       py::arg("reason") = reason == nullptr ? py::object(py::none()) : py::object(py::str(reason)));
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
  const std::string compiler = "gcc " __VERSION__;
#else
  const std::string compiler = "unknown";
#endif
#if defined(NDEBUG)
  const bool debug = false;
#else
  const bool debug = true;
#endif
  d["build"] = py::dict(py::arg("compiler") = compiler, py::arg("debug") = debug);
  return d;
}

// name -> (what it needs beside the weights: "", "grads", "seed" or the kind of its Stats; default group)
py::dict method_table() {
  py::dict d;
  for (const Method& m : methods()) d[m.name] = py::make_tuple(name_of(m.needs), m.group);
  return d;
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used(), py::multiple_interpreters::per_interpreter_gil()) {
  py::register_local_exception_translator(&translate);
  try {
    active_isa();
  } catch (const Error& error) {
    throw py::import_error(error.what());
  }
  m.def("score", &bind_score);
  m.def("select", &bind_select);
  m.def("collect", &bind_collect);
  m.def("keep_above", &bind_keep_above);
  m.def("unit_scores", &bind_unit_scores);
  m.def("apply_mask", &bind_apply_mask);
  m.def("adjust", &bind_adjust);
  m.def("nonzero_mask", &bind_nonzero_mask);
  m.def("count_bits", &bind_count);
  m.def("padding_is_zero", &bind_padding_is_zero);
  m.def("mask_indices", &bind_indices);
  m.def("add_squares", &bind_add_squares);
  m.def("subtract_products", &bind_subtract_products);
  m.def("check_csr", &bind_check_csr);
  m.def("mask_to_indptr", &bind_mask_to_indptr);
  m.def("mask_to_indices", &bind_mask_to_indices);
  m.def("mask_to_values", &bind_mask_to_values);
  m.def("pattern_to_mask", &bind_pattern_to_mask);
  m.def("check_format", &bind_check_format);
  m.def("quantize", &bind_quantize);
  m.def("values_to_dense", &bind_values_to_dense);
  m.def("transpose", &bind_transpose);
  m.def("gather", &bind_gather);
  m.def("matmul", &bind_matmul);
  py::class_<PanelPattern, std::shared_ptr<PanelPattern>>(m, "Panels")
      .def(py::init(&make_panels))
      .def_property_readonly("nbytes", &PanelPattern::nbytes)
      .def_property_readonly("room", &PanelPattern::room)
      .def("reorder", &reorder_panels);
  m.def("matmul_panel", &bind_matmul_panel);
  m.def("matmul_bitmask", &bind_matmul_bitmask);
  m.def("check_product", &bind_check_product);
  m.def("epilogue", &bind_epilogue);
  m.def("activation_grad", &bind_activation_grad);
  m.def("sddmm", &bind_sddmm);
  m.def("info", &info);
  m.def("methods", &method_table);
  m.def("kept_count", &kept_count);
  m.def("set_num_threads", &bind_set_num_threads);
  m.def("get_num_threads", [] { return num_threads(); });
}

}  // namespace gossamer::bindings
