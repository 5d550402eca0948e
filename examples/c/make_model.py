# SPDX-License-Identifier: Apache-2.0
"""Makes digits.safetensors: a network that `gossamer train` has pruned to 90 %, and 100 digits that it has not seen.

python examples/c/make_model.py
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import gossamer as gs
from gossamer.training.data import load

with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, "-m", "gossamer", "train", "--data", "digits", "--sparsity", "0.9", "--out", folder]
    subprocess.run(command, check=True)
    model = gs.load(Path(folder) / "model.safetensors")
data = load("digits")  # which is standardised, as the network's inputs will be
factor = np.where(model["input.factor"] == 0, 1, model["input.factor"])  # 0: the same in every image
pixels = data.x_test[:100] / factor + model["input.mean"]
model["samples"], model["labels"] = pixels.astype(np.float32), data.y_test[:100].astype(np.float32)
gs.save(Path(__file__).with_name("digits.safetensors"), model)
