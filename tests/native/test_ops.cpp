// SPDX-License-Identifier: Apache-2.0
// score, select and prune with the active instruction set (ctest runs one process per level) against an obvious sort:
// all patterns, groups, counts, priors, NaN rules, layouts and thread counts on random inputs with ties.
#include <algorithm>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/bits.hpp"
#include "ops/mask.hpp"
#include "ops/prune.hpp"
#include "ops/score.hpp"
#include "ops/select.hpp"
#include "random.hpp"

using namespace gossamer;

namespace {

// --- the obvious selection -------------------------------------------------------------------------------------------

struct Matrix {  // what a test selects on: scores in float64, exact for float32 ones
  std::int64_t rows = 0, cols = 0;
  std::vector<double> scores;
  std::vector<char> allowed;  // empty: everything is
  double at(std::int64_t r, std::int64_t c) const { return scores[static_cast<std::size_t>(r * cols + c)]; }
};

struct Unit {
  std::size_t tensor;
  std::int64_t row, col, height, width;  // its elements
  double score;
  bool allowed, kept = false;
};

// NaN under "prune" comes after -inf, under "keep" (and "raise", which never gets here) before +inf.
int rank_of(double score, Nan nan) { return score == score ? 0 : nan == Nan::keep ? 1 : -1; }
bool beats(const Unit& a, const Unit& b, Nan nan) {
  const int i = rank_of(a.score, nan), j = rank_of(b.score, nan);
  return i != j ? i > j : i == 0 && a.score > b.score;
}

double sum_of(const Matrix& m, const Unit& u) {
  double total = 0;
  for (std::int64_t r = u.row; r < u.row + u.height; ++r) {
    double l[8] = {};
    for (std::int64_t c = 0; c < u.width; ++c) l[c % 8] += m.at(r, u.col + c);
    const double sum = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    total += u.width == 1 ? m.at(r, u.col) : sum;
  }
  return total;
}

std::vector<Unit> units_of(const Matrix& m, std::size_t tensor, const Pattern& p) {
  std::int64_t height = 1, width = 1;
  const bool single = p.kind == Pattern::Kind::element || p.kind == Pattern::Kind::n_of_m;
  if (p.kind == Pattern::Kind::row) width = m.cols;
  if (p.kind == Pattern::Kind::col) height = m.rows;
  if (p.kind == Pattern::Kind::block) height = p.a, width = p.b;
  std::vector<Unit> units;
  const std::int64_t rows = p.kind == Pattern::Kind::col ? 1 : m.rows / height;
  const std::int64_t cols = p.kind == Pattern::Kind::row ? 1 : m.cols / width;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) {
      Unit u{tensor, r * height, c * width, height, width, 0, true};
      u.score = single ? m.at(r, c) : sum_of(m, u);
      for (std::int64_t i = u.row; !m.allowed.empty() && i < u.row + height; ++i)
        for (std::int64_t j = u.col; j < u.col + width; ++j)
          u.allowed = u.allowed && m.allowed[static_cast<std::size_t>(i * m.cols + j)];
      units.push_back(u);
    }
  return units;
}

// Marks the best `count` of the units pointed at. False if too few may be kept.
bool keep_best(std::vector<Unit*> units, std::int64_t count, Nan nan) {
  units.erase(std::remove_if(units.begin(), units.end(), [](Unit* u) { return !u->allowed || u->kept; }), units.end());
  if (count > static_cast<std::int64_t>(units.size())) return false;
  std::stable_sort(units.begin(), units.end(), [&](Unit* a, Unit* b) { return beats(*a, *b, nan); });
  for (std::int64_t i = 0; i < count; ++i) units[static_cast<std::size_t>(i)]->kept = true;
  return true;
}

