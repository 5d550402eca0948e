# SPDX-License-Identifier: Apache-2.0
"""``gossamer bench``: its report, its refusals, its pictures. Tiny sizes, and nothing depends on a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gossamer as gs
from gossamer import benchmarks, cli, plots
from gossamer.benchmarks import measuring, minilm, peers, suites, tables, targets
from gossamer.benchmarks.measuring import Contestant, Limits

LIMITS = Limits(10.0, "made up", 100.0, "made up")
TINY = suites.Sizes((16, 24), (24, 32), ((16, 24),), (8,), (8,), (0.5, 0.9), 4, 16)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(suites, "QUICK", TINY)
    monkeypatch.setattr(measuring, "TURN", 0.0)
    before = gs.get_num_threads()
    yield
    assert gs.get_num_threads() == before


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The report that `gossamer bench --quick --json` prints."""
    assert cli.main(["bench", "--quick", "--seconds", "0", "--json", *arguments]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    return dict(json.loads(printed))


def row(ours: float, **others: float) -> dict[str, Any]:
    """A row with medians by kind."""
    contestants = [{"name": "gossamer", "kind": "gossamer", "median": ours, "quartiles": [ours, ours]}]
    contestants += [{"name": f"a {kind}", "kind": kind, "median": m} for kind, m in others.items()]
    facts = {"suite": "spmm", "name": "made up", "n": 512, "sparsity": 0.5, "shape": [8, 8], "notes": []}
    return facts | {"contestants": contestants}


def evaluated(entry: dict[str, Any]) -> dict[str, Any]:
    return benchmarks.evaluated(entry, flops=2e9, nbytes=1e8, limits=LIMITS, targets=True)


def test_all_suites_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = bench(capsys, "--peers", "--threads", "1", "--out", str(tmp_path / "out"))
    assert report == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(dict.fromkeys(entry["suite"] for entry in report["rows"])) == list(benchmarks.SUITES)
    for entry in report["rows"]:
        names = [contestant["name"] for contestant in entry["contestants"]]
        assert names[0] == "gossamer"
        assert len(set(names)) == len(names)
        assert entry["targets"] == []  # small sizes say nothing about them
        for contestant in entry["contestants"]:
            low, high = contestant["quartiles"]
            assert 0 < contestant["best"] <= low <= contestant["median"] <= high
    assert report["threads"] == 1
    assert report["machine"]["gossamer"]["threads"] == 1
    assert report["machine"]["processor"]
    assert report["limits"]["read_gb_per_s"] > 0
    assert set(report["peers"]) | set(report["absent"]) == set(peers.PEERS)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    pictures = {f"{name}.{end}" for name in plots.BENCH_PLOTS for end in ("svg", "png")}
    assert written == {"bench.json", "bench.md"} | pictures
    text = (tmp_path / "out" / "bench.md").read_text()
    for suite in benchmarks.SUITES:
        assert f"## {suite}\n" in text
    for name in plots.BENCH_PLOTS:
        assert f"({name}.svg)" in text


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["bench", "spmv", "--quick", "--seconds", "0"]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    for words in ("WARNING: OPENBLAS_CORETYPE=Haswell", "24x32 bfloat16 50%", "bitmask", "GB/s", "read limit", "numpy"):
        assert words in printed
    assert "torch" not in printed.split("threads:")[0]  # a peer only with --peers


def test_one_suite_once(capsys: pytest.CaptureFixture[str]) -> None:
    report = bench(capsys, "spmv", "spmv")
    assert [entry["dtype"] for entry in report["rows"]] == ["float32", "bfloat16", "float32"]
    assert list(report["peers"]) == ["numpy"]
    for entry in report["rows"]:
        assert entry["limit"] == "read"
        medians = {contestant["name"]: contestant["median"] for contestant in entry["contestants"]}
        assert entry["share_of_limit"] == medians["read"] / medians["gossamer"]
        assert entry["dense"]["ratio"] == medians["numpy"] / medians["gossamer"]


def test_a_trained_model_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    w = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    a = gs.SparseMatrix.from_dense(*gs.prune(w, sparsity=0.75))
    gs.save(tmp_path / "model.safetensors", {"layer1.weight": a, "layer1.bias": np.zeros(8, np.float32)})
    report = bench(capsys, "layers", "--model", str(tmp_path))
    assert report["rows"][-1]["name"] == "layer1.weight 8x16 75%"
    assert report["rows"][-1]["sparsity"] == 0.75


def test_ratios_come_from_the_medians() -> None:
    entry = evaluated(row(0.5, dense=0.75, sparse=2.0))
    assert entry["dense"] == {"name": "a dense", "seconds": 0.75, "ratio": 1.5}
    assert entry["sparse"]["ratio"] == 4
    assert entry["gflops"] == 4
    assert entry["gb_per_s"] == 0.2
    assert (entry["limit"], entry["share_of_limit"]) == ("FMA", 2e9 / 100e9 / 0.5)
    assert entry["targets"] == [{"against": "dense", "bound": 1.35, "value": 1.5, "met": True}]
    assert evaluated(row(0.5, dense=0.6))["targets"][0]["met"] is False
    assert evaluated(row(0.5, limit=0.4))["share_of_limit"] == 0.8
    mean = benchmarks._summary([evaluated(row(1.0, sparse=2.0)), evaluated(row(1.0, sparse=8.0))], quick=False)
    assert mean[0]["value"] == pytest.approx(4)
    assert tables.remarks({"rows": [], "summary": mean})[0].endswith("(2 rows): 4.00 ×, target 4: met")


def test_medians_of_calls_in_turns() -> None:
    order: list[str] = []
    one = Contestant("one", "dense", lambda: order.append("one"))
    two = Contestant("two", "dense", lambda: order.append("two"))
    clock = Contestant("clock", "limit", lambda: 2.0, timed=True)
    measuring.take_turns([one, two, clock], seconds=0, pause=0, turns=3)
    assert [len(contestant.seconds) for contestant in (one, two, clock)] == [3, 3, 3]
    changes = [a for a, b in zip(order, [*order[1:], ""], strict=True) if a != b]
    assert changes == ["one", "two"] * (len(changes) // 2)
    assert clock.median == 2.0
    one.seconds[:] = [3.0, 1.0, 2.0]
    assert one.result() | {"turns": 3} == {
        "name": "one",
        "kind": "dense",
        "median": 2.0,
        "quartiles": [1.5, 2.5],
        "best": 1.0,
        "turns": 3,
    }


@pytest.mark.parametrize("factor", [1.001, np.nan])
def test_a_wrong_answer_is_refused(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(p: peers.Problem) -> Any:
        return lambda: np.matmul(*p.operands) * np.float32(factor)

    monkeypatch.setitem(peers.PEERS, "numpy", peers.Peer("dense", "numpy", wrong))
    monkeypatch.setattr(Contestant, "turn", lambda *_: pytest.fail("timed"))
    assert cli.main(["bench", "spmm", "--quick", "--out", str(tmp_path / "out")]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("gossamer bench: bench: numpy: the answer must be within 1e-05 of the one in float64")
    assert errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "suite must be one of select, spmm, spmv, nm, train, layers, got 'fly'"),
        (["spmm", "--threads", "0"], "threads must be at least 1, got 0"),
        (["--seconds", "-1"], "seconds must be at least 0 and finite, got -1.0"),
        (["--seconds", "nan"], "seconds must be at least 0 and finite, got nan"),
        (["--seconds", "long"], "argument --seconds: invalid float value: 'long' (see gossamer bench --help)"),
        (["--out", ""], "out must not be empty"),
    ],
)
def test_usage_errors(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert cli.main(["bench", "--quick", *arguments]) == 2
    assert capsys.readouterr() == ("", f"gossamer bench: {message}\n")


def test_no_model_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "layers", "--quick", "--model", str(tmp_path)]) == 1
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("gossamer bench: ")
    assert errors.count("\n") == 1


