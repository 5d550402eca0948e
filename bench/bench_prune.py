# SPDX-License-Identifier: Apache-2.0
"""gs.prune, the fused path: against its three steps one by one, numpy and torch; into out= and into fresh memory.

The limit is one read of the inputs for the selection, one of the weights for the masking, and one write.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from inputs import Array, Job, as_tensor, fresh, keeps_the_highest, kept_count, normal, peers, torch_or_skip
from measuring import Measure

PARAMETERS = {"quick": {"size": [(2048, 2048)]}, "large": {"size": [(4096, 4096), (4096, 11008)]}}
SPARSITY = 0.9


def pruned_by(scores: Array, weights: Array, kept: int) -> Any:
    """Checks pruned weights: the highest scores' are there and unchanged, the others are 0."""
    right = keeps_the_highest(scores, kept)

    def check(result: Any) -> None:
        pruned, mask = result
        right(mask)
        dense = mask.to_dense() if isinstance(mask, gs.Mask) else np.asarray(mask)
        np.testing.assert_array_equal(np.asarray(pruned), np.where(dense, weights, np.float32(0)))

    return check


def gossamer_out(w: Array, g: Array, method: str, kept: int) -> Job:
    out = fresh(w.shape)
    return lambda: gs.prune(w, g, method=method, nnz=kept, out=out)


def gossamer(w: Array, g: Array, method: str, kept: int) -> Job:
    return lambda: gs.prune(w, g, method=method, nnz=kept)


def gossamer_steps_out(w: Array, g: Array, method: str, kept: int) -> Job:
    scores, out = fresh(w.shape), fresh(w.shape)

    def run() -> Any:
        mask = gs.topk_mask(gs.score(w, g, method=method, out=scores), nnz=kept)
        return gs.apply_mask(w, mask, out=out), mask

    return run


def gossamer_steps(w: Array, g: Array, method: str, kept: int) -> Job:
    def run() -> Any:
        mask = gs.topk_mask(gs.score(w, g, method=method), nnz=kept)
        return gs.apply_mask(w, mask), mask

    return run


def numpy_out(w: Array, g: Array, method: str, kept: int) -> Job:
    scores, order, mask, out = fresh(w.shape), fresh((w.size,)), fresh(w.shape, np.bool_), fresh(w.shape)

    def run() -> Any:
        np.abs(w if method == "magnitude" else np.multiply(w, g, out=scores), out=scores)
        order[:] = scores.reshape(-1)
        order.partition(w.size - kept)
        np.greater_equal(scores, order[w.size - kept], out=mask)
        return np.multiply(w, mask, out=out), mask

    return run


def numpy(w: Array, g: Array, method: str, kept: int) -> Job:
    def run() -> Any:
        scores = np.abs(w if method == "magnitude" else w * g)
        mask = scores >= np.partition(scores, w.size - kept, axis=None)[w.size - kept]
        return w * mask, mask

    return run


def torch_kthvalue(w: Array, g: Array, method: str, kept: int) -> Job:
    torch, weights, grads = torch_or_skip(), as_tensor(w), as_tensor(g)

    def run() -> Any:
        scores = (weights if method == "magnitude" else weights * grads).abs()
        mask = scores >= torch.kthvalue(scores.view(-1), scores.numel() - kept + 1).values
        return weights * mask, mask

    return run


def torch_prune(w: Array, g: Array, method: str, kept: int) -> Job:
    """torch.nn.utils.prune's own selection."""
    torch, weights, grads = torch_or_skip(), as_tensor(w), as_tensor(g)
    pruning = torch.nn.utils.prune.L1Unstructured(w.size - kept)
    ones = torch.ones_like(weights)

    def run() -> Any:
        mask = pruning.compute_mask(weights if method == "magnitude" else weights * grads, ones)
        return weights * mask, mask

    return run


