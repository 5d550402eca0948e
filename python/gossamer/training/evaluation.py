# SPDX-License-Identifier: Apache-2.0
"""What a network is worth and what it costs: loss, accuracy, FLOPs, bytes, latency."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import gossamer as gs
from gossamer import accounting
from gossamer.training import model
from gossamer.training.losses import Loss, softmax_cross_entropy

Array: TypeAlias = Any
Masks: TypeAlias = Mapping[str, gs.Mask]
Model: TypeAlias = Mapping[str, Array] | Callable[[Array], Array]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and share of right answers; accuracy is None where the targets are no integer labels."""

    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Latency:
    """Median seconds a call of each network, measured in turns."""

    dense: float
    sparse: float

    @property
    def speedup(self) -> float:
        """How many times faster the sparse network is."""
        return self.dense / self.sparse


def predict(network: Model, x: Array) -> Array:
    """The output ``[batch, out]`` of a params dict or of any callable such as ``SparseMLP``."""
    return model.forward(network, x) if isinstance(network, Mapping) else network(x)


def evaluate(
    network: Model, x: Array, y: Array, *, loss: Loss = softmax_cross_entropy, batch_size: int = 2048
) -> Evaluation:
    """Mean loss (weighted by batch) and accuracy of a params dict or callable on ``x`` ``[n, in]``, ``y``.

    ValueError for no rows or unequal lengths.
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"evaluate: y must have as many rows as x, and one at least, got {len(y)} and {len(x)}")
    labelled = y.ndim == 1 and y.dtype.kind in "iu"
    total, right = 0.0, 0
    for start in range(0, len(x), batch_size):
        targets = y[start : start + batch_size]
        outputs = predict(network, x[start : start + batch_size])
        total += loss(outputs, targets)[0] * len(targets)
        if labelled:
            right += int((outputs.argmax(axis=1) == targets).sum())
    return Evaluation(loss=total / len(x), accuracy=right / len(x) if labelled else None)


def sparsity(params: Mapping[str, Array]) -> float:
    """The share of exact zeros among the weights, counted on the arrays themselves."""
    arrays = list(model.weights(params).values())
    size = sum(int(array.size) for array in arrays)
    return sum(int((array == 0).sum()) for array in arrays) / size if size else 0.0


def densities(params: Mapping[str, Array]) -> dict[str, float]:
    """The share of non-zeros of each weight tensor, counted on the arrays."""
    return {name: float((array != 0).mean()) for name, array in model.weights(params).items()}


def flops(params: Mapping[str, Array], masks: Masks | None = None) -> int:
    """Floating-point operations a sample: 2 · nnz of the weights (one multiply, one add), biases not counted.

    That is the rule of RigL's Table 2 (1911.11134). A weight tensor without a mask counts as dense.
    """
    return accounting.flops(_sizes(params), _kept("flops", params, masks))


def stored_bytes(params: Mapping[str, Array], masks: Masks | None = None) -> int:
    """Bytes of the network in a file by RigL's rule: 4 a kept weight and bias, a bit a weight where a layer is sparse.

    A convention to compare with published numbers (1911.11134, Table 2); ``SparseMLP.nbytes`` is what is really held
    in memory. The 4 is for float32 whatever the dtype here.
    """
    biases = sum(int(array.size) for array in model.biases(params).values())
    return accounting.stored_bytes(_sizes(params), _kept("stored_bytes", params, masks), biases=biases)


def _sizes(params: Mapping[str, Array]) -> dict[str, int]:
    return {name: int(array.size) for name, array in model.weights(params).items()}


def _kept(function: str, params: Mapping[str, Array], masks: Masks | None) -> dict[str, int]:
    """How many elements of each weight tensor are kept."""
    weights, masks = model.weights(params), masks or {}
    if unknown := set(masks) - set(weights):
        raise ValueError(f"{function}: masks must name weights, got {sorted(unknown)}")
    return {name: masks[name].nnz if name in masks else int(array.size) for name, array in weights.items()}


def latency(dense: Model, sparse: Model, x: Array, *, repeats: int = 50, warmup: int = 5) -> Latency:
    """Median time of ``dense`` and ``sparse`` on the batch ``x``, taken in turns so that both see the same machine."""
    if repeats < 1 or warmup < 0:
        raise ValueError(f"latency: repeats must be at least 1 and warmup at least 0, got {repeats} and {warmup}")
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(warmup + repeats):
        for network, record in zip((dense, sparse), times, strict=True):
            started = time.perf_counter()
            predict(network, x)
            if turn >= warmup:
                record.append(time.perf_counter() - started)
    return Latency(dense=statistics.median(times[0]), sparse=statistics.median(times[1]))
