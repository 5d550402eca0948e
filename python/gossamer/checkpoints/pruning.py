# SPDX-License-Identifier: Apache-2.0
"""Checkpoints pruned from file to file: tensor by tensor, or block by block where all tensors compete."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from gossamer import _core
from gossamer._arrays import matrix_shape, require_number
from gossamer.checkpoints import bitmask
from gossamer.checkpoints.output import fingerprint, is_same, make_sink, publish, target_of
from gossamer.checkpoints.reading import Progress, Reader
from gossamer.checkpoints.selecting import Each, Group, Tensor, Together
from gossamer.checkpoints.source import Checkpoint, open_checkpoint
from gossamer.checkpoints.work import GrowingFile, Work, working
from gossamer.headers import Entry, Header
from gossamer.scoring import METHODS, Inputs, check_seed, default_group, method_entry
from gossamer.selection import select
from gossamer.units import block_sides, window_sides

DATA_FREE = tuple(name for name, (needs, _) in METHODS.items() if needs in ("", "seed"))
STORAGES = ("dense", "bitmask")


@dataclass(frozen=True, slots=True)
class PrunedTensor:
    """One tensor that was pruned."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    nnz: int

    @property
    def size(self) -> int:
        rows, cols = matrix_shape(self.shape)
        return rows * cols

    @property
    def sparsity(self) -> float:
        return 1 - self.nnz / self.size if self.size else 0.0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What :func:`prune` has done. ``resumed``: how many files an interrupted run had finished."""

    path: Path
    tensors: tuple[PrunedTensor, ...]
    untouched: int
    bytes_before: int
    bytes_after: int
    resumed: int
    seconds: float

    @property
    def sparsity(self) -> float:
        """The share of zeros in all pruned tensors together."""
        size = sum(tensor.size for tensor in self.tensors)
        return 1 - sum(tensor.nnz for tensor in self.tensors) / size if size else 0.0


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked for, checked as far as it can be without the files. ValueError and TypeError name ``prune``."""

    sparsity: float | None = None
    method: str = "magnitude"
    pattern: str = "element"
    group: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    storage: str = "dense"
    seed: int | None = None
    min_density: float = 0.0

    def __post_init__(self) -> None:
        method_entry(self.method, "prune")
        if self.method not in DATA_FREE:
            methods = ", ".join(DATA_FREE)
            raise ValueError(
                f"prune: method must be one of {methods} (a checkpoint has weights only), got {self.method!r}"
            )
        if self.storage not in STORAGES:
            raise ValueError(f"prune: storage must be dense or bitmask, got {self.storage!r}")
        if self.sparsity is not None:
            require_number(self.sparsity, "prune", "sparsity")
        check_seed(METHODS[self.method][0], self.seed, "prune")
        if self.group is None:
            object.__setattr__(self, "group", default_group(self.method, self.pattern, {}, "prune"))
        nothing = Inputs("", [], [], [], 0)  # the core checks the other arguments; there are no tensors yet
        select(nothing, [], [], "prune", **self.rule(), priors={}, nan="raise")

    def rule(self) -> dict[str, Any]:
        """The arguments of a selection."""
        return {
            "sparsity": self.sparsity,
            "nnz": None,
            "threshold": None,
            "pattern": self.pattern,
            "group": self.group,
            "min_density": self.min_density,
        }

    @property
    def windows(self) -> tuple[int, int] | None:
        """N and M of the pattern N:M."""
        return window_sides(self.pattern)

    def takes(self, entry: Entry) -> bool:
        """Whether a tensor is to be pruned."""
        return (
            bitmask.is_prunable(entry)
            and (not self.include or any(fnmatchcase(entry.name, glob) for glob in self.include))
            and not any(fnmatchcase(entry.name, glob) for glob in self.exclude)
        )


