# SPDX-License-Identifier: Apache-2.0
"""Training on the kept weights alone, against masked dense training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.training import loop, losses, model, optimizers
from gossamer.training.steps import SparseTraining
from small_network import assert_same_state, digits, network, trained_network

OPTIMIZERS: dict[str, Any] = {
    "descent": lambda: optimizers.GradientDescent(0.05, weight_decay=0.01),
    "sgd": lambda: optimizers.SGD(0.05, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: optimizers.Adam(1e-3, weight_decay=0.01, epsilon=1e-4),
    "adamw": lambda: optimizers.AdamW(1e-3, epsilon=1e-4),
}
NAMES = ("layer1.weight", "layer1.bias", "layer2.weight", "layer2.bias", "layer3.weight", "layer3.bias")


def problem(dtype: Any = np.float32) -> tuple[dict[str, Any], dict[str, gs.Mask], Any, Any]:
    """A network with biases, masks of 90 % for its first two layers, a batch and its labels."""
    rng = np.random.default_rng(5)
    params = model.initialize([60, 97, 45, 10], rng, dtype=dtype)
    for bias in model.biases(params).values():
        bias[...] = 0.1 * rng.standard_normal(bias.shape)
    weights = model.weights(params)
    del weights["layer3.weight"]
    masks = dict(gs.topk_mask({name: np.abs(w) for name, w in weights.items()}, sparsity=0.9))
    model.apply_masks(params, masks)
    return params, masks, rng.standard_normal((37, 60)).astype(dtype), rng.integers(0, 10, 37)


def dense_steps(params: Any, optimizer: Any, x: Any, y: Any, masks: Any, count: int) -> list[float]:
    values = []
    for _ in range(count):
        outputs = model.activations(params, x)
        value, gradient = losses.softmax_cross_entropy(outputs[-1], y)
        optimizer.step(params, model.backward(params, outputs, gradient), masks)
        values.append(value)
    return values


def assert_close(params: Any, expected: Any, tolerance: float) -> None:
    for name, array in expected.items():
        assert np.abs(params[name] - array).max() <= tolerance * np.abs(array).max(), name


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("format", ["auto", "csr", "panel", "dense"])
def test_fifty_steps_are_those_of_masked_dense_training(optimizer: str, format: str) -> None:
    params, masks, x, y = problem()
    training = SparseTraining(params, masks, OPTIMIZERS[optimizer](), format=format)
    assert set(training.matrices) == (set() if format == "dense" else set(masks))
    before = model.copy(params)
    sparse = [training.step(x, y) for _ in range(50)]
    assert_same_state(params, before)
    dense = dense_steps(params, OPTIMIZERS[optimizer](), x, y, masks, 50)
    assert sparse[-1] < 0.9 * sparse[0]
    np.testing.assert_allclose(sparse, dense, rtol=1e-4)
    result = {name: np.full_like(array, np.nan) for name, array in params.items()}
    training.write(result)
    assert_close(result, params, 1e-4)
    np.testing.assert_allclose(training.network()(x), model.forward(params, x), atol=1e-4)


def test_state_is_of_kept_positions() -> None:
    params, masks, x, y = problem()
    training = SparseTraining(params, masks, optimizers.Adam())
    training.step(x, y)
    for name, mask in masks.items():
        assert training.params[name].shape == (mask.nnz,)
        assert {array.shape for array in training.optimizer.state[name].values()} == {(mask.nnz,)}


def test_float64_is_trained_in_float64() -> None:
    params, masks, x, y = problem(np.float64)
    training = SparseTraining(params, masks, optimizers.SGD(0.05))
    for _ in range(20):
        training.step(x, y)
    dense_steps(params, optimizers.SGD(0.05), x, y, masks, 20)
    result = model.copy(params)
    training.write(result)
    assert_close(result, params, 1e-12)


def test_gradients_are_those_of_the_dense_network_where_it_is_kept() -> None:
    params, masks, x, y = problem(np.float64)
    training = SparseTraining(params, masks, optimizers.SGD(0.05))
    values = model.activations(params, x)
    gradient = losses.softmax_cross_entropy(values[-1], y)[1]
    grads, expected = training.gradients(training.activations(x), gradient), model.backward(params, values, gradient)
    for name in NAMES:
        kept = masks[name].to_dense() if name in masks else ...
        np.testing.assert_allclose(grads[name], expected[name][kept], atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_steps_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    before = gs.get_num_threads()
    results = []
    params, masks, x, y = problem()
    for count in (1, threads):
        gs.set_num_threads(count)
        training = SparseTraining({**params}, masks, optimizers.SGD(0.05))
        values = training.activations(x)
        results.append(training.gradients(values, losses.softmax_cross_entropy(values[-1], y)[1]))
    gs.set_num_threads(before)
    assert_same_state(*results)


def test_an_optimizer_goes_through_dense_and_sparse_phases() -> None:
    """Dense steps, then sparse ones, then dense ones under the masks, with one optimizer."""
    params, masks, x, y = problem()
    expected, one, other = model.copy(params), optimizers.Adam(1e-3), optimizers.Adam(1e-3)
    dense_steps(expected, one, x, y, None, 5)
    model.apply_masks(expected, masks)
    dense_steps(expected, one, x, y, masks, 10)
    dense_steps(params, other, x, y, None, 5)
    training = SparseTraining(params, masks, other)
    for _ in range(5):
        training.step(x, y)
    training.write(params)
    training.release()
    dense_steps(params, other, x, y, masks, 5)
    assert_close(params, expected, 1e-3)


@pytest.mark.parametrize("patience", [None, 3])
def test_the_loop_trains_on_kept_weights(patience: int | None) -> None:
    data, results, seen = digits(), [], []
    for sparse in (False, True):
        params = trained_network()
        _, masks = gs.prune(model.weights(params), sparsity=0.9)
        optimizer = optimizers.SGD(0.05)
        options: dict[str, Any] = {"validation": (data.x_validation, data.y_validation), "patience": patience}
        epochs = loop.fit(params, optimizer, data.x, data.y, epochs=4, masks=masks, sparse=sparse, **options)
        results.append(params)
        seen.append([epoch.validation_loss for epoch in epochs])
        assert {a.shape for a in optimizer.state["layer1.weight"].values()} == {params["layer1.weight"].shape}
    assert_close(results[1], results[0], 1e-4)
    np.testing.assert_allclose(seen[1], seen[0], rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"masks": {}, "on_step": lambda *_: None}])
def test_the_loop_needs_masks_that_stay(options: Any) -> None:
    data = digits()
    with pytest.raises(ValueError, match="train: sparse must come with masks and without on_step"):
        loop.fit(network(), optimizers.SGD(0.1), data.x, data.y, sparse=True, **options)


def test_bad_arguments() -> None:
    params, masks, _, _ = problem()
    with pytest.raises(ValueError, match=r"SparseTraining: masks must name weights of params, got .'other'."):
        SparseTraining(params, {"other": masks["layer1.weight"]}, optimizers.SGD(0.1))
    with pytest.raises(TypeError, match=r"SparseTraining: optimizer must be one of gossamer.training's, got 0.1"):
        SparseTraining(params, masks, 0.1)  # type: ignore[arg-type]
