# SPDX-License-Identifier: Apache-2.0
"""Sparsifier: the schedule is followed exactly, pruned stays pruned, state is small and plain, errors."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import values
from gossamer import reference

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
        (lambda: gs.Sparsifier(3, 0.5), TypeError, "Sparsifier: method must be a str or a callable, got int"),
        (lambda: gs.Sparsifier("taylor", 0.5, schedule=3), TypeError, "Sparsifier: schedule must be a schedule"),
        (lambda: gs.Sparsifier("taylor", 0.5, schedule=gs.Cubic), TypeError, "Sparsifier: schedule must be a schedule"),
        (lambda: gs.Sparsifier("taylor", {"a": 0.5}, group="global"), ValueError, "must be one number for group"),
        (
            lambda: gs.Sparsifier("taylor", 0.5, pattern="2:4", schedule=gs.Cubic(0, 9, 1)),
            ValueError,
            "Sparsifier: schedule must be OneShot or Constant for pattern '2:4', got Cubic",
        ),
        (lambda: gs.Sparsifier("taylor", 0.5, regrow="rigl"), TypeError, "Sparsifier: regrow must be None, SET"),
        (lambda: gs.Sparsifier("taylor", 0.5, regrow=gs.SET), TypeError, "Sparsifier: regrow must be None, SET"),
        (
            lambda: gs.Sparsifier("taylor", 0.5, regrow=gs.SET(), pattern="row"),
            NotImplementedError,
            "Sparsifier: regrow is there for pattern 'element' only, got pattern 'row'",
        ),
        (
            lambda: gs.Sparsifier("synflow", 0.5, regrow=gs.RigL(0.3, 100)),
            ValueError,
            "Sparsifier: method must score by gradients of the loss, or none, for regrow .* got 'synflow'",
        ),
        (lambda: gs.Sparsifier("taylor", pattern="2:4", sparsity=0.5, regrow=gs.SET()), NotImplementedError, "'2:4'"),
        (
            lambda: gs.Sparsifier("taylor", {"a": 0.5}, schedule=lambda step: 0.5),
            ValueError,
            "Sparsifier: sparsity must be one number where schedule is a function, got a mapping",
        ),
        (
            lambda: gs.Sparsifier("taylor", 0.5, pattern="2:4", schedule=lambda step: 0.5),
            ValueError,
            "Sparsifier: schedule must be OneShot or Constant for pattern '2:4'",
        ),
        (lambda: gs.Sparsifier("taylor", 0.5, initial="a"), TypeError, "Sparsifier: initial must be a number, got 'a'"),
        (lambda: gs.Sparsifier("taylor", 0.5, pattern=3), TypeError, "Sparsifier: pattern must be a str, got 3"),
        (lambda: gs.Sparsifier("taylor", 0.5, pattern="block:0x4"), ValueError, "Sparsifier: pattern must be .*0x4"),
        (
            lambda: gs.Sparsifier("taylor", 0.6, pattern="2:4"),
            ValueError,
            "Sparsifier: sparsity must be 0.5 with .*0.6",
        ),
        (lambda: gs.Sparsifier("best", 0.5), ValueError, "Sparsifier: method must be one of magnitude, .* got 'best'"),
        (lambda: gs.Sparsifier("taylor", 0.5, group="all"), ValueError, "Sparsifier: group must be .* got 'all'"),
        (lambda: gs.Sparsifier("taylor", 0.5, group=3), TypeError, "Sparsifier: group must be a str, got 3"),
        (lambda: gs.Sparsifier("taylor", 0.5, nan="x"), ValueError, "Sparsifier: nan must be .* got 'x'"),
        (
            lambda: gs.Sparsifier("random", 0.5),
            ValueError,
            "Sparsifier: seed must be given for method 'random', got None",
        ),
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


@pytest.mark.parametrize("sparsity", [0.5, {"a": 0.5, "b": 0.5}], ids=["one", "per tensor"])
def test_what_is_wrong_with_a_step(sparsity: Any, rng: np.random.Generator) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("taylor", sparsity)
    state = sparsifier.init(params)
    for p, g, step, error, message in (
        (params, None, 0, ValueError, "grads must be given for method 'taylor', got None for 'a'"),
        (params, {"a": grads["a"]}, 0, ValueError, "grads must have an entry for every tensor, got none for 'b'"),
        (params, grads["a"], 0, TypeError, "grads must be a mapping, as the first argument is, got ndarray"),
        (
            params,
            grads | {"b": grads["a"]},
            0,
            ValueError,
            r"grads must have the shape \(7, 9\), got \(12, 20\) for 'b'",
        ),
        (params | {"b": params["b"] * np.nan}, grads, 0, ValueError, ".* NaN"),
        (params | {"b": [1.0]}, grads, 0, TypeError, "params must be arrays, got list for 'b'"),
        (params, grads, "a", TypeError, "step must be an integer, got 'a'"),
    ):
        with pytest.raises(error, match=rf"^Sparsifier\.step: {message}"):
            sparsifier.step(state, p, g, step)
    with pytest.raises(TypeError, match=r"^Sparsifier\.init: params must be arrays, got list for 'b'"):
        sparsifier.init({"a": params["a"], "b": [1.0]})
    magnitude = gs.Sparsifier("magnitude", sparsity)  # reads no gradients, so it does not miss any
    assert magnitude.step(state, params, {}, 0)[1].changed


def test_the_callers_sparsity_may_change(rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    targets = {"a": 0.9, "b": 0.5}
    sparsifier = gs.Sparsifier("magnitude", targets)
    targets["a"] = 7
    assert sparsifier.step(sparsifier.init(params), params, None, 0)[0].sparsity == {"a": 0.9, "b": 0.5}


# ---------------------------------------------------------------------------------------------- a function as schedule


def ramp(step: int) -> float:
    return min(step // 10, 4) / 5


def test_a_function_is_a_schedule(rng: np.random.Generator) -> None:
    sparsifier = gs.Sparsifier("magnitude", 0.5, schedule=ramp)
    for step, state, event in run(sparsifier, rng):
        assert {name: mask.nnz for name, mask in state.mask.items()} == {
            "a": kept(240, ramp(step)),
            "b": kept(63, ramp(step)),
        }
        assert event.updated == (step in (10, 20, 30, 40))
        assert state.updated == (-1 if step < 10 else min(step // 10, 4) * 10)
        assert state.sparsity == ramp(step)
    assert pickle.loads(pickle.dumps(sparsifier)) == sparsifier


def test_a_function_skipped_and_repeated(rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    sparsifier = gs.Sparsifier("magnitude", 0.5, schedule=lambda step: np.float32(0.25) * (step // 10))
    state, event = sparsifier.step(sparsifier.init(params), params, None, 27)
    assert event.updated
    assert (state.updated, state.sparsity) == (27, 0.5)
    assert sparsifier.step(state, params, None, 29)[0] is state
    assert sparsifier.step(state, params, None, 3)[0] is state
    assert sparsifier.step(state, params, None, 30)[0].sparsity == 0.75


@pytest.mark.parametrize(
    ("schedule", "error", "message"),
    [
        (lambda step: 0.1 * step, ValueError, r"Sparsifier\.step: the value of schedule must be in \[0, 1\], got 1.9"),
        (lambda step: math.nan, ValueError, r"Sparsifier\.step: the value of schedule must be in \[0, 1\], got nan"),
        (lambda step: None, TypeError, r"Sparsifier\.step: the value of schedule must be a number, got None"),
        (lambda step: 1 - 0.05 * step, ValueError, r"Sparsifier\.step: schedule must not fall, got 0.0\d* at step 19"),
    ],
)
def test_a_function_that_is_no_schedule(schedule: Any, error: Any, message: str, rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    sparsifier = gs.Sparsifier("magnitude", 0.5, schedule=schedule)
    state = dataclasses.replace(sparsifier.init(params), updated=1, sparsity=0.95)
    with pytest.raises(error, match=message):
        sparsifier.step(state, params, None, 19)


# ------------------------------------------------------------------------------------------------------------ regrowth

REGROWTHS: dict[str, Any] = {
    "set": gs.SET(0.3, seed=5),
    "set_all": gs.SET(1.0),
    "rigl": gs.RigL(0.5, 100),
    "rigl_all": gs.RigL(1.0, 10**9),
}


def expected_masks(
    sparsifier: gs.Sparsifier, state: Any, params: dict[str, Any], grads: dict[str, Any], due: int
) -> dict[str, Any]:
    """Bool masks after an update, by the reference."""
    group = sparsifier.group or "tensor"
    prior = {name: mask.to_dense() for name, mask in state.mask.items()}
    masks: dict[str, Any] = {}
    if isinstance(sparsifier.sparsity, dict):
        for name, w in params.items():
            share = sparsifier.schedule(due, sparsifier.sparsity[name])  # type: ignore[call-arg]
            masks[name] = reference.prune(w, sparsity=share, group=group, prior=prior[name])[1]
    else:
        share = sparsifier.schedule(due, sparsifier.sparsity)  # type: ignore[call-arg]
        masks = reference.prune(params, sparsity=share, group=group, prior=prior)[1]
    regrow, start = sparsifier.regrow, 0
    for name, w in params.items():
        if isinstance(regrow, gs.SET):
            growth = reference.random_score(
                w.shape, reference.score(w).dtype, seed=reference.step_seed(regrow.seed, due), start=start
            )
            share = regrow.fraction
        else:
            assert isinstance(regrow, gs.RigL)
            growth = np.abs(grads[name]).astype(reference.score(w).dtype)
            share = reference.rigl_share(due, regrow.alpha, regrow.end)
        start += w.size
        by = "row" if group == "row" else "tensor"
        masks[name] = reference.exchange(reference.score(w), growth, masks[name], share, group=by)
    return masks


SHAPES: list[dict[str, tuple[int, ...]]] = [
    {"a": (12, 20), "b": (7, 9)},
    {"vector": (101,), "kernel": (8, 4, 3, 3), "empty": (0, 5), "one": (1, 1), "tall": (300, 2)},
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shapes", SHAPES, ids=["matrices", "odd"])
@pytest.mark.parametrize("group", ["tensor", "row", "global"])
@pytest.mark.parametrize("distribution", ["normal", "heavy_ties", "all_equal", "mostly_zeros", "signed_zeros"])
@pytest.mark.parametrize("regrow", REGROWTHS)
def test_regrowth_is_the_reference(regrow: str, distribution: str, group: str, shapes: Any, dtype: Any) -> None:
    sparsifier = gs.Sparsifier(
        "magnitude", 0.8, group=group, schedule=gs.Cubic(0, 40, 10), initial=0.0, regrow=REGROWTHS[regrow]
    )
    state = sparsifier.init({name: np.zeros(shape) for name, shape in shapes.items()})
    for step in range(0, 60, 10):
        params = {name: values(distribution, shape, dtype, name, step) for name, shape in shapes.items()}
        grads = {name: values(distribution, shape, dtype, name, step, "grads") for name, shape in shapes.items()}
        before = state
        state, event = sparsifier.step(before, params, grads, step)
        if step > 40:
            assert state is before
            continue
        if step == 0:
            assert all(mask.nnz == mask.size for mask in state.mask.values())
            continue
        expected = expected_masks(sparsifier, before, params, grads, step)
        for name, mask in state.mask.items():
            now, then = expected[name], before.mask[name].to_dense()
            assert np.array_equal(mask.to_dense(), now), (name, step)
            for masks, truth in ((event.dropped, then & ~now), (event.grown, now & ~then)):
                assert (name in masks) == truth.any()
                if name in masks:
                    assert np.array_equal(masks[name].to_dense(), truth)


@pytest.mark.parametrize("regrow", REGROWTHS)
def test_regrowth_keeps_the_numbers_of_an_allocation(regrow: str, rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    targets = gs.allocate(params, 0.8, method="erk")
    sparsifier = gs.Sparsifier("magnitude", targets, schedule=gs.Constant(every=10), regrow=REGROWTHS[regrow])
    state, changes = sparsifier.init(params), 0
    for step in range(60):
        params, grads = params_and_grads(rng)
        before = state
        state, event = sparsifier.step(before, params, grads, step)
        assert {name: mask.nnz for name, mask in state.mask.items()} == {
            "a": kept(240, targets["a"]),
            "b": kept(63, targets["b"]),
        }
        assert event.updated == (step % 10 == 0)
        if step == 0:
            assert not event.grown
        elif event.updated:
            expected = expected_masks(sparsifier, before, params, grads, step)
            assert all(np.array_equal(state.mask[name].to_dense(), mask) for name, mask in expected.items())
            assert {name: m.nnz for name, m in event.dropped.items()} == {
                name: m.nnz for name, m in event.grown.items()
            }
            changes += event.changed
    assert changes == 5


def test_rigl_by_hand() -> None:
    """Half of 4 kept go, the values 1 and -2; the greatest gradients of the then pruned come, -2's own among them."""
    w, g = np.array([1.0, -2.0, 3.0, 4.0, 0, 0]), np.array([0.1, -9.0, 0, 0, 0.2, 0.5])
    sparsifier = gs.Sparsifier("magnitude", 1 / 3, schedule=gs.Constant(), regrow=gs.RigL(0.5, 10**9))
    state, event = sparsifier.step(sparsifier.init(w), w, g, 0)
    assert state.mask.indices().tolist() == [0, 1, 2, 3]
    assert not event.grown
    state, event = sparsifier.step(state, w, g, 1)
    assert state.mask.indices().tolist() == [1, 2, 3, 5]
    assert event.dropped[""].indices().tolist() == [0]
    assert event.grown[""].indices().tolist() == [5]


