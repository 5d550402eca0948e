# SPDX-License-Identifier: Apache-2.0
"""``checkpoints.prune(scheduler=)``: a Dask cluster writes the bits of one process, though workers are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, values
from checkpoint_files import everything, write_sharded
from gossamer import cli
from gossamer.checkpoints import selecting

distributed = pytest.importorskip("distributed")
cluster = pytest.importorskip("gossamer.checkpoints.cluster")

SHARDS = 9
OPTIONS: list[dict[str, Any]] = [
    {"sparsity": 0.6, "group": "global"},
    {"sparsity": 0.6, "group": "global", "storage": "bitmask"},
    {"sparsity": 0.0, "group": "global"},
    {"sparsity": 1.0, "group": "global"},
    {"sparsity": 0.7, "group": "global", "min_density": 0.1},
    {"sparsity": 0.5, "group": "global", "pattern": "block:4x2"},
    {"sparsity": 0.5, "group": "global", "method": "lamp", "storage": "bitmask"},
    {"sparsity": 0.4, "group": "global", "method": "random", "seed": 3},
    {"sparsity": 0.4, "method": "random", "seed": 3},
    {"sparsity": 0.5, "group": "row", "exclude": "3.*"},
    {"pattern": "2:4", "storage": "bitmask"},
]


@contextmanager
def started(workers: int, **how: Any) -> Iterator[tuple[Any, Any]]:
    """A cluster on this machine, and its client."""
    free = "127.0.0.1:0"  # any port
    how |= {"host": "127.0.0.1", "protocol": "tcp", "dashboard_address": free, "worker_dashboard_address": free}
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, **how) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield local, client


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Any, Any]]:
    """Two workers, each a process that its nanny starts again when it is killed."""
    with started(2) as both:
        yield both


@pytest.fixture
def client(both: Any) -> Any:
    return both[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Shards with many equal weights of all dtypes, one without anything to prune."""
    kinds = (np.float32, BFLOAT16, np.float16)
    parts = [
        {f"{i}.{j}.weight": values("heavy_ties", (24, 40 + 8 * j), kinds[(i + j) % 3], i) for j in range(i % 3 + 1)}
        | {f"{i}.bias": np.arange(i + 1, dtype=np.float32)}
        for i in range(SHARDS - 1)
    ]
    return write_sharded(tmp_path / "in", [*parts, {"only.bias": np.ones(3, np.float32)}])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arm(task: str, number: int) -> None:
    """On a worker: kills it at the end of its ``number``-th task of that name, before the result is there."""
    left = list(range(number))
    owner, inner = (cluster, "write_shard") if task == "write" else (cluster.Together, "look")
    work = getattr(owner, inner)

    def dying(*arguments: Any) -> Any:
        result = work(*arguments)
        left.pop()
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, inner, dying)


@pytest.mark.parametrize("how", OPTIONS, ids=str)
def test_a_cluster_writes_the_bits_of_one_process(
    client: Any, source: Path, tmp_path: Path, how: dict[str, Any]
) -> None:
    alone = gs.checkpoints.prune(source, tmp_path / "alone", **how)
    seen: list[tuple[str, float | None]] = []
    done = gs.checkpoints.prune(
        source, tmp_path / "out", scheduler=client, progress=lambda phase, share, _: seen.append((phase, share)), **how
    )
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert done.tensors == alone.tensors
    assert (done.untouched, done.bytes_after, done.resumed) == (alone.untouched, alone.bytes_after, 0)
    assert [share for phase, share in seen if phase == "prune"] == [(i + 1) / SHARDS for i in range(SHARDS)]
    assert "count" in {phase for phase, _ in seen} or how.get("group") != "global" or how["sparsity"] == 1
    assert {path.split("/")[0] for path in everything(tmp_path)} == {"in", "out", "alone"}


