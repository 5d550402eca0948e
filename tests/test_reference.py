# SPDX-License-Identifier: Apache-2.0
"""The reference itself: against results worked out by hand, published numbers, and properties that hold for all."""

import ast
import math
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossamer import reference as ref


def test_it_needs_numpy_and_nothing_else() -> None:
    tree = ast.parse(Path(ref.__file__).read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {"__future__", "collections", "math", "numpy", "re", "typing"}


def test_every_function_and_class_has_a_docstring() -> None:
    for name, thing in vars(ref).items():
        if callable(thing) and getattr(thing, "__module__", None) == ref.__name__ and not name.startswith("_"):
            assert thing.__doc__, name


# counts


@pytest.mark.parametrize(
    ("n", "sparsity", "kept"),
    [(0, 0.5, 0), (10, 0, 10), (10, 1, 0), (10, 0.25, 7), (5, 0.5, 2), (3, 0.5, 1), (10, 0.1 + 0.2, 7), (7, 1 / 3, 5)],
)
def test_kept_count_by_hand(n: int, sparsity: float, kept: int) -> None:
    assert ref.kept_count(n, sparsity) == kept


@given(st.integers(0, 10**7), st.floats(0, 1))
def test_kept_count_is_within_half_of_the_share(n: int, sparsity: float) -> None:
    kept = ref.kept_count(n, sparsity)
    assert 0 <= kept <= n
    assert abs(Fraction(n - kept) - n * Fraction(sparsity)) <= Fraction(1, 2) + Fraction(n, 10**12)


@given(st.integers(1, 10**5), st.floats(0, 1), st.floats(0, 1))
def test_kept_count_falls_with_the_sparsity(n: int, a: float, b: float) -> None:
    assert ref.kept_count(n, min(a, b)) >= ref.kept_count(n, max(a, b))


# scores


def test_scores_by_hand() -> None:
    w, g = np.array([[1.0, -2.0], [0.0, 4.0]]), np.array([[0.5, 0.5], [3.0, -1.0]])
    assert ref.score(w).tolist() == [[1, 2], [0, 4]]
    assert ref.score(w, g, method="gradient").tolist() == [[0.5, 0.5], [3, 1]]
    assert ref.score(w, g, method="taylor").tolist() == [[0.5, 1], [0, 4]]
    stats = ref.Stats("norm").update(np.array([[3.0, 1.0], [4.0, 0.0]]))
    assert ref.score(w, method="wanda", stats=stats).tolist() == [[5, 2], [0, 4]]
    stats = ref.Stats("movement").update(w, g)
    assert ref.score(w, method="movement", stats=stats).tolist() == [[-0.5, 1], [0, 4]]
    assert ref.score(w, method=lambda w, g, s: w + 1).tolist() == [[2, -1], [1, 5]]


def test_the_other_criteria_by_hand() -> None:
    w, g = np.array([[1.0, -2.0], [0.0, 4.0]]), np.array([[0.5, 0.5], [3.0, -1.0]])
    assert ref.score(w, g, method="taylor2").tolist() == [[0.25, 1], [0, 16]]
    for method in ("grasp", "synflow"):
        assert ref.score(w, g, method=method).tolist() == [[0.5, -1], [0, -4]]
    assert ref.score(w, g, method="snip").tolist() == [[0.5 / 5.5, 1 / 5.5], [0, 4 / 5.5]]
    both = ref.score({"a": w[0], "b": w[1]}, {"a": g[0], "b": g[1]}, method="snip")
    assert both["a"].tolist() == [0.5 / 5.5, 1 / 5.5]  # one sum for all
    assert ref.score(w, 0 * g, method="snip").tolist() == [[0, 0], [0, 0]]
    stats = ref.Stats("grad2").update(np.array([[[4.0, 1.0], [1.0, 0.0]], [[-4.0, 1.0], [1.0, 0.0]]]))
    assert ref.score(w, method="fisher", stats=stats).tolist() == [[8, 2], [0, 0]]
    stats = ref.Stats("norm").update(np.array([[16.0, 81.0]]))
    assert ref.score(w, method="ria", stats=stats).tolist() == [
        [(1 / 3 + 1) * 4, (2 / 3 + 2 / 6) * 9],
        [0, (1 + 4 / 6) * 9],
    ]
    assert ref.score(w, method="lamp").tolist() == [[0.0625 / 1.3125, 0.25 / 1.25], [0, 1]]
    assert ref.score(np.array([3.0, -3.0, 3.0]), method="lamp").tolist() == [1, 1 / 2, 1 / 3]
    nan, inf = math.nan, math.inf
    np.testing.assert_array_equal(ref.score(np.array([nan, inf, 5.0, -inf]), method="lamp"), [nan, 1, 0, 0.5])
    assert ref.score(np.zeros(3), method="lamp").tolist() == [0, 0, 0]
    filters = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    assert ref.score(filters, method="fpgm").tolist() == [[15, 15], [10, 10], [15, 15]]
    stats = ref.Stats("hessian").update(np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert stats.values.tolist() == [[2, 1], [1, 1]]
    np.testing.assert_allclose(ref.score(w, method="obs", stats=stats), [[0.5, 1], [0, 4]], rtol=1e-14)


def test_the_inverse_diagonal_of_singular_statistics() -> None:
    h = np.array([[2.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(ref.inverse_diagonal(h), [1, 2], rtol=1e-14)
    dead = np.array([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(ref.inverse_diagonal(dead), [1, math.inf, 2], rtol=1e-14)
    scale = np.array([1e-9, 1e6])  # scales are no reason to damp
    np.testing.assert_allclose(ref.inverse_diagonal(h * np.outer(scale, scale)), [1e18, 2e-12], rtol=1e-13)
    singular = np.full((2, 2), 4.0)  # damped by 0.04: the inverse of [[4.04, 4], [4, 4.04]]
    np.testing.assert_allclose(ref.inverse_diagonal(singular), [4.04 / (4.04**2 - 16)] * 2, rtol=1e-12)
    assert ref.inverse_diagonal(np.zeros((2, 2))).tolist() == [math.inf] * 2
    assert ref.inverse_diagonal(np.zeros((0, 0))).tolist() == []


def test_default_groups() -> None:
    own = {"wanda": "row", "ria": "row", "obs": "row"} | dict.fromkeys(("snip", "grasp", "synflow", "lamp"), "global")
    for method in (*ref.CRITERIA, "random", abs):
        group = own.get(method, "tensor") if isinstance(method, str) else "tensor"
        assert ref.default_group(method, "element", True) == group
        assert ref.default_group(method, "element", False) == ("tensor" if group == "global" else group)
        assert ref.default_group(method, "row", True) == ("tensor" if group == "row" else group)


def test_taylor2_units_sum_before_they_square() -> None:
    w, g = np.array([[3.0, -3.0], [1.0, 1.0]]), np.ones((2, 2))
    assert ref.prune(w, g, method="taylor2", pattern="row", nnz=1)[1].tolist() == [[False, False], [True, True]]
    assert ref.prune(w, g, method="taylor2", nnz=2)[1].tolist() == [[True, True], [False, False]]
    assert ref.prune(-w.T, g, method="taylor2", pattern="col", nnz=1)[1].tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_weights_are_computed_in_float32(dtype: type) -> None:
    w, g = np.array([1.0 + 2.0**-7, -3.0], dtype), np.array([1.0 + 2.0**-7, 0.1])
    scores = ref.score(w, g, method="grasp")
    assert scores.dtype == np.float32
    assert scores.tolist() == [(1 + 2.0**-7) ** 2, float(np.float32(-3.0) * np.float32(0.1))]
    assert ref.score(w, g, method="synflow").dtype == np.float64
    pruned, _ = ref.prune(w, nnz=1)
    assert pruned.dtype == np.dtype(dtype)
    assert pruned.tolist() == [0, -3]
    moved = ref.adjust(w, g, 2.0**-8)  # 1 + 2^-8: a tie for bfloat16, exact for float16
    assert moved.dtype == np.dtype(dtype)
    assert moved.tolist() == [1 + 2.0**-8 if dtype == np.float16 else 1.0, float(np.array(-3 - 2.0**-8).astype(dtype))]


def test_random_is_splitmix64() -> None:
    # the first outputs of SplitMix64 with the seeds 0 and 1234567, as its authors' code prints them
    known = {0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F], 1234567: [6457827717110365317]}
    for seed, outputs in known.items():
        doubles = ref.random_score((len(outputs),), np.float64, seed=seed)
        assert doubles.tolist() == [(z >> 11) * 2.0**-53 for z in outputs]
        floats = ref.random_score((len(outputs),), np.float32, seed=seed)
        assert floats.dtype == np.float32
        assert floats.tolist() == [(z >> 40) * 2.0**-24 for z in outputs]
    assert ref.random_score((2,), np.float64, seed=0, start=1).tolist() == [
        z / 2**53 for z in (0x6E789E6AA1B965F4 >> 11, 0x06C45D188009454F >> 11)
    ]


# unit sums


def _sum_by_the_text(segments: list[list[float]]) -> float:
    """decisions in scalar code: 8 lanes, a fixed tree, segments from top to bottom."""
    total = 0.0
    for segment in segments:
        lane = [0.0] * 8
        for j, value in enumerate(segment):
            lane[j % 8] += value
        total += ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))
    return total


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 21))
def test_unit_scores_follow_the_text(seed: int, unit_rows: int, unit_cols: int, r: int, c: int) -> None:
    g = np.random.default_rng(seed)
    a = g.standard_normal((unit_rows * r, unit_cols * c)) * 10.0 ** g.integers(-8, 9, (unit_rows * r, unit_cols * c))
    sums = ref.unit_scores(a, f"block:{r}x{c}")
    for i in range(unit_rows):
        for j in range(unit_cols):
            block = a[i * r : (i + 1) * r, j * c : (j + 1) * c]
            assert sums[i, j] == _sum_by_the_text(block.tolist())
            assert sums[i, j] == pytest.approx(math.fsum(block.ravel()), rel=1e-9, abs=1e-4)
    assert ref.unit_scores(a, "row")[:, 0].tolist() == [_sum_by_the_text([row]) for row in a.tolist()]
    assert ref.unit_scores(a, "col")[0].tolist() == [_sum_by_the_text([[v] for v in col]) for col in a.T.tolist()]


def test_unit_grid() -> None:
    assert ref.unit_grid((8, 3, 2, 2), "row") == (8, 1, 1, 12)
    assert ref.unit_grid((8, 12), "col") == (1, 12, 8, 1)
    assert ref.unit_grid((8, 12), "block:4x3") == (2, 4, 4, 3)
    assert ref.unit_grid((12,), "block:1x3") == (1, 4, 1, 3)
    with pytest.raises(ValueError, match="pattern"):
        ref.unit_grid((8, 12), "block:3x3")


# selection


def test_masks_by_hand() -> None:
    s = np.array([[3.0, 1.0, 2.0, 1.0], [1.0, 1.0, 0.0, 5.0]])
    assert ref.topk_mask(s, nnz=4).astype(int).tolist() == [[1, 1, 1, 0], [0, 0, 0, 1]]
    assert ref.topk_mask(s, sparsity=0.5, group="row").astype(int).tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    assert ref.topk_mask(s, threshold=1.0).astype(int).tolist() == [[1, 1, 1, 1], [1, 1, 0, 1]]
    assert ref.topk_mask(s, nnz=1, pattern="row").astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert ref.topk_mask(s, nnz=2, pattern="col").astype(int).tolist() == [[1, 0, 0, 1], [1, 0, 0, 1]]
    assert ref.topk_mask(s, nnz=2, pattern="block:1x2").astype(int).tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert ref.topk_mask(s, pattern="1:2").astype(int).tolist() == [[1, 0, 1, 0], [1, 0, 0, 1]]
    prior = s < 3
    assert ref.topk_mask(s, nnz=2, prior=prior).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]


def test_global_masks_by_hand() -> None:
    params = {"a": np.array([1.0, 2.0, 3.0, 4.0]), "b": np.array([0.1, 0.2, 0.3, 0.4])}
    masks = ref.topk_mask(params, nnz=4, group="global")
    assert masks["a"].tolist() == [True] * 4
    assert not masks["b"].any()
    masks = ref.topk_mask(params, nnz=4, group="global", min_density=0.25)
    assert masks["a"].tolist() == [False, True, True, True]
    assert masks["b"].tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="min_density"):
        ref.topk_mask(params, nnz=1, group="global", min_density=0.25)


