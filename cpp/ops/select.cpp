// SPDX-License-Identifier: Apache-2.0
// One call of selection: checks it, brings every pattern and group into the form of ops/topk.hpp, and back.
#include "ops/select.hpp"

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cmath>
#include <memory>

#include "ops/bits.hpp"
#include "ops/topk.hpp"
#include "ops/units.hpp"

namespace gossamer {
namespace {

class Call {
 public:
  Call(const char* function, std::vector<SelectTensor>& tensors, const Selection& how)
      : function_(function), tensors_(tensors), how_(how) {}

  void run() {
    check();
    {
      std::vector<ScoreSource> given;
      for (const SelectTensor& t : tensors_) given.push_back(t.source);
      sources_ = prepare(given);
    }
    const bool structured = how_.pattern.kind != Pattern::Kind::element && how_.pattern.kind != Pattern::Kind::n_of_m;
    std::int64_t base = 0;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      SelectTensor& t = tensors_[i];
      if (structured) {
        units_.push_back(make_units(t, sources_[i]));
      } else {
        const bool flat = how_.group != Group::row || how_.pattern.kind == Pattern::Kind::n_of_m;
        items_.push_back({flat ? sources_[i].flattened() : sources_[i], t.prior, t.mask, base});
        base += t.source.rows() * t.source.cols();
      }
    }
    for (Units& u : units_) {  // only now: the vector has stopped moving
      ScoreSource source;
      const std::int64_t shape[2] = {u.rows, u.cols};
      source.weights = Array(u.scores.data(), DType::float64, 2, shape, nullptr, function_);
      items_.push_back({source, u.prior.empty() ? nullptr : u.prior.data(), u.mask.data(), base});
      base += u.rows * u.cols;
    }
    select_all();
    if (nan_.load() && how_.nan == Nan::raise) throw_nan();
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (structured) {
        expand_units(units_[i], tensors_[i].source.rows(), tensors_[i].source.cols(), tensors_[i].mask);
        tensors_[i].nnz = items_[i].nnz * units_[i].height * units_[i].width;
      } else {
        tensors_[i].nnz = items_[i].nnz;
      }
    }
  }

 private:
  std::string where(const SelectTensor& t) const { return t.name.empty() ? "" : format(" in '%.80s'", t.name.c_str()); }

  void check() const {
    const int given = int(how_.sparsity.has_value()) + int(how_.nnz.has_value()) + int(how_.threshold.has_value());
    const Pattern& p = how_.pattern;
    const bool n_of_m = p.kind == Pattern::Kind::n_of_m;
    if (given > 1 || (given == 0 && !n_of_m))
      value_error(
          format("%s: exactly one of sparsity, nnz and threshold must be given, got %d of them", function_, given));
    if (how_.sparsity && !(*how_.sparsity >= 0 && *how_.sparsity <= 1))
      value_error(format("%s: sparsity must be in [0, 1], got %s", function_, text(*how_.sparsity).c_str()));
    if (how_.threshold && std::isnan(*how_.threshold))
      value_error(format("%s: threshold must be a number, got nan", function_));
    if (how_.nnz && *how_.nnz < 0)
      value_error(format("%s: nnz must be at least 0, got %lld", function_, ll(*how_.nnz)));
    if (!(how_.min_density >= 0 && how_.min_density <= 1))
      value_error(format("%s: min_density must be in [0, 1], got %s", function_, text(how_.min_density).c_str()));
    if (how_.min_density > 0 && (how_.group != Group::global || how_.threshold || n_of_m))
      value_error(format("%s: min_density needs group='global' and a count (sparsity or nnz), got %s", function_,
                         text(how_.min_density).c_str()));
    if (p.kind == Pattern::Kind::row && how_.group == Group::row)
      value_error(format("%s: group must be 'tensor' or 'global' for pattern 'row', got 'row': one unit cannot compete",
                         function_));
    for (const SelectTensor& t : tensors_) {
      check_source(function_, t.name.c_str(), t.source);
      const std::int64_t rows = t.source.rows(), cols = t.source.cols();
      if (n_of_m && cols % p.b != 0)
        value_error(format("%s: pattern '%lld:%lld' must divide the last axis, got %lld columns%s", function_, ll(p.a),
                           ll(p.b), ll(cols), where(t).c_str()));
      if (p.kind == Pattern::Kind::block && (rows % p.a != 0 || cols % p.b != 0))
        value_error(format("%s: pattern 'block:%lldx%lld' must divide the shape, got %s%s", function_, ll(p.a), ll(p.b),
                           t.source.weights.shape_text().c_str(), where(t).c_str()));
    }
    if (n_of_m) check_n_of_m();
  }

