"""Sealed JSON: a small document with the checksum of its own bytes as its last value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cache.identity import canonical_json
from cache.layout import crc32c, sync
from cache.schema import CacheError, DamagedError

_SEAL_BYTES = len(',"crc32c":"01234567"}')
_MAX_BYTES = 16 * 2**20


def seal(document: dict[str, Any]) -> bytes:
    """Spell a document canonically, with the crc32c of all bytes before it as its last value."""
    body = canonical_json(document)[:-1]
    return body + _seal(body)


def write_sealed(path: Path, document: dict[str, Any]) -> None:
    """Publish a document by rename, on the disk itself before this returns."""
    write_by_rename(path, seal(document))
    sync([path.parent])


def write_by_rename(path: Path, content: bytes) -> None:
    """Write a file whose old bytes, if any, stand until the new ones are on the disk."""
    place = temporary(path)
    place.unlink(missing_ok=True)  # it might be a link, or another name of a file of a DVC cache
    place.write_bytes(content)
    sync([place])
    place.rename(path)


def temporary(path: Path) -> Path:
    """Where a file lies while it is being written."""
    return path.parent / f".{path.name}.tmp"


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a document; any byte that was changed shows, be it only a space.

    Raises:
        DamagedError: its bytes are not those that were written.
        CacheError: it is too large to be one.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise CacheError(f"{path} is larger than {_MAX_BYTES} bytes: none of a cache's own files")
    return unseal(path.read_bytes(), str(path))


def unseal(content: bytes, place: str) -> dict[str, Any]:
    """The document of some bytes; see `read_sealed`. `place` is where they were."""
    if content[-_SEAL_BYTES:] != _seal(content[:-_SEAL_BYTES]):
        raise DamagedError(f"{place} is damaged: its bytes are not those that were written")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{place} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{place} is no JSON object")
    return document


def _seal(body: bytes) -> bytes:
    return b',"crc32c":"%08x"}' % crc32c(body)
