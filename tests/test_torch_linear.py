# SPDX-License-Identifier: Apache-2.0
"""gossamer.torch.SparseLinear: values, gradients, memory, conversions, state dicts."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest

import gossamer as gs

torch = pytest.importorskip("torch")

gt = pytest.importorskip("gossamer.torch")
_operators = pytest.importorskip("gossamer.torch._operators")
_packs = pytest.importorskip("gossamer.torch._packs")

FORMATS = ("auto", "csr", "panel", "bitmask", "dense")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def _pruned(rows: int, cols: int, sparsity: float = 0.7, dtype: Any = torch.float32, bias: bool = True) -> Any:
    """A Linear of which a share is zero."""
    torch.manual_seed(rows * 1000 + cols)
    dense = torch.nn.Linear(cols, rows, bias=bias, dtype=dtype)
    gs.prune(dense.weight.data, sparsity=sparsity, out=dense.weight.data)
    return dense


def _pair(rows: int, cols: int, format: str = "auto", **kwargs: Any) -> tuple[Any, Any]:
    dense = _pruned(rows, cols, **kwargs)
    return dense, gt.SparseLinear.from_dense(dense, format=format)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(40,), (1, 40), (9, 40), (2, 3, 5, 40), (0, 40), (2, 0, 40)])
def test_outputs_and_gradients_are_those_of_the_masked_linear(dtype: Any, format: str, shape: tuple[int, ...]) -> None:
    dense, layer = _pair(30, 40, format, dtype=dtype)
    kept = dense.weight.detach() != 0
    x, same = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for _ in range(2))
    y, expected = layer(x.requires_grad_()), dense(same.requires_grad_())
    assert y.dtype == dtype
    assert y.shape == expected.shape
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    y.backward(dy)
    expected.backward(dy)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": 10 * TOLERANCE[dtype]}
    torch.testing.assert_close(y, expected, **tolerance)
    torch.testing.assert_close(x.grad, same.grad, **tolerance)
    torch.testing.assert_close(layer.values.grad, dense.weight.grad[kept], **tolerance)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad, **tolerance)
    assert [p.grad.dtype for p in layer.parameters()] == [dtype, dtype]


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0), (1, 1), (7, 9)])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 1.0])
def test_odd_sizes(size: tuple[int, int], sparsity: float) -> None:
    rows, cols = size
    mask = gs.topk_mask(np.random.default_rng(0).random(size, np.float32), sparsity=sparsity)
    layer = gt.SparseLinear(cols, rows, mask=mask)
    for batch in (0, 1, 3):
        x = torch.ones(batch, cols, requires_grad=True)
        y = layer(x)
        torch.testing.assert_close(y, torch.nn.functional.linear(x, layer.weight, layer.bias))
        y.sum().backward()
        assert x.grad.shape == x.shape
        torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(batch, cols))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(3, 6), (2, 2, 6), (6,)])
def test_gradcheck_of_first_and_second_order(format: str, shape: tuple[int, ...]) -> None:
    _, layer = _pair(5, 6, format, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def run(x: Any, values: Any, bias: Any) -> Any:
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, (x,))

    inputs = (x, layer.values.detach().clone().requires_grad_(), layer.bias.detach().clone().requires_grad_())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_opcheck_of_the_operators() -> None:
    _, layer = _pair(5, 6, dtype=torch.float64)
    random = torch.Generator().manual_seed(4)
    x, dy = (torch.randn(3, n, dtype=torch.float64, generator=random).requires_grad_() for n in (6, 5))
    ops, mask = torch.ops.gossamer, layer.packed_mask
    torch.library.opcheck(ops.linear.default, (x, layer.values, mask, layer.bias, 6, "auto"))
    torch.library.opcheck(ops.linear.default, (x, layer.values, mask, None, 6, "csr"))
    torch.library.opcheck(ops.linear_input_gradient.default, (dy, layer.values, mask, 6, "auto"))
    torch.library.opcheck(ops.linear_value_gradient.default, (dy, x, mask, layer.nnz, "auto", torch.float64))


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, layer = _pair(5, 6)
    calls: list[str] = []
    for name in ("input_gradient", "value_gradient_of"):
        real = getattr(_operators, name)
        monkeypatch.setattr(_operators, name, lambda *a, real=real, name=name: calls.append(name) or real(*a))
    x = torch.ones(2, 6)
    layer(x).sum().backward()
    assert calls == ["value_gradient_of"]
    calls.clear()
    layer.values.requires_grad_(False)
    layer(x).sum().backward()  # of the bias alone
    assert calls == []
    layer(x.requires_grad_()).sum().backward()
    assert calls == ["input_gradient"]
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_tensors_are_read_and_written_where_they_are(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, layer = _pair(64, 96, "csr", dtype=dtype)
    seen: list[tuple[int, int, int, int]] = []
    real = _operators.product

    def spy(x: Any, a: Any, *, bias: Any = None, out: Any) -> Any:
        address = [array.__array_interface__["data"][0] for array in (x, a.values, bias, out)]
        seen.append((address[0], address[1], address[2], address[3]))
        return real(x, a, bias=bias, out=out)

    monkeypatch.setattr(_operators, "product", spy)
    for x in (torch.ones(8, 96, dtype=dtype), torch.ones(2, 4, 96, dtype=dtype), torch.ones(96, 8, dtype=dtype).T):
        y = layer(x)
        assert seen.pop() == (x.data_ptr(), layer.values.data_ptr(), layer.bias.data_ptr(), y.data_ptr())


def test_optimizers_change_values_and_nothing_is_packed_again_but_them() -> None:
    for format in FORMATS:
        _, layer = _pair(30, 40, format)
        x = torch.randn(9, 40)
        known = _packs.pattern(layer.packed_mask, 40, format)
        structure, optimizer = known.structure, torch.optim.Adam(layer.parameters(), 0.1)
        for _ in range(3):
            before = layer(x)
            before.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
            assert not torch.equal(layer(x), before)
        assert _packs.pattern(layer.packed_mask, 40, format) is known
        assert known.structure is structure
        assert len(known._packs) <= 1
        assert optimizer.state[layer.values]["exp_avg"].shape == (layer.nnz,)


def test_every_way_to_change_values_is_noticed() -> None:
    _, layer = _pair(30, 40, "panel")
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))

    def check() -> None:
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))

    check()
    with torch.no_grad():
        layer.values[7] = 3.0
    check()
    layer.values.data.mul_(2)  # changes no version counter
    check()
    layer.values.data = torch.ones(layer.nnz)
    check()
    layer.values.detach().numpy()[...] = 4.0  # neither
    check()
    layer.values = torch.nn.Parameter(torch.full((layer.nnz,), 5.0))
    check()
    layer.share_memory()
    check()


@pytest.mark.parametrize("format", ["panel", "dense"])
@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_change_few_values_are_noticed(fused: bool, format: str) -> None:
    _, layer = _pair(300, 200, format)
    optimizer = torch.optim.SGD(layer.parameters(), 0.05, fused=fused)  # fused changes no version counter
    probe = torch.randn(9, 200, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for column in range(3, 200, 20):
        x = torch.zeros(4, 200)
        x[:, column] = 1.0  # no other weight has a gradient
        layer(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        y = layer(probe)
        torch.testing.assert_close(y, torch.nn.functional.linear(probe, layer.weight, layer.bias))
        (dx,) = torch.autograd.grad(y.sum(), probe)
        torch.testing.assert_close(dx, layer.weight.detach().sum(0).expand(9, 200))


def test_a_changed_mask_is_another_pattern_and_an_equal_one_is_not() -> None:
    _, layer = _pair(30, 40, "panel")
    x = torch.ones(9, 40)
    layer(x)
    known = _packs.pattern(layer.packed_mask, 40, "panel")
    layer.packed_mask.copy_(layer.packed_mask.clone())  # as DistributedDataParallel does at every step
    assert _packs.pattern(layer.packed_mask, 40, "panel") is known
    layer.packed_mask.copy_(layer.packed_mask.flip(0))
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert _packs.pattern(layer.packed_mask, 40, "panel") is not known


def test_what_is_packed_goes_with_the_layer() -> None:
    for format in FORMATS:
        _, layer = _pair(30, 40, format)
        x = torch.ones(9, 40, requires_grad=True)
        layer(x).sum().backward()
        known = weakref.ref(_packs.pattern(layer.packed_mask, 40, format))
        values = weakref.ref(layer.values.untyped_storage())
        assert known() is not None
        del layer
        gc.collect()
        assert values() is None  # no numpy view of it is kept
        assert known() is None


def test_layers_made_in_inference_mode() -> None:
    with torch.inference_mode():
        _, made = _pair(30, 40, "panel")
        x = torch.ones(9, 40)
        assert not made.values.is_inference()  # has a version counter all the same
        for layer in (made, copy.deepcopy(made)):  # the copy has none
            known = _packs.pattern(layer.packed_mask, 40, "panel")
            for _ in range(3):
                torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
                packed = [packs.forward["panel"] for packs in known._packs.values()]
                layer(x)
                assert [packs.forward["panel"] for packs in known._packs.values()] == packed  # not packed again
                layer.values[5] = layer.values[5] + 1  # seen, in inference mode too
        assert layer.values.is_inference()


def test_inputs_of_other_dtypes_and_autocast() -> None:
    _, layer = _pair(30, 40)
    x = torch.randn(9, 40, generator=torch.Generator().manual_seed(0))
    for dtype, tolerance in TOLERANCE.items():
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        y = layer(leaf)
        assert y.dtype == dtype
        y.sum().backward()
        assert leaf.grad.dtype == dtype
        assert layer.values.grad.dtype == torch.float32
        torch.testing.assert_close(y, layer(x).to(dtype), rtol=tolerance, atol=max(1e-5, 10 * tolerance))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.float32  # the layer works in the dtype that its input comes in
        assert layer(torch.nn.Linear(40, 40)(x)).dtype == torch.bfloat16


@pytest.mark.parametrize("view", ["transposed", "strided", "expanded", "negative"])
def test_strided_inputs(view: str) -> None:
    _, layer = _pair(30, 40)
    base = torch.randn(40, 80, generator=torch.Generator().manual_seed(0))
    x = {
        "transposed": base.T[:7],
        "strided": base[:, ::2],
        "expanded": base[:1, :40].expand(5, 40),
        "negative": torch.imag(torch.complex(base[:, :40], base[:, 40:]).conj()),
    }[view]
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, in jvp
def test_torch_func() -> None:
    _, layer = _pair(30, 40)
    x = torch.randn(9, 3, 40, generator=torch.Generator().manual_seed(0))
    swapped = torch.func.functional_call(layer, {"values": layer.values * 2}, (x,))
    torch.testing.assert_close(swapped, torch.nn.functional.linear(x, 2 * layer.weight, layer.bias))
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))  # one product after the other
    with pytest.raises(RuntimeError, match="functorch"):
        torch.func.jacrev(layer)(x[0, 0])
    with pytest.raises(NotImplementedError, match=r"^SparseLinear: derivatives must be taken in reverse mode"):
        torch.func.jvp(layer, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(NotImplementedError):
        layer(torch.autograd.forward_ad.make_dual(x, x))


def test_threads_share_a_layer() -> None:
    _, layer = _pair(64, 96, "panel")
    x = torch.randn(9, 96)
    expected, wrong = layer(x).detach(), []

    def work() -> None:
        with torch.no_grad():
            wrong.extend(1 for _ in range(50) if not torch.equal(layer(x), expected))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# conversions


def test_conversions_of_dtype() -> None:
    dense, layer = _pair(30, 40)
    x = torch.randn(9, 40)
    for change in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double, torch.nn.Module.float):
        change(layer)
        change(dense)
        assert layer.packed_mask.dtype == torch.uint8
        x = x.to(dense.weight.dtype)
        tolerance = TOLERANCE[x.dtype]
        torch.testing.assert_close(layer(x), dense(x), rtol=tolerance, atol=10 * tolerance)
    assert layer.to(torch.bfloat16).values.dtype == torch.bfloat16
    mask = layer.mask
    layer.type(torch.float64)  # which converts integers too
    assert layer.mask == mask
    torch.testing.assert_close(layer(x.double()), dense.bfloat16().double()(x.double()))


def test_copies_are_independent() -> None:
    _, layer = _pair(30, 40)
    x = torch.randn(9, 40)
    expected = layer(x)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=False)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), saved):
        assert torch.equal(other(x), expected)
        assert other.mask == layer.mask
        with torch.no_grad():
            other.values.zero_()
        assert torch.equal(layer(x), expected)
        assert torch.equal(other(x), layer.bias.detach().expand(9, 30))


def test_dense_matrix_and_back() -> None:
    dense, layer = _pair(30, 40)
    back = layer.to_dense()
    assert torch.equal(back.weight, dense.weight)
    assert torch.equal(back.bias, dense.bias)
    assert (layer.matrix().to_dense() == dense.weight.detach().numpy()).all()
    assert layer.mask == gs.Mask.from_dense(dense.weight.detach() != 0)
    assert "sparsity=0.7000" in repr(layer)
    assert layer.plan
    frozen = dense.requires_grad_(False).eval()
    other = gt.SparseLinear.from_dense(frozen)
    assert not any(p.requires_grad for p in other.parameters())
    assert not other.training
    assert not other.to_dense().weight.requires_grad


def test_what_a_mask_keeps_stays_even_where_it_is_zero() -> None:
    dense = torch.nn.Linear(4, 3)
    torch.nn.init.zeros_(dense.weight)
    mask = gs.Mask.from_dense(np.eye(3, 4, dtype=bool))
    layer = gt.SparseLinear.from_dense(dense, mask)
    assert layer.nnz == 3
    layer(torch.ones(1, 4)).sum().backward()
    assert layer.values.grad.tolist() == [1.0, 1.0, 1.0]
    assert gt.SparseLinear.from_dense(dense, torch.eye(3, 4, dtype=torch.bool)).mask == mask


def test_new_layers_are_drawn_as_linear_draws_them() -> None:
    layer = gt.SparseLinear(400, 300, mask=gs.topk_mask(np.random.default_rng(0).random((300, 400)), sparsity=0.9))
    assert layer.values.abs().max() <= 1 / 20
    assert layer.values.abs().max() > 0.049
    assert abs(layer.values.std().item() - torch.nn.Linear(400, 300).weight.std().item()) < 1e-3
    assert gt.SparseLinear(4, 3, bias=False, dtype=torch.float64).values.dtype == torch.float64
    meta = gt.SparseLinear(4, 3, device="meta")
    assert meta.values.is_meta
    assert meta(torch.empty(5, 4, device="meta")).shape == (5, 3)


# state dicts


def test_a_state_dict_round_trip() -> None:
    _, layer = _pair(30, 40)
    state = layer.state_dict()
    assert list(state) == ["values", "bias", "packed_mask"]
    other = gt.SparseLinear(40, 30)
    keep = other.values
    assert other.load_state_dict(state) == torch.nn.modules.module._IncompatibleKeys([], [])
    assert other.values is keep  # the parameter stays the same object
    x = torch.randn(9, 40)
    assert torch.equal(other(x), layer(x))
    same = gt.SparseLinear.from_dense(_pruned(30, 40, sparsity=0.7)).double()
    same.load_state_dict(state)
    assert same.values.dtype == torch.float64
    meta = gt.SparseLinear(40, 30, device="meta")
    meta.load_state_dict(state, assign=True)
    assert torch.equal(meta(x), layer(x))


def test_a_state_dict_brings_its_pattern() -> None:
    _, layer = _pair(30, 40, sparsity=0.9)
    model, source = torch.nn.Sequential(_pair(30, 40, sparsity=0.5)[1]), torch.nn.Sequential(layer)
    x = torch.randn(9, 40)
    model(x).sum().backward()
    model.load_state_dict(source.state_dict())
    assert model[0].nnz == layer.nnz == 120
    assert model[0].values.grad is None
    assert torch.equal(model(x), source(x))
    model(x).sum().backward()
    assert model[0].values.grad.shape == (120,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"values": torch.zeros(3)},
            r"values must have one entry for each that packed_mask keeps, \(360,\), got \(3,\)",
        ),
        ({"values": torch.zeros(360, dtype=torch.int64)}, "values must be float32, .*got torch.int64"),
        ({"values": "evil"}, "values must be a tensor, got str"),
        ({"packed_mask": torch.zeros(30, 5)}, "packed must be uint8"),
        ({"packed_mask": torch.zeros(29, 5, dtype=torch.uint8)}, r"packed must have the shape \(30, 5\)"),
        ({"packed_mask": torch.zeros(30, 5, dtype=torch.uint8)}, r"keeps, \(0,\), got \(360,\)"),
        (
            {"packed_mask": torch.zeros(30, 5, dtype=torch.uint8, device="meta")},
            "packed_mask must be a dense tensor that",
        ),
        (
            {"values": torch.zeros(360, 1).to_sparse()},
            "values must be a dense tensor that holds data, got torch.sparse",
        ),
        ({"packed_mask": None}, "packed_mask must be a tensor, got NoneType"),
        ({"bias": torch.zeros(7)}, r"bias must have the shape \(30,\), got \(7,\)"),
        ({"bias": None}, r"bias must have the shape \(30,\), got NoneType"),
    ],
    ids=str,
)
def test_hostile_state_dicts_are_refused_and_change_nothing(changes: dict[str, Any], message: str) -> None:
    _, layer = _pair(30, 40)
    before = copy.deepcopy(layer.state_dict())
    other = gt.SparseLinear(40, 30, mask=gs.topk_mask(np.random.default_rng(0).random((30, 40)), nnz=360)).state_dict()
    with pytest.raises(RuntimeError, match=message):
        layer.load_state_dict({**other, **changes})
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_padding_bits_and_formats_of_a_state_dict_are_checked() -> None:
    layer = gt.SparseLinear(5, 2, format="csr")
    state = layer.state_dict()
    state["packed_mask"] = torch.full((2, 1), 255, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="packed must have zero padding bits"):
        layer.load_state_dict(state)
    half = gs.Mask.from_dense(np.tile([True, False, True, False], (3, 2)))
    two = gt.SparseLinear(8, 3, mask=half, format="2:4")
    other = gt.SparseLinear(8, 3).state_dict()
    with pytest.raises(RuntimeError, match="must keep at most 2 of every 4"):
        two.load_state_dict(other)
    assert two.mask == half


def test_values_and_mask_are_loaded_together_or_not_at_all() -> None:
    _, layer = _pair(30, 40)
    state = {name: t + 1 for name, t in layer.state_dict().items() if name != "packed_mask"}
    with pytest.raises(RuntimeError, match=r"Missing key.*packed_mask"):
        layer.load_state_dict(state)
    before = layer.values.detach().clone()
    found = layer.load_state_dict(state, strict=False)
    assert found.missing_keys == ["packed_mask"]
    assert torch.equal(layer.values, before)
    with pytest.raises(RuntimeError, match=r"Missing key.*values"):
        layer.load_state_dict(torch.nn.Linear(40, 30).state_dict())


# errors


def test_wrong_arguments() -> None:
    _, layer = _pair(30, 40)
    with pytest.raises(ValueError, match=r"^SparseLinear: x must have the shape \[\.\.\., 40\], got \(9, 41\)"):
        layer(torch.ones(9, 41))
    with pytest.raises(ValueError, match=r"^SparseLinear: x must have the shape \[\.\.\., 40\], got \(\)"):
        layer(torch.ones(()))
    with pytest.raises(TypeError, match=r"^SparseLinear: x must be float32.*got torch.int64"):
        layer(torch.ones(9, 40, dtype=torch.int64))
    for x in (None, [1.0] * 40, np.ones((9, 40), np.float32)):
        with pytest.raises(TypeError, match=rf"^SparseLinear: x must be a tensor, got {type(x).__name__}"):
            layer(x)
    with pytest.raises(MemoryError, match=r"^SparseLinear: not enough memory for an array of shape"):
        gt.SparseLinear(1 << 40, 1 << 40)
    for what, dense in (("meta", torch.nn.Linear(4, 3, device="meta")), ("uninitialized", torch.nn.LazyLinear(3))):
        with pytest.raises(TypeError, match=rf"^SparseLinear.from_dense: the weight must hold data, got an? {what}"):
            gt.SparseLinear.from_dense(dense)
    with pytest.raises(TypeError, match=r"^SparseLinear: in_features must be an int, got 4.5"):
        gt.SparseLinear(4.5, 3)
    with pytest.raises(ValueError, match=r"^SparseLinear: out_features must not be negative, got -1"):
        gt.SparseLinear(4, -1)
    with pytest.raises(ValueError, match=r"^SparseLinear: mask must have the shape \(3, 4\), got \(4, 3\)"):
        gt.SparseLinear(4, 3, mask=gs.Mask.from_dense(np.ones((4, 3), bool)))
    with pytest.raises(TypeError, match=r"^SparseLinear: mask must be a Mask, got ndarray"):
        gt.SparseLinear(4, 3, mask=np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"^SparseLinear: format must be one of .*, got 'coo'"):
        gt.SparseLinear(4, 3, format="coo")
    with pytest.raises(ValueError, match=r"^SparseLinear: mask must keep at most 2 of every 4"):
        gt.SparseLinear(4, 3, format="2:4")
    with pytest.raises(TypeError, match=r"^SparseLinear: dtype must be float32.*got torch.int8"):
        gt.SparseLinear(4, 3, dtype=torch.int8)
    with pytest.raises(TypeError, match=r"^SparseLinear.from_dense: linear must be a torch.nn.Linear, got Conv2d"):
        gt.SparseLinear.from_dense(torch.nn.Conv2d(1, 1, 1))


def test_wrong_tensors_for_the_operators() -> None:
    _, layer = _pair(30, 40)
    run, x, mask = torch.ops.gossamer.linear, torch.ones(9, 40), layer.packed_mask
    with pytest.raises(ValueError, match=r"^SparseLinear: values must have one entry for each that mask keeps"):
        run(x, layer.values[:-1], mask, None, 40, "auto")
    with pytest.raises(ValueError, match=r"^SparseLinear: bias must have the shape \(30,\), got \(29,\)"):
        run(x, layer.values, mask, layer.bias[:-1], 40, "auto")
    with pytest.raises(TypeError, match=r"^SparseLinear: mask must be uint8"):
        run(x, layer.values, mask.float(), None, 40, "auto")
    with pytest.raises(ValueError, match=r"^Mask: packed must have the shape"):
        run(x, layer.values, mask[:, :-1], None, 40, "auto")
    with pytest.raises(ValueError, match=r"^SparseLinear: format must be one of"):
        run(x, layer.values, mask, None, 40, "no such")
    dy = torch.ones(9, 30)
    with pytest.raises(ValueError, match=r"^SparseLinear.backward: nnz must be that of mask, 360, got 5"):
        torch.ops.gossamer.linear_value_gradient(dy, x, mask, 5, "auto", torch.float32)
    with pytest.raises(ValueError, match=r"^SparseLinear.backward: x must have the leading axes of dy, \(9,\)"):
        torch.ops.gossamer.linear_value_gradient(dy, x[:3], mask, 360, "auto", torch.float32)
    with pytest.raises(ValueError, match=r"^SparseLinear.backward: dy must have the shape \[\.\.\., 30\]"):
        torch.ops.gossamer.linear_input_gradient(x, layer.values, mask, 40, "auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_is_refused_with_the_reason() -> None:
    _, layer = _pair(30, 40)
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):
        layer.to("cuda")  # torch's own error, before any use
    for name in ("linear", "linear_input_gradient", "linear_value_gradient"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"gossamer::{name}", "CUDA")
    with pytest.raises(RuntimeError, match=r"^SparseLinear: x and the layer must be on the CPU, got CUDA: "):
        _operators._refuse()


def test_without_torch_the_error_says_what_is_missing() -> None:
    code = "import sys; sys.modules['torch'] = None\nimport gossamer\nimport gossamer.torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: gossamer.torch: needs PyTorch")
