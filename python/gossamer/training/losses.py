# SPDX-License-Identifier: Apache-2.0
"""Losses: each returns its value (a mean over the batch, summed in float64) and its gradient in the output's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from gossamer.training._namespace import namespace

Array: TypeAlias = Any
Loss: TypeAlias = Callable[[Array, Array], tuple[float, Array]]


def mean_squared_error(predictions: Array, targets: Array) -> tuple[float, Array]:
    """Mean of (prediction - target)² over all elements, and the gradient 2 (prediction - target) / size.

    Both are ``[batch, out]`` (or any other equal shapes). ValueError for unequal shapes or an empty batch.
    """
    if predictions.shape != targets.shape or predictions.size == 0:
        raise ValueError(
            f"mean_squared_error: targets must have the shape of predictions {tuple(predictions.shape)} "
            f"and one element at least, got {tuple(targets.shape)}"
        )
    xp = namespace(predictions)
    gradient = predictions - targets
    value = float(xp.mean(xp.square(gradient), dtype=xp.float64))
    gradient *= 2.0 / gradient.size
    return value, gradient


def softmax_cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Mean of -log softmax(logits)[label], and the gradient (softmax(logits) - onehot(label)) / batch.

    ``logits`` is ``[batch, classes]``, ``labels`` ``[batch]`` of integers in [0, classes). The maximum of each row is
    subtracted first, so nothing overflows. ValueError for other shapes, an empty batch or a label out of range,
    TypeError for labels that are no integers.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.size == 0:
        raise ValueError(
            f"softmax_cross_entropy: labels must be [batch] for logits [batch, classes], "
            f"got labels {tuple(labels.shape)}, logits {tuple(logits.shape)}"
        )
    if labels.dtype.kind not in "iu":
        raise TypeError(f"softmax_cross_entropy: labels must be integers, got {labels.dtype}")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= logits.shape[1]:
        raise ValueError(
            f"softmax_cross_entropy: labels must be in [0, {logits.shape[1]}), got {lowest if lowest < 0 else highest}"
        )
    xp = namespace(logits)
    batch = logits.shape[0]
    rows = xp.arange(batch)
    z = logits - logits.max(axis=1, keepdims=True)
    picked = z[rows, labels]
    gradient = xp.exp(z, out=z)
    total = gradient.sum(axis=1, keepdims=True)
    value = float(xp.sum(xp.log(total[:, 0]) - picked, dtype=xp.float64)) / batch
    gradient /= total
    gradient[rows, labels] -= 1.0
    gradient *= 1.0 / batch
    return value, gradient
