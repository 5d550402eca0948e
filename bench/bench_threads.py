# SPDX-License-Identifier: Apache-2.0
"""gossamer's threads: what a fork and join costs, and whether other libraries' threads and idleness hold a job up.

A job of about 2 ms is timed right after (1) itself, (2) a numpy product, (3) the same on one BLAS thread, which only
disturbs the caches, (4) a torch operation, (5) 10 ms of idleness. Each round also times the job undisturbed, after a
pause in which every library's threads have gone to sleep; ``ratio_to_alone`` is the ratio of the medians. The same is
done the other way round: a numpy product after a gossamer job and after a torch operation.

Eight request threads share one matrix: ``of_one_caller`` is their total throughput beside that of one caller, who has
all of gossamer's threads to himself, and ``threads_more`` how many threads the process has more than with that one.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gossamer as gs
from inputs import Array, Job, as_tensor, fresh, normal, torch_or_skip
from measuring import Measure, settle

JOB_SECONDS = 2e-3
IDLE_SECONDS = 10e-3
ROUNDS = 20


@pytest.fixture
def threads() -> Iterator[int]:
    """The number of threads; it is put back afterwards, and one thread has nothing to show here."""
    before = gs.get_num_threads()
    if before == 1:
        pytest.skip("gossamer has one thread")
    yield before
    gs.set_num_threads(before)


def seconds_of(job: Job) -> float:
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def median_seconds(job: Job, pause: Callable[[], None] | None = None) -> float:
    times = []
    for _ in range(100 if pause else 1000):
        if pause:
            pause()
        times.append(seconds_of(job))
    return statistics.median(times)


# ------------------------------------------------------------------------------------------------------- fork and join


def tiny_job() -> tuple[Job, Callable[[Any], None]]:
    """Two chunks of work, the second one next to nothing: a second thread can cost time here but hardly save any."""
    w = normal((1, (1 << 15) + 64))
    out = fresh(w.shape)
    return lambda: gs.score(w, out=out), lambda result: np.testing.assert_array_equal(result, np.abs(w))


@pytest.mark.parametrize("idle", [False, True], ids=["busy", "idle"])
def test_fork_join(idle: bool, threads: int, measure: Measure) -> None:
    """``fork_join_us``: what the same tiny job takes longer with all threads than with one."""
    job, check = tiny_job()
    pause = (lambda: time.sleep(IDLE_SECONDS)) if idle else None
    gs.set_num_threads(1)
    alone = median_seconds(job, pause) if measure.enabled else 0.0
    gs.set_num_threads(threads)
    measure(
        job,
        check,
        name=f"gossamer {'after 10 ms of idleness' if idle else 'calls in a row'}",
        group=f"fork and join, {threads} threads",
        setup=pause,
        rounds=100 if idle else None,
        note=lambda seconds: {"one_thread_us": 1e6 * alone, "fork_join_us": 1e6 * (seconds - alone)},
    )


def test_fork_join_torch(threads: int, measure: Measure) -> None:
    """torch (OpenMP) on an array just large enough to be shared out; half of the work goes to the second thread."""
    torch = torch_or_skip()
    w = as_tensor(normal((1, (1 << 15) + 64)))
    out = torch.zeros_like(w)

    def job() -> Any:
        return torch.abs(w, out=out)

    torch.set_num_threads(1)
    alone = median_seconds(job) if measure.enabled else 0.0
    torch.set_num_threads(threads)
    measure(
        job,
        lambda result: np.testing.assert_array_equal(result, np.abs(w.numpy())),
        name="torch calls in a row",
        group=f"fork and join, {threads} threads",
        note=lambda seconds: {"one_thread_us": 1e6 * alone, "fork_join_us": 1e6 * (seconds - alone / threads)},
    )


# ----------------------------------------------------------------------------------------------------- among neighbours


def linear_job(n: int) -> tuple[Job, Array]:
    """Bound by arithmetic: a 1024x1024 matrix, 90 % pruned, on a batch of n."""
    w = normal((1024, 1024))
    mask = gs.topk_mask(np.abs(w), sparsity=0.9)
    a = gs.SparseMatrix.from_dense(w, mask, format="csr")
    x, out = normal((n, 1024), 1), fresh((n, 1024))
    return lambda: gs.linear(x, a, out=out), x @ gs.apply_mask(w, mask).T


def score_job(n: int) -> tuple[Job, Array]:
    """Bound by memory: |w g| of n times 4096 elements."""
    w, g, out = normal((n, 4096)), normal((n, 4096), 1), fresh((n, 4096))
    return lambda: gs.score(w, g, method="taylor", out=out), np.abs(w * g)


def of_two_milliseconds(make: Callable[[int], tuple[Job, Array]]) -> tuple[Job, Array]:
    n = 16
    while True:
        job, _ = make(n)
        seconds = min(seconds_of(job) for _ in range(5))
        if seconds > JOB_SECONDS / 4 or n >= 1 << 13:
            return make(max(1, round(n * JOB_SECONDS / seconds)))
        n *= 2


def numpy_gemm() -> Job:
    a, out = normal((512, 512), 2), fresh((512, 512))
    return lambda: np.matmul(a, a, out=out)


def numpy_gemm_on_one_thread() -> Job:
    job = numpy_gemm()

    def run() -> None:
        with threadpoolctl.threadpool_limits(1, user_api="blas"):
            job()

    return run


def torch_op() -> Job:
    """Element-wise on 1 M elements: OpenMP's threads wait for the next one spinning."""
    torch, a = torch_or_skip(), as_tensor(normal((1024, 1024), 3))
    out = torch.zeros_like(a)
    return lambda: torch.mul(a, 2.0, out=out)


