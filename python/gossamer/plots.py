# SPDX-License-Identifier: Apache-2.0
"""The pictures of a report: accuracy against sparsity, accuracy over time, density per layer, inputs still used.

And those of ``gossamer bench``: its products under the machine's limits, against dense ones, and bytes per second.

Each function takes a report (see :mod:`gossamer.reporting`) and returns a matplotlib figure, or None where the report
lacks what the picture needs. matplotlib is imported on first use and without pyplot: no window, no global state.
Colours are Okabe and Ito's, which stay apart for colour-blind readers; nothing is told by colour alone.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gossamer.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BENCH_PLOTS", "PLOTS", "checkpoint_tensors", "save_plot", "save_plots"]

Report = Mapping[str, Any]
Plots: TypeAlias = "Mapping[str, Callable[[Report], Figure | None]]"

BLUE, ORANGE, GREEN, INK, GREY, PALE = "#0072B2", "#D55E00", "#009E73", "#1F2933", "#5F6B76", "#E4E8EC"
PINK = "#CC79A7"
SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PINK, "^"), (INK, "v"))  # colour and marker of one series each
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALE,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "lines.linewidth": 2.2,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.hashsalt": "gossamer",  # ids in the SVG depend on content only
}


def save_plots(folder: Path, report: Report, plots: Plots | None = None) -> list[str]:
    """Draw what the report holds (default: `PLOTS`) as NAME.svg and NAME.png in `folder`; the names in order.

    Equal reports give equal bytes (with one version of matplotlib). Raises OSError where a file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = []
    with matplotlib.rc_context(STYLE):
        for name, draw in (PLOTS if plots is None else plots).items():
            figure = draw(report)
            if figure is not None:
                FigureCanvasAgg(figure)
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
                names.append(name)
    return names


def accuracy_against_sparsity(report: Report) -> Figure | None:
    """The validation metric of each round, beside cutting once without training and the dense network."""
    measure = _Measure(report)
    rounds = [entry for entry in report.get("history", ()) if entry.get(measure.key) is not None]
    if not rounds:
        return None
    figure, (axes,) = _figure(1)
    dense = report.get("dense", {}).get(f"validation_{measure.name}")
    start = [] if dense is None else [{"sparsity": 0.0, measure.key: dense}]
    if dense is not None:
        axes.axhline(measure.scale * dense, color=GREY, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1.5)
        _note(axes, (0, measure.scale * dense), (2, 6), f"dense {measure.text(dense)}", GREY, "left", "normal")
    cut = report.get("one_shot", {}).get("curve", ())
    for entries, color, marker, line, label in (
        (cut, ORANGE, "s", "--", "pruned in one shot"),
        ([e for e in rounds if e.get("accepted")], BLUE, "o", "-", "pruned in rounds, with training"),
    ):
        if entries:
            points = sorted([*start, *entries], key=lambda entry: float(entry["sparsity"]))
            x, y = _percent(points), measure.values(points)
            axes.plot(x, y, color=color, marker=marker, linestyle=line, label=label)
            offset = -4 if entries is cut else -17  # the second is often close to the line of the dense network
            _note(axes, (x[-1], y[-1]), (9, offset), measure.text(points[-1][measure.key]), color, "left")
    rejected = [entry for entry in rounds if not entry.get("accepted")]
    if rejected:
        x, y = _percent(rejected), measure.values(rejected)
        axes.plot(x, y, "o", markerfacecolor="white", markeredgecolor=BLUE, markeredgewidth=1.8, label="round rejected")
    axes.set_xlabel("weights removed (%)")
    axes.set_ylabel(measure.label)
    axes.margins(0.05, 0.14)
    axes.set_xlim(right=1.12 * axes.dataLim.x1)  # room for the two numbers
    axes.legend(loc="lower left" if measure.name == "accuracy" else "upper left")
    title = f"{measure.name.capitalize()} as weights are removed"
    if cut and dense is not None and cut[-1]["accuracy"] + 0.05 < dense < rounds[-1]["accuracy"] + 0.02:
        title = "Pruning in rounds keeps the accuracy that one cut loses"  # said only where it is true
    return _titled(figure, axes, title, _subject(report))


