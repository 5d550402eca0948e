# SPDX-License-Identifier: Apache-2.0
"""``matmul``, ``linear``, ``sddmm``, ``SparseLinear``: against float64, scipy and the accuracy rule."""

import copy
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import ACTIVATIONS, FLOATS, LAYOUTS, assert_close, assert_same_bits, generator, right_or_refused
from gossamer import reference

FORMATS = ("csr", "panel", "bitmask", "dense", "auto")
# rows, cols, batch
SIZES = [
    (1, 1, 1),
    (3, 5, 2),
    (17, 31, 7),
    (64, 48, 16),
    (33, 129, 1),
    (10, 784, 100),
    (300, 784, 33),
    (1, 1000, 3),
    (1000, 1, 3),
    (7, 40_000, 2),
    (5, 9, 0),
    (0, 9, 4),
    (5, 0, 4),
    (0, 0, 0),
    (513, 257, 65),
]


def _dense(rows: int, cols: int, dtype: Any, density: float = 0.2) -> np.ndarray:
    r = generator("multiply", rows, cols, density)
    w = np.where(r.random((rows, cols)) < density, r.standard_normal((rows, cols)), 0.0).astype(dtype)
    w[rows // 3 : rows // 2] = 0  # empty rows
    return w


def _normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return generator("normal", shape).standard_normal(shape).astype(dtype)


def _scale(x: np.ndarray, w: np.ndarray, *added: np.ndarray | None) -> Any:
    return sum((np.abs(part) for part in added if part is not None), np.abs(x) @ np.abs(w).T)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_of_every_size(dtype: type, form: str, density: float, size: tuple[int, int, int]) -> None:
    rows, cols, batch = size
    w, x = _dense(rows, cols, dtype, density), _normal(batch, cols, dtype=dtype)
    a = gs.SparseMatrix.from_dense(w, format=form)
    truth, scale = reference.linear(x, w), _scale(x, w)
    y = gs.linear(x, a)
    assert y.dtype == dtype
    assert_close(y, truth, scale, dtype)
    y = gs.matmul(a, np.ascontiguousarray(x.T))
    assert y.dtype == dtype
    assert_close(y, truth.T, scale, dtype)
    assert_close(y, (a.to_scipy().astype(np.float64) @ x.T.astype(np.float64)), scale, dtype)


EVERY_FLOAT = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


@pytest.mark.parametrize("of_x", EVERY_FLOAT)
@pytest.mark.parametrize("of_values", EVERY_FLOAT)
@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("size", [(9, 70, 1), (33, 1100, 3), (130, 65, 40)], ids=str)
def test_every_pair_of_dtypes(size: tuple[int, int, int], form: str, of_values: type, of_x: type) -> None:
    """Computed in float32 or float64 from the values as stored, and rounded to x's dtype once."""
    rows, cols, batch = size
    w, x = _dense(rows, cols, of_values, 0.4), _normal(batch, cols, dtype=of_x)
    bias, residual = _normal(rows), _normal(batch, rows, dtype=of_x)
    a = gs.SparseMatrix.from_dense(w, format=form)
    assert a.dtype == of_values
    assert_same_bits(a.to_dense(), w)
    wide = np.float64 if np.float64 in (of_values, of_x) else np.float32
    exact = gs.linear(
        x.astype(wide),
        gs.SparseMatrix.from_dense(w.astype(wide), format=form),
        bias=bias,
        residual=residual.astype(wide),
    )
    y = gs.linear(x, a, bias=bias, residual=residual)
    assert y.dtype == of_x
    assert_same_bits(y, exact.astype(of_x))
    if form != "dense":  # BLAS has a mind of its own
        assert_same_bits(y, np.ascontiguousarray(gs.matmul(a, x.T, bias=bias, residual=residual.T).T))
    w64, x64 = w.astype(np.float64), x.astype(np.float64)
    error = np.linalg.norm(exact - (x64 @ w64.T + bias + residual.astype(np.float64)))
    assert error <= (1e-6 if wide == np.float32 else 1e-14) * np.linalg.norm(np.abs(x64) @ np.abs(w64).T + 1)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(17, 31, 7), (64, 48, 1), (5, 0, 4), (129, 65, 33)], ids=str)
