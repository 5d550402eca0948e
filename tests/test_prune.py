# SPDX-License-Identifier: Apache-2.0
"""``prune`` and ``apply_mask``: the fused path is the three steps, bit for bit."""

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from cases import (
    DTYPES,
    METHODS,
    STATISTICS,
    Case,
    assert_same_bits,
    check_against_reference,
    right_or_refused,
    table,
    values,
)
from gossamer import reference


@pytest.mark.parametrize("case", table("prune/"), ids=str)
def test_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


@pytest.mark.parametrize("case", table("apply_mask"), ids=str)
def test_apply_mask_equals_the_reference(case: Case) -> None:
    check_against_reference(case)


def _stats(kind: str, w: np.ndarray, g: np.ndarray) -> Any:
    stats = gs.Stats(kind)
    if kind == "norm":
        stats.update(values("normal", (5, w.shape[1]), w.dtype, "x"))
    elif kind == "hessian":
        stats.update(values("normal", (2 * w.shape[1], w.shape[1]), w.dtype, "x"))
    elif kind == "grad2":
        stats.update(values("normal", (3, *w.shape), w.dtype, "samples"))
    else:
        stats.update(w, g)
    return stats


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", ["normal", "heavy_ties", "mostly_zeros", "signed_zeros", "one_outlier"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options",
    [
        {"sparsity": 0.9},
        {"nnz": 1000},
        {"sparsity": 0.5, "group": "row"},
        {"sparsity": 0.5, "group": "tensor"},
        {"pattern": "2:4"},
        {"pattern": "row", "sparsity": 0.25, "group": "tensor"},
        {"pattern": "block:4x8", "sparsity": 0.25, "group": "tensor"},
    ],
    ids=str,
)
def test_prune_is_score_select_apply(dtype: Any, distribution: str, method: str, options: dict[str, Any]) -> None:
    w, g = values(distribution, (160, 240), dtype), values("normal", (160, 240), dtype, "g")
    kind = STATISTICS.get(method)
    stats = _stats(kind, w, g) if kind else None
    within_rows = method in ("wanda", "ria", "obs")
    if options == {"nnz": 1000} and within_rows:
        options = {"nnz": 100}
    scores = gs.score(w, g, method=method, stats=stats, seed=11)
    if np.isnan(scores).any():  # products beyond the dtype
        options = {**options, "nan": "prune"}
    pruned, mask = gs.prune(w, g, method=method, stats=stats, seed=11, **options)
    if method == "taylor2" and options.get("pattern", "2:4") != "2:4":  # sums before it squares
        expected = gs.Mask.from_dense(reference.prune(w, g, method=method, **options)[1])
    else:
        group = options.get("group") or ("row" if within_rows else "tensor")
        expected = gs.topk_mask(scores, **{**options, "group": group})
    assert mask == expected
    assert_same_bits(pruned, gs.apply_mask(w, expected))


def test_the_default_group_is_the_methods_own() -> None:
    w, x = values("normal", (12, 20), np.float32), values("normal", (9, 20), np.float32, "x")
    stats = gs.Stats("norm")
    stats.update(x)
    _, mask = gs.prune(w, method="wanda", stats=stats, sparsity=0.5)
    assert mask.to_dense().sum(axis=1).tolist() == [10] * 12
    _, mask = gs.prune(w, method="wanda", stats=stats, sparsity=0.5, group="tensor")
    assert mask.nnz == 120
    assert len(set(mask.to_dense().sum(axis=1))) > 1
    _, masks = gs.prune({"a": w, "b": 100 * w}, sparsity=0.5)
    assert [m.nnz for m in masks.values()] == [120, 120]
    for method, counts in {"taylor": [120, 120], "snip": [0, 240], "synflow": [0, 240], "grasp": [0, 240]}.items():
        _, masks = gs.prune({"a": np.abs(w), "b": 1e4 * np.abs(w)}, {"a": abs(w), "b": abs(w) + 1}, method=method,
                            sparsity=0.5)  # fmt: skip
        assert [m.nnz for m in masks.values()] == counts, method
        _, mask = gs.prune(w, w, method=method, sparsity=0.5)  # one array: the tensor
        assert mask.nnz == 120
    hessian = gs.Stats("hessian")
    hessian.update(values("normal", (50, 20), np.float32, "x"))
    for method, kind in {"ria": stats, "obs": hessian}.items():
        _, masks = gs.prune({"a": w, "b": w}, method=method, stats={"a": kind, "b": kind}, sparsity=0.5)
        assert masks["b"].to_dense().sum(axis=1).tolist() == [10] * 12
        _, mask = gs.prune(w, method=method, stats=kind, sparsity=0.5, pattern="row")  # rows compete in the tensor
        assert mask.nnz == 120


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5,), (17, 31), (3 * 32768 + 77,), (304, 328)])
def test_out(dtype: Any, shape: tuple[int, ...]) -> None:
    w, g = values("normal", shape, dtype), values("normal", shape, dtype, "g")
    expected, mask = gs.prune(w, g, method="taylor", sparsity=0.6)
    out = np.full_like(w, np.nan)
    pruned, same = gs.prune(w, g, method="taylor", sparsity=0.6, out=out)
    assert pruned is out
    assert same == mask
    assert_same_bits(out, expected)
    back = np.full(shape[::-1], np.nan, dtype).T
    assert gs.apply_mask(w, mask, out=back) is back
    assert_same_bits(back, expected)
    inplace = w.copy()
    pruned, same = gs.prune(inplace, g, method="taylor", sparsity=0.6, out=inplace)
    assert pruned is inplace
    assert same == mask
    assert_same_bits(inplace, expected)
    inplace = w.copy()
    assert gs.apply_mask(inplace, mask, out=inplace) is inplace
    assert_same_bits(inplace, expected)


