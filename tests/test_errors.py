# SPDX-License-Identifier: Apache-2.0
"""Bad input: the right exception, a message that starts with the function's name and names argument and value, and
inputs and outputs as they were. One row a case."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, generator, right_or_refused


class Inputs:
    """Fresh arrays for one case; every one of them must be unchanged after the error."""

    def __init__(self) -> None:
        r = generator("errors")

        def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
            return r.standard_normal(shape).astype(dtype)

        self.w, self.g, self.out = normal(6, 8), normal(6, 8), normal(6, 8)
        self.other, self.short, self.flat = normal(6, 9), normal(5, 8), normal(48)
        self.x, self.dy, self.y = normal(4, 8), normal(4, 6), normal(4, 6)
        self.bias, self.residual = normal(6), normal(4, 6)
        self.ints, self.complex, self.out64 = np.arange(48).reshape(6, 8), self.w + 1j, normal(6, 8, dtype=np.float64)
        self.nan = normal(6, 8)
        self.nan[2, 3] = np.nan
        self.bools = r.random((6, 8)) < 0.5
        self.locked = normal(6, 8)
        self.locked.flags.writeable = False
        self.params = {"a": normal(6, 8), "b": normal(3, 4)}
        self.mask, self.wrong_mask = gs.Mask.from_dense(self.bools), gs.Mask.from_dense(np.ones((6, 9), bool))
        self.few = gs.Mask.from_dense(np.arange(48).reshape(6, 8) < 3)
        self.norm, self.movement = gs.Stats("norm"), gs.Stats("movement")
        self.norm.update(normal(5, 8))
        self.wide = gs.Stats("norm")
        self.wide.update(normal(5, 9))
        self.movement.update(self.w, self.g)
        self.grad2, self.hessian, self.wide_hessian = gs.Stats("grad2"), gs.Stats("hessian"), gs.Stats("hessian")
        self.grad2.update(normal(5, 6, 8))
        self.hessian.update(normal(20, 8))
        self.wide_hessian.update(normal(20, 9))
        self.half, self.brain = normal(6, 8, dtype=np.float16), normal(6, 8, dtype=BFLOAT16)
        self.a = gs.SparseMatrix.from_dense(self.w, self.mask, format="csr")
        self.d = gs.SparseMatrix.from_dense(self.w, self.mask, format="dense")
        self.layer = gs.SparseLinear(self.a, self.bias, "relu")

    def arrays(self) -> dict[str, np.ndarray]:
        found = {name: part for name, part in vars(self).items() if isinstance(part, np.ndarray)}
        found |= {f"params[{name}]": part for name, part in self.params.items()}
        return found | {
            "values of a": np.asarray(self.a.values),
            "values of norm": np.asarray(self.norm.values),
            "values of movement": np.asarray(self.movement.values),
            "values of grad2": np.asarray(self.grad2.values),
            "values of hessian": np.asarray(self.hessian.values),
            "mask": self.mask.to_dense(),
        }


V, T = ValueError, TypeError
OTHERS: tuple[tuple[Any, str], ...] = (
    (np.int8, "int8"),
    (np.uint16, "uint16"),
    (np.int64, "int64"),
    (np.complex128, "complex128"),
    (np.longdouble, np.dtype(np.longdouble).name),
    (ml_dtypes.float8_e4m3fn, "float8_e4m3fn"),
    (ml_dtypes.int4, "int4"),
)
Call = Callable[[Inputs], Any]

# call, exception, function, what the message names (regular expressions)
ERRORS: list[tuple[Call, Any, str, tuple[str, ...]]] = [
    # score
    (lambda i: gs.score(i.w, method="foo"), V, "score", ("method", "foo")),
    (lambda i: gs.score(i.w, method=3), T, "score", ("method", "int|3")),
    (lambda i: gs.score(i.ints), T, "score", ("weights", "int64")),
    (lambda i: gs.score(i.complex), T, "score", ("weights", "complex64")),
    (lambda i: gs.score(i.bools), T, "score", ("weights", "bool")),
    (lambda i: gs.score([1.0, 2.0]), T, "score", ("weights", "list")),
    (lambda i: gs.score(None), T, "score", ("weights", "None")),
    (lambda i: gs.score("weights"), T, "score", ("weights", "str")),
    (lambda i: gs.score(i.w.astype(object)), T, "score", ("weights", "object")),
    (lambda i: gs.score({"a": [1.0]}), T, "score", ("weights", "list")),
    (lambda i: gs.score(i.w, method="gradient"), V, "score", ("grads",)),
    (lambda i: gs.score(i.w, method="taylor"), V, "score", ("grads",)),
    (lambda i: gs.score(i.w, i.other, method="taylor"), V, "score", ("grads", r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.score(i.w, i.flat, method="taylor"), V, "score", ("grads", r"\(6, 8\)", r"\(48,\)")),
    (lambda i: gs.score(i.w, i.ints, method="gradient"), T, "score", ("grads", "int64")),
    (lambda i: gs.score(i.params, {"a": i.g}, method="taylor"), V, "score", ("grads", "b")),
    (lambda i: gs.score(i.params, i.g, method="taylor"), T, "score", ("grads",)),
    (lambda i: gs.score(i.w, {"a": i.g}, method="taylor"), T, "score", ("grads",)),
    (lambda i: gs.score(i.w, method="movement"), V, "score", ("stats",)),
    (lambda i: gs.score(i.w, method="wanda"), V, "score", ("stats",)),
    (lambda i: gs.score(i.w, method="wanda", stats=i.movement), V, "score", ("stats", "norm", "movement")),
    (lambda i: gs.score(i.w, method="wanda", stats=i.wide), V, "score", ("stats", "8", "9")),
    (lambda i: gs.score(i.w, method="wanda", stats=3), T, "score", ("stats", "int|3")),
    (lambda i: gs.score(i.short, method="movement", stats=i.movement), V, "score", ("stats", r"\(5, 8\)")),
    (lambda i: gs.score(i.params, method="wanda", stats={"a": i.norm}), V, "score", ("stats", "b")),
    (lambda i: gs.score(i.w, method="random"), V, "score", ("seed",)),
    (lambda i: gs.score(i.w, method="random", seed=1.5), T, "score", ("seed", r"1\.5|float")),
    (lambda i: gs.score(i.w, method="random", seed=-1), V, "score", ("seed", "-1")),
    (lambda i: gs.score(i.w, out=i.other), V, "score", ("out", r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.score(i.w, out=i.out64), T, "score", ("out", "float32", "float64")),
    (lambda i: gs.score(i.w, out=i.locked), V, "score", ("out", "read-only|writ")),
    (lambda i: gs.score(i.w, out=[0.0]), T, "score", ("out", "list")),
    (lambda i: gs.score(i.params, out=i.out), T, "score", ("out",)),
    (lambda i: gs.score(i.params, out={"a": i.out}), V, "score", ("out", "b")),
    (lambda i: gs.score(i.w, method=lambda w, g, s: i.short), V, "score", ("method", r"\(6, 8\)", r"\(5, 8\)")),
    (lambda i: gs.score(i.w, method=lambda w, g, s: 3), T, "score", ("method", "int")),
    (lambda i: gs.score(i.w, method=lambda w, g, s: i.ints), T, "score", ("method", "int64")),
    # score and prune: what each criterion needs
    *((lambda i, m=m: gs.score(i.w, method=m), V, "score", ("grads", m, "None"))
      for m in ("taylor2", "snip", "grasp", "synflow")),
    *((lambda i, m=m: gs.prune(i.w, method=m, sparsity=0.5, out=i.w), V, "prune", ("grads", m, "None"))
      for m in ("taylor2", "snip", "grasp", "synflow")),
    *((lambda i, m=m: gs.score(i.params, {"a": i.g}, method=m), V, "score", ("grads", "b"))
      for m in ("taylor2", "snip", "grasp", "synflow")),
    *((lambda i, m=m: gs.score(i.w, i.short, method=m), V, "score", ("grads", r"\(6, 8\)", r"\(5, 8\)"))
      for m in ("taylor2", "snip", "grasp", "synflow")),
    *((lambda i, m=m: gs.score(i.w, i.complex, method=m), T, "score", ("grads", "complex64"))
      for m in ("taylor2", "snip", "grasp", "synflow")),
    *((lambda i, m=m: gs.score(i.w, i.g, method=m), V, "score", ("stats", m, "None"))
      for m in ("fisher", "obs", "ria")),
    *((lambda i, m=m: gs.prune(i.w, i.g, method=m, sparsity=0.5, out=i.w), V, "prune", ("stats", m, "None"))
      for m in ("fisher", "obs", "ria")),
    *((lambda i, m=m: gs.score(i.w, method=m, stats=i.movement), V, "score", ("stats", kind, "movement"))
      for m, kind in (("fisher", "grad2"), ("obs", "hessian"), ("ria", "norm"))),
    *((lambda i, m=m: gs.prune(i.w, method=m, stats=i.movement, sparsity=0.5, out=i.w), V, "prune", (kind, "movement"))
      for m, kind in (("fisher", "grad2"), ("obs", "hessian"), ("ria", "norm"))),
    *((lambda i, m=m: gs.score(i.params, method=m, stats={"b": i.norm}), V, "score", ("stats", "a"))
      for m in ("fisher", "obs", "ria")),
    *((lambda i, m=m: gs.score(i.w, method=m, stats="norm"), T, "score", ("stats", "str")) for m in ("fisher", "ria")),
    (lambda i: gs.score(i.w, method="obs", stats=i.hessian.values), T, "score", ("stats", "ndarray")),
    (lambda i: gs.score(i.w, method="ria", stats=i.hessian), V, "score", ("stats", "norm", "hessian")),
    (lambda i: gs.score(i.w, method="obs", stats=i.norm), V, "score", ("stats", "hessian", "norm")),
    (lambda i: gs.score(i.w, method="ria", stats=i.wide), V, "score", ("stats", "8", "9")),
    (lambda i: gs.score(i.w, method="obs", stats=i.wide_hessian), V, "score", ("stats", "8", "9")),
    (lambda i: gs.prune(i.w, method="obs", stats=i.wide_hessian, sparsity=0.5, out=i.w), V, "prune", ("stats", "9")),
    (lambda i: gs.score(i.short, method="fisher", stats=i.grad2), V, "score", ("stats", r"\(5, 8\)", r"\(6, 8\)")),
    (lambda i: gs.score(i.flat, method="fisher", stats=i.grad2), V, "score", ("stats", r"\(48,\)", r"\(6, 8\)")),
    *((lambda i, kind=kind, m=m: gs.score(i.w, method=m, stats=gs.Stats(kind)), V, "score", ("stats .*updated", m))
      for m, kind in (("fisher", "grad2"), ("obs", "hessian"), ("ria", "norm"), ("movement", "movement"))),
    (lambda i: gs.prune(i.w, method="wanda", stats=gs.Stats("norm"), sparsity=0.5), V, "prune", ("stats .*updated",)),
    *((lambda i, m=m: gs.score(i.ints, i.g, method=m), T, "score", ("weights", "int64"))
      for m in ("lamp", "fpgm", "snip")),
    *((lambda i, m=m: gs.prune(i.complex, method=m, sparsity=0.5), T, "prune", ("weights", "complex64"))
      for m in ("lamp", "fpgm")),
    *((lambda i, m=m: gs.prune(i.nan, i.g, method=m, sparsity=0.5, out=i.nan), V, "prune", ("NaN", r"\b19\b"))
      for m in ("taylor2", "grasp", "synflow", "lamp")),
    *((lambda i, m=m: gs.prune({"ok": i.w, "bad": i.nan}, {"ok": i.g, "bad": i.g}, method=m, sparsity=0.5), V, "prune",
       ("NaN", "bad", r"\b19\b")) for m in ("taylor2", "grasp", "synflow", "lamp")),
    (lambda i: gs.prune(i.nan, i.g, method="snip", sparsity=0.5, out=i.nan), V, "prune", ("NaN",)),
    (lambda i: gs.prune(i.nan, method="fpgm", pattern="row", sparsity=0.5, out=i.nan), V, "prune", ("NaN",)),
    (lambda i: gs.prune(i.nan, method="ria", stats=i.norm, sparsity=0.5, out=i.nan), V, "prune", ("NaN",)),
    # 16 bits
    (lambda i: gs.score(i.half, out=i.half), T, "score", ("out", "float32", "float16")),
    (lambda i: gs.score(i.brain, out=i.brain), T, "score", ("out", "float32", "bfloat16")),
    (lambda i: gs.score(i.brain, out=i.out64), T, "score", ("out", "float32", "float64")),
    (lambda i: gs.score(i.w, i.out64, method="synflow", out=i.out), T, "score", ("out", "float64", "float32")),
    (lambda i: gs.prune(i.half, sparsity=0.5, out=i.out), T, "prune", ("out", "float16", "float32")),
    (lambda i: gs.prune(i.brain, sparsity=0.5, out=i.half), T, "prune", ("out", "bfloat16", "float16")),
    (lambda i: gs.apply_mask(i.brain, i.mask, out=i.out), T, "apply_mask", ("out", "bfloat16", "float32")),
    (lambda i: gs.adjust(i.brain, i.g, 0.1, out=i.out), T, "adjust", ("out", "bfloat16", "float32")),
    (lambda i: gs.prune(i.brain, sparsity=1.5, out=i.brain), V, "prune", ("sparsity", r"1\.5")),
    (lambda i: gs.prune(i.half, i.nan, method="taylor", sparsity=0.5, out=i.half), V, "prune", ("NaN", r"\b19\b")),
    (lambda i: gs.topk_mask(i.nan.astype(BFLOAT16), sparsity=0.5), V, "topk_mask", ("NaN", r"\b19\b")),
    (lambda i: gs.topk_mask(i.nan.astype(np.float16), sparsity=0.5), V, "topk_mask", ("NaN", r"\b19\b")),
    (lambda i: gs.adjust(i.half, i.nan.astype(np.float16), 0.1, out=i.half), V, "adjust", ("scores", "NaN", r"\b19\b")),
    # other dtypes
    *((lambda i, t=t: gs.score(i.w.astype(t)), T, "score", ("weights", n)) for t, n in OTHERS),
    *((lambda i, t=t: gs.prune(i.w.astype(t), sparsity=0.5), T, "prune", ("weights", n)) for t, n in OTHERS),
    *((lambda i, t=t: gs.topk_mask(i.w.astype(t), nnz=1), T, "topk_mask", ("scores", n)) for t, n in OTHERS),
    *((lambda i, t=t: gs.apply_mask(i.w.astype(t), i.mask), T, "apply_mask", ("weights", n))
      for t, n in OTHERS),
    *((lambda i, t=t: gs.adjust(i.w, i.g.astype(t), 0.1), T, "adjust", ("scores", n)) for t, n in OTHERS),
    *((lambda i, t=t: gs.score(i.w, i.g.astype(t), method="snip"), T, "score", ("grads", n))
      for t, n in OTHERS),
    *((lambda i, t=t: gs.Stats("norm").update(i.x.astype(t)), T, "update", (n,)) for t, n in OTHERS),
    *((lambda i, t=t: gs.Stats("movement").update(i.w, i.g.astype(t)), T, "update", (n,)) for t, n in OTHERS),
    # topk_mask
    (lambda i: gs.topk_mask(i.w, sparsity=1.3), V, "topk_mask", (r"sparsity must be in \[0, 1\], got 1\.3",)),
    (lambda i: gs.topk_mask(i.w, sparsity=-0.1), V, "topk_mask", ("sparsity", r"-0\.1")),
    (lambda i: gs.topk_mask(i.w, sparsity=float("nan")), V, "topk_mask", ("sparsity", "nan")),
    (lambda i: gs.topk_mask(i.w, sparsity=float("inf")), V, "topk_mask", ("sparsity", "inf")),
    (lambda i: gs.topk_mask(i.w, sparsity="0.5"), T, "topk_mask", ("sparsity", "str|'0.5'")),
    (lambda i: gs.topk_mask(i.w), V, "topk_mask", ("sparsity", "nnz", "threshold")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, nnz=3), V, "topk_mask", ("sparsity", "nnz")),
    (lambda i: gs.topk_mask(i.w, threshold=0.5, nnz=3), V, "topk_mask", ("threshold", "nnz")),
    (lambda i: gs.topk_mask(i.w, nnz=-1), V, "topk_mask", ("nnz", "-1")),
    (lambda i: gs.topk_mask(i.w, nnz=49), V, "topk_mask", ("nnz", "48", "49")),
    (lambda i: gs.topk_mask(i.w, nnz=2**63), V, "topk_mask", ("nnz", str(2**63))),
    (lambda i: gs.topk_mask(i.w, nnz=9, group="row"), V, "topk_mask", ("nnz", "8", "9")),
    (lambda i: gs.topk_mask(i.w, nnz=7, pattern="row"), V, "topk_mask", ("nnz", "6", "7")),
    (lambda i: gs.topk_mask(i.params, nnz=61, group="global"), V, "topk_mask", ("nnz", "60", "61")),
    (lambda i: gs.topk_mask(i.params, nnz=13), V, "topk_mask", ("nnz", "12", "13")),
    (lambda i: gs.topk_mask(i.w, nnz=1.5), T, "topk_mask", ("nnz", r"1\.5|float")),
    (lambda i: gs.topk_mask(i.w, nnz="3"), T, "topk_mask", ("nnz", "str|'3'")),
    (lambda i: gs.topk_mask(i.w, threshold=float("nan")), V, "topk_mask", ("threshold", "nan")),
    (lambda i: gs.topk_mask(i.w, threshold="1"), T, "topk_mask", ("threshold", "str|'1'")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="foo"), V, "topk_mask", ("pattern", "foo")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern=4), T, "topk_mask", ("pattern", "int|4")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="block:0x4"), V, "topk_mask", ("pattern", "block:0x4")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="block:4x4"), V, "topk_mask", ("block:4x4", "6")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="block:2x3"), V, "topk_mask", ("block:2x3", "8")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="block:-2x4"), V, "topk_mask", ("pattern", "block:-2x4")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern="block:2"), V, "topk_mask", ("pattern", "block:2")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, pattern=f"block:{2**70}x1"), V, "topk_mask", ("pattern", "block:")),
    (lambda i: gs.topk_mask(i.other, pattern="2:4"), V, "topk_mask", ("2:4", "9")),
    (lambda i: gs.topk_mask(i.w, pattern="5:4"), V, "topk_mask", ("pattern", "5:4")),
    (lambda i: gs.topk_mask(i.w, pattern="0:4"), V, "topk_mask", ("pattern", "0:4")),
    (lambda i: gs.topk_mask(i.w, pattern="-1:4"), V, "topk_mask", ("pattern", "-1:4")),
    (lambda i: gs.topk_mask(i.w, pattern="2:33"), V, "topk_mask", ("pattern", "2:33")),
    (lambda i: gs.topk_mask(i.w, pattern="2:4", sparsity=0.6), V, "topk_mask", ("sparsity", r"0\.6")),
    (lambda i: gs.topk_mask(i.w, pattern="2:4", nnz=23), V, "topk_mask", ("nnz", "24", "23")),
    (lambda i: gs.topk_mask(i.w, pattern="2:4", threshold=0.5), V, "topk_mask", ("threshold",)),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, group="foo"), V, "topk_mask", ("group", "foo")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, group=None), T, "topk_mask", ("group", "None")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, group="row", pattern="row"), V, "topk_mask", ("group", "row")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, min_density=0.1), V, "topk_mask", ("min_density", "global")),
    (lambda i: gs.topk_mask(i.params, sparsity=0.5, group="row", min_density=0.1), V, "topk_mask", ("min_density",)),
    (lambda i: gs.topk_mask(i.params, sparsity=0.5, group="global", min_density=1.5), V, "topk_mask",
     ("min_density", r"1\.5")),
    (lambda i: gs.topk_mask(i.params, sparsity=0.5, group="global", min_density=-0.5), V, "topk_mask",
     ("min_density", r"-0\.5")),
    (lambda i: gs.topk_mask(i.params, sparsity=0.9, group="global", min_density=0.5), V, "topk_mask",
     ("min_density", "30", "6")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, prior=i.wrong_mask), V, "topk_mask",
     ("prior", r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, prior=3), T, "topk_mask", ("prior", "int|3")),
    (lambda i: gs.topk_mask(i.w, nnz=4, prior=i.few), V, "topk_mask", ("prior", "3", "4")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, prior={"a": i.mask}), T, "topk_mask", ("prior",)),
    (lambda i: gs.topk_mask(i.params, sparsity=0.9, prior=i.mask), T, "topk_mask", ("prior",)),
    (lambda i: gs.topk_mask(i.params, sparsity=0.9, prior={"a": i.mask}), V, "topk_mask", ("prior", "b")),
    (lambda i: gs.topk_mask(i.w, sparsity=0.5, nan="foo"), V, "topk_mask", ("nan", "foo")),
    (lambda i: gs.topk_mask(i.nan, sparsity=0.5), V, "topk_mask", ("NaN", r"\b19\b")),
    (lambda i: gs.topk_mask({"ok": i.w, "bad": i.nan}, sparsity=0.5), V, "topk_mask", ("NaN", "bad", r"\b19\b")),
    (lambda i: gs.topk_mask(i.ints, sparsity=0.5), T, "topk_mask", ("scores", "int64")),
    (lambda i: gs.topk_mask([1.0], sparsity=0.5), T, "topk_mask", ("scores", "list")),
    # prune
    (lambda i: gs.prune(i.w, sparsity=1.3, out=i.out), V, "prune", (r"sparsity must be in \[0, 1\], got 1\.3$",)),
    (lambda i: gs.prune(i.w, sparsity=1.3, out=i.w), V, "prune", ("sparsity",)),
    (lambda i: gs.prune(i.w, out=i.out), V, "prune", ("sparsity", "nnz")),
    (lambda i: gs.prune(i.w, sparsity=0.5, nnz=3), V, "prune", ("sparsity", "nnz")),
    (lambda i: gs.prune(i.w, nnz=49, out=i.out), V, "prune", ("nnz", "49")),
    (lambda i: gs.prune(i.w, sparsity=0.5, method="foo"), V, "prune", ("method", "foo")),
    (lambda i: gs.prune(i.w, sparsity=0.5, method="taylor", out=i.out), V, "prune", ("grads",)),
    (lambda i: gs.prune(i.w, i.short, sparsity=0.5, method="taylor"), V, "prune", ("grads", r"\(5, 8\)")),
    (lambda i: gs.prune(i.w, sparsity=0.5, method="wanda", out=i.out), V, "prune", ("stats",)),
    (lambda i: gs.prune(i.w, sparsity=0.5, method="wanda", stats=i.wide), V, "prune", ("stats", "9")),
    (lambda i: gs.prune(i.w, sparsity=0.5, method="random"), V, "prune", ("seed",)),
    (lambda i: gs.prune(i.nan, sparsity=0.5, out=i.out), V, "prune", ("NaN", r"\b19\b")),
    (lambda i: gs.prune(i.nan, sparsity=0.5, out=i.nan), V, "prune", ("NaN", r"\b19\b")),
    (lambda i: gs.prune({"ok": i.w, "bad": i.nan}, sparsity=0.5, out={"ok": i.out, "bad": i.g}), V, "prune",
     ("bad", r"\b19\b")),
    (lambda i: gs.prune(i.w, i.nan, method="taylor", sparsity=0.5, out=i.w), V, "prune", ("NaN", r"\b19\b")),
    (lambda i: gs.prune(i.ints, sparsity=0.5), T, "prune", ("weights", "int64")),
    (lambda i: gs.prune([1.0], sparsity=0.5), T, "prune", ("weights", "list")),
    (lambda i: gs.prune(i.w, sparsity=0.5, out=i.out64), T, "prune", ("out", "float64")),
    (lambda i: gs.prune(i.w, sparsity=0.5, out=i.other), V, "prune", ("out", r"\(6, 9\)")),
    (lambda i: gs.prune(i.w, sparsity=0.5, out=i.locked), V, "prune", ("out",)),
    (lambda i: gs.prune(i.w, sparsity=0.5, group="foo"), V, "prune", ("group", "foo")),
    (lambda i: gs.prune(i.other, pattern="2:4", out=i.other), V, "prune", ("2:4", "9")),
    (lambda i: gs.prune(i.w, sparsity=0.5, prior=i.wrong_mask, out=i.out), V, "prune", ("prior", r"\(6, 9\)")),
    (lambda i: gs.prune(i.w, nnz=4, prior=i.few, out=i.w), V, "prune", ("prior", "3", "4")),
    (lambda i: gs.prune(i.params, sparsity=0.9, group="global", min_density=0.5, out=i.params), V, "prune",
     ("min_density",)),
    (lambda i: gs.prune(i.params, sparsity=0.5, out={"a": i.out}), V, "prune", ("out", "b")),
    (lambda i: gs.prune(i.w, sparsity=0.5, nan="foo", out=i.out), V, "prune", ("nan", "foo")),
    # apply_mask
    (lambda i: gs.apply_mask(i.w, i.wrong_mask, out=i.out), V, "apply_mask", ("mask", r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.apply_mask(i.flat, i.mask), V, "apply_mask", ("mask", r"\(48,\)", r"\(6, 8\)")),
    (lambda i: gs.apply_mask(i.w, 3), T, "apply_mask", ("mask", "int|3")),
    (lambda i: gs.apply_mask(i.w, i.g), T, "apply_mask", ("mask", "ndarray|float32")),
    (lambda i: gs.apply_mask(i.ints, i.mask), T, "apply_mask", ("weights", "int64")),
    (lambda i: gs.apply_mask(i.params, i.mask), T, "apply_mask", ("mask",)),
    (lambda i: gs.apply_mask(i.params, {"a": i.mask}), V, "apply_mask", ("mask", "b")),
    (lambda i: gs.apply_mask(i.w, i.mask, out=i.other), V, "apply_mask", ("out", r"\(6, 9\)")),
    (lambda i: gs.apply_mask(i.w, i.mask, out=i.out64), T, "apply_mask", ("out", "float64")),
    (lambda i: gs.apply_mask(i.w, i.mask, out=i.locked), V, "apply_mask", ("out",)),
    # adjust
    (lambda i: gs.adjust(i.w, i.g, 0.1, rule="foo", out=i.out), V, "adjust", ("rule", "foo")),
    (lambda i: gs.adjust(i.w, i.g, float("nan"), out=i.out), V, "adjust", ("rate", "nan")),
    (lambda i: gs.adjust(i.w, i.g, float("inf")), V, "adjust", ("rate", "inf")),
    (lambda i: gs.adjust(i.w, i.g, "0.1"), T, "adjust", ("rate", "str|'0.1'")),
    (lambda i: gs.adjust(i.w, i.g, 1.0, rule="scale"), V, "adjust", ("rate", r"1\.0")),
    (lambda i: gs.adjust(i.w, i.g, -0.1, rule="scale"), V, "adjust", ("rate", r"-0\.1")),
    (lambda i: gs.adjust(i.w, i.nan, 0.1, out=i.w), V, "adjust", ("scores", "NaN", r"\b19\b")),
    (lambda i: gs.adjust(i.w, i.nan, 0.1, rule="scale", out=i.w), V, "adjust", ("scores", "NaN")),
    (lambda i: gs.adjust({"ok": i.w, "bad": i.g}, {"ok": i.out, "bad": i.nan}, 0.1, out={"ok": i.w, "bad": i.g}), V,
     "adjust", ("bad", "NaN")),
    (lambda i: gs.adjust(i.w, i.other, 0.1), V, "adjust", ("scores", r"\(6, 9\)")),
    (lambda i: gs.adjust(i.w, i.ints, 0.1), T, "adjust", ("scores", "int64")),
    (lambda i: gs.adjust(i.ints, i.g, 0.1), T, "adjust", ("weights", "int64")),
    (lambda i: gs.adjust(i.params, i.g, 0.1), T, "adjust", ("scores",)),
    (lambda i: gs.adjust(i.w, i.g, 0.1, out=i.other), V, "adjust", ("out", r"\(6, 9\)")),
    # Stats
    (lambda i: gs.Stats("foo"), V, "Stats", ("kind", "foo")),
    (lambda i: gs.Stats("norm", decay=1.5), V, "Stats", ("decay", r"1\.5")),
    (lambda i: gs.Stats("norm", decay=-0.5), V, "Stats", ("decay", r"-0\.5")),
    (lambda i: gs.Stats("norm", decay=float("nan")), V, "Stats", ("decay", "nan")),
    (lambda i: gs.Stats("norm", decay="x"), T, "Stats", ("decay", "str|'x'")),
    (lambda i: gs.Stats("norm", decay=True), T, "Stats", ("decay", "True")),
    (lambda i: i.norm.update(i.other), V, "update", ("8", "9")),
    (lambda i: i.norm.update(i.ints), T, "update", ("int64",)),
    (lambda i: i.norm.update([1.0] * 8), T, "update", ("list",)),
    (lambda i: i.grad2.update(i.w), V, "update", (r"\(6, 8\)",)),
    (lambda i: i.movement.update(i.other, i.other), V, "update", (r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: i.movement.update(i.w, i.other), V, "update", (r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: i.movement.update(i.w), (T, V), "update", ("grads",)),
    (lambda i: i.norm.update(i.x, i.x), (T, V), "update", ()),
    (lambda i: i.norm.merge(i.movement), V, "merge", ("norm", "movement")),
    (lambda i: i.norm.merge(i.wide), V, "merge", ("8", "9")),
    (lambda i: i.norm.merge(3), T, "merge", ("int|3",)),
    # Mask
    (lambda i: gs.Mask.from_dense(i.w), T, "from_dense", ("float32",)),
    (lambda i: gs.Mask.from_dense([True]), T, "from_dense", ("list",)),
    (lambda i: i.mask & i.wrong_mask, V, "Mask", (r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: i.mask | i.wrong_mask, V, "Mask", (r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.Mask((6, 8), np.zeros((6, 2), np.uint8)), V, "Mask", ("packed", r"\(6, 1\)", r"\(6, 2\)")),
    (lambda i: gs.Mask((6, 8), np.zeros((6, 1), np.int64)), T, "Mask", ("packed", "int64")),
    (lambda i: gs.Mask((-6, 8), np.zeros((6, 1), np.uint8)), V, "Mask", ("shape", "-6")),
    # SparseMatrix
    (lambda i: gs.SparseMatrix.from_dense(i.ints), T, "from_dense", ("int64",)),
    (lambda i: gs.SparseMatrix.from_dense(i.w, format="foo"), V, "from_dense", ("format", "foo")),
    (lambda i: gs.SparseMatrix.from_dense(i.w, format=3), T, "from_dense", ("format", "int|3")),
    (lambda i: gs.SparseMatrix.from_dense(i.w, dtype="int64"), T, "from_dense", ("dtype", "int64")),
    (lambda i: gs.SparseMatrix.from_dense(i.w, i.wrong_mask), V, "from_dense", ("mask", r"\(6, 8\)", r"\(6, 9\)")),
    (lambda i: gs.SparseMatrix.from_dense(i.w, 3), T, "from_dense", ("mask", "int|3")),
    (lambda i: gs.SparseMatrix.from_scipy(i.w), T, "from_scipy", ("ndarray",)),
    (lambda i: i.a.with_values(i.flat), V, "with_values", (str(48),)),
    (lambda i: i.a.with_values(np.arange(i.a.nnz)), T, "with_values", ("int64",)),
    # matmul and linear
    (lambda i: gs.matmul(i.w, i.g), T, "matmul", ("a", "ndarray")),
    (lambda i: gs.matmul(i.a, i.x), V, "matmul", ("x", "8", r"\(4, 8\)")),
    (lambda i: gs.matmul(i.a, i.ints.T), T, "matmul", ("x", "int64")),
    (lambda i: gs.matmul(i.a, "x"), T, "matmul", ("x", "str")),
    (lambda i: gs.matmul(i.a, i.x.T, bias=i.x), V, "matmul", ("bias", r"\(4, 8\)")),
    (lambda i: gs.matmul(i.a, i.x.T, bias=i.flat), V, "matmul", ("bias", r"\(48,\)")),
    (lambda i: gs.matmul(i.a, i.x.T, activation="foo"), V, "matmul", ("activation", "foo")),
    (lambda i: gs.matmul(i.a, i.x.T, activation=3), T, "matmul", ("activation", "int|3")),
    (lambda i: gs.matmul(i.a, i.x.T, residual=i.residual), V, "matmul", ("residual", r"\(6, 4\)", r"\(4, 6\)")),
    (lambda i: gs.matmul(i.a, i.x.T, out=i.y), V, "matmul", ("out", r"\(6, 4\)", r"\(4, 6\)")),
    (lambda i: gs.linear(i.w, i.g), T, "linear", ("a", "ndarray")),
    (lambda i: gs.linear(i.other, i.a), V, "linear", ("x", "8", r"\(6, 9\)")),
    (lambda i: gs.linear(i.ints, i.a), T, "linear", ("x", "int64")),
    (lambda i: gs.linear([[1.0] * 8], i.a), T, "linear", ("x", "list")),
    (lambda i: gs.linear(i.x, i.a, bias=i.residual), V, "linear", ("bias", r"\(4, 6\)")),
    (lambda i: gs.linear(i.x, i.a, bias=np.arange(6)), T, "linear", ("bias", "int64")),
    (lambda i: gs.linear(i.x, i.a, activation="foo", out=i.y), V, "linear", ("activation", "foo")),
    (lambda i: gs.linear(i.x, i.d, activation="foo", out=i.y), V, "linear", ("activation", "foo")),
    (lambda i: gs.linear(i.x, i.a, residual=i.w, out=i.y), V, "linear", ("residual", r"\(4, 6\)", r"\(6, 8\)")),
    (lambda i: gs.linear(i.x, i.a, out=i.w), V, "linear", ("out", r"\(4, 6\)", r"\(6, 8\)")),
    (lambda i: gs.linear(i.x, i.a, out=i.y.astype(np.float64)), T, "linear", ("out", "float32", "float64")),
    (lambda i: gs.linear(i.x, i.d, out=i.w), V, "linear", ("out", r"\(6, 8\)")),
    # sddmm
    (lambda i: gs.sddmm(i.w, i.other, i.mask), V, "sddmm", ("8", "9")),
    (lambda i: gs.sddmm(i.w, i.x, i.mask), V, "sddmm", ("pattern", r"\(6, 4\)", r"\(6, 8\)")),
    (lambda i: gs.sddmm(i.w, i.g, i.bools), T, "sddmm", ("pattern", "ndarray|bool")),
    (lambda i: gs.sddmm(i.ints, i.ints, i.mask), T, "sddmm", ("x", "int64")),
    (lambda i: gs.sddmm(i.flat, i.w, i.mask), V, "sddmm", ("x", r"\(48,\)")),
    # SparseLinear
    (lambda i: gs.SparseLinear(i.w), T, "SparseLinear", ("a", "ndarray")),
    (lambda i: gs.SparseLinear(i.a, i.flat), V, "SparseLinear", ("bias", "6", "48")),
    (lambda i: gs.SparseLinear(i.a, activation="foo"), V, "SparseLinear", ("activation", "foo")),
    (lambda i: i.layer.backward(i.x, i.x), V, r"backward", ("dy", r"\(4, 6\)", r"\(4, 8\)")),
    (lambda i: i.layer.backward(i.dy, i.w), V, r"backward", ("x|dy", r"\(6, 8\)|\(4, 6\)")),
    (lambda i: i.layer.backward(i.dy, i.dy), V, r"backward", ("x", r"\(4, 6\)")),
    # threads
    (lambda i: gs.set_num_threads(0), V, "set_num_threads", ("0",)),
    (lambda i: gs.set_num_threads(-2), V, "set_num_threads", ("-2",)),
    (lambda i: gs.set_num_threads("2"), T, "set_num_threads", ("str|'2'",)),
    (lambda i: gs.set_num_threads(1.5), T, "set_num_threads", (r"1\.5|float",)),
]  # fmt: skip


def _ids() -> list[str]:
    return [f"{row}-{function}-{'-'.join(names)}"[:60] for row, (_, _, function, names) in enumerate(ERRORS)]


@pytest.mark.parametrize(("call", "error", "function", "names"), ERRORS, ids=_ids())
def test_message_and_unchanged_inputs(call: Call, error: Any, function: str, names: tuple[str, ...]) -> None:
    inputs = Inputs()
    before = {name: part.copy() for name, part in inputs.arrays().items()}
    threads = gs.get_num_threads()
    with pytest.raises(error) as caught:
        call(inputs)
    message = str(caught.value)
    assert re.match(rf"([A-Za-z]+\.)*{function}(\.[a-z_]+)?: ", message), message
    for name in names:
        assert re.search(name, message), f"{name!r} is missing in {message!r}"
    assert "\n" not in message, message
    assert len(message) < 300, message
    assert not any(word in message for word in ("pybind", "std::", "_core")), message
    for name, part in inputs.arrays().items():
        assert part.tobytes() == before[name].tobytes(), f"{name} was changed"
    assert gs.get_num_threads() == threads


def test_the_message_of_the_documentation() -> None:
    with pytest.raises(ValueError) as caught:
        gs.prune(np.ones((2, 2), np.float32), sparsity=1.3)
    assert str(caught.value) == "prune: sparsity must be in [0, 1], got 1.3"


@pytest.mark.parametrize("method", ["taylor2", "fisher", "obs", "ria", "snip", "grasp", "synflow", "lamp", "fpgm"])
def test_a_criterion_of_the_documentation_never_answers_wrongly(method: str) -> None:
    """It may be missing in this version, but then it says so."""
    w = np.arange(1.0, 17.0).reshape(4, 4)
    scores = right_or_refused(lambda: gs.score(w, w, method=method), (ValueError, NotImplementedError), "^score: ")
    assert scores is None or scores.shape == (4, 4)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_foreign_byte_order_is_refused_or_right(dtype: str) -> None:
    w = np.array([3.0, -1.0, 2.0]).astype(dtype)
    result = right_or_refused(lambda: gs.prune(w, nnz=1), TypeError, "^prune: weights")
    assert result is None or result[0].tolist() == [3, 0, 0]
    native = w.astype(np.dtype(dtype).newbyteorder("="))
    scores = right_or_refused(lambda: gs.score(native, w, method="taylor"), TypeError, "^score: grads")
    assert scores is None or scores.tolist() == [9, 1, 4]
    mask = right_or_refused(lambda: gs.topk_mask(w, nnz=1), TypeError, "^topk_mask: scores")
    assert mask is None or mask.indices().tolist() == [0]
    moved = right_or_refused(lambda: gs.adjust(native, w, 1.0), TypeError, "^adjust: scores")
    assert moved is None or moved.tolist() == [2, 0, 1]
    stats = gs.Stats("norm")
    right_or_refused(lambda: stats.update(w), TypeError, r"^Stats\.update: x")
    out = np.full(3, 7, dtype)
    kept = right_or_refused(lambda: gs.prune(native, nnz=1, out=out), TypeError, "^prune: out")
    assert out.tolist() == ([7, 7, 7] if kept is None else [3, 0, 0])


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32, np.float64])
def test_unaligned_data_are_refused_or_right(dtype: type) -> None:
    raw = np.zeros(8 * 101 + 1, np.uint8)
    w = raw[1 : 1 + np.dtype(dtype).itemsize * 101].view(dtype)
    w[...] = generator("unaligned").standard_normal(101)
    assert not w.flags.aligned
    result = right_or_refused(lambda: gs.prune(w, sparsity=0.5), (TypeError, ValueError), "^prune: weights")
    if result is not None:
        expected, mask = gs.prune(w.copy(), sparsity=0.5)
        assert result[0].tobytes() == expected.tobytes()
        assert result[1] == mask


def test_an_array_subclass_or_masked_array_is_not_misread() -> None:
    masked = np.ma.masked_array([1.0, 5.0, 3.0], mask=[False, True, False])
    result = right_or_refused(lambda: gs.prune(masked, nnz=1), TypeError, "^prune: weights")
    assert result is None or result[1].nnz == 1


def test_a_class_without_dlpack_is_refused() -> None:
    class Strange:
        shape, dtype = (3,), np.float32

    with pytest.raises(TypeError, match=r"^score: weights .*Strange"):
        gs.score(Strange())


class _Foreign:
    """An array of a library that nobody knows."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape, self.dtype = array.shape, array.dtype

    def __dlpack__(self, **arguments: Any) -> Any:
        return self.array.__dlpack__(**arguments)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class _ForeignThatMakes(_Foreign):
    @classmethod
    def empty(cls, shape: tuple[int, ...], dtype: Any) -> "_ForeignThatMakes":
        return cls(np.empty(shape, dtype))


