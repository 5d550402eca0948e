# SPDX-License-Identifier: Apache-2.0
"""More elements than 32 bits can count. Runs only with ``GOSSAMER_TEST_LARGE=1`` and 8 GiB of memory to spare.

The data are 2.2 billion bfloat16 numbers, 4.4 GB, made chunk by chunk from one tile of random bits; nothing of their
size is held twice, so the answer is checked by what any chunk can be made from again: the threshold from a histogram
of all magnitudes (they have 15 bits), the count, and the ties by their running number.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gossamer as gs
from cases import BFLOAT16, generator

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
