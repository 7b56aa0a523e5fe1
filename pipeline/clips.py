"""From a sample's file to the clips of its views: one open, one decode, every network's clip."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pipeline.samples import Sample, Samples
from pipeline.video import VideoError, VideoInfo, open_video
from pipeline.views import (
    ClipSpec,
    View,
    ViewRule,
    centre_view,
    clip_times,
    cut_clip,
    draw_view,
)

ViewChoice = Callable[[Sample, VideoInfo], Sequence[View]]
Request = tuple[int, ViewChoice]


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
    with open_video(root / sample.path) as video:
        start, stop = stretch(sample, video.info)
        views = list(choose(sample, video.info))
        wanted = [
            clip_times(view, spec, start_sec=start, stop_sec=stop)
            for view in views
            for spec in specs
        ]
        frames = video.frames_at(np.concatenate(wanted))
    index = np.split(frames.index, np.cumsum([len(times) for times in wanted])[:-1])
    hashes = np.array([xxhash.xxh3_64_intdigest(rgb) for rgb in frames.rgb], dtype="<u8")
    clips: list[list[NDArray[np.uint8]]] = [[] for _ in specs]
    groups = [range(len(specs))] if digested is None else digested
    digests = []
    for row, view in enumerate(views):
        parts = index[row * len(specs) : (row + 1) * len(specs)]
        for into, part, spec in zip(clips, parts, specs, strict=True):
            box = view.narrowed(spec.test_share) if test_crop else view
            into.append(cut_clip(frames.rgb[part], box, spec))
        seen = [hashes[np.concatenate([parts[which] for which in group])] for group in groups]
        digests.append([xxhash.xxh3_64_intdigest(of_group.tobytes()) for of_group in seen])
    return SampleClips(
        views=np.stack([view.as_row() for view in views]),
        clips=tuple(np.stack(of_spec) for of_spec in clips),
        digests=np.array(digests, dtype=np.uint64),
    )


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


@dataclass(frozen=True)
class DrawnViews:
    """Chooses views by rule."""

    rule: ViewRule
    indices: tuple[int, ...]

    def __call__(self, sample: Sample, info: VideoInfo) -> list[View]:
        """Draw them."""
        start, stop = stretch(sample, info)
        return [
            draw_view(
                self.rule,
                sample_id=sample.sample_id,
                index=index,
                start_sec=start,
                stop_sec=stop,
                width=info.width,
                height=info.height,
            )
            for index in self.indices
        ]


@dataclass(frozen=True)
class StoredViews:
    """Chooses the views of records (V, 6), so that they are replayed exactly."""

    records: NDArray[np.float64]

    def __call__(self, _sample: Sample, _info: VideoInfo) -> list[View]:
        """Read them."""
        return [View.from_row(record) for record in self.records]


def central_view(sample: Sample, info: VideoInfo) -> list[View]:
    """The single view of evaluation."""
    start, stop = stretch(sample, info)
    return [centre_view(start_sec=start, stop_sec=stop, width=info.width, height=info.height)]


@dataclass(frozen=True)
class Read:
    """One answer of `ClipDataset`: the clips, or the reason why there are none."""

    row: int
    clips: SampleClips | None
    error: str | None


class ClipDataset(Dataset[Read]):
    """Reads samples in data workers. Its index is (row, which views of it).

    A bad video is an answer like any other: nothing is raised, nothing is replaced.
    """

    def __init__(
        self,
        root: Path,
        samples: Samples,
        specs: Sequence[ClipSpec],
        *,
        digested: Sequence[Sequence[int]] | None = None,
        test_crop: bool = False,
    ) -> None:
        self._root = root
        self._samples = samples
        self._specs = tuple(specs)
        self._digested = digested
        self._test_crop = test_crop

    def __getitem__(self, index: Request) -> Read:
        """Read one sample."""
        row, choose = index
        try:
            clips = read_clips(
                self._root,
                self._samples.row(row),
                choose,
                self._specs,
                digested=self._digested,
                test_crop=self._test_crop,
            )
        except VideoError as error:
            return Read(row, None, str(error))
        return Read(row, clips, None)


def in_batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Cut requests, in order, into batches of `size`; the last may be smaller."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]


def iterate(
    dataset: ClipDataset, batches: Sequence[Sequence[Request]], workers: int
) -> Iterator[list[Read]]:
    """Read batches of requests in order, in `workers` processes (0 reads in this one).

    The answers do not depend on the number of workers, nor does reading them touch the global
    random state: training goes the same way with clips that are stored and clips that are read.
    """
    if not batches:  # no worker need be started
        return
    yield from DataLoader(
        dataset,
        batch_sampler=batches,  # type: ignore[arg-type]  # any iterable of index lists
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=_one_thread,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # else DataLoader draws a seed from the global one
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)  # there are as many workers as cores
