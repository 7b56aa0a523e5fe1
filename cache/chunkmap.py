"""Chunk files mapped into memory, one behind the other: a field reads like one array."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections import deque
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from cache.chunk_store import ChunkFile, ChunkStore
from cache.commits import Commits
from cache.layout import CHECKSUM_BYTES, Layout, chunk_key, crc32c, own_path, repair_hint
from cache.schema import CacheError, DamagedError, Field

# Linux lets a process have 65,530 mappings; the fields of one cache share these, so that a process
# can read three caches.
MAX_MAPS = 20_000

_MAP_FIXED = 0x10  # Python's mmap has no address to give; so libc's is called
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64),
)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ChunkMaps:
    """The chunk files of one field; for one thread at a time.

    Addresses are reserved for all of them, and a file is checked and mapped into its place when a
    row of it is asked for. So all rows lie at fixed strides, and a batch is one indexing by numpy.
    """

    def __init__(
        self,
        layout: Layout,
        field: Field,
        commits: Commits,
        *,
        store: ChunkStore | None = None,
        held: int = MAX_MAPS,
    ) -> None:
        """Map nothing yet.

        Args:
            layout: the cache.
            field: which array; one without a codec.
            commits: which of its chunk files exist, with their checksums.
            store: where its chunk files are, if not in the cache's folder.
            held: chunk files that are mapped at once, at most: a mapped one takes room on the disk
                though the store has given it up.
        """
        self._store = store
        self._layout = layout
        self._field = field
        self._checksums = commits.checksums[field.name].ravel()
        self._size = layout.chunk_bytes(field)
        self._step = -(-(self._size + CHECKSUM_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        self._limit = max(1, min(MAX_MAPS // len(layout.fields), held))
        self._checked = np.zeros(len(self._checksums), np.bool_)
        self._mapped = np.zeros(len(self._checksums), np.bool_)
        self._oldest: deque[int] = deque()

    def chunk(self, number: int) -> NDArray[Any]:
        """The values of the chunk file `number = chunk · views + view`.

        Returns:
            (chunk_samples, ...) of the field's dtype.

        Raises:
            DamagedError: the file is missing or not as committed.
        """
        rows = np.arange(self._layout.chunk_samples)
        return self.gather(np.array([number]), np.zeros_like(rows), rows)

    def gather(
        self, numbers: NDArray[np.int64], which: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Copy each row's bytes once, from the mapped file to its place in the result.

        Args:
            numbers: the chunk files, see `chunk`; each once.
            which: for each row its chunk file, as an index of `numbers`.
            rows: for each row its place in the chunk file.

        Returns:
            (len(rows), ...) of the field's dtype.

        Raises:
            DamagedError: a file is missing or not as committed.
        """
        for number in numbers[~self._mapped[numbers]].tolist():
            self._map(number)
        values = self._rows[numbers[which], rows]
        while len(self._oldest) > self._limit:
            self._unmap(self._oldest.popleft())
        return values.view(self._field.numpy_dtype).reshape(len(rows), *self._field.shape)

    @cached_property
    def _rows(self) -> NDArray[np.void]:
        """All rows, (chunk files, chunk_samples), each one opaque value that numpy copies whole."""
        count = len(self._checksums)
        try:
            addresses = mmap.mmap(
                -1, count * self._step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ
            )
            return np.ndarray(
                (count, self._layout.chunk_samples),
                np.dtype((np.void, self._field.row_bytes)),
                addresses,
                strides=(self._step, self._field.row_bytes),
            )
        except (OSError, OverflowError, ValueError) as error:
            raise CacheError(
                f"{self._layout.path}: there is no room to map {count} chunk files of "
                f"{self._step} bytes for {self._field.name!r}: {error}"
            ) from error

    def _map(self, number: int) -> None:
        address = self._address(number)
        committed = self._size + CHECKSUM_BYTES
        try:
            with self._open(number) as file:  # no descriptor is kept: the mapping outlives it
                size = os.fstat(file.fileno()).st_size
                if size != committed:
                    raise self._damaged(number, f"has {size} bytes, committed {committed}")
                _map_at(address, self._size, mmap.MAP_SHARED, file.fileno())
        except FileNotFoundError:
            raise self._damaged(number, "is missing") from None
        if not self._checked[number]:  # reads the file once from end to end
            expected = int(self._checksums[number])
            actual = crc32c(memoryview(self._rows[number].view(np.uint8)))
            if actual != expected:
                reason = f"is damaged: its crc32c is {actual:08x}, committed {expected:08x}"
                raise self._damaged(number, reason)
            self._checked[number] = True
        # From now on only rows: a page that is not in memory any more is read without those around.
        _libc.madvise(address, self._size, mmap.MADV_RANDOM)
        self._mapped[number] = True
        self._oldest.append(number)

    def _unmap(self, number: int) -> None:
        self._mapped[number] = False
        _map_at(self._address(number), self._step, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)

    def _address(self, number: int) -> int:
        return int(self._rows.ctypes.data) + number * self._step

    def _open(self, number: int) -> BinaryIO:
        key = self._key(number)
        if self._store is None:
            return own_path(self._layout.path, key).open("rb")
        checksum = int(self._checksums[number])
        return self._store.open(ChunkFile(key, self._size + CHECKSUM_BYTES, checksum))

    def _key(self, number: int) -> str:
        return chunk_key(self._field, *divmod(number, self._layout.num_views))

    def _damaged(self, number: int, reason: str) -> DamagedError:
        chunk, view = divmod(number, self._layout.num_views)
        return damaged(self._layout, str(self._layout.path), self._field, chunk, view, reason)


def _map_at(address: int, size: int, flags: int, descriptor: int) -> None:
    """Map a file, or with -1 nothing, over addresses that were reserved."""
    if _libc.mmap(address, size, mmap.PROT_READ, flags | _MAP_FIXED, descriptor, 0) != address:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def damaged(
    layout: Layout, place: str, field: Field, chunk: int, view: int, reason: str
) -> DamagedError:
    """Say what is wrong with a chunk file, what it holds and how to mend it.

    Args:
        layout: the cache.
        place: its folder or URL.
        field: which array.
        chunk: index along the sample axis.
        view: index along the view axis.
        reason: what follows the file's name.
    """
    samples = layout.sample_range(chunk)
    return DamagedError(
        f"{place}/{chunk_key(field, chunk, view)} {reason}. It holds {field.name!r} of chunk "
        f"{chunk} (samples {samples.start} … {samples.stop - 1}), view {view}. "
        f"{repair_hint(place)}"
    )
