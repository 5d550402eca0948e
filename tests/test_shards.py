# SPDX-License-Identifier: Apache-2.0
"""gs.Selection: chunks that never meet give the mask that one array gives."""

from __future__ import annotations

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
    got = np.concatenate([selection.mask(chunk).to_dense() for chunk in np.array_split(whole, 5)])  # cut otherwise
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
        (lambda: selection.update(np.array([1.0, np.nan])), ValueError, "update: scores must not be NaN.* index 9"),
        (lambda: selection.mask(np.array([1.0, np.nan])), ValueError, "mask: scores must not be NaN.* index 1"),
        (lambda: selection.update(np.array([1, 2])), TypeError, "must be float32"),
        (
            lambda: selection.update(np.arange(3.0), offset=4),
            ValueError,
            "offset must be given for all chunks or for none",
        ),
        (lambda: selection.merge(gs.Selection(sparsity=0.4)), ValueError, "other must have the same sparsity"),
        (lambda: selection.merge(7), TypeError, "other must be a Selection"),
        (lambda: selection.mask(np.arange(9.0)), ValueError, "elements beyond the last"),
        (lambda: selection.mask(np.arange(8.0), offset=3), ValueError, "offset must be given where update"),
        (lambda: selection.again(), RuntimeError, "a second look is not needed"),
    ):
        with pytest.raises(error, match=message):
            call()
        selection._forget()
        assert pickle.dumps(selection) == before
    placed = gs.Selection(sparsity=0.5)
    placed.update(np.arange(8.0), offset=10)
    placed_before = pickle.dumps(placed)
    for offset, size in ((8, 3), (10, 8), (12, 2), (17, 5), (9, 20)):
        with pytest.raises(ValueError, match="offset must not overlap"):
            placed.update(np.arange(float(size)), offset=offset)
    for offset, error in ((-1, ValueError), (1 << 62, ValueError), (1.0, TypeError), (True, TypeError)):
        for call in (placed.update, placed.mask):
            with pytest.raises(error, match="offset must be"):
                call(np.arange(8.0), offset=offset)
    for size, offset in ((7, 10), (8, 11), (9, 10)):
        with pytest.raises(ValueError, match="offset must be that of a chunk of this size"):
            placed.mask(np.arange(float(size)), offset=offset)
    with pytest.raises(ValueError, match="offset must be given where update"):
        placed.mask(np.arange(8.0))
    placed._forget()
    assert pickle.dumps(placed) == placed_before
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
    for call in (short.threshold, short.again):
        with pytest.raises(ValueError, match="nnz must be at most the number of elements, 8"):
            call()
    for empty in (gs.Selection(sparsity=0.5), gs.Selection(nnz=0)):
        assert empty.threshold() == np.inf
        with pytest.raises(RuntimeError, match="a second look is not needed"):
            empty.again()


def test_an_error_in_the_middle_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The window has narrowed by the time the NaN is met."""
    monkeypatch.setattr(shards, "_BLOCK", 256)
    w = np.random.default_rng(0).standard_normal(5000)
    bad = np.concatenate([w, [np.nan]])
    for offsets in ((None, None), (10_000, 0)):
        selection = gs.Selection(sparsity=0.5)
        selection.update(w, offset=offsets[0])
        before = pickle.dumps(selection)
        with pytest.raises(ValueError, match="must not be NaN"):
            selection.update(bad, offset=offsets[1])
        assert pickle.dumps(selection) == before


def test_mixed_dtypes() -> None:
    """A float32 score and a float64 score that rounds to it are different scores."""
    a = np.array([0.1, 0.1, 3.0], np.float32)
    b = np.array([0.1, float(np.float32(0.1)), 2.0, 0.1])
    whole = np.concatenate([a.astype(np.float64), b])
    expected = reference.topk_mask(whole, nnz=4)
    for parts in ((a, b), (b, a)):
        selection = gs.Selection(nnz=4)
        for part in parts:
            selection.update(part, offset=0 if part is a else a.size)
        assert selection.mask(b, offset=a.size).to_dense().tolist() == expected[3:].tolist()
        assert selection.mask(a, offset=0).to_dense().tolist() == expected[:3].tolist()


def outliers(n: int) -> np.ndarray:
    x = np.sort(np.random.default_rng(0).standard_normal(n).astype(np.float32) ** 2)
    x[::32] = 1e6
    return x


@pytest.mark.parametrize("how", ["with_outliers", "misled"])
def test_looks_end(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks are enough for data in any order; and were the sample all wrong, further ones close in on it."""
    monkeypatch.setattr(shards, "_BLOCK", 1 << 16)
    x = outliers(1 << 20)
    if how == "misled":
        monkeypatch.setattr(shards, "_sample", lambda inputs, index, w, aux: np.full(8, 7e5, np.float32))
    selection, looks = gs.Selection(sparsity=0.5), 0
    while looks == 0 or not selection.complete:
        if looks:
            selection.again()
        for chunk in np.array_split(x, 64):
            selection.update(chunk)
        looks += 1
    assert 1 < looks <= (2 if how == "with_outliers" else 66)
    got = np.concatenate([selection.mask(chunk).to_dense() for chunk in np.array_split(x, 64)])
    np.testing.assert_array_equal(got, reference.topk_mask(x, sparsity=0.5))


