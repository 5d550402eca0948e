# SPDX-License-Identifier: Apache-2.0
"""``checkpoints.convert`` and ``checkpoints.inspect``: nothing is lost, patterns are named, damage is refused."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import gossamer as gs
from cases import DISTRIBUTIONS, assert_same_bits, right_or_refused, values
from checkpoint_files import DTYPES, INDEX, everything, load_all, tensors, write_sharded
from gossamer import cli, headers


def sparse_tensors(sparsity: float = 0.8) -> dict[str, np.ndarray]:
    """With -0 and NaN among the kept values, an empty tensor, a full and an empty one."""
    names = [name for name, w in tensors().items() if w.ndim > 1 and w.dtype != np.int64]
    result = tensors() | gs.prune({name: tensors()[name] for name in names}, sparsity=sparsity)[0]
    result["a.weight"][0, :2] = -0.0, np.nan
    return result | {
        "full": np.ones((9, 9), np.float32),
        "zero": np.zeros((9, 9), np.float16),
        "no.weight": np.ones((0, 3)),
    }


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert set(one) == set(other)
    for name, w in one.items():
        assert_same_bits(other[name], w, name)


def test_dense_to_bitmask_and_back(tmp_path: Path) -> None:
    before = sparse_tensors()
    save_file(before, tmp_path / "a.safetensors", {"format": "pt"})
    packed = gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert packed.storage == "bitmask"
    assert "full" not in packed.tensors  # it would become larger
    assert {"a.weight", "other", "zero"} <= set(packed.tensors)
    assert packed.bytes_after < packed.bytes_before
    back = gs.checkpoints.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    assert (back.storage, set(back.tensors)) == ("dense", set(packed.tensors))
    same(before, load_file(tmp_path / "c.safetensors"))
    assert headers.read_header(tmp_path / "c.safetensors", "x").metadata == {"format": "pt"}
    gs.checkpoints.convert(tmp_path / "b.safetensors", tmp_path / "d.safetensors", storage="bitmask")
    assert (tmp_path / "d.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "e.safetensors", storage="dense")
    assert (tmp_path / "e.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", ["w", "w.weight", ".weight", "w.weight.weight", "w.shape", "compressed", "a.compressed"]
)
def test_names(tmp_path: Path, name: str) -> None:
    before = {name: np.eye(64, dtype=np.float32), "other.weight": np.eye(64, dtype=np.float32)}
    save_file(before, tmp_path / "a.safetensors")
    assert set(gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors").tensors) == set(before)
    gs.checkpoints.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
    same(before, load_file(tmp_path / "c.safetensors"))


def test_whole_names_are_read_too(tmp_path: Path) -> None:
    w = np.eye(5, 9, dtype=np.float32)
    save_file(compressed_tensors_layout(w, "fc.weight"), tmp_path / "a.safetensors")
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    same({"fc.weight": w}, load_file(tmp_path / "b.safetensors"))


def test_shards(tmp_path: Path) -> None:
    items = list(sparse_tensors().items())
    index = write_sharded(tmp_path / "a", [dict(items[:4]), dict(items[4:])])
    gs.checkpoints.convert(index, tmp_path / "b")
    gs.checkpoints.convert(tmp_path / "b" / INDEX, tmp_path / "c")
    same(dict(items), load_all(tmp_path / "c" / INDEX))
    with pytest.raises(ValueError, match=r"^convert: out must differ from the source"):
        gs.checkpoints.convert(index, index.parent)


@pytest.mark.parametrize("data", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_data(tmp_path: Path, dtype: Any, data: str) -> None:
    before = {"w.weight": values(data, (33, 65), dtype), "k": values(data, (4, 5, 6), dtype)}
    save_file(before, tmp_path / "a.safetensors")
    done = gs.checkpoints.prune(tmp_path / "a.safetensors", tmp_path / "b.safetensors", sparsity=0.7, storage="bitmask")
    gs.checkpoints.convert(done.path, tmp_path / "c.safetensors")
    same(gs.prune(before, sparsity=0.7)[0], load_file(tmp_path / "c.safetensors"))


def compressed_tensors_layout(w: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """What compressed_tensors' BitmaskTensor.dict writes, in numpy: bits, rows and columns along the last axis."""
    kept = w != 0
    counts = kept.reshape(-1, w.shape[-1]).sum(axis=1)
    return {
        f"{name}.shape": np.array(w.shape, np.int64),
        f"{name}.compressed": w[kept],
        f"{name}.bitmask": np.packbits(kept, axis=-1, bitorder="little").reshape(len(counts), -1),
        f"{name}.row_offsets": np.cumsum(counts) - counts,
    }


