# SPDX-License-Identifier: Apache-2.0
"""Packed masks: which positions of a tensor are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, empty, host, matrix_shape, of


class Mask:
    """The kept positions of a tensor, one bit each.

    The tensor is read as the matrix ``[shape[0], rest]`` (a vector is one row); each row is packed into
    ``ceil(cols / 8)`` bytes, little-endian, padding bits zero: the layout of safetensors' sparse-bitmask checkpoints.
    A kept weight whose value is 0 stays kept. Masks are immutable, hashable, and can be pickled.

    Parameters
    ----------
    shape : the tensor's shape.
    packed : uint8 ``[rows, ceil(cols / 8)]``; it is copied.

    Raises
    ------
    TypeError, ValueError
        ``packed`` has another dtype or shape, or a padding bit is set.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> m = gs.Mask.from_dense(np.array([[True, False, True]]))
    >>> m.nnz, m.shape, m.packed.tolist()
    (2, (1, 3), [[5]])
    >>> (~m).indices().tolist()
    [1]
    """

    __slots__ = ("_cols", "_nnz", "_packed", "_rows", "_shape")

    def __init__(self, shape: tuple[int, ...], packed: Array) -> None:
        if not isinstance(shape, (tuple, list)) or not all(isinstance(n, (int, np.integer)) for n in shape):
            raise TypeError(f"Mask: shape must be a tuple of ints, got {shape!r}")
        shape = tuple(int(n) for n in shape)
        if any(n < 0 for n in shape):
            raise ValueError(f"Mask: shape must not be negative, got {shape}")
        bits = host(packed, "Mask", "packed")
        if bits.dtype != np.uint8:
            raise TypeError(f"Mask: packed must be uint8, got {bits.dtype}")
        rows, cols = matrix_shape(shape)
        if bits.shape != (rows, -(-cols // 8)):
            raise ValueError(f"Mask: packed must have the shape {(rows, -(-cols // 8))} for {shape}, got {bits.shape}")
        self._take(shape, np.array(bits, order="C"))
        if not _core.padding_is_zero(self._packed, rows, cols):
            raise ValueError("Mask: packed must have zero padding bits, got others")

    @classmethod
    def _own(cls, shape: tuple[int, ...], packed: Host, nnz: int | None = None) -> Mask:
        """A mask on bits that the core has just written."""
        mask = cls.__new__(cls)
        mask._take(shape, packed, nnz)
        return mask

    @classmethod
    def _blank(cls, shape: tuple[int, ...], function: str) -> Host:
        rows, cols = matrix_shape(shape)
        return empty((rows, -(-cols // 8)), np.uint8, function)

    def _take(self, shape: tuple[int, ...], packed: Host, nnz: int | None = None) -> None:
        self._shape = shape
        self._rows, self._cols = matrix_shape(shape)
        self._packed = packed
        packed.flags.writeable = False
        self._nnz = _core.count_bits(packed, self._rows, self._cols) if nnz is None else nnz

    @classmethod
    def from_dense(cls, b: Array) -> Mask:
        """The mask of a bool array of any shape: True is kept.

        >>> import numpy as np, gossamer as gs
        >>> gs.Mask.from_dense(np.eye(3, dtype=bool)).nnz
        3
        """
        dense = host(b, "Mask.from_dense", "b")
        if dense.dtype != np.bool_:
            raise TypeError(f"Mask.from_dense: b must be bool, got {dense.dtype}")
        packed = np.packbits(dense.reshape(matrix_shape(dense.shape)), axis=1, bitorder="little")
        return cls._own(dense.shape, np.ascontiguousarray(packed))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def size(self) -> int:
        """Number of positions, kept or not."""
        return self._rows * self._cols

    @property
    def nnz(self) -> int:
        """Number of kept positions."""
        return self._nnz

    @property
    def density(self) -> float:
        """Kept share; 1 for a mask of no positions."""
        return self._nnz / self.size if self.size else 1.0

    @property
    def sparsity(self) -> float:
        return 1.0 - self.density

    @property
    def packed(self) -> Host:
        """uint8 ``[rows, ceil(cols / 8)]``, read-only."""
        return self._packed.view()  # whose flag cannot be switched back

    def indices(self) -> Host:
        """Flat indices of the kept positions, int64, ascending."""
        indices = np.empty(self._nnz, np.int64)
        _core.mask_indices(self._packed, self._rows, self._cols, indices)
        return indices

    def to_dense(self) -> Host:
        """A bool array of the mask's shape."""
        dense = np.unpackbits(self._packed, axis=1, count=self._cols, bitorder="little")
        return dense.view(np.bool_).reshape(self._shape)

    def _combine(self, other: object, operation: np.ufunc) -> Any:
        if not isinstance(other, Mask):
            return NotImplemented
        if other._shape != self._shape:
            raise ValueError(f"Mask: both masks must have one shape, got {self._shape} and {other._shape}")
        return Mask._own(self._shape, operation(self._packed, other._packed))

    def __and__(self, other: object) -> Any:
        return self._combine(other, np.bitwise_and)

    def __or__(self, other: object) -> Any:
        return self._combine(other, np.bitwise_or)

    def __invert__(self) -> Mask:
        packed = ~self._packed
        if self._cols % 8:
            packed[:, -1] &= (1 << self._cols % 8) - 1
        return Mask._own(self._shape, packed, self.size - self._nnz)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self._shape == other._shape and bool(np.array_equal(self._packed, other._packed))

    def __hash__(self) -> int:
        return hash((self._shape, self._packed.tobytes()))

    def __reduce__(self) -> tuple[Any, ...]:
        return Mask, (self._shape, self._packed)

    def __repr__(self) -> str:
        return f"Mask(shape={self._shape}, nnz={self._nnz}, sparsity={self.sparsity:.4f})"


def require_mask(mask: Any, shape: tuple[int, ...], function: str, argument: str, name: str = "") -> Mask:
    """A mask (or that of a bool array), which must have this shape."""
    if not isinstance(mask, Mask):
        if getattr(mask, "dtype", None) is None or "bool" not in str(mask.dtype):
            raise TypeError(f"{function}: {argument} must be a Mask, got {type(mask).__name__}{of(name)}")
        mask = Mask.from_dense(mask)
    assert isinstance(mask, Mask)
    if mask.shape != tuple(shape):
        raise ValueError(f"{function}: {argument} must have the shape {tuple(shape)}, got {mask.shape}{of(name)}")
    return mask


def packed_bits(mask: Any, shape: tuple[int, ...], function: str, argument: str, name: str = "") -> Host:
    """The bits of a mask (or bool array) that must have this shape."""
    return require_mask(mask, shape, function, argument, name).packed
