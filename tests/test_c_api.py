# SPDX-License-Identifier: Apache-2.0
"""The C library beside the Python package: the same results, bit for bit, and the same files."""

from __future__ import annotations

import ctypes as c
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from c_api import (
    ACTIVATIONS,
    DTYPES,
    INT8,
    LIB,
    RULES,
    Csr,
    File,
    Matrix,
    Selection,
    Tensors,
    address,
    check,
    described,
    save,
)
from cases import BFLOAT16, generator, values
from checkpoint_files import one, write_raw
from test_checkpoints_headers import BROKEN

FLOATS = (np.float32, np.float64, np.float16, BFLOAT16)
NEEDS_GRADS = ("gradient", "taylor", "taylor2", "snip", "grasp", "synflow")
METHODS = ("magnitude", "lamp", "fpgm", "random", *NEEDS_GRADS)
FORMATS = ("csr", "bitmask", "panel")


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def layers(dtype: Any) -> list[np.ndarray]:
    shapes = ((24, 40), (17,), (5, 3, 16))
    return [values(kind, shape, dtype) for kind, shape in zip(("normal", "heavy_ties", "normal"), shapes, strict=True)]


def masks_of(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Packed masks as Python has them: [rows, bytes]."""
    rows = [1 if a.ndim < 2 else len(a) for a in arrays]
    return [np.zeros((n, -(-(a.size // n) // 8)), np.uint8) for n, a in zip(rows, arrays, strict=True)]


def test_one_version_and_the_same_instructions() -> None:
    assert LIB.gossamer_version().decode() == gs.__version__
    assert LIB.gossamer_isa().decode() == gs.info()["isa"]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("method", METHODS)
def test_scores(method: str, dtype: Any) -> None:
    weights = layers(dtype)
    grads = [values("normal", w.shape, dtype, "grads") for w in weights] if method in NEEDS_GRADS else None
    given = [w.reshape(1, -1) if method == "fpgm" and w.ndim < 2 else w for w in weights]
    named = {f"t{i}": w for i, w in enumerate(given)}
    with_grads = None if grads is None else {f"t{i}": g for i, g in enumerate(grads)}
    expected = gs.score(named, with_grads, method=method, seed=5)
    outs = [np.empty(e.shape, e.dtype) for e in expected.values()]
    tensors = Tensors(given, out=outs, **({} if grads is None else {"aux": grads}))
    check(LIB.gossamer_score(method.encode(), tensors.items, tensors.count, c.c_uint64(5)))
    for out, e in zip(outs, expected.values(), strict=True):
        assert same_bits(out, e)


RULED = [
    ({"sparsity": 0.7}, "element", "tensor"),
    ({"sparsity": 0.7}, "element", "row"),
    ({"sparsity": 0.9}, "element", "global"),
    ({"nnz": 100}, "element", "global"),
    ({"threshold": 0.5}, "element", "tensor"),
    ({"sparsity": 0.5}, "row", "tensor"),
    ({"sparsity": 0.5}, "block:1x8", "global"),
    ({}, "2:4", "tensor"),
]


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize(("rule", "pattern", "group"), RULED, ids=str)
def test_masks_and_pruning(rule: dict[str, Any], pattern: str, group: str, dtype: Any) -> None:
    weights = [layers(dtype)[0], layers(dtype)[2]]
    named = {f"t{i}": w for i, w in enumerate(weights)}
    expected_masks = gs.topk_mask(gs.score(named), pattern=pattern, group=group, **rule)
    expected = gs.apply_mask(named, expected_masks)
    how = Selection(pattern=pattern.encode(), group=group.encode(), rule=3)
    for name, value in rule.items():
        how.rule = RULES[name]
        setattr(how, name, value)
    outs, masks = [np.empty_like(w) for w in weights], masks_of(weights)
    tensors = Tensors(weights, out=outs, mask=masks)
    check(LIB.gossamer_prune(b"magnitude", tensors.items, tensors.count, c.c_uint64(0), c.byref(how)))
    for out, mask, name, nnz in zip(outs, masks, named, tensors.nnz, strict=True):
        assert same_bits(out, expected[name])
        assert same_bits(mask, np.asarray(expected_masks[name].packed))
        assert nnz == expected_masks[name].nnz
    scores = list(gs.score(named, method="magnitude").values())
    again = masks_of(weights)
    tensors = Tensors(scores, mask=again)
    check(LIB.gossamer_topk_mask(tensors.items, tensors.count, c.byref(how)))
    assert all(same_bits(a, b) for a, b in zip(again, masks, strict=True))


@pytest.mark.parametrize("rule", ["sign", "scale"])
def test_adjust_and_statistics(rule: str) -> None:
    weights = layers(np.float32)
    scores = [np.asarray(gs.score(w)) for w in weights]
    outs = [np.empty_like(w) for w in weights]
    tensors = Tensors(weights, aux=scores, out=outs)
    check(LIB.gossamer_adjust(tensors.items, tensors.count, c.c_double(0.25), rule.encode()))
    named = {str(i): w for i, w in enumerate(weights)}
    expected = gs.adjust(named, {str(i): s for i, s in enumerate(scores)}, 0.25, rule=rule)
    assert all(same_bits(out, e) for out, e in zip(outs, expected.values(), strict=True))

    x, norms = values("normal", (6, 7, 16), np.float32), gs.Stats("norm", decay=0.5)
    sums = np.zeros(16)
    for _ in range(2):
        norms.update(x)
        check(LIB.gossamer_add_squares(c.byref(described(x)), c.c_double(0.5), address(sums)))
    assert same_bits(np.sqrt(sums), np.asarray(norms.values))
    w, products, moved = weights[0], np.zeros(weights[0].size), gs.Stats("movement")
    moved.update(w, w * 2)
    check(
        LIB.gossamer_subtract_products(
            c.byref(described(w)), c.byref(described(w * 2)), c.c_double(1), address(products)
        )
    )
    assert same_bits(products.reshape(w.shape), np.asarray(moved.values))


def sparse_weights(shape: tuple[int, int], dtype: Any, density: float = 0.4) -> np.ndarray:
    w = values("normal", shape, dtype)
    w[generator("c", shape).random(shape) >= density] = 0
    return w


@pytest.mark.parametrize("of_values", [*FLOATS, np.int8], ids=lambda d: np.dtype(d).name)
@pytest.mark.parametrize("form", FORMATS)
def test_products(form: str, of_values: Any) -> None:
    dense = sparse_weights((35, 77), np.float32)
    a = gs.SparseMatrix.from_dense(dense, format=form, dtype=of_values)
    b = Matrix.from_dense(dense, None, form, DTYPES[np.dtype(of_values)])
    assert same_bits(b.values(a.dtype), np.asarray(a.values))
    assert same_bits(b.dense(a.to_dense().dtype), a.to_dense())
    assert b.info.nnz == a.nnz
    bias = values("normal", (35,), np.float32)
    for dtype in FLOATS:
        for n in (1, 3, 40):
            x = values("normal", (77, n), dtype)
            residual = values("normal", (35, n), dtype)
            options = {"bias": bias, "activation": "silu", "residual": residual}
            assert same_bits(b.product(x, False), gs.matmul(a, x))
            assert same_bits(b.product(x, False, **options), gs.matmul(a, x, **options))
            rows = np.ascontiguousarray(x.T)
            assert same_bits(b.product(rows, True), gs.linear(rows, a))
            assert same_bits(b.product(x.T, True), gs.linear(rows, a))
        vector = values("normal", (77,), dtype)
        assert same_bits(b.product(vector, False), gs.matmul(a, vector))
        assert same_bits(b.product(vector[::-1], True), gs.linear(vector[::-1], a))


@pytest.mark.parametrize("form", ["auto", None, "dense", "1:4", "bsr:4x1"])
@pytest.mark.parametrize("density", [0.01, 0.25])
def test_whatever_the_format_the_product_is_right(form: str | None, density: float) -> None:
    w = sparse_weights((64, 96), np.float32, density)
    if form == "1:4":
        w = gs.prune(values("normal", (64, 96), np.float32), pattern="1:4")[0]
    if form == "bsr:4x1":
        w = gs.prune(values("normal", (64, 96), np.float32), pattern="block:4x1", sparsity=1 - density)[0]
    a = Matrix.from_dense(w, None, form)
    for n in (1, 4, 5, 130):
        x = values("normal", (96, n), np.float32)
        assert np.linalg.norm(a.product(x, False) - w.astype(np.float64) @ x) <= 1e-6 * np.linalg.norm(abs(w) @ abs(x))
    back = Matrix("gossamer_matrix_transposed", a.handle)
    assert same_bits(back.dense(np.float32), np.ascontiguousarray(w.T))


def test_csr_and_new_values() -> None:
    a = gs.SparseMatrix.from_dense(sparse_weights((20, 33), np.float64))
    csr = a.to_scipy()
    for dtype in (np.int32, np.int64):
        indptr, indices = csr.indptr.astype(np.int64), csr.indices.astype(dtype)
        data = csr.data.copy()
        described_csr = Csr(
            20, 33, a.nnz, address(indptr), address(indices), np.dtype(dtype).itemsize, 1, address(data)
        )
        b = Matrix("gossamer_matrix_from_csr", c.byref(described_csr), b"panel")
        data[:] = 0  # copied
        assert same_bits(b.dense(np.float64), a.to_dense())
        starts, columns = np.empty(21, np.int64), np.empty(a.nnz, np.int64)
        check(LIB.gossamer_matrix_get_csr(b.handle, address(starts), address(columns)))
        assert np.array_equal(starts, csr.indptr)
        assert np.array_equal(columns, csr.indices)
        v = values("normal", (a.nnz,), np.float32)
        other = Matrix("gossamer_matrix_with_values", b.handle, c.byref(described(v)))
        assert same_bits(other.dense(np.float32), a.with_values(v).to_dense())


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "tanh"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16], ids=lambda d: np.dtype(d).name)
def test_gradients(activation: str | None, dtype: Any) -> None:
    w, bias = sparse_weights((24, 40), dtype), values("normal", (24,), dtype)
    x, dy = values("normal", (9, 40), dtype), values("normal", (9, 24), dtype)
    layer = gs.SparseLinear(gs.SparseMatrix.from_dense(w, format="csr"), bias, activation)
    dx, dvalues, dbias = (np.asarray(part) for part in layer.backward(dy, x))
    a = Matrix.from_dense(w, None, "csr")
    outs = np.empty_like(dx), np.empty_like(dvalues), np.empty_like(dbias)
    inputs = [c.byref(described(part)) for part in (bias, x, dy, *outs)]
    check(LIB.gossamer_linear_backward(a.handle, inputs[0], ACTIVATIONS[activation], *inputs[1:]))
    assert same_bits(outs[0], dx)
    assert same_bits(outs[1], dvalues)
    tolerance = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-14}.get(np.dtype(dtype), 1e-2)
    if dtype != np.float32:
        x32 = c.byref(described(x.astype(np.float32)))
        with pytest.raises(TypeError, match="dy must be float32 as x is, got "):
            check(LIB.gossamer_linear_backward(a.handle, None, 0, x32, inputs[2], *inputs[3:]))
    np.testing.assert_allclose(outs[2].astype(np.float64), dbias.astype(np.float64), rtol=tolerance, atol=tolerance)


def model() -> dict[str, Any]:
    w = sparse_weights((12, 16), np.float32)
    entries: dict[str, Any] = {
        f"{form}.{np.dtype(dtype).name}": gs.SparseMatrix.from_dense(w, format=form, dtype=dtype)
        for form in ("auto", "panel", "csr", "dense")
        for dtype in (*FLOATS, np.int8)
    }
    entries["2:4"] = gs.SparseMatrix.from_dense(*gs.prune(w, pattern="2:4"), format="n:m")
    entries['mask é\n"\\'] = gs.topk_mask(values("normal", (3, 5, 4), np.float32), sparsity=0.5)
    entries |= {f"array.{np.dtype(d).name}": values("normal", (3, 4), d) for d in FLOATS}
    entries["none"] = gs.SparseMatrix.from_dense(np.zeros((0, 5), np.float32))
    return entries


def test_files_of_python_are_read(tmp_path: Path) -> None:
    entries, path = model(), tmp_path / "model.safetensors"
    gs.save(path, entries)
    file = File(path)
    assert sorted(file.names) == sorted(entries)
    for name, value in entries.items():
        if isinstance(value, gs.SparseMatrix):
            a = file.matrix(name)
            assert same_bits(a.values(value.dtype), np.asarray(value.values))
            assert same_bits(a.dense(value.to_dense().dtype), value.to_dense())
            assert a.info.format.decode() == value._plan.asked
            assert file.matrix(name, "csr").info.format == b"csr"
        elif isinstance(value, gs.Mask):
            assert file.mask(name) == value
        else:
            assert same_bits(file.array(name, value.dtype), value)


def test_files_are_written_that_python_reads(tmp_path: Path) -> None:
    entries, first, path = model(), tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    gs.save(first, entries)
    file = File(first)
    parts = {name: file.matrix(name) if isinstance(v, gs.SparseMatrix) else v for name, v in entries.items()}
    parts["strided"] = np.arange(24, dtype=np.float64).reshape(4, 6)[::2, ::-3]
    save(path, parts)
    back = gs.load(path)
    assert back.keys() == parts.keys()
    for name, value in (entries | {"strided": parts["strided"]}).items():
        if isinstance(value, gs.SparseMatrix):
            assert back[name].mask == value.mask
            assert same_bits(np.asarray(back[name].values), np.asarray(value.values))
            assert back[name]._plan.asked == value._plan.asked
        elif isinstance(value, gs.Mask):
            assert back[name] == value
        else:
            assert same_bits(back[name], np.ascontiguousarray(value))
    assert list(tmp_path.iterdir()) in ([first, path], [path, first])  # no temporary file is left


def test_links_stay_links(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "folder" / "model.safetensors"
    target.parent.mkdir()
    (tmp_path / "second").symlink_to("folder/model.safetensors")
    link.symlink_to(tmp_path / "second")
    for n in (2, 3):  # to a file that is not there yet, and to one that is
        save(link, {"b": np.ones(n)})
        assert link.is_symlink()
        assert same_bits(gs.load(target)["b"], np.ones(n))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match=r"^save: .*loop: Too many levels of symbolic links"):
        save(tmp_path / "loop", {"b": np.ones(2)})
    with pytest.raises(OSError, match=r"^save: .*/missing/b: No such file"):
        save(tmp_path / "missing" / "b", {"b": np.ones(2)})


def test_a_file_that_shrinks_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    gs.save(path, {"b": np.ones(100)})
    file = File(path)
    with path.open("r+b") as raw:
        raw.truncate(500)
    with pytest.raises(ValueError, match="became shorter while it was read"):
        file.array("b", np.float64)


def test_other_safetensors_files_are_arrays(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "other.safetensors"
    save_file({"w": np.ones((2, 3), np.float16), "ids": np.arange(4)}, path, {"format": "pt"})
    file = File(path)
    assert sorted(file.names) == ["ids", "w"]
    assert same_bits(file.array("w", np.float16), np.ones((2, 3), np.float16))
    with pytest.raises(NotImplementedError, match="'ids' must be float32, float64, float16 or bfloat16 to be read"):
        file.array("ids", np.float32)


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers_are_refused(tmp_path: Path, case: str) -> None:
    header, data, _ = BROKEN[case]
    path = write_raw(tmp_path / "in.safetensors", header, data)
    with pytest.raises(ValueError, match=r"^file_open: .*in\.safetensors must be a safetensors file, got ") as caught:
        File(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [10 * 1000**3, (1 << 64) - 1, 100_000_001, 1000])
def test_headers_that_are_too_long_are_refused(tmp_path: Path, length: int) -> None:
    with pytest.raises(ValueError, match=f"a header of {length} bytes"):
        File(write_raw(tmp_path / "in.safetensors", b"{}", length=length))


def group(kind: str = "matrix", shape: Any = (4, 8), format: Any = "csr") -> dict[str, Any]:
    entry = {"kind": kind, "shape": shape, "format": format}
    return {"__metadata__": {"gossamer": json.dumps({"tensors": {"w": entry}})}}


BITS, VALUES = one("U8", (4, 1), (8, 12), "w.bitmask"), one("F32", (2,), (0, 8), "w.values")
EMPTY = one("U8", (0,), (0, 0), "w.bitmask") | one("F32", (0,), (0, 0), "w.values")
TORN: dict[str, tuple[Any, str]] = {
    "no bitmask": (group() | VALUES, "no tensor 'w.bitmask'"),
    "no values": (group() | one("U8", (4, 1), (0, 4), "w.bitmask"), "no tensor 'w.values'"),
    "no scales": (group() | BITS | one("I8", (8,), (0, 8), "w.values"), "no tensor 'w.scales'"),
    "another shape": (group(shape=(5, 8)) | BITS | VALUES, "a bitmask of another size"),
    "three dimensions": (group(shape=(4, 2, 4)) | BITS | VALUES, "without two dimensions"),
    "a huge shape": (group(shape=(1 << 62, 1 << 62)) | BITS | VALUES, "overflows"),
    "rows that 63 bits just hold": (group(shape=((1 << 63) - 1, 0)) | EMPTY, "overflows"),
    "columns that 63 bits just hold": (group(shape=(0, (1 << 63) - 1)) | EMPTY, "overflows"),
    "rows of nothing": (group(shape=(1 << 32, 0)) | EMPTY, "4294967296 rows without columns"),
    "a zero byte in a name": (one("F32", (1,), (0, 4), "w\0v"), "a zero byte in the name"),
    "a negative shape": (group(shape=(-4, 8)) | BITS | VALUES, "a wrong number in shape"),
    "a shape that is no list": (group(shape="4x8") | BITS | VALUES, "no shape"),
    "values of another dtype": (group() | BITS | one("F8_E5M2", (8,), (0, 8), "w.values"), "wrong values"),
    "an unknown kind": (group(kind="tensor") | BITS | VALUES, "an unknown kind"),
    "metadata that is no JSON": ({"__metadata__": {"gossamer": "{"}} | BITS | VALUES, "no JSON"),
    "metadata that is a list": ({"__metadata__": {"gossamer": "[]"}} | BITS | VALUES, "no mapping"),
}


@pytest.mark.parametrize("case", TORN)
def test_entries_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    header, words = TORN[case]
    size = max(t["data_offsets"][1] for name, t in header.items() if name != "__metadata__")
    with pytest.raises(ValueError, match="must be a safetensors file") as caught:
        File(write_raw(tmp_path / "in.safetensors", header, bytes(size)))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("bits", "numbers", "form", "words"),
    [
        (b"\3\0\0\0", bytes(8), "csr", None),
        (b"\1\0\0\0", bytes(8), "csr", "another number of values"),
        (b"\3\0\0\0", bytes(8), "coo", "format must be one of"),
        (b"\3\0\0\0", bytes(8), "1:4", "at most 1 of every 4"),
        (b"\3\0\0\0", bytes(8), 3, "format must be one of"),
    ],
)
def test_what_is_read_is_checked(tmp_path: Path, bits: bytes, numbers: bytes, form: Any, words: str | None) -> None:
    header = group(format=form) | VALUES | BITS
    file = File(write_raw(tmp_path / "in.safetensors", header, numbers + bits))
    if words is None:
        assert file.matrix("w").info.nnz == 2
        return
    with pytest.raises(ValueError, match=words):
        file.matrix("w")


def test_int8_of_a_file_is_checked(tmp_path: Path) -> None:
    header = group() | one("U8", (4, 1), (0, 4), "w.bitmask") | one("I8", (2,), (4, 6), "w.values")
    header |= one("F32", (4,), (6, 22), "w.scales")
    for numbers, scales, words in (
        ((1, -127), (1, 1, 1, 1), None),
        ((1, -128), (1, 1, 1, 1), "got -128"),
        ((1, 2), (1, np.inf, 1, 1), "scales must be finite"),
        ((1, 2), (1, -1, 1, 1), "scales must be finite"),
    ):
        data = b"\3\0\0\0" + np.array(numbers, np.int8).tobytes() + np.array(scales, np.float32).tobytes()
        file = File(write_raw(tmp_path / "in.safetensors", header, data))
        if words is None:
            assert file.matrix("w").info.dtype == INT8
            continue
        with pytest.raises(ValueError, match=words):
            file.matrix("w")


def test_a_damaged_header_is_refused_or_right(tmp_path: Path) -> None:
    """Bytes changed at random: what is opened can also be read, or is refused with a message."""
    path = tmp_path / "model.safetensors"
    gs.save(path, {"w": gs.SparseMatrix.from_dense(sparse_weights((4, 8), np.float32)), "b": np.ones(3, np.float32)})
    whole, random, refused = path.read_bytes(), generator("damage"), 0
    for _ in range(3000):
        raw = bytearray(whole)
        for _ in range(int(random.integers(1, 4))):
            raw[int(random.integers(len(raw)))] = int(random.integers(256))
        path.write_bytes(raw)
        try:
            file = File(path)
            for name in file.names:
                try:
                    file.matrix(name) if name == "w" else file.array(name, np.float32)
                except (ValueError, TypeError, NotImplementedError):
                    refused += 1
        except ValueError:
            refused += 1
    assert 0 < refused < 3000
