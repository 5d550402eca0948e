// SPDX-License-Identifier: Apache-2.0
// Running statistics in float64. Each sum takes its terms in the order of the rows, whatever the number of threads.
#pragma once
#include "core/array.hpp"

namespace gossamer {

// sums[c] = decay * sums[c] + sum over rows of x[row, c]^2; sums has x.cols() entries.
void add_squares(const Array& x, double decay, double* sums);
// sums[i] = decay * sums[i] - grads[i] * weights[i] over all elements, flat order.
void subtract_products(const Array& weights, const Array& grads, double decay, double* sums);

}  // namespace gossamer
