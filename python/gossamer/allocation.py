# SPDX-License-Identifier: Apache-2.0
"""How one total sparsity is divided among the tensors of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from gossamer._arrays import (
    Array,
    Host,
    host,
    matrix_shape,
    named,
    of,
    partner,
    require_float,
    require_number,
    require_text,
    shape_of,
)
from gossamer.scoring import score
from gossamer.selection import topk_mask
from gossamer.stats import Stats, require_stats

METHODS = ("uniform", "er", "erk", "lamp", "owl")
OUTLIER = 5.0  # OWL's M: an outlier's score is above M times the mean of its tensor
SPREAD = 0.08  # OWL's lambda: the densities span 2 lambda

Shape: TypeAlias = tuple[int, ...]


def allocate(
    params: Array | Mapping[str, Array],
    sparsity: float,
    *,
    method: str = "uniform",
    stats: Stats | Mapping[str, Stats] | None = None,
) -> Any:
    """The sparsity of each tensor, so that over all of them together it is ``sparsity``.

    ========== =============================================================================================
    method     share of a tensor's elements that is kept (its density)
    ========== =============================================================================================
    uniform    ``1 - sparsity`` everywhere
    er         ``eps * (rows + columns) / (rows * columns)`` (Mocanu et al. 2018, arXiv 1707.04780)
    erk        ``eps * sum(shape) / prod(shape)`` (RigL, Evci et al. 2019, arXiv 1911.11134)
    lamp       what the best LAMP scores of all tensors together leave (Lee et al. 2020, arXiv 2010.07611)
    owl        more for tensors with more outliers (Yin et al. 2023, arXiv 2310.05175); needs ``stats``
    ========== =============================================================================================

    er, erk: one ``eps`` for all. A tensor whose density would exceed 1 is dense, and ``eps`` is solved again for the
    others until none does. Both read only shapes. For a matrix the two are the same; of a convolution kernel
    ``[out, in, kh, kw]`` er takes the first two dimensions as rows and columns.

    owl: D is the share of a tensor's Wanda scores ``|W_ij| * ||X_j||_2`` above 5 times their mean. The densities are
    ``(D - min D) / (max D - min D) * 2 lambda + c``, lambda = 0.08, as in the authors' code: they span 2 lambda around
    the target, evenly only where the D are; equal D give the uniform allocation. There all layers have one size, and c
    makes the plain mean of the densities the target; here c is such that the mean *weighted by size* is, so that the
    total is kept for tensors of any sizes. A density that would leave [0, 1] stays at that end, and c is solved again
    for the others.

    Parameters
    ----------
    params : an array of any shape, or a mapping of them; a vector is one row. lamp and owl read the values, as
        :func:`score` does, the others only ``.shape``.
    sparsity : share of all elements that shall be zero, in [0, 1].
    stats : for owl, the :class:`Stats` ``("norm")`` of each tensor's inputs.

    Returns
    -------
    ``{name: sparsity}``, floats in [0, 1], or one float for one array. Shares are exact, not rounded to whole
    weights: what :func:`prune` keeps of each tensor is within half a weight of it. lamp's are whole counts. A tensor
    without elements gets ``sparsity``.

    Raises
    ------
    TypeError, ValueError
        A sparsity outside [0, 1], an unknown method, no or wrong ``stats`` for owl, NaN scores for lamp and owl.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> params = {"wide": np.ones((100, 90)), "small": np.ones((10, 10))}
    >>> {name: round(s, 3) for name, s in gs.allocate(params, 0.9, method="erk").items()}
    {'wide': 0.909, 'small': 0.133}
    """
    tensors = named(params, "allocate", "params")
    total = require_number(sparsity, "allocate", "sparsity")
    if not 0 <= total <= 1:
        raise ValueError(f"allocate: sparsity must be in [0, 1], got {sparsity}")
    if require_text(method, "allocate", "method") not in METHODS:
        raise ValueError(f"allocate: method must be one of {', '.join(METHODS)}, got {method!r}")
    shapes = {name: shape_of(tensor, "allocate", "params", name) for name, tensor in tensors.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if math.prod(shape)}
    for name in sizes if method in ("lamp", "owl") else ():
        require_float(host(tensors[name], "allocate", "params"), "allocate", "params")
    if method == "uniform":
        found = dict.fromkeys(sizes, total)
    elif method in ("er", "erk"):
        ratios = {name: _ratio(shapes[name], kernel=method == "erk") for name in sizes}
        found = _proportional(ratios, sizes, total)
    elif method == "lamp":
        found = _lamp({name: tensors[name] for name in sizes}, total)
    else:
        entries = partner(stats, tensors, params, "allocate", "stats")
        shares = {name: _outlier_share(tensors[name], entries[name], name) for name in sizes}
        found = _centred(shares, sizes, total)
    result = {name: found.get(name, total) for name in tensors}
    return result if isinstance(params, Mapping) else result[""]


def _ratio(shape: Shape, *, kernel: bool) -> float:
    extents = matrix_shape(shape) if len(shape) < 2 else shape if kernel else shape[:2]
    return sum(extents) / math.prod(extents)


def _proportional(ratios: dict[str, float], sizes: dict[str, int], sparsity: float) -> dict[str, float]:
    """Densities ``min(eps * ratio, 1)`` whose mean, weighted by size, is ``1 - sparsity``; returned as sparsities."""
    free, left = dict(ratios), (1.0 - sparsity) * sum(sizes.values())
    while free and left < sum(sizes[name] for name in free):
        eps = left / math.fsum(ratio * sizes[name] for name, ratio in free.items())
        full = [name for name, ratio in free.items() if eps * ratio >= 1.0]
        if not full:
            return {name: 1.0 - eps * free[name] if name in free else 0.0 for name in ratios}
        for name in full:
            left -= sizes[name]
            del free[name]
    return dict.fromkeys(ratios, 0.0)


def _lamp(tensors: dict[str, Array], sparsity: float) -> dict[str, float]:
    scores = score(tensors, method="lamp")
    for name, found in scores.items():
        _check_nan(found, name)
    masks = topk_mask(scores, sparsity=sparsity, group="global")
    return {name: (mask.size - mask.nnz) / mask.size for name, mask in masks.items()}


def _outlier_share(weights: Array, stats: Stats | None, name: str) -> float:
    stats = require_stats(stats, "norm", "allocate", name, method="owl")
    w = host(weights, "allocate", "params")
    columns = matrix_shape(w.shape)[1]
    if stats.values.shape != (columns,):
        raise ValueError(f"allocate: stats must have the shape {(columns,)}, got {stats.values.shape}{of(name)}")
    scores: Host = score(w, method="wanda", stats=stats)
    _check_nan(scores, name)
    with np.errstate(over="ignore"):  # an infinite mean: nothing is above it
        return float(np.count_nonzero(scores > OUTLIER * scores.mean(dtype=np.float64)) / scores.size)


def _centred(shares: dict[str, float], sizes: dict[str, int], sparsity: float) -> dict[str, float]:
    """OWL's densities, clipped to [0, 1], whose mean, weighted by size, is ``1 - sparsity``; returned as sparsities.

    The total is a rising function of the shift c, linear between the shifts at which some density reaches 0 or 1.
    """
    if not shares:
        return {}
    low, high = min(shares.values()), max(shares.values())
    if low == high:
        return dict.fromkeys(shares, sparsity)
    density = {name: (share - low) / (high - low) * 2.0 * SPREAD for name, share in shares.items()}
    goal = (1.0 - sparsity) * sum(sizes.values())

    def kept(shift: float) -> float:
        return math.fsum(sizes[name] * min(max(d + shift, 0.0), 1.0) for name, d in density.items())

    bends = sorted({end - d for d in density.values() for end in (0.0, 1.0)})
    above = next((k for k, bend in enumerate(bends) if kept(bend) >= goal), len(bends) - 1)
    (start, first), (stop, last) = ((bend, kept(bend)) for bend in (bends[max(above - 1, 0)], bends[above]))
    shift = start + (stop - start) * (goal - first) / (last - first) if last > first else stop
    return {name: 1.0 - min(max(d + shift, 0.0), 1.0) for name, d in density.items()}


def _check_nan(scores: Array, name: str) -> None:
    nan = np.isnan(host(scores, "allocate", "params"))
    if nan.any():
        raise ValueError(f"allocate: params must not score NaN, got NaN at {int(nan.argmax())}{of(name)}")
