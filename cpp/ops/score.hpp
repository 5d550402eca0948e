// SPDX-License-Identifier: Apache-2.0
// Importance scores of a tensor, a tile at a time: what score() writes out and what selection reads.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "core/array.hpp"
#include "core/dispatch.hpp"
#include "ops/tiles.hpp"

namespace gossamer {

enum class Needs : int { weights, grads, norm, movement, seed, weights_and_grads, weights_and_norm };

struct Method {
  const char* name;
  Needs needs;
  Criterion criterion;
  bool uses_weights, uses_aux;
  const char* group;  // what competes by default in prune()
};

std::span<const Method> methods();
const Method& find_method(const char* function, const char* name);

struct ScoreSource {
  const Method* method = nullptr;  // nullptr: `weights` are the scores themselves
  Array weights;
  Array aux;  // gradients, movement (like the weights) or norm [1, cols]
  std::uint64_t seed = 0;
  std::int64_t first_index = 0;  // flat index of element 0 among all tensors of the call ("random")

  DType dtype() const { return weights.dtype(); }
  std::int64_t rows() const { return weights.rows(); }
  std::int64_t cols() const { return weights.cols(); }

  // As one long row where the layout allows it: longer tiles, the same flat order.
  ScoreSource flattened() const;
};

// Checks shapes and dtypes; `function` and `name` go into the messages.
void check_source(const char* function, const char* name, const ScoreSource& source);

template <class T>
struct ScoreScratch {
  alignas(64) T weights[tile_size];
  alignas(64) T aux[tile_size];
  alignas(64) T scores[tile_size];
};

// What a kernel needs to score a tile: both pointers are valid, also where the criterion reads only one.
template <class T>
struct TileInputs {
  Criterion criterion;
  const T *weights, *aux;
};

// count <= tile_size elements, contiguous; in place where they lie so already.
template <class T>
TileInputs<T> tile_inputs(const ScoreSource& source, std::int64_t row, std::int64_t col, std::int64_t count,
                          ScoreScratch<T>& scratch) {
  const Method* method = source.method;
  if (method == nullptr) {
    const T* scores = source.weights.load(row, col, count, scratch.weights);
    return {Criterion::identity, scores, scores};
  }
  if (method->needs == Needs::seed) {
    kernels<T>().score_random(source.seed, static_cast<std::uint64_t>(source.first_index + row * source.cols() + col),
                              scratch.aux, count);
    return {Criterion::identity, scratch.aux, scratch.aux};
  }
  const bool per_column = source.aux.rows() == 1;
  const T* aux = method->uses_aux ? source.aux.load(per_column ? 0 : row, col, count, scratch.aux) : nullptr;
  const T* weights = method->uses_weights ? source.weights.load(row, col, count, scratch.weights) : aux;
  return {method->criterion, weights, aux != nullptr ? aux : weights};
}

// The scores of a tile; in the weights themselves where nothing has to be computed.
template <class T>
const T* score_tile(const ScoreSource& source, std::int64_t row, std::int64_t col, std::int64_t count,
                    ScoreScratch<T>& scratch) {
  const TileInputs<T> in = tile_inputs(source, row, col, count, scratch);
  if (in.criterion == Criterion::identity) return in.aux;
  kernels<T>().score[static_cast<int>(in.criterion)](in.weights, in.aux, scratch.scores, count);
  return scratch.scores;
}

void score(const ScoreSource& source, const Array& out);

// Throws unless `out` may be written: right shape and dtype, no element twice, no overlap with one of its own inputs
// other than being that input.
void check_out(const char* function, const Array& out, std::int64_t rows, std::int64_t cols, DType dtype,
               std::span<const Array> inputs);

// Throws where the out of one tensor shares memory with the out or an input of another: a call that writes several
// tensors must not read what it has already written.
void check_outs_apart(const char* function, std::span<const Array> outs, std::span<const Array> inputs);

}  // namespace gossamer
