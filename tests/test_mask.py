# SPDX-License-Identifier: Apache-2.0
"""``Mask``: packed bits, set operations, equality, pickling."""

import copy
import pickle

import numpy as np
import pytest

import gossamer as gs
from cases import Case, check_against_reference, generator, table
from gossamer import reference

SHAPES = [(0,), (1,), (7,), (8,), (9,), (64,), (65,), (0, 5), (5, 0), (3, 13), (16, 24), (4, 3, 3, 3), (2, 70_001)]


def _dense(shape: tuple[int, ...], density: float = 0.4, *key: object) -> np.ndarray:
    return generator("mask", shape, *key).random(shape) < density


@pytest.mark.parametrize("case", table("mask/"), ids=str)
def test_round_trip_in_every_layout(case: Case) -> None:
    check_against_reference(case)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_attributes(shape: tuple[int, ...], density: float) -> None:
    dense = _dense(shape, density)
    mask = gs.Mask.from_dense(dense)
    assert mask.shape == shape
    assert isinstance(mask.shape, tuple)
    assert mask.nnz == dense.sum()
    assert isinstance(mask.nnz, int)
    if dense.size:
        assert mask.density == dense.mean()
        assert mask.sparsity == pytest.approx(1 - dense.mean(), abs=1e-15)
    back = mask.to_dense()
    assert back.dtype == np.bool_
    assert back.shape == shape
    assert (back == dense).all()
    indices = mask.indices()
    assert indices.dtype == np.int64
    assert (indices == np.flatnonzero(dense)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_little_endian_per_row_and_padding_is_zero(shape: tuple[int, ...]) -> None:
    dense = _dense(shape)
    for mask in (gs.Mask.from_dense(dense), ~gs.Mask.from_dense(~dense), gs.topk_mask(dense * 1.0, threshold=0.5)):
        packed = np.asarray(mask.packed)
        assert packed.dtype == np.uint8
        assert packed.shape == reference.pack_bits(dense).shape
        assert (packed == reference.pack_bits(dense)).all()
        assert gs.Mask(shape, packed) == mask


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_set_operations(shape: tuple[int, ...]) -> None:
    a, b = _dense(shape, 0.5, "a"), _dense(shape, 0.5, "b")
    p, q = gs.Mask.from_dense(a), gs.Mask.from_dense(b)
    assert ((p & q).to_dense() == (a & b)).all()
    assert (p & q).nnz == (a & b).sum()
    assert ((p | q).to_dense() == (a | b)).all()
    assert (p | q).nnz == (a | b).sum()
    assert ((~p).to_dense() == ~a).all()
    assert (~p).nnz == a.size - a.sum()
    assert (p.to_dense() == a).all()
    assert (q.to_dense() == b).all()


def test_equality_and_hash() -> None:
    dense = _dense((9, 13))
    one, two = gs.Mask.from_dense(dense), gs.Mask.from_dense(np.asfortranarray(dense))
    assert one == two
    assert hash(one) == hash(two)
    assert len({one, two}) == 1
    other = dense.copy()
    other[8, 12] = ~other[8, 12]
    assert one != gs.Mask.from_dense(other)
    assert gs.Mask.from_dense(np.ones((2, 8), bool)) != gs.Mask.from_dense(np.ones((16,), bool))
    assert gs.Mask.from_dense(np.ones((2, 8), bool)) != gs.Mask.from_dense(np.ones((2, 7), bool))
    assert gs.Mask.from_dense(np.ones((2, 3, 4), bool)) != gs.Mask.from_dense(np.ones((2, 4, 3), bool))
    assert (one == 3) is False
    assert (one != "mask") is True


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pickle_and_deepcopy(shape: tuple[int, ...]) -> None:
    mask = gs.Mask.from_dense(_dense(shape))
    for other in (pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask), copy.copy(mask)):
        assert other == mask
        assert other.shape == mask.shape
        assert other.nnz == mask.nnz


def test_a_mask_does_not_change_with_the_array_it_came_from() -> None:
    dense = _dense((9, 13))
    mask, before = gs.Mask.from_dense(dense), dense.copy()
    dense[...] = ~dense
    mask.to_dense()[...] = True
    assert (mask.to_dense() == before).all()
    assert mask.nnz == before.sum()


def test_a_hash_is_of_something_that_cannot_change() -> None:
    mask = gs.Mask.from_dense(_dense((9, 13)))
    before, packed = hash(mask), mask.packed
    try:
        packed[...] ^= np.uint8(1)
    except (ValueError, TypeError):
        return  # read-only, as numpy says it
    assert hash(mask) == before
    assert mask == gs.Mask.from_dense(_dense((9, 13)))


def test_the_bits_cannot_be_made_writable() -> None:
    dense = generator("writable").random((5, 11)) < 0.5
    w = generator("writable").standard_normal((5, 11))
    made = (
        gs.Mask.from_dense(dense),
        gs.topk_mask(w, sparsity=0.5),
        gs.prune(w, sparsity=0.5)[1],
        gs.SparseMatrix.from_dense(w, format="csr").mask,
        ~gs.Mask.from_dense(dense) | gs.Mask.from_dense(dense),
        gs.Mask(dense.shape, gs.Mask.from_dense(dense).packed),
        pickle.loads(pickle.dumps(gs.Mask.from_dense(dense))),
    )
    for mask in made:
        with pytest.raises(ValueError, match="WRITEABLE"):
            mask.packed.flags.writeable = True


def test_repr_is_short_and_names_shape_and_count() -> None:
    text = repr(gs.Mask.from_dense(np.ones((300, 400), bool)))
    assert len(text) < 200
    assert "300" in text
    assert "400" in text


def test_padding_bits_in_given_bytes_are_refused_or_cleared() -> None:
    try:
        mask = gs.Mask((1, 3), np.array([[0xFF]], np.uint8))
    except ValueError:
        return
    assert mask.nnz == 3
    assert mask == gs.Mask.from_dense(np.ones((1, 3), bool))
