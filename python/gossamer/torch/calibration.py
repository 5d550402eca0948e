# SPDX-License-Identifier: Apache-2.0
"""Statistics of what flows into the layers of a module, and weights that make up for what was pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gossamer._arrays import require_number, require_text
from gossamer.compensation import compensate
from gossamer.masks import Mask
from gossamer.stats import Stats
from gossamer.torch._tensors import Globs, Tensor, layers
from gossamer.torch.pruning import weights_of

_KINDS = ("norm", "hessian")
_WATCHED = (nn.Linear, nn.Conv1d, nn.Conv2d)


@contextmanager
def collect(
    module: nn.Module,
    kind: str = "norm",
    *,
    include: Globs = None,
    exclude: Globs = None,
    decay: float | None = None,
) -> Iterator[dict[str, Stats]]:
    """Within the block, every forward pass adds the inputs of each layer to a :class:`gossamer.Stats`.

    Parameters
    ----------
    module : any module; its Linear, Conv1d and Conv2d layers are watched (convolutions without groups: each output
        position's receptive field, flattened as the kernel is, is a sample).
    kind : ``"norm"`` (for wanda and ria) or ``"hessian"`` (for obs and :func:`compensate_`), which takes a float64
        matrix ``[in, in]`` for each layer. The kinds made of gradients are updated in the caller's own loop:
        ``Stats("movement").update(weight, weight.grad)``.
    include, exclude : as in :func:`prune_`.
    decay : as in :class:`gossamer.Stats`.

    Returns
    -------
    ``{name of the weight: Stats}``, which stay usable after the block, when nothing is watched any more. Layers that
    share a weight share its Stats, under the first name. A layer that was not called has no data. (Run the module
    itself: one that ``torch.compile`` compiled before calls no new hooks.)

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        Another kind; no layer is asked for; a convolution with groups, or one of another class (exclude it).

    Examples
    --------
    >>> import torch, gossamer.torch as gt
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    >>> with gt.collect(model, "norm") as stats, torch.no_grad():
    ...     for _ in range(4):
    ...         _ = model(torch.rand(16, 20))
    >>> stats["2.weight"].count, gt.prune_(model, method="wanda", sparsity=0.5, stats=stats)["2.weight"].nnz
    (64.0, 150)
    """
    f = "collect"
    if require_text(kind, f, "kind") not in _KINDS:
        raise ValueError(f"{f}: kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if decay is not None:
        require_number(decay, f, "decay")
    watched = layers(module, include, exclude, f)
    for name, layer in watched.items():
        _check(layer, f, name)
    stats = {name: Stats(kind, decay=decay) for name in watched}
    of_weight = {id(layer.weight): stats[name] for name, layer in watched.items()}
    hooks = [
        layer.register_forward_pre_hook(_hook(of_weight[id(weight)]), with_kwargs=True)
        for layer in module.modules()
        if isinstance(layer, _WATCHED) and id(weight := layer._parameters.get("weight")) in of_weight
    ]
    try:
        yield stats
    finally:
        for hook in hooks:
            hook.remove()


def _check(layer: nn.Module, function: str, name: str) -> None:
    if isinstance(layer, nn.Linear):
        return
    if not isinstance(layer, _WATCHED) or layer.groups != 1:
        groups = getattr(layer, "groups", 1)
        raise NotImplementedError(
            f"{function}: module must have Linear, Conv1d and Conv2d layers without groups (exclude others), got "
            f"{type(layer).__name__} with groups={groups} for {name!r}"
        )


def _hook(stats: Stats) -> Any:
    def update(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        stats.update(x if isinstance(layer, nn.Linear) else _samples(layer, x))

    return update


def _samples(conv: nn.Module, x: Tensor) -> Tensor:
    """``[positions, in * kernel]``: what each output position of a convolution sees."""
    dims = len(conv.kernel_size)
    if x.ndim == dims + 1:
        x = x[None]
    padding = conv.padding
    if isinstance(padding, str):  # "valid" or "same", where an odd rest goes to the end
        total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in padding]
    pads = [p for side in reversed(sides) for p in side]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = nn.functional.pad(x, pads, mode)
    if dims == 1:
        x = x[:, :, None]
    kernel, dilation, stride = ((1, *v) if dims == 1 else v for v in (conv.kernel_size, conv.dilation, conv.stride))
    columns = nn.functional.unfold(x, kernel, dilation=dilation, stride=stride)  # [batch, in * kernel, positions]
    return columns.transpose(1, 2)


def compensate_(
    module: nn.Module,
    masks: Mapping[str, Mask],
    stats: Mapping[str, Stats],
    *,
    method: str = "exact",
    damping: float = 0.01,
) -> None:
    """Prunes a module's weights by masks and gives the kept ones new values, layer by layer, in place.

    :func:`gossamer.compensate` for the weights of a module: ``"exact"`` is the least-squares refit, ``"obs"``
    SparseGPT's sweep (arXiv 2301.00774).

    Parameters
    ----------
    module : holds the *dense* weights: find the masks with ``prune_(..., apply=False)``.
    masks, stats : by names of weights, as of :func:`prune_` and ``collect(module, "hessian")``; only layers with a mask
        change. To go through a network in order, so that each layer makes up for what those before it lost, collect,
        find the mask and compensate one layer (or block) after the other with ``include=``.
    method, damping : as in :func:`gossamer.compensate`, the defaults too.

    Raises
    ------
    TypeError, ValueError
        A name without a weight or statistics; as :func:`gossamer.compensate`. Nothing has then changed: all new weights
        are found before the first is written.

    Examples
    --------
    >>> import torch, gossamer.torch as gt
    >>> layer, x = torch.nn.Linear(20, 10), torch.rand(64, 20) @ torch.rand(20, 20)
    >>> dense = layer(x)
    >>> with gt.collect(layer, "hessian") as stats:
    ...     _ = layer(x)
    >>> masks = gt.prune_(layer, sparsity=0.5, apply=False)
    >>> before = float((torch.nn.functional.linear(x, layer.weight * torch.from_numpy(masks["weight"].to_dense()),
    ...                                            layer.bias) - dense).square().sum().detach())
    >>> gt.compensate_(layer, masks, stats)
    >>> float((layer(x) - dense).square().sum().detach()) < before
    True
    """
    f = "compensate_"
    given: dict[str, Any] = {"masks": masks, "stats": stats}
    for what, argument in given.items():
        if not isinstance(argument, Mapping):
            raise TypeError(f"{f}: {what} must be a mapping by names of weights, got {type(argument).__name__}")
    weights = weights_of(module, None, None, f)
    for what, known in (("module", weights), ("stats", stats)):
        missing = [name for name in masks if name not in known]
        if missing:
            raise ValueError(f"{f}: {what} must have an entry for every mask, got none for {missing[0]!r}")
    dense = {name: weights[name].detach() for name in masks}
    with torch.no_grad():
        for name, found in compensate(dense, masks, stats, method=method, damping=damping).items():
            weights[name].copy_(found)
