// SPDX-License-Identifier: Apache-2.0
#include "ops/score.hpp"

#include <cstring>
#include <string>

#include "core/parallel.hpp"

namespace gossamer {

std::span<const Method> methods() {
  static const Method list[] = {
      {"magnitude", Needs::weights, Criterion::magnitude, true, false, "tensor"},
      {"gradient", Needs::grads, Criterion::gradient, false, true, "tensor"},
      {"taylor", Needs::weights_and_grads, Criterion::taylor, true, true, "tensor"},
      {"movement", Needs::movement, Criterion::identity, false, true, "tensor"},
      {"wanda", Needs::weights_and_norm, Criterion::wanda, true, true, "row"},
      {"random", Needs::seed, Criterion::identity, false, false, "tensor"},
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

ScoreSource ScoreSource::flattened() const {
  const bool per_column = method != nullptr && method->uses_aux && aux.rows() != rows();
  if (per_column || !weights.contiguous() || (method != nullptr && method->uses_aux && !aux.contiguous())) return *this;
  if (rows() > 1 && cols() % 8 != 0) return *this;  // the packed rows have padding bits
  ScoreSource flat = *this;
  flat.weights = weights.flat();
  if (method != nullptr && method->uses_aux) flat.aux = aux.flat();
  return flat;
}

void check_source(const char* function, const char* name, const ScoreSource& source) {
  if (source.method == nullptr || !source.method->uses_aux) return;
  const bool norm = source.method->needs == Needs::weights_and_norm;
  const char* what = norm ? "stats" : source.method->needs == Needs::movement ? "stats" : "grads";
  const std::int64_t rows = norm ? 1 : source.rows();
  if (source.aux.rows() == rows && source.aux.cols() == source.cols()) return;
  value_error(format("%s: %s must have the shape %s that %s needs, got %s%s%s", function, what,
                     norm ? format("(%lld,)", ll(source.cols())).c_str() : source.weights.shape_text().c_str(),
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

void score(const ScoreSource& source_, const Array& out_) {
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
                    kernels<T>().score[static_cast<int>(in.criterion)](in.weights, in.aux, to, n);
                    if (direct == nullptr) out.store(row, col, n, to);
                  });
  });
}

}  // namespace gossamer
