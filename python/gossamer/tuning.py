# SPDX-License-Identifier: Apache-2.0
"""Find how far a network can be pruned: train, score, prune, validate, accept or reject, update."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, Literal, TypeAlias

import numpy as np

from gossamer.masks import Mask
from gossamer.pruning import apply_mask, prune
from gossamer.scoring import needs_grads

Array: TypeAlias = Any
Masks: TypeAlias = Any  # Mask | dict[str, Mask], as the params are; a union would have every caller narrow it
Metric: TypeAlias = Literal["accuracy", "loss"]
Search: TypeAlias = Literal["bisect", "ladder"]


@dataclass(frozen=True)
class Budget:
    """How much worse than the dense network a pruned one may be on validation data.

    ``metric="accuracy"``: the value may fall by ``max_drop`` at most; ``"loss"``: it may rise by that much. Absolute,
    not relative: 0.005 is half a point of accuracy.
    """

    max_drop: float = 0.005
    metric: Metric = "accuracy"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise ValueError(f"Budget: max_drop must be finite and not negative, got {self.max_drop}")
        if self.metric not in ("accuracy", "loss"):
            raise ValueError(f"Budget: metric must be 'accuracy' or 'loss', got {self.metric!r}")

    def drop(self, baseline: float, value: float) -> float:
        """How much worse ``value`` is than ``baseline``; negative where it is better, NaN where either is."""
        return baseline - value if self.metric == "accuracy" else value - baseline

    def accepts(self, baseline: float, value: float) -> bool:
        """Whether ``value`` is within the budget; never for NaN or infinities."""
        # 0.90 - 0.895 is a little more than 0.005 in binary; a limit that is met must count as met.
        return math.isfinite(value) and self.drop(baseline, value) <= self.max_drop + 1e-12


@dataclass(frozen=True)
class Round:
    """One candidate: target and measured sparsity of the prunable tensors, its validation metric, and the verdict."""

    number: int
    target: float
    sparsity: float
    validation: float
    accepted: bool
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class Result:
    """The last accepted state and how it was found.

    ``params`` are the accepted parameters, pruned and trained; ``mask`` one Mask, or a dict of them for a mapping (of
    the prunable tensors); ``history`` one Round per candidate; ``baseline`` the dense network's validation metric,
    ``validation`` and ``test`` those of ``params``. If nothing was accepted, the dense network is the result.
    """

    params: Any
    mask: Masks
    history: tuple[Round, ...]
    budget: Budget
    baseline: float
    validation: float
    test: float

    @property
    def sparsity(self) -> float:
        """The share of pruned elements among the prunable ones."""
        return _sparsity(self.mask)

    def report(self, directory: str | PathLike[str]) -> None:
        """Write report.json, report.md and the plots into ``directory``, which is made if need be."""
        from gossamer import reporting  # matplotlib is loaded only by those who want plots

        reporting.tune_report(self, directory)


def tune(
    params: Any,
    *,
    train: Callable[[Any, Any], Any],
    evaluate: Callable[[Any, str], float],
    grads: Callable[[Any], Any] | None = None,
    score: str | Callable[..., Any] = "taylor",
    sparsity: float | tuple[float, float] = (0.5, 0.99),
    budget: Budget = Budget(),
    search: Search = "bisect",
    seed: int = 0,
    pattern: str = "element",
    group: str | None = None,
    stats: Callable[[Any], Any] | None = None,
    prunable: Callable[[str, Any], bool] | None = None,
    rounds: int = 8,
    resolution: float = 0.005,
    progress: Callable[[Round], None] | None = None,
) -> Result:
    """The sparsest network within ``sparsity`` = (lowest, highest) whose validation metric stays in the ``budget``.

    ``params`` is one array or a mapping; they are not changed. The callbacks:
      ``train(params, mask) -> params``  may work in place on what it gets (a copy) and return it; what ``mask`` prunes
                                         is zeroed again afterwards, so training need not be masked, though it should
      ``grads(params) -> grads``         mean gradients; only for scores that need them
      ``evaluate(params, split)``        the budget's metric on ``"validation"`` or ``"test"``
      ``stats(params) -> Stats``         for scores that need them (wanda)
      ``progress(round)``                after each round
    ``mask`` and ``stats`` have the form of ``params``; of a mapping only what may be pruned: floating tensors of two or
    more dimensions, or those for which ``prunable(name, array)`` is true.

    First the dense network is trained and validated: that is the baseline. A round then scores and prunes the last
    accepted state to a higher sparsity (what it pruned stays pruned), trains under the mask, validates, and is accepted
    if the budget allows; otherwise the last accepted state, bit for bit, is where the next round starts.
      ``search="bisect"``  tries the lowest sparsity, the highest, then halves the gap between accepted and rejected
                           until it is at most ``resolution``
      ``search="ladder"``  climbs ``rounds`` rungs from lowest to highest, each keeping the same share of the weights
                           that the one before kept, and stops at the first rejection
    Neither takes more than ``rounds`` rounds. ``"test"`` is evaluated once, on the result. ``seed`` is for score
    ``"random"``; for the same callbacks the same arguments give the same result, whatever the number of threads.
    A metric that is NaN or infinite is a rejection, for the baseline a ValueError; TypeError if it is no number.
    Raises ValueError for arguments out of range before anything is trained.
    """
    for name, callback in (("train", train), ("evaluate", evaluate)):
        if not callable(callback):
            raise TypeError(f"tune: {name} must be callable, got {type(callback).__name__}")
    if not isinstance(budget, Budget):
        raise TypeError(f"tune: budget must be a Budget, got {type(budget).__name__}")
    low, high = _check(score, grads, sparsity, search, rounds, resolution)
    names = _prunable_names(params, prunable)
    masks = {name: Mask.from_dense(np.ones(tuple(_items(params)[name].shape), bool)) for name in names}

    def trained(start: Any, masks: dict[str, Mask]) -> Any:
        found = train(copy.deepcopy(start), _like(params, masks))
        _check_params(params, found)
        # A copy again: train may go on using its arrays, and an accepted state must never change.
        return _masked(copy.deepcopy(found), masks)

    def pruned(start: Any, masks: dict[str, Mask], target: float) -> tuple[Any, dict[str, Mask]]:
        new = prune(
            _chosen(start, names),
            None if grads is None else _chosen(grads(start), names),
            method=score,
            sparsity=target,
            pattern=pattern,
            group=group,
            stats=None if stats is None else _chosen(stats(start), names),
            seed=seed,
            prior=masks,
        )[1]
        return _masked(copy.deepcopy(start), new), new

    best = trained(params, masks)
    baseline = validation = _number(evaluate(best, "validation"))
    if not math.isfinite(baseline):
        raise ValueError(f"tune: evaluate must return a finite number for the dense network, got {baseline}")
    history: list[Round] = []
    plan = _bisect(low, high, resolution) if search == "bisect" else _ladder(low, high, rounds)
    accepted: bool | None = None
    while len(history) < rounds and (target := _next(plan, accepted)) is not None:
        started = time.perf_counter()
        start, candidate_masks = pruned(best, masks, target)
        candidate = trained(start, candidate_masks)
        value = _number(evaluate(candidate, "validation"))
        accepted = budget.accepts(baseline, value)
        if accepted:
            best, masks, validation = candidate, candidate_masks, value
        seconds = time.perf_counter() - started
        history.append(Round(len(history) + 1, target, _sparsity(candidate_masks), value, accepted, seconds))
        if progress is not None:
            progress(history[-1])
    test = _number(evaluate(best, "test"))
    return Result(best, _like(params, masks), tuple(history), budget, baseline, validation, test)


def _bisect(low: float, high: float, resolution: float) -> Generator[float, bool, None]:
    """Yields targets and is sent whether each was accepted; so is ``_ladder``."""
    if not (yield low) or low == high or (yield high):
        return
    while high - low > resolution:
        middle = (low + high) / 2
        if (yield middle):
            low = middle
        else:
            high = middle


def _ladder(low: float, high: float, rounds: int) -> Generator[float, bool, None]:
    """Densities in geometric progression: at 90 % and more, equal steps of sparsity would be far too long."""
    rungs = 1 if low == high else rounds
    for rung in range(rungs):
        done = rung / (rungs - 1) if rungs > 1 else 1.0
        inside = 1 - (1 - low) ** (1 - done) * (1 - high) ** done
        if not (yield high if done == 1 else low if done == 0 else inside):
            return


def _next(plan: Generator[float, bool, None], accepted: bool | None) -> float | None:
    try:
        return next(plan) if accepted is None else plan.send(accepted)
    except StopIteration:
        return None


def _check(score: Any, grads: Any, sparsity: Any, search: str, rounds: int, resolution: float) -> tuple[float, float]:
    if search not in ("bisect", "ladder"):
        raise ValueError(f"tune: search must be 'bisect' or 'ladder', got {search!r}")
    bounds = tuple(sparsity) if isinstance(sparsity, Sequence) else (sparsity, sparsity)
    # A string is a sequence, too; its letters are no numbers.
    if len(bounds) != 2 or not all(isinstance(bound, int | float) for bound in bounds):
        raise TypeError(f"tune: sparsity must be a number or a pair of them, got {sparsity!r}")
    if not 0 <= bounds[0] <= bounds[1] < 1:
        raise ValueError(f"tune: sparsity must be (low, high) with 0 <= low <= high < 1, got {sparsity}")
    if rounds < 1:
        raise ValueError(f"tune: rounds must be at least 1, got {rounds}")
    if not resolution > 0:
        raise ValueError(f"tune: resolution must be positive, got {resolution}")
    if grads is None and isinstance(score, str) and needs_grads(score):
        raise ValueError(f"tune: grads must be given for score {score!r}, got None")
    return float(bounds[0]), float(bounds[1])


def _prunable_names(params: Any, prunable: Callable[[str, Any], bool] | None) -> list[str]:
    if not isinstance(params, Mapping):
        return [""]
    choose = prunable if prunable is not None else _is_matrix
    names = [name for name, array in params.items() if choose(name, array)]
    if not names:
        raise ValueError(f"tune: params must hold a tensor that may be pruned, got {sorted(params)}")
    return names


def _is_matrix(name: str, array: Any) -> bool:
    return array.ndim >= 2 and "float" in str(array.dtype)


def _check_params(params: Any, found: Any) -> None:
    """What ``train`` gives back must be what it was given, but for the values."""
    expected = {name: tuple(array.shape) for name, array in _items(params).items()}
    if isinstance(found, Mapping) != isinstance(params, Mapping):
        raise TypeError(f"tune: train must return what it gets, {type(params).__name__}, got {type(found).__name__}")
    shapes = {name: tuple(array.shape) for name, array in _items(found).items()}
    if shapes != expected:
        raise ValueError(f"tune: train must return the names and shapes of params, {expected}, got {shapes}")


def _number(value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"tune: evaluate must return a number, got {value!r}") from None


def _items(params: Any) -> dict[str, Any]:
    return dict(params) if isinstance(params, Mapping) else {"": params}


def _chosen(params: Any, names: list[str]) -> dict[str, Any]:
    return {name: _items(params)[name] for name in names}


def _like(params: Any, masks: dict[str, Mask]) -> Masks:
    return dict(masks) if isinstance(params, Mapping) else masks[""]


def _masked(params: Any, masks: dict[str, Mask]) -> Any:
    """``params``, in place, with what the masks prune set to zero."""
    items = _items(params)
    for name, mask in masks.items():
        apply_mask(items[name], mask, out=items[name])
    return params


def _sparsity(masks: Masks) -> float:
    found = list(masks.values()) if isinstance(masks, dict) else [masks]
    size = sum(math.prod(mask.shape) for mask in found)
    return 1 - sum(mask.nnz for mask in found) / size if size else 0.0
