// SPDX-License-Identifier: Apache-2.0
#include "ops/adjust.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dispatch.hpp"
#include "core/parallel.hpp"
#include "ops/score.hpp"
#include "ops/topk.hpp"

namespace gossamer {
namespace {

template <class T>
struct Tile {
  alignas(64) T w[tile_size], s[tile_size], out[tile_size];
  T low = std::numeric_limits<T>::infinity(), high = -std::numeric_limits<T>::infinity();
};

// Refuses NaN and, for "scale", finds the lower median and the spread.
template <class T>
void measure(const char* function, AdjustTensor& tensor, bool scale) {
  const Array& scores = tensor.scores;
  constexpr std::int64_t none = std::numeric_limits<std::int64_t>::max();
  std::atomic<std::int64_t> first_nan{none};
  PerWorker<Tile<T>> scratch;
  for_all_tiles(
      scores.rows(), scores.cols(), scratch, [&](Tile<T>& t, std::int64_t row, std::int64_t col, std::int64_t n) {
        const T* s = scores.load(row, col, n, t.s);
        const Extent<T> tile = kernels<T>().extent(s, n);
        t.low = std::min(t.low, tile.low);
        t.high = std::max(t.high, tile.high);
        if (!tile.has_nan) return;
        const std::int64_t index = row * scores.cols() + col + (std::find_if(s, s + n, [](T x) { return x != x; }) - s);
        for (std::int64_t seen = first_nan; index < seen && !first_nan.compare_exchange_weak(seen, index);) {
        }
      });
  const std::string where = tensor.name.empty() ? "" : format(" in '%.80s'", tensor.name.c_str());
  if (first_nan != none)
    value_error(format("%s: scores must not be NaN, got NaN%s at flat index %lld", function, where.c_str(),
                       ll(first_nan.load())));
  if (!scale || scores.empty()) return;
  T low = std::numeric_limits<T>::infinity(), high = -low;
  scratch.for_each([&](Tile<T>& t) {
    low = std::min(low, t.low);
    high = std::max(high, t.high);
  });
  ScoreSource source;
  source.weights = scores;
  const auto center =
      static_cast<T>(kth_score(Item{source.flattened(), nullptr, nullptr, 0}, scores.size() - (scores.size() - 1) / 2));
  const T spread = std::max(center - low, high - center);
  if (!std::isfinite(low) || !std::isfinite(high) || !std::isfinite(spread))
    value_error(format("%s: scores must be finite, and their range too, for rule 'scale', got %s to %s%s", function,
                       text(low).c_str(), text(high).c_str(), where.c_str()));
  tensor.center = static_cast<double>(center);
  tensor.spread = static_cast<double>(spread);
}

template <class T>
void write(const AdjustTensor& tensor, T rate, bool scale) {
  PerWorker<Tile<T>> scratch;
  for_all_tiles(tensor.weights.rows(), tensor.weights.cols(), scratch,
                [&](Tile<T>& t, std::int64_t row, std::int64_t col, std::int64_t n) {
                  const T* w = tensor.weights.load(row, col, n, t.w);
                  const T* s = tensor.scores.load(row, col, n, t.s);
                  T* direct = tensor.out.direct<T>(row, col);
                  T* to = direct != nullptr ? direct : t.out;
                  if (!scale) {
                    kernels<T>().adjust_sign(w, s, rate, to, n);
                  } else if (tensor.spread == 0) {
                    if (to != w) std::copy(w, w + n, to);
                  } else {
                    kernels<T>().adjust_scale(w, s, rate, static_cast<T>(tensor.center), static_cast<T>(tensor.spread),
                                              to, n);
                  }
                  if (direct == nullptr) tensor.out.store(row, col, n, to);
                });
}

}  // namespace

void adjust(const char* function, std::vector<AdjustTensor>& tensors, double rate, const std::string& rule) {
  const bool scale = rule == "scale";
  if (!scale && rule != "sign")
    value_error(format("%s: rule must be 'sign' or 'scale', got '%.60s'", function, rule.c_str()));
  if (!std::isfinite(rate)) value_error(format("%s: rate must be finite, got %s", function, text(rate).c_str()));
  if (scale && !(rate >= 0 && rate < 1))
    value_error(format("%s: rate must be in [0, 1) for rule 'scale', got %s", function, text(rate).c_str()));
  std::vector<Array> outs, inputs;
  for (const AdjustTensor& t : tensors) {
    const Array& w = t.weights;
    const double rounded = w.dtype() != DType::float64 ? static_cast<double>(static_cast<float>(rate)) : rate;
    if (!std::isfinite(rounded) || (scale && !(rounded < 1)))
      value_error(format("%s: rate must keep its range when it is rounded to %s, got %s", function,
                         name_of(compute_dtype(w.dtype())), text(rate).c_str()));
    if (t.scores.rows() != w.rows() || t.scores.cols() != w.cols())
      value_error(format("%s: scores must have the shape of weights %s, got %s", function, w.shape_text().c_str(),
                         t.scores.shape_text().c_str()));
    const Array own[] = {w, t.scores};
    check_out(function, t.out, w.rows(), w.cols(), w.dtype(), own);
    outs.push_back(t.out);
    inputs.push_back(w);
  }
  check_outs_apart(function, outs, inputs);
  for (std::size_t i = 0; i < tensors.size(); ++i) inputs[i] = tensors[i].scores;
  check_outs_apart(function, outs, inputs);
  for (AdjustTensor& t : tensors)
    dispatch(t.weights.dtype(), [&](auto zero) { measure<decltype(zero)>(function, t, scale); });
  for (const AdjustTensor& t : tensors)
    dispatch(t.weights.dtype(), [&](auto zero) { write(t, static_cast<decltype(zero)>(rate), scale); });
}

}  // namespace gossamer
