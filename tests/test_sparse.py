# SPDX-License-Identifier: Apache-2.0
"""``SparseMatrix``: building, attributes, conversions, hostile input, copies."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import gossamer as gs
from cases import FLOATS, LAYOUTS, assert_close, assert_same_bits, generator, right_or_refused
from gossamer import reference, sparse

FORMATS = ("csr", "panel", "bitmask", "dense", "auto")
SHAPES = [(1, 1), (3, 5), (17, 31), (0, 5), (5, 0), (0, 0), (64, 48), (1, 1000), (1000, 1), (301, 203)]


def _dense(shape: tuple[int, ...], dtype: Any = np.float32, density: float = 0.3) -> np.ndarray:
    r = generator("sparse", shape, density)
    return np.where(r.random(shape) < density, r.standard_normal(shape), 0.0).astype(dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("form", FORMATS)
def test_from_dense_and_back(dtype: type, shape: tuple[int, int], density: float, form: str) -> None:
    w = _dense(shape, dtype, density)
    a = gs.SparseMatrix.from_dense(w, format=form)
    indptr, indices, kept = reference.csr_from_dense(w)
    assert a.shape == shape
    assert a.nnz == len(kept)
    assert a.dtype == w.dtype
    if w.size:
        assert a.density == len(kept) / w.size
    assert_same_bits(np.asarray(a.values), kept)
    assert_same_bits(a.to_dense(), w + 0.0)
    assert isinstance(a.format, str)
    assert isinstance(a.nbytes, int)
    assert a.nbytes >= kept.nbytes
    if form != "auto":
        assert a.format == form
    sparse = a.to_scipy().tocsr()
    assert sparse.shape == shape
    assert sparse.dtype == w.dtype
    assert (sparse.indptr == indptr).all()
    assert (sparse.indices == indices).all()
    assert (sparse.data == kept).all()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", [(17, 31), (0, 5), (64, 48)], ids=str)
def test_from_dense_with_a_mask_keeps_zeros(form: str, shape: tuple[int, int]) -> None:
    w = _dense(shape, density=0.5)
    kept = generator("kept", shape).random(shape) < 0.4
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(kept), format=form)
    assert a.nnz == kept.sum()
    assert_same_bits(np.asarray(a.values), w[kept])
    assert_same_bits(a.to_dense(), np.where(kept, w, np.float32(0)))
    assert a.to_scipy().nnz == kept.sum()  # explicit zeros


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_from_dense_in_every_layout(form: str, layout: str) -> None:
    w = _dense((17, 31))
    view = LAYOUTS[layout](w)
    a = gs.SparseMatrix.from_dense(view, format=form)
    assert_same_bits(a.to_dense(), w)
    assert_same_bits(view, w)


@pytest.mark.parametrize("form", FORMATS)
def test_a_kernel_is_a_matrix_and_the_copy_is_independent(form: str) -> None:
    w = _dense((8, 4, 3, 3))
    a = gs.SparseMatrix.from_dense(w, format=form)
    expected = w.reshape(8, 36).copy()
    assert a.shape == (8, 36)
    w[...] = 7
    assert_same_bits(a.to_dense(), expected)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_nan_and_infinity_are_values_and_minus_zero_is_none(form: str) -> None:
    w = np.array([[np.nan, 0.0, -np.inf], [-0.0, np.inf, 1.0]])
    a = gs.SparseMatrix.from_dense(w, format=form)
    assert a.nnz == 4
    assert_same_bits(a.to_dense(), w + 0.0)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "float64", np.float64, np.dtype(np.float32)])
def test_dtype_converts(form: str, dtype: Any) -> None:
    w = _dense((9, 7), np.float64)
    a = gs.SparseMatrix.from_dense(w, format=form, dtype=dtype)
    assert a.dtype == np.dtype(dtype)
    assert_same_bits(a.to_dense(), w.astype(dtype))


# scipy


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "bsr", "dia", "dok"])
def test_scipy_round_trip(dtype: type, kind: str) -> None:
    w = _dense((18, 24), dtype)
    for build in (scipy.sparse.csr_array, scipy.sparse.csr_matrix):
        source = build(w).asformat(kind)
        a = gs.SparseMatrix.from_scipy(source)
        assert a.dtype == w.dtype
        assert a.format == "csr"
        assert_same_bits(a.to_dense(), w)
        assert scipy.sparse.issparse(a.to_scipy())
        assert_same_bits(a.to_scipy().toarray(), w)


@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_from_scipy_sorts_and_sums_and_leaves_the_source_alone(index: type) -> None:
    data = np.array([1.0, 2.0, 3.0, 4.0, 0.0])
    indices, indptr = np.array([3, 0, 3, 1, 1], index), np.array([0, 3, 3, 5], index)
    source = scipy.sparse.csr_array((data.copy(), indices.copy(), indptr.copy()), shape=(3, 4))
    a = gs.SparseMatrix.from_scipy(source)
    assert a.to_dense().tolist() == [[2, 0, 0, 4], [0, 0, 0, 0], [0, 4, 0, 0]]
    assert np.asarray(a.values).tolist() == [2, 4, 4]
    assert source.data.tolist() == data.tolist()
    assert source.indices.tolist() == indices.tolist()
    assert source.indptr.tolist() == indptr.tolist()


def test_from_scipy_of_a_coo_with_duplicates() -> None:
    source = scipy.sparse.coo_array((np.array([1.0, 2.0, 5.0], np.float32), ([1, 1, 0], [2, 2, 0])), shape=(2, 3))
    a = gs.SparseMatrix.from_scipy(source)
    assert a.to_dense().tolist() == [[5, 0, 0], [0, 0, 3]]
    assert source.nnz == 3


def _damaged(kind: str, **arrays: Any) -> Any:
    source = scipy.sparse.csr_array(np.array([[1.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 3], [0, 0, 0, 0]])).asformat(kind)
    for name, array in arrays.items():
        setattr(source, name, array)
    return source


FAR, LISTS = 10**9, np.array([[0], [1], [3], []], dtype=object)
DAMAGED: list[tuple[str, str, dict[str, Any]]] = [
    *(
        (kind, message, arrays)
        for kind in ("csr", "csc")
        for message, arrays in (
            ("indices must be in", {"indices": np.array([0, FAR, 1])}),
            ("indices must be in", {"indices": np.array([0, -FAR, 1])}),
            ("indptr must begin with 0 and never fall", {"indptr": np.array([0, 3, 1, 3, 3])}),
            ("indptr must begin with 0 and never fall", {"indptr": np.array([0, 3, FAR, 3, 3])}),
            ("indptr must begin with 0 and never fall", {"indptr": np.array([1, 1, 2, 3, 3])}),
            ("indptr must begin with 0 and never fall", {"indptr": np.array([-FAR, 1, 2, 3, 3])}),
            ("indptr must end at most at 3", {"indptr": np.array([0, 1, 2, 3, FAR])}),
            ("indptr must have 5 entries", {"indptr": np.array([0, 3])}),
            ("indptr must have one dimension", {"indptr": np.array([[0, 1, 2, 3, 3]])}),
            ("indices must be integers", {"indices": np.array([0.0, 1.0, 2.0])}),
            ("data must have as many entries", {"data": np.ones(2)}),
        )
    ),
    ("bsr", "indices must be in", {"indices": np.array([0, FAR, 1])}),
    ("bsr", "indptr must", {"indptr": np.array([0, 1, FAR])}),
    ("bsr", "data must be blocks", {"data": np.ones((3, 3, 1))}),
    ("bsr", "data must be blocks", {"data": np.ones((3, 0, 1))}),
    ("bsr", "data must be blocks", {"data": np.ones(3)}),
    ("coo", "row must be in", {"coords": (np.array([0, FAR, 1]), np.array([0, 1, 3]))}),
    ("coo", "col must be in", {"coords": (np.array([0, 1, 2]), np.array([0, -FAR, 3]))}),
    ("coo", "row must have the shape of a.data", {"data": np.ones(2)}),
    ("dia", "data must have a row for each", {"offsets": np.array([0])}),
    ("lil", "rows must be in", {"rows": np.array([[0], [FAR], [3], []], dtype=object)}),
    ("lil", "rows and a.data must have lists of one length", {"rows": np.array([[0], [1, 2], [3], []], dtype=object)}),
    ("lil", "rows and a.data must have 4 lists", {"rows": LISTS[:2]}),
]


@pytest.mark.parametrize(("kind", "message", "arrays"), DAMAGED)
def test_from_scipy_checks_before_scipy_reads(kind: str, message: str, arrays: dict[str, Any]) -> None:
    source = _damaged(kind, **arrays)
    with pytest.raises((TypeError, ValueError), match=rf"^SparseMatrix.from_scipy: a\.{message}"):
        gs.SparseMatrix.from_scipy(source)
    for name, array in arrays.items():
        assert np.array_equal(getattr(source, name), array)


def test_from_scipy_does_not_believe_a_flag() -> None:
    source = scipy.sparse.csr_array((np.ones(3), np.array([2, 0, 0]), np.array([0, 3])), shape=(1, 3))
    source.has_canonical_format = True
    assert gs.SparseMatrix.from_scipy(source).to_dense().tolist() == [[2, 0, 1]]
    assert source.has_canonical_format


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "bsr", "dia", "dok"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (3, 4)])
def test_from_scipy_of_nothing(kind: str, shape: tuple[int, int]) -> None:
    a = gs.SparseMatrix.from_scipy(scipy.sparse.coo_array(shape).asformat(kind))
    assert (a.shape, a.nnz) == (shape, 0)


# from_csr


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_from_csr(dtype: type, index: type, shape: tuple[int, int]) -> None:
    w = _dense(shape, dtype)
    indptr, indices, kept = reference.csr_from_dense(w)
    a = gs.SparseMatrix.from_csr(indptr.astype(index), indices.astype(index), kept, shape)
    assert a.format == "csr"
    assert a.shape == shape
    assert a.nnz == len(kept)
    assert a.dtype == dtype
    assert_same_bits(a.to_dense(), w)


def test_from_csr_takes_strided_arrays_and_explicit_zeros() -> None:
    indptr, indices, kept = (np.repeat(part, 2)[::2] for part in ([0, 1, 1, 3], [2, 0, 1], [0.0, 5.0, np.nan]))
    a = gs.SparseMatrix.from_csr(indptr, indices, kept, (3, 3))
    assert a.nnz == 3
    assert_same_bits(a.to_dense(), np.array([[0, 0, 0], [0, 0, 0], [5, np.nan, 0]]))


GOOD: dict[str, Any] = {
    "indptr": np.array([0, 2, 2, 3]),
    "indices": np.array([0, 3, 1]),
    "values": np.array([1.0, 2.0, 3.0]),
    "shape": (3, 4),
}


@pytest.mark.parametrize(
    ("change", "error", "names"),
    [
        ({"indptr": np.array([0, 2, 1, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 3, 3, 2])}, ValueError, "indptr"),
        ({"indptr": np.array([1, 2, 2, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([-1, 2, 2, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 2, 2, 4])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 2, 2, 2])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 2, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 2, 2, 3, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([], np.int64)}, ValueError, "indptr"),
        ({"indptr": np.array([[0, 2, 2, 3]])}, ValueError, "indptr"),
        ({"indptr": np.array([0, 2**40, 2**40, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([0, -(2**63), 2**62, 3])}, ValueError, "indptr"),
        ({"indptr": np.array([0.0, 2, 2, 3])}, TypeError, "indptr"),
        ({"indptr": np.array([0, 2, 2, 3], bool)}, TypeError, "indptr"),
        ({"indices": np.array([0, 4, 1])}, ValueError, "indices"),
        ({"indices": np.array([0, 3, -1])}, ValueError, "indices"),
        ({"indices": np.array([0, 2**32 + 1, 1])}, ValueError, "indices"),
        ({"indices": np.array([0, -(2**32) + 1, 1])}, ValueError, "indices"),
        ({"indices": np.array([3, 0, 1])}, ValueError, "indices"),
        ({"indices": np.array([3, 3, 1])}, ValueError, "indices"),
        ({"indices": np.array([0, 3])}, ValueError, "indices"),
        ({"indices": np.array([[0, 3, 1]])}, ValueError, "indices"),
        ({"indices": np.array([0.0, 3.0, 1.0])}, TypeError, "indices"),
        ({"values": np.array([1.0, 2.0])}, ValueError, "values"),
        ({"values": np.array([1.0, 2.0, 3.0, 4.0])}, ValueError, "values"),
        ({"values": np.array([[1.0, 2.0, 3.0]])}, ValueError, "values"),
        ({"values": np.array([1, 2, 3])}, TypeError, "values"),
        ({"values": np.array([1j, 2, 3])}, TypeError, "values"),
        ({"shape": (3,)}, ValueError, "shape"),
        ({"shape": (3, 4, 1)}, ValueError, "shape"),
        ({"shape": (-3, 4)}, ValueError, "shape"),
        ({"shape": (3, -4)}, ValueError, "shape"),
        ({"shape": (2, 4)}, ValueError, "indptr"),
        ({"shape": (4, 4)}, ValueError, "indptr"),
        ({"shape": (3, 3)}, ValueError, "indices"),
        ({"shape": (3.0, 4.0)}, TypeError, "shape"),
        ({"shape": "34"}, TypeError, "shape"),
    ],
    ids=lambda part: (
        "-".join(f"{k}={v!r}".replace("\n", "") for k, v in part.items()) if isinstance(part, dict) else ""
    ),
)
def test_from_csr_checks_everything(change: dict[str, Any], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=rf"^(SparseMatrix\.)?from_csr: .*{names}"):
        gs.SparseMatrix.from_csr(**{**GOOD, **change})


def test_from_csr_copies() -> None:
    parts = {name: part.copy() if isinstance(part, np.ndarray) else part for name, part in GOOD.items()}
    a = gs.SparseMatrix.from_csr(**parts)
    expected = a.to_dense().copy()
    parts["indices"][...] = 10**6  # what was checked must stay what is used
    parts["indptr"][...] = 10**6
    assert_same_bits(a.to_dense(), expected)


# values, transposes, copies


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_with_values_keeps_the_structure(form: str) -> None:
    w = _dense((17, 31))
    kept = generator("kept").random(w.shape) < 0.4
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(kept), format=form)
    new = generator("new").standard_normal(a.nnz).astype(np.float32)
    new[3] = 0
    b = a.with_values(new)
    expected = np.zeros_like(w)
    expected[kept] = new
    assert b.format == a.format
    assert b.nnz == a.nnz
    assert b.dtype == a.dtype
    assert b.shape == a.shape
    assert_same_bits(np.asarray(b.values), new)
    assert_same_bits(b.to_dense(), expected)
    assert_same_bits(a.to_dense(), np.where(kept, w, np.float32(0)))  # the original is untouched
    new[...] = 9
    assert_same_bits(b.to_dense(), expected)
    x = generator("x").standard_normal((4, 31)).astype(np.float32)
    np.testing.assert_allclose(gs.linear(x, b), x @ expected.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gs.linear(x, a), x @ np.where(kept, w, 0).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["csr", "panel", "bitmask", "dense"])
def test_writing_into_values_never_tears_the_matrix(form: str) -> None:
    a = gs.SparseMatrix.from_dense(_dense((17, 31)), format=form)
    held = a.values
    try:
        held[...] = 1.0
    except ValueError:
        return  # read-only
    dense = a.to_dense()
    assert_same_bits(dense[dense != 0], np.asarray(a.values))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transpose(dtype: type, form: str, shape: tuple[int, int]) -> None:
    w = _dense(shape, dtype)
    a = gs.SparseMatrix.from_dense(w, format=form)
    assert a.T.shape == shape[::-1]
    assert a.T.nnz == a.nnz
    assert a.T.dtype == a.dtype
    assert_same_bits(a.T.to_dense(), np.ascontiguousarray(w.T) + 0.0)
    assert_same_bits(np.asarray(a.T.values), w.T[w.T != 0])
    assert_same_bits(a.T.T.to_dense(), w + 0.0)


def test_transpose_keeps_explicit_zeros() -> None:
    kept = generator("kept").random((6, 9)) < 0.5
    for form in ("csr", "panel", "bitmask", "dense"):
        a = gs.SparseMatrix.from_dense(np.zeros((6, 9), np.float32), gs.Mask.from_dense(kept), format=form)
        assert a.T.nnz == kept.sum()


@pytest.mark.parametrize("form", FORMATS)
def test_pickle_and_deepcopy(form: str) -> None:
    w = _dense((33, 21), np.float64)
    a = gs.SparseMatrix.from_dense(w, format=form)
    x = generator("x").standard_normal((4, 21))
    y = gs.linear(x, a)
    for b in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a), copy.copy(a)):
        assert b.shape == a.shape
        assert b.format == a.format
        assert b.nnz == a.nnz
        assert b.dtype == a.dtype
        assert_same_bits(b.to_dense(), w + 0.0)
        assert_same_bits(gs.linear(x, b), y)


def test_a_forged_pickle_does_not_bypass_the_checks() -> None:
    """The bytes of a pickle may be damaged; out-of-range indices must not reach a kernel."""
    a = gs.SparseMatrix.from_csr(np.array([0, 1, 2]), np.array([1, 77]), np.array([1.0, 2.0]), (2, 100))
    raw = pickle.dumps(a)
    for width in (4, 8):
        good, bad = (77).to_bytes(width, "little"), (10**6).to_bytes(width, "little")
        if raw.count(good) != 1:
            continue
        forged = right_or_refused(lambda raw=raw, g=good, b=bad: pickle.loads(raw.replace(g, b)), ValueError, "indices")
        assert forged is None or forged.to_dense()[1].sum() in (0.0, 2.0)


def test_a_forged_plan_is_refused() -> None:
    a = gs.SparseMatrix.from_dense(_dense((9, 7)))
    rebuild: Any
    rebuild, arguments = a.__reduce__()
    at = next(i for i, part in enumerate(arguments) if isinstance(part, tuple) and "auto" in part)

    def loaded(steps: Any, asked: Any = "auto", text: Any = "why") -> gs.SparseMatrix:
        matrix: gs.SparseMatrix = rebuild(*arguments[:at], (steps, asked, text), *arguments[at + 1 :])
        return matrix

    assert loaded(((1, "bitmask"), (5, "panel"))).plan == "why"
    for steps in (
        (),
        ((2, "csr"),),
        ((0, "csr"),),
        ((1, "csr"), (1, "panel")),
        ((1, "csr"), (9, "panel"), (5, "dense")),
        ((1, "csr"), (9, "auto")),
        ((1, ("csr",)),),
        ((1, np.array(["csr", "panel"])),),
        ((1, None),),
        ((1.0, "csr"),),
        (("1", "csr"),),
        (1, "csr"),
        None,
    ):
        with pytest.raises((TypeError, ValueError), match=r"^SparseMatrix: the plan must"):
            loaded(steps)
    for asked, text in ((None, "why"), (b"auto", "why"), ("auto", 1), ("magic", "why")):
        with pytest.raises((TypeError, ValueError), match=r"^SparseMatrix: "):
            loaded(((1, "csr"),), asked, text)


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@pytest.mark.parametrize("form", FORMATS)
def test_pickles_from_before_masks_were_in_them_load(form: str, dtype: str) -> None:
    a = gs.SparseMatrix.from_dense(_dense((33, 21)), format=form, dtype=dtype)
    indptr, indices, _ = reference.csr_from_dense(_dense((33, 21)))
    old = sparse._rebuild(a.shape, indptr, indices, np.array(a.values), tuple(a._plan), a.scales)
    assert (old.format, old.dtype, old.plan) == (a.format, a.dtype, a.plan)
    assert_same_bits(old.to_dense(), a.to_dense())


def test_a_pickle_of_few_values_in_a_huge_shape_is_small() -> None:
    a = gs.SparseMatrix.from_csr(np.arange(1001), np.arange(1000), np.ones(1000), (1000, 1 << 40))
    assert len(pickle.dumps(a)) < 40_000
    assert pickle.loads(pickle.dumps(a)).nnz == 1000
    a = gs.SparseMatrix.from_csr(np.arange(1001), np.arange(1000), np.ones(1000), (1000, 1 << 16))
    assert a.mask.nnz == 1000  # which is kept, and far larger
    assert len(pickle.dumps(a)) < 40_000


@pytest.mark.parametrize("form", ["panel", "bitmask", "dense", "csr"])
def test_nothing_that_copies_leaves_bytes_behind(form: str) -> None:
    a = gs.SparseMatrix.from_dense(_dense((200, 300)), format=form)
    held = a.nbytes
    if form != "csr":
        assert held < w_bytes(a) + a.mask.packed.nbytes + 201 * 8 + 0.07 * a.nnz * 5
    copies = [pickle.loads(pickle.dumps(a)), copy.deepcopy(a)]
    a.to_dense(), a.to_scipy()
    assert [m.nbytes for m in (a, *copies)] == [held] * 3
    scipy_made = gs.SparseMatrix.from_scipy(a.to_scipy())
    held = scipy_made.nbytes
    assert_same_bits(scipy_made.to_dense(), a.to_dense())
    assert scipy_made.nbytes == held


def w_bytes(a: gs.SparseMatrix) -> int:
    """Of the values of a float32 matrix in its format: those of panels have one byte a column index."""
    return {"dense": 4 * a.shape[0] * a.shape[1], "bitmask": 4 * a.nnz, "panel": 5 * a.nnz}[a.format]


def test_auto_says_what_it_picked_and_stays() -> None:
    for density in (0.01, 0.9):
        a = gs.SparseMatrix.from_dense(_dense((200, 300), density=density))
        x = generator("x").standard_normal((16, 300)).astype(np.float32)
        first = gs.linear(x, a)
        assert str(a.plan)
        assert_same_bits(gs.linear(x, a), first)
        assert a.nbytes > 0


def test_nbytes_counts_indices() -> None:
    w = _dense((200, 300), density=0.1)
    csr = gs.SparseMatrix.from_dense(w, format="csr")
    assert csr.nbytes >= csr.nnz * 4 + csr.nnz * 2 + 200 * 4
    assert gs.SparseMatrix.from_dense(w, format="dense").nbytes >= w.nbytes


def test_the_matrix_operator_and_repr() -> None:
    w = _dense((17, 31), np.float64)
    a = gs.SparseMatrix.from_dense(w, format="csr")
    x = generator("x").standard_normal((31, 4))
    assert_same_bits(a @ x, gs.matmul(a, x))
    assert_same_bits(a @ x[:, 0].copy(), gs.matmul(a, x[:, 0].copy()))
    text = repr(a)
    assert "17" in text
    assert "31" in text
    assert "csr" in text
    assert len(text) < 300


# patterns that a format names


@pytest.mark.parametrize("form", ["2:4", "1:4", "3:8", "n:m", "bsr:8x1", "bsr:4x4", "bsr:1x8", "bsr:3x2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_formats_of_a_pattern(form: str, dtype: type) -> None:
    w = generator("pattern", form).standard_normal((72, 240)).astype(dtype)
    pattern = "2:4" if form == "n:m" else form.replace("bsr", "block")
    pruned, mask = gs.prune(w, pattern=pattern, sparsity=0.6 if "block" in pattern else None)
    a = gs.SparseMatrix.from_dense(w, mask, format=form)
    assert a.format == pattern.replace("block", "bsr")
    assert a.plan.startswith(a.format)
    assert_same_bits(a.to_dense(), pruned)
    assert_same_bits(np.asarray(a.values), pruned[mask.to_dense()])
    for n in (1, 2, 5, 9, 70):
        x = generator("pattern x", n).standard_normal((240, n)).astype(dtype)
        y, scale = pruned.astype(np.float64) @ x.astype(np.float64), abs(pruned).astype(float) @ abs(x).astype(float)
        assert_close(gs.matmul(a, x), y, scale, dtype)
    for copied in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), a.with_values(a.values)):
        assert copied.format == a.format
        assert_same_bits(copied.to_dense(), pruned)


def test_vectors_need_one_index_for_four_rows() -> None:
    w = generator("vectors").standard_normal((1021, 512)).astype(np.float32)  # the last vector has five rows
    kept = np.repeat(generator("vectors kept").random((128, 512)) < 0.5, 8, axis=0)[:1021]
    a = gs.SparseMatrix.from_dense(w, gs.Mask.from_dense(kept), format="panel")
    gs.matmul(a, np.ones((512, 8), np.float32))
    assert a.nbytes < a.nnz * 4.4 + a.mask.packed.nbytes + 8 * 1022
    assert_same_bits(a.to_dense(), np.where(kept, w, np.float32(0)))
    x = generator("vectors x").standard_normal((512, 40)).astype(np.float32)
    assert_close(gs.matmul(a, x), np.where(kept, w, 0).astype(np.float64) @ x, abs(w * kept) @ abs(x), np.float32)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("2:4", "must keep at most 2 of every 4, got more in row 0, group 1"),
        ("2:5", "must divide the rows into groups"),
        ("5:4", "must have N <= M <= 32, got 5:4"),
        ("2:40", "must have N <= M <= 32, got 2:40"),
        ("0:0", "must have N <= M <= 32, got 0:0"),
        ("n:m", "must keep N of every M <= 32"),
        ("bsr:2x2", "must keep whole 2x2 blocks, got a part of block .0, 2."),
        ("bsr:3x1", "must divide the shape into blocks"),
        ("bsr:0x1", "format must be one of"),
        ("02:4", "format must be one of"),
        ("2:04", "format must be one of"),
        ("bsr:4", "format must be one of"),
        ("bsr:", "format must be one of"),
        ("1:2:4", "format must be one of"),
        ("²:4", "format must be one of"),
    ],
)
def test_formats_that_a_mask_does_not_have(form: str, message: str) -> None:
    kept = np.zeros((4, 12), bool)
    kept[0, 4:7] = True
    with pytest.raises(ValueError, match=f"^SparseMatrix.from_dense: .*{message}"):
        gs.SparseMatrix.from_dense(np.ones((4, 12), np.float32), gs.Mask.from_dense(kept), format=form)


@pytest.mark.parametrize(
    ("shape", "format"), [((0, 8), "0:2"), ((8, 0), "0:2"), ((0, 0), "0:2"), ((0, 7), "0:7"), ((4, 9), "0:3")]
)
def test_n_of_m_of_a_mask_that_keeps_nothing(shape: tuple[int, int], format: str) -> None:
    a = gs.SparseMatrix.from_dense(np.zeros(shape, np.float32), format="n:m")
    assert (a.format, a.nnz) == (format, 0)
    assert_same_bits(gs.matmul(a, np.ones((shape[1], 9), np.float32)), np.zeros((shape[0], 9), np.float32))
    assert pickle.loads(pickle.dumps(a)).format == format


@pytest.mark.parametrize("dtype", ["foo", "f4,f4", "int16", "", "O", object(), 3, str, "2:4", "(", "9999999999999f4"])
def test_a_dtype_that_is_none(dtype: Any) -> None:
    with pytest.raises(
        TypeError, match=r"^SparseMatrix.from_dense: .*dtype must be float32, float64, float16, bfloat16"
    ):
        gs.SparseMatrix.from_dense(np.ones((2, 2)), dtype=dtype)


@pytest.mark.parametrize("rows", ["power law", "one full row"])
def test_skewed_rows(rows: str) -> None:
    r = generator("skewed", rows)
    share = np.minimum(1, 40 / np.arange(1, 701)) if rows == "power law" else np.arange(700) == 333
    kept = r.random((700, 900)) < share[:, None]
    w = np.where(kept, r.standard_normal((700, 900)), 0).astype(np.float32)
    x = r.standard_normal((900, 33)).astype(np.float32)
    for form in FORMATS:
        a = gs.SparseMatrix.from_dense(w, format=form)
        assert_close(gs.matmul(a, x), w.astype(np.float64) @ x, abs(w) @ abs(x), np.float32)
        assert_same_bits(a.to_dense(), w)