// The kept elements of every matrix, or nothing if the call must fail.
std::optional<std::vector<std::vector<char>>> obvious(const std::vector<Matrix>& matrices, const Selection& how) {
  std::vector<std::vector<Unit>> units;
  for (std::size_t t = 0; t < matrices.size(); ++t) units.push_back(units_of(matrices[t], t, how.pattern));
  if (how.nan == Nan::raise)
    for (auto& list : units)
      for (Unit& u : list)
        if (u.score != u.score) return {};
  const auto count_of = [&](std::size_t n) {
    const auto size = static_cast<std::int64_t>(n);
    return how.sparsity ? kept_count(size, *how.sparsity) : *how.nnz;
  };
  // The sets that compete.
  std::vector<std::vector<Unit*>> sets;
  const bool windows = how.pattern.kind == Pattern::Kind::n_of_m;
  if (how.group == Group::global && !windows) sets.emplace_back();
  for (std::size_t t = 0; t < units.size(); ++t) {
    if (!windows && how.group == Group::tensor) sets.emplace_back();
    std::int64_t row = -1;
    for (Unit& u : units[t]) {
      const bool new_row = u.row != row && how.group == Group::row && how.pattern.kind != Pattern::Kind::col;
      const bool first_col = row == -1 && how.group == Group::row;
      if (windows ? u.col % how.pattern.b == 0 : new_row || first_col) sets.emplace_back();
      row = u.row;
      sets.back().push_back(&u);
    }
  }
  if (how.min_density > 0) {  // floors first
    for (auto& list : units) {
      std::vector<Unit*> own;
      for (Unit& u : list) own.push_back(&u);
      if (!keep_best(own, kept_count(static_cast<std::int64_t>(own.size()), 1 - how.min_density), how.nan)) return {};
    }
  }
  for (auto& set : sets) {
    if (how.threshold) {
      for (Unit* u : set) {
        const int rank = rank_of(u->score, how.nan);
        u->kept = u->allowed && (rank > 0 || (rank == 0 && u->score >= *how.threshold));
      }
      continue;
    }
    std::int64_t count = windows ? how.pattern.a : count_of(set.size());
    if (count > static_cast<std::int64_t>(set.size())) return {};
    for (Unit* u : set) count -= u->kept;
    if (count < 0 || !keep_best(set, count, how.nan)) return {};
  }
  std::vector<std::vector<char>> kept;
  for (std::size_t t = 0; t < units.size(); ++t) {
    kept.emplace_back(matrices[t].scores.size(), char{0});
    for (const Unit& u : units[t])
      for (std::int64_t i = u.row; u.kept && i < u.row + u.height; ++i)
        for (std::int64_t j = u.col; j < u.col + u.width; ++j)
          kept[t][static_cast<std::size_t>(i * matrices[t].cols + j)] = 1;
  }
  return kept;
}

// --- the library's ---------------------------------------------------------------------------------------------------

// Scores of one matrix in memory of their own, as T, contiguous or with strides.
struct Stored {
  Heap<char> memory;
  Array array;
};

template <class T>
Stored store(const Matrix& m, int layout) {
  const std::int64_t item = sizeof(T);
  const std::int64_t gap = layout == 1 ? 3 : 0, step = layout == 2 ? 2 : 1;
  const bool transposed = layout == 3;
  std::int64_t strides[2] = {(m.cols * step + gap) * item, step * item};
  if (transposed) strides[0] = item, strides[1] = m.rows * item;
  const std::int64_t shape[2] = {m.rows, m.cols};
  const std::int64_t bytes =
      m.rows * m.cols == 0 ? 0 : (m.rows - 1) * strides[0] + (m.cols - 1) * strides[1] + item;  // exactly
  Stored s{Heap<char>(bytes), {}};
  s.array = Array(s.memory.data(), dtype_of<T>, 2, shape, strides, "test: x");
  for (std::int64_t r = 0; r < m.rows; ++r)
    for (std::int64_t c = 0; c < m.cols; ++c) {
      const T value = static_cast<T>(m.at(r, c));
      std::memcpy(s.memory.data() + r * strides[0] + c * strides[1], &value, sizeof value);
    }
  return s;
}

Heap<std::uint8_t> packed(const std::vector<char>& bits, std::int64_t rows, std::int64_t cols) {
  Heap<std::uint8_t> mask(rows * row_bytes(cols));
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c)
      if (bits[static_cast<std::size_t>(r * cols + c)]) set_bit(mask.data() + r * row_bytes(cols), c);
  return mask;
}

Matrix random_matrix(Random& random, std::int64_t rows, std::int64_t cols, bool wide, Mix mix, int priors) {
  Matrix m{rows, cols, {}, {}};
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    m.scores.push_back(wide ? draw<double>(random, mix) : static_cast<double>(draw<float>(random, mix)));
    if (priors > 0) m.allowed.push_back(random.below(10) >= priors);
  }
  return m;
}

