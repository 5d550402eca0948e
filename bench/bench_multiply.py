# SPDX-License-Identifier: Apache-2.0
"""Products with a pruned matrix: gs.matmul, gs.linear, gs.sddmm, SparseLinear, against numpy dense, scipy and torch.

GFLOP/s count what a contender really computes: the non-zeros for a sparse product, everything for a dense one; so
compare contenders by time. The limit is that of the same work: its multiply-adds at the peak rate, or one pass over
the stored matrix, x and the result, whichever takes longer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import gossamer as gs
from inputs import Array, Job, as_array, as_tensor, fresh, normal, peers, quietly, torch_or_skip
from measuring import Measure

LENET = [(300, 784), (100, 300)]
PARAMETERS: dict[str, dict[str, list[Any]]] = {
    "quick": {"size": [(1024, 1024)], "layer": LENET, "sparsity": [0.5, 0.9], "n": [1, 8, 32, 128, 512]},
    "large": {
        "size": [(4096, 4096)],
        "layer": [*LENET, (1024, 1024)],
        "sparsity": [0.5, 0.7, 0.8, 0.9, 0.95],
        "n": [1, 8, 32, 128, 512],
    },
}
TOLERANCE = 1e-6  # of the norm of |A| |x|: the API's accuracy rule for float32


class Problem:
    """A matrix pruned by magnitude, in every library's form, made when first asked for."""

    def __init__(self, size: tuple[int, int], sparsity: float, n: int) -> None:
        self.rows, self.cols = size
        self.n = n
        weights = normal(size)
        self.mask = gs.topk_mask(np.abs(weights), sparsity=sparsity)
        self.dense = gs.apply_mask(weights, self.mask)
        self.x = normal((self.cols, n), 1)
        self.batch = normal((n, self.cols), 2)
        self.bias = normal((self.rows,), 3)

    @cached_property
    def csr(self) -> gs.SparseMatrix:
        return gs.SparseMatrix.from_dense(self.dense, self.mask, format="csr")

    @cached_property
    def auto(self) -> gs.SparseMatrix:
        return gs.SparseMatrix.from_dense(self.dense, self.mask)

    @cached_property
    def scipy(self) -> Any:
        """With 32-bit indices throughout, as scipy makes them itself."""
        return scipy.sparse.csr_array(self.dense)

    @cached_property
    def torch(self) -> Any:
        torch, a = torch_or_skip(), self.scipy
        with quietly():
            return torch.sparse_csr_tensor(*map(as_tensor, (a.indptr, a.indices, a.data)), size=a.shape)

    def work(self, dense: bool) -> dict[str, float]:
        """Arguments for measure: what a product has to compute and to move."""
        kept = self.rows * self.cols if dense else self.mask.nnz
        stored = 4 * kept if dense else 8 * kept + 4 * (self.rows + 1)
        return {
            "flops": 2 * kept * self.n,
            "read": stored + 4 * self.cols * self.n,
            "written": 4 * self.rows * self.n,
        }

    def check(self, of: Callable[[Array, Array], Array]) -> Callable[[Any], None]:
        """A result is near to ``of(matrix, x)`` in float64, by the norm of the same product of absolute values."""
        expected = of(self.dense.astype(np.float64), self.x.astype(np.float64))
        return near(expected, float(np.linalg.norm(of(np.abs(self.dense), np.abs(self.x)))))


def near(expected: Array, norm: float) -> Callable[[Any], None]:
    def check(result: Any) -> None:
        error = float(np.linalg.norm(as_array(result).reshape(expected.shape) - expected))
        if not error <= TOLERANCE * norm:
            raise AssertionError(f"off by {error / norm:.2e} of the norm, allowed are {TOLERANCE}")

    return check


@lru_cache(maxsize=1)
def problem(size: tuple[int, int], sparsity: float, n: int) -> Problem:
    return Problem(size, sparsity, n)


@lru_cache(maxsize=1)
def matmul_check(size: tuple[int, int], sparsity: float, n: int) -> Callable[[Any], None]:
    return problem(size, sparsity, n).check(np.matmul)


# --------------------------------------------------------------------------------------------------------------- matmul


def gossamer_csr(p: Problem) -> Job:
    a, x, out = p.csr, p.x, fresh((p.rows, p.n))
    return lambda: gs.matmul(a, x, out=out)


def gossamer_auto(p: Problem) -> Job:
    a, x, out = p.auto, p.x, fresh((p.rows, p.n))
    return lambda: gs.matmul(a, x, out=out)


def numpy_dense(p: Problem) -> Job:
    w, x, out = p.dense, p.x, fresh((p.rows, p.n))
    return lambda: np.matmul(w, x, out=out)


def scipy_csr(p: Problem) -> Job:
    a, x = p.scipy, p.x
    return lambda: a @ x


def torch_dense(p: Problem) -> Job:
    torch, w, x, out = torch_or_skip(), as_tensor(p.dense), as_tensor(p.x), as_tensor(fresh((p.rows, p.n)))
    return lambda: torch.mm(w, x, out=out)


