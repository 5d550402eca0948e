# SPDX-License-Identifier: Apache-2.0
"""The array library of an array, so that the training code serves numpy and cupy alike."""

from __future__ import annotations

from typing import Any

import array_api_compat


def namespace(*arrays: Any) -> Any:
    """numpy's or cupy's module (by way of array_api_compat) for the arrays; TypeError for anything else."""
    return array_api_compat.array_namespace(*arrays)
