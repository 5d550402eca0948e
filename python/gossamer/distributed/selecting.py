# SPDX-License-Identifier: Apache-2.0
"""``topk_mask`` and ``prune`` over all ranks: the ranks agree on how many each of them keeps, and then select alone.

What one process would keep of a rank's tensors is the best so many of them, in the same order. So the number is all
that a rank must know of the others. It comes from the threshold, which is found by sums of histograms
(:mod:`gossamer.threshold`); of scores equal to it, the lower ranks' come first.

A merged :class:`gossamer.Selection` would give the same, but its pickle holds one score in 32 twice; a look here sends
65,536 counts, however many scores there are, and two looks settle float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, host, named, of, partner
from gossamer.distributed.competing import Competitors
from gossamer.distributed.ranks import Ranks, digest
from gossamer.masks import Mask
from gossamer.pruning import outputs, prune_into
from gossamer.scoring import Inputs, Method, gather_inputs
from gossamer.selection import select
from gossamer.stats import Stats
from gossamer.threshold import Threshold
from gossamer.units import window_sides

_BINS = 16  # of a look's histogram, as a power of two: 512 KiB travel

Select = Callable[[Inputs, dict[str, Any]], dict[str, Mask]]


def topk_mask(
    scores: Array | Mapping[str, Array],
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    pattern: str = "element",
    min_density: float = 0.0,
    prior: Mask | Mapping[str, Mask] | None = None,
    nan: str = "raise",
    process_group: Any = None,
) -> Any:
    """Keeps exactly the highest scores of all ranks together.

    The masks are those that :func:`gossamer.topk_mask` with ``group="global"`` would give in one process for the
    tensors of rank 0, then those of rank 1, and so on: exactly as many are kept in all, and ties go to the lower rank
    first. So a tensor whose rows are cut over the ranks in order is masked as if it were whole (but columns and blocks
    must not be cut).

    Every rank of the group must call it, with the same arguments but for ``scores`` and ``prior``. Scores stay where
    they are: 512 KiB of counts are summed over the ranks in each look (2 looks for scores of at most 32 bits, up to 4
    for float64 and for rows, columns and blocks), and some 100 bytes a rank are gathered.

    Parameters
    ----------
    scores : this rank's, as in :func:`gossamer.topk_mask`; a mapping may be empty. Ranks may have other names, shapes
        and dtypes.
    sparsity, nnz : the share of zeros among all elements of all ranks, or how many are kept in all.
    pattern, min_density, nan : as in :func:`gossamer.topk_mask`. ``"N:M"`` is a rule within rows: nothing competes.
    prior : this rank's.
    process_group : of ``torch.distributed``, with a backend for CPU tensors; None is the default group.

    Returns
    -------
    This rank's :class:`Mask`, or a dict of them for a mapping.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, MemoryError
        As :func:`gossamer.topk_mask`, on every rank, whichever is at fault: the message ends with ``(on rank N)``. So
        are arguments that differ. The group can be used again.
    RuntimeError
        No process group; a rank that is lost, or takes longer than the group's timeout: then the group is of no use
        any more.

    Examples
    --------
    >>> import tempfile, numpy as np, gossamer.distributed as gd, torch.distributed as dist
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    ...     mask = gd.topk_mask({"w": np.array([3.0, 1.0, 2.0, 2.0])}, sparsity=0.5)
    ...     dist.destroy_process_group()
    >>> mask["w"].to_dense().tolist()
    [True, False, True, False]
    """
    ranks = Ranks(process_group, "topk_mask")
    rule = {"sparsity": sparsity, "nnz": nnz, "pattern": pattern, "min_density": min_density, "nan": nan}

    def start() -> tuple[Inputs, dict[str, Any], Select]:
        tensors = named(scores, "topk_mask", "scores")
        views = [host(s, "topk_mask", "scores") for s in tensors.values()]
        inputs = Inputs("", list(tensors), views, [None] * len(views), 0)
        priors = partner(prior, tensors, scores, "topk_mask", "prior")
        shapes = [view.shape for view in views]
        return inputs, priors, lambda inputs, rule: select(inputs, shapes, [], "topk_mask", **rule)

    masks = _together(ranks, "topk_mask", rule, start)
    return masks if isinstance(scores, Mapping) else masks[""]


def prune(
    weights: Array | Mapping[str, Array],
    grads: Array | Mapping[str, Array] | None = None,
    *,
    method: Method = "magnitude",
    sparsity: float | None = None,
    nnz: int | None = None,
    pattern: str = "element",
    stats: Stats | Mapping[str, Stats] | None = None,
    seed: int | None = None,
    min_density: float = 0.0,
    prior: Mask | Mapping[str, Mask] | None = None,
    nan: str = "raise",
    out: Array | Mapping[str, Array] | None = None,
    process_group: Any = None,
) -> tuple[Any, Any]:
    """Prunes the tensors of all ranks as one set.

    What :func:`gossamer.prune` with ``group="global"`` would give in one process; see :func:`topk_mask` for the order
    of ranks, for what travels and for errors. Element-wise scores are never held in memory, but with ``min_density``,
    ``prior`` or ``nan`` a block of them is; rows, columns and blocks take the scores of one tensor, and ria, lamp and
    fpgm those of all tensors of the rank.

    Parameters
    ----------
    weights, grads, stats, prior, out : this rank's, as in :func:`gossamer.prune`. ``method="snip"`` needs a sum over
        all ranks first and is refused; taylor orders alike. All methods compete globally, wanda and its like too.
    method, sparsity, nnz, pattern, seed, min_density, nan : the same on all ranks. A callable scores on each rank.
    process_group : of ``torch.distributed``, with a backend for CPU tensors; None is the default group.

    Returns
    -------
    ``(weights, mask)`` of this rank; a mapping gives two dicts.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, MemoryError, RuntimeError
        As :func:`topk_mask`. ``weights`` are unchanged then, and ``out`` too, unless ``out`` itself is at fault on
        another rank.

    Examples
    --------
    >>> import tempfile, numpy as np, gossamer.distributed as gd, torch.distributed as dist
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    ...     w, mask = gd.prune(np.array([[0.1, -3.0], [2.0, 0.2]]), sparsity=0.5)
    ...     dist.destroy_process_group()
    >>> w.tolist(), mask.nnz
    ([[0.0, -3.0], [2.0, 0.0]], 2)
    """
    ranks = Ranks(process_group, "prune")
    rule = {"sparsity": sparsity, "nnz": nnz, "pattern": pattern, "min_density": min_density, "nan": nan}
    name = f"the callable {getattr(method, '__qualname__', '')}" if callable(method) else method
    results: dict[str, Any] = {}

    def start() -> tuple[Inputs, dict[str, Any], Select]:
        if method == "snip":
            raise NotImplementedError("prune: snip needs the sum over all ranks first; taylor has the same order")
        inputs = gather_inputs(weights, grads, method, stats, seed, "prune")
        targets = outputs(weights, out, "prune")
        for tensor, target in targets.items():  # before any rank writes
            wanted, found = target.weights.dtype, target.out.dtype
            if found != wanted or not target.out.flags.writeable:
                what = f"{found}" if target.out.flags.writeable else f"read-only {found}"
                raise TypeError(f"prune: out must be writable {wanted}, got {what}{of(tensor)}")
        results.update((tensor, target.result) for tensor, target in targets.items())
        priors = partner(prior, named(weights, "prune", "weights"), weights, "prune", "prior")
        scored = callable(method)
        return inputs, priors, lambda inputs, rule: prune_into(inputs, targets, "prune", scored=scored, **rule)

    masks = _together(ranks, "prune", {**rule, "method": name, "seed": seed}, start)
    return (results, masks) if isinstance(weights, Mapping) else (results[""], masks[""])


def _together(
    ranks: Ranks,
    function: str,
    arguments: dict[str, Any],
    start: Callable[[], tuple[Inputs, dict[str, Any], Select]],
) -> dict[str, Mask]:
    """The masks of this rank. ``start`` checks this rank's tensors: -> inputs, priors, and what selects at the end."""
    rule = {name: arguments[name] for name in ("pattern", "min_density", "nan")} | {
        "threshold": None,
        "group": "global",
    }
    same = {"function": function, "version of gossamer": _core.info()["version"], **arguments}
    begun: list[Any] = []

    def begin() -> list[int]:
        _check_rule(function, arguments)
        inputs, priors, finish = start()
        counted = Competitors(inputs, priors, rule, function)
        begun.extend((inputs, priors, finish, counted))
        return [digest(same), counted.wide, counted.elements, counted.units, counted.floor, sum(counted.allowed_counts)]

    rows = ranks.gather(begin, 6)
    ranks.check_same(same, rows[:, 0])
    inputs, priors, finish, counted = begun
    masks: dict[str, Mask] = {}

    def end(count: dict[str, Any]) -> list[int]:
        masks.update(finish(inputs, rule | count | {"priors": priors}))
        return [sum(mask.nnz for mask in masks.values())]

    if window_sides(arguments["pattern"]):  # nothing competes
        kept = ranks.gather(lambda: end({"sparsity": arguments["sparsity"], "nnz": None}), 1).sum()
        if arguments["nnz"] not in (None, kept):
            wanted = f"{kept} with pattern {arguments['pattern']!r}"
            raise ValueError(f"{function}: nnz must be {wanted}, got {arguments['nnz']}")
        return masks
    share = _share(ranks, function, arguments, rows, counted, lambda: select(
        inputs, [w.shape for w in inputs.weights], [], function, **rule, sparsity=None, nnz=0, priors=priors
    ))  # fmt: skip
    ranks.gather(lambda: end({"sparsity": None, "nnz": share}), 1)
    return masks


