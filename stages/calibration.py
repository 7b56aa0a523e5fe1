"""The seconds that each part of an extraction takes, by trying it out for some seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, lru_cache

import numpy as np
import torch

from pipeline.clips import Read
from pipeline.config import ProjectionConfig, Run
from pipeline.models import Features
from pipeline.projection import Projection
from pipeline.samples import Samples
from stages.copying import CopyToHost
from stages.rows import Networks, drawn_views, stored_values, stored_values_of_added
from stages.stored_clips import as_stored, clip_fields
from stages.teachers import features
from stages.wording import plural

_LEAST_CALLS = 3  # of what is timed: the median of two is either of them
_LEAST_SAMPLES = 3  # whose decoding is timed; the first opens libraries, and is not


class CalibrationError(ValueError):
    """Nothing can be timed; the message says why."""


class Calibration:
    """Times parts on samples that are read once.

    Attributes:
        decode: seconds of a sample with all its views, on one core.
    """

    def __init__(
        self,
        run: Run,
        samples: Samples,
        networks: Networks,
        *,
        views: int,
        batch_size: int,
        seconds: float,
    ) -> None:
        """Read some samples.

        Args:
            run: the config.
            samples: what is to be extracted; the first ones are read.
            networks: all for which something is stored.
            views: of each sample.
            batch_size: clips in one forward pass.
            seconds: how long each part is tried out, at most about.

        Raises:
            CalibrationError: none of the first samples can be read.
        """
        self._run, self._networks = run, networks
        self._batch_size, self._seconds = batch_size, seconds
        self._reads, self.decode = self._read(samples, views)

    def _read(self, samples: Samples, views: int) -> tuple[list[Read], float]:
        """Some samples, and the mean seconds of each."""
        dataset = self._networks.dataset(self._run, samples)
        choose = drawn_views(self._run, range(views))
        reads: list[Read] = []
        spent: list[float] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as data decoders have it
        begun = time.perf_counter()
        try:
            for row in range(len(samples)):
                started = time.perf_counter()
                read = dataset[row, choose]
                spent.append(time.perf_counter() - started)
                if read.clips is not None:
                    reads.append(read)
                enough = len(reads) >= min(_LEAST_SAMPLES, len(samples))
                if enough and time.perf_counter() - begun > self._seconds:
                    break
        finally:
            torch.set_num_threads(threads)
        if not reads:
            raise CalibrationError(
                f"none of {plural(len(spent), 'sample')} below {self._run.prepare.root} can be "
                f"read: {read.error}"
            )
        # Clips are kept of a few only: those of all would fill the memory.
        return reads[:_LEAST_SAMPLES], float(np.mean(spent[1:] or spent))

    def encode(self) -> float:
        """Of the clips that are stored of a view, as JPEG, on one core; raw ones need none."""
        if self._run.extract.clip_format == "raw" or not self._networks.students:
            return 0.0
        fields = clip_fields(self._networks.students, {}, "jpeg")
        made = [read.clips.clips for read in self._reads if read.clips]
        clips = {
            field: np.concatenate([each[self._networks.student_clip(name)] for each in made])
            for name, field in zip(self._networks.students, fields, strict=True)
        }

        def encode(size: int) -> None:
            for field, of_field in clips.items():
                as_stored(of_field[np.arange(size) % len(of_field)], field)

        return self._per_clip(encode)

    def network(self, name: str) -> float:
        """Of a teacher's forward pass over a view."""
        model, precision = self._networks.by_name[name], self._networks.precision
        clips = self._networks.clips_of(name, self._reads)

        def forward(size: int) -> None:
            batch = clips[torch.arange(size) % len(clips)]
            features(model, batch, precision).map.flatten()[0].item()  # waits for a GPU

        return self._per_clip(forward)

    def store(self, config: ProjectionConfig) -> float:
        """Of a view's maps being projected, and its outputs coming to the host as float16."""
        vit, cnn = self._outputs["vit"], self._outputs["cnn"]
        channels = vit.map.shape[1], cnn.map.shape[1]
        projection = Projection(
            kind=config.kind,
            grid=config.grid,
            vit_mean=torch.zeros(channels[0]),
            vit_matrix=torch.zeros(channels[0], config.dim),
            cnn_mean=torch.zeros(channels[1]),
            cnn_matrix=torch.zeros(channels[1], config.dim),
            scale=1.0,
            explained=0.0,
        )

        @lru_cache(maxsize=1)
        def repeated(size: int) -> list[Features]:
            rows = torch.arange(size, device=vit.map.device) % len(vit.map)
            return [
                Features(
                    {head: logits[rows] for head, logits in one.logits.items()},
                    one.pooled[rows],
                    one.map[rows],
                )
                for one in self._outputs.values()
            ]

        def store(size: int) -> None:
            of_vit, of_cnn, *others = repeated(size)
            CopyToHost(stored_values(of_vit, of_cnn, projection)).arrays()
            for name, answer in zip(self._networks.added, others, strict=True):
                CopyToHost(stored_values_of_added(name, answer)).arrays()

        return self._per_clip(store)

    @cached_property
    def _outputs(self) -> dict[str, Features]:
        """Of each teacher, for one sample."""
        return {
            name: next(
                self._networks.outputs_of(name, self._networks.clips_of(name, self._reads[:1]))
            )
            for name in self._networks.by_name
        }

    def _per_clip(self, call: Callable[[int], None]) -> float:
        """Per clip in the largest batch, up to `batch_size`, that fits into the time given."""
        size = 1
        call(size)  # sets things up
        while True:
            started = time.perf_counter()
            call(size)
            spent = time.perf_counter() - started
            if size == self._batch_size or 2 * spent > self._seconds / 2:
                break
            size = min(2 * size, self._batch_size)
            call(size)  # kernels are chosen by shape
        times = [spent]
        while len(times) < _LEAST_CALLS or sum(times) < self._seconds / 2:
            started = time.perf_counter()
            call(size)
            times.append(time.perf_counter() - started)
        return float(np.median(times)) / size
