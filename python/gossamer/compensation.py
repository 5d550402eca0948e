# SPDX-License-Identifier: Apache-2.0
"""What is left of a layer is changed so that its output comes close to that of the whole layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import numpy as np

from gossamer._arrays import (
    Array,
    Host,
    host,
    matrix_shape,
    named,
    of,
    output,
    partner,
    require_float,
    require_number,
    require_text,
    same_shape,
)
from gossamer.masks import Mask, packed_bits
from gossamer.stats import Stats, require_stats
from gossamer.threads import one_blas_thread

_METHODS = ("exact", "obs")
_BLOCK = 128  # columns of the obs sweep, as in the paper: inside by outer products, beyond by one matrix product
_CHUNK = 1 << 22  # elements of a matrix that are worked on at a time: 32 MiB in float64
# Inputs from which BLAS' threads pay. On two idle cores a factor of 768 columns takes 3.1 ms with one thread and 2.4 ms
# with two, one of 192 takes 0.08 ms and 0.37 ms; beside other work a second thread that spins costs ten times as much.
_PARALLEL = 2048
_INVERTIBLE = 1e-8  # smallest relative pivot with which the inverse may be used in place of the matrix


def compensate(
    weights: Array | Mapping[str, Array],
    mask: Mask | Mapping[str, Mask],
    stats: Stats | Mapping[str, Stats],
    *,
    method: str = "exact",
    damping: float = 0.01,
) -> Any:
    """New values for the kept weights, so that the pruned layer gives on the calibration inputs what the dense one did.

    With ``H = X.T @ X`` of the inputs, each row w of the matrix ``[out, in]`` gets values v, zero outside the mask, for
    a small ``||X (w - v)||**2 = (w - v) H (w - v)``.

    - ``"exact"``: the least-squares solution, the best there is for the mask, solved row by row over the kept set K:
      ``v_K = w_K + inv(H_KK) H_KP w_P`` (the refit of Hassibi and Stork 1992, "Second order derivatives for network
      pruning", NIPS; no arXiv number). Where ``H_KK`` is singular, the directions that the inputs never show keep their
      values. A row for which no value is better than its own keeps them: no row gets worse. ``damping`` is not used.
    - ``"obs"``: the sweep of SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774) with a given mask: column by
      column, the error of what is pruned is spread over the columns to the right. It uses
      ``2 H + damping * mean(diag(2 H)) * I``. Columns of inputs that are always 0 get 1 on the diagonal and weight 0.

    ``"exact"`` takes ``k**3 / 6`` multiply-adds a row for k kept weights (rows with the same mask share them; where few
    are pruned, k is their number), ``"obs"`` only ``in**2 / 2`` a row.

    Parameters
    ----------
    weights : ``[out, in]`` in float32, float64, float16 or bfloat16, finite, or a mapping of them; more dimensions are
        the matrix ``[shape[0], rest]``, a vector is one row. The computation is in float64.
    mask : :class:`Mask` (or bool array) of the shape of the weights, or a mapping of them.
    stats : ``Stats("hessian")`` of the layer's inputs, or a mapping of them.
    method : ``"exact"`` or ``"obs"``.
    damping : for ``"obs"``, finite and not negative.

    Returns
    -------
    New weights in the shape, dtype and library of ``weights``, or a dict of them for a mapping; nothing else changes.
    Beside them the call holds at most four matrices ``[in, in]`` and 256 MiB (or eight rows) in float64. The last bits
    depend on the BLAS and LAPACK of numpy and scipy, and from 2048 inputs on on their threads; smaller layers take one.

    Raises
    ------
    TypeError
        A dtype or kind that is not supported.
    ValueError
        Shapes that do not fit, NaN or infinity in weights or statistics, another kind of statistics, or for ``"obs"`` a
        damping that is too small for the statistics to be inverted.

    Examples
    --------
    The second input is nearly the first, so the first weight can take over:

    >>> import numpy as np, gossamer as gs
    >>> stats = gs.Stats("hessian")
    >>> stats.update(np.array([[1.0, 1.0], [2.0, 2.0], [0.0, 0.5]]))
    >>> w, mask = np.array([[1.0, 1.0]]), gs.Mask.from_dense(np.array([[True, False]]))
    >>> gs.compensate(w, mask, stats).tolist()
    [[2.0, 0.0]]
    """
    f = "compensate"
    if require_text(method, f, "method") not in _METHODS:
        raise ValueError(f"{f}: method must be one of {', '.join(_METHODS)}, got {method!r}")
    share = require_number(damping, f, "damping")
    if not 0 <= share < math.inf:
        raise ValueError(f"{f}: damping must be finite and not negative, got {damping!r}")
    tensors = named(weights, f, "weights")
    masks = partner(mask, tensors, weights, f, "mask")
    all_stats = partner(stats, tensors, weights, f, "stats")
    results = {}
    for name, tensor in tensors.items():
        w = host(tensor, f, "weights")
        require_float(w, f, "weights")
        rows, cols = matrix_shape(w.shape)
        h = _hessian(all_stats[name], cols, f, name)
        bits = packed_bits(masks[name], w.shape, f, "mask", name)
        target = output(None, tensor, w.shape, w.dtype, f)
        if not w.size:
            results[name] = target.result()
            continue
        with _blas_threads(cols), np.errstate(all="ignore"):
            job = _Exact(h) if method == "exact" else _Sweep(h, share, f, name)
            _in_chunks(job, w if w.ndim > 1 else w.reshape(1, cols), bits, target.view.reshape(rows, cols), name)
        results[name] = target.result()
    return results if isinstance(weights, Mapping) else results[""]


def _hessian(given: object, cols: int, function: str, name: str) -> Host:
    h = require_stats(given, "hessian", function, name)._view
    same_shape(h, (cols, cols), function, "stats", name)
    _require_finite(h, function, "stats", name)
    return h


def _require_finite(a: Host, function: str, argument: str, name: str) -> None:
    if not np.isfinite(a).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{function}: {argument} must be finite, got {a[at]} at {at}{of(name)}")


def _in_chunks(job: _Exact | _Sweep, w: Host, bits: Host, target: Host, name: str) -> None:
    """Runs a job on some rows at a time. ``w`` is ``[rows, ...]``, ``target`` a matrix, ``bits`` its packed mask."""
    rows, cols = target.shape
    step = max(1, _CHUNK // cols)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        dense = w[part].astype(np.float64, order="C").reshape(-1, cols)
        _require_finite(dense, "compensate", "weights", name)
        kept = np.unpackbits(bits[part], axis=1, count=cols, bitorder="little").view(np.bool_)
        target[part] = job.run(dense, kept, bits[part], target.dtype)


class _Exact:
    """The least-squares solution for the rows of one layer.

    Inputs are scaled to unit norm, ``S = H / (d d')`` with ``d = sqrt(diag(H))``, and what is solved for is the
    *change* of the kept weights: ``S_KK y_K = S_KP (d w)_P``. Where few weights are pruned, their multipliers are
    cheaper: ``(inv(S))_PP z_P = (d w)_P``, and the change is ``-inv(S) z``.
    """

    def __init__(self, h: Host) -> None:
        live = h.diagonal() > 0  # an input that is always 0 says nothing about its weights: they stay
        self.live: Any = slice(None) if live.all() else np.flatnonzero(live)
        self.norms = np.sqrt(h.diagonal()[self.live])
        self.matrix = _unit_diagonal(h, live, self.norms)

    @cached_property
    def inverse(self) -> Host | None:
        factor = _cholesky(self.matrix.copy(), _INVERTIBLE)
        return None if factor is None else _inverse(factor)

    def run(self, w: Host, kept: Host, bits: Host, dtype: Any) -> Host:
        new = np.where(kept, w, 0.0)
        masked = new.astype(dtype)
        new[:, self.live] += self._changes(w[:, self.live] * self.norms, kept[:, self.live], bits) / self.norms
        refit = new.astype(dtype)  # what overflows is infinite or NaN, and never better
        better: Host = self._error(w, refit) < self._error(w, masked)
        return np.where(better[:, None], refit, masked)

    def _error(self, w: Host, v: Host) -> Host:
        change = (w[:, self.live] - v[:, self.live].astype(np.float64)) * self.norms
        return np.asarray(np.einsum("ij,ij->i", change @ self.matrix, change))

    def _changes(self, w: Host, kept: Host, bits: Host) -> Host:
        """What the kept weights gain, 0 elsewhere; weights and result are scaled."""
        n_kept = np.count_nonzero(kept, axis=1).astype(np.float64)
        n_pruned = kept.shape[1] - n_kept
        few = 2 * n_pruned**3 < n_kept**3
        saved = (n_kept[few] ** 3).sum() / 6  # multiply-adds; the inverse takes in**3
        inverse = self.inverse if saved > float(kept.shape[1]) ** 3 else None
        if inverse is None:
            few[:] = False
        pruned = np.where(kept, 0.0, w)
        changes = pruned @ self.matrix
        open_rows = (n_kept > 0) & (n_pruned > 0)
        changes = _solve_rows(self.matrix, kept, changes, _same(bits, open_rows & ~few))
        if inverse is not None:
            multipliers = _solve_rows(inverse, ~kept, pruned, _same(bits, open_rows & few))
            changes[few] = np.where(kept[few], -(multipliers[few] @ inverse), 0.0)
        return changes


class _Sweep:
    """SparseGPT's sweep for the rows of one layer. ``inv(H) = U' U`` with an upper triangular U."""

    def __init__(self, h: Host, damping: float, function: str, name: str) -> None:
        a = 2 * h
        diagonal = np.einsum("ii->i", a)  # a view that can be written
        self.dead = np.flatnonzero(diagonal == 0)
        diagonal[self.dead] = 1
        diagonal += damping * diagonal.mean()
        # From the last input to the first: J H J = L L' gives inv(H) = U' U with U = J inv(L) J, no inverse needed.
        factor = _cholesky(a[::-1, ::-1].copy(), _singular(len(a)))
        if factor is None:
            raise ValueError(
                f"{function}: damping must be greater for statistics that are singular, got {damping!r}{of(name)}"
            )
        self.upper = np.ascontiguousarray(_lapack().dtrtri(factor, lower=1, overwrite_c=1)[0][::-1, ::-1])

    def run(self, w: Host, kept: Host, bits: Host, dtype: Any) -> Host:
        u, columns = self.upper, w.T.copy()
        columns[self.dead] = 0
        for start in range(0, len(u), _BLOCK):
            stop = min(start + _BLOCK, len(u))
            errors = np.where(kept[:, start:stop].T, 0.0, 1.0)
            for j in range(start, stop):
                error = errors[j - start]
                error *= columns[j]
                error /= u[j, j]
                columns[j + 1 : stop] -= np.multiply.outer(u[j, j + 1 : stop], error)
            columns[stop:] -= u[start:stop, stop:].T @ errors
        return np.where(kept, columns.T, 0.0).astype(dtype)


def inverse_diagonal(h: Host, *, function: str = "inverse_diagonal", argument: str = "h", name: str = "") -> Host:
    """float64 ``[in]``: the diagonal of the inverse of H, infinite for the inputs that are always 0 (``H_jj = 0``).

    Only the others, the live inputs, are inverted. Where their H is singular, or so nearly that the inverse would be
    rounding errors, it is ``H + 0.01 * mean(diag(H)) * I`` over them. The criterion ``"obs"`` needs it (Hassibi and
    Stork 1992, "Second order derivatives for network pruning", NIPS; no arXiv number).

    Parameters
    ----------
    h : float64 ``[in, in]``, symmetric and positive semidefinite; ``Stats("hessian").values``.
    function, argument, name : what an error names: the public function, its argument, the tensor.

    Raises
    ------
    ValueError
        Another shape, NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> inverse_diagonal(np.array([[4.0, 0.0], [0.0, 0.0]])).tolist()
    [0.25, inf]
    """
    if h.ndim != 2 or h.shape[0] != h.shape[1]:
        raise ValueError(f"{function}: {argument} must be a square matrix, got the shape {h.shape}")
    _require_finite(h, function, argument, name)
    result = np.full(len(h), np.inf)
    live = h.diagonal() > 0
    if not live.any():
        return result
    n = int(np.count_nonzero(live))
    with _blas_threads(n):
        norms = np.sqrt(h.diagonal()[live])
        factor = _cholesky(_unit_diagonal(h, live, norms), _singular(n))
        if factor is None:  # its memory is spoilt
            matrix = _unit_diagonal(h, live, norms)
            np.einsum("ii->i", matrix)[:] += 0.01 * (norms**2).mean() / norms**2
            factor = _cholesky(matrix, 0.0)
        if factor is None:  # not semidefinite: no sum of products
            raise ValueError(f"{function}: {argument} must be positive semidefinite, got another matrix")
        root = _lapack().dtrtri(factor, lower=1, overwrite_c=1)[0]  # inv(L): the inverse is inv(L)' inv(L)
        result[live] = np.einsum("ij,ij->j", root, root) / norms**2
    return result


# ------------------------------------------------------------------------------------------------- linear algebra


def _blas_threads(inputs: int) -> AbstractContextManager[None]:
    """One for small matrices, else all; so small layers do not depend on their number either."""
    _lapack()  # it must be loaded to be limited
    return nullcontext() if inputs >= _PARALLEL else one_blas_thread()


def _lapack() -> Any:
    from scipy.linalg import lapack  # not when gossamer is imported

    return lapack


def _singular(n: int) -> float:
    """A relative pivot that rounding errors alone can leave of a singular matrix, with room to spare."""
    return 64 * n * float(np.finfo(np.float64).eps)


def _unit_diagonal(h: Host, live: Host, norms: Host) -> Host:
    """A new matrix ``h / (norms norms')`` of the live inputs."""
    a = h.copy() if live.all() else h[np.ix_(live, live)]
    a /= norms
    a /= norms[:, None]
    np.einsum("ii->i", a)[:] = 1
    return a


def _cholesky(a: Host, smallest: float) -> Host | None:
    """The lower factor of a symmetric C-contiguous matrix, in its memory and in Fortran order; 0 above it.

    None where a pivot is not greater than ``smallest`` times its diagonal element.
    """
    diagonal = a.diagonal().copy()
    factor, info = _lapack().dpotrf(a.T, lower=1, overwrite_a=1)
    return factor if info == 0 and (factor.diagonal() ** 2 > smallest * diagonal).all() else None


def _inverse(factor: Host) -> Host:
    """The inverse, symmetric to the last bit, from the lower Cholesky factor, which is overwritten."""
    lower = _lapack().dpotri(factor, lower=1, overwrite_c=1)[0]
    inverse = np.asarray(lower + lower.T)
    np.einsum("ii->i", inverse)[:] = lower.diagonal()
    return inverse


def _same(bits: Host, rows: Host) -> list[list[int]]:
    """The chosen rows, those with the same mask together."""
    groups: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(rows):
        groups.setdefault(bits[row].tobytes(), []).append(int(row))
    return list(groups.values())


def _solve_rows(a: Host, chosen: Host, b: Host, groups: list[list[int]]) -> Host:
    """Solves ``a[S, S] y[S] = b[S]`` for the rows of b, S what is chosen in the row; y is 0 elsewhere."""
    y = np.zeros_like(b)
    for rows in groups:
        index = np.flatnonzero(chosen[rows[0]])
        at = np.ix_(np.array(rows), index)
        y[at] = _solve(a, index, b[at].T).T
    return y


def _solve(a: Host, index: Host, b: Host) -> Host:
    """``inv(a[index, index]) @ b``. Where that is singular, the limit of a ridge that goes to 0, nearly.

    Three steps with a small ridge, each from where the last one ended (the proximal point method): the error falls in
    every step, and what the matrix does not see stays 0.
    """
    lapack, tiny = _lapack(), _singular(len(index))
    factor = _cholesky(a[index].take(index, axis=1), tiny)
    if factor is not None:
        return np.asarray(lapack.dpotrs(factor, b, lower=1)[0])
    square = a[index].take(index, axis=1)
    damped = square.copy()
    np.einsum("ii->i", damped)[:] += tiny * square.diagonal()
    factor, y = _cholesky(damped, 0.0), np.zeros_like(b)
    for _ in range(3 if factor is not None else 0):
        y += lapack.dpotrs(factor, b - square @ y, lower=1)[0]
    return y
