// SPDX-License-Identifier: Apache-2.0
// Linked where the CUDA back end is absent, so that no caller needs an #ifdef: it says why device arrays are refused.
#include "core/device.hpp"

namespace gossamer {

const char* cuda_unavailable_reason() { return "this build of gossamer has no CUDA back end (GOSSAMER_CUDA=OFF)"; }

}  // namespace gossamer
