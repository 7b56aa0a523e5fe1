"""Small caches for the tests of `cache`: known values, made by formula."""

from __future__ import annotations

import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from cache import (
    BitRound,
    BloscZstd,
    CacheWriter,
    Field,
    Fixed8,
    PendingChunk,
    Status,
    create_cache,
)
from cache.codecs import lossy_codecs
from cache.layout import LOCK, crc32c
from cache.schema import OWN_FIELDS
from cache.sealed import seal

IDENTITY = {
    "format_version": 1,
    "dataset": {"name": "tiny", "labels": {"action": ["bow", "clap", "wave"]}},
    "views": {"rule": "random", "seed": 7},
    "teachers": {"vit": {"model": "mvit", "sha256": "aa"}, "cnn": {"model": "x3d", "sha256": "bb"}},
}

FIELDS = (
    Field("vit/logits/action", ("class",), (3,), "float16"),
    Field("vit/pooled", ("channel",), (5,), "float16"),
    Field("residual", ("channel", "time", "height", "width"), (2, 2, 1, 3), "float16"),
)

PLAIN = Field("vit/pooled", ("channel",), (5,), "float16")
BLOSC = Field("cnn/pooled", ("channel",), (5,), "float16", BloscZstd())
ROUNDED = Field("residual", ("channel", "time"), (2, 3), "float16", BitRound(4))
STEPS = Field("vit/logits/action", ("class",), (3,), "float16", Fixed8(-5.0, 125.0))
CLIP = Field("clip/x3d", ("colour",), (3,), "uint8", BloscZstd())
PACKED_FIELDS = (PLAIN, BLOSC, ROUNDED, STEPS, CLIP)

PROJECTION = {
    "vit_weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "scale": np.array(0.5, np.float32),
}


ADDED_CLIP = Field("clip/x3d", ("frame", "colour"), (4, 3), "uint8")
SLOW = (
    Field("slow/status", (), (), "uint8"),
    Field("slow/input_digest", (), (), "uint64"),
    Field("slow/pooled", ("channel",), (7,), "float16"),
    Field("slow/logits/action", ("class",), (3,), "float16", BitRound(4)),
)
TEACHER = {"model": "slowfast", "weights_sha256": "cc"}


def samples_table(count: int) -> pa.Table:
    """A samples table whose parquet metadata say something too."""
    return pa.table(
        {
            "sample_id": pa.array([f"id-{row}" for row in range(count)], pa.string()),
            "path": [f"videos/#{row}.mp4" for row in range(count)],
            "split": ["test" if row % 3 == 2 else "train" for row in range(count)],
            "start_sec": np.zeros(count),
            "stop_sec": pa.array([None] * count, pa.float64()),
            "label_action": np.arange(count, dtype=np.int32) % 3,
        }
    ).replace_schema_metadata({"dataset": "tiny"})


def make_cache(
    path: Path, *, count: int = 10, views: int = 2, chunk_samples: int = 4, **changes: object
) -> CacheWriter:
    """Make an empty cache of `count` samples; other arguments of `create_cache` by name."""
    arguments: dict[str, Any] = {
        "identity": IDENTITY,
        "provenance": {"command": "pytest"},
        "samples": samples_table(count),
        "fields": FIELDS,
        "views": views,
        "chunk_samples": chunk_samples,
        "projection": PROJECTION,
    }
    return create_cache(path, **(arguments | changes))


def expected_rows(
    samples: NDArray[Any], views: NDArray[Any], fields: tuple[Field, ...] = FIELDS
) -> dict[str, NDArray[Any]]:
    """The rows of any (sample, view) pairs: each value tells where it belongs.

    Args:
        samples: (n,) indices.
        views: (n,) indices.
        fields: all but those that every cache has.

    Returns:
        field → (n, ...). Sample 5 of view 0 is unreadable, sample 6 of view 1 gave no finite
        output.
    """
    row = samples * 10 + views
    status = np.full(row.shape, Status.VALID, np.uint8)
    status[(samples == 5) & (views == 0)] = Status.UNREADABLE_VIDEO
    status[(samples == 6) & (views == 1)] = Status.NON_FINITE_OUTPUT
    arrays: dict[str, NDArray[Any]] = {}
    for field in fields:
        if field.is_status:  # of an added teacher
            arrays[field.name] = status.copy()
            continue
        inner = np.arange(np.prod(field.shape)).reshape(field.shape)
        values = (row.reshape(-1, *(1,) * inner.ndim) + inner / 16).astype(field.dtype)
        values[status != Status.VALID] = field.fill
        arrays[field.name] = values
    arrays["status"] = status
    arrays["input_digest"] = row.astype(np.uint64) + np.uint64(2**63)
    box = np.array([0.0, 0.25, 0.0, 1.0, 0.75, 0.0])
    arrays["views"] = box + (row.reshape(-1, 1) / 10) * np.array([1.0, 0, 0, 0, 0, 0])
    return arrays


