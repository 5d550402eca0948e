// SPDX-License-Identifier: Apache-2.0
#include "ops/formats.hpp"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>

#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/tiles.hpp"

namespace gossamer {
namespace {

constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();

// The lowest unit = row * per_row + i for which f(row, i) holds, or `none`.
template <class F>
std::int64_t first_where(std::int64_t rows, std::int64_t per_row, std::int64_t cost, F&& f) {
  std::atomic<std::int64_t> found{none};
  for_rows(rows, cost, [&](std::int64_t row) {
    for (std::int64_t i = 0; i < per_row; ++i) {
      if (!f(row, i)) continue;
      std::int64_t seen = found.load();
      while (row * per_row + i < seen && !found.compare_exchange_weak(seen, row * per_row + i)) {
      }
      return;
    }
  });
  return found.load();
}

// Bits [first, first + n) of a row, n <= 32.
std::uint32_t bits_of(const std::uint8_t* row, std::int64_t bytes, std::int64_t first, std::int64_t n) {
  std::uint64_t word = 0;
  const std::int64_t begin = first / 8, count = std::min<std::int64_t>(5, bytes - begin);
  for (std::int64_t i = 0; i < count; ++i) word |= static_cast<std::uint64_t>(row[begin + i]) << (8 * i);
  return static_cast<std::uint32_t>(word >> (first % 8) & ((std::uint64_t{1} << n) - 1));
}

// The first group of `of` consecutive elements whose number of kept ones is wrong, as row * groups + group.
template <class Wrong>
std::int64_t find_group(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols, std::int64_t of,
                        Wrong&& wrong) {
  const std::int64_t bytes = row_bytes(cols);
  return first_where(rows, cols / of, cols, [&](std::int64_t row, std::int64_t group) {
    return wrong(std::popcount(bits_of(mask + row * bytes, bytes, group * of, of)));
  });
}

void check_n_of_m(const char* function, std::int64_t keep, std::int64_t of, const std::uint8_t* mask, std::int64_t rows,
                  std::int64_t cols) {
  if (of < 1 || of > 32 || keep > of)
    value_error(format("%s: format N:M must have N <= M <= 32, got %lld:%lld", function, ll(keep), ll(of)));
  if (cols % of != 0)
    value_error(format("%s: format %lld:%lld must divide the rows into groups, got %s", function, ll(keep), ll(of),
                       shape_text(rows, cols).c_str()));
  const std::int64_t bad = find_group(mask, rows, cols, of, [&](int kept) { return kept > keep; });
  if (bad != none)
    value_error(format("%s: mask must keep at most %lld of every %lld, got more in row %lld, group %lld", function,
                       ll(keep), ll(of), ll(bad / (cols / of)), ll(bad % (cols / of))));
}

// The smallest M of which every group keeps as many; of a mask without elements the smallest M, and N = 0.
std::string find_n_of_m(const char* function, const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  const std::int64_t nnz = count_bits(mask, rows * row_bytes(cols)), size = std::max<std::int64_t>(1, rows * cols);
  for (std::int64_t of = 2; of <= 32; ++of) {
    if (cols % of != 0) continue;
    const std::int64_t groups = size / of;
    if (rows * cols != 0 && nnz % groups != 0) continue;
    const std::int64_t keep = rows * cols == 0 ? 0 : nnz / groups;
    if (find_group(mask, rows, cols, of, [&](int kept) { return kept != keep; }) == none)
      return std::to_string(keep) + ":" + std::to_string(of);
  }
  value_error(
      format("%s: mask must keep N of every M <= 32 consecutive elements for format 'n:m', got another", function));
}

void check_blocks(const char* function, std::int64_t height, std::int64_t width, const std::uint8_t* mask,
                  std::int64_t rows, std::int64_t cols) {
  if (rows % height != 0 || cols % width != 0)
    value_error(format("%s: format bsr:%lldx%lld must divide the shape into blocks, got %s", function, ll(height),
                       ll(width), shape_text(rows, cols).c_str()));
  if (rows == 0) return;  // any height divides it, and height * cols may overflow
  const std::int64_t bytes = row_bytes(cols);
  const std::int64_t bad =
      first_where(rows / height, cols / width, height * cols, [&](std::int64_t row, std::int64_t column) {
        std::int64_t kept = 0;
        for (std::int64_t r = row * height; r < (row + 1) * height; ++r)
          for (std::int64_t c = column * width; c < (column + 1) * width; c += 32) {
            const std::int64_t n = std::min<std::int64_t>(32, (column + 1) * width - c);
            kept += std::popcount(bits_of(mask + r * bytes, bytes, c, n));
          }
        return kept != 0 && kept != height * width;
      });
  if (bad != none)
    value_error(format("%s: mask must keep whole %lldx%lld blocks, got a part of block (%lld, %lld)", function,
                       ll(height), ll(width), ll(bad / (cols / width)), ll(bad % (cols / width))));
}

// A number without sign, leading zeros or anything after it, of so many digits at most.
std::optional<std::int64_t> number(std::string_view digits, std::size_t most) {
  std::int64_t value = 0;
  const char* end = digits.data() + digits.size();
  if (digits.empty() || digits.size() > most || (digits.size() > 1 && digits[0] == '0') || digits[0] == '-') return {};
  const auto [at, error] = std::from_chars(digits.data(), end, value);
  if (at != end || error != std::errc{}) return {};
  return value;
}

struct Pair {
  std::int64_t first, second;
};
std::optional<Pair> pair(std::string_view text, char between, std::size_t digits) {
  const std::size_t at = text.find(between);
  if (at == std::string_view::npos) return {};
  const auto first = number(text.substr(0, at), digits), second = number(text.substr(at + 1), digits);
  if (!first || !second) return {};
  return Pair{*first, *second};
}

}  // namespace

bool names_no_pattern(const std::string& asked) {
  return asked == "auto" || asked == "csr" || asked == "panel" || asked == "bitmask" || asked == "dense";
}

std::string check_format(const char* function, const std::string& format_, const std::uint8_t* mask, std::int64_t rows,
                         std::int64_t cols) {
  if (names_no_pattern(format_)) return format_;
  if (format_ == "n:m") return find_n_of_m(function, mask, rows, cols);
  if (const auto ratio = pair(format_, ':', 2)) {
    check_n_of_m(function, ratio->first, ratio->second, mask, rows, cols);
    return format_;
  }
  if (format_.starts_with("bsr:"))
    if (const auto block = pair(std::string_view(format_).substr(4), 'x', 9);
        block && block->first > 0 && block->second > 0) {
      check_blocks(function, block->first, block->second, mask, rows, cols);
      return format_;
    }
  value_error(format("%s: format must be one of auto, csr, panel, bitmask, dense, n:m, N:M, bsr:RxC, got '%.99s'",
                     function, format_.c_str()));
}

void quantize(const char* function, const char* argument, const std::int64_t* indptr, std::int64_t rows,
              const Array& values, std::int8_t* numbers, float* scales) {
  // A smaller scale has too few digits; 127 times a larger one is infinite.
  constexpr float smallest = FLT_MIN;
  const float largest_scale = std::nextafter(FLT_MAX / 127.0f, 0.0f);
  struct Tile {
    float values[tile_size];
  };
  PerWorker<Tile> scratch;
  std::atomic<bool> infinite{false};
  for_rows(rows, indptr[rows] / std::max<std::int64_t>(1, rows), scratch, [&](std::int64_t row, Tile& t) {
    const std::int64_t begin = indptr[row], end = indptr[row + 1];
    float largest = 0;
    bool finite = true;
    for (std::int64_t at = begin; at < end; at += tile_size) {
      const std::int64_t n = std::min(tile_size, end - at);
      const float* v = values.load(0, at, n, t.values);
      for (std::int64_t i = 0; i < n; ++i) {
        const float magnitude = std::fabs(v[i]);
        finite = finite && magnitude <= FLT_MAX;
        largest = std::max(largest, magnitude);
      }
    }
    if (!finite) infinite = true;
    const float scale = largest > 0 ? std::clamp(largest / 127.0f, smallest, largest_scale) : 0.0f;
    scales[row] = scale;
    for (std::int64_t at = begin; at < end && finite; at += tile_size) {
      const std::int64_t n = std::min(tile_size, end - at);
      const float* v = values.load(0, at, n, t.values);
      for (std::int64_t i = 0; i < n; ++i)
        numbers[at + i] =
            static_cast<std::int8_t>(std::clamp(std::nearbyint(v[i] / (scale > 0 ? scale : 1.0f)), -127.0f, 127.0f));
    }
  });
  if (infinite)
    value_error(format("%s: %s must be finite (in float32) for dtype int8, got NaN or infinity", function, argument));
}

void dequantize(const std::int64_t* indptr, std::int64_t rows, const std::int8_t* numbers, const float* scales,
                float* out) {
  for_rows(rows, indptr[rows] / std::max<std::int64_t>(1, rows), [&](std::int64_t row) {
    for (std::int64_t i = indptr[row]; i < indptr[row + 1]; ++i) out[i] = scales[row] * static_cast<float>(numbers[i]);
  });
}

}  // namespace gossamer
