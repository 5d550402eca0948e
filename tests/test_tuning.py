# SPDX-License-Identifier: Apache-2.0
"""tune: what is accepted, what is restored, what is evaluated when, and that none of it depends on chance."""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
import small_network
from gossamer.training import evaluation, model
from small_network import assert_same_state, trained_network


class Curve:
    """Callbacks whose validation metric is a given function of the measured sparsity; they record every call."""

    def __init__(self, metric: Callable[[float], float]) -> None:
        self.metric, self.calls = metric, list[str]()
        self.evaluated: list[tuple[str, Any]] = []
        self.trained_from: list[Any] = []
        generator = np.random.default_rng(5)
        self.params = {
            "w": generator.standard_normal((40, 50)),
            "b": generator.standard_normal(40),
            "v": generator.standard_normal((10, 100)),
        }

    def train(self, params: Any, mask: Any) -> Any:
        """Moves every kept weight, in place; the stream of random numbers does not depend on earlier rounds."""
        self.calls.append("train")
        self.trained_from.append(copy.deepcopy(params))
        for name, array in params.items():
            array += 0.01 * np.random.default_rng(len(name)).standard_normal(array.shape)
        return params

    def grads(self, params: Any) -> Any:
        self.calls.append("grads")
        return {name: np.cos(array) for name, array in params.items()}

    def evaluate(self, params: Any, split: str) -> float:
        self.calls.append(split)
        self.evaluated.append((split, copy.deepcopy(params)))
        zeros = sum(int((array == 0).sum()) for array in params.values())
        return self.metric(zeros / 3000)

    def tune(self, **options: Any) -> gs.Result:
        chosen = {"train": self.train, "evaluate": self.evaluate, "grads": self.grads, **options}
        return gs.tune(self.params, **chosen)


def falls_after(limit: float) -> Callable[[float], float]:
    """0.9 up to the limit, then less than any budget of the tests allows."""
    return lambda sparsity: 0.9 if sparsity <= limit else 0.5


def test_bisect_closes_in_on_the_limit() -> None:
    result = Curve(falls_after(0.8)).tune(rounds=20, resolution=0.005)
    assert 0.795 <= result.sparsity <= 0.8
    assert [entry.target for entry in result.history[:4]] == pytest.approx([0.5, 0.99, 0.745, 0.8675])
    assert [entry.accepted for entry in result.history[:4]] == [True, False, True, False]
    accepted = [entry.target for entry in result.history if entry.accepted]
    rejected = [entry.target for entry in result.history if not entry.accepted]
    assert accepted == sorted(accepted)
    assert min(rejected) - max(accepted) <= 0.005


def test_bisect_ends_early_at_either_end() -> None:
    assert [entry.target for entry in Curve(falls_after(1.0)).tune().history] == [0.5, 0.99]
    result = Curve(falls_after(0.1)).tune()
    assert [entry.target for entry in result.history] == [0.5]
    assert result.sparsity == 0


def test_ladder_climbs_until_the_first_rejection() -> None:
    result = Curve(falls_after(0.95)).tune(search="ladder", rounds=8)
    densities = [1 - entry.target for entry in result.history]
    assert densities[0] == 0.5
    np.testing.assert_allclose(np.divide(densities[1:], densities[:-1]), 0.02 ** (1 / 7))
    assert [entry.accepted for entry in result.history] == [True] * 5 + [False]
    assert result.sparsity == result.history[-2].sparsity
    result = Curve(falls_after(1.0)).tune(search="ladder", rounds=8)
    assert len(result.history) == 8
    assert result.history[-1].target == 0.99


@pytest.mark.parametrize("search", ["bisect", "ladder"])
def test_a_single_sparsity(search: Any) -> None:
    result = Curve(falls_after(1.0)).tune(search=search, sparsity=0.75)
    assert [entry.target for entry in result.history] == [0.75]
    assert result.sparsity == 0.75


def test_rounds_are_a_limit() -> None:
    assert len(Curve(falls_after(0.8)).tune(rounds=4, resolution=1e-6).history) == 4


def test_the_cycle_in_its_order() -> None:
    curve = Curve(falls_after(0.8))
    curve.tune(rounds=3)
    assert curve.calls == ["train", "validation", *["grads", "train", "validation"] * 3, "test"]


@pytest.mark.parametrize("search", ["bisect", "ladder"])
@pytest.mark.parametrize("limit", [0.1, 0.8, 1.0])
def test_the_test_split_is_seen_once_and_last(search: Any, limit: float) -> None:
    curve = Curve(falls_after(limit))
    result = curve.tune(search=search)
    assert curve.calls.count("test") == 1
    assert curve.calls[-1] == "test"
    assert_same_state(curve.evaluated[-1][1], result.params)