def test_fused(
    dtype: type, form: str, activation: str | None, bias: bool, residual: bool, size: tuple[int, int, int]
) -> None:
    rows, cols, batch = size
    w, x = _dense(rows, cols, dtype), _normal(batch, cols, dtype=dtype)
    b = _normal(rows, dtype=dtype) if bias else None
    r = _normal(batch, rows + 1, dtype=dtype)[:, :-1] if residual else None
    a = gs.SparseMatrix.from_dense(w, format=form)
    truth = reference.linear(x, w, bias=b, activation=activation, residual=r)
    # an activation may round once more, relative to its own result (0.5 for a sigmoid of nothing)
    scale = _scale(x, w, b, r, truth)
    y = gs.linear(x, a, bias=b, activation=activation, residual=r)
    assert_close(y, truth, scale, dtype)
    y = gs.matmul(a, x.T, bias=b, activation=activation, residual=None if r is None else r.T)
    assert_close(y, truth.T, scale, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("span", [1e-3, 1.0, 6.0, 40.0, 1e4, 1e15])
def test_activations_are_accurate_everywhere(dtype: type, activation: str, span: float) -> None:
    z = np.linspace(-span, span, 4001).astype(dtype)[:, None]
    a = gs.SparseMatrix.from_dense(np.ones((1, 1), dtype), format="csr")
    truth = reference.linear(z, np.ones((1, 1)), activation=activation)
    y = gs.linear(z, a, activation=activation)
    assert np.isfinite(y).all()
    limit = {np.dtype(np.float32): 3e-7, np.dtype(np.float64): 3e-15}[np.dtype(dtype)]
    size = 1 if activation in ("sigmoid", "tanh") else np.maximum(np.abs(z), 1)
    assert (np.abs(y - truth) <= limit * size).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("span", [1e-3, 1.0, 6.0, 40.0, 1e4, 1e15])
def test_slopes_of_activations_are_accurate_everywhere(dtype: type, activation: str, span: float) -> None:
    z = np.linspace(-span, span, 4001).astype(dtype)[:, None]
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(np.ones((1, 1), dtype)), activation=activation)
    _, truth = reference.activation_and_derivative(z.astype(np.float64), activation)
    slope, _, _ = layer.backward(np.ones_like(z), z)
    limit = {np.dtype(np.float32): 4e-6, np.dtype(np.float64): 1e-14}[np.dtype(dtype)]
    assert (np.abs(slope - truth) <= limit).all()


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_nan_and_infinity_go_through(form: str) -> None:
    w = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(w != 0), format=form)
    x = np.array([[np.nan, 1.0]], np.float32)
    assert np.isnan(gs.linear(x, a)[0, 0])
    infinite = np.array([[np.inf], [-np.inf], [3e38], [-3e38], [np.nan]], np.float32)
    one = gs.SparseMatrix.from_dense(np.ones((1, 1), np.float32), format=form)
    for activation in ACTIVATIONS:
        assert np.isnan(gs.linear(x, a, activation=activation)[0, 0]), activation
        y = gs.linear(infinite, one, activation=activation)
        assert y[0] >= 1, activation
        assert np.isfinite(y[2:4]).all(), activation
        slopes, _, _ = gs.SparseLinear(one, activation=activation).backward(np.ones_like(infinite[2:]), infinite[2:])
        assert np.isfinite(slopes[:2]).all(), activation
        assert np.isnan(slopes[2]) or activation in (None, "relu"), activation
    big = gs.linear(np.array([[np.inf, np.inf]], np.float32), gs.SparseMatrix.from_dense(w + 1, format=form))
    assert (big == np.inf).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(dtype: type, form: str, layout: str) -> None:
    w, x = _dense(33, 47, dtype), _normal(19, 47, dtype=dtype)
    b, r = _normal(33, dtype=dtype), _normal(19, 33, dtype=dtype)
    change = LAYOUTS[layout]
    a = gs.SparseMatrix.from_dense(w, format=form)
    view, bias, residual = change(x), change(b), change(r)
    truth = reference.linear(x, w, bias=b, residual=r)
    assert_close(gs.linear(view, a, bias=bias, residual=residual), truth, _scale(x, w, b, r), dtype)
    columns = change(np.ascontiguousarray(x.T))
    y = gs.matmul(a, columns, bias=bias, residual=change(np.ascontiguousarray(r.T)))
    assert_close(y, truth.T, _scale(x, w, b, r), dtype)
    for given, before in ((view, x), (bias, b), (residual, r), (columns, x.T)):
        assert_same_bits(np.ascontiguousarray(given), np.ascontiguousarray(before))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_out(dtype: type, form: str) -> None:
    w, x = _dense(33, 47, dtype), _normal(19, 47, dtype=dtype)
    a = gs.SparseMatrix.from_dense(w, format=form)
    expected = gs.linear(x, a, activation="tanh")
    for out in (np.full((19, 33), np.nan, dtype), np.full((33, 19), np.nan, dtype).T):
        assert gs.linear(x, a, activation="tanh", out=out) is out
        assert_close(out, expected, _scale(x, w, expected), dtype)
    gap = np.full((19, 40), 5.0, dtype)
    view = gap[:, 3:36]
    assert gs.linear(x, a, activation="tanh", out=view) is view
    assert_close(view, expected, _scale(x, w, expected), dtype)
    assert (gap[:, :3] == 5).all()
    assert (gap[:, 36:] == 5).all()
    out = np.full((33, 19), np.nan, dtype)
    assert gs.matmul(a, x.T, out=out) is out
    assert_close(out, reference.matmul(w, x.T), _scale(x, w), dtype)


