# SPDX-License-Identifier: Apache-2.0
"""Masks, sparse matrices and arrays in safetensors files."""

from __future__ import annotations

import errno
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gossamer._arrays import Array, Host, host
from gossamer.headers import DTYPES, NAMES, open_file, parse_header, read_array
from gossamer.masks import Mask
from gossamer.sparse import SparseMatrix, _restored, _structure_of

_EMPTY_ROWS = 1 << 24  # no byte of a file pays for them, and each takes eight in memory
_KEY = "gossamer"  # of the entry in the file's metadata that says how tensors belong together


def save(path: str | os.PathLike[str], tensors: Mapping[str, SparseMatrix | Mask | Array]) -> None:
    """Writes one safetensors file, atomically: on an error the old file, if any, is still there.

    A matrix is stored as the tensors ``name.bitmask`` and ``name.values`` (the dense format too; int8 values with
    ``name.scales``), a mask as ``name.bitmask``, an array under its name.

    Raises
    ------
    TypeError, ValueError
        A name that is not a str, or is used twice after the endings are added; a value that is none of the three.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import numpy as np, gossamer as gs, os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
    >>> gs.save(path, {"w": gs.SparseMatrix.from_dense(np.eye(3)), "b": np.zeros(3)})
    >>> gs.load(path)["w"].nnz
    3
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: tensors must be a mapping, got {type(tensors).__name__}")
    arrays: dict[str, Host] = {}
    kinds: dict[str, Any] = {}

    def add(name: str, array: Host) -> None:
        if name == "__metadata__":
            raise ValueError("save: names must differ from the reserved '__metadata__', got it")
        if name in arrays:
            raise ValueError(f"save: names must stay different with their endings, got {name!r} twice")
        arrays[name] = array

    for name, value in tensors.items():
        if not isinstance(name, str):
            raise TypeError(f"save: tensors must have names of type str, got {name!r}")
        if isinstance(value, SparseMatrix):
            add(f"{name}.bitmask", value.mask.packed)
            add(f"{name}.values", value.values)
            if value.scales is not None:
                add(f"{name}.scales", value.scales)
            kinds[name] = {"kind": "matrix", "shape": value.shape, "format": value._plan.asked}
        elif isinstance(value, Mask):
            add(f"{name}.bitmask", value.packed)
            kinds[name] = {"kind": "mask", "shape": value.shape}
        else:
            array = host(value, "save", f"tensors[{name!r}]")
            if array.dtype not in NAMES or array.dtype.kind == "c" or not array.dtype.isnative:
                raise TypeError(
                    f"save: tensors[{name!r}] must be bool, int or float of 64 bits or less, got {array.dtype}"
                )
            add(name, array)
            kinds[name] = {"kind": "array"}
    write_tensors(path, arrays, {"tensors": kinds})


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what :func:`save` wrote; any other safetensors file gives its tensors as arrays.

    Raises
    ------
    ValueError
        The file is no safetensors file, or its parts do not fit together.
    OSError
        The file cannot be read.
    """
    arrays, meta = read_tensors(path, "load")
    kinds = meta.get("tensors")
    if not isinstance(kinds, dict):
        return dict(arrays)
    result: dict[str, Any] = {}
    for name, entry in kinds.items():
        try:
            result[name] = _restore(name, entry, arrays)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"load: {os.fspath(path)}: tensor {name!r} must be whole, got {error}") from error
    return result


def _restore(name: str, entry: dict[str, Any], arrays: dict[str, Host]) -> Any:
    kind = entry["kind"]
    if kind == "array":
        return arrays[name]
    shape = tuple(entry["shape"])
    if not all(isinstance(n, int) for n in shape):
        raise ValueError(f"a shape of {shape}")
    mask = Mask(shape, arrays[f"{name}.bitmask"])
    if kind == "mask":
        return mask
    if kind != "matrix" or len(shape) != 2:
        raise ValueError(f"the kind {kind!r} with shape {shape}")
    if shape[1] == 0 and shape[0] > _EMPTY_ROWS:
        raise ValueError(f"{shape[0]} rows without columns")
    values = arrays[f"{name}.values"]
    scales = arrays[f"{name}.scales"] if values.dtype == np.int8 else None
    return _restored(_structure_of(mask), values, str(entry["format"]), scales)


def write_tensors(path: str | os.PathLike[str], arrays: dict[str, Host], meta: dict[str, Any]) -> None:
    """Writes beside the target and then replaces it, so that a full disk or a kill leaves nothing half-written."""
    from safetensors.numpy import save as serialize

    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file():
        code = errno.EISDIR if target.is_dir() else errno.EINVAL  # a pipe or a device must not be replaced
        raise OSError(code, os.strerror(code), os.fspath(path))
    data = serialize({name: np.asarray(a, order="C") for name, a in arrays.items()}, {_KEY: json.dumps(meta)})
    replace_file(target, data)


def replace_file(target: Path, data: bytes, *, durable: bool = True) -> None:
    """``data`` under that name: the old file, if any, or the new one, never half of it.

    With ``durable`` False that holds while the machine runs; after a loss of power the file may be empty.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(target))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the umask applies, as to any new file
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_tensors(path: str | os.PathLike[str], function: str) -> tuple[dict[str, Host], dict[str, Any]]:
    """The arrays of a safetensors file and gossamer's entry in its metadata."""
    with open_file(path) as file:
        header = parse_header(file, path, function)
        for entry in header.entries.values():
            if entry.dtype not in DTYPES:
                what = f"{entry.dtype} for {entry.name!r}"
                raise ValueError(
                    f"{function}: {os.fspath(path)} must be a safetensors file of numpy's dtypes, got {what}"
                )
        arrays = {entry.name: read_array(file, header, entry, function) for entry in header.entries.values()}
    try:
        known = json.loads(header.metadata.get(_KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{function}: {os.fspath(path)} must have JSON as metadata, got {error}") from error
    if not isinstance(known, dict):
        raise ValueError(f"{function}: {os.fspath(path)} must have a mapping as metadata, got {type(known).__name__}")
    return arrays, known
