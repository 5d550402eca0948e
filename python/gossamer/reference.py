# SPDX-License-Identifier: Apache-2.0
"""The slow truth: every operation in plain numpy, written to be read rather than to be fast.

The compiled core must agree with this module: bit for bit for scores, masks, pruning, adjusting and statistics, within
the tolerances of the documentation for products. It needs nothing but numpy and shares no code with the core.

Conventions: higher score = keep. ``W`` is ``[out, in]``, activations are ``[batch, in]``, an array of more than two
dimensions is the matrix ``[shape[0], rest]`` and a vector is one row. Masks are bool arrays, True = kept. *Params* are
one array or a mapping of names to arrays; a mapping gives a dict back. Functions never change their arguments.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Params = Array | Mapping[str, Array]


def as_matrix(a: Array) -> Array:
    """``a`` as ``[shape[0], rest]``; a vector (or a scalar) is one row."""
    return a.reshape(a.shape[0], math.prod(a.shape[1:])) if a.ndim > 1 else a.reshape(1, a.size)


def _named(params: Any) -> dict[str, Any]:
    return dict(params) if isinstance(params, Mapping) else {"": params}


def _like(params: Any, named: dict[str, Any]) -> Any:
    return named if isinstance(params, Mapping) else named[""]


@np.errstate(all="ignore")
def score(
    weights: Params,
    grads: Params | None = None,
    *,
    method: str | Callable[..., Any] = "magnitude",
    stats: Any = None,
    seed: int | None = None,
) -> Any:
    """Importance of every weight, in the shape and dtype of the weights (each product is rounded once).

    ``grads`` and the values of ``stats`` (anything with ``.values``) are converted to that dtype first.

    - magnitude: ``|w|`` (Han 2015, arXiv 1506.02626)
    - gradient: ``|g|``, g the mean gradient (RigL's growth score, Evci 2019, arXiv 1911.11134)
    - taylor: ``|w * g|`` (Molchanov 2016, arXiv 1611.06440)
    - movement: ``-sum_t g_t * w_t``, signed (Sanh 2020, arXiv 2005.07683), from ``Stats("movement")``
    - wanda: ``|W_ij| * ||X_j||_2`` (Sun 2023, arXiv 2306.11695), from ``Stats("norm")``
    - random: :func:`random_score`, its index counted on through the arrays of a mapping
    - a callable ``(weights, grads, stats) -> scores``, called once per array
    """
    result: dict[str, Any] = {}
    start = 0
    for name, w in _named(weights).items():
        g = None if grads is None else _named(grads)[name]
        one = stats[name] if isinstance(stats, Mapping) else stats
        if callable(method):
            result[name] = method(w, g, one)
        elif method == "magnitude":
            result[name] = np.abs(w)
        elif method == "gradient":
            result[name] = np.abs(np.asarray(g, dtype=w.dtype))
        elif method == "taylor":
            result[name] = np.abs(w * np.asarray(g, dtype=w.dtype))
        elif method == "movement":
            result[name] = np.asarray(one.values, dtype=w.dtype).reshape(w.shape)
        elif method == "wanda":
            result[name] = (np.abs(as_matrix(w)) * np.asarray(one.values, dtype=w.dtype)).reshape(w.shape)
        elif method == "random":
            result[name] = random_score(w.shape, w.dtype, seed=seed or 0, start=start)
        else:
            raise ValueError(f"score: method must be a known criterion, got {method!r}")
        start += w.size
    return _like(weights, result)


def random_score(shape: tuple[int, ...], dtype: Any, *, seed: int, start: int = 0) -> Array:
    """Uniform scores in [0, 1): the top 24 (float32) or 53 (float64) bits of a hash of seed and flat index.

    The hash is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, doi 10.1145/2660193.2660195; it has no arXiv number).
    """
    i = np.arange(start, start + math.prod(shape), dtype=np.uint64)
    z = np.uint64(seed % 2**64) + (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # wraps modulo 2^64
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    bits = 24 if np.dtype(dtype) == np.float32 else 53
    return ((z >> np.uint64(64 - bits)).astype(np.float64) * 2.0**-bits).astype(dtype).reshape(shape)


def kept_count(n: int, sparsity: float) -> int:
    """How many of ``n`` are kept at a sparsity in [0, 1], in binary64 (the rule settles every half)."""
    return n - math.floor(n * round(sparsity, 12) + 0.5)


def unit_grid(shape: tuple[int, ...], pattern: str) -> tuple[int, int, int, int]:
    """``(unit rows, unit columns, R, C)``: a pattern is a grid of units, each R x C elements of the matrix.

    Filters are rows (Li 2016, arXiv 1608.08710), blocks as in Narang 2017 (arXiv 1711.02782).
    """
    rows, cols = as_matrix(np.empty(shape, dtype=bool)).shape
    if pattern == "row":
        return rows, 1, 1, cols
    if pattern == "col":
        return 1, cols, rows, 1
    block = re.fullmatch(r"block:(\d+)x(\d+)", pattern)
    r, c = (int(block[1]), int(block[2])) if block else (1, 1)
    if rows % r or cols % c:
        raise ValueError(f"topk_mask: pattern {pattern} must divide the matrix, got {rows} x {cols}")
    return rows // r, cols // c, r, c


@np.errstate(all="ignore")
def unit_scores(scores: Array, pattern: str = "element") -> NDArray[np.float64]:
    """float64 ``[unit rows, unit columns]``: the sum of the scores in each unit, in one fixed order.

    A unit is its row segments from top to bottom. A segment is summed in 8 lanes that start at 0.0 (lane j takes
    elements j, j + 8, ...), the lanes as ``((l0+l4)+(l2+l6))+((l1+l5)+(l3+l7))``, and the segments from top to bottom.
    A sum in any other order may differ in the last bit, and then in the mask.
    """
    unit_rows, unit_cols, r, c = unit_grid(scores.shape, pattern)
    segments = as_matrix(scores).astype(np.float64).reshape(unit_rows, r, unit_cols, c).transpose(0, 2, 1, 3)
    lanes = np.zeros((unit_rows, unit_cols, r, 8))
    for j in range(0, c, 8):
        part = segments[..., j : j + 8]
        lanes[..., : part.shape[-1]] += part
    l0, l1, l2, l3, l4, l5, l6, l7 = np.moveaxis(lanes, -1, 0)
    sums = ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))
    return np.asarray(sum(np.moveaxis(sums, -1, 0), np.zeros((unit_rows, unit_cols))))


def _best(key: Array, allowed: Array, count: int, nan: str, first: Array | None = None) -> Array:
    """In each row of ``key [groups, size]`` the ``count`` best: key descending, then index ascending.

    ``first`` marks what is taken before everything else (the floor of ``min_density``).
    """
    if (allowed.sum(axis=1) < count).any():
        raise ValueError(f"topk_mask: prior must leave at least {count} positions in every group, got fewer")
    is_nan = np.isnan(key)
    rank = np.where(is_nan, -1 if nan == "keep" else 1, 0)
    rank = np.where(allowed, rank if first is None else np.where(first, -2, rank), 2)
    order = np.lexsort((-np.where(is_nan, 0.0, key), rank), axis=-1)  # stable: ties stay in index order; -0 == +0
    keep = np.zeros(key.shape, dtype=bool)
    np.put_along_axis(keep, order[:, :count], True, axis=1)
    return keep


def topk_mask(
    scores: Params,
    *,
    sparsity: float | None = None,
    nnz: int | None = None,
    threshold: float | None = None,
    pattern: str = "element",
    group: str = "tensor",
    min_density: float = 0.0,
    prior: Params | None = None,
    nan: str = "raise",
) -> Any:
    """bool masks of the highest scores, in exactly the number asked for; ties: the lower flat index is kept.

    - ``sparsity`` (see :func:`kept_count`) or ``nnz`` count units of the pattern in each group; with ``threshold`` a
      unit is kept iff its score is at least the threshold, compared exactly.
    - ``pattern``: element, row, col, block:RxC, or N:M, which keeps N of every M consecutive along a row of the matrix
      (Mishra 2021, arXiv 2104.08378); with N:M the windows are the groups.
    - ``group``: tensor, row (a row of units), global (all arrays together, in the order of the mapping).
    - ``min_density``: with global, a floor for each array, taken first, inside the same total.
    - ``prior``: masks; a unit may be kept only where the prior keeps all its elements.
    - ``nan``: raise, prune (rank below -inf, kept only when nothing else is left), keep (above +inf).
    """
    named = _named(scores)
    window = re.fullmatch(r"(\d+):(\d+)", pattern)
    if sum(given is not None for given in (sparsity, nnz, threshold)) != 1 and not window:
        raise ValueError("topk_mask: exactly one of sparsity, nnz and threshold must be given")
    if pattern == "row" and group == "row":
        raise ValueError("topk_mask: group must not be row for the pattern row, whose groups would be single units")
    if min_density and group != "global":
        raise ValueError(f"topk_mask: min_density must be 0 unless group is global, got {min_density}")
    sets: list[tuple[Array, Array]] = []  # for each array the scores and the freedom of its units, [groups, size]
    for name, s in named.items():
        if nan == "raise" and np.isnan(s).any():
            raise ValueError(f"topk_mask: scores must not be NaN, got NaN in {name!r} at {np.isnan(s).argmax()}")
        unit_rows, unit_cols, r, c = unit_grid(s.shape, pattern)
        if window and unit_cols % int(window[2]):
            raise ValueError(f"topk_mask: pattern {pattern} must divide the columns, got {unit_cols}")
        size = int(window[2]) if window else unit_cols if group == "row" else unit_rows * unit_cols
        groups = unit_rows * unit_cols // size if size else 1
        free = np.ones(s.shape, dtype=bool) if prior is None else _named(prior)[name]
        ok = as_matrix(free).reshape(unit_rows, r, unit_cols, c).all(axis=(1, 3))
        sets.append((unit_scores(s, pattern).reshape(groups, size), ok.reshape(groups, size)))

    def count(size: int) -> int:
        if window:
            return int(window[1])
        return kept_count(size, sparsity) if sparsity is not None else int(nnz or 0)

    if threshold is not None:
        keeps = [ok & ((key >= threshold) | (np.isnan(key) & (nan == "keep"))) for key, ok in sets]
    elif group != "global" or window:
        keeps = [_best(key, ok, count(key.shape[1]), nan) for key, ok in sets]
    else:
        floor = [_best(key, ok, kept_count(key.size, 1.0 - min_density), nan) for key, ok in sets]
        key, ok, first = (np.concatenate(part, axis=1) for part in (*zip(*sets, strict=True), floor))
        if first.sum() > count(key.size):
            raise ValueError(f"topk_mask: min_density must fit into {count(key.size)} units, got {first.sum()}")
        keeps = np.split(_best(key, ok, count(key.size), nan, first)[0], np.cumsum([k.size for k, _ in sets])[:-1])

    masks: dict[str, Array] = {}
    for (name, s), keep in zip(named.items(), keeps, strict=True):
        unit_rows, unit_cols, r, c = unit_grid(s.shape, pattern)
        masks[name] = keep.reshape(unit_rows, unit_cols).repeat(r, axis=0).repeat(c, axis=1).reshape(s.shape)
    return _like(scores, masks)


def pack_bits(mask: Array) -> NDArray[np.uint8]:
    """uint8 ``[rows, ceil(cols / 8)]``: little-endian bits, the padding bits of each row are zero."""
    return np.packbits(as_matrix(mask), axis=1, bitorder="little")


def apply_mask(weights: Params, mask: Params) -> Any:
    """The weights where the mask keeps them, +0 elsewhere (where a weight is NaN or infinite, too)."""
    return _like(weights, {k: np.where(_named(mask)[k], w, w.dtype.type(0)) for k, w in _named(weights).items()})


def prune(weights: Params, grads: Params | None = None, **options: Any) -> tuple[Any, Any]:
    """``score``, ``topk_mask``, ``apply_mask``; ``group=None`` is the method's own: wanda compares within rows."""
    method = options.pop("method", "magnitude")
    scores = score(weights, grads, method=method, stats=options.pop("stats", None), seed=options.pop("seed", None))
    group = options.pop("group", None) or ("row" if method == "wanda" and options.get("pattern") != "row" else "tensor")
    mask = topk_mask(scores, group=group, **options)
    return apply_mask(weights, mask), mask


