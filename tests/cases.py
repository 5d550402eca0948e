# SPDX-License-Identifier: Apache-2.0
"""The one table of cases: operation x dtype x shape x layout x distribution.

An operation is written once, as a function of a library and its data: ``gossamer`` and ``gossamer.reference`` share
their signatures, so the same text computes the result and the truth. The tests compare the two
(:func:`check_against_reference`); ``test_threads_isa`` runs the same table in processes with other threads and
instruction sets and compares digests (:func:`digests`). A new operation is one row in ``OPERATIONS``.

All data come from fixed seeds; nothing here depends on time.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import json
import math
import mmap
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

SEED = 20250307
FLOATS = (np.float32, np.float64)  # what products take
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.float16, BFLOAT16, *FLOATS)  # what scores, masks, pruning and statistics take
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14, np.dtype(np.float16): 2e-3}
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


def is_float(dtype: Any) -> bool:
    """Also for bfloat16, which numpy calls void."""
    return np.dtype(dtype).kind == "f" or np.dtype(dtype) == BFLOAT16


def is_nan(a: np.ndarray) -> np.ndarray:
    return np.isnan(a.astype(np.float32) if a.dtype == BFLOAT16 else a)  # ml_dtypes warns of signaling NaN


def compute_dtype(dtype: Any) -> Any:
    """The dtype of the scores of weights of this dtype."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


# --------------------------------------------------------------------------------------------------- distributions


def _denormals(r: np.random.Generator, n: int, dtype: Any) -> Any:
    return r.integers(-40, 41, n) * float(ml_dtypes.finfo(dtype).smallest_subnormal)


def _huge(dtype: Any) -> float:
    return 2e4 if np.dtype(dtype) == np.float16 else 1e38


def _decades(dtype: Any) -> tuple[int, int]:
    return (-7, 4) if np.dtype(dtype) == np.float16 else (-30, 30)


