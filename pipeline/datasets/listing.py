"""What a dataset lists, and what of it is on disk: the rows that every dataset's module returns."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.sample import Sample

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
_SHOWN = 10  # names of a folder's contents in a message


class DatasetError(ValueError):
    """A folder is not the dataset that it should be; the message says what was looked for."""


class Listed(NamedTuple):
    """One sample that a dataset lists.

    Attributes:
        sample: its row of the samples table; of a missing video, the path where it would lie.
        place: the file and its line, or the folder, that lists it.
        status: `found`, `missing` (there is no video) or `unreadable` (it cannot be decoded).
        reason: why it is not `found`.
    """

    sample: Sample
    place: str
    status: Literal["found", "missing", "unreadable"] = "found"
    reason: str = ""

    @classmethod
    def of(cls, sample: Sample, place: str, problem: str | None) -> Listed:
        """A sample that is missing if there is a problem."""
        return cls(sample, place) if problem is None else cls(sample, place, "missing", problem)


@dataclass(frozen=True)
class Listing:
    """A dataset as it is listed and as it lies on disk.

    Attributes:
        layout: which of the known layouts it has, in words.
        classes: class names by head, in index order.
        rows: every sample that is listed, in the order of the annotations.
        notes: what else a user should know, one sentence each.
        subsets: by name, the ids of samples that are scored on their own too.
    """

    layout: str
    classes: Mapping[str, list[str]]
    rows: list[Listed]
    notes: list[str] = field(default_factory=list)
    subsets: Mapping[str, Collection[str]] = field(default_factory=dict)


def make_listing(
    layout: str,
    classes: Mapping[str, list[str]],
    rows: Iterable[Listed],
    notes: Iterable[str] = (),
    subsets: Mapping[str, Collection[str]] | None = None,
) -> Listing:
    """A listing whose ids are unique: a row that is listed again word for word is dropped.

    Raises:
        DatasetError: one id stands for two samples; both places are named.
    """
    first: dict[str, Listed] = {}
    repeated = 0
    for row in rows:
        known = first.setdefault(row.sample.sample_id, row)
        if known is row:
            continue
        if known.sample != row.sample:
            raise DatasetError(
                f"the id {row.sample.sample_id} is listed twice, as two samples: in {known.place} "
                f"({_described(known.sample)}) and in {row.place} ({_described(row.sample)}). "
                "Remove one of the two lines"
            )
        repeated += 1
    again = [f"rows that repeat another, and do not count: {repeated:,}"] if repeated else []
    return Listing(layout, classes, list(first.values()), [*notes, *again], subsets or {})


def _described(sample: Sample) -> str:
    return f"split {sample.split}, labels {dict(sample.labels)}, {sample.path}"


def find_videos(root: Path, below: str = "", others: list[str] | None = None) -> Iterator[str]:
    """Paths of all videos below a folder, relative to `root`, with forward slashes, in name order.

    No file is opened. Links are followed (a broken one is no video), loops of them are not; names
    that begin with a dot are left out.

    Args:
        root: the dataset's.
        below: the folder, relative to `root`.
        others: gets the paths of all other files, whose names are no video's.
    """
    folder = os.path.join(root, below)  # noqa: PTH118
    yield from _walk(folder, f"{below}/" if below else "", set(), [] if others is None else others)


def _walk(
    folder: str, prefix: str, above: set[tuple[int, int]], others: list[str]
) -> Iterator[str]:
    status = os.stat(folder)  # noqa: PTH116
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        name = entry.name
        if name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{prefix}{name}/", above | {here}, others)
        elif is_video(name) and entry.is_file():
            yield prefix + name
        else:
            others.append(prefix + name)


def is_video(name: str) -> bool:
    """Whether a file's name is a video's."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def check_root(root: Path) -> None:
    """Refuse a root that is not there.

    Raises:
        DatasetError: there is no such folder.
    """
    if not root.is_dir():
        raise DatasetError(
            f"no folder at {root}, where prepare.root says that the videos are: "
            "`dualkd prepare --root DIR` links DIR there"
        )


def first_folder(candidates: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first of some folders that holds one of some files."""
    wanted = tuple(names)
    for folder in candidates:
        if any((folder / name).is_file() for name in wanted):
            return folder
    return None


def shown(path: Path, root: Path) -> str:
    """A path as a message names it: relative to the root where it lies in it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def in_and_beside(root: Path) -> list[Path]:
    """Where annotations are looked for: the root, its own folder, and that of where it leads."""
    beside = Path(os.path.abspath(root)).parent  # noqa: PTH100 (a link's own neighbours)
    return list(dict.fromkeys([root, beside, root.resolve().parent]))


def files_without_rows(rows: Mapping[str, Sequence[object]]) -> list[str]:
    """A note on each file of annotations that lists nothing, beside others that do."""
    return [f"{name} lists nothing: it has no row" for name, of_file in rows.items() if not of_file]


def annotation_folders(root: Path, given: Path | None, names: Iterable[str]) -> list[Path]:
    """The folder that the config gives; or where else to look: `names` in and beside the root."""
    if given is not None:
        return [given]
    return [place / name for place in in_and_beside(root) for name in names]


def nothing_fits(dataset: str, root: Path, looked_for: Iterable[str]) -> DatasetError:
    """The error of a root without any of the known layouts: what was looked for, what is there."""
    lines = [f"{root} is not {dataset} as it is known here. Looked for:"]
    lines += [f"  {line}" for line in looked_for]
    lines.append(f"Found there: {contents(root)}")
    lines.append(
        "docs/datasets.md shows the layouts; `prepare.annotations` in the config says where "
        "annotations lie that are elsewhere"
    )
    return DatasetError("\n".join(lines))


def contents(folder: Path) -> str:
    """The first names in a folder, and how many more there are."""
    with os.scandir(folder) as entries:
        names = sorted(f"{e.name}/" if e.is_dir() else e.name for e in entries)
    if not names:
        return "nothing, the folder is empty"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
