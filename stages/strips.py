"""Videos as films for the page: their frames side by side in one picture, and what was answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.clips import stretch
from pipeline.samples import Sample
from pipeline.video import VideoError, open_video
from pipeline.views import ClipSpec, centre_view, clip_times, cut_clip
from stages.pictures import picture_uri

FRAMES = 12  # of a film; a short video shows some of its own twice
_MOST_PIXELS = 96  # of a frame's side; smaller videos keep their own pixels
MOST_BYTES = 24_000  # of a film


@dataclass(frozen=True)
class Answer:
    """What one network says of a video."""

    role: str
    name: str
    probability: float
    right: bool


@dataclass(frozen=True)
class Strip:
    """One test video of a class.

    Attributes:
        class_name: its label.
        sample_id: which video; None where the class has none.
        span_sec: seconds from the first frame shown to the last.
        film: `FRAMES` frames side by side as a data URI; empty where there are none.
        small: whether the frames have so few pixels that they are better not smoothed.
        answers: of each network.
        error: why there is no film.
    """

    class_name: str
    sample_id: str | None = None
    span_sec: float = 0.0
    film: str = ""
    small: bool = False
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None


def make_strips(
    root: Path,
    spec: ClipSpec,
    wanted: Sequence[tuple[str, Sample | None]],
    answers: Mapping[str, Sequence[Answer]],
) -> Iterator[Strip]:
    """Read videos, each with its class's name.

    Args:
        root: the dataset's root.
        spec: the frames are spread over the span of such a clip.
        wanted: class and video, in the order of the strips; None where a class has no video.
        answers: by sample id.
    """
    for name, sample in wanted:
        if sample is None:
            yield Strip(name, error="no video of this class could be scored")
            continue
        about = {"sample_id": sample.sample_id, "answers": list(answers[sample.sample_id])}
        try:
            span, frames = _frames(root, sample, spec)
        except VideoError as error:
            yield Strip(name, **about, error=str(error))  # type: ignore[arg-type]
            continue
        small = frames.shape[1] <= _MOST_PIXELS
        film = picture_uri(np.concatenate([_shrunk(one) for one in frames], axis=1), MOST_BYTES)
        yield Strip(name, **about, span_sec=span, film=film, small=small)  # type: ignore[arg-type]


def _frames(root: Path, sample: Sample, spec: ClipSpec) -> tuple[float, NDArray[np.uint8]]:
    """The centre view of evaluation at the video's own resolution: span, (FRAMES, H, W, 3)."""
    with open_video(root / sample.path) as video:
        start, stop = stretch(sample, video.info)
        view = centre_view(
            start_sec=start, stop_sec=stop, width=video.info.width, height=video.info.height
        )
        times = clip_times(view, spec, start_sec=start, stop_sec=stop)
        span = float(times[-1] - times[0])
        decoded = video.frames_at(np.linspace(times[0], times[-1], FRAMES))
        side = min(video.info.width, video.info.height)
    own = ClipSpec(frames=FRAMES, stride=spec.stride, size=side)  # no resizing
    return span, cut_clip(decoded.rgb[decoded.index], view, own)


def _shrunk(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(frame)
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    return np.asarray(image)
