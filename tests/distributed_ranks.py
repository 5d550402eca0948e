# SPDX-License-Identifier: Apache-2.0
"""What test_distributed.py runs in each of four processes, and in one: the same cases, in the same order."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

import gossamer as gs
from cases import BFLOAT16, DISTRIBUTIONS, values

RANKS = 4
LOST = r"RuntimeError: topk_mask: every rank must take part to the end, got a process group that failed, .*"
DTYPES = (np.float32, np.float64, np.float16, BFLOAT16)
SHAPES = (
    ((16, 24), (8, 4, 6), (96,)),  # of the tensors of each rank
    (),
    ((4, 40),),
    ((0, 8), (24, 8), (8, 16)),
)
MATRICES = (((16, 24), (8, 4, 6)), (), ((4, 40),), ((24, 8), (8, 16)))
CUTS = ((0, 7), (7, 7), (7, 8), (8, 20))


def parts(data: str, dtypes: Any, shapes: Any = SHAPES) -> list[dict[str, np.ndarray]]:
    """The tensors of every rank, by names."""
    kinds = itertools.cycle(dtypes)
    return [
        {f"{rank}.{i}": values(data, shape, next(kinds), rank, i) for i, shape in enumerate(of_rank)}
        for rank, of_rank in enumerate(shapes)
    ]


def merged(every: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for part in every for name, value in part.items()}


def mask_cases() -> Iterator[tuple[str, list[dict[str, np.ndarray]], dict[str, Any]]]:
    """(name, scores of every rank, arguments); priors are those of all ranks."""
    for i, data in enumerate(DISTRIBUTIONS):
        for dtype in DTYPES[i % 2 :: 2]:
            yield f"{data} {np.dtype(dtype)}", parts(data, [dtype]), {"sparsity": 0.7}
    for data, dtype in zip(DISTRIBUTIONS, itertools.cycle(DTYPES), strict=False):  # one tensor, cut by rows
        whole = values(data, (20, 24), dtype)
        yield f"{data} {np.dtype(dtype)} cut", [{f"{i}": whole[a:b]} for i, (a, b) in enumerate(CUTS)], {"nnz": 171}
    for data in ("normal", "heavy_ties", "infinities"):
        scores = parts(data, DTYPES)
        size = sum(w.size for w in merged(scores).values())
        prior = merged([{n: gs.Mask.from_dense(np.arange(w.size).reshape(w.shape) % 3 > 0) for n, w in part.items()}
                        for part in scores])  # fmt: skip
        for how in (
            {"sparsity": 0.0},
            {"sparsity": 1.0},
            {"nnz": 1},
            {"nnz": size},
            {"nnz": 333, "prior": prior},
            {"sparsity": 0.8, "min_density": 0.15},
            {"sparsity": 0.6, "min_density": 0.3, "prior": prior},
        ):
            yield f"{data} mixed {sorted(how)}", scores, how
        dirty = parts(data, DTYPES)
        for w in merged(dirty).values():
            w.reshape(-1)[1::4] = np.nan
        for nan, sparsity in itertools.product(("prune", "keep"), (0.1, 0.7, 0.9)):
            yield f"{data} nan {nan} {sparsity}", dirty, {"sparsity": sparsity, "nan": nan}
        more = {"sparsity": 0.6, "nan": "prune", "min_density": 0.3, "prior": prior}
        yield f"{data} nan, prior, floor", dirty, more
        for pattern in ("row", "col", "block:4x2", "block:1x8", "2:4"):
            matrices = parts("heavy_ties" if data == "infinities" else data, DTYPES, MATRICES)
            yield f"{data} {pattern}", matrices, {"sparsity": 0.5, "pattern": pattern}
            if pattern != "2:4":
                yield f"{data} {pattern} floor", matrices, {"sparsity": 0.5, "pattern": pattern, "min_density": 0.25}


def whole_row(weights: Any, grads: Any, stats: Any) -> Any:
    return -np.abs(np.asarray(weights, np.float64)) % 0.25


def prune_cases() -> Iterator[tuple[str, list[dict[str, np.ndarray]], dict[str, Any]]]:
    """As :func:`mask_cases`; grads and stats are those of all ranks."""
    r = np.random.default_rng(0)
    for dtypes in ([np.float32], DTYPES):
        weights = parts("normal", dtypes, MATRICES)
        flat = merged(weights)
        grads = {name: r.standard_normal(w.shape).astype(w.dtype) for name, w in flat.items()}
        stats: dict[str, dict[str, gs.Stats]] = {k: {} for k in ("norm", "grad2", "hessian", "movement")}
        for name, w in flat.items():
            x = r.standard_normal((64, w.reshape(len(w), -1).shape[1])).astype(np.float32)
            for kind in ("norm", "hessian"):
                stats[kind][name] = gs.Stats(kind)
                stats[kind][name].update(x)
            stats["grad2"][name], stats["movement"][name] = gs.Stats("grad2"), gs.Stats("movement")
            stats["grad2"][name].update(r.standard_normal((3, *w.shape)).astype(np.float32))
            stats["movement"][name].update(w, grads[name])
        for method, kind in (
            ("magnitude", ""), ("gradient", ""), ("taylor", ""), ("taylor2", ""), ("grasp", ""), ("synflow", ""),
            ("lamp", ""), ("fpgm", ""), ("random", ""), (whole_row, ""), ("movement", "movement"), ("fisher", "grad2"),
            ("wanda", "norm"), ("ria", "norm"), ("obs", "hessian"),
        ):  # fmt: skip
            how = {"method": method, "grads": grads, "stats": stats.get(kind), "seed": 5, "sparsity": 0.65}
            for pattern, floor in (("element", 0.0), ("block:4x2", 0.0), ("element", 0.2), ("row", 0.0))[
                : 2 * len(dtypes)
            ]:
                label = f"{method if isinstance(method, str) else 'callable'} {len(dtypes)} {pattern} {floor}"
                yield label, weights, how | {"pattern": pattern, "min_density": floor}


def of_rank(how: dict[str, Any], part: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arguments with the entries of one rank's tensors alone."""
    return {k: {n: v[n] for n in part} if isinstance(v, dict) else v for k, v in how.items()}


