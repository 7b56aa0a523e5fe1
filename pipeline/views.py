"""Views: one replayable look at a sample, drawn once and stored as plain numbers.

A view is a centre time, a crop box in fractions of the frame, and a flip. Each network cuts its
own clip from the same view: its own number of frames at its own stride around the centre, the same
box resized to its own size. The record, not a random state, is what is stored, so a view replays
exactly on any machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.resizing import resize

if TYPE_CHECKING:
    import torch

VIEW_RULE_VERSION = 1  # of `draw_view`: a changed rule draws other views from the same seed
REFERENCE_RATE = 30.0  # frames per second that published strides assume


@dataclass(frozen=True)
class ClipSpec:
    """The clip that a network takes.

    Attributes:
        frames: number of frames.
        stride: frames of a 30 fps video from one to the next: `stride / 30` seconds.
        size: pixels, width and height.
        mean: per RGB channel, on [0, 1].
        std: per RGB channel, on [0, 1].
        test_share: what the published evaluation sees of the central square, as a share of its
            side: 224 / 256 for a crop of 224 pixels of frames resized to 256. Views that are drawn
            have their own boxes; this is for evaluation alone.
    """

    frames: int
    stride: int
    size: int
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    test_share: float = 1.0

    @property
    def span_sec(self) -> float:
        """Seconds from the first frame to the last."""
        return (self.frames - 1) * self.stride / REFERENCE_RATE


@dataclass(frozen=True)
class View:
    """One look at a sample; the fields are the columns of the cache's `views` array.

    Attributes:
        centre_sec: seconds since the first frame of the video.
        x0: left edge of the box, as a fraction of the frame's width.
        y0: top edge, as a fraction of the height.
        x1: right edge.
        y1: bottom edge.
        flip: mirrored left to right.
    """

    centre_sec: float
    x0: float
    y0: float
    x1: float
    y1: float
    flip: bool

    def as_row(self) -> NDArray[np.float64]:
        """(6,) float64, the record that the cache stores."""
        return np.array([self.centre_sec, self.x0, self.y0, self.x1, self.y1, float(self.flip)])

    def narrowed(self, share: float) -> View:
        """The same view of the middle of its box: `share` of its width and height."""
        if share == 1.0:
            return self
        x, y = (self.x1 - self.x0) * (1 - share) / 2, (self.y1 - self.y0) * (1 - share) / 2
        return replace(self, x0=self.x0 + x, y0=self.y0 + y, x1=self.x1 - x, y1=self.y1 - y)

    @classmethod
    def from_row(cls, row: NDArray[np.float64]) -> View:
        """The inverse of `as_row`.

        Raises:
            ValueError: the record is not finite, or its box is not inside the frame.
        """
        centre, x0, y0, x1, y1, flip = (float(value) for value in row)
        inside = 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
        if not (np.isfinite(centre) and inside and flip in (0.0, 1.0)):
            raise ValueError(f"not a view record: {row.tolist()}")
        return cls(centre, x0, y0, x1, y1, bool(flip))


@dataclass(frozen=True)
class ViewRule:
    """How views are drawn.

    Attributes:
        seed: with the sample id and the view's index it decides a view.
        scale: least and greatest area of the box, as a share of the largest square.
        span_sec: centres keep half of this from both ends, so that clips rarely run over them.
        flip: mirror half of the views. Never where left and right are classes.
    """

    seed: int
    scale: tuple[float, float]
    span_sec: float
    flip: bool


def draw_view(
    rule: ViewRule,
    *,
    sample_id: str,
    index: int,
    start_sec: float,
    stop_sec: float,
    width: int,
    height: int,
) -> View:
    """Draw view `index` of a sample: a function of its arguments and nothing else.

    The centre is uniform over the stretch less half a span at each end (the middle, where the
    stretch is shorter than the span); the box is a square in pixels, its area uniform in `scale`
    times the largest square, its place uniform in the frame.
    """
    key = f"{rule.seed}/{index}/{sample_id}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(key).digest()))
    time, area, left, top, mirror = rng.uniform(size=5)
    margin = min(rule.span_sec, stop_sec - start_sec) / 2
    low, high = start_sec + margin, stop_sec - margin
    side = np.sqrt(rule.scale[0] + area * (rule.scale[1] - rule.scale[0])) * min(width, height)
    x0, y0 = left * (width - side) / width, top * (height - side) / height
    return View(
        centre_sec=float(low + time * (high - low)),
        x0=float(x0),
        y0=float(y0),
        x1=min(1.0, float(x0 + side / width)),
        y1=min(1.0, float(y0 + side / height)),
        flip=bool(rule.flip and mirror < 0.5),
    )


def centre_view(*, start_sec: float, stop_sec: float, width: int, height: int) -> View:
    """The single view of evaluation: the middle of the stretch, the central square, no flip."""
    box = central_box(width=width, height=height)
    return View((start_sec + stop_sec) / 2, *box, flip=False)


def central_box(*, width: int, height: int) -> tuple[float, float, float, float]:
    """The largest square in the middle of a frame: x0, y0, x1, y1 as fractions of it."""
    side = min(width, height)
    x, y = side / width / 2, side / height / 2
    return 0.5 - x, 0.5 - y, 0.5 + x, 0.5 + y


def clip_times(
    view: View, spec: ClipSpec, *, start_sec: float, stop_sec: float
) -> NDArray[np.float64]:
    """Times of a clip's frames, (spec.frames,) seconds, kept inside [start_sec, stop_sec]."""
    steps = np.arange(spec.frames) - (spec.frames - 1) / 2
    times = view.centre_sec + steps * spec.stride / REFERENCE_RATE
    return np.clip(times, start_sec, stop_sec)


