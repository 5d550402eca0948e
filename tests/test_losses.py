# SPDX-License-Identifier: Apache-2.0
"""Losses: values against plain formulas, gradients against finite differences, stability, errors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from gossamer.training.losses import mean_squared_error, softmax_cross_entropy


def numeric_gradient(loss: Any, outputs: Any, targets: Any, step: float = 1e-6) -> Any:
    """Central differences in float64."""
    gradient = np.zeros_like(outputs)
    for index in np.ndindex(outputs.shape):
        ahead, behind = outputs.copy(), outputs.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (loss(ahead, targets)[0] - loss(behind, targets)[0]) / (2 * step)
    return gradient


def test_mean_squared_error_is_its_formula(rng: np.random.Generator) -> None:
    p, t = rng.standard_normal((7, 3)), rng.standard_normal((7, 3))
    value, gradient = mean_squared_error(p, t)
    assert value == pytest.approx(np.mean((p - t) ** 2), rel=1e-14)
    np.testing.assert_allclose(gradient, numeric_gradient(mean_squared_error, p, t), atol=1e-8)


def test_cross_entropy_is_its_formula(rng: np.random.Generator) -> None:
    z, y = rng.standard_normal((9, 5)), rng.integers(0, 5, 9)
    value, gradient = softmax_cross_entropy(z, y)
    softmax = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert value == pytest.approx(-np.log(softmax[np.arange(9), y]).mean(), rel=1e-13)
    np.testing.assert_allclose(gradient, numeric_gradient(softmax_cross_entropy, z, y), atol=1e-8)
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_does_not_overflow(dtype: Any) -> None:
    z = np.array([[1e4, -1e4, 0.0], [-1e30, 1e30, 0.0]], dtype)
    value, gradient = softmax_cross_entropy(z, np.array([0, 1]))
    assert value == 0
    assert np.isfinite(gradient).all()
    value, gradient = softmax_cross_entropy(z[:1], np.array([1]))
    assert value == pytest.approx(2e4)
    np.testing.assert_array_equal(gradient, np.array([[1, -1, 0]], dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradients_keep_the_dtype_and_inputs_stay(dtype: Any, rng: np.random.Generator) -> None:
    z, t, y = (
        rng.standard_normal((4, 3)).astype(dtype),
        rng.standard_normal((4, 3)).astype(dtype),
        np.array([0, 1, 2, 0]),
    )
    before = z.copy()
    for value, gradient in (mean_squared_error(z, t), softmax_cross_entropy(z, y)):
        assert type(value) is float
        assert math.isfinite(value)
        assert gradient.dtype == dtype
    np.testing.assert_array_equal(z, before)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "error", "message"),
    [
        (mean_squared_error, np.zeros((2, 3)), np.zeros((2, 1)), ValueError, "mean_squared_error: targets .* got"),
        (mean_squared_error, np.zeros((0, 3)), np.zeros((0, 3)), ValueError, "mean_squared_error: targets"),
        (softmax_cross_entropy, np.zeros((2, 3)), np.zeros(3, int), ValueError, "labels must be .batch."),
        (softmax_cross_entropy, np.zeros((2, 3)), np.zeros(2), TypeError, "labels must be integers, got float64"),
        (softmax_cross_entropy, np.zeros((2, 3)), np.array([0, 3]), ValueError, r"labels must be in \[0, 3\), got 3"),
        (softmax_cross_entropy, np.zeros((2, 3)), np.array([0, -1]), ValueError, r"got -1"),
    ],
)
def test_bad_targets(loss: Any, outputs: Any, targets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loss(outputs, targets)