// Checks one selection against the obvious one. False when both refuse it.
bool agrees(const std::vector<Matrix>& matrices, const std::vector<bool>& wide, const Selection& how, int layout,
            const char* what) {
  const auto expected = obvious(matrices, how);
  std::vector<Stored> stored;
  std::vector<Heap<std::uint8_t>> priors, masks;
  std::vector<SelectTensor> tensors(matrices.size());
  for (std::size_t t = 0; t < matrices.size(); ++t) {
    const Matrix& m = matrices[t];
    stored.push_back(wide[t] ? store<double>(m, layout) : store<float>(m, layout));
    masks.emplace_back(m.rows * row_bytes(m.cols));
    std::fill(masks[t].data(), masks[t].data() + masks[t].size(), std::uint8_t{0xAA});
    priors.push_back(packed(m.allowed.empty() ? std::vector<char>(m.scores.size()) : m.allowed, m.rows, m.cols));
    tensors[t].source.weights = stored[t].array;
    tensors[t].mask = masks[t].data();
    tensors[t].prior = m.allowed.empty() ? nullptr : priors[t].data();
  }
  try {
    select("test", tensors, how);
  } catch (const Error& error) {
    CHECK(!expected, "%s: refused: %s", what, error.what());
    CHECK(error.status() == GOSSAMER_ERROR_VALUE);
    return false;
  }
  CHECK(expected.has_value(), "%s: not refused", what);
  if (!expected) return false;
  for (std::size_t t = 0; t < matrices.size(); ++t) {
    const Heap<std::uint8_t> wanted = packed((*expected)[t], matrices[t].rows, matrices[t].cols);
    const bool equal = std::equal(wanted.data(), wanted.data() + wanted.size(), masks[t].data());
    CHECK(equal, "%s: tensor %d of %d x %d", what, static_cast<int>(t), static_cast<int>(matrices[t].rows),
          static_cast<int>(matrices[t].cols));
    CHECK(tensors[t].nnz == std::count(expected->at(t).begin(), expected->at(t).end(), 1), "%s", what);
  }
  return true;
}

const char* const patterns[] = {"element",   "row", "col", "block:1x4", "block:4x1",
                                "block:2x3", "1:2", "2:4", "5:8",       "3:5"};

// A random way to select from matrices of these sizes; sizes are made to divide.
Selection random_selection(Random& random, const std::string& pattern, std::int64_t smallest_group) {
  Selection how;
  how.pattern = parse_pattern("test", pattern);
  const bool windows = how.pattern.kind == Pattern::Kind::n_of_m;
  how.group = static_cast<Group>(random.below(3));
  if (how.pattern.kind == Pattern::Kind::row && how.group == Group::row) how.group = Group::tensor;
  how.nan = static_cast<Nan>(random.below(3));
  if (windows) return how;
  const double shares[] = {0, 0.1, 0.25, 0.5, 0.5, 0.77, 0.9, 1};
  switch (random.below(4)) {
    case 0: how.nnz = random.between(0, smallest_group); break;
    case 1: how.threshold = draw<double>(random, random.below(2) != 0 ? Mix::ties : Mix::wild_without_nan); break;
    default: how.sparsity = shares[random.below(8)];
  }
  if (how.group == Group::global && !how.threshold && random.below(2) != 0)
    how.min_density = random.below(2) != 0 ? 0.1 : 0.4;
  return how;
}

}  // namespace

TEST(the_table_in_use_is_the_one_asked_for) {
  const char* wanted = std::getenv("GOSSAMER_ISA");
  if (wanted != nullptr) CHECK(std::string(active_isa().name) == wanted);
}

TEST(selections_are_the_obvious_ones) {
  Random random(3);
  int right = 0, refused = 0;
  for (int repeat = 0; repeat < 6000; ++repeat) {
    set_num_threads(1 + repeat / 100 % 3);
    const std::string pattern = patterns[random.below(10)];
    const Pattern p = parse_pattern("test", pattern);
    const bool windows = p.kind == Pattern::Kind::n_of_m, block = p.kind == Pattern::Kind::block;
    std::vector<Matrix> matrices;
    std::vector<bool> wide;
    const auto mix = static_cast<Mix>(random.below(4));
    const int priors = random.below(2) != 0 ? static_cast<int>(random.between(1, 6)) : 0;
    std::int64_t smallest = 1000;
    for (std::int64_t t = random.between(1, 3); t > 0; --t) {
      std::int64_t rows = random.between(random.below(20) == 0 ? 0 : 1, 12);
      std::int64_t cols =
          random.below(10) == 0 ? random.between(60, 200) : random.between(random.below(20) == 0 ? 0 : 1, 30);
      if (block) rows = (rows + p.a - 1) / p.a * p.a, cols = (cols + p.b - 1) / p.b * p.b;
      if (windows) cols = (cols + p.b - 1) / p.b * p.b;
      wide.push_back(random.below(3) == 0);
      matrices.push_back(random_matrix(random, rows, cols, wide.back(), mix, random.below(4) != 0 ? priors : 0));
      smallest = std::min({smallest, rows, cols});
    }
    const Selection how = random_selection(random, pattern, smallest);
    agrees(matrices, wide, how, static_cast<int>(random.below(4)), pattern.c_str()) ? ++right : ++refused;
  }
  CHECK(right > 2500 && refused > 300, "right=%d refused=%d", right, refused);
}

