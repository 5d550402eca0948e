# SPDX-License-Identifier: Apache-2.0
"""The k-th largest by histograms: signed scores, any window, and tallies of parts that add up."""

from __future__ import annotations

import numpy as np
import pytest

from cases import DISTRIBUTIONS, values
from gossamer.threshold import Threshold

WINDOWS = ((-np.inf, np.inf), (0.0, np.inf), (-np.inf, -0.0), (1e30, np.inf), (0.5, 0.5), (-1e-45, 1e-45))


@pytest.mark.parametrize("data", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_add_up_to_the_kth_largest(data: str, dtype: type) -> None:
    scores = values(data, (600,), dtype).reshape(-1)
    parts = np.split(scores, [0, 100, 101, 450])
    ordered = np.sort(scores + dtype(0))[::-1]
    for kept in (1, 17, 300, 599, 600):
        expected = float(ordered[kept - 1])
        for bins in (3, 16):
            for window in WINDOWS:
                searches = [Threshold(kept, wide=dtype is np.float64, window=window, bins=bins) for _ in parts]
                while not searches[0].found:
                    for search, part in zip(searches, parts, strict=True):
                        search.add("", part, 0, 0)
                    tallies = [search.tally.copy() for search in searches]
                    for search in searches:
                        search.tally[:] = sum(tallies)
                        search.end()
                assert {search.score for search in searches} == {expected}
                assert searches[0].ties == kept - int((scores > expected).sum())
                for search, part, tally in zip(searches, parts, tallies, strict=True):
                    above, equal = (int((part > expected).sum()), int((part == expected).sum()))
                    assert search.share(tally) == (above, equal)


def test_nothing_kept_needs_no_look() -> None:
    search = Threshold(0, wide=False, bins=16)
    assert (search.found, search.score, search.share(search.tally)) == (True, np.inf, (0, 0))


def test_a_window_between_two_ranks() -> None:
    scores = np.arange(-50, 50, dtype=np.float32)
    search = Threshold(10, wide=False, bins=12)
    search.add("", scores, 0, 0)
    low, high = search.between(10, 20)  # the largest are 49, 48, ...
    assert low <= 30 < 40 <= high < 50
    assert search.between(0, 1)[1] == search.between(-5, 1)[1] == np.inf
    assert search.between(99, 101)[0] == -np.inf
    assert search.between(100, 100)[0] <= -50 <= search.between(100, 100)[1]
