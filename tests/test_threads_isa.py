# SPDX-License-Identifier: Apache-2.0
"""The same bits for every number of threads and every instruction set, in processes of their own."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import threadpoolctl

import gossamer as gs
from cases import assert_same_bits, values

TESTS = Path(__file__).parent
ISAS = ("baseline", *(isa for isa in gs.info()["isa_supported"] if isa != "baseline"))
HANG = 300  # seconds until a process counts as hung; nothing is measured


FORK = """
import os, signal, threading, warnings
warnings.simplefilter("ignore")  # fork with threads: what is tested
import numpy as np, gossamer as gs
gs.set_num_threads(3)
w = np.random.default_rng(0).standard_normal((600, 500))
x = np.random.default_rng(1).standard_normal((40, 500))
mask, stop = gs.prune(w, sparsity=0.9)[1], threading.Event()
matrices = [gs.SparseMatrix.from_dense(w, mask, format=name) for name in ("csr", "panel", "bitmask")]
products = [gs.linear(x, a) for a in matrices]

def busy():  # holds the pool while the main thread forks
    while not stop.is_set():
        right()

def right():
    same = [(gs.linear(x, a) == y).all() for a, y in zip(matrices, products)]
    fresh = gs.SparseMatrix.from_dense(w, mask, format="panel")
    return gs.prune(w, sparsity=0.9)[1] == mask and all(same) and (gs.linear(x, fresh) == products[1]).all()

worker = threading.Thread(target=busy)
worker.start()
codes = set()
for _ in range(10):
    child = os.fork()
    if child == 0:
        signal.alarm(100)  # a hung child dies
        os._exit(0 if right() else 1)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
stop.set()
worker.join()
print(codes, right())
"""

FORK_WHILE_PACKING = """
import os, signal, threading, warnings
warnings.simplefilter("ignore")  # fork with threads: what is tested
import numpy as np, gossamer as gs
from gossamer import sparse
w = np.eye(300, dtype=np.float32)
a = gs.SparseMatrix.from_dense(w, format="bitmask")
inside, proceed, pack = threading.Event(), threading.Event(), sparse._core.mask_to_indices

def slow(*arguments):
    inside.set()
    proceed.wait()
    pack(*arguments)

def right():
    return (gs.sddmm(w, w, a).values == 1).all() and (a @ w == w).all() and (a.T @ w == w).all()

