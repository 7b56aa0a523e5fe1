"""Shelves: folders or URLs at which a team keeps caches, by dataset and fingerprint.

    URL/k400/<fingerprint>/                     a cache as it lies on a disk
    URL/k400/<fingerprint>.<time>-<name>.json   a record: which files of it are complete

What no record tells of does not exist there. A record is written after everything that it names, by
one request; it holds the metadata, so a reader of one record sees one state of the cache, whatever
somebody pushes meanwhile. A push replaces the records that it knew of, and all that those replaced.
Where two push at once, both records stand until either's next look, and a cache is what they say
together.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from cache.address import checked_address, public_url
from cache.record import Record, read_record
from cache.remote import Remote
from cache.schema import CacheError

_RECORD = re.compile(r"([0-9a-f]{64})\.\d{8}T\d{6}Z-[0-9a-f]{8}\.json")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TRIES = 8  # of reading records while others push
_PREFIX = re.compile(r"[0-9a-f]{6,64}")  # of a fingerprint


@dataclass(frozen=True)
class Shelved:
    """A cache on a shelf.

    Attributes:
        shelf: the folder of its dataset there.
        records: all that stand of it, none replaced by another; newest first.
        replaced: those that lie there still, though they count no more; newest first.
    """

    shelf: Remote
    records: tuple[Record, ...] = ()
    replaced: tuple[Record, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names of the records that stand."""
        return [record.name for record in self.records]

    @property
    def commits(self) -> set[str]:
        """All commits that any record there names, whether it stands or not."""
        return {key for record in (*self.records, *self.replaced) for key in record.commits}

    @property
    def cache(self) -> Remote:
        """The cache's folder; its `url` is the address of the cache."""
        return self.shelf.below(self.records[0].fingerprint)


def shelved(url: str) -> list[Shelved]:
    """All caches of a shelf, those of one dataset, or the one whose address is given.

    Args:
        url: `URL`, `URL/dataset`, or `URL/dataset/fingerprint`, whose first 6 digits do.

    Raises:
        CacheError: it cannot be listed, or a record is damaged.
    """
    url = checked_address(url).rstrip("/")
    place, _, last = url.rpartition("/")
    if _PREFIX.fullmatch(last):
        found = caches_of(Remote(place), last)
        if found:
            return found
    remote = Remote(url)
    listed = remote.list()
    if any(map(_RECORD.fullmatch, listed)):
        return caches_of(remote)
    folders = sorted(name for name, about in listed.items() if about.get("type") == "directory")
    return [
        cache
        for name in folders
        if _DATASET.fullmatch(name) and not _PREFIX.fullmatch(name)
        for cache in caches_of(remote.below(name))
    ]


def shelf_of(url: str, dataset: str) -> Remote:
    """The folder of a dataset on a shelf.

    Raises:
        CacheError: the dataset's name is no name of a folder.
    """
    if not _DATASET.fullmatch(dataset) or _PREFIX.fullmatch(dataset):
        raise CacheError(
            f"dataset {dataset!r:.80} cannot be the name of a folder at {public_url(url)}"
        )
    return Remote(url).below(dataset)


def caches_of(shelf: Remote, fingerprint: str = "") -> list[Shelved]:
    """The caches of a dataset whose fingerprints begin so.

    Raises:
        CacheError: the folder cannot be listed, or a record is damaged.
    """
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # a push has replaced a record since it was listed
            return _caches_listed(shelf, fingerprint)
    raise CacheError(f"{shelf.url}: others push to it all the while; run this again later")


def _caches_listed(shelf: Remote, fingerprint: str) -> list[Shelved]:
    names: dict[str, list[str]] = {}
    for name in shelf.list():
        match = _RECORD.fullmatch(name)
        if match and match[1].startswith(fingerprint):
            names.setdefault(match[1], []).append(name)
    return [_shelved(shelf, its) for _, its in sorted(names.items())]


def _shelved(shelf: Remote, names: Sequence[str]) -> Shelved:
    """Read the records of a cache; those that others replace stand no more."""
    records = [read_record(shelf, name) for name in names]
    records.sort(key=lambda record: (record.time, record.name), reverse=True)
    replaced = {name for record in records for name in record.replaces}
    return Shelved(
        shelf,
        tuple(record for record in records if record.name not in replaced),
        tuple(record for record in records if record.name in replaced),
    )


def find_cache(shelf: Remote, fingerprint: str) -> Shelved:
    """A cache on a shelf; of none that is there, no records."""
    found = caches_of(shelf, fingerprint)
    return found[0] if found else Shelved(shelf)
