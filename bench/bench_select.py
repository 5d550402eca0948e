# SPDX-License-Identifier: Apache-2.0
"""Exact selection, against np.partition, torch.kthvalue, torch.topk, the sort of Wanda's published code and
torch.nn.utils.prune.global_unstructured.

From scores (gs.topk_mask) and straight from the weights (what gs.prune does before it writes). The limit is one read of
the inputs and a write of the mask's bits. The peers' masks take a byte an element. select_targets.py holds the same
calls against the figures that are promised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from inputs import (
    ADVERSARIAL,
    Array,
    Job,
    as_tensor,
    equals,
    exact_mask,
    fresh,
    is_mask,
    keeps_the_highest,
    keeps_the_highest_by_row,
    kept_count,
    magnitudes,
    mask_of,
    minilm_matrices,
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


@peers(gossamer, numpy_partition, torch_kthvalue, torch_topk)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_element_16_bit(dtype: Any, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    scores = magnitudes(size, dtype=dtype)
    kept = kept_count(scores.size, SPARSITY)
    exact = exact_mask(scores, kept)
    measure(
        peer(scores, kept),
        # the others keep all of the scores that equal the lowest kept one, or any of them
        is_mask(exact) if peer is gossamer else keeps_the_highest(scores.astype(np.float32), kept),
        group=f"topk_mask element {np.dtype(dtype)} {SPARSITY} {size[0]}x{size[1]}",
        **limit(scores),
    )


DISTRIBUTIONS = {"normal": magnitudes} | ADVERSARIAL


@peers(gossamer, numpy_partition)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_distribution(distribution: str, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    """Inputs made to hurt a histogram, a pivot or a sample should stay within 3 times the usual one."""
    scores = DISTRIBUTIONS[distribution](size)
    kept = kept_count(scores.size, SPARSITY)
    measure(
        peer(scores, kept),
        is_mask(exact_mask(scores, kept)) if peer is gossamer else keeps_the_highest(scores, kept),
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


# ------------------------------------------------------------------------------------------- straight from weights


def scores_of(w: Array, g: Array, method: str) -> Array:
    return np.abs(w if method == "magnitude" else w * g)


def gossamer_weights(w: Array, g: Array, method: str, kept: int) -> Job:
    return lambda: mask_of(w, g if method == "taylor" else None, method=method, nnz=kept)


def numpy_partition_weights(w: Array, g: Array, method: str, kept: int) -> Job:
    def run() -> Any:
        scores = scores_of(w, g, method)
        return scores >= np.partition(scores, w.size - kept, axis=None)[w.size - kept]

    return run


def torch_kthvalue_weights(w: Array, g: Array, method: str, kept: int) -> Job:
    torch, weights, grads = torch_or_skip(), as_tensor(w), as_tensor(g)

    def run() -> Any:
        scores = (weights if method == "magnitude" else weights * grads).abs()
        return scores >= torch.kthvalue(scores.view(-1), scores.numel() - kept + 1).values

    return run


@peers(gossamer_weights, numpy_partition_weights, torch_kthvalue_weights)
@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_weights(method: str, size: tuple[int, int], sparsity: float, peer: Any, measure: Measure) -> None:
    w, g = normal(size), normal(size, 1)
    kept = kept_count(w.size, sparsity)
    measure(
        peer(w, g, method, kept),
        keeps_the_highest(scores_of(w, g, method), kept),
        group=f"mask of weights {method} {sparsity} {size[0]}x{size[1]}",
        read=(1 if method == "magnitude" else 2) * w.nbytes,
        written=w.size / 8,
    )


def gossamer_wanda(w: Array, stats: gs.Stats, kept: int) -> Job:
    return lambda: mask_of(w, method="wanda", stats=stats, nnz=kept, group="row")


def torch_sort_wanda(w: Array, stats: gs.Stats, kept: int) -> Job:
    """As in the method's published code: sort each row of the metric, scatter the lower part into a mask."""
    torch, weights = torch_or_skip(), as_tensor(w)
    norm = as_tensor(stats.values.astype(np.float32))

    def run() -> Any:
        metric = torch.abs(weights) * norm.reshape(1, -1)
        pruned = torch.zeros_like(metric) == 1
        indices = torch.sort(metric, dim=-1, stable=True)[1][:, : w.shape[1] - kept]
        return pruned.scatter_(1, indices, True)

    return run


