# SPDX-License-Identifier: Apache-2.0
"""``checkpoints.prune``: from file to file what ``gs.prune`` gives in memory, bit for bit, and nothing else changes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gossamer as gs
from cases import DISTRIBUTIONS, assert_same_bits, values
from checkpoint_files import DTYPES, INDEX, everything, load_all, tensors, write_raw, write_sharded
from gossamer import cli, headers, threshold
from gossamer.checkpoints import reading, selecting

PATTERNS = ("element", "row", "col", "block:4x2", "block:8x1", "2:4")
NEVER = ("bias", "ids")


def pruned_names(source: Path) -> list[str]:
    """In the order in which the tensors compete."""
    return [name for name in gs.checkpoints.headers(source) if name not in NEVER]


def check(source: Path, out: Path, before: dict[str, np.ndarray], **how: Any) -> None:
    """Dense and as a bitmask; ``source`` is a file or an index."""
    sharded = source.suffix == ".json"
    names = pruned_names(source)
    expected, masks = gs.prune({name: before[name] for name in names}, **how)
    done = gs.checkpoints.prune(source, out, **how)
    assert {t.name: t.nnz for t in done.tensors} == {name: mask.nnz for name, mask in masks.items()}
    after = load_all(out / INDEX) if sharded else load_file(out)
    assert set(after) == set(before)
    for name, w in before.items():
        assert_same_bits(after[name], expected.get(name, w), name)
    packed = out.with_name("packed" + out.suffix)
    gs.checkpoints.prune(source, packed, storage="bitmask", **how)
    stored = load_all(packed / INDEX) if sharded else load_file(packed)
    for name, mask in masks.items():
        start = name.removesuffix(".weight")
        assert_same_bits(stored[f"{start}.bitmask"], mask.packed, name)
        assert stored[f"{start}.shape"].tolist() == list(mask.shape)
        flat = before[name].reshape(-1)[mask.indices()]
        assert_same_bits(stored[f"{start}.compressed"], flat, name)
        counts = np.unpackbits(mask.packed, axis=1).sum(axis=1, dtype=np.int64)
        assert_same_bits(stored[f"{start}.row_offsets"], np.cumsum(counts) - counts, name)
    assert len(stored) == len(NEVER) + 4 * len(masks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save_file(tensors(), path, {"format": "pt", "ü": "\n"})
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    items = list(tensors().items())
    return write_sharded(tmp_path / "in", [dict(items[:3]), dict(items[3:5]), dict(items[5:])])


@pytest.mark.parametrize("group", ["tensor", "row", "global"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", ["magnitude", "lamp", "fpgm", "random"])
def test_equals_prune_in_memory(source: Path, index: Path, method: str, pattern: str, group: str) -> None:
    if (pattern, group) == ("row", "row"):
        pytest.skip("one row cannot compete within itself")
    how = {"method": method, "pattern": pattern, "group": group, "seed": 7}
    how["sparsity"] = 0.5 if pattern == "2:4" else 0.6
    check(source, source.with_name("out.safetensors"), tensors(), **how)
    check(index, source.with_name("out"), tensors(), **how)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.999, 1.0])
@pytest.mark.parametrize("group", ["tensor", "row", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_share(tmp_path: Path, dtype: Any, group: str, sparsity: float) -> None:
    before = {
        "a.weight": values("heavy_ties", (33, 65), dtype),
        "b": values("normal", (5, 7, 3), dtype),
        "c": np.zeros((4, 9), dtype),
        "empty": np.zeros((0, 9), dtype),
        "bias": values("normal", (5,), np.float32),
        "ids": np.arange(3),
    }
    save_file(before, tmp_path / "in.safetensors")
    check(tmp_path / "in.safetensors", tmp_path / "out.safetensors", before, group=group, sparsity=sparsity)


@pytest.mark.parametrize(
    "how", [{"group": "row"}, {"group": "global"}, {"group": "global", "min_density": 0.1}], ids=str
)
@pytest.mark.parametrize("pattern", ["row", "col", "block:4x2", "2:4"])
def test_empty_tensors(tmp_path: Path, pattern: str, how: dict[str, Any]) -> None:
    """Rows and columns without an element compete, as in memory."""
    if (pattern == "2:4" and "min_density" in how) or (pattern, how["group"]) == ("row", "row"):
        pytest.skip("a combination that is refused")
    before = {
        "no rows": np.zeros((0, 12), np.float32),
        "no columns": np.zeros((12, 0), np.float16),
        "some": values("heavy_ties", (12, 12), np.float32),
        "bias": np.ones(2, np.float32),
        "ids": np.arange(2),
    }
    save_file(before, tmp_path / "in.safetensors")
    check(tmp_path / "in.safetensors", tmp_path / "out.safetensors", before, pattern=pattern, sparsity=0.5, **how)


@pytest.mark.parametrize("pattern", ["element", "block:4x2", "col"])
@pytest.mark.parametrize("method", ["magnitude", "lamp", "random"])
def test_min_density(source: Path, method: str, pattern: str) -> None:
    how = {"method": method, "pattern": pattern, "group": "global", "seed": 1, "min_density": 0.1, "sparsity": 0.8}
    check(source, source.with_name("out.safetensors"), tensors(), **how)
    with pytest.raises(ValueError, match=r"^prune: min_density must fit into the total"):
        gs.checkpoints.prune(source, "out", sparsity=0.95, group="global", min_density=0.1)


@pytest.mark.parametrize("method", [None, "lamp"])
def test_the_group_by_default_is_the_methods_own(source: Path, method: str | None) -> None:
    check(
        source, source.with_name("out.safetensors"), tensors(), sparsity=0.7, **({"method": method} if method else {})
    )


@pytest.mark.parametrize("data", DISTRIBUTIONS)
def test_strips_windows_and_wrong_guesses(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny blocks, a histogram of few bins and a sample that misleads: the same bits, after more looks."""
    before = {f"{n}.weight": values(data, (64, 40), dtype) for n, dtype in enumerate(DTYPES[:3])}
    before["bias"], before["ids"] = np.ones(2, np.float32), np.arange(2)
    source = tmp_path / "in.safetensors"
    save_file(before, source)
    monkeypatch.setattr(reading, "BLOCK", 1 << 10)
    monkeypatch.setattr(threshold, "_BINS", 4)
    monkeypatch.setattr(threshold, "_BLOCK", 100)
    monkeypatch.setattr(threshold, "_HOLD", 10)
    monkeypatch.setattr(selecting.Together, "wants_sample", lambda *_: True)
    for guess in ((0.0, np.inf), (0.0, 1e-30), (1e30, np.inf), (0.5, 0.5)):
        monkeypatch.setattr(selecting, "expected_window", lambda *_, guess=guess: guess)
        check(source, tmp_path / "out.safetensors", before, sparsity=0.7, group="global")


