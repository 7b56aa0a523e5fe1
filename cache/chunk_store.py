"""A bounded store on this disk for the chunk files of a cache elsewhere, fetched before use.

What is in it is mapped like a local cache. It may be shared by processes and by caches; the files
that were used least recently make room for new ones. Everything in it can be removed at any time.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import platformdirs

from cache.layout import wrong_bytes
from cache.remote import Remote
from cache.schema import CacheError, DamagedError
from cache.transfer_errors import TransferError

DEFAULT_BYTES = 20 * 10**9

_FETCHERS = 8
_FORGOTTEN_SEC = 3600.0  # that a half-fetched file of a killed process stays
_TRAVELLING = ("limit", "_files", "_root", "_folder", "_way_out")  # into other processes
_SLACK = 0.05  # of the room, between two looks at all that is in it


@dataclass(frozen=True)
class Store:
    """Where chunk files from elsewhere are kept.

    Attributes:
        folder: for those of all caches; made if it is not there.
        limit: bytes, at most about.
    """

    folder: Path = field(default_factory=lambda: platformdirs.user_cache_path("dualkd") / "chunks")
    limit: int = DEFAULT_BYTES


@dataclass(frozen=True)
class ChunkFile:
    """A chunk file as it was committed: its path inside the cache, bytes, crc32c of its data."""

    key: str
    size: int
    checksum: int

    @property
    def name(self) -> str:
        """In the store: caches of one fingerprint may hold other bytes, as of another GPU."""
        return f"{self.key}.{self.checksum:08x}"


class ChunkStore:
    """The chunk files of one cache. It travels into other processes, which share its folder."""

    def __init__(self, files: Remote, fingerprint: str, store: Store, way_out: str) -> None:
        """Fetch nothing yet.

        Args:
            files: the cache's folder elsewhere.
            fingerprint: of the cache.
            store: where its chunk files are kept.
            way_out: what helps where a file there is damaged.

        Raises:
            CacheError: the store's folder cannot be made.
        """
        self.limit = store.limit
        self._files, self._root, self._way_out = files, store.folder, way_out
        self._folder = store.folder / fingerprint
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{self._folder} cannot be made for a store: {error}") from error
        self._begin()

    def _begin(self) -> None:
        self._checked: set[str] = set()
        self._unseen = float("inf")  # bytes that came since we looked at all there is
        self._wanted: deque[ChunkFile] = deque()
        self._more = threading.Condition()
        self._fetchers: list[threading.Thread] = []
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to this process."""
        return {name: self.__dict__[name] for name in _TRAVELLING}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Arrive in another process."""
        self.__dict__.update(state)
        self._begin()

    def open(self, file: ChunkFile) -> BinaryIO:
        """A chunk file, open; fetched if it is not here. It can be read though it is removed.

        Raises:
            DamagedError: its bytes elsewhere are not those that were committed, or it is missing.
            TransferError: it cannot be fetched.
        """
        path = self._folder / file.name
        return self._open_here(file, path) or self._fetch(file, path)

    def _open_here(self, file: ChunkFile, path: Path) -> BinaryIO | None:
        """A chunk file that is in the store already, whole, and used just now."""
        with suppress(FileNotFoundError):
            if file.name in self._checked or wrong_bytes(path, file.size, file.checksum) is None:
                content = path.open("rb")
                os.utime(content.fileno())
                self._checked.add(file.name)
                return content
        return None

    def want(self, files: Iterable[ChunkFile]) -> None:
        """Fetch files in other threads, in this order, behind those that were wanted before."""
        if self._process != os.getpid():  # forked: the threads stayed behind
            self._begin()
        with self._more:
            self._wanted.extend(files)
            self._more.notify_all()
        if not self._fetchers and self._wanted:
            self._fetchers = [
                threading.Thread(target=self._fetch_wanted, daemon=True, name="chunk store")
                for _ in range(_FETCHERS)
            ]
            for thread in self._fetchers:
                thread.start()

    def forget_wanted(self) -> None:
        """Fetch no more of what was wanted."""
        with self._more:
            self._wanted.clear()

    def _fetch_wanted(self) -> None:
        while True:
            with self._more:
                while not self._wanted:
                    self._more.wait()
                file = self._wanted.popleft()
            with suppress(CacheError, OSError):  # whoever needs it is told
                self.open(file).close()

    def _fetch(self, file: ChunkFile, path: Path) -> BinaryIO:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f".{path.name}.lock")):
            found = self._open_here(file, path)
            if found is not None:  # another thread or process has fetched it meanwhile
                return found
            beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
            wrong: str | None = "is missing"
            for _ in range(2):  # bytes may have changed on the way
                try:
                    self._files.download(file.key, beside, lambda _: None)
                except FileNotFoundError:
                    break
                except OSError as error:
                    raise TransferError(f"{beside} cannot be written: {error}") from error
                wrong = wrong_bytes(beside, file.size, file.checksum)
                if wrong is None:
                    break
            if wrong is not None:
                beside.unlink(missing_ok=True)
                raise DamagedError(f"{self._files.name(file.key)} {wrong}. {self._way_out}")
            content = beside.open("rb")
            beside.replace(path)
        self._checked.add(file.name)
        self._make_room(file.size)
        return content

    def _make_room(self, came: int) -> None:
        """Remove what was used least recently where there is too much."""
        self._unseen += came
        if self._unseen < _SLACK * self.limit:
            return
        with _locked(self._root / ".lock"):
            found = []
            for path in self._root.rglob("c.*"):
                with suppress(FileNotFoundError):
                    about = path.stat()
                    found.append((about.st_mtime_ns, about.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found)[:-1]:  # never what came last
                if total <= self.limit * (1 - _SLACK):
                    break
                path.unlink(missing_ok=True)
                total -= size
            for path in self._root.rglob(".c.*.tmp"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > _FORGOTTEN_SEC:
                        path.unlink()
        self._unseen = 0


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One at a time of all threads and processes of this machine."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
