# SPDX-License-Identifier: Apache-2.0
"""Exact top-k over chunks that never meet in one memory: count, merge, then mask chunk by chunk."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, matrix_shape, require_number
from gossamer.masks import Mask
from gossamer.scoring import Inputs, Method, gather_inputs, method_entry, score_dtype
from gossamer.stats import Stats

_BLOCK = 1 << 20  # elements looked at together
_SHARE = 32  # one score in so many is held, and as many again as a sample


Counted = tuple[Host, Host | None]  # scores, and how often each occurs (None: once)


def _packed(parts: list[Counted]) -> Counted:
    """Sorted, equal scores as one."""
    parts = [part for part in parts if part[0].size] or [(np.empty(0, np.float32), None)]
    values = np.concatenate([v for v, _ in parts])
    if all(counts is None for _, counts in parts):
        values, each = np.unique(values, return_counts=True)
    else:
        each = np.concatenate([_counts(part) for part in parts])
        order = np.argsort(values)
        values, each = values[order], each[order]
        first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        values, each = values[first], np.add.reduceat(each, first)
    return values, None if each.max(initial=0) <= 1 else each


def _counts(part: Counted) -> Host:
    return np.ones(part[0].size, np.int64) if part[1] is None else part[1]


@dataclass
class _Chunk:
    """What is known of one chunk: where it lies, and its scores inside the window."""

    offset: int
    size: int
    parts: list[Counted]

    @property
    def end(self) -> int:
        return self.offset + self.size

    def copy(self) -> _Chunk:
        return _Chunk(self.offset, self.size, list(self.parts))

    def held(self) -> int:
        return sum(values.size for values, _ in self.parts)

    def count_equal(self, score: float) -> int:
        return sum(int(_counts(part)[part[0] == score].sum()) for part in self.parts)

    def keep(self, low: float, high: float) -> tuple[int, int]:
        """Drops the scores outside of [low, high]; -> how many above and below."""
        values, counts = _packed(self.parts)
        each = _counts((values, counts))
        above, below = values > high, values < low
        inside = ~(above | below)
        self.parts = [(values[inside], None if counts is None else counts[inside])]
        return int(each[above].sum()), int(each[below].sum())


class Selection:
    """A global top-k over a stream of chunks: ``update`` with every chunk, then ``mask`` every chunk.

    The masks are exactly those that :func:`gossamer.prune` or :func:`gossamer.topk_mask` would give for the
    concatenated chunks, ties to the lower flat index included, whatever the chunks' sizes and wherever they were
    counted. Selections of several processes or machines are pickled and merged.

    What is held is an interval of scores around the expected threshold with the counts above and below it (the interval
    narrows as data come, to one value in 32), and one score in 32 as a sample: about 8 bytes in 32 elements where few
    scores are equal and chunks are large. Where the chunks differ so much that the threshold fell outside the interval,
    which the counts tell, ``complete`` is False and another look is needed: :meth:`again`, and ``update`` with every
    chunk once more. That look begins with an interval taken from the sample. Data made to mislead the sample may need
    many looks: bound the loop.

    A Selection is for one thread. Chunks of float32 and float64 do not mix: their ties may be counted wrong.

    Parameters
    ----------
    sparsity : the share of zeros among all elements of all chunks, in [0, 1]; counted as in :func:`gossamer.topk_mask`.
    nnz : or how many are kept in all. Then the best ``nnz`` scores are held instead.
    method : as in :func:`gossamer.prune`. ``"ria"``, ``"lamp"`` and ``"fpgm"`` take each chunk for a whole tensor;
        ``"snip"`` would need the sum over all chunks first and is refused (taylor orders alike).
    seed : for ``"random"``.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        Arguments out of range, a method that cannot be streamed.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> chunks = [np.array([3.0, -1.0]), np.array([1.0, 0.5, 2.0])]
    >>> selection = gs.Selection(sparsity=0.4)
    >>> for chunk in chunks:
    ...     selection.update(chunk)
    >>> selection.threshold()
    1.0
    >>> [selection.mask(chunk).to_dense().tolist() for chunk in chunks]
    [[True, True], [False, False, True]]
    """

    def __init__(
        self,
        *,
        sparsity: float | None = None,
        nnz: int | None = None,
        method: Method = "magnitude",
        seed: int | None = None,
    ) -> None:
        if (sparsity is None) == (nnz is None):
            raise ValueError("Selection: exactly one of sparsity and nnz must be given")
        if sparsity is not None and not 0 <= require_number(sparsity, "Selection", "sparsity") <= 1:
            raise ValueError(f"Selection: sparsity must be in [0, 1], got {sparsity}")
        if nnz is not None and (not isinstance(nnz, (int, np.integer)) or isinstance(nnz, bool)):
            raise TypeError(f"Selection: nnz must be an int, got {nnz!r}")
        if nnz is not None and nnz < 0:
            raise ValueError(f"Selection: nnz must be at least 0, got {nnz}")
        if not callable(method):
            method_entry(method, "Selection")
        if method == "snip":
            raise NotImplementedError("Selection: snip needs the sum over all chunks first; taylor has the same order")
        self.sparsity = None if sparsity is None else float(sparsity)
        self.nnz = None if nnz is None else int(nnz)
        self.method = method
        self.seed = seed
        self._bounds = (-math.inf, math.inf)  # the threshold is known to lie between these
        self._aim: float | None = None  # and is expected here, after a first look
        self._window = self._bounds
        self._clear()

    def _clear(self) -> None:
        self._above = self._below = 0  # scores outside the window
        self._chunks: list[_Chunk] = []
        self._sample: list[Host] = []
        self._placed = False  # whether offsets were given
        self._next = (0, 0)  # where mask() goes on: offset, ties before it
        self._found: tuple[float, int] | None = None

    @property
    def size(self) -> int:
        """Elements counted so far."""
        return sum(chunk.size for chunk in self._chunks)

    @property
    def complete(self) -> bool:
        """Whether the threshold is known; if not, :meth:`again`."""
        kept, inside = self._kept(), self.size - self._above - self._below
        return kept == 0 or self._above < kept <= self._above + inside

    def _kept(self) -> int:
        if self.sparsity is not None:
            return int(_core.kept_count(self.size, self.sparsity))
        assert self.nnz is not None
        return self.nnz

    # --- counting -----------------------------------------------------------------------------------------------------

    def update(
        self, chunk: Array, grads: Array | None = None, *, stats: Stats | None = None, offset: int | None = None
    ) -> None:
        """Counts a chunk; an error changes nothing.

        Parameters
        ----------
        chunk : weights (with a callable method: what it scores), of any float dtype and shape. Read in blocks of about
            a million elements, never copied as a whole, except for ria, lamp and fpgm and callables, whose scores are
            held.
        grads, stats : what the method needs, as in :func:`gossamer.prune`.
        offset : flat index of the chunk's first element among all. Left out, chunks follow each other.

        Raises
        ------
        TypeError, ValueError
            As :func:`gossamer.prune`; NaN scores; offsets that overlap, or that are given for some chunks only.
        """
        f = "Selection.update"
        start = self._place(offset)
        inputs = _scored(gather_inputs(chunk, grads, self.method, stats, self.seed, f), start, f)
        trial = self._trial()
        trial._chunks.append(_Chunk(start, inputs.weights[0].size, []))
        trial._check_apart(f)
        for index, w, aux in _blocks(inputs):
            trial._count(inputs, start + index, w, aux)
        trial._placed = offset is not None
        self.__dict__.update(trial.__dict__)

    def _trial(self) -> Selection:
        """A copy to count on, which takes this one's place if all goes well. Arrays are never written to: shared."""
        trial = copy.copy(self)
        trial._chunks, trial._sample, trial._found = [c.copy() for c in self._chunks], list(self._sample), None
        return trial

    @property
    def _end(self) -> int:
        return max((c.end for c in self._chunks), default=0)

    def _place(self, offset: int | None) -> int:
        if self._chunks and (offset is not None) != self._placed:
            raise ValueError("Selection.update: offset must be given for all chunks or for none")
        if offset is None:
            return self._end
        if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
            raise TypeError(f"Selection.update: offset must be an int, got {offset!r}")
        if not 0 <= offset < 1 << 62:
            raise ValueError(f"Selection.update: offset must be at least 0, got {offset}")
        return int(offset)

    def _check_apart(self, function: str) -> None:
        places = sorted((c.offset, c.end) for c in self._chunks if c.size)
        for (_, end), (start, _) in pairwise(places):
            if start < end:
                raise ValueError(f"{function}: offset must not overlap with another chunk, got one at {start}")

    def _count(self, inputs: Inputs, index: int, w: Host, aux: Host | None) -> None:
        f = "Selection.update"
        dtype = score_dtype(inputs.method, w, aux)
        scores = np.empty(w.size, dtype)
        above, inside, below, nan = _core.collect(f, inputs.method, w, aux, inputs.seed, index, *self._window, scores)
        if nan:
            raise ValueError(f"{f}: scores must not be NaN, got NaN between flat index {index} and {index + w.size}")
        self._above += above
        self._below += below
        self._chunks[-1].parts.append((scores[:inside].copy(), None))
        self._sample.append(_sample(inputs, w, aux))
        if self._held() > self._room():
            self._narrow()

    def _held(self) -> int:
        return sum(c.held() for c in self._chunks)

    def _room(self) -> int:
        return max(_BLOCK, self.size // _SHARE) if self.nnz is None else 2 * self.nnz + _BLOCK

    def _inside(self) -> tuple[Host, Host]:
        """All scores inside the window, falling, and for each how many are at least as high, over all chunks."""
        whole = _packed([part for chunk in self._chunks for part in chunk.parts])
        return whole[0][::-1], self._above + np.cumsum(_counts(whole)[::-1])

    def _narrow(self) -> None:
        """Holds the half of the room that is nearest to the expected threshold."""
        values, reached = self._inside()
        if self._aim is not None:
            at = int(np.searchsorted(-values, -self._aim))
        else:
            seen = int(reached[-1]) + self._below
            expected = _core.kept_count(seen, self.sparsity) if self.sparsity is not None else self._kept()
            at = int(np.searchsorted(reached, expected))
        at = min(at, values.size - 1)
        low, high = self._window
        if self.nnz is None:
            half = self._room() // 4
            low, high = float(values[min(at + half, values.size - 1)]), float(values[max(at - half, 0)])
        else:
            low = float(values[at])  # no later chunk can lower the threshold
        self._limit(low, high)

    def _limit(self, low: float, high: float) -> None:
        self._window = max(low, self._window[0]), min(high, self._window[1])
        for chunk in self._chunks:
            above, below = chunk.keep(*self._window)
            self._above += above
            self._below += below

    # --- several of them ----------------------------------------------------------------------------------------------

    def merge(self, other: Selection) -> None:
        """Adds what another Selection has counted, which stays as it is; an error changes nothing.

        Without offsets, the other's chunks follow this one's.
        """
        f = "Selection.merge"
        if not isinstance(other, Selection):
            raise TypeError(f"{f}: other must be a Selection, got {type(other).__name__}")
        for name in ("sparsity", "nnz", "method", "seed"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"{f}: other must have the same {name}, got {getattr(other, name)!r}")
        if self._chunks and other._chunks and self._placed != other._placed:
            raise ValueError(f"{f}: offset must have been given for the chunks of both or of neither")
        trial = self._trial()
        shift = 0 if other._placed else self._end
        for chunk in other._chunks:
            trial._chunks.append(_Chunk(chunk.offset + shift, chunk.size, list(chunk.parts)))
        trial._check_apart(f)
        trial._above += other._above
        trial._below += other._below
        trial._sample += other._sample
        trial._placed = self._placed or other._placed
        low, high = other._window
        if low > trial._window[1] or high < trial._window[0]:  # apart: nothing between them is known
            trial._window = (math.inf, -math.inf)
            trial._above, trial._below = trial.size, 0
            for chunk in trial._chunks:
                chunk.parts = []
        else:
            trial._limit(low, high)
        self.__dict__.update(trial.__dict__)

    def again(self) -> None:
        """Forgets the counts and begins another look: ``update`` with every chunk once more.

        For several processes: merge, ``again`` on the result, send that to all, and go on from there.
        """
        if self.complete:
            raise RuntimeError("Selection.again: a second look is not needed, the threshold is known")
        share = self._kept() / self.size
        sample = np.sort(np.concatenate(self._sample))[::-1]
        middle = share * sample.size
        spread = 8 * math.sqrt(sample.size * share * (1 - share)) + 16 + sample.size / 256
        at = [min(max(int(middle + d), 0), sample.size - 1) for d in (spread, 0, -spread)]
        low, aim, high = (float(sample[i]) for i in at)
        least, most = self._bounds
        if self._window[0] <= self._window[1]:  # the miss tells on which side of the window the threshold lies
            missed_low = self._kept() > self._above
            least, most = (least, min(most, self._window[0])) if missed_low else (max(least, self._window[1]), most)
        self._bounds = (least, most)
        low = -math.inf if at[0] == sample.size - 1 else low
        high = math.inf if at[2] == 0 else high
        overlaps = low <= most and high >= least
        self._window = (max(low, least), min(high, most)) if overlaps else self._bounds
        self._aim = min(max(aim, self._window[0]), self._window[1])
        self._clear()

    # --- the result ---------------------------------------------------------------------------------------------------

    def _limit_and_ties(self, function: str) -> tuple[float, int]:
        """The lowest score that is kept, and how many of those equal to it are kept."""
        if self._found is not None:
            return self._found
        kept = self._kept()
        if kept > self.size:
            raise ValueError(f"{function}: nnz must be at most the number of elements, {self.size}, got {kept}")
        if kept == 0:
            return math.inf, 0
        if not self.complete:
            raise RuntimeError(
                f"{function}: the threshold must be among the scores that were held, and is not: call again(), and"
                " update() with every chunk once more"
            )
        values, reached = self._inside()
        at = int(np.searchsorted(reached, kept))
        self._found = float(values[at]), kept - (self._above if at == 0 else int(reached[at - 1]))
        return self._found

    def threshold(self) -> float:
        """The lowest score that is kept; ``inf`` where nothing is.

        Raises RuntimeError unless :attr:`complete`, ValueError if fewer than ``nnz`` elements were counted.
        """
        return self._limit_and_ties("Selection.threshold")[0]

    def mask(
        self, chunk: Array, grads: Array | None = None, *, stats: Stats | None = None, offset: int | None = None
    ) -> Mask:
        """Which elements of a chunk are kept.

        Parameters
        ----------
        chunk, grads, stats : as in :meth:`update`.
        offset : flat index of the chunk's first element: that of a chunk of ``update``. Left out, chunks follow each
            other, from the first one on and however they are cut.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As :meth:`update` and :meth:`threshold`; an offset at which no chunk began.
        """
        f = "Selection.mask"
        threshold, ties = self._limit_and_ties(f)
        start, before = self._next
        if offset is not None:
            if offset not in (c.offset for c in self._chunks):
                raise ValueError(f"{f}: offset must be that of a chunk that was counted, got {offset!r}")
            start = int(offset)
            before = sum(c.count_equal(threshold) for c in self._chunks if c.offset < start)
        inputs = _scored(gather_inputs(chunk, grads, self.method, stats, self.seed, f), start, f)
        w, aux = inputs.weights[0], inputs.aux[0]
        if start + w.size > self._end:
            raise ValueError(f"{f}: chunk must be one that was counted, got elements beyond the last")
        bits = Mask._blank(w.shape, f)
        kept, used = _core.keep_above(
            f, inputs.method, w, aux, inputs.seed, start, threshold, max(ties - before, 0), bits
        )
        if offset is None:
            self._next = (start + w.size, before + used)
        return Mask._own(w.shape, bits, kept)

    def __repr__(self) -> str:
        rule = f"sparsity={self.sparsity:g}" if self.sparsity is not None else f"nnz={self.nnz}"
        return f"Selection({rule}, method={self.method!r}, size={self.size}, complete={self.complete})"


def _scored(inputs: Inputs, start: int, function: str) -> Inputs:
    """Methods that look at a whole tensor are scored first; the others block by block."""
    if inputs.method not in ("ria", "lamp", "fpgm"):
        return inputs
    w = inputs.weights[0]
    scores = np.empty(w.shape, score_dtype(inputs.method, w, None))
    _core.score(inputs.method, inputs.weights, inputs.aux, inputs.seed, [scores])
    return Inputs("", inputs.names, [scores], [None], 0)


def _sample(inputs: Inputs, w: Host, aux: Host | None) -> Host:
    """About one score in ``_SHARE`` of a block: of every so many rows (for a vector: elements), then of those."""
    whole_rows = slice(None, None, min(_SHARE, len(w)))
    w_thin = w[whole_rows]
    scores = np.empty(w_thin.shape, score_dtype(inputs.method, w, aux))
    aux_thin = aux[whole_rows] if aux is not None and aux.shape == w.shape else aux
    _core.score(inputs.method, [w_thin], [aux_thin], inputs.seed, [scores])
    return scores.reshape(-1)[:: max(1, _SHARE * scores.size // w.size)].copy()


def _blocks(inputs: Inputs) -> Iterator[tuple[int, Host, Host | None]]:
    """(flat index, weights, what goes with them) of about ``_BLOCK`` elements, as views."""
    w, aux = inputs.weights[0], inputs.aux[0]
    if w.size == 0:
        return
    per_column = aux is not None and aux.shape != w.shape
    if not per_column and all(a is None or a.flags.c_contiguous for a in (w, aux)):
        w, aux = w.reshape(-1), None if aux is None else aux.reshape(-1)
    rows, cols = (w.size, 1) if w.ndim <= 1 and not per_column else matrix_shape(w.shape)
    w = w.reshape(1, -1) if w.ndim == 0 or (w.ndim == 1 and per_column) else w
    step = max(1, _BLOCK // cols)
    for first in range(0, rows, step):
        part = slice(first, first + step)
        yield first * cols, w[part], aux if aux is None or per_column else aux[part]
