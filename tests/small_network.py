# SPDX-License-Identifier: Apache-2.0
"""A network small enough for tests, on scikit-learn's digits: data, a trained dense state, callbacks for ``tune``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from gossamer.training import evaluation, importance, loop, model, optimizers


@dataclass(frozen=True)
class Data:
    """Splits of digits, scaled to [0, 1]: x float32 [n, 64], y int64 [n]."""

    x: Any
    y: Any
    x_validation: Any
    y_validation: Any
    x_test: Any
    y_test: Any


@cache
def digits() -> Data:
    """The data in a fixed shuffled order: 1000, 400 and 397 samples."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int64)
    return Data(x[:1000], y[:1000], x[1000:1400], y[1000:1400], x[1400:], y[1400:])


def network(seed: int = 0, dtype: Any = np.float32) -> dict[str, Any]:
    """An untrained 64-32-10 network."""
    return model.initialize([64, 32, 10], np.random.default_rng(seed), dtype=dtype)


@cache
def _trained() -> dict[str, Any]:
    params = network()
    loop.fit(params, optimizers.Adam(5e-3), digits().x, digits().y, epochs=15, batch_size=64)
    return params


def trained_network() -> dict[str, Any]:
    """A copy of the trained dense network (about 97 % on validation)."""
    return model.copy(_trained())


def train(params: Any, mask: Any) -> Any:
    """For ``tune``: ten masked epochs, in place."""
    loop.fit(params, optimizers.Adam(5e-3), digits().x, digits().y, epochs=10, batch_size=64, masks=mask)
    return params


def grads(params: Any) -> Any:
    """For ``tune``: mean gradients over the training split."""
    return importance.mean_gradients(params, digits().x, digits().y)


def evaluate(params: Any, split: str) -> float:
    """For ``tune``: accuracy."""
    data = digits()
    x, y = {"validation": (data.x_validation, data.y_validation), "test": (data.x_test, data.y_test)}[split]
    accuracy = evaluation.evaluate(params, x, y).accuracy
    assert accuracy is not None
    return accuracy


def assert_same_state(left: Any, right: Any) -> None:
    """Two params dicts hold the same names and the same bits."""
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].tobytes() == right[name].tobytes(), name
