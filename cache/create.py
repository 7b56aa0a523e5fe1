"""The making of an empty cache: built beside its place, then renamed into it."""

from __future__ import annotations

import io
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from cache.codecs import ATTRIBUTE as CODEC
from cache.codecs import Codec, quiet_zarr, zarr_codecs
from cache.identity import canonical_json, fingerprint
from cache.layout import COMMITS, PROJECTION, SAMPLES, sync
from cache.lock import CacheLock
from cache.manifest import create_manifest
from cache.metadata import ATTRIBUTE, is_cache, read_layout
from cache.schema import (
    FORMAT_VERSION,
    OWN_FIELDS,
    VIEW_COLUMNS,
    VIEWS_FIELD,
    CacheError,
    Field,
    Status,
    check_field_name,
    check_samples,
)

_STATUS_ATTRIBUTES: dict[str, Any] = {
    # As the CF conventions spell it: xarray's users know these two.
    "flag_values": [int(status) for status in Status],
    "flag_meanings": " ".join(status.label for status in Status),
}
_ARRAY_ATTRIBUTES: dict[str, dict[str, Any]] = {VIEWS_FIELD.name: {"columns": list(VIEW_COLUMNS)}}


def make_cache(
    path: Path,
    *,
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    samples: pa.Table,
    fields: Sequence[Field],
    views: int,
    chunk_samples: int,
    projection: Mapping[str, NDArray[np.float32]],
) -> CacheLock:
    """Make an empty cache, and hold its lock; see `cache.create_cache`."""
    every = (*OWN_FIELDS, *fields)
    _check_arguments(identity, provenance, samples, every, views, chunk_samples, projection)
    check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep_unfinished(path)
    workplace = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.making"
    workplace.mkdir()
    lock = CacheLock(workplace)
    try:
        root = zarr.create_group(
            workplace,
            zarr_format=3,
            attributes={ATTRIBUTE: _root_attributes(identity, provenance, every, len(samples))},
        )
        with quiet_zarr():
            for field in every:
                create_field(root, field, len(samples), views, chunk_samples)
        _write_projection(root.create_group(PROJECTION), projection)
        (workplace / SAMPLES).write_bytes(encode_samples(samples))
        (workplace / COMMITS).mkdir()
        read_layout(workplace)
        create_manifest(workplace)
        sync([workplace, *workplace.rglob("*")])
        _rename(workplace, path)
    except BaseException:
        lock.release()
        shutil.rmtree(workplace, ignore_errors=True)
        raise
    lock.move(path)
    sync([path.parent])
    return lock


def _check_arguments(
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    samples: pa.Table,
    fields: Sequence[Field],
    views: int,
    chunk_samples: int,
    projection: Mapping[str, NDArray[np.float32]],
) -> None:
    if identity.get("format_version") != FORMAT_VERSION:
        raise CacheError(
            f"identity['format_version'] is {identity.get('format_version')!r}, expected "
            f"{FORMAT_VERSION}: the version is part of the identity"
        )
    canonical_json(identity)
    canonical_json(provenance)
    check_samples(samples)
    for name, number in (("views", views), ("chunk_samples", chunk_samples)):
        if number < 1:
            raise CacheError(f"{name} is {number}, expected at least 1")
    check_fields(fields)
    for name, array in projection.items():
        check_field_name(name)
        if "/" in name or array.dtype != np.float32 or 0 in array.shape:
            raise CacheError(
                f"projection {name!r} is {array.dtype} of shape {array.shape}, expected float32 "
                "with at least one value, and a name without '/'"
            )


def check_fields(fields: Sequence[Field]) -> None:
    """Check that fields can stand in one cache.

    Raises:
        CacheError: two have one name, one lies inside another, or xarray could not open them.
    """
    _check_names(fields)
    _check_dimensions(fields)


def _check_names(fields: Sequence[Field]) -> None:
    names = [field.name for field in fields]
    own = ", ".join(field.name for field in OWN_FIELDS)
    for index, name in enumerate(names):
        if name in names[:index]:
            raise CacheError(f"field {name!r} is given twice (the cache adds {own} by itself)")
        for other in names:
            if name.startswith(f"{other}/"):
                raise CacheError(f"field {name!r} would lie inside field {other!r}: rename one")


