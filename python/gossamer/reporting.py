# SPDX-License-Identifier: Apache-2.0
"""Reports: report.json for machines, report.md for people, plots as SVG and PNG; complete or not at all.

A report is a dict of plain values. What the writers and the plots look at, all of it optional:

``title model data method seed metric unit notes``  texts
``dense one_shot final``  networks: ``accuracy loss`` on test data, ``validation_accuracy validation_loss``, and
                          ``sparsity bytes flops``
``one_shot.curve``        what cutting once gives at other sparsities: ``sparsity accuracy`` (validation)
``history``               one entry a round: ``sparsity validation_loss accuracy accepted`` (validation)
``curve``                 one entry an epoch or round: ``step phase accuracy validation_loss sparsity`` (validation)
``layers``                ``name nnz size density shape``
``inputs``                first-layer weights kept per pixel, in rows
``seconds``               of everything
"""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer import plots

if TYPE_CHECKING:
    from gossamer.tuning import Result

__all__ = ["markdown", "save_report", "staged", "table", "to_json", "tune_report", "write_report"]

Report = Mapping[str, Any]


@contextmanager
def staged(folder: str | PathLike[str]) -> Iterator[Path]:
    """A folder to write into, whose content appears in `folder` once the block ends without an error.

    `folder` is made if need be, with its parents; files of the same names in it are replaced, others stay. Everything
    is written before the first file moves, on the same file system, so a full disk leaves nothing half-written.
    Raises OSError at once where nothing can be written.
    """
    target = Path(folder).absolute()
    base = target
    while not base.exists() and not base.is_symlink():  # the nearest there is; if it is no folder, mkdir fails
        base = base.parent
    stage = base / f".gossamer-{secrets.token_hex(6)}"
    try:
        stage.mkdir()
        yield stage
        for path in stage.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # some file systems tell only now that they are full
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(stage.iterdir()):
            os.replace(path, target / path.name)
    except OSError as error:
        if error.filename is not None and not Path(error.filename).is_relative_to(stage):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(folder)) from error  # the folder the caller knows
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def save_report(folder: str | PathLike[str], report: Report) -> None:
    """`write_report` into `folder`, complete or not at all. Raises OSError."""
    with staged(folder) as stage:
        write_report(stage, report)


def write_report(folder: Path, report: Report) -> None:
    """report.json, report.md and the plots the report has values for, into an existing folder."""
    (folder / "report.json").write_text(to_json(report), encoding="utf-8")
    names = plots.save_plots(folder, report)
    (folder / "report.md").write_text(markdown(report, names), encoding="utf-8")


def to_json(report: Report) -> str:
    """The report as strict JSON: infinities and NaN become null."""
    return json.dumps(_plain(report), indent=2, allow_nan=False) + "\n"


def markdown(report: Report, pictures: list[str] | None = None) -> str:
    """The report as Markdown: the table of networks, the pictures (by name, as SVG files beside it), the rounds."""
    lines = [f"# {report.get('title', 'gossamer report')}", ""]
    about = [f"{key}: {report[key]}" for key in ("data", "model", "method", "seed") if report.get(key) is not None]
    lines += [" · ".join(about), ""] if about else []
    rows = summary(report)
    lines += [*table(rows), ""] if rows else []
    lines += [f"- {note}" for note in report.get("notes", ())]
    for name in pictures or ():
        lines += ["", f"![{name.replace('_', ' ')}]({name}.svg)"]
    if report.get("history"):
        lines += ["", "## Rounds", "", *table(rounds(report))]
    return "\n".join(lines).rstrip() + "\n"


def summary(report: Report, *, all_columns: bool = True) -> list[list[str]]:
    """The networks side by side, as text: a head row, then dense, one shot and final, as far as the report has them.

    Without `all_columns`, what fits a terminal: no losses, no validation.
    """
    columns = {
        "accuracy": ("test accuracy", percent),
        "validation_accuracy": ("validation accuracy", percent),
        "loss": ("test loss", "{:.4f}".format),
        "validation_loss": ("validation loss", "{:.4f}".format),
        "sparsity": ("removed", percent),
        "bytes": ("bytes", "{:,}".format),
        "flops": ("FLOPs", "{:,}".format),
    }
    networks = {"dense": "dense", "one_shot": "pruned in one shot", "final": "pruned in rounds"}
    found = {label: report[key] for key, label in networks.items() if report.get(key)}
    used = [key for key in columns if any(values.get(key) is not None for values in found.values())]
    used = [key for key in used if all_columns or key in ("accuracy", "sparsity", "bytes", "flops")]
    rows = [[label, *("" if v.get(k) is None else columns[k][1](v[k]) for k in used)] for label, v in found.items()]
    return [["network", *(columns[key][0] for key in used)], *rows] if rows else []


def rounds(report: Report) -> list[list[str]]:
    """The history as text, a head row first."""
    rows = [["round", "removed", "validation loss", "validation accuracy", "verdict"]]
    for number, entry in enumerate(report.get("history", ()), start=1):
        loss = entry.get("validation_loss")
        values = ["" if loss is None else f"{loss:.4f}", percent(entry.get("accuracy"))]
        rows.append(
            [str(number), percent(entry["sparsity"]), *values, "accepted" if entry.get("accepted") else "rejected"]
        )
    return rows


def percent(share: float | None) -> str:
    """``0.95`` as ``95.00 %``; nothing for None."""
    return "" if share is None else f"{100 * share:.2f} %"


def tune_report(result: Result, folder: str | PathLike[str]) -> None:
    """report.json, report.md and plots of a `gossamer.tune` result. Raises OSError, with nothing half-written."""
    metric = result.budget.metric
    key = "accuracy" if metric == "accuracy" else "validation_loss"
    validation = f"validation_{metric}"
    start = {"step": 0, "phase": "dense", key: result.baseline, "sparsity": 0.0}
    history: list[dict[str, Any]] = [
        {"sparsity": entry.sparsity, key: entry.validation, "accepted": entry.accepted, "target": entry.target}
        for entry in result.history
    ]
    masks = result.mask if isinstance(result.mask, Mapping) else {"weights": result.mask}
    save_report(
        folder,
        {
            "title": f"gossamer tune: {percent(result.sparsity)} of the weights removed",
            "metric": metric,
            "budget": {"max_drop": result.budget.max_drop, "metric": metric},
            "dense": {validation: result.baseline, "sparsity": 0.0},
            "final": {metric: result.test, validation: result.validation, "sparsity": result.sparsity},
            "history": history,
            "curve": [start, *({"step": n, "phase": "prune", **entry} for n, entry in enumerate(history, start=1))],
            "unit": "round",
            "layers": [
                layer(name, mask.nnz, math.prod(mask.shape), shape=list(mask.shape)) for name, mask in masks.items()
            ],
            "seconds": sum(entry.seconds for entry in result.history),
        },
    )


def layer(name: str, nnz: int, size: int, **more: Any) -> dict[str, Any]:
    """An entry of a report's `layers`."""
    return {"name": name, "nnz": nnz, "size": size, "density": nnz / size if size else 0.0, **more}


def table(rows: list[list[str]]) -> list[str]:
    """Rows of text, the head first, as lines of Markdown."""
    head, *body = rows
    ruler = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(row) + " |" for row in (head, ruler, *body)]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
