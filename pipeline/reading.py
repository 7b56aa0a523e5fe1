"""From a sample's file to the clips of its views: one open, one decode, every network's clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.cutting import ClipCutter, SampleClips, frame_digest
from pipeline.sample import Sample
from pipeline.video import Video, VideoError, VideoInfo, open_video
from pipeline.views import ClipSpec, View

ViewChoice = Callable[[Sample, VideoInfo], Sequence[View]]


def read_clips(
    root: Path,
    sample: Sample,
    choose: ViewChoice,
    specs: Sequence[ClipSpec],
    *,
    digested: Sequence[Sequence[int]] | None = None,
    test_crop: bool = False,
) -> SampleClips:
    """Open a sample's video, choose its views, decode once and cut every clip.

    The digest of a view is xxh3_64 over the little-endian xxh3_64 of the RGB bytes of each frame
    on screen at the times of a group's clips, in the order of the specifications, then of time.

    Args:
        root: the dataset's root.
        sample: the sample.
        choose: from the sample and what its container says to its views.
        specs: clip specifications.
        digested: groups of specifications, by index, each of which has a digest of its own; by
            default all are one group.
        test_crop: cut each specification's `test_share` out of the views, for evaluation.

    Raises:
        VideoError: the video cannot be read; the message says why.
    """
    (answer,) = read_together(
        root, [(sample, choose)], specs, digested=digested, test_crop=test_crop
    )
    if isinstance(answer, VideoError):
        raise answer
    return answer


def read_together(
    root: Path,
    wanted: Sequence[tuple[Sample, ViewChoice]],
    specs: Sequence[ClipSpec],
    *,
    digested: Sequence[Sequence[int]] | None = None,
    test_crop: bool = False,
) -> list[SampleClips | VideoError]:
    """Read several samples of one video: one open, one pass over it, each what it is alone.

    Frames are cut as they come, and let go; only clips are kept. Where the pass fails, the samples
    that are not complete are read one by one, so that each has its own answer.

    Args:
        root: the dataset's root.
        wanted: samples that have one path, and what chooses their views.
        specs: as for `read_clips`.
        digested: as for `read_clips`.
        test_crop: as for `read_clips`.

    Returns:
        In the order of `wanted`, what `read_clips` gives, or raises.
    """
    path = root / wanted[0][0].path
    answers: dict[int, SampleClips | VideoError] = {}
    cutters: dict[int, ClipCutter] = {}
    failure: VideoError | None = None
    try:
        with open_video(path) as video:
            for place, (sample, choose) in enumerate(wanted):
                try:
                    cutters[place] = ClipCutter(
                        path,
                        choose(sample, video.info),
                        specs,
                        stretch=stretch(sample, video.info),
                        test_crop=test_crop,
                    )
                except VideoError as error:
                    answers[place] = error
            if cutters:
                _pass_over(video, list(cutters.values()))
    except VideoError as error:
        failure = error
    groups = [range(len(specs))] if digested is None else digested
    for place, (sample, choose) in enumerate(wanted):
        if place in cutters and not cutters[place].missing:
            answers[place] = cutters[place].finish(groups)
        elif failure is not None and len(cutters) > 1:
            (answers[place],) = read_together(
                root, [(sample, choose)], specs, digested=digested, test_crop=test_crop
            )
        elif failure is not None:
            answers.setdefault(place, failure)
    return [answers[place] for place in range(len(wanted))]


def _pass_over(video: Video, cutters: Sequence[ClipCutter]) -> None:
    """Give each frame of a video to the cutters that need it.

    Raises:
        VideoError: the video cannot be read up to the last of them.
    """
    begins = np.cumsum([0, *(len(cutter.times) for cutter in cutters)])
    for rgb, places in video.shown_at(np.concatenate([cutter.times for cutter in cutters])):
        digest = frame_digest(rgb)
        whose = np.searchsorted(begins, places, side="right") - 1
        for which in np.unique(whose):
            cutters[which].take(rgb, digest, places[whose == which] - begins[which])


def stretch(sample: Sample, info: VideoInfo) -> tuple[float, float]:
    """A sample's begin and end in seconds, with the end of the video filled in.

    Raises:
        VideoError: the stretch begins after the end of the video.
    """
    stop = info.duration_sec if sample.stop_sec is None else sample.stop_sec
    if sample.start_sec >= info.duration_sec:
        raise VideoError(
            f"{sample.path}: the sample starts at {sample.start_sec:.2f} s, "
            f"but the video ends at {info.duration_sec:.2f} s"
        )
    return sample.start_sec, min(stop, info.duration_sec)
