# SPDX-License-Identifier: Apache-2.0
"""Files of a pruned or converted checkpoint: written in place, dense or packed, and published."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from gossamer._arrays import Host, matrix_shape
from gossamer.checkpoints import bitmask
from gossamer.checkpoints.reading import BLOCK
from gossamer.checkpoints.source import Checkpoint
from gossamer.checkpoints.work import GrowingFile, Work
from gossamer.headers import BITS, METADATA, Entry, Header, make_header, read_header
from gossamer.masks import Mask

Fingerprint = list[list[str | int]]


class Sink:
    """One file under construction: its header is there, the tensors come in any order, their pieces in theirs."""

    def __init__(self, file: GrowingFile, header: Header) -> None:
        self._file = file
        self._next = {name: header.data + entry.start for name, entry in header.entries.items()}
        file.reserve(header.file_size)
        file.write(0, header.raw)

    def copy(self, entry: Entry, data: Host) -> None:
        """Bytes of a tensor that stays as it is."""
        self._put(entry.name, data)

    def write(self, entry: Entry, row: int, w: Host, mask: Mask) -> None:
        """Rows of a pruned tensor, with zeros where the mask keeps nothing."""
        self._put(entry.name, w)

    def _put(self, name: str, data: Host) -> None:
        raw: memoryview = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        self._file.write(self._next[name], raw)
        self._next[name] += len(raw)


class PackedSink(Sink):
    """Pruned tensors become four, see :mod:`gossamer.checkpoints.bitmask`."""

    def __init__(self, file: GrowingFile, header: Header, packed: Iterable[Entry]) -> None:
        super().__init__(file, header)
        self._values = 0  # of the tensor whose rows are coming, so far
        for entry in packed:
            self._put(f"{bitmask.prefix(entry.name)}.shape", np.array(entry.shape, np.int64))

    def write(self, entry: Entry, row: int, w: Host, mask: Mask) -> None:
        start = bitmask.prefix(entry.name)
        if row == 0:
            self._values = 0
        rows = w.reshape(matrix_shape(w.shape))
        step = max(BLOCK // max(rows[:1].nbytes, 1), 1)
        for i in range(0, len(rows), step):  # one piece is packed while another is written
            values, offsets = bitmask.pack(rows[i : i + step], mask.packed[i : i + step])
            self._put(f"{start}.compressed", values)
            self._put(f"{start}.row_offsets", offsets + self._values)
            self._values += values.size
        self._put(f"{start}.bitmask", mask.packed)


def make_sink(file: GrowingFile, header: Header, kept: Mapping[str, int], storage: str) -> Sink:
    """For a file with what is in ``header``; ``kept`` counts the weights of the tensors that will be pruned."""
    if storage == "dense":
        return Sink(file, header)
    packed = [entry for entry in header.entries.values() if entry.name in kept]
    return PackedSink(file, packed_header(header, kept, "prune"), packed)


def packed_header(header: Header, kept: Mapping[str, int], function: str) -> Header:
    """The header of a file in which some tensors are packed. ValueError where a name would be there twice."""
    tensors = []
    for entry in header.entries.values():
        if entry.name in kept:
            tensors += bitmask.layout(entry.name, entry.dtype, entry.shape, kept[entry.name])
        else:
            tensors.append((entry.name, entry.dtype, entry.shape))
    return ordered_header(header, tensors, bitmask.metadata_with(header.metadata, kept), function)


def ordered_header(
    header: Header, tensors: list[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str], function: str
) -> Header:
    """Widest dtypes first, so that every tensor is aligned."""
    seen = {METADATA}
    for name, _, _ in tensors:
        if name in seen:
            raise ValueError(
                f"{function}: {header.path} must leave the names of packed tensors free, got {name!r} twice"
            )
        seen.add(name)
    return make_header(sorted(tensors, key=lambda tensor: -BITS[tensor[1]]), metadata)


def target_of(checkpoint: Checkpoint, out: str | os.PathLike[str], function: str) -> Path:
    """Where the output goes: a link stays a link, and only files and folders are replaced."""
    if not os.fspath(out):
        raise ValueError(f"{function}: out must not be empty")
    target = Path(os.path.realpath(out))
    single = checkpoint.index is None
    if single and target.exists() and not target.is_file():
        code = errno.EISDIR if target.is_dir() else errno.EINVAL
        raise OSError(code, os.strerror(code), os.fspath(out))
    if not single and target.exists() and not target.is_dir():
        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(out))
    if not single and target.suffix in (".safetensors", ".json"):
        raise ValueError(f"{function}: out must be a folder where the source is an index, got {os.fspath(out)}")
    if not single and target.exists() and any("/" in shard for shard in checkpoint.shards):
        raise ValueError(f"{function}: out must be new where the index names files in folders, got {os.fspath(out)}")
    return target


def is_same(checkpoint: Checkpoint, target: Path) -> bool:
    """Whether the output would replace a file of the source."""
    files = [Path(os.path.realpath(header.path)) for header in checkpoint.shards.values()]
    if checkpoint.index is None:
        return target in files or (target.exists() and os.path.samefile(target, files[0]))
    return any(file.is_relative_to(target) for file in files)


def publish(checkpoint: Checkpoint, work: Work, source: Fingerprint, function: str) -> int:
    """Once all files are finished: the index beside them, and out with it; -> how many bytes the files have.

    ValueError if they come from changing sources.
    """
    work.settle()
    size = sum((work.files / shard).stat().st_size for shard in checkpoint.shards)
    if fingerprint(checkpoint) != source:
        raise ValueError(f"{function}: {checkpoint.path} must stay as it is, but changed while it was read")
    if checkpoint.index is None:
        work.publish_file(checkpoint.path.name)
        return size
    with work.file(checkpoint.path.name) as file:
        file.write(0, index_of(checkpoint, work.files))
    work.settle()
    work.publish_folder(checkpoint.path.name)
    return size


def index_of(checkpoint: Checkpoint, folder: Path) -> bytes:
    """The index of the new files: the old one, byte for byte, where they hold the same tensors."""
    assert checkpoint.index is not None
    headers = {shard: read_header(folder / shard, "prune") for shard in checkpoint.shards}
    if all(headers[shard].raw == header.raw for shard, header in checkpoint.shards.items()):
        return checkpoint.index.raw
    fields = dict(checkpoint.index.fields)
    about = fields.get("metadata")
    size = sum(entry.nbytes for header in headers.values() for entry in header.entries.values())
    fields["metadata"] = {**(about if isinstance(about, dict) else {}), "total_size": size}
    fields["weight_map"] = {name: shard for shard, header in headers.items() for name in sorted(header.entries)}
    return (json.dumps(fields, indent=2) + "\n").encode()


def fingerprint(checkpoint: Checkpoint) -> Fingerprint:
    """Which files, in which state: another run of the same job may go on with what this one has written."""
    files = [] if checkpoint.index is None else [checkpoint.path]
    files += [header.path for header in checkpoint.shards.values()]
    return [[os.path.realpath(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
