// SPDX-License-Identifier: Apache-2.0
// What the core knows about devices. A back end in a folder of its own (cuda/) defines these.
#pragma once

namespace gossamer {

// Why arrays on a CUDA device cannot be used, in words; nullptr when they can.
const char* cuda_unavailable_reason();

}  // namespace gossamer
