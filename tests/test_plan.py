# SPDX-License-Identifier: Apache-2.0
"""Which kernel multiplies: the model, its measurement and its cache."""

import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gossamer as gs
from cases import assert_close, generator
from gossamer import cli, plan


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and measuring allowed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GOSSAMER_CALIBRATE", raising=False)
    monkeypatch.setattr(plan, "_known", {})
    monkeypatch.setattr(plan, "_MEASURE", 0)
    monkeypatch.setattr(plan, "_waited", set())
    monkeypatch.setattr(plan, "measure", lambda dtype, measure=plan.measure: measure(dtype, 128))
    return tmp_path / "gossamer"


def written(cache: Path) -> Path:
    """The only file of costs there."""
    (file,) = cache.glob("costs-*")
    return file


def content(of: plan.Costs, model: Any = plan._MODEL) -> str:
    return json.dumps({"model": model, "costs": of})


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
    assert plan.choose((200, 300), 30_000, np.int8).kernel(128) == "panel"


def test_costs_are_measured_once_and_cached(cache: Path) -> None:
    first: Any = plan.machine_costs()
    file = written(cache)
    assert json.loads(file.read_text())["costs"]["panel"] == [list(pair) for pair in first["panel"]]
    plan._known.clear()
    file.write_text(content(costs(csr=1.0)))
    assert plan.machine_costs() == costs(csr=1.0)
    large = gs.SparseMatrix.from_dense(np.ones((300, 300), np.float32))
    assert large.format == "csr"
    assert "measured on this machine" in large.plan


def test_each_dtype_has_costs_of_its_own(cache: Path) -> None:
    for dtype in plan.DTYPES:
        plan.machine_costs(dtype)
    assert {file.stem.rpartition("-")[2] for file in cache.glob("costs-*")} == {d.name for d in plan.DTYPES}
    for file in cache.glob("costs-*"):
        file.write_text(content(costs(csr=1.0) if "int8" in file.name else costs(panel=1.0)))
    plan._known.clear()
    w = np.ones((300, 300), np.float32)
    assert gs.SparseMatrix.from_dense(w, dtype="int8").format == "csr"
    assert gs.SparseMatrix.from_dense(w).format == "panel"
    assert gs.SparseMatrix.from_dense(w, dtype="int8").T.format == "panel"  # which is float32


def test_files_of_other_threads_and_models_are_others(cache: Path, threads: None) -> None:
    gs.set_num_threads(1)
    plan.machine_costs()
    gs.set_num_threads(2)
    plan.machine_costs()
    assert len(list(cache.glob("costs-*"))) == 2
    if not threadpoolctl.ThreadpoolController().select(user_api="blas").info():
        pytest.skip("threadpoolctl does not know this BLAS")
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        one = plan._machine()
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        assert plan._machine() != one


def test_a_new_model_of_costs_has_files_of_its_own(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.machine_costs()
    before = written(cache)
    monkeypatch.setattr(plan, "_MODEL", plan._MODEL + 1)
    plan.machine_costs()
    assert before in cache.glob("costs-*")
    assert len(list(cache.glob("costs-*"))) == 2


def with_one(number: float) -> str:
    made_up = costs()
    made_up["panel"][3] = (1.0, number)
    return content(made_up)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        "{}",
        "null",
        '{"csr": 1}',
        json.dumps({"model": plan._MODEL, "costs": []}),
        content(costs(), plan._MODEL + 1),
        content(costs(), None),
        json.dumps(costs()),
        content({kernel: [(1.0, 1.0)] for kernel in plan.KERNELS}),
        content(costs(csr=0.0, panel=0.0, bitmask=0.0, dense=0.0)),
        content(costs(dense=0.0)),
        with_one(-1.0),
        with_one(float("nan")),
        with_one(float("inf")),
        with_one(1e300),
    ],
)
def test_a_damaged_cache_is_measured_anew(cache: Path, damaged: str) -> None:
    plan.machine_costs()
    file = written(cache)
    file.write_text(damaged)
    plan._known.clear()
    found: Any = plan.machine_costs()
    assert {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in plan.BUILT_IN.items()}
    assert json.loads(file.read_text())["costs"]["csr"] == [list(pair) for pair in found["csr"]]


