"""The arrays of one chunk of the cache while its samples come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import PendingChunk, Status, TeacherCache
from pipeline.clips import Read
from pipeline.projection import Projection
from pipeline.samples import Samples
from stages.copying import CopyToHost
from stages.recorded import environment
from stages.rows import Networks, stored_values, stored_values_of_added
from stages.stored_clips import clip_field
from stages.teachers import Teachers


class ExtractError(RuntimeError):
    """Extraction stops; the message says why, and what was kept."""


# The array of statuses that rows go by, and by field (batch, ...) float16 on the device.
Outputs = tuple[str, dict[str, torch.Tensor]]
Copies = tuple[str, CopyToHost]  # the same on their way here


class ChunkArrays:
    """The arrays of one chunk while its samples come in: those of the fields that are pending.

    Where fields are added to rows that stand, the frames must be those that the rows were made of.

    Attributes:
        arrays: field → (samples of the chunk, views, ...).
        errors: row → why not all of it is valid.
    """

    def __init__(self, cache: TeacherCache, work: PendingChunk, networks: Networks) -> None:
        """Begin with rows that are missing.

        Args:
            cache: what stands.
            work: which rows and fields.
            networks: all for which something is stored.
        """
        samples = cache.layout.sample_range(work.chunk)
        self._start = samples.start
        self._networks = networks
        self._views = len(work.views)
        self._fields = cache.fields
        self.errors: dict[int, str] = {}
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.full(
                (len(samples), self._views, *self._fields[name].shape),
                self._fields[name].fill,
                self._fields[name].numpy_dtype,
            )
            for name in work.fields
        }
        self._students = [name for name in networks.students if clip_field(name) in self.arrays]
        self._added = [name for name in networks.added if f"{name}/status" in self.arrays]
        self._standing = None
        if "status" not in self.arrays:
            self._standing = _standing_rows(cache, samples, work.views)

    @property
    def teachers(self) -> list[str]:
        """The teachers that have to see the clips."""
        return [*(Teachers._fields if "status" in self.arrays else ()), *self._added]

    def compute(
        self, clips: Mapping[str, torch.Tensor], projection: Projection, batch_size: int
    ) -> list[Outputs]:
        """What is stored of the teachers' outputs for a batch of samples, still on the device.

        Args:
            clips: of each of `teachers` (N, T, H, W, 3), of all views of the readable samples.
            projection: for the residual.
            batch_size: clips in one forward pass.
        """
        made: list[Outputs] = []
        if not clips:
            return made
        answers = {
            name: self._networks.outputs_of(name, of_name, batch_size)
            for name, of_name in clips.items()
        }
        if "status" in self.arrays:
            pairs = zip(answers["vit"], answers["cnn"], strict=True)
            made += [("status", stored_values(vit, cnn, projection)) for vit, cnn in pairs]
        for name in self._added:
            made += [(f"{name}/status", stored_values_of_added(name, one)) for one in answers[name]]
        return made

    def enter(self, batch: Sequence[Read], copies: Sequence[Copies]) -> None:
        """Enter a batch of samples, and what `compute` made of them.

        Raises:
            ExtractError: a video is another one than when its standing rows were made.
        """
        for read in batch:
            self._check_frames(read)
            self._enter_frames(read)
        good = [read for read in batch if read.clips is not None]
        rows = np.repeat([read.row - self._start for read in good], self._views)
        views = np.tile(np.arange(self._views), len(good))
        done: Counter[str] = Counter()  # by status
        for status, copy in copies:
            stored = copy.arrays()
            part = slice(done[status], done[status] + len(next(iter(stored.values()))))
            done[status] = part.stop
            self._enter((rows[part], views[part]), stored, status)

    def _enter_frames(self, read: Read) -> None:
        """What is stored of a sample's frames themselves; or that there are none."""
        place = read.row - self._start
        if read.clips is None:
            self.errors[read.row] = read.error or "unknown"
            for name, array in self.arrays.items():
                if self._fields[name].is_status:
                    array[place] = Status.UNREADABLE_VIDEO
            return
        if "status" in self.arrays:
            self.arrays["views"][place] = read.clips.views
            self.arrays["input_digest"][place] = read.clips.digests[:, 0]
        for name in self._students:
            clips = read.clips.clips[self._networks.student_clip(name)]
            self.arrays[clip_field(name)][place] = clips
        for name in self._added:
            digests = read.clips.digests[:, self._networks.added_digest(name)]
            self.arrays[f"{name}/input_digest"][place] = digests

    def _check_frames(self, read: Read) -> None:
        """Fields are added only to rows of the very same frames."""
        if self._standing is None:
            return
        place = read.row - self._start
        valid = self._standing["status"][place] == Status.VALID
        name = self._standing["sample_id"][place]
        if read.clips is None:
            if valid.any() and self._students:
                raise ExtractError(
                    f"sample {name} was readable when the cache was made, and is not now: "
                    f"{read.error}. A field cannot be added without it; bring the video back"
                )
            return
        other = valid & (self._standing["input_digest"][place] != read.clips.digests[:, 0])
        if other.any():
            raise ExtractError(
                f"sample {name} has other frames than when the cache was made (by "
                f"{environment()['decoder']} here; the cache's is in `dualkd-cache info`): a field "
                "added to it would be of another video. Bring back video and decoder, or extract "
                "again with another --out"
            )

    def _enter(
        self,
        place: tuple[NDArray[np.int64], NDArray[np.int64]],
        stored: Mapping[str, NDArray[np.float16]],
        status: str,
    ) -> None:
        rows, views = place
        fits = np.ones(len(rows), dtype=bool)
        for name, array in stored.items():
            fits &= self._fit(name, array, rows)
        for name, array in stored.items():
            self.arrays[name][rows[fits], views[fits]] = array[fits]
        self.arrays[status][rows, views] = np.where(fits, Status.VALID, Status.NON_FINITE_OUTPUT)

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


def _standing_rows(
    cache: TeacherCache, samples: range, views: Sequence[int]
) -> dict[str, NDArray[Any]]:
    """Statuses and digests of the rows that stand, (samples, views) each, and `sample_id`."""
    rows, columns = (grid.ravel() for grid in np.meshgrid(samples, views, indexing="ij"))
    shape = (len(samples), len(views))
    standing = {
        name: values.reshape(shape)
        for name, values in cache.read(rows, columns, ["status", "input_digest"]).items()
    }
    names = cache.samples["sample_id"].slice(samples.start, len(samples)).to_pylist()
    return {**standing, "sample_id": np.array(names, dtype=object)}
