# SPDX-License-Identifier: Apache-2.0
"""What a pruned network costs, by the rule of RigL's tables (Evci et al. 2019, arXiv 1911.11134).

A convention to compare with published numbers, not what is held in memory (``SparseMatrix.nbytes`` is that). ``sizes``
and ``kept`` count the elements of each weight tensor; the biases are one number for all layers. Batch normalisation
counts as the bias it folds into: one value for each output channel (of ResNet-50: 26,560 channels of the convolutions
and 1,000 biases of the last layer). ERK's sizes of ResNet-50 then are 23.683472, 13.498640 and 8.398572 MB at 80, 90
and 95 % where each layer's share of kept weights is rounded down to whole ones: the published 23.683, 13.499 and 8.399.
By ``prune``'s rule, to the nearest, the first is 23.683516.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

__all__ = ["flops", "stored_bytes"]


def stored_bytes(sizes: Mapping[str, int], kept: Mapping[str, int], *, biases: int = 0) -> int:
    """4 bytes for each kept weight and each bias, and one bit for each weight of a layer that is not fully kept.

    A layer that ``kept`` does not name counts as dense. ValueError where it keeps more than there is, or names none.

    >>> from gossamer import accounting
    >>> accounting.stored_bytes({"a": 1000, "b": 100}, {"a": 50}, biases=10)
    765
    """
    _check("stored_bytes", sizes, kept)
    _check_count("stored_bytes", "biases", biases)
    counts = [(size, kept.get(name, size)) for name, size in sizes.items()]
    return 4 * biases + sum(4 * count + (-(-size // 8) if count < size else 0) for size, count in counts)


def flops(sizes: Mapping[str, int], kept: Mapping[str, int], *, uses: Mapping[str, int] | None = None) -> int:
    """Floating-point operations a sample: 2 for each kept weight (one multiply, one add); biases are not counted.

    ``uses`` says how often each weight of a layer is used, for a convolution once a position of its output; 1 where it
    names no number.

    >>> from gossamer import accounting
    >>> accounting.flops({"conv": 1000, "linear": 100}, {"conv": 50}, uses={"conv": 49})
    5100
    """
    _check("flops", sizes, kept)
    uses = {} if uses is None else uses
    _check_counts("flops", "uses", uses, sizes)
    return 2 * sum(uses.get(name, 1) * kept.get(name, size) for name, size in sizes.items())


def _check(function: str, sizes: Mapping[str, int], kept: Mapping[str, int]) -> None:
    _check_counts(function, "sizes", sizes, sizes)
    _check_counts(function, "kept", kept, sizes)
    for name, count in kept.items():
        if count > sizes[name]:
            raise ValueError(f"{function}: kept must be in [0, {sizes[name]}], got {count} for {name!r}")


def _check_counts(function: str, argument: str, counts: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    if not isinstance(counts, Mapping):
        raise TypeError(f"{function}: {argument} must be a mapping of counts, got {type(counts).__name__}")
    for name, count in counts.items():
        if name not in sizes:
            raise ValueError(f"{function}: {argument} must name tensors of sizes, got {name!r}")
        _check_count(function, argument, count, f" for {name!r}")


def _check_count(function: str, argument: str, count: object, of: str = "") -> None:
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{function}: {argument} must be an integer, got {count!r}{of}")
    if count < 0:
        raise ValueError(f"{function}: {argument} must not be negative, got {count}{of}")
