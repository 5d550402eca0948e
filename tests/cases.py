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

import numpy as np

SEED = 20250307
FLOATS = (np.float32, np.float64)
TOLERANCE = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh")


def generator(*key: object) -> np.random.Generator:
    """A generator that depends on the key alone."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


# --------------------------------------------------------------------------------------------------- distributions


def _denormals(r: np.random.Generator, n: int, dtype: Any) -> Any:
    return r.integers(-40, 41, n) * float(np.finfo(dtype).smallest_subnormal)


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
    "one_outlier": lambda r, n, t: _with(1e-3 * r.standard_normal(n), slice(n // 2, n // 2 + 1), 1e38),
    "mostly_zeros": lambda r, n, t: np.where(r.random(n) < 0.99, 0.0, r.standard_normal(n)),
    "heavy_ties": lambda r, n, t: r.integers(-3, 4, n).astype(np.float64),
    "nearly_equal": lambda r, n, t: 1.0 + r.integers(0, 4, n) * float(np.finfo(t).eps),
    "wide_range": lambda r, n, t: r.standard_normal(n) * 10.0 ** r.integers(-30, 30, n),
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
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else self.size

    @property
    def both(self) -> dict[str, np.ndarray]:
        """A mapping: the case's array, a smaller one on another scale, an empty one."""
        small = 1e-2 * values("normal", (5, 8), self.dtype, "second")
        return {"first": self.weights, "second": small, "third": np.zeros((0, 3), self.dtype)}

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


@dataclass(frozen=True)
class Operation:
    """``run(lib, data)`` returns arrays, masks, or (nested) tuples and mappings of them."""

    run: Callable[[Any, Data], Any]
    fits: Callable[[tuple[int, ...]], bool] = _always
    exclude: frozenset[str] = field(default_factory=frozenset)  # distributions for which the result is not defined


OPERATIONS: dict[str, Operation] = {}


def _add(name: str, run: Callable[[Any, Data], Any], *fits_and_exclude: Any) -> None:
    OPERATIONS[name] = Operation(run, *fits_and_exclude)


_add("score/magnitude", lambda lib, d: lib.score(d.weights))
_add("score/gradient", lambda lib, d: lib.score(d.weights, d.grads, method="gradient"))
_add("score/taylor", lambda lib, d: lib.score(d.weights, d.grads, method="taylor"))
_add("score/taylor_mixed", lambda lib, d: lib.score(d.weights, _other_float(d.grads), method="taylor"))
_add("score/movement", lambda lib, d: lib.score(d.weights, method="movement", stats=d.stats("movement")))
_add("score/wanda", lambda lib, d: lib.score(d.weights, method="wanda", stats=d.stats("norm")))
_add("score/random", lambda lib, d: lib.score(d.weights, method="random", seed=7))
_add("score/callable", lambda lib, d: lib.score(d.weights, d.grads, method=lambda w, g, s: g - w))
_add("score/mapping", lambda lib, d: lib.score(d.both))
_add("score/random_mapping", lambda lib, d: lib.score(d.both, method="random", seed=2**63 + 5))


def _other_float(a: np.ndarray) -> np.ndarray:
    return a.astype(np.float64 if a.dtype == np.float32 else np.float32)


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

_add("apply_mask", lambda lib, d: lib.apply_mask(d.weights, d.mask()))
_add("apply_mask/everything", lambda lib, d: lib.apply_mask(d.weights, d.mask(1.1)))
_add("mask/dense", lambda lib, d: d.mask())

_add("adjust/sign", lambda lib, d: lib.adjust(d.weights, d.array("scores"), 0.03))
_add("adjust/sign_negative", lambda lib, d: lib.adjust(d.weights, d.array("scores"), -1.7, rule="sign"))
_add("adjust/scale", lambda lib, d: lib.adjust(d.weights, d.array("scores"), 0.3, rule="scale"), _always, SIGNED_SUMS)
_add("adjust/scale_none", lambda lib, d: lib.adjust(d.weights, d.grads, 0.0, rule="scale"))

_add("stats/norm", lambda lib, d: d.stats("norm").values)
_add("stats/grad2", lambda lib, d: d.stats("grad2").values)
_add("stats/movement", lambda lib, d: d.stats("movement").values)


def table(prefix: str) -> list[Case]:
    """Every case of the operations whose name starts with the prefix, duplicates left out."""
    cases: dict[Case, None] = {}
    for name, operation in OPERATIONS.items():
        if not name.startswith(prefix):
            continue
        sweeps = itertools.chain(
            (Case(name, t, shape) for t in FLOATS for shape in SHAPES),
            (Case(name, t, shape, layout) for t in FLOATS for shape in LAYOUT_SHAPES for layout in LAYOUTS),
            (
                Case(name, t, shape, "contiguous", distribution)
                for t in FLOATS
                for shape in DISTRIBUTION_SHAPES
                for distribution in DISTRIBUTIONS
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
    if g.dtype.kind == "f":
        unsigned = f"u{g.dtype.itemsize}"
        same = (g.view(unsigned) == e.view(unsigned)) | (np.isnan(g) & np.isnan(e))
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
        if a.dtype.kind == "f":
            a = np.where(np.isnan(a), np.nan, a)  # the payload of a NaN is nobody's business
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
        for form in ("csr", "dense"):
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
    for dtype, shape, distribution in itertools.product(FLOATS, DIGEST_SHAPES, DISTRIBUTIONS):
        for name, operation in OPERATIONS.items():
            if operation.fits(shape) and distribution not in operation.exclude:
                case = Case(name, dtype, shape, "contiguous", distribution)
                exact[str(case)] = _digest(operation.run(gs, case.data(gs)))
    product = {}
    for name, got, truth, scale, dtype in products(gs):
        assert_close(got, truth, scale, dtype)
        product[name] = _digest(got)
    return {"exact": exact, "products": product, "info": {k: str(v) for k, v in gs.info().items()}}


if __name__ == "__main__":  # python cases.py: what test_threads_isa runs in its processes
    json.dump(digests(), sys.stdout)