  void check_n_of_m() const {
    const Pattern& p = how_.pattern;
    const double implied = 1 - static_cast<double>(p.a) / static_cast<double>(p.b);
    if (how_.threshold)
      value_error(format("%s: threshold must be left out with pattern '%lld:%lld', got %s", function_, ll(p.a), ll(p.b),
                         text(*how_.threshold).c_str()));
    if (how_.sparsity && std::abs(*how_.sparsity - implied) > 1e-9)
      value_error(format("%s: sparsity must be %s with pattern '%lld:%lld', got %s", function_, text(implied).c_str(),
                         ll(p.a), ll(p.b), text(*how_.sparsity).c_str()));
    // nnz counts per group as everywhere: per row, per tensor, or in all.
    std::int64_t all = 0;
    const auto check_count = [&](std::int64_t wanted) {
      if (how_.nnz && *how_.nnz != wanted)
        value_error(format("%s: nnz must be %lld with pattern '%lld:%lld', got %lld", function_, ll(wanted), ll(p.a),
                           ll(p.b), ll(*how_.nnz)));
    };
    for (const SelectTensor& t : tensors_) {
      const std::int64_t per_row = t.source.cols() / p.b * p.a;
      all += per_row * t.source.rows();
      if (how_.group == Group::row) check_count(per_row);
      if (how_.group == Group::tensor) check_count(per_row * t.source.rows());
    }
    if (how_.group == Group::global) check_count(all);
  }

  Units make_units(const SelectTensor& t, const ScoreSource& source) const {
    const std::int64_t rows = t.source.rows(), cols = t.source.cols();
    Units u = gossamer::make_units(how_.pattern, rows, cols);
    if (rows * cols > 0) score_units(source, u);
    if (t.prior != nullptr) units_prior(t.prior, cols, u);
    return u;
  }

  // The number of units to keep of n, by whichever rule was given.
  std::int64_t count_of(std::int64_t n) const {
    const std::int64_t count = how_.sparsity ? kept_count(n, *how_.sparsity) : *how_.nnz;
    if (count > n) value_error(format("%s: nnz must be in [0, %lld], got %lld", function_, ll(n), ll(count)));
    return count;
  }

  void need(std::int64_t count, std::int64_t allowed, const std::string& place) const {
    if (count > allowed)
      value_error(format("%s: prior must leave at least the %lld to keep%s, got %lld", function_, ll(count),
                         place.c_str(), ll(allowed)));
  }

  NanRule nan() { return {how_.nan == Nan::keep ? NanRank::high : NanRank::low, nan_}; }

  void select_all() {
    if (how_.pattern.kind == Pattern::Kind::n_of_m) return windows();
    if (how_.threshold) {
      keep_from(items_, *how_.threshold, nan());
    } else if (how_.group == Group::global) {
      global();
    } else if (how_.group == Group::row) {
      for (std::size_t i = 0; i < items_.size(); ++i) rows(items_[i], tensors_[i]);
    } else {
      for (std::size_t i = 0; i < items_.size(); ++i) {
        const std::int64_t count = count_of(items_[i].size());
        need(count, items_[i].allowed(), where(tensors_[i]));
        std::vector<Item> one{items_[i]};
        keep_top(one, count, nan());
        items_[i].nnz = one[0].nnz;
      }
    }
  }

  void rows(Item& item, const SelectTensor& t) {
    const std::int64_t count = count_of(item.cols());
    if (item.prior != nullptr)
      for (std::int64_t r = 0; r < item.rows(); ++r)
        need(count, count_bits(item.prior + item.byte(r, 0), row_bytes(item.cols())),
             format(" in row %lld", ll(r)) + where(t));
    keep_top_of_rows(item, count, nan());
  }

  void windows() {
    for (std::size_t i = 0; i < items_.size(); ++i) {
      Item& item = items_[i];
      keep_n_of_m(item, how_.pattern.a, how_.pattern.b, nan());
      if (item.prior == nullptr) continue;
      for (std::int64_t b = 0; b < item.rows() * row_bytes(item.cols()); ++b)
        if ((item.mask[b] & ~item.prior[b]) != 0)
          value_error(format("%s: prior must leave at least %lld of every %lld, got a window with fewer%s", function_,
                             ll(how_.pattern.a), ll(how_.pattern.b), where(tensors_[i]).c_str()));
    }
  }

