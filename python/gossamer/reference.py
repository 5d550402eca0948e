# SPDX-License-Identifier: Apache-2.0
"""The slow truth: every operation in plain numpy, written to be read rather than to be fast.

The compiled core must agree with this module: bit for bit for scores, masks, pruning, adjusting and statistics, within
the tolerances of the documentation for products. It needs nothing but numpy and shares no code with the core.

Conventions: higher score = keep. ``W`` is ``[out, in]``, activations are ``[batch, in]``, an array of more than two
dimensions is the matrix ``[shape[0], rest]`` and a vector is one row. Masks are bool arrays, True = kept. *Params* are
one array or a mapping of names to arrays; a mapping gives a dict back. Functions never change their arguments.

Scores are computed in a dtype T: float64 for float64 weights, else float32 (:func:`compute_dtype`). Weights, gradients
and statistics are converted to T first, and every operation rounds once in T, in the order written here; "float64"
in a formula says that it is computed there and rounded to T at the end. The file is long so that it is all one page
to check a criterion, a mask or a product against: nothing here is imported from anywhere.
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


def compute_dtype(dtype: Any) -> Any:
    """T: float64 for float64, float32 for float32, float16 and bfloat16 (whose values it holds exactly)."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


def _exact_sum(a: Array) -> float:
    """The sum of non-negative numbers, rounded once."""
    try:
        return math.fsum(a.ravel().tolist())
    except OverflowError:  # beyond the largest float64: infinite, if all of them are numbers
        return float(a.astype(np.float64).sum())


def taylor2_score(w: Any, g: Any, values: Any = None) -> Any:
    """``p * p``, ``p = w * g`` (Molchanov 2019, arXiv 1906.10771). Pruning whole units sums p first: :func:`prune`."""
    p = w * g
    return p * p


def fisher_score(w: Any, g: Any, values: Array) -> Any:
    """``w^2 * a``, ``a = E[g^2] / 2`` from ``Stats("grad2")``: the mean of squares, not the square of the mean.

    Optimal brain damage (LeCun 1989, NeurIPS 2) with the empirical Fisher information (Theis 2018, arXiv 1801.05787).
    """
    return (w * w) * (0.5 * values).astype(w.dtype).reshape(w.shape)


def inverse_diagonal(h: Array) -> NDArray[np.float64]:
    """float64 ``[in]``: the diagonal of H^-1 for a symmetric H ``[in, in]``; inf in dead columns, where H_jj = 0.

    Dead columns are left out. What remains is inverted as it is when it is safely positive definite (whatever the scale
    of its inputs), else with the damping ``0.01 * mean(diagonal)`` of Frantar 2023 (arXiv 2301.00774), so that a
    singular H has an answer.
    """
    diagonal = np.full(len(h), np.inf)
    live = np.diagonal(h) != 0
    if live.any():
        part = h[np.ix_(live, live)].astype(np.float64)
        norms = np.sqrt(np.diagonal(part))
        if np.linalg.eigvalsh(part / np.outer(norms, norms))[0] <= 64 * len(part) * np.finfo(np.float64).eps:
            part = part + 0.01 * np.mean(np.diagonal(part)) * np.eye(len(part))
        diagonal[live] = np.diagonal(np.linalg.inv(part))
    return diagonal


def obs_score(w: Array, g: Any, values: Array) -> Any:
    """``w_ij^2 * a_j``, ``a_j = 1 / (2 [H^-1]_jj)``, H = X^T X from ``Stats("hessian")``; 0 in dead columns.

    The optimal brain surgeon's saliency (Hassibi 1992, NeurIPS 5).
    """
    matrix = as_matrix(w)
    return ((matrix * matrix) * (1.0 / (2.0 * inverse_diagonal(values))).astype(w.dtype)).reshape(w.shape)


def ria_score(w: Array, g: Any, values: Array) -> Any:
    """``(|w_ij| / R_i + |w_ij| / C_j) * sqrt(||X_j||_2)``, norms from ``Stats("norm")`` (Zhang, ICLR 2024).

    R and C are the sums of |w| in the row and the column; where one is 0, so is |w|, and it is divided by 1 instead.
    """
    matrix = np.abs(as_matrix(w))
    rows = np.array([_exact_sum(row) for row in matrix], w.dtype).reshape(-1, 1)
    cols = np.array([_exact_sum(col) for col in matrix.T], w.dtype)
    rows[rows == 0] = 1
    cols[cols == 0] = 1
    return ((matrix / rows + matrix / cols) * np.sqrt(values).astype(w.dtype)).reshape(w.shape)


