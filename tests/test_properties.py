# SPDX-License-Identifier: Apache-2.0
"""What must hold for every input: the fused path, exact counts, the reference's masks, laws of masks and products."""

from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import cases
import gossamer as gs
from cases import BFLOAT16, DISTRIBUTIONS, METHODS, STATISTICS, assert_close, assert_same_bits, right_or_refused, values
from gossamer import reference

FLOATS = st.sampled_from(cases.FLOATS)
DTYPES = st.sampled_from(cases.DTYPES)
SHAPES = st.one_of(
    st.tuples(st.integers(0, 200)),
    st.tuples(st.integers(0, 12), st.integers(0, 40)),
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3)),
)
SPARSITIES = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]))


def filled(dtype: Any, shape: Any, elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    """Arrays of any of the dtypes; hypothesis does not know bfloat16."""
    if np.dtype(dtype) != BFLOAT16:
        return hnp.arrays(dtype, shape, elements=elements)

    def rounded(a: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return a.astype(BFLOAT16)

    return hnp.arrays(np.float32, shape, elements=elements).map(rounded)


def floats(dtype: Any, bound: float | None = None, **options: Any) -> st.SearchStrategy[float]:
    width = 16 if np.dtype(dtype) == np.float16 else 64 if np.dtype(dtype) == np.float64 else 32
    return st.floats(None if bound is None else -bound, bound, width=width, **options)


@st.composite
def arrays(draw: st.DrawFn, dtype: Any = None, shape: Any = None, nan: bool = False) -> np.ndarray:
    """Any floats, or a few values that tie often; in C or Fortran order, sometimes with a stride."""
    dtype = dtype or draw(DTYPES)
    tied = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0])
    anything = floats(dtype, allow_nan=nan, allow_infinity=True)
    a = draw(filled(dtype, draw(SHAPES) if shape is None else shape, st.one_of(tied, anything)))
    form = draw(st.sampled_from(["C", "F", "reversed"]))
    if form == "F":
        return np.asfortranarray(a)
    return a[::-1].copy()[::-1] if form == "reversed" else a


@st.composite
def selections(draw: st.DrawFn, shape: tuple[int, ...]) -> dict[str, Any]:
    rows, cols = reference.as_matrix(np.empty(shape, bool)).shape
    patterns = ["element", "element", "row", "col"]
    patterns += [f"block:{r}x{c}" for r in (1, 2, 4) for c in (1, 3, 8) if rows % r == 0 and cols % c == 0]
    patterns += [p for p, m in (("2:4", 4), ("1:3", 3), ("5:8", 8)) if cols % m == 0]
    pattern = draw(st.sampled_from(patterns))
    if ":" in pattern and not pattern.startswith("block"):
        return {"pattern": pattern}
    groups = ["tensor", "global"] + ([] if pattern == "row" else ["row"])
    chosen: dict[str, Any] = {"pattern": pattern, "group": draw(st.sampled_from(groups))}
    kind = draw(st.sampled_from(["sparsity", "sparsity", "nnz", "threshold"]))
    if kind == "sparsity":
        chosen["sparsity"] = draw(SPARSITIES)
    elif kind == "threshold":
        chosen["threshold"] = draw(st.floats(width=32, allow_nan=False))
    else:
        unit_rows, unit_cols, _, _ = reference.unit_grid(shape, pattern)
        size = unit_cols if chosen["group"] == "row" else unit_rows * unit_cols
        chosen["nnz"] = draw(st.integers(0, size))
    return chosen


def _units_are_numbers(scores: np.ndarray, pattern: str) -> bool:
    return not np.isnan(reference.unit_scores(scores, pattern)).any()


@settings(max_examples=400)
@given(st.data())
def test_masks_are_the_references(data: st.DataObject) -> None:
    scores = data.draw(arrays())
    options = data.draw(selections(scores.shape))
    assume(_units_are_numbers(scores, options["pattern"]))
    mask = gs.topk_mask(scores, **options)
    expected = reference.topk_mask(scores, **options)
    assert_same_bits(mask.to_dense(), expected)
    assert mask.nnz == expected.sum()
    assert (np.asarray(mask.packed) == reference.pack_bits(expected)).all()


