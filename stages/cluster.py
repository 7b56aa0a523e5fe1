"""Extraction by many workers: dask hands out the chunks, this process commits them.

One task makes one chunk: a worker decodes, runs the networks, stages the files in the cache's
folder, and answers with what the commit will say. Only this process commits, so a chunk that was
made twice (its worker was thought dead) has one author.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker, as_completed
from distributed.comm.core import CommClosedError

from cache import PendingChunk, StagedChunk, read_layout
from stages.chunk_arrays import ExtractError
from stages.cluster_progress import Progress
from stages.cluster_worker import GPU, TASKS, ChunkPlugin, Recipe, make_chunk
from stages.progress import Meter, console
from stages.wording import duration, plural

_PATIENCE_SEC = 300.0  # for a scheduler that went away, and where there is no worker
_LOOK_EVERY_SEC = 30.0  # whether there are workers still

Made = TypeVar("Made")


def check_scheduler(open_client: Callable[[], Client], device: str | None) -> None:
    """Check, before anything long begins, that a scheduler answers and its workers can do it.

    Args:
        open_client: connects to it.
        device: what they are to compute on; None takes a GPU where there is one.

    Raises:
        ExtractError: it does not, or no worker offers a GPU that is asked for.
    """
    with _opened(open_client, patience=0.0) as client:
        if workers := workers_of(client):
            resources_for(workers, device)
        else:
            console.print(f"the scheduler {client.scheduler.address} has no worker yet")


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
    progress = Progress(meter)
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
                    progress.finish(staged, rows, len(workers_of(client)))
            except (CommClosedError, CancelledError):
                console.print(
                    f"the scheduler is lost: waiting for it, {plural(len(left), 'chunk')} to go"
                )
            finally:
                client.unsubscribe_topic(recipe.name)


def _opened(open_client: Callable[[], Client], patience: float) -> Client:
    """A client; a scheduler that does not answer is asked again for so many seconds.

    Raises:
        ExtractError: none answers.
    """
    deadline = time.monotonic() + patience
    while True:
        try:
            return open_client()
        except (ValueError, TypeError) as error:
            raise ExtractError(
                f"--scheduler is no address ({error}); one looks like tcp://head:8786"
            ) from error
        except OSError as error:  # TimeoutError is one
            if time.monotonic() > deadline:
                raise ExtractError(
                    f"no scheduler answers: {error}. What was made is kept; the same command goes "
                    "on once there is one"
                ) from error


@contextmanager
def _connected(
    open_client: Callable[[], Client], recipe: Recipe, *, patience: float
) -> Iterator[Client]:
    """A client whose workers know the recipe.

    Raises:
        ExtractError: no scheduler, or no worker came to it.
    """
    with _opened(open_client, patience) as client:
        if not workers_of(client):
            console.print("waiting for a worker to come to the scheduler")
        try:
            client.wait_for_workers(1, timeout=_PATIENCE_SEC)
        except TimeoutError as error:
            raise ExtractError(
                f"no worker came to the scheduler within {duration(_PATIENCE_SEC)}: start them as "
                f"`dask worker ADDR --nthreads {TASKS}`"
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
    workers = workers_of(client)
    resources = resources_for(workers, recipe.device)
    console.print(
        f"{plural(len(workers), 'worker')} to make {plural(len(pending), 'chunk')}: they "
        "load the networks first"
    )
    futures: dict[Future[list[StagedChunk]], int] = {}
    for chunk, of_chunk in groupby(pending, key=attrgetter("chunk")):
        works = list(of_chunk)
        views = "-".join(str(view) for work in works for view in work.views)
        future = client.submit(
            make_chunk,
            recipe.name,
            works,
            key=f"extract-chunk-{chunk}-views-{views}-of-{recipe.name}",
            pure=False,
            resources=resources,
        )
        futures[future] = chunk
    for future in _as_they_come(client, futures):
        try:
            made = future.result()
        except KilledWorker as error:
            raise ExtractError(
                f"chunk {futures[future]} killed its workers: {error}. Often it is their "
                "memory: a smaller extract.chunk_samples (of a new cache) or --batch-size takes "
                "less. What was made is kept; the same command goes on"
            ) from error
        yield from made
        future.release()


def _as_they_come(client: Client, futures: Iterable[Future[Made]]) -> Iterator[Future[Made]]:
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
            if workers_of(client):
                there = time.monotonic()
            elif time.monotonic() - there > _PATIENCE_SEC:
                raise ExtractError(
                    f"all workers are gone, and for {duration(_PATIENCE_SEC)} none came back. What "
                    "was made is kept; the same command goes on once there are workers"
                ) from None


def resources_for(workers: Mapping[str, Any], device: str | None) -> dict[str, float]:
    """What a task asks for: a GPU where workers offer any; else waiting for one would be silent.

    Raises:
        ExtractError: GPUs are asked for, and no worker offers one.
    """
    offering = [name for name, facts in workers.items() if facts["resources"].get(GPU)]
    if offering and (device is None or device.startswith("cuda")):
        return {GPU: 1 / TASKS}
    if device is not None and device.startswith("cuda"):
        raise ExtractError(
            f"none of the {plural(len(workers), 'worker')} offers the resource {GPU}: start them "
            f"as `dask worker ADDR --nthreads {TASKS} --resources {GPU}=1`, one for each GPU, or "
            "give --device cpu"
        )
    return {}


def workers_of(client: Client) -> dict[str, Any]:
    """Facts about every worker by its address; by default a client asks for a few only."""
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    return workers
