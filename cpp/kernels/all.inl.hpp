// SPDX-License-Identifier: Apache-2.0
// All kernel text and the table made of it. An isa/*.cpp includes its simd/*.hpp and then this.
#pragma once
#include <bit>
#include <cstddef>
#include <cstdint>

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
#include "kernels/activation.inl.hpp"
#include "kernels/adjust.inl.hpp"
#include "kernels/stats.inl.hpp"
#include "kernels/sddmm.inl.hpp"
#include "kernels/spmm_csr.inl.hpp"
#include "kernels/spmm_panel.inl.hpp"
#include "kernels/spmv_bitmask.inl.hpp"

namespace gossamer {
namespace {

template <class C, class T>
constexpr void fill(TypedKernels<T>& t, Criterion criterion) {
  auto& score_of = t.score[static_cast<int>(criterion)];
  auto& stream_of = t.stream[static_cast<int>(criterion)];
  score_of[static_cast<int>(Storage::native)] = &score<C, T, T>;
  stream_of[static_cast<int>(Storage::native)] = &stream<C, T, T>;
  if constexpr (sizeof(T) == 4) {
    score_of[static_cast<int>(Storage::half)] = &score<C, T, Half>;
    score_of[static_cast<int>(Storage::bfloat)] = &score<C, T, BFloat>;
    if constexpr (requires { C::key_16(K16{}); }) {
      stream_of[static_cast<int>(Storage::half)] = &stream_16<C, Half>;
      stream_of[static_cast<int>(Storage::bfloat)] = &stream_16<C, BFloat>;
    } else {
      stream_of[static_cast<int>(Storage::half)] = &stream<C, T, Half>;
      stream_of[static_cast<int>(Storage::bfloat)] = &stream<C, T, BFloat>;
    }
  }
}

template <class T, class S, int shape, int unit>
constexpr void fill_shapes(TypedKernels<T>& t, int storage) {
  if constexpr (shape <= TypedKernels<T>::max_shape) {
    t.spmm[storage][0][shape] = &spmm<T, S, std::int32_t, shape * unit>;
    t.spmm[storage][1][shape] = &spmm<T, S, std::int64_t, shape * unit>;
    if constexpr (shape <= panel_shapes) t.panel[storage][shape] = &spmm_panel<typename Simd<T>::V, S, shape * unit>;
    t.bitmask[storage][0][shape] = &spmv_bitmask<T, S, shape, false>;
    t.bitmask[storage][1][shape] = &spmv_bitmask<T, S, shape, true>;
    fill_shapes<T, S, shape + 1, unit>(t, storage);
  }
}

template <class T, class S, int unit>
constexpr void fill_products(TypedKernels<T>& t, Storage as) {
  const int storage = static_cast<int>(as);
  t.spmm[storage][0][0] = &spmv<T, S, std::int32_t>;
  t.spmm[storage][1][0] = &spmv<T, S, std::int64_t>;
  t.panel[storage][0] = &spmm_panel<typename Simd<T>::Narrow, S, 1>;
  fill_shapes<T, S, 1, unit>(t, storage);
}

template <class T>
constexpr TypedKernels<T> make_table() {
  using Key = typename KeyOf<T>::type;
  using Unsigned = typename KeyOf<T>::unsigned_type;
  constexpr int lanes = Simd<T>::V::lanes;
  TypedKernels<T> t{};
  fill<Identity>(t, Criterion::identity);
  fill<Magnitude>(t, Criterion::magnitude);
  fill<Product>(t, Criterion::product);
  fill<Taylor>(t, Criterion::taylor);
  fill<Taylor2>(t, Criterion::taylor2);
  fill<Wanda>(t, Criterion::wanda);
  fill<Square>(t, Criterion::square);
  fill<Ria>(t, Criterion::ria);
  fill<Share>(t, Criterion::share);
  t.score_random = &score_random<T>;
  t.add_scores = &add_scores<T>;
  t.add_lanes = &add_lanes<T>;
  t.add_twofold = &add_twofold<T>;
  t.add_distances = &add_distances<T>;
  t.keys = &keys<T>;
  t.exclude = &exclude<Key>;
  t.histogram = &histogram<Key, Unsigned>;
  t.mark = &mark<T>;
  t.mark_ties = &mark_ties<T>;
  t.keep_n_of_m = &keep_n_of_m<T>;
  t.apply = &apply<T>;
  t.nonzero = &nonzero<T>;
  t.compress = &compress<T>;
  t.extent = &extent<T>;
  t.adjust_sign = &adjust_sign<T>;
  t.adjust_scale = &adjust_scale<T>;
  t.add_squares = &add_squares<T>;
  t.subtract_products = &subtract_products<T>;
  constexpr int unit = lanes * sizeof(T) < 32 ? 2 : 1;  // short vectors: about as many columns in more of them
  t.columns = unit * lanes;
  t.panel_shapes = panel_shapes;
  fill_products<T, T, unit>(t, Storage::native);
  if constexpr (sizeof(T) == 4) {
    fill_products<T, Half, unit>(t, Storage::half);
    fill_products<T, BFloat, unit>(t, Storage::bfloat);
    fill_products<T, std::int8_t, unit>(t, Storage::int8);
  }
  t.sddmm[0] = &sddmm<T, std::int32_t>;
  t.sddmm[1] = &sddmm<T, std::int64_t>;
  t.epilogue = &epilogue<T>;
  t.activation_grad = &activation_grad<T>;
  return t;
}

constexpr HalfKernels make_half_table() {
  return {&apply<Half>, &nonzero<Half>, &compress<Half>, &widen<Half>, &widen<BFloat>};
}

}  // namespace
}  // namespace gossamer

#define GOSSAMER_DEFINE_TABLE(isa)                                                                  \
  namespace gossamer {                                                                              \
  extern const Kernels kernels_##isa;                                                               \
  constexpr Kernels kernels_##isa = {make_half_table(), make_table<float>(), make_table<double>()}; \
  }
