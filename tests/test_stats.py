# SPDX-License-Identifier: Apache-2.0
"""``Stats``: float64 sums in row order; updates, decay, merging, files."""

import contextlib
import copy
import pickle
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import FLOATS, LAYOUTS, Case, assert_same_bits, check_against_reference, generator, table, values
from gossamer import reference

KINDS = ("norm", "grad2", "hessian", "movement")
DTYPES = (*FLOATS, np.float16, ml_dtypes.bfloat16)


def _batch(kind: str, step: int, dtype: Any = np.float32) -> tuple[np.ndarray, ...]:
    if kind in ("norm", "hessian"):
        return (values("normal", (7, 12), dtype, "x", step),)
    if kind == "grad2":
        return (values("normal", (5, 6, 12), dtype, "g", step),)
    return values("normal", (6, 12), dtype, "w", step), values("normal", (6, 12), dtype, "g", step)


def _fed(lib: Any, kind: str, steps: range, **options: Any) -> Any:
    stats = lib.Stats(kind, **options)
    for step in steps:
        stats.update(*_batch(kind, step))
    return stats


@pytest.mark.parametrize("case", table("stats/"), ids=str)
def test_one_update_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [None, 0.9, 0.0, 1.0])
def test_many_updates(kind: str, decay: float | None) -> None:
    got, expected = _fed(gs, kind, range(5), decay=decay), _fed(reference, kind, range(5), decay=decay)
    assert got.values.dtype == np.float64
    atol = 1e-14 if kind == "hessian" else 1e-300  # BLAS takes the terms of a sum in its own order
    np.testing.assert_allclose(got.values, expected.values, rtol=1e-14, atol=atol)
    assert got.kind == kind


@pytest.mark.parametrize("dtype", FLOATS)
def test_norm_by_hand(dtype: type) -> None:
    stats = gs.Stats("norm")
    stats.update(np.array([[3.0, 0.0], [4.0, -2.0]], dtype))
    assert stats.values.tolist() == [5.0, 2.0]
    stats.update(np.array([12.0, 0.0], dtype))  # a vector is one sample
    assert stats.values.tolist() == [13.0, 2.0]


def test_leading_axes_are_flattened() -> None:
    x = values("normal", (2, 3, 4, 5), np.float32)
    one, two = gs.Stats("norm"), gs.Stats("norm")
    one.update(x)
    two.update(x.reshape(24, 5))
    assert_same_bits(one.values, two.values)
    assert one.values.shape == (5,)


def test_grad2_is_the_mean_of_squares_not_the_square_of_the_mean() -> None:
    stats = gs.Stats("grad2")
    stats.update(np.array([[1.0], [-1.0]]))
    assert stats.values.tolist() == [1.0]
    assert stats.count == 2
    stats.update(np.array([[2.0], [0.0]]))
    assert stats.values.tolist() == [1.5]
    assert stats.count == 4


def test_movement_by_hand() -> None:
    stats = gs.Stats("movement")
    stats.update(np.array([1.0, 2.0]), np.array([0.5, -1.0]))
    stats.update(np.array([2.0, 2.0]), np.array([1.0, -1.0]))
    assert stats.values.tolist() == [-2.5, 4.0]


def test_sums_are_float64() -> None:
    stats = gs.Stats("norm")
    x = np.ones((3, 1), np.float32)
    x[0] = 2.0**13
    stats.update(x)
    assert stats.values[0] == np.sqrt(2.0**26 + 2)
    stats = gs.Stats("norm")
    stats.update(np.full((2, 1), 1e38, np.float32))
    assert np.isfinite(stats.values).all()


def test_decay_by_hand() -> None:
    stats = gs.Stats("grad2", decay=0.5)
    stats.update(np.array([[2.0], [2.0]]))
    stats.update(np.array([[4.0]]))
    assert stats.count == 2.0
    assert stats.values.tolist() == [(0.5 * 8 + 16) / 2]
    stats = gs.Stats("movement", decay=0.5)
    stats.update(np.array([1.0]), np.array([1.0]))
    stats.update(np.array([1.0]), np.array([4.0]))
    assert stats.values.tolist() == [-4.5]