// Beyond the size below which all keys are candidates: the histogram, its splitting of full bins, and pure ties.
TEST(large_selections_are_the_obvious_ones) {
  Random random(4);
  for (int repeat = 0; repeat < 60; ++repeat) {
    set_num_threads(1 + repeat % 3);
    const bool wide = repeat % 2 != 0;
    const auto kind = repeat / 2 % 6;
    Matrix m{repeat % 4 == 0 ? 1 : 160, repeat % 4 == 0 ? 40000 : 251, {}, {}};
    for (std::int64_t i = 0; i < m.rows * m.cols; ++i) {
      double score = draw<float>(random, kind == 0 ? Mix::plain : kind == 1 ? Mix::ties : Mix::wild);
      if (kind == 3) score = 0.7;                                                         // all equal
      if (kind == 4) score = 1 + static_cast<double>(random.below(5)) * 0x1p-23;          // all in one bin
      if (kind == 5 && wide) score = 1 + static_cast<double>(random.below(3)) * 0x1p-52;  // down to the last digit
      m.scores.push_back(score);
      if (repeat % 3 == 0) m.allowed.push_back(random.below(10) != 0);
    }
    Selection how;
    how.nan = random.below(2) != 0 ? Nan::keep : Nan::prune;
    how.group = static_cast<Group>(random.below(3));
    const double shares[] = {0.15, 0.5, 0.9, 0.999, 1};
    if (random.below(4) == 0) {
      how.nnz = random.between(0, how.group == Group::row ? m.cols / 2 : m.rows * m.cols / 2);
    } else {
      how.sparsity = shares[random.below(5)];
    }
    agrees({m}, {wide}, how, static_cast<int>(random.below(4)), "large");
    if (how.group == Group::global) agrees({m, m}, {wide, true}, how, 0, "large, two tensors");
  }
}

// Rows that take their bracket from the row before, which is right, a little off, or far off.
TEST(long_rows_are_the_obvious_ones) {
  Random random(8);
  for (int repeat = 0; repeat < 48; ++repeat) {
    set_num_threads(1 + repeat % 3);
    const bool wide = repeat % 2 != 0;
    const int kind = repeat / 2 % 8;
    const std::int64_t rows = random.between(3, 40), cols = random.between(1024, kind == 7 ? 9000 : 2600);
    Matrix m{rows, cols, {}, {}};
    double scale = 1;
    for (std::int64_t r = 0; r < rows; ++r) {
      if (kind == 1) scale = std::ldexp(1.0, static_cast<int>(random.between(-20, 20)));
      if (kind == 2) scale *= 1.05;
      for (std::int64_t c = 0; c < cols; ++c) {
        double score = draw<float>(random, kind == 3 || (kind == 4 && r % 3 == 0) ? Mix::ties : Mix::plain);
        if (kind == 5) score = draw<float>(random, r % 2 != 0 ? Mix::wild : Mix::plain);
        if (kind == 6) score = static_cast<double>(c) / static_cast<double>(cols) + (r % 2 != 0 ? 0 : -1);
        if (kind == 4 && r % 5 == 4) score = 0;
        m.scores.push_back(static_cast<double>(static_cast<float>(score * scale)));
        if (repeat % 3 == 0) m.allowed.push_back(random.below(5) != 0);
      }
    }
    Selection how;
    how.nan = random.below(2) != 0 ? Nan::keep : Nan::prune;
    how.group = Group::row;
    const double shares[] = {0.3, 0.5, 0.9, 0.99, 0.999};
    how.sparsity = shares[random.below(5)];
    agrees({m}, {wide}, how, static_cast<int>(random.below(4)), "long rows");
  }
}