@np.errstate(all="ignore")
def adjust(weights: Params, scores: Params, rate: float, *, rule: str = "sign") -> Any:
    """Move the weights by their scores; every operation is rounded to the dtype of the weights.

    - sign: ``w - rate * sign(s)``, sign(0) = 0 (with the signed gradient: signSGD, Bernstein 2018, arXiv 1802.04434)
    - scale: ``w * (1 + rate * (s - c) / d)``, c the lower median of s, d = max|s - c|; w where d = 0; no paper, our own
    """
    result: dict[str, Any] = {}
    for name, w in _named(weights).items():
        s = _named(scores)[name].astype(w.dtype)
        r = w.dtype.type(rate)
        if rule == "sign":
            result[name] = w - r * np.sign(s)
        else:
            c = np.sort(s, axis=None)[(s.size - 1) // 2] if s.size else w.dtype.type(0)
            t = s - c
            d = np.abs(t).max(initial=0)
            result[name] = w * (1 + r * (t / d)) if d else w.copy()
    return _like(weights, result)


class Stats:
    """Sums over training or calibration steps, in float64, each product rounded and then added, in row order.

    - norm: ``sum x_j^2`` for each input column of ``x [..., in]``; values: the 2-norms (Wanda, arXiv 2306.11695)
    - grad2: ``sum g^2`` over the samples of ``g [batch, *shape]``; values: the mean (Theis 2018, arXiv 1801.05787)
    - movement: ``-sum g * w`` (Sanh 2020, arXiv 2005.07683)

    ``decay`` d: the state becomes ``d * state + new``, the count of samples as well.
    """

    def __init__(self, kind: str, *, decay: float | None = None) -> None:
        self.kind, self.decay, self.state, self.count = kind, decay, np.zeros(()), 0.0

    def update(self, *arrays: Array) -> Stats:
        a = arrays[0].astype(np.float64)
        if self.kind == "movement":
            new, count = -(arrays[1].astype(np.float64) * a), 1
        else:
            samples = a.reshape(math.prod(a.shape[:-1]), a.shape[-1]) if self.kind == "norm" else a
            new, count = np.zeros(samples.shape[1:]), len(samples)
            for sample in samples:
                new = new + sample * sample
        d = 1.0 if self.decay is None else self.decay
        self.state, self.count = d * self.state + new, d * self.count + count
        return self

    @property
    def values(self) -> Array:
        if self.kind == "norm":
            return np.asarray(np.sqrt(self.state))
        return self.state / self.count if self.kind == "grad2" else self.state.copy()


@np.errstate(all="ignore")
def activation_and_derivative(z: Array, name: str | None) -> tuple[Array, Array]:
    """``(act(z), act'(z))`` in float64: relu (derivative 0 at 0), gelu (erf), gelu_tanh, silu, sigmoid, tanh.

    relu: Nair 2010, ICML; gelu: Hendrycks 2016, arXiv 1606.08415; silu: Elfwing 2017, arXiv 1702.03118.
    """
    if name is None:
        return z, np.ones_like(z)
    if name == "relu":
        return np.maximum(z, 0.0), np.where(z > 0, 1.0, 0.0)
    if name == "gelu":
        phi = 0.5 * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(z / math.sqrt(2.0)))
        return z * phi, phi + z * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    if name == "gelu_tanh":
        k = math.sqrt(2.0 / math.pi)
        t = np.tanh(k * (z + 0.044715 * z**3))
        return 0.5 * z * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * k * (1.0 + 3 * 0.044715 * z * z)
    if name == "tanh":
        return np.tanh(z), 1.0 - np.tanh(z) ** 2
    s = np.exp(-np.logaddexp(0.0, -z))
    return (z * s, s * (1.0 + z * (1.0 - s))) if name == "silu" else (s, s * (1.0 - s))


