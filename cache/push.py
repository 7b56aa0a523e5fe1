"""Pushing: what a shelf lacks of a cache is sent, and one record makes all of it appear at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.commits import Commits
from cache.layout import (
    Layout,
)
from cache.manifest import check_file, read_manifest, way_out
from cache.metadata import read_layout
from cache.push_round import Round
from cache.remote import Metered, Remote, unmetered
from cache.schema import CacheError, DamagedError
from cache.shelf import find_cache, shelf_of
from cache.shelf_mending import ReplacedError
from cache.source import dataset_of
from cache.workplace import workplace

_ROUNDS = 8  # in each of which somebody else has pushed too


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        url: the address of the cache.
        bytes: what was sent: chunk files and all else.
        files: number of chunk files that were sent.
        standing: number of chunk files that were there already.
        coverage: the part of the rows of which all fields are there, now.
    """

    url: str
    bytes: int
    files: int
    standing: int
    coverage: float


def push_cache(
    path: Path,
    url: str,
    *,
    author: str,
    about: Callable[[Layout, Commits], dict[str, Any]],
    jobs: int = 8,
    ours: bool = False,
    check: bool = False,
    metered: Metered = unmetered,
) -> Pushed:
    """Send to a shelf what it lacks of a cache; what stands there is not changed.

    It reads only what is committed, so the cache may be written meanwhile. A killed push leaves
    files that no record names; the next one finds them and sends the rest.

    Args:
        path: the cache.
        url: the shelf, a folder or what fsspec opens.
        author: who pushes, for people.
        about: what `ls` shall show of the cache as it is there then.
        jobs: files that are sent at once.
        ours: where rows differ there, ours take their place; else that is refused.
        check: read back what is there already, and send again what is not as committed.
        metered: shows the bytes as they are sent.

    Raises:
        ConflictError: the cache there holds other rows in the same places.
        DamagedError: a file of the cache is damaged, and nothing appears there then; or the shelf
            has lost files that this cache does not have either.
        TransferError: a file could not be sent.
    """
    layout = read_layout(path)
    _check_metadata(path)
    shelf = shelf_of(url, dataset_of(layout.identity))
    _check_apart(path, shelf.below(layout.fingerprint))
    done = Pushed(shelf.below(layout.fingerprint).url, 0, 0, 0, 0.0)
    for _ in range(_ROUNDS):
        found = find_cache(shelf, layout.fingerprint)
        with workplace() as state:
            try:
                push = Round(layout, found, state)
            except ReplacedError:
                continue
            push.meet(ours=ours)
            push.send(jobs, metered, check=check)
            name = push.publish(author, about)
        done = replace(
            done,
            bytes=done.bytes + push.bytes,
            files=done.files + push.files,
            standing=done.standing or push.standing,
            coverage=push.coverage,
        )
        if find_cache(shelf, layout.fingerprint).names == [name]:
            return done
    raise CacheError(f"{done.url}: others push to it all the while; run this again later")


def _check_apart(path: Path, there: Remote) -> None:
    """Refuse a shelf inside the cache, and one on which it lies already.

    Raises:
        CacheError: what is pushed would become a part of the cache itself.
    """
    if there.is_local and Path(there.root).resolve().is_relative_to(path.resolve()):
        raise CacheError(
            f"{there.url} is {path} itself or inside it, so nothing can be pushed there from it; a "
            "shelf is a folder beside its caches"
        )


def _check_metadata(path: Path) -> None:
    """Check what no commit protects.

    Raises:
        DamagedError: a file is not as the manifest says.
    """
    for name, digests in read_manifest(path).items():
        wrong = check_file(path, name, digests)
        if wrong:
            raise DamagedError(f"{path / name} {wrong}; {way_out(path)}")
