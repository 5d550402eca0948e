# SPDX-License-Identifier: Apache-2.0
"""SparseLinear under torch.compile and torch.export, and trained beside a masked dense network."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs

torch = pytest.importorskip("torch")
gt = pytest.importorskip("gossamer.torch")

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
BACKENDS = ("aot_eager", pytest.param("inductor", marks=needs_compiler))
# What torch's own compiler warns of in its own code.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Block(torch.nn.Module):
    """A transformer block whose linears are all modules that are called."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 4 * width)
        self.down = torch.nn.Linear(4 * width, width)

    def forward(self, x: Any) -> Any:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norms[0](x)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norms[1](x))))


def _transformer() -> Any:
    return torch.nn.Sequential(torch.nn.Embedding(32, 64), Block(64, 4), Block(64, 4), torch.nn.Linear(64, 32))


def _lenet() -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def _sparse(model: Any) -> Any:
    """Every Linear becomes a SparseLinear."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is torch.nn.Linear:
                setattr(parent, name, gt.SparseLinear.from_dense(child))
    return model


def _prune(model: Any, sparsity: float = 0.9) -> dict[str, gs.Mask]:
    weights = {n: m.weight.data for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    return gs.prune(weights, sparsity=sparsity, out=weights)[1]


def _losses(model: Any, optimizer: Any, batches: Any, after: Any = lambda: None) -> list[float]:
    losses = []
    for x, y in batches:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, -2), y.flatten())
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


def _digits() -> Any:
    """50 batches of ten images under noise."""
    random = torch.Generator().manual_seed(0)
    images = torch.randn(10, 784, generator=random)
    labels = [torch.randint(10, (64,), generator=random) for _ in range(50)]
    return [(images[y] + torch.randn(64, 784, generator=random), y) for y in labels]


def _tokens() -> Any:
    """50 batches of sequences that count on."""
    random = torch.Generator().manual_seed(0)
    rows = [(torch.randint(32, (8, 1), generator=random) + torch.arange(17)) % 32 for _ in range(50)]
    return [(t[:, :-1], t[:, 1:]) for t in rows]


@pytest.mark.parametrize("build", [_lenet, _transformer])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_stays_with_the_masked_dense_network(build: Any, optimizer: str) -> None:
    make = {
        "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, 3e-3),
    }[optimizer]
    torch.manual_seed(7)
    dense = build()
    masks = _prune(dense)
    torch.manual_seed(7)
    sparse = build()
    _prune(sparse)
    _sparse(sparse)
    assert sum(isinstance(m, gt.SparseLinear) for m in sparse.modules()) == len(masks)

    def mask() -> None:
        for name, kept in masks.items():
            weight = dense.get_submodule(name).weight.data
            gs.apply_mask(weight, kept, out=weight)

    batches = _digits() if build is _lenet else _tokens()
    expected = _losses(dense, make(dense.parameters()), batches, mask)
    losses = _losses(sparse, make(sparse.parameters()), batches)
    assert expected[-1] < 0.9 * expected[0]  # it learns
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_networks_train_as_eager_ones(backend: str) -> None:
    torch._dynamo.reset()
    runs = []
    for compiled in (False, True):
        torch.manual_seed(3)
        model = _lenet()
        _prune(model)
        _sparse(model)
        called = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        runs.append(_losses(called, optimizer, _digits()[:10]))
        with torch.no_grad():
            x = _digits()[0][0]
            torch.testing.assert_close(called(x), model(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)


@needs_compiler
def test_a_compiled_optimizer_is_noticed() -> None:
    torch._dynamo.reset()
    layer = gt.SparseLinear(16, 8, format="panel")
    optimizer = torch.optim.SGD(layer.parameters(), torch.tensor(0.1))
    x = torch.randn(5, 16)
    step = torch.compile(lambda: optimizer.step())
    for _ in range(3):
        before = layer(x)
        before.square().sum().backward()
        step()
        torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        assert not torch.equal(layer(x), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_other_batch_sizes_need_no_break(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(3)
    model = _transformer()
    _prune(model)
    _sparse(model)
    called = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for batch in (3, 4, 6):
        tokens = torch.randint(32, (batch, 16))
        torch.testing.assert_close(called(tokens), model(tokens), rtol=1e-4, atol=1e-4)


def test_an_exported_network_gives_the_same_after_saving(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = _lenet()
    _prune(model)
    _sparse(model).eval()
    x = torch.randn(4, 784)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count("gossamer.linear.default") == 3
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        for batch in (1, 4, 9):
            x = torch.randn(batch, 784)
            assert torch.equal(program.module()(x), model(x))
            assert torch.equal(loaded(x), model(x))


def test_other_transforms() -> None:
    layer = gt.SparseLinear(6, 5, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(layer, x[0])
    torch.testing.assert_close(jacobian, layer.weight)
    exported = torch.fx.symbolic_trace(torch.nn.Sequential(layer, torch.nn.ReLU()))
    torch.testing.assert_close(exported(x), torch.relu(layer(x)))
    from torch.utils.checkpoint import checkpoint

    leaf = x.clone().requires_grad_()
    checkpoint(layer, leaf, use_reentrant=False).sum().backward()
    torch.testing.assert_close(leaf.grad, layer.weight.detach().sum(0).expand(3, 6))
