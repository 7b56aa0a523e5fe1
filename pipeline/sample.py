"""One row of the samples table: a labelled stretch of a video."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """One labelled stretch of one video.

    Attributes:
        sample_id: the dataset's own stable id, never a row number.
        path: the video, relative to the dataset's root, with forward slashes.
        split: `train`, `test`, …
        labels: class index by head; a head is absent where the split has no labels.
        start_sec: begin of the stretch, seconds since the first frame.
        stop_sec: end of the stretch; None is the end of the video.
    """

    sample_id: str
    path: str
    split: str
    labels: Mapping[str, int]
    start_sec: float = 0.0
    stop_sec: float | None = None