def test_the_layout_is_that_of_compressed_tensors(tmp_path: Path) -> None:
    w = gs.prune(values("normal", (33, 65), np.float32), sparsity=0.8)[0]
    save_file({"model.fc.weight": w}, tmp_path / "a.safetensors")
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    expected = compressed_tensors_layout(w, "model.fc")
    same(expected, load_file(tmp_path / "b.safetensors"))
    save_file(expected, tmp_path / "c.safetensors")
    gs.checkpoints.convert(tmp_path / "c.safetensors", tmp_path / "d.safetensors")
    same({"model.fc.weight": w}, load_file(tmp_path / "d.safetensors"))


def test_more_axes_as_compressed_tensors_packs_them(tmp_path: Path) -> None:
    w = gs.prune(values("normal", (4, 3, 5, 10), np.float32), sparsity=0.8)[0]
    save_file(compressed_tensors_layout(w, "conv"), tmp_path / "a.safetensors")
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    same({"conv.weight": w}, load_file(tmp_path / "b.safetensors"))


DAMAGE = {
    "a bit more": ("bitmask", lambda a: a | np.uint8(1)),
    "a bit less": ("bitmask", lambda a: a & np.uint8(254)),
    "padding": ("bitmask", lambda a: a | np.uint8(128)),
    "bits of another shape": ("bitmask", lambda a: a[:-1]),
    "values missing": ("compressed", lambda a: a[:-1]),
    "values as a matrix": ("compressed", lambda a: a[None]),
    "offsets": ("row_offsets", lambda a: a + 1),
    "offsets missing": ("row_offsets", lambda a: a[:-1]),
    "offsets of 32 bits": ("row_offsets", lambda a: a.astype(np.int32)),
    "negative shape": ("shape", lambda a: -a),
    "huge shape": ("shape", lambda a: a << 40),
    "another shape": ("shape", lambda a: a[::-1].copy()),
    "a shape of 80 axes": ("shape", lambda a: np.ones(80, np.int64)),
    "float shape": ("shape", lambda a: a.astype(np.float64)),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_bitmasks_are_refused(tmp_path: Path, case: str) -> None:
    part, change = DAMAGE[case]
    whole = compressed_tensors_layout(gs.prune(values("normal", (12, 21), np.float32), sparsity=0.8)[0], "w")
    save_file(whole | {f"w.{part}": change(whole[f"w.{part}"])}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"^convert: .*must hold 'w.weight' as a whole bitmask tensor, got") as caught:
        gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert str(caught.value).isprintable()
    assert everything(tmp_path) == ["a.safetensors"]


@given(
    part=st.sampled_from(["shape", "bitmask", "row_offsets", "compressed"]), place=st.integers(0), bit=st.integers(0, 7)
)
def test_a_flipped_bit_is_refused_or_consistent(
    part: str, place: int, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    whole = compressed_tensors_layout(np.eye(5, 9, dtype=np.float32), "w")
    raw = whole[f"w.{part}"].view(np.uint8).reshape(-1)
    raw[place % raw.size] ^= np.uint8(1 << bit)
    save_file(whole, folder / "a.safetensors")
    done = right_or_refused(
        lambda: gs.checkpoints.convert(folder / "a.safetensors", folder / "b.safetensors"), ValueError, "^convert: "
    )
    if done is None:
        assert everything(folder) == ["a.safetensors"]
    else:
        assert part == "compressed"
        assert gs.checkpoints.inspect(folder / "b.safetensors").tensors[0].shape == (5, 9)


# --- scipy ------------------------------------------------------------------------------------------------------------


def test_npz_of_one_matrix_and_back(tmp_path: Path) -> None:
    for dtype in DTYPES:
        w = gs.prune(values("normal", (33, 65), dtype), sparsity=0.8)[0]
        wide = w.astype(np.float64 if dtype == np.float64 else np.float32)
        save_file({"fc.weight": w, "bias": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
        gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "m.npz")
        assert_same_bits(scipy.sparse.load_npz(tmp_path / "m.npz").toarray(), wide, "m")
        for storage in ("dense", "bitmask"):
            gs.checkpoints.convert(tmp_path / "m.npz", tmp_path / "b.safetensors", storage=storage, tensor="fc.weight")
            if storage == "bitmask":
                gs.checkpoints.convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors")
            same(
                {"fc.weight": wide}, load_file(tmp_path / ("b.safetensors" if storage == "dense" else "c.safetensors"))
            )


def test_npz_of_all_matrices_and_back(tmp_path: Path) -> None:
    r = np.random.default_rng(0)
    before = {name: gs.prune(r.standard_normal((8, 8)), sparsity=0.5)[0] for name in ("a.weight", "../b", "c/d", "ü %")}
    save_file(before | {"bias": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    done = gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "npz", storage="npz")
    assert set(done.tensors) == set(before)
    assert len(everything(tmp_path / "npz")) == 4
    assert everything(tmp_path) == sorted(["a.safetensors", "npz", *(f"npz/{n}" for n in everything(tmp_path / "npz"))])
    gs.checkpoints.convert(tmp_path / "npz", tmp_path / "b.safetensors")
    same(before, load_file(tmp_path / "b.safetensors"))


def test_npz_from_a_bitmask(tmp_path: Path) -> None:
    w = gs.prune(values("normal", (33, 65), np.float32), sparsity=0.8)[0]
    save_file(compressed_tensors_layout(w, "fc"), tmp_path / "a.safetensors")
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "m.npz")
    assert_same_bits(scipy.sparse.load_npz(tmp_path / "m.npz").toarray(), w, "m")


@pytest.mark.parametrize("kind", ["csc", "coo", "bsr", "dia"])
def test_every_format_of_scipy(tmp_path: Path, kind: str) -> None:
    w = gs.prune(values("normal", (12, 20), np.float32), sparsity=0.8)[0]
    scipy.sparse.save_npz(tmp_path / "m.npz", scipy.sparse.csr_matrix(w).asformat(kind))
    gs.checkpoints.convert(tmp_path / "m.npz", tmp_path / "b.safetensors")
    same({"m": w}, load_file(tmp_path / "b.safetensors"))


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    w = np.ones((4, 4), np.float32)
    save_file({"a": w, "b": w}, tmp_path / "two.safetensors")
    save_file({"i": np.arange(3)}, tmp_path / "none.safetensors")
    scipy.sparse.save_npz(tmp_path / "int.npz", scipy.sparse.csr_matrix(np.eye(3, dtype=np.int32)))
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    np.savez(tmp_path / "pickled.npz", format=np.array([{"a": 1}], dtype=object))
    (tmp_path / "text.npz").write_bytes(b"no zip")
    (tmp_path / "empty").mkdir()
    before = everything(tmp_path)
    for source, out, how, words in (
        ("two.safetensors", "m.npz", {}, "must hold one matrix .* got 2"),
        ("two.safetensors", "m.npz", {"tensor": "c"}, "tensor must be a floating tensor"),
        ("two.safetensors", "o.safetensors", {"tensor": "a"}, "tensor must be left out"),
        ("two.safetensors", "two.safetensors", {}, "out must differ"),
        ("two.safetensors", "o.safetensors", {"storage": "x"}, "storage must be"),
        ("none.safetensors", "m.npz", {}, "got 0"),
        ("none.safetensors", "folder", {"storage": "npz"}, "got 0"),
        ("int.npz", "o.safetensors", {}, "must be a float matrix"),
        ("other.npz", "o.safetensors", {}, "must be a float matrix"),
        ("pickled.npz", "o.safetensors", {}, "must be a float matrix"),
        ("text.npz", "o.safetensors", {}, "must be a float matrix"),
        ("int.npz", "o.npz", {}, "out must be a .safetensors file"),
        ("empty", "o.safetensors", {}, "a folder with .npz files"),
    ):
        with pytest.raises(ValueError, match=f"^convert: .*{words}"):
            gs.checkpoints.convert(tmp_path / source, tmp_path / out, **how)
        assert everything(tmp_path) == before


@given(place=st.integers(0), value=st.integers(0, 255))
def test_damaged_npz(place: int, value: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    scipy.sparse.save_npz(folder / "x.npz", scipy.sparse.csr_matrix(np.eye(4, 6)), compressed=False)
    raw = bytearray((folder / "x.npz").read_bytes())
    raw[place % len(raw)] = value
    (folder / "x.npz").write_bytes(raw)
    done = right_or_refused(
        lambda: gs.checkpoints.convert(folder / "x.npz", folder / "y.safetensors"), ValueError, r"^convert: [^\n]*$"
    )
    if done is not None:
        assert load_file(folder / "y.safetensors")["x"].ndim == 2


def test_an_index_of_a_csr_matrix_is_checked(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "x.npz", scipy.sparse.csr_matrix(np.eye(4, 6)))
    parts = dict(np.load(tmp_path / "x.npz"))
    for name, wrong in (
        ("indices", np.array([0, 1, 2, 99], np.int32)),
        ("indptr", np.array([0, 9, 2, 3, 4], np.int32)),
    ):
        np.savez(tmp_path / "x.npz", **(parts | {name: wrong}))
        with pytest.raises(ValueError, match=r"^convert: .*x\.npz must be a float matrix"):
            gs.checkpoints.convert(tmp_path / "x.npz", tmp_path / "y.safetensors")
    assert zipfile.is_zipfile(tmp_path / "x.npz")


# --- inspect ----------------------------------------------------------------------------------------------------------

PATTERNS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("2:4", {"pattern": "2:4"}),
    ("1:4", {"pattern": "1:4"}),
    ("4:8", {"pattern": "4:8"}),
    ("1:32", {"pattern": "1:32"}),
    ("block:4x4", {"pattern": "block:4x4", "sparsity": 0.7}),
    ("block:8x1", {"pattern": "block:8x1", "sparsity": 0.7}),
    ("block:1x16", {"pattern": "block:1x16", "sparsity": 0.7}),
    ("block:16x16", {"pattern": "block:16x16", "sparsity": 0.7}),
    ("row", {"pattern": "row", "sparsity": 0.5}),
    ("col", {"pattern": "col", "sparsity": 0.5}),
    ("none", {"sparsity": 0.5}),
    ("none", {"sparsity": 0.95}),
    ("none", {"sparsity": 0.0}),
    ("none", {"sparsity": 1.0}),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "how"), PATTERNS, ids=str)
def test_patterns_are_found(tmp_path: Path, name: str, how: dict[str, Any], dtype: Any) -> None:
    w, mask = gs.prune(values("normal", (192, 128), dtype), **how)
    save_file({"w.weight": w, "bias": np.zeros(64, np.float32)}, tmp_path / "a.safetensors")
    gs.checkpoints.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        found = {t.name: t for t in gs.checkpoints.inspect(path).tensors}
        tensor = found["w.weight"]
        assert (tensor.pattern, tensor.nnz, tensor.shape) == (name, np.count_nonzero(w), (192, 128))
        assert tensor.nnz <= mask.nnz
        assert (tensor.dense_flops, tensor.flops) == (2 * w.size, 2 * tensor.nnz)
        assert tensor.packed_bytes == min(w.nbytes, tensor.nnz * w.itemsize + w.size // 8 + 8 * 192 + 16)
        assert (found["bias"].pattern, found["bias"].sparsity, found["bias"].flops) == ("none", 1.0, 0)
        assert tensor.bytes == (tensor.packed_bytes if tensor.storage == "bitmask" else w.nbytes)


@pytest.mark.parametrize("pattern", ["2:4", "block:8x1", "block:2x4"])
def test_a_pattern_is_found_in_a_part_of_the_rows_only_if_it_holds_for_all(tmp_path: Path, pattern: str) -> None:
    r = np.random.default_rng(0)
    head = gs.prune(r.standard_normal((512, 64)), sparsity=0.5)[0]
    tail = gs.prune(r.standard_normal((4096, 64)), pattern=pattern, sparsity=0.5)[0]
    full = r.standard_normal((512, 64))
    for name, parts, expected in (
        ("tail", [tail], pattern),
        ("random first", [head, tail], "none"),
        ("random last", [tail, head], "none"),
        ("full first", [full, tail], "none" if pattern == "2:4" else pattern),  # full rows are full blocks
    ):
        save_file({name: np.concatenate(parts)}, tmp_path / "a.safetensors")
        assert gs.checkpoints.inspect(tmp_path / "a.safetensors").tensors[0].pattern == expected, name


def test_inspect_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sparse_tensors()
    save_file(before, tmp_path / "a.safetensors", {"format": "pt"})
    assert cli.main(["inspect", str(tmp_path / "a.safetensors"), "--json", "--plot", str(tmp_path / "p.svg")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {t["name"]: t["nnz"] for t in report["tensors"]} == {k: int(np.count_nonzero(w)) for k, w in before.items()}
    assert report["bytes"] == sum(w.nbytes for w in before.values())
    assert report["flops"] == sum(t["flops"] for t in report["tensors"])
    assert report["metadata"] == {"format": "pt"}
    picture = (tmp_path / "p.svg").read_text()
    assert "a.weight" in picture or picture.count("<g id=") > 10
    assert cli.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in before)
    assert f"{len(before)} tensors" in printed
    assert cli.main(["inspect", str(tmp_path / "a.safetensors"), "--plot", str(tmp_path / "p.txt")]) == 2
    assert "plot must end in" in capsys.readouterr().err


def test_convert_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(sparse_tensors(), tmp_path / "a.safetensors")
    assert cli.main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["storage"] == "bitmask"
    assert cli.main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "c.safetensors")]) == 0
    assert "written as dense" in capsys.readouterr().out
    same(sparse_tensors(), load_file(tmp_path / "c.safetensors"))
    assert cli.main(["convert", str(tmp_path / "b.safetensors"), str(tmp_path / "m.npz"), "--tensor", "nothing"]) == 1
    assert capsys.readouterr().err.startswith("gossamer convert: tensor must be")


def test_names_that_are_meant_for_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the table nor the picture obeys them, and nothing is warned of."""
    w = np.ones((2, 2), np.float32)
    save_file({"a\x1b[31m\nb": w, "$\\frac$": w, "\u6743": w}, tmp_path / "a.safetensors")
    for ending in ("svg", "png", "pdf"):
        assert cli.main(["inspect", str(tmp_path / "a.safetensors"), "--plot", str(tmp_path / f"p.{ending}")]) == 0
        printed, errors = capsys.readouterr()
        assert errors == ""
        assert "a?[31m b" in printed
        assert printed.replace("\n", "").isprintable()
        assert (tmp_path / f"p.{ending}").stat().st_size
    assert cli.main(["inspect", str(tmp_path / "a.safetensors"), "--plot", str(tmp_path / "no" / "p.svg")]) == 1
    assert capsys.readouterr().err == f"gossamer inspect: {tmp_path}/no/p.svg: No such file or directory\n"
