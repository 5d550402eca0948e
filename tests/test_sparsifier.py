# SPDX-License-Identifier: Apache-2.0
"""Sparsifier: the schedule is followed exactly, pruned stays pruned, state is small and plain, errors."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import gossamer as gs

METHODS = ["magnitude", "gradient", "taylor", "random"]


def kept(n: int, sparsity: float) -> int:
    return n - math.floor(n * round(sparsity, 12) + 0.5)


def params_and_grads(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    shapes = {"a": (12, 20), "b": (7, 9)}
    return tuple({name: rng.standard_normal(shape) for name, shape in shapes.items()} for _ in range(2))  # type: ignore[return-value]


def run(sparsifier: gs.Sparsifier, rng: np.random.Generator, steps: int = 60) -> list[tuple[int, Any, Any]]:
    """(step, state, event) of a mock training whose weights are redrawn at every step, pruned ones included."""
    params, _ = params_and_grads(rng)
    state, result = sparsifier.init(params), []
    for step in range(steps):
        params, grads = params_and_grads(rng)
        state, event = sparsifier.step(state, params, grads, step)
        result.append((step, state, event))
    return result


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group", [None, "tensor", "global"])
def test_follows_the_schedule_exactly(method: str, group: str | None, rng: np.random.Generator) -> None:
    schedule = gs.Cubic(start=10, end=45, every=10)
    sparsifier = gs.Sparsifier(method, 0.9, group=group, schedule=schedule, initial=0.1, seed=3)
    for step, state, event in run(sparsifier, rng):
        sparsity = schedule(step, 0.9, 0.1) if step >= 10 else 0.0
        if group == "global":
            assert sum(mask.nnz for mask in state.mask.values()) == kept(303, sparsity)
        else:
            assert {name: mask.nnz for name, mask in state.mask.items()} == {
                "a": kept(240, sparsity),
                "b": kept(63, sparsity),
            }
        assert event.updated == (step in (10, 20, 30, 40, 45))
        if event.updated:
            assert state.sparsity == sparsity


@pytest.mark.parametrize("method", METHODS)
def test_pruned_stays_pruned_and_events_say_what_went(method: str, rng: np.random.Generator) -> None:
    sparsifier = gs.Sparsifier(method, 0.95, schedule=gs.Cubic(0, 50, 5), seed=0)
    before = sparsifier.init(params_and_grads(rng)[0]).mask
    for _, state, event in run(sparsifier, rng):
        for name, mask in state.mask.items():
            assert (mask & before[name]) == mask
            gone = event.dropped.get(name)
            if gone is None:
                assert mask == before[name]
            else:
                assert gone.nnz == before[name].nnz - mask.nnz > 0
                assert (gone | mask) == before[name]
        assert not event.grown
        assert event.changed == bool(event.dropped)
        before = state.mask


def test_first_update_is_plain_prune(rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("taylor", 0.7, group="global")
    state, event = sparsifier.step(sparsifier.init(params), params, grads, 0)
    assert state.mask == gs.prune(params, grads, method="taylor", sparsity=0.7, group="global")[1]
    assert {name: mask.nnz for name, mask in event.dropped.items()} == {
        name: array.size - state.mask[name].nnz for name, array in params.items()
    }


def test_params_are_not_touched(rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    before = copy.deepcopy((params, grads))
    sparsifier = gs.Sparsifier("taylor", 0.7)
    sparsifier.step(sparsifier.init(params), params, grads, 0)
    for left, right in zip((params, grads), before, strict=True):
        assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_one_array(rng: np.random.Generator) -> None:
    w = rng.standard_normal((8, 8))
    sparsifier = gs.Sparsifier("magnitude", 0.5)
    state, event = sparsifier.step(sparsifier.init(w), w, None, 0)
    assert state.mask == gs.prune(w, sparsity=0.5)[1]
    assert event.dropped[""] == ~state.mask


def test_skipped_and_repeated_steps(rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("magnitude", 0.9, schedule=gs.Cubic(0, 100, 10))
    state, event = sparsifier.step(sparsifier.init(params), params, grads, 37)
    assert event.updated
    assert state.updated == 30
    assert state.mask["a"].nnz == kept(240, gs.Cubic(0, 100, 10)(37, 0.9))
    again, event = sparsifier.step(state, params, grads, 39)
    assert again is state
    assert not event.updated
    state, _ = sparsifier.step(state, params, grads, 10_000)
    assert state.mask["a"].nnz == kept(240, 0.9)
    assert sparsifier.step(state, params, grads, 20_000)[0] is state


def test_nothing_is_scored_between_updates(rng: np.random.Generator) -> None:
    calls: list[tuple[int, ...]] = []

    def method(w: Any, g: Any, stats: Any) -> Any:
        calls.append(w.shape)
        return np.abs(w)

    run(gs.Sparsifier(method, 0.9, schedule=gs.Cubic(0, 50, 25)), rng)
    assert calls == [(12, 20), (7, 9)] * 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
def test_goes_on_after_saving(clone: Any, rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("taylor", 0.9, schedule=gs.Cosine(0, 40, 10))
    state, _ = sparsifier.step(sparsifier.init(params), params, grads, 20)
    restored, other = clone((state, sparsifier))
    assert restored == state
    assert other == sparsifier
    assert other.step(restored, params, grads, 40)[0] == sparsifier.step(state, params, grads, 40)[0]


def test_a_sparsity_per_tensor(rng: np.random.Generator) -> None:
    targets = {"a": 0.9, "b": 0.5}
    sparsifier = gs.Sparsifier("taylor", targets, schedule=gs.Cubic(0, 40, 10))
    state = run(sparsifier, rng)[-1][1]
    assert {name: mask.nnz for name, mask in state.mask.items()} == {"a": kept(240, 0.9), "b": kept(63, 0.5)}
    assert state.sparsity == targets
    with pytest.raises(ValueError, match=r"Sparsifier.step: sparsity must name the tensors \['a', 'b'\], got \['a'\]"):
        run(gs.Sparsifier("taylor", {"a": 0.9}), rng)


@pytest.mark.parametrize(("pattern", "sparsity"), [("row", 0.5), ("col", 0.5), ("block:2x2", 0.75)])
def test_structured(pattern: str, sparsity: float, rng: np.random.Generator) -> None:
    w = rng.standard_normal((8, 16))
    sparsifier = gs.Sparsifier("magnitude", sparsity, pattern=pattern, schedule=gs.Cubic(0, 30, 10))
    state = sparsifier.init(w)
    for step in range(31):
        w = rng.standard_normal((8, 16))
        state, _ = sparsifier.step(state, w, None, step)
    assert state.mask.sparsity == sparsity


@pytest.mark.parametrize("schedule", [gs.OneShot(at=3), gs.Constant(every=4)])
def test_n_of_m(schedule: Any, rng: np.random.Generator) -> None:
    sparsifier, state = gs.Sparsifier("magnitude", 0.5, pattern="2:4", schedule=schedule), None
    for step in range(10):
        w = rng.standard_normal((6, 8))
        state = sparsifier.init(w) if state is None else state
        state, _ = sparsifier.step(state, w, None, step)
    assert state is not None
    assert (state.mask.to_dense().reshape(6, 2, 4).sum(axis=-1) == 2).all()


def test_wanda_takes_stats(rng: np.random.Generator) -> None:
    w, x = rng.standard_normal((6, 8)), rng.standard_normal((20, 8))
    stats = gs.Stats("norm")
    stats.update(x)
    sparsifier = gs.Sparsifier("wanda", 0.5)
    state, _ = sparsifier.step(sparsifier.init(w), w, None, 0, stats=stats)
    assert (state.mask.to_dense().sum(axis=1) == 4).all()
    assert state.mask == gs.prune(w, method="wanda", stats=stats, sparsity=0.5)[1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gs.Sparsifier("taylor", 1.3), ValueError, r"Sparsifier: sparsity must be in \[0, 1\], got 1.3"),
        (lambda: gs.Sparsifier("taylor", math.nan), ValueError, r"Sparsifier: sparsity must be in \[0, 1\], got nan"),
        (lambda: gs.Sparsifier("taylor", 0.3, initial=0.5), ValueError, r"sparsity must be in \[0.5, 1\]"),
        (lambda: gs.Sparsifier("taylor", {"a": 2}), ValueError, "sparsity must be .* got 2 for 'a'"),
        (lambda: gs.Sparsifier("taylor", "0.5"), TypeError, "Sparsifier: sparsity must be a number, got '0.5'"),
        (lambda: gs.Sparsifier("taylor", 0.5, initial=-1), ValueError, "Sparsifier: initial must be in"),
        (lambda: gs.Sparsifier(3, 0.5), TypeError, "Sparsifier: method must be a name or a callable, got int"),
        (lambda: gs.Sparsifier("taylor", 0.5, schedule=3), TypeError, "Sparsifier: schedule must be a schedule"),
        (lambda: gs.Sparsifier("taylor", 0.5, schedule=gs.Cubic), TypeError, "Sparsifier: schedule must be a schedule"),
        (lambda: gs.Sparsifier("taylor", {"a": 0.5}, group="global"), ValueError, "must be one number for group"),
        (
            lambda: gs.Sparsifier("taylor", 0.5, pattern="2:4", schedule=gs.Cubic(0, 9, 1)),
            ValueError,
            "Sparsifier: schedule must be OneShot or Constant for pattern '2:4', got Cubic",
        ),
        (lambda: gs.Sparsifier("taylor", 0.5, regrow="rigl"), NotImplementedError, "Sparsifier: regrow"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_other_params_than_init_saw(rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("taylor", 0.5)
    state = sparsifier.init(params)
    with pytest.raises(ValueError, match=r"Sparsifier\.step: params must have the names and shapes init saw"):
        sparsifier.step(state, {"a": params["a"]}, grads, 0)
    with pytest.raises(ValueError, match=r"Sparsifier\.step: params must have the names and shapes init saw"):
        sparsifier.step(state, {**params, "b": params["a"]}, grads, 0)


def test_missing_gradients(rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    sparsifier = gs.Sparsifier("taylor", 0.5)
    with pytest.raises(ValueError, match="grads"):
        sparsifier.step(sparsifier.init(params), params, None, 0)
