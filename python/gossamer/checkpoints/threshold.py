# SPDX-License-Identifier: Apache-2.0
"""The exact k-th largest of a stream of scores in a memory that does not depend on its length.

Like :class:`gossamer.Selection` on the same two operations of the core, but where that holds one score in 32, this
counts keys in a histogram: a look over the data counts the scores in a window, and the next one takes the bin in which
the threshold lies. For float32 one look is enough where the first window is narrower than half an octave.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Host

_BINS = 22  # of the histogram, as a power of two: 32 MiB
_BLOCK = 1 << 20  # scores looked at together
_HOLD = 1 << 20  # so many scores are put in order instead


class Threshold:
    """Looks for the ``kept``-th largest of all scores, which must not be negative.

    >>> import numpy as np
    >>> search = Threshold(kept=2, wide=False)
    >>> while not search.found:
    ...     search.add("", np.array([3.0, 1.0, 2.0, 2.0], np.float32), 0, 0)
    ...     search.end()
    >>> search.score, search.ties
    (2.0, 1)
    """

    def __init__(self, kept: int, *, wide: bool, guess: tuple[float, float] = (0.0, math.inf)) -> None:
        self._kept = kept
        self._float: Any = np.float64 if wide else np.float32
        self._key: Any = np.uint64 if wide else np.uint32
        self._least, self._most = self._key_of(0.0), self._key_of(math.inf)  # the threshold lies between these
        self._low, self._high = (min(max(self._key_of(x), self._least), self._most) for x in guess)
        self.found = kept == 0
        self.score, self.ties = math.inf, 0  # the lowest kept score, and how many of those equal to it are kept
        self._begin()

    def _begin(self) -> None:
        self._held: list[Host] | None = None
        self._shift = max(0, (self._high - self._low).bit_length() - _BINS)
        self._counts = np.zeros((self._high - self._low >> self._shift) + 1, np.int64)
        self._above = 0

    def add(self, method: str, weights: Host, seed: int, start: int) -> None:
        """Counts a part of the data; ``method`` "" for scores, ``start`` is the flat index of its first element."""
        wide = weights.dtype == np.float64
        low, high = self._value(self._low), self._value(self._high)
        flat = weights.reshape(-1)
        for i in range(0, flat.size, _BLOCK):
            part = flat[i : i + _BLOCK]
            scores = np.empty(part.size, np.float64 if wide else np.float32)
            above, inside, _ = _core.collect("prune", method, part, None, seed, start + i, low, high, scores)
            self._above += above
            if inside and self._held is not None:
                self._held.append(scores[:inside].astype(self._float))
            elif inside:
                keys = (scores[:inside].astype(self._float, copy=False) + self._float(0)).view(self._key)  # no -0
                keys -= self._key(self._low)
                keys >>= self._key(self._shift)
                np.add.at(self._counts, keys.astype(np.intp), 1)

    def end(self) -> None:
        """After all data: the threshold is found, or the next look has a narrower window."""
        if self._held is not None:
            scores = np.sort(np.concatenate(self._held))[::-1]
            self.found, self.score = True, float(scores[self._kept - self._above - 1])
            self.ties = self._kept - self._above - int((scores > self.score).sum())
            return
        few = False
        reached = self._above + np.cumsum(self._counts[::-1])
        if self._above >= self._kept:
            self._least = self._high + 1
        elif reached[-1] < self._kept:
            self._most = self._low - 1
        else:
            at = int(np.searchsorted(reached, self._kept))
            bin_ = self._counts.size - 1 - at
            few = bool(self._counts[bin_] <= _HOLD)
            first = self._low + (bin_ << self._shift)
            self._least, self._most = first, min(first + (1 << self._shift) - 1, self._high)
            if self._shift == 0:
                self.found, self.score = True, self._value(first)
                self.ties = self._kept - (self._above if at == 0 else int(reached[at - 1]))
        self._low, self._high = self._least, self._most
        if not self.found:
            self._begin()
            self._held = [] if few else None

    def _key_of(self, score: float) -> int:
        return int(np.array(score, self._float).view(self._key))

    def _value(self, key: int) -> float:
        return float(np.array(key, self._key).view(self._float))