def accuracy_over_time(report: Report) -> Figure | None:
    """The validation metric (above) and the sparsity (below) after each epoch or round."""
    measure = _Measure(report)
    curve = [point for point in report.get("curve", ()) if point.get(measure.key) is not None]
    if len(curve) < 2:
        return None
    figure, (upper, lower) = _figure(2)
    steps = [point["step"] for point in curve]
    upper.plot(steps, measure.values(curve), color=BLUE, marker="o", markersize=4)
    lower.fill_between(steps, _percent(curve), color=GREEN, alpha=0.22, linewidth=0, step="pre")
    lower.plot(steps, _percent(curve), color=GREEN, drawstyle="steps-pre")
    _note(lower, (steps[-1], _percent(curve)[-1]), (0, -17), f"{_percent(curve)[-1]:.1f} %", GREEN, "right")
    start = 0.0
    for phase, words in (("dense", "dense training"), ("prune", "pruning in rounds"), ("fine-tune", "fine-tuning")):
        ends = [step for step, point in zip(steps, curve, strict=True) if point["phase"] == phase]
        if not ends:
            continue
        if start:
            for axes in (upper, lower):
                axes.axvline(start, color=GREY, linewidth=1.2, linestyle=":")
        if ends[-1] - start > 0.13 * steps[-1]:
            middle, place = (start + ends[-1]) / 2, upper.get_xaxis_transform()
            upper.text(middle, 0.03, words, color=GREY, fontsize=10.5, ha="center", transform=place)
        start = ends[-1]
    upper.set_ylabel(measure.label)
    upper.margins(y=0.14)
    lower.set_ylabel("removed (%)")
    lower.set_ylim(0, 108)
    lower.set_yticks([0, 50, 100])
    lower.set_xlabel(report.get("unit", "training step"))
    lower.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    lower.locator_params(axis="x", integer=True)
    title = f"{measure.name.capitalize()} while the network is trained and thinned"
    return _titled(figure, upper, title, _subject(report))


def density_per_layer(report: Report) -> Figure | None:
    """The share of weights that each layer keeps, with the counts."""
    layers = report.get("layers", ())
    if not layers:
        return None
    figure, (axes,) = _figure(1, height=1.7 + 0.62 * len(layers))
    densities = [100 * layer["density"] for layer in layers]
    names = [" ".join([layer["name"], _shape(layer.get("shape", ()))]) for layer in layers]
    bars = axes.barh(names, densities, color=BLUE, height=0.62)
    counts = [f" {d:.1f} %   {layer['nnz']:,} of {layer['size']:,}" for d, layer in zip(densities, layers, strict=True)]
    axes.bar_label(bars, counts, color=INK, padding=3)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, max(1.0, 1.75 * max(densities)))
    axes.set_xlabel("weights kept (%)")
    return _titled(figure, axes, "Where the remaining weights are", _subject(report))


def inputs_used(report: Report) -> Figure | None:
    """For images: how many first-layer weights each pixel keeps."""
    counts = report.get("inputs", ())
    if not counts:
        return None
    figure, (axes,) = _figure(1, width=5.6, height=5.0)
    axes.grid(visible=False)
    axes.set_axis_off()
    picture = axes.imshow(counts, cmap="cividis", vmin=0, interpolation="nearest")
    figure.colorbar(picture, ax=axes, shrink=0.85, label="first-layer weights kept").outline.set_visible(False)
    unused = sum(count == 0 for row in counts for count in row)
    seen = f"{unused} of {sum(len(row) for row in counts)} are not read at all"
    return _titled(figure, axes, "The pixels that the pruned network looks at", seen)


def checkpoint_tensors(report: Report) -> Figure | None:
    """The largest tensors of ``gossamer inspect``: the share that is kept, pattern, dtype, shape, bytes."""
    tensors = sorted(report.get("tensors", ()), key=lambda tensor: -tensor["bytes"])
    shown = [tensor for tensor in tensors if tensor["sparsity"] is not None][:40]
    if not shown:
        return None
    figure, (axes,) = _figure(1, width=9.6, height=1.7 + 0.36 * len(shown))
    names = [tensor["name"] if len(tensor["name"]) <= 48 else "…" + tensor["name"][-47:] for tensor in shown]
    places, kept = range(len(shown)), [100 * (1 - tensor["sparsity"]) for tensor in shown]
    axes.barh(places, [100] * len(shown), color=PALE, height=0.62)
    bars = axes.barh(places, kept, color=BLUE, height=0.62)
    words = [
        f"{share:.1f} %  {tensor['pattern'] if tensor['pattern'] != 'none' else ''}"
        for share, tensor in zip(kept, shown, strict=True)
    ]
    axes.bar_label(bars, words, color=INK, padding=4, fontsize=9)
    for place, tensor in zip(places, shown, strict=True):
        text = f"{tensor['dtype']} {_shape(tensor['shape'])}   {tensor['bytes']:,} → {tensor['packed_bytes']:,}"
        axes.text(132, place, text, color=GREY, fontsize=9, va="center")
    axes.set_yticks(places, names, fontsize=9)
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 225)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_xlabel("not zero (%); then dtype, shape, bytes now → as a bitmask")
    rest = len(tensors) - len(shown)
    about = f"{report.get('path', '')}: {len(tensors)} tensors" + (f", the largest {len(shown)}" if rest else "")
    return _titled(figure, axes, f"{100 * report['sparsity']:.2f} % of all elements are zero", about)


