"""Reading a cache: rows in any order, copied straight out of the mapped chunk files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from cache.chunkmap import ChunkMaps
from cache.commits import read_commits
from cache.layout import (
    CHECKSUM_BYTES,
    METADATA,
    PROJECTION,
    SAMPLES,
    Layout,
    own_path,
    read_array_shape,
    read_file,
    read_layout,
)
from cache.schema import (
    STATUS_FIELD,
    CacheError,
    DamagedError,
    Field,
    FieldError,
    RowError,
    check_field_name,
    check_identity,
    check_samples,
)

_MAX_TABLE_BYTES = 2**30


def open_cache(path: str | os.PathLike[str]) -> TeacherCache:
    """Open a cache for reading; one that is still being written shows what is committed by now.

    Raises:
        CacheError: there is no cache, or its metadata or commits are damaged.
    """
    return TeacherCache(Path(path))


class TeacherCache:
    """A cache as it stood when it was opened; made by `open_cache`.

    It travels into other processes, forked or spawned: they map the chunk files by themselves.
    """

    def __init__(self, path: Path) -> None:
        """Read metadata and commits; see `open_cache`."""
        self._layout = read_layout(path)
        self._commits = read_commits(self._layout)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what is mapped and loaded: the other process reads it again when needed."""
        return {"_layout": self._layout, "_commits": self._commits}

    def __repr__(self) -> str:
        """Name the folder and the extent."""
        return (
            f"TeacherCache({str(self.path)!r}: {self.num_samples} samples, {self.num_views} "
            f"views, {self.coverage:.1%} present)"
        )

    @property
    def path(self) -> Path:
        """The cache's folder."""
        return self._layout.path

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the values of the rows."""
        return self._layout.identity

    @property
    def provenance(self) -> dict[str, Any]:
        """What else is known about their making."""
        return self._layout.provenance

    @property
    def fingerprint(self) -> str:
        """The identity's sha256, recomputed when the cache was opened."""
        return self._layout.fingerprint

    @property
    def fields(self) -> dict[str, Field]:
        """The arrays by name, `status`, `input_digest` and `views` among them."""
        return self._layout.fields

    @property
    def num_samples(self) -> int:
        """Number of samples, whether cached already or not."""
        return self._layout.num_samples

    @property
    def num_views(self) -> int:
        """Number of views of each sample, whether cached already or not."""
        return self._layout.num_views

    @property
    def chunk_samples(self) -> int:
        """Number of samples in one chunk."""
        return self._layout.chunk_samples

    def check_identity(self, wanted: Mapping[str, Any]) -> None:
        """Refuse to use this cache in place of another one.

        Raises:
            IdentityMismatch: with the fields that differ.
        """
        check_identity(self.path, self.identity, wanted)

    @cached_property
    def samples(self) -> pa.Table:
        """The samples table, one row for each index of the sample axis.

        Raises:
            CacheError: the table is missing, unreadable, or of another length.
        """
        return read_samples(self._layout)

    @cached_property
    def projection(self) -> dict[str, NDArray[np.float32]]:
        """The fitted projections by name.

        Raises:
            CacheError: one of them is damaged or not as this format says.
        """
        return read_projection(self._layout)

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """What became of each row, as `Status`; (samples, views), 0 where there is no commit."""
        status = np.zeros((self.num_samples, self.num_views), np.uint8)
        for chunk, view in np.argwhere(self._commits.rows).tolist():
            rows = self._layout.sample_range(chunk)
            data = self._maps[STATUS_FIELD.name].get(chunk * self.num_views + view)
            status[rows.start : rows.stop, view] = np.frombuffer(data, np.uint8, len(rows))
        return status

    @property
    def failures(self) -> dict[str, str]:
        """Sample id → why its rows are not valid, as the maker of the cache noted."""
        return dict(self._commits.failures)

    @property
    def coverage(self) -> float:
        """The part of the rows that is committed, whatever their status; in [0, 1]."""
        return self._commits.coverage(self._layout)

    def bytes_by_field(self) -> dict[str, int]:
        """Bytes of each field's committed chunk files."""
        return {
            name: int(self._commits.present[name].sum())
            * (self._layout.chunk_bytes(field) + CHECKSUM_BYTES)
            for name, field in self.fields.items()
        }

    def read(
        self, samples: ArrayLike, views: ArrayLike, fields: Iterable[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Read rows, in the order asked for, as fresh arrays.

        Args:
            samples: (n,) integers, indices of the sample axis.
            views: (n,) integers, indices of the view axis.
            fields: names; all fields by default.

        Returns:
            field → (n, ...) of the field's dtype. Rows of status 2 and 3 are NaN.

        Raises:
            RowError: an index is out of range, or a row is not in the cache (yet).
            FieldError: there is no such field.
            DamagedError: a chunk file is not as committed.
        """
        names = self._check_fields(fields)
        sample_rows = self._check_indices("sample", samples, self.num_samples)
        view_rows = self._check_indices("view", views, self.num_views)
        if len(sample_rows) != len(view_rows):
            raise RowError(f"{len(sample_rows)} samples but {len(view_rows)} views; give pairs")
        chunks, rows = np.divmod(sample_rows, self._layout.chunk_samples)
        for name in names:
            present = self._commits.present[name][chunks, view_rows]
            if not present.all():
                first = int(np.argmin(present))
                raise self._absent(name, int(sample_rows[first]), int(view_rows[first]))
        numbers, which = np.unique(chunks * self.num_views + view_rows, return_inverse=True)
        return {name: self._gather(name, numbers.tolist(), which.tolist(), rows) for name in names}

    @cached_property
    def _maps(self) -> dict[str, ChunkMaps]:
        return {
            name: ChunkMaps(self._layout, field, self._commits)
            for name, field in self.fields.items()
        }

    def _gather(
        self, name: str, numbers: list[int], which: list[int], rows: NDArray[np.int64]
    ) -> NDArray[Any]:
        """Copy each row's bytes once, from the mapped file to its place in the result.

        Args:
            name: the field.
            numbers: the chunk files, see `ChunkMaps.get`.
            which: for each row its chunk file, as an index of `numbers`.
            rows: for each row its place in the chunk file.
        """
        field = self.fields[name]
        size = field.row_bytes
        files = [self._maps[name].get(number) for number in numbers]
        # Joined slices of memoryviews: numpy's indexing, file by file, would copy twice.
        slices = [
            files[file][start : start + size]
            for file, start in zip(which, (rows * size).tolist(), strict=True)
        ]
        content = bytearray().join(slices)
        return np.frombuffer(content, field.numpy_dtype).reshape(len(rows), *field.shape)

    def _check_fields(self, fields: Iterable[str] | None) -> list[str]:
        if fields is None:
            return list(self.fields)
        if isinstance(fields, str):
            raise FieldError(f"fields is {fields!r}; give a list of names, as [{fields!r}]")
        names = list(fields)
        for name in names:
            if name not in self.fields:
                raise FieldError(
                    f"{self.path} has no field {name!r}; it has {', '.join(self.fields)}"
                )
        return names

    def _check_indices(self, axis: str, indices: ArrayLike, size: int) -> NDArray[np.int64]:
        array = np.asarray(indices)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise RowError(
                f"{axis}s are {array.dtype} of shape {array.shape}; expected a list of integers"
            )
        outside = (array < 0) | (array >= size)
        if outside.any():
            raise RowError(
                f"{axis} {array[outside][0]} is not in {self.path}, which has {size} {axis}s "
                f"(0 … {size - 1})"
            )
        return array.astype(np.int64)

    def _absent(self, name: str, sample: int, view: int) -> RowError:
        sample_id = self.samples["sample_id"][sample].as_py()
        dataset = self.identity.get("dataset")
        dataset = dataset.get("name") if isinstance(dataset, dict) else dataset
        return RowError(
            f"{self.path} does not hold sample {sample_id!r} (number {sample}), view {view}, "
            f"field {name!r}: nobody has made it yet. `dualkd-cache extract --dataset {dataset} "
            f"--out {self.path} --views {max(view + 1, self.num_views)}` makes it"
        )


def read_samples(layout: Layout) -> pa.Table:
    """Read the samples table; see `TeacherCache.samples`."""
    path = own_path(layout.path, SAMPLES)
    try:
        # Not `read_table`, which would take part of the path for the name of a partition.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            length = file.metadata.num_rows
            _check_unpacked(path, file)
            table = file.read() if length == layout.num_samples else None
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if table is None:
        raise CacheError(f"{path} has {length} rows, the arrays have {layout.num_samples}")
    check_samples(table)
    return table


def _check_unpacked(path: Path, file: pq.ParquetFile) -> None:
    """A small file can unpack to more than this machine's memory."""
    groups = range(file.metadata.num_row_groups)
    size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    if size > _MAX_TABLE_BYTES:
        raise CacheError(
            f"{path} would unpack to {size} bytes; a samples table of at most {_MAX_TABLE_BYTES} "
            "is read"
        )


def read_projection(layout: Layout) -> dict[str, NDArray[np.float32]]:
    """Read the fitted projections; see `TeacherCache.projection`."""
    folder = own_path(layout.path, PROJECTION)
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return {name: _read_projection(folder, name) for name in names}


def _read_projection(folder: Path, name: str) -> NDArray[np.float32]:
    check_field_name(name)
    metadata = own_path(folder, f"{name}/{METADATA}")
    shape, _, document = read_array_shape(metadata, one_chunk=True)
    path = own_path(folder, f"{name}/" + ".".join(["c", *("0" for _ in shape)]))
    size = path.stat().st_size if path.exists() else 0
    expected = math.prod(shape) * np.dtype(np.float32).itemsize + CHECKSUM_BYTES
    if document.get("data_type") != "float32" or size != expected:
        raise DamagedError(
            f"{path} has {size} bytes of {document.get('data_type')}, expected {expected} of "
            "float32"
        )
    return np.frombuffer(read_file(path)[0], "<f4").reshape(shape)
