// SPDX-License-Identifier: Apache-2.0
// The C ABI: scores, masks, pruning, statistics.
#include <algorithm>
#include <limits>
#include <vector>

#include "capi/guard.hpp"
#include "ops/adjust.hpp"
#include "ops/mask.hpp"
#include "ops/prune.hpp"
#include "ops/stats.hpp"
#include "ops/tiles.hpp"

using namespace gossamer;
using namespace gossamer::capi;

namespace {

const char* name_of(const gossamer_tensor& tensor) { return tensor.name != nullptr ? tensor.name : ""; }

void check_count(const char* function, const void* tensors, std::int64_t count) {
  if (count < 0) value_error(format("%s: count must be at least 0, got %lld", function, ll(count)));
  if (count > 0) given(function, "tensors", tensors);
}

void check_decay(const char* function, double decay) {
  if (!(decay >= 0 && decay <= std::numeric_limits<double>::max()))
    value_error(format("%s: decay must be finite and not negative, got ", function) + gossamer::text(decay));
}

// The sources of a method, or of scores (nullptr).
std::vector<ScoreSource> sources_of(const char* function, const Method* method, const gossamer_tensor* tensors,
                                    std::int64_t count, std::uint64_t seed) {
  std::vector<ScoreSource> sources;
  std::int64_t index = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    ScoreSource source;
    source.method = method;
    source.weights = view(function, method != nullptr ? "weights" : "scores", tensors[i].weights);
    if (method != nullptr && method->uses_aux()) source.aux = view(function, "aux", tensors[i].aux);
    source.seed = seed;
    source.first_index = index;
    index += source.weights.size();
    check_source(function, name_of(tensors[i]), source);
    sources.push_back(std::move(source));
  }
  return sources;
}

Selection selection_of(const char* function, const gossamer_selection* how, const Method* method, std::int64_t count) {
  given(function, "how", how);
  Selection selection;
  switch (how->rule) {
    case GOSSAMER_BY_SPARSITY: selection.sparsity = how->sparsity; break;
    case GOSSAMER_BY_NNZ: selection.nnz = how->nnz; break;
    case GOSSAMER_BY_THRESHOLD: selection.threshold = how->threshold; break;
    case GOSSAMER_BY_PATTERN: break;
    default: value_error(format("%s: rule must be a gossamer_rule, got %d", function, how->rule));
  }
  selection.pattern = parse_pattern(function, how->pattern != nullptr ? how->pattern : "element");
  const char* group = method != nullptr ? method->group : "tensor";
  selection.group = parse_group(function, how->group != nullptr ? how->group : group);
  // A method's "global" is meant for several tensors, as in Python.
  if (how->group == nullptr && count == 1 && selection.group == Group::global) selection.group = Group::tensor;
  selection.min_density = how->min_density;
  selection.nan = parse_nan(function, how->nan != nullptr ? how->nan : "raise");
  return selection;
}

// Selects, and prunes where there is an out. The masks are written last, so that an error leaves them as they were.
void select_tensors(const char* function, const Method* method, gossamer_tensor* tensors, std::int64_t count,
                    std::uint64_t seed, const gossamer_selection* how, bool with_outs) {
  check_count(function, tensors, count);
  const Selection selection = selection_of(function, how, method, count);
  std::vector<ScoreSource> sources = sources_of(function, method, tensors, count, seed);
  std::vector<SelectTensor> selected(sources.size());
  std::vector<std::vector<std::uint8_t>> masks;
  std::vector<Array> outs;
  const bool pruned = with_outs && count > 0 && tensors[0].out != nullptr;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    const gossamer_tensor& tensor = tensors[i];
    const Array& w = sources[i].weights;
    masks.emplace_back(static_cast<std::size_t>(check_sizes(function, w.rows(), w.cols())));
    if (!masks[i].empty()) given(function, "mask", tensor.mask);
    selected[i].name = name_of(tensor);
    selected[i].mask = masks[i].data();
    if (tensor.prior != nullptr) selected[i].prior = check_mask(function, tensor.prior, w.rows(), w.cols());
    selected[i].source = std::move(sources[i]);
    if (with_outs && (tensor.out != nullptr) != pruned)
      value_error(format("%s: out must be given for all tensors or for none", function));
    if (pruned) outs.push_back(view(function, "out", tensor.out));
  }
  outs.empty() ? select(function, selected, selection) : prune(function, selected, selection, outs);
  for (std::size_t i = 0; i < masks.size(); ++i) {
    std::copy(masks[i].begin(), masks[i].end(), tensors[i].mask);
    tensors[i].nnz = selected[i].nnz;
  }
}

}  // namespace

