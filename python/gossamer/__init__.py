# SPDX-License-Identifier: Apache-2.0
"""gossamer: score every parameter, keep the top k, and multiply with what is left."""

from typing import TYPE_CHECKING, Any

from gossamer.allocation import allocate
from gossamer.compensation import compensate
from gossamer.files import load, save
from gossamer.layers import SparseLinear
from gossamer.masks import Mask
from gossamer.multiply import linear, matmul, sddmm
from gossamer.pruning import adjust, apply_mask, prune
from gossamer.regrowth import SET, RigL
from gossamer.schedules import Constant, Cosine, Cubic, Exponential, OneShot
from gossamer.scoring import score
from gossamer.selection import topk_mask
from gossamer.shards import Selection
from gossamer.sparse import SparseMatrix
from gossamer.sparsifier import Sparsifier
from gossamer.stats import Stats
from gossamer.threads import get_num_threads, info, set_num_threads
from gossamer.tuning import Budget, Result, tune

if TYPE_CHECKING:
    from gossamer import checkpoints
else:

    def __getattr__(name: str) -> Any:
        if name != "checkpoints":
            raise AttributeError(f"module 'gossamer' has no attribute {name!r}")
        import gossamer.checkpoints  # takes 20 ms, and few programs need it

        return gossamer.checkpoints

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


__version__: str = info()["version"]

__all__ = [
    "SET",
    "Budget",
    "Constant",
    "Cosine",
    "Cubic",
    "Exponential",
    "Mask",
    "OneShot",
    "Result",
    "RigL",
    "Selection",
    "SparseLinear",
    "SparseMatrix",
    "Sparsifier",
    "Stats",
    "adjust",
    "allocate",
    "apply_mask",
    "checkpoints",
    "compensate",
    "get_num_threads",
    "info",
    "linear",
    "load",
    "matmul",
    "prune",
    "save",
    "score",
    "sddmm",
    "set_num_threads",
    "topk_mask",
    "tune",
]
