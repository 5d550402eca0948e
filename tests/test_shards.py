# SPDX-License-Identifier: Apache-2.0
"""gs.Selection: chunks that never meet give the mask that one array gives."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from gossamer import reference, shards

SIZES = (1, 7, 1000, 50_000, 20_000, 3, 12_345)
DATA: dict[str, Callable[[np.random.Generator, int, int], Any]] = {
    "normal": lambda r, n, i: r.standard_normal(n),
    "ties": lambda r, n, i: r.integers(-3, 4, n),
    "layers_of_other_scales": lambda r, n, i: r.standard_normal(n) * 4.0**i,
    "sorted": lambda r, n, i: np.sort(r.standard_normal(n)) + i,
    "mostly_zeros": lambda r, n, i: np.where(r.random(n) < 0.95, 0.0, r.standard_normal(n)),
    "all_equal": lambda r, n, i: np.full(n, 2.0),
}
RULES: tuple[dict[str, Any], ...] = (
    {"sparsity": 0.5},
    {"sparsity": 0.9},
    {"sparsity": 0.0},
    {"sparsity": 1.0},
    {"sparsity": 0.99999},
    {"nnz": 1},
    {"nnz": 5000},
)


def chunks_of(name: str, dtype: Any, seed: int = 0) -> list[np.ndarray]:
    r = np.random.default_rng(seed)
    return [DATA[name](r, n, i).astype(dtype) for i, n in enumerate(SIZES)]


def counted(selection: gs.Selection, count: Callable[[gs.Selection], gs.Selection]) -> gs.Selection:
    """Looks until the threshold is known: twice at most, but for the tiny windows of a patched block."""
    selection = count(selection)
    for _ in range(1 if shards._BLOCK == 1 << 20 else 3):
        if selection.complete:
            break
        with pytest.raises(RuntimeError, match=r"Selection\.threshold: .* call again\(\)"):
            selection.threshold()
        selection.again()
        selection = count(selection)
    assert selection.complete
    return selection


@pytest.fixture(params=[1 << 20, 1 << 12], ids=["held", "narrowed"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small blocks the window has to narrow, as it does for chunks of millions."""
    monkeypatch.setattr(shards, "_BLOCK", request.param)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("data", DATA)
def test_seven_unequal_chunks(data: str, dtype: Any, rule: dict[str, Any]) -> None:
    chunks = chunks_of(data, dtype)
    whole = np.concatenate(chunks)
    expected = reference.topk_mask(np.abs(whole.astype(np.float64)), **rule)

    def one_after_the_other(selection: gs.Selection) -> gs.Selection:
        for chunk in chunks:
            selection.update(chunk)
        return selection

    selection = counted(gs.Selection(**rule), one_after_the_other)
    got = np.concatenate([selection.mask(chunk).to_dense() for chunk in chunks])
    np.testing.assert_array_equal(got, expected)
    recut = gs.Selection(**rule) if not selection.complete else copy.deepcopy(selection)
    recut._next = (0, 0)  # a second reader, who cuts otherwise
    got = np.concatenate([recut.mask(chunk).to_dense() for chunk in np.array_split(whole, 5)])
    np.testing.assert_array_equal(got, expected)
    kept = np.abs(whole[expected].astype(np.float64))
    assert selection.threshold() == (kept.min() if kept.size else np.inf)
    assert selection.size == whole.size

    offsets = np.cumsum([0, *SIZES[:-1]])

    def on_three_machines(start: gs.Selection) -> gs.Selection:
        parts = []
        for machine in range(3):
            part = pickle.loads(pickle.dumps(start))
            for i in reversed(range(machine, len(chunks), 3)):
                part.update(chunks[i], offset=int(offsets[i]))
            parts.append(pickle.loads(pickle.dumps(part)))
        for part in parts[1:]:
            parts[0].merge(part)
        return parts[0]

    selection = counted(gs.Selection(**rule), on_three_machines)
    for i in (3, 0, 6, 1, 5, 2, 4):
        got = selection.mask(chunks[i], offset=int(offsets[i])).to_dense()
        np.testing.assert_array_equal(got, expected[offsets[i] : offsets[i] + SIZES[i]])


@pytest.mark.parametrize("method", ["taylor", "wanda", "random", "lamp", "callable"])
def test_methods_and_shapes(method: str) -> None:
    """Chunks are tensors of any shape and layout here, and the result is that of prune(group="global")."""
    r = np.random.default_rng(3)
    weights = {
        "a": r.standard_normal((40, 30)).astype(np.float32),
        "b": np.asfortranarray(r.standard_normal((64, 17)).astype(np.float32)),
        "c": r.standard_normal((8, 3, 3, 3)).astype(np.float32),
    }
    grads = {name: r.standard_normal(w.shape).astype(np.float32) for name, w in weights.items()}
    stats = {}
    for name, w in weights.items():
        stats[name] = gs.Stats("norm")
        stats[name].update(r.standard_normal((5, w[0].size)).astype(np.float32))
    how: Any = (lambda w, g, s: np.abs(w) + np.abs(g)) if method == "callable" else method
    _, expected = gs.prune(weights, grads, stats=stats, method=how, seed=5, sparsity=0.7, group="global")
    selection = gs.Selection(sparsity=0.7, method=how, seed=5)
    for name, w in weights.items():
        selection.update(w, grads[name], stats=stats[name])
    for name, w in weights.items():
        assert selection.mask(w, grads[name], stats=stats[name]) == expected[name]


