# SPDX-License-Identifier: Apache-2.0
"""Which kernel multiplies a matrix: what each costs on this machine, measured once, and the choice it leads to."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from gossamer import _core
from gossamer._arrays import compute_dtype
from gossamer.threads import after_fork, blas_of_numpy

KERNELS = ("csr", "panel", "bitmask", "dense")
COLUMNS = (1, 2, 4, 8, 32, 128, 512)  # of X, at which costs are known
FEW = 4  # up to here the bitmask kernel goes through the matrix once
DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8))  # of values

# For every kernel and number of columns: nanoseconds an element of the matrix, and a kept one of them.
Costs: TypeAlias = dict[str, list[tuple[float, float]]]

_MODEL = 3  # the version of what costs mean and how they are measured: others' files are not read

# Of float32, on a 2-core Zen 5 with AVX-512 and OpenBLAS (`python -c "import gossamer.plan as p; print(p.measure())"`).
# For small matrices, whose calls take microseconds everywhere, and where nothing may be measured: GOSSAMER_CALIBRATE=0.
BUILT_IN: Costs = {
    "csr": [
        (0.0018, 0.117),
        (0.0026, 0.42),
        (0.0024, 0.42),
        (0.0024, 0.42),
        (0.0034, 0.49),
        (0.0085, 1.66),
        (0.014, 6.7),
    ],
    "panel": [
        (0.0083, 0.0948),
        (0.0083, 0.0945),
        (0.0083, 0.0941),
        (0.0072, 0.0941),
        (0.014, 0.151),
        (0.048, 0.62),
        (0.23, 2.26),
    ],
    "bitmask": [(0.0185, 0.005), (0.025, 0.0067), (0.041, 0.0185), (0.078, 0.0368)],
    "dense": [(0.0215, 0), (0.092, 0), (0.093, 0), (0.11, 0), (0.175, 0), (0.56, 0), (2.1, 0)],
}

_SMALL = 1 << 16  # elements of a matrix whose plan is not worth a measurement
_KEEP_WITHIN = 1.05  # a kernel of fewer columns goes on while no other is faster by more
_DENSE_CALL = 8e3  # nanoseconds that a dense product takes longer to start: it goes through numpy
_MEASURE = 15_000_000  # nanoseconds for each measurement
_CONVERSION = 0.4  # nanoseconds an element: 16-bit values and int8 are widened for BLAS at every call
_WAIT = 5.0  # seconds for another process that measures
_ABSURD = 1e6  # nanoseconds an element: a file that says so is damaged


class Plan(NamedTuple):
    """The kernels of a matrix by the number of columns of X, what was asked for, and why."""

    steps: tuple[tuple[int, str], ...]  # (from so many columns on, this kernel), ascending from 1
    asked: str
    text: str

    def kernel(self, columns: int) -> str:
        chosen = self.steps[0][1]
        for first, kernel in self.steps:
            if columns >= first:
                chosen = kernel
        return chosen

    @property
    def kernels(self) -> set[str]:
        return {kernel for _, kernel in self.steps}


def as_asked(kernel: str) -> Plan:
    return Plan(((1, kernel),), kernel, f"{kernel}: as asked for")


def as_pattern(format: str) -> Plan:
    text = f"{format}: as asked for, multiplied as panels, and as a bitmask with 1 to {FEW} columns"
    return Plan(((1, "bitmask"), (FEW + 1, "panel")), format, text)


def choose(shape: tuple[int, int], nnz: int, dtype: Any) -> Plan:
    """The cheapest kernel for every number of columns, dense included."""
    elements = shape[0] * shape[1]
    if nnz == 0:
        return Plan(((1, "csr"),), "auto", "csr: nothing is kept")
    allowed = elements >= _SMALL and os.environ.get("GOSSAMER_CALIBRATE") != "0"
    found = machine_costs(dtype) if allowed else None
    measured, costs = found is not None, found or BUILT_IN

    def nanoseconds(kernel: str, i: int) -> float:
        element, kept = costs[kernel][i]
        if kernel == "dense" and not measured:
            element += _CONVERSION if np.dtype(dtype).itemsize < 4 else 0
        return elements * element + nnz * kept + (_DENSE_CALL if kernel == "dense" else 0)

    steps: list[tuple[int, str]] = []
    for i, columns in enumerate(COLUMNS):
        times = {kernel: nanoseconds(kernel, i) for kernel in KERNELS if i < len(costs[kernel])}
        best = min(times, key=times.__getitem__)
        if steps and times.get(steps[-1][1], math.inf) <= _KEEP_WITHIN * times[best]:
            continue
        steps.append((1 if not steps else 1 + math.isqrt(COLUMNS[i - 1] * (columns - 1)), best))
    plan = Plan(tuple(steps), "auto", "")
    return plan._replace(text=_explain(shape, nnz, plan, measured, nanoseconds))


def _explain(shape: tuple[int, int], nnz: int, plan: Plan, measured: bool, nanoseconds: Any) -> str:
    which = ", ".join(kernel if first == 1 else f"{kernel} from {first} columns on" for first, kernel in plan.steps)
    times = []
    for columns in (1, 32, 512):
        i = COLUMNS.index(columns)
        chosen, dense = (nanoseconds(kernel, i) / 1e6 for kernel in (plan.kernel(columns), "dense"))
        times.append(f"{chosen:.3g} ({dense:.3g}) with {columns}")
    return (
        f"{which}: density {nnz / (shape[0] * shape[1]):.4f} of {shape[0]} x {shape[1]}; ms expected, and for dense, "
        f"{', '.join(times)} ({'measured on this machine' if measured else 'built-in costs'})"
    )


# --------------------------------------------------------------------------------------------------------- measuring

_known: dict[str, Costs] = {}
_waited: set[str] = set()  # what another process took too long to measure: not waited for twice
_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # a thread that measures is not in the child


after_fork(_after_fork)


def machine_costs(dtype: Any = np.float32) -> Costs | None:
    """What products of such values cost here with the current threads: known, in a file, or measured now.

    None while another process has been measuring for more than 5 seconds, which would disturb each of the two.
    """
    dtype = np.dtype(dtype)
    path = _path(dtype)
    with _lock:
        if path.name in _known:
            return _known[path.name]
        costs = _read(path)
        if costs is None:
            with _alone(path.parent, 0 if path.name in _waited else _WAIT) as alone:
                costs = _read(path)  # what another has measured meanwhile
                if costs is None and not alone:
                    _waited.add(path.name)
                    return None
                if costs is None:
                    costs = _measured(dtype, path)
                    with suppress(OSError):  # a home that cannot be written to: measured again by the next process
                        _write(path, costs)
        _known[path.name] = costs
        return costs


def calibrate() -> dict[str, Costs]:
    """Measures what products cost on this machine, and keeps it for all processes to come.

    That happens by itself at the first matrix of each dtype; this is for doing it in a quiet moment, or again after a
    disturbed one. ``gossamer info --calibrate`` calls it. It takes a second or two for each dtype of values. The
    costs are those of the present number of threads, of gossamer and of numpy's BLAS. Plans that matrices have stay.

    Returns
    -------
    For the name of every dtype the costs, as :data:`Costs` describes them.

    Raises
    ------
    RuntimeError
        Another process is measuring.
    OSError
        The cache folder (``$XDG_CACHE_HOME/gossamer`` or ``~/.cache/gossamer``) cannot be written to.
    """
    found = {}
    with _lock, _alone(_cache(), _WAIT) as alone:
        if not alone:
            raise RuntimeError("calibrate: no other process must be measuring, got one that is")
        for dtype in DTYPES:
            path = _path(dtype)
            found[dtype.name] = _known[path.name] = _measured(dtype, path)
            _write(path, found[dtype.name])
    return found


def _measured(dtype: np.dtype[Any], path: Path) -> Costs:
    start = time.perf_counter()
    costs = measure(dtype)
    took = time.perf_counter() - start
    logging.getLogger("gossamer").info("measured the costs of %s products in %.2f s: %s", dtype.name, took, path)
    return costs


@contextmanager
def _alone(folder: Path, seconds: float) -> Iterator[bool]:
    """Whether no other process measures now, nor will as long as this lasts; waits for it up to so many seconds."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # nowhere to agree with others
        yield True
        return
    try:
        yield _locked(handle, time.monotonic() + seconds)
    finally:
        os.close(handle)  # which ends the lock, as does the end of the process; a forked child does not inherit it