def test_nan_by_hand() -> None:
    s = np.array([np.nan, 1.0, -np.inf, np.nan, np.inf])
    assert ref.topk_mask(s, nnz=4, nan="prune").tolist() == [True, True, True, False, True]
    assert ref.topk_mask(s, nnz=3, nan="keep").tolist() == [True, False, False, True, True]
    with pytest.raises(ValueError, match="at 0"):
        ref.topk_mask(s, nnz=3)


@given(
    st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1e-45, 1.0, 2.0, np.inf, np.nan]), max_size=40),
    st.data(),
    st.sampled_from(["prune", "keep"]),
)
def test_the_order_by_python_sorting(scores: list[float], data: st.DataObject, nan: str) -> None:
    k = data.draw(st.integers(0, len(scores)))
    lowest = math.inf if nan == "keep" else -math.inf

    def key(i: int) -> tuple[float, float, int]:
        value = scores[i]
        if math.isnan(value):
            return (-lowest, 0.0, i)
        return (0.0, -value, i)

    expected = set(sorted(range(len(scores)), key=key)[:k])
    mask = ref.topk_mask(np.array(scores, np.float64), nnz=k, nan=nan)
    assert set(np.flatnonzero(mask)) == expected


def test_bits_by_hand() -> None:
    mask = np.zeros((2, 10), bool)
    mask[0, 0] = mask[0, 7] = mask[0, 8] = mask[1, 1] = True
    assert ref.pack_bits(mask).tolist() == [[0b10000001, 1], [0b10, 0]]


