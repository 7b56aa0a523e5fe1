"""The proof of a cache: every byte of every file read and held against what was recorded."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from cache.chunkproof import ChunkProof
from cache.commits import (
    Commit,
    Commits,
    commit_chunk,
    commit_file,
    commit_paths,
    free_name,
    gather,
    is_commit,
    read_commit,
)
from cache.create import is_temporary
from cache.findings import Finding, Kind, Verification, find
from cache.layout import (
    COMMITS,
    LOCK,
    MANIFEST,
    METADATA,
    ORIGIN,
    PROJECTION,
    SAMPLES,
    STAGING,
    Layout,
    chunk_key,
    is_dvc_link,
    written_folders,
)
from cache.manifest import Digests, check_file, read_manifest
from cache.metadata import read_layout
from cache.schema import CacheError, Field, status_name
from cache.tables import read_projection, read_samples

# Passes on the (chunk, view) pairs while they are read.
Watch = Callable[[Sequence[tuple[int, int]]], Iterable[tuple[int, int]]]

_CHUNK_FILE = re.compile(r"c\.(\d{1,9})\.(\d{1,9})")


def verify_cache(path: str | os.PathLike[str], watch: Watch = iter) -> Verification:
    """Read everything that a cache holds, and find whatever is not as it was recorded.

    Any changed byte of any file is found; so are missing, extra, truncated and lengthened files,
    values that break their status's word, and tables that do not fit together. Nothing is written,
    and no more than one file is in memory at a time. A cache may be verified while chunks are being
    written, but not while views are being added: its metadata then change while they are read.

    Args:
        path: the cache's folder.
        watch: passes on the (chunk, view) pairs while their files are read, to show progress.

    Raises:
        CacheError: there is no cache, or it is none of this format version.
    """
    folder = Path(path)
    if not (folder / MANIFEST).is_file():
        read_layout(folder)  # says so where there is no cache at all
    files, findings = _list_files(folder)
    recorded, damaged = _check_manifest(folder, files)
    findings += damaged
    proof = Verification(folder, findings, len(files), sum(files.values()))
    whole = all(name in files for name in _metadata(recorded))
    layout = _read_layout(folder, whole=whole, damaged=bool(damaged))
    if layout is None or not (folder / COMMITS).is_dir():
        return proof
    if not damaged:
        findings += _check_tables(layout)
    commits, found = _read_commits(layout, files)
    together = gather(layout, commits)
    findings += found
    chunks = ChunkProof(layout, together, files)
    present = np.argwhere(np.any(list(together.present.values()), axis=0)).tolist()
    for chunk, view in watch([(chunk, view) for chunk, view in present]):
        findings += chunks.check(chunk, view)
    for commit in commits:
        findings += chunks.check_counts(commit)
        findings += _check_statuses(layout, together, commit)
    findings += _check_others(layout, files, recorded, together, commits)
    return replace(
        proof,
        fingerprint=layout.fingerprint,
        provenance=layout.provenance,
        coverage=together.coverage(layout, layout.fields),
        rows=chunks.rows,
        packages=together.packages,
    )


def _read_layout(folder: Path, *, whole: bool, damaged: bool) -> Layout | None:
    """Read the metadata; None where their damage, which was found already, does not allow it."""
    try:
        return read_layout(folder) if whole else None
    except CacheError:
        if damaged:
            return None
        raise


def _list_files(folder: Path) -> tuple[dict[str, int], list[Finding]]:
    """List all plain files with their sizes, as of which DVC's links count; nothing is opened."""
    files, findings = {}, []
    for entry in _walk(folder):
        name = Path(entry).relative_to(folder).as_posix()
        if entry.is_file(follow_symlinks=False) or is_dvc_link(Path(entry)):
            files[name] = entry.stat().st_size
        else:
            what = "is no plain file"
            if entry.is_symlink():
                what = f"is a link to {Path(entry).readlink()}, which is no file of a DVC cache"
            findings.append(find(folder, Kind.STRANGER, name, what))
    files.pop(LOCK, None)
    return files, findings


