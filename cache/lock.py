"""The exclusive lock of a cache: one writing process at a time."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import weakref
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cache.layout import LOCK
from cache.schema import CacheError

_held: weakref.WeakSet[CacheLock] = weakref.WeakSet()


class CacheLock:
    """A held lock. The kernel drops it with the process, so a killed one leaves nothing behind."""

    def __init__(self, folder: Path) -> None:
        """Take the lock at once, or refuse.

        Args:
            folder: the cache, or the folder in which it is being made.

        Raises:
            CacheError: another process holds it (its host, pid and since when), or the folder
                cannot be written.
        """
        self._path = folder / LOCK
        try:
            self._descriptor = self._acquire(folder)
        except OSError as error:
            way_out = "; nobody writes there: remove it" if self._path.is_symlink() else ""
            raise CacheError(f"{folder} cannot be written: {error}{way_out}") from error
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with suppress(OSError):  # a full disk does not stop a repair, which makes room
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)
        _held.add(self)

    def _acquire(self, folder: Path) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder removes the file when it ends: ours must be the one that is there now.
                if os.path.samestat(os.fstat(descriptor), self._path.stat()):
                    return descriptor
            except BlockingIOError:
                holder = os.pread(descriptor, 4096, 0)
                os.close(descriptor)
                raise CacheError(_busy(folder, holder)) from None
            except FileNotFoundError:
                pass
            os.close(descriptor)

    @property
    def held(self) -> bool:
        """Whether it was not released yet."""
        return self in _held

    def move(self, folder: Path) -> None:
        """Follow the folder to its new name; the lock is held all the while."""
        self._path = folder / LOCK

    def release(self) -> None:
        """Let the next one write; a second call does nothing."""
        if self in _held:
            _held.discard(self)
            self._path.unlink(missing_ok=True)  # before closing, or we might remove the next one's
            os.close(self._descriptor)

    def forget(self) -> None:
        """Close a forked child's copy, which would hold the lock after its parent has died."""
        os.close(self._descriptor)


def _forget_all() -> None:
    for lock in list(_held):
        lock.forget()
    _held.clear()


os.register_at_fork(after_in_child=_forget_all)


def _busy(folder: Path, content: bytes) -> str:
    try:
        holder = json.loads(content)
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"{folder} is being written by {who}; wait for it or stop it, then run this again"