# statistics, adjusting, products


def test_stats_by_hand() -> None:
    norm = ref.Stats("norm").update(np.array([[3.0, 0.0], [4.0, 1.0]])).update(np.array([[12.0, 0.0]]))
    assert norm.values.tolist() == [13.0, 1.0]
    grad2 = ref.Stats("grad2", decay=0.5).update(np.array([[2.0], [2.0]])).update(np.array([[4.0]]))
    assert grad2.count == 2.0
    assert grad2.values.tolist() == [10.0]
    movement = ref.Stats("movement").update(np.array([1.0]), np.array([2.0])).update(np.array([-1.0]), np.array([3.0]))
    assert movement.values.tolist() == [1.0]


def test_adjust_by_hand() -> None:
    w, s = np.array([1.0, 2.0, -4.0, 8.0]), np.array([1.0, 5.0, 3.0, 0.0])
    assert ref.adjust(w, s, 0.5).tolist() == [0.5, 1.5, -4.5, 8.0]
    assert ref.adjust(w, s, 0.5, rule="scale").tolist() == [1.0, 3.0, -5.0, 7.0]
    assert ref.adjust(w, np.ones(4), 0.5, rule="scale").tolist() == w.tolist()


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        (None, 1.0),
        ("relu", 1.0),
        ("gelu", 0.8413447460685429),
        ("gelu_tanh", 0.8411919906082768),
        ("silu", 0.7310585786300049),
        ("sigmoid", 0.7310585786300049),
        ("tanh", 0.7615941559557649),
    ],
)
def test_activations_and_their_derivatives(name: str | None, at_one: float) -> None:
    z = np.array([-6.0, -1.0, -0.3, 0.2, 1.0, 5.0])
    value, slope = ref.activation_and_derivative(z, name)
    assert value[4] == pytest.approx(at_one, rel=1e-15)
    h = 1e-6
    up, down = (ref.activation_and_derivative(z + step, name)[0] for step in (h, -h))
    np.testing.assert_allclose(slope, (up - down) / (2 * h), rtol=1e-7, atol=1e-9)
    far = ref.activation_and_derivative(np.array([-1e6, 1e6]), name)
    assert np.isfinite(far[0]).all()
    assert np.isfinite(far[1]).all()


