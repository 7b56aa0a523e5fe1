"""Caches at a URL, whatever fsspec opens: their chunk files are fetched, never mapped."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import fsspec

from cache.layout import COMMITS, METADATA, PROJECTION, SAMPLES
from cache.schema import CacheError

_MAX_BYTES_OF_ALL = 2**30


def fetch(url: str, key: str, limit: int) -> bytes:
    """Fetch the first `limit` bytes of a file of a cache.

    Raises:
        FileNotFoundError: there is none.
    """
    # Asked for each time: fsspec keeps one instance per process, so a fork takes none along.
    files, root = fsspec.url_to_fs(url)
    return bytes(files.cat_file(f"{root}/{key}", end=limit))


def copy_metadata(url: str, folder: Path) -> None:
    """Copy what must be known before rows are read: all but the chunk files of the fields.

    Args:
        url: the cache.
        folder: an empty one.

    Raises:
        CacheError: there is no cache at `url`, its metadata are too large, or a file is a link.
    """
    files, root = fsspec.url_to_fs(url)
    found = files.find(root, detail=True)
    wanted = {}
    for path, about in found.items():
        key = PurePosixPath(path).relative_to(root)
        if about.get("islink"):  # a `file://` URL
            raise CacheError(
                f"{url}/{key} is a link, and a cache is read from its own files only: put a copy "
                "of what it points to in its place"
            )
        if _is_metadata(key) and ".." not in key.parts:
            wanted[path] = (folder / key, about["size"] or 0)
    if f"{root}/{METADATA}" not in wanted:
        raise CacheError(f"{url} is no cache: there is no {METADATA}")
    total = sum(size for _, size in wanted.values())
    if total > _MAX_BYTES_OF_ALL:
        raise CacheError(f"{url} has {total} bytes of metadata; {_MAX_BYTES_OF_ALL} are read")
    for path, content in files.cat(list(wanted)).items():
        target, _ = wanted[path]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _is_metadata(key: PurePosixPath) -> bool:
    tables = key.match(SAMPLES) or key.match(SAMPLES.replace(".", ".*."))
    return key.name == METADATA or key.parts[0] in (COMMITS, PROJECTION) or tables
