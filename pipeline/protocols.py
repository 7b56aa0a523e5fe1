"""Evaluation protocols: which views of a sample are scored, and what crop of them.

A protocol is so many clips, uniformly over the sample's stretch of video, times so many crops:
`5x1` is how MViT was evaluated, `10x3` X3D and SlowFast, `10x1` SlowFast on EPIC-KITCHENS-100
(docs/evaluation.md names the files). All networks are shown the same views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.reading import stretch
from pipeline.sample import Sample
from pipeline.video import VideoInfo
from pipeline.views import View, central_box


@dataclass(frozen=True)
class Protocol:
    """How many views are scored.

    Attributes:
        clips: clips over the stretch of a sample.
        crops: 1, the central square, of which each network sees its own `test_share`; or 3, the
            squares of the short side at both ends and in the middle of the long side, each whole.
    """

    clips: int
    crops: Literal[1, 3]

    @property
    def views(self) -> int:
        """Views of a sample, where none of them are the same."""
        return self.clips * self.crops

    @property
    def test_crop(self) -> bool:
        """Whether a network sees its `test_share` of a view, or all of it."""
        return self.crops == 1


CENTRE = Protocol(1, 1)
PROTOCOLS = {
    "centre": CENTRE,
    "5x1": Protocol(5, 1),
    "10x1": Protocol(10, 1),
    "10x3": Protocol(10, 3),
}


@dataclass(frozen=True)
class ProtocolViews:
    """Chooses the views of a protocol, as a `pipeline.clips.ViewChoice`.

    Attributes:
        protocol: which views.
        span_sec: seconds of the longest clip that is cut of them, from its first frame to its last.
    """

    protocol: Protocol
    span_sec: float

    def __call__(self, sample: Sample, info: VideoInfo) -> list[View]:
        """The views, by time, then by place; each once, though several may have been the same.

        Raises:
            VideoError: the stretch begins after the end of the video.
        """
        start, stop = stretch(sample, info)
        centres = clip_centres(
            self.protocol.clips, span_sec=self.span_sec, start_sec=start, stop_sec=stop
        )
        boxes = crop_boxes(self.protocol.crops, width=info.width, height=info.height)
        views = [View(centre, *box, flip=False) for centre in centres for box in boxes]
        # Of a short stretch all clips are one, of a square video all crops: each stands for as many
        # others, so their mean is that of all.
        return list(dict.fromkeys(views))


def clip_centres(clips: int, *, span_sec: float, start_sec: float, stop_sec: float) -> list[float]:
    """Centres of clips that are spread evenly: the first begins the stretch, the last ends it.

    Clip i of n begins at start + i · (stop − start − span) / (n − 1): SlowFast's
    `get_start_end_idx` with `DATA.USE_OFFSET_SAMPLING`, which MViT's configs set, and
    pytorchvideo's `ConstantClipsPerVideoSampler`
    (https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/decoder.py). Without
    that option SlowFast divides by n, so that the last clip ends before the video does. Where the
    stretch is no longer than the span, or with a single clip, each centre is the middle.

    Args:
        clips: how many, n.
        span_sec: seconds from a clip's first frame to its last.
        start_sec: begin of the stretch.
        stop_sec: its end.

    Returns:
        n seconds, rising.
    """
    room = stop_sec - start_sec - span_sec
    if clips == 1 or room <= 0:
        return [(start_sec + stop_sec) / 2] * clips
    return [start_sec + span_sec / 2 + room * index / (clips - 1) for index in range(clips)]


def crop_boxes(
    crops: Literal[1, 3], *, width: int, height: int
) -> list[tuple[float, float, float, float]]:
    """Boxes (x0, y0, x1, y1) of squares with the short side, as fractions of the frame.

    Three crops are left, middle and right of a frame that is wide, top, middle and bottom of one
    that is tall, as SlowFast's `uniform_crop`
    (https://github.com/facebookresearch/SlowFast/blob/main/slowfast/datasets/transform.py).

    Args:
        crops: 1, the middle, or 3.
        width: of the frame in pixels.
        height: of the frame in pixels.
    """
    middle = central_box(width=width, height=height)
    if crops == 1:
        return [middle]
    if width >= height:
        share = height / width
        return [(0.0, 0.0, share, 1.0), middle, (1 - share, 0.0, 1.0, 1.0)]
    share = width / height
    return [(0.0, 0.0, 1.0, share), middle, (0.0, 1 - share, 1.0, 1.0)]
