# SPDX-License-Identifier: Apache-2.0
"""The ``gossamer`` command.

Results go to standard output, progress and errors to standard error. Exit status: 0, 1 where the work failed, 2 where
the command line is wrong, 130 after Ctrl-C. An error is one line; a traceback means a bug in gossamer.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

import gossamer as gs

__all__ = ["main"]

CHECKPOINTS = ("prune", "inspect", "convert")  # called like the functions whose messages they print
FAILURES = (OSError, ValueError, ArithmeticError, RuntimeError, MemoryError, ImportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit status."""
    name = "gossamer"
    try:
        options = _parser().parse_args(arguments)
        name = f"gossamer {options.command}"
        status: int = options.run(options)
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()  # a full disk behind a redirection shows here and not after main
        return status
    except _UsageError as error:
        return _fail(error.command, error, 2)
    except BrokenPipeError:
        # The reader has what it wanted. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(name, "interrupted", 130)
    except FAILURES as error:
        reason = _reason(error)
        command = name.removeprefix("gossamer ")
        return _fail(name, reason.removeprefix(f"{command}: ") if command in CHECKPOINTS else reason, 1)


def _train(options: argparse.Namespace) -> int:
    from gossamer import reporting
    from gossamer.training import data, recipe

    for name in ("data", "out"):
        if getattr(options, name) == "":
            raise _UsageError("gossamer train", f"{name} must not be empty")
    try:
        chosen = recipe.Options(options.method, options.sparsity, options.epochs, options.seed)
    except ValueError as error:
        raise _UsageError("gossamer train", str(error).removeprefix("train: ")) from error
    with _progress() as progress:
        progress("load", None, options.data or "the best data there is")
        loaded = data.load(options.data, seed=options.seed)
        progress(
            "load", 1.0, f"{loaded.name}: {len(loaded.x_train):,} + {len(loaded.x_valid):,} + {len(loaded.x_test):,}"
        )
        with reporting.staged(options.out) as stage:  # before the training: a folder that cannot be made costs no time
            outcome = recipe.run(loaded, chosen, progress)
            report = {
                "title": _title(outcome.report),
                "version": gs.__version__,
                "isa": gs.info()["isa"],
                **outcome.report,
            }
            progress("report", None, "plots")
            outcome.save(stage / "model.safetensors")
            reporting.write_report(stage, report)
        progress("report", 1.0, os.fspath(options.out))
    if options.json:
        print(reporting.to_json(report), end="")
    else:
        _print_table("Rounds, on validation data", reporting.rounds(report))
        _print_table(report["title"], reporting.summary(report, all_columns=False))
        for note in report["notes"]:
            _print(note)
        _print(f"{report['seconds']:.0f} s in all. Report, plots and the pruned model: {options.out}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from pathlib import Path

    from gossamer import benchmarks, reporting
    from gossamer.benchmarks import tables

    for name in ("out", "model"):
        if getattr(options, name) == "":
            raise _UsageError("gossamer bench", f"{name} must not be empty")
    try:
        chosen = benchmarks.Options(
            suites=options.suite or benchmarks.SUITES,
            peers=options.peers,
            seconds=options.seconds,
            threads=options.threads,
            quick=options.quick,
            model=None if options.model is None else Path(options.model),
        )
    except ValueError as error:
        raise _UsageError("gossamer bench", str(error).removeprefix("bench: ")) from error
    with _progress() as progress, ExitStack() as stack:
        stage = stack.enter_context(reporting.staged(options.out)) if options.out else None  # fails before the work
        report = benchmarks.run(chosen, progress)
        if stage is not None:
            progress("report", None, "pictures")
            tables.write(stage, report)
    if options.json:
        print(reporting.to_json(report), end="")
        return 0
    for line in tables.about(report):
        _print(line)
    for suite, rows in tables.tables(report):
        _print_table(suite, rows)
    for line in tables.remarks(report):
        _print(line)
    if options.out:
        _print(f"{report['seconds']:.0f} s in all. bench.json, bench.md and pictures: {options.out}")
    return 0


def _prune(options: argparse.Namespace) -> int:
    from gossamer import reporting
    from gossamer.checkpoints.pruning import Options

    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(options).items()
        if name in Options.__dataclass_fields__
    }
    try:
        Options(**chosen)
    except ValueError as error:
        raise _UsageError("gossamer prune", str(error).removeprefix("prune: ")) from error
    with _progress() as progress:
        done = gs.checkpoints.prune(
            options.source,
            options.out,
            **chosen,
            force=options.force,
            scheduler=options.scheduler,
            progress=progress,
        )
    if options.json:
        tensors = [
            {"name": t.name, "shape": t.shape, "dtype": t.dtype, "nnz": t.nnz, "sparsity": t.sparsity}
            for t in done.tensors
        ]
        totals = {name: getattr(done, name) for name in ("sparsity", "untouched", "bytes_before", "bytes_after")}
        report = {"out": os.fspath(done.path), **totals, "resumed": done.resumed, "seconds": done.seconds}
        print(reporting.to_json({**report, "tensors": tensors}), end="")
        return 0
    words = f"{len(done.tensors)} tensors pruned, {done.untouched} left as they were: "
    words += f"{reporting.percent(done.sparsity)} of the pruned ones' weights are zero. "
    _print(f"{words}{done.bytes_before:,} bytes -> {done.bytes_after:,}, {done.seconds:.1f} s: {done.path}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from dataclasses import asdict
    from pathlib import Path

    from gossamer import plots, reporting

    if options.plot is not None and Path(options.plot).suffix.lower() not in (".svg", ".png", ".pdf"):
        raise _UsageError("gossamer inspect", f"plot must end in .svg, .png or .pdf, got {options.plot!r}")
    with _progress() as progress:
        found = gs.checkpoints.inspect(options.source, progress=progress)
    tensors = [{**asdict(t), "size": t.size, "sparsity": t.sparsity} for t in found.tensors]
    report = {
        "path": os.fspath(found.path),
        "files": found.files,
        "file_bytes": found.file_bytes,
        "sparsity": found.sparsity,
        **{name: found.total(name) for name in ("size", "bytes", "packed_bytes", "dense_flops", "flops")},
        "metadata": found.metadata,
        "tensors": tensors,
    }
    plain = [{**t, "name": _plain(t["name"])} for t in tensors]  # names may be anything
    if options.plot is not None:
        plots.save_plot(Path(options.plot), plots.checkpoint_tensors, {**report, "tensors": plain})
    if options.json:
        print(reporting.to_json(report), end="")
        return 0
    head = ["tensor", "shape", "dtype", "zero", "pattern", "bytes", "packed", "FLOPs", "kept"]
    rows = [[t["name"], "×".join(map(str, t["shape"])), t["dtype"], *_figures(t)] for t in plain]
    total = [f"{len(tensors)} tensors", _short(found.total("size")), "", *_figures({**report, "pattern": ""})]
    _print_table(_plain(os.fspath(found.path)), [head, *rows, total])
    return 0


def _figures(entry: dict[str, Any]) -> list[str]:
    from gossamer import reporting

    numbers = (entry[name] for name in ("bytes", "packed_bytes", "dense_flops", "flops"))
    return [reporting.percent(entry["sparsity"]), entry["pattern"], *map(_short, numbers)]


def _short(number: int) -> str:
    """Four digits and a power of a thousand: ``1.234 M``."""
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {letter}"
    return str(number)


def _convert(options: argparse.Namespace) -> int:
    with _progress() as progress:
        done = gs.checkpoints.convert(
            options.source, options.out, storage=options.storage, tensor=options.tensor, progress=progress
        )
    if options.json:
        report = {"out": os.fspath(done.path), "storage": done.storage, "tensors": done.tensors}
        sizes = {"bytes_before": done.bytes_before, "bytes_after": done.bytes_after, "seconds": done.seconds}
        print(json.dumps({**report, **sizes}, indent=2))
        return 0
    words = f"{len(done.tensors)} tensors written as {done.storage}: "
    _print(f"{words}{done.bytes_before:,} bytes -> {done.bytes_after:,}, {done.seconds:.1f} s: {done.path}")
    return 0


def _info(options: argparse.Namespace) -> int:
    info = gs.info()
    if options.calibrate:
        from gossamer import plan

        with _progress() as progress:
            progress("measure", None, "what products cost here")
            info["costs measured"] = {"dtypes": list(plan.calibrate()), "folder": os.fspath(plan._cache())}
    if options.json:
        print(json.dumps(info, indent=2))
    else:
        rows = [[key.replace("_", " "), _words(value)] for key, value in info.items()]
        _print_table("gossamer", [["", ""], *rows], head=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    from gossamer.training.recipe import METHODS

    parser = _Parser(prog="gossamer", description="Score, select and multiply: pruned networks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"gossamer {gs.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)

    train = commands.add_parser(
        "train",
        help="train, prune, validate and report a network on real data",
        description="Train LeNet-300-100, show how it collapses when it is pruned in one shot, prune it in rounds of "
        "scoring, pruning, training and validation, and report what is left: accuracy, bytes, FLOPs, latency.",
        allow_abbrev=False,
    )
    train.add_argument(
        "--data",
        metavar="fashion-mnist|digits|DIR",
        help="DIR holds data.npz (x_train, y_train, x_test, y_test) or IDX files with Fashion-MNIST's names "
        "(default: fashion-mnist where it is installed, else digits)",
    )
    train.add_argument("--method", choices=METHODS, default="taylor", help="the score (default: %(default)s)")
    train.add_argument(
        "--sparsity", type=float, default=0.95, help="share of the weights to remove, in [0, 1) (default: %(default)s)"
    )
    train.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="epochs of dense training, and at most as many in a round and in fine-tuning "
        "(default: until validation stops improving, densely at least 1,500 steps)",
    )
    train.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same result (default: %(default)s)")
    train.add_argument(
        "--out",
        default="gossamer-train",
        metavar="DIR",
        help="folder for report.json, report.md, plots and model.safetensors (default: %(default)s)",
    )
    train.set_defaults(run=_train)

    pruner, inspector, converter = _checkpoint_parsers(commands)
    info = commands.add_parser("info", help="show version, instruction set, threads and build", allow_abbrev=False)
    info.add_argument(
        "--calibrate",
        action="store_true",
        help='measure what products cost here, for the plans of format="auto", and keep it for all processes to come',
    )
    info.set_defaults(run=_info)
    bench = commands.add_parser(
        "bench",
        help="measure selection and products beside other libraries and the machine's limits",
        description="Suites: select, spmm, spmv, nm, train, layers (default: all). Every answer is checked in float64 "
        "before it is timed; contestants take turns. numpy's dense product always takes part, with --peers also "
        "torch, onnxruntime, scipy and MKL where they are installed.",
        allow_abbrev=False,
    )
    bench.add_argument("suite", nargs="*", metavar="SUITE", help="select, spmm, spmv, nm, train or layers")
    bench.add_argument("--peers", action="store_true", help="all peers that are installed")
    bench.add_argument("--out", metavar="DIR", help="folder for bench.json, bench.md and pictures")
    bench.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="about how long a row takes (default: %(default)s)"
    )
    bench.add_argument("--threads", type=int, metavar="N", help="of all libraries (default: as many as gossamer takes)")
    bench.add_argument("--model", metavar="DIR", help="what `gossamer train --out DIR` wrote, for the suite layers")
    bench.add_argument("--quick", action="store_true", help="tiny sizes: tries the program, says nothing about speed")
    bench.set_defaults(run=_bench)
    for command in (train, pruner, inspector, converter, info, bench):
        command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _checkpoint_parsers(commands: Any) -> tuple[argparse.ArgumentParser, ...]:
    from gossamer.checkpoints.conversion import STORAGES as ALL_STORAGES
    from gossamer.checkpoints.pruning import DATA_FREE, STORAGES

    source = "a .safetensors file or a model.safetensors.index.json"
    prune = commands.add_parser(
        "prune",
        help="prune a safetensors checkpoint of any size, from file to file",
        description="Prune floating tensors of two or more axes; everything else stays byte for byte. At most 3 times "
        "the largest tensor and 200 MB are held. The output appears when all is done; the same command goes on where "
        "a killed one was.",
        allow_abbrev=False,
    )
    prune.add_argument("source", metavar="IN", help=source)
    prune.add_argument("-o", "--out", required=True, metavar="OUT", help="file to write; a folder where IN is an index")
    prune.add_argument("--sparsity", type=float, metavar="S", help="share of zeros, in [0, 1]; N:M needs none")
    prune.add_argument("--method", choices=DATA_FREE, default="magnitude", help="the score (default: %(default)s)")
    prune.add_argument(
        "--pattern", default="element", metavar="P", help="element, row, col, block:RxC or N:M (default: %(default)s)"
    )
    prune.add_argument("--group", choices=("tensor", "row", "global"), help="what competes (default: the method's own)")
    prune.add_argument("--include", action="append", default=[], metavar="GLOB", help="only tensors of such names")
    prune.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="no tensors of such names")
    prune.add_argument("--storage", choices=STORAGES, default="dense", help="of pruned tensors (default: %(default)s)")
    prune.add_argument("--seed", type=int, metavar="N", help="for --method random")
    prune.add_argument(
        "--min-density", type=float, default=0.0, metavar="D", help="share that each tensor keeps, for --group global"
    )
    prune.add_argument("--force", action="store_true", help="OUT may be IN itself, which is replaced")
    prune.add_argument(
        "--scheduler", metavar="ADDRESS", help="of a Dask cluster whose workers see IN and OUT: they do the work"
    )
    prune.set_defaults(run=_prune)

    inspect = commands.add_parser(
        "inspect",
        help="list a checkpoint's tensors: zeros, patterns, bytes, FLOPs",
        allow_abbrev=False,
    )
    inspect.add_argument("source", metavar="FILE", help=source)
    inspect.add_argument("--plot", metavar="OUT.svg", help="draw the largest tensors (.svg, .png or .pdf)")
    inspect.set_defaults(run=_inspect)

    convert = commands.add_parser(
        "convert",
        help="convert a checkpoint between dense, bitmask and scipy's .npz",
        description="From dense to bitmask, from bitmask to dense, to scipy's .npz (OUT.npz, or a folder with "
        "--storage npz) and back.",
        allow_abbrev=False,
    )
    convert.add_argument("source", metavar="IN", help=f"{source}, a .npz file or a folder of them")
    convert.add_argument("out", metavar="OUT", help="file to write; a folder where IN is an index")
    convert.add_argument("--storage", choices=ALL_STORAGES, help="(default: the other one of dense and bitmask)")
    convert.add_argument("--tensor", metavar="NAME", help="the one matrix of a .npz")
    convert.set_defaults(run=_convert)
    return prune, inspect, convert


