# SPDX-License-Identifier: Apache-2.0
"""Threads, and what this process runs on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
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


class _OneThread:
    """A limit that calls at once share. threadpoolctl lets only the thread that set it lift it, so that one waits."""

    def __init__(self) -> None:
        self.limit: AbstractContextManager[Any] | None = None
        self.inside, self.leaving, self.changed = 0, False, threading.Condition()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.changed:
            self.changed.wait_for(lambda: not self.leaving)
            if owner := self.limit is None:
                self.limit = _blas().limit(limits=1)
            self.inside += 1
        try:
            yield
        finally:
            with self.changed:
                self.inside -= 1
                self.changed.notify_all()
                if owner:
                    self.leaving = True  # those who come now wait for the next limit
                    try:
                        self.changed.wait_for(lambda: not self.inside)
                    finally:
                        self.lift()
                        self.leaving = False
                        self.changed.notify_all()

    def lift(self) -> None:
        """BLAS gets the threads that it had."""
        with self.limit or nullcontext():
            self.limit = None


_one_thread = _OneThread()


def one_blas_thread() -> AbstractContextManager[None]:
    """Inside, BLAS (numpy's and scipy's, which must be loaded) works with one thread, whichever threads call it."""
    return _one_thread()


def _after_fork() -> None:
    global _one_thread
    before, _one_thread = _one_thread, _OneThread()
    before.lift()  # the thread that would have done it is not here


def after_fork(renew: Callable[[], None]) -> None:
    """Has ``renew`` called in every forked child, which lacks the threads that held locks; where there is fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


after_fork(_after_fork)


def blas_of_numpy() -> list[tuple[Any, ...]]:
    """Name, version, kernels and threads of the BLAS that numpy's products run on (of all, if it brings none along)."""
    folder = Path(np.__file__).parent
    loaded = [(Path(library["filepath"]), library) for library in _blas().info()]
    own = [lib for path, lib in loaded if {folder, folder.with_name("numpy.libs")} & set(path.parents)]
    keys = ("internal_api", "version", "architecture", "num_threads")
    return sorted(tuple(str(lib.get(key)) for key in keys) for lib in own or [lib for _, lib in loaded])


@cache
def _blas() -> Any:
    """BLAS alone: a limit puts back all that it controls, and other libraries' threads may have been set since."""
    return threadpoolctl.ThreadpoolController().select(user_api="blas")