def test_products_by_hand() -> None:
    a, x = np.array([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]]), np.array([[1.0, 2.0, 3.0]])
    bias, residual = np.array([-10.0, 1.0]), np.array([[100.0, 200.0]])
    assert ref.linear(x, a).tolist() == [[7, 0]]
    assert ref.linear(x, a, bias=bias, activation="relu", residual=residual).tolist() == [[100, 201]]
    assert ref.matmul(a, x.T, bias=bias, activation="relu", residual=residual.T).tolist() == [[100], [201]]
    assert ref.matmul(a, x[0]).tolist() == [7, 0]
    assert ref.sddmm(x, np.eye(3), np.array([[True, False, True]])).tolist() == [[1, 0, 3]]
    indptr, indices, kept = ref.csr_from_dense(a)
    assert (indptr.tolist(), indices.tolist(), kept.tolist()) == ([0, 2, 2], [0, 2], [1, 2])
    indptr, indices, kept = ref.csr_from_dense(a, np.array([[False, True, True], [False, False, True]]))
    assert (indptr.tolist(), indices.tolist(), kept.tolist()) == ([0, 2, 3], [1, 2, 2], [0, 2, 0])


def test_linear_backward_is_the_difference_quotient() -> None:
    r = np.random.default_rng(5)
    a, x, b, dy = r.standard_normal((3, 4)), r.standard_normal((2, 4)), r.standard_normal(3), r.standard_normal((2, 3))
    mask = np.array([[1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 0]], bool)
    a = np.where(mask, a, 0.0)
    for name in ("gelu", "tanh", None):
        dx, dvalues, dbias = ref.linear_backward(dy, x, a, mask, bias=b, activation=name)
        h = 1e-6
        for i, (row, col) in enumerate(np.argwhere(mask)):
            step = np.zeros_like(a)
            step[row, col] = h
            up, down = (ref.linear(x, a + s, bias=b, activation=name) for s in (step, -step))
            assert ((up - down) * dy).sum() / (2 * h) == pytest.approx(dvalues[i], rel=1e-6, abs=1e-8)
        step = np.zeros_like(x)
        step[1, 2] = h
        up, down = (ref.linear(x + s, a, bias=b, activation=name) for s in (step, -step))
        assert ((up - down) * dy).sum() / (2 * h) == pytest.approx(dx[1, 2], rel=1e-6)
        up, down = (ref.linear(x, a, bias=b + s, activation=name) for s in (h, -h))
        assert ((up - down) * dy).sum() / (2 * h) == pytest.approx(dbias.sum(), rel=1e-6)
