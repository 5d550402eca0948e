# SPDX-License-Identifier: Apache-2.0
"""Hostile safetensors files: one clear line for each, never a crash, a hang, a huge allocation or a written byte."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import gossamer as gs
from checkpoint_files import INDEX, everything, one, write_raw, write_sharded
from gossamer import cli, headers

TWO = one(offsets=(0, 8)) | one(offsets=(8, 16), name="v")
BROKEN: dict[str, tuple[Any, bytes, str]] = {
    "overlap": (one(offsets=(0, 8)) | one(offsets=(4, 12), name="v"), bytes(12), "overlaps"),
    "same place twice": (one(offsets=(0, 8)) | one(offsets=(0, 8), name="v"), bytes(8), "overlaps"),
    "gap": (one(offsets=(0, 8)) | one(offsets=(12, 20), name="v"), bytes(20), "gap"),
    "gap at the beginning": (one(offsets=(4, 12)), bytes(12), "gap"),
    "bytes at the end": (one(), bytes(9), "9 bytes of tensors"),
    "truncated": (one(), bytes(7), "7 bytes of tensors"),
    "outside": (one(shape=(1 << 40,), offsets=(0, 1 << 42)), bytes(8), "8 bytes of tensors"),
    "negative offset": (one(offsets=(-8, 0)), bytes(8), "data_offsets"),
    "backwards": (one(offsets=(8, 0)), bytes(8), "data_offsets"),
    "three offsets": (one(offsets=(0, 8, 8)), bytes(8), "data_offsets"),
    "offsets that are no list": (one(offsets=8), bytes(8), "data_offsets"),
    "float offset": (one(offsets=(0, 8.0)), bytes(8), "data_offsets"),
    "true for 1": (one(shape=(True, 2)), bytes(8), "shape"),
    "negative shape": (one(shape=(-1, -2)), bytes(8), "shape"),
    "null shape": (one(shape=None), bytes(8), "shape"),
    "size of another dtype": (one(dtype="F16"), bytes(8), "8 bytes for the shape"),
    "overflow": (one(shape=(1 << 62, 1 << 62)), bytes(8), "overflows"),
    "overflow in bytes": (one(shape=(1 << 62,), offsets=(0, 0)), b"", "overflows"),
    "overflow hidden by 0": (one(shape=(1 << 62, 1 << 62, 0), offsets=(0, 0)), b"", "overflows"),
    "beyond 64 bits": (one(shape=(1 << 64,)), bytes(8), "shape"),
    "unknown dtype": (one(dtype="F33"), bytes(8), "unknown dtype 'F33'"),
    "dtype that is no text": (one(dtype=["F32"]), bytes(8), "unknown dtype"),
    "half a byte": (one(dtype="F4", shape=(3,), offsets=(0, 2)), bytes(2), "2 bytes for the shape"),
    "missing field": ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), "other fields"),
    "extra field": ({"w": {**one()["w"], "more": 1}}, bytes(8), "other fields"),
    "tensor that is a number": ({"w": 3}, b"", "other fields"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    "metadata that is a list": ({"__metadata__": []}, b"", "__metadata__"),
    "duplicate key": (b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"w":{}}', b"a", "'w' twice"),
    "duplicate field": (b'{"w":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"a", "'dtype' twice"),
    "duplicate metadata": (b'{"__metadata__":{"a":"b","a":"c"}}', b"", "'a' twice"),
    "list": (b"[]", b"", "no JSON object"),
    "empty": (b"", b"", "no JSON object"),
    "spaces first": (b" {}", b"", "no JSON object"),
    "no JSON": (b'{"w":', b"", "no JSON"),
    "something after": (b"{}{}", b"", "no JSON"),
    "not UTF-8": (b'{"\xff":1}', b"", "no JSON"),
    "NaN": (b'{"w":NaN}', b"", "NaN"),
    "deep": (b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b"", "no JSON"),
    "long number": (b'{"w":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"a", "no JSON"),
    "half a character": (b'{"\\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"a", "half a character"),
}


def refused(path: Path, words: str) -> None:
    """By all that read checkpoints, in one line, with nothing written."""
    before = everything(path.parent)
    calls: tuple[Callable[[], Any], ...] = (
        lambda: gs.load(path),
        lambda: gs.checkpoints.headers(path),
        lambda: gs.checkpoints.inspect(path),
        lambda: gs.checkpoints.prune(path, path.parent / "out.safetensors", sparsity=0.5),
        lambda: gs.checkpoints.convert(path, path.parent / "out.safetensors"),
    )
    for name, call in zip(("load", "headers", "inspect", "prune", "convert"), calls, strict=True):
        with pytest.raises(ValueError, match=f"^{name}: ") as caught:
            call()
        message = str(caught.value)
        assert words in message
        assert path.name in message
        assert message.isprintable()
        assert len(message) < 400
    assert everything(path.parent) == before


@pytest.mark.parametrize("case", BROKEN)
def test_broken_headers_are_refused(tmp_path: Path, case: str) -> None:
    header, data, words = BROKEN[case]
    refused(write_raw(tmp_path / "in.safetensors", header, data), words)


@pytest.mark.parametrize("length", [10 * 1000**3, (1 << 64) - 1, headers.MAX_HEADER + 1, 1000])
def test_a_header_that_is_too_long_is_not_read(tmp_path: Path, length: int) -> None:
    path = write_raw(tmp_path / "in.safetensors", b"{}", length=length)
    tracemalloc.start()
    refused(path, f"a header of {length} bytes")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_file_without_a_header(tmp_path: Path, size: int) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(bytes(size))
    refused(path, f"a file of {size} bytes")


def test_a_file_that_ends_where_its_header_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    raw = path.read_bytes()
    for cut in range(0, len(raw), 5):
        path.write_bytes(raw[:cut])
        refused(path, "got ")


def test_a_late_duplicate_among_very_many_keys_is_found_at_once(tmp_path: Path) -> None:
    entry = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = b"{" + b",".join(entry % min(i, 99_998) for i in range(100_000)) + b"}"
    refused(write_raw(tmp_path / "in.safetensors", text), "the key '99998' twice")  # hours, if it was quadratic


def test_legal_files_that_are_unusual(tmp_path: Path) -> None:
    entries = {
        "empty": {"dtype": "F32", "shape": [0, 5], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [0, 1]},
        "nibbles": {"dtype": "F4", "shape": [2, 3], "data_offsets": [1, 4]},
        "é\u4e2d": {"dtype": "BOOL", "shape": [1], "data_offsets": [4, 5]},
    }
    text = json.dumps({"__metadata__": {"a": "b"}, **entries}).encode() + b"   "
    header = headers.read_header(write_raw(tmp_path / "in.safetensors", text, b"abcd\1"), "x")
    assert list(header.entries) == ["empty", "scalar", "nibbles", "é\u4e2d"]
    assert header.metadata == {"a": "b"}
    assert header.data == 8 + len(text)


def test_a_written_header_is_read_and_aligned(tmp_path: Path) -> None:
    made = headers.make_header([("w", "F64", (3,)), ("ü", "U8", (5,))], {"key": "value"})
    path = tmp_path / "made.safetensors"
    path.write_bytes(made.raw + bytes(29))
    header = headers.read_header(path, "x")
    assert (header.entries, header.metadata, header.raw) == (made.entries, {"key": "value"}, made.raw)
    assert header.data % 8 == 0
    assert path.stat().st_size == made.file_size


_TEXT = st.text(max_size=3)
_NUMBER = st.one_of(st.integers(-2, 20), st.integers(-(1 << 70), 1 << 70), st.booleans(), st.floats(), st.none(), _TEXT)
_NUMBERS = st.one_of(st.lists(_NUMBER, max_size=4), _NUMBER)
_DTYPE = st.one_of(st.sampled_from(["F32", "F16", "BF16", "U8", "F4", "I64"]), _TEXT, _NUMBER)
_TENSOR = st.one_of(
    st.fixed_dictionaries({"dtype": _DTYPE, "shape": _NUMBERS, "data_offsets": _NUMBERS}),
    st.dictionaries(_TEXT, _NUMBERS, max_size=3),
    _NUMBERS,
)
_HEADER = st.dictionaries(st.one_of(_TEXT, st.just("__metadata__")), _TENSOR, max_size=3)


def read_or_refused(path: Path) -> None:
    before = everything(path.parent)
    try:
        found = gs.checkpoints.inspect(path)
    except ValueError as error:
        message = str(error)
        assert message.startswith("inspect: ")
        assert message.isprintable()
        assert len(message) < 500
        with pytest.raises(ValueError, match=r"^load: "):
            gs.load(path)
    else:
        assert sum(tensor.bytes for tensor in found.tensors) <= path.stat().st_size
    assert everything(path.parent) == before


@given(data=st.binary(max_size=80))
def test_random_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "random.safetensors"
    path.write_bytes(data)
    read_or_refused(path)
    write_raw(path, data, data)
    read_or_refused(path)


@given(header=_HEADER, size=st.integers(0, 40))
def test_random_headers(header: Any, size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_or_refused(write_raw(tmp_path_factory.getbasetemp() / "made.safetensors", header, bytes(size)))


@given(place=st.integers(0, 400), bits=st.integers(1, 255), other=st.integers(0, 400))
def test_mutated_files(place: int, bits: int, other: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    save_file({"a.weight": np.ones((4, 4), np.float32), "b": np.arange(9, dtype=np.int8)}, path, {"k": "v"})
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= bits
    raw[other % len(raw)] = raw[place % len(raw)]
    path.write_bytes(raw)
    read_or_refused(path)


# --- an index ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["../out.safetensors", "/etc/passwd", "a/../../out.safetensors", "", ".", "..", "./", "a\0b", "a\nb", "//x"],
)
def test_shard_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "out.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / INDEX
    index.write_text(json.dumps({"weight_map": {"w": name}}))
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=r"^prune: .*must name files inside of its folder") as caught:
        gs.checkpoints.prune(index, tmp_path / "new", sparsity=0.5)
    assert str(caught.value).isprintable()
    assert everything(tmp_path) == before


def test_links_that_lead_out_or_loop(tmp_path: Path) -> None:
    save_file({"w": np.ones((2, 2), np.float32)}, tmp_path / "out.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / INDEX
    index.write_text(json.dumps({"weight_map": {"w": "s.safetensors"}}))
    (folder / "s.safetensors").symlink_to(tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="a link to"):
        gs.checkpoints.inspect(index)
    (folder / "s.safetensors").unlink()
    (folder / "s.safetensors").symlink_to(folder / "t.safetensors")
    (folder / "t.safetensors").symlink_to(folder / "s.safetensors")
    with pytest.raises(OSError, match="symbolic links"):
        gs.checkpoints.inspect(index)
    (folder / "t.safetensors").unlink()
    (tmp_path / "out.safetensors").rename(folder / "t.safetensors")
    assert gs.checkpoints.inspect(index).tensors[0].name == "w"  # a link inside the folder is fine


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[]", "no JSON object"),
        (b"{}", "weight_map"),
        (b'{"weight_map":{}}', "weight_map"),
        (b'{"weight_map":{"w":1}}', "weight_map"),
        (b'{"weight_map":{"w":"s","w":"s"}}', "twice"),
        (b'{"weight_map":', "no JSON"),
    ],
)
def test_broken_indexes(tmp_path: Path, text: bytes, words: str) -> None:
    index = tmp_path / INDEX
    index.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^inspect: .*{words}"):
        gs.checkpoints.inspect(index)


def test_index_and_shards_must_name_the_same_tensors(tmp_path: Path) -> None:
    w = np.ones((2, 2), np.float32)
    index = write_sharded(tmp_path, [{"a": w}, {"b": w}])
    fields = json.loads(index.read_text())
    first = fields["weight_map"]["a"]
    for places, words in (
        (fields["weight_map"] | {"c": first}, "'c', not in"),
        (fields["weight_map"] | {"b": first}, "'b', not in"),
        ({"a": first}, ""),  # a file that no tensor names does not belong to the checkpoint
    ):
        index.write_text(json.dumps({"weight_map": places}))
        if words:
            with pytest.raises(ValueError, match=rf"^inspect: .*{words}"):
                gs.checkpoints.inspect(index)
        else:
            assert gs.checkpoints.inspect(index).files == 1
    write_sharded(tmp_path, [{"a": w, "b": w}])
    shard = next(iter(json.loads(index.read_text())["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(ValueError, match=r"^inspect: .*name all tensors of its files, got 'b' in"):
        gs.checkpoints.inspect(index)


def test_pipes_folders_and_missing_files_are_os_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("pipe.safetensors", "", "missing.safetensors", "missing.json"):
        with pytest.raises(OSError, match=name or tmp_path.name):
            gs.checkpoints.inspect(tmp_path / name)
        assert cli.main(["inspect", str(tmp_path / name)]) == 1
        assert capsys.readouterr().err.count("\n") == 1


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file({"w": np.ones((64, 64), np.float32)}, path)

    def shrink(phase: str, share: float | None, words: str) -> None:
        os.truncate(path, 100)

    save_file({f"w{i}": np.ones((64, 64), np.float32) for i in range(3)}, path)
    with pytest.raises(ValueError, match=r"^prune: .*became shorter"):
        gs.checkpoints.prune(path, tmp_path / "out.safetensors", sparsity=0.5, progress=shrink)
    assert everything(tmp_path) == ["in.safetensors"]


@pytest.mark.parametrize("sharded", [False, True], ids=["file", "folder"])
def test_a_source_that_changes_while_it_is_read(tmp_path: Path, sharded: bool) -> None:
    """Replaced by a file of the same layout: what is half of each is not written."""
    tensors = {f"w{i}": np.ones((64, 64), np.float32) for i in range(3)}
    (tmp_path / "in").mkdir()
    if sharded:
        path, out = write_sharded(tmp_path / "in", [tensors]), tmp_path / "out"
    else:
        path, out = tmp_path / "in" / "in.safetensors", tmp_path / "out.safetensors"
        save_file(tensors, path)
    (shard,) = path.parent.glob("*.safetensors")

    def replace(phase: str, share: float | None, words: str) -> None:
        if words == "w1":
            save_file({name: 2 * w for name, w in tensors.items()}, shard)

    for work in (
        lambda: gs.checkpoints.prune(path, out, sparsity=0.5, progress=replace),
        lambda: gs.checkpoints.convert(path, out, storage="bitmask", progress=replace),
    ):
        with pytest.raises(ValueError, match=r"must stay as it is, but changed while it was read"):
            work()
        assert everything(tmp_path)[0] == "in"
        assert not out.exists()


def test_the_length_is_little_endian(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(struct.pack(">Q", 2) + b"{}")
    refused(path, "a header of")
