// SPDX-License-Identifier: Apache-2.0
#include "files/json.hpp"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <limits>

namespace gossamer::json {
namespace {

constexpr int max_depth = 64;
constexpr int max_values = 4'000'000;  // a parse then takes up to half a gigabyte

// The length of the well-formed UTF-8 sequence at the beginning, 0 if there is none.
std::size_t sequence(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const unsigned first = byte(0);
  const auto follows = [&](std::size_t i, unsigned low, unsigned high) { return byte(i) >= low && byte(i) <= high; };
  const auto more = [&](std::size_t i) { return follows(i, 0x80, 0xBF); };
  if (text.empty()) return 0;
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return more(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    const unsigned low = first == 0xE0 ? 0xA0 : 0x80, high = first == 0xED ? 0x9F : 0xBF;  // no surrogates
    return follows(1, low, high) && more(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    const unsigned low = first == 0xF0 ? 0x90 : 0x80, high = first == 0xF4 ? 0x8F : 0xBF;
    return follows(1, low, high) && more(2) && more(3) ? 4 : 0;
  }
  return 0;
}

void append_utf8(std::string& to, unsigned code) {
  const auto add = [&](unsigned byte) { to.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0 | code >> 6), add(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    add(0xE0 | code >> 12), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
  } else {
    add(0xF0 | code >> 18), add(0x80 | (code >> 12 & 0x3F)), add(0x80 | (code >> 6 & 0x3F)), add(0x80 | (code & 0x3F));
  }
}

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Value whole() {
    Value value = parse(0);
    skip_spaces();
    if (at_ != text_.size()) fail("something after the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Malformed(std::string("no JSON: ") + what + " at byte " + std::to_string(at_));
  }
  char next() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (next() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void skip_spaces() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }
  bool take_word(std::string_view word) {
    if (!text_.substr(at_).starts_with(word)) return false;
    at_ += word.size();
    return true;
  }

  Value parse(int depth) {
    if (depth > max_depth) fail("more than 64 levels");
    if (++values_ > max_values) fail("more than 4 million values");
    skip_spaces();
    Value value;
    if (next() == '{') return object(depth);
    if (next() == '[') return array(depth);
    if (next() == '"') {
      value.kind = Value::Kind::string;
      value.string = string();
    } else if (take_word("true") || take_word("false")) {
      value.kind = Value::Kind::boolean;
      value.integer = text_[at_ - 2] == 'u';
    } else if (!take_word("null")) {
      return number();
    }
    return value;
  }

  Value object(int depth) {
    Value value;
    value.kind = Value::Kind::object;
    ++at_;
    skip_spaces();
    if (take('}')) return value;
    do {
      skip_spaces();
      if (next() != '"') fail("no name");
      std::string name = string();
      skip_spaces();
      if (!take(':')) fail("no colon");
      value.object.emplace_back(std::move(name), parse(depth + 1));
      skip_spaces();
    } while (take(','));
    if (!take('}')) fail("an object without an end");
    // Found in a sorted list of them, since a header may have a million.
    std::vector<std::string_view> names;
    for (const auto& [name, _] : value.object) names.push_back(name);
    std::sort(names.begin(), names.end());
    if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
      throw Malformed("the key " + shown(*twice) + " twice");
    return value;
  }

  Value array(int depth) {
    Value value;
    value.kind = Value::Kind::array;
    ++at_;
    skip_spaces();
    if (take(']')) return value;
    do {
      value.array.push_back(parse(depth + 1));
      skip_spaces();
    } while (take(','));
    if (!take(']')) fail("an array without an end");
    return value;
  }

  Value number() {
    const std::size_t begin = at_;
    const auto digits = [&] {
      if (next() < '0' || next() > '9') fail("no value");
      while (next() >= '0' && next() <= '9') ++at_;
    };
    take('-');
    if (!take('0')) digits();
    bool whole = true;
    if (take('.')) whole = false, digits();
    if (next() == 'e' || next() == 'E') {
      whole = false;
      ++at_;
      if (next() == '+' || next() == '-') ++at_;
      digits();
    }
    Value value;
    const char *first = text_.data() + begin, *last = text_.data() + at_;
    if (whole && std::from_chars(first, last, value.integer).ec == std::errc{}) {
      value.kind = Value::Kind::integer;
      value.real = static_cast<double>(value.integer);
      return value;
    }
    value.kind = Value::Kind::real;
    if (std::from_chars(first, last, value.real).ec != std::errc{})
      value.real = std::numeric_limits<double>::infinity();
    return value;
  }

  unsigned hex4() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = next();
      if (c >= '0' && c <= '9')
        code = code * 16 + static_cast<unsigned>(c - '0');
      else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F'))
        code = code * 16 + static_cast<unsigned>((c | 0x20) - 'a') + 10;
      else
        fail("no four hexadecimal digits");
    }
    return code;
  }

  std::string string() {
    std::string result;
    ++at_;
    for (;;) {
      if (at_ == text_.size()) fail("a string without an end");
      const char c = text_[at_];
      if (c == '"') {
        ++at_;
        return result;
      }
      if (c != '\\') {
        const std::size_t length = sequence(text_.substr(at_));
        if (length == 0 || static_cast<unsigned char>(c) < 0x20) fail("no character");
        result.append(text_.substr(at_, length));
        at_ += length;
        continue;
      }
      ++at_;
      static constexpr std::string_view escapes = "\"\\/bfnrt", meanings = "\"\\/\b\f\n\r\t";
      const std::size_t escape = at_ < text_.size() ? escapes.find(text_[at_]) : std::string_view::npos;
      if (escape != std::string_view::npos) {
        result.push_back(meanings[escape]);
        ++at_;
        continue;
      }
      if (!take('u')) fail("an unknown escape");
      unsigned code = hex4();
      if (code >= 0xD800 && code <= 0xDBFF && take_word("\\u")) {
        const unsigned low = hex4();
        if (low < 0xDC00 || low > 0xDFFF) fail("half a character");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xD800 && code <= 0xDFFF) {
        fail("half a character");
      }
      append_utf8(result, code);
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
  int values_ = 0;
};

}  // namespace

const Value* Value::find(std::string_view key) const {
  for (const auto& [name, value] : object)
    if (name == key) return &value;
  return nullptr;
}

Value parse(std::string_view text) { return Parser(text).whole(); }

std::string quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      result += '\\';
      result += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      result += escape;
    } else {
      result += c;
    }
  }
  return result + '"';
}

std::string shown(std::string_view text) {
  std::string result = "'";
  for (const char c : text.substr(0, 40)) {
    if (c >= ' ' && c <= '~') {
      result += c;
      continue;
    }
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    result += escape;
  }
  return result + (text.size() > 40 ? "'..." : "'");
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const std::size_t length = sequence(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

}  // namespace gossamer::json
