"""docs/deployment.md: what it shows without our code takes the frames that dualkd takes."""

from __future__ import annotations

import re
import runpy
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.reading import read_clips
from pipeline.sample import Sample
from pipeline.student import load_student
from pipeline.video import open_video
from pipeline.views import clip_times, normalise_array
from student_making import CLIP, about, write_onnx
from video_making import write_video

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
LENGTHS = (1, 5, 12, 23, 31, 37, 48, 59, 75, 89, 90, 112)
# Of the pictures, in pixels; of the second and the third the crop ends between two of them.
SIZES = ((64, 48), (90, 62), (46, 74))


def example(model: Path, video: Path) -> str:
    """The page's example, with these files."""
    found: list[str] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = found
    assert not re.search(r"import .*(pipeline|stages|cache|torch)", code)
    for placeholder, path in (
        ("video.mp4", video),
        ("outputs/demo/export/student.int8.onnx", model),
    ):
        assert code.count(f'"{placeholder}"') == 1
        code = code.replace(placeholder, str(path))
    return code


def check(folder: Path, model: Path, video: Path) -> None:
    """Run the example: the same frames to the bit, and the clip up to the resize's rounding."""
    (folder / "example.py").write_text(example(model, video))
    made: dict[str, Any] = runpy.run_path(str(folder / "example.py"))
    spec = load_student(model).clip
    sample, views = Sample(str(video), str(video), "", {}), ProtocolViews(CENTRE, spec.span_sec)
    with open_video(video) as opened:
        stop_sec = opened.info.duration_sec
        (view,) = views(sample, opened.info)
        ours = opened.frames_at(clip_times(view, spec, start_sec=0.0, stop_sec=stop_sec))
    shown = np.stack([made["shown"][row][1] for row in made["rows"]])
    np.testing.assert_array_equal(shown, ours.rgb[ours.index], err_msg=video.name)
    read = read_clips(Path(), sample, views, [spec], test_crop=True).clips[0]
    np.testing.assert_allclose(
        made["clips"],
        normalise_array(read, spec),
        rtol=0,
        atol=1.01 / 255 / min(spec.std),
        err_msg=video.name,
    )


@pytest.mark.parametrize("rate", [24, 25, Fraction(30000, 1001), 30])
def test_the_example_takes_our_frames(tmp_path: Path, rate: Fraction | int) -> None:
    """Of odd and even lengths: at 30 frames per second the times of every odd one are edges."""
    model = write_onnx(tmp_path / "a.onnx", about(action=6))
    for frames in LENGTHS:
        video = tmp_path / f"{frames}.mp4"
        check(tmp_path, model, write_video(video, codec="mpeg4", frames=frames, rate=rate))


@pytest.mark.parametrize("test_share", [1.0, 0.6])
def test_the_example_takes_our_crop(tmp_path: Path, test_share: float) -> None:
    said = about(verb=2, noun=3) | {"clip": CLIP | {"test_share": test_share}}
    model = write_onnx(tmp_path / "a.onnx", said)
    for size in [*SIZES, (16, 16), (320, 182)]:
        video = write_video(tmp_path / "a.mp4", frames=4, size=size, noise=True)
        check(tmp_path, model, video)


def test_the_example_goes_by_stamps_and_the_stated_duration(tmp_path: Path) -> None:
    """Frames that are not evenly spaced, a first one that is not at 0, milliseconds."""
    model = write_onnx(tmp_path / "a.onnx", about(action=6))
    uneven = np.cumsum(np.random.default_rng(0).integers(10, 120, 60))
    for name, stamps in (
        ("uneven.mp4", uneven),
        ("late.mov", 500 + 40 * np.arange(60)),
        ("rounded.mp4", np.round(np.arange(112) * 1000 / 30).astype(int)),
    ):
        video = write_video(
            tmp_path / name, frames=len(stamps), stamps_ms=stamps.tolist(), b_frames=2
        )
        check(tmp_path, model, video)
