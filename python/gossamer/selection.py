# SPDX-License-Identifier: Apache-2.0
"""Exact top-k masks from scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, host, named, partner, require_number, require_text
from gossamer.masks import Mask, packed_bits
from gossamer.scoring import Inputs


def select(
    inputs: Inputs,
    shapes: list[tuple[int, ...]],
    outs: list[Host],
    function: str,
    *,
    sparsity: float | None,
    nnz: int | None,
    threshold: float | None,
    pattern: str,
    group: str,
    min_density: float,
    priors: dict[str, Any],
    nan: str,
) -> dict[str, Mask]:
    """One call of the core: masks for all tensors, and with ``outs`` the pruned weights too."""
    bits = [Mask._blank(shape, function) for shape in shapes]
    allowed = [
        None if priors[name] is None else packed_bits(priors[name], shape, function, "prior", name)
        for name, shape in zip(inputs.names, shapes, strict=True)
    ]
    kept = _core.select(
        function,
        inputs.names,
        inputs.weights,
        inputs.method,
        inputs.aux,
        inputs.seed,
        allowed,
        bits,
        outs,
        None if sparsity is None else require_number(sparsity, function, "sparsity"),
        _count(nnz, function),
        None if threshold is None else require_number(threshold, function, "threshold"),
        require_text(pattern, function, "pattern"),
        require_text(group, function, "group"),
        require_number(min_density, function, "min_density"),
        require_text(nan, function, "nan"),
        inputs.start,
    )
    return {
        name: Mask._own(shape, packed, count)
        for name, shape, packed, count in zip(inputs.names, shapes, bits, kept, strict=True)
    }


def _count(nnz: object, function: str) -> int | None:
    if nnz is None:
        return None
    if not isinstance(nnz, (int, np.integer)) or isinstance(nnz, bool):
        raise TypeError(f"{function}: nnz must be an int, got {nnz!r}")
    if not 0 <= nnz < 1 << 63:
        raise ValueError(f"{function}: nnz must be at least 0 and at most the number there is, got {nnz}")
    return int(nnz)


def topk_mask(
    scores: Array | Mapping[str, Array],
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    threshold: float | None = None,
    pattern: str = "element",
    group: str = "tensor",
    min_density: float = 0.0,
    prior: Mask | Mapping[str, Mask] | None = None,
    nan: str = "raise",
) -> Any:
    """Keeps exactly the highest scores.

    The order is total: a higher score first, then the lower flat index (for ``group="global"`` mapping order first);
    -0 equals +0. So the mask does not depend on threads, instruction set or library.

    Parameters
    ----------
    scores : float32, float64, float16 or bfloat16 array of any shape, or a mapping of them.
    sparsity : share of all elements that are zero, in [0, 1]; ``n - floor(n * round(sparsity, 12) + 0.5)`` are kept.
    nnz : or how many are kept, counted per group (and in rows, columns or blocks for those patterns).
    threshold : or what a score must reach to be kept.
    pattern : ``"element"``, ``"row"``, ``"col"``, ``"block:RxC"`` (a unit's score is the float64 sum of its elements'),
        or ``"N:M"``: keep N of every M consecutive elements of the last axis, M <= 32; then no ``sparsity`` is needed.
    group : what competes: ``"tensor"``, ``"row"`` or ``"global"`` (all tensors of the mapping together).
    min_density : for ``"global"``: this share of every tensor is kept first, inside the same total.
    prior : only positions that it keeps may be kept (rows, columns, blocks: if it keeps them whole).
    nan : ``"raise"``, ``"prune"`` (NaN ranks below all numbers) or ``"keep"`` (above). The sum of a unit that holds
        infinities of both signs is NaN.

    Returns
    -------
    A :class:`Mask`, or a dict of them for a mapping.

    Raises
    ------
    TypeError
        A dtype or kind that is not supported.
    ValueError
        A NaN score (with its tensor and flat index) or sum, a size that the pattern does not divide, more to keep than
        there is or than ``prior`` leaves, contradicting counts.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> gs.topk_mask(np.array([[3.0, 1.0, 2.0, 2.0]]), sparsity=0.5).to_dense().tolist()
    [[True, False, True, False]]
    >>> gs.topk_mask(np.array([[3.0, 1.0, 2.0, 4.0]]), pattern="1:2").indices().tolist()
    [0, 3]
    """
    tensors = named(scores, "topk_mask", "scores")
    views = [host(s, "topk_mask", "scores") for s in tensors.values()]
    masks = select(
        Inputs("", list(tensors), views, [None] * len(views), 0),
        [v.shape for v in views],
        [],
        "topk_mask",
        sparsity=sparsity,
        nnz=nnz,
        threshold=threshold,
        pattern=pattern,
        group=group,
        min_density=min_density,
        priors=partner(prior, tensors, scores, "topk_mask", "prior"),
        nan=nan,
    )
    return masks if isinstance(scores, Mapping) else masks[""]
