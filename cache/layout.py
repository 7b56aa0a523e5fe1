"""Where things lie in a cache folder, and the reading of its metadata."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.codecs import BLOSC_HEADER_BYTES, array_codec, lossy_codecs, zarr_codecs
from cache.schema import (
    DTYPES,
    FORMAT_VERSION,
    OWN_FIELDS,
    STATUS_FIELD,
    CacheError,
    DamagedError,
    Field,
    check_field_name,
    fingerprint,
)

ATTRIBUTE = "dualkd"  # the one key of ours among the root group's attributes
METADATA = "zarr.json"
SAMPLES = "samples.parquet"
COMMITS = "commits"
MANIFEST = "manifest.json"
PROJECTION = "projection"
LOCK = ".lock"

CHECKSUM_BYTES = 4  # zarr's crc32c codec puts them behind the data of each chunk

# Bounds on what a cache may claim, so that opening a stranger's needs little memory.
_MAX_METADATA_BYTES = 16 * 2**20
_MAX_CHUNKS_PER_FIELD = 2**20
_MAX_ROWS = 2**31
_MAX_FIELDS = 256


@dataclass(frozen=True)
class Layout:
    """The metadata of a cache: all there is to know before commits and chunks are read.

    Attributes:
        path: the cache's folder.
        identity: what decides the values of the rows.
        provenance: what else is known about their making.
        fingerprint: of the identity, recomputed.
        fields: name → field, in the cache's order.
        num_samples: size of every array's sample axis.
        num_views: size of the view axis of `status`.
        chunk_samples: samples in one chunk.
    """

    path: Path
    identity: dict[str, Any]
    provenance: dict[str, Any]
    fingerprint: str
    fields: dict[str, Field]
    num_samples: int
    num_views: int
    chunk_samples: int

    @property
    def num_chunks(self) -> int:
        """Number of chunks along the sample axis."""
        return -(-self.num_samples // self.chunk_samples)

    def sample_range(self, chunk: int) -> range:
        """The samples of a chunk; the last chunk may have fewer."""
        start = chunk * self.chunk_samples
        return range(start, min(start + self.chunk_samples, self.num_samples))

    def chunk_bytes(self, field: Field) -> int:
        """Bytes of one chunk's values: those of its file, but for a codec and the checksum."""
        return self.chunk_samples * field.row_bytes

    def file_bytes(self, field: Field) -> range:
        """The sizes that a chunk file can have: one only, unless it is compressed."""
        size = self.chunk_bytes(field) + CHECKSUM_BYTES
        if field.codec is None:
            return range(size, size + 1)
        return range(BLOSC_HEADER_BYTES + CHECKSUM_BYTES, size + BLOSC_HEADER_BYTES + 1)

    def decode(self, field: Field, data: bytes) -> NDArray[Any]:
        """The values of a chunk, (chunk_samples, ...), from its file's data without the checksum.

        Raises:
            CacheError: the data are not so many values.
        """
        shape = (self.chunk_samples, *field.shape)
        if field.codec is None:
            return np.frombuffer(data, field.numpy_dtype).reshape(shape)
        return field.codec.decode(data, field.numpy_dtype, math.prod(shape)).reshape(shape)


def stored_fill(field: Field) -> float:
    """What is read from a chunk file, decoded, where there is no value; NaN or a number."""
    fill = np.array([field.fill], field.numpy_dtype)
    return float((fill if field.codec is None else field.codec.stored(fill))[0])


def chunk_key(field: Field, chunk: int, view: int) -> str:
    """The path of a chunk file inside the cache, as `vit/pooled/c.3.0.0`."""
    return f"{field.name}/c.{chunk}.{view}{'.0' * len(field.shape)}"


def own_path(folder: Path, name: str) -> Path:
    """The path of one of a cache's own files or folders: no link on the way.

    A cache may come from somebody else, and a link could lead anywhere on this machine.

    Raises:
        CacheError: a part of the path inside the cache is a link.
    """
    path = folder
    for part in name.split("/"):
        path = path / part
        if path.is_symlink():
            raise CacheError(
                f"{path} is a link, and a cache is read from its own files only: put a copy of "
                "what it points to in its place (with DVC: cache.type reflink, hardlink or copy)"
            )
    return path


