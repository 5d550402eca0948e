# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning beside any training loop: a Sparsifier says at each step which weights are still kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from gossamer._arrays import of, require_number
from gossamer.masks import Mask
from gossamer.pruning import prune
from gossamer.regrowth import Regrowth, difference, exchanged
from gossamer.schedules import Constant, OneShot, Schedule
from gossamer.scoring import METHODS, OTHER_GRADS, needs_grads
from gossamer.selection import topk_mask

Array: TypeAlias = Any
Method: TypeAlias = str | Callable[[Array, Array, Any], Array]
Masks: TypeAlias = Any  # Mask | dict[str, Mask], as the params are; a union would have every caller narrow it


@dataclass(frozen=True)
class SparsifierState:
    """Where a Sparsifier stands: nothing but this needs saving to go on later.

    ``mask`` is a Mask for one array, a dict of them for a mapping; ``updated`` the step of the last scheduled update
    that was carried out, -1 before the first; ``sparsity`` the target (or targets by name) of that update.
    """

    mask: Masks
    updated: int = -1
    sparsity: float | dict[str, float] = 0.0


@dataclass(frozen=True)
class SparsifierEvent:
    """What a step changed. ``dropped`` and ``grown`` hold Masks (set bits = the weights concerned) of the tensors that
    changed, by name; empty where nothing did. For one array the name is ``""``. ``updated`` tells whether the schedule
    asked for an update at all. A weight that one update drops and grows again is in neither: nothing happened to it.

    A Mask serves every use: ``.nnz`` to count, ``.indices()`` to reset optimizer state, ``~`` and ``apply_mask``.
    """

    updated: bool = False
    dropped: dict[str, Mask] = field(default_factory=dict)
    grown: dict[str, Mask] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether any mask changed."""
        return bool(self.dropped or self.grown)


@dataclass(frozen=True)
class Sparsifier:
    """Prunes by ``method`` to ``sparsity`` as ``schedule`` goes; what is pruned stays so, unless ``regrow`` is given.

    ``sparsity`` is the final share of zeros, one number or one per tensor (``{name: share}``, e.g. from ``allocate``;
    not with group ``"global"``); ``initial`` where the schedule starts. ``method``, ``pattern``, ``group``, ``nan``
    as in ``prune``; ``seed`` for method ``"random"``. ``"N:M"`` patterns have one sparsity, so they take only OneShot
    and Constant.

    ``schedule`` defaults to ``OneShot()``. A plain function ``step -> sparsity`` is taken at its word: its values, in
    [0, 1] and never falling, are the sparsity itself (``sparsity`` and ``initial`` play no part), and there is an
    update whenever the value changes. Pickling such a Sparsifier is the function's matter.

    ``regrow``: ``SET(...)`` or ``RigL(alpha, end)``. The first update only prunes (from the dense network to the
    sparsity of that step). Each later one prunes to its sparsity, then exchanges weights at that number: in each tensor
    (with group ``"row"`` in each row; with ``"global"`` each tensor keeps the number that the global selection gave it)
    the share of the kept that ``regrow`` says, rounded down, is dropped, those that ``method`` scores lowest, and as
    many are grown among all that are then pruned, those just dropped included. The papers drop by ``"magnitude"``.
    Use a schedule with many updates, such as ``Constant(every=100)``. A grown weight is to start at 0, which it does
    where the mask before was applied, and its optimizer state at 0 too (``event.grown``, ``event.dropped``); pattern
    ``"element"`` only.

        sparsifier = Sparsifier("taylor", 0.95, schedule=Cubic(start=0, end=2000, every=100))
        state = sparsifier.init(weights)
        for step in ...:
            state, event = sparsifier.step(state, weights, grads, step)
            apply_mask(weights, state.mask, out=weights)

    A Sparsifier is immutable, and ``step`` is a function of its arguments alone. Raises ValueError and TypeError naming
    the argument; NotImplementedError for ``regrow`` with another pattern.
    """

    method: Method
    sparsity: float | Mapping[str, float]
    pattern: str = field(default="element", kw_only=True)
    group: str | None = field(default=None, kw_only=True)
    schedule: Schedule | Callable[[int], float] = field(default=OneShot(), kw_only=True)
    regrow: Regrowth | None = field(default=None, kw_only=True)
    initial: float = field(default=0.0, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    nan: str = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.method, str) or callable(self.method)):
            raise TypeError(f"Sparsifier: method must be a name or a callable, got {type(self.method).__name__}")
        if isinstance(self.schedule, type) or not callable(self.schedule):
            raise TypeError(
                f"Sparsifier: schedule must be a schedule such as Cubic(...) or a function, got {self.schedule!r}"
            )
        if self.regrow is not None and (isinstance(self.regrow, type) or not isinstance(self.regrow, Regrowth)):
            raise TypeError(f"Sparsifier: regrow must be None, SET(...) or RigL(...), got {self.regrow!r}")
        if self.regrow is not None and self.pattern != "element":
            raise NotImplementedError(
                f"Sparsifier: regrow is there for pattern 'element' only, got pattern {self.pattern!r}"
            )
        if self.regrow is not None and self.regrow.needs_grads and self.method in OTHER_GRADS:
            raise ValueError(
                f"Sparsifier: method must score by gradients of the loss, or none, for regrow {self.regrow!r}, "
                f"got {self.method!r}"
            )
        if not 0 <= self.initial <= 1:
            raise ValueError(f"Sparsifier: initial must be in [0, 1], got {self.initial}")
        targets = dict(self.sparsity) if isinstance(self.sparsity, Mapping) else {"": self.sparsity}
        for name, target in targets.items():
            if isinstance(target, bool) or not isinstance(target, int | float | np.floating):
                raise TypeError(f"Sparsifier: sparsity must be a number, got {target!r}{of(name)}")
            if not self.initial <= target <= 1:
                bounds = f"[{self.initial:g}, 1] (initial to 1)" if self.initial else "[0, 1]"
                raise ValueError(f"Sparsifier: sparsity must be in {bounds}, got {target}{of(name)}")
        if isinstance(self.sparsity, Mapping) and self.group == "global":
            raise ValueError('Sparsifier: sparsity must be one number for group "global", got a mapping')
        if isinstance(self.sparsity, Mapping) and not isinstance(self.schedule, Schedule):
            raise ValueError("Sparsifier: sparsity must be one number where schedule is a function, got a mapping")
        if re.fullmatch(r"\d+:\d+", self.pattern) and not isinstance(self.schedule, OneShot | Constant):
            raise ValueError(
                f"Sparsifier: schedule must be OneShot or Constant for pattern {self.pattern!r}, got {self.schedule!r}"
            )

    def init(self, params: Array) -> SparsifierState:
        """The state before the first step: all is kept. ``params`` is one array or a mapping of what may be pruned."""
        if isinstance(params, Mapping):
            return SparsifierState({name: _full(array) for name, array in params.items()})
        return SparsifierState(_full(params))

    def step(
        self, state: SparsifierState, params: Array, grads: Array | None, step: int, *, stats: Any = None
    ) -> tuple[SparsifierState, SparsifierEvent]:
        """The state at ``step`` and what changed; ``params`` themselves are not touched.

        Does nothing (and costs nothing) unless an update was scheduled after ``state.updated`` and at or before
        ``step``: steps may be skipped, and asking twice changes nothing. ``grads`` (and ``stats``) are needed only
        where the method or ``regrow`` needs them. ValueError if ``params`` is not what ``init`` saw.
        """
        due = self.due(state, step)
        if due is None:
            return state, SparsifierEvent()
        self._check_params(state, params)
        if isinstance(self.sparsity, Mapping):
            targets: Any = {name: self._target(state, step, goal) for name, goal in self.sparsity.items()}
            masks: Masks = {
                name: self._mask(params[name], _at(grads, name), targets[name], mask, _at(stats, name))
                for name, mask in _items(state.mask).items()
            }
        else:
            targets = self._target(state, step, self.sparsity)
            masks = self._mask(params, grads, targets, state.mask, stats)
        if self.regrow is not None and state.updated >= 0:
            found = self._exchange(self.regrow, _items(params), grads, _items(masks), stats, due)
            masks = found if isinstance(masks, Mapping) else found[""]
        before, after = _items(state.mask), _items(masks)
        event = SparsifierEvent(True, dropped=difference(before, after), grown=difference(after, before))
        return SparsifierState(masks, due, targets), event

    def due(self, state: SparsifierState, step: int) -> int | None:
        """The step of the update that ``step`` would carry out; None where there is nothing to do."""
        if isinstance(self.schedule, Schedule):
            update = self.schedule.last_update(step)
            return None if update is None or update <= state.updated else update
        return None if step <= state.updated or self._value(step) == state.sparsity else step

    @property
    def needs_grads(self) -> bool:
        """Whether an update reads gradients: those of the method, or of regrowth. A callable method may."""
        return needs_grads(self.method) or (self.regrow is not None and self.regrow.needs_grads)

    def _target(self, state: SparsifierState, step: int, final: float) -> float:
        if isinstance(self.schedule, Schedule):
            return self.schedule(step, final, self.initial)
        value = self._value(step)
        if isinstance(state.sparsity, float) and value < state.sparsity:
            raise ValueError(
                f"Sparsifier.step: schedule must not fall, got {value} at step {step} after {state.sparsity}"
            )
        return value

    def _value(self, step: int) -> float:
        """What a schedule that is a plain function says."""
        assert not isinstance(self.schedule, Schedule)
        value = require_number(self.schedule(step), "Sparsifier.step", "the value of schedule")
        if not 0 <= value <= 1:
            raise ValueError(f"Sparsifier.step: the value of schedule must be in [0, 1], got {value} at step {step}")
        return value

    def _exchange(
        self, regrow: Regrowth, params: dict[str, Array], grads: Any, masks: dict[str, Mask], stats: Any, step: int
    ) -> dict[str, Mask]:
        """The masks after the drop and the growth of the update at ``step``; each group keeps its number."""
        if regrow.needs_grads and grads is None:
            raise ValueError(f"Sparsifier.step: grads must be given for regrow {regrow!r}, got None")
        group = "row" if self._competes_by_row else "tensor"
        share = require_number(regrow.share(step), "Sparsifier.step", "the share of regrow")
        kept = {name: mask.nnz // _rows(mask) if group == "row" else mask.nnz for name, mask in masks.items()}
        count = {name: exchanged(share, number) for name, number in kept.items()}
        if not any(count.values()):
            return masks
        growth = regrow.growth(params, None if grads is None else {name: _at(grads, name) for name in params}, step)
        result = dict(masks)
        for name in (name for name in masks if count[name]):
            stay = prune(
                params[name],
                _at(grads, name),
                method=self.method,
                nnz=kept[name] - count[name],
                group=group,
                stats=_at(stats, name),
                seed=self.seed,
                prior=masks[name],
                nan=self.nan,
            )[1]
            result[name] = stay | topk_mask(growth[name], nnz=count[name], group=group, prior=~stay, nan=self.nan)
        return result

    @property
    def _competes_by_row(self) -> bool:
        if self.group is not None:
            return self.group == "row"
        return isinstance(self.method, str) and METHODS.get(self.method, ("", ""))[1] == "row"

    def _mask(self, params: Array, grads: Array | None, sparsity: float, prior: Masks, stats: Any) -> Any:
        return prune(
            params,
            grads,
            method=self.method,
            sparsity=sparsity,
            pattern=self.pattern,
            group=self.group,
            stats=stats,
            seed=self.seed,
            prior=prior,
            nan=self.nan,
        )[1]

    def _check_params(self, state: SparsifierState, params: Array) -> None:
        arrays = params if isinstance(params, Mapping) else {"": params}
        expected = {name: tuple(mask.shape) for name, mask in _items(state.mask).items()}
        got = {name: tuple(array.shape) for name, array in arrays.items()}
        if got != expected:
            raise ValueError(f"Sparsifier.step: params must have the names and shapes init saw, {expected}, got {got}")
        if isinstance(self.sparsity, Mapping) and set(self.sparsity) != set(expected):
            raise ValueError(
                f"Sparsifier.step: sparsity must name the tensors {sorted(expected)}, got {sorted(self.sparsity)}"
            )


def _items(params: Any) -> dict[str, Any]:
    return dict(params) if isinstance(params, Mapping) else {"": params}


def _rows(mask: Mask) -> int:
    return max(1, mask.shape[0]) if len(mask.shape) > 1 else 1


def _at(values: Any, name: str) -> Any:
    return None if values is None else values[name] if isinstance(values, Mapping) else values


def _full(array: Array) -> Mask:
    return Mask.from_dense(np.ones(tuple(array.shape), bool))