def line(name: str, masks: dict[str, gs.Mask], part: dict[str, np.ndarray], weights: Any = None) -> str:
    found = hashlib.sha256()
    for tensor in part:
        found.update(masks[tensor].packed.tobytes())
        if weights is not None:
            found.update(weights[tensor].tobytes())
    return f"{name}: {sum(masks[t].nnz for t in part)} {found.hexdigest()}"


def in_one_process() -> list[list[str]]:
    """The lines that each rank should print."""
    lines: list[list[str]] = [[] for _ in range(RANKS)]
    for name, scores, how in mask_cases():
        masks = gs.topk_mask(merged(scores), group="global", **how)
        for rank, part in enumerate(scores):
            lines[rank].append(line(name, masks, part))
    for name, weights, how in prune_cases():
        pruned, masks = gs.prune(merged(weights), group="global", **how)
        for rank, part in enumerate(weights):
            lines[rank].append(line(name, masks, part, pruned))
    return lines


def report(call: Any, expected: str) -> None:
    """One line: that a call raised what was expected ("fine": nothing), or what it raised instead."""
    found = "fine"
    try:
        call()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print("as expected" if re.fullmatch(expected, found) else f"{found} instead of {expected}", flush=True)


def vary(gd: Any, number: int) -> None:
    """In turns: histograms of few bins, which take many looks; a sample first, however little there is."""
    gd.selecting._BINS = (10, 10, 10, 16)[number % 4]
    gd.selecting._SAMPLED = 1 << 20 if number % 2 else 1


def equal(rank: int, gd: Any) -> None:
    number = itertools.count()
    for name, scores, how in mask_cases():
        vary(gd, next(number))
        part = scores[rank]
        print(line(name, gd.topk_mask(part, **of_rank(how, part)), part), flush=True)
    for name, weights, how in prune_cases():
        vary(gd, next(number))
        part = weights[rank]
        pruned, masks = gd.prune(part, **of_rank(how, part))
        print(line(name, masks, part, pruned), flush=True)


