# SPDX-License-Identifier: Apache-2.0
"""Importance scores: higher means keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, host, named, output, partner, same_shape
from gossamer.stats import Stats

Method: TypeAlias = str | Callable[[Array, Array | None, Stats | None], Array]

# name -> what it needs beside the weights ("", "grads", "norm", "movement", "seed"), and its default group
METHODS: dict[str, tuple[str, str]] = _core.methods()


def needs_grads(method: object) -> bool:
    """Whether a method reads gradients; a callable may."""
    return callable(method) or METHODS.get(str(method), ("", ""))[0] == "grads"


def default_group(method: Method, pattern: str, function: str) -> str:
    """What competes by default: "row" for Wanda, else "tensor". Whole rows can only compete within the tensor."""
    return "tensor" if callable(method) or pattern == "row" else _needs(method, function)[1]


def _needs(method: object, function: str) -> tuple[str, str]:
    if not isinstance(method, str):
        raise TypeError(f"{function}: method must be a str or a callable, got {type(method).__name__}")
    if method not in METHODS:
        raise ValueError(f"{function}: method must be one of {', '.join(METHODS)} or a callable, got {method!r}")
    return METHODS[method]


@dataclass
class Inputs:
    """What the core scores: tensors by name, as numpy views. ``method`` is "" when ``weights`` are the scores."""

    method: str
    names: list[str]
    weights: list[Host]
    aux: list[Host | None]
    seed: int


def gather_inputs(weights: Any, grads: Any, method: Method, stats: Any, seed: int | None, function: str) -> Inputs:
    """Checks a params argument and what the method needs beside it."""
    tensors = named(weights, function, "weights")
    views = {name: host(w, function, "weights") for name, w in tensors.items()}
    needs = "" if callable(method) else _needs(method, function)[0]
    all_grads = partner(grads if callable(method) or needs == "grads" else None, tensors, weights, function, "grads")
    wants_stats = callable(method) or needs in ("norm", "movement")
    all_stats = partner(stats if wants_stats else None, tensors, weights, function, "stats")
    if callable(method):
        what = "the result of method"
        scores = [host(method(tensors[name], all_grads[name], all_stats[name]), function, what) for name in tensors]
        for (name, w), s in zip(views.items(), scores, strict=True):
            same_shape(s, w.shape, function, what, name)
            if s.dtype not in (np.float32, np.float64):
                raise TypeError(f"{function}: {what} must be float32 or float64, got {s.dtype}")
        return Inputs("", list(tensors), scores, [None] * len(scores), 0)
    aux = [_aux(str(method), needs, w, all_grads[name], all_stats[name], function, name) for name, w in views.items()]
    return Inputs(str(method), list(tensors), list(views.values()), aux, _check_seed(needs, seed, function))


def _check_seed(needs: str, seed: int | None, function: str) -> int:
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
    place = f" for {name!r}" if name else ""
    if needs == "grads":
        if grads is None:
            raise ValueError(f"{function}: grads must be given for method {method!r}, got None{place}")
        view = host(grads, function, "grads")
        same_shape(view, w.shape, function, "grads", name)
        return view
    if needs in ("norm", "movement"):
        if stats is None:
            raise ValueError(f"{function}: stats must be given for method {method!r}, got None{place}")
        if not isinstance(stats, Stats):
            raise TypeError(f"{function}: stats must be a Stats, got {type(stats).__name__}{place}")
        if stats.kind != needs:
            raise ValueError(
                f"{function}: stats must be Stats({needs!r}) for method {method!r}, got {stats.kind!r}{place}"
            )
        values = stats._view
        if needs == "movement":
            same_shape(values, w.shape, function, "stats", name)
            return values
        return values.astype(w.dtype) if w.dtype in (np.float32, np.float64) else values
    return None


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

    ========== ============================== ==========================================================
    method     score                          source
    ========== ============================== ==========================================================
    magnitude  ``|w|``                        Han et al. 2015, arXiv 1506.02626
    gradient   ``|g|``                        the growth score of RigL, Evci et al. 2019, arXiv 1911.11134
    taylor     ``|w * g|``                    Molchanov et al. 2016, arXiv 1611.06440
    movement   ``-sum_t g_t * w_t``           Sanh et al. 2020, arXiv 2005.07683; ``stats=Stats("movement")``
    wanda      ``|w_ij| * ||x_j||_2``         Sun et al. 2023, arXiv 2306.11695; ``stats=Stats("norm")``
    random     uniform in [0, 1)              a baseline; needs ``seed``, and counts on through a mapping
    ========== ============================== ==========================================================

    Parameters
    ----------
    weights : float32 or float64 array of any shape, or a mapping of them. Strided arrays are read in place.
    grads : like ``weights``; the mean gradient. Ignored by methods that do not use it.
    method : a name of the table, or a callable ``(weights, grads, stats) -> scores`` that is called once a tensor.
    stats : a :class:`Stats`, or a mapping of them.
    seed : for ``"random"``, in [0, 2**64).
    out : where to write the scores; may be ``weights`` itself.

    Returns
    -------
    Scores in the shape and dtype of the weights (and in a mapping for a mapping).

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
        output(outs[name], tensors[name], w.shape, w.dtype, "score")
        for name, w in zip(inputs.names, inputs.weights, strict=True)
    ]
    _core.score(inputs.method, inputs.weights, inputs.aux, inputs.seed, [target for target, _ in targets])
    results = {name: result for name, (_, result) in zip(inputs.names, targets, strict=True)}
    return results if isinstance(weights, Mapping) else results[""]
