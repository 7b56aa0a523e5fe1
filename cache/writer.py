"""Writing a cache, one chunk of samples at a time; a chunk exists once its commit stands."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import zarr
from numpy.typing import NDArray

from cache.checks import check_arrays
from cache.codecs import quiet_zarr
from cache.commits import Commits, publish, read_commits
from cache.create import make_cache, remove_temporaries
from cache.layout import (
    CHECKSUM_BYTES,
    METADATA,
    Layout,
    chunk_key,
    on_full_disk,
    read_file,
    sync,
    written_folders,
)
from cache.lock import CacheLock
from cache.manifest import replace_files, settle_manifest
from cache.metadata import read_layout
from cache.schema import (
    STATUS_FIELD,
    CacheError,
    DamagedError,
    Field,
    check_identity,
)


@dataclass(frozen=True)
class PendingChunk:
    """Work to be done: the views of one chunk of samples that have no commit yet."""

    chunk: int
    views: tuple[int, ...]


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
        with on_full_disk(path, "adding views to it cannot be finished, what was there stands"):
            settle_manifest(path)
        self._layout = read_layout(path)
        commits = read_commits(self._layout)
        self._written = commits.rows.copy()
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

    def pending(self) -> list[PendingChunk]:
        """What is still to be made, in the order of the chunks."""
        todo = ((chunk, np.flatnonzero(~row)) for chunk, row in enumerate(self._written))
        return [PendingChunk(chunk, tuple(views.tolist())) for chunk, views in todo if len(views)]

    def add_views(self, count: int) -> None:
        """Make room for more views; no chunk file is touched.

        Raises:
            CacheError: `count` is less than 1, or the disk is full.
        """
        if count < 1:
            raise CacheError(f"{count} views to add, expected at least 1")
        # `status` last: it says how many views there are, so an interruption leaves the old number.
        fields = sorted(self._layout.fields.values(), key=lambda f: f == STATUS_FIELD)
        names = [f"{field.name}/{METADATA}" for field in fields]
        grown = {name: self._with_views(name, self.num_views + count) for name in names}
        with on_full_disk(self._layout.path, "no views are added, what was there stands"):
            replace_files(self._layout.path, grown)
        self._layout = read_layout(self._layout.path)
        self._written = np.pad(self._written, ((0, 0), (0, count)))

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
            arrays: every field of the cache, (samples of the chunk, views, ...) each, of the
                field's dtype. Where `status` is valid all floats are finite; where it is not they
                are NaN, except `views`, which may tell what was tried.
            views: which views; all pending ones of the chunk by default.
            failures: sample id → why its rows are not valid, for people; kept in the commit.

        Raises:
            CacheError: the arrays do not fit, some rows are committed already, or the disk is full.
        """
        chosen = self._check_views(chunk, views)
        check_arrays(self._layout, chunk, arrays, len(chosen))
        lost = f"chunk {chunk} is not written, what was committed before is safe and not made again"
        with on_full_disk(self._layout.path, lost):
            checksums = self._write_files(chunk, arrays, chosen)
            publish(
                self._layout,
                chunk,
                chosen,
                checksums,
                statuses=arrays[STATUS_FIELD.name],
                failures=failures or {},
            )
        self._written[chunk, chosen] = True

    def _write_files(
        self, chunk: int, arrays: Mapping[str, NDArray[Any]], views: Sequence[int]
    ) -> dict[str, tuple[int, int]]:
        """Write the chunk files through zarr; key → bytes of the file, crc32c of its data."""
        samples = self.sample_range(chunk)
        checksums = {}
        for name, field in self._layout.fields.items():
            array = self._array(field)
            for position, view in enumerate(views):
                rows = np.ascontiguousarray(
                    arrays[name][:, position : position + 1], field.numpy_dtype
                )
                if field.codec is not None:
                    rows = field.codec.stored(rows)
                array[samples.start : samples.stop, view : view + 1] = rows
                key = chunk_key(field, chunk, view)
                data, checksum = read_file(self._layout.path / key)
                if not self._layout.decode(field, data).tobytes().startswith(rows.tobytes()):
                    raise DamagedError(f"{self._layout.path / key} is not what was written to it")
                checksums[key] = (len(data) + CHECKSUM_BYTES, checksum)
        # The bytes first, then the names: a commit must not reach the disk before either.
        sync(self._layout.path / key for key in checksums)
        sync(self._layout.path / name for name in self._layout.fields)
        return checksums

    def _with_views(self, name: str, views: int) -> bytes:
        """An array's metadata with another size of the view axis; zarr's `resize` does no more."""
        document = json.loads((self._layout.path / name).read_bytes())
        document["shape"][1] = views
        return json.dumps(document, indent=2).encode()

    def _array(self, field: Field) -> zarr.Array[Any]:
        with quiet_zarr():
            array = zarr.open_array(self._layout.path / field.name, mode="r+", zarr_format=3)
        # A chunk that holds nothing but fill values is written too: its commit names its file.
        return array.with_config({"write_empty_chunks": True})

    def _check_views(self, chunk: int, views: Sequence[int] | None) -> list[int]:
        self.sample_range(chunk)
        written = self._written[chunk]
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
