# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning beside any training loop: a Sparsifier says at each step which weights are still kept."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from gossamer._arrays import host, of, partner, require_float, require_number, require_text, same_shape, shape_of
from gossamer.masks import Mask
from gossamer.regrowth import Regrowth, difference, exchanged
from gossamer.schedules import Constant, OneShot, Schedule, check_steps
from gossamer.scoring import OTHER_GRADS, Inputs, check_seed, default_group, gather_inputs, method_entry, needs_grads
from gossamer.selection import select

Array: TypeAlias = Any
Method: TypeAlias = str | Callable[[Array, Array, Any], Array]
Masks: TypeAlias = Any  # Mask | dict[str, Mask], as the params are; a union would have every caller narrow it

_STEP = "Sparsifier.step"


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
        if not callable(self.method):
            check_seed(method_entry(self.method, "Sparsifier")[0], self.seed, "Sparsifier")
        require_text(self.pattern, "Sparsifier", "pattern")
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
        if not 0 <= require_number(self.initial, "Sparsifier", "initial") <= 1:
            raise ValueError(f"Sparsifier: initial must be in [0, 1], got {self.initial}")
        if isinstance(self.sparsity, Mapping):
            object.__setattr__(self, "sparsity", dict(self.sparsity))  # the caller's may change
        for name, target in _items(self.sparsity).items():
            if not self.initial <= require_number(target, "Sparsifier", f"sparsity{of(name)}") <= 1:
                bounds = f"[{self.initial:g}, 1] (initial to 1)" if self.initial else "[0, 1]"
                raise ValueError(f"Sparsifier: sparsity must be in {bounds}, got {target}{of(name)}")
            # The core checks pattern, group, nan and what N:M leaves of the sparsity; there are no tensors yet.
            group = "tensor" if self.group is None else self.group
            self._best(Inputs("", [], [], [], 0), {}, "Sparsifier", group=group, sparsity=target)
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
        masks = {name: _full(array, name) for name, array in _items(params).items()}
        return SparsifierState(masks if isinstance(params, Mapping) else masks[""])

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
        tensors, prior, per_tensor = _items(params), _items(state.mask), isinstance(self.sparsity, Mapping)
        group = self.group or default_group(self.method, self.pattern, None if per_tensor else params, _STEP)
        if not isinstance(params, Mapping):
            grads, stats = (None if one is None else {"": one} for one in (grads, stats))
        if isinstance(self.sparsity, Mapping):
            targets: Any = {name: self._target(state, step, goal) for name, goal in self.sparsity.items()}
            masks: dict[str, Mask] = {}
            for name, w in tensors.items():
                masks |= self._select({name: w}, grads, stats, prior, group=group, sparsity=targets[name])
        else:
            targets = self._target(state, step, self.sparsity)
            masks = self._select(tensors, grads, stats, prior, group=group, sparsity=targets)
        if self.regrow is not None and state.updated >= 0:
            masks = self._exchange(self.regrow, tensors, grads, stats, masks, group == "row", due)
        event = SparsifierEvent(True, dropped=difference(prior, masks), grown=difference(masks, prior))
        return SparsifierState(masks if isinstance(params, Mapping) else masks[""], due, targets), event

    def due(self, state: SparsifierState, step: int) -> int | None:
        """The step of the update that ``step`` would carry out; None where there is nothing to do."""
        check_steps(_STEP, step=step)
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
            raise ValueError(f"{_STEP}: schedule must not fall, got {value} at step {step} after {state.sparsity}")
        return value

    def _value(self, step: int) -> float:
        """What a schedule that is a plain function says."""
        assert not isinstance(self.schedule, Schedule)
        value = require_number(self.schedule(step), _STEP, "the value of schedule")
        if not 0 <= value <= 1:
            raise ValueError(f"{_STEP}: the value of schedule must be in [0, 1], got {value} at step {step}")
        return value

    def _exchange(
        self,
        regrow: Regrowth,
        params: dict[str, Any],
        grads: Any,
        stats: Any,
        masks: dict[str, Mask],
        by_row: bool,
        step: int,
    ) -> dict[str, Mask]:
        """The masks after the drop and the growth of the update at ``step``; each group keeps its number."""
        share = require_number(regrow.share(step), _STEP, "the share of regrow")
        kept = {name: mask.nnz // _rows(mask) if by_row else mask.nnz for name, mask in masks.items()}
        count = {name: exchanged(share, number) for name, number in kept.items()}
        if not any(count.values()):
            return masks
        if regrow.needs_grads:
            if grads is None:
                raise ValueError(f"{_STEP}: grads must be given for regrow {regrow!r}, got None")
            grads = partner(grads, params, params, _STEP, "grads")
            for name, one in grads.items():
                view = host(one, _STEP, "grads")
                require_float(view, _STEP, "grads")
                same_shape(view, masks[name].shape, _STEP, "grads", name)
        growth = partner(regrow.growth(params, grads, step), params, params, _STEP, "the growth of regrow")
        result, group = dict(masks), "row" if by_row else "tensor"
        for name in (name for name in masks if count[name]):
            n = count[name]
            stay = self._select({name: params[name]}, grads, stats, masks, group=group, nnz=kept[name] - n)[name]
            scores = host(growth[name], _STEP, "the growth of regrow")
            same_shape(scores, stay.shape, _STEP, "the growth of regrow", name)
            grown = Inputs("", [name], [scores], [None], 0)
            result[name] = stay | self._best(grown, {name: ~stay}, group=group, nnz=n)[name]
        return result

    def _select(
        self, params: dict[str, Array], grads: Any, stats: Any, prior: dict[str, Mask], **count: Any
    ) -> dict[str, Mask]:
        """What ``prune`` keeps of some tensors."""
        return self._best(gather_inputs(params, grads, self.method, stats, self.seed, _STEP), prior, **count)

    def _best(
        self,
        inputs: Inputs,
        prior: Mapping[str, Mask],
        function: str = _STEP,
        *,
        group: str,
        sparsity: float | None = None,
        nnz: int | None = None,
    ) -> dict[str, Mask]:
        """What scores best of what ``prior`` keeps."""
        return select(
            inputs,
            [w.shape for w in inputs.weights],
            [],
            function,
            sparsity=sparsity,
            nnz=nnz,
            threshold=None,
            pattern=self.pattern,
            group=group,
            min_density=0.0,
            priors={name: prior[name] for name in inputs.names},
            nan=self.nan,
        )

    def _check_params(self, state: SparsifierState, params: Array) -> None:
        expected = {name: tuple(mask.shape) for name, mask in _items(state.mask).items()}
        got = {name: shape_of(array, _STEP, "params", name) for name, array in _items(params).items()}
        if got != expected:
            raise ValueError(f"{_STEP}: params must have the names and shapes init saw, {expected}, got {got}")
        if isinstance(self.sparsity, Mapping) and set(self.sparsity) != set(expected):
            raise ValueError(f"{_STEP}: sparsity must name the tensors {sorted(expected)}, got {sorted(self.sparsity)}")


def _items(params: Any) -> dict[str, Any]:
    return dict(params) if isinstance(params, Mapping) else {"": params}


def _rows(mask: Mask) -> int:
    return max(1, mask.shape[0]) if len(mask.shape) > 1 else 1


def _full(array: Array, name: str) -> Mask:
    return Mask.from_dense(np.ones(shape_of(array, "Sparsifier.init", "params", name), bool))
