// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "core/array.hpp"
#include "core/table.hpp"
#include "ops/compress.hpp"
#include "ops/panel.hpp"

namespace gossamer {

struct Epilogue {
  Act activation = Act::identity;
  const float* scales = nullptr;  // of the rows of A, or null; before everything else
  std::optional<Array> bias;      // one entry a row of A
  std::optional<Array> residual;  // like out, added after the activation
};

Act parse_activation(const char* function, const std::string& name);

// linear = false: out = act(A X + bias) + residual, X [cols, n], out [rows, n].
// linear = true:  out = act(X A^T + bias) + residual, X [n, cols], out [n, rows].
// Computed in float64 for float64 values, else in float32; x (not float64 for other values), out, bias and residual
// are converted. out may be the residual, but
// must not overlap x. X is packed into scratch of at most 256 columns at a time.
void matmul_csr(const char* function, const CsrPattern& a, DType dtype, const void* values, const Array& x, bool linear,
                const Epilogue& epilogue, const Array& out);

// The same with the values in the order of the panels.
void matmul_panel(const char* function, const PanelPattern& a, DType dtype, const void* values, const Array& x,
                  bool linear, const Epilogue& epilogue, const Array& out);

// The same with a packed mask and the values that it keeps, in row-major order (indptr [rows + 1]): meant for up to
// four columns of X at a time.
struct BitmaskPattern {
  std::int64_t rows, cols;
  const std::uint8_t* mask;
  const std::int64_t* indptr;
};
void matmul_bitmask(const char* function, const BitmaskPattern& a, DType dtype, const void* values, const Array& x,
                    bool linear, const Epilogue& epilogue, const Array& out);

// Throws unless the shapes of a product fit and out may be written.
void check_product(const char* function, std::int64_t rows, std::int64_t cols, const Array& x, bool linear,
                   const Epilogue& epilogue, const Array& out);

// out = act(out + bias) + residual, for products that another library computed. bias along rows or columns of out.
void apply_epilogue(const char* function, bool linear, const Epilogue& epilogue, const Array& out);

// out = dy * act'(z)
void activation_grad(const char* function, const Array& z, const Array& dy, Act activation, const Array& out);

}  // namespace gossamer