def _check_dimensions(fields: Sequence[Field]) -> None:
    """Within one group a dimension has one size, or xarray would not open the group."""
    sizes: dict[tuple[str, str], tuple[int, str]] = {}
    for field in fields:
        group = field.name.rpartition("/")[0]
        for dim, size in zip(field.dims, field.shape, strict=True):
            other_size, other = sizes.setdefault((group, dim), (size, field.name))
            if size != other_size:
                raise CacheError(
                    f"dimension {dim!r} has {size} values in field {field.name!r} and "
                    f"{other_size} in {other!r} of the same group, which xarray refuses: name "
                    f"them apart, as '{dim}_{field.name.rpartition('/')[2]}'"
                )


def check_place(path: Path, way_out: str = "give another --out") -> None:
    """Check that a cache can be made at `path`; `way_out` is what helps where it cannot.

    Raises:
        CacheError: a cache, a file, or a folder with other things stands there.
    """
    if is_cache(path):
        raise CacheError(
            f"{path} already holds a cache; run extract on it to go on with it, give another "
            "--out, or --replace to move it aside"
        )
    if path.is_dir() and any(path.iterdir()):
        raise CacheError(f"{path} is a folder with other files and no cache; {way_out}")
    if path.exists() and not path.is_dir():
        raise CacheError(f"{path} is a file; a cache is a folder: {way_out}")


def _rename(workplace: Path, path: Path) -> None:
    try:
        workplace.rename(path)  # takes the place of an empty folder too, of nothing else
    except OSError as error:
        raise CacheError(f"{path} appeared while the cache was being made: {error}") from error


def _sweep_unfinished(path: Path) -> None:
    """Remove what killed processes left of caches that were to stand here."""
    for leftover in path.parent.glob(f".{path.name}.*.making"):
        try:
            lock = CacheLock(leftover)
        except CacheError:  # it is being made right now
            continue
        shutil.rmtree(leftover, ignore_errors=True)
        lock.release()


def _root_attributes(
    identity: Mapping[str, Any],
    provenance: Mapping[str, Any],
    fields: Sequence[Field],
    num_samples: int,
) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint(identity),
        "identity": dict(identity),
        "provenance": dict(provenance),
        "fields": [field.name for field in fields],
        "parts": [num_samples],
    }


def encode_samples(samples: pa.Table) -> bytes:
    """The bytes of a samples table's file."""
    sink = io.BytesIO()
    pq.write_table(samples, sink, write_page_checksum=True)
    return sink.getvalue()


def create_field(
    root: zarr.Group, field: Field, num_samples: int, views: int, chunk_samples: int
) -> None:
    """Make an empty array."""
    codec = field.codec
    attributes = _STATUS_ATTRIBUTES if field.is_status else _ARRAY_ATTRIBUTES.get(field.name, {})
    root.create_array(
        field.name,
        shape=(num_samples, views, *field.shape),
        chunks=(chunk_samples, 1, *field.shape),
        dtype=field.dtype,
        fill_value=field.fill if codec is None else codec.fill(field.fill),
        dimension_names=("sample", "view", *field.dims),
        attributes=attributes if codec is None else {**attributes, CODEC: codec.to_json()},
        **_storage(codec, field.numpy_dtype),
    )


def _write_projection(group: zarr.Group, projection: Mapping[str, NDArray[np.float32]]) -> None:
    for name, values in projection.items():
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=values.shape,
            dtype="float32",
            fill_value=float("nan"),
            dimension_names=[f"{name}_{axis}" for axis in range(values.ndim)],
            **_storage(None, np.dtype("<f4")),
        )
        array[...] = values


def _storage(codec: Codec | None, dtype: np.dtype[Any]) -> dict[str, Any]:
    """One file per chunk, all in the array's own folder: the values, encoded, and a crc32c."""
    codecs = zarr_codecs(codec, dtype)
    serializer = [one["name"] for one in codecs].index("bytes")
    return {
        "filters": codecs[:serializer],
        "serializer": codecs[serializer],
        "compressors": codecs[serializer + 1 :],
        "chunk_key_encoding": {"name": "default", "separator": "."},
        "config": {"write_empty_chunks": True},
    }


def remove_temporaries(folder: Path) -> None:
    """Remove half-written files that a killed process left in a folder (zarr's and ours)."""
    for path in list(folder.iterdir()):
        if is_temporary(path) and not path.is_dir():
            path.unlink()


def is_temporary(path: Path) -> bool:
    """Whether a file's name is one that zarr or we give to a file while it is being written."""
    return path.name.endswith((".partial", ".tmp"))
