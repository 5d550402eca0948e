# SPDX-License-Identifier: Apache-2.0
"""What is promised of selection, measured: one table of figures against their targets.

    python bench/select_targets.py [--quick] [--only GROUP ...] [--threads N] [--seconds S] [--json FILE]

Each row compares two calls that take turns on the same data (A, B, A, B, ...), after both answers were checked. A third
one in turn with them is the limit: one streaming pass over the same arrays by a kernel of limits.cpp with the same
threads, timed without its thread start. Peers are given less to do than gossamer: np.partition, kthvalue and topk only
find the threshold or indices, and make no mask.

The ratio is the median over the pairs, which short disturbances do not reach; beside it stands that of the best times.
Exit status 1 says that a target was missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np

import gossamer as gs
from bench_select import (
    global_is_right,
    gossamer_global_fresh,
    gossamer_global_out,
    gossamer_wanda,
    scores_of,
    torch_global_unstructured,
    torch_sort_wanda,
    wanda_inputs,
    wanda_mask_is_right,
)
from inputs import (
    ADVERSARIAL,
    Array,
    as_tensor,
    exact_mask,
    fresh,
    is_mask,
    kept_count,
    magnitudes,
    mask_of,
    minilm_matrices,
    normal,
)
from peak_memory import peak_bytes
from turns import Call, Run, Size, measure

SIZES = {False: ((4096, 4096), (4096, 11008)), True: ((1024, 1024), (1024, 2752))}
SPARSITIES = (0.5, 0.9)


def _named(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _finds(threshold: Any) -> Callable[[Any], None]:
    def check(result: Any) -> None:
        if float(result) != float(threshold):
            raise AssertionError(f"the threshold is {float(threshold)} and not {float(result)}")

    return check


# ----------------------------------------------------------------------------------------------- what is to be shown


def kernel(run: Run) -> None:
    """Whether the read kernel reads everything, and not slower than numpy's maximum does on as many threads."""
    with ThreadPoolExecutor(run.threads) as pool:
        for size in run.sizes:
            _kernel(run, size, pool)


def _kernel(run: Run, size: Size, pool: ThreadPoolExecutor) -> None:
    w = normal(size)
    if run.streams.checksum(w) != int(np.bitwise_xor.reduce(w.reshape(-1).view(np.uint64))):
        raise AssertionError("the read kernel did not read everything")
    parts = np.array_split(w.reshape(-1), run.threads)
    run.compare(
        f"read kernel {_named(size)}",
        run.passes("one streaming read", w),
        Call(f"np.max, {run.threads} threads", lambda: list(pool.map(np.max, parts))),
        at_most=1.1,
        nbytes=w.nbytes,
    )


def prune(run: Run) -> None:
    """``prune(out=...)`` against reading the inputs, reading the weights again and writing them."""
    for size in run.sizes:
        for sparsity in SPARSITIES:
            for method in ("magnitude", "taylor"):
                _prune(run, size, sparsity, method)


def _prune(run: Run, size: Size, sparsity: float, method: str) -> None:
    w, g, out, copied = normal(size), normal(size, 1), fresh(size), fresh(size)
    inputs, passes = ((w,), "read, read, write") if method == "magnitude" else ((w, g), "2 reads, read, write")
    kept = kept_count(w.size, sparsity)
    mask_is_right = is_mask(exact_mask(scores_of(w, g, method), kept))

    def check(result: Any) -> None:
        mask_is_right(result[1])
        np.testing.assert_array_equal(result[0], np.where(result[1].to_dense(), w, np.float32(0)))

    run.compare(
        f"{method} {sparsity} {_named(size)}",
        Call("prune(out=)", lambda: gs.prune(*inputs, method=method, nnz=kept, out=out), check),
        run.passes(passes, *inputs, copy={"w": (w, copied)}),
        at_most=1.6,
        nbytes=w.nbytes * (len(inputs) + 2) + w.size / 8,
    )


