# SPDX-License-Identifier: Apache-2.0
"""``gossamer bench``: what gossamer does beside other libraries and beside the limits of the machine.

:func:`run` measures and returns a report of plain values; :mod:`gossamer.benchmarks.tables` makes text of it, and
:func:`gossamer.plots.save_plots` pictures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gossamer as gs
from gossamer.benchmarks import peers, suites
from gossamer.benchmarks.measuring import (
    PAUSE,
    Limits,
    machine,
    same_threads,
    take_turns,
    versions,
    warnings_of_machine,
)
from gossamer.benchmarks.targets import SPARSE_MEAN, SPARSE_MEAN_COLUMNS, judge

__all__ = ["SUITES", "Options", "run"]

SUITES = tuple(suites.SUITES)

Progress = Callable[[str, float | None, str], None]


@dataclass(frozen=True)
class Options:
    """What to measure. ValueError where that is not possible.

    ``seconds`` is about what a row takes; ``quick`` tries everything with sizes that say nothing about speed.
    """

    suites: Sequence[str] = SUITES
    peers: bool = False
    seconds: float = 3.0
    threads: int | None = None
    quick: bool = False
    model: Path | None = None

    def __post_init__(self) -> None:
        for name in self.suites:
            if name not in SUITES:
                raise ValueError(f"bench: suite must be one of {', '.join(SUITES)}, got {name!r}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"bench: seconds must be at least 0 and finite, got {self.seconds}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"bench: threads must be at least 1, got {self.threads}")


def run(options: Options, progress: Progress = lambda phase, share, words: None) -> dict[str, Any]:
    """Measures, one row after the other; the report.

    Raises
    ------
    ArithmeticError
        A contestant's answer is wrong.
    OSError, ValueError
        ``model`` is no folder of ``gossamer train``.
    """
    began = time.perf_counter()
    threads = options.threads or gs.get_num_threads()
    sizes = suites.QUICK if options.quick else suites.FULL
    pause = 0.0 if options.quick else PAUSE
    chosen = peers.available(options.peers)  # before the threads are set: that counts for what is loaded
    setting = suites.Setting(sizes, threads, chosen, options.model)
    rows: list[dict[str, Any]] = []
    with same_threads(threads):
        if setting.torch is not None:
            setting.torch.set_num_threads(threads)
        progress("limits", None, "memory and multiply-adds")
        limits = Limits.measure(threads, sizes.memory, 64 if options.quick else 2048, setting.torch, pause)
        progress("limits", 1.0, f"{limits.read_gb_per_s:.1f} GB/s, {limits.gflops:.0f} GFLOP/s")
        for suite in dict.fromkeys(options.suites):
            plans = suites.SUITES[suite](setting)
            for number, (words, make) in enumerate(plans):
                progress(suite, number / len(plans), words)
                rows.append(_measured(suite, make(), limits, options, pause))
            progress(suite, 1.0, f"{len(plans)} rows")
        described = machine()
    return {
        "title": "gossamer bench" + (", quick: small sizes that say nothing about speed" if options.quick else ""),
        "version": gs.__version__,
        "machine": described,
        "warnings": warnings_of_machine(),
        "limits": asdict(limits),
        "threads": threads,
        "quick": options.quick,
        "peers": {name: {"kind": peer.kind, "version": _version(peer.module)} for name, peer in chosen.items()},
        "absent": [name for name in peers.PEERS if name not in chosen] if options.peers else [],
        "rows": rows,
        "summary": _summary(rows, options.quick),
        "seconds": time.perf_counter() - began,
    }


def _measured(suite: str, case: suites.Case, limits: Limits, options: Options, pause: float) -> dict[str, Any]:
    take_turns(case.contestants, options.seconds, pause, turns=2 if options.quick else 5)
    results = [contestant.result() for contestant in case.contestants]
    row: dict[str, Any] = {"suite": suite, "name": case.name, **case.facts, "contestants": results}
    return evaluated(row, case.flops, case.nbytes, limits, targets=not options.quick) | {"notes": case.notes}


def evaluated(row: dict[str, Any], flops: float, nbytes: float, limits: Limits, *, targets: bool) -> dict[str, Any]:
    """The row with rates, shares and ratios, all of them from the medians."""
    results = row["contestants"]
    ours = next(c["median"] for c in results if c["name"] == "gossamer")
    read = next((c["median"] for c in results if c["kind"] == "limit"), None)
    row |= {"flops": flops, "nbytes": nbytes, "seconds": ours}
    row["gflops"] = flops / ours / 1e9 if flops else None
    row["gb_per_s"] = nbytes / ours / 1e9 if nbytes else None
    row["limit"] = None
    if read is not None:
        row["limit"], row["share_of_limit"] = "read", read / ours
    elif flops and nbytes:
        row["limit"] = "read" if nbytes / limits.read_gb_per_s > flops / limits.gflops else "FMA"
        row["share_of_limit"] = limits.seconds(nbytes, flops) / ours
    for kind in ("dense", "sparse", "selection"):
        found = [c for c in results if c["kind"] == kind]
        if found:
            best = min(found, key=lambda c: float(c["median"]))
            row[kind] = {"name": best["name"], "seconds": best["median"], "ratio": best["median"] / ours}
    row["targets"] = judge(row) if targets else []
    return row


def _summary(rows: Iterable[dict[str, Any]], quick: bool) -> list[dict[str, Any]]:
    """Figures over many rows."""
    ratios = [
        row["sparse"]["ratio"]
        for row in rows
        if row["suite"] == "spmm" and row.get("sparse") and (quick or row["n"] in SPARSE_MEAN_COLUMNS)
    ]
    if not ratios:
        return []
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    entry = {"name": "spmm beside the best sparse peer, geometric mean", "value": mean, "rows": len(ratios)}
    return [entry if quick else entry | {"bound": SPARSE_MEAN, "met": mean >= SPARSE_MEAN}]


def _version(module: str) -> str:
    package = {"scipy.sparse": "scipy", "sparse_dot_mkl": "sparse-dot-mkl"}.get(module, module)
    return versions(package).get(package, "")
