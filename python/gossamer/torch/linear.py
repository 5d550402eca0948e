# SPDX-License-Identifier: Apache-2.0
"""A linear layer whose weights are the kept ones alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import forward_ad

from gossamer.masks import Mask, require_mask
from gossamer.sparse import SparseMatrix, Structure, _choose, _restored, _structure_of
from gossamer.torch import _operators
from gossamer.torch._packs import pattern
from gossamer.torch._tensors import Tensor, require_data, require_float, view


class SparseLinear(nn.Module):
    """``x @ A.T + bias`` with a sparse A ``[out, in]``: ``torch.nn.Linear`` for pruned weights.

    The kept values are one parameter ``values`` ``[nnz]`` in row-major order, so every optimizer trains them and holds
    state for nothing else; the pattern is the buffer ``packed_mask`` (the layout of :class:`gossamer.Mask`). Forward
    and backward run gossamer's kernels: ``dx`` by the transpose, the values' gradient only where a weight is kept.
    Nothing is packed again until the values change, and then only they are; CSR and bitmask products read them where
    they are. In-place operations are always noticed, and after a backward pass that gave the values a gradient they
    are packed anew. Other writes that change no version counter (through ``.data``, or by a fused optimizer after one
    more forward pass) are noticed where they change one of about 64 values that are compared at every call; else say
    ``torch.autograd.graph.increment_version(layer.values)``, and so after a write to ``packed_mask.data``.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype : as in ``torch.nn.Linear``; float32, float64, float16, bfloat16.
    mask : a :class:`gossamer.Mask` (or bool tensor) ``[out, in]``; None keeps everything, as before a
        ``load_state_dict``.
    format : as in :meth:`gossamer.SparseMatrix.from_dense`, and checked against the mask.

    Raises
    ------
    TypeError, ValueError
        A mask of another shape, an unknown format, one that the mask does not have.

    Notes
    -----
    - The input is ``[..., in]`` of any float dtype; the result has its dtype, computed as :func:`gossamer.linear` says.
      Under ``torch.autocast`` the layer therefore works in the dtype that its input comes in, on values that are not
      cast. Derivatives of any order work.
    - ``load_state_dict`` takes the pattern of the state dict: where it is another one of the same shape, ``values``
      gets that pattern's length (an optimizer made before then has state of the wrong length). ``values`` and
      ``packed_mask`` belong together: where one is missing neither is loaded. A tensor that does not fit is reported as
      an error of this module, which is then unchanged; entries that are missing or too many are reported as PyTorch
      does, after the others were loaded.
    - ``.to``, ``.half()`` and the like convert values and bias. CUDA is refused at the first call.
    - ``weight`` is a dense tensor made at each access, for code that looks at it (and to differentiate through).
      ``torch.nn.TransformerEncoderLayer`` in eval mode without gradients reads it instead of calling the layer:
      ``torch.backends.mha.set_fastpath_enabled(False)`` makes it call.

    Examples
    --------
    >>> import torch, gossamer as gs, gossamer.torch as gt
    >>> dense = torch.nn.Linear(4, 2, bias=False)
    >>> _ = dense.weight.data.copy_(torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]]))
    >>> layer = gt.SparseLinear.from_dense(dense)
    >>> layer(torch.ones(1, 4)).tolist(), layer.values.tolist()
    ([[3.0, 3.0]], [1.0, 2.0, 3.0])
    """

    packed_mask: Tensor
    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mask: Mask | Tensor | None = None,
        format: str = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        shape = _size(out_features, "out_features"), _size(in_features, "in_features")
        kept = _full(shape) if mask is None else _mask(mask, shape)
        values = torch.empty(kept.nnz, device=device, dtype=dtype)
        self._take(kept, format, values, None)
        if bias:
            self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def from_dense(cls, linear: nn.Linear, mask: Mask | Tensor | None = None, format: str = "auto") -> SparseLinear:
        """The layer of the kept weights of a ``torch.nn.Linear``, with copies of them and of its bias.

        ``mask`` None keeps everything that is not zero. Raises TypeError for what is no Linear.
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"SparseLinear.from_dense: linear must be a torch.nn.Linear, got {type(linear).__name__}")
        require_data(linear.weight, "SparseLinear.from_dense", "the weight")
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        bias = linear.bias
        if bias is not None:
            bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        layer._take_weight(linear.weight, mask, format, bias)
        layer.train(linear.training)
        return layer

    def _take_weight(self, weight: Tensor, mask: Any, format: str, bias: nn.Parameter | None) -> None:
        dense = weight.detach()
        kept = _mask(dense != 0 if mask is None else mask, tuple(dense.shape))
        values = dense[torch.from_numpy(kept.to_dense()).to(dense.device)]
        self._take(kept, format, values, bias)
        self.values.requires_grad_(weight.requires_grad)

    def _take(self, mask: Mask, format: str, values: Tensor, bias: nn.Parameter | None) -> None:
        """What a new layer holds; an error leaves it as it was."""
        require_float(values.dtype, "SparseLinear", "dtype")
        _check_format(mask, format)
        self.out_features, self.in_features = mask.shape
        self.format = format
        with torch.inference_mode(False):  # tensors made in inference mode have no version counter
            self.values = nn.Parameter(values.clone() if values.is_inference() else values)
            self.register_parameter("bias", bias)
            self.register_buffer("packed_mask", torch.from_numpy(mask.packed.copy()).to(values.device))

    def _apply(self, fn: Any, recurse: bool = True) -> SparseLinear:
        super()._apply(fn, recurse)
        self.packed_mask = self.packed_mask.to(torch.uint8)  # ``.type`` converts buffers of integers too
        return self

    def reset_parameters(self) -> None:
        """Values and bias as ``torch.nn.Linear`` of the same size draws them."""
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        for parameter in (self.values, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., out]`` of x ``[..., in]``.

        Raises TypeError, ValueError; RuntimeError for CUDA tensors; NotImplementedError within forward-mode
        differentiation (``torch.func.jvp``), where PyTorch would take a custom operator's derivative to be 0.
        """
        if not hasattr(x, "__torch_function__"):  # as tensors and what traces them have
            raise TypeError(f"SparseLinear: x must be a tensor, got {type(x).__name__}")
        if getattr(forward_ad, "_current_level", -1) >= 0:
            raise NotImplementedError("SparseLinear: derivatives must be taken in reverse mode, got forward mode")
        result: Tensor = _operators.linear(x, self.values, self.packed_mask, self.bias, self.in_features, self.format)
        return result

    @property
    def mask(self) -> Mask:
        """The kept positions ``[out, in]``."""
        return Mask((self.out_features, self.in_features), view(self.packed_mask.cpu()))

    @property
    def nnz(self) -> int:
        """Number of kept weights."""
        return int(self.values.shape[0])

    @property
    def weight(self) -> Tensor:
        """The dense weights ``[out, in]``, made now; differentiable by ``values``."""
        kept = torch.from_numpy(self.mask.to_dense()).to(self.values.device)
        return self.values.new_zeros(kept.shape).masked_scatter(kept, self.values)

    @property
    def plan(self) -> str:
        """Which kernels multiply and why, in a sentence."""
        return pattern(self.packed_mask, self.in_features, self.format).plan(view(self.values[:0]).dtype).text

    def matrix(self) -> SparseMatrix:
        """A :class:`gossamer.SparseMatrix` with copies of the values."""
        return _restored(_structure_of(self.mask), view(self.values.cpu()), self.format, None)

    def to_dense(self) -> nn.Linear:
        """A ``torch.nn.Linear`` with zeros for the pruned weights."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, "meta", self.values.dtype)
        dense.weight = nn.Parameter(self.weight.detach(), requires_grad=self.values.requires_grad)
        if self.bias is not None:
            dense.bias = nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        return dense.train(self.training)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = (f"{prefix}values", f"{prefix}packed_mask")
        given = [name for name in names if name in state_dict]
        if len(given) == 1:
            missing_keys.extend(name for name in names if name not in given)
            return
        if given:
            try:
                values, packed = (state_dict[name] for name in names)
                nnz = self._checked_nnz(values, packed, state_dict.get(f"{prefix}bias", self.bias))
            except (TypeError, ValueError) as error:
                error_msgs.append(f"{prefix.rstrip('.') or type(self).__name__}: {error}")
                return
            if nnz != self.nnz:
                self.values.data = self.values.data.new_empty(nnz)
                self.values.grad = None
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _checked_nnz(self, values: Any, packed: Any, bias: Any) -> int:
        """The length of values that a state dict brings."""
        for name, tensor in (("values", values), ("packed_mask", packed)):
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"SparseLinear: {name} must be a tensor, got {type(tensor).__name__}")
            if tensor.is_meta or tensor.layout != torch.strided:
                raise TypeError(
                    f"SparseLinear: {name} must be a dense tensor that holds data, "
                    f"got {tensor.layout} on {tensor.device}"
                )
        require_float(values.dtype, "SparseLinear", "values")
        mask = Mask((self.out_features, self.in_features), view(packed.cpu()))
        if values.shape != (mask.nnz,):
            raise ValueError(
                f"SparseLinear: values must have one entry for each that packed_mask keeps, ({mask.nnz},), "
                f"got {tuple(values.shape)}"
            )
        if self.bias is not None and getattr(bias, "shape", None) != self.bias.shape:
            raise ValueError(
                f"SparseLinear: bias must have the shape {tuple(self.bias.shape)}, "
                f"got {tuple(bias.shape) if isinstance(bias, torch.Tensor) else type(bias).__name__}"
            )
        _check_format(mask, self.format)
        return mask.nnz

    def extra_repr(self) -> str:
        total = self.in_features * self.out_features
        sparsity = 1 - self.nnz / total if total else 0.0
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"sparsity={sparsity:.4f}, format={self.format!r}"
        )


