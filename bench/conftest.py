# SPDX-License-Identifier: Apache-2.0
"""How every benchmark is run: the same threads for all libraries, answers checked, figures held against the machine.

A benchmark is a function ``test_*`` in ``bench_*.py`` that takes ``measure`` (:class:`Measure`). A module's ``SIZES``
says what its ``size`` argument is with and without ``--large``.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from limits import Limits
from limits import measure as measure_limits

import gossamer as gs


@dataclass
class Record:
    """One line of the table at the end."""

    group: str
    name: str
    seconds: float
    rate: str
    share: float | None
    note: str


_RECORDS = pytest.StashKey[list[Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gossamer benchmarks")
    group.addoption("--large", action="store_true", help="the sizes that the targets are stated for; takes much longer")
    group.addoption("--seconds", type=float, default=0.3, help="about how long each benchmark measures (default 0.3)")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RECORDS] = []
    if "bench_*.py" not in config.getini("python_files"):
        config.addinivalue_line("python_files", "bench_*.py")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "size" in metafunc.fixturenames:
        sizes = metafunc.module.SIZES["large" if metafunc.config.getoption("large") else "quick"]
        metafunc.parametrize("size", sizes, ids=["x".join(map(str, np.atleast_1d(size))) for size in sizes])


# --------------------------------------------------------------------------------------------------------- machine


def blas_kernels() -> list[str]:
    """The BLAS libraries in this process, with their kernels and threads."""
    return [
        f"{pool['internal_api']} {pool['version']}: kernel {pool.get('architecture', 'unknown')}, "
        f"{pool['num_threads']} threads"
        for pool in threadpoolctl.threadpool_info()
        if pool["user_api"] == "blas"
    ]


@cache
def machine_limits() -> Limits:
    """Measured once a session, when the first benchmark asks."""
    return measure_limits(gs.get_num_threads())


@pytest.fixture(scope="session", autouse=True)
def _same_threads() -> Iterator[None]:
    """BLAS gets as many threads as gossamer; torch gets them in ``inputs.torch_or_skip``."""
    with threadpoolctl.threadpool_limits(gs.get_num_threads(), user_api="blas"):
        yield


def pytest_report_header(config: pytest.Config) -> list[str]:
    info = gs.info()
    lines = [
        f"gossamer {info['version']}: {info['isa']}, {info['threads']} threads of {info['processors']} processors, "
        f"{info['build']['compiler']}{', DEBUG BUILD' if info['build']['debug'] else ''}",
        f"numpy {np.__version__} with {'; '.join(blas_kernels()) or 'a BLAS that threadpoolctl does not know'}",
    ]
    forced = [f"{name}={os.environ[name]}" for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ]
    if forced:
        lines.append(f"WARNING: {' '.join(forced)}: the BLAS kernel is forced, dense figures may be too slow")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        lines.append(f"WARNING: load average {os.getloadavg()[0]:.1f}: other programs are running, figures are noisy")
    return lines


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["gossamer"] = gs.info()
    machine_info["blas"] = blas_kernels()
    machine_info["numpy"] = np.__version__
    machine_info["platform"] = platform.platform()
    if config.stash[_RECORDS]:
        machine_info["limits"] = asdict(machine_limits())


# --------------------------------------------------------------------------------------------------------- measuring


class Measure:
    """Checks what a function returns, times it with pytest-benchmark, and says how near to the machine's limit it is."""

    def __init__(self, benchmark: Any, config: pytest.Config, name: str) -> None:
        self.benchmark = benchmark
        self.enabled = not benchmark.disabled
        self._records, self._seconds, self._name = config.stash[_RECORDS], config.getoption("seconds"), name

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
        note: Callable[[float], str] | None = None,
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
        note : makes a remark for the table from the median.
        """
        result = function()
        check(result)
        del result
        self.benchmark.group = group
        rounds, iterations = self._plan(function, setup) if self.enabled else (1, 1)
        # pedantic gives a setup its arguments back as a tuple, and refuses iterations beside it
        extra: dict[str, Any] = {"setup": setup} if setup else {"iterations": iterations}
        self.benchmark.pedantic(function, rounds=rounds, **extra)
        if not self.enabled:
            return 0.0
        seconds = float(self.benchmark.stats.stats.median)
        limit = machine_limits().seconds(read=read, written=written, flops=flops, dtype=np.dtype(dtype).name)
        self._record(group, name or self._name, seconds, read + written, flops, limit, note)
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

    def _record(
        self,
        group: str,
        name: str,
        seconds: float,
        nbytes: float,
        flops: float,
        limit: float,
        note: Callable[[float], str] | None,
    ) -> None:
        info: dict[str, Any] = self.benchmark.extra_info
        rate, share = "", None
        if nbytes:
            info["gb_per_s"] = nbytes / seconds / 1e9
            rate = f"{info['gb_per_s']:.1f} GB/s"
        if flops:
            info["gflop_per_s"] = flops / seconds / 1e9
            rate = f"{info['gflop_per_s']:.1f} GFLOP/s"
        if limit:
            info["limit_seconds"], info["share_of_limit"] = limit, limit / seconds
            share = limit / seconds
        text = note(seconds) if note else ""
        if text:
            info["note"] = text
        self._records.append(Record(group, name, seconds, rate, share, text))


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Measure:
    callspec = getattr(request.node, "callspec", None)
    peer = callspec.params.get("peer") if callspec else None
    return Measure(benchmark, request.config, peer.__name__ if peer else request.node.name)


# --------------------------------------------------------------------------------------------------------- the table


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash[_RECORDS]
    if not records:
        return
    write = terminalreporter.write_line
    terminalreporter.section("medians against the limits of this machine")
    write(f"limits, measured in this run: {machine_limits().summary()}")
    write(f"BLAS: {'; '.join(blas_kernels())}")
    width = max(len(record.name) for record in records)
    for group in dict.fromkeys(record.group for record in records):
        members = [record for record in records if record.group == group]
        ours = min((r.seconds for r in members if r.name.startswith("gossamer")), default=None)
        write("")
        write(f"{group}")
        for r in sorted(members, key=lambda record: record.seconds):
            share = "" if r.share is None else f"{100 * r.share:.0f} % of the limit"
            times = "" if ours is None else f"{r.seconds / ours:.2f} x gossamer"
            write(f"  {r.name:{width}} {_time(r.seconds):>10} {times:>18} {r.rate:>15} {share:>19}  {r.note}".rstrip())


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
