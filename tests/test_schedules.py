# SPDX-License-Identifier: Apache-2.0
"""Schedules: formulas, both ends inclusive, updates only when they are due, errors."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs

GRADUAL = [gs.Cubic, gs.Cosine, gs.Exponential]
FORMULAS: dict[Any, Any] = {
    gs.Cubic: lambda d, f, i: f + (i - f) * (1 - d) ** 3,
    gs.Cosine: lambda d, f, i: f + (i - f) * (1 + math.cos(math.pi * d)) / 2,
    gs.Exponential: lambda d, f, i: 1 - (1 - i) ** (1 - d) * (1 - f) ** d,
}


@pytest.mark.parametrize("kind", GRADUAL)
def test_is_its_formula(kind: Any) -> None:
    schedule = kind(start=100, end=300, every=1)
    for step in range(100, 301):
        expected = FORMULAS[kind]((step - 100) / 200, 0.9, 0.2)
        assert schedule(step, 0.9, 0.2) == pytest.approx(expected, abs=1e-12)


def test_cubic_by_hand() -> None:
    """Zhu & Gupta's formula at quarter points: (3/4)³, (1/2)³, (1/4)³ of the way are left."""
    schedule = gs.Cubic(0, 4, 1)
    assert [schedule(t, 0.8) for t in range(5)] == pytest.approx([0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8])
    assert schedule(2) == 1 - 0.5**3


@pytest.mark.parametrize("kind", GRADUAL)
def test_both_ends_are_inclusive_and_exact(kind: Any) -> None:
    schedule = kind(10, 95, 10)
    assert schedule(0, 0.95, 0.1) == schedule(9, 0.95, 0.1) == schedule(10, 0.95, 0.1) == 0.1
    assert schedule(94, 0.95, 0.1) < 0.95
    assert schedule(95, 0.95, 0.1) == schedule(10**9, 0.95, 0.1) == 0.95


@pytest.mark.parametrize("kind", GRADUAL)
def test_changes_only_every_so_many_steps(kind: Any) -> None:
    schedule, updates = kind(10, 95, 10), [10, 20, 30, 40, 50, 60, 70, 80, 90, 95]
    values = [schedule(step, 0.9) for step in range(120)]
    assert [step for step in range(1, 120) if values[step] != values[step - 1]] == updates[1:]
    assert [step for step in range(120) if schedule.last_update(step) == step] == updates
    assert schedule.last_update(9) is None
    assert schedule.last_update(94) == 90
    assert schedule.last_update(1000) == 95


def test_one_shot() -> None:
    assert gs.OneShot()(0, 0.5) == 0.5
    schedule = gs.OneShot(at=7)
    assert [schedule(step, 0.5, 0.1) for step in (0, 6, 7, 8)] == [0.1, 0.1, 0.5, 0.5]
    assert [schedule.last_update(step) for step in (0, 6, 7, 100)] == [None, None, 7, 7]


def test_constant() -> None:
    schedule = gs.Constant(every=10, end=35)
    assert [schedule(step, 0.5) for step in (0, 5, 100)] == [0.5] * 3
    assert [schedule.last_update(step) for step in (-1, 0, 9, 10, 34, 35, 90)] == [None, 0, 0, 10, 30, 30, 30]
    assert gs.Constant().last_update(123) == 123


@given(
    kind=st.sampled_from(GRADUAL),
    start=st.integers(0, 1000),
    length=st.integers(1, 1000),
    every=st.integers(1, 1500),
    initial=st.floats(0, 1, exclude_max=True),
    share=st.floats(0, 1, exclude_max=True),
)
def test_never_falls_and_stays_between_its_ends(
    kind: Any, start: int, length: int, every: int, initial: float, share: float
) -> None:
    final = min(initial + share * (1 - initial), math.nextafter(1, 0))
    schedule = kind(start, start + length, every)
    values = [schedule(step, final, initial) for step in np.unique(np.linspace(0, start + length + 5, 60).astype(int))]
    assert values[-1] == final
    assert all(initial <= value <= final for value in values)
    assert all(a <= b for a, b in pairwise(values))


@pytest.mark.parametrize(
    "schedule", [gs.OneShot(3), gs.Constant(5), gs.Cubic(1, 9, 2), gs.Cosine(1, 9, 2), gs.Exponential(1, 9)]
)
def test_plain_values(schedule: Any) -> None:
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    with pytest.raises(AttributeError):
        schedule.every = 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gs.Cubic(-1, 5, 1), "Cubic: start must not be negative, got -1"),
        (lambda: gs.Cubic(5, 5, 1), "Cubic: end must be after start 5, got 5"),
        (lambda: gs.Cosine(0, 5, 0), "Cosine: every must be at least 1, got 0"),
        (lambda: gs.OneShot(-1), "OneShot: at must not be negative, got -1"),
        (lambda: gs.Constant(0), "Constant: every must be at least 1, got 0"),
        (lambda: gs.Constant(1, -1), "Constant: end must not be negative, got -1"),
        (lambda: gs.Cubic(0, 5, 1)(0, 1.3), r"Cubic: final must be in \[initial, 1\] = \[0.0, 1\], got 1.3"),
        (lambda: gs.OneShot()(0, 0.4, 0.5), r"OneShot: final must be in \[initial, 1\] = \[0.5, 1\], got 0.4"),
        (lambda: gs.Constant()(0, 0.4, -0.5), r"Constant: initial must be in \[0, 1\], got -0.5"),
        (lambda: gs.Cubic(0, 5, 1)(0, math.nan), "Cubic: final must be in"),
        (lambda: gs.Exponential(0, 5, 1)(0, 1.0), "Exponential: final must be below 1, got 1.0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [lambda: gs.Cubic(0.5, 5, 1), lambda: gs.Cubic(0, 5, True), lambda: gs.OneShot("3")])
def test_steps_are_integers(make: Any) -> None:
    with pytest.raises(TypeError, match=r"(Cubic|OneShot): (start|every|at) must be an integer, got"):
        make()
