# SPDX-License-Identifier: Apache-2.0
"""`gossamer.distributed` in four processes, and `checkpoints.prune(scheduler=)` with local workers, beside one process.

    python bench/clusters.py [--millions 16] [--megabytes 600] [--rounds 5]

All processes share this machine: the figures say what the exchange costs, and nothing about many machines. Masks and
files are compared with those of one process before anything is timed.
"""

from __future__ import annotations

import argparse
import filecmp
import multiprocessing
import os
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import gossamer as gs
from checkpoints import make

RANKS = 4


def shard(rank: int, millions: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal((millions << 20) // RANKS, dtype=np.float32)


def digest(mask: gs.Mask) -> int:
    return zlib.crc32(mask.packed)


def median(call: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def rank_main(rank: int, store: str, millions: int, rounds: int, kept: Any) -> None:
    import torch.distributed as dist

    import gossamer.distributed as gd

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    gs.set_num_threads(1)
    w = shard(rank, millions)
    kept[rank] = digest(gd.prune(w, sparsity=0.9)[1])
    seconds = median(lambda: gd.prune(w, sparsity=0.9), rounds)
    if rank == 0:
        kept[RANKS] = round(seconds * 1e6)
    dist.barrier()
    os._exit(0)


def in_memory(millions: int, rounds: int) -> None:
    context = multiprocessing.get_context("spawn")
    kept = context.Array("q", RANKS + 1)
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        ranks = [context.Process(target=rank_main, args=(r, store, millions, rounds, kept)) for r in range(RANKS)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
    whole = {str(rank): shard(rank, millions) for rank in range(RANKS)}
    masks = gs.prune(whole, sparsity=0.9, group="global")[1]
    assert all(mask.nnz for mask in masks.values())
    alone = median(lambda: gs.prune(whole, sparsity=0.9, group="global"), rounds)
    same = [digest(mask) for mask in masks.values()] == list(kept)[:RANKS]
    print(f"{millions << 20:,} float32 in one process: {1000 * alone:.0f} ms")
    print(f"in {RANKS} processes: {kept[RANKS] / 1000:.0f} ms, masks {'equal' if same else 'DIFFERENT'}")


def on_disk(megabytes: int, rounds: int) -> None:
    import distributed

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "in").mkdir()
        index = make(root / "in", megabytes, np.float32)
        number = iter(range(1000))

        def prune(scheduler: Any) -> Path:
            out = root / str(next(number))
            gs.checkpoints.prune(index, out, sparsity=0.7, group="global", scheduler=scheduler)
            return out

        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
            distributed.Client(cluster) as client,
        ):
            one, other = prune(None), prune(client)
            names = [path.name for path in index.parent.iterdir()]
            same = not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])
            print(
                f"{megabytes} MB in three files, globally, in one process: {median(lambda: prune(None), rounds):.2f} s"
            )
            print(
                f"by 2 workers: {median(lambda: prune(client), rounds):.2f} s, files {'equal' if same else 'DIFFERENT'}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=16)
    parser.add_argument("--megabytes", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    in_memory(options.millions, options.rounds)
    on_disk(options.megabytes, options.rounds)


if __name__ == "__main__":
    main()
