"""`dualkd predict`: what a student answers to videos, of each as a whole or step by step.

Nothing here imports torch: the student's own kind decides whether it is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.listing import VIDEO_SUFFIXES, find_videos
from pipeline.metrics import mean_of_views
from pipeline.protocols import CENTRE, PROTOCOLS, Protocol, ProtocolViews
from pipeline.reading import read_clips, stretch
from pipeline.sample import Sample
from pipeline.steps import read_steps
from pipeline.student import Student
from pipeline.video import VideoError, VideoInfo
from pipeline.views import ClipSpec, View
from stages.answers import Answer, Failure

_TIME = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?(ms|s|min|h)")
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_LEAST_SEC = 0.1  # of a step: frames of a clip are about as far apart
_MOST_SEC = 86400.0
_PICTURES = re.compile(r"\d\.(jpe?g|png|webp|bmp)$", re.IGNORECASE)


class PredictError(ValueError):
    """An option cannot be used; the message says why."""


@dataclass(frozen=True)
class Options:
    """How videos are looked at.

    Attributes:
        protocol: which views of a whole video are averaged.
        every_sec: look at it step by step, each of that many seconds.
        batch_size: clips in one forward pass, of one video or of several.
    """

    protocol: Protocol = CENTRE
    every_sec: float | None = None
    batch_size: int = 8


@dataclass(frozen=True)
class _Look:
    """Clips (V, T, size, size, 3) whose answers together are one."""

    video: str
    start_sec: float
    stop_sec: float
    clips: NDArray[np.uint8]


def predict(
    student: Student, videos: Sequence[Path], options: Options
) -> Iterator[Answer | Failure]:
    """What a student answers to videos, in their order; one that is bad is an answer like another.

    Memory holds the clips of a batch, or of one video where it has more views.

    Args:
        student: whoever answers.
        videos: files, folders of them, or folders of frames with their rate (`DIR?fps=25`).
        options: how they are looked at.

    Raises:
        pipeline.student.StudentError: the student cannot answer.
    """
    batch: list[_Look] = []
    for look in _looks(videos, student.clip, options):
        if isinstance(look, _Look):
            batch.append(look)
            if sum(len(one.clips) for one in batch) < options.batch_size:
                continue
        yield from _answered(student, batch, options.batch_size)
        batch = []
        if isinstance(look, Failure):
            yield look
    yield from _answered(student, batch, options.batch_size)


def _answered(student: Student, looks: Sequence[_Look], batch_size: int) -> Iterator[Answer]:
    """Run a student over the clips of some looks, `batch_size` at a time."""
    if not looks:
        return
    clips = np.concatenate([look.clips for look in looks])
    parts = [
        student.logits(clips[start : start + batch_size])
        for start in range(0, len(clips), batch_size)
    ]
    logits = {head: np.concatenate([part[head] for part in parts]) for head in student.classes}
    first = 0
    for look in looks:
        own = {head: of[first : first + len(look.clips)] for head, of in logits.items()}
        first += len(look.clips)
        together = {head: of[0] if len(of) == 1 else mean_of_views(of) for head, of in own.items()}
        yield Answer(look.video, look.start_sec, look.stop_sec, together)


def _looks(videos: Iterable[Path], spec: ClipSpec, options: Options) -> Iterator[_Look | Failure]:
    """Read videos one after another."""
    for video in _files(videos):
        if isinstance(video, Failure):
            yield video
            continue
        try:
            if options.every_sec is None:
                yield _whole(video, spec, options.protocol)
                continue
            for step in read_steps(video, options.every_sec, spec):
                yield _Look(str(video), step.start_sec, step.stop_sec, step.clip[None])
        except VideoError as error:
            yield Failure(str(video), str(error))


def _whole(video: Path, spec: ClipSpec, protocol: Protocol) -> _Look:
    """The views of a whole video, as `evaluate` reads them.

    Raises:
        VideoError: it cannot be read.
    """
    sample = Sample(sample_id=str(video), path=str(video), split="", labels={})
    choose = ProtocolViews(protocol, spec.span_sec)
    seen: list[float] = []

    def choose_and_note(sample: Sample, info: VideoInfo) -> list[View]:
        seen[:] = stretch(sample, info)
        return choose(sample, info)

    read = read_clips(Path(), sample, choose_and_note, [spec], test_crop=protocol.test_crop)
    return _Look(str(video), seen[0], seen[1], read.clips[0])


def _files(videos: Iterable[Path]) -> Iterator[Path | Failure]:
    """Each video; of a folder all those below it, in the order of their names."""
    for video in videos:
        others: list[str] = []
        found = False
        try:
            if not video.is_dir():
                yield video
                continue
            for path in find_videos(video, others=others):
                found = True
                yield video / path
            if not found:
                yield Failure(str(video), _no_videos(video, others))
        except OSError as error:
            yield Failure(str(video), f"{video}: {error.strerror or error}")


def _no_videos(folder: Path, others: Sequence[str]) -> str:
    if any(_PICTURES.search(name) for name in others):
        return (
            f"{folder}: holds pictures, not videos; if they are the frames of one, give their rate "
            f"as in {folder}?fps=25"
        )
    return f"{folder}: no videos in this folder or below it ({', '.join(VIDEO_SUFFIXES)})"


def path_of(text: str, option: str) -> Path:
    """The path of an argument; a URL would become a strange one, nothing the working folder.

    Raises:
        PredictError: it is a URL, or empty.
    """
    if not text.strip():
        raise PredictError(f"{option} is empty; give a path on this machine, . for this folder")
    if "://" in text:
        from cache import public_url  # noqa: PLC0415  # takes a second, and is rarely needed

        raise PredictError(
            f"{option} {public_url(text)} is a URL, and only files of this machine are read: "
            "download it first, and give the file"
        )
    return Path(text)


def seconds_of(text: str) -> float:
    """The seconds of a time as `1s`, `500ms`, `2min`.

    Raises:
        PredictError: it is no time, or too short or too long for a step.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise PredictError(f"--every takes a time as 1s, 500ms or 2min; got {text!r}")
    seconds = float(found[1]) * _UNITS[found[2]]
    if seconds < _LEAST_SEC:
        raise PredictError(f"--every {text}: a step is at least {_LEAST_SEC} s long")
    if seconds > _MOST_SEC:
        raise PredictError(f"--every {text}: a step is at most {_MOST_SEC / 3600:g} h long")
    return seconds


def protocol_of(name: str, every_sec: float | None) -> Protocol:
    """The protocol of a name.

    Raises:
        PredictError: there is none, or it is for whole videos only.
    """
    if name not in PROTOCOLS:
        raise PredictError(f"--protocol takes {', '.join(PROTOCOLS)}; got {name!r}")
    if every_sec is not None and PROTOCOLS[name] is not CENTRE:
        raise PredictError(
            f"--protocol {name} is for videos as a whole; with --every each step has one clip"
        )
    return PROTOCOLS[name]
