# SPDX-License-Identifier: Apache-2.0
"""Four processes prune one network of which each holds a quarter; the masks are those of one process. Run it:

    python examples/distributed_pruning.py

In a job of your own a launcher starts the processes (`torchrun`, Slurm), and `init_process_group("gloo")` is enough.
"""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

import gossamer as gs

RANKS = 4


def layers(rank: int) -> dict[str, np.ndarray]:
    """What one rank holds: layers of other sizes, scales and dtypes than the others', with many equal weights."""
    r = np.random.default_rng(rank)
    kinds = (np.float32, np.float64, np.float16, np.float32)
    return {
        f"{rank}.{i}.weight": np.round(r.standard_normal((256 + 64 * rank, 512)) * 2.0 ** (i - rank / 2), 2).astype(
            kinds[rank]
        )
        for i in range(2)
    }


def digest(masks: Mapping[str, gs.Mask]) -> str:
    return hashlib.sha256(b"".join(mask.packed.tobytes() for mask in masks.values())).hexdigest()[:16]


def line(masks: Mapping[str, gs.Mask]) -> str:
    return f"{sum(mask.nnz for mask in masks.values()):7,} {digest(masks)}"


def work(rank: int, store: str, found: Any) -> None:
    """One rank: prunes its quarter of the whole, and tells what it keeps."""
    import torch.distributed as dist

    import gossamer.distributed as gd

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    _, masks = gd.prune(layers(rank), sparsity=0.9)
    found.put((rank, line(masks)))
    dist.barrier()
    os._exit(0)  # gloo's threads abort an ordinary exit now and then


def main() -> None:
    """Prune in four processes, then all of it in this one."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        found = context.SimpleQueue()
        ranks = [context.Process(target=work, args=(r, os.path.join(folder, "store"), found)) for r in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(120)
        if any(rank.exitcode != 0 for rank in ranks):
            raise SystemExit("a rank failed")
        there = dict(found.get() for _ in ranks)
    _, masks = gs.prune({n: w for rank in range(RANKS) for n, w in layers(rank).items()}, sparsity=0.9, group="global")
    for rank in range(RANKS):
        own = {name: mask for name, mask in masks.items() if name.startswith(f"{rank}.")}
        print(f"rank {rank} keeps {there[rank]}, one process {line(own)}")


if __name__ == "__main__":
    main()