def test_a_rejected_state_is_restored_exactly() -> None:
    """After a rejection the next round starts from the accepted state, bit for bit, but for what it prunes itself."""
    curve = Curve(falls_after(0.8))
    result = curve.tune(rounds=10)
    states = [params for split, params in curve.evaluated if split == "validation"]
    best = states[0]
    for entry, candidate, start in zip(result.history, states[1:], curve.trained_from[1:], strict=True):
        for name, array in start.items():
            kept = array != 0
            assert array[kept].tobytes() == best[name][kept].tobytes()
        if entry.accepted:
            best = candidate
    assert_same_state(result.params, best)
    assert result.validation == 0.9
    assert not result.history[-1].accepted or not result.history[-2].accepted


def test_the_result_agrees_with_its_mask() -> None:
    curve = Curve(falls_after(0.8))
    result = curve.tune()
    assert set(result.mask) == {"w", "v"}
    for name, mask in result.mask.items():
        assert not result.params[name][~mask.to_dense()].any()
        assert result.params[name][mask.to_dense()].all()
    assert result.params["b"].all()
    last = [entry for entry in result.history if entry.accepted][-1]
    assert result.sparsity == last.sparsity == pytest.approx(last.target, abs=1e-3)


def test_inputs_are_unchanged_and_results_are_safe() -> None:
    """``train`` may keep and reuse the arrays it returns."""
    curve = Curve(falls_after(0.8))
    before, storage = copy.deepcopy(curve.params), copy.deepcopy(curve.params)

    def train(params: Any, mask: Any) -> Any:
        for name, array in curve.train(params, mask).items():
            storage[name][...] = array
        return storage

    result = curve.tune(train=train)
    assert_same_state(curve.params, before)
    reference = Curve(falls_after(0.8)).tune()
    assert_same_state(result.params, reference.params)


def test_pruned_weights_stay_pruned() -> None:
    curve = Curve(falls_after(1.0))
    masks: list[Any] = []
    curve.tune(search="ladder", train=lambda params, mask: (masks.append(mask), curve.train(params, mask))[1])
    for earlier, later in pairwise(masks):
        assert all((later[name] & earlier[name]) == later[name] for name in later)


@pytest.mark.parametrize(
    ("metric", "max_drop", "values", "accepted"),
    [
        ("accuracy", 0.005, (0.9, 0.895), True),
        ("accuracy", 0.005, (0.9, 0.8949), False),
        ("accuracy", 0.0, (0.9, 0.95), True),
        ("loss", 0.01, (0.30, 0.31), True),
        ("loss", 0.01, (0.30, 0.311), False),
        ("loss", 0.0, (0.30, 0.1), True),
        ("loss", 9.0, (0.30, math.inf), False),
        ("accuracy", 0.9, (0.9, math.nan), False),
        ("accuracy", 0.9, (0.9, math.inf), False),
    ],
)
def test_the_budget(metric: Any, max_drop: float, values: Any, accepted: bool) -> None:
    budget = gs.Budget(max_drop=max_drop, metric=metric)
    assert budget.accepts(*values) == accepted
    result = Curve(lambda sparsity: values[sparsity > 0]).tune(budget=budget, sparsity=0.5)
    assert result.history[0].accepted == accepted
    assert result.sparsity == (0.5 if accepted else 0)


def test_nan_for_the_dense_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="tune: evaluate must return a finite number for the dense network, got nan"):
        Curve(lambda sparsity: math.nan).tune()


def test_one_array() -> None:
    w = np.random.default_rng(0).standard_normal((30, 30))
    result = gs.tune(
        w,
        train=lambda params, mask: params * 1.5,
        evaluate=lambda params, split: 0.9 if (params == 0).mean() <= 0.7 else 0.1,
        score="magnitude",
    )
    assert isinstance(result.mask, gs.Mask)
    assert 0.69 < result.mask.sparsity <= 0.7
    assert result.mask == gs.prune(w, nnz=result.mask.nnz)[1]


@pytest.mark.parametrize(
    ("options", "prunable"),
    [
        ({"score": "random", "seed": 3}, {"w", "v"}),
        ({"score": "magnitude", "group": "global"}, {"w", "v"}),
        ({"score": "magnitude", "prunable": lambda name, array: name == "w"}, {"w"}),
        ({"score": "magnitude", "pattern": "row"}, {"w", "v"}),
        ({"score": "magnitude", "pattern": "1:2", "sparsity": 0.5}, {"w", "v"}),
        ({"score": lambda w, g, s: np.abs(w)}, {"w", "v"}),
    ],
)
def test_options_reach_prune(options: Any, prunable: set[str]) -> None:
    curve = Curve(falls_after(1.0))
    result = curve.tune(grads=None, **options)
    assert set(result.mask) == prunable
    assert result.history[0].accepted


def test_wanda_with_stats() -> None:
    def stats(params: Any) -> Any:
        found = {name: gs.Stats("norm") for name in ("w", "v")}
        for name, one in found.items():
            one.update(np.random.default_rng(0).standard_normal((20, params[name].shape[1])))
        return found

    result = Curve(falls_after(1.0)).tune(score="wanda", grads=None, stats=stats, sparsity=0.5)
    assert (result.mask["w"].to_dense().sum(axis=1) == 25).all()


