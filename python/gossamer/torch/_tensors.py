# SPDX-License-Identifier: Apache-2.0
"""CPU tensors as numpy views, and which parameters of a module a call is about."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gossamer._arrays import BFLOAT16, Host

Tensor: TypeAlias = torch.Tensor
Globs: TypeAlias = str | Iterable[str] | None

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def view(tensor: Tensor) -> Host:
    """A numpy array on the memory of a dense CPU tensor, of bfloat16 too."""
    found: Host
    if tensor.dtype == torch.bfloat16:  # numpy does not know it: the same bits as integers
        found = tensor.detach().resolve_neg().view(torch.int16).numpy().view(BFLOAT16)
    else:
        found = tensor.numpy(force=True)  # of parameters and of negative views too
    return found


def changed(*tensors: Tensor) -> None:
    """Tells autograd that the memory of tensors was written to without it."""
    for tensor in tensors:
        if not tensor.is_inference():  # which has no version counter
            torch.autograd.graph.increment_version(tensor)


def layers(
    module: nn.Module, include: Globs, exclude: Globs, function: str, kinds: tuple[type, ...] = PRUNABLE
) -> dict[str, nn.Module]:
    """The modules of these kinds by the name of their weight (``"encoder.0.weight"``), shared weights once.

    ``include`` and ``exclude`` are globs that are compared with that name and with the module's.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"{function}: module must be a torch.nn.Module, got {type(module).__name__}")
    wanted, unwanted = (_globs(g, function, n) for g, n in ((include, "include"), (exclude, "exclude")))
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    for name, weight, layer in _weights(module, kinds):
        names = (name, name.removesuffix(".weight") if name != "weight" else "")
        if (wanted is None or _matches(names, wanted)) and not _matches(names, unwanted or ()):
            if not isinstance(weight, nn.Parameter):
                raise ValueError(
                    f"{function}: {name!r} must be a parameter, got {type(weight).__name__} (for one that "
                    "torch.nn.utils made, call remove or remove_parametrizations first)"
                )
            require_data(weight, function, repr(name))
            if id(weight) not in seen:
                seen.add(id(weight))
                found[name] = layer
    if not found:
        what = " or ".join(kind.__name__ for kind in kinds) if len(kinds) < 3 else "Linear or Conv"
        raise ValueError(f"{function}: module must have a {what} weight that include and exclude leave, got none")
    return found


def require_data(tensor: Tensor, function: str, argument: str) -> None:
    """Raises TypeError for a parameter without memory and for a dtype that gossamer does not have."""
    lazy = is_lazy(tensor)
    if lazy or tensor.is_meta:
        raise TypeError(f"{function}: {argument} must hold data, got {'an uninitialized' if lazy else 'a meta'} tensor")
    require_float(tensor.dtype, function, argument)


def require_float(dtype: torch.dtype, function: str, argument: str) -> None:
    """Raises TypeError for a dtype that gossamer does not have."""
    if dtype not in FLOATS:
        raise TypeError(f"{function}: {argument} must be float32, float64, float16 or bfloat16, got {dtype}")


def _weights(module: nn.Module, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any, nn.Module]]:
    for name, layer in module.named_modules():
        if isinstance(layer, kinds):
            yield (f"{name}.weight" if name else "weight"), getattr(layer, "weight", None), layer


def _globs(given: Globs, function: str, argument: str) -> tuple[str, ...] | None:
    if given is None:
        return None
    if not isinstance(given, Iterable):
        raise TypeError(f"{function}: {argument} must be globs of type str, got {given!r}")
    patterns = (given,) if isinstance(given, str) else tuple(given)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{function}: {argument} must be globs of type str, got {pattern!r}")
    return patterns


def _matches(names: tuple[str, ...], patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)