def lamp_score(w: Array, g: Any = None, values: Any = None) -> Array:
    """float64 ``v / sum of v`` from this weight on in ascending order (Lee 2020, arXiv 2010.07611).

    ``v = (|w| / m)^2``, m the largest |w| (an infinite m counts only infinite weights). The sums run from the largest
    |w| down, ties from the lower index up: the first score is exactly 1. NaN weights have the score NaN and stand in no
    sum; in a tensor of zeros all scores are 0.
    """
    magnitudes = np.abs(w.ravel()).astype(np.float64)
    order = np.argsort(-magnitudes, kind="stable")  # NaN comes last
    sorted_ = magnitudes[order][: np.count_nonzero(~np.isnan(magnitudes))]
    scores = np.full(w.size, np.nan)
    if sorted_.size:
        m = sorted_[0]
        ratio = np.isinf(sorted_).astype(np.float64) if np.isinf(m) else sorted_ / (m if m else 1.0)
        v = ratio * ratio
        scores[order[: v.size]] = v / np.cumsum(v) if m else 0.0
    return scores.astype(w.dtype).reshape(w.shape)


def fpgm_score(w: Array, g: Any = None, values: Any = None) -> Array:
    """float64 ``sum_k ||F_i - F_k||_2`` for every element of filter (row) i (He 2018, arXiv 1811.00250).

    A filter near the geometric median is replaceable by the others. Meant for ``pattern="row"``. The squares of a
    distance are summed as the elements of a unit are (:func:`unit_scores`), the distances with k ascending.
    """
    filters = as_matrix(w).astype(np.float64)
    scores = np.empty(filters.shape, w.dtype)
    for i, row in enumerate(filters):
        differences = filters - row
        distances = np.sqrt(unit_scores(differences * differences, "row")[:, 0])
        scores[i] = np.cumsum(distances)[-1]
    return scores.reshape(w.shape)


# criterion -> its score from weights and gradients in T and, in float64, the values of the statistics
CRITERIA: dict[str, Callable[[Any, Any, Any], Any]] = {
    "magnitude": lambda w, g, values: np.abs(w),
    "gradient": lambda w, g, values: np.abs(g),
    "taylor": lambda w, g, values: np.abs(w * g),
    "taylor2": taylor2_score,
    "movement": lambda w, g, values: values.astype(w.dtype).reshape(w.shape),
    "fisher": fisher_score,
    "obs": obs_score,
    "wanda": lambda w, g, values: (np.abs(as_matrix(w)) * values.astype(w.dtype)).reshape(w.shape),
    "ria": ria_score,
    "snip": lambda w, g, values: np.abs(w * g),  # divided by the sum over all arrays in score
    "grasp": lambda w, g, values: w * g,
    "synflow": lambda w, g, values: w * g,
    "lamp": lamp_score,
    "fpgm": fpgm_score,
}
STATISTICS = {"movement": "movement", "fisher": "grad2", "obs": "hessian", "wanda": "norm", "ria": "norm"}


@np.errstate(all="ignore")
def score(
    weights: Params,
    grads: Params | None = None,
    *,
    method: str | Callable[..., Any] = "magnitude",
    stats: Any = None,
    seed: int | None = None,
) -> Any:
    """Importance of every weight, in the shape of the weights and in T.

    ``grads`` and the values of ``stats`` (anything with ``.values``) are converted to T first.

    - magnitude: ``|w|`` (Han 2015, arXiv 1506.02626)
    - gradient: ``|g|``, g the mean gradient (RigL's growth score, Evci 2019, arXiv 1911.11134)
    - taylor: ``|w * g|`` (Molchanov 2016, arXiv 1611.06440); taylor2: :func:`taylor2_score`
    - movement: ``-sum_t g_t * w_t``, signed (Sanh 2020, arXiv 2005.07683), from ``Stats("movement")``
    - fisher, obs: :func:`fisher_score`, :func:`obs_score`
    - wanda: ``|W_ij| * ||X_j||_2`` (Sun 2023, arXiv 2306.11695), from ``Stats("norm")``; ria: :func:`ria_score`
    - snip: ``|w * g| / S``, S the sum of ``|w * g|`` over all arrays, 1 in place of 0 (Lee 2018, arXiv 1810.02340)
    - grasp: ``w * g`` with ``grads`` = H g, signed: the paper removes the highest ``-w * (H g)`` first (Wang 2020,
      arXiv 2002.07376)
    - synflow: ``w * g`` with ``grads`` = dR/dw, R = 1^T prod |W| 1 (Tanaka 2020, arXiv 2006.05467). R overflows float32
      in a deep network, so float64 ``grads`` make T float64 whatever the weights
    - lamp, fpgm: :func:`lamp_score`, :func:`fpgm_score`
    - random: :func:`random_score`, its index counted on through the arrays of a mapping
    - a callable ``(weights, grads, stats) -> scores``, called once per array; its T is that of the dtype it returns
    """
    result: dict[str, Any] = {}
    start = 0
    for name, w in _named(weights).items():
        g = None if grads is None else _named(grads)[name]
        one = stats[name] if isinstance(stats, Mapping) else stats
        T = compute_dtype(np.float64 if method == "synflow" and g is not None and g.dtype == np.float64 else w.dtype)
        if callable(method):
            scores = method(w, g, one)
            result[name] = scores.astype(compute_dtype(scores.dtype))
        elif method == "random":
            result[name] = random_score(w.shape, T, seed=seed or 0, start=start)
        elif method in CRITERIA:
            values = np.asarray(one.values, dtype=np.float64) if method in STATISTICS else None
            result[name] = CRITERIA[method](w.astype(T), None if g is None else g.astype(T), values)
        else:
            raise ValueError(f"score: method must be a known criterion, got {method!r}")
        start += w.size
    if method == "snip":
        total = _exact_sum(np.concatenate([s.astype(np.float64).ravel() for s in result.values()]))
        result = {name: s / (s.dtype.type(total) or s.dtype.type(1)) for name, s in result.items()}
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


