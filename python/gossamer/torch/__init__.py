# SPDX-License-Identifier: Apache-2.0
"""gossamer for PyTorch: sparse layers with autograd, and pruning of modules in place.

``import gossamer.torch as gt``. ``import gossamer`` alone never imports torch.
"""

try:
    import torch as _torch  # noqa: F401  (tried here, for an error that says what is missing)
except ImportError as error:
    raise ImportError(
        "gossamer.torch: needs PyTorch 2.4 or newer (pip install torch), which cannot be imported"
    ) from error

from gossamer.torch.linear import SparseLinear

__all__ = ["SparseLinear"]