def test_progress_sees_every_round() -> None:
    seen: list[Any] = []
    result = Curve(falls_after(0.8)).tune(progress=seen.append)
    assert tuple(seen) == result.history
    assert [entry.number for entry in seen] == list(range(1, len(seen) + 1))
    assert all(entry.seconds >= 0 for entry in seen)


def test_plain_values() -> None:
    result = Curve(falls_after(0.8)).tune()
    for clone in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert clone.history == result.history
        assert clone.mask == result.mask
        assert_same_state(clone.params, result.params)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"search": "grid"}, ValueError, "tune: search must be 'bisect' or 'ladder', got 'grid'"),
        ({"sparsity": (0.9, 0.5)}, ValueError, r"tune: sparsity must be \(low, high\) .* got \(0.9, 0.5\)"),
        ({"sparsity": (0.5, 1.3)}, ValueError, r"tune: sparsity must be .* got \(0.5, 1.3\)"),
        ({"sparsity": math.nan}, ValueError, "tune: sparsity must be .* got nan"),
        ({"sparsity": (0.1, 0.2, 0.3)}, TypeError, "tune: sparsity must be a number or a pair of them, got"),
        ({"sparsity": "most"}, TypeError, "tune: sparsity must be a number or a pair of them, got 'most'"),
        ({"rounds": 0}, ValueError, "tune: rounds must be at least 1, got 0"),
        ({"resolution": 0.0}, ValueError, "tune: resolution must be positive, got 0.0"),
        ({"grads": None}, ValueError, "tune: grads must be given for score 'taylor', got None"),
        ({"train": 3}, TypeError, "tune: train must be callable, got int"),
        ({"evaluate": None}, TypeError, "tune: evaluate must be callable, got NoneType"),
        ({"budget": 0.005}, TypeError, "tune: budget must be a Budget, got float"),
        ({"prunable": lambda name, array: False}, ValueError, "tune: params must hold a tensor that may be pruned"),
        ({"evaluate": lambda params, split: None}, TypeError, "tune: evaluate must return a number, got None"),
        ({"evaluate": lambda params, split: "0.9"}, TypeError, "tune: evaluate must return a number, got '0.9'"),
        ({"train": lambda params, mask: None}, TypeError, "tune: train must return what it gets"),
        ({"train": lambda params, mask: {"w": params["w"]}}, ValueError, "tune: train must return the names"),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Curve(falls_after(0.8)).tune(**options)


@pytest.mark.parametrize("bad", [-0.1, math.nan, math.inf])
def test_bad_budget(bad: float) -> None:
    with pytest.raises(ValueError, match="Budget: max_drop must be finite and not negative, got"):
        gs.Budget(bad)


def test_bad_metric() -> None:
    with pytest.raises(ValueError, match="Budget: metric must be 'accuracy' or 'loss', got 'f1'"):
        gs.Budget(metric="f1")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- a real network


def tune_digits(**options: Any) -> gs.Result:
    chosen = {"budget": gs.Budget(0.02), "rounds": 4, "group": "global", **options}
    return gs.tune(
        trained_network(),
        train=small_network.train,
        evaluate=small_network.evaluate,
        grads=small_network.grads,
        **chosen,
    )


def test_digits() -> None:
    result = tune_digits(search="ladder", sparsity=(0.5, 0.95), rounds=6)
    assert result.baseline > 0.94
    assert result.validation >= result.baseline - 0.02 - 1e-12
    assert result.test > 0.9
    assert result.sparsity > 0.6
    assert evaluation.sparsity(result.params) == pytest.approx(result.sparsity, abs=1e-3)
    sparse = model.to_sparse(result.params, result.mask)
    data = small_network.digits()
    assert evaluation.evaluate(sparse, data.x_test, data.y_test).accuracy == result.test


def test_same_seed_same_result_for_any_number_of_threads(threads: None) -> None:
    results = []
    for count in (1, 2, 1):
        gs.set_num_threads(count)
        results.append(tune_digits())
    for other in results[1:]:
        assert other.history == results[0].history
        assert other.mask == results[0].mask
        assert other.test == results[0].test
        assert_same_state(other.params, results[0].params)


def test_report_is_written(tmp_path: Path) -> None:
    result = Curve(falls_after(0.8)).tune(rounds=3)
    result.report(tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [entry["accepted"] for entry in report["history"]] == [True, False, True]
    assert report["final"]["accuracy"] == result.test
    assert (tmp_path / "out" / "report.md").exists()


def test_random_scores_depend_on_the_seed() -> None:
    masks = [Curve(falls_after(1.0)).tune(score="random", sparsity=0.5, seed=seed).mask for seed in (1, 1, 2)]
    assert masks[0] == masks[1] != masks[2]