def squared_unit_scores(scores: Array, pattern: str) -> NDArray[np.float64]:
    """The square of :func:`unit_scores`, in float64: how taylor2 ranks units (Molchanov 2019, arXiv 1906.10771)."""
    sums = unit_scores(scores, pattern)
    return sums * sums


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


@np.errstate(all="ignore")
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
    score_units: Callable[[Array, str], Array] = unit_scores,
) -> Any:
    """bool masks of the highest scores, in exactly the number asked for; ties: the lower flat index is kept.

    - ``sparsity`` (see :func:`kept_count`) or ``nnz`` count units of the pattern in each group; with ``threshold`` a
      unit is kept iff its score is at least the threshold, compared exactly.
    - ``pattern``: element, row, col, block:RxC, or N:M, which keeps N of every M consecutive along a row of the matrix
      (Mishra 2021, arXiv 2104.08378); with N:M the windows are the groups.
    - ``group``: tensor, row (a row of units), global (all arrays together, in the order of the mapping).
    - ``min_density``: with global, a floor for each array, taken first, inside the same total.
    - ``prior``: masks; a unit may be kept only where the prior keeps all its elements.
    - ``nan``, of a score or of a unit's sum (inf - inf): raise, prune (rank below -inf, kept only when nothing else is
      left), keep (above +inf).
    - ``score_units``: what the units are ranked by, for :func:`prune`.
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
        units = score_units(s, pattern)
        if nan == "raise" and np.isnan(units).any():
            raise ValueError(f"topk_mask: the scores of a unit must have a sum, got inf - inf in {name!r}")
        sets.append((units.reshape(groups, size), ok.reshape(groups, size)))

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


def default_group(method: Any, pattern: str, mapping: bool) -> str:
    """What competes unless ``group`` says otherwise: the criterion's own; whole rows cannot compete within a row."""
    if method in ("wanda", "ria", "obs") and pattern != "row":
        return "row"
    return "global" if mapping and method in ("snip", "grasp", "synflow", "lamp") else "tensor"


@np.errstate(all="ignore")
def prune(weights: Params, grads: Params | None = None, **options: Any) -> tuple[Any, Any]:
    """``score``, ``topk_mask``, ``apply_mask``; ``group=None`` is the method's own (:func:`default_group`).

    taylor2 with whole units (row, col, block) ranks them by ``(sum of w * g)^2``, in float64, not by the sum of the
    element-wise scores.
    """
    method, stats, seed = (options.pop(name, None) for name in ("method", "stats", "seed"))
    method, pattern = method or "magnitude", options.get("pattern", "element")
    group = options.pop("group", None) or default_group(method, pattern, isinstance(weights, Mapping))
    if method == "taylor2" and pattern.startswith(("row", "col", "block")):
        products = score(weights, grads, method="grasp")  # w * g, signed
        mask = topk_mask(products, group=group, score_units=squared_unit_scores, **options)
    else:
        mask = topk_mask(score(weights, grads, method=method, stats=stats, seed=seed), group=group, **options)
    return apply_mask(weights, mask), mask


