"""The reading of a cache's metadata: the `zarr.json` of its group and of its arrays."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from cache.codecs import array_codec, lossy_codecs, zarr_codecs
from cache.identity import fingerprint
from cache.layout import METADATA, Layout, own_path
from cache.schema import (
    DTYPES,
    FORMAT_VERSION,
    OWN_FIELDS,
    STATUS_FIELD,
    CacheError,
    DamagedError,
    Field,
    check_field_name,
)

ATTRIBUTE = "dualkd"  # the one key of ours among the root group's attributes

# Bounds on what a cache may claim, so that opening a stranger's needs little memory.
_MAX_METADATA_BYTES = 4 * 2**20
_MAX_CHUNKS_PER_FIELD = 2**20
_MAX_ROWS = 2**31
_MAX_FIELDS = 256


def is_cache(path: str | os.PathLike[str]) -> bool:
    """Whether a folder claims to be a cache of ours, of whatever version and health."""
    try:
        _read_root(Path(path))
    except (CacheError, OSError):
        return False
    return True


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read and check the metadata of a cache.

    Raises:
        CacheError: there is no cache, or its metadata are not those of format version 1.
    """
    folder = Path(path)
    root = _read_root(folder)
    identity, provenance, names = _root_values(folder, root)
    added = _read_added(folder, root)
    shapes: dict[str, list[int]] = {}
    chunks: dict[str, int] = {}
    fields: dict[str, Field] = {}
    for name in names:
        fields[name], shapes[name], chunks[name] = _read_field(folder, name)
    for own in OWN_FIELDS:
        if fields.get(own.name) != own:
            _refuse(folder / own.name / METADATA, "field", fields.get(own.name), own)
    for teacher in added:
        check_field_name(teacher)
        if f"{teacher}/{STATUS_FIELD.name}" not in fields:
            _refuse(folder / METADATA, "added", teacher, f"a field {teacher}/{STATUS_FIELD.name}")
    _check_codecs(folder, identity, added, fields)
    layout = Layout(
        path=folder,
        identity=identity,
        provenance=provenance,
        fingerprint=root["fingerprint"],
        added=added,
        fields=fields,
        parts=_read_parts(folder, root),
        num_views=shapes[STATUS_FIELD.name][1],
        chunk_samples=chunks[STATUS_FIELD.name],
    )
    _check_sizes(layout, shapes, chunks)
    return layout


def read_array_shape(path: Path, *, one_chunk: bool) -> tuple[list[int], list[int], dict[str, Any]]:
    """Read an array's `zarr.json` and check that its chunks lie as this format says.

    Returns:
        the shape, the chunk's shape, all the metadata.

    Raises:
        CacheError: a codec, the key encoding or the grid is another one.
    """
    document = _read_json(path)
    shape = document.get("shape")
    grid = document.get("chunk_grid")
    configuration = grid.get("configuration") if isinstance(grid, dict) else None
    chunk = configuration.get("chunk_shape") if isinstance(configuration, dict) else None
    wanted_chunk = shape if one_chunk else chunk
    wanted = {
        "zarr_format": 3,
        "node_type": "array",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": wanted_chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "storage_transformers": [],
    }
    for key, value in wanted.items():
        got = document.get(key, [] if key == "storage_transformers" else None)
        if got != value:
            _refuse(path, key, got, value)
    dtype = document.get("data_type")
    if dtype not in DTYPES:
        _refuse(path, "data_type", dtype, f"one of {', '.join(DTYPES)}")
    codecs = zarr_codecs(
        None if one_chunk else array_codec(document.get("attributes")),
        np.dtype(dtype).newbyteorder("<"),
    )
    if document.get("codecs") != codecs:
        _refuse(path, "codecs", document.get("codecs"), codecs)
    for key, sizes in (("shape", shape), ("chunk_shape", chunk)):
        if not isinstance(sizes, list) or not all(type(n) is int and n > 0 for n in sizes):
            _refuse(path, key, sizes, "whole numbers ≥ 1")
    return shape, chunk, document  # type: ignore[return-value]  # both are lists of int by now


def _read_root(folder: Path) -> dict[str, Any]:
    """Read what the root group's attributes say of us."""
    if not own_path(folder, METADATA).is_file():
        if folder.is_file():
            raise CacheError(f"{folder} is a file; a cache is a folder")
        if not folder.exists():
            raise CacheError(f"{folder} does not exist; a cache is a folder that extract made")
        raise CacheError(
            f"{folder} is no cache; `dualkd-cache extract --dataset NAME --out FOLDER` makes one"
        )
    attributes = _read_json(folder / METADATA).get("attributes")
    root = attributes.get(ATTRIBUTE) if isinstance(attributes, dict) else None
    if not isinstance(root, dict):
        raise CacheError(f"{folder} is a zarr group, but no cache of dualkd")
    return root


