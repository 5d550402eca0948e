// SPDX-License-Identifier: Apache-2.0
#include "ops/prune.hpp"

#include "ops/mask.hpp"

namespace gossamer {

void prune(const char* function, std::vector<SelectTensor>& tensors, const Selection& how,
           const std::vector<Array>& outs) {
  std::vector<Array> inputs;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Array& weights = tensors[i].source.weights;
    check_out(function, outs[i], weights.rows(), weights.cols(), weights.dtype(), {&weights, 1});
    inputs.push_back(weights);
  }
  check_outs_apart(function, outs, inputs);
  select(function, tensors, how);
  for (std::size_t i = 0; i < tensors.size(); ++i) apply_mask(tensors[i].source.weights, tensors[i].mask, outs[i]);
}

}  // namespace gossamer