def test_out_may_be_the_residual() -> None:
    w, x, r = _dense(33, 47, np.float64), _normal(19, 47, dtype=np.float64), _normal(19, 33, dtype=np.float64)
    a = gs.SparseMatrix.from_dense(w, format="csr")
    truth = reference.linear(x, w, activation="relu", residual=r)
    assert gs.linear(x, a, activation="relu", residual=r, out=r) is r
    assert_close(r, truth, _scale(x, w, truth), np.float64)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("call", ["linear", "matmul"])
def test_out_that_is_the_input_is_right_or_refused(form: str, call: str) -> None:
    w, x = _dense(32, 32, np.float64, 0.5), _normal(32, 32, dtype=np.float64)
    a, before = gs.SparseMatrix.from_dense(w, format=form), x.copy()
    truth = reference.linear(x, w) if call == "linear" else reference.matmul(w, x)
    try:
        _ = gs.linear(x, a, out=x) if call == "linear" else gs.matmul(a, x, out=x)
    except ValueError:
        assert_same_bits(x, before)
    else:
        np.testing.assert_allclose(x, truth, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_vectors(dtype: type, form: str) -> None:
    w, x, b = _dense(33, 47, dtype), _normal(47, dtype=dtype), _normal(33, dtype=dtype)
    a = gs.SparseMatrix.from_dense(w, format=form)
    truth = w.astype(np.float64) @ x + b
    scale = np.abs(w) @ np.abs(x) + np.abs(b)
    assert_close(gs.matmul(a, x, bias=b), truth, scale, dtype)
    assert_close(gs.linear(x, a, bias=b), truth, scale, dtype)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize(("values", "inputs"), [(np.float32, np.float64), (np.float64, np.float32)])
def test_the_result_has_the_dtype_of_x(form: str, values: type, inputs: type) -> None:
    w, x = _dense(33, 47, values), _normal(19, 47, dtype=inputs)
    a = gs.SparseMatrix.from_dense(w, format=form)
    y = gs.linear(x, a)
    assert y.dtype == inputs
    assert_close(y, reference.linear(x, w), _scale(x, w), np.float32)
    y = gs.matmul(a, x.T)
    assert y.dtype == inputs
    assert_close(y, reference.matmul(w, x.T), _scale(x, w), np.float32)


def test_a_row_of_a_batch_does_not_depend_on_its_neighbours_being_right() -> None:
    w = _dense(129, 65, np.float32, 0.5)
    a = gs.SparseMatrix.from_dense(w, format="csr")
    x = _normal(70, 65)
    for batch in range(1, 70, 3):  # every remainder of every tile width
        assert_close(gs.linear(x[:batch], a), reference.linear(x[:batch], w), _scale(x[:batch], w), np.float32)


def test_transposed_products() -> None:
    w, x = _dense(33, 47, np.float64), _normal(33, 8, dtype=np.float64)
    for form in FORMATS:
        a = gs.SparseMatrix.from_dense(w, format=form)
        assert_close(gs.matmul(a.T, x), w.T @ x, np.abs(w.T) @ np.abs(x), np.float64)


def test_the_dense_result_is_the_same_for_repeated_calls() -> None:
    w, x = _dense(300, 784, np.float32), _normal(100, 784)
    for form in FORMATS:
        a = gs.SparseMatrix.from_dense(w, format=form)
        first = gs.linear(x, a)
        for _ in range(3):
            assert_same_bits(gs.linear(x, a), first)


# sddmm


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [*SIZES, (40, 30, 300)], ids=str)
def test_sddmm(dtype: type, density: float, size: tuple[int, int, int]) -> None:
    rows, cols, k = size
    kept = _dense(rows, cols, dtype, density) != 0
    x, y = _normal(rows, k, dtype=dtype), _normal(cols, k, dtype=dtype)
    truth = reference.sddmm(x, y, kept)
    scale = np.where(kept, np.abs(x) @ np.abs(y).T, 0.0)
    zeros = np.zeros((rows, cols), dtype)
    mask = gs.Mask.from_dense(kept)
    for form in ("mask", "csr", "panel", "bitmask", "dense"):
        pattern = mask if form == "mask" else gs.SparseMatrix.from_dense(zeros, mask, format=form)
        result = gs.sddmm(x, y, pattern)
        assert isinstance(result, gs.SparseMatrix)
        assert result.shape == (rows, cols)
        assert result.nnz == kept.sum()
        assert result.dtype == dtype
        assert_close(result.to_dense(), truth, scale, dtype)
        assert_close(np.asarray(result.values), truth[kept], scale, dtype)


