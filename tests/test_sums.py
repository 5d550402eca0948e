# SPDX-License-Identifier: Apache-2.0
"""Sums that lie on a rounding border do not depend on the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import gossamer as gs


@pytest.fixture
def _threads() -> Iterator[None]:
    before = gs.get_num_threads()
    yield
    gs.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("second", [2.0**-53, 2.0**-24])
def test_snip_on_the_border(second: float) -> None:
    w = np.zeros(1 << 20)
    w[::64] = 2.0**-110
    w[0], w[64] = 1.0, second
    seen = set()
    for threads in (1, 2, 7, 1, 2):
        gs.set_num_threads(threads)
        seen.add(gs.score(w, np.ones_like(w), method="snip").tobytes())
    assert len(seen) == 1


@pytest.mark.usefixtures("_threads")
def test_ria_on_the_border() -> None:
    w = np.full((4096, 8), 2.0**-110)
    w[0], w[1] = 1.0, 2.0**-53
    norms = gs.Stats("norm")
    norms.update(np.ones((1, 8)))
    seen = set()
    for threads in (1, 2, 7, 1, 2):
        gs.set_num_threads(threads)
        seen.add(gs.score(w, method="ria", stats=norms).tobytes())
    assert len(seen) == 1
