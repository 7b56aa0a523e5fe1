"""EPIC-KITCHENS-100: labelled segments of long videos, by their time stamps.

Annotations: https://github.com/epic-kitchens/epic-kitchens-100-annotations. Their frame numbers
count the frames that were extracted at 60 (or 50) a second, not those of the videos, and are not
used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Literal

from pipeline.datasets.annotations import class_index, read_csv, seconds
from pipeline.datasets.listing import (
    DatasetError,
    Listed,
    Listing,
    annotation_folders,
    check_root,
    files_without_rows,
    first_folder,
    make_listing,
    nothing_fits,
    shown,
)
from pipeline.samples import Sample

HEADS = {"verb": "EPIC_100_verb_classes.csv", "noun": "EPIC_100_noun_classes.csv"}
SPLITS = {
    "train": "EPIC_100_train.csv",
    "validation": "EPIC_100_validation.csv",
    "test": "EPIC_100_test_timestamps.csv",
}
UNSEEN = "EPIC_100_unseen_participant_ids_validation.csv"
TAIL = {"verb": "EPIC_100_tail_verbs.csv", "noun": "EPIC_100_tail_nouns.csv"}
_ANNOTATION_FOLDERS = (
    "",
    "annotations",
    "epic-kitchens-100-annotations",
    "epic-kitchens-100-annotations-master",
)
_BASES = ("", "EPIC-KITCHENS/")
_VIDEOS = (
    "{person}/videos/{video}",
    "{person}/{video}",
    "videos/{person}/{video}",
    "videos/{video}",
    "{video}",
)
_FRAMES = (
    "{person}/rgb_frames/{video}",
    "rgb_frames/{person}/{video}",
    "rgb_frames/{video}",
    "{person}/{video}",
    "frames/{video}",
)
_FIRST_FRAME = "frame_0000000001.jpg"
_PERSON = re.compile(r"P\d\d")
_VIDEO_ID = re.compile(r"(P\d\d)_(\d\d\d?)")
LOOKED_FOR = (
    "annotations: EPIC_100_train.csv or EPIC_100_validation.csv, with EPIC_100_verb_classes.csv "
    "and EPIC_100_noun_classes.csv, in or beside the folder, itself or in annotations/, "
    "epic-kitchens-100-annotations/;",
    "videos: P01/videos/P01_01.MP4, P01/P01_01.MP4, videos/P01/P01_01.MP4, videos/P01_01.MP4, "
    "P01_01.MP4, itself or in EPIC-KITCHENS/;",
    f"or frames: P01/rgb_frames/P01_01/{_FIRST_FRAME}, rgb_frames/P01/P01_01/, "
    "rgb_frames/P01_01/, P01/P01_01/, frames/P01_01/, or a tar of each, as P01_01.tar",
)


def list_epic100(
    root: Path,
    annotations: Path | None = None,
    prefer: Literal["videos", "frames"] = "videos",
) -> Listing:
    """Every segment that the annotations list, and the video or the folder of frames it is of.

    A folder of frames, or a tar of it, is a path with its rate: `P01/rgb_frames/P01_01.tar?fps=60`.

    Args:
        root: the folder of the videos or frames.
        annotations: the folder of the CSVs; looked for in and beside `root` if not given.
        prefer: what is read of a video that is there as both.

    Raises:
        DatasetError: no layout fits, or a row cannot be right; file, line and value are named.
    """
    check_root(root)
    folders = annotation_folders(root, annotations, _ANNOTATION_FOLDERS)
    folder = first_folder(folders, SPLITS.values())
    if folder is None:
        raise nothing_fits("EPIC-KITCHENS-100", annotations or root, LOOKED_FOR)
    classes = {head: _class_names(folder / name) for head, name in HEADS.items()}
    media = _Media(root, prefer)
    by_file = {
        name: list(_of_csv(folder / name, split, classes, media))
        for split, name in SPLITS.items()
        if (folder / name).is_file()
    }
    rows = list(chain.from_iterable(by_file.values()))
    if not media.forms:
        raise nothing_fits("EPIC-KITCHENS-100", root, LOOKED_FOR)
    forms = ", ".join(sorted(media.forms))
    subsets, notes = _subsets(folder, classes, [row.sample for row in rows])
    layout = f"CSVs in {shown(folder, root)}/, {forms}"
    return make_listing(layout, classes, rows, files_without_rows(by_file) + notes, subsets)


def _subsets(
    folder: Path, classes: dict[str, list[str]], samples: list[Sample]
) -> tuple[dict[str, set[str]], list[str]]:
    """The parts that are scored on their own, and a sentence for each list that is not there.

    `unseen` are the validation segments of participants without a training video; `tail_verb` and
    `tail_noun` those whose verb, or noun, is one of the listed rare classes; `tail_action` those of
    which either is: `compute_metrics` of
    https://github.com/epic-kitchens/C1-Action-Recognition/blob/master/utils/metrics.py.

    Raises:
        DatasetError: a list names what is no participant or no class.
    """
    subsets: dict[str, set[str]] = {}
    absent = [name for name in (UNSEEN, *TAIL.values()) if not (folder / name).is_file()]
    if UNSEEN not in absent:
        people = _participants(folder / UNSEEN)
        subsets["unseen"] = {
            sample.sample_id
            for sample in samples
            if sample.split == "validation" and sample.sample_id.partition("_")[0] in people
        }
    for head, name in TAIL.items():
        if name not in absent:
            rare = {
                class_index(number, place, head, len(classes[head]))
                for place, (number,) in read_csv(folder / name, [head])
            }
            subsets[f"tail_{head}"] = {
                sample.sample_id for sample in samples if sample.labels.get(head) in rare
            }
    if not {*TAIL.values()} & {*absent}:
        subsets["tail_action"] = subsets["tail_verb"] | subsets["tail_noun"]
    lost = [
        f"no {name} beside the annotations: its segments get no score of their own"
        for name in absent
    ]
    return subsets, lost


def _participants(path: Path) -> set[str]:
    people = set()
    for place, (person,) in read_csv(path, ["participant_id"]):
        if _PERSON.fullmatch(person) is None:
            raise DatasetError(f"{place}: participant_id is {person!r}, expected one as P01")
        people.add(person)
    return people


def _class_names(path: Path) -> list[str]:
    """Names in the order of their ids, which must count from 0.

    Raises:
        DatasetError: the file is missing, or its ids are others.
    """
    if not path.is_file():
        raise DatasetError(f"no {path.name} beside the annotations, in {path.parent}")
    names: list[str] = []
    for place, (number, name) in read_csv(path, ["id", "key"]):
        if number != str(len(names)):
            raise DatasetError(f"{place}: the id is {number!r}, expected {len(names)}")
        names.append(name)
    return names


def _of_csv(
    path: Path, split: str, classes: dict[str, list[str]], media: _Media
) -> Iterator[Listed]:
    """The segments of one split; those of the test split have no labels."""
    columns = [f"{head}_class" for head in classes]
    required = ["narration_id", "video_id", "start_timestamp", "stop_timestamp"]
    labelled = split != "test"
    wanted = (required + columns, []) if labelled else (required, columns)
    for place, cells in read_csv(path, *wanted):
        narration_id, video, start, stop, *numbers = cells
        labels = {
            head: class_index(number, place, column, len(classes[head]))
            for head, column, number in zip(classes, columns, numbers, strict=True)
            if labelled or number
        }
        start_sec = seconds(start, place, "start_timestamp")
        stop_sec = seconds(stop, place, "stop_timestamp")
        found, problem = media.of(video, place)
        if stop_sec <= start_sec:
            problem = f"it stops at {stop} and starts at {start}"
            stop_sec = start_sec
        sample = Sample(narration_id, found, split, labels, start_sec, stop_sec)
        yield Listed.of(sample, place, problem)


class _Media:
    """Where the videos are, or their frames; folders of frames are not listed, they are huge."""

    def __init__(self, root: Path, prefer: Literal["videos", "frames"]) -> None:
        self._root = root
        self._lookups = [self._video, self._frames]
        if prefer == "frames":
            self._lookups.reverse()
        self._known: dict[str, tuple[str, str | None]] = {}
        self.forms: set[str] = set()  # where something was found, as layouts in words

    def of(self, video: str, place: str) -> tuple[str, str | None]:
        """The path of a video or of its frames, and what is wrong with it.

        Raises:
            DatasetError: the id is no video's.
        """
        if video not in self._known:
            parts = _VIDEO_ID.fullmatch(video)
            if parts is None:
                raise DatasetError(f"{place}: video_id is {video!r}, expected one as P01_01")
            self._known[video] = self._find(parts[1], video)
        return self._known[video]

    def _find(self, person: str, video: str) -> tuple[str, str | None]:
        for lookup in self._lookups:
            found = lookup(person, video)
            if found is not None:
                return found, None
        return _VIDEOS[0].format(person=person, video=video) + ".MP4", "no such video"

    def _video(self, person: str, video: str) -> str | None:
        for base in _BASES:
            for form in _VIDEOS:
                path = base + form.format(person=person, video=video)
                for suffix in (".MP4", ".mp4"):
                    if (self._root / f"{path}{suffix}").is_file():
                        example = base + form.format(person="P01", video="P01_01")
                        self.forms.add(f"videos as {example}{suffix}")
                        return f"{path}{suffix}"
        return None

    def _frames(self, person: str, video: str) -> str | None:
        for base in _BASES:
            for form in _FRAMES:
                path = base + form.format(person=person, video=video)
                example = base + form.format(person="P01", video="P01_01")
                for ending, file in (("", f"/{_FIRST_FRAME}"), (".tar", ".tar")):
                    if (self._root / f"{path}{file}").is_file():
                        self.forms.add(f"frames as {example}{file}")
                        return f"{path}{ending}?fps={frame_rate(video)}"
        return None


def frame_rate(video: str) -> int:
    """Frames per second of the official frames of a video.

    Those of the first recordings, `PXX_YY`, were extracted at 60 a second whatever the rate of the
    video (59.94 mostly, also 29.97, 47.95 and 90), those of the extension, `PXX_1YY`, at its 50:
    https://github.com/epic-kitchens/epic-kitchens-55-annotations, "Video Information".
    """
    return 50 if len(video.rpartition("_")[2]) == 3 else 60
