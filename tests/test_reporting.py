# SPDX-License-Identifier: Apache-2.0
"""Reports: complete or not at all, deterministic, and readable."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import plots, reporting

REPORT: dict[str, Any] = {
    "title": "A network",
    "data": "digits",
    "model": "LeNet $x_1$",  # no mathematics in names
    "method": "taylor",
    "seed": 0,
    "dense": {"accuracy": 0.9, "validation_accuracy": 0.91, "sparsity": 0.0, "bytes": 1000, "flops": 500},
    "one_shot": {"accuracy": 0.3, "sparsity": 0.9, "curve": [{"sparsity": s, "accuracy": 1.2 - s} for s in (0.5, 0.9)]},
    "final": {"accuracy": 0.895, "sparsity": 0.9, "bytes": 100, "flops": 50},
    "history": [
        {"sparsity": 0.5, "validation_loss": 0.3, "accuracy": 0.9, "accepted": True},
        {"sparsity": 0.9, "validation_loss": float("nan"), "accuracy": 0.6, "accepted": False},
        {"sparsity": 0.9, "validation_loss": 0.31, "accuracy": 0.9, "accepted": True},
    ],
    "curve": [
        {"step": 10 * n, "phase": phase, "accuracy": 0.8 + n / 100, "sparsity": sparsity}
        for n, (phase, sparsity) in enumerate([("dense", 0.0), ("dense", 0.0), ("prune", 0.5), ("fine-tune", 0.9)])
    ],
    "layers": [reporting.layer("layer1", 5, 50, shape=[5, 10]), reporting.layer("layer2", np.int64(0), 0)],
    "inputs": [[0, 1], [2, 3]],
    "notes": ["A note."],
}  # fmt: skip
FILES = {"report.json", "report.md"} | {f"{name}.{end}" for name in plots.PLOTS for end in ("svg", "png")}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_report_has_all_its_files(tmp_path: Path) -> None:
    reporting.save_report(tmp_path / "a" / "b", REPORT)
    assert files(tmp_path) == {"a"}
    assert files(tmp_path / "a" / "b") == FILES
    found = json.loads((tmp_path / "a" / "b" / "report.json").read_text())
    assert found["final"] == REPORT["final"]
    assert found["history"][1]["validation_loss"] is None  # strict JSON
    assert found["layers"][1]["density"] == 0
    for name in plots.PLOTS:
        assert (tmp_path / "a" / "b" / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_equal_reports_give_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        reporting.save_report(tmp_path / name, REPORT)
    for name in FILES:
        content = (tmp_path / "a" / name).read_bytes()
        assert content == (tmp_path / "b" / name).read_bytes(), name
        assert not re.search(rb"20\d\d-\d\d-\d\d", content), name


def test_markdown() -> None:
    text = reporting.markdown(REPORT, ["accuracy_over_time"])
    assert text.startswith("# A network\n\ndata: digits · ")
    assert "| dense | 90.00 % | 91.00 % | 0.00 % | 1,000 | 500 |" in text
    assert "| pruned in one shot | 30.00 % |  | 90.00 % |  |  |" in text
    assert "![accuracy over time](accuracy_over_time.svg)" in text
    assert "| 2 | 90.00 % | nan | 60.00 % | rejected |" in text
    assert "- A note.\n" in text


def test_plots_only_of_what_is_there(tmp_path: Path) -> None:
    reporting.save_report(tmp_path, {"layers": REPORT["layers"]})
    assert files(tmp_path) == {"report.json", "report.md", "density_per_layer.svg", "density_per_layer.png"}
    assert reporting.markdown({}) == "# gossamer report\n"


def test_the_title_claims_only_what_is_true() -> None:
    def title(report: dict[str, Any]) -> str:
        figure = plots.accuracy_against_sparsity(report)
        assert figure is not None
        return figure.axes[0].get_title(loc="left").strip()

    assert title(REPORT) == "Pruning in rounds keeps the accuracy that one cut loses"
    worse = [{**REPORT["history"][0], "accuracy": 0.5}]
    assert title({**REPORT, "history": worse}) == "Accuracy as weights are removed"
    assert title({**REPORT, "one_shot": {}}) == "Accuracy as weights are removed"


def test_a_loss_is_drawn_as_such() -> None:
    report = {**REPORT, "metric": "loss", "dense": {"validation_loss": 0.3}, "one_shot": {}}
    figure = plots.accuracy_against_sparsity(report)
    assert figure is not None
    assert figure.axes[0].get_ylabel() == "validation loss"


def test_pyplot_and_display_are_not_touched(tmp_path: Path) -> None:
    program = (
        "import sys; from gossamer import plots, reporting; assert 'matplotlib' not in sys.modules;"
        "reporting.save_report(sys.argv[1], {'inputs': [[1]]}); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, env={**os.environ, "DISPLAY": ""})


def test_staged_replaces_files_and_keeps_others(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "other").write_text("other")
    with reporting.staged(tmp_path) as stage:
        (stage / "old").write_text("new")
    assert files(tmp_path) == {"old", "other"}
    assert (tmp_path / "old").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_staged_leaves_nothing_after_an_error(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "report.json").write_text("old")

    def fail(folder: Path) -> None:
        with reporting.staged(folder) as stage:
            (stage / "report.json").write_text("new")
            raise error

    for folder in (tmp_path, tmp_path / "new" / "deep"):
        with pytest.raises(type(error)) as caught:
            fail(folder)
        if isinstance(caught.value, OSError):
            assert caught.value.filename == str(folder)
    assert files(tmp_path) == {"report.json"}
    assert (tmp_path / "report.json").read_text() == "old"


def test_staged_says_at_once_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for folder in (
        tmp_path / "file",
        tmp_path / "file" / "x",
        Path("/dev/full"),
        Path("/dev/full/x"),
        tmp_path / "dangling",
    ):
        with pytest.raises(OSError, match=re.escape(str(folder))), reporting.staged(folder):
            pytest.fail("the block must not run")
    assert files(tmp_path) == {"file", "dangling"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_staged_in_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError), reporting.staged(tmp_path / "x"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("limit", [0, 3000, 30_000])
def test_a_full_disk_leaves_nothing(tmp_path: Path, limit: int) -> None:
    program = "import sys, test_reporting as t; t.reporting.save_report(sys.argv[1], t.REPORT)"

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        preexec_fn=full,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 1
    assert f"File too large: '{tmp_path / 'out'}'" in done.stderr
    assert files(tmp_path) == set()


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
@pytest.mark.parametrize("search", ["bisect", "ladder"])
def test_tune_report(tmp_path: Path, metric: Any, search: Any) -> None:
    weights = {"w": np.arange(1.0, 101.0).reshape(10, 10), "b": np.zeros(10)}
    total = weights["w"].sum()

    def evaluate(params: dict[str, np.ndarray[Any, Any]], split: str) -> float:
        share = float(params["w"].sum() / total)
        return share if metric == "accuracy" else 1 - share

    result = gs.tune(
        weights,
        train=lambda params, mask: params,
        evaluate=evaluate,
        score="magnitude",
        sparsity=(0.1, 0.9),
        budget=gs.Budget(0.1, metric),
        search=search,
    )
    result.report(tmp_path / "out")
    assert files(tmp_path / "out") == FILES - {"inputs_used.svg", "inputs_used.png"}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["final"]["sparsity"] == pytest.approx(result.sparsity)
    assert report["final"][metric] == result.test
    assert [entry["accepted"] for entry in report["history"]] == [entry.accepted for entry in result.history]
    assert report["layers"][0]["nnz"] == result.mask["w"].nnz
    assert "Rounds" in (tmp_path / "out" / "report.md").read_text()
