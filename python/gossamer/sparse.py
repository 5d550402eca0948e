# SPDX-License-Identifier: Apache-2.0
"""Sparse matrices: one structure, several formats."""

from __future__ import annotations

import itertools
import operator
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, compute_dtype, empty, host, is_float, matrix_shape
from gossamer._scipy import as_csr
from gossamer.masks import Mask, packed_bits
from gossamer.plan import KERNELS, Plan, as_asked, as_pattern, choose
from gossamer.threads import after_fork

if TYPE_CHECKING:
    import scipy.sparse


def index_dtype(cols: int) -> type[np.signedinteger[Any]]:
    return np.int32 if cols <= np.iinfo(np.int32).max else np.int64


_process = object()  # another one in a forked child
_renewing = threading.Lock()


def _after_fork() -> None:
    global _process, _renewing
    _process, _renewing = object(), threading.Lock()


after_fork(_after_fork)


class _PackingLock:
    """An RLock that a forked child does not find locked: the thread that packs is not there."""

    def __init__(self) -> None:
        self._lock, self._process = threading.RLock(), _process

    def __enter__(self) -> None:
        if self._process is not _process:
            with _renewing:
                if self._process is not _process:
                    self._lock = threading.RLock()
                    self._process = _process
        self._lock.acquire()

    def __exit__(self, *error: object) -> None:
        self._lock.release()


class Structure:
    """Which positions a matrix keeps, as a mask or as CSR; each is made from the other when first asked for.

    Immutable and shared: by every matrix with the same positions, and by any number of threads. What is there is read
    without the lock, under which it is made.
    """

    def __init__(
        self, shape: tuple[int, int], *, mask: Mask | None = None, csr: tuple[Host, Host] | None = None
    ) -> None:
        self.shape = shape
        self._mask, self._csr = mask, csr
        self._indptr = None if csr is None else csr[0]
        self._transposed: tuple[Structure, Host] | None = None
        self._panels: Any = None
        self._plans: dict[np.dtype[Any], Plan] = {}
        self._lock = _PackingLock()
        self.nnz = mask.nnz if mask is not None else int(csr[0][-1]) if csr is not None else 0
        if csr is not None:
            _freeze(*csr)

    def mask(self) -> Mask:
        if self._mask is None:
            with self._lock:
                self._mask = self._mask or self.some_mask()
        return self._mask

    def some_mask(self) -> Mask:
        """The mask, for use at once: not kept where it is made for this."""
        if self._mask is not None or self._csr is None:
            assert self._mask is not None
            return self._mask
        packed = Mask._blank(self.shape, "SparseMatrix")
        _core.pattern_to_mask(*self.shape, *self._csr, packed)
        return Mask._own(self.shape, packed, self.nnz)

    def indptr(self) -> Host:
        """int64 ``[rows + 1]``: where the values of each row begin, in row-major order."""
        if self._indptr is None:
            with self._lock:
                if self._indptr is None:
                    indptr = empty((self.shape[0] + 1,), np.int64, "SparseMatrix")
                    _core.mask_to_indptr(self.mask().packed, *self.shape, indptr)
                    (self._indptr,) = _freeze(indptr)
        return self._indptr

    def csr(self) -> tuple[Host, Host]:
        """indptr int64 ``[rows + 1]`` and the column indices ``[nnz]``."""
        if self._csr is None:
            with self._lock:
                if self._csr is None:
                    self._csr = _freeze(*self.some_csr())
        return self._csr

    def some_csr(self) -> tuple[Host, Host]:
        """As :meth:`csr`, for use at once: not kept where it is made for this."""
        if self._csr is not None:
            return self._csr
        indptr = self.indptr()
        indices = empty((self.nnz,), index_dtype(self.shape[1]), "SparseMatrix")
        _core.mask_to_indices(self.mask().packed, *self.shape, indptr, indices)
        return indptr, indices

    def panels(self) -> Any:
        """The structure of the panel format (``_core.Panels``)."""
        if self._panels is None:
            with self._lock:
                if self._panels is None:
                    self._panels = _core.Panels(self.mask().packed, *self.shape)
        return self._panels

    def transposed(self) -> tuple[Structure, Host]:
        """The structure of the transpose, and where each of its values lies among this one's."""
        if self._transposed is None:
            with self._lock:
                self._transposed = self._transposed or self._transpose()
        return self._transposed

    def _transpose(self) -> tuple[Structure, Host]:
        rows, cols = self.shape
        indptr = empty((cols + 1,), np.int64, "SparseMatrix.T")
        indices, order = np.empty(self.nnz, index_dtype(rows)), np.empty(self.nnz, np.int64)
        _core.transpose(rows, cols, *self.some_csr(), indptr, indices, order)
        _freeze(order)
        return Structure((cols, rows), csr=(indptr, indices)), order

    def plan(self, dtype: Any) -> Plan:
        """What "auto" is for values of this dtype: chosen once."""
        known = self._plans.get(np.dtype(dtype))
        return known or self._plans.setdefault(np.dtype(dtype), choose(self.shape, self.nnz, dtype))

    @property
    def nbytes(self) -> int:
        made = (self._indptr, None if self._csr is None else self._csr[1], self._panels)
        held = sum(part.nbytes for part in made if part is not None)
        held += 0 if self._mask is None else self._mask.packed.nbytes
        if self._transposed is not None:
            held += self._transposed[0].nbytes + self._transposed[1].nbytes
        return held


