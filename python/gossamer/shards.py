# SPDX-License-Identifier: Apache-2.0
"""Exact top-k over chunks that never meet in one memory: count, merge, then mask chunk by chunk."""

from __future__ import annotations

import math
import struct
import threading
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, require_number
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

    @property
    def place(self) -> tuple[int, int]:
        return self.offset, self.end

    def held(self) -> int:
        return sum(values.size for values, _ in self.parts)

    def count_equal(self, score: float) -> int:
        # As float64 on both sides: numpy would round a Python float to the float32 of the scores.
        return sum(int(_counts(part)[part[0] == np.float64(score)].sum()) for part in self.parts)

    def within(self, low: float, high: float) -> tuple[_Chunk, int, int]:
        """Without the scores outside of [low, high], and how many lay above and below."""
        values, counts = _packed(self.parts)
        each = _counts((values, counts))
        above, below = values > np.float64(high), values < np.float64(low)
        inside = ~(above | below)
        left = (values[inside], None if counts is None else counts[inside])
        return _Chunk(self.offset, self.size, [left]), int(each[above].sum()), int(each[below].sum())


class Selection:
    """A global top-k over a stream of chunks: ``update`` with every chunk, then ``mask`` every chunk.

    The masks are exactly those that :func:`gossamer.prune` or :func:`gossamer.topk_mask` would give for the
    concatenated chunks, ties to the lower flat index included, whatever the chunks' sizes and wherever they were
    counted. Selections of several processes or machines are pickled and merged.

    What is held is an interval of scores around the expected threshold with the counts above and below it (the interval
    narrows as data come, to one value in 32), and one score in 32 as a sample: about 8 bytes in 32 elements where few
    scores are equal and chunks are large. Where the chunks differ so much that the threshold fell outside the interval,
    which the counts tell, ``complete`` is False and another look is needed: :meth:`again`, and ``update`` with every
    chunk once more. That look begins with an interval taken from the sample, and nearly always ends it; every further
    one halves what is left at least, so that 66 looks are enough for any data.

    Threads may share a Selection: its calls wait for each other.

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
        self._lock = threading.Lock()
        self._clear()

    def _clear(self) -> None:
        self._size = self._held = 0  # elements counted; scores held, at most
        self._above = self._below = 0  # scores outside the window
        self._chunks: list[_Chunk] = []  # by offset
        self._sample: list[Host] = []
        self._placed = False  # whether offsets were given
        self._forget()

    def _forget(self) -> None:
        """What was found and how far mask() has come, which more counting changes."""
        self._next = (0, 0)  # where mask() goes on: offset, ties before it
        self._found: tuple[float, int] | None = None
        self._before: dict[int, tuple[int, int]] = {}  # for the offset of a chunk: its size, ties before it

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            state = self.__dict__ | {"_chunks": list(self._chunks), "_sample": list(self._sample)}
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    @property
    def size(self) -> int:
        """Elements counted so far."""
        with self._lock:
            return self._size

    @property
    def complete(self) -> bool:
        """Whether the threshold is known; if not, :meth:`again`."""
        with self._lock:
            return self._is_complete()

    def _is_complete(self) -> bool:
        kept, inside = self._kept(), self._size - self._above - self._below
        return kept == 0 or self._above < kept <= self._above + inside

    def _kept(self) -> int:
        if self.sparsity is not None:
            return int(_core.kept_count(self._size, self.sparsity))
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
        gathered = gather_inputs(chunk, grads, self.method, stats, self.seed, f)  # may call the user's code: no lock
        with self._lock:
            start = self._place(offset)
            inputs = _scored(gathered, start, f)
            fresh = _Chunk(start, inputs.weights[0].size, [])
            at = bisect(self._chunks, fresh.place, key=lambda c: c.place)
            _check_apart([*self._chunks[max(at - 1, 0) : at], fresh, *self._chunks[at : at + 1]], f)
            before, sampled = self.__dict__.copy(), len(self._sample)
            self._chunks.insert(at, fresh)
            try:
                self._forget()
                self._size += fresh.size
                for index, w, aux in _blocks(inputs.weights[0], inputs.aux[0]):
                    self._count(at, inputs, start + index, w, aux)
                self._placed = offset is not None
            except BaseException:
                self.__dict__.update(before)
                del self._chunks[at], self._sample[sampled:]
                raise

    def _place(self, offset: int | None) -> int:
        if self._chunks and (offset is not None) != self._placed:
            raise ValueError("Selection.update: offset must be given for all chunks or for none")
        if offset is None:
            return self._chunks[-1].end if self._chunks else 0
        return _check_offset(offset, "Selection.update")

    def _count(self, at: int, inputs: Inputs, index: int, w: Host, aux: Host | None) -> None:
        scores = np.empty(w.size, score_dtype(inputs.method, w, aux))
        above, inside, below = _core.collect(
            "Selection.update", inputs.method, w, aux, inputs.seed, index, *self._window, scores
        )
        self._above += above
        self._below += below
        if inside:
            low, high = self._window
            part: Counted = (scores[:1].copy(), np.array([inside])) if low == high else (scores[:inside].copy(), None)
            if part[0].size > _BLOCK // 8:  # the window is wide still, or many are equal
                part = _packed([part])
            self._chunks[at].parts.append(part)
            self._held += 1 if low == high else inside  # before equal ones became one: a window this wide shall narrow
        self._sample.append(_sample(inputs, index, w, aux))
        self._narrow_to_room()

    def _room(self) -> int:
        return max(_BLOCK, self._size // _SHARE) if self.nnz is None else 2 * self.nnz + _BLOCK

    def _inside(self) -> tuple[Host, Host]:
        """All scores inside the window, falling, and for each how many are at least as high, over all chunks."""
        whole = _packed([part for chunk in self._chunks for part in chunk.parts])
        return whole[0][::-1], self._above + np.cumsum(_counts(whole)[::-1])

    def _narrow_to_room(self) -> None:
        """Where too much is held: keeps the half of the room that is nearest to the expected threshold."""
        if self._held <= self._room():
            return
        values, reached = self._inside()
        last = values.size - 1
        if self.nnz is not None:  # no later chunk can lower the threshold
            self._limit(float(values[min(int(np.searchsorted(reached, self.nnz)), last)]), math.inf)
            return
        if self._aim is not None:
            middle = int(reached[min(int(np.searchsorted(-values, -np.float64(self._aim))), last)])
        else:
            assert self.sparsity is not None
            middle = int(_core.kept_count(int(reached[-1]) + self._below, self.sparsity))
        half = self._room() // 4
        high, low = (float(values[min(int(np.searchsorted(reached, middle + d)), last)]) for d in (-half, half))
        if self._aim is not None:
            low, high = min(low, self._aim), max(high, self._aim)  # so that a miss tells on which side of the aim
        self._limit(low, high)

    def _limit(self, low: float, high: float) -> None:
        self._window = max(low, self._window[0]), min(high, self._window[1])
        parts = [chunk.within(*self._window) for chunk in self._chunks]
        self._chunks = [chunk for chunk, _, _ in parts]
        self._above += sum(above for _, above, _ in parts)
        self._below += sum(below for _, _, below in parts)
        self._held = sum(chunk.held() for chunk in self._chunks)

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
        theirs = other.__getstate__()
        with self._lock:
            if self._chunks and theirs["_chunks"] and self._placed != theirs["_placed"]:
                raise ValueError(f"{f}: offset must have been given for the chunks of both or of neither")
            if (self._bounds, self._aim) != (theirs["_bounds"], theirs["_aim"]):
                raise ValueError(f"{f}: other must be at the same look: again() on one, then send that to all")
            shift = 0 if theirs["_placed"] or not self._chunks else self._chunks[-1].end
            added = [_Chunk(c.offset + shift, c.size, list(c.parts)) for c in theirs["_chunks"]]
            chunks = sorted([*self._chunks, *added], key=lambda c: c.place)
            _check_apart(chunks, f)
            before = self.__dict__.copy()
            try:
                self._forget()
                self._chunks = chunks
                self._sample = self._sample + theirs["_sample"]
                self._placed = self._placed or theirs["_placed"]
                for name in ("_size", "_above", "_below"):
                    setattr(self, name, getattr(self, name) + theirs[name])
                low, high = theirs["_window"]
                if low > self._window[1] or high < self._window[0]:  # apart: nothing between them is known
                    self._chunks = [_Chunk(c.offset, c.size, []) for c in chunks]
                    self._window, self._above, self._below, self._held = (math.inf, -math.inf), self._size, 0, 0
                else:
                    self._limit(low, high)
                    self._narrow_to_room()
            except BaseException:
                self.__dict__.update(before)
                raise

    def again(self) -> None:
        """Forgets the counts and begins another look: ``update`` with every chunk once more.

        For several processes: merge, ``again`` on the result, send that to all, and go on from there.
        """
        f = "Selection.again"
        with self._lock:
            self._check_enough(f)
            if self._is_complete():
                raise RuntimeError(f"{f}: a second look is not needed, the threshold is known")
            low, high = self._window
            least, most = self._bounds
            if low <= high:  # the miss tells on which side of the window the threshold lies
                if self._kept() > self._above:
                    most = min(most, math.nextafter(low, -math.inf))
                else:
                    least = max(least, math.nextafter(high, math.inf))
            self._bounds = self._window = (least, most)
            if self._aim is None:
                low, aim, high = self._expected()
                if low <= most and high >= least:
                    self._window = (max(low, least), min(high, most))
            else:
                aim = _middle(least, most)
            self._aim = min(max(aim, self._window[0]), self._window[1])
            self._clear()

    def _expected(self) -> tuple[float, float, float]:
        """Bounds of the threshold by the sample, 8 standard deviations wide, and what it says itself."""
        share = self._kept() / self._size
        sample = np.sort(np.concatenate(self._sample))[::-1]
        middle = share * sample.size
        spread = 8 * math.sqrt(sample.size * share * (1 - share)) + 16 + sample.size / 256
        low, aim, high = (int(middle + d) for d in (spread, 0, -spread))
        return (
            float(sample[low]) if low < sample.size else -math.inf,
            float(sample[min(aim, sample.size - 1)]),
            float(sample[high]) if high >= 0 else math.inf,
        )

    # --- the result ---------------------------------------------------------------------------------------------------

    def _check_enough(self, function: str) -> None:
        if self._kept() > self._size:
            message = f"nnz must be at most the number of elements, {self._size}, got {self._kept()}"
            raise ValueError(f"{function}: {message}")

    def _limit_and_ties(self, function: str) -> tuple[float, int]:
        """The lowest score that is kept, and how many of those equal to it are kept."""
        if self._found is not None:
            return self._found
        self._check_enough(function)
        kept = self._kept()
        if kept == 0:
            return math.inf, 0
        if not self._is_complete():
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
        with self._lock:
            return self._limit_and_ties("Selection.threshold")[0]

    def mask(
        self, chunk: Array, grads: Array | None = None, *, stats: Stats | None = None, offset: int | None = None
    ) -> Mask:
        """Which elements of a chunk are kept.

        Parameters
        ----------
        chunk, grads, stats : as in :meth:`update`.
        offset : flat index of the chunk's first element, if ``update`` was given it: in any order then. Left out,
            chunks follow each other, from the first one on and however they are cut; after the last one from the first
            again.

        Raises
        ------
        TypeError, ValueError, RuntimeError
            As :meth:`update` and :meth:`threshold`; a chunk that was not counted.
        """
        f = "Selection.mask"
        gathered = gather_inputs(chunk, grads, self.method, stats, self.seed, f)
        with self._lock:
            threshold, ties = self._limit_and_ties(f)
            if (offset is not None) != self._placed and self._chunks:
                raise ValueError(f"{f}: offset must be given where update() had it, and only there, got {offset!r}")
            start, before = self._next if offset is None else (_check_offset(offset, f), 0)
            inputs = _scored(gathered, start, f)
            w, aux = inputs.weights[0], inputs.aux[0]
            if offset is not None:
                before = self._ties_before(start, w.size, threshold)
            elif start + w.size > self._size:
                raise ValueError(f"{f}: chunk must be one that was counted, got elements beyond the last")
            bits = Mask._blank(w.shape, f)
            kept, used = _core.keep_above(
                f, inputs.method, w, aux, inputs.seed, start, threshold, max(ties - before, 0), bits
            )
            if offset is None:
                end = start + w.size
                self._next = (end, before + used) if end < self._size else (0, 0)
            return Mask._own(w.shape, bits, kept)

    def _ties_before(self, offset: int, size: int, threshold: float) -> int:
        """How many scores of the chunks before this one equal the threshold."""
        if not self._before:
            before = 0
            for c in self._chunks:
                self._before[c.offset] = (c.size, before)
                before += c.count_equal(threshold)
        counted, before = self._before.get(offset, (-1, 0))
        if size not in (counted, 0):
            raise ValueError(f"Selection.mask: offset must be that of a chunk of this size, got {offset} for {size}")
        return before

    def __repr__(self) -> str:
        rule = f"sparsity={self.sparsity:g}" if self.sparsity is not None else f"nnz={self.nnz}"
        return f"Selection({rule}, method={self.method!r}, size={self.size}, complete={self.complete})"


def _check_offset(offset: object, function: str) -> int:
    if not isinstance(offset, (int, np.integer)) or isinstance(offset, bool):
        raise TypeError(f"{function}: offset must be an int, got {offset!r}")
    if not 0 <= offset < 1 << 62:
        raise ValueError(f"{function}: offset must be in [0, 2**62), got {offset}")
    return int(offset)


def _check_apart(chunks: list[_Chunk], function: str) -> None:
    for one, other in pairwise(chunks):
        if other.offset < one.end:
            raise ValueError(f"{function}: offset must not overlap with another chunk, got one at {other.offset}")


def _middle(low: float, high: float) -> float:
    """The number with as many float64 numbers below it as above, between two."""

    def flip(bits: int) -> int:  # between the order of the numbers and their bits
        return bits if bits >= 0 else -(bits & (1 << 63) - 1)

    low_key, high_key = (flip(*struct.unpack("<q", struct.pack("<d", x))) for x in (low, high))
    key = (low_key + high_key) // 2
    return float(struct.unpack("<d", struct.pack("<Q", key if key >= 0 else (1 << 63) - key))[0])


def _scored(inputs: Inputs, start: int, function: str) -> Inputs:
    """Methods that look at a whole tensor are scored first; the others block by block."""
    if inputs.method not in ("ria", "lamp", "fpgm"):
        return inputs
    w = inputs.weights[0]
    scores = np.empty(w.shape, score_dtype(inputs.method, w, None))
    _core.score(inputs.method, inputs.weights, inputs.aux, inputs.seed, [scores])
    return Inputs("", inputs.names, [scores], [None], 0)


def _sample(inputs: Inputs, index: int, w: Host, aux: Host | None) -> Host:
    """One score in ``_SHARE`` of a block, at random, so that no order of the data misleads it."""
    at = np.arange(-(index % _SHARE), w.size, _SHARE)
    at += np.random.Generator(np.random.SFC64(index)).integers(0, _SHARE, at.size, dtype=np.uint8)
    at = at[(at >= 0) & (at < w.size)]
    partner = None if aux is None else _at(aux, at % aux.size)
    scores = np.empty(at.size, score_dtype(inputs.method, w, aux))
    _core.score(inputs.method, [_at(w, at)], [partner], inputs.seed, [scores])
    return scores


def _at(x: Host, at: Host) -> Host:
    """Elements by flat index, without a copy of a strided array."""
    return x.reshape(-1)[at] if x.flags.c_contiguous else x[np.unravel_index(at, x.shape)]


def _blocks(w: Host, aux: Host | None, first: int = 0) -> Iterator[tuple[int, Host, Host | None]]:
    """(flat index, weights, what goes with them) of about ``_BLOCK`` elements, as views."""
    per_column = aux is not None and aux.shape != w.shape
    if not per_column and all(a is None or a.flags.c_contiguous for a in (w, aux)):
        w, aux = w.reshape(-1), None if aux is None else aux.reshape(-1)
    if w.size <= _BLOCK:
        yield first, w, aux
        return
    inner = w.size // len(w)
    step = max(1, _BLOCK // inner)
    for i in range(0, len(w), step):
        part = slice(i, i + step)
        if inner <= _BLOCK:
            yield first + i * inner, w[part], aux if aux is None or per_column else aux[part]
        elif per_column:
            yield from _blocks(w[i].reshape(-1), aux, first + i * inner)
        else:
            yield from _blocks(w[i], None if aux is None else aux[i], first + i * inner)
