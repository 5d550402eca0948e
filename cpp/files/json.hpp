// SPDX-License-Identifier: Apache-2.0
// JSON as headers of files need it, read strictly: UTF-8, no key twice, nothing after the value, 64 levels at most.
#pragma once
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gossamer::json {

// What is wrong, in words that follow "got".
class Malformed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Value {
  enum class Kind { null, boolean, integer, real, string, array, object } kind = Kind::null;
  std::int64_t integer = 0;  // numbers without point and exponent that fit; booleans as 0 and 1
  double real = 0;
  std::string string;  // UTF-8
  std::vector<Value> array;
  std::vector<std::pair<std::string, Value>> object;

  const Value* find(std::string_view key) const;  // null where there is none, or no object
};

Value parse(std::string_view text);

// With quotation marks; only what JSON demands is escaped.
std::string quoted(std::string_view text);
// On one line, of printable ASCII, and not all of it where it is long: for messages.
std::string shown(std::string_view text);
bool is_utf8(std::string_view text);

}  // namespace gossamer::json
