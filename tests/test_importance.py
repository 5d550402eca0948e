# SPDX-License-Identifier: Apache-2.0
"""Statistics over many batches and the scores from them; optimisation by importance with accept or reject."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.scoring import METHODS
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


def per_sample_gradients(params: Any, x: Any, y: Any) -> list[Any]:
    return [whole_gradient(params, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]


@pytest.mark.parametrize("batch_size", [1000, 17])
def test_squared_gradients_are_those_of_the_samples(batch_size: int) -> None:
    params, x, y = wide()
    x, y = x[:60], y[:60]
    found = importance.squared_gradients(params, x, y, batch_size=batch_size)
    samples = per_sample_gradients(params, x, y)
    assert list(found) == ["layer1.weight", "layer2.weight"]
    for name, stats in found.items():
        expected = gs.Stats("grad2")
        expected.update(np.stack([sample[name] for sample in samples]))
        assert (stats.kind, stats.count) == ("grad2", 60)
        np.testing.assert_allclose(stats.values, expected.values, rtol=1e-10, atol=1e-20)
        mean = np.mean([sample[name] for sample in samples], axis=0)
        assert (stats.values >= mean**2 - 1e-15).all()
        assert not np.allclose(stats.values, mean**2)


def test_input_hessians_are_those_of_each_layers_inputs() -> None:
    params, x, _ = wide()
    found = importance.input_hessians(params, x, batch_size=100)
    for (_, stats), values in zip(found.items(), model.activations(params, x), strict=False):
        np.testing.assert_allclose(stats.values, values.T @ values, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1000, 128])
def test_hessian_gradient_is_the_derivative_of_the_gradient(batch_size: int) -> None:
    """Against a difference of gradients along g, in a network whose kinks are far away."""
    params, x, y = wide()
    x, y = x[:300], y[:300]
    for name, bias in model.biases(params).items():
        bias[...] = 3.0 if name == "layer1.bias" else 0.1 * np.arange(bias.size)
    v = model.weights(whole_gradient(params, x, y))
    shifted = [params | {name: params[name] + sign * 1e-5 * v[name] for name in v} for sign in (1.0, -1.0)]
    after, before = (whole_gradient(one, x, y) for one in shifted)
    found = importance.hessian_gradient(params, x, y, batch_size=batch_size)
    assert list(found) == list(v)
    for name, product in found.items():
        expected = (after[name] - before[name]) / 2e-5
        np.testing.assert_allclose(product, expected, atol=1e-7 * np.abs(expected).max())


def test_hessian_gradient_of_float32_is_computed_in_float64() -> None:
    params, x, y = network(), digits().x[:200], digits().y[:200]
    wider = {name: value.astype(np.float64) for name, value in params.items()}
    found, expected = (importance.hessian_gradient(p, x.astype(p["layer1.bias"].dtype), y) for p in (params, wider))
    for name, product in found.items():
        assert product.dtype == np.float64
        assert product.tobytes() == expected[name].tobytes()


def test_synaptic_flow_by_hand() -> None:
    """R = sum of |W2| |W1| over all paths; a derivative is the flow in times the flow out, with the weight's sign."""
    params = {
        "layer1.weight": np.array([[1.0, -2.0], [0.0, 3.0]], np.float32),
        "layer1.bias": np.array([7.0, 7.0], np.float32),
        "layer2.weight": np.array([[-4.0, 5.0]], np.float32),
        "layer2.bias": np.array([7.0], np.float32),
    }
    found = importance.synaptic_flow(params)
    assert found["layer1.weight"].tolist() == [[4, -4], [0, 5]]
    assert found["layer2.weight"].tolist() == [[-3, 3]]
    for name, flow in found.items():
        assert flow.dtype == np.float64
        assert (params[name] * flow >= 0).all()
        assert (params[name] * flow).sum() == 4 * 3 + 5 * 3  # every layer carries all of R


def test_synaptic_flow_does_not_overflow() -> None:
    params = {}
    for k in range(1, 41):
        params |= {f"layer{k}.weight": np.full((20, 20), 10, np.float32), f"layer{k}.bias": np.zeros(20, np.float32)}
    found = importance.synaptic_flow(params)
    assert all(np.isfinite(flow).all() for flow in found.values())
    assert found["layer1.weight"].max() > float(np.finfo(np.float32).max)


NEEDS = {"": (False, None), "seed": (False, None), "grads": (True, None)} | {
    kind: (False, kind) for kind in ("norm", "movement", "grad2", "hessian")
}


@pytest.mark.parametrize("method", METHODS)
def test_what_is_collected_is_enough_for_every_method(method: str) -> None:
    data = digits()
    params = trained_network()
    found = importance.collect(method, params, data.x[:200], data.y[:200], batch_size=100)
    grads, kind = NEEDS[METHODS[method][0]]
    assert (found.grads is not None) == grads
    assert {stats.kind for stats in (found.stats or {}).values()} == ({kind} if kind else set())
    scores = importance.importance(params, data.x[:200], data.y[:200], method=method, batch_size=100, seed=0)
    assert list(scores) == ["layer1.weight", "layer2.weight"]
    for name, score in scores.items():
        assert score.shape == params[name].shape
        assert np.isfinite(score).all()
        if method == "synflow":
            assert (score >= 0).all()


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
        (lambda p, x, y: importance.input_hessians(p, x[:0]), "input_hessians: "),
        (lambda p, x, y: importance.squared_gradients(p, x, y[:-1]), "squared_gradients: y must .* got 999 and 1000"),
        (lambda p, x, y: importance.hessian_gradient(p, x, y[:-1]), "hessian_gradient: y must .* got 999 and 1000"),
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
