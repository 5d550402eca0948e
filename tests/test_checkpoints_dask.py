# SPDX-License-Identifier: Apache-2.0
"""``checkpoints.prune(scheduler=)``: a Dask cluster writes the bits of one process, though workers are killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, values
from checkpoint_files import everything, write_sharded

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


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two workers, each a process that its nanny starts again when it is killed."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, worker_dashboard_address=None, host="127.0.0.1"
        ) as local,
        distributed.Client(local, set_as_default=False) as client,
    ):
        yield client


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
    """On a worker: kills it within its next ``number``-th task of that name, in the middle of the work."""
    counted = iter(range(1, number))
    inner = "write_shard" if task == "write" else "tensors_of"
    before = getattr(cluster, inner)

    def dying(*arguments: Any) -> Any:
        result = before(*arguments)
        if sys._getframe(1).f_code.co_name == task and next(counted, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(cluster, inner, dying)


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