@pytest.mark.parametrize("kind", KINDS)
def test_merge_is_one_stream(kind: str) -> None:
    whole, left, right = _fed(gs, kind, range(6)), _fed(gs, kind, range(3)), _fed(gs, kind, range(3, 6))
    before = right.values.copy()
    merged = left.merge(right)
    merged = left if merged is None else merged
    np.testing.assert_allclose(merged.values, whole.values, rtol=1e-13)
    assert_same_bits(right.values, before)


@pytest.mark.parametrize("kind", KINDS)
def test_merging_with_an_empty_one(kind: str) -> None:
    full, empty = _fed(gs, kind, range(2)), gs.Stats(kind)
    expected = full.values.copy()
    merged = full.merge(empty)
    assert_same_bits((full if merged is None else merged).values, expected)
    merged = empty.merge(full)
    assert_same_bits((empty if merged is None else merged).values, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("decay", [None, 0.75])
def test_copies_and_files_go_on_where_the_original_stands(kind: str, decay: float | None, tmp_path: Path) -> None:
    stats = _fed(gs, kind, range(3), decay=decay)
    stats.save(tmp_path / "stats.safetensors")
    stats.save(str(tmp_path / "again.safetensors"))
    copies = [
        pickle.loads(pickle.dumps(stats)),
        copy.deepcopy(stats),
        gs.Stats.load(tmp_path / "stats.safetensors"),
        gs.Stats.load(str(tmp_path / "again.safetensors")),
    ]
    expected = stats.values.copy()
    stats.update(*_batch(kind, 3))
    for other in copies:
        assert_same_bits(other.values, expected)
        other.update(*_batch(kind, 3))
        assert_same_bits(other.values, stats.values)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_survive_a_file(kind: str, tmp_path: Path) -> None:
    stats = gs.Stats(kind, decay=np.float32(0.5))
    batch = _batch(kind, 0)
    batch[0][2, 3], batch[0][1, 1] = np.nan, np.inf
    stats.update(*batch)
    stats.save(tmp_path / "stats.safetensors")
    loaded = gs.Stats.load(tmp_path / "stats.safetensors")
    assert np.isnan(loaded.values).any()
    np.testing.assert_array_equal(loaded.values, stats.values)
    assert loaded.decay == 0.5


def test_a_batch_of_none_changes_nothing() -> None:
    stats = _fed(gs, "norm", range(1))
    expected = stats.values.copy()
    stats.update(np.zeros((0, 12), np.float32))
    assert_same_bits(stats.values, expected)


def test_values_are_not_the_state() -> None:
    stats = _fed(gs, "movement", range(1))
    expected = stats.values.copy()
    with contextlib.suppress(ValueError):  # read-only is fine
        stats.values[...] = 0
    assert_same_bits(stats.values, expected)


def test_inputs_are_not_written_and_not_held() -> None:
    w, g = _batch("movement", 0)
    keep_w, keep_g = w.copy(), g.copy()
    stats = gs.Stats("movement")
    stats.update(w, g)
    assert_same_bits(w, keep_w)
    assert_same_bits(g, keep_g)
    expected = stats.values.copy()
    w[...] = g[...] = 9
    assert_same_bits(stats.values, expected)


# ------------------------------------------------------------------------------------------------------------ hessian


def test_hessian_by_hand() -> None:
    stats = gs.Stats("hessian")
    stats.update(np.array([[1.0, 2.0], [3.0, 0.0]]))
    assert stats.values.tolist() == [[10.0, 2.0], [2.0, 4.0]]
    stats.update(np.array([0.0, 1.0]))  # a vector is one sample
    assert stats.values.tolist() == [[10.0, 2.0], [2.0, 5.0]]
    assert stats.count == 3


def test_hessian_decays() -> None:
    stats = gs.Stats("hessian", decay=0.5)
    stats.update(np.array([[2.0, 0.0]]))
    stats.update(np.array([[1.0, 1.0]]))
    assert stats.values.tolist() == [[3.0, 1.0], [1.0, 1.0]]
    assert stats.count == 1.5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_hessian_of_any_layout_and_dtype(layout: str, dtype: Any) -> None:
    x = values("normal", (5, 9, 33), dtype)
    stats = gs.Stats("hessian")
    stats.update(LAYOUTS[layout](x))
    wide = x.reshape(45, 33).astype(np.float64)
    assert stats.values.dtype == np.float64
    assert_same_bits(stats.values, stats.values.T)
    bound = np.abs(wide).T @ np.abs(wide)
    assert (np.abs(stats.values - wide.T @ wide) <= 1e-14 * bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_hessian_in_blocks_of_rows(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x = generator("integers").integers(-8, 9, (103, 21)).astype(dtype)  # so that every order gives the same sums
    monkeypatch.setattr("gossamer.stats._SCRATCH", 10 * 21)
    stats = gs.Stats("hessian")
    stats.update(x)
    wide = x.astype(np.float64)
    assert_same_bits(stats.values, wide.T @ wide)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0,), (2, 0, 3)], ids=str)