  // The floors of min_density are taken first, tensor by tensor; the rest competes for what is left of the count.
  void global() {
    std::int64_t size = 0, allowed = 0;
    for (const Item& item : items_) {
      size += item.size();
      allowed += item.allowed();
    }
    std::int64_t count = count_of(size);
    need(count, allowed, "");
    if (how_.min_density == 0) return keep_top(items_, count, nan());

    const std::int64_t total = count;
    std::vector<std::vector<std::uint8_t>> rest(items_.size());
    std::vector<std::int64_t> taken(items_.size());
    for (std::size_t i = 0; i < items_.size(); ++i) {
      Item& item = items_[i];
      const std::int64_t least = kept_count(item.size(), 1 - how_.min_density);
      need(least, item.allowed(), where(tensors_[i]));
      taken[i] = least;
      count -= least;
    }
    if (count < 0)
      value_error(format("%s: min_density must fit into the total count %lld, got %s, which needs %lld", function_,
                         ll(total), text(how_.min_density).c_str(), ll(total - count)));
    for (std::size_t i = 0; i < items_.size(); ++i) {
      std::vector<Item> one{items_[i]};
      keep_top(one, taken[i], nan());
    }
    std::vector<Item> left = items_;
    for (std::size_t i = 0; i < left.size(); ++i) {
      rest[i].reserve(static_cast<std::size_t>(left[i].rows() * row_bytes(left[i].cols())));
      for_allowed(items_[i], [&](std::uint8_t& mask, unsigned may) {
        rest[i].push_back(static_cast<std::uint8_t>(may & ~unsigned{mask}));
      });
      left[i].prior = rest[i].data();
    }
    keep_top(left, count, nan());
    for (std::size_t i = 0; i < items_.size(); ++i) {  // and the floors again, which that has overwritten
      auto other = rest[i].begin();
      for_allowed(items_[i], [&](std::uint8_t& mask, unsigned may) {
        mask = static_cast<std::uint8_t>(mask | (may & ~unsigned{*other++}));
      });
      items_[i].nnz = left[i].nnz + taken[i];
    }
  }

  // f(byte of the mask, those of its bits that may be set) for all bytes.
  template <class F>
  static void for_allowed(const Item& item, F&& f) {
    const std::int64_t bytes = row_bytes(item.cols());
    const unsigned last = 0xFFu >> (8 * bytes - item.cols());
    for (std::int64_t i = 0, row = 0; row < item.rows(); ++row)
      for (std::int64_t b = 0; b < bytes; ++b, ++i)
        f(item.mask[i], item.prior != nullptr ? item.prior[i] : b + 1 < bytes ? 0xFFu : last);
  }

  // Tells the first NaN in mapping order. A structured unit is NaN as a whole: its elements are read again to find it.
  [[noreturn]] void throw_nan() const {
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const std::int64_t found = find_nan(sources_[i]);
      if (found >= 0)
        value_error(format("%s: scores must not be NaN (or say nan='prune' or 'keep'), got NaN%s at flat index %lld",
                           function_, where(tensors_[i]).c_str(), ll(found)));
    }
    value_error(
        format("%s: the scores of a unit must have a sum, got infinities of both signs in one unit", function_));
  }

  const char* function_;
  std::vector<SelectTensor>& tensors_;
  const Selection& how_;
  std::vector<ScoreSource> sources_;  // of the tensors, prepared
  std::vector<Item> items_;
  std::vector<Units> units_;
  std::atomic<bool> nan_{false};
};

bool parse_number(const char*& p, const char* end, std::int64_t& value) {
  const auto result = std::from_chars(p, end, value);
  if (result.ec != std::errc() || result.ptr == p) return false;
  p = result.ptr;
  return true;
}

}  // namespace

std::int64_t kept_count(std::int64_t n, double sparsity) {
  // Python's round(sparsity, 12): the nearest decimal, exactly rounded, and back.
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, sparsity, std::chars_format::fixed, 12).ptr;
  double rounded = 0;
  std::from_chars(digits, end, rounded);
  return n - static_cast<std::int64_t>(std::floor(static_cast<double>(n) * rounded + 0.5));
}

Pattern parse_pattern(const char* function, const std::string& name) {
  using Kind = Pattern::Kind;
  if (name == "element") return {};
  if (name == "row") return {Kind::row, 1, 1};
  if (name == "col") return {Kind::col, 1, 1};
  const bool block = name.rfind("block:", 0) == 0;
  const char* p = name.c_str() + (block ? 6 : 0);
  const char* end = name.c_str() + name.size();
  Pattern pattern{block ? Kind::block : Kind::n_of_m, 0, 0};
  const char separator = block ? 'x' : ':';
  const bool parsed =
      parse_number(p, end, pattern.a) && p != end && *p++ == separator && parse_number(p, end, pattern.b);
  if (parsed && p == end && pattern.a >= 1 && pattern.b >= 1 && (block || (pattern.a <= pattern.b && pattern.b <= 32)))
    return pattern;
  value_error(
      format("%s: pattern must be 'element', 'row', 'col', 'block:RxC' or 'N:M' with 1 <= N <= M <= 32, got '%.60s'",
             function, name.c_str()));
}

Group parse_group(const char* function, const std::string& name) {
  if (name == "tensor") return Group::tensor;
  if (name == "row") return Group::row;
  if (name == "global") return Group::global;
  value_error(format("%s: group must be 'tensor', 'row' or 'global', got '%.60s'", function, name.c_str()));
}

Nan parse_nan(const char* function, const std::string& name) {
  if (name == "raise") return Nan::raise;
  if (name == "prune") return Nan::prune;
  if (name == "keep") return Nan::keep;
  value_error(format("%s: nan must be 'raise', 'prune' or 'keep', got '%.60s'", function, name.c_str()));
}

void select(const char* function, std::vector<SelectTensor>& tensors, const Selection& how) {
  Call(function, tensors, how).run();
}

}  // namespace gossamer
