# SPDX-License-Identifier: Apache-2.0
"""Timing in turns, with checked answers, against limits that are measured in the same run."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import threadpoolctl

import gossamer as gs
from gossamer.plan import processor

Array: TypeAlias = np.ndarray[Any, Any]
Job: TypeAlias = Callable[[], Any]

# Seconds to wait for threads that spin after a call, on the cores that the next one needs: OpenBLAS's for 100 ms (2^28
# cycles of the clock), Intel's OpenMP's for 200 ms.
PAUSE = 0.5
SHORT = 25e-3  # calls below this are repeated untimed for as long after the pause: threads, clocks and caches wake up
TURN = 200e-6  # and a turn takes at least this long, so that the clock does not count
FORCED = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
ENVIRONMENT = ("OPENBLAS_", "MKL_", "OMP_", "GOMP_", "KMP_", "GOSSAMER_")  # beginnings of what changes the figures


class WrongAnswerError(ArithmeticError):
    """A contestant's answer is not the right one; nothing is timed then."""


def settle(pause: float = PAUSE) -> None:
    """Waits until no thread of this process works any more, but not longer than `pause` (0: not at all)."""
    end = time.perf_counter() + pause
    while time.perf_counter() < end:
        began = time.process_time()
        time.sleep(0.01)
        if time.process_time() - began < 1e-3:
            return


