# SPDX-License-Identifier: Apache-2.0
"""gs.topk_mask: exact selection, against np.partition, torch.kthvalue and torch.topk on the same scores (|w|).

The limit is one read of the scores and a write of the mask's bits. The peers' masks take a byte an element.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from inputs import (
    Array,
    Job,
    as_tensor,
    equals,
    keeps_the_highest,
    keeps_the_highest_by_row,
    kept_count,
    normal,
    peers,
    torch_or_skip,
)
from measuring import Measure

PARAMETERS: dict[str, dict[str, list[Any]]] = {
    "quick": {"size": [(2048, 2048)], "sparsity": [0.9]},
    "large": {"size": [(4096, 4096), (4096, 11008)], "sparsity": [0.5, 0.9, 0.99]},
}
SPARSITY = 0.9


def magnitudes(size: tuple[int, int], seed: int = 0) -> Array:
    return np.abs(normal(size, seed))


def limit(scores: Array) -> dict[str, float]:
    return {"read": scores.nbytes, "written": scores.size / 8}


# ------------------------------------------------------------------------------------------------- pattern "element"


def gossamer(scores: Array, kept: int) -> Job:
    return lambda: gs.topk_mask(scores, nnz=kept)


def numpy_partition(scores: Array, kept: int) -> Job:
    flat = scores.reshape(-1)
    return lambda: scores >= np.partition(flat, flat.size - kept)[flat.size - kept]


def torch_kthvalue(scores: Array, kept: int) -> Job:
    torch, tensor = torch_or_skip(), as_tensor(scores)
    return lambda: tensor >= torch.kthvalue(tensor.view(-1), tensor.numel() - kept + 1).values


def torch_topk(scores: Array, kept: int) -> Job:
    torch, tensor = torch_or_skip(), as_tensor(scores)

    def run() -> Any:
        mask = torch.zeros(tensor.numel(), dtype=torch.bool)
        mask[torch.topk(tensor.view(-1), kept, sorted=False).indices] = True
        return mask.view(tensor.shape)

    return run


@peers(gossamer, numpy_partition, torch_kthvalue, torch_topk)
def test_element(size: tuple[int, int], sparsity: float, peer: Any, measure: Measure) -> None:
    scores = magnitudes(size)
    kept = kept_count(scores.size, sparsity)
    measure(
        peer(scores, kept),
        keeps_the_highest(scores, kept),
        group=f"topk_mask element {sparsity} {size[0]}x{size[1]}",
        **limit(scores),
    )


@peers(gossamer, numpy_partition)
def test_element_float64(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    scores = np.abs(normal(size, dtype=np.float64))
    kept = kept_count(scores.size, SPARSITY)
    measure(
        peer(scores, kept),
        keeps_the_highest(scores, kept),
        group=f"topk_mask element float64 {SPARSITY} {size[0]}x{size[1]}",
        dtype=np.float64,
        **limit(scores),
    )


def _outlier(scores: Array) -> Array:
    scores[0, 0] = 1e38
    return scores


DISTRIBUTIONS = {
    "normal": magnitudes,
    "all_equal": lambda size: np.full(size, np.float32(0.7)),
    "sorted": lambda size: np.sort(magnitudes(size), axis=None).reshape(size),
    "two_values": lambda size: np.where(normal(size) > 0, np.float32(1), np.float32(0.5)),
    "denormals": lambda size: magnitudes(size) * np.float32(1e-39),
    "one_outlier": lambda size: _outlier(magnitudes(size)),
    "mostly_zeros": lambda size: np.where(magnitudes(size) > 2.6, magnitudes(size), np.float32(0)),
}


@peers(gossamer, numpy_partition)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distribution(distribution: str, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    """Inputs made to hurt a histogram or a pivot should stay within 3 times the usual one."""
    scores = DISTRIBUTIONS[distribution](size)
    kept = kept_count(scores.size, SPARSITY)
    measure(
        peer(scores, kept),
        keeps_the_highest(scores, kept),
        name=f"{peer.__name__} {distribution}",
        group=f"topk_mask distributions {SPARSITY} {size[0]}x{size[1]}",
        **limit(scores),
    )


def gossamer_threshold(scores: Array, threshold: float) -> Job:
    return lambda: gs.topk_mask(scores, threshold=threshold)


def numpy_threshold(scores: Array, threshold: float) -> Job:
    return lambda: scores >= np.float32(threshold)


@peers(gossamer_threshold, numpy_threshold)
def test_threshold(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    scores = magnitudes(size)
    group = f"topk_mask threshold {size[0]}x{size[1]}"
    measure(peer(scores, 1.5), equals(scores >= 1.5), group=group, **limit(scores))


# ------------------------------------------------------------------------------------------------------ other groups


def gossamer_row(scores: Array, kept: int) -> Job:
    return lambda: gs.topk_mask(scores, nnz=kept, group="row")


def numpy_partition_row(scores: Array, kept: int) -> Job:
    place = scores.shape[1] - kept
    return lambda: scores >= np.partition(scores, place, axis=1)[:, place, None]


def torch_kthvalue_row(scores: Array, kept: int) -> Job:
    torch, tensor = torch_or_skip(), as_tensor(scores)
    place = scores.shape[1] - kept + 1
    return lambda: tensor >= torch.kthvalue(tensor, place, dim=1, keepdim=True).values


def torch_topk_row(scores: Array, kept: int) -> Job:
    torch, tensor = torch_or_skip(), as_tensor(scores)

    def run() -> Any:
        indices = torch.topk(tensor, kept, dim=1, sorted=False).indices
        return torch.zeros(tensor.shape, dtype=torch.bool).scatter_(1, indices, True)

    return run


@peers(gossamer_row, numpy_partition_row, torch_kthvalue_row, torch_topk_row)
def test_row_group(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    scores = _without_ties(size)
    kept = kept_count(size[1], 0.5)
    measure(
        peer(scores, kept),
        keeps_the_highest_by_row(scores, kept),
        group=f"topk_mask group=row 0.5 {size[0]}x{size[1]}",
        **limit(scores),
    )


def _without_ties(size: tuple[int, int]) -> Array:
    """All different within a row, so that every tool has one right answer."""
    rng = np.random.default_rng(3)
    return rng.permuted(np.tile(np.arange(1, size[1] + 1, dtype=np.float32), (size[0], 1)), axis=1)


def gossamer_global(tensors: dict[str, Array], kept: int) -> Job:
    return lambda: gs.topk_mask(tensors, nnz=kept, group="global")


def numpy_partition_global(tensors: dict[str, Array], kept: int) -> Job:
    def run() -> Any:
        scores = np.concatenate([t.reshape(-1) for t in tensors.values()])
        threshold = np.partition(scores, scores.size - kept)[scores.size - kept]
        return {name: t >= threshold for name, t in tensors.items()}

    return run


def torch_kthvalue_global(tensors: dict[str, Array], kept: int) -> Job:
    torch, own = torch_or_skip(), {name: as_tensor(t) for name, t in tensors.items()}

    def run() -> Any:
        scores = torch.cat([t.view(-1) for t in own.values()])
        threshold = torch.kthvalue(scores, scores.numel() - kept + 1).values
        return {name: t >= threshold for name, t in own.items()}

    return run


@peers(gossamer_global, numpy_partition_global, torch_kthvalue_global)
def test_global_group(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    tensors = {
        "a": magnitudes((size[0] // 2, size[1]), 4),
        "b": magnitudes((size[0] // 4, size[1]), 5) * np.float32(2),
        "c": magnitudes((size[0] // 4, size[1]), 6) * np.float32(0.5),
    }
    scores = np.concatenate(list(tensors.values()))
    kept = kept_count(scores.size, SPARSITY)
    highest = keeps_the_highest(scores, kept)

    def check(result: Any) -> None:
        masks = [np.asarray(m.to_dense() if isinstance(m, gs.Mask) else m) for m in result.values()]
        mask = np.concatenate(masks)
        highest(gs.Mask.from_dense(mask) if isinstance(result["a"], gs.Mask) else mask)

    group = f"topk_mask group=global {SPARSITY}, three tensors, {size[0]}x{size[1]} in all"
    measure(peer(tensors, kept), check, group=group, **limit(scores))


# ---------------------------------------------------------------------------------------------------- other patterns


def gossamer_2_4(scores: Array) -> Job:
    return lambda: gs.topk_mask(scores, pattern="2:4")


def numpy_partition_2_4(scores: Array) -> Job:
    windows = scores.reshape(-1, 4)
    return lambda: (windows >= np.partition(windows, 2, axis=1)[:, 2, None]).reshape(scores.shape)


def numpy_argsort_2_4(scores: Array) -> Job:
    windows = scores.reshape(-1, 4)

    def run() -> Array:
        mask = np.zeros(windows.shape, np.bool_)
        np.put_along_axis(mask, np.argsort(-windows, axis=1, kind="stable")[:, :2], True, axis=1)
        return mask.reshape(scores.shape)

    return run


def torch_topk_2_4(scores: Array) -> Job:
    torch, windows = torch_or_skip(), as_tensor(scores).view(-1, 4)

    def run() -> Any:
        indices = torch.topk(windows, 2, dim=1, sorted=False).indices
        return torch.zeros(windows.shape, dtype=torch.bool).scatter_(1, indices, True).view(scores.shape)

    return run


@peers(gossamer_2_4, numpy_partition_2_4, numpy_argsort_2_4, torch_topk_2_4)
def test_2_4(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    scores = _without_ties(size)
    windows = scores.reshape(-1, 4)
    expected = (windows >= np.sort(windows, axis=1)[:, 2, None]).reshape(size)
    measure(peer(scores), equals(expected), group=f"topk_mask 2:4 {size[0]}x{size[1]}", **limit(scores))


UNITS = {"row": None, "col": None, "block:4x4": (4, 4), "block:8x1": (8, 1)}


def _blocks(scores: Array, pattern: str) -> tuple[int, int]:
    return UNITS[pattern] or ((1, scores.shape[1]) if pattern == "row" else (scores.shape[0], 1))


def gossamer_units(scores: Array, pattern: str, kept: int) -> Job:
    return lambda: gs.topk_mask(scores, pattern=pattern, nnz=kept)


def numpy_units(scores: Array, pattern: str, kept: int) -> Job:
    r, c = _blocks(scores, pattern)
    rows, cols = scores.shape[0] // r, scores.shape[1] // c

    def run() -> Array:
        sums = scores.reshape(rows, r, cols, c).sum(axis=(1, 3), dtype=np.float64).reshape(-1)
        units = (sums >= np.partition(sums, sums.size - kept)[sums.size - kept]).reshape(rows, 1, cols, 1)
        return np.broadcast_to(units, (rows, r, cols, c)).reshape(scores.shape)

    return run


def torch_units(scores: Array, pattern: str, kept: int) -> Job:
    torch, tensor = torch_or_skip(), as_tensor(scores)
    r, c = _blocks(scores, pattern)
    rows, cols = scores.shape[0] // r, scores.shape[1] // c

    def run() -> Any:
        sums = tensor.view(rows, r, cols, c).sum(dim=(1, 3), dtype=torch.float64).view(-1)
        units = (sums >= torch.kthvalue(sums, sums.numel() - kept + 1).values).view(rows, 1, cols, 1)
        return units.expand(rows, r, cols, c).reshape(scores.shape)

    return run


@peers(gossamer_units, numpy_units, torch_units)
@pytest.mark.parametrize("pattern", UNITS)
def test_units(pattern: str, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    """Whole rows, columns and blocks by the float64 sum of their scores, 90 % of them pruned."""
    scores = magnitudes(size)
    r, c = _blocks(scores, pattern)
    sums = scores.reshape(size[0] // r, r, size[1] // c, c).sum(axis=(1, 3), dtype=np.float64)
    kept = kept_count(sums.size, SPARSITY)
    units = sums >= np.partition(sums, sums.size - kept, axis=None)[sums.size - kept]
    measure(
        peer(scores, pattern, kept),
        equals(units.repeat(r, axis=0).repeat(c, axis=1)),
        group=f"topk_mask {pattern} {SPARSITY} {size[0]}x{size[1]}",
        **limit(scores),
    )
