// SPDX-License-Identifier: Apache-2.0
// The element-wise criteria, each written once for every vector width (and for CUDA). w: the weights, or what is scored
// in their place; a: what goes with every element (gradients) or column (input norms); b: with every column; r: with
// the row. Every operation rounds once, in the order written here, so that scores are equal bit for bit on all back
// ends. Which method uses which: ops/score.cpp. Papers: reference.py.
#pragma once
#include "core/table.hpp"

namespace gossamer {
namespace {

struct Identity {  // scores that are there already: movement, random, lamp, fpgm
  static constexpr int inputs = 1;
  static constexpr bool pairs = false;
  static K16 key_16(K16 w) { return Order16(w); }
  template <class V>
  static V apply(V w, V, V, V) {
    return w;
  }
};
struct Magnitude {  // magnitude; gradient, with the gradients as w
  static constexpr int inputs = 1;
  static constexpr bool pairs = false;
  static K16 key_16(K16 w) { return Magnitude16(w); }
  template <class V>
  static V apply(V w, V, V, V) {
    return Abs(w);
  }
};
struct Product {  // grasp, synflow
  static constexpr int inputs = 2;
  static constexpr bool pairs = true;
  template <class V>
  static V apply(V w, V a, V, V) {
    return Mul(w, a);
  }
};
struct Taylor {
  static constexpr int inputs = 2;
  static constexpr bool pairs = true;
  template <class V>
  static V apply(V w, V a, V, V) {
    return Abs(Mul(w, a));
  }
};
struct Taylor2 {
  static constexpr int inputs = 2;
  static constexpr bool pairs = true;
  template <class V>
  static V apply(V w, V a, V, V) {
    const V product = Mul(w, a);
    return Mul(product, product);
  }
};
struct Wanda {
  static constexpr int inputs = 2;
  static constexpr bool pairs = false;
  template <class V>
  static V apply(V w, V a, V, V) {
    return Mul(Abs(w), a);
  }
};
struct Square {  // fisher, a = E[g^2] / 2; obs, a = 1 / (2 [H^-1]_jj)
  static constexpr int inputs = 2;
  static constexpr bool pairs = true;
  template <class V>
  static V apply(V w, V a, V, V) {
    return Mul(Mul(w, w), a);
  }
};
struct Ria {  // a: powers of the input norms, b: column sums, r: row sum of |w|
  static constexpr int inputs = 3;
  static constexpr bool pairs = false;
  template <class V>
  static V apply(V w, V a, V b, V r) {
    const V size = Abs(w);
    return Mul(Add(Div(size, r), Div(size, b)), a);
  }
};
struct Share {  // snip, r: the sum of all |w * g|
  static constexpr int inputs = 2;
  static constexpr bool pairs = true;
  template <class V>
  static V apply(V w, V a, V, V r) {
    return Div(Abs(Mul(w, a)), r);
  }
};

}  // namespace
}  // namespace gossamer
