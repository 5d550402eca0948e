# SPDX-License-Identifier: Apache-2.0
"""What is promised, as data: which rows, against what, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


class Target(NamedTuple):
    """``against``: "dense" or "sparse" (the best peer of that kind), "limit" (a share), "seconds", or a contestant.

    ``bound`` is how many times as fast as that, at least; with "limit" the least share, with "seconds" the most.
    ``where`` are facts of the rows that it is about.
    """

    suite: str
    against: str
    bound: float
    where: Mapping[str, Any]

    def applies(self, row: Mapping[str, Any]) -> bool:
        return row["suite"] == self.suite and all(row.get(key) == value for key, value in self.where.items())


def _times_dense() -> list[Target]:
    by_columns = {
        512: (1.35, 1.9, 2.6, 4.4, 6.5),
        128: (1.35, 1.9, 2.6, 4.4, 6.5),
        32: (1.3, None, 3.0, 5.0, None),
        8: (1.4, None, 4.0, 7.0, None),
    }
    return [
        Target("spmm", "dense", bound, {"n": n, "sparsity": sparsity})
        for n, bounds in by_columns.items()
        for sparsity, bound in zip(SPARSITIES, bounds, strict=True)
        if bound is not None
    ]


TARGETS: tuple[Target, ...] = (
    *_times_dense(),
    *(
        Target("spmm", "sparse", bound, {"n": n, "sparsity": s})
        for n, bound in ((32, 2.5), (8, 1.3))
        for s in SPARSITIES
    ),
    Target("spmm", "seconds", 5e-6, {"shape": [64, 64]}),
    Target("spmv", "dense", 1.6, {"sparsity": 0.5, "dtype": "float32"}),
    Target("spmv", "dense", 3.0, {"sparsity": 0.5, "dtype": "bfloat16"}),
    Target("spmv", "limit", 0.85, {"sparsity": 0.5, "dtype": "float32"}),
    Target("spmv", "limit", 0.80, {"sparsity": 0.5, "dtype": "bfloat16"}),
    Target("spmv", "sparse", 1.5, {"sparsity": 0.9, "dtype": "float32"}),
    *(Target("nm", "dense", bound, {"sparsity": s}) for s, bound in ((0.5, 1.8), (0.75, 3.5))),
    Target("train", "torch CSR", 4.0, {"operation": "backward dX"}),
    Target("train", "torch sampled_addmm", 4.0, {"operation": "SDDMM"}),
    Target("layers", "random mask", 0.85, {"sparsity": 0.5, "real": True}),
    *(
        Target("select", "limit", share, {"operation": operation, "shape": shape})
        for operation in ("topk_mask", "mask from weights", "taylor mask from weights")
        for shape, share in (([4096, 4096], 1 / 2.0), ([4096, 11008], 1 / 1.5))
    ),
    *(
        Target("select", peer, bound, {"operation": operation})
        for operation in ("mask from weights", "taylor mask from weights")
        for peer, bound in (("np.partition", 10.0), ("torch.kthvalue", 60.0))
    ),
)
# The best sparse peer, as a geometric mean over the rows of spmm with these numbers of columns.
SPARSE_MEAN, SPARSE_MEAN_COLUMNS = 4.0, (32, 128, 512)


def judge(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The targets of a row with what was measured; those without a contestant to compare with are left out."""
    medians = {c["name"]: c["median"] for c in row["contestants"]}
    ours = medians["gossamer"]
    verdicts = []
    for target in TARGETS:
        if not target.applies(row):
            continue
        value: float | None
        if target.against == "seconds":
            value = ours
        elif target.against == "limit":
            value = row.get("share_of_limit")
        elif target.against in ("dense", "sparse"):
            value = row[target.against]["ratio"] if row.get(target.against) else None
        else:
            value = medians[target.against] / ours if target.against in medians else None
        if value is not None:
            met = value <= target.bound if target.against == "seconds" else value >= target.bound
            verdicts.append({"against": target.against, "bound": target.bound, "value": value, "met": met})
    return verdicts
