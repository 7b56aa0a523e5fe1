"""Chunk files mapped into memory: each checked once, so many kept open."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pyarrow as pa

from cache.commits import Commits
from cache.layout import CHECKSUM_BYTES, Layout, chunk_key, crc32c, own_path, repair_hint
from cache.schema import DamagedError, Field

# Linux lets a process have 65,530 mappings; the fields of one cache share these, so that a process
# can read three caches.
MAX_MAPS = 20_000


class ChunkMaps:
    """The mapped chunk files of one field, the least recently used ones given up first."""

    def __init__(self, layout: Layout, field: Field, commits: Commits) -> None:
        """Map nothing yet.

        Args:
            layout: the cache.
            field: which array.
            commits: which of its chunk files exist, with their checksums.
        """
        self._layout = layout
        self._field = field
        self._present = commits.present[field.name]
        self._checksums = commits.checksums[field.name]
        self._limit = max(1, MAX_MAPS // len(layout.fields))
        self._checked = np.zeros(self._present.shape, np.bool_)
        self._maps: OrderedDict[int, memoryview] = OrderedDict()

    @property
    def present(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Which chunk files were committed; (chunks, views)."""
        return self._present

    def get(self, number: int) -> memoryview:
        """The data of the chunk file `number = chunk · views + view`, read-only bytes.

        Raises:
            DamagedError: the file is missing or not as committed.
        """
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
        path = own_path(self._layout.path, chunk_key(self._field, chunk, view))
        size = self._layout.chunk_bytes(self._field)
        try:
            # pyarrow's mapping outlives its file: no descriptor is kept, where `np.memmap` keeps
            # one each and a thousand chunks are too many.
            with pa.memory_map(str(path)) as file:
                if file.size() != size + CHECKSUM_BYTES:
                    raise self._damaged(
                        chunk, view, f"has {file.size()} bytes, committed {size + CHECKSUM_BYTES}"
                    )
                data = memoryview(file.read_buffer(size)).cast("B")
        except FileNotFoundError:
            raise self._damaged(chunk, view, "is missing") from None
        if not self._checked[chunk, view]:
            expected, actual = int(self._checksums[chunk, view]), crc32c(data)
            if actual != expected:
                reason = f"is damaged: its crc32c is {actual:08x}, committed {expected:08x}"
                raise self._damaged(chunk, view, reason)
            self._checked[chunk, view] = True
        return data

    def _damaged(self, chunk: int, view: int, reason: str) -> DamagedError:
        samples = self._layout.sample_range(chunk)
        return DamagedError(
            f"{self._layout.path / chunk_key(self._field, chunk, view)} {reason}. It holds "
            f"{self._field.name!r} of chunk {chunk} (samples {samples.start} … {samples.stop - 1}),"
            f" view {view}. {repair_hint(self._layout.path)}"
        )
