"""The batches of stage two: cached rows of the teachers beside the very clips that they saw.

Each epoch draws one view of every sample by a rule that only the seed decides, so the batches are
the same whatever the number of processes that decode, or of ranks that share them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache import CacheError, Status, TeacherCache, command
from pipeline.clips import ClipDataset, Request, StoredViews, iterate
from pipeline.config import Run
from pipeline.learner import Sizes
from pipeline.models import model_entry
from pipeline.objective import NO_LABEL, Batch, Method, TeacherRows, TrainingError
from pipeline.ranks import ALONE, Ranks
from pipeline.samples import Samples, samples_from_table
from pipeline.training import epoch_batches, steps_in_epoch
from stages.overlap import ahead
from stages.stored_clips import clip_field, read_stored, stored_format


@dataclass(frozen=True)
class Part:
    """The part of a cache that a run trains on.

    Attributes:
        rows: its samples, (n,) indices, ascending. Samples stand in a shuffled order, so the first
            ones are an unbiased part of what came together.
        made: where all fields that are used have been made, (n, views) bool.
        valid: where they can be trained on, (n, views) bool.
        fields: all that the run reads of a row.
    """

    rows: NDArray[np.int64]
    made: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    fields: tuple[str, ...]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Samples with a view that can be trained on, (n,) bool."""
        return np.asarray(self.valid.any(axis=1))

    @property
    def num_usable(self) -> int:
        """How many there are."""
        return int(self.usable.sum())


def used_part(run: Run, cache: TeacherCache) -> Part:
    """Choose the rows that a run trains on: those that have all that its method reads.

    Raises:
        cache.CacheError: it holds no sample of a split, or not what the method's terms read.
    """
    samples = samples_from_table(cache.samples, cache.place)
    absent = sorted(set(run.distill.splits) - samples.splits().keys())
    if absent:
        raise CacheError(
            f"{cache.place} holds no samples of split {', '.join(absent)}, only of "
            f"{', '.join(samples.splits())}; extract.splits says what is cached"
        )
    rows = np.flatnonzero(np.isin(samples.table["split"].to_pylist(), run.distill.splits))
    rows = rows[: math.ceil(run.distill.fraction * len(rows))]
    method = method_of(run)
    fields = [clip_source(cache, run.distill.student), *teacher_fields(run, samples, method)]
    lacking = [name for name in fields if name not in cache.fields]
    if lacking:
        options = ("--dataset", run.name, "--out", cache.place)
        extract = command("dualkd-cache", "extract", *options)
        raise CacheError(
            f"{cache.place} lacks {', '.join(lacking)}; `{extract}` adds the teachers of "
            "extract.added"
        )
    statuses = {name: cache.status_of(name)[rows, : run.distill_views] for name in fields}
    if cache.origin:
        _check_pulled(run, cache, [name for name in fields if not statuses[name].any()])
    every = np.stack(list(statuses.values()))
    return Part(
        rows=rows,
        made=(every != Status.MISSING).all(axis=0),
        valid=(every == Status.VALID).all(axis=0),
        fields=tuple(fields),
    )


def _check_pulled(run: Run, cache: TeacherCache, absent: list[str]) -> None:
    """Refuse terms of the loss whose fields were not pulled."""
    if not absent:
        return
    weights = run.distill.weights.model_dump()
    terms = [
        name
        for name, weight in weights.items()
        if weight and set(absent) & set(_fields_of_term(run, cache, name))
    ]
    raise CacheError(
        f"{cache.place} holds nothing of {', '.join(absent)}, which distill reads for "
        f"{', '.join(terms) or 'its clips'}: {cache.how_to_complete(fields=absent)}. Or set "
        f"{' and '.join(f'distill.weights.{name}' for name in terms) or 'distill.student'} to "
        f"{'0' if terms else 'another one'}"
    )


def _fields_of_term(run: Run, cache: TeacherCache, term: str) -> list[str]:
    """The fields that one term of the loss reads, by itself."""
    weights = run.distill.weights
    alone = weights.model_copy(update={name: 0.0 for name in weights.model_dump() if name != term})
    section = run.distill.model_copy(update={"weights": alone})
    only = run.model_copy(update={"distill": section})
    samples = samples_from_table(cache.samples, cache.place)
    return teacher_fields(only, samples, method_of(only))