def _walk(folder: Path) -> Iterator[os.DirEntry[str]]:
    pending = [os.fspath(folder)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                else:
                    yield entry


def _check_manifest(
    folder: Path, files: Mapping[str, int]
) -> tuple[dict[str, Digests], list[Finding]]:
    """Check the manifest, the files that it lists, and that there is a folder of commits.

    Returns:
        what the manifest lists, and what is damaged.
    """
    findings = []
    try:
        recorded = read_manifest(folder)
    except CacheError as error:
        recorded = {}
        findings.append(find(folder, Kind.METADATA, MANIFEST, _reason(folder, MANIFEST, error)))
    for name, digests in recorded.items():
        wrong = None if None in digests else "is missing"
        if name in files:
            wrong = check_file(folder, name, digests)
        if wrong:
            findings.append(find(folder, Kind.METADATA, name, wrong))
    if not (folder / COMMITS).is_dir():
        what = "is missing: no telling which chunks are complete"
        findings.append(find(folder, Kind.METADATA, COMMITS, what))
    return recorded, findings


def _metadata(recorded: Mapping[str, Digests]) -> list[str]:
    """The `zarr.json` that must be there."""
    return [
        name
        for name, digests in recorded.items()
        if name.endswith(METADATA) and None not in digests
    ]


def _check_tables(layout: Layout) -> list[Finding]:
    """Check that the samples table and the projection say what they must."""
    findings = []
    for name, read in ((SAMPLES, read_samples), (PROJECTION, read_projection)):
        try:
            read(layout)
        except CacheError as error:
            findings.append(find(layout.path, Kind.METADATA, name, f"does not fit: {error}"))
    return findings


def _read_commits(layout: Layout, files: Mapping[str, int]) -> tuple[list[Commit], list[Finding]]:
    """Read the commits that can be read, and find those that cannot."""
    commits: list[Commit] = []
    findings = []
    named: dict[tuple[int, str, int], str] = {}
    for path in _commit_files(layout, files):
        file, chunk = commit_file(path), commit_chunk(path)
        try:
            commit = read_commit(layout, path)
        except CacheError as error:
            what = _reason(layout.path, file, error)
            findings.append(find(layout.path, Kind.COMMIT, file, what, chunk=chunk))
            continue
        keys = [(chunk, *key) for key in commit.checksums]
        others = sorted({named[key] for key in keys if key in named})
        if others:
            what = f"commits chunk files that {', '.join(others)} commits already"
            findings.append(find(layout.path, Kind.COMMIT, file, what, chunk=chunk))
        named.update(dict.fromkeys(keys, file))
        commits.append(commit)
    return commits, findings


def _check_statuses(layout: Layout, together: Commits, commit: Commit) -> Iterator[Finding]:
    """Find a commit of fields whose rows have no status: that of their first commit is lost."""
    for field, view in sorted(commit.checksums):
        name = status_name(field, layout.fields)
        if not together.present[name][commit.chunk, view]:
            file = commit_file(commit.path)
            what = f"holds {field} in view {view}, and no commit holds {name} there"
            yield find(layout.path, Kind.COMMIT, file, what, chunk=commit.chunk)
            return


def _check_others(
    layout: Layout,
    files: Mapping[str, int],
    recorded: Mapping[str, Digests],
    together: Commits,
    commits: Sequence[Commit],
) -> list[Finding]:
    """Judge the files that no manifest and no commit names.

    A chunk that is complete but for its commit has lost it, or its writer was killed in the very
    moment between the two; in both cases its rows are gone. Less than that a writer left behind.
    """
    findings = []
    lone: dict[int, list[tuple[str, str, int]]] = defaultdict(list)
    folders = written_folders(layout) | {(layout.path / name).parent for name in recorded}
    for file in sorted(files.keys() - recorded.keys() - {MANIFEST}):
        path, place = layout.path / file, _chunk_place(layout, file)
        if place:
            field, chunk, view = place
            if not together.present[field.name][chunk, view]:
                lone[chunk].append((file, field.name, view))
        elif file.startswith(f"{STAGING}/") or (is_temporary(path) and path.parent in folders):
            findings.append(find(layout.path, Kind.UNFINISHED, file, "is half-written"))
        elif recorded and not is_commit(file) and file != ORIGIN:
            findings.append(find(layout.path, Kind.STRANGER, file, "belongs to nothing"))
    # Their commit is damaged, which was found already, or was published since we read the others.
    read = {commit.path for commit in commits}
    unread = {commit_chunk(path) for path in commit_paths(layout) if path not in read}
    for chunk, keys in lone.items():
        if chunk in unread:
            continue
        views = sorted({view for _, _, view in keys})
        absent = sum((~present[chunk, views]).sum() for present in together.present.values())
        if absent == len(keys):
            file = free_name(layout, chunk).relative_to(layout.path).as_posix()
            what = f"is missing: chunk {chunk} is there in views {views}, and no commit says so"
            findings.append(find(layout.path, Kind.COMMIT, file, what, chunk=chunk))
        else:
            what = f"and {len(keys) - 1} more files of chunk {chunk} have no commit"
            findings.append(find(layout.path, Kind.UNFINISHED, keys[0][0], what, chunk=chunk))
    return findings


def _chunk_place(layout: Layout, key: str) -> tuple[Field, int, int] | None:
    """The field, chunk and view of a chunk file's path; None for any other file."""
    folder, _, name = key.rpartition("/")
    field, match = layout.fields.get(folder), _CHUNK_FILE.match(name)
    if field is None or match is None:
        return None
    place = field, int(match[1]), int(match[2])
    inside = place[1] < layout.num_chunks and place[2] < layout.num_views
    return place if inside and chunk_key(*place) == key else None


def _commit_files(layout: Layout, files: Mapping[str, int]) -> list[Path]:
    """The commits that are plain files."""
    return [path for path in commit_paths(layout) if commit_file(path) in files]


def _reason(folder: Path, file: str, error: Exception) -> str:
    """An error about a file, without its name in front."""
    return str(error).removeprefix(f"{folder / file} ").removeprefix(f"{folder / file}: ")
