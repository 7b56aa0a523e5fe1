"""Work beside the main thread: what comes next is got ready, what is done is put away.

Decoding, copying and writing release Python's lock, so they run while the networks compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from threading import Event
from typing import TypeVar

import torch

Item = TypeVar("Item")
_DEPTH = 2  # items that are ready, or to be put away: memory bounds it


def ahead(items: Generator[Item, None, None]) -> Iterator[Item]:
    """Pass items on, the next ones being made in another thread meanwhile; errors come in turn.

    That thread computes with one thread of torch: the others are the networks'.
    """
    with closing(items), ThreadPoolExecutor(1, "ahead", torch.set_num_threads, (1,)) as thread:
        coming: deque[Future[list[Item]]] = deque()
        try:
            coming.extend(thread.submit(_next, items) for _ in range(_DEPTH))
            while coming:
                for item in coming.popleft().result():
                    coming.append(thread.submit(_next, items))
                    yield item
        finally:
            for future in coming:
                future.cancel()


def _next(items: Iterator[Item]) -> list[Item]:
    """The next item, or nothing at the end."""
    for item in items:
        return [item]
    return []


@contextmanager
def behind() -> Iterator[Callable[[Callable[[], None]], None]]:
    """A thread that carries out calls one after another, in order, beside the `with` block.

    An error of a call is raised by the next one that is asked for, or at the end of the block;
    nothing that comes after the call is carried out.

    Yields:
        what has a function called; it waits where much is to be done already.
    """
    thread = ThreadPoolExecutor(1, "behind", torch.set_num_threads, (1,))
    going: deque[Future[None]] = deque()
    failed = Event()

    def carry_out(function: Callable[[], None]) -> None:
        if failed.is_set():  # it was asked for before that was known
            return
        try:
            function()
        except BaseException:
            failed.set()
            raise

    def call(function: Callable[[], None]) -> None:
        while len(going) >= _DEPTH:
            going.popleft().result()
        going.append(thread.submit(carry_out, function))

    try:
        yield call
        while going:
            going.popleft().result()
    finally:
        thread.shutdown(cancel_futures=True)
