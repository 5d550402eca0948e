# SPDX-License-Identifier: Apache-2.0
"""The operators ``torch.ops.gossamer.*``: what autograd, ``torch.compile`` and ``torch.export`` see of gossamer.

With A ``[out, in]`` the matrix of ``values`` where ``mask`` keeps:

    linear(x, values, mask, bias)                     y = x @ A.T + bias
    linear_input_gradient(dy, values, mask)           dy @ A
    linear_value_gradient(dy, x, mask)                (dy.T @ x) where mask keeps

The gradients of each are the other two, so derivatives of any order work.
"""

from __future__ import annotations

from typing import Any

import torch

from gossamer import _core
from gossamer.layers import value_gradient
from gossamer.multiply import linear as product
from gossamer.sparse import SparseMatrix
from gossamer.torch._packs import _SINGLE, pattern
from gossamer.torch._tensors import Tensor, require_float, view

_library = torch.library.Library("gossamer", "DEF")
_library.define(
    "linear(Tensor x, Tensor values, Tensor mask, Tensor? bias, SymInt in_features, str format) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "linear_input_gradient(Tensor dy, Tensor values, Tensor mask, SymInt in_features, str format) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.define(
    "linear_value_gradient(Tensor dy, Tensor x, Tensor mask, SymInt nnz, str format, ScalarType dtype) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def _check(function: str, mask: Tensor, name: str, x: Tensor, width: Any) -> None:
    """Dtypes and shapes that need no look at the mask's bits."""
    if mask.dtype != torch.uint8 or mask.ndim != 2:
        raise TypeError(f"{function}: mask must be uint8 [out, bytes], got {mask.dtype} {tuple(mask.shape)}")
    require_float(x.dtype, function, name)
    if x.ndim == 0 or x.shape[-1] != width:
        raise ValueError(f"{function}: {name} must have the shape [..., {width}], got {tuple(x.shape)}")


def _matrix(function: str, values: Tensor, mask: Tensor, cols: int, format: str, n: int, transposed: bool) -> Any:
    known = pattern(mask, cols, format)
    if values.shape != (known.mask.nnz,):
        raise ValueError(
            f"{function}: values must have one entry for each that mask keeps, ({known.mask.nnz},), "
            f"got {tuple(values.shape)}"
        )
    return known.matrix(values.contiguous(), n, transposed)  # a gradient may be one number, expanded


def _flat(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _linear(x: Tensor, values: Tensor, mask: Tensor, bias: Tensor | None, in_features: int, format: str) -> Tensor:
    y = _linear_fake(x, values, mask, bias, in_features, format)
    flat = _flat(x)
    a = _matrix("SparseLinear", values, mask, in_features, format, flat.shape[0], False)
    product(view(flat), a, bias=None if bias is None else view(bias), out=view(_flat(y)))
    return y


def _linear_fake(x: Tensor, values: Tensor, mask: Tensor, bias: Tensor | None, in_features: int, format: str) -> Tensor:
    _check("SparseLinear", mask, "x", x, in_features)
    require_float(values.dtype, "SparseLinear", "values")
    if bias is not None:
        require_float(bias.dtype, "SparseLinear", "bias")
        if bias.shape != mask.shape[:1]:
            raise ValueError(f"SparseLinear: bias must have the shape ({mask.shape[0]},), got {tuple(bias.shape)}")
    return x.new_empty((*x.shape[:-1], mask.shape[0]))


def _input_gradient(dy: Tensor, values: Tensor, mask: Tensor, in_features: int, format: str) -> Tensor:
    dx = _input_gradient_fake(dy, values, mask, in_features, format)
    flat = _flat(dy)
    at = _matrix("SparseLinear.backward", values, mask, in_features, format, flat.shape[0], True)
    product(view(flat), at, out=view(_flat(dx)))
    return dx


def _input_gradient_fake(dy: Tensor, values: Tensor, mask: Tensor, in_features: int, format: str) -> Tensor:
    _check("SparseLinear.backward", mask, "dy", dy, mask.shape[0])
    require_float(values.dtype, "SparseLinear.backward", "values")
    return dy.new_empty((*dy.shape[:-1], in_features))


def _value_gradient(dy: Tensor, x: Tensor, mask: Tensor, nnz: int, format: str, dtype: torch.dtype) -> Tensor:
    _value_gradient_fake(dy, x, mask, nnz, format, dtype)
    known = pattern(mask, x.shape[-1], format)
    if nnz != known.mask.nnz:
        raise ValueError(f"SparseLinear.backward: nnz must be that of mask, {known.mask.nnz}, got {nnz}")
    known.expect_new_values()
    a = SparseMatrix._make(known.structure, view(dy.new_empty(nnz)), _SINGLE["csr"])
    return torch.from_numpy(value_gradient(view(_flat(dy)), view(_flat(x)), a)).to(dtype)


def _value_gradient_fake(dy: Tensor, x: Tensor, mask: Tensor, nnz: int, format: str, dtype: torch.dtype) -> Tensor:
    _check("SparseLinear.backward", mask, "dy", dy, mask.shape[0])
    require_float(x.dtype, "SparseLinear.backward", "x")
    if x.shape[:-1] != dy.shape[:-1]:
        raise ValueError(
            f"SparseLinear.backward: x must have the leading axes of dy, {tuple(dy.shape[:-1])}, "
            f"got {tuple(x.shape[:-1])}"
        )
    return dy.new_empty((nnz,), dtype=dtype)


def _refuse(*_: Any) -> Tensor:
    raise RuntimeError(f"SparseLinear: x and the layer must be on the CPU, got CUDA: {_core.info()['cuda']['reason']}")


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, values, mask, bias, ctx.in_features, ctx.format = inputs
    needs = ctx.needs_input_grad
    ctx.save_for_backward(x if needs[1] else None, values if needs[0] else None, mask)
    ctx.nnz, ctx.dtype, ctx.bias_dtype = values.shape[0], values.dtype, None if bias is None else bias.dtype


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, values, mask = ctx.saved_tensors
    dx = dvalues = dbias = None
    if ctx.needs_input_grad[0]:
        dx = input_gradient(dy, values, mask, ctx.in_features, ctx.format)
    if ctx.needs_input_grad[1]:
        dvalues = value_gradient_of(dy, x, mask, ctx.nnz, ctx.format, ctx.dtype)
    if ctx.needs_input_grad[3]:
        dbias = dy.flatten(0, -2).sum(0, dtype=ctx.bias_dtype) if dy.ndim > 1 else dy.to(ctx.bias_dtype)
    return dx, dvalues, None, dbias, None, None


def _save_input_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, values, mask, ctx.in_features, ctx.format = inputs
    ctx.save_for_backward(dy, values, mask)


def _input_gradient_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dy, values, mask = ctx.saved_tensors
    ddy = dvalues = None
    if ctx.needs_input_grad[0]:
        ddy = linear(g, values, mask, None, ctx.in_features, ctx.format)
    if ctx.needs_input_grad[1]:
        dvalues = value_gradient_of(dy, g, mask, values.shape[0], ctx.format, values.dtype)
    return ddy, dvalues, None, None, None


def _save_value_gradient(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    dy, x, mask, _, ctx.format, _ = inputs
    ctx.save_for_backward(dy, x, mask)


def _value_gradient_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    dy, x, mask = ctx.saved_tensors
    ddy = dx = None
    if ctx.needs_input_grad[0]:
        ddy = linear(x, g, mask, None, x.shape[-1], ctx.format)
    if ctx.needs_input_grad[1]:
        dx = input_gradient(dy, g, mask, x.shape[-1], ctx.format)
    return ddy, dx, None, None, None, None


for _name, _kernel, _fake, _backward, _save in (
    ("linear", _linear, _linear_fake, _linear_backward, _save_linear),
    (
        "linear_input_gradient",
        _input_gradient,
        _input_gradient_fake,
        _input_gradient_backward,
        _save_input_gradient,
    ),
    (
        "linear_value_gradient",
        _value_gradient,
        _value_gradient_fake,
        _value_gradient_backward,
        _save_value_gradient,
    ),
):
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, _refuse, "CUDA")
    torch.library.register_fake(f"gossamer::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"gossamer::{_name}", _backward, setup_context=_save, lib=_library)

linear = torch.ops.gossamer.linear.default
input_gradient = torch.ops.gossamer.linear_input_gradient.default
value_gradient_of = torch.ops.gossamer.linear_value_gradient.default
