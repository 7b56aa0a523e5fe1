"""A video looked at every so many seconds: one pass over it, a clip around each step's middle."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.cutting import ClipCutter
from pipeline.video import open_video
from pipeline.views import ClipSpec, View, central_box, clip_times

_LEAST = 1e-3  # of a step: a shorter rest is a rounding of the duration


@dataclass(frozen=True)
class Step:
    """A piece of a video.

    Attributes:
        start_sec: its begin, seconds since the first frame.
        stop_sec: its end.
        clip: (T, size, size, 3) uint8, around its middle; longer than the piece, it may be.
    """

    start_sec: float
    stop_sec: float
    clip: NDArray[np.uint8]


def read_steps(path: Path, every_sec: float, spec: ClipSpec) -> Iterator[Step]:
    """Cut a video into steps and read the clip of each, of the central square as `evaluate` does.

    The clip's frames are those around the step's middle, kept inside the video. Memory holds the
    clips that one frame is part of, however long the video is.

    Args:
        path: the video.
        every_sec: length of a step; the last one may be shorter.
        spec: the clips.

    Yields:
        The steps in order.

    Raises:
        VideoError: the video cannot be read, or not to its end: after the steps before that.
    """
    with open_video(path) as video:
        end = video.info.duration_sec
        box = central_box(width=video.info.width, height=video.info.height)
        count = max(1, math.ceil(end / every_sec - _LEAST))
        starts = every_sec * np.arange(count)
        stops = np.minimum(starts + every_sec, end)
        views = [View(float(middle), *box, flip=False) for middle in (starts + stops) / 2]
        stretch = (0.0, end)
        times = [clip_times(view, spec, start_sec=0.0, stop_sec=end) for view in views]
        begun: dict[int, ClipCutter] = {}
        for rgb, places in video.shown_at(np.concatenate(times)):
            whose = places // spec.frames
            for step in map(int, np.unique(whose)):
                if step not in begun:
                    begun[step] = ClipCutter(
                        path, [views[step]], [spec], stretch=stretch, test_crop=True
                    )
                begun[step].take(rgb, 0, places[whose == step] - step * spec.frames)
                if not begun[step].missing:
                    clip = begun.pop(step).finish([]).clips[0][0]
                    yield Step(float(starts[step]), float(stops[step]), clip)
