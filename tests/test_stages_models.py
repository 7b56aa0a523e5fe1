"""`dualkd models`: the table and its savings."""

from __future__ import annotations

import json
import sys

import pytest

from pipeline.model_names import MODEL_NAMES
from pipeline.models import UnknownModelError, count_flops, create_model
from stages import cli
from stages.models import models, show

TINY, NANO = "torchvision/mvit_tiny", "pytorchvideo/x3d_nano"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dualkd", "models", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_facts_are_those_of_the_networks() -> None:
    (facts,) = models([NANO], None)
    assert facts["parameters"] == 224456
    assert facts["flops"] == count_flops(create_model(NANO, 400))
    assert (facts["pooled"], facts["map"]) == (256, [64, 8, 2, 2])
    assert facts["clip"] == {"frames": 8, "stride": 6, "size": 40}
    assert facts["k400_top1"] is None


def test_versus_tells_what_is_saved() -> None:
    nano, tiny = models([NANO, TINY], TINY)
    assert nano["parameters_saved"] == 1 - nano["parameters"] / tiny["parameters"]
    assert nano["flops_saved"] == 1 - nano["flops"] / tiny["flops"]
    assert tiny["parameters_saved"] == tiny["flops_saved"] == 0
    assert models([NANO], TINY) == [nano]


def test_the_table_fits_and_json_is_for_programs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, NANO, TINY, "--versus", TINY) == 0
    table = capsys.readouterr().out
    assert max(len(line) for line in table.split("\n")) <= 100
    (line,) = (line for line in table.split("\n") if NANO in line)
    facts = [NANO, "cnn", "8×6", "40", "0.22", "0.01", "256", "64×8×2×2", "–"]
    assert line.split()[:-2] == facts
    assert "−" in line
    assert run(monkeypatch, NANO, "--json") == 0
    assert json.loads(capsys.readouterr().out) == models([NANO], None)


def test_the_longest_names_and_numbers_stay_on_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (facts,) = models([NANO], NANO)
    longest = {
        "name": max(MODEL_NAMES, key=len),
        "clip": {"frames": 128, "stride": 2, "size": 224},
        "flops": 281.92e9,
        "parameters": 88.05e6,
        "pooled": 2304,
        "map": [192, 16, 10, 10],
        "k400_top1": 0.8,
        "parameters_saved": -1.55,
        "flops_saved": -3.37,
    }
    show([facts | longest])
    (line,) = (line for line in capsys.readouterr().out.split("\n") if longest["name"] in line)
    assert len(line) <= 100
    assert "192×16×10×10" in line
    assert "+337%" in line


def test_unknown_names_are_told_before_anything_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, NANO, "--versus", "torchvision/mvit_tony") == 1
    assert TINY in capsys.readouterr().err
    with pytest.raises(UnknownModelError, match="x3d_nano"):
        models(["x3d_nona"], None)