def test_the_sample_finds_the_threshold_in_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = np.random.default_rng(0)
    before = {f"{i}": (r.standard_normal((2048, 4096)) * 2.0**-i).astype(np.float32) for i in range(2)}
    save_file(before, tmp_path / "in.safetensors")
    looks = []
    end = threshold.Threshold.end
    monkeypatch.setattr(threshold.Threshold, "end", lambda self: (looks.append(1), end(self))[1])
    done = gs.checkpoints.prune(tmp_path / "in.safetensors", tmp_path / "out.safetensors", sparsity=0.8, group="global")
    assert len(looks) == 1
    expected, _ = gs.prune(before, sparsity=0.8, group="global")
    after = load_file(tmp_path / "out.safetensors")
    for name, w in expected.items():
        assert_same_bits(after[name], w, name)
    assert abs(done.sparsity - 0.8) < 1e-7


def test_headers_metadata_and_other_tensors_stay_byte_for_byte(source: Path, index: Path, tmp_path: Path) -> None:
    entries = {
        "q": {"dtype": "F8_E4M3", "shape": [4, 4], "data_offsets": [0, 16]},
        "n": {"dtype": "F4", "shape": [4, 4], "data_offsets": [16, 24]},
        "w": {"dtype": "F16", "shape": [2, 2], "data_offsets": [24, 32]},
    }
    text = json.dumps({"__metadata__": {"x": "y"}, **entries}, indent=3).encode() + b"     "
    raw = bytes(range(24)) + np.array([[1, -3], [2, 0.5]], np.float16).tobytes()
    odd = write_raw(tmp_path / "odd.safetensors", text, raw)
    gs.checkpoints.prune(odd, tmp_path / "out.safetensors", sparsity=0.5)
    assert (tmp_path / "out.safetensors").read_bytes()[:-8] == odd.read_bytes()[:-8]
    gs.checkpoints.prune(odd, tmp_path / "packed.safetensors", sparsity=0.5, storage="bitmask")
    header = headers.read_header(tmp_path / "packed.safetensors", "x")
    data = (tmp_path / "packed.safetensors").read_bytes()[header.data :]
    assert [data[header.entries[n].start : header.entries[n].end] for n in "qn"] == [raw[:16], raw[16:24]]
    assert header.metadata == {"x": "y", "gossamer.bitmask": '["w"]'}
    gs.checkpoints.prune(index, tmp_path / "out", sparsity=0.5)
    assert (tmp_path / "out" / INDEX).read_bytes() == index.read_bytes()
    for shard in index.parent.glob("*.safetensors"):
        new, old = (headers.read_header(folder / shard.name, "x") for folder in (tmp_path / "out", index.parent))
        assert new.raw == old.raw


