# SPDX-License-Identifier: Apache-2.0
"""Data, contenders and answers that the benchmarks share."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import pytest

import gossamer as gs

Array: TypeAlias = np.ndarray[Any, Any]
Job: TypeAlias = Callable[[], Any]


def peers(*contenders: Callable[..., Job]) -> pytest.MarkDecorator:
    """Runs a benchmark once for each contender: a function that takes the inputs and returns the job to be timed.

    Conversions and buffers made in the function itself are not timed; what the job allocates is.
    """
    return pytest.mark.parametrize("peer", contenders, ids=[contender.__name__ for contender in contenders])


def torch_or_skip() -> Any:
    """torch with as many threads as gossamer; skips the benchmark where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        torch = pytest.importorskip("torch")
        pytest.importorskip("torch.nn.utils.prune")
    torch.set_num_threads(gs.get_num_threads())
    return torch


@lru_cache(maxsize=8)
def normal(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> Array:
    """Standard normal values. Shared between benchmarks: do not write to them."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's UserWarnings that sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def as_tensor(a: Array) -> Any:
    return torch_or_skip().from_numpy(a)


def fresh(shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """Memory that has been touched: a buffer for out=."""
    return np.zeros(shape, dtype)


# ------------------------------------------------------------------------------------------------------------ answers


def as_array(result: Any) -> Array:
    """A result of any contender as a numpy array; a mask as bool."""
    if isinstance(result, gs.Mask):
        return result.to_dense()
    return np.asarray(result)


def equals(expected: Array) -> Callable[[Any], None]:
    """Every bit right (with -0 equal to +0)."""
    return lambda result: np.testing.assert_array_equal(as_array(result), expected)


def close_to(expected: Array, tolerance: float = 1e-5) -> Callable[[Any], None]:
    scale = float(np.abs(expected).max(initial=1e-30))
    return lambda result: np.testing.assert_allclose(as_array(result), expected, rtol=0, atol=tolerance * scale)


def keeps_the_highest(scores: Array, kept: int) -> Callable[[Any], None]:
    """A mask of exactly the ``kept`` highest scores, and the mask that numpy's partition gives.

    Tools that compare with a threshold keep every tie: they may keep more, all of the lowest kept score.
    """
    flat = scores.reshape(-1)
    threshold = np.partition(flat, flat.size - kept)[flat.size - kept]
    expected, tied = scores >= threshold, scores == threshold

    def check(result: Any) -> None:
        mask = as_array(result).astype(bool, copy=False)
        np.testing.assert_array_equal(mask | tied, expected)
        count = int(np.count_nonzero(mask))
        most = kept if isinstance(result, gs.Mask) else int(np.count_nonzero(expected))
        if not kept <= count <= most:
            raise AssertionError(f"{count} are kept and not {kept}")
        if isinstance(result, gs.Mask):  # among equals the first ones
            ties = mask.reshape(-1)[tied.reshape(-1)]
            np.testing.assert_array_equal(ties, np.arange(ties.size) < np.count_nonzero(ties))

    return check


def keeps_the_highest_by_row(scores: Array, kept: int) -> Callable[[Any], None]:
    """The same within each row, for scores without ties."""
    threshold = np.partition(scores, scores.shape[1] - kept, axis=1)[:, scores.shape[1] - kept]
    return equals(scores >= threshold[:, None])


def kept_count(n: int, sparsity: float) -> int:
    """The rule of the API."""
    return n - math.floor(n * round(sparsity, 12) + 0.5)
