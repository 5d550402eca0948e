# SPDX-License-Identifier: Apache-2.0
"""Where data sets come from: IDX files, one ``data.npz``, scikit-learn's digits, an installed Fashion-MNIST.

Readers return arrays as they are stored; nothing here is trusted further than its header and its size.
What the numbers mean (labels, classes, shapes) is checked by :mod:`gossamer.training.data`.
"""

from __future__ import annotations

import gzip
import os
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "Raw", "fashion_mnist_folder", "read", "read_idx"]

Arrays = tuple[NDArray[Any], NDArray[Any]]


class DataError(ValueError):
    """A data set that cannot be used; the message names the file, what was expected and what came."""


@dataclass(frozen=True)
class Raw:
    """Features and labels as stored. `parts` holds "train", and "valid" and "test" where the source has them."""

    name: str
    parts: Mapping[str, Arrays]


# The IDX format: two zero bytes, a type code, the number of dimensions, big-endian uint32 sizes, the values.
IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
IDX_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
GZIP_MAX_RATIO = 1032  # deflate cannot do better, so a header that asks for more lies
NPZ_ERRORS = (ValueError, EOFError, OSError, RuntimeError, MemoryError, SyntaxError, zipfile.BadZipFile, zlib.error)


def read(source: str | os.PathLike[str] | None = None) -> Raw:
    """The data set `source` names: "fashion-mnist", "digits" or a folder; None takes the first of the two there is.

    Raises DataError for content, OSError for a folder or a file that cannot be read.
    """
    if source is None:
        source = "digits" if fashion_mnist_folder() is None else "fashion-mnist"
    if source == "digits":
        return _read_digits()
    if source == "fashion-mnist":
        folder = fashion_mnist_folder()
        if folder is None:
            raise DataError("load: fashion-mnist is not installed (Debian: dataset-fashion-mnist), name a folder")
        return _read_idx_folder(folder, "fashion-mnist")
    folder = Path(source)
    names = set(os.listdir(folder))  # the OSError names the folder and the reason
    name = "".join(c if c.isprintable() else "?" for c in folder.resolve().name) or "data"
    if "data.npz" in names:
        return _read_npz(folder / "data.npz", name)
    if names.isdisjoint({file + end for files in IDX_FILES.values() for file in files for end in ("", ".gz")}):
        raise DataError(f"load: {folder}: expected data.npz or {IDX_FILES['train'][0]}[.gz] and so on, got neither")
    return _read_idx_folder(folder, name)


def fashion_mnist_folder() -> Path | None:
    """The installed Fashion-MNIST, or None. Debian's package puts it below /usr; other prefixes are looked at too."""
    for prefix in dict.fromkeys((sys.prefix, "/usr/local", "/usr")):
        folder = Path(prefix, "share", "datasets", "fashion-mnist")
        if folder.is_dir():
            return folder
    return None


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """The array in an IDX file, gzip-compressed when the name ends in ``.gz``; big-endian as stored.

    Raises DataError for a wrong magic number, sizes that disagree with the file, truncated or broken
    compressed data, and bytes left over.
    """
    path = Path(path)
    limit = path.stat().st_size * (GZIP_MAX_RATIO if path.suffix == ".gz" else 1)
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES or magic[3] == 0:
                raise DataError(f"load: {path}: expected an IDX magic number, got {magic.hex(' ') or 'an empty file'}")
            header = file.read(4 * magic[3])
            if len(header) < 4 * magic[3]:
                raise DataError(f"load: {path}: truncated inside its header of {magic[3]} sizes")
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
            dtype = np.dtype(IDX_TYPES[magic[2]])
            size = dtype.itemsize
            for extent in shape:  # Python integers, so that no product overflows
                size *= extent
            if size > limit:
                raise DataError(f"load: {path}: its header asks for {shape} = {size} bytes, the file holds less")
            content = file.read(size + 1)
            if len(content) != size:
                got = "more" if len(content) > size else str(len(content))
                raise DataError(f"load: {path}: its header asks for {shape} = {size} bytes, got {got}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"load: {path}: truncated or broken gzip data ({error})") from error
    return np.frombuffer(content, dtype).reshape(shape)


def _read_idx_folder(folder: Path, name: str) -> Raw:
    def array(file: str) -> NDArray[Any]:
        path = folder / file
        return read_idx(path if path.exists() else folder / f"{file}.gz")

    return Raw(name, {part: (array(images), array(labels)) for part, (images, labels) in IDX_FILES.items()})


def _read_npz(path: Path, name: str) -> Raw:
    with path.open("rb") as file:  # an unreadable file is an OSError of its own, not a broken archive
        try:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(f"load: {path}: expected an npz archive, got one array")
            parts: dict[str, Arrays] = {}
            for part in ("train", "valid", "test"):
                keys = (f"x_{part}", f"y_{part}")
                absent = [key for key in keys if key not in archive]
                if len(absent) == 1 or (absent and part != "valid"):
                    got = ", ".join(archive) or "nothing"
                    raise DataError(f"load: {path}: expected {keys[0]} and {keys[1]}, got {got}")
                if not absent:
                    parts[part] = (archive[keys[0]], archive[keys[1]])
                    if not all(isinstance(array, np.ndarray) for array in parts[part]):
                        raise DataError(f"load: {path}: {keys[0]} and {keys[1]} must be arrays, got other files")
        except DataError:
            raise
        except NPZ_ERRORS as error:  # object arrays (never unpickled), bad zip data, headers that lie
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"load: {path}: not a usable npz archive ({reason})") from error
    return Raw(name, parts)


def _read_digits() -> Raw:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("load: digits needs scikit-learn (pip install 'gossamer[data]')") from error
    bunch = load_digits()
    return Raw("digits", {"train": (bunch.images, bunch.target)})