def _freeze(*arrays: Host) -> Any:
    for array in arrays:
        array.flags.writeable = False
    return arrays


class SparseMatrix:
    """An immutable sparse matrix ``[rows, cols]`` of floats that any number of threads may share.

    Made by :meth:`from_dense`, :meth:`from_scipy` or :meth:`from_csr`. Shape, nnz, values and the pattern never depend
    on the format, dense included.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> w = np.array([[0.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    >>> a = gs.SparseMatrix.from_dense(w, format="csr")
    >>> a.shape, a.nnz, a.values.tolist()
    ((3, 2), 2, [2.0, 1.0])
    >>> (a @ np.array([10.0, 1.0])).tolist()
    [2.0, 0.0, 10.0]
    """

    __slots__ = ("_dense", "_panel_values", "_plan", "_scales", "_structure", "_values")

    # The values are held in row-major order, in that of the panels, in a dense array, or in several of these.
    _structure: Structure
    _values: Host | None
    _panel_values: Host | None
    _dense: Host | None
    _scales: Host | None  # of int8 values, one a row
    _plan: Plan

    __array_ufunc__ = None  # numpy_array @ sparse_matrix is a TypeError, not an element-wise attempt

    def __init__(self) -> None:
        raise TypeError("SparseMatrix: use from_dense, from_scipy or from_csr")

    @classmethod
    def _make(cls, structure: Structure, values: Host, plan: Plan, scales: Host | None = None) -> SparseMatrix:
        a = cls.__new__(cls)
        a._structure, a._plan = structure, plan
        a._panel_values = a._dense = None
        a._values, a._scales = values, scales
        _freeze(values, *(() if scales is None else (scales,)))
        kernels = plan.kernels
        if "csr" in kernels:
            structure.csr()  # now, and not at the first product
        if "bitmask" in kernels:
            structure.mask(), structure.indptr()
        if kernels == {"dense"}:
            a._in_dense()
            a._values = None
        if kernels == {"panel"}:
            a._in_panels()
            a._values = None
        return a

    def _in_dense(self) -> Host:
        """A dense array of the values as they are held, of int8 without their scales; made when first asked for."""
        structure = self._structure
        if self._dense is None:
            with structure._lock:
                if self._dense is None:
                    (self._dense,) = _freeze(self._spread(structure.mask(), "SparseMatrix"))
        return self._dense

    def _spread(self, mask: Mask, function: str) -> Host:
        dense = empty(self.shape, self.dtype, function)
        indptr = self._structure.indptr()
        _core.values_to_dense(mask.packed, *self.shape, indptr, self._row_values(), dense.reshape(-1))
        return dense

    def _widened(self, dense: Host, dtype: Any) -> Host:
        """A dense array of the values in a float dtype, those of int8 times their scales."""
        if self._scales is None:
            return dense.astype(dtype, copy=False)
        wide = dense.astype(dtype)
        wide *= self._scales[:, None]
        return wide

    def _in_panels(self) -> Host:
        """The values in the order of the panels; made when first asked for."""
        structure = self._structure
        if self._panel_values is None:
            with structure._lock:
                if self._panel_values is None:
                    assert self._values is not None
                    packed = np.empty(structure.panels().room, self._values.dtype)
                    structure.panels().reorder(structure.indptr(), self._values, packed, True)
                    (self._panel_values,) = _freeze(packed)
        return self._panel_values

    @classmethod
    def from_dense(cls, w: Array, mask: Mask | None = None, *, format: str = "auto", dtype: Any = None) -> SparseMatrix:
        """The kept elements of a dense array.

        Parameters
        ----------
        w : float32, float64, float16 or bfloat16, read as the matrix ``[shape[0], rest]``.
        mask : what is kept, zeros included; None keeps everything that is not zero.
        format : ``"csr"``, ``"panel"`` (for products with more than a few columns), ``"bitmask"`` (for one to four),
            ``"dense"``, or ``"auto"``: the cheapest of these for each number of columns, by what they cost on this
            machine (each form of the values is made at the first product that needs it); ``a.plan`` says why.
            ``"2:4"`` (any N:M up to 32) and ``"bsr:8x1"`` (any block) also check that the mask is of that pattern: at
            most N of every M consecutive elements of a row, or whole blocks; ``"n:m"`` reads N and M off the mask.
            They are multiplied as panels (with one to four columns as a bitmask), which take one column index for
            four rows where blocks have a multiple of four.
        dtype : of the values; None keeps ``w``'s. ``"int8"``: whole numbers from -127 to 127 and a float32 scale for
            each row, its largest magnitude / 127 (but at least float32's smallest normal number, 1.2e-38, unless all
            are 0); products are those of the numbers times the scale, and overflow where a sum of the numbers' does.

        Raises
        ------
        TypeError, ValueError
            A dtype that is not supported, a mask of another shape, an unknown format, one that the mask does not have,
            NaN and infinity for int8.
        """
        f = "SparseMatrix.from_dense"
        dense = host(w, f, "w")
        shape = matrix_shape(dense.shape)
        if mask is None:
            packed = Mask._blank(shape, f)
            _core.nonzero_mask(f, dense, packed)
        else:
            packed = packed_bits(mask, dense.shape, f, "mask")
        structure = Structure(shape, mask=Mask._own(shape, packed))
        values = np.empty(structure.nnz, dense.dtype)
        _core.mask_to_values(f, dense, packed, structure.indptr(), values)
        to = _value_dtype(dense.dtype if dtype is None else dtype, f, int8=True)
        plan, scales = _choose(format, structure, to, f), None
        if to == np.int8:
            values, scales = _quantize(structure, values, f, "w")
        else:
            values = values.astype(to, copy=False)
        return cls._make(structure, values, plan, scales)

    @classmethod
    def from_csr(cls, indptr: Array, indices: Array, values: Array, shape: tuple[int, int]) -> SparseMatrix:
        """A matrix from CSR arrays, which are copied and checked.

        Parameters
        ----------
        indptr : integers ``[rows + 1]``, from 0 to nnz, never falling.
        indices : integers ``[nnz]`` in ``[0, cols)``, sorted and unique within a row.
        values : float32, float64, float16 or bfloat16 ``[nnz]``.
        shape : ``(rows, cols)``.

        Raises
        ------
        TypeError, ValueError
            Anything else; the message names the first row that is wrong.
        """
        return cls._from_csr(indptr, indices, values, shape, "SparseMatrix.from_csr")

    @classmethod
    def _from_csr(cls, indptr: Array, indices: Array, values: Array, shape: tuple[int, int], f: str) -> SparseMatrix:
        rows, cols = _check_shape(shape, f)
        starts, columns = _integers(indptr, f, "indptr"), _integers(indices, f, "indices")
        data = host(values, f, "values")
        dtype = _value_dtype(data.dtype, f)
        if starts.shape != (rows + 1,):
            raise ValueError(
                f"{f}: indptr must have {rows + 1} entries for shape {(rows, cols)}, got shape {starts.shape}"
            )
        if columns.ndim != 1:
            raise ValueError(f"{f}: indices must have one dimension, got shape {columns.shape}")
        if data.shape != columns.shape:
            raise ValueError(f"{f}: values must have as many entries as indices, {columns.shape}, got {data.shape}")
        _core.check_csr(f, rows, cols, starts, columns)
        structure = Structure((rows, cols), csr=(starts, columns.astype(index_dtype(cols), copy=False)))
        return cls._make(structure, np.array(data, dtype, order="C"), as_asked("csr"))

    @classmethod
    def from_scipy(cls, a: Any) -> SparseMatrix:
        """A scipy sparse matrix or array of any format; duplicates are summed, indices sorted, explicit zeros kept.

        ``a`` stays as it is. Raises TypeError for what is none and for a dtype that is not supported, ValueError where
        its index arrays are damaged.
        """
        f = "SparseMatrix.from_scipy"
        if not hasattr(a, "tocsr"):
            raise TypeError(f"{f}: a must be a scipy sparse matrix, got {type(a).__name__}")
        _value_dtype(a.dtype, f)
        if len(a.shape) != 2:
            raise ValueError(f"{f}: a must have two dimensions, got the shape {a.shape}")
        csr = as_csr(a, f)
        return cls._from_csr(csr.indptr, csr.indices, csr.data, csr.shape, f)

    def to_scipy(self) -> scipy.sparse.csr_array:
        """A ``scipy.sparse.csr_array`` of its own memory; float32 for 16-bit and int8 values."""
        import scipy.sparse

        indptr, indices = (np.array(part) for part in self._structure.some_csr())
        values = np.array(self.dequantize(), compute_dtype(self.dtype))
        return scipy.sparse.csr_array((values, indices, indptr), shape=self.shape)

    def to_dense(self) -> Host:
        """A dense array ``[rows, cols]`` of its own memory; float32 for int8 values, times their scales."""
        dense = self._dense
        if dense is None:
            dense = self._spread(self._structure.some_mask(), "SparseMatrix.to_dense")
        if self._scales is not None:
            return self._widened(dense, np.float32)
        return dense.copy() if dense is self._dense else dense

    @property
    def shape(self) -> tuple[int, int]:
        return self._structure.shape

    @property
    def nnz(self) -> int:
        """Kept positions, whatever their values."""
        return self._structure.nnz

    @property
    def density(self) -> float:
        rows, cols = self.shape
        return self.nnz / (rows * cols) if rows * cols else 1.0

    @property
    def dtype(self) -> Any:
        """Of the values, as a numpy dtype."""
        return next(a.dtype for a in self._held())

    @property
    def scales(self) -> Host | None:
        """float32 ``[rows]``, read-only, by which the rows of int8 values are multiplied; None for other dtypes."""
        return None if self._scales is None else self._scales.view()  # whose flag cannot be switched back

    @property
    def format(self) -> str:
        """What was asked for; of "auto", what products with 64 columns take (others may take another, see ``plan``)."""
        return self._plan.kernel(64) if self._plan.asked == "auto" else self._plan.asked

    @property
    def plan(self) -> str:
        """What was picked and why, in a sentence."""
        return self._plan.text

    @property
    def nbytes(self) -> int:
        """Bytes held: values, structure, and what has been derived from them and kept (transpose, mask, CSR)."""
        return self._structure.nbytes + self._own_nbytes

    @property
    def _own_nbytes(self) -> int:
        scales = 0 if self._scales is None else self._scales.nbytes
        return scales + sum(a.nbytes for a in self._held())

    def _held(self) -> list[Host]:
        return [a for a in (self._values, self._panel_values, self._dense) if a is not None]

    @property
    def mask(self) -> Mask:
        """The kept positions."""
        return self._structure.mask()

    @property
    def values(self) -> Host:
        """The values ``[nnz]`` in row-major order of the kept positions, read-only.

        Of int8 these are whole numbers without their scales: :meth:`dequantize` gives what they stand for.
        """
        return self._row_values().view()

    def _row_values(self) -> Host:
        if self._values is not None:
            return self._values
        indptr = self._structure.indptr()
        if self._panel_values is None and self._scales is not None:
            assert self._dense is not None
            values: Host = self._dense[self.mask.to_dense()]
        else:
            values = empty((self.nnz,), self.dtype, "SparseMatrix.values")
            if self._panel_values is not None:
                self._structure.panels().reorder(indptr, self._panel_values, values, False)
            else:
                assert self._dense is not None
                _core.mask_to_values("SparseMatrix.values", self._dense, self.mask.packed, indptr, values)
        _freeze(values)
        return values

    def dequantize(self) -> Host:
        """``a.values`` as floats ``[nnz]``: those of int8, float32, times the scale of their row; others as they are.

        What a step of an optimizer starts from:

        >>> import numpy as np, gossamer as gs
        >>> a = gs.SparseMatrix.from_dense(np.array([[0.0, 254.0], [1.0, 127.0]]), dtype="int8")
        >>> a.values.tolist(), a.dequantize().tolist()
        ([127, 1, 127], [254.0, 1.0, 127.0])
        >>> a.with_values(a.dequantize() - 2.0).to_dense().tolist()
        [[0.0, 252.0], [-0.9842519760131836, 125.0]]
        """
        if self._scales is None:
            return self.values
        floats: Host = np.repeat(self._scales, np.diff(self._structure.indptr()))
        floats *= self._row_values()
        return floats

    def with_values(self, v: Array) -> SparseMatrix:
        """The same structure with other values ``[nnz]``.

        They are copied and may be of any of the four dtypes. For a matrix of int8, they are rounded to int8 anew, with
        new scales, unless they are int8: then the scales stay. A step is ``a.with_values(a.dequantize() - step)``.
        """
        f = "SparseMatrix.with_values"
        data = host(v, f, "v")
        scales = self._scales
        keep = scales is not None and data.dtype == np.int8
        dtype = data.dtype if keep else _value_dtype(data.dtype, f)
        if data.shape != (self.nnz,):
            raise ValueError(f"{f}: v must have the shape {(self.nnz,)}, got {data.shape}")
        if scales is None or keep:
            values = np.array(data, dtype, order="C")
        else:
            values, scales = _quantize(self._structure, data, f, "v")
        return SparseMatrix._make(self._structure, values, self._plan, scales)

    @property
    def T(self) -> SparseMatrix:  # noqa: N802  (numpy's and scipy's name)
        """The transpose. Its structure is made once and kept; its values are gathered at each call.

        Of int8 values it is float32, since the scales belong to its columns. Of "auto", and of a format that names a
        pattern, which the transpose need not have, it is "auto": with a plan of its own.
        """
        structure, order = self._structure.transposed()
        values = self.dequantize()
        gathered = np.empty_like(values)
        _core.gather(values, order, gathered)
        plan = self._plan if self._plan.asked in KERNELS else structure.plan(values.dtype)
        return SparseMatrix._make(structure, gathered, plan)

    def __matmul__(self, x: Array) -> Array:
        from gossamer.multiply import matmul

        return matmul(self, x)

    def __reduce__(self) -> tuple[Any, ...]:
        rest = (self._row_values(), tuple(self._plan), self._scales)
        rows, cols = self.shape
        if 8 * (rows + 1) + self.nnz * np.dtype(index_dtype(cols)).itemsize < rows * (
            (cols + 7) // 8
        ):  # the smaller one
            return _rebuild, (self.shape, *self._structure.some_csr(), *rest)
        return _rebuild_mask, (self._structure.some_mask(), *rest)

    def __repr__(self) -> str:
        return f"SparseMatrix(shape={self.shape}, nnz={self.nnz}, dtype={self.dtype}, format={self.format!r})"