def torch_csr(p: Problem) -> Job:
    a, x = p.torch, as_tensor(p.x)
    return lambda: a @ x


def is_dense(peer: Any, p: Problem) -> bool:
    return peer.__name__.endswith("dense") or (peer.__name__.endswith("auto") and p.auto.format == "dense")


@peers(gossamer_csr, gossamer_auto, numpy_dense, scipy_csr, torch_dense, torch_csr)
def test_matmul(size: tuple[int, int], sparsity: float, n: int, peer: Any, measure: Measure) -> None:
    p = problem(size, sparsity, n)
    measure(
        peer(p),
        matmul_check(size, sparsity, n),
        group=f"matmul {size[0]}x{size[1]} sparsity {sparsity} N={n}",
        **p.work(is_dense(peer, p)),
    )


# ---------------------------------------------------------------------- linear: relu(X A^T + bias), X [batch, in]


def gossamer_linear_csr(p: Problem) -> Job:
    a, x, bias, out = p.csr, p.batch, p.bias, fresh((p.n, p.rows))
    return lambda: gs.linear(x, a, bias=bias, activation="relu", out=out)


def gossamer_linear_auto(p: Problem) -> Job:
    a, x, bias, out = p.auto, p.batch, p.bias, fresh((p.n, p.rows))
    return lambda: gs.linear(x, a, bias=bias, activation="relu", out=out)


def numpy_linear_dense(p: Problem) -> Job:
    w, x, bias, out = p.dense.T, p.batch, p.bias, fresh((p.n, p.rows))

    def run() -> Array:
        np.matmul(x, w, out=out)
        np.add(out, bias, out=out)
        return np.maximum(out, np.float32(0), out=out)

    return run


def scipy_linear_csr(p: Problem) -> Job:
    a, x, bias = p.scipy, p.batch, p.bias[:, None]
    return lambda: np.maximum(a @ x.T + bias, np.float32(0)).T


def torch_linear_dense(p: Problem) -> Job:
    torch, w, x, bias = torch_or_skip(), as_tensor(p.dense), as_tensor(p.batch), as_tensor(p.bias)
    return lambda: torch.nn.functional.linear(x, w, bias).relu_()


def torch_linear_csr(p: Problem) -> Job:
    torch, a, x, bias = torch_or_skip(), p.torch, as_tensor(p.batch), as_tensor(p.bias)
    return lambda: torch.nn.functional.linear(x, a).add_(bias).relu_()


@peers(
    gossamer_linear_csr,
    gossamer_linear_auto,
    numpy_linear_dense,
    scipy_linear_csr,
    torch_linear_dense,
    torch_linear_csr,
)
def test_linear(layer: tuple[int, int], sparsity: float, n: int, peer: Any, measure: Measure) -> None:
    p = problem(layer, sparsity, n)
    w, x = p.dense.astype(np.float64), p.batch.astype(np.float64)
    bound = np.abs(x) @ np.abs(w).T + np.abs(p.bias)
    measure(
        peer(p),
        near(np.maximum(x @ w.T + p.bias, 0), float(np.linalg.norm(bound))),
        group=f"linear {layer[0]}x{layer[1]} sparsity {sparsity} batch {n}, bias, relu",
        **p.work(is_dense(peer, p)),
    )


# -------------------------------------------------------------------------------------------------- sddmm and backward

SAMPLES = 256
PRUNED = 0.9


def gossamer_sddmm(p: Problem, left: Array, right: Array) -> Job:
    pattern, out = p.csr, fresh((p.mask.nnz,))
    return lambda: gs.sddmm(left, right, pattern, out=out)


def numpy_sddmm_dense(p: Problem, left: Array, right: Array) -> Job:
    """The whole product, then the kept positions."""
    product, kept = fresh((p.rows, p.cols)), p.mask.indices()
    return lambda: np.take(np.matmul(left, right.T, out=product), kept)


def numpy_sddmm_gather(p: Problem, left: Array, right: Array) -> Job:
    """The two rows of each kept position."""
    rows, cols = np.divmod(p.mask.indices(), p.cols)
    return lambda: np.einsum("ij,ij->i", left[rows], right[cols])


def torch_sddmm(p: Problem, left: Array, right: Array) -> Job:
    torch, pattern, x, y = torch_or_skip(), p.torch, as_tensor(left), as_tensor(right).T
    return lambda: torch.sparse.sampled_addmm(pattern, x, y, beta=0).values()


def _sddmm_work(p: Problem, k: int, dense: bool) -> dict[str, float]:
    kept = p.rows * p.cols if dense else p.mask.nnz
    return {
        "flops": 2 * kept * k,
        "read": 4 * (p.rows + p.cols) * k + 4 * p.mask.nnz,
        "written": 4 * p.mask.nnz,
    }


