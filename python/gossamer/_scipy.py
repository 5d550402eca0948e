# SPDX-License-Identifier: Apache-2.0
"""scipy's sparse matrices as sorted CSR. scipy's own loops trust what they read, so it is checked first."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer._arrays import Host


def as_csr(a: Any, function: str) -> Any:
    """A new ``scipy.sparse`` CSR matrix, duplicates summed and indices sorted; ``a`` ``[rows, cols]`` stays as it is.

    Raises TypeError and ValueError for arrays that are not those of a matrix of its format.
    """
    check = _CHECKS.get(str(getattr(a, "format", "")))
    if check is not None:
        check(a, function)
        if a.format == "dia":
            a = a.tocoo()
    else:  # dok, or what another library calls a sparse matrix
        a = a.tocsr()
        _check_csr(a, function)
    csr = a.tocsr(copy=True)
    csr.sum_duplicates()  # sorts too
    return csr


def _check_csr(a: Any, function: str) -> None:
    _check_compressed(a, a.shape[0], a.shape[1], 1, function)


def _check_csc(a: Any, function: str) -> None:
    _check_compressed(a, a.shape[1], a.shape[0], 1, function)


def _check_bsr(a: Any, function: str) -> None:
    block = a.data.shape[1:]
    if a.data.ndim != 3 or 0 in block or any(extent % size for extent, size in zip(a.shape, block, strict=True)):
        raise ValueError(f"{function}: a.data must be blocks that divide {a.shape}, got the shape {a.data.shape}")
    _check_compressed(a, a.shape[0] // block[0], a.shape[1] // block[1], 3, function)


def _check_compressed(a: Any, major: int, minor: int, ndim: int, function: str) -> None:
    starts, indices = _integers(a.indptr, function, "indptr"), _integers(a.indices, function, "indices")
    if starts.shape != (major + 1,):
        raise ValueError(f"{function}: a.indptr must have {major + 1} entries, got the shape {starts.shape}")
    if a.data.ndim != ndim or a.data.shape[0] != indices.size:
        raise ValueError(
            f"{function}: a.data must have as many entries as a.indices, {indices.size}, got the shape {a.data.shape}"
        )
    if starts[0] != 0 or (starts[1:] < starts[:-1]).any():
        raise ValueError(f"{function}: a.indptr must begin with 0 and never fall, got others")
    if starts[-1] > indices.size:
        raise ValueError(f"{function}: a.indptr must end at most at {indices.size}, got {starts[-1]}")
    _check_range(indices[: starts[-1]], minor, function, "indices")


def _check_coo(a: Any, function: str) -> None:
    for name, extent in (("row", a.shape[0]), ("col", a.shape[1])):
        indices = _integers(getattr(a, name), function, name)
        if indices.shape != a.data.shape:
            raise ValueError(f"{function}: a.{name} must have the shape of a.data, {a.data.shape}, got {indices.shape}")
        _check_range(indices, extent, function, name)


def _check_dia(a: Any, function: str) -> None:
    offsets = _integers(a.offsets, function, "offsets")
    if a.data.ndim != 2 or offsets.shape != a.data.shape[:1]:
        raise ValueError(
            f"{function}: a.data must have a row for each of a.offsets, {offsets.size}, got the shape {a.data.shape}"
        )


def _check_lil(a: Any, function: str) -> None:
    if a.rows.shape != a.shape[:1] or a.data.shape != a.shape[:1]:
        raise ValueError(f"{function}: a.rows and a.data must have {a.shape[0]} lists, got {a.rows.shape}")
    for row, (indices, values) in enumerate(zip(a.rows, a.data, strict=True)):
        if len(indices) != len(values):
            raise ValueError(
                f"{function}: a.rows and a.data must have lists of one length, got {len(indices)} and {len(values)} "
                f"in row {row}"
            )
        if indices and not 0 <= min(indices) <= max(indices) < a.shape[1]:
            raise ValueError(f"{function}: a.rows must be in [0, {a.shape[1]}), got others in row {row}")


_CHECKS = {
    "csr": _check_csr,
    "csc": _check_csc,
    "bsr": _check_bsr,
    "coo": _check_coo,
    "dia": _check_dia,
    "lil": _check_lil,
}


def _integers(array: Any, function: str, name: str) -> Host:
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        raise TypeError(f"{function}: a.{name} must be integers, got {getattr(array, 'dtype', type(array).__name__)}")
    if array.ndim != 1:
        raise ValueError(f"{function}: a.{name} must have one dimension, got the shape {array.shape}")
    return array


def _check_range(indices: Host, extent: int, function: str, name: str) -> None:
    if indices.size and not 0 <= indices.min() <= indices.max() < extent:
        raise ValueError(f"{function}: a.{name} must be in [0, {extent}), got {indices.min()} to {indices.max()}")