def test_packed_tensors_are_aligned_and_indexed(index: Path, tmp_path: Path) -> None:
    gs.checkpoints.prune(index, tmp_path / "out", sparsity=0.5, storage="bitmask")
    fields = json.loads((tmp_path / "out" / INDEX).read_text())
    total = 0
    for shard in set(fields["weight_map"].values()):
        header = headers.read_header(tmp_path / "out" / shard, "x")
        assert header.data % 8 == 0
        for entry in header.entries.values():
            assert fields["weight_map"][entry.name] == shard
            assert entry.start % (headers.BITS[entry.dtype] // 8) == 0
            total += entry.nbytes
        with safe_open(tmp_path / "out" / shard, "numpy") as file:
            assert file.metadata()["format"] == "pt"
    assert fields["metadata"]["total_size"] == total


def test_include_and_exclude(source: Path, tmp_path: Path) -> None:
    def names(**how: Any) -> set[str]:
        done = gs.checkpoints.prune(source, tmp_path / "out.safetensors", sparsity=0.5, **how)
        after = load_file(tmp_path / "out.safetensors")
        changed = {name for name, w in tensors().items() if after[name].tobytes() != w.tobytes()}
        assert changed <= {t.name for t in done.tensors}
        return {t.name for t in done.tensors}

    everything_taken = names()
    assert everything_taken == set(tensors()) - set(NEVER)
    assert names(include=["?.weight"]) == {"a.weight", "b.weight", "c.weight", "d.weight"}
    assert names(include=["?.weight", "other"], exclude=["a*"]) == {"b.weight", "c.weight", "d.weight", "other"}
    assert names(exclude="*.weight") == {"other"}
    assert names(include=["*"]) == everything_taken  # never a bias
    with pytest.raises(ValueError, match=r"^prune: .*in\.safetensors must hold floating tensors .* got none"):
        names(include=["nothing"])


def test_the_output_may_be_a_link_and_replaces_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real.safetensors").write_bytes(b"old")
    (tmp_path / "link.safetensors").symlink_to("real.safetensors")
    gs.checkpoints.prune(source, tmp_path / "link.safetensors", sparsity=0.5)
    assert (tmp_path / "link.safetensors").is_symlink()
    assert len(load_file(tmp_path / "real.safetensors")) == len(tensors())


def test_the_source_is_replaced_only_by_force(source: Path, index: Path) -> None:
    for path, out in ((source, source), (index, index.parent)):
        with pytest.raises(ValueError, match=r"^prune: out must differ from the source"):
            gs.checkpoints.prune(path, out, sparsity=0.5)
        before = load_all(index) if path == index else load_file(path)
        expected = gs.prune({name: before[name] for name in pruned_names(path)}, sparsity=0.5)[0]
        gs.checkpoints.prune(path, out, sparsity=0.5, force=True)
        after = load_all(index) if path == index else load_file(path)
        for name, w in before.items():
            assert_same_bits(after[name], expected.get(name, w), name)


@pytest.mark.parametrize("method", ["magnitude", "lamp", "fpgm", "random"])
@pytest.mark.parametrize("pattern", ["element", "block:2x2", "2:4"])
@pytest.mark.parametrize("group", ["tensor", "global"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused(tmp_path: Path, method: str, pattern: str, group: str, dtype: Any) -> None:
    before = {name: np.ones((8, 8), dtype) for name in "abc"}
    before["b"][3, 5] = np.nan
    source = write_sharded(tmp_path / "in", [{"a": before["a"]}, {"b": before["b"]}, {"c": before["c"]}])
    names = everything(tmp_path)
    with pytest.raises(ValueError, match=r"^prune: .*00002-of-00003\.safetensors must hold no NaN, got one in 'b'$"):
        gs.checkpoints.prune(
            source, tmp_path / "out", sparsity=0.5, method=method, pattern=pattern, group=group, seed=1
        )
    assert everything(tmp_path) == names


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"sparsity": 1.3}, r"sparsity must be in \[0, 1\], got 1.3"),
        ({}, "exactly one of sparsity, nnz and threshold"),
        ({"sparsity": 0.5, "pattern": "nonsense"}, "pattern must be"),
        ({"sparsity": 0.5, "pattern": "block:7x1"}, "pattern 'block:7x1' must divide the shape"),
        ({"pattern": "5:25"}, "pattern '5:25' must divide the last axis"),
        ({"sparsity": 0.3, "pattern": "2:4"}, "sparsity must be 0.5"),
        ({"sparsity": 0.5, "group": "nonsense"}, "group must be"),
        ({"sparsity": 0.5, "pattern": "row", "group": "row"}, "group must be"),
        ({"sparsity": 0.5, "method": "taylor"}, "method must be one of magnitude, lamp, fpgm, random"),
        ({"sparsity": 0.5, "method": "nonsense"}, "method must be one of"),
        ({"sparsity": 0.5, "method": "random"}, "seed must be given"),
        ({"sparsity": 0.5, "storage": "nonsense"}, "storage must be dense or bitmask"),
        ({"sparsity": 0.5, "min_density": 0.5}, "min_density needs group='global'"),
    ],
    ids=str,
)
def test_wrong_arguments_write_nothing(source: Path, how: dict[str, Any], words: str) -> None:
    before = everything(source.parent)
    with pytest.raises(ValueError, match=f"^prune: {words}"):
        gs.checkpoints.prune(source, source.with_name("out.safetensors"), **how)
    assert everything(source.parent) == before


