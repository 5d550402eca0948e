# SPDX-License-Identifier: Apache-2.0
"""The MLP: initialisation, forward and backward, sparse layers, and the training loop around it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.training import evaluation, gradual, loop, losses, model, optimizers
from small_network import assert_same_state, digits, network, trained_network


@pytest.mark.parametrize(("scheme", "variance"), [("he", 2 / 400), ("glorot", 2 / 700)])
def test_initial_variance(scheme: Any, variance: float) -> None:
    params = model.initialize([400, 300], np.random.default_rng(1), scheme=scheme)
    weight, bias = params["layer1.weight"], params["layer1.bias"]
    assert weight.shape == (300, 400)
    assert weight.dtype == bias.dtype == np.float32
    assert weight.var() == pytest.approx(variance, rel=0.03)
    assert abs(weight.mean()) < 4 * np.sqrt(variance / weight.size)
    assert not bias.any()
    if scheme == "glorot":
        assert np.abs(weight).max() <= np.sqrt(6 / 700)


def test_initialisation_is_seeded() -> None:
    assert_same_state(network(3), network(3))
    assert network(3)["layer1.weight"].tobytes() != network(4)["layer1.weight"].tobytes()


@pytest.mark.parametrize(
    ("sizes", "options", "error", "message"),
    [
        ([5], {}, ValueError, "initialize: sizes must be two or more positive integers, got .5."),
        ([5, 0], {}, ValueError, "initialize: sizes"),
        ([5, 2], {"scheme": "xavier"}, ValueError, "initialize: scheme must be 'he' or 'glorot', got 'xavier'"),
        ([5, 2], {"dtype": np.int32}, TypeError, "initialize: dtype must be float32 or float64, got int32"),
    ],
)
def test_bad_initialisation(sizes: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.initialize(sizes, np.random.default_rng(0), **options)


def test_weights_and_biases_are_told_apart() -> None:
    params = network()
    assert list(model.weights(params)) == ["layer1.weight", "layer2.weight"]
    assert list(model.biases(params)) == ["layer1.bias", "layer2.bias"]
    assert model.weights(params)["layer1.weight"] is params["layer1.weight"]


def test_forward_is_its_formula(rng: np.random.Generator) -> None:
    params = model.initialize([6, 5, 4, 3], rng, dtype=np.float64)
    for bias in model.biases(params).values():
        bias[...] = rng.standard_normal(bias.shape)
    x = rng.standard_normal((8, 6))
    y = x
    for layer in (1, 2, 3):
        y = y @ params[f"layer{layer}.weight"].T + params[f"layer{layer}.bias"]
        y = np.maximum(y, 0) if layer < 3 else y
    np.testing.assert_allclose(model.forward(params, x), y, rtol=1e-14)


@pytest.mark.parametrize("loss", [losses.mean_squared_error, losses.softmax_cross_entropy])
def test_backward_against_finite_differences(loss: Any, rng: np.random.Generator) -> None:
    params = model.initialize([5, 4, 3], rng, dtype=np.float64)
    params["layer1.bias"][...] = rng.standard_normal(4)
    x = rng.standard_normal((6, 5))
    y = rng.standard_normal((6, 3)) if loss is losses.mean_squared_error else rng.integers(0, 3, 6)
    values = model.activations(params, x)
    grads = model.backward(params, values, loss(values[-1], y)[1])
    for name, array in params.items():
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + 1e-6
            ahead = loss(model.forward(params, x), y)[0]
            array[index] = kept - 1e-6
            behind = loss(model.forward(params, x), y)[0]
            array[index] = kept
            assert grads[name][index] == pytest.approx((ahead - behind) / 2e-6, abs=1e-7)


def test_backward_reuses_out(rng: np.random.Generator) -> None:
    params, x = network(), digits().x[:32]
    values = model.activations(params, x)
    gradient = losses.softmax_cross_entropy(values[-1], digits().y[:32])[1]
    fresh = model.backward(params, values, gradient)
    out = {name: np.full_like(value, np.nan) for name, value in params.items()}
    assert model.backward(params, values, gradient, out=out) is out
    assert_same_state(fresh, out)


@pytest.mark.parametrize("x", [np.zeros((2, 63), np.float32), np.zeros(64, np.float32)])
def test_wrong_input_shape(x: Any) -> None:
    with pytest.raises(ValueError, match=r"forward: x must be \[batch, 64\], got"):
        model.forward(network(), x)


def test_incomplete_params() -> None:
    params = network()
    del params["layer1.bias"]
    with pytest.raises(ValueError, match=r"layers: params must hold layer1\.weight"):
        model.layers(params)


@pytest.mark.parametrize("format", ["auto", "csr", "dense"])
def test_sparse_network_predicts_as_the_masked_dense_one(format: str) -> None:
    params = trained_network()
    pruned, masks = gs.prune(model.weights(params), sparsity=0.9)
    params.update(pruned)
    sparse = model.to_sparse(params, masks, format)
    x = digits().x_test
    outputs = sparse.predict(x)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, model.forward(params, x), atol=1e-5)
    np.testing.assert_array_equal(outputs.argmax(axis=1), model.forward(params, x).argmax(axis=1))
    assert sparse.nnz == sum(mask.nnz for mask in masks.values())


def test_sparse_network_with_a_dense_layer() -> None:
    params = trained_network()
    pruned, mask = gs.prune(params["layer1.weight"], sparsity=0.8)
    params["layer1.weight"] = pruned
    sparse = model.to_sparse(params, {"layer1.weight": mask})
    assert sparse.nnz == mask.nnz + params["layer2.weight"].size
    np.testing.assert_allclose(sparse(digits().x_test), model.forward(params, digits().x_test), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ the loop


def fit(params: Any, **options: Any) -> list[loop.Epoch]:
    data = digits()
    chosen = {"epochs": 3, "batch_size": 64, **options}
    return loop.fit(params, optimizers.Adam(5e-3), data.x, data.y, **chosen)


def test_minibatches_cover_everything_once(rng: np.random.Generator) -> None:
    batches = list(loop.minibatches(103, 10, rng))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert sorted(np.concatenate(batches)) == list(range(103))


def test_training_learns_and_is_repeatable() -> None:
    first, second, other = network(), network(), network()
    epochs = fit(first)
    assert epochs == fit(second)
    assert_same_state(first, second)
    fit(other, seed=1)
    assert other["layer1.weight"].tobytes() != first["layer1.weight"].tobytes()
    assert epochs[-1].train_loss < 0.5 * epochs[0].train_loss
    assert [epoch.step for epoch in epochs] == [16, 32, 48]
    assert epochs[0].validation_loss is None


def test_masked_training_keeps_pruned_weights_at_zero() -> None:
    params = trained_network()
    _, masks = gs.prune(model.weights(params), sparsity=0.9)
    fit(params, masks=masks)
    for name, mask in masks.items():
        assert not params[name][~mask.to_dense()].any()
        assert params[name][mask.to_dense()].all()


def test_early_stopping_restores_the_best_epoch() -> None:
    data, params = digits(), network()
    seen: list[tuple[float, Any]] = []
    optimizer = optimizers.SGD(0.3, momentum=0.9)
    validation = (data.x_validation, data.y_validation)
    for epoch in loop.train(params, optimizer, data.x, data.y, validation=validation, epochs=200, patience=2):
        assert epoch.validation_loss is not None
        seen.append((epoch.validation_loss, model.copy(params)))
    assert len(seen) < 200
    values = [value for value, _ in seen]
    assert values.index(min(values)) == len(values) - 3
    assert_same_state(params, seen[-3][1])


def test_min_steps_delays_stopping() -> None:
    data = digits()
    epochs = fit(network(), epochs=40, patience=1, min_steps=200, validation=(data.x_validation, data.y_validation))
    assert epochs[-1].step >= 200


def test_masks_may_change_within_training() -> None:
    params = trained_network()
    sparsifier = gs.Sparsifier("taylor", 0.8, schedule=gs.Cubic(start=5, end=40, every=5))
    state = sparsifier.init(model.weights(params))

    def on_step(step: int, params: Any, grads: Any) -> Any:
        nonlocal state
        state, _ = sparsifier.step(state, model.weights(params), model.weights(grads), step)
        return state.mask

    fit(params, on_step=on_step)
    for name, mask in state.mask.items():
        assert mask.sparsity == pytest.approx(0.8, abs=0.002)
        assert not params[name][~mask.to_dense()].any()


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_gradual_pruning_as_a_hook(method: str) -> None:
    params = trained_network()
    schedule = gs.Cubic(start=5, end=40, every=5)
    pruning = gradual.GradualPruning(gs.Sparsifier(method, 0.8, group="global", schedule=schedule), params)
    fit(params, on_step=pruning)
    assert [step for step, _ in pruning.events] == [10, 15, 20, 25, 30, 35, 40]
    assert evaluation.sparsity(params) == pytest.approx(0.8, abs=1e-3)
    for name, mask in pruning.masks.items():
        assert not params[name][~mask.to_dense()].any()
    assert evaluation.evaluate(params, digits().x_validation, digits().y_validation).accuracy > 0.85


@pytest.mark.parametrize("regrow", [gs.RigL(0.3, 60), gs.SET(0.3, seed=1)])
def test_regrowth_as_a_hook(regrow: Any) -> None:
    """Sparse from the first step: pruned weights are zero, grown ones start there, and the number stays."""
    params = network()
    targets = gs.allocate(model.weights(params), 0.8, method="erk")
    sparsifier = gs.Sparsifier("magnitude", targets, schedule=gs.Constant(every=20, end=60), regrow=regrow)
    pruning = gradual.GradualPruning(sparsifier, params, decay=0.0)
    optimizer, kept = optimizers.Adam(5e-3), []

    def on_step(step: int, params: dict[str, Any], grads: dict[str, Any]) -> Any:
        masks = pruning(step, params, grads)
        for mask in pruning.events[-1][1].grown.values() if masks else ():
            assert not params["layer1.weight"][mask.to_dense()].any()
            break  # layer 1 comes first
        kept.append([mask.nnz for mask in pruning.masks.values()])
        return masks

    loop.fit(params, optimizer, digits().x, digits().y, epochs=10, batch_size=64, on_step=on_step)
    assert pruning.events[0][0] == 1
    assert any(event.grown for _, event in pruning.events)
    assert all(counts == kept[0] for counts in kept)
    for name, mask in pruning.masks.items():
        gone = ~mask.to_dense()
        assert not params[name][gone].any()
        assert not any(array[gone].any() for array in optimizer.state[name].values())
    assert evaluation.evaluate(params, digits().x_validation, digits().y_validation).accuracy > 0.75


@pytest.mark.parametrize("method", ["grasp", "synflow"])
def test_gradual_pruning_has_loss_gradients_only(method: str) -> None:
    with pytest.raises(ValueError, match=f"GradualPruning: method must not be '{method}', whose grads are no"):
        gradual.GradualPruning(gs.Sparsifier(method, 0.8), network())


def test_augmentation_sees_every_batch() -> None:
    sizes: list[int] = []

    def augment(batch: Any, generator: np.random.Generator) -> Any:
        sizes.append(len(batch))
        return batch + np.float32(0.01) * generator.standard_normal(batch.shape, dtype=np.float32)

    fit(network(), epochs=1, augment=augment)
    assert sum(sizes) == len(digits().x)


def test_divergence_is_an_error() -> None:
    data, params = digits(), network(dtype=np.float64)
    params["layer1.weight"][0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="train: loss must stay finite, got nan at step 1"):
        loop.fit(params, optimizers.SGD(0.1), data.x.astype(np.float64), data.y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "train: epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "train: batch_size must be at least 1, got 0"),
        ({"patience": 0}, "train: patience must be at least 1, got 0"),
        ({"patience": 2}, "train: validation must be given where patience is, got None"),
    ],
)
def test_bad_loop_arguments(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(network(), **options)


def test_rows_must_match() -> None:
    with pytest.raises(ValueError, match="train: y must have as many rows as x, and one at least, got 3 and 2"):
        loop.fit(network(), optimizers.Adam(), np.zeros((2, 64), np.float32), np.zeros(3, int))


def test_regression_with_mean_squared_error(rng: np.random.Generator) -> None:
    x = rng.standard_normal((200, 3))
    y = x @ np.array([[1.0], [-2.0], [0.5]]) + 0.25
    params = model.initialize([3, 1], rng, dtype=np.float64)
    run = partial(loop.fit, loss=losses.mean_squared_error, epochs=60, batch_size=20, validation=(x, y))
    epochs = run(params, optimizers.GradientDescent(0.1), x, y)
    assert epochs[-1].validation_loss == pytest.approx(0, abs=1e-10)
    assert epochs[-1].validation_accuracy is None
    np.testing.assert_allclose(params["layer1.weight"], [[1.0, -2.0, 0.5]], atol=1e-4)
