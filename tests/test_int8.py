# SPDX-License-Identifier: Apache-2.0
"""int8 values with a scale for each row: in every format, saved, pickled, and refused where they do not fit."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import assert_close, assert_same_bits, generator
from gossamer import reference

FORMATS = ("csr", "panel", "bitmask", "dense", "auto")


def weights(shape: tuple[int, int], density: float = 0.4) -> np.ndarray:
    r = generator("int8", shape, density)
    return np.where(r.random(shape) < density, r.standard_normal(shape), 0).astype(np.float32)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (37, 301), (130, 64), (5, 0), (0, 5), (300, 7)], ids=str)
def test_values_and_products(form: str, shape: tuple[int, int]) -> None:
    w = weights(shape)
    numbers, scales = reference.int8_rows(w)
    a = gs.SparseMatrix.from_dense(w, format=form, dtype="int8")
    assert a.dtype == np.int8
    assert a.nnz == np.count_nonzero(w)
    assert_same_bits(np.asarray(a.values), numbers[w != 0])
    assert_same_bits(np.asarray(a.scales), scales)
    exact = numbers * scales.astype(np.float64)[:, None]
    assert_same_bits(a.to_dense(), exact.astype(np.float32))
    assert_same_bits(a.to_scipy().toarray(), exact.astype(np.float32))
    for n in (0, 1, 2, 3, 5, 9, 33):
        for dtype in (np.float32, np.float64):
            x = generator("int8 x", n).standard_normal((shape[1], n)).astype(dtype)
            assert_close(gs.matmul(a, x), exact @ x, abs(exact) @ abs(x), dtype)
    x = generator("int8 batch").standard_normal((6, shape[1])).astype(np.float32)
    bias, residual = np.arange(shape[0], dtype=np.float32), np.ones((6, shape[0]), np.float32)
    y = gs.linear(x, a, bias=bias, activation="relu", residual=residual)
    assert_close(y, np.maximum(x @ exact.T + bias, 0) + 1, abs(x) @ abs(exact.T) + bias + 1, np.float32)


@pytest.mark.parametrize("form", [*FORMATS, "2:4", "bsr:4x2"])
def test_copies_files_and_new_values(form: str, tmp_path: Path) -> None:
    w = weights((48, 64), 1.0)
    w, mask = gs.prune(w, pattern=form.replace("bsr", "block") if ":" in form else "element", sparsity=0.5)
    a = gs.SparseMatrix.from_dense(w, mask, format=form, dtype=np.int8)
    gs.save(tmp_path / "m.safetensors", {"a": a})
    for b in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), gs.load(tmp_path / "m.safetensors")["a"]):
        assert (b.dtype, b.format, b.nnz) == (a.dtype, a.format, a.nnz)
        assert_same_bits(b.to_dense(), a.to_dense())
    doubled = a.with_values(2 * a.to_dense()[mask.to_dense()])  # floats: rounded anew
    np.testing.assert_allclose(doubled.to_dense(), 2 * a.to_dense(), rtol=1e-6)
    negative = a.with_values(-np.asarray(a.values))  # int8: the scales stay
    np.testing.assert_array_equal(negative.to_dense(), -a.to_dense())
    assert_same_bits(a.T.to_dense(), a.to_dense().T)
    assert a.T.dtype == np.float32


def test_bytes() -> None:
    w = weights((256, 1024), 0.5)
    for form in ("bitmask", "dense"):
        a = gs.SparseMatrix.from_dense(w, format=form, dtype="int8")
        held = a.nbytes
        assert held == (a.nnz if form == "bitmask" else w.size) + a.mask.packed.nbytes + 257 * 8 + 256 * 4
        copies = [pickle.loads(pickle.dumps(a)), copy.deepcopy(a)]
        a.to_dense(), a.to_scipy(), np.array(a.values)
        assert [m.nbytes for m in (a, *copies)] == [held] * 3


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_zeros_and_of_denormals(form: str, dtype: type) -> None:
    tiny = np.float32(1.1754944e-38)  # the smallest scale: what a row of smaller numbers is rounded to
    w = np.linspace(-1, 1, 9) * np.array([0, 1e-44, 1.9e-43, 1e-39, 3e-38, 1e-36, 1.4e-36, 1e-30, 1])[:, None]
    w = w.astype(np.float32)
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(np.ones(w.shape, bool)), format=form, dtype="int8")
    error = abs(a.to_dense().astype(np.float64) - w)
    assert (error <= np.maximum(abs(w).max(axis=1, keepdims=True) / 127, tiny) * 0.5001).all()
    assert_same_bits(a.to_dense()[0], np.zeros(9, np.float32))
    for n in (1, 7):
        x = np.full((9, n), 1e35, dtype)
        x[::2] *= -0.5
        exact = a.to_dense().astype(np.float64)
        y = gs.matmul(a, x)
        assert np.isfinite(y).all()
        assert_close(y, exact @ x, abs(exact) @ abs(x), dtype)


@pytest.mark.parametrize("form", FORMATS)
def test_rows_too_small_for_a_scale_are_zeros(form: str) -> None:
    w = np.array([[1e-44, -1e-44], [5e-39, 0], [1, 0.5]], np.float32)  # numbers of 127 times huge x would overflow
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(np.ones(w.shape, bool)), format=form, dtype="int8")
    assert np.array(a.values).tolist() == [0, 0, 0, 0, 127, 64]
    for n in (1, 8):
        assert_same_bits(gs.matmul(a, np.full((2, n), 3e38, np.float32))[:2], np.zeros((2, n), np.float32))


@pytest.mark.parametrize("form", FORMATS)
def test_the_largest_numbers_stay_finite_and_an_error_state_stops_nothing(form: str) -> None:
    w = np.array([[3.4028235e38, -1e-320], [1e-320, 1e-300]])
    numbers, scales = reference.int8_rows(w)
    with np.errstate(all="raise"):
        a = gs.SparseMatrix.from_dense(w, format=form, dtype="int8")
        dense = a.to_dense()
    assert np.isfinite(dense).all()
    np.testing.assert_allclose(dense[0, 0], w[0, 0], rtol=1e-6)
    assert_same_bits(np.asarray(a.values), numbers.ravel())
    assert_same_bits(np.asarray(a.scales), scales)


def test_dequantize_gives_the_numbers_times_their_scales() -> None:
    a = gs.SparseMatrix.from_dense(weights((24, 40)), dtype="int8")
    kept = a.mask.to_dense()
    assert_same_bits(a.dequantize(), a.to_dense()[kept])
    rate, dvalues = np.float32(0.1), generator("step").standard_normal(a.nnz).astype(np.float32)
    stepped = a.with_values(a.dequantize() - rate * dvalues)
    largest = abs(stepped.to_dense()).max(axis=1, keepdims=True)
    expected = a.to_dense()
    expected[kept] -= rate * dvalues
    assert (abs(stepped.to_dense() - expected) <= largest / 127 * 0.501).all()
    floats = gs.SparseMatrix.from_dense(weights((24, 40)))
    assert_same_bits(floats.dequantize(), np.asarray(floats.values))


@pytest.mark.parametrize(("rows", "cols"), [(60, 37), (7, 5000), (5000, 3)])
def test_rows_of_any_length_are_quantized(rows: int, cols: int) -> None:
    w = weights((rows, cols), 0.5)
    w[rows // 6 : rows // 3] = 0
    w[rows // 2, 1:] = 0
    expected, scales = reference.int8_rows(w)
    for dtype in (np.float32, np.float64):
        a = gs.SparseMatrix.from_dense(w.astype(dtype), format="bitmask", dtype="int8")
        assert_same_bits(np.asarray(a.values), expected[w != 0])
        assert_same_bits(np.asarray(a.scales), scales)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_handed_out_stays_read_only(form: str) -> None:
    for dtype in ("int8", "float32"):
        a = gs.SparseMatrix.from_dense(weights((5, 7)), format=form, dtype=dtype)
        for part in (a.values, a.scales):
            if part is not None:
                assert not part.flags.writeable
                with pytest.raises(ValueError, match="WRITEABLE"):
                    part.flags.writeable = True


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    w = np.ones((2, 2))
    w[1, 0] = bad
    with pytest.raises(ValueError, match=r"^SparseMatrix.from_dense: w must be finite \(in float32\)"):
        gs.SparseMatrix.from_dense(w, dtype="int8")
    a = gs.SparseMatrix.from_dense(np.ones((2, 2)), dtype="int8")
    with pytest.raises(ValueError, match=r"^SparseMatrix.with_values: v must be finite"):
        a.with_values(w.ravel())


def test_what_does_not_fit() -> None:
    w = np.ones((2, 2), np.float32)
    with pytest.raises(TypeError, match="dtype must be"):
        gs.SparseMatrix.from_dense(w, dtype="int16")
    with pytest.raises(TypeError, match="values"):
        gs.SparseMatrix.from_csr(np.array([0, 1]), np.array([0]), np.ones(1, np.int8), (1, 1))
    a = gs.SparseMatrix.from_dense(w, dtype="int8")
    with pytest.raises(ValueError, match=r"^SparseMatrix.with_values: v must have the shape \(4,\)"):
        a.with_values(np.ones(3, np.int8))
    rebuild: Any
    rebuild, arguments = a.__reduce__()
    for scales in (np.ones(3, np.float32), np.ones(2), "scales", None):
        with pytest.raises((TypeError, ValueError)):
            rebuild(*arguments[:-1], scales)


def test_a_file_without_scales_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(path, {"a": gs.SparseMatrix.from_dense(np.ones((2, 2), np.float32), dtype="int8")})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"a.scales", b"a.scalez"))
    with pytest.raises(ValueError, match="tensor 'a' must be whole"):
        gs.load(path)


@pytest.mark.parametrize("form", FORMATS)
def test_gradients_are_those_of_the_scaled_numbers(form: str) -> None:
    a = gs.SparseMatrix.from_dense(weights((24, 40)), format=form, dtype="int8")
    x = generator("int8 gradient").standard_normal((7, 40)).astype(np.float32)
    layer = gs.SparseLinear(a, activation="tanh")
    dense = gs.SparseLinear(gs.SparseMatrix.from_dense(a.to_dense(), a.mask, format="csr"), activation="tanh")
    for got, expected in zip(layer.backward(layer(x), x), dense.backward(dense(x), x), strict=True):
        if expected is not None:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_transpose_does_not_take_the_name_of_a_pattern() -> None:
    w, mask = gs.prune(weights((32, 64), 1.0), pattern="2:4")
    a = gs.SparseMatrix.from_dense(w, mask, format="2:4")
    assert a.T.format != "2:4"
    assert_same_bits(pickle.loads(pickle.dumps(a.T)).to_dense(), w.T)


@pytest.mark.parametrize(
    ("values", "scales"),
    [([-128], [1.0]), ([1], [np.nan]), ([1], [np.inf]), ([1], [-1.0]), (None, [1.0])],
)
def test_parts_that_no_matrix_has_are_refused(values: Any, scales: list[float]) -> None:
    rebuild, (mask, _, plan, _) = gs.SparseMatrix.from_dense(np.ones((1, 1), np.float32), dtype="int8").__reduce__()
    held = None if values is None else np.array(values, np.int8)
    with pytest.raises((TypeError, ValueError), match=r"^SparseMatrix: .*(values|scales) must be"):
        rebuild(mask, held, plan, np.array(scales, np.float32))
