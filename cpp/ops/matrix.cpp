// SPDX-License-Identifier: Apache-2.0
#include "ops/matrix.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/formats.hpp"
#include "ops/mask.hpp"
#include "ops/score.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

using Bytes = Lines<std::byte>;

std::size_t size_in_bytes(std::int64_t count, DType dtype) {
  return static_cast<std::size_t>(count) * static_cast<std::size_t>(size_of(dtype));
}

Array vector_of(const void* values, DType dtype, std::int64_t n) {
  return Array(const_cast<void*>(values), dtype, 1, &n, nullptr, "values");
}

// n values as another float type (int8 as the whole numbers that they are).
void convert_values(const Array& from, DType dtype, void* to, std::int64_t n) {
  if (from.dtype() == dtype && from.contiguous()) {
    if (n > 0) std::memcpy(to, from.data(), size_in_bytes(n, dtype));
    return;
  }
  dispatch_stored(dtype, [&](auto zero) {
    using T = decltype(zero);
    struct Tile {
      T values[tile_size];
    };
    PerWorker<Tile> scratch;
    for_all_tiles(1, n, scratch, [&](Tile& t, std::int64_t, std::int64_t at, std::int64_t count) {
      T* part = static_cast<T*>(to) + at;
      if (from.dtype() != DType::int8) {
        const T* v = from.load(0, at, count, t.values);
        std::copy(v, v + count, part);
      } else if constexpr (sizeof(T) >= 4) {
        const auto* numbers = reinterpret_cast<const std::int8_t*>(from.data()) + at;
        for (std::int64_t i = 0; i < count; ++i) part[i] = static_cast<T>(numbers[i]);
      }
    });
  });
}

void check_scales(const char* function, const float* scales, std::int64_t rows, const Array& values) {
  for (std::int64_t r = 0; r < rows; ++r)
    if (!(std::isfinite(scales[r]) && scales[r] >= 0))
      value_error(format("%s: scales must be finite and not negative, got others", function));
  const auto* numbers = reinterpret_cast<const std::int8_t*>(values.data());
  if (std::find(numbers, numbers + values.size(), std::int8_t{-128}) != numbers + values.size())
    value_error(format("%s: int8 values must be in [-127, 127], got -128", function));
}

}  // namespace

std::int64_t packed_size(std::int64_t rows, std::int64_t cols) {
  if (rows > 0 && row_bytes(cols) > std::numeric_limits<std::int64_t>::max() / rows) throw std::bad_alloc();
  return rows * row_bytes(cols);
}

void copy_rows(const void* from, const Array& out) {
  const Array to = out.moved();
  dispatch_moved(to.dtype(), [&](auto zero) {
    using T = decltype(zero);
    const T* rows = static_cast<const T*>(from);
    for_rows(to.rows(), to.cols(), [&](std::int64_t r) { to.store(r, 0, to.cols(), rows + r * to.cols()); });
  });
}

// --- structure -------------------------------------------------------------------------------------------------------

Structure::Structure(std::int64_t rows_, std::int64_t cols_, std::unique_ptr<const std::vector<std::uint8_t>> mask)
    : rows(rows_), cols(cols_), indptr_(static_cast<std::size_t>(rows_ + 1)), mask_(std::move(mask)) {
  mask_to_indptr(mask_.peek()->data(), rows, cols, indptr_.data());
}

Structure::Structure(std::int64_t rows_, std::int64_t cols_, std::vector<std::int64_t> indptr,
                     std::unique_ptr<const Lines<std::byte>> indices)
    : rows(rows_), cols(cols_), indptr_(std::move(indptr)), indices_(std::move(indices)) {}

Structure::Structure(const CsrPattern& pattern)
    : rows(pattern.rows), cols(pattern.cols), indptr_(pattern.indptr, pattern.indptr + pattern.rows + 1) {
  auto made = std::make_unique<Bytes>(static_cast<std::size_t>(nnz()) * (wide() ? 8 : 4));
  with_indices(pattern, [&](const auto* from) {
    const auto copy = [&](auto* to) {
      for (std::int64_t i = 0; i < nnz(); ++i) to[i] = static_cast<std::remove_pointer_t<decltype(to)>>(from[i]);
    };
    wide() ? copy(reinterpret_cast<std::int64_t*>(made->data())) : copy(reinterpret_cast<std::int32_t*>(made->data()));
  });
  indices_.set(std::move(made));
}

const std::uint8_t* Structure::mask() const {
  const auto& bits = mask_.get([&] {
    std::vector<std::uint8_t> packed(static_cast<std::size_t>(packed_size(rows, cols)));
    pattern_to_mask(csr(), packed.data());
    return packed;
  });
  return bits.data();
}