def errors(rank: int, gd: Any) -> None:
    import torch.distributed as dist

    w = values("normal", (16, 24), np.float32)
    bad = w.copy()
    bad[3, 5] = np.nan

    def failing(weights: Any, grads: Any, stats: Any) -> Any:
        raise KeyError("lost")

    def on(which: int, there: Any, elsewhere: Any) -> Any:
        return there if rank == which else elsewhere

    readonly = np.empty_like(w)
    readonly.flags.writeable = False
    calls = {
        r"ValueError: topk_mask: scores must not be NaN .*, got NaN in 'b' at flat index 77 \(on rank 2\)":
            lambda: gd.topk_mask(on(2, {"a": w, "b": bad}, {"a": w}), sparsity=0.5),
        r"ValueError: prune: scores must not be NaN .*, got NaN at flat index 77 \(on rank 1\)":
            lambda: gd.prune(on(1, bad, w), nnz=30, pattern="block:4x2"),
        r"ValueError: prune: scores must not be NaN .*, got NaN at flat index 77 \(on rank 0\)":
            lambda: gd.prune(on(0, bad, w), nnz=400, min_density=0.01),
        r"ValueError: topk_mask: sparsity must be in \[0, 1\], got 1.5 \(on rank 3\)":
            lambda: gd.topk_mask(w, sparsity=on(3, 1.5, 0.5)),
        r"ValueError: topk_mask: sparsity must be in \[0, 1\], got 1.5":
            lambda: gd.topk_mask(w, sparsity=1.5),
        r"ValueError: topk_mask: sparsity must be the same on every rank, got 0.5 on rank 0 and 0.6 on rank 3":
            lambda: gd.topk_mask(w, sparsity=on(3, 0.6, 0.5)),
        r"ValueError: topk_mask: nnz must be the same on every rank, got 11 on rank 0 and 10 on rank 2":
            lambda: gd.topk_mask(w, nnz=on(2, 10, np.int64(11))),
        r"ValueError: prune: method must be the same on every rank, got 'magnitude' on rank 0 and 'lamp' on rank 1":
            lambda: gd.prune(w, sparsity=0.5, method=on(1, "lamp", "magnitude")),
        r"ValueError: (topk_mask|prune): function must be the same .*, got 'topk_mask' on rank 0 and 'prune' on rank 1":
            lambda: on(1, gd.prune, gd.topk_mask)(w, sparsity=0.5),
        r"TypeError: topk_mask: scores must be float32, .*, got int32 \(on rank 1\)":
            lambda: gd.topk_mask(on(1, w.astype(np.int32), w), sparsity=0.5),
        r"TypeError: topk_mask: scores must be an array .*, got list \(on rank 1\)":
            lambda: gd.topk_mask(on(1, [1.0], w), sparsity=0.5),
        r"ValueError: topk_mask: pattern 'block:2x8' must divide the shape, got \(16, 23\) \(on rank 3\)":
            lambda: gd.topk_mask(on(3, w[:, :23], w), sparsity=0.5, pattern="block:2x8"),
        r"ValueError: topk_mask: pattern '2:4' must divide the last axis, got 23 columns \(on rank 3\)":
            lambda: gd.topk_mask(on(3, w[:, :23], w), pattern="2:4"),
        r"ValueError: topk_mask: nnz must be in \[0, 1536\], got 1537":
            lambda: gd.topk_mask(w, nnz=4 * w.size + 1),
        r"TypeError: topk_mask: nnz must be an int, got 1.5":
            lambda: gd.topk_mask(w, nnz=1.5),
        r"ValueError: topk_mask: exactly one of sparsity, nnz and threshold must be given, got 0 of them":
            lambda: gd.topk_mask(w),
        r"ValueError: topk_mask: prior must leave at least the 700 to keep, got \d+":
            lambda: gd.topk_mask(w, nnz=700, prior=on(2, gs.Mask.from_dense(w > 9), gs.Mask.from_dense(w > 0))),
        r"ValueError: topk_mask: prior must leave at least the 192 to keep, got 0 \(on rank 2\)":
            lambda: gd.topk_mask(w, nnz=900, min_density=0.5, prior=gs.Mask.from_dense(w > on(2, 9, -9))),
        r"ValueError: topk_mask: min_density must fit into the total count 10, got 0.5, which needs 768":
            lambda: gd.topk_mask(w, nnz=10, min_density=0.5),
        r"ValueError: prune: grads must be given for method 'taylor', got None \(on rank 0\)":
            lambda: gd.prune(w, on(0, None, w), sparsity=0.5, method="taylor"),
        r"NotImplementedError: prune: snip needs the sum over all ranks first; taylor has the same order":
            lambda: gd.prune(w, w, sparsity=0.5, method="snip"),
        r"RuntimeError: prune: every rank must succeed, got KeyError\('lost'\) \(on rank 2\)":
            lambda: gd.prune(w, sparsity=0.5, method=on(2, failing, whole_row)),
        r"TypeError: prune: out must be writable float32, got read-only float32 \(on rank 2\)":
            lambda: gd.prune(w, sparsity=0.5, out=on(2, readonly, w.copy())),
        r"ValueError: prune: whether out is given must be the same .*, got False on rank 0 and True on rank 1":
            lambda: gd.prune(w, sparsity=0.5, out=on(1, w.copy(), None)),
        r"ValueError: topk_mask: nnz must be 768 with pattern '2:4', got 7":
            lambda: gd.topk_mask(w, nnz=7, pattern="2:4"),
        r"fine":
            lambda: gd.topk_mask(w, sparsity=0.5),
    }  # fmt: skip
    for expected, call in calls.items():
        report(call, expected)
    for how in ({"sparsity": 1.0}, {"pattern": "2:4"}, {"sparsity": 0.5}):  # NaN that only the last step would see
        given = [bad.copy() if rank == 3 else w.copy()]
        report(lambda given=given, how=how: gd.prune(given[0], **how, out=given[0]), r"ValueError: prune: .* NaN .*")
        report(lambda given=given: np.testing.assert_array_equal(given[0], bad if rank == 3 else w), "fine")
    pair = dist.new_group([1, 3])
    if rank in (1, 3):
        mask = gd.topk_mask({"w": (rank + 1) * w}, nnz=100, process_group=pair)["w"]
        both = gs.topk_mask({"1": 2 * w, "3": 4 * w}, nnz=100, group="global")
        report(lambda: None, "fine" if mask == both[str(rank)] else "equal masks")
    else:
        stranger = r"ValueError: topk_mask: process_group must hold this process, got a group of others"
        report(lambda: gd.topk_mask(w, nnz=100, process_group=pair), stranger)


