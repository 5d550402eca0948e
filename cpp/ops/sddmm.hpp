// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "core/array.hpp"
#include "ops/compress.hpp"

namespace gossamer {

// values[i] = x[row(i), :] . y[column(i), :] for the positions of `pattern`; x [rows, k], y [cols, k]. Inputs whose
// rows are not contiguous (or of another dtype) are packed into scratch of their size. values [nnz] of `dtype`.
void sddmm(const char* function, const Array& x, const Array& y, const CsrPattern& pattern, DType dtype, void* values);

}  // namespace gossamer