def test_outputs_that_cannot_be(source: Path, index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    before = everything(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path, out, kind in (
        (source, tmp_path / "in", IsADirectoryError),
        (source, tmp_path / "pipe", OSError),
        (source, tmp_path / "nowhere" / "out.safetensors", FileNotFoundError),
        (index, tmp_path / "file", NotADirectoryError),
        (index, tmp_path / "nowhere" / "out", FileNotFoundError),
        (index, tmp_path / "out.safetensors", ValueError),
        (source, "", ValueError),
    ):
        with pytest.raises(kind):
            gs.checkpoints.prune(path, out, sparsity=0.5)
    assert everything(tmp_path) == sorted([*before, "pipe"])


def test_packed_names_must_be_free(tmp_path: Path) -> None:
    w = np.ones((4, 4), np.float32)
    for other, what in (("a.bitmask", np.arange(3)), ("a", w)):
        save_file({"a.weight": w, other: what}, tmp_path / "in.safetensors")
        with pytest.raises(ValueError, match=r"^prune: .*must leave the names of packed tensors free"):
            gs.checkpoints.prune(
                tmp_path / "in.safetensors", tmp_path / "out.safetensors", sparsity=0.5, storage="bitmask"
            )
    assert everything(tmp_path) == ["in.safetensors"]


def test_a_packed_source_is_not_pruned(source: Path, tmp_path: Path) -> None:
    gs.checkpoints.prune(source, tmp_path / "packed.safetensors", sparsity=0.5, storage="bitmask")
    with pytest.raises(ValueError, match=r"^prune: .*must hold dense tensors \(convert it first\)"):
        gs.checkpoints.prune(tmp_path / "packed.safetensors", tmp_path / "out.safetensors", sparsity=0.5)


def test_other_files_of_the_folder_stay(index: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "more").mkdir()
    (out / "more" / "file").write_text("x")
    (out / "link").symlink_to("config.json")
    gs.checkpoints.prune(index, out, sparsity=0.5)
    one = write_sharded(tmp_path / "one", [tensors()])
    gs.checkpoints.prune(one, out, sparsity=0.5)  # replaces the three shards by one
    assert everything(out) == sorted(
        ["config.json", "link", "more", "more/file", INDEX, "model-00001-of-00001.safetensors"]
    )
    assert (out / "more" / "file").read_text() == "x"
    assert (out / "link").readlink() == Path("config.json")
    assert set(load_all(out / INDEX)) == set(tensors())
    assert everything(tmp_path)[0] == "in"  # nothing hidden is left


# --- the command line -------------------------------------------------------------------------------------------------


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    arguments = ["prune", str(source), "-o", str(out), "--sparsity", "0.5", "--exclude", "other", "--group", "global"]
    assert cli.main([*arguments, "--json"]) == 0
    printed, errors = capsys.readouterr()
    report = json.loads(printed)
    assert errors == ""
    names = [name for name in pruned_names(source) if name != "other"]
    expected = gs.prune({name: tensors()[name] for name in names}, sparsity=0.5, group="global")[0]
    assert [t["name"] for t in report["tensors"]] == names
    assert (report["sparsity"], report["untouched"], report["resumed"]) == (0.5, 3, 0)
    for name, w in expected.items():
        assert_same_bits(load_file(out)[name], w, name)
    assert cli.main(arguments) == 0
    assert "5 tensors pruned, 3 left as they were: 50.00 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--sparsity", "1.3"], 2, "sparsity must be in [0, 1], got 1.3"),
        (["--sparsity", "half"], 2, "--sparsity"),
        ([], 2, "exactly one of sparsity"),
        (["--pattern", "x"], 2, "pattern must be"),
        (["--method", "taylor", "--sparsity", "0.5"], 2, "--method"),
        (["--method", "random", "--sparsity", "0.5"], 2, "seed must be given"),
        (["--include", "x", "--sparsity", "0.5"], 1, "got none"),
        (["--pattern", "block:7x7", "--sparsity", "0.5"], 1, "must divide the shape"),
    ],
)
def test_command_line_errors(
    source: Path, arguments: list[str], status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(source.parent)
    assert cli.main(["prune", str(source), "-o", str(source.with_name("out.safetensors")), *arguments]) == status
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("gossamer prune: ")
    assert words in errors
    assert errors.count("\n") == 1
    assert "prune: prune:" not in errors
    assert everything(source.parent) == before


def test_progress_goes_up(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    gs.checkpoints.prune(
        source,
        tmp_path / "out.safetensors",
        sparsity=0.5,
        group="global",
        progress=lambda phase, share, words: seen.append((phase, share or 0.0)),
    )
    assert list(dict.fromkeys(phase for phase, _ in seen)) == ["count", "prune"]
    shares = [share for phase, share in seen if phase == "prune"]
    assert shares == sorted(shares)
    assert shares[-1] <= 1
