// SPDX-License-Identifier: Apache-2.0
// Views: whatever numpy can describe is read and written at the addresses that its strides say, compared with a plain
// walk over the index; bounds and overlaps with the sets of bytes.
#include "core/array.hpp"

#include <cmath>
#include <set>
#include <vector>

#include "check.hpp"
#include "random.hpp"

using namespace gossamer;

namespace {

// A view as numpy describes it; `data` may be unaligned.
struct View {
  char* data;
  DType dtype;
  std::vector<std::int64_t> shape, strides;

  Array array() const {
    return Array(data, dtype, static_cast<int>(shape.size()), shape.data(), strides.data(), "test: x");
  }
  std::int64_t size() const {
    std::int64_t n = 1;
    for (std::int64_t s : shape) n *= s;
    return n;
  }
  std::int64_t rows() const { return shape.size() >= 2 ? shape[0] : 1; }
  // Where the element of a flat index lies.
  char* at(std::int64_t flat) const {
    char* p = data;
    for (std::size_t d = shape.size(); d-- > 0;) {
      p += flat % shape[d] * strides[d];
      flat /= shape[d];
    }
    return p;
  }
  double get(std::int64_t flat) const {
    return dispatch(dtype, [&](auto value) {
      std::memcpy(&value, at(flat), sizeof value);
      return static_cast<double>(value);
    });
  }
  std::set<const char*> bytes() const {
    std::set<const char*> all;
    for (std::int64_t i = 0; i < size(); ++i)
      for (std::int64_t b = 0; b < size_of(dtype); ++b) all.insert(at(i) + b);
    return all;
  }
};

// A random view into `memory`: sliced, reversed, permuted, broadcast, with new axes, of either dtype, maybe unaligned.
View random_view(Random& random, std::vector<char>& memory, bool broadcasts) {
  View v{memory.data(), random.below(2) != 0 ? DType::float32 : DType::float64, {}, {}};
  const auto item = size_of(v.dtype);
  std::int64_t room = static_cast<std::int64_t>(memory.size()) - 8;
  if (random.below(4) == 0) v.data += random.between(1, 7);
  std::int64_t base_stride = item;
  for (std::int64_t dims = random.between(0, 4); dims > 0; --dims) {
    const std::int64_t most = std::min<std::int64_t>(7, room / base_stride);
    if (most < 1) break;
    const std::int64_t extent = random.between(1, most);
    const std::int64_t step = random.between(1, 3), length = random.below(12) == 0 ? 0 : (extent + step - 1) / step;
    v.shape.insert(v.shape.begin(), length);
    v.strides.insert(v.strides.begin(), base_stride * step);
    if (random.below(3) == 0 && length > 0) {  // reversed
      v.data += (length - 1) * v.strides[0];
      v.strides[0] = -v.strides[0];
    }
    base_stride *= extent + random.below(2);
    if (base_stride > room) break;
  }
  for (std::size_t d = v.shape.size(); d > 1; --d) {  // permuted
    const auto other = static_cast<std::size_t>(random.below(static_cast<std::int64_t>(d)));
    if (random.below(2) == 0) continue;
    std::swap(v.shape[d - 1], v.shape[other]);
    std::swap(v.strides[d - 1], v.strides[other]);
  }
  if (random.below(4) == 0) {
    const auto where = static_cast<std::ptrdiff_t>(random.below(static_cast<std::int64_t>(v.shape.size()) + 1));
    const bool broadcast = broadcasts && random.below(2) == 0;
    v.shape.insert(v.shape.begin() + where, broadcast ? random.between(2, 4) : 1);
    v.strides.insert(v.strides.begin() + where, broadcast ? 0 : random.between(-100, 100));
  }
  return v;
}

std::vector<char> numbers(Random& random) {
  std::vector<char> memory(4096);
  for (std::size_t i = 0; i < memory.size(); i += 4) {  // finite in either dtype at any alignment of 4
    const auto value = static_cast<float>(random.unit());
    std::memcpy(&memory[i], &value, 4);
  }
  return memory;
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

template <class T>
void check_load(Random& random, const View& v, const Array& a) {
  if (a.empty()) return;
  const std::int64_t row = random.below(a.rows()), col = random.below(a.cols()), n = random.between(0, a.cols() - col);
  const Heap<T> buffer(n);
  const T* got = a.load<T>(row, col, n, buffer.data());
  bool right = true;
  for (std::int64_t i = 0; i < n; ++i)
    right = right &&
            same(static_cast<double>(got[i]), static_cast<double>(static_cast<T>(v.get(row * a.cols() + col + i))));
  CHECK(right);
  const T* direct = a.direct<T>(row, col);
  CHECK(direct == nullptr || reinterpret_cast<const char*>(direct) == v.at(row * a.cols() + col));
  CHECK((direct != nullptr) == (a.rows_contiguous() && a.dtype() == dtype_of<T>));
}

template <class T>
void check_store(Random& random, const View& v, const Array& a, std::vector<char>& memory) {
  if (a.empty() || a.repeats_elements()) return;
  const std::int64_t row = random.below(a.rows()), col = random.below(a.cols()), n = random.between(0, a.cols() - col);
  Heap<T> values(n);
  for (std::int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(i + 1);
  const std::vector<char> before = memory;
  a.store(row, col, n, values.data());
  std::set<const char*> written;
  bool right = true;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int64_t flat = row * a.cols() + col + i;
    right = right && v.get(flat) == static_cast<double>(i + 1);
    for (std::int64_t b = 0; b < size_of(v.dtype); ++b) written.insert(v.at(flat) + b);
  }
  CHECK(right);
  bool rest = true;
  for (std::size_t i = 0; i < memory.size(); ++i)
    rest = rest && (memory[i] == before[i] || written.count(memory.data() + i) != 0);
  CHECK(rest);
  memory = before;
}

}  // namespace

TEST(random_views_read_and_write_where_their_strides_say) {
  Random random(1);
  std::vector<char> memory = numbers(random);
  for (int repeat = 0; repeat < 20000; ++repeat) {
    const View v = random_view(random, memory, true);
    const Array a = v.array();
    CHECK(a.size() == v.size() && a.rows() == v.rows());
    CHECK(a.empty() == (v.size() == 0));
    check_load<float>(random, v, a);
    check_load<double>(random, v, a);
    check_store<float>(random, v, a, memory);
    check_store<double>(random, v, a, memory);

    const std::set<const char*> bytes = v.bytes();
    const char *low, *high;
    a.bounds(low, high);
    if (bytes.empty()) {
      CHECK(low == high);
    } else {
      CHECK(low == *bytes.begin() && high == *bytes.rbegin() + 1);
    }
    const bool repeats = static_cast<std::int64_t>(bytes.size()) != v.size() * size_of(v.dtype);
    CHECK(a.repeats_elements() || !repeats);
    bool in_order = reinterpret_cast<std::uintptr_t>(v.data) % static_cast<std::uintptr_t>(size_of(v.dtype)) == 0;
    for (std::int64_t i = 0; i < v.size(); ++i) in_order = in_order && v.at(i) == v.data + i * size_of(v.dtype);
    if (a.contiguous()) CHECK(in_order || v.size() == 0);
    if (in_order && v.size() > 1) CHECK(a.contiguous() || v.rows() == 1 || a.cols() == 1);
    if (a.contiguous() && !a.empty()) {
      const Array flat = a.flat();
      CHECK(flat.rows() == 1 && flat.cols() == a.size());
      CHECK(flat.contiguous());
      float got = 0;
      const std::int64_t i = random.below(a.size());
      CHECK(same(*flat.load<float>(0, i, 1, &got), static_cast<double>(static_cast<float>(v.get(i)))));
    }
    if (a.can_transpose() && !a.empty()) {
      const Array t = a.transposed();
      CHECK(t.rows() == a.cols() && t.cols() == a.rows());
      const std::int64_t row = random.below(t.rows()), col = random.below(t.cols());
      double value = 0;
      CHECK(same(*t.load<double>(row, col, 1, &value), v.get(col * a.cols() + row)));
      const Array back = t.transposed();
      CHECK(back.same_view(a) && back.rows_contiguous() == a.rows_contiguous());
    }
    if (!a.empty()) {
      const std::int64_t row = random.below(a.rows()), col = random.below(a.cols());
      const Array one = a.row(row);
      double value = 0;
      CHECK(one.rows() == 1 && one.cols() == a.cols());
      CHECK(same(*one.load<double>(0, col, 1, &value), v.get(row * a.cols() + col)));
    }
  }
}

TEST(overlaps_are_never_missed_and_the_same_view_is_known) {
  Random random(2);
  std::vector<char> memory(300);
  int apart = 0, together = 0;
  for (int repeat = 0; repeat < 20000; ++repeat) {
    const View v = random_view(random, memory, true), w = random_view(random, memory, true);
    const Array a = v.array(), b = w.array();
    const std::set<const char*> mine = v.bytes();
    bool meet = false;
    for (const char* byte : w.bytes()) meet = meet || mine.count(byte) != 0;
    if (meet) CHECK(a.overlaps(b) && b.overlaps(a));
    CHECK(a.overlaps(b) == b.overlaps(a));
    apart += !a.overlaps(b);
    together += meet;
    CHECK(a.same_view(a));
    bool equal = v.dtype == w.dtype && a.rows() == b.rows() && a.cols() == b.cols();
    for (std::int64_t i = 0; equal && i < v.size(); ++i) equal = v.at(i) == w.at(i);
    if (a.same_view(b)) CHECK(equal);
  }
  CHECK(apart > 1000 && together > 1000, "apart=%d together=%d", apart, together);
}

TEST(interleaved_views_do_not_overlap) {
  float memory[64] = {};
  char* p = reinterpret_cast<char*>(memory);
  const auto view = [&](std::int64_t first, std::vector<std::int64_t> shape, std::vector<std::int64_t> strides,
                        DType dtype = DType::float32) {
    return View{p + 4 * first, dtype, shape, strides}.array();
  };
  CHECK(!view(0, {32}, {8}).overlaps(view(1, {32}, {8})));              // a[::2], a[1::2]
  CHECK(!view(62, {32}, {-8}).overlaps(view(1, {32}, {8})));            // a[::-2] of the even ones
  CHECK(!view(0, {8, 4}, {32, 4}).overlaps(view(4, {8, 4}, {32, 4})));  // left and right half of a matrix
  CHECK(!view(0, {4, 8}, {64, 4}).overlaps(view(8, {4, 8}, {64, 4})));  // even and odd rows
  CHECK(view(0, {32}, {8}).overlaps(view(2, {10}, {24})));
  CHECK(view(0, {32}, {8}).overlaps(view(1, {20}, {12})));
  CHECK(view(0, {10}, {4}).overlaps(view(9, {10}, {4})));
  CHECK(!view(0, {10}, {4}).overlaps(view(10, {10}, {4})));
  CHECK(!view(0, {10}, {4}).overlaps(view(5, {0}, {4})));
  CHECK(!view(0, {16}, {16}, DType::float64).overlaps(view(2, {16}, {16})));
  CHECK(view(0, {16}, {16}, DType::float64).overlaps(view(1, {16}, {16})));
  CHECK(!view(0, {5}, {0}).overlaps(view(1, {5}, {0})));
  CHECK(view(0, {5}, {0}).overlaps(view(0, {1}, {4})));
  // Large ones are decided as fast: only the descriptions are looked at.
  constexpr std::int64_t n = 1 << 20;
  CHECK(!view(0, {n, 8}, {64, 4}).overlaps(view(8, {n, 8}, {64, 4})));
  CHECK(!view(0, {n, 8}, {64, 8}).overlaps(view(1, {n, 8}, {64, 8})));
  CHECK(!view(0, {n, 8, 8}, {1024, 128, 4}).overlaps(view(8, {8, n, 8}, {128, 1024, 4})));
  CHECK(view(0, {n, 8}, {64, 4}).overlaps(view(8, {n, 9}, {64, 4})));
}

TEST(views_that_begin_alike_and_go_on_differently_are_not_the_same) {
  float memory[64] = {};
  char* p = reinterpret_cast<char*>(memory);
  const Array a = View{p, DType::float32, {1, 2, 6}, {0, 64, 4}}.array();
  const Array b = View{p, DType::float32, {1, 3, 4}, {0, 64, 4}}.array();
  CHECK(!a.same_view(b));
  CHECK(a.same_view(View{p, DType::float32, {1, 2, 6}, {777, 64, 4}}.array()));  // one row: its stride is not used
}

TEST(an_array_for_writing_must_not_hold_an_element_twice) {
  float memory[64] = {};
  char* p = reinterpret_cast<char*>(memory);
  const auto repeats = [&](std::vector<std::int64_t> shape, std::vector<std::int64_t> strides) {
    return View{p, DType::float32, shape, strides}.array().repeats_elements();
  };
  CHECK(repeats({5}, {0}));
  CHECK(repeats({3, 3}, {0, 4}));
  CHECK(repeats({3, 3}, {4, 4}));  // sliding windows
  CHECK(repeats({3, 3}, {8, 4}));
  CHECK(repeats({3, 3}, {-8, 4}));
  CHECK(!repeats({3, 3}, {12, 4}));
  CHECK(!repeats({3, 3}, {4, 12}));
  CHECK(!repeats({3, 3}, {-4, 12}));
  CHECK(!repeats({1, 3}, {0, 4}));
  CHECK(!repeats({0, 3}, {0, 0}));
  CHECK(!repeats({2, 3, 4}, {48, 16, 4}));
  CHECK(!repeats({2, 4, 3}, {48, 4, 16}));
}

TEST(merged_dimensions) {
  float memory[4 * 3 * 5 * 7];
  for (int i = 0; i < 420; ++i) memory[i] = static_cast<float>(i);
  char* p = reinterpret_cast<char*>(memory);
  const Array dense = View{p, DType::float32, {4, 3, 5, 7}, {420, 140, 28, 4}}.array();
  CHECK(dense.contiguous() && dense.rows() == 4 && dense.cols() == 105);
  CHECK(dense.direct<float>(2, 50) == memory + 260);
  const Array apart = View{p, DType::float32, {2, 3, 5, 7}, {840, 140, 28, 4}}.array();
  CHECK(!apart.contiguous() && apart.rows_contiguous() && apart.direct<float>(1, 0) == memory + 210);
  const Array last = View{p, DType::float32, {4, 7, 3, 5}, {420, 4, 140, 28}}.array();
  CHECK(!last.rows_contiguous() && last.direct<float>(0, 0) == nullptr);
  float buffer[105];
  CHECK(last.load<float>(1, 0, 105, buffer)[16] == static_cast<float>(105 + 1 + 1 * 7));
  std::vector<std::int64_t> ones(64, 1), strides(64, 12345);
  ones[5] = 6;
  strides[5] = 4;
  CHECK((View{p, DType::float32, ones, strides}.array().cols()) == 6);
  CHECK(Array(p, DType::float32, 0, nullptr, nullptr, "f: x").size() == 1);
  CHECK(Array().empty());
}

TEST(bad_descriptions_are_refused) {
  double memory[4] = {};
  const auto make = [&](std::vector<std::int64_t> shape, const std::int64_t* strides = nullptr) {
    return Array(memory, DType::float64, static_cast<int>(shape.size()), shape.data(), strides, "f: x");
  };
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: x has a negative dimension -1", make({3, -1}));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: x must have 0 to 64 dimensions, got 65",
               make(std::vector<std::int64_t>(65, 1)));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "got -1", Array(memory, DType::float64, -1, nullptr, nullptr, "f: x"));
  constexpr std::int64_t big = std::int64_t{1} << 62;
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "larger than the address space", make({big}));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "larger than the address space", make({1 << 30, 1 << 30, 1 << 30}));
  // As in numpy, the dimensions beside a zero count too: nothing below may overflow on them.
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "larger than the address space", make({0, big, big}));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "larger than the address space", make({big, 0, big}));
  CHECK(make({0, 1 << 30}).empty());
  CHECK(make({1 << 30, 0}).empty());
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max(),
                         least = std::numeric_limits<std::int64_t>::min();
  for (const std::int64_t stride : {most, least, most / 4, least / 4}) {
    const std::int64_t wild[2] = {stride, 8}, unused[2] = {8, stride};
    CHECK_THROWS(GOSSAMER_ERROR_VALUE, "strides inside the address space", make({3, 2}, wild));
    CHECK(make({3, 1}, unused).size() == 3);
    CHECK(make({1, 2}, wild).contiguous());
  }
  const std::int64_t far[3] = {most / 9, most / 9, most / 9};
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "strides inside the address space", make({2, 2, 2}, far));
  const std::int64_t many[10] = {1024, 512, 511, 510, 509, 508, 507, 506, 505, 504};
  CHECK(make(std::vector<std::int64_t>(10, 2), many).cols() == 512);  // dimensions that do not merge
}

RUN_TESTS()