def prune(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    sparsity: float | None = None,
    method: str = "magnitude",
    pattern: str = "element",
    group: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    storage: str = "dense",
    seed: int | None = None,
    min_density: float = 0.0,
    force: bool = False,
    scheduler: Any = None,
    progress: Progress | None = None,
) -> Pruned:
    """Prunes a safetensors checkpoint from file to file.

    The tensors are those that :func:`gossamer.prune` would give for the mapping of all that are taken (files by name,
    in a file by their place), bit for bit; the others, and the metadata, stay byte for byte. At most 3 times the
    largest tensor and 200 MB are held (lamp: 36 bytes a weight of the largest tensor, for its sort; tensors
    of one row, or pruned by columns, take more, too).

    Parameters
    ----------
    source : a ``.safetensors`` file, or an index (``model.safetensors.index.json``) beside its shards.
    out : the file to write; for an index a folder, which gets shards and index. It appears when all is done and is
        what it was until then. A killed run leaves its finished files in a hidden folder beside ``out``, and the same
        call takes them up again.
    sparsity, pattern, group, min_density : as in :func:`gossamer.prune`.
    method : what needs neither gradients nor statistics: magnitude, lamp, fpgm, random (with ``seed``).
    include, exclude : shell patterns of names. By default all floating tensors of two or more axes are pruned; others
        never are.
    storage : ``"dense"``, with zeros; or ``"bitmask"``, see :mod:`gossamer.checkpoints.bitmask`.
    force : ``out`` may be ``source`` itself.
    scheduler : the address of a Dask scheduler, or a ``distributed.Client``: then its workers read and write, one task
        a file and pass, and the bits are the same. All must see ``source`` and the folder of ``out`` under the same
        names.
    progress : called with ``(phase, share done or None, words)``.

    Returns
    -------
    :class:`Pruned`.

    Raises
    ------
    ValueError, TypeError
        Options out of range; a file that breaks a rule of its format, NaN, a size that the pattern does not divide,
        nothing to prune. Then nothing is written.
    OSError
        A file that cannot be read or written.
    RuntimeError
        Another process is writing ``out``; a cluster without workers, or whose workers do not survive a task.
    ImportError
        ``scheduler`` without Dask.

    Examples
    --------
    >>> import numpy as np, gossamer as gs, os, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> before, after = (os.path.join(folder, name) for name in ("before.safetensors", "after.safetensors"))
    >>> gs.save(before, {"w": np.array([[1.0, -3.0], [2.0, 0.5]]), "b": np.ones(2)})
    >>> gs.checkpoints.prune(before, after, sparsity=0.5).sparsity
    0.5
    >>> gs.load(after)["w"].tolist()
    [[0.0, -3.0], [2.0, 0.0]]
    """
    texts = {}
    for name, globs in (("include", include), ("exclude", exclude)):
        texts[name] = (globs,) if isinstance(globs, str) else tuple(globs)
        if not all(isinstance(glob, str) for glob in texts[name]):
            raise TypeError(f"prune: {name} must be texts, got {globs!r}")
    options = Options(sparsity, method, pattern, group, texts["include"], texts["exclude"], storage, seed, min_density)
    begin = time.perf_counter()
    checkpoint = open_checkpoint(source, "prune")
    taken = _taken(checkpoint, options)
    target = target_of(checkpoint, out, "prune")
    if is_same(checkpoint, target) and not force:
        raise ValueError(f"prune: out must differ from the source (or say force), got {os.fspath(out)}")
    before = fingerprint(checkpoint)
    job = {"version": _core.info()["version"], "options": asdict(options), "source": before}
    with ExitStack() as stack:
        cluster = None
        if scheduler is not None:
            from gossamer.checkpoints import cluster as on_cluster

            cluster = stack.enter_context(on_cluster.connect(scheduler, "prune"))
            job["cluster"] = True  # which remembers other things
        work = stack.enter_context(working(target, job, "prune"))
        if cluster is None:
            kept, resumed = _Run(checkpoint, taken, options, work, stack.enter_context(Reader("prune", progress))).run()
        else:
            kept, resumed = on_cluster.run(cluster, checkpoint, taken, options, work, progress)
        after = publish(checkpoint, work, before, "prune")
    tensors = tuple(
        PrunedTensor(e.name, e.shape, e.dtype, kept[e.name]) for _, e in checkpoint.tensors if e.name in taken
    )
    untouched = len(checkpoint.tensors) - len(tensors)
    return Pruned(target, tensors, untouched, checkpoint.nbytes, after, resumed, time.perf_counter() - begin)


