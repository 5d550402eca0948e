# SPDX-License-Identifier: Apache-2.0
"""Data sets: every reader against hostile input, and a preparation that never leaks."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gossamer.training import data, sources
from gossamer.training.data import DataError, Dataset

Parts = dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def idx(array: np.ndarray[Any, Any], code: int = 0x08) -> bytes:
    """`array` as the bytes of an IDX file."""
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def samples(count: int, seed: int = 0, classes: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Different random 4 x 4 images and labels, every class in turn."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 4, 4)).astype(np.uint8), (np.arange(count) % classes).astype(np.uint8)


def write_idx(folder: Path, compressed: bool) -> None:
    for (images, labels), names, count in zip(
        [samples(90), samples(30, seed=1)], sources.IDX_FILES.values(), (90, 30), strict=True
    ):
        assert len(images) == count
        for name, array in zip(names, (images, labels), strict=True):
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))


def rows(x: np.ndarray[Any, Any]) -> set[bytes]:
    return {row.tobytes() for row in np.ascontiguousarray(x)}


# Reading


@pytest.mark.parametrize("compressed", [False, True])
def test_idx_folder(tmp_path: Path, compressed: bool) -> None:
    write_idx(tmp_path, compressed)
    found = data.load(tmp_path)
    assert (found.name, found.input_shape, found.classes) == (tmp_path.name, (4, 4), 3)
    assert (len(found.x_train), len(found.x_valid), len(found.x_test)) == (81, 9, 30)
    assert found.x_train.dtype == np.float32
    assert found.y_train.dtype == np.int64
    assert found.y_test.tolist() == (np.arange(30) % 3).tolist()
    raw = samples(30, seed=1)[0].reshape(30, 16)
    assert np.allclose(found.x_test, np.clip((raw - found.mean) * found.factor, -data.CLIP, data.CLIP), atol=1e-5)


@pytest.mark.parametrize(("code", "dtype"), sources.IDX_TYPES.items())
def test_idx_types(tmp_path: Path, code: int, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a").write_bytes(idx(array, code))
    assert np.array_equal(data.read_idx(tmp_path / "a"), array)


GOOD = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\0\0", "got 00 00"),
        (b"PK\3\4" + GOOD, "got 50 4b 03 04"),
        (b"\0\1" + GOOD[2:], "got 00 01 08 02"),
        (b"\0\0\x07" + GOOD[3:], "got 00 00 07 02"),
        (b"\0\0\x08\0", "got 00 00 08 00"),
        (GOOD[:9], "truncated inside its header"),
        (GOOD[:-1], "asks for (3, 4) = 12 bytes"),
        (GOOD + b"x", "asks for (3, 4) = 12 bytes, got more"),
        (b"\0\0\x08\x02" + b"\xff" * 8, "asks for (4294967295, 4294967295) = 18446744065119617025 bytes"),
        (b"\0\0\x0e\xff" + b"\xff" * 1020, "holds less"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_hostile_idx(tmp_path: Path, content: bytes, message: str, compressed: bool) -> None:
    path = tmp_path / ("a.gz" if compressed else "a")
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(DataError, match=r"^load: ") as caught:
        data.read_idx(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [5, 12, 20, 30])
def test_truncated_gzip(tmp_path: Path, cut: int) -> None:
    (tmp_path / "a.gz").write_bytes(gzip.compress(GOOD)[:cut])
    with pytest.raises(DataError, match="truncated or broken gzip"):
        data.read_idx(tmp_path / "a.gz")


def test_broken_gzip(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(GOOD))
    content[-6] ^= 1  # the checksum
    (tmp_path / "a.gz").write_bytes(content)
    (tmp_path / "b.gz").write_bytes(GOOD)
    for name in ("a.gz", "b.gz"):
        with pytest.raises(DataError, match="truncated or broken gzip"):
            data.read_idx(tmp_path / name)


def test_unreadable_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        data.load(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        data.load(tmp_path / "file")
    with pytest.raises(DataError, match=r"expected data.npz or train-images-idx3-ubyte"):
        data.load(tmp_path)
    write_idx(tmp_path, compressed=False)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels"):
        data.load(tmp_path)


def npz(folder: Path, **arrays: Any) -> Path:
    np.savez(folder / "data.npz", **arrays)
    return folder


def complete(**changes: Any) -> dict[str, Any]:
    (x, y), (x_test, y_test) = samples(60), samples(20, seed=1)
    return {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test} | changes


def test_npz(tmp_path: Path) -> None:
    found = data.load(npz(tmp_path, **complete()))
    assert (len(found.x_train), len(found.x_valid), len(found.x_test)) == (54, 6, 20)
    x, y = samples(12, seed=2)
    found = data.load(npz(tmp_path, **complete(x_valid=x, y_valid=y)))
    assert (len(found.x_train), len(found.x_valid), len(found.x_test)) == (60, 12, 20)
    flat = data.load(npz(tmp_path, **complete(x_train=samples(60)[0][:, 0, 0], x_test=samples(20)[0][:, 0, 0])))
    assert flat.input_shape == ()
    assert flat.x_train.shape[1] == 1


X, Y = samples(60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.array([None] * 60)}, "not a usable npz archive (Object arrays cannot be loaded"),
        ({"y_train": Y[:-1]}, "y_train must be one label a sample of x_train, got shapes (59,) and (60, 4, 4)"),
        ({"y_train": Y[:, None]}, "y_train must be one label a sample"),
        ({"y_train": np.uint8(1)}, "y_train must be one label a sample"),
        ({"x_train": np.float32(1)}, "y_train must be one label a sample"),
        ({"y_train": Y.astype(np.float64)}, "y_train must hold integers, got float64"),
        ({"y_train": Y.astype(str)}, "y_train must hold integers, got <U"),
        ({"y_test": samples(20)[1].astype(np.int8) - 1}, "y_test must not be negative, got -1"),
        ({"y_test": samples(20)[1] + 1}, "y_test must be below the 3 classes of y_train, got 3"),
        ({"y_train": np.where(Y == 1, 0, Y)}, "class 1 of 3 has no training sample"),
        ({"y_train": Y.astype(np.uint64) + 2**62}, "class 0 of 4611686018427387907 has no training sample"),
        ({"y_train": Y.astype(np.uint64) + 2**63}, "y_train must fit int64"),
        ({"y_train": 0 * Y}, "y_train must hold at least two classes, got 1"),
        ({"x_train": X.astype(complex)}, "x_train must hold real numbers, got complex128"),
        ({"x_train": X.astype(str)}, "x_train must hold real numbers, got <U"),
        ({"x_test": samples(20)[0][:, :3]}, "x_test must have samples of the shape (4, 4) of x_train's, got (3, 4)"),
        ({"x_test": X[:0], "y_test": Y[:0]}, "x_test must not be empty, got shape (0, 4, 4)"),
        ({"x_train": X[:, :0], "x_test": X[:20, :0]}, "x_train must not be empty, got shape (60, 0, 4)"),
        ({"x_valid": X}, "expected x_valid and y_valid, got x_train, y_train, x_test, y_test, x_valid"),
    ],
)
def test_hostile_npz(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    npz(tmp_path, **complete(**changes))
    with pytest.raises(DataError, match=r"^load: ") as caught:
        data.load(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_npz_with_absent_arrays(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected x_test and y_test, got x_train, y_train"):
        data.load(npz(tmp_path, x_train=X, y_train=Y))


def test_broken_npz(tmp_path: Path) -> None:
    path = npz(tmp_path, **complete()) / "data.npz"
    whole = path.read_bytes()
    member = io.BytesIO()
    np.save(member, X)
    header = member.getvalue()
    lying = header.replace(b"(60, 4, 4)", b"(9**9,4,4)")
    huge = header.replace(b"(60, 4, 4), }        ", b"(60000000000, 4, 4), }")
    assert lying != header
    assert huge != header
    contents = [b"", b"garbage", whole[:100], whole[: len(whole) // 2], header, b"\x80\x04K\x01."]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"^load: .*data\.npz"):
            data.load(tmp_path)
    for content in (lying, huge, b"", b"no array"):
        with zipfile.ZipFile(path, "w") as archive:
            for key in complete():
                archive.writestr(f"{key}.npy", content)
        with pytest.raises(DataError, match=r"not a usable npz archive|must be arrays"):
            data.load(tmp_path)


def test_bit_flips_never_crash(tmp_path: Path) -> None:
    path = npz(tmp_path, **complete()) / "data.npz"
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        broken[generator.integers(len(whole))] ^= 1 << int(generator.integers(8))
        path.write_bytes(broken)
        try:
            data.load(tmp_path)
        except DataError as error:
            assert str(error).startswith("load: ")  # noqa: PT017  (a flip may also leave a valid file)


def test_installed_data_and_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "fashion_mnist_folder", lambda: None)
    assert sources.read().name == "digits"
    with pytest.raises(DataError, match="fashion-mnist is not installed"):
        sources.read("fashion-mnist")
    write_idx(tmp_path, compressed=True)
    monkeypatch.setattr(sources, "fashion_mnist_folder", lambda: tmp_path)
    assert sources.read().name == "fashion-mnist"


def test_fashion_mnist_folder_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "share" / "datasets" / "fashion-mnist"
    folder.mkdir(parents=True)
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    assert data.fashion_mnist_folder() == folder


def test_digits() -> None:
    found = data.load("digits", seed=3)
    assert found.input_shape == (8, 8)
    assert found.classes == 10
    assert len(found.x_train) + len(found.x_valid) + len(found.x_test) == 1797
    assert np.abs(np.bincount(found.y_test) / len(found.y_test) - 0.1).max() < 0.01


# Cleaning, splitting, standardising


def test_copies_never_leak() -> None:
    x, y = samples(40)
    x = x.astype(np.float32)
    x[0, 0, 0], x[1] = -0.0, x[0]
    x[1, 0, 0] = 0.0
    x[3, 0, 0], x[4] = np.nan, x[3]
    x[4, 0, 0] = np.inf  # not finite is missing, so this is a copy too
    found = data.prepare(
        {"train": (x, y), "valid": (np.concatenate([x[5:9], 1 + x[20:24]]), y[:8]), "test": (x[7:13], y[7:13])}
    )
    # Rows 1 and 4 are copies; 5 and 6 are in validation, 7 to 12 in the test part, 7 and 8 thereby not in validation.
    assert len(found.x_train) == 40 - 2 - 2 - 6
    assert len(found.x_valid) == 8 - 2
    assert len(found.x_test) == 6
    assert found.cleaning == {"train_copies": 10, "valid_copies": 2, "test_copies": 0, "missing_values": 1}
    assert not rows(found.x_train) & rows(found.x_test)
    assert not rows(found.x_train) & rows(found.x_valid)
    assert not rows(found.x_valid) & rows(found.x_test)


def test_test_part_stays_as_published() -> None:
    x, y = samples(30)
    found = data.prepare({"train": (x, y), "test": (np.concatenate([x[:3], x[:3]]), np.array([0, 1, 2, 0, 1, 2]))})
    assert len(found.x_test) == 6


def test_data_that_is_all_leak() -> None:
    with pytest.raises(DataError, match=r"no training sample|too few"):
        data.prepare({"train": (X, Y), "test": (X, Y)})


def test_missing_values_take_training_medians() -> None:
    x = np.arange(80.0).reshape(20, 4)
    x[3, 1] = np.nan
    x[:, 2] = np.nan  # nothing known: 0 everywhere, constant
    test = np.full((4, 4), 1e300)  # beyond float32: missing
    test[:, 3] = np.arange(4)
    valid = x[:4] + 1000
    y = np.arange(20) % 2
    found = data.prepare({"train": (x, y), "valid": (valid, y[:4]), "test": (test, y[:4])})
    assert found.cleaning["missing_values"] == 1 + 20 + 4 + 1 + 12
    medians = np.array([38.0, np.median(np.delete(x[:, 1], 3)), 0.0])
    raw = found.x_test[0, :3] / np.where(found.factor[:3] > 0, found.factor[:3], 1) + found.mean[:3]
    assert np.allclose(raw, medians, atol=1e-4)
    assert (found.x_train[:, 2] == 0).all()
    for part in (found.x_train, found.x_valid, found.x_test):
        assert np.isfinite(part).all()


def test_standardised_on_the_training_part_alone() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(5.0, [1e-3, 1.0, 1e4, 0.0], (500, 4))
    test = generator.normal(-100.0, 50.0, (50, 4))
    found = data.prepare({"train": (x, np.arange(500) % 2), "test": (test, np.arange(50) % 2)})
    assert np.abs(found.x_train.mean(axis=0)).max() < 1e-3
    assert np.allclose(found.x_train[:, :3].std(axis=0), 1, atol=1e-2)
    assert (found.x_train[:, 3] == 0).all()
    assert (found.x_test[:, 3] == 0).all()  # constant in training: 0 everywhere
    assert np.abs(found.x_test).max() <= data.CLIP
    # Other test data, the same training data.
    again = data.prepare({"train": (x, np.arange(500) % 2), "test": (-test, np.arange(50) % 2)})
    assert again.x_train.tobytes() == found.x_train.tobytes()


@given(
    x=hnp.arrays(np.int8, st.tuples(st.integers(1, 60), st.just(1)), elements=st.integers(0, 9)),
    seed=st.integers(0, 5),
    shares=st.sampled_from([(0.9, 0.1), (0.5, 0.3, 0.2), (1.0,)]),
)
def test_split_properties(x: np.ndarray[Any, Any], seed: int, shares: tuple[float, ...]) -> None:
    y = np.arange(len(x)) % 3
    parts = data.split(x, y, shares, seed=seed)
    assert len(parts) == len(shares)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(x)))
    sets = [rows(x[part]) for part in parts]
    assert sum(map(len, sets)) == len(set().union(*sets))  # copies stay on one side
    assert all(np.array_equal(a, b) for a, b in zip(parts, data.split(x, y, shares, seed=seed), strict=True))


def test_split_is_stratified_and_seeded() -> None:
    x, y = np.arange(1000), np.repeat([0, 1, 2], [900, 90, 10])
    first, second = data.split(x, y, (0.8, 0.2), seed=1), data.split(x, y, (0.8, 0.2), seed=2)
    assert [np.bincount(y[part]).tolist() for part in first] == [[720, 72, 8], [180, 18, 2]]
    assert not np.array_equal(first[0], second[0])


def test_split_keeps_a_training_sample_of_small_classes() -> None:
    parts = data.split(np.arange(5), np.array([0, 0, 1, 1, 2]), (0.1, 0.9))
    assert [len(part) for part in parts] == [3, 2]
    with pytest.raises(ValueError, match="shares must be positive"):
        data.split(np.arange(5), np.zeros(5), (0.5, 0.6))
    with pytest.raises(ValueError, match="same length"):
        data.split(np.arange(5), np.zeros(4), (0.5, 0.5))


# Augmenting


def image_data() -> Dataset:
    return data.prepare({"train": samples(60), "test": samples(20, seed=1)})


def test_augmented_images_are_shifts_and_flips() -> None:
    found = image_data()
    before = found.x_train.copy()
    varied = data.augment(found, np.random.default_rng(0), shift=1, flip=True)
    assert np.array_equal(found.x_train, before)
    assert varied.dtype == np.float32
    raw = np.rint(found.x_train / found.factor + found.mean).reshape(-1, 4, 4)
    moved = np.rint(varied / found.factor + found.mean).reshape(-1, 4, 4)
    for image, result in zip(raw, moved, strict=True):
        padded = np.pad(image, 1, mode="edge")
        shifts = [padded[i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
        assert any(np.array_equal(result, candidate[:, ::step]) for candidate in shifts for step in (1, -1))
    assert not np.array_equal(varied, before)
    assert np.array_equal(varied, data.augment(found, np.random.default_rng(0), shift=1, flip=True))


def test_augmented_vectors_get_noise() -> None:
    (x, y), (x_test, y_test) = samples(60), samples(20, seed=1)
    found = data.prepare({"train": (x.reshape(60, 16), y), "test": (x_test.reshape(20, 16), y_test)})
    varied = data.augment(found, np.random.default_rng(0), noise=0.1)
    assert varied.dtype == np.float32
    assert 0.08 < float((varied - found.x_train).std()) < 0.12
