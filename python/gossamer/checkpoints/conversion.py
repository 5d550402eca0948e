# SPDX-License-Identifier: Apache-2.0
"""Checkpoints from one storage to another: dense, bitmask, scipy's ``.npz``."""

from __future__ import annotations

import io
import os
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from gossamer import _core
from gossamer.checkpoints import bitmask
from gossamer.checkpoints.output import (
    PackedSink,
    Sink,
    fingerprint,
    is_same,
    ordered_header,
    publish,
    target_of,
)
from gossamer.checkpoints.reading import Progress, Reader
from gossamer.checkpoints.source import Checkpoint, open_checkpoint
from gossamer.checkpoints.work import Work, working
from gossamer.files import replace_file
from gossamer.headers import NAMES, Entry, Header, open_file
from gossamer.masks import Mask
from gossamer.sparse import SparseMatrix

# What numpy, zipfile and scipy raise for damaged files.
_NPZ_ERRORS = (
    *(ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError, OverflowError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError),
)
STORAGES = ("dense", "bitmask", "npz")


@dataclass(frozen=True, slots=True)
class Converted:
    """What :func:`convert` has done. ``tensors``: the names of those that changed their storage."""

    path: Path
    storage: str
    tensors: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    seconds: float


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    storage: str | None = None,
    tensor: str | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Writes a checkpoint in another storage; the source stays.

    ================================ =========================== ===================================================
    source                           out                         result
    ================================ =========================== ===================================================
    ``.safetensors`` or an index     a file, or a folder for an  ``dense`` where the source has bitmask tensors, else
                                     index                       ``bitmask`` (or as ``storage`` says)
    ``.safetensors`` or an index     ``NAME.npz``                one matrix: ``tensor``, or the only one
    ``.safetensors`` or an index     a folder (``storage="npz"``) a ``.npz`` for each floating tensor of two axes
    ``.npz``, or a folder of them    a ``.safetensors`` file      ``dense`` (or as ``storage`` says); ``tensor`` names
                                                                 the only one, else the files' names do
    ================================ =========================== ===================================================

    As a bitmask every bit of a value is kept, -0 and NaN too; only floating tensors of two or more axes that become
    smaller are packed, all others stay byte for byte. ``.npz`` is ``scipy.sparse.save_npz``'s format; 16-bit values are
    float32 in it, and names are quoted like in URLs.

    Raises
    ------
    ValueError, TypeError
        Arguments that do not fit together, or files that break a rule of their format. Then nothing is written.
    OSError
        A file that cannot be read or written.
    RuntimeError
        Another process is writing ``out``.

    Examples
    --------
    >>> import numpy as np, gossamer as gs, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> dense, packed = (os.path.join(folder, name) for name in ("dense.safetensors", "packed.safetensors"))
    >>> gs.save(dense, {"fc.weight": np.eye(64, dtype=np.float32)})
    >>> gs.checkpoints.convert(dense, packed).tensors
    ('fc.weight',)
    >>> sorted(gs.checkpoints.headers(packed))
    ['fc.bitmask', 'fc.compressed', 'fc.row_offsets', 'fc.shape']
    """
    begin = time.perf_counter()
    if storage is not None and storage not in STORAGES:
        raise ValueError(f"convert: storage must be dense, bitmask or npz, got {storage!r}")
    path, target = Path(source), Path(out)
    if path.suffix == ".npz" or path.is_dir():
        done = _from_npz(path, target, storage or "dense", tensor)
    elif target.suffix == ".npz" or storage == "npz":
        done = _to_npz(path, target, tensor, progress)
    else:
        if tensor is not None:
            raise ValueError(f"convert: tensor must be left out where no .npz is involved, got {tensor!r}")
        done = _between(path, target, storage, progress)
    return Converted(*done, time.perf_counter() - begin)


Done = tuple[Path, str, tuple[str, ...], int, int]


# --- dense and bitmask ------------------------------------------------------------------------------------------------


def _between(path: Path, out: Path, storage: str | None, progress: Progress | None) -> Done:
    checkpoint = open_checkpoint(path, "convert")
    packed = {shard: bitmask.find_packed(header, "convert") for shard, header in checkpoint.shards.items()}
    storage = storage or ("dense" if any(packed.values()) else "bitmask")
    target = target_of(checkpoint, out, "convert")
    if is_same(checkpoint, target):
        raise ValueError(f"convert: out must differ from the source, got {os.fspath(out)}")
    before = fingerprint(checkpoint)
    job = {"version": _core.info()["version"], "convert": storage, "source": before}
    names: list[str] = []
    with working(target, job, "convert") as work, Reader("convert", progress) as reader:
        reader.phase("convert", 2 * checkpoint.nbytes)
        for shard, header in checkpoint.shards.items():
            write = _unpack_file if storage == "dense" else _pack_file
            names += write(work, reader, shard, header, packed[shard])
        after = publish(checkpoint, work, before, "convert")
    return target, storage, tuple(names), checkpoint.nbytes, after


def _unpack_file(
    work: Work, reader: Reader, shard: str, header: Header, packed: dict[str, bitmask.Packed]
) -> list[str]:
    parts = {part.name for found in packed.values() for part in found.parts.values()}
    stays = [entry for entry in header.entries.values() if entry.name not in parts]
    tensors = [_described(found.entry) for found in packed.values()] + [_described(entry) for entry in stays]
    if not packed:
        fresh = header
    else:
        fresh = ordered_header(header, tensors, bitmask.metadata_without(header.metadata), "convert")
    with _sink(work, shard, fresh) as sink, open_file(header.path) as file:
        for entry in stays:
            _copy(reader, sink, header, entry)
        for found in packed.values():
            dense, mask = bitmask.unpack(file, header, found, "convert")
            sink.write(found.entry, 0, dense, mask)
            reader.advance(sum(part.nbytes for part in found.parts.values()), found.entry.name)
    return list(packed)


def _pack_file(work: Work, reader: Reader, shard: str, header: Header, packed: dict[str, bitmask.Packed]) -> list[str]:
    parts = {part.name for found in packed.values() for part in found.parts.values()}
    kept = {}
    for entry in header.entries.values():
        if bitmask.is_prunable(entry) and entry.name not in parts:
            nnz = sum(bitmask.nonzero(strip).nnz for _, strip in reader.strips(header, entry))
            if bitmask.packed_bytes(entry, nnz) < entry.nbytes:
                kept[entry.name] = nnz
    if not kept:
        fresh = header
    else:
        tensors = []
        for entry in header.entries.values():
            described = _described(entry)
            tensors += bitmask.layout(*described, kept[entry.name]) if entry.name in kept else [described]
        names = [*kept, *packed]
        fresh = ordered_header(header, tensors, bitmask.metadata_with(header.metadata, names), "convert")
    with _sink(work, shard, fresh, [header.entries[name] for name in kept]) as sink:
        for entry in header.entries.values():
            if entry.name not in kept:
                _copy(reader, sink, header, entry)
                continue
            for row, strip in reader.strips(header, entry):
                sink.write(entry, row, strip, bitmask.nonzero(strip))
    return list(kept)


def _described(entry: Entry) -> tuple[str, str, tuple[int, ...]]:
    return entry.name, entry.dtype, entry.shape


@contextmanager
def _sink(work: Work, shard: str, header: Header, packed: Iterable[Entry] | None = None) -> Iterator[Sink]:
    """A dense file, or one in which some tensors are packed."""
    with work.file(shard) as file:
        yield Sink(file, header) if packed is None else PackedSink(file, header, packed)


def _copy(reader: Reader, sink: Sink, header: Header, entry: Entry) -> None:
    for block in reader.blocks(header, entry):
        sink.copy(entry, block)


# --- scipy ------------------------------------------------------------------------------------------------------------


def _to_npz(path: Path, out: Path, tensor: str | None, progress: Progress | None) -> Done:
    from gossamer import reporting

    checkpoint = open_checkpoint(path, "convert")
    matrices = _matrices(checkpoint)
    if tensor is not None and tensor not in matrices:
        raise ValueError(f"convert: tensor must be a floating tensor of two axes in {path}, got {tensor!r}")
    chosen = list(matrices) if tensor is None else [tensor]
    single = out.suffix == ".npz"
    if not chosen or (single and len(chosen) != 1):
        what = "one matrix (name it, or write a folder)" if single else "floating tensors of two axes"
        raise ValueError(f"convert: {path} must hold {what}, got {len(chosen)}")
    with Reader("convert", progress) as reader:
        reader.phase("convert", checkpoint.nbytes)
        if single:
            data = _npz(reader, *matrices[chosen[0]])
            if out.exists() and not out.is_file():
                raise ValueError(f"convert: out must be a file, got {os.fspath(out)}")
            replace_file(Path(os.path.realpath(out)), data)
            return out, "npz", tuple(chosen), checkpoint.nbytes, len(data)
        after = 0
        with reporting.staged(out) as stage:
            for name in chosen:
                data = _npz(reader, *matrices[name])
                (stage / f"{quote(name, safe=' ')}.npz").write_bytes(data)
                after += len(data)
    return out, "npz", tuple(chosen), checkpoint.nbytes, after


Matrix = tuple[Header, Entry | bitmask.Packed]


def _matrices(checkpoint: Checkpoint) -> dict[str, Matrix]:
    found: dict[str, Matrix] = {}
    for header in checkpoint.shards.values():
        for name, packed in bitmask.find_packed(header, "convert").items():
            if bitmask.is_prunable(packed.entry) and len(packed.entry.shape) == 2:
                found[name] = header, packed
        for name, entry in header.entries.items():
            if bitmask.is_prunable(entry) and len(entry.shape) == 2:
                found[name] = header, entry
    return found


def _npz(reader: Reader, header: Header, what: Entry | bitmask.Packed) -> bytes:
    import scipy.sparse

    if isinstance(what, Entry):
        w = reader.tensor(header, what)
        mask = bitmask.nonzero(w)
    else:
        with open_file(header.path) as file:
            w, mask = bitmask.unpack(file, header, what, "convert")
    buffer = io.BytesIO()
    scipy.sparse.save_npz(buffer, SparseMatrix.from_dense(w, mask, format="csr").to_scipy())
    return buffer.getvalue()


def _from_npz(path: Path, out: Path, storage: str, tensor: str | None) -> Done:
    if storage == "npz" or out.suffix != ".safetensors":
        raise ValueError(f"convert: out must be a .safetensors file where the source is .npz, got {os.fspath(out)}")
    files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
    if not files or (tensor is not None and len(files) > 1):
        expected = "one file where tensor names it" if files else "a folder with .npz files"
        raise ValueError(f"convert: source must be {expected}, got {os.fspath(path)} with {len(files)}")
    names = {unquote(file.stem): file for file in files} if tensor is None else {tensor: files[0]}
    matrices = {name: _load_npz(file) for name, file in names.items()}
    tensors: list[tuple[str, str, tuple[int, ...]]] = []
    for name, (w, mask) in matrices.items():
        described = (name, NAMES[w.dtype], w.shape)
        tensors += [described] if storage == "dense" else bitmask.layout(*described, mask.nnz)
    metadata = {} if storage == "dense" else bitmask.metadata_with({}, names)
    header = ordered_header(Header(path, b"", {}, {}, 0), tensors, metadata, "convert")
    target = target_of(Checkpoint(path, None, {}), out, "convert")
    before = sum(file.stat().st_size for file in files)
    job = {"convert": storage, "source": [[os.path.realpath(file), file.stat().st_mtime_ns] for file in files]}
    with working(target, job, "convert") as work:
        entries = [Entry(name, NAMES[w.dtype], w.shape, 0, w.nbytes) for name, (w, _) in matrices.items()]
        with _sink(work, "tensors", header, None if storage == "dense" else entries) as sink:
            for entry, (w, mask) in zip(entries, matrices.values(), strict=True):
                sink.write(entry, 0, w, mask)
        work.settle()
        work.publish_file("tensors")
    return target, storage, tuple(names), before, header.file_size


def _load_npz(path: Path) -> tuple[Any, Mask]:
    """One matrix of scipy's format; what is pickled in it is not looked at."""
    import scipy.sparse

    try:
        with open_file(path) as file:  # numpy would leave its own open
            found = scipy.sparse.load_npz(file)
        if hasattr(found, "check_format"):
            found.check_format(full_check=True)  # scipy's conversions trust indices, and write wherever they say
        matrix = SparseMatrix.from_scipy(found)
    except _NPZ_ERRORS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"convert: {path} must be a float matrix by scipy.sparse.save_npz, got {what[:200]}") from None
    return np.ascontiguousarray(matrix.to_dense()), matrix.mask
