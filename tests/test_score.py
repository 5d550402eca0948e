# SPDX-License-Identifier: Apache-2.0
"""``score``: the table of cases against the reference, and what the table cannot say."""

import numpy as np
import pytest

import gossamer as gs
from cases import DTYPES, Case, assert_same_bits, check_against_reference, compute_dtype, table, values


@pytest.mark.parametrize("case", table("score/"), ids=str)
def test_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", ["magnitude", "gradient", "taylor", "random"])
def test_out_is_filled_and_returned(dtype: type, method: str) -> None:
    wide = compute_dtype(dtype)
    w, g = values("normal", (17, 31), dtype), values("normal", (17, 31), dtype, "g")
    expected = gs.score(w, g, method=method, seed=1)
    out = np.full_like(w, np.nan, wide)
    assert gs.score(w, g, method=method, seed=1, out=out) is out
    assert_same_bits(out, expected)
    strided = np.full((34, 93), np.nan, wide)
    view = strided[::2, ::3]
    assert gs.score(w, g, method=method, seed=1, out=view) is view
    assert_same_bits(view, expected)
    assert np.isnan(strided[1::2]).all()
    assert np.isnan(strided[:, 1::3]).all()
    assert np.isnan(strided[:, 2::3]).all()
    if w.dtype == wide:
        assert gs.score(w, g, method=method, seed=1, out=w) is w  # the output may be the input itself
        assert_same_bits(w, expected)


def test_out_of_a_mapping() -> None:
    params = {"a": values("normal", (3, 4), np.float32), "b": values("normal", (5,), np.float32)}
    out = {name: np.zeros_like(w) for name, w in params.items()}
    result = gs.score(params, out=out)
    assert all(result[name] is out[name] for name in params)
    assert_same_bits(out["b"], np.abs(params["b"]))


def test_a_mapping_keeps_its_names_and_order() -> None:
    params = {name: values("normal", (3, 4), np.float64, name) for name in ("z", "a", "m")}
    result = gs.score(params)
    assert isinstance(result, dict)
    assert list(result) == ["z", "a", "m"]


def test_a_mapping_of_stats() -> None:
    params = {"a": values("normal", (3, 4), np.float32), "b": values("normal", (2, 5), np.float32)}
    stats = {"a": gs.Stats("norm"), "b": gs.Stats("norm")}
    for name, w in params.items():
        stats[name].update(values("normal", (6, w.shape[1]), np.float32, "x"))
    result = gs.score(params, method="wanda", stats=stats)
    for name, w in params.items():
        assert_same_bits(result[name], np.abs(w) * stats[name].values.astype(np.float32))


def test_an_input_that_the_method_does_not_use_is_ignored() -> None:
    w = values("normal", (4, 4), np.float32)
    odd = gs.Stats("norm")
    odd.update(np.ones((2, 7), np.float32))
    assert_same_bits(gs.score(w, np.full_like(w, np.nan), method="magnitude", stats=odd, seed=3), np.abs(w))


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_depends_on_seed_and_flat_index_alone(dtype: type) -> None:
    w = values("normal", (40, 50), dtype)
    first = gs.score(w, method="random", seed=1)
    assert_same_bits(gs.score(-w.reshape(50, 40), method="random", seed=1).reshape(40, 50), first)
    assert (gs.score(w, method="random", seed=2) != first).mean() > 0.99
    assert first.min() >= 0
    assert first.max() < 1
    assert abs(first.mean() - 0.5) < 0.03
    halves = gs.score({"top": w[:20], "bottom": w[20:]}, method="random", seed=1)
    assert_same_bits(np.concatenate([halves["top"], halves["bottom"]]), first)


def test_the_gradient_is_converted_before_the_product() -> None:
    w = np.array([3.0], np.float32)
    g = np.array([1.0 + 2.0**-25], np.float64)  # 1 in float32; the float64 product would round to another float32
    assert gs.score(w, g, method="taylor")[0] == np.float32(3.0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signs_and_special_values(dtype: type) -> None:
    w = np.array([-0.0, 0.0, -np.inf, np.inf, np.nan, -1.0], dtype)
    result = gs.score(w)
    wide = compute_dtype(dtype)
    assert_same_bits(result, np.array([0.0, 0.0, np.inf, np.inf, np.nan, 1.0], wide))
    g = np.array([-np.inf, 1.0, 2.0, -0.0, 1.0, 0.5], dtype)
    assert_same_bits(gs.score(w, g, method="taylor"), np.array([np.nan, 0, np.inf, np.nan, np.nan, 0.5], wide))


def test_movement_is_signed() -> None:
    w, g = np.array([1.0, 1.0, -2.0]), np.array([0.5, -0.5, -3.0])
    stats = gs.Stats("movement")
    stats.update(w, g)
    assert gs.score(w, method="movement", stats=stats).tolist() == [-0.5, 0.5, -6.0]


def test_a_broadcast_input() -> None:
    w = np.broadcast_to(np.array([1.0, -2.0, 3.0], np.float32), (5, 3))
    assert_same_bits(gs.score(w), np.abs(w))


def test_a_callable_sees_the_arrays_and_the_stats() -> None:
    w, g, stats = np.ones((2, 2)), np.full((2, 2), 3.0), gs.Stats("norm")
    seen = []

    def criterion(*arguments: object) -> np.ndarray:
        seen.append(arguments)
        return w + g

    assert (gs.score(w, g, method=criterion, stats=stats) == 4).all()
    assert len(seen) == 1
    assert seen[0][0] is w
    assert seen[0][1] is g
    assert seen[0][2] is stats
