# SPDX-License-Identifier: Apache-2.0
"""Small calls, 200,000 of them and with ``GOSSAMER_TEST_LARGE=1`` 10 million, leave nothing behind in a process."""

import gc
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs

LARGE = os.environ.get("GOSSAMER_TEST_LARGE") == "1"
CALLS = 10_000_000 if LARGE else 200_000
WARM_UP = 50_000  # calls after which caches, pools and arenas have their size
STATUS = Path("/proc/self/status")


def _resident() -> int:
    """Bytes of this process that are in memory."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def _refused(call: Callable[[], Any]) -> Callable[[], None]:
    def attempt() -> None:
        try:
            call()
        except (TypeError, ValueError):
            return
        raise AssertionError("no error")

    return attempt


def _torch_calls(w: np.ndarray) -> dict[str, Callable[[], Any]]:
    import torch

    import gossamer.torch as gt

    dense = torch.nn.Linear(w.shape[1], w.shape[0])
    with torch.no_grad():
        dense.weight.copy_(torch.from_numpy(w))
    layer, x = gt.SparseLinear.from_dense(dense, format="panel"), torch.ones(2, w.shape[1])

    def train() -> None:
        layer(x).sum().backward()
        layer.zero_grad()

    def infer() -> None:
        with torch.no_grad():
            layer(x)

    weight = dense.weight.detach()
    return {"torch train": train, "torch infer": infer, "torch prune": lambda: gs.prune(weight, sparsity=0.5)}


def _calls() -> tuple[dict[str, Callable[[], Any]], list[Any]]:
    """Calls by name, and what they are given, whose references are counted."""
    r = np.random.default_rng(0)
    w, g = r.standard_normal((12, 16)).astype(np.float32), r.standard_normal((12, 16)).astype(np.float32)
    x, y, out = r.standard_normal((3, 16)).astype(np.float32), np.ones((12, 3), np.float32), np.empty_like(w)
    w, mask = gs.prune(w, sparsity=0.5)
    matrices = {name: gs.SparseMatrix.from_dense(w, mask, format=name) for name in ("csr", "panel", "bitmask", "dense")}
    layer, stats, bias = gs.SparseLinear(matrices["csr"]), gs.Stats("norm", decay=0.5), np.ones(12, np.float32)
    stats.update(x)
    calls: dict[str, Callable[[], Any]] = {
        "score": lambda: gs.score(w, g, method="taylor"),
        "prune": lambda: gs.prune(w, sparsity=0.5, out=out),
        "prune mapping": lambda: gs.prune({"a": w, "b": g}, sparsity=0.5, group="global"),
        "prune wanda": lambda: gs.prune(w, method="wanda", stats=stats, sparsity=0.5),
        "topk_mask": lambda: gs.topk_mask(g, pattern="2:4"),
        "apply_mask": lambda: gs.apply_mask(w, mask),
        "adjust": lambda: gs.adjust(w, g, 0.1, rule="scale"),
        "stats": lambda: stats.update(x),
        "mask": lambda: (~gs.Mask(mask.shape, mask.packed) & mask).indices(),
        "from_dense": lambda: gs.SparseMatrix.from_dense(w, mask, format="csr"),
        "from_dense panel": lambda: gs.SparseMatrix.from_dense(w, mask, format="panel"),
        "from_dense int8": lambda: gs.SparseMatrix.from_dense(w, dtype="int8", format="bitmask"),
        "transpose": lambda: gs.SparseMatrix.from_dense(w, format="csr").T,
        "sddmm": lambda: gs.sddmm(y, x.T, matrices["csr"]),
        "backward": lambda: layer.backward(y.T, x),
        "bad dtype": _refused(lambda: gs.score(x.astype(np.int32))),
        "bad sparsity": _refused(lambda: gs.prune(w, sparsity=1.3)),
        "bad shape": _refused(lambda: gs.linear(w.T, matrices["csr"])),
        "bad out": _refused(lambda: gs.matmul(matrices["panel"], x.T, out=out)),
        "bad csr": _refused(lambda: gs.SparseMatrix.from_csr(np.array([0, 2]), np.array([1, 1]), x[0, :2], (1, 2))),
    }
    for name, a in matrices.items():
        calls[f"linear {name}"] = lambda a=a: gs.linear(x, a, bias=bias, activation="gelu")
        calls[f"matmul {name}"] = lambda a=a: a @ x[0]
    if importlib.util.find_spec("torch"):
        calls |= _torch_calls(w)
    return calls, [w, g, x, y, out, bias, mask, stats, None, np.dtype(np.float32), *matrices.values()]


def _grown(total: int) -> dict[str, Any]:
    """What ``total`` calls add to a process that has made some before."""
    calls, given = _calls()
    functions = list(calls.values())

    def turns(count: int) -> None:
        for _ in range(count // len(functions)):
            for function in functions:
                function()

    def state() -> tuple[int, int, list[int]]:
        gc.collect()
        return _resident(), sys.getallocatedblocks(), [sys.getrefcount(argument) for argument in given]

    turns(WARM_UP)
    before = state()
    turns(total)
    after = state()
    references = [b - a for a, b in zip(before[2], after[2], strict=True)]
    return {"calls": total, "bytes": after[0] - before[0], "blocks": after[1] - before[1], "references": references}


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not say what is in memory")
def test_small_calls_leave_nothing_behind() -> None:
    """In a process of its own, in which nothing else comes and goes."""
    environment = {**os.environ, "GOSSAMER_NUM_THREADS": "2", "GOSSAMER_CALIBRATE": "0"}
    command = [sys.executable, "-W", "error", __file__, str(CALLS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = json.loads(done.stdout)
    print(grown)
    assert grown["bytes"] < 4 << 20  # what the calls could leak in all: 20 bytes each of them, 0.4 of the 10 million
    assert grown["blocks"] < 1000
    assert max(map(abs, grown["references"])) < 100


def test_a_leak_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurement, of calls of which one keeps 100 bytes."""
    kept: list[bytes] = []
    argument = object()
    leaking = {"leak": lambda: kept.append(b"%100d" % len(kept))}
    monkeypatch.setattr(sys.modules[__name__], "_calls", lambda: (leaking, [argument]))
    assert _grown(50_000)["bytes"] > 4 << 20
    assert _grown(50_000)["blocks"] > 1000


if __name__ == "__main__":
    json.dump(_grown(int(sys.argv[1])), sys.stdout)