def test_two_machines_without_offsets() -> None:
    first, second = np.array([1.0, 3.0, 2.0]), np.array([2.0, 0.5])
    a, b = gs.Selection(sparsity=0.6), gs.Selection(sparsity=0.6)
    a.update(first)
    b.update(second)
    a.merge(b)
    assert b.size == 2
    assert a.threshold() == 2.0
    assert a.mask(first).to_dense().tolist() == [False, True, True]  # the tie of the lower index
    assert a.mask(second).to_dense().tolist() == [False, False]


def test_errors_change_nothing() -> None:
    selection = gs.Selection(sparsity=0.5)
    selection.update(np.arange(8.0))
    before = pickle.dumps(selection)
    for call, error, message in (
        (lambda: selection.update(np.array([1.0, np.nan])), ValueError, "scores must not be NaN"),
        (lambda: selection.update(np.array([1, 2])), TypeError, "must be float32"),
        (
            lambda: selection.update(np.arange(3.0), offset=4),
            ValueError,
            "offset must be given for all chunks or for none",
        ),
        (lambda: selection.merge(gs.Selection(sparsity=0.4)), ValueError, "other must have the same sparsity"),
        (lambda: selection.merge(7), TypeError, "other must be a Selection"),
        (lambda: selection.mask(np.arange(9.0)), ValueError, "elements beyond the last"),
        (lambda: selection.mask(np.arange(8.0), offset=3), ValueError, "offset must be that of a chunk"),
        (lambda: selection.again(), RuntimeError, "a second look is not needed"),
    ):
        with pytest.raises(error, match=message):
            call()
        selection._found = None
        assert pickle.dumps(selection) == before
    placed = gs.Selection(sparsity=0.5)
    placed.update(np.arange(8.0), offset=10)
    with pytest.raises(ValueError, match="offset must not overlap"):
        placed.update(np.arange(3.0), offset=8)
    for arguments, error in (
        ({}, ValueError),
        ({"sparsity": 0.5, "nnz": 3}, ValueError),
        ({"sparsity": 1.5}, ValueError),
        ({"nnz": -1}, ValueError),
        ({"nnz": 1.5}, TypeError),
        ({"nnz": 1, "method": "best"}, ValueError),
        ({"nnz": 1, "method": "snip"}, NotImplementedError),
    ):
        with pytest.raises(error, match="Selection: "):
            gs.Selection(**arguments)
    short = gs.Selection(nnz=9)
    short.update(np.arange(8.0))
    with pytest.raises(ValueError, match="nnz must be at most the number of elements, 8"):
        short.threshold()


MEMMAP = """
import resource, sys
import numpy as np
import gossamer as gs
n = int(sys.argv[2])
data = np.memmap(sys.argv[1], np.float32, "r", shape=(n,))
gs.prune(np.ones(1 << 21, np.float32), sparsity=0.5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
selection = gs.Selection(sparsity=0.9)
kept = 0
cuts = [0, n // 7, n // 3, n // 2, n]
def chunks():  # mapped anew each time: pages that were read do not count as ours
    for a, b in zip(cuts, cuts[1:]):
        for c in range(a, b, 1 << 20):
            yield np.fromfile(sys.argv[1], np.float32, min(1 << 20, b - c), offset=4 * c)
for chunk in chunks():
    selection.update(chunk)
for chunk in chunks():
    kept += selection.mask(chunk).nnz
print(kept, repr(selection.threshold()), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_file_larger_than_the_scratch(tmp_path: Path) -> None:
    """n/8 bytes + 3 % of 8n are allowed; the file is eleven times that."""
    n = 24 << 20
    data = np.memmap(tmp_path / "weights.bin", np.float32, "w+", shape=(n,))
    r = np.random.default_rng(0)
    for start in range(0, n, 1 << 20):
        data[start : start + (1 << 20)] = r.standard_normal(1 << 20, dtype=np.float32)
    data.flush()
    run = subprocess.run(
        [sys.executable, "-c", MEMMAP, str(tmp_path / "weights.bin"), str(n)],
        capture_output=True,
        text=True,
        check=True,
    )
    kept, threshold, peak = run.stdout.split()
    whole = gs.prune(np.asarray(data), sparsity=0.9)[1]
    assert int(kept) == whole.nnz
    expected = np.partition(np.abs(data), n - whole.nnz)[n - whole.nnz]
    assert float(threshold) == float(expected)
    if sys.platform.startswith("linux"):
        assert int(peak) < n / 8 + 0.03 * 8 * n + (64 << 20)  # and the interpreter's, and one chunk


def test_memory_map() -> None:
    """A memmap is read in place."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = np.memmap(Path(folder) / "w.bin", np.float32, "w+", shape=(1000, 300))
        data[...] = np.random.default_rng(1).standard_normal((1000, 300))
        selection = gs.Selection(sparsity=0.25)
        for rows in np.array_split(data, 4):
            selection.update(rows)
        got = np.concatenate([selection.mask(rows).to_dense() for rows in np.array_split(data, 4)])
        np.testing.assert_array_equal(got, gs.prune(np.asarray(data), sparsity=0.25)[1].to_dense())
        del data, rows
