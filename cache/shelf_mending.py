"""What a shelf has lost of the files that its records name: a push puts it back."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cache.commits import commit_paths, is_commit
from cache.layout import Layout
from cache.manifest import read_manifest
from cache.record import Digest, Record, holds_digest
from cache.remote import Remote, in_parallel
from cache.schema import CacheError, DamagedError
from cache.shelf import Shelved, find_cache
from cache.source import copy_shelved

_SHOWN = 10


class ReplacedError(CacheError):
    """Somebody else has pushed since the records were read."""


def copy_mended(found: Shelved, mine: Layout, folder: Path) -> tuple[tuple[Record, ...], list[str]]:
    """Make a cache of what is on a shelf, without chunk files; where that fails, mend it first.

    Files that are lost or damaged there are put back where the cache that is pushed has them too.
    A commit that it does not have is left out: then it must hold all rows itself, or whatever that
    commit named is given up; see `check_whole`.

    Args:
        found: the cache on the shelf.
        mine: the cache that is pushed.
        folder: none yet.

    Returns:
        the records as they can be read, and the names of the commits that are left out.

    Raises:
        ReplacedError: the records are others by now.
        DamagedError: a table or a projection is lost, and the cache has no such file.
    """
    try:
        copy_shelved(found.cache, found.records, folder)
    except (FileNotFoundError, DamagedError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        if find_cache(found.shelf, mine.fingerprint).names != found.names:
            raise ReplacedError(str(error)) from error
    else:
        return found.records, []
    left_out = _put_back(found.cache, found.records, mine)
    records = tuple(
        replace(
            record,
            commits={key: of for key, of in record.commits.items() if key not in left_out},
        )
        for record in found.records
    )
    copy_shelved(found.cache, records, folder)
    return records, left_out


def check_whole(there: Remote, left_out: Sequence[str], mine: Layout, *, whole: bool) -> None:
    """Refuse to do without a commit where the cache that is pushed may lack what it named.

    Raises:
        DamagedError: it does not hold everything.
    """
    if left_out and not whole:
        raise _lost(there, left_out, f"{mine.path} does not hold all of the cache either")


def _put_back(there: Remote, records: Sequence[Record], mine: Layout) -> list[str]:
    """Write what is lost and the cache has; returns the commits that it has not."""
    named: dict[str, Digest] = {}
    for record in records:
        named |= record.files | record.commits
    sound = dict(in_parallel(lambda key: holds_digest(there, key, named[key]), named, 8))
    lost = [key for key in named if not sound[key]]
    own = {
        hashlib.sha256(path.read_bytes()).hexdigest(): path
        for path in [*commit_paths(mine), *(mine.path / name for name in read_manifest(mine.path))]
    }
    absent = [key for key in lost if named[key][1] not in own]
    tables = [key for key in absent if not is_commit(key)]
    if tables:
        raise _lost(there, tables, f"{mine.path} has no such files")
    for key in lost:
        if key not in absent:
            there.write(key, own[named[key][1]].read_bytes())
    return absent


def _lost(there: Remote, keys: Sequence[str], why: str) -> DamagedError:
    lines = [f"  {there.name(key)}" for key in sorted(keys)[:_SHOWN]]
    more = [f"  … and {len(keys) - _SHOWN} more"] if len(keys) > _SHOWN else []
    told = "\n".join([*lines, *more])
    return DamagedError(
        f"files that a record names are lost or damaged:\n{told}\n{why}: push the cache from a "
        "folder in which it is whole; that mends it"
    )
