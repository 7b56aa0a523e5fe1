"""Kinetics-400: its CSVs or mmaction2's lists, and the folders that its videos come in.

Layouts: https://github.com/cvdfoundation/kinetics-dataset (flat, or arranged by class, with a
folder of replacements for corrupted videos) and mmaction2's tools/data/kinetics.
"""

from __future__ import annotations

import difflib
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from pipeline.datasets.annotations import class_index, read_csv, read_pairs, seconds
from pipeline.datasets.listing import (
    DatasetError,
    Listed,
    Listing,
    annotation_folders,
    check_root,
    contents,
    files_without_rows,
    find_videos,
    first_folder,
    make_listing,
    nothing_fits,
    shown,
)
from pipeline.samples import Sample

SPLITS = {"train": ("train",), "val": ("val", "validate", "validation"), "test": ("test",)}
_REPLACEMENTS = (
    "replacement/replacement_for_corrupted_k400",
    "replacement_for_corrupted_k400",
    "replacement",
)
_STEM = re.compile(r"(.+)_(\d+)_(\d+)")
_NAMES = "_KINETICS400_CATEGORIES"  # in torchvision/models/_meta.py; a test compares
_ID_LENGTH = 11  # of a YouTube id
LOOKED_FOR = (
    "annotations: train.csv, val.csv (or validate.csv), test.csv, also as kinetics_train.csv and "
    "kinetics400_train.csv, in or beside the folder, itself or in annotations/,",
    "or mmaction2's kinetics400_train_list_videos.txt, kinetics400_val_list_videos.txt;",
    "videos: train/, videos/train/ or videos_train/, flat or by class; the same for val and test",
)


@cache
def class_names() -> list[str]:
    """The 400 official names in alphabetical order, as torchvision's published weights have them.

    Class i of a published network is name i, whatever of the dataset is on disk. Only torchvision's
    table of names is executed: the whole library would bring torch, which takes seconds.
    """
    library = find_spec("torchvision")
    folders = library.submodule_search_locations if library else None
    for folder in folders or ():
        table = Path(folder) / "models" / "_meta.py"
        names = runpy.run_path(str(table)).get(_NAMES) if table.is_file() else None
        if names:
            return list(names)
    from torchvision.models.video import MViT_V2_S_Weights  # noqa: PLC0415

    return list(MViT_V2_S_Weights.DEFAULT.meta["categories"])


def list_k400(root: Path, annotations: Path | None = None) -> Listing:
    """Everything that the annotations list, and where it lies below `root`.

    Args:
        root: the folder of the videos.
        annotations: the folder of the CSVs or lists; looked for in and beside `root` if not given.

    Raises:
        DatasetError: no layout fits, or a row cannot be right; file, line and value are named.
    """
    check_root(root)
    folders = annotation_folders(root, annotations, ("annotations", ""))
    csvs = {split: _csv_names(split) for split in SPLITS}
    folder = first_folder(folders, [name for names in csvs.values() for name in names])
    videos = {split: _Videos.of(root, split) for split in SPLITS}
    if folder is not None:
        replacements = _replacements(root)
        by_file = {
            name: list(_of_csv(folder / name, split, videos[split], replacements))
            for split, names in csvs.items()
            for name in names
            if (folder / name).is_file()
        }
        kind = f"CSVs in {shown(folder, root)}/"
    else:
        lists = {split: f"kinetics400_{split}_list_videos.txt" for split in SPLITS}
        folder = first_folder(folders, lists.values())
        if folder is None:
            raise nothing_fits("Kinetics-400", annotations or root, LOOKED_FOR)
        replacements = _Index({}, {})
        by_file = {
            name: list(_of_list(folder / name, split, videos[split]))
            for split, name in lists.items()
            if (folder / name).is_file()
        }
        kind = f"mmaction2's lists in {shown(folder, root)}/"
    there = ", ".join(videos[split].layout for split in SPLITS if videos[split].layout)
    if not there:
        raise nothing_fits("Kinetics-400", root, LOOKED_FOR)
    rows = list(chain.from_iterable(by_file.values()))
    paths = set(replacements.by_name.values())
    replaced = sum(row.sample.path in paths for row in rows)
    lost = sorted({row.sample.split for row in rows if not videos[row.sample.split].layout})
    notes = files_without_rows(by_file)
    notes += [f"no folder of the split {split}; {root} has {contents(root)}" for split in lost]
    notes += [f"replacements of corrupted videos that are read: {replaced:,}"] if replaced else []
    return make_listing(f"{kind}, videos in {there}", {"action": class_names()}, rows, notes)


