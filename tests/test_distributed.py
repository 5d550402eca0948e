# SPDX-License-Identifier: Apache-2.0
"""gossamer.distributed: four gloo processes keep what one process would, fail together, and never hang."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distributed_ranks as ranks
import gossamer as gs
from cases import values

torch = pytest.importorskip("torch")
competing = pytest.importorskip("gossamer.distributed.competing")
pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="needs gloo"
)


def run(mode: str, store: Path, seconds: float = 60) -> list[tuple[int, list[str], str]]:
    """Exit status, lines and errors of every rank."""
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "GOSSAMER_NUM_THREADS": "1"}
    program = Path(__file__).with_name("distributed_ranks.py")
    command = [sys.executable, "-W", "error::RuntimeWarning", str(program), mode]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(store / mode), str(seconds)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(ranks.RANKS)
    ]
    try:
        results = []
        for process in processes:
            out, err = process.communicate(timeout=120)
            results.append((process.returncode, out.splitlines(), err))
        return results
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_four_ranks_keep_what_one_process_keeps(tmp_path: Path) -> None:
    expected = ranks.in_one_process()
    assert len(expected[0]) > 150
    for rank, (status, lines, err) in enumerate(run("equal", tmp_path)):
        assert status == 0, err
        assert lines == expected[rank]


def test_a_tensor_cut_by_rows_counts_as_whole() -> None:
    """The expected masks of the cut tensors are those of the whole ones."""
    for name, scores, how in ranks.mask_cases():
        if name.endswith("cut"):
            pieces = gs.topk_mask(ranks.merged(scores), group="global", **how)
            whole = gs.topk_mask(np.concatenate(list(ranks.merged(scores).values())), **how)
            assert np.array_equal(np.concatenate([mask.to_dense() for mask in pieces.values()]), whole.to_dense())


def test_what_is_wrong_on_one_rank_is_the_same_error_on_all(tmp_path: Path) -> None:
    for status, lines, err in run("errors", tmp_path):
        assert status == 0, err
        assert len(lines) == 33
        assert set(lines) == {"as expected"}  # and the group is still of use


def test_a_rank_that_is_killed_ends_the_others_with_an_error(tmp_path: Path) -> None:
    results = run("lost", tmp_path)
    assert results[2][:2] == (-signal.SIGKILL, ["as expected"])
    for rank in (0, 1, 3):
        status, lines, err = results[rank]
        assert status == 0, err
        assert lines[:2] == ["as expected"] * 2
        assert float(lines[2]) < 50  # by the closed connections, and not by the group's timeout


def test_a_rank_that_does_not_come_ends_the_others_after_the_timeout(tmp_path: Path) -> None:
    results = run("absent", tmp_path, seconds=2)
    for status, lines, err in results[:3]:
        assert status == 0, err
        assert lines[0] == "as expected"
        assert float(lines[1]) < 40


def test_no_group_is_an_error() -> None:
    import gossamer.distributed as gd

    for call in (gd.topk_mask, gd.prune):
        with pytest.raises(RuntimeError, match=f"^{call.__name__}: torch.distributed must be initialised"):
            call(np.ones(4), sparsity=0.5)


def test_what_travels_is_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gossamer.distributed as gd

    dist, sent = torch.distributed, {"all_reduce": [], "all_gather": []}

    def watched(name: str) -> Any:
        real = getattr(dist, name)

        def call(*arguments: Any, **how: Any) -> Any:
            sent[name].append(arguments[-1].nbytes)
            return real(*arguments, **how)

        return call

    for name in sent:
        monkeypatch.setattr(dist, name, watched(name))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        r = np.random.default_rng(0)
        for size, dtype, looks in ((1000, np.float32, 2), (1000, np.float64, 4), (1 << 20, np.float32, 3)):
            sent["all_reduce"].clear()
            sent["all_gather"].clear()
            gd.topk_mask(r.standard_normal(size).astype(dtype), sparsity=0.9)
            assert len(sent["all_reduce"]) <= looks
            assert 400_000 < max(sent["all_reduce"]) <= 8 * (2**16 + 2)
            assert sum(sent["all_gather"]) == 104
    finally:
        dist.destroy_process_group()


def test_a_group_of_one_with_small_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a group of one is what the core gives; tiny tiles and torch's tensors, too."""
    import gossamer.distributed as gd

    dist = torch.distributed
    monkeypatch.setattr(competing, "_BLOCK", 64)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        w = torch.randn(24, 80, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        mask = gs.Mask.from_dense(torch.arange(w.numel()).reshape(w.shape) % 5 > 0)
        for how in ({"sparsity": 0.5}, {"nnz": 99, "prior": mask}, {"sparsity": 0.7, "nan": "keep"}):
            for method in ("magnitude", "random"):
                pruned, kept = gd.prune(w, method=method, seed=1, **how)
                expected, same = gs.prune(w, method=method, seed=1, group="global", **how)
                assert isinstance(pruned, torch.Tensor)
                assert kept == same
                assert torch.equal(pruned, expected)
        dense = values("normal", (24, 80, 6), np.float32)
        for odd in (dense[::2, ::3, 1::2], dense.T, dense[:, 3, 5], np.array(2.0), np.empty((0, 5)), np.empty((5, 0))):
            for how in ({}, {"prior": gs.Mask.from_dense(np.ones(odd.shape, bool))}, {"min_density": 0.1}):
                assert gd.topk_mask(odd, sparsity=0.3, **how) == gs.topk_mask(odd, sparsity=0.3, group="global", **how)
        before = w.clone()
        gd.prune(w, sparsity=0.5, out=w)
        assert torch.equal(w, gs.prune(before, sparsity=0.5)[0])
        monkeypatch.setattr(dist, "get_backend_config", lambda group: "cuda:nccl")
        with pytest.raises(ValueError, match=r"^prune: process_group must have a backend for CPU tensors .*cuda:nccl"):
            gd.prune(w, sparsity=0.5)
    finally:
        dist.destroy_process_group()


def test_the_example() -> None:
    """Equal hashes: four ranks, and one process."""
    example = Path(__file__).parent.parent / "examples" / "distributed_pruning.py"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^rank \d keeps +(.*), one process +(.*)$", done.stdout, re.MULTILINE)
    assert len(set(found)) == ranks.RANKS
    assert all(there == alone for there, alone in found)
