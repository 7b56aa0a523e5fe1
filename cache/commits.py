"""Commits: the small JSON files that say which chunk files exist; what has none does not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import COMMITS, Layout, chunk_key, crc32c, sync
from cache.schema import STATUS_FIELD, CacheError, DamagedError, Status, canonical_json

_NAME = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?\.json")
_SEAL_BYTES = len(',"crc32c":"01234567"}')
_MAX_BYTES = 16 * 2**20

# Recorded with each commit where they are installed: they explain a difference between two chunks.
_PACKAGES = (
    *("dualkd", "numpy", "zarr", "numcodecs", "pyarrow"),
    *("av", "torch", "torchvision", "pytorchvideo", "timm"),
)


@dataclass(frozen=True)
class Commits:
    """What all commits of a cache say together.

    Attributes:
        present: field → which chunk files exist; (chunks, views) bool.
        checksums: field → crc32c of their data; (chunks, views) uint32.
        sizes: field → bytes of the files; (chunks, views) int64.
        failures: sample id → why its rows are not valid.
    """

    present: dict[str, NDArray[np.bool_]]
    checksums: dict[str, NDArray[np.uint32]]
    sizes: dict[str, NDArray[np.int64]]
    failures: dict[str, str]

    @property
    def rows(self) -> NDArray[np.bool_]:
        """Which chunks hold rows at all; (chunks, views) bool."""
        return self.present[STATUS_FIELD.name]


def publish(
    layout: Layout,
    chunk: int,
    views: Sequence[int],
    checksums: Mapping[str, tuple[int, int]],
    *,
    statuses: NDArray[np.uint8],
    failures: Mapping[str, str],
) -> None:
    """Say that some chunk files are complete. Comes last: after their bytes are on the disk.

    Args:
        layout: the cache.
        chunk: index along the sample axis.
        views: the views whose files were written.
        checksums: chunk key → bytes of the file, crc32c of its data.
        statuses: the statuses of all rows in these files.
        failures: sample id → why its rows are not valid.
    """
    samples = layout.sample_range(chunk)
    document = {
        "chunk": chunk,
        "views": list(views),
        "samples": [samples.start, samples.stop],
        "statuses": count_statuses(statuses),
        "failures": dict(failures),
        "files": {
            key: {"bytes": size, "crc32c": f"{checksum:08x}"}
            for key, (size, checksum) in checksums.items()
        },
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "packages": _package_versions(),
    }
    folder = layout.path / COMMITS
    target = _free_name(folder, chunk)
    temporary = folder / f".{target.name}.tmp"
    temporary.write_bytes(_sealed(document))
    sync([temporary])
    temporary.rename(target)
    sync([folder])


def read_commits(layout: Layout) -> Commits:
    """Read all commits of a cache.

    Raises:
        DamagedError: a commit's bytes are not those that were written, or their folder is missing.
        CacheError: a commit names chunks or views that the cache does not have.
    """
    shape = (layout.num_chunks, layout.num_views)
    commits = Commits(
        present={name: np.zeros(shape, np.bool_) for name in layout.fields},
        checksums={name: np.zeros(shape, np.uint32) for name in layout.fields},
        sizes={name: np.zeros(shape, np.int64) for name in layout.fields},
        failures={},
    )
    for path in _commit_paths(layout.path / COMMITS):
        document = _unsealed(path)
        try:
            _enter(layout, commits, path, document)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CacheError(f"{path} is no commit: {type(error).__name__}: {error}") from error
    return commits


def count_statuses(statuses: NDArray[np.uint8]) -> dict[str, int]:
    """Count rows by kind: `missing`, `valid`, `unreadable_video`, `non_finite_output`."""
    counts = Counter(np.asarray(statuses).ravel().tolist())
    return {status.label: counts[status] for status in Status}


def _enter(layout: Layout, commits: Commits, path: Path, document: dict[str, Any]) -> None:
    chunk, views, files = document["chunk"], document["views"], document["files"]
    if path.name.split(".")[0] != str(chunk) or not 0 <= chunk < layout.num_chunks:
        raise CacheError(f"{path} commits chunk {chunk}; the cache has {layout.num_chunks}")
    commits.failures.update({str(name): str(why) for name, why in document["failures"].items()})
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
            commits.present[name][chunk, view] = True
            commits.checksums[name][chunk, view] = int(entry["crc32c"], 16)
            commits.sizes[name][chunk, view] = entry["bytes"]


def _commit_paths(folder: Path) -> list[Path]:
    """The commits, oldest first within a chunk."""
    if not folder.is_dir():
        # Not the same as no commits: a writer would sweep every chunk file away.
        raise DamagedError(f"{folder} is missing: no telling which chunks are complete")
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((int(match[1]), int(match[2] or 0), path))
    return [path for *_, path in sorted(found)]


def _free_name(folder: Path, chunk: int) -> Path:
    """`3.json`, or `3.1.json`, … : a commit that stands is never written again."""
    target, number = folder / f"{chunk}.json", 0
    while target.exists():
        number += 1
        target = folder / f"{chunk}.{number}.json"
    return target


def _sealed(document: dict[str, Any]) -> bytes:
    """Spell a document with the checksum of its own bytes as its last value."""
    body = canonical_json(document)[:-1]
    return body + _seal(body)


def _seal(body: bytes) -> bytes:
    return b',"crc32c":"%08x"}' % crc32c(body)


def _unsealed(path: Path) -> dict[str, Any]:
    """Read a commit; any byte that was changed shows, be it only a space."""
    if path.stat().st_size > _MAX_BYTES:
        raise CacheError(f"{path} is larger than {_MAX_BYTES} bytes: no commit")
    content = path.read_bytes()
    body = content[:-_SEAL_BYTES]
    if content[-_SEAL_BYTES:] != _seal(body):
        raise DamagedError(f"{path} is damaged: its bytes are not those that were written")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is no JSON object")
    return document


@cache
def _package_versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
