// SPDX-License-Identifier: Apache-2.0
// The kernel table in use: the strongest instruction set of this CPU, capped by GOSSAMER_ISA.
#pragma once
#include "core/cpu.hpp"

namespace gossamer {

const Isa& active_isa();  // throws Error when GOSSAMER_ISA names an unknown level

// TypedKernels<T>, or HalfKernels.
template <class T>
const auto& kernels() {
  return active_isa().kernels->typed(T{});
}

}  // namespace gossamer