NEIGHBOURS: dict[str, Callable[[Job], Job]] = {
    "itself": lambda job: job,
    "numpy gemm": lambda job: numpy_gemm(),
    "numpy gemm on one thread": lambda job: numpy_gemm_on_one_thread(),
    "torch op": lambda job: torch_op(),
    "10 ms of idleness": lambda job: lambda: time.sleep(IDLE_SECONDS),
}


class Interleaved:
    """Runs a job undisturbed and keeps its time, then the neighbour: the setup of each round."""

    def __init__(self, job: Job, neighbour: Job) -> None:
        self.job, self.neighbour = job, neighbour
        self.alone: list[float] = []

    def __call__(self) -> None:
        settle()
        self.job()
        self.alone.append(seconds_of(self.job))
        self.neighbour()

    def ratio(self, seconds: float) -> dict[str, float]:
        alone = statistics.median(self.alone)
        return {"alone_ms": 1e3 * alone, "ratio_to_alone": seconds / alone}


@pytest.mark.parametrize("neighbour", NEIGHBOURS, ids=lambda name: name.replace(" ", "_"))
@pytest.mark.parametrize("make", [linear_job, score_job])
def test_after(make: Any, neighbour: str, threads: int, measure: Measure) -> None:
    job, expected = of_two_milliseconds(make)
    setup = Interleaved(job, NEIGHBOURS[neighbour](job))
    measure(
        job,
        lambda result: np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max()),
        name=f"gossamer after {neighbour}",
        group=f"{make.__name__.removesuffix('_job')} of 2 ms, {threads} threads",
        setup=setup,
        rounds=ROUNDS,
        note=setup.ratio,
    )


@pytest.mark.parametrize("neighbour", ["itself", "gossamer", "torch"])
def test_gemm_after(neighbour: str, threads: int, measure: Measure) -> None:
    """A numpy product of some 2 ms: do gossamer's threads get out of its way?"""
    a = normal((512, 512), 2)
    expected = a.astype(np.float64) @ a
    job = numpy_gemm()
    others = {"itself": lambda: job, "gossamer": lambda: of_two_milliseconds(linear_job)[0], "torch": torch_op}
    setup = Interleaved(job, others[neighbour]())
    measure(
        job,
        lambda result: np.testing.assert_allclose(result, expected, rtol=0, atol=1e-3),
        name=f"numpy after {neighbour}",
        group=f"numpy gemm 512x512, {threads} threads",
        setup=setup,
        rounds=ROUNDS,
        flops=2 * 512**3,
        note=setup.ratio,
    )


# ----------------------------------------------------------------------------------------------------- request threads

CALLERS = 8
CALLS = 200  # of each


def test_callers(threads: int, measure: Measure) -> None:
    w = normal((1024, 1024))
    a = gs.SparseMatrix.from_dense(w, gs.topk_mask(np.abs(w), sparsity=0.8), format="panel")
    x = [normal((32, 1024), i) for i in range(CALLERS)]
    expected = [gs.linear(batch, a) for batch in x]

    def one() -> list[Array]:
        for _ in range(CALLS):
            for batch in x:
                results = [gs.linear(batch, a)]
        return results

    most = 0

    def all_at_once() -> list[Array]:
        nonlocal most
        results: list[Array] = list(x)

        def requests(i: int) -> None:
            for _ in range(CALLS):
                results[i] = gs.linear(x[i], a)

        callers = [threading.Thread(target=requests, args=(i,)) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        most = max(most, native_threads())
        for caller in callers:
            caller.join()
        return results

    def check(results: list[Array]) -> None:
        for got, right in zip(results, expected, strict=True):
            np.testing.assert_array_equal(got, right)

    before = native_threads()
    alone: list[float] = []
    measure(
        all_at_once,
        check,
        name=f"{CALLERS} callers of linear, 1024x1024 at 80 %, batch 32",
        group="request threads",
        setup=lambda: alone.append(seconds_of(one)),
        rounds=ROUNDS // 2,
        note=lambda seconds: {
            "of_one_caller": statistics.median(alone) / seconds,
            "threads_more": most - before - CALLERS,
            "calls_a_second": CALLERS * CALLS / seconds,
        },
    )


def native_threads() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("Threads"))
