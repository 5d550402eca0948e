# SPDX-License-Identifier: Apache-2.0
"""``topk_mask``: counts, ties, NaN, groups, patterns, priors, floors; all of it exactly."""

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, DTYPES, FLOATS, Case, assert_same_bits, check_against_reference, generator, table, values
from gossamer import reference


@pytest.mark.parametrize("case", table("topk_mask/"), ids=str)
def test_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


@pytest.mark.parametrize("n", [1, 2, 3, 10, 99, 1000, 32768, 32769, 100_003])
@pytest.mark.parametrize(
    "sparsity", [0, 1, 0.0, 1.0, 1e-9, 0.05, 0.1, 0.15, 0.25, 1 / 3, 0.5, 0.7, 0.9, 0.95, 0.999999]
)
def test_the_count_is_exact(n: int, sparsity: float) -> None:
    expected = n - math.floor(n * round(sparsity, 12) + 0.5)
    scores = values("heavy_ties", (n,), np.float32)
    assert gs.topk_mask(scores, sparsity=sparsity).nnz == expected
    assert gs.topk_mask(scores.astype(np.float64), nnz=expected).nnz == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [32767, 32768, 32769, 65535, 65536, 65537, 131_072])
def test_the_borders_of_chunks(dtype: type, n: int) -> None:
    for distribution in ("normal", "heavy_ties", "all_equal", "sorted", "reversed", "nearly_equal"):
        scores = values(distribution, (n,), dtype)
        order = np.lexsort((np.arange(n), -scores.astype(np.float64)))
        for k in (0, 1, 2, n // 10, n // 2, n - 2, n - 1, n):
            expected = np.zeros(n, bool)
            expected[order[:k]] = True
            assert_same_bits(gs.topk_mask(scores, nnz=k).to_dense(), expected, f"{distribution} {k}")


@pytest.mark.parametrize("sparsity", [np.float32(0.9), np.float64(0.9), np.int64(1)])
def test_the_sparsity_may_be_any_real_number(sparsity: Any) -> None:
    n = 1_000_003
    assert gs.topk_mask(np.ones(n, np.float32), sparsity=sparsity).nnz == reference.kept_count(n, float(sparsity))


def test_half_a_weight_is_pruned_and_rounding_noise_is_not_seen() -> None:
    assert gs.topk_mask(np.ones(5), sparsity=0.5).nnz == 2  # 2.5 + 0.5 pruned
    assert gs.topk_mask(np.ones(10), sparsity=0.1 + 0.2).nnz == 7
    assert gs.topk_mask(np.ones(10), sparsity=0.35).nnz == 6  # 3.5 pruned: 4
    assert gs.topk_mask(np.ones(10), sparsity=1 - 0.9).nnz == 9


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [5, 64, 1001, 3 * 32768 + 77])
def test_ties_keep_the_lower_flat_index(dtype: type, n: int) -> None:
    kept = gs.topk_mask(np.full(n, -2.5, dtype), nnz=n // 2).to_dense()
    assert kept[: n // 2].all()
    assert not kept[n // 2 :].any()
    scores = np.zeros(n, dtype)
    scores[::2] = -0.0  # -0 equals +0
    scores[-1] = 1.0
    kept = gs.topk_mask(scores, nnz=n // 2).to_dense()
    assert kept[-1]
    assert kept[: n // 2 - 1].all()
    assert not kept[n // 2 - 1 : -1].any()


def test_ties_across_a_mapping_follow_its_order() -> None:
    params = {"z": np.ones((2, 2)), "a": np.ones(3), "m": np.ones((0, 4)), "b": np.ones(2)}
    masks = gs.topk_mask(params, nnz=6, group="global")
    assert [masks[name].nnz for name in params] == [4, 2, 0, 0]
    assert masks["a"].to_dense().tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_order_of_the_key_is_the_order_of_the_numbers(dtype: type) -> None:
    limits = ml_dtypes.finfo(dtype)
    tiny, big, above = (float(x) for x in (limits.smallest_subnormal, limits.max, 1 + float(limits.eps)))
    ascending = np.array([-np.inf, -big, -1, -tiny, 0, tiny, 1, above, big, np.inf], dtype)
    order = generator("order").permutation(len(ascending))
    for k in range(len(ascending) + 1):
        kept = gs.topk_mask(ascending[order], nnz=k).to_dense()
        assert set(order[kept]) == set(range(len(ascending) - k, len(ascending)))


# NaN


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_refused_with_its_place(dtype: type) -> None:
    a = values("normal", (300, 400), dtype)
    a[7, 5] = a[200, 100] = np.nan
    with pytest.raises(ValueError, match=r"^topk_mask: .*NaN.*\b2805\b"):
        gs.topk_mask(a, sparsity=0.5)
    with pytest.raises(ValueError, match=r"^topk_mask: .*\bweird\b.*\b2805\b"):
        gs.topk_mask({"fine": a[:7], "weird": a, "later": a}, sparsity=0.5, group="global")
    with pytest.raises(ValueError, match=r"^prune: .*\b2805\b"):
        gs.prune(a, sparsity=0.5)
    prior = gs.Mask.from_dense(~np.isnan(a))  # the prior excludes them: still refused
    with pytest.raises(ValueError, match=r"^topk_mask: .*\b2805\b"):
        gs.topk_mask(a, sparsity=0.5, prior=prior)
    for options in ({"sparsity": 1.0}, {"sparsity": 0.0}, {"threshold": 0.0}, {"nnz": 5, "group": "row"},
                    {"pattern": "2:4"}, {"pattern": "row", "nnz": 3}, {"pattern": "block:2x4", "nnz": 3}):  # fmt: skip
        with pytest.raises(ValueError, match=r"^topk_mask: .*\b2805\b"):
            gs.topk_mask(a, **options)


def test_the_index_of_a_nan_is_the_logical_one() -> None:
    a = np.zeros((30, 40))
    a[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"\b83\b"):
        gs.topk_mask(np.asfortranarray(a), sparsity=0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nan", ["prune", "keep"])
@pytest.mark.parametrize("share", [0.001, 0.2, 0.9, 1.0])
def test_nan_ranks_last_or_first(dtype: type, nan: str, share: float) -> None:
    r = generator("nan", share)
    a = values("infinities", (120, 256), dtype)
    a[r.random(a.shape) < share] = np.nan
    a[::3] = np.negative(a[::3])  # negative NaN, too
    for options in ({"sparsity": 0.5}, {"sparsity": 0.05}, {"nnz": 40, "group": "row"}, {"pattern": "2:4"},
                    {"threshold": 0.25}, {"sparsity": 1.0}, {"sparsity": 0.0}):  # fmt: skip
        got = gs.topk_mask(a, nan=nan, **options).to_dense()
        assert_same_bits(got, reference.topk_mask(a, nan=nan, **options), str(options))
    for options in ({"pattern": "row", "sparsity": 0.3}, {"pattern": "block:2x4", "sparsity": 0.6}):
        got = gs.topk_mask(a, nan=nan, **options).to_dense()
        assert_same_bits(got, reference.topk_mask(a, nan=nan, **options), str(options))


@pytest.mark.parametrize("nan", ["prune", "keep"])
@pytest.mark.parametrize("masked", [False, True])
def test_the_last_one_kept_is_next_to_a_crowd_of_nan(nan: str, masked: bool) -> None:
    """A sample then says that it is one of them, wrongly half of the time."""
    r = generator("crowd of nan", nan)
    a = r.standard_normal(600_000).astype(np.float32)
    a[r.random(a.size) < 0.3] = np.nan
    free = r.random(a.size) < 0.9 if masked else np.ones(a.size, bool)
    border = np.count_nonzero(free & (np.isnan(a) if nan == "keep" else ~np.isnan(a)))
    for nnz in (border - 300, border - 1, border, border + 1, border + 300):
        got = gs.topk_mask(a, nnz=nnz, nan=nan, prior=gs.Mask.from_dense(free) if masked else None)
        expected = reference.topk_mask(a, nnz=nnz, nan=nan, prior=free if masked else None)
        assert_same_bits(got.to_dense(), expected, str(nnz))


@pytest.mark.parametrize("pattern", ["row", "col", "block:2x2"])
def test_a_unit_of_infinities_of_both_signs_has_no_sum(pattern: str) -> None:
    a = np.arange(16, dtype=np.float32).reshape(4, 4)
    a[0, 0], a[0, 1], a[1, 0] = np.inf, -np.inf, -np.inf
    for select in (gs.topk_mask, reference.topk_mask):
        with pytest.raises(ValueError, match="must have a sum"):
            select(a, pattern=pattern, nnz=1)
    for nan in ("prune", "keep"):
        got = gs.topk_mask(a, pattern=pattern, nnz=1, nan=nan)
        assert_same_bits(got.to_dense(), reference.topk_mask(a, pattern=pattern, nnz=1, nan=nan), nan)


def test_nan_below_minus_infinity_and_above_infinity() -> None:
    a = np.array([np.nan, -np.inf, np.inf, -np.nan, 0.0])
    kept = [np.flatnonzero(gs.topk_mask(a, nnz=k, nan="prune").to_dense()).tolist() for k in range(6)]
    assert kept == [[], [2], [2, 4], [1, 2, 4], [0, 1, 2, 4], [0, 1, 2, 3, 4]]
    kept = [np.flatnonzero(gs.topk_mask(a, nnz=k, nan="keep").to_dense()).tolist() for k in range(6)]
    assert kept == [[], [0], [0, 3], [0, 2, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4]]


# groups and patterns


def test_nnz_counts_per_row_or_in_all() -> None:
    a = values("normal", (6, 10), np.float32)
    assert gs.topk_mask(a, nnz=3, group="row").to_dense().sum(axis=1).tolist() == [3] * 6
    both = {"a": a, "b": 10 * a}
    assert [m.nnz for m in gs.topk_mask(both, nnz=12).values()] == [12, 12]
    assert sum(m.nnz for m in gs.topk_mask(both, nnz=12, group="global").values()) == 12


def test_a_mapping_of_one_and_an_array_agree_for_global() -> None:
    a = values("heavy_ties", (30, 41), np.float32)
    assert gs.topk_mask(a, sparsity=0.7, group="global") == gs.topk_mask({"a": a}, sparsity=0.7, group="global")["a"]


def test_global_mixes_dtypes_by_value() -> None:
    params = {"a": np.array([0.1, 3.0], np.float32), "b": np.array([0.1, 2.0], np.float64)}
    masks = gs.topk_mask(params, nnz=3, group="global")  # float32(0.1) is above 0.1
    assert masks["a"].to_dense().tolist() == [True, True]
    assert masks["b"].to_dense().tolist() == [False, True]


def test_the_pattern_counts_units() -> None:
    a = values("normal", (8, 12), np.float64)
    assert gs.topk_mask(a, nnz=3, pattern="row").nnz == 36
    assert gs.topk_mask(a, nnz=3, pattern="col").nnz == 24
    assert gs.topk_mask(a, nnz=5, pattern="block:4x3").nnz == 60
    assert gs.topk_mask(a, sparsity=0.5, pattern="block:4x3").nnz == 48
    kernel = values("normal", (8, 3, 2, 2), np.float64)
    filters = gs.topk_mask(kernel, nnz=2, pattern="row").to_dense()
    assert sorted(filters.reshape(8, -1).sum(axis=1)) == [0] * 6 + [12] * 2


def test_col_and_row_group_is_col_and_tensor_group() -> None:
    a = values("normal", (9, 14), np.float32)
    assert gs.topk_mask(a, nnz=5, pattern="col", group="row") == gs.topk_mask(a, nnz=5, pattern="col")


def test_block_strips_compete_within_a_row_group() -> None:
    a = values("normal", (8, 12), np.float32)
    mask = gs.topk_mask(a, nnz=1, pattern="block:4x3", group="row").to_dense()
    assert mask[:4].sum() == mask[4:].sum() == 12


@pytest.mark.parametrize("dtype", [BFLOAT16, *FLOATS])  # float64 sums of float16 are exact in any order
@pytest.mark.parametrize("pattern", ["row", "col", "block:4x31", "block:1x31", "block:2x93"])
def test_units_are_summed_in_the_fixed_order(dtype: Any, pattern: str) -> None:
    """Units that hold the same numbers in other places: exact sums tie, rounded sums depend on the order."""
    r = generator("fixed order", pattern)
    rows, cols, height, width = reference.unit_grid((40, 186), pattern)
    unit = (r.standard_normal(height * width) * 10.0 ** r.integers(-8, 9, height * width)).astype(dtype)
    a = np.empty((40, 186), dtype)
    for i in range(rows):
        for j in range(cols):
            block = r.permutation(unit).reshape(height, width)
            a[i * height : (i + 1) * height, j * width : (j + 1) * width] = block
    assert len(np.unique(reference.unit_scores(a, pattern))) > 1
    for layout in (a, np.asfortranarray(a)):
        for k in (1, rows * cols // 3, rows * cols // 2):
            got = gs.topk_mask(layout, nnz=k, pattern=pattern).to_dense()
            assert_same_bits(got, reference.topk_mask(a, nnz=k, pattern=pattern))


def test_unit_sums_keep_float64() -> None:
    a = np.zeros((2, 8), np.float32)
    a[:, 0] = 2.0**24
    a[1, 1] = 1.0  # lost in a float32 sum
    assert gs.topk_mask(a, nnz=1, pattern="row").to_dense()[1].all()
    a = np.full((2, 4), np.finfo(np.float32).max)
    a[0, 0] /= 2
    assert gs.topk_mask(a, nnz=1, pattern="row").to_dense()[1].all()  # no overflow either


def test_n_of_m_may_name_the_sparsity_or_the_count() -> None:
    a = values("normal", (6, 12), np.float32)
    mask = gs.topk_mask(a, pattern="1:4")
    assert mask.to_dense().reshape(-1, 4).sum(axis=1).tolist() == [1] * 18
    assert gs.topk_mask(a, pattern="1:4", sparsity=0.75) == mask
    assert gs.topk_mask(a, pattern="1:4", nnz=18) == mask
    assert gs.topk_mask(a, pattern="1:3", sparsity=2 / 3).nnz == 24
    assert gs.topk_mask(a, pattern="4:4").nnz == 72
    for group in ("tensor", "row", "global"):
        assert gs.topk_mask(a, pattern="1:4", group=group) == mask


def test_n_of_m_keeps_the_lower_index_of_ties() -> None:
    mask = gs.topk_mask(np.array([[1.0, 1, 1, 1, 0, 2, 0, -0.0]]), pattern="2:4").to_dense()
    assert mask.tolist() == [[True, True, False, False, True, True, False, False]]


# threshold


def test_threshold_keeps_at_least() -> None:
    a = np.array([0.5, 0.25, 0.75, -1.0, 0.5, np.inf, -np.inf])
    assert gs.topk_mask(a, threshold=0.5).to_dense().tolist() == [True, False, True, False, True, True, False]
    assert gs.topk_mask(np.array([0.0, -0.0, 1e-300, -1e-300]), threshold=-0.0).to_dense().tolist() == [1, 1, 1, 0]
    assert gs.topk_mask(a, threshold=-np.inf).nnz == 7
    assert gs.topk_mask(a, threshold=np.inf).nnz == 1


def test_a_threshold_taken_from_the_scores_keeps_that_score() -> None:
    a = values("normal", (400,), np.float32)
    kept = gs.topk_mask(a, threshold=float(np.sort(a)[300])).to_dense()
    assert kept.sum() == 100
    kept = gs.topk_mask(a, threshold=np.sort(a)[300]).to_dense()  # a numpy scalar
    assert kept.sum() == 100


# prior and floors


def test_the_prior_is_never_left() -> None:
    a = np.arange(12.0).reshape(3, 4)
    prior = gs.Mask.from_dense(a < 6)
    assert np.flatnonzero(gs.topk_mask(a, nnz=2, prior=prior).to_dense()).tolist() == [4, 5]
    assert gs.topk_mask(a, nnz=6, prior=prior) == prior
    assert gs.topk_mask(a, threshold=4, prior=prior).indices().tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"^topk_mask: .*prior"):
        gs.topk_mask(a, nnz=7, prior=prior)
    with pytest.raises(ValueError, match=r"^topk_mask: .*prior"):
        gs.topk_mask(a, nnz=1, group="row", prior=prior)  # the last row has none left


def test_the_prior_allows_whole_units_only() -> None:
    a = np.ones((4, 4))
    keep = np.ones((4, 4), bool)
    keep[0, 1] = False
    mask = gs.topk_mask(a, nnz=2, pattern="row", prior=gs.Mask.from_dense(keep)).to_dense()
    assert mask.any(axis=1).tolist() == [False, True, True, False]
    mask = gs.topk_mask(a, nnz=3, pattern="block:2x2", prior=gs.Mask.from_dense(keep)).to_dense()
    assert not mask[0, 0]
    assert mask.sum() == 12
    with pytest.raises(ValueError, match=r"^topk_mask: .*prior"):
        gs.topk_mask(a, nnz=4, pattern="row", prior=gs.Mask.from_dense(keep))


def test_the_prior_in_a_window() -> None:
    keep = np.array([[False, True, True, True, True, True, True, True]])
    mask = gs.topk_mask(np.array([[9.0, 0, 1, 2, 3, 2, 1, 0]]), pattern="2:4", prior=gs.Mask.from_dense(keep))
    assert mask.indices().tolist() == [2, 3, 4, 5]
    keep[0, :3] = False
    with pytest.raises(ValueError, match=r"^topk_mask: .*prior"):
        gs.topk_mask(np.ones((1, 8)), pattern="2:4", prior=gs.Mask.from_dense(keep))


def test_a_mapping_of_priors() -> None:
    params = {"a": np.ones(4), "b": np.ones(4)}
    prior = {"a": gs.Mask.from_dense(np.zeros(4, bool)), "b": gs.Mask.from_dense(np.ones(4, bool))}
    masks = gs.topk_mask(params, nnz=3, group="global", prior=prior)
    assert masks["a"].nnz == 0
    assert masks["b"].indices().tolist() == [0, 1, 2]


def test_min_density_is_a_floor_inside_the_same_total() -> None:
    big, small = values("normal", (1000,), np.float32), 1e-3 * values("normal", (500,), np.float32, "small")
    params = {"small": small, "big": np.abs(big) + 1, "empty": np.zeros((0,), np.float32)}
    plain = gs.topk_mask(params, nnz=300, group="global")
    assert plain["small"].nnz == 0
    floored = gs.topk_mask(params, nnz=300, group="global", min_density=0.1)
    assert floored["small"].nnz == 50
    assert floored["big"].nnz == 250
    assert floored["small"] == gs.topk_mask(small, nnz=50)
    assert floored["big"] == gs.topk_mask(params["big"], nnz=250)
    full = gs.topk_mask(params, nnz=150, group="global", min_density=0.1)  # the floors are all there is
    assert full["small"].nnz == 50
    assert full["big"].nnz == 100


def test_inputs_are_not_written() -> None:
    a = values("heavy_ties", (64, 64), np.float32)
    before = a.copy()
    gs.topk_mask(a, sparsity=0.7)
    gs.topk_mask(a, pattern="2:4")
    assert_same_bits(a, before)


def test_other_float_scores_than_the_weights() -> None:
    mask = gs.topk_mask(np.array([1.0, 3.0, 2.0], np.float64), nnz=1)
    assert gs.apply_mask(np.ones(3, np.float32), mask).tolist() == [0, 1, 0]


def test_stages_that_contradict_each_other() -> None:
    """Data that repeat make the samples agree too well: the brackets of two stages are apart."""
    copies = 64
    r = np.random.default_rng(0)
    r.standard_normal(1 << 20, dtype=np.float32)
    tile = np.abs(r.standard_normal(1 << 20, dtype=np.float32))
    mask = gs.topk_mask(np.tile(tile, copies).reshape(-1, 1 << 14), sparsity=0.05)
    lowest = np.sort(tile)[::-1][(mask.nnz - 1) // copies]
    above, equal = tile > lowest, np.flatnonzero(np.tile(tile == lowest, copies))
    expected = np.tile(above, copies)
    expected[equal[: mask.nnz - copies * int(above.sum())]] = True
    assert mask.nnz == expected.size - expected.size * 5 // 100
    np.testing.assert_array_equal(mask.to_dense().reshape(-1), expected)
