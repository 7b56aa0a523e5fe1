"""Which way up: pictures of phones are stored lying, with a matrix that turns them upright."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.clips import read_clips
from pipeline.protocols import CENTRE, ProtocolViews
from pipeline.samples import Sample
from pipeline.video import open_video
from pipeline.views import ClipSpec, cut_clip
from video_making import write_video

Turn = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
# The matrix's a, b, c, d, and what it does to an (H, W, 3) picture.
MATRICES: dict[str, tuple[tuple[float, float, float, float], Turn]] = {
    "upright": ((1, 0, 0, 1), lambda rgb: rgb),
    "a quarter clockwise": ((0, 1, -1, 0), lambda rgb: np.rot90(rgb, -1)),  # a phone held upright
    "a half": ((-1, 0, 0, -1), lambda rgb: np.rot90(rgb, 2)),
    "a quarter back": ((0, -1, 1, 0), lambda rgb: np.rot90(rgb, 1)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "upside down": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda rgb: np.swapaxes(rgb, 0, 1)),
    "transposed the other way": ((0, -1, -1, 0), lambda rgb: np.rot90(rgb.swapaxes(0, 1), 2)),
    "slanted": ((0.8, 0.6, -0.6, 0.8), lambda rgb: rgb),  # left as it is stored
}


def turned(path: Path, matrix: tuple[float, float, float, float]) -> Path:
    """Write an MP4 whose track header holds a matrix."""
    write_video(path, size=(64, 48), noise=True)
    content = bytearray(path.read_bytes())
    a, b, c, d = (round(value * 65536) for value in matrix)
    at = content.index(b"tkhd") + 44
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", MATRICES)
def test_frames_and_size_are_turned_upright(name: str, tmp_path: Path) -> None:
    matrix, turn = MATRICES[name]
    path = turned(tmp_path / "phone.mp4", matrix)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    if name in ("a quarter clockwise", "a half", "a quarter back"):  # counted counterclockwise
        turn_by_pyav = np.rot90(np.arange(12).reshape(3, 4), frames[0].rotation // 90)
        np.testing.assert_array_equal(turn_by_pyav, turn(np.arange(12).reshape(3, 4)))
    with open_video(path) as video:
        found = video.frames_at(np.array([0.2, 1.9]))
        info = video.info
    for rgb, number in zip(found.rgb, (5, 47), strict=True):
        np.testing.assert_array_equal(rgb, turn(frames[number].to_ndarray(format="rgb24")))
    assert (info.height, info.width) == found.rgb.shape[1:3]


def test_clips_are_cut_out_of_upright_frames(tmp_path: Path) -> None:
    turned(tmp_path / "phone.mp4", (0, 1, -1, 0))
    sample = Sample("phone", "phone.mp4", "train", {})
    spec = ClipSpec(frames=4, stride=3, size=20)
    read = read_clips(tmp_path, sample, ProtocolViews(CENTRE, 0.0), [spec])
    with open_video(tmp_path / "phone.mp4") as video:
        assert (video.info.width, video.info.height) == (48, 64)
        (view,) = ProtocolViews(CENTRE, 0.0)(sample, video.info)
        assert (view.x0, view.x1) == (0.0, 1.0)  # the square of an upright picture is its width
        frames = video.frames_at(np.array([0.85, 0.95, 1.05, 1.15]))
    np.testing.assert_array_equal(read.clips[0][0], cut_clip(frames.rgb, view, spec))
