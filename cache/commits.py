"""Commits: the small JSON files that say which chunk files exist; what has none does not."""

from __future__ import annotations

import importlib.metadata
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import COMMITS, Layout, chunk_key, own_path, repair_hint
from cache.schema import CacheError, DamagedError, Status
from cache.sealed import read_sealed, write_sealed

if TYPE_CHECKING:
    from cache.staging import StagedChunk

_CRC32C = re.compile(r"[0-9a-f]{8}")
_NAME = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?\.json")

# Recorded with each commit where they are installed: they explain a difference between two chunks.
_PACKAGES = (
    *("dualkd", "numpy", "zarr", "numcodecs", "pyarrow"),
    *("av", "torch", "torchvision", "pytorchvideo", "timm"),
)


@dataclass(frozen=True)
class Commit:
    """What one commit says.

    Attributes:
        path: its file.
        chunk: index along the sample axis.
        checksums: (field, view) → crc32c of the chunk file's data.
        sizes: (field, view) → bytes of the chunk file.
        statuses: array of statuses → number of its rows by status.
        failures: sample id → why its rows are not valid.
        packages: versions of what made the rows.
    """

    path: Path
    chunk: int
    checksums: dict[tuple[str, int], int]
    sizes: dict[tuple[str, int], int]
    statuses: dict[str, dict[str, int]]
    failures: dict[str, str]
    packages: dict[str, str]


@dataclass(frozen=True)
class Commits:
    """What all commits of a cache say together.

    Attributes:
        present: field → which chunk files exist; (chunks, views) bool.
        checksums: field → crc32c of their data; (chunks, views) uint32.
        sizes: field → bytes of the files; (chunks, views) int64.
        failures: sample id → why its rows are not valid.
        packages: package → the versions that made the rows, sorted.
    """

    present: dict[str, NDArray[np.bool_]]
    checksums: dict[str, NDArray[np.uint32]]
    sizes: dict[str, NDArray[np.int64]]
    failures: dict[str, str]
    packages: dict[str, list[str]]

    def coverage(self, layout: Layout, fields: Collection[str]) -> float:
        """The part of the rows of which all these fields are committed; in [0, 1]."""
        rows = np.all([self.present[name] for name in fields], axis=0).sum(axis=1)
        present = rows @ np.diff(layout.chunk_starts)
        return float(present) / (layout.num_samples * layout.num_views)


def publish(layout: Layout, staged: StagedChunk) -> None:
    """Say that some chunk files are complete. Comes last: after their bytes are on the disk."""
    samples = layout.sample_range(staged.chunk)
    document = {
        "chunk": staged.chunk,
        "views": list(staged.views),
        "samples": [samples.start, samples.stop],
        "statuses": staged.statuses,
        "failures": staged.failures,
        "files": {
            key: {"bytes": size, "crc32c": f"{checksum:08x}"}
            for key, (size, checksum) in staged.files.items()
        },
        **staged.maker,
    }
    write_sealed(free_name(layout, staged.chunk), document)


def read_commits(layout: Layout) -> Commits:
    """Read all commits of a cache.

    Raises:
        DamagedError: a commit's bytes are not those that were written, or their folder is missing.
        CacheError: a commit names chunks or views that the cache does not have.
    """
    paths = commit_paths(layout)
    try:
        return gather(layout, [read_commit(layout, path) for path in paths])
    except DamagedError as error:
        raise DamagedError(f"{error}. {repair_hint(layout.path)}") from error


def gather(layout: Layout, commits: Iterable[Commit]) -> Commits:
    """Enter commits in one table."""
    shape = (layout.num_chunks, layout.num_views)
    together = Commits(
        present={name: np.zeros(shape, np.bool_) for name in layout.fields},
        checksums={name: np.zeros(shape, np.uint32) for name in layout.fields},
        sizes={name: np.zeros(shape, np.int64) for name in layout.fields},
        failures={},
        packages={},
    )
    for commit in commits:
        for package, version in commit.packages.items():
            versions = together.packages.get(package, [])
            together.packages[package] = sorted({*versions, version})
        together.failures.update(commit.failures)
        for (name, view), checksum in commit.checksums.items():
            together.present[name][commit.chunk, view] = True
            together.checksums[name][commit.chunk, view] = checksum
            together.sizes[name][commit.chunk, view] = commit.sizes[name, view]
    return together


