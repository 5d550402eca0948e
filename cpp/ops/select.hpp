// SPDX-License-Identifier: Apache-2.0
// Exact top-k: which units (elements, rows, columns, blocks, N of M) of which tensors are kept.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/array.hpp"
#include "ops/score.hpp"

namespace gossamer {

enum class Group { tensor, row, global };
enum class Nan { raise, prune, keep };

struct Pattern {
  enum class Kind { element, row, col, block, n_of_m } kind = Kind::element;
  std::int64_t a = 1, b = 1;  // block rows and columns; or keep a of b
};

struct Selection {
  std::optional<double> sparsity;  // exactly one of the three, but N:M needs none
  std::optional<std::int64_t> nnz;
  std::optional<double> threshold;
  Pattern pattern;
  Group group = Group::tensor;
  double min_density = 0;
  Nan nan = Nan::raise;
};

Pattern parse_pattern(const char* function, const std::string& text);
Group parse_group(const char* function, const std::string& text);
Nan parse_nan(const char* function, const std::string& text);

// n - floor(n * round(sparsity, 12) + 0.5), in binary64.
std::int64_t kept_count(std::int64_t n, double sparsity);

struct SelectTensor {
  std::string name;  // for messages; may be empty
  ScoreSource source;
  const std::uint8_t* prior = nullptr;  // packed; nullptr: everything may be kept
  std::uint8_t* mask = nullptr;         // packed result, rows * ceil(cols / 8) bytes
  std::int64_t nnz = 0;                 // result: elements kept
};

// Fills mask and nnz of every tensor. On an error the masks are not to be used.
void select(const char* function, std::vector<SelectTensor>& tensors, const Selection& how);

}  // namespace gossamer
