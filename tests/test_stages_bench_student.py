"""`dualkd bench-student`: every network in every way, with the ratio first."""

from __future__ import annotations

import json
import os
import sys

import pytest

from export_making import Tiny
from stages import bench_student, cli
from stages.bench_student import STUDENT, BenchError, Case, Options, bench, by_name
from stages.bench_table import show


def test_all_ways_of_all_networks_are_measured_and_the_ratio_is_told_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(bench_student, "_LEAST_SEC", 1e-6)
    networks = {STUDENT: Tiny(), "cnn": Tiny(seed=1), "vit": Tiny(seed=2, family="vit")}
    facts = bench(networks, Options(batch=3, turns=2), random=True)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["reference"] == "vit"
    assert facts["left_out"] == {}
    ways = (bench_student.PYTORCH, bench_student.ONNX, bench_student.INT8)
    of_cpu = {(row["role"], row["way"], row["cores"]) for row in facts["rows"] if row["cores"]}
    assert of_cpu == {(role, way, cores) for role in networks for way in ways for cores in (1, 2)}
    for row in facts["rows"]:
        for figures in (row["latency"], row["throughput"]):
            assert 0 < figures["least"] <= figures["median"] <= figures["greatest"]
            assert (figures["ratio"] == 1) == (row["role"] == "vit")
    show(facts)
    lines = capsys.readouterr().out.splitlines()
    assert "× as fast by PyTorch, 1 core" in lines[1]
    assert any("Weights are random" in line for line in lines)


def test_ratios_are_medians_of_the_turns_own() -> None:
    case = Case(STUDENT, "a way", 1, 1)
    seconds = {case: [1.0, 1.0, 5.0], Case("vit", "a way", 1, 1): [4.0, 6.0, 10.0]}
    seconds |= {Case(role, "a way", 1, 8): [8.0, 8.0, 8.0] for role in (STUDENT, "vit")}
    student, vit = bench_student._rows(seconds, "vit", 8)
    assert student["latency"] == {"ratio": 4.0, "median": 1e3, "least": 1e3, "greatest": 5e3}
    assert student["throughput"]["median"] == 1.0
    assert (vit["role"], vit["latency"]["ratio"]) == ("vit", 1.0)


def test_what_cannot_run_is_told_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(bench_student, "_LEAST_SEC", 1e-6)
    monkeypatch.setattr(bench_student, "quantise", refuse)
    networks = {STUDENT: Tiny(), "vit": Tiny(family="vit")}
    facts = bench(networks, Options(batch=2, turns=1), random=False)
    assert facts["left_out"] == {
        f"{role}, {bench_student.INT8}": "RuntimeError: no such operator" for role in networks
    }
    assert {row["way"] for row in facts["rows"] if row["cores"]} == {
        bench_student.PYTORCH,
        bench_student.ONNX,
    }


def test_networks_by_name_want_teachers() -> None:
    networks = by_name("pytorchvideo/x3d_nano", ["torchvision/mvit_tiny"])
    assert list(networks) == [STUDENT, "torchvision/mvit_tiny"]
    assert networks[STUDENT].heads == {"action": 400}
    with pytest.raises(BenchError, match="name the teachers too: --teachers"):
        by_name("pytorchvideo/x3d_nano", [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --dataset NAME, or --student MODEL"),
        (["--student", "pytorchvideo/x3d_nano"], "--student and --teachers go together"),
    ],
)
def test_what_is_measured_must_be_said(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["dualkd", "bench-student", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