@dataclass
class Contestant:
    """``run`` is timed; with ``timed`` it returns its own seconds. ``check`` gets its first answer and raises."""

    name: str
    kind: str  # "gossamer", or what it stands for: "dense", "sparse", "selection", "limit"
    run: Job
    check: Callable[[Any], None] | None = None
    timed: bool = False
    seconds: list[float] = field(default_factory=list)
    _calls: int = 0

    def prepare(self) -> None:
        """The first call and its check, and how many calls a turn has. The first may build and allocate."""
        began = time.perf_counter()
        answer = self.run()
        first = time.perf_counter() - began
        if self.check is not None:
            try:
                self.check(answer)
            except AssertionError as error:
                raise WrongAnswerError(f"bench: {self.name}: {error}") from error
        del answer
        self._calls = 1 if first > 2 * SHORT else max(1, math.ceil(TURN / max(self._once(1), 1e-9)))

    def turn(self, pause: float) -> None:
        settle(pause)
        seconds = self._once(1)  # untimed where it is short, as are calls until the cores are up to speed again
        if seconds < SHORT:
            self._once(math.ceil(SHORT / max(seconds, 1e-9)))
            seconds = self._once(self._calls)
        self.seconds.append(seconds)

    def _once(self, calls: int) -> float:
        if self.timed:
            return statistics.fmean(self.run() for _ in range(calls))
        began = time.perf_counter()
        for _ in range(calls):
            self.run()
        return (time.perf_counter() - began) / calls

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def result(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        low, _, high = statistics.quantiles(ordered, method="inclusive") if len(ordered) > 1 else ordered * 3
        return {
            "name": self.name,
            "kind": self.kind,
            "median": self.median,
            "quartiles": [low, high],
            "best": ordered[0],
            "turns": len(ordered),
        }


def take_turns(contestants: Sequence[Contestant], seconds: float, pause: float = PAUSE, turns: int = 5) -> None:
    """Checks every answer, then times A, B, C, A, B, C ... for about `seconds`, each once all threads sleep.

    A disturbance so meets all of them. Whoever has taken all that time alone rests after three turns. Raises
    WrongAnswerError before anything is timed.
    """
    for contestant in contestants:
        contestant.prepare()
        contestant.seconds.clear()
    began = time.perf_counter()
    done = 0
    while done < turns or (time.perf_counter() - began < seconds and done < 500):
        for contestant in contestants:
            if done < min(3, turns) or not sum(contestant.seconds) > seconds > 0:
                contestant.turn(pause)
        done += 1


def near(expected: Array, tolerance: float = 1e-5) -> Callable[[Any], None]:
    """An answer of any float dtype is within `tolerance` of `expected` (float64), by its norm."""
    norm = float(np.linalg.norm(expected)) or 1.0

    def check(answer: Any) -> None:
        got = np.asarray(answer)
        if got.size != expected.size:
            raise AssertionError(f"the answer must have {expected.size} elements, got {got.size}")
        error = float(np.linalg.norm(got.reshape(expected.shape).astype(np.float64) - expected)) / norm
        if not error <= tolerance:
            raise AssertionError(
                f"the answer must be within {tolerance:g} of the one in float64, is off by {error:.2g}"
            )

    return check


def exact_product(w: Array, x: Array, rows: int = 1024) -> Array:
    """``w @ x`` in float64, without holding all of ``w`` as float64."""
    right = x.astype(np.float64)
    return np.concatenate([w[i : i + rows].astype(np.float64) @ right for i in range(0, len(w), rows)])


# --------------------------------------------------------------------------------------------------------------- limits


class Reader:
    """One streaming read of memory that holds zeros, by all threads: seconds from the first one's start to the end.

    The C library's ``memchr`` looks for a one: wide unrolled loads and nothing else, as fast as a read kernel compiled
    for the machine (82 GB/s beside 82 on two threads of a Zen 5, where ``np.max`` on two threads has 66). Without it,
    ``np.max``.
    """

    def __init__(self, nbytes: int, threads: int) -> None:
        self.nbytes = max(4096, nbytes // 4096 * 4096)
        self._memory = np.empty(self.nbytes, np.uint8)
        self._memory.fill(0)
        self._bounds = [(self.nbytes // 64 * i // threads) * 64 for i in range(threads)] + [self.nbytes]
        self._pool = ThreadPoolExecutor(threads)
        self._memchr = _memchr()
        self.source = "libc's memchr" if self._memchr else "np.max, a lower bound"

    def __call__(self) -> float:
        parts = [*self._pool.map(self._part, range(len(self._bounds) - 1))]
        return max(end for _, end in parts) - min(start for start, _ in parts)

    def _part(self, thread: int) -> tuple[float, float]:
        start, end = self._bounds[thread : thread + 2]
        began = time.perf_counter()
        if self._memchr is not None:
            self._memchr(self._memory.ctypes.data + start, 1, end - start)
        else:
            self._memory[start:end].max()
        return began, time.perf_counter()


def _memchr() -> Callable[[int, int, int], Any] | None:
    try:
        function = ctypes.CDLL(None).memchr
    except (OSError, AttributeError, TypeError):  # no C library in this process that can be asked
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    function.restype = ctypes.c_void_p
    return function


@dataclass
class Limits:
    """What the machine can do at most: bytes read from memory, and float32 multiply-adds (counted as two)."""

    read_gb_per_s: float
    read_source: str
    gflops: float
    gflops_source: str

    def seconds(self, nbytes: float, flops: float) -> float:
        return max(nbytes / self.read_gb_per_s, flops / self.gflops) / 1e9

    @classmethod
    def measure(cls, threads: int, nbytes: int, width: int, torch: Any, pause: float) -> Limits:
        """The best of several runs. The multiply-adds are those of the fastest dense product: a lower bound."""
        reader = Reader(nbytes, threads)
        a, out = np.ones((width, width), np.float32), np.empty((width, width), np.float32)
        products: dict[str, Job] = {"numpy": lambda: np.matmul(a, a, out=out)}
        if torch is not None:
            tensor = torch.from_numpy(a)
            products["torch"] = lambda: torch.mm(tensor, tensor)
        best = dict.fromkeys(products, math.inf)
        for name, product in products.items():
            for _ in range(5):
                settle(pause)
                product()
                began = time.perf_counter()
                product()
                best[name] = min(best[name], time.perf_counter() - began)
        fastest = min(best, key=lambda name: best[name])
        return cls(
            read_gb_per_s=reader.nbytes / min(reader() for _ in range(11)) / 1e9,
            read_source=f"{reader.source}, {reader.nbytes / 1e6:.0f} MB",
            gflops=2 * width**3 / best[fastest] / 1e9,
            gflops_source=f"the fastest dense product ({fastest}, {width}x{width}): a lower bound of the peak",
        )


# -------------------------------------------------------------------------------------------------------------- machine


def machine() -> dict[str, Any]:
    """The processor, what gossamer and numpy make of it, and what in the environment changes the figures."""
    return {
        "processor": processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "gossamer": gs.info(),
        "numpy_simd": numpy_simd(),
        "pools": pools(),
        "versions": versions("numpy", "scipy", "torch", "sparse-dot-mkl", "onnxruntime"),
        "environment": {name: value for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)},
    }


def warnings_of_machine() -> list[str]:
    """What may spoil the figures."""
    found = []
    forced = [f"{name}={os.environ[name]}" for name in FORCED if name in os.environ]
    if forced:
        found.append(
            f"{' '.join(forced)} is set: OpenBLAS takes this kernel and not the processor's own, dense products of "
            "numpy may be half as fast as they are for others. Unset it."
        )
    if gs.info()["build"]["debug"]:
        found.append("this is a debug build of gossamer")
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        found.append(f"load average {os.getloadavg()[0]:.1f}: other programs are running, the figures are noisy")
    return found


def pools() -> list[str]:
    """The thread pools of the libraries in this process."""
    return [
        f"{pool['internal_api']} {pool['version'] or ''}".strip()
        + (f", kernel {pool['architecture']}" if pool.get("architecture") else "")
        + f": {pool['num_threads']} threads"
        for pool in threadpoolctl.threadpool_info()
    ]


def numpy_simd() -> str:
    """The instruction sets beyond its baseline that numpy found and was built for; its partition and sort use them."""
    try:
        found = importlib.import_module("numpy._core._multiarray_umath")
        return " ".join(name for name in found.__cpu_dispatch__ if found.__cpu_features__.get(name)) or "baseline"
    except (ImportError, AttributeError):  # it is no public name
        return "unknown"


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed."""

    def each() -> Iterator[tuple[str, str]]:
        for package in packages:
            try:
                yield package, importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue

    return dict(each())


@contextmanager
def same_threads(threads: int) -> Iterator[None]:
    """gossamer and all libraries that are loaded run with so many threads; afterwards as before."""
    before = gs.get_num_threads()
    try:
        with threadpoolctl.threadpool_limits(threads):
            gs.set_num_threads(threads)
            yield
    finally:
        gs.set_num_threads(before)
