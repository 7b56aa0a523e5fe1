"""What a dask worker does: it makes one chunk of a cache a task, with networks loaded once.

Workers need the folders of the cache, the videos and the weights, under the same paths.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import current_process
from pathlib import Path
from socket import gethostname
from typing import Any, cast

import torch
from distributed import WorkerPlugin, get_worker

from cache import CacheError, PendingChunk, StagedChunk, open_cache, stage_chunk
from pipeline.clips import DecoderDiedError
from pipeline.config import Run
from pipeline.samples import Samples
from pipeline.weights import PUBLISHED, WeightsError
from stages.chunk_arrays import ChunkArrays, ExtractError
from stages.making import ChunkMaker
from stages.rows import Networks, load_networks
from stages.teachers import added_identities, check_added

GPU = "GPU"  # the resource that workers with a GPU offer
TASKS = 2  # of a worker: one decodes and writes while the other computes
_ATTEMPTS = 3  # at a chunk whose decoders die
_TOLD_EVERY_SEC = 2.0  # views that were made, by a worker
_TOLD_AS_THEY_ARE = (ExtractError, CacheError, WeightsError, DecoderDiedError, OSError)


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to make chunks.

    Attributes:
        run: the config, with absolute paths.
        classes: the samples table without its rows, for the networks' heads.
        place: the cache's folder.
        fingerprint: of the cache.
        teachers: what decides the outputs of the two teachers; see `Teachers.identities`.
        token: of this run: another one on the same scheduler, of the same cache even, has another.
        device: of the worker; None takes a GPU if there is one.
        batch_size: clips in one forward pass.
        decoders: processes that decode, of each worker.
    """

    run: Run
    classes: Samples
    place: Path
    fingerprint: str
    teachers: Mapping[str, Mapping[str, Any]]
    token: str
    device: str | None
    batch_size: int
    decoders: int

    @property
    def name(self) -> str:
        """Of the plugin, and of the topic on which workers tell what they made."""
        return f"dualkd-{self.fingerprint[:8]}-{self.token}"


def recipe_for(
    run: Run,
    table: Samples,
    teachers: Mapping[str, Mapping[str, Any]],
    place: Path,
    *,
    device: str | None,
    batch_size: int,
    decoders: int,
) -> Recipe:
    """What workers are told; relative paths become absolute ones."""
    return Recipe(
        run=_with_absolute_paths(run),
        classes=table.take([]),
        place=place.absolute(),
        fingerprint=open_cache(place).fingerprint,
        teachers=teachers,
        token=uuid.uuid4().hex[:12],
        device=device,
        batch_size=batch_size,
        decoders=decoders,
    )


def _with_absolute_paths(run: Run) -> Run:
    def changed(weights: str) -> str:
        return weights if weights == PUBLISHED else str(Path(weights).absolute())

    teach = run.teach.model_copy(
        update={
            role: teacher.model_copy(update={"weights": changed(teacher.weights)})
            for role, teacher in (("vit", run.teach.vit), ("cnn", run.teach.cnn))
        }
    )
    added = {
        name: teacher.model_copy(update={"weights": changed(teacher.weights)})
        for name, teacher in run.extract.added.items()
    }
    root = str(Path(run.prepare.root).absolute())
    return run.model_copy(
        update={
            "teach": teach,
            "extract": run.extract.model_copy(update={"added": added}),
            "prepare": run.prepare.model_copy(update={"root": root}),
        }
    )


