// SPDX-License-Identifier: Apache-2.0
// Structured units: rows, columns and blocks of a tensor, selected as wholes.
#pragma once
#include <cstdint>
#include <vector>

#include "ops/score.hpp"
#include "ops/select.hpp"

namespace gossamer {

struct Units {
  std::int64_t height, width;  // elements of a unit
  std::int64_t rows, cols;     // units of the tensor
  std::vector<double> scores;
  std::vector<std::uint8_t> prior, mask;
};

// The units of a matrix, nothing scored or kept yet; the pattern must divide it.
Units make_units(const Pattern& pattern, std::int64_t rows, std::int64_t cols);
// Fills units.scores: the float64 sums of the elements' scores. A unit's row segments are summed in 8 lanes each
// (element j of the segment in lane j mod 8) and added from top to bottom: one order, whatever the threads or the ISA.
void score_units(ScoreSource source, Units& units);
// Fills units.prior: a unit may be kept if all of its elements may.
void units_prior(const std::uint8_t* prior, std::int64_t cols, Units& units);
// The packed mask [rows, cols] of the units in units.mask.
void expand_units(const Units& units, std::int64_t rows, std::int64_t cols, std::uint8_t* mask);

}  // namespace gossamer
