# SPDX-License-Identifier: Apache-2.0
"""What other code in the process does must not make gossamer wrong: flushed denormals, other threads, odd values."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs

FLUSHED = """
import numpy as np, torch, gossamer as gs
if {start_pool}:
    gs.topk_mask(np.random.default_rng(0).random(1 << 20, dtype=np.float32), nnz=5)
assert torch.set_flush_denormal(True)
w = (np.arange(1 << 21, dtype=np.uint32) * 2654435761 % (1 << 23)).astype(np.uint32).view(np.float32)  # all denormal
mask = gs.topk_mask(w, sparsity=0.3)
torch.set_flush_denormal(False)
kept = np.zeros(w.size, bool)
kept[np.lexsort((np.arange(w.size), -w.astype(np.float64)))[: mask.nnz]] = True
assert mask.nnz == w.size - int(w.size * 0.3 + 0.5), mask
assert (mask.to_dense() == kept).all()
torch.set_flush_denormal(True)
assert gs.topk_mask(np.zeros(100, np.float32), threshold=0.0).nnz == 100
"""


@pytest.mark.parametrize("start_pool", [True, False])
@pytest.mark.parametrize("threads", ["1", "2"])
def test_flushed_denormals_change_nothing(start_pool: bool, threads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("GOSSAMER_NUM_THREADS", threads)
    code = FLUSHED.format(start_pool=start_pool)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("group", ["tensor", "row"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_concurrent_writer_gets_a_mask_or_an_error(dtype: Any, group: str) -> None:
    """The GIL is released: another thread may write to the scores. Wrong is then the caller's fault, a crash is not."""
    w = np.random.default_rng(0).standard_normal((1 << 8, 1 << 12)).astype(dtype)
    others = [w.copy(), np.zeros_like(w), np.sort(w), w * dtype(-1e4)]
    stop = threading.Event()

    def write() -> None:
        i = 0
        while not stop.is_set():
            np.copyto(w, others[i % len(others)])
            i += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for share in np.linspace(0.05, 0.95, 40):
            try:
                assert gs.topk_mask(w, sparsity=share, group=group).packed.size == w.size // 8
            except RuntimeError as error:
                assert "must not change during the call" in str(error)  # noqa: PT017
    finally:
        stop.set()
        writer.join()


def test_scalars_keep_their_shape_in_files(tmp_path: Path) -> None:
    gs.save(tmp_path / "s", {"s": np.array(3.0)})
    assert gs.load(tmp_path / "s")["s"].shape == ()
    stats = gs.Stats("grad2")
    stats.update(np.array([1.0, 2.0]))
    stats.save(tmp_path / "stats")
    loaded = gs.Stats.load(tmp_path / "stats")
    loaded.update(np.array([3.0]))
    assert loaded.values == pytest.approx(14 / 3)


def test_long_names_outside_ascii_are_cut_into_messages() -> None:
    for length in range(30, 50):
        with pytest.raises(ValueError, match=r"^topk_mask: scores must not be NaN"):
            gs.topk_mask({"a" * (length % 2) + "é" * length: np.array([np.nan])}, nnz=1)
        with pytest.raises(ValueError, match=r"^topk_mask: pattern"):
            gs.topk_mask(np.ones(3), nnz=1, pattern="a" * (length % 2) + "é" * length)


def test_n_of_m_counts_are_checked_in_every_group() -> None:
    params = {"a": np.arange(8.0).reshape(2, 4), "b": np.arange(4.0).reshape(1, 4)}
    assert gs.topk_mask(params, pattern="2:4", group="global", nnz=6)["a"].nnz == 4
    with pytest.raises(ValueError, match="nnz must be 6"):
        gs.topk_mask(params, pattern="2:4", group="global", nnz=1)
    with pytest.raises(ValueError, match="nnz must be 2"):
        gs.topk_mask(params["a"], pattern="2:4", group="row", nnz=4)


def test_any_number_of_dimensions() -> None:
    w = np.random.default_rng(0).standard_normal((2,) * 12).transpose(*range(11, -1, -1))
    pruned, mask = gs.prune(w, sparsity=0.5)
    assert mask.nnz == w.size // 2
    np.testing.assert_array_equal(pruned, np.where(mask.to_dense(), w, 0))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_error_state_of_the_caller_does_not_stop_a_dense_product(dtype: type) -> None:
    a = gs.SparseMatrix.from_dense(np.array([[1.0, 2.0], [0.0, 3.0]], dtype), format="dense")
    out = np.full(2, 7, dtype)
    with np.errstate(all="raise"):
        gs.matmul(a, np.array([np.inf, -np.inf], dtype), out=out)
    assert np.isnan(out[0])


def test_adjust_refuses_a_rate_that_its_dtype_cannot_hold() -> None:
    w = np.ones(3, np.float32)
    with pytest.raises(ValueError, match="rate"):
        gs.adjust(w, np.zeros(3, np.float32), 1e300)
    with pytest.raises(ValueError, match="rate"):
        gs.adjust(w, np.arange(3, dtype=np.float32), 1 - 1e-12, rule="scale")
    assert gs.adjust(w.astype(np.float64), np.zeros(3), 1e300).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gs.prune(np.ones(3), sparsity=10**400), ValueError, "prune: sparsity"),
        (lambda: gs.Mask(5, np.zeros((1, 1), np.uint8)), TypeError, "Mask: shape"),
        (lambda: gs.save("x", [1]), TypeError, "save: tensors"),
        (lambda: gs.save("x", {"__metadata__": np.ones(3)}), ValueError, "save: names"),
        (lambda: gs.topk_mask(np.broadcast_to(np.float32(1), (1 << 40, 1 << 10)), nnz=1), MemoryError, "topk_mask: "),
        (lambda: gs.prune(np.ma.masked_array([1.0, 2.0], [True, False]), nnz=1), TypeError, "prune: weights"),
    ],
)
def test_odd_values_get_a_message(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()  # type: ignore[operator]
    assert str(caught.value).startswith(message)
