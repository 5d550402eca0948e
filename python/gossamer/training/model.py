# SPDX-License-Identifier: Apache-2.0
"""A multi-layer perceptron as a plain dict of arrays: ReLU between the layers, nothing after the last.

Layer ``k`` (from 1) holds ``layerk.weight`` ``[out, in]``, ``layerk.bias`` ``[out]``; activations are ``[batch, in]``.
Arrays are numpy or cupy; every function works on the device and in the dtype of what it is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

import gossamer as gs
from gossamer.training._namespace import namespace

Array: TypeAlias = Any
Params: TypeAlias = Mapping[str, Array]
Scheme: TypeAlias = Literal["he", "glorot"]


def initialize(
    sizes: Sequence[int], generator: np.random.Generator, *, scheme: Scheme = "he", dtype: npt.DTypeLike = np.float32
) -> dict[str, Array]:
    """Random weights and zero biases for layers of ``sizes`` units, input first: ``[784, 300, 100, 10]``.

    ``"he"`` draws from a normal distribution of variance 2 / in (He 2015, 1502.01852: right for ReLU), ``"glorot"``
    from a uniform one of variance 2 / (in + out) (Glorot 2010). dtype is float32 or float64.
    Raises ValueError for fewer than two sizes, a size below 1 or an unknown scheme, TypeError for another dtype.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"initialize: sizes must be two or more positive integers, got {list(sizes)}")
    if scheme not in ("he", "glorot"):
        raise ValueError(f"initialize: scheme must be 'he' or 'glorot', got {scheme!r}")
    kind = np.dtype(dtype)
    if kind not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"initialize: dtype must be float32 or float64, got {kind}")
    params: dict[str, Array] = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes), start=1):
        # Drawn in float64 so that both dtypes start from the same numbers.
        if scheme == "he":
            weight = generator.standard_normal((fan_out, fan_in)) * math.sqrt(2.0 / fan_in)
        else:
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            weight = generator.uniform(-bound, bound, (fan_out, fan_in))
        params[f"layer{layer}.weight"] = weight.astype(kind)
        params[f"layer{layer}.bias"] = np.zeros(fan_out, kind)
    return params