def wanda(run: Run) -> None:
    """Each row for itself, beside the sort of the method's published code."""
    for size in run.sizes:
        group = f"wanda 0.5 {_named(size)}"
        if run.torch is None:
            run.leave_out(group, "torch is not installed")
        else:
            _wanda(run, group, size)


def _wanda(run: Run, group: str, size: Size) -> None:
    w, stats = wanda_inputs(size)
    kept = kept_count(size[1], 0.5)
    right, reference = wanda_mask_is_right(w, stats, kept), torch_sort_wanda(w, stats, kept)
    run.compare(
        group,
        Call("mask from weights", gossamer_wanda(w, stats, kept), right),
        Call("torch.sort, scatter", reference, right),
        at_least=60,
        limit=run.passes("one read of the inputs", w),
        nbytes=w.nbytes + w.size / 8,
    )
    out, copied, weights = fresh(size), fresh(size), as_tensor(w)

    def is_pruned(result: Any) -> None:
        mask = exact_mask(np.abs(w) * stats.values.astype(np.float32), kept, "row")
        is_mask(mask)(result[1])
        np.testing.assert_array_equal(result[0], np.where(mask.to_dense(), w, np.float32(0)))

    def fills_all(result: Any) -> None:  # which ones, the mask's own check says
        assert np.count_nonzero(np.asarray(result)) == size[0] * kept

    run.compare(
        group,
        Call("prune(out=)", lambda: gs.prune(w, method="wanda", stats=stats, nnz=kept, out=out), is_pruned),
        Call("torch.sort, scatter, fill", lambda: weights.masked_fill(reference(), 0), fills_all),
        at_least=60,
        limit=run.passes("read, write", copy={"w": (w, copied)}),  # a row stays in the cache
        nbytes=2 * w.nbytes + w.size / 8,
    )


def minilm(run: Run) -> None:
    """All matrices of a sentence encoder together: time and memory beside torch.nn.utils.prune."""
    for sparsity in SPARSITIES:
        group = f"MiniLM global {sparsity}, {minilm_matrices()[1]}"
        if run.torch is None:
            run.leave_out(group, "torch is not installed")
        else:
            _minilm(run, group, sparsity)


def _minilm(run: Run, group: str, sparsity: float) -> None:
    tensors = minilm_matrices()[0]
    total = sum(w.size for w in tensors.values())
    kept = kept_count(total, sparsity)
    right, (prepare, job) = global_is_right(tensors, kept), torch_global_unstructured(tensors, kept)
    peer = Call("global_unstructured", job, right, prepare)
    passes = run.passes(
        "read, read, write", *tensors.values(), copy={name: (w, fresh(w.shape)) for name, w in tensors.items()}
    )
    for name, make in (("prune(out=)", gossamer_global_out), ("prune, fresh", gossamer_global_fresh)):
        ours = Call(name, make(tensors, kept)[1], right)
        run.compare(group, ours, peer, at_least=30, limit=passes, nbytes=12.125 * total)
    taken = {
        name: peak_bytes(f"minilm_{name}", "normal", sparsity, (1, 1), run.threads)
        for name in ("torch", "gossamer_out", "gossamer")
    }
    run.memory(group, "prune(out=w), peak", taken["gossamer_out"], "global_unstructured", taken["torch"], at_least=10)
    run.memory(group, "prune, fresh, peak", taken["gossamer"], "weights and masks alone", 4.125 * total, at_most=1.1)


def adversarial(run: Run) -> None:
    """Every distribution beside the normal one, for each engine."""
    size = run.sizes[0]
    ones = np.ones(size, np.float32)
    engines: dict[str, Callable[[Array, int], Any]] = {
        "topk_mask": lambda scores, kept: gs.topk_mask(scores, nnz=kept),
        "mask from weights": lambda w, kept: mask_of(w, nnz=kept),
        "taylor, g = 1": lambda w, kept: mask_of(w, ones, method="taylor", nnz=kept),
        "topk_mask by row": lambda scores, kept: gs.topk_mask(scores, nnz=kept, group="row"),
    }
    for distribution, make in ADVERSARIAL.items():
        scores = make(size)
        for sparsity in SPARSITIES:
            group = f"{distribution} {sparsity} {_named(size)}"
            of_all, of_row = kept_count(scores.size, sparsity), kept_count(size[1], sparsity)
            whole, rows = exact_mask(scores, of_all), exact_mask(scores, of_row, "row")
            for name, engine in engines.items():
                mask, kept = (rows, of_row) if name.endswith("row") else (whole, of_all)
                _adversarial(run, group, name, engine, scores, kept, mask, ones)


