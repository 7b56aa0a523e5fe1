"""Processes that end with the one that started them, and leave Ctrl-C to it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process, resource_tracker
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Answer = TypeVar("Answer")


def exit_with_parent() -> None:
    """Make this process exit as soon as its parent is gone, even if that one was killed.

    The initializer of all processes: they otherwise wait for work for ever.
    """
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


@contextmanager
def ignoring_interrupts() -> Iterator[None]:
    """Have processes that this thread starts in the block ignore Ctrl-C, from their first moment.

    A terminal sends it to all of them. They inherit what the thread blocks, and so do theirs; this
    process hears it as ever, and has to end them.
    """
    resource_tracker.ensure_running()  # multiprocessing unblocks the signal where it starts that
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ProcessPool(ProcessPoolExecutor):
    """Spawned processes that end with this one, and leave Ctrl-C to it."""

    def __init__(self, size: int) -> None:
        super().__init__(size, mp_context=get_context("spawn"), initializer=exit_with_parent)

    def submit(
        self,
        function: Callable[Given, Answer],
        /,
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Future[Answer]:
        """Have a process call a function; it may be started for that."""
        with ignoring_interrupts():
            return super().submit(function, *args, **kwargs)
