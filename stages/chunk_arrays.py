"""The arrays of one chunk of the cache while its samples come in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache import CacheWriter, PendingChunk, Status
from pipeline.clips import Read
from pipeline.models import Features
from pipeline.projection import Projection
from pipeline.samples import Samples
from stages.fields import clip_field
from stages.rows import stored_values
from stages.teachers import Teachers


class ChunkArrays:
    """The arrays of one chunk while its samples come in."""

    def __init__(self, writer: CacheWriter, work: PendingChunk, students: Sequence[str]) -> None:
        self._start = writer.sample_range(work.chunk).start
        self._students = students
        self._views = len(work.views)
        self._fields = writer.layout.fields
        count = len(writer.sample_range(work.chunk))
        self.errors: dict[int, str] = {}
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.full((count, self._views, *field.shape), field.fill, field.numpy_dtype)
            for name, field in writer.layout.fields.items()
        }

    def fill(
        self, batch: Sequence[Read], teachers: Teachers, projection: Projection, batch_size: int
    ) -> None:
        """Enter what one batch of samples gives; the teachers take `batch_size` clips at once."""
        for read in batch:
            place = read.row - self._start
            if read.clips is None:
                self.errors[read.row] = read.error or "unknown"
                self.arrays["status"][place] = Status.UNREADABLE_VIDEO
                continue
            self.arrays["views"][place] = read.clips.views
            self.arrays["input_digest"][place] = read.clips.digests
            for student, clips in zip(self._students, read.clips.clips[2:], strict=True):
                self.arrays[clip_field(student)][place] = clips
        good = [read for read in batch if read.clips is not None]
        if not good:
            return
        rows = np.repeat([read.row - self._start for read in good], self._views)
        views = np.tile(np.arange(self._views), len(good))
        start = 0
        for vit, cnn in teachers.features(good, batch_size):
            stop = start + len(vit.pooled)
            self._enter(rows[start:stop], views[start:stop], vit, cnn, projection)
            start = stop

    def _enter(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        vit: Features,
        cnn: Features,
        projection: Projection,
    ) -> None:
        stored = stored_values(vit, cnn, projection)
        fits = np.ones(len(rows), dtype=bool)
        for name, array in stored.items():
            fits &= self._fit(name, array, rows)
        for name, array in stored.items():
            self.arrays[name][rows[fits], views[fits]] = array[fits]
        self.arrays["status"][rows, views] = np.where(fits, Status.VALID, Status.NON_FINITE_OUTPUT)

    def _fit(
        self, name: str, array: NDArray[np.float16], rows: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Which rows of a field can be stored as they are; the others are entered as errors."""
        finite = np.asarray(np.isfinite(array).reshape(len(rows), -1).all(axis=1))
        for row in rows[~finite]:
            self.errors[self._start + int(row)] = f"{name} is not finite in float16"
        codec = self._fields[name].codec
        if codec is None:
            return finite
        held = codec.holds(array).reshape(len(rows), -1).all(axis=1)
        for row, values in zip(rows[finite & ~held], array[finite & ~held], strict=True):
            self.errors[self._start + int(row)] = (
                f"{name} has values from {values.min()} to {values.max()}; {codec}, which "
                "extract.codecs names for it, cannot store them"
            )
        return np.asarray(finite & held)

    def failures(self, samples: Samples) -> dict[str, str]:
        """Sample id → reason."""
        return {samples.row(row).sample_id: error for row, error in self.errors.items()}
