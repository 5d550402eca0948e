// SPDX-License-Identifier: Apache-2.0
// All kernel text and the table made of it. An isa/*.cpp includes its simd/*.hpp and then this.
#pragma once
#include "core/table.hpp"

#if defined(__clang__)
#define GOSSAMER_UNROLL _Pragma("clang loop unroll(full)")
#define GOSSAMER_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define GOSSAMER_UNROLL _Pragma("GCC unroll 16")
#define GOSSAMER_INDEPENDENT _Pragma("GCC ivdep")
#else
#define GOSSAMER_UNROLL
#define GOSSAMER_INDEPENDENT
#endif

#include "kernels/criteria.hpp"
#include "kernels/score.inl.hpp"
#include "kernels/select.inl.hpp"
#include "kernels/mask.inl.hpp"
#include "kernels/adjust.inl.hpp"
#include "kernels/stats.inl.hpp"
#include "kernels/spmm_csr.inl.hpp"

namespace gossamer {
namespace {

template <class T>
constexpr TypedKernels<T> make_table() {
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  constexpr int lanes = Simd<T>::V::lanes;
  TypedKernels<T> t{};
  t.score[static_cast<int>(Criterion::identity)] = &score<Identity, T>;
  t.score[static_cast<int>(Criterion::magnitude)] = &score<Magnitude, T>;
  t.score[static_cast<int>(Criterion::gradient)] = &score<Gradient, T>;
  t.score[static_cast<int>(Criterion::taylor)] = &score<Taylor, T>;
  t.score[static_cast<int>(Criterion::wanda)] = &score<Wanda, T>;
  t.score_random = &score_random<T>;
  t.add_scores = &add_scores<T>;
  t.add_lanes = &add_lanes<T>;
  t.keys = &keys<T>;
  t.exclude = &exclude<Key>;
  t.histogram = &histogram<Key, Unsigned>;
  t.mark = &mark<T>;
  t.stream[static_cast<int>(Criterion::identity)] = &stream<Identity, T>;
  t.stream[static_cast<int>(Criterion::magnitude)] = &stream<Magnitude, T>;
  t.stream[static_cast<int>(Criterion::gradient)] = &stream<Gradient, T>;
  t.stream[static_cast<int>(Criterion::taylor)] = &stream<Taylor, T>;
  t.stream[static_cast<int>(Criterion::wanda)] = &stream<Wanda, T>;
  t.mark_ties = &mark_ties<T>;
  t.keep_n_of_m = &keep_n_of_m<Key>;
  t.apply = &apply<T>;
  t.nonzero = &nonzero<T>;
  t.compress = &compress<T>;
  t.extent = &extent<T>;
  t.adjust_sign = &adjust_sign<T>;
  t.adjust_scale = &adjust_scale<T>;
  t.add_squares = &add_squares<T>;
  t.subtract_products = &subtract_products<T>;
  constexpr int unit = lanes > 1 ? 1 : 2;  // a one-lane ISA takes as many columns in more "vectors"
  t.width[0] = 4 * unit * lanes;
  t.width[1] = 2 * unit * lanes;
  t.width[2] = unit * lanes;
  t.width[3] = 1;
  t.spmm[0][0] = &spmm<T, std::int32_t, 4 * unit>;
  t.spmm[0][1] = &spmm<T, std::int32_t, 2 * unit>;
  t.spmm[0][2] = &spmm<T, std::int32_t, 1 * unit>;
  t.spmm[0][3] = &spmv<T, std::int32_t>;
  t.spmm[1][0] = &spmm<T, std::int64_t, 4 * unit>;
  t.spmm[1][1] = &spmm<T, std::int64_t, 2 * unit>;
  t.spmm[1][2] = &spmm<T, std::int64_t, 1 * unit>;
  t.spmm[1][3] = &spmv<T, std::int64_t>;
  t.dot = &dot<T>;
  t.epilogue = &epilogue<T>;
  t.activation_grad = &activation_grad<T>;
  return t;
}

}  // namespace
}  // namespace gossamer

#define GOSSAMER_DEFINE_TABLE(isa)                                               \
  namespace gossamer {                                                           \
  extern const Kernels kernels_##isa;                                            \
  constexpr Kernels kernels_##isa = {make_table<float>(), make_table<double>()}; \
  }
