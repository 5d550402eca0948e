# SPDX-License-Identifier: Apache-2.0
"""Schedules: how sparse a network should be at a training step.

A schedule holds only *when* to prune; *how much* comes with the call, because one schedule serves layers of different
targets: ``schedule(step, final, initial)`` is the sparsity at ``step`` on the way from ``initial`` to ``final``.
``Sparsifier(method, sparsity, schedule=..., initial=...)`` passes its own (and takes a plain function of the step, too:
see there). Between two updates the value stays at that
of the last one. With ``final`` left out (1.0) the call gives the share of the way already gone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, SupportsIndex, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """What ``Sparsifier`` asks of a schedule; any picklable object with these two methods will do."""

    def __call__(self, step: int, final: float = 1.0, initial: float = 0.0) -> float:
        """The sparsity at ``step``, in [initial, final] and never falling."""

    def last_update(self, step: int) -> int | None:
        """The latest step at or before ``step`` at which masks are updated; None before the first."""


def check_steps(name: str, **steps: object) -> None:
    """Raises TypeError for what is no integer."""
    for field, value in steps.items():
        if isinstance(value, bool) or not isinstance(value, SupportsIndex):
            raise TypeError(f"{name}: {field} must be an integer, got {value!r}")


def _check_sparsity(name: str, final: float, initial: float) -> None:
    if not 0 <= initial <= 1:
        raise ValueError(f"{name}: initial must be in [0, 1], got {initial}")
    if not initial <= final <= 1:
        raise ValueError(f"{name}: final must be in [initial, 1] = [{initial}, 1], got {final}")


@dataclass(frozen=True)
class OneShot:
    """All at once: ``initial`` before step ``at``, ``final`` from it on. One update."""

    at: int = 0

    def __post_init__(self) -> None:
        check_steps("OneShot", at=self.at)
        if self.at < 0:
            raise ValueError(f"OneShot: at must not be negative, got {self.at}")

    def __call__(self, step: int, final: float = 1.0, initial: float = 0.0) -> float:
        """The sparsity at ``step``."""
        _check_sparsity("OneShot", final, initial)
        return final if step >= self.at else initial

    def last_update(self, step: int) -> int | None:
        """``at`` once it is reached."""
        return self.at if step >= self.at else None


@dataclass(frozen=True)
class Constant:
    """``final`` at every step, with an update every ``every`` steps from 0 to ``end`` (None: for ever).

    Without regrowth the later updates change nothing; with it they exchange weights at constant sparsity.
    """

    every: int = 1
    end: int | None = None

    def __post_init__(self) -> None:
        check_steps("Constant", every=self.every, end=0 if self.end is None else self.end)
        if self.every < 1:
            raise ValueError(f"Constant: every must be at least 1, got {self.every}")
        if self.end is not None and self.end < 0:
            raise ValueError(f"Constant: end must not be negative, got {self.end}")

    def __call__(self, step: int, final: float = 1.0, initial: float = 0.0) -> float:
        """``final``."""
        _check_sparsity("Constant", final, initial)
        return final

    def last_update(self, step: int) -> int | None:
        """The latest multiple of ``every`` that is not after ``step`` or ``end``."""
        if step < 0:
            return None
        return (step if self.end is None else min(step, self.end)) // self.every * self.every


@dataclass(frozen=True)
class _Gradual:
    """From ``initial`` at step ``start`` to ``final`` at step ``end``, both inclusive, updated every ``every`` steps.

    Updates fall on start, start + every, ... and on ``end`` itself, also where ``every`` does not divide the way.
    """

    start: int
    end: int
    every: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_steps(name, start=self.start, end=self.end, every=self.every)
        if self.start < 0:
            raise ValueError(f"{name}: start must not be negative, got {self.start}")
        if self.end <= self.start:
            raise ValueError(f"{name}: end must be after start {self.start}, got {self.end}")
        if self.every < 1:
            raise ValueError(f"{name}: every must be at least 1, got {self.every}")

    def __call__(self, step: int, final: float = 1.0, initial: float = 0.0) -> float:
        """The sparsity at ``step``: that of the last update, ``initial`` before the first, ``final`` after the last."""
        _check_sparsity(type(self).__name__, final, initial)
        update = self.last_update(step)
        if update is None or update == self.start:
            return initial
        if update == self.end:
            return final
        # Rounding must not carry a value past the two ends.
        value = self._value((update - self.start) / (self.end - self.start), final, initial)
        return min(max(value, initial), final)

    def last_update(self, step: int) -> int | None:
        """The latest update at or before ``step``; None before ``start``, ``end`` ever after it."""
        if step < self.start:
            return None
        if step >= self.end:
            return self.end
        return step - (step - self.start) % self.every

    def _value(self, done: float, final: float, initial: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True)
class Cubic(_Gradual):
    """final + (initial - final) (1 - t/T)³, t = step - start, T = end - start (Zhu & Gupta 2017, 1710.01878)."""

    def _value(self, done: float, final: float, initial: float) -> float:
        return final + (initial - final) * (1.0 - done) ** 3


@dataclass(frozen=True)
class Cosine(_Gradual):
    """final + (initial - final) (1 + cos πt/T) / 2: slow, fast, slow."""

    def _value(self, done: float, final: float, initial: float) -> float:
        return final + (initial - final) * (1.0 + math.cos(math.pi * done)) / 2.0


@dataclass(frozen=True)
class Exponential(_Gradual):
    """1 - (1 - initial)^(1 - t/T) (1 - final)^(t/T): every update removes the same share of what is left.

    ``final`` must be below 1, which no such row of shares reaches.
    """

    def __call__(self, step: int, final: float = 1.0, initial: float = 0.0) -> float:
        """The sparsity at ``step``. ValueError for final = 1."""
        if final == 1:
            raise ValueError("Exponential: final must be below 1, got 1.0")
        return super().__call__(step, final, initial)

    def _value(self, done: float, final: float, initial: float) -> float:
        return 1.0 - math.pow(1.0 - initial, 1.0 - done) * math.pow(1.0 - final, done)
