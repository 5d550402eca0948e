# SPDX-License-Identifier: Apache-2.0
"""A PyTorch network trained to 90 % sparsity, then made of sparse layers: scikit-learn's digits, a few seconds.

The network learns, RigL prunes and regrows it on a cubic schedule, ``sparsify_`` replaces its layers, and the sparse
layers are trained a little further on their kept weights alone. Run it:

    python examples/pytorch_sparse_training.py
"""

import torch
from sklearn.datasets import load_digits

import gossamer as gs
import gossamer.torch as gt

STEPS, SPARSITY = 1500, 0.9


def train(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, *, sparsity: float = 0.0) -> None:
    """Adam on random batches; with a sparsity, pruned on the way."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    sparsifier = None
    if sparsity:
        schedule, regrow = gs.Cubic(start=300, end=1000, every=50), gs.RigL(alpha=0.3, end=1200)
        sparsifier = gt.Sparsifier(model, optimizer, "magnitude", sparsity, schedule=schedule, regrow=regrow)
    for step in range(steps):
        rows = torch.randint(len(x), (64,))
        loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step()
        if sparsifier is not None:
            event = sparsifier.step()
            if event.changed and step % 200 == 0:
                grown = sum(mask.nnz for mask in event.grown.values())
                print(f"  step {step:4d}  loss {loss.item():.4f}  sparsity {sparsifier.sparsity:.3f}  grown {grown}")
        optimizer.zero_grad()


def accuracy(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(x).argmax(1) == y).float().mean().item()


def main() -> None:
    """Train, sparsify, train on; print accuracies."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    x, y, x_test, y_test = images[:1200], labels[:1200], images[1200:], labels[1200:]
    layers = [torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(256, 10))
    train(model, x, y, STEPS, sparsity=SPARSITY)
    print(f"masked dense layers  accuracy {accuracy(model, x_test, y_test):.4f}")
    done = gt.sparsify_(model, format="csr")  # every layer; format="auto" would keep those that are faster dense
    print(f"sparse layers        accuracy {accuracy(model, x_test, y_test):.4f}  kept", end=" ")
    print(", ".join(f"{name} {layer.mask.nnz}" for name, layer in done.items()))
    train(model, x, y, 100)
    print(f"trained on, sparse   accuracy {accuracy(model, x_test, y_test):.4f}")
    program = torch.export.export(model, (x_test[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    print(f"exported             accuracy {accuracy(program.module(), x_test, y_test):.4f}")


if __name__ == "__main__":
    main()
