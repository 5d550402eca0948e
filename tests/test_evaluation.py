# SPDX-License-Identifier: Apache-2.0
"""Evaluation: loss and accuracy, the published FLOP and byte figures, latency."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.training import evaluation, losses, model
from small_network import digits, network, trained_network


def zeros(*sizes: int) -> dict[str, Any]:
    return model.initialize(sizes, np.random.default_rng(0))


def masks_of(params: Any, sparsity: float) -> Any:
    return gs.prune(model.weights(params), sparsity=sparsity)[1]


@pytest.mark.parametrize(
    ("sizes", "published_bytes", "published_kiloflops"),
    [((245, 160, 55, 10), 195_100, 97.1), ((266, 88, 33, 10), 107_092, 53.3), ((97, 71, 33, 10), 38_696, 19.1)],
    ids=["SBP", "L0", "VIB"],
)
def test_published_figures(sizes: Any, published_bytes: int, published_kiloflops: float) -> None:
    """RigL, Table 2 (1911.11134): the compact dense networks that structured pruning of LeNet-300-100 left."""
    params = zeros(*sizes)
    assert evaluation.stored_bytes(params) == published_bytes
    assert round(evaluation.flops(params) / 1000, 1) == published_kiloflops


def test_a_sparse_layer_pays_for_its_bitmask() -> None:
    params = zeros(784, 300, 100, 10)
    masks = masks_of(params, 0.95)
    nnz = [mask.nnz for mask in masks.values()]
    assert nnz == [11760, 1500, 50]
    assert evaluation.flops(params, masks) == 2 * 13310
    assert evaluation.stored_bytes(params, masks) == 4 * (13310 + 410) + 29400 + 3750 + 125
    first_only = {"layer1.weight": masks["layer1.weight"]}
    assert evaluation.flops(params, first_only) == 2 * (11760 + 31000)
    assert evaluation.stored_bytes(params, first_only) == 4 * (11760 + 31000 + 410) + 29400
    full = {"layer1.weight": gs.Mask.from_dense(np.ones((300, 784), bool))}
    assert evaluation.stored_bytes(params, full) == evaluation.stored_bytes(params)


def test_held_bytes_are_those_of_the_matrices() -> None:
    params = trained_network()
    pruned, masks = gs.prune(model.weights(params), sparsity=0.9)
    params.update(pruned)
    sparse = model.to_sparse(params, masks, "csr")
    biases = sum(array.nbytes for array in model.biases(params).values())
    assert sparse.nbytes == sum(matrix.nbytes for matrix in sparse.matrices) + biases
    dense = sum(array.nbytes for array in params.values())
    assert 4 * sparse.nnz < sparse.nbytes < dense


def test_sparsity_is_counted_on_the_arrays() -> None:
    params = trained_network()
    assert evaluation.sparsity(params) == 0
    params.update(gs.prune(model.weights(params), sparsity=0.75)[0])
    assert evaluation.sparsity(params) == pytest.approx(0.75, abs=1e-3)
    assert evaluation.densities(params) == pytest.approx({"layer1.weight": 0.25, "layer2.weight": 0.25}, abs=2e-3)


@pytest.mark.parametrize("batch_size", [2048, 100, 7])
def test_loss_and_accuracy(batch_size: int) -> None:
    params, data = trained_network(), digits()
    found = evaluation.evaluate(params, data.x_test, data.y_test, batch_size=batch_size)
    logits = model.forward(params, data.x_test)
    assert found.accuracy == (logits.argmax(axis=1) == data.y_test).mean()
    assert found.loss == pytest.approx(losses.softmax_cross_entropy(logits, data.y_test)[0], rel=1e-6)
    assert found.accuracy > 0.9


def test_callables_and_regression() -> None:
    x = np.arange(6.0).reshape(6, 1)
    found = evaluation.evaluate(lambda batch: 2 * batch, x, 2 * x + 1, loss=losses.mean_squared_error, batch_size=4)
    assert found == evaluation.Evaluation(loss=1.0, accuracy=None)


def test_sparse_network_evaluates_like_the_masked_dense_one() -> None:
    params, data = trained_network(), digits()
    pruned, masks = gs.prune(model.weights(params), sparsity=0.6)
    params.update(pruned)
    sparse = evaluation.evaluate(model.to_sparse(params, masks), data.x_test, data.y_test)
    dense = evaluation.evaluate(params, data.x_test, data.y_test)
    assert sparse.accuracy == dense.accuracy
    assert sparse.loss == pytest.approx(dense.loss, rel=1e-5)


def test_latency_is_a_median_taken_in_turns() -> None:
    calls: list[str] = []

    def slow(x: Any) -> Any:
        calls.append("dense")
        time.sleep(0.003 if len(calls) != 3 else 0.1)
        return x

    def fast(x: Any) -> Any:
        calls.append("sparse")
        return x

    found = evaluation.latency(slow, fast, np.zeros(1), repeats=5, warmup=1)
    assert calls == ["dense", "sparse"] * 6
    assert 0.003 <= found.dense < 0.1
    assert found.speedup == found.dense / found.sparse > 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluation.evaluate(network(), digits().x[:0], digits().y[:0]), "evaluate: y must .* got 0 and 0"),
        (lambda: evaluation.evaluate(network(), digits().x, digits().y[:-1]), "evaluate: y must .* got 999 and 1000"),
        (lambda: evaluation.latency(abs, abs, 1, repeats=0), "latency: repeats must be at least 1"),
        (
            lambda: evaluation.flops(network(), {"layer9.weight": None}),
            r"flops: masks must name weights, got \['layer9",
        ),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
