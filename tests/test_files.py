# SPDX-License-Identifier: Apache-2.0
"""``save`` and ``load``: what goes in comes out; a failed or refused save leaves what was there."""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import assert_same_bits, right_or_refused, values
from checkpoint_files import one, write_raw


def _things() -> dict[str, Any]:
    w = values("heavy_ties", (17, 31), np.float32)
    mask = gs.topk_mask(abs(w), sparsity=0.7)
    kernel = gs.topk_mask(values("normal", (4, 3, 2, 2), np.float64), nnz=5)
    return {
        "w": w,
        "transposed": w.T,
        "double": values("normal", (5,), np.float64),
        "empty": np.zeros((0, 3), np.float32),
        "labels": np.arange(5),
        "mask": mask,
        "kernel": kernel,
        "csr": gs.SparseMatrix.from_dense(w, mask, format="csr"),
        "panel": gs.SparseMatrix.from_dense(w, mask, format="panel"),
        "bitmask": gs.SparseMatrix.from_dense(w, mask, format="bitmask"),
        "dense": gs.SparseMatrix.from_dense(w, mask, format="dense"),
    }


@pytest.mark.parametrize("kind", [str, Path])
def test_round_trip(tmp_path: Path, kind: type) -> None:
    things, path = _things(), kind(tmp_path / "all.safetensors")
    gs.save(path, things)
    back = gs.load(path)
    assert set(back) == set(things)
    for name, thing in things.items():
        assert type(back[name]) is type(thing), name
        if isinstance(thing, np.ndarray):
            assert_same_bits(back[name], thing, name)
        elif isinstance(thing, gs.Mask):
            assert back[name] == thing
        else:
            assert (back[name].format, back[name].nnz) == (thing.format, thing.nnz)
            assert_same_bits(np.asarray(back[name].values), np.asarray(thing.values), name)
            assert_same_bits(back[name].to_dense(), thing.to_dense(), name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["all.safetensors"]


def test_a_truncated_or_foreign_file_is_a_value_error(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    gs.save(good, _things())
    raw = good.read_bytes()
    for cut in (0, 4, 20, len(raw) // 2, len(raw) - 1):
        bad.write_bytes(raw[:cut])
        with pytest.raises(ValueError, match=r"^load: .*bad\.safetensors") as caught:
            gs.load(bad)
        assert "\n" not in str(caught.value)


def test_a_damaged_file_is_refused_or_consistent(tmp_path: Path) -> None:
    """One bit of the file flips: never a crash, never a matrix whose values and structure disagree."""
    path = tmp_path / "damaged.safetensors"
    kept = gs.Mask.from_dense(np.arange(60).reshape(4, 15) % 3 == 0)
    w = np.arange(60.0).reshape(4, 15)
    gs.save(path, {"a": gs.SparseMatrix.from_dense(w, kept, format="csr"), "m": kept})
    raw = bytearray(path.read_bytes())
    for position in range(len(raw)):
        raw[position] ^= 1 << (position % 8)
        path.write_bytes(raw)
        raw[position] ^= 1 << (position % 8)
        back = right_or_refused(lambda: gs.load(path), ValueError, "^load: ")
        for thing in (back or {}).values():
            if isinstance(thing, gs.SparseMatrix):
                assert len(thing.values) == thing.nnz <= thing.shape[0] * thing.shape[1]
                assert thing.to_dense().shape == thing.shape
            elif isinstance(thing, gs.Mask):
                assert thing.nnz == thing.to_dense().sum()


def test_a_refused_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    gs.save(path, {"w": np.ones(3)})
    before = path.read_bytes()
    for wrong in ({"w": 3}, {3: np.ones(3)}, {"w": [1.0]}, {"ok": np.ones(3), "w": np.array([object()])}):
        with pytest.raises(TypeError, match=r"^save: tensors"):
            gs.save(path, wrong)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_or_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=re.escape("nowhere")):
        gs.save(tmp_path / "nowhere" / "x.safetensors", {"w": np.ones(3)})
    with pytest.raises(OSError, match=re.escape("missing")):
        gs.load(tmp_path / "missing.safetensors")
    with pytest.raises(OSError, match=re.escape(tmp_path.name)):
        gs.save(tmp_path, {"w": np.ones(3)})
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_saving_never_replaces_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe stands for a device: replacing one by a file would break it for everybody."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises((ValueError, OSError), match="pipe"):
        gs.save(pipe, {"w": np.ones(3)})
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_many_rows_without_columns_are_refused(tmp_path: Path) -> None:
    group = {"tensors": {"w": {"kind": "matrix", "shape": [1 << 40, 0], "format": "csr"}}}
    header = {"__metadata__": {"gossamer": json.dumps(group)}}
    header |= one("U8", (1 << 40, 0), (0, 0), "w.bitmask") | one("F32", (0,), (0, 0), "w.values")
    with pytest.raises(ValueError, match="1099511627776 rows without columns"):
        gs.load(write_raw(tmp_path / "in.safetensors", header))
