// SPDX-License-Identifier: Apache-2.0
#include "ops/score.hpp"

#include <cstring>
#include <string>

#include "core/parallel.hpp"

namespace gossamer {

const char* name_of(Needs needs) {
  static const char* const names[] = {"", "grads", "norm", "movement", "seed", "grad2", "hessian"};
  return names[static_cast<int>(needs)];
}

std::span<const Method> methods() {
  using C = Criterion;
  using N = Needs;
  static const Method list[] = {
      {"magnitude", N::nothing, C::magnitude, false, "tensor"},
      {"gradient", N::grads, C::magnitude, true, "tensor"},
      {"taylor", N::grads, C::taylor, false, "tensor"},
      {"taylor2", N::grads, C::taylor2, false, "tensor"},
      {"movement", N::movement, C::identity, true, "tensor"},
      {"fisher", N::grad2, C::square, false, "tensor"},
      {"obs", N::hessian, C::square, false, "row"},
      {"wanda", N::norm, C::wanda, false, "row"},
      {"ria", N::norm, C::ria, false, "row", Whole::ria},
      {"snip", N::grads, C::share, false, "global", Whole::snip},
      {"grasp", N::grads, C::product, false, "global"},
      {"synflow", N::grads, C::product, false, "global", Whole::none, true},
      {"lamp", N::nothing, C::identity, false, "global", Whole::lamp},
      {"fpgm", N::nothing, C::identity, false, "tensor", Whole::fpgm},
      {"random", N::seed, C::identity, false, "tensor"},
  };
  return list;
}

const Method& find_method(const char* function, const char* name) {
  std::string known;
  for (const Method& method : methods()) {
    if (std::strcmp(method.name, name) == 0) return method;
    known += (known.empty() ? "" : ", ") + std::string(method.name);
  }
  value_error(format("%s: method must be one of %s or a callable, got '%.60s'", function, known.c_str(), name));
}

DType ScoreSource::dtype() const {
  const bool wide = method != nullptr && method->keeps_wide && aux.dtype() == DType::float64;
  return wide ? DType::float64 : compute_dtype(weights.dtype());
}

ScoreSource ScoreSource::flattened() const {
  const bool uses_aux = method != nullptr && method->uses_aux();
  if (numbers != nullptr || !columns.empty() || (uses_aux && method->per_column())) return *this;
  if (!weights.contiguous() || (uses_aux && !aux.contiguous())) return *this;
  if (rows() > 1 && cols() % 8 != 0) return *this;  // the packed rows have padding bits
  ScoreSource flat = *this;
  flat.weights = weights.flat();
  if (uses_aux) flat.aux = aux.flat();
  return flat;
}

ScoreSource ScoreSource::row(std::int64_t row) const {
  ScoreSource one = *this;
  one.weights = weights.row(row);
  if (method != nullptr && method->uses_aux() && !method->per_column()) one.aux = aux.row(row);
  if (numbers != nullptr) one.numbers += row;
  one.first_index += row * cols();
  return one;
}

bool ScoreSource::in_place(DType computed) const {
  const auto readable = [&](const Array& array, bool widened) {
    return array.rows_contiguous() &&
           (array.dtype() == computed || (widened && computed == DType::float32 && is_16_bit(array.dtype())));
  };
  if (method == nullptr) return readable(weights, true);
  if (method->needs == Needs::seed || (numbers != nullptr && criterion == Criterion::identity)) return false;
  if (method->scores_aux) return readable(aux, true);
  return readable(weights, true) && (!method->uses_aux() || readable(aux, false));
}

void ScoreSource::prefetch(std::int64_t row, std::int64_t col) const {
  const auto ask = [&](const Array& array) {
    if (array.rows_contiguous())
      __builtin_prefetch(array.data() + row * array.row_stride() + col * size_of(array.dtype()));
  };
  ask(weights);
  if (method != nullptr && method->uses_aux() && !method->per_column()) ask(aux);
}

void check_source(const char* function, const char* name, const ScoreSource& source) {
  if (source.method == nullptr || !source.method->uses_aux()) return;
  const char* what = source.method->needs == Needs::grads ? "grads" : "stats";
  const bool per_column = source.method->per_column();
  if (source.aux.rows() == (per_column ? 1 : source.rows()) && source.aux.cols() == source.cols()) return;
  value_error(format("%s: %s must have the shape %s that %s needs, got %s%s%s", function, what,
                     per_column ? format("(%lld,)", ll(source.cols())).c_str() : source.weights.shape_text().c_str(),
                     source.method->name, source.aux.shape_text().c_str(), *name != '\0' ? " for " : "", name));
}

void check_out(const char* function, const Array& out, std::int64_t rows, std::int64_t cols, DType dtype,
               std::span<const Array> inputs) {
  if (out.rows() != rows || out.cols() != cols)
    value_error(format("%s: out must have the shape %s, got %s", function, shape_text(rows, cols).c_str(),
                       out.shape_text().c_str()));
  if (out.dtype() != dtype)
    type_error(format("%s: out must be %s, got %s", function, name_of(dtype), name_of(out.dtype())));
  if (out.repeats_elements())
    value_error(format("%s: out must not hold one element in two places, got a view that does", function));
  for (const Array& input : inputs)
    if (!out.same_view(input) && out.overlaps(input))
      value_error(format("%s: out must be the input itself or not overlap with it, got a part of it", function));
}

void check_outs_apart(const char* function, std::span<const Array> outs, std::span<const Array> inputs) {
  for (std::size_t i = 0; i < outs.size(); ++i)
    for (std::size_t j = 0; j < outs.size(); ++j)
      if (j != i && (outs[i].overlaps(outs[j]) || outs[i].overlaps(inputs[j])))
        value_error(format("%s: out must not share memory between two tensors, got some that do", function));
}

void check_score_outs(const char* function, std::span<const ScoreSource> sources, std::span<const Array> outs) {
  std::vector<Array> weights, aux;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const ScoreSource& s = sources[i];
    weights.push_back(s.weights);
    aux.push_back(s.method != nullptr && s.method->uses_aux() ? s.aux : s.weights);
    const Array inputs[] = {weights.back(), aux.back()};
    check_out(function, outs[i], s.rows(), s.cols(), s.dtype(), inputs);
  }
  check_outs_apart(function, outs, weights);
  check_outs_apart(function, outs, aux);
}

