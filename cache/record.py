"""Records: what one push says is complete of a cache on a shelf, with the metadata in it."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.commits import is_commit
from cache.layout import COMMITS, MANIFEST, METADATA
from cache.manifest import is_name, read_manifest
from cache.remote import Remote, in_parallel
from cache.schema import CacheError, DamagedError
from cache.sealed import seal, unseal, write_sealed

RECORD_VERSION = 1
MENDED_BY = "`dualkd-cache push` from a folder in which the cache is whole mends it"

_MAX_RECORD_BYTES = 256 * 2**20

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


def write_record(shelf: Remote, record: Record) -> str:
    """Write a record; that is the moment in which all that it names exists. Returns its name."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    name = f"{record.fingerprint}.{stamp}-{uuid.uuid4().hex[:8]}.json"
    shelf.write(name, seal(record.to_json()))
    return name


def read_record(shelf: Remote, name: str) -> Record:
    """Read a record.

    Raises:
        FileNotFoundError: it is not there, or not any more.
        DamagedError: its bytes are not those that were written.
        CacheError: it is of another version, or none.
    """
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
