// SPDX-License-Identifier: Apache-2.0
// The whole test framework: TEST(name) { CHECK(...); } and one RUN_TESTS() per program. Arguments name the tests to
// run.
#pragma once
#include <atomic>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

namespace check {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}
inline std::atomic<int> failures{0};

// "" for CHECK(x), the printed text for CHECK(x, "n=%d", n)
inline std::string note() { return ""; }
inline std::string note(const char* text) { return std::string(": ") + text; }
template <class First, class... Rest>
std::string note(const char* pattern, First first, Rest... rest) {
  char text[512];
  std::snprintf(text, sizeof text, pattern, first, rest...);
  return note(text);
}

inline void fail(const char* file, int line, const char* expression, const std::string& note) {
  if (++failures <= 20) std::fprintf(stderr, "%s:%d: CHECK(%s)%s\n", file, line, expression, note.c_str());
}

constexpr int skipped = 77;  // exit status that ctest reads as "skipped"

inline int run(int count, char** names) {
  int ran = 0, failed = 0;
  for (const Test& test : tests()) {
    bool wanted = count <= 1;
    for (int i = 1; i < count; ++i) wanted = wanted || std::strcmp(names[i], test.name) == 0;
    if (!wanted) continue;
    const int before = failures;
    try {
      test.run();
    } catch (const std::exception& error) {
      fail(test.name, 0, "no exception", std::string(": ") + error.what());
    }
    ++ran;
    if (failures != before) {
      ++failed;
      std::fprintf(stderr, "FAILED %s\n", test.name);
    }
  }
  std::printf("%d passed, %d failed\n", ran - failed, failed);
  return ran == 0 || failed != 0;
}

}  // namespace check

#define TEST(name)                                                                    \
  static void name();                                                                 \
  static const bool name##_listed = (check::tests().push_back({#name, &name}), true); \
  static void name()
#define CHECK(expression, ...) \
  ((expression) ? void() : check::fail(__FILE__, __LINE__, #expression, check::note(__VA_ARGS__)))
// The message of the gossamer::Error that the expression must throw; a failed check if it throws none.
#define CHECK_THROWS(wanted, fragment, ...)                                                                     \
  do {                                                                                                          \
    bool thrown = false;                                                                                        \
    try {                                                                                                       \
      __VA_ARGS__;                                                                                              \
    } catch (const gossamer::Error& error) {                                                                    \
      thrown = error.status() == (wanted) && std::strstr(error.what(), fragment) != nullptr;                    \
      if (!thrown) std::fprintf(stderr, "got status %d: %s\n", static_cast<int>(error.status()), error.what()); \
    }                                                                                                           \
    if (!thrown) check::fail(__FILE__, __LINE__, #__VA_ARGS__ " throws " #wanted " with " fragment, "");        \
  } while (false)
#define RUN_TESTS() \
  int main(int argc, char** argv) { return check::run(argc, argv); }
