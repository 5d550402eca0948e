# SPDX-License-Identifier: Apache-2.0
"""Arrays of other libraries: seen as numpy views without a copy, and results handed back in the caller's library."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from gossamer import _core

Array: TypeAlias = Any  # whatever array library the caller uses
Host: TypeAlias = np.ndarray[Any, Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16)

_CPU_DEVICES = (1, 3)  # kDLCPU, kDLCUDAHost


def host(x: Array, function: str, argument: str) -> Host:
    """``x`` as a numpy array on the same memory.

    Raises TypeError for what is no array, and RuntimeError for one on a device that this build cannot use.
    """
    kind = type(x).__name__
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{function}: {argument} must be an array without a mask of its own, got {kind}")
        return x
    if getattr(x, "__cuda_array_interface__", None) is not None:
        raise RuntimeError(f"{function}: {argument} is a CUDA array ({kind}): {_core.info()['cuda']['reason']}")
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{function}: {argument} must be an array (numpy, or one with __dlpack__), got {kind}")
    if kind.endswith("Tracer"):  # of JAX, which has a shape and a dtype but no data
        raise TypeError(
            f"{function}: {argument} must hold data, got a {kind}: call it outside of jax.jit, jax.grad and jax.vmap"
        )
    try:
        device = x.__dlpack_device__()[0]
        if device in _CPU_DEVICES:
            return _host_view(x)
    except Exception as error:  # a dtype that numpy does not have, a sparse layout, or whatever the library raises
        what = f"{kind} of {getattr(x, 'dtype', 'unknown dtype')}"
        raise TypeError(f"{function}: {argument} must be a dense array of floats, got {what}") from error
    raise RuntimeError(f"{function}: {argument} is on a device ({kind}): {_core.info()['cuda']['reason']}")


def _host_view(x: Array) -> Host:
    if getattr(x, "requires_grad", False):
        x = x.detach()
    if not str(x.dtype).endswith("bfloat16"):
        return np.from_dlpack(x)
    if isinstance(x.dtype, np.dtype):  # as in JAX: its own arrays of it are numpy's, which DLPack does not carry
        return np.asarray(x)
    return np.from_dlpack(x.view(namespace(x).int16)).view(BFLOAT16)  # the same bits as integers


def give_back(result: Host, like: Array) -> Array:
    """``result``, which must be finished, in the library of ``like``.

    On the same memory, but for what JAX copies: arrays that do not begin at a multiple of 64 bytes, and bfloat16.
    """
    if isinstance(like, np.ndarray):
        return result
    xp = namespace(like)
    return (
        xp.from_dlpack(result.view(np.int16)).view(xp.bfloat16) if result.dtype == BFLOAT16 else xp.from_dlpack(result)
    )


def namespace(x: Array) -> Any:
    """The array API namespace of ``x``'s library."""
    from array_api_compat import array_namespace  # only callers of other libraries pay for this import

    return array_namespace(x)


def is_float(dtype: Any) -> bool:
    """Whether the core knows a dtype: float16, bfloat16, float32, float64."""
    return dtype in _FLOATS


