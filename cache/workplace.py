"""A folder for a cache's metadata while it is pushed, pulled or opened at a URL."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.lock import CacheLock
from cache.schema import CacheError

_PREFIX = "dualkd-metadata-"


@contextmanager
def workplace() -> Iterator[Path]:
    """The path of a folder that may be made, and is gone afterwards.

    What a killed process left is removed by the next one: nobody holds its lock any more.
    """
    _sweep()
    made = Path(tempfile.mkdtemp(prefix=".dualkd-"))
    lock = CacheLock(made)  # before the folder has the name by which it is swept
    folder = made.rename(made.with_name(f"{_PREFIX}{uuid.uuid4().hex[:8]}"))
    lock.move(folder)
    try:
        yield folder / "cache"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _sweep() -> None:
    for leftover in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            if leftover.lstat().st_uid != os.getuid():  # a link's own, too
                continue
            lock = CacheLock(leftover)
        except (CacheError, OSError):  # in use, or swept by another one
            continue
        shutil.rmtree(leftover, ignore_errors=True)
        lock.release()