@settings(max_examples=100)
@given(st.data(), st.sampled_from(["prune", "keep"]))
def test_masks_of_nan_are_the_references(data: st.DataObject, nan: str) -> None:
    scores = data.draw(arrays(nan=True))
    options = data.draw(selections(scores.shape))
    if options["pattern"] in ("row", "col") or options["pattern"].startswith("block"):
        scores = np.where(np.isinf(scores), scores.dtype.type(2), scores)  # inf - inf is not a score of the caller's
    assert_same_bits(
        gs.topk_mask(scores, nan=nan, **options).to_dense(), reference.topk_mask(scores, nan=nan, **options)
    )


@settings(max_examples=150)
@given(st.data())
def test_masks_with_a_prior_are_the_references(data: st.DataObject) -> None:
    scores = data.draw(arrays())
    options = data.draw(selections(scores.shape))
    assume(_units_are_numbers(scores, options["pattern"]))
    prior = data.draw(hnp.arrays(bool, scores.shape))
    try:
        expected = reference.topk_mask(scores, prior=prior, **options)
    except ValueError:
        expected = None
    bits = gs.Mask.from_dense(prior)
    got = right_or_refused(lambda: gs.topk_mask(scores, prior=bits, **options), ValueError, "^topk_mask: .*prior")
    assert (got is None) == (expected is None)
    if got is not None:
        assert_same_bits(got.to_dense(), expected)
        assert (got & gs.Mask.from_dense(prior)) == got


@settings(max_examples=100)
@given(st.data(), st.floats(0, 0.5), SPARSITIES)
def test_global_masks_with_floors_are_the_references(data: st.DataObject, floor: float, sparsity: float) -> None:
    count = data.draw(st.integers(1, 4))
    dtype = data.draw(DTYPES)
    params = {f"p{i}": data.draw(arrays(dtype)) for i in range(count)}
    options = {"group": "global", "min_density": floor, "sparsity": sparsity}
    try:
        expected = reference.topk_mask(params, **options)
    except ValueError:
        expected = None
    got = right_or_refused(lambda: gs.topk_mask(params, **options), ValueError, "^topk_mask: .*min_density")
    assert (got is None) == (expected is None)
    if got is not None:
        assert list(got) == list(params)
        for name in params:
            assert_same_bits(got[name].to_dense(), expected[name])
        size = sum(a.size for a in params.values())
        assert sum(m.nnz for m in got.values()) == reference.kept_count(size, sparsity)


@settings(max_examples=200)
@given(st.data())
def test_mappings_with_everything_at_once_are_the_references(data: st.DataObject) -> None:
    """Tensors of mixed dtypes, a pattern, NaN, priors, floors, one total."""
    pattern = data.draw(st.sampled_from(["element", "row", "col", "block:2x3"]))
    nan = data.draw(st.sampled_from(["prune", "keep"]))
    shapes = st.tuples(st.integers(0, 5).map(lambda n: 2 * n), st.integers(0, 4).map(lambda n: 3 * n))
    params, priors = {}, {}
    elements = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 1.0, 1.0, 3.0, float("nan")])
    for name in data.draw(st.permutations("abc")):
        params[name] = data.draw(filled(data.draw(DTYPES), data.draw(shapes), elements))
        priors[name] = data.draw(hnp.arrays(bool, params[name].shape, elements=st.sampled_from([True] * 9 + [False])))
    options: dict[str, Any] = {"pattern": pattern, "nan": nan, "group": "global"}
    options["min_density"] = data.draw(st.sampled_from([0.0, 0.0, 0.1, 0.3]))
    options["sparsity"] = data.draw(SPARSITIES)
    masked = data.draw(st.booleans())
    try:
        expected = reference.topk_mask(params, prior=priors if masked else None, **options)
    except ValueError:
        expected = None
    bits = {name: gs.Mask.from_dense(prior) for name, prior in priors.items()} if masked else None
    got = right_or_refused(lambda: gs.topk_mask(params, prior=bits, **options), ValueError, "prior|min_density")
    assert (got is None) == (expected is None)
    if got is not None:
        for name in params:
            assert_same_bits(got[name].to_dense(), expected[name], name)


