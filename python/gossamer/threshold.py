# SPDX-License-Identifier: Apache-2.0
"""The exact k-th largest of a stream of scores in a memory that does not depend on its length.

Like :class:`gossamer.Selection` on the same two operations of the core, but where that holds one score in 32, this
counts keys in a histogram: a look over the data counts the scores in a window, and the next one takes the bin in which
the threshold lies. For float32 one look is enough where the first window is narrower than half an octave.

What a look has counted is an array of int64, its ``tally``. Several processes look at a part of the data each, with the
same window; the sum of their tallies is that of one process, and no score has to travel.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Host
from gossamer.scoring import score_dtype

_BINS = 22  # of the histogram, as a power of two: 32 MiB
_BLOCK = 1 << 20  # scores looked at together
_HOLD = 1 << 20  # so many scores are put in order instead

Window = tuple[float, float]  # the lowest and the highest score in it


class Threshold:
    """Looks for the ``kept``-th largest of all scores.

    Parameters
    ----------
    kept : at most as many as there are scores.
    wide : whether some scores are float64; else all are float32.
    window : where it is looked for first. A wrong one costs a look, nothing else.
    bins : of the histogram, as a power of two. Then a look never holds scores, however few are left, so that it can be
        shared by several processes.
    function : in whose name errors are raised.

    Examples
    --------
    >>> import numpy as np
    >>> search = Threshold(kept=2, wide=False)
    >>> while not search.found:
    ...     search.add("", np.array([3.0, -1.0, 2.0, 2.0], np.float32), 0, 0)
    ...     search.end()
    >>> search.score, search.ties
    (2.0, 1)
    """

    def __init__(
        self,
        kept: int,
        *,
        wide: bool,
        window: Window = (-math.inf, math.inf),
        bins: int | None = None,
        function: str = "prune",
    ) -> None:
        self._kept, self._function = kept, function
        self._float: Any = np.float64 if wide else np.float32
        self._key: Any = np.int64 if wide else np.int32
        self._least, self._most = self._key_of(-math.inf), self._key_of(math.inf)  # the threshold lies between these
        self._low, self._high = (self._key_of(x) for x in window)
        self._bins, self._may_hold = (_BINS, True) if bins is None else (bins, False)
        self.found = kept == 0
        self.score, self.ties = math.inf, 0  # the lowest kept score, and how many of those equal to it are kept
        self._begin()

    def _begin(self) -> None:
        self._held: list[Host] | None = None
        self._shift = max(0, (self._high - self._low).bit_length() - self._bins)
        self.tally = np.zeros((self._high - self._low >> self._shift) + 2, np.int64)  # of bins, and scores above them

    @property
    def window(self) -> Window:
        """Of this look."""
        return self._value(self._low), self._value(self._high)

    def add(self, method: str, weights: Host, seed: int, start: int, aux: Host | None = None) -> None:
        """Counts a part of the data; ``method`` "" for scores, ``start`` is the flat index of its first element.

        ``aux`` is what goes with the weights, as the core takes it; then they are at most some million.
        """
        dtype = score_dtype(method, weights, aux)
        low, high = self.window
        flat, step = (weights.reshape(-1), _BLOCK) if aux is None else (weights, max(len(weights), 1))
        for i in range(0, len(flat), step):
            part = flat[i : i + step]
            scores = np.empty(part.size, dtype)
            above, inside, _ = _core.collect(self._function, method, part, aux, seed, start + i, low, high, scores)
            self.tally[-1] += above
            if inside and self._held is not None:
                self._held.append(scores[:inside].astype(self._float))
            elif inside:
                np.add.at(self.tally, self._bins_of(scores[:inside]), 1)

    def _bins_of(self, scores: Host) -> Host:
        keys = (scores.astype(self._float, copy=False) + self._float(0)).view(self._key)  # no -0
        if self._low < 0:
            keys ^= keys >> (8 * keys.itemsize - 1) & np.iinfo(self._key).max  # negative numbers: the other way round
        bins: Host = keys.view(f"u{keys.itemsize}")  # so that the width of the widest window fits, too
        bins -= bins.dtype.type(self._low % (1 << 8 * bins.itemsize))
        bins >>= bins.dtype.type(self._shift)
        return bins.astype(np.intp)

    def end(self) -> None:
        """After all data: the threshold is found, or the next look has a narrower window."""
        counts, above = self.tally[:-1], int(self.tally[-1])
        if self._held is not None:
            scores = np.sort(np.concatenate(self._held))[::-1]
            self.found, self.score = True, float(scores[self._kept - above - 1])
            self.ties = self._kept - above - int((scores > self.score).sum())
            return
        few = False
        reached = above + np.cumsum(counts[::-1])
        if above >= self._kept:
            self._least = self._high + 1
        elif reached[-1] < self._kept:
            self._most = self._low - 1
        else:
            at = int(np.searchsorted(reached, self._kept))
            bin_ = counts.size - 1 - at
            few = bool(counts[bin_] <= _HOLD)
            first = self._low + (bin_ << self._shift)
            self._least, self._most = first, min(first + (1 << self._shift) - 1, self._high)
            if self._shift == 0:
                self.found, self.score = True, self._value(first)
                self.ties = self._kept - (above if at == 0 else int(reached[at - 1]))
        if self.found:
            return
        self._low, self._high = self._least, self._most
        if self._high == -1:  # the key of -0, which the core would take for 0
            self._high = -2
        self._begin()
        self._held = [] if few and self._may_hold else None

    def between(self, highest: int, lowest: int) -> Window:
        """A window around the ``highest``-th to the ``lowest``-th largest of what this look has counted, in whole bins.

        Up to infinity where there is no such one.
        """
        reached = int(self.tally[-1]) + np.cumsum(self.tally[-2::-1])
        last = reached.size - 1

        def bin_of(rank: int) -> int:
            return last - int(np.searchsorted(reached, rank))

        low = -math.inf if lowest > reached[-1] else self._value(self._low + (bin_of(lowest) << self._shift))
        if highest <= int(self.tally[-1]):
            return low, math.inf
        return low, self._value(min(self._low + (bin_of(highest) + 1 << self._shift) - 1, self._high))

    def share(self, tally: Host) -> tuple[int, int]:
        """Once it is found: how many scores of a part of the last look's data are higher, and how many equal.

        ``tally`` is what that part alone has counted.
        """
        if self._kept == 0:
            return 0, 0
        return int(tally[self.slot + 1 :].sum()), int(tally[self.slot])

    @property
    def slot(self) -> int:
        """Once it is found by counts: where in a tally of the last look are the scores equal to it."""
        return self._key_of(self.score) - self._low

    def _key_of(self, score: float) -> int:
        """Integers in the order of the scores; -0 is 0."""
        key = int(np.array(score + 0.0, self._float).view(self._key))
        return key if key >= 0 else key ^ int(np.iinfo(self._key).max)

    def _value(self, key: int) -> float:
        return float(np.array(key if key >= 0 else key ^ int(np.iinfo(self._key).max), self._key).view(self._float))