// Enough chunks for the bracket to be drawn again on the way. The obvious way here: sort all indices.
TEST(very_large_selections_are_the_obvious_ones) {
  Random random(9);
  set_num_threads(3);
  constexpr std::int64_t n = 70 * (1 << 15) + 77;
  for (int kind = 0; kind < 6; ++kind) {
    const Heap<float> scores(n);
    const Heap<std::uint8_t> prior((n + 7) / 8), mask((n + 7) / 8);
    for (std::int64_t i = 0; i < n; ++i) {
      const auto at = static_cast<double>(i) / static_cast<double>(n);
      double score = 2 * random.unit() - 1;
      if (kind == 1) score = at;                                             // sorted
      if (kind == 2) score = i / (1 << 15) % 16 == 8 ? score : score / 100;  // the part that is drawn from is another
      if (kind == 3) score = std::floor(40 * score * score * score);         // ties
      if (kind == 4) score = 1 + score * 0x1p-20;                            // few distinct values, crowded
      scores[i] = static_cast<float>(score);
      if (kind == 5 && random.below(1000) == 0) scores[i] = std::numeric_limits<float>::quiet_NaN();
      if (kind != 5 || random.below(4) != 0) set_bit(prior.data(), i);
    }
    const bool keep_nan = kind == 5;
    std::vector<std::int32_t> order;
    for (std::int64_t i = 0; i < n; ++i)
      if (bit(prior.data(), i)) order.push_back(static_cast<std::int32_t>(i));
    std::sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
      const float x = scores[a], y = scores[b];
      const bool first = x != x, second = y != y;  // NaN ranks highest here
      if (first != second) return first;
      return !first && x != y ? x > y : a < b;
    });
    Selection how;
    how.nan = keep_nan ? Nan::keep : Nan::raise;
    how.nnz = n / (kind % 2 == 0 ? 10 : 2);
    const std::int64_t shape[1] = {n};
    std::vector<SelectTensor> tensors(1);
    tensors[0].source.weights = Array(scores.data(), DType::float32, 1, shape, nullptr, "test: x");
    tensors[0].mask = mask.data();
    if (kind == 5) tensors[0].prior = prior.data();
    select("test", tensors, how);
    CHECK(tensors[0].nnz == *how.nnz && count_mask(mask.data(), 1, n) == *how.nnz, "kind=%d", kind);
    bool equal = true;
    for (std::int64_t i = 0; i < *how.nnz; ++i) equal = equal && bit(mask.data(), order[static_cast<std::size_t>(i)]);
    CHECK(equal, "kind=%d", kind);
  }
}

TEST(rows_longer_than_the_cache_are_the_obvious_ones) {
  Random random(5);
  set_num_threads(2);
  for (const bool wide : {false, true}) {
    const Matrix m = random_matrix(random, 2, (1 << 18) + 13, wide, Mix::ties, wide ? 1 : 0);
    Selection how;
    how.group = Group::row;
    how.sparsity = 0.75;
    agrees({m}, {wide}, how, 0, "long rows");
  }
}