def clip_source(cache: TeacherCache, student: str) -> str:
    """The field from which a student's clips come: stored ones, or how to cut them from a video."""
    return clip_field(student) if stored_format(cache, student) else "views"


def method_of(run: Run) -> Method:
    """The loss that a config describes."""
    config = run.distill
    return Method(
        config.weights,
        weighting=config.weighting,
        temperature=config.temperature,
        dkd_beta=config.dkd_beta,
        label_smoothing=config.train.label_smoothing,
    )


def teacher_fields(run: Run, samples: Samples, method: Method) -> list[str]:
    """The fields that a method's terms read; none for labels only."""
    first, second = run.distill.teachers
    weights, fields = method.weights, []
    if method.vit_logits:
        fields += [f"{first}/logits/{head}" for head in samples.heads]
    if method.cnn_logits:
        fields += [f"{second}/logits/{head}" for head in samples.heads]
    if weights.rkd > 0 or weights.mimic > 0 or weights.learned_sdd > 0:
        fields.append(f"{first}/pooled")
    if weights.learned_sdd > 0:
        fields.append(f"{second}/pooled")
    if weights.sdd > 0:
        fields.append("residual")
    return fields


def sizes_of(run: Run, cache: TeacherCache) -> Sizes:
    """What the parts of a learner have to predict."""
    first, second = (cache.fields[f"{name}/pooled"].shape[0] for name in run.distill.teachers)
    dim, frames, height, width = cache.fields["residual"].shape
    return Sizes(first, second, (dim, frames, height, width))


