"""Students trained side by side, each in a process: small networks do not fill several cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import active_children, get_context, managers
from queue import Empty, Queue

from pipeline.processes import ProcessPool, exit_with_parent, ignoring_interrupts
from pipeline.resuming import Past
from pipeline.training import steps_in_epoch
from stages.progress import Meter, meter, meters
from stages.student_training import Job, train_student

Ended = Callable[[int, "Future[Past]"], object]
Tick = int | str  # steps done more; or how an epoch went


def steps_of(job: Job) -> int:
    """Steps of a whole training."""
    recipe = job.run.distill.train
    return recipe.epochs * steps_in_epoch(job.part.num_usable, recipe.batch_size)


def run_side_by_side(jobs: Sequence[Job]) -> list[Past]:
    """Train all of them at once; the first one that fails ends all."""
    pasts: dict[int, Past] = {}

    def end(index: int, future: Future[Past]) -> None:
        pasts[index] = future.result()

    names, totals = [f"training {job.name}" for job in jobs], [steps_of(job) for job in jobs]
    with meters(names, totals=totals, unit="steps") as counters:
        train_each(jobs, len(jobs), lambda at, tick: _count(counters[at], tick), end)
    return [pasts[index] for index in range(len(jobs))]


def run_many(jobs: Sequence[Job], at_once: int, on_end: Ended) -> None:
    """Train each, with one bar over all of them; one that fails is an answer like any other.

    Args:
        jobs: the students.
        at_once: as many as run together.
        on_end: is given each as it ends, by its number.
    """
    ended = 0
    with meter("training", total=sum(map(steps_of, jobs)), unit="steps") as counter:

        def end(index: int, future: Future[Past]) -> None:
            nonlocal ended
            ended += 1
            counter.note(f"{ended} of {len(jobs)} students done")
            on_end(index, future)

        def count(_index: int, tick: Tick) -> None:
            if isinstance(tick, int):
                counter.advance(tick)

        train_each(jobs, at_once, count, end)


def _count(counter: Meter, tick: Tick) -> None:
    if isinstance(tick, int):
        counter.advance(tick)
    else:
        counter.note(tick)


def train_each(
    jobs: Sequence[Job], at_once: int, on_tick: Callable[[int, Tick], object], on_end: Ended
) -> None:
    """Train each in one of so many processes, in the order given.

    Args:
        jobs: the students.
        at_once: processes.
        on_tick: is told of which job, by its number, how many steps were done more, or how an
            epoch went.
        on_end: is given each as it ends; what it raises ends all.
    """
    with ExitStack() as stack:
        manager = managers.SyncManager(ctx=get_context("spawn"))
        with ignoring_interrupts():
            manager.start(initializer=exit_with_parent)
        ticks: Queue[tuple[int, Tick]] = stack.enter_context(manager).Queue()
        pool = stack.enter_context(ProcessPool(at_once))
        stack.enter_context(_ending_all_on_error())
        waiting = list(enumerate(jobs))
        running: dict[int, Future[Past]] = {}
        while waiting or running or not ticks.empty():
            while waiting and len(running) < at_once:  # none waits in the pool
                index, job = waiting.pop(0)
                running[index] = _started(pool, job, index, ticks)
            for index in [index for index, future in running.items() if future.done()]:
                on_end(index, running.pop(index))
            try:
                on_tick(*ticks.get(timeout=0.2))
            except Empty:
                continue


def _started(
    pool: ProcessPool, job: Job, index: int, ticks: Queue[tuple[int, Tick]]
) -> Future[Past]:
    """Begin a training; where a process died before, it has failed already."""
    try:
        return pool.submit(_in_process, job, index, ticks)
    except BrokenProcessPool as error:
        failed: Future[Past] = Future()
        failed.set_exception(error)
        return failed


def _in_process(job: Job, index: int, ticks: Queue[tuple[int, Tick]]) -> Past:
    """Train one student, telling what became of which one."""

    def tell(tick: Tick) -> None:
        ticks.put((index, tick))

    return train_student(job, tell, tell)


@contextmanager
def _ending_all_on_error() -> Iterator[None]:
    """End the processes where one fails or Ctrl-C comes: else what still trains is waited for."""
    try:
        yield
    except BaseException:
        for process in active_children():
            process.terminate()
        raise
