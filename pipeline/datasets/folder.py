"""Any videos of one's own: a folder per split and class, or CSVs that list them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePosixPath

from pipeline.datasets.annotations import ColumnsError, read_csv, seconds
from pipeline.datasets.listing import (
    VIDEO_SUFFIXES,
    DatasetError,
    Listed,
    Listing,
    check_root,
    files_without_rows,
    find_videos,
    is_video,
    make_listing,
    nothing_fits,
    shown,
)
from pipeline.samples import Sample

_FOLDERS = "<split>/<class>/<video>"
_SHOWN_KINDS = 5  # endings of names in a note
LOOKED_FOR = (
    f"<split>/<class>/<video>, where a video ends with {', '.join(VIDEO_SUFFIXES)};",
    "or CSVs with the columns path,label[,start,stop][,split]: paths relative to the folder, start "
    "and stop in seconds; without the column split, a file's name is its split: train.csv",
)


def list_folder(root: Path, annotations: str | None = None) -> Listing:
    """Every video of the folder, or all that its CSVs list; classes in alphabetical order.

    A sample's id is its path, with its stretch of time where it has one.

    Args:
        root: the folder.
        annotations: a CSV, relative to `root`; by default all that lie in it, if any does.

    Raises:
        DatasetError: no layout fits, or a row cannot be right; file, line and value are named.
    """
    check_root(root)
    files = [root / annotations] if annotations else sorted(root.glob("*.csv"))
    if files:
        by_file = {shown(path, root): list(_of_csv(path, root)) for path in files}
        unlabelled = list(chain.from_iterable(by_file.values()))
        names_of_files = ", ".join(by_file)
        notes = files_without_rows(by_file)
        layout = f"listed by {names_of_files}"
        if not unlabelled:
            raise DatasetError(
                f"{root}: no video is listed by {names_of_files}: there is nothing below the "
                "header. Add lines path,label[,start,stop][,split], or remove the file for the "
                "folders <split>/<class>/ to be read"
            )
    else:
        others: list[str] = []
        strays: list[str] = []
        unlabelled = list(_of_folders(root, others, strays))
        notes = _left_out(others) + _astray(strays)
        if strays and not unlabelled:
            raise DatasetError(f"{root}: no {_FOLDERS} there; {_astray(strays)[0]}")
        layout = "folders <split>/<class>/"
    if not unlabelled:
        raise nothing_fits("a folder of videos", root, LOOKED_FOR)
    names = _ordered({name for _, name in unlabelled if name})
    index = {name: number for number, name in enumerate(names)}
    rows = [
        row._replace(sample=replace(row.sample, labels={"action": index[name]} if name else {}))
        for row, name in unlabelled
    ]
    return make_listing(layout, {"action": names}, rows, notes)


def _left_out(others: list[str]) -> list[str]:
    """A note on files that are in the folder and, by their names, no videos."""
    if not others:
        return []
    kinds = Counter(PurePosixPath(path).suffix or "no ending" for path in others)
    counted = ", ".join(f"{kind} {number:,}" for kind, number in kinds.most_common(_SHOWN_KINDS))
    return [
        f"files whose names are no video's ({', '.join(VIDEO_SUFFIXES)}), left out: "
        f"{len(others):,} ({counted}), such as {_readable(others[0])}; a CSV may list them"
    ]


def _astray(strays: list[str]) -> list[str]:
    """A note on videos of which no folder tells the class."""
    if not strays:
        return []
    return [
        f"videos that do not lie as {_FOLDERS}, left out: {len(strays):,}, such as "
        f"{_readable(strays[0])}; move them there, or list all in a CSV (path,label,split)"
    ]


def _ordered(names: set[str]) -> list[str]:
    """Class names in alphabetical order; numbers as numbers."""
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name) if numbers else 0, name))


def _of_folders(root: Path, others: list[str], strays: list[str]) -> Iterator[tuple[Listed, str]]:
    """Rows without labels, and their class.

    Args:
        root: the folder.
        others: gets the files that are no videos.
        strays: gets the videos that lie outside of a folder of their class.
    """
    for path in [*find_videos(root, others=others), *filter(is_video, others)]:
        parts = PurePosixPath(path).parts
        if len(parts) != 3:
            strays.append(path)
            continue
        split, name, _ = parts
        yield _row(root, path, split, str(root / split), None, None), _readable(name)
    others[:] = [path for path in others if not is_video(path)]  # links that lead nowhere, above


def _of_csv(path: Path, root: Path) -> Iterator[tuple[Listed, str]]:
    """Rows without labels, and their class, which may be empty."""
    if not path.is_file():
        raise DatasetError(f"no CSV at {path}, where prepare.annotations says it is")
    for place, (video, name, start, stop, split) in _cells(path):
        relative = _relative(video, root, place)
        start_sec = seconds(start, place, "start") if start else None
        stop_sec = seconds(stop, place, "stop") if stop else None
        if stop_sec is not None and stop_sec <= (start_sec or 0.0):
            raise DatasetError(f"{place}: it starts at {start or 0} s and stops at {stop} s")
        yield _row(root, relative, split or path.stem, place, start_sec, stop_sec), name


def _cells(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        yield from read_csv(path, ["path", "label"], ["start", "stop", "split"])
    except ColumnsError as error:
        raise DatasetError(
            f"{error}. If it does not list the videos, name the one that does as "
            "prepare.annotations, or move all CSVs elsewhere for the folders to be read"
        ) from error


def _relative(video: str, root: Path, place: str) -> str:
    """A path relative to the root; an absolute one may lie in it.

    Raises:
        DatasetError: there is none, or it leads out of the root.
    """
    if not video:
        raise DatasetError(f"{place}: the path is empty")
    if Path(video).is_absolute():
        for place_of_root in (root.absolute(), root.resolve()):
            if Path(video).is_relative_to(place_of_root):
                video = str(Path(video).relative_to(place_of_root))
                break
    relative = os.path.normpath(video)
    if Path(relative).is_absolute() or relative.startswith(".."):
        raise DatasetError(f"{place}: {video} does not lie in {root}, where prepare.root is")
    return PurePosixPath(relative).as_posix()


def _row(
    root: Path,
    path: str,
    split: str,
    place: str,
    start_sec: float | None,
    stop_sec: float | None,
) -> Listed:
    readable = _readable(path)
    stretch = ""
    if start_sec is not None or stop_sec is not None:
        stretch = f"#{start_sec or 0.0}-{'' if stop_sec is None else stop_sec}"
    sample = Sample(f"{readable}{stretch}", readable, split, {}, start_sec or 0.0, stop_sec)
    problem = None
    if readable != path:
        problem = "its name is not UTF-8: rename it"
    elif not (root / path).is_file():
        problem = "no such file"
    return Listed.of(sample, place, problem)


def _readable(path: str) -> str:
    """A path as text; bytes that are not UTF-8 are spelled out."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