def test_a_relative_cache_folder_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "cache", "./cache", "../cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert plan._cache() == tmp_path / ".cache" / "gossamer"
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert plan._cache() == Path("/somewhere/gossamer")


MEASURING = """
import fcntl, sys, time
with open(sys.argv[1] + "/lock", "w") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 2:
        open(sys.argv[2], "w").write(sys.argv[3])
"""


@contextmanager
def another_process_measures(cache: Path, *then: str) -> Iterator[Callable[[], None]]:
    """Gives what ends the other's measurement."""
    cache.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(
        [sys.executable, "-c", MEASURING, str(cache), *then], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process.stdin.close


def test_what_another_process_measures_is_waited_for_and_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_WAIT", 300.0)  # until a process counts as hung
    monkeypatch.setattr(plan, "measure", None)
    path = plan._path(np.dtype(np.float32))
    with another_process_measures(cache, str(path), content(costs(csr=1.0))) as end:
        threading.Timer(0.2, end).start()
        assert plan.machine_costs() == costs(csr=1.0)


def test_a_process_that_measures_too_long_is_not_waited_for(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_WAIT", 0.1)
    w = np.ones((300, 300), np.float32)
    with another_process_measures(cache):
        assert plan.machine_costs() is None
        monkeypatch.setattr(plan, "_WAIT", 1e9)  # not a second time
        assert "built-in costs" in gs.SparseMatrix.from_dense(w).plan
        assert not list(cache.glob("costs-*"))
        monkeypatch.setattr(plan, "_WAIT", 0.0)
        with pytest.raises(RuntimeError, match=r"^calibrate: no other process must be measuring"):
            plan.calibrate()
    assert "measured on this machine" in gs.SparseMatrix.from_dense(w).plan
    assert written(cache)


def test_calibrate_measures_all_dtypes_anew(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.machine_costs()
    file = written(cache)
    file.write_text(content(costs(csr=1.0)))
    found = plan.calibrate()
    assert list(found) == [d.name for d in plan.DTYPES]
    assert len(list(cache.glob("costs-*"))) == len(plan.DTYPES)
    assert json.loads(file.read_text())["costs"]["csr"] == [list(pair) for pair in found["float32"]["csr"]]
    assert plan.machine_costs() == found["float32"]
    file.unlink()
    assert cli.main(["info", "--calibrate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["costs measured"] == {"dtypes": list(found), "folder": str(cache)}
    assert file.exists()
    assert cli.main(["info", "--calibrate"]) == 0
    assert "bfloat16" in capsys.readouterr().out


def test_calibrate_says_where_it_cannot_write(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert cli.main(["info", "--calibrate"]) == 1
    assert capsys.readouterr().err.startswith(f"gossamer info: {cache}: ")


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_transpose_has_a_plan_of_its_own(dtype: str) -> None:
    a = gs.SparseMatrix.from_dense(generator("plan T").standard_normal((200, 300)), dtype=dtype)
    assert "of 200 x 300" in a.plan
    assert "of 300 x 200" in a.T.plan
    assert a.T.plan == a.with_values(a.values).T.plan
    assert "of 200 x 300" in a.T.T.plan
    csr = gs.SparseMatrix.from_dense(a.to_dense(), format="csr")
    assert csr.T.plan == csr.plan


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the folder should be")
    assert plan.machine_costs()


def test_nothing_kept_needs_no_costs(cache: Path) -> None:
    assert gs.SparseMatrix.from_dense(np.zeros((400, 400))).format == "csr"
    assert not cache.exists()