def convert(linear: nn.Linear, mask: Mask, format: str) -> None:
    """Makes a Linear a SparseLinear in place: whatever refers to it (parents, hooks, other names) finds the new layer.

    Its bias stays the same parameter.
    """
    weight, bias = linear.weight, linear.bias
    sparse = SparseLinear.__new__(SparseLinear)
    nn.Module.__init__(sparse)
    sparse._take_weight(weight, mask, format, bias)  # whatever can fail has failed before the layer changes
    del linear.weight, linear.bias
    linear.__class__ = SparseLinear
    linear.format = format
    linear.values = sparse.values  # in the order of a new layer, for an optimizer's state dict goes by it
    linear.register_parameter("bias", bias)
    linear.register_buffer("packed_mask", sparse.packed_mask)


def _size(value: Any, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"SparseLinear: {argument} must be an int, got {value!r}")
    if value < 0:
        raise ValueError(f"SparseLinear: {argument} must not be negative, got {value}")
    return value


def _full(shape: tuple[int, int]) -> Mask:
    packed = Mask._blank(shape, "SparseLinear")
    packed[...] = 0
    return ~Mask._own(shape, packed, 0)


def _mask(mask: Any, shape: tuple[int, ...]) -> Mask:
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu()
    return require_mask(mask, shape, "SparseLinear", "mask")


def _check_format(mask: Mask, format: str) -> None:
    if format != "auto":  # which may have to measure the machine first: at the first product
        shape = mask.shape[0], mask.shape[1]
        _choose(format, Structure(shape, mask=mask), np.dtype(np.float32), "SparseLinear")