def test_hessian_of_nothing(shape: tuple[int, ...]) -> None:
    stats = gs.Stats("hessian")
    stats.update(np.zeros(shape))
    assert_same_bits(stats.values, np.zeros((shape[-1], shape[-1])))


def test_hessian_sums_are_float64() -> None:
    stats = gs.Stats("hessian")
    stats.update(np.full((3, 2), 1e38, np.float32))
    assert np.isfinite(stats.values).all()
    stats = gs.Stats("hessian")
    stats.update(np.full((3, 2), 60000, np.float16))
    assert (stats.values == 3 * 60000.0**2).all()


def test_hessian_with_nan_and_infinity_is_as_the_norm() -> None:
    x = np.array([[1.0, np.inf, 0.0, 2.0], [1.0, 0.0, np.nan, 2.0]])
    norm, stats = gs.Stats("norm"), gs.Stats("hessian")
    norm.update(x)
    stats.update(x)
    np.testing.assert_array_equal(np.sqrt(np.diagonal(stats.values)), norm.values)
    assert stats.values[0, 3] == 4.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_changes_nothing(kind: str) -> None:
    stats = _fed(gs, kind, range(2))
    expected, count = stats.values.copy(), stats.count
    batch = _batch(kind, 0)
    for bad in ([b[..., :-1] for b in batch], [b.astype(np.int32) for b in batch], [b.astype(">f4") for b in batch]):
        with pytest.raises((TypeError, ValueError), match=r"^Stats\.update: "):
            stats.update(*bad)
        assert_same_bits(stats.values, expected)
        assert stats.count == count


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_16_bit_data_are_summed_exactly_as_they_are(kind: str, dtype: Any) -> None:
    narrow, wide = gs.Stats(kind, decay=0.5), gs.Stats(kind, decay=0.5)
    for step in range(3):
        batch = _batch(kind, step, dtype)
        narrow.update(*batch)
        wide.update(*(b.astype(np.float64) for b in batch))
    np.testing.assert_allclose(narrow.values, wide.values, rtol=1e-14, atol=1e-14)
    if kind != "hessian":
        assert_same_bits(narrow.values, wide.values)


def test_a_file_with_another_matrix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "stats.safetensors"
    for sums in (np.array([[1.0, 2.0], [3.0, 1.0]]), np.ones(3), np.ones((2, 3)), -np.eye(2)):
        stats = _fed(gs, "hessian", range(1))
        stats._sums = sums
        stats.save(path)
        with pytest.raises(ValueError, match=r"^Stats\.load: .* must be a file written by Stats\.save, got "):
            gs.Stats.load(path)
