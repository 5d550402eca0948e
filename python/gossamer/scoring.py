# SPDX-License-Identifier: Apache-2.0
"""Importance scores: higher means keep."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, compute_dtype, empty, host, is_float, named, of, output, partner, same_shape
from gossamer.compensation import inverse_diagonal
from gossamer.stats import Stats, require_stats

Method: TypeAlias = str | Callable[[Array, Array | None, Stats | None], Array]

# name -> what it needs beside the weights ("", "grads", "seed", or the kind of its Stats), and its default group
METHODS: dict[str, tuple[str, str]] = _core.methods()
OTHER_GRADS = ("grasp", "synflow")  # methods whose ``grads`` are no gradients of the loss
_BLOCK = 1 << 16  # elements that are float64 at a time


def needs_grads(method: object) -> bool:
    """Whether a method reads gradients; a callable may."""
    return callable(method) or METHODS.get(str(method), ("", ""))[0] == "grads"


def default_group(method: Method, pattern: str, weights: Any, function: str) -> str:
    """What competes by default: the method's own group, "global" only where there is a mapping of tensors.

    Whole rows cannot compete within a row.
    """
    group = "tensor" if callable(method) else method_entry(method, function)[1]
    alone = (group, pattern) == ("row", "row") or (group == "global" and not isinstance(weights, Mapping))
    return "tensor" if alone else group


def method_entry(method: object, function: str) -> tuple[str, str]:
    """What METHODS says of a name; TypeError or ValueError for what is none."""
    if not isinstance(method, str):
        raise TypeError(f"{function}: method must be a str or a callable, got {type(method).__name__}")
    if method not in METHODS:
        raise ValueError(f"{function}: method must be one of {', '.join(METHODS)} or a callable, got {method!r}")
    return METHODS[method]


@dataclass
class Inputs:
    """What the core scores: tensors by name, as numpy views. ``method`` is "" when ``weights`` are the scores.

    ``start`` is the flat index of the first element, from which "random" counts.
    """

    method: str
    names: list[str]
    weights: list[Host]
    aux: list[Host | None]
    seed: int
    start: int = 0


def gather_inputs(weights: Any, grads: Any, method: Method, stats: Any, seed: int | None, function: str) -> Inputs:
    """Checks a params argument and what the method needs beside it."""
    tensors = named(weights, function, "weights")
    views = {name: host(w, function, "weights") for name, w in tensors.items()}
    needs = "" if callable(method) else method_entry(method, function)[0]
    all_grads = partner(grads if callable(method) or needs == "grads" else None, tensors, weights, function, "grads")
    wants_stats = callable(method) or needs not in ("", "grads", "seed")
    all_stats = partner(stats if wants_stats else None, tensors, weights, function, "stats")
    if callable(method):
        what = "the result of method"
        scores = [host(method(tensors[name], all_grads[name], all_stats[name]), function, what) for name in tensors]
        for (name, w), s in zip(views.items(), scores, strict=True):
            same_shape(s, w.shape, function, what, name)
            if not is_float(s.dtype):
                raise TypeError(f"{function}: {what} must be a float array, got {s.dtype}")
        return Inputs("", list(tensors), scores, [None] * len(scores), 0)
    aux = [_aux(str(method), needs, w, all_grads[name], all_stats[name], function, name) for name, w in views.items()]
    return Inputs(str(method), list(tensors), list(views.values()), aux, check_seed(needs, seed, function))


def check_seed(needs: str, seed: int | None, function: str) -> int:
    if needs != "seed":
        return 0
    if seed is None:
        raise ValueError(f"{function}: seed must be given for method 'random', got None")
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise TypeError(f"{function}: seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"{function}: seed must be in [0, 2**64), got {seed}")
    return int(seed)


def _aux(method: str, needs: str, w: Host, grads: Any, stats: Any, function: str, name: str) -> Host | None:
    if needs == "grads":
        if grads is None:
            raise ValueError(f"{function}: grads must be given for method {method!r}, got None{of(name)}")
        view = host(grads, function, "grads")
        same_shape(view, w.shape, function, "grads", name)
        return view
    if needs not in ("", "seed"):
        stats = require_stats(stats, needs, function, name, method=method)
        if needs in ("movement", "grad2"):
            same_shape(stats._sums, w.shape, function, "stats", name)
            return _halved_mean(stats, compute_dtype(w.dtype), function) if method == "fisher" else stats._view
        if method == "obs":
            with np.errstate(divide="ignore"):
                values = 0.5 / _inverse_diagonal(stats, function, name)
        else:
            values = np.sqrt(stats.values) if method == "ria" else stats.values
        with np.errstate(over="ignore"):
            return values.astype(compute_dtype(w.dtype))
    return None


@np.errstate(over="ignore")
def _halved_mean(stats: Stats, dtype: Any, function: str) -> Host:
    """``0.5 * stats.values`` in another dtype, without an array of float64 on the way."""
    assert stats._sums is not None
    result = empty(stats._sums.shape, dtype, function)
    sums, target = stats._sums.reshape(-1), result.reshape(-1)
    for start in range(0, sums.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        target[part] = 0.5 * (sums[part] / stats.count)
    return result


def _inverse_diagonal(stats: Stats, function: str, name: str) -> Host:
    """That of the statistics' H, which remember it: layers that share their inputs share one inversion."""
    h, known = stats._view, stats._inverse
    if known is None or known[0]() is not h:
        found = inverse_diagonal(h, function=function, argument="stats", name=name)
        known = stats._inverse = (weakref.ref(h), found)
    return known[1]


