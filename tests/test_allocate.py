# SPDX-License-Identifier: Apache-2.0
"""Allocation of a total sparsity among tensors: the reference, published figures, exact totals, errors."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from cases import DISTRIBUTIONS, generator, values
from gossamer import accounting, reference

METHODS = ["uniform", "er", "erk", "lamp", "owl"]
TYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
SPARSITIES = [0.0, 0.01, 0.5, 0.9, 0.95, 0.999, 1.0]
NETWORKS: dict[str, dict[str, tuple[int, ...]]] = {
    "one": {"only": (30, 40)},
    "mlp": {"a": (300, 784), "b": (100, 300), "c": (10, 100)},
    "convolutions": {"a": (16, 3, 7, 7), "b": (64, 16, 3, 3), "c": (10, 64), "d": (64, 16, 3)},
    "odd": {"vector": (50,), "scalar": (), "empty": (0, 3), "wide": (2, 400), "single": (1, 1), "again": (2, 400)},
    "only empty": {"a": (0, 4), "b": (3, 0)},
    "none": {},
}


def network(key: str, dtype: Any = np.float32, distribution: str = "normal") -> dict[str, Any]:
    return {name: values(distribution, shape, dtype, key, name) for name, shape in NETWORKS[key].items()}


def norms(lib: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of heavy-tailed inputs, so that the tensors differ in their outliers."""
    found = {}
    for name, w in params.items():
        columns = math.prod(w.shape[1:]) if w.ndim > 1 else w.size
        found[name] = lib.Stats("norm")
        found[name].update(generator("inputs", name, columns).standard_normal((5, columns)) ** 5)
    return found


def total(params: Mapping[str, Any], found: Mapping[str, float]) -> float:
    return math.fsum(w.size * found[name] for name, w in params.items())


# ---------------------------------------------------------------------------------------------------- the reference


