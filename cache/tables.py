"""What a cache holds beside its rows, read whole: the samples table and the projections."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cache.layout import (
    CHECKSUM_BYTES,
    METADATA,
    PROJECTION,
    Layout,
    own_path,
    read_file,
    samples_file,
)
from cache.metadata import read_array_shape
from cache.schema import CacheError, DamagedError, check_field_name, check_samples

_MAX_TABLE_BYTES = 2**30


def read_samples(layout: Layout) -> pa.Table:
    """Read the samples tables of all parts; see `TeacherCache.samples`."""
    tables = [_read_part(layout, number, rows) for number, rows in enumerate(layout.parts)]
    try:
        table = pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise CacheError(
            f"{layout.path}: its samples tables do not fit together: {error}"
        ) from error
    check_samples(table)
    return table


def _read_part(layout: Layout, number: int, rows: int) -> pa.Table:
    path = own_path(layout.path, samples_file(number))
    try:
        # Not `read_table`, which would take part of the path for the name of a partition.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            length = file.metadata.num_rows
            _check_unpacked(path, file)
            table = file.read() if length == rows else None
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if table is None:
        raise CacheError(f"{path} has {length} rows, the arrays have {rows}")
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
    return {name: _read_array(folder, name) for name in names}


def _read_array(folder: Path, name: str) -> NDArray[np.float32]:
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