def test_results_for_an_unknown_library_go_to_out_or_to_what_its_class_makes() -> None:
    w = np.array([1.0, -2.0, 3.0], np.float32)
    with pytest.raises(TypeError, match=r"^score: out must be given, for .*_Foreign has no way to make an array"):
        gs.score(_Foreign(w))
    out = _Foreign(np.empty(3, np.float32))
    assert gs.score(_Foreign(w), out=out) is out
    assert out.array.tolist() == [1, 2, 3]
    made = gs.score(_ForeignThatMakes(w))
    assert isinstance(made, _ForeignThatMakes)
    assert made.array.tolist() == [1, 2, 3]


def test_a_cuda_like_array_says_that_there_is_no_cuda() -> None:
    class Device:
        shape = (3,)
        __cuda_array_interface__ = {"shape": (3,), "typestr": "<f4", "data": (0x1000, False), "version": 3}  # noqa: RUF012

    if gs.info()["cuda"]["available"]:
        pytest.skip("this build has CUDA")
    with pytest.raises(RuntimeError, match=r"^score: .*(CUDA|cuda|GPU)"):
        gs.score(Device())


def test_a_callable_that_raises_is_not_swallowed() -> None:
    def criterion(*_: Any) -> Any:
        raise ZeroDivisionError("mine")

    out = np.ones(3)
    with pytest.raises(ZeroDivisionError, match="mine"):
        gs.prune(np.ones(3), sparsity=0.5, method=criterion, out=out)
    assert out.tolist() == [1, 1, 1]


def test_loading_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        gs.Stats.load(tmp_path / "missing.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00\x01")
    with pytest.raises(ValueError):
        gs.Stats.load(broken)


def test_info_has_its_keys() -> None:
    info = gs.info()
    assert {"version", "isa", "threads", "cuda", "build"} <= set(info)
    assert info["threads"] == gs.get_num_threads()
    assert info["version"] == gs.__version__
    assert json.loads(json.dumps(info)) == info
