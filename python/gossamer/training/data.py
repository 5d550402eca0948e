# SPDX-License-Identifier: Apache-2.0
"""From stored arrays to a data set that can be trained on: check, clean, split, fill in, standardise, augment.

The order is what keeps the test data out of training: copies are removed before anything is split, and every
statistic (medians for missing values, means and standard deviations) is taken from the training part alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossamer.training.sources import Arrays, DataError, fashion_mnist_folder, read, read_idx

__all__ = [
    "DataError", "Dataset", "augment", "duplicates", "fashion_mnist_folder", "fill_missing", "load", "prepare",
    "read_idx", "split", "standardise",
]  # fmt: skip

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
VALID_SHARE, TEST_SHARE = 0.1, 0.2  # of the samples, where the source has no part of its own
CLIP = 10.0  # standard deviations; pixels that are almost always 0 would otherwise reach thousands


@dataclass(frozen=True)
class Dataset:
    """Three disjoint parts, ready for training.

    Features are float32 `[n, features]`, standardised: `clip((raw - mean) * factor)`. Labels are int64 `[n]` in
    `range(classes)`. `input_shape` is the shape of one sample before it was flattened. `cleaning` counts what was
    removed or filled in.
    """

    name: str
    x_train: Floats
    y_train: Labels
    x_valid: Floats
    y_valid: Labels
    x_test: Floats
    y_test: Labels
    input_shape: tuple[int, ...]
    classes: int
    mean: Floats
    factor: Floats
    cleaning: Mapping[str, int] = field(default_factory=dict)


def load(source: str | os.PathLike[str] | None = None, *, seed: int = 0) -> Dataset:
    """The data set `source` names ("fashion-mnist", "digits", a folder, None for the best there is), prepared.

    Raises DataError (a ValueError) for content that cannot be used, OSError for what cannot be read.
    """
    raw = read(source)
    return prepare(raw.parts, name=raw.name, seed=seed)


def prepare(parts: Mapping[str, Arrays], *, name: str = "data", seed: int = 0) -> Dataset:
    """A Dataset from `{"train": (x, y), "test": ..., "valid": ...}`; a part that is not there is split off "train".

    Copies are dropped from the training part, from validation those that the test part has too. The test part stays
    as it was published, so that accuracies can be compared.
    """
    checked = {part: _check(part, *parts[part]) for part in ("train", "valid", "test") if part in parts}
    input_shape = np.shape(parts["train"][0])[1:]
    for part in checked:
        shape = np.shape(parts[part][0])[1:]
        if shape != input_shape:
            raise DataError(f"load: x_{part} must have samples of the shape {input_shape} of x_train's, got {shape}")
    classes = _check_classes({part: y for part, (_, y) in checked.items()})

    cleaned = _without_copies(checked)
    cleaning = {f"{part}_copies": len(checked[part][1]) - len(cleaned[part][1]) for part in checked}
    for part, share in (("test", TEST_SHARE), ("valid", VALID_SHARE)):
        if part not in cleaned:
            x, y = cleaned["train"]
            kept, taken = split(x, y, (1 - share, share), seed=seed)
            cleaned["train"], cleaned[part] = (x[kept], y[kept]), (x[taken], y[taken])
    for part, (_, y) in cleaned.items():
        if len(y) == 0:
            raise DataError(f"load: {part} is empty after cleaning and splitting; there are too few samples")
    _check_classes({"train": cleaned["train"][1]}, classes)

    features = [cleaned[part][0] for part in ("train", "valid", "test")]
    cleaning["missing_values"] = fill_missing(features[0], features)
    mean, factor = standardise(features[0], features)
    return Dataset(
        name=name,
        x_train=features[0],
        y_train=cleaned["train"][1],
        x_valid=features[1],
        y_valid=cleaned["valid"][1],
        x_test=features[2],
        y_test=cleaned["test"][1],
        input_shape=input_shape,
        classes=classes,
        mean=mean,
        factor=factor,
        cleaning=cleaning,
    )


def split(x: ArrayLike, y: ArrayLike, shares: Sequence[float], *, seed: int = 0) -> list[NDArray[np.int64]]:
    """Ascending, disjoint indices of `len(shares)` parts that cover all samples; seeded and stratified by label.

    Equal samples go to the same part, whatever their labels. A class too small to reach every part fills the first
    parts first. `shares` must be positive and sum to 1.
    """
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y):
        raise ValueError(f"split: x and y must have the same length, got {len(x)} and {len(y)}")
    if not all(share > 0 for share in shares) or abs(sum(shares) - 1) > 1e-9:
        raise ValueError(f"split: shares must be positive and sum to 1, got {tuple(shares)}")
    original = duplicates(x)
    first = np.flatnonzero(original == np.arange(len(x)))  # one sample of each set of copies decides for all
    part_of = np.zeros(len(x), np.int64)
    generator = np.random.default_rng(seed)
    for label in np.unique(y[first]):
        members = generator.permutation(first[y[first] == label])
        ends = np.rint(np.cumsum(shares) * len(members)).astype(np.int64)
        ends = np.maximum(ends, np.minimum(np.arange(1, len(shares) + 1), len(members)))
        for part, group in enumerate(np.split(members, ends[:-1])):
            part_of[group] = part
    part_of = part_of[original]
    return [np.flatnonzero(part_of == part) for part in range(len(shares))]


def duplicates(*parts: ArrayLike) -> NDArray[np.int64]:
    """For each row of all parts, counted on, the index of the first row equal to it (its own when it is the first).

    Parts have one dtype; NaN equals NaN and -0 equals 0.
    """
    seen: dict[bytes, int] = {}
    originals: list[int] = []
    for part in map(np.asarray, parts):
        for start in range(0, len(part), 512):  # blocks that stay in cache
            rows = part[start : start + 512].reshape(len(part[start : start + 512]), -1)
            if rows.dtype.kind == "f":
                rows = rows + rows.dtype.type(0)  # -0 becomes 0
                rows[np.isnan(rows)] = np.nan
            for row in np.ascontiguousarray(rows):  # 16 bytes a row are kept instead of a copy of all
                digest = hashlib.blake2b(row, digest_size=16).digest()
                originals.append(seen.setdefault(digest, len(originals)))
    return np.array(originals, np.int64)


def fill_missing(train: Floats, parts: Sequence[Floats]) -> int:
    """Replace every NaN in `parts`, in place, by its feature's median in `train`, 0 where it has none; how many."""
    missing = [np.isnan(part) for part in parts]
    count = sum(int(mask.sum()) for mask in missing)
    if count:
        columns = np.flatnonzero(np.logical_or.reduce([mask.any(axis=0) for mask in missing]))
        medians = np.zeros(train.shape[1], np.float32)
        for column in columns:
            known = train[:, column][~np.isnan(train[:, column])]
            medians[column] = np.median(known) if len(known) else 0.0
        for part, mask in zip(parts, missing, strict=True):
            part[mask] = np.broadcast_to(medians, part.shape)[mask]
    return count


