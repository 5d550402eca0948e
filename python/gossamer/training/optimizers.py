# SPDX-License-Identifier: Apache-2.0
"""Gradient descent, SGD with momentum, Adam and AdamW, all of them masked.

``step(params, grads, masks)`` changes ``params`` in place. A weight that a mask prunes is set to 0 and stays there: its
gradient is dropped before it reaches momentum, and its momentum (Adam: both moments) is set to zero when the mask
first comes, so it neither revives nor, if a later mask regrows it, starts with a stale push.
The formulas are those of ``torch.optim`` (weight decay is added to the gradient: L2, for all parameters; in
AdamW it shrinks them instead).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import gossamer as gs
from gossamer.training._namespace import namespace

Array: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
Masks: TypeAlias = Mapping[str, gs.Mask]


class Optimizer(Protocol):
    """What the training loop needs: a learning rate that may be changed at any time, and ``step``."""

    rate: float

    def step(self, params: Params, grads: Params, masks: Masks | None = None) -> None:
        """Change ``params`` in place by one step along ``grads``; ``masks`` names the tensors that are pruned."""

    def reset(self) -> None:
        """Forget all state (momentum, moments, step count)."""


def _check(optimizer: str, rate: float, **shares: float) -> None:
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"{optimizer}: rate must be finite and not negative, got {rate}")
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ValueError(f"{optimizer}: {name} must be in [0, 1), got {value}")


class Masked:
    """The part all optimizers share: masking, weight decay, buffers that are zeroed where a new mask prunes."""

    slots: tuple[str, ...] = ()
    decoupled = False  # whether weight decay leaves the gradient alone

    def __init__(self, rate: float, weight_decay: float) -> None:
        if not (math.isfinite(weight_decay) and weight_decay >= 0):
            raise ValueError(f"{type(self).__name__}: weight_decay must be finite and not negative, got {weight_decay}")
        self.rate, self.weight_decay = rate, weight_decay
        self.reset()

    def reset(self) -> None:
        """Forget all state."""
        self.state: dict[str, dict[str, Array]] = {}
        self.steps = 0
        self._masks: dict[str, gs.Mask | None] = {}
        self._scratch: dict[str, Array] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_scratch": {}}

    def step(self, params: Params, grads: Params, masks: Masks | None = None) -> None:
        """One step in place; see the module's text. ValueError if a mask or gradient has no parameter of its name."""
        masks = masks or {}
        for kind, names in (("grads", grads), ("masks", masks)):
            if unknown := set(names) - set(params):
                raise ValueError(f"{type(self).__name__}.step: {kind} must name params, got {sorted(unknown)}")
        self.steps += 1
        for name, gradient in grads.items():
            weight, mask = params[name], masks.get(name)
            self._prepare(name, weight, mask)
            scratch = self._scratch[name]
            if mask is None:
                scratch[...] = gradient
            else:
                gs.apply_mask(gradient, mask, out=scratch)
            if self.weight_decay and self.decoupled:
                weight *= 1 - self.rate * self.weight_decay
            elif self.weight_decay:
                # One more temporary, only where it is asked for.
                scratch += self.weight_decay * weight
            self._update(weight, scratch, self.state[name])

    def carry_over(self, name: str, convert: Callable[[Array], Array], mask: gs.Mask | None) -> None:
        """Go on with ``name`` in another shape, under ``mask``: its buffers, if any, become ``convert(buffer)``."""
        for slot, array in self.state.get(name, {}).items():
            self.state[name][slot] = convert(array)
        self._scratch.pop(name, None)
        self._masks[name] = mask

    def _prepare(self, name: str, weight: Array, mask: gs.Mask | None) -> None:
        """Create the buffers of ``name``; where the mask is a new one, prune weight and buffers by it."""
        xp = namespace(weight)
        if name not in self.state:
            self.state[name] = {slot: xp.zeros_like(weight) for slot in self.slots}
        if name not in self._scratch:
            self._scratch[name] = xp.empty_like(weight)
        # Once pruned, all stays zero without further work: masked gradients never touch weight or buffers there.
        if mask is not None and self._masks.get(name) is not mask:
            for array in (weight, *self.state[name].values()):
                gs.apply_mask(array, mask, out=array)
        self._masks[name] = mask

    def _update(self, weight: Array, gradient: Array, state: dict[str, Array]) -> None:
        """Change ``weight`` and ``state`` in place; ``gradient`` may be overwritten."""
        raise NotImplementedError


class GradientDescent(Masked):
    """w ← w - rate · (g + weight_decay · w)."""

    def __init__(self, rate: float, *, weight_decay: float = 0.0) -> None:
        _check("GradientDescent", rate)
        super().__init__(rate, weight_decay)

    def _update(self, weight: Array, gradient: Array, state: dict[str, Array]) -> None:
        gradient *= self.rate
        weight -= gradient


class SGD(Masked):
    """v ← momentum · v + g;  w ← w - rate · v, or with Nesterov w ← w - rate · (g + momentum · v)."""

    slots = ("momentum",)

    def __init__(
        self, rate: float, *, momentum: float = 0.9, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        _check("SGD", rate, momentum=momentum)
        self.momentum, self.nesterov = momentum, nesterov
        super().__init__(rate, weight_decay)

    def _update(self, weight: Array, gradient: Array, state: dict[str, Array]) -> None:
        velocity = state["momentum"]
        velocity *= self.momentum
        velocity += gradient
        if self.nesterov:
            gradient += self.momentum * velocity
        else:
            gradient[...] = velocity
        gradient *= self.rate
        weight -= gradient


class Adam(Masked):
    """Adam with bias correction (Kingma 2014, 1412.6980).

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  w ← w - rate · m̂ / (√v̂ + ε), m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ).
    """

    slots = ("mean", "square")

    def __init__(
        self,
        rate: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        _check(type(self).__name__, rate, beta1=beta1, beta2=beta2)
        if not epsilon > 0:
            raise ValueError(f"{type(self).__name__}: epsilon must be positive, got {epsilon}")
        self.beta1, self.beta2, self.epsilon = beta1, beta2, epsilon
        super().__init__(rate, weight_decay)

    def _update(self, weight: Array, gradient: Array, state: dict[str, Array]) -> None:
        xp = namespace(weight)
        mean, square = state["mean"], state["square"]
        # In place throughout: at 266 k weights fresh temporaries cost as much as the arithmetic.
        gradient *= 1 - self.beta1
        mean *= self.beta1
        mean += gradient
        xp.square(gradient, out=gradient)
        gradient *= (1 - self.beta2) / (1 - self.beta1) ** 2
        square *= self.beta2
        square += gradient
        denominator = xp.sqrt(square, out=gradient)
        denominator *= 1 / math.sqrt(1 - self.beta2**self.steps)
        denominator += self.epsilon
        change = xp.divide(mean, denominator, out=denominator)
        change *= self.rate / (1 - self.beta1**self.steps)
        weight -= change


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov 2017, 1711.05101): w ← w · (1 - rate · weight_decay) comes first."""

    decoupled = True

    def __init__(
        self,
        rate: float = 1e-3,
        *,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(rate, beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=weight_decay)