def cut_clip(rgb: NDArray[np.uint8], view: View, spec: ClipSpec) -> NDArray[np.uint8]:
    """Cut the view's box from frames and resize it to the network's size.

    The box is rounded to whole pixels; the resize is bilinear without antialiasing on uint8, as
    the published models of this field were evaluated (torchvision's MViT and pytorchvideo's X3D).

    Args:
        rgb: (T, H, W, 3) uint8.
        view: the box and the flip.
        spec: the size.

    Returns:
        (T, spec.size, spec.size, 3) uint8.
    """
    height, width = rgb.shape[1:3]
    left, right = _pixels(view.x0, view.x1, width)
    top, bottom = _pixels(view.y0, view.y1, height)
    clip = resize(rgb[:, top:bottom, left:right], spec.size)
    return np.ascontiguousarray(clip[:, :, ::-1] if view.flip else clip)


def _pixels(low: float, high: float, length: int) -> tuple[int, int]:
    """Whole pixels of a fractional interval, at least one of them."""
    first = min(round(low * length), length - 1)
    return first, max(first + 1, min(round(high * length), length))


def normalise(clips: torch.Tensor, spec: ClipSpec) -> torch.Tensor:
    """Turn stored clips into network input.

    Args:
        clips: (B, T, H, W, 3) uint8.
        spec: mean and std.

    Returns:
        (B, 3, T, H, W) float32, on the clips' device.
    """
    import torch  # noqa: PLC0415  # takes seconds, and `predict` may do without

    mean = torch.tensor(spec.mean, device=clips.device) * 255
    std = torch.tensor(spec.std, device=clips.device) * 255
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3)


def normalise_array(clips: NDArray[np.uint8], spec: ClipSpec) -> NDArray[np.float32]:
    """What `normalise` gives, to the bit, without torch.

    Args:
        clips: (B, T, H, W, 3) uint8.
        spec: mean and std.

    Returns:
        (B, 3, T, H, W) float32, contiguous.
    """
    mean = np.array(spec.mean, np.float32) * np.float32(255)
    std = np.array(spec.std, np.float32) * np.float32(255)
    values = (clips.astype(np.float32) - mean) / std
    return np.ascontiguousarray(values.transpose(0, 4, 1, 2, 3))
