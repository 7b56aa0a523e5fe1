"""Chunk files read whole and decoded: for what cannot be mapped, and only where it is asked for."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.chunk_store import ChunkFile, ChunkStore
from cache.chunkmap import damaged
from cache.commits import Commits
from cache.layout import CHECKSUM_BYTES, Layout, chunk_key, crc32c, own_path
from cache.schema import CacheError, DamagedError, Field, Status

# The decoded blocks of one open cache take at most so much memory in each thread that reads it; or
# one chunk of samples in all its views, if that is more.
BLOCK_BYTES = 2**30


def chunks_held(layout: Layout, fields: list[Field]) -> int:
    """How many chunks of samples, in all views and all these fields, are held decoded at once."""
    one = layout.num_views * sum(layout.chunk_bytes(field) for field in fields)
    return min(max(1, BLOCK_BYTES // max(1, one)), layout.num_chunks)


class ChunkBlocks:
    """The decoded chunk files of one field, the least recently used ones given up first.

    For one thread at a time, as `ChunkMaps`.
    """

    def __init__(
        self,
        layout: Layout,
        field: Field,
        commits: Commits,
        *,
        store: ChunkStore | None,
        limit: int,
        status: Callable[[int], NDArray[Any]],
    ) -> None:
        """Read nothing yet.

        Args:
            layout: the cache.
            field: which array.
            commits: which of its chunk files exist, with their sizes and checksums.
            store: where its chunk files are, if not in the cache's folder.
            limit: how many decoded chunk files are held.
            status: gives the statuses of a chunk file's rows, by its number.
        """
        self._layout = layout
        self._field = field
        self._checksums = commits.checksums[field.name]
        self._sizes = commits.sizes[field.name]
        self._store = store
        self._limit = limit
        self._status = status
        self._blocks: OrderedDict[int, NDArray[Any]] = OrderedDict()

    def chunk(self, number: int) -> NDArray[Any]:
        """The values of the chunk file `number = chunk · views + view`; see `ChunkMaps.chunk`."""
        found = self._blocks.get(number)
        if found is not None:
            self._blocks.move_to_end(number)
            return found
        block = self._read(number)
        self._blocks[number] = block
        if len(self._blocks) > self._limit:
            self._blocks.popitem(last=False)
        return block

    def gather(
        self, numbers: NDArray[np.int64], which: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Copy rows, block by block; see `ChunkMaps.gather`."""
        result = np.empty((len(rows), *self._field.shape), self._field.numpy_dtype)
        for file, number in enumerate(numbers.tolist()):
            here = which == file
            result[here] = self.chunk(number)[rows[here]]
        return result

    def _read(self, number: int) -> NDArray[Any]:
        chunk, view = divmod(number, self._layout.num_views)
        size, expected = int(self._sizes[chunk, view]), int(self._checksums[chunk, view])
        key = chunk_key(self._field, chunk, view)
        try:
            content = self._fetch(ChunkFile(key, size, expected))
        except FileNotFoundError:
            raise self._damaged(chunk, view, "is missing") from None
        if len(content) != size:
            more = "more than " if len(content) > size else ""
            reason = f"has {more}{min(len(content), size)} bytes, committed {size}"
            raise self._damaged(chunk, view, reason)
        data = content[:-CHECKSUM_BYTES]
        if crc32c(data) != expected:
            reason = f"is damaged: its crc32c is {crc32c(data):08x}, committed {expected:08x}"
            raise self._damaged(chunk, view, reason)
        try:
            block = self._layout.decode(self._field, data)
        except CacheError as error:
            raise self._damaged(chunk, view, str(error)) from error
        codec = self._field.codec
        if codec is not None and self._field.is_float and not math.isnan(codec.fill(math.nan)):
            block[self._status(number) != Status.VALID] = math.nan
        return block

    def _fetch(self, file: ChunkFile) -> bytes:
        """The bytes of a chunk file, and one more if it has too many."""
        if self._store is not None:
            with self._store.open(file) as content:
                return content.read()
        with own_path(self._layout.path, file.key).open("rb") as content:
            return content.read(file.size + 1)

    def _damaged(self, chunk: int, view: int, reason: str) -> DamagedError:
        return damaged(self._layout, str(self._layout.path), self._field, chunk, view, reason)
