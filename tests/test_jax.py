# SPDX-License-Identifier: Apache-2.0
"""JAX arrays in, JAX arrays out, with the bits of numpy; they are never written to, and traced ones are refused."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import assert_same_bits, generator
from gossamer._arrays import host

jax = pytest.importorskip("jax")
jnp = pytest.importorskip("jax.numpy")

DTYPES = ("float32", "float64", "float16", "bfloat16")
SHAPES = [(), (7,), (40, 50), (8, 4, 3, 3), (0, 5), (300, 301)]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> Iterator[Any]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", request.param == "float64")
    yield jnp.dtype(request.param)
    jax.config.update("jax_enable_x64", before)


def _normal(*shape: int, dtype: Any = np.float32, key: object = "jax") -> Any:
    return jnp.asarray(generator(key, shape).standard_normal(shape).astype(dtype))


def _same(result: Any, expected: np.ndarray) -> None:
    assert isinstance(result, jax.Array)
    assert_same_bits(np.asarray(result), expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scores_masks_and_weights_are_those_of_numpy(dtype: Any, shape: tuple[int, ...]) -> None:
    w, g = _normal(*shape, dtype=dtype), _normal(*shape, dtype=dtype, key="g")
    nw, ng = np.array(w), np.array(g)
    assert nw.dtype == dtype
    scores = gs.score(w, g, method="taylor")
    _same(scores, gs.score(nw, ng, method="taylor"))
    mask = gs.topk_mask(scores, sparsity=0.5)
    pruned, fused = gs.prune(w, g, method="taylor", sparsity=0.5)
    expected, same = gs.prune(nw, ng, method="taylor", sparsity=0.5)
    _same(pruned, expected)
    assert fused == mask == same
    _same(gs.apply_mask(w, mask), expected)
    _same(gs.apply_mask(w, jnp.asarray(mask.to_dense())), expected)
    assert gs.Mask.from_dense(jnp.asarray(mask.to_dense())) == mask
    assert gs.Mask(mask.shape, jnp.asarray(mask.packed)) == mask
    for rule in ("sign", "scale"):
        _same(gs.adjust(w, g, 0.25, rule=rule), gs.adjust(nw, ng, 0.25, rule=rule))
    _same(w, nw)  # nothing was written to


def test_products_are_those_of_numpy(dtype: Any) -> None:
    w, x, dy = _normal(40, 50, dtype=dtype), _normal(6, 50, dtype=dtype), _normal(6, 40, dtype=dtype)
    bias, nx, ndy = _normal(40, dtype=dtype), np.array(x), np.array(dy)
    pruned, mask = gs.prune(w, sparsity=0.7)
    for format in ("csr", "panel", "bitmask", "dense"):
        a = gs.SparseMatrix.from_dense(w, mask, format=format)
        assert a.dtype == dtype
        assert_same_bits(a.to_dense(), np.array(pruned))
        y = gs.linear(x, a, bias=bias, activation="gelu", residual=dy)
        _same(y, gs.linear(nx, a, bias=np.array(bias), activation="gelu", residual=ndy))
        _same(gs.linear(x[0], a), gs.linear(nx[0], a))
        _same(gs.matmul(a, x.T), gs.matmul(a, nx.T))
        _same(a @ x.T, gs.matmul(a, nx.T))
        layer = gs.SparseLinear(a, bias)
        for got, expected in zip(layer.backward(dy, x), layer.backward(ndy, nx), strict=True):
            _same(got, expected)
    sampled = gs.sddmm(dy.T, x.T, mask)
    assert_same_bits(sampled.values, gs.sddmm(ndy.T, nx.T, mask).values)
    assert_same_bits(a.with_values(jnp.asarray(a.values)).values, a.values)
    indptr, indices = jnp.array([0, 1, 3]), jnp.array([2, 0, 1])
    same = gs.SparseMatrix.from_csr(indptr, indices, x[0, :3], (2, 3))
    assert_same_bits(same.values, nx[0, :3])


def test_statistics_are_those_of_numpy(dtype: Any) -> None:
    x = _normal(3, 10, 12, dtype=dtype)
    for kind in ("norm", "hessian", "grad2", "movement"):
        ours, theirs = gs.Stats(kind), gs.Stats(kind)
        ours.update(*(x, x + 1)[: 2 if kind == "movement" else 1])
        theirs.update(*(np.array(x), np.array(x + 1))[: 2 if kind == "movement" else 1])
        assert_same_bits(ours.values, theirs.values)
    hessian = gs.Stats("hessian")
    hessian.update(_normal(40, 12, dtype=dtype))
    w = _normal(5, 12, dtype=dtype)
    pruned, mask = gs.prune(w, method="obs", stats=hessian, sparsity=0.5)
    _same(gs.compensate(w, mask, hessian), gs.compensate(np.array(w), mask, hessian))
    _same(pruned, gs.prune(np.array(w), method="obs", stats=hessian, sparsity=0.5)[0])


def test_a_pytree_of_one_level_is_a_mapping() -> None:
    w = {"a": _normal(30, 20), "b": _normal(20, 10)}
    pruned, masks = gs.prune(w, sparsity=0.8, group="global")
    expected, same = gs.prune({name: np.array(t) for name, t in w.items()}, sparsity=0.8, group="global")
    assert masks == same
    assert jax.tree.structure(pruned) == jax.tree.structure(w)
    for name in w:
        _same(pruned[name], expected[name])
    with pytest.raises(TypeError, match=r"^prune: weights must be an array .*got dict"):
        gs.prune({"a": w}, sparsity=0.5)


def test_gradual_pruning_of_a_pytree() -> None:
    w, g = {"a": _normal(30, 20)}, {"a": _normal(30, 20, key="g")}
    sparsifier = gs.Sparsifier("taylor", 0.8, schedule=gs.Cubic(0, 4, every=2), regrow=gs.SET(0.2), seed=1)
    state = sparsifier.init(w)
    theirs = sparsifier.init({"a": np.array(w["a"])})
    for step in range(5):
        state, _ = sparsifier.step(state, w, g, step)
        theirs, _ = sparsifier.step(theirs, {"a": np.array(w["a"])}, {"a": np.array(g["a"])}, step)
        w = gs.apply_mask(w, state.mask)
        assert state.mask == theirs.mask
    assert int((w["a"] != 0).sum()) <= state.mask["a"].nnz == 120


def test_inputs_are_read_where_they_are(dtype: Any) -> None:
    w = _normal(40, 50, dtype=dtype)
    view = host(w, "f", "w")
    assert view.dtype == dtype
    assert view.ctypes.data == w.unsafe_buffer_pointer()
    assert not view.flags.writeable


def test_results_are_handed_over_where_they_are(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, original = [], gs._arrays.give_back
    monkeypatch.setattr("gossamer._arrays.give_back", lambda r, like: made.append(r.ctypes.data) or original(r, like))
    for shape in SHAPES:
        result = gs.score(_normal(*shape, dtype=dtype))
        assert result.size == 0 or result.unsafe_buffer_pointer() == made[-1]


def test_results_outlive_what_they_were_made_of() -> None:
    expected = gs.score(np.array(_normal(300, 301)))
    results = [gs.score(_normal(300, 301)) for _ in range(20)]
    for result in results:
        _same(result, expected)


def test_a_computation_that_is_under_way_is_waited_for() -> None:
    x = _normal(600, 600)
    y = jax.jit(lambda x: jnp.sin(x @ x @ x @ x))(x)
    scores = gs.score(y)
    _same(scores, abs(np.array(y)))


CALLS: list[tuple[str, Callable[[Any, Any, Any, Any], Any]]] = [
    ("score", lambda w, x, m, a: gs.score(w)),
    ("topk_mask", lambda w, x, m, a: gs.topk_mask(w, sparsity=0.5)),
    ("prune", lambda w, x, m, a: gs.prune(w, sparsity=0.5)[0]),
    ("apply_mask", lambda w, x, m, a: gs.apply_mask(w, m)),
    ("adjust", lambda w, x, m, a: gs.adjust(w, w, 0.1)),
    ("Mask.from_dense", lambda w, x, m, a: gs.Mask.from_dense(w > 0)),
    ("Stats.update", lambda w, x, m, a: gs.Stats("norm").update(w)),
    ("SparseMatrix.from_dense", lambda w, x, m, a: gs.SparseMatrix.from_dense(w)),
    ("SparseMatrix.with_values", lambda w, x, m, a: a.with_values(w.reshape(-1))),
    ("matmul", lambda w, x, m, a: gs.matmul(a, x.T)),
    ("linear", lambda w, x, m, a: gs.linear(x, a)),
    ("sddmm", lambda w, x, m, a: gs.sddmm(w, x, m)),
    ("SparseLinear.backward", lambda w, x, m, a: gs.SparseLinear(a).backward(w, x)),
]


@pytest.mark.parametrize(("function", "call"), CALLS, ids=[name for name, _ in CALLS])
def test_traced_arrays_are_refused(function: str, call: Callable[..., Any]) -> None:
    w, x = _normal(4, 6), _normal(3, 6)
    _, m = gs.prune(w, sparsity=0.5)
    a = gs.SparseMatrix.from_dense(w, m)
    message = rf"^{function}: \w+ must hold data, got a \w*Tracer: .*outside of jax.jit"
    for transform in (jax.jit, jax.vmap):
        traced = transform(lambda w, x: call(w, x, m, a))
        with pytest.raises(TypeError, match=message):
            traced(w[None], x[None])


def test_a_derivative_is_refused() -> None:
    a = gs.SparseMatrix.from_dense(_normal(4, 6))
    with pytest.raises(TypeError, match=r"^linear: x must hold data, got a \w*Tracer: "):
        jax.grad(lambda x: gs.linear(x, a).sum())(_normal(3, 6))


def test_out_of_jax_is_a_type_error_and_out_of_numpy_is_filled() -> None:
    w, x = _normal(4, 6), _normal(3, 6)
    before = np.array(w)
    _, mask = gs.prune(w, sparsity=0.5)
    a = gs.SparseMatrix.from_dense(w, mask)
    calls: dict[str, Callable[[], Any]] = {
        "score": lambda: gs.score(w, out=w),
        "prune": lambda: gs.prune(w, sparsity=0.5, out=w),
        "apply_mask": lambda: gs.apply_mask(w, mask, out=w),
        "adjust": lambda: gs.adjust(w, w, 0.1, out=w),
        "matmul": lambda: gs.matmul(a, x.T, out=jnp.zeros((4, 3))),
        "linear": lambda: gs.linear(x, a, out=jnp.zeros((3, 4))),
        "sddmm": lambda: gs.sddmm(w, x, gs.Mask.from_dense(np.ones((4, 3), bool)), out=jnp.zeros(12)),
    }
    for function, call in calls.items():
        with pytest.raises(TypeError, match=rf"^{function}: out must be an array that can be written to, got .*immut"):
            call()
    _same(w, before)
    out = np.empty((4, 6), np.float32)
    assert gs.prune(w, sparsity=0.5, out=out)[0] is out
    assert_same_bits(out, gs.prune(before, sparsity=0.5)[0])


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(lambda: jnp.arange(3), id="int"),
        pytest.param(lambda: jnp.ones(3, jnp.complex64), id="complex"),
        pytest.param(lambda: jnp.ones(3, jnp.float8_e4m3fn), id="float8"),
        pytest.param(lambda: jax.random.key(0), id="key"),
        pytest.param(lambda: jax.ShapeDtypeStruct((3,), jnp.float32), id="no data"),
    ],
)
def test_what_is_no_array_of_floats_is_refused(x: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match=r"^score: weights must be"):
        gs.score(x())


def test_a_deleted_array_is_refused() -> None:
    w = jnp.ones(3)
    w.delete()
    with pytest.raises(TypeError, match=r"^score: weights must be"):
        gs.score(w)