@peers(gossamer_out, gossamer, gossamer_steps_out, gossamer_steps, numpy_out, numpy, torch_kthvalue, torch_prune)
@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_prune(method: str, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, g = normal(size), normal(size, 1)
    kept = kept_count(w.size, SPARSITY)
    inputs = 1 if method == "magnitude" else 2
    measure(
        peer(w, g, method, kept),
        pruned_by(np.abs(w if method == "magnitude" else w * g), w, kept),
        group=f"prune {method} {SPARSITY} {size[0]}x{size[1]}",
        read=(inputs + 1) * w.nbytes,
        written=w.nbytes + w.size / 8,
    )


# ---------------------------------------------------------------------------------------- Wanda: each row for itself


def gossamer_wanda_out(w: Array, stats: gs.Stats, kept: int) -> Job:
    out = fresh(w.shape)
    return lambda: gs.prune(w, method="wanda", stats=stats, nnz=kept, out=out)


def gossamer_wanda(w: Array, stats: gs.Stats, kept: int) -> Job:
    return lambda: gs.prune(w, method="wanda", stats=stats, nnz=kept)


def numpy_wanda(w: Array, stats: gs.Stats, kept: int) -> Job:
    norm, place = stats.values.astype(np.float32), w.shape[1] - kept

    def run() -> Any:
        scores = np.abs(w) * norm
        mask = scores >= np.partition(scores, place, axis=1)[:, place, None]
        return w * mask, mask

    return run


def torch_wanda(w: Array, stats: gs.Stats, kept: int) -> Job:
    """As in the method's published code: sort each row, scatter the lower part."""
    torch, weights = torch_or_skip(), as_tensor(w)
    norm = as_tensor(stats.values.astype(np.float32))

    def run() -> Any:
        order = torch.sort(weights.abs() * norm, dim=1, stable=True).indices
        mask = torch.ones(weights.shape, dtype=torch.bool).scatter_(1, order[:, : w.shape[1] - kept], False)
        return weights * mask, mask

    return run


@peers(gossamer_wanda_out, gossamer_wanda, numpy_wanda, torch_wanda)
def test_wanda(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, stats = normal(size), gs.Stats("norm")
    stats.update(normal((64, size[1]), 2))
    scores, kept = np.abs(w) * stats.values.astype(np.float32), kept_count(size[1], 0.5)
    threshold = np.partition(scores, size[1] - kept, axis=1)[:, size[1] - kept, None]
    certain = scores != threshold  # which of two equal scores is kept, the tools decide differently

    def check(result: Any) -> None:
        pruned, mask = result
        dense = mask.to_dense() if isinstance(mask, gs.Mask) else np.asarray(mask)
        np.testing.assert_array_equal(dense[certain], (scores > threshold)[certain])
        if isinstance(mask, gs.Mask):
            assert (dense.sum(axis=1) == kept).all()
        np.testing.assert_array_equal(np.asarray(pruned), np.where(dense, w, np.float32(0)))

    measure(
        peer(w, stats, kept),
        check,
        group=f"prune wanda 0.5 {size[0]}x{size[1]}",
        read=w.nbytes,  # a row stays in the cache between selection and masking
        written=w.nbytes + w.size / 8,
    )


# --------------------------------------------------------------------------------------- a small network, all at once


def gossamer_network(tensors: dict[str, Array], kept: int) -> Job:
    return lambda: gs.prune(tensors, nnz=kept, group="global")


def numpy_network(tensors: dict[str, Array], kept: int) -> Job:
    def run() -> Any:
        scores = np.concatenate([np.abs(w).reshape(-1) for w in tensors.values()])
        threshold = np.partition(scores, scores.size - kept)[scores.size - kept]
        masks = {name: np.abs(w) >= threshold for name, w in tensors.items()}
        return {name: w * masks[name] for name, w in tensors.items()}, masks

    return run


def torch_network(tensors: dict[str, Array], kept: int) -> Job:
    torch, own = torch_or_skip(), {name: as_tensor(w) for name, w in tensors.items()}

    def run() -> Any:
        scores = torch.cat([w.abs().view(-1) for w in own.values()])
        threshold = torch.kthvalue(scores, scores.numel() - kept + 1).values
        masks = {name: w.abs() >= threshold for name, w in own.items()}
        return {name: w * masks[name] for name, w in own.items()}, masks

    return run


@peers(gossamer_network, numpy_network, torch_network)
def test_network(peer: Any, measure: Measure) -> None:
    """LeNet-300-100, global magnitude: small tensors, where calls and threads cost their share."""
    shapes = [(300, 784), (100, 300), (10, 100)]
    tensors = {f"layer{i}": normal(shape, i) for i, shape in enumerate(shapes)}
    total = sum(w.size for w in tensors.values())
    kept = kept_count(total, 0.95)
    right = pruned_by(*[_flat([np.abs(w) for w in tensors.values()]), _flat(tensors.values())], kept)

    def check(result: Any) -> None:
        pruned, masks = result
        ours = isinstance(masks["layer0"], gs.Mask)
        mask = _flat(m.to_dense() if ours else np.asarray(m) for m in masks.values())
        right((_flat(np.asarray(w) for w in pruned.values()), gs.Mask.from_dense(mask) if ours else mask))

    group = "prune magnitude global 0.95, LeNet-300-100"
    measure(peer(tensors, kept), check, group=group, read=8 * total, written=4 * total)


def _flat(arrays: Any) -> Array:
    return np.concatenate([a.reshape(-1) for a in arrays])
