# SPDX-License-Identifier: Apache-2.0
"""The ranks of a process group, which go on together or fail together."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from gossamer._arrays import Host

_KINDS = (NotImplementedError, TypeError, ValueError, MemoryError, RuntimeError)  # a subclass before its base
_TEXT = 2048  # bytes of a message that travel


class Ranks:
    """A process group for the length of one call, in which every exchange is also a vote.

    What goes wrong on a rank between two exchanges is raised on all of them at the next one, as the same error; so no
    rank waits for another that has given up. All ranks must make the same exchanges in the same order.

    Raises RuntimeError without an initialised process group, ValueError where this process is not in it, or it has no
    backend for CPU tensors.
    """

    def __init__(self, process_group: Any, function: str) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(f"{function}: torch.distributed must be initialised (init_process_group), got no group")
        self._group, self._function = process_group, function
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        if self.rank < 0:
            raise ValueError(f"{function}: process_group must hold this process, got a group of others")
        backend = str(dist.get_backend_config(process_group))
        if "cpu:" not in backend:
            raise ValueError(f"{function}: process_group must have a backend for CPU tensors (gloo), got {backend}")

    def gather(self, work: Callable[[], Sequence[int]], count: int) -> Host:
        """What ``work`` gives on every rank, ``count`` numbers each: int64 ``[ranks, count]``."""
        mine, failure = self._try(lambda: np.array(work(), np.int64), count)
        rows: Host = np.stack(self._gathered(mine))
        self._vote(int(rows[:, -1].sum()), failure)
        return rows[:, :-1]

    def total(self, work: Callable[[], Host], count: int) -> Host:
        """The sum of what ``work`` gives, int64 ``[count]``, over all ranks."""
        mine, failure = self._try(work, count)
        tensor = torch.from_numpy(mine)
        self._collective(lambda: dist.all_reduce(tensor, group=self._group))
        self._vote(int(mine[-1]), failure)
        return mine[:-1]

    def check_same(self, arguments: Mapping[str, Any], digests: Host) -> None:
        """ValueError on all ranks unless all have these arguments, as the gathered :func:`digest` of each tells."""
        if (digests == digests[0]).all():
            return
        others = [json.loads(text) for text in self._texts(json.dumps(_words(arguments)))]
        for rank, other in enumerate(others):
            for name, value in others[0].items():
                if other[name] != value:
                    raise ValueError(
                        f"{self._function}: {name} must be the same on every rank, got {value} on rank 0 and "
                        f"{other[name]} on rank {rank}"
                    )
        raise ValueError(f"{self._function}: arguments must be the same on every rank, got others on some")

    def _try(self, work: Callable[[], Host], count: int) -> tuple[Host, Exception | None]:
        """With 0 at the end, or only 1 there and the error."""
        message = np.zeros(count + 1, np.int64)
        try:
            message[:-1] = work()
        except Exception as error:
            message[:] = 0
            message[-1] = 1
            return message, error
        return message, None

    def _vote(self, failures: int, failure: Exception | None) -> None:
        """Raises the error of the first rank that has one, on all ranks."""
        if not failures:
            return
        text = ""
        if failure is not None:
            kind = next((i for i, kind in enumerate(_KINDS) if isinstance(failure, kind)), None)
            unknown = f"{self._function}: every rank must succeed, got {failure!r}"
            text = f"{len(_KINDS) - 1}{unknown}" if kind is None else f"{kind}{failure}"
        texts = self._texts(text)
        rank, text = next((rank, text) for rank, text in enumerate(texts) if text)
        where = "" if len(set(texts)) == 1 else f" (on rank {rank})"
        raise _KINDS[int(text[0])](text[1:] + where) from failure

    def _texts(self, text: str) -> list[str]:
        data = np.zeros(_TEXT, np.uint8)
        raw = text.encode()[:_TEXT]
        data[: len(raw)] = np.frombuffer(raw, np.uint8)
        return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in self._gathered(data)]

    def _gathered(self, mine: Host) -> list[Host]:
        rows = [torch.empty(mine.size, dtype=torch.from_numpy(mine).dtype) for _ in range(self.size)]
        self._collective(lambda: dist.all_gather(rows, torch.from_numpy(mine), group=self._group))
        return [row.numpy() for row in rows]

    def _collective(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:  # torch's own errors are of this kind
            reason = re.sub(r"^\[\S*\] *", "", str(error)).splitlines()[0].split(". ")[0]
            raise RuntimeError(
                f"{self._function}: every rank must take part to the end, got a process group that failed, as when a "
                f"rank is lost or takes longer than the group's timeout: {reason}"
            ) from error


def digest(arguments: Mapping[str, Any]) -> int:
    """A number that tells arguments apart."""
    text = json.dumps(_words(arguments))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _words(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Plain numbers and numpy's look alike."""
    plain = {name: x.item() if isinstance(x, np.generic) else x for name, x in arguments.items()}
    return {name: repr(value)[:80] for name, value in plain.items()}
