# SPDX-License-Identifier: Apache-2.0
"""One rank's tensors as what competes: elements, or the scores of rows, columns and blocks, as far as they are free."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Host, matrix_shape, of, require_float
from gossamer.masks import Mask, packed_bits
from gossamer.scoring import Inputs, score_dtype
from gossamer.selection import select
from gossamer.shards import _BLOCK, _blocks, _sample
from gossamer.units import block_sides, unit_grid

_WHOLE = ("ria", "lamp", "fpgm")  # methods that look at a whole tensor

Part = tuple[str, Host, Host | None, int]  # method ("" for scores), weights, what goes with them, flat index


@dataclass
class _Item:
    """A tensor, or with method "" scores. ``prior`` and ``floor``: packed bits of what may compete, what is kept."""

    method: str
    weights: Host
    aux: Host | None
    start: int
    prior: Host | None
    floor: Host | None


class Competitors:
    """Counts first, from the shapes alone; ``score`` then makes ready what is looked at.

    ``rule`` has the arguments of a selection but for the count; ``group`` is "global".
    """

    def __init__(self, inputs: Inputs, priors: dict[str, Any], rule: dict[str, Any], function: str) -> None:
        self._inputs, self._priors, self._rule, self._function = inputs, priors, rule, function
        self._items: list[_Item] = []
        self.seed = inputs.seed
        pattern = rule["pattern"]
        self._grids, self._allowed = [], []
        for name, w in zip(inputs.names, inputs.weights, strict=True):
            require_float(w, function, "weights" if inputs.method else "scores")
            rows, cols = matrix_shape(w.shape)
            height, width = block_sides(pattern)
            if rows % height or cols % width:
                raise ValueError(f"{function}: pattern {pattern!r} must divide the shape, got {w.shape}{of(name)}")
            self._grids.append(unit_grid(w.shape, pattern))
            self._allowed.append(self._unit_bits(priors[name], name, w.shape))
        share = rule["min_density"]
        self._floors = [int(_core.kept_count(r * c, 1 - share)) if share else 0 for r, c, _, _ in self._grids]
        for name, floor, allowed in zip(inputs.names, self._floors, self.allowed_counts, strict=True):
            if floor > allowed:
                raise ValueError(f"{function}: prior must leave at least the {floor} to keep{of(name)}, got {allowed}")

    @property
    def elements(self) -> int:
        return sum(math.prod(w.shape) for w in self._inputs.weights)

    @property
    def units(self) -> int:
        return sum(rows * cols for rows, cols, _, _ in self._grids)

    @property
    def floor(self) -> int:
        """How many units min_density keeps."""
        return sum(self._floors)

    @property
    def allowed_counts(self) -> list[int]:
        """How many units of each tensor the prior leaves."""
        return [
            rows * cols if bits is None else int(_core.count_bits(bits, rows, cols))
            for bits, (rows, cols, _, _) in zip(self._allowed, self._grids, strict=True)
        ]

    @property
    def wide(self) -> bool:
        """Whether some scores are float64."""
        tensors = zip(self._inputs.weights, self._inputs.aux, strict=True)
        return self._structured or np.dtype(np.float64) in [score_dtype(self._inputs.method, w, a) for w, a in tensors]

    @property
    def _structured(self) -> bool:
        return self._rule["pattern"] in ("row", "col") or self._rule["pattern"].startswith("block:")

    def score(self, start: int) -> int:
        """``start``: elements of the ranks before; -> how many free units have the score NaN, where that is allowed."""
        self._inputs.start = start
        nans = 0
        for i, w in enumerate(self._inputs.weights):
            self._items.append(self._item(i, start))
            start += w.size
            if self._rule["nan"] != "raise":
                nans += sum(int((np.isnan(scores) & free).sum()) for scores, free in self._tiles(self._items[-1]))
        return nans

    def parts(self) -> Iterator[Part]:
        """All that competes and is not NaN, in order, in pieces of about a million."""
        for item in self._items:
            if item.prior is None and item.floor is None and self._rule["nan"] == "raise":
                for index, w, aux in _blocks(item.weights, item.aux):
                    yield item.method, w, aux, item.start + index
                continue
            for scores, free in self._tiles(item):
                yield "", scores[free & ~np.isnan(scores)], None, 0

    def sample(self) -> Iterator[Host]:
        """One score in 32 of the parts, wherever they stand."""
        for method, w, aux, index in self.parts():
            yield _sample(Inputs(method, [], [], [], self.seed), index, w, aux)

    def _item(self, i: int, start: int) -> _Item:
        method, name = self._inputs.method, self._inputs.names[i]
        w, aux, floor = self._inputs.weights[i], self._inputs.aux[i], None
        if self._floors[i]:
            rule = self._rule | {"group": "tensor", "min_density": 0.0, "sparsity": None, "nnz": self._floors[i]}
            inputs = Inputs(method, [name], [w], [aux], self._inputs.seed, start)
            mask = select(inputs, [w.shape], [], self._function, **rule, priors={name: self._priors[name]})[name]
            floor = self._unit_bits(mask, name, w.shape)
        if method in _WHOLE or (self._structured and method):
            w = self._scores("grasp" if method == "taylor2" else method, w, aux, start)  # grasp is w g
            squared, method, aux = method == "taylor2", "", None
            if self._structured:
                w = self._units(w, self._grids[i], squared)
        elif self._structured:
            w = self._units(w, self._grids[i], squared=False)
        return _Item(method, w, aux, start, self._allowed[i], floor)

    def _units(self, scores: Host, grid: tuple[int, int, int, int], squared: bool) -> Host:
        units = np.zeros(grid[:2], np.float64)
        if scores.size:
            matrix = scores.reshape(matrix_shape(scores.shape))
            _core.unit_scores(self._function, "", matrix, 0, 0, self._rule["pattern"], units)
        return units * units if squared else units

    def _scores(self, method: str, w: Host, aux: Host | None, start: int) -> Host:
        scores = np.empty(w.shape, score_dtype(method, w, aux))
        if method == "random":  # which alone depends on the place, and is never NaN
            _core.collect(
                self._function, method, w, aux, self._inputs.seed, start, -math.inf, math.inf, scores.reshape(-1)
            )
        else:
            _core.score(method, [w], [aux], self._inputs.seed, [scores])
        return scores

    def _tiles(self, item: _Item) -> Iterator[tuple[Host, Host]]:
        """(scores, bool: whether they are free) in order, about a million at a time."""
        w = item.weights if item.weights.ndim > 1 else item.weights.reshape(1, -1)
        rows, cols = matrix_shape(w.shape)
        per_column = item.aux is not None and item.aux.size == cols
        step = max(_BLOCK // max(cols, 1), 1)
        for row in range(0, rows, step):
            strip = w[row : row + step].reshape(-1, cols) if cols else np.empty((0, 0), w.dtype)
            for col in range(0, cols, _BLOCK):
                tile = slice(col, col + _BLOCK)
                part, aux = strip[:, tile], item.aux
                if aux is not None:
                    aux = aux.reshape(-1)[tile] if per_column else aux[row : row + step].reshape(-1, cols)[:, tile]
                scores = (
                    part if not item.method else self._scores(item.method, part, aux, item.start + row * cols + col)
                )
                free = np.ones(part.shape, np.bool_)
                for bits, wanted in ((item.prior, True), (item.floor, False)):
                    if bits is not None:
                        packed = bits[row : row + len(part), col // 8 : (col + _BLOCK) // 8]
                        found = np.unpackbits(packed, axis=1, count=part.shape[1], bitorder="little").view(np.bool_)
                        free &= found if wanted else ~found
                yield scores, free

    def _unit_bits(self, mask: Any, name: str, shape: tuple[int, ...]) -> Host | None:
        """The packed bits of the units that a mask keeps whole."""
        if mask is None:
            return None
        bits = packed_bits(mask, shape, self._function, "prior", name)
        if not self._structured:
            return bits
        rows, cols, height, width = unit_grid(shape, self._rule["pattern"])
        dense = np.unpackbits(bits, axis=1, count=cols * width, bitorder="little")
        return Mask.from_dense(dense.reshape(rows, height, cols, width).all(axis=(1, 3))).packed
