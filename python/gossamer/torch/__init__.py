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

from gossamer.torch.calibration import collect, compensate_
from gossamer.torch.interchange import from_sparse_csr, peft_indices, shira_mask_fn, to_sparse_csr
from gossamer.torch.linear import SparseLinear
from gossamer.torch.pruning import Sparsified, prune_, sparsify_
from gossamer.torch.training import Sparsifier

__all__ = [
    "SparseLinear",
    "Sparsified",
    "Sparsifier",
    "collect",
    "compensate_",
    "from_sparse_csr",
    "peft_indices",
    "prune_",
    "shira_mask_fn",
    "sparsify_",
    "to_sparse_csr",
]
