# SPDX-License-Identifier: Apache-2.0
"""Running statistics that importance criteria need: accumulated batch by batch, mergeable, savable."""

from __future__ import annotations

import math
import os
import weakref
from typing import Any

import numpy as np

from gossamer import _core
from gossamer._arrays import Array, Host, empty, host, of, require_float, require_number, same_shape

_KINDS = ("norm", "grad2", "hessian", "movement")
_SCRATCH = 1 << 22  # elements of x that are float64 at a time: 32 MiB


class Stats:
    """A float64 accumulator for float32, float64, float16 and bfloat16 data.

    ========== ================================== ====================================== ===============================
    kind       ``update``                         ``values``                             used by
    ========== ================================== ====================================== ===============================
    norm       ``x [..., in]``                    ``||x_j||_2`` per input, ``[in]``      wanda (arXiv 2306.11695), ria
    grad2      per-sample grads ``[batch, *s]``   mean of ``g**2`` over samples, ``s``   fisher (arXiv 1801.05787)
    hessian    ``x [..., in]``                    ``X.T @ X``, ``[in, in]``              obs, :func:`compensate`
    movement   ``(weights, grads)``               ``-sum_t g_t * w_t``                   movement (arXiv 2005.07683)
    ========== ================================== ====================================== ===============================

    Each sum takes its terms in order, so results do not depend on threads. Not so for hessian, which numpy's BLAS sums:
    it is symmetric to the last bit, but that bit may differ between machines and numbers of BLAS threads.

    Parameters
    ----------
    kind : one of the table.
    decay : every update first multiplies the state by it, in [0, 1]; None keeps everything.

    Raises
    ------
    ValueError
        An unknown kind, a decay outside [0, 1], shapes that differ from the first update's.

    Examples
    --------
    >>> import numpy as np, gossamer as gs
    >>> s = gs.Stats("norm")
    >>> s.update(np.array([[3.0, 0.0], [4.0, 1.0]]))
    >>> s.values.tolist()
    [5.0, 1.0]
    """

    def __init__(self, kind: str, *, decay: float | None = None) -> None:
        if kind not in _KINDS:
            raise ValueError(f"Stats: kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        if decay is not None and not 0 <= require_number(decay, "Stats", "decay") <= 1:
            raise ValueError(f"Stats: decay must be in [0, 1], got {decay!r}")
        self.kind = kind
        self.decay = None if decay is None else float(decay)
        self.count = 0.0  # samples (decayed like the sums): rows of x, per-sample gradients, or calls for movement
        self._sums: Host | None = None

    # inverse_diagonal of a hessian, and the sums it is of: update, merge and load make new ones
    _inverse: tuple[weakref.ref[Host], Host] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_inverse"}

    def update(self, *batch: Array) -> None:
        """Adds a batch; see the table for what each kind takes. An error changes nothing.

        ``x`` with leading axes that one stride cannot walk through is copied to flatten them. For hessian a call needs
        two more matrices ``[in, in]`` and 32 MiB (or one row) of float64.
        """
        expected = 2 if self.kind == "movement" else 1
        if len(batch) != expected:
            what = "(weights, grads)" if expected == 2 else "one array"
            raise TypeError(f"Stats.update: {self.kind} must get {what}, got {len(batch)} arguments")
        x = host(batch[0], "Stats.update", ("x", "weights")[expected - 1])
        if x.ndim == 0:
            raise ValueError("Stats.update: x must have at least one dimension, got a scalar")
        require_float(x, "Stats.update", ("x", "weights")[expected - 1])
        if self.kind == "movement":
            grads = host(batch[1], "Stats.update", "grads")
            same_shape(grads, x.shape, "Stats.update", "grads", "")
            sums, samples = self._state(x.shape), 1
            _core.subtract_products(x, grads, self._decay, sums)
        else:
            if self.kind != "grad2":
                rows, shape = x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), x.shape[-1:]
            else:
                rows, shape = x.reshape(-1, 1) if x.ndim == 1 else x, x.shape[1:]
            if self.kind == "hessian":
                sums, samples = self._state(shape * 2), rows.shape[0]
                sums = _products_added(rows, self._decay, sums)
            else:
                sums, samples = self._state(shape), rows.shape[0]
                _core.add_squares(rows, self._decay, sums)
        self._sums = sums
        self.count = self.count * self._decay + samples

    @property
    def _view(self) -> Host:
        """``values`` for the core, which only reads them: no copy where there is nothing to compute."""
        return self._sums if self.kind in ("hessian", "movement") and self._sums is not None else self.values

    @property
    def values(self) -> Host:
        """The statistic so far, float64; see the table."""
        if self._sums is None:
            raise ValueError("Stats.values: update must have been called, got no data")
        if self.kind == "norm":
            return np.sqrt(self._sums)
        if self.kind == "grad2":
            if not self.count:
                raise ValueError("Stats.values: update must have been called with samples, got none")
            return self._sums / self.count
        return self._sums.copy()

    def merge(self, other: Stats) -> None:
        """Adds what another Stats of the same kind has seen, as if its batches had been this one's."""
        if not isinstance(other, Stats):
            raise TypeError(f"Stats.merge: other must be a Stats, got {type(other).__name__}")
        if other.kind != self.kind:
            raise ValueError(f"Stats.merge: other must be of kind {self.kind!r}, got {other.kind!r}")
        if other._sums is None:
            return
        self._sums = self._state(other._sums.shape, "merge") + other._sums
        self.count += other.count

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file, atomically."""
        from gossamer.files import write_tensors

        meta = {"kind": self.kind, "decay": self.decay, "count": self.count}
        write_tensors(path, {} if self._sums is None else {"sums": self._sums}, {"stats": meta})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Stats:
        """Reads what :meth:`save` wrote. Raises ValueError for any other file."""
        from gossamer.files import read_tensors

        tensors, meta = read_tensors(path, "Stats.load")
        entry, sums = meta.get("stats"), tensors.get("sums")
        try:
            if not isinstance(entry, dict) or not 0 <= float(entry["count"]) < math.inf:
                raise ValueError("no count")
            if sums is not None and sums.dtype != np.float64:
                raise ValueError(f"sums of {sums.dtype}")
            if (
                sums is not None
                and entry["kind"] == "hessian"
                and (sums.ndim != 2 or not np.array_equal(sums, sums.T, equal_nan=True))
            ):
                raise ValueError("a matrix that is not symmetric")
            squares = sums.diagonal() if sums is not None and entry["kind"] == "hessian" else sums
            if squares is not None and entry["kind"] != "movement" and (squares < 0).any():
                raise ValueError("negative sums of squares")
            stats = cls(entry["kind"], decay=entry["decay"])
        except (KeyError, TypeError, ValueError) as error:
            where = os.fspath(path)
            raise ValueError(f"Stats.load: {where} must be a file written by Stats.save, got {error}") from error
        stats.count, stats._sums = float(entry["count"]), sums
        return stats

    @property
    def _decay(self) -> float:
        return 1.0 if self.decay is None else float(self.decay)

    def _state(self, shape: tuple[int, ...], function: str = "update") -> Host:
        if self._sums is None:
            sums = empty(shape, np.float64, f"Stats.{function}")
            sums.fill(0)
            return sums
        if self._sums.shape != shape:
            raise ValueError(
                f"Stats.{function}: the shape must stay that of the first update, {self._sums.shape}, got {shape}"
            )
        return self._sums

    def __repr__(self) -> str:
        shape = None if self._sums is None else self._sums.shape
        return f"Stats({self.kind!r}, shape={shape}, count={self.count:g})"


def require_stats(stats: object, kind: str, function: str, name: str, *, method: str = "") -> Stats:
    """``stats`` as a Stats of this kind that has data. ``method`` is what needs it, where that was a choice."""
    needed = f" for method {method!r}" if method else ""
    if stats is None and method:
        raise ValueError(f"{function}: stats must be given{needed}, got None{of(name)}")
    if not isinstance(stats, Stats):
        raise TypeError(f"{function}: stats must be a Stats, got {type(stats).__name__}{of(name)}")
    if stats.kind != kind:
        raise ValueError(f"{function}: stats must be Stats({kind!r}){needed}, got {stats.kind!r}{of(name)}")
    if stats._sums is None or (kind == "grad2" and not stats.count):
        raise ValueError(f"{function}: stats must have been updated{needed}, got no data{of(name)}")
    return stats


@np.errstate(all="ignore")  # infinity times 0 is NaN here as in the other kinds
def _products_added(rows: Host, decay: float, sums: Host) -> Host:
    """A new matrix ``decay * sums + rows.T @ rows``, in float64; numpy makes ``a.T @ a`` exactly symmetric."""
    total = sums * decay
    step = max(1, _SCRATCH // max(1, rows.shape[1]))
    for start in range(0, rows.shape[0], step):
        block = np.ascontiguousarray(rows[start : start + step], np.float64)
        total += block.T @ block
    return total