def chunk_arrays(
    writer: CacheWriter, chunk: int, views: tuple[int, ...], names: tuple[str, ...] | None = None
) -> dict[str, NDArray[Any]]:
    """The arrays of one chunk, as `write_chunk` takes them: (samples, views, ...)."""
    fields = tuple(field for field in writer.layout.fields.values() if field not in OWN_FIELDS)
    samples = np.asarray(writer.sample_range(chunk))
    grid = np.meshgrid(samples, views, indexing="ij")
    rows = expected_rows(grid[0].ravel(), grid[1].ravel(), fields)
    return {
        name: values.reshape(len(samples), len(views), *values.shape[1:])
        for name, values in rows.items()
        if names is None or name in names
    }


def whole(chunk: int, views: tuple[int, ...], fields: tuple[Field, ...] = FIELDS) -> PendingChunk:
    """Pending work in which all fields are missing."""
    return PendingChunk(chunk, views, tuple(field.name for field in (*OWN_FIELDS, *fields)))


def fill_cache(writer: CacheWriter) -> None:
    """Write everything that is pending."""
    for work in writer.pending():
        arrays = chunk_arrays(writer, work.chunk, work.views, work.fields)
        writer.write_chunk(work.chunk, arrays, views=work.views)


def full_cache(path: Path, **arguments: int | tuple[Field, ...]) -> Path:
    """Make a cache, fill it and close it."""
    with make_cache(path, **arguments) as writer:
        fill_cache(writer)
    return path


def packed_identity(fields: tuple[Field, ...] = PACKED_FIELDS) -> dict[str, Any]:
    """The identity of a cache with these fields: the lossy codecs are part of it."""
    return {**IDENTITY, "codecs": lossy_codecs(fields)}


def compressed_cache(path: Path, fields: tuple[Field, ...] = PACKED_FIELDS) -> Path:
    """A full cache of 10 samples in 2 views in 3 chunks."""
    return full_cache(path, fields=fields, identity=packed_identity(fields))


def more_samples(first: int, count: int) -> pa.Table:
    """Samples behind the first ones."""
    return samples_table(first + count).slice(first)


def add_samples(writer: CacheWriter) -> None:
    """Five more: the last chunk before them, of 4, has only 2."""
    writer.add_samples(more_samples(10, 5))


GROWTHS: dict[str, Callable[[CacheWriter], None]] = {
    "views": lambda writer: writer.add_views(1),
    "samples": add_samples,
    "field": lambda writer: writer.add_fields([ADDED_CLIP]),
    "teacher": lambda writer: writer.add_fields(SLOW, {"slow": TEACHER}),
}


def contents(path: Path, *, commits: bool = False) -> dict[str, bytes]:
    """Every file's bytes; commits hold times and process numbers, so not by default."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != LOCK and (commits or file.parent.name != "commits")
    }


def sign(cache: Path, file: str, data: bytes) -> None:
    """Replace a chunk file as a stranger would who made the cache: its commit agrees with it."""
    checksum = crc32c(data)
    (cache / file).write_bytes(data + checksum.to_bytes(4, "little"))
    commit = cache / "commits" / f"{file.split('/c.')[1][0]}.json"
    document = json.loads(commit.read_bytes())
    del document["crc32c"]
    document["files"][file] = {"bytes": len(data) + 4, "crc32c": f"{checksum:08x}"}
    commit.write_bytes(seal(document))


def full_disk(*_: object) -> NoReturn:
    """Stand in for a call that writes: there is no space left."""
    raise OSError(errno.ENOSPC, "No space left on device")


class InterruptionError(Exception):
    """Raised by the tests at some point of a write."""


def interrupt_at(point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise at the `point`-th of all moments after a change of the file system."""
    moments = itertools.count()

    def watched(call: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def wrapped(*args: object, **kwargs: object) -> object:
            result = call(*args, **kwargs) if after else None
            if next(moments) == point:
                raise InterruptionError(call)
            return result if after else call(*args, **kwargs)

        return wrapped

    monkeypatch.setattr(Path, "open", watched(Path.open, after=False))  # nobody would close it
    for holder, name in [(Path, "replace"), (Path, "rename"), (Path, "write_bytes"), (os, "fsync")]:
        monkeypatch.setattr(holder, name, watched(getattr(holder, name), after=True))
