// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <vector>

#include "core/array.hpp"

namespace gossamer {

struct AdjustTensor {
  std::string name;  // for messages; may be empty
  Array weights, scores, out;
  double center = 0, spread = 0;  // found by adjust() for rule "scale"
};

// rule "sign": out = weights - rate * sign(scores). rule "scale": out = weights * (1 + rate * (scores - c) / d), with c
// the lower median of the scores and d = max |scores - c|; a copy where d = 0. NaN scores are an error;
// all tensors are checked before the first is written.
void adjust(const char* function, std::vector<AdjustTensor>& tensors, double rate, const std::string& rule);

}  // namespace gossamer
