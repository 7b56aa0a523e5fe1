"""What every source of frames answers, be it a video file or a folder of pictures.

Time 0 is the presentation of the first frame, so files whose time stamps start elsewhere behave
alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Containers store time stamps as integers in units such as 1/12800 s: a frame due at 1.0 may read
# as 0.99999.
TOLERANCE_SEC = 1e-4


class VideoError(Exception):
    """A video cannot be read; the message says which and why."""


@dataclass(frozen=True)
class VideoInfo:
    """What a video says of itself.

    Attributes:
        width: pixels, as decoded and turned upright.
        height: pixels, as decoded and turned upright.
        duration_sec: seconds, from the first frame's presentation to the end of the last.
        frame_rate: mean frames per second.
    """

    width: int
    height: int
    duration_sec: float
    frame_rate: float


@dataclass(frozen=True)
class Frames:
    """Decoded frames and which of them is on screen at each time that was asked for.

    Attributes:
        rgb: (U, H, W, 3) uint8, every frame that was needed, once, in order of presentation.
        index: (N,) int64, for each asked time the row of `rgb`.
    """

    rgb: NDArray[np.uint8]
    index: NDArray[np.int64]


class Video(ABC):
    """An open video. Made by `pipeline.video.open_video`.

    Attributes:
        path: as it was asked for.
        info: what it says of itself.
    """

    path: Path
    info: VideoInfo

    @abstractmethod
    def shown_at(
        self, times_sec: NDArray[np.float64]
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        """Pass over the video once, forward, and give each needed frame as it comes.

        The frame on screen at t is the last one presented at or before t. Before the first frame
        it is the first, after the last it is the last: edge frames repeat.

        Args:
            times_sec: (N,) seconds since the first frame, in any order.

        Yields:
            Per needed frame, in order of presentation: (H, W, 3) uint8 RGB, which may be read
            only, and (n,) int64, the places in `times_sec` of the times at which it is on screen.

        Raises:
            VideoError: the video cannot be read up to the last needed frame.
        """

    def frames_at(self, times_sec: NDArray[np.float64]) -> Frames:
        """The frames on screen at the given times, all at once.

        Args:
            times_sec: (N,) seconds since the first frame, in any order; N > 0.

        Raises:
            VideoError: see `shown_at`; or two of the frames have different sizes.
        """
        index = np.empty(len(times_sec), dtype=np.int64)
        kept: list[NDArray[np.uint8]] = []
        for rgb, places in self.shown_at(times_sec):
            index[places] = len(kept)
            kept.append(rgb)
            check_same_size(self.path, rgb.shape, kept[0].shape)
        return Frames(rgb=np.stack(kept), index=index)


def check_same_size(path: Path, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    """Refuse frames of one clip that differ in size.

    Raises:
        VideoError: they do.
    """
    if one != other:
        raise VideoError(f"{path}: the size of the picture changes within the video")