@peers(gossamer_sddmm, numpy_sddmm_dense, numpy_sddmm_gather, torch_sddmm)
def test_sddmm(size: tuple[int, int], peer: Any, measure: Measure) -> None:
    p = problem(size, PRUNED, SAMPLES)
    left, right = normal((size[0], SAMPLES), 4), normal((size[1], SAMPLES), 5)
    kept = p.mask.indices()
    expected = (left.astype(np.float64) @ right.T).reshape(-1)[kept]
    bound = float(np.linalg.norm((np.abs(left) @ np.abs(right).T).reshape(-1)[kept]))
    close = near(expected, bound)
    measure(
        peer(p, left, right),
        lambda result: close(result.values if isinstance(result, gs.SparseMatrix) else result),
        group=f"sddmm {size[0]}x{size[1]} sparsity {PRUNED} K={SAMPLES}",
        **_sddmm_work(p, SAMPLES, dense="dense" in peer.__name__),
    )


def gossamer_backward(p: Problem, dy: Array) -> Job:
    layer, x = gs.SparseLinear(p.csr, p.bias), p.batch
    return lambda: layer.backward(dy, x)


def numpy_backward_dense(p: Problem, dy: Array) -> Job:
    w, x, kept = p.dense, p.batch, p.mask.indices()
    return lambda: (dy @ w, np.take(dy.T @ x, kept), dy.sum(axis=0))


def torch_backward(p: Problem, dy: Array) -> Job:
    torch, a, grad, x = torch_or_skip(), p.torch, as_tensor(dy), as_tensor(p.batch)
    with quietly():
        transposed = a.transpose(0, 1).to_sparse_csr()

    def run() -> Any:
        dvalues = torch.sparse.sampled_addmm(a, grad.T, x, beta=0).values()
        return (transposed @ grad.T).T, dvalues, grad.sum(dim=0)

    return run


@peers(gossamer_backward, numpy_backward_dense, torch_backward)
def test_backward(size: tuple[int, int], peer: Any, measure: Measure) -> None:
    """The three gradients of a layer; gossamer transposes the matrix in the first call only, torch beforehand."""
    p = problem(size, PRUNED, SAMPLES)
    dy, x, kept = normal((SAMPLES, size[0]), 6), p.batch, p.mask.indices()
    wide = dy.astype(np.float64)
    right = [wide @ p.dense, (wide.T @ x).reshape(-1)[kept], wide.sum(axis=0)]
    absolute = np.abs(dy)
    bounds = [absolute @ np.abs(p.dense), (absolute.T @ np.abs(x)).reshape(-1)[kept], absolute.sum(axis=0)]

    def check(results: Any) -> None:
        for result, expected, bound in zip(results, right, bounds, strict=True):
            near(expected, float(np.linalg.norm(bound)))(result)

    products = p.rows * p.cols if "dense" in peer.__name__ else p.mask.nnz
    measure(
        peer(p, dy),
        check,
        group=f"SparseLinear.backward {size[0]}x{size[1]} sparsity {PRUNED} batch {SAMPLES}",
        flops=4 * products * SAMPLES,
    )


# ------------------------------------------------------------------------------------- what a call and a matrix cost


def gossamer_small(p: Problem) -> Job:
    a, x = p.csr, p.x
    return lambda: gs.matmul(a, x)


def numpy_small_dense(p: Problem) -> Job:
    w, x = p.dense, p.x
    return lambda: w @ x


@peers(gossamer_small, numpy_small_dense, scipy_csr, torch_csr)
@pytest.mark.parametrize("width", [1, 8, 64])
def test_small(width: int, peer: Any, measure: Measure) -> None:
    """64x64: mostly the cost of a call from Python, result allocated; the goal is 5 microseconds."""
    p = problem((64, 64), PRUNED, width)
    measure(peer(p), p.check(np.matmul), group=f"small call 64x64 sparsity {PRUNED} N={width}")


def gossamer_pack(p: Problem) -> Job:
    return lambda: gs.SparseMatrix.from_dense(p.dense, p.mask, format="csr")


def scipy_pack(p: Problem) -> Job:
    return lambda: scipy.sparse.csr_array(p.dense)


def torch_pack(p: Problem) -> Job:
    w = as_tensor(p.dense)
    with quietly():
        w.to_sparse_csr()  # warns once
    return w.to_sparse_csr


@peers(gossamer_pack, scipy_pack, torch_pack)
def test_from_dense(size: tuple[int, int], peer: Any, measure: Measure) -> None:
    """From a dense array to CSR; gossamer from the mask, the others by looking for zeros."""
    p = problem(size, PRUNED, 1)

    def check(result: Any) -> None:
        dense = result.to_dense() if hasattr(result, "to_dense") else result.toarray()
        np.testing.assert_array_equal(np.asarray(dense), p.dense)

    measure(
        peer(p),
        check,
        group=f"SparseMatrix.from_dense csr {size[0]}x{size[1]} sparsity {PRUNED}",
        read=p.dense.nbytes,
        written=8 * p.mask.nnz,
    )
