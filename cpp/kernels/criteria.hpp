// SPDX-License-Identifier: Apache-2.0
// The element-wise importance criteria, each written once for every vector width (and for CUDA). w: weights, a: what
// the method needs beside them (gradients, input norms, accumulated movement). Every operation rounds once, in the
// order written here, so that scores are equal bit for bit on all back ends. Formulas and papers: reference.py.
#pragma once
#include "core/table.hpp"

namespace gossamer {
namespace {

struct Identity {  // the scores themselves; movement, whose sum the statistics hold
  template <class V>
  static V apply(V, V a) {
    return a;
  }
};
struct Magnitude {
  template <class V>
  static V apply(V w, V) {
    return Abs(w);
  }
};
struct Gradient {
  template <class V>
  static V apply(V, V a) {
    return Abs(a);
  }
};
struct Taylor {
  template <class V>
  static V apply(V w, V a) {
    return Abs(Mul(w, a));
  }
};
struct Wanda {
  template <class V>
  static V apply(V w, V a) {
    return Mul(Abs(w), a);
  }
};

}  // namespace
}  // namespace gossamer
