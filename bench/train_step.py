# SPDX-License-Identifier: Apache-2.0
"""A whole training step of a pruned network: on its kept weights alone, against the masked dense step of numpy.

Both start from the same network and are checked against each other after three steps; then they take turns, and so do
their parts: forward pass, gradients by inputs (dX) and by weights (dW), update. What the parts leave of a step are the
loss, the slope of the activation and the gradients of the biases.

    python bench/train_step.py --json train_step.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
from rich.console import Console
from rich.table import Table

import gossamer as gs
from gossamer.layers import value_gradient
from gossamer.training import losses, model, optimizers
from gossamer.training.steps import SparseTraining
from inputs import Array, Job
from measuring import describe_run

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optimizers.SGD(0.1, momentum=0.9),
    "adamw": lambda: optimizers.AdamW(1e-4, epsilon=1e-4),
}
PARTS = ("step", "forward", "dX", "dW", "update")


class Problem:
    """A network of ``sizes``, pruned by magnitude, with a batch to fit; a dense and a sparse training of it."""

    def __init__(self, sizes: list[int], batch: int, sparsity: float, optimizer: str) -> None:
        rng = np.random.default_rng(0)
        self.params = model.initialize(sizes, rng)
        pruned, self.masks = gs.prune(model.weights(self.params), sparsity=sparsity)
        self.params.update(pruned)
        self.x = rng.standard_normal((batch, sizes[0]), dtype=np.float32)
        self.y = rng.standard_normal((batch, sizes[-1]), dtype=np.float32)
        self.optimizer = OPTIMIZERS[optimizer]()
        self.training = SparseTraining(self.params, self.masks, OPTIMIZERS[optimizer](), loss=losses.mean_squared_error)
        self.grads: dict[str, Array] = {}

    def dense_step(self) -> None:
        values = model.activations(self.params, self.x)
        gradient = losses.mean_squared_error(values[-1], self.y)[1]
        self.grads = model.backward(self.params, values, gradient, out=self.grads or None)
        self.optimizer.step(self.params, self.grads, self.masks)

    def sparse_step(self) -> None:
        self.training.step(self.x, self.y)

    def check(self) -> None:
        """Three steps of each, and the same weights."""
        for _ in range(3):
            self.dense_step()
            self.sparse_step()
        result = model.copy(self.params)
        self.training.write(result)
        for name, expected in self.params.items():
            np.testing.assert_allclose(result[name], expected, rtol=0, atol=1e-4 * float(np.abs(expected).max()))
        self.optimizer.rate = self.training.optimizer.rate = 1e-9  # from here on the same step is timed again and again

    def parts(self) -> dict[str, tuple[Job, Job]]:
        """Each part on its own, sparse and dense, on the present state."""
        training, params, names = self.training, self.params, list(self.masks)
        values = model.activations(params, self.x)
        pairs = [
            (
                name,
                np.ascontiguousarray(np.random.default_rng(k).standard_normal(after.shape, dtype=np.float32)),
                before,
            )
            for k, (name, (before, after)) in enumerate(zip(names, pairwise(values), strict=True))
        ]
        dense = {name: np.zeros_like(params[name]) for name in names}
        sparse_grads = training.gradients(training.activations(self.x), pairs[-1][1])
        return {
            "step": (self.sparse_step, self.dense_step),
            "forward": (lambda: training.activations(self.x), lambda: model.activations(params, self.x)),
            "dX": (
                lambda: [gs.linear(dy, training.matrices[name].T) for name, dy, _ in pairs[1:]],
                lambda: [dy @ params[name] for name, dy, _ in pairs[1:]],
            ),
            "dW": (
                lambda: [value_gradient(dy, x, training.matrices[name]) for name, dy, x in pairs],
                lambda: [np.matmul(dy.T, x, out=dense[name]) for name, dy, x in pairs],
            ),
            "update": (
                lambda: training.update(sparse_grads),
                lambda: self.optimizer.step(params, self.grads, self.masks),
            ),
        }


def in_turns(jobs: tuple[Job, Job], seconds: float) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for job in jobs:
        job()
    began = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() - began < seconds:
        for job, all_times in zip(jobs, times, strict=True):
            start = time.perf_counter()
            job()
            all_times.append(time.perf_counter() - start)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 4096, 1024], help="units of the layers")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--optimizers", choices=OPTIMIZERS, nargs="+", default=list(OPTIMIZERS))
    parser.add_argument("--threads", type=int, default=gs.get_num_threads(), help="of both")
    parser.add_argument("--seconds", type=float, default=2.0, help="that a line takes at least")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    options = parser.parse_args()
    gs.set_num_threads(options.threads)
    console = Console()
    rows: list[dict[str, Any]] = []
    with threadpoolctl.threadpool_limits(options.threads):
        lines = describe_run()
        for line in lines:
            console.print(line, style="dim", highlight=False)
        for optimizer in options.optimizers:
            for sparsity in options.sparsity:
                problem = Problem(options.sizes, options.batch, sparsity, optimizer)
                problem.check()
                for part, jobs in problem.parts().items():
                    ours, dense = in_turns(jobs, options.seconds)
                    ratio = statistics.median(d / o for o, d in zip(ours, dense, strict=True))
                    row = {"optimizer": optimizer, "sparsity": sparsity, "part": part, "ratio": ratio}
                    row |= {"sparse_ms": statistics.median(ours) * 1e3, "dense_ms": statistics.median(dense) * 1e3}
                    rows.append(row | {"turns": len(ours)})
    table = Table(title=f"A training step: {'-'.join(map(str, options.sizes))}, batch {options.batch}")
    for heading in ("optimizer", "sparsity", "part", "sparse", "dense", "dense / sparse", "turns"):
        table.add_column(heading, justify="left" if heading in ("optimizer", "part") else "right")
    for row in rows:
        if row["part"] == PARTS[0]:
            table.add_section()
        table.add_row(
            row["optimizer"],
            f"{row['sparsity']:.0%}",
            row["part"],
            f"{row['sparse_ms']:.2f} ms",
            f"{row['dense_ms']:.2f} ms",
            f"{row['ratio']:.2f}",
            str(row["turns"]),
        )
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps({"run": lines, "rows": rows}, indent=1) + "\n")
    return 0 if all(row["ratio"] > 1 for row in rows if row["part"] == PARTS[0]) else 1


if __name__ == "__main__":
    sys.exit(main())
