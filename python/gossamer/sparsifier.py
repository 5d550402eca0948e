# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning beside any training loop: a Sparsifier says at each step which weights are still kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from gossamer.masks import Mask
from gossamer.pruning import prune
from gossamer.schedules import Constant, OneShot, Schedule

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
    asked for an update at all.

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
    """Prunes by ``method`` to ``sparsity`` as ``schedule`` goes; pruned weights stay pruned.

    ``sparsity`` is the final share of zeros, one number or one per tensor (``{name: share}``, e.g. from ``allocate``;
    not with group ``"global"``); ``initial`` where the schedule starts. ``method``, ``pattern``, ``group``, ``nan``
    as in ``prune``; ``seed`` for method ``"random"``. ``schedule`` defaults to ``OneShot()``.
    ``"N:M"`` patterns have one sparsity, so they take only OneShot and Constant.

        sparsifier = Sparsifier("taylor", 0.95, schedule=Cubic(start=0, end=2000, every=100))
        state = sparsifier.init(weights)
        for step in ...:
            state, event = sparsifier.step(state, weights, grads, step)
            apply_mask(weights, state.mask, out=weights)

    A Sparsifier is immutable, and ``step`` is a function of its arguments. Raises ValueError and TypeError naming the
    argument; NotImplementedError for ``regrow`` (SET, RigL), which is not there yet.
    """

    method: Method
    sparsity: float | Mapping[str, float]
    pattern: str = field(default="element", kw_only=True)
    group: str | None = field(default=None, kw_only=True)
    schedule: Schedule = field(default=OneShot(), kw_only=True)
    regrow: None = field(default=None, kw_only=True)
    initial: float = field(default=0.0, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    nan: str = field(default="raise", kw_only=True)

    def __post_init__(self) -> None:
        if self.regrow is not None:
            raise NotImplementedError(f"Sparsifier: regrow (SET, RigL) is not implemented yet, got {self.regrow!r}")
        if not (isinstance(self.method, str) or callable(self.method)):
            raise TypeError(f"Sparsifier: method must be a name or a callable, got {type(self.method).__name__}")
        if not isinstance(self.schedule, Schedule) or isinstance(self.schedule, type):
            raise TypeError(f"Sparsifier: schedule must be a schedule such as Cubic(...), got {self.schedule!r}")
        if not 0 <= self.initial <= 1:
            raise ValueError(f"Sparsifier: initial must be in [0, 1], got {self.initial}")
        targets = dict(self.sparsity) if isinstance(self.sparsity, Mapping) else {"": self.sparsity}
        for name, target in targets.items():
            if isinstance(target, bool) or not isinstance(target, int | float | np.floating):
                raise TypeError(f"Sparsifier: sparsity must be a number, got {target!r}{_of(name)}")
            if not self.initial <= target <= 1:
                bounds = f"[{self.initial:g}, 1] (initial to 1)" if self.initial else "[0, 1]"
                raise ValueError(f"Sparsifier: sparsity must be in {bounds}, got {target}{_of(name)}")
        if isinstance(self.sparsity, Mapping) and self.group == "global":
            raise ValueError('Sparsifier: sparsity must be one number for group "global", got a mapping')
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
        where the method needs them. ValueError if ``params`` is not what ``init`` saw.
        """
        due = self.schedule.last_update(step)
        if due is None or due <= state.updated:
            return state, SparsifierEvent()
        self._check_params(state, params)
        if isinstance(self.sparsity, Mapping):
            targets: Any = {name: self.schedule(step, goal, self.initial) for name, goal in self.sparsity.items()}
            masks: Masks = {
                name: self._mask(params[name], _at(grads, name), targets[name], mask, _at(stats, name))
                for name, mask in _items(state.mask).items()
            }
        else:
            targets = self.schedule(step, self.sparsity, self.initial)
            masks = self._mask(params, grads, targets, state.mask, stats)
        dropped = {
            name: gone for name, mask in _items(masks).items() if (gone := _items(state.mask)[name] & ~mask).nnz > 0
        }
        return SparsifierState(masks, due, targets), SparsifierEvent(True, dropped, {})

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


def _of(name: str) -> str:
    return f" for {name!r}" if name else ""


def _items(masks: Masks) -> dict[str, Mask]:
    return dict(masks) if isinstance(masks, Mapping) else {"": masks}


def _at(values: Any, name: str) -> Any:
    return None if values is None else values[name] if isinstance(values, Mapping) else values


def _full(array: Array) -> Mask:
    return Mask.from_dense(np.ones(tuple(array.shape), bool))
