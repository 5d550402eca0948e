# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning as a hook of the training loop: a Sparsifier fed with a moving mean of the gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import gossamer as gs
from gossamer.scoring import OTHER_GRADS
from gossamer.training import model
from gossamer.training.importance import GradientMean

Array: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]


class GradualPruning:
    """Pass it as ``on_step`` to ``train``: it prunes ``params``' weights as the sparsifier's schedule says.

    The gradients that score the weights are a moving mean over about 1 / (1 - decay) steps: one minibatch's are noisy,
    and the mean over all training data, at twice the time, was no better (Fashion-MNIST, LeNet-300-100, Taylor, 95 %,
    global, 4 epochs from a dense 88.0 %, one run each: 87.6 % for the moving mean, 87.1 % and 87.2 % for the others).
    Regrowth by gradients (RigL) reads the same mean; ``decay=0`` gives it the present minibatch's, as in the paper.
    ``masks`` are the current ones, ``state`` and ``events`` the sparsifier's, the latter one per change.
    ``stats`` serve methods that need them (wanda, movement) and may be replaced at any time.
    """

    def __init__(self, sparsifier: gs.Sparsifier, params: Params, *, decay: float = 0.98, stats: Any = None) -> None:
        if sparsifier.method in OTHER_GRADS:
            raise ValueError(
                f"GradualPruning: method must not be {sparsifier.method!r}, whose grads are no gradients of the loss; "
                "see importance.collect"
            )
        self.sparsifier, self.stats = sparsifier, stats
        self.state = sparsifier.init(model.weights(params))
        self.events: list[tuple[int, Any]] = []
        self._mean = GradientMean(decay=decay)

    @property
    def masks(self) -> dict[str, gs.Mask]:
        """The masks by weight name."""
        return dict(self.state.mask)

    def __call__(self, step: int, params: Params, grads: Params) -> dict[str, gs.Mask] | None:
        """The masks where this step changed them, else None."""
        if self.sparsifier.needs_grads:
            self._mean.update(model.weights(grads))
        if self.sparsifier.due(self.state, step) is None:
            return None
        mean = self._mean.values() if self.sparsifier.needs_grads else None
        self.state, event = self.sparsifier.step(self.state, model.weights(params), mean, step, stats=self.stats)
        if not event.changed:
            return None
        self.events.append((step, event))
        return self.masks
