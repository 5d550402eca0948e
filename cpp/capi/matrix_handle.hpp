// SPDX-License-Identifier: Apache-2.0
// What a gossamer_matrix is.
#pragma once
#include <memory>

#include "capi/guard.hpp"
#include "ops/matrix.hpp"

struct gossamer_matrix {
  std::unique_ptr<const gossamer::Matrix> matrix;
};

namespace gossamer::capi {

inline const Matrix& of(const char* function, const char* argument, const gossamer_matrix* a) {
  return *given(function, argument, a)->matrix;
}
inline gossamer_matrix* hold(std::unique_ptr<const Matrix> matrix) { return new gossamer_matrix{std::move(matrix)}; }

}  // namespace gossamer::capi
