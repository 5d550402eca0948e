# SPDX-License-Identifier: Apache-2.0
"""Which weights matter: statistics collected over many batches, turned into scores (higher = keep)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import gossamer as gs
from gossamer.scoring import METHODS
from gossamer.training import model
from gossamer.training._namespace import namespace
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
    """``gossamer.Stats("norm")`` of each layer's inputs (for wanda and ria), by the name of its weight."""
    _check("input_norms", x, x)
    return _input_stats("norm", params, x, batch_size)


def input_hessians(params: Params, x: Array, *, batch_size: int = 1024) -> dict[str, gs.Stats]:
    """``gossamer.Stats("hessian")`` of each layer's inputs, XᵀX (for obs), by the name of its weight."""
    _check("input_hessians", x, x)
    return _input_stats("hessian", params, x, batch_size)


def _input_stats(kind: str, params: Params, x: Array, batch_size: int) -> dict[str, gs.Stats]:
    names = list(model.weights(params))
    stats = {name: gs.Stats(kind) for name in names}
    for start in range(0, len(x), batch_size):
        for name, inputs in zip(names, model.activations(params, x[start : start + batch_size]), strict=False):
            stats[name].update(inputs)
    return stats


def squared_gradients(
    params: Params, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 1024
) -> dict[str, gs.Stats]:
    """``gossamer.Stats("grad2")``: the mean of each weight's squared gradient *per sample* (for fisher).

    A sample's gradient is the outer product of the layer's output gradient d and its input, so the sum of their squares
    is (d²)ᵀ(x²), in float64: no sample's gradient is ever held. ``loss`` must be a mean over the batch.
    """
    _check("squared_gradients", x, y)
    sums: dict[str, Array] = {}
    for start in range(0, len(x), batch_size):
        values = model.activations(params, x[start : start + batch_size])
        gradient = loss(values[-1], y[start : start + batch_size])[1] * float(len(values[0]))
        for name, d, inputs in model.deltas(params, values, gradient):
            squares = _wide(d).T ** 2 @ _wide(inputs) ** 2
            sums[name] = sums[name] + squares if name in sums else squares
    stats = {name: gs.Stats("grad2") for name in model.weights(params)}
    for name, one in stats.items():  # what its update would have come to, sample by sample
        one._sums, one.count = sums[name], float(len(x))
    return stats


def hessian_gradient(
    params: Params, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 1024
) -> dict[str, Array]:
    """H g for all weights, float64: the Hessian of the mean loss times its gradient (GraSP, Wang 2020, 2002.07376).

    Both are of the weights alone, biases stand still. Forward and backward pass are differentiated along g exactly
    (Pearlmutter 1994), ReLU's kinks aside as in any such derivative; only the loss's own second derivative, which is
    smooth, is a central difference.
    """
    _check("hessian_gradient", x, y)
    wide = {name: _wide(value) for name, value in params.items()}
    v = model.weights(mean_gradients(wide, _wide(x), y, loss=loss, batch_size=batch_size))
    mean = GradientMean()
    for start in range(0, len(x), batch_size):
        values = model.activations(wide, _wide(x[start : start + batch_size]))
        mean.update(_hessian_product(wide, v, values, y[start : start + batch_size], loss), len(values[0]))
    return mean.values()


def _hessian_product(
    params: dict[str, Array], v: dict[str, Array], values: list[Array], y: Array, loss: Loss
) -> dict[str, Array]:
    """H v of one batch. ``turned`` holds the derivative along v of each of ``values``."""
    names = list(v)
    turned = [namespace(values[0]).zeros_like(values[0])]
    for name, inputs, outputs in zip(names, values[:-1], values[1:], strict=True):
        change = inputs @ v[name].T + turned[-1] @ params[name].T
        turned.append(change if name == names[-1] else change * (outputs > 0))
    length = float(abs(turned[-1]).max())
    step = 1e-4 / length if length else 1.0  # the outputs move by 1e-4 at most: the error is about 1e-9 of the result
    after, before = (loss(values[-1] + sign * step * turned[-1], y)[1] for sign in (1.0, -1.0))
    d, d_turned = loss(values[-1], y)[1], (after - before) / (2.0 * step)
    result: dict[str, Array] = {}
    for k in range(len(names) - 1, -1, -1):
        name, inputs = names[k], values[k]
        result[name] = d_turned.T @ inputs + d.T @ turned[k]
        alive = inputs > 0
        d, d_turned = (d @ params[name]) * alive, (d_turned @ params[name] + d @ v[name]) * alive
    return {name: result[name] for name in names}


def synaptic_flow(params: Params) -> dict[str, Array]:
    """dR/dw for all weights, float64, R = 1ᵀ |W_L| ... |W_1| 1 (SynFlow, Tanaka 2020, 2006.05467); it needs no data.

    It has the sign of w, so that w · dR/dw is never negative; a weight of 0 gets 0.
    """
    weights = {name: _wide(weight) for name, weight in model.weights(params).items()}
    xp = namespace(*weights.values())
    inflow = [xp.ones(next(iter(weights.values())).shape[1], dtype=xp.float64)]
    for weight in weights.values():
        inflow.append(abs(weight) @ inflow[-1])
    outflow, result = xp.ones_like(inflow[-1]), {}
    for (name, weight), flow in zip(reversed(weights.items()), reversed(inflow[:-1]), strict=True):
        result[name] = xp.sign(weight) * outflow[:, None] * flow[None, :]
        outflow = abs(weight).T @ outflow
    return {name: result[name] for name in weights}


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
    """What ``method`` needs from the data, as ``gossamer.scoring.METHODS`` says.

    Mean gradients (for grasp H g, for synflow dR/dw), input norms or Hessians, squared gradients, movement, or nothing
    (magnitude, lamp, fpgm, random). A callable gets gradients and norms.
    """
    how: dict[str, Any] = {"batch_size": batch_size}
    needs = "" if callable(method) else METHODS.get(method, ("", ""))[0]
    if callable(method):
        grads = model.weights(mean_gradients(params, x, y, loss=loss, **how))
        return Statistics(grads, input_norms(params, x, **how))
    if method == "grasp":
        return Statistics(hessian_gradient(params, x, y, loss=loss, **how))
    if method == "synflow":
        return Statistics(synaptic_flow(params))
    if needs == "grads":
        return Statistics(model.weights(mean_gradients(params, x, y, loss=loss, **how)))
    if needs == "norm":
        return Statistics(stats=input_norms(params, x, **how))
    if needs == "hessian":
        return Statistics(stats=input_hessians(params, x, **how))
    if needs == "grad2":
        return Statistics(stats=squared_gradients(params, x, y, loss=loss, **how))
    if needs == "movement":
        return Statistics(stats=movement(params, x, y, loss=loss, **how))
    return Statistics()


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


def _wide(array: Array) -> Array:
    """``array`` in float64."""
    return namespace(array).astype(array, namespace(array).float64)