def layers(params: Params) -> list[str]:
    """The names of the layers in order: ``["layer1", "layer2", ...]``. ValueError if one is missing or has no bias."""
    names = [f"layer{k}" for k in range(1, len(params) // 2 + 1)]
    expected = {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    if not names or expected != set(params):
        raise ValueError(f"layers: params must hold layer1.weight, layer1.bias, layer2..., got {sorted(params)}")
    return names


def weights(params: Params) -> dict[str, Array]:
    """What may be pruned: the entries named ``*.weight``, in order; the arrays themselves, not copies."""
    return {name: value for name, value in params.items() if name.endswith(".weight")}


def biases(params: Params) -> dict[str, Array]:
    """The entries that are never pruned: everything but the weights."""
    return {name: value for name, value in params.items() if not name.endswith(".weight")}


def copy(params: Params) -> dict[str, Array]:
    """A copy that shares no memory with ``params``."""
    return {name: value.copy() for name, value in params.items()}


def apply_masks(params: Params, masks: Mapping[str, gs.Mask] | None) -> None:
    """Zero in place what the masks prune; tensors without a mask stay as they are."""
    for name, mask in (masks or {}).items():
        gs.apply_mask(params[name], mask, out=params[name])


def activations(params: Params, x: Array) -> list[Array]:
    """The input of each layer in order, then the output of the last: ``[x, hidden1, hidden2, ..., output]``.

    ``x`` is ``[batch, in]``; ``backward`` and ``importance.input_norms`` take the list. ValueError for another shape.
    """
    values = [x]
    names = layers(params)
    if x.ndim != 2 or x.shape[1] != params["layer1.weight"].shape[1]:
        raise ValueError(f"forward: x must be [batch, {params['layer1.weight'].shape[1]}], got {tuple(x.shape)}")
    xp = namespace(x)
    for name in names:
        z = values[-1] @ params[f"{name}.weight"].T
        z += params[f"{name}.bias"]
        if name != names[-1]:
            xp.maximum(z, 0, out=z)
        values.append(z)
    return values


def forward(params: Params, x: Array) -> Array:
    """The output ``[batch, out]`` (logits, predictions) for ``x`` ``[batch, in]``."""
    return activations(params, x)[-1]


def backward(
    params: Params, values: Sequence[Array], gradient: Array, *, out: dict[str, Array] | None = None
) -> dict[str, Array]:
    """The gradient of the loss with respect to every entry of ``params``.

    ``values`` is what ``activations`` returned, ``gradient`` ``[batch, out]`` the loss's with respect to the output.
    The gradients are those of the dense network: pruned weights get theirs too, which RigL and Taylor scores of
    regrown weights need; the masked optimizers drop them. ``out`` takes an earlier result to be overwritten.
    """
    xp = namespace(gradient)
    grads = out if out is not None else {name: xp.empty_like(value) for name, value in params.items()}
    for name, d, inputs in deltas(params, values, gradient):
        xp.matmul(d.T, inputs, out=grads[name])
        xp.sum(d, axis=0, out=grads[name.removesuffix("weight") + "bias"])
    return grads


def deltas(
    params: Params,
    values: Sequence[Array],
    gradient: Array,
    through: Callable[[str, Array], Array] | None = None,
) -> Iterator[tuple[str, Array, Array]]:
    """``(weight name, gradient of the layer's output [batch, out], its input [batch, in])``, last layer first.

    Arguments as for ``backward``; ``gradient`` is the loss's with respect to the network's output, and ``through(weight
    name, gradient of the layer's output)`` the one of its input, for weights that are no dense matrices.
    """
    names = layers(params)
    for k in range(len(names) - 1, -1, -1):
        name = f"{names[k]}.weight"
        yield name, gradient, values[k]
        if k > 0:
            gradient = gradient @ params[name] if through is None else through(name, gradient)
            gradient *= values[k] > 0


class SparseMLP:
    """The network as a chain of ``gossamer.SparseLinear`` layers; ``predict`` equals ``forward`` of the masked params.

    Equal up to the order of summation. ``layers`` are the SparseLinear objects, ``matrices`` their SparseMatrix values.
    """

    def __init__(self, layers: Sequence[gs.SparseLinear], matrices: Sequence[gs.SparseMatrix], biases: Sequence[Array]):
        self.layers, self.matrices, self.biases = list(layers), list(matrices), list(biases)

    def predict(self, x: Array) -> Array:
        """The output ``[batch, out]`` for ``x`` ``[batch, in]``."""
        for layer in self.layers:
            x = layer(x)
        return x

    __call__ = predict

    @property
    def nnz(self) -> int:
        """Stored weights of all layers."""
        return sum(matrix.nnz for matrix in self.matrices)

    @property
    def nbytes(self) -> int:
        """Bytes really held: values, indices and packs of every layer (``SparseMatrix.nbytes``), and the biases."""
        return sum(m.nbytes for m in self.matrices) + sum(int(b.nbytes) for b in self.biases)


def to_sparse(params: Params, masks: Mapping[str, gs.Mask], format: str = "auto") -> SparseMLP:
    """The network on gossamer's sparse kernels: a layer with a mask in ``format``, one without as ``"dense"``."""
    names = layers(params)
    linears, matrices = [], []
    for name in names:
        mask = masks.get(f"{name}.weight")
        chosen = format if mask is not None else "dense"
        matrix = gs.SparseMatrix.from_dense(params[f"{name}.weight"], mask, format=chosen)
        activation = None if name == names[-1] else "relu"
        linears.append(gs.SparseLinear(matrix, params[f"{name}.bias"], activation))
        matrices.append(matrix)
    return SparseMLP(linears, matrices, [params[f"{name}.bias"] for name in names])
