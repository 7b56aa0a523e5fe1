"""Progress of long work: share done, rate, time left; a line now and then where no terminal is.

Also the console that all stages print to.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from stages.wording import printable

Item = TypeVar("Item")
_LINE_EVERY_SEC = 10.0


class PlainConsole(Console):
    """Prints text as it is: names and reasons come from elsewhere and may hold anything."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn text into what is printed; rich calls it for lines and for cells of tables."""
        return super().render_str(printable(text), **options)


console = PlainConsole(stderr=True)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{(task.speed or 0) / task.fields['scale']:.1f} {task.fields['unit']}/s")


class Meter:
    """Counts work done; `advance` is all that a stage needs."""

    def __init__(self, bar: Progress, what: str, total: int, unit: str, scale: int = 1) -> None:
        self._bar, self._what, self._total, self._unit = bar, what, total, unit
        self._scale = scale  # how many are one of the unit
        self._task = bar.add_task(what, total=total, unit=unit, scale=scale)
        self._printed = time.monotonic()
        self._started: float | None = None  # the first item ends the start-up: no measure of it
        self._first = self._done = 0
        self._note = ""

    @property
    def rate(self) -> float:
        """Items per second since the first one."""
        if self._started is None:
            return 0.0
        return (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def note(self, text: str) -> None:
        """Say something beside the count, from now on."""
        self._note = f", {text}"
        self._bar.update(self._task, description=f"{self._what}{self._note}")

    def advance(self, amount: int = 1) -> None:
        """Count `amount` items as done."""
        self._done += amount
        self._bar.advance(self._task, amount)
        now = time.monotonic()
        if self._started is None:
            self._started, self._first = now, self._done
        finished = self._done == self._total
        if not console.is_terminal and (finished or now - self._printed >= _LINE_EVERY_SEC):
            self._printed = now
            done, total = (self._in_unit(count) for count in (self._done, self._total))
            line = f"{self._what}: {done}/{total} {self._unit}"
            if self.rate > 0:
                left = (self._total - self._done) / self.rate
                line += f", {self.rate / self._scale:.1f} {self._unit}/s, {left:.0f} s left"
            console.print(line + self._note)

    def _in_unit(self, count: int) -> str:
        return str(count) if self._scale == 1 else f"{count / self._scale:.1f}"


@contextmanager
def meters(whats: Sequence[str], *, totals: Sequence[int], unit: str) -> Iterator[list[Meter]]:
    """Bars with rate and time left on a terminal, lines every 10 s elsewhere."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        yield [Meter(bar, what, total, unit) for what, total in zip(whats, totals, strict=True)]


@contextmanager
def meter(what: str, *, total: int, unit: str) -> Iterator[Meter]:
    """One bar; see `meters`."""
    with meters([what], totals=[total], unit=unit) as counters:
        yield counters[0]


@contextmanager
def byte_meter(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of bytes, which several threads may advance; see `meters`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    lock = threading.Lock()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        counter = Meter(bar, what, total, "MB", scale=10**6)

        def advance(amount: int) -> None:
            with lock:
                counter.advance(amount)

        yield advance


def track(items: Iterable[Item], *, total: int, what: str, unit: str) -> Iterator[Item]:
    """Pass items on, counting them."""
    with meter(what, total=total, unit=unit) as counter:
        for item in items:
            yield item
            counter.advance()
