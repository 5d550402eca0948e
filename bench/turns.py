# SPDX-License-Identifier: Apache-2.0
"""Two calls that take turns on the same data, their ratio held against a target; and the table of them all."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

import gossamer as gs
from inputs import Array, Job, torch_or_skip
from limits import Streams
from measuring import describe_run

Size = tuple[int, int]


@dataclass
class Call:
    """A contender. ``run`` is timed, or returns its own seconds where ``timed``; ``prepare`` comes before, untimed."""

    name: str
    run: Job
    check: Callable[[Any], None] | None = None
    prepare: Callable[[], None] | None = None
    timed: bool = False
    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def once(self) -> Any:
        if self.prepare:
            self.prepare()
        began, cpu = time.perf_counter(), time.process_time()
        result = self.run()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        self.seconds.append(result if self.timed else seconds)
        self.processor.append(cpu)
        return result

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def busy(self) -> float | None:
        """Processors that were at work on average, as far as the clock tells."""
        return None if self.timed else sum(self.processor) / sum(self.seconds)


@dataclass
class Row:
    """One line of the table. Times are medians in ms; memory is in MB."""

    group: str
    name: str
    ours: float
    peer_name: str
    peer: float
    unit: str
    ratio: float
    ratio_of_best: float
    bound: float
    at_most: bool  # else: at least
    rounds: int
    gb_per_s: float | None = None
    share_of_limit: float | None = None
    processors: float | None = None
    peer_processors: float | None = None
    best: float | None = None
    peer_best: float | None = None

    @property
    def met(self) -> bool:
        return self.ratio <= self.bound if self.at_most else self.ratio >= self.bound


class Run:
    """Measures pair by pair and collects the rows."""

    def __init__(self, sizes: tuple[Size, ...], threads: int, seconds: float, console: Console) -> None:
        """``sizes`` of the data; ``seconds`` that a row takes at least; on ``console`` each figure as it comes."""
        self.sizes, self.threads, self.seconds = sizes, threads, seconds
        self.streams, self.torch = Streams(threads), _torch()
        self.rows: list[Row] = []
        self._console = console
        self.left_out: list[str] = []

    def passes(self, name: str, *read: Array, copy: dict[str, tuple[Array, Array]] | None = None) -> Call:
        """Streaming reads of some arrays, and then copies of some, which read and write."""
        copies = list(copy.values()) if copy else []
        return Call(
            name, lambda: self.streams.read(*read) + sum(self.streams.copy(*pair) for pair in copies), timed=True
        )

    def compare(
        self,
        group: str,
        ours: Call,
        peer: Call,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
        limit: Call | None = None,
        nbytes: float = 0,
    ) -> None:
        """``at_most``: ours / peer; ``at_least``: peer / ours. ``nbytes`` are those that cannot be avoided."""
        ours, peer = _anew(ours), _anew(peer)
        calls = [ours, peer, *([_anew(limit)] if limit else [])]
        for call in calls:
            result = call.once()
            if call.check:
                call.check(result)
            del result
            call.seconds.clear()
            call.processor.clear()
        began = time.perf_counter()
        while len(ours.seconds) < 5 or (time.perf_counter() - began < self.seconds and len(ours.seconds) < 200):
            for call in calls:
                call.once()
        upper = at_most is not None
        pairs = [a / b if upper else b / a for a, b in zip(ours.seconds, peer.seconds, strict=True)]
        best = min(ours.seconds) / min(peer.seconds)
        floor = peer if peer.timed else calls[-1] if limit else None
        self._add(
            Row(
                group,
                ours.name,
                ours.median * 1e3,
                peer.name,
                peer.median * 1e3,
                "ms",
                statistics.median(pairs),
                best if upper else 1 / best,
                float(at_most if at_most is not None else at_least or 0),
                upper,
                len(pairs),
                nbytes / ours.median / 1e9 if nbytes else None,
                min(floor.seconds) / min(ours.seconds) if floor else None,
                ours.busy,
                peer.busy,
                min(ours.seconds) * 1e3,
                min(peer.seconds) * 1e3,
            )
        )

    def memory(self, group: str, name: str, ours: float, peer_name: str, peer: float, **bound: float) -> None:
        """Bytes that were measured before."""
        upper = "at_most" in bound
        ratio = ours / peer if upper else peer / max(ours, 1)
        target = next(iter(bound.values()))
        self._add(Row(group, name, ours / 1e6, peer_name, peer / 1e6, "MB", ratio, ratio, target, upper, 1))

    def leave_out(self, group: str, reason: str) -> None:
        self.left_out.append(f"{group}: {reason}")

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        self._console.print(f"{row.group}: {row.name}: {row.ratio:.2f}", style="dim", highlight=False)


def _anew(call: Call) -> Call:
    return Call(call.name, call.run, call.check, call.prepare, call.timed)


def _torch() -> Any:
    try:
        return torch_or_skip()
    except pytest.skip.Exception:
        return None


def table(run: Run, title: str) -> Table:
    result = Table(title=title, caption=_CAPTION, caption_justify="left")
    for heading, right in (
        ("data", False),
        ("gossamer", False),
        ("median", True),
        ("beside", False),
        ("median", True),
        ("ratio", True),
        ("of best", True),
        ("target", True),
        ("", False),
        ("GB/s", True),
        ("% of limit", True),
        ("busy", True),
        ("turns", True),
    ):
        result.add_column(heading, justify="right" if right else "left", no_wrap=True)
    before = None
    for row in run.rows:
        if before is not None and row.group != before:
            result.add_section()
        verdict = "[green]OK[/]" if row.met else "[red]MISS[/]"
        busy = [f"{p:.1f}" for p in (row.processors, row.peer_processors) if p is not None]
        result.add_row(
            row.group if row.group != before else "",
            row.name,
            f"{row.ours:.2f} {row.unit}",
            row.peer_name,
            f"{row.peer:.2f} {row.unit}",
            f"{row.ratio:.2f}",
            f"{row.ratio_of_best:.2f}",
            f"{'≤' if row.at_most else '≥'} {row.bound:g}",
            verdict,
            "" if row.gb_per_s is None else f"{row.gb_per_s:.1f}",
            "" if row.share_of_limit is None else f"{100 * row.share_of_limit:.0f}",
            " : ".join(busy),
            str(row.rounds),
        )
        before = row.group
    return result


_CAPTION = (
    "ratio: gossamer / the other where the target is a ≤, the other / gossamer where it is a ≥; the median of pairs. "
    "of best: that of the best times. % of limit: the best time of the streaming passes over this data / gossamer's. "
    "busy: processors at work on average, gossamer : the other. turns: pairs measured."
)


def measure(what: str, groups: dict[str, Callable[[Run], None]], sizes: dict[bool, tuple[Size, ...]]) -> int:
    """The program of a file of targets: measures groups, prints their table; -> exit status, 0 if all are met."""
    parser = argparse.ArgumentParser(description=f"Measures {what} against its targets.")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, in the caches: tries the program, no targets"
    )
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups), metavar="GROUP", help=str([*groups]))
    parser.add_argument("--threads", type=int, default=2, help="of all libraries; the targets are for %(default)s")
    parser.add_argument("--seconds", type=float, default=1.0, help="about how long a row takes; at least five turns")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args()
    gs.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 200)
    header = describe_run()
    console.print("\n".join(header), highlight=False)
    progress = Console(stderr=True)
    try:
        run = Run(sizes[options.quick], options.threads, options.seconds, progress)
    except (OSError, subprocess.SubprocessError) as error:
        console.print(f"the read kernel needs a C++ compiler: {error}")
        return 2
    for group in options.only:
        groups[group](run)
    console.print(table(run, f"{what} against its targets"))
    for reason in run.left_out:
        console.print(f"left out: {reason}", highlight=False)
    missed = [row for row in run.rows if not row.met]
    note = "; small sizes: this says nothing about the targets" if options.quick else ""
    console.print(f"{len(run.rows) - len(missed)} of {len(run.rows)} met{note}", highlight=False)
    if options.json:
        rows = [asdict(row) | {"met": row.met} for row in run.rows]
        document = {
            "run": header,
            "threads": options.threads,
            "torch_threads": run.torch.get_num_threads() if run.torch else None,
            "quick": options.quick,
            "left_out": run.left_out,
            "rows": rows,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if options.quick or not missed else 1
