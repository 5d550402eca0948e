// SPDX-License-Identifier: Apache-2.0
// Instruction sets, from the weakest to the strongest, and how many processors this process may use.
#pragma once
#include <span>

#include "core/table.hpp"

namespace gossamer {

struct Isa {
  const char* name;
  const Kernels* kernels;
  bool supported;  // by this CPU
};

std::span<const Isa> isas();
// Affinity mask intersected with the cgroup's CPU quota (rounded up); at least 1.
int usable_processors();

}  // namespace gossamer
