"""Work beside the main thread: what comes next is got ready, what is done is put away.

Decoding, copying and writing release Python's lock, so they run while the networks compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Self, TypeVar

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


class Behind:
    """A thread that carries out calls one after another, in order; a context manager.

    An error of a call is raised by the next `call`, or at the end; nothing that comes after the
    call is carried out.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "behind", torch.set_num_threads, (1,))
        self._going: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wait for what was begun; what was not is dropped after an error."""
        try:
            while error is None and self._going:
                self._going.popleft().result()
        finally:
            self._thread.shutdown(cancel_futures=True)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called; waits where much is to be done already."""
        while len(self._going) >= _DEPTH:
            self._going.popleft().result()
        self._going.append(self._thread.submit(function))
