"""HMDB51: one of its three official splits, and its videos by class.

Source: https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/, whose split
files have a line `<video>.avi <code>` per video: 1 is training, 2 is test, 0 is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from pipeline.datasets.annotations import read_pairs
from pipeline.datasets.listing import (
    DatasetError,
    Listed,
    Listing,
    annotation_folders,
    check_root,
    files_without_rows,
    find_videos,
    make_listing,
    nothing_fits,
    shown,
)
from pipeline.samples import Sample

CLASSES = 51
_CODES = {"1": "train", "2": "test", "0": None}
_SPLIT_FOLDERS = (
    "",
    "testTrainMulti_7030_splits",
    "test_train_splits",
    "test_train_splits/testTrainMulti_7030_splits",
    "annotations",
    "annotations/testTrainMulti_7030_splits",
    "splits",
)
_VIDEO_FOLDERS = ("", "videos", "hmdb51_org", "hmdb51", "video")
LOOKED_FOR = (
    "splits: <class>_test_split1.txt and so on, in or beside the folder, itself or in its "
    "testTrainMulti_7030_splits/, test_train_splits/, annotations/, splits/;",
    "videos: <class>/*.avi or <class>/<class>/*.avi, itself or in videos/, hmdb51_org/, hmdb51/, "
    "video/",
)


def list_hmdb51(root: Path, official_split: int, annotations: Path | None = None) -> Listing:
    """Everything that an official split lists for training and test, and where it lies.

    Args:
        root: the folder of the videos.
        official_split: 1, 2 or 3.
        annotations: the folder of the split files; looked for in and beside `root` if not given.

    Raises:
        DatasetError: no layout fits, or a line cannot be right; file, line and value are named.
    """
    check_root(root)
    ending = f"_test_split{official_split}.txt"
    files: dict[str, Path] = {}
    for folder in annotation_folders(root, annotations, _SPLIT_FOLDERS):
        if folder.is_dir():
            files = {path.name[: -len(ending)]: path for path in folder.glob(f"*{ending}")}
        if files:
            break
    if not files:
        wanted = [line.replace("split1", f"split{official_split}") for line in LOOKED_FOR]
        raise nothing_fits("HMDB51", annotations or root, wanted)
    classes = sorted(files)
    base, videos = _videos(root, classes)
    by_file = {
        files[name].name: list(_of_class(files[name], label, name, base, videos.get(name, {})))
        for label, name in enumerate(classes)
    }
    listed = list(chain.from_iterable(by_file.values()))
    rows = [row for row in listed if row is not None]
    unused = len(listed) - len(rows)
    notes = files_without_rows(by_file)
    notes += [f"videos that official split {official_split} leaves out: {unused:,}"]
    if len(classes) != CLASSES:
        notes.append(f"classes with a split file: {len(classes)}, though HMDB51 has {CLASSES}")
    layout = f"official split {official_split} in {shown(folder, root)}/, videos in "
    layout += f"{base}<class>/" if base else "<class>/"
    return make_listing(layout, {"action": classes}, rows, notes)


def _videos(root: Path, classes: list[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """The folder that holds the classes, and by class the paths of the videos by name and stem.

    Raises:
        DatasetError: no folder holds one of the classes.
    """
    for name in _VIDEO_FOLDERS:
        base = f"{name}/" if name else ""
        found: dict[str, dict[str, str]] = {}
        for one in classes:
            if (root / name / one).is_dir():
                paths = list(find_videos(root, f"{base}{one}"))
                by_name = {path.rpartition("/")[2]: path for path in paths}
                by_stem = {name.rpartition(".")[0]: path for name, path in by_name.items()}
                found[one] = by_stem | by_name
        if any(found.values()):
            return base, found
    raise nothing_fits("HMDB51", root, LOOKED_FOR)


def _of_class(
    path: Path, label: int, name: str, base: str, videos: Mapping[str, str]
) -> Iterator[Listed | None]:
    """The rows of one class; None for a video that is in neither part."""
    for place, file, code in read_pairs(path):
        if code not in _CODES:
            raise DatasetError(
                f"{place}: the code of {file} is {code!r}, expected 1 (train), 2 (test) or 0"
            )
        split = _CODES[code]
        if split is None:
            yield None
            continue
        stem = file.rpartition(".")[0] or file
        found = videos.get(file) or videos.get(stem)
        problem = "no such video" if videos else "no videos of this class"
        sample = Sample(stem, found or f"{base}{name}/{file}", split, {"action": label})
        yield Listed.of(sample, place, None if found else problem)
