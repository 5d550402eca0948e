# SPDX-License-Identifier: Apache-2.0
"""Training steps on the kept weights alone: sparse forward and backward passes, updates of ``[nnz]`` values.

The same numbers as masked dense training up to the order of summation, without its dense products: the forward pass
is ``gossamer.linear``, the gradient by a layer's input a product with the transpose, that by its weights ``gossamer.
sddmm``, and optimizers hold and change state for kept positions only. Structures, packs and transposes are made once;
a step moves values through them. For phases in which the masks do not change; numpy arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np

import gossamer as gs
from gossamer.layers import value_gradient
from gossamer.training import model
from gossamer.training.losses import Loss, softmax_cross_entropy
from gossamer.training.optimizers import Masked, Optimizer

Array: TypeAlias = Any
Masks: TypeAlias = Mapping[str, gs.Mask]


class SparseTraining:
    """A network whose masked layers hold, multiply and update their kept weights only.

    Parameters
    ----------
    params, masks : as in ``loop.train``; both are copied from, never changed (see ``write``). A layer without a mask
        stays dense, and so does a masked one whose ``format`` comes out as "dense".
    optimizer : any of ``optimizers``. What it has gathered in dense steps for the layers that are sparse here is taken
        over, and given back by ``release``; in between its state is of kept positions.
    loss : as in ``loop.train``.

    Attributes
    ----------
    params : like the dict given, but ``[nnz]`` values in row-major order for every sparse layer.
    matrices : by name, the SparseMatrix of every sparse layer as of the last update.

    Raises ValueError where ``params`` is no network, or a mask names none of its weights, TypeError for an optimizer of
    another kind.
    """

    def __init__(
        self,
        params: model.Params,
        masks: Masks,
        optimizer: Optimizer,
        *,
        loss: Loss = softmax_cross_entropy,
        format: str = "auto",
    ) -> None:
        self._names = model.layers(params)
        if unknown := set(masks) - set(model.weights(params)):
            raise ValueError(f"SparseTraining: masks must name weights of params, got {sorted(unknown)}")
        if not isinstance(optimizer, Masked):
            raise TypeError(f"SparseTraining: optimizer must be one of gossamer.training's, got {optimizer!r}")
        self.optimizer, self.loss = optimizer, loss
        self.params, self.matrices = model.copy(params), dict[str, gs.SparseMatrix]()
        self._masks = dict(masks)
        for name, mask in masks.items():
            matrix = gs.SparseMatrix.from_dense(params[name], mask, format=format)
            if matrix.format != "dense":
                self.matrices[name], self.params[name] = matrix, np.array(matrix.values)
        self._dense_masks = {name: mask for name, mask in masks.items() if name not in self.matrices}
        model.apply_masks(self.params, self._dense_masks)
        for name, mask in masks.items():
            if name in self.matrices:
                optimizer.carry_over(name, partial(_kept, mask=mask), None)

    def step(self, x: Array, y: Array) -> float:
        """Forward, backward and update for a minibatch; the loss before the update. ``gradients`` comes between."""
        values = self.activations(x)
        loss, gradient = self.loss(values[-1], y)
        self.update(self.gradients(values, gradient))
        return loss

    def activations(self, x: Array) -> list[Array]:
        """As ``model.activations``: the input of each layer, then the output of the last."""
        values = [x]
        for layer in self._names:
            bias, last = self.params[f"{layer}.bias"], layer == self._names[-1]
            matrix = self.matrices.get(f"{layer}.weight")
            if matrix is not None:
                z = gs.linear(values[-1], matrix, bias=bias, activation=None if last else "relu")
            else:
                z = values[-1] @ self.params[f"{layer}.weight"].T
                z += bias
                if not last:
                    np.maximum(z, 0, out=z)
            values.append(z)
        return values

    def gradients(self, values: Sequence[Array], gradient: Array) -> dict[str, Array]:
        """As ``model.backward``, by the entries of ``self.params``: ``[nnz]`` for sparse layers."""
        grads: dict[str, Array] = {}
        for name, d, inputs in model.deltas(self.params, values, gradient, self._input_gradient):
            matrix = self.matrices.get(name)
            grads[name] = d.T @ inputs if matrix is None else value_gradient(d, inputs, matrix)
            grads[name.removesuffix("weight") + "bias"] = d.sum(axis=0)
        return grads

    def _input_gradient(self, name: str, d: Array) -> Array:
        matrix = self.matrices.get(name)
        return d @ self.params[name] if matrix is None else gs.linear(d, matrix.T)

    def update(self, grads: Mapping[str, Array]) -> None:
        """A step of the optimizer on ``self.params``; every pack of a matrix takes the new values when next needed."""
        self.optimizer.step(self.params, grads, self._dense_masks)
        for name, matrix in self.matrices.items():
            self.matrices[name] = matrix.with_values(self.params[name])

    def write(self, params: dict[str, Array]) -> None:
        """The present state into a dict of dense arrays, in place; pruned weights are 0."""
        for name, array in self.params.items():
            params[name][...] = self.matrices[name].to_dense() if name in self.matrices else array

    def release(self) -> None:
        """Give the optimizer back to dense steps under the same masks: its state dense again, 0 where pruned."""
        for name, matrix in self.matrices.items():
            self.optimizer.carry_over(name, partial(_dense, matrix=matrix), self._masks[name])

    def network(self) -> model.SparseMLP:
        """The present state for prediction, on the same structures."""
        linears, matrices = [], []
        for layer in self._names:
            name = f"{layer}.weight"
            matrix = self.matrices.get(name)
            if matrix is None:
                matrix = gs.SparseMatrix.from_dense(self.params[name], self._masks.get(name), format="dense")
            activation = None if layer == self._names[-1] else "relu"
            linears.append(gs.SparseLinear(matrix, self.params[f"{layer}.bias"], activation))
            matrices.append(matrix)
        return model.SparseMLP(linears, matrices, [linear.bias for linear in linears])


def _kept(array: Array, mask: gs.Mask) -> Array:
    return np.array(gs.SparseMatrix.from_dense(array, mask, format="csr").values)


def _dense(values: Array, matrix: gs.SparseMatrix) -> Array:
    return matrix.with_values(values).to_dense()
