# SPDX-License-Identifier: Apache-2.0
"""What a pattern makes of a shape: its rows, columns or blocks, and the windows of N:M."""

from __future__ import annotations

import re

from gossamer._arrays import matrix_shape


def window_sides(pattern: str) -> tuple[int, int] | None:
    """N and M of the pattern N:M; None for others."""
    found = re.fullmatch(r"(\d+):(\d+)", pattern)
    return (int(found[1]), int(found[2])) if found else None


def block_sides(pattern: str) -> tuple[int, int]:
    """Rows and columns of the blocks of a pattern; (1, 1) for others."""
    block = re.fullmatch(r"block:(\d+)x(\d+)", pattern)
    return (int(block[1]), int(block[2])) if block else (1, 1)


def unit_grid(shape: tuple[int, ...], pattern: str) -> tuple[int, int, int, int]:
    """(rows of units, columns of units, rows of a unit, columns of a unit), which divide the shape."""
    rows, cols = matrix_shape(shape)
    if pattern == "row":
        return rows, 1, 1, cols
    if pattern == "col":
        return 1, cols, rows, 1
    height, width = block_sides(pattern)
    return rows // height, cols // width, height, width