TEST(prune_is_score_then_select_then_apply) {
  Random random(6);
  for (int repeat = 0; repeat < 1500; ++repeat) {
    set_num_threads(1 + repeat % 3);
    const Method& method =
        methods()[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(methods().size())))];
    const bool wide = random.below(2) != 0, norm = method.per_column();
    const std::int64_t rows = 4 * random.between(0, 6), cols = 12 * random.between(0, 12);
    const int layout = static_cast<int>(random.below(4));
    const Matrix w = random_matrix(random, rows, cols, wide, Mix::ties, 0);
    const Matrix aux = random_matrix(random, norm ? 1 : rows, cols, wide, Mix::plain, 0);
    const Stored weights = wide ? store<double>(w, layout) : store<float>(w, layout);
    const Stored other = wide ? store<double>(aux, layout) : store<float>(aux, layout);
    Matrix empty = w;
    std::fill(empty.scores.begin(), empty.scores.end(), 7.0);
    const Stored scores = wide ? store<double>(empty, (layout + 1) % 4) : store<float>(empty, (layout + 1) % 4);
    const Stored pruned = wide ? store<double>(empty, (layout + 2) % 4) : store<float>(empty, (layout + 2) % 4);
    const Stored applied = wide ? store<double>(empty, layout) : store<float>(empty, layout);
    ScoreSource source;
    source.method = &method;
    source.weights = weights.array;
    if (method.uses_aux()) source.aux = other.array;
    source.seed = random.bits();
    check_source("test", "", source);
    score({&source, 1}, {&scores.array, 1});

    Selection how;
    how.pattern = parse_pattern("test", patterns[random.below(8)]);
    how.group = static_cast<Group>(random.below(3));
    if (how.pattern.kind == Pattern::Kind::row && how.group == Group::row) how.group = Group::tensor;
    const bool units = how.pattern.kind != Pattern::Kind::n_of_m && how.pattern.kind != Pattern::Kind::element;
    if (units && method.criterion == Criterion::taylor2) continue;  // its units are squares of sums
    if (how.pattern.kind != Pattern::Kind::n_of_m) how.sparsity = random.unit();
    Heap<std::uint8_t> fused(rows * row_bytes(cols)), split(rows * row_bytes(cols));
    std::vector<SelectTensor> one(1), two(1);
    one[0].source = source;
    one[0].mask = fused.data();
    prune("test", one, how, {pruned.array});
    two[0].source.weights = scores.array;
    two[0].mask = split.data();
    select("test", two, how);
    apply_mask(weights.array, split.data(), applied.array);
    CHECK(one[0].nnz == two[0].nnz);
    CHECK(std::equal(fused.data(), fused.data() + fused.size(), split.data()), "%s", method.name);
    CHECK(count_mask(fused.data(), rows, cols) == one[0].nnz);
    bool equal = true;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        double a = 0, b = 0;
        a = *pruned.array.load<double>(r, c, 1, &a);
        b = *applied.array.load<double>(r, c, 1, &b);
        const double wanted = bit(fused.data() + r * row_bytes(cols), c) ? w.at(r, c) : 0.0;
        equal = equal && std::memcmp(&a, &b, sizeof a) == 0 && a == wanted;
      }
    CHECK(equal, "%s", method.name);
    // In place: out is the weights themselves.
    std::vector<SelectTensor> again(1);
    again[0].source = source;
    again[0].mask = split.data();
    prune("test", again, how, {weights.array});
    CHECK(std::equal(fused.data(), fused.data() + fused.size(), split.data()));
    equal = true;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) {
        double a = 0, b = 0;
        a = *pruned.array.load<double>(r, c, 1, &a);
        b = *weights.array.load<double>(r, c, 1, &b);
        equal = equal && std::memcmp(&a, &b, sizeof a) == 0;
      }
    CHECK(equal, "%s in place", method.name);
  }
}

TEST(an_error_names_what_is_wrong) {
  Random random(7);
  const Matrix m = random_matrix(random, 4, 6, false, Mix::plain, 0);
  const auto run = [&](const Selection& how, const char* pattern) {
    const Stored stored = store<float>(m, 0);
    Heap<std::uint8_t> mask(4);
    std::vector<SelectTensor> tensors(1);
    tensors[0].source.weights = stored.array;
    tensors[0].mask = mask.data();
    Selection with = how;
    with.pattern = parse_pattern("f", pattern);
    select("f", tensors, with);
  };
  Selection none, bad, nnz, nan;
  bad.sparsity = 1.3;
  nnz.nnz = 25;
  nan.sparsity = std::nan("");
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: ", run(none, "element"));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "sparsity must be in [0, 1], got 1.3", run(bad, "element"));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "sparsity", run(nan, "element"));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "nnz must be in [0, 24], got 25", run(nnz, "element"));
  nnz.nnz = -1;
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "got -1", run(nnz, "element"));
  bad.sparsity = 0.5;
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: ", run(bad, "block:3x2"));
  CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: ", run(none, "2:4"));
  for (const char* name : {"", "rows", "block:", "block:0x4", "block:4x", "4:2", "0:4", "2:33", "2:4 ", "-1:4",
                           "block:99999999999999999999x1"})
    CHECK_THROWS(GOSSAMER_ERROR_VALUE, "f: pattern must be", parse_pattern("f", name));
}

int main(int argc, char** argv) {
  const char* wanted = std::getenv("GOSSAMER_ISA");
  if (wanted != nullptr && std::string(active_isa().name) != wanted) {
    std::printf("this CPU has no %s\n", wanted);
    return check::skipped;
  }
  return check::run(argc, argv);
}
