// SPDX-License-Identifier: Apache-2.0
// The one exception type of the library. ops/ throws it; bindings and the C ABI translate it.
#pragma once
#include <charconv>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

#include "gossamer/gossamer.h"

namespace gossamer {

class Error : public std::runtime_error {
 public:
  Error(gossamer_status status, const std::string& message) : std::runtime_error(message), status_(status) {}
  gossamer_status status() const { return status_; }

 private:
  gossamer_status status_;
};

#if defined(__GNUC__)
#define GOSSAMER_PRINTF(format_index) __attribute__((format(printf, format_index, format_index + 1)))
#else
#define GOSSAMER_PRINTF(format_index)
#endif

GOSSAMER_PRINTF(1) inline std::string format(const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

// The shortest decimal that reads back as x, as Python's repr.
inline std::string text(double x) {
  char buffer[40];
  std::string digits(buffer, std::to_chars(buffer, buffer + sizeof buffer, x).ptr);
  return digits.find_first_not_of("-0123456789") == std::string::npos ? digits + ".0" : digits;
}

// A shape as Python writes it.
inline std::string shape_text(std::int64_t rows, std::int64_t cols) {
  return format("(%lld, %lld)", static_cast<long long>(rows), static_cast<long long>(cols));
}

inline long long ll(std::int64_t x) { return static_cast<long long>(x); }  // for %lld

[[noreturn]] inline void value_error(const std::string& message) { throw Error(GOSSAMER_ERROR_VALUE, message); }
[[noreturn]] inline void type_error(const std::string& message) { throw Error(GOSSAMER_ERROR_TYPE, message); }

}  // namespace gossamer