def make_group(options: Options) -> Group:
    """The rule of who competes."""
    return Together(options) if options.group == "global" and options.windows is None else Each(options)


def tensors_of(header: Header, taken: Mapping[str, int]) -> list[Tensor]:
    """What is pruned of a file."""
    return [(header, entry, taken[entry.name]) for entry in header.entries.values() if entry.name in taken]


def write_shard(
    file: GrowingFile, header: Header, taken: Mapping[str, int], options: Options, group: Group, reader: Reader
) -> dict[str, int]:
    """Writes one file; -> how many weights of each pruned tensor are kept."""
    kept = {entry.name: group.kept(entry) for _, entry, _ in tensors_of(header, taken)}
    sink = make_sink(file, header, kept, options.storage)
    for entry in header.entries.values():
        if entry.name not in taken:
            for block in reader.blocks(header, entry):
                sink.copy(entry, block)
            continue
        kept[entry.name] = 0
        for row, w, mask in group.pruned(reader, header, entry, taken[entry.name]):
            sink.write(entry, row, w, mask)
            kept[entry.name] += mask.nnz
    return kept


class _Run:
    """One job over all files, in this process."""

    def __init__(
        self, checkpoint: Checkpoint, taken: dict[str, int], options: Options, work: Work, reader: Reader
    ) -> None:
        self._shards, self._taken, self._options = checkpoint.shards, taken, options
        self._work, self._reader = work, reader
        self._group = make_group(options)

    def run(self) -> tuple[dict[str, int], int]:
        """-> kept weights by tensor, and how many files were there already."""
        self._count()
        kept: dict[str, int] = {}
        resumed = 0
        self._reader.phase("prune", sum(header.file_size for header in self._shards.values()))
        for shard, header in self._shards.items():
            known = self._work.finished(shard)
            if known is not None:
                self._group.restore(known["group"])
                kept |= known["kept"]
                self._reader.advance(header.file_size, shard)
                resumed += 1
                continue
            remember: dict[str, Any] = {}
            with self._work.file(shard, remember) as file:
                remember["kept"] = write_shard(file, header, self._taken, self._options, self._group, self._reader)
                remember["group"] = self._group.state()
            kept |= remember["kept"]
        return kept, resumed

    def _count(self) -> None:
        """What must be known of all tensors before the first one is written; it is remembered."""
        state = self._work.state
        if "group" not in state:
            tensors = [tensor for header in self._shards.values() for tensor in tensors_of(header, self._taken)]
            state["group"] = self._group.prepare(self._reader, tensors, self._options.storage == "bitmask")
            self._work.save()
        self._group.restore(state["group"])


def _taken(checkpoint: Checkpoint, options: Options) -> dict[str, int]:
    """The tensors to prune, with the flat index that each one's first element has among all of them."""
    for header in checkpoint.shards.values():
        packed = bitmask.find_packed(header, "prune")
        if packed:
            what = f"must hold dense tensors (convert it first), got {next(iter(packed))!r} as a bitmask"
            raise ValueError(f"prune: {header.path} {what}")
    taken, start = {}, 0
    for _, entry in checkpoint.tensors:
        if options.takes(entry):
            _check_divides(entry, options)
            taken[entry.name] = start
            start += entry.size
    if not taken:
        raise ValueError(
            f"prune: {checkpoint.path} must hold floating tensors of two or more axes that the globs leave, got none"
        )
    return taken


def _check_divides(entry: Entry, options: Options) -> None:
    rows, cols = matrix_shape(entry.shape)
    height, width = block_sides(options.pattern)
    if rows % height or cols % width:
        raise ValueError(
            f"prune: pattern {options.pattern!r} must divide the shape, got {entry.shape} of {entry.name!r}"
        )
    if options.windows and cols % options.windows[1]:
        raise ValueError(
            f"prune: pattern {options.pattern!r} must divide the last axis, got {cols} columns of {entry.name!r}"
        )
