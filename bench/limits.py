# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most, measured: the yardstick of every benchmark.

    python bench/limits.py [--threads N] [--json]

A small C++ program (``limits.cpp``) is compiled with the system's compiler (``$CXX``, c++, g++ or clang++) when it is
first needed and kept in the user's cache folder. Without a compiler numpy measures: its dense product and its dot
product, which come near the limits but not up to them; ``source`` says which it was.

Bandwidth is measured over working sets from 256 KiB to 256 MiB, so that a benchmark whose arrays fit in a cache is
held against that cache and not against memory. :class:`Streams` passes over given arrays instead, for comparisons in
turns with what reads the same memory.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = Path(__file__).with_name("limits.cpp")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-pthread")
SIZES = tuple(1 << e for e in range(18, 29))  # bytes of the working sets


@dataclass(frozen=True)
class Limits:
    """Peak rates with ``threads`` threads; GFLOP/s count a multiply-add as two, GB are 10^9 bytes."""

    threads: int
    gflops: dict[str, float]  # by dtype
    read: dict[int, float]  # GB/s by bytes of the working set
    write: dict[int, float]
    source: str

    def bandwidth(self, kind: str, nbytes: float) -> float:
        """GB/s of the measured working set that is nearest to ``nbytes``; kind is "read" or "write"."""
        table: dict[int, float] = getattr(self, kind)
        return table[min(table, key=lambda size: abs(math.log(size / max(nbytes, 1))))]

    def seconds(self, *, read: float = 0, written: float = 0, flops: float = 0, dtype: str = "float32") -> float:
        """The least time for so many bytes and operations: memory or arithmetic, whichever takes longer.

        All bytes count as one working set, since a benchmark repeats its call.
        """
        memory = read / self.bandwidth("read", read + written) + written / self.bandwidth("write", read + written)
        return max(memory, flops / self.gflops[dtype]) / 1e9

    def summary(self) -> str:
        """One line: peaks, and bandwidth in memory."""
        size = max(self.read)
        return (
            f"{self.threads} threads: {self.gflops['float32']:.0f} GFLOP/s float32, "
            f"{self.gflops['float64']:.0f} float64; memory {self.read[size]:.1f} GB/s read, "
            f"{self.write[size]:.1f} written ({self.source})"
        )


def measure(threads: int) -> Limits:
    """Measures now; takes one or two seconds, more when the program has to be compiled first."""
    try:
        return _measure_natively(threads)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return _measure_with_numpy(threads, str(error).splitlines()[0])


def _measure_natively(threads: int) -> Limits:
    command = [str(_compiled("program")), str(threads), *map(str, SIZES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    result = json.loads(done.stdout)
    return Limits(
        threads=threads,
        gflops={name: result[name] for name in ("float32", "float64")},
        read=dict(result["read"]),
        write=dict(result["write"]),
        source=f"C++, {8 * result['vector_bytes']}-bit vectors",
    )


class Streams:
    """One pass of wide loads, or loads and stores, over whole arrays, by ``threads`` threads.

    Returns the seconds from the first thread's start to the last one's end, measured where the loops run: neither the
    call nor starting threads counts. Raises OSError or subprocess.SubprocessError where the library cannot be compiled.
    """

    def __init__(self, threads: int) -> None:
        self.threads, self._library = threads, _library()

    def read(self, *arrays: np.ndarray[Any, Any]) -> float:
        """Reads every byte of contiguous arrays, one array after the other."""
        return sum(self._read(a)[0] for a in arrays)

    def checksum(self, array: np.ndarray[Any, Any]) -> int:
        """The exclusive or of all 64-bit words as read by :meth:`read`."""
        return self._read(array)[1]

    def copy(self, source: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> float:
        """Copies a contiguous array into another of the same size."""
        if not (source.flags.c_contiguous and target.flags.c_contiguous and source.nbytes == target.nbytes):
            raise ValueError("copy: source and target must be contiguous and of one size")
        return float(self._library.limits_copy(self.threads, source.ctypes.data, target.ctypes.data, source.nbytes))

    def _read(self, array: np.ndarray[Any, Any]) -> tuple[float, int]:
        if not array.flags.c_contiguous or array.ctypes.data % 8:
            raise ValueError("read: array must be contiguous and aligned to 8 bytes")
        checksum = ctypes.c_uint64()
        seconds = self._library.limits_read(self.threads, array.ctypes.data, array.nbytes, ctypes.byref(checksum))
        return float(seconds), checksum.value


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_compiled("library")))
    library.limits_read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.POINTER(ctypes.c_uint64)]
    library.limits_copy.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    library.limits_read.restype = library.limits_copy.restype = ctypes.c_double
    return library


def _compiled(kind: str) -> Path:
    """The "program" or the "library"; named by source, compiler and processor, since it is made for this one."""
    candidates = (os.environ.get("CXX"), "c++", "g++", "clang++")
    compiler = next((path for name in candidates if name and (path := shutil.which(name))), None)
    if compiler is None:
        raise OSError("no C++ compiler")
    flags = (*FLAGS, *(("-shared", "-fPIC") if kind == "library" else ()))
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=30).stdout
    key = hashlib.sha256("\n".join((SOURCE.read_text(), *flags, compiler, version, processor())).encode()).hexdigest()
    folder = _cache_folder()
    result = folder / f"limits-{key[:16]}{'.so' if kind == 'library' else ''}"
    if not result.exists():
        unfinished = folder / f"{result.name}.{os.getpid()}"
        subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", str(unfinished)], check=True, capture_output=True, timeout=120
        )
        unfinished.replace(result)
    return result


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gossamer-bench"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="gossamer-bench-"))
    return folder


def processor() -> str:
    """The processor's name, with what the kernel says it can do where that is told."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
        return " ".join(named.get(key, "") for key in ("model name", "cpu family", "model", "flags", "Features"))
    return f"{platform.machine()} {platform.processor()}"


def _measure_with_numpy(threads: int, reason: str) -> Limits:
    rates = {}
    for dtype in (np.float32, np.float64):
        a = np.ones((1024, 1024), dtype)
        rates[np.dtype(dtype).name] = 2 * 1024**3 / _best_time(lambda a=a: a @ a) / 1e9
    data = np.zeros(max(SIZES) // 4, np.float32)
    read, write = {}, {}
    for size in SIZES:
        part = data[: size // 4]
        read[size] = size / _best_time(lambda part=part: part @ part) / 1e9
        write[size] = size / _best_time(lambda part=part: part.fill(0)) / 1e9
    return Limits(threads, rates, read, write, f"numpy, at least: {reason}")


def _best_time(function: Callable[[], Any], runs: int = 5) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> int:
    import gossamer as gs

    parser = argparse.ArgumentParser(description="Measures the peak rates of this machine.")
    parser.add_argument("--threads", type=int, default=gs.get_num_threads(), help="default: as many as gossamer uses")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    limits = measure(options.threads)
    if options.json:
        print(json.dumps(asdict(limits)))
        return 0
    print(limits.summary())
    print(f"{'working set':>12} {'read GB/s':>10} {'write GB/s':>11}")
    for size in SIZES:
        print(f"{size / 2**20:8.2f} MiB {limits.read[size]:10.1f} {limits.write[size]:11.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
