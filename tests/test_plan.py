# SPDX-License-Identifier: Apache-2.0
"""Which kernel multiplies: the model, its measurement and its cache."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import assert_close, generator
from gossamer import plan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and measuring allowed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GOSSAMER_CALIBRATE", raising=False)
    monkeypatch.setattr(plan, "_known", {})
    monkeypatch.setattr(plan, "_MEASURE", 0)
    monkeypatch.setattr(plan, "measure", lambda measure=plan.measure: measure(128))
    return tmp_path / "gossamer"


def costs(**kernels: float) -> plan.Costs:
    """Made-up ones: so many nanoseconds an element, whatever is kept."""
    return {k: [(kernels.get(k, 9.0), 0.0)] * len(plan.BUILT_IN[k]) for k in plan.KERNELS}


def test_the_cheapest_kernel_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    for kernel in plan.KERNELS:
        monkeypatch.setattr(plan, "BUILT_IN", costs(**{"panel": 2.0, kernel: 1.0}))
        chosen = plan.choose((200, 300), 30_000, np.float32)
        assert chosen.kernel(1) == kernel
        assert chosen.kernel(10_000) == ("panel" if kernel == "bitmask" else kernel)  # bitmasks are for few columns


def test_kernels_change_with_the_number_of_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = costs(panel=2.0, bitmask=1.0)
    made_up["dense"][-1] = (0.5, 0.0)
    monkeypatch.setattr(plan, "BUILT_IN", made_up)
    chosen = plan.choose((200, 300), 30_000, np.float32)
    assert [kernel for _, kernel in chosen.steps] == ["bitmask", "panel", "dense"]
    assert chosen.kernel(8) == "bitmask"
    assert chosen.kernel(32) == chosen.kernel(128) == "panel"
    assert chosen.kernel(512) == chosen.kernel(1 << 40) == "dense"
    for what in ("bitmask", "panel from", "dense from", "density 0.5000 of 200 x 300", "built-in"):
        assert what in chosen.text
    a = gs.SparseMatrix.from_dense(generator("plan").standard_normal((200, 300)), format="auto")
    for n in (1, 40, 600):
        x = generator("plan x", n).standard_normal((300, n))
        assert_close(gs.matmul(a, x), a.to_dense() @ x, abs(a.to_dense()) @ abs(x), np.float64)
    assert pickle.loads(pickle.dumps(a)).plan == a.plan


def test_16_bit_values_make_dense_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "BUILT_IN", costs(dense=1.0, panel=1.3))
    assert plan.choose((200, 300), 30_000, np.float32).kernel(128) == "dense"
    assert plan.choose((200, 300), 30_000, np.float16).kernel(128) == "panel"


def test_costs_are_measured_once_and_cached(cache: Path) -> None:
    first = plan.machine_costs()
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["panel"] == [list(pair) for pair in first["panel"]]
    plan._known.clear()
    file.write_text(json.dumps(costs(csr=1.0)))
    assert plan.machine_costs() == costs(csr=1.0)
    large = gs.SparseMatrix.from_dense(np.ones((300, 300), np.float32))
    assert large.format == "csr"
    assert "measured on this machine" in large.plan
    gs.set_num_threads(gs.get_num_threads() + 1)
    try:
        plan.machine_costs()
        assert len(list(cache.iterdir())) == 2
    finally:
        gs.set_num_threads(gs.get_num_threads() - 1)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"csr": 1}', json.dumps({k: [[0, float("nan")]] for k in plan.KERNELS}), "null"]
)
def test_a_damaged_cache_is_measured_anew(cache: Path, content: str) -> None:
    plan.machine_costs()
    (file,) = cache.iterdir()
    file.write_text(content)
    plan._known.clear()
    found: Any = plan.machine_costs()
    assert {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in plan.BUILT_IN.items()}
    assert json.loads(file.read_text())["csr"]


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert plan.machine_costs()


def test_nothing_kept_needs_no_costs(cache: Path) -> None:
    assert gs.SparseMatrix.from_dense(np.zeros((400, 400))).format == "csr"
    assert not cache.exists()
