# SPDX-License-Identifier: Apache-2.0
"""The installed package: stubs, types, versions, imports, docstrings, processes and threads around it."""

import ast
import copy
import doctest
import importlib
import importlib.metadata
import importlib.util
import inspect
import os
import pickle
import pkgutil
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import threadpoolctl

import gossamer as gs
from gossamer import _core

ROOT = Path(__file__).parent.parent
PACKAGE = Path(gs.__file__).parent
HAS_TORCH = importlib.util.find_spec("torch") is not None


def test_the_stub_is_the_module() -> None:
    tree = ast.parse((PACKAGE / "_core.pyi").read_text())
    stub = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    module = {name: value for name, value in vars(_core).items() if callable(value) and not name.startswith("_")}
    assert stub.keys() == module.keys()
    for name, node in stub.items():
        if isinstance(node, ast.ClassDef):
            methods = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
            assert methods - {"__init__"} == {method for method in vars(module[name]) if not method.startswith("_")}
            continue
        signature = module[name].__doc__.splitlines()[0]
        arguments = len(re.findall(r"arg\d+:", signature))
        assert len(node.args.posonlyargs) == arguments, f"{name}: {signature}"


def test_types_are_shipped() -> None:
    assert (PACKAGE / "py.typed").exists()


def test_one_version_everywhere() -> None:
    header = re.search(r'GOSSAMER_VERSION "([^"]+)"', (ROOT / "cpp/include/gossamer/version.h").read_text())
    assert header
    assert header[1] == gs.__version__ == gs.info()["version"] == importlib.metadata.version("gossamer")


def test_importing_brings_nothing_heavy() -> None:
    heavy = ("torch", "dask", "distributed", "jax", "cupy", "matplotlib", "rich", "sklearn", "scipy")
    code = f"import gossamer, gossamer.checkpoints, sys; print(*[m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


def test_everything_public_is_documented() -> None:
    assert len(set(gs.__all__)) == len(gs.__all__)  # ruff keeps their order
    for name in gs.__all__:
        assert inspect.getdoc(getattr(gs, name)), name


def modules() -> list[str]:
    found = pkgutil.walk_packages(gs.__path__, "gossamer.")
    names = [m.name for m in found if not m.name.endswith(("__main__", "_core"))]
    return [name for name in names if HAS_TORCH or not name.startswith(("gossamer.torch", "gossamer.distributed"))]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0


def test_examples_exist_where_they_are_promised() -> None:
    for name in ("score", "topk_mask", "apply_mask", "prune", "adjust", "matmul", "linear", "sddmm", "save"):
        assert ">>>" in (inspect.getdoc(getattr(gs, name)) or ""), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_works() -> None:
    w = np.random.default_rng(0).standard_normal((512, 1024))
    expected = gs.prune(w, sparsity=0.9)[1]  # the pool is running now
    child = os.fork()
    if child == 0:
        os._exit(0 if gs.prune(w, sparsity=0.9)[1] == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_threadpoolctl_sees_and_limits_the_threads() -> None:
    before = gs.get_num_threads()
    gs.set_num_threads(2)
    try:
        assert [d["num_threads"] for d in threadpoolctl.threadpool_info() if d["user_api"] == "gossamer"] == [2]
        with threadpoolctl.threadpool_limits(1, user_api="gossamer"):
            assert gs.get_num_threads() == 1
        assert gs.get_num_threads() == 2
    finally:
        gs.set_num_threads(before)


def test_threads_of_python_share_the_work_and_the_results() -> None:
    w = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    a = gs.SparseMatrix.from_dense(gs.prune(w, sparsity=0.9)[0], format="csr")
    x = np.random.default_rng(1).standard_normal((1024, 40)).astype(np.float32)
    expected, mask = (a @ x).tobytes(), gs.topk_mask(w, sparsity=0.5)
    wrong: list[str] = []

    def work() -> None:
        for _ in range(20):
            if (a @ x).tobytes() != expected or gs.topk_mask(w, sparsity=0.5) != mask or a.T.shape != (1024, 256):
                wrong.append("a result differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pickles_and_deep_copies_are_equal() -> None:
    w = np.random.default_rng(0).standard_normal((7, 9))
    mask = gs.topk_mask(w, sparsity=0.5)
    stats = gs.Stats("norm", decay=0.5)
    stats.update(w)
    a = gs.SparseMatrix.from_dense(w, mask)
    lin = gs.SparseLinear(a, np.ones(7), "gelu")
    for clone in (lambda o: pickle.loads(pickle.dumps(o)), copy.deepcopy):
        assert clone(mask) == mask
        assert clone(stats).values.tobytes() == stats.values.tobytes()
        assert (clone(a).to_dense() == a.to_dense()).all()
        assert clone(a).format == a.format
        assert (clone(lin)(w) == lin(w)).all()
    for schedule in (gs.OneShot(), gs.Constant(), gs.Cubic(0, 10, 2), gs.Cosine(0, 10), gs.Exponential(0, 10)):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
    assert pickle.loads(pickle.dumps(gs.Budget(0.1))) == gs.Budget(0.1)
