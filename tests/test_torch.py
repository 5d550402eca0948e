# SPDX-License-Identifier: Apache-2.0
"""torch tensors in, torch tensors out, without a copy; the masks of ``torch.nn.utils.prune`` on untied data."""

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, assert_same_bits, generator, right_or_refused

torch = pytest.importorskip("torch")
tp = pytest.importorskip("torch.nn.utils.prune")

DTYPES = (torch.float32, torch.float64)


HALVES = (torch.float16, torch.bfloat16)


def _numpy(t: Any) -> np.ndarray:
    """A numpy view of a tensor's memory, of bfloat16 too."""
    return t.view(torch.int16).numpy().view(BFLOAT16) if t.dtype == torch.bfloat16 else t.numpy()


def _normal(*shape: int, dtype: Any = None) -> Any:
    return torch.from_numpy(generator("torch", shape).standard_normal(shape)).to(dtype or torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (40, 50), (8, 4, 3, 3), (0, 5)])
def test_tensors_give_tensors_with_the_values_of_numpy(dtype: Any, shape: tuple[int, ...]) -> None:
    w, g = _normal(*shape, dtype=dtype), _normal(*shape, dtype=dtype) * 3
    score = gs.score(w, g, method="taylor")
    assert isinstance(score, torch.Tensor)
    assert score.dtype == dtype
    assert score.shape == w.shape
    assert (score.numpy() == gs.score(w.numpy(), g.numpy(), method="taylor")).all()
    pruned, mask = gs.prune(w, g, method="taylor", sparsity=0.5)
    expected, same = gs.prune(w.numpy(), g.numpy(), method="taylor", sparsity=0.5)
    assert isinstance(pruned, torch.Tensor)
    assert pruned.device == w.device
    assert mask == same
    assert (pruned.numpy() == expected).all()
    assert mask == gs.topk_mask(score, sparsity=0.5)
    assert torch.equal(gs.apply_mask(w, mask), pruned)
    moved = gs.adjust(w, g, 0.25, rule="scale")
    assert isinstance(moved, torch.Tensor)
    assert (moved.numpy() == gs.adjust(w.numpy(), g.numpy(), 0.25, rule="scale")).all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (40, 50), (8, 4, 3, 3), (0, 5), (3 * 32768 + 77,)])
