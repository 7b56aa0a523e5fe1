"""Chunk files mapped into memory: each checked once, so many kept open."""

from __future__ import annotations

import ctypes
import mmap
from collections import OrderedDict
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.commits import Commits
from cache.layout import CHECKSUM_BYTES, Layout, chunk_key, crc32c
from cache.schema import DamagedError, Field

# Linux lets a process have 65,530 mappings; the fields of one cache share these, so that a process
# can read three caches.
MAX_MAPS = 20_000

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class ChunkMaps:
    """The mapped chunk files of one field, the least recently used ones given up first."""

    def __init__(self, layout: Layout, field: Field, commits: Commits) -> None:
        """Map nothing yet.

        Args:
            layout: the cache.
            field: which array; one without a codec.
            commits: which of its chunk files exist, with their checksums.
        """
        self._layout = layout
        self._field = field
        self._checksums = commits.checksums[field.name]
        self._limit = max(1, MAX_MAPS // len(layout.fields))
        self._checked = np.zeros(self._checksums.shape, np.bool_)
        self._maps: OrderedDict[int, memoryview] = OrderedDict()

    def chunk(self, number: int) -> NDArray[Any]:
        """The values of the chunk file `number = chunk · views + view`, read-only.

        Returns:
            (chunk_samples, ...) of the field's dtype.

        Raises:
            DamagedError: the file is missing or not as committed.
        """
        shape = (self._layout.chunk_samples, *self._field.shape)
        return np.frombuffer(self._get(number), self._field.numpy_dtype).reshape(shape)

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
        size = self._field.row_bytes
        files = [self._get(number) for number in numbers.tolist()]
        # Joined slices of memoryviews: numpy's indexing, file by file, would copy twice.
        slices = [
            files[file][start : start + size]
            for file, start in zip(which.tolist(), (rows * size).tolist(), strict=True)
        ]
        content = bytearray().join(slices)
        shape = (len(rows), *self._field.shape)
        return np.frombuffer(content, self._field.numpy_dtype).reshape(shape)

    def _get(self, number: int) -> memoryview:
        found = self._maps.get(number)
        if found is not None:
            self._maps.move_to_end(number)
            return found
        mapped = self._open(*divmod(number, self._layout.num_views))
        self._maps[number] = mapped
        if len(self._maps) > self._limit:
            self._maps.popitem(last=False)
        return mapped

    def _open(self, chunk: int, view: int) -> memoryview:
        path = self._layout.path / chunk_key(self._field, chunk, view)
        size = self._layout.chunk_bytes(self._field)
        try:
            # pyarrow's mapping outlives its file: no descriptor is kept, where `np.memmap` keeps
            # one each and a thousand chunks are too many.
            with pa.memory_map(str(path)) as file:
                if file.size() != size + CHECKSUM_BYTES:
                    raise self._damaged(
                        chunk, view, f"has {file.size()} bytes, committed {size + CHECKSUM_BYTES}"
                    )
                mapped = file.read_buffer(size)
        except FileNotFoundError:
            raise self._damaged(chunk, view, "is missing") from None
        data = memoryview(mapped).cast("B")
        if not self._checked[chunk, view]:  # reads the file once from end to end
            expected, actual = int(self._checksums[chunk, view]), crc32c(data)
            if actual != expected:
                reason = f"is damaged: its crc32c is {actual:08x}, committed {expected:08x}"
                raise self._damaged(chunk, view, reason)
            self._checked[chunk, view] = True
        # From now on only rows: a page that is not in memory any more is read without those around.
        _libc.madvise(mapped.address, mapped.size, mmap.MADV_RANDOM)
        return data

    def _damaged(self, chunk: int, view: int, reason: str) -> DamagedError:
        return damaged(self._layout, str(self._layout.path), self._field, chunk, view, reason)


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
        f"`dualkd-cache repair {place}` drops the damaged chunks, so that the next extract makes "
        "them again"
    )