def test_sddmm_out_takes_the_values() -> None:
    kept = _dense(33, 47, np.float32) != 0
    x, y, mask = _normal(33, 19), _normal(47, 19), gs.Mask.from_dense(kept)
    expected = gs.sddmm(x, y, mask)
    out = np.full(mask.nnz, np.nan, np.float32)
    result = gs.sddmm(x, y, mask, out=out)
    assert_same_bits(out, np.asarray(expected.values))
    assert_same_bits(result.to_dense(), expected.to_dense())
    with pytest.raises(ValueError, match=r"^sddmm: out "):
        gs.sddmm(x, y, mask, out=np.zeros(mask.nnz + 1, np.float32))
    with pytest.raises(TypeError, match=r"^sddmm: out "):
        gs.sddmm(x, y, mask, out=np.zeros(mask.nnz))


@pytest.mark.parametrize("call", ["linear", "matmul"])
@pytest.mark.parametrize("shared", ["x shifted", "residual shifted", "residual transposed", "bias"])
def test_out_that_overlaps_another_input_is_right_or_refused(call: str, shared: str) -> None:
    w, x, buffer = _dense(32, 32, np.float64, 0.5), _normal(32, 32, dtype=np.float64), _normal(33, 32, dtype=np.float64)
    a, out, fused, before = gs.SparseMatrix.from_dense(w, format="csr"), buffer[1:], {}, buffer.copy()
    if shared == "x shifted":
        x = buffer[:32]
    elif shared == "residual shifted":
        fused["residual"] = buffer[:32]
    elif shared == "residual transposed":
        fused["residual"] = out.T
    else:
        fused["bias"] = buffer[7]
    copies = {name: part.copy() for name, part in fused.items()}
    truth = reference.linear(x, w, **copies) if call == "linear" else reference.matmul(w, x, **copies)
    run = {"linear": lambda: gs.linear(x, a, out=out, **fused), "matmul": lambda: gs.matmul(a, x, out=out, **fused)}
    if right_or_refused(run[call], ValueError, f"^{call}: out ") is None:
        assert_same_bits(buffer, before)
    else:
        np.testing.assert_allclose(out, truth, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sddmm_layouts(layout: str) -> None:
    kept = _dense(33, 47, np.float32) != 0
    x, y = _normal(33, 19), _normal(47, 19)
    result = gs.sddmm(LAYOUTS[layout](x), LAYOUTS[layout](y), gs.Mask.from_dense(kept))
    assert_close(result.to_dense(), reference.sddmm(x, y, kept), np.where(kept, np.abs(x) @ np.abs(y).T, 0), np.float32)


# SparseLinear


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [(17, 31, 7), (10, 300, 64), (33, 129, 1), (5, 9, 0), (64, 48, 100)], ids=str)
def test_sparse_linear(dtype: type, form: str, activation: str | None, size: tuple[int, int, int]) -> None:
    rows, cols, batch = size
    w, x, b = _dense(rows, cols, dtype), _normal(batch, cols, dtype=dtype), _normal(rows, dtype=dtype)
    dy = _normal(batch, rows + 2, dtype=dtype)[:, :rows]
    kept = w != 0
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(w, format=form), b, activation)
    truth = reference.linear(x, w, bias=b, activation=activation)
    y = layer(x)
    assert y.dtype == dtype
    assert_close(y, truth, _scale(x, w, b, truth), dtype)
    dx, dvalues, dbias = layer.backward(dy, x)
    expected = reference.linear_backward(dy, x, w, kept, bias=b, activation=activation)
    assert (dx.dtype, dvalues.dtype, dbias.dtype) == (dtype, dtype, dtype)
    # the error of z enters through the derivative's slope (at most 1.2): compare with what a change of z can do
    dz = np.abs(dy) * (1 + (0 if activation in (None, "relu") else _scale(x, w, b)))
    assert_close(dx, expected[0], dz @ np.abs(w), dtype, 4)
    assert_close(dvalues, expected[1], (dz.T @ np.abs(x))[kept], dtype, 4)
    assert_close(dbias, expected[2], dz.sum(axis=0), dtype, 4)