@pytest.mark.parametrize(("task", "number"), [("look", 1), ("look", 3), ("write", 1), ("write", 3)])
def test_a_worker_that_is_killed_in_the_middle(
    client: Any, source: Path, tmp_path: Path, task: str, number: int
) -> None:
    how: dict[str, Any] = {"sparsity": 0.6, "group": "global", "storage": "bitmask"}
    gs.checkpoints.prune(source, tmp_path / "alone", **how)
    client.wait_for_workers(2, timeout=60)
    before = client.run(os.getpid)
    one = next(iter(before))
    client.run(arm, task, number, workers=[one])
    done = gs.checkpoints.prune(source, tmp_path / "out", scheduler=client, **how)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert done.resumed == 0
    with pytest.raises(ProcessLookupError):
        os.kill(before[one], 0)
    assert {path.split("/")[0] for path in everything(tmp_path)} == {"in", "out", "alone"}


@pytest.mark.parametrize("window", [(0.0, np.inf), (0.0, 1e-30), (0.5, 0.5), None])
def test_samples_that_mislead_and_many_looks(
    client: Any, source: Path, tmp_path: Path, window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gs.checkpoints.prune(source, tmp_path / "alone", sparsity=0.6, group="global")
    monkeypatch.setattr(selecting.Together, "wants_sample", lambda *_: True)
    if window is not None:
        monkeypatch.setattr(cluster, "expected_window", lambda *_: window)
    monkeypatch.setattr(cluster, "_BINS", 5)
    monkeypatch.setattr(cluster, "_SUMMED", 2)
    gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.6, group="global", scheduler=client)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_workers_that_do_not_survive_a_task_and_another_run(both: Any, source: Path, tmp_path: Path) -> None:
    local, client = both
    how: dict[str, Any] = {"sparsity": 0.6, "group": "global"}
    gs.checkpoints.prune(source, tmp_path / "alone", **how)
    gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.5)
    old = contents(tmp_path / "out")
    client.wait_for_workers(2, timeout=60)
    client.run(arm, "write", 3, workers=[next(iter(client.run(os.getpid)))])
    local.scheduler.allowed_failures, before = 0, local.scheduler.allowed_failures
    try:
        with pytest.raises(RuntimeError, match=r"^prune: workers must survive their tasks, got none left by any try"):
            gs.checkpoints.prune(source, tmp_path / "out", scheduler=client, **how)
    finally:
        local.scheduler.allowed_failures = before
    assert contents(tmp_path / "out") == old
    assert (tmp_path / ".out.gossamer").is_dir()
    client.wait_for_workers(2, timeout=60)
    done = gs.checkpoints.prune(source, tmp_path / "out", scheduler=client, **how)
    assert done.resumed >= 2
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert not (tmp_path / ".out.gossamer").exists()


