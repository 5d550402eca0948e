# SPDX-License-Identifier: Apache-2.0
"""More elements than 32 bits can count. Runs only with ``GOSSAMER_TEST_LARGE=1`` and 8 GiB of memory to spare.

Of pruning the data are 2.2 billion bfloat16 numbers, 4.4 GB, made chunk by chunk from one tile of random bits;
nothing of their size is held twice, so the answer is checked by what any chunk can be made from again: the threshold
from a histogram of all magnitudes (they have 15 bits), the count, and the ties by their running number.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, assert_close, generator
from gossamer import reference

SIZE = 2_200_000_000
COLUMNS = 2_200  # as a matrix: 1,000,000 rows
CHUNK = 40_000_000
MEMORY = 8 << 30


def _available() -> int:
    """Bytes of memory that may be taken; 0 where the system does not say."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


pytestmark = [
    pytest.mark.skipif(os.environ.get("GOSSAMER_TEST_LARGE") != "1", reason="GOSSAMER_TEST_LARGE is not 1"),
    pytest.mark.skipif(_available() < MEMORY, reason="less than 8 GiB of memory to spare"),
]


@pytest.fixture(scope="module")
def tile() -> np.ndarray:
    """Random bits for the sign, the exponent, which is never that of NaN and infinity, and the mantissa."""
    return generator("large").integers(0, 1 << 16, CHUNK, dtype=np.uint16) & np.uint16(0xFF7F)


def _chunks(tile: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Where each chunk lies, and its bits: the tile, other bits of the mantissa and the exponent turned in each."""
    for i, start in enumerate(range(0, SIZE, CHUNK)):
        yield slice(start, start + CHUNK), tile ^ np.uint16((i * 0x2545) & 0x3F7F)


def _filled(tile: np.ndarray) -> np.ndarray:
    w = np.empty(SIZE, np.uint16)
    for where, bits in _chunks(tile):
        w[where] = bits
    return w


def _check(tile: np.ndarray, w: np.ndarray, mask: gs.Mask, kept: int) -> None:
    """``w``: the pruned weights. Exactly the ``kept`` largest are kept, of the ties at the threshold the first ones."""
    counts = np.zeros(1 << 15, np.int64)
    for _, bits in _chunks(tile):
        counts += np.bincount(bits & 0x7FFF, minlength=1 << 15)
    above = np.concatenate([np.cumsum(counts[::-1])[::-1], [0]])  # above[k]: with a magnitude of at least k
    threshold = int(np.flatnonzero(above >= kept)[-1])
    ties = kept - int(above[threshold + 1])
    assert 0 < ties < counts[threshold]  # or nothing is said about ties
    assert mask.nnz == kept
    seen = total = 0
    packed = mask.packed.ravel()
    for where, bits in _chunks(tile):
        magnitudes = bits & 0x7FFF
        expected = magnitudes > threshold
        equal = np.flatnonzero(magnitudes == threshold)
        expected[equal[: max(0, ties - seen)]] = True
        seen += len(equal)
        total += int(expected.sum())
        got = np.unpackbits(packed[where.start // 8 : where.stop // 8], bitorder="little").view(bool)
        assert (got == expected).all(), f"mask in {where}"
        assert (w[where] == np.where(expected, bits, 0)).all(), f"weights in {where}"
    assert total == kept


@pytest.mark.parametrize("shape", [(SIZE,), (SIZE // COLUMNS, COLUMNS)], ids=["vector", "matrix"])
def test_more_elements_than_32_bits_can_count(tile: np.ndarray, shape: tuple[int, ...]) -> None:
    assert SIZE % CHUNK == 0  # so that all chunks are whole
    assert COLUMNS % 8 == 0  # so that the rows of a mask are a stream of bits
    w = _filled(tile)
    kept = SIZE - int(np.floor(SIZE * 0.9 + 0.5)) if len(shape) == 1 else SIZE - 77_777_777
    weights = w.view(BFLOAT16).reshape(shape)
    count = {"sparsity": 0.9} if len(shape) == 1 else {"nnz": kept}
    pruned, mask = gs.prune(weights, **count, out=weights)
    assert pruned is weights
    assert mask.shape == shape
    _check(tile, w, mask, kept)
    again = gs.topk_mask(weights, threshold=0.0)  # signed scores: all but the negative ones
    negative = sum(int(np.count_nonzero(w[where] > 0x8000)) for where, _ in _chunks(tile))
    assert again.nnz == SIZE - negative


WIDTH = 33_000  # of a matrix with more than 2 ** 31 kept elements, once it has
HEIGHT = 67_000  # rows


def test_a_matrix_with_more_values_than_32_bits_can_count(tmp_path: Path) -> None:
    """int8 in bitmask format, 1.13 bytes a value. Rows are windows of one line of numbers: all are different."""
    r = generator("large matrix")
    line = np.where(r.random(HEIGHT + WIDTH - 1) < 0.02, 0, r.standard_normal(HEIGHT + WIDTH - 1)).astype(BFLOAT16)
    w = np.lib.stride_tricks.sliding_window_view(line, WIDTH)
    kept = np.concatenate([[0], np.cumsum(line != 0)])
    starts = np.concatenate([[0], np.cumsum(kept[WIDTH:] - kept[:HEIGHT])])  # of the rows' values
    assert starts[-1] > 1 << 31
    middle = int(np.searchsorted(starts, 1 << 31))
    rows = sorted({0, 1, 2, *range(3, HEIGHT, 997), middle - 2, middle - 1, middle, HEIGHT - 2, HEIGHT - 1})
    numbers, scales = reference.int8_rows(w[rows].astype(np.float32))
    weights = numbers * scales.astype(np.float64)[:, None]

    def check(a: gs.SparseMatrix, sign: int) -> None:
        assert (a.dtype, a.shape, a.nnz, a.format) == (np.int8, w.shape, starts[-1], "bitmask")
        assert a.values.shape == (starts[-1],)
        for i, row in enumerate(rows):
            assert (a.values[starts[row] : starts[row + 1]] == sign * numbers[i][w[row] != 0]).all(), row
        for n in (1, 3):
            x = generator("large x").standard_normal((WIDTH, n)).astype(np.float32)
            y = gs.matmul(a, x)
            assert_close(y[rows], sign * weights @ x, abs(weights) @ abs(x), np.float32)

    a = gs.SparseMatrix.from_dense(w, format="bitmask", dtype="int8")
    check(a, 1)
    assert a.nbytes < 1.14 * a.nnz + 16 * HEIGHT
    gs.save(tmp_path / "large", {"a": a})
    check(a.with_values(-a.values), -1)
    del a
    check(gs.load(tmp_path / "large")["a"], 1)
    (tmp_path / "large").unlink()
