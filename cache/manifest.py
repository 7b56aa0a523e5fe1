"""The manifest: the sha256 of every file of a cache that is neither a chunk file nor a commit.

Those files (all `zarr.json`, the samples table, the projection) stand from the making on. When
views are added, the arrays' `zarr.json` change, in this order: (1) the manifest lists the old and
the new sha256 of each; (2) the files are replaced; (3) the manifest lists the new ones only. So an
interruption leaves files that the manifest knows, and the next writer finishes step 3.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from cache.layout import LOCK, MANIFEST, METADATA, SAMPLES, own_path, sync
from cache.schema import CacheError, DamagedError
from cache.sealed import read_sealed, write_by_rename, write_sealed

# Names are opened, so they must not lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def create_manifest(folder: Path) -> None:
    """List every file that stands in a folder in which a cache is being made."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    _publish(folder, {path.relative_to(folder).as_posix(): [_sha256(path)] for path in files})


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """Read the manifest.

    Returns:
        file → its sha256; two of them while the file is being replaced.

    Raises:
        CacheError: the manifest is missing, damaged, or none.
    """
    path = own_path(folder, MANIFEST)
    try:
        files = read_sealed(path).get("files")
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    if not isinstance(files, dict) or not all(map(_is_entry, files.items())):
        raise CacheError(f"{path} is no manifest: `files` must list the sha256 of each file")
    for name in (METADATA, SAMPLES):
        if name not in files:
            raise CacheError(f"{path} is no manifest: it does not list {name}")
    return files


def check_file(folder: Path, name: str, digests: list[str]) -> str | None:
    """What is wrong with a file of the manifest; None where its bytes are those recorded.

    Args:
        folder: the cache.
        name: the file's path inside it.
        digests: what the manifest lists.
    """
    try:
        actual = _sha256(own_path(folder, name))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if actual not in digests:
        return f"is damaged: its sha256 is {actual}, recorded {' or '.join(digests)}"
    return None


def settle_manifest(folder: Path) -> None:
    """Finish a replacing that was interrupted; for the holder of the lock.

    Raises:
        CacheError: the manifest or a file of it is damaged: nothing may be added to such a cache.
    """
    try:
        recorded = read_manifest(folder)
    except DamagedError as error:
        raise DamagedError(f"{error}; {way_out(folder)}") from error
    for name, digests in recorded.items():
        wrong = check_file(folder, name, digests)
        if wrong:
            raise DamagedError(f"{folder / name} {wrong}; {way_out(folder)}")
    if any(len(digests) > 1 for digests in recorded.values()):
        _publish(folder, {name: [_sha256(folder / name)] for name in recorded})


def replace_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace files of the manifest, in the order given; for the holder of the lock.

    Args:
        folder: the cache.
        contents: path inside the cache → the new bytes.
    """
    recorded = read_manifest(folder)
    new = {name: [hashlib.sha256(content).hexdigest()] for name, content in contents.items()}
    both = {name: sorted({*recorded[name], *digests}) for name, digests in new.items()}
    _publish(folder, recorded | both)
    for name, content in contents.items():
        write_by_rename(folder / name, content)
        sync([(folder / name).parent])
    _publish(folder, recorded | new)


def way_out(folder: Path) -> str:
    """What to do where a file of the manifest, or the manifest itself, is damaged."""
    return (
        "no repair can make it again: put it back from another copy of this cache, or move "
        f"{folder} away and extract again"
    )


def _publish(folder: Path, files: Mapping[str, list[str]]) -> None:
    write_sealed(folder / MANIFEST, {"files": dict(files)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_entry(entry: tuple[str, object]) -> bool:
    name, digests = entry
    return (
        _NAME.fullmatch(name) is not None
        and isinstance(digests, list)
        and 1 <= len(digests) <= 2
        and all(isinstance(digest, str) and _SHA256.fullmatch(digest) for digest in digests)
    )
