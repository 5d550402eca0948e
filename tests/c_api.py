# SPDX-License-Identifier: Apache-2.0
"""The C ABI for the tests, by ctypes: gossamer.h's structs and a few calls with numpy arrays."""

from __future__ import annotations

import ctypes as c
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gossamer as gs
from cases import BFLOAT16

PREFIXES = [Path(p) for p in gs.__path__]
INT8 = 16
DTYPES = {
    np.dtype(np.float32): 0,
    np.dtype(np.float64): 1,
    np.dtype(np.float16): 2,
    BFLOAT16: 3,
    np.dtype(np.int8): INT8,
}
ERRORS = {1: TypeError, 2: ValueError, 3: MemoryError, 4: OSError, 5: NotImplementedError}
ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "sigmoid": 5, "tanh": 6}
RULES = {"sparsity": 0, "nnz": 1, "threshold": 2}

Pointer, Sizes = c.c_void_p, c.POINTER(c.c_int64)


def struct(called: str, /, **fields: Any) -> Any:
    return type(called, (c.Structure,), {"_fields_": list(fields.items())})


Array = struct("Array", data=Pointer, dtype=c.c_int32, ndim=c.c_int32, shape=Sizes, strides=Sizes)
Tensor = struct(
    "Tensor",
    name=c.c_char_p,
    weights=Pointer,
    aux=Pointer,
    prior=Pointer,
    mask=Pointer,
    out=Pointer,
    nnz=c.c_int64,
)
Selection = struct(
    "Selection",
    rule=c.c_int32,
    sparsity=c.c_double,
    nnz=c.c_int64,
    threshold=c.c_double,
    pattern=c.c_char_p,
    group=c.c_char_p,
    min_density=c.c_double,
    nan=c.c_char_p,
)
Csr = struct(
    "Csr",
    rows=c.c_int64,
    cols=c.c_int64,
    nnz=c.c_int64,
    indptr=Pointer,
    indices=Pointer,
    index_bytes=c.c_int32,
    dtype=c.c_int32,
    values=Pointer,
)
Info = struct(
    "Info",
    rows=c.c_int64,
    cols=c.c_int64,
    nnz=c.c_int64,
    nbytes=c.c_int64,
    dtype=c.c_int32,
    format=c.c_char_p,
)
Epilogue = struct("Epilogue", bias=Pointer, activation=c.c_int32, residual=Pointer)
Entry = struct("Entry", name=c.c_char_p, kind=c.c_int32, dtype=c.c_int32, ndim=c.c_int32, shape=Sizes)
Saved = struct(
    "Saved",
    name=c.c_char_p,
    matrix=Pointer,
    array=Pointer,
    mask=Pointer,
    shape=Sizes,
    ndim=c.c_int32,
)


def library() -> c.CDLL:
    """The shared library of the installed package."""
    path = next(
        p for prefix in PREFIXES for p in (prefix / "lib").glob("libgossamer.*") if p.suffix in (".so", ".dylib")
    )
    loaded = c.CDLL(str(path))
    for name in ("gossamer_last_error", "gossamer_version", "gossamer_isa"):
        getattr(loaded, name).restype = c.c_char_p
    for name in ("gossamer_mask_bytes", "gossamer_file_count"):
        getattr(loaded, name).restype = c.c_int64
    for name in ("gossamer_matrix_free", "gossamer_file_free", "gossamer_shutdown"):
        getattr(loaded, name).restype = None
    return loaded


LIB = library()


def check(status: int) -> None:
    """Raises what Python raises for it."""
    if status:
        raise ERRORS[status](LIB.gossamer_last_error().decode())


def described(array: np.ndarray | None) -> Any:
    """A gossamer_array; it keeps what it points to."""
    if array is None:
        return None
    sizes = c.c_int64 * array.ndim
    made = Array(array.ctypes.data, DTYPES[array.dtype], array.ndim, sizes(*array.shape), sizes(*array.strides))
    made.keep = array
    return made


def pointer(thing: Any) -> Any:
    return None if thing is None else c.addressof(thing)


def address(array: np.ndarray | None) -> Any:
    return None if array is None else c.c_void_p(array.ctypes.data)


class Tensors:
    """gossamer_tensor[n] of arrays; what is not given is NULL."""

    def __init__(self, weights: Sequence[np.ndarray], **parts: Sequence[np.ndarray]) -> None:
        self._keep: list[Any] = [parts]
        self.items = (Tensor * len(weights))()
        self.count = c.c_int64(len(weights))
        for i, w in enumerate(weights):
            item = self.items[i]
            item.name = f"t{i}".encode()
            for field, array in {"weights": w, **{name: arrays[i] for name, arrays in parts.items()}}.items():
                if field in ("mask", "prior"):
                    setattr(item, field, address(array))
                else:
                    self._keep.append(described(array))
                    setattr(item, field, pointer(self._keep[-1]))

    @property
    def nnz(self) -> list[int]:
        return [item.nnz for item in self.items]


