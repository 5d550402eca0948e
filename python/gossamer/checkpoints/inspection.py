# SPDX-License-Identifier: Apache-2.0
"""What is in a checkpoint: shapes, zeros and their pattern, bytes and FLOPs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossamer._arrays import matrix_shape
from gossamer.checkpoints import bitmask
from gossamer.checkpoints.patterns import ROWS, PatternFinder
from gossamer.checkpoints.reading import Progress, Reader
from gossamer.checkpoints.source import open_checkpoint
from gossamer.headers import BITS, DTYPES, Entry, Header


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. ``nnz`` is None for dtypes that are not looked into; FLOPs are those of one input row."""

    name: str
    file: str
    shape: tuple[int, ...]
    dtype: str
    storage: str  # "dense" or "bitmask"
    nnz: int | None
    pattern: str  # as in gossamer.prune, or "none"
    bytes: int
    packed_bytes: int  # about what it takes as a bitmask, or as it is where that is less
    dense_flops: int
    flops: int

    @property
    def size(self) -> int:
        rows, cols = matrix_shape(self.shape)
        return rows * cols

    @property
    def sparsity(self) -> float | None:
        """The share of zeros."""
        return None if self.nnz is None else 1 - self.nnz / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class Inspection:
    """What :func:`inspect` has found. ``metadata``: that of the first file."""

    path: Path
    files: int
    file_bytes: int
    metadata: dict[str, str]
    tensors: tuple[TensorInfo, ...]

    @property
    def sparsity(self) -> float:
        """The share of zeros among all elements that were looked at."""
        known = [(tensor.size, tensor.nnz) for tensor in self.tensors if tensor.nnz is not None]
        size = sum(size for size, _ in known)
        return 1 - sum(nnz for _, nnz in known) / size if size else 0.0

    def total(self, what: str) -> int:
        """The sum of ``"bytes"``, ``"packed_bytes"``, ``"dense_flops"`` or ``"flops"``, or of ``"size"``."""
        return sum(int(getattr(tensor, what)) for tensor in self.tensors)


def inspect(source: str | os.PathLike[str], *, progress: Progress | None = None) -> Inspection:
    """Looks at every tensor of a ``.safetensors`` file or of an index's shards, in blocks.

    A zero is an element that equals 0. A pattern is named where at least 98 % of what it would keep is not zero;
    random zeros have ``"none"``. FLOPs are 2 for each weight of a floating tensor of two or more axes, read as the
    matrix [shape[0], rest]: a convolution's are those of one output position, and an embedding counts as if it was
    multiplied.

    Raises
    ------
    ValueError, OSError
        A file that breaks a rule of its format, or cannot be read.

    Examples
    --------
    >>> import numpy as np, gossamer as gs, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> gs.save(path, {"w": gs.prune(np.random.default_rng(0).standard_normal((64, 64)), pattern="2:4")[0]})
    >>> found = gs.checkpoints.inspect(path).tensors[0]
    >>> found.name, found.sparsity, found.pattern
    ('w', 0.5, '2:4')
    """
    checkpoint = open_checkpoint(source, "inspect")
    tensors = []
    with Reader("inspect", progress) as reader:
        reader.phase("inspect", sum(header.file_size for header in checkpoint.shards.values()))
        for shard, header in checkpoint.shards.items():
            packed = bitmask.find_packed(header, "inspect")
            parts = {part.name for found in packed.values() for part in found.parts.values()}
            for found in packed.values():
                tensors.append(_packed_info(reader, header, shard, found))
            for entry in header.entries.values():
                if entry.name not in parts:
                    tensors.append(_dense_info(reader, header, shard, entry))
    first = next(iter(checkpoint.shards.values()))
    return Inspection(checkpoint.path, len(checkpoint.shards), checkpoint.nbytes, first.metadata, tuple(tensors))


def _dense_info(reader: Reader, header: Header, shard: str, entry: Entry) -> TensorInfo:
    if entry.dtype not in DTYPES:
        reader.advance(entry.nbytes, entry.name)
        return TensorInfo(
            entry.name, shard, entry.shape, entry.dtype, "dense", None, "none", entry.nbytes, entry.nbytes, 0, 0
        )
    finder = PatternFinder(*matrix_shape(entry.shape))
    for _, strip in reader.strips(header, entry, ROWS):
        half = entry.dtype in ("F16", "BF16")  # as bits, the sign shifted out: three times as fast
        finder.add(strip.view(np.uint16) << 1 != 0 if half else strip != 0)
    return _info(shard, entry, "dense", finder, entry.nbytes)


def _packed_info(reader: Reader, header: Header, shard: str, packed: bitmask.Packed) -> TensorInfo:
    finder = PatternFinder(packed.rows, packed.cols)
    rows = Entry("", "U8", (packed.rows, -(-packed.cols // 8)), packed.parts["bitmask"].start, 0)
    for _, strip in reader.strips(header, rows, ROWS):
        finder.add(np.unpackbits(strip, axis=1, count=packed.cols, bitorder="little").view(np.bool_))
    return _info(shard, packed.entry, "bitmask", finder, sum(part.nbytes for part in packed.parts.values()))


def _info(shard: str, entry: Entry, storage: str, finder: PatternFinder, now: int) -> TensorInfo:
    pattern = finder.found() if len(entry.shape) > 1 else "none"
    estimate, flops = entry.size * BITS[entry.dtype] // 8, (0, 0)
    if bitmask.is_prunable(entry):
        estimate = min(estimate, bitmask.packed_bytes(entry, finder.nnz))
        flops = 2 * entry.size, 2 * finder.nnz
    return TensorInfo(entry.name, shard, entry.shape, entry.dtype, storage, finder.nnz, pattern, now, estimate, *flops)
