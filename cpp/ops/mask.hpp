// SPDX-License-Identifier: Apache-2.0
// Packed masks: rows * ceil(cols / 8) bytes, little-endian bits, padding bits zero.
#pragma once
#include <cstdint>

#include "core/array.hpp"

namespace gossamer {

void apply_mask(const Array& weights, const std::uint8_t* mask, const Array& out);
// Bits of the elements that are not zero (NaN is not).
void nonzero_mask(const Array& weights, std::uint8_t* mask);

std::int64_t count_mask(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols);
// Flat indices of the kept elements, ascending: count_mask() of them.
void mask_indices(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t* indices);
bool padding_is_zero(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols);

}  // namespace gossamer
