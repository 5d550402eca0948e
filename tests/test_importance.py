# SPDX-License-Identifier: Apache-2.0
"""Statistics over many batches and the scores from them; optimisation by importance with accept or reject."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.training import evaluation, importance, losses, model, updating
from small_network import assert_same_state, digits, grads, network, trained_network


def whole_gradient(params: Any, x: Any, y: Any) -> Any:
    values = model.activations(params, x)
    return model.backward(params, values, losses.softmax_cross_entropy(values[-1], y)[1])


def wide() -> tuple[Any, Any, Any]:
    """A float64 network and data, so that only the order of summation can differ."""
    return network(dtype=np.float64), digits().x.astype(np.float64), digits().y


@pytest.mark.parametrize("batch_size", [1000, 128, 7])
def test_mean_gradients_do_not_depend_on_the_batches(batch_size: int) -> None:
    params, x, y = wide()
    mean = importance.mean_gradients(params, x, y, batch_size=batch_size)
    for name, gradient in whole_gradient(params, x, y).items():
        np.testing.assert_allclose(mean[name], gradient, atol=1e-14)


def test_gradient_mean_weights_batches_by_their_size() -> None:
    mean = importance.GradientMean()
    mean.update({"w": np.array([1.0])}, 3)
    mean.update({"w": np.array([5.0])}, 1)
    assert mean.values()["w"] == 2.0
    mean.reset()
    with pytest.raises(ValueError, match=r"GradientMean\.values: update must come first"):
        mean.values()


def test_gradient_mean_with_decay() -> None:
    mean = importance.GradientMean(decay=0.5)
    for value in (8.0, 4.0, 2.0):
        mean.update({"w": np.array([value])})
    assert mean.values()["w"] == (8 / 4 + 4 / 2 + 2) / (1 / 4 + 1 / 2 + 1)


def test_gradient_mean_keeps_no_array_and_keeps_the_dtype() -> None:
    mean, g = importance.GradientMean(), np.ones(3, np.float32)
    mean.update({"w": g})
    g[...] = 7
    assert mean.values()["w"].tolist() == [1, 1, 1]
    assert mean.values()["w"].dtype == np.float32


def test_input_norms_are_those_of_each_layers_inputs() -> None:
    params, x, _ = wide()
    norms = importance.input_norms(params, x, batch_size=100)
    inputs = model.activations(params, x)
    for name, values in zip(("layer1.weight", "layer2.weight"), inputs, strict=False):
        np.testing.assert_allclose(norms[name].values, np.linalg.norm(values, axis=0), rtol=1e-12)


def test_movement_sums_over_batches() -> None:
    params, x, y = wide()
    stats = importance.movement(params, x, y, batch_size=250)
    total = sum(whole_gradient(params, x[i : i + 250], y[i : i + 250])["layer1.weight"] for i in range(0, 1000, 250))
    np.testing.assert_allclose(stats["layer1.weight"].values, -params["layer1.weight"] * total, atol=1e-13)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("magnitude", lambda w, g, n: np.abs(w)),
        ("gradient", lambda w, g, n: np.abs(g)),
        ("taylor", lambda w, g, n: np.abs(w * g)),
        ("wanda", lambda w, g, n: np.abs(w) * n),
        (lambda w, g, stats: w * g + stats.values, lambda w, g, n: w * g + n),
    ],
)
def test_importance_by_method(method: Any, expected: Any) -> None:
    params, x, y = wide()
    scores = importance.importance(params, x, y, method=method, batch_size=128)
    gradient, inputs = whole_gradient(params, x, y), model.activations(params, x)
    assert list(scores) == ["layer1.weight", "layer2.weight"]
    for name, values in zip(scores, inputs, strict=False):
        np.testing.assert_allclose(
            scores[name], expected(params[name], gradient[name], np.linalg.norm(values, axis=0)), rtol=1e-9, atol=1e-13
        )


def test_random_importance_needs_only_a_seed() -> None:
    params, x, y = wide()
    one, two = (importance.importance(params, x, y, method="random", seed=seed) for seed in (1, 1))
    assert_same_state(one, two)
    assert importance.collect("random", params, x, y) == importance.Statistics()


def test_importance_finds_the_weights_that_matter() -> None:
    """At 70 %, one shot and without further training, Taylor scores keep far more accuracy than chance."""
    data, accuracy = digits(), {}
    for method in ("taylor", "random"):
        params = trained_network()
        scores = importance.importance(params, data.x, data.y, method=method, seed=0)
        pruned, _ = updating.prune(params, scores, 0.7, group="global")
        accuracy[method] = evaluation.evaluate(pruned, data.x_validation, data.y_validation).accuracy
    assert accuracy["taylor"] > accuracy["random"] + 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x, y: importance.mean_gradients(p, x[:0], y[:0]), "mean_gradients: y must have as many rows as x"),
        (lambda p, x, y: importance.movement(p, x, y[:-1]), "movement: y must .* got 999 and 1000"),
        (lambda p, x, y: importance.input_norms(p, x[:0]), "input_norms: "),
        (lambda p, x, y: importance.GradientMean(decay=1.0), r"GradientMean: decay must be in \[0, 1\), got 1.0"),
        (lambda p, x, y: importance.GradientMean().update({}, 0), "GradientMean.update: count must be at least 1"),
    ],
)
def test_bad_arguments(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(*wide())


# ----------------------------------------------------------------------------- optimisation by importance and updating


def validate(params: Any) -> float:
    return evaluation.evaluate(params, digits().x_validation, digits().y_validation).loss


def test_prune_by_top_k() -> None:
    params = trained_network()
    before = model.copy(params)
    scores = importance.importance(params, digits().x, digits().y)
    pruned, masks = updating.prune(params, scores, 0.8)
    assert_same_state(params, before)
    for name, mask in masks.items():
        assert mask == gs.topk_mask(scores[name], sparsity=0.8)
        assert pruned[name].tobytes() == gs.apply_mask(params[name], mask).tobytes()
    assert pruned["layer1.bias"].tobytes() == params["layer1.bias"].tobytes()
    assert pruned["layer1.bias"] is not params["layer1.bias"]


@pytest.mark.parametrize("rule", ["sign", "scale"])
def test_adjust_respects_masks_and_leaves_the_rest(rule: Any) -> None:
    params = trained_network()
    scores = importance.importance(params, digits().x, digits().y)
    pruned, masks = updating.prune(params, scores, 0.8)
    before = model.copy(pruned)
    changed = updating.adjust(pruned, scores, 0.01, rule=rule, masks=masks)
    assert_same_state(pruned, before)
    for name, mask in masks.items():
        keep = mask.to_dense()
        expected = gs.adjust(pruned[name], scores[name], 0.01, rule=rule)
        assert changed[name][keep].tobytes() == expected[keep].tobytes()
        assert not changed[name][~keep].any()
    assert changed["layer2.bias"].tobytes() == pruned["layer2.bias"].tobytes()


def test_adjusting_by_sign_lowers_the_loss() -> None:
    params = network()
    before = evaluation.evaluate(params, digits().x, digits().y).loss
    changed = updating.adjust(params, grads(params), 1e-3, rule="sign")
    assert evaluation.evaluate(changed, digits().x, digits().y).loss < before


def test_keeper_accepts_and_rejects() -> None:
    params = network()
    keeper = updating.Keeper(params, validate=validate, budget=gs.Budget(0.0, "loss"))
    better = updating.adjust(params, grads(params), 1e-3)
    decision = keeper.consider(better)
    assert decision.accepted
    assert decision.after < decision.before == keeper.baseline
    assert_same_state(keeper.params, better)
    worse = updating.adjust(better, grads(better), -0.1)
    decision = keeper.consider(worse)
    assert not decision.accepted
    assert decision.before == keeper.value < decision.after
    assert_same_state(keeper.params, better)


def test_keeper_states_are_copies() -> None:
    params = trained_network()
    reference = model.copy(params)

    def spoils(given: Any) -> float:
        loss = validate(given)
        given["layer1.weight"][...] = 0
        return loss

    keeper = updating.Keeper(params, validate=spoils, budget=gs.Budget(0.0, "loss"))
    params["layer1.weight"][...] = 0
    keeper.params["layer1.weight"][...] = 0
    assert_same_state(keeper.params, reference)


def test_many_small_losses_do_not_add_up() -> None:
    values = iter([0.90, 0.897, 0.894])
    keeper = updating.Keeper(network(), validate=lambda params: next(values), budget=gs.Budget(0.005))
    assert keeper.consider(network(1)).accepted
    assert not keeper.consider(network(2)).accepted
    values = iter([0.90, 0.897, 0.894])
    keeper = updating.Keeper(network(), validate=lambda params: next(values), budget=gs.Budget(0.005), compare="last")
    assert keeper.consider(network(1)).accepted
    assert keeper.consider(network(2)).accepted


def test_keeper_rejects_nan_and_bad_arguments() -> None:
    values = iter([1.0, math.nan])
    keeper = updating.Keeper(network(), validate=lambda params: next(values), budget=gs.Budget(9.0, "loss"))
    assert not keeper.consider(network(1)).accepted
    with pytest.raises(ValueError, match="Keeper: compare must be 'baseline' or 'last', got 'first'"):
        updating.Keeper(network(), validate=validate, compare="first")  # type: ignore[arg-type]


def test_save_and_load_bit_for_bit(tmp_path: Path) -> None:
    params = trained_network()
    pruned, masks = updating.prune(params, importance.importance(params, digits().x, digits().y), 0.8)
    keeper = updating.Keeper(params, validate=validate, budget=gs.Budget(9.0, "loss"))
    assert keeper.consider(pruned, masks).accepted
    keeper.save(tmp_path / "model.safetensors")
    found, found_masks = updating.load(tmp_path / "model.safetensors")
    assert_same_state({name: found[name] for name in pruned}, pruned)
    assert found.keys() == pruned.keys()
    assert found_masks == masks
