# SPDX-License-Identifier: Apache-2.0
"""Modules pruned in place, and their linear layers replaced by sparse ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from gossamer._arrays import partner
from gossamer.masks import Mask, require_mask
from gossamer.pruning import apply_mask
from gossamer.scoring import Method, default_group, gather_inputs, needs_grads
from gossamer.selection import select
from gossamer.sparse import Structure, _choose
from gossamer.stats import Stats
from gossamer.torch._tensors import Globs, Tensor, changed, layers, view
from gossamer.torch.linear import convert


def prune_(
    module: nn.Module,
    *,
    method: Method = "magnitude",
    sparsity: float | Mapping[str, float] | None = None,
    nnz: int | Mapping[str, int] | None = None,
    pattern: str = "element",
    group: str | None = None,
    include: Globs = None,
    exclude: Globs = None,
    stats: Stats | Mapping[str, Stats] | None = None,
    grads: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    min_density: float = 0.0,
    prior: Mapping[str, Mask] | None = None,
    nan: str = "raise",
    apply: bool = True,
) -> dict[str, Mask]:
    """Prunes the weights of all Linear and Conv layers of a module, where they are.

    Parameters
    ----------
    module : any module on the CPU; may itself be a Linear or a Conv.
    method, sparsity, nnz, pattern, group, seed, min_density, nan : as in :func:`gossamer.prune`. ``sparsity`` or
        ``nnz`` may be a mapping with a number for each weight (e.g. of :func:`gossamer.allocate`), not with group
        ``"global"``.
    include, exclude : globs, one or several, that are compared with the names of weights (``"encoder.0.weight"``) and
        of their modules (``"encoder.0"``); ``include=None`` takes all. Biases, norms, embeddings, recurrent layers and
        the packed ``in_proj_weight`` of MultiheadAttention are never pruned.
    stats : of :func:`collect`, by names of weights; for one weight a :class:`gossamer.Stats` alone will do.
    grads : by names of weights; None takes ``.grad`` of each where the method reads gradients.
    prior : masks by names of weights; only what they keep may be kept.
    apply : False only finds the masks and changes nothing (for :func:`compensate_`).

    Returns
    -------
    ``{name of the weight: Mask}``. Layers that share a weight share an entry, under the first name.

    Raises
    ------
    TypeError, ValueError
        As :func:`gossamer.prune`; no layer is asked for; a weight is no parameter. Then nothing is changed.

    Examples
    --------
    >>> import torch, gossamer.torch as gt
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10))
    >>> masks = gt.prune_(model, sparsity=0.9, group="global")
    >>> sum(mask.nnz for mask in masks.values()), int((model[0].weight == 0).sum() + (model[2].weight == 0).sum())
    (90, 810)
    """
    f = "prune_"
    parameters = weights_of(module, include, exclude, f)
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    if isinstance(stats, Stats) and len(weights) == 1:
        stats = dict.fromkeys(weights, stats)
    if grads is None and needs_grads(method):
        grads = gradients_of(parameters, method, f, f"for method {method!r}")
    options = {"pattern": pattern, "min_density": min_density, "nan": nan}
    rest: dict[str, Any] = {"method": method, "group": group, "seed": seed, **options}
    masks = find(weights, grads, stats, prior, sparsity=sparsity, nnz=nnz, function=f, **rest)
    if apply:
        _apply(parameters, masks)
    return masks


def weights_of(module: nn.Module, include: Globs, exclude: Globs, function: str) -> dict[str, nn.Parameter]:
    return {name: layer.weight for name, layer in layers(module, include, exclude, function).items()}


def gradients_of(
    parameters: Mapping[str, nn.Parameter], method: Method, function: str, when: str
) -> dict[str, Tensor] | None:
    """``.grad`` of each; None where one is missing and the method, a callable, may do without."""
    found = {}
    for name, parameter in parameters.items():
        if parameter.grad is None:
            if callable(method):
                return None
            raise ValueError(f"{function}: the gradient of {name!r} must be there {when}, got None")
        found[name] = parameter.grad.detach()
    return found


def _apply(parameters: Mapping[str, nn.Parameter], masks: Mapping[str, Mask]) -> None:
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    apply_mask(weights, masks, out=weights)
    changed(*parameters.values())


def find(
    weights: dict[str, Tensor],
    grads: Any,
    stats: Any,
    prior: Any,
    *,
    method: Method,
    sparsity: Any,
    nnz: Any,
    pattern: str,
    group: str | None,
    seed: int | None,
    min_density: float,
    nan: str,
    function: str,
) -> dict[str, Mask]:
    """The masks that :func:`gossamer.prune` finds; where a count is a mapping, each tensor has its own."""
    own = [argument for argument in (sparsity, nnz) if isinstance(argument, Mapping)]
    if own and group == "global":
        raise ValueError(f'{function}: sparsity and nnz must be one number for group "global", got a mapping')
    counts = [partner(a, weights, weights, function, "sparsity or nnz") for a in own]
    parts: list[dict[str, Tensor]] = [{name: weight} for name, weight in weights.items()] if own else [weights]
    masks: dict[str, Mask] = {}
    for part in parts:
        name = next(iter(part))
        this = {"sparsity": sparsity, "nnz": nnz}
        for key, argument in this.items():
            if isinstance(argument, Mapping):
                this[key] = counts[own.index(argument)][name]
        masks |= select(
            gather_inputs(part, grads, method, stats, seed, function),
            [tuple(weight.shape) for weight in part.values()],
            [],
            function,
            **this,
            threshold=None,
            pattern=pattern,
            group=default_group(method, pattern, None if own else weights, function) if group is None else group,
            min_density=min_density,
            priors=partner(prior, part, part, function, "prior"),
            nan=nan,
        )
    return masks


class Sparsified(NamedTuple):
    """What :func:`sparsify_` did with a layer."""

    mask: Mask  #: what is kept
    replaced: bool  #: whether the layer is now a SparseLinear
    why: str  #: the plan, or why the layer stayed


def sparsify_(
    module: nn.Module,
    *,
    mask: Mapping[str, Mask] | None = None,
    format: str = "auto",
    batch: int | None = None,
    include: Globs = None,
    exclude: Globs = None,
    **prune: Any,
) -> dict[str, Sparsified]:
    """Linear layers become :class:`SparseLinear` where that is faster, in place.

    Parameters
    ----------
    module : any module on the CPU; may itself be a Linear. Replaced layers stay the same objects, of another class.
    mask : what to keep, by names of weights, as :func:`prune_` gives them; layers without an entry stay. None keeps
        what is not zero, or what the arguments for :func:`prune_` say.
    format : ``"auto"`` replaces a layer where the plan of :meth:`gossamer.SparseMatrix.from_dense` prefers a sparse
        product; any other format replaces all.
    batch : the number of rows of the input (all leading axes) that ``"auto"`` is to be right for; None replaces where
        any number gains (the plan goes on choosing by the number at each call, dense included).
    include, exclude : as in :func:`prune_`.
    **prune : with ``sparsity``, ``nnz`` or an N:M ``pattern``, everything is first pruned by :func:`prune_`
        with these arguments.

    Returns
    -------
    ``{name of the weight: Sparsified(mask, replaced, why)}``. Layers that stay: convolutions, subclasses of Linear
    (whose forward may be another; MultiheadAttention reads its projection's weight itself), layers that share their
    weight with another, and those that the plan expects to be faster dense. They are pruned all the same.

    Raises
    ------
    TypeError, ValueError
        As :func:`prune_`, :class:`SparseLinear`; ``mask`` beside arguments of :func:`prune_`.

    Notes
    -----
    Make optimizers afterwards: a replaced layer has the parameter ``values`` in place of ``weight``.

    Examples
    --------
    >>> import torch, gossamer.torch as gt
    >>> model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    >>> done = gt.sparsify_(model, sparsity=0.95, include="0", batch=1)
    >>> done["0.weight"].replaced, type(model[0]).__name__, type(model[2]).__name__
    (True, 'SparseLinear', 'Linear')
    """
    f = "sparsify_"
    if mask is not None and prune:
        raise ValueError(f"{f}: mask must come without arguments for prune_, got {', '.join(prune)} too")
    if mask is not None and not isinstance(mask, Mapping):
        raise TypeError(f"{f}: mask must be a mapping by names of weights, got {type(mask).__name__}")
    if "apply" in prune:
        raise TypeError(f"{f}: apply must not be given: what is found is always applied")
    if batch is not None and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"{f}: batch must be a positive int or None, got {batch!r}")
    found = layers(module, include, exclude, f)
    if mask is not None:
        strange = [name for name in mask if name not in found]
        if strange:
            raise ValueError(f"{f}: mask must name weights that are asked for, got {strange[0]!r}")
        found = {name: layer for name, layer in found.items() if name in mask}
    if prune:
        masks = prune_(module, include=include, exclude=exclude, apply=False, **prune)
    elif mask is not None:
        masks = {name: _checked(mask[name], layer, f, name) for name, layer in found.items()}
    else:
        masks = {name: Mask.from_dense(layer.weight.detach() != 0) for name, layer in found.items()}
    plans = {name: _plan(module, layer, masks[name], format, batch, f) for name, layer in found.items()}
    _apply({name: layer.weight for name, layer in found.items()}, masks)
    for name, layer in found.items():
        if plans[name][0] and isinstance(layer, nn.Linear):
            convert(layer, masks[name], format)
    return {name: Sparsified(masks[name], *plans[name]) for name in found}


def _checked(mask: Any, layer: nn.Module, function: str, name: str) -> Mask:
    return require_mask(mask, tuple(layer.weight.shape), function, "mask", name)


def _plan(
    module: nn.Module, layer: nn.Module, mask: Mask, format: str, batch: int | None, function: str
) -> tuple[bool, str]:
    """Whether a layer is to be replaced, and why or why not."""
    if type(layer) is not nn.Linear:
        return False, f"{type(layer).__name__} stays: only torch.nn.Linear itself has a sparse form"
    users = [  # a layer that is called in several places is one
        f"{name}.{own}" if name else own
        for name, part in module.named_modules()
        for own, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
        if parameter is layer.weight
    ]
    if len(users) > 1:
        return False, f"Linear stays: its weight is shared by {' and '.join(users)}"
    rows, cols = layer.weight.shape
    structure = Structure((rows, cols), mask=mask)
    plan = _choose(format, structure, view(layer.weight[:0]).dtype, function)
    kernels = plan.kernels if batch is None else {plan.kernel(batch)}
    return format != "auto" or kernels != {"dense"}, plan.text
