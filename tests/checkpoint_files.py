# SPDX-License-Identifier: Apache-2.0
"""Checkpoints for the tests: written byte by byte, so that they may be as wrong as a test wants."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from cases import BFLOAT16, values

INDEX = "model.safetensors.index.json"
DTYPES = (np.float32, np.float16, BFLOAT16, np.float64)


def write_raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    """A file with that header (JSON of it, unless it is bytes) and that data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), name: str = "w") -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def tensors() -> dict[str, np.ndarray]:
    """All floats with two, three and four axes, ties and zeros, and what is never pruned."""
    return {
        "a.weight": values("normal", (64, 96), np.float32),
        "b.weight": values("heavy_ties", (32, 4, 8), np.float16),
        "c.weight": values("heavy_ties", (40, 64), BFLOAT16),
        "conv.weight": values("normal", (8, 4, 4, 2), np.float32),
        "d.weight": values("normal", (16, 32), np.float64),
        "other": values("heavy_ties", (24, 32), np.float32),
        "bias": values("normal", (7,), np.float32),
        "ids": np.arange(12).reshape(3, 4),
    }


def write_sharded(
    folder: Path, parts: list[Mapping[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> Path:
    """Shards and index; -> the index."""
    folder.mkdir(parents=True, exist_ok=True)
    places = {}
    for number, part in enumerate(parts, start=1):
        shard = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(dict(part), folder / shard, dict(metadata or {"format": "pt"}))
        places |= dict.fromkeys(part, shard)
    size = sum(w.nbytes for part in parts for w in part.values())
    index = folder / INDEX
    index.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": places}, indent=2))
    return index


def load_all(index: Path) -> dict[str, np.ndarray]:
    places = json.loads(index.read_text())["weight_map"]
    return {name: w for shard in sorted(set(places.values())) for name, w in load_file(index.parent / shard).items()}


def everything(folder: Path) -> list[str]:
    """All names below a folder, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
