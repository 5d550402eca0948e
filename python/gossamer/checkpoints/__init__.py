# SPDX-License-Identifier: Apache-2.0
"""Safetensors checkpoints of any size, from file to file: :func:`prune`, :func:`inspect`, :func:`convert`."""

from gossamer.checkpoints.pruning import Pruned, PrunedTensor, prune

__all__ = ["Pruned", "PrunedTensor", "prune"]
