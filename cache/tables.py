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
    SAMPLES,
    Layout,
    read_array_shape,
    read_file,
)
from cache.schema import CacheError, DamagedError, check_field_name, check_samples


def read_samples(layout: Layout) -> pa.Table:
    """Read the samples table; see `TeacherCache.samples`."""
    path = layout.path / SAMPLES
    try:
        # Not `read_table`, which would take part of the path for the name of a partition.
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            length = file.metadata.num_rows
            table = file.read() if length == layout.num_samples else None
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if table is None:
        raise CacheError(f"{path} has {length} rows, the arrays have {layout.num_samples}")
    check_samples(table)
    return table


def read_projection(layout: Layout) -> dict[str, NDArray[np.float32]]:
    """Read the fitted projections; see `TeacherCache.projection`."""
    folder = layout.path / PROJECTION
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return {name: _read_array(folder, name) for name in names}


def _read_array(folder: Path, name: str) -> NDArray[np.float32]:
    check_field_name(name)
    shape, _, document = read_array_shape(folder / name / METADATA, one_chunk=True)
    path = folder / name / ".".join(["c", *("0" for _ in shape)])
    size = path.stat().st_size if path.exists() else 0
    expected = math.prod(shape) * np.dtype(np.float32).itemsize + CHECKSUM_BYTES
    if document.get("data_type") != "float32" or size != expected:
        raise DamagedError(
            f"{path} has {size} bytes of {document.get('data_type')}, expected {expected} of "
            "float32"
        )
    return np.frombuffer(read_file(path)[0], "<f4").reshape(shape)