class Matrix:
    """A gossamer_matrix."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self.handle = c.c_void_p()
        check(getattr(LIB, function)(*arguments, c.byref(self.handle)))

    def __del__(self) -> None:
        LIB.gossamer_matrix_free(self.handle)

    @classmethod
    def from_dense(
        cls, w: np.ndarray, mask: np.ndarray | None = None, format: str | None = None, dtype: int = -1
    ) -> Matrix:
        form = None if format is None else format.encode()
        return cls("gossamer_matrix_from_dense", c.byref(described(w)), address(mask), form, dtype)

    @property
    def info(self) -> Any:
        found = Info()
        check(LIB.gossamer_matrix_get_info(self.handle, c.byref(found)))
        return found

    def values(self, dtype: Any) -> np.ndarray:
        values = np.empty(self.info.nnz, dtype)
        check(LIB.gossamer_matrix_get_values(self.handle, address(values), None))
        return values

    def dense(self, dtype: Any) -> np.ndarray:
        dense = np.empty((self.info.rows, self.info.cols), dtype)
        check(LIB.gossamer_matrix_to_dense(self.handle, c.byref(described(dense))))
        return dense

    def product(
        self,
        x: np.ndarray,
        linear: bool,
        *,
        bias: np.ndarray | None = None,
        activation: str | None = None,
        residual: np.ndarray | None = None,
    ) -> np.ndarray:
        rows = self.info.rows
        shape = (rows,) if x.ndim == 1 else (len(x), rows) if linear else (rows, x.shape[1])
        out = np.empty(shape, x.dtype)
        parts = described(bias), described(residual)
        after = Epilogue(pointer(parts[0]), ACTIVATIONS[activation], pointer(parts[1]))
        call = LIB.gossamer_linear if linear else LIB.gossamer_matmul
        check(call(self.handle, c.byref(described(x)), c.byref(after), c.byref(described(out))))
        return out


class File:
    """A gossamer_file."""

    def __init__(self, path: Path) -> None:
        self.handle = c.c_void_p()
        check(LIB.gossamer_file_open(str(path).encode(), c.byref(self.handle)))

    def __del__(self) -> None:
        LIB.gossamer_file_free(self.handle)

    @property
    def names(self) -> list[str]:
        return [self._entry(i).name.decode() for i in range(LIB.gossamer_file_count(self.handle))]

    def _entry(self, i: int) -> Any:
        entry = Entry()
        check(LIB.gossamer_file_get_entry(self.handle, c.c_int64(i), c.byref(entry)))
        return entry

    def matrix(self, name: str, format: str | None = None) -> Matrix:
        form = None if format is None else format.encode()
        return Matrix("gossamer_file_read_matrix", self.handle, name.encode(), form)

    def array(self, name: str, dtype: Any) -> np.ndarray:
        entry = Entry()
        check(LIB.gossamer_file_find(self.handle, name.encode(), c.byref(entry)))
        read = np.empty(tuple(entry.shape[i] for i in range(entry.ndim)), dtype)
        check(LIB.gossamer_file_read_array(self.handle, name.encode(), c.byref(described(read))))
        return read

    def mask(self, name: str) -> gs.Mask:
        entry = Entry()
        check(LIB.gossamer_file_find(self.handle, name.encode(), c.byref(entry)))
        shape = tuple(entry.shape[i] for i in range(entry.ndim))
        packed = np.zeros((shape[0], -(-int(np.prod(shape[1:])) // 8)), np.uint8)
        check(LIB.gossamer_file_read_mask(self.handle, name.encode(), address(packed)))
        return gs.Mask(shape, packed)


def save(path: Path, entries: dict[str, Matrix | gs.Mask | np.ndarray]) -> None:
    saved, keep = (Saved * len(entries))(), []
    for to, (name, value) in zip(saved, entries.items(), strict=True):
        to.name = name.encode()
        if isinstance(value, Matrix):
            to.matrix = value.handle
        elif isinstance(value, gs.Mask):
            to.mask, to.ndim = address(np.asarray(value.packed)), len(value.shape)
            to.shape = (c.c_int64 * len(value.shape))(*value.shape)
        else:
            keep.append(described(value))
            to.array = pointer(keep[-1])
    check(LIB.gossamer_save(str(path).encode(), saved, c.c_int64(len(entries))))