def linear(
    x: Array, a: Array, *, bias: Array | None = None, activation: str | None = None, residual: Array | None = None
) -> NDArray[np.float64]:
    """float64 ``act(X @ A.T + bias) + residual`` for X ``[batch, in]`` (or ``[in]``), a dense A ``[out, in]``."""
    z = x.astype(np.float64) @ as_matrix(a).astype(np.float64).T
    y = activation_and_derivative(z if bias is None else z + bias.astype(np.float64), activation)[0]
    return np.asarray(y if residual is None else y + residual)


def matmul(a: Array, x: Array, *, residual: Array | None = None, **fused: Any) -> NDArray[np.float64]:
    """float64 ``act(A @ X + bias[:, None]) + residual`` for a dense A ``[rows, cols]``, X ``[cols, n]``, ``[cols]``."""
    return linear(x.T, a, residual=None if residual is None else residual.T, **fused).T


def linear_backward(
    dy: Array, x: Array, a: Array, mask: Array, *, bias: Array | None = None, activation: str | None = None
) -> tuple[Array, Array, Array]:
    """float64 ``(dx, dvalues, dbias)`` of ``act(X @ A.T + bias)``; ``dvalues`` in row-major order of the kept."""
    dz = dy.astype(np.float64) * activation_and_derivative(linear(x, a, bias=bias), activation)[1]
    return dz @ as_matrix(a).astype(np.float64), (dz.T @ x.astype(np.float64))[mask], dz.sum(axis=0)


def sddmm(x: Array, y: Array, pattern: Array) -> NDArray[np.float64]:
    """float64 ``X @ Y.T`` where the bool ``pattern`` keeps, 0 elsewhere (named as in Gale 2020, arXiv 2006.10901)."""
    return np.where(pattern, x.astype(np.float64) @ y.astype(np.float64).T, 0.0)


def csr_from_dense(w: Array, mask: Array | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64], Array]:
    """``(indptr, indices, values)`` of the kept positions, row-major; without a mask those whose value is not 0."""
    kept = as_matrix(w) != 0 if mask is None else as_matrix(mask)
    indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int64)
    return indptr, np.nonzero(kept)[1].astype(np.int64), as_matrix(w)[kept]