def test_rigl_decays_and_ends() -> None:
    rigl = gs.RigL(alpha=0.3, end=1000)
    assert [rigl.share(step) for step in (0, 500, 1000, 5000)] == [0.3, pytest.approx(0.15), 0.0, 0.0]
    assert rigl.share(250) == 0.15 * (1 + math.cos(math.pi / 4))
    assert gs.SET().share(0) == gs.SET().share(10**6) == 0.3


@pytest.mark.parametrize("regrow", REGROWTHS)
def test_step_is_a_pure_function(regrow: str, rng: np.random.Generator, threads: None) -> None:
    params, grads = params_and_grads(rng)
    sparsifier = gs.Sparsifier("magnitude", 0.6, schedule=gs.Constant(every=5), regrow=REGROWTHS[regrow])
    state, _ = sparsifier.step(sparsifier.init(params), params, grads, 0)
    before = copy.deepcopy((state, params, grads))
    results = []
    for count in (1, 2, 3):
        gs.set_num_threads(count)
        results.append(sparsifier.step(state, params, grads, 5))
    restored, other = pickle.loads(pickle.dumps((state, sparsifier)))
    assert (restored, other) == (state, sparsifier)
    results.append(other.step(restored, params, grads, 5))
    assert all(result == results[0] for result in results)
    assert state == before[0]
    for left, right in zip((params, grads), before[1:], strict=True):
        assert all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_set_differs_by_seed_and_step(rng: np.random.Generator) -> None:
    w = rng.standard_normal((20, 20))
    found = []
    for seed in (0, 1):
        sparsifier = gs.Sparsifier("magnitude", 0.9, schedule=gs.Constant(), regrow=gs.SET(seed=seed))
        state, _ = sparsifier.step(sparsifier.init(w), w, None, 0)
        found += [sparsifier.step(state, w, None, step)[0].mask for step in (1, 2)]
    assert len(set(found)) == 4


