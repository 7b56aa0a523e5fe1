"""The proof of the chunks: their files against the commits, their values against the statuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.checks import are_statuses, broken_promise, is_empty, wrong_rows
from cache.commits import Commit, Commits, commit_file, count_statuses
from cache.findings import Finding, Kind, find
from cache.layout import Layout, chunk_key, read_file, stored_fill
from cache.schema import STATUS_FIELD, CacheError, Field, Status, status_name


class ChunkProof:
    """Checks chunk after chunk, and counts what they hold.

    Attributes:
        rows: number of rows by status, so far.
    """

    def __init__(self, layout: Layout, commits: Commits, files: Mapping[str, int]) -> None:
        """Check nothing yet.

        Args:
            layout: the cache.
            commits: what its chunk files must be.
            files: path inside the cache → size, of the files that are there.
        """
        self._layout = layout
        self._commits = commits
        self._files = files
        self._counts: dict[tuple[str, int, int], dict[str, int]] = {}

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows by status in the chunks that were checked and could be read."""
        return _total(of for (name, *_), of in self._counts.items() if name == STATUS_FIELD.name)

    def check(self, chunk: int, view: int) -> Iterator[Finding]:
        """Read one view of a chunk, file by file, and yield what is wrong."""
        rows = len(self._layout.sample_range(chunk))
        fields = self._layout.fields
        statuses: dict[str, NDArray[np.uint8]] = {}
        # The statuses first: they say what the values of the other files must be.
        for field in sorted(fields.values(), key=lambda field: not field.is_status):
            if not self._commits.present[field.name][chunk, view]:
                continue
            try:
                values = self._read(field, chunk, view)
                if field.is_status:
                    statuses[field.name] = _checked_statuses(values[:rows])
                    counts = count_statuses(statuses[field.name])
                    self._counts[field.name, chunk, view] = counts
                status = statuses.get(status_name(field.name, fields))
                self._check_values(field, chunk, values, status)
            except (CacheError, OSError) as error:
                key = chunk_key(field, chunk, view)
                what = str(error).removeprefix(f"{self._layout.path / key} ")
                yield find(self._layout.path, Kind.CHUNK, key, what, chunk=chunk, view=view)

    def check_counts(self, commit: Commit) -> Iterator[Finding]:
        """Hold the counts of a commit against the statuses of its chunk; after `check`."""
        held: dict[str, list[dict[str, int] | None]] = {}
        for name, view in sorted(commit.checksums):
            if self._layout.fields[name].is_status:
                held.setdefault(name, []).append(self._counts.get((name, commit.chunk, view)))
        for name in sorted(held.keys() | commit.statuses.keys()):
            read = [counts for counts in held.get(name, []) if counts is not None]
            told, total = commit.statuses.get(name), _total(read)
            if len(read) == len(held.get(name, [])) and told != total:
                what = f"counts the statuses {told} in {name}; its chunk holds {total}"
                file = commit_file(commit.path)
                yield find(self._layout.path, Kind.COMMIT, file, what, chunk=commit.chunk)

    def _read(self, field: Field, chunk: int, view: int) -> NDArray[Any]:
        """Read and decode a whole chunk file, padding and all; (samples in a chunk, ...)."""
        key = chunk_key(field, chunk, view)
        size, expected = self._files.get(key), int(self._commits.sizes[field.name][chunk, view])
        if size is None:
            raise CacheError("is missing")
        if size != expected:
            raise CacheError(f"has {size} bytes, committed {expected}")
        data, actual = read_file(self._layout.path / key)
        committed = int(self._commits.checksums[field.name][chunk, view])
        if actual != committed:
            raise CacheError(f"is damaged: its crc32c is {actual:08x}, committed {committed:08x}")
        return self._layout.decode(field, data)

    def _check_values(
        self, field: Field, chunk: int, values: NDArray[Any], status: NDArray[np.uint8] | None
    ) -> None:
        samples = self._layout.sample_range(chunk)
        empty = stored_fill(field)
        if not is_empty(values[len(samples) :], empty).all():
            raise CacheError(f"holds other values than {empty:g} behind sample {samples[-1]}")
        if status is None:
            return
        wrong = wrong_rows(field, values[: len(samples)], status, empty)
        if wrong.any():
            row = int(np.argmax(wrong))
            raise CacheError(
                f"holds {int(wrong.sum())} rows that break their status's word; that of sample "
                f"{samples[row]} {broken_promise(status[row], empty)}"
            )


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    every = list(counts)
    return {status.label: sum(of[status.label] for of in every) for status in Status}


def _checked_statuses(status: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if not are_statuses(status):
        raise CacheError(f"holds the statuses {np.unique(status).tolist()}, not 1 … 3")
    return status
