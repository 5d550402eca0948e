# SPDX-License-Identifier: Apache-2.0
"""Patterns and matrices in the forms that PyTorch and PEFT take."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gossamer._arrays import of
from gossamer.scoring import Method
from gossamer.sparse import SparseMatrix
from gossamer.stats import Stats
from gossamer.torch._tensors import Globs, Tensor, layers, view
from gossamer.torch.linear import SparseLinear
from gossamer.torch.pruning import find, prune_


def to_sparse_csr(a: SparseMatrix | SparseLinear) -> Tensor:
    """A ``torch.sparse_csr`` tensor of its own memory; the values keep their dtype (int8 becomes float32).

    >>> import numpy as np, gossamer as gs, gossamer.torch as gt
    >>> t = gt.to_sparse_csr(gs.SparseMatrix.from_dense(np.array([[0.0, 2.0], [3.0, 0.0]])))
    >>> t.layout, t.to_dense().tolist()
    (torch.sparse_csr, [[0.0, 2.0], [3.0, 0.0]])
    """
    if isinstance(a, SparseLinear):
        a = a.matrix()
    if not isinstance(a, SparseMatrix):
        raise TypeError(f"to_sparse_csr: a must be a SparseMatrix or a SparseLinear, got {type(a).__name__}")
    indptr, indices = a._structure.csr()
    data = a.dequantize()
    values = torch.empty(a.nnz, dtype=_DTYPES[str(data.dtype)])
    view(values)[...] = data
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        return torch.sparse_csr_tensor(
            torch.from_numpy(indptr.copy()),
            torch.from_numpy(indices.astype("int64")),
            values,
            a.shape,
            check_invariants=True,  # said either way, or torch warns
        )


_DTYPES = {
    str(name).removeprefix("torch."): name for name in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}


def from_sparse_csr(t: Tensor) -> SparseMatrix:
    """A :class:`gossamer.SparseMatrix` of format ``"csr"`` from a ``torch.sparse_csr`` tensor; copied and checked.

    Raises TypeError and ValueError for another layout, a batch of matrices, and what ``SparseMatrix.from_csr`` refuses.

    >>> import torch, gossamer.torch as gt
    >>> gt.from_sparse_csr(gt.to_sparse_csr(gt.SparseLinear(3, 2))).shape
    (2, 3)
    """
    f = "from_sparse_csr"
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"{f}: t must be a torch tensor, got {type(t).__name__}")
    if t.layout != torch.sparse_csr:
        raise TypeError(f"{f}: t must have the layout torch.sparse_csr, got {t.layout}")
    if t.ndim != 2:
        raise ValueError(f"{f}: t must be one matrix, got the shape {tuple(t.shape)}")
    t = t.detach()
    return SparseMatrix.from_csr(t.crow_indices(), t.col_indices(), t.values(), (t.shape[0], t.shape[1]))


def peft_indices(
    module: nn.Module,
    sparsity: float,
    *,
    method: Method = "magnitude",
    stats: Mapping[str, Stats] | None = None,
    include: Globs = None,
    exclude: Globs = None,
    **prune: Any,
) -> dict[str, Tensor]:
    """The best weights of each Linear as PEFT's Super-Tuning takes them: ``{name of the module: int64 indices}``.

    For ``model.base_model.set_precomputed_indices(...)`` after ``get_peft_model(base, SupertuningConfig(...))``, with
    the same ``sparsity``: ``int(n * (1 - sparsity))`` flat, ascending indices of each weight ``[out, in]``, which is
    PEFT's count and not always gossamer's. The names are those of ``module``, which is to be the base model. Weights
    compete within their tensor; other arguments are those of :func:`prune_`.

    >>> import torch, gossamer.torch as gt
    >>> {name: tuple(i.shape) for name, i in gt.peft_indices(torch.nn.Sequential(torch.nn.Linear(10, 10)), 0.9).items()}
    {'0': (9,)}
    """
    f = "peft_indices"
    if isinstance(sparsity, bool) or not isinstance(sparsity, float | int) or not 0 <= sparsity <= 1:
        raise ValueError(f"{f}: sparsity must be a number in [0, 1], got {sparsity!r}")
    found = layers(module, include, exclude, f, (nn.Linear,))
    counts = {name: int(layer.weight.numel() * (1 - sparsity)) for name, layer in found.items()}
    masks = prune_(
        module, method=method, nnz=counts, group="tensor", include=list(found), stats=stats, apply=False, **prune
    )
    return {
        name.removesuffix("weight").removesuffix("."): torch.from_numpy(mask.indices()) for name, mask in masks.items()
    }


def shira_mask_fn(
    module: nn.Module | None = None,
    *,
    method: Method = "magnitude",
    stats: Mapping[str, Stats] | None = None,
    seed: int | None = None,
) -> Callable[..., Tensor]:
    """A ``mask_fn`` for PEFT's SHiRA: ``config.mask_fn = gt.shira_mask_fn()``, called with ``(base_layer, r)``.

    It gives a tensor of ones and zeros like ``base_layer.weight`` with the ``r * (in + out)`` best weights as ones.
    With ``stats`` of :func:`collect`, ``module`` is the model they were collected on, of which ``base_layer`` is part.

    >>> import torch, gossamer.torch as gt
    >>> layer = torch.nn.Linear(20, 10)
    >>> mask = gt.shira_mask_fn()(layer, 2)
    >>> mask.shape, int(mask.sum())
    (torch.Size([10, 20]), 60)
    """
    f = "shira_mask_fn"
    if (stats is None) != (module is None):
        raise ValueError(f"{f}: module must be given with stats and only then, got {module and type(module).__name__}")
    names = (
        {}
        if module is None
        else {id(layer): name for name, layer in layers(module, None, None, f, (nn.Linear,)).items()}
    )

    def mask_fn(base_layer: nn.Linear, r: int, **_: Any) -> Tensor:
        weight = base_layer.weight.detach()
        name = names.get(id(base_layer), "")
        if stats is not None and name not in stats:
            raise ValueError(f"{f}: stats must have an entry for base_layer, got none{of(name)}")
        masks = find(
            {name: weight}, None, stats, None, method=method, sparsity=None, nnz=r * sum(weight.shape),
            pattern="element", group="tensor", seed=seed, min_density=0.0, nan="raise", function=f,
        )  # fmt: skip
        return torch.from_numpy(masks[name].to_dense()).to(weight)

    return mask_fn