class Feed:
    """The batches of stage two: per epoch one valid view of every sample.

    The view is the one whose turn it is: `(turn + epoch) mod views`, where the turn of a sample is
    drawn once from the seed. After as many epochs as there are views every view was seen once.

    Attributes:
        steps: batches of an epoch.
        stored: whether the clips are read from the cache; else the videos are decoded again.
    """

    def __init__(
        self,
        run: Run,
        cache: TeacherCache,
        part: Part,
        device: torch.device,
        decoders: int,
        ranks: Ranks = ALONE,
    ) -> None:
        """Get ready.

        Args:
            run: the config.
            cache: what was stored.
            part: what is trained on.
            device: where batches are put.
            decoders: processes that decode, if videos are decoded.
            ranks: each gets its own part of every batch.

        Raises:
            pipeline.objective.TrainingError: a batch is too small for so many ranks.
        """
        self._rows = part.rows[part.usable]
        self._valid = [np.flatnonzero(views) for views in part.valid[part.usable]]
        draws = np.random.default_rng(run.distill.seed)
        self._turns = draws.integers(part.valid.shape[1], size=len(self._rows))
        self._run, self._cache, self._device, self._ranks = run, cache, device, ranks
        self._held = cache.chunks_held(part.fields)  # the same for all that train on this part
        self._decoders = decoders
        self._samples = samples_from_table(cache.samples, cache.place)
        self.stored = stored_format(cache, run.distill.student) is not None
        self._fields = teacher_fields(run, self._samples, method_of(run))
        self._ids = self._samples.table["sample_id"].to_pylist()
        self._labels = self._samples.labels(NO_LABEL)
        self.steps = steps_in_epoch(len(self._rows), run.distill.train.batch_size)
        if len(self._rows) // self.steps < ranks.world:
            raise TrainingError(
                f"batches of {len(self._rows) // self.steps} clips cannot be shared by "
                f"{ranks.world} processes: start fewer, or raise distill.train.batch_size "
                f"({run.distill.train.batch_size})"
            )

    def __call__(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from one on, the next ones made in another thread meanwhile."""
        return ahead(self._made(epoch, first))

    def _made(self, epoch: int, first: int) -> Generator[Batch, None, None]:
        order = epoch_batches(
            rows=len(self._rows),
            batch_size=self._run.distill.train.batch_size,
            seed=self._run.distill.seed,
            epoch=epoch,
        )
        if self._held < self._cache.num_chunks:
            order = self._by_chunks(order, epoch)
        order = order[first:]
        own = [np.array_split(places, self._ranks.world)[self._ranks.rank] for places in order]
        rows = [self._rows[places] for places in own]
        views = [np.array([self._view(place, epoch) for place in places]) for places in own]
        read_clips = self._stored_clips if self.stored else self._decoded_clips
        self._wanted = 0
        self._want(rows, views, 0)
        made = zip(order, rows, views, read_clips(rows, views), strict=True)
        for number, (places, of_rows, of_views, clips) in enumerate(made, start=first):
            self._want(rows, views, number - first)
            share = len(of_rows) * self._ranks.world / len(places)
            yield self._batch(of_rows, of_views, clips, number, share)

    def _by_chunks(self, order: list[NDArray[np.int64]], epoch: int) -> list[NDArray[np.int64]]:
        """The same batch sizes, shuffled only within so many chunks as are at hand at once.

        Samples stand in the cache in a shuffled order, so a few chunks are an unbiased part of it.
        """
        places = np.concatenate(order)
        chunks = self._cache.chunks_of(self._rows[places])
        generator = np.random.default_rng([self._run.distill.seed, epoch, 1])
        turn = generator.permutation(self._cache.num_chunks) // self._held
        places = places[np.argsort(turn[chunks], kind="stable")]
        return np.split(places, np.cumsum([len(batch) for batch in order])[:-1])

    def _want(
        self, rows: list[NDArray[np.int64]], views: list[NDArray[np.int64]], batch: int
    ) -> None:
        """Have the next batches fetched, if they are elsewhere: as many as the chunks at hand give.

        With those of before that is what a store holds.
        """
        share = self._held / self._cache.num_chunks
        until = len(rows) if share == 1 else min(len(rows), batch + math.ceil(share * self.steps))
        if until > self._wanted:
            fields = [clip_source(self._cache, self._run.distill.student), *self._fields]
            coming = slice(self._wanted, until)
            self._cache.want(np.concatenate(rows[coming]), np.concatenate(views[coming]), fields)
            self._wanted = until

    def _view(self, place: int, epoch: int) -> int:
        valid = self._valid[place]
        return int(valid[(self._turns[place] + epoch) % len(valid)])

    def _stored_clips(
        self, rows: list[NDArray[np.int64]], views: list[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.uint8]]:
        batches = zip(rows, views, strict=True)
        yield from read_stored(self._cache, self._run.distill.student, batches, self._decoders)

    def _decoded_clips(
        self, rows: list[NDArray[np.int64]], views: list[NDArray[np.int64]]
    ) -> Iterator[NDArray[np.uint8]]:
        """Replay the stored view records on the videos."""
        root, spec = Path(self._run.prepare.root), model_entry(self._run.distill.student).clip
        dataset = ClipDataset(root, self._samples, [spec])
        requests: list[list[Request]] = []
        for of_rows, of_views in zip(rows, views, strict=True):
            records = self._cache.read(of_rows, of_views, ["views"])["views"]
            requests.append(
                [
                    (int(row), StoredViews(record[None]))
                    for row, record in zip(of_rows, records, strict=True)
                ]
            )
        for reads in iterate(dataset, requests, self._decoders):
            for read in reads:
                if read.clips is None:
                    raise CacheError(
                        f"{self._ids[read.row]} was readable when the cache was made, and is not "
                        f"now: {read.error}"
                    )
            yield np.concatenate([read.clips.clips[0] for read in reads if read.clips])

    def _batch(
        self,
        rows: NDArray[np.int64],
        views: NDArray[np.int64],
        clips: NDArray[np.uint8],
        number: int,
        share: float,
    ) -> Batch:
        teachers = None
        if self._fields:
            cached = {
                name: self._placed(array).float()
                for name, array in self._cache.read(rows, views, self._fields).items()
            }
            vit, cnn = self._run.distill.teachers
            teachers = TeacherRows(
                vit_logits={head: cached.get(f"{vit}/logits/{head}") for head in self._labels},
                cnn_logits={head: cached.get(f"{cnn}/logits/{head}") for head in self._labels},
                vit_pooled=cached.get(f"{vit}/pooled"),
                residual=cached.get("residual"),
                cnn_pooled=cached.get(f"{cnn}/pooled"),
            )
        return Batch(
            names=[self._ids[row] for row in rows],
            clips=self._placed(clips),
            labels={head: self._placed(labels[rows]) for head, labels in self._labels.items()},
            teachers=teachers,
            number=number,
            share=share,
        )

    def _placed(self, array: NDArray[Any]) -> torch.Tensor:
        """On the device; a GPU copies from pinned memory, beside what it computes."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)
