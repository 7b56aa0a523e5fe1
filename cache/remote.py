"""Files at a URL, whatever fsspec opens: tried again where a network fails, named in errors."""

from __future__ import annotations

import copy
import filecmp
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.callbacks import Callback
from fsspec.implementations.local import LocalFileSystem

from cache.address import checked_address, public_url, without_secrets
from cache.schema import CacheError
from cache.transfer_errors import TransferError, failure, is_final, lacks_bucket

Item = TypeVar("Item")
Done = TypeVar("Done")
Advance = Callable[[int], None]
# Shows the bytes of a transfer, of so many, as they come.
Metered = Callable[[int], AbstractContextManager[Advance]]

_WAITS_SEC = (0.2, 1.0, 4.0)  # before a second, third and fourth attempt
_NOT_SENT = "what is there is not what was sent"
_BLOCK_BYTES = 8 * 2**20


class Remote:
    """A folder of files that fsspec opens, as `s3://bucket/caches`, or one of this machine."""

    def __init__(self, url: str) -> None:
        """Look which file system it is; nothing is asked of it yet.

        Raises:
            CacheError: it is no address, fsspec does not know it, or lacks a package for it.
        """
        url = checked_address(url)
        self.url = public_url(url).rstrip("/")
        self._address = url
        try:
            files, root = fsspec.url_to_fs(url)
        except ImportError as error:
            raise CacheError(
                f"{self.url} needs a package that is not installed: {error}. For s3:// it is "
                "`pip install 'dualkd[s3]'`, else the one that fsspec names"
            ) from error
        except ValueError as error:
            why = without_secrets(str(error), url)
            raise CacheError(f"{self.url} is nothing that fsspec opens: {why}") from error
        self.root = str(root).rstrip("/")
        self.is_local = isinstance(files, LocalFileSystem)

    @property
    def _files(self) -> Any:
        """Asked for each time: fsspec keeps one per process, so a fork takes none along."""
        return fsspec.url_to_fs(self._address)[0]

    def below(self, folder: str) -> Remote:
        """A folder in there."""
        other = copy.copy(self)
        other.url, other.root = f"{self.url}/{folder}", f"{self.root}/{folder}"
        return other

    def name(self, key: str) -> str:
        """What a file is called in messages."""
        return f"{self.url}/{key}" if key else self.url

    def list(self, folder: str = "") -> dict[str, dict[str, Any]]:
        """Name → what fsspec says of it, of all files and folders in a folder; none if it is none.

        Raises:
            TransferError: it cannot be listed.
        """
        place = f"{self.root}/{folder}".rstrip("/")
        self._files.invalidate_cache()
        try:
            found = self._attempt("listed", folder, lambda: self._files.ls(place, detail=True))
        except FileNotFoundError:
            return {}
        places = {str(about["name"]).rstrip("/"): about for about in found}
        # Of a file, and of an object that stands for a folder, some stores list the thing itself.
        return {
            name.rpartition("/")[2]: about
            for name, about in places.items()
            if name.lstrip("/") != place.lstrip("/")
        }

    def sizes(self, folder: str) -> dict[str, dict[str, Any]]:
        """Path below a folder → what fsspec says of it, of all files however deep."""
        place = f"{self.root}/{folder}".rstrip("/")
        self._files.invalidate_cache()
        found = self._attempt("listed", folder, lambda: self._files.find(place, detail=True))
        return {str(path).removeprefix(f"{place}/"): about for path, about in found.items()}

    def read(self, key: str, limit: int | None = None) -> bytes:
        """The bytes of a file, or the first of them.

        Raises:
            FileNotFoundError: there is none.
            TransferError: it cannot be read.
        """
        place = f"{self.root}/{key}"
        read = lambda: bytes(self._files.cat_file(place, end=limit))  # noqa: E731
        return self._attempt("read", key, read)

    def read_all(self, keys: Iterable[str], jobs: int = 8) -> dict[str, bytes]:
        """The bytes of small files; see `read`."""
        return dict(in_parallel(self.read, keys, jobs))

    def download(self, key: str, path: Path, advance: Advance) -> None:
        """Copy a file to this machine.

        Raises:
            FileNotFoundError: there is none.
            TransferError: it cannot be read.
        """
        place = f"{self.root}/{key}"

        def get() -> None:
            with _Counter(advance) as counter:
                self._files.get_file(place, str(path), callback=counter)

        self._attempt("read", key, get, kept=True)

    def upload(self, path: Path, key: str, advance: Advance) -> None:
        """Copy a file of this machine there; it appears whole or not at all.

        Raises:
            TransferError: it cannot be written, or is not what was sent.
        """

        def put() -> None:
            with _Counter(advance) as counter:
                self._write(key, lambda place: self._files.put_file(str(path), place, counter))
                if not self.holds(key, path):
                    raise OSError(_NOT_SENT)

        self._attempt("written", key, put, kept=True)

    def write(self, key: str, content: bytes) -> None:
        """Write a small file; it appears whole or not at all.

        Raises:
            TransferError: it cannot be written.
        """

        def put() -> None:
            self._write(key, lambda place: self._files.pipe_file(place, content))
            if self._files.cat_file(f"{self.root}/{key}") != content:
                raise OSError(_NOT_SENT)

        self._attempt("written", key, put)

    def remove(self, key: str) -> None:
        """Remove a file, if it is there and we may."""
        try:
            self._attempt("removed", key, lambda: self._files.rm_file(f"{self.root}/{key}"))
        except (FileNotFoundError, TransferError):
            return

    def holds(self, key: str, path: Path, about: dict[str, Any] | None = None) -> bool:
        """Whether a file there has the bytes of a file here.

        On a disk both are read. A store's MD5 tells where it has one (S3 has it of what was sent in
        one piece); else the bytes are read back.

        Args:
            key: the file there.
            path: the file here.
            about: what fsspec said of it just now, to ask no more.
        """
        place = f"{self.root}/{key}"
        if self.is_local:
            return filecmp.cmp(path, place, shallow=False)
        if about is None:
            self._files.invalidate_cache(place.rpartition("/")[0])
            about = self._files.info(place)
        if about.get("size") != path.stat().st_size:
            return False
        if str(about.get("ETag", "")).strip('"') == _digest(_blocks(path.open("rb"))):
            return True
        with self._files.open(place, "rb", block_size=_BLOCK_BYTES) as file:
            return _digest(_blocks(file)) == _digest(_blocks(path.open("rb")))

    def _write(self, key: str, write: Callable[[str], object]) -> None:
        """Have a file written under its name, on a disk by way of another one."""
        place = f"{self.root}/{key}"
        if not self.is_local:
            write(place)
            return
        path = Path(place)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            write(str(beside))
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)

    def _attempt(self, done: str, key: str, act: Callable[[], Done], *, kept: bool = False) -> Done:
        """Carry something out, again after a while where it fails.

        Raises:
            FileNotFoundError: there is no such file.
            TransferError: it is not allowed, or failed each time.
        """
        for seconds in (*_WAITS_SEC, None):
            try:
                return act()
            except CacheError:
                raise
            except Exception as error:
                absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
                if absent and done != "written" and not lacks_bucket(error):
                    raise FileNotFoundError(f"{self.name(key)} is missing") from error
                if seconds is None or is_final(error):
                    raise failure(
                        error,
                        place=self.name(key),
                        done=done,
                        kept=kept,
                        url=self._address,
                        store="" if self.is_local else self._protocol,
                    ) from error
            time.sleep(seconds)
        raise AssertionError

    @property
    def _protocol(self) -> str:
        protocol = self._files.protocol
        return str(protocol if isinstance(protocol, str) else protocol[0])