# A pickle is checked like anything from outside.
def _rebuild(
    shape: tuple[int, int], indptr: Host, indices: Host, values: Host, plan: Any, scales: Host | None = None
) -> SparseMatrix:
    if scales is not None and not isinstance(values, np.ndarray):
        raise TypeError(f"SparseMatrix: values must be an array, got {values!r:.99}")
    a = SparseMatrix.from_csr(indptr, indices, values if scales is None else values.astype(np.float32), shape)
    return _restored(a._structure, values, plan, scales)


def _rebuild_mask(mask: Any, values: Host, plan: Any, scales: Host | None) -> SparseMatrix:
    if not isinstance(mask, Mask) or len(mask.shape) != 2:
        raise TypeError(f"SparseMatrix: mask must be a Mask of two dimensions, got {mask!r}")
    return _restored(_structure_of(mask), values, plan, scales)


def _structure_of(mask: Mask) -> Structure:
    shape = matrix_shape(mask.shape)
    return Structure(shape, mask=Mask._own(shape, mask.packed, mask.nnz))


def _restored(structure: Structure, values: Any, plan: Any, scales: Any) -> SparseMatrix:
    """From parts of which only the structure is checked yet; ``plan``: a format, or what is in a pickle."""
    f = "SparseMatrix"
    if not isinstance(values, np.ndarray) or values.shape != (structure.nnz,):
        raise ValueError(f"{f}: values must be an array of the shape {(structure.nnz,)}, got {values!r:.99}")
    if scales is not None:
        values, scales = _checked_int8(values, scales, structure.shape[0], f)
    else:
        values = np.array(values, _value_dtype(values.dtype, f), order="C")
    known = _choose(plan, structure, values.dtype, f) if isinstance(plan, str) else _plan_of(plan, structure, values, f)
    return SparseMatrix._make(structure, values, known, scales)