def _root_values(
    folder: Path, root: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    path = folder / METADATA
    version = root.get("format_version")
    if version != FORMAT_VERSION:
        raise CacheError(
            f"{folder} has format version {version!r}; this dualkd reads {FORMAT_VERSION}. "
            "Install the dualkd that made it, or extract again"
        )
    identity, provenance, names = (root.get(key) for key in ("identity", "provenance", "fields"))
    if not isinstance(identity, dict) or not isinstance(provenance, dict):
        _refuse(path, "identity, provenance", (identity, provenance), "two objects")
    if fingerprint(identity) != root.get("fingerprint"):
        raise DamagedError(
            f"{path}: the identity's fingerprint is {fingerprint(identity)}, the stored one is "
            f"{root.get('fingerprint')!r}: somebody changed one of them"
        )
    if identity.get("format_version") != FORMAT_VERSION:
        got = identity.get("format_version")
        _refuse(path, "identity['format_version']", got, FORMAT_VERSION)
    if not isinstance(names, list) or len(names) > _MAX_FIELDS:
        _refuse(path, "fields", names, f"a list of at most {_MAX_FIELDS} names")
    for index, name in enumerate(names):
        if name in names[:index]:
            _refuse(path, "fields", f"{name!r:.80} twice", "different names")
    return identity, provenance, names


def _read_added(folder: Path, root: dict[str, Any]) -> dict[str, Any]:
    """The teachers that were added later, each with what decides the values of its fields."""
    added = root.get("added", {})
    if not isinstance(added, dict) or not all(isinstance(one, dict) for one in added.values()):
        _refuse(folder / METADATA, "added", added, "an object of objects")
    return added


def _read_parts(folder: Path, root: dict[str, Any]) -> tuple[int, ...]:
    """The numbers of samples that came together, bounded before anything is made of them."""
    parts = root.get("parts")
    whole = isinstance(parts, list) and all(type(n) is int and 0 < n <= _MAX_ROWS for n in parts)
    if not parts or not whole or len(parts) > _MAX_CHUNKS_PER_FIELD:
        _refuse(folder / METADATA, "parts", parts, f"whole numbers from 1 to {_MAX_ROWS}")
    return tuple(parts)


def _check_codecs(
    folder: Path, identity: dict[str, Any], added: dict[str, Any], fields: dict[str, Field]
) -> None:
    """A lossy codec decides the values of its field, so it is told beside what else does."""
    own = [field for name, field in fields.items() if name.partition("/")[0] not in added]
    checked = [("identity['codecs']", identity, own)]
    for teacher, about in added.items():
        its = [field for name, field in fields.items() if name.partition("/")[0] == teacher]
        checked.append((f"added[{teacher!r:.80}]['codecs']", about, its))
    for key, about, some in checked:
        lossy = lossy_codecs(some)
        if about.get("codecs", {}) != lossy:
            _refuse(folder / METADATA, key, about.get("codecs", {}), lossy)


def _read_field(folder: Path, name: str) -> tuple[Field, list[int], int]:
    """Read one field's metadata; also its array's shape and the samples of one chunk."""
    check_field_name(name)
    path = own_path(folder, f"{name}/{METADATA}")
    shape, chunk, document = read_array_shape(path, one_chunk=False)
    dims = document.get("dimension_names")
    if not isinstance(dims, list) or dims[:2] != ["sample", "view"] or len(dims) != len(shape):
        _refuse(path, "dimension_names", dims, f"sample, view, and names for {shape[2:]}")
    if chunk != [*chunk[:1], 1, *shape[2:]]:
        _refuse(path, "chunk_shape", chunk, ["samples in a chunk", 1, *shape[2:]])
    codec = array_codec(document.get("attributes"))
    field = Field(name, tuple(dims[2:]), tuple(shape[2:]), document["data_type"], codec)
    return field, shape, chunk[0]


def check_extent(layout: Layout, axis_samples: int) -> None:
    """Check that a cache is not larger than what is read.

    Args:
        layout: the cache.
        axis_samples: size of the longest sample axis.

    Raises:
        CacheError: it has too many rows or chunks.
    """
    rows, chunks = axis_samples * layout.num_views, layout.num_chunks * layout.num_views
    if rows > _MAX_ROWS or chunks > _MAX_CHUNKS_PER_FIELD:
        raise CacheError(
            f"{layout.path} claims {axis_samples} samples by {layout.num_views} views in {chunks} "
            f"chunks; at most {_MAX_ROWS} rows and {_MAX_CHUNKS_PER_FIELD} chunks are read"
        )


def _check_sizes(layout: Layout, shapes: dict[str, list[int]], chunks: dict[str, int]) -> None:
    check_extent(layout, max(shape[0] for shape in shapes.values()))
    for name, shape in shapes.items():
        # More than that: a growth was interrupted, and what it would bring does not exist yet.
        if shape[0] < layout.axis_samples or shape[1] < layout.num_views:
            wanted = [layout.axis_samples, layout.num_views]
            _refuse(layout.path / name / METADATA, "shape", shape[:2], wanted)
        if chunks[name] != layout.chunk_samples:
            path = layout.path / name / METADATA
            _refuse(path, "samples in a chunk", chunks[name], layout.chunk_samples)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise CacheError(f"{path} is larger than {_MAX_METADATA_BYTES} bytes: no metadata")
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is no JSON object")
    return document


def _refuse(path: Path, key: str, got: object, expected: object) -> NoReturn:
    wanted = expected if isinstance(expected, str) else repr(expected)
    raise CacheError(f"{path}: {key} is {got!r:.200}, expected {wanted:.200}")
