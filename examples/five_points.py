# SPDX-License-Identifier: Apache-2.0
"""Linear regression on five points, and the whole cycle on two parameters.

The points are x = 1..5, y = x - 1; the model is y = w x + b. Adam brings it near; then each round of *optimisation by
importance* takes the gradient of each parameter and its magnitude as the efficiency (how much a change there moves the
loss), adjusts the more efficient parameter by a fixed step against its gradient, validates before and after, and
accepts the new state or restores the old one. After a rejection the step is halved. Run it:

    python examples/five_points.py
"""

import numpy as np

import gossamer as gs
from gossamer.training import importance, losses, model, optimizers, updating
from gossamer.training.evaluation import evaluate

x = np.arange(1.0, 6.0).reshape(5, 1)
y = x - 1.0
x_validation = np.array([[1.5], [2.5], [3.5], [4.5]])
y_validation = x_validation - 1.0


def validate(params: model.Params) -> float:
    """The mean squared error on points that training never sees."""
    return evaluate(params, x_validation, y_validation, loss=losses.mean_squared_error).loss


def main() -> None:
    """Train, then adjust by importance; print every loss."""
    params = model.initialize([1, 1], np.random.default_rng(0), scheme="glorot", dtype=np.float64)
    adam = optimizers.Adam(rate=0.05)
    print("Adam")
    for step in range(41):
        values = model.activations(params, x)
        loss, gradient = losses.mean_squared_error(values[-1], y)
        if step % 10 == 0:
            print(f"  step {step:2d}  loss {loss:.6f}")
        if step < 40:
            adam.step(params, model.backward(params, values, gradient))

    keeper = updating.Keeper(params, validate=validate, budget=gs.Budget(max_drop=0, metric="loss"), compare="last")
    print("Adjust by importance")
    rate = 0.05
    for number in range(1, 10):
        current = keeper.params
        grads = importance.mean_gradients(current, x, y, loss=losses.mean_squared_error)
        efficiency = gs.score(current, grads, method="gradient")
        # sign(0) = 0: what the mask drops from the gradient is not adjusted.
        chosen = gs.apply_mask(grads, gs.topk_mask(efficiency, nnz=1, group="global"))
        decision = keeper.consider(updating.adjust(current, chosen, rate, rule="sign"))
        print(
            f"  round {number}  efficiency w {efficiency['layer1.weight'].item():.4f} "
            f"b {efficiency['layer1.bias'].item():.4f}  rate {rate:.5f}  "
            f"loss {decision.before:.6f} -> {decision.after:.6f}  {'accepted' if decision.accepted else 'rejected'}"
        )
        if not decision.accepted:
            rate /= 2

    found = keeper.params
    print(f"w {found['layer1.weight'].item():.4f}, b {found['layer1.bias'].item():.4f}, ", end="")
    print(f"validation loss {keeper.baseline:.6f} -> {keeper.value:.6f}")


if __name__ == "__main__":
    main()
