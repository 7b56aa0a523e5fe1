"""Where a cache is taken from: a shelf, a copy at a URL, or a folder; its metadata come here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cache.address import is_url
from cache.commands import command
from cache.commits import Commit, Commits, commit_chunk, commit_paths, read_commits
from cache.layout import (
    COMMITS,
    MANIFEST,
    METADATA,
    PROJECTION,
    SAMPLES,
    Layout,
    own_path,
    repair_hint,
)
from cache.metadata import is_cache, read_layout
from cache.record import MENDED_BY, Record, copy_metadata
from cache.remote import Advance, Remote
from cache.schema import CacheError
from cache.shelf import Shelved, shelved
from cache.union import add_commit, all_commits, grow_to_hold
from cache.workplace import workplace
from cache.writer import open_writer

_MAX_BYTES_OF_ALL = 2**30
_TRIES = 5  # of reading a cache while others push to it


@dataclass(frozen=True)
class Source:
    """A cache of which only the chunk files have to be fetched yet.

    Attributes:
        files: its folder, where the chunk files are.
        layout: its metadata; `layout.path` is a folder on this machine.
        on_shelf: whether it was pushed, so that what is damaged can be pushed again.
    """

    files: Remote
    layout: Layout
    on_shelf: bool

    @property
    def way_out(self) -> str:
        """What helps where a file of it is missing or damaged."""
        if self.on_shelf:
            return "`dualkd-cache push --check` from a folder in which the cache is whole mends it"
        return repair_hint(self.files.url)

    def commits(self) -> list[Commit]:
        """Its commits, oldest first within a chunk."""
        return all_commits(self.layout)

    def download(self, key: str, path: Path, advance: Advance) -> None:
        """Fetch a chunk file.

        Raises:
            FileNotFoundError: it is not there.
            CacheError: it cannot be read, or is a link.
        """
        if self.files.is_local:
            own_path(Path(self.files.root), key)
        self.files.download(key, path, advance)


def open_source(url: str, folder: Path) -> Source:
    """Find the one cache that is meant, and fetch what must be known of it.

    Args:
        url: the address of a cache on a shelf; a shelf, if it has one cache only; or a cache, in a
            folder or copied to a URL.
        folder: for the metadata; none yet.

    Raises:
        CacheError: there is no cache, there are several, or it is damaged.
    """
    for attempt in range(_TRIES):
        found = shelved(url)
        if len(found) > 1:
            lines = "\n".join(f"  {one.cache.url}" for one in found)
            raise CacheError(f"{Remote(url).url} holds {len(found)} caches; name one:\n{lines}")
        if not found:
            return _plain(url, folder)
        try:
            copy_shelved(found[0].cache, found[0].records, folder)
        except FileNotFoundError as error:  # a push has replaced the record meanwhile
            shutil.rmtree(folder, ignore_errors=True)
            if attempt == _TRIES - 1:
                raise CacheError(f"{error}, which a record names. {MENDED_BY}") from error
            continue
        return Source(found[0].cache, read_layout(folder), on_shelf=True)
    raise AssertionError


def about_shelved(
    one: Shelved, about: Callable[[Layout, Commits], dict[str, Any]]
) -> dict[str, Any]:
    """What a catalogue shows of a cache: what its record says, or what several say together.

    Args:
        one: the cache.
        about: what a push of it would have written.

    Raises:
        CacheError: there are several, and one of their files is missing or damaged.
    """
    if len(one.records) == 1:
        return one.records[0].about
    with workplace() as folder:
        try:
            copy_shelved(one.cache, one.records, folder)
        except FileNotFoundError as error:
            raise CacheError(f"{error}, which a record names. {MENDED_BY}") from error
        layout = read_layout(folder)
        return about(layout, read_commits(layout))


def copy_shelved(cache: Remote, records: Sequence[Record], folder: Path) -> None:
    """Make a cache of what records say together, without its chunk files.

    Raises:
        FileNotFoundError: a file is gone; another push may have replaced it.
        CacheError: a file has other bytes, or the records cannot be of one cache.
    """
    copy_metadata(cache, records[0], folder)
    for record in records[1:]:
        with workplace() as beside:
            copy_metadata(cache, record, beside)
            other = read_layout(beside)
            with open_writer(folder, identity=other.identity) as writer:
                grow_to_hold(writer, other)
            for path in commit_paths(other):
                add_commit(folder, commit_chunk(path), path.read_bytes())


def dataset_of(identity: Mapping[str, Any]) -> str:
    """The dataset's name, as far as an identity tells it."""
    dataset = identity.get("dataset")
    return str(dataset.get("name") if isinstance(dataset, dict) else dataset)


def _plain(url: str, folder: Path) -> Source:
    """A cache as it lies on a disk, in a folder of this machine or at a URL."""
    if not is_url(url):
        path = Path(url).absolute()
        if not is_cache(path):
            raise CacheError(
                f"{path} holds no cache: neither one of its own nor, as a shelf, one that was "
                "pushed. `dualkd-cache ls` shows what is on a shelf"
            )
        return Source(Remote(str(path)), read_layout(path), on_shelf=False)
    files = Remote(url)
    _copy_plain(files, folder)
    return Source(files, read_layout(folder), on_shelf=False)


def _copy_plain(files: Remote, folder: Path) -> None:
    """Copy what must be known before rows are read: all but the chunk files of the fields."""
    wanted = {}
    for name, about in files.sizes("").items():
        key = PurePosixPath(name)
        if about.get("islink"):  # a `file://` URL
            raise CacheError(
                f"{files.name(name)} is a link, and a cache is read from its own files only: put a "
                "copy of what it points to in its place"
            )
        if _is_metadata(key) and ".." not in key.parts:
            wanted[name] = about["size"] or 0
    if METADATA not in wanted:
        raise CacheError(
            f"{files.url} is no cache: there is no {METADATA}. "
            f"`{command('dualkd-cache', 'ls', files.url)}` shows the caches on a shelf"
        )
    if sum(wanted.values()) > _MAX_BYTES_OF_ALL:
        raise CacheError(
            f"{files.url} has {sum(wanted.values())} bytes of metadata; {_MAX_BYTES_OF_ALL} are "
            "read"
        )
    for name, content in files.read_all(wanted).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def _is_metadata(key: PurePosixPath) -> bool:
    tables = key.match(SAMPLES) or key.match(SAMPLES.replace(".", ".*."))
    return key.name in (METADATA, MANIFEST) or key.parts[0] in (COMMITS, PROJECTION) or tables
