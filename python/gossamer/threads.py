# SPDX-License-Identifier: Apache-2.0
"""Threads, and what this process runs on."""

from __future__ import annotations

from typing import Any

import numpy as np
import threadpoolctl

from gossamer import _core


def set_num_threads(n: int) -> None:
    """How many threads work on one call, the caller included.

    The default is GOSSAMER_NUM_THREADS, else OMP_NUM_THREADS, else the processors that the affinity mask and the
    cgroup's CPU quota leave. Results never depend on it. ``threadpoolctl.threadpool_limits`` controls it too.

    >>> import gossamer as gs
    >>> before = gs.get_num_threads()
    >>> gs.set_num_threads(1)
    >>> gs.get_num_threads()
    1
    >>> gs.set_num_threads(before)
    """
    if not isinstance(n, (int, np.integer)) or isinstance(n, bool):
        raise TypeError(f"set_num_threads: n must be an int, got {n!r}")
    if not 1 <= n <= 1 << 16:
        raise ValueError(f"set_num_threads: n must be in [1, 65536], got {n}")
    _core.set_num_threads(int(n))


def get_num_threads() -> int:
    """The number of threads that work on one call."""
    return int(_core.get_num_threads())


def info() -> dict[str, Any]:
    """Version, instruction set in use, threads, CUDA back end and build, as a dict that JSON can hold.

    >>> import gossamer as gs
    >>> sorted(gs.info())
    ['build', 'cuda', 'isa', 'isa_supported', 'processors', 'threads', 'version']
    """
    return dict(_core.info())


class _Controller(threadpoolctl.LibController):  # type: ignore[misc]
    """Lets threadpoolctl see and limit gossamer's threads like a BLAS's."""

    user_api = "gossamer"
    internal_api = "gossamer"
    filename_prefixes = ("_core",)
    check_symbols = ("gossamer_get_num_threads",)

    def get_num_threads(self) -> int:
        return get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        set_num_threads(num_threads)

    def get_version(self) -> str:
        return str(_core.info()["version"])


threadpoolctl.register(_Controller)
