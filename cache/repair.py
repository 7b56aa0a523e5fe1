"""Dropping what is damaged, so that the next extract makes it again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from cache.commits import Commit, commit_chunk, commit_file, commit_paths, read_commit
from cache.findings import Finding, Kind
from cache.layout import COMMITS, Layout, chunk_key, sync
from cache.lock import CacheLock
from cache.metadata import read_layout
from cache.schema import status_name
from cache.verify import Watch, verify_cache
from cache.writer import CacheWriter


@dataclass(frozen=True)
class Dropped:
    """One chunk of which rows are gone.

    Attributes:
        chunk: index along the sample axis.
        samples: its samples; none where the cache has no such chunk.
        views: the views that the next extract makes.
        commits: names of the commits that were removed, with all files that they name.
        findings: why.
    """

    chunk: int
    samples: range
    views: tuple[int, ...]
    commits: tuple[str, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        path: the cache.
        dropped: the chunks of which it removed rows.
        beyond: the damage that it cannot mend.
    """

    path: Path
    dropped: list[Dropped]
    beyond: list[Finding]


def repair_cache(
    path: str | os.PathLike[str], watch: Watch = iter, *, failed: bool = False
) -> Repair:
    """Verify a cache and drop its damaged chunks; the next extract makes just those again.

    A commit falls as a whole, with the files of all the views that it names. Nothing is judged by
    damaged metadata: where those are damaged nothing is dropped.

    Args:
        path: the cache's folder.
        watch: see `verify_cache`.
        failed: drop the commits with failed samples too, for videos that can be read by now.

    Raises:
        CacheError: there is no cache, or another process is writing it.
    """
    folder = Path(path)
    if not folder.is_dir():
        read_layout(folder)  # says that there is no cache
    lock = CacheLock(folder)
    try:
        findings = verify_cache(folder, watch).findings
        beyond = [find for find in findings if find.kind in (Kind.METADATA, Kind.STRANGER)]
        if any(find.kind == Kind.METADATA for find in beyond):
            return Repair(folder, [], beyond)
        damage: dict[int, list[Finding]] = {}
        for find in findings:
            if find.kind in (Kind.COMMIT, Kind.CHUNK) and find.chunk is not None:
                damage.setdefault(find.chunk, []).append(find)
        layout = read_layout(folder)
        retried = _commits_with_failures(layout, damage) if failed else []
        for path in retried:
            damage.setdefault(commit_chunk(path), [])
        removed = _remove_commits(layout, damage, retried)
        writer = CacheWriter(folder, lock)  # it sweeps the chunk files that no commit names now
        pending: dict[int, set[int]] = {}
        for work in writer.pending():
            pending.setdefault(work.chunk, set()).update(work.views)
        dropped = [
            Dropped(
                chunk=chunk,
                samples=layout.sample_range(chunk) if chunk < layout.num_chunks else range(0),
                views=tuple(sorted(pending.get(chunk, ()))),
                commits=tuple(removed[chunk]),
                findings=tuple(reasons),
            )
            for chunk, reasons in sorted(damage.items())
        ]
        return Repair(folder, dropped, beyond)
    finally:
        lock.release()


def _commits_with_failures(layout: Layout, damage: dict[int, list[Finding]]) -> list[Path]:
    damaged = {find.file for finds in damage.values() for find in finds}
    paths = [path for path in commit_paths(layout) if commit_file(path) not in damaged]
    return [path for path in paths if read_commit(layout, path).failures]


def _remove_commits(
    layout: Layout, damage: dict[int, list[Finding]], retried: list[Path]
) -> dict[int, list[str]]:
    """Remove commits: damaged ones, those that name a damaged file, those to be tried again.

    With them go the commits of fields whose statuses fall.

    Returns:
        their names by chunk.
    """
    paths = [path for path in commit_paths(layout) if commit_chunk(path) in damage]
    spoilt = [path for path in paths if path in retried or _is_spoilt(layout, path, damage)]
    sound = [read_commit(layout, path) for path in paths if path not in spoilt]
    orphans = [commit.path for commit in sound if not _has_statuses(layout, commit, sound)]
    removed: dict[int, list[str]] = {chunk: [] for chunk in damage}
    # The orphans first: they must never stand beside rows that were made anew.
    for path in orphans + spoilt:
        removed[commit_chunk(path)].append(commit_file(path))
        path.unlink()
        sync([layout.path / COMMITS])
    return removed


def _is_spoilt(layout: Layout, path: Path, damage: dict[int, list[Finding]]) -> bool:
    """Whether a commit is damaged itself, or names a damaged file."""
    chunk = commit_chunk(path)
    found = {find.file for find in damage[chunk]}
    if commit_file(path) in found:
        return True
    named = read_commit(layout, path).checksums
    keys = {chunk_key(layout.fields[name], chunk, view) for name, view in named}
    return not found.isdisjoint(keys)


def _has_statuses(layout: Layout, commit: Commit, sound: list[Commit]) -> bool:
    """Whether what a commit's rows go by stands in one of the sound commits."""
    held = {key for other in sound if other.chunk == commit.chunk for key in other.checksums}
    names = layout.fields
    return all((status_name(name, names), view) in held for name, view in commit.checksums)