class ChunkPlugin(WorkerPlugin):
    """What a worker keeps from task to task: the networks, and the processes that decode."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.name = recipe.name

    def setup(self, worker: Any) -> None:
        """Get ready for tasks; the networks are loaded by the first one."""
        self._worker = worker
        self._loading, self._turn = threading.Lock(), threading.Lock()
        self._networks: Networks | None = None
        self._idle: list[ChunkMaker] = []

    def teardown(self, worker: Any) -> None:
        """Let go of the networks."""
        self._networks, self._idle = None, []

    def __getstate__(self) -> dict[str, Any]:
        """Travel to a worker."""
        return {"recipe": self.recipe, "name": self.name}

    def make(self, works: Sequence[PendingChunk]) -> list[StagedChunk]:
        """Make what is pending of a chunk and stage it; of several threads one computes at a time.

        Raises:
            ExtractError: it cannot be made; of what is a surprise here, with where it came from.
        """
        try:
            return self._made(works)
        except _TOLD_AS_THEY_ARE:
            raise
        except Exception as error:
            raise ExtractError(
                f"chunk {works[0].chunk} could not be made by the worker {self._worker.address}: "
                f"{type(error).__name__}: {error}. What was made is kept; the same command goes "
                f"on.\nThere:\n{traceback.format_exc()}"
            ) from error

    def _made(self, works: Sequence[PendingChunk]) -> list[StagedChunk]:
        staged: list[StagedChunk] = []

        def stage(work: PendingChunk, chunk: ChunkArrays) -> None:
            failures = chunk.failures(maker.samples)
            staged.append(stage_chunk(maker.layout, work.chunk, chunk.arrays, work.views, failures))

        for attempt in range(_ATTEMPTS):
            staged.clear()
            with self._loading:
                self._networks = self._networks or self._load()
                maker = self._idle.pop() if self._idle else self._maker(self._networks)
            try:
                maker.make(works, stage, _Teller(self._worker, self.name, works[0].chunk))
            except DecoderDiedError:  # its maker is let go of
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                self._idle.append(maker)
                break
        return staged

    def _maker(self, networks: Networks) -> ChunkMaker:
        """What makes chunks with these networks.

        Raises:
            ExtractError: it is to have decoders, and dask does not let this worker start processes.
        """
        if self.recipe.decoders and current_process().daemon:
            raise ExtractError(
                f"the worker {self._worker.address} may not start processes that decode: start it "
                "with DASK_DISTRIBUTED__WORKER__DAEMON=False in its environment, or give "
                "--decoders 0"
            )
        recipe, threads = self.recipe, self._worker.state.nthreads
        return ChunkMaker(
            recipe.run,
            networks,
            open_cache(recipe.place),
            batch_size=recipe.batch_size,
            decoders=max(recipe.decoders // threads, min(recipe.decoders, 1)),
            turn=self._turn,
        )

    def _load(self) -> Networks:
        """The networks, and whether they and the cache are those that are meant.

        Raises:
            ExtractError: they are not.
        """
        recipe = self.recipe
        here = f"the worker {self._worker.address}"
        try:
            cache = open_cache(recipe.place)
        except CacheError as error:
            raise ExtractError(
                f"{here} cannot open the cache: {error}. All workers need its folder, that of the "
                "videos and those of the weights, under the same paths"
            ) from error
        if cache.fingerprint != recipe.fingerprint:
            raise ExtractError(f"{here} finds another cache at {recipe.place}")
        device = torch.device(recipe.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        networks = load_networks(recipe.run, recipe.classes, device)
        if networks.teachers.identities(recipe.run) != recipe.teachers:
            raise ExtractError(
                f"{here} has other teachers than the process that asks: the files of their "
                "weights, or the versions of the code, differ"
            )
        check_added(cache, added_identities(recipe.run, networks.added))
        return networks


class _Teller:
    """Tells the client, now and then, how many views of a chunk are made."""

    def __init__(self, worker: Any, topic: str, chunk: int) -> None:
        self._worker, self._topic, self._chunk = worker, topic, chunk
        self._views, self._told = 0, time.monotonic()

    def __call__(self, views: int) -> None:
        self._views += views
        if time.monotonic() - self._told > _TOLD_EVERY_SEC:
            self._told = time.monotonic()
            told = {"chunk": self._chunk, "views": self._views, "by": [gethostname(), os.getpid()]}
            self._worker.log_event(self._topic, told)


def make_chunk(name: str, works: Sequence[PendingChunk]) -> list[StagedChunk]:
    """The task: make what is pending of a chunk, in one decode, on the worker that runs it."""
    plugin = cast("ChunkPlugin", get_worker().plugins[name])
    return plugin.make(works)