def _stats_for(method: str, w: np.ndarray, g: np.ndarray, data: st.DataObject) -> Any:
    if method not in STATISTICS:
        return None
    stats, cols = gs.Stats(STATISTICS[method]), reference.as_matrix(w).shape[1]
    if stats.kind == "movement":
        stats.update(w, g)
    elif stats.kind == "grad2":
        stats.update(data.draw(filled(g.dtype, (2, *w.shape), st.floats(0, 2, width=16))))
    else:
        stats.update(data.draw(filled(g.dtype, (3, cols), st.floats(0, 2, width=16))))
    return stats


@settings(max_examples=400)
@given(st.data(), st.sampled_from([*METHODS, "callable"]))
def test_prune_is_score_select_apply(data: st.DataObject, method: str) -> None:
    w = data.draw(arrays())
    g = data.draw(filled(data.draw(DTYPES), w.shape, st.floats(-2, 2, width=16)))
    options = data.draw(selections(w.shape).filter(lambda options: "threshold" not in options))  # prune has none
    criterion: Any = (lambda w, g, s: -abs(w)) if method == "callable" else method
    stats = _stats_for(method, w, g, data)
    scores = gs.score(w, g, method=criterion, stats=stats, seed=5)
    if method != "obs":  # whose inverse is LAPACK's
        expected = reference.score(w, g, method=criterion, stats=stats, seed=5)
        if method in ("ria", "snip"):  # sums in twice the precision: numbers of 1e-124 beside 1 may turn a last bit
            np.testing.assert_array_max_ulp(scores, expected, 4)
        else:
            assert_same_bits(scores, expected)
    assume(not np.isnan(scores).any() and _units_are_numbers(scores, options["pattern"]))
    if method == "taylor2" and options["pattern"].startswith(("row", "col", "block")):  # sums before it squares
        assume(_units_are_numbers(gs.score(w, g, method="grasp"), options["pattern"]))
        mask = gs.Mask.from_dense(reference.prune(w, g, method=method, **options)[1])
    else:
        mask = gs.topk_mask(scores, **options)
    pruned, same = gs.prune(w, g, method=criterion, stats=stats, seed=5, **options)
    assert same == mask
    assert_same_bits(pruned, gs.apply_mask(w, mask))
    assert_same_bits(pruned, reference.apply_mask(w, mask.to_dense()))


@settings(max_examples=150)
@given(
    st.one_of(st.integers(0, 100_000), st.integers(0, 70)),
    DTYPES,
    st.sampled_from(sorted(DISTRIBUTIONS)),
    st.sampled_from([0, 1e-9, 0.5, 0.999999, 1]),
)
def test_any_size_and_sparsity(n: int, dtype: Any, distribution: str, sparsity: float) -> None:
    w = values(distribution, (n,), dtype)
    expected = reference.topk_mask(np.abs(w), sparsity=sparsity)
    pruned, mask = gs.prune(w, sparsity=sparsity)
    assert mask.nnz == expected.sum() == n - int(np.floor(n * round(sparsity, 12) + 0.5))
    assert_same_bits(mask.to_dense(), expected)
    assert_same_bits(pruned, reference.apply_mask(w, expected))
    assert gs.topk_mask(np.abs(w), sparsity=sparsity) == mask
    signed = gs.topk_mask(w, sparsity=sparsity).to_dense()
    assert_same_bits(signed, reference.topk_mask(w, sparsity=sparsity))
    if n:
        _, lamp = gs.prune({"w": w}, method="lamp", nnz=int(expected.sum()))
        assert lamp["w"].nnz == mask.nnz