def save_plot(target: Path, draw: Callable[[Report], Figure | None], report: Report) -> None:
    """One picture, as what the name ends in (svg, png, pdf); whole or not at all. ValueError where there is nothing."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({**STYLE, "text.parse_math": False}), warnings.catch_warnings():  # names with $
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = draw(report)
        if figure is None:
            raise ValueError("plot: the report must hold something to draw, got nothing")
        FigureCanvasAgg(figure)
        data, ending = io.BytesIO(), target.suffix[1:].lower()
        dates = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
        figure.savefig(data, format=ending, metadata=dates[ending])
    replace_file(target, data.getvalue())


PLOTS: dict[str, Callable[[Report], Figure | None]] = {
    "accuracy_against_sparsity": accuracy_against_sparsity,
    "accuracy_over_time": accuracy_over_time,
    "density_per_layer": density_per_layer,
    "inputs_used": inputs_used,
}


def roofline(report: Report) -> Figure | None:
    """The products' rates on their non-zeros against operations per byte, under the limits of the machine."""
    rows = [row for row in report.get("rows", ()) if row.get("gflops") and row.get("gb_per_s")]
    if not rows:
        return None
    limits = report["limits"]
    read, peak = limits["read_gb_per_s"], limits["gflops"]
    figure, (axes,) = _figure(1)
    intensities = [row["flops"] / row["nbytes"] for row in rows]
    left, right = 0.7 * min(*intensities, peak / read), 1.6 * max(*intensities, peak / read)
    axes.plot([left, peak / read, right], [left * read, peak, peak], color=INK, linewidth=1.6, zorder=1.5)
    _note(axes, (left, left * read), (2, -16), f"read {read:.0f} GB/s", GREY, "left", "normal")
    _note(axes, (right, peak), (-2, 6), f"dense product {peak:.0f} GFLOP/s", GREY, "right", "normal")
    for suite, (color, marker) in zip(dict.fromkeys(row["suite"] for row in rows), SERIES, strict=False):
        own = [(x, row["gflops"]) for x, row in zip(intensities, rows, strict=True) if row["suite"] == suite]
        axes.plot(*zip(*own, strict=True), marker, color=color, alpha=0.8, label=suite)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte moved", ylabel="GFLOP/s on the non-zeros")
    axes.set_ylim(top=1.6 * max(peak, *(row["gflops"] for row in rows)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")  # powers would need mathematical text
    axes.legend(loc="lower right")
    return _titled(figure, axes, "Products below the limits of the machine", _machine(report))


def speedup_over_dense(report: Report) -> Figure | None:
    """Times the best dense product against sparsity, a line for each number of columns."""
    rows = [row for row in report.get("rows", ()) if row["suite"] == "spmm" and row.get("dense")]
    shapes = [tuple(row["shape"]) for row in rows]
    largest = max(shapes, key=lambda shape: int(shape[0]) * int(shape[1]), default=None)
    rows = [row for row, shape in zip(rows, shapes, strict=True) if shape == largest]
    columns = sorted({row["n"] for row in rows}, reverse=True)
    if not rows:
        return None
    figure, (axes,) = _figure(1)
    axes.axhline(1, color=GREY, linewidth=1.4, linestyle=(0, (5, 3)), zorder=1.5)
    names = " or ".join(sorted({row["dense"]["name"] for row in rows}))
    _note(axes, (_percent(rows)[0], 1), (0, -15), f"break-even with dense ({names})", GREY, "left", "normal")
    for n, (color, marker) in zip(columns, SERIES, strict=False):
        own = sorted((row for row in rows if row["n"] == n), key=lambda row: float(row["sparsity"]))
        x, y = _percent(own), [row["dense"]["ratio"] for row in own]
        axes.plot(x, y, color=color, marker=marker, label=f"{n} columns")
        crossing = breakeven(x, y)
        if crossing is not None:
            axes.plot([crossing], [1], marker="x", color=color, markeredgewidth=2.2, linestyle="none")
            _note(axes, (crossing, 1), (0, 7), f"{crossing:.0f} %", color)
    axes.set_ylim(bottom=min(0.7, *(0.8 * row["dense"]["ratio"] for row in rows)))
    axes.set(yscale="log", xlabel="weights removed (%)", ylabel="times as fast as the best dense product")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if value in (0.5, 2, 3, 5) else "")
    axes.legend(loc="upper left")
    return _titled(figure, axes, f"Sparse against dense, {_shape(rows[0]['shape'])} float32", _machine(report))


def breakeven(sparsities: Sequence[float], ratios: Sequence[float]) -> float | None:
    """Where a ratio rises through 1, between the measured points in logarithms; None where it never does."""
    points = list(zip(sparsities, ratios, strict=True))
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 < 1 <= y1:
            return x0 + (x1 - x0) * -math.log(y0) / (math.log(y1) - math.log(y0))
    return None


def bytes_per_second(report: Report) -> Figure | None:
    """Selection and products of one column: the bytes that have to move, per second, and those of a plain read."""
    rows = [row for row in report.get("rows", ()) if row["suite"] in ("select", "spmv") and row.get("gb_per_s")]
    if not rows:
        return None
    figure, (axes,) = _figure(1, height=1.8 + 0.4 * len(rows))
    bars = axes.barh(
        [row["name"] for row in rows],
        [row["gb_per_s"] for row in rows],
        color=[BLUE if row["suite"] == "select" else GREEN for row in rows],
        height=0.62,
    )
    axes.bar_label(
        bars,
        [f" {row['gb_per_s']:.1f}   {100 * (row.get('share_of_limit') or 0):.0f} % of a read" for row in rows],
        padding=3,
    )
    read = report["limits"]["read_gb_per_s"]
    axes.axvline(read, color=GREY, linewidth=1.4, linestyle=(0, (5, 3)))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.5 * max(read, *(row["gb_per_s"] for row in rows)))
    axes.set_xlabel(f"GB/s (dashed: a plain read of memory, {read:.1f})")
    return _titled(figure, axes, "Selection (blue), one column (green)", _machine(report))