extern "C" {

std::int64_t gossamer_mask_bytes(const gossamer_array* array) {
  std::int64_t bytes = -1;
  guarded([&] {
    const Array a = describe("mask_bytes", "array", array);
    bytes = check_sizes("mask_bytes", a.rows(), a.cols());
  });
  return bytes;
}

std::int64_t gossamer_kept_count(std::int64_t n, double sparsity) {
  std::int64_t kept = -1;
  guarded([&] {
    if (n < 0) value_error(format("kept_count: n must be at least 0, got %lld", ll(n)));
    if (!(sparsity >= 0 && sparsity <= 1))
      value_error("kept_count: sparsity must be in [0, 1], got " + gossamer::text(sparsity));
    kept = kept_count(n, sparsity);
  });
  return kept;
}

gossamer_status gossamer_score(const char* method, const gossamer_tensor* tensors, std::int64_t count,
                               std::uint64_t seed) {
  constexpr const char* f = "score";
  return guarded([&] {
    const Method& known = find_method(f, given(f, "method", method));
    check_count(f, tensors, count);
    const std::vector<ScoreSource> sources = sources_of(f, &known, tensors, count, seed);
    std::vector<Array> outs;
    for (std::int64_t i = 0; i < count; ++i) outs.push_back(view(f, "out", tensors[i].out));
    check_score_outs(f, sources, outs);
    score(sources, outs);
  });
}

gossamer_status gossamer_topk_mask(gossamer_tensor* tensors, std::int64_t count, const gossamer_selection* how) {
  return guarded([&] { select_tensors("topk_mask", nullptr, tensors, count, 0, how, false); });
}

gossamer_status gossamer_prune(const char* method, gossamer_tensor* tensors, std::int64_t count, std::uint64_t seed,
                               const gossamer_selection* how) {
  return guarded([&] {
    const Method& known = find_method("prune", given("prune", "method", method));
    select_tensors("prune", &known, tensors, count, seed, how, true);
  });
}

gossamer_status gossamer_apply_mask(const gossamer_array* weights, const std::uint8_t* mask,
                                    const gossamer_array* out) {
  return guarded([&] {
    const Array w = view("apply_mask", "weights", weights), o = view("apply_mask", "out", out);
    if (!w.empty()) given("apply_mask", "mask", mask);
    check_out("apply_mask", o, w.rows(), w.cols(), w.dtype(), {&w, 1});
    apply_mask(w, mask, o);
  });
}

gossamer_status gossamer_adjust(const gossamer_tensor* tensors, std::int64_t count, double rate, const char* rule) {
  constexpr const char* f = "adjust";
  return guarded([&] {
    check_count(f, tensors, count);
    std::vector<AdjustTensor> list;
    for (std::int64_t i = 0; i < count; ++i) {
      const gossamer_tensor& t = tensors[i];
      list.push_back({name_of(t), view(f, "weights", t.weights), view(f, "scores", t.aux), view(f, "out", t.out)});
    }
    adjust(f, list, rate, given(f, "rule", rule));
  });
}

gossamer_status gossamer_nonzero_mask(const gossamer_array* weights, std::uint8_t* mask) {
  return guarded([&] {
    const Array w = view("nonzero_mask", "weights", weights);
    if (w.empty()) return;
    nonzero_mask(w, given("nonzero_mask", "mask", mask));
  });
}

std::int64_t gossamer_mask_count(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols) {
  std::int64_t count = -1;
  guarded([&] { count = count_mask(check_mask("mask_count", mask, rows, cols), rows, cols); });
  return count;
}

gossamer_status gossamer_mask_indices(const std::uint8_t* mask, std::int64_t rows, std::int64_t cols,
                                      std::int64_t* indices) {
  constexpr const char* f = "mask_indices";
  return guarded([&] {
    check_mask(f, mask, rows, cols);
    if (count_mask(mask, rows, cols) > 0) mask_indices(mask, rows, cols, given(f, "indices", indices));
  });
}

gossamer_status gossamer_add_squares(const gossamer_array* x, double decay, double* sums) {
  constexpr const char* f = "add_squares";
  return guarded([&] {
    Array a = view(f, "x", x);
    if (x->ndim > 2) {  // [..., cols], flattened
      if (!a.contiguous()) value_error(format("%s: x of more than two dimensions must be contiguous", f));
      const std::int64_t cols = x->shape[x->ndim - 1];
      const std::int64_t shape[] = {cols == 0 ? 0 : a.size() / cols, cols};
      a = Array(a.data(), a.dtype(), 2, shape, nullptr, f);
    }
    check_decay(f, decay);
    if (a.cols() > 0) add_squares(a, decay, given(f, "sums", sums));
  });
}

gossamer_status gossamer_subtract_products(const gossamer_array* weights, const gossamer_array* grads, double decay,
                                           double* sums) {
  constexpr const char* f = "subtract_products";
  return guarded([&] {
    const Array w = view(f, "weights", weights), g = view(f, "grads", grads);
    if (g.rows() != w.rows() || g.cols() != w.cols())
      value_error(format("%s: grads must have the shape of weights %s, got %s", f, w.shape_text().c_str(),
                         g.shape_text().c_str()));
    check_decay(f, decay);
    if (!w.empty()) subtract_products(w, g, decay, given(f, "sums", sums));
  });
}

}  // extern "C"