def _with(values: Any, where: Any, what: Any) -> Any:
    values[where] = what
    return values


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, int, Any], Any]] = {
    "normal": lambda r, n, t: r.standard_normal(n),
    "all_equal": lambda r, n, t: np.full(n, 0.7),
    "two_values": lambda r, n, t: r.choice([-1.0, 0.5], n),
    "sorted": lambda r, n, t: np.sort(r.standard_normal(n)),
    "reversed": lambda r, n, t: np.sort(r.standard_normal(n))[::-1],
    "denormals": _denormals,
    "signed_zeros": lambda r, n, t: r.choice([0.0, -0.0, 1.0, -1.0], n),
    "infinities": lambda r, n, t: np.where(r.random(n) < 0.1, r.choice([np.inf, -np.inf], n), r.standard_normal(n)),
    "one_outlier": lambda r, n, t: _with(1e-3 * r.standard_normal(n), slice(n // 2, n // 2 + 1), _huge(t)),
    "mostly_zeros": lambda r, n, t: np.where(r.random(n) < 0.99, 0.0, r.standard_normal(n)),
    "heavy_ties": lambda r, n, t: r.integers(-3, 4, n).astype(np.float64),
    "nearly_equal": lambda r, n, t: 1.0 + r.integers(0, 4, n) * float(ml_dtypes.finfo(t).eps),
    "wide_range": lambda r, n, t: r.standard_normal(n) * 10.0 ** r.integers(*_decades(t), n),
}


@lru_cache(maxsize=256)  # the same arrays serve every operation
def _drawn(distribution: str, shape: tuple[int, ...], dtype: Any, key: tuple[object, ...]) -> np.ndarray:
    drawn = DISTRIBUTIONS[distribution](generator(distribution, shape, *key), math.prod(shape), dtype)
    return np.ascontiguousarray(np.asarray(drawn).astype(dtype).reshape(shape))


def values(distribution: str, shape: tuple[int, ...], dtype: Any, *key: object) -> np.ndarray:
    """A fresh C-contiguous array of the distribution."""
    return _drawn(distribution, shape, np.dtype(dtype), key).copy()


# --------------------------------------------------------------------------------------------------------- layouts


def _strided(a: np.ndarray) -> np.ndarray:
    view = np.full([3 * n + 1 for n in a.shape], np.nan, a.dtype)[tuple(slice(1, None, 3) for _ in a.shape)]
    view[...] = a
    return view


def _negative(a: np.ndarray) -> np.ndarray:
    flip = (slice(None, None, -1),) * a.ndim
    return a[flip].copy()[flip]


def _readonly(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _offset(a: np.ndarray) -> np.ndarray:
    """Aligned to the element, to nothing wider."""
    view = np.empty(a.size + 17, a.dtype)[1:][: a.size].reshape(a.shape)
    view[...] = a
    return view


def _rows_apart(a: np.ndarray) -> np.ndarray:
    """Contiguous rows with a gap between them, as a slice of a wider matrix has."""
    wide = np.full((*a.shape[:-1], a.shape[-1] + 3), np.nan, a.dtype)[..., 1:-2]
    wide[...] = a
    return wide


def _guarded(a: np.ndarray) -> np.ndarray:
    """Ends where an inaccessible page begins: a kernel that reads or writes beyond the end crashes."""
    if not sys.platform.startswith("linux"):
        return a.copy()
    page = mmap.PAGESIZE
    size = -(-a.nbytes // page) * page
    memory = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) == 0
    view = np.frombuffer(memory, a.dtype, a.size, size - a.nbytes).reshape(a.shape)
    view[...] = a
    return view


def _channels_last(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1) if a.ndim > 2 else a


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda a: a,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "strided": _strided,
    "negative_strides": _negative,
    "read_only": _readonly,
    "offset": _offset,
    "rows_apart": _rows_apart,
    "channels_last": _channels_last,
    "guarded": _guarded,
}

SHAPES: tuple[tuple[int, ...], ...] = (
    (0,),
    (1,),
    (7,),
    (64,),
    (1003,),
    (0, 8),
    (8, 0),
    (1, 1),
    (3, 5),
    (17, 31),
    (48, 64),
    (8, 4, 3, 3),
    (16, 0, 3, 3),
    (64, 32, 2),
    (2, 40_001),
    (33_000, 3),
    (3 * 32768 + 77,),
    (304, 328),
)
LAYOUT_SHAPES: tuple[tuple[int, ...], ...] = ((1003,), (48, 64), (8, 4, 3, 3), (304, 328))
DISTRIBUTION_SHAPES: tuple[tuple[int, ...], ...] = ((48, 64), (3 * 32768 + 77,))


# ------------------------------------------------------------------------------------------------------ operations


@dataclass(frozen=True)
class Case:
    operation: str
    dtype: Any
    shape: tuple[int, ...]
    layout: str = "contiguous"
    distribution: str = "normal"

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{self.operation}-{np.dtype(self.dtype).name}-{shape}-{self.layout}-{self.distribution}"

    def data(self, lib: Any) -> Data:
        return Data(self, lib)


# methods that read statistics, and their kind; the other methods
STATISTICS = {"movement": "movement", "fisher": "grad2", "obs": "hessian", "wanda": "norm", "ria": "norm"}
METHODS = ("magnitude", "gradient", "taylor", "taylor2", "movement", "fisher", "obs", "wanda", "ria", "snip", "grasp",
           "synflow", "lamp", "fpgm", "random")  # fmt: skip


def columns(shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def inputs_with_an_exact_inverse(n: int) -> np.ndarray:
    """``[n, n]`` inputs for which H is diagonal, of powers of 4 and zeros: any way of inverting it is exact."""
    scale = 2.0 ** (np.arange(n) % 5 - 2) * np.where(np.arange(n) % 7 == 3, 0.0, 1.0)
    return np.asarray(np.diag(scale * np.where(np.arange(n) % 2, -1.0, 1.0)))


class Data:
    """The inputs of a case for one library (its ``Mask`` and ``Stats`` are the library's own)."""

    def __init__(self, case: Case, lib: Any) -> None:
        self.case, self.lib, self.dtype, self.shape = case, lib, np.dtype(case.dtype), case.shape
        self.size = math.prod(case.shape)

    def array(self, key: str, shape: tuple[int, ...] | None = None, distribution: str | None = None) -> np.ndarray:
        shape = self.shape if shape is None else shape
        a = values(distribution or self.case.distribution, shape, self.dtype, key)
        return LAYOUTS[self.case.layout](a)

    @property
    def weights(self) -> np.ndarray:
        return self.array("weights")

    @property
    def grads(self) -> np.ndarray:
        return self.array("grads", distribution="normal")

    @property
    def columns(self) -> int:
        return columns(self.shape)

    @property
    def other_grads(self) -> np.ndarray:
        """Gradients in another dtype than the weights: float64 beside float32, else float32."""
        return self.grads.astype(np.float64 if self.dtype == np.float32 else np.float32)

    def mapping(self, second: Any = None, third: Any = None, shape: tuple[int, ...] = (5, 8)) -> dict[str, np.ndarray]:
        """The case's array, a smaller one on another scale, an empty one; the dtypes of these, where given."""
        small = values("normal", shape, second or self.dtype, "second") * (second or self.dtype).type(1e-2)
        return {"first": self.weights, "second": small, "third": np.zeros((0, 3), third or self.dtype)}

    @property
    def both(self) -> dict[str, np.ndarray]:
        return self.mapping()

    @property
    def mixed(self) -> dict[str, np.ndarray]:
        """The same in three dtypes."""
        second = np.dtype(np.float64 if self.dtype == np.float32 else np.float32)
        return self.mapping(second, BFLOAT16 if self.dtype == np.float16 else np.dtype(np.float16))

    def arguments(self, method: str, weights: Any = None, grads: Any = None) -> dict[str, Any]:
        """What ``score`` and ``prune`` need for the method: for the case's array, or a mapping from :meth:`mapping`."""
        needed: dict[str, Any] = {"method": method, "weights": self.weights if weights is None else weights, "seed": 7}
        if not isinstance(needed["weights"], Mapping):
            needed["grads"] = self.grads if grads is None else grads
            needed["stats"] = self.stats(STATISTICS[method]) if method in STATISTICS else None
            return needed
        others = {name: w for name, w in needed["weights"].items() if name != "first"}
        needed["grads"] = {"first": self.grads}
        needed["grads"] |= {name: values("normal", w.shape, w.dtype, "grads", name) for name, w in others.items()}
        if method in STATISTICS:
            needed["stats"] = {"first": self.stats(STATISTICS[method])}
            for name, w in others.items():
                other = Data(Case(self.case.operation, w.dtype, w.shape), self.lib)
                needed["stats"][name] = other.stats(STATISTICS[method])
        return needed

    def bool_mask(self, density: float = 0.6) -> np.ndarray:
        return LAYOUTS[self.case.layout](generator("mask", self.shape).random(self.shape) < density)

    def mask(self, density: float = 0.6) -> Any:
        dense = self.bool_mask(density)
        return self.lib.Mask.from_dense(dense) if hasattr(self.lib, "Mask") else dense

    def stats(self, kind: str, **options: Any) -> Any:
        stats = self.lib.Stats(kind, **options)
        for step in range(2 if options else 1):
            if kind == "norm":
                stats.update(self.array(f"x{step}", (9, self.columns), "normal"))
            elif kind == "grad2":
                stats.update(self.array(f"samples{step}", (3, *self.shape)))
            elif kind == "hessian":
                stats.update(LAYOUTS[self.case.layout](inputs_with_an_exact_inverse(self.columns).astype(self.dtype)))
            else:
                stats.update(self.weights, self.array(f"grads{step}", distribution="normal"))
        return stats


def _always(shape: tuple[int, ...]) -> bool:
    return True


def _divides(rows: int, cols: int) -> Callable[[tuple[int, ...]], bool]:
    def fits(shape: tuple[int, ...]) -> bool:
        r, c = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])
        return r % rows == 0 and c % cols == 0

    return fits


def _few_rows(shape: tuple[int, ...]) -> bool:
    return len(shape) < 2 or shape[0] <= 400  # the cost is rows^2


def _few_columns(shape: tuple[int, ...]) -> bool:
    return columns(shape) <= 80  # the cost is columns^3


@dataclass(frozen=True)
class Operation:
    """``run(lib, data)`` returns arrays, masks, or (nested) tuples and mappings of them."""

    run: Callable[[Any, Data], Any]
    fits: Callable[[tuple[int, ...]], bool] = _always
    exclude: frozenset[str] = field(default_factory=frozenset)  # distributions for which the result is not defined
    in_turn: bool = False  # each shape, layout and distribution with one dtype or two, in turn
    product: bool = False  # a member of the full product of criteria, patterns and groups: at one small shape only


OPERATIONS: dict[str, Operation] = {}


def _add(name: str, run: Callable[[Any, Data], Any], *fits_and_exclude: Any, in_turn: bool = False) -> None:
    OPERATIONS[name] = Operation(run, *fits_and_exclude, in_turn=in_turn)


_add("score/magnitude", lambda lib, d: lib.score(d.weights))
_add("score/gradient", lambda lib, d: lib.score(d.weights, d.grads, method="gradient"))
_add("score/taylor", lambda lib, d: lib.score(d.weights, d.grads, method="taylor"))
_add("score/taylor_mixed", lambda lib, d: lib.score(d.weights, d.other_grads, method="taylor"))
_add("score/movement", lambda lib, d: lib.score(d.weights, method="movement", stats=d.stats("movement")))
_add("score/wanda", lambda lib, d: lib.score(d.weights, method="wanda", stats=d.stats("norm")))
_add("score/random", lambda lib, d: lib.score(d.weights, method="random", seed=7))
_add("score/callable", lambda lib, d: lib.score(d.weights, d.grads, method=lambda w, g, s: g - w))
_add("score/mapping", lambda lib, d: lib.score(d.both))
_add("score/random_mapping", lambda lib, d: lib.score(d.both, method="random", seed=2**63 + 5))
_add("score/mapping_mixed", lambda lib, d: lib.score(d.mixed))


def _score(method: str, weights: str = "weights", grads: str = "grads") -> Callable[[Any, Data], Any]:
    return lambda lib, d: lib.score(**d.arguments(method, getattr(d, weights), getattr(d, grads)))


_fits_of = {"obs": _few_columns, "fpgm": _few_rows}
for _method in ("taylor2", "fisher", "obs", "ria", "snip", "grasp", "synflow", "lamp", "fpgm"):
    _fits = _fits_of.get(_method, _always)
    _add(f"score/{_method}", _score(_method), _fits)
    if _method in ("taylor2", "snip", "grasp", "synflow"):
        _add(f"score/{_method}_mixed", _score(_method, grads="other_grads"), _fits, in_turn=True)
    if _method in ("obs", "snip", "synflow", "lamp"):
        _add(f"score/{_method}_mapping", _score(_method, "both"), _fits, in_turn=True)
_add("score/snip_mapping_mixed", _score("snip", "mixed"), in_turn=True)


SIGNED_SUMS = frozenset({"infinities"})  # inf - inf in a unit's sum
_SELECTIONS: tuple[tuple[str, dict[str, Any], Callable[[tuple[int, ...]], bool], frozenset[str]], ...] = (
    ("half", {"sparsity": 0.5}, _always, frozenset()),
    ("ninety", {"sparsity": 0.9}, _always, frozenset()),
    ("nothing", {"sparsity": 1.0}, _always, frozenset()),
    ("everything", {"sparsity": 0.0}, _always, frozenset()),
    ("nnz", {"nnz": lambda d: d.size // 3}, _always, frozenset()),
    ("one", {"nnz": lambda d: min(1, d.size)}, _always, frozenset()),
    ("threshold", {"threshold": 0.5}, _always, frozenset()),
    ("row_group", {"sparsity": 0.6, "group": "row"}, _always, frozenset()),
    ("row_group_nnz", {"nnz": lambda d: d.columns // 4, "group": "row"}, _always, frozenset()),
    ("rows", {"sparsity": 0.5, "pattern": "row"}, _always, SIGNED_SUMS),
    ("cols", {"sparsity": 0.3, "pattern": "col"}, _always, SIGNED_SUMS),
    ("rows_threshold", {"threshold": 0.25, "pattern": "row"}, _always, SIGNED_SUMS),
    ("block_2x4", {"sparsity": 0.5, "pattern": "block:2x4"}, _divides(2, 4), SIGNED_SUMS),
    ("block_8x1", {"sparsity": 0.75, "pattern": "block:8x1"}, _divides(8, 1), SIGNED_SUMS),
    ("block_1x8", {"nnz": lambda d: d.size // 24, "pattern": "block:1x8"}, _divides(1, 8), SIGNED_SUMS),
    ("block_4x4_row", {"sparsity": 0.5, "pattern": "block:4x4", "group": "row"}, _divides(4, 4), SIGNED_SUMS),
    ("block_16x8", {"sparsity": 0.4, "pattern": "block:16x8"}, _divides(16, 8), SIGNED_SUMS),
    ("2:4", {"pattern": "2:4"}, _divides(1, 4), frozenset()),
    ("1:4", {"pattern": "1:4", "sparsity": 0.75}, _divides(1, 4), frozenset()),
    ("5:8", {"pattern": "5:8", "group": "row"}, _divides(1, 8), frozenset()),
    ("3:31", {"pattern": "3:31"}, _divides(1, 31), frozenset()),
    ("7:32", {"pattern": "7:32"}, _divides(1, 32), frozenset()),
    ("prior", {"sparsity": 0.7, "prior": lambda d: d.mask()}, _always, frozenset()),
    ("prior_threshold", {"threshold": 0.0, "prior": lambda d: d.mask()}, _always, frozenset()),
    ("prior_empty", {"sparsity": 1.0, "prior": lambda d: d.mask(0.0)}, _always, frozenset()),
)


def _selection(options: dict[str, Any], d: Data) -> dict[str, Any]:
    return {key: option(d) if callable(option) else option for key, option in options.items()}


def _select(options: dict[str, Any]) -> Callable[[Any, Data], Any]:
    return lambda lib, d: lib.topk_mask(d.weights, **_selection(options, d))


for _name, _options, _fits, _exclude in _SELECTIONS:
    _add(f"topk_mask/{_name}", _select(_options), _fits, _exclude)
_add("topk_mask/mapping", lambda lib, d: lib.topk_mask(d.both, sparsity=0.4))
_add("topk_mask/global", lambda lib, d: lib.topk_mask(d.both, sparsity=0.7, group="global"))
_add("topk_mask/global_nnz", lambda lib, d: lib.topk_mask(d.both, nnz=23, group="global"))
_add("topk_mask/global_floor", lambda lib, d: lib.topk_mask(d.both, sparsity=0.9, group="global", min_density=0.08))
_add(
    "topk_mask/global_rows",
    lambda lib, d: lib.topk_mask(d.both, sparsity=0.5, group="global", pattern="row"),
    _always,
    SIGNED_SUMS,
)
_add("topk_mask/global_mixed", lambda lib, d: lib.topk_mask(d.mixed, sparsity=0.6, group="global"))


def _prune(lib: Any, d: Data, **options: Any) -> Any:
    return lib.prune(d.weights, d.grads, **options)


_add("prune/magnitude", lambda lib, d: _prune(lib, d, sparsity=0.5))
_add("prune/magnitude_95", lambda lib, d: _prune(lib, d, sparsity=0.95))
_add("prune/gradient", lambda lib, d: _prune(lib, d, sparsity=0.8, method="gradient"))
_add("prune/taylor", lambda lib, d: _prune(lib, d, sparsity=0.9, method="taylor"))
_add("prune/taylor_rows", lambda lib, d: _prune(lib, d, sparsity=0.5, method="taylor", pattern="row"))
_add("prune/taylor_block", lambda lib, d: _prune(lib, d, sparsity=0.5, method="taylor", pattern="block:2x4"),
     _divides(2, 4))  # fmt: skip
_add("prune/magnitude_2:4", lambda lib, d: _prune(lib, d, pattern="2:4"), _divides(1, 4))
_add("prune/magnitude_row", lambda lib, d: _prune(lib, d, sparsity=0.7, group="row"))
_add("prune/movement", lambda lib, d: _prune(lib, d, sparsity=0.5, method="movement", stats=d.stats("movement")))
_add("prune/wanda", lambda lib, d: _prune(lib, d, sparsity=0.5, method="wanda", stats=d.stats("norm")))
_add("prune/wanda_tensor", lambda lib, d: _prune(lib, d, nnz=d.size // 5, method="wanda", stats=d.stats("norm"),
                                                 group="tensor"))  # fmt: skip
_add("prune/random", lambda lib, d: _prune(lib, d, sparsity=0.3, method="random", seed=0))
_add("prune/callable", lambda lib, d: _prune(lib, d, sparsity=0.5, method=lambda w, g, s: w - g))
_add("prune/prior", lambda lib, d: _prune(lib, d, sparsity=0.8, prior=d.mask()))
_add("prune/global", lambda lib, d: lib.prune(d.both, sparsity=0.8, group="global", min_density=0.02))
_add("prune/mapping", lambda lib, d: lib.prune(d.both, sparsity=0.8))
_add("prune/global_mixed", lambda lib, d: lib.prune(d.mixed, sparsity=0.8, group="global"))


def _prune_by(
    method: str, weights: str = "weights", grads: str = "grads", **options: Any
) -> Callable[[Any, Data], Any]:
    return lambda lib, d: lib.prune(**d.arguments(method, getattr(d, weights), getattr(d, grads)), **options)


OVERFLOW = frozenset({"infinities", "one_outlier", "wide_range"})  # products beyond the dtype, so inf / inf and inf * 0
for _method in ("taylor2", "fisher", "obs", "ria", "snip", "grasp", "synflow", "lamp", "fpgm"):
    _fits = _fits_of.get(_method, _always)
    _add(f"prune/{_method}", _prune_by(_method, sparsity=0.6, nan="prune"), _fits, in_turn=True)
for _method in ("taylor2", "fisher", "ria", "snip", "lamp"):
    _add(f"prune/{_method}_95", _prune_by(_method, sparsity=0.95), _always, OVERFLOW, in_turn=True)
for _method in ("taylor2", "ria", "grasp", "fpgm"):
    _fits = _fits_of.get(_method, _always)
    _add(f"prune/{_method}_rows", _prune_by(_method, sparsity=0.5, pattern="row"), _fits, OVERFLOW, in_turn=True)
for _method in ("taylor2", "fisher", "synflow", "lamp"):
    _run = _prune_by(_method, sparsity=0.4, pattern="block:2x4")
    _add(f"prune/{_method}_block", _run, _divides(2, 4), OVERFLOW, in_turn=True)
for _method in ("taylor2", "ria", "snip", "grasp", "synflow", "lamp"):  # the default groups of a mapping
    for _weights in ("both", "mixed"):
        _run = _prune_by(_method, _weights, sparsity=0.7)
        _add(f"prune/{_method}_mapping_{_weights}", _run, _always, OVERFLOW, in_turn=True)
for _name, _run in {
    "taylor2_cols": _prune_by("taylor2", sparsity=0.5, pattern="col"),
    "lamp_floor": _prune_by("lamp", "both", sparsity=0.9, min_density=0.05),
    "synflow_mixed": _prune_by("synflow", grads="other_grads", sparsity=0.7),
}.items():
    _add(f"prune/{_name}", _run, _always, OVERFLOW, in_turn=True)

PRODUCT_PATTERNS = ("element", "row", "col", "block:2x4", "block:8x1", "2:4")
PRODUCT_SHAPE = (16, 24)
PRODUCT_DISTRIBUTIONS = ("normal", "heavy_ties", "mostly_zeros")


def _criterion(method: str, pattern: str, group: str, other_grads: bool = False) -> Callable[[Any, Data], Any]:
    options = {"pattern": pattern, "group": group} | ({} if pattern == "2:4" else {"sparsity": 0.5})

    def run(lib: Any, d: Data) -> Any:
        weights = d.mapping(shape=(8, 12)) if group == "global" else d.weights
        if group == "global":
            del weights["third"]  # no block fits into 0 x 3
        given = d.arguments(method, weights, d.other_grads if other_grads else None)
        return lib.prune(**given, **options)

    return run


for _method, _pattern, _group in itertools.product(METHODS, PRODUCT_PATTERNS, ("tensor", "row", "global")):
    if (_pattern, _group) != ("row", "row"):
        _name = f"criteria/{_method}_{_pattern}_{_group}"
        OPERATIONS[_name] = Operation(_criterion(_method, _pattern, _group), product=True)
        if _method in ("gradient", "taylor", "taylor2", "snip", "grasp", "synflow") and _group != "global":
            OPERATIONS[f"{_name}_mixed"] = Operation(_criterion(_method, _pattern, _group, True), product=True)

_add("apply_mask", lambda lib, d: lib.apply_mask(d.weights, d.mask()))
_add("apply_mask/everything", lambda lib, d: lib.apply_mask(d.weights, d.mask(1.1)))
_add("mask/dense", lambda lib, d: d.mask())

_add("adjust/sign", lambda lib, d: lib.adjust(d.weights, d.array("scores"), 0.03))
_add("adjust/sign_negative", lambda lib, d: lib.adjust(d.weights, d.array("scores"), -1.7, rule="sign"))
_add("adjust/scale", lambda lib, d: lib.adjust(d.weights, d.array("scores"), 0.3, rule="scale"), _always, SIGNED_SUMS)
_add("adjust/sign_mixed", lambda lib, d: lib.adjust(d.weights, d.other_grads, 0.03))
_add("adjust/scale_mixed", lambda lib, d: lib.adjust(d.weights, d.other_grads, 0.3, rule="scale"))
_add("adjust/scale_none", lambda lib, d: lib.adjust(d.weights, d.grads, 0.0, rule="scale"))

_add("stats/norm", lambda lib, d: d.stats("norm").values)
_add("stats/grad2", lambda lib, d: d.stats("grad2").values)
_add("stats/movement", lambda lib, d: d.stats("movement").values)
_add("stats/hessian", lambda lib, d: d.stats("hessian").values, _few_columns)  # exact, in whatever order it is summed


def _product_cases(name: str) -> Iterator[Case]:
    for dtype, distribution in itertools.product(DTYPES, PRODUCT_DISTRIBUTIONS):
        yield Case(name, dtype, PRODUCT_SHAPE, "contiguous", distribution)


def _dtypes_of(name: str, operation: Operation) -> tuple[Iterator[Any], Iterator[Any]]:
    """The dtypes of one shape after the other, and of one layout or distribution after the other."""
    if not operation.in_turn:
        return itertools.cycle([DTYPES]), itertools.cycle([(*FLOATS, np.float16), (*FLOATS, BFLOAT16)])
    start = zlib.crc32(name.encode()) % 4
    turn = DTYPES[start:] + DTYPES[:start]
    return itertools.cycle([turn[:2], turn[2:]]), itertools.cycle([(t,) for t in turn])


def table(prefix: str) -> list[Case]:
    """Every case of the operations whose name starts with the prefix, duplicates left out.

    All dtypes go through the shapes; float32, float64 and, in turn, float16 or bfloat16 through layouts and
    distributions. Operations that share their code with others take turns with all four.
    """
    cases: dict[Case, None] = {}
    for name, operation in OPERATIONS.items():
        if not name.startswith(prefix):
            continue
        if operation.product:
            cases |= dict.fromkeys(_product_cases(name))
            continue
        shapes, others = _dtypes_of(name, operation)
        sweeps = itertools.chain(
            (Case(name, t, shape) for shape in SHAPES for t in next(shapes)),
            (
                Case(name, t, shape, layout)
                for shape, layout in itertools.product(LAYOUT_SHAPES, LAYOUTS)
                for t in next(others)
            ),
            (
                Case(name, t, shape, "contiguous", distribution)
                for shape, distribution in itertools.product(DISTRIBUTION_SHAPES, DISTRIBUTIONS)
                for t in next(others)
            ),
        )
        fitting = (case for case in sweeps if operation.fits(case.shape) and case.distribution not in operation.exclude)
        cases |= dict.fromkeys(fitting)
    return list(cases)


# ------------------------------------------------------------------------------------------------------ comparison


def arrays_of(result: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays in a result, masks as bool arrays, with a path to each."""
    if isinstance(result, Mapping):
        for key, part in result.items():
            yield from arrays_of(part, f"{path}[{key!r}]")
    elif isinstance(result, tuple):
        for i, part in enumerate(result):
            yield from arrays_of(part, f"{path}[{i}]")
    elif hasattr(result, "to_dense"):
        yield path, result.to_dense()
    else:
        assert isinstance(result, np.ndarray), f"{path}: {type(result)}"
        yield path, result


def assert_same_bits(got: np.ndarray, expected: np.ndarray, message: str = "") -> None:
    """Equal in dtype, shape and every bit (two NaN are equal whatever their payload)."""
    assert isinstance(got, np.ndarray), f"{message}: {type(got)}"
    assert got.dtype == expected.dtype, f"{message}: {got.dtype} != {expected.dtype}"
    assert got.shape == expected.shape, f"{message}: {got.shape} != {expected.shape}"
    g, e = np.ascontiguousarray(got), np.ascontiguousarray(expected)
    if is_float(g.dtype):
        unsigned = f"u{g.dtype.itemsize}"
        same = (g.view(unsigned) == e.view(unsigned)) | (is_nan(g) & is_nan(e))
    else:
        same = g == e
    if not same.all():
        first = np.flatnonzero(~same.ravel())[0]
        raise AssertionError(
            f"{message}: {np.count_nonzero(~same)} of {same.size} differ, first at flat index {first}: "
            f"{g.ravel()[first]!r} instead of {e.ravel()[first]!r}"
        )


def check_against_reference(case: Case) -> None:
    """The whole check of a case: the same bits as the reference, the inputs unchanged."""
    import gossamer as gs
    from gossamer import reference

    operation = OPERATIONS[case.operation]
    got = dict(arrays_of(operation.run(gs, case.data(gs))))
    expected = dict(arrays_of(operation.run(reference, case.data(reference))))
    assert list(got) == list(expected)
    for path, truth in expected.items():
        assert_same_bits(got[path], truth, f"{case} {path}")


def right_or_refused(call: Callable[[], Any], errors: Any, message: str) -> Any:
    """What the call returns, or None where it refuses with one of these errors and a message that matches."""
    try:
        return call()
    except errors as error:
        if not re.search(message, str(error)):
            raise
        return None


def assert_close(y: Any, truth: Any, scale: Any, dtype: Any, factor: float = 1.0) -> None:
    """The accuracy rule: the norm of the error is at most the tolerance times the norm of ``|A| |x|``."""
    y = np.asarray(y)
    assert y.shape == truth.shape, f"{y.shape} != {truth.shape}"
    error, bound = np.linalg.norm((y - truth).ravel()), factor * TOLERANCE[np.dtype(dtype)] * np.linalg.norm(scale)
    assert error <= bound, f"error {error:.3g} exceeds {bound:.3g}"


# --------------------------------------------------------------------------------------------------------- digests

DIGEST_SHAPES = ((8, 4, 3, 3), (3 * 32768 + 77,), (304, 328))


def _digest(result: Any) -> str:
    h = hashlib.sha256()
    for path, a in arrays_of(result):
        a = np.ascontiguousarray(a)
        if is_float(a.dtype):
            a = np.where(is_nan(a), a.dtype.type(np.nan), a)  # the payload of a NaN is nobody's business
        h.update(f"{path} {a.dtype} {a.shape}".encode() + a.tobytes())
    return h.hexdigest()[:16]


def products(gs: Any) -> Iterator[tuple[str, Any, Any, Any, Any]]:
    """``(name, result, truth, scale, dtype)`` of multiplications large enough to be split over threads."""
    from gossamer import reference

    for dtype, (rows, cols, batch), density in itertools.product(
        FLOATS, ((300, 517, 1), (300, 517, 33), (1000, 64, 130), (7, 40_000, 3)), (0.02, 0.5)
    ):
        key = f"{np.dtype(dtype).name}/{rows}x{cols}x{batch}/{density}"
        r = generator("product", rows, cols, density)
        kept = r.random((rows, cols)) < density
        dense = np.where(kept, r.standard_normal((rows, cols)), 0.0).astype(dtype)
        x = r.standard_normal((batch, cols)).astype(dtype)
        bias = r.standard_normal(rows).astype(dtype)
        scale = np.abs(x) @ np.abs(dense).T + np.abs(bias)
        for form in ("csr", "panel", "bitmask", "dense"):
            a = gs.SparseMatrix.from_dense(dense, format=form)
            fused = {"bias": bias, "activation": "silu"}
            truth = reference.linear(x, dense, **fused)
            yield f"linear/{form}/{key}", gs.linear(x, a, **fused), truth, scale, dtype
            yield f"matmul/{form}/{key}", gs.matmul(a, np.ascontiguousarray(x.T), **fused), truth.T, scale.T, dtype
        if density < 0.1:
            dy = r.standard_normal((batch, rows)).astype(dtype)
            truth = reference.sddmm(dy.T, x.T, kept)
            got = gs.sddmm(np.ascontiguousarray(dy.T), np.ascontiguousarray(x.T), gs.Mask.from_dense(kept)).to_dense()
            yield f"sddmm/{key}", got, truth, np.where(kept, np.abs(dy.T) @ np.abs(x), 0.0), dtype


def digests() -> dict[str, dict[str, str]]:
    """``exact`` must not depend on threads or ISA, ``products`` not on threads; products are checked here as well."""
    import gossamer as gs

    exact = {}
    for name, operation in OPERATIONS.items():
        dtypes = _dtypes_of(name, operation)[1]
        for shape, distribution in itertools.product(DIGEST_SHAPES, DISTRIBUTIONS):
            for dtype in next(dtypes):
                case = Case(name, dtype, shape, "contiguous", distribution)
                if not operation.product and operation.fits(shape) and distribution not in operation.exclude:
                    exact[str(case)] = _digest(operation.run(gs, case.data(gs)))
    for case in table("criteria/"):
        if case.distribution == "heavy_ties":
            exact[str(case)] = _digest(OPERATIONS[case.operation].run(gs, case.data(gs)))
    product = {}
    for name, got, truth, scale, dtype in products(gs):
        assert_close(got, truth, scale, dtype)
        product[name] = _digest(got)
    return {"exact": exact, "products": product, "info": {k: str(v) for k, v in gs.info().items()}}


if __name__ == "__main__":  # python cases.py: what test_threads_isa runs in its processes
    json.dump(digests(), sys.stdout)
