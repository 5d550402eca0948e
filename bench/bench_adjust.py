# SPDX-License-Identifier: Apache-2.0
"""gs.adjust: the sign rule and the scale rule, against the same formulas in numpy and torch.

The limit is one read of weights and scores and one write; the scale rule needs a second read of the scores, for their
median and spread.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import gossamer as gs
from inputs import Array, Job, as_tensor, close_to, equals, fresh, normal, peers, torch_or_skip
from measuring import Measure

PARAMETERS = {"quick": {"size": [(2048, 2048)]}, "large": {"size": [(4096, 4096), (4096, 11008)]}}
RATE = 0.125  # exact in binary: all libraries round alike


def gossamer_sign_out(w: Array, s: Array) -> Job:
    out = fresh(w.shape)
    return lambda: gs.adjust(w, s, RATE, out=out)


def gossamer_sign(w: Array, s: Array) -> Job:
    return lambda: gs.adjust(w, s, RATE)


def numpy_sign_out(w: Array, s: Array) -> Job:
    out = fresh(w.shape)

    def run() -> Array:
        np.sign(s, out=out)
        np.multiply(out, np.float32(RATE), out=out)
        return np.subtract(w, out, out=out)

    return run


def numpy_sign(w: Array, s: Array) -> Job:
    return lambda: w - np.float32(RATE) * np.sign(s)


def torch_sign(w: Array, s: Array) -> Job:
    torch, weights, scores = torch_or_skip(), as_tensor(w), as_tensor(s)
    return lambda: torch.sub(weights, torch.sign(scores), alpha=RATE)


@peers(gossamer_sign_out, gossamer_sign, numpy_sign_out, numpy_sign, torch_sign)
def test_sign(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, s = normal(size), normal(size, 1)
    measure(
        peer(w, s),
        equals(numpy_sign(w, s)()),
        group=f"adjust sign {size[0]}x{size[1]}",
        read=2 * w.nbytes,
        written=w.nbytes,
    )


def gossamer_scale_out(w: Array, s: Array) -> Job:
    out = fresh(w.shape)
    return lambda: gs.adjust(w, s, RATE, rule="scale", out=out)


def gossamer_scale(w: Array, s: Array) -> Job:
    return lambda: gs.adjust(w, s, RATE, rule="scale")


def numpy_scale(w: Array, s: Array) -> Job:
    middle = (s.size - 1) // 2

    def run() -> Array:
        t = s - np.partition(s, middle, axis=None)[middle]
        t /= np.abs(t).max()
        t *= np.float32(RATE)
        t += np.float32(1)
        return np.multiply(w, t, out=t)

    return run


def torch_scale(w: Array, s: Array) -> Job:
    torch, weights, scores = torch_or_skip(), as_tensor(w), as_tensor(s)

    def run() -> Any:
        t = scores - torch.median(scores)  # the lower one, as here
        return weights * (1 + RATE * (t / t.abs().max()))

    return run


@peers(gossamer_scale_out, gossamer_scale, numpy_scale, torch_scale)
def test_scale(peer: Any, size: tuple[int, int], measure: Measure) -> None:
    w, s = normal(size), np.abs(normal(size, 1))
    expected = numpy_scale(w, s)()
    measure(
        peer(w, s),
        close_to(expected) if peer is torch_scale else equals(expected),
        group=f"adjust scale {size[0]}x{size[1]}",
        read=3 * w.nbytes,
        written=w.nbytes,
    )
