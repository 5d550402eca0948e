# SPDX-License-Identifier: Apache-2.0
"""The documented example prints these losses."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "five_points.py"
ADAM = {0: 0.884935, 10: 0.307802, 20: 0.169125, 30: 0.083210, 40: 0.036652}
ROUNDS = [
    (0.022936, 0.034273, "rejected"),
    (0.022936, 0.022198, "accepted"),
    (0.022198, 0.018637, "accepted"),
    (0.018637, 0.016326, "accepted"),
    (0.016326, 0.020901, "rejected"),
    (0.016326, 0.017012, "rejected"),
    (0.016326, 0.016269, "accepted"),
    (0.016269, 0.015652, "accepted"),
    (0.015652, 0.016161, "rejected"),
]


def test_printed_losses(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    text = capsys.readouterr().out
    adam = {int(step): float(loss) for step, loss in re.findall(r"step +(\d+)  loss (\S+)", text)}
    assert adam == pytest.approx(ADAM, abs=2e-6)
    rounds = re.findall(r"loss (\S+) -> (\S+)  (accepted|rejected)", text)
    for (before, after, verdict), expected in zip(rounds, ROUNDS, strict=True):
        assert (float(before), float(after)) == pytest.approx(expected[:2], abs=2e-6)
        assert verdict == expected[2]
    assert "validation loss 0.022936 -> 0.015652" in text
