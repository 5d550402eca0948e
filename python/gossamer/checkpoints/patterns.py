# SPDX-License-Identifier: Apache-2.0
"""Which pattern the zeros of a tensor follow, found in one pass over its rows."""

from __future__ import annotations

import numpy as np

from gossamer._arrays import Host

WINDOWS = (2, 4, 8, 16, 32)  # M of N:M
SIDES = (16, 8, 4, 2, 1)  # of blocks
ROWS = 32  # a strip has a multiple of so many rows, so that no block is cut
_FILLED = 0.98  # a pattern is one where its units are as full as this: a kept weight may be 0 by chance


class PatternFinder:
    """Takes the non-zeros of a matrix strip by strip; ``found`` names the narrowest pattern that explains them.

    In this order: ``"none"`` (no or only zeros, or zeros without a pattern), ``"row"``, ``"col"``, ``"N:M"`` (no window
    of M has more than N, and nearly all have N), ``"block:RxC"`` (the largest).

    >>> import numpy as np
    >>> finder = PatternFinder(32, 8)
    >>> finder.add(np.tile([[True, True, False, False], [False, False, True, True]], (16, 2)))
    >>> finder.nnz, finder.found()
    (128, '2:4')
    """

    def __init__(self, rows: int, cols: int) -> None:
        self._rows, self._cols = rows, cols
        self.nnz = 0
        self._full_so_far = True
        self._seen = 0  # rows
        self._used_rows = 0
        self._used_cols = np.zeros(cols, np.bool_)
        self._most = {m: 0 for m in WINDOWS if cols and cols % m == 0}
        self._blocks = {
            (r, c): 0 for r in SIDES for c in SIDES if r * c > 1 and rows % r == 0 and cols % c == 0 and rows and cols
        }

    def add(self, nonzero: Host) -> None:
        """bool ``[rows, cols]``: the next rows; but for the last ones a multiple of ROWS."""
        count = int(np.count_nonzero(nonzero))
        before, self._seen = self._seen, self._seen + len(nonzero)
        self.nnz += count
        if self._full_so_far and count == nonzero.size:  # dense tensors cost nothing more
            return
        if self._full_so_far:
            self._full_so_far = False
            self._used_rows = before
            self._used_cols[:] = before > 0
            self._most = {m: m if before else 0 for m in self._most}
            self._blocks = {(r, c): before // r * (self._cols // c) for r, c in self._blocks}
        self._used_rows += int(np.count_nonzero(nonzero.any(axis=1)))
        self._used_cols |= nonzero.any(axis=0)
        self._most = {m: n for m, n in self._most.items() if self._fits(n / m)}
        for m in self._most:
            windows = nonzero.reshape(len(nonzero), -1, m).sum(axis=2, dtype=np.uint8)
            self._most[m] = max(self._most[m], int(windows.max(initial=0)))
        self._blocks = {(r, c): n for (r, c), n in self._blocks.items() if n * r * c <= 2 * self.nnz or not before}
        for c in SIDES:
            heights = [r for r in SIDES if (r, c) in self._blocks]
            if heights:
                wide = nonzero if c == 1 else nonzero.reshape(len(nonzero), -1, c).any(axis=2)
                for r in heights:
                    units = wide.reshape(-1, r, wide.shape[1]).any(axis=1) if r > 1 else wide
                    self._blocks[r, c] += int(np.count_nonzero(units))

    def _fits(self, share: float) -> bool:
        """Whether a share of kept places can still be a pattern's."""
        return share * self._seen * self._cols * _FILLED <= 2 * self.nnz or share == 0

    def found(self) -> str:
        size = self._rows * self._cols
        if self._full_so_far or self.nnz in (0, size):
            return "none"
        least = self.nnz / _FILLED
        if self._used_rows < self._rows and self._used_rows * self._cols <= least:
            return "row"
        used = int(np.count_nonzero(self._used_cols))
        if used < self._cols and used * self._rows <= least:
            return "col"
        for m, n in self._most.items():
            if n < m and size // m * n <= least:
                return f"{n}:{m}"
        for r, c in sorted(self._blocks, key=lambda side: (-side[0] * side[1], -side[0])):
            if self._blocks[r, c] * r * c <= least and self._blocks[r, c] * r * c < size:
                return f"block:{r}x{c}"
        return "none"