def read_commit(layout: Layout, path: Path) -> Commit:
    """Read one commit.

    Raises:
        DamagedError: its bytes are not those that were written.
        CacheError: it names chunks or views that the cache does not have.
    """
    document = read_sealed(own_path(path.parent, path.name))
    try:
        return _parse(layout, path, document)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{path} is no commit: {type(error).__name__}: {error}") from error


def commit_paths(layout: Layout) -> list[Path]:
    """The commits, oldest first within a chunk.

    Raises:
        DamagedError: their folder is missing.
    """
    folder = own_path(layout.path, COMMITS)
    if not folder.is_dir():
        # Not the same as no commits: a writer would sweep every chunk file away.
        raise DamagedError(
            f"{folder} is missing: no telling which chunks are complete; put it back from another "
            "copy of this cache"
        )
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for *_, path in sorted(found)]


def commit_file(path: Path) -> str:
    """The path of a commit inside its cache, as `commits/3.1.json`."""
    return f"{COMMITS}/{path.name}"


def commit_chunk(path: Path) -> int:
    """The chunk that a commit's name tells."""
    return int(path.name.partition(".")[0])


def is_commit(file: str) -> bool:
    """Whether a path inside the cache is that of a commit."""
    folder, _, name = file.rpartition("/")
    return folder == COMMITS and _NAME.fullmatch(name) is not None


def free_name(layout: Layout, chunk: int) -> Path:
    """`3.json`, or `3.1.json`, … : a commit that stands is never written again."""
    folder = layout.path / COMMITS
    target, number = folder / f"{chunk}.json", 0
    while target.exists():
        number += 1
        target = folder / f"{chunk}.{number}.json"
    return target


def count_statuses(statuses: NDArray[np.uint8]) -> dict[str, int]:
    """Count rows by kind: `missing`, `valid`, `unreadable_video`, `non_finite_output`."""
    counts = Counter(np.asarray(statuses).ravel().tolist())
    return {status.label: counts[status] for status in Status}


def _parse(layout: Layout, path: Path, document: dict[str, Any]) -> Commit:
    chunk, views, files = document["chunk"], document["views"], document["files"]
    # By spelling: `01.json` is no commit of chunk 1, nor is one whose chunk is `true`.
    if path.name.partition(".")[0] != str(chunk) or not 0 <= chunk < layout.num_chunks:
        raise CacheError(f"{path} commits chunk {chunk}; the cache has {layout.num_chunks}")
    samples = layout.sample_range(chunk)
    if document["samples"] != [samples.start, samples.stop]:
        raise CacheError(
            f"{path} commits samples {document['samples']!r:.80}; chunk {chunk} has "
            f"{[samples.start, samples.stop]}"
        )
    checksums, sizes = {}, {}
    for view in views:
        if type(view) is not int or not 0 <= view < layout.num_views:
            raise CacheError(f"{path} commits view {view!r}; the cache has {layout.num_views}")
        # We ask for the keys that we know; a path that somebody wrote in here is never opened.
        for name, field in layout.fields.items():
            entry = files.get(chunk_key(field, chunk, view))
            if entry is None:
                continue
            possible = layout.file_bytes(field)
            if type(entry["bytes"]) is not int or entry["bytes"] not in possible:
                raise CacheError(
                    f"{path}: {chunk_key(field, chunk, view)} has {entry['bytes']!r} bytes, "
                    f"expected {' to '.join(str(n) for n in sorted({possible[0], possible[-1]}))}"
                )
            if not _CRC32C.fullmatch(entry["crc32c"]):
                raise ValueError(f"crc32c {entry['crc32c']!r:.80}")
            checksums[name, view] = int(entry["crc32c"], 16)
            sizes[name, view] = entry["bytes"]
    return Commit(
        path=path,
        chunk=chunk,
        checksums=checksums,
        sizes=sizes,
        statuses={str(name): dict(counts) for name, counts in document["statuses"].items()},
        failures={str(name): str(why) for name, why in document["failures"].items()},
        packages={str(name): str(version) for name, version in document["packages"].items()},
    )


@cache
def package_versions() -> dict[str, str]:
    """The versions, here and now, of the packages that decide or explain the values of rows."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
