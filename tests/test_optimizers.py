# SPDX-License-Identifier: Apache-2.0
"""Optimizers: against hand-written formulas, against torch where it is installed, and masked."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer.training.optimizers import SGD, Adam, AdamW, GradientDescent

STEPS = 25
MAKERS: dict[str, Any] = {
    "descent": lambda: GradientDescent(0.1),
    "descent+decay": lambda: GradientDescent(0.1, weight_decay=0.01),
    "sgd": lambda: SGD(0.1, momentum=0.9),
    "nesterov": lambda: SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.01),
    "adam+decay": lambda: Adam(0.01, beta1=0.8, beta2=0.99, epsilon=1e-6, weight_decay=0.1),
    "adamw": lambda: AdamW(0.01, weight_decay=0.1),
}


def formula(name: str, w: Any, gradients: list[Any]) -> Any:
    """The textbook in float64, one parameter array."""
    w, m, v = w.copy(), np.zeros_like(w), np.zeros_like(w)
    decay = {"descent+decay": 0.01, "nesterov": 0.01, "adam+decay": 0.1}.get(name, 0.0)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * w
        if name.startswith("descent"):
            w = w - 0.1 * g
        elif name in ("sgd", "nesterov"):
            m = 0.9 * m + g
            w = w - 0.1 * (g + 0.9 * m if name == "nesterov" else m)
        else:
            rate, b1, b2, e = (0.01, 0.8, 0.99, 1e-6) if name == "adam+decay" else (0.01, 0.9, 0.999, 1e-8)
            w = w * (1 - rate * 0.1) if name == "adamw" else w
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g * g
            w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + e)
    return w


def torch_optimizer(name: str, parameter: Any) -> Any:
    torch = pytest.importorskip("torch")
    return {
        "descent": lambda: torch.optim.SGD([parameter], 0.1),
        "descent+decay": lambda: torch.optim.SGD([parameter], 0.1, weight_decay=0.01),
        "sgd": lambda: torch.optim.SGD([parameter], 0.1, momentum=0.9),
        "nesterov": lambda: torch.optim.SGD([parameter], 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        "adam": lambda: torch.optim.Adam([parameter], 0.01),
        "adam+decay": lambda: torch.optim.Adam([parameter], 0.01, (0.8, 0.99), 1e-6, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW([parameter], 0.01, weight_decay=0.1),
    }[name]()


def gradients(rng: np.random.Generator, shape: tuple[int, ...] = (5, 7)) -> list[Any]:
    return [rng.standard_normal(shape) for _ in range(STEPS)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", MAKERS)
def test_equals_the_formula(name: str, dtype: Any, rng: np.random.Generator) -> None:
    w, steps = rng.standard_normal((5, 7)), gradients(rng)
    params, optimizer = {"w": w.astype(dtype)}, MAKERS[name]()
    for gradient in steps:
        optimizer.step(params, {"w": gradient.astype(dtype)})
    assert params["w"].dtype == dtype
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    np.testing.assert_allclose(params["w"], formula(name, w, steps), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", MAKERS)
def test_equals_torch(name: str, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    w, steps = rng.standard_normal((5, 7)), gradients(rng)
    parameter = torch.nn.Parameter(torch.tensor(w))
    theirs, ours, params = torch_optimizer(name, parameter), MAKERS[name](), {"w": w.copy()}
    for gradient in steps:
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        ours.step(params, {"w": gradient})
    np.testing.assert_allclose(params["w"], parameter.detach().numpy(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", MAKERS)
def test_a_pruned_weight_never_revives(name: str, rng: np.random.Generator) -> None:
    """Momentum is built up first, then the mask comes: weight and state are zero at once and stay so."""
    params = {"w": rng.standard_normal((5, 7)), "b": rng.standard_normal(5)}
    optimizer, keep = MAKERS[name](), rng.random((5, 7)) < 0.5
    masks = {"w": gs.Mask.from_dense(keep)}
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient, "b": gradient[:, 0]})
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient, "b": gradient[:, 0]}, masks)
        assert not params["w"][~keep].any()
        assert params["w"][keep].all()
        for buffer in optimizer.state["w"].values():
            assert not buffer[~keep].any()


@pytest.mark.parametrize("name", MAKERS)
def test_a_regrown_weight_starts_without_a_past(name: str, rng: np.random.Generator) -> None:
    """Pruned, trained, regrown: with a zero gradient it does not move, whatever its gradients were while pruned."""
    params, optimizer = {"w": rng.standard_normal((5, 7))}, MAKERS[name]()
    none = gs.Mask.from_dense(np.zeros((5, 7), bool))
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient})
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient}, {"w": none})
    optimizer.step(params, {"w": np.zeros((5, 7))}, {"w": ~none})
    assert not params["w"].any()


@pytest.mark.parametrize("name", MAKERS)
def test_kept_weights_move_as_without_a_mask(name: str, rng: np.random.Generator) -> None:
    w, keep = rng.standard_normal((5, 7)), rng.random((5, 7)) < 0.5
    free, masked = {"w": w.copy()}, {"w": w.copy()}
    one, two, masks = MAKERS[name](), MAKERS[name](), {"w": gs.Mask.from_dense(keep)}
    for gradient in gradients(rng):
        one.step(free, {"w": gradient})
        two.step(masked, {"w": gradient}, masks)
    assert free["w"][keep].tobytes() == masked["w"][keep].tobytes()


def test_gradients_of_pruned_weights_may_be_anything(rng: np.random.Generator) -> None:
    keep = rng.random((5, 7)) < 0.5
    masks, params, optimizer = {"w": gs.Mask.from_dense(keep)}, {"w": rng.standard_normal((5, 7))}, Adam()
    for gradient in gradients(rng):
        gradient[~keep] = np.nan
        before = gradient.copy()
        optimizer.step(params, {"w": gradient}, masks)
        np.testing.assert_array_equal(gradient, before)
    assert np.isfinite(params["w"]).all()


def test_a_mask_of_equal_bits_changes_nothing(rng: np.random.Generator) -> None:
    keep, w = rng.random((5, 7)) < 0.5, rng.standard_normal((5, 7))
    one, two = {"w": w.copy()}, {"w": w.copy()}
    first, second, same = SGD(0.1), SGD(0.1), gs.Mask.from_dense(keep)
    for gradient in gradients(rng):
        first.step(one, {"w": gradient}, {"w": same})
        second.step(two, {"w": gradient}, {"w": gs.Mask.from_dense(keep)})
    assert one["w"].tobytes() == two["w"].tobytes()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copy", "pickle"])
@pytest.mark.parametrize("name", MAKERS)
def test_copies_go_on_alike(name: str, clone: Any, rng: np.random.Generator) -> None:
    masks = {"w": gs.Mask.from_dense(rng.random((5, 7)) < 0.5)}
    params, optimizer = {"w": rng.standard_normal((5, 7))}, MAKERS[name]()
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient}, masks)
    other, theirs = clone(optimizer), {"w": params["w"].copy()}
    for gradient in gradients(rng):
        optimizer.step(params, {"w": gradient}, masks)
        other.step(theirs, {"w": gradient}, masks)
    assert params["w"].tobytes() == theirs["w"].tobytes()


def test_reset_forgets(rng: np.random.Generator) -> None:
    used, w = Adam(0.01), rng.standard_normal((5, 7))
    used.step({"w": w.copy()}, {"w": w})
    used.reset()
    one, two = {"w": w.copy()}, {"w": w.copy()}
    used.step(one, {"w": w})
    Adam(0.01).step(two, {"w": w})
    assert one["w"].tobytes() == two["w"].tobytes()


def test_the_rate_may_change(rng: np.random.Generator) -> None:
    params, optimizer = {"w": np.zeros((1, 2))}, GradientDescent(0.1)
    optimizer.step(params, {"w": np.ones((1, 2))})
    optimizer.rate = 0.01
    optimizer.step(params, {"w": np.ones((1, 2))})
    np.testing.assert_allclose(params["w"], -0.11)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradientDescent(-1.0), "GradientDescent: rate must be finite and not negative, got -1.0"),
        (lambda: SGD(float("nan")), "SGD: rate must be finite and not negative, got nan"),
        (lambda: SGD(0.1, momentum=1.0), r"SGD: momentum must be in \[0, 1\), got 1.0"),
        (lambda: Adam(beta1=1.5), r"Adam: beta1 must be in \[0, 1\), got 1.5"),
        (lambda: Adam(beta2=-0.1), r"Adam: beta2 must be in \[0, 1\), got -0.1"),
        (lambda: Adam(epsilon=0.0), "Adam: epsilon must be positive, got 0.0"),
        (lambda: Adam(weight_decay=-1.0), "Adam: weight_decay must be finite and not negative, got -1.0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_names() -> None:
    w, mask = np.zeros((1, 2)), gs.Mask.from_dense(np.ones((1, 2), bool))
    with pytest.raises(ValueError, match=r"Adam.step: grads must name params, got \['v'\]"):
        Adam().step({"w": w}, {"v": w})
    with pytest.raises(ValueError, match=r"Adam.step: masks must name params, got \['v'\]"):
        Adam().step({"w": w}, {"w": w}, {"v": mask})