def test_sparse_linear_gradients_are_the_difference_quotients() -> None:
    w, x, b = _dense(5, 7, np.float64, 0.5), _normal(3, 7, dtype=np.float64), _normal(5, dtype=np.float64)
    dy = _normal(3, 5, dtype=np.float64)
    for activation in ACTIVATIONS:
        a = gs.SparseMatrix.from_dense(w, format="csr")
        dx, dvalues, dbias = gs.SparseLinear(a, b, activation).backward(dy, x)

        def loss(x: Any = x, v: Any = a.values, b: Any = b, act: str | None = activation, a: Any = a) -> float:
            return float((gs.SparseLinear(a.with_values(v), b, act)(x) * dy).sum())

        h = 1e-6
        for i in range(7):
            step = np.zeros_like(x)
            step[1, i] = h
            assert (loss(x=x + step) - loss(x=x - step)) / (2 * h) == pytest.approx(dx[1, i], rel=1e-5, abs=1e-7)
        for i in range(a.nnz):
            step = np.zeros(a.nnz)
            step[i] = h
            slope = (loss(v=a.values + step) - loss(v=a.values - step)) / (2 * h)
            assert slope == pytest.approx(dvalues[i], rel=1e-5, abs=1e-7)
        for i in range(5):
            step = np.zeros(5)
            step[i] = h
            assert (loss(b=b + step) - loss(b=b - step)) / (2 * h) == pytest.approx(dbias[i], rel=1e-5, abs=1e-7)


def test_sparse_linear_without_bias() -> None:
    w, x, dy = _dense(17, 31, np.float32), _normal(7, 31), _normal(7, 17)
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(w, format="csr"), activation="relu")
    assert_close(layer(x), reference.linear(x, w, activation="relu"), _scale(x, w), np.float32)
    dx, dvalues, _ = layer.backward(dy, x)
    expected = reference.linear_backward(dy, x, w, w != 0, activation="relu")
    assert_close(dx, expected[0], np.abs(dy) @ np.abs(w), np.float32, 2)
    assert_close(dvalues, expected[1], (np.abs(dy).T @ np.abs(x))[w != 0], np.float32, 2)


def test_sparse_linear_backward_keeps_a_zero_value_that_is_kept() -> None:
    kept = np.array([[True, False], [True, True]])
    a = gs.SparseMatrix.from_dense(np.zeros((2, 2)), gs.Mask.from_dense(kept), format="csr")
    _, dvalues, dbias = gs.SparseLinear(a, np.zeros(2)).backward(np.array([[1.0, 2.0]]), np.array([[3.0, 5.0]]))
    assert dvalues.tolist() == [3.0, 6.0, 10.0]
    assert dbias.tolist() == [1.0, 2.0]


def test_sparse_linear_pickles_and_copies() -> None:
    w, x, b = _dense(17, 31, np.float32), _normal(7, 31), _normal(17)
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(w, format="csr"), b, "gelu")
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert_same_bits(other(x), layer(x))