sparse._core.mask_to_indices = slow
worker = threading.Thread(target=right)
worker.start()
inside.wait()  # the worker packs, and holds the lock
child = os.fork()
if child == 0:
    signal.alarm(60)  # a hung child dies
    sparse._core.mask_to_indices = pack
    found = []
    threads = [threading.Thread(target=lambda: found.append(right())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0 if found == [True] * 4 else 1)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
proceed.set()
worker.join()
print(code, right())
"""


def _run(code: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GOSSAMER_") and k != "OMP_NUM_THREADS"}
    return subprocess.run(
        [sys.executable, *code], env={**clean, **environment}, cwd=TESTS, capture_output=True, text=True, timeout=HANG
    )


def _lines(code: str, **environment: str) -> list[str]:
    done = _run(["-c", code], **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@cache
def _digests(isa: str, threads: int) -> dict[str, dict[str, str]]:
    done = _run(["cases.py"], GOSSAMER_ISA=isa, GOSSAMER_NUM_THREADS=str(threads))
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, dict[str, str]] = json.loads(done.stdout)
    return result


def _differing(a: dict[str, str], b: dict[str, str]) -> list[str]:
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


@pytest.mark.parametrize("isa", ISAS[1:])
def test_exact_results_do_not_depend_on_the_isa(isa: str) -> None:
    assert not _differing(_digests("baseline", 2)["exact"], _digests(isa, 2)["exact"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 7])
def test_no_result_depends_on_the_number_of_threads(isa: str, threads: int) -> None:
    two, other = _digests(isa, 2), _digests(isa, threads)
    assert not _differing(two["exact"], other["exact"])
    assert not _differing(two["products"], other["products"])


def test_the_forced_levels_are_reported() -> None:
    for isa in ISAS:
        assert _digests(isa, 2)["info"]["isa"] == isa
        assert _digests(isa, 2)["info"]["threads"] == "2"


def test_a_level_that_the_processor_lacks_is_never_run() -> None:
    for isa in {"avx2", "avx512", "neon"} - set(ISAS):
        done = _run(["-c", "import gossamer as gs; print(gs.info()['isa'])"], GOSSAMER_ISA=isa)
        assert (done.returncode == 0 and done.stdout.strip() in ISAS) or "ImportError: GOSSAMER_ISA" in done.stderr


def test_an_unknown_isa_is_an_import_error() -> None:
    done = _run(["-c", "import gossamer"], GOSSAMER_ISA="avx3000")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError")
    assert "GOSSAMER_ISA" in last
    assert "avx3000" in last


def test_the_environment_sets_the_number_of_threads() -> None:
    code = "import gossamer as gs; print(gs.get_num_threads(), gs.info()['threads'])"
    assert _lines(code, GOSSAMER_NUM_THREADS="3") == ["3 3"]
    assert _lines(code, OMP_NUM_THREADS="2") == ["2 2"]
    assert _lines(code, GOSSAMER_NUM_THREADS="1", OMP_NUM_THREADS="4") == ["1 1"]
    [default] = _lines(code)
    assert 1 <= int(default.split()[0]) <= len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else True


def test_set_num_threads(threads: None) -> None:
    w = values("heavy_ties", (600, 700), np.float32)
    results = []
    for n in (1, 2, 3, 7, 1):
        gs.set_num_threads(n)
        assert gs.get_num_threads() == n
        assert gs.info()["threads"] == n
        results.append(gs.prune(w, sparsity=0.7))
    for pruned, mask in results[1:]:
        assert mask == results[0][1]
        assert_same_bits(pruned, results[0][0])


def test_calls_from_many_threads_at_once_are_right() -> None:
    arrays = [values("normal", (300, 400), np.float32, i) for i in range(6)]
    x = values("normal", (32, 400), np.float32, "x")
    expected = [gs.prune(w, sparsity=0.9) for w in arrays]
    products = [gs.linear(x, gs.SparseMatrix.from_dense(w, mask)) for w, mask in expected]
    failures: list[Any] = []

    def work(i: int) -> None:
        try:
            shared = gs.SparseMatrix.from_dense(*expected[i])
            for _ in range(10):
                pruned, mask = gs.prune(arrays[i], sparsity=0.9)
                assert mask == expected[i][1]
                assert (pruned == expected[i][0]).all()
                np.testing.assert_allclose(gs.linear(x, shared), products[i], rtol=1e-4, atol=1e-4)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.parametrize("dtype", [None, "int8"])
@pytest.mark.parametrize("format", ["csr", "panel", "bitmask", "dense"])
def test_requests_that_share_a_matrix_get_the_bits_of_one_caller(format: str, dtype: Any) -> None:
    w = values("normal", (300, 400), np.float32)
    mask = gs.topk_mask(abs(w), sparsity=0.8)
    a = gs.SparseMatrix.from_dense(w, mask, format=format, dtype=dtype)
    x = [values("normal", (n, 400), np.float32, n) for n in (1, 3, 8, 17, 32, 64, 65, 130)]
    expected = [gs.linear(batch, a) for batch in x]
    fresh = gs.SparseMatrix.from_dense(w, mask, format=format, dtype=dtype)  # packed while the first ones ask
    start = threading.Barrier(len(x))

    def requests(i: int) -> list[np.ndarray[Any, Any]]:
        start.wait()
        return [gs.linear(x[i], fresh) for _ in range(20)]

    with ThreadPoolExecutor(len(x)) as pool:
        for results, right in zip(pool.map(requests, range(len(x))), expected, strict=True):
            for got in results:
                assert_same_bits(got, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes() -> None:
    assert _lines(FORK) == ["{0} True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_a_matrix_is_packed_computes() -> None:
    assert _lines(FORK_WHILE_PACKING) == ["0 True"]


def test_threadpoolctl_sees_and_limits_the_threads(threads: None) -> None:
    gs.set_num_threads(2)
    assert [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "gossamer"] == [2]
    with threadpoolctl.threadpool_limits(limits=1, user_api="gossamer"):
        assert gs.get_num_threads() == 1
    assert gs.get_num_threads() == 2


def test_a_callable_may_call_the_library(threads: None) -> None:
    gs.set_num_threads(2)
    w = values("normal", (400, 300), np.float32)
    pruned, mask = gs.prune(w, method=lambda w, g, s: gs.prune(w, sparsity=0.5)[0], sparsity=0.75)
    assert_same_bits(
        pruned, gs.prune(w, method=lambda w, g, s: np.where(abs(w) >= np.median(abs(w)), w, 0), sparsity=0.75)[0]
    )
    assert mask.nnz == 30_000


def test_importing_prints_nothing_and_starts_no_threads() -> None:
    code = "import gossamer, threading, os; print(len(os.listdir('/proc/self/task')) if os.path.isdir('/proc') else 1)"
    quiet = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = _run(["-c", code], GOSSAMER_NUM_THREADS="4", **quiet)
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout == "1\n"


def test_importing_loads_no_other_array_library() -> None:
    code = (
        "import sys, gossamer; print([m for m in ('torch', 'cupy', 'jax', 'matplotlib', 'scipy') if m in sys.modules])"
    )
    assert _lines(code) == ["[]"]
