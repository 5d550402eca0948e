# SPDX-License-Identifier: Apache-2.0
"""How every benchmark is run: the same threads for all libraries, answers checked, figures held against the machine.

A benchmark is a function ``test_*`` in ``bench_*.py`` that takes ``measure`` (:class:`measuring.Measure`). A module's
``PARAMETERS`` says which values its arguments take with and without ``--large``.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gossamer as gs
from gossamer.benchmarks.measuring import pools
from measuring import Measure, Record, describe_run, machine_limits

_RECORDS = pytest.StashKey[list[Record]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gossamer benchmarks")
    group.addoption("--large", action="store_true", help="the sizes that the targets are stated for; takes much longer")
    group.addoption(
        "--seconds", type=float, default=0.3, help="about how long each benchmark measures (default: %(default)s)"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_RECORDS] = []
    if "bench_*.py" not in config.getini("python_files"):
        config.addinivalue_line("python_files", "bench_*.py")
    # pytest-benchmark warns when a benchmark is skipped, as those of a library that is not installed are
    config.addinivalue_line("filterwarnings", "ignore:Benchmark fixture was not used at all in this test!")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    scale = "large" if metafunc.config.getoption("large") else "quick"
    for name, values in getattr(metafunc.module, "PARAMETERS", {}).get(scale, {}).items():
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=["x".join(map(str, np.atleast_1d(value))) for value in values])


def pytest_report_header(config: pytest.Config) -> list[str]:
    return describe_run()


@pytest.fixture(scope="session", autouse=True)
def _same_threads() -> Iterator[None]:
    """BLAS gets as many threads as gossamer; torch gets them in ``inputs.torch_or_skip``."""
    with threadpoolctl.threadpool_limits(gs.get_num_threads(), user_api="blas"):
        yield


@pytest.fixture
def measure(request: pytest.FixtureRequest, benchmark: Any) -> Measure:
    callspec = getattr(request.node, "callspec", None)
    peer = callspec.params.get("peer") if callspec else None
    name = peer.__name__ if peer else request.node.name
    return Measure(benchmark, request.config.stash[_RECORDS], request.config.getoption("seconds"), name)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["gossamer"] = gs.info()
    machine_info["pools"] = pools()
    machine_info["numpy"] = np.__version__
    machine_info["platform"] = platform.platform()
    if config.stash[_RECORDS]:
        machine_info["limits"] = asdict(machine_limits())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    records = config.stash[_RECORDS]
    if not records:
        return
    write = terminalreporter.write_line
    terminalreporter.section("median and best time against the limits of this machine")
    write(f"limits, measured in this run: {machine_limits().summary()}")
    write(f"threads: {'; '.join(pools())}")
    width = max(len(record.name) for record in records)
    for group in dict.fromkeys(record.group for record in records):
        members = [record for record in records if record.group == group]
        ours = min((r.seconds for r in members if r.name.startswith("gossamer")), default=None)
        write("")
        write(f"{group}")
        for r in sorted(members, key=lambda record: record.seconds):
            share = "" if r.share is None else f"{100 * r.share:.0f} % of the limit"
            times = "" if ours is None else f"{r.seconds / ours:.2f} x gossamer"
            times_and_rate = f"{_time(r.seconds):>10} {_time(r.best):>10} {times:>18} {r.rate:>15}"
            write(f"  {r.name:{width}} {times_and_rate} {share:>19}  {r.note}".rstrip())


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.2f} {unit}"
    return f"{seconds * 1e9:.0f} ns"
