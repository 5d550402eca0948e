# SPDX-License-Identifier: Apache-2.0
"""How much memory one call takes beside its inputs: a process of its own for each, so that nothing is left over.

    python bench/peak_memory.py JOB DISTRIBUTION SPARSITY ROWSxCOLS THREADS

prints the bytes by which the resident set grew at its peak, as JSON. Called by select_targets.py.
"""

from __future__ import annotations

import ctypes
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gossamer as gs
from inputs import ADVERSARIAL, Array, Job, fresh, kept_count, magnitudes, minilm_matrices, normal

# A job gets the weights and how many are kept, and returns the call; what it makes before that is not counted.


def topk_mask(scores: Array, kept: int) -> Job:
    return lambda: gs.topk_mask(scores, nnz=kept)


def prune_magnitude(w: Array, kept: int) -> Job:
    out = fresh(w.shape)
    out.fill(1)  # zeros are not in memory until they are written
    return lambda: gs.prune(w, nnz=kept, out=out)


def prune_taylor(w: Array, kept: int) -> Job:
    out, g = fresh(w.shape), np.ones_like(w)
    out.fill(1)
    return lambda: gs.prune(w, g, method="taylor", nnz=kept, out=out)


def minilm_gossamer_out(w: dict[str, Array], kept: int) -> Job:
    return lambda: gs.prune(w, nnz=kept, group="global", out=w)


def minilm_gossamer(w: dict[str, Array], kept: int) -> Job:
    return lambda: gs.prune(w, nnz=kept, group="global")


def minilm_torch(w: dict[str, Array], kept: int) -> Job:
    from bench_select import torch_global_unstructured

    return torch_global_unstructured(w, kept)[1]


JOBS: dict[str, Callable[[Any, int], Job]] = {
    job.__name__: job
    for job in (topk_mask, prune_magnitude, prune_taylor, minilm_gossamer_out, minilm_gossamer, minilm_torch)
}


def peak_bytes(job: str, distribution: str, sparsity: float, size: tuple[int, int], threads: int) -> int:
    """Runs this file in a fresh process; raises subprocess.CalledProcessError where that fails."""
    command = [sys.executable, __file__, job, distribution, repr(sparsity), "x".join(map(str, size)), str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
    return int(json.loads(done.stdout)["extra_bytes"])


def measure(make: Callable[[Any, int], Job], inputs: Any, small: Any, sparsity: float) -> int:
    """The growth of the resident set at its peak during one call."""
    make(small, kept_count(_count(small), sparsity))()  # code pages, threads, tables
    job = make(inputs, kept_count(_count(inputs), sparsity))
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # free memory that malloc keeps would hide what the call takes
    before = _reset_peak()
    result = job()
    after = _peak()
    del result
    return after - before


def _count(inputs: Any) -> int:
    return sum(w.size for w in inputs.values()) if isinstance(inputs, dict) else int(inputs.size)


def _reset_peak() -> int:
    """Where Linux lets us, the peak starts anew from what is resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    else:
        return _status("VmRSS")
    return _peak()


def _peak() -> int:
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def main() -> int:
    job, distribution, sparsity, size, threads = sys.argv[1:]
    gs.set_num_threads(int(threads))
    inputs: Any
    small: Any
    if job.startswith("minilm"):
        inputs = {name: w.copy() for name, w in minilm_matrices()[0].items()}
        small = {"a": normal((64, 64)).copy(), "b": normal((64, 32)).copy()}
    else:
        rows, cols = map(int, size.split("x"))
        inputs, small = ({"normal": magnitudes} | ADVERSARIAL)[distribution]((rows, cols)), magnitudes((256, 256))
        normal.cache_clear()
    print(json.dumps({"extra_bytes": measure(JOBS[job], inputs, small, float(sparsity))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