def test_what_a_layer_holds_is_counted() -> None:
    a = gs.SparseMatrix.from_dense(_dense(17, 31, np.float32), format="panel")
    layer = gs.SparseLinear(a, _normal(17))
    assert layer.nbytes == a.nbytes + 17 * 4
    layer.backward(_normal(7, 17), _normal(7, 31))
    transpose = layer._transposed()
    assert layer.nbytes == a.nbytes + 17 * 4 + sum(part.nbytes for part in transpose._held())
    assert layer.nbytes > a.nbytes + 17 * 4 + a.nnz * 4
    layer.a = a.with_values(2 * a.values)  # the transpose is still that of the other values
    assert layer.nbytes == a.nbytes + 17 * 4 + sum(part.nbytes for m in (transpose, layer.a) for part in m._held())


def test_a_layer_pickled_before_it_kept_a_transpose_loads() -> None:
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(_dense(17, 31, np.float32)))
    old = gs.SparseLinear.__new__(gs.SparseLinear)
    vars(old).update(a=layer.a, bias=None, activation=None)  # what pickle does
    dy, x = _normal(7, 17), _normal(7, 31)
    assert_same_bits(old.backward(dy, x)[0], layer.backward(dy, x)[0])
    assert old.nbytes == layer.nbytes


@pytest.mark.parametrize("dtype", EVERY_FLOAT)
def test_gradients_of_a_dense_matrix_make_no_csr(dtype: type) -> None:
    w, x, dy = _dense(33, 47, dtype, 0.8), _normal(19, 47, dtype=dtype), _normal(19, 33, dtype=dtype)
    w[:, 3] = 0
    a = gs.SparseMatrix.from_dense(w, format="dense")
    held = a.nbytes
    dx, dvalues, _ = gs.SparseLinear(a).backward(dy, x)
    assert a.nbytes == held
    w64, x64, dy64 = (m.astype(np.float64) for m in (w, x, dy))
    wide = np.float64 if dtype == np.float64 else np.float32
    assert (dx.dtype, dvalues.dtype) == (dtype, wide)
    error = np.linalg.norm(dx - dy64 @ w64)
    tolerance = dict(zip(EVERY_FLOAT, (1e-6, 1e-14, 2e-3, 1e-2), strict=True))[dtype]
    assert error <= tolerance * np.linalg.norm(abs(dy64) @ abs(w64))
    assert_close(dvalues, (dy64.T @ x64)[w64 != 0], (abs(dy64).T @ abs(x64))[w64 != 0], wide)


def test_long_rows_keep_their_digits() -> None:
    """One chain of additions as long as the row would miss by 1e-4."""
    r = generator("long rows")
    w, x = r.random((2, 300_000), np.float32), r.random((300_000, 3), np.float32)
    for form in ("csr", "panel", "bitmask"):
        y = gs.matmul(gs.SparseMatrix.from_dense(w, format=form), x)
        assert_close(y, w.astype(np.float64) @ x.astype(np.float64), w @ x, np.float32)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask"])
def test_rounded_once(form: str) -> None:
    """From float64 to 16 bits: not over float32, which would round a number just above the middle down."""
    for dtype, bits in ((np.float16, 11), (ml_dtypes.bfloat16, 8)):
        w = np.array([[1 + 2.0**-bits + 2.0**-40], [-1 - 2.0**-bits - 2.0**-40], [1 + 2.0**-bits], [np.inf], [1e300]])
        y = gs.matmul(gs.SparseMatrix.from_dense(w, format=form), np.ones((1, 1), dtype)).astype(np.float64)
        assert y.ravel().tolist() == [1 + 2.0 ** (1 - bits), -1 - 2.0 ** (1 - bits), 1.0, np.inf, np.inf]


def test_out_is_not_the_matrix_itself() -> None:
    values, x = np.arange(16, dtype=np.float32), np.ones((4, 2), np.float32)
    a = gs.sddmm(x, x, gs.Mask.from_dense(np.ones((4, 4), bool)), out=values)
    with pytest.raises(ValueError, match="matmul: out must not overlap with the values of a"):
        gs.matmul(a, np.ones((4, 4), np.float32), out=values.reshape(4, 4))
