"""Probing videos: each opened, its first frame decoded, in many processes; what is known is kept.

The answers stand in a file of JSON lines, one per video, written as they come: a probe that was
interrupted goes on with the videos that have no answer yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline.processes import ProcessPool
from pipeline.video import VideoError, open_video

_BATCH = 16  # videos that one process is given at a time


class ProbeError(RuntimeError):
    """The probing broke down; what was answered is kept."""


@dataclass(frozen=True)
class Answer:
    """What a video says when it is opened.

    Attributes:
        path: of the video, relative to the dataset's root.
        size: of its file, bytes.
        modified_ns: of its file; another file of this name has no answer yet.
        error: why it cannot be decoded; then the rest is 0.
        width: pixels.
        height: pixels.
        duration_sec: seconds, as the container states it.
        frame_rate: mean frames per second.
    """

    path: str
    size: int
    modified_ns: int
    error: str | None
    width: int = 0
    height: int = 0
    duration_sec: float = 0.0
    frame_rate: float = 0.0


def probe(root: Path, path: str) -> Answer:
    """Open one video and decode its first frame; whatever is wrong with it is the answer."""
    size, modified_ns = _stamp(root, path)
    try:
        with open_video(root / path) as video:
            info = video.info
            video.frames_at(np.zeros(1))
    except VideoError as error:
        return Answer(path, size, modified_ns, str(error).removeprefix(f"{root / path}: "))
    return Answer(
        path,
        size,
        modified_ns,
        None,
        info.width,
        info.height,
        info.duration_sec,
        info.frame_rate,
    )


def _stamp(root: Path, path: str) -> tuple[int, int]:
    """Size and time of a file; of a folder of frames, those of its first frame, which is probed."""
    for name in (path, path.partition("?")[0]):
        place = root / name
        try:
            status = place.stat()
            if not place.is_dir():
                return status.st_size, status.st_mtime_ns
            first = (place / min(entry.name for entry in os.scandir(place))).stat()
        except OSError:
            continue
        except ValueError:  # an empty folder
            return 0, status.st_mtime_ns
        return first.st_size, max(status.st_mtime_ns, first.st_mtime_ns)
    return 0, 0


def _probe_batch(root: Path, paths: list[str]) -> list[Answer]:
    return [probe(root, path) for path in paths]


def read_answers(file: Path, root: Path, paths: Iterable[str]) -> dict[str, Answer]:
    """The answers of these videos that still hold, by path; a line that was cut off counts not."""
    if not file.is_file():
        return {}
    wanted, answers = set(paths), {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if answer.path in wanted:
            answers[answer.path] = answer
    return {
        path: answer
        for path, answer in answers.items()
        if (answer.size, answer.modified_ns) == _stamp(root, path)
    }


def probe_all(
    file: Path, root: Path, paths: Iterable[str], known: Mapping[str, Answer], workers: int
) -> Iterator[Answer]:
    """Yield an answer for every video that has none yet, as it is written to the file.

    Args:
        file: of the answers; replaced by those that still hold, then appended to.
        root: the dataset's.
        paths: of the videos, relative to `root`.
        known: what `read_answers` found in the file.
        workers: processes; 0 uses this one.

    Raises:
        ProbeError: a process died, of memory or by a fault of the decoder.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text("".join(_line(answer) for answer in known.values()), encoding="utf-8")
    partial.replace(file)
    left = [path for path in paths if path not in known]
    todo = (left[start : start + _BATCH] for start in range(0, len(left), _BATCH))
    with file.open("a", encoding="utf-8") as lines:
        for answers in _probed(root, todo, workers):
            lines.writelines(_line(answer) for answer in answers)
            lines.flush()
            yield from answers


def _probed(root: Path, todo: Iterator[list[str]], workers: int) -> Iterator[list[Answer]]:
    if workers == 0:
        yield from (_probe_batch(root, batch) for batch in todo)
        return
    with ProcessPool(workers) as pool:
        running: dict[Future[list[Answer]], list[str]] = {}
        while True:
            for batch in islice(todo, 2 * workers - len(running)):
                running[pool.submit(_probe_batch, root, batch)] = batch
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    answers = future.result()
                except BrokenProcessPool as error:
                    suspects = sorted(path for batch in running.values() for path in batch)
                    raise ProbeError(
                        "a process died while probing; the same command goes on after what is "
                        f"answered. If it dies again, one of {len(suspects)} videos kills it: "
                        f"{suspects[0]} to {suspects[-1]}; --workers 0 tries them one by one"
                    ) from error
                del running[future]
                yield answers


def _line(answer: Answer) -> str:
    return json.dumps(asdict(answer)) + "\n"