def test_16_bit_tensors_give_tensors_with_the_values_of_numpy(dtype: Any, shape: tuple[int, ...]) -> None:
    w, g = _normal(*shape, dtype=dtype), _normal(*shape, dtype=dtype) * 3
    score = gs.score(w, g, method="taylor")
    assert isinstance(score, torch.Tensor)
    assert score.dtype == torch.float32  # what scores are computed in
    assert torch.equal(score, (w.float() * g.float()).abs())
    assert_same_bits(score.numpy(), gs.score(_numpy(w), _numpy(g), method="taylor"))
    pruned, mask = gs.prune(w, g, method="taylor", sparsity=0.5)
    expected, same = gs.prune(_numpy(w), _numpy(g), method="taylor", sparsity=0.5)
    assert isinstance(pruned, torch.Tensor)
    assert pruned.dtype == dtype
    assert pruned.shape == w.shape
    assert mask == same
    assert_same_bits(_numpy(pruned), expected)
    assert mask == gs.topk_mask(score, sparsity=0.5)
    assert gs.topk_mask(w, sparsity=0.5) == gs.topk_mask(w.double(), sparsity=0.5)  # 16-bit scores
    applied = gs.apply_mask(w, mask)
    assert applied.dtype == dtype
    assert torch.equal(applied, pruned)
    for rule in ("sign", "scale"):
        for scores in (g, score):
            moved = gs.adjust(w, scores, 0.25, rule=rule)
            assert isinstance(moved, torch.Tensor)
            assert moved.dtype == dtype
            assert torch.equal(moved, gs.adjust(w.float(), scores.float(), 0.25, rule=rule).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_out_writes_into_the_tensors_own_memory(dtype: Any) -> None:
    w = _normal(40, 50, dtype=dtype)
    address, view, before = w.data_ptr(), _numpy(w), w.clone()
    pruned, mask = gs.prune(w, sparsity=0.5, out=w)
    assert pruned is w
    assert w.data_ptr() == address
    assert_same_bits(view, np.where(mask.to_dense(), _numpy(before), view.dtype.type(0)))
    other = torch.full((50, 40), 7.0, dtype=dtype).T  # strides of its own
    assert gs.prune(before, sparsity=0.5, out=other)[0] is other
    assert torch.equal(other, w)
    other.fill_(7)
    assert gs.apply_mask(before, mask, out=other) is other
    assert torch.equal(other, w)
    expected = gs.adjust(before, before, 0.5)
    assert gs.adjust(before, before, 0.5, out=other) is other
    assert torch.equal(other, expected)
    scores = torch.full((40, 50), 7.0)
    assert gs.score(before, out=scores) is scores
    assert torch.equal(scores, before.abs().float())
    with pytest.raises(TypeError, match=r"^score: out .*float32"):
        gs.score(before, out=torch.empty_like(before))
    with pytest.raises(TypeError, match=r"^prune: out "):
        gs.prune(before, sparsity=0.5, out=torch.empty(40, 50))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_16_bit_views_parameters_and_mixed_mappings(dtype: Any) -> None:
    base = _normal(30, 64, 3, dtype=dtype)
    for view in (base[3:20, ::2, 1], base[:, :, 0].T, base.permute(2, 0, 1), base[5]):
        pruned, mask = gs.prune(view, sparsity=0.7)
        expected, same = gs.prune(_numpy(view.contiguous()).copy(), sparsity=0.7)
        assert mask == same
        assert_same_bits(np.ascontiguousarray(_numpy(pruned)), expected)
    layer = torch.nn.Linear(20, 30, dtype=dtype)
    assert gs.topk_mask(layer.weight.detach(), sparsity=0.5).nnz == 300
    gs.prune(layer.weight.data, sparsity=0.5, out=layer.weight.data)
    assert int((layer.weight == 0).sum()) == 300
    params = {
        "half": _normal(10, 20, dtype=dtype),
        "float": _normal(5, 4),
        "double": _normal(3, 3, dtype=torch.float64),
    }
    grads = {name: _normal(*w.shape) for name, w in params.items()}  # float32 for all
    pruned, masks = gs.prune(params, grads, method="snip", sparsity=0.5)
    assert {name: w.dtype for name, w in pruned.items()} == {name: w.dtype for name, w in params.items()}
    assert sum(mask.nnz for mask in masks.values()) == 114
    same = gs.prune({k: _numpy(w) for k, w in params.items()}, {k: _numpy(g) for k, g in grads.items()}, method="snip",
                    sparsity=0.5)[1]  # fmt: skip
    assert masks == same


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES], ids=str)
def test_stats_of_any_dtype_and_every_criterion(dtype: Any) -> None:
    x, w, g = _normal(40, 20, dtype=dtype), _normal(10, 20, dtype=dtype), _normal(10, 20, dtype=dtype) + 1
    batches = {"norm": (x,), "hessian": (x,), "movement": (w, g), "grad2": (_normal(6, 10, 20, dtype=dtype),)}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    stats = {}
    for kind, batch in batches.items():
        stats[kind], same = gs.Stats(kind), gs.Stats(kind)
        stats[kind].update(*batch)
        same.update(*(part.double() for part in batch))
        assert (np.asarray(stats[kind].values) == np.asarray(same.values)).all()
    kinds = {"movement": "movement", "fisher": "grad2", "obs": "hessian", "wanda": "norm", "ria": "norm"}
    for method in ("magnitude", "gradient", "taylor", "taylor2", "movement", "fisher", "obs", "wanda", "ria", "snip",
                   "grasp", "synflow", "lamp", "fpgm", "random"):  # fmt: skip
        one = stats.get(kinds.get(method, ""))
        scores = gs.score(w, g, method=method, stats=one, seed=1)
        assert isinstance(scores, torch.Tensor)
        assert scores.dtype == wide
        assert_same_bits(scores.numpy(), gs.score(_numpy(w), _numpy(g), method=method, stats=one, seed=1))
        pruned, mask = gs.prune(w, g, method=method, stats=one, seed=1, sparsity=0.5)
        assert pruned.dtype == dtype
        assert mask == gs.prune(_numpy(w), _numpy(g), method=method, stats=one, seed=1, sparsity=0.5)[1]


def test_out_writes_into_the_tensors_own_memory() -> None:
    w = _normal(40, 50)
    address, view, before = w.data_ptr(), w.numpy(), w.clone()
    pruned, mask = gs.prune(w, sparsity=0.5, out=w)
    assert pruned is w
    assert w.data_ptr() == address
    assert (view[mask.to_dense()] == before.numpy()[mask.to_dense()]).all()
    assert not view[~mask.to_dense()].any()
    out = torch.full((50, 40), 7.0).T
    assert gs.score(before, out=out) is out
    assert torch.equal(out, before.abs())


def test_views_of_a_tensor() -> None:
    base = _normal(30, 64, 3)
    for view in (base[3:20, ::2, 1], base[:, :, 0].T, base.permute(2, 0, 1), base[5]):
        pruned, mask = gs.prune(view, sparsity=0.7)
        expected, same = gs.prune(view.numpy().copy(), sparsity=0.7)
        assert mask == same
        assert (pruned.numpy() == expected).all()
        target = torch.empty_strided(view.shape, view.stride())
        gs.prune(view, sparsity=0.7, out=target)
        assert (target.numpy() == expected).all()


def test_a_parameter_is_read_without_being_changed() -> None:
    layer = torch.nn.Linear(20, 30)
    before = layer.weight.detach().clone()
    mask = gs.topk_mask(gs.score(layer.weight.detach()), sparsity=0.5)
    assert mask.nnz == 300
    assert torch.equal(layer.weight.detach(), before)
    gs.prune(layer.weight.data, sparsity=0.5, out=layer.weight.data)
    assert int((layer.weight == 0).sum()) == 300


