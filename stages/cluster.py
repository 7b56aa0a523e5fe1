"""Extraction by many workers: dask hands out the chunks, this process commits them.

One task makes one chunk: a worker decodes, runs the networks, stages the files in the cache's
folder, and answers with what the commit will say. Only this process commits, so a chunk that was
made twice (its worker was thought dead) has one author. Workers need the folders of the cache, the
videos and the weights, under the same paths.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import current_process
from pathlib import Path
from typing import Any, cast

import dask
import torch
from distributed import (
    Client,
    Future,
    KilledWorker,
    Nanny,
    Scheduler,
    SpecCluster,
    WorkerPlugin,
    as_completed,
    get_worker,
)
from distributed.comm.core import CommClosedError

from cache import CacheError, PendingChunk, StagedChunk, open_cache, read_layout, stage_chunk
from pipeline.clips import DecoderDiedError
from pipeline.config import Run
from pipeline.processes import ignoring_interrupts
from pipeline.samples import Samples
from pipeline.weights import PUBLISHED
from stages.chunk_arrays import ChunkArrays, ExtractError
from stages.making import ChunkMaker
from stages.progress import Meter, console
from stages.rows import Networks, load_networks
from stages.teachers import added_identities, check_added
from stages.wording import duration, plural

GPU = "GPU"  # the resource that workers with a GPU offer
_TASKS = 2  # of a worker: one decodes and writes while the other computes
_ATTEMPTS = 3  # at a chunk whose decoders die
_TOLD_EVERY_SEC = 2.0  # views that were made, by a worker
_PATIENCE_SEC = 300.0  # for a scheduler that went away, and where there is no worker
_LOOK_EVERY_SEC = 30.0  # whether there are workers still
_QUIET = logging.CRITICAL  # of dask on this machine: errors reach this process, which tells them


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

    def make(self, work: PendingChunk) -> StagedChunk:
        """Make a chunk and stage it; of several threads that do, one computes at a time."""
        staged: list[StagedChunk] = []

        def stage(_work: PendingChunk, chunk: ChunkArrays) -> None:
            failures = chunk.failures(maker.samples)
            staged.append(stage_chunk(maker.layout, work.chunk, chunk.arrays, work.views, failures))

        for attempt in range(_ATTEMPTS):
            with self._loading:
                self._networks = self._networks or self._load()
                maker = self._idle.pop() if self._idle else self._maker(self._networks)
            try:
                maker.make([work], stage, _Teller(self._worker, self.name, work))
            except DecoderDiedError:  # its maker is let go of
                if attempt == _ATTEMPTS - 1:
                    raise
            else:
                self._idle.append(maker)
                break
        return staged[0]

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

    def __init__(self, worker: Any, topic: str, work: PendingChunk) -> None:
        self._worker, self._topic, self._work = worker, topic, work
        self._views, self._told = 0, time.monotonic()

    def __call__(self, views: int) -> None:
        self._views += views
        if time.monotonic() - self._told > _TOLD_EVERY_SEC:
            self._told = time.monotonic()
            which = [self._work.chunk, list(self._work.views)]
            self._worker.log_event(self._topic, {"of": which, "views": self._views})


def make_chunk(name: str, work: PendingChunk) -> StagedChunk:
    """The task: make a chunk on the worker that runs it."""
    plugin = cast("ChunkPlugin", get_worker().plugins[name])
    return plugin.make(work)


def make_chunks(
    open_client: Callable[[], Client],
    recipe: Recipe,
    pending: Sequence[PendingChunk],
    commit: Callable[[StagedChunk], None],
    meter: Meter,
) -> None:
    """Have chunks made by workers and commit each as it comes.

    A worker that dies has its chunk made by another; a scheduler that goes away is waited for, and
    told anew what is still pending.

    Args:
        open_client: connects to the scheduler; called again when the connection is lost.
        recipe: for the workers.
        pending: what is to be made.
        commit: takes each staged chunk, in the order in which they come.
        meter: counts views.

    Raises:
        ExtractError: a chunk kills its workers again and again, there is no worker, or the
            scheduler does not come back.
    """
    layout = read_layout(recipe.place)
    progress = _Progress(meter)
    left = {(work.chunk, work.views): work for work in pending}
    first = True
    while left:
        with _connected(open_client, recipe, patience=0.0 if first else _PATIENCE_SEC) as client:
            first = False
            client.subscribe_topic(recipe.name, progress.hear)
            try:
                for staged in _made(client, recipe, list(left.values())):
                    commit(staged)
                    del left[staged.chunk, staged.views]
                    rows = len(layout.sample_range(staged.chunk)) * len(staged.views)
                    progress.finish(staged, rows, len(_workers(client)))
            except (CommClosedError, CancelledError):
                console.print(
                    f"the scheduler is lost: waiting for it, {plural(len(left), 'chunk')} to go"
                )
            finally:
                client.unsubscribe_topic(recipe.name)


@contextmanager
def _connected(
    open_client: Callable[[], Client], recipe: Recipe, *, patience: float
) -> Iterator[Client]:
    """A client whose workers know the recipe; a scheduler that does not answer is asked again.

    Raises:
        ExtractError: no scheduler, or no worker that fits.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            client = open_client()
            break
        except OSError as error:  # TimeoutError is one
            if time.monotonic() > deadline:
                raise ExtractError(
                    f"no scheduler answers: {error}. What was made is kept; the same command goes "
                    "on once there is one"
                ) from error
    with client:
        if not _workers(client):
            console.print("waiting for a worker to come to the scheduler")
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_SEC)
        except TimeoutError as error:
            raise ExtractError(
                f"no worker came to the scheduler within {duration(_PATIENCE_SEC)}: start them as "
                f"`dask worker ADDR --nthreads {_TASKS}`"
            ) from error
        client.register_plugin(ChunkPlugin(recipe))
        try:
            yield client
        finally:
            with suppress(CommClosedError, CancelledError, OSError, ValueError):  # it is lost
                client.unregister_worker_plugin(recipe.name)