class _UsageError(Exception):
    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(self.prog, f"{message} (see {self.prog} --help)")


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None, str], None]]:
    """A function `(phase, share done or None, words)` that draws one line a phase; nothing where nobody watches."""
    if not sys.stderr.isatty():
        yield lambda phase, share, words: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=32),
        TimeElapsedColumn(),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def update(phase: str, share: float | None, words: str) -> None:
            if phase not in tasks:
                for task in tasks.values():  # a phase is over when the next one begins
                    bars.update(task, total=1.0, completed=1.0)
                tasks[phase] = bars.add_task(phase, total=None, words="")
            bars.update(tasks[phase], total=None if share is None else 1.0, completed=share or 0.0, words=_plain(words))

        yield update
        for task in tasks.values():
            bars.update(task, total=1.0, completed=1.0)


def _print_table(title: str, rows: list[list[str]], head: bool = True) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_header=head)
    for number, name in enumerate(rows[0]):
        aside = head and number > 0
        table.add_column(Text(name), justify="right" if aside else "left", overflow="fold", no_wrap=aside)
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    _print(table)


def _print(what: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    width = None if sys.stdout is None or sys.stdout.isatty() else 160  # a file is as wide as need be
    console = Console(highlight=False, soft_wrap=isinstance(what, str), width=width)
    console.print(Text(what) if isinstance(what, str) else what)


def _title(report: dict[str, Any]) -> str:
    removed = f"{100 * report['final']['sparsity']:.2f} % of the weights removed"
    return f"{report['model']} on {report['data']}: {removed}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _plain(text: str) -> str:
    """`text` on one line, without anything a terminal might obey."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _fail(name: str, message: object, status: int) -> int:
    with suppress(OSError):  # where nobody is left to be told
        print(f"{name}: {_plain(str(message))}", file=sys.stderr, flush=True)
    return status