def _adversarial(
    run: Run,
    group: str,
    name: str,
    engine: Callable[[Array, int], Any],
    scores: Array,
    kept: int,
    mask: gs.Mask,
    ones: Array,
) -> None:
    usual = magnitudes(run.sizes[0])
    inputs = (scores, ones) if name.startswith("taylor") else (scores,)
    run.compare(
        group,
        Call(name, lambda: engine(scores, kept), is_mask(mask)),
        Call("the same, normal", lambda: engine(usual, kept)),
        at_most=3,
        limit=run.passes("one read", *inputs),
        nbytes=len(inputs) * scores.nbytes + scores.size / 8,
    )


def sixteen_bits(run: Run) -> None:
    """float16 and bfloat16, from scores and from weights."""
    for dtype in (np.float16, ml_dtypes.bfloat16):
        for sparsity in SPARSITIES:
            group = f"{np.dtype(dtype)} {sparsity} {_named(run.sizes[0])}"
            _sixteen_bits(run, group, dtype, sparsity)


def _sixteen_bits(run: Run, group: str, dtype: Any, sparsity: float) -> None:
    size = run.sizes[0]
    weights, scores = normal(size, dtype=dtype), magnitudes(size, dtype=dtype)
    kept = kept_count(scores.size, sparsity)
    place = scores.size - kept
    finds = _finds(np.partition(scores.astype(np.float32), place, axis=None)[place])
    expected = is_mask(exact_mask(scores, kept))
    peers = [Call("np.partition", lambda: np.partition(scores, place, axis=None)[place], finds)]
    if run.torch is None:
        run.leave_out(f"{group}, torch", "torch is not installed")
    else:
        flat, torch = as_tensor(scores).view(-1), run.torch
        peers += [
            Call("torch.kthvalue", lambda: torch.kthvalue(flat, place + 1).values, finds),
            Call("torch.topk", lambda: torch.topk(flat, kept, sorted=False).values, lambda all: finds(all.min())),
        ]
    for ours, data in (
        (Call("topk_mask", lambda: gs.topk_mask(scores, nnz=kept), expected), scores),
        (Call("mask from weights", lambda: mask_of(weights, nnz=kept), expected), weights),
    ):
        for peer in peers:
            read = run.passes("one read", data)
            run.compare(group, ours, peer, at_least=20, limit=read, nbytes=data.nbytes + data.size / 8)


def scratch(run: Run) -> None:
    """Memory beside inputs and ``out``, the mask included: at most n/8 + 3 % of 8n bytes."""
    size = run.sizes[-1]
    allowed = size[0] * size[1] * (1 / 8 + 0.03 * 8)
    for distribution in ("normal", *ADVERSARIAL):
        for sparsity in SPARSITIES:
            for job in ("topk_mask", "prune_magnitude", "prune_taylor"):
                extra = peak_bytes(job, distribution, sparsity, size, run.threads)
                group = f"memory {distribution} {sparsity} {_named(size)}"
                run.memory(group, job, extra, "n/8 + 3 % of 8n", allowed, at_most=1)


GROUPS: dict[str, Callable[[Run], None]] = {
    section.__name__: section for section in (kernel, prune, wanda, minilm, adversarial, sixteen_bits, scratch)
}


# ------------------------------------------------------------------------------------------------------------ output


if __name__ == "__main__":
    sys.exit(measure("gossamer's selection", GROUPS, SIZES))
