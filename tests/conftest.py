# SPDX-License-Identifier: Apache-2.0
"""Shared fixtures. Hypothesis runs with fixed seeds and without deadlines: no test depends on time or on chance."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import gossamer as gs
from cases import generator

os.environ["GOSSAMER_CALIBRATE"] = "0"  # plans come from built-in costs, and no test writes to a home

settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=60,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fixed")


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator that depends on the test's own name alone."""
    return generator(request.node.name)


@pytest.fixture
def threads() -> Iterator[None]:
    """For tests that change the number of threads: the old number comes back."""
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)
