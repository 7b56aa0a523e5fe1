"""A student's clips in a cache: raw, or each frame as a JPEG file; in which way, and back again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cache import CacheError, Field, TeacherCache
from pipeline.config import ClipFormat
from pipeline.jpeg import JpegError, decode_frames, encode_frames, frame_bytes
from pipeline.models import model_entry

_CLIPS = "clip/"


def clip_field(student: str) -> str:
    """The cache's field of a student's stored clips."""
    return _CLIPS + student


def stored_students(cache: TeacherCache) -> list[str]:
    """The students whose clips a cache stores."""
    return [name.removeprefix(_CLIPS) for name in cache.fields if name.startswith(_CLIPS)]


def clip_fields(
    students: Sequence[str], stored: Mapping[str, Field], wanted: ClipFormat
) -> list[Field]:
    """The students' clips, in the format that is wanted, or in which they stand already.

    In one group xarray wants one size per dimension: dimensions of another size get a name.
    """
    fields = []
    sizes: dict[tuple[str, str], int] = {}
    for name, field in stored.items():
        group = name.removeprefix(_CLIPS).rpartition("/")[0]
        if name.startswith(_CLIPS):
            sizes |= {(group, dim): size for dim, size in zip(field.dims, field.shape, strict=True)}
    for name in students:
        standing = stored.get(clip_field(name))
        if standing is not None and format_of(standing, name):
            fields.append(replace(standing, codec=None))
            continue
        group, _, short = name.rpartition("/")
        axes = _axes(name)[wanted]
        same = all(sizes.setdefault((group, dim), size) == size for dim, size in axes.items())
        dims = tuple(axes if same else (f"{dim}_{short}" for dim in axes))
        fields.append(Field(clip_field(name), dims, tuple(axes.values()), "uint8"))
    return fields


def _axes(student: str) -> dict[ClipFormat, dict[str, int]]:
    """Dimension → size of a student's clip, in each format."""
    clip = model_entry(student).clip
    return {
        "raw": {"frame": clip.frames, "height": clip.size, "width": clip.size, "colour": 3},
        "jpeg": {"frame": clip.frames, "jpeg": frame_bytes(clip.size)},
    }


def format_of(field: Field, student: str) -> ClipFormat | None:
    """How a field holds a student's clips; None where they are others than the student takes."""
    for name, axes in _axes(student).items():
        if (field.shape, field.dtype) == (tuple(axes.values()), "uint8"):
            return name
    return None


def why_not(field: Field, student: str) -> str:
    """What a field holds that are not a student's clips, beside those."""
    sizes = {name: " × ".join(map(str, axes.values())) for name, axes in _axes(student).items()}
    return (
        f"{field.name} holds {field.dtype} of {' × '.join(map(str, field.shape))}, and a clip of "
        f"{student} is uint8 of {sizes['raw']}, or as JPEG {sizes['jpeg']}"
    )


def why_decoded(cache: TeacherCache, student: str) -> str | None:
    """Why a cache's own clips are not those that a student takes; None where it has none at all."""
    field = cache.fields.get(clip_field(student))
    if field is None:
        return None
    if not_pulled(cache, student):
        return f"{field.name} is not here, {cache.how_to_complete(fields=[field.name])}"
    return why_not(field, student)


def not_pulled(cache: TeacherCache, student: str) -> bool:
    """Whether a cache was pulled without a student's clips, though it has the field for them."""
    name = clip_field(student)
    return name in cache.fields and bool(cache.origin) and not cache.bytes_by_field()[name]


def stored_format(cache: TeacherCache, student: str) -> ClipFormat | None:
    """How a cache stores a student's clips; None where it does not, or stores others.

    Of a cache that was pulled without them none are there either: then the videos are decoded.
    """
    field = cache.fields.get(clip_field(student))
    if field is None or not_pulled(cache, student):
        return None
    return format_of(field, student)


def as_stored(clips: NDArray[np.uint8], field: Field) -> NDArray[np.uint8]:
    """Clips (N, T, H, W, 3) as a field takes them.

    Raises:
        pipeline.jpeg.JpegError: a frame does not fit into the room for its JPEG file.
    """
    if len(field.shape) == clips.ndim - 1:
        return clips
    files = encode_frames(clips.reshape(-1, *clips.shape[2:]), field.shape[-1])
    return files.reshape(*clips.shape[:2], -1)


def read_stored(
    cache: TeacherCache,
    student: str,
    batches: Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]],
    decoders: int = 0,
) -> Iterator[NDArray[np.uint8]]:
    """A student's clips (N, T, H, W, 3) out of a cache, which has them in either format.

    Args:
        cache: the cache.
        student: whose clips.
        batches: rows and views of each, (N,) both.
        decoders: threads that decode JPEG, a batch ahead of the one asked for; 0 decodes in this
            one. PIL decodes outside Python's lock.

    Raises:
        cache.CacheError: a row is missing or damaged.
    """
    name = clip_field(student)
    if stored_format(cache, student) != "jpeg":
        for rows, views in batches:
            yield cache.read(rows, views, [name])[name]
        return
    size = model_entry(student).clip.size

    def decode(clip: NDArray[np.uint8], files: NDArray[np.uint8], row: int, view: int) -> None:
        try:
            clip[:] = decode_frames(files, size)
        except JpegError as error:
            sample = cache.samples["sample_id"][row].as_py()
            raise CacheError(
                f"{cache.place}: {name} of sample {sample}, view {view}: {error}. "
                "`dualkd-cache verify` tells whether the file is damaged"
            ) from error

    _ = cache.samples  # loaded once, by this thread
    with ThreadPoolExecutor(max(1, decoders)) as pool:
        begun: deque[tuple[NDArray[np.uint8], list[Future[None]]]] = deque()
        for rows, views in batches:
            stored = cache.read(rows, views, [name])[name]
            clips = np.empty((*stored.shape[:2], size, size, 3), np.uint8)
            jobs = list(zip(clips, stored, rows.tolist(), views.tolist(), strict=True))
            if not decoders:
                for job in jobs:
                    decode(*job)
                yield clips
                continue
            begun.append((clips, [pool.submit(decode, *job) for job in jobs]))
            if len(begun) > 1:
                yield _finished(*begun.popleft())
        for batch in begun:
            yield _finished(*batch)


def _finished(clips: NDArray[np.uint8], jobs: Sequence[Future[None]]) -> NDArray[np.uint8]:
    for job in jobs:
        job.result()
    return clips