def _machine(report: Report) -> str:
    machine = report.get("machine", {})
    isa = machine.get("gossamer", {}).get("isa")
    return f"{machine.get('processor', '')} · {isa} · {report.get('threads')} threads"


BENCH_PLOTS: Plots = {
    "roofline": roofline,
    "speedup_over_dense": speedup_over_dense,
    "bytes_per_second": bytes_per_second,
}


def _figure(panels: int, width: float = 7.6, height: float = 4.6) -> tuple[Figure, tuple[Axes, ...]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height if panels == 1 else height + 0.8), layout="constrained")
    ratios = (2.4, 1.0)[:panels]
    axes = figure.subplots(panels, sharex=True, squeeze=False, height_ratios=ratios)
    return figure, tuple(axes[:, 0])


def _titled(figure: Figure, axes: Axes, title: str, subtitle: str) -> Figure:
    axes.set_title(f"{title}\n", loc="left", fontsize=13.5, fontweight="bold", color=INK)
    axes.annotate(
        subtitle, (0, 1), (0, 7), xycoords="axes fraction", textcoords="offset points", color=GREY, fontsize=10.5
    )
    return figure


def _note(
    axes: Axes,
    at: tuple[float, float],
    offset: tuple[float, float],
    text: str,
    color: str,
    side: str = "center",
    weight: str = "bold",
) -> None:
    axes.annotate(text, at, offset, textcoords="offset points", color=color, ha=side, fontweight=weight)


class _Measure:
    """How a report's validation metric is drawn: accuracies in percent, losses as they are."""

    def __init__(self, report: Report) -> None:
        self.name = str(report.get("metric", "accuracy"))
        self.key, self.scale, self.label = (
            ("accuracy", 100.0, "validation accuracy (%)")
            if self.name == "accuracy"
            else ("validation_loss", 1.0, "validation loss")
        )

    def values(self, points: Sequence[Mapping[str, Any]]) -> list[float]:
        return [self.scale * float(point[self.key]) for point in points]

    def text(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.name == "accuracy" else f"{value:.3f}"


def _percent(points: Sequence[Mapping[str, Any]], key: str = "sparsity") -> list[float]:
    return [100 * float(point[key]) for point in points]


def _shape(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _subject(report: Report) -> str:
    """One line below the title: model, data, method."""
    known = [str(report[key]) for key in ("model", "data", "method") if report.get(key)]
    return " · ".join(known)
