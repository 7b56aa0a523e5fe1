"""Staging: any process may write a chunk beside the cache's own files; only a commit moves it in.

Whoever holds the lock commits, so a chunk has one author, even where two processes made it: the
slower one writes into a folder of its own, which nobody reads.
"""

from __future__ import annotations

import os
import shutil
import socket
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cache.checks import check_arrays
from cache.codecs import quiet_zarr
from cache.commits import count_statuses, package_versions
from cache.layout import (
    CHECKSUM_BYTES,
    METADATA,
    STAGING,
    Layout,
    chunk_key,
    on_full_disk,
    own_path,
    read_file,
    sync,
)
from cache.schema import CacheError, DamagedError, Field, status_name


@dataclass(frozen=True)
class StagedChunk:
    """A chunk that is written and not committed yet: all that its commit will say; small.

    Attributes:
        folder: where its files lie, below the staging folder.
        chunk: index along the sample axis.
        views: which views.
        files: chunk key → bytes of the file, crc32c of its data.
        statuses: array of statuses → number of its rows by status.
        failures: sample id → why its rows are not valid.
        maker: host, pid, time and package versions of the process that made it.
    """

    folder: str
    chunk: int
    views: tuple[int, ...]
    files: dict[str, tuple[int, int]]
    statuses: dict[str, dict[str, int]]
    failures: dict[str, str]
    maker: dict[str, Any]

    @property
    def fields(self) -> set[str]:
        """The fields that it holds."""
        return {key.rpartition("/")[0] for key in self.files}


def stage_chunk(
    layout: Layout,
    chunk: int,
    arrays: Mapping[str, NDArray[Any]],
    views: Sequence[int],
    failures: Mapping[str, str],
) -> StagedChunk:
    """Write a chunk's files into a staging folder of their own; they are on the disk then.

    Args:
        layout: the cache, which a process with the lock has open for writing.
        chunk: index along the sample axis.
        arrays: as for `CacheWriter.write_chunk`.
        views: which views.
        failures: sample id → why its rows are not valid.

    Raises:
        CacheError: the arrays do not fit, nobody is writing the cache, or the disk is full.
    """
    standing = _standing_statuses(layout, chunk, views, arrays.keys())
    check_arrays(layout, chunk, arrays, len(views), standing)
    name = uuid.uuid4().hex
    folder = layout.path / STAGING / name
    lost = f"chunk {chunk} is not written, what was committed before is safe and not made again"
    with on_full_disk(layout.path, lost):
        try:
            folder.mkdir()
        except FileNotFoundError as error:
            raise CacheError(f"{layout.path} is not being written: no {STAGING} in it") from error
        try:
            files = _write_files(layout, folder, chunk, arrays, views)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return StagedChunk(
        folder=name,
        chunk=chunk,
        views=tuple(views),
        files=files,
        statuses={
            name: count_statuses(values)
            for name, values in arrays.items()
            if layout.fields[name].is_status
        },
        failures=dict(failures),
        maker={
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "packages": package_versions(),
        },
    )


def move_in(layout: Layout, staged: StagedChunk) -> None:
    """Give a staged chunk's files their names in the cache; its commit comes afterwards."""
    folder = layout.path / STAGING / staged.folder
    for key in staged.files:
        (folder / key).replace(layout.path / key)
    sync(layout.path / name for name in sorted(staged.fields))
    shutil.rmtree(folder, ignore_errors=True)


def open_staging(folder: Path) -> None:
    """Begin with an empty staging folder; for the holder of the lock."""
    staging = own_path(folder, STAGING)
    if staging.is_dir():
        shutil.rmtree(staging)
    staging.unlink(missing_ok=True)
    staging.mkdir()


def close_staging(folder: Path) -> None:
    """Remove the staging folder, with what killed processes left: now nothing can be staged."""
    shutil.rmtree(folder / STAGING, ignore_errors=True)  # the next writer removes what stays


def _write_files(
    layout: Layout,
    folder: Path,
    chunk: int,
    arrays: Mapping[str, NDArray[Any]],
    views: Sequence[int],
) -> dict[str, tuple[int, int]]:
    """Write the chunk files through zarr; key → bytes of the file, crc32c of its data."""
    start = chunk * layout.chunk_samples
    files = {}
    for name in arrays:
        field = layout.fields[name]
        array = _array(layout, folder, field)
        for position, view in enumerate(views):
            rows = np.ascontiguousarray(arrays[name][:, position : position + 1], field.numpy_dtype)
            if field.codec is not None:
                rows = field.codec.stored(rows)
            array[start : start + len(rows), view : view + 1] = rows
            key = chunk_key(field, chunk, view)
            data, checksum = read_file(folder / key)
            if not layout.decode(field, data).tobytes().startswith(rows.tobytes()):
                raise DamagedError(f"{folder / key} is not what was written to it")
            files[key] = (len(data) + CHECKSUM_BYTES, checksum)
    sync(folder / key for key in files)
    return files


def _array(layout: Layout, folder: Path, field: Field) -> zarr.Array[Any]:
    """The field's array as it stands in the cache, with none of its chunks."""
    place = folder / field.name
    place.mkdir(parents=True)
    shutil.copyfile(own_path(layout.path, f"{field.name}/{METADATA}"), place / METADATA)
    with quiet_zarr():
        array = zarr.open_array(place, mode="r+", zarr_format=3)
    # A chunk that holds nothing but fill values is written too: its commit names its file.
    return array.with_config({"write_empty_chunks": True})


def _standing_statuses(
    layout: Layout, chunk: int, views: Sequence[int], fields: Collection[str]
) -> dict[str, NDArray[np.uint8]]:
    """The statuses that fields go by and that are written already; (samples, views) each."""
    names = {status_name(name, layout.fields) for name in fields} - set(fields)
    rows = len(layout.sample_range(chunk))
    return {
        name: np.stack([_standing(layout, name, chunk, view)[:rows] for view in views], axis=1)
        for name in names
    }


def _standing(layout: Layout, name: str, chunk: int, view: int) -> NDArray[Any]:
    """The values of a chunk file that is committed; (samples in a chunk, ...)."""
    field = layout.fields[name]
    data, _ = read_file(own_path(layout.path, chunk_key(field, chunk, view)))
    return layout.decode(field, data)
