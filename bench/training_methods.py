# SPDX-License-Identifier: Apache-2.0
"""One-shot, gradual and dynamic sparse training of LeNet-300-100, with the same number of steps and the same seeds.

    python bench/training_methods.py [--data DATA] [--sparsity S] [--epochs N] [--seeds N] [--out FILE]

Every run starts from the same weights for a seed, sees the same minibatches, and takes the same number of Adam steps at
a rate that falls from 0.001 to 0 along half a cosine (one-shot: once before and once after pruning). What is compared
is accuracy on test data after the last step; nothing is selected on it. RigL runs twice: it grows by the gradients of
one minibatch, as in the paper, and by a moving mean over about ten (chosen on validation data, with other seeds).
Prints a table and, with ``--out``, writes it as markdown. One BLAS thread, so the same seed gives the same result.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import gossamer as gs
from gossamer.training import data, evaluation, loop, model
from gossamer.training.gradual import GradualPruning
from gossamer.training.optimizers import Adam

HIDDEN = (300, 100)
BATCH = 128
RATE = 1e-3
EVERY = 100  # steps between updates
ALPHA, FRACTION = 0.3, 0.3  # of RigL and SET, as in the papers
BASELINE = "one-shot at half time, then masked updates"


@dataclass(frozen=True)
class Method:
    """``make(sparsity, steps, weights, seed)`` gives the sparsifier, or None for the dense network."""

    name: str
    make: Callable[[float, int, dict[str, Any], int], gs.Sparsifier | None]
    phases: int = 1  # of the learning rate
    decay: float = 0.0  # of the mean of gradients that RigL grows by; 0: the last minibatch's


def _erk(sparsity: float, weights: dict[str, Any]) -> Any:
    return gs.allocate(weights, sparsity, method="erk")


def _rigl(sparsity: float, steps: int, weights: dict[str, Any], seed: int) -> gs.Sparsifier:
    return gs.Sparsifier(
        "magnitude",
        _erk(sparsity, weights),
        schedule=gs.Constant(EVERY),
        regrow=gs.RigL(ALPHA, steps * 3 // 4),
    )


METHODS = [
    Method("dense", lambda s, t, w, seed: None),
    Method(
        BASELINE,
        lambda s, t, w, seed: gs.Sparsifier("magnitude", s, group="global", schedule=gs.OneShot(at=t // 2 + 1)),
        phases=2,
    ),
    Method(
        "gradual: cubic, magnitude",
        lambda s, t, w, seed: gs.Sparsifier(
            "magnitude", s, group="global", schedule=gs.Cubic(t // 10, t * 6 // 10, EVERY)
        ),
    ),
    Method("RigL, ERK from the start", _rigl),
    Method("the same, growth by mean gradients", _rigl, decay=0.9),
    Method(
        "SET, ERK from the start",
        lambda s, t, w, seed: gs.Sparsifier(
            "magnitude", _erk(s, w), schedule=gs.Constant(EVERY, t * 3 // 4), regrow=gs.SET(FRACTION, seed)
        ),
    ),
    Method("static, ERK from the start", lambda s, t, w, seed: gs.Sparsifier("magnitude", _erk(s, w))),
]


@dataclass
class Run:
    """What one training came to, on test data; ``collapsed`` is the accuracy right after a one-shot pruning."""

    accuracy: float
    collapsed: float | None
    sparsity: float
    flops: int
    bytes: int
    density: float  # share of the weights in training, the mean over all steps
    seconds: float


def train(method: Method, loaded: data.Dataset, sparsity: float, epochs: int, seed: int) -> Run:
    """One training of ``method`` from the seed's weights."""
    started = time.perf_counter()
    sizes = [loaded.x_train.shape[1], *HIDDEN, loaded.classes]
    params = model.initialize(sizes, np.random.default_rng(seed))
    steps, size = epochs * math.ceil(len(loaded.x_train) / BATCH), sum(w.size for w in model.weights(params).values())
    sparsifier = method.make(sparsity, steps, model.weights(params), seed)
    pruning = None if sparsifier is None else GradualPruning(sparsifier, params, decay=method.decay)
    optimizer, collapsed, trained = Adam(RATE), None, 0

    def accuracy(of: dict[str, Any]) -> float:
        found = evaluation.evaluate(of, loaded.x_test, loaded.y_test).accuracy
        assert found is not None
        return found

    def on_step(step: int, params: dict[str, Any], grads: dict[str, Any]) -> Any:
        nonlocal collapsed, trained
        done = ((step - 1) * method.phases / steps) % 1.0
        optimizer.rate = RATE * (1 + math.cos(math.pi * done)) / 2
        masks = None if pruning is None else pruning(step, params, grads)
        if masks is not None and method.name == BASELINE:
            cut = model.copy(params)
            model.apply_masks(cut, masks)
            collapsed = accuracy(cut)
        trained += size if pruning is None else sum(mask.nnz for mask in pruning.masks.values())
        return masks

    loop.fit(
        params, optimizer, loaded.x_train, loaded.y_train, epochs=epochs, batch_size=BATCH, seed=seed, on_step=on_step
    )
    masks = None if pruning is None else pruning.masks
    return Run(
        accuracy(params),
        collapsed,
        evaluation.sparsity(params),
        evaluation.flops(params, masks),
        evaluation.stored_bytes(params, masks),
        trained / (size * steps),
        time.perf_counter() - started,
    )


def table(results: dict[str, list[Run]]) -> list[str]:
    """Markdown: mean and range of the accuracy over the seeds, and how far the mean is from the baseline's."""
    baseline = statistics.fmean(run.accuracy for run in results[BASELINE])
    lines = [
        "| method | test accuracy | range | against one-shot | sparsity | FLOPs | bytes | weights in training |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, runs in results.items():
        first, found = runs[0], [run.accuracy for run in runs]
        costs = f"{100 * first.sparsity:.2f} % | {first.flops:,} | {first.bytes:,}"
        mean = statistics.fmean(found)
        away = "" if name == BASELINE else f"{100 * (mean - baseline):+.2f}"
        lines.append(
            f"| {name} | {100 * mean:.2f} % | {100 * min(found):.2f} to {100 * max(found):.2f} | {away} "
            f"| {costs} | {100 * first.density:.0f} % |"
        )
        if name == BASELINE:
            cut = [run.collapsed or 0.0 for run in runs]
            lines.append(
                f"| the same before its masked updates | {100 * statistics.fmean(cut):.2f} % "
                f"| {100 * min(cut):.2f} to {100 * max(cut):.2f} | {100 * (statistics.fmean(cut) - baseline):+.2f} "
                f"| {costs} | |"
            )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="as for gossamer train")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--epochs", type=int, default=12, help="of every run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="markdown file for the table")
    options = parser.parse_args()
    loaded = data.load(options.data)
    results: dict[str, list[Run]] = {method.name: [] for method in METHODS}
    with threadpoolctl.threadpool_limits(1, "blas"):
        for seed in range(options.seeds):
            for method in METHODS:
                run = train(method, loaded, options.sparsity, options.epochs, seed)
                results[method.name].append(run)
                print(f"seed {seed}, {method.name}: {100 * run.accuracy:.2f} %, {run.seconds:.0f} s", file=sys.stderr)
    steps = options.epochs * math.ceil(len(loaded.x_train) / BATCH)
    head = f"{loaded.name}, {'-'.join(map(str, HIDDEN))}, {steps:,} steps of {BATCH} samples, {options.seeds} seeds"
    text = "\n".join([f"{head}:", "", *table(results), ""])
    print(text)
    if options.out is not None:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