CsrPattern Structure::csr() const {
  CsrPattern pattern{rows, cols, indptr(), nullptr, wide()};
  const auto& indices = indices_.get([&] {
    Bytes made(static_cast<std::size_t>(nnz()) * (wide() ? 8 : 4));
    mask_to_indices(mask_.peek()->data(), pattern, made.data());
    return made;
  });
  pattern.indices = indices.data();
  return pattern;
}

const PanelPattern& Structure::panels() const {
  return panels_.get([&] { return PanelPattern(mask(), rows, cols); });
}

const Structure::Transposed& Structure::transposed() const {
  return transposed_.get([&] {
    std::vector<std::int64_t> starts(static_cast<std::size_t>(cols + 1)), order(static_cast<std::size_t>(nnz()));
    const bool other_wide = needs_wide(rows);
    auto indices = std::make_unique<Bytes>(static_cast<std::size_t>(nnz()) * (other_wide ? 8 : 4));
    transpose(csr(), starts.data(), indices->data(), other_wide, order.data());
    return Transposed{std::make_shared<const Structure>(cols, rows, std::move(starts), std::move(indices)),
                      std::move(order)};
  });
}

std::int64_t Structure::nbytes() const {
  std::int64_t bytes = 8 * (rows + 1);
  if (mask_.peek() != nullptr) bytes += static_cast<std::int64_t>(mask_.peek()->size());
  if (indices_.peek() != nullptr) bytes += nnz() * (wide() ? 8 : 4);
  if (panels_.peek() != nullptr) bytes += panels_.peek()->nbytes();
  if (const Transposed* t = transposed_.peek()) bytes += t->structure->nbytes() + 8 * nnz();
  return bytes;
}

// --- matrix ----------------------------------------------------------------------------------------------------------

Matrix::Matrix(const char* function, const char* argument, std::shared_ptr<const Structure> structure,
               const Array& values, DType dtype, const float* scales, const std::string& asked)
    : structure_(std::move(structure)), dtype_(dtype) {
  asked_ = names_no_pattern(asked) ? asked : check_format(function, asked, structure_->mask(), rows(), cols());
  auto held = std::make_unique<Bytes>(size_in_bytes(nnz(), dtype));
  if (dtype != DType::int8) {
    convert_values(values, dtype, held->data(), nnz());
  } else {
    scales_.resize(static_cast<std::size_t>(rows()));
    auto* numbers = reinterpret_cast<std::int8_t*>(held->data());
    if (values.dtype() == DType::int8) {
      check_scales(function, scales, rows(), values);
      std::copy(scales, scales + rows(), scales_.begin());
      convert_values(values, dtype, numbers, nnz());
    } else {
      quantize(function, argument, structure_->indptr(), rows(), values, numbers, scales_.data());
    }
  }
  values_ = std::move(held);
  if (asked_ == "panel") {
    panel_values();
    values_.reset();
  }
}

std::unique_ptr<Matrix> Matrix::from_dense(const char* function, const Array& w, const std::uint8_t* mask, DType dtype,
                                           const std::string& asked) {
  const std::int64_t bytes = packed_size(w.rows(), w.cols());
  auto bits = std::make_unique<std::vector<std::uint8_t>>(static_cast<std::size_t>(bytes));
  if (mask == nullptr) {
    nonzero_mask(w, bits->data());
  } else {
    std::copy(mask, mask + bytes, bits->begin());
  }
  const std::uint8_t* packed = bits->data();
  auto structure = std::make_shared<const Structure>(w.rows(), w.cols(), std::move(bits));
  Bytes values(size_in_bytes(structure->nnz(), w.dtype()));
  mask_to_values(w, packed, structure->indptr(), values.data());
  const Array kept = vector_of(values.data(), w.dtype(), structure->nnz());
  return std::make_unique<Matrix>(function, "w", structure, kept, dtype, nullptr, asked);
}

std::int64_t Matrix::nbytes() const {
  std::int64_t bytes = structure_->nbytes() + static_cast<std::int64_t>(scales_.size() * sizeof(float));
  if (values_) bytes += nnz() * size_of(dtype_);
  if (panel_values_.peek() != nullptr) bytes += structure_->panels().room() * size_of(dtype_);
  return bytes;
}

const void* Matrix::panel_values() const {
  const auto& packed = panel_values_.get([&] {
    const PanelPattern& panels = structure_->panels();
    Bytes made(size_in_bytes(panels.room(), dtype_));
    panels.pack(structure_->indptr(), dtype_, values_->data(), made.data());
    return made;
  });
  return packed.data();
}

