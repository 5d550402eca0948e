# SPDX-License-Identifier: Apache-2.0
"""``adjust``: the sign rule and the scale rule, every operation rounded in the dtype of the weights."""

import numpy as np
import pytest

import gossamer as gs
from cases import DTYPES, Case, assert_same_bits, check_against_reference, table, values


@pytest.mark.parametrize("case", table("adjust/"), ids=str)
def test_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


def test_sign_by_hand() -> None:
    w = np.array([1.0, 1.0, 1.0, 1.0])
    assert gs.adjust(w, np.array([5.0, -0.1, 0.0, -0.0]), 0.25).tolist() == [0.75, 1.25, 1.0, 1.0]
    assert gs.adjust(w, np.array([np.inf, -np.inf, 1e-300, -1.0]), 0.5, rule="sign").tolist() == [0.5, 1.5, 0.5, 1.5]


def test_scale_by_hand() -> None:
    w = np.array([1.0, 2.0, -4.0, 8.0])
    # the lower median of 0 1 3 5 is 1, the largest distance 4
    assert gs.adjust(w, np.array([1.0, 5.0, 3.0, 0.0]), 0.5, rule="scale").tolist() == [1.0, 3.0, -5.0, 7.0]
    assert gs.adjust(w, np.array([2.0, 2.0, 2.0, 2.0]), 0.5, rule="scale").tolist() == w.tolist()
    assert gs.adjust(w[:1], np.array([7.0]), 0.5, rule="scale").tolist() == [1.0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_never_changes_a_sign_and_moves_by_at_most_the_rate(dtype: type) -> None:
    w, s = values("normal", (999,), dtype), values("normal", (999,), dtype, "s")
    moved = gs.adjust(w, s, 0.9, rule="scale")
    assert (np.sign(moved) == np.sign(w)).all()
    ratio = moved / w
    assert ratio.min() >= 0.1 - 1e-6
    assert ratio.max() <= 1.9 + 1e-6
    assert (ratio[s > np.median(s)] >= 1).all()
    assert (ratio[s < np.median(s)] <= 1).all()


@pytest.mark.parametrize("rule", ["sign", "scale"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(rule: str, dtype: type) -> None:
    w, s = values("normal", (33, 65), dtype), values("normal", (33, 65), dtype, "s")
    expected = gs.adjust(w, s, 0.1, rule=rule)
    out = np.full((33, 65), np.nan, dtype, order="F")
    assert gs.adjust(w, s, 0.1, rule=rule, out=out) is out
    assert_same_bits(out, expected)
    assert gs.adjust(w, s, 0.1, rule=rule, out=w) is w
    assert_same_bits(w, expected)


def test_each_array_of_a_mapping_has_its_own_median() -> None:
    params = {"a": np.ones(3), "b": np.ones((1, 3))}
    scores = {"a": np.array([0.0, 1.0, 2.0]), "b": np.array([[10.0, 20.0, 40.0]])}
    moved = gs.adjust(params, scores, 0.5, rule="scale")
    assert moved["a"].tolist() == [0.5, 1.0, 1.5]
    assert moved["b"].tolist() == [[0.75, 1.0, 1.5]]
    moved = gs.adjust(params, scores, 0.5)
    assert moved["a"].tolist() == [1.0, 0.5, 0.5]


def test_the_rate_is_rounded_to_the_dtype_first() -> None:
    w, s = np.array([1.0], np.float32), np.array([1.0], np.float32)
    assert_same_bits(gs.adjust(w, s, 0.1), w - np.float32(0.1))