def _made(client: Client, recipe: Recipe, pending: Sequence[PendingChunk]) -> Iterator[StagedChunk]:
    """The chunks as they come.

    Raises:
        CancelledError: the scheduler went away.
        ExtractError: a chunk kills its workers again and again.
    """
    resources = _resources(client, recipe)
    futures: dict[Future[StagedChunk], PendingChunk] = {}
    for work in pending:
        views = "-".join(map(str, work.views))
        future = client.submit(
            make_chunk,
            recipe.name,
            work,
            key=f"extract-chunk-{work.chunk}-views-{views}-of-{recipe.name}",
            pure=False,
            resources=resources,
        )
        futures[future] = work
    for future in _as_they_come(client, futures):
        try:
            staged = future.result()
        except KilledWorker as error:
            raise ExtractError(
                f"chunk {futures[future].chunk} killed its workers: {error}. Often it is their "
                "memory: a smaller extract.chunk_samples (of a new cache) or --batch-size takes "
                "less. What was made is kept; the same command goes on"
            ) from error
        yield staged
        future.release()


def _as_they_come(
    client: Client, futures: Iterable[Future[StagedChunk]]
) -> Iterator[Future[StagedChunk]]:
    """Futures that are done, in the order in which they are.

    Raises:
        ExtractError: for long there has been no worker any more.
    """
    left, there = set(futures), time.monotonic()
    while left:
        try:
            for future in as_completed(list(left), timeout=_LOOK_EVERY_SEC):
                left.discard(future)
                yield future
        except TimeoutError:
            if _workers(client):
                there = time.monotonic()
            elif time.monotonic() - there > _PATIENCE_SEC:
                raise ExtractError(
                    f"all workers are gone, and for {duration(_PATIENCE_SEC)} none came back. What "
                    "was made is kept; the same command goes on once there are workers"
                ) from None


def _resources(client: Client, recipe: Recipe) -> dict[str, float]:
    """What a task asks for: a GPU where workers offer any; else waiting for one would be silent.

    Raises:
        ExtractError: GPUs are asked for, and no worker offers one.
    """
    workers = _workers(client)
    offering = [name for name, facts in workers.items() if facts["resources"].get(GPU)]
    if offering and (recipe.device is None or recipe.device.startswith("cuda")):
        return {GPU: 1 / _TASKS}
    if recipe.device is not None and recipe.device.startswith("cuda"):
        raise ExtractError(
            f"none of the {plural(len(workers), 'worker')} offers the resource {GPU}: start them "
            f"as `dask worker ADDR --nthreads {_TASKS} --resources {GPU}=1`, one for each GPU, or "
            "give --device cpu"
        )
    return {}


