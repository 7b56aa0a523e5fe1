"""A video in steps: the clips that single readings give, one pass, and no more in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import steps as module
from pipeline.cutting import ClipCutter, SampleClips
from pipeline.reading import read_clips
from pipeline.sample import Sample
from pipeline.steps import read_steps
from pipeline.video import VideoError, VideoInfo
from pipeline.views import ClipSpec, View, central_box
from video_making import cut_off, frame_number, write_video

SPEC = ClipSpec(frames=4, stride=6, size=24, test_share=0.875)


def test_each_step_has_the_clip_that_is_read_around_its_middle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=60)  # 2.4 s
    steps = list(read_steps(path, 0.7, SPEC))
    assert [step.start_sec for step in steps] == pytest.approx([0.0, 0.7, 1.4, 2.1])
    assert [step.stop_sec for step in steps] == pytest.approx([0.7, 1.4, 2.1, 2.4])
    sample = Sample(sample_id="a", path="a.mp4", split="", labels={})
    for step in steps:

        def middle(_sample: Sample, info: VideoInfo, step: module.Step = step) -> list[View]:
            box = central_box(width=info.width, height=info.height)
            return [View((step.start_sec + step.stop_sec) / 2, *box, flip=False)]

        read = read_clips(tmp_path, sample, middle, [SPEC], test_crop=True)
        np.testing.assert_array_equal(step.clip, read.clips[0][0])


def test_frames_are_those_on_screen_around_the_middle(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=100, size=(48, 48))
    spec = ClipSpec(frames=2, stride=6, size=48)  # 0.2 s apart
    found = [[frame_number(frame) for frame in step.clip] for step in read_steps(path, 1.0, spec)]
    # Middles at 0.5, 1.5, …; frames 0.1 s before and behind, at 25 fps.
    assert found == [[10, 15], [35, 40], [60, 65], [85, 90]]


def test_a_step_longer_than_the_video_is_all_of_it(tmp_path: Path) -> None:
    (step,) = read_steps(write_video(tmp_path / "a.mp4", frames=25), 60.0, SPEC)
    assert (step.start_sec, step.stop_sec) == (0.0, pytest.approx(1.0))


def test_a_rounding_of_the_duration_is_no_step(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", frames=50)  # whose durations are in milliseconds
    assert len(list(read_steps(path, 0.2, SPEC))) == 10


def test_memory_holds_only_clips_that_are_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, most = 0, 0

    class Counted(ClipCutter):
        def __init__(self, *arguments: object, **options: object) -> None:
            nonlocal held, most
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            held, most = held + 1, max(most, held + 1)

        def finish(self, *arguments: object) -> SampleClips:  # type: ignore[override]
            nonlocal held
            held -= 1
            return super().finish(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "ClipCutter", Counted)
    path = write_video(tmp_path / "a.mp4", frames=250)
    assert len(list(read_steps(path, 0.2, SPEC))) == 50
    assert held == 0
    assert most <= SPEC.span_sec / 0.2 + 2


def test_a_truncated_video_has_the_steps_before(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=250, faststart=True, noise=True)
    cut_off(path, 0.5)
    coming = read_steps(path, 1.0, SPEC)
    assert [next(coming).stop_sec for _ in range(2)] == [1.0, 2.0]
    with pytest.raises(VideoError, match=r"a\.mp4"):
        list(coming)