@given(arrays(), SPARSITIES, st.integers(0, 2**64 - 1))
def test_counts_are_exact_whatever_the_data(w: np.ndarray, sparsity: float, seed: int) -> None:
    expected = reference.kept_count(w.size, sparsity)
    assert gs.topk_mask(w, sparsity=sparsity).nnz == expected
    pruned, mask = gs.prune(w, method="random", seed=seed, sparsity=sparsity)
    assert mask.nnz == expected
    assert np.count_nonzero(pruned) <= expected
    assert_same_bits(gs.score(w, method="random", seed=seed), reference.score(w, method="random", seed=seed))


@given(arrays(), SPARSITIES, SPARSITIES)
def test_masks_are_nested(w: np.ndarray, a: float, b: float) -> None:
    more, less = gs.topk_mask(w, sparsity=min(a, b)), gs.topk_mask(w, sparsity=max(a, b))
    assert (more & less) == less


@given(hnp.arrays(bool, SHAPES), st.data())
def test_laws_of_masks(a: np.ndarray, data: st.DataObject) -> None:
    b = data.draw(hnp.arrays(bool, a.shape))
    p, q = gs.Mask.from_dense(a), gs.Mask.from_dense(b)
    assert ~~p == p
    assert (p & ~p).nnz == 0
    assert (p | ~p).nnz == a.size
    assert ~(p & q) == (~p | ~q)
    assert (p & q).nnz + (p | q).nnz == p.nnz + q.nnz
    assert (p == q) == bool((a == b).all())
    assert gs.Mask.from_dense(p.to_dense()) == p
    assert (np.asarray(p.packed) == reference.pack_bits(a)).all()


@settings(max_examples=150)
@given(
    st.integers(0, 2**32 - 1),
    FLOATS,
    st.integers(0, 40),
    st.integers(0, 70),
    st.integers(0, 35),
    st.floats(0, 1),
    st.sampled_from(["csr", "panel", "bitmask", "dense", "auto"]),
)
def test_products(seed: int, dtype: Any, rows: int, cols: int, batch: int, density: float, form: str) -> None:
    r = np.random.default_rng(seed)
    kept = r.random((rows, cols)) < density
    w = np.where(kept, r.standard_normal((rows, cols)), 0).astype(dtype)
    x, dy = r.standard_normal((batch, cols)).astype(dtype), r.standard_normal((batch, rows)).astype(dtype)
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(kept), format=form)
    scale = np.abs(x) @ np.abs(w).T
    assert_close(gs.linear(x, a), reference.linear(x, w), scale, dtype)
    assert_close(gs.matmul(a, x.T), reference.matmul(w, x.T), scale.T, dtype)
    assert_close(gs.matmul(a.T, dy.T), w.T.astype(np.float64) @ dy.T, np.abs(w.T) @ np.abs(dy.T), dtype)
    got = gs.sddmm(dy.T, x.T, a)
    assert_close(got.to_dense(), reference.sddmm(dy.T, x.T, kept), np.where(kept, np.abs(dy.T) @ np.abs(x), 0), dtype)
    dx, dvalues, _ = gs.SparseLinear(a).backward(dy, x)
    expected = reference.linear_backward(dy, x, w, kept)
    assert_close(dx, expected[0], np.abs(dy) @ np.abs(w), dtype)
    assert_close(dvalues, expected[1], (np.abs(dy.T) @ np.abs(x))[kept], dtype)


@settings(max_examples=100)
@given(st.data(), st.sampled_from(["sign", "scale"]), st.floats(0, 0.99))
def test_adjust_is_the_references(data: st.DataObject, rule: str, rate: float) -> None:
    dtype = data.draw(DTYPES)
    shape = data.draw(SHAPES)
    finite = st.floats(-60_000, 60_000, width=16) if dtype == np.float16 else st.floats(-1e6, 1e6, width=32)
    w, s = (data.draw(filled(dtype, shape, finite)) for _ in range(2))
    assert_same_bits(gs.adjust(w, s, rate, rule=rule), reference.adjust(w, s, rate, rule=rule))