def _check_rule(function: str, arguments: dict[str, Any]) -> None:
    """Raises what is wrong with the arguments themselves, as the core does for no tensors."""
    given = {"sparsity": arguments["sparsity"], "nnz": arguments["nnz"]}
    if given["nnz"] is not None and given["sparsity"] is None:  # 0 of nothing is right, more would be too many
        nnz = given["nnz"]
        if not isinstance(nnz, (int, np.integer)) or isinstance(nnz, bool):
            raise TypeError(f"{function}: nnz must be an int, got {nnz!r}")
        if not 0 <= nnz < 1 << 62:
            raise ValueError(f"{function}: nnz must be at least 0 and at most the number there is, got {nnz}")
        given["nnz"] = 0
    nothing = Inputs("", [], [], [], 0)
    rule = {name: arguments[name] for name in ("pattern", "min_density", "nan")}
    select(nothing, [], [], function, **given, **rule, threshold=None, group="global", priors={})


def _share(
    ranks: Ranks,
    function: str,
    arguments: dict[str, Any],
    rows: Host,
    counted: Competitors,
    refuse_nan: Callable[[], Any],
) -> int:
    """How many units this rank keeps."""
    _, wide, elements, units, floors, allowed = rows.T
    total = int(units.sum())
    kept = int(_core.kept_count(total, arguments["sparsity"])) if arguments["nnz"] is None else int(arguments["nnz"])
    if kept > total:
        raise ValueError(f"{function}: nnz must be in [0, {total}], got {kept}")
    if kept > allowed.sum():
        raise ValueError(f"{function}: prior must leave at least the {kept} to keep, got {allowed.sum()}")
    free = kept - int(floors.sum())
    if free < 0:
        given, needed = arguments["min_density"], floors.sum()
        raise ValueError(
            f"{function}: min_density must fit into the total count {kept}, got {given}, which needs {needed}"
        )
    before = int(elements[: ranks.rank].sum())
    nans = ranks.gather(lambda: [counted.score(before)], 1)[:, 0]
    numbers = int(allowed.sum() - floors.sum() - nans.sum())
    above_nan = free - min(int(nans.sum()), free) if arguments["nan"] == "keep" else min(free, numbers)
    search = Threshold(above_nan, wide=bool(wide.any()), bins=_BINS, function=function)
    mine = search.tally

    def look() -> Host:
        try:
            for method, w, aux, index in counted.parts():
                search.add(method, w, counted.seed, index, aux)
        except ValueError:
            if arguments["nan"] == "raise":
                refuse_nan()  # names tensor and index
            raise
        return search.tally

    while not search.found:
        summed = ranks.total(look, search.tally.size)
        mine, search.tally = search.tally, summed
        search.end()
    above, equal = search.share(mine)
    ties = ranks.gather(lambda: [equal], 1)[:, 0]
    return (
        int(rows[ranks.rank, 4])
        + above
        + _part(search.ties, ties, ranks.rank)
        + _part(free - above_nan, nans, ranks.rank)
    )


def _part(count: int, there: Host, rank: int) -> int:
    """Of the first ``count``, how many are this rank's, where each rank has that many."""
    return min(max(count - int(there[:rank].sum()), 0), int(there[rank]))


__all__ = ["prune", "topk_mask"]
