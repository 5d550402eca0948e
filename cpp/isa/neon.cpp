// SPDX-License-Identifier: Apache-2.0
// Compiled with this instruction set's flags (cpp/cmake/Isa.cmake): nothing but kernel text may come in here.
#include "simd/neon.hpp"

#include "kernels/all.inl.hpp"

GOSSAMER_DEFINE_TABLE(neon)
