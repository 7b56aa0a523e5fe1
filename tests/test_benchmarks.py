"""The benchmarks run, at sizes that say nothing about speed, and print their tables."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name: str, *arguments: str) -> str:
    """What a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("h5py", "tensorstore")),
    reason="needs the extra `bench`",
)
def test_read_speed() -> None:
    printed = run("read_speed", "--rows", "300", "--warm", "2", "--cold", "2")
    for way in ("raw np.memmap", "cache.read", "h5py", "zarr oindex", "tensorstore", "file per"):
        assert f"| {way}" in printed
    assert "cache.read / raw np.memmap, at most 2: " in printed


@pytest.mark.slow
def test_open_large() -> None:
    printed = run("open_large", "--samples", "3000", "--views", "2", "--rows", "1024", "2048")
    assert "- open_cache in less than 0.5 s: " in printed
    assert "| 2,048 |" in printed


@pytest.mark.slow
def test_field_codecs() -> None:
    printed = run("field_codecs", "--clips", "14")
    assert "| `residual`, bitround, keepbits 5 |" in printed
    assert "| `vit/logits/action`, fixed8, low " in printed


@pytest.mark.slow
def test_decode() -> None:
    printed = run(
        *("decode", "--seconds", "0.3", "--repeats", "1", "--minutes", "0.05", "--stretches", "3")
    )
    for line in ("340×256, key frames 12 apart", "1280×720, key frames 250 apart"):
        assert f"| {line}" in printed
    assert "- four views / one view of the same stretch, at most 1.3: " in printed
    assert "| in one pass, with seeking" in printed
