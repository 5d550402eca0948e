# SPDX-License-Identifier: Apache-2.0
"""Products with sparse matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, give_back, host, matrix_shape, output, require_float
from gossamer.masks import Mask
from gossamer.plan import as_asked
from gossamer.sparse import SparseMatrix, Structure


def matmul(
    a: SparseMatrix,
    x: Array,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """``act(A @ X + bias[:, None]) + residual``.

    Parameters
    ----------
    a : ``[rows, cols]``.
    x : float32, float64, float16 or bfloat16 ``[cols, n]``, or a vector ``[cols]``. Strided arrays are read in place;
        up to 256 columns at a time are packed into scratch memory.
    bias : ``[rows]``.
    activation : None, ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"``, ``"sigmoid"`` or ``"tanh"``.
    residual : like the result.
    out : where to write; may be ``residual``, must not overlap ``x``.

    Returns
    -------
    ``[rows, n]`` (or ``[rows]``) in x's dtype and library. The product is computed in float64 where ``x`` or ``a`` is
    float64 (other values of ``a`` are then widened at every call), else in float32, and rounded once, at the end. A
    position that is not kept takes no part, except in format "dense", where it multiplies as 0 (an infinity in ``x``
    then gives NaN).

    Raises
    ------
    TypeError, ValueError
        A dtype or kind that is not supported, shapes that do not fit; ``out`` is then unchanged.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> a = gs.SparseMatrix.from_dense(np.array([[1.0, 0.0], [0.0, -2.0]]))
    >>> gs.matmul(a, np.ones((2, 1)), activation="relu").tolist()
    [[1.0], [0.0]]
    """
    return _product("matmul", a, x, False, bias, activation, residual, out)


def linear(
    x: Array,
    a: SparseMatrix,
    *,
    bias: Array | None = None,
    activation: str | None = None,
    residual: Array | None = None,
    out: Array | None = None,
) -> Array:
    """``act(X @ A.T + bias) + residual``: a layer of weights ``a`` ``[out, in]`` on activations ``x`` ``[batch, in]``.

    As :func:`matmul` otherwise; ``x`` may be a vector ``[in]``, and more than two dimensions are ``[batch, rest]``.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> a = gs.SparseMatrix.from_dense(np.array([[1.0, 0.0], [0.0, -2.0]]))
    >>> gs.linear(np.array([[3.0, 4.0]]), a, bias=np.array([0.5, 0.0])).tolist()
    [[3.5, -8.0]]
    """
    return _product("linear", a, x, True, bias, activation, residual, out)


def _product(
    f: str,
    a: SparseMatrix,
    x: Array,
    linear: bool,
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
    out: Array | None,
) -> Array:
    if not isinstance(a, SparseMatrix):
        raise TypeError(f"{f}: a must be a SparseMatrix, got {type(a).__name__}")
    act = _activation(activation, f)
    view = host(x, f, "x")
    rows, cols = a.shape
    vector = view.ndim == 1
    if view.ndim == 0:
        raise ValueError(f"{f}: x must have at least one dimension, got a scalar")
    matrix = view.reshape(1, -1) if vector and linear else view.reshape(-1, 1) if vector else view
    n = matrix.shape[0] if linear else matrix_shape(matrix.shape)[1]
    shape = (rows,) if vector else (n, rows) if linear else (rows, n)
    target = output(out, x, shape, view.dtype, f)
    to = target.view.reshape((1, rows) if linear else (rows, 1)) if vector else target.view
    b = None if bias is None else host(bias, f, "bias")
    r = None if residual is None else host(residual, f, "residual")
    if r is not None and r.shape != shape:
        raise ValueError(f"{f}: residual must have the shape of the result {shape}, got {r.shape}")
    if r is not None and vector:
        r = r.reshape(to.shape)
    form = a._plan.kernel(n)
    if form == "dense":
        _dense_product(f, a, matrix, linear, b, act, r, to)
        return target.result()
    structure, values = a._structure, a._in_panels() if form == "panel" else a._row_values()
    if view.dtype == np.float64:
        values = values.astype(np.float64, copy=False)
    rest: Any = (values, a._scales, matrix, linear, b, act, r, to)
    if form == "panel":
        _core.matmul_panel(f, structure.panels(), *rest)
    elif form == "bitmask":
        _core.matmul_bitmask(f, structure.mask().packed, rows, cols, structure.indptr(), *rest)
    else:
        _core.matmul(f, rows, cols, *structure.csr(), *rest)
    return target.result()


def _activation(activation: str | None, function: str) -> str:
    if activation is None:
        return "identity"
    if not isinstance(activation, str):
        raise TypeError(f"{function}: activation must be a str or None, got {activation!r}")
    return activation


def _dense_product(
    f: str, a: SparseMatrix, x: Host, linear: bool, bias: Host | None, act: str, residual: Host | None, out: Host
) -> None:
    """BLAS, then the same epilogue as the sparse kernels."""
    _core.check_product(f, *a.shape, x, linear, bias, act, residual, out)
    if residual is not None and np.may_share_memory(residual, out):
        residual = residual.copy()
    dtype = _common(a, x)
    flat, w = x.reshape(matrix_shape(x.shape)).astype(dtype, copy=False), a._widened(a._in_dense(), dtype)
    left, right = (flat, w.T) if linear else (w, flat)
    with np.errstate(all="ignore"):  # a caller's errstate must not stop the product halfway through `out`
        result = np.matmul(left, right, out=out if out.dtype == dtype else None)
        if bias is not None or act != "identity" or residual is not None:
            _core.epilogue(f, linear, bias, act, residual, result)
        if result is not out:
            out[...] = result


def dense_gradients(a: SparseMatrix, dy: Host, x: Host) -> tuple[Host, Host]:
    """``dY @ A`` in dY's dtype and dYᵀ @ X where A keeps, for a matrix whose products are dense ones; no checks."""
    dtype, kept = _common(a, dy), _common(dy, x)
    with np.errstate(all="ignore"):
        dx = np.matmul(dy.astype(dtype, copy=False), a._widened(a._in_dense(), dtype)).astype(dy.dtype, copy=False)
        dw = np.matmul(dy.T.astype(kept, copy=False), x.astype(kept, copy=False))
    values: Host = np.empty(a.nnz, kept)
    structure = a._structure
    _core.mask_to_values("SparseLinear.backward", dw, structure.mask().packed, structure.indptr(), values)
    return dx, values


