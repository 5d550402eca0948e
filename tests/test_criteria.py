# SPDX-License-Identifier: Apache-2.0
"""The criteria: every one with every pattern, group and dtype against the reference, and the trap of each by hand."""

import copy
import pickle
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import (
    DTYPES,
    METHODS,
    STATISTICS,
    Case,
    assert_same_bits,
    check_against_reference,
    is_nan,
    right_or_refused,
    table,
    values,
)
from cases import compute_dtype as t_of
from gossamer import reference, scoring
from gossamer.compensation import inverse_diagonal


@pytest.mark.parametrize("case", table("criteria/"), ids=str)
def test_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


def _fed(kind: str, *batch: Any) -> Any:
    stats = gs.Stats(kind)
    stats.update(*(np.asarray(part, np.float64) for part in batch))
    return stats


def _arguments(method: str, w: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    """What the method needs, for a matrix."""
    kind = STATISTICS.get(method)
    stats = None if kind is None else gs.Stats(kind)
    if stats is not None:
        x = values("normal", (3 * w.shape[1] if kind == "hessian" else 5, w.shape[1]), np.float32, "x")
        batch = {"movement": (w, g), "grad2": (values("normal", (3, *w.shape), np.float32, "g"),)}
        stats.update(*batch.get(stats.kind, (x,)))
    return {"grads": g, "method": method, "stats": stats, "seed": 7}


def _kept(mask: Any) -> list[list[int]]:
    kept: list[list[int]] = mask.to_dense().astype(int).tolist()
    return kept


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("method", METHODS)
def test_dtypes(method: str, dtype: Any) -> None:
    """Scores have the dtype of the computation, pruned weights their own, and 16-bit weights the scores of float32."""
    w, g = values("normal", (8, 12), dtype), values("normal", (8, 12), dtype, "g")
    given = _arguments(method, w, g)
    scores = gs.score(w, **given)
    assert scores.dtype == t_of(dtype)
    assert scores.shape == w.shape
    wide = {**given, "grads": g.astype(t_of(dtype))}
    assert_same_bits(scores, gs.score(w.astype(t_of(dtype)), **wide))
    pruned, mask = gs.prune(w, **given, sparsity=0.5)
    assert pruned.dtype == w.dtype
    assert_same_bits(pruned, gs.apply_mask(w, mask))
    assert mask == gs.prune(w.astype(t_of(dtype)), **wide, sparsity=0.5)[1]


@pytest.mark.parametrize("shape", [(37, 41), (300, 130), (3, 40_000)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("method", METHODS)
def test_out_of_every_criterion(method: str, dtype: Any, shape: tuple[int, int]) -> None:
    """An output with gaps, and one that is an input: what needs the whole tensor first must not read its own scores."""
    if method == "obs" and shape[1] > 400:
        shape = shape[::-1]
    w, g = values("normal", shape, dtype), values("normal", shape, dtype, "g")
    given = _arguments(method, w, g)
    expected = gs.score(w, **given)
    strided = np.full((2 * shape[0], 3 * shape[1]), np.nan, expected.dtype)
    assert_same_bits(gs.score(w, **given, out=strided[::2, ::3]), expected)
    assert np.isnan(strided[1::2]).all()
    assert np.isnan(strided[:, 1::3]).all()
    for name in ("w", "grads") if w.dtype == expected.dtype else ():
        arrays = {"w": w.copy(), "grads": g.copy()}
        out = arrays[name]
        assert gs.score(arrays["w"], **{**given, "grads": arrays["grads"]}, out=out) is out
        assert_same_bits(out, expected, name)
    pruned, mask = gs.prune(w, **given, sparsity=0.7)
    for name in ("w", "grads"):
        arrays = {"w": w.copy(), "grads": g.copy()}
        out = arrays[name]
        got, same = gs.prune(arrays["w"], **{**given, "grads": arrays["grads"]}, sparsity=0.7, out=out)
        assert got is out
        assert same == mask
        assert_same_bits(out, pruned, name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_over_the_memory_of_16_bit_weights_are_right_or_refused(method: str, dtype: Any) -> None:
    for first in (0, 7, 100):
        memory = np.zeros(1200, np.float32)
        w = memory.view(dtype)[first : first + 1200].reshape(30, 40)
        w[...] = values("normal", (30, 40), dtype)
        given = _arguments(method, w.copy(), values("normal", (30, 40), dtype, "g"))
        expected, before = gs.score(w.copy(), **given), memory.copy()
        out = memory.reshape(30, 40)
        result = right_or_refused(lambda w=w, g=given, out=out: gs.score(w, **g, out=out), ValueError, "^score: out ")
        assert_same_bits(memory, before if result is None else expected.ravel())


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "movement"])  # Stats take at least one dimension
def test_scalars(method: str, dtype: Any) -> None:
    w, g = np.array(2.0, dtype), np.array(3.0, dtype)
    stats = gs.Stats(STATISTICS[method]) if method in STATISTICS else None
    if stats is not None:
        stats.update(np.array([1.0, 2.0, 2.0]) if stats.kind == "grad2" else np.array([[1.0], [2.0], [2.0]]))
    scores = gs.score(w, g, method=method, stats=stats, seed=1)
    assert_same_bits(scores, reference.score(w, g, method=method, stats=stats, seed=1))
    pruned, mask = gs.prune(w, g, method=method, stats=stats, seed=1, sparsity=0.0)
    assert_same_bits(pruned, w)
    assert mask.shape == ()
    assert mask.nnz == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_is_a_matrix(method: str) -> None:
    w, g = values("normal", (4, 2, 2, 3), np.float32), values("normal", (4, 2, 2, 3), np.float32, "g")
    flat = _arguments(method, w.reshape(4, 12), g.reshape(4, 12))
    expected = gs.score(w.reshape(4, 12), **flat)
    stats = flat["stats"]
    if stats is not None and stats.kind in ("movement", "grad2"):
        stats = gs.Stats(stats.kind)
        samples = values("normal", (3, 4, 12), np.float32, "g").reshape(3, 4, 2, 2, 3)
        stats.update(*((w, g) if stats.kind == "movement" else (samples,)))
    assert_same_bits(gs.score(w, **{**flat, "grads": g, "stats": stats}), expected.reshape(w.shape))


# the traps, in the order of the table in docs


def test_magnitude_zeros_and_pruned_entries_tie() -> None:
    w = np.array([0.0, -0.0, -3.0, 0.0, 2.0], np.float32)
    assert gs.prune(w, nnz=4)[1].indices().tolist() == [0, 1, 2, 4]
    again, mask = gs.prune(gs.prune(w, nnz=2)[0], nnz=3)  # what an earlier round has pruned counts as 0
    assert mask.indices().tolist() == [0, 2, 4]
    assert again.tolist() == [0, 0, -3, 0, 2]


def test_gradient_takes_the_absolute_value_of_the_mean() -> None:
    samples = np.array([[1.0, 1.0], [-1.0, 0.5]])  # |mean| 0 and 0.75, mean of |.| 1 and 0.75
    w = np.ones(2)
    assert gs.score(w, samples.mean(axis=0), method="gradient").tolist() == [0.0, 0.75]
    assert gs.prune(w, samples.mean(axis=0), method="gradient", nnz=1)[1].indices().tolist() == [1]


def test_taylor_is_zero_where_weight_or_gradient_is() -> None:
    w, g = np.array([0.0, 5.0, -0.1, -0.0]), np.array([9.0, 0.0, 0.5, -7.0])
    assert_same_bits(gs.score(w, g, method="taylor"), np.array([0.0, 0.0, 0.05, 0.0]))
    assert gs.prune(w, g, method="taylor", nnz=1)[1].indices().tolist() == [2]


def test_taylor2_sums_first_and_squares_then() -> None:
    w = np.array([[3.0, -3.0], [1.0, 1.0]])
    g = np.ones((2, 2))
    assert gs.score(w, g, method="taylor2").tolist() == [[9, 9], [1, 1]]
    for pattern in ("row", "block:1x2"):  # sums 0 and 2: the squares of the elements would say 18 and 2
        assert _kept(gs.prune(w, g, method="taylor2", pattern=pattern, nnz=1)[1]) == [[0, 0], [1, 1]]
    assert _kept(gs.prune(w.T, g, method="taylor2", pattern="col", nnz=1)[1]) == [[0, 1], [0, 1]]
    assert _kept(gs.prune(w, g, method="taylor2", nnz=2)[1]) == [[1, 1], [0, 0]]  # elements by their own squares
    assert _kept(gs.prune(w, g, method="taylor2", pattern="1:2")[1]) == [[1, 0], [1, 0]]


def test_taylor2_units_do_not_cancel_in_sign() -> None:
    w, g = np.array([[-2.0, -2.0], [1.0, 2.0]]), np.ones((2, 2))  # sums -4 and 3
    assert _kept(gs.prune(w, g, method="taylor2", pattern="row", nnz=1)[1]) == [[1, 1], [0, 0]]


def test_taylor2_units_keep_float64() -> None:
    w = np.array([[1e30, 1.0], [2e30, 1.0]], np.float32)  # the squares overflow float32, in float64 they do not
    g = np.ones((2, 2), np.float32)
    assert np.isinf(gs.score(w, g, method="taylor2")[:, 0]).all()
    assert _kept(gs.prune(w, g, method="taylor2", pattern="row", nnz=1)[1]) == [[0, 0], [1, 1]]


def test_movement_is_signed() -> None:
    w, g = np.array([1.0, 1.0, -2.0]), np.array([3.0, -0.5, -4.0])  # away from zero is kept, towards zero is pruned
    stats = _fed("movement", w, g)
    assert gs.score(w, method="movement", stats=stats).tolist() == [-3.0, 0.5, -8.0]
    assert gs.prune(w, method="movement", stats=stats, nnz=1)[1].indices().tolist() == [1]


def test_fisher_is_not_the_square_of_the_mean() -> None:
    samples = np.array([[4.0, 1.0], [-4.0, 1.0]])  # means 0 and 1, mean squares 16 and 1
    w = np.array([1.0, 2.0])
    stats = _fed("grad2", samples)
    assert gs.score(w, method="fisher", stats=stats).tolist() == [8.0, 2.0]
    assert gs.prune(w, method="fisher", stats=stats, nnz=1)[1].indices().tolist() == [0]


def test_fisher_rounds_the_curvature_once() -> None:
    samples = np.array([[1.0, 0.5], [0.1, 0.3], [0.7, 0.2]])
    w = np.array([0.3, -0.7], np.float32)
    stats = _fed("grad2", samples)
    half = (0.5 * np.asarray(stats.values)).astype(np.float32)
    assert_same_bits(gs.score(w, method="fisher", stats=stats), (w * w) * half)


def test_obs_by_hand() -> None:
    stats = _fed("hessian", [[1.0, 0.0], [1.0, 1.0]])  # H = [[2, 1], [1, 1]], H^-1 = [[1, -1], [-1, 2]]
    assert np.asarray(stats.values).tolist() == [[2, 1], [1, 1]]
    w = np.array([[2.0, 2.0], [1.0, 3.0]])
    np.testing.assert_allclose(gs.score(w, method="obs", stats=stats), [[2, 1], [0.5, 2.25]], rtol=1e-14)
    _, mask = gs.prune(w, method="obs", stats=stats, sparsity=0.5)  # within rows
    assert _kept(mask) == [[1, 0], [0, 1]]


def test_obs_is_not_the_diagonal_of_h() -> None:
    stats = _fed("hessian", [[10.0, 10.0, 0.0], [0.0, 0.1, 0.0], [0.0, 0.0, 3.0]])  # two inputs that say the same
    w = np.ones((1, 3))
    assert _kept(gs.prune(w, method="obs", stats=stats, nnz=1)[1]) == [[0, 0, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_obs_of_a_singular_h(dtype: Any) -> None:
    x = values("normal", (5, 12), np.float64, "x")  # fewer samples than inputs
    x[:, 4] = 0.0  # an input that is never on
    x[:, 7] = x[:, 6]  # and two that are the same
    stats = _fed("hessian", x)
    w = values("normal", (9, 12), dtype)
    scores = gs.score(w, method="obs", stats=stats)
    assert np.isfinite(scores).all()
    assert not scores[:, 4].any()
    assert (np.delete(scores, 4, axis=1) > 0).all()
    expected = reference.score(w, method="obs", stats=stats)
    np.testing.assert_allclose(scores, expected, rtol=1e-5 if scores.dtype == np.float32 else 1e-9)
    _, mask = gs.prune(w, method="obs", stats=stats, sparsity=11 / 12)
    assert mask.to_dense().sum(axis=1).tolist() == [1] * 9
    assert not mask.to_dense()[:, 4].any()


def test_obs_of_inputs_that_are_all_dead() -> None:
    stats = _fed("hessian", np.zeros((4, 3)))
    w = np.array([[1.0, -2.0, 3.0]])
    assert gs.score(w, method="obs", stats=stats).tolist() == [[0, 0, 0]]
    assert _kept(gs.prune(w, method="obs", stats=stats, nnz=2)[1]) == [[1, 1, 0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize("columns", [1, 7, 40, 130])
def test_obs_of_correlated_inputs(dtype: Any, columns: int) -> None:
    x = values("normal", (4 * columns, columns), np.float64, "x") @ values(
        "normal", (columns, columns), np.float64, "m"
    )
    x += 3 * values("normal", x.shape, np.float64, "noise")
    stats = _fed("hessian", x)
    w = values("normal", (6, columns), dtype)
    scores, expected = gs.score(w, method="obs", stats=stats), reference.score(w, method="obs", stats=stats)
    np.testing.assert_allclose(scores, expected, rtol=1e-6 if scores.dtype == np.float32 else 1e-9)
    for options in ({"sparsity": 0.6}, {"sparsity": 0.6, "group": "tensor"}, {"pattern": "row", "nnz": 3}):
        _, mask = gs.prune(w, method="obs", stats=stats, **options)
        group = options.get("group") or ("tensor" if "pattern" in options else "row")
        assert mask == gs.topk_mask(scores, **{**options, "group": group})


def test_wanda_dead_inputs_tie_at_zero() -> None:
    stats = _fed("norm", [[3.0, 0.0, 0.0, 1.0], [4.0, 0.0, 0.0, 0.0]])
    w = np.array([[0.1, 50.0, 90.0, 0.2], [0.0, -7.0, 8.0, -0.0]])
    assert gs.score(w, method="wanda", stats=stats).tolist() == [[0.5, 0, 0, 0.2], [0, 0, 0, 0]]
    assert _kept(gs.prune(w, method="wanda", stats=stats, nnz=3)[1]) == [[1, 1, 0, 1], [1, 1, 1, 0]]


def test_ria_by_hand() -> None:
    stats = _fed("norm", [[16.0, 81.0], [0.0, 0.0]])  # norms 16 and 81, roots 4 and 9
    w = np.array([[1.0, -3.0], [1.0, 1.0]])  # row sums 4 and 2, column sums 2 and 4
    expected = [[(1 / 4 + 1 / 2) * 4, (3 / 4 + 3 / 4) * 9], [(1 / 2 + 1 / 2) * 4, (1 / 2 + 1 / 4) * 9]]
    assert gs.score(w, method="ria", stats=stats).tolist() == expected
    assert _kept(gs.prune(w, method="ria", stats=stats, nnz=1)[1]) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_ria_rows_and_columns_of_zeros_are_not_kept(dtype: Any) -> None:
    w = np.array([[0, 0, 0, 0], [1, 0, -2, 3], [-0.0, 0, -0.0, 0], [2, 0, 0, 1]], dtype)
    stats = _fed("norm", np.ones((4, 4)))
    scores = gs.score(w, method="ria", stats=stats)
    assert not np.isnan(scores).any()
    assert not scores[w == 0].any()
    assert (scores[w != 0] > 0).all()
    for options in ({"group": "tensor", "nnz": 5}, {"group": "global", "nnz": 5}):  # nan="raise", too
        assert (gs.prune(w, method="ria", stats=stats, **options)[1].to_dense() == (w != 0)).all()
    _, mask = gs.prune(w, method="ria", stats=stats, pattern="row", nnz=2)
    assert mask.to_dense()[:, 0].tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_ria_sums_are_exact(dtype: Any) -> None:
    """A sum in the order of the row would lose the small ones behind the large one."""
    w = np.full((2, 4097), 2.0 ** (-30 if dtype == np.float64 else -7), dtype)
    w[:, 0] = 2.0 ** (24 if dtype == np.float64 else 17 if dtype != np.float16 else 15)
    stats = _fed("norm", values("normal", (3, 4097), np.float64, "x"))
    assert_same_bits(gs.score(w, method="ria", stats=stats), reference.score(w, method="ria", stats=stats))


def test_snip_the_sum_keeps_the_order() -> None:
    params = {"a": np.array([1.0, -4.0]), "b": np.array([[2.0], [0.5]])}
    grads = {"a": np.array([2.0, 1.0]), "b": np.array([[-5.0], [0.0]])}
    scores = gs.score(params, grads, method="snip")  # |w g|: 2, 4, 10, 0; together 16
    assert scores["a"].tolist() == [2 / 16, 4 / 16]
    assert scores["b"].tolist() == [[10 / 16], [0.0]]
    pruned, masks = gs.prune(params, grads, method="snip", sparsity=0.5)  # global for a mapping
    _, same = gs.prune(params, grads, method="taylor", sparsity=0.5, group="global")
    assert masks == same
    assert pruned["a"].tolist() == [0, -4]
    assert pruned["b"].tolist() == [[2], [0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_snip_sums_to_one_and_keeps_the_order_of_taylor(dtype: Any) -> None:
    w, g = values("normal", (300, 200), dtype), values("normal", (300, 200), dtype, "g")
    scores = gs.score(w, g, method="snip")
    assert scores.astype(np.float64).sum() == pytest.approx(1, rel=1e-5)
    taylor = gs.score(w, g, method="taylor")
    order = np.argsort(taylor, axis=None, kind="stable")
    assert (np.diff(scores.ravel()[order]) >= 0).all()


def test_snip_of_zeros_is_zero() -> None:
    w = np.zeros((3, 4), np.float32)
    assert not gs.score(w, np.ones_like(w), method="snip").any()
    assert gs.prune(w, np.ones_like(w), method="snip", nnz=2)[1].indices().tolist() == [0, 1]


def test_grasp_keeps_the_positive_side() -> None:
    """The paper removes the highest -w * (H g): a large negative w * (H g) goes first, however large."""
    w, hg = np.array([1.0, -1.0, 2.0, 1.0]), np.array([0.5, 9.0, -3.0, 0.0])
    assert gs.score(w, hg, method="grasp").tolist() == [0.5, -9.0, -6.0, 0.0]
    assert gs.prune(w, hg, method="grasp", nnz=1)[1].indices().tolist() == [0]
    assert gs.prune(w, hg, method="grasp", nnz=3)[1].indices().tolist() == [0, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_synflow_with_float64_gradients_does_not_overflow(dtype: Any) -> None:
    w = np.array([[2.0, -1.0], [0.5, 0.0]], dtype)
    g = np.array([[1e200, -1e201], [3e202, 1e300]])
    scores = gs.score(w, g, method="synflow")
    assert scores.dtype == np.float64
    assert scores.tolist() == [[2e200, 1e201], [0.5 * 3e202, 0]]
    pruned, mask = gs.prune(w, g, method="synflow", nnz=2)
    assert pruned.dtype == np.dtype(dtype)
    assert _kept(mask) == [[0, 1], [1, 0]]
    assert_same_bits(pruned, np.array([[0, -1], [0.5, 0]], dtype))
    _, mask = gs.prune(w, g, method="synflow", pattern="row", nnz=1)
    assert _kept(mask) == [[0, 0], [1, 1]]


def test_synflow_of_a_mapping_compares_globally_over_dtypes() -> None:
    params = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([1.0, 2.0], np.float16)}
    grads = {"a": np.array([1e200, 1e100]), "b": np.array([3.0, 1e-3], np.float16)}
    scores = gs.score(params, grads, method="synflow")
    assert scores["a"].dtype == np.float64
    assert scores["b"].dtype == np.float32
    _, masks = gs.prune(params, grads, method="synflow", nnz=3)
    assert masks["a"].nnz == 2
    assert masks["b"].to_dense().tolist() == [True, False]


def test_lamp_by_hand() -> None:
    w = np.array([[1.0, -2.0], [4.0, 2.0]])  # squares in units of the largest: 1/16, 4/16, 1, 4/16
    expected = [[1 / 25, 4 / 20], [1.0, 4 / 24]]  # of equal ones the lower index comes later in the ascending order
    np.testing.assert_allclose(gs.score(w, method="lamp"), expected, rtol=1e-15)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
@pytest.mark.parametrize(
    "distribution", ["normal", "heavy_ties", "denormals", "all_equal", "one_outlier", "wide_range"]
)
def test_lamp_the_largest_is_exactly_one_and_every_tensor_keeps_one(dtype: Any, distribution: str) -> None:
    params = {
        name: values(distribution, shape, dtype) for name, shape in (("a", (37, 41)), ("b", (100_003,)), ("c", (1,)))
    }
    params["a"] *= np.dtype(dtype).type(2.0**-3)
    scores = gs.score(params, method="lamp")
    for name, w in params.items():
        first = np.abs(w.astype(np.float64)).argmax()
        assert scores[name].ravel()[first] == 1.0
        assert np.count_nonzero(scores[name] == 1.0) == 1 or scores[name].dtype == np.float32
        assert scores[name].min() >= 0
        assert scores[name].max() == 1.0
        order = np.lexsort((np.arange(w.size), -np.abs(w.astype(np.float64)).ravel()))
        assert (np.diff(scores[name].ravel()[order]) <= 0).all()
        assert_same_bits(scores[name], reference.score(w, method="lamp"))
    _, masks = gs.prune(params, method="lamp", nnz=3)
    assert [mask.nnz for mask in masks.values()] == [1, 1, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_lamp_of_ties(dtype: Any) -> None:
    w = np.full(4, -1.5, dtype)
    assert_same_bits(gs.score(w, method="lamp"), (1 / np.arange(1.0, 5.0)).astype(t_of(dtype)))
    assert gs.prune(w, method="lamp", nnz=2)[1].indices().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_lamp_of_zeros_nan_and_infinity(dtype: Any) -> None:
    t = t_of(dtype)
    assert_same_bits(gs.score(np.zeros((3, 2), dtype), method="lamp"), np.zeros((3, 2), t))
    nan, inf = np.nan, np.inf
    w = np.array([nan, 1.0, -2.0, nan, 0.0], dtype)
    assert_same_bits(gs.score(w, method="lamp"), np.array([nan, 0.25 / 1.25, 1.0, nan, 0.0], np.float64).astype(t))
    w = np.array([3.0, -inf, inf, 0.0], dtype)
    assert_same_bits(gs.score(w, method="lamp"), np.array([0.0, 1.0, 0.5, 0.0], t))
    assert_same_bits(gs.score(np.array([nan, nan], dtype), method="lamp"), np.array([nan, nan], t))
    with pytest.raises(ValueError, match=r"^prune: .*NaN.*\b1\b"):
        gs.prune(np.array([1.0, nan], dtype), method="lamp", nnz=1)
    params = {"zeros": np.zeros(5, dtype), "ones": np.ones(3, dtype)}
    _, masks = gs.prune(params, method="lamp", nnz=3)
    assert [m.nnz for m in masks.values()] == [0, 3]


def test_lamp_squares_do_not_overflow_or_underflow() -> None:
    for scale in (1e-200, 1.0, 1e200):
        w = np.array([1.0, 2.0, -4.0]) * scale
        np.testing.assert_allclose(gs.score(w, method="lamp"), [1 / 21, 4 / 20, 1.0], rtol=1e-14)


def test_lamp_sorts_in_the_tensor_and_compares_globally() -> None:
    params = {"small": np.array([1e-3, 2e-3, 3e-3]), "large": np.array([100.0, 101.0, 102.0])}
    _, masks = gs.prune(params, method="lamp", nnz=3)  # scores 1/14, 4/13, 1 and about 1/3, 1/2, 1
    assert masks["small"].indices().tolist() == [2]
    assert masks["large"].indices().tolist() == [1, 2]
    _, each = gs.prune(params, method="lamp", nnz=1, group="tensor")
    assert [m.indices().tolist() for m in each.values()] == [[2], [2]]


def test_fpgm_by_hand() -> None:
    w = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])  # distances 5 and 10 from zero
    scores = gs.score(w, method="fpgm")
    assert scores.tolist() == [[15, 15], [15, 15], [15, 15], [25, 25]]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: np.dtype(t).name)
def test_fpgm_duplicates_tie(dtype: Any) -> None:
    w = values("normal", (9, 37), dtype)
    w[4] = w[1]
    w[8] = w[1]
    scores = gs.score(w, method="fpgm")
    assert (scores == scores[:, :1]).all()
    assert_same_bits(scores[4], scores[1])
    assert_same_bits(scores[8], scores[1])
    assert_same_bits(scores, reference.score(w, method="fpgm"))
    rank = list(np.lexsort((np.arange(9), -scores[:, 0])))
    for k in range(10):
        _, mask = gs.prune(w, method="fpgm", pattern="row", nnz=k)
        assert np.flatnonzero(mask.to_dense()[:, 0]).tolist() == sorted(rank[:k])


def test_fpgm_ignores_the_norm() -> None:
    """Filters of large norm in a cluster go before a small one that stands alone."""
    w = np.array([[10.0, 10.0], [10.0, 10.1], [10.1, 10.0], [0.1, 0.1]])
    assert gs.prune(w, method="fpgm", pattern="row", nnz=1)[1].to_dense()[:, 0].tolist() == [False, False, False, True]


def test_fpgm_of_one_filter_or_none() -> None:
    assert gs.score(np.array([[1.0, 2.0]]), method="fpgm").tolist() == [[0, 0]]
    assert gs.score(np.array([1.0, 2.0, 3.0]), method="fpgm").tolist() == [0, 0, 0]
    assert gs.score(np.zeros((0, 4)), method="fpgm").shape == (0, 4)
    assert gs.score(np.zeros((4, 0)), method="fpgm").shape == (4, 0)


# dtypes


def test_products_of_16_bit_weights_are_rounded_to_float32() -> None:
    for dtype in (np.float16, ml_dtypes.bfloat16):
        w, g = np.array([1.0 + 2.0**-7, 3.0], dtype), np.array([1.0 + 2.0**-7, 1e-3], dtype)
        expected = w.astype(np.float32) * g.astype(np.float32)
        assert_same_bits(gs.score(w, g, method="grasp"), expected)
        assert expected[0] == (1 + 2.0**-7) ** 2  # more bits than the weights hold
        assert_same_bits(gs.score(w, g, method="taylor2"), expected * expected)


def test_gradients_may_have_another_dtype() -> None:
    pairs = ((ml_dtypes.bfloat16, np.float32), (np.float16, np.float32), (np.float32, np.float64),
             (ml_dtypes.bfloat16, np.float64), (np.float64, np.float32), (np.float32, np.float16),
             (np.float64, ml_dtypes.bfloat16), (np.float16, ml_dtypes.bfloat16))  # fmt: skip
    for of_weights, of_grads in pairs:
        w, g = values("normal", (33, 70), of_weights), values("normal", (33, 70), of_grads, "g")
        t = t_of(of_weights)
        for method in ("gradient", "taylor", "taylor2", "snip", "grasp"):
            scores = gs.score(w, g, method=method)
            assert_same_bits(scores, gs.score(w, g.astype(t), method=method), f"{of_weights} {of_grads} {method}")
            assert_same_bits(scores, reference.score(w, g, method=method))
            _, mask = gs.prune(w, g, method=method, sparsity=0.7)
            assert mask == gs.topk_mask(scores, sparsity=0.7)


def test_a_float64_gradient_is_rounded_to_nearest() -> None:
    w = np.ones(4, np.float32)
    g = np.array(
        [1 + 2.0**-24, 1 + 3 * 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 1e300]
    )  # ties to even, above a tie, overflow
    expected = np.array([1, 1 + 2.0**-22, 1 + 2.0**-23, np.inf], np.float32)
    assert_same_bits(gs.score(w, g, method="gradient"), expected)
    assert_same_bits(gs.score(w, g, method="taylor"), expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_every_16_bit_number_is_read_right(dtype: Any) -> None:
    w = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    assert_same_bits(gs.score(w), np.abs(w.astype(np.float32)))
    shuffled = np.random.default_rng(0).permutation(w)
    assert_same_bits(gs.score(shuffled), np.abs(shuffled.astype(np.float32)))
    kept = gs.apply_mask(w, gs.Mask.from_dense(np.ones(w.shape, bool)))
    assert (kept.view(np.uint16) == w.view(np.uint16)).all()  # NaN payloads included
    numbers = shuffled[~is_nan(shuffled)]
    for sparsity in (0.0, 0.1, 0.5, 0.999, 1.0):
        _, mask = gs.prune(numbers, sparsity=sparsity)
        assert mask == gs.prune(numbers.astype(np.float32), sparsity=sparsity)[1]
        assert gs.topk_mask(numbers, sparsity=sparsity) == gs.topk_mask(numbers.astype(np.float64), sparsity=sparsity)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("rule", ["sign", "scale"])
def test_adjusted_16_bit_weights_are_rounded_once(dtype: Any, rule: str) -> None:
    w = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    w = w[np.isfinite(w.astype(np.float32))]
    for kind in (dtype, np.float32, np.float64):
        s = values("normal", w.shape, kind, "s")
        for rate in (0.0, 0.1, 0.375):
            moved = gs.adjust(w, s, rate, rule=rule)
            wide = gs.adjust(w.astype(np.float32), s.astype(np.float32), rate, rule=rule)
            with np.errstate(over="ignore"):
                assert_same_bits(moved, wide.astype(dtype))
                assert_same_bits(moved, reference.adjust(w, s, rate, rule=rule))


@pytest.mark.parametrize(("dtype", "most"), [(np.float32, 5), (np.float64, 9)], ids=["float32", "float64"])
def test_fisher_holds_no_hidden_float64(dtype: Any, most: float) -> None:
    w = values("normal", (500, 400), dtype)
    stats = _fed("grad2", values("normal", (2, 500, 400), dtype, "g"))
    tracemalloc.start()
    gs.prune(w, method="fisher", stats=stats, sparsity=0.5, out=w)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most * w.size + 600_000  # and two blocks


def test_tensors_with_one_hessian_share_its_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(scoring, "inverse_diagonal", lambda h, **k: calls.append(h) or inverse_diagonal(h, **k))
    x, w = values("normal", (40, 12), np.float64, "x"), values("normal", (6, 12), np.float32)
    stats = _fed("hessian", x)
    params, size = {"a": w, "b": w[:2], "c": w.astype(np.float64)}, len(pickle.dumps(stats))
    scores = gs.score(params, method="obs", stats=dict.fromkeys(params, stats))
    assert_same_bits(gs.score(w, method="obs", stats=stats), scores["a"])
    assert len(calls) == 1
    assert len(pickle.dumps(stats)) == size  # what can be computed again is not saved
    assert_same_bits(gs.score(w, method="obs", stats=pickle.loads(pickle.dumps(stats))), scores["a"])
    for change in (lambda: stats.update(x[:3]), lambda: stats.merge(_fed("hessian", x[:5]))):
        before = len(calls)
        change()
        fresh = copy.deepcopy(stats)
        assert_same_bits(gs.score(w, method="obs", stats=stats), gs.score(w, method="obs", stats=fresh))
        assert len(calls) == before + 2
