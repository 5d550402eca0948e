# SPDX-License-Identifier: Apache-2.0
"""Tensors read piece by piece into memory that is used again, and how far that has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from gossamer._arrays import Host, matrix_shape
from gossamer.headers import DTYPES, Entry, Header, open_file, read_into

Progress = Callable[[str, float | None, str], None]  # (phase, share done or None, words)
BLOCK = 4 << 20  # bytes: a block stays in the cache while it is read, masked and written


class Reader:
    """Reads tensors of checkpoints.

    Whole tensors and pieces lie in two places each, that take turns: what it gives is valid until the second next of
    its kind, so that one can be written while the next is read.
    """

    def __init__(self, function: str, progress: Progress | None = None) -> None:
        self._function, self._progress = function, progress
        self._open: tuple[Path, BinaryIO] | None = None
        self._whole, self._part = ([np.empty(0, np.uint8) for _ in range(2)] for _ in range(2))
        self._phase, self._done, self._total = "", 0, 0

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._open is not None:
            self._open[1].close()

    def phase(self, name: str, total: int) -> None:
        """What follows reads so many bytes."""
        self._phase, self._done, self._total = name, 0, total

    def advance(self, count: int, words: str) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._phase, min(self._done / max(self._total, 1), 1.0), words)

    def tensor(self, header: Header, entry: Entry) -> Host:
        """A whole tensor."""
        self._whole.reverse()
        w = _room(self._whole, entry.nbytes)
        view = w.view(DTYPES[entry.dtype]).reshape(entry.shape)
        for i in range(0, w.size, 8 * BLOCK):
            self._read(header, entry, i, w[i : i + 8 * BLOCK])
        return view

    def strips(self, header: Header, entry: Entry, multiple: int = 1) -> Iterator[tuple[int, Host]]:
        """(first row, rows) of a tensor as a matrix; as many rows as a block holds, and a multiple of ``multiple``."""
        (rows, cols), dtype = matrix_shape(entry.shape), DTYPES[entry.dtype]
        step = max(BLOCK // max(cols * dtype.itemsize * multiple, 1), 1) * multiple
        for row in range(0, rows, step):
            count = min(step, rows - row)
            self._part.reverse()
            data = _room(self._part, count * cols * dtype.itemsize)
            self._read(header, entry, row * cols * dtype.itemsize, data)
            yield row, data.view(dtype).reshape(count, cols)

    def blocks(self, header: Header, entry: Entry) -> Iterator[Host]:
        """The bytes of a tensor of any dtype."""
        for i in range(0, entry.nbytes, BLOCK):
            self._part.reverse()
            data = _room(self._part, min(BLOCK, entry.nbytes - i))
            self._read(header, entry, i, data)
            yield data

    def sample(self, header: Header, entry: Entry, pieces: int, length: int) -> Host:
        """Elements of a tensor: that many stretches of up to ``length`` at random places, one a row."""
        dtype = DTYPES[entry.dtype]
        length = min(length, entry.size)
        places = np.random.Generator(np.random.SFC64(entry.start)).integers(0, entry.size - length + 1, pieces)
        found = np.empty((pieces, length), dtype)
        file = self._file(header)
        for place, to in zip(places.tolist(), found, strict=True):
            read_into(file, header.data + entry.start + place * dtype.itemsize, to, header.path, self._function)
        return found

    def _read(self, header: Header, entry: Entry, offset: int, to: Host) -> None:
        read_into(self._file(header), header.data + entry.start + offset, to, header.path, self._function)
        self.advance(to.size, entry.name)

    def _file(self, header: Header) -> BinaryIO:
        if self._open is None or self._open[0] != header.path:
            if self._open is not None:
                self._open[1].close()
            self._open = header.path, open_file(header.path)
        return self._open[1]


def _room(places: list[Host], size: int) -> Host:
    """So many bytes in the first place, which grows if need be."""
    if places[0].size < size:
        places[0] = np.empty(0, np.uint8)  # the old one goes before there is a new one
        places[0] = np.empty(size, np.uint8)
    return places[0][:size]