def test_regrown_weights_start_at_zero_in_a_loop(rng: np.random.Generator) -> None:
    """What the docstring promises of a loop that applies the mask after every step."""
    w = rng.standard_normal((10, 30))
    sparsifier = gs.Sparsifier("magnitude", 0.8, schedule=gs.Constant(every=2), regrow=gs.RigL(0.5, 100))
    state = sparsifier.init(w)
    for step in range(20):
        w += 0.1 * rng.standard_normal(w.shape)
        gs.apply_mask(w, state.mask, out=w)
        state, event = sparsifier.step(state, w, rng.standard_normal(w.shape), step)
        gs.apply_mask(w, state.mask, out=w)
        for mask in event.grown.values():
            assert not w[mask.to_dense()].any()


def test_the_drop_follows_the_method(rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((6, 10)), rng.standard_normal((6, 10))
    sparsifier = gs.Sparsifier("taylor", 0.5, schedule=gs.Constant(), regrow=gs.RigL(0.4, 10**9))
    state, _ = sparsifier.step(sparsifier.init(w), w, g, 0)
    after = sparsifier.step(state, w, g, 1)[0].mask.to_dense()
    assert np.array_equal(
        after, reference.exchange(np.abs(w * g), np.abs(g), state.mask.to_dense(), gs.RigL(0.4, 10**9).share(1))
    )


def test_wanda_exchanges_within_rows(rng: np.random.Generator) -> None:
    w, g = rng.standard_normal((6, 10)), rng.standard_normal((6, 10))
    stats = gs.Stats("norm")
    stats.update(rng.standard_normal((20, 10)))
    sparsifier = gs.Sparsifier("wanda", 0.5, schedule=gs.Constant(), regrow=gs.RigL(0.4, 10**9))
    state, _ = sparsifier.step(sparsifier.init(w), w, g, 0, stats=stats)
    state, event = sparsifier.step(state, w, g, 1, stats=stats)
    assert (state.mask.to_dense().sum(axis=1) == 5).all()
    assert event.grown


def test_a_sparsifier_says_what_it_needs() -> None:
    assert gs.Sparsifier("taylor", 0.5).needs_grads
    assert not gs.Sparsifier("magnitude", 0.5).needs_grads
    assert not gs.Sparsifier("magnitude", 0.5, regrow=gs.SET()).needs_grads
    assert gs.Sparsifier("magnitude", 0.5, regrow=gs.RigL(0.3, 10)).needs_grads


def test_rigl_without_gradients(rng: np.random.Generator) -> None:
    params, _ = params_and_grads(rng)
    sparsifier = gs.Sparsifier("magnitude", 0.5, schedule=gs.Constant(), regrow=gs.RigL(0.3, 100))
    state, _ = sparsifier.step(sparsifier.init(params), params, None, 0)
    with pytest.raises(
        ValueError, match=r"Sparsifier\.step: grads must be given for regrow RigL\(alpha=0.3, end=100\)"
    ):
        sparsifier.step(state, params, None, 1)
    with pytest.raises(
        ValueError, match=r"^Sparsifier\.step: grads must have an entry for every tensor, got none for 'b'"
    ):
        sparsifier.step(state, params, {"a": params["a"]}, 1)
    with pytest.raises(
        ValueError, match=r"^Sparsifier\.step: grads must have the shape \(12, 20\), got \(7, 9\) for 'a'"
    ):
        sparsifier.step(state, params, {"a": params["b"], "b": params["b"]}, 1)
    assert not sparsifier.step(state, params, None, 100)[1].changed  # nothing grows from the end on


@pytest.mark.parametrize("regrow", [gs.SET(0.25, seed=3), gs.RigL(0.3, 100)])
def test_regrowths_are_plain_values(regrow: Any) -> None:
    assert pickle.loads(pickle.dumps(regrow)) == copy.deepcopy(regrow) == regrow
    assert hash(regrow) == hash(copy.deepcopy(regrow))
    with pytest.raises(AttributeError):
        regrow.seed = 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: gs.SET(1.5), ValueError, r"SET: fraction must be in \[0, 1\], got 1.5"),
        (lambda: gs.SET(math.nan), ValueError, r"SET: fraction must be in \[0, 1\], got nan"),
        (lambda: gs.SET("a"), TypeError, "SET: fraction must be a number, got 'a'"),
        (lambda: gs.SET(seed=-1), ValueError, r"SET: seed must be in \[0, 2\*\*64\), got -1"),
        (lambda: gs.SET(seed=1.0), TypeError, "SET: seed must be an integer, got 1.0"),
        (lambda: gs.RigL(-0.1, 10), ValueError, r"RigL: alpha must be in \[0, 1\], got -0.1"),
        (lambda: gs.RigL(None, 10), TypeError, "RigL: alpha must be a number, got None"),
        (lambda: gs.RigL(0.3, 0), ValueError, "RigL: end must be at least 1, got 0"),
        (lambda: gs.RigL(0.3, 10.5), TypeError, "RigL: end must be an integer, got 10.5"),
        (lambda: gs.RigL(0.3, 10).share("a"), TypeError, r"RigL\.share: step must be an integer, got 'a'"),
        (lambda: gs.SET().growth({}, None, "a"), TypeError, r"SET\.growth: step must be an integer, got 'a'"),
    ],
)
def test_bad_regrowths(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