@pytest.mark.parametrize("dtype", TYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_is_the_reference(method: str, key: str, dtype: Any) -> None:
    if method == "lamp" and key == "mlp" and dtype is not np.float32:
        pytest.skip("235,200 weights in the reference's loop, once is enough")
    params = network(key, dtype)
    for sparsity in SPARSITIES if key != "mlp" else (0.9,):
        got = gs.allocate(params, sparsity, method=method, stats=norms(gs, params))
        expected = reference.allocate(params, sparsity, method=method, stats=norms(reference, params))
        assert list(got) == list(params)
        assert got == pytest.approx(expected, abs=1e-12)
        assert all(type(value) is float and 0 <= value <= 1 for value in got.values())


@pytest.mark.parametrize("distribution", [name for name in DISTRIBUTIONS if name != "infinities"])
@pytest.mark.parametrize("method", ["lamp", "owl"])
def test_values_of_every_kind(method: str, distribution: str) -> None:
    params = network("convolutions", np.float32, distribution) | {"e": network("one")["only"]}
    got = gs.allocate(params, 0.7, method=method, stats=norms(gs, params))
    expected = reference.allocate(params, 0.7, method=method, stats=norms(reference, params))
    assert got == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("key", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_the_total_is_what_was_asked_for(method: str, key: str, sparsity: float) -> None:
    params = network(key)
    found = gs.allocate(params, sparsity, method=method, stats=norms(gs, params))
    size = sum(w.size for w in params.values())
    if method == "lamp":  # whole counts, as a global mask has them
        assert round(total(params, found)) == size - reference.kept_count(size, sparsity)
    else:
        assert total(params, found) == pytest.approx(sparsity * size, abs=1e-9 * (size + 1))


@given(
    shapes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=6),
    sparsity=st.floats(0, 1),
    method=st.sampled_from(["er", "erk"]),
)
def test_one_eps_for_all_that_are_not_dense(shapes: Any, sparsity: float, method: str) -> None:
    params = {str(k): np.empty(shape, bool) for k, shape in enumerate(shapes)}
    found = gs.allocate(params, sparsity, method=method)
    size = sum(w.size for w in params.values())
    assert total(params, found) == pytest.approx(sparsity * size, abs=1e-9 * size)
    ratios = {}
    for name, w in params.items():
        extents = (1, w.size) if w.ndim == 1 else w.shape[:2] if method == "er" else w.shape
        ratios[name] = sum(extents) / math.prod(extents)
    eps = [(1 - found[name]) / ratio for name, ratio in ratios.items() if found[name] > 0]
    if eps:
        assert max(eps) == pytest.approx(min(eps), abs=1e-9)
    for name, ratio in ratios.items():
        if found[name] == 0 and eps:
            assert ratio * max(eps) >= 1 - 1e-9


# --------------------------------------------------------------------------------------------------- by hand, by paper


def test_er_and_erk_by_hand() -> None:
    """Densities 4 eps / 4 (clamped), 7 eps / 12, 20 eps / 100: at 50 % 58 are kept, so eps is (58 - 4) / 27."""
    params = {"a": np.ones((2, 2)), "b": np.ones((3, 4)), "c": np.ones((10, 10))}
    eps = 54 / 27
    assert eps * 7 / 12 > 1  # b is dense as well: the clamp is solved again
    expected = {"a": 0.0, "b": 0.0, "c": 1 - 42 / 100}
    for method in ("er", "erk"):
        assert gs.allocate(params, 0.5, method=method) == pytest.approx(expected, abs=1e-15)


def test_er_sees_two_dimensions_of_a_kernel_and_erk_all() -> None:
    params = {"a": np.ones((8, 4, 3, 3)), "b": np.ones((16, 18))}
    er, erk = (gs.allocate(params, 0.9, method=method) for method in ("er", "erk"))
    assert (1 - er["a"]) / (1 - er["b"]) == pytest.approx((12 / 32) / (34 / 288))
    assert (1 - erk["a"]) / (1 - erk["b"]) == pytest.approx((18 / 288) / (34 / 288))


def test_lamp_is_the_global_mask_of_its_scores() -> None:
    """Scores 1, 0.2 | 1, 0.5: of 1, 2 and 3, 3 the best three are both largest and, before 0.2, the second tie."""
    params = {"a": np.array([[1.0, -2.0]]), "b": np.array([[3.0, 3.0]])}
    assert gs.allocate(params, 0.25, method="lamp") == {"a": 0.5, "b": 0.0}
    assert gs.allocate(params, 0.5, method="lamp") == {"a": 0.5, "b": 0.5}
    scaled = {"a": params["a"] * 1e-30, "b": params["b"]}
    assert gs.allocate(scaled, 0.25, method="lamp") == {"a": 0.5, "b": 0.0}


def owl_case(outliers: Mapping[str, int], rows: int = 10) -> tuple[dict[str, Any], dict[str, gs.Stats]]:
    """Tensors of rows x 10 that hold as many outliers as given (all inputs have norm 1)."""
    params, stats = {}, {}
    for name, count in outliers.items():
        params[name] = np.ones((rows, 10))
        params[name].flat[:count] = 100.0
        stats[name] = gs.Stats("norm")
        stats[name].update(np.ones((1, 10)))
    return params, stats


def test_owl_by_hand() -> None:
    """As the authors' code: the densities span 0.16 and their mean is the target's."""
    params, stats = owl_case({"a": 0, "b": 1, "c": 4})
    found = gs.allocate(params, 0.7, method="owl", stats=stats)
    mean = 0.16 * (0 + 1 / 4 + 1) / 3
    expected = {"a": 0.7 + mean, "b": 0.7 + mean - 0.04, "c": 0.7 + mean - 0.16}
    assert found == pytest.approx(expected, abs=1e-14)


def test_owl_weights_the_mean_by_size() -> None:
    params, stats = owl_case({"a": 0, "b": 2})
    params["b"] = np.concatenate([params["b"]] * 9)
    found = gs.allocate(params, 0.5, method="owl", stats=stats)
    assert found == pytest.approx({"a": 0.5 + 0.9 * 0.16, "b": 0.5 - 0.1 * 0.16}, abs=1e-14)


@pytest.mark.parametrize(("sparsity", "expected"), [(0.98, (1.0, 0.96)), (0.02, (0.04, 0.0))])
def test_owl_stays_in_bounds(sparsity: float, expected: tuple[float, float]) -> None:
    params, stats = owl_case({"a": 0, "b": 2})
    found = gs.allocate(params, sparsity, method="owl", stats=stats)
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("count", [0, 3])
def test_owl_of_equal_shares_is_uniform(count: int) -> None:
    params, stats = owl_case({"a": count, "b": count})
    assert gs.allocate(params, 0.7, method="owl", stats=stats) == {"a": 0.7, "b": 0.7}


def resnet50() -> dict[str, tuple[int, ...]]:
    """The shapes of ResNet-50's weights (He 2015, arXiv 1512.03385): 53 convolutions and the classifier."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"stage{stage}.block{block}"
            shapes[f"{name}.conv1"] = (width, inputs, 1, 1)
            shapes[f"{name}.conv2"] = (width, width, 3, 3)
            shapes[f"{name}.conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                shapes[f"{name}.shortcut"] = (4 * width, inputs, 1, 1)
            inputs = 4 * width
    return shapes | {"fc": (1000, 2048)}


@pytest.mark.parametrize(("sparsity", "megabytes"), [(0.8, 23.683), (0.9, 13.499), (0.95, 8.399)])
def test_published_sizes_of_resnet50(sparsity: float, megabytes: float) -> None:
    """RigL's models (1911.11134): ERK over all weights, the first convolution and the classifier included."""
    shapes = resnet50()
    params = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert (len(sizes), sum(sizes.values())) == (54, 25_502_912)
    found = gs.allocate(params, sparsity, method="erk")
    kept = {name: math.floor((1 - found[name]) * size + 1e-6) for name, size in sizes.items()}
    biases = sum(shape[0] for shape in shapes.values())  # of batch normalisation and of the classifier
    assert biases == 26_560 + 1_000
    assert round(accounting.stored_bytes(sizes, kept, biases=biases) / 1e6, 3) == megabytes
    assert total(params, found) == pytest.approx(sparsity * 25_502_912, abs=1e-3)
    assert accounting.flops(sizes, kept) == 2 * sum(kept.values())


# ------------------------------------------------------------------------------------------------------- accounting


def test_accounting_by_hand() -> None:
    sizes = {"a": 1001, "b": 100}
    assert accounting.stored_bytes(sizes, {}) == 4404
    assert accounting.stored_bytes(sizes, {"a": 1001, "b": 100}, biases=3) == 4416
    assert accounting.stored_bytes(sizes, {"a": 10}, biases=3) == 40 + 126 + 400 + 12
    assert accounting.flops(sizes, {"a": 10}) == 220
    assert accounting.flops(sizes, {"a": 10}, uses={"a": 4}) == 80 + 200


@pytest.mark.parametrize("count", [accounting.stored_bytes, accounting.flops])
def test_accounting_checks_the_counts(count: Any) -> None:
    with pytest.raises(ValueError, match=rf"{count.__name__}: kept must name tensors of sizes, got 'c'"):
        count({"a": 5}, {"c": 1})
    with pytest.raises(ValueError, match=rf"{count.__name__}: kept must be in \[0, 5\], got 6 for 'a'"):
        count({"a": 5}, {"a": 6})
    for sizes, kept, error, message in (
        ({"a": -5}, {}, ValueError, "sizes must not be negative, got -5 for 'a'"),
        ({"a": 5.0}, {}, TypeError, "sizes must be an integer, got 5.0 for 'a'"),
        ([5], {}, TypeError, "sizes must be a mapping of counts, got list"),
        ({"a": 5}, {"a": -1}, ValueError, "kept must not be negative, got -1 for 'a'"),
        ({"a": 5}, {"a": "1"}, TypeError, "kept must be an integer, got '1' for 'a'"),
        ({"a": 5}, None, TypeError, "kept must be a mapping of counts, got NoneType"),
    ):
        with pytest.raises(error, match=f"^{count.__name__}: {message}"):
            count(sizes, kept)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: a.stored_bytes({}, {}, biases=-1), ValueError, "stored_bytes: biases must not be negative, got -1"),
        (lambda a: a.stored_bytes({}, {}, biases=True), TypeError, "stored_bytes: biases must be an integer, got True"),
        (
            lambda a: a.flops({"a": 5}, {}, uses={"a": -1}),
            ValueError,
            "flops: uses must not be negative, got -1 for 'a'",
        ),
        (
            lambda a: a.flops({"a": 5}, {}, uses={"a": "x"}),
            TypeError,
            "flops: uses must be an integer, got 'x' for 'a'",
        ),
        (lambda a: a.flops({"a": 5}, {}, uses={"b": 1}), ValueError, "flops: uses must name tensors of sizes, got 'b'"),
    ],
)
def test_accounting_checks_the_rest(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call(accounting)


# --------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize("method", METHODS)
def test_one_array_gives_one_number(method: str) -> None:
    w = network("one")["only"]
    found = gs.allocate(w, 0.75, method=method, stats=norms(gs, {"only": w})["only"])
    assert type(found) is float
    assert found == pytest.approx(0.75)
    mask = gs.prune(w, sparsity=found)[1]
    assert mask.nnz == 300


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_unchanged_and_may_be_read_only(method: str) -> None:
    params = network("convolutions")
    before = copy.deepcopy(params)
    for w in params.values():
        w.flags.writeable = False
    gs.allocate(params, 0.9, method=method, stats=norms(gs, params))
    assert all(params[name].tobytes() == w.tobytes() for name, w in before.items())


def test_a_sparsifier_takes_it() -> None:
    params = network("mlp")
    targets = gs.allocate(params, 0.95, method="erk")
    sparsifier = gs.Sparsifier("magnitude", targets)
    state, _ = sparsifier.step(sparsifier.init(params), params, None, 0)
    for name, w in params.items():
        assert state.mask[name].nnz == reference.kept_count(w.size, targets[name])
    kept = sum(mask.nnz for mask in state.mask.values())
    assert abs(Fraction(kept) - Fraction(5, 100) * 266_200) <= Fraction(3, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, s: gs.allocate(p, 1.3), ValueError, r"allocate: sparsity must be in \[0, 1\], got 1.3"),
        (lambda p, s: gs.allocate(p, math.nan), ValueError, r"allocate: sparsity must be in \[0, 1\], got nan"),
        (lambda p, s: gs.allocate(p, "half"), TypeError, "allocate: sparsity must be a number, got 'half'"),
        (lambda p, s: gs.allocate(p, 0.5, method="best"), ValueError, "allocate: method must be one of uniform, er, "),
        (lambda p, s: gs.allocate(p, 0.5, method=3), TypeError, "allocate: method must be a str, got 3"),
        (lambda p, s: gs.allocate({"a": [1, 2]}, 0.5), TypeError, "allocate: params must be arrays, got list for 'a'"),
        (lambda p, s: gs.allocate({3: p["a"]}, 0.5), TypeError, "allocate: params must have names of type str, got 3"),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl"),
            ValueError,
            "allocate: stats must be given for method 'owl', got None for 'a'",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats=s["a"]),
            TypeError,
            "allocate: stats must be a mapping",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats={"a": s["a"]}),
            ValueError,
            "allocate: stats must have an entry for every tensor, got none for 'b'",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats=s | {"b": s["a"]}),
            ValueError,
            r"allocate: stats must have the shape \(144,\), got \(147,\) for 'b'",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats=s | {"b": gs.Stats("movement")}),
            ValueError,
            r"allocate: stats must be Stats\('norm'\) for method 'owl', got 'movement' for 'b'",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats=s | {"b": np.ones(144)}),
            TypeError,
            "allocate: stats must be a Stats, got ndarray for 'b'",
        ),
        (
            lambda p, s: gs.allocate(p, 0.5, method="owl", stats=s | {"b": gs.Stats("norm")}),
            ValueError,
            "allocate: stats must have been updated for method 'owl', got no data for 'b'",
        ),
        *(
            (
                lambda p, s, m=m: gs.allocate({"a": p["a"].astype(int)}, 0.5, method=m, stats=s),
                TypeError,
                "^allocate: params must be float32, float64, float16 or bfloat16, got int64",
            )
            for m in ("lamp", "owl")
        ),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    params = network("convolutions")
    with pytest.raises(error, match=message):
        call(params, norms(gs, params))


@pytest.mark.parametrize("method", ["lamp", "owl"])
def test_nan_is_named(method: str) -> None:
    params = network("convolutions")
    params["b"].flat[7] = np.nan
    with pytest.raises(ValueError, match="allocate: params must not score NaN, got NaN at 7 for 'b'"):
        gs.allocate(params, 0.5, method=method, stats=norms(gs, params))
