# SPDX-License-Identifier: Apache-2.0
"""The ``gossamer`` command: its result on real data, its report, and one clear line for all that can go wrong."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import cli, plots
from gossamer.training import data, model, recipe, sources
from test_data import idx

ENVIRONMENT = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
FILES = {"report.json", "report.md", "model.safetensors"} | {
    f"{name}.{end}"
    for name in ("accuracy_against_sparsity", "accuracy_over_time", "density_per_layer", "inputs_used")
    for end in ("svg", "png")
}


def start(*arguments: str, **how: Any) -> subprocess.Popen[str]:
    """Also where the tests run in the background of a shell, which makes all its children ignore interrupts."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT} | how
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a handler of ours is not inherited
    try:
        return subprocess.Popen([sys.executable, "-m", "gossamer", *arguments], **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


def timeless(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what a clock says."""
    return {key: value for key, value in report.items() if key not in ("seconds", "phases", "latency", "notes")}


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are about something else: drawing takes longer than everything before it."""
    monkeypatch.setattr(plots, "save_plots", lambda folder, report: [])


def train(folder: Path, *arguments: str) -> dict[str, Any]:
    """`gossamer train` in this process, with few epochs; the report that it wrote."""
    assert cli.main(["train", "--epochs", "1", "--out", str(folder), *arguments]) == 0
    return dict(json.loads((folder / "report.json").read_text()))


def folder_of_patterns(folder: Path, kind: str) -> Path:
    """Three classes of noisy 8 x 8 patterns, as IDX files or as data.npz."""
    generator = np.random.default_rng(0)
    patterns = generator.integers(0, 160, (3, 8, 8))
    arrays = {}
    for part, count in (("train", 300), ("test", 90)):
        y = (np.arange(count) % 3).astype(np.uint8)
        arrays[f"x_{part}"] = (patterns[y] + generator.integers(0, 90, (count, 8, 8))).astype(np.uint8)
        arrays[f"y_{part}"] = y
    if kind == "npz":
        np.savez(folder / "data.npz", **arrays)
    else:
        for part, names in sources.IDX_FILES.items():
            for name, key in zip(names, "xy", strict=True):
                (folder / name).write_bytes(idx(arrays[f"{key}_{part}"]))
    return folder


def test_digits_at_90_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert cli.main(["train", "--data", "digits", "--sparsity", "0.9", "--out", str(out)]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "report.json").read_text())
    dense, cut, final = report["dense"], report["one_shot"], report["final"]
    assert dense["accuracy"] >= 0.96
    assert dense["steps"] >= 1500
    assert cut["accuracy"] < dense["accuracy"] - 0.1
    assert final["accuracy"] >= 0.94
    assert final["sparse_accuracy"] == final["accuracy"]
    assert final["predictions_differ"] == 0
    assert abs(final["sparsity"] - 0.9) <= 0.0005
    assert dense["flops"] == 2 * (64 * 300 + 300 * 100 + 100 * 10)
    assert dense["bytes"] == 4 * (64 * 300 + 300 * 100 + 100 * 10 + 410)
    assert final["flops"] == round(0.1 * dense["flops"])
    assert final["bytes"] < dense["bytes"] / 5
    assert report["seconds"] > 0
    for entry in report["history"]:
        assert {"sparsity", "validation_loss", "accuracy", "accepted"} <= set(entry)
    assert [entry["batch"] for entry in report["latency"]] == [1, 128]
    for text in (
        f"{100 * dense['accuracy']:.2f} %",
        f"{100 * final['accuracy']:.2f} %",
        f"{final['bytes']:,}",
        str(out),
    ):
        assert text in printed

    # The saved model is the network of the report.
    tensors, digits = gs.load(out / "model.safetensors"), data.load("digits")
    names = [f"layer{k}" for k in (1, 2, 3)]
    assert sum(tensors[f"{name}.weight"].nnz for name in names) == sum(layer["nnz"] for layer in report["layers"])
    params = {f"{name}.weight": tensors[f"{name}.weight"].to_dense() for name in names}
    params |= {f"{name}.bias": tensors[f"{name}.bias"] for name in names}
    labels = model.forward(params, digits.x_test).argmax(axis=1)
    assert float((labels == digits.y_test).mean()) == final["accuracy"]
    assert np.array_equal(tensors["input.factor"], digits.factor)


def test_same_seed_same_result_with_any_number_of_threads(tmp_path: Path, threads: None) -> None:
    reports = []
    for number, name in ((1, "a"), (2, "b"), (2, "c")):
        gs.set_num_threads(number)
        seed = "1" if name == "c" else "0"
        reports.append(timeless(train(tmp_path / name, "--data", "digits", "--sparsity", "0.8", "--seed", seed)))
    assert reports[0] == reports[1]
    assert reports[1]["final"]["loss"] != reports[2]["final"]["loss"]
    for name in FILES - {"report.json", "report.md"}:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("method", "kind"), [*zip(recipe.METHODS, cycle(["idx", "npz"]), strict=False)])
