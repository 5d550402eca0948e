# SPDX-License-Identifier: Apache-2.0
"""``topk_mask`` and ``prune`` over all ranks: the ranks agree on how many each of them keeps, and then select alone.

What one process would keep of a rank's tensors is the best so many of them, in the same order. So the number is all
that a rank must know of the others. It comes from the threshold, which is found by sums of histograms
(:mod:`gossamer.threshold`); of scores equal to it, the lower ranks' come first.

A merged :class:`gossamer.Selection` would give the same, but its pickle holds one score in 32 twice; a look here sends
65,536 counts, however many scores there are, and two looks settle float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gossamer import _core
from gossamer._arrays import Array, Host, host, named, of, partner
from gossamer.distributed.competing import Competitors
from gossamer.distributed.ranks import Ranks, digest
from gossamer.masks import Mask
from gossamer.pruning import Job, outputs, prune_into
from gossamer.scoring import Inputs, Method, gather_inputs
from gossamer.selection import _count, select
from gossamer.stats import Stats
from gossamer.threshold import Threshold
from gossamer.units import window_sides

_BINS = 16  # of a look's histogram, as a power of two: 512 KiB travel

_SAMPLED = 1 << 20  # where so many compete, a sample narrows the first look's window: 16.7 M take 62 ms, not 311


@dataclass(frozen=True, slots=True)
class Task:
    """What a rank has to do: its tensors, and what selects with a rule when the count is known."""

    inputs: Inputs
    priors: dict[str, Any]
    select: Callable[[dict[str, Any]], dict[str, Mask]]


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

    def start() -> Task:
        tensors = named(scores, "topk_mask", "scores")
        views = [host(s, "topk_mask", "scores") for s in tensors.values()]
        inputs = Inputs("", list(tensors), views, [None] * len(views), 0)
        priors = partner(prior, tensors, scores, "topk_mask", "prior")
        shapes = [view.shape for view in views]
        return Task(inputs, priors, lambda rule: select(inputs, shapes, [], "topk_mask", **rule))

    masks = _Call(ranks, "topk_mask", rule).run(start)
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
    weights, grads, stats, prior, out : this rank's, as in :func:`gossamer.prune` (``out`` on all ranks or on none).
        ``method="snip"`` needs a sum over all ranks first and is refused; taylor orders alike. All methods compete
        globally, wanda and its like too.
    method, sparsity, nnz, pattern, seed, min_density, nan : the same on all ranks. A callable scores on each rank.
    process_group : of ``torch.distributed``, with a backend for CPU tensors; None is the default group.

    Returns
    -------
    ``(weights, mask)`` of this rank; a mapping gives two dicts.

    Raises
    ------
    TypeError, ValueError, NotImplementedError, MemoryError, RuntimeError
        As :func:`topk_mask`. ``weights`` are unchanged then, and ``out`` too (but where writing fails: outputs that
        overlap).

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
    begun: dict[str, Job] = {}

    def start() -> Task:
        if method == "snip":
            raise NotImplementedError("prune: snip needs the sum over all ranks first; taylor has the same order")
        inputs = gather_inputs(weights, grads, method, stats, seed, "prune")
        jobs = outputs(weights, out, "prune")
        for tensor, job in jobs.items():  # before any rank writes
            wanted, to = job.weights.dtype, job.out.view
            if to.dtype != wanted or not to.flags.writeable:
                what = f"{to.dtype}" if to.flags.writeable else f"read-only {to.dtype}"
                raise TypeError(f"prune: out must be writable {wanted}, got {what}{of(tensor)}")
        begun.update(jobs)
        priors = partner(prior, named(weights, "prune", "weights"), weights, "prune", "prior")
        if out is None:
            scored = callable(method)
            return Task(inputs, priors, lambda rule: prune_into(inputs, jobs, "prune", scored=scored, **rule))
        shapes = [job.weights.shape for job in jobs.values()]
        return Task(inputs, priors, lambda rule: select(inputs, shapes, [], "prune", **rule))

    masks = _Call(ranks, "prune", {**rule, "method": name, "seed": seed, "whether out is given": out is not None}).run(
        start
    )

    def write() -> list[int]:
        jobs = begun.values()
        outs = [job.out.view for job in jobs]
        _core.apply_mask([job.weights for job in jobs], [masks[name].packed for name in begun], outs)
        return [0]

    if out is not None:  # only now: whatever fails on a rank, it leaves out as it was on all
        ranks.gather(write, 1)
    results = {name: job.out.result() for name, job in begun.items()}
    return (results, masks) if isinstance(weights, Mapping) else (results[""], masks[""])


class _Call:
    """One call on one rank. ``arguments`` are those that must be the same on all."""

    def __init__(self, ranks: Ranks, function: str, arguments: dict[str, Any]) -> None:
        self._ranks, self._function, self._arguments = ranks, function, arguments
        own = {name: arguments[name] for name in ("pattern", "min_density", "nan")}
        self._rule = own | {"threshold": None, "group": "global"}

    def run(self, start: Callable[[], Task]) -> dict[str, Mask]:
        """The masks of this rank. ``start`` checks its tensors."""
        same = {"function": self._function, "version of gossamer": _core.info()["version"], **self._arguments}
        begun: list[tuple[Task, Competitors]] = []

        def begin() -> list[int]:
            self._check_rule()
            task = start()
            counted = Competitors(task.inputs, task.priors, self._rule, self._function)
            begun.append((task, counted))
            allowed = sum(counted.allowed_counts)
            return [digest(same), counted.wide, counted.elements, counted.units, counted.floor, allowed]

        rows = self._ranks.gather(begin, 6)
        self._ranks.check_same(same, rows[:, 0])
        task, counted = begun[0]
        masks: dict[str, Mask] = {}

        def end(sparsity: float | None, nnz: int | None) -> list[int]:
            masks.update(task.select(self._rule | {"sparsity": sparsity, "nnz": nnz, "priors": task.priors}))
            return [sum(mask.nnz for mask in masks.values())]

        if window_sides(self._arguments["pattern"]):  # nothing competes
            self._check_windows(int(self._ranks.gather(lambda: end(self._arguments["sparsity"], None), 1).sum()))
        else:
            share = self._share(rows, task, counted)
            self._ranks.gather(lambda: end(None, share), 1)
        return masks

    def _check_rule(self) -> None:
        """Raises what is wrong with the arguments themselves, as the core does where there are no tensors."""
        sparsity, nnz = self._arguments["sparsity"], _count(self._arguments["nnz"], self._function)
        if sparsity is None and nnz is not None:
            nnz = 0  # more would be too many of nothing
        nothing = Inputs("", [], [], [], 0)
        select(nothing, [], [], self._function, **self._rule, sparsity=sparsity, nnz=nnz, priors={})

    def _check_windows(self, kept: int) -> None:
        nnz, pattern = self._arguments["nnz"], self._arguments["pattern"]
        if nnz not in (None, kept):
            raise ValueError(f"{self._function}: nnz must be {kept} with pattern {pattern!r}, got {nnz}")

    def _share(self, rows: Host, task: Task, counted: Competitors) -> int:
        """How many units this rank keeps."""
        rank = self._ranks.rank
        _, wide, elements, _, floors, allowed = rows.T
        free = self._free(rows)
        nans = self._ranks.gather(lambda: [counted.score(int(elements[:rank].sum()))], 1)[:, 0]
        numbers = int(allowed.sum() - floors.sum() - nans.sum())
        kept = free - min(int(nans.sum()), free) if self._arguments["nan"] == "keep" else min(free, numbers)
        search, above, equal = self._search(kept, numbers, bool(wide.any()), task, counted)
        ties = self._ranks.gather(lambda: [equal], 1)[:, 0]
        return int(floors[rank]) + above + _part(search.ties, ties, rank) + _part(free - kept, nans, rank)

    def _free(self, rows: Host) -> int:
        """How many units of all ranks are kept beside the floors."""
        _, _, _, units, floors, allowed = (int(column) for column in rows.sum(axis=0))
        f, sparsity, nnz = self._function, self._arguments["sparsity"], self._arguments["nnz"]
        kept = int(_core.kept_count(units, sparsity)) if nnz is None else int(nnz)
        if kept > units:
            raise ValueError(f"{f}: nnz must be in [0, {units}], got {kept}")
        if kept > allowed:
            raise ValueError(f"{f}: prior must leave at least the {kept} to keep, got {allowed}")
        if kept < floors:
            given = self._arguments["min_density"]
            raise ValueError(
                f"{f}: min_density must fit into the total count {kept}, got {given}, which needs {floors}"
            )
        return kept - floors

    def _refuse_nan(self, task: Task) -> None:
        """Names tensor and index, if there is one."""
        rule = self._rule | {"sparsity": None, "nnz": 0, "priors": task.priors}
        select(task.inputs, [w.shape for w in task.inputs.weights], [], self._function, **rule)

    def _search(
        self, kept: int, numbers: int, wide: bool, task: Task, counted: Competitors
    ) -> tuple[Threshold, int, int]:
        """The threshold, and how many of this rank's scores are higher and how many equal."""

        def look(search: Threshold, sampled: bool) -> Host:
            try:
                parts = (("", s, None, 0) for s in counted.sample()) if sampled else counted.parts()
                for method, w, aux, index in parts:
                    search.add(method, w, counted.seed, index, aux)
            except ValueError:
                if self._arguments["nan"] == "raise":
                    self._refuse_nan(task)
                raise
            return search.tally

        def total(search: Threshold, sampled: bool) -> Host:
            mine, search.tally = search.tally, self._ranks.total(lambda: look(search, sampled), search.tally.size)
            return mine

        search = Threshold(kept, wide=wide, bins=_BINS, function=self._function)
        mine = search.tally
        if numbers >= _SAMPLED and not search.found:  # the counts of all would take longer than the looks
            total(search, True)
            size = int(search.tally.sum())
            middle, share = kept / numbers * size, kept / numbers
            spread = 8 * math.sqrt(size * share * (1 - share)) + 16 + size / 256
            window = search.between(int(middle - spread), math.ceil(middle + spread))
            search = Threshold(kept, wide=wide, window=window, bins=_BINS, function=self._function)
        while not search.found:
            mine = total(search, False)
            search.end()
        return search, *search.share(mine)


def _part(count: int, there: Host, rank: int) -> int:
    """Of the first ``count``, how many are this rank's, where each rank has that many."""
    return min(max(count - int(there[:rank].sum()), 0), int(there[rank]))
