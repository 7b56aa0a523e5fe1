"""The manifest: the sha256 of every file of a cache that is neither a chunk file nor a commit.

Those files (all `zarr.json`, the samples tables, the projection) stand from the making on. When a
cache grows, some `zarr.json` change and files may be added, in this order: (1) the manifest lists
the old sha256 of each, or null where there was no file, and the new one; (2) the files are written;
(3) the manifest lists the new ones only. Files are added in front of the root's `zarr.json`, which
tells of them. So an interruption leaves files that the manifest knows, and the next writer settles
it: it removes what was added and not told of, and finishes step 3.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from cache.layout import LOCK, MANIFEST, METADATA, SAMPLES, own_path, sync
from cache.schema import CacheError, DamagedError
from cache.sealed import read_sealed, temporary, write_by_rename, write_sealed

# Names are opened, so they must not lead elsewhere.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*")
# What a file may be: its sha256; while it is being written, the old one or None, and the new one.
Digests = list[str | None]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def create_manifest(folder: Path) -> None:
    """List every file that stands in a folder in which a cache is being made."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    _publish(folder, {path.relative_to(folder).as_posix(): [_sha256(path)] for path in files})


def read_manifest(folder: Path) -> dict[str, Digests]:
    """Read the manifest.

    Returns:
        file → what it may be.

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


def check_file(folder: Path, name: str, digests: Digests) -> str | None:
    """What is wrong with a file of the manifest; None where its bytes are those recorded.

    Args:
        folder: the cache.
        name: the file's path inside it.
        digests: what the manifest lists.
    """
    try:
        actual = _sha256(own_path(folder, name))
    except FileNotFoundError:
        return None if None in digests else "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if actual not in digests:
        recorded = " or ".join(digest for digest in digests if digest)
        return f"is damaged: its sha256 is {actual}, recorded {recorded}"
    return None


def copy_empty(folder: Path, other: Path) -> None:
    """Copy what the manifest lists, so that the other folder is a cache that holds nothing yet.

    The root's metadata come last: without them a folder is no cache.
    """
    names = [name for name in read_manifest(folder) if name != METADATA]
    for name in [*names, MANIFEST, METADATA]:
        source = own_path(folder, name)
        if source.exists():  # a growth that was interrupted may lack it
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, other / name)


def settle_manifest(folder: Path) -> None:
    """Finish a growth that was interrupted, or undo it; for the holder of the lock.

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
    if all(len(digests) == 1 for digests in recorded.values()):
        return
    if _sha256(folder / METADATA) == recorded[METADATA][0]:
        for name in [name for name, digests in recorded.items() if None in digests]:
            _undo(folder, name)
    standing = [name for name in recorded if (folder / name).exists()]
    _publish(folder, {name: [_sha256(folder / name)] for name in standing})


def _undo(folder: Path, name: str) -> None:
    """Remove a file, and the folders that were made for it."""
    for path in (folder / name, temporary(folder / name)):
        path.unlink(missing_ok=True)
    for parent in (folder / name).parents:
        if parent == folder or not parent.is_dir() or any(parent.iterdir()):
            return
        parent.rmdir()


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Replace and add files of the manifest, in the order given; for the holder of the lock.

    Args:
        folder: the cache, settled.
        contents: path inside the cache → the new bytes; with new paths, `METADATA` last.
    """
    recorded = read_manifest(folder)
    new: dict[str, Digests] = {
        name: [hashlib.sha256(content).hexdigest()] for name, content in contents.items()
    }
    both = {
        name: digests if recorded.get(name) == digests else recorded.get(name, [None]) + digests
        for name, digests in new.items()
    }
    _publish(folder, recorded | both)
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_by_rename(path, content)
        sync(folder / parent for parent in Path(name).parents)
    _publish(folder, recorded | new)


def way_out(folder: Path) -> str:
    """What to do where a file of the manifest, or the manifest itself, is damaged."""
    return (
        "no repair can make it again: put it back from another copy of this cache, or move "
        f"{folder} away and extract again"
    )


def _publish(folder: Path, files: Mapping[str, Digests]) -> None:
    write_sealed(folder / MANIFEST, {"files": dict(files)})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_name(name: str) -> bool:
    """Whether a path inside a cache is one that a cache can have."""
    return _NAME.fullmatch(name) is not None


def _is_entry(entry: tuple[str, object]) -> bool:
    name, digests = entry
    return (
        _NAME.fullmatch(name) is not None
        and isinstance(digests, list)
        and 1 <= len(digests) <= 2
        and (digests[0] is not None or len(digests) == 2)
        and all(map(_is_digest, digests[1:] if digests[0] is None else digests))
    )


def _is_digest(digest: object) -> bool:
    return isinstance(digest, str) and _SHA256.fullmatch(digest) is not None
