# SPDX-License-Identifier: Apache-2.0
"""Timing with a checked answer, held against the limits of the machine."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import gossamer as gs
from gossamer.benchmarks.measuring import numpy_simd, pools, settle, warnings_of_machine
from limits import Limits
from limits import measure as measure_limits

__all__ = ["Limits", "Measure", "Record", "describe_run", "machine_limits", "settle"]


def describe_run() -> list[str]:
    """What runs, with how many threads, and what may spoil the figures."""
    info = gs.info()
    lines = [
        f"gossamer {info['version']}: {info['isa']}, {gs.get_num_threads()} threads, {info['processors']} processors, "
        f"{info['build']['compiler']}",
        f"numpy {np.__version__} ({numpy_simd()}); {'; '.join(pools())}",
    ]
    return lines + [f"WARNING: {text}" for text in warnings_of_machine()]


@cache
def machine_limits() -> Limits:
    """Measured once a session, when the first benchmark asks."""
    return measure_limits(gs.get_num_threads())


@dataclass
class Record:
    """One line of the table at the end."""

    group: str
    name: str
    seconds: float  # median
    best: float
    rate: str
    share: float | None
    note: str


class Measure:
    """Checks what a function returns, times it with pytest-benchmark, and says how near to the limits it comes."""

    def __init__(self, benchmark: Any, records: list[Record], seconds: float, name: str) -> None:
        self.benchmark = benchmark
        self.enabled = not benchmark.disabled
        self._records, self._seconds, self._name = records, seconds, name

    def __call__(
        self,
        function: Callable[[], Any],
        check: Callable[[Any], None],
        *,
        group: str,
        name: str | None = None,
        setup: Callable[[], None] | None = None,
        read: float = 0,
        written: float = 0,
        flops: float = 0,
        dtype: Any = np.float32,
        note: Callable[[float], dict[str, float]] | None = None,
        rounds: int | None = None,
    ) -> float:
        """Times ``function()`` and returns the median in seconds (0 when benchmarks are disabled).

        Parameters
        ----------
        check : gets the first call's result and raises where it is wrong; nothing is timed then.
        group : benchmarks of one group stand side by side.
        name : of the contender; by default the test's own parameters.
        setup : called before every single round, untimed.
        read, written : bytes that a call cannot avoid to move.
        flops : operations of the algorithm as this contender does it (a dense product counts its zeros).
        note : makes more figures for the table from the median.
        rounds : instead of as many as ``--seconds`` has room for.
        """
        result = function()
        check(result)
        del result
        self.benchmark.group = group
        iterations = 1
        if rounds is None:
            rounds, iterations = self._plan(function, setup) if self.enabled else (1, 1)
        # pedantic refuses iterations beside a setup
        extra: dict[str, Any] = {"setup": setup} if setup else {"iterations": iterations}
        self.benchmark.pedantic(function, rounds=rounds, **extra)
        if not self.enabled:
            return 0.0
        times = self.benchmark.stats.stats
        seconds = float(times.median)
        limit = machine_limits().seconds(read=read, written=written, flops=flops, dtype=np.dtype(dtype).name)
        record = Record(group, name or self._name, seconds, float(times.min), "", None, "")
        self._describe(record, read + written, flops, limit, note)
        return seconds

    def _plan(self, function: Callable[[], Any], setup: Callable[[], None] | None) -> tuple[int, int]:
        """Rounds, and calls a round: at least 20 microseconds of them, so that the clock does not count."""
        calls: list[float] = []
        began = time.perf_counter()
        while len(calls) < 2 or (time.perf_counter() - began < 0.02 and len(calls) < 50):
            if setup:
                setup()
            start = time.perf_counter()
            function()
            calls.append(time.perf_counter() - start)
        whole = (time.perf_counter() - began) / len(calls)
        iterations = 1 if setup else max(1, math.ceil(20e-6 / statistics.median(calls)))
        return max(5, min(1000, round(self._seconds / (whole * iterations)))), iterations

    def _describe(
        self,
        record: Record,
        nbytes: float,
        flops: float,
        limit: float,
        note: Callable[[float], dict[str, float]] | None,
    ) -> None:
        """Fills in the record, and the same figures for pytest-benchmark's JSON."""
        info: dict[str, Any] = self.benchmark.extra_info
        if nbytes:
            info["gb_per_s"] = nbytes / record.seconds / 1e9
            record.rate = f"{info['gb_per_s']:.1f} GB/s"
        if flops:
            info["gflop_per_s"] = flops / record.seconds / 1e9
            record.rate = f"{info['gflop_per_s']:.1f} GFLOP/s"
        if limit:
            info["limit_seconds"] = limit
            info["share_of_limit"] = record.share = limit / record.seconds
        more = note(record.seconds) if note else {}
        info.update(more)
        record.note = ", ".join(f"{key} {value:.2f}" for key, value in more.items())
        self._records.append(record)