def _locked(handle: int, deadline: float) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows: as on a file system without locks
        return True
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # another has it
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError:  # a file system without locks
            return True
        else:
            return True


def _path(dtype: np.dtype[Any]) -> Path:
    return _cache() / f"costs-{_machine()}-{dtype.name}.json"


def _cache() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute():  # the XDG specification wants others ignored
        return given / "gossamer"
    try:
        return Path.home() / ".cache" / "gossamer"
    except RuntimeError:  # none is known: as one that is not there
        return Path(os.devnull) / "gossamer"


@functools.cache
def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _machine() -> str:
    """A name for what the costs depend on."""
    info = _core.info()
    blas = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OPENBLAS_", "MKL_", "OMP_", "BLIS_")))
    what = (
        _MODEL,
        info["version"],
        info["isa"],
        _core.get_num_threads(),
        platform.machine(),
        processor(),
        np.__version__,
        blas_of_numpy(),
        blas,
    )
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def _read(path: Path) -> Costs | None:
    """None for a file that is not there, not of this form, or of costs that cannot be."""
    try:
        found = json.loads(path.read_text())
        if found["model"] != _MODEL:
            return None
        costs = {k: [(float(element), float(kept)) for element, kept in found["costs"][k]] for k in KERNELS}
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    numbers = {kernel: [n for pair in pairs for n in pair] for kernel, pairs in costs.items()}
    whole = all(len(costs[kernel]) == len(BUILT_IN[kernel]) and any(numbers[kernel]) for kernel in KERNELS)
    return costs if whole and all(0 <= n < _ABSURD for of in numbers.values() for n in of) else None


