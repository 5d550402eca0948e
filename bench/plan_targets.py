# SPDX-License-Identifier: Apache-2.0
"""Is ``format="auto"`` ever slower than the better of dense and CSR? A grid of shapes, densities, dtypes and batches.

    python bench/plan_targets.py [--seconds 0.2] [--shapes 384x384 4096x4096] [--dtypes float32 bfloat16]

Each case times auto, dense and csr of gossamer, and numpy's own product (float32), in turns in one run, with checked
answers, and prints auto's time beside the better of them. Target: at most 1.1 everywhere.
"""

from __future__ import annotations

import argparse
from typing import Any

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

import gossamer as gs
from gossamer.benchmarks.measuring import Contestant, near, take_turns, warnings_of_machine

SPARSITIES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
BATCHES = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 512)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3, "float64": 1e-13}
WORSE = 1.1


def case(shape: tuple[int, int], sparsity: float, n: int, dtype: str, seconds: float) -> dict[str, float]:
    """Median seconds of each contestant."""
    random = np.random.default_rng(0)
    kind = np.dtype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    w = random.standard_normal(shape).astype(kind)
    mask = gs.Mask.from_dense(random.random(shape) >= sparsity)
    kept = gs.apply_mask(w, mask)
    x = random.standard_normal((n, shape[1])).astype(np.float64 if dtype == "float64" else np.float32)
    out = np.zeros((n, shape[0]), x.dtype)
    check = near(x.astype(np.float64) @ kept.astype(np.float64).T, TOLERANCE[dtype])

    def job(format: str) -> Any:
        a = gs.SparseMatrix.from_dense(kept, mask, format=format)
        return lambda: gs.linear(x, a, out=out)

    contestants = [Contestant(format, "gossamer", job(format), check) for format in ("auto", "csr", "dense")]
    if kept.dtype == x.dtype:
        contestants.append(Contestant("numpy", "dense", lambda: np.matmul(x, kept.T, out=out), check))
    take_turns(contestants, seconds, turns=3)
    return {c.name: c.median for c in contestants}


def shape_of(text: str) -> tuple[int, int]:
    rows, cols = text.split("x")
    return int(rows), int(cols)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--shapes", type=shape_of, nargs="+", default=[(384, 384), (1536, 384), (1024, 4096)])
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, default=["float32"])
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    console = Console()
    for text in warnings_of_machine():
        console.print(f"WARNING: {text}")
    cases = [
        (shape, s, n, dtype)
        for dtype in options.dtypes
        for shape in options.shapes
        for s in SPARSITIES
        for n in options.batches
    ]
    table = Table("case", "auto", "csr", "dense", "numpy", "auto / best")
    ratios = []
    for shape, s, n, dtype in track(cases, console=console):
        times = case(shape, s, n, dtype, options.seconds)
        ratio = times["auto"] / min(seconds for name, seconds in times.items() if name != "auto")
        ratios.append(ratio)
        if ratio > WORSE:
            known = (times.get(name) for name in ("auto", "csr", "dense", "numpy"))
            cells = ["" if seconds is None else f"{1e6 * seconds:.1f} us" for seconds in known]
            table.add_row(f"{shape[0]}x{shape[1]} {dtype} {s:.0%} n={n}", *cells, f"{ratio:.2f}")
    console.print(table)
    over = sum(ratio > WORSE for ratio in ratios)
    console.print(
        f"{over} of {len(ratios)} cases above {WORSE}; worst {max(ratios):.2f}, median {np.median(ratios):.2f}, "
        f"best {min(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