def require_float(x: Host, function: str, argument: str) -> None:
    """Raises TypeError for a dtype that is none of the four."""
    if not is_float(x.dtype):
        raise TypeError(f"{function}: {argument} must be float32, float64, float16 or bfloat16, got {x.dtype}")


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    """What is computed in: float64 for float64, float32 for all other floats."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


class Target(NamedTuple):
    """Memory to write a result to, and then the object to return."""

    view: Host
    made: Array | None  # that owns the memory, where it is not yet to be made
    like: Array

    def result(self) -> Array:
        """The result for the caller, once it is written: a library may copy it here."""
        return give_back(self.view, self.like) if self.made is None else self.made


def output(out: Array | None, like: Array, shape: tuple[int, ...], dtype: Any, function: str) -> Target:
    """``out``, or a new array in the library of ``like``.

    Raises ValueError when ``out`` has another shape and TypeError when it can never be written to; its dtype and memory
    are checked by the core. TypeError too when only ``out`` could hold the result.
    """
    if out is not None:
        view = host(out, function, "out")
        if view.shape != tuple(shape):
            raise ValueError(f"{function}: out must have the shape {tuple(shape)}, got {view.shape}")
        if not view.flags.writeable and not isinstance(out, np.ndarray):
            raise TypeError(f"{function}: out must be an array that can be written to, got an immutable {_kind(out)}")
        return Target(view, out, like)
    if isinstance(like, np.ndarray):
        return Target(empty(shape, dtype, function), None, like)
    try:
        namespace(like)
    except TypeError as error:
        make = getattr(type(like), "empty", None)
        if make is None:
            raise TypeError(f"{function}: out must be given, for {_kind(like)} has no way to make an array") from error
        made = make(tuple(shape), np.dtype(dtype))
        return Target(host(made, function, f"what {_kind(like)}.empty makes"), made, like)
    return Target(_aligned(shape, dtype, function), None, like)


def _kind(x: Array) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"


def _aligned(shape: tuple[int, ...], dtype: Any, function: str) -> Host:
    """An empty array that begins at a multiple of 64 bytes, which JAX can take over without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = empty((size + 64,), np.uint8, function)
    start = -memory.ctypes.data % 64
    aligned: Host = memory[start : start + size].view(dtype).reshape(shape)
    return aligned


def empty(shape: tuple[int, ...], dtype: Any, function: str) -> Host:
    """``np.empty``, whose errors for absurd sizes name no function."""
    try:
        return np.empty(shape, dtype)
    except (ValueError, MemoryError) as error:
        raise MemoryError(f"{function}: not enough memory for an array of shape {shape}") from error


def named(params: Array | Mapping[str, Array], function: str, argument: str) -> dict[str, Array]:
    """The tensors of a params argument by name; one array has the name ""."""
    if not isinstance(params, Mapping):
        return {"": params}
    for name in params:
        if not isinstance(name, str):
            raise TypeError(f"{function}: {argument} must have names of type str, got {name!r}")
    return dict(params)


def partner(value: Any, names: dict[str, Array], params: Any, function: str, argument: str) -> dict[str, Any]:
    """The entries of an argument that goes along with params (grads, stats, prior, out); None stays None."""
    if value is None:
        return dict.fromkeys(names)
    if isinstance(params, Mapping) != isinstance(value, Mapping):
        expected = "a mapping" if isinstance(params, Mapping) else "one object, not a mapping"
        raise TypeError(
            f"{function}: {argument} must be {expected}, as the first argument is, got {type(value).__name__}"
        )
    if not isinstance(value, Mapping):
        return {"": value}
    missing = [name for name in names if name not in value]
    if missing:
        raise ValueError(f"{function}: {argument} must have an entry for every tensor, got none for {missing[0]!r}")
    return {name: value[name] for name in names}


def require_number(x: object, function: str, argument: str) -> float:
    if type(x) is float:  # the usual case, for which asking Real takes longer than all the rest
        return x
    if isinstance(x, bool) or not isinstance(x, Real):
        raise TypeError(f"{function}: {argument} must be a number, got {x!r}")
    try:
        return float(x)
    except OverflowError:
        raise ValueError(f"{function}: {argument} must fit into a float64, got more") from None


def require_text(x: object, function: str, argument: str) -> str:
    if not isinstance(x, str):
        raise TypeError(f"{function}: {argument} must be a str, got {x!r}")
    return x


def of(name: str) -> str:
    """What a message adds to tell which tensor of a mapping it is about."""
    return f" for {name!r}" if name else ""


def same_shape(x: Host, expected: tuple[int, ...], function: str, argument: str, name: str) -> None:
    if x.shape != expected:
        raise ValueError(f"{function}: {argument} must have the shape {expected}, got {x.shape}{of(name)}")


def shape_of(x: Array, function: str, argument: str, name: str) -> tuple[int, ...]:
    """The shape of an array of any library, on any device."""
    shape = getattr(x, "shape", None)
    if shape is None:
        raise TypeError(f"{function}: {argument} must be arrays, got {type(x).__name__}{of(name)}")
    return tuple(int(extent) for extent in shape)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """[shape[0], rest]; a vector is one row."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])