def test_middle() -> None:
    for low, high in ((-np.inf, np.inf), (-1.0, 3.0), (0.0, 5e-324), (-2.0, -1.0), (1.0, np.inf), (4.0, 4.0)):
        assert low <= shards._middle(low, high) <= high
    assert shards._middle(-3.0, 3.0) == 0.0
    assert shards._middle(1.0, 4.0) == 2.0


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_room(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held stays within the room, after merge too."""
    monkeypatch.setattr(shards, "_BLOCK", 1 << 10)
    r = np.random.default_rng(0)
    parts = [gs.Selection(sparsity=0.5) for _ in range(8)]
    for part in parts:
        for _ in range(8):
            part.update(r.standard_normal(1 << 10).astype(dtype))
    for part in parts[1:]:
        parts[0].merge(part)
        assert sum(c.held() for c in parts[0]._chunks) <= parts[0]._held <= parts[0]._room()
    assert parts[0].complete


def test_a_callable_may_ask() -> None:
    selection = gs.Selection(nnz=1, method=lambda w, g, s: w * (selection.size + 1))
    selection.update(np.array([1.0, 2.0]))
    assert selection.threshold() == 2.0
    assert selection.mask(np.array([1.0, 2.0]) / 3).to_dense().tolist() == [False, True]


def test_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    w = np.random.default_rng(0).standard_normal((64, 500))
    selection = gs.Selection(sparsity=0.5)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: selection.update(w[i], offset=500 * i), range(64)))
    assert selection.size == w.size
    got = np.stack([selection.mask(w[i], offset=500 * i).to_dense() for i in range(64)])
    np.testing.assert_array_equal(got, gs.prune(w, sparsity=0.5)[1].to_dense())


@pytest.mark.parametrize("method", ["magnitude", "taylor", "wanda", "random"])
@pytest.mark.parametrize("order", ["C", "strided", "transposed"])
def test_long_rows(order: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row may be longer than a block."""
    monkeypatch.setattr(shards, "_BLOCK", 1 << 8)
    r = np.random.default_rng(1)
    whole = {"C": lambda x: x, "strided": lambda x: x[:, ::2], "transposed": lambda x: x.T}[order]
    shape = {"C": (3, 700), "strided": (3, 1400), "transposed": (700, 3)}[order]
    w, g = (whole(r.standard_normal(shape).astype(np.float32)) for _ in range(2))
    stats = gs.Stats("norm")
    stats.update(r.standard_normal((5, 700)).astype(np.float32))
    _, expected = gs.prune(w, g, stats=stats, method=method, seed=3, sparsity=0.6, group="global")
    selection = gs.Selection(sparsity=0.6, method=method, seed=3)
    for again in (False, True, True):
        if again and not selection.complete:
            selection.again()
        if not again or not selection.complete:
            selection.update(w, g, stats=stats)
    assert selection.mask(w, g, stats=stats) == expected


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
