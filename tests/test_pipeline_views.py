"""Views: the rule that draws them, the record that is stored, the clip that is cut from them."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.views import (
    ClipSpec,
    View,
    ViewRule,
    centre_view,
    clip_times,
    cut_clip,
    draw_view,
    normalise,
)

RULE = ViewRule(seed=7, scale=(0.5, 1.0), span_sec=1.4, flip=True)
FRAMES = [(64, 64), (340, 256), (256, 340), (1920, 1080), (41, 97), (7, 640)]  # width, height
WHOLE = View(0.0, 0.0, 0.0, 1.0, 1.0, flip=False)


def draw(
    rule: ViewRule = RULE,
    sample_id: str = "bow-1",
    index: int = 0,
    stretch: tuple[float, float] = (0.5, 4.0),
    frame: tuple[int, int] = (340, 256),
) -> View:
    return draw_view(
        rule,
        sample_id=sample_id,
        index=index,
        start_sec=stretch[0],
        stop_sec=stretch[1],
        width=frame[0],
        height=frame[1],
    )


# --- the rule ----------------------------------------------------------------------------------


def test_a_draw_is_what_it_always_was() -> None:
    """Literal values: should they change, so do all views, and VIEW_RULE_VERSION must."""
    view = draw(index=1)
    expected = (
        3.0052459679342034,
        0.34622102183935993,
        0.1396334248190311,
        0.9672085629014961,
        0.9643825027921806,
    )
    assert (view.centre_sec, view.x0, view.y0, view.x1, view.y1) == pytest.approx(expected, 1e-12)
    assert view.flip is True


def test_a_draw_is_the_documented_arithmetic() -> None:
    digest = hashlib.sha256(b"7/1/bow-1").digest()
    time, area, left, top, mirror = np.random.default_rng(list(digest)).uniform(size=5)
    side = 256 * (0.5 + 0.5 * area) ** 0.5
    view = draw(index=1)
    assert view.centre_sec == pytest.approx(1.2 + time * 2.1)  # 0.5 + 0.7 to 4.0 - 0.7
    assert view.x0 * 340 == pytest.approx(left * (340 - side))
    assert view.y0 * 256 == pytest.approx(top * (256 - side))
    assert (view.x1 - view.x0) * 340 == pytest.approx(side)
    assert view.flip == (mirror < 0.5)


def test_a_draw_depends_on_its_own_sample_view_and_seed_alone() -> None:
    alone = draw(sample_id="b")
    for sample_id in ("a", "c", "d"):
        draw(sample_id=sample_id)
    assert draw(sample_id="b") == alone
    other_seed = ViewRule(8, RULE.scale, RULE.span_sec, RULE.flip)
    others = [draw(sample_id="a"), draw(sample_id="b", index=1), draw(other_seed, sample_id="b")]
    assert len({view.centre_sec for view in [alone, *others]}) == 4


@pytest.mark.parametrize("frame", FRAMES)
def test_boxes_are_squares_inside_the_frame_of_the_area_asked_for(frame: tuple[int, int]) -> None:
    width, height = frame
    largest = min(frame) ** 2
    for index in range(300):
        view = draw(index=index, frame=frame)
        assert 0 <= view.x0 < view.x1 <= 1
        assert 0 <= view.y0 < view.y1 <= 1
        side_x, side_y = (view.x1 - view.x0) * width, (view.y1 - view.y0) * height
        assert side_x == pytest.approx(side_y)
        assert 0.5 - 1e-9 <= side_x * side_y / largest <= 1 + 1e-9


def test_the_greatest_scale_still_fits_exactly() -> None:
    rule = ViewRule(seed=0, scale=(1.0, 1.0), span_sec=0.0, flip=False)
    for frame in FRAMES:
        for index in range(50):
            view = draw(rule, index=index, frame=frame)
            assert View.from_row(view.as_row()) == view  # a valid record in spite of rounding


def test_draws_fill_their_ranges() -> None:
    views = [draw(index=index, frame=(100, 100)) for index in range(2000)]
    centres = np.array([view.centre_sec for view in views])
    areas = np.array([(view.x1 - view.x0) * (view.y1 - view.y0) for view in views])
    room = np.array([view.x0 / (1 - view.x1 + view.x0) for view in views])
    for values, low, high in [(centres, 1.2, 3.3), (areas, 0.5, 1.0), (room, 0.0, 1.0)]:
        quarters = np.histogram(values, bins=4, range=(low, high))[0]
        assert quarters.sum() == 2000
        assert quarters.min() > 400  # 500 ± 19 of a uniform draw
    assert 0.45 < np.mean([view.flip for view in views]) < 0.55


def test_a_stretch_shorter_than_the_span_is_looked_at_in_its_middle() -> None:
    for index in range(20):
        assert draw(index=index, stretch=(3.0, 4.0)).centre_sec == pytest.approx(3.5)


def test_nothing_is_mirrored_where_the_rule_forbids_it() -> None:
    rule = ViewRule(seed=7, scale=(0.5, 1.0), span_sec=1.4, flip=False)
    for index in range(20):
        view = draw(rule, index=index)
        assert view == View(*draw(index=index).as_row()[:5].tolist(), flip=False)


def test_the_view_of_evaluation_is_the_middle() -> None:
    view = centre_view(start_sec=1.0, stop_sec=4.0, width=400, height=200)
    assert view == View(2.5, 0.25, 0.0, 0.75, 1.0, flip=False)
    tall = centre_view(start_sec=0.0, stop_sec=1.0, width=30, height=90)
    assert tall == View(0.5, 0.0, pytest.approx(1 / 3), 1.0, pytest.approx(2 / 3), flip=False)


# --- the record --------------------------------------------------------------------------------


def test_a_record_gives_the_view_back_exactly() -> None:
    for index in range(20):
        row = draw(index=index).as_row()
        assert row.dtype == np.float64
        assert row.shape == (6,)
        assert View.from_row(row) == draw(index=index)
    mirrored = View(1.5, 0.1, 0.2, 0.3, 0.4, flip=True)
    assert mirrored.as_row().tolist() == [1.5, 0.1, 0.2, 0.3, 0.4, 1.0]


@pytest.mark.parametrize(
    "row",
    [
        [np.nan, 0, 0, 1, 1, 0],
        [np.inf, 0, 0, 1, 1, 0],
        [1, -0.1, 0, 1, 1, 0],
        [1, 0, 0, 1.1, 1, 0],
        [1, 0.5, 0, 0.5, 1, 0],
        [1, 0, 0.6, 1, 0.5, 0],
        [1, 0, np.nan, 1, 1, 0],
        [1, 0, 0, 1, 1, 0.5],
        [0, 0, 0, 0, 0, 0],  # what the cache holds where no view was written
    ],
)
def test_what_is_no_view_is_refused(row: list[float]) -> None:
    with pytest.raises(ValueError, match="not a view record"):
        View.from_row(np.array(row, dtype=np.float64))


# --- times -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [
        (4, 15, [1.25, 1.75, 2.25, 2.75]),
        (5, 6, [1.6, 1.8, 2.0, 2.2, 2.4]),
        (2, 1, [2 - 1 / 60, 2 + 1 / 60]),
        (1, 8, [2.0]),
        (6, 30, [0.5, 0.5, 1.5, 2.5, 3.25, 3.25]),  # -0.5 and 0.5, 3.5 and 4.5: outside
    ],
)
def test_clip_times_by_hand(frames: int, stride: int, expected: list[float]) -> None:
    view = View(2.0, 0.0, 0.0, 1.0, 1.0, flip=False)
    times = clip_times(view, ClipSpec(frames, stride, 8), start_sec=0.5, stop_sec=3.25)
    assert times.dtype == np.float64
    np.testing.assert_allclose(times, expected, atol=1e-12)


def test_span_is_the_time_from_first_to_last_frame() -> None:
    assert ClipSpec(frames=16, stride=4, size=224).span_sec == 2.0
    assert ClipSpec(frames=1, stride=4, size=224).span_sec == 0.0


# --- pixels ------------------------------------------------------------------------------------


def resized(box: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """Bilinear, half-pixel centres, edges repeated, no antialiasing: one axis after the other."""

    def along_first(values: NDArray[np.float64]) -> NDArray[np.float64]:
        length = len(values)
        place = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, length - 1)
        share = (place - low).reshape(-1, *[1] * (values.ndim - 1))
        return values[low] * (1 - share) + values[high] * share

    rows = along_first(box.astype(np.float64))
    return along_first(rows.swapaxes(0, 1)).swapaxes(0, 1)


@pytest.mark.parametrize(
    ("box", "pixels", "size"),
    [
        ((0.0, 0.0, 1.0, 1.0), (0, 0, 40, 30), 16),
        ((0.25, 0.2, 0.75, 0.8), (10, 6, 30, 24), 32),
        ((0.26, 0.21, 0.74, 0.79), (10, 6, 30, 24), 7),  # 10.4, 6.3, 29.6, 23.7 pixels
        ((0.5, 0.5, 0.501, 0.501), (20, 15, 21, 16), 4),  # never less than a pixel
        ((0.999, 0.999, 1.0, 1.0), (39, 29, 40, 30), 4),
    ],
)
def test_a_clip_is_the_box_resized(
    box: tuple[float, float, float, float], pixels: tuple[int, int, int, int], size: int
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    clip = cut_clip(rgb, View(0.0, *box, flip=False), ClipSpec(3, 1, size))
    assert clip.dtype == np.uint8
    assert clip.shape == (3, size, size, 3)
    left, top, right, bottom = pixels
    for frame, cut in zip(rgb, clip, strict=True):
        expected = resized(frame[top:bottom, left:right], size)
        assert np.abs(cut - expected).max() <= 1.0


def test_a_box_of_the_size_asked_for_keeps_its_pixels() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(cut_clip(rgb, WHOLE, ClipSpec(2, 1, 24)), rgb)


def test_a_flip_mirrors_left_to_right() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    spec = ClipSpec(2, 1, 16)
    plain = cut_clip(rgb, View(0.0, 0.1, 0.0, 0.9, 1.0, flip=False), spec)
    mirrored = cut_clip(rgb, View(0.0, 0.1, 0.0, 0.9, 1.0, flip=True), spec)
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


def test_cutting_leaves_the_frames_alone() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    before = rgb.copy()
    clip = cut_clip(rgb, WHOLE, ClipSpec(2, 1, 24))
    clip[:] = 0
    np.testing.assert_array_equal(rgb, before)


def test_normalise_is_mean_and_std_per_channel_on_zero_to_one() -> None:
    spec = ClipSpec(2, 1, 4, mean=(0.1, 0.45, 0.9), std=(0.5, 0.225, 0.1))
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 4, 3), dtype=np.uint8)
    batch = normalise(torch.from_numpy(clips), spec)
    expected = (clips / 255 - np.array(spec.mean)) / np.array(spec.std)
    assert batch.dtype == torch.float32
    assert batch.shape == (3, 3, 2, 4, 4)
    np.testing.assert_allclose(batch.numpy(), np.moveaxis(expected, -1, 1), rtol=1e-5, atol=1e-5)


def test_a_narrowed_view_is_the_middle_of_its_box() -> None:
    view = View(1.0, 0.25, 0.0, 0.75, 1.0, flip=False)
    narrow = view.narrowed(224 / 256)
    np.testing.assert_allclose(
        [narrow.x0, narrow.y0, narrow.x1, narrow.y1], [0.28125, 0.0625, 0.71875, 0.9375]
    )
    assert (narrow.centre_sec, narrow.flip) == (1.0, False)
    assert view.narrowed(1.0) is view