def _write(path: Path, costs: Costs) -> None:
    from gossamer.files import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps({"model": _MODEL, "costs": costs}).encode())


def measure(dtype: Any = np.float32, size: int = 3072) -> Costs:
    """The costs of every kernel: products of a square matrix of two densities, the shortest time of a few.

    X is float64 for float64 values, else float32.
    """
    from gossamer.multiply import matmul
    from gossamer.sparse import SparseMatrix

    random = np.random.default_rng(0)
    w = random.random((size, size), np.float32)
    matrices = [np.where(w < density, w + 1, np.float32(0)) for density in (0.5, 0.05)]
    dtype, of_x = np.dtype(dtype), compute_dtype(dtype)
    costs: Costs = {}
    for kernel in KERNELS:  # BLAS last: its threads spin for a while after a product
        pair = [SparseMatrix.from_dense(m, format=kernel, dtype=dtype) for m in matrices]
        costs[kernel] = []
        for columns in COLUMNS:
            if kernel == "bitmask" and columns > 2 * FEW:
                break
            x, out = np.ones((size, columns), of_x), np.empty((size, columns), of_x)
            times = []
            for a in pair[: 1 if kernel == "dense" else 2]:
                matmul(a, x, out=out)  # packs
                each: list[int] = []
                while len(each) < 2 or sum(each) < _MEASURE:
                    start = time.perf_counter_ns()
                    matmul(a, x, out=out)
                    each.append(time.perf_counter_ns() - start)
                times.append(min(each))
            if kernel == "dense":
                costs[kernel].append((max(0.0, times[0] - _DENSE_CALL) / size**2, 0.0))
                continue
            kept = max(0.0, (times[0] - times[1]) / (pair[0].nnz - pair[1].nnz))
            costs[kernel].append((max(0.0, times[1] - kept * pair[1].nnz) / size**2, kept))
    return costs