def test_what_is_wrong_with_a_file_is_the_error_of_one_process(client: Any, source: Path, tmp_path: Path) -> None:
    """And so is an option; then nothing is left."""
    bad = {"bad.weight": np.full((4, 8), np.nan, np.float32)}
    index = write_sharded(tmp_path / "nan", [{"w": np.ones((4, 8), np.float32)}, bad])
    for where, how in (
        (index, {"sparsity": 0.5, "group": "global"}),
        (index, {"sparsity": 0.5}),
        (source, {"sparsity": 2}),
    ):
        with pytest.raises(ValueError) as alone:
            gs.checkpoints.prune(where, tmp_path / "out", **how)
        with pytest.raises(ValueError) as there:
            gs.checkpoints.prune(where, tmp_path / "out", scheduler=client, **how)
        assert str(there.value) == str(alone.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(RuntimeError, match=r"^prune: workers must have the client's gossamer 0\.0, got"):
        cluster.Shard("", 0, {}, gs.checkpoints.pruning.Options(0.5), "0.0").header()
    path = next(source.parent.glob("*.safetensors"))
    size = path.stat().st_size
    with pytest.raises(ValueError, match=f"must have the {size + 1} bytes that the client sees, got {size}"):
        cluster.Shard(str(path), size + 1, {}, gs.checkpoints.pruning.Options(0.5), gs.__version__).header()


def test_a_task_of_another_run_that_still_writes_harms_nothing(
    client: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was interrupted, while a worker goes on with a file; then a run with other options."""
    gs.checkpoints.prune(source, tmp_path / "alone", sparsity=0.6, group="global")
    late: list[Any] = []
    asked: list[tuple[Any, ...]] = []
    submit, write = cluster.Cluster.map, cluster.write

    def recorded(self: Any, task: Any, arguments: Any) -> Any:
        asked.extend(arguments if task is write else [])
        return submit(self, task, arguments)

    def stop(phase: str, share: float | None, words: str) -> None:
        if phase == "prune":
            raise KeyboardInterrupt

    def meanwhile(phase: str, share: float | None, words: str) -> None:
        if phase == "prune":
            late.append(write(*stale))

    monkeypatch.setattr(cluster.Cluster, "map", recorded)
    with pytest.raises(KeyboardInterrupt):
        gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.9, scheduler=client, progress=stop)
    stale = asked[0]
    gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.6, group="global", scheduler=client, progress=meanwhile)
    assert len(late) == SHARDS
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    with pytest.raises(FileNotFoundError):  # the job is over
        write(*stale)
    assert {path.split("/")[0] for path in everything(tmp_path)} == {"in", "out", "alone"}


def test_the_command(both: Any, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sparsity", "0.5", "--group", "global", "--json"]
    assert cli.main(["prune", str(source), "-o", str(tmp_path / "alone"), *arguments]) == 0
    alone = json.loads(capsys.readouterr().out)
    address = both[0].scheduler_address
    assert cli.main(["prune", str(source), "-o", str(tmp_path / "out"), "--scheduler", address, *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == alone["tensors"]
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_schedulers_that_are_none_do_not_answer_or_have_no_workers(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_CONNECT", 0.2)
    monkeypatch.setattr(cluster, "_WITHOUT_WORKERS", 1.0)

    def prune(scheduler: Any) -> None:
        gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.5, scheduler=scheduler)

    with pytest.raises(TypeError, match=r"^prune: scheduler must be an address or a Client, got int"):
        prune(8786)
    with pytest.raises(OSError, match=r"^prune: scheduler must answer at 127.0.0.1:1, got"):
        prune("127.0.0.1:1")
    with started(0, processes=False) as (local, client):
        with pytest.raises(RuntimeError, match=r"^prune: scheduler must have workers, got none at"):
            prune(client)
        local.scale(1)
        client.wait_for_workers(1, timeout=60)
        with cluster.connect(client, "prune") as connected:
            local.scale(0)
            while client.scheduler_info()["workers"]:
                time.sleep(0.05)
            with pytest.raises(RuntimeError, match=r"^prune: scheduler must have workers, got none left"):
                list(connected.finished(connected.map(cluster.total, [(np.ones(2),)])))
    assert {path.split("/")[0] for path in everything(tmp_path)} == {"in"}


def test_a_scheduler_that_is_killed_is_an_error(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is kept for another run with a cluster; one without begins from the start."""
    where = tmp_path / "scheduler.json"
    command = [sys.executable, "-W", "ignore", "-m"]
    known = ["--no-dashboard", "--scheduler-file", str(where)]
    programs = (
        ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *known],
        ["distributed.cli.dask_worker", "--nworkers", "1", "--nthreads", "1", "--death-timeout", "60", *known],
    )
    processes = [subprocess.Popen([*command, *program], stderr=subprocess.DEVNULL) for program in programs]

    def kill(phase: str, share: float | None, words: str) -> None:
        if phase == "prune" and processes[0].poll() is None:
            processes[0].kill()
            processes[0].wait()

    try:
        with distributed.Client(scheduler_file=str(where), set_as_default=False, timeout=60) as client:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(RuntimeError, match=r"^prune: scheduler must stay there, got a lost"):
                gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.5, scheduler=client, progress=kill)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert {path.split("/")[0] for path in everything(tmp_path)} == {"in", "scheduler.json", ".out.gossamer"}
    done = gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.5)
    assert done.resumed == 0


def test_without_dask_the_error_says_what_is_missing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ImportError, match=r"^prune: scheduler needs Dask \(pip install dask distributed\)"):
        gs.checkpoints.prune(source, tmp_path / "out", sparsity=0.5, scheduler="127.0.0.1:1")
