# SPDX-License-Identifier: Apache-2.0
"""A linear layer with sparse weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from gossamer._arrays import Array, Host, give_back, host, require_float
from gossamer.multiply import activation_grad, dense_gradients, linear, sddmm
from gossamer.sparse import SparseMatrix


class SparseLinear:
    """``act(X @ A.T + bias)`` with its gradients; weights ``a`` ``[out, in]``, activations ``[batch, in]``.

    Parameters
    ----------
    a : the weights.
    bias : ``[out]`` or None; copied.
    activation : as in :func:`gossamer.matmul`.

    Raises
    ------
    TypeError, ValueError
        ``a`` is no SparseMatrix; a bias of another length.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> lin = gs.SparseLinear(gs.SparseMatrix.from_dense(np.array([[2.0, 0.0]])), bias=np.array([1.0]))
    >>> x = np.array([[3.0, 4.0]])
    >>> lin(x).tolist()
    [[7.0]]
    >>> dx, dvalues, dbias = lin.backward(np.array([[1.0]]), x)
    >>> dx.tolist(), dvalues.tolist(), dbias.tolist()
    ([[2.0, 0.0]], [3.0], [1.0])
    """

    _transpose: tuple[SparseMatrix, SparseMatrix] | None = None  # the matrix of which, and it; older pickles lack it

    def __init__(self, a: SparseMatrix, bias: Array | None = None, activation: str | None = None) -> None:
        if not isinstance(a, SparseMatrix):
            raise TypeError(f"SparseLinear: a must be a SparseMatrix, got {type(a).__name__}")
        self.a = a
        self.bias: Host | None = None
        if bias is not None:
            view = host(bias, "SparseLinear", "bias")
            require_float(view, "SparseLinear", "bias")
            if view.shape != (a.shape[0],):
                raise ValueError(f"SparseLinear: bias must have the shape {(a.shape[0],)}, got {view.shape}")
            self.bias = np.array(view)
        self.activation = activation
        if activation is not None:  # an unknown name fails here and not at the first call
            activation_grad(np.zeros((1, 1)), np.zeros((1, 1)), activation)

    def __call__(self, x: Array, *, residual: Array | None = None, out: Array | None = None) -> Array:
        """``act(x @ A.T + bias) + residual``, ``[batch, out]``."""
        return linear(x, self.a, bias=self.bias, activation=self.activation, residual=residual, out=out)

    def backward(self, dy: Array, x: Array) -> tuple[Array, Array, Array | None]:
        """The gradients of a loss from ``dy`` ``[batch, out]``, its gradient by this layer's output for input ``x``.

        Returns
        -------
        ``(dx, dvalues, dbias)``: ``[batch, in]``; ``[nnz]`` in the order of ``a.values`` (float32 for 16-bit inputs);
        ``[out]``, or None without a bias. Pruned positions have no gradient. With an activation, the output before it
        is computed again. Where the product with as many columns is a dense one, so are these, which takes scratch of
        the size of the dense weights.
        """
        f = "SparseLinear.backward"
        grad, inputs = host(dy, f, "dy"), host(x, f, "x")
        for name, array, width in (("x", inputs, self.a.shape[1]), ("dy", grad, self.a.shape[0])):
            require_float(array, f, name)
            if array.ndim != 2 or array.shape != (inputs.shape[0], width):
                batch = inputs.shape[0] if inputs.ndim == 2 else "batch"
                raise ValueError(f"{f}: {name} must have the shape ({batch}, {width}), got {array.shape}")
        if self.activation is not None:
            grad = activation_grad(linear(inputs, self.a, bias=self.bias), grad, self.activation)
        if self.a._plan.kernel(len(grad)) == "dense":
            dx, dvalues = dense_gradients(self.a, grad, inputs)
        else:
            dx, dvalues = linear(grad, self._transposed()), value_gradient(grad, inputs, self.a)
        dbias = None if self.bias is None else bias_gradient(grad)
        return give_back(dx, dy), give_back(dvalues, dy), None if dbias is None else give_back(dbias, dy)

    def _transposed(self) -> SparseMatrix:
        """The transpose of ``a``, kept until ``a`` is another."""
        cached = self._transpose
        if cached is None or cached[0] is not self.a:
            cached = self._transpose = (self.a, self.a.T)
        return cached[1]

    @property
    def nbytes(self) -> int:
        """Bytes held: the matrix with all that it keeps (``a.nbytes``), the bias, and the transpose once it is made."""
        of, *transpose = self._transpose or (self.a,)
        matrices = {id(m): m for m in (self.a, of, *transpose)}.values()
        structures = {id(m._structure): m._structure for m in (self.a, of)}.values()  # with that of the transpose
        held = sum(m._own_nbytes for m in matrices) + sum(structure.nbytes for structure in structures)
        return held + (0 if self.bias is None else self.bias.nbytes)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_transpose": None}

    def __repr__(self) -> str:
        return f"SparseLinear({self.a!r}, bias={self.bias is not None}, activation={self.activation!r})"


def value_gradient(dy: Host, x: Host, a: SparseMatrix) -> Host:
    """dYᵀ @ X where A keeps a position, in the order of ``a.values``; the caller's own."""
    values: Host = np.empty(a.nnz, np.float64 if np.float64 in (dy.dtype, x.dtype) else np.float32)
    sddmm(dy.T, x.T, a, out=values)
    return values


def bias_gradient(dy: Host) -> Host:
    """The sums of the columns ``[out]``: runs of 32 rows in the dtype itself, and these in float64."""
    if dy.dtype.itemsize == 2 or dy.shape[0] == 0:
        sums: Host = dy.sum(axis=0, dtype=np.float64)
    else:
        runs = np.stack([dy[i : i + 32].sum(axis=0) for i in range(0, dy.shape[0], 32)])
        sums = runs.sum(axis=0, dtype=np.float64)
    return sums.astype(dy.dtype)