def sddmm(x: Array, y: Array, pattern: SparseMatrix | Mask, *, out: Array | None = None) -> SparseMatrix:
    """``X @ Y.T``, computed only where ``pattern`` keeps a position (sampled dense-dense matrix multiplication).

    Parameters
    ----------
    x : floats ``[rows, k]``.
    y : ``[cols, k]``. The result is float64 where an input is, else float32. Inputs whose rows are not contiguous, or
        not of the result's dtype, are packed into scratch of their size (rows in whole cache lines).
    pattern : ``[rows, cols]``.
    out : a contiguous array ``[nnz]`` of the result's dtype that receives the values and is then held by the result.

    Returns
    -------
    A :class:`SparseMatrix` of format ``"csr"`` with the pattern's structure.

    Raises
    ------
    TypeError, ValueError
        A dtype or kind that is not supported, shapes that do not fit.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> p = gs.Mask.from_dense(np.array([[True, False], [False, True]]))
    >>> gs.sddmm(np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]]), p).values.tolist()
    [3.0, 8.0]
    """
    f = "sddmm"
    left, right = host(x, f, "x"), host(y, f, "y")
    if isinstance(pattern, SparseMatrix):
        structure = pattern._structure
    elif isinstance(pattern, Mask):
        shape = matrix_shape(pattern.shape)
        structure = Structure(shape, mask=Mask._own(shape, pattern.packed, pattern.nnz))
    else:
        raise TypeError(f"{f}: pattern must be a SparseMatrix or a Mask, got {type(pattern).__name__}")
    for name, array in (("x", left), ("y", right)):
        require_float(array, f, name)
    dtype = _common(left, right)
    values = output(out, np.empty(0), (structure.nnz,), dtype, f).view
    if values.dtype != dtype:
        raise TypeError(f"{f}: out must be {dtype}, got {values.dtype}")
    if not values.flags.writeable:
        raise ValueError(f"{f}: out must be writable, got a read-only array")
    if out is not None and not values.flags.c_contiguous:
        raise ValueError(f"{f}: out must be contiguous, got strides {values.strides}")
    if out is not None and (np.may_share_memory(values, left) or np.may_share_memory(values, right)):
        raise ValueError(f"{f}: out must not overlap with x or y")
    _core.sddmm(f, left, right, *structure.shape, *structure.csr(), values)
    return SparseMatrix._make(structure, values.view() if out is not None else values, as_asked("csr"))


def _common(*parts: Host | SparseMatrix) -> np.dtype[Any]:
    """What a product of these is computed in."""
    return np.dtype(np.float64 if any(part.dtype == np.float64 for part in parts) else np.float32)


def activation_grad(z: Array, dy: Array, activation: str) -> Array:
    """``dy * act'(z)`` for the activations of :func:`matmul`; used by SparseLinear.backward."""
    at, from_ = host(z, "SparseLinear.backward", "z"), host(dy, "SparseLinear.backward", "dy")
    dz = np.empty(at.shape, at.dtype)
    _core.activation_grad(at, from_, activation, dz)
    return give_back(dz, dy)