void Matrix::copy_values(void* values) const {
  if (values_)
    std::copy_n(values_->data(), size_in_bytes(nnz(), dtype_), static_cast<std::byte*>(values));
  else
    structure_->panels().unpack(structure_->indptr(), dtype_, panel_values(), values);
}

const void* Matrix::floats(Lines<std::byte>& room) const {
  const void* values = nullptr;
  if (values_) {
    values = values_->data();
  } else {
    room = Bytes(size_in_bytes(nnz(), dtype_));
    copy_values(room.data());
    values = room.data();
  }
  if (dtype_ != DType::int8) return values;
  Bytes wide(size_in_bytes(nnz(), DType::float32));
  dequantize(structure_->indptr(), rows(), static_cast<const std::int8_t*>(values), scales(),
             reinterpret_cast<float*>(wide.data()));
  room = std::move(wide);
  return room.data();
}

void Matrix::to_dense(const char* function, const Array& out) const {
  const DType dtype = dtype_ == DType::int8 ? DType::float32 : dtype_;
  check_out(function, out, rows(), cols(), dtype, {});
  if (out.empty()) return;
  Bytes made, whole;
  const void* values = floats(made);
  void* to = out.data();
  if (!out.contiguous()) to = (whole = Bytes(size_in_bytes(rows() * cols(), dtype))).data();
  values_to_dense(structure_->mask(), rows(), cols(), structure_->indptr(), dtype, values, to);
  if (!out.contiguous()) copy_rows(to, out);
}

std::unique_ptr<Matrix> Matrix::with_values(const char* function, const Array& values) const {
  if (values.dtype() == DType::int8 && dtype_ != DType::int8)
    type_error(format("%s: values must be floats for a matrix of %s, got int8", function, name_of(dtype_)));
  const DType dtype = dtype_ == DType::int8 ? DType::int8 : values.dtype();
  auto made = std::make_unique<Matrix>(function, "values", structure_, values, dtype, scales(),
                                       asked_ == "panel" ? "panel" : "auto");
  made->asked_ = asked_;  // which the structure has been found to have
  return made;
}

std::unique_ptr<Matrix> Matrix::transposed(const char* function) const {
  const Structure::Transposed& other = structure_->transposed();
  const DType dtype = dtype_ == DType::int8 ? DType::float32 : dtype_;
  Bytes made;
  const void* values = floats(made);
  Bytes gathered(size_in_bytes(nnz(), dtype));
  gather(dtype, values, other.order.data(), nnz(), gathered.data());
  return std::make_unique<Matrix>(function, "values", other.structure, vector_of(gathered.data(), dtype, nnz()), dtype,
                                  nullptr, names_no_pattern(asked_) ? asked_ : "auto");
}

Matrix::Kernel Matrix::kernel(std::int64_t columns) const {
  if (asked_ == "csr") return Kernel::csr;
  if (asked_ == "bitmask") return Kernel::bitmask;
  if (asked_ == "panel") return Kernel::panel;
  // Below these densities the others pay more for every element, kept or not, than CSR for those that are (plan.py).
  const double few = columns == 1 ? 0.15 : columns <= 4 ? 0.08 : 0.04;
  if (static_cast<double>(nnz()) < few * static_cast<double>(rows()) * static_cast<double>(cols())) return Kernel::csr;
  return columns <= 4 ? Kernel::bitmask : Kernel::panel;
}

void Matrix::multiply(const char* function, const Array& x, bool linear, Epilogue epilogue, const Array& out) const {
  epilogue.scales = scales();
  check_product(function, rows(), cols(), x, linear, epilogue, out);
  const Kernel chosen = kernel(linear ? x.rows() : x.cols());
  // The row-major ones are there unless all products are of panels.
  const void* values = chosen == Kernel::panel ? panel_values() : values_->data();
  Bytes wide;
  DType dtype = dtype_;
  if (x.dtype() == DType::float64 && dtype != DType::float64) {  // the product of float64 needs float64 values
    const std::int64_t n = chosen == Kernel::panel ? structure_->panels().room() : nnz();
    wide = Bytes(size_in_bytes(n, DType::float64));
    convert_values(vector_of(values, dtype, n), DType::float64, wide.data(), n);
    values = wide.data();
    dtype = DType::float64;
  }
  switch (chosen) {
    case Kernel::csr: return matmul_csr(function, structure_->csr(), dtype, values, x, linear, epilogue, out);
    case Kernel::panel: return matmul_panel(function, structure_->panels(), dtype, values, x, linear, epilogue, out);
    case Kernel::bitmask: {
      const BitmaskPattern pattern{rows(), cols(), structure_->mask(), structure_->indptr()};
      return matmul_bitmask(function, pattern, dtype, values, x, linear, epilogue, out);
    }
  }
}

}  // namespace gossamer
