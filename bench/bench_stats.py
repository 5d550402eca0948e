# SPDX-License-Identifier: Apache-2.0
"""gs.Stats.update: float64 accumulation of a float32 batch, against numpy and torch.

The limit is one read of the batch; "movement" and "grad2" also read and write a float64 state of the weights' size.
The answer is checked after the first update; the timed ones go on adding to the same state.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import gossamer as gs
from inputs import Array, Job, as_tensor, close_to, fresh, normal, peers, torch_or_skip
from measuring import Measure

PARAMETERS = {"quick": {"size": [(2048, 1024)]}, "large": {"size": [(4096, 4096), (4096, 11008)]}}


def _values(stats: gs.Stats, *batch: Array) -> Job:
    def run() -> gs.Stats:
        stats.update(*batch)
        return stats

    return run


def _values_close_to(expected: Array) -> Any:
    close = close_to(expected, 1e-12)
    return lambda result: close(result.values if isinstance(result, gs.Stats) else result)


# ------------------------------------------------------------------------------------- norm: x [batch, in] -> [in]


def gossamer_norm(x: Array) -> Job:
    return _values(gs.Stats("norm"), x)


def numpy_norm(x: Array) -> Job:
    """A float64 copy's columns; einsum does not need their squares as an array."""
    sums = fresh(x.shape[1:], np.float64)

    def run() -> Array:
        wide = x.astype(np.float64)
        np.add(sums, np.einsum("ij,ij->j", wide, wide), out=sums)
        return np.sqrt(sums)

    return run


def torch_norm(x: Array) -> Job:
    torch, batch = torch_or_skip(), as_tensor(x)
    sums = torch.zeros(x.shape[1], dtype=torch.float64)
    return lambda: sums.add_(batch.double().square_().sum(dim=0)).sqrt()


@peers(gossamer_norm, numpy_norm, torch_norm)
def test_norm(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    x = normal(size)
    expected = np.sqrt(np.square(x, dtype=np.float64).sum(axis=0))
    measure(peer(x), _values_close_to(expected), group=f"Stats norm {size[0]}x{size[1]}", read=x.nbytes)


# ------------------------------------------------------------ grad2: per-sample gradients [batch, out, in] -> [out, in]


def gossamer_grad2(x: Array) -> Job:
    return _values(gs.Stats("grad2"), x)


def numpy_grad2(x: Array) -> Job:
    sums, count = fresh(x.shape[1:], np.float64), [0]

    def run() -> Array:
        np.add(sums, np.square(x, dtype=np.float64).sum(axis=0), out=sums)
        count[0] += len(x)
        return sums / count[0]

    return run


def torch_grad2(x: Array) -> Job:
    torch, batch, count = torch_or_skip(), as_tensor(x), [0]
    sums = torch.zeros(x.shape[1:], dtype=torch.float64)

    def run() -> Any:
        sums.add_(batch.double().square_().sum(dim=0))
        count[0] += len(x)
        return sums / count[0]

    return run


@peers(gossamer_grad2, numpy_grad2, torch_grad2)
def test_grad2(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    x = normal((16, size[0] // 16, size[1]), 1)
    expected = np.square(x, dtype=np.float64).mean(axis=0)
    measure(
        peer(x),
        _values_close_to(expected),
        group="Stats grad2 " + "x".join(map(str, x.shape)),
        read=x.nbytes + expected.nbytes,
        written=expected.nbytes,
    )


# ---------------------------------------------------------------------------------------- movement: (weights, grads)


def gossamer_movement(w: Array, g: Array) -> Job:
    return _values(gs.Stats("movement"), w, g)


def numpy_movement(w: Array, g: Array) -> Job:
    sums, product = fresh(w.shape, np.float64), fresh(w.shape, np.float64)

    def run() -> Array:
        np.multiply(w, g, out=product, dtype=np.float64)
        return np.subtract(sums, product, out=sums)

    return run


def torch_movement(w: Array, g: Array) -> Job:
    torch, weights, grads = torch_or_skip(), as_tensor(w), as_tensor(g)
    sums = torch.zeros(w.shape, dtype=torch.float64)
    return lambda: sums.sub_(weights.double() * grads)


@peers(gossamer_movement, numpy_movement, torch_movement)
def test_movement(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, g = normal(size), normal(size, 1)
    expected = -np.multiply(w, g, dtype=np.float64)
    measure(
        peer(w, g),
        _values_close_to(expected),
        group=f"Stats movement {size[0]}x{size[1]}",
        read=2 * w.nbytes + expected.nbytes,
        written=expected.nbytes,
    )


# ----------------------------------------------------------------------------- hessian: x [batch, in] -> [in, in]


def gossamer_hessian(x: Array) -> Job:
    return _values(gs.Stats("hessian"), x)


def numpy_hessian(x: Array) -> Job:
    sums = fresh((x.shape[1], x.shape[1]), np.float64)

    def run() -> Array:
        wide = x.astype(np.float64)
        return np.add(sums, wide.T @ wide, out=sums)

    return run


def torch_hessian(x: Array) -> Job:
    torch, batch = torch_or_skip(), as_tensor(x)
    sums = torch.zeros((x.shape[1], x.shape[1]), dtype=torch.float64)

    def run() -> Any:
        wide = batch.double()
        return sums.addmm_(wide.T, wide)

    return run


@peers(gossamer_hessian, numpy_hessian, torch_hessian)
def test_hessian(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    """The limit counts one triangle of XᵀX, which is all that has to be computed."""
    x = normal((2048, 1024), 2)
    wide = x.astype(np.float64)
    rows, cols = x.shape
    measure(
        peer(x),
        _values_close_to(wide.T @ wide),
        group=f"Stats hessian {rows}x{cols}",
        dtype=np.float64,
        flops=rows * cols * (cols + 1),
        read=x.nbytes,
        written=8 * cols * cols,
    )