def _plan_of(plan: Any, structure: Structure, values: Host, function: str) -> Plan:
    try:
        steps, asked, text = plan
        known = Plan(tuple((operator.index(first), kernel) for first, kernel in steps), asked, text)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{function}: the plan must be steps and two strings, got {plan!r}") from error
    if not isinstance(asked, str) or not isinstance(text, str):
        raise TypeError(f"{function}: the plan must be steps and two strings, got {plan!r}")
    if asked != "auto":
        return _choose(asked, structure, values.dtype, function)
    firsts = [first for first, _ in known.steps]
    if firsts[:1] != [1] or any(b <= a for a, b in itertools.pairwise(firsts)):
        raise ValueError(f"{function}: the plan must have steps that ascend from 1, got {plan!r}")
    if not all(isinstance(kernel, str) and kernel in KERNELS for _, kernel in known.steps):
        raise ValueError(f"{function}: the plan must name kernels, got {plan!r}")
    return known


def _quantize(structure: Structure, values: Host, function: str, argument: str) -> tuple[Host, Host]:
    """int8 values and the scale of each row: its largest magnitude / 127, but never below what float32 holds well."""
    numbers, scales = empty(values.shape, np.int8, function), np.zeros(structure.shape[0], np.float32)
    _core.quantize(function, argument, structure.shape[0], structure.indptr(), values, numbers, scales)
    return numbers, scales


