"""The clips of one sample, cut out of its frames as they come by; no frame is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.video_interface import check_same_size
from pipeline.views import ClipSpec, View, clip_times, cut_clip


@dataclass(frozen=True)
class SampleClips:
    """All clips of some views of one sample.

    Attributes:
        views: (V, 6) float64, the view records.
        clips: per clip specification (V, T, size, size, 3) uint8.
        digests: (V, G) uint64, of the decoded frames that the clips of a view were cut from, for
            each group of specifications.
    """

    views: NDArray[np.float64]
    clips: tuple[NDArray[np.uint8], ...]
    digests: NDArray[np.uint64]


def frame_digest(rgb: NDArray[np.uint8]) -> int:
    """xxh3_64 of a frame's RGB bytes."""
    return xxhash.xxh3_64_intdigest(rgb.data)


class ClipCutter:
    """The clips of one sample while its frames come by.

    Attributes:
        times: (N,) float64, seconds: when the frames of all clips are due, by view, then by
            specification, then in the order of the clip.
        missing: how many of them have no frame yet.
    """

    def __init__(
        self,
        path: Path,
        views: Sequence[View],
        specs: Sequence[ClipSpec],
        *,
        stretch: tuple[float, float],
        test_crop: bool,
    ) -> None:
        """Lay out the clips.

        Args:
            path: the video, for messages.
            views: the sample's.
            specs: the clips to be cut of each view.
            stretch: begin and end of the sample in seconds.
            test_crop: cut each specification's `test_share` out of the views.
        """
        start, stop = stretch
        self._path, self._views, self._specs = path, views, specs
        self._boxes = [
            [view.narrowed(spec.test_share) if test_crop else view for spec in specs]
            for view in views
        ]
        self.times = np.concatenate(
            [
                clip_times(view, spec, start_sec=start, stop_sec=stop)
                for view in views
                for spec in specs
            ]
        )
        # Of each time: which view, which specification, which frame of the clip.
        self._places = [
            (row, which, frame)
            for row in range(len(views))
            for which, spec in enumerate(specs)
            for frame in range(spec.frames)
        ]
        self._clips = [
            np.empty((len(views), spec.frames, spec.size, spec.size, 3), np.uint8) for spec in specs
        ]
        self._digests = np.zeros(len(self.times), "<u8")
        self._shape: tuple[int, ...] | None = None
        self.missing = len(self.times)

    def take(self, rgb: NDArray[np.uint8], digest: int, places: NDArray[np.int64]) -> None:
        """Cut what is due out of a frame.

        Args:
            rgb: (H, W, 3) uint8.
            digest: its `frame_digest`.
            places: (n,) where in `times` it is due.

        Raises:
            VideoError: the frame has another size than the one before.
        """
        check_same_size(self._path, rgb.shape, self._shape or rgb.shape)
        self._shape = rgb.shape
        self._digests[places] = digest
        self.missing -= len(places)
        cut: dict[tuple[View, int], NDArray[np.uint8]] = {}  # networks may share box and size
        for place in places:
            row, which, frame = self._places[place]
            box, spec = self._boxes[row][which], self._specs[which]
            if (box, spec.size) not in cut:
                cut[box, spec.size] = cut_clip(rgb[None], box, spec)[0]
            self._clips[which][row, frame] = cut[box, spec.size]

    def finish(self, groups: Sequence[Sequence[int]]) -> SampleClips:
        """The clips, once no frame is missing.

        Args:
            groups: of specifications, by index; each has a digest, which is xxh3_64 over the
                little-endian digests of its frames, in order.
        """
        lengths = [spec.frames for spec in self._specs] * len(self._views)
        parts = np.split(self._digests, np.cumsum(lengths)[:-1])
        digests = []
        for row in range(len(self._views)):
            of_row = parts[row * len(self._specs) : (row + 1) * len(self._specs)]
            seen = [np.concatenate([of_row[which] for which in group]) for group in groups]
            digests.append([xxhash.xxh3_64_intdigest(of_group.tobytes()) for of_group in seen])
        return SampleClips(
            views=np.stack([view.as_row() for view in self._views]),
            clips=tuple(self._clips),
            digests=np.array(digests, dtype=np.uint64),
        )
