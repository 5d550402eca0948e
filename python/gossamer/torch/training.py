# SPDX-License-Identifier: Apache-2.0
"""Gradual pruning inside a training loop: weights, gradients and optimizer state follow the masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gossamer.masks import Mask
from gossamer.pruning import apply_mask
from gossamer.regrowth import Regrowth, difference
from gossamer.schedules import OneShot, Schedule
from gossamer.scoring import Method
from gossamer.sparsifier import Sparsifier as Rule
from gossamer.sparsifier import SparsifierEvent, SparsifierState
from gossamer.stats import Stats
from gossamer.torch._tensors import Globs, Tensor, changed
from gossamer.torch.pruning import gradients_of, weights_of

_STEP = "Sparsifier.step"
_LOAD = "Sparsifier.load_state_dict"


class Sparsifier:
    """:class:`gossamer.Sparsifier` attached to a module and its optimizer.

    Call :meth:`step` after each ``optimizer.step()``, before the gradients are cleared. It asks the schedule for the
    masks of this step and then sets to 0, wherever a weight is pruned: the weight, its gradient, and its entries in
    every tensor of the optimizer's state that has the weight's shape (momentum, Adam's moments), so that no momentum
    ever moves a pruned weight. A weight that is grown starts at 0 with state 0. Where a ``torch.amp.GradScaler`` skips
    ``optimizer.step()`` (its scale falls), leave out :meth:`step` too: those gradients are infinite or NaN.

    In a ``torch.distributed`` job every rank calls ``step`` and all have the same masks: rank 0 scores and broadcasts
    them, at updates only, n / 8 bytes for n weights. (With DistributedDataParallel the gradients of rank 0 are already
    everybody's mean; a sum of scores over ranks would cost 32 times the traffic and could still differ in a last bit.)
    Where rank 0 fails, all ranks raise.

    Parameters
    ----------
    module : its Linear and Conv weights are pruned, as by :func:`prune_`.
    optimizer : the ``torch.optim.Optimizer`` that trains them.
    method, sparsity, pattern, group, schedule, regrow, initial, seed, nan : as in :class:`gossamer.Sparsifier`;
        ``sparsity`` may be a mapping by names of weights. Methods and regrowth that read gradients take ``.grad``.
    include, exclude : as in :func:`prune_`.
    stats : by names of weights, or a function without arguments that returns them, asked at each update.
    process_group : of ``torch.distributed``; None is the default group where one has been initialised.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As :class:`gossamer.Sparsifier`; no layer is asked for; ``optimizer`` is none.

    Notes
    -----
    State of other shapes (Adafactor's factors, L-BFGS' history, master copies kept elsewhere) is not reset.

    Examples
    --------
    >>> import torch, gossamer as gs, gossamer.torch as gt
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> sparsifier = gt.Sparsifier(model, optimizer, "magnitude", 0.9, schedule=gs.Cubic(0, 40, every=10))
    >>> for _ in range(50):
    ...     loss = model(torch.rand(8, 20)).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     event = sparsifier.step()
    ...     optimizer.zero_grad()
    >>> int((model[0].weight != 0).sum()), int((optimizer.state[model[0].weight]["exp_avg"] != 0).sum()) <= 60
    (60, True)
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        method: Method = "magnitude",
        sparsity: float | Mapping[str, float] = 0.9,
        *,
        pattern: str = "element",
        group: str | None = None,
        schedule: Schedule | Callable[[int], float] = OneShot(),  # noqa: B008  (frozen)
        regrow: Regrowth | None = None,
        initial: float = 0.0,
        seed: int | None = None,
        nan: str = "raise",
        include: Globs = None,
        exclude: Globs = None,
        stats: Mapping[str, Stats] | Callable[[], Mapping[str, Stats]] | None = None,
        process_group: Any = None,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"Sparsifier: optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        self.rule = Rule(
            method, sparsity, pattern=pattern, group=group, schedule=schedule, regrow=regrow, initial=initial,
            seed=seed, nan=nan,
        )  # fmt: skip
        self.optimizer = optimizer
        self.steps = 0  #: how often :meth:`step` has been called: the step of the next call
        self._parameters = weights_of(module, include, exclude, "Sparsifier")
        self._stats, self._group = stats, process_group
        self._state = self.rule.init(self._weights())

    @property
    def masks(self) -> dict[str, Mask]:
        """What is kept, by names of weights."""
        return dict(self._state.mask)

    @property
    def sparsity(self) -> float:
        """The share of zeros of all weights together."""
        total = sum(mask.size for mask in self.masks.values())
        return 1 - sum(mask.nnz for mask in self.masks.values()) / total if total else 0.0

    def step(self) -> SparsifierEvent:
        """Updates the masks where the schedule says so, and applies them. What was dropped and grown is returned.

        TypeError and ValueError where the method lacks what it needs (a gradient that is None); then no mask and no
        step count has changed.
        """
        self._apply(self._state, weights_only=True)  # what the optimizer moved is not to be scored
        event = SparsifierEvent()
        if self.rule.due(self._state, self.steps) is not None:
            self._state, event = self._update()
        self._apply(self._state, event.grown)
        self.steps += 1
        return event

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain numbers, which ``torch.load(weights_only=True)`` takes."""
        return {
            "steps": self.steps,
            "updated": self._state.updated,
            "sparsity": self._state.sparsity,
            "masks": {name: torch.from_numpy(mask.packed.copy()) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from what :meth:`state_dict` gave; the masks are applied to weights and optimizer state at once.

        Raises TypeError and ValueError for anything else; then nothing has changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"{_LOAD}: state_dict must be a mapping, got {type(state_dict).__name__}")
        missing = {"steps", "updated", "sparsity", "masks"} - set(state_dict)
        if missing:
            raise ValueError(f"{_LOAD}: state_dict must have the entry {min(missing)!r}, got none")
        steps, updated, sparsity, packed = (state_dict[key] for key in ("steps", "updated", "sparsity", "masks"))
        for name, number, least in (("steps", steps, 0), ("updated", updated, -1)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{_LOAD}: {name} must be an int of at least {least}, got {number!r}")
        shares = sparsity.values() if isinstance(sparsity, Mapping) else [sparsity]
        if not all(isinstance(share, float | int) and 0 <= share <= 1 for share in shares):
            raise ValueError(f"{_LOAD}: sparsity must be in [0, 1], got {sparsity!r}")
        if not isinstance(packed, Mapping) or list(packed) != list(self._parameters):
            raise ValueError(
                f"{_LOAD}: masks must be those of {list(self._parameters)}, "
                f"got {list(packed) if isinstance(packed, Mapping) else type(packed).__name__}"
            )
        masks = {name: Mask(tuple(self._parameters[name].shape), bits) for name, bits in packed.items()}
        plain = dict(sparsity) if isinstance(sparsity, Mapping) else sparsity
        self._state, self.steps = SparsifierState(masks, updated, plain), steps
        self._apply(self._state)

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._parameters.items()}

    def _update(self) -> tuple[SparsifierState, SparsifierEvent]:
        if not (dist.is_available() and dist.is_initialized()):
            return self._decide()
        result, failure = None, None
        if dist.get_rank(self._group) == 0:
            try:
                result = self._decide()
            except Exception as error:
                failure = error
        sent: list[Any] = [
            (self.steps, None if result is None else result[0], None if failure is None else repr(failure))
        ]
        dist.broadcast_object_list(
            sent, src=dist.get_global_rank(self._group or dist.group.WORLD, 0), group=self._group
        )
        if failure is not None:
            raise failure
        if result is not None:
            return result
        steps, state, reason = sent[0]
        if reason is not None:
            raise RuntimeError(f"{_STEP}: rank 0 failed, and with it all ranks: {reason}")
        shapes = {name: mask.shape for name, mask in self.masks.items()}
        theirs = {name: mask.shape for name, mask in state.mask.items()}
        if steps != self.steps or shapes != theirs:
            raise ValueError(
                f"{_STEP}: every rank must be at the same step with the same weights, got step {self.steps} with "
                f"{shapes} here, {steps} with {theirs} at rank 0"
            )
        event = SparsifierEvent(True, difference(self.masks, state.mask), difference(state.mask, self.masks))
        return state, event

    def _decide(self) -> tuple[SparsifierState, SparsifierEvent]:
        grads: dict[str, Tensor] | None = None
        if self.rule.needs_grads:
            grads = gradients_of(self._parameters, self.rule.method, _STEP, "(not yet cleared)")
        stats = self._stats() if callable(self._stats) else self._stats
        return self.rule.step(self._state, self._weights(), grads, self.steps, stats=stats)

    def _apply(
        self, state: SparsifierState, grown: Mapping[str, Mask] | None = None, *, weights_only: bool = False
    ) -> None:
        for name, parameter in self._parameters.items():
            mask = state.mask[name]
            if mask.nnz == mask.size:
                continue
            old = mask & ~grown[name] if grown and name in grown else mask  # what was there before and still is
            touched = [(parameter.detach(), old)]
            if not weights_only:
                if parameter.grad is not None:
                    touched.append((parameter.grad.detach(), mask))
                touched += [(tensor, old) for tensor in self._moments(parameter)]
            for tensor, kept in touched:
                apply_mask(tensor, kept, out=tensor)
            changed(parameter, *(tensor for tensor, _ in touched[1:]))

    def _moments(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        for value in self.optimizer.state.get(parameter, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and value.is_floating_point():
                yield value.detach()

    def __repr__(self) -> str:
        return f"Sparsifier({self.rule!r}, steps={self.steps}, sparsity={self.sparsity:.4f})"
