# SPDX-License-Identifier: Apache-2.0
"""Weights changed by their importance: masked, pruned in one fused pass, adjusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gossamer import _core
from gossamer._arrays import Array, Host, Target, host, named, output, partner, require_number, require_text, same_shape
from gossamer.masks import Mask, packed_bits
from gossamer.scoring import Inputs, Method, default_group, gather_inputs
from gossamer.selection import select
from gossamer.stats import Stats


def apply_mask(
    weights: Array | Mapping[str, Array],
    mask: Mask | Mapping[str, Mask],
    *,
    out: Array | Mapping[str, Array] | None = None,
) -> Any:
    """Weights where the mask keeps them, +0 elsewhere (a pruned NaN becomes 0 too).

    Parameters
    ----------
    weights : float32, float64, float16 or bfloat16 array of any shape, or a mapping of them.
    mask : a :class:`Mask` (or bool array) of the same shape, or a mapping of them.
    out : where to write; may be ``weights`` itself. A fresh result costs page faults, ``out=`` does not.

    Returns
    -------
    The masked weights, or a dict of them for a mapping.

    Raises
    ------
    TypeError, ValueError
        A dtype that is not supported; shapes that differ.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> w = np.array([1.0, -2.0, 3.0])
    >>> gs.apply_mask(w, gs.topk_mask(abs(w), nnz=1)).tolist()
    [0.0, 0.0, 3.0]
    """
    tensors = named(weights, "apply_mask", "weights")
    masks = partner(mask, tensors, weights, "apply_mask", "mask")
    outs = partner(out, tensors, weights, "apply_mask", "out")
    jobs = []
    for name, tensor in tensors.items():
        w = host(tensor, "apply_mask", "weights")
        bits = packed_bits(masks[name], w.shape, "apply_mask", "mask", name)
        jobs.append((w, bits, output(outs[name], tensor, w.shape, w.dtype, "apply_mask")))
    _core.apply_mask([job[0] for job in jobs], [job[1] for job in jobs], [job[2].view for job in jobs])
    results = {name: job[2].result() for name, job in zip(tensors, jobs, strict=True)}
    return results if isinstance(weights, Mapping) else results[""]


def prune(
    weights: Array | Mapping[str, Array],
    grads: Array | Mapping[str, Array] | None = None,
    *,
    method: Method = "magnitude",
    sparsity: float | None = None,
    nnz: int | None = None,
    pattern: str = "element",
    group: str | None = None,
    stats: Stats | Mapping[str, Stats] | None = None,
    seed: int | None = None,
    min_density: float = 0.0,
    prior: Mask | Mapping[str, Mask] | None = None,
    nan: str = "raise",
    out: Array | Mapping[str, Array] | None = None,
) -> tuple[Any, Any]:
    """Scores, selects and masks in one fused pass; the scores of element-wise methods are never held in memory.

    Equals :func:`score`, :func:`topk_mask` and :func:`apply_mask` one after the other, bit for bit (but for taylor2
    with rows, columns or blocks, whose sums are taken before they are squared); see there for the parameters.
    ``group=None`` is the method's own, as the table of :func:`score` has it: ``"row"`` is ``"tensor"`` for
    ``pattern="row"``, and ``"global"`` where ``weights`` is no mapping.

    Returns
    -------
    ``(weights, mask)``: the pruned weights (``out`` where given, which may be ``weights`` itself) and the
    :class:`Mask`; a mapping gives two dicts.

    Raises
    ------
    TypeError, ValueError
        As the three functions; then neither ``weights`` nor ``out`` is changed.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> w, mask = gs.prune(np.array([[0.1, -3.0], [2.0, 0.2]]), sparsity=0.5)
    >>> w.tolist(), mask.nnz
    ([[0.0, -3.0], [2.0, 0.0]], 2)
    """
    inputs = gather_inputs(weights, grads, method, stats, seed, "prune")
    jobs = outputs(weights, out, "prune")
    masks = prune_into(
        inputs,
        jobs,
        "prune",
        scored=callable(method),
        sparsity=sparsity,
        nnz=nnz,
        threshold=None,
        pattern=pattern,
        group=default_group(method, pattern, weights, "prune") if group is None else group,
        min_density=min_density,
        priors=partner(prior, named(weights, "prune", "weights"), weights, "prune", "prior"),
        nan=nan,
    )
    results = {name: job.out.result() for name, job in jobs.items()}
    return (results, masks) if isinstance(weights, Mapping) else (results[""], masks[""])


@dataclass(frozen=True, slots=True)
class Job:
    """Weights of a call, and where the pruned ones go."""

    weights: Host
    out: Target


def outputs(weights: Any, out: Any, function: str) -> dict[str, Job]:
    """The jobs of a params argument."""
    tensors = named(weights, function, "weights")
    views = {name: host(w, function, "weights") for name, w in tensors.items()}
    outs = partner(out, tensors, weights, function, "out")
    return {name: Job(w, output(outs[name], tensors[name], w.shape, w.dtype, function)) for name, w in views.items()}


def prune_into(inputs: Inputs, jobs: dict[str, Job], function: str, *, scored: bool, **rule: Any) -> dict[str, Mask]:
    """Selects and masks; ``scored`` where the inputs are scores of a callable: then only the masking is left."""
    views, outs = [job.weights for job in jobs.values()], [job.out.view for job in jobs.values()]
    masks = select(inputs, [w.shape for w in views], [] if scored else outs, function, **rule)
    if scored:
        _core.apply_mask(views, [mask.packed for mask in masks.values()], outs)
    return masks


def adjust(
    weights: Array | Mapping[str, Array],
    scores: Array | Mapping[str, Array],
    rate: float,
    *,
    rule: str = "sign",
    out: Array | Mapping[str, Array] | None = None,
) -> Any:
    """Moves the weights by their scores instead of pruning them.

    Parameters
    ----------
    weights : float32, float64, float16 or bfloat16 array of any shape, or a mapping of them.
    scores : like ``weights``, without NaN.
    rate : the step; any finite number for ``"sign"``, in [0, 1) for ``"scale"``.
    rule : ``"sign"``: ``w - rate * sign(scores)``; with the signed gradient as scores this is signSGD's step
        (Bernstein et al. 2018, arXiv 1802.04434). ``"scale"``: with c the lower median of the tensor's scores and
        d = max|scores - c|, ``w * (1 + rate * (scores - c) / d)``: efficient parameters up, inefficient down.
    out : where to write; may be ``weights`` itself.

    Returns
    -------
    The adjusted weights, or a dict of them for a mapping.

    Raises
    ------
    TypeError, ValueError
        A dtype that is not supported, shapes that differ, NaN scores, a rate outside its range.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> gs.adjust(np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0]), 0.5, rule="scale").tolist()
    [0.5, 1.0, 1.5]
    """
    tensors = named(weights, "adjust", "weights")
    all_scores = partner(scores, tensors, weights, "adjust", "scores")
    outs = partner(out, tensors, weights, "adjust", "out")
    jobs = []
    for name, tensor in tensors.items():
        w = host(tensor, "adjust", "weights")
        s = host(all_scores[name], "adjust", "scores")
        same_shape(s, w.shape, "adjust", "scores", name)
        jobs.append((w, s, output(outs[name], tensor, w.shape, w.dtype, "adjust")))
    names = list(tensors)
    step = require_number(rate, "adjust", "rate")
    _core.adjust(
        names,
        [j[0] for j in jobs],
        [j[1] for j in jobs],
        step,
        require_text(rule, "adjust", "rule"),
        [j[2].view for j in jobs],
    )
    results = {name: job[2].result() for name, job in zip(tensors, jobs, strict=True)}
    return results if isinstance(weights, Mapping) else results[""]
