# SPDX-License-Identifier: Apache-2.0
"""gs.score: each element-wise method into a buffer (out=) and into fresh memory, against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import reference
from inputs import Array, Job, as_tensor, equals, fresh, normal, peers, torch_or_skip
from measuring import Measure

PARAMETERS = {"quick": {"size": [(2048, 2048)]}, "large": {"size": [(4096, 4096), (4096, 11008)]}}
# What a method reads, in arrays of the weights' size; movement's statistics are float64.
INPUTS = {"magnitude": 1, "gradient": 1, "taylor": 2, "wanda": 1, "movement": 2, "random": 0}
SEED = 7


class Inputs:
    """Weights, gradients and what the statistics hold."""

    def __init__(self, size: tuple[int, int], method: str) -> None:
        self.w, self.g = normal(size), normal(size, 1)
        self.stats: gs.Stats | None = None
        if method == "wanda":
            self.stats = gs.Stats("norm")
            self.stats.update(normal((64, size[1]), 2))
        elif method == "movement":
            self.stats = gs.Stats("movement")
            self.stats.update(self.w, self.g)
        self.values = None if self.stats is None else self.stats.values  # float64, like what gossamer starts from
        if method == "wanda":
            self.values = self.values.astype(np.float32)

    def expected(self, method: str) -> Array:
        if method == "random":
            return reference.random_score(self.w.shape, np.float32, seed=SEED)
        return numpy_out(self, method)()


def gossamer_out(inputs: Inputs, method: str) -> Job:
    out = fresh(inputs.w.shape)
    return lambda: gs.score(inputs.w, inputs.g, method=method, stats=inputs.stats, seed=SEED, out=out)


def gossamer(inputs: Inputs, method: str) -> Job:
    return lambda: gs.score(inputs.w, inputs.g, method=method, stats=inputs.stats, seed=SEED)


def numpy_out(inputs: Inputs, method: str) -> Job:
    w, g, values, out = inputs.w, inputs.g, inputs.values, fresh(inputs.w.shape)
    rng = np.random.default_rng(SEED)
    return {
        "magnitude": lambda: np.abs(w, out=out),
        "gradient": lambda: np.abs(g, out=out),
        "taylor": lambda: np.abs(np.multiply(w, g, out=out), out=out),
        "wanda": lambda: np.multiply(np.abs(w, out=out), values, out=out),
        "movement": lambda: _copy(out, values),
        "random": lambda: rng.random(w.shape, np.float32, out),
    }[method]


def _copy(out: Array, values: Array) -> Array:
    np.copyto(out, values, casting="same_kind")
    return out


def numpy(inputs: Inputs, method: str) -> Job:
    w, g, values = inputs.w, inputs.g, inputs.values
    rng = np.random.default_rng(SEED)
    return {
        "magnitude": lambda: np.abs(w),
        "gradient": lambda: np.abs(g),
        "taylor": lambda: np.abs(w * g),
        "wanda": lambda: np.abs(w) * values,
        "movement": lambda: values.astype(np.float32),
        "random": lambda: rng.random(w.shape, np.float32),
    }[method]


def torch_out(inputs: Inputs, method: str) -> Job:
    torch = torch_or_skip()
    w, g = as_tensor(inputs.w), as_tensor(inputs.g)
    values = None if inputs.values is None else as_tensor(inputs.values)
    out = as_tensor(fresh(inputs.w.shape))
    return {
        "magnitude": lambda: torch.abs(w, out=out),
        "gradient": lambda: torch.abs(g, out=out),
        "taylor": lambda: torch.mul(w, g, out=out).abs_(),
        "wanda": lambda: torch.mul(torch.abs(w, out=out), values, out=out),
        "movement": lambda: out.copy_(values),
        "random": lambda: out.uniform_(),
    }[method]


def torch(inputs: Inputs, method: str) -> Job:
    w, g = as_tensor(inputs.w), as_tensor(inputs.g)
    values = None if inputs.values is None else as_tensor(inputs.values)
    return {
        "magnitude": lambda: w.abs(),
        "gradient": lambda: g.abs(),
        "taylor": lambda: (w * g).abs(),
        "wanda": lambda: w.abs() * values,
        "movement": lambda: values.float(),
        "random": lambda: w.new_empty(w.shape).uniform_(),
    }[method]


def _is_uniform(result: Any) -> None:
    """Another generator's numbers can only be looked at as a whole."""
    values = np.asarray(result)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean(dtype=np.float64) - 0.5) < 0.01


@peers(gossamer_out, numpy_out, torch_out, gossamer, numpy, torch)
@pytest.mark.parametrize("method", INPUTS)
def test_score(method: str, peer: Any, size: tuple[int, int], measure: Measure) -> None:
    inputs = Inputs(size, method)
    check = equals(inputs.expected(method))
    if method == "random" and not peer.__name__.startswith("gossamer"):
        check = _is_uniform
    nbytes = inputs.w.nbytes
    measure(
        peer(inputs, method),
        check,
        group=f"score {method} {size[0]}x{size[1]}",
        read=INPUTS[method] * nbytes,
        written=nbytes,
    )
