# SPDX-License-Identifier: Apache-2.0
"""Safetensors checkpoints of any size, from file to file: :func:`prune`, :func:`inspect`, :func:`convert`."""

from gossamer.checkpoints.conversion import Converted, convert
from gossamer.checkpoints.inspection import Inspection, TensorInfo, inspect
from gossamer.checkpoints.pruning import Pruned, PrunedTensor, prune
from gossamer.checkpoints.source import headers

__all__ = ["Converted", "Inspection", "Pruned", "PrunedTensor", "TensorInfo", "convert", "headers", "inspect", "prune"]
