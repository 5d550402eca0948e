// SPDX-License-Identifier: Apache-2.0
#include "core/dispatch.hpp"

#include <cstdlib>
#include <string>

#include "core/error.hpp"

namespace gossamer {

static const Isa& choose() {
  const char* wanted = std::getenv("GOSSAMER_ISA");
  const Isa* best = nullptr;
  std::string known;
  for (const Isa& isa : isas()) {
    known += (known.empty() ? "" : ", ") + std::string(isa.name);
    if (wanted != nullptr && *wanted != '\0') {
      if (std::string(wanted) != isa.name) continue;
      if (!isa.supported)
        throw Error(GOSSAMER_ERROR_RUNTIME, format("GOSSAMER_ISA: this CPU does not support '%.40s'", wanted));
    }
    if (isa.supported) best = &isa;
  }
  if (best == nullptr)
    throw Error(GOSSAMER_ERROR_RUNTIME, format("GOSSAMER_ISA: must be one of %s, got '%.40s'", known.c_str(), wanted));
  return *best;
}

const Isa& active_isa() {
  static const Isa& isa = choose();
  return isa;
}

}  // namespace gossamer
