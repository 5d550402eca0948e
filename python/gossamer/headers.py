# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors files: checked in full before anything else of the file is read, and written.

A file is 8 bytes with the header's length, the header (JSON, perhaps with spaces after it), and the tensors' bytes
without gaps. Whoever made the file is not trusted: every refusal is a ValueError of one line.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gossamer._arrays import BFLOAT16

MAX_HEADER = 100_000_000  # the format's own limit, in bytes
METADATA = "__metadata__"
_LARGEST = (1 << 63) - 1

BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
}  # an element of every dtype of the format
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "BF16": BFLOAT16,
    "C64": np.dtype(np.complex64),
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}  # those of numpy and ml_dtypes
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: its bytes are ``[start, end)`` after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def size(self) -> int:
        return _product(self.shape) or 0


@dataclass(frozen=True, slots=True)
class Header:
    """A header that was checked. ``entries`` are in the order of their bytes; ``raw`` is the file up to the data."""

    path: Path
    raw: bytes
    entries: dict[str, Entry]
    metadata: dict[str, str]
    file_size: int

    @property
    def data(self) -> int:
        """Where the tensors' bytes begin."""
        return len(self.raw)


def read_header(path: str | os.PathLike[str], function: str) -> Header:
    """The header of a safetensors file.

    Raises
    ------
    ValueError
        The file breaks a rule of the format: a length beyond the file or the limit, no strict JSON, a key twice, an
        unknown dtype, offsets that overlap, leave gaps, lie outside of the file or differ from shape and dtype.
    OSError
        The file cannot be read, or is no regular file.
    """
    with open_file(path) as file:
        return parse_header(file, path, function)


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, unbuffered; OSError for what is none (opening a pipe would wait for its writer)."""
    if "\0" in os.fspath(path):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path).replace("\0", "\\0"))
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code), os.fspath(path))
    return open(path, "rb", buffering=0)


def parse_header(file: BinaryIO, path: str | os.PathLike[str], function: str) -> Header:
    """As :func:`read_header`, of an open file."""

    def refuse(what: str) -> ValueError:
        return ValueError(f"{function}: {os.fspath(path)} must be a safetensors file, got {what}")

    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise refuse(f"a file of {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise refuse(f"a header of {length} bytes, more than {MAX_HEADER}")
    if length > size - 8:
        raise refuse(f"a header of {length} bytes in a file of {size}")
    text = file.read(length)
    if len(text) < length:
        raise refuse("a file that became shorter while it was read")
    try:
        fields = strict_json(text)
        metadata = _metadata(fields.pop(METADATA, {}))
        entries = sorted(
            (_entry(name, field) for name, field in fields.items()), key=lambda e: (e.start, e.end, e.name)
        )
        _check_places(entries, size - 8 - length)
    except _HeaderError as error:
        raise refuse(str(error)) from None
    return Header(Path(path), start + text, {e.name: e for e in entries}, metadata, size)


class _HeaderError(Exception):
    """What is wrong with a header, in words that follow "got"."""


def strict_json(text: bytes) -> dict[str, Any]:
    """An object in UTF-8 without a key twice, NaN or infinity; :class:`_HeaderError` otherwise."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, value in pairs:
            if name in fields:
                raise _HeaderError(f"the key {_shown(name)} twice")
            fields[name] = value
        return fields

    def constant(name: str) -> None:
        raise _HeaderError(f"the number {name}")

    if not text.startswith(b"{"):
        raise _HeaderError("a header that is no JSON object")
    try:
        fields = json.loads(text.decode(), object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise _HeaderError(f"a header that is no JSON: {error}") from None
    return dict(fields)


def read_json(path: Path, function: str, what: str) -> tuple[bytes, dict[str, Any]]:
    """A file of strict JSON, for instance an index, and what it says. Raises ValueError and OSError."""
    with open_file(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_HEADER:
            raise ValueError(f"{function}: {path} must be {what}, got more than {MAX_HEADER} bytes")
        text = file.read()
    try:
        return text, strict_json(text.lstrip())
    except _HeaderError as error:
        raise ValueError(f"{function}: {path} must be {what}, got {error}") from None


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> Header:
    """The header of a file whose tensors (name, dtype, shape) lie in this order."""
    entries, fields, end = {}, dict[str, Any](), 0
    if metadata:
        fields[METADATA] = dict(metadata)
    for name, dtype, shape in tensors:
        start, end = end, end + (_product(shape) or 0) * BITS[dtype] // 8
        entries[name] = Entry(name, dtype, shape, start, end)
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in memory
    return Header(Path(), struct.pack("<Q", len(text)) + text, entries, dict(metadata), 8 + len(text) + end)


def read_array(file: BinaryIO, header: Header, entry: Entry, function: str) -> np.ndarray[Any, Any]:
    """One tensor of a dtype that numpy knows, on memory of its own."""
    try:
        array = np.empty(entry.shape, DTYPES[entry.dtype])
    except ValueError:  # more than 64 axes, or an axis of 2**62 beside one of 0
        what = f"{_shown(list(entry.shape))} for {_shown(entry.name)}"
        raise ValueError(f"{function}: {header.path} must hold shapes that numpy can, got {what}") from None
    read_into(file, header.data + entry.start, array, header.path, function)
    if entry.dtype == "BOOL" and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{function}: {header.path} must hold 0 or 1 in {_shown(entry.name)}, got another byte")
    return array


def read_into(
    file: BinaryIO, position: int, array: np.ndarray[Any, Any], path: Path, function: str
) -> np.ndarray[Any, Any]:
    """Fills a contiguous array from a place in a file."""
    view = array.reshape(-1).view(np.uint8).data
    while view:
        count = os.preadv(file.fileno(), [view[: 1 << 30]], position)  # Linux reads 2 GiB at most
        if count == 0:
            raise ValueError(f"{function}: {path} must stay as it is, but became shorter while it was read")
        view, position = view[count:], position + count
    return array


def _metadata(field: Any) -> dict[str, str]:
    if not isinstance(field, dict) or not all(isinstance(value, str) for value in field.values()):
        raise _HeaderError(f"a {METADATA} that is no mapping of texts")
    _check_text(*field, *field.values())
    return field


def _entry(name: str, field: Any) -> Entry:
    _check_text(name)
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise _HeaderError(f"other fields than dtype, shape and data_offsets for {_shown(name)}")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _HeaderError(f"the unknown dtype {_shown(dtype)} for {_shown(name)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n <= _LARGEST for n in numbers):
            raise _HeaderError(f"the {what} {_shown(numbers)} for {_shown(name)}")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _HeaderError(f"the data_offsets {_shown(offsets)} for {_shown(name)}")
    size = _product(shape)
    if size is None or size * BITS[dtype] > _LARGEST:
        raise _HeaderError(f"a shape that overflows, {_shown(shape)} for {_shown(name)}")
    if size * BITS[dtype] != 8 * (offsets[1] - offsets[0]):
        needed = f"{_shown(shape)} of {dtype} for {_shown(name)}"
        raise _HeaderError(f"{offsets[1] - offsets[0]} bytes for the shape {needed}")
    return Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _product(shape: Iterable[int]) -> int | None:
    """None where it, or a part of it, exceeds 63 bits."""
    size = 1
    for n in shape:
        size *= n
        if size > _LARGEST:
            return None
    return size


def _check_places(entries: list[Entry], size: int) -> None:
    end = 0
    for entry in entries:
        if entry.start != end:
            what = "overlaps with another tensor" if entry.start < end else "leaves a gap before it"
            raise _HeaderError(f"the place [{entry.start}, {entry.end}) of {_shown(entry.name)}, which {what}")
        end = entry.end
    if end != size:
        raise _HeaderError(f"{size} bytes of tensors where the header has {end}")


def _check_text(*texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _HeaderError(f"half a character in {_shown(text)}") from None


def _shown(value: object) -> str:
    """On one line, and not all of it where it is long."""
    text = repr(value[:40] if isinstance(value, (str, list)) else value)
    return ascii(text)[1:-1] if not text.isprintable() else text if len(text) <= 100 else text[:97] + "..."
