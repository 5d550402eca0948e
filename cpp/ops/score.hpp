// SPDX-License-Identifier: Apache-2.0
// Importance scores of a tensor, a tile at a time: what score() writes out and what selection reads.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/array.hpp"
#include "core/dispatch.hpp"
#include "ops/tiles.hpp"

namespace gossamer {

enum class Needs : int { nothing, grads, norm, movement, seed, grad2, hessian };
const char* name_of(Needs needs);  // as in Python: "", "grads", or the kind of the Stats

// The look at whole tensors that a method takes in prepare().
enum class Whole : int { none, ria, snip, lamp, fpgm };

struct Method {
  const char* name;
  Needs needs;  // what ScoreSource::aux holds: like the weights, or for norm and hessian [1, cols]
  Criterion criterion;
  bool scores_aux;    // the criterion's w is aux: the weights are not read
  const char* group;  // what competes by default in prune()
  Whole whole = Whole::none;
  bool keeps_wide = false;  // float64 aux is not rounded to the dtype of the weights
  bool uses_aux() const { return needs != Needs::nothing && needs != Needs::seed; }
  bool per_column() const { return needs == Needs::norm || needs == Needs::hessian; }
};

std::span<const Method> methods();
const Method& find_method(const char* function, const char* name);

struct ScoreSource {
  const Method* method = nullptr;  // nullptr: `weights` are the scores themselves
  Array weights;
  Array aux;
  std::uint64_t seed = 0;
  std::int64_t first_index = 0;  // flat index of element 0 among all tensors of the call ("random")

  // Filled in by prepare() for methods that look at the whole tensor.
  Criterion criterion = Criterion::identity;
  Array columns;                    // [1, cols]: b of the criterion
  const double* numbers = nullptr;  // [rows]: r of the criterion
  double number = 1;                // r where it is the same for all rows
  std::shared_ptr<const void> owned;

  // What is computed in and what the scores have: float32 for 16-bit weights, float64 for wide aux that is kept so.
  DType dtype() const;
  std::int64_t rows() const { return weights.rows(); }
  std::int64_t cols() const { return weights.cols(); }

  // As one long row where the layout allows it: longer tiles, the same flat order.
  ScoreSource flattened() const;
  ScoreSource row(std::int64_t row) const;
  // Kernels read the arrays where they are: tile_inputs() needs no scratch and takes runs of any length.
  bool in_place(DType computed) const;
  // Asks for the memory of an element.
  void prefetch(std::int64_t row, std::int64_t col) const;
};

// Checks shapes and dtypes; `function` and `name` go into the messages.
void check_source(const char* function, const char* name, const ScoreSource& source);

// The sources ready to be scored: what takes a look at whole tensors (the sums of ria and snip, the order of lamp, the
// distances of fpgm) is done here, in an order that does not depend on the threads.
std::vector<ScoreSource> prepare(std::span<const ScoreSource> sources);

template <class T>
struct ScoreScratch {
  alignas(64) T weights[tile_size];
  alignas(64) T a[tile_size];
  alignas(64) T b[tile_size];
  alignas(64) T scores[tile_size];
};

// Contiguous elements; in place where they lie so already, 16-bit floats as they are. count <= tile_size unless the
// source is in_place().
template <class T>
TileInputs<T> tile_inputs(const ScoreSource& source, std::int64_t row, std::int64_t col, std::int64_t count,
                          ScoreScratch<T>& scratch) {
  const Method* method = source.method;
  TileInputs<T> in{source.criterion, Storage::native, nullptr, nullptr, nullptr, T{1}};
  if (method != nullptr && method->needs == Needs::seed) {
    kernels<T>().score_random(source.seed, static_cast<std::uint64_t>(source.first_index + row * source.cols() + col),
                              scratch.weights, count);
    in.w = scratch.weights;
    return in;
  }
  in.r = static_cast<T>(source.numbers != nullptr ? source.numbers[row] : source.number);
  if (source.numbers != nullptr && source.criterion == Criterion::identity) {  // fpgm: the row's number is the score
    std::fill(scratch.weights, scratch.weights + count, in.r);
    in.w = scratch.weights;
    return in;
  }
  const Array& scored = method != nullptr && method->scores_aux ? source.aux : source.weights;
  if (sizeof(T) == 4 && is_16_bit(scored.dtype()) && scored.rows_contiguous()) {
    in.storage = scored.dtype() == DType::float16 ? Storage::half : Storage::bfloat;
    in.w = scored.data() + row * scored.row_stride() + col * 2;
  } else {
    in.w = scored.load(row, col, count, scratch.weights);
  }
  if (method == nullptr || method->scores_aux) return in;
  if (method->uses_aux()) in.a = source.aux.load(method->per_column() ? 0 : row, col, count, scratch.a);
  if (!source.columns.empty()) in.b = source.columns.load(0, col, count, scratch.b);
  return in;
}

// The scores of a tile; in the weights themselves where nothing has to be computed.
template <class T>
const T* score_tile(const TileInputs<T>& in, std::int64_t count, ScoreScratch<T>& scratch) {
  if (in.criterion == Criterion::identity && in.storage == Storage::native) return static_cast<const T*>(in.w);
  kernels<T>().score[static_cast<int>(in.criterion)][static_cast<int>(in.storage)](in, scratch.scores, count);
  return scratch.scores;
}
template <class T>
const T* score_tile(const ScoreSource& source, std::int64_t row, std::int64_t col, std::int64_t count,
                    ScoreScratch<T>& scratch) {
  return score_tile(tile_inputs(source, row, col, count, scratch), count, scratch);
}

// The flat index of the first NaN among the scores of a prepared source, or -1.
std::int64_t find_nan(const ScoreSource& source);

// Of checked sources, to checked outs.
void score(std::span<const ScoreSource> sources, std::span<const Array> outs);

// Throws unless `out` may be written: right shape and dtype, no element twice, no overlap with one of its own inputs
// other than being that input.
void check_out(const char* function, const Array& out, std::int64_t rows, std::int64_t cols, DType dtype,
               std::span<const Array> inputs);

// Throws where the out of one tensor shares memory with the out or an input of another: a call that writes several
// tensors must not read what it has already written.
void check_outs_apart(const char* function, std::span<const Array> outs, std::span<const Array> inputs);

// Both, for the outs of score().
void check_score_outs(const char* function, std::span<const ScoreSource> sources, std::span<const Array> outs);

}  // namespace gossamer
