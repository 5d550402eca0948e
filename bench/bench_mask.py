# SPDX-License-Identifier: Apache-2.0
"""gs.Mask and gs.apply_mask: packing, unpacking, indices, set operations, masking; against numpy on bits and bools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from inputs import Array, Job, as_tensor, equals, fresh, normal, peers, torch_or_skip
from measuring import Measure

PARAMETERS = {"quick": {"size": [(2048, 2048)]}, "large": {"size": [(4096, 4096), (4096, 11008)]}}


def kept(size: tuple[int, int], seed: int = 0) -> Array:
    """10 % kept."""
    return np.abs(normal(size, seed)) > 1.645


def packed(dense: Array) -> Array:
    return np.packbits(dense, axis=1, bitorder="little")


def group(name: str, size: tuple[int, int]) -> str:
    return f"{name} {size[0]}x{size[1]}"


def gossamer_pack(dense: Array) -> Job:
    return lambda: gs.Mask.from_dense(dense).packed


def numpy_pack(dense: Array) -> Job:
    return lambda: packed(dense)


@peers(gossamer_pack, numpy_pack)
def test_from_dense(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    dense = kept(size)
    name = group("Mask.from_dense", size)
    measure(peer(dense), equals(packed(dense)), group=name, read=dense.nbytes, written=dense.size / 8)


def gossamer_unpack(dense: Array) -> Job:
    return gs.Mask.from_dense(dense).to_dense


def numpy_unpack(dense: Array) -> Job:
    bits = packed(dense)
    return lambda: np.unpackbits(bits, axis=1, count=dense.shape[1], bitorder="little").view(np.bool_)


@peers(gossamer_unpack, numpy_unpack)
def test_to_dense(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    dense = kept(size)
    measure(peer(dense), equals(dense), group=group("Mask.to_dense", size), read=dense.size / 8, written=dense.nbytes)


def gossamer_indices(dense: Array) -> Job:
    return gs.Mask.from_dense(dense).indices


def numpy_indices_of_bits(dense: Array) -> Job:
    bits = packed(dense)
    return lambda: np.flatnonzero(np.unpackbits(bits, axis=1, count=dense.shape[1], bitorder="little"))


def numpy_indices_of_bools(dense: Array) -> Job:
    return lambda: np.flatnonzero(dense)


def torch_indices_of_bools(dense: Array) -> Job:
    flat = as_tensor(dense).view(-1)
    return lambda: flat.nonzero().view(-1)


@peers(gossamer_indices, numpy_indices_of_bits, numpy_indices_of_bools, torch_indices_of_bools)
def test_indices(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    dense = kept(size)
    indices = np.flatnonzero(dense)
    name = group("Mask.indices, 10 % kept,", size)
    measure(peer(dense), equals(indices), group=name, read=dense.size / 8, written=indices.nbytes)


def gossamer_and(a: Array, b: Array) -> Job:
    left, right = gs.Mask.from_dense(a), gs.Mask.from_dense(b)
    return lambda: left & right


def gossamer_invert(a: Array, b: Array) -> Job:
    left = gs.Mask.from_dense(a)
    return lambda: ~left


def numpy_and(a: Array, b: Array) -> Job:
    return lambda: a & b


def numpy_invert(a: Array, b: Array) -> Job:
    return lambda: ~a


@peers(gossamer_and, gossamer_invert, numpy_and, numpy_invert)
def test_combine(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    """``&`` counts its result too; numpy works on bools."""
    a, b = kept(size), kept(size, 1)
    both = peer.__name__.endswith("and")
    measure(
        peer(a, b),
        equals(a & b if both else ~a),
        group=group("Mask &" if both else "Mask ~", size),
        read=(2 if both else 1) * a.size / 8,
        written=a.size / 8,
    )


# ---------------------------------------------------------------------------------------------------------- apply_mask


def gossamer_out(w: Array, dense: Array) -> Job:
    mask, out = gs.Mask.from_dense(dense), fresh(w.shape)
    return lambda: gs.apply_mask(w, mask, out=out)


def gossamer(w: Array, dense: Array) -> Job:
    mask = gs.Mask.from_dense(dense)
    return lambda: gs.apply_mask(w, mask)


def numpy_multiply_out(w: Array, dense: Array) -> Job:
    out = fresh(w.shape)
    return lambda: np.multiply(w, dense, out=out)


def numpy_multiply(w: Array, dense: Array) -> Job:
    return lambda: w * dense


def numpy_where(w: Array, dense: Array) -> Job:
    return lambda: np.where(dense, w, np.float32(0))


def torch_multiply_out(w: Array, dense: Array) -> Job:
    torch, tensor, mask, out = torch_or_skip(), as_tensor(w), as_tensor(dense), as_tensor(fresh(w.shape))
    return lambda: torch.mul(tensor, mask, out=out)


def torch_where(w: Array, dense: Array) -> Job:
    torch, tensor, mask = torch_or_skip(), as_tensor(w), as_tensor(dense)
    return lambda: torch.where(mask, tensor, 0.0)


@peers(gossamer_out, gossamer, numpy_multiply_out, numpy_multiply, numpy_where, torch_multiply_out, torch_where)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_apply_mask(sparsity: float, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w = normal(size, 2)
    dense = np.abs(normal(size)) > {0.5: 0.6745, 0.9: 1.645}[sparsity]
    measure(
        peer(w, dense),
        equals(np.where(dense, w, np.float32(0))),
        group=group(f"apply_mask {sparsity}", size),
        read=w.nbytes + w.size / 8,
        written=w.nbytes,
    )
