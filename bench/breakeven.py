# SPDX-License-Identifier: Apache-2.0
"""Where gossamer's CSR product meets numpy's dense one (OpenBLAS): the density below which sparse is faster.

    python bench/breakeven.py [--large] [--threads N] [--out DIR]

Times ``gs.linear`` and ``gs.matmul`` on CSR against ``numpy.matmul`` over density x batch x shape, both with the same
number of threads, in turns, so that a disturbance meets both. Prints a table of the speed-up and the break-even density
of every case, and the recommended threshold: the density at which the geometric mean of all cases' speed-ups is 1. No
other single threshold loses less over all cases (at the best one, what a step up wins here it loses there).
Writes ``breakeven.json``, ``breakeven.svg`` and ``breakeven.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

import gossamer as gs
from inputs import fresh, normal
from measuring import describe_run

SHAPES = [(300, 784), (100, 300), (1024, 1024)]
LARGE_SHAPES = [*SHAPES, (4096, 4096)]
BATCHES = [1, 8, 32, 128, 512]
DENSITIES = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
OPERATIONS = ("linear", "matmul")
SLOWER = 0.4  # a case ends where CSR has become this slow: further on it only gets worse

Job = Callable[[], Any]


@dataclass
class Case:
    """One line of the table: an operation on a shape with n columns or rows of activations."""

    operation: str
    rows: int
    cols: int
    n: int
    densities: list[float]
    dense_seconds: list[float]
    csr_seconds: list[float]

    @property
    def speedups(self) -> list[float]:
        return [dense / csr for dense, csr in zip(self.dense_seconds, self.csr_seconds, strict=True)]

    def log_speedup(self, density: float) -> float:
        """Between the measured points in logarithms; beyond the last one CSR's time grows with the density."""
        x, y = np.log(self.densities), np.log(self.speedups)
        at = math.log(density)
        return float(np.interp(at, x, y)) - max(0.0, at - float(x[-1]))

    @property
    def breakeven(self) -> float:
        return density_of_one(self.log_speedup)


def density_of_one(log_speedup: Callable[[float], float]) -> float:
    """The lowest density at which a speed-up falls to 1; 0 where it never is above, 1 where it stays there."""
    grid = np.geomspace(0.005, 1, 1000)
    below = [density for density in grid if log_speedup(float(density)) < 0]
    if not below:
        return 1.0
    return 0.0 if below[0] == grid[0] else float(below[0])


def recommend(cases: list[Case]) -> float:
    """Rounded down to a whole hundredth."""
    density = density_of_one(lambda d: statistics.fmean(case.log_speedup(d) for case in cases))
    return math.floor(100 * density) / 100


# ---------------------------------------------------------------------------------------------------------- measuring


def measure(operation: str, shape: tuple[int, int], n: int, seconds: float) -> Case:
    case = Case(operation, *shape, n, [], [], [])
    weights = normal(shape)
    for density in DENSITIES:
        mask = gs.topk_mask(np.abs(weights), sparsity=1 - density)
        w = gs.apply_mask(weights, mask)
        dense, csr = jobs(operation, w, gs.SparseMatrix.from_dense(w, mask, format="csr"), n)
        scale = float(np.linalg.norm(np.abs(w))) * math.sqrt(shape[1] * n)
        np.testing.assert_allclose(csr(), dense(), rtol=0, atol=1e-6 * scale)
        dense_seconds, csr_seconds = best_in_turns(dense, csr, seconds)
        case.densities.append(mask.density)
        case.dense_seconds.append(dense_seconds)
        case.csr_seconds.append(csr_seconds)
        if len(case.densities) > 2 and max(case.speedups[-2:]) < SLOWER:
            break
    return case


def jobs(operation: str, w: Any, a: gs.SparseMatrix, n: int) -> tuple[Job, Job]:
    rows, cols = a.shape
    if operation == "linear":
        x, dense_out, csr_out = normal((n, cols), 1), fresh((n, rows)), fresh((n, rows))
        return lambda: np.matmul(x, w.T, out=dense_out), lambda: gs.linear(x, a, out=csr_out)
    x, dense_out, csr_out = normal((cols, n), 1), fresh((rows, n)), fresh((rows, n))
    return lambda: np.matmul(w, x, out=dense_out), lambda: gs.matmul(a, x, out=csr_out)


def best_in_turns(first: Job, second: Job, seconds: float) -> tuple[float, float]:
    """Seconds a call. A turn is an untimed call and then as many as 200 microseconds have room for.

    The best turn counts and not the median: on a disturbed machine a product of OpenBLAS that waits for a thread
    without a processor takes a hundred times as long, and the ratio would say nothing.
    """
    calls = [max(1, math.ceil(200e-6 / min(timed(job, 1) for _ in range(3)))) for job in (first, second)]
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while len(times[0]) < 7 or time.perf_counter() - began < seconds:
        for job, count, own in zip((first, second), calls, times, strict=True):
            job()
            own.append(timed(job, count))
    return min(times[0]), min(times[1])