def standardise(train: Floats, parts: Sequence[Floats]) -> tuple[Floats, Floats]:
    """Bring `parts`, in place, to mean 0 and deviation 1 of each feature in `train`; float32 mean and factor.

    A feature that is constant in `train` becomes 0 everywhere (its factor is 0): its weights never learn, so what
    it holds elsewhere would only add noise. Results are clipped to 10 deviations.
    """
    mean = train.mean(axis=0, dtype=np.float64)
    squares = sum(np.square(rows - mean).sum(axis=0) for rows in np.array_split(train, max(1, len(train) // 4096)))
    deviation = np.sqrt(squares / len(train))
    constant = deviation <= 1e-6 * np.abs(mean)  # what float32 can tell apart
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, deviation)).astype(np.float32)
    center = mean.astype(np.float32)
    for part in parts:
        part -= center
        part *= factor
        np.clip(part, -CLIP, CLIP, out=part)
    return center, factor


def augment(
    data: Dataset, generator: np.random.Generator, *, shift: int = 1, flip: bool = False, noise: float = 0.05
) -> Floats:
    """A varied copy of the training features: images are shifted (and flipped), other samples get Gaussian noise.

    An image is a sample of shape `(height, width)`; each is moved by up to `shift` pixels along both axes, the edge
    repeated, and mirrored with probability one half if `flip`. `noise` is in standard deviations.
    """
    x = data.x_train
    if len(data.input_shape) != 2:
        return x + noise * generator.standard_normal(x.shape, np.float32)
    height, width = data.input_shape
    # Each pixel has a mean and a factor of its own, so shifts are done on raw pixels.
    known = data.factor > 0
    raw = (x / np.where(known, data.factor, 1) + data.mean).reshape(-1, height, width)
    rows, columns = np.arange(height), np.arange(width)
    moves = generator.integers(-shift, shift + 1, (len(x), 2))
    mirrored = generator.random(len(x)) < 0.5 if flip else np.zeros(len(x), bool)
    for down, right, mirror in np.unique(np.column_stack([moves, mirrored]), axis=0):
        chosen = np.flatnonzero((moves == (down, right)).all(axis=1) & (mirrored == mirror))
        from_columns = np.clip(columns - right, 0, width - 1)
        from_columns = from_columns[::-1] if mirror else from_columns
        raw[chosen] = raw[chosen][:, np.clip(rows - down, 0, height - 1)][:, :, from_columns]
    return np.clip((raw.reshape(x.shape) - data.mean) * data.factor, -CLIP, CLIP)


def _check(part: str, x: NDArray[Any], y: NDArray[Any]) -> tuple[Floats, Labels]:
    """Flattened float32 features, with NaN for every value that is missing or not finite, and int64 labels."""
    if x.dtype.kind not in "buif":
        raise DataError(f"load: x_{part} must hold real numbers, got {x.dtype}")
    if y.dtype.kind not in "ui":
        raise DataError(f"load: y_{part} must hold integers, got {y.dtype}")
    if y.ndim != 1 or x.ndim < 1 or len(x) != len(y):
        raise DataError(f"load: y_{part} must be one label a sample of x_{part}, got shapes {y.shape} and {x.shape}")
    if x.size == 0:
        raise DataError(f"load: x_{part} must not be empty, got shape {x.shape}")
    if int(y.min()) < 0:
        raise DataError(f"load: y_{part} must not be negative, got {int(y.min())}")
    if int(y.max()) > np.iinfo(np.int64).max:
        raise DataError(f"load: y_{part} must fit int64, got {int(y.max())}")
    with np.errstate(over="ignore"):  # beyond float32's range counts as not finite
        features = x.reshape(len(x), -1).astype(np.float32)
    if x.dtype.kind == "f":
        features[~np.isfinite(features)] = np.nan
    return features, y.astype(np.int64)


def _check_classes(labels: Mapping[str, Labels], classes: int | None = None) -> int:
    """The number of classes. Every one of them needs a training sample, and no other part may know more."""
    found = np.unique(labels["train"])  # not bincount: a label of 10**15 must not allocate anything
    count = int(found[-1]) + 1 if classes is None else classes
    if count < 2:
        raise DataError(f"load: y_train must hold at least two classes, got {count}")
    if len(found) < count:
        absent = int(np.flatnonzero(np.append(found, -1)[: len(found) + 1] != np.arange(len(found) + 1))[0])
        raise DataError(f"load: class {absent} of {count} has no training sample")
    for part, y in labels.items():
        if int(y.max()) >= count:
            raise DataError(f"load: y_{part} must be below the {count} classes of y_train, got {int(y.max())}")
    return count


def _without_copies(parts: Mapping[str, tuple[Floats, Labels]]) -> dict[str, tuple[Floats, Labels]]:
    """Drop copies inside the training part, and from training and validation what a later part has too."""
    order = [part for part in ("test", "valid", "train") if part in parts]
    original = duplicates(*(parts[part][0] for part in order))
    kept: dict[str, tuple[Floats, Labels]] = {}
    start = 0
    for part in order:
        x, y = parts[part]
        firsts = original[start : start + len(y)]
        # The first of equal rows stays; validation and test may repeat their own rows, which leaks nothing.
        keep = firsts == np.arange(start, start + len(y)) if part == "train" else firsts >= start
        kept[part] = (x[keep], y[keep])
        start += len(y)
    return {part: kept[part] for part in parts}
