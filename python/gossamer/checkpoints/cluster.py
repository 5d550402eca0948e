# SPDX-License-Identifier: Apache-2.0
"""Checkpoints pruned by the workers of a Dask cluster: one task a file and pass, the same bits as in one process.

The client finds the threshold as one process does (:mod:`gossamer.threshold`), but a look's counts are the sum of those
that the workers have made, one file each; then every file is written by one task, which is told how many of the scores
equal to the threshold lie in the files before. A task depends on nothing but its arguments and the files, and writes
under a name of its own, until the client takes the result: so Dask may run a task again, or twice at once, when a
worker is lost.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from gossamer import _core
from gossamer._arrays import Host
from gossamer.checkpoints.pruning import Options, make_group, tensors_of, write_shard
from gossamer.checkpoints.reading import Progress, Reader
from gossamer.checkpoints.selecting import EVERYTHING, State, Together, expected_window
from gossamer.checkpoints.source import Checkpoint
from gossamer.checkpoints.work import UnfinishedError, Work, file_of
from gossamer.headers import Header, read_header
from gossamer.threshold import Threshold

_BINS = 18  # of a look's histogram, as a power of two: a task's result has 2 MiB
_SUMMED = 8  # histograms that one task adds up
_CONNECT = 30.0  # seconds until a scheduler must have answered
_ANSWER = 60.0  # seconds until a result of some megabytes must have come, before workers are counted
_WITHOUT_WORKERS = 60.0  # seconds that a cluster may have no worker


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, as a task is told of it: the flat indices of its tensors that are pruned, and what is asked for."""

    path: str
    size: int
    taken: dict[str, int]
    options: Options
    version: str

    def header(self) -> Header:
        version = _core.info()["version"]
        if version != self.version:
            raise RuntimeError(f"prune: workers must have the client's gossamer {self.version}, got {version}")
        header = read_header(self.path, "prune")
        if header.file_size != self.size:
            what = f"must have the {self.size} bytes that the client sees, got {header.file_size}"
            raise ValueError(f"prune: {self.path} {what}")
        return header


def sample(shard: Shard, size: int) -> list[Host]:
    """Task: scores of stretches of a file, see :meth:`Together.sample`."""
    with Reader("prune") as reader:
        return Together(shard.options).sample(reader, tensors_of(shard.header(), shard.taken), size)


def look(shard: Shard, search: Mapping[str, Any]) -> Host:
    """Task: the tally of a file; ``search`` has the arguments of :class:`Threshold`."""
    part = Threshold(**search)
    with Reader("prune") as reader:
        Together(shard.options).look(reader, tensors_of(shard.header(), shard.taken), part)
    return part.tally


def total(*tallies: Host) -> Host:
    """Task: their sum."""
    result = tallies[0].copy()
    for tally in tallies[1:]:
        result += tally
    return result


def count_at(tally: Host, slot: int) -> int:
    """Task: one count of a tally."""
    return int(tally[slot])


def write(shard: Shard, state: State, folder: str) -> tuple[str, dict[str, int]]:
    """Task: writes a file; -> its path, and how many weights of each tensor are kept. ``state``: of the group."""
    header, group = shard.header(), make_group(shard.options)
    if state:
        group.restore(state)
    with Reader("prune") as reader:
        if isinstance(group, Together) and shard.options.storage == "bitmask":
            group.count(reader, tensors_of(header, shard.taken))
        with file_of(Path(folder)) as (file, path):
            kept = write_shard(file, header, shard.taken, shard.options, group, reader)
    return path, kept