def test_out_that_overlaps_the_input_is_right_or_refused() -> None:
    for shift in (1, -1):
        buffer = values("normal", (1001,), np.float32)
        w, out = (buffer[:-1], buffer[1:]) if shift > 0 else (buffer[1:], buffer[:-1])
        before, expected = buffer.copy(), gs.prune(w.copy(), sparsity=0.5)[0]
        try:
            gs.prune(w, sparsity=0.5, out=out)
        except ValueError:
            assert_same_bits(buffer, before)
        else:
            assert_same_bits(out, expected)


def test_out_may_be_the_gradient() -> None:
    w, g = values("normal", (300,), np.float64), values("normal", (300,), np.float64, "g")
    expected, mask = gs.prune(w, g, method="taylor", sparsity=0.5)
    pruned, same = gs.prune(w, g, method="taylor", sparsity=0.5, out=g)
    assert pruned is g
    assert same == mask
    assert_same_bits(g, expected)


def test_a_callable_may_return_the_weights_themselves() -> None:
    w = values("normal", (300, 200), np.float32)
    expected, mask = gs.prune(w, method=lambda w, g, s: w.copy(), sparsity=0.7)
    pruned, same = gs.prune(w, method=lambda w, g, s: w, sparsity=0.7, out=w)
    assert same == mask
    assert_same_bits(pruned, expected)


@pytest.mark.parametrize("share", ["transposed", "same out twice", "overlapping tensors"])
def test_memory_that_two_arrays_share_is_right_or_refused(share: str) -> None:
    base = values("normal", (40, 40), np.float64)
    before = base.copy()
    if share == "transposed":
        params, out = {"a": base.T}, {"a": base}
    elif share == "same out twice":
        params, out = {"a": before.copy(), "b": -before}, {"a": base, "b": base}
    else:
        params = out = {"a": base[:30], "b": base[10:]}
    expected, _ = gs.prune({name: w.copy() for name, w in params.items()}, sparsity=0.5)
    result = right_or_refused(lambda: gs.prune(params, sparsity=0.5, out=out), ValueError, "^prune: out ")
    if result is None:
        assert_same_bits(base, before)
    else:
        for name in params:
            assert_same_bits(out[name], expected[name])


def test_a_mapping_and_its_out() -> None:
    params = {"b": values("normal", (8, 8), np.float32), "a": values("normal", (4, 8), np.float64)}
    expected, masks = gs.prune(params, sparsity=0.75, group="global")
    assert list(expected) == list(masks) == ["b", "a"]
    assert masks["a"].nnz + masks["b"].nnz == 24
    before = {name: w.copy() for name, w in params.items()}
    pruned, _ = gs.prune(params, sparsity=0.75, group="global", out=params)
    for name in params:
        assert pruned[name] is params[name]
        assert_same_bits(params[name], expected[name])
        assert_same_bits(gs.apply_mask(before, masks)[name], expected[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_pruned_values_become_plus_zero_and_kept_ones_are_untouched(dtype: type) -> None:
    w = np.array([-1.0, np.nan, np.inf, -np.inf, -0.0, 2.0, -0.0], dtype)
    mask = gs.Mask.from_dense(np.array([False, False, False, False, False, True, True]))
    result = gs.apply_mask(w, mask)
    assert_same_bits(result, np.array([0, 0, 0, 0, 0, 2.0, -0.0], dtype))
    unsigned = np.dtype(f"u{np.dtype(dtype).itemsize}")
    payload = np.array([w.view(unsigned)[1] | 5, w.view(unsigned)[2] | 5], unsigned)  # a quiet NaN, a signaling one
    kept = gs.apply_mask(payload.view(dtype), gs.Mask.from_dense(np.array([True, True])))
    assert kept.view(unsigned).tolist() == payload.tolist()


def test_a_kept_zero_stays_kept() -> None:
    pruned, mask = gs.prune(np.array([0.0, 0.0, 3.0, 0.0]), nnz=3)
    assert mask.to_dense().tolist() == [True, True, True, False]
    assert pruned.tolist() == [0, 0, 3, 0]


def test_pruning_again_with_the_mask_as_prior_only_removes() -> None:
    w = values("normal", (50, 60), np.float32)
    mask = None
    for sparsity in (0.5, 0.8, 0.95, 1.0):
        w, new = gs.prune(w, sparsity=sparsity, prior=mask)
        assert mask is None or (new & mask) == new
        mask = new
    assert mask is not None
    assert mask.nnz == 0
    assert not w.any()


def test_nan_weights_can_be_pruned_or_kept() -> None:
    w = np.array([1.0, np.nan, 3.0, 2.0])
    pruned, mask = gs.prune(w, nnz=2, nan="prune")
    assert mask.indices().tolist() == [2, 3]
    assert pruned.tolist() == [0, 0, 3, 2]
    _, mask = gs.prune(w, nnz=2, nan="keep")
    assert mask.indices().tolist() == [1, 2]


def test_the_result_is_fresh_and_contiguous() -> None:
    w = np.asfortranarray(values("normal", (8, 9), np.float32))
    pruned, _ = gs.prune(w, sparsity=0.0)
    assert pruned is not w
    assert not np.shares_memory(pruned, w)
    assert_same_bits(pruned, np.ascontiguousarray(w))