@np.errstate(all="ignore")
def adjust(weights: Params, scores: Params, rate: float, *, rule: str = "sign") -> Any:
    """Move the weights by their scores; every operation is rounded to T, and the result to the dtype of the weights.

    - sign: ``w - rate * sign(s)``, sign(0) = 0 (with the signed gradient: signSGD, Bernstein 2018, arXiv 1802.04434)
    - scale: ``w * (1 + rate * (s - c) / d)``, c the lower median of s, d = max|s - c|; w where d = 0; no paper, our own
    """
    result: dict[str, Any] = {}
    for name, original in _named(weights).items():
        T = compute_dtype(original.dtype)
        w, s, r = original.astype(T), _named(scores)[name].astype(T), T(rate)
        if rule == "sign":
            moved = w - r * np.sign(s)
        else:
            c = np.sort(s, axis=None)[(s.size - 1) // 2] if s.size else T(0)
            t = s - c
            d = np.abs(t).max(initial=0)
            moved = w * (1 + r * (t / d)) if d else w
        result[name] = moved.astype(original.dtype)
    return _like(weights, result)


class Stats:
    """Sums over training or calibration steps, in float64, each product rounded and then added, in row order.

    - norm: ``sum x_j^2`` for each input column of ``x [..., in]``; values: the 2-norms (Wanda, arXiv 2306.11695)
    - grad2: ``sum g^2`` over the samples of ``g [batch, *shape]``; values: the mean (Theis 2018, arXiv 1801.05787)
    - hessian: ``sum x_i x_j`` over the rows of ``x [..., in]``; values: H = X^T X (Hassibi 1992, NeurIPS 5)
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
            samples = a if self.kind == "grad2" else a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
            new, count = np.zeros(samples.shape[1:] * (2 if self.kind == "hessian" else 1)), len(samples)
            for sample in samples:
                new = new + (np.outer(sample, sample) if self.kind == "hessian" else sample * sample)
        d = 1.0 if self.decay is None else self.decay
        self.state, self.count = d * self.state + new, d * self.count + count
        return self

    @property
    def values(self) -> Array:
        if self.kind == "norm":
            return np.asarray(np.sqrt(self.state))
        return self.state / self.count if self.kind == "grad2" else self.state.copy()


def compensate(weights: Params, mask: Params, stats: Any, *, method: str = "exact", damping: float = 0.01) -> Any:
    """New values for the kept weights, 0 elsewhere, for a small ``||X (w - v)||^2`` in every row w; in float64.

    - exact: least squares over the kept set K, ``v_K = w_K + pinv(H_KK) H_KP w_P`` (Hassibi 1992, NeurIPS 5)
    - obs: SparseGPT's sweep with a given mask (Frantar 2023, arXiv 2301.00774), one column after the other:
      with ``inv(2 H + damping * mean(diag) * I) = U^T U``, the error ``w_j / U_jj`` of a pruned weight times U_j is
      taken from the weights to its right. Dead columns get 1 on the diagonal, before its mean, and weight 0.
    """
    result: dict[str, Any] = {}
    for name, w in _named(weights).items():
        h = (stats[name] if isinstance(stats, Mapping) else stats).values
        kept, v = as_matrix(_named(mask)[name]), as_matrix(w).astype(np.float64)
        if method == "exact":
            for row, k in zip(v, kept, strict=True):
                if k.any():
                    row[k] += np.linalg.lstsq(h[np.ix_(k, k)], h[np.ix_(k, ~k)] @ row[~k])[0]
                row[~k] = 0
        elif len(h):
            dead = np.diagonal(h) == 0
            a = 2 * h + np.diag(dead.astype(np.float64))
            a = a + damping * np.mean(np.diagonal(a)) * np.eye(len(a))
            u = np.linalg.cholesky(np.linalg.inv(a)).T
            v[:, dead] = 0
            for j in range(len(a)):
                error = np.where(kept[:, j], 0.0, v[:, j] / u[j, j])
                v[:, j:] -= np.outer(error, u[j, j:])
                v[~kept[:, j], j] = 0
        result[name] = v.astype(w.dtype).reshape(w.shape)
    return _like(weights, result)


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


def allocate(params: Params, sparsity: float, *, method: str = "uniform", stats: Any = None) -> Any:
    """The sparsity of each array, the total over all elements being ``sparsity``; for one array one float.

    Densities d (kept shares), n elements each:

    - uniform: all the same
    - er: ``d = min(1, eps (rows + cols) / (rows cols))``, rows and cols the first two dimensions (Mocanu 2018, arXiv
      1707.04780); erk: ``d = min(1, eps sum(shape) / prod(shape))`` (Evci 2019, arXiv 1911.11134)
    - lamp: what the global top-k of the LAMP scores keeps of each (Lee 2020, arXiv 2010.07611)
    - owl: ``d = clip(2 lambda (D - min D) / (max D - min D) + c, 0, 1)``, lambda = 0.08, D the share of the array's
      Wanda scores above 5 times their mean (Yin 2023, arXiv 2310.05175); uniform where all D are the same

    ``eps`` and ``c`` are what ``sum n d = (1 - sparsity) sum n`` asks for, found by bisection (a rising function).
    """
    named = {name: w if w.ndim > 1 else w.reshape(1, w.size) for name, w in _named(params).items()}
    filled = {name: w for name, w in named.items() if w.size}
    if method == "lamp" and filled:
        kept = topk_mask(score(filled, method="lamp"), sparsity=sparsity, group="global")
        result = {name: float(1 - mask.mean()) for name, mask in kept.items()}
        return _like(params, {name: result.get(name, sparsity) for name in named})

    def density(name: str, unknown: float) -> float:
        w = filled[name]
        if method in ("er", "erk"):
            extents = w.shape[:2] if method == "er" else w.shape
            return float(min(1.0, unknown * sum(extents) / math.prod(extents)))
        return float(np.clip(outliers.get(name, 0.0) + unknown, 0.0, 1.0))

    outliers: dict[str, float] = {}
    if method == "owl":
        for name, w in filled.items():
            one = stats[name] if isinstance(stats, Mapping) else stats
            scores = score(w, method="wanda", stats=one)
            outliers[name] = float((scores > 5 * scores.mean(dtype=np.float64)).mean())
        low, high = min(outliers.values(), default=0.0), max(outliers.values(), default=0.0)
        outliers = {name: 0.16 * (d - low) / (high - low) if high > low else 0.0 for name, d in outliers.items()}
    size = sum(w.size for w in filled.values())
    low, high = (0.0, float(size)) if method in ("er", "erk") else (-2.0, 2.0)
    for _ in range(200):
        middle = (low + high) / 2
        too_many = sum(w.size * density(name, middle) for name, w in filled.items()) > (1 - sparsity) * size
        low, high = (low, middle) if too_many else (middle, high)
    return _like(params, {name: 1 - density(name, low) if name in filled else sparsity for name in named})


def rigl_share(step: int, alpha: float, end: int) -> float:
    """``alpha / 2 (1 + cos(pi step / end))`` before ``end``, then 0 (RigL, Evci 2019, arXiv 1911.11134)."""
    return alpha / 2 * (1 + math.cos(math.pi * step / end)) if step < end else 0.0


def step_seed(seed: int, step: int) -> int:
    """The seed of SET's growth at a step: SplitMix64's finalizer on ``seed + finalizer(step + 1)``, modulo 2^64."""

    def finalize(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    return finalize((seed + finalize((step + 1) % 2**64)) % 2**64)


def exchange(scores: Array, growth: Array, mask: Array, share: float, *, group: str = "tensor") -> Array:
    """The mask of one array after regrowth: some of the kept are dropped, as many of the others are grown.

    In each group of k kept, ``floor(round(share k, 6))`` with the lowest ``scores`` go (ties: the higher flat index),
    then as many with the highest ``growth`` come among all that are not kept by then, those just dropped included
    (ties: the lower index). So a group keeps its number. SET (Mocanu 2018, arXiv 1707.04780): growth is
    :func:`random_score` of :func:`step_seed`; RigL (Evci 2019, arXiv 1911.11134): ``|gradient|``.
    """
    result = (as_matrix(mask) if group == "row" else mask.reshape(1, -1)).copy()
    for kept, s, g in zip(result, scores.reshape(result.shape), growth.reshape(result.shape), strict=True):
        count = math.floor(round(share * int(kept.sum()), 6))
        stay = _best(s[None], kept[None], int(kept.sum()) - count, "raise")[0]
        kept[:] = stay | _best(g[None], ~stay[None], count, "raise")[0]
    return result.reshape(mask.shape)


def int8_rows(w: Array) -> tuple[Array, Array]:
    """Whole numbers and a scale for each row: its largest magnitude / 127, but at least float32's smallest normal.

    Nor is it more than what 127 times is finite.
    """
    largest = np.abs(w).max(axis=1, initial=0).astype(np.float32)
    least = np.where(largest > 0, np.finfo(np.float32).smallest_normal, 0)
    most = np.nextafter(np.finfo(np.float32).max / np.float32(127), np.float32(0))
    scales = np.clip(largest / np.float32(127), least, most).astype(np.float32)
    numbers = np.zeros(w.shape, np.int8)
    for row, scale in enumerate(scales):
        if scale > 0:
            numbers[row] = np.clip(np.rint(w[row].astype(np.float32) / scale), -127, 127)
    return numbers, scales
