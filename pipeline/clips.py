"""The clips of many samples: how views are chosen, and processes that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from pipeline.cutting import SampleClips
from pipeline.processes import exit_with_parent, ignoring_interrupts
from pipeline.reading import ViewChoice, read_clips, read_together, stretch
from pipeline.samples import Sample, Samples
from pipeline.video import VideoError, VideoInfo
from pipeline.views import ClipSpec, View, ViewRule, draw_view

__all__ = [
    "ClipDataset",
    "ClipReader",
    "DecoderDiedError",
    "DrawnViews",
    "Encoder",
    "Read",
    "Request",
    "StoredViews",
    "ViewChoice",
    "in_batches",
    "iterate",
    "read_clips",
    "read_together",
    "stretch",
]

Request = tuple[int, ViewChoice]
Encoder = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]  # of clips (V, T, H, W, 3)


@dataclass(frozen=True)
class DrawnViews:
    """Chooses views by rule."""

    rule: ViewRule
    indices: tuple[int, ...]

    def __call__(self, sample: Sample, info: VideoInfo) -> list[View]:
        """Draw them."""
        start, stop = stretch(sample, info)
        return [
            draw_view(
                self.rule,
                sample_id=sample.sample_id,
                index=index,
                start_sec=start,
                stop_sec=stop,
                width=info.width,
                height=info.height,
            )
            for index in self.indices
        ]


@dataclass(frozen=True)
class StoredViews:
    """Chooses the views of records (V, 6), so that they are replayed exactly."""

    records: NDArray[np.float64]

    def __call__(self, _sample: Sample, _info: VideoInfo) -> list[View]:
        """Read them."""
        return [View.from_row(record) for record in self.records]


@dataclass(frozen=True)
class Read:
    """One answer of `ClipDataset`: the clips, or the reason why there are none."""

    row: int
    clips: SampleClips | None
    error: str | None


class ClipDataset(Dataset[Read]):
    """Reads samples in data workers. Its index is (row, which views of it).

    A bad video is an answer like any other: nothing is raised, nothing is replaced.
    """

    def __init__(
        self,
        root: Path,
        samples: Samples,
        specs: Sequence[ClipSpec],
        *,
        digested: Sequence[Sequence[int]] | None = None,
        test_crop: bool = False,
        encoders: Mapping[int, Encoder] | None = None,
    ) -> None:
        """Get ready.

        Args:
            root: the dataset's root.
            samples: what is read.
            specs: clip specifications.
            digested: as for `read_clips`.
            test_crop: as for `read_clips`.
            encoders: by specification, what its clips are turned into where they are read.
        """
        self._root = root
        self._samples = samples
        self._specs = tuple(specs)
        self._digested = digested
        self._test_crop = test_crop
        self._encoders = encoders or {}

    def __getitem__(self, index: Request) -> Read:
        """Read one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Request]) -> list[Read]:
        """Read a batch: what it asks of one video is read in one pass. DataLoader calls this."""
        samples = [self._samples.row(row) for row, _ in indices]
        by_path: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            by_path.setdefault(sample.path, []).append(place)
        reads: dict[int, Read] = {}
        for places in by_path.values():
            answers = read_together(
                self._root,
                [(samples[place], indices[place][1]) for place in places],
                self._specs,
                digested=self._digested,
                test_crop=self._test_crop,
            )
            for place, answer in zip(places, answers, strict=True):
                row = indices[place][0]
                if isinstance(answer, VideoError):
                    reads[place] = Read(row, None, str(answer))
                else:
                    reads[place] = Read(row, self._encoded(answer), None)
        return [reads[place] for place in range(len(indices))]

    def _encoded(self, made: SampleClips) -> SampleClips:
        if not self._encoders:
            return made
        clips = list(made.clips)
        for which, encoder in self._encoders.items():
            clips[which] = encoder(clips[which])
        return replace(made, clips=tuple(clips))

    def by_video(self, requests: Sequence[Request]) -> list[Request]:
        """Requests with those of one video side by side, by time: batches share passes over it.

        Videos stand where the first request for them stood; where none is asked for twice, the
        order stays.
        """
        table = self._samples.table.select(["path", "start_sec"])
        asked = table.take(pa.array([row for row, _ in requests], pa.int64()))
        first: dict[str, int] = {}
        paths = asked["path"].to_pylist()
        for place, path in enumerate(paths):
            first.setdefault(path, place)
        keys = [
            (first[path], start)
            for path, start in zip(paths, asked["start_sec"].to_pylist(), strict=True)
        ]
        return [requests[place] for place in sorted(range(len(keys)), key=keys.__getitem__)]


def in_batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Cut requests, in order, into batches of `size`; the last may be smaller."""
    return [list(requests[start : start + size]) for start in range(0, len(requests), size)]


class DecoderDiedError(RuntimeError):
    """A process that decodes died; the message says what to do."""


class ClipReader:
    """Reads batches of requests in order, in processes that live as long as it does.

    Each process has some batches read before they are asked for: memory bounds it. The answers do
    not depend on the number of processes, nor does reading them touch the global random state:
    training goes the same way with clips that are stored and clips that are read.
    """

    def __init__(self, dataset: ClipDataset, workers: int, *, ahead: int = 4) -> None:
        """Get ready; processes are started by the first reading.

        Args:
            dataset: what is read.
            workers: number of processes; 0 reads in this one.
            ahead: batches that each of them has ready at most.
        """
        self._batches = _Batches()
        self._loader = DataLoader(
            dataset,
            batch_sampler=self._batches,  # type: ignore[arg-type]  # any iterable of index lists
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=_start_decoder,
            multiprocessing_context="spawn" if workers else None,
            prefetch_factor=ahead if workers else None,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else DataLoader draws a seed from the global one
        )

    def read(self, batches: Iterable[Sequence[Request]]) -> Iterator[list[Read]]:
        """Read batches, which are asked for one by one; one reading after another."""
        coming = iter(batches)
        for first in coming:  # else no process need be started
            self._batches.left = chain([first], coming)
            try:
                with ignoring_interrupts() if self._loader.num_workers else nullcontext():
                    reads = iter(self._loader)
                yield from reads
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DecoderDiedError(
                    f"a process that decodes died ({error}). Often it is memory: give fewer "
                    "--decoders, or a smaller --batch-size. What was made is kept; the same "
                    "command goes on"
                ) from error


class _Batches:
    """What `DataLoader` takes for a sampler: each reading has batches of its own."""

    left: Iterator[Sequence[Request]]

    def __iter__(self) -> Iterator[Sequence[Request]]:
        return self.left


def iterate(
    dataset: ClipDataset, batches: Iterable[Sequence[Request]], workers: int, *, ahead: int = 4
) -> Iterator[list[Read]]:
    """Read batches of requests once; see `ClipReader`."""
    yield from ClipReader(dataset, workers, ahead=ahead).read(batches)


def _start_decoder(_worker: int) -> None:
    exit_with_parent()  # torch's own watch begins too late where the parent dies at once
    torch.set_num_threads(1)  # there are as many workers as cores
