"""Evaluation protocols: the views against SlowFast's arithmetic in frames and pixels."""

from __future__ import annotations

import math
import typing

import pytest

from pipeline.config import Evaluate
from pipeline.protocols import CENTRE, PROTOCOLS, ProtocolViews, clip_centres, crop_boxes
from pipeline.samples import Sample
from pipeline.video import VideoError, VideoInfo
from pipeline.views import centre_view

SAMPLE = Sample("a", "a.mp4", "test", {"action": 0})
WIDE, TALL, SQUARE = (340, 256), (256, 454), (112, 112)


def info(size: tuple[int, int] = WIDE, duration_sec: float = 10.0) -> VideoInfo:
    return VideoInfo(*size, duration_sec, 30.0)


def test_a_config_names_the_protocols_that_there_are() -> None:
    field = Evaluate.model_fields["protocol"]
    assert set(typing.get_args(field.annotation)) == PROTOCOLS.keys()
    assert PROTOCOLS[field.default] is CENTRE
    assert {name: protocol.views for name, protocol in PROTOCOLS.items()} == {
        "centre": 1,
        "5x1": 5,
        "10x1": 10,
        "10x3": 30,
    }
    assert [name for name, protocol in PROTOCOLS.items() if not protocol.test_crop] == ["10x3"]


@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE, (341, 255)])
def test_the_centre_is_the_single_view_of_before(size: tuple[int, int]) -> None:
    part = Sample("a", "a.mp4", "test", {}, 1.3, 7.9)
    for sample, start, stop in ((SAMPLE, 0.0, info(size).duration_sec), (part, 1.3, 7.9)):
        view = centre_view(start_sec=start, stop_sec=stop, width=size[0], height=size[1])
        assert ProtocolViews(CENTRE, 2.0)(sample, info(size)) == [view]


@pytest.mark.parametrize("clips", [2, 5, 10])
@pytest.mark.parametrize(("frames", "span"), [(300, 64), (301, 75), (76, 75), (40, 75)])
def test_clips_lie_where_slowfast_lays_them(clips: int, frames: int, span: int) -> None:
    """In frames: begins at i · floor(delta / (n - 1)), in a video and of a clip of so many."""
    delta = max(frames - span, 0)
    found = clip_centres(clips, span_sec=span / 30, start_sec=2.0, stop_sec=2.0 + frames / 30)
    for index, centre in enumerate(found):
        begin = (centre - 2.0) * 30 - span / 2
        if delta == 0:  # SlowFast repeats the last frame, here the clip stays in the middle
            assert begin == pytest.approx((frames - span) / 2)
        else:
            assert abs(begin - index * math.floor(delta / (clips - 1))) < clips
            assert begin == pytest.approx(index * delta / (clips - 1))


def test_clips_by_hand() -> None:
    assert clip_centres(5, span_sec=2.0, start_sec=10.0, stop_sec=20.0) == [11, 13, 15, 17, 19]
    assert clip_centres(1, span_sec=2.0, start_sec=10.0, stop_sec=20.0) == [15]
    assert clip_centres(3, span_sec=9.0, start_sec=10.0, stop_sec=13.0) == [11.5] * 3


@pytest.mark.parametrize("size", [WIDE, TALL, SQUARE, (320, 240), (1920, 1080), (101, 33)])
def test_crops_lie_where_slowfast_cuts_them(size: tuple[int, int]) -> None:
    """In pixels: 0, ceil((long - short) / 2) and long - short along the long side."""
    (width, height), side = size, min(size)
    expected = [0, math.ceil((max(size) - side) / 2), max(size) - side]
    boxes = crop_boxes(3, width=width, height=height)
    assert boxes[1] == crop_boxes(1, width=width, height=height)[0]
    for (x0, y0, x1, y1), offset in zip(boxes, expected, strict=True):
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert (x1 - x0) * width == pytest.approx(side)
        assert (y1 - y0) * height == pytest.approx(side)
        along, across = (x0 * width, y0 * height) if width >= height else (y0 * height, x0 * width)
        assert across == pytest.approx(0)
        assert abs(along - offset) <= 0.5 + 1e-9


def test_views_come_by_time_then_place_and_each_once() -> None:
    choose = ProtocolViews(PROTOCOLS["10x3"], 2.0)
    views = choose(SAMPLE, info())
    assert len(views) == len(set(views)) == 30
    assert [view.centre_sec for view in views] == sorted(view.centre_sec for view in views)
    assert not any(view.flip for view in views)
    assert len(choose(SAMPLE, info(duration_sec=1.9))) == 3  # all ten clips are the same
    assert len(choose(SAMPLE, info(SQUARE))) == 10  # all three crops are
    assert len(choose(SAMPLE, info(SQUARE, 1.9))) == 1


def test_a_stretch_behind_the_end_is_an_answer() -> None:
    late = Sample("a", "a.mp4", "test", {}, 12.0, 13.0)
    with pytest.raises(VideoError, match=r"starts at 12\.00 s, but the video ends at 10\.00 s"):
        ProtocolViews(PROTOCOLS["5x1"], 2.0)(late, info())
