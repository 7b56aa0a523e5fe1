"""Chunks of a cache from videos: decode → teachers → arrays, all of it at once.

Processes decode ahead, a thread lays out their clips for the networks, the networks compute, and
another thread fetches what they gave and hands over each chunk when it is complete.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch

from cache import Layout, PendingChunk, TeacherCache
from pipeline.clips import ClipReader, Read, Request, in_batches
from pipeline.config import Run
from pipeline.cutting import SampleClips
from pipeline.samples import samples_from_table
from stages.chunk_arrays import ChunkArrays, Copies
from stages.copying import CopyToHost
from stages.overlap import ahead, behind
from stages.rows import Networks, drawn_views, stored_projection

# Of one batch: the chunk, what was read, the teachers' clips, and whether it is the chunk's last.
Part = tuple[PendingChunk, ChunkArrays, list[Read], dict[str, torch.Tensor], bool]


_NOTED = 0.1  # of the time, waited for clips: less is not worth a word


class ChunkMaker:
    """Makes chunks of one cache, with networks that are loaded once."""

    def __init__(
        self,
        run: Run,
        networks: Networks,
        cache: TeacherCache,
        *,
        batch_size: int,
        decoders: int,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:
        """Get ready.

        Args:
            run: the config.
            networks: all for which something is stored.
            cache: what stands, with room for what is to be made.
            batch_size: clips in one forward pass.
            decoders: processes that decode; 0 decodes in a thread of this one.
            turn: held while the networks compute, where other makers use them too.
        """
        self._run, self._networks, self._cache = run, networks, cache
        self._turn = turn or nullcontext()
        self._decoders = decoders
        self.waited_sec = self.busy_sec = 0.0  # of the networks, for clips and otherwise
        self._computed = False
        self._batch_size = batch_size
        self._projection = stored_projection(cache).to(networks.teachers.device)
        self.samples = samples_from_table(cache.samples, cache.place)
        self._dataset = networks.dataset(run, self.samples, cache.fields)
        self._reader = ClipReader(self._dataset, decoders)

    def make(
        self,
        works: Sequence[PendingChunk],
        done: Callable[[PendingChunk, ChunkArrays], None],
        advance: Callable[[int], None] = lambda _views: None,
    ) -> None:
        """Make chunks, one after another.

        Args:
            works: which; those of one chunk side by side, they share its decode.
            done: takes each when it is complete, in order, in a thread.
            advance: is told how many views came in.

        Raises:
            ExtractError: a video is another one than when its standing rows were made.
        """
        with behind() as call:
            for work, chunk, batch, clips, last in self._timed(ahead(self._parts(works))):
                self._computed = self._computed or bool(clips)
                with self._turn:
                    outputs = chunk.compute(clips, self._projection, self._batch_size)
                    copies = [(status, CopyToHost(values)) for status, values in outputs]
                call(partial(self._put_away, work, chunk, batch, copies, advance))
                if last:
                    call(partial(done, work, chunk))

    def _timed(self, parts: Iterator[Part]) -> Iterator[Part]:
        """Count how long the next part is waited for; the first one starts processes."""
        asked: float | None = None
        for part in parts:
            ready = time.perf_counter()
            if asked is not None:
                self.waited_sec += ready - asked
            yield part
            asked = time.perf_counter()
            self.busy_sec += asked - ready

    @property
    def layout(self) -> Layout:
        """The cache's."""
        return self._cache.layout

    @property
    def decoders_wanted(self) -> int | None:
        """How many would be enough where decoding was the limit; None where it was not.

        None, too, where no network computed: clips alone are as fast as they are decoded.
        """
        if not self._computed:
            return None
        if self.waited_sec <= _NOTED * (self.waited_sec + self.busy_sec):
            return None
        return math.ceil(max(1, self._decoders) * (1 + self.waited_sec / max(self.busy_sec, 1e-9)))

    def _parts(self, works: Sequence[PendingChunk]) -> Generator[Part, None, None]:
        """The batches of all chunks, decoded ahead over their ends."""
        by_chunk = groupby(works, key=attrgetter("chunk"))
        groups = [list(of_chunk) for _, of_chunk in by_chunk]  # those of one chunk, in one decode
        reads = self._reader.read(
            batch for together in groups for batch in self._requests(together)
        )
        for together in groups:
            chunks = [ChunkArrays(self._cache, work, self._networks) for work in together]
            all_views = _views(together)
            left = len(self.layout.sample_range(together[0].chunk))
            while left:
                of_all = next(reads)
                left -= len(of_all)
                for work, chunk in zip(together, chunks, strict=True):
                    batch = [_of_views(read, all_views, work.views) for read in of_all]
                    good = [read for read in batch if read.clips is not None]
                    names = chunk.teachers if good else []
                    clips = {name: self._networks.clips_of(name, good) for name in names}
                    yield work, chunk, batch, clips, not left

    def _put_away(
        self,
        work: PendingChunk,
        chunk: ChunkArrays,
        batch: Sequence[Read],
        copies: Sequence[Copies],
        advance: Callable[[int], None],
    ) -> None:
        chunk.enter(batch, copies)
        advance(len(batch) * len(work.views))

    def _requests(self, together: Sequence[PendingChunk]) -> list[list[Request]]:
        """A chunk's samples in batches; those of one video side by side."""
        views = _views(together)
        choose = drawn_views(self._run, views)
        rows = self.layout.sample_range(together[0].chunk)
        requests: list[Request] = [(row, choose) for row in rows]
        size = max(1, self._batch_size // len(views))
        return in_batches(self._dataset.by_video(requests), size)


def _views(together: Sequence[PendingChunk]) -> tuple[int, ...]:
    """All views that are made of a chunk."""
    return tuple(sorted({view for work in together for view in work.views}))


def _of_views(read: Read, all_views: Sequence[int], views: Sequence[int]) -> Read:
    """What was read of a sample, in some of the views."""
    if read.clips is None or tuple(views) == tuple(all_views):
        return read
    some = [all_views.index(view) for view in views]
    clips = SampleClips(
        read.clips.views[some],
        tuple(of_network[some] for of_network in read.clips.clips),
        read.clips.digests[some],
    )
    return replace(read, clips=clips)