class Cluster:
    """The client's side. ``distributed`` is the module, which only those import who have a scheduler."""

    def __init__(self, distributed: Any, client: Any, function: str) -> None:
        self._distributed, self._client, self._function = distributed, client, function
        if not self._workers():
            raise RuntimeError(f"{function}: scheduler must have workers, got none at {client.scheduler.address}")

    def _workers(self) -> int:
        try:
            return len(self._client.scheduler_info()["workers"])
        except OSError:  # the scheduler does not answer
            return 0

    def map(self, task: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Futures of the results of one task for each tuple of arguments; those may hold futures."""
        return [self._client.submit(task, *one, pure=False) for one in arguments]

    def results(self, futures: Sequence[Any], seen: Callable[[int, Any], None] | None = None) -> list[Any]:
        """All results, in order; ``seen`` is called with the number and the result of each as they come."""
        results: list[Any] = [None] * len(futures)
        for i in self.finished(futures):
            results[i] = self._result(futures[i])
            if seen is not None:
                seen(i, results[i])
        return results

    def finished(self, futures: Sequence[Any]) -> Iterator[int]:
        """The numbers of tasks as they are done.

        An error of a task is raised as it is, and the others are given up. :class:`UnfinishedError` where a task has
        taken several workers with it, no worker is left, or the scheduler is lost.
        """
        places, pending = {future.key: i for i, future in enumerate(futures)}, set(futures)

        def some() -> Any:
            with self._client.as_current():
                return self._distributed.wait(pending, timeout=1, return_when="FIRST_COMPLETED")

        try:
            while pending:
                done, pending = self._patiently(some)
                for future in done:
                    if future.status == "pending":  # again: its worker is lost, and its result with it
                        pending.add(future)
                        continue
                    if future.status != "finished":
                        self._result(future)
                    yield places[future.key]
        except BaseException:
            with suppress(Exception):  # where the scheduler is lost
                self._client.cancel(list(futures), force=True)
            raise

    def _result(self, future: Any) -> Any:
        """What a task gives or raises."""
        return self._patiently(partial(future.result, timeout=_ANSWER), lambda: future.status == "error")

    def _patiently(self, call: Callable[[], Any], own: Callable[[], bool] = lambda: False) -> Any:
        """What a call gives that may time out while there are workers; ``own``: whether that is a task's error."""
        seen = time.monotonic()
        while True:
            try:
                return call()
            except self._distributed.KilledWorker as error:
                task = str(error.task).partition("-")[0]
                raise UnfinishedError(
                    f"{self._function}: workers must survive their tasks, got none left by any try of {task!r}"
                ) from error
            except self._distributed.CancelledError as error:
                raise UnfinishedError(f"{self._function}: scheduler must stay there, got a lost one") from error
            except TimeoutError:
                if own():
                    raise
                if self._workers():
                    seen = time.monotonic()
                elif time.monotonic() - seen > _WITHOUT_WORKERS:
                    raise UnfinishedError(f"{self._function}: scheduler must have workers, got none left") from None


@contextmanager
def connect(scheduler: Any, function: str) -> Iterator[Cluster]:
    """A cluster for the length of a block. A Client stays the caller's.

    Raises ImportError without Dask, TypeError, OSError where nobody answers, RuntimeError without workers.
    """
    try:
        import distributed
    except ImportError as error:
        raise ImportError(f"{function}: scheduler needs Dask (pip install dask distributed): {error}") from error
    if isinstance(scheduler, distributed.Client):
        if scheduler.asynchronous:
            raise TypeError(f"{function}: scheduler must be a synchronous Client, got an asynchronous one")
        yield Cluster(distributed, scheduler, function)
        return
    if not isinstance(scheduler, str):
        raise TypeError(f"{function}: scheduler must be an address or a Client, got {type(scheduler).__name__}")
    try:
        client = distributed.Client(scheduler, timeout=_CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise OSError(f"{function}: scheduler must answer at {scheduler}, got {error}") from error
    with client:
        yield Cluster(distributed, client, function)


def run(
    cluster: Cluster,
    checkpoint: Checkpoint,
    taken: Mapping[str, int],
    options: Options,
    work: Work,
    progress: Progress | None,
) -> tuple[dict[str, int], int]:
    """-> kept weights by tensor, and how many files were there already."""
    version, show = _core.info()["version"], progress or (lambda phase, share, words: None)
    shards = {
        name: Shard(
            os.path.abspath(header.path),
            header.file_size,
            {entry.name: taken[entry.name] for _, entry, _ in tensors_of(header, taken)},
            options,
            version,
        )
        for name, header in checkpoint.shards.items()
    }
    state = work.state
    if "group" not in state:
        state["group"] = _prepare(cluster, checkpoint, shards, taken, options, show)
        work.save()
    known = {name: work.finished(name) for name in shards}
    left = [name for name, what in known.items() if what is None]
    folder = os.path.abspath(work.folder)
    futures = cluster.map(write, [(shards[name], state["group"].get(name, {}), folder) for name in left])
    kept = {tensor: count for what in known.values() if what is not None for tensor, count in what["kept"].items()}
    done = len(shards) - len(left)

    def seen(i: int, found: tuple[str, dict[str, int]]) -> None:
        nonlocal done
        work.take(Path(found[0]), left[i], {"kept": found[1]})
        kept.update(found[1])
        done += 1
        show("prune", done / len(shards), left[i])

    cluster.results(futures, seen)
    return kept, len(shards) - len(left)


def _prepare(
    cluster: Cluster,
    checkpoint: Checkpoint,
    shards: Mapping[str, Shard],
    taken: Mapping[str, int],
    options: Options,
    show: Progress,
) -> dict[str, State]:
    """The state in which each file begins; {} where tensors do not compete with those of other files."""
    group = make_group(options)
    if not isinstance(group, Together):
        return {}
    tensors = [tensor for header in checkpoint.shards.values() for tensor in tensors_of(header, taken)]
    kept, size = group.competing(tensors), sum(entry.size for _, entry, _ in tensors)
    names, wide, window = [name for name, shard in shards.items() if shard.taken], group.wide(tensors), EVERYTHING

    def ask(task: Callable[..., Any], *more: Any) -> list[Any]:
        futures = cluster.map(task, [(shards[name], *more) for name in names])
        for done, i in enumerate(cluster.finished(futures), start=1):
            show("count", done / len(names), names[i])
        return futures

    if group.wants_sample(size):
        stretches = [stretch for found in cluster.results(ask(sample, size)) for stretch in found]
        window = expected_window(stretches, kept / size)
    search, tallies = Threshold(kept, wide=wide, window=window, bins=_BINS), list[Any]()
    while not search.found:
        tallies = ask(look, {"kept": kept, "wide": wide, "window": search.window, "bins": _BINS})
        search.tally = cluster.results([_sum(cluster, tallies)])[0]
        search.end()
    ties = cluster.results(cluster.map(count_at, [(tally, search.slot) for tally in tallies]))
    before = accumulate(ties or [0] * len(names), initial=0)
    return {name: Together.begin(search.score, search.ties, used) for name, used in zip(names, before, strict=False)}


def _sum(cluster: Cluster, tallies: list[Any]) -> Any:
    """The future of the sum of some: no task has to hold more than a few of them."""
    while len(tallies) > 1:
        tallies = cluster.map(total, [tuple(tallies[i : i + _SUMMED]) for i in range(0, len(tallies), _SUMMED)])
    return tallies[0]
