# SPDX-License-Identifier: Apache-2.0
"""Optimisation by importance and the update of the model: change it, validate, then accept or reject.

``prune`` and ``adjust`` make a candidate out of params and scores; ``Keeper`` holds the last accepted state, compares
candidates with it, and gives it back, bit for bit, where one is rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, TypeAlias

import gossamer as gs
from gossamer.training import model

Array: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
Masks: TypeAlias = Mapping[str, gs.Mask]

_MASK = ".mask"


def prune(
    params: Params,
    scores: Params,
    sparsity: float,
    *,
    pattern: str = "element",
    group: str = "tensor",
    prior: Masks | None = None,
) -> tuple[dict[str, Array], dict[str, gs.Mask]]:
    """New params that keep the best scored weights, and their masks, by the names in ``scores``.

    ``topk_mask`` and ``apply_mask``; everything else (biases) is copied. ``params`` is unchanged.
    """
    masks = dict(gs.topk_mask(scores, sparsity=sparsity, pattern=pattern, group=group, prior=prior))
    pruned = model.copy(params)
    model.apply_masks(pruned, masks)
    return pruned, masks


def adjust(
    params: Params,
    scores: Params,
    rate: float,
    *,
    rule: Literal["sign", "scale"] = "sign",
    masks: Masks | None = None,
) -> dict[str, Array]:
    """New params with what ``scores`` names changed by ``gossamer.adjust``; the rest is copied, ``params`` unchanged.

    ``"sign"``: w - rate · sign(score), with gradients as scores a step of fixed length against each of them.
    ``"scale"``: w · (1 + rate · (score - c) / d): the efficient (high score) are scaled up, the inefficient down.
    Weights that ``masks`` prunes stay zero.
    """
    changed = model.copy(params)
    for name, score in scores.items():
        gs.adjust(changed[name], score, rate, rule=rule, out=changed[name])
    model.apply_masks(changed, masks)
    return changed


@dataclass(frozen=True)
class Decision:
    """The verdict on a candidate: the accepted state's validation metric, its own, and whether it takes its place."""

    accepted: bool
    before: float
    after: float


class Keeper:
    """Keeps the last accepted state of a model.

    ``validate(params)`` is the budget's metric on validation data. ``budget`` compares with the first state's metric
    (``baseline``), so that many small losses cannot add up to a large one; ``compare="last"`` compares with the last
    accepted state's instead. All states are copies: what a caller does to its arrays afterwards changes none of them.
    """

    def __init__(
        self,
        params: Params,
        masks: Masks | None = None,
        *,
        validate: Callable[[dict[str, Array]], float],
        budget: gs.Budget | None = None,
        compare: Literal["baseline", "last"] = "baseline",
    ) -> None:
        if compare not in ("baseline", "last"):
            raise ValueError(f"Keeper: compare must be 'baseline' or 'last', got {compare!r}")
        self.validate, self.budget, self.compare = validate, budget or gs.Budget(), compare
        self._params, self._masks = model.copy(params), dict(masks or {})
        self.baseline = self.value = float(validate(model.copy(params)))

    def consider(self, params: Params, masks: Masks | None = None) -> Decision:
        """Validate a candidate; it becomes the accepted state if the budget allows, else nothing changes.

        ``masks`` None means those of the accepted state. A metric that is NaN or infinite is rejected.
        """
        before, after = self.value, float(self.validate(model.copy(params)))
        accepted = self.budget.accepts(self.baseline if self.compare == "baseline" else before, after)
        if accepted:
            self._params, self.value = model.copy(params), after
            self._masks = self._masks if masks is None else dict(masks)
        return Decision(accepted, before, after)

    @property
    def params(self) -> dict[str, Array]:
        """A copy of the accepted params: what to go on with after a rejection."""
        return model.copy(self._params)

    @property
    def masks(self) -> dict[str, gs.Mask]:
        """The accepted masks (Masks are immutable)."""
        return dict(self._masks)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the accepted state to a safetensors file that ``load`` reads back."""
        save(path, self._params, self._masks)


def save(path: str | PathLike[str], params: Params, masks: Masks | None = None) -> None:
    """Params under their names and masks as ``<name>.mask`` in one safetensors file (``gossamer.save``)."""
    gs.save(path, {**params, **{name + _MASK: mask for name, mask in (masks or {}).items()}})


def load(path: str | PathLike[str]) -> tuple[dict[str, Array], dict[str, gs.Mask]]:
    """The params and masks that ``save`` wrote, bit for bit."""
    found = gs.load(path)
    masks = {name.removesuffix(_MASK): value for name, value in found.items() if isinstance(value, gs.Mask)}
    return {name: value for name, value in found.items() if not isinstance(value, gs.Mask)}, masks
