# SPDX-License-Identifier: Apache-2.0
"""Products with a pruned matrix against dense BLAS and other sparse kernels, held against their targets.

    python bench/product_targets.py [--quick] [--only GROUP ...] [--threads N] [--json FILE]

Format "auto" unless a row says otherwise. The matrix is random normal, pruned by magnitude; answers are checked.
OpenBLAS's threads go on spinning for some 20 ms after each call, on the cores that the next one needs: here they are
told to sleep (OPENBLAS_THREAD_TIMEOUT=4), as those who mix the two should. bench_threads.py measures what it costs.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # before numpy is loaded
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import scipy.sparse

import gossamer as gs
from gossamer.sparse import FEW
from inputs import Array, normal
from turns import Call, Run, Size, measure

SIZES: dict[bool, tuple[Size, ...]] = {False: ((4096, 4096), (11008, 8192)), True: ((512, 512), (1024, 512))}
# Times dense, by columns of X and sparsity.
MUST = {
    512: {0.5: 1.35, 0.7: 1.9, 0.8: 2.6, 0.9: 4.4, 0.95: 6.5},
    128: {0.5: 1.35, 0.7: 1.9, 0.8: 2.6, 0.9: 4.4, 0.95: 6.5},
    32: {0.5: 1.3, 0.8: 3.0, 0.9: 5.0},
    8: {0.5: 1.4, 0.8: 4.0, 0.9: 7.0},
}


@lru_cache(maxsize=2)
def _pruned(size: Size, sparsity: float) -> tuple[Array, gs.Mask]:
    pruned, mask = gs.prune(normal(size), sparsity=sparsity)
    return pruned, mask


def _near(truth: Array, tolerance: float = 1e-4) -> Callable[[Any], None]:
    def check(result: Any) -> None:
        error = np.abs(np.asarray(result, np.float32) - truth).max() / np.abs(truth).max()
        if not error <= tolerance:
            raise AssertionError(f"the answer is wrong by {error:.2g}")

    return check


def _peers(run: Run, w: Array, x: Array, *, sparse: bool) -> list[Call]:
    """Dense products, or those of other sparse libraries."""
    truth, out = w @ x, np.empty((w.shape[0], x.shape[1]), np.float32)
    check = _near(truth)
    if not sparse:
        calls = [Call("OpenBLAS", lambda: np.matmul(w, x, out=out), check)]
        if run.torch is not None:
            dense, of = run.torch.from_numpy(w), run.torch.from_numpy(x)
            calls.append(Call("torch (MKL)", lambda: (dense @ of).numpy(), check))
        return calls
    csr = scipy.sparse.csr_array(w)
    calls = [Call("scipy CSR", lambda: csr @ x, check)]
    if run.torch is not None:
        of = run.torch.from_numpy(x)
        indices = (csr.indptr.astype(np.int32), csr.indices.astype(np.int32), csr.data)
        rows = run.torch.sparse_csr_tensor(*map(run.torch.from_numpy, indices), csr.shape)
        calls.append(Call("torch CSR", lambda: (rows @ of).numpy(), check))
    return calls


def _product(w: Array, mask: gs.Mask, x: Array, form: str = "auto", dtype: Any = None) -> Call:
    a = gs.SparseMatrix.from_dense(w if dtype is None else w.astype(dtype), mask, format=form)
    out = np.empty((w.shape[0], x.shape[1]), np.float32)
    name = f"{(a._plan.few if x.shape[1] <= FEW else a.format)} {a.dtype}"
    return Call(name, lambda: gs.matmul(a, x, out=out), _near(w @ x, 1e-4 if dtype is None else 2e-2))


def dense(run: Run) -> None:
    """Eight columns and more, against dense BLAS."""
    size = run.sizes[0]
    for n, targets in MUST.items():
        x = normal((size[1], n), 1)
        for sparsity, target in targets.items():
            w, mask = _pruned(size, sparsity)
            for peer in _peers(run, w, x, sparse=False):
                run.compare(f"{n} columns, {sparsity:.0%}", _product(w, mask, x), peer, at_least=target)


def sparse(run: Run) -> None:
    """The same against other sparse kernels."""
    size = run.sizes[0]
    for n, target in ((512, 4.0), (128, 4.0), (32, 2.5), (8, 1.3), (1, 1.5)):
        x = normal((size[1], n), 1)
        for sparsity in (0.5, 0.8, 0.9, 0.95) if n > 1 else (0.9,):
            w, mask = _pruned(size, sparsity)
            for peer in _peers(run, w, x, sparse=True):
                run.compare(f"{n} columns, {sparsity:.0%}", _product(w, mask, x), peer, at_least=target)


def decode(run: Run) -> None:
    """One column and a matrix that no cache holds: against dense, and against one read of what is stored."""
    size = run.sizes[1]
    x = normal((size[1], 1), 1)
    w, mask = _pruned(size, 0.5)
    unpruned, out = normal(size), np.empty((size[0], 1), np.float32)
    for dtype, target, share in ((np.float32, 1.6, 0.85), (ml_dtypes.bfloat16, 3.0, 0.8), (np.float16, 3.0, 0.8)):
        ours = _product(w, mask, x, "bitmask", dtype)
        run.compare("1 column, 50%", ours, Call("OpenBLAS", lambda: np.matmul(unpruned, x, out=out)), at_least=target)
        stored = np.empty(mask.nnz * np.dtype(dtype).itemsize + mask.packed.nbytes, np.uint8)
        stored.fill(1)
        read = run.passes("one read of the stored", stored[: stored.size // 4096 * 4096].view(np.float32))
        run.compare("1 column, 50%", ours, read, at_most=1 / share, nbytes=stored.nbytes)


def small(run: Run) -> None:
    """What a call costs, and how fast a matrix is packed."""
    w, mask = _pruned((64, 64), 0.9)
    x = normal((64, 1), 1)
    for form in ("csr", "panel", "bitmask"):
        ours = _product(w, mask, x, form)
        many = Call(f"1000 calls, 64x64, {form}", lambda call=ours.run: [call() for _ in range(1000)])
        run.compare("small", many, Call("5 us each", lambda: 5e-3, timed=True), at_most=1)
    size = run.sizes[0]
    w, mask = _pruned(size, 0.5)
    for form in ("csr", "panel", "bitmask"):
        ours = Call(f"from_dense, {form}", lambda form=form: gs.SparseMatrix.from_dense(w, mask, format=form))
        run.compare("packing", ours, Call("1 GB/s", lambda: w.nbytes / 1e9, timed=True), at_most=1, nbytes=w.nbytes)


GROUPS = {"dense": dense, "sparse": sparse, "decode": decode, "small": small}

if __name__ == "__main__":
    sys.exit(measure("gossamer's products", GROUPS, SIZES))