def _csv_names(split: str) -> list[str]:
    prefixes = ("", "kinetics_", "kinetics400_", "k400_")
    return [f"{prefix}{name}.csv" for name in SPLITS[split] for prefix in prefixes]


@dataclass(frozen=True)
class _Index:
    """Videos by the name that they should have, and by the id in it."""

    by_name: dict[str, str]
    by_id: dict[str, str]


@dataclass(frozen=True)
class _Videos:
    """The videos of one split: its folder relative to the root, and all paths in it by name."""

    folder: str
    by_class: bool
    by_name: dict[str, str]
    paths: set[str]

    @classmethod
    def of(cls, root: Path, split: str) -> _Videos:
        for name in SPLITS[split]:
            for folder in (name, f"videos/{name}", f"videos_{name}"):
                if not (root / folder).is_dir():
                    continue
                paths = list(find_videos(root, folder))
                if paths:
                    by_class = paths[0].count("/") > folder.count("/") + 1
                    return cls(folder, by_class, _by_name(paths), set(paths))
        return cls(split, False, {}, set())

    @property
    def layout(self) -> str:
        form = "by class" if self.by_class else "flat"
        return f"{self.folder}/ ({form})" if self.paths else ""

    def expected(self, stem: str, label: str) -> str:
        """Where a video that is missing would lie."""
        return f"{self.folder}/{label}/{stem}.mp4" if self.by_class else f"{self.folder}/{stem}.mp4"


def _by_name(paths: list[str]) -> dict[str, str]:
    """Paths by `<id>_<start>_<stop>`, with six digits each, as the dataset writes them."""
    named: dict[str, str] = {}
    for path in paths:
        stem = path.rpartition("/")[2].rpartition(".")[0]
        parts = _STEM.fullmatch(stem)
        name = f"{parts[1]}_{int(parts[2]):06d}_{int(parts[3]):06d}" if parts else stem
        named.setdefault(name, path)
    return named


def _replacements(root: Path) -> _Index:
    """The videos that replace corrupted ones, also by id, as CVDF's own script takes them."""
    for folder in _REPLACEMENTS:
        if (root / folder).is_dir():
            by_name = _by_name(list(find_videos(root, folder)))
            return _Index(by_name, {name[:_ID_LENGTH]: path for name, path in by_name.items()})
    return _Index({}, {})


def _of_csv(path: Path, split: str, videos: _Videos, replaced: _Index) -> Iterator[Listed]:
    index = {name: number for number, name in enumerate(class_names())}
    required = ["youtube_id", "time_start", "time_end", *(["label"] if split != "test" else [])]
    for place, cells in read_csv(path, required, ["label"] if split == "test" else []):
        youtube_id, start, stop, label = cells
        name = label.replace("_", " ")
        if name not in index and not (split == "test" and not name):
            raise _unknown_class(place, label)
        stem = f"{youtube_id}_{_whole(start, place)}_{_whole(stop, place)}"
        found = replaced.by_name.get(stem) or replaced.by_id.get(youtube_id)
        found = found or videos.by_name.get(stem)
        labels = {"action": index[name]} if name else {}
        sample = Sample(stem, found or videos.expected(stem, name), split, labels)
        yield Listed.of(sample, place, None if found else _why_missing(videos))


def _of_list(path: Path, split: str, videos: _Videos) -> Iterator[Listed]:
    names = class_names()
    for place, relative, number in read_pairs(path):
        label = class_index(number, place, "the class", len(names))
        folder, _, file = relative.rpartition("/")
        name = folder.rpartition("/")[2].replace("_", " ")
        if name in names and name != names[label]:
            raise DatasetError(
                f"{place}: {relative} is labelled {label}, which is {names[label]!r} in the "
                f"official order; {name!r} is {names.index(name)}"
            )
        stem = file.rpartition(".")[0]
        wanted = f"{videos.folder}/{relative}"
        found = wanted if wanted in videos.paths else videos.by_name.get(stem)
        sample = Sample(stem, found or wanted, split, {"action": label})
        yield Listed.of(sample, place, None if found else _why_missing(videos))


def _why_missing(videos: _Videos) -> str:
    return "no such video" if videos.paths else "no videos of this split"


def _whole(text: str, place: str) -> str:
    if text.isdecimal():  # as in the official files, 480,000 times
        return text.zfill(6)
    return f"{round(seconds(text, place, 'time_start and time_end')):06d}"


def _unknown_class(place: str, label: str) -> DatasetError:
    near = difflib.get_close_matches(label, class_names(), n=1)
    return DatasetError(
        f"{place}: the label {label!r} is none of the 400 classes of Kinetics-400"
        + (f"; the nearest is {near[0]!r}" if near else "")
        + " (Kinetics-600 and -700 have others)"
    )
