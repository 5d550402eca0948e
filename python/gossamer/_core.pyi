# SPDX-License-Identifier: Apache-2.0
# Positional and without defaults: the documented interface is the package's.
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]

def score(method: str, weights: list[_Array], aux: list[_Array | None], seed: int, outs: list[_Array], /) -> None: ...
def select(
    function: str,
    names: list[str],
    weights: list[_Array],
    method: str,
    aux: list[_Array | None],
    seed: int,
    priors: list[_Array | None],
    masks: list[_Array],
    outs: list[_Array],
    sparsity: float | None,
    nnz: int | None,
    threshold: float | None,
    pattern: str,
    group: str,
    min_density: float,
    nan: str,
    first_index: int,
    /,
) -> list[int]: ...
def collect(
    function: str,
    method: str,
    weights: _Array,
    aux: _Array | None,
    seed: int,
    first_index: int,
    low: float,
    high: float,
    values: _Array,
    /,
) -> tuple[int, int, int]: ...
def keep_above(
    function: str,
    method: str,
    weights: _Array,
    aux: _Array | None,
    seed: int,
    first_index: int,
    threshold: float,
    ties: int,
    mask: _Array,
    /,
) -> tuple[int, int]: ...
def unit_scores(
    function: str, method: str, weights: _Array, seed: int, first_index: int, pattern: str, scores: _Array, /
) -> None: ...
def apply_mask(weights: list[_Array], masks: list[_Array], outs: list[_Array], /) -> None: ...
def adjust(
    names: list[str], weights: list[_Array], scores: list[_Array], rate: float, rule: str, outs: list[_Array], /
) -> None: ...
def nonzero_mask(function: str, weights: _Array, mask: _Array, /) -> None: ...
def count_bits(mask: _Array, rows: int, cols: int, /) -> int: ...
def padding_is_zero(mask: _Array, rows: int, cols: int, /) -> bool: ...
def mask_indices(mask: _Array, rows: int, cols: int, indices: _Array, /) -> None: ...
def add_squares(x: _Array, decay: float, sums: _Array, /) -> None: ...
def subtract_products(weights: _Array, grads: _Array, decay: float, sums: _Array, /) -> None: ...
def check_csr(function: str, rows: int, cols: int, indptr: _Array, indices: _Array, /) -> None: ...
def mask_to_indptr(mask: _Array, rows: int, cols: int, indptr: _Array, /) -> None: ...
def mask_to_indices(mask: _Array, rows: int, cols: int, indptr: _Array, indices: _Array, /) -> None: ...
def mask_to_values(function: str, weights: _Array, mask: _Array, indptr: _Array, values: _Array, /) -> None: ...
def pattern_to_mask(rows: int, cols: int, indptr: _Array, indices: _Array, mask: _Array, /) -> None: ...
def check_format(function: str, format: str, mask: _Array, rows: int, cols: int, /) -> str: ...
def quantize(
    function: str,
    argument: str,
    rows: int,
    indptr: _Array,
    values: _Array,
    numbers: _Array,
    scales: _Array,
    /,
) -> None: ...
def values_to_dense(mask: _Array, rows: int, cols: int, indptr: _Array, values: _Array, out: _Array, /) -> None: ...
def transpose(
    rows: int,
    cols: int,
    indptr: _Array,
    indices: _Array,
    t_indptr: _Array,
    t_indices: _Array,
    order: _Array,
    /,
) -> None: ...
def gather(values: _Array, order: _Array, out: _Array, /) -> None: ...
def matmul(
    function: str,
    rows: int,
    cols: int,
    indptr: _Array,
    indices: _Array,
    values: _Array,
    scales: _Array | None,
    x: _Array,
    linear: bool,
    bias: _Array | None,
    activation: str,
    residual: _Array | None,
    out: _Array,
    /,
) -> None: ...

class Panels:
    def __init__(self, mask: _Array, rows: int, cols: int, /) -> None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def room(self) -> int: ...
    def reorder(self, indptr: _Array, values: _Array, to: _Array, pack: bool, /) -> None: ...

def matmul_panel(
    function: str,
    panels: Panels,
    values: _Array,
    scales: _Array | None,
    x: _Array,
    linear: bool,
    bias: _Array | None,
    activation: str,
    residual: _Array | None,
    out: _Array,
    /,
) -> None: ...
def matmul_bitmask(
    function: str,
    mask: _Array,
    rows: int,
    cols: int,
    indptr: _Array,
    values: _Array,
    scales: _Array | None,
    x: _Array,
    linear: bool,
    bias: _Array | None,
    activation: str,
    residual: _Array | None,
    out: _Array,
    /,
) -> None: ...
def check_product(
    function: str,
    rows: int,
    cols: int,
    x: _Array,
    linear: bool,
    bias: _Array | None,
    activation: str,
    residual: _Array | None,
    out: _Array,
    /,
) -> None: ...
def epilogue(
    function: str,
    linear: bool,
    bias: _Array | None,
    activation: str,
    residual: _Array | None,
    out: _Array,
    /,
) -> None: ...
def activation_grad(z: _Array, dy: _Array, activation: str, out: _Array, /) -> None: ...
def sddmm(
    function: str,
    x: _Array,
    y: _Array,
    rows: int,
    cols: int,
    indptr: _Array,
    indices: _Array,
    values: _Array,
    /,
) -> None: ...
def info() -> dict[str, Any]: ...
def methods() -> dict[str, tuple[str, str]]: ...
def kept_count(n: int, sparsity: float, /) -> int: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