def score_dtype(method: str, w: Host, aux: Host | None) -> np.dtype[Any]:
    """float64 where the weights are; for synflow also where its gradients are: they overflow float32."""
    return compute_dtype(aux.dtype if method == "synflow" and aux is not None and aux.dtype == np.float64 else w.dtype)


def score(
    weights: Array | Mapping[str, Array],
    grads: Array | Mapping[str, Array] | None = None,
    *,
    method: Method = "magnitude",
    stats: Stats | Mapping[str, Stats] | None = None,
    seed: int | None = None,
    out: Array | Mapping[str, Array] | None = None,
) -> Any:
    """The importance of every parameter; higher means keep.

    ========== ================================== ====== =====================================================
    method     score                              group  source
    ========== ================================== ====== =====================================================
    magnitude  ``|w|``                            tensor Han et al. 2015, arXiv 1506.02626
    gradient   ``|g|``                            tensor the growth score of RigL, Evci 2019, arXiv 1911.11134
    taylor     ``|w g|``                          tensor Molchanov et al. 2016, arXiv 1611.06440
    taylor2    ``(w g)^2``                        tensor Molchanov et al. 2019, arXiv 1906.10771
    movement   ``-sum_t g_t w_t``                 tensor Sanh et al. 2020, arXiv 2005.07683; Stats("movement")
    fisher     ``w^2 E[g^2] / 2``                 tensor LeCun et al. 1989 (optimal brain damage); Theis et al.
                                                         2018, arXiv 1801.05787; Stats("grad2")
    obs        ``w^2 / (2 [H^-1]_jj)``            row    Hassibi and Stork 1992; Stats("hessian")
    wanda      ``|w_ij| ||x_j||_2``               row    Sun et al. 2023, arXiv 2306.11695; Stats("norm")
    ria        ``(|w_ij| / sum_i + |w_ij| /       row    Zhang et al., ICLR 2024; Stats("norm"); the sums of row i
               sum_j) ||x_j||_2^(1/2)``                  and of column j
    snip       ``|w g| / sum |w g|``              global Lee et al. 2018, arXiv 1810.02340; the sum is that of all
                                                         tensors of the call
    grasp      ``w (H g)``                        global Wang et al. 2020, arXiv 2002.07376; ``grads`` is H g
    synflow    ``w dR/dw``                        global Tanaka et al. 2020, arXiv 2006.05467; ``grads`` is dR/dw
    lamp       ``w^2 / sum of v^2, |v| >= |w|``   global Lee et al. 2020, arXiv 2010.07611
    fpgm       ``sum_k ||row_i - row_k||_2``      tensor He et al. 2018, arXiv 1811.00250; for pattern "row"
    random     uniform in [0, 1)                  tensor a baseline; needs ``seed``, and counts on through a mapping
    ========== ================================== ====== =====================================================

    ``group`` is what competes in :func:`prune` by default ("global": all tensors of a mapping). Easily got wrong:

    - gradient takes the absolute value of the mean gradient; the mean of absolute values is another criterion.
    - taylor2 of a row, column or block is the square of the sum of its ``w g`` in ``prune``; ``score`` is element-wise.
    - movement is signed. grasp removes what the paper scores highest, ``-w (H g)``.
    - fisher takes the mean of squared gradients, per sample; not the square of the mean gradient.
    - obs: H is XᵀX. Inputs that are always zero score 0; a singular H gets 1 % of its mean diagonal added.
    - ria: a row or column of zeros scores 0 and not NaN.
    - synflow with float64 gradients gives float64 scores, whatever the weights: float32 overflows in deep networks.
    - lamp: among equal weights the one of the lower index counts as the larger; the largest of a tensor scores exactly
      1. It takes a sort, and memory for it: 3 to 6 times the weights.
    - fpgm takes rows² x columns steps, and a row's elements share its score.

    Parameters
    ----------
    weights : float32, float64, float16 or bfloat16 array of any shape, or a mapping of them. Strided arrays are read
        in place.
    grads : like ``weights``, of any float dtype; the mean gradient. Ignored by methods that do not use it.
    method : a name of the table, or a callable ``(weights, grads, stats) -> scores`` that is called once a tensor.
    stats : a :class:`Stats`, or a mapping of them.
    seed : for ``"random"``, in [0, 2**64).
    out : where to write the scores; may be ``weights`` itself.

    Returns
    -------
    Scores in the shape of the weights (and in a mapping for a mapping): float64 for float64, else float32. They are
    computed in that dtype, whatever the dtype of gradients and statistics.

    Raises
    ------
    TypeError
        A dtype or kind that is not supported.
    ValueError
        Shapes that do not fit, or an input that the method needs is missing.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> w, g = np.array([1.0, -2.0, 3.0]), np.array([0.5, 0.5, 0.0])
    >>> gs.score(w, g, method="taylor").tolist()
    [0.5, 1.0, 0.0]
    """
    inputs = gather_inputs(weights, grads, method, stats, seed, "score")
    tensors = named(weights, "score", "weights")
    outs = partner(out, tensors, weights, "score", "out")
    targets = [
        output(outs[name], tensors[name], w.shape, score_dtype(inputs.method, w, aux), "score")
        for name, w, aux in zip(inputs.names, inputs.weights, inputs.aux, strict=True)
    ]
    _core.score(inputs.method, inputs.weights, inputs.aux, inputs.seed, [target.view for target in targets])
    results = {name: target.result() for name, target in zip(inputs.names, targets, strict=True)}
    return results if isinstance(weights, Mapping) else results[""]