def _workers(client: Client) -> dict[str, Any]:
    """Facts about every worker by its address; by default a client asks for a few only."""
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return workers


class _Progress:
    """Counts views of chunks that are made and of those under way."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._lock = meter, threading.Lock()
        self._under_way: Counter[tuple[int, tuple[int, ...]]] = Counter()  # rows by chunk, views
        self._by_worker: Counter[tuple[str, int]] = Counter()  # rows by host and process
        self._begun, self._failed = time.monotonic(), 0

    def hear(self, event: tuple[float, Any]) -> None:
        """A worker tells how far a chunk is."""
        told = event[1]
        with self._lock:
            chunk, views = told["of"]
            more = told["views"] - self._under_way[chunk, tuple(views)]
            if more > 0:  # else another worker begins it again
                self._under_way[chunk, tuple(views)] += more
                self._meter.advance(more)

    def finish(self, staged: StagedChunk, rows: int, workers: int) -> None:
        """A chunk of so many rows is committed."""
        self._failed += len(staged.failures)
        self._by_worker[staged.maker["host"], staged.maker["pid"]] += rows
        seconds = max(time.monotonic() - self._begun, 1e-9)
        rates = sorted(done / seconds for done in self._by_worker.values())
        each = " to ".join(dict.fromkeys(f"{rate:.1f}" for rate in (rates[0], rates[-1])))
        with self._lock:
            rest = rows - self._under_way.pop((staged.chunk, staged.views), 0)
            self._meter.note(
                f"{plural(workers, 'worker')} with {each} views/s each, {self._failed} failed"
            )
            self._meter.advance(max(rest, 0))


# --- a cluster on this machine -----------------------------------------------------------------


@contextmanager
def local_cluster(workers: int, device: torch.device) -> Iterator[str]:
    """Start a scheduler and workers on this machine, reachable from it alone.

    Of GPUs each worker has its own, of a CPU its share of the cores.

    Args:
        workers: how many.
        device: what they compute on.

    Yields:
        The scheduler's address.

    Raises:
        ExtractError: there are fewer GPUs.
    """
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and workers > gpus:
        raise ExtractError(f"--workers {workers}: this machine has {plural(gpus, 'GPU')}")
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(index) for index in range(gpus)]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // workers))
    settings = {
        "distributed.worker.daemon": False,  # or a worker could not have decoders
        "distributed.scheduler.allowed-failures": 10,
        # Where torch takes longer than this to be imported, a worker that died and is being started
        # anew would be given up.
        "distributed.deploy.lost-worker-timeout": "1 hour",
        "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": threads},
    }
    host = "127.0.0.1"

    def worker(index: int) -> dict[str, Any]:
        options: dict[str, Any] = {"nthreads": _TASKS, "memory_limit": 0, "host": host}
        options["silence_logs"] = _QUIET
        if gpus:
            options |= {"resources": {GPU: 1}, "env": {"CUDA_VISIBLE_DEVICES": visible[index]}}
        return {"cls": Nanny, "options": options}

    with dask.config.set(settings):
        with ignoring_interrupts():  # dask's thread, which this starts, starts the workers
            cluster = SpecCluster(
                workers={index: worker(index) for index in range(workers)},
                scheduler={
                    "cls": Scheduler,
                    "options": {"host": host, "port": 0, "dashboard_address": f"{host}:0"},
                },
                silence_logs=_QUIET,
            )
        with cluster:
            console.print(
                f"{plural(workers, 'worker')} on this machine, scheduler "
                f"{cluster.scheduler_address}"
                + (f", dashboard {cluster.dashboard_link}" if _has_dashboard() else "")
            )
            yield cluster.scheduler_address


def _has_dashboard() -> bool:
    return find_spec("bokeh") is not None
