// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.hpp"

#include <cstdlib>
#include <string>

#include "core/error.hpp"

namespace gossamer {

// The strongest level of this CPU, or the strongest up to the one named: a cap, so that one setting serves all
// machines.
static const Isa& choose() {
  const char* named = std::getenv("GOSSAMER_ISA");
  const std::string cap = named != nullptr ? named : "";
  const Isa* best = nullptr;
  std::string known;
  for (const Isa& isa : isas()) {
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
    if (isa.supported) best = &isa;
    if (cap == isa.name) return *best;
  }
  if (!cap.empty())
    throw Error(GOSSAMER_ERROR_RUNTIME,
                format("GOSSAMER_ISA: must be one of %s, got '%.40s'", known.c_str(), cap.c_str()));
  return *best;
}

const Isa& active_isa() {
  static const Isa& isa = choose();
  return isa;
}

}  // namespace gossamer
