# SPDX-License-Identifier: Apache-2.0
"""One selection over the tensors of all ranks of a ``torch.distributed`` job.

``import gossamer.distributed as gd``. ``import gossamer`` alone never imports torch.
"""

try:
    import torch as _torch  # noqa: F401  (tried here, for an error that says what is missing)
except ImportError as error:
    raise ImportError(
        "gossamer.distributed: needs PyTorch 2.4 or newer (pip install torch), which cannot be imported"
    ) from error

from gossamer.distributed.selecting import prune, topk_mask

__all__ = ["prune", "topk_mask"]