def wanda_inputs(size: tuple[int, int]) -> tuple[Array, gs.Stats]:
    stats = gs.Stats("norm")
    stats.update(normal((64, size[1]), 2))
    return normal(size), stats


def wanda_mask_is_right(w: Array, stats: gs.Stats, kept: int) -> Any:
    """gossamer's mask exactly; the published code prunes the first of equal scores, where the API keeps it."""
    scores = np.abs(w) * stats.values.astype(np.float32)
    exact = is_mask(exact_mask(scores, kept, "row"))
    threshold = np.partition(scores, w.shape[1] - kept, axis=1)[:, w.shape[1] - kept, None]
    certain, kept_surely = scores != threshold, scores > threshold

    def check(result: Any) -> None:
        if isinstance(result, gs.Mask):
            return exact(result)
        mask = ~np.asarray(result)
        np.testing.assert_array_equal(mask[certain], kept_surely[certain])
        np.testing.assert_array_equal(np.count_nonzero(mask, axis=1), kept)
        return None

    return check


@peers(gossamer_wanda, torch_sort_wanda)
def test_wanda(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, stats = wanda_inputs(size)
    kept = kept_count(size[1], 0.5)
    measure(
        peer(w, stats, kept),
        wanda_mask_is_right(w, stats, kept),
        group=f"mask of weights wanda 0.5 {size[0]}x{size[1]}",
        **limit(w),
    )


# What prunes a whole network: what has to be done before each run but the first, if anything, and the run.
GlobalCalls: TypeAlias = tuple[Callable[[], None] | None, Job]


def gossamer_global_out(tensors: dict[str, Array], kept: int) -> GlobalCalls:
    out = {name: fresh(w.shape) for name, w in tensors.items()}
    return None, lambda: gs.prune(tensors, nnz=kept, group="global", out=out)


def gossamer_global_fresh(tensors: dict[str, Array], kept: int) -> GlobalCalls:
    return None, lambda: gs.prune(tensors, nnz=kept, group="global")


def torch_global_unstructured(tensors: dict[str, Array], kept: int) -> GlobalCalls:
    """torch.nn.utils.prune over linear layers, which it changes: each run after the first needs new ones."""
    torch = torch_or_skip()
    weights = [as_tensor(w) for w in tensors.values()]
    pruning, remove = torch.nn.utils.prune, sum(w.numel() for w in weights) - kept
    modules: list[Any] = []

    def prepare() -> None:
        modules.clear()
        for weight in weights:
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = torch.nn.Parameter(weight, requires_grad=False)
            modules.append(linear)

    def run() -> Any:
        pruning.global_unstructured(
            [(module, "weight") for module in modules], pruning_method=pruning.L1Unstructured, amount=remove
        )
        return (
            {name: m.weight for name, m in zip(tensors, modules, strict=True)},
            {name: m.weight_mask for name, m in zip(tensors, modules, strict=True)},
        )

    prepare()
    return prepare, run


def global_is_right(tensors: dict[str, Array], kept: int) -> Any:
    """Weights and masks of a network pruned over all tensors; the order of equal ones counts for gossamer alone."""
    highest = keeps_the_highest(np.concatenate([np.abs(w).reshape(-1) for w in tensors.values()]), kept)

    def check(result: Any) -> None:
        pruned, masks = result
        dense = {n: m.to_dense() if isinstance(m, gs.Mask) else np.asarray(m) != 0 for n, m in masks.items()}
        flat = np.concatenate([mask.reshape(-1) for mask in dense.values()])
        highest(gs.Mask.from_dense(flat) if all(isinstance(m, gs.Mask) for m in masks.values()) else flat)
        for name, w in tensors.items():
            np.testing.assert_array_equal(np.asarray(pruned[name]), np.where(dense[name], w, np.float32(0)))

    return check


@peers(gossamer_global_out, gossamer_global_fresh, torch_global_unstructured)
def test_minilm(sparsity: float, peer: Any, measure: Measure) -> None:
    """The 36 matrices of a sentence encoder, pruned together: weights and masks."""
    tensors, source = minilm_matrices()
    total = sum(w.size for w in tensors.values())
    kept = kept_count(total, sparsity)
    prepare, job = peer(tensors, kept)
    measure(
        job,
        global_is_right(tensors, kept),
        setup=prepare,
        group=f"prune magnitude global {sparsity}, MiniLM's 36 matrices ({source})",
        read=8 * total,
        written=4 * total + total / 8,
    )


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
