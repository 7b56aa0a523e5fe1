"""How far an extraction by many workers is: views by worker, failures, and the time left."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

from cache import StagedChunk
from stages.progress import Meter
from stages.wording import plural

_FORGOTTEN_SEC = 300.0  # since a worker was heard of: it is gone


class _Pace:
    """Of one worker, from when it was first heard of: until then it was loading."""

    def __init__(self, now: float) -> None:
        self._begun = self.heard = now
        self._views = 0

    def count(self, views: int, now: float) -> None:
        """Count views that it made since it was last heard of."""
        self._views += views
        self.heard = now

    @property
    def rate(self) -> float | None:
        """Views a second, once there are any after the first."""
        return self._views / (self.heard - self._begun) if self._views else None


class Progress:
    """Counts views of chunks that are made and of those under way."""

    def __init__(self, meter: Meter) -> None:
        self._meter, self._lock = meter, threading.Lock()
        self._under_way: Counter[int] = Counter()  # views by chunk
        self._paces: dict[tuple[str, int], _Pace] = {}  # by host and process
        self._failed = 0

    def hear(self, event: tuple[float, Any]) -> None:
        """A worker tells how far a chunk is."""
        told = event[1]
        with self._lock:
            more = told["views"] - self._under_way[told["chunk"]]
            if more > 0:  # else another worker begins it again
                self._under_way[told["chunk"]] += more
                self._count(tuple(told["by"]), more)
                self._meter.advance(more)

    def finish(self, staged: StagedChunk, rows: int, workers: int) -> None:
        """A chunk of so many rows is committed."""
        with self._lock:
            self._failed += len(staged.failures)
            told = min(self._under_way[staged.chunk], rows)
            self._under_way[staged.chunk] -= told
            rest = rows - told
            self._count((staged.maker["host"], staged.maker["pid"]), rest)
            self._meter.note(f"{plural(workers, 'worker')}{self._rates()}, {self._failed} failed")
            self._meter.advance(rest)

    def _count(self, worker: tuple[str, int], views: int) -> None:
        now = time.monotonic()
        if worker in self._paces:
            self._paces[worker].count(views, now)
        else:
            self._paces[worker] = _Pace(now)

    def _rates(self) -> str:
        """Of the slowest and the fastest that are there, in words."""
        since = time.monotonic() - _FORGOTTEN_SEC
        rates = sorted(
            pace.rate
            for pace in self._paces.values()
            if pace.rate is not None and pace.heard >= since
        )
        if not rates:
            return ""
        ends = dict.fromkeys(f"{rate:.1f}" for rate in (rates[0], rates[-1]))
        return f" with {' to '.join(ends)} views/s each"
