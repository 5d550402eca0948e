// SPDX-License-Identifier: Apache-2.0
// What the names of formats say about a mask, and values as int8.
#pragma once
#include <string>

#include "core/array.hpp"

namespace gossamer {

// "auto", "csr", "panel", "bitmask" and "dense", which any matrix has.
bool names_no_pattern(const std::string& format);
// The format that is meant: one of "auto", "csr", "panel", "bitmask", "dense" as it is; "N:M", and "n:m" as the N:M
// that is found, if the mask keeps at most N (for "n:m" exactly N) of every M consecutive elements of a row;
// "bsr:RxC" if it keeps whole blocks. Throws for any other.
std::string check_format(const char* function, const std::string& format, const std::uint8_t* mask, std::int64_t rows,
                         std::int64_t cols);

// Values [nnz] in row-major order as whole numbers from -127 to 127 and a scale for each row: its largest magnitude /
// 127, but never below what float32 holds well. Throws for NaN and infinity (in float32).
void quantize(const char* function, const char* argument, const std::int64_t* indptr, std::int64_t rows,
              const Array& values, std::int8_t* numbers, float* scales);
// out[i] = numbers[i] * scale of its row.
void dequantize(const std::int64_t* indptr, std::int64_t rows, const std::int8_t* numbers, const float* scales,
                float* out);

}  // namespace gossamer
