"""Pulling: what a folder lacks of a cache is fetched, all or a part; so two are merged, too."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.commits import free_name, gather, read_commits
from cache.create import check_place
from cache.identity import check_identity
from cache.layout import (
    COMMITS,
    LOCK,
    Layout,
    on_full_disk,
    read_file,
    sync,
    wrong_bytes,
)
from cache.lock import CacheLock
from cache.manifest import copy_empty
from cache.metadata import is_cache, read_layout
from cache.origin import write_origin
from cache.remote import Advance, Metered, in_parallel, unmetered
from cache.schema import CacheError
from cache.sealed import write_by_rename
from cache.selection import Selection
from cache.source import Source, open_source
from cache.staging import close_staging
from cache.transfer_errors import TransferError
from cache.union import (
    ConflictError,
    Key,
    PartOfCommit,
    differing,
    grow_to_hold,
    in_words,
    parts_of,
    rows_of,
    without,
)
from cache.workplace import workplace
from cache.writer import CacheWriter

_ELSEWHERE = "pull into another folder"


@dataclass(frozen=True)
class Pulled:
    """What a pull did.

    Attributes:
        url: the address of the cache.
        bytes: of the chunk files that were fetched just now.
        files: their number.
        standing: number of chunk files that were here already.
        left: number of chunk files that are there and were not asked for.
    """

    url: str
    bytes: int
    files: int
    standing: int
    left: int


def pull_cache(
    url: str,
    path: Path,
    selection: Selection | None = None,
    *,
    jobs: int = 8,
    theirs: bool = False,
    metered: Metered = unmetered,
) -> Pulled:
    """Fetch what a folder lacks of a cache.

    A cache that is new here appears when all is there; a killed pull goes on where it was. One
    that stands grows by what it lacks, chunk by chunk; rows that it holds beyond stay.

    Args:
        url: the address of a cache, a shelf that has one only, or a folder with a cache.
        path: where it shall stand, or stands.
        selection: which part; all by default.
        jobs: files that are fetched at once.
        theirs: where rows differ, those of there take the place of ours; else that is refused.
        metered: shows the bytes as they come.

    Raises:
        IdentityMismatch: `path` holds another cache.
        ConflictError: it holds other rows in the same places.
        DamagedError: a file there has other bytes than were committed.
        TransferError: a file could not be fetched.
    """
    selection = selection or Selection()
    path = path.absolute()
    with workplace() as metadata:
        source = open_source(url, metadata)
        new = not is_cache(path)
        if not new:
            mine = read_layout(path).identity
            check_identity(path, mine, source.layout.identity, f"{_ELSEWHERE.capitalize()}.")
        folder, lock = _open(path, source) if new else (path, CacheLock(path))
        try:
            with on_full_disk(path, "it is not whole; what has arrived is kept"):
                done = _Pull(source, folder, lock).take(selection, jobs, metered, theirs=theirs)
            close_staging(folder)
            if source.on_shelf:
                write_origin(folder, source.files.url, selection)
            if new:
                _appear(folder, path, lock)
        finally:
            lock.release()
    return done


def _open(path: Path, source: Source) -> tuple[Path, CacheLock]:
    """The folder beside its place in which a cache is built up, and its lock.

    What a killed pull of the same cache left there is kept.
    """
    check_place(path, _ELSEWHERE)
    folder = path.parent / f".{path.name}.pulling"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"{path.parent} cannot be written: {error}; {_ELSEWHERE}") from error
    lock = CacheLock(folder)
    try:
        if is_cache(folder):
            with suppress(CacheError):
                if read_layout(folder).fingerprint == source.layout.fingerprint:
                    return folder, lock
        for entry in folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
        (folder / COMMITS).mkdir()
        copy_empty(source.layout.path, folder)
    except BaseException:
        lock.release()
        raise
    return folder, lock


def _appear(folder: Path, path: Path, lock: CacheLock) -> None:
    """Let what was built up beside its place be the cache."""
    try:
        folder.rename(path)
    except OSError as error:
        raise CacheError(
            f"{path} appeared while the cache was being pulled ({error}); what has arrived is in "
            f"{folder}"
        ) from error
    lock.move(path)
    sync([path.parent])


class _Pull:
    """What is fetched into a folder with the lock held."""

    def __init__(self, source: Source, folder: Path, lock: CacheLock) -> None:
        self._source, self._folder = source, folder
        self._commits = source.commits()
        there = gather(source.layout, self._commits)
        keep = {
            source.layout.key_of((name, chunk, view))
            for name, present in there.present.items()
            for chunk, view in np.argwhere(present).tolist()
        }
        writer = CacheWriter(folder, lock, keep=keep)
        grow_to_hold(writer, source.layout)
        self._layout: Layout = writer.layout
        self._there = gather(self._layout, self._commits)
        self._here = read_commits(self._layout)

    def take(self, selection: Selection, jobs: int, metered: Metered, *, theirs: bool) -> Pulled:
        """Fetch what is wanted, and commit it chunk by chunk."""
        self._meet(theirs=theirs)
        wanted = selection.keys(self._layout, self._there)
        todo = {name: mask & ~self._here.present[name] for name, mask in wanted.items()}
        parts = parts_of(self._commits, todo)
        left = {key: part for part in parts for key in part.keys}
        waiting = {id(part): len(part.keys) for part in parts}
        came = files = 0
        with metered(sum(map(self._size, left))) as advance:
            for key, fetched in in_parallel(lambda key: self._fetch(key, advance), left, jobs):
                files += fetched
                came += self._size(key) if fetched else 0
                part = left[key]
                waiting[id(part)] -= 1
                if not waiting[id(part)]:
                    self._commit(part)
        asked = sum(int(mask.sum()) for mask in wanted.values())
        return Pulled(
            url=self._source.files.url,
            bytes=came,
            files=files,
            standing=asked - files,
            left=sum(int(mask.sum()) for mask in self._there.present.values()) - asked,
        )

    def _meet(self, *, theirs: bool) -> None:
        keys = differing(self._layout, self._here, self._there)
        if not keys:
            return
        told = f"{self._folder} holds other rows than {self._source.files.url}:\n"
        told += in_words(self._layout, keys)
        if not theirs:
            raise ConflictError(
                f"{told}\nNothing was fetched. `pull --theirs` takes those of there, `push --ours` "
                "puts yours in their place"
            )
        replaced = rows_of(self._layout, self._here, keys)
        without(self._layout, replaced, self._read_status)
        for key in replaced:
            (self._folder / self._layout.key_of(key)).unlink(missing_ok=True)
        self._here = read_commits(self._layout)

    def _fetch(self, key: Key, advance: Advance) -> bool:
        """Have one chunk file here; whether it had to be fetched."""
        name = self._layout.key_of(key)
        path, size = self._folder / name, self._size(key)
        checksum = int(self._there.checksums[key[0]][key[1:]])
        if path.is_file() and wrong_bytes(path, size, checksum) is None:
            advance(size)  # of a pull that was killed
            return False
        beside = path.with_name(f".{path.name}.tmp")
        wrong: str | None = None
        for _ in range(2):  # bytes may have changed on the way
            try:
                self._source.download(name, beside, advance)
            except FileNotFoundError:
                wrong = "is missing"
                break
            wrong = wrong_bytes(beside, size, checksum)
            if wrong is None:
                sync([beside])
                beside.replace(path)
                return True
            advance(-beside.stat().st_size)
            beside.unlink()
        raise TransferError(
            f"{self._source.files.name(name)} {wrong}. {self._source.way_out}; what has arrived is "
            "kept: run the same command again then"
        )

    def _commit(self, part: PartOfCommit) -> None:
        """Say that all files of a commit are here."""
        content = part.content(self._source.layout, self._read_status)
        sync({(self._folder / self._layout.key_of(key)).parent for key in part.keys})
        write_by_rename(free_name(self._layout, part.commit.chunk), content)
        sync([self._folder / COMMITS])

    def _read_status(self, name: str, chunk: int, view: int) -> NDArray[np.uint8]:
        data, _ = read_file(self._folder / self._layout.key_of((name, chunk, view)))
        rows = len(self._layout.sample_range(chunk))
        return self._layout.decode(self._layout.fields[name], data)[:rows]

    def _size(self, key: Key) -> int:
        return int(self._there.sizes[key[0]][key[1:]])
