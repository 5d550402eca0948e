# SPDX-License-Identifier: Apache-2.0
"""What ``gossamer train`` does, from data to report: the whole path on one small network.

1. LeNet-300-100 (LeCun 1998) is trained densely until validation stops improving.
2. The collapse: how the network does when it is pruned in one shot, without training.
3. Rounds on a cubic schedule (Zhu & Gupta 2017, 1710.01878): importance from training data, prune, train what is left
   under the mask, validate. A round beyond the budget is undone and tried again with half the step.
4. Fine-tuning at the final sparsity, kept only if validation is not worse for it.
5. Test data, for the first time: the dense network, the collapsed one, and the final one on sparse kernels.

Everything random is drawn from the seed; the same seed and the same BLAS give the same result, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import threadpoolctl

import gossamer as gs
from gossamer.reporting import layer
from gossamer.schedules import Schedule
from gossamer.scoring import METHODS
from gossamer.training import evaluation, importance, loop, model
from gossamer.training.data import Dataset
from gossamer.training.optimizers import Adam
from gossamer.training.updating import Keeper

__all__ = ["METHODS", "Options", "Outcome", "run"]

HIDDEN = (300, 100)
RATES = (1e-3, 2e-4)  # Adam's: the second once the first brings nothing more
ROUND_RATES = (2e-3, 1e-4)  # falls within each round; at a constant rate its noise alone can cost the budget
MIN_STEPS, MAX_STEPS = 1500, 10_000  # of dense training at the first rate; the maximum is for data that fits for ever
ROUNDS, ROUND_STEPS = 12, 250  # a round trains whole epochs, at least one
TICKS = 4  # parts of a round that a rejected one can be cut into
IMPORTANCE_SAMPLES = 8192  # all 54,000 of Fashion-MNIST were no better (validation 89.0 % against 89.1 %, one run)
MAX_DROP = 0.02  # of validation accuracy, against the dense network

Array: TypeAlias = Any
Masks: TypeAlias = Mapping[str, gs.Mask]
Progress: TypeAlias = Callable[[str, float | None, str], None]  # phase, share done (None: unknown), a few words


@dataclass(frozen=True)
class Options:
    """What a user chooses. Raises ValueError for what cannot be.

    ``epochs`` of dense training, and no more in any round or in fine-tuning; None: until validation stops improving,
    densely at least 1,500 steps.
    """

    method: str = "taylor"
    sparsity: float = 0.95
    epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"train: method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"train: sparsity must be in [0, 1), got {self.sparsity}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"train: epochs must be at least 1, got {self.epochs}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"train: seed must be in [0, 2**63), got {self.seed}")


@dataclass(frozen=True)
class Outcome:
    """The report (see :mod:`gossamer.reporting`), and the pruned network: params, masks and its sparse form."""

    report: dict[str, Any]
    params: dict[str, Array]
    masks: dict[str, gs.Mask]
    network: model.SparseMLP
    mean: Array
    factor: Array

    def save(self, path: str | PathLike[str]) -> None:
        """Weights as sparse matrices, biases, and how inputs are standardised, in one safetensors file. OSError."""
        names = model.weights(self.params)
        gs.save(
            path,
            {
                **dict(zip(names, self.network.matrices, strict=True)),
                **model.biases(self.params),
                "input.mean": self.mean,
                "input.factor": self.factor,
            },
        )


def run(data: Dataset, options: Options, progress: Progress = lambda phase, share, words: None) -> Outcome:
    """Train, prune and evaluate on ``data``. Raises FloatingPointError where training diverges, RuntimeError where the
    sparse network disagrees with the masked dense one by more than rounding.
    """
    # One BLAS thread: more make the result depend on the machine and bring such small products little (an epoch on
    # two cores: 1.2 s instead of 1.5 s), and beside two busy processes they cost 21 s instead of 2.7 s.
    with threadpoolctl.threadpool_limits(1, "blas"):
        return _Run(data, options, progress).outcome()


@dataclass
class _Run:
    data: Dataset
    options: Options
    progress: Progress
    curve: list[dict[str, Any]] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    moved: dict[str, gs.Stats] = field(default_factory=dict)
    step: int = 0

    def __post_init__(self) -> None:
        samples = len(self.data.x_train)
        self.batch_size = 128 if samples >= 10_000 else 32
        self.steps_per_epoch = math.ceil(samples / self.batch_size)
        self.round_epochs = min(max(1, round(ROUND_STEPS / self.steps_per_epoch)), self.options.epochs or MAX_STEPS)
        self.validation = (self.data.x_valid, self.data.y_valid)

    def outcome(self) -> Outcome:
        started = time.perf_counter()
        dense = self.train_dense()
        seconds = {"dense": time.perf_counter() - started}
        cut, cut_masks, cut_curve = self.collapse(dense)
        keeper = self.prune_in_rounds(dense)
        within = keeper.value >= keeper.baseline - MAX_DROP
        self.fine_tune(keeper)
        params, masks = keeper.params, keeper.masks
        seconds["pruning"] = time.perf_counter() - started - seconds["dense"]

        self.progress("evaluate", None, "on test data")
        network = model.to_sparse(params, masks)
        report = {
            "data": self.data.name,
            "model": "-".join(["LeNet", *map(str, HIDDEN)]),
            "method": self.options.method,
            "seed": self.options.seed,
            "dense": self.costs(dense) | {"steps": self.dense_steps},
            "one_shot": self.costs(cut, cut_masks) | {"curve": cut_curve},
            "final": self.costs(params, masks) | self.compare(params, network),
            "budget": {"max_drop": MAX_DROP, "metric": "accuracy", "kept": within},
            "history": self.history,
            "curve": self.curve,
            "layers": self.layers(params, masks),
            "inputs": self.inputs(masks),
            "latency": self.latencies(dense, network),
            "samples": {part: len(getattr(self.data, f"y_{part}")) for part in ("train", "valid", "test")},
            "cleaning": dict(self.data.cleaning),
        }
        report |= {"notes": _notes(report), "phases": seconds, "seconds": time.perf_counter() - started}
        return Outcome(report, params, masks, network, self.data.mean, self.data.factor)

    def train_dense(self) -> dict[str, Array]:
        """Step 1. With ``epochs`` given two thirds of them run at the first rate; the best epoch counts either way."""
        sizes = [self.data.x_train.shape[1], *HIDDEN, self.data.classes]
        params = model.initialize(sizes, np.random.default_rng(self.options.seed))
        size, free = (sum(w.size for w in of.values()) for of in (model.weights(params), self.prunable(params)))
        self.pruned_per_prunable = size / free
        self.anneal("dense", params, RATES, least=MIN_STEPS)
        self.dense_steps = self.step
        return params

    def anneal(
        self, phase: str, params: dict[str, Array], rates: tuple[float, ...], masks: Masks | None = None, least: int = 0
    ) -> None:
        """Train in place at one rate after the other, each until validation stops improving or its epochs are used up.

        `least` steps are taken at the first rate in any case.
        """
        given = self.options.epochs
        done, optimizer = 0, Adam()
        for number, rate in enumerate(rates, start=1):
            optimizer.rate = rate
            count, patience = math.ceil(MAX_STEPS / self.steps_per_epoch), 2 * self.round_epochs
            if given is not None:  # no early end, but the best epoch counts as ever
                count = given - done if number == len(rates) else math.ceil(given * 2 / 3)
                patience = count + 1
            how = {"masks": masks, "patience": patience, "min_steps": least if number == 1 else 0}
            for epoch in self.epochs(phase, params, optimizer, count, **how):
                done += 1
                words = f"epoch {done}, validation {_percent(epoch.validation_accuracy)}"
                self.progress(phase, None if given is None else done / given, words)

    def epochs(
        self, phase: str, params: dict[str, Array], optimizer: Adam, count: int, **how: Any
    ) -> Iterator[loop.Epoch]:
        """Train ``params`` in place for ``count`` epochs and note each in the curve."""
        if count == 0:
            return
        before, seed = self.step, [self.options.seed, self.step]

        def on_step(step: int, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
            if phase == "prune":
                high, low = ROUND_RATES
                optimizer.rate = high + (low - high) * step / (count * self.steps_per_epoch)
            if self.options.method == "movement":  # summed over all steps of training, as in the paper
                importance.update_movement(self.moved, params, grads)

        for epoch in loop.train(
            params, optimizer, self.data.x_train, self.data.y_train, validation=self.validation, epochs=count,
            batch_size=self.batch_size, seed=np.random.default_rng(seed), on_step=on_step, **how,
        ):  # fmt: skip
            self.step = before + epoch.step
            self.curve.append(
                {
                    "step": self.step,
                    "phase": phase,
                    "accuracy": epoch.validation_accuracy,
                    "validation_loss": epoch.validation_loss,
                    "train_loss": epoch.train_loss,
                    "sparsity": evaluation.sparsity(params) if how.get("masks") else 0.0,
                }
            )
            yield epoch

    def collapse(self, dense: dict[str, Array]) -> tuple[dict[str, Array], Masks, list[dict[str, Any]]]:
        """Step 2: the dense network pruned in one shot; validation accuracy of that at each sparsity of the rounds."""
        schedule, curve = gs.Cubic(start=0, end=ROUNDS), []
        statistics, weights = self.statistics(dense), self.prunable(dense)
        for number in range(1, ROUNDS + 1):
            self.progress("one shot", number / ROUNDS, "pruning without training")
            sparsifier = self.sparsifier(schedule(number, self.options.sparsity), gs.OneShot())
            state, _ = sparsifier.step(sparsifier.init(weights), weights, statistics.grads, 0, stats=statistics.stats)
            cut = model.copy(dense)
            model.apply_masks(cut, state.mask)
            curve.append({"sparsity": evaluation.sparsity(cut), "accuracy": self.accuracy(cut)})
        return cut, dict(state.mask), curve

    def prune_in_rounds(self, dense: dict[str, Array]) -> Keeper:
        """Step 3: the keeper holds the last accepted network, at the end one of the final sparsity."""
        keeper = Keeper(dense, validate=self.accuracy, budget=gs.Budget(MAX_DROP))
        end = ROUNDS * TICKS
        sparsifier = self.sparsifier(self.options.sparsity, gs.Cubic(0, end))
        state, moved = sparsifier.init(self.prunable(dense)), self.moved
        tick, stride = 0, TICKS
        while tick < end:
            params, target = keeper.params, min(tick + stride, end)
            self.moved = deepcopy(moved)  # a rejected round's is forgotten with it
            found = self.statistics(params)
            candidate, _ = sparsifier.step(state, self.prunable(params), found.grads, target, stats=found.stats)
            masks = dict(candidate.mask)
            for _ in self.epochs("prune", params, Adam(), self.round_epochs, masks=masks):
                pass
            if self.consider(keeper, params, masks):
                state, moved, tick, stride = candidate, self.moved, target, TICKS
            elif stride > 1:
                stride //= 2
            else:  # the sparsity is an order, the budget a wish: go on, and say so in the report
                keeper.budget = gs.Budget(1.0)
            removed = f"{_percent(self.history[-1]['sparsity'])} removed"
            self.progress("prune", tick / end, f"{removed}, validation {_percent(self.history[-1]['accuracy'])}")
        return keeper

    def fine_tune(self, keeper: Keeper) -> None:
        """Step 4, at the lower rate: the higher one first took twice the steps and ended no better (one run)."""
        params, masks = keeper.params, keeper.masks
        self.anneal("fine-tune", params, RATES[-1:], masks)
        keeper.budget, keeper.compare = gs.Budget(0.0), "last"
        self.consider(keeper, params, masks)

    def consider(self, keeper: Keeper, params: dict[str, Array], masks: dict[str, gs.Mask]) -> bool:
        """Validate, accept or reject, and note the round in the history."""
        decision = keeper.consider(params, masks)
        self.history.append(
            {
                "sparsity": evaluation.sparsity(params),
                "validation_loss": evaluation.evaluate(params, *self.validation).loss,
                "accuracy": decision.after,
                "accepted": decision.accepted,
                "step": self.step,
            }
        )
        return decision.accepted

    def accuracy(self, params: dict[str, Array]) -> float:
        return float(evaluation.evaluate(params, *self.validation).accuracy or 0.0)

    def sparsifier(self, sparsity: float, schedule: Schedule) -> gs.Sparsifier:
        """All layers compete: 95 % of each on its own cost 0.6 (gradient) to 1.1 (wanda) points of validation more.

        Not with fpgm, which compares the rows of one layer: its hidden layers share out the whole sparsity evenly.
        """
        group = "tensor" if self.options.method == "fpgm" else "global"
        share = min(1.0, sparsity * self.pruned_per_prunable)
        return gs.Sparsifier(self.options.method, share, group=group, schedule=schedule, seed=self.options.seed)

    def prunable(self, params: Mapping[str, Array]) -> dict[str, Array]:
        """The weights that compete: all; with fpgm not the output layer, whose rows are the classes."""
        names = list(model.weights(params))
        return {name: params[name] for name in (names[:-1] if self.options.method == "fpgm" else names)}

    def statistics(self, params: dict[str, Array]) -> importance.Statistics:
        """What the method needs, from a sample of the training data that differs from round to round."""
        if self.options.method == "movement":
            return importance.Statistics(stats=self.moved)
        count = min(IMPORTANCE_SAMPLES, len(self.data.x_train))
        generator = np.random.default_rng([self.options.seed, self.step, 1])
        index = np.sort(generator.choice(len(self.data.x_train), count, replace=False))
        return importance.collect(self.options.method, params, self.data.x_train[index], self.data.y_train[index])

    def costs(self, params: dict[str, Array], masks: Masks | None = None) -> dict[str, Any]:
        """Accuracy on test and validation data, sparsity counted on the arrays, bytes and FLOPs."""
        test = evaluation.evaluate(params, self.data.x_test, self.data.y_test)
        valid = evaluation.evaluate(params, *self.validation)
        return {
            "accuracy": test.accuracy,
            "loss": test.loss,
            "validation_accuracy": valid.accuracy,
            "validation_loss": valid.loss,
            "sparsity": evaluation.sparsity(params),
            "bytes": evaluation.stored_bytes(params, masks),
            "flops": evaluation.flops(params, masks),
        }

    def compare(self, params: dict[str, Array], network: model.SparseMLP) -> dict[str, Any]:
        """The network on sparse kernels against the masked dense one, on all test data."""
        expected = model.forward(params, self.data.x_test)
        found = network.predict(self.data.x_test)
        difference = float(np.abs(found - expected).max())
        if not difference <= 1e-4 * float(np.abs(expected).max()):
            raise RuntimeError(f"train: the sparse network must give what the dense one does, got {difference} more")
        labels = found.argmax(axis=1)
        return {
            "predictions": len(labels),
            "predictions_differ": int((labels != expected.argmax(axis=1)).sum()),
            "largest_difference": difference,
            "sparse_accuracy": float((labels == self.data.y_test).mean()),
            "sparse_nbytes": network.nbytes,
            "formats": [matrix.format for matrix in network.matrices],
        }

    def latencies(self, dense: dict[str, Array], network: model.SparseMLP) -> list[dict[str, float]]:
        """Median seconds a call, dense in numpy against sparse in gossamer, for one sample and for a batch."""
        found = []
        for batch in (1, 128):
            self.progress("evaluate", None, f"latency at batch {batch}")
            times = evaluation.latency(dense, network, self.data.x_test[:batch], repeats=100)
            found.append({"batch": batch, "dense": times.dense, "sparse": times.sparse, "speedup": times.speedup})
        return found

    def layers(self, params: dict[str, Array], masks: dict[str, gs.Mask]) -> list[dict[str, Any]]:
        kept = {
            name: masks[name].nnz if name in masks else weight.size for name, weight in model.weights(params).items()
        }
        return [
            layer(name.removesuffix(".weight"), count, params[name].size, shape=list(params[name].shape))
            for name, count in kept.items()
        ]

    def inputs(self, masks: dict[str, gs.Mask]) -> list[list[int]]:
        """For images: how many weights of the first layer each pixel keeps."""
        if len(self.data.input_shape) != 2:
            return []
        counts = masks["layer1.weight"].to_dense().sum(axis=0).reshape(self.data.input_shape)
        return [[int(count) for count in row] for row in counts]


def _notes(report: dict[str, Any]) -> list[str]:
    """What a reader of the table should know besides."""
    final, budget = report["final"], report["budget"]
    differ = final["predictions_differ"]
    same = "all" if not differ else f"all but {differ:,}"
    notes = [
        f"On sparse kernels ({', '.join(final['formats'])}) the pruned network predicts what the masked dense one does "
        f"for {same} of {final['predictions']:,} test samples."
    ]
    for entry in report["latency"]:
        dense, sparse = 1e6 * entry["dense"], 1e6 * entry["sparse"]
        notes.append(f"Latency at batch {entry['batch']}: dense (numpy) {dense:,.0f} us, sparse {sparse:,.0f} us.")
    if not budget["kept"]:
        notes.append(f"Validation fell by more than {_percent(budget['max_drop'])}, the budget of a round.")
    return notes


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f} %"