def timed(job: Job, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        job()
    return (time.perf_counter() - start) / calls


# ------------------------------------------------------------------------------------------------------------- results


def print_table(cases: list[Case], threshold: float) -> None:
    head = "".join(f"{density:>7}" for density in DENSITIES)
    print(f"\nspeed-up of CSR over dense by density\n{'':28}{head}   break-even")
    for case in cases:
        name = f"{case.operation:6} {case.rows}x{case.cols} N={case.n}"
        values = "".join(f"{value:7.2f}" for value in case.speedups)
        print(f"{name:28}{values}{'      -' * (len(DENSITIES) - len(case.speedups))}   {case.breakeven:9.3f}")
    lows = sorted(case.breakeven for case in cases)
    print(f"\nbreak-even: {lows[0]:.3f} to {lows[-1]:.3f}, median {statistics.median(lows):.3f}")
    for operation in OPERATIONS:
        own = [case for case in cases if case.operation == operation]
        print(f"threshold for {operation} alone: {recommend(own):.2f}")
    print(f"recommended density threshold: {threshold:.2f}")


def draw(cases: list[Case], threshold: float, caption: str, folder: Path) -> None:
    """One panel a shape, one line a batch; the two operations side by side as solid and dashed lines."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    shapes = list(dict.fromkeys((case.rows, case.cols) for case in cases))
    style = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "gossamer",
    }
    colours = dict(zip(BATCHES, ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00"), strict=True))
    markers = dict(zip(BATCHES, "osD^v", strict=True))
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.1 * len(shapes), 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(shapes), sharey=True, squeeze=False)[0]
        for panel, shape in zip(panels, shapes, strict=True):
            panel.axhline(1, color="#1F2933", linewidth=1)
            panel.axvline(threshold, color="#5F6B76", linewidth=1.4, linestyle=(0, (1, 2)))
            for case in cases:
                if (case.rows, case.cols) == shape:
                    panel.plot(
                        case.densities,
                        case.speedups,
                        color=colours[case.n],
                        marker=markers[case.n],
                        markersize=4.5,
                        linestyle="-" if case.operation == "linear" else "--",
                        label=f"N = {case.n}" if case.operation == "linear" else None,
                    )
            panel.set(xscale="log", yscale="log", title=f"{shape[0]} x {shape[1]}", xlabel="density")
            for axis, ticks in ((panel.xaxis, DENSITIES[::2]), (panel.yaxis, (0.25, 0.5, 1, 2, 4, 8, 16))):
                axis.set_major_locator(FixedLocator(ticks))
                axis.set_minor_locator(NullLocator())
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            panel.grid(color="#E4E8EC")
        panels[0].set_ylabel("speed-up of CSR over dense")
        panels[0].legend(frameon=False, title="linear; matmul dashed", title_fontsize=9)
        figure.suptitle(f"gossamer CSR against OpenBLAS: break-even near density {threshold:.2f}", fontsize=13)
        figure.supxlabel(caption, fontsize=8, color="#5F6B76")
        figure.savefig(folder / "breakeven.svg", metadata={"Date": None})
        figure.savefig(folder / "breakeven.png", dpi=160, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description="Finds the density below which CSR beats the dense product.")
    parser.add_argument("--large", action="store_true", help="4096x4096 too")
    parser.add_argument("--threads", type=int, default=gs.get_num_threads(), help="for both sides")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each density of a case (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path(".benchmarks"), help="folder (default: %(default)s)")
    options = parser.parse_args()

    gs.set_num_threads(options.threads)
    with threadpoolctl.threadpool_limits(options.threads, user_api="blas"):
        run = describe_run()
        print("\n".join(run))
        pools = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
        if pools != {options.threads}:
            print(f"WARNING: BLAS runs {pools or 'an unknown number of'} threads, gossamer {options.threads}")
        cases = []
        for shape in LARGE_SHAPES if options.large else SHAPES:
            for operation in OPERATIONS:
                for n in BATCHES:
                    cases.append(measure(operation, shape, n, options.seconds))
                    print(".", end="", flush=True)
    threshold = recommend(cases)
    print_table(cases, threshold)

    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "run": run,
        "threads": options.threads,
        "threshold": threshold,
        "cases": [asdict(case) | {"breakeven": case.breakeven, "speedups": case.speedups} for case in cases],
    }
    (options.out / "breakeven.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(cases, threshold, f"{run[0]}; {run[1]}", options.out)
    print(f"written: {options.out}/breakeven.json, .svg, .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