def lost(rank: int, gd: Any) -> None:
    """Rank 2 is killed in the middle of a call: when it is asked for its scores a second time."""
    w = values("normal", (16, 24), np.float32)
    report(lambda: gd.topk_mask(w, sparsity=0.5), "fine")
    if rank == 2:
        parts_of = gd.competing.Competitors.parts
        looks = itertools.count()

        def dying(self: Any) -> Any:
            if next(looks):
                os.kill(os.getpid(), signal.SIGKILL)
            return parts_of(self)

        gd.competing.Competitors.parts = dying
    begin = time.monotonic()
    report(lambda: gd.topk_mask(w, sparsity=0.5), LOST)
    print(time.monotonic() - begin, flush=True)


def absent(rank: int, gd: Any) -> None:
    """Rank 3 lives, but never calls: the group's timeout ends the others."""
    w = values("normal", (16, 24), np.float32)
    begin = time.monotonic()
    if rank == 3:
        time.sleep(4)
    else:
        report(lambda: gd.topk_mask(w, sparsity=0.5), LOST)
    print(time.monotonic() - begin, flush=True)


if __name__ == "__main__":
    import torch.distributed as dist

    import gossamer.distributed as gd

    mode, rank, store, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    limit = datetime.timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS, timeout=limit)
    status = 0
    try:
        globals()[mode](rank, gd)
        if mode in ("equal", "errors"):
            dist.barrier()
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)  # gloo's threads abort an ordinary exit now and then