def test_methods_and_folders(tmp_path: Path, method: str, kind: str) -> None:
    folder = folder_of_patterns(tmp_path, kind)
    report = train(tmp_path / "out", "--data", str(folder), "--method", method, "--sparsity", "0.7")
    assert report["data"] == tmp_path.name
    assert report["method"] == method
    assert abs(report["final"]["sparsity"] - 0.7) < 0.01
    assert report["samples"] == {"train": 270, "valid": 30, "test": 90}
    if method != "grasp":  # made for untrained networks; at the end of training it may cut a layer off
        assert report["final"]["accuracy"] > 0.6


def test_json_goes_to_standard_output(tmp_path: Path) -> None:
    folder = folder_of_patterns(tmp_path, "npz")
    process = start("train", "--data", str(folder), "--epochs", "1", "--json", cwd=tmp_path)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert printed == (tmp_path / "gossamer-train" / "report.json").read_text()
    assert json.loads(printed)["version"] == gs.__version__


@pytest.mark.usefixtures("no_plots")
def test_sparsity_is_an_order_and_the_budget_a_wish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "MAX_DROP", 1e-9)
    report = train(tmp_path / "out", "--data", "digits", "--method", "random", "--sparsity", "0.99")
    assert not all(entry["accepted"] for entry in report["history"])
    assert report["budget"]["kept"] is False
    assert any("budget" in note for note in report["notes"])
    assert abs(report["final"]["sparsity"] - 0.99) <= 0.0005


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gossamer: the following arguments are required: COMMAND (see gossamer --help)"),
        (["fly"], "gossamer: argument COMMAND: invalid choice: 'fly' (choose from"),
        (["prune"], "gossamer prune: the following arguments are required: IN, -o/--out (see gossamer prune --help)"),
        (["train", "--sparsity", "1.3"], "gossamer train: sparsity must be in [0, 1), got 1.3"),
        (["train", "--sparsity", "1"], "gossamer train: sparsity must be in [0, 1), got 1.0"),
        (["train", "--sparsity", "-0.1"], "gossamer train: sparsity must be in [0, 1), got -0.1"),
        (["train", "--sparsity", "nan"], "gossamer train: sparsity must be in [0, 1), got nan"),
        (["train", "--sparsity", "much"], "gossamer train: argument --sparsity: invalid float value: 'much'"),
        (["train", "--epochs", "0"], "gossamer train: epochs must be at least 1, got 0"),
        (["train", "--epochs", "1.5"], "gossamer train: argument --epochs: invalid int value: '1.5'"),
        (["train", "--seed", "-1"], "gossamer train: seed must be in [0, 2**63), got -1"),
        (["train", "--seed", str(2**63)], "gossamer train: seed must be in [0, 2**63), got 9223372036854775808"),
        (["train", "--method", "obd"], "gossamer train: argument --method: invalid choice: 'obd' (choose from"),
        (["train", "--sp", "0.5"], "gossamer: unrecognized arguments: --sp 0.5 (see gossamer --help)"),
        (["train", "--data", ""], "gossamer train: data must not be empty"),
        (["train", "--out", ""], "gossamer train: out must not be empty"),
        (["info", "x\ny"], "gossamer: unrecognized arguments: x y (see gossamer --help)"),
    ],
)
def test_usage_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith(message)
    assert errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


