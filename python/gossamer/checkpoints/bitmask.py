# SPDX-License-Identifier: Apache-2.0
"""The sparse-bitmask layout of compressed-tensors: one tensor as four.

``NAME.shape`` int64, ``NAME.compressed`` the kept values in row-major order, ``NAME.bitmask`` uint8
``[rows, ceil(cols / 8)]`` (little-endian, as in :class:`gossamer.Mask`), ``NAME.row_offsets`` int64 ``[rows]``, where
in the values each row starts. compressed-tensors leaves ``.weight`` out of NAME, and so does this; for tensors with
another name the file's metadata has an entry with the names. Where NAME does end in ``.weight``, it is the tensor's.

Differences where compressed-tensors has no answer of its own: more than two axes are the matrix [shape[0], rest] (the
layout with the last axis as columns is read too), and -0 counts as kept, so that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from gossamer import _core
from gossamer._arrays import Host, is_float, matrix_shape
from gossamer.headers import BITS, DTYPES, Entry, Header, open_file, read_array
from gossamer.masks import Mask

PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_KEY = "gossamer.bitmask"  # of the metadata: a JSON list of the packed tensors that have other names
_WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Packed:
    """The four entries of one tensor, which fit together; and the tensor that they stand for."""

    entry: Entry  # as if it was dense; its place means nothing
    rows: int
    cols: int
    parts: dict[str, Entry]


def prefix(name: str) -> str:
    """What comes before ``.compressed`` for a tensor of that name."""
    return name.removesuffix(_WEIGHT) or name


def _usual(start: str) -> str:
    """The name of a tensor whose parts begin so."""
    return start if start.endswith(_WEIGHT) else start + _WEIGHT


def layout(name: str, dtype: str, shape: tuple[int, ...], nnz: int) -> list[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of the four."""
    rows, cols = matrix_shape(shape)
    start = prefix(name)
    return [
        (f"{start}.shape", "I64", (len(shape),)),
        (f"{start}.compressed", dtype, (nnz,)),
        (f"{start}.bitmask", "U8", (rows, -(-cols // 8))),
        (f"{start}.row_offsets", "I64", (rows,)),
    ]


def packed_bytes(entry: Entry, nnz: int) -> int:
    """What a tensor takes as these four with so many kept values."""
    parts = layout(entry.name, entry.dtype, entry.shape, nnz)
    return sum(Entry(*part, 0, 0).size * BITS[part[1]] // 8 for part in parts)


def metadata_with(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The metadata of a file in which these are packed."""
    others = [name for name in names if _usual(prefix(name)) != name]
    return {**metadata, **({_KEY: json.dumps(others)} if others else {})}


def metadata_without(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of the same file with dense tensors."""
    return {key: value for key, value in metadata.items() if key != _KEY}


def pack(w: Host, bits: Host) -> tuple[Host, Host]:
    """The kept values of a contiguous matrix, and where in them each row begins."""
    rows, cols = w.shape
    indptr = np.empty(rows + 1, np.int64)
    _core.mask_to_indptr(bits, rows, cols, indptr)
    values = np.empty(indptr[-1], w.dtype)
    _core.mask_to_values("pack", w, bits, indptr, values)
    return values, indptr[:-1]


def nonzero(w: Host) -> Mask:
    """Where a contiguous array of any dtype has a bit set: all that packing must keep."""
    rows, cols = matrix_shape(w.shape)
    bits = w.reshape(rows, cols).view(f"u{w.dtype.itemsize}") if w.dtype.itemsize <= 8 else w.reshape(rows, cols) != 0
    packed = np.empty((rows, -(-cols // 8)), np.uint8)
    step = max(1, (1 << 22) // max(cols, 1))
    for i in range(0, rows, step):
        packed[i : i + step] = np.packbits(bits[i : i + step] != 0, axis=1, bitorder="little")
    return Mask._own(w.shape, packed)


def find_packed(header: Header, function: str) -> dict[str, Packed]:
    """The packed tensors of a file by name; only shapes are read.

    Raises ValueError where the parts of one do not fit together.
    """
    named = _names(header, function)
    found = {}
    for name in header.entries:
        start, _, end = name.rpartition(".")
        if end != "compressed" or not all(f"{start}.{part}" in header.entries for part in PARTS):
            continue
        full = named.get(start, _usual(start))
        found[full] = _fitting(header, full, start, function)
        if full in header.entries:
            raise _refused(header, full, "a dense tensor of that name too", function)
    missing = [name for name in named.values() if name not in found]
    if missing:
        raise _refused(header, missing[0], "less than its four parts", function)
    return found


def _names(header: Header, function: str) -> dict[str, str]:
    """Tensors that are not called as usual, by what their parts begin with."""
    try:
        names = json.loads(header.metadata.get(_KEY, "[]"))
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{function}: {header.path} must have a list of names as {_KEY}, got something else")
    return {prefix(name): name for name in names}


def _fitting(header: Header, name: str, start: str, function: str) -> Packed:
    parts = {part: header.entries[f"{start}.{part}"] for part in PARTS}
    shape, bits, offsets, values = (parts[part] for part in ("shape", "bitmask", "row_offsets", "compressed"))
    dtypes = (shape.dtype, bits.dtype, offsets.dtype)
    if dtypes != ("I64", "U8", "I64") or values.dtype not in DTYPES or shape.size > 64 or len(values.shape) != 1:
        raise _refused(header, name, f"dtypes or shapes that do not fit: {dtypes}, {values.dtype}", function)
    with open_file(header.path) as file:
        sizes = tuple(int(n) for n in read_array(file, header, shape, function).reshape(-1))
    rows_of_bits, row_bytes = matrix_shape((1, *bits.shape) if len(bits.shape) < 2 else bits.shape)
    if len(bits.shape) > 2:
        rows_of_bits, row_bytes = bits.size // max(bits.shape[-1], 1), bits.shape[-1]
    for rows, cols in _readings(sizes):
        if min(sizes, default=1) >= 0 and (rows_of_bits, row_bytes) == (rows, -(-cols // 8)):
            dense = Entry(name, values.dtype, sizes, 0, rows * cols * DTYPES[values.dtype].itemsize)
            return Packed(dense, rows, cols, parts)
    raise _refused(header, name, f"a bitmask of shape {bits.shape} for a tensor of shape {sizes}", function)


def _readings(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """gossamer's matrix, and that of compressed-tensors, whose columns are the last axis."""
    last = shape[-1] if shape else 1
    leading = 1
    for n in shape[:-1]:
        leading *= n
    return [matrix_shape(shape), (leading, last)]


def unpack(file: BinaryIO, header: Header, packed: Packed, function: str) -> tuple[Host, Mask]:
    """The dense tensor, and which of its places are kept.

    Raises ValueError where bits, values and offsets contradict each other.
    """
    values, bits, offsets = (
        read_array(file, header, packed.parts[part], function) for part in ("compressed", "bitmask", "row_offsets")
    )
    name, rows, cols = packed.entry.name, packed.rows, packed.cols
    try:
        mask = Mask((rows, cols), bits.reshape(rows, -(-cols // 8)))
    except ValueError:
        raise _refused(header, name, "bits beyond the last column", function) from None
    del bits
    if mask.nnz != values.size:
        raise _refused(header, name, f"{values.size} values for {mask.nnz} bits", function)
    indptr = np.empty(rows + 1, np.int64)
    _core.mask_to_indptr(mask.packed, rows, cols, indptr)
    if offsets.size != rows or not np.array_equal(offsets.reshape(-1), indptr[:-1]):
        raise _refused(header, name, "row_offsets that differ from the bits", function)
    dense = np.empty((rows, cols), values.dtype)
    moved = "i1" if values.dtype.itemsize == 1 else f"f{values.dtype.itemsize}"  # a dtype of that size
    _core.values_to_dense(mask.packed, rows, cols, indptr, values.view(moved), dense.reshape(-1).view(moved))
    shape = packed.entry.shape
    return dense.reshape(shape), mask if shape == mask.shape else _reshaped(mask, shape)


def _reshaped(mask: Mask, shape: tuple[int, ...]) -> Mask:
    if matrix_shape(shape) == matrix_shape(mask.shape):
        return Mask(shape, mask.packed)
    return Mask.from_dense(mask.to_dense().reshape(shape))


def _refused(header: Header, name: str, what: str, function: str) -> ValueError:
    return ValueError(f"{function}: {header.path} must hold {name[:80]!r} as a whole bitmask tensor, got {what}")


def is_prunable(entry: Any) -> bool:
    """Whether a tensor is floating and has two or more axes."""
    return entry.dtype in DTYPES and is_float(DTYPES[entry.dtype]) and len(entry.shape) >= 2
