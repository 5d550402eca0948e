// SPDX-License-Identifier: Apache-2.0
#include "ops/units.hpp"

#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"
#include "ops/bits.hpp"

namespace gossamer {
namespace {

template <class T>
void score(const ScoreSource& source, Units& units) {
  const auto& table = kernels<T>();
  const std::int64_t per_tile = std::max<std::int64_t>(1, tile_size / units.width);
  const std::int64_t tiles = (units.cols + per_tile - 1) / per_tile;
  const std::int64_t step = std::max<std::int64_t>(
      1, chunk_size / std::max<std::int64_t>(1, units.height * std::min(units.cols, per_tile) * units.width));
  const std::int64_t strips = (units.rows + step - 1) / step;
  PerWorker<ScoreScratch<T>> scratch;
  parallel_for(strips * tiles, scratch, [&](std::int64_t job, ScoreScratch<T>& s) {
    const std::int64_t first = job % tiles * per_tile, last = std::min(units.cols, first + per_tile);
    const std::int64_t strip_begin = job / tiles * step, strip_end = std::min(units.rows, strip_begin + step);
    for (std::int64_t strip = strip_begin; strip < strip_end; ++strip) {
      double* sums = units.scores.data() + strip * units.cols + first;
      for (std::int64_t row = strip * units.height; row < (strip + 1) * units.height; ++row) {
        if (units.width > tile_size) {  // one unit, longer than a tile
          double lane[8] = {};
          for (std::int64_t col = 0; col < units.width; col += tile_size) {
            const std::int64_t n = std::min(tile_size, units.width - col);
            table.add_lanes(score_tile(source, row, first * units.width + col, n, s), n, lane);
          }
          sums[0] += sum_of_lanes(lane);
          continue;
        }
        const T* scores = score_tile(source, row, first * units.width, (last - first) * units.width, s);
        if (units.width == 1) {
          table.add_scores(scores, sums, last - first);
          continue;
        }
        for (std::int64_t u = 0; u < last - first; ++u) {
          double lane[8] = {};
          table.add_lanes(scores + u * units.width, units.width, lane);
          sums[u] += sum_of_lanes(lane);
        }
      }
    }
  });
}

}  // namespace

Units make_units(const Pattern& pattern, std::int64_t rows, std::int64_t cols) {
  Units u{};
  switch (pattern.kind) {
    case Pattern::Kind::row: u.height = 1, u.width = cols, u.rows = rows, u.cols = 1; break;
    case Pattern::Kind::col: u.height = rows, u.width = 1, u.rows = 1, u.cols = cols; break;
    default: u.height = pattern.a, u.width = pattern.b; u.rows = rows / u.height, u.cols = cols / u.width;
  }
  u.scores.assign(static_cast<std::size_t>(u.rows * u.cols), 0.0);
  u.mask.assign(static_cast<std::size_t>(u.rows * row_bytes(u.cols)), 0);
  return u;
}

void score_units(ScoreSource source, Units& units) {
  const bool squared = source.criterion == Criterion::taylor2;  // of the sum, not the sum of squares
  if (squared) source.criterion = Criterion::product;
  dispatch(source.dtype(), [&](auto zero) { score<decltype(zero)>(source, units); });
  if (squared)
    for (double& s : units.scores) s *= s;
}

void units_prior(const std::uint8_t* prior, std::int64_t cols, Units& units) {
  units.prior.assign(static_cast<std::size_t>(units.rows * row_bytes(units.cols)), 0);
  for (std::int64_t r = 0; r < units.rows; ++r)
    for (std::int64_t c = 0; c < units.cols; ++c) {
      bool all = true;
      for (std::int64_t row = r * units.height; all && row < (r + 1) * units.height; ++row)
        all = all_set(prior + row * row_bytes(cols), c * units.width, (c + 1) * units.width);
      if (all) set_bit(units.prior.data() + r * row_bytes(units.cols), c);
    }
}

void expand_units(const Units& units, std::int64_t rows, std::int64_t cols, std::uint8_t* mask) {
  if (rows == 0 || cols == 0) return;
  std::memset(mask, 0, static_cast<std::size_t>(rows * row_bytes(cols)));
  parallel_for(units.rows, [&](std::int64_t r) {
    const std::uint8_t* kept = units.mask.data() + r * row_bytes(units.cols);
    std::uint8_t* first = mask + r * units.height * row_bytes(cols);
    if (units.width == 1) {
      std::memcpy(first, kept, static_cast<std::size_t>(row_bytes(cols)));
    } else {
      for (std::int64_t c = 0; c < units.cols; ++c)
        if (bit(kept, c)) set_range(first, c * units.width, (c + 1) * units.width);
    }
    for (std::int64_t row = 1; row < units.height; ++row)
      std::memcpy(first + row * row_bytes(cols), first, static_cast<std::size_t>(row_bytes(cols)));
  });
}

}  // namespace gossamer
