# SPDX-License-Identifier: Apache-2.0
"""`gossamer prune` beside `cp` of the same files.

    python bench/checkpoints.py [--megabytes 1000] [--dtype float32|bfloat16] [--rounds 5] [--folder DIR]

Three shards of random weights are written to a temporary folder, read once, and then copied and pruned in turns, each
into an empty folder. `cp + sync` waits until the copy is on the disk, which pruning always does and cp alone never.
Prints the medians and the throughput as a share of cp's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import gossamer as gs

INDEX = "model.safetensors.index.json"


def make(folder: Path, megabytes: int, dtype: Any) -> Path:
    """Matrices of 4096 columns, the largest of which is a sixth of a shard; -> the index."""
    places = {}
    r = np.random.default_rng(0)
    rows = max(8, megabytes * 1_000_000 // 18 // 4096 // np.dtype(dtype).itemsize // 8 * 8)
    tile = r.standard_normal((rows, 4096), dtype=np.float32)
    for shard in range(3):
        name = f"model-{shard + 1:05}-of-00003.safetensors"
        tensors = {f"layers.{shard}.{i}.weight": (tile * (1 + 0.1 * (shard + i))).astype(dtype) for i in range(6)}
        save_file(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    index = folder / INDEX
    index.write_text(json.dumps({"weight_map": places}))
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where the files go (default: the system's temporary folder)")
    options = parser.parse_args()
    dtype = np.float32 if options.dtype == "float32" else ml_dtypes.bfloat16
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        root = Path(place)
        (root / "in").mkdir()
        index = make(root / "in", options.megabytes, dtype)
        files = sorted((root / "in").iterdir())
        size = sum(path.stat().st_size for path in files)
        out = root / "out"

        def copy() -> None:
            out.mkdir()
            subprocess.run(["cp", *map(str, files), str(out)], check=True)

        def copy_and_sync() -> None:
            copy()
            for path in out.iterdir():
                with path.open("rb") as file:
                    os.fsync(file.fileno())

        def prune(**how: Any) -> Callable[[], None]:
            return lambda: gs.checkpoints.prune(index, out, **how) and None

        jobs: dict[str, Callable[[], None]] = {
            "cp": copy,
            "cp + sync": copy_and_sync,
            "each tensor": prune(sparsity=0.7),
            "each row": prune(sparsity=0.7, group="row"),
            "2:4": prune(pattern="2:4"),
            "global": prune(sparsity=0.7, group="global"),
            "each tensor, bitmask": prune(sparsity=0.7, storage="bitmask"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in jobs}
        for turn in range(options.rounds + 1):
            for name, job in jobs.items():
                shutil.rmtree(out, ignore_errors=True)
                os.sync()  # what others have written is not to be paid for here
                begin = time.perf_counter()
                job()
                if turn:
                    seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{size / 1e6:.0f} MB of {options.dtype} in 3 shards, {gs.get_num_threads()} threads, {gs.info()['isa']}")
    print(f"{'':22}{'seconds':>9}{'MB/s':>8}{'of cp':>8}{'of cp + sync':>14}   range")
    for name, median in medians.items():
        shares = "".join(f"{100 * medians[base] / median:>{w}.0f} %" for base, w in (("cp", 6), ("cp + sync", 12)))
        span = f"{min(seconds[name]):.2f} - {max(seconds[name]):.2f}"
        print(f"{name:22}{median:9.2f}{size / 1e6 / median:8.0f}{shares}   {span}")


if __name__ == "__main__":
    main()
