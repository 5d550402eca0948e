# SPDX-License-Identifier: Apache-2.0
"""Regrowth: which pruned weights come back, in exchange for as many of the kept ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from gossamer._arrays import require_number
from gossamer.masks import Mask
from gossamer.schedules import check_steps
from gossamer.scoring import score

__all__ = ["SET", "Regrowth", "RigL"]

_SEEDS = 1 << 64


@runtime_checkable
class Regrowth(Protocol):
    """What ``Sparsifier`` asks of ``regrow=``; any picklable object with these will do."""

    @property
    def needs_grads(self) -> bool:
        """Whether ``growth`` reads gradients."""

    def share(self, step: int) -> float:
        """The share of the kept weights that the update at ``step`` exchanges, in [0, 1]."""

    def growth(self, params: Mapping[str, Any], grads: Mapping[str, Any] | None, step: int) -> Mapping[str, Any]:
        """Scores of all weights by name; the pruned ones with the highest come back."""


@dataclass(frozen=True)
class SET:
    """Sparse evolutionary training: the least of the kept go, random ones come (Mocanu et al. 2018, arXiv 1707.04780).

    ``fraction`` (the paper's zeta) of the kept weights is exchanged at every update. The random scores are those of
    ``score(method="random")`` with a seed made of ``seed`` and the update's step, so they differ from update to update
    and depend on nothing else.

    >>> import gossamer as gs
    >>> gs.SET(seed=7).share(step=1000)
    0.3
    """

    fraction: float = 0.3
    seed: int = 0

    needs_grads = False

    def __post_init__(self) -> None:
        _check_share("SET", "fraction", self.fraction)
        check_steps("SET", seed=self.seed)
        if not 0 <= self.seed < _SEEDS:
            raise ValueError(f"SET: seed must be in [0, 2**64), got {self.seed}")

    def share(self, step: int) -> float:
        """``fraction``."""
        return self.fraction

    def growth(self, params: Mapping[str, Any], grads: Mapping[str, Any] | None, step: int) -> Mapping[str, Any]:
        """Uniform random scores."""
        check_steps("SET.growth", step=step)
        found: Mapping[str, Any] = score(params, method="random", seed=step_seed(int(self.seed), step))
        return found


@dataclass(frozen=True)
class RigL:
    """The least of the kept go, those with the greatest gradients come (Evci et al. 2019, arXiv 1911.11134).

    An update at step t exchanges the share ``alpha / 2 * (1 + cos(pi * t / end))`` of the kept weights, and nothing
    from ``end`` on; the paper's alpha is 0.3, its ``end`` three quarters of the training. It needs the gradients of
    *all* weights, those of pruned ones included, at every update.

    >>> import gossamer as gs
    >>> gs.RigL(alpha=0.3, end=1000).share(step=500)
    0.15
    """

    alpha: float
    end: int

    needs_grads = True

    def __post_init__(self) -> None:
        _check_share("RigL", "alpha", self.alpha)
        check_steps("RigL", end=self.end)
        if self.end < 1:
            raise ValueError(f"RigL: end must be at least 1, got {self.end}")

    def share(self, step: int) -> float:
        """``alpha`` at step 0, falling to 0 at ``end``."""
        check_steps("RigL.share", step=step)
        return self.alpha / 2 * (1 + math.cos(math.pi * step / self.end)) if step < self.end else 0.0

    def growth(self, params: Mapping[str, Any], grads: Mapping[str, Any] | None, step: int) -> Mapping[str, Any]:
        """``|gradient|``."""
        found: Mapping[str, Any] = score(params, grads, method="gradient")
        return found


def exchanged(share: float, kept: int) -> int:
    """How many of ``kept`` weights a share is: rounded down, but not where only binary rounding is to blame (0.29 of
    100 are 29)."""
    return math.floor(round(share * kept, 6))


def difference(before: Mapping[str, Mask], after: Mapping[str, Mask]) -> dict[str, Mask]:
    """What ``before`` keeps and ``after`` does not, of the tensors where there is any."""
    return {name: gone for name, mask in before.items() if (gone := mask & ~after[name]).nnz > 0}


def step_seed(seed: int, step: int) -> int:
    """A seed for one step: SplitMix64's finalizer, twice, so that neighbouring seeds and steps share no stream."""
    return _finalize((seed + _finalize((step + 1) % _SEEDS)) % _SEEDS)


def _finalize(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % _SEEDS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % _SEEDS
    return z ^ (z >> 31)


def _check_share(name: str, argument: str, value: object) -> None:
    if not 0 <= require_number(value, name, argument) <= 1:
        raise ValueError(f"{name}: {argument} must be in [0, 1], got {value}")
