// SPDX-License-Identifier: Apache-2.0
// The fused path: select on scores that are never held in memory, then apply the masks.
#pragma once
#include <vector>

#include "ops/select.hpp"

namespace gossamer {

// Fills the masks of all tensors, and only then writes the pruned weights to `outs`.
void prune(const char* function, std::vector<SelectTensor>& tensors, const Selection& how,
           const std::vector<Array>& outs);

}  // namespace gossamer