std::int64_t find_nan(const ScoreSource& source) {
  std::int64_t found = -1;
  dispatch(source.dtype(), [&](auto zero) {
    using T = decltype(zero);
    auto scratch = std::make_unique<ScoreScratch<T>>();
    for (std::int64_t row = 0; row < source.rows() && found < 0; ++row)
      for (std::int64_t col = 0; col < source.cols() && found < 0; col += tile_size) {
        const std::int64_t n = std::min(tile_size, source.cols() - col);
        const T* scores = score_tile(source, row, col, n, *scratch);
        const T* nan = std::find_if(scores, scores + n, [](T x) { return x != x; });
        if (nan != scores + n) found = row * source.cols() + col + (nan - scores);
      }
  });
  return found;
}

static void score_one(const ScoreSource& source_, const Array& out_) {
  const ScoreSource flat = source_.flattened();
  const bool same = out_.contiguous() || flat.rows() == source_.rows();
  const ScoreSource& source = same ? flat : source_;
  const Array out = source.rows() != out_.rows() ? out_.flat() : out_;
  dispatch(source.dtype(), [&](auto zero) {
    using T = decltype(zero);
    PerWorker<ScoreScratch<T>> scratch;
    for_all_tiles(source.rows(), source.cols(), scratch,
                  [&](ScoreScratch<T>& s, std::int64_t row, std::int64_t col, std::int64_t n) {
                    const TileInputs<T> in = tile_inputs(source, row, col, n, s);
                    T* direct = out.direct<T>(row, col);
                    T* to = direct != nullptr ? direct : s.scores;
                    kernels<T>().score[static_cast<int>(in.criterion)][static_cast<int>(in.storage)](in, to, n);
                    if (direct == nullptr) out.store(row, col, n, to);
                  });
  });
}

void score(std::span<const ScoreSource> sources, std::span<const Array> outs) {
  const std::vector<ScoreSource> prepared = prepare(sources);
  for (std::size_t i = 0; i < prepared.size(); ++i) score_one(prepared[i], outs[i]);
}

}  // namespace gossamer
