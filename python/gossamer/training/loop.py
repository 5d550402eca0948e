# SPDX-License-Identifier: Apache-2.0
"""The training loop: seeded minibatches, masked steps, early stopping, one yielded result an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

import gossamer as gs
from gossamer.training import model
from gossamer.training.evaluation import evaluate
from gossamer.training.losses import Loss, softmax_cross_entropy
from gossamer.training.optimizers import Optimizer
from gossamer.training.steps import SparseTraining

Array: TypeAlias = Any
Masks: TypeAlias = Mapping[str, gs.Mask]
StepHook: TypeAlias = Callable[[int, dict[str, Array], dict[str, Array]], Masks | None]
Augment: TypeAlias = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to; the validation fields are None without validation data (accuracy: without labels)."""

    number: int
    step: int
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None
    best: bool
    seconds: float = field(compare=False)


def minibatches(count: int, batch_size: int, generator: np.random.Generator) -> Iterator[Any]:
    """Index arrays that cover 0..count-1 once in a new random order; the last one may be shorter."""
    order = generator.permutation(count)
    for start in range(0, count, batch_size):
        yield order[start : start + batch_size]


def train(
    params: dict[str, Array],
    optimizer: Optimizer,
    x: Array,
    y: Array,
    *,
    validation: tuple[Array, Array] | None = None,
    loss: Loss = softmax_cross_entropy,
    epochs: int = 100,
    batch_size: int = 128,
    seed: int | np.random.Generator = 0,
    masks: Masks | None = None,
    patience: int | None = None,
    min_steps: int = 0,
    on_step: StepHook | None = None,
    augment: Augment | None = None,
    sparse: bool = False,
) -> Iterator[Epoch]:
    """Train ``params`` in place; yield an Epoch after each pass over ``x`` ``[n, in]``, ``y`` ``[n]`` or ``[n, out]``.

    Early stopping: with ``patience`` (needs ``validation``), stops after that many epochs in a row without a lower
    validation loss, though not before ``min_steps`` steps, and puts the best epoch's values back into ``params`` once
    the iterator is exhausted. Without it, ``epochs`` epochs run and ``params`` hold the last.
    ``masks``: pruned weights are zero from the first step on and stay so. ``on_step(step, params, grads)`` runs before
    each update (steps count from 1); masks that it returns replace the current ones, None leaves them. Only epochs
    under the same masks compete for "best", since a network of another sparsity is no rival.
    ``augment(batch, generator)`` returns a changed copy of a minibatch. ``sparse`` trains on the kept weights alone
    (``steps.SparseTraining``: float arrays of numpy, ``masks`` that stay, no ``on_step``, which wants dense gradients);
    ``params`` are then up to date after each epoch, and equal to dense training's up to rounding. The same seed, data
    and BLAS threads give the same result bit for bit. Raises ValueError for bad arguments, FloatingPointError when the
    loss is not finite.
    """
    _check(x, y, validation, epochs, batch_size, patience)
    if sparse and (masks is None or on_step is not None):
        raise ValueError("train: sparse must come with masks and without on_step")
    generator = np.random.default_rng(seed)
    masks = dict(masks) if masks is not None else None
    model.apply_masks(params, masks)
    kept = SparseTraining(params, masks, optimizer, loss=loss) if sparse and masks is not None else None
    grads: dict[str, Array] | None = None
    best_loss, best_params, waited, step = math.inf, None, 0, 0
    try:
        for number in range(1, epochs + 1):
            started, total = time.perf_counter(), 0.0
            for index in minibatches(len(x), batch_size, generator):
                batch = x[index] if augment is None else augment(x[index], generator)
                step += 1
                values = kept.activations(batch) if kept is not None else model.activations(params, batch)
                value, gradient = loss(values[-1], y[index])
                if not math.isfinite(value):
                    raise FloatingPointError(
                        f"train: loss must stay finite, got {value} at step {step}; lower the rate"
                    )
                total += value * len(index)
                if kept is not None:
                    kept.update(kept.gradients(values, gradient))
                    continue
                grads = model.backward(params, values, gradient, out=grads)
                changed = on_step(step, params, grads) if on_step is not None else None
                if changed is not None and not _same(changed, masks):
                    masks = dict(changed)
                    best_loss, best_params, waited = math.inf, None, 0
                optimizer.step(params, grads, masks)
            if kept is not None:
                kept.write(params)
            result = evaluate(params, *validation, loss=loss) if validation is not None else None
            best = result is not None and result.loss < best_loss
            waited = 0 if best else waited + 1
            if best and result is not None:
                best_loss = result.loss
                best_params = model.copy(params) if patience is not None else None
            yield Epoch(
                number=number,
                step=step,
                train_loss=total / len(x),
                validation_loss=result.loss if result is not None else None,
                validation_accuracy=result.accuracy if result is not None else None,
                best=best,
                seconds=time.perf_counter() - started,
            )
            if patience is not None and waited >= patience and step >= min_steps:
                break
    finally:
        if kept is not None:
            kept.release()
    if best_params is not None:
        for name, array in best_params.items():
            params[name][...] = array


def fit(params: dict[str, Array], optimizer: Optimizer, x: Array, y: Array, **options: Any) -> list[Epoch]:
    """``train`` run to its end: params are trained in place, the epochs come back as a list."""
    return list(train(params, optimizer, x, y, **options))


def _same(left: Masks, right: Masks | None) -> bool:
    return right is not None and left.keys() == right.keys() and all(left[name] is right[name] for name in left)


def _check(
    x: Array, y: Array, validation: tuple[Array, Array] | None, epochs: int, batch_size: int, patience: int | None
) -> None:
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"train: y must have as many rows as x, and one at least, got {len(y)} and {len(x)}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("patience", patience)):
        if value is not None and value < 1:
            raise ValueError(f"train: {name} must be at least 1, got {value}")
    if patience is not None and validation is None:
        raise ValueError("train: validation must be given where patience is, got None")
