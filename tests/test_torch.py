# SPDX-License-Identifier: Apache-2.0
"""torch tensors in, torch tensors out, without a copy; the masks of ``torch.nn.utils.prune`` on untied data."""

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import generator, right_or_refused

torch = pytest.importorskip("torch")
tp = pytest.importorskip("torch.nn.utils.prune")

DTYPES = (torch.float32, torch.float64)


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
