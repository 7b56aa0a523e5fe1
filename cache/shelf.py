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

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.address import checked_address, public_url
from cache.commits import is_commit
from cache.layout import COMMITS, MANIFEST, METADATA
from cache.manifest import is_name, read_manifest
from cache.remote import Remote, in_parallel
from cache.schema import CacheError, DamagedError
from cache.sealed import seal, unseal, write_sealed

RECORD_VERSION = 1
MENDED_BY = "`dualkd-cache push` from a folder in which the cache is whole mends it"

_MAX_RECORD_BYTES = 256 * 2**20
_RECORD = re.compile(r"([0-9a-f]{64})\.\d{8}T\d{6}Z-[0-9a-f]{8}\.json")
_DATASET = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TRIES = 8  # of reading records while others push
_PREFIX = re.compile(r"[0-9a-f]{6,64}")  # of a fingerprint

# Bytes and sha256 of a file.
Digest = tuple[int, str]


@dataclass(frozen=True)
class Record:
    """What one push says is complete.

    Attributes:
        name: its file's.
        dataset: the dataset's name.
        fingerprint: of the cache's identity.
        author: who pushed.
        time: when, UTC.
        replaces: names of all records before it, as far as it knew of them: of those that lay
            there, and of those that they had replaced, should one of them come back.
        metadata: the text of each `zarr.json`.
        files: the other files of the manifest.
        commits: the commits by their names in the cache.
        about: what `ls` shows.
    """

    dataset: str
    fingerprint: str
    author: str
    time: str
    replaces: tuple[str, ...]
    metadata: dict[str, str]
    files: dict[str, Digest]
    commits: dict[str, Digest]
    about: dict[str, Any]
    name: str = ""

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of each file that the cache's manifest lists."""
        texts = {key: text.encode() for key, text in self.metadata.items()}
        digests = {key: hashlib.sha256(content).hexdigest() for key, content in texts.items()}
        return digests | {key: sha256 for key, (_, sha256) in self.files.items()}

    def to_json(self) -> dict[str, Any]:
        """As its file has it."""
        document = {name: value for name, value in vars(self).items() if name != "name"}
        return {"record_version": RECORD_VERSION, **document}


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
    records = [_read(shelf, name) for name in names]
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


def write_record(shelf: Remote, record: Record) -> str:
    """Write a record; that is the moment in which all that it names exists. Returns its name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{record.fingerprint}.{stamp}-{uuid.uuid4().hex[:8]}.json"
    shelf.write(name, seal(record.to_json()))
    return name


def _read(shelf: Remote, name: str) -> Record:
    place = shelf.name(name)
    try:
        document = unseal(shelf.read(name, _MAX_RECORD_BYTES + 1), place)
    except DamagedError as error:
        raise DamagedError(
            f"{error}. Remove this record, and push the cache again from where it is whole"
        ) from error
    version = document.get("record_version")
    if version != RECORD_VERSION:
        raise CacheError(
            f"{place} has record version {version!r}; this dualkd reads "
            f"{RECORD_VERSION}. Install the dualkd that wrote it"
        )
    try:
        record = Record(
            dataset=str(document["dataset"]),
            fingerprint=str(document["fingerprint"]),
            author=str(document["author"]),
            time=str(document["time"]),
            replaces=tuple(map(str, document["replaces"])),
            metadata={str(key): str(text) for key, text in document["metadata"].items()},
            files=_digests(document["files"]),
            commits=_digests(document["commits"]),
            about=dict(document["about"]),
            name=name,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{place} is no record: {error}") from error
    # The names are opened and written here, so they must not lead elsewhere.
    every = [*record.metadata, *record.files, *record.commits]
    strange = [key for key in every if not is_name(key)]
    strange += [key for key in record.commits if not is_commit(key)]
    strange += [key for key in record.metadata if not key.endswith(METADATA)]
    if strange or record.fingerprint != name.partition(".")[0]:
        raise CacheError(f"{place} is no record of a cache: {strange[:1] or 'its name'}")
    return record


def _digests(entries: Mapping[str, Sequence[Any]]) -> dict[str, Digest]:
    return {str(key): (int(size), str(sha256)) for key, (size, sha256) in entries.items()}


def copy_metadata(cache: Remote, record: Record, folder: Path, jobs: int = 8) -> None:
    """Make a cache of a record on this disk, without its chunk files.

    Args:
        cache: the cache's folder on the shelf.
        record: what it is by one push.
        folder: none yet.
        jobs: files that are fetched at once.

    Raises:
        FileNotFoundError: a file is gone; another push may have replaced it.
        DamagedError: a file there has other bytes.
    """
    (folder / COMMITS).mkdir(parents=True)
    for key, text in record.metadata.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(text.encode())

    def fetch(entry: tuple[str, Digest]) -> None:
        key, (size, sha256) = entry
        content = cache.read(key, size + 1)
        if _is_other(content, (size, sha256)):
            raise DamagedError(
                f"{cache.name(key)} is not what was pushed ({len(content)} bytes, recorded {size})."
                f" {MENDED_BY}"
            )
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(content)

    for _ in in_parallel(fetch, [*record.files.items(), *record.commits.items()], jobs):
        pass
    files = {key: [sha256] for key, sha256 in record.digests.items()}
    write_sealed(folder / MANIFEST, {"files": files})


def holds_digest(cache: Remote, key: str, digest: Digest) -> bool:
    """Whether a file is there and has the bytes that a record says."""
    try:
        return not _is_other(cache.read(key, digest[0] + 1), digest)
    except FileNotFoundError:
        return False


def _is_other(content: bytes, digest: Digest) -> bool:
    return (len(content), hashlib.sha256(content).hexdigest()) != digest


def record_of(
    folder: Path,
    *,
    dataset: str,
    fingerprint: str,
    author: str,
    replaces: Sequence[str],
    about: Mapping[str, Any],
) -> Record:
    """Describe a cache on this disk, as its metadata and commits stand; chunk files aside."""
    names = sorted(read_manifest(folder))
    commits = [f"{COMMITS}/{path.name}" for path in sorted((folder / COMMITS).iterdir())]
    return Record(
        dataset=dataset,
        fingerprint=fingerprint,
        author=author,
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        replaces=tuple(replaces),
        metadata={
            name: (folder / name).read_text("utf-8") for name in names if name.endswith(METADATA)
        },
        files={name: _digest(folder / name) for name in names if not name.endswith(METADATA)},
        commits={name: _digest(folder / name) for name in commits if is_commit(name)},
        about=dict(about),
    )


def _digest(path: Path) -> Digest:
    content = path.read_bytes()
    return len(content), hashlib.sha256(content).hexdigest()
