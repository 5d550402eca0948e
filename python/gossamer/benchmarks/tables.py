# SPDX-License-Identifier: Apache-2.0
"""A report of :func:`gossamer.benchmarks.run` as tables of text, and as bench.json, bench.md and pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gossamer import plots, reporting

Report = Mapping[str, Any]


def write(folder: Path, report: Report) -> None:
    """bench.json, bench.md and the pictures, into an existing folder."""
    (folder / "bench.json").write_text(reporting.to_json(report), encoding="utf-8")
    pictures = plots.save_plots(folder, report, plots.BENCH_PLOTS)
    (folder / "bench.md").write_text(markdown(report, pictures), encoding="utf-8")


def markdown(report: Report, pictures: list[str]) -> str:
    lines = [f"# {report['title']}", "", *(f"- {line}" for line in about(report)), ""]
    for suite, rows in tables(report):
        lines += [f"## {suite}", "", *reporting.table(rows), ""]
    lines += [f"- {line}" for line in remarks(report)]
    for name in pictures:
        lines += ["", f"![{name.replace('_', ' ')}]({name}.svg)"]
    return "\n".join(lines).rstrip() + "\n"


def about(report: Report) -> list[str]:
    """The machine, the limits, the peers and their threads, and warnings."""
    machine, limits = report["machine"], report["limits"]
    peers = [f"{name} {peer['version']} ({peer['kind']})" for name, peer in report["peers"].items()]
    lines = [
        f"{machine['processor']}, gossamer {report['version']} ({machine['gossamer']['isa']}), "
        f"{report['threads']} threads for everyone",
        f"read limit {limits['read_gb_per_s']:.1f} GB/s ({limits['read_source']})",
        f"multiply-add limit {limits['gflops']:.0f} GFLOP/s float32 ({limits['gflops_source']})",
        f"peers: {', '.join(peers)}" + (f"; not installed: {', '.join(report['absent'])}" if report["absent"] else ""),
        f"threads: {'; '.join(machine['pools'])}",
    ]
    return lines + [f"WARNING: {text}" for text in report["warnings"]]


def tables(report: Report) -> Iterator[tuple[str, list[list[str]]]]:
    """(suite, rows of text with a head), as far as the suites were measured; columns that stay empty are left out."""
    for suite in dict.fromkeys(row["suite"] for row in report["rows"]):
        rows = [[*HEAD], *(_cells(row) for row in report["rows"] if row["suite"] == suite)]
        used = [i for i in range(len(HEAD)) if any(row[i] for row in rows[1:])]
        yield suite, [[row[i] for i in used] for row in rows]


HEAD = ("case", "format", "median", "±", "GFLOP/s", "GB/s", "% of limit", "dense", "sparse", "beside", "target")


def remarks(report: Report) -> list[str]:
    """Figures over many rows, and how many targets are met."""
    lines = []
    for entry in report["summary"]:
        verdict = "" if "met" not in entry else f", target {entry['bound']:g}: {_verdict(entry['met'])}"
        lines.append(f"{entry['name']} ({entry['rows']} rows): {entry['value']:.2f} ×{verdict}")
    judged = [t["met"] for row in report["rows"] for t in row["targets"]] + [
        entry["met"] for entry in report["summary"] if "met" in entry
    ]
    if judged:
        lines.append(f"{sum(judged)} of {len(judged)} targets met")
    for note in dict.fromkeys(note for row in report["rows"] for note in row["notes"]):
        named = [row["name"] for row in report["rows"] if note in row["notes"]]
        lines.append(f"{note} ({named[0]}{f' and {len(named) - 1} more rows' if len(named) > 1 else ''})")
    return lines


def _cells(row: Mapping[str, Any]) -> list[str]:
    ours = next(c for c in row["contestants"] if c["name"] == "gossamer")
    low, high = ours["quartiles"]
    best = [f"{row[kind]['name']} {row[kind]['ratio']:.2f}" if row.get(kind) else "" for kind in ("dense", "sparse")]
    others = [c for c in row["contestants"] if c is not ours and c["kind"] not in ("dense", "sparse", "limit")]
    share = row.get("share_of_limit")
    return [
        row["name"] + ("*" if row["notes"] else ""),
        row.get("format") or "",
        duration(ours["median"]),
        f"{50 * (high - low) / ours['median']:.0f} %",
        "" if row["gflops"] is None else f"{row['gflops']:.1f}",
        "" if row["gb_per_s"] is None else f"{row['gb_per_s']:.1f}",
        "" if share is None else f"{100 * share:.0f} {row['limit']}",
        *best,
        ", ".join(f"{c['name']} {c['median'] / ours['median']:.2f}" for c in others),
        "; ".join(map(_target, row["targets"])),
    ]


def _target(target: Mapping[str, Any]) -> str:
    against, bound = target["against"], target["bound"]
    if against == "seconds":
        asked = f"≤ {duration(bound)}"
    elif against == "limit":
        asked = f"≥ {100 * bound:.0f} % of limit"
    else:
        asked = f"≥ {bound:g} × {against}"
    return f"{asked}: {_verdict(target['met'])}"


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
