# SPDX-License-Identifier: Apache-2.0
"""Other libraries' products, one table: what each is, how it is found, and the job it makes of a problem."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gossamer.benchmarks.measuring import Array, Job


@dataclass
class Problem:
    """``w @ x`` with x ``[cols, n]``, or as a layer ``x @ w.T`` with x ``[n, cols]``; float32, zeros where pruned."""

    w: Array
    x: Array
    layer: bool
    threads: int

    @property
    def n(self) -> int:
        return int(self.x.shape[0 if self.layer else 1])

    @property
    def operands(self) -> tuple[Array, Array]:
        return (self.x, self.w.T) if self.layer else (self.w, self.x)

    def out(self) -> Array:
        return np.zeros((self.n, len(self.w)) if self.layer else (len(self.w), self.n), np.float32)

    @cached_property
    def csr(self) -> Any:
        import scipy.sparse

        return scipy.sparse.csr_array(self.w)

    def columns(self) -> Array:
        """x as ``[cols, n]``, for those who have no other product."""
        return self.x.T if self.layer else self.x

    def turned(self, product: Any) -> Any:
        return product.T if self.layer else product


class Peer(NamedTuple):
    kind: str  # "dense" or "sparse"
    module: str
    job: Callable[[Problem], Job]


def load(module: str) -> Any:
    """The module, or None where it is not installed or does not load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other people's imports
        if module == "sparse_dot_mkl" and "MKL_RT" not in os.environ:
            # the wheel of MKL has no libmkl_rt.so without a version, the only name that is looked for
            found = sorted((Path(sys.prefix) / "lib").glob("libmkl_rt.so.*"))
            os.environ |= {"MKL_RT": str(found[-1])} if found else {}
        try:
            return importlib.import_module(module)
        except (ImportError, OSError):
            return None


def numpy_dense(p: Problem) -> Job:
    (a, b), out = p.operands, p.out()
    return lambda: np.matmul(a, b, out=out)


def torch_dense(p: Problem) -> Job:
    torch = load("torch")
    a, b, out = (as_tensor(m) for m in (*p.operands, p.out()))
    return lambda: torch.mm(a, b, out=out)


def torch_csr(p: Problem) -> Job:
    rows, x = torch_rows(p.csr), as_tensor(p.columns())
    return lambda: p.turned(rows @ x)


def as_tensor(a: Array) -> Any:
    """Of the same memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that read-only arrays could be written to
        return load("torch").from_numpy(a)


def torch_rows(csr: Any) -> Any:
    """scipy's CSR as torch's, with 32-bit indices as MKL takes them."""
    torch = load("torch")
    parts = (csr.indptr.astype(np.int32), csr.indices.astype(np.int32), csr.data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sparse CSR is in beta
        return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), size=csr.shape)


def scipy_csr(p: Problem) -> Job:
    a, x = p.csr, p.columns()
    return lambda: p.turned(a @ x)


def mkl_csr(p: Problem) -> Job:
    import scipy.sparse

    mkl = load("sparse_dot_mkl")
    mkl.mkl_set_num_threads(p.threads)
    a, x = scipy.sparse.csr_matrix(p.csr), np.ascontiguousarray(p.columns())
    return lambda: p.turned(mkl.dot_product_mkl(a, x))


def onnxruntime_dense(p: Problem) -> Job:
    """As a layer, x @ w.T with a constant weight that it packs beforehand: how models reach it."""
    runtime = load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = p.threads
    weight, x = np.ascontiguousarray(p.w.T), np.ascontiguousarray(p.columns().T)
    model = _matmul_model(weight, p.n)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: (lambda y: y if p.layer else y.T)(session.run(None, {"x": x})[0])


PEERS: dict[str, Peer] = {
    "numpy": Peer("dense", "numpy", numpy_dense),
    "torch": Peer("dense", "torch", torch_dense),
    "onnxruntime": Peer("dense", "onnxruntime", onnxruntime_dense),
    "torch CSR": Peer("sparse", "torch", torch_csr),
    "scipy CSR": Peer("sparse", "scipy.sparse", scipy_csr),
    "MKL CSR": Peer("sparse", "sparse_dot_mkl", mkl_csr),
}


def available(all_of_them: bool) -> dict[str, Peer]:
    """numpy, which is always there; with `all_of_them` also whatever is installed."""
    return {name: peer for name, peer in PEERS.items() if name == "numpy" or (all_of_them and load(peer.module))}


def _matmul_model(weight: Array, n: int) -> bytes:
    """An ONNX file of one MatMul ``x [n, cols] @ weight``; written by hand, so that package onnx is not needed."""

    def number(value: int) -> bytes:
        done = b""
        while value > 127:
            done, value = done + bytes([value & 127 | 128]), value >> 7
        return done + bytes([value])

    def entry(key: int, value: int | str | bytes) -> bytes:
        if isinstance(value, int):
            return number(key << 3) + number(value)
        content = value.encode() if isinstance(value, str) else value
        return number(key << 3 | 2) + number(len(content)) + content

    def tensor(name: str, shape: tuple[int, ...]) -> bytes:
        dimensions = b"".join(entry(1, entry(1, size)) for size in shape)
        return entry(1, name) + entry(2, entry(1, entry(1, 1) + entry(2, dimensions)))

    cols, rows = weight.shape
    node = entry(1, "x") + entry(1, "w") + entry(2, "y") + entry(4, "MatMul")
    constant = entry(1, cols) + entry(1, rows) + entry(2, 1) + entry(8, "w") + entry(9, weight.tobytes())
    graph = entry(1, node) + entry(2, "product") + entry(5, constant)
    graph += entry(11, tensor("x", (n, cols))) + entry(12, tensor("y", (n, rows)))
    return entry(1, 8) + entry(8, entry(2, 17)) + entry(7, graph)
