"""The benchmarks run, at sizes that say nothing about speed, and print their tables."""

from __future__ import annotations

import importlib.util
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cache import CacheWriter
from pipeline.clips import ClipDataset
from stages import cluster, rows
from student_making import about, write_onnx
from video_making import write_video

# What benchmarks/stand_ins.py replaces.
PATCHED = [
    (ClipDataset, "__getitems__"),
    (rows, "load_teachers"),
    (cluster, "ChunkPlugin"),
    (CacheWriter, "commit"),
]
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a benchmark as its command does, but in this process; returns what it prints."""

    def run_it(name: str, *arguments: str) -> str:
        program = str(BENCHMARKS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        monkeypatch.syspath_prepend(BENCHMARKS)
        monkeypatch.setattr(os, "cpu_count", lambda: 1)  # a few videos: no processes to render them
        runpy.run_path(program, run_name="__main__")
        return capsys.readouterr().out

    return run_it


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("h5py", "tensorstore")),
    reason="needs the extra `bench`",
)
def test_read_speed(run: Callable[..., str]) -> None:
    printed = run("read_speed", "--rows", "300", "--warm", "2", "--cold", "2")
    for way in ("raw np.memmap", "cache.read", "h5py", "zarr oindex", "tensorstore", "file per"):
        assert f"| {way}" in printed
    assert "cache.read / raw np.memmap, at most 2: " in printed


@pytest.mark.slow
def test_open_large(run: Callable[..., str]) -> None:
    sizes = ("--samples", "3000", "--views", "2", "--rows", "1024", "2048")
    printed = run("open_large", *sizes, "--processes", "1")
    assert "- open_cache in less than 0.5 s: " in printed
    assert "| 2,048 |" in printed


@pytest.mark.slow
def test_extract_speed(run: Callable[..., str]) -> None:
    sizes = ("--config", "demo", "--samples", "28", "--views", "1", "--repeats", "1")
    printed = run("extract_speed", *sizes, "--seconds", "0.1", "--device", "cpu")
    assert "| `extract`: its chunks |" in printed
    assert "- chunks / bare forward, at most 1.1: " in printed
    assert "- forecast / projection and chunks, within 20%: " in printed


@pytest.mark.slow
def test_scale(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))  # put back at the end
    printed = run("scale", "--samples", "3000", "--views", "1", "--workers", "0")
    assert "| none, this process | 3,000 |" in printed
    assert "- a killed run finds its place in at most 10 s: " in printed


@pytest.mark.slow
def test_field_codecs(run: Callable[..., str]) -> None:
    printed = run("field_codecs", "--clips", "14")
    assert "| `residual`, bitround, keepbits 5 |" in printed
    assert "| `vit/logits/action`, fixed8, low " in printed


@pytest.mark.slow
def test_model_speed(run: Callable[..., str]) -> None:
    networks = ("--models", "pytorchvideo/x3d_xs", "--students", "pytorchvideo/x3d_nano")
    printed = run("model_speed", *networks, "--tiny", "--repeats", "1", "--device", "cpu")
    assert "| `pytorchvideo/x3d_xs` |" in printed
    assert "| `pytorchvideo/x3d_nano` |" in printed
    assert "cannot run" not in printed


@pytest.mark.slow
def test_step_cost(run: Callable[..., str]) -> None:
    networks = ("--student", "pytorchvideo/x3d_nano", "--vit", "torchvision/mvit_tiny")
    networks += ("--cnn", "pytorchvideo/x3d_tiny", "--classes", "14", "--device", "cpu")
    sizes = ("--residual", "4", "2", "2", "2", "--batch", "3", "--steps", "2", "--turns", "1")
    printed = run("step_cost", *networks, *sizes)
    assert "| both teachers online: kd, rkd, sdd |" in printed
    assert "- distillation without the branch / supervised, at most 1.05: " in printed
    assert "- with all terms on, at most 1.05: " in printed
    assert "- GFLOPs of a clip, forward: the student 0.006, the branch 0.001 " in printed
    videos = ("--loading", "--seconds", "1", "--decoders", "0")
    printed = run("step_cost", *networks, *sizes, *videos)
    assert "| stored, raw |" in printed
    assert "| decoded, --decoders 0 |" in printed


@pytest.mark.slow
def test_prepare_k400(run: Callable[..., str]) -> None:
    printed = run("prepare_k400", "--rows", "820", "--runs", "1")
    assert "820 rows listed, 799 found, 21 missing; " in printed
    assert "| os.scandir and csv, the reference |" in printed
    assert "| dualkd prepare --dataset k400 |" in printed
    assert "- a table in less than 15 s: " in printed


@pytest.mark.slow
def test_decode(run: Callable[..., str]) -> None:
    printed = run(
        *("decode", "--seconds", "0.3", "--repeats", "1", "--minutes", "0.05", "--stretches", "3")
    )
    for line in ("340×256, key frames 12 apart", "1280×720, key frames 250 apart"):
        assert f"| {line}" in printed
    assert (
        "- four views / one view of the same stretch, at most 1.3:\n  - 340×256, key frames 250"
        in printed
    )
    assert "| in one pass, with seeking" in printed


@pytest.mark.slow
def test_clips(run: Callable[..., str], tmp_path: Path) -> None:
    video = str(write_video(tmp_path / "real.mp4"))
    printed = run("clips", "--seconds", "0.3", "--rows", "3", "--repeats", "1", "--video", video)
    assert "| decoded, real.mp4, " in printed
    for line in ("decoded, 340×256, key frames 12 apart", "jpeg, cached", "raw, cached"):
        assert f"| {line} | " in printed
    assert "| a photograph's spectrum, 340×256 | 39 | " in printed
    assert "- 340×256 decoded / jpeg, at least 5: " in printed
    assert "- 340×256 decoded / raw, at least 20: " in printed


@pytest.mark.slow
def test_start_up(run: Callable[..., str], tmp_path: Path) -> None:
    student = write_onnx(tmp_path / "s.onnx", about(action=3))
    video = write_video(tmp_path / "a.mp4", frames=25)
    runs = ("--runs", "1", "--cold-runs", "1")
    printed = run("start_up", str(student), "--video", str(video), *runs)
    assert "| `python -c 'import torch, torchvision'` |" in printed
    assert "| `dualkd predict, s.onnx` |" in printed
    assert "- dualkd predict, s.onnx, warm, less than 3 s: " in printed
