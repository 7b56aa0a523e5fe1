"""Writing a cache, one chunk of samples at a time; a chunk exists once its commit stands."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cache.checks import check_fields
from cache.commits import Commits, publish, read_commits
from cache.create import make_cache, remove_temporaries
from cache.growth import add_fields, add_samples, add_views
from cache.identity import check_identity
from cache.layout import Layout, chunk_key, on_full_disk, written_folders
from cache.lock import CacheLock
from cache.manifest import settle_manifest
from cache.metadata import read_layout
from cache.schema import CacheError, Field
from cache.staging import (
    StagedChunk,
    close_staging,
    move_in,
    open_staging,
    stage_chunk,
)


@dataclass(frozen=True)
class PendingChunk:
    """Work to be done: views of one chunk of samples that lack the same fields."""

    chunk: int
    views: tuple[int, ...]
    fields: tuple[str, ...]


def create_cache(
    path: str | os.PathLike[str],
    *,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    samples: pa.Table,
    fields: Sequence[Field],
    views: int,
    chunk_samples: int,
    projection: Mapping[str, NDArray[np.float32]],
) -> CacheWriter:
    """Make an empty cache and open it for writing.

    It is built in a folder beside its place and renamed into it: a half-made one never appears.

    Args:
        path: where it shall stand; nothing, or an empty folder.
        identity: what decides the value of a row, plain JSON, with `format_version`.
        provenance: what else is worth knowing (versions, commands, accuracies), plain JSON.
        samples: the samples table, in the order in which the samples shall stand.
        fields: the arrays; `status`, `input_digest` and `views` are added by themselves.
        views: size of the view axis, ≥ 1.
        chunk_samples: samples in one chunk, ≥ 1.
        projection: the fitted projections by name, float32.

    Raises:
        CacheError: the place is taken, an argument is not as described, or the disk is full.
    """
    with on_full_disk(Path(path), "it is not made"):
        lock = make_cache(
            Path(path),
            identity=identity,
            provenance=provenance,
            samples=samples,
            fields=fields,
            views=views,
            chunk_samples=chunk_samples,
            projection=projection,
        )
    return CacheWriter(Path(path), lock)


def open_writer(path: str | os.PathLike[str], *, identity: Mapping[str, Any]) -> CacheWriter:
    """Open a cache to go on with it; removes what an interrupted process left behind.

    Raises:
        IdentityMismatch: the cache was made from other inputs than `identity`.
        CacheError: there is no cache, it is damaged, or another process is writing it.
    """
    folder = Path(path)
    check_identity(folder, read_layout(folder).identity, identity)
    lock = CacheLock(folder)
    try:
        return CacheWriter(folder, lock)
    except BaseException:
        lock.release()
        raise


class CacheWriter:
    """The one process that may add rows to a cache; made by `create_cache` and `open_writer`.

    A context manager: leaving it lets go of the lock. Nothing is lost by not leaving it.
    """

    def __init__(self, path: Path, lock: CacheLock, *, keep: Collection[str] = ()) -> None:
        """Read what stands and sweep what does not count.

        Args:
            path: the cache.
            lock: its lock, held.
            keep: chunk files that stay though no commit names them.
        """
        self._lock = lock
        with on_full_disk(path, "its growth cannot be finished, what was there stands"):
            settle_manifest(path)
        self._layout = read_layout(path)
        commits = read_commits(self._layout)
        self._present = commits.present
        self._sweep(commits, keep)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let go of the lock."""
        self.close()

    def close(self) -> None:
        """Let go of the lock; a second call does nothing."""
        if self._lock.held:
            close_staging(self._layout.path)
        self._lock.release()

    @property
    def layout(self) -> Layout:
        """The cache's metadata: path, fields, numbers of samples and views."""
        return self._layout

    @property
    def num_views(self) -> int:
        """Size of the view axis."""
        return self._layout.num_views

    @property
    def num_chunks(self) -> int:
        """Number of chunks along the sample axis."""
        return self._layout.num_chunks

    def sample_range(self, chunk: int) -> range:
        """The samples of a chunk.

        Raises:
            CacheError: there is no such chunk.
        """
        if not 0 <= chunk < self.num_chunks:
            raise CacheError(f"{self._layout.path} has no chunk {chunk}: 0 … {self.num_chunks - 1}")
        return self._layout.sample_range(chunk)

    def pending(self, fields: Iterable[str] | None = None) -> list[PendingChunk]:
        """What is still to be made, in the order of the chunks.

        Args:
            fields: of which fields; of all by default.
        """
        names = list(self._layout.fields if fields is None else fields)
        missing = ~np.stack([self._present[name] for name in names], axis=-1)
        todo = []
        for chunk in np.flatnonzero(missing.any(axis=(1, 2))).tolist():
            views_by_fields: dict[tuple[str, ...], list[int]] = {}
            for view, absent in enumerate(missing[chunk]):
                if absent.any():
                    views_by_fields.setdefault(tuple(compress(names, absent)), []).append(view)
            todo += [
                PendingChunk(chunk, tuple(views), absent)
                for absent, views in views_by_fields.items()
            ]
        return todo

    def add_views(self, count: int) -> None:
        """Make room for more views; no chunk file is touched.

        Raises:
            CacheError: `count` is less than 1 or too large, or the disk is full.
        """
        self._grow(partial(add_views, count=count))

    def add_samples(self, samples: pa.Table) -> None:
        """Make room for more samples, behind the others; no chunk file is touched.

        They begin a chunk of their own, though the last one before them may not be full.

        Args:
            samples: a table with the columns and types of the cache's own, and other ids.

        Raises:
            CacheError: the table is none of these or too long, or the disk is full.
        """
        self._grow(partial(add_samples, samples=samples))

    def add_fields(
        self, fields: Sequence[Field], teachers: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """Make room for more fields, all rows of which are pending; no chunk file is touched.

        Args:
            fields: which; those of a teacher have names that begin with the teacher's, and one
                of them is `<teacher>/status`.
            teachers: name → what decides the values of its fields, for teachers that are added.

        Raises:
            CacheError: a field is there already, they do not fit the cache, or the disk is full.
        """
        self._grow(partial(add_fields, fields=fields, teachers=teachers or {}))

    def _grow(self, change: Callable[[Layout], None]) -> None:
        with on_full_disk(self._layout.path, "it does not grow, what was there stands"):
            change(self._layout)
        self._layout = read_layout(self._layout.path)
        self._present = read_commits(self._layout).present

    def write_chunk(
        self,
        chunk: int,
        arrays: Mapping[str, NDArray[Any]],
        views: Sequence[int] | None = None,
        *,
        failures: Mapping[str, str] | None = None,
    ) -> None:
        """Write all rows of a chunk of samples in some views, and commit them.

        Until the commit, which comes last, nothing of it exists. After a failure open the cache
        again: what stands is then read from the disk.

        Args:
            chunk: index along the sample axis.
            arrays: field → (samples of the chunk, views, ...), of the field's dtype: fields that
                the chunk does not hold yet in any of the views. All that go by one status come
                with it. Where that is valid all floats are finite; where it is not they are NaN,
                except `views`, which may tell what was tried.
            views: which views; all in which the chunk lacks one of the fields by default.
            failures: sample id → why its rows are not valid, for people; kept in the commit.

        Raises:
            CacheError: the arrays do not fit, some rows are committed already, or the disk is full.
        """
        chosen = self._check(chunk, arrays.keys(), views)
        self.commit(stage_chunk(self._layout, chunk, arrays, chosen, failures or {}))

    def commit(self, staged: StagedChunk) -> None:
        """Take in a chunk that this or another process has staged.

        Raises:
            CacheError: it does not fit, rows of it are committed already, or the disk is full.
        """
        self._check(staged.chunk, staged.fields, staged.views)
        lost = f"chunk {staged.chunk} is not written, what was committed before is safe"
        with on_full_disk(self._layout.path, lost):
            move_in(self._layout, staged)
            publish(self._layout, staged)
        for name in staged.fields:
            self._present[name][staged.chunk, list(staged.views)] = True

    def _check(self, chunk: int, fields: Collection[str], views: Sequence[int] | None) -> list[int]:
        """The views that are to be written; none of these fields stands in any of them."""
        chosen = self._check_views(chunk, fields, views)
        pending = [name for name, there in self._present.items() if not there[chunk, chosen].all()]
        check_fields(self._layout, chunk, fields, pending)
        return chosen

    def _check_views(
        self, chunk: int, fields: Iterable[str], views: Sequence[int] | None
    ) -> list[int]:
        self.sample_range(chunk)
        names = [name for name in fields if name in self._present] or list(self._present)
        written = np.any([self._present[name][chunk] for name in names], axis=0)
        chosen = np.flatnonzero(~written).tolist() if views is None else [int(v) for v in views]
        if not chosen:
            raise CacheError(f"chunk {chunk} of {self._layout.path} has no pending views")
        if len(set(chosen)) != len(chosen) or not all(0 <= v < self.num_views for v in chosen):
            raise CacheError(f"views {chosen} must be different ones of 0 … {self.num_views - 1}")
        standing = [view for view in chosen if written[view]]
        if standing:
            raise CacheError(
                f"chunk {chunk} of {self._layout.path} is already committed for views {standing}: "
                "a row is written once"
            )
        return chosen

    def _sweep(self, commits: Commits, keep: Collection[str]) -> None:
        """Remove what interrupted writers left: half-written files, chunk files without commit."""
        root = self._layout.path
        for name, field in self._layout.fields.items():
            present = np.argwhere(commits.present[name]).tolist()
            kept = {chunk_key(field, chunk, view) for chunk, view in present}
            for entry in list(os.scandir(root / name)):
                key = f"{name}/{entry.name}"
                if entry.name.startswith("c.") and key not in kept and key not in keep:
                    Path(entry).unlink()
        for folder in written_folders(self._layout):
            remove_temporaries(folder)
        open_staging(root)
