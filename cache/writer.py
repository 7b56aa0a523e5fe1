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
import zarr
from numpy.typing import NDArray

from cache.checks import check_arrays, check_fields
from cache.codecs import quiet_zarr
from cache.commits import Commits, publish, read_commits
from cache.create import make_cache, remove_temporaries
from cache.growth import add_fields, add_samples, add_views
from cache.identity import check_identity
from cache.layout import (
    CHECKSUM_BYTES,
    Layout,
    chunk_key,
    on_full_disk,
    read_file,
    sync,
    written_folders,
)
from cache.lock import CacheLock
from cache.manifest import settle_manifest
from cache.metadata import read_layout
from cache.schema import CacheError, DamagedError, Field, status_name


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

    def __init__(self, path: Path, lock: CacheLock) -> None:
        """Read what stands and sweep what does not count.

        Args:
            path: the cache.
            lock: its lock, held.
        """
        self._lock = lock
        with on_full_disk(path, "its growth cannot be finished, what was there stands"):
            settle_manifest(path)
        self._layout = read_layout(path)
        commits = read_commits(self._layout)
        self._present = commits.present
        self._sweep(commits)

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
        chosen = self._check_views(chunk, arrays, views)
        pending = [name for name, there in self._present.items() if not there[chunk, chosen].all()]
        check_fields(self._layout, chunk, arrays.keys(), pending)
        standing = self._standing_statuses(chunk, chosen, arrays.keys())
        check_arrays(self._layout, chunk, arrays, len(chosen), standing)
        lost = f"chunk {chunk} is not written, what was committed before is safe and not made again"
        with on_full_disk(self._layout.path, lost):
            checksums = self._write_files(chunk, arrays, chosen)
            publish(
                self._layout,
                chunk,
                chosen,
                checksums,
                statuses={
                    name: array
                    for name, array in arrays.items()
                    if self._layout.fields[name].is_status
                },
                failures=failures or {},
            )
        for name in arrays:
            self._present[name][chunk, chosen] = True

    def _write_files(
        self, chunk: int, arrays: Mapping[str, NDArray[Any]], views: Sequence[int]
    ) -> dict[str, tuple[int, int]]:
        """Write the chunk files through zarr; key → bytes of the file, crc32c of its data."""
        start = chunk * self._layout.chunk_samples
        checksums = {}
        for name in arrays:
            field = self._layout.fields[name]
            array = self._array(field)
            for position, view in enumerate(views):
                rows = np.ascontiguousarray(
                    arrays[name][:, position : position + 1], field.numpy_dtype
                )
                if field.codec is not None:
                    rows = field.codec.stored(rows)
                array[start : start + len(rows), view : view + 1] = rows
                key = chunk_key(field, chunk, view)
                data, checksum = read_file(self._layout.path / key)
                if not self._layout.decode(field, data).tobytes().startswith(rows.tobytes()):
                    raise DamagedError(f"{self._layout.path / key} is not what was written to it")
                checksums[key] = (len(data) + CHECKSUM_BYTES, checksum)
        # The bytes first, then the names: a commit must not reach the disk before either.
        sync(self._layout.path / key for key in checksums)
        sync(self._layout.path / name for name in arrays)
        return checksums

    def _array(self, field: Field) -> zarr.Array[Any]:
        with quiet_zarr():
            array = zarr.open_array(self._layout.path / field.name, mode="r+", zarr_format=3)
        # A chunk that holds nothing but fill values is written too: its commit names its file.
        return array.with_config({"write_empty_chunks": True})

    def _standing_statuses(
        self, chunk: int, views: Sequence[int], fields: Collection[str]
    ) -> dict[str, NDArray[np.uint8]]:
        """The statuses that fields go by and that are written already; (samples, views) each."""
        layout = self._layout
        names = {status_name(name, layout.fields) for name in fields} - set(fields)
        return {
            name: np.stack(
                [
                    layout.decode(
                        layout.fields[name],
                        read_file(layout.path / chunk_key(layout.fields[name], chunk, view))[0],
                    )
                    for view in views
                ],
                axis=1,
            )[: len(layout.sample_range(chunk))]
            for name in names
        }

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

    def _sweep(self, commits: Commits) -> None:
        """Remove what interrupted writers left: half-written files, chunk files without commit."""
        root = self._layout.path
        for name, field in self._layout.fields.items():
            present = np.argwhere(commits.present[name]).tolist()
            kept = {chunk_key(field, chunk, view) for chunk, view in present}
            for entry in list(os.scandir(root / name)):
                if entry.name.startswith("c.") and f"{name}/{entry.name}" not in kept:
                    Path(entry).unlink()
        for folder in written_folders(self._layout):
            remove_temporaries(folder)
