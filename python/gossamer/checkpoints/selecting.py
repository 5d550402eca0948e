# SPDX-License-Identifier: Apache-2.0
"""Which weights of a checkpoint are kept: every tensor for itself, or all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from gossamer import _core
from gossamer._arrays import Host, compute_dtype, matrix_shape
from gossamer.checkpoints.reading import Reader
from gossamer.headers import DTYPES, Entry, Header
from gossamer.masks import Mask
from gossamer.scoring import Inputs
from gossamer.selection import select
from gossamer.threshold import Threshold, Window
from gossamer.units import unit_grid

_WHOLE = ("lamp", "fpgm")  # methods that look at a whole tensor
_PIECES, _PIECE = 8192, 64  # of the sample: stretches, and weights in each
_MARGIN, _DEVIATIONS = 0.0001, 6  # the threshold is looked for first in this share of the sample, and its deviations

EVERYTHING: Window = (0.0, math.inf)  # no method for checkpoints has scores below 0

Tensor = tuple[Header, Entry, int]  # the last: the flat index of its first element among all that are pruned
State = dict[str, Any]  # plain JSON


class Group(Protocol):
    """A rule of who competes."""

    def prepare(self, reader: Reader, tensors: Sequence[Tensor], counts: bool) -> State:
        """Looks at all tensors, as far as needed; with ``counts`` so that ``kept`` is known."""

    def restore(self, state: State) -> None:
        """Goes on where that state was taken."""

    def state(self) -> State:
        """What ``restore`` takes."""

    def kept(self, entry: Entry) -> int:
        """How many weights of a tensor will be kept, if counts were asked for."""

    def pruned(self, reader: Reader, header: Header, entry: Entry, start: int) -> Iterator[tuple[int, Host, Mask]]:
        """(first row, pruned rows, their mask) of a tensor; the tensors come in their order."""


@contextmanager
def _naming(header: Header, entry: Entry, w: Host) -> Iterator[None]:
    """NaN is told with file and tensor."""
    try:
        yield
    except ValueError:
        refuse_nan(header, entry, w)
        raise


def refuse_nan(header: Header, entry: Entry, w: Host) -> None:
    if np.isnan(w).any():
        raise ValueError(f"prune: {header.path} must hold no NaN, got one in {entry.name!r}")


class Each:
    """Tensors, or their rows, or their windows of N:M, for themselves."""

    def __init__(self, options: Any) -> None:
        self._options = options

    def prepare(self, reader: Reader, tensors: Sequence[Tensor], counts: bool) -> State:
        return {}

    def restore(self, state: State) -> None:
        pass

    def state(self) -> State:
        return {}

    def kept(self, entry: Entry) -> int:
        options = self._options
        if options.windows is not None:
            keep, of = options.windows
            return int(entry.size // of * keep)
        rows, cols, height, width = unit_grid(entry.shape, options.pattern)
        if options.group == "row":
            return rows * int(_core.kept_count(cols, options.sparsity)) * height * width
        return int(_core.kept_count(rows * cols, options.sparsity)) * height * width

    def pruned(self, reader: Reader, header: Header, entry: Entry, start: int) -> Iterator[tuple[int, Host, Mask]]:
        options = self._options
        cols = matrix_shape(entry.shape)[1]
        by_rows = options.windows is not None or options.group == "row"
        if by_rows and entry.size and options.method not in _WHOLE:  # strips fit the cache
            parts = reader.strips(header, entry, unit_grid(entry.shape, options.pattern)[2])
        else:
            parts = iter([(0, reader.tensor(header, entry).reshape(matrix_shape(entry.shape)))])
        for row, w in parts:
            if options.method == "random":  # its scores do not tell
                refuse_nan(header, entry, w)
            inputs = Inputs(options.method, [entry.name], [w], [None], options.seed or 0, start + row * cols)
            with _naming(header, entry, w):
                rule = options.rule() | {"priors": {entry.name: None}, "nan": "raise"}
                masks = select(inputs, [w.shape], [w], "prune", **rule)
            yield row, w, masks[entry.name]


class Together:
    """All tensors compete: a first part finds the lowest score that is kept, then each strip is compared with it."""

    def __init__(self, options: Any) -> None:
        self._options = options
        self._seed = options.seed or 0
        self._score, self._ties, self._used = math.inf, 0, 0
        self._kept: dict[str, int] = {}

    def restore(self, state: State) -> None:
        self._score, self._ties = float.fromhex(state["score"]), state["ties"]
        self._used, self._kept = state["used"], state["kept"]

    def state(self) -> State:
        return self.begin(self._score, self._ties, self._used) | {"kept": self._kept}

    @staticmethod
    def begin(score: float, ties: int, used: int) -> State:
        """The state after a search for the threshold, with ``used`` of the ties behind it."""
        return {"score": score.hex(), "ties": ties, "used": used, "kept": {}}

    def kept(self, entry: Entry) -> int:
        return self._kept.get(entry.name, 0)

    def prepare(self, reader: Reader, tensors: Sequence[Tensor], counts: bool) -> State:
        kept, size = self.competing(tensors), sum(entry.size for _, entry, _ in tensors)
        window = EVERYTHING
        if self.wants_sample(size):
            window = expected_window(self.sample(reader, tensors, size), kept / size)
        search = Threshold(kept, wide=self.wide(tensors), window=window)
        while not search.found:
            reader.phase("count", sum(entry.nbytes for _, entry, _ in tensors))
            self.look(reader, tensors, search)
            search.end()
        self._score, self._ties = search.score, search.ties
        if counts:
            reader.phase("count", sum(entry.nbytes for _, entry, _ in tensors))
            self.count(reader, tensors)
        return self.state()

    def competing(self, tensors: Sequence[Tensor]) -> int:
        """How many units are kept of those that compete, all tensors together."""
        grids = [unit_grid(entry.shape, self._options.pattern) for _, entry, _ in tensors]
        sizes = [grid[0] * grid[1] for grid in grids]
        total = kept = int(_core.kept_count(sum(sizes), self._options.sparsity))
        if self._options.min_density:
            floors = sum(self._floor_count(size) for size in sizes)
            kept = total - floors
            if kept < 0:
                given = self._options.min_density
                raise ValueError(f"prune: min_density must fit into the total of {total}, got {given}, or {floors}")
        return kept

    def wide(self, tensors: Sequence[Tensor]) -> bool:
        """Whether some scores are float64."""
        return self._options.pattern != "element" or any(DTYPES[e.dtype] == np.float64 for _, e, _ in tensors)

    def look(self, reader: Reader, tensors: Sequence[Tensor], search: Threshold) -> None:
        """Counts these tensors."""
        for tensor in tensors:
            for _, w, method, scores, first, _ in self._parts(reader, *tensor):
                with _naming(tensor[0], tensor[1], w):
                    search.add(method, scores, self._seed, first)

    def count(self, reader: Reader, tensors: Sequence[Tensor]) -> None:
        """Once the threshold is known: how many weights of each tensor will be kept."""
        used = self._used
        for tensor in tensors:
            self._kept[tensor[1].name] = sum(mask.nnz for _, _, mask in self._masks(reader, *tensor))
        self._used = used

    def pruned(self, reader: Reader, header: Header, entry: Entry, start: int) -> Iterator[tuple[int, Host, Mask]]:
        for row, w, mask in self._masks(reader, header, entry, start):
            _core.apply_mask([w], [mask.packed], [w])
            yield row, w, mask

    def _masks(self, reader: Reader, header: Header, entry: Entry, start: int) -> Iterator[tuple[int, Host, Mask]]:
        _, _, height, width = unit_grid(entry.shape, self._options.pattern)
        for row, w, method, scores, first, free in self._parts(reader, header, entry, start):
            with _naming(header, entry, w):
                bits = Mask._blank(scores.shape, "prune")
                left = max(self._ties - self._used, 0)
                nnz, used = _core.keep_above("prune", method, scores, None, self._seed, first, self._score, left, bits)
            self._used += used
            mask = Mask._own(scores.shape, bits, nnz)
            if free is not None:
                dense = np.ones(free.shape, np.bool_)
                dense[free] = mask.to_dense()
                mask = Mask.from_dense(dense)
            if (height, width) != (1, 1):
                mask = Mask.from_dense(np.repeat(np.repeat(mask.to_dense(), height, axis=0), width, axis=1))
            yield row, w, mask

    def _parts(
        self, reader: Reader, header: Header, entry: Entry, start: int
    ) -> Iterator[tuple[int, Host, str, Host, int, Host | None]]:
        """(first row, weights, method, what it scores, flat index, where min_density leaves a choice) in strips.

        What is scored is the weights, or with method "" it is the scores, one a unit; of a choice only those there.
        """
        options = self._options
        cols = matrix_shape(entry.shape)[1]
        unit_rows, unit_cols, height, width = unit_grid(entry.shape, options.pattern)
        if not entry.size:  # rows or columns without an element compete too, with score 0
            units = np.zeros((unit_rows, unit_cols), compute_dtype(DTYPES[entry.dtype]))
            first_ones = self._floor_count(units.size) if options.min_density else 0
            left = np.arange(units.size).reshape(units.shape) >= first_ones
            scores = units[left] if first_ones else units
            yield 0, reader.tensor(header, entry), "", scores, 0, left if first_ones else None
            return
        floor = self._floor(reader, header, entry, start)
        known = None
        if options.method in _WHOLE:
            w = reader.tensor(header, entry)
            known = np.empty(matrix_shape(entry.shape), compute_dtype(w.dtype))
            _core.score(options.method, [w], [None], self._seed, [known.reshape(entry.shape)])
            self._check(header, entry, w, known)
        for row, strip in reader.strips(header, entry, height):
            method, scores = (options.method, strip) if known is None else ("", known[row : row + len(strip)])
            first = start + row * cols
            if method == "random":  # its scores do not tell
                refuse_nan(header, entry, strip)
            if options.pattern != "element":
                units = np.empty((len(strip) // height, cols // width), np.float64)
                _core.unit_scores("prune", method, scores, self._seed, first, options.pattern, units)
                self._check(header, entry, strip, units)
                method, scores, first = "", units, 0
            free = None
            if floor is not None:
                bits = np.unpackbits(floor.packed[row : row + len(strip)], axis=1, count=cols, bitorder="little")
                free = bits[::height, ::width] == 0
                method, scores, first = "", self._scores(method, scores, first)[free], 0
            yield row, strip, method, scores, first, free

    @staticmethod
    def _check(header: Header, entry: Entry, w: Host, scores: Host) -> None:
        if np.isnan(scores).any():
            refuse_nan(header, entry, w)
            raise ValueError(f"prune: {header.path} must have scores that are numbers, got NaN for {entry.name!r}")

    def _scores(self, method: str, weights: Host, start: int) -> Host:
        scores = np.empty(weights.shape, compute_dtype(weights.dtype))
        _core.collect("prune", method, weights, None, self._seed, start, -math.inf, math.inf, scores)
        return scores

    def _floor_count(self, size: int) -> int:
        return int(_core.kept_count(size, 1 - self._options.min_density))

    def _floor(self, reader: Reader, header: Header, entry: Entry, start: int) -> Mask | None:
        """What min_density keeps of a tensor before all tensors compete."""
        options = self._options
        if not options.min_density:
            return None
        w = reader.tensor(header, entry)
        rows, cols, _, _ = unit_grid(entry.shape, options.pattern)
        rule = options.rule() | {"group": "tensor", "sparsity": None, "min_density": 0.0}
        rule["nnz"] = self._floor_count(rows * cols)
        inputs = Inputs(options.method, [entry.name], [w], [None], self._seed, start)
        with _naming(header, entry, w):
            masks = select(inputs, [entry.shape], [], "prune", **rule, priors={entry.name: None}, nan="raise")
        return masks[entry.name]

    def wants_sample(self, size: int) -> bool:
        """Whether a sample of that many weights can say where to look."""
        options = self._options
        plain = options.method == "magnitude" and options.pattern == "element" and not options.min_density
        return plain and size >= 1 << 24

    def sample(self, reader: Reader, tensors: Sequence[Tensor], size: int) -> list[Host]:
        """Scores of stretches of these tensors, one a row; more of a tensor that is more of the ``size`` of all."""
        return [
            np.abs(reader.sample(header, entry, max(1, round(_PIECES * entry.size / size)), _PIECE).astype(np.float64))
            for header, entry, _ in tensors
            if entry.size
        ]


def expected_window(stretches: Sequence[Host], share: float) -> Window:
    """Scores between which a sample expects the threshold of a share that is kept."""
    scores = np.sort(np.concatenate([found.reshape(-1) for found in stretches]))[::-1]
    scores = scores[~np.isnan(scores)]
    if not scores.size:
        return EVERYTHING
    middle = scores[min(int(share * scores.size), scores.size - 1)]
    margin = _MARGIN + _DEVIATIONS * max(
        float(np.std(shares) / math.sqrt(shares.size))  # neighbours are alike: stretches are counted, not weights
        for shares in (
            np.concatenate([(found > middle).mean(axis=1) for found in stretches]),
            np.concatenate([(found >= middle).mean(axis=1) for found in stretches]),
        )
    )
    low, high = (int((share + d) * scores.size) for d in (margin, -margin))
    return (
        float(scores[low]) if low < scores.size else 0.0,
        float(scores[high]) if high >= 0 else math.inf,
    )
