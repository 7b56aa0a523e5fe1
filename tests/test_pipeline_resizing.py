"""The resize without torch: torch's own bytes, whatever the sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from pipeline.resizing import by_numpy, by_torch, resize
from pipeline.views import ClipSpec, normalise, normalise_array

ROOT = Path(__file__).parents[1]
SIZES = [(1, 1, 5), (1, 9, 4), (7, 1, 3), (48, 64, 40), (40, 40, 40), (40, 64, 40), (64, 40, 40)]
SIZES += [(256, 341, 224), (540, 540, 224), (16, 16, 182), (2, 3, 1), (301, 7, 33)]


@pytest.mark.parametrize(("height", "width", "size"), SIZES)
def test_numpy_gives_the_bytes_of_torch(height: int, width: int, size: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    expected = functional.interpolate(
        torch.from_numpy(frames.copy()).permute(0, 3, 1, 2),
        size=(size, size),
        mode="bilinear",
        align_corners=False,
    )
    np.testing.assert_array_equal(by_numpy(frames, size), expected.permute(0, 2, 3, 1).numpy())


def test_numpy_gives_the_bytes_of_torch_for_many_sizes() -> None:
    random = np.random.default_rng(1)
    for _ in range(300):
        height, width, size = (int(value) for value in random.integers(1, 120, 3))
        frames = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(
            by_numpy(frames, size), by_torch(frames, size), err_msg=f"{height}×{width} → {size}"
        )


@pytest.mark.slow
def test_torch_gives_the_same_bytes_without_its_vector_instructions() -> None:
    """Else numpy could not give those of every machine."""
    script = (
        "import sys, numpy as np, torch\n"
        "from pipeline.resizing import by_numpy, by_torch\n"
        "assert torch.backends.cpu.get_cpu_capability() in ('DEFAULT', 'NO AVX')\n"
        "random = np.random.default_rng(2)\n"
        "for _ in range(100):\n"
        "    h, w, size = map(int, random.integers(1, 90, 3))\n"
        "    frames = random.integers(0, 256, (1, h, w, 3), dtype=np.uint8)\n"
        "    assert np.array_equal(by_numpy(frames, size), by_torch(frames, size)), (h, w, size)\n"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(ROOT)},
        check=True,
    )


def test_a_part_of_a_frame_is_resized_where_torch_is_loaded() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 60, 80, 3), dtype=np.uint8)
    box = frames[:, 3:47, 5:61]
    np.testing.assert_array_equal(resize(box, 24), by_numpy(box.copy(), 24))


def test_clips_are_normalised_to_the_same_bits() -> None:
    clips = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    spec = ClipSpec(3, 1, 8, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    expected = normalise(torch.from_numpy(clips), spec).contiguous().numpy()
    np.testing.assert_array_equal(normalise_array(clips, spec).view("u4"), expected.view("u4"))