def _checked_int8(values: Any, scales: Any, rows: int, function: str) -> tuple[Host, Host]:
    known = isinstance(values, np.ndarray) and isinstance(scales, np.ndarray)
    if not known or values.dtype != np.int8 or scales.dtype != np.float32 or scales.shape != (rows,):
        raise ValueError(f"{function}: int8 values must have float32 scales of the shape {(rows,)}")
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"{function}: scales must be finite and not negative, got others")
    if values.size and values.min() < -127:
        raise ValueError(f"{function}: int8 values must be in [-127, 127], got -128")
    return np.array(values, order="C"), np.array(scales, order="C")


def _choose(format: str, structure: Structure, dtype: Any, function: str) -> Plan:
    if not isinstance(format, str):
        raise TypeError(f"{function}: format must be a str, got {format!r}")
    if format in KERNELS:
        return as_asked(format)
    if format == "auto":
        return structure.plan(dtype)
    return as_pattern(_core.check_format(function, format, structure.mask().packed, *structure.shape))


def _value_dtype(dtype: Any, function: str, int8: bool = False) -> Any:
    """The dtype of values that is meant; with ``int8``, this one too."""
    names = "float32, float64, float16, bfloat16 or int8" if int8 else "float32, float64, float16 or bfloat16"
    try:
        known = np.dtype(dtype).newbyteorder("=")
    except (TypeError, ValueError, SyntaxError) as error:
        raise TypeError(f"{function}: dtype must be {names}, got {dtype!r}") from error
    if not is_float(known) and not (int8 and known == np.int8):
        raise TypeError(f"{function}: the values' dtype must be {names}, got {known}")
    return known


def _check_shape(shape: Any, function: str) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)) or not all(isinstance(n, (int, np.integer)) for n in shape):
        raise TypeError(f"{function}: shape must be two ints (rows, cols), got {shape!r}")
    if len(shape) != 2:
        raise ValueError(f"{function}: shape must be two ints (rows, cols), got {shape!r}")
    rows, cols = (int(n) for n in shape)
    if not (0 <= rows < 1 << 62 and 0 <= cols < 1 << 62):
        raise ValueError(f"{function}: shape must be at least 0 and fit into 62 bits, got {(rows, cols)}")
    return rows, cols


def _integers(x: Array, function: str, argument: str) -> Host:
    """A copy as int64; what does not fit is refused, not wrapped."""
    array = host(x, function, argument)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{function}: {argument} must be integers, got {array.dtype}")
    if array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{function}: {argument} must fit into int64, got {int(array.max())}")
    return array.astype(np.int64)