def written_folders(layout: Layout) -> set[Path]:
    """The folders in which a writer writes, and may have left temporary files."""
    folders = {layout.path, layout.path / COMMITS}
    for name in layout.fields:
        folders.update(layout.path / part for part in (Path(name), *Path(name).parents))
    return folders


def repair_hint(place: Path | str) -> str:
    """The way out where a chunk or a commit is damaged."""
    return (
        f"`dualkd-cache repair {place}` drops the damaged chunks, so that the next extract "
        "makes them again"
    )


def crc32c(data: bytes | memoryview) -> int:
    """The crc32c (Castagnoli) of some bytes."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8)))  # takes no memoryview itself


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
    shapes: dict[str, list[int]] = {}
    chunks: dict[str, int] = {}
    fields: dict[str, Field] = {}
    for name in names:
        fields[name], shapes[name], chunks[name] = _read_field(folder, name)
    for own in OWN_FIELDS:
        if fields.get(own.name) != own:
            _refuse(folder / own.name / METADATA, "field", fields.get(own.name), own)
    lossy = lossy_codecs(fields.values())
    if identity.get("codecs", {}) != lossy:
        _refuse(folder / METADATA, "identity['codecs']", identity.get("codecs", {}), lossy)
    num_samples, num_views = shapes[STATUS_FIELD.name][:2]
    layout = Layout(
        path=folder,
        identity=identity,
        provenance=provenance,
        fingerprint=root["fingerprint"],
        fields=fields,
        num_samples=num_samples,
        num_views=num_views,
        chunk_samples=chunks[STATUS_FIELD.name],
    )
    _check_sizes(layout, shapes, chunks)
    return layout


def read_file(path: Path) -> tuple[bytes, int]:
    """Read an array that is one chunk file and check it against the checksum behind it.

    Returns:
        the data without the checksum, and the checksum.

    Raises:
        DamagedError: the file is missing, or its bytes are not those that were written.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    data, stored = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    actual, written = crc32c(data), int.from_bytes(stored, "little")
    if actual != written:
        raise DamagedError(f"{path} is damaged: crc32c is {actual:08x}, written was {written:08x}")
    return data, actual


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders written to the disk itself before going on."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        what = "is no cache" if folder.exists() else "does not exist"
        raise CacheError(f"{folder} {what}; `dualkd-cache extract --out {folder}` makes one")
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
    if not isinstance(names, list) or len(names) > _MAX_FIELDS:
        _refuse(path, "fields", names, f"a list of at most {_MAX_FIELDS} names")
    return identity, provenance, names


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


def _check_sizes(layout: Layout, shapes: dict[str, list[int]], chunks: dict[str, int]) -> None:
    for name, shape in shapes.items():
        # More views than `status` has: `add_views` was interrupted, the new ones do not exist yet.
        if shape[0] != layout.num_samples or shape[1] < layout.num_views:
            wanted = [layout.num_samples, layout.num_views]
            _refuse(layout.path / name / METADATA, "shape", shape[:2], wanted)
        if chunks[name] != layout.chunk_samples:
            path = layout.path / name / METADATA
            _refuse(path, "samples in a chunk", chunks[name], layout.chunk_samples)
    rows = layout.num_samples * layout.num_views
    if rows > _MAX_ROWS or layout.num_chunks * layout.num_views > _MAX_CHUNKS_PER_FIELD:
        raise CacheError(
            f"{layout.path} claims {layout.num_samples} samples by {layout.num_views} views in "
            f"{layout.num_chunks * layout.num_views} chunks; at most {_MAX_ROWS} rows and "
            f"{_MAX_CHUNKS_PER_FIELD} chunks are read"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_METADATA_BYTES:
            raise CacheError(f"{path} is larger than {_MAX_METADATA_BYTES} bytes: no metadata")
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise DamagedError(f"{path} is no JSON object")
    return document


def _refuse(path: Path, key: str, got: object, expected: object) -> NoReturn:
    wanted = expected if isinstance(expected, str) else repr(expected)
    raise CacheError(f"{path}: {key} is {got!r:.200}, expected {wanted:.200}")