def test_a_parameter_that_requires_grad_works_or_says_what_to_do() -> None:
    layer = torch.nn.Linear(20, 30)
    errors = (TypeError, ValueError)
    mask = right_or_refused(lambda: gs.topk_mask(layer.weight, sparsity=0.0), errors, "^topk_mask: scores .*detach")
    assert mask is None or mask.nnz == 600


def test_mappings_of_tensors() -> None:
    params = {"a": _normal(10, 20), "b": _normal(5, 4)}
    pruned, masks = gs.prune(params, sparsity=0.5, group="global")
    assert list(pruned) == ["a", "b"]
    assert all(isinstance(w, torch.Tensor) for w in pruned.values())
    assert sum(m.nnz for m in masks.values()) == 110
    state = torch.nn.Linear(8, 8).state_dict()  # an OrderedDict with a 1-D bias
    pruned, masks = gs.prune(state, sparsity=0.25)
    assert masks["bias"].nnz == 6
    assert masks["weight"].nnz == 48


def test_stats_take_tensors() -> None:
    x, w, g = _normal(9, 20), _normal(10, 20), _normal(10, 20) + 1
    norm, movement = gs.Stats("norm"), gs.Stats("movement")
    norm.update(x)
    movement.update(w, g)
    np.testing.assert_allclose(np.asarray(norm.values), np.linalg.norm(x.numpy().astype(float), axis=0), rtol=1e-12)
    assert isinstance(gs.score(w, method="wanda", stats=norm), torch.Tensor)
    assert isinstance(gs.score(w, method="movement", stats=movement), torch.Tensor)


@pytest.mark.parametrize("form", ["csr", "dense", "auto"])
def test_products_of_tensors(form: str) -> None:
    w, x, b = _normal(30, 20), _normal(7, 20), _normal(30)
    mask = gs.topk_mask(w.abs(), sparsity=0.8)
    a = gs.SparseMatrix.from_dense(w, mask, format=form)
    expected = torch.nn.functional.gelu(torch.nn.functional.linear(x, gs.apply_mask(w, mask), b))
    y = gs.linear(x, a, bias=b, activation="gelu")
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    y = gs.matmul(a, x.T, bias=b, activation="gelu")  # a transposed view
    torch.testing.assert_close(y, expected.T, rtol=1e-5, atol=1e-5)
    out = torch.empty(7, 30)
    assert gs.linear(x, a, bias=b, activation="gelu", out=out) is out
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_autograd() -> None:
    w, b = _normal(30, 20, dtype=torch.float64), _normal(30, dtype=torch.float64)
    x, dy = _normal(7, 20, dtype=torch.float64), _normal(7, 30, dtype=torch.float64)
    mask = gs.topk_mask(w.abs(), sparsity=0.8)
    kept = torch.from_numpy(mask.to_dense())
    functions = {
        None: lambda z: z,
        "relu": torch.relu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
        "silu": torch.nn.functional.silu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    for name, function in functions.items():
        leaf = [t.clone().requires_grad_() for t in (x, w * kept, b)]
        function(torch.nn.functional.linear(*leaf)).backward(dy)
        layer = gs.SparseLinear(gs.SparseMatrix.from_dense(w, mask, format="csr"), b, name)
        dx, dvalues, dbias = layer.backward(dy, x)
        assert all(isinstance(part, torch.Tensor) for part in (dx, dvalues, dbias))
        torch.testing.assert_close(dx, leaf[0].grad, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(dvalues, leaf[1].grad[kept], rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(dbias, leaf[2].grad, rtol=1e-11, atol=1e-12)


# torch.nn.utils.prune


@pytest.mark.parametrize("amount", [0, 1, 250, 999, 1000])
def test_l1_unstructured(amount: int) -> None:
    layer = torch.nn.Linear(50, 20)
    layer.weight.data = _normal(20, 50)
    assert len(layer.weight.data.abs().unique()) == 1000  # untied
    _, mask = gs.prune(layer.weight.data, nnz=1000 - amount)
    tp.l1_unstructured(layer, "weight", amount=amount)
    assert (layer.weight_mask.numpy().astype(bool) == mask.to_dense()).all()


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.77, 0.95])
def test_global_unstructured(sparsity: float) -> None:
    layers = {"conv": torch.nn.Conv2d(3, 8, 3), "hidden": torch.nn.Linear(50, 20), "out": torch.nn.Linear(20, 10)}
    for scale, layer in enumerate(layers.values(), 1):
        layer.weight.data = _normal(*layer.weight.shape) * scale
    params = {name: layer.weight.data for name, layer in layers.items()}
    assert len(torch.cat([w.flatten().abs() for w in params.values()]).unique()) == 216 + 1000 + 200
    _, masks = gs.prune(params, sparsity=sparsity, group="global")
    total = sum(m.nnz for m in masks.values())
    tp.global_unstructured([(layer, "weight") for layer in layers.values()], tp.L1Unstructured, amount=1416 - total)
    for name, layer in layers.items():
        assert (layer.weight_mask.numpy().astype(bool) == masks[name].to_dense()).all()
