# SPDX-License-Identifier: Apache-2.0
"""Which weights matter: statistics collected over many batches, turned into scores (higher = keep)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import gossamer as gs
from gossamer.scoring import needs_grads
from gossamer.training import model
from gossamer.training.losses import Loss, softmax_cross_entropy

Array: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
Method: TypeAlias = str | Callable[[Array, Array, Any], Array]


class GradientMean:
    """The mean of gradients over all samples seen, for scores that one noisy minibatch would spoil.

    ``update`` takes the mean gradients of a batch and its size; ``decay`` d in [0, 1) makes it a moving mean (sums are
    multiplied by d before each update). The arrays of ``update`` are not kept.
    """

    def __init__(self, *, decay: float | None = None) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"GradientMean: decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.reset()

    def reset(self) -> None:
        """Forget everything seen."""
        self.count = 0.0
        self._sums: dict[str, Array] = {}

    def update(self, grads: Params, count: int = 1) -> None:
        """Add the mean gradients of ``count`` samples."""
        if count < 1:
            raise ValueError(f"GradientMean.update: count must be at least 1, got {count}")
        if self.decay is not None:
            self.count *= self.decay
            for total in self._sums.values():
                total *= self.decay
        self.count += count
        for name, gradient in grads.items():
            if name not in self._sums:
                self._sums[name] = gradient * float(count)
            else:
                self._sums[name] += gradient if count == 1 else gradient * float(count)

    def values(self) -> dict[str, Array]:
        """The mean gradients, new arrays of the gradients' dtype. ValueError before the first update."""
        if not self.count:
            raise ValueError("GradientMean.values: update must come first, got no gradients")
        return {name: total / self.count for name, total in self._sums.items()}


@dataclass(frozen=True)
class Statistics:
    """What a scoring method needs beside the weights; None where it needs nothing of the kind."""

    grads: dict[str, Array] | None = None
    stats: dict[str, gs.Stats] | None = None


def mean_gradients(
    params: Params, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 1024
) -> dict[str, Array]:
    """The gradient of the mean loss over all rows of ``x`` ``[n, in]``, ``y``; weights and biases alike."""
    _check("mean_gradients", x, y)
    mean = GradientMean()
    grads: dict[str, Array] | None = None
    for start in range(0, len(x), batch_size):
        values = model.activations(params, x[start : start + batch_size])
        gradient = loss(values[-1], y[start : start + batch_size])[1]
        grads = model.backward(params, values, gradient, out=grads)
        mean.update(grads, len(values[0]))
    return mean.values()


def input_norms(params: Params, x: Array, *, batch_size: int = 1024) -> dict[str, gs.Stats]:
    """``gossamer.Stats("norm")`` of each layer's inputs (for wanda), by the name of its weight."""
    _check("input_norms", x, x)
    names = list(model.weights(params))
    stats = {name: gs.Stats("norm") for name in names}
    for start in range(0, len(x), batch_size):
        for name, inputs in zip(names, model.activations(params, x[start : start + batch_size]), strict=False):
            stats[name].update(inputs)
    return stats


def movement(
    params: Params, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 1024
) -> dict[str, gs.Stats]:
    """``gossamer.Stats("movement")``: -Σ gradient · weight over the batches of ``x``, ``y`` at the present weights.

    The paper (2005.07683) sums over training steps; to do that call ``update_movement`` from the loop's ``on_step``.
    """
    _check("movement", x, y)
    stats: dict[str, gs.Stats] = {}
    for start in range(0, len(x), batch_size):
        values = model.activations(params, x[start : start + batch_size])
        gradient = loss(values[-1], y[start : start + batch_size])[1]
        update_movement(stats, params, model.backward(params, values, gradient))
    return stats


def update_movement(stats: dict[str, gs.Stats], params: Params, grads: Params) -> None:
    """Add one step's -gradient · weight to ``stats``, whose entries are created at the first call."""
    for name, weight in model.weights(params).items():
        stats.setdefault(name, gs.Stats("movement")).update(weight, grads[name])


def collect(
    method: Method, params: Params, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 1024
) -> Statistics:
    """What ``method`` needs from the data: mean gradients, input norms, movement, or nothing (magnitude, random).

    A callable gets gradients and norms.
    """
    grads: dict[str, Array] | None = None
    if needs_grads(method):
        grads = model.weights(mean_gradients(params, x, y, loss=loss, batch_size=batch_size))
    if callable(method) or method == "wanda":
        return Statistics(grads, input_norms(params, x, batch_size=batch_size))
    if method == "movement":
        return Statistics(None, movement(params, x, y, loss=loss, batch_size=batch_size))
    return Statistics(grads, None)


def importance(
    params: Params,
    x: Array,
    y: Array,
    *,
    method: Method = "taylor",
    loss: Loss = softmax_cross_entropy,
    batch_size: int = 1024,
    seed: int | None = None,
) -> dict[str, Array]:
    """The scores of all weights by name, from all rows of ``x``, ``y``: ``collect``, then ``gossamer.score``."""
    found = collect(method, params, x, y, loss=loss, batch_size=batch_size)
    scores = gs.score(model.weights(params), found.grads, method=method, stats=found.stats, seed=seed)
    return dict(scores)


def _check(function: str, x: Array, y: Array) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"{function}: y must have as many rows as x, and one at least, got {len(y)} and {len(x)}")
