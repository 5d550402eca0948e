# SPDX-License-Identifier: Apache-2.0
"""The packed forms behind the operators: found again by the tensors they were made of, gone with them.

An operator gets tensors alone, so that PyTorch can trace, export and save it. What their products need beside them
(indices, panels, transposes) is kept here. A pattern is known by the storage of its mask, for an alias that PyTorch
makes on the way has another identity but the same storage; values by theirs and by their version counter.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from gossamer._arrays import Host
from gossamer.masks import Mask
from gossamer.plan import KERNELS, Plan, as_asked
from gossamer.sparse import SparseMatrix, Structure, _choose
from gossamer.threads import after_fork
from gossamer.torch._tensors import Tensor, view

_PATTERNS = 1 << 14  # those alive; beyond them the ones that were used least lately are made again when needed
_VALUES = 4  # tensors of values that one pattern keeps packs of
_SAMPLE = 64  # of the values, compared at every call: writes through ``.data`` change no version counter
_SINGLE = {kernel: as_asked(kernel) for kernel in KERNELS}


class _Packs(NamedTuple):
    """Packed values and what tells whether they are still those of the tensor."""

    storage: weakref.ref[Any]
    state: tuple[Any, ...]
    forward: dict[str, SparseMatrix]
    transposed: dict[str, SparseMatrix]


class Pattern:
    """The structure of one mask with the packs of the values that were used with it."""

    def __init__(self, packed: Tensor, cols: int, format: str) -> None:
        shape = (int(packed.shape[0]), cols)
        mask = Mask(shape, view(packed))  # copied and checked
        self.storage = weakref.ref(packed.untyped_storage())
        self.version = _version(packed)
        self.mask, self.structure = mask, Structure(shape, mask=mask)
        self._plans: dict[Any, Plan] = {}
        self._format = format
        self._packs: OrderedDict[Any, _Packs] = OrderedDict()

    def is_of(self, packed: Tensor) -> bool:
        """Whether the mask is still the same. A write that changed nothing, as of DistributedDataParallel's broadcast,
        costs a comparison and no new structure."""
        if self.storage() is not packed.untyped_storage():
            return False
        version = _version(packed)
        if version is None or version != self.version:
            if not np.array_equal(view(packed), self.mask.packed):
                return False
            self.version = version
        return True

    def plan(self, dtype: Any) -> Plan:
        if dtype not in self._plans:
            self._plans[dtype] = _choose(self._format, self.structure, dtype, "SparseLinear")
        return self._plans[dtype]

    def matrix(self, values: Tensor, columns: int, transposed: bool) -> SparseMatrix:
        """The matrix, or its transpose, in the form for products with so many columns.

        CSR and bitmask products read the tensor's own memory. Nothing that is kept holds that memory.
        """
        data = view(values)
        kernel = self.plan(data.dtype).kernel(columns)
        light = kernel in ("csr", "bitmask")
        if light and not transposed:
            return SparseMatrix._make(self.structure, data, _SINGLE[kernel])
        with _lock:
            packs = self._packs_of(values, data)
            known = packs.transposed if transposed else packs.forward
            if kernel not in known:
                form = _SINGLE["csr" if transposed else kernel]
                made = SparseMatrix._make(self.structure, data, form)
                known[kernel] = _in_form(made.T, kernel) if transposed else made
            return known[kernel]

    def expect_new_values(self) -> None:
        """What is packed goes: a gradient by the values was asked for, so they are about to be changed.

        PyTorch's fused optimizers and writes through ``.data`` change no version counter, and of a step that changes
        few values (rare inputs) the sample may see none.
        """
        with _lock:
            self._packs.clear()

    def _packs_of(self, values: Tensor, data: Host) -> _Packs:
        storage = values.untyped_storage()
        key = (id(storage), values.storage_offset(), data.dtype)
        version = _version(values)
        step = 1 if version is None else max(1, data.size // _SAMPLE)  # all of them where there is no counter
        state = (version, values.data_ptr(), data[::step].tobytes(), data[-1:].tobytes())
        packs = self._packs.get(key)
        if packs is None or packs.storage() is not storage or packs.state != state:
            forget, which = weakref.ref(self), key

            def gone(_: Any) -> None:
                pattern = forget()
                if pattern is not None:
                    pattern._packs.pop(which, None)

            packs = self._packs[key] = _Packs(weakref.ref(storage, gone), state, {}, {})
            while len(self._packs) > _VALUES:
                self._packs.popitem(last=False)
        self._packs.move_to_end(key)
        return packs


def _in_form(a: SparseMatrix, kernel: str) -> SparseMatrix:
    return a if kernel == "csr" else SparseMatrix._make(a._structure, a.values, _SINGLE[kernel])


def _version(tensor: Tensor) -> int | None:
    """None for tensors made in inference mode, which have no counter."""
    return None if tensor.is_inference() else int(tensor._version)


_patterns: OrderedDict[Any, Pattern] = OrderedDict()
_lock = threading.RLock()  # a weak reference's callback may come while its own thread holds it


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()  # a thread that packs is not in the child


after_fork(_after_fork)


def pattern(packed: Tensor, cols: int, format: str) -> Pattern:
    """What is known of a mask ``[rows, ceil(cols / 8)]``; made at its first use and when it has changed."""
    storage = packed.untyped_storage()
    key = (id(storage), packed.storage_offset(), tuple(packed.shape), packed.stride(), cols, format)
    with _lock:
        found = _patterns.get(key)
        if found is None or not found.is_of(packed):
            found = _patterns[key] = Pattern(packed, cols, format)
            found.storage = weakref.ref(storage, lambda _: _patterns.pop(key, None))
            while len(_patterns) > _PATTERNS:
                _patterns.popitem(last=False)
        _patterns.move_to_end(key)
        return found