class _Counter(Callback):  # type: ignore[misc]  # fsspec has no types
    """Tells bytes as they come; takes them back where an attempt fails."""

    def __init__(self, advance: Advance) -> None:
        super().__init__()
        self._advance, self._told = advance, 0

    def absolute_update(self, value: int) -> None:
        """So many bytes by now."""
        self.relative_update(value - self._told)

    def relative_update(self, inc: int = 1) -> None:
        """So many bytes more."""
        self._told += inc
        self._advance(inc)

    def __exit__(self, *error: object) -> None:
        """Tell that nothing came, where an error came."""
        if error[0] is not None:
            self._advance(-self._told)


def unmetered(_: int) -> AbstractContextManager[Advance]:
    """Shows nothing."""
    return nullcontext(lambda _: None)


def in_parallel(
    act: Callable[[Item], Done], items: Iterable[Item], jobs: int
) -> Iterator[tuple[Item, Done]]:
    """Carry something out for all items, some at once; in the order in which they end.

    After an error no more are begun, and it is raised once those under way have ended.
    """
    waiting = iter(items)
    with ThreadPoolExecutor(jobs, "transfer") as pool:
        going: dict[Future[Done], Item] = {}
        while True:
            for item in waiting:
                going[pool.submit(act, item)] = item
                if len(going) >= 2 * jobs:
                    break
            if not going:
                return
            try:
                for future in wait(going, return_when=FIRST_COMPLETED).done:
                    yield going.pop(future), future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _blocks(file: Any) -> Iterator[bytes]:
    with file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _digest(blocks: Iterable[bytes]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
