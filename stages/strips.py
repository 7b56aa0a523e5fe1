"""A strip of frames of each class: what the networks are shown, and what they answer."""

from __future__ import annotations

import base64
import io
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

_MOST_FRAMES = 8
_MOST_PIXELS = 96  # of a frame's side; smaller videos keep their own pixels
_JPEG_QUALITY = 88


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
        frames: data URIs.
        small: whether the frames have so few pixels that they are better not smoothed.
        answers: of each network.
        error: why there are no frames.
    """

    class_name: str
    sample_id: str | None = None
    span_sec: float = 0.0
    frames: list[str] = field(default_factory=list)
    small: bool = False
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None


def make_strips(
    root: Path,
    spec: ClipSpec,
    classes: Sequence[str],
    samples: Mapping[str, Sample | None],
    answers: Mapping[str, Sequence[Answer]],
) -> Iterator[Strip]:
    """Read one video per class.

    Args:
        root: the dataset's root.
        spec: the frames are spread over the span of such a clip.
        classes: their names, in the order of the strips.
        samples: by class name; None where the class has no video.
        answers: by sample id.
    """
    for name in classes:
        sample = samples.get(name)
        if sample is None:
            yield Strip(name, error="no video of this class could be scored")
            continue
        about = {"sample_id": sample.sample_id, "answers": list(answers[sample.sample_id])}
        try:
            span, frames = _frames(root, sample, spec)
        except VideoError as error:
            yield Strip(name, **about, error=str(error))  # type: ignore[arg-type]
            continue
        uris = [_data_uri(frame) for frame in frames]
        small = frames.shape[1] <= _MOST_PIXELS
        yield Strip(name, **about, span_sec=span, frames=uris, small=small)  # type: ignore[arg-type]


def _frames(root: Path, sample: Sample, spec: ClipSpec) -> tuple[float, NDArray[np.uint8]]:
    """The centre view of evaluation at the video's own resolution: span, (T, H, W, 3)."""
    with open_video(root / sample.path) as video:
        start, stop = stretch(sample, video.info)
        view = centre_view(
            start_sec=start, stop_sec=stop, width=video.info.width, height=video.info.height
        )
        times = clip_times(view, spec, start_sec=start, stop_sec=stop)
        chosen = np.linspace(0, len(times) - 1, min(len(times), _MOST_FRAMES)).round().astype(int)
        decoded = video.frames_at(times[chosen])
        side = min(video.info.width, video.info.height)
    own = ClipSpec(frames=len(chosen), stride=spec.stride, size=side)  # no resizing
    return float(times[-1] - times[0]), cut_clip(decoded.rgb[decoded.index], view, own)


def _data_uri(frame: NDArray[np.uint8]) -> str:
    image = Image.fromarray(frame)
    image.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
