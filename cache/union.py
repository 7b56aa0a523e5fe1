"""Two caches of one identity become one: room for what both hold, and the commits of the rest.

Nothing is made again and no row is chosen: a chunk file that both hold must be the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.commits import Commit, Commits, commit_paths, count_statuses, read_commit
from cache.identity import identity_differences
from cache.layout import COMMITS, Layout, crc32c
from cache.schema import CacheError, status_name
from cache.sealed import read_sealed, seal
from cache.tables import read_projection, read_samples
from cache.writer import CacheWriter

# A chunk file: field, index along the sample axis, view.
Key = tuple[str, int, int]
# Statuses of a chunk's rows: by the name of their array, chunk and view.
ReadStatus = Callable[[str, int, int], NDArray[np.uint8]]

_SHOWN = 10


class ConflictError(CacheError):
    """Two caches hold different rows in the same places, or other things that cannot both be."""


def grow_to_hold(writer: CacheWriter, other: Layout) -> None:
    """Make room in a cache for all that another one of the same identity has room for.

    Args:
        writer: the cache.
        other: the other one, whose tables lie in its folder.

    Raises:
        ConflictError: they cannot become one.
    """
    mine = writer.layout
    both = f"{mine.path} and {other.path} cannot become one cache"
    if mine.chunk_samples != other.chunk_samples:
        raise ConflictError(
            f"{both}: their chunks have {mine.chunk_samples} and {other.chunk_samples} samples"
        )
    _check_fields(mine, other, both)
    if not _same_arrays(read_projection(mine), read_projection(other)):
        raise ConflictError(f"{both}: their projections differ")
    theirs, shared = read_samples(other), min(len(mine.parts), len(other.parts))
    common = sum(other.parts[:shared])
    same = mine.parts[:shared] == other.parts[:shared]
    if not same or not read_samples(mine).slice(0, common).equals(theirs.slice(0, common)):
        raise ConflictError(
            f"{both}: samples were appended to both, and not the same ones (parts of "
            f"{list(mine.parts)} and {list(other.parts)} samples). One of them has to be extracted "
            "again from the other one"
        )
    starts = list(accumulate(other.parts, initial=0))
    for number in range(shared, len(other.parts)):
        writer.add_samples(theirs.slice(starts[number], other.parts[number]))
    if other.num_views > mine.num_views:
        writer.add_views(other.num_views - mine.num_views)
    new = [field for name, field in other.fields.items() if name not in mine.fields]
    teachers = {name: about for name, about in other.added.items() if name not in mine.added}
    own = [field for field in new if field.name.partition("/")[0] not in teachers]
    if own:
        writer.add_fields(own)
    for name, about in teachers.items():
        its = [field for field in new if field.name.partition("/")[0] == name]
        writer.add_fields(its, {name: about})


def _check_fields(mine: Layout, other: Layout, both: str) -> None:
    for name in mine.added.keys() & other.added.keys():
        differences = identity_differences(mine.added[name], other.added[name])
        if differences:
            key, here, there = differences[0]
            raise ConflictError(
                f"{both}: the teacher {name!r} was added to both, and is not the same: {key} is "
                f"{here!r:.80} and {there!r:.80}"
            )
    for name in mine.fields.keys() & other.fields.keys():
        if mine.fields[name] != other.fields[name]:
            raise ConflictError(
                f"{both}: field {name!r} is stored in two ways: {mine.fields[name]} and "
                f"{other.fields[name]}"
            )


def _same_arrays(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def differing(layout: Layout, here: Commits, there: Commits) -> list[Key]:
    """The chunk files that two caches of one layout hold with different bytes."""
    return [
        (name, chunk, view)
        for name in layout.fields
        for chunk, view in np.argwhere(
            here.present[name]
            & there.present[name]
            & (here.checksums[name] != there.checksums[name])
        ).tolist()
    ]


def rows_of(layout: Layout, commits: Commits, keys: Iterable[Key]) -> set[Key]:
    """The chunk files that hold the same rows: all that go by the status that these go by."""
    names, found = layout.fields, set()
    for field, chunk, view in keys:
        status = status_name(field, names)
        found |= {
            (name, chunk, view)
            for name in names
            if status_name(name, names) == status and commits.present[name][chunk, view]
        }
    return found


def in_words(layout: Layout, keys: Iterable[Key]) -> str:
    """Chunk files by chunk and view, a line each, for messages."""
    places: dict[tuple[int, int], list[str]] = {}
    for field, chunk, view in keys:
        places.setdefault((chunk, view), []).append(field)
    lines = []
    for (chunk, view), fields in sorted(places.items()):
        rows = layout.sample_range(chunk)
        samples = f"samples {rows.start} … {rows.stop - 1}"
        lines.append(f"  chunk {chunk} ({samples}), view {view}: {', '.join(sorted(fields))}")
    hidden = len(lines) - _SHOWN
    more = [f"  … and {hidden} more"] if hidden > 0 else []
    return "\n".join(lines[:_SHOWN] + more)


@dataclass(frozen=True)
class PartOfCommit:
    """Some of the chunk files that a commit names.

    Attributes:
        commit: the commit.
        keys: which of its files.
    """

    commit: Commit
    keys: tuple[Key, ...]

    def content(self, layout: Layout, read_status: ReadStatus) -> bytes:
        """The bytes of a commit of these files: the commit's own where they are all of its.

        Args:
            layout: the cache whose commit it is.
            read_status: gives the statuses that are counted again; only asked for these files.
        """
        content = self.commit.path.read_bytes()
        if len(self.keys) == len(self.commit.checksums):
            return content
        document = read_sealed(self.commit.path)
        del document["crc32c"]
        names = {layout.key_of(key) for key in self.keys}
        views = {view for _, _, view in self.keys}
        statuses: dict[str, dict[str, int]] = {}
        for name in {name for name, _, _ in self.keys if layout.fields[name].is_status}:
            held = [key for key in self.keys if key[0] == name]
            statuses[name] = count_statuses(np.stack([read_status(*key) for key in held]))
        failed = any(
            count for of in statuses.values() for kind, count in of.items() if kind != "valid"
        )
        document |= {
            "views": [view for view in document["views"] if view in views],
            "files": {name: about for name, about in document["files"].items() if name in names},
            "statuses": statuses,
            "failures": document["failures"] if failed else {},
        }
        return seal(document)


def parts_of(
    commits: Sequence[Commit], wanted: Mapping[str, NDArray[np.bool_]]
) -> list[PartOfCommit]:
    """The commits, or parts of them, that name the wanted chunk files, each once.

    Args:
        commits: of the cache that has them.
        wanted: field → (chunks, views) bool.
    """
    left = {name: mask.copy() for name, mask in wanted.items()}
    parts = []
    for commit in commits:
        keys = [
            (name, commit.chunk, view)
            for name, view in commit.checksums
            if name in left and left[name][commit.chunk, view]
        ]
        for name, chunk, view in keys:
            left[name][chunk, view] = False
        if keys:
            parts.append(PartOfCommit(commit, tuple(keys)))
    return parts


def all_commits(layout: Layout) -> list[Commit]:
    """The commits of a cache, oldest first within a chunk."""
    return [read_commit(layout, path) for path in commit_paths(layout)]


def without(layout: Layout, keys: set[Key], read_status: ReadStatus) -> list[Path]:
    """Take chunk files out of the commits of a cache; the files themselves stay where they are.

    Args:
        layout: the cache.
        keys: which; all that hold the same rows, see `rows_of`.
        read_status: gives the statuses that are counted again.

    Returns:
        the commits that are gone; what else they named, others name now.
    """
    gone = []
    for commit in all_commits(layout):
        named = [(name, commit.chunk, view) for name, view in commit.checksums]
        kept = tuple(key for key in named if key not in keys)
        if len(kept) == len(named):
            continue
        if kept:
            content = PartOfCommit(commit, kept).content(layout, read_status)
            add_commit(layout.path, commit.chunk, content)
        commit.path.unlink()
        gone.append(commit.path)
    return gone


def add_commit(folder: Path, chunk: int, content: bytes) -> Path:
    """Put a commit into a folder that others write to, under a name that its bytes decide.

    So the commits of two people never take each other's names.
    """
    path = folder / COMMITS / f"{chunk}.{crc32c(content) % 10**9}.json"
    path.write_bytes(content)
    return path
