# SPDX-License-Identifier: Apache-2.0
"""A checkpoint on disk: one safetensors file, or the shards that an index names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.headers import Entry, Header, read_header, read_json


@dataclass(frozen=True, slots=True)
class Index:
    raw: bytes
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is in the files. ``shards``: by the name that the index has for them (or the file's own), sorted."""

    path: Path
    index: Index | None  # None for a single file
    shards: dict[str, Header]

    @property
    def tensors(self) -> list[tuple[str, Entry]]:
        """(shard, tensor) in the order of the files' names and of the bytes in them: the order of group "global"."""
        return [(shard, entry) for shard, header in self.shards.items() for entry in header.entries.values()]

    @property
    def nbytes(self) -> int:
        return sum(header.file_size for header in self.shards.values())


def open_checkpoint(path: str | os.PathLike[str], function: str) -> Checkpoint:
    """A ``.safetensors`` file, or an index (``.json``) with its shards; all headers are checked.

    Raises
    ------
    ValueError
        A file breaks a rule of its format; a shard lies outside of the index's folder; index and shards do not name
        the same tensors.
    OSError
        A file cannot be read.
    """
    path = Path(path)
    if path.suffix != ".json":
        return Checkpoint(path, None, {path.name: read_header(path, function)})
    raw, fields = read_json(path, function, "an index of safetensors files")
    places = fields.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()) or not places:
        raise ValueError(f"{function}: {path} must have a weight_map from tensors to files, got none")
    folder = Path(os.path.realpath(path.parent))
    shards = {}
    for shard in sorted(set(places.values())):
        shards[shard] = read_header(_inside(folder, shard, path, function), function)
    for name, shard in places.items():
        if name not in shards[shard].entries:
            raise ValueError(f"{function}: {path} must name the tensors of its files, got {name!r}, not in {shard!r}")
    for shard, header in shards.items():
        for name in header.entries:
            if places.get(name) != shard:
                raise ValueError(f"{function}: {path} must name all tensors of its files, got {name!r} in {shard!r}")
    return Checkpoint(path, Index(raw, fields), shards)


def _inside(folder: Path, shard: str, index: Path, function: str) -> Path:
    """Where a shard lies, without leaving the folder, by its name or through a link."""
    parts = shard.split("/")
    if not shard.isprintable() or any(part in ("", ".", "..") for part in parts) or os.path.isabs(shard):
        raise ValueError(f"{function}: {index} must name files inside of its folder, got {shard[:80]!r}")
    try:
        real = Path(os.path.realpath(folder / shard, strict=True))
    except OSError as error:  # none there, a loop of links
        raise OSError(error.errno, error.strerror, os.fspath(folder / shard)) from None
    if not real.is_relative_to(folder):
        raise ValueError(f"{function}: {index} must name files inside of its folder, got {shard!r}, a link to {real}")
    return real


def headers(source: str | os.PathLike[str]) -> dict[str, Entry]:
    """Names, dtypes and shapes of all tensors as they are stored, without reading one.

    Raises ValueError where a file breaks a rule of its format, OSError where it cannot be read.
    """
    return {entry.name: entry for _, entry in open_checkpoint(source, "headers").tensors}