def broken(folder: Path, kind: str) -> Path:
    """A folder that cannot be trained on, in one way or another."""
    if kind == "absent":
        return folder / "absent"
    if kind == "file":
        (folder / "file").write_text("")
        return folder / "file"
    if kind == "empty":
        return folder
    if kind in ("truncated", "header", "gzip"):
        folder_of_patterns(folder, "idx")
        path = folder / "train-images-idx3-ubyte"
        content = path.read_bytes()
        path.unlink()
        if kind == "gzip":
            (folder / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b" + content[:40])
        else:
            path.write_bytes(content[:-1] if kind == "truncated" else content[:6])
        return folder
    folder_of_patterns(folder, "npz")
    arrays = dict(np.load(folder / "data.npz"))
    if kind == "pickle":
        arrays["y_train"] = np.array([{}] * 300)
    elif kind == "labels":
        arrays["y_train"] = arrays["y_train"] / 2
    elif kind == "counts":
        arrays["y_train"] = arrays["y_train"][1:]
    np.savez(folder / "data.npz", **arrays)
    return folder


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "absent: No such file or directory"),
        ("file", "file: Not a directory"),
        ("empty", "expected data.npz or train-images-idx3-ubyte[.gz]"),
        ("truncated", "its header asks for (300, 8, 8) = 19200 bytes"),
        ("header", "truncated inside its header"),
        ("gzip", "truncated or broken gzip data"),
        ("pickle", "not a usable npz archive (Object arrays cannot be loaded"),
        ("labels", "y_train must hold integers, got float64"),
        ("counts", "y_train must be one label a sample of x_train"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, message: str) -> None:
    (tmp_path / "data").mkdir()
    folder = broken(tmp_path / "data", kind)
    assert cli.main(["train", "--data", str(folder), "--out", str(tmp_path / "out")]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("gossamer train: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of_patterns(tmp_path, "npz")
    tmp_path.chmod(0)
    try:
        assert cli.main(["train", "--data", str(tmp_path)]) == 1
    finally:
        tmp_path.chmod(0o700)
    assert capsys.readouterr().err == f"gossamer train: {tmp_path}: Permission denied\n"


@pytest.mark.parametrize("out", ["/dev/full", "/dev/full/out", "file", "file/out"])
def test_out_that_cannot_be_made_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "run", lambda *_: pytest.fail("trained"))
    (tmp_path / "file").write_text("")
    assert cli.main(["train", "--data", "digits", "--out", out]) == 1
    assert capsys.readouterr().err == f"gossamer train: {out}: Not a directory\n"
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize("limit", [1000, 60_000])
def test_full_disk(tmp_path: Path, limit: int) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    out = tmp_path / "out"
    arguments = ("train", "--data", "digits", "--epochs", "1", "--out", str(out))
    process = start(*arguments, preexec_fn=full, env={**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"})
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert printed == ""
    assert errors == f"gossamer train: {out}: File too large\n"
    assert not list(tmp_path.iterdir())


def test_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:
        process = start("info", stdout=full)
        errors = process.communicate(timeout=120)[1]
    assert (process.returncode, errors) == (1, "gossamer info: No space left on device\n")


def test_a_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    process = start("info", stdout=write)
    os.close(write)
    assert process.communicate(timeout=120)[1] == ""
    assert process.returncode == 1


def test_closed_standard_output() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "gossamer", "info"], preexec_fn=lambda: os.close(1), env=ENVIRONMENT
    )
    assert process.returncode == 0


def test_interrupt(tmp_path: Path) -> None:
    process = start("train", "--data", "digits", "--epochs", "1000", "--out", str(tmp_path / "out"))
    deadline = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline:  # until the training begins
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=120)
    assert (process.returncode, printed, errors) == (130, "", "gossamer train: interrupted\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FloatingPointError("train: loss must stay finite, got nan"), "train: loss must stay finite, got nan"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("two\nlines \x1b[31m"), "two lines ?[31m"),
    ],
)
def test_failures_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(recipe, "run", fail)
    assert cli.main(["train", "--data", "digits", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"gossamer train: {message}\n"
    assert not list(tmp_path.iterdir())


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    table = capsys.readouterr().out
    assert gs.info()["version"] in table
    assert gs.info()["isa"] in table
    assert cli.main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == gs.info()


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in (
        (["--version"], f"gossamer {gs.__version__}\n"),
        (["--help"], "train, prune, validate"),
        (["train", "--help"], "(default: gossamer-train)"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


def test_progress_bars_on_a_terminal(tmp_path: Path) -> None:
    """A pseudo-terminal as standard error: bars with the phases, and results still on standard output."""
    pty = pytest.importorskip("pty")
    folder = folder_of_patterns(tmp_path, "npz")
    main, secondary = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120"}
    arguments = ("train", "--data", str(folder), "--epochs", "1", "--json")
    process = start(*arguments, stderr=secondary, cwd=tmp_path, env=environment)
    os.close(secondary)
    seen = b""
    try:
        while chunk := os.read(main, 65536):
            seen += chunk
    except OSError:  # how Linux says that the other side is closed
        pass
    os.close(main)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert json.loads(printed)["model"] == "LeNet-300-100"
    for word in (b"load", b"dense", b"prune", b"fine-tune", b"validation", b"report"):
        assert word in seen