def test_every_target_has_rows() -> None:
    """The facts of the table are those that full-size rows have."""
    columns = {n for t in targets.TARGETS if t.suite == "spmm" and (n := t.where.get("n"))}
    assert columns == set(suites.FULL.columns)
    assert {t.suite for t in targets.TARGETS} <= set(benchmarks.SUITES)
    assert [t.bound for t in targets.TARGETS if t.applies(row(1.0) | {"n": 512, "sparsity": 0.9})] == [4.4]


def test_the_read_reads_everything() -> None:
    for nbytes, threads in ((1 << 16, 1), (100_000, 3)):
        reader = measuring.Reader(nbytes, threads)
        assert reader() > 0
        edges = reader._bounds
        assert edges[0] == 0
        assert edges[-1] == reader.nbytes == nbytes // 4096 * 4096
        assert edges == sorted(edges)
    assert LIMITS.seconds(nbytes=1e9, flops=1e9) == 0.1
    assert LIMITS.seconds(nbytes=1e9, flops=1e11) == 1.0


def test_break_even_between_points() -> None:
    assert plots.breakeven([50, 70, 90], [0.5, 2.0, 4.0]) == pytest.approx(60)
    assert plots.breakeven([50, 70], [1.2, 2.0]) is None
    assert plots.breakeven([50, 70], [0.2, 0.4]) is None
    for draw in plots.BENCH_PLOTS.values():
        assert draw({"rows": []}) is None


def test_layers_of_the_encoder() -> None:
    for name, shape in minilm.LAYER_SHAPES.items():
        layer = minilm.layer(name, 16)
        assert layer.weights.shape == tuple(size // 16 for size in shape)
        assert layer.inputs.shape[1] == layer.weights.shape[1]
        assert not layer.real
