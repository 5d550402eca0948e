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
            assert_close(gs.matmul(a, x), exact @ x, abs(exact) @ abs(x), np.float32)
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
    a = gs.SparseMatrix.from_dense(weights((256, 1024), 0.5), format="bitmask", dtype="int8")
    assert a.nbytes == a.nnz + a.mask.packed.nbytes + 257 * 8 + 256 * 4


def test_rows_of_zeros_and_of_denormals() -> None:
    w = np.zeros((3, 8), np.float32)
    w[1] = 1e-44  # the scale underflows
    w[2] = np.linspace(-1, 1, 8)
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(np.ones((3, 8), bool)), dtype="int8")
    assert np.isfinite(a.to_dense()).all()
    assert_same_bits(a.to_dense()[0], np.zeros(8, np.float32))
    assert abs(a.to_dense()[2] - w[2]).max() <= 0.5 / 127 * (1 + 1e-6)


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


def test_gradients_are_those_of_the_scaled_numbers() -> None:
    a = gs.SparseMatrix.from_dense(weights((24, 40)), format="csr", dtype="int8")
    x = generator("int8 gradient").standard_normal((7, 40)).astype(np.float32)
    layer = gs.SparseLinear(a, activation="tanh")
    dense = gs.SparseLinear(gs.SparseMatrix.from_dense(a.to_dense(), a.mask), activation="tanh")
    for got, expected in zip(layer.backward(layer(x), x), dense.backward(dense(x), x), strict=True):
        if expected is not None:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_the_transpose_does_not_take_the_name_of_a_pattern() -> None:
    w, mask = gs.prune(weights((32, 64), 1.0), pattern="2:4")
    a = gs.SparseMatrix.from_dense(w, mask, format="2:4")
    assert a.T.format != "2:4"
    assert_same_bits(pickle.loads(pickle.dumps(a.T)).to_dense(), w.T)
